"""The bundled samples: each folder holds a series, its table and mask, a README, a licence."""

from importlib.resources import files
from pathlib import Path

SAMPLES = ("small101d", "catcord")


def sample(name: str) -> Path:
    """Folder of a bundled sample.

    Parameters
    ----------
    name : ``"small101d"`` (in-vivo brain, pulse timing assumed) or ``"catcord"`` (ex-vivo cord with
        histology).
    """
    if name not in SAMPLES:
        raise ValueError(f"name: no bundled sample {name!r}; there are {', '.join(SAMPLES)}")
    return Path(str(files(__name__))) / name


def sample_dwi(name: str) -> Path:
    """Path of a sample's series; b-table, sidecar and mask lie beside it under the same name."""
    return next(sample(name).glob("*_dwi.nii.gz"))
