"""Index formulas of one voxel: Hermite coefficients a (n,) in DIPY's order, in the tensor's frame,
and mu (3,) in mm.

Every formula is a section or a marginal of P = sum a_n Psi_n: with B_n = Phi_n(0) and
s = (-1)^(exponent/2) of the orders integrated over,

    RTOP = sum s_n B_n a_n / (sqrt(8 pi^3) mu1 mu2 mu3)   1/mm^3   MSD = -laplacian E(0) / 4 pi^2
    RTAP = sum s B a / (2 pi mu2 mu3)                     1/mm^2   1/QIV = -laplacian P(0) / 4 pi^2
    RTPP = sum s B a / (sqrt(2 pi) mu1)                   1/mm     NG^2 = sum_(n>0) a^2 / sum a^2

Each is checked against three-dimensional quadrature. The same functions take several voxels at
once, coef and mu being `lanes.rows` of (n, V) and (3, V).
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import laplacian, ordering
from ._jit import kernel
from ._types import Array, IntArray, Unsigned
from .lanes import WIDTH, pick, rows, sqrt
from .linalg import block_gather


class IndexTables(NamedTuple):
    """Constants of an order; groups list what is summed, then squared, the Gaussian's first."""

    even: Unsigned  # (k,) positions with n1, n2, n3 all even, the only ones with B_n != 0
    origin: Array  # (k,) B_n
    to_origin: Array  # (k,) B_n (-1)^(N/2)
    to_axis: Array  # (k,) B_n (-1)^((n2+n3)/2)
    to_plane: Array  # (k,) B_n (-1)^(n1/2)
    twice: Array  # (k, 3) 1 + 2 n_i
    par_ptr: Unsigned  # groups of equal n1 (n2, n3 even)
    par_src: Unsigned
    par_weight: Array
    perp_ptr: Unsigned  # groups of equal (n2, n3) (n1 even), odd-odd pairs included
    perp_src: Unsigned
    perp_weight: Array
    lap_ptr: Unsigned  # (7,) terms of a'La by factor of mu
    lap_row: Unsigned
    lap_col: Unsigned
    lap_coef: Array


def _groups(keys: IntArray, weight: Array) -> tuple[Unsigned, Unsigned, Array]:
    """Rows of nonzero weight sorted by key: pointers, positions, weights."""
    on = np.flatnonzero(weight)
    order = on[np.argsort(keys[on], kind="stable")]
    bounds = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
    return np.append(bounds, len(order)).astype(np.uint64), order.astype(np.uint64), weight[order]


def _laplacian_terms(order: int) -> tuple[Unsigned, Unsigned, Unsigned, Array]:
    """Terms of a'La sorted by factor, in DIPY's order, both triangles in one."""
    t, place = laplacian.tables(order), ordering.class_permutation(order)
    by = np.argsort(t.factor, kind="stable")
    row, col = place[t.row[by].astype(np.int64)], place[t.column[by].astype(np.int64)]
    ptr = np.searchsorted(t.factor[by], np.arange(7))
    return (
        ptr.astype(np.uint64),
        row.astype(np.uint64),
        col.astype(np.uint64),
        t.coefficient[by] * np.where(row == col, 1.0, 2.0),
    )


@lru_cache
def tables(order: int) -> IndexTables:
    """Constants of the index formulas at a radial order."""
    n = ordering.index_table(order)
    axis = np.array([ordering.axis_origin_value(k) for k in range(order + 1)])
    origin = ordering.origin_values(n)
    even = np.flatnonzero(origin)
    m, b = n[even], origin[even]
    signed = axis * np.where(np.arange(order + 1) % 4 == 2, -1.0, 1.0)  # (-1)^(n/2) sqrt(n!)/n!!
    return IndexTables(
        even.astype(np.uint64),
        b,
        b * (-1.0) ** (m.sum(1) // 2),
        b * (-1.0) ** (m[:, 1:].sum(1) // 2),
        b * (-1.0) ** (m[:, 0] // 2),
        1.0 + 2.0 * m,
        *_groups(n[:, 0], signed[n[:, 1]] * signed[n[:, 2]]),
        *_groups(n[:, 1] * (order + 1) + n[:, 2], signed[n[:, 0]]),
        *_laplacian_terms(order),
    )


@kernel(inline=True)
def _dot(t: IndexTables, weight: Array, coef: Array) -> float:
    total = 0.0 * coef[0]  # zero of its kind, a float or lanes
    for k in range(t.even.size):
        total += weight[k] * coef[t.even[k]]
    return total


@kernel(inline=True)
def rtop(coef: Array, mu: Array, t: IndexTables) -> float:
    """Return-to-origin probability P(0), 1/mm^3 [Ozarslan 2013, Eq. 36]."""
    return _dot(t, t.to_origin, coef) / (math.sqrt(8.0 * math.pi**3) * mu[0] * mu[1] * mu[2])


@kernel(inline=True)
def rtap(coef: Array, mu: Array, t: IndexTables) -> float:
    """Return-to-axis probability, the integral of P along e1, 1/mm^2 [Ozarslan 2013, Eq. 40]."""
    return _dot(t, t.to_axis, coef) / (2.0 * math.pi * mu[1] * mu[2])


@kernel(inline=True)
def rtpp(coef: Array, mu: Array, t: IndexTables) -> float:
    """Return-to-plane probability, P over the plane normal to e1, 1/mm [ibid., Eq. 42]."""
    return _dot(t, t.to_plane, coef) / (math.sqrt(2.0 * math.pi) * mu[0])


@kernel(inline=True)
def _moment(t: IndexTables, weight: Array, coef: Array, x: float, y: float, z: float) -> float:
    """Sum of weight_n a_n ((1 + 2 n1) x + (1 + 2 n2) y + (1 + 2 n3) z)."""
    total = 0.0 * coef[0]
    for k in range(t.even.size):
        total += (
            weight[k]
            * coef[t.even[k]]
            * (t.twice[k, 0] * x + t.twice[k, 1] * y + t.twice[k, 2] * z)
        )
    return total


@kernel(inline=True)
def msd(coef: Array, mu: Array, t: IndexTables) -> float:
    """Mean squared displacement sum a_n B_n sum_i (1 + 2 n_i) mu_i^2, mm^2 [Fick 2016, Eq. D1]."""
    return _moment(t, t.origin, coef, mu[0] * mu[0], mu[1] * mu[1], mu[2] * mu[2])


@kernel(inline=True)
def qiv(coef: Array, mu: Array, t: IndexTables) -> float:
    """Q-space inverse variance 1 / int q^2 E dq, mm^5 [Hosseinbor 2013, Eq. 22]."""
    x, y = 1.0 / (mu[0] * mu[0]), 1.0 / (mu[1] * mu[1])
    z = 1.0 / (mu[2] * mu[2])
    total = _moment(t, t.to_origin, coef, x, y, z)
    total /= 4.0 * math.pi**2 * math.sqrt(8.0 * math.pi**3) * mu[0] * mu[1] * mu[2]
    return pick(total * total, 0.0, 1.0 / total, math.nan)


@kernel(inline=True)
def ng(coef: Array) -> float:
    """Non-Gaussianity, the sine of the angle from P to its Gaussian; exact near 0."""
    rest = 0.0 * coef[0]
    for k in range(1, len(coef)):
        rest += coef[k] * coef[k]
    total = rest + coef[0] * coef[0]
    return pick(total, 0.0, sqrt(rest / total), math.nan)


@kernel()
def beside(
    coef: Array, factor: Array, t: IndexTables, index: IntArray, out: Array, start: int, stop: int
) -> None:
    """NG, NG_par and NG_perp of rows start to stop against the Gaussian of scales mu / factor, into
    columns 5 to 7 of out (V, 9), where factor (V,) is not 1.

    In d dimensions that Gaussian is the sum of (2 f^2 / (1 + f^2))^(d/2) b_n ((1 - f^2) / (1 +
    f^2))^(N/2) times the functions n, and its squared norm f^d that of the first one.
    """
    for v in range(start, stop):
        if not (factor[v] < 1.0 or factor[v] > 1.0):  # without a fit, too
            continue
        f = factor[v] ** 2
        first, ratio = math.sqrt(2.0 * f / (1.0 + f)), (1.0 - f) / (1.0 + f)
        for which in range(3):
            d = 3 if which == 0 else (1 if which == 1 else 2)
            groups = coef.shape[1]
            if which > 0:
                groups = (t.par_ptr if which == 1 else t.perp_ptr).size - 1
            overlap = square = 0.0
            for g in range(groups):
                total, i = 0.0, g
                if which == 0:
                    total = coef[v, g]
                elif which == 1:
                    i = np.int64(t.par_src[t.par_ptr[g]])
                    for k in range(t.par_ptr[g], t.par_ptr[g + 1]):
                        total += t.par_weight[k] * coef[v, t.par_src[k]]
                else:
                    i = np.int64(t.perp_src[t.perp_ptr[g]])
                    for k in range(t.perp_ptr[g], t.perp_ptr[g + 1]):
                        total += t.perp_weight[k] * coef[v, t.perp_src[k]]
                square += total * total
                e = first**d
                for axis in range(3):
                    if which == 0 or (which == 1) == (axis == 0):
                        n = index[i, axis]
                        e *= _axis_value(n) * ratio ** (n // 2)
                overlap += e * total
            cosine2 = overlap * overlap / (square * math.sqrt(f) ** d)
            out[v, 5 + which] = math.sqrt(max(0.0, 1.0 - cosine2))


@kernel()
def _axis_value(n: int) -> float:
    """sqrt(n!) / n!! of even n, 0 of odd n."""
    value = 1.0 if n % 2 == 0 else 0.0
    for k in range(1, n // 2 + 1):
        value *= math.sqrt((2.0 * k - 1.0) / (2.0 * k))
    return value


@kernel(inline=True)
def _section_ng(coef: Array, ptr: Unsigned, src: Unsigned, weight: Array) -> float:
    first = rest = 0.0 * coef[0]
    for group in range(ptr.size - 1):
        total = 0.0 * coef[0]
        for k in range(ptr[group], ptr[group + 1]):
            total += weight[k] * coef[src[k]]
        if group == 0:
            first = total * total
        else:
            rest += total * total
    return pick(first + rest, 0.0, sqrt(rest / (first + rest)), math.nan)


@kernel(inline=True)
def ng_parallel(coef: Array, t: IndexTables) -> float:
    """NG of the section P(x, 0, 0): coefficients of equal n1 are summed before squaring."""
    return _section_ng(coef, t.par_ptr, t.par_src, t.par_weight)


@kernel(inline=True)
def ng_perpendicular(coef: Array, t: IndexTables) -> float:
    """NG of P(0, y, z), over all (n2, n3), odd pairs too: no rotation about e1 changes it."""
    return _section_ng(coef, t.perp_ptr, t.perp_src, t.perp_weight)


@kernel(inline=True)
def laplacian_norm(coef: Array, mu: Array, t: IndexTables) -> float:
    """Norm of the Laplacian of the signal, int (lap E)^2 dq = a'La, mm [Fick 2016, Eq. 10]."""
    total = 0.0 * coef[0]
    for f in range(6):
        part = 0.0 * coef[0]
        for k in range(t.lap_ptr[f], t.lap_ptr[f + 1]):
            part += t.lap_coef[k] * coef[t.lap_row[k]] * coef[t.lap_col[k]]
        i, j = (f, f) if f < 3 else ((0, 1) if f == 3 else ((0, 2) if f == 4 else (1, 2)))
        total += part * mu[i] * mu[i] * mu[j] * mu[j]
    return total / (mu[0] * mu[1] * mu[2])


@kernel()
def nine_indices(coef: Array, mu: Array, t: IndexTables, out: Array) -> None:
    """RTOP, RTAP, RTPP, MSD, QIV, NG, NG_par, NG_perp, norm of the Laplacian into out (9,)."""
    out[0] = rtop(coef, mu, t)
    out[1] = rtap(coef, mu, t)
    out[2] = rtpp(coef, mu, t)
    out[3] = msd(coef, mu, t)
    out[4] = qiv(coef, mu, t)
    out[5] = ng(coef)
    out[6] = ng_parallel(coef, t)
    out[7] = ng_perpendicular(coef, t)
    out[8] = laplacian_norm(coef, mu, t)


@kernel()
def index_rows(
    coef: Array, mu: Array, t: IndexTables, room: Array, out: Array, start: int, stop: int
) -> None:
    """The nine indices of rows start to stop into out (V, 9), by Hermite coefficients (V, n); room
    (n + 12, WIDTH) is scratch.
    """
    n = coef.shape[1]
    a, m = room[:n], room[n : n + 3]
    values = room[n + 3 :]
    for i0 in range(start, stop, WIDTH):
        block_gather(coef, i0, stop, a)
        block_gather(mu, i0, stop, m)
        nine_indices(rows(a, 0), rows(m, 0), t, rows(values, 0))
        for l in range(min(WIDTH, stop - i0)):
            for i in range(out.shape[1]):
                out[i0 + l, i] = values[i, l]


@kernel(inline=True)
def out_of_range(plan: Any, block: Any, l: int) -> bool:
    """Whether MSD, QIV, RTAP or RTPP is not positive (the latter two for the anisotropic basis), or
    |E| above 1 by more than three times the residual.
    """
    t, m = plan.moments, block.mu
    msd = qiv = 0.0
    rtap = rtpp = 0.0
    for i in range(t.origin.size):
        if t.origin[i] != 0.0:
            a, n = t.origin[i] * block.x[i, l], t.index[i]
            one = 1.0 if n[0] % 4 == 0 else -1.0
            two = 1.0 if (n[1] + n[2]) % 4 == 0 else -1.0
            rtpp += one * a
            rtap += two * a
            for k in range(3):
                msd += a * (1 + 2 * n[k]) * m[k, l] ** 2
                qiv += one * two * a * (1 + 2 * n[k]) / m[k, l] ** 2
    low = min(msd, qiv) if plan.isotropic else min(min(msd, qiv), min(rtap, rtpp))
    return not low > 0.0 or block.pivot[0, l] > 1.0 + 3.0 * block.rmse[0, l] / block.S0[0, l] + 1e-6
