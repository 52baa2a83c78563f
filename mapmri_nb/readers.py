"""Gradient tables and pulse timing from the text files of FSL, MRtrix and BIDS, and what the
lengths of directions and the gaps in times mean.
"""

from __future__ import annotations

import json as jsonlib
import logging
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
File = str | PathLike[str]

SCALINGS = ("refuse", "normalise", "amplitude")
LENGTH_TOLERANCE = 0.01  # a direction further than this from its length is a mistake, not rounding
ROOT_TOLERANCE = 0.02  # the same where lengths go with sqrt(b), and b itself is rounded
UNIT_ROUNDING = 1e-14  # such rows stay as they are, so that a saved table reloads bit for bit
SHORTEST_PULSE = 1e-4  # s: what would be shorter in milliseconds is not in milliseconds
DELTAS = {"BigDelta": "big_delta", "LargeDelta": "big_delta", "SmallDelta": "small_delta"}
ENDINGS = ("bval", "bvec", "json")
VOXEL_PROGRAMS = ("qsiprep", "dmriprep")  # their bvec runs along voxel axes, not as FSL's

log = logging.getLogger(__name__)


def fsl(bval: File, bvec: File) -> dict[str, Array]:
    """b-values (n,) and directions (n, 3) from FSL's text, bvec in rows or columns."""
    bvals, bvecs = read_numbers(bval).ravel(), read_numbers(bvec)
    bvecs = bvecs.T if len(bvecs) == 3 else bvecs  # FSL's own layout, also with three volumes
    if 4 in bvecs.shape and 3 not in bvecs.shape:
        raise ValueError(f"{bvec} has four rows, x y z b: a table for from_mrtrix, not for bvec")
    if bvecs.shape != (len(bvals), 3):
        text = f"bvals: {bval} holds {len(bvals)} numbers"
        raise ValueError(f"{text}, bvecs: {bvec} {bvecs.shape[0]} directions")
    return {"bvals": bvals, "bvecs": bvecs}


def mrtrix(path: File) -> dict[str, Any]:
    """The same from MRtrix's .b text, rows (or columns) x y z b, directions in scanner axes."""
    table = read_numbers(path)
    table = table.T if len(table) == 4 and table.shape[1] != 4 else table
    if (n := table.shape[1]) != 4:
        raise ValueError(f"{path}: an MRtrix table has 4 columns (x y z b), this one {n}")
    if table[:, 0].max() > 2 and np.abs(table[:, 3]).max() <= 1 + LENGTH_TOLERANCE:
        text = f"{path}: b is in the first column, as in DSI Studio's b_table, whose directions run"
        raise ValueError(f"{text} along voxel axes: write a bval and a bvec file of it")
    return {"bvals": table[:, 3], "bvecs": table[:, :3], "frame": "scanner"}


def beside(path: File) -> dict[str, Any]:
    """The bval and bvec file and the JSON sidecars (far to near) of a DWI, or of any of its
    sidecars.

    Each is the file beside it under its own name; or what BIDS lets it inherit, from this folder up
    to the data set's; or `bvals` and `bvecs` beside it. A file that is nowhere has its own name.
    """
    path, stem = Path(path).absolute(), _stem(path)
    found: dict[str, Any] = {}
    for ending in ENDINGS:
        per_level = [_inherited(level, stem, ending) for level in levels(path.parent)]
        found[ending] = [file for file in per_level if file]
    for ending in ENDINGS[:2]:
        general = path.with_name(ending + "s")
        near = [*found[ending], *([general] if general.is_file() else [])]
        found[ending] = near[0] if near else path.with_name(f"{stem}.{ending}")
    return found | {"json": found["json"][::-1]}


def mrtrix_beside(path: File) -> Path | None:
    """MRtrix's .b beside a DWI under its own name."""
    found = Path(path).absolute().with_name(_stem(path) + ".b")
    return found if found.is_file() else None


def _stem(path: File) -> str:
    """Name of a DWI, or of any of its sidecars, less its ending."""
    stem = Path(path).name
    for suffix in (".nii.gz", ".nii", ".json", ".bval", ".bvec", ".b"):
        stem = stem.removesuffix(suffix)
    return stem


def along_voxels(path: File) -> bool:
    """Whether the nearest data set's description above a DWI names a program whose b-vectors run
    along the voxel axes, which is said.
    """
    for level in Path(path).absolute().parents:
        if not (file := level / "dataset_description.json").is_file():
            continue
        try:
            entries = jsonlib.loads(read_text(file))
            made_by = entries.get("GeneratedBy") or [entries.get("PipelineDescription") or {}]
            names = [str(entry.get("Name")) for entry in made_by]
        except (ValueError, AttributeError, TypeError, RecursionError):
            return False  # no description that anyone could read
        for name in names:
            if name.lower() in VOXEL_PROGRAMS:
                log.info("%s: made by %s, so its b-vectors run along the voxel axes", file, name)
                return True
        return False
    return False


def levels(folder: Path) -> list[Path]:
    """A folder and those above it up to the root of its BIDS data set."""
    found = [folder.absolute()]
    while re.fullmatch(r"(sub|ses)-[A-Za-z0-9]+|dwi", found[-1].name):
        found.append(found[-1].parent)
    return found


def _inherited(level: Path, stem: str, ending: str) -> Path | None:
    """The file of a folder whose entities are all among those of `stem`: the one with the most."""
    words = set(stem.split("_"))
    names = [f for f in level.glob(f"*.{ending}") if f.stem == stem]
    if not names and stem.split("_")[-1] == "dwi":
        names = [f for f in level.glob(f"*dwi.{ending}") if words.issuperset(f.stem.split("_"))]
    most = max((len(f.stem.split("_")) for f in names), default=0)
    names = [f for f in names if len(f.stem.split("_")) == most]
    if len(names) > 1:
        text = " and ".join(sorted(f.name for f in names)[:2])
        raise ValueError(f"{level}: {text} both go with {stem}: name one with {ending}")
    return names[0] if names else None


def read_text(path: File) -> str:
    """Text of any encoding that people have: a byte order mark, UTF-8, or else Latin-1."""
    raw = Path(path).read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") and len(raw) % 2 == 0:
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_numbers(path: File) -> Array:
    """Numbers (lines, columns) of a text with blanks or commas, # a comment; else a ValueError."""
    rows = _rows(path)
    if not rows or len({len(row) for row in rows}) > 1:
        counts = [len(row) for row in rows]
        held = f"{counts[:8]} numbers" + f" ... ({len(counts)} lines)" * (len(counts) > 8)
        raise ValueError(f"{path} is not a table: its lines hold {held if rows else 'no numbers'}")
    return np.array(rows)


def _rows(path: File) -> list[list[float]]:
    lines = [line.split("#")[0].replace(",", " ").split() for line in read_text(path).splitlines()]
    try:
        return [[float(word) for word in line] for line in lines if line]
    except ValueError as error:
        text = str(error)
        text = text[:70] + "..." * (len(text) > 70)
        raise ValueError(f"{path} is not a table of numbers: {text}") from None


def volumes(choice: Any, bvals: Array) -> NDArray[np.int64]:
    """Numbers (k,), ascending, of the volumes that a choice names.

    Parameters
    ----------
    choice : text "0:96,100" (from zero, the end excluded), conditions "b<=3000" that all must hold,
        both, or the name of a text file of numbers; or indices or a boolean mask.
    """
    numbers = np.arange(len(bvals))
    if not isinstance(choice, str | PathLike):
        return np.unique(numbers[np.asarray(choice)])
    if Path(choice).is_file():
        return _counted(choice, np.array([x for row in _rows(choice) for x in row]), len(bvals))
    keep, ranges = np.ones(len(bvals), bool), []
    for part in str(choice).replace(" ", "").split(","):
        if condition := re.fullmatch(r"b(<=|>=|<|>|==?)([\d.eE+]+)", part):
            sign, limit = condition[1], float(condition[2])
            less, same = bvals < limit, bvals == limit
            keep &= {"<": less, ">": ~less & ~same, "=": same}[sign[0]] | (same & ("=" in sign))
        elif re.fullmatch(r"-?\d*(:-?\d*){1,2}", part):
            ranges.append(numbers[slice(*(int(x) if x else None for x in part.split(":")))])
        elif re.fullmatch(r"-?\d+", part):
            ranges.append(_counted(choice, np.array([float(part)]), len(bvals)))
        else:
            text = "is none of b<=3000, 0:96, 100, nor the name of a text file"
            raise ValueError(f"volumes: {part[:40]!r} {text}")
    found = np.unique(np.concatenate(ranges)) if ranges else numbers
    found = found[keep[found]]
    if not len(found):
        raise ValueError(f"volumes: {str(choice)[:40]!r} names none of the {len(bvals)} volumes")
    return found


def _counted(choice: Any, named: Array, n: int) -> NDArray[np.int64]:
    whole = named.astype(np.int64)
    for value in named[(whole != named) | (whole >= n) | (whole < -n)]:
        raise ValueError(f"volumes: {value:g} in {choice} is not one of {n}, counted from 0")
    whole %= n
    if len(np.unique(whole)) < len(whole):
        raise ValueError(f"volumes: {choice} names a volume twice: it must list numbers from 0")
    return np.sort(whole)


def chosen(entries: Mapping[str, Any], keep: NDArray[np.int64]) -> dict[str, Any]:
    """Arguments of a table for some of its volumes."""
    n, found = len(entries["bvals"]), dict(entries)
    for name, value in entries.items():
        if name in ("bvals", "bvecs") or (np.ndim(value) == 1 and len(value) == n > 1):
            found[name] = np.asarray(value)[keep]
    return found


def undirected(bvals: Array, bvecs: ArrayLike, b0_threshold: float = 50) -> Bools:
    """Volumes (n,) above the threshold without a direction: zeros, or not finite."""
    length = _lengths(np.asarray(bvecs, np.float64))
    return np.asarray((bvals > b0_threshold) & ~(np.isfinite(length) & (length > 0)))


def directions(
    bvals: Array, bvecs: ArrayLike, b0_threshold: float, scaling: str = "refuse"
) -> tuple[Array, Array]:
    """b-values (n,) and unit directions (n, 3) from vectors whose lengths may mean something.

    Lengths that all are 1, or equal, or go with sqrt(b), mean nothing. Others have two readings:
    none either (scaling="normalise"), or an amplitude, the true b being b |v|^2 ("amplitude");
    "refuse" makes them a ValueError that names both. A volume at or below the threshold needs no
    direction; one that is not as long as the others' is not used, it becomes 0 0 0.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"bvec_scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}")
    n = len(bvals)
    try:
        rows = np.array(bvecs, np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise ValueError(f"bvecs must be numbers: {error}") from None
    if rows.shape not in ((n, 3), (3, n)):
        text = f"bvecs of shape {rows.shape} do not go with {n} bvals"
        raise ValueError(f"{text}: expected ({n}, 3) or (3, {n})")
    rows = rows if rows.shape == (n, 3) else rows.T.copy()
    length, weighted = _lengths(rows), bvals > b0_threshold
    for i, k in np.argwhere(weighted[:, None] & ~np.isfinite(rows)):
        text = f"bvecs[{i}, {k}] = {rows[i, k]} is not finite"
        raise ValueError(f"{text}: volume {i} at b = {bvals[i]:g} needs a direction")
    if scaling == "amplitude":
        with np.errstate(over="ignore"):
            bvals = bvals * np.where(np.isfinite(length), length, 1.0) ** 2
        weighted = bvals > b0_threshold
    for i in np.flatnonzero(weighted & (length == 0)):
        text = f"bvecs[{i}] = [0.0, 0.0, 0.0] at b = {bvals[i]:g} has length 0, not 1"
        if (length[weighted & (bvals <= bvals[i])] == 0).all():
            raise ValueError(f"{text}: a b0 volume? Then give b0_threshold={bvals[i]:g}")
        raise ValueError(f"{text}: a trace or ADC volume? Leave it out (volumes=...)")
    expected = length
    if scaling == "refuse":
        expected = _expected(bvals, rows, length, weighted)
    with np.errstate(invalid="ignore", divide="ignore"):
        good = np.isfinite(length) & (np.abs(length / expected - 1) <= ROOT_TOLERANCE)
    rows[~good] = 0
    off = good & (np.abs(length - 1) > UNIT_ROUNDING)
    rows[off] /= length[off, None]
    return bvals, rows


def _expected(bvals: Array, rows: Array, length: Array, weighted: Bools) -> Array:
    """Lengths (n,) by the rule that the weighted volumes follow, or an error."""
    root, ones = np.sqrt(bvals), np.ones(len(bvals))
    for rule, tolerance, text in (
        (ones, LENGTH_TOLERANCE, ""),
        (ones, LENGTH_TOLERANCE, "are all {:.4g}"),
        (root, ROOT_TOLERANCE, "go with sqrt(b)"),
    ):
        lengths = rule * (np.median(length[weighted] / rule[weighted]) if text else 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            off = weighted & ~(np.abs(length / lengths - 1) <= tolerance)
        if not off.any():
            if text:
                text = text.format(lengths[0])
                log.info("bvecs: their lengths %s: normalised, b stays as it is", text)
            return lengths
    i = np.flatnonzero(weighted & (np.abs(length - 1) > LENGTH_TOLERANCE))[0]
    row = [float(f"{x:.4g}") for x in rows[i]]
    text = f"bvecs[{i}] = {row} at b = {bvals[i]:g} has length {length[i]:.4g}, not 1"
    raise ValueError(
        f"{text}. Is it a direction only: bvec_scaling='normalise'; or is b nominal and the true "
        f"one b |v|^2 = {bvals[i] * min(length[i], 1e9) ** 2:.4g}: bvec_scaling='amplitude'"
    )


def _lengths(rows: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.linalg.norm(rows, axis=1))


def times(name: str, value: Any, b0s_mask: Bools) -> Array:
    """A time of each volume (n,), or of all (): an array of one number is a number, and a gap
    (null, NaN or 0) at b0, where timing means nothing, gets the mean of the other volumes.
    """
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from None
    if array.shape == (1,):
        array = array[0:1].reshape(())
    if array.shape == b0s_mask.shape:
        gap = b0s_mask & (np.isnan(array) | (array == 0))
        array[gap] = np.nanmean(array[~gap]) if np.isfinite(array[~gap]).any() else np.nan
    for where in np.argwhere(~np.isfinite(array)):
        place = f"[{where[0]}]" if array.ndim else ""
        raise ValueError(f"{name}{place} = {array[tuple(where)]} is not finite")
    return array


def deltas(json: File | Iterable[File] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` arguments of a table, completed by sidecars' BigDelta or LargeDelta and SmallDelta (a
    later sidecar goes before an earlier one).
    """
    given = {name: value for name, value in given.items() if value is not None}
    files = [json] if isinstance(json, str | PathLike) else list(json or ())
    if "tau" in given or not files or {"big_delta", "small_delta"} <= given.keys():
        return given
    found: dict[str, Array] = {}
    for file in files:
        found |= _sidecar(file)
    found = {name: value for name, value in found.items() if name not in given}
    none_given = not {"big_delta", "small_delta"} & given.keys()
    if none_given and len(found) < 2:
        missing = "small_delta" if "big_delta" in found else "big_delta"
        text = f"{files[-1]}: no pair of BigDelta (or LargeDelta) and SmallDelta; without {missing}"
        raise ValueError(f"{text} (in seconds), or tau, indices have no units")
    # Delta alone tells seconds from milliseconds: it is never as long as 1 s nor as short as 1 ms;
    # delta can be either, but is never longer than Delta.
    if "big_delta" in found:
        per_second = 1000.0 if np.nanmax(found["big_delta"]) > 1 else 1.0
    else:
        longest = np.nanmax(np.asarray(given["big_delta"], np.float64))
        small = np.nanmax(found["small_delta"]) if found else 0.0
        per_second = 1000.0 if small > max(longest, 1000 * SHORTEST_PULSE) else 1.0
    if (most := max((np.nanmax(value) for value in found.values()), default=0)) > 1000:
        text = f"{files[-1]}: a time of {most:g} is neither in s nor in ms. In us? Then it is"
        raise ValueError(f"{text} {most / 1e6:g} s: give big_delta and small_delta in seconds")
    found = {name: value / per_second for name, value in found.items()}
    text = ", ".join(f"{name} {_span(value)} s" for name, value in found.items())
    log.info("%s: %s, read as %s", files[-1], text, "ms" if per_second > 1 else "s")
    return given | found


def _span(values: Array) -> str:
    low, high = np.nanmin(values), np.nanmax(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _sidecar(path: File) -> dict[str, Array]:
    """Times that a JSON file has, in its own unit, by the table's names for them."""
    try:
        entries = jsonlib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON sidecar: {str(error)[:90]}") from None
    if not isinstance(entries, dict):
        kind = type(entries).__name__
        raise ValueError(f"{path} is not a JSON sidecar: it holds a {kind}, not names and values")
    found: dict[str, Array] = {}
    for key, name in DELTAS.items():
        value = entries.get(key)
        if value is None or value == "n/a":
            continue
        listed = value if isinstance(value, list) else [value]
        try:
            array = np.array([np.nan if x in (None, "n/a") else float(str(x)) for x in listed])
        except (TypeError, ValueError):
            raise ValueError(f"{path}: {key} must be numbers, not {str(value)[:60]}") from None
        if np.isnan(array).all() or array.ndim > 1:
            raise ValueError(f"{path}: {key} must be numbers, not {str(value)[:60]}")
        array = array if len(array) > 1 else array.reshape(())
        if name in found and not np.array_equal(found[name], array, equal_nan=True):
            text = f"BigDelta = {_span(found[name])} but LargeDelta = {_span(array)}"
            raise ValueError(f"{path}: {text}")
        found[name] = array
    return found
