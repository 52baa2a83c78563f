"""Constrained optima against an independent conic solver (Clarabel), and what positivity promises."""

from math import factorial

import numpy as np
import oracle
import truth
from common import TAU, Case, Table, load_sample, made_fit, mapmri
from numpy.polynomial import hermite
from scipy import sparse

TIGHT = 1e-11  # Clarabel's tolerances


def clarabel(P, q, A, b, cones):
    """Minimiser of x'Px/2 + q'x subject to b - A x in a product of cones."""
    import clarabel as solver

    settings = solver.DefaultSettings()
    settings.verbose, settings.max_iter = False, 300
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = TIGHT
    solution = solver.DefaultSolver(
        sparse.triu(sparse.csc_matrix(P), format="csc"), q, sparse.csc_matrix(A), b, cones, settings
    ).solve()
    return np.array(solution.x), str(solution.status)


def on_grid(H, g, B, K):
    """Coefficients with B'c = 1 and K c >= 0."""
    import clarabel as solver

    rows, ends = np.vstack([B, -K]), np.r_[1.0, np.zeros(len(K))]
    return clarabel(H, -g, rows, ends, [solver.ZeroConeT(1), solver.NonnegativeConeT(len(K))])


def gram(order):
    """
    Sums of squares, built from scratch: exponents of every even monomial, the map from coefficients to monomials, and
    for both parity blocks the size and the monomial of every Gram entry (upper triangle, column by column, as Clarabel has it).
    """
    table = oracle.aniso_table(order).tolist()
    monomials = [(a, b, c) for a in range(order + 1) for b in range(order + 1 - a) for c in range(order + 1 - a - b)]
    even = [m for m in monomials if sum(m) % 2 == 0]
    place = {m: i for i, m in enumerate(even)}
    C = np.zeros((len(even), len(table)))
    for j, n in enumerate(table):
        h = [hermite.herm2poly([0] * k + [1]) / np.sqrt(2.0**k * factorial(k)) for k in n]
        for powers in np.ndindex(*(k + 1 for k in n)):
            if sum(powers) % 2 == 0:
                C[place[powers], j] += np.prod([h[i][p] for i, p in enumerate(powers)])
    blocks = []
    for parity in (0, 1):
        z = [m for m in monomials if sum(m) <= order // 2 and sum(m) % 2 == parity]
        blocks.append((len(z), [place[tuple(np.add(z[r], z[c]))] for c in range(len(z)) for r in range(c + 1)]))
    return C, blocks


def by_squares(H, g, B, order):
    """Coefficients with B'c = 1 whose polynomial is a sum of squares."""
    import clarabel as solver

    C, blocks = gram(order)
    n, sizes = len(B), [len(where) for _, where in blocks]
    scale = 1 / np.abs(C).max(1)
    total = n + sum(sizes)
    equal = np.zeros((1 + len(C), total))
    equal[0, :n], equal[1:, :n] = B, C * scale[:, None]
    cones, start = [solver.ZeroConeT(len(equal))], n
    for size, where in blocks:
        triangle = np.array([1.0 if r == c else np.sqrt(2.0) for c in range(size) for r in range(c + 1)])  # the cone's scaling
        for k, row in enumerate(where):
            equal[1 + row, start + k] -= scale[row] * triangle[k]  # an off-diagonal entry counts twice
        start += len(where)
        cones.append(solver.PSDTriangleConeT(size))
    rows = np.vstack([equal, np.hstack([np.zeros((sum(sizes), n)), -np.eye(sum(sizes))])])
    ends = np.r_[1.0, np.zeros(len(rows) - 1)]
    P = np.zeros((total, total))
    P[:n, :n] = H
    x, status = clarabel(P, np.r_[-g, np.zeros(sum(sizes))], rows, ends, cones)
    return x[:n], status


def crossings(count):
    """Noisy crossings on three jittered shells."""
    rng = np.random.default_rng(13)
    gtab = mapmri.GradientTable(*truth.scheme_hcp(), tau=TAU)
    clean = [truth.mixture_signal(*truth.crossing(a), gtab.bvals, gtab.bvecs) for a in rng.uniform(0, 45, count)]
    return gtab, np.array([np.hypot(c + rng.standard_normal(len(c)) / 25, rng.standard_normal(len(c)) / 25) for c in clean])


def optima(positivity):
    """Largest relative excess of the objective |y - Mc|^2 + weight c'Lc over Clarabel's, over data, weights and orders."""

    def run(quick):
        sample = load_sample("small101d")
        good = sample.y[(sample.y > 0).all(1)]
        sources = {
            "simulated, SNR 25": crossings(2 if quick else 15),
            "small101d": (sample.gtab, good[:: len(good) // 15][: 2 if quick else 15]),
        }
        rows = []
        for title, (gtab, y) in sources.items():
            for order, weight, basis in (
                (4, 0.0, "anisotropic"),
                (6, 0.0, "anisotropic"),
                (6, 0.2, "anisotropic"),
                (6, 0.2, "isotropic"),
                (8, 0.2, "anisotropic"),
            ):
                if quick and order != 4:
                    continue
                fit = mapmri.MapmriModel(gtab, order, laplacian=weight, positivity=positivity, basis=basis).fit(
                    np.ascontiguousarray(y)
                )
                excess, failed = [], 0
                # the isotropic basis has no frame of its own: its grid stands in that of the b-vectors
                isotropic = basis == "isotropic"
                coef = fit.coef @ oracle.iso_to_aniso(order).T if isotropic else fit.coef
                for v, c in enumerate(coef):
                    m = oracle.phi_matrix(order, fit.mu[v], gtab.qvecs @ (np.eye(3) if isotropic else fit.R[v]))
                    lap, e = oracle.laplacian_matrix(order, fit.mu[v]), y[v] / fit.S0[v]
                    H, g, B = m.T @ m + weight * lap, m.T @ e, oracle.aniso_origin(order)
                    if positivity == "grid":
                        from mapmri_nb import positivity as grid

                        u = grid.grid_points(order)  # the definition of the problem; the rows are the oracle's
                        K = oracle.hermite3d(order, u) * np.exp(0.5 * np.sum(u**2, 1))[:, None]
                        best, status = on_grid(H, g, B, K / np.linalg.norm(K, axis=1)[:, None])
                    else:
                        best, status = by_squares(H, g, B, order)
                    failed += "Solved" not in status
                    value = [e @ e - 2 * g @ a + a @ H @ a for a in (c, best)]
                    excess.append(value[0] / value[1] - 1)
                unfit = int(np.sum((fit.status & mapmri.Status.NO_FIT) != 0))
                rows.append(
                    [title, basis, order, weight, len(y), float(np.nanmax(excess)), float(np.nanmin(excess)), unfit, failed]
                )
        columns = [
            "voxels of",
            "basis",
            "order",
            "weight",
            "count",
            "largest excess",
            "smallest",
            "no fit",
            "Clarabel: not solved",
        ]
        note = "Negative: below Clarabel's optimum, within its tolerances or ours."
        worst = max(max(abs(r[5]), abs(r[6])) for r in rows) if not any(r[7] for r in rows) else np.inf
        return worst, [Table(f"Constrained optima, positivity='{positivity}', against Clarabel", columns, rows, note, 2)]

    return run


def same_answer(quick):
    """Largest difference of the coefficients of solver='auto' and solver='osqp', over the largest coefficient."""
    gtab, y = crossings(3 if quick else 20)
    worst = 0.0
    for weight in (None, 0.2):
        fits = [mapmri.MapmriModel(gtab, 6, laplacian=weight, positivity="grid", solver=s).fit(y) for s in ("auto", "osqp")]
        worst = max(worst, np.max(np.abs(fits[0].coef - fits[1].coef)) / np.max(np.abs(fits[0].coef)))
    return float(worst)


def left_negative(quick):
    """Smallest P over the largest of every mode on noisy crossings; the number is that of MAP+ and MAPL+."""
    from common import MODES

    gtab, y = crossings(10 if quick else 100)
    rows, worst = [], 0.0
    for mode, options in MODES.items():
        fit = mapmri.MapmriModel(gtab, 6, **options).fit(y)
        low, mass = fit.negative()
        certified = int(fit.certificate().certified.sum())
        rows.append(
            [mode, len(y), float(np.nanmin(low)), 100 * float(np.nanmean(mass)), 100 * float(np.nanmax(mass)), certified]
        )
        if options.get("positivity") == "global":
            worst = max(worst, -float(np.nanmin(low)), 0.0 if certified == len(y) else np.inf)
    columns = ["mode", "voxels", "smallest P / largest P", "mean negative mass, %", "largest, %", "certified"]
    return worst, [Table("Negative propagators, noisy crossings (SNR 25), order 6", columns, rows, "", 3)]


def motzkin(quick):
    """Certificates given to the Motzkin polynomial, which is nonnegative and no sum of squares: there must be none."""
    table = oracle.aniso_table(6).tolist()
    coef = np.zeros(len(table))
    for n, value in truth.MOTZKIN.items():
        coef[table.index(list(n))] = value
    fit = made_fit(coef, [8e-3, 5e-3, 4e-3])
    from mapmri_nb import sos

    return float(sos.certify(fit.coef, 6).certified.sum())


def cases():
    """All constrained cases."""
    conic = "Clarabel at 1e-11 on the same problem, built independently; relative excess of the objective"
    return [
        Case("optimum on the grid", conic, 1e-6, optima("grid")),
        Case("optimum over sums of squares", conic, 1e-5, optima("global")),
        Case("solver='auto' and solver='osqp'", "OSQP; coefficients, relative", 1e-4, same_answer),
        Case("no negative value, all certified (MAP+, MAPL+)", "dense samples and certificates", 1e-12, left_negative),
        Case("no certificate for Motzkin's polynomial", "theorem", 0, motzkin),
    ]
