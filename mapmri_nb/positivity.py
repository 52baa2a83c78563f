"""Positivity on a grid: the QP of CMAP and CMAPL in OSQP's form, its solution by OSQP, and
residuals of our own.

With u_i = x_i / mu_i the propagator is exp(-|u|^2/2) (K(u) c) / (mu1 mu2 mu3) up to a constant, so
that positivity at fixed points u is K c >= 0 with one matrix K for all voxels. Negative mass left,
% of |P|, mean (largest) over voxels of the worst of four schemes (HCP-like, MGH-like, small101d,
cat cord), by ``validation/grid_choice.py``:

=====  ======  ===========  ===========  ============================
order  points  weight 0     weight 0.2   weight 0, DIPY's ball of 710
=====  ======  ===========  ===========  ============================
4      305     .12 (.64)    .09 (.55)    1.7 (6.5)
6      730     .07 (.52)    .02 (.06)    15 (49)
8      1488    .18 (.77)    .08 (.15)    20 (48)
10     2605    .15 (.20)    .08 (.09)    33 (48)
=====  ======  ===========  ===========  ============================

A side 16 % smaller (1.7 times the points) leaves a third of it at order 8, 25 % larger three times
as much; a radius .5 smaller leaves twice as much at order 6, .6 larger changes little.
"""

from functools import lru_cache
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .engine import Solver
from .kernels import blocks, constrained, ordering, qp, status
from .kernels.factors import RIDGE
from .kernels.hermite import propagator_rows
from .kernels.lanes import GRAIN

Array = NDArray[np.float64]

ACCURATE = 1e-10  # KKT residual below which OSQP's answer on the whole grid is taken
# largest KKT residual of an answer by OSQP: the objective is then within 1e-5 (typical: 1e-14)
TOLERANCE = 1e-6
ACTIVE = 1e-6  # of the peak: rows below may carry a multiplier
# OSQP's tolerances on the whole grid; each round of constraint generation divides them by 10
EPS = 1e-6
SHIFT = 1e-2  # of the mean diagonal of H, in the whitening
ROUNDS = 8  # of constraint generation

Problem = tuple[Array, Array, Array, Array, Array]  # P, q, A, l, u


class Grid(NamedTuple):
    """A grid: half-space points (m, 3), their rows K (m, n), the octant's rows for the kernel."""

    points: Array
    K: Array
    rows: qp.GridRows


def grid_points(order: int, radius: float | None = None, spacing: float | None = None) -> Array:
    """Normalised half-space grid u = x / mu, (m, 3): a body-centred cubic lattice inside a ball.

    Radius and side follow the order: the functions oscillate up to sqrt(2N+1) with wavelength 2 pi
    / sqrt(2N+1).
    """
    reach = sqrt(2.0 * order + 1.0)
    radius = reach + 1.4 if radius is None else radius
    return half_ball(radius, 3.2 / reach if spacing is None else spacing, True)


def half_ball(radius: float, side: float, centred: bool) -> Array:
    """Lattice points (m, 3) with |u| <= radius, one of each antipodal pair (z >= 0)."""
    axis = np.arange(-int(radius / side) - 1, int(radius / side) + 2) * side
    u = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    u = np.vstack([u, u + side / 2]) if centred else u
    x, y, z = u.T
    half = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x >= 0))))
    return np.ascontiguousarray(u[half & (np.sum(u * u, 1) <= radius**2 * (1 + 1e-12))])


def constraint_rows(order: int, points: Array) -> Array:
    """Rows K (m, n) at normalised points (m, 3), in DIPY's order, scaled to norm 1.

    K_j(u) ~ prod H_ni(u_i) / sqrt(2^N n1! n2! n3!): without the Gaussian factor, which spans e^-16
    over the grid.
    """
    K = np.empty((len(points), ordering.n_coef(order)))
    # writable, as other callers' are
    propagator_rows(np.array(points), np.ones(3), ordering.index_table(order), K)
    return np.ascontiguousarray(K / np.linalg.norm(K, axis=1)[:, None])


def octant_rows(order: int, K: Array) -> qp.GridRows:
    """The kernel's rows from those of an octant's points, K (m, n); the last one fills them up."""
    place = ordering.class_permutation(order)
    values = np.pad(K[:, place].T, [(0, 0), (0, -len(K) % GRAIN)], mode="edge")
    return qp.GridRows(ordering.frozen(values.copy("C")), place, ordering.class_bounds(order))


def make_grid(order: int, points: Array) -> Grid:
    """Rows of both solvers for half-space points symmetric under a change of sign of any axis."""
    octant = points[np.all(points >= 0, axis=1)]
    rows = octant_rows(order, constraint_rows(order, octant))
    return Grid(ordering.frozen(points), ordering.frozen(constraint_rows(order, points)), rows)


@lru_cache
def normalised_grid(order: int) -> Grid:
    """The grid of an order, built once for all voxels."""
    return make_grid(order, grid_points(order))


def _ridged(H: Array, share: float = RIDGE) -> Array:
    """H plus a share of its mean diagonal, by default the compiled solver's ridge."""
    return np.asarray(H + share * np.trace(H) / len(H) * np.eye(len(H)), float)


def _whitening(H: Array) -> Array:
    """L^-1 with LL' = H."""
    return np.linalg.solve(np.linalg.cholesky(H), np.eye(len(H)))


def osqp_problem(H: Array, g: Array, B: Array, K: Array, fixed: bool = True) -> Problem:
    """The QP min c'Hc/2 - g'c, K c >= 0, and B'c = 1 if `fixed` (else B'c >= 0) in OSQP's form: min
    z'Pz/2 + q'z subject to l <= A z <= u.

    Written in whitened variables z = L'c / |L^-1 g| with LL' = H + SHIFT tr(H)/n, rows of A scaled
    to norm 1, so P is close to the identity, |q| = 1 and the solver's tolerances are relative.
    Without the shift a nearly singular H makes all rows of A alike, and 10^5 iterations do not
    converge.

    Parameters
    ----------
    H : (n, n). g, B : (n,). K : (m, n).

    Returns
    -------
    P (n, n), q (n,), A (m + 1, n), l (m + 1,), u (m + 1,), dense; numpy.linalg.LinAlgError where H
    is not positive.
    """
    W = _whitening(_ridged(H, SHIFT))
    q, A = -W @ g, np.vstack([B, K]) @ W.T
    norms, scale = np.linalg.norm(A, axis=1), np.linalg.norm(q)
    low, high = np.zeros(len(A)), np.full(len(A), inf)
    if fixed:
        low[0] = high[0] = 1.0 / (norms[0] * scale)
    return W @ _ridged(H) @ W.T, q / scale, A / norms[:, None], low, high


def _osqp(
    problem: Problem, rows: NDArray[np.intp] | slice, eps: float, max_iter: int
) -> tuple[Array, int]:
    """Solution and iterations of the problem on some rows of A, from a fresh setup."""
    import osqp
    from scipy.sparse import csc_matrix

    P, q, A, low, high = problem
    solver = osqp.OSQP(algebra="builtin")
    solver.setup(
        csc_matrix(P), q, csc_matrix(A[rows]), low[rows], high[rows], verbose=False, scaling=0,
        eps_abs=eps, eps_rel=eps, max_iter=max_iter, polishing=True, warm_starting=False,
    )  # fmt: skip
    result = solver.solve(raise_error=False)
    return np.asarray(result.x, float), int(result.info.iter)


def solve_osqp(
    H: Array, g: Array, B: Array, K: Array, fixed: bool = True
) -> tuple[Array, float, int, int]:
    """Solve the grid QP of one voxel by OSQP: the definition of CMAP and CMAPL.

    The whole grid first. Where its polish fails (neighbouring rows are nearly parallel), the rows
    close to active are solved alone and the worst violations of the whole grid join them until none
    is left. A violation of rounding size is removed by a step towards the Gaussian, which is
    strictly feasible.

    Returns
    -------
    c (n,), KKT residual on the whole grid, iterations, and a status of ``kernels.qp`` (SOLVED,
    INACCURATE, NOT_POSITIVE; c is NaN where there is no answer).
    """
    none = np.full(len(g), np.nan), inf, 0, qp.NOT_POSITIVE
    # Cholesky lets NaN through
    if not (np.all(np.isfinite(H)) and np.all(np.isfinite(g)) and np.any(g)):
        return none
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # samples near 1e308
            problem, W = osqp_problem(H, g, B, K, fixed), _whitening(_ridged(H, SHIFT))
            scale = float(np.linalg.norm(W @ g))
    except np.linalg.LinAlgError:
        return none
    if not np.isfinite(scale):
        return none
    z, iterations = _osqp(problem, slice(None), EPS, 4000)
    best, c = inf, np.full(len(g), np.nan)
    held = np.zeros(len(K), bool)
    for k in range(ROUNDS):
        trial = scale * (W.T @ z)
        residual = kkt_residual(H, g, B, K, trial, fixed)
        if residual < best:
            best, c = residual, trial
        if best <= ACCURATE or not np.all(np.isfinite(trial)):
            break
        p = K @ trial
        held |= p < (1e-4 * p.max() if not held.any() else 0.3 * p.min())
        rows, eps = np.r_[0, 1 + np.flatnonzero(held)], max(EPS * 0.1 ** (k + 1), 1e-11)
        z, more = _osqp(problem, rows, eps, 20000)
        iterations += more
    c = pull(B, K, c)
    best = kkt_residual(H, g, B, K, c, fixed)
    return c, best, iterations, qp.SOLVED if best <= TOLERANCE else qp.INACCURATE


def pull(B: Array, K: Array, c: Array) -> Array:
    """The first point from c to the Gaussian of the same E(0) with K c >= 0."""
    centre = np.zeros_like(c)
    centre[0] = (B @ c) / B[0]
    low, room = K @ c, K[:, 0] * centre[0]
    bad = low < 0
    t = float(np.max(-low[bad] / (room[bad] - low[bad]), initial=0.0))
    return (1.0 - t) * c + t * centre if t > 0 else c


def kkt_residual(H: Array, g: Array, B: Array, K: Array, c: Array, fixed: bool = True) -> float:
    """Relative KKT residual of any c: 0 at the optimum of the grid QP, the same for s H and s g at
    any scale s.

    The sum of stationarity in the norm of H^-1 over that of g, with the best nonnegative
    multipliers on the rows below ACTIVE of the peak; their complementarity; the violation over the
    peak of K c; and, if `fixed`, |B'c - 1|. It is inf where c, g or H is not finite, H is not
    positive, g is 0 or K c has no positive element.
    """
    from scipy.optimize import lsq_linear

    h, s, t = (float(np.max(np.abs(a))) for a in (H, g, c))
    unit = max(h * t, s)
    if not (0 < h < inf and 0 < s < inf and 0 < t < inf and unit < inf):  # NaN fails too
        return inf
    H, g = H / h, g / s  # 1 is the largest number of each: no product below overflows
    c = c / t
    try:
        W = _whitening(_ridged(H))
    except np.linalg.LinAlgError:
        return inf
    p, b = K @ c, W @ B
    size = s / unit * float(np.linalg.norm(W @ g))
    peak = float(p.max())
    if peak <= 0 or size == 0:
        return inf
    active = np.flatnonzero(p < ACTIVE * peak)
    rest = W @ (h * t / unit * (_ridged(H) @ c) - s / unit * g)
    b /= np.linalg.norm(b) if fixed else inf
    free = np.eye(len(g)) - np.outer(b, b)  # the multiplier of B is free: project its direction out
    A, rest = free @ (W @ K[active].T), free @ rest
    complementarity = 0.0
    if len(active):
        norms = np.linalg.norm(A, axis=0)
        # nnls of SciPy 1.12 to 1.14 cycles where the rows are linearly dependent
        limits = {"method": "bvls", "tol": 1e-14, "max_iter": 30 * len(g)}
        u = lsq_linear(A / norms, rest, (0.0, inf), **limits).x.clip(0.0)
        rest = rest - (A / norms) @ u
        complementarity = h * t / unit * float((u / norms) @ np.abs(p[active])) / size / size
    stationarity, violation = float(np.linalg.norm(rest)) / size, max(0.0, -float(p.min()) / peak)
    origin = abs(t * float(B @ c) - 1.0) if fixed else 0.0
    return stationarity + complementarity + violation + origin


class GridSolver(Solver):
    """The grid QP by the active set; what fails its KKT check is answered by OSQP.

    Parameters
    ----------
    order : radial order. solver : "auto" or "osqp" (OSQP for every voxel).
    """

    MAX_ITER = 10000  # noise takes some hundred steps, a spike at order 10 6000 (OSQP gives it up)
    finishes = True

    def __init__(self, order: int, solver: str = "auto", fixed: bool = False) -> None:
        self.order, self.max_iter = order, self.MAX_ITER
        self.fixed = fixed
        self.kernel = constrained.solve_grid if solver == "auto" else None
        self.B = ordering.origin_values(ordering.index_table(order))

    def problem(self) -> qp.GridProblem:
        return qp.GridProblem(
            self.B, int(self.fixed), normalised_grid(self.order).rows, self.max_iter
        )

    def answer(self, plan: blocks.Plan, block: blocks.Block, count: int) -> None:
        K = normalised_grid(self.order).K
        for l in range(count):
            if not constrained.skipped(block, l):
                self.by_osqp(plan, block, l, K)

    def by_osqp(self, plan: blocks.Plan, block: blocks.Block, l: int, K: Array) -> None:
        """Solve voxel l of a block with rows K (m, n) by OSQP."""
        place, n = plan.moments.permutation, len(self.B)
        H, g = np.empty((n, n)), np.empty(n)
        constrained.unpack(place, block.G, block.rhs, block.S0[0, l], l, H, g)
        c, block.kkt[0, l], block.iterations[0, l], verdict = solve_osqp(
            H, g, self.B, K, self.fixed
        )
        block.status[l] |= status.BY_OSQP
        if verdict != qp.SOLVED:
            block.status[l] |= status.NOT_CONVERGED
        constrained.pack(place, c, self.B, l, block)

    def many(self, H: Array, g: Array) -> tuple[Array, NDArray[np.bool_]]:
        c, failed = np.zeros_like(g), np.ones(len(g), np.int64)
        if self.kernel is not None:
            qp.solve_many(H, g, self.problem(), c, failed)
        return c, failed != 0
