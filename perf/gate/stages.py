"""Timers and counters around the functions of an engine, which are found by name.

A stage is a kind of work: stamps that photometry draws count as render. The time of a function leaves out the other
stages that it calls. Versions of the engine name their functions differently. A name that a version lacks is skipped
and listed, and its time goes to the stage that calls it, or to "other". Nothing is wrapped while wall time is measured.

Counts do not depend on the machine. They are calls, iterations, rows of the model's graphs (padding included), and
multiply-adds of the matrix products of `PRODUCTS`, from the operands' shapes. Small products by NumPy's operators in
the solver are not counted.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PACKAGE = "deblendrt.engine"
STAGES: dict[str, tuple[str, ...]] = {
    "fold": ("compute.folding.fold", "compute.folding.fold_bundle"),
    "encode": ("solve.start.encoded_shapes", "solve.start.filled_cutout", "model.networks.GraphRuntime.encode"),
    "decode": (
        "compute.decoding.decode",
        "compute.decoding.decode_jacobian",
        "compute.decoding.decode_pullback",
        "compute.decoding.log_prior",
        "solve.objective.mix_coefficients",
        "model.networks.GraphRuntime.decode",
        "model.networks.GraphRuntime.decode_jacobian",
        "model.networks.GraphRuntime.decode_pullback",
        "model.networks.GraphRuntime.log_prior",
    ),
    "render": (
        "solve.objective.render",
        "compute.drawing.render",
        "compute.drawing.placed",
        "compute.drawing.stamps",
        "compute.drawing.extended_stamps",
        "compute.drawing.whole_stamps",
        "compute.drawing.window_stamps",
        "compute.drawing.each_stamp",
    ),
    "residual": (
        "solve.objective.likelihood",
        "solve.objective.weighted_residual",
        "solve.objective.weigh",
        "solve.objective.by_blend",
        "solve.objective.by_scene",
    ),
    "project": ("solve.objective.project", "compute.drawing.project"),
    "solve": (
        "solve.descent.newton_step",
        "solve.descent.gauss_newton",
        "solve.further_rounds.in_rounds",
        "solve.descent.descend",
        "solve.descent.solve",
        "solve.joint_step.joint_step",
        "solve.curvature.outskirts",
        "solve.curvature.columns",
        "solve.curvature.mean_weight",
        "solve.curvature.rim_weight",
        "solve.curvature.extents",
        "solve.prior.secant",
        "solve.objective.pull",
    ),
    "photometry": ("solve.joint_fluxes.linear_fluxes", "solve.joint_fluxes.normal_matrices"),
    "record": (
        "measure.measurements.record",
        "measure.fit_quality.core_statistics",
        "measure.fit_quality.enclosed_fraction",
        "measure.light_shares.share",
        "measure.systematic_error.misfit",
        "measure.uncertainty.laplace",
        "measure.adaptive_moments.adaptive_moments",
        "measure.apertures.aperture_functional",
        "solve.unlisted.peaks",
        "solve.unlisted.left",
    ),
}
CALLS: dict[str, tuple[str, ...]] = {  # of each entry the first name that the version has is counted
    "render": ("compute.drawing.render",),
    "project": ("compute.drawing.project",),
    "photometry": ("solve.joint_fluxes.linear_fluxes",),
    "iteration": ("solve.descent.newton_step",),
}
# functions of two operands (..., i, j) and (..., j, k)
PRODUCTS = ("compute.matmul.matmul", "compute.matmul.multiply")
ITERATION = ("solve.descent.newton_step",)  # functions of a problem; its `scene` has a number for each source
# names of the modules, or of single functions' modules, in versions whose engine was one flat folder
FORMER = {
    "compute.decoding": "decoding",
    "compute.drawing": "ops",
    "compute.folding": "psf",
    "compute.matmul": "matmul",
    "compute.matmul.multiply": "packed",
    "measure.adaptive_moments": "shapes",
    "measure.apertures": "apertures",
    "measure.measurements": "record",
    "measure.fit_quality": "quality",
    "measure.light_shares": "sharing",
    "measure.systematic_error": "systematics",
    "measure.uncertainty": "uncertainty",
    "model.manifest": "manifest",
    "model.networks": "runtime",
    "solve.curvature": "curvature",
    "solve.descent": "solver",
    "solve.joint_fluxes": "photometry",
    "solve.joint_step": "coupling",
    "solve.further_rounds": "rounds",
    "solve.objective": "objective",
    "solve.prior.secant": "curvature",
    "solve.start": "start",
    "solve.unlisted": "unlisted",
}


class Probe:
    """Timers and counters of one run.

    Attributes
    ----------
    seconds : dict of str to float
        Processor time by stage.
    counts : dict of str to int
    skipped : list of str
        Names in the tables that the engine lacks.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.counts: collections.Counter[str] = collections.Counter()
        self.skipped: list[str] = []
        self._stack = ["other"]
        self._since = 0.0
        self._in_product = False
        self._original: dict[int, Any] = {}  # by the id of the wrapper

    @contextmanager
    def installed(self) -> Iterator[Probe]:
        """Wrap the functions while the context lasts."""
        undo: list[tuple[Any, str, Any]] = []
        self.skipped = []
        try:
            for stage, names in STAGES.items():
                for name in names:
                    self._wrap(name, functools.partial(self._timed, stage), undo)
            for label, names in CALLS.items():
                known = [name for name in names if _find(name) is not None]
                self._wrap(known[0] if known else names[0], functools.partial(self._counted, f"calls_{label}"), undo)
            for name in ITERATION:
                self._wrap(name, self._iterations, undo)
            for name in PRODUCTS:
                self._wrap(name, self._product, undo)
            self._wrap_sessions(undo)
            self._since = time.process_time()
            yield self
            self._switch(None)
        finally:
            for owner, name, original in reversed(undo):
                setattr(owner, name, original)
            for module in _modules():  # modules imported meanwhile may hold a wrapper
                for name, value in list(vars(module).items()):
                    if id(value) in self._original:
                        setattr(module, name, self._original[id(value)])
            self.skipped = sorted(set(self.skipped))

    def _wrap(self, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]],
              undo: list[tuple[Any, str, Any]]) -> None:
        """Replace a function in every module of the engine that holds it."""
        found = _find(name)
        if found is None:
            self.skipped.append(name)
            return
        owner, last, original = found
        replaced = functools.wraps(original)(wrapper(original))
        self._original[id(replaced)] = self._original.get(id(original), original)
        places = [(owner, last)]
        for module in _modules():
            places += [(module, key) for key, value in vars(module).items()
                       if value is original and (module, key) != (owner, last)]
        for place, key in places:
            undo.append((place, key, original))
            setattr(place, key, replaced)

    def _switch(self, stage: str | None) -> None:
        """Enter a stage, or leave the current stage."""
        now = time.process_time()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now
        if stage is None:
            if len(self._stack) > 1:
                self._stack.pop()
        else:
            self._stack.append(stage)

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self._switch(stage)
            try:
                return function(*args, **options)
            finally:
                self._switch(None)

        def iterate(*args: Any, **options: Any) -> Any:
            items = function(*args, **options)
            while True:
                self._switch(stage)
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    self._switch(None)
                yield item

        return iterate if inspect.isgeneratorfunction(inspect.unwrap(function)) else call

    def _counted(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.counts[label] += 1
            return function(*args, **options)

        return call

    def _iterations(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(problem: Any, *args: Any, **options: Any) -> Any:
            self.counts["source_iterations"] += len(getattr(problem, "scene", ()))
            return function(problem, *args, **options)

        return call

    def _product(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(a: Any, b: Any, *args: Any, **options: Any) -> Any:
            self.counts["multiply_adds"] += multiply_adds(a.shape, b.shape)
            before, self._in_product = self._in_product, True
            try:
                return function(a, b, *args, **options)
            finally:
                self._in_product = before

        return call

    def _wrap_sessions(self, undo: list[tuple[Any, str, Any]]) -> None:
        """Count rows of the model's graphs where ONNX Runtime runs them."""
        try:
            from onnxruntime import InferenceSession
        except ImportError:
            self.skipped.append("onnxruntime.InferenceSession.run")
            return
        graphs = _graphs()

        def run(session: Any, outputs: Any, feeds: dict[str, Any], *args: Any, **options: Any) -> Any:
            if not self._in_product and feeds:
                rows = len(next(iter(feeds.values())))
                self.counts[f"rows_{graphs.get(tuple(outputs or ()), 'other')}"] += rows
            return original(session, outputs, feeds, *args, **options)

        original = InferenceSession.run
        undo.append((InferenceSession, "run", original))
        InferenceSession.run = run


def multiply_adds(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Number of multiply-adds in the product of arrays (..., i, j) and (..., j, k); leading axes are broadcast."""
    if len(a) < 2 or len(b) < 2:
        return 0
    leading = max(math.prod(a[:-2]), math.prod(b[:-2]))
    return leading * a[-2] * a[-1] * b[-1]


def _modules() -> list[Any]:
    return [module for key, module in sys.modules.items() if key.startswith(f"{PACKAGE}.")]


def _find(name: str) -> tuple[Any, str, Any] | None:
    """Owner, last name and function of a dotted name in the engine; None if it lacks it."""
    words = name.split(".")
    n_module = 1 if words[0] == "deblender" else 2
    module, parts = ".".join(words[:n_module]), words[n_module:]
    owner: Any = None
    for known in (module, FORMER.get(name, FORMER.get(module, module))):
        with contextlib.suppress(ImportError):
            owner = importlib.import_module(f"{PACKAGE}.{known}")
            break
    for part in parts[:-1]:
        owner = getattr(owner, part, None)
    function = getattr(owner, parts[-1], None)  # None has no such name either
    return None if function is None else (owner, parts[-1], function)


def _graphs() -> dict[tuple[str, ...], str]:
    """Names of the bundle's graphs by their outputs."""
    found = _find("model.manifest.GRAPHS")
    return {} if found is None else {tuple(graph.outputs): name for name, graph in found[2].items()}
