"""The command ``mapmri-nb``: arguments in, files and exit codes out; everything heavy is imported where it is used."""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger("mapmri_nb")
INTERRUPTED = 130  # the shell's code for SIGINT
SAMPLE_NOTES = (
    "small101d (BSD-3-Clause, from DIPY): its pulse timing was never published. Delta 48.8 ms and delta 30 ms are",
    "  ASSUMED, and every index with a length in it scales with them.",
    "catcord (MIT as packaged in dmipy 1.0.5, upstream terms not verified): cite Duval et al., ISMRM 2016.",
)
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

    a_file: dict[str, Any] = {"type": Path, "metavar": "F"}
    a_folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    seconds: dict[str, Any] = {"type": float, "metavar": "S"}
    quiet, force, maps, table, saved = (argparse.ArgumentParser(add_help=False) for _ in range(5))
    quiet.add_argument("--quiet", action="store_true", help="warnings and errors only")
    force.add_argument("--force", action="store_true", help="overwrite what is there")
    maps.add_argument("--indices", default="all", metavar="A,B,C|all", help="which maps (default: all)")
    maps.add_argument("--units", choices=("mm", "um"), default="mm", help="unit of length in the maps (default: mm)")
    maps.add_argument("--fill", choices=("nan", "0"), default="nan", help="value where there is no fit (default: nan)")
    table.add_argument("--bval", **a_file, help="b-values in s/mm2 (default: beside the series)")
    table.add_argument("--bvec", **a_file, help="b-vectors, FSL's convention (default: beside the series)")
    table.add_argument("--json", **a_file, help="sidecar with the pulse timing (default: beside the series)")
    table.add_argument("--big-delta", **seconds, help="separation of the gradient pulses in SECONDS")
    table.add_argument("--small-delta", **seconds, help="duration of a gradient pulse in SECONDS")
    saved.add_argument("dir", **a_folder, help="folder of a saved fit")

    parser = argparse.ArgumentParser(prog="mapmri-nb", description="MAP-MRI from NIfTI series to index maps.")
    parser.add_argument("--version", action="version", version=f"mapmri-nb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Any, text: str, *parents: argparse.ArgumentParser) -> Any:
        new = commands.add_parser(run.__name__[1:], parents=parents, help=text, description=text)
        new.set_defaults(run=run)
        return new.add_argument

    add = command(_fit, "fit a series; coefficients and index maps into --out", table, maps, force, quiet)
    add("dwi", type=Path, metavar="DWI", help="4-D NIfTI series")
    add("--mask", **a_file, help="3-D NIfTI, fitted where not 0 (default: where there is signal at b = 0)")
    add("--out", required=True, **a_folder, help="folder for the fit")
    add("--radial-order", type=int, default=6, metavar="N", help="even, 0 to 10 (default: 6)")
    add("--basis", choices=("anisotropic", "isotropic"), default="anisotropic")
    add("--laplacian", type=_laplacian, default=0.2, metavar="none|gcv|W|W,W,...", help="(default: 0.2)")
    add("--positivity", choices=("none", "grid", "global"), default="none", help="(default: none)")
    add("--solver", choices=("auto", "osqp"), default="auto", help="for --positivity (default: auto)")
    limit: dict[str, Any] = {"type": _number_or_none, "default": 2100.0, "metavar": "B|none"}
    add("--bval-threshold", **limit, help="largest b of the scale tensor, s/mm2 (default: 2100)")
    add("--threads", type=int, metavar="N", help="(default: Numba's number)")

    add = command(_indices, "index maps of a saved fit", saved, maps, force, quiet)
    add("--out", **a_folder, help="(default: the fit's own folder)")

    add = command(_odf, "ODF of a saved fit in spherical harmonics", saved, force, quiet)
    add("--s", type=float, default=2.0, help="radial moment, > -3 (default: 2)")
    add("--sh-order", type=int, default=8, metavar="L", help="even (default: 8)")
    add("--sh-basis", default="tournier07", metavar="NAME", help="tournier07 (MRtrix, default) or descoteaux07")
    add("--out", **a_folder, help="(default: the fit's own folder)")

    add = command(_predict, "signal of a saved fit, for its own or another table", saved, table, force, quiet)
    add("--out", required=True, **a_file, help="the series, .nii or .nii.gz")

    add = command(_report, "one self-contained HTML page on a saved fit", saved, force, quiet)
    add("--out", **a_file, help="(default: report.html in the fit's folder)")

    add = command(_demo, "fit the two bundled samples, print and write their maps", quiet)
    demo: dict[str, Any] = {"type": Path, "metavar": "DIR", "default": Path("mapmri-demo")}
    add("--out", **demo, help="(default: ./mapmri-demo; an earlier demo there is rewritten)")
    add("--threads", type=int, metavar="N", help="(default: Numba's number)")

    command(_warmup, "compile every kernel into the cache, once per machine", quiet)
    command(_info, "versions, threads, cache: what to paste into a bug report")
    return parser


def _table(args: argparse.Namespace, beside: Path) -> Any:
    """Gradient table from the files named, or from those beside a series; deltas on the command line go first."""
    from .gradients import GradientTable

    timing = {"big_delta": args.big_delta, "small_delta": args.small_delta}
    return GradientTable.from_bids(beside, bval=args.bval, bvec=args.bvec, json=args.json, **timing)


@contextmanager
def _announced() -> Iterator[None]:
    """Say so when a kernel is really compiled: not when it comes from the cache, and once."""
    from numba.core import event

    from .kernels._jit import CACHE_DIR

    class Announcement(event.Listener):
        said = False

        def on_start(self, event: Any) -> None:
            if not self.said:
                log.info("compiling kernels, once per machine and version (into %s)", CACHE_DIR or "memory")
            self.said = True

        def on_end(self, event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Announcement()):
        yield


def _usable(data: Any, gtab: Any) -> Any:
    """Mask of the voxels with signal at b = 0, for those who gave none."""
    import numpy as np

    mean = np.zeros(data.shape[:-1])
    for volume in np.flatnonzero(gtab.b0s_mask):
        mean += np.asarray(data[..., volume])
    mask = mean > 0
    log.info("fitting %d of %d voxels, those with signal at b = 0: give a brain --mask", mask.sum(), mask.size)
    return mask


def _fit(args: argparse.Namespace) -> None:
    from . import io
    from .indices import select
    from .model import MapmriModel

    image, prefix = io.load_dwi(args.dwi), io.prefix_of(args.dwi)
    gtab = _table(args, args.dwi)
    names = select(args.indices, args.basis)
    options = {name: getattr(args, name) for name in ("radial_order", "basis", "laplacian", "solver", "bval_threshold")}
    model = MapmriModel(gtab, positivity=None if args.positivity == "none" else args.positivity, **options)
    if len(gtab) != image.data.shape[-1]:
        raise ValueError(f"{args.dwi} has {image.data.shape[-1]} volumes, its gradient table {len(gtab)}")
    mask = io.load_mask(args.mask, image.data.shape[:3], image.affine) if args.mask else _usable(image.data, gtab)
    io.check_output(args.out, prefix, args.force)
    fit, seconds = _timed_fit(model, image.data, mask, args)
    run = {"Seconds": round(seconds, 3), "Threads": args.threads}
    sources = [path.name for path in (args.dwi, args.mask) if path]
    io.save_fit(fit, args.out, affine=image.affine, prefix=prefix, force=args.force, sources=sources, run=run)
    _write_maps(fit, names, args.out, prefix, image.affine, args)


def _timed_fit(model: Any, data: Any, mask: Any, args: argparse.Namespace) -> tuple[Any, float]:
    """The fit and its seconds; says how many voxels and what became of them."""
    from .fit import Status

    start = time.perf_counter()
    fit = model.fit(data, mask, threads=args.threads, progress=not args.quiet and sys.stderr.isatty())
    seconds = time.perf_counter() - start
    counts = {flag.name: int(((fit.status & flag) != 0).sum()) for flag in Status}
    notes = "".join(f"; {name} {count}" for name, count in counts.items() if count)
    failed = int(((fit.status & Status.NO_FIT) != 0).sum())
    log.info("%d voxels in %.1f s, %d without a fit%s", len(fit.status), seconds, failed, notes)
    return fit, seconds


def _write_maps(fit: Any, names: list[str], out: Path, prefix: str, affine: Any, args: argparse.Namespace) -> None:
    from . import io

    maps = {name: fit.index(name) for name in names}
    io.write_maps(out, prefix, maps, affine, units=args.units, fill=float(args.fill), force=args.force)
    log.info("%d maps in %s", len(maps), out)


def _load(folder: Path) -> tuple[Any, Any]:
    """A saved fit, and what else its folder says (prefix, affine)."""
    from . import io
    from .fit import MapmriFit

    saved = io.read_fit(folder)
    return MapmriFit.from_rows(saved.rows, saved.mask, saved.options, saved.gtab), saved


def _indices(args: argparse.Namespace) -> None:
    from .indices import select

    fit, saved = _load(args.dir)
    names = select(args.indices, saved.options["basis"])
    _write_maps(fit, names, args.out or args.dir, saved.prefix, saved.affine, args)


def _odf(args: argparse.Namespace) -> None:
    from . import io

    fit, saved = _load(args.dir)
    maps = {"odf": fit.odf_sh(s=args.s, sh_order=args.sh_order, sh_basis=args.sh_basis)}
    entries = {"Description": f"ODF, radial moment {args.s}", "Order": args.sh_order, "Basis": args.sh_basis}
    io.write_maps(args.out or args.dir, saved.prefix, maps, saved.affine, force=args.force, sidecars={"odf": entries})


def _predict(args: argparse.Namespace) -> None:
    import numpy as np

    from . import io

    if not args.out.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"--out: {args.out} is neither .nii nor .nii.gz")
    if (args.bval is None) != (args.bvec is None):
        raise ValueError("--bval and --bvec go together; without both, the fit's own table is used")
    fit, saved = _load(args.dir)
    signal = fit.predict(_table(args, args.bval) if args.bval else None)
    with io.staged(args.out.parent, args.force) as stage:
        pieces = np.moveaxis(signal, -1, 0)
        io.write_nii(stage / args.out.name, pieces, signal.shape, np.float32, saved.affine)


def _report(args: argparse.Namespace) -> None:
    from . import report

    fit, _ = _load(args.dir)
    report.write_report(fit, args.out or args.dir / "report.html", force=args.force)


def _demo(args: argparse.Namespace) -> None:
    import numpy as np

    from . import io
    from .data import SAMPLES, sample_dwi
    from .gradients import GradientTable
    from .indices import INDICES, select
    from .model import MapmriModel

    fits = {}
    for name in SAMPLES:
        dwi = sample_dwi(name)
        image, out, prefix = io.load_dwi(dwi), args.out / name, io.prefix_of(dwi)
        mask = io.load_mask(next(dwi.parent.glob("*_mask.nii.gz")), image.data.shape[:3])
        fits[name], _ = _timed_fit(MapmriModel(GradientTable.from_bids(dwi)), image.data, mask, args)
        io.save_fit(fits[name], out, affine=image.affine, prefix=prefix, force=True, sources=[dwi.name])
        args.units, args.fill, args.force = "mm", "nan", True
        _write_maps(fits[name], select("all", "anisotropic"), out, prefix, image.affine, args)
    print("MAPL, radial order 6, Laplacian weight 0.2: medians over the mask\n")
    print(f"{'':10}{'unit':>6}" + "".join(f"{name:>13}" for name in fits))
    for index in INDICES.values():
        medians = [np.nanmedian(fit.index(index.name)) for fit in fits.values()]
        print(f"{index.name.upper():10}{index.unit():>6}" + "".join(f"{median:13.4g}" for median in medians))
    print("", *SAMPLE_NOTES, f"maps: {args.out}", sep="\n")


def _warmup(args: argparse.Namespace) -> None:
    """Fit a few voxels in every mode, serial and parallel; dtypes and layouts are those of every fit."""
    import numpy as np

    from . import io
    from .data import sample_dwi
    from .gradients import GradientTable
    from .kernels._jit import CACHE_DIR
    from .model import MapmriModel

    dwi = sample_dwi("small101d")
    data, gtab = np.asarray(io.load_dwi(dwi).data[2, 2, :4]), GradientTable.from_bids(dwi)
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
    from importlib import import_module, metadata

    import llvmlite.binding
    import numba

    from . import __version__
    from .kernels._jit import CACHE_DIR

    facts = {"mapmri_nb": __version__, "python": f"{platform.python_version()}, {platform.platform()}"}
    for package in ("numpy", "scipy", "numba", "llvmlite", "osqp", "nibabel", "tqdm", "matplotlib", "dask", "dipy"):
        facts[package] = "not installed"
        with suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    layers = []  # in the order in which Numba tries them
    for layer in ("tbb", "omp", "workqueue"):
        with suppress(ImportError):
            import_module(f"numba.np.ufunc.{'workqueue' if layer == 'workqueue' else layer + 'pool'}")
            layers.append(layer)
    facts["threads"] = f"{numba.get_num_threads()} of {os.cpu_count()} CPUs"
    facts["layer"] = f"{os.environ.get('NUMBA_THREADING_LAYER', layers[0])} (of {', '.join(layers)})"
    sizes = [path.stat().st_size for path in CACHE_DIR.rglob("*") if path.is_file()] if CACHE_DIR else []
    facts["cache"] = f"{CACHE_DIR or 'none'}, {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"
    facts["CPU"] = f"{llvmlite.binding.get_host_cpu_name()}, {platform.machine()}"
    for name, fact in facts.items():
        print(f"{name:12} {fact}")


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
        with _announced():
            args.run(args)
    except KeyboardInterrupt:
        log.error("interrupted")
        return INTERRUPTED
    except (ValueError, OSError, ImportError, MemoryError) as error:
        text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        log.error("error: %s", " ".join(text.split()) or type(error).__name__)
        return 1
    finally:
        log.removeHandler(handler)
        log.setLevel(previous)
    return 0


def run() -> None:
    """Entry point of ``mapmri-nb``."""
    sys.exit(main())
