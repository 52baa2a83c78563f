"""What each command of ``mapmri-nb`` does; everything heavy is imported where it is used."""

import argparse
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger("mapmri_nb")

SAMPLE_NOTES = (
    "small101d (BSD-3-Clause, from DIPY): its pulse timing was never published. Delta 48.8 ms and delta 30 ms are",
    "  ASSUMED, and every index with a length in it scales with them.",
    "catcord (MIT as packaged in dmipy 1.0.5, upstream terms not verified): cite Duval et al., ISMRM 2016.",
)


WARMUP_MODES: tuple[dict[str, Any], ...] = (
    {},
    {"basis": "isotropic"},
    {"positivity": "grid"},
    {"positivity": "global"},
)


def _table(args: argparse.Namespace, beside: Path) -> Any:
    """
    Gradient table from the files named, or from those beside a series; deltas on the command line
    go first.
    """
    from ..gradients import GradientTable

    files = {"bval": args.bval, "bvec": args.bvec, "json": args.json}
    return GradientTable.from_bids(
        beside, **files, big_delta=args.big_delta, small_delta=args.small_delta
    )


def _usable(path: Path, data: Any, gtab: Any) -> Any:
    """Mask of the voxels with signal at b = 0, for those who gave none."""
    import numpy as np

    mean = np.zeros(data.shape[:-1])
    for volume in np.flatnonzero(gtab.b0s_mask):
        mean += np.nan_to_num(np.asarray(data[..., volume]), posinf=0.0, neginf=0.0)
    mask = mean > 0
    if not mask.any():
        raise ValueError(f"{path}: no voxel has a positive signal at b = 0")
    log.info(
        "fitting %d of %d voxels, those with signal at b = 0: give a brain --mask",
        mask.sum(),
        mask.size,
    )
    return mask


def _check_together(args: argparse.Namespace) -> None:
    """
    Options of `fit` that mean nothing without, or beside, each other: said before anything is read.
    """
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


def fit(args: argparse.Namespace) -> None:
    from ..indices import select
    from ..model import MapmriModel
    from ..status import MEANING, Status
    from . import io, stream

    _check_together(args)
    start = time.perf_counter()
    image, prefix = io.load_dwi(args.dwi), io.prefix_of(args.dwi)
    opening = time.perf_counter() - start
    gtab = _table(args, args.dwi)
    names = select(args.indices, args.basis)
    options = {
        name: getattr(args, name)
        for name in (
            "radial_order", "basis", "laplacian", "solver", "bval_threshold", "eigenvalue_threshold",
            "laplacian_of", "preset", "coils",
        )
    }  # fmt: skip
    options |= {"S0": args.s0, "noise": None if args.noise == "none" else args.noise}
    model = MapmriModel(
        gtab, positivity=None if args.positivity == "none" else args.positivity, **options
    )
    if len(gtab) != image.data.shape[-1]:
        raise ValueError(
            f"{args.dwi} has {image.data.shape[-1]} volumes, its gradient table {len(gtab)}"
        )
    mask = (
        io.load_mask(args.mask, image.data.shape[:3], image.affine)
        if args.mask
        else _usable(args.dwi, image.data, gtab)
    )
    more = _distortions(args, image)
    sources = tuple(
        path.name
        for path in (args.dwi, args.mask, args.weights, args.grad_dev, args.sigma)
        if isinstance(path, Path)
    )
    job = stream.Job(
        model,
        args.dwi,
        image,
        mask,
        args.out,
        prefix,
        names,
        args.units,
        float(args.fill),
        sources,
        more,
        opening,
    )
    engine = stream.on_threads(args.threads)
    if args.engine == "dask":
        from .distributed import on_cluster

        engine = on_cluster(args.scheduler, args.threads)
    start, progress = time.perf_counter(), not args.quiet and sys.stderr.isatty()
    run = {"Threads": args.threads, "Engine": args.engine}
    status = stream.fit_series(
        job, engine, resume=args.resume, force=args.force, progress=progress, run=run
    )
    if status is not None:
        counts = {
            flag.name: int(((status & flag) != 0).sum()) for flag in (*MEANING, Status.NO_FIT)
        }
        notes = "".join(f"; {count} {name}" for name, count in counts.items() if count)
        level = logging.WARNING if counts["NO_FIT"] == len(status) else logging.INFO
        log.log(
            level,
            "%d voxels in %.1f s%s; results in %s",
            len(status),
            time.perf_counter() - start,
            notes,
            args.out,
        )
    if args.bootstrap or args.posterior:
        _error_bars(args, job)


def _distortions(args: argparse.Namespace, image: Any) -> dict[str, tuple[Path | None, Any]]:
    """
    Weights, gradient non-linearity and sigma by the names that `MapmriModel.fit` has for them: file and
    numbers.
    """
    import numpy as np

    from ..readers import read_numbers
    from . import io

    more: dict[str, tuple[Path | None, Any]] = {}
    wanted = {"weights": image.data.shape, "grad_dev": (*image.data.shape[:3], 9)}
    for name, path in (("weights", args.weights), ("grad_dev", args.grad_dev)):
        if path is None:
            continue
        if name == "weights" and not path.name.endswith((".nii", ".nii.gz")):
            found, wanted[name] = read_numbers(path).ravel(), image.data.shape[-1:]
        else:
            found = io.load_dwi(path).data
        if found.shape != wanted[name]:
            raise ValueError(
                f"--{name.replace('_', '-')}: {path} has shape {found.shape}, not {wanted[name]}"
            )
        more[name] = path, found
    if isinstance(args.sigma, Path):
        found, shape = np.asarray(io.read_nii(args.sigma).data), image.data.shape[:3]
        if found.shape not in (shape, (*shape, 1)):
            raise ValueError(f"--sigma: {args.sigma} has shape {found.shape}, not {shape}")
        more["sigma"] = args.sigma, found.reshape(*shape, 1)
    elif args.sigma is not None:
        more["sigma"] = None, np.array([args.sigma])
    return more


def _error_bars(args: argparse.Namespace, job: Any) -> None:
    """Maps of sd and 95 % interval beside the index maps."""
    from . import folder, uncertainty

    start, options = time.perf_counter(), {name: found for name, (_, found) in job.more.items()}
    common = {"indices": job.names, "threads": args.threads, **options}
    entries: dict[str, Any] = {"Method": "Gaussian posterior of the coefficients"}
    if args.bootstrap:
        entries = {
            "Method": "wild bootstrap, HC2",
            "Replicates": args.bootstrap,
            "Seed": args.seed or 0,
        }
        entries["Scales"] = "estimated again" if args.reestimate else "held"
        common |= {"n": args.bootstrap, "seed": args.seed or 0, "hold": not args.reestimate}
    spread = uncertainty.bootstrap if args.bootstrap else uncertainty.posterior
    found = spread(job.model, job.image.data, job.mask, **common)
    maps, sidecars = {}, {}
    for name in job.names:
        for kind, values, what in (
            ("sd", found.sd[name], "sd"),
            ("ci95", found.intervals[name][..., [0, 3]], "95 % interval"),
        ):
            maps[f"{name}_desc-{kind}"] = values
            sidecars[f"{name}_desc-{kind}"] = {"Statistic": what, **entries}
    units: dict[str, Any] = {
        "units": args.units,
        "fill": float(args.fill),
        "force": args.force or args.resume,
    }
    folder.write_maps(args.out, job.prefix, maps, job.image.affine, sidecars=sidecars, **units)
    log.info("error bars in %.1f s", time.perf_counter() - start)


def indices(args: argparse.Namespace) -> None:
    from ..indices import select
    from . import folder

    fit, affine, prefix, _ = folder.read_fit(args.dir)
    maps, out = (
        {name: fit.index(name) for name in select(args.indices, fit.options["basis"])},
        args.out or args.dir,
    )
    folder.write_maps(
        out, prefix, maps, affine, units=args.units, fill=float(args.fill), force=args.force
    )
    log.info("%d maps in %s", len(maps), out)


def odf(args: argparse.Namespace) -> None:
    """
    Harmonics and peaks, turned from the frame of the b-vectors into scanner axes, as MRtrix wants
    them.
    """
    import numpy as np

    from ..gradients import to_scanner
    from . import folder
    from .directions import sh_rotation

    fit, affine, prefix, _ = folder.read_fit(args.dir)
    coef = fit.odf_sh(s=args.s, sh_order=args.sh_order, sh_basis=args.sh_basis)
    F = to_scanner(np.eye(3), affine, fit.gtab.frame).T
    vectors, heights = fit.peaks(s=args.s)
    peaks = to_scanner(vectors, affine, fit.gtab.frame) * heights[..., None]
    maps = {
        "odf": coef @ sh_rotation(F, args.sh_order, args.sh_basis).T,
        "peaks": peaks.reshape(*fit.mask.shape, -1),
    }
    basis = "MRtrix3" if args.sh_basis == "tournier07" else args.sh_basis
    axes = {"EncodingAxis": 3, "Reference": "xyz", "AntipodalSymmetry": True}
    sh = {"Type": "sh", "SphericalHarmonicBasis": basis, "SphericalHarmonicDegree": args.sh_order}
    text = f"ODF, radial moment s = {args.s:g}, scanner (RAS) axes"
    sidecars = {"odf": {"Description": text, "OrientationEncoding": axes | sh}}
    text = f"peaks of the {text}; length: height"
    sidecars["peaks"] = {"Description": text, "OrientationEncoding": axes | {"Type": "3vector"}}
    folder.write_maps(
        args.out or args.dir, prefix, maps, affine, force=args.force, sidecars=sidecars
    )


def predict(args: argparse.Namespace) -> None:
    import numpy as np

    from . import folder, io

    if not args.out.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"--out: {args.out} is neither .nii nor .nii.gz")
    if (args.bval is None) != (args.bvec is None):
        raise ValueError("--bval and --bvec go together; without both, the fit's own table is used")
    lonely = [
        name
        for name in ("json", "big_delta", "small_delta")
        if not args.bval and getattr(args, name) is not None
    ]
    if lonely:
        raise ValueError(
            f"--{lonely[0].replace('_', '-')} goes with --bval and --bvec: the fit's own table has its own timing"
        )
    saved = folder.read_fit(args.dir)
    signal = saved.fit.predict(_table(args, args.bval) if args.bval else None)
    with io.staged(args.out.parent, args.force) as stage:
        pieces = np.moveaxis(signal, -1, 0)
        io.write_nii(stage / args.out.name, pieces, signal.shape, np.float32, saved.affine)


def report(args: argparse.Namespace) -> None:
    from .report import write_report

    log.info("%s", write_report(args.dir, args.out, args.force))


def demo(args: argparse.Namespace) -> None:
    """`fit` as a user would type it, on both samples."""
    import numpy as np

    from ..data import SAMPLES, sample_dwi
    from ..indices import INDICES
    from .cli import parser
    from .folder import read_fit

    fits = {}
    for name in SAMPLES:
        dwi = sample_dwi(name)
        words = [
            "fit",
            str(dwi),
            "--mask",
            str(dwi).replace("_dwi.", "_mask."),
            "--out",
            str(args.out / name),
            "--force",
        ]
        fit(parser().parse_args(words + ["--quiet"] * args.quiet))
        fits[name], affine, _, _ = read_fit(args.out / name)
        with suppress(ImportError):  # without matplotlib there is no picture
            from .plot import overview

            overview(fits[name], args.out / name / "overview.png", affine=affine, title=name)
    print("MAPL, radial order 6, Laplacian weight 0.2: medians over the mask\n")
    print(f"{'':10}{'unit':>6}" + "".join(f"{name:>13}" for name in fits))
    for index in INDICES.values():
        medians = [np.nanmedian(fit.index(index.name)) for fit in fits.values()]
        print(
            f"{index.name.upper():10}{index.unit():>6}"
            + "".join(f"{median:13.4g}" for median in medians)
        )
    print("", *SAMPLE_NOTES, f"maps: {args.out}", sep="\n")


def warmup(args: argparse.Namespace) -> None:
    """
    Fit a few voxels in every mode and ask for everything once: dtypes and layouts are those of
    every fit.
    """
    import numpy as np

    from ..data import sample_dwi
    from ..gradients import GradientTable
    from ..kernels._jit import CACHE_DIR
    from ..model import MapmriModel

    start = time.perf_counter()
    gtab = GradientTable.from_bids(sample_dwi("catcord"))
    data = np.exp(-np.outer([0.5e-3, 1e-3, 2e-3], gtab.bvals))
    for options in WARMUP_MODES:
        fit = MapmriModel(gtab, radial_order=4, **options).fit(data)
        for compute in (fit.rtop, fit.pa, fit.negative, fit.predict, fit.odf_sh, fit.peaks):
            compute()
    log.info(
        "compiled in %.1f s, kept in %s", time.perf_counter() - start, CACHE_DIR or "memory only"
    )


def info(args: argparse.Namespace) -> None:
    import os
    import platform
    from importlib import metadata

    import llvmlite.binding
    import numba

    from .. import __version__
    from ..kernels._jit import CACHE_DIR

    facts = {
        "mapmri_nb": __version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
    }
    for package in (
        "numpy",
        "scipy",
        "numba",
        "llvmlite",
        "osqp",
        "nibabel",
        "tqdm",
        "matplotlib",
        "dask",
        "dipy",
    ):
        facts[package] = "not installed"
        with suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    facts["threads"] = (
        f"{numba.get_num_threads()} of {os.cpu_count()} CPUs, Python's: no threading layer is needed"
    )
    sizes = (
        [path.stat().st_size for path in CACHE_DIR.rglob("*") if path.is_file()]
        if CACHE_DIR
        else []
    )
    facts["cache"] = f"{CACHE_DIR or 'none'}, {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"
    facts["CPU"] = f"{llvmlite.binding.get_host_cpu_name()}, {platform.machine()}"
    for name, fact in facts.items():
        print(f"{name:12} {fact}")
