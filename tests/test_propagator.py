"""
Signal, propagator, ODF and overlap kernels against quadrature, identities and the golden vectors.
"""

import math

import numpy as np
import oracle
import pytest
import truth
from mapmri_nb.directions import OdfField, sphere
from oracle import isotropic_scale

from mapmri_nb.kernels import hermite, ordering, propagator
from mapmri_nb.kernels import odf as odf_kernels
from mapmri_nb.kernels.lanes import WIDTH

pytestmark = pytest.mark.filterwarnings("error")


def rotation(rng, n):
    return np.ascontiguousarray(np.linalg.qr(rng.normal(size=(n, 3, 3)))[0])


def draw(order, n, seed, low=3e-3, high=9e-3):
    """Random coefficients with E(0) = 1, scales and frames."""
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(n, ordering.n_coef(order))) / (1 + np.arange(ordering.n_coef(order)))
    coef /= (coef @ ordering.origin_values(ordering.index_table(order)))[:, None]
    return coef, rng.uniform(low, high, (n, 3)), rotation(rng, n)


def odf(coef, mu, R, points, s):
    return OdfField(coef, mu, R, oracle.order_of(coef[0]), s)(points)


def values(coef, mu, R, points, real_space):
    kind = propagator.PROPAGATOR if real_space else propagator.SIGNAL
    tables = propagator.point_tables(oracle.order_of(coef[0]), kind)
    return propagator.values_at(coef, mu, R, points, tables)


def cosine(coef, mu, target, K):
    out, target = np.empty(len(coef)), np.ascontiguousarray(np.broadcast_to(target, mu.shape))
    even = propagator.even_table(oracle.order_of(coef[0]))
    propagator.radial_cosine_rows(
        np.ascontiguousarray(coef), mu, target, even, K, out, 0, len(coef)
    )
    return out


def negative(coef, grid):
    out = np.empty((len(coef), 2))
    propagator.negative_rows(coef, grid, out, 0, len(coef))
    return out


# ---- values at points
# -----------------------------------------------------------------------------------------------


@pytest.mark.nojit
@pytest.mark.parametrize("order", [0, 2, 6, 10])
def test_values_equal_the_basis(order):
    coef, mu, R = draw(order, 3, order)
    rng = np.random.default_rng(1)
    for real_space, basis, scale in (
        (False, oracle.phi_matrix, 60.0),
        (True, oracle.psi_matrix, 0.01),
    ):
        points = rng.normal(size=(150, 3)) * scale
        got = values(coef, mu, R, points, real_space)
        for v in range(3):
            rows = basis(order, mu[v], points @ R[v])
            assert (
                np.abs(got[v] - rows @ coef[v]).max() <= 1e-13 * np.abs(rows * coef[v]).sum(1).max()
            )


@pytest.mark.nojit
def test_rows_are_those_of_the_basis(rng):
    mu, index = np.array([8e-3, 5e-3, 4e-3]), ordering.index_table(6)
    for rows, basis, scale in (
        (hermite.signal_rows, oracle.phi_matrix, 40.0),
        (hermite.propagator_rows, oracle.psi_matrix, 8e-3),
    ):
        points, out = scale * rng.normal(size=(30, 3)), np.empty((30, len(index)))
        rows(points, mu, index, out)
        np.testing.assert_allclose(out, basis(6, mu, points), atol=1e-13 * np.abs(out).max())


def test_values_far_out_vanish():
    coef, mu, R = draw(10, 2, 0)
    for real_space, scale in ((False, 1e4), (True, 1.0)):
        assert np.abs(values(coef, mu, R, scale * np.eye(3), real_space)).max() < 1e-200


# ---- ODF
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [pytest.param(4, marks=pytest.mark.nojit), 6, 10])
@pytest.mark.parametrize("s", [-1.5, 0.0, 0.7, 2.0])
def test_odf_is_the_radial_integral_of_the_propagator(order, s):
    coef, mu, R = draw(order, 2, order)
    directions = sphere(100).vertices[:7]
    got = odf(coef, mu, R, directions, s)
    # substitute r = w^2: smooth at 0 for s = -1.5 too
    x, w = np.polynomial.legendre.leggauss(120)
    top = math.sqrt(14 * 9e-3)
    root, weight = top * (x + 1) / 2, w * top / 2
    for k, v in enumerate(directions):
        P = values(coef, mu, R, root[:, None] ** 2 * v, True)
        want = P @ (weight * 2 * root * root ** (2 * (2 + s)))
        assert got[:, k] == pytest.approx(want, rel=1e-9, abs=1e-10 * np.abs(got).max())


@pytest.mark.parametrize("ratio", [1.0, 2.4, 4.0, 8.0])
@pytest.mark.parametrize("order", [6, 10])
def test_odf_of_strong_anisotropy_keeps_its_digits(order, ratio):
    """Against the sum over basis functions, also in the direction where the ODF peaks."""
    coef, _, R = draw(order, 1, 3)
    mu = np.array([[ratio * 3e-3, 3.3e-3, 3e-3]])
    directions = np.concatenate([R[:, :, 0], sphere(100).vertices[:30]])
    got = odf(coef, mu, R, directions, 2)[0]
    terms = oracle.odf_matrix(order, mu[0], directions @ R[0], 2) * coef[0]
    assert np.all(np.abs(got - terms.sum(1)) <= 1e-11 * np.abs(terms).sum(1))


@pytest.mark.nojit
def test_second_half_repeats_the_first():
    coef, mu, R = draw(4, WIDTH + 1, 0)
    out, half = (odf(coef, mu, R, sphere(100).vertices[:n], 2) for n in (100, 50))
    assert np.array_equal(out[:, :50], out[:, 50:])
    assert np.array_equal(out[:, :50], half)


@pytest.mark.nojit
def test_moment_below_minus_three_is_refused():
    with pytest.raises(ValueError, match="-3"):
        odf_kernels.forms(*draw(4, 2, 0), 4, -3.0)


@pytest.mark.nojit
def test_nan_stays_in_its_row():
    coef, mu, R = draw(4, 3, 0)
    coef[1] = np.nan
    out = odf(coef, mu, R, sphere(100).vertices, 2)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()
    assert np.isnan(cosine(coef, mu, mu, 2)[1])
    out = negative(coef, propagator.dense_grid(4, 1.0))
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()


# ---- PA
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.nojit
def test_golden_pa():
    mu, coef, _, want = truth.golden_a()
    for K, value in want["cos"].items():
        got = cosine(coef[None], mu[None], want["u0"], K)
        truth.assert_digits(math.sqrt(got[0]), value)
    u, iso, _, want = truth.golden_b()
    hermite, mu = (ordering.iso_to_aniso(6) @ iso)[None], np.full((1, 3), u)
    truth.assert_digits(math.sqrt(cosine(hermite, mu, u, 5)[0]), want["cos"])


@pytest.mark.parametrize("order", [0, 4, 8])
def test_radial_cosine_against_overlaps_by_quadrature(order):
    coef, mu, _ = draw(order, 3, order)
    for a, m in zip(coef, mu, strict=True):
        got = cosine(a[None], m[None], isotropic_scale(m), 4)
        assert got[0] == pytest.approx(oracle.pa_cos2(a, m, 4), rel=1e-12)


@pytest.mark.parametrize(
    ("D", "sine", "pa", "pa_dti"),
    [
        ((1.7, 0.3, 0.3), 0.45709553, 0.95263283, 0.95496928),
        ((1.7, 0.5, 0.2), 0.48441142, 0.96334892, 0.96543884),
        ((0.9, 0.8, 0.75), 0.04618429, 0.06580296, 0.06581776),
        ((3.0, 3.0, 3.0), 0.0, 0.0, 0.0),
    ],
)
def test_pa_of_one_gaussian(D, sine, pa, pa_dti):
    mu = np.sqrt(2 * np.array([D]) * 1e-3 * 0.03)
    coef = np.zeros((1, 50))
    coef[0, 0] = 1.0
    u0 = isotropic_scale(mu[0])
    for K, tolerance in ((5, 5e-6), (20, 6e-9)):
        cos2 = cosine(coef, mu, u0, K)
        assert propagator.propagator_anisotropy(cos2)[0] == pytest.approx(pa, abs=tolerance)
        assert math.sqrt(max(0.0, 1 - cos2[0])) == pytest.approx(
            sine, abs=max(1.2 * tolerance, 2e-8)
        )
    dti = propagator.gaussian_cosine(mu, np.array([u0]))
    assert propagator.propagator_anisotropy(dti)[0] == pytest.approx(pa_dti, abs=6e-9)
    assert cosine(coef, mu, u0, 0) == pytest.approx(dti, rel=1e-14)
    assert cosine(coef, mu, u0, 1) == pytest.approx(dti, abs=1e-12)  # g_1 = 0 by the choice of u0


def test_overlap_with_a_gaussian_by_quadrature():
    """
    K = 0 at three different target scales: the angle between P and that Gaussian, the NG of the
    isotropic basis.
    """
    coef, mu, _ = draw(4, 1, 7)
    target = np.array([[8e-3, 4e-3, 5e-3]])
    x = 1.5e-3 * np.arange(-36, 37)  # the trapezoidal rule, exact for such functions
    r = np.stack(np.meshgrid(x, x, x, indexing="ij"), -1).reshape(-1, 3)
    P = values(coef, mu, np.eye(3)[None], r, True)[0]
    G = np.exp(-0.5 * (r / target[0]) ** 2).prod(1)
    want = (P @ G) ** 2 / ((P @ P) * (G @ G))
    assert cosine(coef, mu, target, 0)[0] == pytest.approx(want, rel=1e-9)


# ---- positivity
# -----------------------------------------------------------------------------------------------------


def test_negative_part_of_known_propagators():
    coef = np.zeros((2, 50))
    coef[0, 0] = 1.0
    position = ordering.positions(ordering.index_table(6))
    coef[1, position[2, 0, 0]] = math.sqrt(
        2.0
    )  # E(0) = 1; P ~ (2x^2 - 1) exp(-x^2/2), negative for |x| < 1/sqrt(2)
    out = negative(coef, propagator.dense_grid(6))
    assert out[0, 1] == 0.0
    assert out[0, 0] == 0.0
    # int_{-a}^{a} (1 - 2x^2) e^{-x^2/2} / sqrt(2 pi), a = 1/sqrt(2): 4a phi(a) - (2 Phi(a) - 1)
    a = math.sqrt(0.5)
    phi = math.exp(-0.25) / math.sqrt(2 * math.pi)
    assert out[1, 1] == pytest.approx(4 * a * phi - math.erf(a / math.sqrt(2)), abs=0.02)
    assert out[1, 0] == pytest.approx(
        -math.exp(2.5 / 2) / 4, rel=0.03
    )  # -1 over the peak 4 e^(-5/4) at x^2 = 5/2


@pytest.mark.parametrize("order", [4, 6, 10])
def test_grid_holds_the_mass(order):
    grid = propagator.dense_grid(order)
    mass = np.zeros(ordering.n_coef(order))  # odd functions cancel
    even = grid.order[: grid.bounds[1]]
    mass[even] = 4 * np.einsum("tln,tl->n", grid.values[0], grid.weights)
    assert mass == pytest.approx(ordering.origin_values(ordering.index_table(order)), abs=2e-5)


def test_negative_part_at_the_points_themselves(rng):
    """One octant and its changes of sign are the whole lattice."""
    coef = rng.standard_normal((3, 50)) * 0.1 + np.eye(50)[0]
    axis = 0.5 * np.arange(-13, 14)
    x = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    x = x[(x**2).sum(1) <= (math.sqrt(13) + 3) ** 2]
    rows = np.empty((len(x), 50))
    hermite.propagator_rows(x, np.ones(3), ordering.index_table(6), rows)
    P = coef @ rows.T
    out = negative(coef, propagator.dense_grid(6))
    np.testing.assert_allclose(out[:, 0], P.min(1) / P.max(1), rtol=1e-10)
    np.testing.assert_allclose(out[:, 1], 0.125 * np.maximum(-P, 0).sum(1), rtol=1e-10)
