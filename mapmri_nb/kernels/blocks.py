"""A fit, block by block: V voxels pass through a list of stages, from their samples to their
results.

    read -> fit_tensor -> tensor_scales -> fixed_moments -> hermite_moments -> equations
         -> sample_at_origin -> regularise -> [solve] -> synthesise -> signals -> residuals -> write

A fit minimises

    sum_k w_k (y_k - (M c)_k)^2 + k (S0_b - B'c)^2 + weight (c - S0_b e_0)' L (c - S0_b e_0)

with the basis M at the samples, the sample weights w, the sample of S0_b at q = 0 (k is
`block.row`; S0="fit" alone) and the Laplacian L of the deviation from the Gaussian S0_b e_0 (of the
signal: c'Lc). So G = M'WM + k BB' + weight L and rhs = M'Wy + k S0_b B + weight S0_b L e_0;
comments write M'M and M'y for M'WM and M'Wy.

The stages are compiled functions (`stages`) of the named tuples in `records`. `run` calls them
through their addresses, without the GIL and without Python between them. A mode is a list of stages
(`stages_of`) and compiles only these: given scales, gradient non-linearity, moments in the voxel's
own frame and GCV are stages of their own. Where all voxels share scale and frame, c = G^-1 rhs is
one constant matrix times the samples and S0_b (`solve_by_map`). No result depends on V, `start` or
`stop`.

The nominal table is the gradient table as given. Where gradients are not linear, a voxel's field F
makes them (I + F) times it (`grad_dev`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from . import frames, noise, rescale, rotation, stages
from . import origin as origin_rule
from ._jit import addresses, call, kernel, take
from ._memory import INTEGER, Memory
from ._types import IntArray, Unsigned
from .records import SCALARS, Block, Data, LinearMap, Out, Plan, cut, new_block, new_rows
from .status import CONTRADICTED, STRAINED

__all__ = ["SCALARS", "Block", "Data", "LinearMap", "Out", "Plan", "cut", "new_block", "new_rows"]
VOXELS = 16  # of a block, `lanes.GRAIN`: its scratch should stay in the second-level cache


class Stages(NamedTuple):
    """Addresses of compiled stages; without the compiler, the functions themselves."""

    before: Unsigned  # up to the normal equations
    again: Unsigned  # the same of corrected samples
    later: Unsigned  # the right-hand side of corrected samples
    shrink: Unsigned  # the choice of the scale; empty: none
    correct: Unsigned  # the correction of the noise; empty: none
    solve: Any  # the solver, and after `later` its last one; functions where Python answers
    after: Unsigned  # from coefficients to results


class Job(NamedTuple):
    """What `run` needs, for one thread. The stages and places are addresses: the arrays live as
    long as the `engine.Work` that made it.
    """

    stages: Stages
    places: Unsigned  # (5,) of the problem, the plan, the data, the block and the output
    step: IntArray  # (1,) of the correction of the noise
    moving: IntArray  # (1,) voxels that it still moves
    next: (
        IntArray  # (1,) first row that none of the jobs which share it has taken; (0,): not shared
    )
    voxels: int  # of a block


@kernel()
def run_stages(stages: Unsigned, places: Unsigned, i0: int, stop: int) -> None:
    """Some stages of the block of voxels that begins at i0."""
    for k in range(len(stages)):
        call(stages[k], (places[1], places[2], places[3], places[4], i0, stop))


@kernel()
def run(job: Job, start: int, stop: int) -> None:
    """Fit rows start to stop of the data into the output.

    Other compiled code may call it, from threads of its own or in a `prange`, each with a job of
    its own (`Engine.work`). It gives the bits of `MapmriModel.fit`, called by the same version on
    the same kind of processor: a compiler that makes it part of other code changes nothing, since
    the stages are called by address. Elsewhere results agree to 1e-12.
    """
    places, todo = job.places, job.stages
    shared = job.next.size > 0
    i0 = take(job.next, job.voxels) if shared else start
    while i0 < stop:
        count = min(job.voxels, stop - i0)
        run_stages(todo.before, places, i0, stop)
        call(todo.solve[0], (places[0], places[1], places[3], count))
        while len(todo.shrink) > 0:
            run_stages(todo.shrink, places, i0, stop)
            if job.moving[0] == 0:
                break
            run_stages(todo.again, places, i0, stop)
            call(todo.solve[0], (places[0], places[1], places[3], count))
        while len(todo.correct) > 0:
            run_stages(todo.correct, places, i0, stop)
            if job.moving[0] == 0:
                break
            scales = job.step[0] == noise.STEP_OF_SCALES + 1
            run_stages(todo.again if scales else todo.later, places, i0, stop)
            solve = todo.solve[0 if scales else len(todo.solve) - 1]
            call(solve, (places[0], places[1], places[3], count))
        run_stages(todo.after, places, i0, stop)
        i0 = take(job.next, job.voxels) if shared else i0 + job.voxels


def stages_of(plan: Plan, given: bool, field: bool, rare: int) -> tuple[list[Any], ...]:
    """The stages before, again, later, of the scale, of the correction, and after the solver:
    scales given or from the tensor, gradients non-linear or linear. `rare`: bits of a status. With
    STRAINED, voxels that need it get moments in their own frame; with CONTRADICTED, a narrower
    basis. Without, they are left marked for a second pass.
    """

    def where(used: bool, *some: Any) -> list[Any]:
        return list(some) if used else []

    rules, rician = plan.rules, plan.rules.noise == noise.RICIAN
    scales: list[Any] = [stages.given_scales]
    if not given:
        scales = [stages.fit_tensor, *where(field, frames.undo_field), stages.tensor_scales]
    scales += [*where(field, frames.bend), stages.mean_at_origin]
    later = [
        stages.fixed_moments,
        *where(field, stages.skew),
        stages.hermite_moments,
        *where(rare & STRAINED != 0, stages.own_frame),
    ]
    later += [stages.equations, *where(rules.row > 0.0, origin_rule.sample_at_origin)]
    later += where(rules.rescale, rescale.gaussian)
    later += [*where(plan.laplacian_weights.size != 1, stages.choose_weight), stages.regularise]
    attract = origin_rule.attract_gaussian if rules.rescale else origin_rule.attract
    later += where(rules.deviation, attract)
    fitted = [stages.synthesise, *where(field, rotation.unskew), noise.signals]
    first = [
        stages.read,
        *where(rules.noise == noise.DENOISED, noise.invert),
        *where(rician, noise.keep),
    ]
    if plan.linear.basis.size > 0:
        after = [stages.signals_by_map, stages.residuals, stages.write]
        return [*first, *scales], [], [], [], [], after
    choice = rules.rescale and not given
    before = [*first, *scales, *later, *where(rician or choice, noise.count_parameters)]
    before += where(choice, rescale.unconstrained, *fitted, rescale.limit)
    step = rescale.shrink if rare & CONTRADICTED else rescale.judge
    shrink = where(choice, *fitted, rescale.squares, step)
    after = [*fitted, *where(rician, noise.expected_signals), stages.residuals, stages.write]
    correct = where(rician, *fitted, noise.correct)
    again = where(rician, noise.right_side, *where(rules.deviation, attract))
    return before, [*scales, *later], again, shrink, correct, after


def compiled(solvers: list[Callable[..., None]], rare: int, memory: tuple[Memory, ...]) -> Stages:
    """The stages of a mode, compiled for a problem, a plan, data, a block and output. `solvers` :
    the kernels that take (problem, plan, block, count), of which the last solves after `later`.
    `rare`: as of `stages_of`.
    """
    problem, plan, data, block, out = memory
    lists = stages_of(plan.value, len(data.value.mu) > 0, len(data.value.field) > 0, rare)
    rest = (plan.kind, data.kind, block.kind, out.kind, INTEGER, INTEGER)
    *first, after = (addresses(one, *rest) for one in lists)
    if plan.value.linear.basis.size > 0:
        solvers = [stages.solve_by_map]
    solve = addresses(solvers, problem.kind, plan.kind, block.kind, INTEGER)
    return Stages(*first, solve, after)
