"""The table of a fit that a study reads: median and percentiles of every index in every region."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..indices import TABLE, unit_factor
from .io import File, Mask, read_nii
from .names import MODEL

COLUMNS = ("index", "unit", "region", "voxels", "median", "p5", "p95")
Maps = Iterable[tuple[str, NDArray[Any]]]
Rows = list[dict[str, str]]


def name_of(prefix: str) -> str:
    """Name of the table beside the maps of a prefix."""
    return "_".join(word for word in (prefix, MODEL, "summary.tsv") if word)


def regions(mask: Mask, labels: File | None, affine: NDArray[np.float64]) -> dict[str, Mask]:
    """The mask, and each label of an image of whole numbers within it; 0 is no label.

    The image is compared and turned as of `checks.aligned`; ValueError for other numbers, or none.
    """
    found = {"mask": mask}
    if labels is not None:
        given = checks.Given(*read_nii(labels))
        values = np.asarray(checks.aligned(f"labels: {labels}", given, mask.shape, affine), float)
        whole = values.shape == mask.shape and (values == np.round(values)).all()
        if not (whole and values[mask].any()):
            raise ValueError(f"labels: {labels} must hold whole numbers in the mask, one a region")
        present = np.unique(values[mask])
        found |= {f"{k:.0f}": mask & (values == k) for k in present if k != 0}
    return found


def gathered(maps: Maps, within: dict[str, Mask], units: str, rows: Rows) -> Iterator[Any]:
    """The maps as they come, volumes or rows as the regions are; lines of those with one number a
    voxel, without NaN, into `rows`.
    """
    for name, values in maps:
        if values.ndim == len(within["mask"].shape):
            index = TABLE[name]
            for region, inside in within.items():
                some = values[inside]
                some = some[np.isfinite(some)] * unit_factor(index.power, units)
                texts = ["n/a"] * 3
                if some.size:
                    texts = [f"{x:.6g}" for x in np.percentile(some, [50, 5, 95])]
                line = (name, index.unit(units), region, str(some.size), *texts)
                rows.append(dict(zip(COLUMNS, line, strict=True)))
        yield name, values


def write(path: Path, rows: Rows, old: Path | None = None) -> None:
    """A table of rows, and of those in `old` of other indices or regions."""
    if old is not None and old.is_file():
        with old.open(newline="") as file:
            kept = list(csv.DictReader(file, delimiter="\t"))
        new = {(row["index"], row["region"]) for row in rows}
        rows = [row for row in kept if (row["index"], row["region"]) not in new] + rows
    order = {name: k for k, name in enumerate(TABLE)}
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: order.get(row["index"], len(order))))
