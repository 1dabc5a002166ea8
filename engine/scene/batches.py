"""Chunks: scenes that are solved at once. They share a PSF. Their number follows from the threads and the memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene import patches
from deblendrt.engine.scene.patches import Part
from deblendrt.engine.scene.psf.field import PsfField
from deblendrt.engine.scene.scene import Scene

CHUNK = 512  # sources solved together
LEAST_CHUNK = 48  # smaller chunks are not divided among threads
CHUNK_PIXELS = 1_500_000  # pixels of scenes solved together, about the size of a large part of a patch
BYTES_PER_PIXEL, BYTES_PER_SOURCE = 50.0, 1.0e5  # per band, measured with the LSST model
# Bytes of a folded basis with all its tables (smaller windows, outskirts, every second pixel, packed copies), divided
# by the bytes of its functions in the window. Measured: 175 MB for each new PSF of the LSST model.
FOLDED_TABLES = 16.0


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Scenes that are solved at once, by number, or one part of one scene."""

    members: list[int]
    part: Part | None = None


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory that solving takes beside images and results, and its limit.

    Attributes
    ----------
    n_band : int
    border : int [pixel]
        Number of pixels by which a canvas is longer than its image along each axis.
    basis : int [byte]
        Bytes of the functions of a folded basis in the window.
    limit : float or None [byte]
    """

    n_band: int
    border: int
    basis: int
    limit: float | None = None

    def need(self, scenes: list[Scene]) -> float:
        """Return the bytes that solving scenes together takes at most."""
        n_pixel = sum((s.shape[0] + self.border) * (s.shape[1] + self.border) for s in scenes)
        n_psf = max(len(set(s.psf.at(s.centers).tolist())) if isinstance(s.psf, PsfField) else 1 for s in scenes)
        return (BYTES_PER_PIXEL * self.n_band * n_pixel + BYTES_PER_SOURCE * self.n_band * sum(
            s.n_source for s in scenes) + FOLDED_TABLES * self.basis * n_psf)

    def largest(self, chunks: list[Chunk], scenes: list[Scene]) -> float:
        """Return the bytes that the largest chunk takes."""
        return max(self.need([chunk.part.scene] if chunk.part else [scenes[i] for i in chunk.members])
                   for chunk in chunks)

    def held(self, chunks: list[Chunk], scenes: list[Scene]) -> float:
        """Return the number of chunks that the memory holds at a time."""
        return np.inf if self.limit is None or not chunks else self.limit // self.largest(chunks, scenes)

    def most_workers(self, chunks: list[Chunk], scenes: list[Scene]) -> int:
        """Return the number of chunks that may be solved at a time.

        Raises
        ------
        ValueError
            The memory does not hold the largest chunk.
        """
        n_held = self.held(chunks, scenes)
        if n_held < 1:
            raise ValueError(f"memory_limit: expected at least {self.largest(chunks, scenes):.3g} bytes for these "
                             f"images, got {self.limit:.3g}")
        return int(min(n_held, max(len(chunks), 1)))


def group_scenes(scenes: list[Scene], psf: NDArray[np.int64], among: list[int], n_source: int) -> Iterator[list[int]]:
    """Yield the scenes that are solved whole, in groups of one PSF and of the same bands.

    If no scene of a chunk has a band, the band is left out of the work.

    Parameters
    ----------
    scenes : list of Scene
    psf : int64 (n_scene,)
        Number of each scene's PSF.
    among : list of int
        Scenes to solve.
    n_source : int
        Largest number of sources of a group.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in among:
        scene = scenes[i]
        if scene.n_source and not (max(scene.shape) > patches.LARGEST or isinstance(scene.psf, PsfField)):
            groups.setdefault((int(psf[i]), *scene.band_present.tolist()), []).append(i)
    for members in groups.values():
        taken: list[int] = []
        for i in members:
            more = [scenes[k] for k in [*taken, i]]
            if taken and (sum(s.n_source for s in more) > n_source
                          or sum(s.shape[0] * s.shape[1] for s in more) > CHUNK_PIXELS):
                yield taken
                taken = []
            taken.append(i)
        yield taken


def divide_into_chunks(scenes: list[Scene], psf: NDArray[np.int64], among: list[int], n_threads: int,
                       memory: Memory) -> list[Chunk]:
    """Divide scenes into chunks so small that every thread has work and the memory holds a chunk of every thread.

    Parameters
    ----------
    scenes, psf, among
        Arguments of `group_scenes`.
    n_threads : int
    memory : Memory

    Returns
    -------
    list of Chunk
    """
    parts = [Chunk([i], part) for i in among for part in patches.cut_into_parts(scenes[i])]
    share = -(-sum(scenes[i].n_source for i in among) // n_threads)
    size = min(max(share, LEAST_CHUNK), CHUNK)
    while True:
        chunks = [Chunk(members) for members in group_scenes(scenes, psf, among, size)] + parts
        # Chunks of a few sources waste more time than a thread without work. At least one chunk must fit in the memory.
        if memory.held(chunks, scenes) >= (n_threads if size > LEAST_CHUNK else 1) or size == 1:
            return chunks
        size //= 2
