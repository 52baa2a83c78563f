"""
From a block of signals to the normal equations M'M and M'y, through moments, and back from coefficients to signals.

Every row of the design is g = exp(-b u'Du) times a polynomial in q, so M'M is a fixed sparse linear map of the even
moments sum_k g_k^2 q_k^alpha of degree <= 2N, and M'y of those of g y of degree <= N: M is never formed. Moments are
taken in the fixed frame of the b-vectors by a constant matrix product, rotated to the voxel's frame by shears, scaled
by (2 pi mu_i q_ref)^alpha_i, and mapped: monomials -> Hermite moments -> products H_n H_m = sum_t 2^t t! C(n,t) C(m,t)
H_(n+m-2t). The layout is [row][V], voxels last.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import ordering
from ._jit import BLOCK_MATH, kernel
from .linalg import SparseMap, block_map, block_product, exp, sparse_map
from .rotation import Pairs, rotate, rotate_back, shear_pairs, skew_back, skew_moments
from .tensor import UNIT, design_matrix, pad4

Array = NDArray[np.float64]
LARGEST_ROUNDING = 1e-7  # of M'M, relative; beyond it a voxel's moments are taken in its own frame, 25-35 us more


class OrderTables(NamedTuple):
    """Constants of one radial order; coefficients in block order (`ordering.block_index_table`)."""

    exponents: NDArray[np.uint64]  # (n2, 3) monomials of degree <= 2N
    exponents_low: NDArray[np.uint64]  # (n, 3) monomials of degree <= N
    shears: Pairs  # (5, p2, 2) for x += t y, y += t x, y += t z, z += t y, z += t x on moments of degree <= 2N
    shears_low: Pairs  # (5, p, 2) the same for degree <= N
    hermite: SparseMap  # (n2 -> n2) monomial to Hermite moments
    gram: SparseMap  # (n2 -> n(n+1)/2) Hermite moments to packed M'M
    right: SparseMap  # (n -> n) monomial moments of g y to M'y
    synthesis: SparseMap  # (n -> n) its transpose: coefficients to the monomials of the fitted polynomial
    permutation: NDArray[np.uint64]  # (n,) position in DIPY's order of each coefficient
    index: NDArray[np.int64]  # (n, 3)
    origin: Array  # (n,) B_n


class Scheme(NamedTuple):
    """Constants of one gradient table at one order."""

    design: Array  # (n, 6): log g = design @ (D / UNIT); b at the mean tau, so that g is the basis' own Gaussian
    high: Array  # (n2 4, n 4) q^alpha, degree <= 2N, q in units of q_ref, padded
    low: Array  # (n 4, n 4) degree <= N
    low_t: Array  # its transpose, padded
    wave: float  # 2 pi q_ref, 1/mm
    points: Array  # (n, 3) q in units of q_ref
    reach: Array  # (n,) (sqrt(5) |q| / q_ref)^(2N) eps / N!: how far rounding of the turned moments is amplified


def _linearisation(order: int) -> Array:
    """Coefficients c[n, m, t] of h_n h_m = sum_t c h_(n+m-2t), h_n = H_n / sqrt(2^n n!)."""
    out = np.zeros((order + 1, order + 1, order + 1))
    f = math.factorial
    for n in range(order + 1):
        for m in range(order + 1):
            for t in range(min(n, m) + 1):
                p = n + m - 2 * t
                ratio = 2.0**p * f(p) / (2.0**n * f(n) * 2.0**m * f(m))
                out[n, m, t] = 2.0**t * f(t) * math.comb(n, t) * math.comb(m, t) * math.sqrt(ratio)
    return out


def _hermite_map(exponents: NDArray[np.int64], sign: Array) -> SparseMap:
    """Rows: sign * prod h_ni as a combination of monomials of the same list (all of even degree)."""
    one = [ordering.hermite_coefficients(k) for k in range(int(exponents.max()) + 1)]
    where = ordering.positions(ordering.monomials(int(exponents.sum(1).max())))
    rows, cols, coef = [], [], []
    for r, (n1, n2, n3) in enumerate(exponents):
        for a in range(n1 % 2, n1 + 1, 2):
            for b in range(n2 % 2, n2 + 1, 2):
                for c in range(n3 % 2, n3 + 1, 2):
                    rows.append(r)
                    cols.append(where[a, b, c])
                    coef.append(sign[r] * one[n1][a] * one[n2][b] * one[n3][c])
    return sparse_map(np.array(rows), np.array(cols), np.array(coef), len(exponents))


def _gram_map(index: NDArray[np.int64], order: int) -> SparseMap:
    """Packed lower M'M from Hermite moments; vectorised over pairs (plain Python took two seconds)."""
    lookup = np.zeros((2 * order + 1,) * 3, np.int64)
    exponents = ordering.monomials(2 * order)
    lookup[tuple(exponents.T)] = np.arange(len(exponents))
    i, j = np.tril_indices(len(index))
    n, m = index[i], index[j]
    sign = (-1.0) ** ((n.sum(1) + m.sum(1)) // 2)
    most = np.minimum(n, m)
    table = _linearisation(order)
    rows, cols, coef = [], [], []
    for t in np.ndindex((order + 1,) * 3):
        on = np.flatnonzero((most >= t).all(1))
        if len(on) == 0:
            continue
        p = n[on] + m[on] - 2 * np.array(t)
        rows.append(on)
        cols.append(lookup[tuple(p.T)])
        coef.append(sign[on] * np.prod([table[n[on, a], m[on, a], t[a]] for a in range(3)], axis=0))
    return sparse_map(np.concatenate(rows), np.concatenate(cols), np.concatenate(coef), len(i))


def _transposed(m: SparseMap) -> SparseMap:
    count = np.diff(m.ptr.astype(np.int64))
    return sparse_map(m.src.astype(np.int64), np.repeat(m.dst.astype(np.int64), count), m.coef, len(count))


@lru_cache
def order_tables(order: int) -> OrderTables:
    """Build, once per process, the constants of a radial order."""
    index = ordering.block_index_table(order)
    high, low = ordering.monomials(2 * order), ordering.monomials(order)
    right = _hermite_map(index, (-1.0) ** (index.sum(1) // 2))
    return OrderTables(
        high.astype(np.uint64),
        low.astype(np.uint64),
        shear_pairs(2 * order),
        shear_pairs(order),
        _hermite_map(high, np.ones(len(high))),
        _gram_map(index, order),
        right,
        _transposed(right),
        ordering.class_permutation(order).astype(np.uint64),
        index.copy(),
        ordering.origin_values(index),
    )


def scheme(qvecs: Array, tau: float, order: int) -> Scheme:
    """Constants of q-vectors (n, 3), 1/mm, at an order; tau in s gives the b of the basis' Gaussian, 4 pi^2 q^2 tau."""
    length = np.linalg.norm(qvecs, axis=1)
    reference = float(length.max()) or 1.0
    unit = qvecs / np.where(length > 0, length, 1.0)[:, None]
    s = qvecs / reference
    powers = np.cumprod(np.concatenate([np.ones((1, *s.shape)), np.repeat(s[None], 2 * order, 0)]), axis=0)
    high, low = (  # products, not pow: -q gives the very same bits
        np.prod([powers[m[:, k], :, k] for k in range(3)], axis=0) for m in map(ordering.monomials, (2 * order, order))
    )
    design = design_matrix(4 * math.pi**2 * length**2 * tau, unit) * UNIT
    reach = (math.sqrt(5) * length / reference) ** (2 * order) * 2.2e-16 / math.factorial(order)
    wave = 2 * math.pi * reference
    return Scheme(np.ascontiguousarray(design), pad4(high), pad4(low), pad4(low.T), wave, np.ascontiguousarray(s), reach)


class MomentWork(NamedTuple):
    """Scratch of one block."""

    g: Array  # (n 4, V) the Gaussian
    gg: Array  # (n 4, V) g^2 times the weights
    gy: Array  # (n 4, V) g y times the weights; later the fitted signal
    high: Array  # (n2 4, V)
    hermite: Array  # (n2, V)
    low: Array  # (n 4, V)
    power: Array  # (3 (2N+1), V) powers of 2 pi mu_i q_ref
    angles: Array  # (6, V) tan(half) and sin of the three rotations
    skew: Array  # (3, V) shears y += t x, z += t y, z += t x after them (gradient non-linearity)
    stretch: Array  # (3, V) and the scales after those
    strain: Array  # (V,) relative rounding of M'M to expect
    own: Array  # (3 (2N+1), n) powers of one voxel's q in its frame


def workspace(t: OrderTables, s: Scheme, order: int, lanes: int) -> MomentWork:
    """Scratch for the kernels below."""
    rows = s.high.shape[1]
    sizes = (rows, rows, rows, s.high.shape[0], len(t.exponents), s.low.shape[0], 3 * (2 * order + 1), 6, 3, 3)
    blocks = [np.zeros((size, lanes)) for size in sizes]
    return MomentWork(*blocks, np.zeros(lanes), np.zeros((3 * (2 * order + 1), len(s.points))))


@kernel(fastmath=BLOCK_MATH)
def gaussian(design: Array, D: Array, g: Array) -> None:
    """g = exp(-b u'Du) for V lanes; D (6, V) in mm2/s."""
    b0, b1, b2, b3, b4, b5 = D[0], D[1], D[2], D[3], D[4], D[5]
    f = 1.0 / UNIT
    for k in range(design.shape[0]):
        x = design[k]
        x0, x1, x2, x3, x4, x5 = f * x[0], f * x[1], f * x[2], f * x[3], f * x[4], f * x[5]
        out = g[k]
        for l in range(out.size):
            out[l] = exp(x0 * b0[l] + x1 * b1[l] + x2 * b2[l] + x3 * b3[l] + x4 * b4[l] + x5 * b5[l])


@kernel(fastmath=BLOCK_MATH)
def _weigh(g: Array, y: Array, w: Array, plain: bool, n: int, gg: Array, gy: Array) -> None:
    """gg = w g^2, gy = w g y."""
    for k in range(n):
        a, b, c, d = g[k], y[k], gg[k], gy[k]
        for l in range(a.size):
            c[l] = a[l] * a[l]
            d[l] = a[l] * b[l]
        if not plain:
            weight = w[k]
            for l in range(a.size):
                c[l] *= weight[l]
                d[l] *= weight[l]


@kernel(fastmath=BLOCK_MATH)
def _powers(mu: Array, wave: float, degree: int, power: Array) -> None:
    """Row axis (degree + 1) + k: (wave mu_axis)^k."""
    for axis in range(3):
        m = mu[axis]
        for k in range(degree + 1):
            row = power[axis * (degree + 1) + k]
            if k == 0:
                for l in range(m.size):
                    row[l] = 1.0
            else:
                before = power[axis * (degree + 1) + k - 1]
                for l in range(m.size):
                    row[l] = before[l] * (wave * m[l])


@kernel(fastmath=BLOCK_MATH)
def _scale(exponents: NDArray[np.uint64], degree: int, power: Array, M: Array) -> None:
    """Multiply each monomial by its powers of the scales."""
    stride = np.uint64(degree + 1)
    for r in range(exponents.shape[0]):
        a = power[exponents[r, 0]]
        b = power[stride + exponents[r, 1]]
        c = power[stride + stride + exponents[r, 2]]
        row = M[r]
        for l in range(row.size):
            row[l] *= a[l] * b[l] * c[l]


@kernel(fastmath=BLOCK_MATH)
def _expected_rounding(s: Scheme, gg: Array, mu: Array, degree: int, high: Array, strain: Array) -> None:
    """
    Rounding of M'M, relative to its largest entry, that rotated moments will have.

    Moments along e1, where g decays fastest, are small differences of those of the fixed frame, and the Hermite
    functions of the largest scale magnify what is lost (b = 10000, order 10, D = (1.7, .3, .3)e-3: 1e-3 of M'M). Their
    size is sum g^2 |q|^(2N) against sum g^2; the estimate agreed with measured errors within ten times.
    """
    for l in range(strain.size):
        strain[l] = 0.0
    for k in range(s.reach.size):
        c, row = s.reach[k], gg[k]
        for l in range(strain.size):
            strain[l] += c * row[l]
    for l in range(strain.size):
        strain[l] *= (s.wave * max(mu[0, l], max(mu[1, l], mu[2, l]))) ** degree / high[0, l]


@kernel(fastmath=BLOCK_MATH)
def _own_frame(t: OrderTables, s: Scheme, turn: int, work: MomentWork, l: int) -> None:
    """Moments of degree <= 2N of one lane straight from q in its frame, over those of `work.high`: no cancellation."""
    n, size, own = s.points.shape[0], work.own.shape[0] // 3, work.own
    for axis in range(3):
        for k in range(n):
            own[axis * size, k] = 1.0
            own[axis * size + 1, k] = s.points[k, axis]
    for i in range(3):  # the shears of `rotate` and `skew_moments`
        a, b = (own[size + 1], own[2 * size + 1]) if i == 1 else (own[1], own[size + 1])
        tan, sin = work.angles[2 * i, l], work.angles[2 * i + 1, l]
        for k in range(n):
            a[k] += tan * b[k]
            b[k] -= sin * a[k]
            a[k] += tan * b[k]
    if turn == 2:
        for k in range(n):
            own[2 * size + 1, k] += work.skew[1, l] * own[size + 1, k] + work.skew[2, l] * own[1, k]
            own[size + 1, k] += work.skew[0, l] * own[1, k]
    for axis in range(3):
        for e in range(axis * size + 2, (axis + 1) * size):
            for k in range(n):
                own[e, k] = own[e - 1, k] * own[axis * size + 1, k]
    for e in range(size):
        for k in range(n):
            own[e, k] *= work.gg[k, l]
    stride = np.uint64(size)
    for r in range(t.exponents.shape[0]):
        a = own[t.exponents[r, 0]]
        b = own[stride + t.exponents[r, 1]]
        c = own[stride + stride + t.exponents[r, 2]]
        total = 0.0
        for k in range(n):
            total += a[k] * b[k] * c[k]
        work.high[r, l] = total


@kernel()
def normal_equations(
    t: OrderTables, s: Scheme, order: int, y: Array, w: Array, plain: bool, D: Array, mu: Array, turn: int,
    work: MomentWork, G: Array, rhs: Array,
) -> None:  # fmt: skip
    """
    Packed M'M (n(n+1)/2, V) and M'y (n, V), in block order, of the basis at mu (3, V) in the frame of work.angles.

    Parameters
    ----------
    y, w : (n, V) samples and weights. D : (6, V) the tensor of the basis' Gaussian. turn : 0 leaves the fixed frame,
        1 rotates by work.angles, 2 shears by work.skew after that (mu then times work.stretch).
    """
    gaussian(s.design, D, work.g)
    _weigh(work.g, y, w, plain, s.design.shape[0], work.gg, work.gy)
    block_product(s.high, work.gg, work.high)
    block_product(s.low, work.gy, work.low)
    if turn > 0:
        rotate(t.shears, work.angles, work.high)
        rotate(t.shears_low, work.angles, work.low)
    if turn == 2:
        skew_moments(t.shears, work.skew, work.high)
        skew_moments(t.shears_low, work.skew, work.low)
    if turn > 0:
        _expected_rounding(s, work.gg, mu, 2 * order, work.high, work.strain)
        for l in range(mu.shape[1]):
            if work.strain[l] > LARGEST_ROUNDING:
                _own_frame(t, s, turn, work, l)
    _powers(mu, s.wave, 2 * order, work.power)
    _scale(t.exponents, 2 * order, work.power, work.high)
    _scale(t.exponents_low, 2 * order, work.power, work.low)
    block_map(t.hermite, work.high, work.hermite)
    block_map(t.gram, work.hermite, G)
    block_map(t.right, work.low, rhs)


@kernel()
def fitted_signal(
    t: OrderTables, s: Scheme, order: int, coef: Array, mu: Array, turn: int, work: MomentWork, out: Array
) -> None:
    """
    Signals sum_n c_n Phi_n(q_k) of V voxels into out (n 4, V), by the transpose of the way to M'y.

    `work.g` and `work.angles` belong to these voxels; coef (n, V) in block order.
    """
    block_map(t.synthesis, coef, work.low)
    _powers(mu, s.wave, 2 * order, work.power)
    _scale(t.exponents_low, 2 * order, work.power, work.low)
    if turn == 2:
        skew_back(t.shears_low, work.skew, work.low)
    if turn > 0:
        rotate_back(t.shears_low, work.angles, work.low)
    block_product(s.low_t, work.low, out)
    for k in range(s.design.shape[0]):
        a, b = out[k], work.g[k]
        for l in range(a.size):
            a[l] *= b[l]
