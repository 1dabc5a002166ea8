"""``deblendrt doctor``: reports the installed packages, devices and models."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from deblendrt.engine.files.installation import n_usable_cpu, package_version

REQUIRED = ("deblendrt", "numpy", "onnxruntime", "astropy")
# package -> (extra that installs it, purpose)
OPTIONAL = {
    "matplotlib": ("plot", "figures"),
    "tqdm": ("plot", "progress bar"),
    "sep": ("detect", "--detect"),
    "cuda-bindings": ("gpu", 'device="cuda"'),
    "nvidia-cuda-nvrtc": ("gpu", "compiles the GPU's kernels at first use"),
    "onnx": ("gpu", "reads the models' graphs for the GPU"),
    "torch": ("train", "training and export; never needed to deblend"),
    "galsim": ("train", "training and export; never needed to deblend"),
}


def report() -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"python           {platform.python_version()} ({sys.executable})"
    yield f"machine          {platform.machine()}, {platform.platform(terse=True)}, {n_usable_cpu()} usable CPU cores"
    yield ""
    for package in REQUIRED:
        yield f"{package:<16} {package_version(package) or 'NOT INSTALLED'}"
    for package, (extra, purpose) in OPTIONAL.items():
        found = package_version(package) or f'not installed: pip install "deblendrt[{extra}]"'
        yield f"{package:<16} {found} ({purpose})"
    yield ""
    yield from _providers()
    yield from _gpus()
    yield from _cuda()
    yield from _bundled_models()


def _providers() -> Iterator[str]:
    try:
        import onnxruntime
    except ImportError as error:
        yield f"providers        none: onnxruntime does not import ({error})"
        return
    yield f"providers        {', '.join(onnxruntime.get_available_providers())}"


def _gpus() -> Iterator[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        yield "NVIDIA GPUs      none seen (no nvidia-smi)"
        return
    query = [command, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield f"NVIDIA GPUs      unknown: nvidia-smi failed ({error})"
        return
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not lines:
        yield f"NVIDIA GPUs      none usable: nvidia-smi says {(done.stderr or done.stdout).strip()[:120]!r}"
        return
    for line in lines:
        yield f"NVIDIA GPUs      {line}"


def _cuda() -> Iterator[str]:
    """Yield whether device="cuda" works. nvidia-smi does not tell this."""
    from deblendrt.cuda.driver import kernel_compiler
    from deblendrt.cuda.driver.cuda_device import open_device
    from deblendrt.cuda.driver.device import DeviceError

    folder = kernel_compiler.cache_folder("kernels")
    tool = kernel_compiler.compiler()
    yield f"kernel compiler  {tool.version if tool else 'none: ' + kernel_compiler.NO_COMPILER}"
    yield f"kernel cache     {folder} ({len(list(folder.glob('*.cubin')))} compiled)"
    try:
        device = open_device()
    except DeviceError as error:
        yield f'device="cuda"    not usable: {error}'
        return
    free, total = device.memory()
    version, capability = (".".join(map(str, pair)) for pair in (device.driver.version, device.capability))
    yield (f'device="cuda"    ready: {device.name}, compute capability {capability}, driver for CUDA {version}, '
           f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    device.close()


def _bundled_models() -> Iterator[str]:
    from deblendrt.engine.model.bundle import BundleError, load_bundle

    folder = Path(__file__).parents[2] / "bundles"
    names = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    if not names:
        yield f"models           none in {folder}"
    for name in names:
        try:
            bundle = load_bundle(name)
        except (BundleError, OSError) as error:
            yield f"models           {name}: BROKEN, {error}"
        else:
            yield f"models           {name} {bundle.model_version} ({''.join(bundle.bands)}), {folder / name}"
