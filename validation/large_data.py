"""A whole brain of the largest common kind through the command line: time, memory, disk.

    python validation/large_data.py [--tenth] [--folder DIR] [--modes MAPL CMAPL MAPL+]

145 x 174 x 145 x 288 is generated to disk (integers, 2.1 GB) where there is room for it and for the
results, else a tenth of its slices, and the result says so. Each mode runs as a process of its own,
with all indices; its peak resident memory is what the kernel says of the finished process. The
first mode runs once more on the same series as .nii.gz. The table goes to
``results/large_data.json``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, write_result

import mapmri_nb as mapmri
from mapmri_nb import io
from mapmri_nb.indices import INDICES
from mapmri_nb.use.packed import packer

SHAPE = (145, 174, 145)
LIMIT = 4.0  # GiB
BIG_DELTA, SMALL_DELTA = 0.0431, 0.0106  # s
SHELLS = (1000, 2000, 3000)  # s/mm2, 90 directions each, and 18 b0
KINDS = 40000  # different voxels
MODES = {"MAPL": [], "CMAPL": ["--positivity", "grid"], "MAPL+": ["--positivity", "global"]}
# a voxel: slabs, results, maps, series (as it is, packed, unpacked again); an upper bound
BYTES = 8 * 90 + 8 * 84 + 4 * 11 + 3 * 2 * 288


# A process inherits the peak of the one that starts it: a small one starts the fit
CHILD = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.call(sys.argv[1:])
used, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
print(json.dumps([status, used.ru_maxrss, used.ru_utime + used.ru_stime, wall]))
"""


def table():
    """b-values and directions, golden spirals with the shells interleaved by b0."""
    k = np.arange(90) + 0.5
    bvals, bvecs = [], []
    for shell, b in enumerate(SHELLS):
        z, angle = 1 - k / 90, np.pi * (1 + 5**0.5) * k + shell
        ring = np.sqrt(1 - z**2)
        bvals += [0.0] * 6 + [b] * 90
        bvecs += [np.zeros((6, 3)), np.stack([ring * np.cos(angle), ring * np.sin(angle), z], 1)]
    return np.array(bvals), np.concatenate(bvecs)


def voxels(bvals, bvecs, rng):
    """KINDS signals of two fibres and free water at SNR 20, (KINDS, n), the last hundred of them
    noise alone.
    """
    signal = np.zeros((KINDS, len(bvals)))
    for fraction in rng.dirichlet((2, 1, 0.5), KINDS).T[:2]:
        axis = rng.standard_normal((KINDS, 3))
        cosine = (axis / np.linalg.norm(axis, axis=1, keepdims=True)) @ bvecs.T
        along, across = rng.uniform(1.4e-3, 2e-3, (KINDS, 1)), rng.uniform(2e-4, 5e-4, (KINDS, 1))
        signal += fraction[:, None] * np.exp(-bvals * (across + (along - across) * cosine**2))
    signal += np.maximum(0, 1 - signal[:, :1]) * np.exp(-bvals * 3e-3)
    signal *= 1000
    signal[-100:] = 0
    noise = 50 * rng.standard_normal((2, *signal.shape))
    return np.hypot(signal + noise[0], noise[1]).round().astype(np.int16)


def generate(folder, shape):
    """Series, sidecars and an ellipsoid of a mask with a quarter of the voxels, as a brain has."""
    rng = np.random.default_rng(0)
    bvals, bvecs = table()
    kinds = np.ascontiguousarray(voxels(bvals, bvecs, rng).T)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    mask = sum(axis**2 for axis in grid) < 0.8**2
    which = np.where(
        mask, rng.integers(0, KINDS - 100, shape), rng.integers(KINDS - 100, KINDS, shape)
    )
    affine = np.diag([1.25, 1.25, 1.25, 1])
    io.write_nii(
        folder / "brain_dwi.nii",
        (row[which] for row in kinds),
        (*shape, len(bvals)),
        np.int16,
        affine,
    )
    io.write_nii(folder / "brain_mask.nii.gz", [mask], shape, np.uint8, affine)
    np.savetxt(folder / "brain_dwi.bval", bvals[None], fmt="%d")
    np.savetxt(folder / "brain_dwi.bvec", bvecs.T, fmt="%.9f")
    io.write_json(folder / "brain_dwi.json", {"BigDelta": BIG_DELTA, "SmallDelta": SMALL_DELTA})
    return int(mask.sum())


def pack(path):
    """The file as .gz; prints the seconds that it takes to unpack it."""
    packed = path.with_name(f"{path.name}.gz")
    with path.open("rb") as source, packer().open(packed, "wb", 2) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    start = time.perf_counter()
    with packer().open(packed) as source:
        while source.read(1 << 20):
            pass
    seconds, size = time.perf_counter() - start, packed.stat().st_size / 1e9
    print(f"{packed.name}: {size:.2f} GB, unpacked in {seconds:.2f} s, not kept", flush=True)
    return packed


def run(folder, words, name="brain_dwi.nii"):
    """One fit in a process of its own: its run section, seconds in all, peak memory in GiB, size of
    the results in GB, CPU seconds.
    """
    out = folder / "out"
    arguments = [
        str(folder / name),
        "--mask",
        str(folder / "brain_mask.nii.gz"),
        "--out",
        str(out),
        *words,
    ]
    command = [sys.executable, "-m", "mapmri_nb", "fit", *arguments, "--quiet"]
    told = subprocess.run(
        [sys.executable, "-c", CHILD, *command], cwd=ROOT, check=True, capture_output=True
    )
    status, peak, cpu, seconds = json.loads(told.stdout.splitlines()[-1])
    if status:
        raise SystemExit(f"fit {words} ended with {status}")
    entries = json.loads((out / io.map_name("brain", "", ".json")).read_text())
    maps = [out / io.map_name("brain", index.label) for index in INDICES.values()]
    if missing := [path.name for path in maps if not path.is_file()]:
        raise SystemExit(f"fit {words}: no {missing}")
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e9
    shutil.rmtree(out)
    return entries["Run"]["Seconds"], seconds, peak / 2**20, size, cpu


def measure(base, shape, modes):
    """Rows of the table."""
    folder = Path(tempfile.mkdtemp(prefix="large-", dir=base))
    try:
        tiny = folder / "tiny"
        tiny.mkdir()
        generate(tiny, (8, 8, 8))
        for mode in modes:
            run(tiny, MODES[mode])  # compiles
        count, rows = generate(folder, shape), []
        series = {mode: "brain_dwi.nii" for mode in modes}
        series[f"{modes[0]}, .nii.gz"] = pack(folder / "brain_dwi.nii").name
        for mode, name in series.items():
            split, seconds, memory, size, _ = run(folder, MODES[mode.split(",")[0]], name)
            parts = [split[name] for name in ("Reading", "Fitting", "Writing")]
            rows.append([mode, count, *parts, seconds, 1e6 * parts[1] / count, memory, size])
            print(
                *(f"{x:.5g}" if isinstance(x, float) else x for x in rows[-1]), sep="\t", flush=True
            )
    finally:
        shutil.rmtree(folder)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument(
        "--tenth", action="store_true", help="a tenth of the slices, wherever there is room for all"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the data may lie"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    args = parser.parse_args()
    free, need = shutil.disk_usage(args.folder).free, int(np.prod(SHAPE)) * BYTES
    tenth = args.tenth or free < need
    shape = (*SHAPE[:2], SHAPE[2] // 10) if tenth else SHAPE
    why = (
        "asked for"
        if args.tenth
        else f"{free / 1e9:.0f} GB free, {need / 1e9:.0f} GB needed for the whole"
    )
    note = f"{' x '.join(map(str, shape))} x 288" + (
        f": A TENTH of the slices ({why})" if tenth else ", the whole"
    )
    print(note, flush=True)
    rows = measure(args.folder, shape, args.modes)
    columns = [
        "mode",
        "voxels",
        "reading s",
        "fitting s",
        "writing s",
        "all s",
        "us/voxel",
        "peak GiB",
        "results GB",
    ]
    truth = f"peak resident memory of the process, GiB; {note}"
    cases = [
        {"name": f"{row[0]} with all indices", "truth": truth, "tolerance": LIMIT, "at_least": False,
         "measured": row[7], "passed": row[7] <= LIMIT, "seconds": row[5]} for row in rows
    ]  # fmt: skip
    threads = f"int16 series, a quarter in the mask, order 6, {os.cpu_count()} CPUs, load {os.getloadavg()[2]:.1f}"
    tables = {
        "Large data": {"columns": columns, "rows": rows, "note": f"{note}; {threads}", "digits": 3}
    }
    write_result("large_data", cases, tables)
    return 0 if all(case["passed"] for case in cases) else 1


if __name__ == "__main__":
    assert mapmri.__version__
    sys.exit(main())
