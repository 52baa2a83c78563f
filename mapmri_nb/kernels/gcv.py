"""
Generalised cross-validation of the Laplacian weight, blocks of voxels [row][V], functions grouped by parity class.

With L = C C', W = C^-1 M'M C^-T = Q T Q' (T tridiagonal) and z = Q'C^-1 M'y, a weight w costs O(n):
RSS = y'y - z'x - w x'x with (T + w I) x = z, samples - tr S = samples - n + w tr (T + w I)^-1, and
GCV = RSS / (samples - tr S)^2 [Craven & Wahba 1979; Fick 2016, Eq. 15]. Nothing needs M'M to be regular.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import laplacian
from ._jit import BLOCK_MATH, kernel
from .linalg import block_cholesky, block_copy, exp, log
from .ordering import class_bounds, frozen

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

LOWEST, HIGHEST = math.log(5e-8), math.log(5e-2)  # of the dimensionless weight, weight * (mu1 mu2 mu3)^(1/3)
GRID = 24
NEWTON_STEPS = 40  # bisection alone would end in 25
NEWTON_STOP = 1e-7  # the step that passes it leaves an error of its square
NOISE_FLOOR = 1e-15  # RSS / y'y below which rounding decides


class GcvTables(NamedTuple):
    """Parity classes (bounds), start and packed map of each one's block of L, a row longer than its triangle."""

    bounds: IntArray
    start: IntArray
    target: NDArray[np.uint64]
    pointer: NDArray[np.uint64]
    factor: NDArray[np.uint64]
    coefficient: Array


class Work(NamedTuple):
    """Scratch of `choose`: W packed, C packed by class, nine (n, V) arrays, grid scores, single rows."""

    W: Array
    C: Array
    d: Array
    e: Array
    z: Array
    p: Array
    v: Array
    w: Array
    grid: Array
    f: Array
    row: Array
    pivot: Array


@lru_cache
def tables(order: int) -> GcvTables:
    """Tables of `choose` at an even order."""
    bounds, lap = class_bounds(order), laplacian.tables(order)
    size = np.diff(bounds)
    start = np.cumsum(np.append(0, size * (size + 1) // 2 + size))
    first = lap.pointer[:-1].astype(np.int64)
    row, column = lap.row[first].astype(np.int64), lap.column[first].astype(np.int64)
    k = np.searchsorted(bounds, row, side="right") - 1
    i, j = row - bounds[k], column - bounds[k]
    target = frozen((start[k] + i * (i + 1) // 2 + j).astype(np.uint64))
    return GcvTables(bounds, frozen(start), target, lap.pointer, lap.factor, lap.coefficient)


@kernel()
def workspace(n: int, V: int) -> Work:
    """Scratch for n functions and V lanes."""
    packed = (n + 1) * (n + 2) // 2
    return Work(
        np.empty((packed, V)),
        np.empty((packed, V)),
        np.empty((n, V)),
        np.empty((n, V)),
        np.empty((n, V)),
        np.empty((n, V)),
        np.empty((n, V)),
        np.empty((n, V)),
        np.empty((GRID + 1, V)),
        np.empty((6, V)),
        np.empty((21, V)),
        np.empty((2, V)),
    )


# ---- whitening and tridiagonalisation --------------------------------------------------------------------------------


@kernel(fastmath=BLOCK_MATH)
def factor_laplacian(f: Array, rhs: Array, t: GcvTables, C: Array, z: Array, pivot: Array) -> None:
    """C = Cholesky factor of L, class by class (diagonals inverted); z = C^-1 rhs."""
    for r in range(t.start[t.start.size - 1]):
        c = C[r]
        for l in range(c.size):
            c[l] = 0.0
    for entry in range(t.target.size):
        c = C[t.target[entry]]
        for term in range(t.pointer[entry], t.pointer[entry + 1]):
            g, value = f[t.factor[term]], t.coefficient[term]
            for l in range(c.size):
                c[l] += value * g[l]
    for k in range(t.bounds.size - 1):
        s, n = t.bounds[k], t.bounds[k + 1] - t.bounds[k]
        last = t.start[k] + n * (n + 1) // 2
        block_copy(rhs[s:], C[last:], n)
        block_cholesky(C[t.start[k] :], n, pivot)
        block_copy(C[last:], z[s:], n)


@kernel(fastmath=BLOCK_MATH)
def _subtract(s: Array, A: Array, a: int, B: Array, b: int, m: int, step: int, grow: int) -> None:
    """Subtract the sum over k < m of A[a + k] B[b_k]; b_k along a row (step 1), or down a packed column (grow 1)."""
    for k in range(0, m - 3, 4):
        b1 = b + step
        b2 = b1 + step + grow
        b3 = b2 + step + 2 * grow
        x0, x1, x2, x3 = A[a + k], A[a + k + 1], A[a + k + 2], A[a + k + 3]
        y0, y1, y2, y3 = B[b], B[b1], B[b2], B[b3]
        for l in range(s.size):
            s[l] -= x0[l] * y0[l] + x1[l] * y1[l] + x2[l] * y2[l] + x3[l] * y3[l]
        b = b3 + step + 3 * grow
        step += 4 * grow
    for k in range(m // 4 * 4, m):
        x0, y0 = A[a + k], B[b]
        for l in range(s.size):
            s[l] -= x0[l] * y0[l]
        b += step
        step += grow


@kernel(fastmath=BLOCK_MATH)
def whiten(C: Array, t: GcvTables, W: Array) -> None:
    """
    W <- C^-1 W C^-T in place, packed, C block diagonal from `factor_laplacian`.

    Bordering: with row (c, delta) of C and the leading part U of the result known, row g of W becomes
    (C^-1 g - U c) / delta, and its diagonal (gamma - c C^-1 g) / delta^2 - c w / delta.
    """
    for k in range(t.bounds.size - 1):
        s, e = t.bounds[k], t.bounds[k + 1]
        for i in range(s, e):
            r = i * (i + 1) // 2
            c = t.start[k] + (i - s) * (i - s + 1) // 2
            diagonal, d = W[r + i], C[c + i - s]
            for b in range(k + 1):  # forward solution, class by class
                for j in range(t.bounds[b], min(t.bounds[b + 1], i)):
                    m = j - t.bounds[b]
                    own, x = t.start[b] + m * (m + 1) // 2, W[r + j]
                    _subtract(x, C, own, W, r + t.bounds[b], m, 1, 0)
                    h = C[own + m]
                    for l in range(x.size):
                        x[l] *= h[l]
            _subtract(diagonal, C, c, W, r + s, i - s, 1, 0)
            for j in range(i):  # minus the leading part times c; the leading part is stored as its lower triangle
                x, q = W[r + j], j * (j + 1) // 2
                if j >= s:
                    _subtract(x, C, c, W, q + s, j - s, 1, 0)
                m = max(s, j)
                _subtract(x, C, c + m - s, W, m * (m + 1) // 2 + j, i - m, m + 1, 1)
                for l in range(x.size):
                    x[l] *= d[l]
            for l in range(d.size):
                diagonal[l] *= d[l]
            _subtract(diagonal, C, c, W, r + s, i - s, 1, 0)
            for l in range(d.size):
                diagonal[l] *= d[l]


@kernel(fastmath=BLOCK_MATH)
def _update_and_multiply(W: Array, k: int, v: Array, w: Array, p: Array) -> None:
    """Leading k rows: W -= v w' + w v', then p = W u with u = row k, in one pass over the triangle."""
    u = W[k * (k + 1) // 2 :]
    for i in range(k):
        r = i * (i + 1) // 2
        a, q, ui, vi, wi = W[r + i], p[i], u[i], v[i], w[i]
        for l in range(q.size):
            a[l] -= 2.0 * vi[l] * wi[l]
            q[l] = a[l] * ui[l]
        for j in range(i):
            a, pj, uj, vj, wj = W[r + j], p[j], u[j], v[j], w[j]
            for l in range(q.size):
                x = a[l] - vi[l] * wj[l] - wi[l] * vj[l]
                a[l] = x
                q[l] += x * uj[l]
                pj[l] += x * ui[l]


@kernel(fastmath=BLOCK_MATH)
def tridiagonalise(W: Array, d: Array, e: Array, z: Array, v: Array, w: Array, p: Array, row: Array) -> None:
    """
    Householder from the last row up: T has diagonal d and e[k] = T[k, k-1], z <- Q'z; W is used up.

    v and w hold the rank-two update that the next pass applies (one pass over the triangle a step).
    """
    n = d.shape[0]
    square, f, g, h = row[0], row[1], row[2], row[3]
    for i in range(n):
        a, b = v[i], w[i]
        for l in range(a.size):
            a[l] = 0.0
            b[l] = 0.0
    for k in range(n - 1, -1, -1):
        u = W[k * (k + 1) // 2 :]
        vk, wk, dk, ek = v[k], w[k], d[k], e[k]
        for j in range(k + 1):
            x, vj, wj = u[j], v[j], w[j]
            for l in range(dk.size):
                x[l] -= vk[l] * wj[l] + wk[l] * vj[l]
        x = u[k]
        for l in range(dk.size):
            dk[l] = x[l]
            square[l] = 0.0
            g[l] = 0.0
            h[l] = 0.0
        if k == 0:
            break
        for j in range(k):
            x = u[j]
            for l in range(dk.size):
                square[l] += x[l] * x[l]
        x = u[k - 1]
        for l in range(dk.size):
            ek[l] = -math.copysign(math.sqrt(square[l]), x[l])
            half = square[l] - x[l] * ek[l]
            f[l] = 1.0 / half if half > 1e-150 else 0.0  # nothing left to reflect: f * f must not overflow
            x[l] -= ek[l]
        _update_and_multiply(W, k, v, w, p)
        for i in range(k):
            ui, q, zi = u[i], p[i], z[i]
            for l in range(dk.size):
                g[l] += q[l] * ui[l]
                h[l] += zi[l] * ui[l]
        for l in range(dk.size):
            g[l] *= 0.5 * f[l] * f[l]
            h[l] *= f[l]
        for i in range(k):
            ui, q, zi, a, b = u[i], p[i], z[i], v[i], w[i]
            for l in range(dk.size):
                a[l] = ui[l]
                b[l] = f[l] * q[l] - g[l] * ui[l]
                zi[l] -= h[l] * ui[l]


# ---- the functional and its minimiser --------------------------------------------------------------------------------


@kernel(fastmath=BLOCK_MATH)
def score(lam: Array, work: Work, yy: Array, samples: Array, out: Array) -> None:
    """
    GCV score at one dimensionless weight a lane, RSS / (samples - tr S)^2, into `out` (V,).

    Leaves the inverse pivots of T + lam I in work.v, its solution x in work.w, RSS, samples - tr S, the trace of the
    inverse and x'x in the first rows of work.row.
    """
    n = work.d.shape[0]
    rss, free, trace, xx, c = work.row[0], work.row[1], work.row[2], work.row[3], work.row[4]
    for l in range(out.size):
        rss[l] = yy[l]
        trace[l] = 0.0
        xx[l] = 0.0
    v, x, d, z = work.v[0], work.w[0], work.d[0], work.z[0]
    for l in range(out.size):
        v[l] = 1.0 / (d[l] + lam[l])
        x[l] = z[l]
        c[l] = 1.0
        trace[l] = v[l]
        rss[l] = yy[l] - z[l] * z[l] * v[l]
        xx[l] = 0.0
    for i in range(1, n):
        e, v0, x0, v, x, d, z = work.e[i], work.v[i - 1], work.w[i - 1], work.v[i], work.w[i], work.d[i], work.z[i]
        for l in range(out.size):
            g = e[l] * v0[l]
            c[l] = 1.0 + g * g * c[l]  # minus the derivative of this pivot's inverse, over its square
            v[l] = 1.0 / (d[l] + lam[l] - g * e[l])
            trace[l] += c[l] * v[l]
            x[l] = z[l] - g * x0[l]
            rss[l] -= x[l] * x[l] * v[l]
    for i in range(n - 1, -1, -1):
        x, v = work.w[i], work.v[i]
        if i < n - 1:
            e, x1 = work.e[i + 1], work.w[i + 1]
            for l in range(out.size):
                x[l] -= e[l] * x1[l]
        for l in range(out.size):
            x[l] *= v[l]
            xx[l] += x[l] * x[l]
    for l in range(out.size):
        rss[l] = max(rss[l] - lam[l] * xx[l], NOISE_FLOOR * yy[l])
        free[l] = samples[l] - n + lam[l] * trace[l]
        out[l] = rss[l] / (free[l] * free[l])


@kernel(fastmath=BLOCK_MATH)
def slope(lam: Array, work: Work, first: Array, second: Array) -> None:
    """
    First and second derivative of log GCV with respect to log lam, where `score` was just taken.

    RSS' = 2 lam x'u, RSS'' = 2 x'u - 6 lam u'u with (T + lam I) u = x; the trace's own by its recurrence.
    """
    n = work.d.shape[0]
    rss, free, trace, c, c1, c2 = work.row[0], work.row[1], work.row[2], work.row[4], work.row[5], work.row[6]
    t1, t2, xu, uu = work.row[7], work.row[8], work.row[9], work.row[10]
    for i in range(n):
        v, u, x = work.v[i], work.p[i], work.w[i]
        if i == 0:
            for l in range(lam.size):
                u[l] = x[l]
                xu[l] = 0.0
                uu[l] = 0.0
                c[l] = 1.0
                c1[l] = 0.0
                c2[l] = 0.0
                t1[l] = 0.0
                t2[l] = 0.0
        else:
            e, v0, u0 = work.e[i], work.v[i - 1], work.p[i - 1]
            for l in range(lam.size):
                g = e[l] * v0[l]
                a = v0[l] * c[l]
                u[l] = x[l] - g * u0[l]
                c2[l] = g * g * (c2[l] - 6.0 * a * (c1[l] - a * c[l]))
                c1[l] = g * g * (c1[l] - 2.0 * a * c[l])
                c[l] = 1.0 + g * g * c[l]
        for l in range(lam.size):
            a = v[l] * c[l]
            xu[l] += u[l] * u[l] * v[l]
            t1[l] += v[l] * (c1[l] - a * c[l])
            t2[l] += v[l] * (c2[l] - a * (3.0 * c1[l] - 2.0 * a * c[l]))
    for i in range(n - 1, -1, -1):
        u, v = work.p[i], work.v[i]
        if i < n - 1:
            e, u1 = work.e[i + 1], work.p[i + 1]
            for l in range(lam.size):
                u[l] -= e[l] * u1[l]
        for l in range(lam.size):
            u[l] *= v[l]
            uu[l] += u[l] * u[l]
    for l in range(lam.size):
        w = lam[l]
        r1 = 2.0 * w * w * xu[l] / rss[l]
        f1 = w * (trace[l] + w * t1[l]) / free[l]
        first[l] = r1 - 2.0 * f1
        r2 = w * w * (2.0 * xu[l] - 6.0 * w * uu[l]) / rss[l]
        f2 = w * w * (2.0 * t1[l] + w * t2[l]) / free[l]
        second[l] = first[l] + r2 - r1 * r1 - 2.0 * (f2 - f1 * f1)


@kernel()
def _local_minimum(grid: Array, l: int, rank: int) -> int:
    """Position of the local minimum number `rank` on the grid of lane l, -1 where there are fewer (or only NaN)."""
    for i in range(GRID):
        left = i == 0 or grid[i, l] <= grid[i - 1, l]
        if left and (i == GRID - 1 or grid[i, l] < grid[i + 1, l]) and grid[i, l] < math.inf:
            if rank == 0:
                return i
            rank -= 1
    return -1


@kernel()
def _search(work: Work, yy: Array, samples: Array, best: Array, out: Array) -> None:
    """Log of each lane's dimensionless minimiser into `out` (V,): grid, then every local minimum by Newton."""
    lam, x, low, high, value, moving = work.row[11], work.row[12], work.row[13], work.row[14], work.row[15], work.row[16]
    first, second = work.row[17], work.row[18]
    step = (HIGHEST - LOWEST) / (GRID - 1)
    for i in range(GRID):
        weight = exp(LOWEST + i * step)
        for l in range(yy.size):
            lam[l] = weight
        score(lam, work, yy, samples, work.grid[i])
    for rank in range(GRID):
        running = 0
        for l in range(yy.size):
            i = _local_minimum(work.grid, l, rank)
            moving[l] = 1.0 if i >= 0 else 0.0
            running += i >= 0
            low[l], high[l] = LOWEST + max(i - 1, 0) * step, LOWEST + min(i + 1, GRID - 1) * step
            x[l], value[l] = LOWEST + i * step, math.inf
            if 0 < i < GRID - 1:  # vertex of the parabola through three scores
                a, b, c = work.grid[i - 1, l], work.grid[i, l], work.grid[i + 1, l]
                shift = 0.5 * step * (a - c) / (a - 2.0 * b + c)
                x[l] += shift if abs(shift) < step else 0.0
        if running == 0:
            break
        for _ in range(NEWTON_STEPS):
            for l in range(yy.size):
                lam[l] = exp(x[l])
            score(lam, work, yy, samples, work.grid[GRID])
            slope(lam, work, first, second)
            running = 0
            for l in range(yy.size):
                if moving[l] == 0.0:  # a finished lane is frozen: its bits do not depend on its neighbours
                    continue
                value[l] = work.grid[GRID, l]
                if first[l] > 0.0:
                    high[l] = x[l]
                else:
                    low[l] = x[l]
                target = x[l] - first[l] / second[l] if second[l] > 0.0 else low[l] - 1.0
                if not low[l] <= target <= high[l]:
                    target = 0.5 * (low[l] + high[l])
                moving[l] = 1.0 if abs(target - x[l]) > NEWTON_STOP else 0.0
                running += moving[l] > 0.0
                x[l] = target
            if running == 0:
                break
        for l in range(yy.size):
            if value[l] < best[l]:
                best[l], out[l] = value[l], x[l]


@kernel()
def choose(
    G: Array,
    rhs: Array,
    mu: Array,
    yy: Array,
    samples: Array,
    t: GcvTables,
    weights: Array,
    work: Work,
    weight: Array,
    bound: IntArray,
) -> None:
    """
    Laplacian weight of each voxel with the smallest GCV: over a range of weights, or over a given array of them.

    Parameters
    ----------
    G : M'M packed, (n(n+1)/2, V). rhs : M'y, (n, V). mu : (3, V) mm. yy : y'y, (V,). samples : valid samples, (V,).
        Functions grouped by parity class; none of these is changed.
    t : `tables` of the order. weights : candidates in 1/mm, any order, the first wins a tie; empty: the minimiser with
        weight * (mu1 mu2 mu3)^(1/3) in [5e-8, 5e-2]. work : `workspace(n, V)`.
    weight : (V,), written, 1/mm; NaN where no weight has a finite score. bound : (V,), written: 1 where the weight is the
        smallest or largest of its range or of several candidates, else 0.
    """
    f, length, best, lam, value = work.f, work.row[19], work.row[20], work.row[11], work.row[15]
    laplacian.factors(mu, f)
    for l in range(yy.size):  # the problem in units of the mean scale: weights are then dimensionless
        length[l] = exp(log(mu[0, l] * mu[1, l] * mu[2, l]) / 3.0)
        for k in range(6):
            f[k, l] /= length[l]
        best[l] = math.inf
        weight[l] = math.nan
        bound[l] = 0
    block_copy(G, work.W, G.shape[0])
    factor_laplacian(f, rhs, t, work.C, work.z, work.pivot)
    whiten(work.C, t, work.W)
    tridiagonalise(work.W, work.d, work.e, work.z, work.v, work.w, work.p, work.row)
    if weights.size == 0:
        _search(work, yy, samples, best, weight)
        for l in range(yy.size):
            bound[l] = 1 if weight[l] <= LOWEST or weight[l] >= LOWEST + (GRID - 1) * ((HIGHEST - LOWEST) / (GRID - 1)) else 0
            weight[l] = exp(weight[l]) / length[l] if best[l] < math.inf else math.nan
        return
    smallest, largest = math.inf, -math.inf
    for w in weights:
        smallest, largest = min(smallest, w), max(largest, w)
        for l in range(yy.size):
            lam[l] = w * length[l]
        score(lam, work, yy, samples, value)
        for l in range(yy.size):
            if value[l] < best[l]:
                best[l], weight[l] = value[l], w
                bound[l] = 0
    for l in range(yy.size):
        if weights.size > 1 and (weight[l] == smallest or weight[l] == largest):
            bound[l] = 1
