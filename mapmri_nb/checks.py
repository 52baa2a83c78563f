"""What callers hand over as series, masks and companions: arrays, images, files; one error style."""

from __future__ import annotations

import logging
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SOFT = 0.5  # a mask that is not two-valued is inside above it
SAME_PLACE, NEAR = 0.05, 0.5  # voxels: the same grid, within rounding; shifted, but still meant
PILED_UP = 0.01  # part of the top shell's samples that are 0; with fewer in the lowest shell: clipped
MOST_WEIGHT = 100.0  # 1/mm, of the Laplacian: GCV never goes above 10
DIFFUSIVITIES = (1e-8, 1e-2)  # mm2/s: free water is 3e-3
LEAST_B = 100.0  # s/mm2: the top shell is above it
POINTS = (1e-4, 1.0)  # mm: the largest displacement lies between

log = logging.getLogger(__name__)


class Given(NamedTuple):
    """Samples that are read where indexed, and the affine (4, 4) that came with them, or None."""

    data: Any
    affine: Array | None


def given(name: str, value: Any) -> Given:
    """
    Real numbers from an array, an image or proxy of nibabel, a table of pandas, or a file's path.

    Masked samples of a NumPy array become NaN. A TypeError names argument and type of anything that
    does not hold real numbers.
    """
    affine = None
    if isinstance(value, str | PathLike):
        from .use import io

        value, affine = io.read_nii(value)
    elif hasattr(value, "dataobj") and hasattr(value, "affine"):  # an image of nibabel
        value, affine = value.dataobj, np.asarray(value.affine, np.float64)
    elif isinstance(getattr(value, "file_like", None), str):  # its proxy: the file knows the affine
        from .use import io

        affine = io.read_nii(value.file_like).affine
    elif hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if not isinstance(getattr(value, "dtype", None), np.dtype) or not hasattr(value, "shape"):
        try:
            value = np.asarray(value)
        except ValueError as error:  # rows of different lengths
            raise TypeError(f"{name} must be an array of numbers: {error}") from None
    kinds = "biuf" if name == "mask" else "iuf"
    if value.dtype.kind not in kinds:
        what = "; take the magnitude, or the real part of phase-corrected data"
        raise TypeError(
            f"{name} must hold real numbers, not {value.dtype} (a {type(value).__name__})"
            + what * (value.dtype.kind == "c")
        )
    if isinstance(value, np.ma.MaskedArray):
        value = value.astype(np.float64).filled(np.nan)
    return Given(value, affine)


def squeezed(series: Any, shape: tuple[int, ...] | None, image: bool) -> Any:
    """
    A series less its axes of length 1 before the last, as (x, y, z, 1, n), which is said; `shape`
    is that of the mask, if there is one, and may ask for them.
    """
    found = tuple(series.shape)
    cut = found
    while len(cut) > 4 and cut[-2] == 1 and (image or shape != cut[:-1]):
        cut = (*cut[:-2], cut[-1])
    if cut == found:
        return series
    log.info("data: axes of length 1 left out, %s is read as %s", found, cut)
    if not hasattr(series, "reshape"):
        series = np.asarray(series)
    return series.reshape(*cut, order="F") if image else series.reshape(cut)


def mask(name: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """
    Voxels (bool, of `shape`) inside a mask of any type: not 0 where it has one value beside 0, else
    above 0.5; NaN is outside. A ValueError for another shape, or where no voxel is inside.
    """
    values = np.asarray(values)
    found = values.shape
    while values.ndim > len(shape) and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape != shape:
        raise ValueError(f"{name}: its shape {found} differs from the data's {shape}")
    inside = values
    if values.dtype != bool:
        values = np.where(np.isnan(values), 0, values)
        top = values.max(initial=0)
        inside = (values == top) & (top > 0)
        if not (inside | (values == 0)).all():
            inside = values > SOFT
            text = "%s: values from %g to %g are more than two; the %d voxels above %g are inside"
            log.warning(text, name, values.min(), top, inside.sum(), SOFT)
    if values.size and not inside.any():
        raise ValueError(f"{name}: no voxel is inside")
    return np.asarray(inside, bool)


def aligned(
    name: str, image: Given, shape: tuple[int, ...], affine: Array | None, turn: bool = True
) -> Any:
    """
    The data of a companion image (x, y, z, ...) along the axes of a series of `shape` (x, y, z) and
    `affine`.

    Axes stored flipped or permuted are turned, and that is said, or a ValueError unless `turn`.
    Another place in space is a ValueError; a shift of a part of a voxel is warned of. Without an
    affine on either side the image is taken as it is.
    """
    data = image.data
    if image.affine is None or affine is None or len(data.shape) < 3 or len(shape) != 3:
        return data
    place = np.linalg.inv(affine) @ image.affine  # its voxels in voxels of the series
    whole = np.rint(place[:3, :3])
    order = [int(k) for k in np.abs(whole).argmax(1)]  # its axis along each axis of the series
    sizes = tuple(data.shape[k] for k in order)
    if sorted(order) == [0, 1, 2] and np.abs(whole).sum() == 3 and sizes == tuple(shape):
        flip = whole.sum(1) < 0
        corners = np.array(np.meshgrid(*([0, n - 1] for n in data.shape[:3]))).reshape(3, -1)
        want = whole @ corners + np.where(flip, np.array(shape) - 1, 0)[:, None]
        off = float(np.abs(place[:3, :3] @ corners + place[:3, 3:] - want).max())
        if off <= NEAR:
            if off > SAME_PLACE:
                log.warning("%s is shifted against the data by up to %.2g voxels", name, off)
            if order == [0, 1, 2] and not flip.any():
                return data
            if not turn:
                raise ValueError(
                    f"{name}: its axes are stored in another order or direction than the data's, and "
                    "its components would have to turn with them: resample it onto the data"
                )
            log.info("%s: its axes are stored otherwise than the data's; turned to them", name)
            values = np.asarray(data).transpose(*order, *range(3, len(data.shape)))
            return np.asfortranarray(values[tuple(slice(None, None, -1 if f else 1) for f in flip)])
    raise ValueError(
        f"{name}: it lies elsewhere than the data (shapes {tuple(data.shape[:3])} and {tuple(shape)}, "
        f"origins {image.affine[:3, 3].round(2).tolist()} and {affine[:3, 3].round(2).tolist()} mm): "
        "resample it onto the data"
    )


def piled_up(zeros: NDArray[np.int64], voxels: int, gtab: Any) -> None:
    """
    Warn where samples that are exactly 0, counted by volume (n,) over `voxels` with signal, pile up
    in the top shell: then they are weak signals that were clipped, not missing ones.
    """
    weighted = ~gtab.b0s_mask
    if not voxels or not weighted.any():
        return
    q = np.where(weighted, gtab.qvals, np.nan)
    part = zeros / voxels
    top, low = (part[mark].mean() for mark in (q > 0.95 * np.nanmax(q), q < 1.05 * np.nanmin(q)))
    if top > PILED_UP and top > 3 * low:
        log.warning(
            "%.2g %% of the samples of the top shell are exactly 0, %.2g %% of the lowest: weak signals that were "
            "clipped? As missing samples they bias the fit; zero_is_missing=False takes them as data",
            100 * top,
            100 * low,
        )


def in_sense(name: str, value: float, low: float, high: float, unit: str, hint: str) -> None:
    """A ValueError for a number outside any sense, which says how else it may have been meant."""
    if not low <= value <= high:
        raise ValueError(f"{name} = {value:g} {unit} is out of any sense ({low:g} to {high:g}). {hint}")
