"""
The cone of sums of squares: its tables for an order, and linear algebra on small symmetric matrices
in lanes.

Letters and shapes are those of `sdp`. Every kernel treats WIDTH voxels, arrays [row][WIDTH];
symmetric matrices are packed, entry (i, j) of a block at its start + i (i + 1) / 2 + j.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import CONTRACT, kernel
from .lanes import every, pick, rows
from .linalg import pad4
from .ordering import (
    class_permutation,
    hermite_to_monomial,
    index_table,
    monomials,
    n_coef,
    origin_values,
    positions,
)

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
RIDGE = 1e-8  # of tr(H)/n: three shells leave H singular at order 8; moves the objective by less than 1e-6
EPS = 2.220446049250313e-16


class Tables(NamedTuple):
    """
    Constants of an order; packed entries (e,) have zeros up to a multiple of four, points too.

    The reference polynomial z'Qz is the inverse of the Gaussian's moment matrices: far inside the
    cone, E(0) = 1.
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


def gram_exponents(order: int) -> tuple[IntArray, IntArray]:
    """Exponents of z, (s, 3) each, of the even and of the odd degrees up to N/2."""
    degrees = range(order // 2 + 1)
    z = np.array(
        [(n - i - j, j, i) for n in degrees for i in range(n + 1) for j in range(n + 1 - i)],
        np.int64,
    )
    odd = z.sum(axis=1) % 2 == 1
    return z[~odd], z[odd]


def _polynomials(x: Array, exponents: IntArray) -> Array:
    """Monomials (n, len(exponents)) at points (n, 3)."""
    return np.asarray(np.prod(x[:, None, :] ** exponents[None, :, :], axis=2))


def _points(order: int) -> tuple[Array, Array]:
    """Points (n, 3) whose values determine p (condition below 60), and weights (n,); greedy."""
    shells = order // 2 + 1
    k = np.arange(3 * shells * (order + 1)) + 0.5
    z, phi = 1.0 - k / len(k), math.pi * (1 + 5**0.5) * k
    half_sphere = np.stack(
        [np.sqrt(1 - z * z) * np.cos(phi), np.sqrt(1 - z * z) * np.sin(phi), z], axis=1
    )
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
    """
    Tables of an even order 0 .. 10; shared, but writable: kernels compile once for all arrays.
    """
    n, blocks = n_coef(order), gram_exponents(order)
    where = positions(monomials(order))
    C, B = (
        a[..., class_permutation(order)]
        for a in (hermite_to_monomial(order), origin_values(index_table(order)))
    )
    x, weight = _points(order)
    K = _polynomials(x, monomials(order)) * weight[:, None] @ C
    # moments of N(0, 1): the integral of Gaussian times p is sum(aB)
    gaussian = np.linalg.solve(C.T, B)
    gram, times = [], []
    Q, pairs = [], []
    Z = np.zeros((2, n + -n % 4, max(map(len, blocks))))
    for k, block in enumerate(blocks):
        i, j = np.tril_indices(len(block))
        z = _polynomials(x, block) * np.sqrt(weight)[:, None]
        Z[k, :n, : len(block)] = z
        whole = np.zeros((len(block), len(block)), np.int64)  # no rows in the odd block at order 0
        whole[i, j] = whole[j, i] = [
            where[tuple((block[a] + block[b]).tolist())] for a, b in zip(i, j, strict=True)
        ]
        gram.append(whole[i, j])
        times.append(np.where(i == j, 1.0, 2.0))
        Q.append(np.linalg.inv(gaussian[whole])[i, j] / sum(map(len, blocks)))
        pairs.append((z[:, i] * z[:, j]).T)
    sizes = np.array([len(b) for b in blocks], np.int64)
    gram_all, times_all = np.concatenate(gram), np.concatenate(times)
    A = np.concatenate(pairs)
    Q_all, values = np.concatenate(Q), A.T * times_all
    hermite = np.linalg.inv(C)[:, gram_all] * times_all
    K_B = pad4(np.concatenate([K, B[None], 0.0 * B[None]]))
    share = 1.0 / np.bincount(gram_all, times_all, n)[gram_all]
    return Tables(
        sizes, np.array([0, sizes[0] * (sizes[0] + 1) // 2]), B.copy(), K_B, Z, pad4(A), pad4(values), pad4(hermite),
        np.ascontiguousarray(C), gram_all.astype(np.uint64), times_all, share, np.asarray(np.linalg.solve(K.T, B)),
        np.pad(Q_all, (0, -len(Q_all) % 4)), values @ Q_all,
    )  # fmt: skip


def blocks(t: Tables, packed: NDArray[Any]) -> list[NDArray[Any]]:
    """The even and the odd block, whole matrices (s, s), of packed entries (e,)."""
    out, first = [], 0
    for s in t.sizes:
        i, j = np.tril_indices(s)
        whole = np.zeros((s, s), packed.dtype)
        whole[i, j] = whole[j, i] = packed[first : first + len(i)]
        out.append(whole)
        first += len(i)
    return out


# ---- small matrices and vectors of every lane


@kernel(fastmath=CONTRACT)
def pivots(A: Array, o: int, s: int, pivot: Array) -> None:
    """
    Eliminate a symmetric matrix, packed from row o, from its last row on; A is overwritten.

    `pivot`: the smallest pivot; 0 or less, or NaN, where A is not positive definite (a NaN spoils
    every later one).
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
def invert(A: Array, o: int, s: int, column: Array, pivot: Array) -> None:
    """A = -A^-1 in place by a sweep over the pivots; `column`: scratch, `pivot`: as in `pivots`."""
    a, v = rows(A, 0), rows(column, 0)
    smallest = every(1.0)
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
        # so the update also makes row and column k of the inverse
        v[k], a[r + k] = every(-1.0), every(0.0)
        for i in range(s):
            p, x = o + i * (i + 1) // 2, v[i] * f
            for j in range(i + 1):
                a[p + j] -= x * v[j]
    rows(pivot, 0)[0] = smallest


@kernel(fastmath=CONTRACT)
def substitute(L: Array, n: int, x: Array) -> None:
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
def four_columns(Q: Array, o: int, s: int, Z: Array, t: int, out: Array) -> None:
    """out[k s + i] = (Q z_(t+k))_i of four points, Q packed from row o."""
    q, u = rows(Q, 0), rows(out, 0)
    for i in range(s):
        a = b = every(0.0)
        c = d = every(0.0)
        e = o + i * (i + 1) // 2
        for j in range(s):
            x = q[e]
            a += Z[t, j] * x
            b += Z[t + 1, j] * x
            c += Z[t + 2, j] * x
            d += Z[t + 3, j] * x
            e += 1 if j < i else j + 1
        u[i], u[s + i] = a, b
        u[2 * s + i], u[3 * s + i] = c, d


@kernel(fastmath=CONTRACT)
def add_entrywise(U: Array, V: Array, s: int, Z: Array, t: int, n: int, S: Array) -> None:
    """S_tu += (z_t'Q z_u) (z_t'W z_u) for four points t; U, V: their `four_columns` with Q, W."""
    x, y = rows(U, 0), rows(V, 0)
    out = rows(S, 0)
    for k in range(min(4, n - t)):
        last = t + k
        r = last * (last + 1) // 2
        for u in range(0, last + 1, 2):
            u1 = min(u + 1, last)
            a = b = every(0.0)
            c = d = every(0.0)
            for i in range(s):
                f, g = x[k * s + i], y[k * s + i]
                first, second = Z[u, i], Z[u1, i]
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
    x, y = rows(X, 0), rows(Y, 0)
    z = rows(out, 0)
    for i in range(0, s, 2):
        p, q = i * s, min(i + 1, s - 1) * s
        for j in range(0, s, 2):
            u, v = j * s, min(j + 1, s - 1) * s
            a = b = every(0.0)
            c = d = every(0.0)
            for k in range(s):
                a += x[p + k] * y[u + k]
                b += x[p + k] * y[v + k]
                c += x[q + k] * y[u + k]
                d += x[q + k] * y[v + k]
            j1 = min(j + 1, s - 1)
            z[p + j], z[p + j1] = a, b
            z[q + j], z[q + j1] = c, d


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
    first, second = full[0], full[1]
    third = full[2]
    for k in range(2):
        o, s = t.starts[k], t.sizes[k]
        _unpack(A, o, s, first)
        _unpack(B, o, s, second)
        _product(first, second, s, third)
        _unpack(C, o, s, first)
        _product(third, first, s, second)
        _symmetrise(second, o, s, out)


@kernel(fastmath=CONTRACT)
def combine(a: float, X: Array, b: float, Y: Array, count: int, out: Array) -> None:
    """out = a X + b Y, the first `count` rows."""
    x, y = rows(X, 0), rows(Y, 0)
    z = rows(out, 0)
    for i in range(count):
        z[i] = a * x[i] + b * y[i]


@kernel(fastmath=CONTRACT)
def move(X: Array, D: Array, step: Array, first: int, count: int, out: Array) -> None:
    """out = X + step D in some rows; X alone in lanes where the step (1,) is not positive."""
    x, d = rows(X, 0), rows(D, 0)
    y, f = rows(out, 0), rows(step, 0)[0]
    for i in range(first, first + count):
        y[i] = pick(f, 0.0, x[i] + f * d[i], x[i])


@kernel(fastmath=CONTRACT)
def inner(times: Array, Q: Array, M: Array, out: Array) -> None:
    """<Q, M> summed over the blocks into out (1,)."""
    q, m = rows(Q, 0), rows(M, 0)
    total = every(0.0)
    for e in range(times.size):
        total += times[e] * (q[e] * m[e])
    rows(out, 0)[0] = total


@kernel(fastmath=CONTRACT)
def fill(values: Array, factor: Array, out: Array) -> None:
    """The same vector in every lane, times a factor (1,) of each."""
    a, f = rows(out, 0), rows(factor, 0)[0]
    for i in range(values.size):
        a[i] = values[i] * f


# ---- the dual problem


@kernel(fastmath=CONTRACT)
def ridged(G: Array, l0: int, n: int, A: Array) -> None:
    """H = G + RIDGE tr(G) / n, packed."""
    g, a = rows(G, l0), rows(A, 0)
    trace = every(0.0)
    for i in range(n):
        trace += g[i * (i + 3) // 2]
    for i in range(n):
        r = i * (i + 1) // 2
        for j in range(i):
            a[r + j] = g[r + j]
        a[r + i] = g[r + i] + (RIDGE / n) * trace


@kernel(fastmath=CONTRACT)
def whiten(L: Array, K: Array, g: Array, l0: int, T: Array) -> None:
    """T = L^-1 [K', B, g], H = L L': row i of column t at (t // 4) 4 n + 4 i + t % 4."""
    n = K.shape[1]
    l, x = rows(L, 0), rows(T, 0)
    y = rows(g, l0)
    for t in range(0, K.shape[0], 4):
        o = t * n
        for i in range(n):
            for k in range(4):
                x[o + 4 * i + k] = every(K[t + k, i])
            if t <= n + 1 < t + 4:
                x[o + 4 * i + n + 1 - t] = y[i]
            r, e = i * (i + 1) // 2, o + 4 * i
            a, b = x[e], x[e + 1]
            c, d = x[e + 2], x[e + 3]
            for j in range(i):
                f, e = l[r + j], o + 4 * j
                a -= f * x[e]
                b -= f * x[e + 1]
                c -= f * x[e + 2]
                d -= f * x[e + 3]
            f, e = l[r + i], o + 4 * i
            x[e], x[e + 1] = a * f, b * f
            x[e + 2], x[e + 3] = c * f, d * f


@kernel(fastmath=CONTRACT)
def gram(T: Array, n: int, count: int, P: Array) -> None:
    """P = T'T, packed, of `whiten`'s columns, in tiles of 2 x 2."""
    x, p = rows(T, 0), rows(P, 0)
    for t in range(0, count, 2):
        first, r = t // 4 * 4 * n + t % 4, t * (t + 1) // 2
        s = (t + 1) * (t + 2) // 2
        for u in range(0, t + 1, 2):
            second = u // 4 * 4 * n + u % 4
            a = b = every(0.0)
            c = d = every(0.0)
            for i in range(0, 4 * n, 4):
                a += x[first + i] * x[second + i]
                b += x[first + i] * x[second + i + 1]
                c += x[first + i + 1] * x[second + i]
                d += x[first + i + 1] * x[second + i + 1]
            p[r + u], p[s + u] = a, c
            p[s + u + 1] = d
            if u < t:
                p[r + u + 1] = b


@kernel(fastmath=CONTRACT)
def eliminate_origin(P: Array, n: int, fixed: int, c0: Array, scale: Array) -> None:
    """
    The part of P = K H^-1 K' and of c0 that E(0) = 1 leaves (all if `fixed` is 0), and g'H^-1 g /
    2; rows n, n + 1 of P are those of B and g.
    """
    p, c = rows(P, 0), rows(c0, 0)
    r, q = n * (n + 1) // 2, (n + 1) * (n + 2) // 2
    BB, gB = p[r + n], p[q + n]
    rows(scale, 0)[0] = 0.5 * p[q + n + 1]
    for t in range(n):
        f = fixed * p[r + t] / BB
        c[t] = p[q + t] + (1.0 - gB) * f
        for u in range(t + 1):
            p[t * (t + 1) // 2 + u] -= f * p[r + u]


@kernel(fastmath=CONTRACT)
def gradient(P: Array, eta: Array, c0: Array, n: int, out: Array) -> None:
    """P eta + K c0."""
    p, e = rows(P, 0), rows(eta, 0)
    c, g = rows(c0, 0), rows(out, 0)
    for i in range(n):
        r, f = i * (i + 1) // 2, e[i]
        total = c[i]
        for j in range(i):
            x = p[r + j]
            total += x * e[j]
            g[j] += x * f
        g[i] = total + p[r + i] * f


# ---- the certificate


@kernel(fastmath=CONTRACT)
def normalise(B: Array, c: Array, Q: Array) -> None:
    """Divide c and Q by E(0) = B'c."""
    x, q = rows(c, 0), rows(Q, 0)
    origin = every(0.0)
    for i in range(B.size):
        origin += B[i] * x[i]
    for i in range(B.size):
        x[i] /= origin
    for e in range(Q.shape[0]):
        q[e] /= origin


@kernel(fastmath=CONTRACT)
def blend(reference: Array, keep: Array, amount: Array, Q: Array) -> None:
    """Q = keep Q + amount reference, factors (1,) of each lane."""
    q, a = rows(Q, 0), rows(keep, 0)[0]
    b = rows(amount, 0)[0]
    for e in range(reference.size):
        q[e] = a * q[e] + reference[e] * b


@kernel(fastmath=CONTRACT)
def share_residual(t: Tables, c: Array, Q: Array, residual: Array, bound: Array) -> None:
    """
    Correct Q so that it stands for c exactly, up to rounding of a part of `bound` (n,).

    Each entry enters one equation only, (C c)_alpha = sum of the Q_ij with z_i z_j = x^alpha: the
    residual is shared.
    """
    x, q = rows(c, 0), rows(Q, 0)
    r, b = rows(residual, 0), rows(bound, 0)
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
def lower(t: Tables, Q: Array, bound: Array, L: Array) -> None:
    """
    L = Q with its diagonal lowered by all that rounding may hide, so that a factorisation of L
    proves Q.

    By 4 s (s + 2) eps of itself, for the factorisation [Higham, Thm 10.7: 8 times the bound], and
    by the row sums of what rounding can leave in the residuals (Gershgorin).
    """
    q, b = rows(Q, 0), rows(bound, 0)
    a = rows(L, 0)
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
