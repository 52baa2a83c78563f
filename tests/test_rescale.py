"""The basis' own scale: where positivity and the tensor's scale contradict the data."""

from types import SimpleNamespace

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose, assert_array_equal

import mapmri_nb as mapmri
from mapmri_nb.engine import Work
from mapmri_nb.kernels import origin, rescale
from mapmri_nb.kernels._jit import plain
from mapmri_nb.kernels.lanes import GRAIN
from mapmri_nb.kernels.rescale import STEP, STEPS
from mapmri_nb.kernels.status import NO_FIT
from mapmri_nb.positivity import normalised_grid
from mapmri_nb.testing import Case
from mapmri_nb.testing.programs import Ours
from mapmri_nb.use import uncertainty


def slow_tail(seed=0):
    """Table and noisy signals of which a fifth hardly diffuses: (n,), (3, n)."""
    rng = np.random.default_rng(seed)
    g = np.vstack([np.zeros((6, 3)), phantom.unit(rng.standard_normal((120, 3)))])
    b = np.r_[np.zeros(6), np.repeat([700.0, 2000.0, 12000.0], 40)]
    along = g[:, 2] ** 2
    y = 0.8 * np.exp(-b * (0.6e-3 + 0.9e-3 * along)) + 0.2 * np.exp(-b * 0.04e-3)
    return phantom.table(b, g), 100 * y + 0.5 * rng.standard_normal((3, len(y)))


def problem(gtab, y, mu, R, factor, order=6, weight=0.2):
    """Normal equations and the rule's bound of one voxel at a factor of the tensor's scale."""
    M = oracle.phi_matrix(order, factor * mu, gtab.qvecs @ R)
    B, L = oracle.aniso_origin(order), oracle.laplacian_matrix(order, factor * mu)
    square, half = factor**2, oracle.aniso_table(order).sum(1) // 2
    e = (2 * square / (1 + square)) ** 1.5 * B * ((1 - square) / (1 + square)) ** half
    b0 = gtab.b0s_mask
    S0 = oracle.scale_S0(y, gtab.bvals, gtab.bvecs, R @ np.diag(mu**2 / (2 * phantom.TAU)) @ R.T)
    H = M.T @ M + weight * L + b0.sum() * np.outer(B, B)
    g = M.T @ y + weight * S0 * L @ e + b0.sum() * S0 * B
    spent = np.trace(np.linalg.solve(H, M.T @ M))
    free = np.sum((y - M @ np.linalg.solve(H, g)) ** 2)
    return H, g, free * len(y) / (len(y) - spent)


def test_deviation_solves_its_normal_equations():
    """(M'M + w L + k B B') c = M'y + w S0 L e_0 + k S0 B, with b0 at b = 5."""
    gtab = phantom.table(*truth.scheme_hcp())
    y = phantom.signals(1, gtab.bvals, gtab.bvecs)
    fit = mapmri.MapmriModel(gtab, laplacian=0.3).fit(y)
    c = np.linalg.solve(*problem(gtab, y[0], fit.mu[0], fit.R[0], 1.0, weight=0.3)[:2])
    assert_allclose(fit.S0[0] * fit.coef[0], c, rtol=1e-9, atol=1e-9 * fit.S0[0])


@pytest.mark.parametrize("positivity", [pytest.param("grid", marks=pytest.mark.nojit), "global"])
def test_the_scale_is_reduced_until_positivity_is_believed(positivity):
    gtab, y = slow_tail()
    held, fit = (
        mapmri.MapmriModel(gtab, 6, positivity=positivity, scale=scale).fit(y)
        for scale in ("tensor", "data")
    )
    factor = fit.mu[:, 0] / fit.mu_tensor[:, 0]
    assert_allclose(fit.mu, factor[:, None] * fit.mu_tensor, rtol=1e-14)
    assert np.array_equal(held.mu, held.mu_tensor)
    for v in range(len(y)):
        *_, bound = problem(gtab, y[v], held.mu[v], held.R[v], 1.0)
        square = len(gtab) * np.array([held.rmse()[v], fit.rmse()[v]]) ** 2
        assert square[0] > bound  # the bound is why it moved
        assert square[1] <= bound or factor[v] == pytest.approx(1 - STEP * STEPS)
        H, g, _ = problem(gtab, y[v], held.mu[v], held.R[v], factor[v])
        c = fit.S0[v] * fit.hermite_coef()[v]
        on = normalised_grid(6).K @ c
        if positivity == "grid":  # stationary on the rows that hold, for this right-hand side
            rows = normalised_grid(6).K[on < 1e-6 * on.max()]
            left = H @ c - g
            fitted = np.linalg.lstsq(rows.T, left, rcond=None)[0]
            assert np.linalg.norm(rows.T @ fitted - left) < 1e-5 * np.linalg.norm(g)


def test_where_positivity_is_believed_nothing_changes():
    gtab, _ = slow_tail()
    y = 100 * np.exp(-gtab.bvals * 0.8e-3)
    y = y + np.random.default_rng(1).standard_normal((4, len(gtab)))
    for positivity in ("grid", "global", None):
        fits = [
            mapmri.MapmriModel(gtab, 4, positivity=positivity, scale=scale).fit(y)
            for scale in ("tensor", "data")
        ]
        assert_allclose(fits[0].coef, fits[1].coef, rtol=0, atol=1e-9)
        assert np.array_equal(fits[0].mu, fits[1].mu)


def test_held_fits_reproduce_it():
    gtab, y = slow_tail()
    model = mapmri.MapmriModel(gtab, 6, positivity="grid")
    fit = model.fit(y)
    assert (fit.mu[:, 0] < fit.mu_tensor[:, 0]).any()
    names = ["rtop", "msd", "ng", "ng_par", "ng_perp"]
    want, w = np.stack([fit.index_rows(name) for name in names]), np.ones_like(y)
    plan, work = uncertainty._held(model), Work(model.engine, GRAIN)
    problems = uncertainty._equations(model, fit, plan, work, np.arange(len(y)), y, w)
    for v, voxel in enumerate(uncertainty._voxels(model, fit, problems)):
        again = uncertainty._refitted(model, fit, voxel, y[v][None], names, True, True)
        assert_allclose(again[:, 0], want[:, v], rtol=1e-6)
        g = voxel.right @ y[v] / (voxel.at_origin @ y[v])
        coef, failed = model.engine.solver.many(voxel.H, g[None])
        held = uncertainty._values(fit, np.array([v]), coef, names)
        assert not failed.any()
        assert_allclose(held[:, 0], want[:, v], rtol=1e-6)


@pytest.mark.nojit
def test_ng_is_against_the_tensor():
    """Of a basis at 0.8 of its scale; another voxel's is at the scale itself."""
    case = Case(seed=3, order=6)
    coef = case.coefficients(2)
    mu, R = case.frame()
    fit, same = (Ours().made("anisotropic", coef, mu, R) for _ in range(2))
    tensor = mu / 0.8
    fit.mu_tensor = np.stack([tensor, mu])
    x = np.linspace(-7, 7, 57)
    for name, axes in (("ng", (0, 1, 2)), ("ng_par", (0,)), ("ng_perp", (1, 2))):
        u = np.stack(np.meshgrid(*[x if a in axes else [0.0] for a in range(3)]), -1).reshape(-1, 3)
        r = u * tensor
        P, G = oracle.psi_matrix(6, mu, r) @ coef[0], np.exp(-0.5 * (u**2).sum(1))
        cosine = (P @ G) / np.sqrt((P @ P) * (G @ G))
        assert fit.index_rows(name)[0] == pytest.approx(np.sqrt(1 - cosine**2), rel=1e-6)
        assert fit.index_rows(name)[1] == same.index_rows(name)[1]


def test_one_kind_of_b0_makes_the_sample_at_the_origin():
    gtab, _ = slow_tail()
    b, g = gtab.bvals.copy(), gtab.bvecs.copy()
    weak = np.flatnonzero(b == 700.0)[:20]
    b[weak] = 41.0
    table = phantom.table(b, g)
    assert table.b0s_mask[weak].all()
    assert not mapmri.MapmriModel(table, 4).at_origin[weak].any()
    assert mapmri.MapmriModel(table, 4, S0="free").at_origin[weak].all()


@pytest.mark.nojit
def test_steps_of_the_choice():
    """Believed at once, at the third factor, nowhere with the second, first or last as the best,
    and no fit.
    """
    square, V = np.full((6, STEPS + 1), 3.0), 6
    square[0, 0] = square[1, 2] = 1.0
    square[[2, 3, 4], [1, 0, STEPS]] = 2.0
    scale, moving = rescale.workspace(0, V, True), []
    scale.limit[:], scale.least[:] = 1.0, np.inf
    scale.factor[:] = 1.0
    held, settled = np.zeros((1, V)), np.zeros(V, np.int64)
    noise = SimpleNamespace(moving=np.full(1, 9), held=held, settled=settled)
    status, S0 = np.array([0, 0, 0, 0, 0, NO_FIT]), np.arange(7.0, 7.0 + V)[None]
    block = SimpleNamespace(scale=scale, noise=noise, status=status, S0=S0)
    while noise.moving[0] > 0 and len(moving) < 2 * STEPS:
        scale.square[0] = square[range(V), np.rint((1 - scale.factor[0]) / STEP).astype(int)]
        plain(rescale.shrink)(None, None, block, None, 0, V)
        moving.append(int(noise.moving[0]))
    assert moving == [4, 4, 3, 3, 2, 0]
    assert not noise.settled.any()  # the next block begins anew
    assert_array_equal(noise.held, S0)
    assert_allclose(scale.factor[0], 1 - STEP * np.array([0, 2, 1, 0, STEPS, 0]))


@pytest.mark.nojit
def test_a_given_factor_is_that_of_its_voxel():
    gtab, y = slow_tail()
    engine, factor = mapmri.MapmriModel(gtab, 2, positivity="grid").engine, np.array([1, 0.9, 0.8])
    out = engine.fit(phantom.rows_of(y, factor=factor))
    assert_allclose(out.mu, factor[:, None] * out.mu_tensor, rtol=1e-14)


@pytest.mark.nojit
@pytest.mark.parametrize("narrow", [True, False])
def test_the_deviation_from_a_gaussian(narrow, rng):
    """M'(y - S0 M e) and its sum of squares for any e, or e_0; the way back restores M'y."""
    n, V = 4, GRAIN
    X = rng.normal(size=(9, 4))
    G, e = X.T @ X, rng.normal(size=(n, V)) if narrow else np.tile(np.eye(n)[:, :1], (1, V))
    S0, rhs, yy = (rng.uniform(1, 2, (rows, V)) for rows in (1, n, 1))
    packed = np.repeat(G[np.tril_indices(n)][:, None], V, 1)
    block = SimpleNamespace(rhs=rhs.copy(), w=S0, G=packed, S0=S0, yy=yy.copy())
    block.scale = SimpleNamespace(gaussian=e)
    plain(origin.deviation)(block, narrow, 1.0)
    assert_allclose(block.rhs, rhs - S0 * (G @ e), atol=1e-12)
    square = yy + S0**2 * np.sum(e * (G @ e), 0) - 2 * S0 * np.sum(e * rhs, 0)
    assert_allclose(block.yy, square, atol=1e-11)
    plain(origin.deviation)(block, narrow, -1.0)
    assert_allclose(block.rhs, rhs, atol=1e-12)
