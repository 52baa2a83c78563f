"""Fits that are killed: at ten random moments, and a worker of a cluster half way.

    python validation/resume.py [--kills 10] [--seed N]

A made-up brain is fitted by the command line in every combination of what follows and compared with
a fit that nothing disturbed: the same NIfTI bytes, the same JSON less its run section. The table
goes to ``results/resume.json``.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, write_result
from large_data import generate

from mapmri_nb import io

DONE = "all results: it was done"
SLAB = 200  # voxels; the library's own would make one slab of this brain
SHAPE = (24, 24, 24)
MODEL, HIDDEN = io.map_name("brain", "", ".json"), "." + io.map_name("brain", "", ".partial")
CODE = f"""import sys
from mapmri_nb import cli, stream
stream.SLAB, stream.SYNC = {SLAB}, 0.0
sys.exit(cli.main(sys.argv[1:]))"""


def start(folder, out, *more):
    arguments = [
        "fit",
        folder / "brain_dwi.nii",
        "--mask",
        folder / "brain_mask.nii.gz",
        "--out",
        out,
        "--quiet",
        *more,
    ]
    arguments += ["--positivity", "global"]
    return subprocess.Popen([sys.executable, "-c", CODE, *map(str, arguments)], cwd=ROOT)


def content(folder):
    """Every file of a folder; of the fit's JSON what is not its run section."""
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files[MODEL] = json.loads(files.get(MODEL, b"{}"))
    files[MODEL].pop("Run", None)
    return files


def kept(out):
    """Slabs in the journal of an interrupted fit."""
    journal = out / HIDDEN / "journal"
    return (
        max(0, sum(line.startswith(b"[") for line in journal.read_bytes().splitlines()))
        if journal.exists()
        else 0
    )


def await_slabs(process, out, count):
    """Return when so many slabs are in the journal, or the process has ended."""
    while kept(out) < count and process.poll() is None:
        time.sleep(0.002)


def killed(folder, out, count, after):
    """Kill a fit some seconds after a slab; what it left, in words."""
    process = start(folder, out)
    await_slabs(process, out, count)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (out / MODEL).exists():
        return DONE
    if not out.exists():
        return "nothing: it had not begun"
    moved = len([path for path in out.iterdir() if not path.name.startswith(".")])
    stages = " and half-written images" if list((out / HIDDEN).glob(".mapmri-*")) else ""
    return f"{moved} results without their JSON" if moved else f"{kept(out)} slabs{stages}"


def worker_killed(folder, out, slabs):
    """Fit on a local cluster of two worker processes and kill one when half of the slabs are there."""
    from distributed import Client, LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        process = start(folder, out, "--engine", "dask", "--scheduler", cluster.scheduler_address)
        with Client(cluster) as client:
            victim = next(iter(client.run(os.getpid).values()))
            await_slabs(process, out, slabs // 2)
            left = kept(out)
            os.kill(victim, signal.SIGKILL)
            return f"a worker killed with {left} of {slabs} slabs done", process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    base = Path(tempfile.mkdtemp(prefix="resume-"))
    began, rows = time.perf_counter(), []
    try:
        slabs = -(-generate(base, SHAPE) // SLAB)
        start(base, base / "warm").wait()  # compiles
        process = start(base, base / "whole")
        times = []
        for count in (1, slabs):
            await_slabs(process, base / "whole", count)
            times.append(time.perf_counter())
        while not (base / "whole" / MODEL).exists():
            time.sleep(0.002)
        fitting, writing = (times[1] - times[0]) / slabs, time.perf_counter() - times[1]
        assert process.wait() == 0
        expected = content(base / "whole")
        for k in range(args.kills):
            out, left, count = base / f"out{k}", DONE, min(slabs, rng.integers(slabs * 3 // 2))
            while left == DONE:
                shutil.rmtree(out, ignore_errors=True)
                after = rng.uniform(
                    0, writing if count == slabs else fitting
                )  # a third of the fits while they write
                left = killed(base, out, count, after)
            code = start(base, out, "--resume").wait()
            fitted = json.loads((out / MODEL).read_text())["Run"]["FittedNow"] if code == 0 else -1
            same = code == 0 and content(out) == expected
            rows.append([f"kill -9, {1000 * after:.0f} ms after slab {count}", left, fitted, same])
            print(*rows[-1], sep="\t", flush=True)
            shutil.rmtree(out)
        left, code = worker_killed(base, base / "cluster", slabs)
        rows.append(
            ["two dask workers", left, slabs, code == 0 and content(base / "cluster") == expected]
        )
        print(*rows[-1], sep="\t", flush=True)
    finally:
        shutil.rmtree(base)
    wrong = [sum(not row[-1] for row in part) for part in (rows[:-1], rows[-1:])]
    seconds = round(time.perf_counter() - began, 1)
    names = (
        f"resumed after kill -9 at {args.kills} random moments",
        "a worker of a cluster killed half way",
    )
    truth = "an undisturbed fit: every byte but the JSON's run section; number of fits that differ"
    cases = [
        {"name": name, "truth": truth, "tolerance": 0, "at_least": False, "measured": count, "passed": count == 0,
         "seconds": seconds} for name, count in zip(names, wrong, strict=True)
    ]  # fmt: skip
    columns = ["what happened", "what was left", "slabs fitted afterwards", "same bytes"]
    rows = [[*row[:-1], "yes" if row[-1] else "NO"] for row in rows]
    note = (
        f"MAPL+, order 6, all indices, {slabs} slabs of {SLAB} voxels; writing took {writing:.2f} s"
    )
    tables = {
        "Interrupted fits": {
            "columns": columns,
            "rows": rows,
            "note": f"{note}; seed {args.seed}",
            "digits": 3,
        }
    }
    write_result("resume", cases, tables)
    return 1 if any(wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
