"""Global positivity: an interior point over two parity Gram blocks and its certificate, WIDTH
voxels in lanes at a time.

The propagator is a Gaussian times p(x), x = r / mu, an even polynomial of degree N with Hermite
coefficients c. p = z'Qz with Q positive semidefinite and z the monomials of degree <= N/2 is
nonnegative everywhere [Dela Haije 2020]. Each voxel solves

    minimise 1/2 c'Hc - g'c   subject to   p a sum of squares, and to B'c = 1 if E(0) is fixed

Letters, for n coefficients; both parities of z have a block of their own, of s rows, e = sum of s
(s + 1) / 2:
    c, g, B  (n,)     coefficients in the block kernels' order; H (n, n) with a ridge; B'c is E(0)
    K        (n, n)   values of the Hermite functions (columns) at n unisolvent points (rows):
                      polynomials enter by values, which makes the Schur complement an entrywise
                      product [Lofberg & Parrilo 2004]
    z_t      (s,)     z at point t, a row of Z
    eta      (n,)     dual unknowns: weights of the points
    Q, M, W  (e,)     Gram matrices, moment matrices M = A eta = sum of eta_t z_t z_t', W = M^-1:
                      packed, i (i + 1) / 2 + j
    A, A*             the moment map (e, n), its adjoint (n, e): A*(Q) has the values z_t'Q z_t of p

With c0 the minimiser subject to B'c = 1 alone, w = K H^-1 B, P = K H^-1 K' - w w' / (B'H^-1 B) (if
E(0) is free: c0 that of all c, P = K H^-1 K'), the dual problem is

    minimise 1/2 eta'P eta + eta'K c0   subject to   A eta positive semidefinite
    optimal: P eta + K c0 = A*(Q), Q M = 0

A step towards Q M = nu I (HKM direction) with R = 0 (predictor), then R = nu W - sym(dQ dM W) of
that one (corrector):

    (P + S) deta = A*(R) - P eta - K c0,   S_tu = sum over blocks of (z_t'Q z_u) (z_t'W z_u)
    dM = A deta,   dQ = R - Q - sym(Q dM W)

A lane that ended keeps its values while its neighbours go on, so no voxel's answer depends on what
lies beside it.
"""

import math
from typing import NamedTuple

import numpy as np

from . import cones, lanes, symmetric
from ._jit import CONTRACT, kernel
from ._types import Array, IntArray
from .cones import Tables, Work
from .lanes import WIDTH, every, pick, rows
from .linalg import block_cholesky, block_copy, block_product, block_set

# CERTIFIED: optimal; BLENDED: optimal but for the blend info[3] with the reference polynomial that
# the certificate needed; INEXACT: certified, but not to the tolerance asked; UNANSWERED:
# coefficients are NaN
CERTIFIED, BLENDED, INEXACT, UNANSWERED = range(4)
INSIDE = 0.98  # of the way to the boundary of the cones
FINER = 1e-3  # of what the cones cost the objective, or of the tolerance: see `_judge`
# rows of Work.lane; ACTIVE is 1 while a lane is worked on
ACTIVE, CONVERGED, SCALE, GAP, ITERATIONS, NU, SEARCHES, LOW, HIGH, MARGIN = range(10)


class Answer(NamedTuple):
    """Results of V voxels, written in place."""

    c: Array  # (n, V) coefficients in the order of the block kernels
    # (4, V) relative gap, iterations, margin proved (0: no proof), share of the reference in it
    info: Array
    status: IntArray  # (V,) CERTIFIED asks for an answer, anything else leaves the voxel out


def answers(n: int, voxels: int) -> Answer:
    """Room for the answers of some voxels; the lanes that are left over ask for none."""
    V = lanes.padded(voxels)
    return Answer(
        lanes.empty(n, V), np.zeros((4, V)), np.where(np.arange(V) < voxels, CERTIFIED, UNANSWERED)
    )


# ---- the interior point


@kernel()
def _begin(status: IntArray, l0: int, lane: Array) -> int:
    """Activate the lanes that ask for an answer; their number."""
    count = 0
    for l in range(WIDTH):
        asked = status[l0 + l] == CERTIFIED
        count += asked
        for row in range(lane.shape[0]):
            lane[row, l] = 0.0
        lane[ACTIVE, l] = 1.0 if asked else 0.0
        lane[SCALE, l] = 1.0
    return count


@kernel()
def _retire(lane: Array, pivot: Array) -> None:
    """End the lanes whose factorisation failed."""
    for l in range(WIDTH):
        if not pivot[0, l] > 0.0:
            lane[ACTIVE, l] = 0.0


@kernel()
def _residuals(t: Tables, w: Work) -> None:
    """M, W, the gradient, the values of p and the gap <Q, M>."""
    cones.gradient(w.P, w.eta, w.c0, t.B.size, w.gradient)
    block_product(t.moments, w.eta, w.M)
    block_product(t.values, w.Q, w.point)
    block_copy(w.M, w.W, w.M.shape[0])
    for k in range(2):
        symmetric.invert(w.W, t.starts[k], t.sizes[k], w.U, w.pivot)
        _retire(w.lane, w.pivot)
    symmetric.inner(t.times, w.Q, w.M, w.total)


@kernel()
def _judge(n: int, iteration: int, last: bool, tol: float, w: Work) -> tuple[int, int]:
    """End the lanes whose gap is below tol scale, with P eta + K c0 = A*(Q) to 1e-6 (rounding);
    the number of lanes that go on, and of those whose gap is below.

    1/2 eta'P eta is what the cones cost the objective: next to nothing where c0 itself is the
    answer, which a gap of tol scale does not show. So the gap must also fall to FINER times this
    cost, or FINER tol scale. A lane that stops on the way there has converged all the same.
    """
    active = fine = 0
    lane = w.lane
    for l in range(WIDTH):
        if lane[ACTIVE, l] > 0.0:
            largest = residual = 0.0
            cost = 0.0
            for i in range(n):
                largest = max(largest, abs(w.gradient[i, l]))
                residual = max(residual, abs(w.gradient[i, l] - w.point[i, l]))
                cost += 0.5 * w.eta[i, l] * (w.gradient[i, l] - w.c0[i, l])
            lane[GAP, l], lane[ITERATIONS, l] = w.total[0, l], iteration
            tight = lane[GAP, l] <= FINER * max(tol * lane[SCALE, l], cost)
            if lane[GAP, l] <= tol * lane[SCALE, l] and residual <= 1e-6 * largest:
                lane[CONVERGED, l] = 1.0
            if (lane[CONVERGED, l] > 0.0 and tight) or last:
                lane[ACTIVE, l] = 0.0
            else:
                active += 1
                fine += lane[CONVERGED, l] > 0.0
    return active, fine


@kernel()
def _newton_matrix(t: Tables, w: Work) -> None:
    """The Cholesky factor of P + S into w.S."""
    n = t.B.size
    block_copy(w.P, w.S, n * (n + 1) // 2)
    symmetric.add_schur(t, w.Q, w.W, w.U, w.V, w.S)
    block_cholesky(w.S, n, w.pivot)
    _retire(w.lane, w.pivot)


@kernel()
def _cone_directions(t: Tables, w: Work) -> None:
    """dM and dQ of deta."""
    dQ, r = rows(w.dQ, 0), rows(w.R, 0)
    q = rows(w.Q, 0)
    block_product(t.moments, w.deta, w.dM)
    symmetric.symmetric_product(t, w.Q, w.dM, w.W, w.full, w.dQ)
    for e in range(t.gram.size):
        dQ[e] = r[e] - q[e] - dQ[e]


@kernel()
def _direction(t: Tables, w: Work) -> None:
    """deta, dM and dQ for the right-hand side R."""
    deta, gradient = rows(w.deta, 0), rows(w.gradient, 0)
    point = rows(w.point, 0)
    block_product(t.values, w.R, w.point)
    for i in range(t.B.size):
        deta[i] = point[i] - gradient[i]
    symmetric.substitute(w.S, t.B.size, w.deta)
    _cone_directions(t, w)


@kernel()
def _refine(t: Tables, w: Work) -> None:
    """Correct deta, in lanes that have CONVERGED, by what it leaves of P (eta + deta) + K c0 = A*(Q
    + dQ); overwrites w.gradient.

    Where the cones cost nothing, W grows and Q stays: cond(P + S) is 1e14 at the last step, and its
    factor leaves two digits of deta. S as an operator, A*(sym(Q (A deta) W)), keeps more.
    """
    deta, gradient = rows(w.deta, 0), rows(w.gradient, 0)
    point, total = rows(w.point, 0), rows(w.L, 0)
    q, dQ = rows(w.Q, 0), rows(w.dQ, 0)
    on = rows(w.lane, 0)[CONVERGED]
    for e in range(t.gram.size):
        total[e] = q[e] + dQ[e]
    block_product(t.values, w.L, w.point)
    for i in range(t.B.size):
        point[i] = gradient[i] - point[i]
    cones.gradient(w.P, w.deta, w.point, t.B.size, w.gradient)
    symmetric.substitute(w.S, t.B.size, w.gradient)
    for i in range(t.B.size):
        deta[i] = pick(on, 0.0, deta[i] - gradient[i], deta[i])
    _cone_directions(t, w)


@kernel()
def _bisect(lane: Array, trial_step: Array, pivot: Array, precision: float) -> bool:
    """Judge the trial steps of the lanes that search, set the next ones; whether any goes on."""
    a, t = rows(lane, 0), rows(trial_step, 0)
    on, trial = a[SEARCHES], t[0]
    inside = pick(rows(pivot, 0)[0], 0.0, on, 0.0)
    low, high = pick(inside, 0.0, trial, a[LOW]), pick(on, inside, trial, a[HIGH])
    trial = pick(on, 0.0, pick(low, 0.0, 0.5 * (low + high), 0.75 * trial), trial)
    # without a step yet, or with one known too coarsely
    wide = pick(low, 0.0, precision * high - low, 1.0)
    a[LOW], a[HIGH] = low, high
    t[0] = trial
    a[SEARCHES] = pick(trial, 1e-9, pick(wide, 0.0, on, 0.0), 0.0)
    more = False
    for l in range(WIDTH):
        more |= lane[SEARCHES, l] > 0.0
    return more


@kernel()
def _step_length(t: Tables, w: Work, precision: float) -> None:
    """Steps <= 1, inside both cones: one for eta and Q, because P couples them; 0 in lanes that
    ended.

    Each matrix in turn shrinks the step of every lane until X + step D is positive definite, and
    bisects to `precision`.
    """
    a, step = rows(w.lane, 0), rows(w.step, 0)
    trial = rows(w.trial, 0)
    step[0] = every(1.0 / INSIDE)
    for k in range(2):
        o, s = t.starts[k], t.sizes[k]
        for X, D in ((w.Q, w.dQ), (w.M, w.dM)):
            longest, more = step[0], True
            trial[0] = longest
            a[LOW], a[HIGH] = every(0.0), longest
            a[SEARCHES] = pick(longest, 1e-9, a[ACTIVE], 0.0)
            while more:
                symmetric.move(X, D, w.trial, o, s * (s + 1) // 2, w.L)
                symmetric.pivots(w.L, o, s, w.pivot)
                more = _bisect(w.lane, w.trial, w.pivot, precision)
            step[0] = a[LOW]
    step[0] *= INSIDE


@kernel()
def _centre(t: Tables, w: Work) -> None:
    """R = nu W - sym(dQ dM W), nu from the gap that the predictor's step would leave [Mehrotra]."""
    lane, e = w.lane, t.gram.size
    symmetric.move(w.Q, w.dQ, w.step, t.starts[0], e, w.L)
    symmetric.move(w.M, w.dM, w.step, t.starts[0], e, w.R)
    symmetric.inner(t.times, w.L, w.R, w.total)
    for l in range(WIDTH):
        lane[NU, l] = 0.0
        if lane[ACTIVE, l] > 0.0:
            ratio = min(max((w.total[0, l] / lane[GAP, l]) ** 3, 1e-6), 1.0)
            lane[NU, l] = lane[GAP, l] / (t.sizes[0] + t.sizes[1]) * ratio
    symmetric.symmetric_product(t, w.dQ, w.dM, w.W, w.full, w.R)
    r, inverse = rows(w.R, 0), rows(w.W, 0)
    nu = rows(lane, 0)[NU]
    for i in range(e):
        r[i] = nu * inverse[i] - r[i]


@kernel()
def _advance(t: Tables, w: Work) -> None:
    """Move eta and Q; a lane whose step is too short ends where it is."""
    for l in range(WIDTH):
        if w.step[0, l] < 1e-8:
            w.lane[ACTIVE, l] = w.step[0, l] = 0.0
    symmetric.move(w.eta, w.deta, w.step, t.starts[0], t.B.size, w.eta)
    symmetric.move(w.Q, w.dQ, w.step, t.starts[0], t.gram.size, w.Q)


@kernel()
def interior_point(t: Tables, max_iter: int, tol: float, w: Work) -> None:
    """Minimise 1/2 eta'P eta + (K c0)'eta subject to A eta positive semidefinite, in the active
    lanes.

    Primal-dual path following from the given eta and scale (of w.lane), Q from `t.start`:
    predictor, corrector, one step length. Q stays positive definite. Rows CONVERGED, GAP (absolute)
    and ITERATIONS of w.lane are written.
    """
    block_set(w.total, 1.0)
    symmetric.fill(t.start[1], w.total, w.Q)
    for iteration in range(max_iter + 1):
        _residuals(t, w)
        active, fine = _judge(t.B.size, iteration, iteration == max_iter, tol, w)
        if active == 0:
            return
        _newton_matrix(t, w)
        block_set(w.R, 0.0)
        for corrector in range(2):
            if corrector:
                _centre(t, w)
            _direction(t, w)
            if corrector and fine:
                _refine(t, w)
            _step_length(t, w, 0.95 * corrector)
        _advance(t, w)


# ---- the certificate


@kernel()
def certify(t: Tables, c: Array, w: Work) -> None:
    """Correct the Gram matrices w.Q so that they stand for c exactly, and prove them positive
    semidefinite.

    Row MARGIN of w.lane is the margin proved: this amount of the reference Gram matrices can be
    taken off; 0: no proof.
    """
    lane, margin = w.lane, w.step
    cones.share_residual(t, c, w.Q, w.gradient, w.point)
    cones.lower(t, w.Q, w.point, w.L)
    block_set(margin, 1.0)
    for k in range(2):
        symmetric.invert(w.L, t.starts[k], t.sizes[k], w.U, w.pivot)
        for l in range(WIDTH):
            if not w.pivot[0, l] > 0.0:
                margin[0, l] = 0.0
    symmetric.fill(t.Q, margin, w.W)
    symmetric.inner(t.times, w.L, w.W, w.total)
    for l in range(WIDTH):
        lane[MARGIN, l] = 1.0 / w.total[0, l] if margin[0, l] > 0.0 else 0.0


@kernel()
def _settle(c: Array, w: Work, answer: Answer, l0: int) -> int:
    """Write the lanes with a proof; the others (their number) blend in more of the reference."""
    active, lane = 0, w.lane
    keep, blended = w.step, w.trial
    for l in range(WIDTH):
        amount, keep[0, l] = answer.info[3, l0 + l], 1.0
        blended[0, l] = 0.0
        if not lane[ACTIVE, l] > 0.0:
            continue
        proved = lane[MARGIN, l] > 0.0
        if not proved:
            amount = max(10.0 * amount, 1e-12)
        answer.info[2, l0 + l], answer.info[3, l0 + l] = lane[MARGIN, l], amount
        if not proved and amount < 1e-2:
            keep[0, l], blended[0, l] = 1.0 - amount, amount
            active += 1
            continue
        lane[ACTIVE, l] = 0.0
        for i in range(answer.c.shape[0]):
            answer.c[i, l0 + l] = c[i, l] if proved else math.nan
        answer.status[l0 + l] = (BLENDED if amount > 0.0 else CERTIFIED) if proved else UNANSWERED
    return active


@kernel()
def conclude(t: Tables, w: Work, answer: Answer, l0: int) -> None:
    """Certified coefficients of the Gram matrices w.Q, with a share of the reference if need be,
    into lanes from l0 on.

    Lanes whose status is not CERTIFIED get NaN.
    """
    for l in range(WIDTH):
        asked = answer.status[l0 + l] == CERTIFIED
        w.lane[ACTIVE, l] = 1.0 if asked else 0.0
        answer.info[2, l0 + l] = answer.info[3, l0 + l] = 0.0
        for i in range(0 if asked else answer.c.shape[0]):
            answer.c[i, l0 + l] = math.nan
    active = 1
    while active > 0:
        block_product(t.hermite, w.Q, w.deta)
        cones.normalise(t.B, w.deta, w.Q)
        certify(t, w.deta, w)
        active = _settle(w.deta, w, answer, l0)
        cones.blend(t.Q, w.step, w.trial, w.Q)


# ---- the problems


@kernel()
def _pose(G: Array, g: Array, l0: int, t: Tables, fixed: int, w: Work) -> None:
    """The dual problem of the voxels from l0 on, and where it starts; ends lanes without one."""
    n, lane = t.B.size, w.lane
    cones.ridged(G, l0 % G.shape[1], n, w.S)
    block_cholesky(w.S, n, w.pivot)
    _retire(lane, w.pivot)
    cones.whiten(w.S, t.K, g, l0, w.T)
    cones.gram(w.T, n, n + 2, w.P)
    cones.eliminate_origin(w.P, n, fixed, w.c0, w.total)
    for l in range(WIDTH):
        lane[SCALE, l] = w.total[0, l]
        w.total[0, l] = lane[SCALE, l]
        if not 0.0 < lane[SCALE, l] < math.inf:
            lane[ACTIVE, l] = 0.0
    symmetric.fill(t.start[0], w.total, w.eta)


@kernel()
def solve(
    G: Array, g: Array, t: Tables, fixed: int, max_iter: int, tol: float, w: Work, answer: Answer
) -> None:
    """Minimise 1/2 c'Hc - g'c subject to p a sum of squares, and to B'c = 1 if `fixed` is 1 (the
    answer has E(0) = 1 either way), for V voxels, a multiple of WIDTH.

    Parameters
    ----------
    G : (n (n + 1) / 2 or more, V) packed H in the order of the block kernels, or (.., WIDTH) where
        all voxels share it; a ridge is added. g : (n, V).
    t, w : `tables(order)`, `workspace(t)`; the Gram matrices of the last WIDTH voxels are left in
        w.Q.
    max_iter, tol : at most so many steps to a duality gap of tol g'H^-1 g / 2 (50 and 1e-9: it
        takes 8 to 14).
    answer : voxels of status CERTIFIED are solved, others left out. Status then: CERTIFIED,
        BLENDED, INEXACT or UNANSWERED (left out; H not positive definite, g zero or not finite: c
        is NaN).
    """
    lane, status = w.lane, answer.status
    for l0 in range(0, status.size, WIDTH):
        if _begin(status, l0, lane) > 0:
            _pose(G, g, l0, t, fixed, w)
            for l in range(WIDTH):
                if not lane[ACTIVE, l] > 0.0:
                    status[l0 + l] = UNANSWERED
            interior_point(t, max_iter, tol, w)
        conclude(t, w, answer, l0)
        for l in range(WIDTH):
            answer.info[0, l0 + l] = answer.info[1, l0 + l] = 0.0
            if status[l0 + l] != UNANSWERED:
                answer.info[0, l0 + l] = lane[GAP, l] / lane[SCALE, l]
                answer.info[1, l0 + l] = lane[ITERATIONS, l]
                if not lane[CONVERGED, l] > 0.0:
                    status[l0 + l] = INEXACT


@kernel()
def approach(G: Array, g: Array, t: Tables, fixed: int, w: Work, eta: Array, Q: Array) -> None:
    """A `Tables.start` for problems like the first of G, g (.., WIDTH): eta and Q of a step on the
    way to its optimum, where the gap has become small beside what the cones cost (`_judge`).
    """
    block_set(w.lane, 1.0)
    _pose(G, g, 0, t, fixed, w)
    interior_point(t, 50, 1.0, w)
    for i in range(t.B.size):
        eta[i] = w.eta[i, 0] / w.lane[SCALE, 0]
    for e in range(t.gram.size):
        Q[e] = w.Q[e, 0]


@kernel(fastmath=CONTRACT)
def _margin_problem(c: Array, l0: int, t: Tables, w: Work) -> None:
    """Minimise (m - 1)^2 / 2 with p - m reference = z'Qz, from the Gaussian on; c into w.T."""
    x, mine = rows(c, l0), rows(w.T, 0)
    d, p = rows(w.c0, 0), rows(w.P, 0)
    eta = rows(w.eta, 0)
    for i in range(t.B.size):
        mine[i], eta[i] = x[i], every(t.eta[i])
    block_product(t.K, w.T, w.c0)
    for i in range(t.B.size):
        d[i] -= t.reference[i]
        for j in range(i + 1):
            p[i * (i + 1) // 2 + j] = every(t.reference[i] * t.reference[j])


@kernel()
def gram_margin(c: Array, t: Tables, max_iter: int, tol: float, w: Work, answer: Answer) -> None:
    """Best Gram matrices of given coefficients c (n, V) with E(0) = 1, and whether they prove p >=
    0.

    They maximise the amount m <= 1 of the reference polynomial that can be taken off p with a sum
    of squares left. `answer.info` as in `solve`, except info[3]: the best m, known to about 1e-6;
    proved where info[2] > 0.
    """
    info, lane = answer.info, w.lane
    for l0 in range(0, answer.status.size, WIDTH):
        if _begin(answer.status, l0, lane) == 0:
            continue
        _margin_problem(c, l0, t, w)
        interior_point(t, max_iter, tol, w)
        for l in range(WIDTH):
            m = 1.0
            for i in range(t.B.size):
                m -= t.reference[i] * w.eta[i, l]
            info[0, l0 + l], info[1, l0 + l] = lane[GAP, l], lane[ITERATIONS, l]
            info[3, l0 + l] = m
            w.step[0, l], w.trial[0, l] = 1.0, m
        cones.blend(t.Q, w.step, w.trial, w.Q)
        certify(t, w.T, w)
        for l in range(WIDTH):
            info[2, l0 + l] = lane[MARGIN, l]
