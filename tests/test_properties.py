"""Invariants of reference section 10 on random voxels and odd schemes, both bases; its tolerances in brackets there."""

from functools import lru_cache
from math import pi

import numpy as np
import oracle
import phantom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom import INDEX_NAMES, TAU
from test_oracle import quadrature_indices
from test_scalars import made_fit, signal_at

import mapmri_nb as mapmri
from mapmri_nb.kernels import laplacian, ordering

SCHEMES = phantom.odd_schemes()
LENGTH = {"rtop": -3, "rtap": -2, "rtpp": -1, "msd": 2, "qiv": 5, "lapnorm": 1}  # powers; the others are numbers
VOXELS = 3

seeds = st.integers(0, 2**32 - 1)
schemes = st.sampled_from(sorted(SCHEMES))
bases = st.sampled_from(["anisotropic", "isotropic"])
weights = st.sampled_from([None, 0.05, 0.2, "gcv"])
orders = st.sampled_from([2, 4, 6])


@lru_cache(64)
def case(scheme, seed):
    """Scheme and noisy voxels."""
    b, g = SCHEMES[scheme]
    return b, g, phantom.signals(VOXELS, b, g, seed, noise=0.01)


def fit(b, g, y, order, basis, weight, **options):
    """A fit; without a weight at an order that every scheme determines."""
    order = min(order, 4) if weight is None else order
    b0 = options.pop("b0_threshold", 50)
    return mapmri.MapmriModel(phantom.table(b, g, b0_threshold=b0), order, basis=basis, laplacian=weight, **options).fit(y)


def names_of(one):
    return [n for n in INDEX_NAMES if not (one.isotropic and n in ("ng_par", "ng_perp"))] + ["pa", "pa_dti"]


def rows(one, name):
    """An index as rows; 1/QIV for QIV, which may pass through zero."""
    return 1 / one.index(name) if name == "qiv" else one.index(name)


def scale_of(one, name):
    """Size to compare differences with: at least that of the tensor's Gaussian."""
    mu = one.mu_tensor
    det = np.prod(mu, axis=1)
    gaussian = {
        "rtop": 1 / (np.sqrt(8 * pi**3) * det),
        "rtap": mu[:, 0] / (2 * pi * det),
        "rtpp": 1 / (np.sqrt(2 * pi) * mu[:, 0]),
        "msd": (mu**2).sum(1),
        "qiv": (mu**-2.0).sum(1) / (4 * pi**2 * np.sqrt(8 * pi**3) * det),
    }
    return np.maximum(np.abs(rows(one, name)), gaussian.get(name, 0.0))


def assert_equal_indices(one, two, tolerance, alpha=1.0):
    """Indices of `two`, lengths divided by alpha, are those of `one`."""
    assert (one.status & mapmri.Status.NO_FIT == 0).all()
    for name in names_of(one):
        power = LENGTH.get(name, 0) * (-1 if name == "qiv" else 1)
        off = np.abs(rows(one, name) - rows(two, name) * alpha**power)
        small = 1e-7 if name == "pa" else 0.0  # sin from 1 - cos^2 near 0
        assert (off <= tolerance * scale_of(one, name) + small).all(), (name, off / scale_of(one, name))


def bound(weight):
    return 1e-5 if weight == "gcv" else 1e-8


# ---------------------------------------------------------------- 1 to 4: the same measurement, told differently


@given(schemes, seeds, bases, weights, orders)
def test_1_rotation_of_the_directions(scheme, seed, basis, weight, order):
    b, g, y = case(scheme, seed)
    Q = phantom.random_rotation(np.random.default_rng(seed))
    one, two = fit(b, g, y, order, basis, weight), fit(b, g @ Q.T, y, order, basis, weight)
    assert_equal_indices(one, two, bound(weight))
    np.testing.assert_allclose(np.abs(np.einsum("vij,vij->vj", Q @ one.R, two.R)), 1, atol=1e-8)


@given(schemes, seeds, bases, weights, st.floats(1e-4, 1e4))
def test_2_scale_of_the_signal(scheme, seed, basis, weight, c):
    b, g, y = case(scheme, seed)
    one, two = fit(b, g, y, 6, basis, weight), fit(b, g, c * y, 6, basis, weight)
    assert_equal_indices(one, two, bound(weight))
    np.testing.assert_allclose(two.laplacian_weight, one.laplacian_weight, rtol=1e-5)
    np.testing.assert_allclose(two.S0, c * one.S0, rtol=bound(weight))
    np.testing.assert_allclose(two.rmse(), c * one.rmse(), rtol=bound(weight))


@given(schemes, seeds, bases, weights)
def test_3_signs_of_directions_change_no_bit(scheme, seed, basis, weight):
    b, g, y = case(scheme, seed)
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], (len(b), 1))
    assert phantom.same(fit(b, g, y, 6, basis, weight), fit(b, g * sign, y, 6, basis, weight))


@given(schemes, seeds, bases, weights)
def test_3_order_of_samples(scheme, seed, basis, weight):
    b, g, y = case(scheme, seed)
    p = np.random.default_rng(seed).permutation(len(b))
    one, two = fit(b, g, y, 6, basis, weight), fit(b[p], g[p], y[:, p], 6, basis, weight)
    assert_equal_indices(one, two, bound(weight))


@given(schemes, seeds, bases, st.sampled_from([None, 0.05]))
def test_3_twice_the_samples_at_twice_the_weight(scheme, seed, basis, weight):
    b, g, y = case(scheme, seed)
    twice = np.concatenate([b, b]), np.concatenate([g, g]), np.hstack([y, y])
    two = fit(*twice, 6, basis, None if weight is None else 2 * weight)
    assert_equal_indices(fit(b, g, y, 6, basis, weight), two, 1e-8)


@given(schemes, seeds, bases, weights, st.floats(0.5, 2.0))
def test_4_units_of_q(scheme, seed, basis, weight, alpha):
    """b times alpha^2, thresholds along with it: lengths are divided by alpha, the weight is multiplied by it."""
    b, g, y = case(scheme, seed)
    one = fit(b, g, y, 6, basis, weight, eigenvalue_threshold=1e-6)
    other = alpha * weight if isinstance(weight, float) else weight
    two = fit(alpha**2 * b, g, y, 6, basis, other, eigenvalue_threshold=1e-6 / alpha**2, bval_threshold=2100 * alpha**2,
              b0_threshold=50 * alpha**2)  # fmt: skip
    np.testing.assert_allclose(two.mu * alpha, one.mu, rtol=1e-9)
    assert_equal_indices(one, two, bound(weight), alpha)
    if weight is not None:
        np.testing.assert_allclose(two.laplacian_weight, alpha * one.laplacian_weight, rtol=1e-5)


# ---------------------------------------------------------------- 5 and 6: what indices are of the fit's own functions


@settings(max_examples=max(10, settings.default.max_examples // 4))  # 24^3 points an integral
@given(schemes, seeds, weights)
def test_5_indices_are_integrals(scheme, seed, weight):
    b, g, y = case(scheme, seed)
    one = fit(b, g, y, 4, "anisotropic", weight)
    first = made_fit(one.coef[0], one.mu[0], one.R[0])
    R = one.R[0]
    want = quadrature_indices(lambda q: signal_at(first, q @ R.T), lambda r: first.pdf(r @ R.T)[0], one.mu[0])
    for name in INDEX_NAMES:
        got, expected = (1 / first.index(name)[0], 1 / want[name]) if name == "qiv" else (first.index(name)[0], want[name])
        assert abs(got - expected) <= 1e-10 * scale_of(first, name)[0] + 1e-12, name
    mass = oracle.integrate(lambda r: first.pdf(r @ R.T)[0], one.mu[0], "r")
    energy = oracle.integrate(lambda q: signal_at(first, q @ R.T) ** 2, one.mu[0], "q", power=2)
    assert mass == pytest.approx(1, rel=1e-10)
    assert energy == pytest.approx(want["e2"], rel=1e-10)
    assert energy == pytest.approx((one.coef[0] ** 2).sum() / (8 * pi**1.5 * np.prod(one.mu[0])), rel=1e-10)


@given(schemes, seeds, bases)
def test_5_finite_differences(scheme, seed, basis):
    """MSD is -laplacian E(0) / 4 pi^2: step .3 / mm."""
    one = fit(*case(scheme, seed), 6, basis, 0.2)
    h, steps = 0.3, np.vstack([np.eye(3), -np.eye(3)])
    table = phantom.table(np.full(6, (2 * pi * h) ** 2 * TAU), steps)
    lap = (one.predict(table, S0=1).sum(1) - 6) / h**2
    np.testing.assert_allclose(one.msd(), -lap / (4 * pi**2), rtol=1e-2)


@given(schemes, seeds, bases, weights)
def test_6_antipodes_and_odf(scheme, seed, basis, weight):
    b, g, y = case(scheme, seed)
    one, rng = fit(b, g, y, 6, basis, weight), np.random.default_rng(seed)
    v = phantom.unit(rng.normal(size=(10, 3)))
    there, back = (
        one.predict(phantom.table(np.full(10, 2500.0), v), S0=1),
        one.predict(phantom.table(np.full(10, 2500.0), -v), S0=1),
    )
    np.testing.assert_allclose(there, back, atol=1e-13 * np.abs(there).max())
    np.testing.assert_allclose(one.pdf(9e-3 * v), one.pdf(-9e-3 * v), atol=1e-13 * np.abs(one.rtop()).max())
    points, w = oracle.sphere_rule(80, 160)
    np.testing.assert_allclose(one.odf(points, 0) @ w, 1, rtol=1e-10)
    np.testing.assert_allclose(one.odf(points, 2) @ w, one.msd(), rtol=1e-10)
    for k in range(VOXELS):
        e = one.R[k, :, 0]
        assert abs(2 * one.odf(e[None], -2)[k, 0] - one.rtap()[k]) <= 1e-10 * scale_of(one, "rtap")[k]
        circle, w_c = oracle.circle_rule(e, 240)
        assert abs(one.odf(circle, -1)[k] @ w_c - one.rtpp()[k]) <= 1e-10 * scale_of(one, "rtpp")[k]


# ---------------------------------------------------------------- 7 and 8: algebra of the indices


def random_coefficients(seed, count, order=6):
    rng = np.random.default_rng(seed)
    a = 0.2 * rng.standard_normal((count, ordering.n_coef(order)))
    a[:, 0] = 1
    return a / (a @ oracle.aniso_origin(order))[:, None], 1e-3 * rng.uniform(2, 12, 3), phantom.random_rotation(rng)


@given(seeds, st.floats(0, 1), orders)
def test_7_linearity(seed, f, order):
    a, mu, R = random_coefficients(seed, 2, order)
    both = np.vstack([a, f * a[:1] + (1 - f) * a[1:]])
    one = made_fit(both, np.tile(mu, (3, 1)), np.tile(R, (3, 1, 1)))
    r = 6e-3 * np.random.default_rng(seed).normal(size=(5, 3))
    table = phantom.table(np.full(5, 2000.0), phantom.unit(r))
    values = [rows(one, name) for name in ("rtop", "rtap", "rtpp", "msd", "qiv")]
    values += [*one.pdf(r).T, *one.predict(table).T, *one.odf(r).T]
    for x in values:
        assert abs(f * x[0] + (1 - f) * x[1] - x[2]) <= 1e-12 * np.abs(x).max()
    q = one.qiv()
    if 0.2 < f < 0.8 and abs(q[0] / q[1] - 1) > 0.5:
        assert abs(f * q[0] + (1 - f) * q[1] - q[2]) > 1e-6 * abs(q[2])  # QIV itself is not linear


@given(seeds, orders)
def test_8_ranges(seed, order):
    a, mu, R = random_coefficients(seed, 3, order)
    one = made_fit(a, np.tile(mu, (3, 1)), np.tile(R, (3, 1, 1)))
    for name in ("ng", "ng_par", "ng_perp", "pa", "pa_dti"):
        assert (one.index(name) >= 0).all()
        assert (one.index(name) <= 1).all()
    theta = np.array([one.theta_po(K) for K in range(8)])
    assert (np.diff(np.cos(theta), axis=0) >= -1e-12).all()
    gaussian = made_fit(np.eye(1, len(a[0])), mu, R)
    assert gaussian.ng()[0] == gaussian.ng_par()[0] == gaussian.ng_perp()[0] == 0
    assert gaussian.pa(0)[0] == pytest.approx(gaussian.pa_dti()[0], abs=1e-6)
    assert np.cos(gaussian.theta_po(1)[0]) == pytest.approx(np.cos(gaussian.theta_po(0)[0]), rel=1e-12)  # g_1 = 0
    bigger = made_fit(3 * a, np.tile(2 * mu, (3, 1)), np.tile(R, (3, 1, 1)))
    for name in ("ng", "ng_par", "ng_perp", "pa_dti"):
        np.testing.assert_allclose(bigger.index(name), one.index(name), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(np.cos(bigger.theta_po()), np.cos(one.theta_po()), rtol=1e-11)


@given(st.floats(2e-3, 12e-3))
@pytest.mark.nojit
def test_8_equal_eigenvalues_have_no_anisotropy(u):
    ball = made_fit(np.eye(1, 7), np.full(3, u), np.eye(3))
    assert ball.pa_dti()[0] == 0
    assert ball.pa()[0] <= 1e-6


# ---------------------------------------------------------------- 9: the path of the weights


@given(schemes, seeds, bases)
def test_9_path_of_weights(scheme, seed, basis):
    """Residual up, norm of the Laplacian down, at fixed scales; coefficients tend to 0 before they are normalised."""
    b, g, y = case(scheme, seed)
    rng = np.random.default_rng(seed)
    scale = 1e-3 * rng.uniform(4, 9, (VOXELS, 3)), phantom.random_rotation(rng, VOXELS)
    table = phantom.table(b, g)
    residual, norm = [], []
    for weight in np.logspace(-5, 3, 17):
        one = mapmri.MapmriModel(table, 4, basis=basis, laplacian=weight).fit(y, scale=scale)
        residual.append(one.rmse() ** 2)
        norm.append(one.S0**2 * one.lapnorm())
    size = (y**2).mean(1)
    assert (np.diff(residual, axis=0) >= -1e-12 * size).all()
    assert (np.diff(norm, axis=0) <= 1e-12 * np.array(norm[0])).all()
    assert (residual[-1] > residual[0]).all()
    assert (norm[-1] < 0.1 * norm[0]).all()


@given(schemes, seeds, bases)
def test_9_gcv_is_the_lowest_of_a_grid(scheme, seed, basis):
    b, g, y = case(scheme, seed)
    one = fit(b, g, y, 4, basis, "gcv")
    q = oracle.qvectors(b, g, TAU)
    for v in range(VOXELS):
        mu = one.mu[v]
        m = oracle.phi_matrix(4, mu, q @ one.R[v])
        whitened = np.linalg.solve(np.linalg.cholesky(oracle.laplacian_matrix(4, mu)), m.T)
        d, vectors = np.linalg.eigh(whitened @ whitened.T)
        d, z2, size = np.maximum(d, 0), (vectors.T @ whitened @ y[v]) ** 2, np.prod(mu) ** (1 / 3)
        grid = np.append(np.logspace(np.log10(5e-8), np.log10(5e-2), 200) / size, one.laplacian_weight[v])[:, None]
        rest = y[v] @ y[v] - 2 * (z2 / (d + grid)).sum(1) + (d * z2 / (d + grid) ** 2).sum(1)
        score = rest / (len(y[v]) - (d / (d + grid)).sum(1)) ** 2
        assert score[-1] <= score[:-1].min() * (1 + 1e-6)


# ---------------------------------------------------------------- 12 and 14: Laplacian, isotropic basis


@given(seeds, st.sampled_from([0, 2, 4, 6, 8]), st.floats(0.1, 10))
def test_12_laplacian_matrix(seed, order, alpha):
    mu, index = 1e-3 * np.random.default_rng(seed).uniform(2, 12, 3), ordering.index_table(order)
    L, scaled, ball = (np.empty((len(index), len(index))) for _ in range(3))
    laplacian.matrix(mu, index, L)
    laplacian.matrix(alpha * mu, index, scaled)
    laplacian.matrix(np.full(3, mu[0]), index, ball)
    assert np.array_equal(L, L.T)
    assert np.linalg.eigvalsh(L)[0] > 0
    np.testing.assert_allclose(scaled, alpha * L, atol=1e-12 * alpha * L.max())
    t = ordering.iso_to_aniso(order)
    want = oracle.iso_laplacian_matrix(order, mu[0])
    np.testing.assert_allclose(t.T @ ball @ t, want, atol=1e-11 * want.max())


@given(schemes, seeds, weights)
def test_14_rotation_of_the_isotropic_basis(scheme, seed, weight):
    """With a given scale no tensor is involved: indices and the energy of each (j, l) stay."""
    b, g, y = case(scheme, seed)
    Q = phantom.random_rotation(np.random.default_rng(seed))
    one, two = (fit(b, d, y, 6, "isotropic", weight, static_diffusivity=0.7e-3) for d in (g, g @ Q.T))
    table = ordering.iso_index_table(one.order)
    groups = sorted({(j, el) for j, el, _ in table.tolist()})
    energy = [np.array([(f.coef[:, (table[:, :2] == k).all(1)] ** 2).sum(1) for k in groups]) for f in (one, two)]
    np.testing.assert_allclose(energy[0], energy[1], atol=bound(weight) * energy[0].max())
    for name in ("rtop", "msd", "qiv", "lapnorm", "pa"):
        off = np.abs(rows(one, name) - rows(two, name))
        assert (off <= bound(weight) * scale_of(one, name) + 1e-7 * (name == "pa")).all(), name
