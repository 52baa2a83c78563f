"""
Pieces of the HTML pages: tables, histograms, and the template, script and style they share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BARS = 40
HERE = Path(__file__)


def filled(template: str, content: dict[str, Any], pieces: dict[str, str]) -> str:
    """A template with the style, the script, what the script reads, and its @@PIECES@@ in place."""
    pieces = pieces | {
        "STYLE": HERE.with_name("report.css").read_text(encoding="utf-8"),
        "SCRIPT": HERE.with_name("report.js").read_text(encoding="utf-8"),
        "DATA": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),
    }
    parts = HERE.with_name(template).read_text(encoding="utf-8").split("@@")
    return "".join(pieces[part] if i % 2 else part for i, part in enumerate(parts))


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
    return f"<svg class='hist' viewBox='0 0 {4 * BARS} 37' role='img' aria-label='{label}'>{paths}</svg>"
