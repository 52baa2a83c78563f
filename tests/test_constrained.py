"""The constrained modes: hard inputs, fallback, bases, bits, certificates."""

from functools import lru_cache

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose

import mapmri_nb as mapmri
from mapmri_nb import Status, positivity, sos

TAU = 0.03
MODES = ("grid", "global")


@lru_cache
def table(kind="full"):
    """Three shells: of 30 directions, of 15 (48 volumes in all), or of the same six repeated; or
    four, up to b = 10000.
    """
    if kind == "wide":
        b, g = truth.scheme([12, 24, 36, 48], [1000, 3000, 6000, 10000], 4)
        return mapmri.GradientTable(b, g, tau=TAU)
    b, g = truth.scheme([15 if kind == "few" else 30] * 3, [1000, 2000, 3000], 3)
    if kind == "duplicated":
        six = [(1, 0, 2), (-1, 0, 2), (2, 1, 0), (2, -1, 0), (0, 2, 1), (0, 2, -1)]
        g[3:] = np.tile(np.array(six) / np.sqrt(5), (15, 1))
    return mapmri.GradientTable(b, g, tau=TAU)


def signals(gtab, count, noise=0.04, seed=0):
    return phantom.signals(count, gtab.bvals, gtab.bvecs, seed, noise)


def hard(gtab):
    return phantom.hard(gtab.bvals, signals(gtab, 1, 0.0)[0])


ORDINARY = ("clean", "noise 0", "noise 1", "constant", "one spike", "spikes", "missing", "infinite")
CHEAP = ("clean", "noise 0", "one spike", "constant", "missing", "infinite", "negative", "zeros", "all missing", "one sample",
         "tinier", "b0 alone")  # fmt: skip


def objective(fit, v, y, c, R):
    """|M c - d|^2 + weight c'Lc of row v, dense."""
    residual = oracle.phi_matrix(fit.order, fit.mu[v], fit.gtab.qvecs @ R) @ c - y / fit.S0[v]
    L = oracle.laplacian_matrix(fit.order, fit.mu[v])
    return residual @ residual + fit.laplacian_weight[v] * c @ L @ c


def check_rows(fit):
    """Every row has a feasible answer or NaN with a status; returns which have an answer."""
    B, K = oracle.aniso_origin(fit.order), positivity.normalised_grid(fit.order).K
    to_hermite = oracle.iso_to_aniso(fit.order) if fit.isotropic else np.eye(len(B))
    answered, mode = (fit.status & Status.NO_FIT) == 0, fit.options["positivity"]
    assert np.isnan(fit.coef[~answered]).all()
    assert mode != "global" or fit.certificate().certified[answered].all()
    for v in np.flatnonzero(answered):
        c = to_hermite @ fit.coef[v]  # where it was solved: isotropic along the b-vectors
        assert np.isfinite(c).all()
        assert abs(B @ c - 1) < 1e-10 or fit.S0[v] < 1e-300  # which has no digits left
        if mode == "grid":
            p = K @ c
            assert p.min() >= -1e-10 * p.max()  # 1e-12 but for the hardest inputs
    for volume in (fit.rtop(), fit.msd(), fit.ng(), fit.negative()[1]):
        assert np.array_equal(np.isfinite(volume), answered)
    return answered


# ---- hard inputs


@pytest.mark.jit_only
@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize(
    ("order", "kind", "basis", "weight"),
    [
        (6, "full", "isotropic", 0.2),
        (6, "full", "anisotropic", "gcv"),
        (4, "duplicated", "anisotropic", None),
        (8, "few", "anisotropic", 1e-6),  # where a noise voxel takes OSQP ten seconds to fail
        (4, "few", "isotropic", None),
        (2, "full", "anisotropic", None),
        (10, "wide", "anisotropic", 0.05),
    ],
)
def test_hard_inputs_end_with_a_status(mode, order, kind, basis, weight):
    gtab = table(kind)
    inputs = hard(gtab)
    if mode is None and weight is None:
        weight = 0.2  # the table alone does not determine the order
    if (mode == "grid" and order == 8) or order == 10:
        inputs = {name: inputs[name] for name in CHEAP}
    model = mapmri.MapmriModel(gtab, order, basis=basis, laplacian=weight, positivity=mode)
    fit = model.fit(np.array(list(inputs.values())))
    answered = dict(zip(inputs, check_rows(fit), strict=True))
    status = {name: Status(int(fit.status[v])) for v, name in enumerate(inputs)}
    assert not any(answered[name] for name in ("negative", "zeros", "all missing", "one sample"))
    assert all(status[name] & Status.NO_SIGNAL for name in ("zeros", "all missing"))
    assert status["infinite"] & Status.DROPPED
    wanted = ORDINARY if kind == "full" else ["clean", "constant", "infinite"]
    missing = {name: status[name] for name in wanted if not answered[name]}
    assert not missing


@pytest.mark.parametrize("laplacian", [None, 0.2])
def test_order_zero_is_the_gaussian(laplacian):
    gtab = table()
    y = signals(gtab, 2)
    y[0, np.flatnonzero(gtab.b0s_mask)[0]] *= 1.1  # E(0) = S0 does not hold at the optimum
    plain = mapmri.MapmriModel(gtab, 0, laplacian=laplacian).fit(y)
    for mode in MODES:
        fit = mapmri.MapmriModel(gtab, 0, positivity=mode, laplacian=laplacian).fit(y)
        assert_allclose(fit.coef, 1.0, rtol=1e-13)
        assert fit.certificate().certified.all()
        assert_allclose(fit.S0, plain.S0, rtol=2e-9)  # the ridge of the grid


# ---- fallback, OSQP


def capped_at(steps, model):
    """The same model with a cap on the steps of its compiled solver."""
    model.engine.solver.max_iter = steps
    return model


@pytest.mark.parametrize("weight", [None, 0.2])
def test_iteration_cap_forces_osqp_to_the_same_optimum(weight):
    gtab, options = table(), {"laplacian": weight, "positivity": "grid"}
    y = signals(gtab, 6)
    auto, osqp = (
        mapmri.MapmriModel(gtab, 4, solver=solver, **options).fit(y) for solver in ("auto", "osqp")
    )
    model = capped_at(1, mapmri.MapmriModel(gtab, 4, **options))
    capped, turned = model.fit(y), model.fit(y[::-1], threads=2)
    assert np.array_equal(turned.coef[::-1], capped.coef)  # whoever answers, whatever the order
    assert not np.any(auto.status & Status.BY_OSQP)
    assert np.all(osqp.status & Status.BY_OSQP)
    by_osqp = (capped.status & Status.BY_OSQP) != 0
    assert by_osqp.sum() >= 3  # where no point of the grid binds, one step is all it takes
    assert np.array_equal(capped.coef[by_osqp], osqp.coef[by_osqp])
    for fit in (auto, capped, osqp):
        assert check_rows(fit).all()
        assert (fit.rows()["kkt"] < 1e-6).all()
    for v in range(len(y)):
        one, two = (objective(fit, v, y[v], fit.coef[v], fit.R[v]) for fit in (auto, capped))
        assert two == pytest.approx(one, rel=1e-7)


@pytest.mark.jit_only
def test_global_by_osqp_is_near_the_optimum():
    """The reference route: certified, feasible, a little above the interior point."""
    gtab, options = table(), {"laplacian": 0.2, "positivity": "global", "preset": "paper"}
    y = signals(gtab, 2, seed=3)
    auto, osqp = (mapmri.MapmriModel(gtab, 4, solver=s, **options).fit(y) for s in ("auto", "osqp"))
    assert np.all(osqp.status & Status.BY_OSQP)
    assert check_rows(osqp).all()
    for v in range(len(y)):
        best, other = (objective(fit, v, y[v], fit.coef[v], fit.R[v]) for fit in (auto, osqp))
        assert best * (1 - 1e-6) <= other <= best * (1 + 1e-2)


def test_global_cap_is_a_status():
    gtab = table()
    fit = capped_at(1, mapmri.MapmriModel(gtab, 4, positivity="global")).fit(signals(gtab, 3))
    assert np.all(fit.status & Status.NOT_CONVERGED)
    assert not check_rows(fit).any()


# ---- bases, grids, bits


@pytest.mark.parametrize("mode", MODES)
def test_weight_is_chosen_before_the_constraint(mode):
    gtab = table()
    y = signals(gtab, 6)
    for laplacian in ("gcv", [0.02, 0.1, 0.5]):
        free, bound = (
            mapmri.MapmriModel(gtab, 4, laplacian=laplacian, positivity=p).fit(y)
            for p in (None, mode)
        )
        assert np.array_equal(free.laplacian_weight, bound.laplacian_weight)
        assert check_rows(bound).all()


@pytest.mark.parametrize("mode", MODES)
def test_constraint_costs_unless_the_free_answer_is_certified(mode):
    """Against the minimum with E(0) = 1 alone, dense; equal where that one is certified."""
    gtab, weight = table(), 0.02
    kept, B = 0, oracle.aniso_origin(4)
    smooth = 100 * truth.mixture_signal(*truth.MIXTURES["BiIso"], gtab.bvals, gtab.bvecs)
    y = np.vstack([signals(gtab, 5, 0.1), smooth])
    model = mapmri.MapmriModel(gtab, 4, laplacian=weight, positivity=mode, preset="paper")
    fit = model.fit(y)
    for v in range(len(y)):
        M = oracle.phi_matrix(4, fit.mu[v], gtab.qvecs @ fit.R[v])
        H = M.T @ M + weight * oracle.laplacian_matrix(4, fit.mu[v])
        bordered = np.block([[H, B[:, None]], [B, np.zeros(1)]])
        free = np.linalg.solve(bordered, np.r_[M.T @ y[v] / fit.S0[v], 1.0])[:-1]
        best, ours = (objective(fit, v, y[v], c, fit.R[v]) for c in (free, fit.coef[v]))
        assert ours >= best * (1 - 1e-12)
        if sos.certify(free, 4).certified[0]:
            kept += 1
            assert ours == pytest.approx(best, rel=1e-6)
            assert_allclose(fit.coef[v], free, atol=1e-4 * np.abs(free).max())
        else:
            assert ours > best * (1 + 1e-6)
    assert 0 < kept < len(y)


@pytest.mark.nojit
@pytest.mark.parametrize("mode", MODES)
def test_without_the_compiler(mode):
    gtab = mapmri.GradientTable(*truth.scheme([8, 8], [1000, 2000], 1), tau=TAU)
    for order in (0, 2):
        fit = mapmri.MapmriModel(gtab, order, laplacian=None, positivity=mode).fit(signals(gtab, 2))
        assert check_rows(fit).all()
