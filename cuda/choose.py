"""Keep the rows of blends that got better.

Moves twice the bytes of the chosen rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from deblendrt.cuda.device import Argument, Device, DeviceArray
from deblendrt.cuda.layout import Layout

AT_ONCE = 8  # arrays per launch: as many as a state has


def choose(device: Device, layout: Layout, better: DeviceArray, sources: Sequence[DeviceArray],
           targets: Sequence[DeviceArray]) -> None:
    """`reference_steps.choose`."""
    pairs = list(zip(sources, targets, strict=True))
    for start in range(0, len(pairs), AT_ONCE):
        arguments: list[Argument] = []
        for source, target in pairs[start : start + AT_ONCE]:
            if source.shape != target.shape or source.dtype != target.dtype or len(source) != layout.n_source:
                raise ValueError(f"choose: {source.shape} {source.dtype} to {target.shape} {target.dtype}")
            arguments += [source, target, _words(source, target)]
        missing = AT_ONCE - len(arguments) // 3
        device.launch("choose", (layout.n_source,), (128,), layout.blend, better, *arguments,
                      *[None, None, 0] * missing)


def _words(source: DeviceArray, target: DeviceArray) -> int:
    """Words of a row: of 16 bytes, or, negative, of 4."""
    row = source.nbytes // max(len(source), 1)
    if row % 16 == 0 and source.pointer % 16 == 0 and target.pointer % 16 == 0:
        return row // 16
    if row % 4:
        raise ValueError(f"choose: rows of {row} bytes")
    return -(row // 4)


def cost(n_row: int, row_bytes: int) -> tuple[float, float]:
    """Bytes moved and flops, of so many chosen rows."""
    return 2.0 * n_row * row_bytes, 0.0
