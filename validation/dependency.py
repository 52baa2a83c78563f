"""The library as somebody's dependency: a wheel in a fresh environment with only its required
dependencies.

    python validation/dependency.py

Builds the wheel from a copy of this checkout, installs it (pip fetches the dependencies), runs
every check in a process of that environment and writes results/dependency.json. The environment is
removed in the end.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from common import ROOT, write_result

WORK = """
import hashlib
import numpy as np
import mapmri_nb as mapmri
from mapmri_nb import data, io

dwi = data.sample_dwi("catcord")
SERIES = np.asarray(io.load_dwi(dwi).data, float)[20:30, 18:30, 0]
MODEL = mapmri.MapmriModel(mapmri.GradientTable.from_bids(dwi), 6)

def bits(threads=None, step=1):
    fit = MODEL.fit(SERIES[::step], threads=threads)
    return hashlib.sha256(fit.coef.tobytes() + fit.rtop().tobytes() + fit.ng().tobytes()).hexdigest()
"""
SERIAL = "import work\nserial = [work.bits(1, step) for step in (1, -1)]\nassert serial[0] != serial[1]\n"
DIFFER = "\nprint(sum(m != serial[k % 2] for k, m in enumerate(many)))"
POOL = """
from multiprocessing import get_context
with get_context("{}").Pool(2) as pool:
    many = pool.starmap(work.bits, [(None, 1), (1, -1)] * 2)
"""
SAMPLES = """
from pathlib import Path
import mapmri_nb
from mapmri_nb import data, io
files = [data.sample_dwi(n) for n in data.SAMPLES]
bad = [f for f in files if io.load_dwi(f).data.ndim != 4 or not (f.parent / "LICENSE.txt").is_file()]
print(len(bad) + (not (Path(mapmri_nb.__file__).parent / "py.typed").is_file()))
"""
OTHER = """
import work, other
fit = work.MODEL.fit(work.SERIES)
print(abs(other.mean_rtop(fit.hermite_coef(), fit.mu, other.tables, other.room) / fit.rtop().mean() - 1))
"""
LOADED = "import sys, numba\nbefore = set(sys.modules)\nfrom mapmri_nb import MapmriModel\nnew = set(sys.modules) - before\n"
TOLERANCE = 1e-12  # of a mean; everything else is a count, 0
HEAVY = ("scipy", "nibabel", "osqp", "matplotlib", "tqdm", "dask", "dipy")
EIGHT = """
from concurrent.futures import ThreadPoolExecutor
many = list(ThreadPoolExecutor(8).map(work.bits, [None, 1, 2, None] * 8, [1, -1] * 16))
"""
SAME = "print(int(work.bits() != {expected!r}))"
# name, truth, code that prints the number that must be 0, interpreter flags
CHECKS = [
    ("wheel: samples, licences, py.typed", "all there and readable; number missing", SAMPLES, []),
    ("README's jitted function in another package", "fit.rtop(), relative difference of the means", OTHER, []),
    ("python -O", "the same bits as without", f"import work\nif __debug__: raise SystemExit(2)\n{SAME}", ["-O"]),
    ("process pool, spawn", "the same bits, 4 fits; number that differ", SERIAL + POOL.format("spawn") + DIFFER, []),
    ("process pool, fork", "the same bits, 4 fits; number that differ", SERIAL + POOL.format("fork") + DIFFER, []),
    ("thread pool of 8 on one model", "the same bits, 32 fits; number that differ", SERIAL + EIGHT + DIFFER, []),
    (f"import loads no {', '.join(HEAVY)}", "modules that numba alone does not load; number of packages",
     LOADED + f"print(len({{m.split('.')[0] for m in new}} & {set(HEAVY)!r}))", []),
]  # fmt: skip
LOCKED = f"import work\nfrom mapmri_nb.kernels import _jit\nassert _jit.CACHE_DIR is None\n{SAME}"


def size(folder, names):
    """Megabytes in a folder, of what starts with `names`, without byte code; everything where that
    is None.
    """
    paths = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return (
        sum(
            p.stat().st_size
            for p in paths
            if names is None or p.relative_to(folder).parts[0].startswith(names)
        )
        / 1e6
    )


def main():
    """Everything; 1 if a check failed."""
    base, cases = Path(tempfile.mkdtemp()), []
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "NUMBA_", "MAPMRI_NB", "XDG_CACHE"))
    }
    env |= {"PYTHONPATH": str(base / "code"), "NUMBA_CACHE_DIR": str(base / "cache")}
    venv = base / "venv" / "bin"

    def run(code, flags=(), **changes):
        """What code prints in the new environment."""
        words, how = (
            [venv / "python", "-P", *flags, "-c", code],
            {"capture_output": True, "text": True, "timeout": 600},
        )
        return subprocess.run(words, env=env | changes, cwd=base, check=True, **how).stdout.strip()

    def check(name, truth, measure):
        start = time.perf_counter()
        try:
            measured = float(measure())
        except subprocess.CalledProcessError as error:
            measured = (error.stderr.strip().splitlines() or ["no message"])[-1]
        passed, seconds = (
            not isinstance(measured, str) and measured <= TOLERANCE,
            round(time.perf_counter() - start, 2),
        )
        case = {
            "name": name,
            "truth": truth,
            "tolerance": TOLERANCE,
            "at_least": False,
            "measured": measured,
        }
        cases.append(case | {"passed": passed, "seconds": seconds})
        print(f"{name}: {measured} {'ok' if passed else 'FAILED'}", flush=True)

    try:
        ignore = shutil.ignore_patterns(
            "__pycache__", ".git", "tests", "validation", "build", "*.egg-info", ".venv*"
        )
        shutil.copytree(
            ROOT, base / "source", ignore=ignore
        )  # setuptools builds where the sources are
        pip = [venv / "python", "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", base / "venv"], check=True)
        subprocess.run(
            [*pip, "wheel", "--no-deps", "-w", base / "wheel", base / "source"], check=True, env=env
        )
        (wheel,) = (base / "wheel").iterdir()
        subprocess.run([*pip, "install", wheel], check=True, env=env)
        (base / "code" / "other").mkdir(parents=True)
        (base / "code" / "work.py").write_text(WORK)
        block = re.search(
            r"## Kernels from your own.*?```python\n(.*?)```",
            (ROOT / "docs" / "authors.md").read_text(),
            re.S,
        )[1]
        (base / "code" / "other" / "__init__.py").write_text(
            "\n".join(block.strip().splitlines()[:-1]) + "\n"
        )
        (site,) = (base / "venv").glob("lib/python*/site-packages")
        expected = run("import work\nprint(work.bits(1))")  # compiles, into the cache
        for name, truth, code, flags in CHECKS:
            check(
                name,
                truth,
                lambda c=code, f=flags: run(c.replace("{expected!r}", repr(expected)), f),
            )
        entry = partial(subprocess.run, [venv / "mapmri-nb", "info"], env=env, capture_output=True)
        check("entry point", "exit code of mapmri-nb info", lambda: entry().returncode)
        for path in [*site.rglob("*"), site]:
            path.chmod(path.stat().st_mode & ~0o222)
        before = set(site.rglob("*"))
        how = (
            "root, whom modes do not stop; so " if os.geteuid() == 0 else ""
        ) + "no HOME either, cache in /proc"
        walls = {
            "HOME": "/proc/nowhere",
            "NUMBA_CACHE_DIR": "/proc/nowhere",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        name, code = (
            "read-only site-packages, nowhere to cache",
            LOCKED.replace("{expected!r}", repr(expected)),
        )
        check(name, f"the same bits, compiled in memory ({how})", lambda: run(code, **walls))
        new = set(site.rglob("*")) ^ before  # root may write there; it must not
        check("the same: files that came or went in site-packages", "none", lambda: len(new))
        for path in [site, *site.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
        timed = "import time\nt = time.perf_counter()\nimport {}\nprint(time.perf_counter() - t)"
        seconds = {
            m: min(float(run(timed.format(m))) for _ in range(5))
            for m in ("numba", "mapmri_nb.model")
        }
        tooling = ("pip", "setuptools", "_distutils", "distutils", "pkg_resources")
        own, others = (
            f"{LOADED}print(*sorted(m for m in new if {n} m.startswith('mapmri_nb')))"
            for n in ("", "not")
        )
        rows = [
            ["wheel, MB", wheel.stat().st_size / 1e6], ["mapmri_nb installed, MB", size(site, "mapmri_nb")],
            ["its dependencies installed, MB", size(site, None) - size(site, ("mapmri_nb", *tooling))],
            ["kernel cache after these checks, MB", size(base / "cache", None)],
            ["import numba, s", seconds["numba"]], ["import mapmri_nb.model, numba included, s", seconds["mapmri_nb.model"]],
            ["modules after import numba", int(run(f"{LOADED}print(len(before))"))],
            ["modules that mapmri_nb adds, its own", len(run(own).split())],
            ["modules that mapmri_nb adds, others", run(others)],
        ]  # fmt: skip
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(*(f"{name}: {value}" for name, value in rows), sep="\n")
    note = "import: the shortest of five; dependencies without pip and setuptools"
    tables = {
        "As a dependency": {"columns": ["what", "value"], "rows": rows, "note": note, "digits": 3}
    }
    write_result("dependency", cases, tables)
    return int(not all(case["passed"] for case in cases))


if __name__ == "__main__":
    sys.exit(main())
