"""
Signal, propagator and ODF at points; the isotropic ODF in spherical harmonics; overlaps for PA and NG; negative mass.

Everything takes Hermite coefficients in the frame R at the scales mu, so both bases share it. Kernels named ``..._rows``
run serially over the voxels they are given; their inner loops run over points.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import BLOCK_MATH, kernel
from .linalg import exp, log
from .ordering import frozen, hermite_to_monomial, index_table, iso_index_table, monomials

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

LANES = 128  # points handled together: their one-dimensional tables stay in the first-level cache
SIGNAL, PROPAGATOR, ODF = 0, 1, 2

# ---- values at points ------------------------------------------------------------------------------------------------


class PointTables(NamedTuple):
    """What `point_rows` evaluates, from `point_tables`: sum_k c_k f_a(x) f_b(y) f_c(z), f_n+1 = up_n x f_n - down_n f_n-1."""

    kind: int
    s: float
    table: Array  # (n_coef, m), coefficients to c, or (1, n_coef): a diagonal
    cube: IntArray  # position in c of (a, b, c); m where there is none
    up: Array
    down: Array


@lru_cache
def position_cube(order: int) -> IntArray:
    """Position of (n1, n2, n3) in `index_table(order)`, (order+1,)*3; n_coef, one past the end, where there is none."""
    table = index_table(order)
    out = np.full((order + 1,) * 3, len(table), np.int64)
    out[tuple(table.T)] = np.arange(len(table))
    return frozen(out)


@lru_cache
def point_tables(order: int, kind: int, s: float = 0.0) -> PointTables:
    """
    Tables of `point_rows` for kind = SIGNAL, PROPAGATOR, or ODF with radial moment s, any real number above -3.

    Notes
    -----
    With t = vR/mu and p_k the part of degree k of the polynomial of P, ODF_s(v) = int P(rv) r^(2+s) dr [Ozarslan 2013,
    Eq. 32-35] is sum_k p_k(t/|t|) 2^((k+s+1)/2) Gamma((k+s+3)/2) / ((2 pi)^(3/2) prod(mu) |t|^(3+s)); on the unit
    sphere x^2 = 1 - y^2 - z^2 leaves the fewest terms, x^a y^b z^c with a <= 1.
    """
    k = np.arange(order, dtype=float)
    if kind != ODF:  # orthonormal Hermite functions, times pi^(1/4)
        sign = (-1.0) ** (index_table(order).sum(1) // 2 * (kind == SIGNAL))
        return PointTables(
            kind, 0.0, frozen(sign[None]), position_cube(order), np.sqrt(2 / (k + 1)), np.sqrt(k / (k + 1))
        )
    if not s > -3:
        raise ValueError(f"s must be above -3, or the integral diverges at the origin: got {s}")
    poly = hermite_to_monomial(order)
    keep = [(a, b, c) for a in (0, 1) for b in range(order + 1 - a) for c in range((a + b) % 2, order + 1 - a - b, 2)]
    cube = np.full((2, order + 1, order + 1), len(keep), np.int64)
    for column, where in enumerate(keep):
        cube[where] = column
    out = np.zeros((len(poly), len(keep)))
    for row, (a, b, c) in enumerate(monomials(order).tolist()):
        degree, half = a + b + c, a // 2
        radial = 2 ** ((degree + s + 1) / 2) * math.gamma((degree + s + 3) / 2) / (2 * math.pi) ** 1.5
        for i in range(half + 1):
            for j in range(half + 1 - i):
                count = math.factorial(half) / math.prod(map(math.factorial, (i, j, half - i - j)))
                out[:, cube[a % 2, b + 2 * i, c + 2 * j]] += (-1.0) ** (i + j) * radial * count * poly[row]
    return PointTables(kind, float(s), frozen(out), frozen(cube), np.ones(order), np.zeros(order))


@kernel(fastmath=BLOCK_MATH)
def _project(points: Array, first: int, lanes: int, R: Array, scale: Array, x: Array) -> None:
    """x_i = scale_i (point . column i of R) for `lanes` points from `first` on; points are (3, K)."""
    p0, p1, p2 = points[0], points[1], points[2]
    for i in range(3):
        a, b, c, xi = scale[i] * R[0, i], scale[i] * R[1, i], scale[i] * R[2, i], x[i]
        for l in range(lanes):
            xi[l] = a * p0[first + l] + b * p1[first + l] + c * p2[first + l]


@kernel(fastmath=BLOCK_MATH)
def _factors(x: Array, lanes: int, up: Array, down: Array, f: Array) -> None:
    """f_{n+1} = up_n x f_n - down_n f_{n-1} for x (3, L) into f (3, N+1, L), from the f_0 that is there."""
    for i in range(3):
        xi = x[i]
        for n in range(up.size):
            a, b, f0, f1, f2 = up[n], down[n], f[i, max(n - 1, 0)], f[i, n], f[i, n + 1]
            for l in range(lanes):
                f2[l] = a * xi[l] * f1[l] - b * f0[l]


@kernel(fastmath=BLOCK_MATH)
def _series(c: Array, cube: IntArray, f: Array, lanes: int, inner: Array, out: Array) -> None:
    """
    Sum over n of c_n f_0,n1 f_1,n2 f_2,n3 into out (L,), four n3 of one parity at a time; inner (L,) is scratch.

    The last entry of c is zero and owned by no n: `cube` points to it where there is no term.
    """
    order = f.shape[1] - 1
    for l in range(lanes):
        out[l] = 0.0
    for n1 in range(cube.shape[0]):
        for l in range(lanes):
            inner[l] = 0.0
        for n2 in range(order - n1 + 1):
            f1 = f[1, n2]
            for n3 in range((n1 + n2) % 2, order - n1 - n2 + 1, 8):
                i1, i2, i3 = min(n3 + 2, order), min(n3 + 4, order), min(n3 + 6, order)
                none = c.size - 1
                c0, c1 = c[cube[n1, n2, n3]], c[cube[n1, n2, i1] if n3 + 2 <= order else none]
                c2 = c[cube[n1, n2, i2] if n3 + 4 <= order else none]
                c3 = c[cube[n1, n2, i3] if n3 + 6 <= order else none]
                r0, r1, r2, r3 = f[2, n3], f[2, i1], f[2, i2], f[2, i3]
                for l in range(lanes):
                    inner[l] += f1[l] * (c0 * r0[l] + c1 * r1[l] + c2 * r2[l] + c3 * r3[l])
        f0 = f[0, n1]
        for l in range(lanes):
            out[l] += inner[l] * f0[l]


@kernel(fastmath=BLOCK_MATH)
def _start(x: Array, lanes: int, kind: int, power: float, f: Array, factor: Array) -> None:
    """
    f_0 = 1 and the factor of each point: the Gaussian exp(-|x|^2/2); for the ODF |x|^power, x (3, L) then normalised.

    The Hermite functions without their Gaussians cannot overflow before the Gaussian underflows: |x|^10 against 1e-304.
    """
    a, b, c, f0, f1, f2 = x[0], x[1], x[2], f[0, 0], f[1, 0], f[2, 0]
    for l in range(lanes):
        f0[l] = 1.0
        f1[l] = 1.0
        f2[l] = 1.0
    if kind == ODF:
        for l in range(lanes):
            square = a[l] * a[l] + b[l] * b[l] + c[l] * c[l]
            inverse = 1.0 / math.sqrt(square)
            a[l] *= inverse
            b[l] *= inverse
            c[l] *= inverse
            factor[l] = exp(0.5 * power * log(square))
    else:
        for l in range(lanes):
            factor[l] = exp(-0.5 * (a[l] * a[l] + b[l] * b[l] + c[l] * c[l]))


@kernel(fastmath=BLOCK_MATH)
def _coefficients(table: Array, a: Array, c: Array) -> None:
    """c = a @ table, or the product with a diagonal, for a (n,); c has one entry more and keeps it."""
    m = table.shape[1]
    for k in range(m):
        c[k] = a[k] * table[0, k] if table.shape[0] == 1 else 0.0
    if table.shape[0] > 1:
        for n in range(a.size):
            row, an = table[n], a[n]
            for k in range(m):
                c[k] += an * row[k]


@kernel()
def point_rows(coef: Array, mu: Array, R: Array, points: Array, tables: PointTables, out: Array) -> None:
    """
    Signal, propagator or ODF of each voxel at the same points [Ozarslan 2013, Eq. 22, 23, 32-35].

    Parameters
    ----------
    coef : (V, n). mu : (V, 3) mm. R : (V, 3, 3).
    points : (3, K) in the frame of the b-vectors: q (1/mm), r (mm), or unit directions.
    tables : `point_tables(order, kind, s)`.
    out : (V, K), written: E, P (1/mm^3) or ODF_s (mm^s); (V, 2K) has the same values again for the antipodes.
    """
    size, K = tables.cube.shape[1], points.shape[1]
    x, f, c = np.empty((3, LANES)), np.empty((3, size, LANES)), np.zeros(tables.table.shape[1] + 1)
    inner, total, factor, scale = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(3)
    for v in range(coef.shape[0]):
        constant = 1.0
        for i in range(3):
            scale[i] = 2.0 * math.pi * mu[v, i] if tables.kind == SIGNAL else 1.0 / mu[v, i]
            if tables.kind == ODF:
                constant /= mu[v, i]
            elif tables.kind == PROPAGATOR:
                constant /= math.sqrt(2.0 * math.pi) * mu[v, i]
        _coefficients(tables.table, coef[v], c)
        row = out[v]
        for first in range(0, K, LANES):
            lanes = min(LANES, K - first)
            _project(points, first, lanes, R[v], scale, x)
            _start(x, lanes, tables.kind, -(3.0 + tables.s), f, factor)
            _factors(x, lanes, tables.up, tables.down, f)
            _series(c, tables.cube, f, lanes, inner, total)
            for l in range(lanes):
                row[first + l] = constant * factor[l] * total[l]
        if row.size == 2 * K:
            for k in range(K):
                row[K + k] = row[k]


@lru_cache
def iso_odf_sh_table(order: int, s: float) -> Array:
    """
    Exact map from isotropic coefficients to the ODF in spherical harmonics at u0 = 1 [Fick 2016, Eq. C8].

    Returns
    -------
    (n_sh, n_coef) with n_sh = (order+1)(order+2)/2, harmonics ``descoteaux07_legacy`` in the frame of the
    coefficients; multiply by u0**s (mm).
    """
    if not s > -3:
        raise ValueError(f"s must be above -3, or the integral diverges at the origin: got {s}")
    table = iso_index_table(order)
    out = np.zeros(((order + 1) * (order + 2) // 2, len(table)))
    for col, (j, el, m) in enumerate(table.tolist()):
        total = 0.0
        for k in range(j):
            binomial = math.gamma(j + el + 0.5) / (math.gamma(el + k + 1.5) * math.factorial(j - k - 1))
            power = (el + s + 3) / 2 + k
            total += (-1.0) ** k * binomial * math.gamma(power) * 2.0**power / math.factorial(k)
        out[el * (el + 1) // 2 + m, col] = (-1.0) ** (j - 1) * 2.0 ** (-(el + 3) / 2) / math.pi * total
    return frozen(out)


# ---- overlaps --------------------------------------------------------------------------------------------------------


@kernel()
def _overlaps(mu: float, target: float, out: Array) -> None:
    """
    Overlaps of unit-norm one-dimensional functions at scales mu (rows n) and target (columns m) into `out`.

    s = 2 mu u/(mu^2+u^2), c = (u^2-mu^2)/(u^2+mu^2): O_00 = sqrt(s), O_0,m+1 = -c sqrt(m/(m+1)) O_0,m-1,
    O_n+1,m = (s sqrt(m) O_n,m-1 + c sqrt(n) O_n-1,m)/sqrt(n+1); 4e-16.
    """
    total = mu * mu + target * target
    s, c = 2.0 * mu * target / total, (target - mu) * (target + mu) / total
    for m in range(out.shape[1]):
        if m == 0:
            out[0, 0] = math.sqrt(s)
        elif m == 1:
            out[0, 1] = 0.0
        else:
            out[0, m] = -c * math.sqrt((m - 1.0) / m) * out[0, m - 2]
    for n in range(out.shape[0] - 1):
        for m in range(out.shape[1]):
            value = s * math.sqrt(float(m)) * out[n, m - 1] if m > 0 else 0.0
            if n > 0:
                value += c * math.sqrt(float(n)) * out[n - 1, m]
            out[n + 1, m] = value / math.sqrt(n + 1.0)


@kernel()
def radial_cosine_rows(coef: Array, mu: Array, target: Array, cube: IntArray, K: int, out: Array) -> None:
    """
    cos^2 of the L2 angle between P and the span of the radial functions 0..K at the scales `target`.

    Parameters
    ----------
    coef : (V, n). mu, target : (V, 3) mm. cube : `position_cube(order)`. out : (V,), written.

    Notes
    -----
    target = (u0, u0, u0): the angle theta_PO of PA [Ozarslan 2013, Eq. 51-56], the isotropic counterpart being the
    projection of P on the l = 0 functions. K = 0 and target = mu of a tensor: the angle to that tensor's Gaussian (NG
    of the isotropic basis). cos^2 = sum_k g_k^2/b_k / sum a^2, g_k = sum_|m|=2k B_m sum_n a_n O O O.
    """
    F, n_all = (cube.shape[0] - 1) // 2, coef.shape[1]
    O = np.empty((3, cube.shape[0], 2 * K + 1))
    even, plane, line, g = np.empty((F + 1, F + 1, F + 1)), np.empty((F + 1, F + 1)), np.empty(F + 1), np.empty(K + 1)
    B = np.empty(K + 1)  # B_2m of one axis: sqrt((2m)!)/(2m)!!
    B[0] = 1.0
    for m in range(K):
        B[m + 1] = B[m] * math.sqrt((2 * m + 1.0) / (2 * m + 2.0))
    for v in range(coef.shape[0]):
        for i in range(3):
            _overlaps(mu[v, i], target[v, i], O[i])
        norm = 0.0
        for k in range(n_all):
            norm += coef[v, k] * coef[v, k]
        for i in range(F + 1):
            for j in range(F + 1):
                for k in range(F + 1):
                    n = cube[2 * i, 2 * j, 2 * k]
                    even[i, j, k] = coef[v, n] if n < n_all else 0.0
        for k in range(K + 1):
            g[k] = 0.0
        for m1 in range(K + 1):  # one axis at a time: the cube of coefficients shrinks to a plane, a line, a number
            for j in range(F + 1):
                for k in range(F + 1):
                    plane[j, k] = 0.0
                    for i in range(F + 1):
                        plane[j, k] += even[i, j, k] * O[0, 2 * i, 2 * m1]
            for m2 in range(K + 1 - m1):
                for k in range(F + 1):
                    line[k] = 0.0
                    for j in range(F + 1):
                        line[k] += plane[j, k] * O[1, 2 * j, 2 * m2]
                for m3 in range(K + 1 - m1 - m2):
                    value = 0.0
                    for k in range(F + 1):
                        value += line[k] * O[2, 2 * k, 2 * m3]
                    g[m1 + m2 + m3] += B[m1] * B[m2] * B[m3] * value
        total, b = 0.0, 1.0  # b_k = Gamma(k+3/2)/(k! Gamma(3/2))
        for k in range(K + 1):
            total += g[k] * g[k] / b
            b *= (k + 1.5) / (k + 1.0)
        out[v] = total / norm if norm != 0.0 else math.nan


def gaussian_cosine(mu: Array, u0: Array) -> Array:
    """cos^2 of the angle of PA_DTI: the tensor's Gaussian, scales mu (..., 3), and the isotropic one, scale u0 (...)."""
    scale = np.asarray(u0)[..., None]
    out: Array = np.prod(2 * mu * scale / (mu**2 + scale**2), axis=-1)
    return out


def propagator_anisotropy(cosine_squared: Array, epsilon: float = 0.4) -> Array:
    """PA from cos^2 of the angle to the isotropic counterpart: sigma(t) = t^3e/(1 - 3t^e + 3t^2e), t = sin."""
    t = np.sqrt(np.maximum(0.0, 1.0 - cosine_squared)) ** epsilon
    out: Array = t**3 / (1.0 - 3.0 * t + 3.0 * t * t)
    return out


# ---- positivity ------------------------------------------------------------------------------------------------------


@lru_cache
def dense_grid(order: int, spacing: float = 0.5) -> tuple[Array, Array]:
    """
    Tables of `negative_rows`: a half lattice in normalised coordinates x = r/mu, in tiles of LANES points.

    Returns
    -------
    tiles : (T, n_coef, LANES), prod(mu) Psi_n at the points. weights : (T, LANES), spacing^3, twice for the antipode,
    zero for padding. The ball's radius, sqrt(2 order + 1) + 3, misses 2e-5 of a basis function's integral.
    """
    radius = math.sqrt(2 * order + 1) + 3
    steps = int(radius / spacing)
    axis = spacing * np.arange(-steps, steps + 1)
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    x = x[len(x) // 2 :]  # the origin and one point of each antipodal pair
    x = x[(x * x).sum(1) <= radius**2]
    tiles = -(-len(x) // LANES)
    padded = x[np.minimum(np.arange(tiles * LANES), len(x) - 1)]
    gauss = np.exp(-0.5 * (padded**2).sum(1)) / (2 * np.pi) ** 1.5
    powers = np.prod(padded[:, None, :] ** monomials(order)[None], axis=2)
    values = (powers @ hermite_to_monomial(order)) * gauss[:, None]
    weights = np.where(np.arange(tiles * LANES) < len(x), 2 * spacing**3, 0.0)
    weights[0] = spacing**3
    tiled = np.ascontiguousarray(values.reshape(tiles, LANES, -1).transpose(0, 2, 1))
    return frozen(tiled), frozen(weights.reshape(tiles, LANES))


@kernel(fastmath=BLOCK_MATH)
def _tile(tile: Array, a: Array, weight: Array, value: Array, result: Array) -> None:
    """Propagator on one tile of points, and its share of (smallest, largest, negative mass) into result (3,)."""
    for l in range(value.size):
        value[l] = 0.0
    for k in range(a.size):
        row, ak = tile[k], a[k]
        for l in range(value.size):
            value[l] += ak * row[l]
    low, high, negative = result[0], result[1], result[2]
    for l in range(value.size):
        low = min(low, value[l])
        high = max(high, value[l])
        negative -= weight[l] * min(value[l], 0.0)
    result[0], result[1], result[2] = low, high, negative


@kernel()
def negative_rows(coef: Array, tiles: Array, weights: Array, out: Array) -> None:
    """
    How far each row's propagator is from positive, on a dense grid.

    Parameters
    ----------
    coef : (V, n) with E(0) = 1, or NaN. tiles, weights : `dense_grid(order)`.
    out : (V, 2), written: smallest value over the largest, and the negative mass (the integral of max(-P, 0)).
    """
    value, state = np.empty(tiles.shape[2]), np.zeros((coef.shape[0], 3))
    for t in range(tiles.shape[0]):  # tiles outside, voxels inside: a tile is read from memory once
        for v in range(coef.shape[0]):
            _tile(tiles[t], coef[v], weights[t], value, state[v])
    for v in range(coef.shape[0]):
        bad = math.isnan(coef[v, 0])
        out[v, 0] = math.nan if bad or not state[v, 1] > 0.0 else state[v, 0] / state[v, 1]
        out[v, 1] = math.nan if bad else state[v, 2]
