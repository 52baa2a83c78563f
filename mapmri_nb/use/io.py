"""Images and masks, written whole or not at all. The only place that knows nibabel."""

from __future__ import annotations

import contextlib
import errno
import glob
import gzip
import json
import logging
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks, readers
from . import packed
from .names import DESCRIPTION, IGNORE
from .names import File as File
from .names import map_name as map_name
from .names import prefix_of as prefix_of

Mask = NDArray[np.bool_]

READ = 8_000_000  # bytes that are read at once

log = logging.getLogger(__name__)

# of maps: the file, and what makes an offset in it of an address
_FILES: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()

if TYPE_CHECKING:
    from .folder import load_fit as load_fit
    from .folder import load_map as load_map
    from .folder import read_fit as read_fit
    from .folder import save_fit as save_fit
    from .folder import write_maps as write_maps
else:

    def __getattr__(name: str) -> Any:
        """What `folder` offers under this room's name too."""
        if name in ("load_fit", "load_map", "read_fit", "save_fit", "write_maps"):
            from . import folder

            return getattr(folder, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Image(NamedTuple):
    """An image whose `data` (np.memmap, or `Scaled`) is read only where indexed."""

    data: Any
    affine: NDArray[np.float64]


class Scaled:
    """Memory-mapped image with a slope and an intercept, applied in float64 to what is indexed."""

    def __init__(self, raw: NDArray[Any], slope: float, inter: float) -> None:
        self.shape, self.ndim = raw.shape, raw.ndim
        self.dtype = np.dtype(np.float64)
        self._raw, self._slope = raw, slope
        self._inter = inter

    def __getitem__(self, key: Any) -> NDArray[np.float64]:
        return self.applied(self._raw[key])

    def applied(self, raw: NDArray[Any]) -> NDArray[np.float64]:
        """Slope and intercept on values of the file."""
        return np.asarray(raw * np.float64(self._slope) + self._inter)

    def reshape(self, *shape: int, order: Any) -> Scaled:
        """Another shape of the same map."""
        return Scaled(self._raw.reshape(*shape, order=order), self._slope, self._inter)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[...].astype(dtype or np.float64, copy=False)


class Chosen:
    """Some volumes of a series (..., n), each read only where indexed."""

    def __init__(self, data: Any, keep: NDArray[np.int64]) -> None:
        self.shape, self.ndim = (*data.shape[:-1], len(keep)), data.ndim
        self.dtype = data.dtype
        self._raw, self._keep = data, keep

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        whole = key[-1] is Ellipsis or (Ellipsis not in key[:1] and len(key) < self.ndim)
        if whole:  # the last axis is not named
            return np.asarray(np.asarray(self._raw[key])[..., self._keep])
        return np.asarray(self._raw[(*key[:-1], self._keep[key[-1]])])

    def reshape(self, *shape: int, order: Any) -> Chosen:
        """Another shape of the same series; its last axis stays the volumes."""
        shape = (*shape[:-1], self._raw.shape[-1])
        return Chosen(self._raw.reshape(*shape, order=order), self._keep)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[...].astype(dtype or self.dtype, copy=False)


def runs(data: Any, start: int, stop: int, volumes: Any = None) -> Iterator[NDArray[Any]]:
    """Voxels start to stop - 1, in file order, of some volumes after others (volumes, voxels) of an
    `Image`'s data (..., n), to be used before the next ones come. They are read, not mapped: mapped
    pages count as memory of the process, 2 MB for each place that is touched.
    """
    if isinstance(data, Chosen):
        yield from runs(data._raw, start, stop, data._keep)
    elif isinstance(data, Scaled):
        yield from map(data.applied, runs(data._raw, start, stop, volumes))
    else:
        flat = data.reshape(-1, data.shape[-1], order="F")
        known = getattr(flat, "_mmap", None)  # None of an array that is no map, or a copy
        file, shift = (None, 0) if known is None else _FILES.get(known, (None, 0))
        first = flat.ctypes.data + shift + start * flat.itemsize
        volumes = np.arange(flat.shape[1]) if volumes is None else volumes
        size = min(len(volumes), max(1, READ // ((stop - start) * flat.itemsize)))
        block = np.empty((size, stop - start), flat.dtype)
        for some in np.split(volumes, range(size, len(volumes), size)):
            for run, k in zip(block, some.tolist(), strict=False):
                if file is None:
                    run[:] = flat[start:stop, k]
                else:
                    _fill(run.view(np.uint8), file, first + k * flat.strides[1])
            yield block[: len(some)]


def _fill(run: NDArray[np.uint8], file: int, offset: int) -> None:
    """Bytes of a file from an offset on: all of `run`, or the OSError of a file that has fewer."""
    while len(run):
        if not (count := os.preadv(file, [run.data], offset)):
            raise OSError(errno.EIO, "the series became shorter while it was read")
        run, offset = run[count:], offset + count


def read_nii(path: File, header: bool = False, begun: packed.Result | None = None) -> Image:
    """A .nii memory-mapped; a .nii.gz unpacked to a nameless temporary file and mapped there, by
    what `packed.coming` has begun. With `header` zeros of its shape and type, which take no memory.

    Raises
    ------
    FileNotFoundError, OSError
        No such file, or a folder; no space to unpack.
    ValueError
        Not NIfTI, damaged, complex or RGB, or an affine that is not finite or singular; the message
        names the file.
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
        shape, dtype = image.shape, image.get_data_dtype()
        offset = int(image.dataobj.offset)
        slope, inter = image.dataobj.slope, image.dataobj.inter
        affine = np.asarray(image.affine, np.float64)
    except PermissionError:
        raise
    except Exception as error:  # nibabel, gzip and zlib have a dozen ways to say it
        raise ValueError(f"{path}: not a readable NIfTI image ({error})") from None
    kinds = nib.Nifti1Image | nib.Nifti2Image
    if not isinstance(image, kinds) or dtype.kind not in "iuf" or min(shape, default=0) < 1:
        kind = f"{type(image).__name__} of shape {shape} and type {dtype}"
        raise ValueError(f"{path}: a {kind}, not a NIfTI image of real numbers")
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{path}: the affine is not finite or is singular: {affine.tolist()}")
    if header:
        return Image(np.broadcast_to(np.zeros((), dtype), shape), affine)
    size = offset + math.prod(shape) * dtype.itemsize
    with contextlib.ExitStack() as stack:
        source: Any = path
        if path.name.endswith(".gz") and not (source := begun and begun()):
            text = f"unpack {path} (TMPDIR chooses the place)"
            require_space(tempfile.gettempdir(), size, text)
            source = stack.enter_context(tempfile.TemporaryFile())  # gone with its map
            try:
                with packed.packer().open(path) as inflated:
                    shutil.copyfileobj(inflated, source, 1 << 20)
                source.flush()
            except Exception as error:  # damage has a type in each of isal, gzip and zlib
                full = isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile)
                if full or isinstance(error, MemoryError):
                    raise
                raise ValueError(f"{path}: damaged or truncated ({error})") from None
        found = os.stat(source if source is path else source.fileno()).st_size
        if found < size:
            text = f"truncated, holds {found} bytes where its header promises {size}"
            raise ValueError(f"{path}: {text}")
        raw = np.memmap(source, dtype, "r", offset, shape, order="F")
        file = os.open(path, os.O_RDONLY) if source is path else os.dup(source.fileno())
        weakref.finalize(raw._mmap, os.close, file)  # type: ignore[attr-defined]  # NumPy omits it
        _FILES[raw._mmap] = file, offset - raw.ctypes.data  # type: ignore[attr-defined]  # as above
    return Image(raw if (slope, inter) == (1, 0) else Scaled(raw, slope, inter), affine)


def affine_of(path: File) -> NDArray[np.float64]:
    """The affine (4, 4) of an image, by its header alone."""
    image: Any = nib.load(path)
    return np.asarray(image.affine, np.float64)


def load_dwi(path: File, header: bool = False, begun: packed.Result | None = None) -> Image:
    """A diffusion series, (x, y, z, n), or (x, y, z, 1, n); as of `read_nii`."""
    image = read_nii(path, header, begun)
    image = image._replace(data=checks.squeezed(image.data, None, True))
    if image.data.ndim != 4:
        raise ValueError(f"{path}: a diffusion series has 4 axes, not shape {image.data.shape}")
    return image


def load_mask(path: File, shape: Sequence[int], affine: ArrayLike | None = None) -> Mask:
    """Mask of an image of any type for a series of `shape` and `affine`, inside as of
    `checks.inside_of`; compared, and turned to the series' axes, as of `checks.aligned`.
    """
    place = None if affine is None else np.asarray(affine, np.float64)
    values = checks.aligned(f"mask: {path}", checks.Given(*read_nii(path)), tuple(shape), place)
    return checks.inside_of(f"mask: {path}", values, tuple(shape))


def require_space(folder: File, size: int, purpose: str) -> None:
    """OSError (ENOSPC) unless `folder` has room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        text = f"{size / 1e6:.0f} MB needed to {purpose}, {free / 1e6:.0f} MB free"
        raise OSError(errno.ENOSPC, text, str(folder))


def require_writable(folder: Path) -> None:
    """PermissionError unless `folder`, or where it would be made, is a writable folder."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "not a folder that can be written", str(place))


@contextlib.contextmanager
def staged(folder: File, force: bool = False, within: Path | None = None) -> Iterator[Path]:
    """A hidden folder to write into; its files then move to `folder`, or an OSError tells why not
    and nothing stays.

    `within` is where to make it, default `folder` itself; it must be on the same disk.
    """
    folder = Path(folder).absolute()
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    stage = None
    try:
        require_writable(folder)
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
    """Move finished files from `stage` to `folder`, a fit's own JSON last: without it nothing is
    taken for a fit.

    An existing file is a FileExistsError without `force`; with it, a new fit removes all maps of
    the old one of its name. What describes the data set goes to its root, above the folders of
    subject, session and `dwi`; what is there stays as it is.
    """
    models = sorted(stage.glob("*" + map_name("", "", ".json")))
    files = [file for file in sorted(stage.iterdir()) if file not in models] + models
    shared = (DESCRIPTION, IGNORE)
    for target in (folder / file.name for file in files if file.name not in shared):
        if target.exists() and not force:
            raise FileExistsError(errno.EEXIST, "not overwritten without force", str(target))
    for model in models if force else []:
        stem = glob.escape(model.name.removesuffix("_dwimap.json"))
        for old in (folder / model.name, *folder.glob(f"{stem}_param-*_dwimap.*")):
            old.unlink(missing_ok=True)
    for file in files:
        target = (readers.levels(folder)[-1] if file.name in shared else folder) / file.name
        if file.name not in shared or not target.exists():
            os.replace(file, target)


def link(file: Path, name: Path) -> None:
    """Another name of a file; a copy where the disk knows no such names."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def write_json(path: Path, entries: dict[str, Any]) -> None:
    """JSON in the order given, each list or array on one line; NaN is an error."""
    path.write_text(_object(entries, "") + "\n", encoding="utf-8")


def _object(value: Any, pad: str) -> str:
    if not (isinstance(value, dict) and value):
        return json.dumps(value, allow_nan=False, default=lambda x: np.asarray(x).tolist())
    lines = (f"{pad} {json.dumps(k)}: {_object(v, pad + ' ')}" for k, v in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{pad}}}"


def nii_header(shape: Sequence[int], dtype: Any, affine: ArrayLike) -> bytes:
    """What a .nii of up to four dimensions begins with; its values follow, x fastest."""
    place = np.asarray(affine, np.float64)
    if place.shape != (4, 4):
        raise ValueError(f"affine must have shape (4, 4), not {place.shape}")
    if not np.isfinite(place).all() or np.linalg.det(place[:3, :3]) == 0:
        raise ValueError(f"affine is not finite or is singular: {place.tolist()}")
    shape = (*shape, 1, 1, 1)[: max(3, len(shape))]
    kind: Any = nib.Nifti1Header if max(shape) < 2**15 else nib.Nifti2Header
    header = kind()
    header["magic"] = header.single_magic
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_data_offset(header.single_vox_offset)
    header.set_sform(affine, code=2)
    header.set_qform(affine, code=2)
    header.set_xyzt_units("mm")
    return bytes(header.binaryblock.ljust(header.single_vox_offset, b"\0"))


def write_nii(
    path: Path, pieces: Iterable[NDArray[Any]], shape: Sequence[int], dtype: Any, affine: ArrayLike
) -> None:
    """NIfTI of up to four dimensions from consecutive pieces of its values (x runs fastest); same
    values, same bytes.

    Writing instead of mapping a new file: on a full disk this is an OSError, a touched map would
    kill the process.
    """
    header = nii_header(shape, dtype, affine)
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(open(path, "wb"))
        if path.name.endswith(".gz"):
            packer = packed.packer()
            make = gzip.GzipFile if packer is gzip else packer.IGzipFile
            level = packed.LEVELS[packer.__name__]
            stream = stack.enter_context(make("", "wb", level, stream, mtime=0))
        stream.write(header)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf
            for piece in pieces:
                stream.write(np.asarray(piece, dtype).ravel("F").view(np.uint8))


def row_positions(mask: Mask) -> NDArray[np.int64]:
    """Where in a file (x fastest) each row over the mask (C order) lies, (V,)."""
    mask = np.atleast_1d(mask)
    return np.asarray(np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F"), np.int64)


def volumes(
    columns: Iterable[NDArray[Any]], where: NDArray[np.int64], size: int, dtype: Any, fill: float
) -> Iterator[NDArray[Any]]:
    """Columns (V,) as volumes in file order, values at `where`, `fill` elsewhere: one array, to be
    used before the next one comes.
    """
    volume = np.full(size, fill, dtype)
    for column in columns:
        volume[where] = column
        yield volume
