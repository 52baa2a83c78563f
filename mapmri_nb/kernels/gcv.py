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
from .linalg import block_cholesky, exp, log
from .ordering import class_bounds, frozen

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

LOWEST, HIGHEST = math.log(5e-8), math.log(5e-2)  # of the dimensionless weight, weight * (mu1 mu2 mu3)^(1/3)
GRID = 24
STEP = (HIGHEST - LOWEST) / (GRID - 1)
NEWTON_STEPS = 40  # bisection alone would take 24
NEWTON_STOP = 1e-7  # the step that passes it leaves about its square
NOISE_FLOOR = 1e-15  # of RSS / y'y: below, rounding decides


class GcvTables(NamedTuple):
    """Parity classes: bounds, and their blocks of L packed one after the other, each with a row for M'y."""

    bounds: IntArray
    start: IntArray
    target: NDArray[np.uint64]
    pointer: NDArray[np.uint64]
    factor: NDArray[np.uint64]
    coefficient: Array


class Work(NamedTuple):
    """Scratch of `choose`."""

    W: Array  # packed: M'M, whitened, used up by the reflections
    C: Array  # factor of L, packed class by class
    d: Array  # (n, V) diagonal of T
    e: Array  # (n + 1, V) e[k] = T[k, k-1], zero at both ends
    z: Array  # (n, V) Q'C^-1 M'y
    p: Array  # (n + 2, V) scratch, like the others
    v: Array  # (n + 1, V)
    x: Array  # (n + 2, V)
    grid: Array  # (GRID + 1, V)
    lane: Array  # (20, V)


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
    m = (n + 1) * (n + 2) // 2
    d, z, e, v = np.empty((n, V)), np.empty((n, V)), np.empty((n + 1, V)), np.empty((n + 1, V))
    p, x, grid, lane = np.empty((n + 2, V)), np.empty((n + 2, V)), np.empty((GRID + 1, V)), np.empty((20, V))
    return Work(np.empty((m, V)), np.empty((m, V)), d, e, z, p, v, x, grid, lane)


# ---- whitening and tridiagonalisation --------------------------------------------------------------------------------


@kernel(fastmath=BLOCK_MATH)
def factor_laplacian(f: Array, rhs: Array, t: GcvTables, C: Array, z: Array, pivot: Array) -> None:
    """C = Cholesky factor of L, class by class (diagonals inverted); z = C^-1 rhs."""
    lanes = range(z.shape[1])
    for r in range(t.start[t.start.size - 1]):
        for l in lanes:
            C[r, l] = 0.0
    for entry in range(t.target.size):
        r = t.target[entry]
        for term in range(t.pointer[entry], t.pointer[entry + 1]):
            k, value = t.factor[term], t.coefficient[term]
            for l in lanes:
                C[r, l] += value * f[k, l]
    for k in range(t.bounds.size - 1):
        s, n = t.bounds[k], t.bounds[k + 1] - t.bounds[k]
        last = t.start[k] + n * (n + 1) // 2
        for i in range(n):
            for l in lanes:
                C[last + i, l] = rhs[s + i, l]
        block_cholesky(C[t.start[k] :], n, pivot)
        for i in range(n):
            for l in lanes:
                z[s + i, l] = C[last + i, l]


@kernel(fastmath=BLOCK_MATH)
def _subtract(W: Array, r: int, C: Array, c: int, b: int, m: int, step: int, grow: int) -> None:
    """W[r] -= sum over k < m of C[c + k] W[b_k]; b_k along a packed row (step 1, grow 0) or down a column (grow 1)."""
    for k in range(c, c + m - 3, 4):
        b1 = b + step
        b2 = b1 + step + grow
        b3 = b2 + step + 2 * grow
        for l in range(W.shape[1]):
            W[r, l] -= C[k, l] * W[b, l] + C[k + 1, l] * W[b1, l] + C[k + 2, l] * W[b2, l] + C[k + 3, l] * W[b3, l]
        b = b3 + step + 3 * grow
        step += 4 * grow
    for k in range(c + m // 4 * 4, c + m):
        for l in range(W.shape[1]):
            W[r, l] -= C[k, l] * W[b, l]
        b += step
        step += grow


@kernel(fastmath=BLOCK_MATH)
def whiten(C: Array, t: GcvTables, W: Array) -> None:
    """
    W <- C^-1 W C^-T in place, packed, C block diagonal from `factor_laplacian`.

    Bordering: with row (c, delta) of C and the leading part U of the result known, row g of W becomes
    w = (C^-1 g - U c) / delta, and its diagonal ((gamma - c C^-1 g) / delta - c w) / delta.
    """
    lanes, along, down = range(W.shape[1]), 0, 1
    for k in range(t.bounds.size - 1):
        s = t.bounds[k]
        for i in range(s, t.bounds[k + 1]):
            r = i * (i + 1) // 2
            c = t.start[k] + (i - s) * (i - s + 1) // 2
            d = c + i - s
            for b in range(k + 1):  # C^-1 g, class by class
                first = t.bounds[b]
                for m in range(min(t.bounds[b + 1], i) - first):
                    own = t.start[b] + m * (m + 1) // 2
                    _subtract(W, r + first + m, C, own, r + first, m, 1, along)
                    for l in lanes:
                        W[r + first + m, l] *= C[own + m, l]
            _subtract(W, r + i, C, c, r + s, i - s, 1, along)
            for j in range(i):  # U is stored as its lower triangle: its row j up to the diagonal, then down column j
                m = max(s, j)
                _subtract(W, r + j, C, c, j * (j + 1) // 2 + s, m - s, 1, along)
                _subtract(W, r + j, C, c + m - s, m * (m + 1) // 2 + j, i - m, m + 1, down)
                for l in lanes:
                    W[r + j, l] *= C[d, l]
            for l in lanes:
                W[r + i, l] *= C[d, l]
            _subtract(W, r + i, C, c, r + s, i - s, 1, along)
            for l in lanes:
                W[r + i, l] *= C[d, l]


@kernel(fastmath=BLOCK_MATH)
def tridiagonalise(W: Array, d: Array, e: Array, z: Array, v: Array, w: Array, p: Array, row: Array) -> None:
    """
    Householder from the last row up: T has diagonal d and e[k] = T[k, k-1], z <- Q'z; W is used up.

    v and w hold the rank-two update W -= v w' + w v' that the next step applies while it multiplies, so that each step
    passes over the triangle once. Row 0 to 2 of `row` are scratch.
    """
    n, lanes = d.shape[0], range(d.shape[1])
    for i in range(n):
        for l in lanes:
            v[i, l] = 0.0
            w[i, l] = 0.0
            e[n, l] = 0.0
    for k in range(n - 1, -1, -1):
        u = k * (k + 1) // 2  # row k, soon the vector of its reflection
        for l in lanes:
            row[0, l] = 0.0
            row[1, l] = 0.0
            row[2, l] = 0.0
        for j in range(k + 1):
            on = 1.0 if j < k else 0.0
            for l in lanes:
                x = W[u + j, l] - v[k, l] * w[j, l] - w[k, l] * v[j, l]
                W[u + j, l] = x
                row[0, l] += on * x * x
        last = max(u + k - 1, 0)
        for l in lanes:
            d[k, l] = W[u + k, l]
            e[k, l] = -math.copysign(math.sqrt(row[0, l]), W[last, l])
            half = row[0, l] - W[last, l] * e[k, l]
            row[0, l] = 1.0 / half if half > 1e-150 else 0.0  # nothing left to reflect, and its square must be finite
            W[last, l] -= e[k, l]
        if k == 0:
            break
        for i in range(k):
            r = i * (i + 1) // 2
            for l in lanes:
                x = W[r + i, l] - 2.0 * v[i, l] * w[i, l]
                W[r + i, l] = x
                p[i, l] = x * W[u + i, l]
            for j in range(i):
                for l in lanes:
                    x = W[r + j, l] - v[i, l] * w[j, l] - w[i, l] * v[j, l]
                    W[r + j, l] = x
                    p[i, l] += x * W[u + j, l]
                    p[j, l] += x * W[u + i, l]
        for i in range(k):
            for l in lanes:
                row[1, l] += p[i, l] * W[u + i, l]
                row[2, l] += z[i, l] * W[u + i, l]
        for i in range(k):
            for l in lanes:
                f, x = row[0, l], W[u + i, l]
                v[i, l] = x
                w[i, l] = f * (p[i, l] - 0.5 * f * row[1, l] * x)
                z[i, l] -= f * row[2, l] * x


# ---- the functional and its minimiser --------------------------------------------------------------------------------


@kernel(fastmath=BLOCK_MATH)
def score(w: Array, yy: Array, samples: Array, work: Work, out: Array) -> None:
    """
    GCV score RSS / (samples - tr S)^2 at one dimensionless weight a lane, into `out` (V,).

    Leaves, for `slope`, inverse pivots and solution in rows 1 to n of work.v and work.x, and in the first rows of
    work.lane RSS, samples - tr S and the trace of the inverse.
    """
    d, e, z, v, x, lane = work.d, work.e, work.z, work.v, work.x, work.lane
    n, lanes = d.shape[0], range(out.size)
    for l in lanes:
        lane[0, l] = yy[l]
        lane[1, l] = 0.0  # x'x
        lane[2, l] = 0.0
        lane[3, l] = 0.0  # derivative of the pivot by w
        v[0, l] = 0.0
        x[0, l] = 0.0
        x[n + 1, l] = 0.0
    for i in range(n):
        for l in lanes:
            g = e[i, l] * v[i, l]
            c = 1.0 + g * g * lane[3, l]
            inverse = 1.0 / (d[i, l] + w[l] - g * e[i, l])
            y = z[i, l] - g * x[i, l]
            v[i + 1, l] = inverse
            x[i + 1, l] = y
            lane[3, l] = c
            lane[2, l] += c * inverse
            lane[0, l] -= y * y * inverse
    for i in range(n, 0, -1):
        for l in lanes:
            y = (x[i, l] - e[i, l] * x[i + 1, l]) * v[i, l]
            x[i, l] = y
            lane[1, l] += y * y
    for l in lanes:
        lane[0, l] = max(lane[0, l] - w[l] * lane[1, l], NOISE_FLOOR * yy[l])
        lane[1, l] = samples[l] - n + w[l] * lane[2, l]
        out[l] = lane[0, l] / (lane[1, l] * lane[1, l])


@kernel(fastmath=BLOCK_MATH)
def slope(w: Array, work: Work, first: Array, second: Array) -> None:
    """
    First and second derivative of log GCV by log w, where `score` was just taken.

    RSS' = 2 w x'u, RSS'' = 2 x'u - 6 w u'u with (T + w I) u = x; the trace's by differentiating its recurrence twice.
    """
    e, v, x, u, lane = work.e, work.v, work.x, work.p, work.lane
    n, lanes = work.d.shape[0], range(w.size)
    for l in lanes:
        u[0, l] = 0.0
        u[n + 1, l] = 0.0
        for k in range(3, 10):
            lane[k, l] = 0.0
    for i in range(n):
        for l in lanes:
            g = e[i, l] * v[i, l]
            y = x[i + 1, l] - g * u[i, l]
            u[i + 1, l] = y
            lane[3, l] += y * y * v[i + 1, l]
        for l in lanes:
            g = e[i, l] * v[i, l]
            c, c1, c2 = lane[4, l], lane[5, l], lane[6, l]  # derivatives of the pivot by w
            a = v[i, l] * c
            c2 = g * g * (c2 - 6.0 * a * (c1 - a * c))
            c1 = g * g * (c1 - 2.0 * a * c)
            c = 1.0 + g * g * c
            a = v[i + 1, l] * c
            lane[7, l] += v[i + 1, l] * (c1 - a * c)
            lane[8, l] += v[i + 1, l] * (c2 - a * (3.0 * c1 - 2.0 * a * c))
            lane[4, l], lane[5, l], lane[6, l] = c, c1, c2
    for i in range(n, 0, -1):
        for l in lanes:
            y = (u[i, l] - e[i, l] * u[i + 1, l]) * v[i, l]
            u[i, l] = y
            lane[9, l] += y * y
    for l in lanes:
        rss1 = 2.0 * w[l] * w[l] * lane[3, l] / lane[0, l]
        rss2 = w[l] * w[l] * (2.0 * lane[3, l] - 6.0 * w[l] * lane[9, l]) / lane[0, l]
        free1 = w[l] * (lane[2, l] + w[l] * lane[7, l]) / lane[1, l]
        free2 = w[l] * w[l] * (2.0 * lane[7, l] + w[l] * lane[8, l]) / lane[1, l]
        first[l] = rss1 - 2.0 * free1
        second[l] = first[l] + rss2 - rss1 * rss1 - 2.0 * (free2 - free1 * free1)


@kernel()
def _local_minimum(grid: Array, l: int, rank: int) -> int:
    """Position of lane l's local minimum number `rank` on the grid, -1 where there are fewer (or NaN)."""
    for i in range(GRID):
        if i > 0 and not grid[i, l] <= grid[i - 1, l]:
            continue
        if (i < GRID - 1 and not grid[i, l] < grid[i + 1, l]) or not grid[i, l] < math.inf:
            continue
        if rank == 0:
            return i
        rank -= 1
    return -1


@kernel()
def _search(yy: Array, samples: Array, work: Work, best: Array, out: Array) -> None:
    """Log of each lane's dimensionless minimiser into `out` (V,): grid, then every local minimum by Newton."""
    grid, lane, lanes = work.grid, work.lane, range(yy.size)
    w, x, low, high, value, moving = lane[10], lane[11], lane[12], lane[13], lane[14], lane[15]
    first, second = lane[16], lane[17]
    for i in range(GRID):
        weight = exp(LOWEST + i * STEP)
        for l in lanes:
            w[l] = weight
        score(w, yy, samples, work, grid[i])
    for rank in range(GRID):
        running = 0
        for l in lanes:
            i = _local_minimum(grid, l, rank)
            moving[l] = 1.0 if i >= 0 else 0.0
            running += i >= 0
            low[l], high[l] = LOWEST + max(i - 1, 0) * STEP, LOWEST + min(i + 1, GRID - 1) * STEP
            x[l], value[l] = LOWEST + i * STEP, math.inf
            if 0 < i < GRID - 1:  # vertex of the parabola through three scores
                a, b, c = grid[i - 1, l], grid[i, l], grid[i + 1, l]
                shift = 0.5 * STEP * (a - c) / (a - 2.0 * b + c)
                x[l] += shift if abs(shift) < STEP else 0.0
        if running == 0:
            break
        for _ in range(NEWTON_STEPS):
            for l in lanes:
                w[l] = exp(x[l])
            score(w, yy, samples, work, grid[GRID])
            slope(w, work, first, second)
            running = 0
            for l in lanes:
                if moving[l] == 0.0:  # a finished lane is frozen: its bits do not depend on its neighbours
                    continue
                value[l] = grid[GRID, l]
                if first[l] > 0.0:
                    high[l] = x[l]
                else:
                    low[l] = x[l]
                target = x[l] - first[l] / second[l] if second[l] > 0.0 else math.inf
                if not low[l] <= target <= high[l]:
                    target = 0.5 * (low[l] + high[l])
                moving[l] = 1.0 if abs(target - x[l]) > NEWTON_STOP else 0.0
                running += moving[l] > 0.0
                x[l] = target
            if running == 0:
                break
        for l in lanes:
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
    bound: Array,
) -> None:
    """
    Laplacian weight of each voxel with the smallest GCV: over a range of weights, or over a given array of them.

    Parameters
    ----------
    G : M'M packed, first n(n+1)/2 rows of (.., V). rhs : M'y, (n, V). mu : (3, V) mm. yy : y'y, (V,).
        samples : number of valid samples, (V,). Functions grouped by parity class; none of these is changed.
    t : `tables` of the order. weights : candidates in 1/mm, any order, the first wins a tie; empty: the minimiser with
        weight * (mu1 mu2 mu3)^(1/3) in [5e-8, 5e-2]. work : `workspace(n, V)`.
    weight : (V,), written, 1/mm; NaN where no weight has a finite score.
    bound : (V,), written: 1 where the weight is the smallest or largest of its range or of several candidates, else 0.
    """
    n, lanes, lane = rhs.shape[0], range(yy.size), work.lane
    w, value, best, length, f = lane[10], lane[14], lane[18], lane[19], work.grid
    for r in range(n * (n + 1) // 2):
        for l in lanes:
            work.W[r, l] = G[r, l]
    laplacian.factors(mu, f)
    for l in lanes:  # L in units of the mean scale: weights are then dimensionless
        length[l] = exp(log(mu[0, l] * mu[1, l] * mu[2, l]) / 3.0)
        for k in range(6):
            f[k, l] /= length[l]
        best[l], weight[l], bound[l] = math.inf, math.nan, 0.0
    factor_laplacian(f, rhs, t, work.C, work.z, lane)
    whiten(work.C, t, work.W)
    tridiagonalise(work.W, work.d, work.e, work.z, work.v, work.x, work.p, lane)
    smallest, largest = LOWEST, LOWEST + (GRID - 1) * STEP
    if weights.size == 0:
        _search(yy, samples, work, best, weight)
    else:
        smallest, largest = math.inf, -math.inf
        for k in range(weights.size):
            smallest, largest = min(smallest, weights[k]), max(largest, weights[k])
            for l in lanes:
                w[l] = weights[k] * length[l]
            score(w, yy, samples, work, value)
            for l in lanes:
                if value[l] < best[l]:
                    best[l], weight[l] = value[l], weights[k]
    for l in lanes:
        if weights.size != 1 and (weight[l] == smallest or weight[l] == largest):
            bound[l] = 1.0
        if weights.size == 0:
            weight[l] = exp(weight[l]) / length[l] if best[l] < math.inf else math.nan
