"""DIPY's own code of its MAP-MRI tutorial, with the drop-in and with DIPY, in CPU seconds.

    python validation/tutorial_time.py [--data DIR] [--big-delta S] [--small-delta S]

The 475 voxels of the tutorial's cut: simulated at its table, or the first of a slice of DIR (as of
``tutorial.py``). DIPY gets some of them, the rest follows from its rate. Results go to
``results/tutorial_time.json``.
"""

import os
import sys
import time

for name in ("OPENBLAS", "OMP", "MKL"):  # before NumPy loads: DIPY's BLAS on one core
    os.environ[f"{name}_NUM_THREADS"] = "1"

import common  # noqa: E402
import numpy as np  # noqa: E402
import truth  # noqa: E402
import tutorial  # noqa: E402
from against_dipy import dipy_table  # noqa: E402
from common import mapmri, write_result  # noqa: E402
from dipy.data import get_sphere  # noqa: E402
from dipy.reconst import mapmri as dipys  # noqa: E402

from mapmri_nb import dipy as drop_in  # noqa: E402

CUT = (25, 1, 19)  # voxels, data[40:65, 50:51] of the tutorial's series
FEW = 5  # of them for DIPY
ISSUE = 1287  # s, the tutorial as a whole in DIPY's issue list, on its machine, with its pictures
BOTH = {"laplacian_weighting": 0.05, "positivity_constraint": True}  # CMAPL
PLUS = {
    "laplacian_regularization": False,
    "positivity_constraint": True,
    "global_constraints": True,
}
LOW_B = {"bval_threshold": 2000}
ALL = ("msd", "qiv", "rtop", "rtap", "rtpp")
NG = ("ng", "ng_perpendicular", "ng_parallel")
STEPS = {  # what the tutorial fits and what it asks of each fit
    "MAPL": ({"laplacian_weighting": 0.2}, ("rtop", "norm_of_laplacian_signal")),
    "CMAP": (
        {"laplacian_regularization": False, "positivity_constraint": True},
        ("rtop", "norm_of_laplacian_signal"),
    ),
    "CMAPL": (BOTH, ("rtop", "norm_of_laplacian_signal", *ALL)),
    "MAP+": (PLUS, ("rtop", "norm_of_laplacian_signal", *ALL)),
    "CMAPL, b <= 2000": (BOTH | LOW_B, NG),
    "MAP+, b <= 2000": (PLUS | LOW_B, NG),
    "CMAPL, isotropic, order 8, ODF": (
        BOTH | {"laplacian_weighting": 0.1, "anisotropic_scaling": False, "radial_order": 8},
        ("odf",),
    ),
}


def simulated():
    """Table (496 volumes, as that of the tutorial's series) and samples of its cut: crossings, SNR 30."""
    b, g = truth.scheme([33] * 15, 200.0 * np.arange(1, 16), 1)
    rng, y = np.random.default_rng(0), np.empty((*CUT, len(b)))
    for voxel in np.ndindex(CUT):
        f, D = truth.crossing(rng.uniform(30, 90), (1.7, 0.3, 0.3), rng.uniform(0.3, 0.7))
        turn = common.random_frame(rng)
        clean = truth.mixture_signal(f, [turn @ d @ turn.T for d in D], b, g)
        y[voxel] = 1000 * np.hypot(*(rng.standard_normal((2, len(b))) / 30 + [clean, 0 * b]))
    return mapmri.GradientTable(
        b, g, big_delta=tutorial.BIG_DELTA, small_delta=tutorial.SMALL_DELTA
    ), y


def cut_of(args):
    """The same of a series: as many of the voxels of its mask."""
    series, mask, gtab, _ = tutorial.load(args.data, args)
    return gtab, series[mask][: np.prod(CUT)].reshape(*CUT, -1)


def seconds(step, module, table, y):
    """CPU seconds of a step of the tutorial."""
    options, names = STEPS[step]
    start = time.process_time()
    fit = module.MapmriModel(table, **({"radial_order": 6} | options)).fit(y)
    for name in names:
        getattr(fit, name)(*([get_sphere(name="repulsion724")] if name == "odf" else []))
    return time.process_time() - start


def main():
    """Write the table."""
    args = tutorial.arguments()
    gtab, y = cut_of(args) if args.data else simulated()
    table, rows, count = dipy_table(gtab), [], y[..., 0].size
    few = np.ascontiguousarray(y.reshape(-1, 1, 1, y.shape[-1])[:FEW])
    for step in STEPS:
        seconds(step, drop_in, table, few)  # loads or compiles its kernels
        ours, other = seconds(step, drop_in, table, y), seconds(step, dipys, table, few)
        rows.append([step, ours, 1e3 * other / FEW, other * count / FEW])
        print(*rows[-1], sep="\t", flush=True)
    rows.append(["the whole tutorial", *(sum(r[k] for r in rows) for k in (1, 2, 3))])
    ratio = rows[-1][3] / rows[-1][1]
    note = (
        f"CPU seconds, maps included, {count} voxels of {len(gtab)} volumes "
        f"({'a series' if args.data else 'simulated'}); DIPY's from its rate on {FEW} of them, with its default "
        f"solvers. Ratio of the last row: {ratio:.0f}. DIPY's issue list says {ISSUE} s."
    )
    columns = ["step", "drop-in, s", "DIPY, ms a voxel", "DIPY, s (extrapolated)"]
    case = {"name": "DIPY's time over the drop-in's", "truth": "DIPY in the same run", "tolerance": None,
            "at_least": True, "measured": ratio, "passed": None, "seconds": rows[-1][1]}  # fmt: skip
    tables = {
        "DIPY's MAP-MRI tutorial": {"columns": columns, "rows": rows, "note": note, "digits": 3}
    }
    write_result("tutorial_time", [case], tables)
    print(note)


if __name__ == "__main__":
    sys.exit(main())
