"""A few scenes on the GPU, for tools that watch every instruction: ``compute-sanitizer python -m perf.gpu.smoke``."""

from __future__ import annotations

import argparse

from deblendrt.engine.deblender import Deblender
from perf.gpu.drawn_scenes import draw_scenes


def main() -> None:
    """Deblend, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3)
    arguments = parser.parse_args()
    scenes = draw_scenes(Deblender.load(), arguments.scenes)
    deblender = Deblender.load(device="cuda")
    result = deblender.deblend_batch(list(scenes.image), scenes.centers, variance=scenes.variance,
                                     n_iteration=arguments.iterations, psf="nominal", detail=False)
    print(result.n_source, "sources, sum of their fluxes", result.flux.sum())


if __name__ == "__main__":
    main()
