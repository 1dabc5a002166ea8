"""Operations and bytes of a descent, counted from the sizes of a bundle: the floor of its time on a GPU.

    python -m perf.gpu.roofline --bundle lsst --tflops 67 --gbps 3000

Counts the least that the algorithm of `engine/solve/device_descent.py` can do with its kernels as they are cut: every
array that a kernel reads or writes once, two operations for a multiply-add. No measurement is in it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

from deblendrt.engine.compute.folding import window_side
from deblendrt.engine.model.bundle import Bundle, load_bundle


@dataclasses.dataclass(frozen=True)
class Stage:
    """A kernel's share in one iteration.

    Attributes
    ----------
    name : str
    count : float
        How often it runs in an iteration.
    flop, byte : float
        Each time, per source.
    """

    name: str
    count: float
    flop: float
    byte: float


def stages(bundle: Bundle, *, scene_side: int = 101, per_scene: float = 4.8, blend: float = 4.2, n_pair: float = 2.3,
           network_flop: float = 0.0) -> Iterator[Stage]:
    """The kernels of one Gauss-Newton iteration.

    Parameters
    ----------
    bundle : Bundle
    scene_side : int [pixel]
    per_scene : float
        Sources.
    blend : float
        Sources of a source's blend: the root of the mean square, for work that grows as the cube.
    n_pair : float
        Pairs of sources whose windows overlap, per source, each source with itself among them.
    network_flop : float
        Operations of `decode_jacobian` and `log_prior` together, per source.
    """
    n_band, n_basis, n_shape = bundle.n_band, bundle.n_basis, bundle.n_shape
    n_component, n_latent = bundle.n_component, bundle.n_latent
    side = window_side(bundle)
    n_pixel = side * side
    canvas = 4.0 * n_band * scene_side**2 / per_scene  # canvases have borders, which kernels leave out
    stamp, coefficients = 4.0 * n_band * n_pixel, 4.0 * n_band * n_basis
    d_maps = 4.0 * (n_shape + 2) * n_component * n_basis
    columns = coefficients * (n_shape + 3)
    product = 2.0 * n_band * n_basis * n_pixel
    moves = n_shape + 2
    pull = 2.0 * (moves * n_component * n_basis + 2 * n_component * n_band * n_basis)
    block = 8.0 * n_latent**2
    n_column, n_half = n_shape + 3, ((side + 1) // 2) ** 2
    images, inner = 4.0 * n_band * n_column * n_half, 4.0 * n_band * n_column**2
    yield Stage("decode_jacobian, log_prior", 1, network_flop, d_maps)
    yield Stage("stamps: coefficients x basis", 2, product, coefficients + stamp)
    yield Stage("render: stamps to scenes", 2, n_band * n_pixel, stamp + canvas)
    yield Stage("residual", 1, 12 * canvas / 4, 5 * canvas)
    yield Stage("project: windows x basis", 1, product, canvas + coefficients)
    yield Stage("loss", 1, 24 * canvas / 4, 4 * canvas)
    yield Stage("pull", 1, pull, d_maps + 2 * coefficients)
    yield Stage("columns", 1, n_column * 2.0 * n_component * n_band * n_basis, d_maps + columns)
    yield Stage("derivative images: columns x every second pixel", 1, 2.0 * n_band * n_column * n_basis * n_half,
                columns + images)
    yield Stage("couplings", n_pair, 2.0 * n_band * n_column**2 * n_half, 2 * images + canvas / 4 + inner)
    yield Stage("joint blocks", n_pair, 2.0 * inner / 4, inner + 2 * block)
    yield Stage("joint solve", 1, 2 / 3 * n_latent**3 * blend**2, 2 * n_pair * block + blend * block)
    yield Stage("choose, secant, move", 1, 0.0, 2 * (d_maps + coefficients) + 2 * block)


def page(bundle: Bundle, tflops: float, gbps: float, n_iteration: float) -> str:
    """A table of the stages and what follows from it, in Markdown."""
    rows = list(stages(bundle))
    flop = sum(stage.count * stage.flop for stage in rows)
    byte = sum(stage.count * stage.byte for stage in rows)
    lines = ["| kernel | times | MFLOP | kB | us at the limit of arithmetic | of memory |", "|---|---|---|---|---|---|"]
    for s in rows:
        lines.append(f"| {s.name} | {s.count:.1f} | {s.count * s.flop / 1e6:.2f} | {s.count * s.byte / 1e3:.0f} "
                     f"| {s.count * s.flop / tflops / 1e6:.3f} | {s.count * s.byte / gbps / 1e3:.3f} |")
    lines.append(f"| all | | {flop / 1e6:.1f} | {byte / 1e3:.0f} | {flop / tflops / 1e6:.3f} "
                 f"| {byte / gbps / 1e3:.3f} |")
    bound = sum(max(s.count * s.flop / tflops / 1e6, s.count * s.byte / gbps / 1e3) for s in rows)
    overlap = max(flop / tflops / 1e6, byte / gbps / 1e3)
    one_by_one, hidden = (1e6 / (n_iteration * time) for time in (bound, overlap))
    lines += ["", f"{n_iteration:g} iterations a source at {tflops:g} TFLOP/s and {gbps:g} GB/s: at most "
                  f"{one_by_one:,.0f} sources a second kernel by kernel, {hidden:,.0f} if arithmetic and copies of "
                  "different kernels hid each other wholly."]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", default="lsst")
    parser.add_argument("--tflops", type=float, default=67.0, help="of the unit that does the products")
    parser.add_argument("--gbps", type=float, default=3000.0)
    parser.add_argument("--iterations", type=float, default=11.4, help="a source, further rounds included")
    arguments = parser.parse_args()
    print(page(load_bundle(arguments.bundle), arguments.tflops, arguments.gbps, arguments.iterations))


if __name__ == "__main__":
    main()
