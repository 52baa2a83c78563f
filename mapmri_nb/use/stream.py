"""A whole series slab by slab: read, fitted, kept on disk, in the end written; what an interruption
left is taken up.

Memory does not grow with the number of volumes: a slab of rows (and what a fit of it needs), the
mask, and some volumes of float64, about 60 bytes a voxel. Maps and coefficients are those of
`MapmriFit`, byte for byte.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import __version__, checks, options, scales
from ..fit import finished
from ..indices import TABLE
from ..kernels.blocks import VOXELS
from ..model import MapmriModel, progress_bar
from . import folder, io, summary

Array = NDArray[np.float64]
# number of a slab, and its data (v, n), weights, grad_dev and sigma where there are such
Slabs = Iterator[tuple[int, dict[str, Any]]]
# number of a slab, its values (columns, v), seconds that the fit took
Tables = Iterator[tuple[int, Array, float]]
Engine = Callable[[MapmriModel, list[str], Slabs], Tables]

# voxels: what an interruption costs; several are in memory. A power of two would put the samples of
# a voxel on the same lines of the cache.
SLAB = 4000
PARTS = 16  # slabs at least, so that all threads have some, but of a block each
SYNC = 1.0  # s between two entries in the journal: to wait for the disk may take long
PACE = 4  # slabs, after the first, that an estimate of the time is made from
KINDS = ("Reading", "Fitting", "Writing")  # of seconds
PUBLISH = ["publish"]  # in the journal: from here on results of this very fit may lie in the folder

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """What is to be fitted and where to."""

    model: MapmriModel
    source: Path  # the series' file
    image: io.Image  # the same, opened
    mask: NDArray[np.bool_]
    folder: Path
    prefix: str
    names: list[str]  # of the index maps, as `units` and `fill`
    units: str = "mm"
    fill: float = math.nan
    sources: tuple[str, ...] = ()  # the input files, for the JSON
    # weights, grad_dev, sigma: file (None: a number), and its numbers (n,) or image (x, y, z, n)
    more: dict[str, tuple[Path | None, Any]] = {}  # noqa: RUF012 - read only
    opening: float = 0.0  # seconds that opening the series took, unpacking included
    regions: dict[str, NDArray[np.bool_]] = {}  # noqa: RUF012 - of the summary; default the mask

    def key(self) -> dict[str, Any]:
        """What the results depend on; two fits with one key are one fit."""
        entries = {
            "version": [__version__, SLAB, "images"],
            "series": _stamp(self.source),
            "gradient table": _digest(json.dumps(self.model.gtab.to_dict()).encode()),
            "mask": _digest(np.packbits(self.mask).tobytes()),
            "model": self.model.options,
            "indices": [self.names, self.units, str(self.fill)],
            "sources": [Path(source).name for source in self.sources],
        }
        entries |= {k: _stamp(path) if path else x.tolist() for k, (path, x) in self.more.items()}
        return dict(json.loads(json.dumps(entries, default=lambda x: np.asarray(x).tolist())))


def _stamp(path: Path) -> list[Any]:
    with path.open("rb") as stream:
        head = stream.read(4096)  # the header, and of a packed series some data
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, _digest(head)]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _write(file: int, content: memoryview | bytes, offset: int) -> None:
    """All of it, or the OSError of a full disk."""
    view = memoryview(content).cast("B")
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _slab(count: int) -> int:
    """Voxels of a slab of a job of `count`: whole blocks, but for tests."""
    return min(SLAB, VOXELS * max(1, -(-count // (PARTS * VOXELS))))


class Store:
    """A hidden folder with the finished slabs of a job.

    `parts` are name, number and header of the columns: with a header they are volumes of an image
    of float64, NaN outside the mask, as in the results; without, runs of float64 in `rows`.
    `journal` has the key and a line per slab, written once its values are on the disk, at most
    every SYNC seconds. As a context the folder is removed when all went well, or when there is
    nothing in it worth keeping. `where` (V,) are the voxels' places in an image of `size`.
    """

    def __init__(
        self, folder: Path, key: dict[str, Any], where: NDArray[np.int64], size: int,
        parts: list[tuple[str, int, bytes]], resume: bool,
    ) -> None:  # fmt: skip
        self.folder, self.count = folder, len(where)
        self._where, self._size = where, size
        self.slab, self._key = _slab(self.count), key
        self._heads = {f"{name}.nii": head for name, _, head in parts if head}
        self._columns: list[tuple[str, int]] = []  # file of each, and where in it
        rows = itertools.count()
        for name, count, head in parts:
            for k in range(count):
                at = len(head) + 8 * k * size if head else 8 * next(rows) * self.count
                self._columns.append((f"{name}.nii" if head else "rows", at))
        self.seconds: dict[int, list[float]] = {}  # of finished slabs: reading, fitting, writing
        self._waiting: list[int] = []  # those not in the journal yet
        self._synced = time.perf_counter()
        self._made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = os.open(folder / "journal", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._journal)
            text = "another process is fitting into this folder"
            raise FileExistsError(errno.EEXIST, text, str(folder)) from None
        found = os.pread(self._journal, os.fstat(self._journal).st_size, 0) if resume else b""
        found = found[: found.rfind(b"\n") + 1]  # the last line may be torn
        os.ftruncate(self._journal, len(found))
        self._end = len(found)
        if found:
            self._take_up([json.loads(line) for line in found.splitlines()])
        for name in self._heads if not found else ():  # may be results by now
            (folder / name).unlink(missing_ok=True)
        how = os.O_RDWR | os.O_CREAT
        self._files = {n: os.open(folder / n, how, 0o666) for n in ("rows", *self._heads)}
        for stage in folder.glob(".mapmri-*"):  # of a fit that was killed while it wrote results
            shutil.rmtree(stage)

    def _take_up(self, notes: list[Any]) -> None:
        changed = [name for name, value in self._key.items() if notes[0].get(name) != value]
        if changed:
            os.close(self._journal)
            text = f"resume: changed since the fit was interrupted: {', '.join(changed)}"
            raise ValueError(f"{text}; undo that, or start anew with force ({self.folder})")
        self.seconds = {slab: seconds for slab, *seconds in notes[1:] if [slab] != PUBLISH}

    def note(self, *entries: Any) -> None:
        """Lines of the journal, after its key, on the disk when this returns."""
        entries = entries if self._end else (self._key, *entries)
        lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
        _write(self._journal, lines, self._end)
        os.fsync(self._journal)
        self._end += len(lines)

    def put(self, slab: int, table: Array, reading: float, fitting: float) -> int:
        """Keep the values (columns, v) of a slab; v."""
        start = time.perf_counter()
        first, stop = slab * self.slab, min((slab + 1) * self.slab, self.count)
        begin = int(self._where[first]) if slab else 0  # of the slab's part of an image
        end = int(self._where[stop]) if stop < self.count else self._size
        piece, inside = np.full(end - begin, np.nan), self._where[first:stop] - begin
        for name, head in self._heads.items() if not slab else ():
            _write(self._files[name], head, 0)
        for (name, at), run in zip(self._columns, table, strict=True):
            if name == "rows":
                _write(self._files[name], np.ascontiguousarray(run).data, at + 8 * first)
            else:
                piece[inside] = run
                _write(self._files[name], piece.data, at + 8 * begin)
        self.seconds[slab] = [reading, fitting, time.perf_counter() - start]
        self._waiting.append(slab)
        if time.perf_counter() - self._synced >= SYNC:
            self.sync()
        return stop - first

    def sync(self) -> None:
        """All that was put is on the disk, and in the journal, when this returns."""
        if self._waiting:
            for file in self._files.values():
                os.fsync(file)
            self.note(*([k, *np.round(self.seconds[k], 4).tolist()] for k in self._waiting))
            self._waiting = []
        self._synced = time.perf_counter()

    def column(self, k: int) -> Array:
        """Values (V,) of a column, in file order."""
        name, at = self._columns[k]
        count = self.count if name == "rows" else self._size
        found = np.fromfile(self.folder / name, np.float64, count, offset=at)
        return found if name == "rows" else found[self._where]

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: Any, *more: Any) -> None:
        if kind:
            with suppress(OSError):
                self.sync()
        for file in self._files.values():
            os.close(file)
        if kind and (kept := len(self.seconds) - len(self._waiting)):
            whole = -(-self.count // self.slab)
            log.warning("%d of %d slabs are kept in %s for resume", kept, whole, self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            for parent in self._made[1:] if kind else []:
                if not any(parent.iterdir()):
                    parent.rmdir()
        os.close(self._journal)  # and with it the lock


def layout(model: MapmriModel) -> dict[str, NDArray[Any]]:
    """Rows of a fit of no voxel: names, shapes and types."""
    return model.fit(np.zeros((0, len(model.gtab)))).rows()


def values(model: MapmriModel, names: list[str], samples: Any, threads: int | None = None) -> Array:
    """Everything that is kept of voxels (v, n), or of a slab: rows of the fit, then indices,
    (columns, v).
    """
    samples = samples if isinstance(samples, dict) else {"data": samples}
    fit = model.fit(**samples, threads=threads, quiet=True)
    rows = [row.reshape(len(fit.status), math.prod(row.shape[1:])).T for row in fit.rows().values()]
    found = [fit.index_rows(name) for name in names]
    maps = [row.reshape(len(row), math.prod(row.shape[1:])).T for row in found]
    return np.concatenate([*rows, *maps])


def on_threads(threads: int | None) -> Engine:
    """The engine of one machine: each of `threads` fits a slab of its own."""

    def engine(model: MapmriModel, names: list[str], slabs: Slabs) -> Tables:
        count = options.thread_count(threads)

        def fitted(slab: int, samples: dict[str, Any]) -> tuple[int, Array, float]:
            start = time.perf_counter()
            table = values(model, names, samples, threads=1)
            return slab, table, (time.perf_counter() - start) / count

        return folder.side_by_side(fitted, slabs, count)

    return engine


def _read(
    inputs: dict[str, Any],
    where: NDArray[np.int64],
    size: int,
    todo: list[int],
    reading: dict[int, float],
    odd: list[Any],
) -> Slabs:
    """Samples of the slabs to do, of `size` voxels each, from runs of each volume; `where` are
    positions in the file. `odd` adds up what `checks.count_odd` finds.
    """
    for slab in todo:
        start = time.perf_counter()
        at = where[slab * size : (slab + 1) * size]
        samples = {k: _rows(x, at) if len(x.shape) > 1 else x for k, x in inputs.items()}
        reading[slab] = time.perf_counter() - start
        odd[:] = (a + b for a, b in zip(odd, checks.count_odd(samples["data"]), strict=True))
        yield slab, samples


def _rows(data: Any, at: NDArray[np.int64]) -> NDArray[Any]:
    """Samples (v, n) of voxels at some places of a file, in the order and type of the file."""
    samples = np.empty((data.shape[-1], len(at)), data.dtype.newbyteorder("="))
    cuts = [0, *(np.flatnonzero(np.diff(at) > 1) + 1).tolist(), len(at)]
    first, inside = 0, (at - at[0]).tolist()
    for block in io.runs(data, int(at[0]), int(at[-1]) + 1):
        part = samples[first : first + len(block)]
        for k, stop in itertools.pairwise(cuts):  # neighbours along x
            part[:, k:stop] = block[:, inside[k] : inside[stop - 1] + 1]
        first += len(block)
    return samples.T


def fit_series(
    job: Job,
    engine: Engine,
    *,
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
    run: dict[str, Any],
) -> NDArray[np.int64] | None:
    """Fit a series into a folder, as `save_fit` and `write_maps` would, all files at once.

    Parameters
    ----------
    engine : what fits the slabs, in any order: `on_threads`, or that of `distributed`.
    resume : go on with an interrupted fit of the same job, if there is one. force : overwrite what
        is there.
    run : more entries for the run section of the JSON, taken when the fit is done. The section also
        tells the seconds spent on reading, fitting, writing.

    Returns status (V,) in file order (x fastest; the rows of a fit are in C order), or None where
    `resume` found the job done. Raises FileExistsError where results or an interrupted fit are
    there, ValueError where input or options changed since the interruption.
    """
    key = job.key()
    digest = _digest(json.dumps(key).encode())
    hidden = job.folder / ("." + io.map_name(job.prefix, "", ".partial"))
    journal, done = hidden / "journal", job.folder / io.map_name(job.prefix, "", ".json")
    notes = journal.read_bytes() if journal.exists() else b""
    past = json.loads(done.read_text()) if resume and not notes and done.exists() else {}
    if past.get("Run", {}).get("Job") == digest:
        log.info("nothing to resume: the fit is in %s", job.folder)
        return None
    if notes and not (resume or force):
        text = "an interrupted fit is there (resume goes on, force starts anew)"
        raise FileExistsError(errno.EEXIST, text, str(hidden))
    force |= resume and json.dumps(PUBLISH).encode() in notes  # what is there is its own
    folder.check_output(job.folder, job.prefix, force)
    blank = layout(job.model) | ({"field": np.zeros((0, 3, 3))} if "grad_dev" in job.more else {})
    inputs = {"data": job.image.data} | {name: image for name, (_, image) in job.more.items()}
    where = np.flatnonzero(job.mask.ravel(order="F"))
    affine, shape = job.image.affine, job.mask.shape

    def head(tail: tuple[int, ...]) -> bytes:
        return io.nii_header(folder.image_shape(shape, tail), np.float64, affine) if tail else b""

    parts = [(n, math.prod(row.shape[1:]), head(row.shape[1:])) for n, row in blank.items()]
    parts += [(name, TABLE[name].size, b"") for name in job.names]
    with (
        Store(hidden, key, where, job.mask.size, parts, resume) as store,
        progress_bar(len(where), progress) as advance,
    ):
        advance(min(len(where), store.slab * len(store.seconds)))
        left = max(0.0, 1 - store.slab * len(store.seconds) / len(where))
        volumes = sum(size * (left if head else 1 + left) for _, size, head in parts)
        io.require_space(hidden, int(8 * job.mask.size * volumes), "fit")
        count = -(-len(where) // store.slab)
        todo = [slab for slab in range(count) if slab not in store.seconds]
        reading: dict[int, float] = {}
        odd: list[Any] = [0, 0, 0]
        slabs = _read(inputs, where, store.slab, todo, reading, odd)

        def tables() -> Iterator[tuple[int, Array, float, float]]:
            begun = 0.0
            for k, (slab, table, seconds) in enumerate(engine(job.model, job.names, slabs)):
                if k == PACE and len(todo) > 2 * PACE:
                    rest = (time.perf_counter() - begun) / PACE * (len(todo) - k)
                    log.info("%d voxels: about %.0f s to go", len(where), rest)
                begun = begun if k else time.perf_counter()  # the first one compiles
                yield slab, table, reading.pop(slab), seconds

        for voxels in folder.side_by_side(store.put, tables(), 1):
            advance(voxels)
        names = [name for name, size, _ in parts for _ in range(size)]  # of the columns

        def columns(name: str) -> Iterator[Array]:
            return (store.column(k) for k, found in enumerate(names) if found == name)

        status = next(columns("status")).astype(np.int64)
        if todo:
            job.model.judge_samples(*odd)
            mu, noise = np.stack([*columns("mu_tensor")], 1), None
            if "sigma" in names:
                noise = next(columns("sigma")) / next(columns("S0"))
            scales.judge(status, mu, job.model, noise)
        start = time.perf_counter()
        seconds = np.sum([[job.opening, 0.0, 0.0], *store.seconds.values()], 0).tolist()
        spent = dict(zip(KINDS, seconds, strict=True))

        def part(name: str, row: NDArray[Any]) -> folder.Part:
            ready = store.folder / f"{name}.nii" if row.ndim > 1 else columns(name)
            return folder.Part(name, row.dtype, row.shape[1:], ready)

        def written() -> None:  # all but the JSON, which says so
            spent["Writing"] += time.perf_counter() - start
            spent.update({kind: round(seconds, 3) for kind, seconds in spent.items()})

        def maps() -> Iterator[tuple[str, Array]]:  # as rows
            for name in job.names:
                found = np.stack([*columns(name)], -1)
                found = found if TABLE[name].size > 1 else found[:, 0]
                yield name, finished(name, found, affine, job.model.gtab.frame)

        with io.staged(job.folder, force, within=hidden) as stage:
            model = folder.model_section(job.model.options)
            rows: summary.Rows = []
            regions = job.regions or {"mask": job.mask}
            within = {name: inside.ravel(order="F")[where] for name, inside in regions.items()}
            given = summary.gathered(maps(), within, job.units, rows)
            how: dict[str, Any] = {"units": job.units, "fill": job.fill, "model": model}
            how |= {"place": (where, shape)}
            to = stage, job.prefix
            with ThreadPoolExecutor(1) as beside:
                staged = beside.submit(folder.stage_maps, *to, given, affine, **how)
                counts = {"Slabs": len(store.seconds), "FittedNow": len(todo), "Job": digest}
                more: dict[str, Any] = {"Sources": list(job.sources)}
                more["Run"] = folder.run_section(Seconds=spent, **counts, **run)
                of = job.model.options, job.model.gtab, shape
                entries = folder.model_entries(*of, **more)
                pieces = map(part, blank, blank.values())
                folder.stage_fit(*to, pieces, where, entries, affine, written)
                staged.result()
            summary.write(stage / summary.name_of(job.prefix), rows)
            store.note(PUBLISH)
        return status
