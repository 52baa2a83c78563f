"""The generated tables of validation/README.md and of the top README.md, from results/*.json.

python validation/readme.py      rewrite what lies between <!-- begin:NAME --> and <!-- end:NAME
--> in both
"""

import json
import re

from common import RESULTS, ROOT, digest

TOP, HERE = ROOT / "README.md", ROOT / "validation" / "README.md"


def number(value):
    """A number as a reader wants it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, (str, int)):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"


def markdown(columns, rows, show=number):
    """A table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(show(v).replace("|", "\\|") for v in row) + " |" for row in rows]
    return "\n".join(lines)


def values(table):
    """One stored table with its note."""

    def show(value):
        return f"{value:.{table['digits']}g}" if isinstance(value, float) else number(value)

    return markdown(table["columns"], table["rows"], show) + (
        f"\n\n{table['note']}" if table["note"] else ""
    )


def load(name):
    """A file of results, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def fill(path, tables):
    """Replace what lies between the markers of each named table; a marker without a table stays as
    it is.
    """
    text = path.read_text()
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- begin:{name} -->\n).*?(<!-- end:{name} -->)", re.S)
        if table is not None:
            text = pattern.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
    path.write_text(text)


def groups():
    """Results of every group and of every script apart, in the order of run.py."""
    from run import APART, GROUPS

    return [result for group in (*GROUPS, *APART) if (result := load(group))]


def date(result):
    """Of a group's oldest case."""
    return min(case.get("date", result["environment"]["date"]) for case in result["cases"])


def all_cases():
    """Every case: group, name, truth, tolerance, result, verdict."""
    rows = []
    for result in groups():
        for c in result["cases"]:
            bound = (
                "reported"
                if c["tolerance"] is None
                else f"{'>=' if c['at_least'] else '<='} {number(c['tolerance'])}"
            )
            verdict = {True: "pass", False: "**fail**", None: ""}[c["passed"]]
            rows.append([result["group"], c["name"], c["truth"], bound, c["measured"], verdict])
    return markdown(["group", "case", "truth", "tolerance", "result", ""], rows)


def all_tables():
    """Every table of every group."""
    tables = [(title, t) for result in groups() for title, t in result["tables"].items()]
    return "\n\n".join(f"### {title}\n\n{values(t)}" for title, t in tables)


def machine():
    """Where and when, one line for each distinct environment."""
    lines = {}
    for result in groups():
        e = result["environment"]
        packages = ", ".join(f"{k} {v}" for k, v in e["packages"].items() if v)
        cpu = f"{e['system']}, {e['cpu']} ({' '.join(e['cpu_flags'])})"
        where = f"mapmri_nb {e['mapmri_nb']}, Python {e['python']}, {packages}; {cpu}"
        lines.setdefault(where, []).append(f"{result['group']} {date(result)}")
    return "\n".join(f"* {where}: {', '.join(what)}" for where, what in lines.items())


def short(value):
    """Three digits, never an exponent."""
    if not isinstance(value, float):
        return number(value)
    return f"{float(f'{value:.3g}'):.0f}" if abs(value) >= 100 else f"{value:.3g}"


def speed():
    """Microseconds a voxel and the ratio to DIPY's fit, from bench.json."""
    if not (bench := load("bench")):
        return None
    names = {"mode": "mode", "order": "order", "floor_us": "floor, us", "us": "us a voxel, 1 thread",
             "us_threads": f"{bench['threads']} threads", "gain": "gain", "dipy_ms": "DIPY's fit, ms", "ratio": "ratio",
             "dipy_default_ms": "DIPY's default solver, ms"}  # fmt: skip
    columns, rows = list(names.values()), [[r.get(k) for k in names] for r in bench["modes"]]
    e = bench["environment"]
    note = f"{bench['scheme']}; {e['cpu']}, numba {e['packages']['numba']}, DIPY {e['packages']['dipy']}, {e['date']}. "
    note += "Floor: the mode's floating-point operations at the rate of one core's matrix products, nothing else counted."
    return markdown(columns, rows, short) + f"\n\n{note}"


SIX = ("MAPL 0.2", "MAPL GCV", "isotropic 0.2", "CMAPL 0.2", "MAP+", "MAPL+ 0.2")


def six():
    """Six modes at order 6: microseconds a voxel and the ratio to DIPY, from bench.json."""
    if not (bench := load("bench")):
        return None
    rows = [
        [r["mode"], r["us"], r.get("dipy_ms"), r.get("ratio")]
        for r in bench["modes"]
        if r["order"] == 6 and r["mode"] in SIX
    ]
    columns = ["order 6", "µs a voxel", "DIPY's fit, ms", "ratio"]
    e = bench["environment"]
    note = "The fit with its nine indices, one thread, CPU time; ratio: the time of DIPY's `fit` alone over ours. "
    note += f"{bench['scheme']}; {e['cpu']}, load {bench.get('load', 'unknown')}, {e['date']}."
    if stale("bench"):
        note += f" **Measured on older code (version {e['mapmri_nb']}); not repeated.**"
    return markdown(columns, rows, short) + f"\n\n{note}"


def stale(name):
    """Whether results are of other code than stands here, comments and docstrings aside."""
    return load(name)["environment"].get("code") != digest(name)


def accuracy():
    """One sentence: how many cases pass, and which fail."""
    if not groups():
        return None
    judged = [(r["group"], c) for r in groups() for c in r["cases"] if c["passed"] is not None]
    failed = [
        f"{group}: {c['name']} ({number(c['measured'])}, limit {number(c['tolerance'])})"
        for group, c in judged
        if not c["passed"]
    ]
    which = f"These fail: {'; '.join(failed)}." if failed else "None fails."
    old = [r["group"] for r in groups() if stale(r["group"])]
    text = f"{len(judged) - len(failed)} of {len(judged)} validation cases pass. {which}"
    return text + (
        f" {len(old)} of {len(groups())} groups were measured on older code than this."
        if old
        else ""
    )


def start():
    """Import, first fit and cache, from bench.json."""
    if not (bench := load("bench")):
        return None
    return markdown(["what", "value"], [[k, v] for k, v in bench["start"].items()])


def counted():
    """Cases and how many passed, by group."""
    rows = []
    for result in groups():
        judged = [c["passed"] for c in result["cases"] if c["passed"] is not None]
        rows.append(
            [
                result["group"],
                len(result["cases"]),
                f"{sum(judged)} of {len(judged)}",
                date(result),
                "older" if stale(result["group"]) else "this",
            ]
        )
    columns = ["validation", "cases", "passed", "date", "code"]
    note = "Code: of this version, or older than the sources that the group rests on (`run.py --stale` repeats those)."
    return markdown(columns, rows) + f"\n\n{note}" if rows else None


def recovery():
    """Order 6 of the recovery tables, both SNRs and the noise-free Gaussian side by side."""
    if not (result := load("recovery")):
        return None
    modes = (
        "MAPL 0.2",
        "MAPL gcv",
        "CMAP",
        "CMAPL 0.2",
        "MAP+",
        "MAPL+ 0.2",
        "CMAP*",
        "DIPY's CMAP*",
    )
    rows = {mode: [mode] for mode in modes}
    for snr in (15, 30):
        for order, mode, rtop, rtap, ng, _ in result["tables"][
            f"Recovery of simulated truth, SNR {snr}"
        ]["rows"]:
            if order == 6 and mode in rows:
                rows[mode] += [rtop, rtap, ng]
    gaussian = result["tables"]["What each mode does to a noise-free Gaussian"]["rows"]
    on_gaussian = {mode: rtop for order, mode, rtop, *_ in gaussian if order == 6}
    columns = [
        "order 6",
        *(f"{name}, SNR {snr}" for snr in (15, 30) for name in ("RTOP", "RTAP", "NG")),
        "noise-free Gaussian",
    ]
    note = (
        "Bias +- spread (median error) in % of a simulated truth, NG x 100; last column: RTOP / true. *: the first 16 of the "
        "160 voxels. Every order and weight, and a plot: validation/README.md and validation/results/recovery.png."
    )
    return (
        markdown(columns, [[*rows[mode], on_gaussian.get(mode)] for mode in modes]) + f"\n\n{note}"
    )


def large():
    """Time and memory of a whole brain, from large_data.json."""
    found = (load("large_data") or {"tables": {}})["tables"].get("Large data")
    return found and values(found)


def fuzz():
    """The counts of damaged inputs in a sentence or two, from fuzz.json."""
    if not (result := load("fuzz")):
        return None
    files, voxels = (table["rows"][-1] for table in result["tables"].values())
    _, inputs, refused, fitted, traceback, other, crashes, unaccounted = files
    _, tried, answered, none, wrong = voxels
    return (
        f"Of {inputs} damaged inputs through the command line {refused} were refused with one line of error, {fitted} fitted "
        f"(bytes that do not matter, or another number); {traceback} ended in a traceback, {crashes} in a crash, {other} in "
        f"anything else, {unaccounted} voxels of the fits were without a status. Of {tried} voxels of random samples through "
        f"every mode {answered} got a fit and {none} a status that says why not; {wrong} were wrong or had changed a neighbour."
    )


def lines():
    """Lines of library, tests and validation."""

    def count(folder):
        files = [p for p in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in p.parts]
        return [folder, len(files), sum(len(p.read_text().splitlines()) for p in files)]

    return markdown(
        ["", "files", "lines"], [count(f) for f in ("mapmri_nb", "tests", "validation")]
    )


def write_validation():
    """Fill validation/README.md."""
    fill(
        HERE,
        {
            "cases": all_cases(),
            "tables": all_tables(),
            "machine": machine(),
            "speed": speed(),
            "start": start(),
            "counted": counted(),
            "accuracy": accuracy(),
            "recovery": recovery(),
            "large": large(),
            "fuzz": fuzz(),
            "lines": lines(),
        },
    )


def write_top():
    """Fill README.md."""
    fill(TOP, {"six": six(), "accuracy": accuracy()})


if __name__ == "__main__":
    write_validation()
    write_top()
