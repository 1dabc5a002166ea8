r"""A small model, in float64 NumPy and as ONNX graphs. The engine is tested against it.

    base[m] = u[m] + P tanh(z W1) W2[m],     maps[m] = base[m] + dx base[m] X' + dy base[m] Y'
    mix     = softmax_m(c0 + z C),           c[b] = exp(log_flux[b]) sum_m mix[m, b] maps[m]
    log p   = -|q|^2 / 2 - sum q^4 / 20,     q = z - a tanh(log_flux . f)

u are two Gaussians. P removes a map's flux, so that every map has unit flux. X and Y are the exact generators of a
shift. The basis has the Gauss-Hermite functions to order four. The functions of the wide model are larger and have
light in outskirts, where they are bilinear between cells; so its generators are approximate. Every derivative belongs
to its function. In the other toy bundle (`conftest`) graphs are random and derivatives belong to nothing.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.problem import Problem, State
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.manifest import FORMAT_REVISION, GRAPHS, graph_sizes
from deblendrt.engine.model.outskirts import expand, split
from deblendrt.engine.scene.scene import make_scenes
from deblendrt.engine.solve import curvature
from deblendrt.engine.solve.start import build_problem, start_latents

Array = NDArray[np.float64]

BANDS = ("g", "r", "i")
N_BAND, N_COMPONENT, N_SHAPE, HIDDEN = 3, 2, 3, 8
STAMP, ORDER, SCALE = 21, 4, 1.8  # pixel, highest order, pixel
SKY_SIGMA = (1.0, 1.5, 2.0)
PSF_FWHM = (4.0, 3.6, 3.4)  # pixel
PIXEL_SCALE = 0.2
WIDE_STAMP, WIDE_SCALE, BINNING = 57, 5.0, 3  # pixel: the wide model, whose core is as large as the small model's stamp
CUTOUT = 9


def gauss_hermite(size: int = STAMP, scale: float = SCALE) -> tuple[Array, Array]:
    """Basis (n_basis, size, size) and the generators of its shifts (2, n_basis, n_basis)."""
    x = (np.arange(size) - size // 2) / scale
    one = [np.pi**-0.25 * np.exp(-(x**2) / 2)]
    one.append(math.sqrt(2) * x * one[0])
    for n in range(2, ORDER + 1):
        one.append(math.sqrt(2 / n) * x * one[-1] - math.sqrt((n - 1) / n) * one[-2])
    slope = np.zeros((ORDER + 1, ORDER + 1))  # <psi_n', -d psi_n / dx>
    for n in range(ORDER + 1):
        if n > 0:
            slope[n - 1, n] = -math.sqrt(n / 2) / scale
        if n < ORDER:
            slope[n + 1, n] = math.sqrt((n + 1) / 2) / scale
    pairs = [(n, m) for total in range(ORDER + 1) for n in range(total, -1, -1) for m in (total - n,)]
    phi = np.array([np.outer(one[m], one[n]) for n, m in pairs]) / scale
    shift = np.zeros((2, len(pairs), len(pairs)))
    for k, (n1, m1) in enumerate(pairs):
        for j, (n, m) in enumerate(pairs):
            shift[0, k, j] = slope[n1, n] * (m1 == m)
            shift[1, k, j] = slope[m1, m] * (n1 == n)
    return phi, shift


def gaussian_psf(fwhm: float, size: int = 25) -> Array:
    """Round Gaussian of sum one."""
    y, x = np.mgrid[:size, :size] - size // 2
    image = np.exp(-4 * math.log(2) * (x**2 + y**2) / fwhm**2)
    return image / image.sum()


class ToyModel:
    """The definition, in float64, with the methods and shapes of `deblendrt.engine.model.networks.Runtime`."""

    def __init__(self, seed: int = 0, *, wide: bool = False) -> None:
        rng = np.random.default_rng(seed)
        phi, shift = gauss_hermite(WIDE_STAMP, WIDE_SCALE) if wide else gauss_hermite()
        self.binning = BINNING if wide else 1
        core, cells = split(phi, STAMP, BINNING) if wide else (phi, np.zeros((len(phi), 0, 0)))
        phi = expand(core, cells, self.binning)
        # the engine's tables are float32; the definition starts from the same numbers
        self.phi, self.outskirts, self.shift = (a.astype(np.float32) for a in (core, cells, shift))
        self.x_t, self.y_t = (g.T.astype(np.float64) for g in self.shift)
        n_basis = len(phi)
        flat = phi.reshape(n_basis, -1)
        total = flat.sum(1)
        y, x = np.mgrid[: phi.shape[1], : phi.shape[2]] - phi.shape[1] // 2
        stretch = WIDE_SCALE / SCALE if wide else 1.0
        gaussians = np.array([np.exp(-(x**2 + y**2) / (2 * (stretch * s) ** 2)) for s in (1.5, 2.3)])
        unit = gaussians.reshape(2, -1) @ flat.T
        unit /= (unit @ total)[:, None]
        order = np.array([n for n in range(ORDER + 1) for _ in range(n + 1)])
        bend = 0.35 * np.abs(unit[:, :1]) / (1 + order) * rng.standard_normal((HIDDEN, N_COMPONENT, n_basis))
        bend -= (bend @ total)[:, :, None] * unit
        single = lambda a: np.asarray(a, np.float32).astype(np.float64)  # noqa: E731
        self.unit, self.w2 = single(unit), single(bend.reshape(HIDDEN, -1))
        self.w1 = single(rng.standard_normal((N_SHAPE, HIDDEN)) / math.sqrt(N_SHAPE))
        self.mix0 = single(0.5 * rng.standard_normal((N_COMPONENT, N_BAND)))
        self.mix1 = single(0.4 * rng.standard_normal((N_SHAPE, N_COMPONENT, N_BAND)))
        self.prior_mean = single(0.3 * rng.standard_normal(N_SHAPE))
        self.prior_slope = single([0.02, -0.03, 0.05])
        self.n_basis, self.n_latent = n_basis, N_BAND + 2 + N_SHAPE

    def decode_jacobian(self, latent: Array) -> tuple[Array, Array, Array, Array]:
        """maps, d_maps, mix, d_mix."""
        n = len(latent)
        dx, dy = latent[:, N_BAND, None, None], latent[:, N_BAND + 1, None, None]
        shape = latent[:, N_BAND + 2 :]
        hidden = np.tanh(shape @ self.w1)
        base = self.unit + (hidden @ self.w2).reshape(n, N_COMPONENT, self.n_basis)
        along_x, along_y = base @ self.x_t, base @ self.y_t
        maps = base + dx * along_x + dy * along_y
        slope = ((1 - hidden**2)[:, None] * self.w1) @ self.w2
        slope = slope.reshape(n, N_SHAPE, N_COMPONENT, self.n_basis)
        slope = slope + dx[..., None] * (slope @ self.x_t) + dy[..., None] * (slope @ self.y_t)
        logits = self.mix0 + np.tensordot(shape, self.mix1, 1)
        mix = np.exp(logits - logits.max(1, keepdims=True))
        mix /= mix.sum(1, keepdims=True)
        d_mix = mix[:, None] * (self.mix1 - (mix[:, None] * self.mix1).sum(2, keepdims=True))
        return maps, np.concatenate([along_x[:, None], along_y[:, None], slope], 1), mix, d_mix

    def decode(self, latent: Array) -> Array:
        """Coefficients (n, n_band, n_basis)."""
        maps, _, mix, _ = self.decode_jacobian(latent)
        return np.exp(latent[:, :N_BAND])[:, :, None] * (mix.transpose(0, 2, 1) @ maps)

    def jacobian(self, latent: Array) -> Array:
        """Dense dc/dlatent (n, n_latent, n_band, n_basis)."""
        maps, d_maps, mix, d_mix = self.decode_jacobian(latent)
        flux = np.exp(latent[:, :N_BAND])
        dense = np.zeros((len(latent), self.n_latent, N_BAND, self.n_basis))
        for b in range(N_BAND):
            dense[:, b, b] = flux[:, b, None] * np.einsum("nm,nmk->nk", mix[:, :, b], maps)
        dense[:, N_BAND:] = np.einsum("nb,nmb,njmk->njbk", flux, mix, d_maps)
        dense[:, N_BAND + 2 :] += np.einsum("nb,njmb,nmk->njbk", flux, d_mix, maps)
        return dense

    def decode_pullback(self, latent: Array, d_coefficients: Array) -> Array:
        """J^T d_coefficients (n, n_latent)."""
        return np.einsum("njbk,nbk->nj", self.jacobian(latent), d_coefficients)

    def log_prior(self, latent: Array) -> tuple[Array, Array]:
        """Log density (n,) and its gradient (n, n_latent)."""
        level = np.tanh(latent[:, :N_BAND] @ self.prior_slope)
        q = latent[:, N_BAND + 2 :] - level[:, None] * self.prior_mean
        by_shape = -q - 0.2 * q**3
        by_level = -(by_shape @ self.prior_mean) * (1 - level**2)
        gradient = np.concatenate([by_level[:, None] * self.prior_slope, np.zeros((len(q), 2)), by_shape], 1)
        return -0.5 * (q**2).sum(1) - 0.05 * (q**4).sum(1), gradient

    def encode(self, cutouts: Array, offsets: Array, psf_summary: Array) -> Array:
        """Shapes from the central pixels: a start without meaning."""
        core = np.tanh(0.02 * cutouts[:, :, CUTOUT // 2, CUTOUT // 2])
        return np.concatenate([psf_summary[:, N_BAND:], offsets, core], 1)

    def manifest(self) -> dict[str, Any]:
        """Manifest without `files`."""
        return {
            "format_revision": FORMAT_REVISION, "name": "toy_model", "model_version": "1", "licence": "BSD-3-Clause",
            "bands": list(BANDS), "reference_band": "i", "pixel_scale": PIXEL_SCALE, "stamp_size": STAMP,
            "outskirts_binning": self.binning, "n_basis": self.n_basis, "n_component": N_COMPONENT,
            "n_shape": N_SHAPE, "shape_radius": 6.0, "reference_psf_sigma": 1.0, "flux_unit": "nJy",
            "psf_fwhm": [f * PIXEL_SCALE for f in PSF_FWHM],
            "sky_sigma": list(SKY_SIGMA), "encoder_cutout_size": CUTOUT, "start_shape": [0.0] * N_SHAPE,
            "prior_curvature": (1.5 * np.eye(N_SHAPE)).tolist(), "mean_color": [-0.5, -0.2, 0.0],
            "color_sigma": [0.4, 0.3, 0.0],
            "log_prob_percentiles": {"0.1": -12.0, "1": -9.0, "5": -6.0, "25": -3.0, "50": -2.0, "75": -1.0},
            "training": {"population": {"magnitude_min": 16.5, "magnitude_max": 28.0}}, "opset": 18,
            "minimum_onnxruntime": "1.23", "parity": {name: {"float32": 1e-6, "float64": 1e-15} for name in GRAPHS},
            "golden_tolerance": {name: {"rtol": 2e-5, "atol": 1e-5} for name in GRAPHS},
        }

    def write_files(self, folder: Path) -> None:
        """Write the arrays, golden vectors and graphs of a bundle, without its manifest."""
        rng = np.random.default_rng(1)
        np.save(folder / "basis.npy", self.phi)
        np.save(folder / "outskirts.npy", self.outskirts)
        np.save(folder / "shift.npy", self.shift)
        for name in ("detail_shared", "detail_band"):
            np.save(folder / f"{name}.npy", np.zeros((0, self.n_basis), np.float32))
        np.save(folder / "psf.npy", np.array([gaussian_psf(f) for f in PSF_FWHM]).astype(np.float32))
        sizes = graph_sizes(n_band=N_BAND, n_basis=self.n_basis, n_component=N_COMPONENT, n_shape=N_SHAPE,
                            cutout_size=CUTOUT)
        golden: dict[str, Any] = {}
        for name, graph in GRAPHS.items():
            (folder / f"{name}.onnx").write_bytes(self.onnx(name))
            inputs = [rng.standard_normal((5, *(sizes[s] for s in symbols[1:]))).astype(np.float32)
                      for symbols in graph.inputs.values()]
            outputs = getattr(self, name)(*(value.astype(np.float64) for value in inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            golden |= {f"{name}.in.{key}": value for key, value in zip(graph.inputs, inputs, strict=True)}
            golden |= {f"{name}.out.{key}": value.astype(np.float32)
                       for key, value in zip(graph.outputs, outputs, strict=True)}
        np.savez(folder / "golden.npz", **golden)

    def onnx(self, name: str) -> bytes:
        """One of the bundle's graphs."""
        g = _Graph(name, self)
        if name == "log_prior":
            log_flux, _, shape = g("Split", "latent", np.array([N_BAND, 2, N_SHAPE]), axis=1, n=3)
            level = g("Tanh", g("MatMul", log_flux, self.prior_slope[:, None]))
            q = g("Sub", shape, g("Mul", level, self.prior_mean[None]))
            q2 = g("Mul", q, q)
            by_shape = g("Neg", g("Add", q, g("Mul", g("Mul", q2, q), np.float64(0.2))))
            by_level = g("Neg", g("Mul", g("MatMul", by_shape, self.prior_mean[:, None]),
                                  g("Sub", np.float64(1), g("Mul", level, level))))
            terms = g("Add", g("Mul", q2, np.float64(-0.5)), g("Mul", g("Mul", q2, q2), np.float64(-0.05)))
            g("ReduceSum", terms, np.array([1]), keepdims=0, to="log_prob")
            flat = g("Mul", g("Slice", "latent", np.array([0]), np.array([2]), np.array([1])), np.float64(0))
            g("Concat", g("Mul", by_level, self.prior_slope[None]), flat, by_shape, axis=1, to="gradient")
            return g.model()
        if name == "encode":
            _, log_sigma = g("Split", "psf_summary", np.array([N_BAND, N_BAND]), axis=1, n=2)
            middle = g("Gather", g("Gather", "cutouts", np.array(CUTOUT // 2), axis=3), np.array(CUTOUT // 2), axis=2)
            g("Concat", log_sigma, "offsets", g("Tanh", g("Mul", middle, np.float64(0.02))), axis=1, to="latent")
            return g.model()
        log_flux, offset, shape = g("Split", "latent", np.array([N_BAND, 2, N_SHAPE]), axis=1, n=3)
        dx, dy = (g("Unsqueeze", d, np.array([2])) for d in g("Split", offset, np.array([1, 1]), axis=1, n=2))
        hidden = g("Tanh", g("MatMul", shape, self.w1))
        bend = g("Reshape", g("MatMul", hidden, self.w2), np.array([-1, N_COMPONENT, self.n_basis]))
        base = g("Add", bend, self.unit)
        along_x, along_y = g("MatMul", base, self.x_t), g("MatMul", base, self.y_t)
        jacobian = name == "decode_jacobian"
        maps = g("Add", base, g("Add", g("Mul", dx, along_x), g("Mul", dy, along_y)), to="maps" if jacobian else "")
        logits = g("Reshape", g("MatMul", shape, self.mix1.reshape(N_SHAPE, -1)), np.array([-1, N_COMPONENT, N_BAND]))
        mix = g("Softmax", g("Add", logits, self.mix0), axis=1, to="mix" if jacobian else "")
        flux = g("Unsqueeze", g("Exp", log_flux), np.array([2]))
        if name == "decode":
            g("Mul", flux, g("MatMul", g("Transpose", mix, perm=[0, 2, 1]), maps), to="coefficients")
            return g.model()
        steep = g("Unsqueeze", g("Sub", np.float64(1), g("Mul", hidden, hidden)), np.array([1]))
        slope = g("Reshape", g("MatMul", g("Mul", steep, self.w1[None]), self.w2),
                  np.array([-1, N_SHAPE, N_COMPONENT, self.n_basis]))
        moved = (g("Mul", g("Unsqueeze", d, np.array([3])), g("MatMul", slope, t))
                 for d, t in ((dx, self.x_t), (dy, self.y_t)))
        by_shape = g("Add", slope, g("Add", *moved))
        ahead = [g("Unsqueeze", a, np.array([1])) for a in (along_x, along_y)]
        d_maps = g("Concat", *ahead, by_shape, axis=1, to="d_maps" if jacobian else "")
        mix_1 = g("Unsqueeze", mix, np.array([1]))
        mean = g("ReduceSum", g("Mul", mix_1, self.mix1[None]), np.array([2]), keepdims=1)
        d_mix = g("Mul", mix_1, g("Sub", self.mix1[None], mean), to="d_mix" if jacobian else "")
        if jacobian:
            return g.model()
        scaled = g("Mul", flux, "d_coefficients")
        unit = g("MatMul", g("Transpose", mix, perm=[0, 2, 1]), maps)

        def dot(rows: str, n_row: int, columns: str) -> str:
            """Inner products along all but the first two axes, (n, n_row). ReduceSum would round by the alignment."""
            flat = g("Reshape", rows, np.array([0, n_row, -1])), g("Reshape", columns, np.array([0, -1, 1]))
            return g("Squeeze", g("MatMul", *flat), np.array([2]))

        by_flux = g("Squeeze", g("MatMul", g("Unsqueeze", unit, np.array([2])), g("Unsqueeze", scaled, np.array([3]))),
                    np.array([2, 3]))
        by_map = dot(d_maps, 2 + N_SHAPE, g("MatMul", mix, scaled))
        by_mix = dot(d_mix, N_SHAPE, g("MatMul", maps, g("Transpose", scaled, perm=[0, 2, 1])))
        by_offset, by_form = g("Split", by_map, np.array([2, N_SHAPE]), axis=1, n=2)
        g("Concat", by_flux, by_offset, g("Add", by_form, by_mix), axis=1, to="d_latent")
        return g.model()


class _Graph:
    """Writes ONNX nodes one call at a time; arrays become constants, float64 arrays in float32."""

    def __init__(self, name: str, model: ToyModel) -> None:
        self.graph = GRAPHS[name]
        self.sizes = graph_sizes(n_band=N_BAND, n_basis=model.n_basis, n_component=N_COMPONENT, n_shape=N_SHAPE,
                                 cutout_size=CUTOUT)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, op: str, *inputs: Any, to: str = "", n: int = 1, **attributes: Any) -> Any:
        import onnx

        names = []
        for value in inputs:
            if not isinstance(value, str):
                array = np.asarray(value)
                array = array.astype(np.float32) if array.dtype == np.float64 else array.astype(np.int64)
                self.constants.append(onnx.numpy_helper.from_array(array, f"k{len(self.constants)}"))
                value = self.constants[-1].name
            names.append(value)
        outputs = [to] if to else [f"t{len(self.nodes)}_{i}" for i in range(n)]
        self.nodes.append(onnx.helper.make_node(op, names, outputs, **attributes))
        return outputs[0] if n == 1 else outputs

    def model(self) -> bytes:
        import onnx

        def values(names: Any) -> list[Any]:
            return [onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT,
                                                       ["N", *(self.sizes[symbol] for symbol in symbols[1:])])
                    for key, symbols in names.items()]

        graph = onnx.helper.make_graph(self.nodes, "main", values(self.graph.inputs), values(self.graph.outputs),
                                       self.constants)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        return model.SerializeToString()


def paint(model: ToyModel, folded: FoldedBasis, latent: Array, anchor: NDArray[np.int64],
          shape: tuple[int, int]) -> Array:
    """Noiseless image (n_band, n_y, n_x) of sources, windows cut at the image's edge; float64."""
    half = folded.half
    canvas = np.zeros((N_BAND, shape[0] + 2 * half, shape[1] + 2 * half))
    c = model.decode(np.asarray(latent, np.float64))
    for row, (x, y) in zip(c, anchor, strict=True):
        stamp = np.einsum("bk,bkp->bp", row, folded.phi.astype(np.float64))
        canvas[:, y : y + folded.window, x : x + folded.window] += stamp.reshape(N_BAND, folded.window, folded.window)
    return canvas[:, half : half + shape[0], half : half + shape[1]]


def draw_latent(n: int, rng: np.random.Generator, *, flux: tuple[float, float] = (300.0, 5000.0),
                offset: float = 0.3, shape: float = 0.6) -> Array:
    """Random latents: log-uniform i flux, the population's colours, offsets and shapes of a given width."""
    log_flux = np.log(rng.uniform(*flux, (n, 1))) + [-0.5, -0.2, 0.0] + 0.2 * rng.standard_normal((n, N_BAND))
    return np.concatenate([log_flux, rng.uniform(-offset, offset, (n, 2)), shape * rng.standard_normal((n, N_SHAPE))],
                          1)


def make_problem(deblender: Deblender, cutouts: Any, centers: Any, *, robust: bool = True, center_sigma: float = 0.2,
                 **options: Any) -> tuple[Problem, Array, Array]:
    """Make the problem of some scenes, its start and the floor of its log fluxes, as a deblender does.

    Unlike a deblender's, all sources have whole windows: light below the noise counts in tests against dense sums.
    """
    bundle = deblender.bundle
    options.setdefault("variance", np.array(SKY_SIGMA) ** 2)
    scenes = make_scenes(cutouts, centers, bundle_bands=bundle.bands, bundle_pixel_scale=bundle.pixel_scale,
                         window_half=deblender.window // 2, **options)
    problem, _ = build_problem(scenes, deblender.fold(scenes[0].psf), deblender.runtime, bundle,
                               center_sigma=center_sigma, robust=robust)
    problem = dataclasses.replace(problem, smallest=np.zeros_like(problem.smallest))
    return start_latents(problem, "linear")


def add_noise(image: Array, rng: np.random.Generator) -> NDArray[np.float32]:
    """Add sky noise of SKY_SIGMA."""
    return (image + np.array(SKY_SIGMA)[:, None, None] * rng.standard_normal(image.shape)).astype(np.float32)


def pushed_by(state: State, v: Array) -> Array:
    """J v: change of the coefficients along a step v whose flux part is relative, (n_source, n_band, n_basis)."""
    n_band = state.coefficients.shape[1]
    columns = curvature.columns(state).astype(np.float64)
    return v[:, :n_band, None] * columns[:, :, 0] + np.einsum("nc,nbck->nbk", v[:, n_band:], columns[:, :, 1:])
