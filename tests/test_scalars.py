"""
Index formulas: golden vectors, and every index against integrals of the fit's own signal and
propagator.
"""

from math import pi

import numpy as np
import oracle
import phantom
import pytest
import truth
from phantom import INDEX_NAMES, made_fit, signal_at
from truth import assert_digits

from mapmri_nb.kernels import scalars


@pytest.mark.nojit
def test_golden_a():
    """Every printed digit of reference 9.2 (a)."""
    mu, a, _, want = truth.golden_a()
    fit = made_fit(a, mu, np.eye(3))
    for name in INDEX_NAMES:
        assert_digits(fit.index(name)[0], want[name])
    u0 = fit._isotropic_scale()[0]
    assert_digits(u0, want["u0"])
    assert_digits(np.cos(fit.theta_dti()[0]), want["cos_dti"])
    assert_digits(fit.pa_dti()[0], want["pa_dti"])
    assert_digits(fit.pa()[0], want["pa"])
    for K, value in want["cos"].items():
        assert_digits(np.cos(fit.theta_po(K)[0]), value)
    assert_digits(signal_at(fit, truth.GOLDEN_Q)[0], want["E"])
    assert_digits(fit.pdf(truth.GOLDEN_R)[0, 0], want["P"])
    assert_digits(fit.odf(truth.GOLDEN_V, 2)[0, 0], want["odf2"])
    # the 14th decimal decides how the 13th is printed: .05135688443635
    assert fit.odf(truth.GOLDEN_V, 0)[0, 0] == pytest.approx(want["odf0"], rel=1.1e-12)
    assert_digits((a**2).sum() / (8 * pi**1.5 * np.prod(mu)), want["e2"])


@pytest.mark.nojit
def test_golden_b():
    """Every printed digit of reference 9.2 (b): isotropic coefficients, e1 = x."""
    u, a, _, want = truth.golden_b()
    fit = made_fit(a, np.full(3, u), np.eye(3), "isotropic")
    for name in ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm"):
        assert_digits(fit.index(name)[0], want[name])
    assert_digits(np.cos(fit.theta_po()[0]), want["cos"])
    assert_digits(signal_at(fit, truth.GOLDEN_Q)[0], want["E"])
    assert_digits(fit.pdf(truth.GOLDEN_R)[0, 0], want["P"])
    for s in (0, 2):
        assert_digits(fit.odf(truth.GOLDEN_V, s)[0, 0], want[f"odf{s}"])


@pytest.mark.parametrize("order", [0, 2, 4, 6, 8, 10])
def test_indices_are_integrals_of_the_fit(order, rng):
    """
    Lines, planes and space through `predict` and `pdf`, in a turned frame; determinant -1 as well.
    """
    for seed in range(2):
        a = oracle.random_coefficients(order, seed)[0]
        mu, R = 1e-3 * np.sort(rng.uniform(3, 10, 3))[::-1], phantom.random_rotation(rng)
        R[:, 1] *= 1 - 2 * seed
        fit = made_fit(a, mu, R)
        want = oracle.quadrature_indices(
            lambda q, f=fit, R=R: signal_at(f, q @ R.T), lambda r, f=fit, R=R: f.pdf(r @ R.T)[0], mu
        )
        for name in INDEX_NAMES:
            # the sines come out of 1 - cos^2 in the quadrature: 1e-8 where there is none
            floor = 1e-7 if order == 0 and name.startswith("ng") else 0.0
            assert fit.index(name)[0] == pytest.approx(want[name], rel=1e-10, abs=floor), name


@pytest.mark.parametrize("order", [2, 6, 8])
def test_isotropic_indices_are_integrals_of_the_fit(order, rng):
    """
    The same from isotropic coefficients, with the tensor's axes where RTAP, RTPP and NG need them.
    """
    a = oracle.random_coefficients(order)[1]
    u, R, mu = 6e-3, phantom.random_rotation(rng), np.array([9e-3, 5e-3, 4e-3])
    fit = made_fit(a, np.full(3, u), R, "isotropic", mu)
    want = oracle.quadrature_indices(
        lambda q: signal_at(fit, q @ R.T), lambda r: fit.pdf(r @ R.T)[0], [u] * 3
    )
    closed = oracle.iso_indices(a, u, R[:, 0])
    for name in ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm"):
        assert fit.index(name)[0] == pytest.approx(want[name], rel=1e-10), name
        assert fit.index(name)[0] == pytest.approx(closed[name], rel=1e-11), name
    assert fit.ng()[0] == pytest.approx(oracle.iso_ng(a, u, mu, R), rel=1e-10)


def test_odd_pairs_count():
    """
    NG_perp does not change when the frame turns about e1 at equal scales: odd-odd pairs are part of
    it.
    """
    mu = np.array([9e-3, 5e-3, 5e-3])
    a = oracle.random_coefficients(6, 3)[0]
    fit = made_fit(a, mu, np.eye(3))
    r, w = oracle.gauss_hermite(10, mu)  # exact for Psi_n P
    for degrees in (10, 30, 77):
        turn = truth.rotation(0, degrees)
        turned = (
            8 * pi**1.5 * np.prod(mu) * oracle.psi_matrix(6, mu, r).T @ (w * fit.pdf(r @ turn.T)[0])
        )
        other = made_fit(turned, mu, turn)
        for name in INDEX_NAMES:
            assert other.index(name)[0] == pytest.approx(fit.index(name)[0], rel=1e-11), name


@pytest.mark.nojit
def test_gaussian_has_no_non_gaussianity():
    """
    Zero exactly, not the 1e-8 of the difference form; and everything NaN for NaN coefficients.
    """
    a = np.zeros((2, 50))
    a[0, 0], a[1] = 1.0, np.nan
    fit = made_fit(a, np.full((2, 3), [9e-3, 5e-3, 4e-3]), np.repeat(np.eye(3)[None], 2, 0))
    for name in ("ng", "ng_par", "ng_perp"):
        assert fit.index(name)[0] == 0.0
    for name in INDEX_NAMES:
        assert np.isnan(fit.index(name)[1])
    tiny = a[0].copy()
    tiny[7] = 1e-12
    assert made_fit(tiny, [9e-3, 5e-3, 4e-3], np.eye(3)).ng()[0] == pytest.approx(1e-12, rel=1e-12)


@pytest.mark.parametrize(
    "name",
    ["rtop", "rtap", "rtpp", "msd", "qiv", "laplacian_norm", "ng_parallel", "ng_perpendicular"],
)
def test_kernels_one_by_one(name):
    """Each formula stands alone and equals the oracle's."""
    mu, a, *_ = truth.golden_a()
    key = {"laplacian_norm": "lapnorm", "ng_parallel": "ng_par", "ng_perpendicular": "ng_perp"}.get(
        name, name
    )
    kernel, t = getattr(scalars, name), scalars.tables(6)
    got = kernel(a, t) if key.startswith("ng") else kernel(a, mu, t)
    assert got == pytest.approx(oracle.aniso_indices(a, mu)[key], rel=1e-13)
