"""Can each test fail? Breaks the method's code at one place after the other and runs the tests that
reach it.

    python validation/mutants.py [--count 150] [--seeds 0] [--seconds 60] [--only FILE:LINE] [--survivors] [--plain]

A mutant has another sign, index, constant or comparison. Each seed draws `count` over core and
kernels, in a copy of package and tests. One run of the tests says which of them reach a mutant:
tests without the compiler for kernels, compiled ones for the core. These run, the shortest first,
until one fails or `seconds` of CPU have passed, which counts as noticed: without the mutant those
that are run take less than a third of it. ``results/mutants.json`` has what became of each; why a
survivor changes no answer is written there under "equivalent" by hand and kept by the next run.
By hand, about an hour.
"""

import argparse
import ast
import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numba
import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "validation" / "results" / "mutants.json"
CORE = (
    "checks",
    "engine",
    "fit",
    "gradients",
    "indices",
    "model",
    "positivity",
    "readers",
    "scales",
    "sos",
    "status",
)
# compiled code alone: the decorator, LLVM's vectors, tuples in memory
NOT_RUN = ("_jit", "_types", "lanes", "_memory")
# of the core, which is compiled: the others take long and add nothing
CORE_TESTS = [
    "fit",
    "given",
    "gradients",
    "model",
    "noise",
    "positivity",
    "scalars",
    "sos",
    "testing",
    "weights",
]
# they read the sources, start many processes or compile again
NOT_TESTS = ("architecture", "habits", "documents", "jit", "bits", "report", "plot", "distributed", "stream", "testing",
             "mrtrix", "folders")  # fmt: skip
SWAPPED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">",
           ast.Eq: "!=", ast.NotEq: "=="}  # fmt: skip
KILLED = ("test", "time")


class Site(NamedTuple):
    """A mutant: the file, the statement's line and the text that `new` replaces."""

    file: str
    statement: int
    line: int
    start: int
    end: int
    old: str
    new: str
    nth: int = 0  # of those with the same key

    @property
    def name(self):
        return f"{self.file}:{self.line}:{self.start} {self.old} -> {self.new}"

    @property
    def key(self):
        """What stays when lines move: file, the line's text, column and change."""
        code = (ROOT / self.file).read_text().split("\n")[self.line - 1].strip()
        return self.file, code, f"{self.start} {self.old} -> {self.new}"


def draw(every, seed, count):
    """`count` mutants in the order of a hash: a line that changes takes away its own mutants alone,
    the rest of the draw stays.
    """
    place = {site: f"{seed} {site.key} {site.nth}" for site in every}
    return sorted(every, key=lambda site: sha256(place[site].encode()).digest())[:count]


def sites(path):
    """Every mutant of a file, inside functions, without texts and annotations."""
    lines, file, found = path.read_text().splitlines(), str(path.relative_to(ROOT)), []

    def add(statement, node_from, node_to, new, old=None):
        (line, start), (last, end) = node_from, node_to
        if line == last:
            text = lines[line - 1].encode()[start:end].decode()
            if old is not None:  # an operator between two nodes
                at = text.find(old)
                if at < 0:
                    return
                start, end = (
                    start + len(text[:at].encode()),
                    start + len(text[: at + len(old)].encode()),
                )
                text = old
            found.append(Site(file, statement, line, start, end, text, new))

    def operator(statement, left, right, op):
        if type(op) in SWAPPED:
            old = {v: k for k, v in SYMBOL.items()}[type(op)]
            add(
                statement,
                (left.end_lineno, left.end_col_offset),
                (right.lineno, right.col_offset),
                SWAPPED[type(op)],
                old,
            )

    def walk(node, statement):
        if isinstance(node, ast.stmt):
            statement = node.lineno
        if isinstance(node, ast.BinOp):
            operator(statement, node.left, node.right, node.op)
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, (ast.Add, ast.Sub)):
            operator(statement, node.target, node.value, node.op)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            operator(statement, node.left, node.comparators[0], node.ops[0])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            add(statement, (node.lineno, node.col_offset), (node.lineno, node.col_offset + 1), "")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            where = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
            add(
                statement,
                *where,
                str(node.value + 1) if type(node.value) is int else repr(2.0 * node.value or 1.0),
            )
        for name, child in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list") or isinstance(
                node, ast.JoinedStr
            ):
                continue
            for one in child if isinstance(child, list) else [child]:
                if isinstance(one, ast.AST):
                    walk(one, statement)

    for top in ast.walk(ast.parse(path.read_text())):
        if isinstance(top, ast.FunctionDef):
            for inner in top.body:
                walk(inner, inner.lineno)
    seen: Counter = Counter()
    numbered = []
    for site in sorted(set(found)):
        numbered.append(site._replace(nth=seen[site.key]))
        seen[site.key] += 1
    return numbered


SYMBOL = {"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div, "<": ast.Lt, "<=": ast.LtE, ">": ast.Gt, ">=": ast.GtE,
          "==": ast.Eq, "!=": ast.NotEq}  # fmt: skip


class Reached:
    """Pytest's plug-in: which test reaches which mutant, and how long it takes."""

    def __init__(self):
        self.now, self.tests, self.seconds = set(), {}, {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.now.clear()
        for name, module in list(sys.modules.items()):
            if name.startswith("mapmri_nb"):  # tables are made once per process
                for thing in list(vars(module).values()):
                    getattr(thing, "cache_clear", int)()
        before = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - before
        for site in self.now:
            self.tests.setdefault(site, []).append(item.nodeid)
        return result


def forked(work, seconds):
    """What `work` returns in a child of this process; None where `seconds` of CPU do not suffice."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 9))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        answer = work()
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, end = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if os.WIFSIGNALED(end) and os.WTERMSIG(end) == signal.SIGXCPU:
        return None
    return json.loads(answer) if answer else False  # a crash is a failure


def pytest_in(copy, interpreted, arguments, plugins=()):
    """Exit code of pytest in the copy."""
    os.chdir(copy)
    sys.path[:0] = [str(copy), str(copy / "tests")]
    os.environ |= {"PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(copy / "cache"), "MPLBACKEND": "Agg",
                   "NUMBA_DISABLE_JIT": str(int(interpreted)), "HYPOTHESIS_PROFILE": "ci"}  # fmt: skip
    numba.config.DISABLE_JIT = int(interpreted)
    numba.config.CACHE_DIR = str(copy / "cache")
    sys.dont_write_bytecode = True
    options = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        *(["-m", "nojit"] if interpreted else []),
    ]
    return int(pytest.main([*options, *arguments], plugins=list(plugins)))


def reaching(copy, drawn, interpreted):
    """Tests that reach each mutant, by its number, and the seconds of each test."""
    marks = {}
    for number, site in drawn:
        marks.setdefault(site.file, {}).setdefault(site.statement, []).append(number)
    for file, at in marks.items():
        tree = ast.parse((ROOT / file).read_text())

        class Mark(ast.NodeTransformer):
            def generic_visit(self, node, at=at):
                super().generic_visit(node)
                if (
                    isinstance(node, ast.stmt)
                    and node.lineno in at
                    and not isinstance(node, ast.FunctionDef)
                ):
                    numbers = at.pop(node.lineno)
                    return [
                        ast.parse(f"__import__('builtins').reached.update({numbers})").body[0],
                        node,
                    ]
                return node

        (copy / file).write_text(ast.unparse(ast.fix_missing_locations(Mark().visit(tree))))

    def work():
        import builtins

        plugin = Reached()
        builtins.reached = plugin.now
        every = {p.stem[5:]: str(p) for p in sorted((copy / "tests").glob("test_*.py"))}
        files = [
            path
            for name, path in every.items()
            if (name not in NOT_TESTS if interpreted else name in CORE_TESTS)
        ]
        code = pytest_in(copy, interpreted, ["--timeout=900", *files], [plugin])
        return [code, plugin.tests, plugin.seconds]

    answer = forked(work, 7200)
    for file in marks:
        shutil.copy(ROOT / file, copy / file)
    if not answer or answer[0] != 0:
        raise SystemExit(f"the tests fail without a mutant: {answer and answer[0]}")
    return answer[1], answer[2]


def killed(copy, site, tests, times, interpreted, seconds):
    """Whether a test fails with the mutant in place; and how."""
    path = copy / site.file
    lines = (ROOT / site.file).read_text().split("\n")
    raw = lines[site.line - 1].encode()
    lines[site.line - 1] = (raw[: site.start] + site.new.encode() + raw[site.end :]).decode()
    path.write_text("\n".join(lines))
    order = sorted(tests, key=times.get)
    total = itertools.accumulate(times[test] for test in order)
    chosen = [test for test, so_far in zip(order, total, strict=True) if so_far <= seconds / 3]
    if not chosen:
        return "not reached"
    try:
        code = forked(lambda: pytest_in(copy, interpreted, chosen), seconds)
    finally:
        shutil.copy(ROOT / site.file, path)
    return "time" if code is None else "survives" if code == 0 else "test"


def main():
    """Draw, break, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=150, help="mutants of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of CPU at most, for each mutant"
    )
    parser.add_argument(
        "--survivors",
        action="store_true",
        help="only survivors without a reason, and what was not run",
    )
    parser.add_argument("--only", default="", help="only mutants whose name has this in it")
    parser.add_argument(
        "--plain", action="store_true", help="the core too by tests without the compiler"
    )
    given = parser.parse_args()
    kernels = [
        p
        for p in sorted((ROOT / "mapmri_nb/kernels").glob("*.py"))
        if p.stem not in (*NOT_RUN, "__init__")
    ]
    core = [ROOT / f"mapmri_nb/{name}.py" for name in CORE]
    every = [site for path in kernels + core for site in sites(path)]
    drawn = list(dict.fromkeys(s for seed in given.seeds for s in draw(every, seed, given.count)))
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {"mutants": []}
    known = {}
    for row in before.get("mutants", []):
        file, _, change = row["mutant"].split(":", 2)
        known[file, row["code"], change, row.get("nth", 0)] = row
    rows = {site: known.get((*site.key, site.nth), {"how": "not run"}) for site in drawn}
    chosen = [
        (k, site)
        for k, site in enumerate(drawn)
        if given.only in site.name
        and not (given.survivors and (rows[site]["how"] in KILLED or rows[site].get("equivalent")))
    ]
    copy = Path(tempfile.gettempdir()) / "mapmri_nb-mutants"  # Numba's cache counts by path
    for old in copy.glob("*"):
        if old.name != "cache":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    skip = shutil.ignore_patterns("__pycache__", "results")
    for name in ("mapmri_nb", "tests", "validation", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for interpreted in (True, False):
        part = [(k, s) for k, s in chosen if (given.plain or "/kernels/" in s.file) == interpreted]
        if not part:
            continue
        tests, times = reaching(copy, part, interpreted)
        for k, site in part:
            found = tests.get(str(k), [])
            how = (
                killed(copy, site, found, times, interpreted, given.seconds)
                if found
                else "not reached"
            )
            rows[site] = {"how": how, "equivalent": rows[site].get("equivalent", "")}
            print(f"{how:12} {len(found):4} tests  {site.name}", flush=True)
            write(given, every, rows, before.get("history", []))


def write(given, every, rows, history):
    """The result so far."""
    table = {
        "date": time.strftime("%Y-%m-%d"),
        "seeds": given.seeds,
        "drawn": len(rows),
        "possible": len(every),
    }
    table |= Counter(row["how"] for row in rows.values())
    table["not_equivalent"] = sum(
        row["how"] in ("survives", "not reached") and not row.get("equivalent")
        for row in rows.values()
    )
    lines = []
    for site, row in sorted(rows.items()):
        row = {"mutant": site.name, "code": site.key[1], "how": row["how"],
               "equivalent": row.get("equivalent"), "nth": site.nth}  # fmt: skip
        lines.append(json.dumps({k: v for k, v in row.items() if v}))
    table["history"] = history
    text = json.dumps(table, indent=1)[:-2]
    RESULT.write_text(text + ',\n "mutants": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


if __name__ == "__main__":
    main()
