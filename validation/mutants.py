"""
Can each test fail? Breaks the method's code at one place after the other and runs the tests that reach it.

    python validation/mutants.py [--count 150] [--seed 0] [--seconds 90] [--only FILE:LINE]

A mutant has another sign, index, constant or comparison. `count` are drawn by the seed over core
and kernels, in a copy of package and tests. One run of the tests says which of them reach a
mutant: tests without the compiler for kernels, compiled ones for the core. These run, the shortest
first, until one fails or `seconds` have passed, which counts as noticed if the test alone took
less than a third of it. Survivors go to ``results/mutants.json``; what is written there under "equivalent" by
hand, why a survivor changes no answer, is kept by the next run. By hand, about an hour.
"""

import argparse
import ast
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
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
# compiled code alone: the decorator and LLVM's vectors
NOT_RUN = ("_jit", "_types", "lanes")
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


class Site(NamedTuple):
    """A mutant: the file, the statement's line and the text that `new` replaces."""

    file: str
    statement: int
    line: int
    start: int
    end: int
    old: str
    new: str

    @property
    def name(self):
        return f"{self.file}:{self.line}:{self.start} {self.old} -> {self.new}"

    @property
    def key(self):
        code = (ROOT / self.file).read_text().split("\n")[self.line - 1].strip()
        return self.file, code, f"{self.start} {self.old} -> {self.new}"


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
    return sorted(set(found))


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
        before = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - before
        for site in self.now:
            self.tests.setdefault(site, []).append(item.nodeid)
        return result


def forked(work, seconds):
    """What `work` returns in a child of this process, its folder a copy; None after `seconds`."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        answer = work()
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    signal.alarm(max(1, int(seconds)))
    try:
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        return json.loads(answer) if answer else False  # a crash is a failure
    except TimeoutError:
        return None
    finally:
        signal.alarm(0)
        for group in (-child, child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(group, signal.SIGKILL)
        os.waitpid(child, 0)


def late(*_):
    raise TimeoutError


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
    chosen, total = [], 0.0
    for test in sorted(tests, key=times.get):
        total += times[test]
        if chosen and total > seconds / 3:
            break
        chosen.append(test)
    try:
        code = forked(lambda: pytest_in(copy, interpreted, chosen), seconds)
    finally:
        shutil.copy(ROOT / site.file, path)
    return "time" if code is None else "" if code == 0 else "test"


def main():
    """Draw, break, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=90.0, help="at most, for each mutant")
    parser.add_argument(
        "--survivors",
        action="store_true",
        help="only those of the result, which is brought up to date",
    )
    parser.add_argument(
        "--only", help="mutants of the draw whose name has this in it; the result is only printed"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, late)
    kernels = [
        p
        for p in sorted((ROOT / "mapmri_nb/kernels").glob("*.py"))
        if p.stem not in (*NOT_RUN, "__init__")
    ]
    core = [ROOT / f"mapmri_nb/{name}.py" for name in CORE]
    every = [site for path in kernels + core for site in sites(path)]
    drawn = list(enumerate(random.Random(given.seed).sample(every, given.count)))
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {"survivors": []}
    # by file, line's text, column and change: lines move
    reasons = {
        (row["mutant"].split(":")[0], row["code"], row["mutant"].split(":", 2)[2]): row[
            "equivalent"
        ]
        for row in before["survivors"]
    }
    if given.only:
        drawn = [(k, site) for k, site in drawn if given.only in site.name]
    if given.survivors:
        drawn = [(k, site) for k, site in drawn if reasons.get(site.key) == ""]
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
    outcomes = {}
    for interpreted in (True, False):
        part = [(k, s) for k, s in drawn if ("/kernels/" in s.file) == interpreted]
        if not part:
            continue
        tests, times = reaching(copy, part, interpreted)
        for k, site in part:
            found = tests.get(str(k), [])
            how = "not reached"
            if found:
                how = killed(copy, site, found, times, interpreted, given.seconds)
            outcomes[site] = how
            print(f"{how or 'SURVIVES':12} {len(found):4} tests  {site.name}", flush=True)
    print(dict(Counter(how or "survives" for how in outcomes.values())))
    if given.only:
        return
    kept = [row for row in before["survivors"] if given.survivors and row["equivalent"]]
    for site, how in outcomes.items():
        if how in ("", "not reached"):
            row = {"mutant": site.name, "code": site.key[1], "how": how or "survives"}
            kept.append(row | {"equivalent": reasons.get(site.key, "")})
    table = {"date": time.strftime("%Y-%m-%d"), "seed": given.seed, "drawn": given.count}
    table |= {"possible": len(every), "history": before.get("history", []), "survive": len(kept)}
    table["not_equivalent"] = sum(not row["equivalent"] for row in kept)
    RESULT.write_text(json.dumps(table | {"survivors": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
