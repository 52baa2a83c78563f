"""Signal and propagator at points; overlaps with radial functions (PA, NG); negative mass.

    E(q) = sum a_n Phi_n(R'q),   P(r) = sum a_n Psi_n(R'r)     a (V, n), mu (V, 3) mm, R (V, 3, 3)
    cos^2 theta = sum_(k<=K) (g_k^2 / b_k) / sum a^2           [Ozarslan 2013, Eq. 51-56]
    g_k = sum_(|m|=2k) B_m sum_n a_n O1_n1m1 O2_n2m2 O3_n3m3,  b_k = Gamma(k+3/2) / (k! Gamma(3/2))

O holds the overlaps of one-dimensional functions at mu_i and at the scale of the radial functions.
All take Hermite coefficients in the frame R at the scales mu, so both bases share them. Kernels
named ``..._rows`` run serially over rows start .. stop - 1; their inner loops run over points.
"""

import itertools
import math
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from . import ordering
from ._jit import CONTRACT, kernel, n_threads, spread
from ._types import Array, IntArray
from .lanes import WIDTH, empty, every, pick, rows, sqrt
from .linalg import block_gather, block_product, exp

LANES = 128  # points handled together: their one-dimensional tables stay in the first-level cache
GROUP, TILE = 48, 16  # voxels and points of `negative_rows` handled together
SIGNAL, PROPAGATOR = 0, 1

# ---- values at points


class PointTables(NamedTuple):
    """Of sum c_k f_a(x) f_b(y) f_c(z), f_0 = 1, f_n+1 = up_n x f_n - down_n f_n-1."""

    kind: int
    sign: Array  # (n_coef,) coefficients to c
    cube: IntArray  # position in c of (a, b, c); n_coef where there is none
    up: Array
    down: Array


@lru_cache
def point_tables(order: int, kind: int) -> PointTables:
    """Tables of `point_rows` for kind = SIGNAL or PROPAGATOR: orthonormal Hermite functions times
    pi^(1/4), the Gaussian set aside.
    """
    k, terms = np.arange(order, dtype=float), ordering.index_table(order)
    cube = np.full((order + 1,) * 3, len(terms), np.int64)
    cube[tuple(terms.T)] = np.arange(len(terms))
    sign = (-1.0) ** (terms.sum(1) // 2 * (kind == SIGNAL))
    up, down = np.sqrt(2 / (k + 1)), np.sqrt(k / (k + 1))
    return PointTables(kind, ordering.frozen(sign), ordering.frozen(cube), up, down)


@kernel(fastmath=CONTRACT)
def _project(points: Array, first: int, lanes: int, R: Array, scale: Array, x: Array) -> None:
    """x_i = scale_i (point . column i of R), `lanes` of points (3, K) from `first` on."""
    p0, p1 = points[0], points[1]
    p2 = points[2]
    for i in range(3):
        a, b = scale[i] * R[0, i], scale[i] * R[1, i]
        c, xi = scale[i] * R[2, i], x[i]
        for l in range(lanes):
            xi[l] = a * p0[first + l] + b * p1[first + l] + c * p2[first + l]


@kernel(fastmath=CONTRACT)
def _factors(x: Array, lanes: int, up: Array, down: Array, f: Array) -> None:
    """f_n+1 = up_n x f_n - down_n f_n-1 for x (3, L) into f (3, N+1, L), from f_0."""
    for i in range(3):
        xi = x[i]
        for n in range(up.size):
            a, b = up[n], down[n]
            f0, f1 = f[i, max(n - 1, 0)], f[i, n]
            f2 = f[i, n + 1]
            for l in range(lanes):
                f2[l] = a * xi[l] * f1[l] - b * f0[l]


@kernel(fastmath=CONTRACT)
def _series(c: Array, cube: IntArray, f: Array, lanes: int, inner: Array, out: Array) -> None:
    """Sum of c_k f_0,a f_1,b f_2,c into out (L,), four powers at a time; the last c is 0."""
    order, none = f.shape[1] - 1, c.size - 1
    for l in range(lanes):
        out[l] = 0.0
    for n1 in range(cube.shape[0]):
        for l in range(lanes):
            inner[l] = 0.0
        for n2 in range(order - n1 + 1):
            f1 = f[1, n2]
            for n3 in range((n1 + n2) % 2, order - n1 - n2 + 1, 8):
                i1, i2 = min(n3 + 2, order), min(n3 + 4, order)
                i3 = min(n3 + 6, order)
                c0, c1 = c[cube[n1, n2, n3]], c[cube[n1, n2, i1] if n3 + 2 <= order else none]
                c2 = c[cube[n1, n2, i2] if n3 + 4 <= order else none]
                c3 = c[cube[n1, n2, i3] if n3 + 6 <= order else none]
                r0, r1 = f[2, n3], f[2, i1]
                r2, r3 = f[2, i2], f[2, i3]
                for l in range(lanes):
                    inner[l] += f1[l] * (c0 * r0[l] + c1 * r1[l] + c2 * r2[l] + c3 * r3[l])
        f0 = f[0, n1]
        for l in range(lanes):
            out[l] += inner[l] * f0[l]


@kernel(fastmath=CONTRACT)
def _gaussian(x: Array, lanes: int, factor: Array) -> None:
    """exp(-|x|^2/2) of points x (3, L), cut at 1e-304: no Hermite polynomial makes up for it."""
    a, b = x[0], x[1]
    c = x[2]
    for l in range(lanes):
        factor[l] = exp(-0.5 * (a[l] * a[l] + b[l] * b[l] + c[l] * c[l]))


@kernel(allocates=True)
def point_rows(
    coef: Array,
    mu: Array,
    R: Array,
    points: Array,
    tables: PointTables,
    out: Array,
    start: int,
    stop: int,
) -> None:
    """Signal or propagator of each voxel at the same points [Ozarslan 2013, Eq. 22, 23].

    Parameters
    ----------
    coef : (V, n). mu : (V, 3) mm. R : (V, 3, 3).
    points : (3, K) in the frame of the b-vectors: q (1/mm) or r (mm).
    tables : `point_tables`. out : (V, K), written: E or P (1/mm^3).
    """
    size, K = tables.cube.shape[1], points.shape[1]
    x, f = np.empty((3, LANES)), np.empty((3, size, LANES))
    c = np.zeros(tables.sign.size + 1)
    inner, total = np.empty(LANES), np.empty(LANES)
    factor, scale = np.empty(LANES), np.empty(3)
    for i in range(3):
        for l in range(LANES):
            f[i, 0, l] = 1.0
    for v in range(start, stop):
        constant = 1.0
        for i in range(3):
            scale[i] = 2.0 * math.pi * mu[v, i] if tables.kind == SIGNAL else 1.0 / mu[v, i]
            if tables.kind == PROPAGATOR:
                constant /= math.sqrt(2.0 * math.pi) * mu[v, i]
        for k in range(tables.sign.size):
            c[k] = tables.sign[k] * coef[v, k]
        row = out[v]
        for first in range(0, K, LANES):
            lanes = min(LANES, K - first)
            _project(points, first, lanes, R[v], scale, x)
            _gaussian(x, lanes, factor)
            _factors(x, lanes, tables.up, tables.down, f)
            _series(c, tables.cube, f, lanes, inner, total)
            for l in range(lanes):
                row[first + l] = constant * factor[l] * total[l]


def values_at(coef: Array, mu: Array, R: Array, points: Array, tables: PointTables) -> Array:
    """`point_rows` at points (K, 3) on all threads: (V, K)."""
    a, m, f, p = (np.ascontiguousarray(x, float) for x in (coef, mu, R, np.transpose(points)))
    out = np.empty((len(coef), len(points)))
    spread(partial(point_rows, a, m, f, p, tables, out), len(coef), 16, n_threads(None))
    return out


# ---- overlaps


@kernel()
def overlaps(mu: float, target: float, degree: int, size: int, out: Array) -> None:
    """Overlaps of unit-norm one-dimensional functions at scales mu (n <= degree) and target (m <
    size), into out[n size + m].

    s = 2 mu u/(mu^2+u^2), c = (u^2-mu^2)/(u^2+mu^2): O_00 = sqrt(s), O_0,m+1 = -c sqrt(m/(m+1))
    O_0,m-1, O_n+1,m = (s sqrt(m) O_n,m-1 + c sqrt(n) O_n-1,m)/sqrt(n+1); 4e-16. Floats and an array
    (k,), or lanes and rows.
    """
    total = mu * mu + target * target
    s, c = 2.0 * mu * target / total, (target - mu) * (target + mu) / total
    out[0] = sqrt(s)
    for m in range(2, size, 2):
        out[m] = -c * math.sqrt((m - 1.0) / m) * out[m - 2]
    for m in range(1, size, 2):
        out[m] = 0.0 * s
    for n in range(degree):
        here, low = n * size, math.sqrt(n / (n + 1.0))
        up = 1.0 / math.sqrt(n + 1.0)
        for m in range(n % 2, size, 2):  # those of odd n + 1 + m vanish
            out[here + size + m] = 0.0 * s
        for m in range((n + 1) % 2, size, 2):
            value = low * c * out[max(here - size, 0) + m]
            if m > 0:
                value += (up * math.sqrt(float(m))) * s * out[here + m - 1]
            out[here + size + m] = value


@lru_cache
def even_table(order: int) -> IntArray:
    """Rows (position, n1, n2, n3) of the basis functions with three even indices: the only ones
    with a radial part; by n1, then n2.
    """
    table = ordering.index_table(order)
    where = np.flatnonzero((table % 2 == 0).all(1))
    where = where[np.lexsort(table[where].T[::-1])]
    return ordering.frozen(np.column_stack([where, table[where]]))


class RadialRoom(NamedTuple):
    """Constants B_m (K + 1,), and scratch of `radial_cosine_rows` for one thread."""

    B: Array
    a: Array
    scales: Array
    overlaps: Array
    sums: Array


def radial_room(n: int, even: IntArray, K: int) -> RadialRoom:
    """Room for n coefficients: the axes' parts of B are sqrt((2m)!)/(2m)!!."""
    m = np.arange(K)
    B = np.cumprod(np.append(1.0, np.sqrt((2 * m + 1) / (2 * m + 2))))
    size = (even[:, 1].max() + 1) * (2 * K + 1)
    return RadialRoom(B, *(empty(k, WIDTH) for k in (n, 6, 3 * size, 2 * K + 3)))


@kernel()
def radial_cosine_rows(
    coef: Array,
    mu: Array,
    target: Array,
    even: IntArray,
    room: RadialRoom,
    out: Array,
    start: int,
    stop: int,
) -> None:
    """cos^2 of the L2 angle between P and the span of the radial functions k = 0..K at the scales
    `target`.

    Parameters
    ----------
    coef : (V, n). mu, target : (V, 3) mm. even : `even_table(order)`. room : `radial_room(n, even,
        K)`. out : (V,), written.

    Notes
    -----
    target = (u0, u0, u0): theta_PO of PA [Ozarslan 2013, Eq. 51-56], the isotropic counterpart
    being the projection of P on the l = 0 functions. K = 0, target = a tensor's mu: the angle to
    that tensor's Gaussian (NG of the isotropic basis). cos^2 = sum_k g_k^2/b_k / sum a^2, g_k =
    sum_|m|=2k B_m sum_n a_n O O O, b_k = Gamma(k+3/2)/(k! Gamma(3/2)).
    """
    B, sums = room.B, room.sums
    here, there = room.scales[:3], room.scales[3:]
    K, count = B.size - 1, even.shape[0]
    size, length = 2 * K + 1, room.overlaps.shape[0] // 3
    for first in range(start, stop, WIDTH):
        block_gather(coef, first, stop, room.a)
        block_gather(mu, first, stop, here)
        block_gather(target, first, stop, there)
        for axis in range(3):
            O = rows(room.overlaps[axis * length : (axis + 1) * length], 0)
            overlaps(rows(here, 0)[axis], rows(there, 0)[axis], length // size - 1, size, O)
        x, y = rows(room.overlaps[:length], 0), rows(room.overlaps[length : 2 * length], 0)
        z, c = rows(room.overlaps[2 * length :], 0), rows(room.a, 0)
        inner, g = rows(sums[: K + 1], 0), rows(sums[K + 1 :], 0)
        norm, total = every(0.0), every(0.0)
        b = 1.0
        for n in range(coef.shape[1]):
            norm += c[n] * c[n]
        for k in range(K + 1):
            g[k], inner[k] = every(0.0), every(0.0)
        for e in range(count):  # sums over m1 + m2 + m3 = k are convolutions
            n1, n2 = even[e, 1] * size, even[e, 2] * size
            n3 = even[e, 3] * size
            for m in range(K + 1):
                inner[m] += B[m] * c[even[e, 0]] * z[n3 + 2 * m]
            if e + 1 < count and even[e + 1, 1] == even[e, 1] and even[e + 1, 2] == even[e, 2]:
                continue
            for j in range(K + 1):
                plane = every(0.0)
                for m in range(j + 1):
                    plane += (B[m] * B[j - m]) * x[n1 + 2 * m] * y[n2 + 2 * (j - m)]
                for k in range(j, K + 1):
                    g[k] += plane * inner[k - j]
            for m in range(K + 1):
                inner[m] = every(0.0)
        for k in range(K + 1):
            total += g[k] * g[k] / b
            b *= (k + 1.5) / (k + 1.0)
        g[K + 1] = pick(norm, 0.0, total / norm, math.nan)
        for l in range(min(WIDTH, stop - first)):
            out[first + l] = sums[2 * K + 2, l]


def gaussian_cosine(mu: Array, u0: Array) -> Array:
    """cos^2 from a tensor's Gaussian, mu (..., 3), to the isotropic one, u0 (...): PA_DTI."""
    scale = np.asarray(u0)[..., None]
    out: Array = np.prod(2 * mu * scale / (mu**2 + scale**2), axis=-1)
    return out


def propagator_anisotropy(cosine_squared: Array, epsilon: float = 0.4) -> Array:
    """PA from cos^2 of the angle: sigma(t) = t^3e/(1 - 3t^e + 3t^2e), t = sin."""
    t = np.sqrt(np.maximum(0.0, 1.0 - cosine_squared)) ** epsilon
    out: Array = t * t * t / (1.0 - 3.0 * t + 3.0 * t * t)
    return out


# ---- positivity


class DenseGrid(NamedTuple):
    """Tables of `negative_rows`: one octant of a lattice in normalised coordinates x = r/mu, whose
    points stand for all their changes of sign.
    """

    # four (T, TILE, n_k): prod(mu) Psi_n at the points, functions by parity class; the points that
    # fill the last tile are 0
    values: tuple[Array, Array, Array, Array]
    weights: Array  # (T, TILE) volume of a quarter of the points that one stands for
    order: IntArray  # (n,) position in DIPY's order of each function
    bounds: IntArray  # (5,) of the classes


@lru_cache
def dense_grid(order: int, spacing: float = 0.5) -> DenseGrid:
    """The grid of an order: a ball of sqrt(2 order + 1) + 3 misses 2e-5 of an integral."""
    radius = math.sqrt(2 * order + 1) + 3
    axis = spacing * np.arange(int(radius / spacing) + 1)
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    x = x[(x * x).sum(1) <= radius**2]
    powers = np.prod(x[:, None, :] ** ordering.monomials(order)[None], axis=2)
    gauss = np.exp(-0.5 * (x**2).sum(1)) / (2 * np.pi) ** 1.5
    place, bounds = ordering.class_permutation(order), ordering.class_bounds(order)
    tiles = -(-len(x) // TILE)
    values, weights = np.zeros((tiles * TILE, len(place))), np.zeros(tiles * TILE)
    values[: len(x)] = (powers @ ordering.hermite_to_monomial(order) * gauss[:, None])[:, place]
    weights[: len(x)] = spacing**3 * 2.0 ** ((x > 0).sum(1) - 2)
    first, second, third, fourth = (
        ordering.frozen(np.ascontiguousarray(values[:, a:b]).reshape(tiles, TILE, b - a))
        for a, b in itertools.pairwise(bounds)
    )
    classes = first, second, third, fourth
    return DenseGrid(classes, ordering.frozen(weights.reshape(tiles, TILE)), place, bounds)


@kernel(fastmath=CONTRACT)
def _extremes(parts: Array, weight: Array, state: Array) -> None:
    """Add the values at a tile of points, given as sums over the parity classes (4, TILE, V), to
    the smallest, the largest and the negative mass, (3, V).
    """
    for l in range(0, state.shape[1], WIDTH):
        s, t = rows(parts[0], l), rows(parts[1], l)
        v, w = rows(parts[2], l), rows(parts[3], l)
        now = rows(state, l)
        low, high = now[0], now[1]
        negative = now[2]
        for r in range(weight.size):
            a, b = s[r] + t[r], s[r] - t[r]
            c, d = v[r] + w[r], v[r] - w[r]
            for one, two in ((a, c), (b, d)):
                for value in (one + two, one - two):
                    low, high = pick(low, value, value, low), pick(value, high, value, high)
                    negative -= weight[r] * pick(0.0, value, value, 0.0)
        now[0], now[1] = low, high
        now[2] = negative


@kernel(allocates=True)
def negative_rows(coef: Array, grid: DenseGrid, out: Array, start: int, stop: int) -> None:
    """How far each row's propagator is from positive, on a dense grid.

    Parameters
    ----------
    coef : (V, n) with E(0) = 1, or NaN. grid : `dense_grid(order)`.
    out : (V, 2), written: the smallest value (0 where there is no negative one: P vanishes far
        away) over the largest, and the negative mass, the integral of max(-P, 0).
    """
    x, parts = np.empty((coef.shape[1], GROUP)), np.empty((4, TILE, GROUP))
    state = np.empty((3, GROUP))
    for first in range(start, stop, GROUP):
        for l in range(GROUP):
            v = min(first + l, stop - 1)
            for i in range(coef.shape[1]):
                x[i, l] = coef[v, grid.order[i]]
            for i in range(3):
                state[i, l] = 0.0
        for t in range(grid.weights.shape[0]):
            for k in range(4):
                some = x[grid.bounds[k] : grid.bounds[k + 1]]
                block_product(grid.values[k][t], some, parts[k])
            _extremes(parts, grid.weights[t], state)
        for l in range(min(GROUP, stop - first)):
            low, high = state[0, l], state[1, l]
            bad = math.isnan(x[0, l])
            out[first + l, 0] = math.nan if bad or high == 0.0 else low / high
            out[first + l, 1] = math.nan if bad else state[2, l]
