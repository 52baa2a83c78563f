"""
The noise of magnitude images: Rician for one coil, noncentral chi for the root of the sum of squares
over several.

A magnitude m of the signal A has the density m^L A^(1-L) / sigma^2 exp(-(m^2 + A^2) / 2 sigma^2)
I_(L-1)(m A / sigma^2), L coils, the root of A^2 + 2 L sigma^2 as its root mean square.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import CONTRACT, kernel
from .lanes import pick

Array = NDArray[np.float64]

MOST_COILS = 32  # `bessel_ratio` keeps its accuracy and its range up to here
TERMS = 26  # of the asymptotic series of a Bessel function
NEWTON = 60  # steps at most; 3 to 6 are usual


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
        s *= (odd - 4.0 * coils * coils) * z / k
        t *= (odd - 4.0 * (coils - 1) * (coils - 1)) * z / k
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
