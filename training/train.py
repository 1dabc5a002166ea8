"""`deblendrt-train`: basis -> maps -> vae -> flow -> encoder.

Every stage writes its results into the checkpoint folder, and a finished stage is not run again. Every stage has random
numbers of its own, seeded by the configuration's seed and the stage's name: a stage that is repeated alone gives the
same result.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from deblendrt.engine.compute.folding import fold
from deblendrt.engine.model.manifest import PERCENTILES
from deblendrt.training import basis, checkpoint, config
from deblendrt.training.networks import vae
from deblendrt.training.networks.deblending_encoder import train_encoder
from deblendrt.training.networks.flow import train_flow
from deblendrt.training.networks.training_set import TrainingSet, project_galaxies
from deblendrt.training.simulation import population, survey

log = logging.getLogger("deblendrt.train")

N_METRIC_PSF = 12  # PSFs under which the VAE's likelihood is computed, a random one in each step


def seed(settings: config.Config, stage: str) -> int:
    """Return the seed of a stage."""
    return (settings.seed * 1_000_003 + zlib.crc32(stage.encode())) % 2**63


def stage_basis(settings: config.Config, out: Path, n_process: int) -> None:
    """Principal components and shift generators -> basis.npz."""
    built = basis.build_basis(settings, np.random.default_rng(seed(settings, "basis")))
    log.info("basis: %.6f of the light's squares explained", built.explained[-1])
    checkpoint.write_atomically(out / "basis.npz",
                                lambda f: np.savez(f, phi=built.phi, shift=built.shift, explained=built.explained))


def stage_maps(settings: config.Config, out: Path, n_process: int) -> None:
    """The training set as coefficients -> maps.npz."""
    phi = _basis(out)[0]
    galaxies = population.draw(settings.population, settings.survey, settings.population.n_galaxy,
                               np.random.default_rng(seed(settings, "population")))
    data = project_galaxies(galaxies, phi, settings, n_process)
    checkpoint.write_atomically(out / "maps.npz", lambda f: np.savez(f, maps=data.maps.numpy(), flux=data.flux.numpy()))


def stage_vae(settings: config.Config, out: Path, n_process: int) -> None:
    """Decoder and galaxy encoder -> decoder.pt, galaxy_encoder.pt, vae_history.json."""
    phi, shift = _basis(out)
    generator = _torch_generator(settings, "vae")
    decoder, galaxy_encoder, _, _ = checkpoint.new_modules(settings)
    data = load_training_set(out)
    vae.initialise(decoder, galaxy_encoder, data, phi, shift)
    grams = metric_grams(settings, phi, np.random.default_rng(seed(settings, "metric")))
    part = out / "vae.part.pt"
    resume = torch.load(part, weights_only=True) if part.exists() else None
    spec = settings.vae
    history = vae.train_vae(
        decoder, galaxy_encoder, data, phi=phi, grams=grams, sky_sigma=sky_sigma(settings),
        batch_size=spec.batch_size, n_step=spec.n_step, learning_rate=spec.learning_rate,
        model_error=spec.model_error, generator=generator, resume=resume,
        on_checkpoint=lambda state: checkpoint.write_atomically(part, lambda f: torch.save(state, f)))
    (out / "vae_history.json").write_text(json.dumps(history))
    checkpoint.save_state(galaxy_encoder, out / "galaxy_encoder.pt")
    checkpoint.save_state(decoder, out / "decoder.pt")
    part.unlink(missing_ok=True)


def stage_flow(settings: config.Config, out: Path, n_process: int) -> None:
    """Shape prior -> prior.pt, and its summary for the engine -> prior.json."""
    _, galaxy_encoder, prior, _ = checkpoint.new_modules(settings)
    galaxy_encoder.load_state_dict(torch.load(out / "galaxy_encoder.pt", weights_only=True))
    data = load_training_set(out)
    generator = _torch_generator(settings, "flow")
    mean, sigma = vae.posterior(galaxy_encoder, data, sky_sigma(settings))
    log_flux = data.flux.sum(1).log()
    spec = settings.flow
    train_flow(prior, mean, sigma, log_flux, batch_size=spec.batch_size, n_step=spec.n_step,
               learning_rate=spec.learning_rate, generator=generator)
    summary = summarise_prior(settings, prior, mean, sigma, log_flux, generator)
    (out / "prior.json").write_text(json.dumps(summary))
    checkpoint.save_state(prior, out / "prior.pt")


def summarise_prior(settings: config.Config, prior: torch.nn.Module, mean: torch.Tensor, sigma: torch.Tensor,
                    log_flux: torch.Tensor, generator: torch.Generator, n: int = 20000) -> dict[str, object]:
    """Start shape, curvature, colours and percentiles of log p over the population, for the bundle."""
    rows = torch.randperm(len(mean), generator=generator)[:n]
    shape = mean[rows] + sigma[rows] * torch.randn(len(rows), mean.shape[1], generator=generator)
    shape.requires_grad_(True)
    latent = torch.cat([log_flux[rows], torch.zeros(len(rows), 2), shape], 1)
    log_prob = prior(latent)
    (gradient,) = torch.autograd.grad(log_prob.sum(), shape)
    color = log_flux - log_flux[:, settings.survey.reference_index, None]
    return {"start_shape": mean.mean(0).tolist(),
            "prior_curvature": (gradient.mT @ gradient / len(rows)).tolist(),
            "mean_color": color.mean(0).tolist(), "color_sigma": color.std(0).tolist(),
            "log_prob_percentiles": {p: float(np.percentile(log_prob.detach().numpy(), float(p))) for p in PERCENTILES}}


def stage_encoder(settings: config.Config, out: Path, n_process: int) -> None:
    """Deblending encoder -> encoder.pt."""
    torch.manual_seed(seed(settings, "encoder"))
    _, galaxy_encoder, _, encoder = checkpoint.new_modules(settings)
    galaxy_encoder.load_state_dict(torch.load(out / "galaxy_encoder.pt", weights_only=True))
    phi, shift = _basis(out)
    train_encoder(encoder, galaxy_encoder, load_training_set(out), settings, phi, shift,
                  np.random.default_rng(seed(settings, "blends")), _torch_generator(settings, "encoder"))
    checkpoint.save_state(encoder, out / "encoder.pt")


def _basis(out: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(out / "basis.npz", allow_pickle=False) as stored:
        return stored["phi"], stored["shift"]


def load_training_set(out: Path) -> TrainingSet:
    """Return the training set of a checkpoint."""
    with np.load(out / "maps.npz", allow_pickle=False) as stored:
        return TrainingSet(torch.from_numpy(stored["maps"]), torch.from_numpy(stored["flux"]))


def sky_sigma(settings: config.Config) -> torch.Tensor:
    """Nominal sky noise per pixel, float32 (n_band,) [nJy]."""
    return torch.tensor(survey.depth(settings.survey).sky_sigma, dtype=torch.float32)


def metric_grams(settings: config.Config, phi: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Gram matrices of the basis folded with varied PSFs, float32 (n_psf, n_band, n_basis, n_basis)."""
    depth = survey.depth(settings.survey)
    psfs = [survey.nominal_psf(depth)] + [survey.random_psf(depth, rng) for _ in range(N_METRIC_PSF - 1)]
    sigma = settings.basis.reference_psf_sigma
    return torch.tensor(np.array([fold(phi, p.image, sigma).gram for p in psfs]), dtype=torch.float32)


def _torch_generator(settings: config.Config, stage: str) -> torch.Generator:
    torch.manual_seed(seed(settings, stage))  # the networks' initial weights
    return torch.Generator().manual_seed(seed(settings, stage) % 2**31)


# The stages in their order. Each has a function, and a file whose presence tells that the stage is finished.
TRAINING_STAGES: dict[str, tuple[Callable[[config.Config, Path, int], None], str]] = {
    "basis": (stage_basis, "basis.npz"),
    "maps": (stage_maps, "maps.npz"),
    "vae": (stage_vae, "decoder.pt"),
    "flow": (stage_flow, "prior.pt"),
    "encoder": (stage_encoder, "encoder.pt"),
}


def train(settings: config.Config, out: Path, *, stages: Sequence[str] = tuple(TRAINING_STAGES), n_process: int = 1,
          n_thread: int = 1) -> None:
    """Run the stages that are not done yet.

    Parameters
    ----------
    settings : config.Config
    out : Path
        Checkpoint folder, made if absent. Finished stages in it are not run again.
    stages : sequence of str
    n_process : int
        Processes that draw galaxies. The result does not depend on their number.
    n_thread : int
        Threads of PyTorch. The last bits of the result depend on their number.

    Raises
    ------
    ValueError
        The folder holds a checkpoint of another configuration.
    """
    torch.set_num_threads(n_thread)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    text = json.dumps(settings.to_dict(), indent=1)
    if path.exists() and checkpoint.load_config(out) != settings:
        raise ValueError(f"{out} holds a checkpoint of another configuration; choose another --out or delete it")
    path.write_text(text)
    for stage in stages:
        run, product = TRAINING_STAGES[stage]
        if (out / product).exists():
            log.info("%s: done before, %s", stage, product)
            continue
        start = time.perf_counter()
        run(settings, out, n_process)
        log.info("%s: %.0f s", stage, time.perf_counter() - start)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="deblendrt-train", description=__doc__)
    parser.add_argument("--config", required=True, help="a TOML file, or the name of a shipped one: lsst.toml")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder; an unfinished one is resumed")
    parser.add_argument("--stages", default=",".join(TRAINING_STAGES),
                        help="comma-separated, of: " + ", ".join(TRAINING_STAGES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1,
                        help="processes that draw galaxies (default: one a core)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--no-diagnostics", action="store_true", help="draw no diagnostic figures at the end")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    stages = tuple(args.stages.split(","))
    if unknown := sorted(set(stages) - set(TRAINING_STAGES)):
        parser.error(f"--stages: {unknown} not among {list(TRAINING_STAGES)}")
    try:
        train(config.load(args.config), args.out, stages=stages, n_process=args.processes, n_thread=args.threads)
    except (ValueError, FileNotFoundError) as error:
        print(f"deblendrt-train: {error}", file=sys.stderr)
        return 1
    if not args.no_diagnostics and all((args.out / product).exists() for _, product in TRAINING_STAGES.values()):
        from deblendrt.training.figures import diagnostics

        diagnostics.write_all(checkpoint.load_model(args.out), args.out / "diagnostics")
    return 0


if __name__ == "__main__":
    sys.exit(main())
