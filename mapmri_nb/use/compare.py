"""One self-contained HTML page on two fits of one series: the settings that differ, both maps of
each index and their difference, the voxels that only one of the two has.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..status import Status
from . import io, pages, payload, references, report
from .folder import SavedFit, read_fit
from .views import CONVENTIONS, Map, Orientation, html, limits

Array = NDArray[np.float64]

SAME_AFFINE = 1e-3  # mm
WIDEST = 95.0  # percentile of |B - A| that ends the range of a difference


def write_comparison(
    a: io.File, b: io.File, out: io.File | None = None, force: bool = False, *,
    convention: str = CONVENTIONS[0],
) -> Path:  # fmt: skip
    """The page on two fits of one series, by default `comparison.html` beside B; the path written.

    Parameters
    ----------
    a, b : folders of saved fits, or their JSON files. convention : "radiological" or
        "neurological".

    Raises
    ------
    ValueError
        The fits have another grid, or are of another series. FileExistsError: the page is there
        already and `force` is not given. Errors of a folder that is no fit: see `folder.read_fit`.
    """
    bases = [Path(p) if Path(p).is_dir() else Path(p).parent for p in (a, b)]

    def make(target: Path) -> str:
        fits = read_fit(a), read_fit(b)
        check_pair(*fits)
        links = [
            (f"{name}: {file}", to)
            for name, base, saved in zip("AB", bases, fits, strict=True)
            for file, to in report.links_of(base, saved.prefix, target.parent)
        ]
        return page(*fits, convention, links)

    return pages.write(bases[1] / "comparison.html", out, convention, force, make)


def check_pair(a: SavedFit, b: SavedFit) -> None:
    """ValueError where two fits cannot be of one series: grids, sources or measurements differ."""
    shapes = a.fit.mask.shape, b.fit.mask.shape
    if shapes[0] != shapes[1]:
        raise ValueError(f"the two fits have different grids: shape {shapes[0]} and {shapes[1]}")
    if (off := np.abs(a.affine - b.affine).max()) > SAME_AFFINE:
        raise ValueError(f"the two fits have different grids: their affines differ by {off:.3g}")
    names = [[Path(s).name for s in saved.entries.get("Sources", [])[:1]] for saved in (a, b)]
    if all(names) and names[0] != names[1]:
        raise ValueError(f"the two fits are of different series: {names[0][0]} and {names[1][0]}")
    few, many = sorted((a.fit.gtab, b.fit.gtab), key=len)  # one may have left volumes out
    near = np.abs(few.bvals[:, None] - many.bvals) <= 1 + 1e-3 * many.bvals
    g = [np.nan_to_num(table.bvecs) for table in (few, many)]
    near &= np.abs(g[0][:, None] - g[1]).max(2) <= 1e-3
    if (odd := np.flatnonzero(~near.any(1))).size:
        text = f"measurement {odd[0]} of the one, b = {few.bvals[odd[0]]:.0f}, is not in the other"
        raise ValueError(f"the two fits are of different series: {text}")


def page(
    a: SavedFit,
    b: SavedFit,
    convention: str = CONVENTIONS[0],
    links: list[tuple[str, str]] | None = None,
) -> str:
    """The HTML of two saved fits that `check_pair` lets pass."""
    mask = a.fit.mask | b.fit.mask
    orientation = Orientation.of(a.affine, mask.shape)
    (first, texts), (second, _) = (report.maps_of(saved.fit) for saved in (a, b))
    names = [name for name in first if name in second]
    grid = payload.Grid(mask, orientation, 3 * len(names) + 2, payload.LIMIT)
    entries: list[dict[str, Any]] = []
    rows = []
    for name in names:
        m = first[name]
        x, y = m.values[mask], second[name].values[mask]
        difference, bounds = y - x, limits(np.concatenate([x, y]))
        known = difference[np.isfinite(difference)]
        reach = float(np.percentile(np.abs(known), WIDEST)) if known.size else 0.0
        reach = reach or 1e-12 * max(map(abs, bounds))
        for word, values, within in (
            ("A", x, bounds), ("B", y, bounds), ("B − A", difference, (-reach, reach))
        ):  # fmt: skip
            entry = grid.quantised(Map(values, m.label, m.unit), values, within)
            entry["label"] += f", {word}"
            entries.append(entry | {"text": texts[name], "signed": word == "B − A"})
        rows.append(_row(m, x, y, texts[name]))
    content: dict[str, Any] = {"convention": convention, "colour": None, "voxels": None}
    content |= grid.entries() | {"maps": entries}
    statuses = [saved.fit.volume(saved.fit.status, Status.OUTSIDE)[mask] for saved in (a, b)]
    kinds, which = np.unique(np.concatenate(statuses), return_inverse=True)
    content["kinds"] = report.kinds_of(kinds)
    parts = np.split(which.reshape(-1).astype("u1"), 2)
    content["status"] = [
        {"label": f"status, {word}", "data": payload.pack(part[grid.rows])}
        for word, part in zip("AB", parts, strict=True)
    ]
    heads = ("map", "A, median", "B, median", "unit", "B − A, median", "5 %", "95 %", "in %",
             "B − A, 0.5 to 99.5 %", "meaning")  # fmt: skip
    differ, same = _settings(a, b)
    pieces = {
        "TITLE": escape(f"Two MAP-MRI fits {a.prefix}".strip()),
        "SETTINGS": pages.table(("setting", "A", "B"), differ, "wide facts"),
        "SHARES": escape(_shares(statuses)),
        "DIFFERENCES": pages.table(heads, rows),
        "STATUS": _status(kinds, parts),
        "RECORD": f"<p>The same in both:</p>{pages.pairs(same)}",
        "FILES": pages.links(links or []),
    }
    return pages.filled("compare.html", content, pieces)


def _row(m: Map, x: Array, y: Array, text: str) -> tuple[str, ...]:
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    numbers, share = [np.nan] * 5, np.nan
    if x.size:
        numbers = [np.median(x), np.median(y), *np.percentile(y - x, (50, 5, 95))]
        there = x != 0
        share = np.median((y - x)[there] / np.abs(x[there])) if there.any() else np.nan
    cells = [f"{value:.4g}" for value in numbers]
    unit = "" if m.unit == "1" else m.unit
    percent = f"{100 * share:+.2f} %" if np.isfinite(share) else ""
    picture = pages.histogram(y - x)
    return (html(m.label), *cells[:2], unit, *cells[2:], percent, picture, escape(text))


def _settings(a: SavedFit, b: SavedFit) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Settings of the two that differ (name, A, B), and those that do not."""
    found = []
    for saved in (a, b):
        options, run = saved.fit.options, saved.entries.get("Run", {})
        rows = {"mode": references.mode(options)}
        rows |= {name.replace("_", " "): str(value) for name, value in options.items()}
        facts = report.facts(saved.fit, saved)
        rows |= {name: text for name, text in facts.items() if name not in ("Model", "Options")}
        rows["Gradient non-linearity"] = "no" if saved.fit.field is None else "yes"
        found.append(rows | {n: str(run[n]) for n in ("Date", "Engine", "Threads") if n in run})
    names = list(dict.fromkeys([*found[0], *found[1]]))
    pairs = [(name, found[0].get(name, "–"), found[1].get(name, "–")) for name in names]
    differ = [tuple(map(escape, row)) for row in pairs if row[1] != row[2]]
    same = {name: x for name, x, y in pairs if x == y and x != "None"}
    return differ or [("nothing", "", "")], same


def _shares(statuses: list[NDArray[Any]]) -> str:
    """What share of the voxels in either mask each fit has, and both."""
    fits = [(status & (Status.NO_FIT | Status.OUTSIDE)) == 0 for status in statuses]
    n = max(len(fits[0]), 1)
    words = [f"{x.sum():,} voxels ({x.sum() / n:.2%})" for x in (*fits, fits[0] & fits[1])]
    only = [int((fits[k] & ~fits[1 - k]).sum()) for k in range(2)]
    return (
        f"Of {n:,} voxels in either mask A fitted {words[0]}, B {words[1]}, both {words[2]}; "
        f"only A {only[0]:,}, only B {only[1]:,}."
    )


def _status(kinds: NDArray[Any], parts: list[NDArray[Any]]) -> str:
    rows = []
    for k, kind in enumerate(kinds):
        counts = [int((part == k).sum()) for part in parts]
        words = [f"{count} ({count / max(len(parts[0]), 1):.1%})" for count in counts]
        swatch = f"<span class='swatch' data-kind='{k}'></span> {kind}"
        rows.append((swatch, *words, escape(report.meaning(kind))))
    return pages.table(("status", "A", "B", "meaning"), rows)
