"""The ODF as a homogeneous form: values along fixed directions, and linear functions of them.

Everything takes Hermite coefficients in the frame R at the scales mu, so both bases share it.
Kernels named ``..._rows`` run serially over rows start .. stop - 1, with voxels in lanes.
"""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from . import frames, moments
from ._jit import CONTRACT, kernel, n_threads, spread
from ._types import Array, IntArray
from .lanes import WIDTH, every, rows, sqrt
from .linalg import block_gather, block_product, exp, log, pad4
from .ordering import frozen, hermite_to_monomial, monomials, positions
from .rotation import Pairs, shear_pairs

GROUP = 48  # voxels handled together
TILE = 64  # directions handled together: their values stay in the first-level cache


class Forms(NamedTuple):
    """ODF(v) = p(v) (v'Av)^-half of V voxels, v in the frame of the b-vectors."""

    p: Array  # (V, m) coefficients of v^alpha, |alpha| = the radial order, mm^s
    A: Array  # (V, 6) xx xy yy xz yz zz
    half: float  # (3 + s + order)/2


class Along(NamedTuple):
    """Directions in T tiles, and what their values are multiplied with."""

    base: Array  # (T, TILE, m) `powers_at` the directions
    square: Array  # (T, TILE, 6) xx 2xy yy 2xz 2yz zz
    project: Array  # (T, k, TILE), or (T, 0, TILE) for the values themselves


@lru_cache
def powers_of_degree(degree: int) -> IntArray:
    """Exponents of the (degree + 1)(degree + 2)/2 monomials of one even degree."""
    table = monomials(degree)
    return frozen(np.ascontiguousarray(table[table.sum(1) == degree]))


def powers_at(points: Array, degree: int) -> Array:
    """Those monomials at points (K, 3): (K, m)."""
    steps = np.concatenate([np.ones((1, *points.shape)), np.repeat(points[None], degree, 0)])
    table, power = powers_of_degree(degree), np.cumprod(steps, axis=0)
    out: Array = power[table[:, 0], :, 0] * power[table[:, 1], :, 1] * power[table[:, 2], :, 2]
    return np.ascontiguousarray(out.T)


@lru_cache
def _form_table(order: int, s: float) -> Array:
    """Matrix (m, n_coef), rows padded for `block_product`: Hermite coefficients to p at mu = 1, R =
    1.

    A part of degree k of the polynomial of P is raised to the radial order by |t|^2.
    """
    where = positions(powers_of_degree(order))
    out, poly = np.zeros((len(where), len(hermite_to_monomial(order)))), hermite_to_monomial(order)
    for row, (a, b, c) in enumerate(monomials(order).tolist()):
        power, left = (a + b + c + s + 3) / 2, (order - a - b - c) // 2
        radial = 2 ** (power - 1) * math.gamma(power) / (2 * math.pi) ** 1.5
        for i in range(left + 1):
            for j in range(left + 1 - i):
                ways = math.factorial(left) / math.prod(map(math.factorial, (i, j, left - i - j)))
                at = where[a + 2 * i, b + 2 * j, c + 2 * (left - i - j)]
                out[at] += radial * ways * poly[row]
    return frozen(pad4(out))


@lru_cache
def _shears(order: int) -> Pairs:
    """`shear_pairs` of the monomials of degree `order` alone."""
    pairs = shear_pairs(order)
    first = np.uint64(len(monomials(order)) - len(powers_of_degree(order)))
    count = int((pairs[0, :, 0] >= first).sum())  # the last ones, for every shear
    out: Pairs = pairs[:, pairs.shape[1] - count :] - first
    return np.ascontiguousarray(out)


@kernel(allocates=True)
def form_rows(
    coef: Array, mu: Array, R: Array, table: Array, s: float, f: Forms, start: int, stop: int
) -> None:
    """Forms with p (V, m) in the tensor's frame and A (V, 6) in that of the b-vectors, into f.

    Lengths count in units of the scales' geometric mean g, and ODF_s is g^s times what it is there.
    """
    a, here = np.empty((coef.shape[1], WIDTH)), np.empty((3, WIDTH))
    out, p = np.empty((table.shape[0], WIDTH)), f.p
    order = 0
    while (order + 1) * (order + 2) < 2 * p.shape[1]:
        order += 1
    for first in range(start, stop, WIDTH):
        block_gather(coef, first, stop, a)
        block_gather(mu, first, stop, here)
        block_product(table, a, out)
        u, q = rows(here, 0), rows(out, 0)
        k = 0
        size = log(u[0] * u[1] * u[2]) * (1.0 / 3.0)
        g, factor = exp(size), exp(size * s)
        u[0], u[1] = g / u[0], g / u[1]
        u[2] = g / u[2]
        for _ in range(order):
            factor *= u[0]
        y, z = u[1] / u[0], u[2] / u[0]
        for i in range(order + 1):  # x^(N-i-j) y^j z^i, as `powers_of_degree` has them
            scale = factor
            for _ in range(order + 1 - i):
                q[k] *= scale
                scale *= y
                k += 1
            factor *= z
        for l in range(min(WIDTH, stop - first)):
            for n in range(p.shape[1]):
                p[first + l, n] = out[n, l]
            frame, r = R[first + l], 0
            for i in range(3):
                for j in range(i + 1):
                    total = 0.0
                    for n in range(3):
                        total += frame[i, n] * frame[j, n] * here[n, l] ** 2
                    f.A[first + l, r] = total
                    r += 1


def forms(coef: Array, mu: Array, R: Array, order: int, s: float) -> Forms:
    """The ODF_s of V voxels [Ozarslan 2013, Eq. 32-35], for any real s above -3.

    Parameters
    ----------
    coef : (V, n) Hermite coefficients. mu : (V, 3) mm. R : (V, 3, 3).

    Notes
    -----
    With t = vR/mu and p_k the part of degree k of the polynomial of P, ODF_s(v) = int P(rv) r^(2+s)
    dr is sum_k p_k(t/|t|) 2^((k+s+1)/2) Gamma((k+s+3)/2) / ((2 pi)^(3/2) prod(mu) |t|^(3+s)).
    Powers of |t| raise each part to the degree of the order, so that one polynomial in v is left.
    """
    if not s > -3:
        raise ValueError(f"s must be above -3, or the integral diverges at the origin: got {s}")
    c, m, f = (np.ascontiguousarray(x, float) for x in (coef, mu, R))
    table, index = _form_table(order, float(s)), powers_of_degree(order)
    tables = moments.order_tables(order)._replace(shears_low=_shears(order))
    one = frozen(np.ones(len(index)))
    out = Forms(np.empty((len(c), len(index))), np.empty((len(c), 6)), float((3 + s + order) / 2))

    def piece(start: int, stop: int) -> None:
        form_rows(c, m, f, table, float(s), out, start, stop)
        frames.turn(out.p[start:stop], f[start:stop], tables, index, one)

    spread(piece, len(c), WIDTH, n_threads(None))
    return out


@kernel(fastmath=CONTRACT)
def _divide(square: Array, half: float, out: Array) -> None:
    """out *= square^-half: by products where 2 half is a whole number, else by logarithms."""
    whole = int(2.0 * half) if 2.0 * half == math.floor(2.0 * half) else -1
    for l in range(0, square.shape[1], WIDTH):
        x, y = rows(square, l), rows(out, l)
        for r in range(square.shape[0]):
            factor = every(1.0)
            if whole >= 0:
                root = 1.0 / sqrt(x[r])
                inverse = root * root
                for _ in range(whole // 2):
                    factor *= inverse
                if whole % 2 == 1:
                    factor *= root
            else:
                factor = exp(log(x[r]) * -half)
            y[r] *= factor


@kernel(allocates=True)
def odf_rows(f: Forms, along: Along, out: Array, start: int, stop: int) -> None:
    """Values of forms along directions, or their products with a matrix, into out (V, K or k)."""
    base, project = along.base, along.project
    k = project.shape[1]
    x, q = np.empty((f.p.shape[1], GROUP)), np.empty((6, GROUP))
    y, z = np.empty((TILE, GROUP)), np.empty((TILE, GROUP))
    part, total = np.empty((k, GROUP)), np.empty((k, GROUP))
    for first in range(start, stop, GROUP):
        count = min(GROUP, stop - first)
        block_gather(f.p, first, stop, x)
        block_gather(f.A, first, stop, q)
        for r in range(k):
            for l in range(GROUP):
                total[r, l] = 0.0
        for t in range(base.shape[0]):
            block_product(base[t], x, y)
            block_product(along.square[t], q, z)
            _divide(z, f.half, y)
            if k > 0:
                block_product(project[t], y, part)
                for r in range(k):
                    for l in range(GROUP):
                        total[r, l] += part[r, l]
            else:
                for l in range(count):
                    row, i = out[first + l], t * TILE
                    for r in range(min(TILE, row.size - i)):
                        row[i + r] = y[r, l]
        for l in range(count):
            row = out[first + l]
            for r in range(min(k, row.size)):
                row[r] = total[r, l]


def _tiles(values: Array) -> Array:
    """Rows, one a direction, in tiles; those that are left over repeat the first."""
    full = np.concatenate([values, np.repeat(values[:1], -len(values) % TILE, 0)])
    return full.reshape(-1, TILE, values.shape[1])


def odf_at(f: Forms, points: Array, project: Array | None = None) -> Array:
    """Values (V, K) at unit vectors (K, 3), or values @ project for a matrix (K, k), on all
    threads.
    """
    order = round(math.sqrt(8 * f.p.shape[1] + 1) - 3) // 2
    x, y, z = points.T
    square = np.stack([x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z], 1)
    matrix = np.zeros((len(points), 0)) if project is None else project
    tiles = np.zeros((-(-len(points) // TILE) * TILE, -(-matrix.shape[1] // 4) * 4))
    tiles[: len(points), : matrix.shape[1]] = matrix  # 0 at the directions that fill the last tile
    tiles = tiles.reshape(len(tiles) // TILE, TILE, tiles.shape[1]).transpose(0, 2, 1)
    out = np.empty((len(f.p), len(points) if project is None else matrix.shape[1]))
    base = _tiles(powers_at(points, order))
    along = Along(base, _tiles(square), np.ascontiguousarray(tiles))
    spread(partial(odf_rows, f, along, out), len(out), GROUP, n_threads(None))
    return out


@kernel()
def local_maxima(f: Array, least: Array, neighbours: IntArray, found: IntArray) -> int:
    """How many local maxima there are in the rows of f (V, K), not below least (V,); their places
    v K + k, ascending, into found (V K,).

    neighbours : (K, n), a direction itself where it has fewer. Of equal ones the first counts.
    """
    count = 0
    for v in range(f.shape[0]):
        row = f[v]
        for k in range(row.size):
            if not row[k] >= least[v]:
                continue
            for other in neighbours[k]:
                if row[other] > row[k] or (row[other] == row[k] and other < k):
                    break
            else:
                found[count] = v * row.size + k
                count += 1
    return count


@kernel(allocates=True)
def refine_rows(
    second: Array, powers: IntArray, points: Array, value: Array, start: int, stop: int
) -> None:
    """Newton's method on the sphere, for homogeneous polynomials f of degree L; never downhill.

    Parameters
    ----------
    second : (M, 6, m) second derivatives xx xy yy xz yz zz of each, in the m monomials `powers`
        (m, 3), of degree L - 2.
    points : (M, 3) unit vectors to start from; the highest place found is written. value : (M,) f
        there, written.

    Notes
    -----
    Gradient = Hessian v / (L - 1), f = gradient v / L. On the tangent plane the Hessian, less the
    slope along v, is made negative by what its largest eigenvalue lacks.
    """
    degree = powers[0, 0] + powers[0, 1] + powers[0, 2] + 2
    d, e = np.empty(3), np.empty(3)
    f, g = np.empty(3), np.empty(3)
    H = np.empty((3, 3))
    power = np.ones((3, degree))
    for i in range(start, stop):
        value[i] = -math.inf
        for j in range(3):
            d[j] = points[i, j]
        for _ in range(20):
            for j in range(3):
                for k in range(1, degree):
                    power[j, k] = power[j, k - 1] * d[j]
            r = 0
            for j in range(3):
                for k in range(j + 1):
                    total = 0.0
                    for p in range(powers.shape[0]):
                        x, y = powers[p, 0], powers[p, 1]
                        z = powers[p, 2]
                        total += second[i, r, p] * power[0, x] * power[1, y] * power[2, z]
                    H[j, k], H[k, j] = total, total
                    r += 1
            slope, least = 0.0, 0
            for j in range(3):
                g[j] = (H[j, 0] * d[0] + H[j, 1] * d[1] + H[j, 2] * d[2]) / (degree - 1)
                slope += g[j] * d[j]
                if abs(d[j]) < abs(d[least]):
                    least = j
            if slope / degree > value[i]:
                value[i] = slope / degree
                for j in range(3):
                    points[i, j] = d[j]
            a, b = (least + 1) % 3, (least + 2) % 3  # e = d x axis, f = d x e: the tangent plane
            e[least], size = 0.0, math.sqrt(d[a] * d[a] + d[b] * d[b])
            e[a], e[b] = d[b] / size, -d[a] / size
            for j in range(3):
                k, m = (j + 1) % 3, (j + 2) % 3
                f[j] = d[k] * e[m] - d[m] * e[k]
            gx = gy = 0.0
            xy = 0.0
            xx = yy = -slope
            for j in range(3):
                gx += e[j] * g[j]
                gy += f[j] * g[j]
                for k in range(3):
                    xx += e[j] * H[j, k] * e[k]
                    xy += e[j] * H[j, k] * f[k]
                    yy += f[j] * H[j, k] * f[k]
            largest = math.sqrt(0.25 * (xx - yy) ** 2 + xy * xy) + 0.5 * (xx + yy)
            if largest >= 0.0:
                damp = largest + 0.1 * abs(xx + yy)
                xx -= damp
                yy -= damp
            det = xx * yy - xy * xy
            if not det > 0.0:
                break
            u, v = (xy * gy - yy * gx) / det, (xy * gx - xx * gy) / det
            size = math.sqrt(u * u + v * v)
            if not size > 1e-8:
                break
            shrink, length = min(1.0, 0.1 / size), 0.0
            for j in range(3):
                d[j] += shrink * (u * e[j] + v * f[j])
                length += d[j] * d[j]
            for j in range(3):
                d[j] /= math.sqrt(length)
