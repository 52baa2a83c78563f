"""Damaged inputs by the thousand: files through the command line, random bytes through every mode.

    python validation/fuzz.py [--count 250] [--samples 5000] [--seed 0]

Every kind of damage (tests/damage.py) runs in a process of its own, so that a crash is counted and
not suffered: `count` inputs of each kind, about `samples` voxels a mode. The counts go to
``results/fuzz.json``.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
from common import write_result

import damage  # isort: skip  (in tests, which common puts on the path)

FILES = {**damage.DAMAGE, **damage.ANY}
OUTCOMES = ("refused", "done", "traceback", "other", "crash")


def damaged_files(kind, count, seed):
    """Outcomes of `count` inputs of a kind through `mapmri-nb fit`, voxels without a truthful
    status, and odd lines.
    """
    rng, met, unaccounted, odd = np.random.default_rng([seed, *kind.encode()]), Counter(), 0, []
    files, _, damaged = FILES[kind]
    with tempfile.TemporaryDirectory() as base, redirect_stderr(io.StringIO()) as printed:

        def capture():
            text = printed.getvalue()
            printed.seek(0)
            printed.truncate()
            return text

        dwi = damage.cut("catcord", Path(base) / "in", dead=True)
        words = (
            "fit",
            dwi,
            "--mask",
            dwi.with_name(damage.MASK),
            "--radial-order",
            2,
            "--indices",
            "rtop",
        )
        for k in range(count):
            path, out = dwi.with_name(files[k % len(files)]), Path(base) / f"out{k}"
            whole = path.read_bytes()
            path.write_bytes(damaged(whole, rng, k))
            what, why = damage.outcome(capture, out, *words)
            path.write_bytes(whole)
            met[what] += 1
            odd += [why] * bool(why)
            if what == "done":
                unaccounted += damage.unaccounted(out)
    return {**met, "unaccounted": unaccounted, "odd": odd[:5]}


def random_samples(mode, count, seed):
    """Voxels of a mode between clean ones: how many, without a fit, wrong."""
    wrong, none = damage.wrong_voxels(*damage.random_samples(mode, count // 5, seed))
    return {"voxels": len(none), "none": int(none.sum()), "wrong": int(wrong.sum())}


def apart(function, *words):
    """What a function of this file gives in a process of its own; None, and its last words, where
    that dies.
    """
    code = f"import json, sys, fuzz; print(json.dumps(fuzz.{function}(*json.loads(sys.argv[1]))))"
    try:
        run = subprocess.run([sys.executable, "-c", code, json.dumps(words)], cwd=Path(__file__).parent,
                             capture_output=True, text=True, timeout=3600)  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, "did not end"
    return (
        (json.loads(run.stdout), "")
        if run.returncode == 0
        else (None, f"{run.returncode}: {run.stderr[-300:]}")
    )


def main():
    """Everything; 1 unless every input was refused or fitted and every voxel has its status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--count", type=int, default=250, help="inputs of each kind of damage")
    parser.add_argument("--samples", type=int, default=5000, help="voxels of random samples a mode")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began, files, voxels = time.perf_counter(), [], []
    for kind in FILES:
        found, why = apart("damaged_files", kind, args.count, args.seed)
        found = found or {"crash": args.count, "unaccounted": 0, "odd": [why]}
        files.append(
            [kind, args.count, *(found.get(what, 0) for what in OUTCOMES), found["unaccounted"]]
        )
        print(*files[-1], *found["odd"], sep="\t", flush=True)
    for mode in damage.MODES:
        found, why = apart("random_samples", mode, args.samples, args.seed)
        found = found or {"voxels": args.samples, "none": 0, "wrong": args.samples}
        voxels.append(
            [mode, found["voxels"], found["voxels"] - found["none"], found["none"], found["wrong"]]
        )
        print(*voxels[-1], why, sep="\t", flush=True)
    total, tried = (
        np.array([row[1:] for row in files]).sum(0),
        np.array([row[1:] for row in voxels]).sum(0),
    )
    files.append(["all", *map(int, total)])
    voxels.append(["all", *map(int, tried)])
    seconds, entry = round(time.perf_counter() - began, 1), {"tolerance": 0, "at_least": False}
    bad = {
        f"{total[0]} damaged files: tracebacks": ("one line of error, or a fit", total[3]),
        f"{total[0]} damaged files: crashes, several lines, leftovers": (
            "one line of error, or a fit",
            total[4] + total[5],
        ),
        f"{total[2]} fits of changed files: voxels without a truthful status": (
            "status and NaN together",
            total[6],
        ),
        f"{tried[0]} voxels of random samples: wrong ones": (
            "status and NaN together; neighbours bit for bit",
            tried[3],
        ),
    }
    cases = [{"name": name, "truth": truth, **entry, "measured": int(n), "passed": bool(n == 0), "seconds": seconds}
             for name, (truth, n) in bad.items()]  # fmt: skip
    note = f"{args.count} of each kind, seed {args.seed}; the last kinds change bytes that may not matter or are a number"
    columns = [
        "damage",
        "inputs",
        "refused in one line",
        "fitted",
        "tracebacks",
        "something else",
        "crashes",
    ]
    columns.append("voxels without status")
    tables = {
        "Fuzz: damaged files through the command line": {"columns": columns, "rows": files, "note": note, "digits": 3},
        "Fuzz: random bytes as samples, order 4": {
            "columns": ["mode", "voxels", "fitted", "no fit, by status", "wrong"], "rows": voxels, "digits": 3,
            "note": "bytes read as float64, float32, float16, int16, and clean voxels with NaN, infinite, huge and tiny "
            "samples, 20 clean voxels among them that must keep their bits",
        },
    }  # fmt: skip
    write_result("fuzz", cases, tables)
    return int(not all(case["passed"] for case in cases))


if __name__ == "__main__":
    sys.exit(main())
