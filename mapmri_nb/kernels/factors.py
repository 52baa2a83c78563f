"""Factors of the rows that the active set of `qp` holds, and their updates by one row.

For a normal matrix H = LL' (n, n) and q active rows A (q, n): J = Q'L^-1 with Q orthogonal, so that
J H J' = I, and J A' = [R; 0] with R (q, q) upper triangular. With d = J a for another row a, the
free part d[q:] gives the direction z = J'd[q:] in which the active rows keep their values, and r =
R^-1 d[:q] how fast their multipliers fall along it [Goldfarb & Idnani 1983].
"""

import math
from typing import NamedTuple

import numpy as np

from ._jit import CONTRACT, kernel
from ._types import Array, IntArray
from .lanes import WIDTH, every, rows, total
from .linalg import block_cholesky, block_invert

# of the mean diagonal of H, a part of the problem: H may be singular (order 8, three shells)
RIDGE = 1e-9


class QpWork(NamedTuple):
    """Scratch of `qp.solve`, n coefficients and m octant points; `workspace` makes it."""

    # (n, n padded by zeros to a multiple of WIDTH); rows are the columns of L^-T Q, with H = LL'
    # and Q orthogonal: J A' = [R; 0], A the active rows
    J: Array
    R: Array  # (n, n) upper triangular
    packed: Array  # ((n + 1)(n + 2)/2, WIDTH) H of some voxels, then L^-1; functions by class
    pivot: Array  # (1, WIDTH)
    d: Array  # (n,) J a, for a row a of A
    z: Array  # (n,) search direction J'(free part of d)
    r: Array  # (n,) R^-1 d, how the multipliers fall along z
    row: Array  # (n,) a
    w: Array  # (n,) reflection vector, gradient or difference
    u: Array  # (n,) multipliers of the active rows
    sums: Array  # (4, m) the parts of p(u) of each parity class
    low: Array  # (1, m) smallest p(u) of a point and its mirror images when last looked at
    extremes: Array  # (3, WIDTH) smallest p(u) by lanes, where they are, largest
    active: IntArray  # (n,) rows held, -1 for B
    x: Array  # (n padded,) what J is multiplied with
    tiles: Array  # J by pieces of WIDTH, (n padded / WIDTH times n, WIDTH)
    x_tiles: Array  # x by pieces


@kernel(allocates=True)
def workspace(n: int, m: int) -> QpWork:
    """Scratch for n coefficients and m octant points."""
    pieces = (n + WIDTH - 1) // WIDTH
    J, x = np.zeros((n, pieces * WIDTH)), np.zeros(pieces * WIDTH)
    tiles, x_tiles = J.reshape(n * pieces, WIDTH), x.reshape(pieces, WIDTH)
    return QpWork(
        J,
        np.empty((n, n)),
        np.zeros(((n + 1) * (n + 2) // 2, WIDTH)),
        np.zeros((1, WIDTH)),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty(n),
        np.empty((4, m)),
        np.zeros((1, m)),
        np.empty((3, WIDTH)),
        np.empty(n, np.int64),
        x,
        tiles,
        x_tiles,
    )


@kernel(fastmath=CONTRACT)
def times(work: QpWork, x: Array, out: Array) -> None:
    """out = J x, WIDTH products at a time."""
    for k in range(x.size):
        work.x[k] = x[k]
    a, b = rows(work.tiles, 0), rows(work.x_tiles, 0)
    pieces = work.x_tiles.shape[0]
    for i in range(x.size):
        s = every(0.0)
        for p in range(pieces):
            s += a[i * pieces + p] * b[p]
        out[i] = total(s)


@kernel(fastmath=CONTRACT)
def combine(A: Array, first: int, d: Array, out: Array) -> float:
    """out = sum of d_i A[i] over i >= first; returns the sum of d_i^2."""
    square, last = 0.0, A.shape[0]
    for k in range(out.size):
        out[k] = 0.0
    while first + 4 <= last:
        a, b = d[first], d[first + 1]
        c, e = d[first + 2], d[first + 3]
        square += a * a + b * b + c * c + e * e
        for k in range(out.size):
            out[k] += (
                a * A[first, k] + b * A[first + 1, k] + c * A[first + 2, k] + e * A[first + 3, k]
            )
        first += 4
    for i in range(first, last):
        a = d[i]
        square += a * a
        for k in range(out.size):
            out[k] += a * A[i, k]
    return square


@kernel(fastmath=CONTRACT)
def whiten(n: int, work: QpWork) -> None:
    """work.packed <- L^-1, packed, of H + RIDGE tr(H)/n I = LL' for WIDTH voxels."""
    a, ridge = rows(work.packed, 0), every(0.0)
    for i in range(n):
        ridge += a[i * (i + 3) // 2]
    for i in range(n):
        a[i * (i + 3) // 2] += ridge * (RIDGE / n)
    block_cholesky(work.packed, n, work.pivot)
    block_invert(work.packed, n)


@kernel()
def load(order: IntArray, l: int, work: QpWork) -> bool:
    """J = L^-1 of lane l, its columns in DIPY's order; False where H is not positive definite."""
    J = work.J
    for i in range(order.size):
        for k in range(order.size):
            J[i, k] = 0.0
        for k in range(i + 1):
            J[i, order[k]] = work.packed[i * (i + 1) // 2 + k, l]
    return work.pivot[0, l] > 0.0


@kernel(fastmath=CONTRACT)
def add(work: QpWork, q: int, p: int, free: float) -> None:
    """Row p becomes active: a reflection of J's free rows turns d[q:] into (alpha, 0, ..)."""
    J, w = work.J, work.w
    d, z = work.d, work.z
    alpha = -math.sqrt(free) if d[q] > 0.0 else math.sqrt(free)
    d[q] -= alpha
    factor = -1.0 / (alpha * d[q])  # 2 / |d - alpha e_q|^2
    for k in range(z.size):
        # z = sum of d_i J_i is the search direction: no product needed
        w[k] = (z[k] - alpha * J[q, k]) * factor
    for i in range(q, J.shape[0]):
        f = d[i]
        for k in range(z.size):
            J[i, k] -= f * w[k]
    d[q] = alpha
    for i in range(q + 1):
        work.R[i, q] = d[i]
    work.active[q] = p


@kernel(fastmath=CONTRACT)
def drop(work: QpWork, l: int, q: int) -> None:
    """Active row l of q leaves; Givens rotations restore the triangle R; d and z follow."""
    J, R = work.J, work.R
    d, z = work.d, work.z
    u, active = work.u, work.active
    for j in range(l, q - 1):
        active[j], u[j] = active[j + 1], u[j + 1]
        for i in range(j + 2):
            R[i, j] = R[i, j + 1]
        f, h = R[j, j], R[j + 1, j]
        length = math.sqrt(f * f + h * h)
        c, s = f / length, h / length
        R[j, j] = length
        for k in range(j + 2, q):
            f, h = R[j, k], R[j + 1, k]
            R[j, k], R[j + 1, k] = c * f + s * h, c * h - s * f
        f, h = d[j], d[j + 1]
        d[j], d[j + 1] = c * f + s * h, c * h - s * f
        for k in range(z.size):
            f, h = J[j, k], J[j + 1, k]
            J[j, k], J[j + 1, k] = c * f + s * h, c * h - s * f
    f = d[q - 1]
    for k in range(z.size):
        z[k] += f * J[q - 1, k]


@kernel(fastmath=CONTRACT)
def back(R: Array, q: int, b: Array, out: Array) -> None:
    """out[:q] = R^-1 b[:q]."""
    for i in range(q - 1, -1, -1):
        s, t = b[i], 0.0
        for k in range(i + 1, q - 1, 2):
            s -= R[i, k] * out[k]
            t -= R[i, k + 1] * out[k + 1]
        if (q - i) % 2 == 0:
            s -= R[i, q - 1] * out[q - 1]
        out[i] = (s + t) / R[i, i]
