"""
Signal, propagator, ODF and overlap kernels against quadrature, identities and the golden vectors.
"""

import math

import numpy as np
import oracle
import pytest
from mapmri_nb.directions import OdfField, quadrature, sphere
from oracle import isotropic_scale

from mapmri_nb.kernels import hermite, ordering, propagator
from mapmri_nb.kernels import odf as odf_kernels
from mapmri_nb.kernels.hermite import propagator_rows

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


def golden_a():
    a = np.cos(np.arange(50)) / (1 + np.arange(50))
    return (a / (a @ oracle.aniso_origin(6)))[None], np.array([[8e-3, 5e-3, 4e-3]]), np.eye(3)[None]


def golden_b():
    a = np.r_[1.0, np.cos(np.arange(1, 50)) / (3 * (1 + np.arange(1, 50)))]
    return (a / (a @ oracle.iso_origin(6)))[None], np.full((1, 3), 6e-3), np.eye(3)[None]


def mixture(fractions, tensors, order, tau=0.03, nodes=40):
    """
    L2 projection of a mixture of Gaussians on the basis at the scales of the mean tensor; R =
    identity.
    """
    mean = sum(f * D for f, D in zip(fractions, tensors, strict=True))
    mu = np.sqrt(2 * tau * np.diag(mean))
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    u = np.stack(np.meshgrid(x, x, x, indexing="ij"), -1).reshape(-1, 3)
    weight = np.prod(np.stack(np.meshgrid(w, w, w, indexing="ij"), -1).reshape(-1, 3), 1)
    index, out = ordering.index_table(order), 0.0
    for f, D in zip(fractions, tensors, strict=True):
        # a_n = 8 pi^(3/2) prod(mu) int Psi_n N(0, C) dr = prod-Hermite expectations under the
        # product Gaussian
        C = np.diag(1 / mu) @ (2 * tau * D) @ np.diag(1 / mu)
        S = np.linalg.inv(np.linalg.inv(C) + np.eye(3))
        rows = np.empty((len(u), len(index)))
        points = u @ np.linalg.cholesky(S).T
        propagator_rows(points, np.ones(3), index, rows)
        rows *= np.exp(0.5 * (points**2).sum(1))[:, None]  # leaves the polynomial part
        norm = math.sqrt(np.linalg.det(S) / np.linalg.det(C)) / (2 * math.pi) ** 1.5
        out = out + f * 8 * math.pi**1.5 * norm * (weight @ rows)
    return out[None], mu[None]


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


def test_values_far_out_vanish():
    coef, mu, R = draw(10, 2, 0)
    for real_space, scale in ((False, 1e4), (True, 1.0)):
        assert np.abs(values(coef, mu, R, scale * np.eye(3), real_space)).max() < 1e-200


def test_golden_points():
    coef, mu, R = golden_a()
    assert values(coef, mu, R, np.array([[30.0, -20, 10]]), False)[0, 0] == pytest.approx(
        0.0102010844917, rel=1e-11
    )
    assert values(coef, mu, R, np.array([[2e-3, 3e-3, 4e-3]]), True)[0, 0] == pytest.approx(
        174126.2331, rel=1e-9
    )
    coef, mu, R = golden_b()
    coef = coef @ ordering.iso_to_aniso(6).T
    assert values(coef, mu, R, np.array([[30.0, -20, 10]]), False)[0, 0] == pytest.approx(
        0.311102531111, rel=1e-11
    )
    assert values(coef, mu, R, np.array([[2e-3, 3e-3, 4e-3]]), True)[0, 0] == pytest.approx(
        187417.599797, rel=1e-11
    )


# ---- ODF
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.nojit
def test_golden_odf():
    direction = np.full((1, 3), 1 / math.sqrt(3))
    coef, mu, R = golden_a()
    assert odf(coef, mu, R, direction, 0)[0, 0] == pytest.approx(0.0513568844363, rel=1e-11)
    assert odf(coef, mu, R, direction, 2)[0, 0] == pytest.approx(5.28230337636e-6, rel=1e-11)
    coef, mu, R = golden_b()
    aniso = coef @ ordering.iso_to_aniso(6).T
    for s, want in ((0, 0.0533343038278), (2, -1.71933881342e-6)):
        assert odf(aniso, mu, R, direction, s)[0, 0] == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("order", [4, 6, 10])
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


@pytest.mark.parametrize("order", [2, 6, 10])
@pytest.mark.parametrize("s", [-1.5, 0.0, 2.0])
def test_isotropic_odf_both_ways(order, s):
    rng = np.random.default_rng(order)
    iso = rng.normal(size=(3, ordering.n_coef(order)))
    u0 = 5.5e-3
    directions = sphere(100).vertices
    want = iso @ oracle.iso_odf_matrix(order, u0, directions, s).T
    aniso = np.ascontiguousarray(iso @ ordering.iso_to_aniso(order).T)
    got = odf(aniso, np.full((3, 3), u0), np.stack([np.eye(3)] * 3), directions, s)
    assert np.abs(got - want).max() <= 1e-11 * np.abs(want).max()


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
    coef, mu, R = draw(4, 2, 0)
    out, half = (odf(coef, mu, R, sphere(100).vertices[:n], 2) for n in (100, 50))
    assert np.array_equal(out[:, :50], out[:, 50:])
    assert np.array_equal(out[:, :50], half)


@pytest.mark.parametrize("order", [4, 6, 8])
def test_identities_on_sphere_and_circle(order):
    coef, mu, R = draw(order, 4, order, low=4e-3)
    index, B = ordering.index_table(order), ordering.origin_values(ordering.index_table(order))
    sign = lambda k: (-1.0) ** (k // 2)  # noqa: E731
    points, weights = quadrature(48)
    assert odf(coef, mu, R, points, 0) @ weights == pytest.approx(np.ones(4), abs=1e-10)
    msd = ((1 + 2 * index) @ (mu**2).T).T @ (B[:, None] * np.eye(len(B)))
    msd = (msd * coef).sum(1)
    assert odf(coef, mu, R, points, 2) @ weights == pytest.approx(msd, rel=1e-10)
    rtap = coef @ (sign(index[:, 1] + index[:, 2]) * B) / (2 * math.pi * mu[:, 1] * mu[:, 2])
    rtpp = coef @ (sign(index[:, 0]) * B) / (math.sqrt(2 * math.pi) * mu[:, 0])
    angle = 2 * math.pi * np.arange(160) / 160
    for v in range(4):
        one = (coef[v : v + 1], mu[v : v + 1], R[v : v + 1])
        assert 2 * odf(*one, R[v][:, :1].T, -2)[0, 0] == pytest.approx(rtap[v], rel=1e-10)
        circle = np.cos(angle)[:, None] * R[v][:, 1] + np.sin(angle)[:, None] * R[v][:, 2]
        assert odf(*one, circle, -1).sum() * 2 * math.pi / 160 == pytest.approx(rtpp[v], rel=1e-10)


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
    coef, mu, _ = golden_a()
    u0 = isotropic_scale(mu[0])
    assert u0 == pytest.approx(5.41124834449e-3, rel=1e-11)
    want = {
        0: 0.805034085507,
        3: 0.807887119472,
        5: 0.807931055888,
        10: 0.807931731219,
        20: 0.807931737448,
    }
    for K, value in want.items():
        assert math.sqrt(cosine(coef, mu, u0, K)[0]) == pytest.approx(value, abs=6e-13)
    assert propagator.propagator_anisotropy(cosine(coef, mu, u0, 5))[0] == pytest.approx(
        0.987093912327, abs=6e-13
    )
    dti = propagator.gaussian_cosine(mu, np.array([u0]))
    assert math.sqrt(dti[0]) == pytest.approx(0.94051535878, abs=6e-12)
    assert propagator.propagator_anisotropy(dti)[0] == pytest.approx(0.863923269805, abs=6e-13)
    coef, mu, _ = golden_b()
    got = cosine(np.ascontiguousarray(coef @ ordering.iso_to_aniso(6).T), mu, 6e-3, 5)
    assert math.sqrt(got[0]) == pytest.approx(0.965278541684, abs=6e-13)
    norms, radial = ordering.iso_norms(6), ordering.iso_index_table(6)[:, 1] == 0
    assert got == pytest.approx(
        (coef**2 * norms)[:, radial].sum(1) / (coef**2 * norms).sum(1), rel=1e-13
    )


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


def test_pa_grows_towards_the_spherical_mean():
    mu = np.sqrt(2 * np.array([[1.7, 0.3, 0.3]]) * 1e-3 * 0.03)
    coef, u0 = np.ones((1, 1)), isotropic_scale(mu[0])
    for K, sine in ((0, 0.46252), (2, 0.45735), (3, 0.45721), (5, 0.45710)):
        assert math.sqrt(1 - cosine(coef, mu, u0, K)[0]) == pytest.approx(sine, abs=6e-6)
    coef, mu, _ = draw(6, 20, 5)
    steps = [cosine(coef, mu, 5e-3, K) for K in range(8)]
    assert np.all(np.diff(steps, axis=0) >= -1e-14)
    assert np.all((steps[-1] >= 0) & (steps[-1] <= 1 + 1e-14))


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


def test_ng_of_a_gaussian_in_the_isotropic_basis_tends_to_zero():
    """
    Projection of one Gaussian (1.7, .3, .3) on the functions at u0: sine .052, .026, .013 at orders
    6, 8, 10.
    """
    tensor_mu = np.sqrt(2 * np.array([1.7, 0.3, 0.3]) * 1e-3 * 0.03)
    u0 = isotropic_scale(tensor_mu)
    x, w = np.polynomial.hermite_e.hermegauss(60)
    for order, want in ((6, 0.052), (8, 0.026), (10, 0.013)):
        one = np.zeros(
            (3, order + 1)
        )  # separable: one-dimensional projections, h_n with weight of the product Gaussian
        for i, m in enumerate(tensor_mu):
            s = 1 / math.sqrt(1 + (u0 / m) ** 2)  # in units of u0
            for n in range(order + 1):
                polynomial = np.polynomial.polynomial.polyval(
                    x * s, ordering.hermite_coefficients(n)
                )
                one[i, n] = w @ polynomial * s / m
        coef = np.prod([one[i, ordering.index_table(order)[:, i]] for i in range(3)], axis=0)[None]
        cos2 = cosine(coef, np.full((1, 3), u0), tensor_mu[None], 0)
        assert math.sqrt(1 - cos2[0]) == pytest.approx(want, abs=6e-4)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("X60", 0.31979533), ("X90", 0.28832530)],
)
def test_pa_of_mixtures_approaches_the_table_with_the_order(name, limit):
    D0 = np.diag([1.7e-3, 0.3e-3, 0.3e-3])
    if name == "X60":
        c, d = math.cos(math.pi / 6), math.sin(math.pi / 6)
        turns = [np.array([[c, -sign * d, 0], [sign * d, c, 0], [0, 0, 1]]) for sign in (1, -1)]
        fractions, tensors = (0.5, 0.5), [Q @ D0 @ Q.T for Q in turns]
    else:
        fractions, tensors = (0.6, 0.4), [D0, np.diag([0.3e-3, 1.7e-3, 0.3e-3])]
    for order, bound in (
        (2, 1e-2),
        (6, 3e-4),
        (10, 2e-5),
    ):  # the error falls: measured 9.9e-3, 2.8e-4, 1.8e-5
        coef, mu = mixture(fractions, tensors, order)
        sine = math.sqrt(1 - cosine(coef, mu, isotropic_scale(mu[0]), 20)[0])
        assert 0.5 * bound / 12 < abs(sine - limit) < bound


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
