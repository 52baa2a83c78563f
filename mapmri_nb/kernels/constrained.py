"""Positivity for a block of voxels: each voxel's normal equations to the grid QP (`qp`) or to the
sum of squares (`sdp`), and the answers back into the block.

Both problems are posed for data divided by S0, so that B'c is E(0) = 1 where it is fixed. A block
`blocks.Block` of V voxels holds packed normal matrices G (n (n + 1) / 2, V), right-hand sides rhs
(n, V), coefficients x (n, V) and S0 (1, V); x has E(0) = 1, and S0 takes the rest.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from . import status
from ._jit import kernel, stage
from ._types import Array, Unsigned
from .cones import Tables, Work
from .factors import whiten, workspace
from .lanes import WIDTH, rows
from .qp import SOLVED, GridProblem, solve_whitened
from .sdp import CERTIFIED, UNANSWERED, Answer, solve

# status bits of an answer of `sdp`, by its verdict: CERTIFIED, BLENDED, INEXACT, UNANSWERED
FLAGS = (0, status.SHIFTED, status.NOT_CONVERGED, status.NOT_CONVERGED)


@kernel()
def skipped(block: Any, l: int) -> bool:
    """Whether voxel l needs no answer: it has no fit, or is settled and keeps what it has."""
    if block.noise.settled[l] != 0:
        block.S0[0, l] = block.noise.held[0, l]
        return True
    return (block.status[l] & status.NO_FIT) != 0


# ---- the grid


@kernel()
def unpack(place: Unsigned, G: Array, rhs: Array, S0: float, l: int, H: Array, g: Array) -> None:
    """Normal equations H (n, n), g (n,) of voxel l in DIPY's order, for data divided by S0."""
    for i in range(g.size):
        g[place[i]] = rhs[i, l] / S0
        for j in range(i + 1):
            value = G[i * (i + 1) // 2 + j, l]
            H[place[i], place[j]] = value
            H[place[j], place[i]] = value


@kernel()
def pack(place: Unsigned, c: Array, B: Array, l: int, block: Any) -> None:
    """Coefficients of voxel l from DIPY's order; E(0) is divided out and goes to S0."""
    origin = 0.0
    for i in range(c.size):
        origin += B[i] * c[i]
    block.S0[0, l] *= origin
    if (not origin > 0.0) and math.isfinite(origin):
        block.status[l] |= status.NO_ORIGIN
    for i in range(c.size):
        block.x[i, l] = c[place[i]] / origin


@kernel(allocates=True)
def on_grid(problem: GridProblem, block: Any, start: int, stop: int) -> None:
    """The grid QP of voxels start to stop; NOT_CONVERGED where the solver's own check fails."""
    n, size = problem.B.size, block.rhs.shape[0] * (block.rhs.shape[0] + 1) // 2
    H, g = np.empty((n, n)), np.empty(n)
    c, info = np.empty(n), np.empty(3)
    work = workspace(n, problem.grid.values.shape[1])
    for l0 in range(start // WIDTH * WIDTH, stop, WIDTH):
        G, packed = rows(block.G, l0), rows(work.packed, 0)
        for r in range(size):
            packed[r] = G[r]
        whiten(n, work)
        for l in range(max(start, l0), min(stop, l0 + WIDTH)):
            if skipped(block, l):
                continue
            unpack(problem.grid.order, block.G, block.rhs, block.S0[0, l], l, H, g)
            answer = solve_whitened(H, g, problem, l - l0, work, c, info)
            block.kkt[0, l] = info[0]
            block.iterations[0, l] = info[1]
            if answer == SOLVED:
                pack(problem.grid.order, c, problem.B, l, block)
            else:
                block.status[l] |= status.NOT_CONVERGED


@stage(allocates=True)
def solve_grid(problem: GridProblem, plan: Any, block: Any, count: int) -> None:
    """The grid QP of the first `count` voxels: a stage of `blocks.run`."""
    on_grid(problem, block, 0, count)


# ---- sums of squares


class GlobalProblem(NamedTuple):
    """What `solve_global` needs besides the block."""

    tables: Tables
    fixed: int  # 1: E(0) = S0; 0: E(0) is free
    work: Work
    max_iter: int
    tol: float


@kernel()
def _best_scale(G: Array, g: Array, c: Array, l: int) -> float:
    """E(0) of voxel l: on the ray through the optimum of a cone the objective has no slope."""
    slope = curvature = 0.0
    for i in range(g.shape[0]):
        slope += g[i, l] * c[i, l]
        for j in range(i):
            curvature += 2.0 * c[i, l] * G[i * (i + 1) // 2 + j, l] * c[j, l]
        curvature += c[i, l] * G[i * (i + 3) // 2, l] * c[i, l]
    return slope / curvature


@kernel()
def _gaussian(fixed: int, block: Any, l: int) -> None:
    """The answer of order 0: the Gaussian is all there is."""
    block.x[0, l], block.margin[0, l] = 1.0, 1.0
    if fixed == 0:
        block.S0[0, l] = block.rhs[0, l] / block.G[0, l]
    if not block.S0[0, l] > 0.0:
        block.status[l] |= status.NO_ORIGIN


@stage(allocates=True)
def solve_global(problem: GlobalProblem, plan: Any, block: Any, count: int) -> None:
    """The sums of squares of the first `count` voxels, with margins: a stage of `blocks.run`."""
    n, V = block.rhs.shape
    g, asked = np.empty((n, V)), np.empty(V, np.int64)
    for l in range(V):
        free = l < count and not skipped(block, l)
        if free and n == 1:
            _gaussian(problem.fixed, block, l)
        asked[l] = CERTIFIED if free and n > 1 else UNANSWERED
        for i in range(n):  # for data divided by S0
            g[i, l] = block.rhs[i, l] / block.S0[0, l] if free else 0.0
    if n == 1:
        return
    answer, p = Answer(np.empty((n, V)), np.empty((4, V)), asked.copy()), problem
    solve(block.G, g, p.tables, p.fixed, p.max_iter, p.tol, p.work, answer)
    for l in range(count):
        if asked[l] == CERTIFIED:
            if problem.fixed == 0:
                block.S0[0, l] *= _best_scale(block.G, g, answer.c, l)
            for i in range(n):
                block.x[i, l] = answer.c[i, l]
            block.status[l] |= FLAGS[answer.status[l]]
            block.kkt[0, l], block.iterations[0, l] = answer.info[0, l], answer.info[1, l]
            block.margin[0, l] = answer.info[2, l]
