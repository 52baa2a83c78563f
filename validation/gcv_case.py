"""The chosen GCV weight against a grid of 4001 weights, on real and simulated voxels."""

import numpy as np
import oracle
import truth
from common import TAU, Case, Table, load_sample, mapmri

RANGE = (5e-8, 5e-2)  # of weight times the geometric mean of mu, in mm


def values(m, lap, y, weights):
    """V of every weight, from one eigenproblem."""
    half = np.linalg.inv(np.linalg.cholesky(lap))
    a = half @ m.T
    d, v = np.linalg.eigh(a @ a.T)
    d, z = np.maximum(d, 0.0), v.T @ (a @ y)
    over = 1 / (d + weights[:, None])
    residual = y @ y - 2 * over @ z**2 + over**2 @ (d * z**2)
    return len(y) * residual / (len(y) - over @ d) ** 2


def simulated(count, rng):
    """Noisy mixtures on a jittered three-shell scheme: table and samples."""
    gtab = mapmri.GradientTable(*truth.scheme_hcp(), tau=TAU)
    mixtures = list(truth.MIXTURES.values())
    y = []
    for k in range(count):
        f, d = mixtures[k % len(mixtures)]
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        clean = truth.mixture_signal(f, [turn @ t @ turn.T for t in d], gtab.bvals, gtab.bvecs)
        sigma = (0.01, 0.03, 0.08)[k % 3]
        y.append(
            np.hypot(
                clean + sigma * rng.standard_normal(len(gtab)),
                sigma * rng.standard_normal(len(gtab)),
            )
        )
    return gtab, np.array(y)


def excess(basis):
    """Largest V(chosen) / min V(grid) - 1."""

    def run(quick):
        rng, sources = np.random.default_rng(8), []
        each = 10 if quick else 125
        for name in ("small101d", "catcord"):
            sample = load_sample(name)
            good = np.flatnonzero((sample.y > 0).all(1))
            sources.append((name, sample.gtab, sample.y[rng.choice(good, each, replace=False)]))
        sources.append(("simulated", *simulated(2 * each, rng)))
        rows = []
        for name, gtab, y in sources:
            fit = mapmri.MapmriModel(gtab, 6, laplacian="gcv", basis=basis, preset="paper").fit(
                np.ascontiguousarray(y)
            )
            over, at_bound = [], 0
            for v in range(len(y)):
                mean = np.prod(fit.mu[v]) ** (1 / 3)
                grid = np.geomspace(RANGE[0] / mean, RANGE[1] / mean, 4001)
                # the isotropic basis spans the same space as the Hermite functions at equal scales,
                # in any frame
                m, lap = (
                    oracle.phi_matrix(6, fit.mu[v], gtab.qvecs @ fit.R[v]),
                    oracle.laplacian_matrix(6, fit.mu[v]),
                )
                chosen = np.array([fit.laplacian_weight[v]])
                over.append(values(m, lap, y[v], chosen)[0] / values(m, lap, y[v], grid).min() - 1)
                at_bound += bool(fit.status[v] & mapmri.Status.WEIGHT_AT_BOUND)
            rows.append(
                [
                    name,
                    len(y),
                    float(np.max(over)),
                    float(np.median(fit.laplacian_weight)),
                    at_bound,
                ]
            )
        columns = [
            "voxels of",
            "count",
            "largest V(chosen) / min V(grid) - 1",
            "median weight, 1/mm",
            "at a bound",
        ]
        return max(row[2] for row in rows), [
            Table(f"GCV against 4001 weights, {basis}", columns, rows, digits=3)
        ]

    return run


def cases():
    """Both bases."""
    grid = "V by its definition on 4001 weights, relative excess"
    return [
        Case(f"GCV weight, {basis}, 500 voxels", grid, 1e-6, excess(basis))
        for basis in ("anisotropic", "isotropic")
    ]
