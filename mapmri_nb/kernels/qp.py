"""Dual active-set solver of the positivity QP of one voxel: min c'Hc/2 - g'c subject to K c >= 0,
and to B'c = 1 where `fixed` is 1 (0: E(0) is free).

The method of Goldfarb and Idnani (Math. Program. 27:1, 1983): from the unconstrained minimiser, the
most violated row enters and rows whose multiplier turns negative leave. Every iterate is optimal
for the rows it holds, so the objective only grows and no feasible start is needed. B, if fixed, is
the first row and never leaves. The grid is symmetric under a change of sign of any axis, so K is
kept for one octant: four sums over the parity classes price four rows at once.
"""

import math
from typing import NamedTuple

import numpy as np

from ._jit import CONTRACT, kernel
from ._types import Array, IntArray
from .factors import RIDGE, QpWork, add, back, combine, drop, load, times, whiten, workspace
from .lanes import WIDTH, every, pick, rows, total

SOLVED, CAPPED, NO_STEP, NOT_POSITIVE, INACCURATE = range(5)
KKT_TOLERANCE = 1e-8  # largest relative residual of an answer (typical: 1e-14)
VIOLATION = 1e-13  # of the peak: rows above -VIOLATION are met
# KKT residual above which rounding errors are worked off before the answer, at most SHEDS times
DRIFT = 1e-11
SHEDS = 20
NONE = np.int64(0)  # for calls: Numba would compile a function once more for a literal 0
# a row whose free part is below this share of its squared norm depends on the active rows
PARALLEL = 1e-10


class GridRows(NamedTuple):
    """Rows of K for an octant: row f m + j is point j with axis f - 1 mirrored (f > 0)."""

    # (n, m) functions grouped by parity class down, points across; columns have norm 1, and m is a
    # multiple of WIDTH
    values: Array
    order: IntArray  # (n,) position in DIPY's order of each function
    bounds: IntArray  # (5,) bounds of the parity classes 000, 011, 101, 110


class GridProblem(NamedTuple):
    """The constraints: K c >= 0, and B'c = 1 if `fixed` is 1."""

    B: Array  # (n,) E(0) of the basis functions, DIPY's order
    fixed: int  # 1: E(0) = S0; 0: E(0) is free
    grid: GridRows
    max_iter: int  # most added and dropped rows together


@kernel(fastmath=CONTRACT)
def _worst(
    grid: GridRows, c: Array, work: QpWork, q: int, bound: float
) -> tuple[int, float, float]:
    """The most violated row of K c (-1: none, or an active one), its value, the peak of K c; of the
    points by WIDTH of which one was below `bound` when they were last looked at (inf: of all).
    """
    values, m = grid.values, grid.values.shape[1]
    x, sums = work.x, work.sums
    for a in range(c.size):
        x[a] = c[grid.order[a]]
    lowest, place = every(0.0), every(-1.0)
    highest = every(0.0)
    for l in range(0, m, WIDTH):
        K, out = rows(values, l), rows(sums, l)
        low = rows(work.low, l)
        e = low[0]
        if bound < math.inf and total(pick(bound, e, every(1.0), every(0.0))) == 0.0:
            continue
        for k in range(4):
            a, last = grid.bounds[k], grid.bounds[k + 1]
            e = f = every(0.0)
            g = h = every(0.0)
            while a + 4 <= last:
                e += x[a] * K[a]
                f += x[a + 1] * K[a + 1]
                g += x[a + 2] * K[a + 2]
                h += x[a + 3] * K[a + 3]
                a += 4
            for b in range(a, last):
                e += x[b] * K[b]
            out[k] = (e + f) + (g + h)
        s, t = out[0] + out[1], out[0] - out[1]
        v, w = out[2] + out[3], out[2] - out[3]
        v, w = pick(v, 0.0, v, -v), pick(w, 0.0, w, -w)
        e, f = s + v, t + w
        g, h = s - v, t - w
        e, g = pick(e, f, e, f), pick(g, h, h, g)
        low[0] = g
        highest = pick(e, highest, e, highest)
        place = pick(lowest, g, every(l), place)
        lowest = pick(lowest, g, g, lowest)
    found = rows(work.extremes, 0)
    found[0], found[1] = lowest, place
    found[2] = highest
    worst, p = 0.0, -1
    peak = 0.0
    for l in range(WIDTH):
        low, j = work.extremes[0, l], int(work.extremes[1, l]) + l
        peak = max(peak, work.extremes[2, l])
        if low < worst or (low < 0.0 and low == worst and j < p):
            worst, p = low, j
    if p >= 0:
        even, odd = sums[0, p] + sums[1, p], sums[0, p] - sums[1, p]
        v, w = sums[2, p] + sums[3, p], sums[2, p] - sums[3, p]
        if even - abs(v) <= odd - abs(w):
            p += m if v > 0.0 else 0
        else:
            p += m * (3 if w > 0.0 else 2)
    for j in range(q):
        if work.active[j] == p:
            p = -1
    return p, worst, peak


@kernel()
def _row(grid: GridRows, p: int, out: Array) -> None:
    """Row p of K in DIPY's order."""
    flip, j = p // grid.values.shape[1], p % grid.values.shape[1]
    for k in range(4):
        sign = -1.0 if flip > 0 and k > 0 and k != flip else 1.0
        for a in range(grid.bounds[k], grid.bounds[k + 1]):
            out[grid.order[a]] = sign * grid.values[a, j]


@kernel()
def _judge(
    H: Array, g: Array, problem: GridProblem, ridge: float, q: int, work: QpWork, c: Array
) -> float:
    """Relative KKT residual of c, violations left out: stationarity in the norm of H^-1, the active
    rows, signs of u.

    Where it is above DRIFT, c and u take a Newton step on the active rows with the factors at hand:
    for residuals w of stationarity and r of the rows, t = R^-T r and d = J w, by which u gains
    R^-1 (d[:q] - t) and c loses J'(t, d[q:]).
    """
    fixed = problem.fixed
    d, z = work.d, work.z
    r, row = work.r, work.row
    w, u = work.w, work.u
    combine(H, NONE, c, w)
    most, least = 0.0, 0.0
    drift, size = 0.0, 0.0
    for k in range(c.size):
        w[k] += ridge * c[k] - g[k]
        row[k] = problem.B[k]
    for j in range(q):
        if j >= fixed:
            _row(problem.grid, work.active[j], row)
            most, least = max(most, u[j]), min(least, u[j])
        r[j] = 0.0 if j >= fixed else -1.0
        for k in range(c.size):
            r[j] += row[k] * c[k]
            w[k] -= u[j] * row[k]
    residual = (abs(r[0]) if fixed > 0 else 0.0) - (least / most if most > 0.0 else 0.0)
    times(work, g, z)
    times(work, w, d)
    for k in range(c.size):
        drift += d[k] * d[k]
        size += z[k] * z[k]
    residual += math.sqrt(drift / size)
    if residual > DRIFT:
        for i in range(q):
            for k in range(i):
                r[i] -= work.R[k, i] * r[k]
            r[i] /= work.R[i, i]
            w[i], d[i] = d[i] - r[i], r[i]
        back(work.R, q, w, z)
        for i in range(q):
            u[i] += z[i]
        combine(work.J, NONE, d, z)
        for k in range(c.size):
            c[k] -= z[k]
    return residual


@kernel()
def _pursue(
    H: Array, g: Array, problem: GridProblem, ridge: float, q: int, work: QpWork, c: Array,
    info: Array,
) -> int:  # fmt: skip
    """The method from c, the minimiser on the q rows held, with multipliers u >= 0 (q = 0: none,
    not even B).

    p : the row that enters (-1: B), `bound` its right-hand side (1 for B, else 0), `mine` its
    multiplier so far. free : squared length of the direction z. partial : the step at which the
    multiplier of a held row is 0. full : the step that meets row p.
    """
    n, u = c.size, work.u
    fixed, grid = problem.fixed, problem.grid
    d, z = work.d, work.z
    r, row = work.r, work.row
    for k in range(n):
        row[k] = problem.B[k]
    p, sheds = -1, 0
    worst = peak = 0.0
    while True:
        if q >= fixed:
            p = -1
            if worst < 0.0:  # where it was low before: any violated row may enter
                p, worst, _ = _worst(grid, c, work, q, 0.1 * worst)
            if p < 0 or worst > -VIOLATION * peak:
                p, worst, peak = _worst(grid, c, work, q, math.inf)
            if p < 0 or worst > -VIOLATION * peak:
                # no row is violated: judge, and shed the drift of an ill-conditioned H
                residual = _judge(H, g, problem, ridge, q, work, c)
                info[0], info[2] = residual - worst / peak, q - fixed
                if not info[0] > DRIFT or sheds == SHEDS:
                    return SOLVED if info[0] <= KKT_TOLERANCE else INACCURATE
                sheds += 1
                for j in range(q - 1, fixed - 1, -1):
                    if u[j] < 0.0:  # held by drift alone: the next step goes on without it
                        drop(work, j, q)
                        q -= 1
                continue
            _row(grid, p, row)
        mine, bound = 0.0, 1.0 if p < 0 else 0.0
        times(work, row, d)
        free = combine(work.J, q, d, z)
        while True:  # until row p is met
            info[1] += 1.0
            if info[1] > problem.max_iter:
                return CAPPED
            back(work.R, q, d, r)
            partial, l = math.inf, NONE
            for j in range(fixed, q):
                if r[j] > 0.0 and u[j] < partial * r[j]:
                    partial, l = u[j] / r[j], j
            gap, norm = bound, free
            for k in range(n):
                gap -= row[k] * c[k]
            for k in range(q):
                norm += d[k] * d[k]
            full = gap / free if free > PARALLEL * norm and q < n else math.inf
            t = min(partial, full)
            if not t < math.inf:
                return NO_STEP
            for j in range(q):
                u[j] -= t * r[j]
            mine += t
            if full < math.inf:
                for k in range(n):
                    c[k] += t * z[k]
            if full <= partial:
                break
            drop(work, l, q)
            q -= 1
            free += d[q] * d[q]
        add(work, q, p, free)
        u[q] = mine
        q += 1


@kernel()
def _ridge(H: Array) -> float:
    """What is added to the diagonal of H."""
    ridge = 0.0
    for i in range(H.shape[0]):
        ridge += H[i, i] * RIDGE / H.shape[0]
    return ridge


@kernel()
def _whiten(H: Array, order: IntArray, work: QpWork) -> None:
    """L^-1 of H (n, n), DIPY's order, into work.packed."""
    for i in range(order.size):
        for j in range(i + 1):
            for l in range(WIDTH):
                work.packed[i * (i + 1) // 2 + j, l] = H[order[i], order[j]]
    whiten(order.size, work)


@kernel()
def solve(H: Array, g: Array, problem: GridProblem, work: QpWork, c: Array, info: Array) -> int:
    """Minimise c'Hc/2 - g'c under the constraints of `problem`, with RIDGE tr(H)/n added to the
    diagonal of H.

    Parameters
    ----------
    H : (n, n) symmetric, DIPY's order. g : (n,).
    work : from ``workspace(n, m)``. c : (n,), written. info : (3,), written: KKT residual,
        iterations, active rows.

    Returns
    -------
    SOLVED, or why c must not be used: CAPPED, NO_STEP (an ill-conditioned row), NOT_POSITIVE (H),
    INACCURATE.
    """
    _whiten(H, problem.grid.order, work)
    return solve_whitened(H, g, problem, 0, work, c, info)


@kernel()
def _start(H: Array, g: Array, problem: GridProblem, work: QpWork, c: Array, info: Array) -> int:
    """`solve` where work.J holds L^-1 of H."""
    info[1] = 0.0
    times(work, g, work.d)
    combine(work.J, NONE, work.d, c)
    return _pursue(H, g, problem, _ridge(H), NONE, work, c, info)


@kernel()
def solve_whitened(
    H: Array, g: Array, problem: GridProblem, l: int, work: QpWork, c: Array, info: Array
) -> int:
    """`solve` where lane l of work.packed holds L^-1 of H."""
    info[0], info[1] = math.inf, 0.0
    info[2] = 0.0
    usable = load(problem.grid.order, l, work)
    return _start(H, g, problem, work, c, info) if usable else NOT_POSITIVE


@kernel(allocates=True)
def solve_many(H: Array, g: Array, problem: GridProblem, c: Array, failed: IntArray) -> None:
    """`solve` for rows of g (V, n) with one H, into c (V, n); failed (V,): 1 where c must not be
    used.

    Each starts from its own unconstrained minimiser. Noise decides most of the rows that become
    active: a start from those of the mean of g takes no fewer steps.
    """
    work, info = workspace(g.shape[1], problem.grid.values.shape[1]), np.empty(3)
    _whiten(H, problem.grid.order, work)
    usable = load(problem.grid.order, 0, work)
    J = work.J.copy()
    for v in range(g.shape[0]):
        work.J[:] = J
        answer = _start(H, g[v], problem, work, c[v], info) if usable else NOT_POSITIVE
        failed[v] = 1 if answer != SOLVED else 0
