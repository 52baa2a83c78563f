"""
Blocks of V voxels through the stages of a fit: load, tensor, scales, normal equations, weight,
solver, output.

Each stage is one compiled kernel; the short Python loop over them costs a few percent of a block,
compiles a third of what one big kernel did (a caller optimises its callees' code again), and lets
every mode compile only what it uses. Kernels release the GIL, so `_jit.spread` runs spans of rows
in threads. Results do not depend on where cuts lie, since every lane is computed alone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import frames, gcv, lanes, laplacian, moments, qp, scalars, sdp, tensor
from ._jit import CONTRACT, kernel
from .lanes import WIDTH, every, pick, rows, sqrt
from .linalg import SparseMap, block_backsolve, block_cholesky, block_gather, block_map

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
LANES = 80  # 48 to 112 are alike, see `lanes.padded`
# up to order 4: there a block's work is short beside the Python that only one thread can run
LANES_OF_LOW_ORDERS = 144

FLOOR, NO_SIGNAL = frames.FLOOR, frames.NO_SIGNAL
DROPPED, RTOP_NOT_POSITIVE, WEIGHT_AT_BOUND, BY_OSQP, SHIFTED = 2, 4, 8, 16, 32
TOO_FEW, NOT_DEFINITE, NO_ORIGIN, NOT_CONVERGED = 512, 1024, 2048, 4096
NO_FIT = NO_SIGNAL | TOO_FEW | NOT_DEFINITE | NO_ORIGIN | NOT_CONVERGED
# rows of Block.lane
S0, WEIGHT, YY, VALID, RMSE, R2, KKT, ITERATIONS, MARGIN = range(9)


class Plan(NamedTuple):
    """Everything constant for a model and a gradient table."""

    order: int
    isotropic: bool
    tau: float  # s
    floor: float  # mm2/s, smallest eigenvalue
    static_scale: float  # mm, u0 given by static_diffusivity; 0: from the tensor
    needed: int  # fewest valid samples
    tensor: tensor.TensorTables
    moments: moments.OrderTables
    scheme: moments.Scheme
    lap: laplacian.LaplacianTables
    gcv: gcv.GcvTables
    public: SparseMap  # block order to the basis' public coefficients
    weights: Array  # Laplacian weights: (0,) GCV, (1,) fixed, more: the best of them
    zero_is_missing: bool


class Data(NamedTuple):
    """
    Rows of voxels; given scales and field have length 0 when absent, and any array may have length
    1 for all voxels.
    """

    y: Array  # (V, n)
    weight: Array  # (V, n) sample weights
    mu: Array  # (V, 3) given scales
    R: Array  # (V, 3, 3) given frames
    field: Array  # (V, 3, 3) gradient non-linearity, q' = (I + field) q


class Out(NamedTuple):
    """Rows of results, written in place."""

    coef: Array  # (V, n)
    mu: Array  # (V, 3) scales of the basis
    mu_tensor: Array  # (V, 3)
    R: Array  # (V, 3, 3)
    # (V, 9): S0, Laplacian weight, y'y, valid samples, RMSE, R2, KKT residual, iterations, Gram
    # margin
    lane: Array
    status: IntArray  # (V,)


class Block:
    """Scratch and state of one block of voxels, for one thread."""

    def __init__(self, plan: Plan, V: int) -> None:
        n, samples = plan.moments.origin.size, len(plan.scheme.points)

        def empty(*shape: int) -> Array:
            return lanes.empty(*shape, V)

        self.y, self.w = empty(samples), empty(samples)
        self.tensor = tensor.workspace(plan.tensor.pinv.shape[1], V)
        self.moments = moments.workspace(plan.moments, plan.scheme, plan.order, V)
        self.gcv = gcv.workspace(n, V) if plan.weights.size != 1 else None
        self.D, self.D_scale = empty(6), empty(6)  # of the basis' Gaussian; the scale tensor
        self.mu, self.mu_tensor, self.sign = empty(3), empty(3), empty(3)
        self.R = np.zeros((V, 3, 3))
        self.G = empty((n + 1) * (n + 2) // 2)  # packed M'M + weight L, and a right-hand side's row
        self.rhs, self.x, self.public = empty(n), empty(n), empty(n)
        self.lane, self.values = empty(9), empty(3)  # values: eigenvalues of the scale tensor
        self.pivot, self.factors = empty(1), empty(6)
        self.status, self.bound = np.zeros(V, np.int64), np.zeros(V, np.int64)
        self.plain, self.turn = True, 0 if plan.isotropic else 1
        self.stretched = self.mu  # mu times the field's scales

    def row(self, which: int) -> Array:
        """One row of `lane`, (1, V)."""
        return self.lane[which : which + 1]


@kernel()
def _odd(values: Array, weight: Array) -> int:
    """How many samples of a voxel are not positive, not finite, or not of weight 1."""
    odd = 0
    for k in range(values.size):
        odd += 1 - ((values[k] > 0.0) & (values[k] < math.inf) & (weight[k] == 1.0))
    return odd


@kernel()
def load(
    data: Array, weights: Array, i0: int, samples: NDArray[np.uint64], needed: int, zero_is_missing: bool, y: Array,
    w: Array, lane: Array, status: IntArray,
) -> bool:  # fmt: skip
    """
    Transpose a block of samples into y (n, V); one that is not finite, or of weight 0, or 0 with
    `zero_is_missing`, is missing (value 0, weight 0).

    The last block repeats its last voxel. True where all weights are 1 and all samples positive.
    Sets the status.
    """
    plain, n = True, data.shape[1]
    for l in range(status.size):
        v = min(i0 + l, data.shape[0] - 1)
        values, weight = data[v], weights[min(v, weights.shape[0] - 1)]
        lane[VALID, l], status[l] = n, 0
        if n >= needed and _odd(values, weight) == 0:  # most voxels
            for k in range(n):
                y[k, l] = values[k]
                w[k, l] = 1.0
            continue
        plain = False
        valid, logs, total, flags = 0, 0, 0.0, 0
        for k in range(n):
            value, factor = values[k], weight[k]
            if not math.isfinite(value) or factor == 0.0 or (zero_is_missing and value == 0.0):
                value, factor = 0.0, 0.0
            y[k, l] = value
            w[k, l] = factor
            if factor > 0.0:
                valid += 1
                total += abs(value)
            if not (factor > 0.0 and value > 0.0):
                flags |= DROPPED
        for k in range(samples.size):
            if w[samples[k], l] > 0.0 and y[samples[k], l] > 0.0:
                logs += 1
        if total == 0.0:
            flags |= NO_SIGNAL
        elif logs < 7 or valid < needed:
            flags |= TOO_FEW
        status[l] = flags
        lane[VALID, l] = valid
    return plain


@kernel(fastmath=CONTRACT)
def sum_squares(y: Array, w: Array, out: Array) -> None:
    """y'Wy of every voxel into out (1, V)."""
    for l in range(0, y.shape[1], WIDTH):
        a, b, total = rows(y, l), rows(w, l), every(0.0)
        for k in range(y.shape[0]):
            total += b[k] * a[k] * a[k]
        rows(out, l)[0] = total


@kernel()
def cholesky_solve(
    origin: Array, rhs: Array, G: Array, pivot: Array, x: Array, lane: Array, status: IntArray
) -> None:
    """
    Coefficients x (n, V) by Cholesky; E(0) is then divided out and is S0, as S0 <- S0 E(0) for data
    y / S0.
    """
    n = origin.size
    for l in range(0, G.shape[1], WIDTH):
        last, b = rows(G, l), rows(rhs, l)
        for i in range(n):
            last[n * (n + 1) // 2 + i] = b[i]
    block_cholesky(G, n, pivot)
    block_backsolve(G, n, x)
    for l in range(0, G.shape[1], WIDTH):
        c, total = rows(x, l), every(0.0)
        for i in range(n):
            total += origin[i] * c[i]
        total = pick(total, 0.0, total, math.nan)
        rows(lane, l)[S0] = total
        for i in range(n):
            c[i] /= total
    for l in range(status.size):
        if not pivot[0, l] > n * 2.3e-16:
            status[l] |= NOT_DEFINITE
        if not lane[S0, l] > 0.0:
            status[l] |= NO_ORIGIN


@kernel(fastmath=CONTRACT)
def residuals(y: Array, w: Array, fitted: Array, lane: Array) -> None:
    """RMSE in the data's units and R2 over the valid samples, b0 included; `fitted` (n, V) is E."""
    n = y.shape[0]
    for l in range(0, y.shape[1], WIDTH):
        a, weight, e, state = rows(y, l), rows(w, l), rows(fitted, l), rows(lane, l)
        mean = square = spread = every(0.0)
        for k in range(n):
            mean += a[k]  # missing samples are 0
        count = pick(state[VALID], 1.0, state[VALID], 1.0)
        mean /= count
        for k in range(n):
            used = pick(weight[k], 0.0, 1.0, 0.0)
            error, distance = a[k] - state[S0] * e[k], a[k] - mean
            square += used * error * error
            spread += used * distance * distance
        state[R2] = pick(spread, 0.0, 1.0 - square / spread, math.nan)
        state[RMSE] = sqrt(square / count)


@kernel()
def write(
    origin: Array, index: IntArray, place: NDArray[np.uint64], signed: bool, x: Array, public: Array, mu: Array,
    mu_tensor: Array, R: Array, sign: Array, lane: Array, status: IntArray, i0: int, stop: int, out: Out,
) -> None:  # fmt: skip
    """
    All rows of one block into `out`; NaN where the status means no fit. `signed`: undo the flips of
    given frames.
    """
    n, count = origin.size, min(status.size, stop - i0)
    at_origin, size = np.zeros(status.size), np.zeros(status.size)
    for i in range(n):
        b = origin[i] * (-1.0 if (index[i, 0] + index[i, 1] + index[i, 2]) % 4 == 2 else 1.0)
        for l in range(status.size):
            at_origin[l] += b * x[i, l]
            size[l] += abs(x[i, l])
    for l in range(count):
        if status[l] & NO_FIT == 0:
            if not math.isfinite(size[l]):
                status[l] |= NOT_DEFINITE
            elif not at_origin[l] > 0.0:
                status[l] |= RTOP_NOT_POSITIVE
        v = i0 + l
        out.status[v] = status[l]
        none = math.nan if status[l] & NO_FIT else 0.0  # added to everything
        for i in range(n):
            out.coef[v, i] = public[i, l] + none
        if signed:
            for i in range(n):
                out.coef[v, place[i]] *= frames.parity_sign(index[i], sign, l)
        for i in range(3):
            out.mu[v, i] = mu[i, l] + none
            out.mu_tensor[v, i] = mu_tensor[i, l] + none
            for j in range(3):
                out.R[v, i, j] = sign[j, l] * R[l, i, j] + none
        for r in range(lane.shape[0]):
            out.lane[v, r] = lane[r, l] + none


def prepare(plan: Plan, data: Data, i0: int, k: Block) -> None:
    """
    Everything up to the normal equations M'M + weight L (k.G, packed) and M'y (k.rhs) of one block.
    """
    k.plain = load(
        data.y,
        data.weight,
        i0,
        plan.tensor.samples,
        plan.needed,
        plan.zero_is_missing,
        k.y,
        k.w,
        k.lane,
        k.status,
    )
    values = k.values
    if len(data.mu):
        frames.given_frames(data.mu, data.R, plan.tau, i0, values, k.R)
    else:
        tensor.fit_tensor(plan.tensor, k.y, k.w, k.plain, k.tensor)
        if len(data.field):
            frames.undo_field(data.field, i0, k.tensor.b)
        frames.fitted_frames(k.tensor.b, plan.floor, k.status, values, k.R)
    frames.scales(
        plan.isotropic,
        plan.static_scale,
        plan.tau,
        values,
        k.R,
        k.moments.angles,
        k.mu,
        k.mu_tensor,
        k.D,
        k.D_scale,
    )
    if len(data.mu):
        frames.column_signs(k.R, data.R, i0, k.sign)
    else:
        k.sign.fill(1.0)
    if len(data.field):
        k.turn, k.stretched = 2, np.empty_like(k.mu)
        frames.apply_field(
            data.field, i0, plan.isotropic, k.R, k.D, k.D_scale, k.moments, k.mu, k.stretched
        )
    tensor.signal_at_origin(plan.tensor, k.y, k.w, k.D_scale, k.row(S0))
    k.status[~(k.lane[S0] > 0.0)] |= NO_SIGNAL
    moments.normal_equations(
        plan.moments,
        plan.scheme,
        plan.order,
        k.y,
        k.w,
        k.plain,
        k.D,
        k.stretched,
        k.turn,
        k.moments,
        k.G,
        k.rhs,
    )
    weight = k.row(WEIGHT)
    if plan.weights.size == 1:
        weight.fill(plan.weights[0])
    else:
        yy = k.row(YY)
        sum_squares(k.y, k.w, yy)
        gcv.choose(
            k.G, k.rhs, k.mu, yy, k.row(VALID), plan.gcv, plan.weights, k.gcv, weight, k.bound
        )
        k.status[k.bound != 0] |= WEIGHT_AT_BOUND
    laplacian.factors(k.mu, k.factors)
    laplacian.add(plan.lap, k.factors, weight, k.G)
    k.lane[KKT], k.lane[ITERATIONS], k.lane[MARGIN] = 0.0, 0.0, math.nan


def finish(plan: Plan, data: Data, i0: int, stop: int, k: Block, out: Out) -> None:
    """Residuals, public coefficients and all rows of one block."""
    moments.fitted_signal(
        plan.moments, plan.scheme, plan.order, k.x, k.stretched, k.turn, k.moments, k.moments.gy
    )
    residuals(k.y, k.w, k.moments.gy, k.lane)
    block_map(plan.public, k.x, k.public)
    t = plan.moments
    write(
        t.origin, t.index, t.permutation, len(data.mu) > 0 and not plan.isotropic, k.x, k.public, k.mu, k.mu_tensor,
        k.R, k.sign, k.lane, k.status, i0, stop, out,
    )  # fmt: skip


def run(
    plan: Plan,
    data: Data,
    V: int,
    out: Out,
    solve: Callable[[Plan, Block, int], None],
    start: int,
    stop: int,
) -> None:
    """
    Fit rows start to stop in blocks of V; solve(plan, block, count) turns a block's normal
    equations into k.x.
    """
    k = Block(plan, V)
    for i0 in range(start, stop, V):
        prepare(plan, data, i0, k)
        solve(plan, k, min(V, stop - i0))
        finish(plan, data, i0, stop, k, out)


def solve_linear(plan: Plan, k: Block, count: int) -> None:
    """Coefficients of MAP and MAPL, without constraints."""
    cholesky_solve(plan.moments.origin, k.rhs, k.G, k.pivot, k.x, k.lane, k.status)


@kernel()
def unpack(
    place: NDArray[np.uint64], G: Array, rhs: Array, S0: float, lane: int, H: Array, g: Array
) -> None:
    """Normal equations H (n, n), g (n,) of one voxel in DIPY's order, for data divided by S0."""
    for i in range(g.size):
        g[place[i]] = rhs[i, lane] / S0
        for j in range(i + 1):
            value = G[i * (i + 1) // 2 + j, lane]
            H[place[i], place[j]] = value
            H[place[j], place[i]] = value


@kernel()
def pack(place: NDArray[np.uint64], c: Array, lane: int, x: Array) -> None:
    """Coefficients of one voxel from DIPY's order into a lane of x (n, V)."""
    for i in range(c.size):
        x[i, lane] = c[place[i]]


@kernel()
def grid_lanes(
    place: NDArray[np.uint64], G: Array, rhs: Array, B: Array, grid: qp.GridRows, max_iter: int, count: int, x: Array,
    lane: Array, status: IntArray, failed: IntArray,
) -> None:  # fmt: skip
    """
    Solve the grid QP of every lane by the active set; failed (V,): 1 where its own KKT check says
    no.
    """
    n = B.size
    H, g, c, info = np.empty((n, n)), np.empty(n), np.empty(n), np.empty(3)
    work = qp.workspace(n, grid.values.shape[1])
    for l in range(count):
        failed[l] = 0
        if status[l] & NO_FIT:
            continue
        unpack(place, G, rhs, lane[S0, l], l, H, g)
        failed[l] = 1 if qp.solve(H, g, B, grid, max_iter, work, c, info) != qp.SOLVED else 0
        lane[KKT, l] = info[0]
        lane[ITERATIONS, l] = info[1]
        pack(place, c, l, x)


@kernel()
def global_lanes(
    place: NDArray[np.uint64], G: Array, rhs: Array, B: Array, t: sdp.Tables, max_iter: int, tol: float, count: int,
    x: Array, lane: Array, status: IntArray,
) -> None:  # fmt: skip
    """
    Solve the sum-of-squares problem of every lane by the interior point; its certificate's margin
    into lane.
    """
    n = B.size
    H, g, c, info = np.empty((n, n)), np.empty(n), np.empty(n), np.empty(4)
    work = sdp.workspace(n, t.Z.shape[1])
    for l in range(count):
        if status[l] & NO_FIT:
            continue
        unpack(place, G, rhs, lane[S0, l], l, H, g)
        status[l] |= sos_flags(sdp.solve(H, g, B, t, max_iter, tol, work, c, info))
        lane[KKT, l] = info[0]
        lane[ITERATIONS, l] = info[1]
        lane[MARGIN, l] = info[2]
        pack(place, c, l, x)


@kernel()
def sos_flags(answer: int) -> int:
    """Status bits of an answer of `sdp`."""
    if answer == sdp.SHIFTED:
        return SHIFTED
    if answer == sdp.CERTIFIED:
        return 0
    return NOT_CONVERGED


@kernel()
def indices(
    coef: Array, mu: Array, t: scalars.IndexTables, out: Array, start: int, stop: int
) -> None:
    """
    The nine indices of rows start to stop into out (V, 9); Hermite coefficients in the tensor's
    frame.
    """
    a, m, values = (
        np.empty((coef.shape[1], WIDTH)),
        np.empty((3, WIDTH)),
        np.empty((out.shape[1], WIDTH)),
    )
    for i0 in range(start, stop, WIDTH):
        block_gather(coef, i0, stop, a)
        block_gather(mu, i0, stop, m)
        scalars.nine_indices(rows(a, 0), rows(m, 0), t, rows(values, 0))
        for l in range(min(WIDTH, stop - i0)):
            for i in range(out.shape[1]):
                out[i0 + l, i] = values[i, l]
