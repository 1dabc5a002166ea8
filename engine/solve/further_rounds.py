"""Further iterations of the blends that still move after the first ones.

All blends take the same number of iterations first. Then some blends go on alone, round by round: blends whose last
step promised a decrease of L, and blends whose light has outgrown its windows. The other blends cost no more time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import decoding
from deblendrt.engine.compute.problem import Problem
from deblendrt.engine.solve import constants, objective
from deblendrt.engine.units import DoubleArray


@dataclasses.dataclass(frozen=True)
class Progress:
    """The results of a round of a descent, from which the next round starts.

    Attributes
    ----------
    latent : float64 (n_source, n_latent)
    extent : int8 (n_source,)
        Windows that the sources need now, see `drawing`.
    left : float64 (n_blend,)
        Decrease of L that the last step promised.
    damping : float64 (n_blend,)
    curvature : float64 (n_source, n_latent, n_latent)
        The latest estimate of the prior's curvature.
    """

    latent: DoubleArray
    extent: NDArray[np.int8]
    left: DoubleArray
    damping: DoubleArray
    curvature: DoubleArray


def in_rounds(run: Callable[..., tuple[Problem, Progress]], problem: Problem, latent: DoubleArray, floor: DoubleArray,
              n_iteration: int) -> tuple[Problem, DoubleArray, bool]:
    """Descend with all blends, then with the blends that still move.

    Parameters
    ----------
    run : callable
        `descent.descend`, or the same on a device, without the state.
    problem, latent, floor, n_iteration
        As in `descent.solve`.

    Returns
    -------
    problem : Problem
    latent : float64 (n_source, n_latent)
    further : bool
        Whether some blends went on.
    """
    tempers = [objective.temper(i, n_iteration) for i in range(n_iteration)]
    problem, progress = run(problem, latent, floor, tempers, None, None)
    latent, extent, rows = progress.latent.copy(), problem.extent.copy(), np.arange(len(latent))
    part, damping, curvature = problem, progress.damping[problem.blend], progress.curvature.copy()
    for share in constants.FURTHER_ROUNDS if n_iteration else ():
        wider = np.maximum(part.extent, progress.extent)
        going = progress.left > constants.MOVING_DECREASE
        going[part.blend[wider > part.extent]] = True
        if not going.any():
            break
        extent[rows] = wider
        moving = np.zeros(problem.n_blend, bool)
        moving[problem.blend[rows[going[part.blend]]]] = True
        # sources of other blends keep their windows: their bits must not depend on the blends that go on
        problem = dataclasses.replace(problem, extent=extent.copy())
        part, rows = some_blends(problem, latent, moving)
        part, progress = run(part, latent[rows], floor[rows], [0.0] * max(int(share * n_iteration), 1), damping[rows],
                             curvature[rows])
        latent[rows], extent[rows] = progress.latent, part.extent
        damping[rows], curvature[rows] = progress.damping[part.blend], progress.curvature
    return dataclasses.replace(problem, extent=extent), latent, part is not problem


def some_blends(problem: Problem, latent: DoubleArray, chosen: NDArray[np.bool_]) -> tuple[Problem, NDArray[np.int64]]:
    """Make a problem of some blends; the other sources of their scenes become its background.

    Parameters
    ----------
    problem : Problem
        Without a background.
    latent : float64 (n_source, n_latent)
        Latents at which the other sources are held.
    chosen : bool (n_blend,)

    Returns
    -------
    problem : Problem
    rows : int64 (n_chosen,)
        Its sources.
    """
    rows = np.flatnonzero(chosen[problem.blend])
    scenes = np.unique(problem.scene[rows])
    before = np.concatenate([[0], np.cumsum([p.n_blend for p in problem.partition])])
    number = np.concatenate([np.zeros(0, np.int64), *[np.arange(before[s], before[s + 1]) for s in scenes]])

    def take(rows: NDArray[np.int64], **changes: Any) -> Problem:
        profile = [p for (members, _), p in zip(problem.folded.groups(len(problem.scene)), problem.profile, strict=True)
                   if np.isin(members, rows).any()]
        blend = np.searchsorted(number, problem.blend[rows])
        return dataclasses.replace(
            problem, folded=problem.folded.take(rows), data=[problem.data[s] for s in scenes],
            weight=[problem.weight[s] for s in scenes], partition=[problem.partition[s] for s in scenes],
            scene=np.searchsorted(scenes, problem.scene[rows]), blend=blend, n_blend=len(number),
            corner=problem.corner[rows], offset0=problem.offset0[rows], measured=problem.measured[rows],
            star=problem.star[rows], extent=problem.extent[rows],
            smallest=problem.smallest[rows], profile=profile, own=problem.own[rows],
            area=[problem.area[s] for s in scenes], **changes)

    others = np.flatnonzero(np.isin(problem.scene, scenes) & ~chosen[problem.blend])
    held = take(others)
    return take(rows, background=objective.render(held, decoding.decode(held, latent[others]))), rows
