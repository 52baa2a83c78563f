"""Frames and scales of blocks of voxels: tensors, gradient non-linearity, rotated coefficients.

The scale tensor D = R diag(lambda) R' (mm^2/s) gives the frame R (V, 3, 3), columns e1 e2 e3 with
lambda_1 >= lambda_2 >= lambda_3, and the scales mu_i = sqrt(2 lambda_i tau) (3, V) in mm. Symmetric
matrices are rows xx xy yy xz yz zz (6, V). With a gradient non-linearity F a voxel saw
q' = (I + F) q, so that the table's own q sees the tensor (I + F)'D(I + F).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from . import moments, rotation, tensor
from ._jit import kernel, stage
from ._types import Array, IntArray
from .lanes import WIDTH
from .linalg import SparseMap, block_gather, block_map
from .status import FLOOR, NO_SIGNAL


@kernel()
def fitted_frames(floor: float, share: float, block: Any) -> None:
    """Eigenvalues and frames of a `blocks.Block` from its tensors in units of `tensor.UNIT`.

    Eigenvalues are raised to `floor`, or to `share` of the mean of the positive ones where that is
    more.
    """
    b, status = block.tensor.b, block.status
    values, R = block.values, block.R
    a, eigenvalues = block.few[:6], block.few[6:]
    for l in range(status.size):
        finite = True
        for i in range(6):
            a[i] = tensor.UNIT * b[i, l]
            finite = finite and math.isfinite(a[i])
        if not finite:
            status[l] |= NO_SIGNAL
            for i in range(6):
                a[i] = 0.0
        tensor.eigen3(a, eigenvalues, R[l])
        lowest = 0.0
        for i in range(3):
            if eigenvalues[i] > 0.0:
                lowest += eigenvalues[i] * share / 3.0
        if lowest < floor:
            lowest = floor
        for i in range(3):
            values[i, l] = eigenvalues[i]
            if not eigenvalues[i] > lowest:
                values[i, l] = lowest
                status[l] |= FLOOR


@kernel()
def given_frames(mu: Array, frames: Array, tau: float, i0: int, values: Array, R: Array) -> None:
    """The same from given scales (V, 3) and frames (V, 3, 3); a third column may turn."""
    for l in range(R.shape[0]):
        given, scale = frames[min(i0 + l, frames.shape[0] - 1)], mu[min(i0 + l, mu.shape[0] - 1)]
        flip = 1.0 if tensor.determinant(given) > 0.0 else -1.0
        for i in range(3):
            values[i, l] = scale[i] ** 2 / (2.0 * tau)
            for j in range(3):
                R[l, i, j] = given[i, j] * (flip if j == 2 else 1.0)


@kernel()
def scales(plan: Any, block: Any) -> None:
    """Scales of the basis and the tensor, the tensors of both, and the rotation angles of the
    frames, of a `blocks.Block` from its eigenvalues and frames; the basis' scales are
    block.scale.factor times the tensor's.
    """
    eigenvalues, angles = block.few[:3], block.moments.angles
    mu, mu_tensor = block.mu, block.mu_tensor
    D, R = block.D, block.R
    for l in range(R.shape[0]):
        factor = block.scale.factor[0, l]
        rotation.frame_angles(R[l], angles, l)
        for i in range(3):
            eigenvalues[i] = block.values[i, l]
            mu_tensor[i, l] = math.sqrt(2.0 * plan.tau * block.values[i, l])
            mu[i, l] = factor * mu_tensor[i, l]
        tensor.tensor_elements(R[l], eigenvalues, block.D_scale, l)
        u0 = plan.static_scale
        if plan.isotropic and plan.static_scale == 0.0:
            for i in range(3):
                eigenvalues[i] = mu_tensor[i, l]
            u0 = tensor.isotropic_scale(eigenvalues)
        u0 *= factor
        for r in range(6):
            D[r, l] = factor * factor * block.D_scale[r, l]
            if plan.isotropic:
                D[r, l] = u0 * u0 / (2.0 * plan.tau) if r == 0 or r == 2 or r == 5 else 0.0
        for i in range(3):
            if plan.isotropic:
                mu[i, l] = u0
            block.stretched[i, l] = mu[i, l]


@kernel(allocates=True)
def congruence(m: Array, a: Array, lane: int) -> None:
    """a (6, V), a symmetric A as xx xy yy xz yz zz, becomes m'A m at one lane."""
    out = np.empty(6)
    for i in range(3):
        for j in range(i + 1):
            total = 0.0
            for p in range(3):
                for q in range(3):
                    hi, lo = max(p, q), min(p, q)
                    total += m[p, i] * a[hi * (hi + 1) // 2 + lo, lane] * m[q, j]
            out[i * (i + 1) // 2 + j] = total
    for r in range(6):
        a[r, lane] = out[r]


@stage(allocates=True)
def undo_field(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """From the tensors that the nominal table sees, (I+F)'D(I+F), rows 0-5 of b (8, V), to D."""
    m, inverse = np.empty((3, 3)), np.empty((3, 3))
    field, b = data.field, block.tensor.b
    for l in range(b.shape[1]):
        F = field[min(i0 + l, field.shape[0] - 1)]
        for i in range(3):
            for j in range(3):
                m[i, j] = F[i, j] + (1.0 if i == j else 0.0)
        det = tensor.determinant(m)
        for i in range(3):
            for j in range(3):
                p, q = (i + 1) % 3, (i + 2) % 3
                r, s = (j + 1) % 3, (j + 2) % 3
                inverse[j, i] = (m[p, r] * m[q, s] - m[p, s] * m[q, r]) / det
        congruence(inverse, b, l)


@stage(allocates=True)
def bend(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """Both tensors as the nominal table sees them, and the map from its q to the voxel's frame,
    R'(I+F), in the scratch.
    """
    m, A = np.empty((3, 3)), np.empty((3, 3))
    R, work = block.R, block.moments
    for l in range(R.shape[0]):
        F = data.field[min(i0 + l, data.field.shape[0] - 1)]
        for i in range(3):
            for j in range(3):
                m[i, j] = F[i, j] + (1.0 if i == j else 0.0)
        for i in range(3):
            for j in range(3):
                A[i, j] = m[i, j]
                if not plan.isotropic:
                    A[i, j] = R[l, 0, i] * m[0, j] + R[l, 1, i] * m[1, j] + R[l, 2, i] * m[2, j]
        rotation.linear_angles(A, work.angles, work.skew, work.stretch, l)
        congruence(m, block.D, l)
        congruence(m, block.D_scale, l)
        for i in range(3):
            block.stretched[i, l] = block.mu[i, l] * work.stretch[i, l]


@kernel()
def column_signs(R: Array, frames: Array, i0: int, sign: Array) -> None:
    """Signs (3, V) between the columns of the frames used and those given."""
    for l in range(R.shape[0]):
        given = frames[min(i0 + l, frames.shape[0] - 1)]
        for j in range(3):
            dot = 0.0
            for i in range(3):
                dot += R[l, i, j] * given[i, j]
            sign[j, l] = -1.0 if dot < 0.0 else 1.0


@stage()
def parity_sign(index: IntArray, sign: Array, l: int) -> float:
    """s1^n1 s2^n2 s3^n3 of one function, sign (3, V) at lane l."""
    s = 1.0
    for axis in range(3):
        if sign[axis, l] < 0.0 and index[axis] % 2 == 1:
            s = -s
    return s


@kernel(allocates=True)
def turn(coef: Array, R: Array, t: moments.OrderTables, index: IntArray, root: Array) -> None:
    """Rotate rows of Hermite coefficients (V, n) at equal scales, in place, DIPY's order.

    From the frame R (V, 3, 3) of each row to the fixed frame (the transposes of R turn them back).
    Columns of R may have any sign. sum_{|n|=N} a_n x^n / sqrt(n1! n2! n3!) transforms as a
    polynomial, degree by degree; root (n,) is sqrt(n1! n2! n3!).
    """
    M, angles = np.zeros((root.size, WIDTH)), np.zeros((6, WIDTH))
    frame, sign = np.zeros((3, 3)), np.zeros((3, WIDTH))
    for first in range(0, coef.shape[0], WIDTH):
        for l in range(WIDTH):
            v = min(first + l, coef.shape[0] - 1)
            flip = -1.0 if tensor.determinant(R[v]) < 0.0 else 1.0
            for i in range(3):
                for j in range(3):
                    frame[i, j] = R[v, i, j] * (flip if j == 2 else 1.0)
            rotation.frame_angles(frame, angles, l)
            for j in range(3):
                dot = 0.0
                for i in range(3):
                    dot += frame[i, j] * R[v, i, j]
                sign[j, l] = -1.0 if dot < 0.0 else 1.0
            for i in range(root.size):
                M[i, l] = coef[v, i] * parity_sign(index[i], sign, l) / root[i]
        rotation.rotate_back(t.shears_low, angles, M)
        for l in range(min(WIDTH, coef.shape[0] - first)):
            for i in range(root.size):
                coef[first + l, i] = M[i, l] * root[i]


class Turning(NamedTuple):
    """Constants of `hermite_rows`: to Hermite coefficients, and the last three of `turn`."""

    convert: SparseMap
    tables: moments.OrderTables
    index: IntArray
    root: Array


@kernel(allocates=True)
def hermite_rows(t: Turning, coef: Array, R: Array, out: Array, start: int, stop: int) -> None:
    """Rows start to stop of isotropic coefficients (V, n) to Hermite coefficients, turned by R."""
    n = t.root.size
    a, b = np.empty((n, WIDTH)), np.empty((n, WIDTH))
    for first in range(start, stop, WIDTH):
        block_gather(coef, first, stop, a)
        block_map(t.convert, a, b)  # BLAS would give a row other bits beside other rows
        for l in range(min(WIDTH, stop - first)):
            for i in range(n):
                out[first + l, i] = b[i, l]
    turn(out[start:stop], R[start:stop], t.tables, t.index, t.root)
