"""Fits on a cluster: dask arrays lazily, and the command line's slabs."""

from __future__ import annotations

import errno
import json
import math
import time
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..fit import MapmriFit
from ..gradients import GradientTable
from ..indices import TABLE, select
from ..model import MapmriModel
from ..status import Status
from .stream import Engine, Slabs, Tables, layout, values

QUEUED = 2  # slabs per thread of the cluster that are on their way; more would only fill memory


def _spec(model: MapmriModel) -> str:
    """A model as text, which is what travels: tables are made where they are used."""
    return json.dumps({"gtab": model.gtab.to_dict(), "options": model.options})


@lru_cache(maxsize=4)
def _model(spec: str) -> MapmriModel:
    entries = json.loads(spec)
    return MapmriModel(GradientTable.from_dict(entries["gtab"]), **entries["options"])


def _values(
    spec: str, names: list[str], samples: dict[str, Any]
) -> tuple[NDArray[np.float64], float]:
    """In a worker: the values of a slab, and the seconds they took."""
    start = time.perf_counter()
    return values(_model(spec), names, samples, threads=1), time.perf_counter() - start


def on_cluster(scheduler: str | None = None, workers: int | None = None) -> Engine:
    """An engine for `stream.fit_series`: slabs go to the workers of a `distributed` cluster.

    scheduler : its address; default a cluster on this machine of `workers` processes (one per CPU),
        for this fit alone.
    The slab of a worker that dies is fitted by another; several deaths over one slab are an
    OSError.
    """

    def engine(model: MapmriModel, names: list[str], slabs: Slabs) -> Tables:
        import dask
        from distributed import Client, KilledWorker, LocalCluster, wait

        with ExitStack() as stack:
            settings = {"distributed.admin.large-graph-warning-threshold": "1 GB"}
            stack.enter_context(dask.config.set(settings))
            local = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
            local |= {"n_workers": workers}
            where = scheduler or stack.enter_context(LocalCluster(**local))
            client = stack.enter_context(Client(where))
            spec, running = _spec(model), dict[Any, int]()

            def finished(all_but: int) -> Tables:
                while len(running) > all_but:
                    for future in wait([*running], return_when="FIRST_COMPLETED").done:
                        yield running.pop(future), *future.result()

            try:
                # the samples are part of the task: it can be repeated elsewhere
                for slab, samples in slabs:
                    running[client.submit(_values, spec, names, samples, pure=False)] = slab
                    yield from finished(QUEUED * max(1, sum(client.nthreads().values())))
                yield from finished(0)
            except KilledWorker as error:
                text = f"workers died over one slab, again and again ({error})"
                raise OSError(errno.ECHILD, text) from error

    return engine


def _inside(mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(shape, bool)
    return checks.inside_of("mask", checks.given("mask", mask).data, shape)


def _block(
    data: NDArray[Any], inside: NDArray[np.bool_], spec: str, names: list[str], outside: list[float]
) -> Any:
    """In a worker: the values of a chunk as a volume, `outside` where the mask is not."""
    table = np.full((*inside.shape[:-1], len(outside)), outside)
    table[inside[..., 0]] = values(_model(spec), names, data[inside[..., 0]], threads=1).T
    return table


def fit(
    model: MapmriModel, data: Any, mask: ArrayLike | None = None, indices: str | list[str] = "all"
) -> dict[str, Any]:
    """Fit a dask array, lazily: nothing is computed before the volumes are.

    Parameters
    ----------
    data : dask array (..., n), or what becomes one, in any spatial chunks; a chunk is fitted at
        once, by the serial kernels.
    mask : bool (...), an array or a dask array, default all voxels.
    indices : names of the index maps to compute as well.

    Returns
    -------
    Dask arrays by name: coef (..., n_coef), mu, mu_tensor (..., 3), R (..., 3, 3), S0,
    laplacian_weight, status, ... as of `MapmriFit`, and the indices, all in mm; NaN outside the
    mask (status: `Status.OUTSIDE`). Bits are those of `MapmriModel.fit`.
    """
    import dask.array as da

    if data.shape[-1:] != (len(model.gtab),):
        text = f"data: its last axis must have the table's {len(model.gtab)} volumes"
        raise ValueError(f"{text}, its shape is {data.shape}")
    checks.given("data", data)
    names = select(indices, model.basis, {n: i for n, i in TABLE.items() if i.size == 1})
    data = da.asarray(data).rechunk({-1: -1})
    shape, chunks = data.shape[:-1], data.chunks[:-1]
    if isinstance(mask, da.Array):  # is not computed here
        if mask.dtype.kind not in "biu" or mask.shape != shape:
            text = f"mask: a dask array must be bool and of shape {shape}"
            raise TypeError(f"{text}, not {mask.dtype} and {mask.shape}")
        inside = mask.astype(bool)
    else:
        inside = da.asarray(_inside(mask, shape), chunks=chunks)
    kinds = layout(model) | {name: np.zeros(0) for name in names}
    outside: list[float] = []
    for name, row in kinds.items():
        fill = float(Status.OUTSIDE) if name == "status" else math.nan
        outside += [fill] * math.prod(row.shape[1:])
    more = {"spec": _spec(model), "names": names, "outside": outside}
    inside = inside.rechunk(chunks)[..., None]
    kind = {"dtype": np.float64, "chunks": (*chunks, (len(outside),)), "meta": np.empty(0)}
    table = da.map_blocks(_block, data, inside, **more, **kind)
    ends = np.cumsum([math.prod(row.shape[1:]) for row in kinds.values()])
    parts = np.split(np.arange(len(outside)), ends[:-1])
    return {
        name: table[..., part[0] : part[-1] + 1].reshape(*shape, *row.shape[1:]).astype(row.dtype)
        for (name, row), part in zip(kinds.items(), parts, strict=True)
    }


def collect(
    model: MapmriModel, volumes: dict[str, Any], mask: ArrayLike | None = None
) -> MapmriFit:
    """Compute what `fit` gave for `model` and `mask`, as a MapmriFit in this process."""
    import dask

    (found,) = dask.base.compute({name: volumes[name] for name in layout(model)})
    inside = _inside(mask, found["status"].shape)
    rows = {name: np.ascontiguousarray(volume[inside]) for name, volume in found.items()}
    return MapmriFit(rows, inside, model.options, model.gtab)
