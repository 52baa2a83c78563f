"""Series, masks and companions as callers hand them over: arrays, images or files, checked."""

from __future__ import annotations

import logging
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .gradients import GradientTable, axes

Array = NDArray[np.float64]

SOFT = 0.5  # a mask that is not two-valued is inside above it
SAME_PLACE, NEAR = 0.05, 0.5  # voxels: the same grid, within rounding; shifted, but still meant
MOST_NEGATIVE = 0.01  # of the samples of voxels with signal, without a warning
# part of the top shell's samples that are 0; with fewer in the lowest shell: clipped
PILED_UP = 0.01
MOST_WEIGHT = 100.0  # 1/mm, of the Laplacian: GCV never goes above 10
DIFFUSIVITIES = (1e-8, 1e-2)  # mm2/s: free water is 3e-3
LEAST_B = 100.0  # s/mm2: the top shell is above it
POINTS = (2.5e-5, 1.0)  # mm: the largest displacement lies between; steps of a derivative are small

log = logging.getLogger(__name__)


class Given(NamedTuple):
    """Samples that are read where indexed, and the affine (4, 4) that came with them, or None."""

    data: Any
    affine: Array | None


def given(name: str, value: Any) -> Given:
    """Real numbers from an array, an image or proxy of nibabel, a table of pandas, or a file's
    path.

    Masked samples of a NumPy array become NaN. A TypeError names argument and type of anything that
    does not hold real numbers.
    """
    affine, kind = None, type(value).__name__
    if isinstance(value, str | PathLike):
        from .use import io

        value, affine = io.read_nii(value)
    elif hasattr(value, "dataobj") and hasattr(value, "affine"):  # an image of nibabel
        value, affine = value.dataobj, np.asarray(value.affine, np.float64)
    elif isinstance(getattr(value, "file_like", None), str):  # its proxy: the file knows the affine
        from .use import io

        affine = io.affine_of(value.file_like)
    elif hasattr(value, "to_numpy"):
        value = value.to_numpy()
    dtype = getattr(value, "dtype", None)
    if dtype is None and hasattr(value, "shape") and len(value.shape):  # something that is sliced
        dtype = np.asarray(value[(slice(0, 1),) * len(value.shape)]).dtype
    elif not (isinstance(dtype, np.dtype) and hasattr(value, "shape")):
        try:
            value = np.asarray(value)
        except ValueError as error:  # rows of different lengths
            raise TypeError(f"{name} must be an array of numbers, not a {kind}: {error}") from None
        dtype = value.dtype
    if dtype.kind not in ("iuf" if name == "data" else "biuf"):
        what = "; take the magnitude, or the real part of phase-corrected data"
        text = f"{name} must hold real numbers, not {dtype} (a {kind})"
        raise TypeError(text + what * (dtype.kind == "c"))
    if hasattr(value, "filled"):  # a masked array; to name its type takes 8 ms
        value = value.astype(np.float64).filled(np.nan)
    return Given(value, affine)


def squeezed(series: Any, shape: tuple[int, ...] | None, image: bool) -> Any:
    """A series less its axes of length 1 before the last, as (x, y, z, 1, n), which is said;
    `shape` is that of the mask, if there is one, and may ask for them.
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


def inside_of(name: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Voxels (bool, of `shape`) inside a mask of any type: not 0 where it has one value beside 0,
    else above 0.5; NaN is outside. A ValueError for another shape, or where no voxel is inside.
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
    """The data of a companion image (x, y, z, ...) along the axes of a series of `shape` (x, y, z)
    and `affine`.

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
                    f"{name}: its axes are stored in another order or direction than the data's, "
                    "and its components would have to turn with them: resample it onto the data"
                )
            log.info("%s: its axes are stored otherwise than the data's; turned to them", name)
            values = np.asarray(data).transpose(*order, *range(3, len(data.shape)))
            return np.asfortranarray(values[tuple(slice(None, None, -1 if f else 1) for f in flip)])
    places = []
    for n, a in ((data.shape[:3], image.affine), (shape, affine)):
        edges = np.linalg.norm(a[:3, :3], axis=0).round(3).tolist()
        places.append(f"shape {n}, voxels of {edges} mm, origin {a[:3, 3].round(2).tolist()}")
    text = f"it lies elsewhere than the data ({places[0]}; {places[1]})"
    raise ValueError(f"{name}: {text}: resample it onto the data")


def count_odd(y: NDArray[Any]) -> tuple[NDArray[np.int64], int, int]:
    """Zeros by volume, negative samples, and voxels with signal, of samples (V, n)."""
    odd = y[~(y.min(1) > 0)]
    odd, none = odd[signal := (odd > 0).any(1)], int((~signal).sum())
    return (odd == 0).sum(0), int((odd < 0).sum()), len(y) - none


def negative(count: int, voxels: int, gtab: GradientTable) -> None:
    """Warn where many samples of the voxels with signal are negative, which no magnitude is."""
    if (share := count / max(voxels * len(gtab), 1)) > MOST_NEGATIVE:
        log.warning(
            "%.3g %% of the samples are negative, which no magnitude is (ringing of an "
            "interpolation, a bias taken off?): they count as they are, and a model of the noise "
            "leaves them out",
            100 * share,
        )


def piled_up(zeros: NDArray[np.int64], voxels: int, gtab: GradientTable) -> None:
    """Warn where samples that are exactly 0, counted by volume (n,) over `voxels` with signal, pile
    up in the top shell: then they are weak signals that were clipped, not missing ones.
    """
    weighted = ~gtab.b0s_mask
    if not np.any(zeros) or not weighted.any():
        return
    q = np.where(weighted, gtab.qvals, np.nan)
    part = zeros / voxels
    top, low = (part[mark].mean() for mark in (q > 0.95 * np.nanmax(q), q < 1.05 * np.nanmin(q)))
    if top > PILED_UP and top > 3 * low:
        log.warning(
            "%.3g %% of the samples of the top shell are exactly 0, %.3g %% of the lowest: weak "
            "signals that were clipped? As missing samples they bias the fit; "
            "zero_is_missing=False takes them as data",
            100 * top, 100 * low,
        )  # fmt: skip


def in_sense(name: str, value: float, low: float, high: float, unit: str, hint: str) -> None:
    """A ValueError for a number outside any sense, which says how else it may have been meant."""
    if not low <= value <= high:
        text = f"{name} = {value:g} {unit} is out of any sense ({low:g} to {high:g})"
        raise ValueError(f"{text}. {hint}")


class Taken(NamedTuple):
    """Everything that a fit is made of, checked: samples and weights are read where indexed."""

    data: Any  # (..., n)
    inside: NDArray[np.bool_]
    affine: Array | None
    weights: Any  # (1, n), or with `per_sample` (..., n)
    per_sample: bool
    field: Array  # (V, 3, 3), or (0, 3, 3)


def take(
    gtab: GradientTable, data: Any, mask: Any = None, weights: Any = None, grad_dev: Any = None
) -> Taken:
    """Series, mask and companions as `MapmriModel.fit` takes them; errors name the argument."""
    series, inner = given("data", data), None if mask is None else given("mask", mask)
    affine = series.affine if series.affine is not None or inner is None else inner.affine
    wanted = None if inner is None else tuple(inner.data.shape)
    values = squeezed(series.data, wanted, series.affine is not None)
    shape = tuple(values.shape)
    if len(shape) == 0 or shape[-1] != len(gtab):
        text = f"data: its last axis must have the table's {len(gtab)} volumes"
        raise ValueError(f"{text}, its shape is {shape}")
    inside = np.ones(shape[:-1], bool)
    if inner is not None:
        inside = inside_of("mask", aligned("mask", inner, shape[:3], affine), shape[:-1])
    weight, per_sample = np.ones((1, shape[-1])), False
    if weights is not None:
        weight = companion("weights", weights, shape, affine)
        if tuple(weight.shape) == tuple(series.data.shape) != shape:
            weight = np.asarray(weight).reshape(shape)
        per_sample = tuple(weight.shape) == shape and len(shape) > 1
        if not per_sample and weight.shape != shape[-1:]:
            text = f"weights must have shape {shape[-1:]} or the data's {shape}"
            raise ValueError(f"{text}, not {weight.shape}")
        if not per_sample:
            weight = np.ascontiguousarray(checked_weights(np.array(weight, np.float64))[None])
            if not weight[0, gtab.b0s_mask].any():
                raise ValueError("weights: they are 0 at every b0 volume, and a fit needs one")
    field = np.zeros((0, 3, 3))
    if grad_dev is not None:
        found = given("grad_dev", grad_dev)
        if found.affine is not None:
            field_frame(gtab.frame, found.affine)
        field = field_rows(np.asarray(aligned("grad_dev", found, shape[:3], affine, False)), inside)
    return Taken(values, inside, affine, weight, per_sample, field)


def companion(name: str, value: Any, shape: tuple[int, ...], affine: Array | None) -> Any:
    """Data of a companion of a series of `shape` (..., n), turned to its axes; see `aligned`."""
    return aligned(name, given(name, value), shape[:3] if len(shape) == 4 else (), affine)


def field_frame(frame: str, affine: Array | None) -> None:
    """A ValueError where the components of FSL's gradient non-linearity are not along `frame`."""
    if not np.allclose(axes(affine, "image", frame), np.eye(3), atol=1e-6):
        raise ValueError(
            "grad_dev: its components are along the axes of FSL's b-vectors, the gradient table's "
            f"are of the {frame} frame: give the table by FSL's b-vectors"
        )


def checked_weights(values: Array) -> Array:
    """Weights, or an error; NaN weighs nothing."""
    values = np.nan_to_num(values, nan=0.0, posinf=np.inf)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        bad = values[~(values >= 0) | np.isinf(values)][0]
        raise ValueError(f"weights must be finite and >= 0; found {bad}")
    return values


def field_rows(grad_dev: Any, inside: NDArray[np.bool_]) -> Array:
    """Gradient non-linearity as rows (V, 3, 3); length 0 where there is none."""
    if grad_dev is None:
        return np.zeros((0, 3, 3))
    F = np.asarray(grad_dev, dtype=np.float64)
    if F.shape == (*inside.shape, 9):
        F = np.swapaxes(F.reshape(*inside.shape, 3, 3), -1, -2)
    if F.shape != (*inside.shape, 3, 3):
        shapes = f"{(*inside.shape, 9)} or {(*inside.shape, 3, 3)}"
        raise ValueError(f"grad_dev must have shape {shapes}, not {F.shape}")
    rows = np.ascontiguousarray(F[inside])
    if not (np.isfinite(rows).all() and (np.abs(rows) < 0.5).all()):
        text = "grad_dev: entries must be finite and below 0.5 inside the mask"
        raise ValueError(f"{text}; the largest is {np.abs(rows).max()}")
    return rows


def sigma_rows(sigma: Any, noise: str | None, inside: NDArray[np.bool_]) -> Array:
    """The caller's sigma as rows (V,), (1,) for all voxels, or (0,) where it is estimated."""
    if sigma is None:
        if noise == "denoised" and inside.any():
            raise ValueError("sigma: noise='denoised' needs it, residuals no longer hold it")
        return np.zeros(0)
    if noise is None:
        raise ValueError("sigma is for noise='rician' or 'denoised' alone")
    rows = np.array(given("sigma", sigma).data, dtype=np.float64)
    if rows.shape == inside.shape and rows.ndim:
        rows = rows[inside]
    elif rows.shape == (*inside.shape, 1):
        rows = rows[inside][:, 0]
    elif rows.shape not in ((), (1,)):
        raise ValueError(f"sigma must be a number or have shape {inside.shape}, not {rows.shape}")
    rows = np.atleast_1d(rows)
    if not (np.isfinite(rows).all() and (rows > 0).all()):
        raise ValueError(f"sigma must be finite and positive inside the mask; found {rows.min()}")
    return np.ascontiguousarray(rows)


def given_scale(scale: Any, inside: NDArray[np.bool_]) -> tuple[Array, Array]:
    """The caller's (mu, R) as rows, or arrays of length 0."""
    if scale is None:
        return np.zeros((0, 3)), np.zeros((0, 3, 3))
    if not (isinstance(scale, tuple | list) and len(scale) == 2):
        raise ValueError(f"scale must be a pair (mu, R), not {scale!r}")
    out = []
    count = int(inside.sum())
    for name, value, tail in (("mu", scale[0], (3,)), ("R", scale[1], (3, 3))):
        array = np.array(given(f"scale: {name}", value).data, dtype=np.float64)
        if array.shape == tail:
            array = array[None]
        elif array.shape == inside.shape + tail and inside.ndim:
            array = array[inside]
        if array.shape not in ((1, *tail), (count, *tail)):
            shapes = f"{tail} or {(count, *tail)}"
            raise ValueError(f"scale: {name} must have shape {shapes}, not {np.shape(value)}")
        out.append(np.ascontiguousarray(array))
    mu, R = out
    if not (np.isfinite(mu).all() and (mu > 0).all()):
        text = "scale: mu must be finite and positive, in mm"
        raise ValueError(f"{text}; the smallest value is {mu.min()}")
    if (mu > 1.0).any():
        raise ValueError(f"scale: mu = {mu.max()} is more than a millimetre; is it in micrometres?")
    off = np.abs(np.einsum("vij,vik->vjk", R, R) - np.eye(3)).max() if R.size else 0.0
    if not off < 1e-6:
        text = "scale: the columns of R must be orthonormal"
        raise ValueError(f"{text}; R'R differs from 1 by {off:.2g}")
    return mu, R


def displacements(points: Array) -> None:
    """A ValueError for points of the propagator that cannot be meant in mm."""
    largest = float(np.abs(points).max(initial=0.0))
    low, high = POINTS
    factor, unit = (1e-3, "um") if largest > high else (1e3, "m")
    hint = f"In {unit}? Then it is {largest * factor:g} mm: pass points in mm"
    if largest > 0:
        in_sense("points: the largest displacement", largest, low, high, "mm", hint)
