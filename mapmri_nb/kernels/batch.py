"""
Loops over voxels: blocks of V lanes through tensor, moments, weight, solver and output.

Every loop takes rows start to stop, one set of scratch a call, and releases the GIL: `_jit.spread` runs several of them
in threads. Results do not depend on where the cuts lie, since every lane is computed alone.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import gcv, laplacian, moments, scalars, tensor
from ._jit import kernel
from .linalg import SparseMap, block_backsolve, block_cholesky, block_map

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
LANES = 48

FLOOR, DROPPED, RTOP_NOT_POSITIVE, WEIGHT_AT_BOUND, BY_OSQP, SHIFTED = 1, 2, 4, 8, 16, 32
NO_SIGNAL, TOO_FEW, NOT_DEFINITE, NO_ORIGIN, NOT_CONVERGED = 256, 512, 1024, 2048, 4096
NO_FIT = NO_SIGNAL | TOO_FEW | NOT_DEFINITE | NO_ORIGIN | NOT_CONVERGED
LINEAR, GRID, GLOBAL, EXTERNAL = 0, 1, 2, 3


class Options(NamedTuple):
    """Scalars of a model, always of these types."""

    order: int
    isotropic: bool
    tau: float  # s
    floor: float  # mm2/s, smallest eigenvalue
    static_scale: float  # mm, u0 given by static_diffusivity; 0: from the tensor
    needed: int  # fewest valid samples
    max_iter: int  # of the constrained solvers


class Plan(NamedTuple):
    """Everything constant for a model and a gradient table."""

    options: Options
    tensor: tensor.TensorTables
    moments: moments.OrderTables
    scheme: moments.Scheme
    lap: laplacian.LaplacianTables
    gcv: gcv.GcvTables
    public: SparseMap  # block order to the basis' public coefficients
    weights: Array  # Laplacian weights: (0,) GCV, (1,) fixed, more: the best of them


class Data(NamedTuple):
    """Rows of voxels; optional arrays have length 0 when absent."""

    y: Array  # (V, n)
    weight: Array  # (V, n) or (1, n) sample weights
    mu: Array  # (V, 3) given scales
    R: Array  # (V, 3, 3) given frames


class Out(NamedTuple):
    """Rows of results, written in place."""

    coef: Array  # (V, n)
    mu: Array  # (V, 3) scales of the basis
    mu_tensor: Array  # (V, 3)
    R: Array  # (V, 3, 3)
    S0: Array  # (V,)
    weight: Array  # (V,) Laplacian weight
    rmse: Array  # (V,)
    r2: Array  # (V,)
    kkt: Array  # (V,) residual of the constrained solvers
    iterations: Array  # (V,)
    margin: Array  # (V,) smallest eigenvalue of the corrected Gram matrices
    status: IntArray  # (V,)


class Work(NamedTuple):
    """Scratch of one call."""

    y: Array  # (n 4, V) samples, missing ones 0
    w: Array  # (n 4, V) weights, missing ones 0
    tensor: tensor.TensorWork
    moments: moments.MomentWork
    gcv: gcv.Work
    D: Array  # (6, V) tensor of the basis' Gaussian
    D_scale: Array  # (6, V) the scale tensor
    mu: Array  # (3, V)
    mu_tensor: Array
    R: Array  # (V, 3, 3)
    sign: Array  # (3, V) column signs against a given R
    G: Array  # packed M'M + weight L, and the right-hand side's row
    rhs: Array  # (n, V)
    x: Array  # (n, V)
    public: Array  # (n, V)
    f: Array  # (6, V) Laplacian factors
    lane: Array  # (8, V): S0, weight, -, y'y, valid samples, kkt, iterations, margin
    bound: IntArray  # (V,)
    pivot: Array  # (2, V)
    status: IntArray  # (V,)
    values: Array  # (3,)
    a: Array  # (6,)


@kernel()
def workspace(plan: Plan, lanes: int) -> Work:
    """Scratch for one call."""
    s, t = plan.scheme, plan.moments
    n, rows = t.origin.size, s.high.shape[1]
    return Work(
        np.zeros((rows, lanes)),
        np.zeros((rows, lanes)),
        tensor.workspace(plan.tensor.pinv.shape[1], lanes),
        moments.workspace(rows, t.exponents.shape[0], s.high.shape[0], s.low.shape[0], plan.options.order, lanes),
        gcv.workspace(n, lanes),
        np.zeros((6, lanes)),
        np.zeros((6, lanes)),
        np.zeros((3, lanes)),
        np.zeros((3, lanes)),
        np.zeros((lanes, 3, 3)),
        np.zeros((3, lanes)),
        np.zeros(((n + 1) * (n + 2) // 2, lanes)),
        np.zeros((n, lanes)),
        np.zeros((n, lanes)),
        np.zeros((n, lanes)),
        np.zeros((6, lanes)),
        np.zeros((8, lanes)),
        np.zeros(lanes, np.int64),
        np.zeros((2, lanes)),
        np.zeros(lanes, np.int64),
        np.zeros(3),
        np.zeros(6),
    )


@kernel()
def _load(plan: Plan, data: Data, i0: int, work: Work) -> bool:
    """
    Transpose a block of samples; a sample that is not finite is missing (value 0, weight 0).

    The last block repeats its last voxel. True where all weights are 1 and all samples positive. Sets the status.
    """
    plain = True
    n = data.y.shape[1]
    for l in range(work.status.size):
        v = min(i0 + l, data.y.shape[0] - 1)
        weight = data.weight[min(v, data.weight.shape[0] - 1)]
        valid, logs, total, status = 0, 0, 0.0, 0
        for k in range(n):
            y, w = data.y[v, k], weight[k]
            if not math.isfinite(y):
                y, w = 0.0, 0.0
            work.y[k, l] = y
            work.w[k, l] = w
            if w > 0.0:
                valid += 1
                total += abs(y)
            if w != 1.0 or not y > 0.0:
                plain = False
                status |= DROPPED
        for k in range(plan.tensor.samples.size):
            j = plan.tensor.samples[k]
            if work.w[j, l] > 0.0 and work.y[j, l] > 0.0:
                logs += 1
        if total == 0.0:
            status |= NO_SIGNAL
        elif logs < 7 or valid < plan.options.needed:
            status |= TOO_FEW
        work.status[l] = status
        work.lane[4, l] = valid
    return plain


@kernel()
def _scales(plan: Plan, data: Data, i0: int, work: Work) -> None:
    """Scale tensor, frame and scales of every lane: fitted, or given by the caller; rotation angles; S0 from the b0s."""
    o, values, a = plan.options, work.values, work.a
    given = data.mu.shape[0] > 0
    for l in range(work.status.size):
        R = work.R[l]
        if given:
            v = min(i0 + l, data.y.shape[0] - 1)
            vm, vr = min(v, data.mu.shape[0] - 1), min(v, data.R.shape[0] - 1)
            for i in range(3):
                values[i] = data.mu[vm, i] ** 2 / (2.0 * o.tau)
                for j in range(3):
                    R[i, j] = data.R[vr, i, j]
            if tensor.determinant(R) < 0.0:
                for i in range(3):
                    R[i, 2] = -R[i, 2]
        else:
            finite = True
            for i in range(6):
                a[i] = tensor.UNIT * work.tensor.b[i, l]
                finite = finite and math.isfinite(a[i])
            if not finite:
                work.status[l] |= NO_SIGNAL
                for i in range(6):
                    a[i] = 0.0
            tensor.eigen3(a, values, R)
            for i in range(3):
                if not values[i] > o.floor:
                    values[i] = o.floor
                    work.status[l] |= FLOOR
        moments.frame_angles(R, work.moments.angles, l)
        for i in range(3):
            work.mu_tensor[i, l] = math.sqrt(2.0 * o.tau * values[i])
            if given:
                dot = 0.0
                for j in range(3):
                    dot += R[j, i] * data.R[vr, j, i]
                work.sign[i, l] = 1.0 if dot > 0.0 else -1.0
        tensor.tensor_elements(R, values, work.D_scale, l)
        if o.isotropic:
            for i in range(3):
                values[i] = work.mu_tensor[i, l]
            u0 = o.static_scale if o.static_scale > 0.0 else tensor.isotropic_scale(values)
            for i in range(3):
                values[i] = u0 * u0 / (2.0 * o.tau)
        for i in range(3):
            work.mu[i, l] = math.sqrt(2.0 * o.tau * values[i])
        for r in range(6):
            work.D[r, l] = work.D_scale[r, l]
        if o.isotropic:
            for r in range(6):
                work.D[r, l] = values[0] if r in (0, 2, 5) else 0.0
    tensor.signal_at_origin(plan.tensor, work.y, work.w, work.D_scale, work.lane[0])
    for l in range(work.status.size):
        if not work.lane[0, l] > 0.0:
            work.status[l] |= NO_SIGNAL


@kernel()
def _prepare(plan: Plan, data: Data, i0: int, work: Work) -> None:
    """Everything up to the normal equations M'M + weight L (work.G, packed) and M'y (work.rhs) of one block."""
    n = plan.moments.origin.size
    plain = _load(plan, data, i0, work)
    if data.mu.shape[0] == 0:
        tensor.fit_tensor(plan.tensor, work.y, work.w, plain, work.tensor)
    _scales(plan, data, i0, work)
    moments.normal_equations(
        plan.moments, plan.scheme, plan.options.order, work.y, work.w, plain, work.D, work.mu,
        not plan.options.isotropic, work.moments, work.G, work.rhs,
    )  # fmt: skip
    weight = work.lane[1]
    if plan.weights.size == 1:
        for l in range(weight.size):
            weight[l] = plan.weights[0]
    else:
        yy = work.lane[3]
        for l in range(weight.size):
            yy[l] = 0.0
        for k in range(data.y.shape[1]):
            y, w = work.y[k], work.w[k]
            for l in range(weight.size):
                yy[l] += w[l] * y[l] * y[l]
        gcv.choose(work.G, work.rhs, work.mu, yy, work.lane[4], plan.gcv, plan.weights, work.gcv, weight, work.bound)
        for l in range(weight.size):
            if work.bound[l] != 0:
                work.status[l] |= WEIGHT_AT_BOUND
    laplacian.factors(work.mu, work.f)
    lap = plan.lap
    for e in range(lap.target.size):
        target = work.G[lap.target[e]]
        for t in range(lap.pointer[e], lap.pointer[e + np.uint64(1)]):
            f, c = work.f[lap.factor[t]], lap.coefficient[t]
            for l in range(weight.size):
                target[l] += c * f[l] * weight[l]
    for l in range(weight.size):
        work.lane[5, l] = 0.0
        work.lane[6, l] = 0.0
        work.lane[7, l] = math.nan


@kernel()
def _solve_linear(plan: Plan, work: Work) -> None:
    """Coefficients by Cholesky; E(0) is then divided out and S0 becomes S0 E(0)."""
    n = plan.moments.origin.size
    last = n * (n + 1) // 2
    for i in range(n):
        for l in range(work.status.size):
            work.G[last + i, l] = work.rhs[i, l]
    block_cholesky(work.G, n, work.pivot)
    block_backsolve(work.G, n, work.x)
    for l in range(work.status.size):
        if not work.pivot[0, l] > n * 2.3e-16:
            work.status[l] |= NOT_DEFINITE
        origin = 0.0
        for i in range(n):
            origin += plan.moments.origin[i] * work.x[i, l]
        if not origin > 0.0:
            work.status[l] |= NO_ORIGIN
            origin = math.nan
        work.lane[0, l] = origin
        for i in range(n):
            work.x[i, l] /= origin


@kernel()
def _unpack(plan: Plan, work: Work, lane: int, H: Array, g: Array) -> None:
    """Normal equations of one voxel in DIPY's order, for data divided by S0."""
    place = plan.moments.permutation
    for i in range(g.size):
        g[place[i]] = work.rhs[i, lane] / work.lane[0, lane]
        for j in range(i + 1):
            value = work.G[i * (i + 1) // 2 + j, lane]
            H[place[i], place[j]] = value
            H[place[j], place[i]] = value


@kernel()
def _finish(plan: Plan, data: Data, i0: int, stop: int, work: Work, out: Out) -> None:
    """Residuals, public coefficients and all maps of one block; NaN where the status means no fit."""
    n, o = plan.moments.origin.size, plan.options
    moments.fitted_signal(
        plan.moments, plan.scheme, o.order, work.x, work.mu, not o.isotropic, work.moments, work.moments.gy
    )
    block_map(plan.public, work.x, work.public)
    given = data.mu.shape[0] > 0 and not o.isotropic
    index = plan.moments.index
    for l in range(min(work.status.size, stop - i0)):
        v = i0 + l
        at_origin = 0.0
        for i in range(n):
            odd = (index[i, 0] + index[i, 1] + index[i, 2]) % 4 == 2
            at_origin += (-1.0 if odd else 1.0) * plan.moments.origin[i] * work.x[i, l]
            if not math.isfinite(work.x[i, l]) and work.status[l] & NO_FIT == 0:
                work.status[l] |= NOT_DEFINITE
        if not at_origin > 0.0 and work.status[l] & NO_FIT == 0:
            work.status[l] |= RTOP_NOT_POSITIVE
        fitted = work.status[l] & NO_FIT == 0
        none = math.nan
        out.status[v] = work.status[l]
        for i in range(n):
            out.coef[v, i] = work.public[i, l] if fitted else none
        if given:
            for i in range(n):
                s = 1.0
                for axis in range(3):
                    if work.sign[axis, l] < 0.0 and index[i, axis] % 2 == 1:
                        s = -s
                out.coef[v, plan.moments.permutation[i]] *= s
        for i in range(3):
            out.mu[v, i] = work.mu[i, l] if fitted else none
            out.mu_tensor[v, i] = work.mu_tensor[i, l] if fitted else none
            for j in range(3):
                s = work.sign[j, l] if data.mu.shape[0] > 0 else 1.0
                out.R[v, i, j] = s * work.R[l, i, j] if fitted else none
        out.S0[v] = work.lane[0, l] if fitted else none
        out.weight[v] = work.lane[1, l] if fitted else none
        out.kkt[v] = work.lane[5, l] if fitted else none
        out.iterations[v] = work.lane[6, l] if fitted else none
        out.margin[v] = work.lane[7, l] if fitted else none
        _residuals(data.y.shape[1], work, l, v, fitted, out)


@kernel()
def _residuals(n: int, work: Work, l: int, v: int, fitted: bool, out: Out) -> None:
    """RMSE in the data's units and R2 over the valid samples, b0 included."""
    square, mean, count = 0.0, 0.0, work.lane[4, l]
    for k in range(n):
        if work.w[k, l] > 0.0:
            mean += work.y[k, l] / count
            square += (work.y[k, l] - work.lane[0, l] * work.moments.gy[k, l]) ** 2
    spread = 0.0
    for k in range(n):
        if work.w[k, l] > 0.0:
            spread += (work.y[k, l] - mean) ** 2
    out.rmse[v] = math.sqrt(square / count) if fitted else math.nan
    out.r2[v] = 1.0 - square / spread if fitted and spread > 0.0 else math.nan


@kernel()
def linear(plan: Plan, data: Data, lanes: int, out: Out, start: int, stop: int) -> None:
    """Fit MAP or MAPL to rows start to stop."""
    work = workspace(plan, lanes)
    for i0 in range(start, stop, lanes):
        _prepare(plan, data, i0, work)
        _solve_linear(plan, work)
        _finish(plan, data, i0, stop, work, out)


@kernel()
def indices(coef: Array, mu: Array, t: scalars.IndexTables, out: Array, start: int, stop: int) -> None:
    """The nine indices of rows start to stop into out (V, 9); Hermite coefficients in the tensor's frame."""
    for v in range(start, stop):
        scalars.nine_indices(coef[v], mu[v], t, out[v])


@kernel()
def _copy_frame(R: Array, out: Array) -> bool:
    """Copy a frame; False (and the identity) where it is not finite. A determinant of -1 is left to the caller."""
    for i in range(3):
        for j in range(3):
            if not math.isfinite(R[i, j]):
                for a in range(3):
                    for b in range(3):
                        out[a, b] = 1.0 if a == b else 0.0
                return False
            out[i, j] = R[i, j]
    return True


@kernel()
def turn(coef: Array, R: Array, t: moments.OrderTables, root: Array, inverse: bool) -> None:
    """
    Rotate rows of Hermite coefficients (V, n) at equal scales, in place, DIPY's order.

    From the fixed frame to the frame R (V, 3, 3) of each row, or back where `inverse`. Columns of R may have any sign.
    """
    M, angles, frame = np.zeros((root.size, 1)), np.zeros((6, 1)), np.zeros((3, 3))
    sign = np.zeros(3)
    for v in range(coef.shape[0]):
        _copy_frame(R[v], frame)
        if tensor.determinant(frame) < 0.0:
            for i in range(3):
                frame[i, 2] = -frame[i, 2]
        moments.frame_angles(frame, angles, 0)
        for j in range(3):
            dot = 0.0
            for i in range(3):
                dot += frame[i, j] * R[v, i, j]
            sign[j] = -1.0 if dot < 0.0 else 1.0
        for i in range(root.size):
            M[i, 0] = coef[v, i] * (_parity_sign(t.exponents_low, i, sign) if inverse else 1.0)
        moments.turn_coefficients(t, angles, root, inverse, M)
        for i in range(root.size):
            coef[v, i] = M[i, 0] * (1.0 if inverse else _parity_sign(t.exponents_low, i, sign))


@kernel()
def _parity_sign(exponents: NDArray[np.uint64], i: int, sign: Array) -> float:
    """s1^n1 s2^n2 s3^n3."""
    s = 1.0
    for axis in range(3):
        if sign[axis] < 0.0 and exponents[i, axis] % np.uint64(2) == np.uint64(1):
            s = -s
    return s
