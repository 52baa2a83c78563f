"""Generalised cross-validation of the Laplacian weight: blocks of voxels [row][V], functions
grouped by parity class.

With L = C C', W = C^-1 M'M C^-T = Q T Q' (T tridiagonal) and z = Q'C^-1 M'y, a weight w costs O(n):
RSS = y'y - z'x - w x'x with (T + w I) x = z, samples - tr S = samples - n + w tr (T + w I)^-1, and
GCV = RSS / (samples - tr S)^2 [Craven & Wahba 1979; Fick 2016, Eq. 15]. Nothing needs M'M to be
regular.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import lanes, laplacian
from ._jit import CONTRACT, kernel
from .lanes import WIDTH, copysign, every, pick, rows, sqrt
from .linalg import block_copy, exp, log
from .ordering import class_bounds

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

LOWEST, HIGHEST = (
    math.log(5e-8),
    math.log(5e-2),
)  # of the dimensionless weight, weight * (mu1 mu2 mu3)^(1/3)
GRID = 24
STEP = (HIGHEST - LOWEST) / (GRID - 1)
ITERATIONS = 60  # 4 to 6 are usual; bisection alone would take 27
STOP = 1e-8  # in log weight; the step that passes it leaves about its square
NOISE_FLOOR = 1e-15  # of RSS / y'y: below, rounding decides


class Problem(NamedTuple):
    """Normal equations of V voxels without a Laplacian, functions grouped by parity class."""

    G: Array  # (.., V) M'M, packed in the first n(n+1)/2 rows
    rhs: Array  # (n, V) M'y
    mu: Array  # (3, V) mm
    yy: Array  # (1, V) y'y
    samples: Array  # (1, V) how many are valid


class GcvTables(NamedTuple):
    """Bounds of the parity classes, and the map from factors to L."""

    bounds: IntArray
    lap: laplacian.LaplacianTables


class Work(NamedTuple):
    """Scratch of `choose`."""

    W: Array  # packed: M'M, whitened, used up by the reflections
    C: Array  # packed: factor of L, inverse diagonal
    T: Array  # (6, n + 2, V): diagonal, e[k] = T[k, k-1], z, and three vectors
    f: Array  # (6, V) `laplacian.factors`
    grid: Array  # (GRID, V)
    lane: Array  # (15, V)


@lru_cache
def tables(order: int) -> GcvTables:
    """Tables of `choose` at an even order."""
    return GcvTables(class_bounds(order), laplacian.tables(order))


def workspace(n: int, V: int) -> Work:
    """Scratch for n functions and V lanes."""
    m = n * (n + 1) // 2
    return Work(*(lanes.empty(*size, V) for size in ((m,), (m,), (6, n + 2), (6,), (GRID,), (15,))))


# ---- whitening and tridiagonalisation


@kernel(fastmath=CONTRACT)
def factor_laplacian(f: Array, t: GcvTables, C: Array, z: Array) -> None:
    """C = Cholesky factor of L from its `laplacian.factors` (only the classes' blocks are set); z
    <- C^-1 z.
    """
    for l in range(0, C.shape[1], WIDTH):
        c, a = rows(C, l), rows(f, l)
        x = rows(z, l)
        for k in range(t.bounds.size - 1):
            for i in range(t.bounds[k], t.bounds[k + 1]):
                for j in range(t.bounds[k], i + 1):
                    c[i * (i + 1) // 2 + j] = every(0.0)
        for e in range(t.lap.target.size):
            total = every(0.0)
            for term in range(t.lap.pointer[e], t.lap.pointer[e + 1]):
                total += t.lap.coefficient[term] * a[t.lap.factor[term]]
            c[t.lap.target[e]] = total
        for k in range(t.bounds.size - 1):
            s = t.bounds[k]
            for i in range(s, t.bounds[k + 1]):
                r = i * (i + 1) // 2
                for j in range(s, i + 1):
                    q = j * (j + 1) // 2
                    total = c[r + j]
                    for m in range(s, j):
                        total -= c[r + m] * c[q + m]
                    c[r + j] = total * c[q + j] if j < i else 1.0 / sqrt(total)
                total = x[i]
                for m in range(s, i):
                    total -= c[r + m] * x[m]
                x[i] = total * c[r + i]


@kernel(fastmath=CONTRACT)
def whiten(C: Array, t: GcvTables, W: Array) -> None:
    """W <- C^-1 W C^-T in place, packed, C from `factor_laplacian`.

    Bordering: with row (c, delta) of C and the leading part U of the result known, row g of W
    becomes w = (C^-1 g - U c) / delta, and its diagonal ((gamma - c C^-1 g) / delta - c w) / delta.
    """
    for l in range(0, W.shape[1], WIDTH):
        w, c = rows(W, l), rows(C, l)
        for k in range(t.bounds.size - 1):
            s = t.bounds[k]
            for i in range(s, t.bounds[k + 1]):
                r = i * (i + 1) // 2
                for b in range(k + 1):  # C^-1 g, class by class
                    first = t.bounds[b]
                    for j in range(first, min(t.bounds[b + 1], i)):
                        q, total = j * (j + 1) // 2, w[r + j]
                        for m in range(first, j):
                            total -= c[q + m] * w[r + m]
                        w[r + j] = total * c[q + j]
                total = w[r + i]
                for m in range(s, i):
                    total -= c[r + m] * w[r + m]
                w[r + i] = total * c[r + i]
                for j in range(
                    i + 1
                ):  # row j of U: what the lower triangle has of it, then down column j
                    q, total = j * (j + 1) // 2, w[r + j]
                    for m in range(s, j):
                        total -= c[r + m] * w[q + m]
                    q = max(s, j) * (max(s, j) + 1) // 2 + j
                    for m in range(max(s, j), i):
                        total -= c[r + m] * w[q]
                        q += m + 1
                    w[r + j] = total * c[r + i]  # the diagonal is divided twice


@kernel(fastmath=CONTRACT)
def tridiagonalise(W: Array, T: Array) -> None:
    """Householder from the last row up: diagonal T[0], below it T[1] (zero at both ends); T[2] <-
    Q'T[2].

    T[3] and T[4] hold the rank-two update W -= v w' + w v' that the next step applies while it
    multiplies: each step passes over the triangle once. W is used up.
    """
    n = T.shape[1] - 2
    for l in range(0, W.shape[1], WIDTH):
        d, e = rows(T[0], l), rows(T[1], l)
        z, v = rows(T[2], l), rows(T[3], l)
        w, p = rows(T[4], l), rows(T[5], l)
        a, zero = rows(W, l), every(0.0)
        e[n] = e[n + 1] = zero
        for i in range(n):
            v[i] = w[i] = zero
        for k in range(n - 1, -1, -1):
            u = k * (k + 1) // 2  # row k, soon the vector of its reflection
            vk, wk = v[k], w[k]
            square = zero
            d[k] = a[u + k] - 2.0 * vk * wk
            if k == 0:
                e[0] = zero
                break
            for j in range(k):
                x = a[u + j] - vk * w[j] - wk * v[j]
                a[u + j] = x
                square += x * x
            last = a[u + k - 1]
            e[k] = -copysign(sqrt(square), last)
            f = square - last * e[k]
            f = pick(
                f, 1e-150, 1.0 / f, zero
            )  # nothing left to reflect, and its square must be finite
            a[u + k - 1] = last - e[k]
            for i in range(k):
                r, vi = i * (i + 1) // 2, v[i]
                wi, ui = w[i], a[u + i]
                x = a[r + i] - 2.0 * vi * wi
                a[r + i] = x
                total = x * ui
                for j in range(i):
                    x = a[r + j] - vi * w[j] - wi * v[j]
                    a[r + j] = x
                    total += x * a[u + j]
                    p[j] += x * ui
                p[i] = total
            half, dot = zero, zero
            for i in range(k):
                half += p[i] * a[u + i]
                dot += z[i] * a[u + i]
            half *= 0.5 * f * f
            dot *= f
            for i in range(k):
                x = a[u + i]
                v[i], w[i] = x, f * p[i] - half * x
                z[i] -= dot * x


# ---- the functional and its minimiser


@kernel(fastmath=CONTRACT)
def score(w: Array, yy: Array, samples: Array, T: Array, lane: Array, out: Array) -> None:
    """GCV score RSS / (samples - tr S)^2 at one dimensionless weight a lane: w, yy, samples, out
    (1, V).

    Leaves, for `slope`, inverse pivots and solution in rows 1 to n of T[3] and T[4], and in rows 0
    to 2 of `lane` the trace of the inverse, RSS and samples - tr S.
    """
    n = T.shape[1] - 2
    for l in range(0, w.shape[1], WIDTH):
        d, e = rows(T[0], l), rows(T[1], l)
        z, v = rows(T[2], l), rows(T[3], l)
        x = rows(T[4], l)
        weight, yy_l = rows(w, l)[0], rows(yy, l)[0]
        state = rows(lane, l)
        # c: derivative of the pivot by w
        inverse = y = every(0.0)
        c = trace = every(0.0)
        zx = xx = every(0.0)
        x[n + 1] = inverse
        for i in range(n):
            g = e[i] * inverse
            c = 1.0 + g * g * c
            y = z[i] - g * y
            inverse = 1.0 / (d[i] + weight - g * e[i])
            v[i + 1], x[i + 1] = inverse, y
            trace += c * inverse
            zx += y * y * inverse
        for i in range(n, 0, -1):
            y = (x[i] - e[i] * x[i + 1]) * v[i]
            x[i] = y
            xx += y * y
        rss, least = yy_l - zx - weight * xx, NOISE_FLOOR * yy_l
        rss = pick(least, rss, least, rss)
        free = rows(samples, l)[0] - n + weight * trace
        state[0], state[1] = trace, rss
        state[2] = free
        rows(out, l)[0] = rss / (free * free)


@kernel(fastmath=CONTRACT)
def slope(w: Array, T: Array, lane: Array, out: Array) -> None:
    """Derivative of log GCV by log w into out (1, V), `score` just taken there; RSS' = 2 w x'(T + w
    I)^-1 x.
    """
    for l in range(0, w.shape[1], WIDTH):
        e, v = rows(T[1], l), rows(T[3], l)
        x, weight = rows(T[4], l), rows(w, l)[0]
        state = rows(lane, l)
        # c, c1: derivatives of the pivot by w
        y = inverse = every(0.0)
        c = c1 = every(0.0)
        change = square = every(0.0)
        for i in range(T.shape[1] - 2):
            g = e[i] * inverse
            y = x[i + 1] - g * y
            c1 = g * g * (c1 - 2.0 * inverse * c * c)
            c = 1.0 + g * g * c
            inverse = v[i + 1]
            change += inverse * (c1 - inverse * c * c)
            square += y * y * inverse
        free = weight * (state[0] + weight * change)
        rows(out, l)[0] = 2.0 * weight * weight * square / state[1] - 2.0 * free / state[2]


@kernel()
def _local_minimum(grid: Array, l: int, rank: int) -> int:
    """Position of lane l's local minimum number `rank` on the grid, -1 where there are fewer (or
    NaN).
    """
    for i in range(GRID):
        falls = i == 0 or grid[i, l] <= grid[i - 1, l]
        if falls and grid[i, l] < math.inf and (i == GRID - 1 or grid[i, l] < grid[i + 1, l]):
            if rank == 0:
                return i
            rank -= 1
    return -1


@kernel()
def _minimise(rank: int, yy: Array, samples: Array, work: Work) -> int:
    """Secant steps on the slope, inside the grid's bracket, at every lane's local minimum number
    `rank`.

    Leaves log weight and score in lane[5] and lane[6] (inf where a lane has fewer minima); returns
    how many have one.
    """
    grid, lane = work.grid, work.lane
    V = range(yy.shape[1])
    w, latest = lane[3:4], lane[4:5]
    first = lane[14:15]
    x, value = lane[5], lane[6]
    low, high = lane[7], lane[8]
    step, before = lane[9], lane[10]
    curve = lane[11]
    found = 0
    for l in V:
        i = _local_minimum(grid, l, rank)
        found += i >= 0
        step[l], value[l] = 1.0 if i >= 0 else 0.0, math.inf
        curve[l], x[l] = 0.0, LOWEST + i * STEP
        low[l], high[l] = LOWEST + max(i - 1, 0) * STEP, LOWEST + min(i + 1, GRID - 1) * STEP
        if (
            0 < i < GRID - 1 and grid[i - 1, l] + grid[i + 1, l] < math.inf
        ):  # start at the vertex of their parabola
            bend = grid[i - 1, l] - 2.0 * grid[i, l] + grid[i + 1, l]
            x[l] += 0.5 * STEP * (grid[i - 1, l] - grid[i + 1, l]) / bend
            curve[l] = bend / (STEP * STEP * grid[i, l])
    running = found
    for iteration in range(ITERATIONS):
        if running == 0:
            break
        for l in V:
            w[0, l] = exp(x[l])
        score(w, yy, samples, work.T, lane, latest)
        slope(w, work.T, lane, first)
        running = 0
        for l in V:
            if (
                abs(step[l]) <= STOP
            ):  # a finished lane is frozen: its bits do not depend on its neighbours
                continue
            value[l] = latest[0, l]
            if first[0, l] > 0.0:
                high[l] = x[l]
            else:
                low[l] = x[l]
            if iteration > 0:
                curve[l] = (first[0, l] - before[l]) / step[l]
            target = x[l] - first[0, l] / curve[l] if curve[l] > 0.0 else math.inf
            if not low[l] <= target <= high[l]:
                target = 0.5 * (low[l] + high[l])
            step[l], before[l] = target - x[l], first[0, l]
            x[l] = target
            running += abs(step[l]) > STOP
    return found


@kernel()
def choose(
    problem: Problem, t: GcvTables, weights: Array, work: Work, weight: Array, bound: IntArray
) -> None:
    """Laplacian weight of each voxel with the smallest GCV: over a range of weights, or over a
    given array of them.

    Parameters
    ----------
    problem : is not changed. t : `tables` of the order.
    weights : candidates in 1/mm, any order, the first wins a tie; empty:
        the minimiser with weight * (mu1 mu2 mu3)^(1/3) in [5e-8, 5e-2]. work : `workspace(n, V)`.
    weight : (1, V), written, 1/mm; NaN where no weight has a finite score.
    bound : (V,), written: 1 where the weight is the smallest or largest of its range or of several
        candidates, else 0.
    """
    mu, yy = problem.mu, problem.yy
    samples, V = problem.samples, range(yy.shape[1])
    grid, f = work.grid, work.f
    lane = work.lane
    w, latest = lane[3:4], lane[4:5]
    x, value = lane[5], lane[6]
    best, length = lane[12], lane[13]
    block_copy(problem.G, work.W, work.W.shape[0])
    block_copy(problem.rhs, work.T[2], problem.rhs.shape[0])
    laplacian.factors(mu, f)
    for l in V:  # L in units of the mean scale: weights are then dimensionless
        length[l] = exp(log(mu[0, l] * mu[1, l] * mu[2, l]) / 3.0)
        for k in range(6):
            f[k, l] /= length[l]
        best[l], weight[0, l] = math.inf, math.nan
        bound[l] = 0
    factor_laplacian(f, t, work.C, work.T[2])
    whiten(work.C, t, work.W)
    tridiagonalise(work.W, work.T)
    if weights.size == 0:
        for k in range(GRID):
            for l in V:
                w[0, l] = exp(LOWEST + k * STEP)
            score(w, yy, samples, work.T, lane, grid[k : k + 1])
        for rank in range(GRID):
            if _minimise(rank, yy, samples, work) == 0:
                return
            for l in V:
                if value[l] < best[l]:
                    best[l], weight[0, l] = value[l], exp(x[l]) / length[l]
                    bound[l] = 1 if x[l] <= LOWEST or x[l] >= LOWEST + (GRID - 1) * STEP else 0
    smallest, largest = math.inf, -math.inf
    for k in range(weights.size):
        smallest, largest = min(smallest, weights[k]), max(largest, weights[k])
        for l in V:
            w[0, l] = weights[k] * length[l]
        score(w, yy, samples, work.T, lane, latest)
        for l in V:
            if latest[0, l] < best[l]:
                best[l], weight[0, l] = latest[0, l], weights[k]
    for l in V:
        if weights.size > 1 and (weight[0, l] == smallest or weight[0, l] == largest):
            bound[l] = 1


@kernel()
def bound_below(
    yy: Array, samples: Array, S0: Array, work: Work, weight: Array, bound: IntArray
) -> None:
    """Raise weights that `choose` has just found to n sigma^2 / (S0^2 L_00), sigma^2 = RSS /
    (samples - tr S), S0 (1, V) of the Gaussian S0 e_0, and set `bound` there.

    A weight says that the deviation's roughness c'Lc, n coefficients of variance sigma^2 / weight
    in the basis of L, is n sigma^2 / weight. Roughness is 16 pi^4 times the integral of r^4 P^2
    [Fick 2016, Eq. 10]: more than the Gaussian's own, S0^2 L_00, puts P where nothing diffuses to.
    Samples cannot deny it beyond the largest q and between the shells. Without noise the bound is
    0.
    """
    lane, n = work.lane, work.T.shape[1] - 2
    for l in range(weight.size):
        lane[3, l] = weight[0, l] * lane[13, l]
    score(lane[3:4], yy, samples, work.T, lane, lane[4:5])
    for l in range(weight.size):
        square = lane[1, l] / lane[2, l]
        least = n * square * (work.C[0, l] / S0[0, l]) ** 2 / lane[13, l]  # C[0] = L_00^(-1/2)
        if weight[0, l] < least:
            weight[0, l], bound[l] = least, 1
