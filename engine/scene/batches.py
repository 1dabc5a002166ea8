"""What is solved at once: scenes that share a PSF, up to a number of sources and pixels, and what memory that takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene import patches
from deblendrt.engine.scene.patches import Part
from deblendrt.engine.scene.psf_field import PsfField
from deblendrt.engine.scene.scene import Scene

CHUNK = 512  # sources solved together
LEAST_CHUNK = 48  # fewer are not divided among threads
CHUNK_PIXELS = 1_500_000  # of scenes solved together, which are at most as large as a part of a patch
BYTES_PER_PIXEL, BYTES_PER_SOURCE = 50.0, 1.0e5  # per band, measured: see `memory`
# What a folded basis takes, in units of its functions in the window: smaller windows, outskirts, every second pixel,
# and packed copies of all; measured as 175 MB for each new PSF of the LSST model
FOLDED_TABLES = 16.0


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What is solved at once: some scenes, or a part of one."""

    members: list[int]
    part: Part | None = None


def together(result: DeblendResult, among: list[int], n_source: int) -> Iterator[list[int]]:
    """Scenes that are solved whole, together: of one folded basis, up to a number of sources and pixels. Those of the
    same bands, as what some scene of a chunk lacks is left out only where all do."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in among:
        scene = result.scenes[i]
        if scene.n_source and not (max(scene.shape) > patches.LARGEST or isinstance(scene.psf, PsfField)):
            group = (int(result.folded_index[result.source_start[i]]), *scene.band_present.tolist())
            groups.setdefault(group, []).append(i)
    for members in groups.values():
        held: list[int] = []
        for i in members:
            taken = [result.scenes[k] for k in [*held, i]]
            if held and (sum(s.n_source for s in taken) > n_source
                         or sum(s.shape[0] * s.shape[1] for s in taken) > CHUNK_PIXELS):
                yield held
                held = []
            held.append(i)
        yield held


def divide(result: DeblendResult, among: list[int], n_threads: int, memory_limit: float | None) -> list[Chunk]:
    """Scenes as chunks, so small that every thread has work and that the memory holds a chunk of each.

    Parameters
    ----------
    result : DeblendResult
    among : list of int
        Scenes to solve.
    n_threads : int
    memory_limit : float or None [byte]

    Returns
    -------
    list of Chunk
    """
    parts = [Chunk([i], part) for i in among for part in patches.divide(result.scenes[i])]
    share = -(-sum(result.scenes[i].n_source for i in among) // n_threads)
    size = min(max(share, LEAST_CHUNK), CHUNK)
    while True:
        chunks = [Chunk(members) for members in together(result, among, size)] + parts
        # rather a thread without work than chunks of a few sources, which waste more; but one of them has to fit
        if held(chunks, result, memory_limit) >= (n_threads if size > LEAST_CHUNK else 1) or size == 1:
            return chunks
        size //= 2


def held(chunks: list[Chunk], result: DeblendResult, memory_limit: float | None) -> float:
    """How many chunks the memory holds at a time."""
    return np.inf if memory_limit is None or not chunks else memory_limit // _largest(chunks, result)


def most_workers(chunks: list[Chunk], result: DeblendResult, memory_limit: float | None) -> int:
    """How many chunks may be solved at a time.

    Raises
    ------
    ValueError
        The memory does not hold the largest.
    """
    n_held = held(chunks, result, memory_limit)
    if n_held < 1:
        raise ValueError(f"memory_limit: expected at least {_largest(chunks, result):.3g} bytes for these images, got "
                         f"{memory_limit:.3g}")
    return int(min(n_held, max(len(chunks), 1)))


def _largest(chunks: list[Chunk], result: DeblendResult) -> float:
    """Bytes that the largest chunk takes."""
    return max(memory([chunk.part.scene] if chunk.part else [result.scenes[i] for i in chunk.members], result)
               for chunk in chunks)


def memory(scenes: list[Scene], result: DeblendResult) -> float:
    """Bytes that solving scenes together takes at most, beside images and result."""
    n_band = len(result.bands)
    folded = result.folded.fold(None) if len(result.folded) else None
    border, tables = (0, 0.0) if folded is None else (2 * folded.half, FOLDED_TABLES * folded.phi.nbytes)
    n_pixel = sum((s.shape[0] + border) * (s.shape[1] + border) for s in scenes)
    n_psf = max(len(set(s.psf.at(s.centers).tolist())) if isinstance(s.psf, PsfField) else 1 for s in scenes)
    return (BYTES_PER_PIXEL * n_band * n_pixel + BYTES_PER_SOURCE * n_band * sum(s.n_source for s in scenes)
            + tables * n_psf)
