"""
Signal, propagator and ODF at points; the isotropic ODF in spherical harmonics; overlaps for PA and NG; negative mass.

Everything takes Hermite coefficients in the frame R at the scales mu, so that both bases share it. Kernels named
``..._rows`` run serially over the rows they are given; their inner loops run over points.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ._jit import BLOCK_MATH, kernel
from .linalg import exp, log
from .ordering import frozen, hermite_to_monomial, index_table, iso_index_table, monomials

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

LANES = 128  # points handled together: their one-dimensional tables stay in the first-level cache

# ---- tables ----------------------------------------------------------------------------------------------------------


@lru_cache
def position_cube(order: int) -> IntArray:
    """Position of (n1, n2, n3) in `index_table(order)`, (order+1,)*3; n_coef, one past the end, where there is none."""
    table = index_table(order)
    out = np.full((order + 1,) * 3, len(table), np.int64)
    out[tuple(table.T)] = np.arange(len(table))
    return frozen(out)


@lru_cache
def odf_table(order: int, s: float) -> tuple[Array, IntArray]:
    """
    Map from Hermite coefficients to the polynomial whose values on the unit sphere are the ODF.

    Parameters
    ----------
    order : even radial order. s : radial moment, any real number above -3.

    Returns
    -------
    table : (n_coef, m), a row a Hermite function, a column a monomial x^a y^b z^c with a <= 1, m = (order+1)(order+2)/2.
    cube : (2, order+1, order+1), the column of each monomial; m where there is none.

    Notes
    -----
    With t = vR/mu and p_k the part of degree k of the polynomial of P, ODF_s(v) = int P(rv) r^(2+s) dr [Ozarslan 2013,
    Eq. 32-35] is sum_k p_k(t/|t|) 2^((k+s+1)/2) Gamma((k+s+3)/2) / ((2 pi)^(3/2) prod(mu) |t|^(3+s)); on the unit
    sphere x^2 = 1 - y^2 - z^2 leaves the fewest terms.
    """
    if not s > -3:
        raise ValueError(f"s must be above -3, or the integral diverges at the origin: got {s}")
    poly = hermite_to_monomial(order)
    keep = [(a, b, c) for a in (0, 1) for b in range(order + 1 - a) for c in range((a + b) % 2, order + 1 - a - b, 2)]
    cube = np.full((2, order + 1, order + 1), len(keep), np.int64)
    cube[tuple(np.array(keep).T) if order else (0, 0, 0)] = np.arange(len(keep))
    out = np.zeros((len(poly), len(keep)))
    for row, (a, b, c) in enumerate(monomials(order).tolist()):
        k, half = a + b + c, a // 2
        radial = 2 ** ((k + s + 1) / 2) * math.gamma((k + s + 3) / 2) / (2 * math.pi) ** 1.5
        for i in range(half + 1):
            for j in range(half + 1 - i):
                count = math.factorial(half) / math.prod(map(math.factorial, (i, j, half - i - j)))
                out[:, cube[a % 2, b + 2 * i, c + 2 * j]] += (-1.0) ** (i + j) * radial * count * poly[row]
    return frozen(out), frozen(cube)


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


@lru_cache
def dense_grid(order: int, spacing: float = 0.5) -> tuple[Array, Array]:
    """
    Tables of `negative_rows`: a half lattice in normalised coordinates x = r/mu, in tiles of LANES points.

    Returns
    -------
    tiles : (T, n_coef, LANES), prod(mu) Psi_n at the points. weights : (T, LANES), spacing^3 twice (antipodes), zero
    for padding. The ball's radius, sqrt(2 order + 1) + 2.5, holds all but 1e-4 of |P|'s mass.
    """
    radius = math.sqrt(2 * order + 1) + 2.5
    steps = int(radius / spacing)
    axis = spacing * (np.arange(-steps, steps) + 0.5)  # half steps: no plane of points, each has its antipode
    x = np.stack(np.meshgrid(axis, axis, axis[steps:], indexing="ij"), -1).reshape(-1, 3)
    x = x[(x * x).sum(1) <= radius**2]
    tiles = -(-len(x) // LANES)
    padded = x[np.minimum(np.arange(tiles * LANES), len(x) - 1)]
    gauss = np.exp(-0.5 * (padded**2).sum(1)) / (2 * np.pi) ** 1.5
    powers = np.prod(padded[:, None, :] ** monomials(order)[None], axis=2)
    values = (powers @ hermite_to_monomial(order)) * gauss[:, None]
    weights = np.where(np.arange(tiles * LANES) < len(x), 2 * spacing**3, 0.0).reshape(tiles, LANES)
    return frozen(np.ascontiguousarray(values.reshape(tiles, LANES, -1).transpose(0, 2, 1))), frozen(weights)


# ---- points ----------------------------------------------------------------------------------------------------------


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
def _gaussians(x: Array, lanes: int, f: Array) -> None:
    """f_0 = exp(-x^2/2) for x (3, L)."""
    for i in range(3):
        xi, f0 = x[i], f[i, 0]
        for l in range(lanes):
            f0[l] = exp(-0.5 * xi[l] * xi[l])


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


@kernel()
def value_rows(coef: Array, mu: Array, R: Array, points: Array, cube: IntArray, real_space: bool, out: Array) -> None:
    """
    Signal E(q) or propagator P(r) of each row at the same points [Ozarslan 2013, Eq. 22-23].

    Parameters
    ----------
    coef : (V, n). mu : (V, 3) mm. R : (V, 3, 3). points : (3, K) in the frame of the b-vectors, q in 1/mm or r in mm.
    cube : `position_cube(order)`. real_space : P (1/mm^3) where True, else E. out : (V, K), written.
    """
    size, n = cube.shape[0], coef.shape[1]
    x, f = np.empty((3, LANES)), np.empty((3, size, LANES))
    inner, total, scale = np.empty(LANES), np.empty(LANES), np.empty(3)
    c, up, down = np.zeros(n + 1), np.empty(size - 1), np.empty(size - 1)
    for i in range(size - 1):  # orthonormal Hermite functions, as in `hermite_functions`, times pi^(1/4)
        up[i], down[i] = math.sqrt(2.0 / (i + 1)), math.sqrt(i / (i + 1.0))
    for v in range(coef.shape[0]):
        factor = 1.0
        for i in range(3):
            scale[i] = 1.0 / mu[v, i] if real_space else 2.0 * math.pi * mu[v, i]
            if real_space:
                factor /= math.sqrt(2.0 * math.pi) * mu[v, i]
        for n1 in range(size):
            for n2 in range(size):
                for n3 in range(size):
                    k = cube[n1, n2, n3]
                    if k < n:
                        c[k] = -coef[v, k] if not real_space and (n1 + n2 + n3) % 4 == 2 else coef[v, k]
        for first in range(0, points.shape[1], LANES):
            lanes = min(LANES, points.shape[1] - first)
            _project(points, first, lanes, R[v], scale, x)
            _gaussians(x, lanes, f)
            _factors(x, lanes, up, down, f)
            _series(c, cube, f, lanes, inner, total)
            row = out[v]
            for l in range(lanes):
                row[first + l] = factor * total[l]


@kernel(fastmath=BLOCK_MATH)
def _unit(x: Array, lanes: int, power: float, factor: float, radial: Array) -> None:
    """Normalise x (3, L) in place and set radial = factor |x|^power."""
    a, b, c = x[0], x[1], x[2]
    for l in range(lanes):
        square = a[l] * a[l] + b[l] * b[l] + c[l] * c[l]
        inverse = 1.0 / math.sqrt(square)
        a[l] *= inverse
        b[l] *= inverse
        c[l] *= inverse
        radial[l] = factor * exp(0.5 * power * log(square))


@kernel(fastmath=BLOCK_MATH)
def _transform(table: Array, a: Array, c: Array) -> None:
    """C = a @ table, for a (n,) and table (n, m); c has m entries and more."""
    m = table.shape[1]
    for k in range(m):
        c[k] = 0.0
    for n in range(a.size):
        row, an = table[n], a[n]
        for k in range(m):
            c[k] += an * row[k]


@kernel()
def odf_rows(
    coef: Array, mu: Array, R: Array, points: Array, table: Array, cube: IntArray, s: float, out: Array
) -> None:
    """
    ODF_s of each row along the same unit directions, mm^s [Ozarslan 2013, Eq. 32-35].

    Parameters
    ----------
    coef : (V, n). mu : (V, 3) mm. R : (V, 3, 3). points : (3, K), unit directions in the frame of the b-vectors.
    table, cube : `odf_table(order, s)`. out : (V, K), or (V, 2K): the second half is then the antipodes of the first.
    """
    size, K = cube.shape[1], points.shape[1]
    x, f = np.empty((3, LANES)), np.empty((3, size, LANES))
    inner, total, scale, radial = np.empty(LANES), np.empty(LANES), np.empty(3), np.empty(LANES)
    c, up, down = np.zeros(table.shape[1] + 1), np.ones(size - 1), np.zeros(size - 1)  # powers
    for i in range(3):
        for l in range(LANES):
            f[i, 0, l] = 1.0
    for v in range(coef.shape[0]):
        for i in range(3):
            scale[i] = 1.0 / mu[v, i]
        _transform(table, coef[v], c)
        row = out[v]
        for first in range(0, K, LANES):
            lanes = min(LANES, K - first)
            _project(points, first, lanes, R[v], scale, x)
            _unit(x, lanes, -(3.0 + s), scale[0] * scale[1] * scale[2], radial)
            _factors(x, lanes, up, down, f)
            _series(c, cube, f, lanes, inner, total)
            for l in range(lanes):
                row[first + l] = radial[l] * total[l]
        if row.size == 2 * K:
            for k in range(K):
                row[K + k] = row[k]


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
