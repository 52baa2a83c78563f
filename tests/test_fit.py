"""What a fit can tell: volumes, prediction, both bases at equal scales, maps on request."""

from functools import partial

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose
from shell import refused

import mapmri_nb as mapmri
from mapmri_nb.indices import ON_REQUEST, select

BOTH = ["anisotropic", "isotropic"]
FREE = ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm")  # indices both bases have


@pytest.fixture(scope="module")
def fits(gtab, data):
    """A fit of each basis over a mask, one voxel of it without signal."""
    volume, mask = data.reshape(2, 3, 4, -1).copy(), np.ones((2, 3, 4), bool)
    mask[0, 0, 1] = mask[1, 2] = False
    volume[0, 1, 1] = 0.0
    return {basis: mapmri.MapmriModel(gtab, 6, basis=basis).fit(volume, mask) for basis in BOTH}


# ---- bases


@pytest.mark.parametrize(
    ("laplacian", "positivity", "tolerance"),
    [
        ("gcv", None, 1e-9),
        (None, None, 1e-8),  # cond(M)^2 is 1e6 here
        (0.1, "grid", 1e-8),
        (None, "grid", 1e-8),
        (0.1, "global", 2e-4),
        (None, "global", 2e-4),
    ],
)
def test_bases_agree_at_equal_scales(gtab, data, laplacian, positivity, tolerance, rng):
    """Both span one space at mu = (u, u, u): the same weights, signals and indices in any frame; of
    the grid in that of the b-vectors alone.
    """
    scale = (np.full(3, 6e-3), phantom.random_rotation(rng, len(data)))
    scale = (scale[0], np.eye(3)) if positivity == "grid" else scale
    one, two = (
        mapmri.MapmriModel(gtab, 6, basis=basis, laplacian=laplacian, positivity=positivity).fit(
            data, scale=scale
        )
        for basis in BOTH
    )
    assert_allclose(two.laplacian_weight, one.laplacian_weight, rtol=1e-7)
    for name in FREE:
        a, b = (fit.index(name) for fit in (one, two))
        a, b = (1 / a, 1 / b) if name == "qiv" else (a, b)  # 1/QIV passes zero
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max(), name
    close = max(1e-9, tolerance if positivity else 0.0)
    assert_allclose(two.pa(), one.pa(), atol=close)
    assert_allclose(two.ng(), one.ng(), rtol=10 * close)  # the reference Gaussian is the same here
    assert_allclose(two.predict(), one.predict(), rtol=0, atol=10 * tolerance * data.max())
    assert_allclose(two.hermite_coef(), one.coef, atol=close)
    assert_allclose(two.rmse(), one.rmse(), rtol=close)
    if positivity is None:
        assert_allclose(two.certificate().distance, one.certificate().distance, atol=1e-5)


# ---- volumes and prediction


def test_sections_of_the_isotropic_basis_raise(fits):
    for name in ("ng_par", "ng_perp"):
        for call in (getattr(fits["isotropic"], name), partial(fits["isotropic"].index, name)):
            refused(f"{name}.*isotropic", call)


@pytest.mark.parametrize("basis", BOTH)
def test_volumes_are_nan_outside_and_where_nothing_was_fitted(fits, basis):
    fit = fits[basis]
    fitted = fit.mask.copy()
    fitted[0, 1, 1] = False
    has = fit.status & mapmri.Status.NO_FIT == 0
    assert (~has).sum() == 1
    names = [n for n in mapmri.INDICES if basis == "anisotropic" or n not in ("ng_par", "ng_perp")]
    volumes = {name: fit.index(name) for name in names} | {"rmse": fit.rmse(), "r2": fit.r2()}
    volumes["predict"], volumes["odf"] = fit.predict()[..., 0], fit.odf(np.eye(3))[..., 0]
    volumes["pdf"] = fit.pdf(np.zeros((1, 3)))[..., 0]
    for name, volume in volumes.items():
        assert np.array_equal(np.isfinite(volume), fitted), name
    for name in ("coef", "mu", "mu_tensor", "R", "S0"):
        rows = getattr(fit, name).reshape(len(has), -1)
        assert np.array_equal(np.isfinite(rows).all(1), has), name
    refused("name: 'kurtosis' is none of rtop", fit.index, "kurtosis", error=KeyError)
    for K in (-1, 1.5):
        refused(f"K must be a whole number from 0, not {K}", fit.pa, K)
    refused(r"points must have shape \(K, 3\): got \(3,\)", fit.pdf, np.zeros(3))


@pytest.mark.parametrize("basis", BOTH)
def test_predict_at_another_table(fits, basis, rng):
    """Other shells, directions and deltas: that table's own tau makes its q."""
    fit, g = fits[basis], phantom.unit(rng.normal(size=(20, 3)))
    other = mapmri.GradientTable(np.full(20, 1700.0), g, big_delta=0.06, small_delta=0.012)
    got = fit.predict(other, S0=1)
    assert got.shape == (2, 3, 4, 20)
    rows, q = got[fit.mask], oracle.qvectors(np.full(20, 1700.0), g, 0.06 - 0.004)
    for v in np.flatnonzero(fit.status == 0)[:6]:
        want = oracle.phi_matrix(6, fit.mu[v], q @ fit.R[v]) @ fit.hermite_coef()[v]
        assert_allclose(rows[v], want, atol=1e-11)
    assert_allclose(fit.predict(other)[fit.mask], rows * fit.S0[:, None], rtol=1e-14)
    S0 = rng.uniform(1, 2, fit.mask.shape)
    for given in (S0, S0[fit.mask]):
        assert_allclose(fit.predict(other, S0=given), got * S0[..., None], rtol=1e-14)
    words = r"S0 must be a number, a volume \(2, 3, 4\) or a row .*, not \(5,\)"
    refused(words, fit.predict, other, S0=np.ones(5))
    origin = mapmri.GradientTable([0.0], [[0, 0, 0]], tau=1e-3)  # no b0 rule: E(0) = 1
    assert_allclose(fit.predict(origin, S0=1)[fit.mask][fit.status == 0], 1, rtol=1e-11)


def test_maps_on_request():
    """From the scale tensor and from the other maps; not among "all"; rows without a fit are NaN."""
    R = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    values = np.array([1.7e-3, 0.5e-3, 0.2e-3])
    b, g = truth.scheme([60] * 3, [1000, 2000, 3000])
    y = truth.mixture_signal([1.0], [truth.axis_tensor(1e3 * values, R)], b, g)
    table = mapmri.GradientTable(b, g, big_delta=0.033, small_delta=0.009)
    fit = mapmri.MapmriModel(table, 4).fit(np.stack([y, np.full_like(y, np.nan)]))
    assert not set(ON_REQUEST) & set(select("all", "anisotropic"))
    for name, index in ON_REQUEST.items():
        found = fit.index(name)
        assert found.shape == ((2, 3) if index.size == 3 else (2,))
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all(), name
        assert np.array_equal(getattr(fit, name)(), found, equal_nan=True)
    one = {name: fit.index(name)[0] for name in ON_REQUEST}
    assert [one[k] for k in ("ad", "rd", "md")] == pytest.approx(
        [1.7e-3, 0.35e-3, 0.8e-3], rel=1e-6
    )
    fa = np.sqrt(1.5 * ((values - 0.8e-3) ** 2).sum() / (values**2).sum())
    assert one["fa"] == pytest.approx(fa, rel=1e-6)
    assert abs(one["v1"] @ R[:, 0]) == pytest.approx(1)
    assert one["color_fa"] == pytest.approx(fa * np.abs(R[:, 0]), rel=1e-5)
    assert one["rtop_root"] ** 3 == pytest.approx(fit.rtop()[0])
    assert one["rtap_root"] ** 2 == pytest.approx(fit.rtap()[0])
    assert one["theta_po"] == fit.theta_po()[0]
    assert 0 < one["gfa"] < 1
    units = {name: index.unit("um") for name, index in ON_REQUEST.items()}
    names = ("md", "theta_po", "rtop_root", "fa")
    assert [units[k] for k in names] == ["um^2/s", "rad", "um^-1", "1"]
    fit.affine = np.diag([2.0, 2, 2, 1])  # FSL's b-vectors: x runs backwards
    assert fit.v1()[0] == pytest.approx(one["v1"] * [-1, 1, 1])
    assert fit.color_fa()[0] == pytest.approx(one["color_fa"])
    posterior, model = mapmri.uncertainty.posterior, mapmri.MapmriModel(table, 4)
    refused("'fa' is not one of rtop", posterior, model, y, indices="fa")
