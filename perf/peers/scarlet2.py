"""scarlet2 on the exchanged scenes, in its own environment.

    python -m perf.peers.scarlet2

The recipe is scarlet2's own (Real-World Example, version 0.5.1): sources from Gaussian moments, or point-like sources
if the moments fail; free spectra and morphologies; Adam until no parameter changes by more than `e_rel`. The step of
the morphologies is that of the present documentation, which does better than the older step. There is no learned prior,
because the trained networks are not on PyPI.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: one thread
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np
import scarlet2
from numpyro.distributions import constraints
from scarlet2.validation_utils import set_validation

from perf.peers import exchange

TINY = 1e-6  # parameters with constraints must start inside them
SPECTRUM_STEP = functools.partial(scarlet2.relative_step, factor=0.05)
MORPHOLOGY_STEP = 0.1
COMPILATION = "/jax/core/compile/backend_compile_duration"
HOW = ("its own recipe: from_gaussian_moments or else compact_morphology, one component a source, no learned prior, "
       "Adam until e_rel 1e-4; given centres fixed; total flux of the model")


class _Compilation:
    """Time at which the longest compilation ended; in a fit this is the compilation of its step."""

    def __init__(self) -> None:
        self.longest, self.end = 0.0, exchange.clock()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event == COMPILATION and seconds > self.longest:
            self.longest, self.end = seconds, exchange.clock()


_compilation = _Compilation()


def _sources(scene: exchange.GivenScene, observation: scarlet2.Observation) -> scarlet2.Scene:
    """The initial model of a scene."""
    with scarlet2.Scene(scarlet2.Frame.from_observations(observation)) as model:
        for x, y in scene.centers:
            center = jnp.array([y, x], jnp.float32)
            try:
                spectrum, morphology = scarlet2.init.from_gaussian_moments(observation, center)
            except ValueError:
                spectrum = scarlet2.init.pixel_spectrum(observation, center)
                morphology = scarlet2.init.compact_morphology()
            scarlet2.Source(center, jnp.maximum(jnp.nan_to_num(spectrum), TINY), jnp.clip(morphology, TINY, 1 - TINY))
    with scarlet2.Parameters(model):
        for i, source in enumerate(model.sources):
            scarlet2.Parameter(source.spectrum, name=f"spectrum:{i}", constraint=constraints.positive,
                               stepsize=SPECTRUM_STEP)
            scarlet2.Parameter(source.morphology, name=f"morph:{i}", constraint=constraints.unit_interval,
                               stepsize=MORPHOLOGY_STEP)
    return model


def deblend(scene: exchange.GivenScene, max_iter: int = 1000, e_rel: float = 1e-4) -> exchange.Model:
    """Fit a scene. The time is that of initialisation and fit."""
    start = exchange.clock()
    observation = scarlet2.Observation(
        jnp.asarray(scene.image, jnp.float32), weights=jnp.asarray(1 / scene.variance, jnp.float32),
        psf=jnp.asarray(scene.psf, jnp.float32), channels=list(scene.bands))
    model = _sources(scene, observation)
    fit_start = exchange.clock()
    _compilation.longest, _compilation.end = 0.0, fit_start
    fitted = model.fit(observation, max_iter=max_iter, e_rel=e_rel, progress_bar=False)
    jax.block_until_ready([source.spectrum for source in fitted.sources])
    end = exchange.clock()
    flux = np.stack([np.asarray(scarlet2.measure.flux(source), np.float64) for source in fitted.sources])
    image = np.stack([np.asarray(observation.render(fitted.evaluate_source(source))) for source in fitted.sources])
    return exchange.Model(flux, image, end - start, _compilation.end - fit_start, -1, "")


if __name__ == "__main__":
    set_validation(False)  # it prints, and takes time
    exchange.serve(deblend, importlib.metadata.version("scarlet2"), HOW)
