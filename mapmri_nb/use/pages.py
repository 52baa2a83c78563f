"""Pieces of the HTML pages: tables, histograms, and the frame they share."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .io import File, staged
from .views import CONVENTIONS

Array = NDArray[np.float64]

BARS = 40
HERE = Path(__file__)


def write(
    default: Path, out: File | None, convention: str, force: bool, make: Callable[[Path], str]
) -> Path:
    """Write the page make(target), to `default` unless `out` says where else; the path written."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, not {convention!r}")
    target = default if out is None else Path(out)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "out must be a file, not a folder", str(target))
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "not overwritten without force", str(target))
    text = make(target)
    with staged(target.parent, force) as stage:
        (stage / target.name).write_text(text, encoding="utf-8")
    return target


def filled(template: str, content: dict[str, Any], pieces: dict[str, str]) -> str:
    """The frame of every page around a template, with its @@PIECES@@ in place."""
    frame, body, controls, style, script = (
        HERE.with_name(name).read_text(encoding="utf-8")
        for name in ("page.html", template, "controls.html", "report.css", "report.js")
    )
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    pieces = pieces | {"STYLE": style, "SCRIPT": script, "DATA": data}
    frame = frame.replace("@@BODY@@", body).replace("@@CONTROLS@@", controls)
    return "".join(pieces[p] if i % 2 else p for i, p in enumerate(frame.split("@@")))


def links(found: Iterable[tuple[str, str]]) -> str:
    """List items of files: name and address."""
    return "".join(
        f"<li><a href='{escape(to, quote=True)}'>{escape(x)}</a></li>" for x, to in found
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], name: str = "wide") -> str:
    """A table of HTML cells, the first of each row its heading; numbers stand to the right."""

    def cell(text: str) -> str:
        number = re.fullmatch(r"[-+\d.,e]+ ?%?|nan", text)
        return f"<td class='n'>{text}</td>" if number else f"<td>{text}</td>"

    head = "".join(f"<th scope='col'>{h}</th>" for h in heads)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(map(cell, rest))}</tr>" for first, *rest in rows
    )
    whole = f"<table>{head}<tbody>{body}</tbody></table>"
    label = f"Table: {heads[0]}" if heads else "Table"
    return f"<div class='{name}' tabindex='0' role='group' aria-label='{label}'>{whole}</div>"


def pairs(rows: dict[str, str]) -> str:
    return table((), ((escape(k), escape(v)) for k, v in rows.items()), "facts")


def histogram(values: Array) -> str:
    """Bars between the 0.5 and 99.5 % percentiles, as SVG."""
    if not values.size:
        return ""
    low, high = np.percentile(values, (0.5, 99.5))
    counts = np.histogram(values, BARS, (low, high) if high > low else None)[0]
    heights = np.round(34 * counts / max(counts.max(), 1), 1)
    bars = "".join(f"M{4 * k} 36v-{h:g}h3.4v{h:g}z" for k, h in enumerate(heights) if h)
    label = f"histogram from {low:.3g} to {high:.3g}"
    paths = f"<path d='{bars}'/><path class='base' d='M0 36.5h{4 * BARS}'/>"
    box = f"viewBox='0 0 {4 * BARS} 37' role='img'"
    return f"<svg class='hist' {box} aria-label='{label}'>{paths}</svg>"
