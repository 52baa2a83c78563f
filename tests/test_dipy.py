"""The drop-in against DIPY: interface, conventions, and numbers wherever DIPY's are right."""

import inspect
import pickle
import warnings
from functools import partial

import numpy as np
import phantom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from shell import refused

import mapmri_nb
from mapmri_nb import dipy as drop_in
from mapmri_nb import directions
from mapmri_nb.dipy import MapmriFit, MapmriModel

pytest.importorskip("dipy")
from dipy.core.gradients import gradient_table
from dipy.core.sphere import Sphere
from dipy.reconst import mapmri as theirs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*legacy.*:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:model bval_threshold:UserWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:cvxpy"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:dipy"),
]
INDICES = ["rtop", "rtap", "rtpp", "msd", "norm_of_laplacian_signal"]
NON_GAUSSIANITY = ["ng", "ng_parallel", "ng_perpendicular"]
BASES = ("anisotropic", "isotropic")
SPHERE = Sphere(xyz=directions.sphere(100).vertices)


def scheme(big_delta=0.0365, small_delta=0.0157, b0_threshold=50):
    half = directions.sphere(100).vertices[:50]
    values, counts = [0.0, 1000.0, 2000.0, 4000.0, 1500.0, 3000.0], [5, 16, 17, 17, 20, 20]
    return gradient_table(
        np.repeat(values, counts), bvecs=np.r_[np.zeros((5, 3)), half, half[:40]],
        big_delta=big_delta, small_delta=small_delta, b0_threshold=b0_threshold,
    )  # fmt: skip


GTAB = scheme()


def crossings(noise=0.02):
    return phantom.signals(6, GTAB.bvals, GTAB.bvecs, seed=3, noise=noise).reshape(2, 3, -1)


DATA = crossings()
MASK = np.array([[True, False, True], [True, True, False]])


def both(data=DATA, mask=MASK, gtab=GTAB, **options):
    """The same fit by DIPY and by us, with DIPY's index formulas."""
    models = theirs.MapmriModel(gtab, **options), MapmriModel(gtab, dipy_compat=True, **options)
    return [model.fit(data, mask=mask) for model in models]


@pytest.fixture(scope="module")
def pairs():
    """Fits by DIPY and by us in both bases."""
    return {b: both(anisotropic_scaling=b == BASES[0], bval_threshold=2100) for b in BASES}


def test_every_public_name_is_there_and_takes_the_same_arguments(pairs):
    """The constructor's with their defaults, the methods' of a fit, the module's functions'."""
    expected, found = (
        [(p.name, p.default) for p in inspect.signature(model).parameters.values()]
        for model in (theirs.MapmriModel, MapmriModel)
    )
    assert found == [*expected, ("dipy_compat", False)]
    dipy, ours = (fit[0, 0] for fit in pairs["anisotropic"])
    own = {n: f for n, f in vars(theirs).items() if getattr(f, "__module__", "") == theirs.__name__}
    functions = [n for n, f in own.items() if inspect.isfunction(f) and not n.startswith("_")]
    assert len(functions) > 30
    names = [(dipy, ours, name) for name in dir(dipy) if not name.startswith("__")]
    for one, two, name in (*names, *((theirs, drop_in, name) for name in functions)):
        assert hasattr(two, name), name
        if inspect.isroutine(getattr(one, name)):
            taken = (list(inspect.signature(getattr(x, name)).parameters) for x in (one, two))
            assert len(set(map(tuple, taken))) == 1, name


@pytest.mark.parametrize("anisotropic", [True, False])
def test_model_attributes(anisotropic):
    options = {"radial_order": 4, "anisotropic_scaling": anisotropic, "bval_threshold": 2000}
    dipy, ours = (m(GTAB, **options) for m in (theirs.MapmriModel, MapmriModel))
    names = ["tau", "cutoff", "ind_mat", "Bm", "radial_order", "eigenvalue_threshold"]
    names += ["S_mat", "T_mat", "U_mat"] if anisotropic else ["laplacian_matrix"]
    for name in (*names, "laplacian_weighting"):
        want = getattr(dipy, name)
        assert_allclose(getattr(ours, name), want, rtol=1e-12, atol=1e-10, err_msg=name)
    assert ours.gtab is GTAB
    refused("no_such", getattr, ours, "no_such", error=AttributeError)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"radial_order": 3}, "radial_order"),
        ({"radial_order": -2}, "radial_order"),
        ({"laplacian_weighting": "notGCV"}, "laplacian"),
        ({"laplacian_weighting": -1.0}, "laplacian"),
        ({"positivity_constraint": True, "pos_radius": "endless"}, "pos_radius"),
        ({"positivity_constraint": True, "pos_radius": -1}, "pos_radius"),
        ({"positivity_constraint": True, "pos_grid": 1}, "pos_grid"),
        ({"gtab": mapmri_nb.GradientTable(GTAB.bvals[5:], GTAB.bvecs[5:], tau=1)}, "b0"),
    ],
)
def test_bad_arguments_are_refused(options, name):
    refused(name, MapmriModel, **{"gtab": GTAB} | options)


@pytest.mark.parametrize("basis", BASES)
def test_indices_equal_dipys(pairs, basis):
    dipy, ours = pairs[basis]
    for name in (*INDICES, "qiv", *(NON_GAUSSIANITY if basis == "anisotropic" else ())):
        found = getattr(ours, name)()
        assert_allclose(found, getattr(dipy, name)(), rtol=1e-8, err_msg=name)
        assert_array_equal(found[~MASK], 0)
    for name in NON_GAUSSIANITY if basis == "isotropic" else ():
        refused("anisotropic_scaling", getattr(ours, name))


@pytest.mark.parametrize("name", ["qiv", "ng_parallel", "ng_perpendicular"])
def test_wrong_indices_are_ours_unless_asked(pairs, name):
    short = {"ng_parallel": "ng_par", "ng_perpendicular": "ng_perp"}.get(name, name)
    right = getattr(MapmriModel(GTAB, bval_threshold=2100).fit(DATA, mask=MASK), name)()[MASK]
    core = mapmri_nb.MapmriModel(GTAB, preset="paper").fit(DATA, MASK)
    assert_allclose(right, core.index(short)[MASK], rtol=1e-12)
    printed = getattr(pairs["anisotropic"][1], name)()[MASK]
    assert (np.abs(right / printed - 1) > 1e-3).all()


@pytest.mark.parametrize("basis", BASES)
def test_scales_frames_and_coefficients(pairs, basis):
    dipy, ours = pairs[basis]
    one, two = (fit.fit_array for fit in (dipy, ours))
    assert_array_equal([[voxel is not None for voxel in row] for row in two], MASK)
    for theirs_, own in zip(one[MASK], two[MASK], strict=True):
        assert_allclose(own.rtop(), theirs_.rtop(), rtol=1e-8)
    assert_allclose(ours.mapmri_mu, dipy.mapmri_mu, rtol=1e-9)
    signs = np.einsum("xyij,xyij->xyj", ours.mapmri_R, dipy.mapmri_R)
    assert_allclose(np.abs(signs[MASK]), 1, rtol=1e-9)
    coef = ours.mapmri_coeff
    if basis == "anisotropic":  # odd functions follow the sign of their axis
        odd = np.where(signs < 0, -1.0, 1.0)[..., None, :] ** ours.model.ind_mat
        coef = coef * np.prod(odd, axis=-1)
    assert_allclose(coef, dipy.mapmri_coeff, rtol=0, atol=1e-9)
    assert_array_equal(coef[~MASK], 0)
    assert ours.mu.shape == (2, 3, 3)
    assert ours.R.shape == (2, 3, 3, 3)


@pytest.mark.parametrize("basis", BASES)
def test_odf_propagator_and_signal(pairs, basis):
    dipy, ours = pairs[basis]
    points = theirs.create_rspace(7, 0.02).astype(float)
    q, S0 = 20.0 * SPHERE.vertices[:9], np.arange(6.0).reshape(2, 3)
    for call in (
        lambda fit: fit.odf(SPHERE),
        lambda fit: fit.odf(SPHERE, s=0),
        lambda fit: fit.pdf(points),
        lambda fit: fit.fitted_signal(),
        lambda fit: fit.fitted_signal(gtab=scheme()),
        lambda fit: fit.predict(GTAB),
        lambda fit: fit.predict(GTAB, S0=7.0),
        lambda fit: fit.predict(GTAB, S0=S0),
        lambda fit: fit.predict(GTAB, S0=np.arange(6.0 * len(GTAB.bvals)).reshape(2, 3, -1)),
        lambda fit: fit.predict(q),
        lambda fit: fit[0, 0].predict(GTAB),
        lambda fit: fit[1, 0].odf(SPHERE),
    ):
        expected = call(dipy)
        assert_allclose(call(ours), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_harmonics_of_the_odf(pairs):
    dipy, ours = pairs["isotropic"]
    for s in (0, 2):
        expected = dipy.odf_sh(s=s)
        assert_allclose(ours.odf_sh(s=s), expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    refused("anisotropic_scaling=False", pairs["anisotropic"][1].odf_sh)


STATIC = {"anisotropic_scaling": False, "dti_scale_estimation": False}


@pytest.mark.parametrize(
    "options",
    [
        {"laplacian_regularization": False, "laplacian_weighting": 0.3},
        {"laplacian_weighting": 0, "radial_order": 4},
        {"bval_threshold": 2000},
        {"eigenvalue_threshold": 4e-4},
        STATIC | {"static_diffusivity": 0.6e-3},
        STATIC | {"laplacian_regularization": False},
        {"gtab": scheme(None, None)},
        {"gtab": scheme(5.0, 3.0)},
    ],
)
@pytest.mark.filterwarnings("ignore:gtab has no:UserWarning", "ignore:tau =:UserWarning")
def test_options_and_odd_deltas(options):
    dipy, ours = both(data=DATA[0, 0], mask=None, **options)
    for name in INDICES:
        assert_allclose(getattr(ours, name)(), getattr(dipy, name)(), rtol=1e-9, err_msg=name)
    table = options.get("gtab", GTAB)
    assert_allclose(ours.predict(table), dipy.predict(table), rtol=1e-9)
    assert ours.model.tau == dipy.model.tau
    assert_allclose(ours.mu, dipy.mu, rtol=1e-9)
    assert ours.lopt == dipy.lopt
    assert ours.errorcode == dipy.errorcode == 0


def test_weights():
    def lopt(**options):
        return MapmriModel(GTAB, **options).fit(DATA, mask=MASK).lopt

    assert_array_equal(lopt(laplacian_weighting=0.1), 0.1 * MASK)
    assert_array_equal(lopt(laplacian_regularization=False), 0)
    chosen, choices = lopt(laplacian_weighting=None), np.linspace(0.05, 1, 20)
    assert np.isin(chosen[MASK], choices).all()
    assert_array_equal(chosen, lopt(laplacian_weighting=list(choices)))


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3, 1)])
def test_shapes(shape):
    """And positional arguments, as in older versions."""
    model = MapmriModel(GTAB, 4, True, 0.1)
    fit = model.fit(DATA.reshape(*shape, -1), np.ones(shape, bool))
    assert fit.shape == fit.rtop().shape == shape
    assert fit.mapmri_coeff.shape == (*shape, 22)
    assert fit.pdf(np.zeros((2, 3))).shape == (*shape, 2)
    assert fit.odf(SPHERE, 0).shape == (*shape, 100)
    own = mapmri_nb.GradientTable.of(GTAB)  # our own tables are tables too
    named = MapmriModel(own, radial_order=4, laplacian_weighting=0.1).fit(DATA)
    assert_allclose(fit.rtop().ravel(), named.rtop().ravel(), rtol=1e-12)


def test_one_voxel_gives_numbers_and_rows():
    fit = MapmriModel(GTAB).fit(DATA[0, 0], mask=np.ones((4, 4)))  # as DIPY: no mask of one voxel
    assert (fit.shape, fit.errorcode) == ((), 0)
    assert isinstance(fit.rtop(), float)
    assert isinstance(fit.lopt, float)
    assert fit.mapmri_coeff.shape == fit._mapmri_coef.shape == (50,)
    assert fit.mapmri_R.shape == (3, 3)
    assert fit.odf(SPHERE).shape == (100,)
    assert_allclose(fit.predict(GTAB), 100 * fit.fitted_signal(), rtol=1e-14)


@pytest.mark.nojit
def test_indexing():
    fit = MapmriModel(GTAB, radial_order=2).fit(DATA, mask=MASK)
    assert fit[0, 1] is None
    assert isinstance(fit[0, 0], MapmriFit)
    assert fit[0, 0].rtop() == fit.rtop()[0, 0]
    assert_array_equal(fit[1, 1].mapmri_coeff, fit.mapmri_coeff[1, 1])
    assert_array_equal(fit[:, 0].msd(), fit.msd()[:, 0])
    assert_array_equal(fit[1][1:].mask, MASK[1][1:])
    assert_array_equal(fit[MASK].rtpp(), fit.rtpp()[MASK])
    assert [row.shape for row in fit] == [(3,), (3,)]
    refused("2", fit.__getitem__, (2, 0), error=IndexError)


def test_masks_of_other_types_and_shapes():
    model, options = MapmriModel(GTAB, radial_order=2), {"engine": "serial", "n_jobs": -1}
    expected = model.fit(DATA, mask=MASK).rtop()
    found = model.fit(DATA, mask=MASK.astype(np.uint8), verbose=False, **options).rtop()
    assert_array_equal(found, expected)
    assert_array_equal(model.fit(DATA, mask=np.zeros((2, 3), bool)).rtop(), np.zeros((2, 3)))
    refused("mask", model.fit, DATA, mask=MASK.T)


def test_a_bad_voxel_is_nan_with_a_code_and_costs_no_other():
    data = DATA.copy()
    data[0, 0], data[1, 1, 7] = 0, np.nan
    fit = MapmriModel(GTAB).fit(data, mask=MASK)
    assert_array_equal(fit.errorcode, [[1, 0, 0], [0, 0, 0]])
    assert np.isnan(fit.rtop()).tolist() == [[True, False, False], [False] * 3]
    assert fit.rtop()[0, 2] == MapmriModel(GTAB).fit(DATA).rtop()[0, 2]


def test_dipys_own_tools_take_the_model():
    peaks = pytest.importorskip("dipy.direction").peaks_from_model
    options = {"relative_peak_threshold": 0.5, "min_separation_angle": 25, "mask": MASK}
    expected, found = (
        peaks(m(GTAB), DATA, SPHERE, **options) for m in (theirs.MapmriModel, MapmriModel)
    )
    agree = np.abs((found.peak_dirs * expected.peak_dirs).sum(-1))  # either end of an axis
    assert_allclose(agree, expected.peak_indices >= 0, rtol=1e-9)
    assert_allclose(found.peak_values, expected.peak_values, rtol=1e-8)


def test_fits_and_models_pickle():
    fit = MapmriModel(GTAB, radial_order=2, positivity_constraint=True).fit(DATA, mask=MASK)
    again = pickle.loads(pickle.dumps(fit))
    assert_array_equal(again.rtop(), fit.rtop())
    assert_array_equal(again.model.fit(DATA, mask=MASK).rtop(), fit.rtop())


def warned(call):
    """What a call warns of, as (text, file)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(str(w.message), w.filename) for w in caught if w.category is UserWarning]


def test_warnings_of_the_model():
    assert warned(lambda: MapmriModel(GTAB)) == []
    for options, gtab, text in (
        ({"cvxpy_solver": "MOSEK", "positivity_constraint": True}, GTAB, "cvxpy_solver"),
        ({"global_constraints": True}, GTAB, "positivity_constraint"),
        ({}, scheme(None, None), "tau"),
        ({}, scheme(36.5, 15.7), "milliseconds"),
        ({"radial_order": 8, "laplacian_regularization": False}, GTAB, "radial_order: 8"),
    ):
        ((said, file),) = warned(lambda gtab=gtab, options=options: MapmriModel(gtab, **options))
        assert text in said
        assert file == __file__


def test_non_gaussianity_warns_above_2000():
    text = "bval_threshold must be lower than 2000"
    for threshold, count in ((np.inf, 1), (2100, 1), (2000, 0), (None, 1)):
        fit = MapmriModel(GTAB, radial_order=2, bval_threshold=threshold).fit(DATA)
        for name in NON_GAUSSIANITY:
            found = warned(getattr(fit, name))
            assert [(text in said, file) for said, file in found] == [(True, __file__)] * count


@pytest.mark.filterwarnings("ignore:gtab has no:UserWarning")
def test_prediction_at_another_diffusion_time_uses_that_time():
    fit = MapmriModel(GTAB).fit(DATA[0, 0])
    longer = scheme(0.06, 0.0157)
    q = np.sqrt(longer.bvals / (0.06 - 0.0157 / 3))[:, None] * longer.bvecs / (2 * np.pi)
    assert_allclose(fit.predict(longer), fit.predict(q), rtol=1e-13)
    assert_allclose(fit.predict(scheme(None, None)), fit.predict(GTAB), rtol=1e-13)
    assumed = MapmriModel(scheme(None, None)).fit(DATA[0, 0])  # of no real time: b alone counts
    assert_allclose(assumed.predict(longer), assumed.predict(GTAB), rtol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"laplacian_regularization": False, "pos_grid": 20},
        {"pos_radius": 0.02, "pos_grid": 11},
        {"anisotropic_scaling": False, "laplacian_regularization": False},
    ],
)
def test_grid_constraint_equals_dipys_problem(options):
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    y = crossings(noise=0.06)[0, 1]
    given = {"positivity_constraint": True, **options}
    dipy = theirs.MapmriModel(GTAB, cvxpy_solver="CLARABEL", **given).fit(y)
    ours = MapmriModel(GTAB, **given).fit(y)
    free = {k: v for k, v in options.items() if not k.startswith("pos_")}
    free = MapmriModel(GTAB, **free).fit(y)
    assert ours.errorcode == 0
    for name in ("rtop", "rtap", "rtpp", "msd"):
        own, want, unbound = (getattr(fit, name)() for fit in (ours, dipy, free))
        assert_allclose(own, want, rtol=0, atol=1e-3 * abs(want - unbound), err_msg=name)
    radius = options.get("pos_radius", np.sqrt(5) * ours._fit.mu_tensor.max())
    ball = theirs.create_rspace(options.get("pos_grid", 15), radius).astype(float)
    if options.get("anisotropic_scaling", True):
        ball = ball @ ours.R.T
    peak = ours.pdf(np.zeros((1, 3)))[0]
    assert ours.pdf(ball).min() > -0.1 - 1e-8 * peak
    assert free.pdf(ball).min() < -1e-3 * peak


def test_global_constraint_keeps_the_laplacian():
    y = crossings(noise=0.06)[0]
    options = {"positivity_constraint": True, "global_constraints": True}
    weak, strong = (MapmriModel(GTAB, laplacian_weighting=w, **options).fit(y) for w in (0.05, 0.5))
    core = mapmri_nb.MapmriModel(
        GTAB, laplacian=0.5, positivity="global", bval_threshold=None,
        laplacian_of="signal", S0="b0", eigenvalue_threshold=1e-4,
    ).fit(y)  # fmt: skip
    assert_array_equal(strong.errorcode, 0)
    assert_array_equal(strong.rtop(), core.rtop())
    del options["global_constraints"]
    named = MapmriModel(GTAB, laplacian_weighting=0.5, pos_radius="infinity", **options).fit(y)
    assert_array_equal(named.mapmri_coeff, strong.mapmri_coeff)
    assert (strong.norm_of_laplacian_signal() < weak.norm_of_laplacian_signal()).all()
    r = theirs.create_rspace(17, 0.03).astype(float)
    assert (weak.pdf(r).min(-1) > -1e-9 * weak.pdf(r).max(-1)).all()
    assert_allclose(weak.predict(np.zeros((1, 3))), 1, rtol=1e-9)


ORDER, U0 = 6, 5e-3
MU = np.array([7e-3, 4e-3, 3.5e-3])
RNG = np.random.default_rng(5)
Q, R = RNG.normal(0, 30, (40, 3)), RNG.normal(0, 8e-3, (40, 3))
DIRECTIONS = directions.sphere(100).vertices
INDEX, ISO = theirs.mapmri_index_matrix(ORDER), theirs.mapmri_isotropic_index_matrix(ORDER)
LENGTHS = np.linalg.norm(Q, axis=1)
STU = theirs.mapmri_STU_reg_matrices(ORDER)
CALLS = [
    ("isotropic_scale_factor", MU**2),
    ("isotropic_scale_factor", np.array([5e-5, 1e-7, 1e-8])),
    ("mapmri_index_matrix", ORDER),
    ("b_mat", INDEX),
    ("b_mat", INDEX[4:9]),
    ("b_mat_isotropic", ISO),
    ("mapmri_phi_1d", 3, Q[:, 0], MU[0]),
    ("mapmri_phi_1d", 4, Q[:, 0], MU[0]),
    ("mapmri_psi_1d", 5, R[:, 0], MU[0]),
    ("mapmri_phi_matrix", ORDER, MU, Q),
    ("mapmri_psi_matrix", ORDER, MU, R),
    ("mapmri_odf_matrix", ORDER, MU, 2, DIRECTIONS),
    ("mapmri_odf_matrix", 4, MU, 0, DIRECTIONS),
    ("mapmri_isotropic_phi_matrix", ORDER, U0, Q),
    ("mapmri_isotropic_radial_signal_basis", 2, 4, U0, LENGTHS),
    ("mapmri_isotropic_M_mu_independent", ORDER, Q),
    ("mapmri_isotropic_M_mu_dependent", ORDER, U0, LENGTHS),
    ("mapmri_isotropic_psi_matrix", ORDER, U0, R),
    ("mapmri_isotropic_radial_pdf_basis", 2, 2, U0, np.linalg.norm(R, axis=1)),
    ("mapmri_isotropic_K_mu_independent", ORDER, R),
    ("mapmri_isotropic_K_mu_dependent", ORDER, U0, R),
    ("binomialfloat", 5.5, 2),
    ("mapmri_isotropic_odf_matrix", ORDER, U0, 2, DIRECTIONS),
    ("mapmri_isotropic_odf_sh_matrix", ORDER, U0, 2),
    ("mapmri_isotropic_laplacian_reg_matrix", ORDER, U0),
    ("mapmri_isotropic_laplacian_reg_matrix_from_index_matrix", ISO, U0),
    ("mapmri_isotropic_index_matrix", ORDER),
    ("create_rspace", 10, 0.02),
    ("create_rspace", 15, 0.02),
    ("delta", 3, 3),
    ("delta", 3, 4),
    ("map_laplace_u", 2, 2),
    ("map_laplace_t", 2, 4),
    ("map_laplace_s", 1, 5),
    ("map_laplace_s", 3, 3),
    ("mapmri_STU_reg_matrices", ORDER),
    ("mapmri_laplacian_reg_matrix", INDEX, MU, *STU),
]


@pytest.mark.parametrize(("name", "arguments"), [(n, a) for n, *a in CALLS])
def test_same_values(name, arguments):
    expected, found = getattr(theirs, name)(*arguments), getattr(drop_in, name)(*arguments)
    assert np.shape(found) == np.shape(expected)
    scale = float(np.abs(expected).max()) or 1.0
    # DIPY's points are of single precision
    rtol = {"create_rspace": 1e-7, "mapmri_STU_reg_matrices": 1e-12}.get(name, 1e-8)
    assert_allclose(found, expected, rtol=rtol, atol=min(1e-8, rtol) / 100 * scale)


@pytest.mark.parametrize("seed", range(4))
def test_generalised_cross_validation(seed):
    """At least as good as DIPY's, by DIPY's own measure; the measures agree."""
    M = theirs.mapmri_phi_matrix(ORDER, MU, Q)
    L = theirs.mapmri_laplacian_reg_matrix(INDEX, MU, *STU)
    rng = np.random.default_rng(seed)
    data = np.exp(-0.5 * (2 * np.pi * Q * MU) ** 2 @ np.ones(3)) + 0.05 * rng.normal(size=len(Q))
    args, weights = (data, M, M.T @ M, len(M), L), np.linspace(0.05, 1, 20)
    cost = partial(drop_in.gcv_cost_function, args=args)
    for weight in (0.01, 0.2, 2.0):
        assert_allclose(cost(weight), theirs.gcv_cost_function(weight, args), rtol=1e-6)
    for name, more in (
        ("generalized_crossvalidation", {}),
        ("generalized_crossvalidation_array", {}),
        ("generalized_crossvalidation_array", {"weights_array": weights[::2]}),
    ):
        found = getattr(drop_in, name)(data, M, L, **more)
        expected = float(np.ravel(getattr(theirs, name)(data, M, L, **more))[0])
        assert np.ndim(found) == 0
        assert cost(found) <= cost(expected) * (1 + 1e-9)
    best = weights[np.argmin([cost(w) for w in weights])]
    assert drop_in.generalized_crossvalidation_array(data, M, L) == best
