"""Measure the speed: microseconds a voxel in every mode, DIPY's `fit` beside it, the floor, the
first fit, the import.

    python validation/bench.py [--only MODE] [--orders N ..] [--rounds K] [--no-dipy]

Ours and DIPY's alternate, so that a busy machine slows both; a time is the smallest of the rounds,
a ratio the median of the rounds' ratios. One thread is timed in CPU seconds, several by the clock.
Ours is the whole fit with its nine indices, DIPY's is `fit` alone. Nothing is asserted.
"""

import argparse
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# before NumPy loads, and so above the imports (E402): BLAS of DIPY and the floor on one core, as ours
for name in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{name}_NUM_THREADS"] = "1"

import common  # noqa: E402
import large_data  # noqa: E402
import numba  # noqa: E402
import numpy as np  # noqa: E402
import readme  # noqa: E402
import truth  # noqa: E402
from common import MODES, RESULTS, ROOT, mapmri  # noqa: E402

from mapmri_nb import io, positivity  # noqa: E402
from mapmri_nb.indices import INDICES  # noqa: E402

os.environ.pop("OMP_NUM_THREADS")  # our indices obey it too, at each call
ORDERS = (4, 6, 8)
OSQP = {  # the routes by OSQP, order 6, few voxels
    "CMAP by OSQP": MODES["CMAP"] | {"solver": "osqp"},
    "CMAPL 0.2 by OSQP": MODES["CMAPL 0.2"] | {"solver": "osqp"},
    "MAPL+ 0.2 by OSQP": MODES["MAPL+ 0.2"] | {"solver": "osqp"},
}
DELTAS = {"big_delta": 0.0365, "small_delta": 0.0157}
SCHEME = "18 b0 + 3 x 90 directions, b = 1000, 2000, 3000 jittered by 0.75 %, SNR 30, crossings"
BYTECODE = tempfile.TemporaryDirectory()
NINE = ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm", "ng", "ng_par", "ng_perp")
DIPY = {  # how DIPY is asked for a mode, and how many voxels it gets
    "MAP": (25, {"laplacian_regularization": False}),
    "MAPL 0.2": (25, {"laplacian_weighting": 0.2}),
    "MAPL GCV": (10, {"laplacian_weighting": "GCV"}),
    "isotropic 0.2": (25, {"laplacian_weighting": 0.2, "anisotropic_scaling": False}),
    "isotropic GCV": (10, {"laplacian_weighting": "GCV", "anisotropic_scaling": False}),
    "CMAP": (3, {"laplacian_regularization": False, "positivity_constraint": True, "cvxpy_solver": "CLARABEL"}),
    "CMAPL 0.2": (3, {"laplacian_weighting": 0.2, "positivity_constraint": True, "cvxpy_solver": "CLARABEL"}),
    "MAP+": (5, {"laplacian_regularization": False, "positivity_constraint": True, "global_constraints": True,
                 "cvxpy_solver": "CLARABEL"}),
}  # fmt: skip


def voxels(count):
    """Table and noisy voxels: crossings of random angle and orientation, random jitter of b."""
    rng = np.random.default_rng(0)
    b, g = truth.scheme([90] * 3, [1000, 2000, 3000], 18)
    gtab = mapmri.GradientTable(b * (1 + 0.0075 * rng.standard_normal(len(b))), g, **DELTAS)
    y = np.empty((count, len(b)))
    for v in range(count):
        f, d = truth.crossing(rng.uniform(0, 45), (1.7, 0.3, 0.3), rng.uniform(0.3, 0.7))
        turn = common.random_frame(rng)
        clean = truth.mixture_signal(f, [turn @ t @ turn.T for t in d], gtab.bvals, gtab.bvecs)
        y[v] = 1000 * np.hypot(
            clean + rng.standard_normal(len(b)) / 30, rng.standard_normal(len(b)) / 30
        )
    return gtab, y


def whole(model, y, threads):
    """CPU and wall seconds of a fit with its nine indices."""
    numba.set_num_threads(threads)  # of the indices
    wall, cpu = time.perf_counter(), time.process_time()
    fit = model.fit(y, threads=threads)
    for index in NINE if not fit.isotropic else NINE[:7]:
        getattr(fit, index)()
    return time.process_time() - cpu, time.perf_counter() - wall


def dipy_fit(mode, order, gtab, default_solver=False):
    """A function that fits some voxels with DIPY and returns CPU seconds a voxel, or None where it
    would take too long.
    """
    constrained = mode in DIPY and "cvxpy_solver" in DIPY[mode][1]
    slow = constrained and (order != 6 and (mode, order) != ("CMAPL 0.2", 8))
    if mode not in DIPY or slow or (default_solver and (not constrained or order != 6)):
        return None
    from against_dipy import dipy_table
    from dipy.reconst.mapmri import MapmriModel

    count, options = DIPY[mode]
    if default_solver:
        count, options = 2, {k: v for k, v in options.items() if k != "cvxpy_solver"}
    model = MapmriModel(dipy_table(gtab), radial_order=order, bval_threshold=2100, **options)

    def run(y):
        start = time.process_time()
        model.fit(y[:count])
        return (time.process_time() - start) / count

    return run


def measure(mode, order, gtab, y, rounds, threads, with_dipy):
    """One row: the mode's times at one order."""
    options = (MODES | OSQP)[mode]
    some = 9600 if order < 6 else 1440  # with positivity
    y = y[: 8 if mode in OSQP else some if "positivity" in options else len(y)]
    try:
        model = mapmri.MapmriModel(gtab, order, **options)
    except ValueError:  # not identifiable without regularisation
        return None
    whole(model, y[:96], threads)
    peer = dipy_fit(mode, order, gtab) if with_dipy else None
    one, alone, many, other = [], [], [], []
    for _ in range(rounds):
        cpu, wall = whole(model, y, 1)
        one.append(cpu / len(y))
        alone.append(wall / len(y))
        many.append(whole(model, y, threads)[1] / len(y))
        if peer:
            try:
                other.append(peer(y))
            except Exception as error:
                print(f"DIPY, {mode}, order {order}: {type(error).__name__}", file=sys.stderr)
                peer = None
    row = {
        "mode": mode,
        "order": order,
        "voxels": len(y),
        "us": 1e6 * min(one),
        "us_threads": 1e6 * min(many),
    }
    row["gain"] = float(np.median(np.divide(alone, many)))
    if other:
        row |= {
            "dipy_ms": 1e3 * min(other),
            "ratio": float(np.median(np.divide(other, one[: len(other)]))),
        }
    slower = dipy_fit(mode, order, gtab, default_solver=True) if with_dipy else None
    if slower:
        row["dipy_default_ms"] = 1e3 * min(slower(y) for _ in range(2))
    if model.solver == "auto":
        steps = model.fit(y, threads=threads).rows()["iterations"].mean()
        row["mflop"] = (flops(model) + solver_flops(model, float(steps))) / 1e6
    return row


def flops(model):
    """Floating-point operations of a voxel up to the solver of a constrained mode; neither exp nor
    log, nor the choice among weights or of the scale.

    Moments, their rotation and maps, the fitted signal, tensor sums, Cholesky; GCV: whitening and
    tridiagonalisation.
    """
    t, s, bounds = model.plan.moments, model.plan.scheme, model.plan.gcv.bounds
    n, n_coef = len(model.gtab), t.origin.size
    maps = sum(m.coef.size for m in (t.hermite, t.gram, t.right, t.synthesis))
    products = s.high.size + 2 * s.low.size + 2 * 28 * n
    turns = 0 if model.plan.isotropic else 9 * (t.shears.shape[1] + 2 * t.shears_low.shape[1])
    total = 2 * (products + maps + turns) + n_coef**3 / 3 + 2 * n_coef**2
    if model.plan.laplacian_weights.size != 1:
        own = np.searchsorted(bounds, np.arange(n_coef), "right") - 1
        along = (
            np.arange(n_coef) - bounds[own]
        )  # terms of a triangular solve at each row, within its parity class
        total += (
            2 * float(sum(along[:i].sum() + i * along[i] for i in range(n_coef)))
            + 4 * n_coef**3 / 3
        )
    return float(total)


def solver_flops(model, steps):
    """The same of the solver, for the mean number of its steps. Grid: the triangular inverse, and a
    step scans all points and takes four products of a triangle and a vector. Global: a step forms
    the Schur complement from the moment matrices, factors it, and factors and inverts these.
    """
    n, half = model.n_coef, model.order // 2
    if model.positivity == "grid":
        points = len(positivity.normalised_grid(model.order).K)
        return n**3 / 3 + (steps + 1) * (2 * points * n + 4 * n**2)
    if model.positivity == "global":
        sizes = [sum((d + 1) * (d + 2) // 2 for d in range(p, half + 1, 2)) for p in (0, 1)]
        return steps * (n**3 / 3 + sum(m**4 + m**3 for m in sizes))
    return 0.0


def shore(gtab, y):
    """Microseconds a voxel of cs_dmri's 3D-SHORE fit of order 6, on one thread: by least squares,
    and with a nonnegative ODF; empty where it is not installed.
    """
    try:
        import cs_dmri
    except ImportError:
        return {}
    table = cs_dmri.GradientTable(gtab.bvals, gtab.bvecs, b0_threshold=50, **DELTAS)
    title, found = f"cs_dmri {cs_dmri.__version__}, 3D-SHORE, order 6, {{}}: us a voxel", {}
    for kind, count in (("l2", 4800), ("nonneg", 480)):
        model = cs_dmri.ShoreModel(table, radial_order=6, regularization=kind, bvec_frame="image")
        some, best = y[:count, None, None], np.inf
        for _ in range(4):
            before = time.process_time()
            model.fit(some, np.ones(some.shape[:3], bool), diagnostics=False, n_threads=1)
            best = min(best, time.process_time() - before)
        found[title.format(kind)] = round(1e6 * best / count, 1)
    return found


def shared_scale(gtab, y):
    """Microseconds a voxel of the isotropic basis with one scale for all, order 6, weight 0.2, and
    RTOP, MSD, QIV and the Laplacian's norm: the static scale, whose tensor is fitted besides, the
    same scale given once, and given for each voxel, which is not the constant map.
    """
    spec, found = {"basis": "isotropic", "laplacian": 0.2}, {}
    mu, R = np.full(3, np.sqrt(2 * 0.7e-3 * gtab.tau)), np.eye(3)
    rows = np.tile(mu, (len(y), 1)), np.tile(R, (len(y), 1, 1))
    for title, more, scale in (
        ("static_diffusivity", {"static_diffusivity": 0.7e-3}, None),
        ("scale= given once", {}, (mu, R)),
        ("scale= for each voxel", {}, rows),
    ):
        model, best = mapmri.MapmriModel(gtab, 6, **spec, **more), np.inf
        for _ in range(6):
            before = time.process_time()
            fit = model.fit(y, scale=scale, threads=1, quiet=True)
            for name in ("rtop", "msd", "qiv", "lapnorm"):
                fit.index_rows(name)
            best = min(best, time.process_time() - before)
        found[f"isotropic, one scale, {title}: us a voxel"] = round(1e6 * best / len(y), 2)
    return found


def matrix_rate():
    """The core's double-precision matrix-product rate, flop/s: CPU seconds, the best of some
    products of 600 x 600.
    """
    a = np.random.default_rng(0).standard_normal((600, 600))
    best = np.inf
    for _ in range(20):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    return 2 * 600**3 / best


def bare_gain(threads):
    """What a bare compute loop gains from threads, in the same minute: the yardstick of `gain`."""
    a = np.random.default_rng(0).standard_normal((200, 200))

    def work(_):
        for _ in range(150):
            a @ a

    gains = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            for k in range(threads):
                work(k)
            middle = time.perf_counter()
            list(pool.map(work, range(threads)))
            gains.append((middle - start) / (time.perf_counter() - middle))
    return float(np.median(gains))


def child(code, **env):
    """CPU seconds of a fresh interpreter that runs `code` in this checkout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


FIRST = """
import numpy as np
import mapmri_nb as mapmri
rng = np.random.default_rng(0)
g = rng.standard_normal((60, 3))
b = np.r_[np.zeros(4), np.repeat([1000.0, 2000.0], 28)]
gtab = mapmri.GradientTable(b, g / np.linalg.norm(g, axis=1, keepdims=True), big_delta=0.0365, small_delta=0.0157)
y = np.exp(-b * 0.7e-3) + 0.02 * rng.standard_normal((50, 60))
fit = mapmri.MapmriModel(gtab, 4, **{options!r}).fit(y)
fit.rtop()
"""


def first_fits():
    """CPU seconds of a first fit in a fresh interpreter, from an empty and from a warm cache, and
    the cache's size.
    """
    out = {}
    wanted = {"MAPL": "MAPL 0.2", "GCV": "MAPL GCV", "grid": "CMAPL 0.2", "global": "MAPL+ 0.2"}
    with tempfile.TemporaryDirectory() as everything:
        for title, mode in wanted.items():
            code = FIRST.replace("{options!r}", repr(MODES[mode]))
            with tempfile.TemporaryDirectory() as cache:
                out[f"first fit, {title}: empty cache, CPU s"] = round(
                    child(code, NUMBA_CACHE_DIR=cache), 2
                )
            child(code, NUMBA_CACHE_DIR=everything)
            out[f"first fit, {title}: warm cache, CPU s"] = round(
                child(code, NUMBA_CACHE_DIR=everything), 2
            )
        size = sum(p.stat().st_size for p in Path(everything).rglob("*") if p.is_file())
    return out | {"cache after these four, MB": round(size / 1e6, 2)}


IMPORT = "from mapmri_nb import MapmriModel"
START = f"{IMPORT}\nimport nibabel"  # what a whole command begins with


def imports(rounds=7):
    """`from mapmri_nb import MapmriModel` against `import numba`: smallest CPU seconds of
    alternating fresh interpreters.
    """
    child(IMPORT)  # bytecode
    pairs = [(child(IMPORT), child("import numba"), child("pass")) for _ in range(rounds)]
    ours, numba, bare = np.min(pairs, axis=0)
    ratio = float(np.median([(a - bare) / (b - bare) for a, b, _ in pairs]))
    return {f"{IMPORT}, CPU s": round(float(ours), 3), "import numba, CPU s": round(float(numba), 3),
            "their ratio, interpreter taken off": round(ratio, 2)}  # fmt: skip


def seconds(call):
    """CPU and wall seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def in_memory(model, y, threads):
    """A fit with all the indices that the command writes."""
    fit = model.fit(y, threads=threads, quiet=True)
    for name in INDICES:
        fit.index_rows(name)


def inflate(path):
    """Inflate a file without keeping it: by isal where it is installed, as the command does."""
    try:
        from isal import igzip as gzip
    except ImportError:
        import gzip
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def commands(modes, threads, rounds):
    """The whole command, warm, with all indices, on a twentieth of the slices of a series of HCP's
    shape: over the larger of two bare figures of the same run, inflating (or reading) the file and
    the fit with the same indices in memory; its start is taken off. Of CPU seconds, over both: the
    samples of a voxel lie all over the file, so no fit begins before the last volume is inflated.
    """
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        count = large_data.generate(folder, (*large_data.SHAPE[:2], large_data.SHAPE[2] // 20))
        series, packed = folder / "brain_dwi.nii", folder / "brain_dwi.nii.gz"
        with open(series, "rb") as source, gzip.open(packed, "wb", 1) as target:
            shutil.copyfileobj(source, target)
        mask = np.asarray(io.read_nii(folder / "brain_mask.nii.gz").data) > 0
        gtab = mapmri.GradientTable.from_fsl(
            folder / "brain_dwi.bval", folder / "brain_dwi.bvec",
            big_delta=large_data.BIG_DELTA, small_delta=large_data.SMALL_DELTA,
        )  # fmt: skip
        y = np.asarray(io.load_dwi(series).data)[mask].astype(float)
        for mode in modes:
            model = mapmri.MapmriModel(gtab, 6, **MODES[f"{mode} 0.2"])
            words = [*large_data.MODES[mode], "--threads", str(threads)]
            for file, bare in ((series, series.read_bytes), (packed, lambda: inflate(packed))):
                large_data.run(folder, words, file.name)
                in_memory(model, y, threads)
                found = []
                for _ in range(rounds):
                    start = []
                    _, begin = seconds(lambda start=start: start.append(child(START)))
                    (unpack_cpu, unpack), (cpu, fit) = (
                        seconds(bare), seconds(lambda model=model: in_memory(model, y, threads)),
                    )  # fmt: skip
                    _, spent, peak, _, used = large_data.run(folder, words, file.name)
                    spent, used = spent - begin, used - start[0]
                    found.append((spent, unpack, fit, spent / max(unpack, fit), used, cpu,
                                  used / (cpu + unpack_cpu), 1024 * peak))  # fmt: skip
                keys = ("command_s", "bare_file_s", "in_memory_s", "ratio", "cpu_s",
                        "in_memory_cpu_s", "cpu_ratio", "peak_mb")  # fmt: skip
                row = dict(zip(keys, np.median(found, axis=0).tolist(), strict=True))
                rows.append({"mode": mode, "file": file.suffix, "voxels": count} | row)
                print(rows[-1], flush=True)
    return rows


def brain(rows, whole_rows, start):
    """Seconds that a brain of 250,000 voxels takes, warm, from the compressed file, on one thread
    and on those of this run: the start, and for each voxel its fit and what the command adds to it.
    """
    mapl = next(r for r in whole_rows if (r["mode"], r["file"]) == ("MAPL", ".gz"))
    added = 1e6 * (mapl["cpu_s"] - mapl["in_memory_cpu_s"]) / mapl["voxels"]
    title, found = (
        "a brain of 250,000 voxels, 288 volumes, order 6, {}: s, one thread / threads",
        {},
    )
    for r in rows:
        if r["order"] == 6 and r["mode"] in MODES:
            fixed = start[f"{IMPORT}, CPU s"] + 0.25 * added
            both = (fixed + 0.25 * r["us"] / gain for gain in (1.0, r["gain"]))
            found[title.format(r["mode"])] = " / ".join(f"{x:.0f}" for x in both)
    return found


def in_words(whole_rows):
    """Ratios of `commands` for the table of starts."""
    title, found = "whole command, {mode}, {file}, {voxels} voxels: {}", {}
    for r in whole_rows:
        over = "the larger of the bare file and the fit in memory, wall"
        found[title.format(over, **r)] = round(r["ratio"], 2)
        found[title.format("their sum, CPU", **r)] = round(r["cpu_ratio"], 2)
        found[title.format("peak memory, MB", **r)] = round(r["peak_mb"])
    return found


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--only", metavar="MODE", help="part of a mode's name; nothing is written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--orders", type=int, nargs="+", default=ORDERS)
    parser.add_argument("--no-dipy", action="store_true")
    args = parser.parse_args(argv)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # children find it cached, as in an install
    os.environ["PYTHONPYCACHEPREFIX"] = BYTECODE.name
    threads, rate = min(2, os.cpu_count() or 1), matrix_rate()
    gtab, y = voxels(24000)  # six slabs of the command
    rows = []
    for mode in MODES | OSQP:
        for order in args.orders if mode in MODES else (6,):
            if args.only and args.only not in mode:
                continue
            row = measure(mode, order, gtab, y, args.rounds, threads, not args.no_dipy)
            if row and "mflop" in row:
                row["floor_us"] = 1e6 * row["mflop"] * 1e6 / rate
            if row:
                rows.append(row)
                print(
                    {k: v if isinstance(v, str) else float(f"{v:.4g}") for k, v in row.items()},
                    flush=True,
                )
    if args.only:
        return 0
    gain = bare_gain(threads)
    start, whole_rows = (
        imports() | first_fits(),
        commands(large_data.MODES, threads, min(args.rounds, 3)),
    )
    start |= in_words(whole_rows) | brain(rows, whole_rows, start) | shore(gtab, y)
    start |= shared_scale(gtab, y)
    start |= {"matrix products, one core, GF/s": round(rate / 1e9, 1)}
    start[f"gain of a bare loop from {threads} threads"] = round(gain, 2)
    out = {
        "environment": common.environment("bench"),
        "scheme": SCHEME,
        "threads": threads,
        "rounds": args.rounds,
        "load": round(os.getloadavg()[2], 1),
    }
    out |= {"modes": rows, "commands": whole_rows, "start": start}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench.json").write_text(json.dumps(out, indent=1) + "\n")
    readme.write_validation()
    for key, value in start.items():
        print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
