"""Kernels of the noise of magnitudes against SciPy."""

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose
from scipy.special import gamma, hyp1f1, ive

from mapmri_nb import MapmriModel
from mapmri_nb.kernels import noise
from mapmri_nb.kernels._jit import kernel
from mapmri_nb.kernels.lanes import WIDTH, rows

pytestmark = pytest.mark.nojit
COILS = (1, 2, 4, 8, 16, 32)


@kernel()
def in_lanes(p, x, coils, out):
    """`noise.ratio` and `noise.mean` of lanes, one below the other."""
    for l in range(0, x.shape[1], WIDTH):
        a, b = rows(x, l), rows(out, l)
        for k in range(x.shape[0]):
            b[k], b[x.shape[0] + k] = noise.ratio(p, a[k], coils), noise.mean(p, a[k], coils)


@pytest.mark.parametrize("coils", COILS)
def test_bessel_ratio(coils):
    """From 0 to 1e8: SciPy's, and what the pass takes for it, in lanes and of floats."""
    x = np.concatenate([[0.0], np.logspace(-6, 8, 799)])
    with np.errstate(invalid="ignore", divide="ignore"):
        want = ive(coils, x) / ive(coils - 1, x)
    small = x < 1e-4  # SciPy underflows: the series' first two terms
    want[small] = (x / (2 * coils) * (1 - x**2 / (4 * coils * (coils + 1))))[small]
    assert_allclose(noise.bessel_ratio(x, coils), want, rtol=1e-12, atol=1e-300)
    p, lanes = noise.curves(coils), np.tile(x[:, None], (1, WIDTH))
    out = np.empty((2 * len(x), WIDTH))
    in_lanes(p, lanes, coils, out)
    assert np.array_equal(out, np.tile(out[:, :1], (1, WIDTH)))
    assert_allclose(out[: len(x), 0], want, rtol=1e-6, atol=1e-300)
    mean = [noise.expected_magnitude(v, 1.0, coils) for v in x]
    assert_allclose(out[len(x) :, 0], mean, rtol=3e-5)
    floats = [noise.ratio(p, float(v), coils) for v in x[::10]]
    assert_allclose(floats, want[::10], rtol=1e-6, atol=1e-300)
    assert noise.ratio(p, np.inf, coils) == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("coils", COILS)
def test_expected_magnitude(coils):
    """Koay and Basser's formula by SciPy; its inverse leads back."""
    sigma, signal = 0.7, np.concatenate([[0.0], np.logspace(-3, 1.55, 60)])
    beta = np.sqrt(np.pi / 2) * gamma(coils + 0.5) / gamma(coils) / gamma(0.5) * 2
    want = sigma * beta * hyp1f1(-0.5, coils, -(signal**2) / (2 * sigma**2))
    found = np.array([noise.expected_magnitude(a, sigma, coils) for a in signal])
    assert_allclose(found, want, rtol=1e-11)
    back = np.array([noise.signal_of(m, sigma, coils) for m in found])
    kept = signal > 0.3  # below, the mean does not depend on the signal to working precision
    assert_allclose(back[kept], signal[kept], rtol=1e-8)
    assert_allclose(back[~kept], signal[~kept], atol=1e-2)


def test_limits():
    """No noise, far above and below the floor, below zero, and missing samples."""
    assert noise.expected_magnitude(3.0, 0.0, 1) == 3.0
    assert noise.expected_magnitude(-3.0, 1.0, 1) == noise.expected_magnitude(0.0, 1.0, 1)
    assert noise.expected_magnitude(1e9, 1.0, 1) == 1e9
    assert noise.expected_magnitude(1e4, 1.0, 1) == pytest.approx(1e4 + 0.5e-4, rel=1e-14)
    assert noise.signal_of(1.2, 1.0, 1) == 0.0
    assert noise.signal_of(-5.0, 1.0, 1) == 0.0
    assert noise.signal_of(1e9, 1.0, 4) == 1e9
    assert np.isnan(noise.signal_of(np.nan, 1.0, 1))


@pytest.mark.parametrize(("coils", "rule"), [(1, "free"), (4, "free"), (1, "fit")])
def test_a_fit_is_its_own_expectation(coils, rule):
    """Signal and sigma of a settled fit, written out in NumPy: one more step changes neither. The
    rule "fit" adds a sample of S0_b at q = 0, which sigma^2 over 2 L n - tr S counts.
    """
    b, g = truth.scheme([20, 30], [1000, 3000])
    mu, R = np.array([8e-3, 5e-3, 4e-3]), truth.rotation(1, 30)
    parts = np.random.default_rng(4).standard_normal((2, 2 * coils, len(b)))
    parts[:, 0] += 12 * np.exp(-b * (g @ R[:, 0]) ** 2 * 1.5e-3 - b * 3e-4)
    y = np.sqrt((parts**2).sum(1))
    options = {"noise": "rician", "coils": coils, "preset": None, "S0": rule}
    model = MapmriModel(phantom.table(b, g), 2, laplacian=0.3, laplacian_of="signal", **options)
    fit = model.fit(y, scale=(mu, R))
    M = oracle.phi_matrix(2, mu, oracle.qvectors(b, g, phantom.TAU) @ R)
    B = np.sqrt((b == 0).sum() * (rule == "fit")) * oracle.aniso_origin(2)
    G = M.T @ M + 0.3 * oracle.laplacian_matrix(2, mu) + np.outer(B, B)
    free = 2 * coils * len(b) - np.trace(np.linalg.solve(G, M.T @ M))
    for v in range(2):
        signal, square = fit.S0[v] * M @ fit.coef[v], fit.sigma[v] ** 2
        A = np.maximum(signal, 0)
        r = ive(coils, y[v] * A / square) / ive(coils - 1, y[v] * A / square)
        want = (y[v] ** 2 - 2 * y[v] * A * r + A**2).sum() / free
        assert square == pytest.approx(want, rel=noise.SETTLED)
        off = y[v] - [noise.expected_magnitude(a, fit.sigma[v], coils) for a in A]
        assert fit.rmse()[v] == pytest.approx(np.sqrt((off**2).mean()), rel=1e-4)
        step = M @ np.linalg.solve(G, M.T @ (y[v] * r)) - signal
        assert rule == "fit" or (step**2).mean() <= (noise.SETTLED * fit.sigma[v]) ** 2
