"""The noise of magnitude images: Rician for one coil, noncentral chi for the root of the sum of
squares over several.

A magnitude m of the signal A has the density m^L A^(1-L) / sigma^2 exp(-(m^2 + A^2) / 2 sigma^2)
I_(L-1)(m A / sigma^2), L coils, the root of A^2 + 2 L sigma^2 as its root mean square.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import chebyshev

from . import lanes, moments, rotation, tensor
from ._jit import CONTRACT, kernel, plain, stage
from ._types import Array, IntArray
from .lanes import WIDTH, every, pick, rows, sqrt
from .linalg import block_cholesky, block_copy, block_invert, block_map, block_set
from .status import NO_FIT, STRAINED, UNSETTLED

RICIAN, DENOISED = 1, 2  # `origin.Rules.noise`
STEPS = 40  # of the correction at most; 4 to 8 are usual
STEP_OF_SCALES = 1  # after this one the tensor and the Laplacian weight are fitted again, once
SETTLED = 0.01  # root mean square change of the signal in a step, in sigma

MOST_COILS = 32  # `bessel_ratio` keeps its accuracy and its range up to here
TERMS = 26  # of the asymptotic series of a Bessel function
DEGREE, MIDDLE = 14, 1.5  # of the polynomials of `curves`
NEWTON = 60  # steps at most; 3 to 6 are usual


class Work(NamedTuple):
    """State and scratch of the correction for one block."""

    settled: IntArray  # (V,) 1: the correction has ended
    flags: IntArray  # (V,) the status of such a voxel, which others' steps do not change,
    held: Array  # (1, V) and its S0
    step: IntArray  # (1,)
    moving: IntArray  # (1,) voxels that are not settled
    square: Array  # (1, V) sigma^2
    next: Array  # (1, V) sigma^2 of the next step
    trace: Array  # (1, V) tr S, the parameters that the fit spends
    change: Array  # (1, V) squares of the changes of the fitted signal
    frozen: Array  # (1, V) `settled` as a float
    raw: Array  # (samples, V) as measured
    last: Array  # (samples, V) fitted signal of the step before, not negative
    factor: Array  # ((n + 1)(n + 2)/2, V)


def workspace(samples: int, n: int, V: int, rules: Any) -> Work:
    """For a block of V voxels with n coefficients, fitted by the `origin.Rules` of a model."""
    used = samples * (rules.noise == RICIAN)
    counted = (n + 1) * (n + 2) // 2 * (rules.noise == RICIAN or rules.rescale)
    sizes = (used, used, counted)
    return Work(
        np.zeros(V, np.int64), np.zeros(V, np.int64), lanes.empty(1, V),
        np.zeros(1, np.int64), np.zeros(1, np.int64),
        *(lanes.empty(size, V) for size in (1, 1, 1, 1, 1, *sizes)),
    )  # fmt: skip


def bessel_ratio(x: Any, coils: int) -> Any:
    """I_L(x) / I_(L-1)(x) of x >= 0, L coils, to 3e-13.

    Below 16 + L^2 / 4 the recurrence r_n = x / (2 n + x r_(n+1)) downwards from Amos' bound
    [Math. Comp. 28:239, 1974]; above, both functions by their asymptotic series.
    """
    turn = 16.0 + 0.25 * coils * coils
    start, low = coils + 22 + int(turn) // 6, np.minimum(x, turn)
    ratio = low / (start + 0.5 + low)
    for n in range(start - 1, coils - 1, -1):
        ratio = low / (2.0 * n + low * ratio)
    z, k = 0.125 / np.maximum(x, turn), np.arange(1.0, TERMS + 1)
    first, second = (
        1.0 + np.cumprod(np.multiply.outer(z, ((2 * k - 1) ** 2 - 4.0 * m * m) / k), -1).sum(-1)
        for m in (coils, coils - 1)
    )
    return np.where(x > turn, first / second, ratio)


@kernel()
def _relative_mean(x: float, coils: int) -> tuple[float, float]:
    """Expected magnitude over sigma, and its derivative by x = A^2 / 2 sigma^2: the root of pi / 2
    times (2L-1)!! / (2^(L-1) (L-1)!) times 1F1(-1/2; L; -x) [Koay & Basser 2006, Eq. 6].
    """
    if x > min(
        40.0 + coils * coils, 600.0
    ):  # 1F1 by its asymptotic series; exp(x) overflows at 709
        total = term = 1.0
        slope = 0.5
        for k in range(1, 30):
            factor = (k - 1.5) * (k - 0.5 - coils) / (k * x)
            if abs(factor) >= 1.0:
                break
            term *= factor
            total += term
            slope += (0.5 - k) * term
            if abs(term) < 1e-17:
                break
        root = math.sqrt(2.0 * x)
        return root * total, root / x * slope
    zero = math.sqrt(0.5 * math.pi)
    for k in range(1, coils):
        zero *= (2.0 * k + 1.0) / (2.0 * k)
    total = value = 1.0  # Kummer: exp(-x) 1F1(L + 1/2; L; x), all terms positive
    slope = change = 1.0
    k = 0.0
    while value > 1e-17 * total or k < x:
        value *= (coils + 0.5 + k) / (coils + k) * x / (k + 1.0)
        change *= (coils + 0.5 + k) / (coils + 1.0 + k) * x / (k + 1.0)
        total += value
        slope += change
        k += 1.0
    decay = zero * math.exp(-x)
    return decay * total, decay * slope / (2.0 * coils)


@kernel()
def expected_magnitude(signal: float, sigma: float, coils: int) -> float:
    """Mean magnitude of a signal >= 0 (below 0: that of 0); the signal itself where sigma is 0."""
    if not sigma > 0.0:
        return signal
    ratio = max(signal, 0.0) / sigma
    if ratio > 1e7:
        return signal
    return sigma * _relative_mean(0.5 * ratio * ratio, coils)[0]


@kernel()
def signal_of(magnitude: float, sigma: float, coils: int) -> float:
    """The signal whose expected magnitude this is; 0 below the noise floor.

    Newton's steps in x = A^2 / 2 sigma^2, in which the mean is concave: from below they stay below.
    """
    ratio = magnitude / sigma
    if not ratio > _relative_mean(0.0, coils)[0]:
        return 0.0 if magnitude == magnitude else magnitude
    if ratio > 1e7:
        return magnitude
    x = max(0.0, 0.5 * ratio * ratio - coils)  # the mean is below the root mean square
    for _ in range(NEWTON):
        value, slope = _relative_mean(x, coils)
        step = (ratio - value) / slope
        x = max(0.0, x + step)
        if abs(step) <= 1e-14 * x:
            break
    return sigma * math.sqrt(2.0 * x)


@kernel()
def expected_rows(
    signal: Array, sigma: Array, coils: int, out: Array, start: int, stop: int
) -> None:
    """Expected magnitudes of rows start to stop of signals (V, n), sigma (V,), into out (V, n)."""
    for v in range(start, stop):
        for k in range(signal.shape[1]):
            out[v, k] = expected_magnitude(signal[v, k], sigma[v], coils)


@lru_cache
def curves(coils: int) -> Array:
    """Coefficients p (2, DEGREE + 1) of `ratio` and `mean`: Chebyshev interpolation of what they
    multiply by powers of 1 - u^2 and 1 - u, u = (x - C) / (x + C), C = MIDDLE (L + 1).
    """
    C, amos = MIDDLE * (coils + 1.0), plain(_amos)
    mean = plain(_relative_mean)

    def of_ratio(u: Array) -> Array:
        x = C * (1.0 + u) / (1.0 - u)
        return (bessel_ratio(x, coils) / amos(x, coils) - 1.0) / (1.0 - u * u) ** 2

    def of_mean(u: Array) -> Array:
        x = C * (1.0 + u) / (1.0 - u)
        exact = np.array([mean(float(0.5 * a * a), coils)[0] for a in x])
        return (exact / np.sqrt(x * x + 2.0 * coils - 1.0) - 1.0) / (1.0 - u) ** 2

    fits = (chebyshev.chebinterpolate(f, DEGREE) for f in (of_ratio, of_mean))
    return np.stack([chebyshev.cheb2poly(fit) for fit in fits])


@kernel(fastmath=CONTRACT)
def _amos(x: Any, coils: int) -> Any:
    """A bound of `bessel_ratio`, right to first order at 0 and at infinity [Amos 1974]."""
    return x / (coils - 0.5 + sqrt((coils + 0.5) * (coils + 0.5) + x * x))


@kernel(fastmath=CONTRACT)
def _polynomial(p: Array, row: int, u: Any) -> Any:
    """Row `row` of p at u."""
    total = u * 0.0 + p[row, p.shape[1] - 1]
    for k in range(p.shape[1] - 2, -1, -1):
        total = total * u + p[row, k]
    return total


@kernel(fastmath=CONTRACT)
def ratio(p: Array, x: Any, coils: int) -> Any:
    """`bessel_ratio` to 1e-6 of lanes or a float, p from `curves`."""
    C, x = MIDDLE * (coils + 1.0), pick(x, 1e15, 1e15, x)
    u = (x - C) / (x + C)
    w = 1.0 - u * u
    return _amos(x, coils) * (1.0 + w * w * _polynomial(p, 0, u))


@kernel(fastmath=CONTRACT)
def mean(p: Array, x: Any, coils: int) -> Any:
    """Expected magnitude over sigma at x = A / sigma, to 3e-5, of lanes or a float."""
    C = MIDDLE * (coils + 1.0)
    u = (x - C) / (x + C)
    w = 1.0 - u
    return sqrt(x * x + (2.0 * coils - 1.0)) * (1.0 + w * w * _polynomial(p, 1, u))


# ---- stages of the pass: a magnitude y is replaced by its expected part along the signal


@stage()
def invert(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """Denoised magnitudes to signals; samples below zero stay as they are."""
    for l in range(block.status.size):
        sigma = data.sigma[min(i0 + l, data.sigma.size - 1)]
        block.sigma[0, l] = sigma
        for k in range(block.y.shape[0]):
            if block.w[k, l] > 0.0 and block.y[k, l] > 0.0:
                block.y[k, l] = signal_of(block.y[k, l], sigma, plan.rules.coils)
                if block.y[k, l] == 0.0:
                    block.ordinary[0] = 0


@stage()
def keep(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """The samples as they were measured, and sigma where it is given."""
    block.noise.step[0] = 0
    block_set(block.noise.frozen, 0.0)
    block_copy(block.y, block.noise.raw, block.y.shape[0])
    block_set(block.noise.last, 0.0)
    for l in range(block.status.size):
        block.noise.trace[0, l] = 0.0
        if data.sigma.size > 0:
            sigma = data.sigma[min(i0 + l, data.sigma.size - 1)]
            block.noise.square[0, l] = sigma * sigma


@stage(CONTRACT)
def count_parameters(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """tr S = n - weight tr(G^-1 L) - k B'G^-1 B, the parameters that a linear fit spends, G = M'M +
    weight L + k B B'; only where sigma or the scale must be estimated.
    """
    if data.sigma.size > 0 and not plan.rules.rescale:
        return
    t, origin = plan.lap, plan.moments.origin
    n = origin.size
    for l in range(0, block.status.size, WIDTH):
        G, a = rows(block.G, l), rows(block.noise.factor, l)
        for k in range(n * (n + 1) // 2):
            a[k] = G[k]
        for k in range(n * (n + 1) // 2, block.noise.factor.shape[0]):
            a[k] = every(0.0)
    block_cholesky(block.noise.factor, n, block.pivot)
    block_invert(block.noise.factor, n)
    for l in range(0, block.status.size, WIDTH):
        a, f = rows(block.noise.factor, l), rows(block.factors, l)
        weight = rows(block.laplacian_weight, l)[0]
        spent = every(0.0)
        for i in range(n):
            along = every(0.0)
            for j in range(i + 1):
                along += a[i * (i + 1) // 2 + j] * origin[j]
            spent += rows(block.row, l)[0] * along * along
        for e in range(t.target.size):
            value, product = every(0.0), every(0.0)
            for k in range(t.pointer[e], t.pointer[e + 1]):
                value += t.coefficient[k] * f[t.factor[k]]
            i, j = t.row[t.pointer[e]], t.column[t.pointer[e]]
            for k in range(i, n):
                r = k * (k + 1) // 2
                product += a[r + i] * a[r + j]
            spent += (1.0 if i == j else 2.0) * weight * value * product
        rows(block.noise.trace, l)[0] = n - spent


@stage(CONTRACT)
def signals(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """The fitted E of every sample into moments.gy."""
    work = block.moments
    if not plan.isotropic or data.field.shape[0] > 0:
        rotation.rotate_back(plan.moments.shears_low, work.angles, work.low)
    moments.signal(plan.scheme, work, work.gy)


@kernel(fastmath=CONTRACT)
def _new_square(p: Array, block: Any, coils: int) -> None:
    """sigma^2 of the fitted signal: at first from the residual, then one Newton step of its
    likelihood, sum of y^2 - 2 y A r + A^2 over 2 L n - tr S = sigma^2.

    Along the signal n - tr S squares are left, across it (2 L - 1) n: at high signal this is the
    residual over n - tr S.
    """
    for l in range(0, block.status.size, WIDTH):
        raw, e = rows(block.noise.raw, l), rows(block.moments.gy, l)
        w = rows(block.w, l)
        before = rows(block.noise.square, l)[0]
        S0, count = rows(block.S0, l)[0], every(0.0)
        total, slope = every(0.0), every(0.0)
        residual = every(0.0)
        for k in range(block.noise.raw.shape[0]):
            y, used = raw[k], pick(raw[k], 0.0, w[k], 0.0)
            A = pick(S0 * e[k], 0.0, S0 * e[k], 0.0)
            x = used * y * A / before
            r = ratio(p, x, coils)
            turn = pick(
                x, 1e-6, 1.0 - r * (r + (2.0 * coils - 1.0) / pick(x, 1e-6, x, 1e-6)), 0.5 / coils
            )
            count += pick(used, 0.0, 1.0, 0.0)
            residual += used * (y - A) * (y - A)
            total += used * ((y - A) * (y - A) + 2.0 * y * A * (1.0 - r))
            slope += pick(x, 100.0 * coils, 2.0 * coils - 1.0, 2.0 * x * x * turn)
        free = 2.0 * coils * count - rows(block.noise.trace, l)[0]
        new = before + (total / free - before) / (1.0 - slope / free)
        new = pick(new, 4.0 * before, 4.0 * before, pick(0.25 * before, new, 0.25 * before, new))
        first = pick(
            count, rows(block.noise.trace, l)[0] + 1.0, count - rows(block.noise.trace, l)[0], 1.0
        )
        new = residual / first if block.noise.step[0] == 0 else new
        least = 1e-24 * S0 * S0
        rows(block.noise.next, l)[0] = pick(new, least, new, least)


@stage()
def correct(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """One step of the expectation: y <- y I_L(x) / I_(L-1)(x), x = y A / sigma^2, A the fitted
    signal (0 where it is negative), where the voxel is not settled; sigma from the fit where none
    is given.

    block.noise.moving[0] counts the voxels that need another fit.
    """
    p, coils = plan.rules.curves, plan.rules.coils
    V, work = block.status.size, block.noise
    if data.sigma.size == 0:
        _new_square(p, block, coils)
    for l in range(0, V, WIDTH):
        w, e = rows(block.w, l), rows(block.moments.gy, l)
        last = rows(work.last, l)
        S0, squares = rows(block.S0, l)[0], every(0.0)
        for k in range(work.raw.shape[0]):
            A = pick(S0 * e[k], 0.0, S0 * e[k], 0.0)
            step = A - last[k]
            squares += pick(w[k], 0.0, step * step, 0.0)
            last[k] = A
        rows(work.change, l)[0] = squares
    step, work.moving[0] = work.step[0], 0
    for l in range(V):
        if work.settled[l] != 0:
            block.status[l], block.S0[0, l] = work.flags[l], work.held[0, l]
            continue
        square, drift = work.square[0, l], 0.0
        if data.sigma.size == 0:
            drift = abs(work.next[0, l] - square) if step > 0 else math.inf
        limit = SETTLED * SETTLED * square + 1e-20 * block.S0[0, l] * block.S0[0, l]
        still = work.change[0, l] <= limit * block.valid[0, l] and drift <= SETTLED * square
        if step == STEPS and not still:
            block.status[l] |= UNSETTLED
        work.flags[l], work.held[0, l] = block.status[l], block.S0[0, l]
        if (
            i0 + l >= stop
            or block.status[l] & (NO_FIT | STRAINED) != 0
            or (still and step > STEP_OF_SCALES)
            or step == STEPS
        ):
            work.settled[l] = 1
            continue
        work.moving[0] += 1
        if data.sigma.size == 0:
            work.square[0, l] = work.next[0, l]
    work.step[0] += 1
    if work.moving[0] > 0:
        _expectation(p, block, coils)


@kernel(fastmath=CONTRACT)
def _expectation(p: Array, block: Any, coils: int) -> None:
    """The corrected samples of the voxels that are not settled."""
    work = block.noise
    for l in range(0, block.status.size, WIDTH):
        y, raw = rows(block.y, l), rows(work.raw, l)
        A, w = rows(work.last, l), rows(block.w, l)
        square, settled = rows(work.square, l)[0], rows(work.frozen, l)
        lowest = every(math.inf)
        for v in range(l, l + WIDTH):
            work.frozen[0, v] = float(work.settled[v])
        for k in range(work.raw.shape[0]):
            x = pick(raw[k], 0.0, w[k] * raw[k] * A[k] / square, 0.0)
            new = pick(raw[k], 0.0, raw[k] * ratio(p, x, coils), raw[k])
            y[k] = pick(settled[0], 0.5, y[k], new)
            lowest = pick(lowest, y[k], y[k], lowest)
        rows(work.next, l)[0] = lowest
    for l in range(block.status.size):
        if not work.next[0, l] > 0.0:
            block.ordinary[0] = 0


@stage(CONTRACT)
def right_side(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """rhs of corrected samples. The scales, the Laplacian weight and G stay, MAPL's as a factor."""
    work, t = block.moments, plan.moments
    tensor.signal_at_origin(plan.tensor, block.y, block.w, block.D_scale, block.S0)
    moments.low_moments(plan.scheme, block.y, block.w, work)
    if not plan.isotropic or data.field.shape[0] > 0:
        rotation.rotate(t.shears_low, work.angles, work.low)
    if data.field.shape[0] > 0:
        rotation.skew_moments(t.shears_low, work.skew, work.low)
    moments.scale_low(t, 2 * plan.order, work)
    block_map(t.right, work.low, block.rhs)
    for l in range(0, block.w.shape[1], WIDTH):
        rhs, right = rows(block.rhs, l), rows(block.row, l)[0] * rows(block.S0, l)[0]
        for i in range(t.origin.size):
            rhs[i] += right * t.origin[i]


@stage(CONTRACT)
def expected_signals(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """For residuals: samples as measured, and expected magnitudes over S0 in moments.gy."""
    p, coils = plan.rules.curves, plan.rules.coils
    for l in range(0, block.status.size, WIDTH):
        y, raw = rows(block.y, l), rows(block.noise.raw, l)
        w = rows(block.w, l)
        S0, e = rows(block.S0, l)[0], rows(block.moments.gy, l)
        sigma = rows(block.sigma, l)
        sigma[0] = sqrt(rows(block.noise.square, l)[0])
        for k in range(block.noise.raw.shape[0]):
            A = pick(S0 * e[k], 0.0, S0 * e[k], 0.0)
            expected = mean(p, A / sigma[0], coils) * sigma[0] / S0
            e[k] = pick(pick(raw[k], 0.0, w[k], 0.0), 0.0, expected, e[k])
            y[k] = raw[k]
