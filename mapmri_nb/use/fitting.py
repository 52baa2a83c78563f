"""The command ``mapmri-nb fit``, step by step; imports stand where they are used."""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .tables import arguments, table_of

log = logging.getLogger("mapmri_nb")
NO_OPTIONS = ("run", "command", "typed", "begun")  # of what the parser gives

Companions = dict[str, tuple[Path | None, Any]]  # file and numbers, by `MapmriModel.fit`'s names


@contextmanager
def compiling(run: dict[str, Any] | None = None) -> Iterator[None]:
    """Say so when a kernel is really compiled: not when it comes from the cache, and once. With
    `run`, keep the seconds that the compiler takes in it instead.
    """
    from numba.core import event

    from ..kernels._jit import CACHE_DIR

    class Listener(event.Listener):
        depth, start = 0, 0.0
        said = run is not None

        def on_start(self, event: Any) -> None:
            if not self.said:
                text = "compiling kernels, once per machine and version (into %s)"
                log.info(text, CACHE_DIR or "memory")
            self.said = True
            self.start = self.start if self.depth else time.perf_counter()
            self.depth += 1

        def on_end(self, event: Any) -> None:
            self.depth -= 1
            if run is not None and not self.depth:
                run["Compiling"] = round(run["Compiling"] + time.perf_counter() - self.start, 3)

    if run is not None:
        run["Compiling"] = 0.0
    with event.install_listener("numba:compile", Listener()):
        yield


def fit(args: argparse.Namespace) -> list[Path]:
    from ..kernels._jit import n_threads
    from . import folder, stream

    _check_together(args)
    run: dict[str, Any] = {}
    with compiling(run):
        job, keep, chosen = _job(args)
        job = job._replace(opening=max(0.0, job.opening - run["Compiling"]))
        engine = stream.on_threads(args.threads)
        if args.engine == "dask":
            from .distributed import on_cluster

            engine = on_cluster(args.scheduler, args.threads)
        start, progress = time.perf_counter(), not args.quiet and sys.stderr.isatty()
        told = {k: v for k, v in vars(args).items() if k not in NO_OPTIONS}
        told |= {"volumes": args.volumes and keep}
        told = {k: str(v) if isinstance(v, Path) else v for k, v in told.items()}
        run |= {"Threads": n_threads(args.threads), "Engine": args.engine, "Options": told}
        run |= {"Command": getattr(args, "typed", None), "Series": str(args.dwi.absolute())}
        run |= {"Volumes": keep.tolist()} if chosen else {}
        how = {"resume": args.resume, "force": args.force, "progress": progress, "run": run}
        status = stream.fit_series(job, engine, **how)
    if status is not None:
        _report(status, time.perf_counter() - start, args.out)
    if args.bootstrap or args.posterior:
        _error_bars(args, job)
    return folder.files(args.out, job.prefix)


def _check_together(args: argparse.Namespace) -> None:
    """Options that mean nothing without, or beside, each other: said before any reading."""
    if args.posterior and (args.bootstrap is not None or args.positivity != "none"):
        raise ValueError("--posterior goes with neither --bootstrap nor --positivity")
    if args.bootstrap is not None and args.bootstrap < 2:
        raise ValueError(f"--bootstrap needs at least 2 replicates, not {args.bootstrap}")
    if args.noise == "none" and (args.sigma is not None or args.coils != 1):
        name = "--sigma" if args.sigma is not None else "--coils"
        raise ValueError(f"{name} goes with --noise rician or denoised")
    if args.noise == "denoised" and args.sigma is None:
        raise ValueError("--noise denoised needs --sigma")
    if args.bootstrap is None and (args.reestimate or args.seed is not None):
        raise ValueError(f"{'--reestimate' if args.reestimate else '--seed'} goes with --bootstrap")
    if args.seed is not None and args.seed < 0:
        raise ValueError(f"--seed must not be negative: {args.seed}")
    if args.scheduler and args.engine != "dask":
        raise ValueError(f"--scheduler {args.scheduler} goes with --engine dask")


def _job(args: argparse.Namespace) -> tuple[Any, Any, bool]:
    """Everything read and checked: the job, the numbers of the volumes to be fitted, and whether
    these are a part of the series.
    """
    import numpy as np

    from .. import checks
    from ..indices import INDICES, select
    from ..model import MapmriModel
    from . import io, stream, summary

    start = time.perf_counter()
    image = io.load_dwi(args.dwi, header=True)
    count, more = image.data.shape[-1], _companions(args, image)
    idle = _idle(more["weights"][1]) if "weights" in more else False
    gtab, keep = table_of(args, args.dwi, image.affine, None, count, idle)
    if "grad_dev" in more:
        checks.field_frame(gtab.frame, image.affine)
    names = select(args.indices, args.basis)
    if (args.bootstrap or args.posterior) and INDICES.keys().isdisjoint(names):
        raise ValueError(f"--indices: error bars are of {', '.join(INDICES)}: name one of them")
    model = MapmriModel(gtab, **arguments(args, MapmriModel))
    if not more:  # loads or compiles the kernels, while the series is unpacked
        stream.values(model, names, np.exp(-1e-3 * gtab.bvals)[None], threads=1)
    image = io.load_dwi(args.dwi, begun=args.begun)
    opening = time.perf_counter() - start
    if chosen := len(keep) < count:
        image = image._replace(data=io.Chosen(image.data, keep))
        if "weights" in more:
            path, found = more["weights"]
            more["weights"] = path, found[keep] if found.ndim == 1 else io.Chosen(found, keep)
    if args.mask:
        mask = io.load_mask(args.mask, image.data.shape[:3], image.affine)
    else:
        mask = _usable(args.dwi, image.data, gtab)
    regions = summary.regions(mask, args.labels, image.affine)
    inputs = (args.dwi, args.mask, args.weights, args.grad_dev, args.sigma)
    sources = tuple(str(path.absolute()) for path in inputs if isinstance(path, Path))
    what = (model, args.dwi, image, mask, args.out, io.prefix_of(args.dwi), names)
    how = (args.units, float(args.fill), sources, more, opening, regions)
    return stream.Job(*what, *how), keep, chosen


def _report(status: Any, seconds: float, out: Path) -> None:
    """Say how many voxels (V,) were fitted, and how; a ValueError where none was."""
    from ..status import Status, in_words

    text = f"{len(status)} voxel{'s' * (len(status) != 1)} in {seconds:.1f} s; {in_words(status)}"
    if len(status) and ((status & Status.NO_FIT) != 0).all():
        raise ValueError(f"{text}. Their status is in {out}")
    log.info("%s; results in %s", text, out)


def _usable(path: Path, data: Any, gtab: Any) -> Any:
    """Mask of the voxels with signal at b = 0, for those who gave none."""
    import numpy as np

    mean = np.zeros(data.shape[:-1])
    for volume in np.flatnonzero(gtab.b0s_mask):
        mean += np.nan_to_num(np.asarray(data[..., volume]), posinf=0.0, neginf=0.0)
    mask = mean > 0
    if not mask.any():
        raise ValueError(f"{path}: no voxel has a positive signal at b = 0")
    text = "fitting %d of %d voxels, those with signal at b = 0: give a brain --mask"
    log.info(text, mask.sum(), mask.size)
    return mask


def _idle(weights: Any) -> Any:
    """Volumes (n,) whose weight is 0, in an image in every voxel."""
    import numpy as np

    if len(weights.shape) == 1:
        return weights == 0
    return np.array([not np.any(weights[..., k]) for k in range(weights.shape[-1])])


def _companions(args: argparse.Namespace, image: Any) -> Companions:
    """Weights, gradient non-linearity and sigma that go with a series."""
    import numpy as np

    from .. import checks
    from ..readers import read_numbers
    from . import io

    more: Companions = {}
    shape = image.data.shape[:3]
    wanted = {"weights": image.data.shape, "grad_dev": (*shape, 9), "sigma": (*shape, 1)}
    for name in wanted:
        path = getattr(args, name)
        if not isinstance(path, Path):
            continue
        if name == "weights" and not path.name.endswith((".nii", ".nii.gz")):
            found, wanted[name] = read_numbers(path).ravel(), image.data.shape[-1:]
        else:
            place, turn = checks.Given(*io.read_nii(path)), name != "grad_dev"
            found = checks.aligned(f"{name} {path}", place, shape, image.affine, turn)
            found = checks.squeezed(found, None, True)
            if name == "sigma" and found.shape == shape:
                found = np.asarray(found)[..., None]
        if found.shape != wanted[name]:
            text = f"{path} has shape {found.shape}, not {wanted[name]}"
            raise ValueError(f"--{name.replace('_', '-')}: {text}")
        more[name] = path, found
    if args.sigma is not None and not isinstance(args.sigma, Path):
        more["sigma"] = None, np.array([args.sigma])
    return more


def _error_bars(args: argparse.Namespace, job: Any) -> None:
    """Maps of sd and 95 % interval beside the index maps."""
    from ..indices import INDICES
    from . import folder, uncertainty

    start, options = time.perf_counter(), {name: found for name, (_, found) in job.more.items()}
    names = [name for name in job.names if name in INDICES]
    common = {"indices": names, "threads": args.threads, **options}
    entries: dict[str, Any] = {"Method": "Gaussian posterior of the coefficients"}
    if args.bootstrap:
        n, seed = args.bootstrap, args.seed or 0
        hold = not args.reestimate and uncertainty.held_by_default(job.model)
        entries = {"Method": "wild bootstrap, HC2", "Replicates": n, "Seed": seed}
        entries["Scales"] = "held" if hold else "estimated again"
        common |= {"n": n, "seed": seed, "hold": hold}
    spread = uncertainty.bootstrap if args.bootstrap else uncertainty.posterior
    found = spread(job.model, job.image.data, job.mask, **common)
    maps: dict[str, Any] = {}
    sidecars: dict[str, Any] = {}
    for name in names:
        interval = found.intervals[name][..., [0, 3]]
        maps |= {f"{name}_desc-sd": found.sd[name], f"{name}_desc-ci95": interval}
        sidecars[f"{name}_desc-sd"] = {"Statistic": "sd"} | entries
        sidecars[f"{name}_desc-ci95"] = {"Statistic": "95 % interval"} | entries
    how = {"units": args.units, "fill": float(args.fill), "force": args.force or args.resume}
    model = folder.model_section(job.model.options)
    where = (args.out, job.prefix, maps, job.image.affine)
    folder.write_maps(*where, sidecars=sidecars, model=model, **how)
    log.info("error bars in %.1f s", time.perf_counter() - start)
