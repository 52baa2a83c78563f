"""The command ``mapmri-nb``: arguments in, files and exit codes out; everything heavy is imported where it is used."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger("mapmri_nb")
INTERRUPTED = 130  # the shell's code for SIGINT
SAMPLE_NOTES = {
    "small101d": "small101d (BSD-3, from DIPY): its pulse timing was never published; Delta 48.8 ms and delta 30 ms are"
    " ASSUMED, and every index with a length in it scales with them",
    "catcord": "catcord (MIT as packaged in dmipy 1.0.5, upstream terms not verified): cite Duval et al., ISMRM 2016",
}
LAYERS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
WARMUP_MODES: tuple[dict[str, Any], ...] = ({}, {"laplacian": "gcv"}, {"basis": "isotropic"})


def _laplacian(text: str) -> Any:
    """``none``, ``gcv``, a weight, or a list of weights."""
    if text.lower() in ("none", "gcv"):
        return None if text.lower() == "none" else "gcv"
    try:
        weights = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        weights = []
    if not weights:
        raise argparse.ArgumentTypeError(f"{text!r} is not none, gcv, a weight, or weights separated by commas")
    return weights[0] if len(weights) == 1 and "," not in text else weights


def _number_or_none(text: str) -> float | None:
    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    quiet = argparse.ArgumentParser(add_help=False)
    quiet.add_argument("--quiet", action="store_true", help="warnings and errors only")
    files = argparse.ArgumentParser(add_help=False, parents=[quiet])
    files.add_argument("--force", action="store_true", help="overwrite what is there")
    maps = argparse.ArgumentParser(add_help=False, parents=[files])
    maps.add_argument("--indices", default="all", metavar="A,B,C|all", help="which maps (default: all)")
    maps.add_argument("--units", choices=("mm", "um"), default="mm", help="unit of length in the maps (default: mm)")
    maps.add_argument("--fill", choices=("nan", "0"), default="nan", help="value where there is no fit (default: nan)")
    table = argparse.ArgumentParser(add_help=False)
    table.add_argument("--bval", type=Path, metavar="F", help="b-values in s/mm2 (default: beside the series)")
    table.add_argument(
        "--bvec", type=Path, metavar="F", help="b-vectors, FSL's convention (default: beside the series)"
    )
    table.add_argument("--json", type=Path, metavar="F", help="sidecar with the pulse timing (default: beside)")
    table.add_argument("--big-delta", type=float, metavar="S", help="separation of the gradient pulses, SECONDS")
    table.add_argument("--small-delta", type=float, metavar="S", help="duration of a gradient pulse, SECONDS")
    saved = argparse.ArgumentParser(add_help=False)
    saved.add_argument("dir", type=Path, metavar="DIR", help="folder of a saved fit")

    parser = argparse.ArgumentParser(prog="mapmri-nb", description="MAP-MRI from NIfTI series to index maps.")
    parser.add_argument("--version", action="version", version=f"mapmri-nb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", parents=[table, maps], help="fit a series; coefficients and index maps into --out")
    fit.set_defaults(run=_fit)
    fit.add_argument("dwi", type=Path, metavar="DWI", help="4-D NIfTI series")
    fit.add_argument("--mask", type=Path, metavar="F", help="3-D NIfTI, fitted where not 0 (default: where S0 > 0)")
    fit.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the fit")
    fit.add_argument("--radial-order", type=int, default=6, metavar="N", help="even, 0 to 10 (default: 6)")
    fit.add_argument("--basis", choices=("anisotropic", "isotropic"), default="anisotropic")
    fit.add_argument("--laplacian", type=_laplacian, default=0.2, metavar="none|gcv|W|W,W,...", help="(default: 0.2)")
    fit.add_argument("--positivity", choices=("none", "grid", "global"), default="none", help="(default: none)")
    fit.add_argument("--solver", choices=("auto", "osqp"), default="auto", help="for --positivity (default: auto)")
    fit.add_argument(
        "--bval-threshold",
        type=_number_or_none,
        default=2100.0,
        metavar="B|none",
        help="largest b of the tensor fit, s/mm2 (default: 2100)",
    )
    fit.add_argument("--threads", type=int, metavar="N", help="(default: Numba's number)")

    indices = commands.add_parser("indices", parents=[saved, maps], help="index maps of a saved fit")
    indices.set_defaults(run=_indices)
    indices.add_argument("--out", type=Path, metavar="DIR", help="(default: the fit's own folder)")

    odf = commands.add_parser("odf", parents=[saved, files], help="ODF of a saved fit in spherical harmonics")
    odf.set_defaults(run=_odf)
    odf.add_argument("--s", type=float, default=2.0, help="radial moment, > -3 (default: 2)")
    odf.add_argument("--sh-order", type=int, default=8, metavar="L", help="even (default: 8)")
    odf.add_argument(
        "--sh-basis", default="tournier07", metavar="NAME", help="tournier07 (MRtrix, default), descoteaux07"
    )
    odf.add_argument("--out", type=Path, metavar="DIR", help="(default: the fit's own folder)")

    predict = commands.add_parser("predict", parents=[saved, table, files], help="signal of a saved fit as a series")
    predict.set_defaults(run=_predict)
    predict.add_argument("--out", type=Path, required=True, metavar="F", help="the series, .nii or .nii.gz")

    report = commands.add_parser("report", parents=[saved, files], help="one self-contained HTML page on a saved fit")
    report.set_defaults(run=_report)
    report.add_argument("--out", type=Path, metavar="F", help="(default: report.html in the fit's folder)")

    demo = commands.add_parser("demo", parents=[quiet], help="fit the two bundled samples, print and write their maps")
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("mapmri-demo"),
        metavar="DIR",
        help="(default: ./mapmri-demo; an earlier demo there is rewritten)",
    )
    demo.add_argument("--threads", type=int, metavar="N", help="(default: Numba's number)")

    warmup = commands.add_parser(
        "warmup", parents=[quiet], help="compile every kernel into the cache, once per machine"
    )
    warmup.set_defaults(run=_warmup)
    info = commands.add_parser("info", help="versions, threads, cache: what to paste into a bug report")
    info.set_defaults(run=_info)
    return parser


def _table(args: argparse.Namespace, beside: Path) -> Any:
    """Gradient table from the files named, or from those beside a series; deltas on the command line go first."""
    from .gradients import GradientTable

    timing = {"big_delta": args.big_delta, "small_delta": args.small_delta}
    return GradientTable.from_bids(beside, bval=args.bval, bvec=args.bvec, json=args.json, **timing)


def _show_progress(args: argparse.Namespace) -> bool:
    return not args.quiet and sys.stderr.isatty()


def _announce_compilation() -> None:
    from .kernels._jit import CACHE_DIR

    if CACHE_DIR is None:
        log.info("compiling kernels, a quarter of a minute (nothing is kept: no writable cache, or caching is off)")
    elif not any(CACHE_DIR.rglob("*.nbi")):
        log.info("first use on this machine: compiling kernels into %s, a quarter of a minute, once", CACHE_DIR)


def _usable(data: Any, gtab: Any) -> Any:
    """Mask of the voxels with signal at b = 0, for those who gave none."""
    import numpy as np

    mean = np.zeros(data.shape[:-1])
    for volume in np.flatnonzero(gtab.b0s_mask):
        mean += np.asarray(data[..., volume])
    mask = mean > 0
    log.info(
        "no --mask: fitting the %d of %d voxels with signal at b = 0; a brain mask is faster and cleaner",
        mask.sum(),
        mask.size,
    )
    return mask


def _summary(fit: Any, seconds: float) -> None:
    """One line on what was fitted, one per kind of status."""
    from .fit import Status

    failed = int(((fit.status & Status.NO_FIT) != 0).sum())
    log.info("%d voxels, %d without a fit, %.1f s", len(fit.status), failed, seconds)
    for flag in Status:
        count = int(((fit.status & flag) != 0).sum())
        if count:
            log.info("  %d voxels: %s", count, flag.name)


def _fit(args: argparse.Namespace) -> None:
    from . import io
    from .model import MapmriModel

    data, affine = io.load_dwi(args.dwi)
    gtab = _table(args, args.dwi)
    if len(gtab) != data.shape[-1]:
        raise ValueError(f"{args.dwi} has {data.shape[-1]} volumes, its gradient table {len(gtab)}")
    model = MapmriModel(
        gtab, radial_order=args.radial_order, basis=args.basis, laplacian=args.laplacian,
        positivity=None if args.positivity == "none" else args.positivity, solver=args.solver,
        bval_threshold=args.bval_threshold,
    )  # fmt: skip
    mask = _usable(data, gtab) if args.mask is None else io.load_mask(args.mask, data.shape[:-1])
    _announce_compilation()
    start = time.perf_counter()
    fit = model.fit(data, mask=mask, threads=args.threads, progress=_show_progress(args))
    _summary(fit, time.perf_counter() - start)
    io.save_fit(fit, args.out, force=args.force)
    io.write_maps(fit, args.out, indices=args.indices, units=args.units, fill=args.fill, force=args.force)


def _indices(args: argparse.Namespace) -> None:
    from . import io

    io.write_maps(io.load_fit(args.dir), args.out or args.dir, **_map_options(args))


def _odf(args: argparse.Namespace) -> None:
    from . import io

    fit = io.load_fit(args.dir)
    coefficients = fit.odf_sh(s=args.s, sh_order=args.sh_order, sh_basis=args.sh_basis)
    io.write_odf(fit, coefficients, args.out or args.dir, force=args.force)


def _predict(args: argparse.Namespace) -> None:
    from . import io

    fit = io.load_fit(args.dir)
    if args.bval is None and args.bvec is None:
        gtab = None
    elif args.bval is None or args.bvec is None:
        raise ValueError("--bval and --bvec go together (without both, the fit's own table is used)")
    else:
        timing = {"big_delta": args.big_delta, "small_delta": args.small_delta}
        gtab = _table(args, args.bval)
    io.write_volume(args.out, fit.predict(gtab), fit, force=args.force)


def _report(args: argparse.Namespace) -> None:
    from . import io, report

    out = args.out or args.dir / "report.html"
    report.write_report(io.load_fit(args.dir), out, force=args.force)
    log.info("%s", out)


def _demo(args: argparse.Namespace) -> None:
    import numpy as np

    from . import io
    from .data import SAMPLES, sample_dwi
    from .gradients import GradientTable
    from .indices import INDICES
    from .model import MapmriModel

    _announce_compilation()
    fits = {}
    for name in SAMPLES:
        dwi = sample_dwi(name)
        data, affine = io.load_dwi(dwi)
        mask = io.load_mask(next(dwi.parent.glob("*_mask.nii.gz")), data.shape[:-1])
        start = time.perf_counter()
        fit = MapmriModel(GradientTable.from_bids(dwi)).fit(data, mask, threads=args.threads)
        _summary(fit, time.perf_counter() - start)
        io.save_fit(fit, args.out / name, force=True)
        io.write_maps(fit, args.out / name, force=True)
        fits[name] = fit
    print("medians of MAPL, order 6, Laplacian weight 0.2")
    print(f"{'':10}{'unit':>8}" + "".join(f"{name:>14}" for name in fits))
    for index in INDICES.values():
        medians = [np.nanmedian(fit.index(index.name)) for fit in fits.values()]
        print(f"{index.name.upper():10}{index.unit():>8}" + "".join(f"{m:14.4g}" for m in medians))
    for name in fits:
        print(SAMPLE_NOTES[name])
    print(f"maps: {args.out}")


def _warmup(args: argparse.Namespace) -> None:
    """Fit a few voxels in every mode, serial and parallel; dtypes and layouts are those of every fit."""
    import numpy as np

    from . import io
    from .data import sample_dwi
    from .gradients import GradientTable
    from .kernels._jit import CACHE_DIR
    from .model import MapmriModel

    _announce_compilation()
    dwi = sample_dwi("small101d")
    data, gtab = np.asarray(io.load_dwi(dwi)[0][2, 2, :4]), GradientTable.from_bids(dwi)
    start = time.perf_counter()
    for options in WARMUP_MODES:
        for threads in (1, None):
            fit = MapmriModel(gtab, radial_order=4, **options).fit(data, threads=threads)
        fit.index_rows("rtop")
        fit.predict()
    log.info("compiled in %.1f s, kept in %s", time.perf_counter() - start, CACHE_DIR or "memory only")


def _info(args: argparse.Namespace) -> None:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import llvmlite.binding
    import numba

    from . import __version__
    from .kernels._jit import CACHE_DIR

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    def layer_works(module: str) -> bool:
        try:
            __import__(f"numba.np.ufunc.{module}")
        except ImportError:
            return False
        return True

    print(f"mapmri_nb    {__version__}")
    print(f"python       {platform.python_version()}, {platform.platform()}")
    for package in ("numpy", "scipy", "numba", "llvmlite", "osqp", "nibabel", "tqdm", "matplotlib", "dask", "dipy"):
        print(f"{package:12} {installed(package)}")
    layers = [name for name, module in LAYERS.items() if layer_works(module)]
    print(f"threads      {numba.get_num_threads()} of {os.cpu_count()} CPUs, layer {numba.config.THREADING_LAYER}")
    print(f"layers       {', '.join(layers)}")
    files = [f for f in CACHE_DIR.rglob("*") if f.is_file()] if CACHE_DIR else []
    size = sum(f.stat().st_size for f in files) / 1e6
    print(f"cache        {CACHE_DIR or 'none'}, {len(files)} files, {size:.1f} MB")
    print(f"CPU          {llvmlite.binding.get_host_cpu_name()}, {platform.machine()}")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Parameters
    ----------
    argv : arguments without the program's name; None takes those of the process.

    Returns
    -------
    0, or 1 for an error the user can mend (said in one line), 2 for arguments that do not parse, 130 after Ctrl-C.
    """
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what is wrong
        return int(stop.code or 0)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("mapmri-nb: %(message)s"))
    previous = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if getattr(args, "quiet", False) else logging.INFO)
    try:
        args.run(args)
    except KeyboardInterrupt:
        log.error("interrupted")
        return INTERRUPTED
    except (ValueError, OSError, ImportError, MemoryError) as error:
        log.error("error: %s", " ".join(str(error).split()) or type(error).__name__)
        return 1
    finally:
        log.removeHandler(handler)
        log.setLevel(previous)
    return 0


def run() -> None:
    """Entry point of ``mapmri-nb``."""
    sys.exit(main())
