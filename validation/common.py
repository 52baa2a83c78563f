"""What every case needs: the contract of a case, where things are, made-up fits, the bundled
samples.
"""

import ast
import datetime
import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "validation" / "results"
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests"),
]  # this checkout is what is validated; tests has the oracle

import mapmri_nb as mapmri  # noqa: E402
from mapmri_nb import data, io  # noqa: E402

TAU = 0.03  # s, of every simulated acquisition


class Table(NamedTuple):
    """A table that goes into the README beside the cases."""

    title: str
    columns: list[str]
    rows: list[list]
    note: str = ""
    digits: int = 5


class Case(NamedTuple):
    """One claim: `run(quick)` measures a number, or (number, tables), that must not exceed the
    tolerance.

    `truth` says where the truth comes from. A tolerance of None means that the number is reported,
    not judged; `at_least` turns the comparison round.
    """

    name: str
    truth: str
    tolerance: float | None
    run: Callable
    at_least: bool = False

    def passes(self, measured: float) -> bool | None:
        """Whether the measured number keeps the tolerance; None where there is none."""
        if self.tolerance is None:
            return None
        return bool(measured >= self.tolerance if self.at_least else measured <= self.tolerance)


COMMAND = ("commands", "stream", "folder", "io")  # what a fit from the command line runs through


@functools.cache
def parsed(path):
    """Names that a file imports, and its code without comments, docstrings and layout."""
    tree, words = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
            words |= {word for name in names for word in name.split(".")}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "mapmri":
            words.add(node.attr)
        elif isinstance(node, ast.Constant) and node.value == "-m":
            words.add("cli")  # a command in a process of its own
        body = getattr(node, "body", None)
        if isinstance(body, list):
            texts = [getattr(getattr(b, "value", None), "value", None) for b in body]
            node.body = [b for b, t in zip(body, texts, strict=True) if not isinstance(t, str)]
            node.body = node.body or [ast.Pass()]
    return words | (set(COMMAND) if "cli" in words else set()), ast.unparse(tree)


def sources(group):
    """Files that a result rests on: its script and the scripts that this imports, the method and
    its kernels, and what the scripts import of the rest.
    """
    library, here, tests = ROOT / "mapmri_nb", ROOT / "validation", ROOT / "tests"
    found = {*library.glob("*.py"), *library.glob("kernels/*.py")} - set(library.glob("dipy*.py"))
    waiting = [here / f"{group}.py"]
    while waiting:
        path = waiting.pop()
        found.add(path)
        if library not in path.parents:
            words = parsed(path)[0] - {"readme", "run"}
            folders = (library, library / "use", here, tests)
            places = {folder / f"{word}.py" for folder in folders for word in words}
            waiting += [place for place in places - found if place.is_file()]
    return sorted(found)


def digest(group):
    """Of the code of `sources`, as the running Python writes it."""
    code = (f"{path.relative_to(ROOT)}\n{parsed(path)[1]}\n" for path in sources(group))
    return hashlib.sha256("".join(code).encode()).hexdigest()[:12]


def environment(group):
    """Versions, the code's digest, processor and date, as they go into every result."""
    packages = {}
    for name in ("numpy", "scipy", "numba", "llvmlite", "osqp", "dipy", "clarabel"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    model, flags = platform.processor(), []
    if os.path.exists("/proc/cpuinfo"):
        lines = dict(
            line.split(":", 1)
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if ":" in line
        )
        lines = {k.strip(): v.strip() for k, v in lines.items()}
        model = lines.get("model name", model)
        flags = [
            f
            for f in lines.get("flags", "").split()
            if f in ("sse4_2", "avx", "avx2", "fma") or f.startswith("avx512")
        ]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "mapmri_nb": mapmri.__version__,
        "code": digest(group),
        "python": platform.python_version(),
        "packages": packages,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "cpu_flags": flags,
        "cpus": os.cpu_count(),
    }


def write_result(group, cases, tables):
    """The file of a group: where it ran, its cases and its tables, as plain numbers."""
    RESULTS.mkdir(exist_ok=True)
    result = {"group": group, "environment": environment(group), "cases": cases, "tables": tables}
    (RESULTS / f"{group}.json").write_text(json.dumps(result, indent=1) + "\n")


def table_at(q, tau=TAU):
    """Gradient table whose q-vectors are q (k, 3) in 1/mm."""
    length = np.linalg.norm(q, axis=1)
    unit = np.divide(q, length[:, None], out=np.zeros_like(q), where=length[:, None] > 0)
    return mapmri.GradientTable(4 * np.pi**2 * length**2 * tau, unit, tau=tau, b0_threshold=0)


def made_fit(coef, mu, R=None, basis="anisotropic", mu_tensor=None, tau=TAU):
    """A fit of one voxel (a volume of shape (1,)) with given public coefficients; the order follows
    from their number.
    """
    import oracle

    coef, mu = np.asarray(coef, float), np.asarray(mu, float)
    rows = {
        "coef": coef[None],
        "mu": mu[None],
        "mu_tensor": (mu if mu_tensor is None else np.asarray(mu_tensor, float))[None],
        "R": (np.eye(3) if R is None else np.asarray(R, float))[None],
        "S0": np.ones(1),
        "laplacian_weight": np.zeros(1),
        "status": np.zeros(1, np.int64),
    }
    table = mapmri.GradientTable([0.0], [[0.0, 0.0, 0.0]], tau=tau)
    options = {"radial_order": oracle.order_of(coef), "basis": basis}
    return mapmri.MapmriFit(rows, np.ones(1, bool), options, table)


class Sample(NamedTuple):
    """A bundled sample in memory."""

    name: str
    gtab: mapmri.GradientTable
    y: np.ndarray  # (V, n) rows over the mask
    mask: np.ndarray


def load_sample(name):
    """One of `mapmri_nb.data.SAMPLES`."""
    path = data.sample_dwi(name)
    mask = (
        np.asarray(
            io.load_mask(next(path.parent.glob("*_mask.nii.gz")), io.load_dwi(path).data.shape[:3])
        )
        > 0
    )
    series = np.asarray(io.load_dwi(path).data, float)
    return Sample(
        name, mapmri.GradientTable.from_bids(path), np.ascontiguousarray(series[mask]), mask
    )


def relative(value, truth, floor=0.0):
    """Largest |value - truth| / max(|truth|, floor)."""
    value, truth = np.asarray(value, float), np.asarray(truth, float)
    return float(np.max(np.abs(value - truth) / np.maximum(np.abs(truth), floor)))


def random_frame(rng):
    """A random rotation."""
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return q * np.linalg.det(q)


MODES = {
    "MAP": {"laplacian": None},
    "MAPL 0.2": {"laplacian": 0.2},
    "MAPL GCV": {"laplacian": "gcv"},
    "isotropic 0.2": {"laplacian": 0.2, "basis": "isotropic"},
    "isotropic GCV": {"laplacian": "gcv", "basis": "isotropic"},
    "CMAP": {"laplacian": None, "positivity": "grid"},
    "CMAPL 0.2": {"laplacian": 0.2, "positivity": "grid"},
    "CMAPL GCV": {"laplacian": "gcv", "positivity": "grid"},
    "MAP+": {"laplacian": None, "positivity": "global"},
    "MAPL+ 0.2": {"laplacian": 0.2, "positivity": "global"},
    "MAPL+ GCV": {"laplacian": "gcv", "positivity": "global"},
}  # name -> the model's keyword arguments
