"""
The command ``mapmri-nb``: arguments in, files and exit codes out; everything heavy is imported
where it is used.
"""

import argparse
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ..indices import ON_REQUEST
from . import commands, fitting

log = logging.getLogger("mapmri_nb")
INTERRUPTED = 130  # the shell's code for SIGINT
FRAMES = ("image", "voxel", "scanner")
MOST_TEXT = 300  # characters of an error
WORDS = (  # of the library, where no argument is named; and their words here
    ("Leave it out (--volumes V)", "Leave it out (--volumes V) or give it weight 0 (--weights F)"),
    ("table[select]", "--volumes"),
    ("without force", "without --force"),
    ("(force ", "(--force "),
    ("(resume goes on, force ", "(--resume goes on, --force "),
    ("with force", "with --force"),
    ("or tau,", "or --tau,"),
    ("pass affine=", "give an affine"),
    ("from_mrtrix", "--grad"),
    ("zero_is_missing=False", "--zeros data"),
    ("gtab has", "the gradient table has"),
    ("gtab: ", "the gradient table: "),
    ("divide bvals", "divide them"),
    ("bvals[", "b-values["),
    ("bvecs[", "b-vectors["),
    ("data: ", "the series: "),
)


def _path(text: str) -> Path:
    """
    A path; "" would mean the folder one happens to be in, and mostly is a shell variable that was
    never set.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _number(text: str) -> float | str | None:
    """A number, ``none`` or ``auto``."""
    if text.lower() in ("none", "auto"):
        return None if text.lower() == "none" else "auto"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number, none nor auto") from None


def _sigma(text: str) -> float | Path:
    """A number, or the path of an image."""
    try:
        return float(text)
    except ValueError:
        return _path(text)


def _weights(text: str) -> Any:
    """``none``, ``gcv``, a weight, or weights separated by commas."""
    if text.lower() in ("none", "gcv"):
        return None if text.lower() == "none" else "gcv"
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither none, gcv, a weight nor weights W,W,..."
        ) from None
    return weights if len(weights) > 1 else weights[0]


def _zeros(text: str) -> bool:
    """Whether they are missing."""
    if text not in ("missing", "data"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither missing nor data")
    return text == "missing"


def parser() -> argparse.ArgumentParser:
    from .. import __version__

    a_file: dict[str, Any] = {"type": _path, "metavar": "F"}
    a_folder: dict[str, Any] = {"type": _path, "metavar": "DIR"}
    seconds: dict[str, Any] = {"type": float, "metavar": "S"}
    quiet, force, maps, fill, table, saved = (
        argparse.ArgumentParser(add_help=False) for _ in range(6)
    )
    quiet.add_argument("--quiet", action="store_true", help="warnings and errors only")
    quiet.add_argument(
        "--list-outputs", action="store_true", help="print the files written as a JSON list"
    )
    force.add_argument("--force", action="store_true", help="overwrite what is there")
    maps.add_argument(
        "--indices",
        default="all",
        metavar="A,B,C|all",
        help=f"which maps (default: all); on request {', '.join(ON_REQUEST)}",
    )
    maps.add_argument(
        "--labels", **a_file, help="image of whole numbers: regions of the summary.tsv, in the mask"
    )
    maps.add_argument(
        "--units",
        choices=("mm", "um"),
        default="mm",
        help="unit of length in the maps (default: mm)",
    )
    fill.add_argument(
        "--fill",
        choices=("nan", "0"),
        default="nan",
        help="value where there is no fit (default: nan)",
    )
    add = table.add_argument
    add("--bval", **a_file, help="b-values in s/mm2 (default: beside the series, or inherited)")
    add("--bvec", **a_file, help="b-vectors, in rows or columns (default: beside the series)")
    text = (
        "MRtrix's table x y z b, scanner axes, instead of the two (default: a .b beside the series)"
    )
    add("--grad", **a_file, help=text)
    add("--json", **a_file, help="sidecar with the pulse timing (default: beside the series)")
    add("--big-delta", **seconds, help="separation of the gradient pulses in SECONDS")
    add("--small-delta", **seconds, help="duration of a gradient pulse in SECONDS")
    add("--tau", **seconds, help="diffusion time in SECONDS, instead of the two")
    limit: dict[str, Any] = {"type": float, "metavar": "B"}
    add("--b0-threshold", **limit, help="b up to it counts as b = 0, s/mm2 (default: 50)")
    text = "axes of --bvec: FSL's (image, the default), voxel axes (QSIPrep, DIPY) or scanner axes"
    add("--frame", choices=FRAMES, help=text)
    add(
        "--bvec-scaling",
        choices=("refuse", "normalise", "amplitude"),
        help="lengths that differ: an error (default), no meaning, or amplitudes, b |v|^2",
    )
    add("--volumes", metavar="V", help="b<=3000, 0:96,100 (from 0) or a text file of numbers")
    saved.add_argument("dir", **a_folder, help="folder of a saved fit, or the fit's JSON")
    saved.add_argument(
        "prefix", nargs="?", metavar="PREFIX", help="which fit, where the folder has several"
    )

    whole = argparse.ArgumentParser(
        prog="mapmri-nb",
        description="MAP-MRI from NIfTI series to index maps.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"mapmri-nb {__version__}")
    subparsers = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Any, text: str, *parents: argparse.ArgumentParser) -> Any:
        new = subparsers.add_parser(
            run.__name__, parents=parents, help=text, description=text, allow_abbrev=False
        )
        new.set_defaults(run=run)
        return new.add_argument

    add = command(
        fitting.fit,
        "fit a series; coefficients and index maps into --out",
        table,
        maps,
        fill,
        force,
        quiet,
    )
    add("dwi", type=_path, metavar="DWI", help="4-D NIfTI series")
    add(
        "--mask",
        **a_file,
        help="3-D NIfTI, fitted where not 0 (default: where there is signal at b = 0)",
    )
    add("--out", required=True, **a_folder, help="folder for the fit")
    add("--radial-order", type=int, default=6, metavar="N", help="even, 0 to 10 (default: 6)")
    add("--basis", choices=("anisotropic", "isotropic"), default="anisotropic")
    add(
        "--laplacian",
        type=_weights,
        default=0.2,
        metavar="none|gcv|W|W,W,...",
        help="(default: 0.2)",
    )
    add("--positivity", choices=("none", "grid", "global"), default="none", help="(default: none)")
    add(
        "--solver",
        choices=("auto", "osqp"),
        default="auto",
        help="for --positivity (default: auto)",
    )
    add(
        "--zeros",
        type=_zeros,
        dest="zero_is_missing",
        default=True,
        metavar="missing|data",
        help="what samples of exactly 0 beside positive ones are (default: missing)",
    )
    threshold: dict[str, Any] = {"type": _number, "default": "auto", "metavar": "auto|B|none"}
    text = "largest b of the scale tensor, s/mm2 (default: auto, 2100 or what the table needs)"
    add("--bval-threshold", **threshold, help=text)
    text = "smallest eigenvalue of the scale tensor, mm2/s (default: a tenth of the voxel's mean)"
    add("--eigenvalue-threshold", type=float, metavar="D", help=text)
    text = "what the Laplacian smooths: the deviation from the tensor's Gaussian (default) or the signal"
    add("--laplacian-of", choices=("deviation", "signal"), default="deviation", help=text)
    text = "E(0) by the fit with the mean b0 as one more sample (default), free, or the mean b0"
    add("--s0", dest="S0", choices=("fit", "free", "b0"), default="fit", help=text)
    text = "of the basis: narrower where positivity contradicts the data (default) or the tensor's"
    add("--scale", choices=("data", "tensor"), default="data", help=text)
    text = "raw (rician) or denoised magnitudes, whose noise floor is modelled (default: none)"
    add("--noise", choices=("none", "rician", "denoised"), default="none", help=text)
    text = "of the noise: a number or a 3-D NIfTI (default: by the fit)"
    add("--sigma", type=_sigma, metavar="S|F", help=text)
    text = "coils whose sum of squares the image is (default: 1)"
    add("--coils", type=int, default=1, metavar="L", help=text)
    text = "paper: the published method, signal Laplacian, E(0) free (given with --positivity), b <= 2100"
    add("--preset", choices=("paper",), help=text)
    add(
        "--static-diffusivity",
        type=float,
        metavar="D",
        help="one scale for all voxels, mm2/s, for --basis isotropic (default: from the tensor)",
    )
    add(
        "--weights",
        **a_file,
        help="weights >= 0: one per volume in a text file, or an image like the series; 0 is missing",
    )
    add("--grad-dev", **a_file, help="gradient non-linearity, nine volumes as HCP's grad_dev")
    text = "error bars by N replicates of the wild bootstrap: maps desc-sd and desc-ci95 (low, high) of each index"
    add(
        "--bootstrap",
        type=int,
        metavar="N",
        help=f"{text}; after the fit, with its coefficients in memory",
    )
    add(
        "--posterior",
        action="store_true",
        help="the same by the Gaussian posterior of the coefficients; not for --positivity",
    )
    add("--seed", type=int, metavar="S", help="of --bootstrap (default: 0)")
    add(
        "--reestimate",
        action="store_true",
        help="--bootstrap estimates scales and Laplacian weight again (default: held at one weight and b up to 4000)",
    )
    add(
        "--threads",
        type=int,
        metavar="N",
        help="(default: Numba's number); with dask, workers of a local cluster",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with an interrupted fit of the same input and options",
    )
    add("--engine", choices=("threads", "dask"), default="threads", help="(default: threads)")
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="of a running cluster for --engine dask (default: one on this machine)",
    )

    add = command(commands.indices, "index maps of a saved fit", saved, maps, fill, force, quiet)
    add("--out", **a_folder, help="(default: the fit's own folder)")

    add = command(
        commands.odf, "ODF of a saved fit in spherical harmonics", saved, fill, force, quiet
    )
    add("--s", type=float, default=2.0, help="radial moment, > -3 (default: 2)")
    add("--sh-order", type=int, default=6, metavar="L", help="even (default: 6)")
    add(
        "--sh-basis",
        default="tournier07",
        metavar="NAME",
        help="tournier07 (MRtrix, default) or descoteaux07",
    )
    add("--pam5", action="store_true", help="peaks and harmonics for DIPY as well, by DIPY")
    add("--out", **a_folder, help="(default: the fit's own folder)")

    add = command(
        commands.predict,
        "signal of a saved fit, for its own or another table",
        saved,
        table,
        fill,
        force,
        quiet,
    )
    add("--noisy", action="store_true", help="expected magnitudes of a fit with --noise")
    add("--out", required=True, **a_file, help="the series, .nii or .nii.gz")

    text = "one self-contained HTML page on a saved fit, or on two fits of one series"
    add = command(commands.report, text, force, quiet)
    add("dir", **a_folder, help="folder of a saved fit, or the fit's JSON")
    text = "which fit, where the folder has several; or a second fit to compare with the first"
    add("prefix", nargs="?", metavar="PREFIX|DIR", help=text)
    add(
        "--out",
        **a_file,
        help="(default: report.html beside the fit, after its PREFIX where it has neighbours; "
        "comparison.html beside the second)",
    )
    add("--dwi", **a_file, help="the fitted series (default: where it was, if it is still there)")
    text = "radiological (patient's left on the right, default) or neurological"
    add("--convention", choices=("radiological", "neurological"), default="radiological", help=text)

    add = command(commands.cite, "methods paragraph and BibTeX of a fit or a mode; of all without")
    add("dir", nargs="?", **a_folder, help="folder of a saved fit")
    add("prefix", nargs="?", metavar="PREFIX", help="which fit, where the folder has several")
    add("--mode", choices=("MAP", "MAPL", "CMAP", "CMAPL", "MAP+", "MAPL+"), help="instead of DIR")

    add = command(commands.demo, "fit the two bundled samples, print and write their maps", quiet)
    text = "(default: ./mapmri-demo; an earlier demo there is rewritten)"
    add("--out", default=Path("mapmri-demo"), **a_folder, help=text)

    command(commands.warmup, "compile every kernel into the cache, once per machine", quiet)
    command(commands.info, "versions, threads, cache: what to paste into a bug report")
    return whole


@contextmanager
def _announced() -> Iterator[None]:
    """Say so when a kernel is really compiled: not when it comes from the cache, and once."""
    from numba.core import event

    from ..kernels._jit import CACHE_DIR

    class Announcement(event.Listener):
        said = False

        def on_start(self, event: Any) -> None:
            if not self.said:
                log.info(
                    "compiling kernels, once per machine and version (into %s)",
                    CACHE_DIR or "memory",
                )
            self.said = True

        def on_end(self, event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Announcement()):
        yield


def _spoken(text: str) -> str:
    """
    A message of the library in the words of the command line, on one line, below 300 characters.
    """
    options = sorted(
        {option for action in _options() for option in action.option_strings}, key=len, reverse=True
    )
    for option in options:
        name = option.removeprefix("--").replace("-", "_")
        alone = (
            r"(?= must\b)"
            if name == "s"
            else ""
            if "_" in name
            else r"(?= must\b| is missing|: | = |, or\b|\[\d+\] = )"
        )
        text = re.sub(rf"(?<![-\w./'\"]){name}=(\.\.\.|'?[\w.+-]+'?)", _as_option, text)
        text = re.sub(rf"(?<![-\w./'\"]){name}\b(?![-.\w/='\"]){alone}", option, text)
    for words, others in WORDS:
        text = text.replace(words, others)
    text = " ".join(text.split())
    return text if len(text) < MOST_TEXT else f"{text[: MOST_TEXT - 100]} ... {text[-90:]}"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.msg, record.args = _spoken(record.getMessage()), ()
        return super().format(record)


def _as_option(match: re.Match[str]) -> str:
    """Name and value of an argument as they are typed: ``laplacian=None`` is --laplacian none."""
    name, value = match[0].split("=", 1)
    value = value.strip("'").replace("None", "none").replace("...", "V")
    return f"--{name.replace('_', '-')} {value}"


@cache
def _options() -> list[argparse.Action]:
    subparsers = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return [action for name in ("fit", "odf") for action in subparsers.choices[name]._actions]


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Parameters
    ----------
    argv : arguments without the program's name; None takes those of the process.

    Returns
    -------
    0, or 1 for an error the user can mend (said in one line), 2 for arguments that do not parse,
    130 after Ctrl-C.
    """
    try:
        args = parser().parse_args(argv)
        args.typed = shlex.join(["mapmri-nb", *(sys.argv[1:] if argv is None else argv)])
    except SystemExit as stop:  # argparse has said what is wrong
        return int(stop.code or 0)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("mapmri-nb: %(message)s"))
    previous = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if getattr(args, "quiet", False) else logging.INFO)
    try:
        with _announced():
            files = args.run(args)
        if getattr(args, "list_outputs", False):
            print(json.dumps([str(path.absolute()) for path in files or []], indent=0))
    except KeyboardInterrupt:
        log.error("interrupted")
        return INTERRUPTED
    except (ValueError, OSError, ImportError, MemoryError) as error:
        text = (
            f"{error.strerror}: {error.filename}"
            if isinstance(error, OSError) and error.filename
            else str(error)
        )
        log.error("error: %s", _spoken(text) or type(error).__name__)
        return 1
    finally:
        log.removeHandler(handler)
        log.setLevel(previous)
    return 0


def run() -> None:
    """Entry point of ``mapmri-nb``."""
    sys.exit(main())
