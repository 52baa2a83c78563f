"""Images, sidecars and saved fits on disk. The only place that knows nibabel."""

from __future__ import annotations

import contextlib
import errno
import glob
import gzip
import json
import logging
import math
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import __version__
from .fit import MEANING, MapmriFit, Status
from .gradients import GradientTable
from .indices import INDICES, unit_factor
from .kernels.ordering import index_table, iso_index_table

File = str | os.PathLike[str]
Mask = NDArray[np.bool_]

FORMAT_VERSION = 1
OUTSIDE = int(Status.OUTSIDE)
GZIP_LEVEL = 4  # level 6 takes longer over noisy floats and gains nothing
MODEL = "model-mapmri"  # in every output name
DESCRIPTION = "dataset_description.json"
PARTS = {  # rows of a fit: label, unit, description; other rows are kept under their own names
    "coef": ("mapcoeffs", "1", "MAP-MRI coefficients in the order of CoefficientOrder"),
    "mu": ("mu", "mm", "scales of the basis"),
    "mu_tensor": ("mutensor", "mm", "scales of the tensor, sqrt(2 lambda tau), largest first"),
    "R": ("frame", "1", "tensor frame in the frame of the b-vectors: entry 3 i + j is component i of axis e_j"),
    "S0": ("s0", "arbitrary", "signal without diffusion weighting"),
    "laplacian_weight": ("weight", "mm^-1", "weight of the Laplacian"),
    "status": ("status", "1", f"what happened in a voxel, bit by bit; {OUTSIDE} is outside the mask"),
    "rmse": ("rmse", "arbitrary", "root mean squared residual"),
    "r2": ("r2", "1", "coefficient of determination"),
    "kkt": ("kkt", "1", "relative residual of the optimality conditions of a constrained fit"),
    "iterations": ("iterations", "1", "steps of the constrained solver"),
    "field": ("graddev", "1", "gradient non-linearity F, (I + F) q is what a voxel saw: entry 3 i + j is F_ij"),
    "margin": ("margin", "1", "smallest Gram eigenvalue of a globally positive fit"),
}

log = logging.getLogger(__name__)


class Image(NamedTuple):
    """An image whose `data` (np.memmap, or `Scaled`) is read only where indexed."""

    data: Any
    affine: NDArray[np.float64]


class Scaled:
    """A memory-mapped image with a slope and an intercept, applied in float64 to what is indexed."""

    def __init__(self, raw: NDArray[Any], slope: float, inter: float) -> None:
        self.shape, self.ndim, self.dtype = raw.shape, raw.ndim, np.dtype(np.float64)
        self._raw, self._slope, self._inter = raw, slope, inter

    def __getitem__(self, key: Any) -> NDArray[np.float64]:
        return np.asarray(self._raw[key] * np.float64(self._slope) + self._inter)

    def reshape(self, *shape: int, order: Any) -> Scaled:
        """Another shape of the same map."""
        return Scaled(self._raw.reshape(*shape, order=order), self._slope, self._inter)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[...].astype(dtype or np.float64, copy=False)


def release(data: Any) -> None:
    """Give back the memory behind what was read of an `Image`'s data: pages of a map count as the process's own."""
    data = data._raw if isinstance(data, Scaled) else data
    while isinstance(data, np.ndarray):
        data = data.base
    if isinstance(data, mmap.mmap):
        data.madvise(mmap.MADV_DONTNEED)


def read_nii(path: File) -> Image:
    """
    A .nii memory-mapped; a .nii.gz unpacked to a nameless temporary file and mapped there.

    Raises
    ------
    FileNotFoundError, OSError
        No such file, or a folder; no space to unpack.
    ValueError
        Not NIfTI, damaged, complex or RGB, or an affine that is not finite or singular; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, not an image", str(path))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: an image must be .nii or .nii.gz")
    try:
        image: Any = nib.load(path)
        shape, dtype, offset = image.shape, image.get_data_dtype(), int(image.dataobj.offset)
        slope, inter, affine = image.dataobj.slope, image.dataobj.inter, np.asarray(image.affine, np.float64)
    except PermissionError:
        raise
    except Exception as error:  # nibabel, gzip and zlib have a dozen ways to say it
        raise ValueError(f"{path}: not a readable NIfTI image ({error})") from None
    if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image) or dtype.kind not in "iuf" or min(shape, default=0) < 1:
        kind = f"{type(image).__name__} of shape {shape} and type {dtype}"
        raise ValueError(f"{path}: a {kind}, not a NIfTI image of real numbers")
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{path}: the affine is not finite or is singular: {affine.tolist()}")
    size = offset + math.prod(shape) * dtype.itemsize
    with contextlib.ExitStack() as stack:
        source: Any = path
        if path.name.endswith(".gz"):
            require_space(tempfile.gettempdir(), size, f"unpack {path} (TMPDIR chooses the place)")
            source = stack.enter_context(tempfile.TemporaryFile())  # gone with its map, whatever happens
            try:
                shutil.copyfileobj(stack.enter_context(gzip.open(path)), source, 1 << 20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{path}: damaged or truncated ({error})") from None
            source.flush()
        found = path.stat().st_size if source is path else source.tell()
        if found < size:
            raise ValueError(f"{path}: truncated, holds {found} bytes where its header promises {size}")
        raw = np.memmap(source, dtype, "r", offset, shape, order="F")
    return Image(raw if (slope, inter) == (1, 0) else Scaled(raw, slope, inter), affine)


def load_dwi(path: File) -> Image:
    """A diffusion series, (x, y, z, n); errors as in `read_nii`."""
    image = read_nii(path)
    if image.data.ndim != 4:
        raise ValueError(f"{path}: a diffusion series has 4 dimensions, this image has shape {image.data.shape}")
    return image


def load_mask(path: File, shape: Sequence[int], affine: ArrayLike | None = None) -> Mask:
    """Mask of an image of any type, True where it is neither 0 nor NaN; another place than `affine` is warned of."""
    image = read_nii(path)
    values = np.asarray(image.data)
    if values.shape == (*shape, 1):
        values = values[..., 0]
    if values.shape != tuple(shape):
        raise ValueError(f"mask: {path} has shape {values.shape}, the data {tuple(shape)}")
    mask = np.asarray((values != 0) & ~np.isnan(values))
    if not mask.any():
        raise ValueError(f"mask: {path} is empty")
    if affine is not None and not np.allclose(image.affine, affine, atol=1e-3):
        log.warning("mask: %s and the data have different affines; voxels are matched by their indices", path)
    return mask


def prefix_of(source: File | None) -> str:
    """What output names start with: the source's name less its ending and `dwi`; "" where that is all."""
    stem = "dwi" if source is None else Path(source).name.removesuffix(".gz").removesuffix(".nii")
    return "" if stem == "dwi" else stem.removesuffix("_dwi")


def map_name(prefix: str, label: str, ending: str = ".nii.gz") -> str:
    """Name of a map after BIDS derivatives; without a label, of the fit's own JSON."""
    return "_".join(word for word in (prefix, MODEL, label and f"param-{label}", "dwimap") if word) + ending


def require_space(folder: File, size: int, purpose: str) -> None:
    """OSError (ENOSPC) unless `folder` has room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e6:.0f} MB needed to {purpose}, {free / 1e6:.0f} MB free", str(folder))


def check_output(folder: File, prefix: str, force: bool = False) -> None:
    """To be asked before a long fit: FileExistsError over old results, PermissionError where none can be written."""
    folder, stem = Path(folder), glob.escape(prefix)
    old = sorted([*folder.glob(map_name(stem, "*", ".*")), *folder.glob(map_name(stem, "", ".json"))])
    if old and not force:
        raise FileExistsError(errno.EEXIST, f"{len(old)} results are there already (force overwrites)", str(old[0]))
    _require_writable(folder)


def _require_writable(folder: Path) -> None:
    """PermissionError unless `folder`, or where it would be made, is a folder that can be written."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "not a folder that can be written", str(place))


@contextlib.contextmanager
def staged(folder: File, force: bool = False, within: Path | None = None) -> Iterator[Path]:
    """
    A hidden folder to write into; its files then move to `folder`, or an OSError tells why not and nothing stays.

    `within` is where to make it, default `folder` itself; it must be on the same disk.
    """
    folder = Path(folder).absolute()
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    stage = None
    try:
        _require_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".mapmri-", dir=within or folder))
        yield stage
        publish(stage, folder, force)
        made = []
    except OSError as error:
        text = f"cannot write results: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, text, error.filename or str(folder)) from error
    finally:
        if stage:
            shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


def publish(stage: Path, folder: Path, force: bool = False) -> None:
    """
    Move finished files from `stage` to `folder`, a fit's own JSON last: without it nothing is taken for a fit.

    An existing file is a FileExistsError without `force`; with it, a new fit removes all maps of the old one of its
    name. An existing dataset description stays.
    """
    models = sorted(stage.glob("*" + map_name("", "", ".json")))
    files = [file for file in sorted(stage.iterdir()) if file not in models] + models
    for target in (folder / file.name for file in files if file.name != DESCRIPTION):
        if target.exists() and not force:
            raise FileExistsError(errno.EEXIST, "not overwritten without force", str(target))
    for model in models if force else []:
        stem = glob.escape(model.name.removesuffix("_dwimap.json"))
        for old in (folder / model.name, *folder.glob(f"{stem}_param-*_dwimap.*")):
            old.unlink(missing_ok=True)
    for file in files:
        if file.name != DESCRIPTION or not (folder / DESCRIPTION).exists():
            os.replace(file, folder / file.name)


def write_json(path: Path, entries: dict[str, Any]) -> None:
    """JSON in the order given; arrays become lists, NaN is an error."""
    text = json.dumps(entries, indent=1, allow_nan=False, default=lambda value: np.asarray(value).tolist())
    path.write_text(text + "\n")


def write_description(stage: Path) -> None:
    """BIDS's description of a derivative data set."""
    by = [{"Name": "mapmri_nb", "Version": __version__}]
    entries = {"Name": "MAP-MRI fits", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": by}
    write_json(stage / DESCRIPTION, entries)


def write_nii(path: Path, pieces: Iterable[NDArray[Any]], shape: Sequence[int], dtype: Any, affine: ArrayLike) -> None:
    """
    NIfTI of up to four dimensions from consecutive pieces of its values (x runs fastest); same values, same bytes.

    Writing instead of mapping a new file: on a full disk this is an OSError, a touched map would kill the process.
    """
    if np.shape(affine) != (4, 4):
        raise ValueError(f"affine must have shape (4, 4), not {np.shape(affine)}")
    shape = (*shape, 1, 1)[: max(3, len(shape))]
    kind: Any = nib.Nifti1Header if max(shape) < 2**15 else nib.Nifti2Header
    header = kind()
    header["magic"] = header.single_magic
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_data_offset(header.single_vox_offset)
    header.set_sform(affine, code=2)
    header.set_qform(affine, code=2)
    header.set_xyzt_units("mm")
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(open(path, "wb"))
        if path.name.endswith(".gz"):
            stream = stack.enter_context(gzip.GzipFile("", "wb", GZIP_LEVEL, stream, mtime=0))
        stream.write(header.binaryblock.ljust(header.single_vox_offset, b"\0"))
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf
            for piece in pieces:
                stream.write(np.asarray(piece, dtype).tobytes("F"))


def row_positions(mask: Mask) -> NDArray[np.int64]:
    """Where in a file (x fastest) each row over the mask (C order) lies, (V,)."""
    return np.asarray(np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F"), np.int64)


def volumes(
    columns: Iterable[NDArray[Any]], where: NDArray[np.int64], size: int, dtype: Any, fill: float
) -> Iterator[NDArray[Any]]:
    """Columns (V,) as volumes in file order, one by one: values at `where`, `fill` elsewhere."""
    for column in columns:
        volume = np.full(size, fill, dtype)
        volume[where] = column
        yield volume


def write_maps(
    folder: File, prefix: str, maps: dict[str, NDArray[Any]], affine: ArrayLike, *, units: str = "mm", fill: float = np.nan,
    force: bool = False, sidecars: dict[str, dict[str, Any]] | None = None,
) -> list[Path]:  # fmt: skip
    """
    Volumes by name as float32 .nii.gz with sidecars, all or none; the paths of the images.

    Those of `INDICES` come in mm and are written in `units`, others as they are; `fill` replaces NaN;
    `sidecars` holds more JSON entries by name.
    """
    with staged(folder, force) as stage:
        names = stage_maps(stage, prefix, maps.items(), affine, units, fill, sidecars or {})
    return [Path(folder) / name for name in names]


def stage_maps(
    stage: Path, prefix: str, maps: Iterable[tuple[str, NDArray[Any]]], affine: ArrayLike, units: str, fill: float,
    sidecars: dict[str, dict[str, Any]],
) -> list[str]:  # fmt: skip
    """Volumes as `write_maps` writes them, one at a time, into a stage; the names of the images."""
    names = []
    for name, values in maps:
        base, mark, kind = name.partition("_desc-")  # of an index: its spread
        index = INDICES.get(base)
        label = (index.label if index else "".join(filter(str.isalnum, base))) + mark + kind
        factor = unit_factor(index.power if index else 0, units)
        pieces = np.moveaxis(values, -1, 0) if values.ndim > 3 else values[None]
        clean = (np.where(np.isnan(piece), fill, piece * factor) for piece in pieces)
        names.append(map_name(prefix, label))
        write_nii(stage / names[-1], clean, values.shape, np.float32, affine)
        entries: dict[str, Any] = {"Description": index.long_name, "Units": index.unit(units)} if index else {}
        entries |= {"FillValue": "NaN" if np.isnan(fill) else fill, **sidecars.get(name, {})}
        write_json(stage / map_name(prefix, label, ".json"), entries)
    write_description(stage)
    return names


def model_entries(options: dict[str, Any], gtab: GradientTable, shape: Sequence[int], **more: Any) -> dict[str, Any]:
    """The fit's own JSON less its parts; `more` entries: its sources and its run section."""
    isotropic = options["basis"] == "isotropic"
    table = (iso_index_table if isotropic else index_table)(int(options["radial_order"]))
    url = "https://doi.org/10.1016/j.neuroimage.2013.04.016"
    return {
        "Description": "MAP-MRI fit; lengths in mm, times in s",
        "FormatVersion": FORMAT_VERSION,
        "Software": {"Name": "mapmri_nb", "Version": __version__},
        "Model": {"Description": "Mean apparent propagator MRI", "URL": url, "Parameters": options},
        "CoefficientOrder": {"Indices": "j l m" if isotropic else "n1 n2 n3", "Table": table.tolist()},
        "Shape": list(shape),
        "GradientTable": gtab.to_dict(),
        **more,
    }


def run_section(**more: Any) -> dict[str, Any]:
    """What differs between two runs of the same job: date, versions and what the caller knows (seconds, threads)."""
    versions = {name: metadata.version(name) for name in ("numpy", "scipy", "numba", "osqp", "nibabel")}
    return {"Date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "Versions": versions, **more}


def save_fit(
    fit: MapmriFit, folder: File, *, affine: ArrayLike | None = None, prefix: str = "", force: bool = False,
    sources: Sequence[str] = (), run: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """
    A fit as a folder: an image per kind of row (float64, status int32), one JSON, the data set's description.

    `affine` (default: identity) maps voxels to scanner space; `prefix` as of `prefix_of`; `sources` names the input
    files; `run` goes into the JSON's run section.
    """
    rows, where = fit.rows(), row_positions(fit.mask)
    parts = (Part(key, v.dtype, v.shape[1:], v.reshape(len(v), math.prod(v.shape[1:])).T) for key, v in rows.items())
    more = {"Sources": list(sources), "Run": run_section(**(run or {}))}
    entries = model_entries(fit.options, fit.gtab, fit.mask.shape, **more)
    with staged(folder, force) as stage:
        require_space(stage, 8 * fit.mask.size * sum(math.prod(values.shape[1:]) for values in rows.values()), "save")
        stage_fit(stage, prefix, parts, where, entries, np.eye(4) if affine is None else affine)


class Part(NamedTuple):
    """One kind of row of a fit: `columns` are its values (V,), as many as the product of `tail`."""

    key: str
    dtype: np.dtype[Any]
    tail: tuple[int, ...]
    columns: Iterable[NDArray[Any]]


def stage_fit(
    stage: Path, prefix: str, parts: Iterable[Part], where: NDArray[np.int64], entries: dict[str, Any], affine: ArrayLike
) -> None:
    """A fit as `save_fit` writes it, one volume at a time, into a stage; `where` as of `row_positions`."""
    shape, files = tuple(entries["Shape"]), {}
    for key, dtype, tail, columns in parts:
        label, unit, text = PARTS.get(key, ("".join(filter(str.isalnum, key)), "arbitrary", key))
        whole = dtype.kind in "iub"
        kind, fill = (np.int32, OUTSIDE if key == "status" else 0) if whole else (np.float64, np.nan)
        name = map_name(prefix, label, ".nii" if tail else ".nii.gz")  # the large ones can be memory-mapped
        pieces = volumes(columns, where, math.prod(shape), kind, fill)
        write_nii(stage / name, pieces, (*shape, 1, 1)[:3] + ((math.prod(tail),) if tail else ()), kind, affine)
        levels = {"Levels": {str(flag.value): words for flag, words in MEANING.items()}} if key == "status" else {}
        write_json(stage / map_name(prefix, label, ".json"), {"Description": text, "Units": unit, **levels})
        files[key] = {"File": name, "Shape": list(tail)}
    write_json(stage / map_name(prefix, "", ".json"), entries | {"Parts": files})
    write_description(stage)


class SavedFit(NamedTuple):
    """What a fit's folder holds; `entries` is its JSON."""

    fit: MapmriFit
    affine: NDArray[np.float64]
    prefix: str
    entries: dict[str, Any]


def read_fit(folder: File, prefix: str | None = None, within: Mask | None = None) -> SavedFit:
    """
    A saved fit, its rows gathered from its memory-mapped images.

    Parameters
    ----------
    folder : the folder, or the fit's JSON in it. prefix : which fit, where the folder holds several.
    within : bool volume; voxels outside it are left out and not read.

    Raises
    ------
    FileNotFoundError, ValueError
        No fit, several, an unknown format version, or parts that do not go together.
    """
    model = _model_file(Path(folder), prefix)
    try:
        entries = json.loads(model.read_text())
        if entries["FormatVersion"] != FORMAT_VERSION:
            raise ValueError(f"format version {entries['FormatVersion']!r} is unknown, not {FORMAT_VERSION}")
        options, shape = entries["Model"]["Parameters"], tuple(entries["Shape"])
        gtab = GradientTable.from_dict(entries["GradientTable"])
        if entries["CoefficientOrder"] != model_entries(options, gtab, shape)["CoefficientOrder"]:
            raise ValueError("the coefficients are in an unknown order")
        images, tails = {}, {}
        for key, part in entries["Parts"].items():
            images[key], tails[key] = read_nii(model.with_name(part["File"])), part["Shape"]
            if images[key].data.size != math.prod((*shape, *tails[key])):
                raise ValueError(f"{part['File']} has shape {images[key].data.shape}, not {shape} and {tails[key]}")
        status, affine = images["status"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = error if type(error) is ValueError else f"not the JSON of a saved fit ({type(error).__name__}: {error})"
        raise ValueError(f"{model}: {reason}") from None
    mask = (np.asarray(status).reshape(shape) & OUTSIDE) == 0
    if within is not None and np.shape(within) != shape:
        raise ValueError(f"within: its shape {np.shape(within)} differs from the fit's {shape}")
    mask = mask if within is None else mask & within
    where, rows = row_positions(mask), {}
    for key, image in images.items():
        flat = image.data.reshape(mask.size, -1, order="F")
        rows[key] = np.empty((len(where), flat.shape[1]), np.int64 if flat.dtype.kind == "i" else np.float64)
        for k in range(flat.shape[1]):  # the file's own order
            rows[key][:, k] = flat[where, k]
        rows[key] = rows[key].reshape(len(where), *tails[key])
    prefix = model.name.removesuffix(map_name("", "", ".json")).removesuffix("_")
    return SavedFit(MapmriFit(rows, mask, options, gtab), affine, prefix, entries)


def _model_file(folder: Path, prefix: str | None) -> Path:
    """The JSON of the one fit in a folder, or of the one named."""
    models = [folder] if folder.is_file() else sorted(folder.glob("*" + map_name("", "", ".json"))) if prefix is None else []
    if len(models) > 1:
        raise ValueError(f"{folder} holds several fits, name one by its prefix: {[model.name for model in models]}")
    model = models[0] if models else folder / map_name(prefix or "", "", ".json")
    if not model.is_file():
        raise FileNotFoundError(errno.ENOENT, "no saved fit", str(model))
    return model


def load_fit(folder: File, prefix: str | None = None, within: Mask | None = None) -> MapmriFit:
    """The fit that `save_fit` wrote, bit for bit; arguments and errors as of `read_fit`."""
    return read_fit(folder, prefix, within).fit
