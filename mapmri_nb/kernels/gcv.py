"""
Generalised cross-validation of the Laplacian weight: blocks of voxels [row][V], functions grouped by parity class.

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
from .linalg import block_copy, block_set, exp, log
from .ordering import class_bounds

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

LOWEST, HIGHEST = math.log(5e-8), math.log(5e-2)  # of the dimensionless weight, weight * (mu1 mu2 mu3)^(1/3)
GRID = 24
STEP = (HIGHEST - LOWEST) / (GRID - 1)
ITERATIONS = 60  # 4 to 6 are usual; bisection alone would take 27
STOP = 1e-8  # in log weight; the step that passes it leaves about its square
NOISE_FLOOR = 1e-15  # of RSS / y'y: below, rounding decides


class GcvTables(NamedTuple):
    """Bounds of the parity classes, and the map from factors to L."""

    bounds: IntArray
    lap: laplacian.LaplacianTables


class Work(NamedTuple):
    """Scratch of `choose`."""

    W: Array  # packed: M'M, whitened, used up by the reflections
    C: Array  # packed: factor of L, inverse diagonal
    T: Array  # (6, n + 2, V): diagonal, e[k] = T[k, k-1], z, and three vectors
    grid: Array  # (GRID, V)
    lane: Array  # (19, V)


@lru_cache
def tables(order: int) -> GcvTables:
    """Tables of `choose` at an even order."""
    return GcvTables(class_bounds(order), laplacian.tables(order))


@kernel()
def workspace(n: int, V: int) -> Work:
    """Scratch for n functions and V lanes."""
    m = n * (n + 1) // 2
    return Work(np.empty((m, V)), np.empty((m, V)), np.empty((6, n + 2, V)), np.empty((GRID, V)), np.empty((19, V)))


# ---- whitening and tridiagonalisation --------------------------------------------------------------------------------


@kernel(fastmath=BLOCK_MATH)
def _subtract(A: Array, r: int, C: Array, c: int, b: int, m: int, step: int) -> None:
    """A[r] -= sum over k < m of C[c + k] A[b_k], b_k from b along a row (step 0) or down a packed column (row + 1)."""
    grow, step = min(step, 1), max(step, 1)
    for k in range(c, c + m - 3, 4):
        b1 = b + step
        b2 = b1 + step + grow
        b3 = b2 + step + 2 * grow
        for l in range(A.shape[1]):
            A[r, l] -= C[k, l] * A[b, l] + C[k + 1, l] * A[b1, l] + C[k + 2, l] * A[b2, l] + C[k + 3, l] * A[b3, l]
        b = b3 + step + 3 * grow
        step += 4 * grow
    for k in range(c + m // 4 * 4, c + m):
        for l in range(A.shape[1]):
            A[r, l] -= C[k, l] * A[b, l]
        b += step
        step += grow


@kernel(fastmath=BLOCK_MATH)
def factor_laplacian(f: Array, t: GcvTables, C: Array, z: Array) -> None:
    """C = Cholesky factor of L from its `laplacian.factors` (only the classes' blocks are set); z <- C^-1 z."""
    lanes, along = range(C.shape[1]), t.bounds[0]  # 0, but a literal would compile _subtract once more
    for k in range(t.bounds.size - 1):
        for i in range(t.bounds[k], t.bounds[k + 1]):
            block_set(C[i * (i + 1) // 2 + t.bounds[k] : (i + 1) * (i + 2) // 2], 0.0)
    for e in range(t.lap.target.size):
        r = t.lap.target[e]
        for term in range(t.lap.pointer[e], t.lap.pointer[e + 1]):
            k, value = t.lap.factor[term], t.lap.coefficient[term]
            for l in lanes:
                C[r, l] += value * f[k, l]
    for k in range(t.bounds.size - 1):
        s = t.bounds[k]
        for i in range(s, t.bounds[k + 1]):
            r = i * (i + 1) // 2
            for j in range(s, i + 1):
                q = j * (j + 1) // 2
                _subtract(C, r + j, C, r + s, q + s, j - s, along)
                for l in lanes:
                    C[r + j, l] = C[r + j, l] * C[q + j, l] if j < i else 1.0 / math.sqrt(C[r + j, l])
            _subtract(z, i, C, r + s, s, i - s, along)
            for l in lanes:
                z[i, l] *= C[r + i, l]


@kernel(fastmath=BLOCK_MATH)
def whiten(C: Array, t: GcvTables, W: Array) -> None:
    """
    W <- C^-1 W C^-T in place, packed, C from `factor_laplacian`.

    Bordering: with row (c, delta) of C and the leading part U of the result known, row g of W becomes
    w = (C^-1 g - U c) / delta, and its diagonal ((gamma - c C^-1 g) / delta - c w) / delta.
    """
    lanes, along = range(W.shape[1]), t.bounds[0]
    for k in range(t.bounds.size - 1):
        s = t.bounds[k]
        for i in range(s, t.bounds[k + 1]):
            r = i * (i + 1) // 2
            for b in range(k + 1):  # C^-1 g, class by class
                first = t.bounds[b]
                for j in range(first, min(t.bounds[b + 1], i)):
                    q = j * (j + 1) // 2
                    _subtract(W, r + j, C, q + first, r + first, j - first, along)
                    for l in lanes:
                        W[r + j, l] *= C[q + j, l]
            _subtract(W, r + i, C, r + s, r + s, i - s, along)
            for j in range(i + 1):  # row j of U: what the lower triangle has of it, then down column j
                m = max(s, j)
                if j == i:  # the diagonal is divided twice
                    for l in lanes:
                        W[r + i, l] *= C[r + i, l]
                _subtract(W, r + j, C, r + s, j * (j + 1) // 2 + s, m - s, along)
                _subtract(W, r + j, C, r + m, m * (m + 1) // 2 + j, i - m, m + 1)
                for l in lanes:
                    W[r + j, l] *= C[r + i, l]


@kernel(fastmath=BLOCK_MATH)
def tridiagonalise(W: Array, T: Array, row: Array) -> None:
    """
    Householder from the last row up: diagonal T[0], below it T[1] (zero at both ends); T[2] <- Q'T[2].

    T[3] and T[4] hold the rank-two update W -= v w' + w v' that the next step applies while it multiplies: each step
    passes over the triangle once. W is used up; rows 0 to 2 of `row` are scratch.
    """
    d, e, z, v, w, p = T[0], T[1], T[2], T[3], T[4], T[5]
    n, lanes = T.shape[1] - 2, range(T.shape[2])
    block_set(e[n:], 0.0)
    block_set(v, 0.0)
    block_set(w, 0.0)
    for k in range(n - 1, -1, -1):
        u = k * (k + 1) // 2  # row k, soon the vector of its reflection
        last = max(u + k - 1, 0)
        block_set(row[:3], 0.0)
        for j in range(k, -1, -1):
            for l in lanes:
                x = W[u + j, l] - v[k, l] * w[j, l] - w[k, l] * v[j, l]
                W[u + j, l] = x
                row[0, l] = row[0, l] + x * x if j < k else 0.0
        for l in lanes:
            d[k, l] = W[u + k, l]
            e[k, l] = -math.copysign(math.sqrt(row[0, l]), W[last, l])
            half = row[0, l] - W[last, l] * e[k, l]
            row[0, l] = 1.0 / half if half > 1e-150 else 0.0  # nothing left to reflect, and its square must be finite
            W[last, l] -= e[k, l]
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
def score(w: Array, yy: Array, samples: Array, T: Array, lane: Array, out: Array) -> None:
    """
    GCV score RSS / (samples - tr S)^2 at one dimensionless weight a lane, into `out` (V,).

    Leaves, for `slope`, inverse pivots and solution in rows 1 to n of T[3] and T[4], and in rows 0 to 2 of `lane`
    the trace of the inverse, RSS and samples - tr S.
    """
    d, e, z, v, x = T[0], T[1], T[2], T[3], T[4]
    n, lanes = T.shape[1] - 2, range(T.shape[2])
    block_set(lane[:4], 0.0)
    block_set(v[:1], 0.0)
    block_set(x[:1], 0.0)
    block_set(x[n + 1 :], 0.0)
    for i in range(n):
        for l in lanes:
            g = e[i, l] * v[i, l]
            c = 1.0 + g * g * lane[3, l]  # derivative of the pivot by w
            inverse = 1.0 / (d[i, l] + w[l] - g * e[i, l])
            y = z[i, l] - g * x[i, l]
            v[i + 1, l], x[i + 1, l], lane[3, l] = inverse, y, c
            lane[0, l] += c * inverse
            lane[1, l] += y * y * inverse  # z'x
    for i in range(n, 0, -1):
        for l in lanes:
            y = (x[i, l] - e[i, l] * x[i + 1, l]) * v[i, l]
            x[i, l] = y
            lane[2, l] += y * y  # x'x
    for l in lanes:
        lane[1, l] = max(yy[l] - lane[1, l] - w[l] * lane[2, l], NOISE_FLOOR * yy[l])
        lane[2, l] = samples[l] - n + w[l] * lane[0, l]
        out[l] = lane[1, l] / (lane[2, l] * lane[2, l])


@kernel(fastmath=BLOCK_MATH)
def slope(w: Array, T: Array, lane: Array, out: Array) -> None:
    """Derivative of log GCV by log w, `score` just taken there; RSS' = 2 w x'(T + w I)^-1 x."""
    e, v, x, u = T[1], T[3], T[4], T[5]
    block_set(u[:1], 0.0)
    block_set(lane[3:7], 0.0)
    for i in range(T.shape[1] - 2):
        for l in range(w.size):
            g, c, c1 = e[i, l] * v[i, l], lane[3, l], lane[4, l]
            y = x[i + 1, l] - g * u[i, l]
            c1 = g * g * (c1 - 2.0 * v[i, l] * c * c)  # second derivative of the pivot by w
            c = 1.0 + g * g * c
            u[i + 1, l], lane[3, l], lane[4, l] = y, c, c1
            lane[5, l] += v[i + 1, l] * (c1 - v[i + 1, l] * c * c)
            lane[6, l] += y * y * v[i + 1, l]
    for l in range(w.size):
        free = w[l] * (lane[0, l] + w[l] * lane[5, l])
        out[l] = 2.0 * w[l] * w[l] * lane[6, l] / lane[1, l] - 2.0 * free / lane[2, l]


@kernel()
def _local_minimum(grid: Array, l: int, rank: int) -> int:
    """Position of lane l's local minimum number `rank` on the grid, -1 where there are fewer (or NaN)."""
    for i in range(GRID):
        falls = i == 0 or grid[i, l] <= grid[i - 1, l]
        if falls and grid[i, l] < math.inf and (i == GRID - 1 or grid[i, l] < grid[i + 1, l]):
            if rank == 0:
                return i
            rank -= 1
    return -1


@kernel()
def _minimise(rank: int, yy: Array, samples: Array, work: Work) -> int:
    """
    Secant steps on the slope, inside the grid's bracket, at every lane's local minimum number `rank`.

    Leaves log weight and score in lane[8] and lane[9] (inf where a lane has fewer minima); returns how many have one.
    """
    grid, lane, lanes = work.grid, work.lane, range(yy.size)
    w, x, value, low, high, step = lane[7], lane[8], lane[9], lane[10], lane[11], lane[12]
    first, before, curve, latest = lane[13], lane[14], lane[15], lane[16]
    found = 0
    for l in lanes:
        i = _local_minimum(grid, l, rank)
        found += i >= 0
        step[l], value[l], curve[l], x[l] = (1.0 if i >= 0 else 0.0), math.inf, 0.0, LOWEST + i * STEP
        low[l], high[l] = LOWEST + max(i - 1, 0) * STEP, LOWEST + min(i + 1, GRID - 1) * STEP
        if 0 < i < GRID - 1 and grid[i - 1, l] + grid[i + 1, l] < math.inf:  # start at the vertex of their parabola
            bend = grid[i - 1, l] - 2.0 * grid[i, l] + grid[i + 1, l]
            x[l] += 0.5 * STEP * (grid[i - 1, l] - grid[i + 1, l]) / bend
            curve[l] = bend / (STEP * STEP * grid[i, l])
    running = found
    for iteration in range(ITERATIONS):
        if running == 0:
            break
        for l in lanes:
            w[l] = exp(x[l])
        score(w, yy, samples, work.T, lane, latest)
        slope(w, work.T, lane, first)
        running = 0
        for l in lanes:
            if abs(step[l]) <= STOP:  # a finished lane is frozen: its bits do not depend on its neighbours
                continue
            value[l] = latest[l]
            if first[l] > 0.0:
                high[l] = x[l]
            else:
                low[l] = x[l]
            if iteration > 0:
                curve[l] = (first[l] - before[l]) / step[l]
            target = x[l] - first[l] / curve[l] if curve[l] > 0.0 else math.inf
            if not low[l] <= target <= high[l]:
                target = 0.5 * (low[l] + high[l])
            step[l], before[l], x[l] = target - x[l], first[l], target
            running += abs(step[l]) > STOP
    return found


@kernel()
def choose(
    G: Array, rhs: Array, mu: Array, yy: Array, samples: Array, t: GcvTables, weights: Array,
    work: Work, weight: Array, bound: IntArray,
) -> None:  # fmt: skip
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
    lanes, lane, grid = range(yy.size), work.lane, work.grid
    w, x, value, best, length = lane[7], lane[8], lane[9], lane[17], lane[18]
    block_copy(G, work.W, work.W.shape[0])
    block_copy(rhs, work.T[2], rhs.shape[0])
    laplacian.factors(mu, grid)
    for l in lanes:  # L in units of the mean scale: weights are then dimensionless
        length[l] = exp(log(mu[0, l] * mu[1, l] * mu[2, l]) / 3.0)
        for k in range(6):
            grid[k, l] /= length[l]
        best[l], weight[l], bound[l] = math.inf, math.nan, 0
    factor_laplacian(grid, t, work.C, work.T[2])
    whiten(work.C, t, work.W)
    tridiagonalise(work.W, work.T, lane)
    if weights.size == 0:
        for k in range(GRID):
            for l in lanes:
                w[l] = exp(LOWEST + k * STEP)
            score(w, yy, samples, work.T, lane, grid[k])
        for rank in range(GRID):
            if _minimise(rank, yy, samples, work) == 0:
                return
            for l in lanes:
                if value[l] < best[l]:
                    best[l], weight[l] = value[l], exp(x[l]) / length[l]
                    bound[l] = 1 if x[l] <= LOWEST or x[l] >= LOWEST + (GRID - 1) * STEP else 0
    smallest, largest = math.inf, -math.inf
    for k in range(weights.size):
        smallest, largest = min(smallest, weights[k]), max(largest, weights[k])
        for l in lanes:
            w[l] = weights[k] * length[l]
        score(w, yy, samples, work.T, lane, value)
        for l in lanes:
            if value[l] < best[l]:
                best[l], weight[l] = value[l], weights[k]
    for l in lanes:
        if weights.size > 1 and (weight[l] == smallest or weight[l] == largest):
            bound[l] = 1
