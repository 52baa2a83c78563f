"""Sums of squares in Python: certificates of positivity for any coefficients, and the reference
solver built on OSQP.

The everyday solver of MAP+ and MAPL+ is the compiled interior point, `kernels.sdp`.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .engine import Solver
from .kernels import blocks, cones, constrained, sdp, status
from .kernels._jit import n_threads, spread
from .kernels.lanes import WIDTH, columns, padded
from .kernels.ordering import MAX_ORDER, class_permutation, index_table, n_coef, origin_values

Array = NDArray[np.float64]

# without the compiler NumPy warns of lanes that ended, which are computed but not used
QUIET = np.errstate(all="ignore")
# distance that double precision cannot tell from 0: the boundary, MAP+ results without their proof
NEAR = 3e-6


class Certificate(NamedTuple):
    """Answer of `certify`, one entry a row. No certificate is no proof of a negative value: not all
    positive p are squares.

    Attributes
    ----------
    certified : (V,) bool. The Gram matrices, corrected to stand for the coefficients exactly, have
        a Cholesky factorisation with a margin for rounding, here or at the fit that made the row.
    margin : (V,) largest amount (at most 1) of the reference polynomial, the inverse of the
        Gaussian's moment matrix, that leaves a sum of squares when taken off; known to 1e-6. What
        the fit proved, where it did.
    distance : (V,) L2 distance from the cone of sums of squares with E(0) = 1, relative to the
        propagator's L2 norm: 0 where certified. A row without certificate and within ``NEAR`` lies
        on the boundary of the cone, as far as double precision can tell: certified coefficients
        exist at that distance.
    """

    certified: NDArray[np.bool_]
    margin: Array
    distance: Array


def certify(coef: ArrayLike, order: int, proved: Array | None = None) -> Certificate:
    """Look for proofs that propagators are nonnegative everywhere.

    Parameters
    ----------
    coef : (n,) or (V, n), Hermite coefficients in DIPY's order, at any scale and frame (isotropic
        ones through T).
    order : int
        Radial order, even, 0 to 10.
    proved : (V,) margins proved by the fit that made these rows (`kernels.sdp.solve`), positive
        where there is a proof.

    Returns
    -------
    Certificate. Rows that are not finite or have E(0) <= 0 have no certificate, and NaN for margin
    and distance.

    Raises
    ------
    ValueError
        For an order that is not even or out of range, or coefficients of another length.

    Notes
    -----
    p is a sum of squares if and only if p = z'Qz with Q positive semidefinite [Dela Haije 2020].
    The Gram matrices of largest margin are sought first; rows that have no proof are projected on
    the cone.
    """
    if order % 2 or not 0 <= order <= MAX_ORDER:
        raise ValueError(f"order must be even, 0 to {MAX_ORDER}: {order}")
    rows = np.array(coef, np.float64, ndmin=2)
    if rows.ndim != 2 or rows.shape[1] != n_coef(order):
        raise ValueError(
            f"coef must have {n_coef(order)} columns at order {order}: shape {np.shape(coef)}"
        )
    out = Certificate(
        np.zeros(len(rows), bool), np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    )
    good: NDArray[np.bool_] = np.isfinite(rows).sum(axis=1) == rows.shape[1]
    # alike for any V
    origin = np.sum(np.where(good[:, None], rows, 0.0) * origin_values(index_table(order)), axis=1)
    good &= origin > 0.0
    if proved is not None:
        done = good & (proved > 0.0)
        out.certified[done], out.margin[done] = True, proved[done]
        out.distance[done] = 0.0
        good &= ~done
    ask = np.flatnonzero(good)
    c = (rows[ask] / origin[ask, None])[:, class_permutation(order)]
    answers = Certificate(out.certified[ask], out.margin[ask], out.distance[ask])
    call = partial(_certify_rows, c, cones.tables(order), answers)
    spread(call, len(ask), blocks.VOXELS, n_threads(None))
    for all_rows, asked in zip(out, answers, strict=True):
        all_rows[ask] = asked
    return out


@QUIET
def _certify_rows(c: Array, t: cones.Tables, out: Certificate, start: int, stop: int) -> None:
    """Certificates of rows start to stop of c (V, n), E(0) = 1, in the block kernels' order."""
    work, n = cones.workspace(t), len(t.B)
    for first in range(start, stop, blocks.VOXELS):
        v = np.arange(first, min(first + blocks.VOXELS, stop))
        answer = sdp.answers(n, len(v))
        sdp.gram_margin(_in_lanes(c[v]), t, 80, 1e-10, work, answer)
        out.certified[v], out.margin[v] = answer.info[2, : len(v)] > 0.0, answer.info[3, : len(v)]
        out.distance[v] = 0.0
        v = v[~out.certified[v]]
        if len(v):  # project on the cone: H is the unit matrix
            answer = sdp.answers(n, len(v))
            unit = np.eye(n)[np.tril_indices(n)]
            H = _in_lanes(np.broadcast_to(unit, (len(v), len(unit))))
            sdp.solve(H, _in_lanes(c[v] * (1.0 + cones.RIDGE)), t, 1, 80, 1e-14, work, answer)
            away = answer.c.T[: len(v)] - c[v]  # NaN where there is no fit
            out.distance[v] = np.linalg.norm(away, axis=1) / np.linalg.norm(c[v], axis=1)


def _in_lanes(rows: Array) -> Array:
    """Rows (V, k) as lanes (k, ..), the last row again in those left over."""
    return columns(np.pad(rows, [(0, padded(len(rows)) - len(rows)), (0, 0)], mode="edge"))


def solve_osqp(
    H: Array, g: Array, B: Array, order: int, rounds: int = 40, tol: float = 2e-5,
    fixed: bool = True,
) -> tuple[int, Array, Array]:  # fmt: skip
    """The problem of `kernels.sdp.solve` as a sequence of QPs solved by OSQP: the reference route,
    orders 2 to 6.

    Parameters
    ----------
    H : (n, n) positive semidefinite. g, B : (n,), as there.
    fixed : whether E(0) = 1 is asked for; the answer has E(0) = 1 either way.
    rounds, tol : at most so many QPs, to a proved gap of tol g'H^-1 g / 2 (a few 1e-4 of the
        objective; 10 or so).

    Returns
    -------
    status, coefficients (n,), info (4,) : as `kernels.sdp.solve`; info[1] counts the QPs. The
    coefficients are certified; NaN with NO_FIT.

    Raises
    ------
    ValueError
        For an order other than 2, 4, 6.

    Notes
    -----
    Diagonally dominant Gram matrices are the nonnegative sums of the squares of u_i, u_i + u_j and
    u_i - u_j: linear constraints. Basis pursuit [Ahmadi & Hall 2017] takes u from the last
    solution's Cholesky factor, so that this solution stays feasible. Squares that would still lower
    the objective, the negative eigenvectors of the gradient's moment matrices, join them; their
    eigenvalues bound the gap, since <Q, M_Gauss> = E(0) = 1.
    """
    import osqp
    from scipy import sparse

    if order not in (2, 4, 6):
        raise ValueError(
            f"solver='osqp' with positivity='global' takes radial_order 2, 4 or 6: {order}"
        )
    t, n = cones.tables(order), len(g)
    place = class_permutation(order)
    work, answer = cones.workspace(t), sdp.answers(n, 1)
    info, c = np.zeros(4), np.full(n, np.nan)
    H, g = H[np.ix_(place, place)], g[place]
    try:
        # unknowns: factor @ c
        factor = np.linalg.cholesky(H + cones.RIDGE * np.trace(H) / n * np.eye(n)).T
    except np.linalg.LinAlgError:
        return sdp.UNANSWERED, c, info
    target, origin = np.linalg.solve(factor.T, g), np.linalg.solve(factor.T, B[place])
    to_hermite, grams = np.linalg.inv(t.monomial), cones.blocks(t, t.gram.astype(np.int64))
    gaussian = [np.linalg.cholesky(Q).T for Q in cones.blocks(t, t.Q)]  # rows: u of the reference
    bases, extra = list(gaussian), [u[:0] for u in gaussian]
    for count in range(1, rounds + 1):
        vectors, columns = [], []
        for u, more, gram in zip(bases, extra, grams, strict=True):
            i, j = np.triu_indices(len(u), 1)
            v = np.concatenate([u, u[i] + u[j], u[i] - u[j], more])
            monomials = np.zeros((len(v), n))
            np.add.at(monomials.T, gram, np.einsum("ki,kj->ijk", v, v))
            a = factor @ to_hermite @ monomials.T
            length = np.linalg.norm(a, axis=0)
            vectors.append(v / np.sqrt(length)[:, None])
            columns.append(a / length)
        A = np.concatenate(columns, axis=1)
        K = A.shape[1]
        P = sparse.block_diag([sparse.eye(n), sparse.csc_matrix((K, K))], format="csc")
        rows = np.block(
            [[np.eye(n), -A], [origin[None, :], np.zeros((1, K))], [np.zeros((K, n)), np.eye(K)]]
        )
        low = np.r_[np.zeros(n), float(fixed), np.zeros(K)]
        high = np.r_[np.zeros(n), 1.0 if fixed else np.inf, np.full(K, np.inf)]
        solver = osqp.OSQP()
        settings = {"eps_abs": 1e-6, "eps_rel": 1e-6, "max_iter": 4000}
        settings |= {"polishing": True, "verbose": False}
        solver.setup(P, np.r_[-target, np.zeros(K)], sparse.csc_matrix(rows), low, high, **settings)
        solution = solver.solve(raise_error=False)
        weights = np.maximum(solution.x[n:], 0.0)
        if not (np.isfinite(np.r_[solution.x, solution.y]).all() and weights.any()):
            return sdp.UNANSWERED, c, info
        gradient, packed = -to_hermite.T @ (factor.T @ solution.y[:n]), []
        start, lowest = 0, 0.0
        for k, v in enumerate(vectors):
            s, share = len(grams[k]), weights[start : start + len(v)]
            u = gaussian[k]
            start += len(v)
            Q = (v.T * share) @ v
            packed.append(Q[np.tril_indices(s)])
            bases[k] = np.linalg.cholesky(Q + 1e-9 * u.T @ u).T
            eigenvalues, e = np.linalg.eigh(u @ gradient[grams[k]] @ u.T)
            extra[k] = e.T[eigenvalues < 0.0] @ u
            lowest = min(lowest, eigenvalues[0])
        mass = 1.0 if fixed else float(origin @ solution.x[:n])  # E(0) bounds the Gram matrices
        info[:2] = -lowest * mass * t.sizes.sum() / (0.5 * target @ target), count
        if info[0] <= tol:
            break
    entries = np.concatenate(packed)
    work.Q[: len(entries), 0] = entries
    sdp.conclude(t, work, answer, 0)
    c[place], info[2:] = answer.c[:, 0], answer.info[2:, 0]
    verdict = int(answer.status[0])
    return (verdict if verdict == sdp.UNANSWERED or info[0] <= tol else sdp.INEXACT), c, info


class GlobalSolver(Solver):
    """Sums of squares: the compiled interior point, or the OSQP reference route."""

    MAX_ITER = 10000
    TOLERANCE = 1e-9  # of the duality gap

    def __init__(self, order: int, solver: str = "auto", fixed: bool = False) -> None:
        if solver == "osqp" and not 2 <= order <= 6:
            raise ValueError(
                f"solver='osqp' with positivity='global' takes radial_order 2, 4 or 6: {order}"
            )
        self.order, self.max_iter = order, self.MAX_ITER
        self.fixed = fixed
        self.kernel = constrained.solve_global if solver == "auto" else None
        self.B = origin_values(index_table(order))

    def problem(self) -> constrained.GlobalProblem:
        t = cones.tables(self.order)
        return constrained.GlobalProblem(
            t, int(self.fixed), cones.workspace(t), self.max_iter, self.TOLERANCE
        )

    @QUIET
    def many(self, H: Array, g: Array) -> tuple[Array, NDArray[np.bool_]]:
        """As `Solver.many`. All rows start from one point, on the way to the answer for their mean:
        so a row's last digits depend on the other rows (1e-5, what the gap of TOLERANCE leaves).
        """
        if self.kernel is None or self.order == 0:
            return super().many(H, g)
        place, c = class_permutation(self.order), np.empty_like(g)
        one = H[np.ix_(place, place)][np.tril_indices(len(self.B))]
        G = _in_lanes(np.broadcast_to(one, (WIDTH, len(one))))[:, :WIDTH].copy()
        t, _, work, most, tol = self.problem()
        mean = _in_lanes(np.broadcast_to(g[:, place].mean(0), (WIDTH, len(self.B))))
        start = np.zeros_like(t.eta), np.zeros_like(t.Q)
        sdp.approach(G, mean[:, :WIDTH].copy(), t, int(self.fixed), work, *start)
        if np.isfinite(np.concatenate(start)).all():
            t = t._replace(start=start)
        answer = sdp.answers(len(self.B), len(g))
        sdp.solve(G, _in_lanes(g[:, place]), t, int(self.fixed), most, tol, work, answer)
        c[:, place] = answer.c.T[: len(g)]
        return c, answer.status[: len(g)] >= sdp.INEXACT

    def answer(self, plan: blocks.Plan, block: blocks.Block, count: int) -> None:
        place, n = plan.moments.permutation, len(self.B)
        H, g = np.empty((n, n)), np.empty(n)
        for l in range(count):
            if not constrained.skipped(block, l):
                constrained.unpack(place, block.G, block.rhs, block.S0[0, l], l, H, g)
                verdict, c, info = solve_osqp(H, g, self.B, self.order, fixed=self.fixed)
                if not self.fixed:  # of the cone's ray: the objective has no slope at its optimum
                    c *= (g @ c) / (c @ H @ c)
                block.status[l] |= status.BY_OSQP | constrained.FLAGS[verdict]
                block.kkt[0, l], block.iterations[0, l], block.margin[0, l] = info[:3]
                constrained.pack(place, c, self.B, l, block)
