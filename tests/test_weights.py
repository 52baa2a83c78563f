"""Weights of volumes and samples, and gradient non-linearity."""

import numpy as np
import oracle
import pytest
import truth
from numpy.testing import assert_allclose, assert_array_equal

import mapmri_nb as mapmri
from mapmri_nb.indices import select
from mapmri_nb.testing import Table
from mapmri_nb.testing.programs import gradient_table

TAU = 0.03
MODES = [
    {"laplacian": None}, {"laplacian": 0.1}, {"laplacian": "gcv"}, {"basis": "isotropic"}, {"positivity": "grid"},
    {"positivity": "grid", "basis": "isotropic"}, {"positivity": "global"},
]  # fmt: skip


def table(b_first=0.0):
    b, g = truth.scheme([20, 30], [1000, 2500])
    b[:6], g[:6] = b_first, g[6:12]
    return mapmri.GradientTable(b, g, tau=TAU)


def noisy(gtab, rng, count=3, sigma=0.02):
    clean = truth.mixture_signal(*truth.MIXTURES["X60"], gtab.bvals, gtab.bvecs)
    return 700 * (clean + sigma * rng.standard_normal((count, len(gtab))))


def turned(rng):
    """Scales of the crossing in a random frame."""
    mu, _ = truth.mixture_frame(*truth.MIXTURES["X60"], TAU)
    return mu, np.linalg.qr(rng.standard_normal((3, 3)))[0]


def assert_same(one, two, rtol, also=("S0", "laplacian_weight", "mu", "mu_tensor")):
    """All indices, and what is behind them; scales and residuals too."""
    for name in also:
        assert_allclose(getattr(one, name), getattr(two, name), rtol=rtol, err_msg=name)
    for name in select(None, one.options["basis"]):
        assert_allclose(one.index(name), two.index(name), rtol=rtol, atol=1e-9, err_msg=name)


# ---- weights


@pytest.mark.parametrize("options", MODES, ids=str)
def test_weight_0_is_a_missing_sample(options, rng):
    """Weight 0 or NaN, a NaN sample, and a table without it are one thing, in every mode and number."""
    gtab, gone = table(10.0), [1, 8, 30]
    y, weights = noisy(gtab, rng), np.ones(len(gtab))
    holes, wild = y.copy(), y.copy()
    keep = np.setdiff1d(np.arange(len(gtab)), gone)
    weights[gone], holes[:, gone] = [0.0, np.nan, 0.0], np.nan
    wild[:, gone] *= 50
    options = options | {"bval_threshold": 2100}  # "auto" judges the table, not the samples
    model = mapmri.MapmriModel(gtab, 4, **options)
    weighted, missing = model.fit(wild, weights=weights), model.fit(holes)
    assert_array_equal(weighted.coef, missing.coef)
    assert_array_equal(weighted.r2(), missing.r2())
    subset = mapmri.MapmriModel(gtab[keep], 4, **options).fit(np.ascontiguousarray(y[:, keep]))
    assert_same(missing, subset, 1e-6 if {"global", "gcv"} & set(options.values()) else 1e-9)
    assert_allclose(missing.rmse(), subset.rmse(), rtol=1e-7)
    assert_allclose(missing.r2(), subset.r2(), rtol=1e-7)
    per_sample = np.broadcast_to(weights, y.shape).copy()
    per_sample[2] = 1.0
    mixed = model.fit(np.vstack([wild[:2], y[2:]]), weights=per_sample)
    assert_array_equal(mixed.coef, np.vstack([weighted.coef[:2], model.fit(y).coef[2:]]))


@pytest.mark.parametrize("options", [m for m in MODES if m.get("laplacian") != "gcv"], ids=str)
def test_weight_2_is_two_samples(options, rng):
    """In tensor, S0 and fit; doubling all weights is halving the Laplacian's."""
    gtab, twice = table(10.0), [0, 7, 29, 40]
    y, weights = noisy(gtab, rng), np.ones(len(gtab))
    weights[twice], rows = 2.0, np.sort(np.r_[np.arange(len(gtab)), twice])
    one = mapmri.MapmriModel(gtab, 4, **options).fit(y, weights=weights)
    two = mapmri.MapmriModel(gtab[rows], 4, **options).fit(np.ascontiguousarray(y[:, rows]))
    rtol = 1e-6 if options.get("positivity") == "global" else 1e-8
    assert_same(one, two, rtol)
    lap = options.get("laplacian", 0.2)
    if lap is not None:
        model = mapmri.MapmriModel(gtab, 4, **(options | {"laplacian": 2 * lap}))
        assert_same(one, model.fit(y, weights=2 * weights), rtol, ("S0", "mu"))


@pytest.mark.parametrize("basis", ["anisotropic", "isotropic"])
def test_gcv_with_weights(basis, rng):
    """V of the rows times sqrt(w): the weight chosen is that of a dense search."""
    gtab = table()
    y, weights = noisy(gtab, rng, sigma=0.05), rng.uniform(0.3, 3.0, (3, len(gtab)))
    weights[:, 9] = 0.0
    model = mapmri.MapmriModel(gtab, 4, basis=basis, laplacian="gcv", preset="paper")
    fit = model.fit(y, weights=weights)
    for v, keep in enumerate(weights > 0):
        root = np.sqrt(weights[v][keep])
        M = oracle.phi_matrix(4, fit.mu[v], gtab.qvecs[keep] @ fit.R[v])
        L = oracle.laplacian_matrix(4, fit.mu[v])
        size = np.prod(fit.mu[v]) ** (1 / 3)
        tried = np.r_[fit.laplacian_weight[v], np.geomspace(5e-8, 5e-2, 400) / size]
        score, _ = oracle.gcv(root[:, None] * M, L, root * y[v][keep], tried)
        assert score[0] <= min(score) * (1 + 1e-9)


# ---- gradient non-linearity


def corrected(gtab, F):
    """The table that a voxel really saw: q' = (I + F) q."""
    return gradient_table(Table.of(gtab.qvecs @ (np.eye(3) + F).T, TAU))


def fields(rng, count=3):
    return 0.06 * rng.standard_normal((count, 3, 3))


@pytest.mark.parametrize(
    ("order", "options"),
    [
        pytest.param(2, MODES[1], marks=pytest.mark.nojit),
        *((4, options) for options in [*MODES, {"noise": "rician"}]),
    ],
    ids=str,
)
def test_field_is_a_table_a_voxel(order, options, rng):
    """The fit on the corrected table, coefficient by coefficient, at held scale and fitted ones."""
    gtab, F = table(15.0), fields(rng)
    options = {"bval_threshold": None} | options
    y, scale = noisy(gtab, rng), turned(rng)
    other = gtab[::3]
    model = mapmri.MapmriModel(gtab, order, **options)
    exact = options.get("positivity") != "global" and options.get("laplacian") != "gcv"
    for given in (scale, None):
        fit = model.fit(y, grad_dev=F, scale=given)
        for v in range(3):
            own = mapmri.MapmriModel(corrected(gtab, F[v]), order, **options)
            one = own.fit(y[v : v + 1], scale=given)
            assert_allclose(fit.mu[v], one.mu[0], rtol=1e-10)
            assert_allclose(fit.S0[v], one.S0[0], rtol=1e-9)
            assert_allclose(fit.rmse()[v], one.rmse()[0], rtol=1e-7)
            for name in select(None, model.basis):
                want = one.index(name)[0]
                assert fit.index(name)[v] == pytest.approx(want, rel=1e-9 if exact else 1e-5), name
            if given is not None:
                tolerance = (1e-10 if exact else 1e-6) * np.abs(one.coef[0]).max()
                assert_allclose(fit.coef[v], one.coef[0], atol=tolerance)
            rtol = 1e-8 if exact else 1e-4
            for found, at in (
                (fit.predict(), own.gtab),
                (fit.predict(other), corrected(other, F[v])),
            ):
                assert_allclose(found[v], one.predict(at)[0], rtol=rtol, atol=1e-6)
    plain = model.fit(y, scale=scale)
    assert plain.field is None
    assert np.abs(fit.index("rtop") / plain.index("rtop") - 1).max() > 1e-2  # it matters


@pytest.mark.nojit
def test_hcp_order(rng):
    """The nine volumes are the columns of F: in MATLAB F = reshape(volumes, 3, 3)."""
    gtab = table()
    model, y = mapmri.MapmriModel(gtab, 4), noisy(gtab, rng, 2)
    nine = 0.06 * rng.standard_normal((2, 9))
    F = np.array([row.reshape(3, 3, order="F") for row in nine])
    assert F[0, 1, 0] == nine[0, 1]  # the second volume is dGy/dx... of the first column
    one, two = model.fit(y, grad_dev=nine), model.fit(y, grad_dev=F)
    assert_array_equal(one.coef, two.coef)
    assert_array_equal(one.field, F)
    assert not np.allclose(one.coef, model.fit(y, grad_dev=np.swapaxes(F, 1, 2)).coef, rtol=1e-3)


def test_a_saved_fit_keeps_its_field(rng, tmp_path):
    gtab, F = table(), fields(rng, 4).reshape(2, 1, 2, 3, 3)
    y, mask = noisy(gtab, rng, 4).reshape(2, 1, 2, -1), np.array([[[True, True]], [[False, True]]])
    fit = mapmri.MapmriModel(gtab, 4).fit(y, mask, grad_dev=F)
    fit.save(tmp_path, affine=np.eye(4))
    again = mapmri.load_fit(tmp_path)
    assert list(tmp_path.glob("*param-graddev*")), "its own part"
    assert_array_equal(again.field, F[mask])
    assert_array_equal(again.predict(), fit.predict())


@pytest.mark.nojit
def test_moments_of_one_voxel_in_its_own_frame(rng):
    """Moments from q in the voxel's frame, with its field, make the fit of those that are turned."""
    model, F = mapmri.MapmriModel(table(), 2), fields(rng, 1)
    y = noisy(table(), rng, 1)
    turned_fit, plan = model.fit(y, grad_dev=F), model.engine.plan
    model.engine.plan = plan._replace(scheme=plan.scheme._replace(rounding=-1.0))
    own = model.fit(y, grad_dev=F)
    assert model.engine._rare
    assert_allclose(own.coef, turned_fit.coef, atol=1e-9 * np.abs(own.coef).max())
