"""How much negative mass a positivity grid leaves, for the choice of its radius and spacing.

Every voxel is fitted with the compiled solver on a candidate grid; its propagator is then summed
over a grid of side 0.3 that reaches further out. The figure is the negative part over the sum of
|P|, in percent, mean and largest over voxels. Run from the repository root: ``python
validation/grid_choice.py [--orders 4 6 8 10] [--voxels 30]``; the table goes to
``validation/results/grid_choice.json`` and to the docstring of ``mapmri_nb/positivity.py``.
"""

import argparse
import json
import time
from math import sqrt
from pathlib import Path

import nibabel as nib
import numpy as np

import mapmri_nb
from mapmri_nb import positivity
from mapmri_nb.data import sample_dwi
from mapmri_nb.kernels import hermite, laplacian, ordering, qp

WEIGHTS = (0.0, 0.2)
# name: radius beyond sqrt(2N+1), side of the body-centred lattice times sqrt(2N+1)
CANDIDATES = {
    "chosen": (1.4, 3.2),
    "smaller": (0.9, 3.2),
    "larger": (2.0, 3.2),
    "coarser": (1.4, 4.0),
    "finer": (1.4, 2.7),
}


def simulated(shells, big_delta, small_delta, count, rng):
    """A jittered multi-shell table and mixtures of up to two fibres with an isotropic part, Rician
    noise, SNR 15 to 30.
    """
    b, g = [np.zeros(10)], [np.zeros((10, 3))]
    for s, (n, value) in enumerate(shells):
        k = np.arange(n) + 0.5
        z, angle = 1 - 2 * k / n, np.pi * (1 + sqrt(5)) * k + s
        g.append(
            np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)
        )
        b.append(value + rng.choice([-10.0, -5.0, 0.0, 5.0, 10.0], n))
    b, g = np.concatenate(b), np.concatenate(g)
    data = np.empty((count, b.size))
    for v in range(count):
        fibres = rng.integers(0, 3)
        free = rng.uniform(0.1, 0.4) if fibres else 1.0
        y = free * np.exp(-b * rng.choice([0.7e-3, 1.2e-3, 2.5e-3]))
        for share in rng.dirichlet([2.0] * fibres) * (1 - free) if fibres else ():
            u = rng.normal(size=3)
            along, across = rng.uniform(1.3e-3, 2.0e-3), rng.uniform(0.1e-3, 0.5e-3)
            y = y + share * np.exp(
                -b * (across + (along - across) * (g @ (u / np.linalg.norm(u))) ** 2)
            )
        noise = (rng.normal(size=b.size) + 1j * rng.normal(size=b.size)) / rng.uniform(15, 30)
        data[v] = 100 * np.abs(y + noise)
    return mapmri_nb.GradientTable(b, g, big_delta=big_delta, small_delta=small_delta), data


def measured(name, count, rng):
    """Voxels of a bundled sample."""
    dwi = sample_dwi(name)
    stem = str(dwi).removesuffix(".nii.gz")
    timing = json.loads(Path(stem + ".json").read_text())
    table = mapmri_nb.GradientTable.from_fsl(
        stem + ".bval",
        stem + ".bvec",
        big_delta=timing["BigDelta"],
        small_delta=timing["SmallDelta"],
    )
    mask = nib.load(next(dwi.parent.glob("*_mask.nii.gz"))).get_fdata() > 0
    data = nib.load(dwi).get_fdata()[mask]
    return table, data[rng.permutation(len(data))[:count]]


def problems(table, data, order, weight):
    """H, g, mu of every voxel, from the scales, frames and S0 of a linear fit."""
    fit = mapmri_nb.MapmriModel(table, radial_order=order, laplacian=0.2).fit(data)
    index, out = ordering.index_table(order), []
    M, L = np.empty((data.shape[1], len(index))), np.empty((len(index), len(index)))
    for y, mu, R, S0 in zip(data, fit.mu, fit.R, fit.S0, strict=True):
        hermite.signal_rows(np.ascontiguousarray(table.qvecs @ R), mu, index, M)
        laplacian.matrix(mu, index, L)
        out.append((M.T @ M + weight * L, M.T @ (y / S0), mu))
    return out


def trial(order, voxels, grid_of, dense):
    """Negative mass (%), iterations, ms a voxel and statuses, with the grid of each voxel from
    `grid_of(mu)`.
    """
    B, C, steps, spent, failed = ordering.origin_values(ordering.index_table(order)), [], [], 0.0, 0
    for H, g, mu in voxels:
        grid = grid_of(mu)
        work, c, info = qp.workspace(*grid.rows.values.shape), np.empty(len(B)), np.empty(3)
        start = time.perf_counter()
        status = qp.solve(H, g, qp.GridProblem(B, 1, grid.rows, 5000), work, c, info)
        spent += time.perf_counter() - start
        if status == qp.SOLVED:
            C.append(c)
            steps.append(info[1])
        failed += status != qp.SOLVED
    p = dense @ np.array(C).reshape(-1, len(B)).T
    mass = -100 * np.minimum(p, 0).sum(0) / np.abs(p).sum(0)
    return {
        "rows": len(grid.points), "mean": round(float(np.mean(mass)), 4), "max": round(float(np.max(mass, initial=0)), 4),
        "iterations": round(float(np.mean(steps)), 1), "ms": round(1e3 * spent / len(voxels), 3), "failed": failed,
    }  # fmt: skip


def main():
    """Print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--orders", type=int, nargs="+", default=[4, 6, 8, 10])
    parser.add_argument("--voxels", type=int, default=30)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    cases = {
        "HCP-like 3 x 90": simulated(
            [(90, 1000), (90, 2000), (90, 3000)], 0.0431, 0.0106, options.voxels, rng
        ),
        "small101d": measured("small101d", options.voxels, rng),
        "cat cord": measured("catcord", options.voxels, rng),
        "MGH-like": simulated(
            [(64, 1000), (64, 3000), (128, 5000), (256, 10000)], 0.0218, 0.0129, options.voxels, rng
        ),
    }
    target = Path(__file__).parent / "results" / "grid_choice.json"
    target.parent.mkdir(exist_ok=True)
    results = []
    for order in options.orders:
        reach = sqrt(2 * order + 1)
        u = positivity.grid_points(order, reach + 3.0, 0.3 * 2 ** (1 / 3))
        K = np.empty((len(u), ordering.n_coef(order)))
        hermite.propagator_rows(
            u, np.ones(3), ordering.index_table(order), K
        )  # with the Gaussian factor
        ball = sqrt(5) * positivity.half_ball(1.0, 1 / 7, False)  # in units of the largest scale
        grids = {
            "DIPY's ball": lambda mu, order=order, ball=ball: positivity.make_grid(
                order, ball * mu.max() / mu
            )
        }
        for name, (r, side) in CANDIDATES.items():
            fixed = positivity.make_grid(
                order, positivity.grid_points(order, reach + r, side / reach)
            )
            grids[name] = lambda mu, grid=fixed: grid
        for case, (table, data) in cases.items():
            if order == 10:
                data = data[: max(4, options.voxels // 4)]
            for weight in WEIGHTS:
                voxels = problems(table, data, order, weight)
                for name, grid_of in grids.items():
                    row = {
                        "order": order,
                        "scheme": case,
                        "weight": weight,
                        "grid": name,
                        **trial(order, voxels, grid_of, K),
                    }
                    results.append(row)
                    print(*(f"{k} {v}" for k, v in row.items()), sep="  ", flush=True)
    target.write_text("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n")


if __name__ == "__main__":
    main()
