"""
The oracle itself: against quadrature, finite differences, and every printed digit of the reference.
"""

from math import gamma, pi, sqrt

import numpy as np
import oracle
import pytest
import truth
from scipy import special
from truth import assert_digits

pytestmark = pytest.mark.nojit  # nothing here is compiled
MU = np.array([8e-3, 5e-3, 4e-3])
TAU = 0.03


# ---------------------------------------------------------------- bases


def test_tables():
    assert oracle.aniso_table(2).tolist() == [
        [0, 0, 0], [2, 0, 0], [1, 1, 0], [0, 2, 0], [1, 0, 1], [0, 1, 1], [0, 0, 2]]  # fmt: skip
    block = [
        "400",
        "310",
        "220",
        "130",
        "040",
        "301",
        "211",
        "121",
        "031",
        "202",
        "112",
        "022",
        "103",
        "013",
        "004",
    ]
    assert ["".join(map(str, n)) for n in oracle.aniso_table(4)[7:].tolist()] == block
    iso = (
        [(1, 0, 0)]
        + [(1, 2, m) for m in range(-2, 3)]
        + [(2, 0, 0)]
        + [(1, 4, m) for m in range(-4, 5)]
    )
    iso += [(2, 2, m) for m in range(-2, 3)] + [(3, 0, 0)]
    assert [tuple(row) for row in oracle.iso_table(4).tolist()] == iso
    for order, count in zip(range(0, 13, 2), (1, 7, 22, 50, 95, 161, 252), strict=True):
        assert len(oracle.aniso_table(order)) == len(oracle.iso_table(order)) == count
        assert oracle.order_of(np.zeros(count)) == order


@pytest.mark.parametrize("space", ["q", "r"])
def test_orthogonality_by_quadrature(space):
    x, w = oracle.gauss_hermite(12, oracle.scales(MU, space, 2))
    m = (oracle.phi_matrix if space == "q" else oracle.psi_matrix)(6, MU, x)
    np.testing.assert_allclose(m.T * w @ m * 8 * pi**1.5 * np.prod(MU), np.eye(50), atol=1e-12)
    u = np.full(3, 6e-3)
    x, w = oracle.gauss_hermite(12, oracle.scales(u, space, 2))
    m = (oracle.iso_phi_matrix if space == "q" else oracle.iso_psi_matrix)(6, 6e-3, x)
    norms = np.sqrt(oracle.iso_norms(6, 6e-3))
    np.testing.assert_allclose(m.T * w @ m / np.outer(norms, norms), np.eye(50), atol=1e-12)


def test_fourier_pair_and_origin():
    q = np.array([[0, 0, 0], [30.0, -20, 10], [5, 40, 60]])
    r, w = oracle.gauss_hermite(30, np.sqrt(2) * MU)
    kernel = w * np.exp(-2j * pi * q @ r.T)
    np.testing.assert_allclose(
        kernel @ oracle.psi_matrix(6, MU, r), oracle.phi_matrix(6, MU, q), atol=1e-11
    )
    r, w = oracle.gauss_hermite(30, np.full(3, np.sqrt(2) * 6e-3))
    kernel = w * np.exp(-2j * pi * q @ r.T)
    np.testing.assert_allclose(
        kernel @ oracle.iso_psi_matrix(6, 6e-3, r), oracle.iso_phi_matrix(6, 6e-3, q), atol=1e-11
    )
    np.testing.assert_allclose(oracle.phi_matrix(6, MU, q)[0], oracle.aniso_origin(6), atol=1e-14)
    np.testing.assert_allclose(
        oracle.iso_phi_matrix(6, 6e-3, q)[0], oracle.iso_origin(6), atol=1e-14
    )
    assert [oracle.iso_origin(6)[i] for i in (0, 6, 21, 49)] == pytest.approx(
        [1, 3 / 2, 15 / 8, 35 / 16], rel=1e-15
    )


def test_harmonics():
    expected = (-0.13342072, -0.24418248, 0.23810509, -0.47975990, 0.18329646)
    for m, value in zip(range(-2, 3), expected, strict=True):
        assert_digits(oracle.real_sh(2, m, 0.7, 1.1), f"{value:.8f}")
    v, w = oracle.sphere_rule()
    _, theta, phi = oracle.angles(v)
    y = np.array(
        [oracle.real_sh(el, m, theta, phi) for el in range(0, 9, 2) for m in range(-el, el + 1)]
    )
    np.testing.assert_allclose(y * w @ y.T, np.eye(len(y)), atol=1e-13)


def test_map_between_bases():
    t = oracle.iso_to_aniso(2)[1:, 1:]
    expected = np.zeros((6, 6))
    expected[0, [0, 2, 5]], expected[2, [0, 2, 5]] = (
        (0.684653, -0.395285, 0.707107),
        (-0.684653, -0.395285, 0.707107),
    )
    expected[1, 4], expected[3, 1], expected[4, 3] = 0.968246, -0.968246, -0.968246
    expected[5, [2, 5]] = 0.790569, 0.707107
    np.testing.assert_allclose(t, expected, atol=5.01e-7)
    order, u = 8, 6e-3
    t, n, jlm = (
        oracle.iso_to_aniso(order),
        oracle.aniso_table(order).sum(1),
        oracle.iso_table(order),
    )
    leak = t[n[:, None] != (jlm[:, 1] + 2 * jlm[:, 0] - 2)]
    assert np.abs(leak).max() < 1e-13
    d = [2 / sqrt(pi) * gamma(j + el + 0.5) / (2**el * gamma(j)) for j, el, _ in jlm.tolist()]
    np.testing.assert_allclose(t.T @ t, np.diag(d), atol=1e-12)
    x = np.random.default_rng(0).normal(0, 40, (20, 3))
    np.testing.assert_allclose(
        oracle.phi_matrix(order, [u] * 3, x) @ t, oracle.iso_phi_matrix(order, u, x), atol=1e-12
    )
    for k in range(order // 2 + 1):
        radial = t[:, np.flatnonzero((jlm == (k + 1, 0, 0)).all(1))[0]]
        np.testing.assert_allclose(
            radial[n == 2 * k], oracle.aniso_origin(order)[n == 2 * k], atol=1e-12
        )


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_bases_of_dipy():
    mapmri = pytest.importorskip("dipy.reconst.mapmri")
    x = np.random.default_rng(0).normal(0, 30, (20, 3))
    r = x * 2e-4
    np.testing.assert_allclose(
        oracle.phi_matrix(6, MU, x), mapmri.mapmri_phi_matrix(6, MU, x), atol=1e-12
    )
    want = mapmri.mapmri_psi_matrix(6, MU, r)
    np.testing.assert_allclose(oracle.psi_matrix(6, MU, r), want, atol=1e-12 * np.abs(want).max())
    want = mapmri.mapmri_isotropic_phi_matrix(6, 6e-3, x)
    np.testing.assert_allclose(oracle.iso_phi_matrix(6, 6e-3, x), want, atol=1e-12)
    want = mapmri.mapmri_isotropic_psi_matrix(6, 6e-3, r)
    np.testing.assert_allclose(
        oracle.iso_psi_matrix(6, 6e-3, r), want, atol=1e-12 * np.abs(want).max()
    )


# ---------------------------------------------------------------- Laplacian


def test_laplacian_by_quadrature():
    r, w = oracle.gauss_hermite(14, MU)
    psi = oracle.psi_matrix(6, MU, r) * (r**2).sum(1)[:, None]
    lap = oracle.laplacian_matrix(6, MU)
    np.testing.assert_allclose(lap, 16 * pi**4 * (psi.T * w @ psi), atol=1e-12 * lap.max())
    r, w = oracle.gauss_hermite(14, np.full(3, 6e-3))
    psi = oracle.iso_psi_matrix(6, 6e-3, r) * (r**2).sum(1)[:, None]
    lap = oracle.iso_laplacian_matrix(6, 6e-3)
    np.testing.assert_allclose(lap, 16 * pi**4 * (psi.T * w @ psi), atol=1e-12 * lap.max())
    t = oracle.iso_to_aniso(6)
    np.testing.assert_allclose(
        t.T @ oracle.laplacian_matrix(6, [6e-3] * 3) @ t, lap, atol=1e-12 * lap.max()
    )
    assert np.linalg.eigvalsh(lap)[0] > 0


def test_laplacian_by_differences():
    a, h = oracle.random_coefficients(4)[0], 0.3
    q, w = oracle.gauss_hermite(14, oracle.scales(MU, "q", 2))
    stencil = -6 * oracle.phi_matrix(4, MU, q)
    for step in np.vstack([np.eye(3), -np.eye(3)]):
        stencil += oracle.phi_matrix(4, MU, q + h * step)
    assert w @ (stencil @ a / h**2) ** 2 == pytest.approx(
        a @ oracle.laplacian_matrix(4, MU) @ a, rel=1e-3
    )


# ---------------------------------------------------------------- indices


@pytest.mark.parametrize("order", [0, 2, 6])
def test_indices_by_quadrature(order):
    a, a_iso = oracle.random_coefficients(order)
    got = oracle.aniso_indices(a, MU)
    want = oracle.quadrature_indices(
        lambda q: oracle.phi_matrix(order, MU, q) @ a,
        lambda r: oracle.psi_matrix(order, MU, r) @ a,
        MU,
    )
    assert {k: got[k] for k in want} == pytest.approx(
        want, rel=1e-10, abs=1e-7 if order == 0 else 0
    )

    u, turn = (
        6e-3,
        truth.rotation(2, 30) @ truth.rotation(1, 50),
    )  # e1 anywhere in the frame of the isotropic basis
    got = oracle.iso_indices(a_iso, u, turn[:, 0])
    want = oracle.quadrature_indices(lambda q: oracle.iso_phi_matrix(order, u, q @ turn.T) @ a_iso,
                              lambda r: oracle.iso_psi_matrix(order, u, r @ turn.T) @ a_iso, [u] * 3)  # fmt: skip
    for k in ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm", "e2"):
        assert got[k] == pytest.approx(want[k], rel=1e-10)
    assert oracle.iso_ng(a_iso, u, [u] * 3, turn) == pytest.approx(want["ng"], rel=1e-7, abs=1e-7)


def test_msd_by_differences():
    a, h = oracle.random_coefficients(6)[0], 0.1
    e = oracle.phi_matrix(6, MU, np.vstack([np.zeros(3), h * np.eye(3)])) @ a
    assert -2 * (e[1:] - e[0]).sum() / h**2 / (4 * pi**2) == pytest.approx(
        oracle.aniso_indices(a, MU)["msd"], rel=1e-3
    )


@pytest.mark.parametrize("s", [-2, -1, 0, 2])
def test_odf_by_quadrature(s):
    a, a_iso = oracle.random_coefficients(4)
    v = np.array([[1.0, 0, 0], [0.6, 0, 0.8], [2 / 3, -1 / 3, 2 / 3]])

    def radial(f):
        t, w = special.roots_legendre(200)
        r = (t + 1) * 0.04  # 80 um, ten times the longest scale
        return np.array([0.04 * w @ (f(r[:, None] * d) * r ** (2 + s)) for d in v])

    got = oracle.odf_matrix(4, MU, v, s) @ a
    np.testing.assert_allclose(got, radial(lambda r: oracle.psi_matrix(4, MU, r) @ a), rtol=1e-9)
    got = oracle.iso_odf_matrix(4, 6e-3, v, s) @ a_iso
    np.testing.assert_allclose(
        got, radial(lambda r: oracle.iso_psi_matrix(4, 6e-3, r) @ a_iso), rtol=1e-9
    )


def test_odf_identities():
    mu = np.array([6e-3, 5e-3, 4e-3])
    a = oracle.random_coefficients(4)[0]
    v, w = oracle.sphere_rule(40, 60)
    index = oracle.aniso_indices(a, mu)
    assert w @ oracle.odf_matrix(4, mu, v, 0) @ a == pytest.approx(1, rel=1e-9)
    assert w @ oracle.odf_matrix(4, mu, v, 2) @ a == pytest.approx(index["msd"], rel=1e-9)
    assert 2 * oracle.odf_matrix(4, mu, np.eye(3)[:1], -2) @ a == pytest.approx(
        index["rtap"], rel=1e-12
    )
    v, w = oracle.circle_rule([1.0, 0, 0])
    assert w @ oracle.odf_matrix(4, mu, v, -1) @ a == pytest.approx(index["rtpp"], rel=1e-10)


def test_u0():
    rng = np.random.default_rng(0)
    for mu in np.vstack([rng.uniform(1e-3, 1e-1, (200, 3)), np.full((1, 3), 5e-3)]):
        u, m = oracle.isotropic_scale(mu) ** 2, mu**2
        assert abs(np.sum((m - u) / (m + u))) < 1e-11


def test_pa_against_the_spherical_mean():
    a = oracle.random_coefficients(4)[0]
    mu = np.array([6e-3, 4e-3, 4.5e-3])
    v, w = oracle.sphere_rule(40, 80)
    t, wt = special.roots_legendre(150)
    r, wt = (t + 1) * 0.025, wt * 0.025
    mean = np.array([w @ (oracle.psi_matrix(4, mu, x * v) @ a) for x in r]) / (4 * pi)
    cos2 = 4 * pi * np.sum(wt * r**2 * mean**2) / oracle.aniso_indices(a, mu)["e2"]
    assert oracle.pa_cos2(a, mu, 20) == pytest.approx(cos2, rel=1e-8)
    values = [oracle.pa_cos2(a, mu, k) for k in range(8)]
    assert np.all(np.diff(values) >= -1e-15)
    a = oracle.random_coefficients(4)[1]
    radial = oracle.pa_rescale(oracle.pa_cos2(oracle.iso_to_aniso(4) @ a, [6e-3] * 3, 2))
    assert radial == pytest.approx(oracle.iso_indices(a, 6e-3, [1, 0, 0])["pa"], rel=1e-10)


@pytest.mark.parametrize(
    ("values", "sines"),
    [((1.7, 0.3, 0.3), {0: ".46252", 2: ".45735", 3: ".45721", 5: ".45710", 10: ".4570955"}),
     ((2.2, 0.1, 0.1), {0: ".71087", 2: ".69972", 3: ".69903", 5: ".69757", 10: ".69715"})],
)  # fmt: skip
def test_pa_of_one_gaussian(values, sines):
    mu, one = np.sqrt(2e-3 * np.array(values) * TAU), np.ones(1)
    for k, text in sines.items():
        assert_digits(sqrt(1 - oracle.pa_cos2(one, mu, k)), text)
    assert oracle.pa_cos2(one, mu, 1) == pytest.approx(oracle.pa_cos2(one, mu, 0), rel=1e-13)
    got = oracle.aniso_indices(one, mu, k_max=0)
    assert got["pa"] == pytest.approx(got["pa_dti"], rel=1e-13)


def test_pa_by_fit():
    b, g = truth.scheme_3x90()
    fractions, tensors = truth.MIXTURES["X60"]
    mu, turn = truth.mixture_frame(fractions, tensors, TAU)
    y, q = truth.mixture_signal(fractions, tensors, b, g), oracle.qvectors(b, g, TAU)
    a = oracle.constrained_lstsq(oracle.phi_matrix(6, mu, q @ turn), y, oracle.aniso_origin(6))
    sine = [sqrt(1 - oracle.pa_cos2(a, mu, 3)), sqrt(1 - oracle.pa_fit_cos2(a, mu, y, q, 3))]
    assert sine[0] <= sine[1] <= sine[0] + 0.016  # the projection has the smallest angle


# ---------------------------------------------------------------- golden vectors


def test_golden_a():
    mu, a, total, want = truth.golden_a()
    got = oracle.aniso_indices(a, mu)
    u0 = oracle.isotropic_scale(mu)
    got |= {
        "sum": total,
        "u0": u0,
        "cos_dti": sqrt(8 * u0**3 * np.prod(mu) / np.prod(mu**2 + u0**2)),
    }
    got["E"] = (oracle.phi_matrix(6, mu, truth.GOLDEN_Q) @ a)[0]
    got["P"] = (oracle.psi_matrix(6, mu, truth.GOLDEN_R) @ a)[0]
    got |= {f"odf{s}": (oracle.odf_matrix(6, mu, truth.GOLDEN_V, s) @ a)[0] for s in (0, 2)}
    for k, value in want["cos"].items():
        assert_digits(sqrt(oracle.pa_cos2(a, mu, k)), value)
    for key in want.keys() - {"cos"}:
        assert_digits(got[key], want[key])


def test_golden_b():
    u, a, total, want = truth.golden_b()
    got = oracle.iso_indices(a, u, [1, 0, 0])
    herm = oracle.iso_to_aniso(6) @ a
    got |= {"sum": total, "cos": sqrt(oracle.pa_cos2(herm, [u] * 3))}
    got["E"] = (oracle.iso_phi_matrix(6, u, truth.GOLDEN_Q) @ a)[0]
    got["P"] = (oracle.iso_psi_matrix(6, u, truth.GOLDEN_R) @ a)[0]
    got |= {f"odf{s}": (oracle.iso_odf_matrix(6, u, truth.GOLDEN_V, s) @ a)[0] for s in (0, 2)}
    for key in want:
        assert_digits(got[key], want[key])
    mapped = oracle.aniso_indices(herm, [u] * 3)
    for key in ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm", "e2", "pa"):
        assert mapped[key] == pytest.approx(got[key], rel=1e-12)


def test_golden_c():
    b, g, y, tau, mu, want = truth.golden_c()
    m, lap = oracle.phi_matrix(6, mu, oracle.qvectors(b, g, tau)), oracle.laplacian_matrix(6, mu)
    np.testing.assert_allclose(
        truth.mixture_frame(*truth.crossing(np.degrees(0.5)), tau)[0], mu, rtol=1e-11
    )
    weight = oracle.gcv_weight(m, lap, y, mu)
    assert_digits(weight, want["weight"])
    v, trace = oracle.gcv(m, lap, y, weight)
    assert_digits(v, want["V"])
    assert trace == pytest.approx(want["trace"], abs=1e-4)
    a = oracle.penalised_lstsq(m, lap, y, 0.0)
    assert_digits(np.sum((y - m @ a) ** 2), want["ls_residual2"])
    assert_digits(a @ oracle.aniso_origin(6), want["ls_sum"])
    for weight in (0.05, 0.2):
        a = oracle.penalised_lstsq(m, lap, y, weight)
        a /= a @ oracle.aniso_origin(6)
        got = oracle.aniso_indices(a, mu) | {"cos": sqrt(oracle.pa_cos2(a, mu, 5))}
        for key, value in want[weight].items():
            assert_digits(got[key], value)


def test_motzkin():
    a = np.array([truth.MOTZKIN.get(tuple(n), 0.0) for n in oracle.aniso_table(6).tolist()])
    assert a @ oracle.aniso_origin(6) == pytest.approx(1, rel=1e-14)
    r = np.random.default_rng(0).normal(0, 1, (500, 3))
    x, y = r[:, 0] ** 2, r[:, 1] ** 2
    p = (
        0.25
        * (x * x * y + x * y * y - 3 * x * y + 1)
        * np.exp(-(r**2).sum(1) / 2)
        / ((2 * pi) ** 1.5 * np.prod(MU))
    )
    np.testing.assert_allclose(oracle.psi_matrix(6, MU, r * MU) @ a, p, atol=1e-13 * p.max())


# ---------------------------------------------------------------- fits


@pytest.mark.parametrize("basis", ["anisotropic", "isotropic"])
def test_fit_of_one_gaussian(basis):
    """
    b0 volumes at b = 5, a turned tensor, any signal scale: the anisotropic basis is exact at every
    order.
    """
    b, g = truth.scheme_hcp()
    values = (1.7, 0.5, 0.2) if basis == "anisotropic" else (0.9, 0.8, 0.75)
    mixture = [1.0], [truth.axis_tensor(values, truth.rotation(2, 40) @ truth.rotation(0, 20))]
    y = 700 * truth.mixture_signal(*mixture, b, g)
    got, want = oracle.fit(y, b, g, TAU, 6, basis=basis), truth.mixture_truth(*mixture, TAU)
    np.testing.assert_allclose(got["tensor"], mixture[1][0], atol=1e-15)
    assert np.linalg.norm(got["R"] @ got["R"].T - np.eye(3)) < 1e-13
    if basis == "anisotropic":
        index = oracle.aniso_indices(got["coef"], got["mu"])
        assert got["S0"] == pytest.approx(700, rel=1e-12)
        assert got["r2"] == pytest.approx(1, abs=1e-14)
        for key in ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm", "pa_dti"):
            assert index[key] == pytest.approx(want[key], rel=1e-9)
        assert index["ng"] < 1e-9
    # truncation error alone, and the same answer from the Hermite coefficients in the tensor's
    # frame
    else:
        index = oracle.iso_indices(got["coef"], got["mu"][0], got["R"][:, 0])
        mapped = oracle.aniso_indices(got["hermite"], got["mu"])
        for key in ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm", "e2"):
            assert mapped[key] == pytest.approx(index[key], rel=1e-9)
        assert index["rtop"] == pytest.approx(want["rtop"], rel=1e-3)


def test_tensor_fit():
    b, g = truth.scheme_hcp()
    assert len(b) == 288
    assert np.sum(b < 50) == 18
    np.testing.assert_allclose(np.linalg.norm(g, axis=1), 1, rtol=1e-13)
    d = truth.axis_tensor((1.7, 0.5, 0.05), truth.rotation(2, 40))
    y = 5 * truth.mixture_signal([1.0], [d], b, g)
    y[[3, 50, 51]] = np.nan, 0.0, -1.0  # left out of the logarithm
    mu, turn, values = oracle.fit_tensor(y, b, g, TAU)
    np.testing.assert_allclose(values, [1.7e-3, 0.5e-3, 1e-4], rtol=1e-9)  # the last is the floor
    np.testing.assert_allclose(mu**2 / (2 * TAU), values, rtol=1e-14)
    np.testing.assert_allclose(turn @ np.diag([1.7e-3, 0.5e-3, 0.05e-3]) @ turn.T, d, atol=1e-13)
    far = b > 2100
    y[far] = 1.0  # above the threshold: not used
    np.testing.assert_allclose(oracle.fit_tensor(y, b, g, TAU)[2], values, rtol=1e-9)
    assert oracle.fit_tensor(y, b, g, TAU, bval_threshold=None)[2][0] < 1.5e-3
    assert oracle.scale_S0(y[:1], b[:1], g[:1], d) == pytest.approx(5, rel=1e-12)


def test_bases_agree_at_equal_scale():
    b, g, y, tau, _, _ = truth.golden_c()
    turn = truth.rotation(1, 25)
    scale = np.full(3, 6e-3), turn
    for weight in (0.0, 0.05):
        one = oracle.fit(y, b, g, tau, 6, weight, scale=scale)
        two = oracle.fit(y, b, g, tau, 6, weight, "isotropic", scale=scale)
        np.testing.assert_allclose(two["hermite"], one["coef"], atol=1e-9)
        assert two["rmse"] == pytest.approx(one["rmse"], rel=1e-10)


@pytest.mark.parametrize(("order", "ng"), [(6, ".052"), (8, ".026"), (10, ".013")])
def test_ng_of_the_isotropic_basis(order, ng):
    mu = np.sqrt(2e-3 * TAU * np.array([1.7, 0.3, 0.3]))
    u = oracle.isotropic_scale(mu)
    r, w = oracle.gauss_hermite(order + 4, np.sqrt(2 / (1 / u**2 + 1 / mu**2)))
    a = (
        (w * oracle.psi_matrix(0, mu, r)[:, 0])
        @ oracle.iso_psi_matrix(order, u, r)
        / oracle.iso_norms(order, u)
    )
    assert oracle.iso_ng(a, u, mu, np.eye(3)) == pytest.approx(
        float(ng), rel=0.02
    )  # .05148 is printed as .052


def test_bias_of_the_laplacian():
    """The default weight biases a noise-free Gaussian: reference 7."""
    b, g = truth.scheme_3x60()
    tau, mixture = 0.0365 - 0.0157 / 3, truth.MIXTURES["(1.7,.3,.3)"]
    y, want = truth.mixture_signal(*mixture, b, g), truth.mixture_truth(*mixture, tau)
    for weight, ratios in (
        (0.2, "1.277 1.098 1.013 .958"),
        (0.05, "1.221"),
        (0.01, "1.136"),
        (1e-3, "1.013"),
        (0, "1.000"),
    ):
        got = oracle.fit(y, b, g, tau, 6, weight)
        index = oracle.aniso_indices(got["coef"], got["mu"])
        for key, text in zip(("rtop", "rtap", "rtpp", "msd"), ratios.split(), strict=False):
            assert_digits(index[key] / want[key], text)


def test_identifiability():
    """Null space of S shells plus b = 0: n_coef(N - 2S) - 1."""
    b, g = truth.scheme([150] * 3, [1000, 2000, 3000])
    mu = np.sqrt(2e-3 * TAU * np.array([1.7, 0.3, 0.3]))
    for order, null in ((6, 0), (8, 6), (10, 21)):
        m = oracle.phi_matrix(order, mu, oracle.qvectors(b, g, TAU))
        values = np.linalg.svd(m, compute_uv=False)
        assert np.sum(values < 1e-11 * values[0]) == null


def test_gcv_robust_form():
    b, g, y, tau, mu, _ = truth.golden_c()
    m, lap = oracle.phi_matrix(6, mu, oracle.qvectors(b, g, tau)), oracle.laplacian_matrix(6, mu)
    c = np.linalg.cholesky(lap)
    a = np.linalg.solve(c, m.T)
    d, v = np.linalg.eigh(a @ a.T)
    z = v.T @ a @ y
    for weight in (1e-3, 0.05, 1.0):
        trace = np.sum(d / (d + weight))
        rest = y @ y - 2 * np.sum(z**2 / (d + weight)) + np.sum(d * z**2 / (d + weight) ** 2)
        assert oracle.gcv(m, lap, y, weight) == pytest.approx(
            (len(y) * rest / (len(y) - trace) ** 2, trace), rel=1e-10
        )
        coef = np.linalg.solve(c.T, v @ (z / (d + weight)))
        np.testing.assert_allclose(oracle.penalised_lstsq(m, lap, y, weight), coef, atol=1e-10)
