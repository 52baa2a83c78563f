"""What each command of ``mapmri-nb`` does; everything heavy is imported where it is used."""

import argparse
import errno
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import fitting
from .tables import arguments, table_of

log = logging.getLogger("mapmri_nb")

SAMPLE_NOTES = (
    "small101d (BSD-3-Clause, from DIPY): its pulse timing was never published. Delta 48.8 ms and "
    "delta 30 ms are",
    "  ASSUMED, and every index with a length in it scales with them.",
    "catcord (MIT as packaged in dmipy 1.0.5, upstream terms not verified): cite Duval et al., "
    "ISMRM 2016.",
)


WARMUP_MODES: list[dict[str, Any]] = [{}, {"basis": "isotropic"}]
WARMUP_MODES += [{"positivity": "grid"}, {"positivity": "global"}]


def _saved(args: argparse.Namespace) -> Any:
    """The fit that DIR and PREFIX name, and the folder for what is made of it."""
    from . import folder

    model = folder.model_file(args.dir, args.prefix)
    out = getattr(args, "out", None) or model.parent
    return folder.read_fit(model), out


def _sidecar(image: Path) -> Path:
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def indices(args: argparse.Namespace) -> list[Path]:
    """What is there already is kept, unless --force replaces it."""
    import json

    from ..indices import TABLE, select
    from . import folder, io, summary

    saved, out = _saved(args)
    within = summary.regions(saved.fit.mask, args.labels, saved.affine)
    names = select(args.indices, saved.fit.options["basis"])
    images = {n: Path(out) / io.map_name(saved.prefix, TABLE[n].label) for n in names}
    kept = [name for name, image in images.items() if image.exists() and not args.force]
    for name in kept:
        wanted = TABLE[name].unit(args.units), "NaN" if args.fill == "nan" else 0
        entries = json.loads(_sidecar(images[name]).read_text())
        found = entries.get("Units"), entries.get("FillValue")
        if found != wanted:
            text = "is there already with unit {} and fill {}, not {} and {}"
            text = text.format(*found, *wanted)
            raise FileExistsError(errno.EEXIST, f"{text} (force replaces)", str(images[name]))
    maps = {name: saved.fit.index(name) for name in names if name not in kept}
    folder.write_maps(
        out, saved.prefix, maps, saved.affine, units=args.units, fill=float(args.fill), force=True,
        model=folder.model_section(saved.fit.options),
    )  # fmt: skip
    rows: summary.Rows = []
    every = ((name, maps[name] if name in maps else saved.fit.index(name)) for name in names)
    for _ in summary.gathered(every, within, args.units, rows):
        pass
    with io.staged(out, force=True) as stage:
        table = summary.name_of(saved.prefix)
        summary.write(stage / table, rows, old=Path(out) / table)
    log.info("%d maps in %s%s", len(maps), out, f"; {len(kept)} were there" if kept else "")
    return [path for image in images.values() for path in (image, _sidecar(image))]


def odf(args: argparse.Namespace) -> list[Path]:
    """Harmonics and peaks, turned from the b-vectors' frame into scanner axes."""
    from . import directions, folder
    from .names import map_name

    (fit, affine, prefix, _), out = _saved(args)
    vectors, heights = fit.peaks(s=args.s, frame="scanner", sh_order=args.sh_order)
    scale = directions.tracking_factor(fit.gtab, args.s)
    maps = {
        "odf": scale * fit.odf_sh(args.s, args.sh_order, args.sh_basis, frame="scanner"),
        "peaks": (scale * vectors * heights[..., None]).reshape(*fit.mask.shape, -1),
    }
    basis = "MRtrix3" if args.sh_basis == "tournier07" else args.sh_basis
    axes = {"EncodingAxis": 3, "Reference": "xyz", "AntipodalSymmetry": True}
    sh = {"Type": "sh", "SphericalHarmonicBasis": basis, "SphericalHarmonicDegree": args.sh_order}
    text = f"ODF, radial moment s = {args.s:g}, in mm^s times ScaleFactor, scanner (RAS) axes"
    common = {"RadialMoment": args.s, "ScaleFactor": scale}
    sidecars = {"odf": {"Description": text, "OrientationEncoding": axes | sh} | common}
    axes |= {"Type": "3vector"}
    text = f"peaks of the {text}; length: height"
    sidecars["peaks"] = {"Description": text, "OrientationEncoding": axes} | common
    found = folder.write_maps(
        out, prefix, maps, affine, fill=float(args.fill), force=args.force, sidecars=sidecars,
        model=folder.model_section(fit.options),
    )  # fmt: skip
    for path in found:
        log.info("%s", path)
    if args.pam5:
        path = Path(out) / map_name(prefix, "peaks", ".pam5")
        found.append(_pam5(fit, affine, args, scale, path))
    if args.sh_basis == "tournier07":
        log.info("MRtrix: tckgen %s TRACKS -seed_image MASK; fod2fixel %s FIXELS", *found[:1] * 2)
    return [path for image in found for path in (image, _sidecar(image)) if path.exists()]


def _pam5(fit: Any, affine: Any, args: argparse.Namespace, scale: float, path: Path) -> Path:
    """Peaks and harmonics as DIPY's trackers read them: along the voxel axes, legacy basis."""
    import numpy as np

    from . import io
    from .directions import sphere

    try:
        from dipy.core.sphere import Sphere
        from dipy.direction.peaks import PeaksAndMetrics
        from dipy.io.peaks import save_pam
    except ImportError as error:
        raise ImportError(f"--pam5 needs DIPY with h5py ({error})") from None
    pam, ball = PeaksAndMetrics(), sphere(724).vertices
    vectors, heights = fit.peaks(s=args.s, frame="voxel", sh_order=args.sh_order)
    index = np.nan_to_num(vectors) @ ball.T
    pam.peak_indices = np.where(np.isnan(heights), -1, index.argmax(-1)).astype(np.int32)
    pam.peak_dirs, pam.peak_values = np.nan_to_num(vectors), np.nan_to_num(scale * heights)
    sh = fit.odf_sh(args.s, args.sh_order, "descoteaux07_legacy", frame="voxel")
    pam.shm_coeff, pam.gfa = np.nan_to_num(scale * sh), np.nan_to_num(fit.gfa())
    pam.sphere, pam.affine = Sphere(xyz=ball), affine
    pam.B = pam.qa = None
    pam.odf = None
    pam.total_weight, pam.ang_thr = 0.5, 60
    with io.staged(path.parent, args.force) as stage:
        save_pam(str(stage / path.name), pam)  # type: ignore[no-untyped-call]  # DIPY has no types
    return path


def predict(args: argparse.Namespace) -> list[Path]:
    import numpy as np

    from .. import readers
    from ..gradients import GradientTable
    from . import folder, io

    if not args.out.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"--out: {args.out} is neither .nii nor .nii.gz")
    if (args.bval is None) != (args.bvec is None):
        raise ValueError("--bval and --bvec go together; without both, the fit's own table is used")
    names = ("json", *arguments(args, GradientTable))
    given = [name.replace("_", "-") for name in names if getattr(args, name) is not None]
    if given and not (args.bval or args.grad):
        text = "goes with --bval and --bvec: the fit's own table has its own"
        raise ValueError(f"--{given[0]} {text}")
    (fit, affine, _, _), _ = _saved(args)
    gtab = fit.gtab
    if args.bval or args.grad:
        same = gtab.frame if gtab.frame == "voxel" else None
        gtab, _ = table_of(args, args.bval or args.grad, affine, same)
    elif args.volumes is not None:
        gtab = gtab[readers.volumes(args.volumes, gtab.bvals)]
    signal = fit.predict(gtab, noisy=args.noisy)
    signal[np.isnan(signal)] = float(args.fill)
    with io.staged(args.out.parent, args.force) as stage:
        pieces = np.moveaxis(signal, -1, 0)
        shape = folder.image_shape(fit.mask.shape, signal.shape[-1:])
        io.write_nii(stage / args.out.name, pieces, shape, np.float32, affine)
    log.info("%d volumes in %s", signal.shape[-1], args.out)
    return [args.out]


def report(args: argparse.Namespace) -> list[Path]:
    """Named by its prefix where the folder holds several fits; of two fits if two are given."""
    from . import folder
    from .compare import write_comparison
    from .report import write_report

    if args.out and (args.out.suffix not in (".html", ".htm") or args.out.is_dir()):
        raise ValueError(f"--out: {args.out} must be the name of a page that ends in .html")
    prefixes = [folder.prefix_of_fit(model) for model in folder.model_files(args.dir)]
    if args.prefix and args.prefix not in prefixes and Path(args.prefix).exists():
        if args.dwi:
            raise ValueError("--dwi goes with one fit, not with two")
        a, b = (folder.model_file(path) for path in (args.dir, args.prefix))
        out = write_comparison(a, b, args.out, args.force, convention=args.convention)
        log.info("%s", out)
        return [out]
    model = folder.model_file(args.dir, args.prefix)
    prefix = folder.prefix_of_fit(model)
    several = len(folder.model_files(model.parent)) > 1
    name = f"{prefix}_report.html" if several and prefix else "report.html"
    out = args.out or model.with_name(name)
    more = {"dwi": args.dwi, "convention": args.convention}
    log.info("%s", write_report(model, out, args.force, **more))
    return [out]


def cite(args: argparse.Namespace) -> list[Path]:
    """All papers, or those of a fit or a mode with its paragraph."""
    from . import references

    if args.dir and args.mode:
        raise ValueError(f"--mode {args.mode} goes without DIR")
    if not (args.dir or args.mode):
        print(references.bibtex())
        return []
    options = _saved(args)[0].fit.options if args.dir else references.defaults(args.mode)
    print(*references.methods(options), sep="\n\n")
    return []


def demo(args: argparse.Namespace) -> list[Path]:
    """`fit` as a user would type it, on both samples."""
    import numpy as np

    from ..data import SAMPLES, sample_dwi
    from ..indices import INDICES
    from .cli import parser
    from .folder import read_fit

    fits = {}
    for name in SAMPLES:
        dwi, out = str(sample_dwi(name)), str(args.out / name)
        words = ["fit", dwi, "--mask", dwi.replace("_dwi.", "_mask."), "--out", out, "--force"]
        fitting.fit(parser().parse_args(words + ["--quiet"] * args.quiet))
        fits[name], affine, _, _ = read_fit(args.out / name)
        with suppress(ImportError):  # without matplotlib there is no picture
            from .plot import overview

            overview(fits[name], args.out / name / "overview.png", affine=affine, title=name)
    print("MAPL, radial order 6, Laplacian weight 0.2: medians over the mask\n")
    print(f"{'':10}{'unit':>6}" + "".join(f"{name:>13}" for name in fits))
    for index in INDICES.values():
        medians = [np.nanmedian(fit.index(index.name)) for fit in fits.values()]
        numbers = "".join(f"{median:13.4g}" for median in medians)
        print(f"{index.name.upper():10}{index.unit():>6}{numbers}")
    print("", *SAMPLE_NOTES, f"maps: {args.out}", sep="\n")
    return sorted(path for name in fits for path in (args.out / name).iterdir())


def warmup(args: argparse.Namespace) -> None:
    """Fit a few voxels in every mode, and ask for everything once."""
    import numpy as np

    from ..data import sample_dwi
    from ..gradients import GradientTable
    from ..kernels._jit import CACHE_DIR
    from ..model import MapmriModel

    start = time.perf_counter()
    gtab = GradientTable.from_bids(sample_dwi("catcord"))
    data = np.exp(-np.outer([0.5e-3, 1e-3, 2e-3, 0.1e-3], gtab.bvals))
    data[3] += data[2]  # a slow tail: positivity asks for a narrower basis
    for options in WARMUP_MODES:
        fit = MapmriModel(gtab, radial_order=4, **options).fit(data)
        for compute in (fit.rtop, fit.pa, fit.negative, fit.predict, fit.odf_sh, fit.peaks):
            compute()
    seconds = time.perf_counter() - start
    log.info("compiled in %.1f s, kept in %s", seconds, CACHE_DIR or "memory only")


def info(args: argparse.Namespace) -> None:
    import os
    import platform
    from importlib import metadata

    import llvmlite.binding

    from .. import __version__
    from ..kernels._jit import CACHE_DIR, n_threads

    python = f"{platform.python_version()}, {platform.platform()}"
    facts = {"mapmri_nb": __version__, "python": python}
    packages = "numpy scipy numba llvmlite osqp nibabel tqdm matplotlib dask dipy"
    for package in packages.split():
        facts[package] = "not installed"
        with suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    threads = f"{n_threads(None)} of {os.cpu_count()} CPUs"
    facts["threads"] = f"{threads}, Python's: no threading layer is needed"
    files = [path for path in CACHE_DIR.rglob("*") if path.is_file()] if CACHE_DIR else []
    sizes = [path.stat().st_size for path in files]
    facts["cache"] = f"{CACHE_DIR or 'none'}, {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"
    facts["CPU"] = f"{llvmlite.binding.get_host_cpu_name()}, {platform.machine()}"
    for name, fact in facts.items():
        print(f"{name:12} {fact}")
