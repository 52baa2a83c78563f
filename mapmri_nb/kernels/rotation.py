"""Rotations, and other linear maps of space, of moments and polynomials by shears in place: lanes
[row][V], voxels last.

A plane rotation is x += t y, y -= s x, x += t y with t = tan(angle / 2), s = sin(angle); each shear
is one pass over an ordered list of pairs of monomials.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ordering
from ._jit import CONTRACT, kernel, stage
from .lanes import WIDTH, rows

Array = NDArray[np.float64]
Pairs = NDArray[np.uint64]


def shear_pairs(degree: int) -> Pairs:
    """Ordered pairs (p, q) such that M[p] += t M[q] turns the moments of x into those of x + t y,
    in place.

    With M[i] = <x^i y^(m-i)>: for r in 1..m: for i in m..r: M[i] += t M[i-1]. Axes (x,y), (y,x),
    (y,z), (z,y), (z,x).
    """
    where = ordering.positions(ordering.monomials(degree))
    out = []
    for a, b in ((0, 1), (1, 0), (1, 2), (2, 1), (2, 0)):
        pairs = []
        for total in range(0, degree + 1, 2):
            for rest in range(total + 1):
                m = total - rest
                e = np.zeros((m + 1, 3), np.int64)
                e[:, a], e[:, b] = np.arange(m + 1), m - np.arange(m + 1)
                e[:, 3 - a - b] = rest
                at = [where[int(x), int(y), int(z)] for x, y, z in e]
                pairs += [(at[i], at[i - 1]) for r in range(1, m + 1) for i in range(m, r - 1, -1)]
        out.append(pairs)
    return np.array(out, np.uint64).reshape(5, -1, 2)


@kernel()
def frame_angles(R: Array, angles: Array, lane: int) -> None:
    """Flip pairs of columns of R (determinant +1) so that R = Rz(a) Rx(b) Rz(c) with all angles
    within 90 degrees.

    Writes tan(half angle) and sin of a, b, c at one lane of `angles` (6, V): |tan| <= 1 keeps the
    shears stable.
    """
    if R[2, 2] < 0.0:
        for i in range(3):
            R[i, 1] = -R[i, 1]
            R[i, 2] = -R[i, 2]
    sb = math.sqrt(R[0, 2] * R[0, 2] + R[1, 2] * R[1, 2])
    sa, ca = 0.0, 1.0
    if sb > 1e-300:
        sa = R[0, 2] / sb
        ca = -R[1, 2] / sb
    if ca < 0.0:
        sa, ca = -sa, -ca
        sb = -sb
    cb = R[2, 2]
    cc = R[0, 0] * ca + R[1, 0] * sa
    if cc < 0.0:
        for i in range(3):
            R[i, 0] = -R[i, 0]
            R[i, 1] = -R[i, 1]
        cc = -cc
    sc = cb * (ca * R[1, 0] - sa * R[0, 0]) + sb * R[2, 0]
    angles[0, lane] = sa / (1.0 + ca)
    angles[1, lane] = sa
    angles[2, lane] = sb / (1.0 + cb)
    angles[3, lane] = sb
    angles[4, lane] = sc / (1.0 + cc)
    angles[5, lane] = sc


@kernel(allocates=True)
def linear_angles(A: Array, angles: Array, skew: Array, stretch: Array, lane: int) -> None:
    """Split a linear map s -> A s (3, 3) into rotations (as `frame_angles`), three shears and three
    scales, at one lane.

    A = T Q with Q a rotation and T lower triangular, by Gram-Schmidt on the rows of A: gradient
    non-linearity turns the rotation R' into R'(I + field).
    """
    Q, T = np.zeros((3, 3)), np.zeros((3, 3))  # columns of Q are the rows of the rotation
    for i in range(3):
        for k in range(3):
            Q[k, i] = A[i, k]
        for j in range(i):
            for k in range(3):
                T[i, j] += A[i, k] * Q[k, j]
            for k in range(3):
                Q[k, i] -= T[i, j] * Q[k, j]
        if i == 2:  # right-handed, whatever the sign of det A
            for k in range(3):
                a, b = (k + 1) % 3, (k + 2) % 3
                Q[k, 2] = Q[a, 0] * Q[b, 1] - Q[b, 0] * Q[a, 1]
        else:
            length = math.sqrt(Q[0, i] ** 2 + Q[1, i] ** 2 + Q[2, i] ** 2)
            for k in range(3):
                Q[k, i] /= length
        for k in range(3):
            T[i, i] += A[i, k] * Q[k, i]
    frame_angles(Q, angles, lane)  # may flip pairs of columns
    for i in range(3):
        for j in range(i + 1):
            T[i, j] = A[i, 0] * Q[0, j] + A[i, 1] * Q[1, j] + A[i, 2] * Q[2, j]
        stretch[i, lane] = T[i, i]
    skew[0, lane] = T[2, 1] / T[2, 2]
    skew[1, lane] = T[2, 0] / T[2, 2]
    skew[2, lane] = T[1, 0] / T[1, 1]


@stage(CONTRACT)
def _shear(pairs: Pairs, t: Array, row: int, sign: float, M: Array) -> None:
    """Moments of x + sign t y from those of x, in place; t is a row of an array (.., V)."""
    for l in range(0, M.shape[1], WIDTH):
        m, f = rows(M, l), sign * rows(t, l)[row]
        for k in range(pairs.shape[0]):
            m[pairs[k, 0]] += f * m[pairs[k, 1]]


@stage(CONTRACT)
def _shear_adjoint(pairs: Pairs, t: Array, row: int, sign: float, M: Array) -> None:
    """The transpose of `_shear`."""
    for l in range(0, M.shape[1], WIDTH):
        m, f = rows(M, l), sign * rows(t, l)[row]
        for k in range(pairs.shape[0] - 1, -1, -1):
            m[pairs[k, 1]] += f * m[pairs[k, 0]]


@kernel()
def rotate(shears: Pairs, angles: Array, M: Array) -> None:
    """Moments to the voxel's frame, s' = R's: rotations by -a, -b, -c about z, x, z."""
    for k in range(3):
        first, second = shears[2 if k == 1 else 0], shears[3 if k == 1 else 1]
        _shear(first, angles, 2 * k, 1.0, M)
        _shear(second, angles, 2 * k + 1, -1.0, M)
        _shear(first, angles, 2 * k, 1.0, M)


@stage()
def skew_moments(shears: Pairs, skew: Array, M: Array) -> None:
    """The shears of `linear_angles`, after `rotate`: z by the rotated y, and by x, first."""
    for k in range(3):  # no literal for the row: Numba would compile `_shear` for each
        _shear(shears[1 if k == 2 else 3 + k], skew, k, 1.0, M)


@stage()
def unskew(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """The transpose of `skew_moments`, before `rotate_back`."""
    shears, work = plan.moments.shears_low, block.moments
    for k in range(2, -1, -1):
        _shear_adjoint(shears[1 if k == 2 else 3 + k], work.skew, k, 1.0, work.low)


@kernel()
def rotate_back(shears: Pairs, angles: Array, M: Array) -> None:
    """The transpose of `rotate`: a polynomial in the voxel's frame to the fixed frame."""
    for r in range(3):
        k = 2 - r
        first, second = shears[2 if k == 1 else 0], shears[3 if k == 1 else 1]
        _shear_adjoint(first, angles, 2 * k, 1.0, M)
        _shear_adjoint(second, angles, 2 * k + 1, -1.0, M)
        _shear_adjoint(first, angles, 2 * k, 1.0, M)
