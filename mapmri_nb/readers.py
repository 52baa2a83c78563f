"""Gradient tables and pulse timing from the text files of FSL, MRtrix and BIDS."""

from __future__ import annotations

import json as jsonlib
import logging
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
File = str | PathLike[str]

log = logging.getLogger(__name__)


def fsl(bval: File, bvec: File) -> tuple[Array, Array]:
    """b-values (n,) and directions (n, 3) from FSL's text, bvec in rows or columns."""
    bvals, bvecs = read_numbers(bval).ravel(), read_numbers(bvec)
    bvecs = (
        bvecs.T if len(bvecs) == 3 else bvecs
    )  # FSL's own layout, also when there happen to be three volumes
    if bvecs.shape != (len(bvals), 3):
        raise ValueError(
            f"bvals: {bval} holds {len(bvals)} numbers, bvecs: {bvec} {bvecs.shape[0]} directions"
        )
    return bvals, bvecs


def mrtrix(path: File) -> tuple[Array, Array]:
    """b-values (n,) and directions (n, 3) in scanner axes from MRtrix's .b text, rows x y z b."""
    table = read_numbers(path)
    if table.shape[1] != 4:
        raise ValueError(
            f"{path}: an MRtrix table has 4 columns (x y z b), this one {table.shape[1]}"
        )
    return table[:, 3], table[:, :3]


def beside(path: File) -> dict[str, Path]:
    """The .bval, .bvec and .json beside a DWI, or beside any of its sidecars, by their endings."""
    name = Path(path).name
    for suffix in (".nii.gz", ".nii", ".json", ".bval", ".bvec"):
        name = name.removesuffix(suffix)
    return {ending: Path(path).with_name(f"{name}.{ending}") for ending in ("bval", "bvec", "json")}


def read_numbers(path: File) -> Array:
    """
    Numbers of a text file, (lines, columns), blanks or commas between them, # starts a comment;
    else a ValueError.
    """
    try:
        lines = [
            line.split("#")[0].replace(",", " ").split()
            for line in Path(path).read_text().splitlines()
        ]
        rows = [[float(word) for word in line] for line in lines if line]
    except ValueError as error:  # a UnicodeDecodeError is one as well
        raise ValueError(f"{path} is not a table of numbers: {error}") from None
    if not rows or len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"{path} is not a table: its lines hold {[len(row) for row in rows]} numbers"
        )
    return np.array(rows)


def deltas(json: File | None, given: dict[str, Any]) -> dict[str, Any]:
    """
    `given` constructor arguments, completed from a sidecar's BigDelta or LargeDelta and SmallDelta.
    """
    if json is None or any(
        given.get(name) is not None for name in ("big_delta", "small_delta", "tau")
    ):
        return given
    try:
        entries = jsonlib.loads(Path(json).read_text())
    except ValueError as error:
        raise ValueError(f"{json} is not a JSON sidecar: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(
            f"{json} is not a JSON sidecar: it holds a {type(entries).__name__}, not names and values"
        )
    names = [
        name for name in ("BigDelta", "LargeDelta", "SmallDelta") if entries.get(name) is not None
    ]
    values = [_finite(f"{json}: {name}", entries[name]) for name in names]
    if len(names) == 3 and not np.array_equal(values[0], values[1]):
        raise ValueError(f"{json}: BigDelta = {values[0]} but LargeDelta = {values[1]}")
    if len(names) < 2 or names[-1] != "SmallDelta":
        raise ValueError(
            f"{json}: no pair of BigDelta (or LargeDelta) and SmallDelta; without it, or tau, indices have no units"
        )
    # Delta alone tells seconds from milliseconds: it is never as long as 1 s nor as short as 1 ms;
    # delta can be either.
    per_second = np.where(values[0] > 1, 1000.0, 1.0)
    big, small = values[0] / per_second, values[-1] / per_second
    log.info(
        "%s: big_delta %s s, small_delta %s s, read as %s",
        json,
        big,
        small,
        ("s", "ms")[int(per_second.max() > 1)],
    )
    return {**given, "big_delta": big, "small_delta": small}


def _finite(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} = {value} is not finite")
    return array
