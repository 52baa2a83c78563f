"""
Directions: bundled sets, real spherical harmonics, the ODF as a field, in harmonics, and its peaks;
GFA.
"""

from functools import lru_cache
from math import pi, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..kernels import propagator

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

SH_BASES = ("tournier07", "descoteaux07", "tournier07_legacy", "descoteaux07_legacy")
MAX_SH_ORDER = (
    32  # ODFs of order 10 have nothing visible above it, and memory grows with its square
)
MAX_MOMENT = 100.0  # s: mm^s and Gamma(s) leave the range of double precision some way above
CHUNK = 4096  # voxels handled together: bounds memory


class Sphere(NamedTuple):
    """
    Directions (n, 3), the second half the antipodes of the first, and triangles (m, 3) seen
    anticlockwise.
    """

    vertices: Array
    faces: IntArray


@lru_cache
def sphere(n: int = 724) -> Sphere:
    """
    Bundled direction set of n = 724, 362 or 100 points, made by electrostatic repulsion, with its
    convex hull.
    """
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
    """
    Generalised fractional anisotropy of ODF values along the last axis: sqrt(n sum
    (f-mean)^2/((n-1) sum f^2)).
    """
    f = np.asarray(values, float)
    if f.ndim == 0 or f.shape[-1] < 2:
        raise ValueError(
            f"values must hold at least 2 directions along the last axis: got shape {f.shape}"
        )
    n, square = f.shape[-1], (f**2).sum(-1)
    spread = ((f - f.mean(-1, keepdims=True)) ** 2).sum(-1)
    out: Array = np.sqrt(
        n / (n - 1) * np.divide(spread, square, out=np.zeros_like(square), where=square != 0)
    )
    return out


def check_points(name: str, points: ArrayLike) -> Array:
    """Points or directions as an array (K, 3), or a ValueError that names the argument."""
    array = np.asarray(points, float)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"{name} must have shape (K, 3): got {array.shape}")
    return array


class OdfField:
    """
    The ODF_s of V voxels as a function of direction.

    Parameters
    ----------
    coef : (V, n) Hermite coefficients in the frames R (V, 3, 3) at scales mu (V, 3), mm. order :
        radial order.
    s : radial moment, above -3 and up to 100.
    """

    def __init__(self, coef: Array, mu: Array, R: Array, order: int, s: float = 2.0) -> None:
        if not -3 < float(s) <= MAX_MOMENT:
            raise ValueError(
                f"s must be a number above -3, where the integral diverges, and up to {MAX_MOMENT:g}: got {s!r}"
            )
        self.coef, self.mu, self.R = coef, mu, R
        self.tables = propagator.point_tables(order, propagator.ODF, float(s))

    def __call__(self, directions: ArrayLike) -> Array:
        """
        Values (V, K) along directions (K, 3) of any length but 0, in the frame of the b-vectors.
        """
        points = check_points("directions", directions)
        length = np.linalg.norm(points, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > 0)))
        if bad.size:
            raise ValueError(
                f"directions must be finite and not zero: direction {bad[0]} is {points[bad[0]]}"
            )
        half = len(points) // 2
        even = half > 0 and np.array_equal(
            points[:half], -points[half:]
        )  # a whole set: the ODF is even
        points = (points / length)[: half if even else None]
        return propagator.values_at(self.coef, self.mu, self.R, points, self.tables, 1 + even)

    def near(self, rows: IntArray, frames: Array | None, points: Array) -> Array:
        """
        Values (M, K) of the voxels `rows` (M,) along the unit vectors points @ frames[i]; frames
        (M, 3, 3).
        """
        R = self.R[rows] if frames is None else frames @ self.R[rows]
        return propagator.values_at(self.coef[rows], self.mu[rows], R, points, self.tables)


# ---- spherical harmonics
# ---------------------------------------------------------------------------------------------


def _columns(sh_order: int, sh_basis: str) -> tuple[IntArray, Array]:
    """
    Each basis as columns and factors of ``tournier07``: Y_i = factor_i * tournier07[column_i].
    """
    if sh_order % 2 or not 0 <= sh_order <= MAX_SH_ORDER:
        raise ValueError(
            f"sh_order must be an even number from 0 to {MAX_SH_ORDER}: got {sh_order!r}"
        )
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
    """
    Values of the even real spherical harmonics at unit vectors.

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
        planar = (x + 1j * y) ** m * (
            sqrt(2) if m else 1.0
        )  # sin^m(theta) exp(i m phi): no angles, no poles
        before, now, scale = np.zeros_like(z), np.full_like(z, diagonal), 1.0
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


def convert_sh(coef: Array, source: str, target: str) -> Array:
    """Coefficients (..., n_sh) of one basis of spherical harmonics in another one."""
    size = coef.shape[-1]
    sh_order = round((sqrt(8 * size + 1) - 3) / 2)
    if (sh_order + 1) * (sh_order + 2) // 2 != size:
        raise ValueError(f"the last axis must hold 1, 6, 15, 28, 45, ... coefficients: got {size}")
    (a, f), (b, g) = _columns(sh_order, source), _columns(sh_order, target)
    common = np.empty(coef.shape)
    common[..., a] = coef * f
    out: Array = common[..., b] / g
    return out


def sh_rotation(Q: ArrayLike, sh_order: int, sh_basis: str = "tournier07") -> Array:
    """
    Matrix from the coefficients of f(v) to those of f(v Q), rows v, exact for orthogonal Q of
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


def quadrature(n: int) -> tuple[Array, Array]:
    """
    Product quadrature on half of the sphere for even functions: Gauss-Legendre in z times n uniform
    angles.

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
    return points.reshape(-1, 3), np.repeat(2 * pi / n * w, n)


def odf_sh(odf: OdfField, sh_order: int = 8, sh_basis: str = "tournier07") -> Array:
    """
    Coefficients (V, n_sh) of the ODF in spherical harmonics, in the frame of the b-vectors, by
    quadrature.

    The ODF is analytic up to a distance that k = max mu / min mu alone sets; the quadrature's size
    follows it. Equal scales (isotropic basis): exact to rounding. k <= 8, s <= 2, orders <= 10:
    within 1e-8 of the ODF's maximum.
    """
    with np.errstate(invalid="ignore"):
        k = np.maximum(odf.mu.max(1) / odf.mu.min(1), 1.05)
    sizes, need = (
        np.array([24, 32, 48, 64, 96, 128]),
        4 + sh_order / 2 + 26 / np.log((k + 1) / (k - 1)),
    )
    nodes = sizes[np.minimum(np.searchsorted(sizes, np.nan_to_num(need)), len(sizes) - 1)]
    out = np.full((len(k), len(_columns(sh_order, sh_basis)[0])), np.nan)
    for n in np.unique(nodes):
        points, weights = quadrature(int(n))
        projection = _projection(points, weights, sh_order, sh_basis)
        rows = np.flatnonzero(nodes == n)
        for part in np.array_split(rows, -(-len(rows) * len(points) // (CHUNK * 512))):
            out[part] = odf.near(part, None, points) @ projection
    return out


# ---- peaks
# -----------------------------------------------------------------------------------------------------------


@lru_cache
def _neighbours(n: int) -> IntArray:
    """
    Neighbours of each vertex of the first half of `sphere(n)`, antipodes identified, padded with
    itself.
    """
    faces, half = sphere(n).faces % (n // 2), n // 2
    adjacent = np.zeros((half, half), bool)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        adjacent[faces[:, a], faces[:, b]] = adjacent[faces[:, b], faces[:, a]] = True
    out = np.repeat(np.arange(half)[:, None], adjacent.sum(1).max(), axis=1)
    for i, row in enumerate(adjacent):
        out[i, : row.sum()] = np.flatnonzero(row)
    return out


def _refine(odf: OdfField, rows: IntArray, d: Array) -> tuple[Array, Array]:
    """
    Newton's method from each direction (M, 3) on the exact ODF, differences in the tangent plane;
    never downhill.
    """
    best, best_value = d, np.full(len(d), -np.inf)
    grid = np.array(
        [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)], float
    )
    for h in (0.03, 0.01, 1e-3, 1e-3, 1e-3, 0.0):  # the last round only looks at the last step
        e1 = np.cross(d, np.eye(3)[np.abs(d).argmin(1)])
        e1 /= np.linalg.norm(e1, axis=1, keepdims=True)
        frame = np.stack([e1, np.cross(d, e1), d], 1)
        points = np.column_stack([h * grid, np.ones(9)])
        f = odf.near(rows, frame, points / np.linalg.norm(points, axis=1, keepdims=True)).T
        better = f[0] > best_value
        best, best_value = np.where(better[:, None], d, best), np.maximum(f[0], best_value)
        if h == 0.0:
            break
        gx, gy = (f[1] - f[2]) / (2 * h), (f[3] - f[4]) / (2 * h)
        xx, yy = (f[1] + f[2] - 2 * f[0]) / h**2, (f[3] + f[4] - 2 * f[0]) / h**2
        xy = (f[5] + f[6] - f[7] - f[8]) / (4 * h**2)
        largest = (
            np.hypot((xx - yy) / 2, xy) + (xx + yy) / 2
        )  # eigenvalue: made negative where it is not
        damp = np.where(largest < 0, 0.0, largest + 0.1 * np.abs(xx + yy))
        xx, yy = xx - damp, yy - damp
        det = np.where(xx * yy - xy**2 > 0, xx * yy - xy**2, np.inf)
        step = np.stack([xy * gy - yy * gx, xy * gx - xx * gy], 1) / det[:, None]
        step *= np.minimum(
            1.0, 0.1 / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-300)
        )
        d = d + np.einsum("mi,mij->mj", step, frame[:, :2])
        d = d / np.linalg.norm(d, axis=1, keepdims=True)
    return best, best_value


def peaks(
    odf: OdfField, n: int = 724, n_peaks: int = 5, relative: float = 0.5, separation: float = 25.0
) -> tuple[Array, Array]:
    """
    Peaks of the ODF: local maxima on `sphere(n)`, refined on the exact ODF, strongest first.

    Parameters
    ----------
    odf : the field of V voxels. n_peaks : most peaks kept.
    relative : smallest height over the highest one's, both above the ODF's minimum where that is
        positive.
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
    vertices, neighbours, index = sphere(n).vertices[: n // 2], _neighbours(n), np.arange(n // 2)
    V = len(odf.coef)
    directions, values, count = (
        np.full((V, n_peaks, 3), np.nan),
        np.full((V, n_peaks), np.nan),
        np.zeros(V, np.int64),
    )
    for first in range(0, V, CHUNK):
        f = odf.near(np.arange(first, min(first + CHUNK, V)), None, vertices)
        floor = np.maximum(f.min(1), 0.0)
        top = f.max(1) - floor
        top[top <= 1e-9 * f.max(1)] = np.nan  # the same everywhere: no peak
        found = (
            f - floor[:, None] >= 0.8 * relative * top[:, None]
        )  # slack: heights grow in the refinement
        for other in neighbours.T:
            found &= (f > f[:, other]) | ((f == f[:, other]) & (index <= other))
        rows, columns = np.nonzero(found)
        if rows.size == 0:
            continue
        d, height = _refine(odf, first + rows, vertices[columns])
        order = np.lexsort((-height, rows))
        rows, d, height = rows[order], d[order], height[order]
        start = np.searchsorted(
            rows, rows
        )  # the first, that is highest, candidate of the same voxel
        kept = height - floor[rows] >= relative * (height[start] - floor[rows])
        rank, rows = np.arange(len(rows)) - start, rows + first
        for k in range(int(rank.max()) + 1):
            at = np.flatnonzero(kept & (rank == k) & (count[rows] < n_peaks))
            cosines = np.abs(np.einsum("mkj,mj->mk", directions[rows[at]], d[at]))
            at = at[~(cosines > np.cos(np.deg2rad(separation))).any(1)]
            directions[rows[at], count[rows[at]]], values[rows[at], count[rows[at]]] = (
                d[at],
                height[at],
            )
            count[rows[at]] += 1
    return directions, values
