"""Sums of squares: the interior point against a dual bound, certificates against exact arithmetic."""

from fractions import Fraction

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import eigh
from shell import refused

from mapmri_nb import sos
from mapmri_nb.kernels import cones, constrained, lanes, sdp
from mapmri_nb.kernels._jit import one_thread
from mapmri_nb.kernels.lanes import WIDTH
from mapmri_nb.kernels.ordering import (
    class_permutation,
    hermite_to_monomial,
    monomials,
    n_coef,
    positions,
)
from mapmri_nb.testing import Case, check
from mapmri_nb.testing.algebra import squares
from mapmri_nb.testing.programs import Ours

SIZES = {2: (1, 3), 4: (7, 3), 6: (7, 13), 8: (22, 13), 10: (22, 34)}


def problem(order, weight, seed):
    """H, g and y'y of a noisy voxel."""
    b, g = truth.scheme_hcp()
    y = phantom.signals(1, b, g, seed, noise=0.05)[0]
    H, rhs, _, square = phantom.problem(y, b, g, order, weight)
    return H, rhs, square


@np.errstate(all="ignore")
def solve_lanes(order, problems):
    """Problems (H, g), a lane each, copies of the last one filling the group; work besides."""
    place, count = class_permutation(order), len(problems)
    t, V = cones.tables(order), -(-count // WIDTH) * WIDTH
    G, g = lanes.empty(len(place) * (len(place) + 1) // 2, V), lanes.empty(len(place), V)
    for l in range(V):
        H, g[:, l] = problems[min(l, count - 1)][0], problems[min(l, count - 1)][1][place]
        G[:, l] = H[np.ix_(place, place)][np.tril_indices(len(place))]
    answer = sdp.Answer(lanes.empty(len(place), V), np.zeros((4, V)), np.full(V, sdp.UNANSWERED))
    answer.status[:count] = sdp.CERTIFIED
    work = cones.workspace(t)
    sdp.solve(G, g, t, 1, 50, 1e-9, work, answer)
    c = np.empty((count, len(place)))
    c[:, place] = answer.c.T[:count]
    return answer.status[:count], c, answer.info.T[:count], work


def solve(order, H, g):
    """One problem alone."""
    status, c, info, work = solve_lanes(order, [(H, g)])
    return int(status[0]), c[0], info[0], work


def ridged(H):
    return H + cones.RIDGE * np.trace(H) / len(H) * np.eye(len(H))


def gap_bound(order, gradient, B, c):
    """How far above the minimum a convex objective with this gradient can be at c, by duality.

    For any sum of squares c' with B'c' = 1 it is at least f'c' above its value at c, f the gradient
    less (gradient'c) B; and f + eps B is nonnegative on squares where its moment matrices are.
    """
    where = positions(monomials(order))
    back = np.linalg.inv(hermite_to_monomial(order))
    f, least = (gradient - (gradient @ c) * B) @ back, 0.0
    for block in cones.gram_exponents(order):
        at = np.array([[where[tuple(int(e) for e in a + b)] for b in block] for a in block])
        least = min(least, eigh(f[at], (B @ back)[at], eigvals_only=True)[0])
    return -least


def gram_polynomial(order, grams):
    """Monomial coefficients of z'Qz, term by term."""
    where, out = positions(monomials(order)), np.zeros(n_coef(order))
    for block, Q in zip(cones.gram_exponents(order), grams, strict=True):
        for i, a in enumerate(block):
            for j, b in enumerate(block):
                out[where[tuple(int(e) for e in a + b)]] += Q[i, j]
    return out


# ---- the cone


@pytest.mark.nojit
@pytest.mark.parametrize("order", SIZES)
def test_gram_sizes_and_tables(order):
    t, n = cones.tables(order), n_coef(order)
    place = class_permutation(order)
    assert tuple(t.sizes) == SIZES[order] == tuple(map(len, cones.gram_exponents(order)))
    assert_array_equal(t.monomial, hermite_to_monomial(order)[:, place])
    assert np.linalg.cond(t.K[:n]) < 60
    # the values of z'Qz at the points are those of its Hermite coefficients
    e = len(t.gram)
    reference = np.linalg.solve(t.monomial, gram_polynomial(order, cones.blocks(t, t.Q)))
    assert_allclose(t.hermite[:n] @ t.Q[:e], reference, atol=1e-12)
    assert_allclose(t.K[:n] @ reference, t.reference, rtol=1e-10)
    assert_allclose(t.values[:n] @ t.Q[:e], t.reference, rtol=1e-10)
    assert reference @ t.B == pytest.approx(1)
    # the moment map: its adjoint, and Z diag(eta) Z'
    eta, Q = np.random.default_rng(order).normal(size=(2, max(n, e)))
    forward = eta[:n] @ t.values[:n] @ Q[:e]
    assert Q[:e] * t.times @ t.moments[:e] @ eta[:n] == pytest.approx(forward)
    for k, M in enumerate(cones.blocks(t, t.moments @ eta[:n])):
        want = (t.Z[k, :n].T * eta[:n] @ t.Z[k, :n])[: len(M), : len(M)]
        assert_allclose(M, want, atol=1e-12)


@pytest.mark.jit_only
@pytest.mark.parametrize("weight", [0.0, 0.2])
@pytest.mark.parametrize(("order", "voxels"), [(4, 4), (6, 4), (8, 3), (10, 1)])
def test_no_sum_of_squares_is_better(order, voxels, weight):
    B = oracle.aniso_origin(order)
    for seed in range(voxels):
        H, g, yy = problem(order, weight, seed)
        status, c, info, _ = solve(order, H, g)
        assert status == sdp.CERTIFIED
        assert info[0] <= 1e-9
        assert info[2] > 0
        H = ridged(H)
        value = 0.5 * c @ H @ c - g @ c + 0.5 * yy
        assert gap_bound(order, H @ c - g, B, c) < 1e-6 * value
        assert gap_bound(order, H @ c - g + 0.01 * np.abs(g).max() * np.roll(B, 1), B, c) > 0
        assert B @ c == pytest.approx(1, abs=1e-13)


@pytest.mark.nojit
def test_certified_free_optimum_is_kept():
    c0 = squares(4, np.random.default_rng(3))[0]
    H = np.diag(1.0 + np.arange(22.0))
    status, c, info, work = solve(4, H, ridged(H) @ c0)
    assert status == sdp.CERTIFIED
    t = cones.tables(4)
    pairs = zip(cones.blocks(t, work.Q[:, 0]), cones.blocks(t, t.Q), strict=True)
    most = 1 / sum(np.trace(np.linalg.solve(A, R)) for A, R in pairs)
    assert info[2] == pytest.approx(most, rel=1e-6)  # A - most R is positive definite
    assert_allclose(c, c0, atol=1e-4)
    assert 0.5 * (c - c0) @ H @ (c - c0) < 2e-9 * c0 @ H @ c0


@pytest.mark.jit_only
def test_gram_matrices_are_positive_in_exact_arithmetic():
    """What the certificate claims, in rational numbers: LDL' has positive pivots and z'Qz has the coefficients of p."""
    for order, seed in ((2, 0), (4, 0), (4, 2), (6, 1)):
        H, g, _ = problem(order, 0.0, seed)
        _, c, _, work = solve(order, H, g)
        grams = cones.blocks(cones.tables(order), work.Q[:, 0])
        want = hermite_to_monomial(order) @ c
        assert_allclose(gram_polynomial(order, grams), want, atol=1e-14)
        for Q in grams:
            A = [[Fraction(float(x)) for x in row] for row in 0.5 * (Q + Q.T)]
            for k in range(len(A)):
                assert A[k][k] > 0
                for i in range(k + 1, len(A)):
                    f = A[i][k] / A[k][k]
                    A[i] = [x - f * y for x, y in zip(A[i], A[k], strict=True)]


@pytest.mark.parametrize("fixed", [True, False])
def test_many_right_hand_sides_have_the_answers_of_each(fixed, rng):
    """One that has no answer leaves the others theirs."""
    H, g, _ = problem(4, 0.2, 5)
    many = g * rng.uniform(0.95, 1.05, (WIDTH + 3, len(g)))
    many[2] = np.nan
    solver = sos.GlobalSolver(4, fixed=fixed)
    c, failed = solver.many(H, many[[0, 1, *range(3, len(many))]])
    assert not failed.any()
    for row, right in zip(c[:4], many[[0, 1, 3, 4]], strict=True):
        alone, bad = solver.many(H, right[None])
        assert not bad.any()
        assert_allclose(row, alone[0], atol=1e-4 * np.abs(row).max())
    if fixed:
        want = solve(4, H, many[0])[1]
        assert_allclose(c[0], want, atol=1e-4 * np.abs(want).max())
    some, failed = solver.many(H, many)
    assert_array_equal(np.flatnonzero(failed), [2])
    assert_allclose(some[3:], c[2:], atol=1e-4 * np.abs(c).max())


@pytest.mark.nojit
def test_a_lane_without_answer_leaves_its_neighbour_alone():
    """Without the compiler too."""
    H = np.diag(1.0 + np.arange(7.0))
    g = H @ squares(2, np.random.default_rng(3))[0]
    alone, both = solve(2, H, g), solve_lanes(2, [(H, g), (-H, g)])
    assert list(both[0]) == [sdp.CERTIFIED, sdp.UNANSWERED]
    assert_array_equal(both[1][0], alone[1])
    assert_array_equal(both[2][0], alone[2])


# ---- certificates


@pytest.mark.jit_only
def test_motzkin_has_no_certificate():
    """Nonnegative, and no sum of squares; no constant makes it one. validation/ has the distances."""
    c = np.array([truth.MOTZKIN.get(tuple(n), 0.0) for n in oracle.aniso_table(6).tolist()])
    r = np.random.default_rng(0).normal(size=(500, 3))
    x, y, _ = r.T**2
    p = 0.25 * (x * x * y + x * y * y - 3 * x * y + 1) * np.exp(-(r**2).sum(1) / 2)
    assert_allclose((2 * np.pi) ** 1.5 * oracle.psi_matrix(6, np.ones(3), r) @ c, p, atol=1e-13)
    for constant in (0.0, 1.0):
        answer = sos.certify(c + constant * np.eye(50)[0], 6)
        assert not answer.certified[0]
        assert answer.margin[0] < 0
        assert answer.distance[0] > sos.NEAR


@pytest.mark.jit_only
@pytest.mark.parametrize("order", SIZES)
def test_squares_are_certified_and_less_than_nothing_is_not(order):
    check(Ours(), "certificates", Case(order=order))
    rng = np.random.default_rng(order)
    answer = sos.certify(np.vstack([squares(order, rng) for _ in range(5)]), order)
    assert answer.certified.all()
    assert (answer.distance == 0).all()
    assert (answer.margin > 0).all()


@pytest.mark.jit_only
@pytest.mark.parametrize("order", [2, 4, 6, 8, 10])
def test_boundary_points(order):
    """MAP+ results and the Gaussian lie on the boundary: proved by their fit, or within what rounding leaves of it."""
    pairs = ((0, 0.0), (1, 0.2), (2, 0.0))
    fits = [solve(order, *problem(order, weight, seed)[:2])[1:3] for seed, weight in pairs]
    coef = np.array([np.eye(n_coef(order))[0], *(c for c, _ in fits)])
    margins = np.array([info[2] for _, info in fits])
    blind = sos.certify(coef, order)
    assert (blind.distance <= sos.NEAR).all()
    assert ((blind.distance == 0) == blind.certified).all()
    assert_allclose(blind.margin[0], 0, atol=1e-5)
    told = sos.certify(coef, order, np.r_[np.nan, margins])
    assert told.certified[1:].all()
    assert (told.distance[1:] == 0).all()
    assert (told.margin[1:] == margins).all()
    # beyond the boundary by more than the tolerance
    t, reference = cones.tables(order), np.empty(n_coef(order))
    reference[class_permutation(order)] = t.hermite[: len(reference)] @ t.Q[: len(t.gram)]
    beyond = sos.certify((coef - 1e-2 * reference) / 0.99, order)
    assert not beyond.certified[:2].any()
    assert_allclose(beyond.margin[0], -1e-2 / 0.99, rtol=1e-2)


@pytest.mark.jit_only
@pytest.mark.parametrize("order", [2, 6])
def test_certificates_of_many_rows(order):
    """Row by row the same bits, on one thread and on two, whatever lies between."""
    rng = np.random.default_rng(1)
    c = np.array([squares(order, rng)[0] for _ in range(101)])
    c[::3] += 0.05 * rng.normal(size=c[::3].shape)
    c[5], c[6] = np.nan, 0.0
    c[7] = -c[7]
    many = sos.certify(c, order)
    with one_thread():
        for a, b in zip(many, sos.certify(c, order), strict=True):
            assert_array_equal(a, b)
    assert many.certified.any()
    assert (many.distance > sos.NEAR).any()
    for v in (0, 1, 5, 6, 8, 9, 100):
        for a, b in zip(many, sos.certify(c[v], order), strict=True):
            assert_array_equal(a[v], b[0])


@pytest.mark.nojit
def test_proof_ends_at_zero():
    """p = |x|^2 + level is a sum of squares from level 0 on; below, no rounding may turn into a proof."""
    B, where = oracle.aniso_origin(2), positions(monomials(2))
    for level in (-1e-6, -1e-9, -1e-12, -1e-15, 0.0, 1e-17, 1e-4, 1e-2):
        p = np.zeros(7)
        p[[where[2, 0, 0], where[0, 2, 0], where[0, 0, 2]]] = 1.0
        p[where[0, 0, 0]] = level
        c = np.linalg.solve(hermite_to_monomial(2), p)
        answer = sos.certify(c / (c @ B), 2)
        assert answer.certified[0] == (level > 1e-6)
        assert (answer.distance[0] == 0) == (level > 1e-6)


@pytest.mark.nojit
def test_certify_refuses_and_skips():
    refused("order must be even, 0 to 10: 3", sos.certify, np.ones(7), 3)
    refused("22 columns at order 4", sos.certify, np.ones((2, 7)), 4)
    rows = np.zeros((4, 7))
    rows[0], rows[1, 0] = np.nan, -1.0
    rows[2, 0], rows[3, 0] = 1.0, 5.0
    answer = sos.certify(rows, 2)
    assert_array_equal(answer.certified, [False, False, False, False])
    assert (answer.distance[2:] < sos.NEAR).all()  # the Gaussian: on the boundary
    assert_array_equal(np.isnan(answer.margin), [True, True, False, False])
    assert_array_equal(np.isnan(answer.distance), [True, True, False, False])


@pytest.mark.nojit
def test_order_zero():
    status, c, _, _ = solve(0, np.array([[4.0]]), np.array([1.5]))
    assert status == sdp.CERTIFIED
    assert_allclose(c, [1.0])
    assert sos.certify([[0.5]], 0).certified[0]
    assert sos.certify([[0.5]], 0).margin[0] == pytest.approx(1, abs=2e-5)


# ---- the reference route


@pytest.mark.jit_only
def test_osqp_route_reaches_the_optimum():
    excess = []
    for order in (2, 4, 6):
        for seed, weight, size in ((0, 0.0, 1.0), (1, 0.2, 1.2), (2, 0.0, 1.0)):
            H, g, yy = problem(order, weight, seed)
            g, yy = size * g, size**2 * yy  # 1.2: E(0) = 1 binds from above
            _, best, _, _ = solve(order, H, g)
            status, c, info = sos.solve_osqp(H, g, oracle.aniso_origin(order), order)
            assert status in (sdp.CERTIFIED, sdp.BLENDED)
            assert info[2] > 0
            values = [0.5 * x @ ridged(H) @ x - g @ x + 0.5 * yy for x in (best, c)]
            excess.append(values[1] / values[0] - 1)
    assert min(excess) > -1e-6
    assert np.median(excess) < 1e-3
    assert max(excess) < 5e-3
    again = sos.solve_osqp(H, g, oracle.aniso_origin(6), 6)[1]
    assert_array_equal(again, c)


@pytest.mark.jit_only
def test_osqp_route_refuses():
    H, g, _ = problem(4, 0.2, 0)
    assert sos.GlobalSolver(2, "osqp").kernel is None
    refused("2, 4 or 6: 8", sos.solve_osqp, np.eye(95), np.ones(95), oracle.aniso_origin(8), 8)
    status, c, _ = sos.solve_osqp(-H, g, oracle.aniso_origin(4), 4)
    assert status == sdp.UNANSWERED
    assert np.isnan(c).all()
    status, c, info = sos.solve_osqp(H, g, oracle.aniso_origin(4), 4, rounds=1, tol=1e-12)
    assert status == sdp.INEXACT
    assert info[2] > 0


@pytest.mark.nojit
@pytest.mark.parametrize("fixed", [0, 1])
def test_elimination_of_the_origin(fixed, rng):
    """P and c0 of the least squares |x - g|^2 / 2 with B'x = 1 (or without), rows K of x."""
    n = 4
    X = rng.normal(size=(n + 2, 7))
    K, B = X[:n], X[n]
    g = X[n + 1]
    P = np.repeat((X @ X.T)[np.tril_indices(n + 2)][:, None], WIDTH, 1)
    c0, scale = np.empty((n, WIDTH)), np.empty((1, WIDTH))
    cones.eliminate_origin(P, n, fixed, c0, scale)
    left = np.eye(7) - fixed * np.outer(B, B) / (B @ B)
    want = (K @ left @ K.T)[np.tril_indices(n)]
    assert_allclose(P[: len(want)].T, np.tile(want, (WIDTH, 1)), atol=1e-12)
    best = g + fixed * (1 - B @ g) / (B @ B) * B
    assert_allclose(c0.T, np.tile(K @ best, (WIDTH, 1)), atol=1e-12)
    assert_allclose(scale, g @ g / 2, rtol=1e-12)
    Q, keep, amount, reference = (
        rng.normal(size=size) for size in ((n, WIDTH), (1, WIDTH), (1, WIDTH), n)
    )
    want = keep * Q + amount * reference[:, None]
    cones.blend(reference, keep, amount, Q)
    assert_allclose(Q, want, atol=1e-14)
    work, t = cones.workspace(cones.tables(2)), cones.tables(2)
    c = rng.normal(size=(7, WIDTH))
    sdp._margin_problem(c, 0, t, work)
    want = t.K[:7, :7] @ c - t.reference[:7, None]  # p - m reference from m = 1
    assert_allclose(work.c0[:7], want, atol=1e-12)
    G, c = np.repeat((X @ X.T)[np.tril_indices(n + 2)][:, None], 3, 1), rng.normal(size=(n + 2, 3))
    assert constrained._best_scale(G, X[:, :3].copy(), c, 1) == pytest.approx(
        X[:, 1] @ c[:, 1] / np.sum((X.T @ c[:, 1]) ** 2), rel=1e-12
    )
