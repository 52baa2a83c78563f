"""A narrower basis where the tensor's scale and positivity together contradict the data.

A nonnegative propagator of finite order in a basis that is too wide cannot follow a signal with a
slow tail, and predicts left-out samples worse than a free one. The constrained fit is kept where
its mean squared residual is not above the variance that the unconstrained fit of the same voxel
finds, RSS / (n - tr S); elsewhere the scale is reduced step by step until it is, and where it never
is the scale of the smallest residual is taken. Noise alone hardly ever reaches that bound, so that
the scale does not depend on it.
"""

import math
from typing import Any, NamedTuple

from . import lanes
from ._jit import CONTRACT, stage
from ._types import Array
from .lanes import WIDTH, every, pick, rows
from .status import CONTRADICTED, NO_FIT, STRAINED

STEPS, STEP = 4, 0.1  # the basis' scale is 1, 0.9, .. 0.6 of the tensor's
SOLVED = 1e-8  # of y'Wy: what the solvers' tolerance may leave is no contradiction


class Work(NamedTuple):
    """State of the choice for one block."""

    factor: Array  # (1, V) of the tensor's scale
    limit: Array  # (1, V) residual sum of squares up to which positivity is believed
    step: Array  # (1, V) 0 to STEPS, of which factor is 1 - STEP times; -1: the choice is made
    least: Array  # (1, V) smallest residual sum of squares so far
    best: Array  # (1, V) its step
    square: Array  # (1, V) that of the fit
    gaussian: Array  # (n, V) the tensor's Gaussian in the basis


def workspace(n: int, V: int, used: bool) -> Work:
    """For a block of V voxels with n coefficients; `used`: the scale is chosen."""
    return Work(*(lanes.empty(size, V) for size in (1, 1, 1, 1, 1, 1, n * used)))


@stage(CONTRACT)
def gaussian(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """e of the Gaussian of the tensor in a basis of f times its scale: (2 f^2 / (1 + f^2))^(3/2)
    B_n ((1 - f^2) / (1 + f^2))^(N/2), its projection; e_0 at f = 1.
    """
    origin, index = plan.moments.origin, plan.moments.index
    for l in range(block.status.size):
        square = block.scale.factor[0, l] ** 2
        first, ratio = (2.0 * square / (1.0 + square)) ** 1.5, (1.0 - square) / (1.0 + square)
        for i in range(origin.size):
            half = (index[i, 0] + index[i, 1] + index[i, 2]) // 2
            block.scale.gaussian[i, l] = first * origin[i] * ratio**half


@stage(CONTRACT)
def unconstrained(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """c without constraints into block.x, by the inverse factor of `count_parameters`."""
    n = plan.moments.origin.size
    for l in range(0, block.status.size, WIDTH):
        a, b = rows(block.noise.factor, l), rows(block.rhs, l)
        c = rows(block.x, l)
        for i in range(n):
            c[i] = every(0.0)
        for i in range(n):
            r, total = i * (i + 1) // 2, every(0.0)
            for j in range(i + 1):
                total += a[r + j] * b[j]
            for j in range(i + 1):
                c[j] += a[r + j] * total


@stage(CONTRACT)
def squares(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """Residual sums of squares of the fitted signal, S0 times moments.gy."""
    for l in range(0, block.status.size, WIDTH):
        y, w = rows(block.y, l), rows(block.w, l)
        e = rows(block.moments.gy, l)
        S0, total = rows(block.S0, l)[0], every(0.0)
        for k in range(block.y.shape[0]):
            miss = y[k] - S0 * e[k]
            total += pick(w[k], 0.0, w[k] * miss * miss, 0.0)
        rows(block.scale.square, l)[0] = total


@stage()
def limit(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """The residual up to which positivity is believed: n RSS / (n - tr S) without constraints."""
    for l in range(block.status.size):
        y, w = block.y, block.w
        e, total = block.moments.gy, 0.0
        power = 0.0
        for k in range(y.shape[0]):
            if w[k, l] > 0.0:
                total += w[k, l] * (y[k, l] - e[k, l]) ** 2
                power += w[k, l] * y[k, l] ** 2
        free = block.valid[0, l] - block.noise.trace[0, l]
        total = total * block.valid[0, l] / free if free >= 1.0 else math.inf
        block.scale.limit[0, l] = total + SOLVED * power
        block.scale.step[0, l], block.scale.least[0, l] = 0.0, math.inf


@stage()
def judge(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """Mark voxels whose positivity is not believed CONTRADICTED; none is fitted again here."""
    for l in range(block.status.size):
        contradicts = block.scale.square[0, l] > block.scale.limit[0, l]
        if contradicts and block.status[l] & (NO_FIT | STRAINED) == 0:
            block.status[l] |= CONTRADICTED
    block.noise.moving[0] = 0


@stage()
def shrink(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """One step of the choice; block.noise.moving[0] counts the voxels that need another fit."""
    s, V = block.scale, block.status.size
    block.noise.moving[0] = 0
    for l in range(V):
        block.noise.held[0, l] = block.S0[0, l]
        if block.noise.settled[l] != 0:
            continue
        believed = not s.square[0, l] > s.limit[0, l]
        if (
            i0 + l >= stop
            or block.status[l] & (NO_FIT | STRAINED) != 0
            or s.step[0, l] < 0.0
            or believed
        ):
            block.noise.settled[l] = 1
            continue
        if s.square[0, l] < s.least[0, l]:
            s.least[0, l], s.best[0, l] = s.square[0, l], s.step[0, l]
        if s.step[0, l] < STEPS:
            s.step[0, l] += 1.0
            s.factor[0, l] = 1.0 - STEP * s.step[0, l]
        elif s.best[0, l] < STEPS:
            s.factor[0, l], s.step[0, l] = 1.0 - STEP * s.best[0, l], -1.0
        else:
            block.noise.settled[l] = 1
            continue
        block.noise.moving[0] += 1
    if block.noise.moving[0] == 0:
        for l in range(V):
            block.noise.settled[l] = 0
