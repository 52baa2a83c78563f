"""Names of output files after BIDS derivatives."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

File = str | PathLike[str]

MODEL = "model-mapmri"  # in every output name


DESCRIPTION = "dataset_description.json"


def prefix_of(source: File | None) -> str:
    """
    What output names start with: the source's name less its ending and `dwi`; "" where that is all.
    """
    stem = "dwi" if source is None else Path(source).name.removesuffix(".gz").removesuffix(".nii")
    return "" if stem == "dwi" else stem.removesuffix("_dwi")


def map_name(prefix: str, label: str, ending: str = ".nii.gz") -> str:
    """Name of a map after BIDS derivatives; without a label, of the fit's own JSON."""
    return (
        "_".join(word for word in (prefix, MODEL, label and f"param-{label}", "dwimap") if word)
        + ending
    )
