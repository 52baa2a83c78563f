"""Index formulas of one voxel: Hermite coefficients a (n,) in DIPY's order, in the tensor's frame,
and mu (3,) in mm.

Every formula is a section or a marginal of P = sum a_n Psi_n: with B_n = Phi_n(0) and
s = (-1)^(exponent/2) of the orders integrated over,

    RTOP = sum s_n B_n a_n / (sqrt(8 pi^3) mu1 mu2 mu3)   1/mm^3   MSD = -laplacian E(0) / 4 pi^2
    RTAP = sum s B a / (2 pi mu2 mu3)                     1/mm^2   1/QIV = -laplacian P(0) / 4 pi^2
    RTPP = sum s B a / (sqrt(2 pi) mu1)                   1/mm     NG^2 = sum_(n>0) a^2 / sum a^2

Each is checked against three-dimensional quadrature. All but NG and the norm of the Laplacian,
int (lap E)^2 dq = a'La in mm [Fick 2016, Eq. 10], are sums that are linear in a (`IndexTables`).
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import lanes, laplacian, ordering
from ._jit import kernel
from ._types import Array, IntArray, Unsigned
from .lanes import WIDTH, pick, rows, sqrt
from .linalg import SparseMap, block_gather, block_map, sparse_map

LINEAR = 9  # sums before the sections


class IndexTables(NamedTuple):
    """Constants of an order, in DIPY's order of coefficients."""

    # (n -> LINEAR + groups) sums of B_n a_n: with the signs of P(0) (RTOP), of the axis (RTAP), of
    # the plane (RTPP), times 1 + 2 n_i (MSD), and times 1 + 2 n_i with the signs of P(0) (QIV);
    # then a_n of equal n1 on the axis, and of equal (n2, n3) on the plane, the Gaussian's first
    sums: SparseMap
    bounds: IntArray  # (3,) where the groups of the axis and of the plane begin, and end
    lap_ptr: Unsigned  # (7,) terms of a'La by factor of mu
    lap_row: Unsigned
    lap_col: Unsigned
    lap_coef: Array
    lap_axes: IntArray  # (6, 2) the factor is mu_i^2 mu_j^2 / (mu1 mu2 mu3)


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
    origin, twice = ordering.origin_values(n), 1.0 + 2.0 * n.T

    def signed(*axes: int) -> Array:
        return np.asarray(origin * (-1.0) ** (n[:, axes].sum(1) // 2))

    at_zero = signed(0, 1, 2)
    one = np.array([ordering.axis_origin_value(k) for k in range(order + 1)])
    one *= np.where(np.arange(order + 1) % 4 == 2, -1.0, 1.0)  # (-1)^(n/2) sqrt(n!)/n!!
    sections = []
    for keys, weight in (
        (n[:, 0], one[n[:, 1]] * one[n[:, 2]]),
        (n[:, 1] * (order + 1) + n[:, 2], one[n[:, 0]]),
    ):
        sections.append([np.where(keys == k, weight, 0.0) for k in np.unique(keys[weight != 0.0])])
    linear = [at_zero, signed(1, 2), signed(0), *(origin * twice), *(at_zero * twice)]
    sums = np.vstack([*linear, *sections[0], *sections[1]])
    i, j = np.nonzero(sums)
    return IndexTables(
        sparse_map(i, j, sums[i, j], len(sums)),
        np.cumsum([LINEAR, *map(len, sections)]),
        *_laplacian_terms(order),
        np.array([[0, 0], [1, 1], [2, 2], [0, 1], [0, 2], [1, 2]]),
    )


@kernel()
def _sine(x: Array, first: int, stop: int) -> float:
    """NG of orthonormal parts first to stop of x, of which the first is the Gaussian's: the sine of
    their angle; exact near 0.
    """
    rest = 0.0 * x[first]  # zero of its kind, a float or lanes
    for k in range(first + 1, stop):
        rest += x[k] * x[k]
    total = rest + x[first] * x[first]
    return pick(total, 0.0, sqrt(rest / total), math.nan)


def room(order: int) -> Array:
    """Scratch for `index_rows`."""
    t = tables(order)
    return lanes.empty(ordering.n_coef(order) + t.sums.ptr.size + 11, WIDTH)


@kernel()
def index_rows(
    coef: Array, mu: Array, t: IndexTables, room: Array, out: Array, start: int, stop: int
) -> None:
    """RTOP, RTAP, RTPP, MSD, QIV, NG, NG_par, NG_perp, norm of the Laplacian of rows start to stop
    into out (V, 9), by Hermite coefficients (V, n) and scales (V, 3); room is `room(order)`.

    [Ozarslan 2013, Eq. 36, 40, 42, 58; Fick 2016, Eq. D1, 10; Hosseinbor 2013, Eq. 22]. NG_par is
    that of P(x, 0, 0); NG_perp of P(0, y, z), odd pairs too: no rotation about e1 changes it.
    """
    n = coef.shape[1]
    a, m = room[:n], room[n : n + 3]
    values, sums = room[n + 3 : n + 12], room[n + 12 :]
    c, u = rows(a, 0), rows(m, 0)
    s, index = rows(sums, 0), rows(values, 0)
    for i0 in range(start, stop, WIDTH):
        block_gather(coef, i0, stop, a)
        block_gather(mu, i0, stop, m)
        block_map(t.sums, a, sums)
        volume, x = u[0] * u[1] * u[2], u[0] * u[0]
        y, z = u[1] * u[1], u[2] * u[2]
        index[0] = s[0] / (math.sqrt(8.0 * math.pi**3) * volume)
        index[1] = s[1] / (2.0 * math.pi * u[1] * u[2])
        index[2] = s[2] / (math.sqrt(2.0 * math.pi) * u[0])
        index[3] = s[3] * x + s[4] * y + s[5] * z
        inverse = s[6] / x + s[7] / y + s[8] / z
        inverse /= 4.0 * math.pi**2 * math.sqrt(8.0 * math.pi**3) * volume
        index[4] = pick(inverse * inverse, 0.0, 1.0 / inverse, math.nan)
        index[5] = _sine(c, 0, n)
        index[6] = _sine(s, t.bounds[0], t.bounds[1])
        index[7] = _sine(s, t.bounds[1], t.bounds[2])
        norm = 0.0 * volume
        for f in range(6):
            part = 0.0 * volume
            for k in range(t.lap_ptr[f], t.lap_ptr[f + 1]):
                part += t.lap_coef[k] * c[t.lap_row[k]] * c[t.lap_col[k]]
            i, j = t.lap_axes[f, 0], t.lap_axes[f, 1]
            norm += part * u[i] * u[i] * u[j] * u[j]
        index[8] = norm / volume
        for l in range(min(WIDTH, stop - i0)):
            for k in range(out.shape[1]):
                out[i0 + l, k] = values[k, l]


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
            begin, end = 0, coef.shape[1]
            if which > 0:
                begin, end = t.bounds[which - 1], t.bounds[which]
            overlap = square = 0.0
            for g in range(begin, end):
                i, total = g, 0.0
                if which == 0:
                    total = coef[v, g]
                else:
                    i = np.int64(t.sums.src[t.sums.ptr[g]])
                    for k in range(t.sums.ptr[g], t.sums.ptr[g + 1]):
                        total += t.sums.coef[k] * coef[v, t.sums.src[k]]
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


@kernel()
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
    positive = msd > 0.0 and qiv > 0.0 and (plan.isotropic or (rtap > 0.0 and rtpp > 0.0))
    return not positive or block.pivot[0, l] > 1.0 + 3.0 * block.rmse[0, l] / block.S0[0, l] + 1e-6
