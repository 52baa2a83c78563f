"""A fit on disk: its parts and their sidecars, saving and loading."""

from __future__ import annotations

import errno
import glob
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import __version__
from ..fit import MapmriFit
from ..gradients import GradientTable
from ..indices import TABLE, unit_factor
from ..kernels.ordering import index_table, iso_index_table
from ..status import MEANING, Status
from . import io
from .io import File, Image, Mask, staged, write_json
from .names import DESCRIPTION, IGNORE, label_of, map_name, prefix_of, uris

T = TypeVar("T")

FORMAT_VERSION = 1
OUTSIDE = int(Status.OUTSIDE)
PARTS = {  # rows of a fit: label, unit, description; other rows are kept under their own names
    "coef": ("mapcoeffs", "1", "MAP-MRI coefficients in the order of CoefficientOrder"),
    "mu": ("mu", "mm", "scales of the basis"),
    "mu_tensor": ("mutensor", "mm", "scales of the tensor, sqrt(2 lambda tau), largest first"),
    "R": ("frame", "1", "tensor frame in the frame of the b-vectors: entry 3 i + j is component i "
          "of axis e_j"),
    "S0": ("s0", "arbitrary", "signal without diffusion weighting"),
    "laplacian_weight": ("weight", "mm^-1", "weight of the Laplacian"),
    "status": ("status", "1", f"what happened in a voxel, bit by bit; {OUTSIDE}: outside the mask"),
    "rmse": ("rmse", "arbitrary", "root mean squared residual"),
    "r2": ("r2", "1", "coefficient of determination"),
    "sigma": ("sigma", "arbitrary", "sigma of the noise of one channel"),
    "kkt": ("kkt", "1", "relative residual of the optimality conditions of a constrained fit"),
    "iterations": ("iterations", "1", "steps of the constrained solver"),
    "field": ("graddev", "1", "gradient non-linearity F, (I + F) q is what a voxel saw: entry "
              "3 i + j is F_ij"),
    "margin": ("margin", "1", "how much of the reference polynomial can be taken off, as proved, "
               "with a sum of squares left"),
}  # fmt: skip


def files(folder: File, prefix: str) -> list[Path]:
    """Everything that is there of the fit of a prefix, ascending."""
    folder, stem = Path(folder), glob.escape(prefix)
    maps = folder.glob(map_name(stem, "*", ".*"))
    model, table = map_name(stem, "", ".json"), map_name(stem, "", "").removesuffix("dwimap")
    return sorted([*maps, *folder.glob(model), *folder.glob(f"{table}summary.tsv")])


def check_output(folder: File, prefix: str, force: bool = False) -> None:
    """Before a long fit: FileExistsError over old results, PermissionError without a place."""
    old = files(folder, prefix)
    if old and not force:
        text = f"{len(old)} results are there already (force overwrites)"
        raise FileExistsError(errno.EEXIST, text, str(old[0]))
    io.require_writable(Path(folder))


def write_description(stage: Path, links: dict[str, str] | None = None) -> None:
    """BIDS's description of a derivative data set, and what its validator is to pass over."""
    entries: dict[str, Any] = {"Name": "MAP-MRI fits", "BIDSVersion": "1.10.0"}
    entries |= {"DatasetType": "derivative"}
    entries |= {"GeneratedBy": [{"Name": "mapmri_nb", "Version": __version__}]}
    write_json(stage / DESCRIPTION, entries | ({"DatasetLinks": links} if links else {}))
    (stage / IGNORE).write_text("*_dwimap.*\n*.html\n*.png\n")


def write_maps(
    folder: File, prefix: str, maps: dict[str, NDArray[Any]], affine: ArrayLike, *,
    units: str = "mm", fill: float = np.nan, force: bool = False,
    sidecars: dict[str, dict[str, Any]] | None = None, model: dict[str, Any] | None = None,
) -> list[Path]:  # fmt: skip
    """Volumes by name as float32 .nii.gz with sidecars, all or none; the paths of the images.

    Those of `TABLE` come in mm and are written in `units`, others as they are; `fill` replaces
    NaN; `sidecars` holds more JSON entries by name, `model` the model that all are of.
    """
    how: dict[str, Any] = {"units": units, "fill": fill, "sidecars": sidecars, "model": model}
    with staged(folder, force) as stage:
        names = stage_maps(stage, prefix, maps.items(), affine, **how)
        write_description(stage)
    return [Path(folder) / name for name in names]


def load_map(path: File) -> Image:
    """An image that `write_maps` wrote; the ODF and its peaks without the factor for trackers."""
    image, sidecar = io.read_nii(path), Path(str(path).split(".nii")[0] + ".json")
    factor = json.loads(sidecar.read_text()).get("ScaleFactor", 1.0) if sidecar.is_file() else 1.0
    return Image(np.asarray(image.data, float) / factor, image.affine)


def side_by_side(
    call: Callable[..., T], items: Iterable[tuple[Any, ...]], threads: int = 2, ahead: int = 1
) -> Iterator[T]:
    """call(*item) of each item, in order, in some threads: what it does needs no GIL. `ahead` items
    wait, so that no thread does.
    """
    running: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            running.append(pool.submit(call, *item))
            if len(running) >= threads + ahead:
                yield running.popleft().result()
        yield from (future.result() for future in running)


def stage_maps(
    stage: Path, prefix: str, maps: Iterable[tuple[str, NDArray[Any]]], affine: ArrayLike, *,
    units: str, fill: float, sidecars: dict[str, dict[str, Any]] | None = None,
    model: dict[str, Any] | None = None,
    place: tuple[NDArray[np.int64], tuple[int, ...]] | None = None,
) -> list[str]:  # fmt: skip
    """Volumes as `write_maps` writes them into a stage; the names of the images. With a `place`,
    positions as of `row_positions` and the mask's shape, the maps are rows.
    """

    def write(name: str, values: NDArray[Any]) -> str:
        base, mark, kind = name.partition("_desc-")  # of an index: its spread
        index = TABLE.get(base)
        label = (index.label if index else label_of(base)) + mark + kind
        factor = unit_factor(index.power if index else 0, units)
        one = values.ndim == (1 if place else 3)
        pieces = values[None] if one else np.moveaxis(values, -1, 0)
        clean: Iterator[NDArray[Any]]
        clean = (np.where(np.isnan(piece), fill, piece * factor) for piece in pieces)
        shape = values.shape
        if place:
            shape = (*place[1], *shape[1:])
            clean = io.volumes(clean, place[0], math.prod(place[1]), np.float32, fill)
        io.write_nii(stage / map_name(prefix, label), clean, shape, np.float32, affine)
        entries: dict[str, Any] = {}
        if index:
            entries = {"Description": index.long_name, "Units": index.unit(units)}
        if index and index.size == 3:
            axes = {"EncodingAxis": 3, "Reference": "xyz", "AntipodalSymmetry": True}
            kind = "dec" if name == "color_fa" else "3vector"
            entries["OrientationEncoding"] = axes | {"Type": kind}
        entries |= {"FillValue": "NaN" if np.isnan(fill) else fill}
        entries |= (sidecars or {}).get(name, {})
        entries |= {"Model": model} if model else {}
        write_json(stage / map_name(prefix, label, ".json"), entries)
        return map_name(prefix, label)

    return list(side_by_side(write, maps))


def model_entries(
    options: dict[str, Any], gtab: GradientTable, shape: Sequence[int], **more: Any
) -> dict[str, Any]:
    """The fit's own JSON less its parts; `more` entries: its sources and its run section."""
    isotropic = options["basis"] == "isotropic"
    table = (iso_index_table if isotropic else index_table)(int(options["radial_order"]))
    letters = "j l m" if isotropic else "n1 n2 n3"
    return {
        "Description": "MAP-MRI fit; lengths in mm, times in s",
        "FormatVersion": FORMAT_VERSION,
        "Software": {"Name": "mapmri_nb", "Version": __version__},
        "Model": model_section(options),
        "CoefficientOrder": {"Indices": letters, "Table": table.tolist()},
        "Shape": list(shape),
        "GradientTable": gtab.to_dict(),
        **more,
    }


def model_section(options: dict[str, Any]) -> dict[str, Any]:
    """The model and its parameters, for the fit's JSON and for each map's."""
    url = "https://doi.org/10.1016/j.neuroimage.2013.04.016"
    return {"Description": "Mean apparent propagator MRI", "URL": url, "Parameters": options}


def run_section(**more: Any) -> dict[str, Any]:
    """What differs between two runs of a job: date, versions, `more` (seconds, threads)."""
    packages = ("numpy", "scipy", "numba", "osqp", "nibabel")
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"Date": date, "Versions": {name: metadata.version(name) for name in packages}, **more}


def save_fit(
    fit: MapmriFit, folder: File, *, affine: ArrayLike | None = None, prefix: str = "",
    force: bool = False, sources: Sequence[str] = (), run: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """A fit as a folder: an image per kind of row (float64, status int32), one JSON, the data set's
    description.

    `affine` (default: the fit's; required where it has none) maps voxels to scanner space; `prefix`
    as of `prefix_of`; `sources` are the input files (absolute paths become BIDS URIs); `run` goes
    into the JSON's run section.
    """
    affine = fit.affine if affine is None else affine
    if affine is None:
        text = "the data came as an array, so pass affine= (4, 4), voxels to scanner space in mm"
        raise ValueError(f"affine is missing: {text}")
    rows, where = fit.rows(), io.row_positions(fit.mask)
    count = {key: math.prod(v.shape[1:]) for key, v in rows.items()}
    flat = {key: v.reshape(len(v), count[key]).T for key, v in rows.items()}
    parts = (Part(key, v.dtype, v.shape[1:], flat[key]) for key, v in rows.items())
    more = {"Sources": list(sources), "Run": run_section(**(run or {}))}
    entries = model_entries(fit.options, fit.gtab, fit.mask.shape, **more)
    with staged(folder, force) as stage:
        io.require_space(stage, 8 * fit.mask.size * sum(count.values()), "save")
        stage_fit(stage, prefix, parts, where, entries, affine)


class Part(NamedTuple):
    """One kind of row of a fit: `columns` are its values (V,), as many as the product of `tail`; or
    a file on the same disk, its image as `stage_fit` writes it.
    """

    key: str
    dtype: np.dtype[Any]
    tail: tuple[int, ...]
    columns: Iterable[NDArray[Any]] | Path


def image_shape(shape: Sequence[int], tail: Sequence[int]) -> tuple[int, ...]:
    """Shape of the image of a part: a mask's axes, at least three, then one for what a voxel has.
    NIfTI has seven axes; those of the mask beyond its sixth are one with it, in file order.
    """
    axes = (*shape, 1, 1, 1)[: max(3, len(shape))]
    rest, last = [math.prod(axes[5:])][: len(axes[5:])], [math.prod(tail)][: len(tail)]
    return (*axes[:5], *rest, *last)


def stage_fit(
    stage: Path, prefix: str, parts: Iterable[Part], where: NDArray[np.int64],
    entries: dict[str, Any], affine: ArrayLike, written: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """A fit as `save_fit` writes it, into a stage; `where` as of `row_positions`. `written` is
    called before the JSON is.
    """
    shape = tuple(entries["Shape"])

    def write(
        key: str, dtype: np.dtype[Any], tail: tuple[int, ...], columns: Any
    ) -> tuple[str, dict[str, Any]]:
        label, unit, text = PARTS.get(key, (label_of(key), "arbitrary", key))
        kind, fill = (np.int32, 0) if dtype.kind in "iub" else (np.float64, np.nan)
        fill = OUTSIDE if key == "status" else fill
        # the large ones can be memory-mapped
        name = map_name(prefix, label, ".nii" if tail else ".nii.gz")
        if isinstance(columns, Path):
            io.link(columns, stage / name)
        else:
            pieces = io.volumes(columns, where, math.prod(shape), kind, fill)
            io.write_nii(stage / name, pieces, image_shape(shape, tail), kind, affine)
        sidecar = {"Description": text, "Units": unit, "Model": entries["Model"]}
        if key == "status":
            sidecar["Levels"] = {str(flag.value): words for flag, words in MEANING.items()}
        write_json(stage / map_name(prefix, label, ".json"), sidecar)
        return key, {"File": name, "Shape": list(tail)}

    # coefficients take as long as all others
    files = dict(side_by_side(write, parts, ahead=len(PARTS)))
    written()
    sources, links = uris(entries.get("Sources", []))
    entries = entries | {"Sources": sources, "Parts": files}
    write_json(stage / map_name(prefix, "", ".json"), entries)
    write_description(stage, links)


class SavedFit(NamedTuple):
    """What a fit's folder holds; `entries` is its JSON."""

    fit: MapmriFit
    affine: NDArray[np.float64]
    prefix: str
    entries: dict[str, Any]


def read_fit(folder: File, prefix: str | None = None, within: Mask | None = None) -> SavedFit:
    """A saved fit, its rows gathered from its memory-mapped images.

    Parameters
    ----------
    folder : the folder, or the fit's JSON in it. prefix : which fit, where the folder holds
        several.
    within : bool volume; voxels outside it are left out and not read.

    Raises
    ------
    FileNotFoundError, ValueError
        No fit, several, an unknown format version, or parts that do not go together.
    """
    model = model_file(Path(folder), prefix)
    try:
        entries = json.loads(model.read_text())
        if (version := entries["FormatVersion"]) != FORMAT_VERSION:
            raise ValueError(f"format version {version!r} is unknown, not {FORMAT_VERSION}")
        options, shape = entries["Model"]["Parameters"], tuple(entries["Shape"])
        gtab = GradientTable.from_dict(entries["GradientTable"])
        if entries["CoefficientOrder"] != model_entries(options, gtab, shape)["CoefficientOrder"]:
            raise ValueError("the coefficients are in an unknown order")
        images, tails = {}, {}
        for key, part in entries["Parts"].items():
            name, tails[key] = part["File"], part["Shape"]
            images[key] = io.read_nii(model.with_name(name))
            found = images[key].data
            if found.size != math.prod((*shape, *tails[key])):
                raise ValueError(f"{name} has shape {found.shape}, not {shape} and {tails[key]}")
        status, affine = images["status"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"not the JSON of a saved fit ({type(error).__name__}: {error})"
        reason = str(error) if type(error) is ValueError else reason
        raise ValueError(f"{model}: {reason}") from None
    mask = np.asarray((np.asarray(status).reshape(shape, order="F") & OUTSIDE) == 0)
    if within is not None and np.shape(within) != shape:
        raise ValueError(f"within: its shape {np.shape(within)} differs from the fit's {shape}")
    mask = mask if within is None else mask & within
    where, rows = io.row_positions(mask), {}
    for key, image in images.items():
        flat = image.data.reshape(mask.size, -1, order="F")
        kind = np.int64 if flat.dtype.kind == "i" else np.float64
        rows[key] = np.empty((len(where), flat.shape[1]), kind)
        for k in range(flat.shape[1]):  # the file's own order
            rows[key][:, k] = flat[where, k]
        rows[key] = rows[key].reshape(len(where), *tails[key])
    fit = MapmriFit(rows, mask, options, gtab, affine)
    return SavedFit(fit, affine, prefix_of_fit(model), entries)


def model_files(folder: File) -> list[Path]:
    """The JSONs of the fits in a folder, ascending."""
    return sorted(Path(folder).glob("*" + map_name("", "", ".json")))


def prefix_of_fit(model: Path) -> str:
    """The prefix of a fit by the name of its JSON."""
    return model.name.removesuffix(map_name("", "", ".json")).removesuffix("_")


def model_file(folder: File, prefix: str | None = None) -> Path:
    """The JSON of the one fit in a folder, or of the one named by its prefix or series."""
    folder = Path(folder)
    models = [folder] if folder.is_file() else model_files(folder)
    names = [repr(prefix_of_fit(model)) for model in models]
    names[4:] = [f"... ({len(names)} fits)"] if len(names) > 4 else []
    if prefix is not None and not folder.is_file():
        for spelling in (prefix, prefix_of(prefix)):
            if (model := folder / map_name(spelling, "", ".json")).is_file():
                return model
        there = f"; there are {', '.join(names)}" if names else ""
        text = f"no saved fit of the prefix {prefix!r}{there}"
        raise FileNotFoundError(errno.ENOENT, text, str(folder))
    if len(models) > 1:
        raise ValueError(f"{folder} holds several fits, name one by its prefix: {', '.join(names)}")
    if not models:
        raise FileNotFoundError(errno.ENOENT, "no saved fit", str(folder))
    return models[0]


def load_fit(folder: File, prefix: str | None = None, within: Mask | None = None) -> MapmriFit:
    """The fit that `save_fit` wrote, bit for bit; arguments and errors as of `read_fit`."""
    return read_fit(folder, prefix, within).fit
