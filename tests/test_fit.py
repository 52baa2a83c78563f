"""
What a fit can tell: volumes, prediction, both bases at equal scales, saved fits, known answers of
whole fits.
"""

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose
from phantom import INDEX_NAMES, TAU
from truth import LS_RATIOS, assert_digits

import mapmri_nb as mapmri

BOTH = ["anisotropic", "isotropic"]
FREE = ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm")  # indices both bases have


@pytest.fixture(scope="module")
def fits(gtab, data):
    """A fit of each basis over a mask, one voxel of it without signal."""
    volume, mask = data.reshape(2, 3, 4, -1).copy(), np.ones((2, 3, 4), bool)
    mask[0, 0, 1] = mask[1, 2] = False
    volume[0, 1, 1] = 0.0
    return {basis: mapmri.MapmriModel(gtab, 6, basis=basis).fit(volume, mask) for basis in BOTH}


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize(("scheme_name", "order", "name", "ratios"), LS_RATIOS)
def test_least_squares_ratios(scheme_name, order, name, ratios):
    """
    Reference 9.1, all printed digits, mu and R given.

    They are of the fit with E(0) = 1 as an equality; ours is free and normalised. The digits are
    the same because N = 2 S: (|q|^2 - q_1^2) .. (|q|^2 - q_S^2) times the Gaussian lies in the
    basis, vanishes on all S shells and so fits b = 0 exactly, for any value there: noise-free, the
    free fit has E(0) = 1 by itself.
    """
    b, g = truth.scheme_3x90() if scheme_name == "3x90" else truth.scheme_mgh()
    mixture = truth.MIXTURES[name]
    mu, turn = truth.mixture_frame(*mixture, TAU)
    model = mapmri.MapmriModel(phantom.table(b, g), order, laplacian=None)
    fit, want = (
        model.fit(500 * truth.mixture_signal(*mixture, b, g), scale=(mu, turn)),
        truth.mixture_truth(*mixture, TAU),
    )
    assert fit.S0[0] == pytest.approx(500, rel=1e-9)
    for index, text in zip(("rtop", "rtap", "rtpp", "msd", "qiv"), ratios.split(), strict=True):
        assert_digits(fit.index(index) / want[index], text)


@pytest.mark.parametrize(
    "values", [(1.7, 0.3, 0.3), (1.7, 0.5, 0.2), (0.9, 0.8, 0.75), (3.0, 3.0, 3.0)]
)
@pytest.mark.parametrize(("make", "order"), [("hcp", 6), ("mgh", 8)])
def test_one_gaussian_is_exact(values, make, order, rng):
    """
    Noise-free, through the tensor fit, in any frame: within max(1e-9, 1e-14 cond(M)^2) where
    cond(M) < 2e4.
    """
    b, g = truth.scheme_hcp() if make == "hcp" else truth.scheme_mgh()
    model = mapmri.MapmriModel(phantom.table(b, g), order, laplacian=None)
    for _ in range(2):
        R = phantom.random_rotation(rng)
        fit = model.fit(800 * truth.mixture_signal([1.0], [truth.axis_tensor(values, R)], b, g))
        mu = np.sqrt(2e-3 * TAU * np.array(values))
        cond = np.linalg.cond(oracle.phi_matrix(order, mu, oracle.qvectors(b, g, TAU) @ R))
        if cond >= 2e4:
            continue
        tolerance, want = (
            max(1e-9, 1e-14 * cond**2),
            truth.mixture_truth([1.0], [truth.axis_tensor(values)], TAU),
        )
        pa = truth.pa_rescale(oracle.pa_cos2(np.ones(1), mu, 5))
        assert fit.status[0] == 0
        assert fit.S0[0] == pytest.approx(800, rel=tolerance)
        for name in FREE:
            assert fit.index(name)[()] == pytest.approx(want[name], rel=tolerance), name
        for name in ("ng", "ng_par", "ng_perp"):
            assert fit.index(name)[()] <= tolerance, name
        assert fit.pa()[()] == pytest.approx(pa, abs=max(1e-9, tolerance))


@pytest.mark.parametrize("order", [pytest.param(2, marks=pytest.mark.nojit), 6])
def test_in_span_signals_are_recovered(scheme, gtab, order, rng):
    """Reference 9.5: any signal inside the basis comes back."""
    mu, R = np.array([8e-3, 5e-3, 4e-3]), phantom.random_rotation(rng)
    m = oracle.phi_matrix(order, mu, oracle.qvectors(*scheme, TAU) @ R)
    a = rng.normal(size=m.shape[1])
    a[0] = 5
    a /= a @ oracle.aniso_origin(order)
    fit = mapmri.MapmriModel(gtab, order, laplacian=None).fit(300 * m @ a, scale=(mu, R))
    assert_allclose(fit.coef[0], a, atol=1e-9)
    assert fit.S0[0] == pytest.approx(300, rel=1e-9)
    assert fit.rmse() < 1e-7
    assert fit.r2() == pytest.approx(1, abs=1e-9)


def test_golden_c():
    """
    Reference 9.2 (c): weight by GCV (to its printed digits), indices at .05 and .2, mu and R given.
    """
    b, g, y, tau, mu, want = truth.golden_c()
    table, scale = phantom.table(b, g, tau), (mu, np.eye(3))
    fit = mapmri.MapmriModel(table, 6, laplacian="gcv", preset="paper").fit(y, scale=scale)
    assert_digits(fit.laplacian_weight[0], want["weight"])
    assert fit.status[0] == mapmri.Status.DROPPED  # the added wave makes some samples negative
    free = mapmri.MapmriModel(table, 6, laplacian=None, preset="paper").fit(y, scale=scale)
    assert_digits(len(b) * free.rmse()[()] ** 2, want["ls_residual2"])
    assert_digits(free.S0[0], want["ls_sum"])
    for weight in (0.05, 0.2):
        fit = mapmri.MapmriModel(table, 6, laplacian=weight, preset="paper").fit(y, scale=scale)
        got = {name: fit.index(name)[()] for name in INDEX_NAMES} | {
            "cos": np.cos(fit.theta_po()[()])
        }
        for name, value in want[weight].items():
            assert_digits(got[name], value)


# ---------------------------------------------------------------- bases


@pytest.mark.parametrize("laplacian", [0.2, 0.05, "gcv", None])
def test_bases_agree_at_equal_scales(gtab, data, laplacian, rng):
    """
    Both span the same space at mu = (u, u, u): same weights, signals and indices to 1e-11, in any
    frame.
    """
    u, R = 6e-3, phantom.random_rotation(rng, len(data))
    scale = (np.full(3, u), R)
    one, two = (
        mapmri.MapmriModel(gtab, 6, basis=basis, laplacian=laplacian).fit(data, scale=scale)
        for basis in BOTH
    )
    tolerance = 1e-11 if laplacian is not None else 1e-8  # cond(M)^2 is 1e6 at this scale
    assert_allclose(two.laplacian_weight, one.laplacian_weight, rtol=1e-7)
    tolerance = 1e-9 if laplacian == "gcv" else tolerance
    for name in FREE:
        a, b = (
            fit.index(name) if name != "qiv" else 1 / fit.index(name) for fit in (one, two)
        )  # 1/QIV passes zero
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max(), name
    assert_allclose(two.pa(), one.pa(), atol=1e-9)
    assert_allclose(two.ng(), one.ng(), rtol=1e-8)  # the reference Gaussian is the same here
    assert_allclose(two.predict(), one.predict(), rtol=0, atol=10 * tolerance * data.max())
    assert_allclose(two.hermite_coef(), one.coef, atol=1e-9)
    assert_allclose(two.rmse(), one.rmse(), rtol=1e-9)


def test_isotropic_coefficients_are_those_of_the_fixed_frame(scheme, gtab, data):
    """Their values do not depend on the tensor's axes; DIPY's order and functions."""
    fit = mapmri.MapmriModel(gtab, 6, basis="isotropic").fit(data[:4])
    q = oracle.qvectors(*scheme, TAU)
    for v in range(4):
        want = fit.S0[v] * oracle.iso_phi_matrix(6, fit.mu[v, 0], q) @ fit.coef[v]
        assert_allclose(fit.predict()[v], want, atol=1e-10 * fit.S0[v])
        assert fit.coef[v] @ oracle.iso_origin(6) == pytest.approx(1, rel=1e-12)
        assert fit.mu[v, 0] == pytest.approx(oracle.isotropic_scale(fit.mu_tensor[v]), rel=1e-12)


def test_ng_of_the_isotropic_basis(gtab, data, fits):
    """The angle to the tensor's Gaussian; sections have no meaning and raise."""
    fit = mapmri.MapmriModel(gtab, 6, basis="isotropic").fit(data[:6])
    for v in range(6):
        u, mu = fit.mu[v], fit.mu_tensor[v]
        r, w = oracle.gauss_hermite(8, np.sqrt(2 / (u**-2 + mu**-2)))
        overlap = w @ (oracle.psi_matrix(0, mu, r)[:, 0] * fit.pdf(r @ fit.R[v].T)[v])
        norms = np.prod(mu * u) * (8 * np.pi**1.5) ** 2 / (fit.hermite_coef()[v] ** 2).sum()
        assert fit.ng()[v] == pytest.approx(np.sqrt(1 - overlap**2 * norms), rel=1e-9)
    for name in ("ng_par", "ng_perp"):
        with pytest.raises(ValueError, match=f"{name}.*isotropic"):
            getattr(fit, name)()
        with pytest.raises(ValueError, match=f"{name}.*isotropic"):
            fit.index(name)


# ---------------------------------------------------------------- volumes and prediction


@pytest.mark.parametrize("basis", BOTH)
def test_volumes_are_nan_outside_and_where_nothing_was_fitted(fits, basis):
    fit = fits[basis]
    fitted = fit.mask.copy()
    fitted[0, 1, 1] = False
    assert (fit.status & mapmri.Status.NO_FIT != 0).sum() == 1
    names = [n for n in mapmri.INDICES if basis == "anisotropic" or n not in ("ng_par", "ng_perp")]
    for name in names:
        volume = fit.index(name)
        assert volume.shape == fit.mask.shape
        assert np.array_equal(np.isfinite(volume), fitted), name
    for volume in (
        fit.rmse(),
        fit.r2(),
        fit.predict()[..., 0],
        fit.odf(np.eye(3))[..., 0],
        fit.pdf(np.zeros((1, 3)))[..., 0],
    ):
        assert np.array_equal(np.isfinite(volume), fitted)
    for name in ("coef", "mu", "mu_tensor", "R", "S0"):
        rows = getattr(fit, name).reshape(len(fit.status), -1)
        assert np.array_equal(np.isfinite(rows).all(1), fit.status & mapmri.Status.NO_FIT == 0), (
            name
        )
    with pytest.raises(KeyError, match="name: 'kurtosis' is none of rtop"):
        fit.index("kurtosis")
    for K in (-1, 1.5):
        with pytest.raises(ValueError, match=f"K must be a whole number from 0, not {K}"):
            fit.pa(K)
    with pytest.raises(ValueError, match=r"points must have shape \(K, 3\): got \(3,\)"):
        fit.pdf(np.zeros(3))


@pytest.mark.parametrize("basis", BOTH)
def test_predict_at_another_table(fits, basis, rng):
    """Other shells, directions and deltas: that table's own tau makes its q."""
    fit = fits[basis]
    g = phantom.unit(rng.normal(size=(20, 3)))
    other = mapmri.GradientTable(np.full(20, 1700.0), g, big_delta=0.06, small_delta=0.012)
    got = fit.predict(other, S0=1)
    assert got.shape == (2, 3, 4, 20)
    rows, q = got[fit.mask], oracle.qvectors(np.full(20, 1700.0), g, 0.06 - 0.004)
    for v in np.flatnonzero(fit.status == 0)[:6]:
        want = oracle.phi_matrix(6, fit.mu[v], q @ fit.R[v]) @ fit.hermite_coef()[v]
        assert_allclose(rows[v], want, atol=1e-11)
    assert_allclose(fit.predict(other)[fit.mask], rows * fit.S0[:, None], rtol=1e-14)
    per_voxel = rng.uniform(1, 2, fit.mask.shape)
    assert_allclose(fit.predict(other, S0=per_voxel), got * per_voxel[..., None], rtol=1e-14)
    assert_allclose(
        fit.predict(other, S0=per_voxel[fit.mask]), got * per_voxel[..., None], rtol=1e-14
    )
    with pytest.raises(
        ValueError, match=r"S0 must be a number, a volume \(2, 3, 4\) or a row .*, not \(5,\)"
    ):
        fit.predict(other, S0=np.ones(5))
    one = fit.predict(mapmri.GradientTable([0.0], [[0, 0, 0]], tau=1e-3), S0=1)[
        fit.mask
    ]  # no b0 rule: E(0) = 1
    assert_allclose(one[fit.status == 0], 1, rtol=1e-11)


@pytest.mark.parametrize("basis", BOTH)
def test_predict_is_the_fitted_signal(gtab, data, basis):
    """RMSE and R2 are those of `predict` against the data, by way of other kernels."""
    fit = mapmri.MapmriModel(gtab, 6, basis=basis).fit(data)
    rest = data - fit.predict()
    assert_allclose(fit.rmse(), np.sqrt((rest**2).mean(1)), rtol=1e-10)
    spread = ((data - data.mean(1, keepdims=True)) ** 2).sum(1)
    assert_allclose(fit.r2(), 1 - (rest**2).sum(1) / spread, rtol=1e-10)


def test_maps_on_request():
    """From the scale tensor and from the other maps; not among "all"; rows without a fit are NaN."""
    from mapmri_nb.indices import ON_REQUEST, select

    R = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    values = np.array([1.7e-3, 0.5e-3, 0.2e-3])
    b, g = truth.scheme_3x60()
    y = np.exp(-b * np.einsum("ni,ij,nj->n", g, R @ np.diag(values) @ R.T, g))
    table = mapmri.GradientTable(b, g, big_delta=0.033, small_delta=0.009)
    fit = mapmri.MapmriModel(table, 4).fit(np.stack([y, np.full_like(y, np.nan)]))
    assert not set(ON_REQUEST) & set(select("all", "anisotropic"))
    for name in ON_REQUEST:
        found = fit.index(name)
        assert found.shape == (2, 3) if ON_REQUEST[name].size == 3 else found.shape == (2,)
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all(), name
        assert np.array_equal(getattr(fit, name)(), found, equal_nan=True)
    one = {name: fit.index(name)[0] for name in ON_REQUEST}
    assert one["ad"] == pytest.approx(1.7e-3, rel=1e-6)
    assert one["rd"] == pytest.approx(0.35e-3, rel=1e-6)
    assert one["md"] == pytest.approx(0.8e-3, rel=1e-6)
    fa = np.sqrt(1.5 * ((values - 0.8e-3) ** 2).sum() / (values**2).sum())
    assert one["fa"] == pytest.approx(fa, rel=1e-6)
    assert abs(one["v1"] @ R[:, 0]) == pytest.approx(1)
    assert one["color_fa"] == pytest.approx(fa * np.abs(R[:, 0]), rel=1e-5)
    assert one["rtop_root"] ** 3 == pytest.approx(fit.rtop()[0])
    assert one["rtap_root"] ** 2 == pytest.approx(fit.rtap()[0])
    assert one["theta_po"] == fit.theta_po()[0]
    assert 0 < one["gfa"] < 1
    units = {name: index.unit("um") for name, index in ON_REQUEST.items()}
    assert (units["md"], units["theta_po"], units["rtop_root"]) == ("um^2/s", "rad", "um^-1")
    assert units["fa"] == "1"
    fit.affine = np.diag([2.0, 2, 2, 1])  # FSL's b-vectors: x runs backwards
    assert fit.v1()[0] == pytest.approx(one["v1"] * [-1, 1, 1])
    assert fit.color_fa()[0] == pytest.approx(one["color_fa"])
    with pytest.raises(ValueError, match="'fa' is not one of rtop"):
        mapmri.uncertainty.posterior(mapmri.MapmriModel(table, 4), y, indices="fa")
