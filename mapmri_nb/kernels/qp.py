"""
Dual active-set solver of the positivity QP of one voxel: min c'Hc/2 - g'c subject to B'c = 1 and K c >= 0.

The method of Goldfarb and Idnani (Math. Program. 27:1, 1983): from the unconstrained minimiser, violated rows enter one
at a time and leave when their multiplier turns negative. Every iterate is optimal for the rows it holds, so the
objective only grows and no feasible start is needed. B is the first row and never leaves.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import BLOCK_MATH, kernel
from .linalg import cholesky, invert_lower

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

SOLVED, CAPPED, NO_STEP, NOT_POSITIVE, INACCURATE = 0, 1, 2, 3, 4
RIDGE = 1e-9  # of the mean diagonal of H: part of the problem, so that H may be singular (order 8 on three shells)
KKT_TOLERANCE = 1e-8  # largest relative residual of an answer (typical: 1e-12)
VIOLATION = 1e-13  # of the peak: rows above -VIOLATION are met
PARALLEL = 1e-10  # a row whose free part is below this share of its squared norm depends on the active rows
CANDIDATES = 0.2  # rows within this share of the worst violation are worked on before K is scanned again


class QpWork(NamedTuple):
    """Scratch of `solve` for n coefficients and m rows; make it once per thread with `workspace`."""

    J: Array  # (n, n) rows are the columns of L^-T Q, with H = LL' and Q orthogonal: J'[active rows] = [R; 0]
    R: Array  # (n, n) upper triangular
    L: Array  # (n, n) lower Cholesky factor of H
    vectors: Array  # (6, n): d, z, r, row, w, multipliers
    slack: Array  # (m,) K c at the last scan
    active: IntArray  # (n,) rows held, -1 for B
    held: IntArray  # (m,) 1 where a row is held
    candidates: IntArray  # (m,)


@kernel()
def workspace(n: int, m: int) -> QpWork:
    """Scratch for n coefficients and m rows."""
    return QpWork(
        np.empty((n, n)),
        np.empty((n, n)),
        np.empty((n, n)),
        np.empty((6, n)),
        np.empty(m),
        np.empty(n, np.int64),
        np.empty(m, np.int64),
        np.empty(m, np.int64),
    )


@kernel(fastmath=BLOCK_MATH)
def _times(A: Array, x: Array, out: Array) -> None:
    """out = A @ x."""
    for i in range(A.shape[0]):
        s = 0.0
        for k in range(A.shape[1]):
            s += A[i, k] * x[k]
        out[i] = s


@kernel(fastmath=BLOCK_MATH)
def _combine(A: Array, first: int, d: Array, out: Array) -> float:
    """out = sum of d_i A[i] over i >= first; returns the sum of d_i^2."""
    for k in range(out.size):
        out[k] = 0.0
    total = 0.0
    for i in range(first, A.shape[0]):
        f = d[i]
        total += f * f
        for k in range(out.size):
            out[k] += f * A[i, k]
    return total


@kernel(fastmath=BLOCK_MATH)
def _dot_row(A: Array, i: int, x: Array) -> float:
    """A[i] @ x."""
    s = 0.0
    for k in range(x.size):
        s += A[i, k] * x[k]
    return s


@kernel(fastmath=BLOCK_MATH)
def _reflect(J: Array, q: int, d: Array, z: Array, w: Array, total: float) -> float:
    """
    Householder step that turns d[q:] into (alpha, 0, ..): rows q.. of J are reflected, alpha is returned.

    z = sum of d_i J[i] over i >= q is known from the search direction, so the product with the reflector is free.
    """
    alpha = -math.sqrt(total) if d[q] > 0.0 else math.sqrt(total)
    d[q] -= alpha
    norm = 2.0 * (total - alpha * (d[q] + alpha))  # |d - alpha e_q|^2
    if norm > 0.0:
        for k in range(z.size):
            w[k] = (z[k] - alpha * J[q, k]) * 2.0 / norm
        for i in range(q, J.shape[0]):
            f = d[i]
            for k in range(z.size):
                J[i, k] -= f * w[k]
    return alpha


@kernel(fastmath=BLOCK_MATH)
def _drop(J: Array, R: Array, u: Array, active: IntArray, l: int, q: int) -> None:
    """Remove active row l of q: its column leaves R, Givens rotations restore the triangle."""
    for j in range(l, q - 1):
        active[j], u[j] = active[j + 1], u[j + 1]
        for i in range(j + 2):
            R[i, j] = R[i, j + 1]
    for j in range(l, q - 1):
        f, h = R[j, j], R[j + 1, j]
        length = math.sqrt(f * f + h * h)
        c, s = f / length, h / length
        R[j, j], R[j + 1, j] = length, 0.0
        for k in range(j + 1, q - 1):
            f, h = R[j, k], R[j + 1, k]
            R[j, k], R[j + 1, k] = c * f + s * h, c * h - s * f
        for k in range(J.shape[1]):
            f, h = J[j, k], J[j + 1, k]
            J[j, k], J[j + 1, k] = c * f + s * h, c * h - s * f


@kernel()
def _worst(K: Array, c: Array, work: QpWork, few: int) -> tuple[int, float, float]:
    """The most violated free row, its value and the largest value; among the first `few` candidates, or all (-1)."""
    slack, worst, p, peak = work.slack, 0.0, -1, 0.0
    if few < 0:
        _times(K, c, slack)
        for i in range(slack.size):
            peak = max(peak, slack[i])
            if slack[i] < worst and work.held[i] == 0:
                worst, p = slack[i], i
    for j in range(few):
        i = work.candidates[j]
        if work.held[i] == 0:
            s = _dot_row(K, i, c)
            if s < worst:
                worst, p = s, i
    return p, worst, peak


@kernel()
def _restore(work: QpWork, g: Array, q: int, c: Array) -> None:
    """c and multipliers afresh from the factors: c = J (R^-T b, J2'g), u = R^-1 (R^-T b - J1'g); sheds drift."""
    R, d, r, u = work.R, work.vectors[0], work.vectors[2], work.vectors[5]
    _times(work.J, g, d)
    for i in range(q):
        s = 1.0 if i == 0 else 0.0  # right-hand sides of the active rows: 1 for B, 0 for K
        for k in range(i):
            s -= R[k, i] * r[k]
        r[i] = s / R[i, i]
    for i in range(q - 1, -1, -1):
        s = r[i] - d[i]
        for k in range(i + 1, q):
            s -= R[i, k] * u[k]
        u[i] = s / R[i, i]
        d[i] = r[i]
    _combine(work.J, 0, d, c)


@kernel()
def _residual(H: Array, g: Array, B: Array, K: Array, work: QpWork, q: int, ridge: float, c: Array) -> float:
    """Largest relative KKT residual: stationarity in the norm of H^-1, feasibility, signs of the multipliers."""
    d, z, row, u = work.vectors[0], work.vectors[1], work.vectors[3], work.vectors[5]
    _times(work.J, g, z)
    _times(H, c, row)
    total, size, most, least = 0.0, 0.0, 0.0, 0.0
    for k in range(c.size):
        row[k] += ridge * c[k] - g[k] - u[0] * B[k]
        for j in range(1, q):
            row[k] -= u[j] * K[work.active[j], k]
        size += z[k] * z[k]
    _times(work.J, row, d)
    for k in range(c.size):
        total += d[k] * d[k]
    for j in range(1, q):
        most, least = max(most, u[j]), min(least, u[j])
    _times(K, c, work.slack)
    low, high = 0.0, 0.0
    for i in range(work.slack.size):
        low, high = min(low, work.slack[i]), max(high, work.slack[i])
    unit = -1.0
    for k in range(c.size):
        unit += B[k] * c[k]
    residual = math.sqrt(total / size) + abs(unit) - low / high
    return residual - (least / most if most > 0.0 else 0.0)


@kernel()
def solve(H: Array, g: Array, B: Array, K: Array, max_iter: int, work: QpWork, c: Array, info: Array) -> int:
    """
    Minimise c'Hc/2 - g'c subject to B'c = 1 and K c >= 0, with RIDGE tr(H)/n added to the diagonal of H.

    Parameters
    ----------
    H : (n, n) symmetric. g, B : (n,). K : (m, n) rows of norm 1. max_iter : cap on added and dropped rows together.
    work : from ``workspace(n, m)``. c : (n,), written. info : (3,), written: KKT residual, iterations, active rows.

    Returns
    -------
    SOLVED, or why c must not be used: CAPPED, NO_STEP (an ill-conditioned row), NOT_POSITIVE (H), INACCURATE.
    """
    n, J, R, u, active = c.size, work.J, work.R, work.vectors[5], work.active
    d, z, r, row, w = work.vectors[0], work.vectors[1], work.vectors[2], work.vectors[3], work.vectors[4]
    info[0], info[1], info[2] = math.inf, 0.0, 0.0
    trace = 0.0
    for i in range(n):
        trace += H[i, i]
    ridge = RIDGE * trace / n
    for i in range(n):
        for k in range(n):
            work.L[i, k] = H[i, k]
        work.L[i, i] += ridge
    if not (trace > 0.0 and cholesky(work.L, 0.0)):
        return NOT_POSITIVE
    invert_lower(work.L, J)
    _times(J, g, d)
    _combine(J, 0, d, c)
    for i in range(work.held.size):
        work.held[i] = 0
    q, few, p, iterations, tolerance = 0, 0, -1, 0, 0.0
    for k in range(n):
        row[k] = B[k]
    bound = 1.0
    while True:
        mine = 0.0
        while True:  # until row p is met
            iterations += 1
            if iterations > max_iter:
                info[1] = max_iter
                return CAPPED
            _times(J, row, d)
            free = _combine(J, q, d, z)
            bent = 0.0
            for i in range(q - 1, -1, -1):
                bent += d[i] * d[i]
                s = d[i]
                for k in range(i + 1, q):
                    s -= R[i, k] * r[k]
                r[i] = s / R[i, i]
            partial, l = math.inf, -1
            for j in range(1, q):
                if r[j] > 0.0 and u[j] < partial * r[j]:
                    partial, l = u[j] / r[j], j
            gap = bound
            for k in range(n):
                gap -= row[k] * c[k]
            full = gap / free if free > PARALLEL * (free + bent) and q < n else math.inf
            t = min(partial, full)
            if not t < math.inf:
                info[1] = iterations
                return NO_STEP
            if full < math.inf:
                for k in range(n):
                    c[k] += t * z[k]
            for j in range(q):
                u[j] -= t * r[j]
            mine += t
            if full <= partial:
                alpha = _reflect(J, q, d, z, w, free)
                for i in range(q):
                    R[i, q] = d[i]
                R[q, q] = alpha
                active[q], u[q] = p, mine
                if p >= 0:
                    work.held[p] = 1
                q += 1
                break
            work.held[active[l]] = 0
            _drop(J, R, u, active, l, q)
            q -= 1
        p, worst, peak = _worst(K, c, work, few)
        if p < 0 or worst > -tolerance:
            _restore(work, g, q, c)
            p, worst, peak = _worst(K, c, work, -1)
            tolerance = VIOLATION * peak
            if p < 0 or worst > -tolerance:
                break
            few = 0
            for i in range(work.held.size):
                if work.slack[i] <= CANDIDATES * worst and work.held[i] == 0:
                    work.candidates[few] = i
                    few += 1
        bound = 0.0
        for k in range(n):
            row[k] = K[p, k]
    info[0] = _residual(H, g, B, K, work, q, ridge, c)
    info[1], info[2] = iterations, q - 1
    return SOLVED if info[0] <= KKT_TOLERANCE else INACCURATE
