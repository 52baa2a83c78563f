"""Signal, propagator, ODF and overlap kernels against quadrature and identities."""

import math

import numpy as np
import oracle
import phantom
import pytest
from mapmri_nb.directions import OdfField, sphere
from numpy.testing import assert_allclose
from shell import refused

from mapmri_nb.kernels import hermite, ordering, propagator
from mapmri_nb.kernels import odf as odf_kernels
from mapmri_nb.kernels.lanes import WIDTH

pytestmark = pytest.mark.filterwarnings("error")


def draw(order, n, seed):
    """Random coefficients with E(0) = 1, scales and frames."""
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(n, ordering.n_coef(order))) / (1 + np.arange(ordering.n_coef(order)))
    coef /= (coef @ ordering.origin_values(ordering.index_table(order)))[:, None]
    return coef, 1e-3 * rng.uniform(3, 9, (n, 3)), phantom.random_rotation(rng, n)


def odf(coef, mu, R, points, s):
    return OdfField(coef, mu, R, oracle.order_of(coef[0]), s)(points)


def values(coef, mu, R, points, real_space):
    kind = propagator.PROPAGATOR if real_space else propagator.SIGNAL
    tables = propagator.point_tables(oracle.order_of(coef[0]), kind)
    return propagator.values_at(coef, mu, R, points, tables)


def negative(coef, grid):
    out = np.empty((len(coef), 2))
    propagator.negative_rows(coef, grid, out, 0, len(coef))
    return out


# ---- values at points


@pytest.mark.nojit
def test_hermite_functions():
    out = np.empty(9)
    hermite.hermite_functions(0.7, out)
    want = [oracle.hermite1d(n, 0.7) / math.pi**0.25 for n in range(9)]
    assert_allclose(out, want, rtol=1e-13)


@pytest.mark.nojit
@pytest.mark.parametrize("order", [0, 2, 6, 10])
def test_values_equal_the_basis(order):
    (coef, mu, R), rng = draw(order, 3, order), np.random.default_rng(1)
    index = ordering.index_table(order)
    for real_space, basis, kernel, scale in (
        (False, oracle.phi_matrix, hermite.signal_rows, 60.0),
        (True, oracle.psi_matrix, hermite.propagator_rows, 0.01),
    ):
        points, out = rng.normal(size=(150, 3)) * scale, np.empty((150, len(index)))
        got = values(coef, mu, R, points, real_space)
        for v in range(3):
            here = np.ascontiguousarray(points @ R[v])
            rows = basis(order, mu[v], here)
            bound = 1e-13 * np.abs(rows * coef[v]).sum(1).max()
            assert np.abs(got[v] - rows @ coef[v]).max() <= bound
            kernel(here, mu[v], index, out)
            assert_allclose(out, rows, atol=1e-13 * np.abs(out).max())


def test_values_far_out_vanish():
    coef, mu, R = draw(10, 2, 0)
    for real_space, scale in ((False, 1e4), (True, 1.0)):
        assert np.abs(values(coef, mu, R, scale * np.eye(3), real_space)).max() < 1e-200


# ---- ODF


@pytest.mark.parametrize("order", [pytest.param(4, marks=pytest.mark.nojit), 6, 10])
@pytest.mark.parametrize(("ratio", "s"), [(1.0, -1.5), (2.4, 0.0), (2.4, 0.7), (4.0, 2), (8.0, 2)])
def test_odf_is_the_sum_over_basis_functions(order, ratio, s):
    """Strong anisotropy keeps its digits too, and the direction where the ODF peaks."""
    coef, _, R = draw(order, 1, 3)
    mu = np.array([[ratio * 3e-3, 3.3e-3, 3e-3]])
    directions = np.concatenate([R[:, :, 0], sphere(100).vertices[:30]])
    got = odf(coef, mu, R, directions, s)[0]
    terms = oracle.odf_matrix(order, mu[0], directions @ R[0], s) * coef[0]
    assert np.all(np.abs(got - terms.sum(1)) <= 1e-11 * np.abs(terms).sum(1))


@pytest.mark.nojit
def test_second_half_repeats_the_first():
    coef, mu, R = draw(4, WIDTH + 1, 0)
    out, half = (odf(coef, mu, R, sphere(100).vertices[:n], 2) for n in (100, 50))
    assert np.array_equal(out[:, :50], out[:, 50:])
    assert np.array_equal(out[:, :50], half)


@pytest.mark.nojit
def test_moment_below_minus_three_is_refused():
    refused("-3", odf_kernels.forms, *draw(4, 2, 0), 4, -3.0)


@pytest.mark.nojit
def test_nan_stays_in_its_row():
    coef, mu, R = draw(4, 3, 0)
    coef[1] = np.nan
    out = odf(coef, mu, R, sphere(100).vertices, 2)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()
    out = negative(coef, propagator.dense_grid(4, 1.0))
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()


# ---- positivity


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
    assert_allclose(out[:, 0], P.min(1) / P.max(1), rtol=1e-10)
    assert_allclose(out[:, 1], 0.125 * np.maximum(-P, 0).sum(1), rtol=1e-10)
