"""Run the validation: every case of every group, results/*.json, the tables of README.md.

    python validation/run.py [--quick] [--all] [--only NAME] [--stale]

--all, or --only with its name, also runs the scripts of APART: what needs processes, disks, an
index or an hour of its own.
"""

import argparse
import importlib
import json
import math
import subprocess
import sys
import time
import traceback

import common
import readme

GROUPS = (
    "golden", "integrals", "gaussians", "restricted", "gcv_case", "constrained", "crossings", "tracking",
    "recovery", "noise",
    "uncertainty_case", "against_dipy", "peers", "real_data",
)  # fmt: skip


APART = (
    "dependency",
    "fuzz",
    "resume",
    "dipy_test_suite",
    "large_data",
    "tutorial_time",
)  # scripts that write results of the same form


def plain(value):
    """Numbers and tables as JSON takes them."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    return int(number) if isinstance(value, int) else number


def run_case(case, quick):
    """Measure one case; an exception is a failure with its last line as the result."""
    start = time.perf_counter()
    try:
        measured = case.run(quick)
        measured, tables = measured if isinstance(measured, tuple) else (measured, [])
        entry = {"measured": plain(measured), "passed": case.passes(measured)}
    except Exception as error:
        traceback.print_exc()
        entry, tables = {"measured": f"{type(error).__name__}: {error}", "passed": False}, []
    entry["seconds"] = round(time.perf_counter() - start, 2)
    tolerance = {"tolerance": case.tolerance, "at_least": case.at_least}
    named = {
        t.title: {"columns": t.columns, "rows": plain(t.rows), "note": t.note, "digits": t.digits}
        for t in tables
    }
    return {"name": case.name, "truth": case.truth} | tolerance | entry, named


def run_group(group, only, quick):
    """Run a group's cases and write its file; False if one failed.

    Other cases of an `only` run keep their results, with their own date, if they come from this
    machine and these versions.
    """
    if only in GROUPS and only != group:
        return None
    cases = [
        c for c in importlib.import_module(group).cases() if only in (None, group) or only in c.name
    ]
    if not cases:
        return None
    path = common.RESULTS / f"{group}.json"
    old = (
        json.loads(path.read_text())
        if path.exists() and only not in (None, group)
        else {"cases": [], "tables": {}}
    )
    here, there = common.environment(group), old.get("environment")
    if there and not quick and {**here, "date": 0} != {**there, "date": 0}:
        raise SystemExit(
            f"{path.name} is of another machine, other versions or older code: run the whole group, --only {group}"
        )
    entries, tables = {e["name"]: {"date": there["date"]} | e for e in old["cases"]}, old["tables"]
    good = True
    for case in cases:
        entry, new = run_case(case, quick)
        entries[case.name], tables = entry | {"date": here["date"]}, tables | new
        good = good and entry["passed"] is not False
        verdict = {True: "ok", False: "FAILED", None: ""}[entry["passed"]]
        print(
            f"{group}: {case.name}: {readme.number(entry['measured'])} {verdict} ({entry['seconds']} s)",
            flush=True,
        )
    if not quick:  # quick numbers are for the exit code, not for print
        common.write_result(group, list(entries.values()), tables)
    return good


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        "--quick", action="store_true", help="smaller cases, nothing written; for CI"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"also {', '.join(APART)}: each a process, the last an hour",
    )
    parser.add_argument(
        "--only", metavar="NAME", help="a group, one of those scripts, or part of a case's name"
    )
    parser.add_argument(
        "--stale",
        action="store_true",
        help="only what was measured on older code than this (with --all the scripts apart too)",
    )
    args = parser.parse_args(argv)
    fresh = [
        name
        for name in (*GROUPS, *APART)
        if args.stale and readme.load(name) and not readme.stale(name)
    ]
    if fresh:
        print(f"of this code already: {', '.join(fresh)}")
    found: list = [
        run_group(group, args.only, args.quick)
        for group in GROUPS
        if args.only not in APART and group not in fresh
    ]
    for name in APART:
        if name not in fresh and (name == args.only or (args.all and not args.only)):
            found.append(
                subprocess.call([sys.executable, str(common.ROOT / "validation" / f"{name}.py")])
                == 0
            )
    if args.only and all(f is None for f in found) and args.only not in fresh:
        parser.error(f"--only: no group or case is called {args.only!r}")
    if not args.quick:
        readme.write_validation()
    return 0 if all(f is not False for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
