"""The oracle itself against quadrature and printed tables."""

from math import pi

import numpy as np
import oracle
import pytest
import truth
from numpy.testing import assert_allclose
from scipy import special
from truth import assert_digits

pytestmark = pytest.mark.nojit  # nothing here is compiled
MU = np.array([8e-3, 5e-3, 4e-3])


def test_tables():
    assert oracle.aniso_table(2).tolist() == [
        [0, 0, 0], [2, 0, 0], [1, 1, 0], [0, 2, 0], [1, 0, 1], [0, 1, 1], [0, 0, 2]]  # fmt: skip
    block = "400 310 220 130 040 301 211 121 031 202 112 022 103 013 004"
    assert ["".join(map(str, n)) for n in oracle.aniso_table(4)[7:].tolist()] == block.split()
    runs = [(1, 0), (1, 2), (2, 0), (1, 4), (2, 2), (3, 0)]
    iso = [[j, el, m] for j, el in runs for m in range(-el, el + 1)]
    assert oracle.iso_table(4).tolist() == iso
    for order, count in zip(range(0, 13, 2), (1, 7, 22, 50, 95, 161, 252), strict=True):
        assert len(oracle.aniso_table(order)) == len(oracle.iso_table(order)) == count
        assert oracle.order_of(np.zeros(count)) == order


@pytest.mark.parametrize("space", ["q", "r"])
def test_orthogonality_by_quadrature(space):
    matrix, radial = (
        (oracle.phi_matrix, oracle.iso_phi_matrix)
        if space == "q"
        else (oracle.psi_matrix, oracle.iso_psi_matrix)
    )
    x, w = oracle.gauss_hermite(12, oracle.scales(MU, space, 2))
    m = matrix(6, MU, x)
    assert_allclose(m.T * w @ m * 8 * pi**1.5 * np.prod(MU), np.eye(50), atol=1e-12)
    x, w = oracle.gauss_hermite(12, oracle.scales(np.full(3, 6e-3), space, 2))
    m = radial(6, 6e-3, x) / np.sqrt(oracle.iso_norms(6, 6e-3))
    assert_allclose(m.T * w @ m, np.eye(50), atol=1e-12)


def test_fourier_pair_and_origin():
    q = np.array([[0, 0, 0], [30.0, -20, 10], [5, 40, 60]])
    for scale, mu, psi, phi, origin in (
        (MU, MU, oracle.psi_matrix, oracle.phi_matrix, oracle.aniso_origin),
        (np.full(3, 6e-3), 6e-3, oracle.iso_psi_matrix, oracle.iso_phi_matrix, oracle.iso_origin),
    ):
        r, w = oracle.gauss_hermite(30, np.sqrt(2) * scale)
        kernel = w * np.exp(-2j * pi * q @ r.T)
        assert_allclose(kernel @ psi(6, mu, r), phi(6, mu, q), atol=1e-11)
        assert_allclose(phi(6, mu, q)[0], origin(6), atol=1e-14)
    values = [1, 3 / 2, 15 / 8, 35 / 16]
    assert oracle.iso_origin(6)[[0, 6, 21, 49]] == pytest.approx(values, rel=1e-15)


def test_harmonics():
    expected = (-0.13342072, -0.24418248, 0.23810509, -0.47975990, 0.18329646)
    for m, value in zip(range(-2, 3), expected, strict=True):
        assert_digits(oracle.real_sh(2, m, 0.7, 1.1), f"{value:.8f}")
    v, w = oracle.sphere_rule()
    _, theta, phi = oracle.angles(v)
    degrees = [(el, m) for el in range(0, 9, 2) for m in range(-el, el + 1)]
    y = np.array([oracle.real_sh(el, m, theta, phi) for el, m in degrees])
    assert_allclose(y * w @ y.T, np.eye(len(y)), atol=1e-13)


def test_laplacian_by_quadrature():
    r, w = oracle.gauss_hermite(14, MU)
    psi = oracle.psi_matrix(6, MU, r) * (r**2).sum(1)[:, None]
    lap = oracle.laplacian_matrix(6, MU)
    assert_allclose(lap, 16 * pi**4 * (psi.T * w @ psi), atol=1e-12 * lap.max())


@pytest.mark.parametrize("s", [-2, -1, 0, 2])
def test_odf_by_quadrature(s):
    a, (t, w) = np.random.default_rng(1).normal(size=22), special.roots_legendre(200)
    r = (t + 1) * 0.04  # to 80 um, ten times the longest scale
    for v in np.array([[1.0, 0, 0], [0.6, 0, 0.8], [2 / 3, -1 / 3, 2 / 3]]):
        P = oracle.psi_matrix(4, MU, r[:, None] * v) @ a
        want = 0.04 * w @ (P * r ** (2 + s))
        assert (oracle.odf_matrix(4, MU, v, s) @ a)[0] == pytest.approx(want, rel=1e-9)


def test_motzkin():
    """Reference 9.6: (x^4 y^2 + x^2 y^4 - 3 x^2 y^2 + 1) / 4 times the Gaussian."""
    a = np.array([truth.MOTZKIN.get(tuple(n), 0.0) for n in oracle.aniso_table(6).tolist()])
    assert a @ oracle.aniso_origin(6) == pytest.approx(1, rel=1e-14)
    r = np.random.default_rng(0).normal(0, 1, (500, 3))
    (x, y, _), size = (r**2).T, (2 * pi) ** 1.5 * np.prod(MU)
    p = 0.25 * (x * x * y + x * y * y - 3 * x * y + 1) * np.exp(-(r**2).sum(1) / 2) / size
    assert_allclose(oracle.psi_matrix(6, MU, r * MU) @ a, p, atol=1e-13 * p.max())
