"""Grid positivity: the active set and OSQP against the KKT conditions."""

from math import sqrt

import numpy as np
import oracle
import pytest
from numpy.testing import assert_allclose
from phantom import problem, signals
from truth import scheme as shells

from mapmri_nb import positivity
from mapmri_nb.kernels import qp


def scheme(n_shells=3):
    """Shells of 60, b jittered by up to 10."""
    b, g = shells([60] * n_shells, 1000.0 * np.arange(1, n_shells + 1))
    return b + 5.0 * (np.arange(len(b)) % 5 - 2) * (b > 0), g


def compiled(H, g, B, grid, max_iter=5000, fixed=1):
    """Status, coefficients and info of the compiled solver."""
    n, m = grid.rows.values.shape
    c, info = np.full(n, np.nan), np.zeros(3)
    problem = qp.GridProblem(B, fixed, grid.rows, max_iter)
    status = qp.solve(np.ascontiguousarray(H), g, problem, qp.workspace(n, m), c, info)
    return status, c, info


def objective(H, g, dd, c):
    """|Mc - d|^2 + weight c'Lc."""
    return c @ H @ c - 2 * g @ c + dd


def violation(K, c):
    """Largest violation over the peak."""
    p = K @ c
    return max(0.0, -p.min() / p.max())


# ---- the grid


@pytest.mark.nojit
@pytest.mark.parametrize("order", [2, 4])
def test_rows_are_the_propagator_without_its_gaussian(order):
    grid, mu = positivity.normalised_grid(order), np.array([8e-3, 5e-3, 4e-3])
    gaussian = np.exp(-np.sum(grid.points**2, 1) / 2)[:, None]
    rows = oracle.psi_matrix(order, mu, grid.points * mu) / gaussian
    assert_allclose(grid.K, rows / np.linalg.norm(rows, axis=1)[:, None], atol=1e-13)


@pytest.mark.nojit
@pytest.mark.parametrize("ball", [False, True])
def test_octant_rows_are_the_whole_grid(ball):
    """Every row of K once or, on the planes, more often; nothing else."""
    order, mu = 4, np.array([8e-3, 5e-3, 4e-3])
    grid = positivity.normalised_grid(order)
    if ball:
        r = positivity.half_ball(1.0, 1.0 / 3, False) * sqrt(5.0) * mu.max()
        grid = positivity.make_grid(order, r / mu)
    n, m = grid.rows.values.shape
    rows, row = np.empty((4 * m, n)), np.empty(n)
    for p in range(4 * m):
        qp._row(grid.rows, p, row)
        rows[p] = row
    near = np.abs(rows[:, None] - grid.K[None]).max(-1) < 1e-13
    assert near.any(1).all()
    assert near.any(0).all()


@pytest.mark.nojit
def test_grid_is_a_half_space_that_follows_the_order():
    for order in (2, 6, 10):
        u = positivity.grid_points(order)
        assert np.linalg.norm(u, axis=1).max() <= sqrt(2 * order + 1) + 1.4
        both = np.unique(np.round(np.vstack([u, -u]), 9) + 0.0, axis=0)
        assert len(both) == 2 * len(u) - 1  # the origin alone is its own antipode
    few, many = (positivity.grid_points(6, radius=r, spacing=0.5) for r in (3.0, 4.0))
    assert len(few) < len(many)


@pytest.mark.nojit
def test_ball_is_dipys():
    mapmri = pytest.importorskip("dipy.reconst.mapmri")
    mu = np.array([8e-3, 5e-3, 4e-3])
    for length in (sqrt(5) * mu.max(), 0.02):
        ours = positivity.half_ball(1.0, 1.0 / 5, False) * length
        theirs = mapmri.create_rspace(11, length)
        whole = {tuple(r) for r in np.round(np.vstack([ours, -ours]) * 1e6).astype(int)}
        assert {tuple(r) for r in np.round(theirs * 1e6).astype(int)} <= whole
        assert len(whole) == 2 * len(ours) - 1


# ---- optimality


@pytest.mark.jit_only
@pytest.mark.parametrize("order", [4, 6, 8])
@pytest.mark.parametrize("weight", [0.0, 0.01, 0.2])
def test_optimal_in_both_bases(order, weight):
    """By the conditions of Karush, Kuhn and Tucker, which a convex problem's optimum alone meets."""
    b, g = scheme()
    grid, binding = positivity.normalised_grid(order), 0
    for k, y in enumerate(signals(7 if order < 8 else 3, b, g, seed=order, noise=0.05)):
        H, rhs, B, dd = problem(y, b, g, order, weight, isotropic=k % 3 == 2)
        for fixed in (0, 1):
            status, c, info = compiled(H, rhs, B, grid, fixed=fixed)
            assert (status, info[0] < 1e-8) == (qp.SOLVED, True)
            assert violation(grid.K, c) < 1e-12
            for size, least, most in ((1, 0, 1e-8), (1.01, 1e-4, np.inf)):
                residual = positivity.kkt_residual(H, rhs, B, grid.K, size * c, fixed=fixed == 1)
                assert least <= residual <= most
        assert abs(B @ c - 1) < 1e-12
        binding += info[2] > 0
        if order < 8 or weight > 0:
            other, kkt, _, status = positivity.solve_osqp(H, rhs, B, grid.K)
            assert (status, kkt < 1e-8) == (qp.SOLVED, True)
            assert violation(grid.K, other) < 1e-12
            best = objective(H, rhs, dd, c)
            assert objective(H, rhs, dd, other) == pytest.approx(best, rel=1e-5)
    assert binding or weight > 0.1


@pytest.mark.nojit
def test_kkt_residual_is_scale_free_and_sees_every_condition():
    b, g = scheme(2)
    grid = positivity.normalised_grid(2)
    H, rhs, B, _ = problem(signals(1, b, g, noise=0.3)[0], b, g, 2, 0.0)

    def residual(c, a=1.0, b=1.0):
        return positivity.kkt_residual(a * H, b * rhs, B, grid.K, c)

    status, compiled_c, info = compiled(H, rhs, B, grid)  # without the compiler too
    assert status == qp.SOLVED
    assert residual(compiled_c) < 1e-10
    assert info[0] < 1e-10
    status, _, info = compiled(H, rhs, B, grid, max_iter=1)
    assert (status, info[0]) == (qp.CAPPED, np.inf)
    c, kkt, iterations, status = positivity.solve_osqp(H, rhs, B, grid.K)
    assert (status, kkt < 1e-8, iterations > 0) == (qp.SOLVED, True, True)
    wrong = c.copy()
    wrong[1] += 1e-3
    off = residual(wrong)
    assert off > 1e-5
    assert residual(1.01 * c) > 1e-3  # E(0) = 1
    assert residual(np.eye(len(c))[0] / B[0]) > 1e-3  # feasible, not optimal
    assert residual(np.full(len(c), np.nan)) == np.inf
    top = 1e308 / np.abs(H).max()
    # also where squares leave float64, and at its end: no warning, which would be an error
    for scale in (1e6, 1e-300, 1e150, top):
        assert residual(wrong, scale, scale) == pytest.approx(off, rel=1e-6)
    assert min(residual(c, 1, top), residual(c, top, 1), residual(1e307 * c)) > 1e-3


# ---- hard inputs


@pytest.mark.nojit
def test_not_a_problem_is_a_status():
    grid = positivity.normalised_grid(2)
    B, rhs = oracle.aniso_origin(2), np.ones(7)
    for H in (np.zeros((7, 7)), -np.eye(7), np.full((7, 7), np.nan)):
        with np.errstate(all="ignore"):  # without the compiler NumPy warns
            assert compiled(H, rhs, B, grid)[0] == qp.NOT_POSITIVE
        c, kkt, _, status = positivity.solve_osqp(H, rhs, B, grid.K)
        assert (status, kkt) == (qp.NOT_POSITIVE, np.inf)
        assert np.isnan(c).all()
    assert compiled(np.eye(7), np.full(7, np.nan), B, grid)[0] != qp.SOLVED


@pytest.mark.nojit
def test_the_solver_judges_itself_as_dense_algebra_does(rng):
    """Off the optimum the residual is that of the KKT conditions; one step leads back to the optimum
    and its multipliers.
    """
    b, g = scheme(2)
    grid = positivity.normalised_grid(2)
    H, rhs, B, _ = problem(signals(1, b, g, noise=0.2)[0], b, g, 2, 0.0)
    H, rhs = 1e-3 * H, 1e-3 * rhs
    n, m = grid.rows.values.shape
    held, work = qp.GridProblem(B, 1, grid.rows, 5000), qp.workspace(n, m)
    c, info = np.empty(n), np.zeros(3)
    ridge = qp._ridge(H)
    qp.solve(H, rhs, held, work, c, info)
    q, optimum = 1 + int(info[2]), c.copy()
    u = work.u.copy()
    assert 2 < q < n
    A = np.tile(B, (q, 1))
    for j in range(1, q):
        qp._row(grid.rows, work.active[j], A[j])
    c += 0.01 * rng.normal(size=n)
    work.u[:q] *= rng.uniform(1.1, 1.2, q)
    work.u[1] *= -1
    ridged, v = H + ridge * np.eye(n), work.u[:q].copy()
    w = ridged @ c - rhs - A.T @ v
    square = (w @ np.linalg.solve(ridged, w)) / (rhs @ np.linalg.solve(ridged, rhs))
    want = abs(B @ c - 1) - v[1:].min() / v[1:].max() + sqrt(square)
    assert qp._judge(H, rhs, held, ridge, q, work, c) == pytest.approx(want, rel=1e-9)
    assert_allclose(c, optimum, atol=1e-9)
    assert_allclose(work.u[:q], u[:q], atol=1e-9 * np.abs(u[:q]).max())


@pytest.mark.nojit
def test_the_worst_row_is_that_of_the_dense_grid(rng):
    """Its number, its value and the peak; -1 where it is held already. Row 0 is
    one of them.
    """
    rows = positivity.normalised_grid(4).rows
    n, m = rows.values.shape
    K, work = np.empty((4 * m, n)), qp.workspace(n, m)
    for p in range(4 * m):
        qp._row(rows, p, K[p])
    for c in rng.normal(size=(20, n)):
        p, worst, peak = qp._worst(rows, c, work, 0, np.inf)
        want = [(K @ c).min(), (K @ c).min(), (K @ c).max()]
        assert_allclose([K[p] @ c, worst, peak], want, rtol=1e-12)
        assert qp._worst(rows, c, work, 0, 0.1 * worst)[:2] == (p, worst)
        assert qp._worst(rows, c, work, 0, worst)[:2] == (-1, 0.0)  # no place was lower
        work.active[0] = p
        assert qp._worst(rows, c, work, 1, np.inf)[0] == -1
    c, free = np.empty(n), qp.GridProblem(K[0], 0, rows, 100)
    assert qp.solve(np.eye(n), np.eye(n)[0] - 2 * K[0], free, work, c, np.empty(3)) == qp.SOLVED
    assert (K @ c).min() > -1e-12
