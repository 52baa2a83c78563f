"""The scale tensor of blocks of voxels: weighted log-linear fit, eigenframe, mu, S0, and u0.

log y_k = log S0 - b_k g_k'D g_k is solved twice: by ordinary least squares, then with the weights
S_pred^2 of that answer. D is six rows xx xy yy xz yz zz (6, V) in units of `UNIT` mm^2/s; b is in
s/mm^2, y (samples, V). S0 is the mean over the b0 volumes of y exp(b g'D g).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import lanes
from ._jit import CONTRACT, kernel, stage
from .lanes import WIDTH, every, pick, rows
from .linalg import block_backsolve, block_cholesky, block_product, exp, log, pad4

Array = NDArray[np.float64]
# mm2/s: the columns of the design are scaled by it, so that the 7 x 7 matrix is well conditioned
UNIT = 1e-3
# tensor elements in the order xx xy yy xz yz zz (rows of the lower triangle)
ROWS, COLS = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 0, 1, 0, 1, 2])


class TensorTables(NamedTuple):
    """Constants of one gradient table for the tensor fit; `nt` samples have b <= bval_threshold."""

    samples: NDArray[np.uint64]  # (nt,) volumes used
    design: Array  # (nt, 6) of d log E / d D in units of UNIT
    pinv: Array  # (8, nt) ordinary least squares, rows D (6), log S0, padding
    sums: Array  # (24, nt) the 22 distinct products of two columns, padded
    columns: Array  # (8, nt) the seven columns
    entry: NDArray[np.uint64]  # (28,) which sum, and
    factor: Array  # (28,) with which factor, is each entry of the packed 7 x 7 matrix
    b0: NDArray[np.uint64]  # (n0,) volumes taken as b0
    b0_design: Array  # (n0, 6) as `design`


def design_matrix(bvals: Array, bvecs: Array) -> Array:
    """Columns -b (xx, 2xy, yy, 2xz, 2yz, zz), (n, 6), in s/mm2."""
    return -bvals[:, None] * bvecs[:, ROWS] * bvecs[:, COLS] * np.where(ROWS == COLS, 1.0, 2.0)


def tables(
    bvals: Array, bvecs: Array, use: NDArray[np.bool_], b0: NDArray[np.bool_]
) -> TensorTables:
    """Build the constants; `use` (n,) marks the volumes for the tensor, `b0` (n,) those of S0."""
    x = design_matrix(bvals[use], bvecs[use]) * UNIT
    full = np.column_stack([x, np.ones(len(x))])
    exponents = np.zeros((7, 3), np.int64)
    np.add.at(exponents, (np.arange(6), ROWS), 1)
    np.add.at(exponents, (np.arange(6), COLS), 1)
    plain = np.column_stack([x / np.where(ROWS == COLS, 1.0, 2.0), np.ones(len(x))])
    found: dict[tuple[int, ...], int] = {}
    products, entry = [], []
    factor = []
    for i in range(7):
        for j in range(i + 1):
            key = tuple(int(v) for v in exponents[i] + exponents[j])
            if key not in found:
                found[key] = len(products)
                products.append(plain[:, i] * plain[:, j])
            entry.append(found[key])
            doubled = (1.0 if i == 6 or ROWS[i] == COLS[i] else 2.0) * (
                1.0 if j == 6 or ROWS[j] == COLS[j] else 2.0
            )
            factor.append(doubled)
    return TensorTables(
        np.flatnonzero(use).astype(np.uint64),
        np.ascontiguousarray(x),
        pad4(np.linalg.pinv(full)),
        pad4(np.array(products)),
        pad4(full.T),
        np.array(entry, np.uint64),
        np.array(factor),
        np.flatnonzero(b0).astype(np.uint64),
        np.ascontiguousarray(design_matrix(bvals[b0], bvecs[b0]) * UNIT),
    )


class TensorWork(NamedTuple):
    """Scratch of one block."""

    logs: Array  # (nt, V) log y
    use: Array  # (nt, V) weight of the sample in the logarithm: 0 where missing or <= 0
    weight: Array  # (nt, V)
    sums: Array  # (24, V)
    right: Array  # (8, V)
    normal: Array  # (36, V) packed 7 x 7 and its right-hand side
    pivot: Array  # (1, V)
    first: Array  # (8, V) ordinary least squares
    b: Array  # (8, V)


def workspace(nt: int, V: int) -> TensorWork:
    """Scratch for `fit_tensor`."""
    return TensorWork(*(lanes.empty(size, V) for size in (nt, nt, nt, 24, 8, 36, 1, 8, 8)))


@kernel()
def _take_logs(t: TensorTables, y: Array, w: Array, plain: bool, work: TensorWork) -> None:
    """Logarithms of the samples used; a sample <= 0, or of weight 0, gets weight 0 here."""
    for l in range(0, y.shape[1], WIDTH):
        source, weight = rows(y, l), rows(w, l)
        logs, use = rows(work.logs, l), rows(work.use, l)
        for k in range(t.samples.size):
            x = source[t.samples[k]]
            logs[k] = log(pick(x, 1e-300, x, 1e-300))
            if not plain:
                use[k] = pick(x, 0.0, weight[t.samples[k]], 0.0)


@kernel(fastmath=CONTRACT)
def _weights(t: TensorTables, b: Array, plain: bool, work: TensorWork) -> None:
    """Weights S_pred^2 = exp(2 X b) of the second pass; the common factor S0^2 cancels."""
    for l in range(0, b.shape[1], WIDTH):
        c, weight = rows(b, l), rows(work.weight, l)
        use = rows(work.use, l)
        b0, b1 = 2.0 * c[0], 2.0 * c[1]
        b2, b3 = 2.0 * c[2], 2.0 * c[3]
        b4, b5 = 2.0 * c[4], 2.0 * c[5]
        for k in range(t.design.shape[0]):
            x = t.design[k]
            w = exp(x[0] * b0 + x[1] * b1 + x[2] * b2 + x[3] * b3 + x[4] * b4 + x[5] * b5)
            weight[k] = w if plain else w * use[k]


@stage(CONTRACT)
def _weighted_solve(t: TensorTables, weight: Array, work: TensorWork, out: Array) -> None:
    """Weighted 7 x 7 normal equations of log y into out (8, V); `weight` is overwritten."""
    block_product(t.sums, weight, work.sums)
    for l in range(0, weight.shape[1], WIDTH):
        w, logs = rows(weight, l), rows(work.logs, l)
        for k in range(t.design.shape[0]):
            w[k] *= logs[k]
    block_product(t.columns, weight, work.right)
    n = t.design.shape[1] + 1  # 7, not as a literal: Numba would compile both callees once more
    for l in range(0, weight.shape[1], WIDTH):
        normal, sums = rows(work.normal, l), rows(work.sums, l)
        right = rows(work.right, l)
        for r in range(t.entry.size):
            normal[r] = t.factor[r] * sums[t.entry[r]]
        for i in range(n):
            normal[t.entry.size + i] = right[i]
    block_cholesky(work.normal, n, work.pivot)
    block_backsolve(work.normal, n, out)


@kernel(fastmath=CONTRACT)
def fit_tensor(t: TensorTables, y: Array, w: Array, plain: bool, work: TensorWork) -> None:
    """Two-pass weighted least squares of log y on b <= threshold, into work.b: rows D / UNIT (xx xy
    yy xz yz zz), log S0.

    Parameters
    ----------
    y, w : (n, V) samples and their weights (0: missing). plain : True where all weights are 1 and
        all samples > 0.

    Notes
    -----
    Lanes with missing or nonpositive samples take their first pass from weighted sums too: the
    constant pseudo-inverse is wrong for them (10 of 288 missing: 6 % on D11). Which lanes do
    depends on the lane alone, never on its block.
    """
    _take_logs(t, y, w, plain, work)
    block_product(t.pinv, work.logs, work.first)
    if not plain:
        for l in range(0, y.shape[1], WIDTH):
            use, weight = rows(work.use, l), rows(work.weight, l)
            for k in range(t.samples.size):
                weight[k] = use[k]
        _weighted_solve(t, work.weight, work, work.b)
        for l in range(0, y.shape[1], WIDTH):
            use, first = rows(work.use, l), rows(work.first, l)
            b, incomplete = rows(work.b, l), every(0.0)
            for k in range(t.samples.size):
                incomplete += pick(use[k], 1.0, 1.0, pick(1.0, use[k], 1.0, 0.0))  # anything but 1
            for i in range(7):
                first[i] = pick(incomplete, 0.0, b[i], first[i])
    _weights(t, work.first, plain, work)
    _weighted_solve(t, work.weight, work, work.b)


@kernel()
def eigen3(a: Array, values: Array, R: Array) -> None:
    """Eigenvalues (descending) and eigenvectors (columns of R, determinant +1) of a symmetric 3 x 3
    matrix.

    Cyclic Jacobi. `a` (6,) in the order xx xy yy xz yz zz is destroyed; values (3,), R (3, 3) are
    written.
    """
    for i in range(3):
        for j in range(3):
            R[i, j] = 1.0 if i == j else 0.0
    for _ in range(16):
        off = a[1] * a[1] + a[3] * a[3] + a[4] * a[4]
        if not off > 1e-36 * (a[0] * a[0] + a[2] * a[2] + a[5] * a[5]):
            break
        for p in range(2):
            for q in range(p + 1, 3):
                pp, qq = p * (p + 3) // 2, q * (q + 3) // 2
                pq = q * (q + 1) // 2 + p
                if a[pq] == 0.0:
                    continue
                theta = (a[qq] - a[pp]) / (2.0 * a[pq])
                t = 1.0 / (abs(theta) + math.sqrt(theta * theta + 1.0))
                if theta < 0.0:
                    t = -t
                c = 1.0 / math.sqrt(t * t + 1.0)
                s = t * c
                a[pp] -= t * a[pq]
                a[qq] += t * a[pq]
                a[pq] = 0.0
                r = 3 - p - q
                rp = r * (r + 1) // 2 + p if r > p else p * (p + 1) // 2 + r
                rq = r * (r + 1) // 2 + q if r > q else q * (q + 1) // 2 + r
                x = a[rp]
                a[rp] = c * x - s * a[rq]
                a[rq] = s * x + c * a[rq]
                for k in range(3):
                    x = R[k, p]
                    R[k, p] = c * x - s * R[k, q]
                    R[k, q] = s * x + c * R[k, q]
    values[0] = a[0]
    values[1] = a[2]
    values[2] = a[5]
    for i, j in ((0, 1), (1, 2), (0, 1)):
        if values[i] < values[j]:
            x = values[i]
            values[i] = values[j]
            values[j] = x
            for k in range(3):
                x = R[k, i]
                R[k, i] = R[k, j]
                R[k, j] = x
    if determinant(R) < 0.0:
        for k in range(3):
            R[k, 2] = -R[k, 2]


@kernel()
def determinant(R: Array) -> float:
    """Determinant of a 3 x 3 matrix."""
    return (
        R[0, 0] * (R[1, 1] * R[2, 2] - R[1, 2] * R[2, 1])
        - R[0, 1] * (R[1, 0] * R[2, 2] - R[1, 2] * R[2, 0])
        + R[0, 2] * (R[1, 0] * R[2, 1] - R[1, 1] * R[2, 0])
    )


@kernel()
def isotropic_scale(mu: Array) -> float:
    """The single scale u0 that maximises the overlap of both Gaussians, mm [Ozarslan 2013, Eq. 49].

    Positive root U = u0^2 of -3U^3 - (X+Y+Z)U^2 + (XY+XZ+YZ)U + 3XYZ = 0, X = mu_x^2 ...; three
    real roots, closed form.
    """
    x, y = mu[0] * mu[0], mu[1] * mu[1]
    z = mu[2] * mu[2]
    if x == y and y == z:
        return mu[0]
    a = (x + y + z) / 3.0
    b = -(x * y + x * z + y * z) / 3.0
    c = -x * y * z
    p = b - a * a / 3.0
    s = 2.0 * a * a * a / 27.0 - a * b / 3.0 + c
    argument = 3.0 * s / (2.0 * p) * math.sqrt(-3.0 / p)
    if abs(argument) > 1.0:  # by rounding
        argument = math.copysign(1.0, argument)
    return math.sqrt(2.0 * math.sqrt(-p / 3.0) * math.cos(math.acos(argument) / 3.0) - a / 3.0)


@kernel()
def isotropic_scales(mu: Array, out: Array) -> None:
    """`isotropic_scale` of rows mu (V, 3) into out (V,)."""
    for v in range(out.size):
        out[v] = isotropic_scale(mu[v])


@kernel()
def tensor_elements(R: Array, values: Array, out: Array, lane: int) -> None:
    """D = R diag(values) R' into rows xx xy yy xz yz zz of out (6, V) at one lane."""
    r = 0
    for i in range(3):
        for j in range(i + 1):
            out[r, lane] = (
                R[i, 0] * R[j, 0] * values[0]
                + R[i, 1] * R[j, 1] * values[1]
                + R[i, 2] * R[j, 2] * values[2]
            )
            r += 1


@kernel()
def signal_at_origin(t: TensorTables, y: Array, w: Array, D: Array, out: Array) -> None:
    """S0 (1, V): mean over the b0 volumes of y exp(b u'Du), by the samples' weights; NaN where none
    is left.

    A "b0" at b = 15 is not E = 1: ignoring that costs 26 % of RTOP on a clean Gaussian.
    """
    for l in range(0, y.shape[1], WIDTH):
        samples, weights = rows(y, l), rows(w, l)
        d, total = rows(D, l), every(0.0)
        weight = every(0.0)
        for k in range(t.b0.size):
            x = every(0.0)
            for i in range(6):
                x -= (t.b0_design[k, i] / UNIT) * d[i]
            total += weights[t.b0[k]] * samples[t.b0[k]] * exp(x)
            weight += weights[t.b0[k]]
        rows(out, l)[0] = pick(weight, 0.0, total / weight, math.nan)
