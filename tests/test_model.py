"""Options and data of the model: errors that name argument and value, scales, shapes, status."""

import re

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose
from phantom import TAU
from shell import refused

import mapmri_nb as mapmri
from mapmri_nb.kernels import moments, ordering

Status = mapmri.Status


def assert_rows(fit, v, want, tolerance=1e-9):
    """One voxel of a fit against the oracle's dense fit; signs of the frame's columns are free."""
    flip = np.sign(np.sum(fit.R[v] * want["R"], axis=0))
    assert_allclose(fit.R[v], want["R"] * flip, atol=1e-9)
    assert_allclose(fit.mu[v], want["mu"], rtol=1e-11)
    assert_allclose(fit.mu_tensor[v], want["mu_tensor"], rtol=1e-11)
    coef = want["coef"]
    if not fit.isotropic:
        coef = coef * np.prod(flip ** ordering.index_table(fit.order), axis=1)
    assert np.abs(fit.coef[v] - coef).max() <= tolerance * np.abs(coef).max()
    assert fit.S0[v] == pytest.approx(want["S0"], rel=tolerance)
    assert fit.rmse().ravel()[v] == pytest.approx(want["rmse"], rel=1e-9)
    assert fit.r2().ravel()[v] == pytest.approx(want["r2"], rel=1e-9)


# ---- against the oracle


@pytest.mark.parametrize("basis", ["anisotropic", "isotropic"])
@pytest.mark.parametrize(
    ("order", "weight"),
    [pytest.param(2, 0.1, marks=pytest.mark.nojit), (0, 0.0), (6, 0.0), (10, 0.2)],
)
def test_fit_against_dense_fit(scheme, gtab, data, basis, order, weight):
    count = 3 if order < 8 else 1  # the oracle takes seconds there
    static = 0.7e-3 if (order, basis) == (10, "isotropic") else None
    options = {"basis": basis, "laplacian": weight, "static_diffusivity": static, "preset": "paper"}
    fit = mapmri.MapmriModel(gtab, order, **options).fit(data[:count])
    for v in range(count):
        want = oracle.fit(data[v], *scheme, TAU, order, weight, basis, static=static)
        assert_rows(fit, v, want, 1e-8 if weight == 0 else 1e-9)
    assert (fit.status & ~int(Status.OUT_OF_RANGE) == 0).all()
    assert (fit.laplacian_weight == weight).all()


# ---- options

NAN, INF = float("nan"), float("inf")
BAD_VALUES = {  # the message has the option and the value
    "radial_order": [3, 12, -2, 2.5, True, "six", None, NAN],
    "basis": ["iso", None],
    "laplacian": ["best", -0.1, NAN, INF, [], [[0.1]], True],
    "positivity": ["soft", True],
    "solver": ["gurobi"],
    "bval_threshold": [0, -5, 500, NAN, "all"],
    "eigenvalue_threshold": [0, INF],
    "static_diffusivity": [1e-3],
    "noise": ["gauss"],
    "laplacian_of": ["signals"],
    "S0": ["mean"],
    "preset": ["dipy"],
    "zero_is_missing": ["no"],
}
BAD_OPTIONS = [
    ({name: value}, f"{name}.*{re.escape(repr(value))}")
    for name, values in BAD_VALUES.items()
    for value in values
] + [
    ({"laplacian": [0.1, -1]}, "laplacian.*-1"),
    ({"laplacian": ["a"]}, "laplacian.*'a'"),
    ({"basis": "isotropic", "static_diffusivity": -1e-3}, "static_diffusivity.*-0.001"),
    ({"basis": "isotropic", "static_diffusivity": "x"}, "static_diffusivity.*'x'"),
    ({"noise": "rician", "coils": 0}, "coils must be"),
    ({"coils": 4}, "coils = 4"),
    ({"preset": "paper", "noise": "rician"}, "preset='paper' sets noise"),
    # out of any sense
    ({"eigenvalue_threshold": 0.1}, r"= 0\.1 mm2/s .*um2/ms\? Then it is 0\.0001"),
    ({"eigenvalue_threshold": 1e-10}, r"= 1e-10 mm2/s .*m2/s\? Then it is 0\.0001"),
    ({"basis": "isotropic", "static_diffusivity": 0.7}, r"= 0\.7 mm2/s .* 0\.0007 mm2/s"),
    ({"basis": "isotropic", "static_diffusivity": 7e-10}, r"= 7e-10 mm2/s .* 0\.0007 mm2/s"),
    ({"laplacian": 200}, r"laplacian = 200 1/mm .*1/m\? Then it is 0\.2"),
    ({"laplacian": [0.1, 500]}, r"laplacian = 500 1/mm"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(o) for o, _ in BAD_OPTIONS])
@pytest.mark.nojit
def test_bad_options_are_named(gtab, options, message):
    refused(message, mapmri.MapmriModel, gtab, **{"radial_order": 4, **options})


@pytest.mark.nojit
def test_options_come_by_name(gtab):
    with pytest.raises(TypeError):
        mapmri.MapmriModel(gtab, 4, "isotropic")
    with pytest.raises(TypeError):
        mapmri.MapmriModel(gtab, 4).fit(np.ones((1, len(gtab))), None, (1, 2))


@pytest.mark.nojit
def test_good_options(gtab):
    for order in (0, 2, 4, 6, 8, 10, 6.0, np.int64(4)):
        assert mapmri.MapmriModel(gtab, order).n_coef == len(oracle.aniso_table(int(order)))
    for weight in (None, 0, 1, "gcv", "GCV", (0.1,), np.array([0.1]), np.float32(0.2), range(1, 3)):
        mapmri.MapmriModel(gtab, 4, laplacian=weight)
    mapmri.MapmriModel(gtab, 4, bval_threshold=None)


@pytest.mark.nojit
def test_table_must_suit_a_fit(scheme):
    b, g = scheme
    refused(r"b0.*1000", mapmri.MapmriModel, phantom.table(b[b > 0], g[b > 0]))
    refused(r"gtab.*list", mapmri.MapmriModel, [1, 2, 3])
    planar = g.copy()
    planar[:, 2] = 0
    planar[b > 0] = phantom.unit(planar[b > 0])
    refused("tensor", mapmri.MapmriModel, phantom.table(b, planar), 2)
    mixed = mapmri.GradientTable(b, g, big_delta=np.where(b > 1500, 0.05, 0.03), small_delta=0.01)
    refused("tau", mapmri.MapmriModel, mixed)


# ---- identifiability


@pytest.mark.parametrize(
    ("bvals", "order", "safe"),
    [
        ([1000, 2000, 3000], 8, 6),
        ([1000, 2000, 3000], 10, 6),
        ([1000, 2500], 6, 4),
        ([1500], 4, 2),
        ([1000, 3000, 5000, 10000], 10, 8),
    ],
)
def test_unidentifiable_orders_are_refused(bvals, order, safe):
    """The message lists the shells and the largest safe order, which is then accepted."""
    table = phantom.table(*truth.scheme([150] * len(bvals), bvals))
    words = rf"radial_order: {order}.*150 at b = {bvals[0]}.*safe order is {safe}\b"
    for weight in (None, 0):
        refused(words, mapmri.MapmriModel, table, order, laplacian=weight)
    mapmri.MapmriModel(table, safe, laplacian=None)
    for weight in (0.2, "gcv", [0.0, 0.2]):
        mapmri.MapmriModel(table, order, laplacian=weight)


@pytest.mark.nojit
def test_condition_is_that_of_the_design():
    b, g = truth.scheme_hcp()
    model = mapmri.MapmriModel(phantom.table(b, g), 4, laplacian=None)
    mu = np.sqrt(2 * TAU * np.array([1.7e-3, 0.3e-3, 0.3e-3]))
    for order in (2, 4, 6):
        want = np.linalg.cond(oracle.phi_matrix(order, mu, oracle.qvectors(b, g, TAU)))
        assert model.condition(order) == pytest.approx(want, rel=1e-9)
    assert not np.isfinite(model.condition(10)) or model.condition(10) > 5e3


# ---- given scales


@pytest.mark.parametrize("basis", ["anisotropic", "isotropic"])
def test_given_scale_is_used_as_it_is(scheme, gtab, data, basis, rng):
    """Neither sorted nor clipped nor flipped: coefficients in exactly this R, improper too."""
    mu = 1e-3 * rng.uniform(2, 10, (8, 3))
    R = phantom.random_rotation(rng, 8) * rng.choice([-1.0, 1.0], (8, 1, 3))
    assert {-1, 1} == {round(np.linalg.det(r)) for r in R}
    fit = mapmri.MapmriModel(gtab, 6, basis=basis, preset="paper").fit(data[:8], scale=(mu, R))
    assert np.array_equal(fit.R, R)
    assert_allclose(fit.mu_tensor, mu, rtol=1e-14)
    hermite = fit.hermite_coef()
    for v in range(8):
        want = oracle.fit(data[v], *scheme, TAU, 6, 0.2, basis, scale=(mu[v], R[v]))
        for got, key in ((fit.coef[v], "coef"), (hermite[v], "hermite")):
            assert np.abs(got - want[key]).max() <= 1e-9 * np.abs(want[key]).max()
        assert fit.S0[v] == pytest.approx(want["S0"], rel=1e-9)


def test_scales_of_any_shape(gtab, data):
    """One per row of the mask, or volumes; one for all is in test_given.py."""
    model, volume = mapmri.MapmriModel(gtab, 2), data[:24].reshape(2, 3, 4, -1)
    mask = np.arange(24).reshape(2, 3, 4) % 3 > 0
    rows = np.tile(MU, (mask.sum(), 1)), np.tile(EYE, (mask.sum(), 1, 1))
    volumes = np.full((2, 3, 4, 3), np.nan), np.full((2, 3, 4, 3, 3), np.nan)
    volumes[0][mask], volumes[1][mask] = rows
    fit = model.fit(volume, mask, scale=rows)
    for scale in (volumes, (MU, rows[1]), (rows[0], EYE.tolist())):
        assert phantom.same(fit, model.fit(volume, mask, scale=scale))


MU, EYE = [8e-3, 5e-3, 4e-3], np.eye(3)
MASK = np.ones(24)
BAD_DATA = [
    ({"data": np.ones((24, 99))}, r"data.*100.*\(24, 99\)"),
    ({"data": np.float64(3)}, r"data.*\(\)"),
    ({"data": np.ones((100, 24))}, r"data.*\(100, 24\)"),
    ({"mask": np.ones(23)}, r"mask.*\(23,\)"),
    ({"mask": np.ones((24, 2))}, r"mask.*\(24, 2\)"),
    *[({"threads": n}, f"threads.*{n!r}") for n in (0, 1.5, "two")],
    *[({"mask": m}, "mask: no voxel is inside") for m in (0 * MASK, NAN * MASK, -MASK)],
    ({"weights": np.ones(7)}, r"weights must have shape \(100,\) or .* \(24, 100\), not \(7,\)"),
    ({"weights": -np.ones(100)}, "weights must be finite and >= 0; found -1"),
    ({"weights": np.full((24, 100), INF)}, "weights must be finite and >= 0; found inf"),
    ({"grad_dev": np.zeros((24, 8))}, r"grad_dev .* \(24, 9\) or \(24, 3, 3\), not \(24, 8\)"),
    ({"grad_dev": np.full((24, 9), 0.7)}, "grad_dev: .* finite and below 0.5 inside .* is 0.7"),
    ({"grad_dev": np.full((24, 9), NAN)}, "grad_dev: entries must be finite"),
    ({"sigma": 2.0}, "sigma is for noise"),
    ({"scale": 5}, "scale.*5"),
    ({"scale": (MU[:2], EYE)}, r"scale.*mu.*\(2,\)"),
    ({"scale": (MU, np.eye(2))}, r"scale.*R.*\(2, 2\)"),
    ({"scale": (np.ones((5, 3)) * 5e-3, EYE)}, r"scale.*mu.*\(5, 3\)"),
    *[({"scale": ([*MU[:2], x], EYE)}, f"scale.*mu.*{x}") for x in (0, -1e-3, NAN)],
    ({"scale": ([8.0, 5.0, 4.0], EYE)}, "scale.*mu.*8.*micro"),
    ({"scale": (MU, 2 * EYE)}, "scale.*R.*3"),
    ({"scale": (MU, EYE + 0.01)}, "scale.*R.*orthonormal"),
    ({"scale": (MU, EYE * NAN)}, "scale.*R.*nan"),
]


@pytest.mark.nojit
@pytest.mark.parametrize(("given", "message"), BAD_DATA)
def test_bad_data_is_named(gtab, data, given, message):
    refused(message, mapmri.MapmriModel(gtab, 2).fit, **{"data": data} | given)


# ---- data


def test_infinite_samples_are_missing(gtab, data):
    y = np.tile(data[0], (3, 1))
    y[:, [3, 40, 77]] = [[np.nan], [np.inf], [-np.inf]]
    fit = mapmri.MapmriModel(gtab, 4).fit(y)
    for name, rows in fit.rows().items():
        assert np.array_equal(rows, rows[[0, 0, 0]], equal_nan=True), name
    assert (fit.status == Status.DROPPED).all()


def test_samples_below_zero_stay_in_the_linear_fit(scheme, gtab, data):
    """Left out of the logarithm, but not of the least squares."""
    y = data[0].copy()
    y[[20, 50, 70]] = [0.0, -5.0, -1.0]
    fit = mapmri.MapmriModel(gtab, 4, zero_is_missing=False, preset="paper").fit(y)
    assert_rows(fit, 0, oracle.fit(y, *scheme, TAU, 4, 0.2))
    assert fit.status[0] == Status.DROPPED


# ---- status


def test_floor(scheme, gtab):
    """Also when every eigenvalue lies below it."""
    y = 100 * truth.mixture_signal([1.0], [truth.axis_tensor(0.05)], *scheme)
    fit = mapmri.MapmriModel(gtab, 2, eigenvalue_threshold=1e-4).fit(y)
    assert fit.status[0] & Status.FLOOR
    assert_allclose(fit.mu_tensor[0], np.sqrt(2 * 1e-4 * TAU), rtol=1e-12)
    fit = mapmri.MapmriModel(gtab, 2, eigenvalue_threshold=3e-5).fit(y)
    assert fit.status[0] == 0
    assert_allclose(fit.mu_tensor[0], np.sqrt(2 * 0.5e-4 * TAU), rtol=1e-9)
    fit = mapmri.MapmriModel(gtab, 2).fit(np.full(len(gtab), 100.0))  # nothing diffuses
    floor = 0.075 / gtab.bvals[gtab.bvals <= 2100].max()
    assert_allclose(fit.mu_tensor, np.sqrt(2 * floor * TAU), rtol=1e-9)


@pytest.mark.parametrize(
    ("keep", "laplacian", "flag"),
    [(6, 0.2, True), (40, 0.2, False), (40, None, True), (60, None, False)],
)
def test_too_few_samples(gtab, data, keep, laplacian, flag):
    y = np.where(np.arange(len(gtab)) < keep, data[0], np.nan)
    status = mapmri.MapmriModel(gtab, 6, laplacian=laplacian).fit(y).status[0]
    assert bool(status & Status.TOO_FEW) == flag
    none = np.where(gtab.b0s_mask, np.nan, data[0])
    assert mapmri.MapmriModel(gtab, 2).fit(none).status[0] & Status.NO_SIGNAL


def test_not_definite():
    """Without a shell in one voxel the model is sound, this voxel is not; a weight makes it so."""
    b, g = truth.scheme([60] * 3, [1000, 2000, 3000])
    y, table = phantom.signals(2, b, g), phantom.table(b, g)
    y[0, b == 3000] = np.nan
    fit = mapmri.MapmriModel(table, 6, laplacian=None).fit(y)
    assert fit.status[0] & Status.NOT_DEFINITE
    assert fit.status[1] == 0
    assert np.isnan(fit.coef[0]).all()
    assert np.isnan(fit.rtop()[0])
    assert not mapmri.MapmriModel(table, 6).fit(y).status[0] & Status.NO_FIT


def test_origin_below_zero(scheme, gtab):
    """Signal that grows with b and is nearly nothing at b = 0."""
    b, _ = scheme
    y = 100 * np.where(b == 0, 1e-6, np.where(b < 1500, -3.0, 5.0))
    fit = mapmri.MapmriModel(gtab, 4).fit(y)
    assert fit.status[0] & Status.NO_FIT
    assert np.isnan(fit.S0[0])


def test_rtop_below_zero_is_a_warning(scheme, gtab, data):
    """The fit stands: unregularised order 6 on noise; and the flag says exactly where."""
    rng = np.random.default_rng(3)
    y = np.abs(data + 0.15 * data.max(1, keepdims=True) * rng.normal(size=data.shape))
    fit = mapmri.MapmriModel(gtab, 6, laplacian=None).fit(np.tile(y, (2, 1)))
    flag, fitted = (fit.status & Status.RTOP_NOT_POSITIVE) != 0, (fit.status & Status.NO_FIT) == 0
    assert flag.any()
    assert np.array_equal(flag[fitted], fit.rtop()[fitted] <= 0)


def test_plain_map_asks_for_more_exact_moments(gtab):
    """Nothing bounds there what an ill-conditioned M'M makes of its rounding."""
    plain, regularised = (
        mapmri.MapmriModel(gtab, 4, laplacian=weight).plan.scheme.rounding for weight in (None, 0.2)
    )
    assert (plain, regularised) == (moments.LARGEST_ROUNDING_ALONE, moments.LARGEST_ROUNDING)
    assert plain < regularised


def test_an_old_name_warns_and_works(gtab):
    model = mapmri.MapmriModel(gtab, 4)
    with pytest.warns(DeprecationWarning, match="laplacian_weights"):
        assert model.weights is model.laplacian_weights
