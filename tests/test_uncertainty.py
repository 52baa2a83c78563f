"""Error bars: against closed forms, sampling, finite differences and the fits themselves."""

from functools import partial
from math import sqrt

import numpy as np
import oracle
import pytest
import truth
from numpy.testing import assert_allclose, assert_array_equal
from shell import command, fails, load, make_series, read, refused, save, sidecar, words

import mapmri_nb as mapmri
from mapmri_nb import io, stream, uncertainty
from mapmri_nb import model as model_module
from mapmri_nb.engine import Work
from mapmri_nb.indices import INDICES, select
from mapmri_nb.kernels import lanes, linalg, qp, scalars
from mapmri_nb.positivity import normalised_grid

TAU = 0.03
BASES = ("anisotropic", "isotropic")
LINEAR = ("rtop", "rtap", "rtpp", "msd")
GRID = {"positivity": "grid"}


GTAB = mapmri.GradientTable(*truth.scheme([20, 30], [1000, 2500]), tau=TAU)


def noisy(rng, count=1, sigma=0.01, gtab=GTAB):
    clean = truth.mixture_signal(*truth.MIXTURES["X60"], gtab.bvals, gtab.bvecs)
    return 700 * (clean + sigma * rng.standard_normal((count, len(gtab))))


def voxel_of(model, fit, y, weights):
    """The linear problem of the first voxel."""
    held, work = uncertainty._held(model), Work(model.engine, lanes.GRAIN)
    w, rows = np.broadcast_to(weights, y[:1].shape), np.arange(1)
    equations = uncertainty._equations(model, fit, held, work, rows, y[:1], w)
    return next(uncertainty._voxels(model, fit, equations))


def index_of(name, fit, coef, v=0):
    """An index of any Hermite coefficients at a fit's scales, by the accessors of a fit."""
    c = coef / (oracle.aniso_origin(fit.order) @ coef)
    rows = {key: row[v : v + 1] for key, row in fit.rows().items()}
    rows |= {"coef": c[None], "hermite": c[None]}
    other = mapmri.MapmriFit(rows, np.ones(1, bool), fit.options, fit.gtab)
    return float(other.index(name)[0])


@pytest.mark.parametrize("basis", BASES)
def test_posterior_meets_the_gradients(basis, rng):
    """sd^2 = f' Cov f' with f' by central differences of the fit's accessors, weights and field
    too; of coefficients of another E(0) the same; NaN where it is not positive, but for PA_DTI.
    """
    w = 0.1
    weights, field = rng.uniform(0.5, 2, len(GTAB)), 0.05 * rng.standard_normal((2, 3, 3))
    y, names = noisy(rng, 2, sigma=0.01), select(None, basis)
    y[1, 17] = np.nan
    model = mapmri.MapmriModel(GTAB, 4, basis=basis, laplacian=w, preset="paper")
    found = uncertainty.posterior(model, y, weights=weights, grad_dev=field)
    fit, w_k = found.fit, np.where(np.isnan(y[1]), 0.0, weights)
    frame = fit.R[1] + fit.field[1].T @ fit.R[1]
    M = oracle.phi_matrix(4, fit.mu[1], GTAB.qvecs @ frame)
    H = (M.T * w_k) @ M + w * oracle.laplacian_matrix(4, fit.mu[1])
    coef, rest = fit.hermite_coef()[1], np.nan_to_num(y[1]) - fit.predict()[1]
    trace = np.trace(np.linalg.solve(H, (M.T * w_k) @ M))
    square = (w_k * rest**2).sum() / ((w_k > 0).sum() - trace) / fit.S0[1] ** 2
    for name in names:
        h, eye = 1e-5, np.eye(len(coef))
        ends = [[index_of(name, fit, coef + s * h * e, 1) for e in eye] for s in (1, -1)]
        slope = np.subtract(*ends) / (2 * h)
        sd = sqrt(square * (slope @ np.linalg.solve(H, slope)))
        assert found.sd[name][1] == pytest.approx(sd, rel=1e-5, abs=1e-12), name
        own = float(fit.index(name)[1])
        assert found.mean[name][1] == pytest.approx(own, rel=1e-11)
        want = own + found.sd[name][1] * np.array(uncertainty.NORMAL)
        assert_allclose(found.intervals[name][1], want, rtol=1e-11)
        values = uncertainty._values(fit, 1, coef * [[1], [3], [-1]], [name])[0]
        assert_allclose(values[:2], own, rtol=1e-11)
        assert np.isnan(values[2]) == (name != "pa_dti")


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("hc", [0, 2, 3])
def test_bootstrap_meets_the_closed_form(basis, hc, rng):
    """For the linear indices within 5 / sqrt(2 B), weights and field too.

    Cov(a*) = A diag(e^2 / (1-h)^2g) A', A = (M'WM + w L)^-1 M'W, about A M a; h, of M A, exactly.
    """
    B, w = 1500, 0.05
    weights, field = rng.uniform(0, 2, len(GTAB)), 0.05 * rng.standard_normal((1, 3, 3))
    y, more = noisy(rng, sigma=0.005), {"weights": weights, "grad_dev": field}
    model = mapmri.MapmriModel(GTAB, 4, basis=basis, laplacian=w, preset="paper")
    found = uncertainty.bootstrap(model, y, n=B, hc=hc, seed=3, indices=list(LINEAR), **more)
    fit = found.fit
    M = oracle.phi_matrix(4, fit.mu[0], GTAB.qvecs @ (np.eye(3) + field[0]).T @ fit.R[0])
    MW = M.T * weights
    A = np.linalg.solve(MW @ M + w * oracle.laplacian_matrix(4, fit.mu[0]), MW)
    e, h = y[0] - M @ (A @ y[0]), np.einsum("kn,nk->k", M, A)
    assert_allclose(voxel_of(model, fit, y, weights).leverage, h, rtol=1e-8, atol=1e-12)
    half = A * (e / (1 - h) ** {0: 0, 2: 0.5, 3: 1}[hc])
    mean, origin = A @ (M @ (A @ y[0])), oracle.aniso_origin(4)
    # Rows of the indices, of coefficients that need not have E(0) = 1.
    values, mu = np.empty((len(A), 9)), np.tile(fit.mu[0], (len(A), 1))
    scalars.index_rows(np.eye(len(A)), mu, scalars.tables(4), scalars.room(4), values, 0, len(A))
    for name in LINEAR:
        row, sd = values[:, INDICES[name].column], found.sd[name][0]
        value = row @ mean / (origin @ mean)
        slope = (row - value * origin) / (origin @ mean)
        assert sd == pytest.approx(np.linalg.norm(slope @ half), rel=5 / sqrt(2 * B)), name
        assert found.mean[name][0] == pytest.approx(value, abs=5 * sd / sqrt(B))
        own, (low95, low68, high68, high95) = float(fit.index(name)[0]), found.intervals[name][0]
        assert low95 < low68 < own < high68 < high95  # about the fit's own value
        assert high68 - low68 == pytest.approx(2 * sd, rel=0.15)
        assert high95 - low95 == pytest.approx(3.92 * sd, rel=0.15)


@pytest.mark.parametrize("options", [{}, {"basis": "isotropic"}, GRID], ids=str)
def test_seeded_and_the_same_on_any_threads(options, rng, monkeypatch):
    model, y = mapmri.MapmriModel(GTAB, 4, **options), noisy(rng, 7)
    call = partial(uncertainty.bootstrap, model, y, n=30, seed=5)
    one, three = call(threads=1), call(threads=3)
    monkeypatch.setattr(model_module, "CHUNK", 2)  # slabs of two voxels
    cut = call(threads=2)
    other = uncertainty.bootstrap(model, y, n=30, seed=6)
    for name in one.sd:
        for again in (three, cut):
            assert_array_equal(one.sd[name], again.sd[name])
            assert_array_equal(one.intervals[name], again.intervals[name])
        assert name == "pa_dti" or (one.sd[name] != other.sd[name]).all()


@pytest.mark.nojit
@pytest.mark.parametrize("weight", [0.0, 0.2])
@pytest.mark.parametrize("order", [2, pytest.param(6, marks=pytest.mark.jit_only)])
def test_many_answers_of_one_matrix(order, weight, rng):
    """Fits of one matrix find what each alone does; without steps it says so."""
    gtab = mapmri.GradientTable(*truth.scheme([20, 30, 40], [1000, 2000, 3000]), tau=TAU)
    mu, grid = np.array([9e-3, 5e-3, 4e-3]), normalised_grid(order)
    M, B = oracle.phi_matrix(order, mu, gtab.qvecs), oracle.aniso_origin(order)
    H = M.T @ M + weight * oracle.laplacian_matrix(order, mu)
    g = np.ascontiguousarray((noisy(rng, 40, sigma=0.1, gtab=gtab) / 700) @ M)
    c, failed = np.empty_like(g), np.empty(40, np.int64)
    one, info = np.empty(len(B)), np.empty(3)
    problem = qp.GridProblem(B, 1, grid.rows, 2000)
    qp.solve_many(H, g, problem, c, failed)
    assert not failed.any()
    work, active = qp.workspace(len(B), grid.rows.values.shape[1]), set()
    for k in range(40):
        assert qp.solve(H, g[k], problem, work, one, info) == qp.SOLVED
        active.add(int(info[2]))
        assert_allclose(c[k], one, atol=1e-10)
    assert order < 4 or len(active) > 3  # they differ in what holds them
    qp.solve_many(H, g, qp.GridProblem(B, 1, grid.rows, 0), c, failed)
    assert failed.all()


def test_held_replicates_are_fits(rng):
    """One matrix for all replicates gives what the model's own fits of them give."""
    b, g = truth.scheme([20, 30, 30], [1000, 2000, 3000])
    b[:6], g[:6] = 15.0, g[6:12]  # a b0 that is not E = 1
    gtab = mapmri.GradientTable(b, g, tau=TAU)
    model = mapmri.MapmriModel(gtab, 6, positivity="grid", laplacian=0.05)
    weights, field = rng.uniform(0.5, 2, len(gtab)), 0.05 * rng.standard_normal((1, 3, 3))
    y = noisy(rng, sigma=0.05, gtab=gtab)
    y[0, 17] = np.nan
    fit, names = model.fit(y, weights=weights, grad_dev=field), select(None, "anisotropic")
    voxel = voxel_of(model, fit, y, weights)
    assert_array_equal(voxel.w, np.where(np.isnan(y[0]), 0, weights))
    assert_allclose(voxel.fitted, fit.predict()[0], rtol=1e-9)
    again = voxel.fitted + 20 * rng.standard_normal((12, len(gtab)))
    right = again @ voxel.right.T / (again @ voxel.at_origin)[:, None]
    coef, failed = model.engine.solver.many(voxel.H, right)
    assert not failed.any()
    want = uncertainty._refitted(model, fit, voxel, again, names, True, True)
    assert_allclose(uncertainty._values(fit, 0, coef, names), want, rtol=1e-7)


def test_replicates_that_the_solver_leaves_go_to_osqp(rng, monkeypatch):
    capped, model = (mapmri.MapmriModel(GTAB, 4, positivity="grid") for _ in range(2))
    y = noisy(rng, sigma=0.05)
    found, counted = uncertainty.bootstrap(model, y, n=4), []
    capped.engine.solver.max_iter = 3
    call = uncertainty._refitted
    monkeypatch.setattr(uncertainty, "_refitted", lambda *a: counted.append(len(a[3])) or call(*a))
    for name, sd in uncertainty.bootstrap(capped, y, n=4).sd.items():
        assert_allclose(sd, found.sd[name], rtol=1e-3, atol=1e-9)
    assert counted


def test_signed_sums(rng):
    """All rows with the signs of the bits, as a product with a matrix of signs."""
    A, bits = lanes.empty(37, lanes.WIDTH), rng.integers(0, 256, (5, 6), dtype=np.uint8)
    A[:], out = rng.standard_normal(A.shape), lanes.empty(5, lanes.WIDTH)
    linalg.signed_sums(A, bits, lanes.empty(64, lanes.WIDTH), out)
    signs = 2.0 * np.unpackbits(bits, axis=1, bitorder="little")[:, :37] - 1
    assert_allclose(out, signs @ A, atol=1e-13)


@pytest.mark.jit_only
@pytest.mark.parametrize(
    "options",
    [GRID, {"positivity": "global"}, GRID | {"solver": "osqp"}, {"laplacian": "gcv"}],
    ids=str,
)
@pytest.mark.parametrize("hold", [True, False])
def test_every_mode_has_a_spread(options, hold, rng):
    """Replicates through a mode scatter as repeated measurements do."""
    osqp = "solver" in options
    model = mapmri.MapmriModel(GTAB, 4, **({"laplacian": 0.02} | options))
    y = noisy(rng, 40, sigma=0.03)
    repeated, voxels = model.fit(y[: 8 if osqp else 40]), y[: 1 if osqp else 5]
    found = uncertainty.bootstrap(model, voxels, n=8 if osqp else 30, hold=hold, indices="rtpp,msd")
    assert_array_equal(found.fit.coef, repeated.coef[: len(voxels)])
    for name in ("rtpp", "msd"):
        ratio = np.median(found.sd[name]) / np.std(repeated.index(name), ddof=1)
        assert (0.25 < ratio < 4) if osqp else (0.6 < ratio < 1.7), (name, ratio)


def test_hold_or_estimate_again(rng):
    model, y = mapmri.MapmriModel(GTAB, 4), noisy(rng)
    held, free = (uncertainty.bootstrap(model, y, n=50, hold=hold) for hold in (True, False))
    assert held.sd["pa_dti"][0] < 1e-12 < 1e-5 < free.sd["pa_dti"][0]
    assert held.sd["ng"][0] != free.sd["ng"][0]
    scale = (held.fit.mu, held.fit.R)  # the caller's: not the replicates' to estimate
    given = uncertainty.bootstrap(model, y, n=50, hold=False, scale=scale)
    for name in held.sd:
        assert given.sd[name][0] == pytest.approx(held.sd[name][0], rel=1e-6, abs=1e-12), name


def test_bad_voxels_and_a_mask(rng):
    y = noisy(rng, 4).reshape(2, 2, -1)
    y[0, 1], y[1, 0, 3] = 0.0, np.nan
    mask, model = np.array([[True, True], [True, False]]), mapmri.MapmriModel(GTAB, 4)
    alone = uncertainty.bootstrap(model, y[1, 0], n=20, indices="rtop")
    bars = (uncertainty.bootstrap(model, y, mask, n=20), uncertainty.posterior(model, y, mask))
    for found in bars:
        for name in INDICES:
            for volume in (found.mean[name], found.sd[name], found.intervals[name][..., 0]):
                assert np.isnan(volume).tolist() == [[False, True], [False, True]], name
    assert found.intervals["rtop"].shape == (2, 2, 4)
    assert alone.sd["rtop"].shape == ()


def test_what_cannot_be(rng):
    model, y = mapmri.MapmriModel(GTAB, 4), noisy(rng)
    wrong = {"n": (1, 2.5, "many", None), "hc": (1,), "seed": (-1, 0.5, "a")}
    for name, values in wrong.items():
        for value in values:
            text = f"{name} must be .* not {value!r}"
            refused(text, uncertainty.bootstrap, model, y, **{name: value})
    grid, isotropic = (mapmri.MapmriModel(GTAB, 4, **o) for o in (GRID, {"basis": "isotropic"}))
    refused("posterior: .*'grid'.*bootstrap", uncertainty.posterior, grid, y)
    refused("ng_par", uncertainty.posterior, isotropic, y, indices="ng_par")


@pytest.fixture
def series(tmp_path, monkeypatch, rng):
    """A series on disk: its path, model, samples, mask, weights, field."""
    dwi = make_series(tmp_path)
    y, mask = np.asarray(io.load_dwi(dwi).data[:]), load(tmp_path / "x_mask.nii.gz") > 0
    weights = rng.uniform(0.5, 2, y.shape).astype(np.float32)
    field = (0.05 * rng.standard_normal((*mask.shape, 9))).astype(np.float32)
    for name, values in (("weights", weights), ("graddev", field)):
        save(tmp_path / f"{name}.nii", values, np.diag([1.0, 2, 3, 1]))
    np.savetxt(tmp_path / "weights.txt", weights[0, 0, 0])
    monkeypatch.chdir(tmp_path)
    model = mapmri.MapmriModel(mapmri.GradientTable.from_bids(dwi), 2)
    return dwi, model, y, mask, weights.astype(float), field.astype(float)


def test_command_writes_error_bars(series, capsys):
    dwi, model, y, mask, weights, field = series
    out, more = dwi.parent / "out", "--weights weights.nii --grad-dev graddev.nii --units um"
    assert command(*words(dwi, out), more, "--bootstrap 20 --seed 7") == 0
    found = uncertainty.bootstrap(model, y, mask, n=20, seed=7, weights=weights, grad_dev=field)
    saved = mapmri.load_fit(out)
    assert_array_equal(saved.coef, found.fit.coef)
    assert_array_equal(saved.field, found.fit.field)
    for name in select(None, "anisotropic"):
        label, factor = INDICES[name].label, 1000.0 ** INDICES[name].power
        ends = found.intervals[name][..., [0, 3]]
        assert_allclose(read(out, label), found.fit.index(name) * factor, rtol=1e-6)
        assert_allclose(read(out, f"{label}_desc-sd"), found.sd[name] * factor, rtol=1e-6)
        assert_allclose(read(out, f"{label}_desc-ci95"), ends * factor, rtol=1e-6)
    entries = sidecar(out, "rtop_desc-sd")
    said = [entries[key] for key in ("Replicates", "Seed", "Scales", "Units")]
    assert said == [20, 7, "estimated again", "um^-3"]
    models = model, mapmri.MapmriModel(GTAB, 4), mapmri.MapmriModel(GTAB, 4, laplacian="gcv")
    assert list(map(uncertainty.held_by_default, models)) == [False, True, False]
    assert "bootstrap" in entries["Method"]
    fails(capsys, words(dwi, out, "--bootstrap", 20), "already", "--force")
    more = "--posterior --weights weights.txt --indices rtop --force"
    assert command(*words(dwi, out), more) == 0
    assert not list(out.glob("*msd_desc*"))  # those of the old fit are gone
    per_volume = np.loadtxt("weights.txt")
    want = uncertainty.posterior(model, y, mask, weights=per_volume, indices="rtop")
    assert_allclose(read(out, "rtop_desc-sd"), want.sd["rtop"], rtol=1e-6)


def test_command_takes_up_weights_and_field(series, monkeypatch, capsys):
    """Slabs carry their own weights and field; other weights are another fit."""
    dwi, model, y, mask, weights, field = series
    out = dwi.parent / "out"
    for option, file, *said in (
        ("--weights", "x_mask.nii.gz", "x_mask.nii.gz"),
        ("--weights", "graddev.nii", "--weights: ", "has shape"),
        ("--grad-dev", "weights.nii", "--grad-dev: ", "has shape"),
    ):
        fails(capsys, words(dwi, out, option, file), *said)
        assert not out.exists()
    monkeypatch.setattr(stream, "SLAB", 5)
    more = "--weights weights.nii --grad-dev graddev.nii --indices msd"
    assert command(*words(dwi, out), more) == 0
    want = model.fit(y, mask, weights=weights, grad_dev=field)
    assert_array_equal(mapmri.load_fit(out).coef, want.coef)
    job = stream.Job(model, dwi, io.load_dwi(dwi), mask, out, "", ["msd"])
    job = job._replace(more={"weights": (dwi.with_name("weights.nii"), None)})
    before = job.key()
    save(dwi.with_name("weights.nii"), (2 * weights).astype(np.float32))
    assert job.key() != before
