"""
Directions: bundled sets, real spherical harmonics, the ODF in spherical harmonics, peaks, GFA.

Functions that need ODF values between the given directions take a callable `odf(rows, frames, points)` -> (M, K): the
ODF of the voxels `rows` (M,) along points @ frames[i] (unit points (K, 3), frames (M, 3, 3), or None for points
themselves).
"""

from collections.abc import Callable
from functools import lru_cache
from math import pi, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
Odf = Callable[[IntArray, Array | None, Array], Array]

SH_BASES = ("tournier07", "descoteaux07", "tournier07_legacy", "descoteaux07_legacy")
CHUNK = 4096  # voxels handled together: bounds memory


class Sphere(NamedTuple):
    """Directions (n, 3), the second half the antipodes of the first, and triangles (m, 3) seen anticlockwise."""

    vertices: Array
    faces: IntArray


@lru_cache
def sphere(n: int = 724) -> Sphere:
    """Bundled direction set of n = 724, 362 or 100 points, made by electrostatic repulsion, with its convex hull."""
    from scipy.spatial import ConvexHull

    with np.load(Path(__file__).parent / "data" / "spheres.npz") as file:
        if f"half{n}" not in file:
            sizes = ", ".join(sorted((key[4:] for key in file), key=int))
            raise ValueError(f"n must be one of the bundled sizes ({sizes}): got {n}")
        half = file[f"half{n}"]
    vertices = np.concatenate([half, -half])
    faces = ConvexHull(vertices).simplices.astype(np.int64)
    corners = vertices[faces]
    inward = np.linalg.det(corners) < 0
    faces[inward] = faces[inward][:, ::-1]
    vertices.setflags(write=False)
    faces.setflags(write=False)
    return Sphere(vertices, faces)


def unit_directions(directions: ArrayLike) -> tuple[Array, bool]:
    """
    Check and normalise directions.

    Returns
    -------
    points : (K, 3) unit vectors. mirrored : the second half were the antipodes of the first, and `points` is the first
    half only: the values of an even function must be repeated.

    Raises
    ------
    ValueError : not (K, 3), or a direction of length zero or not finite.
    """
    points = np.asarray(directions, float)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"directions must have shape (K, 3): got {points.shape}")
    length = np.linalg.norm(points, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > 0)))
    if bad.size:
        raise ValueError(f"directions must be finite and not zero: direction {bad[0]} is {points[bad[0]]}")
    half = len(points) // 2
    mirrored = len(points) % 2 == 0 and np.array_equal(points[half:], -points[:half])
    out: Array = (points / length)[: half if mirrored else None]
    return np.ascontiguousarray(out), mirrored


def gfa(values: ArrayLike) -> Array:
    """Generalised fractional anisotropy of ODF values along the last axis: sqrt(n sum (f-mean)^2/((n-1) sum f^2))."""
    f = np.asarray(values, float)
    n = f.shape[-1]
    square = (f**2).sum(-1)
    spread = ((f - f.mean(-1, keepdims=True)) ** 2).sum(-1)
    out: Array = np.sqrt(n / (n - 1) * np.divide(spread, square, out=np.zeros_like(square), where=square != 0))
    return out


# ---- spherical harmonics ---------------------------------------------------------------------------------------------


def _check_sh(sh_order: int, sh_basis: str) -> None:
    if sh_order < 0 or sh_order % 2 or int(sh_order) != sh_order:
        raise ValueError(f"sh_order must be an even number from 0: got {sh_order}")
    if sh_basis not in SH_BASES:
        raise ValueError(f"sh_basis must be one of {', '.join(SH_BASES)}: got {sh_basis!r}")


def n_sh(sh_order: int) -> int:
    """Number of even harmonics up to an even order; c_lm is at l(l+1)/2 + m."""
    return (sh_order + 1) * (sh_order + 2) // 2


def _columns(sh_order: int, sh_basis: str) -> tuple[IntArray, Array]:
    """Each basis as columns and factors of ``tournier07``: Y_i = factor_i * tournier07[column_i]."""
    _check_sh(sh_order, sh_basis)
    lm = np.array([(l, m) for l in range(0, sh_order + 1, 2) for m in range(-l, l + 1)])
    l, m = lm[:, 0], lm[:, 1]
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
    points : (K, 3) unit vectors. sh_order : largest degree, even.
    sh_basis : ``tournier07`` (MRtrix 3), ``descoteaux07``, and their ``_legacy`` forms, as DIPY defines the four.

    Returns
    -------
    (K, n_sh), columns l = 0, 2, .., m = -l .. l.

    Notes
    -----
    tournier07: sqrt(2) Im Y_l^|m| for m < 0, Y_l^0, sqrt(2) Re Y_l^m for m > 0, with the Condon-Shortley phase.
    """
    column, factor = _columns(sh_order, sh_basis)
    x, y, z = np.asarray(points, float).T
    out = np.empty((len(z), n_sh(sh_order)))
    diagonal = sqrt(1 / (4 * pi))
    for m in range(sh_order + 1):
        if m:
            diagonal *= -sqrt((2 * m + 1) / (2 * m))
        planar = (x + 1j * y) ** m * (sqrt(2) if m else 1.0)  # sin^m(theta) exp(i m phi): no angles, no poles
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
    """Coefficients (..., n_sh) of one spherical harmonic basis in another one."""
    size = coef.shape[-1]
    sh_order = round((sqrt(8 * size + 1) - 3) / 2)
    if n_sh(sh_order) != size:
        raise ValueError(f"the last axis must hold 1, 6, 15, 28, 45, ... coefficients: got {size}")
    reference = np.empty(coef.shape)
    column, factor = _columns(sh_order, source)
    reference[..., column] = coef * factor
    column, factor = _columns(sh_order, target)
    out: Array = reference[..., column] / factor
    return out


def sh_rotation(Q: ArrayLike, sh_order: int, sh_basis: str = "tournier07") -> Array:
    """
    Matrix (n_sh, n_sh) from the coefficients of f(v) to those of f(v Q), exact.

    Parameters
    ----------
    Q : (3, 3) orthogonal, determinant +1 or -1. If column vectors change frame by v' = F v, the coefficients in the new
    frame are those of f(v' Q) with Q = F, since v = F' v'.
    """
    points, weights = quadrature(sh_order + 1)
    reference = _columns(sh_order, sh_basis)[1] ** 2  # squared norms
    basis = sh_matrix(points, sh_order, sh_basis)
    turned = sh_matrix(points @ np.asarray(Q, float), sh_order, sh_basis)
    out: Array = (basis * weights[:, None]).T @ turned / reference[:, None]
    return out


@lru_cache
def quadrature(n: int) -> tuple[Array, Array]:
    """
    Product quadrature on half of the sphere for even functions: Gauss-Legendre in z times n uniform angles.

    Returns
    -------
    points : (n*n, 3). weights : (n*n,), summing to 4 pi. Exact for harmonics of even degree up to 2n - 2.
    """
    z, w = np.polynomial.legendre.leggauss(n)
    phi = pi * (np.arange(n) + 0.5) / n
    radius = np.sqrt(1 - z**2)[:, None]
    points = np.stack([radius * np.cos(phi), radius * np.sin(phi), np.broadcast_to(z[:, None], (n, n))], -1)
    points, weights = points.reshape(-1, 3), np.repeat(2 * pi / n * w, n)
    points.setflags(write=False)
    weights.setflags(write=False)
    return points, weights


def _nodes(mu: Array, sh_order: int) -> IntArray:
    """Quadrature size of each voxel: the ODF is analytic up to a distance set by k = max mu / min mu alone."""
    k = np.maximum(mu.max(-1) / mu.min(-1), 1.05)
    need = 4 + sh_order / 2 + 26 / np.log((k + 1) / (k - 1))
    sizes = np.array([24, 32, 48, 64, 96, 128])
    out: IntArray = sizes[np.minimum(np.searchsorted(sizes, np.nan_to_num(need)), len(sizes) - 1)]
    return out


def odf_sh(odf: Odf, mu: Array, sh_order: int = 8, sh_basis: str = "tournier07") -> Array:
    """
    Project the ODF on spherical harmonics by quadrature, in the frame of the b-vectors.

    Parameters
    ----------
    odf : callable, see the head of this file. mu : (V, 3), the voxels' scales. sh_order, sh_basis : see `sh_matrix`.

    Returns
    -------
    (V, n_sh). The size of the quadrature follows mu's anisotropy.
    """
    _check_sh(sh_order, sh_basis)
    norm = _columns(sh_order, sh_basis)[1] ** 2
    out = np.full((len(mu), n_sh(sh_order)), np.nan)
    nodes = _nodes(mu, sh_order)
    for n in np.unique(nodes):
        points, weights = quadrature(int(n))
        projection = sh_matrix(points, sh_order, sh_basis) * weights[:, None] / norm
        rows = np.flatnonzero(nodes == n)
        step = max(1, CHUNK * 256 // len(points))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            out[part] = odf(part, None, points) @ projection
    return out


# ---- peaks -----------------------------------------------------------------------------------------------------------


@lru_cache
def _neighbours(n: int) -> IntArray:
    """Neighbours of each vertex of the first half of `sphere(n)`, antipodes identified, padded with itself."""
    faces, half = sphere(n).faces % (n // 2), n // 2
    adjacent = np.zeros((half, half), bool)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        adjacent[faces[:, a], faces[:, b]] = adjacent[faces[:, b], faces[:, a]] = True
    out = np.repeat(np.arange(half)[:, None], adjacent.sum(1).max(), axis=1)
    for i, row in enumerate(adjacent):
        found = np.flatnonzero(row)
        out[i, : len(found)] = found
    return out


def _refine(odf: Odf, rows: IntArray, start: Array) -> tuple[Array, Array]:
    """Newton's method from each direction (M, 3) on the exact ODF, differences in the tangent plane; never downhill."""
    d, best, best_value = start.copy(), start.copy(), np.full(len(start), -np.inf)
    grid = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)], float)
    for h in (0.03, 0.01, 1e-3, 1e-3, 1e-3):
        side = np.eye(3)[np.abs(d).argmin(1)]
        e1 = np.cross(d, side)
        e1 /= np.linalg.norm(e1, axis=1, keepdims=True)
        frame = np.ascontiguousarray(np.stack([e1, np.cross(d, e1), d], 1))
        points = np.column_stack([h * grid, np.ones(9)])
        f = odf(rows, frame, points / np.linalg.norm(points, axis=1, keepdims=True)).T
        better = f[0] > best_value
        best[better], best_value[better] = d[better], f[0][better]
        gx, gy = (f[1] - f[2]) / (2 * h), (f[3] - f[4]) / (2 * h)
        xx, yy = (f[1] + f[2] - 2 * f[0]) / h**2, (f[3] + f[4] - 2 * f[0]) / h**2
        xy = (f[5] + f[6] - f[7] - f[8]) / (4 * h**2)
        shift = np.hypot((xx - yy) / 2, xy) + (xx + yy) / 2  # the larger eigenvalue: made negative where it is not
        damp = np.maximum(0.0, shift + 0.1 * np.abs(xx + yy))
        xx, yy = xx - damp, yy - damp
        det = xx * yy - xy**2
        det = np.where(det > 0, det, np.inf)
        step = np.stack([-(yy * gx - xy * gy) / det, -(xx * gy - xy * gx) / det], 1)
        step *= np.minimum(1.0, 0.1 / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-300))
        d = d + np.einsum("mi,mij->mj", step, frame[:, :2])
        d /= np.linalg.norm(d, axis=1, keepdims=True)
    value = odf(rows, np.ascontiguousarray(np.stack([e1, np.cross(d, e1), d], 1)), np.array([[0.0, 0.0, 1.0]]))[:, 0]
    better = value > best_value
    best[better], best_value[better] = d[better], value[better]
    return best, best_value


def peaks(
    odf: Odf, n_voxels: int, *, n: int = 724, n_peaks: int = 5, relative: float = 0.5, separation: float = 25.0
) -> tuple[Array, Array]:
    """
    Peaks of the ODF: local maxima on `sphere(n)`, refined on the exact ODF, strongest first.

    Parameters
    ----------
    odf : callable, see the head of this file. n_voxels : V, its rows are 0 .. V-1. n_peaks : most peaks kept.
    relative : smallest height over the highest one's, both above the ODF's minimum where that is positive.
    separation : degrees; of two peaks closer than this only the higher one is kept.

    Returns
    -------
    directions : (V, n_peaks, 3) unit vectors, NaN where there is no peak. values : (V, n_peaks).
    """
    vertices = np.ascontiguousarray(sphere(n).vertices[: n // 2])
    neighbours, index = _neighbours(n), np.arange(n // 2)
    directions, values = np.full((n_voxels, n_peaks, 3), np.nan), np.full((n_voxels, n_peaks), np.nan)
    for first in range(0, n_voxels, CHUNK):
        chunk = np.arange(first, min(first + CHUNK, n_voxels))
        f = odf(chunk, None, vertices)
        floor = np.maximum(f.min(1), 0.0)
        top = f.max(1) - floor
        found = f - floor[:, None] >= 0.8 * relative * top[:, None]  # slack: heights grow in the refinement
        for j in range(neighbours.shape[1]):
            other = f[:, neighbours[:, j]]
            found &= (f > other) | ((f == other) & (index <= neighbours[:, j]))
        rows, columns = np.nonzero(found)
        if rows.size == 0:
            continue
        d, height = _refine(odf, chunk[rows], vertices[columns])
        order = np.lexsort((-height, rows))
        rows, d, height = rows[order], d[order], height[order] - floor[rows[order]]
        start = np.searchsorted(rows, rows)  # first, that is highest, candidate of the same voxel
        kept = height >= relative * height[start]
        rank = np.arange(len(rows)) - start
        count = np.zeros(len(chunk), np.int64)
        for k in range(int(rank.max()) + 1):
            at = np.flatnonzero(kept & (rank == k) & (count[rows] < n_peaks))
            before = directions[chunk[rows[at]]]
            near = np.abs(np.einsum("mkj,mj->mk", before, d[at])) > np.cos(np.deg2rad(separation))
            at = at[~near.any(1)]
            directions[chunk[rows[at]], count[rows[at]]] = d[at]
            values[chunk[rows[at]], count[rows[at]]] = height[at] + floor[rows[at]]
            count[rows[at]] += 1
    return directions, values
