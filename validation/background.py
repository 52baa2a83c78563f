"""A study: immobile water as a constant column >= 0 beside the basis of CMAPL, solved densely by
Clarabel.

    python validation/background.py [folder ...]

Left-out error on real series and RTOP's bias on simulated truth, without and with the column. The
library has no such column: see docs/modes.md.
"""

import sys

import clarabel
import numpy as np
import oracle
import recovery
import scipy.sparse as sp
from common import load_sample, made_fit, mapmri
from noise import folder_sample, left_out_samples

ORDER, WEIGHT, VOXELS = 6, 0.2, 40


def answer(y, q, b0, mu, R, column):
    """Coefficients (n,) of E S0 and the constant of one voxel, S0 = "fit", Laplacian of the deviation."""
    from mapmri_nb.positivity import normalised_grid

    M = oracle.phi_matrix(ORDER, mu, q @ R)
    B, L, S0, count = (
        oracle.aniso_origin(ORDER),
        oracle.laplacian_matrix(ORDER, mu),
        y[b0].mean(),
        b0.sum(),
    )
    H = M.T @ M + WEIGHT * L + count * np.outer(B, B)
    g = M.T @ y + WEIGHT * S0 * L[:, 0] + count * S0 * B
    K, n = normalised_grid(ORDER).K, len(B)
    if column:
        one = M.sum(0) + count * B
        H = np.block([[H, one[:, None]], [one[None], np.array([[len(y) + count]])]])
        g = np.r_[g, y.sum() + count * S0]
        K = np.block([[K, np.zeros((len(K), 1))], [np.zeros((1, n)), np.ones((1, 1))]])
    size, settings = np.sqrt(np.diag(H)), clarabel.DefaultSettings()
    settings.verbose = False
    A = K / size
    solver = clarabel.DefaultSolver(
        sp.csc_matrix(np.triu(H / np.outer(size, size))), -g / size / np.abs(g).max(),
        sp.csc_matrix(-A / np.linalg.norm(A, axis=1)[:, None]), np.zeros(len(A)),
        [clarabel.NonnegativeConeT(len(A))], settings,
    )  # fmt: skip
    x = np.array(solver.solve().x) * np.abs(g).max() / size
    return x[:n], x[n] if column else 0.0


def series(sample):
    """Median left-out error over S0 without and with the column, and the median constant over S0."""
    y, out = left_out_samples(sample, VOXELS)
    gtab, kept = sample.gtab, ~out
    scale = mapmri.MapmriModel(gtab[kept], ORDER).fit(np.ascontiguousarray(y[:, kept]))
    S0, b0, q, found = y[:, gtab.b0s_mask].mean(1), gtab.b0s_mask[kept], gtab.qvecs, []
    for v in range(len(y)):
        row = []
        for column in (False, True):
            c, constant = answer(y[v, kept], q[kept], b0, scale.mu[v], scale.R[v], column)
            M = oracle.phi_matrix(ORDER, scale.mu[v], q[out] @ scale.R[v])
            row.append(np.sqrt(np.mean((M @ c + constant - y[v, out]) ** 2)) / S0[v])
        found.append([*row, constant / S0[v]])
    return np.median(found, 0)


def simulated(snr):
    """Median bias of RTOP of the basis' part, %, without and with the column, and the median constant."""
    gtab, clean, want = recovery.simulation(False)
    y = recovery.noisy(clean, snr)[:VOXELS]
    scale, found = mapmri.MapmriModel(gtab, ORDER).fit(np.ascontiguousarray(y)), []
    for v in range(VOXELS):
        row = []
        for column in (False, True):
            c, constant = answer(y[v], gtab.qvecs, gtab.b0s_mask, scale.mu[v], scale.R[v], column)
            unit = c / (oracle.aniso_origin(ORDER) @ c + constant)
            rtop = made_fit(unit, scale.mu[v]).rtop()[0]
            row.append(100 * (rtop / want[v, 0] - 1))
        found.append([*row, constant])
    return np.median(found, 0)


if __name__ == "__main__":
    samples = [folder_sample(path) for path in sys.argv[1:]]
    for sample in samples or [load_sample("catcord")]:
        print(
            sample.name,
            "left-out error {:.4f}, with the column {:.4f}, constant {:.4f}".format(
                *series(sample)
            ),
        )
    for snr in (15.0, 30.0, np.inf):
        print(
            "SNR",
            snr,
            "RTOP {:+.1f}, with the column {:+.1f}, constant {:.4f}".format(*simulated(snr)),
        )
