"""The stages of a fit: compiled functions that take a block of voxels from samples to results.

Each but the solver's has the arguments `(plan, data, block, out, i0, stop)`: it reads and writes
the arrays of `block`, (rows, V). Lane l of these is voxel i0 + l of `data`; a loop in steps of
WIDTH treats lanes l to l + WIDTH - 1 at once. `blocks` has the problem they solve and their order.
"""

import math

from . import frames, gcv, laplacian, moments, rotation, scalars, tensor
from . import origin as origin_rule
from ._jit import CONTRACT, kernel, stage
from ._types import Array
from .lanes import WIDTH, every, pick, rows, sqrt
from .linalg import block_backsolve, block_cholesky, block_forward, block_map, block_product
from .records import Block, Data, Out, Plan
from .status import (
    DROPPED,
    FLOOR,
    NO_FIT,
    NO_ORIGIN,
    NO_SIGNAL,
    NOT_DEFINITE,
    OUT_OF_RANGE,
    RTOP_NOT_POSITIVE,
    STRAINED,
    TOO_FEW,
    WEIGHT_AT_BOUND,
)

# ---- from samples to scales


@stage()
def _ones(weight: Array) -> bool:
    """Whether all weights of a voxel are 1."""
    odd = 0
    for k in range(weight.size):
        odd += weight[k] != 1.0
    return odd == 0


@kernel(fastmath=CONTRACT)
def _lowest(y: Array, out: Array) -> None:
    """The smallest sample of each voxel into out (1, V); 0 where one is not finite."""
    for l in range(0, y.shape[1], WIDTH):
        x, total = rows(y, l), every(0.0)
        low = x[0]
        for k in range(y.shape[0]):
            total += x[k]
            low = pick(low, x[k], x[k], low)
        rows(out, l)[0] = pick(math.inf, total, low, 0.0)


@stage()
def _transpose(values: Array, i0: int, y: Array) -> None:
    """Rows i0 on of values, or the last one, into y (n, V), whole cache lines at a time."""
    last = values.shape[0] - 1
    for l in range(0, y.shape[1], 8):
        v = min(i0 + l, last)
        for k in range(y.shape[0]):
            if v + 7 <= last:
                for j in range(8):
                    y[k, l + j] = values[v + j, k]
            else:
                for j in range(8):
                    y[k, l + j] = values[min(v + j, last), k]


@stage()
def read(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """Transpose the samples into y (n, V); one that is not finite, or of weight 0, or 0 with
    `zero_is_missing`, is missing (value 0, weight 0).

    Lanes past the end of the data repeat its last row. Begins the status.
    """
    y, w = block.y, block.w
    samples = plan.tensor.samples
    n = data.y.shape[1]
    _transpose(data.y, i0, y)
    _lowest(y, block.pivot)
    ones = _ones(data.weight[0])
    if block.ordinary[0] == 0:  # else the weights of the last block are all 1
        for k in range(n):
            for l in range(w.shape[1]):
                w[k, l] = 1.0
    block.ordinary[0] = 1
    for l in range(block.status.size):
        v = min(i0 + l, data.y.shape[0] - 1)
        values, weight = data.y[v], data.weight[min(v, data.weight.shape[0] - 1)]
        block.valid[0, l], block.status[l] = n, 0
        block.noise.settled[l] = 0
        block.sigma[0, l] = math.nan
        block.scale.factor[0, l] = 1.0
        if data.factor.size > 0:
            block.scale.factor[0, l] = data.factor[min(v, data.factor.size - 1)]
        if data.weight.shape[0] > 1:
            ones = _ones(weight)
        if n >= plan.needed and ones and block.pivot[0, l] > 0.0:  # most voxels
            continue
        block.ordinary[0] = 0
        valid, logs = 0, 0
        size, flags = 0.0, 0
        for k in range(n):
            value, factor = values[k], weight[k]
            zero = plan.zero_is_missing and value == 0.0
            if not math.isfinite(value) or factor == 0.0 or zero:
                value, factor = 0.0, 0.0
            y[k, l] = value
            w[k, l] = factor
            if factor > 0.0:
                valid += 1
                size += abs(value)
            if not (factor > 0.0 and value > 0.0):
                flags |= DROPPED
        for k in range(samples.size):
            if w[samples[k], l] > 0.0 and y[samples[k], l] > 0.0:
                logs += 1
        if size == 0.0:
            flags |= NO_SIGNAL
        elif logs < 7 or valid < plan.needed:
            flags |= TOO_FEW
        block.status[l] = flags
        block.valid[0, l] = valid


@stage(CONTRACT)
def fit_tensor(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """The scale tensor, as it is for the nominal table."""
    tensor.fit_tensor(plan.tensor, block.y, block.w, block.ordinary[0] == 1, block.tensor)


@stage()
def tensor_scales(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """Frames and scales of the tensor."""
    for l in range(block.status.size):
        block.status[l] &= ~FLOOR
    frames.fitted_frames(plan.floor, plan.share, block)
    frames.scales(plan, block)
    for l in range(block.status.size):
        for i in range(3):
            block.sign[i, l] = 1.0


@stage()
def given_scales(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """Frames and scales of the caller."""
    frames.given_frames(data.mu, data.R, plan.tau, i0, block.values, block.R)
    frames.scales(plan, block)
    frames.column_signs(block.R, data.R, i0, block.sign)


@stage(CONTRACT)
def mean_at_origin(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """S0_b."""
    tensor.signal_at_origin(plan.tensor, block.y, block.w, block.D_scale, block.S0)
    for l in range(block.status.size):
        if not block.S0[0, l] > 0.0:
            block.status[l] |= NO_SIGNAL


# ---- from scales to the normal equations


@stage(CONTRACT)
def fixed_moments(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """The moments in the frame of the b-vectors, and their rotation to the voxel's frame. The
    isotropic basis stays in the frame of the b-vectors: its Gaussian is the same in every frame.
    """
    work, t = block.moments, plan.moments
    moments.fixed_moments(plan.scheme, block.y, block.w, block.ordinary[0] == 1, block.D, work)
    if not plan.isotropic or data.field.shape[0] > 0:
        rotation.rotate(t.shears, work.angles, work.high)
        rotation.rotate(t.shears_low, work.angles, work.low)


@stage()
def skew(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """The shears that non-linear gradients add to the rotation."""
    work, t = block.moments, plan.moments
    rotation.skew_moments(t.shears, work.skew, work.high)
    rotation.skew_moments(t.shears_low, work.skew, work.low)


@stage(CONTRACT)
def hermite_moments(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """Hermite moments; voxels whose rotated moments have lost too much are marked STRAINED."""
    work, s = block.moments, plan.scheme
    degree = 2 * plan.order
    if not plan.isotropic or data.field.shape[0] > 0:
        moments.expected_rounding(s, work.gg, block.stretched, degree, work.high, work.strain)
        for l in range(block.status.size):
            if work.strain[0, l] > s.rounding:
                block.status[l] |= STRAINED
    moments.hermite_moments(plan.moments, s, degree, block.stretched, work)


@stage(CONTRACT)
def own_frame(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """The Hermite moments of the marked voxels again, from q in each voxel's own frame."""
    bent = data.field.shape[0] > 0
    for l in range(0, block.status.size, WIDTH):
        strained = 0
        for v in range(l, l + WIDTH):
            strained |= block.status[v] & STRAINED
            block.status[v] &= ~STRAINED
        if strained != 0:
            t, s = plan.moments, plan.scheme
            moments.own_frame(t, s, 2 * plan.order, bent, block.stretched, l, block.moments)


@stage(CONTRACT)
def equations(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """M'M into G and M'y into rhs; the Laplacian weight where it is fixed."""
    block_map(plan.moments.gram, block.moments.hermite, block.G)
    block_map(plan.moments.right, block.moments.low, block.rhs)
    if plan.laplacian_weights.size == 1:
        for l in range(block.status.size):
            block.laplacian_weight[0, l] = plan.laplacian_weights[0]


@kernel(fastmath=CONTRACT)
def sum_squares(y: Array, w: Array, out: Array) -> None:
    """y'Wy of every voxel into out (1, V)."""
    for l in range(0, y.shape[1], WIDTH):
        a, b = rows(y, l), rows(w, l)
        total = every(0.0)
        for k in range(y.shape[0]):
            total += b[k] * a[k] * a[k]
        rows(out, l)[0] = total


@stage()
def choose_weight(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """The Laplacian weight by generalised cross-validation."""
    sum_squares(block.y, block.w, block.yy)
    for l in range(block.status.size):
        block.pivot[0, l] = block.valid[0, l]
        if plan.rules.row > 0.0:
            block.yy[0, l] += block.row[0, l] * block.S0[0, l] ** 2
            block.pivot[0, l] += 1.0
    if plan.rules.deviation:
        origin_rule.deviation(block, plan.rules.rescale, 1.0)
    problem = gcv.Problem(block.G, block.rhs, block.mu, block.yy, block.pivot)
    weights, weight = plan.laplacian_weights, block.laplacian_weight
    gcv.choose(problem, plan.gcv, weights, block.gcv, weight, block.bound)
    if plan.rules.deviation and plan.laplacian_weights.size == 0:
        gcv.bound_below(block.yy, block.pivot, block.S0, block.gcv, weight, block.bound)
    if plan.rules.deviation:
        origin_rule.deviation(block, plan.rules.rescale, -1.0)
    for l in range(block.status.size):
        block.status[l] &= ~WEIGHT_AT_BOUND
        if block.bound[l] != 0:
            block.status[l] |= WEIGHT_AT_BOUND


@stage()
def regularise(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """G = M'M + weight L."""
    laplacian.factors(block.mu, block.factors)
    laplacian.add(plan.lap, block.factors, block.laplacian_weight, block.G)
    for l in range(block.status.size):
        if block.noise.settled[l] == 0:
            block.kkt[0, l], block.iterations[0, l] = 0.0, 0.0
            block.margin[0, l] = math.nan


# ---- from the normal equations to results


@stage()
def solve_linear(problem: tuple[()], plan: Plan, block: Block, count: int) -> None:
    """Coefficients of MAP and MAPL, without constraints, by Cholesky.

    The data are not divided by S0_b here, so that B'c is the fitted S0: it goes to `block.S0`, and
    c is divided by it. The other solvers divide rhs by S0_b, and multiply `block.S0` by the E(0)
    they find.
    """
    n = plan.moments.origin.size
    for l in range(0, block.G.shape[1], WIDTH):
        last, b = rows(block.G, l), rows(block.rhs, l)
        for i in range(n):
            last[n * (n + 1) // 2 + i] = b[i]
    block_cholesky(block.G, n, block.pivot)
    _backward(plan, block)
    for l in range(block.status.size):
        if not block.pivot[0, l] > n * 2.3e-16:
            block.status[l] |= NOT_DEFINITE


@stage()
def solve_again(problem: tuple[()], plan: Plan, block: Block, count: int) -> None:
    """`solve_linear` for another rhs, by the factor it left in G, of voxels not settled."""
    n = plan.moments.origin.size
    block_forward(block.G, n, block.rhs)
    _backward(plan, block)


@stage()
def _backward(plan: Plan, block: Block) -> None:
    """From the forward solution in row n of G to c and S0, of voxels that are not settled."""
    origin = plan.moments.origin
    n = origin.size
    if plan.rules.fixed:
        origin_rule.fix(origin, block.G, block.S0, block.public)
    block_backsolve(block.G, n, block.public)
    for l in range(0, block.G.shape[1], WIDTH):
        c, x = rows(block.public, l), rows(block.x, l)
        total = every(0.0)
        settled = rows(block.noise.frozen, l)[0]
        for i in range(n):
            total += origin[i] * c[i]
        total = pick(total, 0.0, total, math.nan)
        rows(block.S0, l)[0] = total
        for i in range(n):
            x[i] = pick(settled, 0.5, x[i], c[i] / total)
    for l in range(block.status.size):
        if not block.S0[0, l] > 0.0:
            block.status[l] |= NO_ORIGIN


@stage(CONTRACT)
def solve_by_map(problem: tuple[()], plan: Plan, block: Block, count: int) -> None:
    """`solve_linear` by the constant map of the plan. Voxels with missing samples are left
    STRAINED.
    """
    origin, out = plan.moments.origin, block.moments.low
    block_product(plan.linear.A, block.y, out)
    for l in range(0, block.y.shape[1], WIDTH):
        found, c = rows(out, l), rows(block.x, l)
        S0, total = rows(block.S0, l), every(0.0)
        for i in range(origin.size):
            c[i] = found[i] + plan.linear.a[i] * S0[0]
            total += origin[i] * c[i]
        total = pick(total, 0.0, total, math.nan)
        S0[0] = total
        for i in range(origin.size):
            c[i] /= total
    for l in range(block.status.size):
        block.kkt[0, l], block.iterations[0, l] = 0.0, 0.0
        block.margin[0, l] = math.nan
        block.laplacian_weight[0, l] = plan.laplacian_weights[0]
        if not block.S0[0, l] > 0.0:
            block.status[l] |= NO_ORIGIN
        if block.valid[0, l] < block.y.shape[0]:
            block.status[l] |= STRAINED


@stage(CONTRACT)
def signals_by_map(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """The fitted E of every sample into moments.gy."""
    block_product(plan.linear.basis, block.x, block.moments.gy)


@stage()
def synthesise(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """Coefficients to the polynomial of the fitted signal in the voxel's frame."""
    moments.polynomial(
        plan.moments, plan.scheme, plan.order, block.x, block.stretched, block.moments
    )


@stage(CONTRACT)
def residuals(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """RMSE in the data's units and R2 over the valid samples, b0 included; moments.gy holds E, and
    block.pivot takes its largest size.
    """
    for l in range(0, block.y.shape[1], WIDTH):
        a, weight = rows(block.y, l), rows(block.w, l)
        e = rows(block.moments.gy, l)
        S0, count = rows(block.S0, l)[0], rows(block.valid, l)[0]
        mean = square = every(0.0)
        variance = top = every(0.0)
        for k in range(block.y.shape[0]):
            mean += a[k]  # missing samples are 0
        count = pick(count, 1.0, count, 1.0)
        mean /= count
        for k in range(block.y.shape[0]):
            used = pick(weight[k], 0.0, 1.0, 0.0)
            error, distance = a[k] - S0 * e[k], a[k] - mean
            square += used * error * error
            variance += used * distance * distance
            size = used * pick(e[k], 0.0, e[k], -e[k])
            top = pick(size, top, size, top)
        rows(block.r2, l)[0] = pick(variance, 0.0, 1.0 - square / variance, math.nan)
        rows(block.rmse, l)[0] = sqrt(square / count)
        rows(block.pivot, l)[0] = top


@stage()
def write(plan: Plan, data: Data, block: Block, out: Out, i0: int, stop: int) -> None:
    """All rows of one block into `out`; NaN where the status means no fit. The flips of given
    frames are undone.
    """
    t, V = plan.moments, block.status.size
    n, signed = t.origin.size, data.mu.shape[0] > 0 and not plan.isotropic
    block_map(plan.public, block.x, block.public)
    rtop, size = block.values[0], block.values[1]  # free by now; rtop up to a factor > 0
    for l in range(V):
        rtop[l], size[l] = 0.0, 0.0
    for i in range(n):
        b = t.origin[i]
        if (t.index[i, 0] + t.index[i, 1] + t.index[i, 2]) % 4 == 2:
            b = -b
        for l in range(V):
            rtop[l] += b * block.x[i, l]
            size[l] += abs(block.x[i, l])
    for l in range(min(V, stop - i0)):
        if block.status[l] & NO_FIT == 0:
            if not math.isfinite(size[l]):
                block.status[l] |= NOT_DEFINITE
            elif not rtop[l] > 0.0:
                block.status[l] |= RTOP_NOT_POSITIVE
            if scalars.out_of_range(plan, block, l):
                block.status[l] |= OUT_OF_RANGE
        v = i0 + l
        out.status[v] = block.status[l]
        none = math.nan if block.status[l] & NO_FIT else 0.0  # added to everything
        for i in range(n):
            out.coef[v, i] = block.public[i, l] + none
        if signed:
            for i in range(n):
                out.coef[v, t.permutation[i]] *= frames.parity_sign(t.index[i], block.sign, l)
        for i in range(3):
            out.mu[v, i] = block.mu[i, l] + none
            out.mu_tensor[v, i] = block.mu_tensor[i, l] + none
            for j in range(3):
                out.R[v, i, j] = block.sign[j, l] * block.R[l, i, j] + none
        for r in range(block.scalars.shape[0]):
            out.scalars[v, r] = block.scalars[r, l] + none
