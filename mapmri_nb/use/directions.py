"""Directions: bundled sets, real spherical harmonics, the ODF as a field, its peaks; GFA."""

from functools import lru_cache, partial
from math import gamma, pi, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..gradients import GradientTable
from ..kernels import odf as kernels
from ..kernels._jit import n_threads, spread
from ..kernels.odf import Forms, forms, odf_at, powers_at, powers_of_degree
from ..kernels.ordering import frozen

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

SH_BASES = ("tournier07", "descoteaux07", "tournier07_legacy", "descoteaux07_legacy")
MAX_SH_ORDER = 32  # ODFs of order 10 have nothing visible above it; memory grows with its square
MAX_MOMENT = 100.0  # s: mm^s and Gamma(s) leave the range of double precision some way above
CHUNK = 1024  # voxels handled together: their values stay in the cache
# Of an ODF in harmonics, and of its peaks. The exact ODF of s = 2 is a crater: up to 1 % higher on
# a ring of 4 to 8 degrees around a fibre. Cut at degree 6 it has its peak on the fibre, and those
# of crossings are nearer to them than at degree 8, at radial orders 4 to 8
# (validation/crossings.py).
DEGREE = 6


class Sphere(NamedTuple):
    """Directions (n, 3), the second half antipodes; triangles (m, 3), seen anticlockwise."""

    vertices: Array
    faces: IntArray


@lru_cache
def sphere(n: int = 724) -> Sphere:
    """The bundled set of n = 724, 362 or 100 points (electrostatic), with its convex hull."""
    from scipy.spatial import ConvexHull

    with np.load(Path(__file__).parents[1] / "data" / "spheres.npz") as file:
        if f"half{n}" not in file:
            sizes = ", ".join(sorted((key[4:] for key in file), key=int))
            raise ValueError(f"n must be one of the bundled sizes ({sizes}): got {n}")
        half = file[f"half{n}"]
    vertices = np.concatenate([half, -half])
    faces = ConvexHull(vertices).simplices.astype(np.int64)
    inward = np.linalg.det(vertices[faces]) < 0
    faces[inward] = faces[inward, ::-1]
    vertices.setflags(write=False)
    faces.setflags(write=False)
    return Sphere(vertices, faces)


def gfa(values: ArrayLike) -> Array:
    """Generalised FA of ODF values along the last axis: sqrt(n sum (f-mean)^2/((n-1) sum f^2))."""
    f = np.asarray(values, float)
    if f.ndim == 0 or f.shape[-1] < 2:
        text = "values must hold at least 2 directions along the last axis"
        raise ValueError(f"{text}: got shape {f.shape}")
    n, square = f.shape[-1], (f**2).sum(-1)
    spread = ((f - f.mean(-1, keepdims=True)) ** 2).sum(-1)
    ratio = np.divide(spread, square, out=np.zeros_like(square), where=square != 0)
    out: Array = np.sqrt(n / (n - 1) * ratio)
    return out


def check_points(name: str, points: ArrayLike) -> Array:
    """Points or directions as an array (K, 3), or a ValueError that names the argument."""
    array = np.asarray(points, float)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"{name} must have shape (K, 3): got {array.shape}")
    return array


class OdfField:
    """The ODF_s of V voxels as a function of direction.

    Parameters
    ----------
    coef : (V, n) Hermite coefficients in the frames R (V, 3, 3) at scales mu (V, 3), mm. order :
        radial order.
    s : radial moment, above -3 and up to 100.
    """

    def __init__(self, coef: Array, mu: Array, R: Array, order: int, s: float = 2.0) -> None:
        if not -3 < float(s) <= MAX_MOMENT:
            text = "s must be a number above -3, where the integral diverges, and up to"
            raise ValueError(f"{text} {MAX_MOMENT:g}: got {s!r}")
        self.coef, self.mu = coef, mu
        self.R, self.order = R, order
        self.s = float(s)
        self.forms = forms(coef, mu, R, order, self.s)

    def __call__(self, directions: ArrayLike) -> Array:
        """Values (V, K) along directions (K, 3) of any length but 0, b-vectors' frame."""
        points = check_points("directions", directions)
        length = np.linalg.norm(points, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > 0)))
        if bad.size:
            text = f"direction {bad[0]} is {points[bad[0]]}"
            raise ValueError(f"directions must be finite and not zero: {text}")
        half = len(points) // 2
        even = half > 0 and np.array_equal(points[:half], -points[half:])  # a whole set
        rows = np.arange(len(self.mu))
        values = self.at(rows, (points / length)[: half if even else None], None, 2e4)
        return np.tile(values, 2) if even else values

    def at(self, rows: IntArray, points: Array, project: Array | None, most: float) -> Array:
        """`odf_at` for some voxels at unit vectors, with rounding errors amplified up to `most`
        times.

        A form in the frame of the b-vectors loses (max mu / min mu)^order; in the tensor's frame it
        loses nothing, but there every voxel has its own points.
        """
        f = self.forms
        out = odf_at(Forms(f.p[rows], f.A[rows], f.half), points, project)
        mu = self.mu[rows]
        for i in np.flatnonzero((mu.max(1) / mu.min(1)) ** self.order > most):
            row = slice(rows[i], rows[i] + 1)
            own = forms(self.coef[row], self.mu[row], np.eye(3)[None], self.order, self.s)
            out[i] = odf_at(own, points @ self.R[rows[i]], project)[0]
        return out


# ---- spherical harmonics


def _columns(sh_order: int, sh_basis: str) -> tuple[IntArray, Array]:
    """Each basis by ``tournier07``: Y_i = factor_i * tournier07[column_i]."""
    if sh_order % 2 or not 0 <= sh_order <= MAX_SH_ORDER:
        text = f"sh_order must be an even number from 0 to {MAX_SH_ORDER}"
        raise ValueError(f"{text}: got {sh_order!r}")
    if sh_basis not in SH_BASES:
        raise ValueError(f"sh_basis must be one of {', '.join(SH_BASES)}: got {sh_basis!r}")
    l, m = np.array([(l, m) for l in range(0, sh_order + 1, 2) for m in range(-l, l + 1)]).T
    column = l * (l + 1) // 2 + (-m if sh_basis.startswith("descoteaux07") else m)
    factor = np.ones(len(m))
    if sh_basis == "tournier07_legacy":  # MRtrix 0.2 left the sqrt(2) out
        factor[m != 0] = 1 / sqrt(2)
    elif sh_basis == "descoteaux07":  # Re Y_l^m at m < 0, where the legacy form takes Re Y_l^|m|
        factor[m < 0] = (-1.0) ** m[m < 0]
    return column, factor


def sh_matrix(points: Array, sh_order: int, sh_basis: str = "tournier07") -> Array:
    """Values of the even real spherical harmonics at unit vectors.

    Parameters
    ----------
    points : (K, 3). sh_order : largest degree, even.
    sh_basis : ``tournier07`` (MRtrix 3), ``descoteaux07``, or a ``_legacy`` form, as DIPY defines
        the four.

    Returns
    -------
    (K, (sh_order+1)(sh_order+2)/2), columns l = 0, 2, .., m = -l .. l.

    Notes
    -----
    tournier07: sqrt(2) Im Y_l^|m| for m < 0, Y_l^0, sqrt(2) Re Y_l^m for m > 0, with the
    Condon-Shortley phase.
    """
    column, factor = _columns(sh_order, sh_basis)
    x, y, z = check_points("points", points).T
    out = np.empty((len(z), len(column)))
    diagonal = sqrt(1 / (4 * pi))
    for m in range(sh_order + 1):
        if m:
            diagonal *= -sqrt((2 * m + 1) / (2 * m))
        # sin^m(theta) exp(i m phi): no angles, no poles
        planar = (x + 1j * y) ** m * (sqrt(2) if m else 1.0)
        before, now = np.zeros_like(z), np.full_like(z, diagonal)
        scale = 1.0
        for l in range(m, sh_order + 1):
            if l > m:  # normalised associated Legendre functions, upwards in l
                last, scale = scale, sqrt((4 * l * l - 1) / (l * l - m * m))
                before, now = now, scale * (z * now - before / last)
            if l % 2 == 0:
                out[:, l * (l + 1) // 2 + m] = now * planar.real
                if m:
                    out[:, l * (l + 1) // 2 - m] = now * planar.imag
    matrix: Array = out[:, column] * factor
    return matrix


def _degree(size: int) -> int:
    """Degree of so many coefficients, even."""
    sh_order = round((sqrt(8 * size + 1) - 3) / 2)
    if sh_order % 2 or (sh_order + 1) * (sh_order + 2) // 2 != size:
        raise ValueError(f"the last axis must hold 1, 6, 15, 28, 45, ... coefficients: got {size}")
    return sh_order


def convert_sh(coef: Array, source: str, target: str) -> Array:
    """Coefficients (..., n_sh) of one basis of spherical harmonics in another one."""
    sh_order = _degree(coef.shape[-1])
    (a, f), (b, g) = _columns(sh_order, source), _columns(sh_order, target)
    common = np.empty(coef.shape)
    common[..., a] = coef * f
    out: Array = common[..., b] / g
    return out


def sh_rotation(Q: ArrayLike, sh_order: int, sh_basis: str = "tournier07") -> Array:
    """Matrix from the coefficients of f(v) to those of f(v Q), rows v, exact for orthogonal Q of
    determinant +1 or -1.

    Where column vectors change frame by v' = F v, the coefficients in the new frame are those with
    Q = F.
    """
    points, weights = quadrature(sh_order + 1)
    turned = sh_matrix(points @ np.asarray(Q, float), sh_order, sh_basis)
    return _projection(points, weights, sh_order, sh_basis).T @ turned


def _projection(points: Array, weights: Array, sh_order: int, sh_basis: str) -> Array:
    """Matrix (K, n_sh): values at the points of a quadrature @ it = coefficients."""
    norm = _columns(sh_order, sh_basis)[1] ** 2
    out: Array = sh_matrix(points, sh_order, sh_basis) * weights[:, None] / norm
    return out


@lru_cache
def quadrature(n: int) -> tuple[Array, Array]:
    """Product quadrature on half of the sphere for even functions: Gauss-Legendre in z times n
    uniform angles.

    Returns
    -------
    points : (n*n, 3). weights : (n*n,), of sum 4 pi. Exact for harmonics of even degree up to 2n -
        2.
    """
    z, w = np.polynomial.legendre.leggauss(n)
    phi, radius = pi * (np.arange(n) + 0.5) / n, np.sqrt(1 - z**2)[:, None]
    points = np.stack(
        [radius * np.cos(phi), radius * np.sin(phi), np.broadcast_to(z[:, None], (n, n))], -1
    )
    return frozen(points.reshape(-1, 3)), frozen(np.repeat(2 * pi / n * w, n))


def odf_sh(odf: OdfField, sh_order: int = 8, sh_basis: str = "tournier07") -> Array:
    """Coefficients (V, n_sh) of the ODF in spherical harmonics, in the frame of the b-vectors, by
    quadrature.

    The ODF is analytic up to a distance that k = max mu / min mu alone sets; the quadrature's size
    follows it. Equal scales (isotropic basis): exact to rounding. k <= 8, s <= 2, orders <= 10:
    within 1e-8 of the ODF's maximum.
    """
    with np.errstate(invalid="ignore"):
        k = np.maximum(odf.mu.max(1) / odf.mu.min(1), 1.05)
    sizes = np.array([24, 28, 32, 40, 48, 64, 96, 128])
    need = 4 + sh_order / 2 + 26 / np.log((k + 1) / (k - 1))
    nodes = sizes[np.minimum(np.searchsorted(sizes, np.nan_to_num(need)), len(sizes) - 1)]
    out = np.full((len(k), len(_columns(sh_order, sh_basis)[0])), np.nan)
    for n in np.unique(nodes):
        points, weights = quadrature(int(n))
        rows, project = np.flatnonzero(nodes == n), _projection(points, weights, sh_order, sh_basis)
        out[rows] = odf.at(rows, points, project, 1e6)
    return out


def tracking_factor(gtab: GradientTable, s: float) -> float:
    """Factor, mm^-s, that brings an ODF_s to the size of a fibre density, which trackers'
    thresholds expect.

    It makes the integral over the sphere, <r^s>, 1 for free diffusion at D during the table's tau.
    D is 0.7e-3 mm^2/s, white matter's mean, or 2 / max b where that is less: b is larger where
    diffusion is slower, as in fixed tissue. One digit of max b counts, so that all who share a
    protocol share the factor.
    """
    D = min(0.7e-3, 2 / max(float(f"{gtab.bvals.max():.1g}"), 1.0))
    return float((4 * D * gtab.tau) ** (-s / 2) * gamma(1.5) / gamma(1.5 + s / 2))


# ---- peaks


@lru_cache
def _neighbours(n: int) -> IntArray:
    """Neighbours of each vertex of half of `sphere(n)`, antipodes as one, padded with itself."""
    faces, half = sphere(n).faces % (n // 2), n // 2
    adjacent = np.zeros((half, half), bool)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        adjacent[faces[:, a], faces[:, b]] = adjacent[faces[:, b], faces[:, a]] = True
    out = np.repeat(np.arange(half)[:, None], adjacent.sum(1).max(), axis=1)
    for i, row in enumerate(adjacent):
        out[i, : row.sum()] = np.flatnonzero(row)
    return out


@lru_cache
def _derivatives(sh_order: int) -> Array:
    """Matrix (n_sh, 6 m): ``tournier07`` coefficients to the second derivatives xx xy yy xz yz zz
    of the same function as a polynomial of degree `sh_order`, in the m powers of two degrees less.
    """
    points, _ = quadrature(sh_order + 1)
    form = np.linalg.lstsq(powers_at(points, sh_order), sh_matrix(points, sh_order), rcond=None)[0]
    high, low = powers_of_degree(sh_order), powers_of_degree(sh_order - 2)
    where = {tuple(e): k for k, e in enumerate(low.tolist())}
    out = np.zeros((form.shape[1], 6, len(low)))
    for k, (i, j) in enumerate(zip(*np.tril_indices(3), strict=True)):
        for e, row in zip(high, form, strict=True):
            left = e - np.eye(3, dtype=int)[i] - np.eye(3, dtype=int)[j]
            if left.min() >= 0:
                out[:, k, where[tuple(left.tolist())]] += row * e[i] * (e[j] - (i == j))
    return out.reshape(len(out), -1)


def _refine(coef: Array, sh_order: int, start: Array) -> tuple[Array, Array]:
    """Peaks (M, 3) and values, by `refine_rows`, of harmonics (M, n_sh) from directions (M, 3)."""
    second = (coef @ _derivatives(sh_order)).reshape(len(start), 6, -1)
    best, value = np.ascontiguousarray(start), np.empty(len(start))
    call = partial(kernels.refine_rows, second, powers_of_degree(sh_order - 2), best, value)
    spread(call, len(start), 64, n_threads(None))
    return best, value


def peaks(odf: OdfField, sh_order: int = DEGREE, **options: Any) -> tuple[Array, Array]:
    """Peaks of the ODF cut at degree `sh_order`; options and result of `sh_peaks`."""
    return sh_peaks(odf_sh(odf, sh_order), **options)


def sh_peaks(
    coef: Array, n: int = 724, n_peaks: int = 5, relative: float = 0.5, separation: float = 25.0
) -> tuple[Array, Array]:
    """Peaks of a function in spherical harmonics: local maxima on `sphere(n)`, refined, highest
    first.

    Parameters
    ----------
    coef : (V, n_sh) of basis ``tournier07``. n_peaks : most peaks kept.
    relative : smallest height over the highest one's, both above the function's minimum where that
        is positive.
    separation : degrees; of two peaks closer than this only the higher one is kept.

    Returns
    -------
    directions : (V, n_peaks, 3) unit vectors, NaN where there is no peak. values : (V, n_peaks).
    """
    if n_peaks % 1 or n_peaks < 1:
        raise ValueError(f"n_peaks must be a whole number from 1: got {n_peaks!r}")
    if not 0 <= relative <= 1:
        raise ValueError(f"relative must lie between 0 and 1: got {relative!r}")
    if not 0 <= separation <= 90:
        raise ValueError(f"separation must lie between 0 and 90 degrees: got {separation!r}")
    vertices, neighbours = sphere(n).vertices[: n // 2], _neighbours(n)
    V, sh_order = len(coef), _degree(coef.shape[-1])
    directions, values = np.full((V, n_peaks, 3), np.nan), np.full((V, n_peaks), np.nan)
    count, grid = np.zeros(V, np.int64), sh_matrix(vertices, sh_order).T
    chunk = max(1, CHUNK * 28 // coef.shape[1])
    for first in range(0, V, chunk):
        f = coef[first : first + chunk] @ grid
        high, floor = f.max(1), np.maximum(f.min(1), 0.0)
        least = floor + 0.8 * relative * (high - floor)  # slack: heights grow in the refinement
        least[~(high - floor > 1e-9 * high)] = np.inf  # flat, or NaN
        found = np.empty(f.size, np.int64)
        rows, columns = np.divmod(
            found[: kernels.local_maxima(f, least, neighbours, found)], f.shape[1]
        )
        if rows.size == 0:
            continue
        d, height = _refine(coef[first + rows], sh_order, vertices[columns])
        order = np.lexsort((-height, rows))
        rows, d = rows[order], d[order]
        height = height[order]
        start = np.searchsorted(rows, rows)  # the highest candidate of the same voxel
        kept = height - floor[rows] >= relative * (height[start] - floor[rows])
        rank, rows = np.arange(len(rows)) - start, rows + first
        for k in range(int(rank.max()) + 1):
            at = np.flatnonzero(kept & (rank == k) & (count[rows] < n_peaks))
            cosines = np.abs(np.einsum("mkj,mj->mk", directions[rows[at]], d[at]))
            at = at[~(cosines > np.cos(np.deg2rad(separation))).any(1)]
            place = rows[at], count[rows[at]]
            directions[place], values[place] = d[at], height[at]
            count[rows[at]] += 1
    return directions, values
