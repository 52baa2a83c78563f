"""Known answers: every printed digit of the reference, closed forms by quadrature."""

from math import pi

import numpy as np
import pytest
import truth
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


# ---- restricted diffusion

GEOMETRIES = ["planes", "cylinder", "sphere"]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_restricted_closed_forms(geometry):
    size, d = 5e-3, GEOMETRIES.index(geometry) + 1
    top, area = size if d == 1 else 2 * size, (2.0, 2 * pi, 4 * pi)[d - 1]
    msd, at_zero = truth.restricted_truth(geometry, size)

    def moment(k, q=None):
        plane_wave = (np.cos, special.j0, lambda x: special.spherical_jn(0, x))[d - 1]

        def f(r):
            wave = 1.0 if q is None else plane_wave(2 * pi * q * r)
            return area * truth.restricted_propagator(geometry, size, r) * r ** (d - 1 + k) * wave

        return integrate.quad(f, 0, top, epsrel=1e-11, epsabs=0, limit=200)[0]

    assert moment(0) == pytest.approx(1, rel=1e-10)
    assert moment(2) == pytest.approx(msd, rel=1e-10)
    assert truth.restricted_propagator(geometry, size, 0.0) == pytest.approx(at_zero, rel=1e-14)
    for q in (20.0, 70.0):
        signal = truth.restricted_signal(geometry, 2 * pi * q * size)
        assert moment(0, q) == pytest.approx(signal, rel=1e-8)
