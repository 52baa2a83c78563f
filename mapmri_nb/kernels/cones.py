"""The cone of sums of squares: its tables for an order, the dual problem and the certificate in
lanes.

Letters and shapes are those of `sdp`. Every kernel treats WIDTH voxels, arrays [row][WIDTH];
symmetric matrices are packed, entry (i, j) of a block at its start + i (i + 1) / 2 + j.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import lanes, ordering
from ._jit import CONTRACT, kernel
from ._types import Array, IntArray
from .lanes import WIDTH, every, pick, rows
from .linalg import pad4

# of tr(H)/n: three shells leave H singular at order 8; moves the objective by less than 1e-6
RIDGE = 1e-8
EPS = 2.220446049250313e-16


class Tables(NamedTuple):
    """Constants of an order; packed entries (e,) have zeros up to a multiple of four, points too.

    The reference polynomial z'Qz is the inverse of the Gaussian's moment matrices: far inside the
    cone, E(0) = 1.
    """

    sizes: IntArray  # (2,) of the even and the odd block
    starts: IntArray  # (2,) their first packed entry
    B: Array  # (n,) E(0) of the basis functions
    # (n + 2 or more, n) Hermite functions at the points, times the points' weights; B; zeros
    K: Array
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
    start: tuple[Array, Array]  # where `sdp` begins: eta (n,) in units of g'H^-1 g / 2, Q (e4,)


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
    full: Array  # (4, m m) whole matrices of a block
    T: Array  # see `cones.whiten`
    U: Array  # (4 m,) products with four points, or a column
    V: Array
    eta: Array  # (n4,)
    deta: Array
    c0: Array  # values K c0 of the minimiser without cones
    gradient: Array  # P eta + K c0
    point: Array  # (n4,) values A*(Q); other vectors
    lane: Array  # (10,) see the row names
    step: Array  # (1,)
    trial: Array  # (1,) a step to be tried
    total: Array  # (1,) sum or factor
    pivot: Array  # (1,) smallest pivot of the last elimination


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
    basis = _polynomials(x, ordering.monomials(order)) @ ordering.hermite_to_monomial(order)
    rest, chosen = basis * np.exp(-0.25 * np.sum(x * x, axis=1))[:, None], []
    for _ in range(ordering.n_coef(order)):
        norms = np.sum(rest * rest, axis=1)
        chosen.append(int(np.argmax(norms)))
        q = rest[chosen[-1]] / math.sqrt(norms[chosen[-1]])
        rest = rest - np.outer(rest @ q, q)
    return x[chosen], 1.0 / np.linalg.norm(basis[chosen], axis=1)


@lru_cache
def tables(order: int) -> Tables:
    """Tables of an even order 0 .. 10; shared, but writable: kernels compile once."""
    n, blocks = ordering.n_coef(order), gram_exponents(order)
    where = ordering.positions(ordering.monomials(order))
    place = ordering.class_permutation(order)
    C = ordering.hermite_to_monomial(order)[..., place]
    B = ordering.origin_values(ordering.index_table(order))[place]
    x, weight = _points(order)
    K = _polynomials(x, ordering.monomials(order)) * weight[:, None] @ C
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
    eta, reference = np.asarray(np.linalg.solve(K.T, B)), np.pad(Q_all, (0, -len(Q_all) % 4))
    return Tables(
        sizes, np.array([0, sizes[0] * (sizes[0] + 1) // 2]), B.copy(), K_B, Z, pad4(A),
        pad4(values), pad4(hermite), np.ascontiguousarray(C), gram_all.astype(np.uint64), times_all,
        share, eta, reference, values @ Q_all, (0.03 * eta, reference),
    )  # fmt: skip


def workspace(t: Tables) -> Work:
    """Scratch for an order."""
    n, e = len(t.B), len(t.moments)
    m = t.Z.shape[2]

    def empty(*shape: int) -> Array:
        return lanes.empty(*shape, WIDTH)

    packed = (empty(e) for _ in range(7))
    P, S = empty((n + 3) * (n + 4) // 2), empty((n + 1) * (n + 2) // 2)
    full = empty(4, m * m)
    vectors = (empty(len(t.K)) for _ in range(5))
    columns = empty(t.K.size), empty(4 * m), empty(4 * m)
    numbers = (empty(1) for _ in range(4))
    return Work(P, S, *packed, full, *columns, *vectors, empty(10), *numbers)


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
    """The part of P = K H^-1 K' and of c0 that E(0) = 1 leaves (all if `fixed` is 0), and g'H^-1 g
    / 2; rows n, n + 1 of P are those of B and g.
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
    """Correct Q so that it stands for c exactly, up to rounding of a part of `bound` (n,).

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
    """L = Q with its diagonal lowered by all that rounding may hide, so that a factorisation of L
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
