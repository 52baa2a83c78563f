"""Positivity: objectives against Clarabel, feasibility and certificates, on real and simulated
voxels in every mode.
"""

from functools import lru_cache
from itertools import product
from math import sqrt
from typing import NamedTuple

import numpy as np
import oracle
import truth
from common import MODES, TAU, Case, Table, load_sample, mapmri, random_frame
from numpy.polynomial import hermite as physicists

ORDERS, BASES, WEIGHTS = (4, 6, 8), ("anisotropic", "isotropic"), (None, 0.01, 0.2, "gcv")
SOURCES = ("small101d", "catcord", "simulated")
# of |d|^2: an objective below is compared relative to this (noise-free voxels have none to speak
# of)
NEAR_ZERO = 1e-4
POINTS = 100_000


class Voxel(NamedTuple):
    """The problem of one fitted row, written from the formulas: min |M c - d|^2 + weight c'Lc, B'c
    = 1.
    """

    M: np.ndarray
    L: np.ndarray
    d: np.ndarray
    weight: float

    def objective(self, c):
        """By residuals: no cancellation."""
        return float(np.sum((self.M @ c - self.d) ** 2) + self.weight * c @ self.L @ c)


class Answer(NamedTuple):
    """One voxel by one solver: relative excess over Clarabel, violation over the peak, fallback,
    certified, lowest P.
    """

    order: int
    basis: str
    weight: str
    excess: float
    violation: float
    fallback: bool
    certified: bool
    lowest: float
    fitted: bool


def simulated(count, rng):
    """Mixtures of the reference, turned at random, on an HCP-like scheme: SNR 15 and 30 with Rician
    noise, and none.
    """
    gtab, y = mapmri.GradientTable(*truth.scheme_hcp(), tau=TAU), []
    mixtures = list(truth.MIXTURES.values())
    for k in range(count):
        f, tensors = mixtures[rng.integers(len(mixtures))]
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        clean = truth.mixture_signal(
            f, [turn @ t @ turn.T for t in tensors], gtab.bvals, gtab.bvecs
        )
        sigma = (1 / 15, 1 / 30, 1 / 15, 1 / 30, 0.0)[k % 5]
        y.append(
            100
            * np.hypot(
                clean + sigma * rng.standard_normal(len(gtab)),
                sigma * rng.standard_normal(len(gtab)),
            )
        )
    return gtab, np.array(y)


def voxels(source, count, rng):
    """Table and rows of a source."""
    if source == "simulated":
        return simulated(count + 1, rng)
    sample = load_sample(source)
    return sample.gtab, np.ascontiguousarray(
        sample.y[rng.choice(len(sample.y), count, replace=False)]
    )


def problem(fit, v, y):
    """The dense problem of row v, and its coefficients in the frame where it was solved (isotropic:
    the b-vectors').
    """
    R = np.eye(3) if fit.isotropic else fit.R[v]
    c = oracle.iso_to_aniso(fit.order) @ fit.coef[v] if fit.isotropic else fit.coef[v]
    M = oracle.phi_matrix(fit.order, fit.mu[v], fit.gtab.qvecs @ R)
    L = oracle.laplacian_matrix(fit.order, fit.mu[v])
    kept = y != 0  # a sample of exactly 0 is missing
    return Voxel(M[kept], L, y[kept] / fit.S0[v], float(fit.laplacian_weight[v])), c


@lru_cache
def grid_rows(order):
    """Rows K of the order's grid, from the propagator without its Gaussian, of norm 1."""
    from mapmri_nb.positivity import grid_points

    u = grid_points(order)
    K = oracle.psi_matrix(order, np.ones(3), u) * np.exp(np.sum(u**2, 1) / 2)[:, None]
    return K / np.linalg.norm(K, axis=1)[:, None]


@lru_cache
def gram_entries(order):
    """Rows of the equalities "polynomial of c = z'Qz": Hermite -> monomial (m, n), and of each
    block (size, rows, columns, q).

    q are the entries of Q in Clarabel's packing: upper triangle by columns, off-diagonal ones times
    sqrt(2).
    """
    table = oracle.aniso_table(order)
    where = {tuple(row): i for i, row in enumerate(table.tolist())}
    to_monomial = np.zeros((len(table), len(table)))
    for j, n in enumerate(table.tolist()):
        parts = [
            physicists.herm2poly([0] * k + [1]) / sqrt(2.0**k * float(np.prod(np.arange(1, k + 1))))
            for k in n
        ]
        for power in product(*(range(len(p)) for p in parts)):
            value = np.prod([p[k] for p, k in zip(parts, power, strict=True)])
            if value:
                to_monomial[where[power], j] = value
    blocks = []
    for parity in (0, 1):
        z = [
            (a, b, c)
            for a, b, c in product(range(order // 2 + 1), repeat=3)
            if (s := a + b + c) <= order // 2 and s % 2 == parity
        ]
        pairs = [(i, j) for j in range(len(z)) for i in range(j + 1)]
        rows = [where[tuple(np.add(z[i], z[j]).tolist())] for i, j in pairs]
        blocks.append((len(z), rows, [1.0 if i == j else sqrt(2.0) for i, j in pairs]))
    return to_monomial, blocks


def clarabel(voxel, order, positivity):
    """Coefficients of the same problem by Clarabel at 1e-9, without any ridge.

    With [M; sqrt(weight) C'] = QR, LL' = C, and z = R c - Q'd the objective is z'z and a constant.
    It is divided by the free optimum's, so that the tolerance is relative to the objective and not
    to |d|^2.
    """
    import clarabel
    from scipy import sparse

    n = voxel.M.shape[1]
    stacked = np.vstack([voxel.M, sqrt(voxel.weight) * np.linalg.cholesky(voxel.L).T])
    Q, R = np.linalg.qr(stacked)
    target = Q[: len(voxel.d)].T @ voxel.d
    size = max(float(voxel.d @ voxel.d - target @ target), NEAR_ZERO * float(voxel.d @ voxel.d))
    B = oracle.aniso_origin(order)
    if positivity == "grid":
        K = grid_rows(order)
        rows = sparse.bmat([[R, -sparse.eye(n)], [B[None], None], [-K, None]], format="csc")
        right = np.r_[target, 1.0, np.zeros(len(K))]
        cones, extra = [clarabel.ZeroConeT(n + 1), clarabel.NonnegativeConeT(len(K))], 0
    else:
        to_monomial, blocks = gram_entries(order)
        count = [len(rows) for _, rows, _ in blocks]
        adjoint = [
            sparse.csc_matrix((np.array(f), (r, np.arange(len(r)))), shape=(n, len(r)))
            for _, r, f in blocks
            # sums of the entries of Q that make each monomial; packed entries carry sqrt(2) once, sums
            # need it once more
        ]
        scale = 1 / np.abs(to_monomial).max(1)  # of the equations
        equal = [[R, -sparse.eye(n), None, None], [B[None], None, None, None]]
        equal += [
            [scale[:, None] * to_monomial, None, *(sparse.diags(-scale) @ a for a in adjoint)]
        ]
        psd = [[None, None, -sparse.eye(count[0]), None], [None, None, None, -sparse.eye(count[1])]]
        rows = sparse.bmat(equal + psd, format="csc")
        right = np.r_[target, 1.0, np.zeros(n + sum(count))]
        cones = [
            clarabel.ZeroConeT(2 * n + 1),
            *(clarabel.PSDTriangleConeT(s) for s, _, _ in blocks),
        ]
        extra = sum(count)
    P = sparse.diags(np.r_[np.zeros(n), np.full(n, 2.0 / size), np.zeros(extra)], format="csc")
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-9
    answer = clarabel.DefaultSolver(P, np.zeros(P.shape[0]), rows, right, cones, settings).solve()
    c = np.array(answer.x[:n])
    return c / (B @ c)


@lru_cache
def scattered(order):
    """Polynomial part and Gaussian of every function at random points u = x / mu, uniform in a ball
    beyond the grid's.
    """
    rng = np.random.default_rng(9)
    v = rng.standard_normal((POINTS, 3))
    u = (
        v
        / np.linalg.norm(v, axis=1, keepdims=True)
        * (sqrt(2 * order + 1) + 2.5)
        * rng.random((POINTS, 1)) ** (1 / 3)
    )
    axes = [[oracle.hermite1d(k, u[:, a]) for k in range(order + 1)] for a in range(3)]
    return np.array(
        [axes[0][i] * axes[1][j] * axes[2][k] for i, j, k in oracle.aniso_table(order).tolist()]
    ).T


def lowest(order, c):
    """Smallest propagator value over its peak on the random points, for coefficients (V, n)."""
    p = scattered(order) @ c.T
    peak = np.maximum(
        p.max(0),
        oracle.psi_matrix(order, np.ones(3), np.zeros((1, 3)))[0] @ c.T * (2 * np.pi) ** 1.5,
    )
    return p.min(0) / peak


def measure(positivity, solver, order, basis, weight, gtab, y, reference):
    """Answers of every row of y by one mode; `reference` (dict) keeps Clarabel's answers by row."""
    options = {"basis": basis, "laplacian": weight, "positivity": positivity, "solver": solver}
    fit = mapmri.MapmriModel(gtab, order, **options, preset="paper").fit(y)
    low, certified, out = np.zeros(len(y)), np.zeros(len(y), bool), []
    if positivity == "global":
        low, certified = (
            lowest(order, np.nan_to_num(fit.hermite_coef())),
            fit.certificate().certified,
        )
    for v in range(len(y)):
        if fit.status[v] & mapmri.Status.NO_FIT:
            out.append(
                Answer(order, basis, str(weight), np.nan, np.nan, True, False, np.nan, False)
            )
            continue
        voxel, c = problem(fit, v, y[v])
        if v not in reference:
            reference[v] = clarabel(voxel, order, positivity)
        best = voxel.objective(reference[v])
        size = max(best, NEAR_ZERO * float(voxel.d @ voxel.d))
        p = grid_rows(order) @ c
        out.append(
            Answer(
                order, basis, str(weight), (voxel.objective(c) - best) / size, max(0.0, -p.min() / p.max()),
                bool(fit.status[v] & mapmri.Status.BY_OSQP), bool(certified[v]), float(low[v]), True,
            )
        )  # fmt: skip
    return out


@lru_cache
def study(quick):
    """Answers by route: grid and global, compiled and OSQP; the last on 30 voxels of orders 4 and 6
    alone.
    """
    rng = np.random.default_rng(4)
    routes = {
        route: []
        for route in (("grid", "auto"), ("grid", "osqp"), ("global", "auto"), ("global", "osqp"))
    }
    left = {4: 3, 6: 3} if quick else {4: 15, 6: 15}  # voxels of the last route
    for order, basis, weight in product(ORDERS, BASES, WEIGHTS):
        if quick and (order == 8 or (basis == "isotropic") != (weight == 0.01)):
            continue
        for source in SOURCES[2:] if quick else SOURCES:
            gtab, y = voxels(source, 1 if quick else 2 if order == 8 else 5, rng)
            for positivity in ("grid", "global"):
                reference = {}
                for solver in ("auto", "osqp"):
                    take = len(y)
                    if (positivity, solver) == ("global", "osqp"):
                        take = min(left.get(order, 0), 1)
                        left[order] = left.get(order, 0) - take
                    if take:
                        some = np.ascontiguousarray(y[:take])
                        routes[positivity, solver] += measure(
                            positivity, solver, order, basis, weight, gtab, some, reference
                        )
    return routes


def table(route, title, quick):
    """Excess over Clarabel, by order and weight."""
    rows = []
    for order, weight in product(ORDERS, WEIGHTS):
        some = [a for a in study(quick)[route] if (a.order, a.weight) == (order, str(weight))]
        if not some:
            continue
        fitted = [a for a in some if a.fitted]
        gap = np.abs([a.excess for a in fitted])
        row = [order, "0" if weight is None else str(weight), len(some), len(some) - len(fitted)]
        rows.append(
            [
                *row,
                *map(float, (np.median(gap), np.quantile(gap, 0.9), gap.max())),
                max(a.violation for a in fitted),
            ]
        )
    columns = [
        "order",
        "weight",
        "voxels",
        "without an answer",
        "median",
        "90 %",
        "worst",
        "largest violation / peak",
    ]
    note = (
        "|objective - Clarabel's| over the objective (over 1e-4 |d|^2 where it is smaller: noise-free voxels); both bases, "
        "voxels of small101d, catcord and simulated mixtures at SNR 15, 30 and none. Violation: of the grid's points."
    )
    return Table(title, columns, rows, note, 2)


TITLES = {
    ("grid", "auto"): "Grid positivity, compiled active set against Clarabel at 1e-9",
    ("grid", "osqp"): "Grid positivity, OSQP against Clarabel at 1e-9",
    ("global", "auto"): "Global positivity, compiled interior point against Clarabel at 1e-9",
    ("global", "osqp"): "Global positivity, OSQP's reference route against Clarabel at 1e-9",
}


def gaps(route, quick):
    """|Excess| of every answered voxel."""
    return np.abs([a.excess for a in study(quick)[route] if a.fitted])


def worst(route):
    """Largest excess, with the table."""
    return lambda quick: (float(gaps(route, quick).max()), [table(route, TITLES[route], quick)])


def median(route):
    """Median excess, with the table."""
    return lambda quick: (
        float(np.median(gaps(route, quick))),
        [table(route, TITLES[route], quick)],
    )


def violation(route):
    """Largest violation at the grid's points over the peak."""
    return lambda quick: max(a.violation for a in study(quick)[route] if a.fitted)


def share(route, field):
    """Share of all voxels for which a field is true."""
    return lambda quick: float(np.mean([getattr(a, field) for a in study(quick)[route]]))


def negative(quick):
    """Most negative propagator value over the peak."""
    return max(0.0, -min(a.lowest for a in study(quick)["global", "auto"] if a.fitted))


def left_negative(quick):
    """Smallest P over the largest of every mode on noisy mixtures; the number is that of MAP+ and
    MAPL+.
    """
    gtab, y = simulated(10 if quick else 100, np.random.default_rng(13))
    rows, worst = [], 0.0
    for mode, options in MODES.items():
        fit = mapmri.MapmriModel(gtab, 6, **options).fit(y)
        low, mass = fit.negative()
        certified = int(fit.certificate().certified.sum())
        rows.append(
            [
                mode,
                len(y),
                float(np.nanmin(low)),
                100 * float(np.nanmean(mass)),
                100 * float(np.nanmax(mass)),
                certified,
            ]
        )
        if options.get("positivity") == "global":
            worst = max(worst, -float(np.nanmin(low)), 0.0 if certified == len(y) else np.inf)
    columns = [
        "mode",
        "voxels",
        "smallest P / largest P",
        "mean negative mass, %",
        "largest, %",
        "certified",
    ]
    return worst, [
        Table(
            "Negative propagators, simulated mixtures (SNR 15, 30, none), order 6",
            columns,
            rows,
            "",
            3,
        )
    ]


def turned_grid(quick):
    """Median change of RTOP in %, isotropic CMAPL, when the b-vectors are turned; the table has
    every positive mode.
    """
    rng = np.random.default_rng(14)
    gtab, y = simulated(10 if quick else 100, rng)
    other = mapmri.GradientTable(gtab.bvals, gtab.bvecs @ random_frame(rng).T, tau=TAU)
    rows = []
    for (mode, options), basis in product(MODES.items(), BASES):
        if options.get("positivity") and "GCV" not in mode:
            one, two = (
                mapmri.MapmriModel(t, 6, **options | {"basis": basis}).fit(y) for t in (gtab, other)
            )
            cells = []
            for name in ("rtop", "rtap", "ng", "pa"):
                change = 100 * np.abs(two.index(name) / one.index(name) - 1)
                cells += [float(np.median(change)), float(np.max(change))]
            rows.append([mode, basis, *cells])
    columns = [
        "mode",
        "basis",
        *(
            f"{name}, {kind}"
            for name in ("RTOP", "RTAP", "NG", "PA")
            for kind in ("median", "largest")
        ),
    ]
    note = (
        "Change in % when all directions are turned, signals kept. The grid of the anisotropic basis turns with the tensor (a "
        "few noise-free mixtures have none to turn with), sums of squares need no grid; the isotropic basis' grid lies along "
        "the axes of the b-vectors, as DIPY's does."
    )
    (answer,) = (row[2] for row in rows if row[:2] == ["CMAPL 0.2", "isotropic"])
    return answer, [
        Table(
            "Turned grid: rotation of the b-vectors, simulated mixtures, order 6",
            columns,
            rows,
            note,
            2,
        )
    ]


def motzkin(quick):
    """Certificates given to the Motzkin polynomial, which is nonnegative and no sum of squares:
    there must be none.
    """
    table = oracle.aniso_table(6).tolist()
    coef = np.zeros(len(table))
    for n, value in truth.MOTZKIN.items():
        coef[table.index(list(n))] = value
    from mapmri_nb import sos

    return float(sos.certify(coef, 6).certified.sum())


def cases():
    """Objectives, feasibility, certificates, fallbacks."""
    grid, osqp, sos, reference = TITLES
    theirs, rows = "Clarabel at 1e-9 on the dense problem", "rows of K by the oracle"
    return [
        Case("compiled grid: objective, worst of 300 voxels", theirs, 1e-7, worst(grid)),
        Case("compiled grid: violation over the peak", rows, 1e-12, violation(grid)),
        Case(
            "compiled grid: share of voxels that needed OSQP",
            "status",
            None,
            share(grid, "fallback"),
        ),
        Case("compiled grid: share of voxels answered", "status", None, share(grid, "fitted")),
        Case("OSQP grid: objective, median", theirs, 1e-9, median(osqp)),
        Case("OSQP grid: objective, worst", theirs, 1e-5, worst(osqp)),
        Case("OSQP grid: violation over the peak", rows, 1e-12, violation(osqp)),
        Case("interior point: objective, worst of 300 voxels", theirs, 1e-5, worst(sos)),
        Case(
            "interior point: share certified",
            "Cholesky of corrected Gram matrices",
            1.0,
            share(sos, "certified"),
            True,
        ),
        Case(
            "interior point: -min P / peak on 1e5 points",
            "functions by the oracle",
            1e-12,
            negative,
        ),
        Case("OSQP global: objective, median of 30 voxels", theirs, 1e-3, median(reference)),
        Case(
            "OSQP global: share certified",
            "Cholesky of corrected Gram matrices",
            1.0,
            share(reference, "certified"),
            True,
        ),
        Case(
            "no negative value, all certified (MAP+, MAPL+)",
            "dense samples and certificates",
            1e-12,
            left_negative,
        ),
        Case("no certificate for Motzkin's polynomial", "theorem", 0, motzkin),
        Case(
            "isotropic CMAPL, turned b-vectors: change of RTOP, %, median",
            "invariance, which the grid breaks",
            None,
            turned_grid,
        ),
    ]
