"""
The noise of magnitude images: Rician for one coil, noncentral chi for the root of the sum of squares
over several.

A magnitude m of the signal A has the density m^L A^(1-L) / sigma^2 exp(-(m^2 + A^2) / 2 sigma^2)
I_(L-1)(m A / sigma^2), L coils, the root of A^2 + 2 L sigma^2 as its root mean square.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import lanes, moments, rotation
from ._jit import CONTRACT, kernel, plain, stage
from ._types import Array, IntArray
from .lanes import WIDTH, every, pick, rows
from .linalg import block_cholesky, block_copy, block_invert, block_set
from .status import NO_FIT, STRAINED, UNSETTLED

RICIAN, DENOISED = 1, 2  # `origin.Rules.noise`
STEPS = 40  # of the correction at most; 3 to 7 are usual
STEPS_OF_SCALES = 4  # in which the tensor is fitted again
SETTLED = 0.01  # root mean square change of the signal in a step, in sigma

MOST_COILS = 32  # `bessel_ratio` keeps its accuracy and its range up to here
TERMS = 26  # of the asymptotic series of a Bessel function
NEWTON = 60  # steps at most; 3 to 6 are usual


class Work(NamedTuple):
    """State and scratch of the correction for one block."""

    settled: IntArray  # (V,) 1: the correction has ended
    step: IntArray  # (1,)
    moving: IntArray  # (1,) voxels that are not settled
    square: Array  # (1, V) sigma^2
    next: Array  # (1, V) sigma^2 of the next step
    trace: Array  # (1, V) tr S, the parameters that the fit spends
    held: Array  # (1, V) S0 of the last fit
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
        np.zeros(V, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64),
        *(lanes.empty(size, V) for size in (1, 1, 1, 1, 1, 1, *sizes)),
    )  # fmt: skip


@kernel(fastmath=CONTRACT)
def bessel_ratio(x: Any, coils: int) -> Any:
    """
    I_L(x) / I_(L-1)(x) of lanes or a float x >= 0, L coils, to 3e-13.

    Below 16 + L^2 / 4 the recurrence r_n = x / (2 n + x r_(n+1)) downwards from Amos' bound
    [Math. Comp. 28:239, 1974], as a fraction a / b; above, both functions by their asymptotic
    series.
    """
    turn = 16.0 + 0.25 * coils * coils
    start = coils + 22 + int(turn) // 6
    low = pick(x, turn, turn, x)
    a, b = low, start + 0.5 + low
    for n in range(start - 1, coils - 1, -1):
        a, b = low * b, 2.0 * n * b + low * a
    z = 0.125 / pick(x, turn, x, turn)
    first = second = s = t = z * 0.0 + 1.0
    for k in range(1, TERMS + 1):
        odd = (2.0 * k - 1.0) * (2.0 * k - 1.0)
        s *= z * ((odd - 4.0 * coils * coils) / k)
        t *= z * ((odd - 4.0 * (coils - 1) * (coils - 1)) / k)
        first += s
        second += t
    return pick(x, turn, first / second, a / b)


@kernel()
def _relative_mean(x: float, coils: int) -> tuple[float, float]:
    """
    Expected magnitude over sigma, and its derivative by x = A^2 / 2 sigma^2: the root of pi / 2
    times (2L-1)!! / (2^(L-1) (L-1)!) times 1F1(-1/2; L; -x) [Koay & Basser 2006, Eq. 6].
    """
    if x > 40.0 + coils * coils:  # 1F1 by its asymptotic series
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
    total = value = slope = change = 1.0  # Kummer: exp(-x) 1F1(L + 1/2; L; x), all terms positive
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
    """
    The signal whose expected magnitude this is; 0 below the noise floor.

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
def mean_table(coils: int) -> Array:
    """Expected magnitude over sigma, and its derivative, at A / sigma = 0, 1/16, ..: (2, m)."""
    mean, ratios = plain(_relative_mean), np.arange(16.0 * 64.0 * math.sqrt(coils)) / 16.0
    value, slope = np.array([mean(float(0.5 * u * u), coils) for u in ratios]).T
    return np.stack([value, slope * ratios])


@kernel(inline=True)
def _from_table(table: Array, ratio: float, coils: int) -> float:
    """Expected magnitude over sigma to 1e-5, from `mean_table` by cubic pieces."""
    place = 16.0 * ratio
    if not place < table.shape[1] - 1:  # next term: (L sigma^2 / A^2)^2
        return ratio + (coils - 0.5) / ratio
    k = int(place)
    t = place - k
    a, b = table[0, k], table[0, k + 1]
    first, second = table[1, k] / 16.0 - (b - a), (b - a) - table[1, k + 1] / 16.0
    return a + t * (b - a) + t * (1.0 - t) * (first * (1.0 - t) + second * t)


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
    block_copy(block.y, block.noise.raw, block.y.shape[0])
    block_set(block.noise.last, 0.0)
    for l in range(block.status.size):
        block.noise.trace[0, l] = 0.0
        if data.sigma.size > 0:
            sigma = data.sigma[min(i0 + l, data.sigma.size - 1)]
            block.noise.square[0, l] = sigma * sigma


@stage(CONTRACT)
def count_parameters(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """
    tr S = n - weight tr(G^-1 L) - k B'G^-1 B, the parameters that a linear fit spends, G = M'M +
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
        a, f, weight = (
            rows(block.noise.factor, l),
            rows(block.factors, l),
            rows(block.laplacian_weight, l)[0],
        )
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


@kernel(fastmath=CONTRACT, inline=True)
def _new_square(block: Any, coils: int) -> None:
    """
    sigma^2 of the fitted signal: at first from the residual, then one Newton step of its likelihood,
    sum of y^2 - 2 y A r + A^2 over 2 L n - tr S = sigma^2.

    Along the signal n - tr S squares are left, across it (2 L - 1) n: at high signal this is the
    residual over n - tr S.
    """
    for l in range(0, block.status.size, WIDTH):
        raw, e, w = rows(block.noise.raw, l), rows(block.moments.gy, l), rows(block.w, l)
        before = rows(block.noise.square, l)[0]
        S0, count, total, slope = rows(block.S0, l)[0], every(0.0), every(0.0), every(0.0)
        residual = every(0.0)
        for k in range(block.noise.raw.shape[0]):
            y, used = raw[k], pick(raw[k], 0.0, w[k], 0.0)
            A = pick(S0 * e[k], 0.0, S0 * e[k], 0.0)
            x = used * y * A / before
            r = bessel_ratio(x, coils)
            turn = pick(
                x, 1e-6, 1.0 - r * (r + (2.0 * coils - 1.0) / pick(x, 1e-6, x, 1e-6)), 0.5 / coils
            )
            count += pick(used, 0.0, 1.0, 0.0)
            residual += used * (y - A) * (y - A)
            total += used * ((y - A) * (y - A) + 2.0 * y * A * (1.0 - r))
            slope += pick(x, 1e4, 2.0 * coils - 1.0, 2.0 * x * x * turn)
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
    """
    One step of the expectation: y <- y I_L(x) / I_(L-1)(x), x = y A / sigma^2, A the fitted signal
    (0 where it is negative), where the voxel is not settled; sigma from the fit where none is given.

    block.noise.moving[0] counts the voxels that need another fit.
    """
    coils, V, n = plan.rules.coils, block.status.size, block.noise.raw.shape[0]
    if data.sigma.size == 0:
        _new_square(block, coils)
    block.noise.moving[0] = 0
    change = block.noise.change
    for l in range(0, V, WIDTH):
        w, e, last = rows(block.w, l), rows(block.moments.gy, l), rows(block.noise.last, l)
        S0, squares = rows(block.S0, l)[0], every(0.0)
        for k in range(n):
            A = pick(S0 * e[k], 0.0, S0 * e[k], 0.0)
            step = A - last[k]
            squares += pick(w[k], 0.0, step * step, 0.0)
            last[k] = A
        rows(change, l)[0] = squares
    for l in range(V):
        block.noise.held[0, l] = block.S0[0, l]
        if block.noise.settled[l] != 0:
            continue
        square = block.noise.square[0, l]
        drift = 0.0
        if data.sigma.size == 0:
            drift = abs(block.noise.next[0, l] - square) if block.noise.step[0] > 0 else math.inf
        limit = SETTLED * SETTLED * square + 1e-20 * block.S0[0, l] * block.S0[0, l]
        still = change[0, l] <= limit * block.valid[0, l] and drift <= SETTLED * square
        if (
            i0 + l >= stop
            or block.status[l] & (NO_FIT | STRAINED) != 0
            or (still and block.noise.step[0] > 0)
        ):
            block.noise.settled[l] = 1
            continue
        block.noise.moving[0] += 1
        if data.sigma.size == 0:
            block.noise.square[0, l] = block.noise.next[0, l]
        if block.noise.step[0] == STEPS - 1:
            block.status[l] |= UNSETTLED
    block.noise.step[0] += 1
    if block.noise.moving[0] > 0:
        _expectation(block, coils)


@kernel(fastmath=CONTRACT)
def _expectation(block: Any, coils: int) -> None:
    """The corrected samples of the voxels that are not settled."""
    for l in range(0, block.status.size, WIDTH):
        y, raw, A, w = (
            rows(block.y, l),
            rows(block.noise.raw, l),
            rows(block.noise.last, l),
            rows(block.w, l),
        )
        square, settled = rows(block.noise.square, l)[0], rows(block.noise.frozen, l)
        lowest = every(math.inf)
        for v in range(l, l + WIDTH):
            block.noise.frozen[0, v] = float(block.noise.settled[v])
        for k in range(block.noise.raw.shape[0]):
            x = pick(raw[k], 0.0, w[k] * raw[k] * A[k] / square, 0.0)
            new = pick(raw[k], 0.0, raw[k] * bessel_ratio(x, coils), raw[k])
            y[k] = pick(settled[0], 0.5, y[k], new)
            lowest = pick(lowest, y[k], y[k], lowest)
        rows(block.noise.next, l)[0] = lowest
    for l in range(block.status.size):
        if not block.noise.next[0, l] > 0.0:
            block.ordinary[0] = 0


@stage()
def expected_signals(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """For the residuals: the samples as measured, and the expected magnitudes over S0 in moments.gy."""
    table = plan.rules.means
    for l in range(block.status.size):
        block.sigma[0, l] = math.sqrt(block.noise.square[0, l])
        S0 = block.S0[0, l]
        if block.status[l] & NO_FIT != 0:
            continue
        for k in range(block.noise.raw.shape[0]):
            block.y[k, l] = block.noise.raw[k, l]
            if block.w[k, l] > 0.0 and block.noise.raw[k, l] > 0.0:
                ratio = max(S0 * block.moments.gy[k, l], 0.0) / block.sigma[0, l]
                block.moments.gy[k, l] = (
                    _from_table(table, ratio, plan.rules.coils) * block.sigma[0, l] / S0
                )
