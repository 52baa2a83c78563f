"""
Global positivity: an interior point over two parity Gram blocks and its certificate, WIDTH voxels in lanes at a time.

The propagator is a Gaussian times p(x), x = r / mu, an even polynomial of degree N with Hermite coefficients c. p = z'Qz with
Q positive semidefinite and z the monomials of degree <= N/2 is nonnegative everywhere [Dela Haije 2020]. Each voxel solves

    minimise 1/2 c'Hc - g'c   subject to   B'c = 1 and p a sum of squares

Letters, for n coefficients; both parities of z have a block of their own, of s rows, e = sum of s (s + 1) / 2:
    c, g, B  (n,)     coefficients in the order of the block kernels; H (n, n) with a ridge; B'c is E(0)
    K        (n, n)   values of the Hermite functions (columns) at n unisolvent points (rows): polynomials enter by values,
                      which makes the Schur complement an entrywise product [Lofberg & Parrilo 2004]
    z_t      (s,)     z at point t, a row of Z
    eta      (n,)     dual unknowns: weights of the points
    Q, M, W  (e,)     Gram matrices, moment matrices M = A eta = sum of eta_t z_t z_t', W = M^-1: packed, i (i + 1) / 2 + j
    A, A*             the moment map (e, n) and its adjoint (n, e): A*(Q) has the values z_t'Q z_t of p

With c0 the minimiser subject to B'c = 1 alone, w = K H^-1 B, P = K H^-1 K' - w w' / (B'H^-1 B), the dual problem is

    minimise 1/2 eta'P eta + eta'K c0   subject to   A eta positive semidefinite;   optimal: P eta + K c0 = A*(Q), Q M = 0

A step towards Q M = mu I (HKM direction) with R = 0 (predictor), then R = mu W - sym(dQ dM W) of that one (corrector):

    (P + S) deta = A*(R) - P eta - K c0,   S_tu = sum over blocks of (z_t'Q z_u) (z_t'W z_u)
    dM = A deta,   dQ = R - Q - sym(Q dM W)

A lane that ended keeps its values while its neighbours go on, so no voxel's answer depends on what lies beside it.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import lanes
from ._jit import CONTRACT, kernel
from .lanes import WIDTH, every, pick, rows, sqrt
from .linalg import block_cholesky, block_copy, block_product, block_set, pad4
from .ordering import class_permutation, hermite_to_monomial, index_table, monomials, n_coef, origin_values, positions

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

# CERTIFIED: optimal; SHIFTED: optimal but for the blend info[3] with the reference polynomial that the certificate
# needed; NOT_CONVERGED: certified, but not to the tolerance asked; NO_FIT: coefficients are NaN
CERTIFIED, SHIFTED, NOT_CONVERGED, NO_FIT = 0, 1, 2, 3
RIDGE = 1e-8  # of tr(H)/n: three shells leave H singular at order 8; moves the objective by less than 1e-6
EPS = 2.220446049250313e-16
INSIDE = 0.98  # of the way to the boundary of the cones
# rows of Work.lane; ACTIVE is 1 while a lane is worked on
ACTIVE, CONVERGED, SCALE, GAP, ITERATIONS, MU, SEARCHES, LOW, HIGH, MARGIN, KEEP, BLEND = range(12)


class Tables(NamedTuple):
    """
    Constants of an order; packed entries (e,) have zeros up to a multiple of four, points too.

    The reference polynomial z'Qz is the inverse of the Gaussian's moment matrices: far inside the cone, E(0) = 1.
    """

    sizes: IntArray  # (2,) of the even and the odd block
    starts: IntArray  # (2,) their first packed entry
    B: Array  # (n,) E(0) of the basis functions
    K: Array  # (n + 2 or more, n) Hermite functions at the points, times the points' weights; then B, and zeros
    Z: Array  # (2, n4, m) z at the points, times the root of the weights
    moments: Array  # (e4, n) A
    values: Array  # (n4, e) A*
    hermite: Array  # (n4, e) coefficients c of z'Qz
    monomial: Array  # (n, n) monomial coefficients of the basis functions (columns)
    gram: NDArray[np.uint64]  # (e,) which monomial the entry z_i z_j is
    times: Array  # (e,) 1 on the diagonal, 2 off it
    share: Array  # (e,) 1 / number of entries of both triangles that make this monomial
    eta: Array  # (n,) dual unknowns that give the Gaussian's moments
    Q: Array  # (e4,) reference Gram matrices
    reference: Array  # (n,) values of the reference polynomial


class Work(NamedTuple):
    """Scratch of WIDTH voxels, arrays [row][WIDTH]; L and `full` serve products and factors."""

    P: Array  # ((n + 3) (n + 4) / 2,) packed, rows n and n + 1 of B and g
    S: Array  # ((n + 1) (n + 2) / 2,) H or P + S, then its Cholesky factor
    Q: Array  # (e4,)
    M: Array
    W: Array
    dQ: Array
    dM: Array
    R: Array
    L: Array
    full: Array  # (3, m m) whole matrices of a block
    T: Array  # see `_whiten`
    U: Array  # (4 m,) products with four points, or a column
    V: Array
    eta: Array  # (n4,)
    deta: Array
    c0: Array  # values K c0 of the minimiser without cones
    gradient: Array  # P eta + K c0
    point: Array  # (n4,) values A*(Q); other vectors
    lane: Array  # (12,) see the row names
    step: Array  # (1,)
    trial: Array  # (1,) a step to be tried
    total: Array  # (1,) sum or factor
    pivot: Array  # (1,) smallest pivot of the last elimination


class Answer(NamedTuple):
    """Results of V voxels, written in place."""

    c: Array  # (n, V) coefficients in the order of the block kernels
    info: Array  # (4, V) relative gap, iterations, margin proved (0: no proof), amount of the reference blended in
    status: IntArray  # (V,) CERTIFIED asks for an answer, anything else leaves the voxel out


def gram_exponents(order: int) -> tuple[IntArray, IntArray]:
    """Exponents of z, even and odd degrees; (1,3), (7,3), (7,13), (22,13), (22,34) rows at orders 2 .. 10."""
    degrees = range(order // 2 + 1)
    z = np.array([(n - i - j, j, i) for n in degrees for i in range(n + 1) for j in range(n + 1 - i)], np.int64)
    odd = z.sum(axis=1) % 2 == 1
    return z[~odd], z[odd]


def _polynomials(x: Array, exponents: IntArray) -> Array:
    """Monomials (n, len(exponents)) at points (n, 3)."""
    return np.asarray(np.prod(x[:, None, :] ** exponents[None, :, :], axis=2))


def _points(order: int) -> tuple[Array, Array]:
    """Points (n, 3) whose values determine p, and weights (n,): greedy choice on spheres, condition below 60."""
    shells = order // 2 + 1
    k = np.arange(3 * shells * (order + 1)) + 0.5
    z, phi = 1.0 - k / len(k), math.pi * (1 + 5**0.5) * k
    half_sphere = np.stack([np.sqrt(1 - z * z) * np.cos(phi), np.sqrt(1 - z * z) * np.sin(phi), z], axis=1)
    radii = 0.8 * math.sqrt(2 * order + 1) * np.cos(math.pi * np.arange(shells) / (order + 1))
    x = np.concatenate([np.zeros((1, 3)), *(r * half_sphere for r in radii)])
    basis = _polynomials(x, monomials(order)) @ hermite_to_monomial(order)
    rest, chosen = basis * np.exp(-0.25 * np.sum(x * x, axis=1))[:, None], []
    for _ in range(n_coef(order)):
        norms = np.sum(rest * rest, axis=1)
        chosen.append(int(np.argmax(norms)))
        q = rest[chosen[-1]] / math.sqrt(norms[chosen[-1]])
        rest = rest - np.outer(rest @ q, q)
    return x[chosen], 1.0 / np.linalg.norm(basis[chosen], axis=1)


@lru_cache
def tables(order: int) -> Tables:
    """Tables of an even order 0 .. 10 (writable arrays, though shared: kernels compile once for these and scratch)."""
    n, blocks, where = n_coef(order), gram_exponents(order), positions(monomials(order))
    C, B = (a[..., class_permutation(order)] for a in (hermite_to_monomial(order), origin_values(index_table(order))))
    x, weight = _points(order)
    K = _polynomials(x, monomials(order)) * weight[:, None] @ C
    gaussian = np.linalg.solve(C.T, B)  # moments of N(0, 1): the integral of Gaussian times p is sum(aB)
    gram, times, Q, pairs = [], [], [], []
    Z = np.zeros((2, n + -n % 4, max(map(len, blocks))))
    for k, block in enumerate(blocks):
        i, j = np.tril_indices(len(block))
        z = _polynomials(x, block) * np.sqrt(weight)[:, None]
        Z[k, :n, : len(block)] = z
        whole = np.array([[where[tuple((a + b).tolist())] for b in block] for a in block], np.int64).reshape(len(block), -1)
        gram.append(whole[i, j])
        times.append(np.where(i == j, 1.0, 2.0))
        Q.append(np.linalg.inv(gaussian[whole])[i, j] / sum(map(len, blocks)))
        pairs.append((z[:, i] * z[:, j]).T)
    sizes = np.array([len(b) for b in blocks], np.int64)
    gram_all, times_all, A = np.concatenate(gram), np.concatenate(times), np.concatenate(pairs)
    Q_all, values = np.concatenate(Q), A.T * times_all
    hermite = np.linalg.inv(C)[:, gram_all] * times_all
    share = 1.0 / np.bincount(gram_all, times_all, n)[gram_all]
    return Tables(
        sizes, np.array([0, sizes[0] * (sizes[0] + 1) // 2]), B.copy(), pad4(np.concatenate([K, B[None], 0.0 * B[None]])), Z, pad4(A), pad4(values), pad4(hermite),
        np.ascontiguousarray(C), gram_all.astype(np.uint64), times_all, share, np.asarray(np.linalg.solve(K.T, B)),
        np.pad(Q_all, (0, -len(Q_all) % 4)), values @ Q_all,
    )  # fmt: skip


def workspace(t: Tables) -> Work:
    """Scratch for an order."""
    n, e, m = len(t.B), len(t.moments), t.Z.shape[2]

    def empty(*shape: int) -> Array:
        return lanes.empty(*shape, WIDTH)

    packed = (empty(e) for _ in range(7))
    P, S, full = empty((n + 3) * (n + 4) // 2), empty((n + 1) * (n + 2) // 2), empty(3, m * m)
    vectors = (empty(len(t.K)) for _ in range(5))
    return Work(P, S, *packed, full, empty(t.K.size), empty(4 * m), empty(4 * m), *vectors, empty(12), *(empty(1) for _ in range(4)))


def answers(n: int, voxels: int) -> Answer:
    """Room for the answers of some voxels; the lanes that are left over ask for none."""
    V = lanes.padded(voxels)
    return Answer(lanes.empty(n, V), np.zeros((4, V)), np.where(np.arange(V) < voxels, CERTIFIED, NO_FIT))


def blocks(t: Tables, packed: Array) -> list[Array]:
    """The even and the odd block, whole matrices (s, s), of packed entries (e,)."""
    out, first = [], 0
    for s in t.sizes:
        i, j = np.tril_indices(s)
        whole = np.zeros((s, s), packed.dtype)
        whole[i, j] = whole[j, i] = packed[first : first + len(i)]
        out.append(whole)
        first += len(i)
    return out


# ---- small matrices and vectors of every lane --------------------------------------------------------------------------


@kernel(fastmath=CONTRACT)
def _pivots(A: Array, o: int, s: int, pivot: Array) -> None:
    """
    Eliminate a symmetric matrix, packed from row o, from its last row on; A is overwritten.

    `pivot`: the smallest pivot; 0 or less, or NaN, where A is not positive definite (a NaN spoils every later one).
    """
    a, smallest = rows(A, 0), every(1.0)
    for k in range(s - 1, -1, -1):
        r, p = o + k * (k + 1) // 2, o
        d = a[r + k]
        smallest = pick(d, smallest, smallest, d)
        f = 1.0 / d
        for i in range(k):
            x = a[r + i] * f
            for j in range(i + 1):
                a[p + j] -= x * a[r + j]
            p += i + 1
    rows(pivot, 0)[0] = smallest


@kernel(fastmath=CONTRACT)
def _invert(A: Array, o: int, s: int, column: Array, pivot: Array) -> None:
    """A = -A^-1 in place by a sweep over the pivots; `column` is scratch, `pivot` as in `_pivots`."""
    a, v, smallest = rows(A, 0), rows(column, 0), every(1.0)
    for k in range(s):
        r = o + k * (k + 1) // 2
        d = a[r + k]
        smallest = pick(d, smallest, smallest, d)
        for j in range(k):
            v[j], a[r + j] = a[r + j], every(0.0)
        for i in range(k + 1, s):
            e = o + i * (i + 1) // 2 + k
            v[i], a[e] = a[e], every(0.0)
        f = 1.0 / d
        v[k], a[r + k] = every(-1.0), every(0.0)  # so the update also makes row and column k of the inverse
        for i in range(s):
            p, x = o + i * (i + 1) // 2, v[i] * f
            for j in range(i + 1):
                a[p + j] -= x * v[j]
    rows(pivot, 0)[0] = smallest


@kernel(fastmath=CONTRACT)
def _solve(L: Array, n: int, x: Array) -> None:
    """Solve L L' x = x in place with a factor of `block_cholesky`."""
    a, b = rows(L, 0), rows(x, 0)
    for i in range(n):
        r, total = i * (i + 1) // 2, b[i]
        for j in range(i):
            total -= a[r + j] * b[j]
        b[i] = total * a[r + i]
    for i in range(n - 1, -1, -1):
        r = i * (i + 1) // 2
        f = b[i] * a[r + i]
        b[i] = f
        for j in range(i):
            b[j] -= a[r + j] * f


@kernel(fastmath=CONTRACT)
def _four_columns(Q: Array, o: int, s: int, Z: Array, t: int, out: Array) -> None:
    """out[k s + i] = (Q z_(t+k))_i of four points, Q packed from row o."""
    q, u = rows(Q, 0), rows(out, 0)
    for i in range(s):
        a = b = c = d = every(0.0)
        e = o + i * (i + 1) // 2
        for j in range(s):
            x = q[e]
            a += Z[t, j] * x
            b += Z[t + 1, j] * x
            c += Z[t + 2, j] * x
            d += Z[t + 3, j] * x
            e += 1 if j < i else j + 1
        u[i], u[s + i], u[2 * s + i], u[3 * s + i] = a, b, c, d


@kernel(fastmath=CONTRACT)
def _add_entrywise(U: Array, V: Array, s: int, Z: Array, t: int, n: int, S: Array) -> None:
    """S_tu += (z_t'Q z_u) (z_t'W z_u) in the rows of four points t, U and V their `_four_columns` with Q and W."""
    x, y, out = rows(U, 0), rows(V, 0), rows(S, 0)
    for k in range(min(4, n - t)):
        last = t + k
        r = last * (last + 1) // 2
        for u in range(0, last + 1, 2):
            u1 = min(u + 1, last)
            a = b = c = d = every(0.0)
            for i in range(s):
                f, g, first, second = x[k * s + i], y[k * s + i], Z[u, i], Z[u1, i]
                a += first * f
                b += first * g
                c += second * f
                d += second * g
            out[r + u] += a * b
            if u1 > u:
                out[r + u1] += c * d


@kernel(fastmath=CONTRACT)
def _unpack(A: Array, o: int, s: int, out: Array) -> None:
    """A packed symmetric block as a whole matrix."""
    a, b = rows(A, 0), rows(out, 0)
    for i in range(s):
        for j in range(i + 1):
            x = a[o + i * (i + 1) // 2 + j]
            b[i * s + j] = x
            b[j * s + i] = x


@kernel(fastmath=CONTRACT)
def _product(X: Array, Y: Array, s: int, out: Array) -> None:
    """X Y' of whole matrices, in tiles of 2 x 2 (the last of an odd s is written twice)."""
    x, y, z = rows(X, 0), rows(Y, 0), rows(out, 0)
    for i in range(0, s, 2):
        p, q = i * s, min(i + 1, s - 1) * s
        for j in range(0, s, 2):
            u, v = j * s, min(j + 1, s - 1) * s
            a = b = c = d = every(0.0)
            for k in range(s):
                a += x[p + k] * y[u + k]
                b += x[p + k] * y[v + k]
                c += x[q + k] * y[u + k]
                d += x[q + k] * y[v + k]
            j1 = min(j + 1, s - 1)
            z[p + j], z[p + j1], z[q + j], z[q + j1] = a, b, c, d


@kernel(fastmath=CONTRACT)
def _symmetrise(X: Array, o: int, s: int, out: Array) -> None:
    """Packed (X + X') / 2."""
    x, y = rows(X, 0), rows(out, 0)
    for i in range(s):
        for j in range(i + 1):
            y[o + i * (i + 1) // 2 + j] = 0.5 * (x[i * s + j] + x[j * s + i])


@kernel()
def symmetric_product(t: Tables, A: Array, B: Array, C: Array, full: Array, out: Array) -> None:
    """out = sym(A B C) of both blocks."""
    first, second, third = full[0], full[1], full[2]
    for k in range(2):
        o, s = t.starts[k], t.sizes[k]
        _unpack(A, o, s, first)
        _unpack(B, o, s, second)
        _product(first, second, s, third)
        _unpack(C, o, s, first)
        _product(third, first, s, second)
        _symmetrise(second, o, s, out)


@kernel(fastmath=CONTRACT)
def _combine(a: float, X: Array, b: float, Y: Array, count: int, out: Array) -> None:
    """out = a X + b Y, the first `count` rows."""
    x, y, z = rows(X, 0), rows(Y, 0), rows(out, 0)
    for i in range(count):
        z[i] = a * x[i] + b * y[i]


@kernel(fastmath=CONTRACT)
def _move(X: Array, D: Array, step: Array, first: int, count: int, out: Array) -> None:
    """out = X + step D in some rows; X alone in lanes where the step (1,) is not positive."""
    x, d, y, f = rows(X, 0), rows(D, 0), rows(out, 0), rows(step, 0)[0]
    for i in range(first, first + count):
        y[i] = pick(f, 0.0, x[i] + f * d[i], x[i])


@kernel(fastmath=CONTRACT)
def _inner(times: Array, Q: Array, M: Array, out: Array) -> None:
    """<Q, M> summed over the blocks into out (1,)."""
    q, m, total = rows(Q, 0), rows(M, 0), every(0.0)
    for e in range(times.size):
        total += times[e] * (q[e] * m[e])
    rows(out, 0)[0] = total


@kernel(fastmath=CONTRACT)
def _spread(values: Array, factor: Array, out: Array) -> None:
    """The same vector in every lane, times a factor (1,) of each."""
    a, f = rows(out, 0), rows(factor, 0)[0]
    for i in range(values.size):
        a[i] = values[i] * f


# ---- the interior point ------------------------------------------------------------------------------------------------


@kernel()
def _begin(status: IntArray, l0: int, lane: Array) -> int:
    """Activate the lanes that ask for an answer; their number."""
    count = 0
    for l in range(WIDTH):
        asked = status[l0 + l] == CERTIFIED
        count += asked
        for row in range(lane.shape[0]):
            lane[row, l] = 0.0
        lane[ACTIVE, l] = 1.0 if asked else 0.0
        lane[SCALE, l] = 1.0
    return count


@kernel()
def _retire(lane: Array, pivot: Array) -> None:
    """End the lanes whose factorisation failed."""
    for l in range(WIDTH):
        if not pivot[0, l] > 0.0:
            lane[ACTIVE, l] = 0.0


@kernel(fastmath=CONTRACT)
def _gradient(P: Array, eta: Array, c0: Array, n: int, out: Array) -> None:
    """P eta + K c0."""
    p, e, c, g = rows(P, 0), rows(eta, 0), rows(c0, 0), rows(out, 0)
    for i in range(n):
        r, f, total = i * (i + 1) // 2, e[i], c[i]
        for j in range(i):
            x = p[r + j]
            total += x * e[j]
            g[j] += x * f
        g[i] = total + p[r + i] * f


@kernel(inline=True)
def _residuals(t: Tables, w: Work) -> None:
    """M, W, the gradient, the values of p and the gap <Q, M>."""
    _gradient(w.P, w.eta, w.c0, t.B.size, w.gradient)
    block_product(t.moments, w.eta, w.M)
    block_product(t.values, w.Q, w.point)
    block_copy(w.M, w.W, w.M.shape[0])
    for k in range(2):
        _invert(w.W, t.starts[k], t.sizes[k], w.U, w.pivot)
        _retire(w.lane, w.pivot)
    _combine(-1.0, w.W, 0.0, w.M, t.gram.size, w.W)
    _inner(t.times, w.Q, w.M, w.total)


@kernel(inline=True)
def _judge(n: int, iteration: int, last: bool, tol: float, w: Work) -> int:
    """End the lanes that have converged: gap below tol scale, and P eta + K c0 = A*(Q) to 1e-6, what rounding leaves."""
    active, lane = 0, w.lane
    for l in range(WIDTH):
        if lane[ACTIVE, l] > 0.0:
            largest = residual = 0.0
            for i in range(n):
                largest = max(largest, abs(w.gradient[i, l]))
                residual = max(residual, abs(w.gradient[i, l] - w.point[i, l]))
            lane[GAP, l], lane[ITERATIONS, l] = w.total[0, l], iteration
            if lane[GAP, l] <= tol * lane[SCALE, l] and residual <= 1e-6 * largest:
                lane[CONVERGED, l], lane[ACTIVE, l] = 1.0, 0.0
            elif last:
                lane[ACTIVE, l] = 0.0
            else:
                active += 1
    return active


@kernel(inline=True)
def _newton_matrix(t: Tables, w: Work) -> None:
    """The Cholesky factor of P + S into w.S."""
    n = t.B.size
    block_copy(w.P, w.S, n * (n + 1) // 2)
    for k in range(2):
        o, s, Z = t.starts[k], t.sizes[k], t.Z[k]
        for first in range(0, n, 4):
            _four_columns(w.Q, o, s, Z, first, w.U)
            _four_columns(w.W, o, s, Z, first, w.V)
            _add_entrywise(w.U, w.V, s, Z, first, n, w.S)
    block_cholesky(w.S, n, w.pivot)
    _retire(w.lane, w.pivot)


@kernel(inline=True)
def _direction(t: Tables, w: Work) -> None:
    """deta, dM and dQ for the right-hand side R."""
    n, e = t.B.size, t.gram.size
    block_product(t.values, w.R, w.point)
    _combine(1.0, w.point, -1.0, w.gradient, n, w.deta)
    _solve(w.S, n, w.deta)
    block_product(t.moments, w.deta, w.dM)
    symmetric_product(t, w.Q, w.dM, w.W, w.full, w.dQ)
    _combine(1.0, w.R, -1.0, w.dQ, e, w.dQ)
    _combine(1.0, w.dQ, -1.0, w.Q, e, w.dQ)


@kernel()
def _bisect(lane: Array, trial_step: Array, pivot: Array, precision: float) -> bool:
    """Judge the trial steps of the lanes that search, set their next ones; whether any lane goes on."""
    a, t = rows(lane, 0), rows(trial_step, 0)
    on, trial = a[SEARCHES], t[0]
    inside = pick(rows(pivot, 0)[0], 0.0, on, 0.0)
    low, high = pick(inside, 0.0, trial, a[LOW]), pick(on, inside, trial, a[HIGH])
    trial = pick(on, 0.0, pick(low, 0.0, 0.5 * (low + high), 0.75 * trial), trial)
    wide = pick(low, 0.0, precision * high - low, 1.0)  # without a step yet, or with one known too coarsely
    a[LOW], a[HIGH], t[0] = low, high, trial
    a[SEARCHES] = pick(trial, 1e-9, pick(wide, 0.0, on, 0.0), 0.0)
    more = False
    for l in range(WIDTH):
        more |= lane[SEARCHES, l] > 0.0
    return more


@kernel(inline=True)
def _step_length(t: Tables, w: Work, precision: float) -> None:
    """
    Steps <= 1, inside both cones: one for eta and Q, because P couples them; 0 in lanes that ended.

    Each matrix in turn shrinks the step of every lane until X + step D is positive definite, and bisects to `precision`.
    """
    a, step, trial = rows(w.lane, 0), rows(w.step, 0), rows(w.trial, 0)
    step[0] = every(1.0 / INSIDE)
    for k in range(2):
        o, s = t.starts[k], t.sizes[k]
        for X, D in ((w.Q, w.dQ), (w.M, w.dM)):
            longest, more = step[0], True
            trial[0] = longest
            a[LOW], a[HIGH], a[SEARCHES] = every(0.0), longest, pick(longest, 1e-9, a[ACTIVE], 0.0)
            while more:
                _move(X, D, w.trial, o, s * (s + 1) // 2, w.L)
                _pivots(w.L, o, s, w.pivot)
                more = _bisect(w.lane, w.trial, w.pivot, precision)
            step[0] = a[LOW]
    step[0] *= INSIDE


@kernel(inline=True)
def _centre(t: Tables, w: Work) -> None:
    """R = mu W - sym(dQ dM W), mu from the gap that the predictor's step would leave [Mehrotra]."""
    lane, e, size = w.lane, t.gram.size, t.sizes[0] + t.sizes[1]
    _move(w.Q, w.dQ, w.step, t.starts[0], e, w.L)
    _move(w.M, w.dM, w.step, t.starts[0], e, w.R)
    _inner(t.times, w.L, w.R, w.total)
    for l in range(WIDTH):
        ratio = w.total[0, l] / lane[GAP, l]
        lane[MU, l] = lane[GAP, l] / size * min(max(ratio * ratio * ratio, 1e-6), 1.0)
    symmetric_product(t, w.dQ, w.dM, w.W, w.full, w.R)
    r, inverse, mu = rows(w.R, 0), rows(w.W, 0), rows(lane, 0)[MU]
    for i in range(e):
        r[i] = mu * inverse[i] - r[i]


@kernel(inline=True)
def _advance(t: Tables, w: Work) -> None:
    """Move eta and Q; a lane whose step is too short ends where it is."""
    for l in range(WIDTH):
        if w.step[0, l] < 1e-8:
            w.lane[ACTIVE, l] = w.step[0, l] = 0.0
    _move(w.eta, w.deta, w.step, t.starts[0], t.B.size, w.eta)
    _move(w.Q, w.dQ, w.step, t.starts[0], t.gram.size, w.Q)


@kernel()
def interior_point(t: Tables, max_iter: int, tol: float, w: Work) -> None:
    """
    Minimise 1/2 eta'P eta + (K c0)'eta subject to A eta positive semidefinite, in the active lanes.

    Primal-dual path following from the given eta and scale (of w.lane), Q from the reference: predictor, corrector, one step length.
    Q stays positive definite. Rows CONVERGED, GAP (absolute) and ITERATIONS of w.lane are written.
    """
    block_set(w.total, 1.0)
    _spread(t.Q, w.total, w.Q)
    for iteration in range(max_iter + 1):
        _residuals(t, w)
        if _judge(t.B.size, iteration, iteration == max_iter, tol, w) == 0:
            return
        _newton_matrix(t, w)
        block_set(w.R, 0.0)
        for corrector in range(2):
            if corrector:
                _centre(t, w)
            _direction(t, w)
            _step_length(t, w, 0.95 * corrector)
        _advance(t, w)


# ---- the certificate ---------------------------------------------------------------------------------------------------


@kernel(fastmath=CONTRACT)
def _share_residual(t: Tables, c: Array, Q: Array, residual: Array, bound: Array) -> None:
    """
    Correct Q so that it stands for c exactly, up to rounding of a part of `bound` (n,).

    Each entry enters one equation only, (C c)_alpha = sum of the Q_ij with z_i z_j = x^alpha: the residual is shared.
    """
    x, q, r, b = rows(c, 0), rows(Q, 0), rows(residual, 0), rows(bound, 0)
    for i in range(t.B.size):
        total = size = every(0.0)
        for j in range(t.B.size):
            term = t.monomial[i, j] * x[j]
            total += term
            size += pick(term, 0.0, term, -term)
        r[i], b[i] = total, size
    for e in range(t.gram.size):
        term, a = t.times[e] * q[e], t.gram[e]
        r[a] -= term
        b[a] += pick(term, 0.0, term, -term)
    for e in range(t.gram.size):
        q[e] += t.share[e] * r[t.gram[e]]


@kernel(fastmath=CONTRACT)
def _lower(t: Tables, Q: Array, bound: Array, L: Array) -> None:
    """
    L = Q with its diagonal lowered by all that rounding may hide, so that a factorisation of L proves Q.

    By 4 s (s + 2) eps of itself, for the factorisation [Higham, Thm 10.7: 8 times the bound], and by the row sums of
    what rounding can leave in the residuals (Gershgorin).
    """
    q, b, a = rows(Q, 0), rows(bound, 0), rows(L, 0)
    for k in range(2):
        o, s = t.starts[k], t.sizes[k]
        for i in range(s):
            slack, e = every(0.0), o + i * (i + 1) // 2
            for j in range(s):
                if j <= i:
                    a[e] = q[e]
                slack += ((t.B.size + 8) * EPS * t.share[e]) * b[t.gram[e]]
                e += 1 if j < i else j + 1
            e = o + i * (i + 3) // 2
            x = q[e]
            a[e] = x - (slack + (4.0 * s * (s + 2) * EPS) * pick(x, 0.0, x, -x))


@kernel()
def certify(t: Tables, c: Array, w: Work) -> None:
    """
    Correct the Gram matrices w.Q so that they stand for c exactly, and prove them positive semidefinite.

    Row MARGIN of w.lane is the margin proved: this amount of the reference Gram matrices can be taken off; 0: no proof.
    """
    lane, margin = w.lane, w.step
    _share_residual(t, c, w.Q, w.gradient, w.point)
    _lower(t, w.Q, w.point, w.L)
    for l in range(WIDTH):
        margin[0, l] = 1.0
    for k in range(2):
        _invert(w.L, t.starts[k], t.sizes[k], w.U, w.pivot)
        for l in range(WIDTH):
            if not w.pivot[0, l] > 0.0:
                margin[0, l] = 0.0
    _spread(t.Q, margin, w.W)
    _inner(t.times, w.L, w.W, w.total)
    for l in range(WIDTH):
        lane[MARGIN, l] = -1.0 / w.total[0, l] if margin[0, l] > 0.0 else 0.0


@kernel(fastmath=CONTRACT)
def _normalise(B: Array, c: Array, Q: Array) -> None:
    """Divide c and Q by E(0) = B'c."""
    x, q, origin = rows(c, 0), rows(Q, 0), every(0.0)
    for i in range(B.size):
        origin += B[i] * x[i]
    for i in range(B.size):
        x[i] /= origin
    for e in range(Q.shape[0]):
        q[e] /= origin


@kernel(fastmath=CONTRACT)
def _blend(reference: Array, lane: Array, Q: Array) -> None:
    """Q = KEEP Q + BLEND reference, two rows of `lane`."""
    q, keep, amount = rows(Q, 0), rows(lane, 0)[KEEP], rows(lane, 0)[BLEND]
    for e in range(reference.size):
        q[e] = keep * q[e] + reference[e] * amount


@kernel(inline=True)
def _settle(c: Array, lane: Array, answer: Answer, l0: int) -> int:
    """Write the lanes that have their proof; the others, whose number is returned, blend in more of the reference."""
    active = 0
    for l in range(WIDTH):
        amount, lane[KEEP, l], lane[BLEND, l] = answer.info[3, l0 + l], 1.0, 0.0
        if not lane[ACTIVE, l] > 0.0:
            continue
        proved = lane[MARGIN, l] > 0.0
        if not proved:
            amount = max(10.0 * amount, 1e-12)
        answer.info[2, l0 + l], answer.info[3, l0 + l] = lane[MARGIN, l], amount
        if not proved and amount < 1e-2:
            lane[KEEP, l], lane[BLEND, l] = 1.0 - amount, amount
            active += 1
            continue
        lane[ACTIVE, l] = 0.0
        for i in range(answer.c.shape[0]):
            answer.c[i, l0 + l] = c[i, l] if proved else math.nan
        answer.status[l0 + l] = (SHIFTED if amount > 0.0 else CERTIFIED) if proved else NO_FIT
    return active


@kernel(inline=True)
def conclude(t: Tables, w: Work, answer: Answer, l0: int) -> None:
    """
    Certified coefficients of the Gram matrices w.Q, with a share of the reference if need be, into lanes from l0 on.

    Lanes whose status is not CERTIFIED get NaN.
    """
    for l in range(WIDTH):
        asked = answer.status[l0 + l] == CERTIFIED
        w.lane[ACTIVE, l] = 1.0 if asked else 0.0
        answer.info[2, l0 + l] = answer.info[3, l0 + l] = 0.0
        for i in range(0 if asked else answer.c.shape[0]):
            answer.c[i, l0 + l] = math.nan
    active = 1
    while active > 0:
        block_product(t.hermite, w.Q, w.deta)
        _normalise(t.B, w.deta, w.Q)
        certify(t, w.deta, w)
        active = _settle(w.deta, w.lane, answer, l0)
        _blend(t.Q, w.lane, w.Q)


# ---- the problems ------------------------------------------------------------------------------------------------------


@kernel(fastmath=CONTRACT)
def _ridged(G: Array, l0: int, n: int, A: Array) -> None:
    """H = G + RIDGE tr(G) / n, packed."""
    g, a, trace = rows(G, l0), rows(A, 0), every(0.0)
    for i in range(n):
        trace += g[i * (i + 3) // 2]
    for i in range(n):
        r = i * (i + 1) // 2
        for j in range(i):
            a[r + j] = g[r + j]
        a[r + i] = g[r + i] + (RIDGE / n) * trace


@kernel(fastmath=CONTRACT)
def _whiten(L: Array, K: Array, g: Array, l0: int, T: Array) -> None:
    """T = L^-1 [K', B, g], H = L L', in groups of four columns: row i of column t at (t // 4) 4 n + 4 i + t % 4."""
    n = K.shape[1]
    l, x, y = rows(L, 0), rows(T, 0), rows(g, l0)
    for t in range(0, K.shape[0], 4):
        o = t * n
        for i in range(n):
            for k in range(4):
                x[o + 4 * i + k] = every(K[t + k, i])
            if t <= n + 1 < t + 4:
                x[o + 4 * i + n + 1 - t] = y[i]
            r, e = i * (i + 1) // 2, o + 4 * i
            a, b, c, d = x[e], x[e + 1], x[e + 2], x[e + 3]
            for j in range(i):
                f, e = l[r + j], o + 4 * j
                a -= f * x[e]
                b -= f * x[e + 1]
                c -= f * x[e + 2]
                d -= f * x[e + 3]
            f, e = l[r + i], o + 4 * i
            x[e], x[e + 1], x[e + 2], x[e + 3] = a * f, b * f, c * f, d * f


@kernel(fastmath=CONTRACT)
def _gram(T: Array, n: int, count: int, P: Array) -> None:
    """P = T'T, packed, of `_whiten`'s columns, in tiles of 2 x 2."""
    x, p = rows(T, 0), rows(P, 0)
    for t in range(0, count, 2):
        first, r, s = t // 4 * 4 * n + t % 4, t * (t + 1) // 2, (t + 1) * (t + 2) // 2
        for u in range(0, t + 1, 2):
            second = u // 4 * 4 * n + u % 4
            a = b = c = d = every(0.0)
            for i in range(0, 4 * n, 4):
                a += x[first + i] * x[second + i]
                b += x[first + i] * x[second + i + 1]
                c += x[first + i + 1] * x[second + i]
                d += x[first + i + 1] * x[second + i + 1]
            p[r + u], p[s + u], p[s + u + 1] = a, c, d
            if u < t:
                p[r + u + 1] = b


@kernel(fastmath=CONTRACT)
def _eliminate_origin(P: Array, n: int, c0: Array, lane: Array) -> None:
    """The part of P = K H^-1 K' and of c0 that E(0) = 1 leaves, and SCALE; rows n, n + 1 of P are those of B and g."""
    p, c, r, q = rows(P, 0), rows(c0, 0), n * (n + 1) // 2, (n + 1) * (n + 2) // 2
    BB, gB = p[r + n], p[q + n]
    rows(lane, 0)[SCALE] = 0.5 * p[q + n + 1]
    for t in range(n):
        f = p[r + t] / BB
        c[t] = p[q + t] + (1.0 - gB) * f
        for u in range(t + 1):
            p[t * (t + 1) // 2 + u] -= f * p[r + u]


@kernel(inline=True)
def _pose(G: Array, g: Array, l0: int, t: Tables, w: Work) -> None:
    """The dual problem of the voxels from l0 on, and where it starts; ends lanes without one."""
    n, lane = t.B.size, w.lane
    _ridged(G, l0, n, w.S)
    block_cholesky(w.S, n, w.pivot)
    _retire(lane, w.pivot)
    _whiten(w.S, t.K, g, l0, w.T)
    _gram(w.T, n, n + 2, w.P)
    _eliminate_origin(w.P, n, w.c0, lane)
    for l in range(WIDTH):
        w.total[0, l] = 0.03 * lane[SCALE, l]
        if not 0.0 < lane[SCALE, l] < math.inf:
            lane[ACTIVE, l] = 0.0
    _spread(t.eta, w.total, w.eta)


@kernel()
def solve(G: Array, g: Array, t: Tables, max_iter: int, tol: float, w: Work, answer: Answer) -> None:
    """
    Minimise 1/2 c'Hc - g'c subject to B'c = 1 and p a sum of squares, for V voxels, a multiple of WIDTH.

    Parameters
    ----------
    G : (n (n + 1) / 2 or more, V) packed H in the order of the block kernels, a ridge is added. g : (n, V).
    t, w : `tables(order)`, `workspace(t)`; the Gram matrices of the last WIDTH voxels are left in w.Q.
    max_iter, tol : at most so many steps to a duality gap of tol g'H^-1 g / 2 (50 and 1e-9: it takes 8 to 14).
    answer : voxels of status CERTIFIED are solved, others left out. Status then: CERTIFIED, SHIFTED, NOT_CONVERGED or
        NO_FIT (left out; H not positive definite, g zero or not finite: c is NaN).
    """
    lane, status = w.lane, answer.status
    for l0 in range(0, status.size, WIDTH):
        if _begin(status, l0, lane) > 0:
            _pose(G, g, l0, t, w)
            for l in range(WIDTH):
                if not lane[ACTIVE, l] > 0.0:
                    status[l0 + l] = NO_FIT
            interior_point(t, max_iter, tol, w)
        for l in range(WIDTH):
            answer.info[0, l0 + l], answer.info[1, l0 + l] = lane[GAP, l] / lane[SCALE, l], lane[ITERATIONS, l]
        conclude(t, w, answer, l0)
        for l in range(WIDTH):
            if status[l0 + l] != NO_FIT and not lane[CONVERGED, l] > 0.0:
                status[l0 + l] = NOT_CONVERGED


@kernel(fastmath=CONTRACT)
def _margin_problem(c: Array, l0: int, t: Tables, w: Work) -> None:
    """Minimise (m - 1)^2 / 2 with p - m reference = z'Qz; the coefficients into w.deta."""
    x, mine, d, p = rows(c, l0), rows(w.deta, 0), rows(w.c0, 0), rows(w.P, 0)
    for i in range(t.B.size):
        mine[i] = x[i]
    block_product(t.K, w.deta, w.c0)
    for i in range(t.B.size):
        d[i] -= t.reference[i]
        for j in range(i + 1):
            p[i * (i + 1) // 2 + j] = every(t.reference[i] * t.reference[j])


@kernel()
def gram_margin(c: Array, t: Tables, max_iter: int, tol: float, w: Work, answer: Answer) -> None:
    """
    Best Gram matrices of given coefficients c (n, V) with E(0) = 1, and whether they prove p >= 0.

    They maximise the amount m <= 1 of the reference polynomial that can be taken off p with a sum of squares left.
    `answer.info` as in `solve`, except info[3]: the best m, known to about 1e-6; proved where info[2] > 0.
    """
    info, lane = answer.info, w.lane
    for l0 in range(0, answer.status.size, WIDTH):
        if _begin(answer.status, l0, lane) == 0:
            continue
        _margin_problem(c, l0, t, w)
        _spread(t.eta, w.total, w.eta)
        interior_point(t, max_iter, tol, w)
        for l in range(WIDTH):
            m = 1.0
            for i in range(t.B.size):
                m -= t.reference[i] * w.eta[i, l]
            info[0, l0 + l], info[1, l0 + l], info[3, l0 + l] = lane[GAP, l], lane[ITERATIONS, l], m
            lane[KEEP, l], lane[BLEND, l] = 1.0, m
        _blend(t.Q, lane, w.Q)
        _margin_problem(c, l0, t, w)  # restores w.deta
        certify(t, w.deta, w)
        for l in range(WIDTH):
            info[2, l0 + l] = lane[MARGIN, l]
