"""From a block of signals to the normal equations M'M and M'y, through moments, and back from
coefficients to signals.

Every row of the design is g = exp(-b u'Du) times a polynomial in q, so M'M is a fixed sparse linear
map of the even moments sum_k g_k^2 q_k^alpha of degree <= 2N, and M'y of those of g y of degree <=
N: M is never formed. Moments are taken in the fixed frame of the b-vectors by a constant matrix
product, rotated to the voxel's frame by shears, scaled by (2 pi mu_i q_ref)^alpha_i, and mapped:
monomials -> Hermite moments -> products H_n H_m = sum_t 2^t t! C(n,t) C(m,t) H_(n+m-2t). The layout
is [row][V], voxels last.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import lanes, ordering
from ._jit import CONTRACT, kernel, stage
from ._types import Array, IntArray, Unsigned
from .lanes import WIDTH, every, pick, rows
from .linalg import SparseMap, block_map, block_product, exp, pad4, sparse_map
from .rotation import Pairs, shear_pairs
from .tensor import UNIT, design_matrix

# Of M'M, relative; beyond it a voxel's moments are taken in its own frame (12, 23, 40 us more at
# orders 6, 8, 10). Coefficients lose a few times it, an index up to thirty times what they lose.
LARGEST_ROUNDING = 1e-9
LARGEST_ROUNDING_ALONE = 1e-10  # where no Laplacian bounds what an ill-conditioned M'M makes of it


class OrderTables(NamedTuple):
    """Constants of one radial order; coefficients in block order (`ordering.block_index_table`)."""

    exponents: Unsigned  # (n2, 3) monomials of degree <= 2N
    steps: Array  # (2N + 1, 2) sqrt(2 / (n + 1)), sqrt(n / (n + 1)) of the recurrence of h_n
    by_axes: Unsigned  # (n2,) their positions in the order of n2, n3, n1
    exponents_low: Unsigned  # (n, 3) monomials of degree <= N
    # (5, p2, 2) for x += t y, y += t x, y += t z, z += t y, z += t x on moments of degree <= 2N
    shears: Pairs
    shears_low: Pairs  # (5, p, 2) the same for degree <= N
    hermite: SparseMap  # (n2 -> n2) monomial to Hermite moments
    gram: SparseMap  # (n2 -> n(n+1)/2) Hermite moments to packed M'M
    right: SparseMap  # (n -> n) monomial moments of g y to M'y
    synthesis: (
        SparseMap  # (n -> n) its transpose: coefficients to the monomials of the fitted polynomial
    )
    permutation: Unsigned  # (n,) position in DIPY's order of each coefficient
    index: IntArray  # (n, 3)
    origin: Array  # (n,) B_n


class Scheme(NamedTuple):
    """Constants of one gradient table at one order."""

    # (n, 6): log g = design @ (D / UNIT); b at the mean tau, so that g is the basis' own Gaussian
    design: Array
    # (n2 4, n) q^alpha, degree <= 2N, q in units of q_ref, rows padded to a multiple of four
    high: Array
    low: Array  # (n_coef 4, n) degree <= N
    low_t: Array  # (n 4, n_coef) its transpose
    wave: float  # 2 pi q_ref, 1/mm
    points: Array  # (n, 3) q in units of q_ref
    # (n,) (sqrt(5) |q| / q_ref)^(2N) eps / N!: how far rounding of the turned moments is amplified
    reach: Array
    rounding: float  # the largest strain (relative rounding of M'M) without `own_frame`


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


def _hermite_map(exponents: IntArray, sign: Array) -> SparseMap:
    """Rows: sign * prod h_ni as combinations of monomials of the same list (all of even degree)."""
    one = [ordering.hermite_coefficients(k) for k in range(int(exponents.max()) + 1)]
    where = ordering.positions(ordering.monomials(int(exponents.sum(1).max())))
    dst, src = [], []
    coef = []
    for r, (n1, n2, n3) in enumerate(exponents):
        for a in range(n1 % 2, n1 + 1, 2):
            for b in range(n2 % 2, n2 + 1, 2):
                for c in range(n3 % 2, n3 + 1, 2):
                    dst.append(r)
                    src.append(where[a, b, c])
                    coef.append(sign[r] * one[n1][a] * one[n2][b] * one[n3][c])
    return sparse_map(np.array(dst), np.array(src), np.array(coef), len(exponents))


def _gram_map(index: IntArray, order: int) -> SparseMap:
    """Packed lower M'M from Hermite moments; vectorised over pairs (plain Python: two seconds)."""
    lookup = np.zeros((2 * order + 1,) * 3, np.int64)
    exponents = ordering.monomials(2 * order)
    lookup[tuple(exponents.T)] = np.arange(len(exponents))
    i, j = np.tril_indices(len(index))
    n, m = index[i], index[j]
    sign = (-1.0) ** ((n.sum(1) + m.sum(1)) // 2)
    most = np.minimum(n, m)
    table = _linearisation(order)
    dst, src = [], []
    coef = []
    for t in np.ndindex((order + 1,) * 3):
        on = np.flatnonzero((most >= t).all(1)) if sum(t) <= order else ()
        if len(on) == 0:
            continue
        p = n[on] + m[on] - 2 * np.array(t)
        dst.append(on)
        src.append(lookup[tuple(p.T)])
        coef.append(sign[on] * np.prod([table[n[on, a], m[on, a], t[a]] for a in range(3)], axis=0))
    return sparse_map(np.concatenate(dst), np.concatenate(src), np.concatenate(coef), len(i))


def _transposed(m: SparseMap) -> SparseMap:
    count = np.diff(m.ptr.astype(np.int64))
    return sparse_map(
        m.src.astype(np.int64), np.repeat(np.arange(len(count)), count), m.coef, len(count)
    )


@lru_cache
def order_tables(order: int) -> OrderTables:
    """Build, once per process, the constants of a radial order."""
    index = ordering.block_index_table(order)
    high, low = ordering.monomials(2 * order), ordering.monomials(order)
    right = _hermite_map(index, (-1.0) ** (index.sum(1) // 2))
    return OrderTables(
        high.astype(np.uint64),
        np.sqrt([[2 / (n + 1), n / (n + 1)] for n in range(2 * order + 1)]),
        np.lexsort((high[:, 0], high[:, 2], high[:, 1])).astype(np.uint64),
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


def scheme(qvecs: Array, tau: float, order: int, rounding: float = LARGEST_ROUNDING) -> Scheme:
    """Constants of q-vectors (n, 3), 1/mm, at an order; tau in s gives the b of the basis'
    Gaussian, 4 pi^2 q^2 tau.
    """
    length = np.linalg.norm(qvecs, axis=1)
    reference = float(length.max()) or 1.0
    unit = qvecs / np.where(length > 0, length, 1.0)[:, None]
    s = qvecs / reference
    powers = np.cumprod(
        np.concatenate([np.ones((1, *s.shape)), np.repeat(s[None], 2 * order, 0)]), axis=0
    )
    high, low = (  # products, not pow: -q gives the very same bits
        np.prod([powers[m[:, k], :, k] for k in range(3)], axis=0)
        for m in map(ordering.monomials, (2 * order, order))
    )
    design = design_matrix(4 * math.pi**2 * length**2 * tau, unit) * UNIT
    reach = (math.sqrt(5) * length / reference) ** (2 * order) * 2.2e-16 / math.factorial(order)
    wave = 2 * math.pi * reference
    points = np.ascontiguousarray(s)
    return Scheme(
        np.ascontiguousarray(design),
        pad4(high),
        pad4(low),
        pad4(low.T),
        wave,
        points,
        reach,
        rounding,
    )


class MomentWork(NamedTuple):
    """Scratch of one block."""

    g: Array  # (n, V) the Gaussian
    gg: Array  # (n, V) g^2 times the weights
    gy: Array  # (n 4, V) g y times the weights; later the fitted signal
    high: Array  # (n2 4, V)
    own: Array  # (n2, V) `hermite` from q in each voxel's frame
    hermite: Array  # (n2, V)
    low: Array  # (n_coef 4, V)
    # (12 (2N+1), V) powers of 2 pi mu_i q_ref, or the Hermite polynomials of four q in each voxel's
    # frame
    power: Array
    angles: Array  # (6, V) tan(half) and sin of the three rotations
    skew: Array  # (3, V) shears z += t y, z += t x, y += t x after them (gradient non-linearity)
    stretch: Array  # (3, V) and the scales after those
    strain: Array  # (1, V) relative rounding of M'M to expect


def workspace(t: OrderTables, s: Scheme, order: int, V: int) -> MomentWork:
    """Scratch for the kernels below."""
    n, n2 = len(s.points), len(t.exponents)
    sizes = (n, n, len(s.low_t), len(s.high), n2, n2, len(s.low), 12 * (2 * order + 1), 6, 3, 3, 1)
    return MomentWork(*(lanes.empty(size, V) for size in sizes))


@kernel(fastmath=CONTRACT)
def gaussian(design: Array, D: Array, g: Array) -> None:
    """g = exp(-b u'Du) for V lanes; D (6, V) in mm2/s."""
    for l in range(0, D.shape[1], WIDTH):
        d, out = rows(D, l), rows(g, l)
        d0, d1 = d[0] / UNIT, d[1] / UNIT
        d2 = d[2] / UNIT
        d3, d4 = d[3] / UNIT, d[4] / UNIT
        d5 = d[5] / UNIT
        for k in range(design.shape[0]):
            x = design[k]
            out[k] = exp(x[0] * d0 + x[1] * d1 + x[2] * d2 + x[3] * d3 + x[4] * d4 + x[5] * d5)


@kernel(fastmath=CONTRACT)
def _weigh(g: Array, y: Array, w: Array, plain: bool, gg: Array, gy: Array) -> None:
    """gg = w g^2, gy = w g y."""
    for l in range(0, g.shape[1], WIDTH):
        a, b = rows(g, l), rows(y, l)
        weight, c = rows(w, l), rows(gg, l)
        d = rows(gy, l)
        for k in range(g.shape[0]):
            x = a[k] if plain else a[k] * weight[k]
            c[k] = x * a[k]
            d[k] = x * b[k]


@stage(CONTRACT)
def _powers(mu: Array, wave: float, degree: int, power: Array) -> None:
    """Row axis (degree + 1) + k: (wave mu_axis)^k."""
    for l in range(0, mu.shape[1], WIDTH):
        m, out = rows(mu, l), rows(power, l)
        for axis in range(3):
            r, x = axis * (degree + 1), wave * m[axis]
            total = every(1.0)
            for k in range(degree + 1):
                out[r + k] = total
                total *= x


@stage(CONTRACT)
def _scale(exponents: Unsigned, degree: int, power: Array, M: Array) -> None:
    """Multiply each monomial by its powers of the scales."""
    stride = np.uint64(degree + 1)
    for l in range(0, M.shape[1], WIDTH):
        p, m = rows(power, l), rows(M, l)
        for r in range(exponents.shape[0]):
            a, b = exponents[r, 0], stride + exponents[r, 1]
            c = stride + stride + exponents[r, 2]
            m[r] *= p[a] * p[b] * p[c]


@kernel(fastmath=CONTRACT)
def expected_rounding(
    s: Scheme, gg: Array, mu: Array, degree: int, high: Array, strain: Array
) -> None:
    """Rounding of M'M, relative to its largest entry, that rotated moments will have.

    Moments along e1, where g decays fastest, are small differences of those of the fixed frame, and
    the Hermite functions of the largest scale magnify what is lost (b = 10000, order 10, D = (1.7,
    .3, .3)e-3: 1e-3 of M'M). Their size is sum g^2 |q|^(2N) against sum g^2; the estimate agreed
    with measured errors within ten times.
    """
    for l in range(0, mu.shape[1], WIDTH):
        weight, m = rows(gg, l), rows(mu, l)
        total = every(0.0)
        for k in range(s.reach.size):
            total += s.reach[k] * weight[k]
        largest = pick(m[0], m[1], m[0], m[1])
        largest = s.wave * pick(largest, m[2], largest, m[2])
        for _ in range(degree):
            total *= largest
        rows(strain, l)[0] = total / rows(high, l)[0]


@kernel(fastmath=CONTRACT)
def own_frame(
    t: OrderTables, s: Scheme, degree: int, bent: bool, mu: Array, l: int, work: MomentWork
) -> None:
    """Hermite moments of voxels l to l + WIDTH - 1 straight from q in each voxel's frame, without
    cancellation, where `work.strain` asks for it; degree = 2N. `bent`: with the shears of
    `work.skew`.
    """
    size, count = degree + 1, s.points.shape[0]
    own, power = rows(work.own, l), rows(work.power, l)
    weight = rows(work.gg, l)
    angles, scale = rows(work.angles, l), rows(mu, l)
    shears = rows(work.skew, l)
    for r in range(t.exponents.shape[0]):
        own[r] = every(0.0)
    for k0 in range(0, count, 4):  # of four points at once, so that each sum is loaded once
        for j in range(4):
            k = min(k0 + j, count - 1)
            x, y = every(s.points[k, 0]), every(s.points[k, 1])
            z = every(s.points[k, 2])
            for i in range(3):  # the shears of `rotate` and `skew_moments`
                tan, sin = angles[2 * i], angles[2 * i + 1]
                a, b = (y, z) if i == 1 else (x, y)
                a += tan * b
                b -= sin * a
                a += tan * b
                if i == 1:
                    y, z = a, b
                else:
                    x, y = a, b
            if bent:
                z += shears[0] * y + shears[1] * x
                y += shears[2] * x
            x, y = s.wave * scale[0] * x, s.wave * scale[1] * y
            z = s.wave * scale[2] * z
            a, b = weight[k] if k0 + j < count else every(0.0), every(1.0)
            c = every(1.0)
            a0, b0 = every(0.0), every(0.0)
            c0 = every(0.0)
            for e in range(size):  # H_n / sqrt(2^n n!) of each axis, the first times the weight
                power[4 * e + j], power[4 * (size + e) + j] = a, b
                power[4 * (2 * size + e) + j] = c
                up, down = t.steps[e, 0], t.steps[e, 1]
                a, a0 = up * x * a - down * a0, a
                b, b0 = up * y * b - down * b0, b
                c, c0 = up * z * c - down * c0, c
        r = 0
        for n2 in range(size):
            for n3 in range(size - n2):
                y2, z3 = 4 * (size + n2), 4 * (2 * size + n3)
                p0, p1 = power[y2] * power[z3], power[y2 + 1] * power[z3 + 1]
                p2, p3 = power[y2 + 2] * power[z3 + 2], power[y2 + 3] * power[z3 + 3]
                for n1 in range((n2 + n3) % 2, size - n2 - n3, 2):
                    x1 = 4 * n1
                    near = power[x1] * p0 + power[x1 + 1] * p1
                    own[r] += near + (power[x1 + 2] * p2 + power[x1 + 3] * p3)
                    r += 1
    hermite, strain = rows(work.hermite, l), rows(work.strain, l)[0]
    for r in range(t.exponents.shape[0]):
        k = t.by_axes[r]
        hermite[k] = pick(strain, s.rounding, own[r], hermite[k])


@kernel(fastmath=CONTRACT)
def fixed_moments(s: Scheme, y: Array, w: Array, plain: bool, D: Array, work: MomentWork) -> None:
    """Moments of g^2 (degree 2N, into work.high) and g y (degree N, work.low) in the fixed frame.

    Parameters
    ----------
    y, w : (n, V) samples and weights. plain : all weights are 1 and all samples positive.
    D : (6, V) the tensor of the basis' Gaussian.
    """
    gaussian(s.design, D, work.g)
    _weigh(work.g, y, w, plain, work.gg, work.gy)
    block_product(s.high, work.gg, work.high)
    block_product(s.low, work.gy, work.low)


@kernel(fastmath=CONTRACT)
def low_moments(s: Scheme, y: Array, w: Array, work: MomentWork) -> None:
    """Of `fixed_moments`, those of g y alone (work.low), with the g that it left."""
    for l in range(0, y.shape[1], WIDTH):
        a, b = rows(work.g, l), rows(y, l)
        weight, c = rows(w, l), rows(work.gy, l)
        for k in range(y.shape[0]):
            c[k] = a[k] * weight[k] * b[k]
    block_product(s.low, work.gy, work.low)


@kernel(fastmath=CONTRACT)
def hermite_moments(t: OrderTables, s: Scheme, degree: int, mu: Array, work: MomentWork) -> None:
    """Moments in the voxel's frame to Hermite moments at scales mu (3, V) (work.hermite), and to
    moments of degree N at these scales (work.low); degree = 2N.
    """
    _powers(mu, s.wave, degree, work.power)
    _scale(t.exponents, degree, work.power, work.high)
    block_map(t.hermite, work.high, work.hermite)
    scale_low(t, degree, work)


@stage(CONTRACT)
def scale_low(t: OrderTables, degree: int, work: MomentWork) -> None:
    """Moments of degree N at the scales whose powers are there (work.low)."""
    _scale(t.exponents_low, degree, work.power, work.low)


@kernel(fastmath=CONTRACT)
def polynomial(
    t: OrderTables, s: Scheme, order: int, coef: Array, mu: Array, work: MomentWork
) -> None:
    """Coefficients (n, V), block order, to the monomials of the fitted polynomial in the voxel's
    frame (work.low): the transpose of the way to M'y.
    """
    block_map(t.synthesis, coef, work.low)
    _powers(mu, s.wave, 2 * order, work.power)
    scale_low(t, 2 * order, work)


@kernel(fastmath=CONTRACT)
def signal(s: Scheme, work: MomentWork, out: Array) -> None:
    """Signals sum_n c_n Phi_n(q_k) of V voxels into out (n 4, V), from the polynomial in the fixed
    frame (work.low) and the voxels' Gaussians (work.g).
    """
    block_product(s.low_t, work.low, out)
    for l in range(0, out.shape[1], WIDTH):
        fitted, g = rows(out, l), rows(work.g, l)
        for k in range(s.design.shape[0]):
            fitted[k] *= g[k]
