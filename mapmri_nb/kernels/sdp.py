"""
Global positivity of one voxel: interior point over the two parity Gram blocks, with its
certificate.

The propagator is a Gaussian times p(x), x = r/mu, an even polynomial. p = z'Qz with Q positive
semidefinite and z the monomials of degree <= N/2 is nonnegative everywhere [Dela Haije 2020]; Q
splits into an even and an odd block. Polynomials enter by their values at n unisolvent points, not
by coefficients, which makes the Schur complement an entrywise product of dense matrices [Lofberg &
Parrilo 2004]. The dual unknowns eta are weights of these points, M = Z diag(eta) Z' their moment
matrices.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import status
from ._jit import CONTRACT, kernel, stage
from ._types import Array, IntArray
from .ordering import hermite_to_monomial, index_table, monomials, n_coef, origin_values, positions
from .qp import pack, skipped, unpack

# CERTIFIED: optimal; SHIFTED: optimal but for the blend info[3] with the reference polynomial that
# the certificate needed; NOT_CONVERGED: certified, but not to the tolerance asked; NO_FIT:
# coefficients are NaN
CERTIFIED, SHIFTED, NOT_CONVERGED, NO_FIT = 0, 1, 2, 3
# of tr(H)/n: three shells leave H singular at order 8; moves the objective by less than 1e-6
RIDGE = 1e-8
EPS = 2.220446049250313e-16


class Tables(NamedTuple):
    """
    Constants of an order, blocks padded with zeros to m, a multiple of four.

    The reference polynomial z'Qz is the inverse of the Gaussian's moment matrices: far inside the
    cone, E(0) = 1.
    """

    sizes: IntArray  # (2,) of the even and the odd block
    gram: IntArray  # (2, m, m) position of the monomial z_i z_j in `monomials`
    share: Array  # (2, m, m) 1 / number of entries that make this monomial
    Z: Array  # (2, m, n) z at the points, times the root of the points' weights
    values: Array  # (n, n) Hermite basis (rows) at the points, times their weights
    to_monomial: Array  # (n, n) Hermite -> monomial coefficients
    to_hermite: Array  # (n, n) its inverse
    eta: Array  # (n,) dual unknowns that give the Gaussian's moments
    Q: Array  # (2, m, m) reference Gram matrices
    reference: Array  # (n,) values of the reference polynomial


class Work(NamedTuple):
    """Scratch of one voxel."""

    A: Array  # (2n+2, 2n+2)
    P: Array  # (n, n)
    S: Array  # (n, n)
    vectors: Array  # (8, n)
    tall: Array  # (2, 2, m, n) by block: QZ, WZ
    square: Array  # (6, 2, m, m) Q, M, W = M^-1, dQ, dM, X of both blocks
    small: Array  # (2m, 2m)


def gram_exponents(order: int) -> tuple[IntArray, IntArray]:
    """
    Exponents of z, even and odd degrees; (1,3), (7,3), (7,13), (22,13), (22,34) rows at orders 2 ..
    10.
    """
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
    """
    Points (n, 3) whose values determine p, and weights (n,): greedy choice on spheres, condition
    below 60.
    """
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
    Tables of an even order 2 .. 10 (writable arrays, though shared: kernels compile once for these
    and scratch).
    """
    n, blocks, where = n_coef(order), gram_exponents(order), positions(monomials(order))
    m = (max(len(b) for b in blocks) + 3) // 4 * 4
    C, B = hermite_to_monomial(order).copy(), origin_values(index_table(order))
    x, weight = _points(order)
    gram, share, count = np.zeros((2, m, m), np.int64), np.zeros((2, m, m)), np.zeros(n)
    Z, Q = np.zeros((2, m, n)), np.zeros((2, m, m))
    moments = np.linalg.solve(C.T, B)  # of N(0, 1): the integral of Gaussian times p is sum(aB)
    for k, block in enumerate(blocks):
        s = len(block)
        gram[k, :s, :s] = [[where[tuple((a + b).tolist())] for b in block] for a in block]
        Z[k, :s] = (_polynomials(x, block) * np.sqrt(weight)[:, None]).T
        Q[k, :s, :s] = np.linalg.inv(moments[gram[k, :s, :s]]) / sum(map(len, blocks))
        count += np.bincount(gram[k, :s, :s].ravel(), minlength=n)
        share[k, :s, :s] = 1.0
    values = C.T @ (_polynomials(x, monomials(order)) * weight[:, None]).T
    sizes, reference = (
        np.array([len(b) for b in blocks], np.int64),
        np.einsum("kit,kij,kjt->t", Z, Q, Z),
    )
    inverse, eta = (
        np.asarray(np.linalg.solve(a, b), np.float64) for a, b in ((C, np.eye(n)), (values, B))
    )
    return Tables(sizes, gram, share / count[gram], Z, values, C, inverse, eta, Q, reference)


@kernel()
def workspace(n: int, m: int) -> Work:
    """Scratch for n coefficients and padded block size m = `Tables.Z.shape[1]`."""
    A, P, S, small = (
        np.zeros((2 * n + 2, 2 * n + 2)),
        np.zeros((n, n)),
        np.zeros((n, n)),
        np.zeros((2 * m, 2 * m)),
    )
    return Work(A, P, S, np.zeros((8, n)), np.zeros((2, 2, m, n)), np.zeros((6, 2, m, m)), small)


@kernel(fastmath=CONTRACT)
def eliminate(A: Array, size: int, pivots: int) -> bool:
    """
    Eliminate the last `pivots` unknowns of symmetric A[:size, :size], lower triangle, in place: A =
    L'L from the end.

    The leading block becomes its Schur complement; False where a pivot is not positive. Going
    backwards every inner loop starts at column 0, which LLVM vectorises; four pivots at a time, or
    loads would bound the update.
    """
    stop, k1 = size - pivots, size
    while k1 > stop:
        k0 = max(k1 - 4, stop)
        for k in range(k1 - 1, k0 - 1, -1):
            row = A[k]
            for p in range(k + 1, k1):
                f, other = A[p, k], A[p]
                for j in range(k + 1):
                    row[j] -= f * other[j]
            if not row[k] > 0.0:
                return False
            f = 1.0 / math.sqrt(row[k])
            for j in range(k + 1):
                row[j] *= f
        r0, r1, r2, r3 = A[k0], A[min(k0 + 1, k1 - 1)], A[min(k0 + 2, k1 - 1)], A[k1 - 1]
        for i in range(k0):
            f0, f1, f2, f3, row = r0[i], r1[i], r2[i], r3[i], A[i]
            if k1 - k0 < 4:  # a short last group: its repeated rows count once
                f1, f2, f3 = f1 if k1 - k0 > 1 else 0.0, f2 if k1 - k0 > 2 else 0.0, 0.0
            for j in range(i + 1):
                row[j] -= f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]
        k1 = k0
    return True


@kernel(fastmath=CONTRACT)
def _solve_factored(L: Array, b: Array) -> None:
    """Solve L'L x = b in place."""
    for i in range(b.size - 1, -1, -1):
        f, row = b[i] / L[i, i], L[i]
        for j in range(i):
            b[j] -= f * row[j]
        b[i] = f
    for i in range(b.size):
        s, row = b[i], L[i]
        for j in range(i):
            s -= row[j] * b[j]
        b[i] = s / row[i]


@kernel(fastmath=CONTRACT)
def _product(X: Array, Y: Array, s: int, columns: int, out: Array) -> None:
    """Write X Y, s rows, s terms, `columns` columns."""
    for i in range(s):
        row = out[i]
        for j in range(columns):
            row[j] = 0.0
        for k in range(s):
            f, other = X[i, k], Y[k]
            for j in range(columns):
                row[j] += f * other[j]


@kernel()
def _invert(M: Array, s: int, A: Array, out: Array) -> bool:
    """Inverse of positive definite M[:s, :s]: minus the Schur complement of [[0, I], [I, M]]."""
    for i in range(s):
        for j in range(s):
            A[i, j] = 0.0
            A[s + i, j] = 1.0 if i == j else 0.0
            A[s + i, s + j] = M[i, j]
    if not eliminate(A, 2 * s, s):
        return False
    for i in range(s):
        for j in range(i + 1):
            out[i, j] = out[j, i] = -A[i, j]
    return True


@kernel(fastmath=CONTRACT)
def _moments(eta: Array, Z: Array, s: int, scaled: Array, out: Array) -> None:
    """Write Z diag(eta) Z'."""
    for i in range(s):
        row = Z[i]
        for t in range(eta.size):
            scaled[t] = eta[t] * row[t]
        for j in range(i + 1):
            v, row = 0.0, Z[j]
            for t in range(eta.size):
                v += scaled[t] * row[t]
            out[i, j] = out[j, i] = v


@kernel(fastmath=CONTRACT)
def _add_values(U: Array, Z: Array, s: int, factor: float, out: Array) -> None:
    """Add factor z'Xz at the points, U = XZ."""
    for i in range(s):
        u, z = U[i], Z[i]
        for t in range(out.size):
            out[t] += factor * u[t] * z[t]


@kernel(fastmath=CONTRACT)
def _add_schur(U: Array, V: Array, Z: Array, s: int, a: Array, b: Array, S: Array) -> None:
    """S_tu += (z_t'Q z_u) (z_t'W z_u) in the lower triangle, U = QZ, V = WZ."""
    for t in range(S.shape[0]):
        for u in range(t + 1):
            a[u], b[u] = 0.0, 0.0
        for i in range(0, s, 4):  # the padding is zero
            z0, z1, z2, z3 = Z[i], Z[i + 1], Z[i + 2], Z[i + 3]
            f0, f1, f2, f3 = U[i, t], U[i + 1, t], U[i + 2, t], U[i + 3, t]
            g0, g1, g2, g3 = V[i, t], V[i + 1, t], V[i + 2, t], V[i + 3, t]
            for u in range(t + 1):
                a[u] += f0 * z0[u] + f1 * z1[u] + f2 * z2[u] + f3 * z3[u]
                b[u] += g0 * z0[u] + g1 * z1[u] + g2 * z2[u] + g3 * z3[u]
        row = S[t]
        for u in range(t + 1):
            row[u] += a[u] * b[u]


@kernel()
def _directions(
    sizes: IntArray, Z: Array, square: Array, row: Array, center: float, second: float, dy: Array
) -> None:
    """
    Steps dM = Z diag(dy) Z' and dQ = center W - Q - sym((Q dM + second X) W) of both blocks, then X
    = dQ dM.
    """
    for k in range(2):
        s, Q, W, dQ, dM, X = (
            sizes[k],
            square[0, k],
            square[2, k],
            square[3, k],
            square[4, k],
            square[5, k],
        )
        _moments(dy, Z[k], s, row, dM)
        _product(Q, dM, s, s, dQ)
        for i in range(s if second != 0.0 else 0):
            for j in range(s):
                dQ[i, j] += second * X[i, j]
        _product(dQ, W, s, s, X)
        for i in range(s):
            for j in range(s):
                dQ[i, j] = center * W[i, j] - Q[i, j] - 0.5 * (X[i, j] + X[j, i])
        _product(dQ, dM, s, s, X)


@kernel()
def _longest_step(sizes: IntArray, square: Array, small: Array, precision: float) -> float:
    """
    Step <= 1, 2 % off the boundary of both cones: each matrix in turn shrinks it and bisects to
    `precision`; or 0.
    """
    step = 1.0 / 0.98
    for k in range(4):
        X, D, s = square[k % 2, k // 2], square[k % 2 + 3, k // 2], sizes[k // 2]
        low, trial, high = 0.0, step, step
        while trial > 1e-9 and (low == 0.0 or low < precision * high):
            for i in range(s):
                for j in range(i + 1):
                    small[i, j] = X[i, j] + trial * D[i, j]
            low, high = (trial, high) if eliminate(small, s, s) else (low, trial)
            trial = 0.5 * (low + high) if low > 0.0 else 0.75 * trial
        step = low
    return 0.98 * step


@kernel()
def _gap(sizes: IntArray, square: Array, step: float) -> float:
    """
    <Q, M> summed over the blocks, after a step; at step 0 the directions may be those of a voxel
    that ended in NaN.
    """
    gap = 0.0
    for k in range(2):
        for i in range(sizes[k]):
            for j in range(sizes[k]):
                Q, M = square[0, k, i, j], square[1, k, i, j]
                if step > 0.0:
                    Q += step * square[3, k, i, j]
                    M += step * square[4, k, i, j]
                gap += Q * M
    return gap


@kernel()
def _blend(Q: Array, keep: float, other: Array, amount: float) -> None:
    """Q = keep Q + amount times the other; keep = 0 clears whatever was there."""
    for k in range(2):
        for i in range(Q.shape[1]):
            for j in range(Q.shape[1]):
                Q[k, i, j] = (keep * Q[k, i, j] if keep > 0.0 else 0.0) + amount * other[k, i, j]


@kernel()
def interior_point(
    c1: Array,
    eta: Array,
    scale: float,
    t: Tables,
    max_iter: int,
    tol: float,
    work: Work,
    info: Array,
) -> bool:
    """
    Minimise 1/2 eta'P eta + c1'eta subject to M(eta) >= 0; the primal side is P eta + c1 = values
    of z'Qz.

    Primal-dual path following from the given eta and the reference Q: HKM direction, Mehrotra's
    predictor and corrector, one step length because P couples both sides. Q stays positive
    definite. True once the gap is below tol scale and the equation holds (to 1e-6: what rounding
    leaves where H is singular). info[0] = gap / scale, info[1] = iterations.
    """
    n, size, square = eta.size, t.sizes[0] + t.sizes[1], work.square
    gradient, dy, values, center = (
        work.vectors[1],
        work.vectors[2],
        work.vectors[3],
        work.vectors[4],
    )
    _blend(square[0], 0.0, t.Q, 1.0)
    for iteration in range(max_iter + 1):
        largest = residual = 0.0
        for i in range(n):
            gradient[i], values[i], center[i] = c1[i], 0.0, 0.0
        for j in range(n):
            f, row, target = eta[j], work.P[j], work.S[j]
            for i in range(n):
                gradient[i] += f * row[i]
                target[i] = row[i]
        for k in range(2):
            s, Z, U, V = t.sizes[k], t.Z[k], work.tall[k, 0], work.tall[k, 1]
            _moments(eta, Z, s, work.vectors[0], square[1, k])
            if not _invert(square[1, k], s, work.small, square[2, k]):
                return False
            _product(square[0, k], Z, s, n, U)
            _product(square[2, k], Z, s, n, V)
            _add_values(U, Z, s, 1.0, values)
            _add_values(V, Z, s, 1.0, center)
        for i in range(n):
            largest = max(largest, abs(gradient[i]))
            residual = max(residual, abs(gradient[i] - values[i]))
        gap = _gap(t.sizes, square, 0.0)
        info[0], info[1] = gap / scale, iteration
        if gap <= tol * scale and residual <= 1e-6 * largest:
            return True
        for k in range(2):
            _add_schur(
                work.tall[k, 0],
                work.tall[k, 1],
                t.Z[k],
                t.sizes[k],
                values,
                work.vectors[5],
                work.S,
            )
        if iteration == max_iter or not eliminate(work.S, n, n):
            return False
        for i in range(n):
            dy[i] = -gradient[i]
        _solve_factored(work.S, dy)
        _directions(t.sizes, t.Z, square, work.vectors[0], 0.0, 0.0, dy)
        ratio = _gap(t.sizes, square, _longest_step(t.sizes, square, work.small, 0.0)) / gap
        mu = gap / size * min(max(ratio * ratio * ratio, 1e-6), 1.0)
        for i in range(n):
            dy[i] = mu * center[i] - gradient[i]
        for k in range(2):  # Mehrotra's second-order term, the values of z'dQ dM Wz
            _product(square[5, k], work.tall[k, 1], t.sizes[k], n, work.tall[k, 0])
            _add_values(work.tall[k, 0], t.Z[k], t.sizes[k], -1.0, dy)
        _solve_factored(work.S, dy)
        _directions(t.sizes, t.Z, square, work.vectors[0], mu, 1.0, dy)
        step = _longest_step(t.sizes, square, work.small, 0.95)
        if step < 1e-8:
            return False
        for i in range(n):
            eta[i] += step * dy[i]
        _blend(square[0], 1.0, square[3], step)
    return False


@kernel()
def certify(c: Array, t: Tables, work: Work, info: Array) -> bool:
    """
    Correct the Gram matrices so that they stand for c exactly, and prove them positive
    semidefinite.

    Each entry enters one equation only, (Cc)_alpha = sum of the Q_ij with z_i z_j = x^alpha, so the
    residual is shared among them. Proof: a Cholesky factorisation succeeds after the diagonal was
    lowered by 4 s (s + 2) eps of itself (its rounding, Higham Thm 10.7) and by the row sums of what
    rounding can leave in the residuals (Gershgorin). info[2] is the margin proved: this amount of
    the reference Gram matrices can be taken off; 0 without a proof.
    """
    n, square, residual, bound, trace = c.size, work.square, work.vectors[0], work.vectors[1], 0.0
    info[2] = 0.0
    for i in range(n):
        residual[i] = bound[i] = 0.0
        for j in range(n):
            term = t.to_monomial[i, j] * c[j]
            residual[i] += term
            bound[i] += abs(term)
    for k in range(2):
        for i in range(t.sizes[k]):
            for j in range(t.sizes[k]):
                square[0, k, i, j] = square[
                    0, k, max(i, j), min(i, j)
                ]  # symmetric to the last bit: one triangle is proved
                residual[t.gram[k, i, j]] -= square[0, k, i, j]
                bound[t.gram[k, i, j]] += abs(square[0, k, i, j])
    for k in range(2):
        s, Q, lowered, inverse = t.sizes[k], square[0, k], square[3, k], square[2, k]
        for i in range(s):
            slack = 0.0
            for j in range(s):
                a = t.gram[k, i, j]
                Q[i, j] += residual[a] * t.share[k, i, j]
                lowered[i, j] = Q[i, j]
                slack += (n + 8) * EPS * bound[a] * t.share[k, i, j]
            lowered[i, i] -= slack + 4.0 * s * (s + 2) * EPS * abs(Q[i, i])
        if not _invert(lowered, s, work.small, inverse):
            return False
        for i in range(s):
            for j in range(s):
                trace += inverse[i, j] * t.Q[k, i, j]
    info[2] = 1.0 / trace
    return True


@kernel()
def _coefficients(t: Tables, work: Work, B: Array, c: Array) -> None:
    """Hermite coefficients of z'Qz; both divided by E(0) = B'c."""
    mono, square, origin = work.vectors[0], work.square, 0.0
    for i in range(c.size):
        mono[i] = 0.0
    for k in range(2):
        for i in range(t.sizes[k]):
            for j in range(t.sizes[k]):
                mono[t.gram[k, i, j]] += square[0, k, i, j]
    for i in range(c.size):
        c[i] = 0.0
        for j in range(c.size):
            c[i] += t.to_hermite[i, j] * mono[j]
        origin += B[i] * c[i]
    for i in range(c.size):
        c[i] /= origin
    _blend(square[0], 1.0 / origin, t.Q, 0.0)


@kernel(inline=True)
def conclude(B: Array, t: Tables, work: Work, c: Array, info: Array) -> int:
    """
    Certified coefficients of the Gram matrices work.square[0], with a share of the reference if
    need be.
    """
    _coefficients(t, work, B, c)
    while not certify(c, t, work, info):
        info[3] = max(10.0 * info[3], 1e-12)
        if not info[3] < 1e-2:
            for i in range(c.size):
                c[i] = math.nan
            return NO_FIT
        _blend(work.square[0], 1.0 - info[3], t.Q, info[3])
        _coefficients(t, work, B, c)
    return SHIFTED if info[3] > 0.0 else CERTIFIED


@kernel(inline=True)
def solve(
    H: Array,
    g: Array,
    B: Array,
    fixed: int,
    t: Tables,
    max_iter: int,
    tol: float,
    work: Work,
    c: Array,
    info: Array,
) -> int:
    """
    Minimise 1/2 c'Hc - g'c subject to p a sum of squares, and to B'c = 1 if `fixed` is 1; Hermite
    coordinates in DIPY's order.

    Parameters
    ----------
    H : (n, n) symmetric, a ridge is added. g, B : (n,). t : `tables(order)`. work : `workspace(n,
        t.Z.shape[1])`.
    max_iter, tol : at most so many steps to a duality gap of tol g'H^-1 g / 2 (50 and 1e-9: it
        takes 8 to 14).
    c : (n,), written; its Gram matrices are left in work.square[0].
    info : (4,), written: relative gap, iterations, margin (`certify`), amount of the reference
        blended in.
    Returns CERTIFIED, SHIFTED, NOT_CONVERGED or NO_FIT (H not positive definite, g zero or not
    finite: c is NaN).
    """
    n, A, ridge = g.size, work.A, 0.0
    info[0] = info[1] = info[2] = info[3] = 0.0
    for i in range(n):
        c[i] = math.nan
        ridge += RIDGE * H[i, i] / n
    for i in range(n + 2):
        for j in range(n + 2):
            A[i, j] = 0.0
    for i in range(n):
        row = A[n + 2 + i]
        for j in range(n):
            row[j], row[n + 2 + j] = t.values[i, j], H[i, j]
        row[n], row[n + 1], row[n + 2 + i] = g[i], B[i], row[n + 2 + i] + ridge
    if not eliminate(A, 2 * n + 2, n):
        return NO_FIT
    scale, gB, BB = -0.5 * A[n, n], -A[n + 1, n], -A[n + 1, n + 1]
    if not 0.0 < scale < math.inf:
        return NO_FIT
    c1, eta, w = work.vectors[6], work.vectors[7], A[n + 1]
    for i in range(n):  # an equality eliminated: P = K H^-1 K' less its part along w = K H^-1 B
        c1[i] = -A[n, i] - fixed * w[i] * (1.0 - gB) / BB
        eta[i] = 0.03 * scale * t.eta[i]
        for j in range(i + 1):
            work.P[i, j] = work.P[j, i] = -A[i, j] - fixed * w[i] * w[j] / BB
    converged = interior_point(c1, eta, scale, t, max_iter, tol, work, info)
    status = conclude(B, t, work, c, info)
    return NOT_CONVERGED if status != NO_FIT and not converged else status


@kernel()
def gram_margin(c: Array, t: Tables, max_iter: int, tol: float, work: Work, info: Array) -> bool:
    """
    Best Gram matrices of given coefficients with E(0) = 1, and whether they prove p >= 0.

    They maximise the amount m <= 1 of the reference polynomial that can be taken off p with a sum
    of squares left. `info` as in `solve`, except info[3]: the best m, known to about 1e-6.
    """
    p, eta = work.vectors[6], work.vectors[7]
    for i in range(c.size):  # minimise (m - 1)^2 / 2 with p - m reference = z'Qz
        p[i], eta[i] = -t.reference[i], t.eta[i]
        for j in range(c.size):
            p[i] += t.values[j, i] * c[j]
            work.P[i, j] = t.reference[i] * t.reference[j]
    interior_point(p, eta, 1.0, t, max_iter, tol, work, info)
    info[3] = 1.0
    for i in range(c.size):
        info[3] -= t.reference[i] * eta[i]
    _blend(work.square[0], 1.0, t.Q, info[3])
    return certify(c, t, work, info)


@kernel()
def scale(H: Array, g: Array, c: Array) -> None:
    """The best multiple of c: on the ray through the optimum of a cone the objective has no slope."""
    slope = curvature = 0.0
    for i in range(c.size):
        slope += g[i] * c[i]
        for j in range(c.size):
            curvature += c[i] * H[i, j] * c[j]
    for i in range(c.size):
        c[i] *= slope / curvature


class GlobalProblem(NamedTuple):
    """What `solve_block` needs besides the block."""

    B: Array  # (n,)
    fixed: int  # 1: E(0) = S0; 0: E(0) is free
    tables: Tables
    max_iter: int
    tol: float


@stage(allocates=True)
def solve_block(problem: GlobalProblem, plan: Any, block: Any, count: int) -> None:
    """
    Solve the sum-of-squares problem of the first `count` voxels of a `blocks.Block`, with the
    margins of their certificates: a stage of `blocks.run`.
    """
    n, t = problem.B.size, problem.tables
    H, g, c, info = np.empty((n, n)), np.empty(n), np.empty(n), np.empty(4)
    work = workspace(n, t.Z.shape[1])
    for l in range(count):
        if skipped(block, l):
            continue
        unpack(plan.moments.permutation, block.G, block.rhs, block.S0[0, l], l, H, g)
        answer = solve(
            H, g, problem.B, problem.fixed, t, problem.max_iter, problem.tol, work, c, info
        )
        if problem.fixed == 0:
            scale(H, g, c)
        if answer == SHIFTED:
            block.status[l] |= status.SHIFTED
        elif answer != CERTIFIED:
            block.status[l] |= status.NOT_CONVERGED
        block.kkt[0, l], block.iterations[0, l], block.margin[0, l] = info[0], info[1], info[2]
        pack(plan.moments.permutation, c, problem.B, l, block)
