"""Known answers: every printed digit of the reference, closed forms by quadrature."""

from math import pi, sqrt

import numpy as np
import pytest
import truth
from numpy.testing import assert_allclose
from scipy import integrate, special
from truth import assert_digits

pytestmark = pytest.mark.nojit  # nothing here is compiled
TAU = 0.03


# ---- mixtures


@pytest.mark.parametrize("name", truth.MIXTURES)
def test_mixture_table(name):
    got = truth.mixture_truth(*truth.MIXTURES[name], TAU)
    for column, text in zip(truth.MIXTURE_COLUMNS, truth.MIXTURE_TABLE[name].split(), strict=True):
        if text == "0":
            assert got[column] <= 2e-7
        else:
            assert_digits(got[column], text)


def test_spherical_mean_closed_form():
    """Prolate: exp(-r^2/2s_par^2) Dawson(a)/a; oblate: exp(-r^2/2s_perp^2) sqrt(pi)/2 erf(a)/a."""
    for par, perp in ((1.7e-3, 0.3e-3), (0.3e-3, 1.7e-3)):
        p, t = 2 * TAU * par, 2 * TAU * perp

        def mean(r, p=p, t=t):
            a = r * sqrt(abs(1 / t - 1 / p) / 2)
            prolate = special.dawsn(a) * np.exp(-(r**2) / 2 / p)
            oblate = sqrt(pi) / 2 * special.erf(a) * np.exp(-(r**2) / 2 / t)
            return (2 * pi) ** -1.5 / (sqrt(p) * t) * (prolate if p > t else oblate) / a

        want = (
            4
            * pi
            * integrate.quad(
                lambda r, mean=mean: r**2 * mean(r) ** 2, 1e-12, 0.1, epsabs=0, limit=500
            )[0]
        )
        assert truth.spherical_mean_norm2([1.0], np.array([np.diag([p, t, t])])) == pytest.approx(
            want, rel=1e-9
        )


# ---- restricted diffusion

GEOMETRIES = ["planes", "cylinder", "sphere"]


@pytest.mark.parametrize(
    ("geometry", "n_max", "k_max", "tolerance"),
    [("planes", 0, 20000, 1e-12), ("cylinder", 59, 60, 6e-7), ("sphere", 39, 40, 2e-6)],
)
def test_finite_time_sums(geometry, n_max, k_max, tolerance):
    x = np.array([0.3, 1.0, 2.5, 4.1])
    assert_allclose(truth.restricted_sum(geometry, x, 0.0, n_max, k_max), 1, atol=tolerance)
    long = truth.restricted_sum(geometry, x, 20.0, min(n_max, 5), 5)
    assert_allclose(long, truth.restricted_signal(geometry, x), rtol=1e-14)
    middle = truth.restricted_sum(
        geometry, x, 0.1, min(n_max, 12), 12
    )  # and it lies between free and long-time
    assert np.all(middle > truth.restricted_signal(geometry, x))
    assert np.all(middle < 1)


def test_slowest_rates_and_first_zeros():
    assert_digits(special.jnp_zeros(1, 1)[0] ** 2, "3.3900")
    assert_digits(truth.spherical_zeros(1, 1)[0] ** 2, "4.3330")
    assert_digits(pi**2, "9.8696")
    for geometry, zero in (("planes", 1.0), ("cylinder", 0.60983), ("sphere", 0.71515)):
        assert truth.restricted_signal(geometry, 2 * pi * zero) < 1e-9
        assert np.all(
            truth.restricted_signal(geometry, 2 * pi * np.linspace(0.01, 0.99 * zero, 50)) > 0
        )


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_restricted_closed_forms(geometry):
    size = 5e-3
    d = GEOMETRIES.index(geometry) + 1
    top = size if d == 1 else 2 * size
    area = (2.0, 2 * pi, 4 * pi)[d - 1]
    msd, at_zero = truth.restricted_truth(geometry, size)

    def moment(k, q=None):
        plane_wave = {1: np.cos, 2: special.j0, 3: lambda x: special.spherical_jn(0, x)}[d]

        def f(r):
            wave = 1.0 if q is None else plane_wave(2 * pi * q * r)
            return area * truth.restricted_propagator(geometry, size, r) * r ** (d - 1 + k) * wave

        return integrate.quad(f, 0, top, epsrel=1e-11, epsabs=0, limit=200)[0]

    assert moment(0) == pytest.approx(1, rel=1e-10)
    assert moment(2) == pytest.approx(msd, rel=1e-10)
    assert truth.restricted_propagator(geometry, size, 0.0) == pytest.approx(at_zero, rel=1e-14)
    for q in (20.0, 70.0):
        assert moment(0, q) == pytest.approx(
            truth.restricted_signal(geometry, 2 * pi * q * size), rel=1e-8
        )
