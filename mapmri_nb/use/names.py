"""Names of files after BIDS derivatives, and of their sources."""

from __future__ import annotations

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

File = str | PathLike[str]

MODEL = "model-mapmri"  # in every output name
DESCRIPTION, IGNORE = "dataset_description.json", ".bidsignore"
RAW = "raw"  # what the sources' data set is called in their URIs
# BIDS's order; an entity that it does not know comes before `space`
ENTITIES = (
    *("sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec"),
    *("dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "?", "space"),
    *("split", "recording", "chunk", "atlas", "seg", "scale", "res", "den", "label"),
)


def prefix_of(source: File | None) -> str:
    """What output names start with: the source's name less its ending, `dwi` and its own `desc`,
    with its entities in BIDS's order; "" where nothing is left.
    """
    stem = "" if source is None else Path(source).name.removesuffix(".gz").removesuffix(".nii")
    words = [word for word in stem.split("_") if word and not word.startswith("desc-")]
    words = words[:-1] if words[-1:] == ["dwi"] else words

    def place(word: str) -> int:
        key, dash, _ = word.partition("-")
        if not dash:
            return -1
        return ENTITIES.index(key if key in ENTITIES else "?")

    return "_".join(sorted(words, key=place))


def map_name(prefix: str, label: str, ending: str = ".nii.gz") -> str:
    """Name of a map after BIDS derivatives; without a label, of the fit's own JSON."""
    words = (prefix, MODEL, label and f"param-{label}", "dwimap")
    return "_".join(word for word in words if word) + ending


def uris(sources: Iterable[File]) -> tuple[list[str], dict[str, str]]:
    """BIDS URIs of files with an absolute path (others stay names), and the link to their data set.

    The data set is the nearest folder above with a description, or else the first file's own.
    """
    found, root = [], None
    for source in map(Path, sources):
        if not source.is_absolute():
            found.append(str(source))
            continue
        if root is None:
            described = [p for p in source.parents if (p / DESCRIPTION).is_file()]
            root = described[0] if described else source.parent
        inside = source.is_relative_to(root)
        found.append(f"bids:{RAW}:{source.relative_to(root).as_posix()}" if inside else source.name)
    return found, {RAW: root.as_uri()} if root else {}


def label_of(name: str) -> str:
    """Label of a map that is no index: letters and digits of its name."""
    return re.sub("[^A-Za-z0-9]", "", name)
