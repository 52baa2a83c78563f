"""The command ``mapmri-nb``: arguments in, files and exit codes out."""

import argparse
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..indices import ON_REQUEST
from . import commands, fitting, packed

log = logging.getLogger("mapmri_nb")
INTERRUPTED = 130  # the shell's code for SIGINT
MOST_TEXT = 300  # characters of an error
WORDS = (  # of the library, where no argument is named; and their words here
    ("Leave it out (--volumes V)", "Leave it out (--volumes V) or give it weight 0 (--weights F)"),
    ("table[select]", "--volumes"),
    ("or None", "or none"),
    ("bvecs: their", "b-vectors: their"),
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
    """A path, ~ at home; "" would mean the current folder, and mostly is a variable never set."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(os.path.expanduser(text))  # --out=~/x: no shell does it


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


FILE: dict[str, Any] = {"type": _path, "metavar": "F"}
FOLDER: dict[str, Any] = {"type": _path, "metavar": "DIR"}
TIME: dict[str, Any] = {"type": float, "metavar": "S"}
FLAG: dict[str, Any] = {"action": "store_true"}


def _of(kind: Any, metavar: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "metavar": metavar, **more}


def _among(*words: str, **more: Any) -> dict[str, Any]:
    """One of some words, the first by default."""
    return {"choices": words, "default": words[0], **more}


Options = tuple[tuple[str, str, dict[str, Any]], ...]  # name, help, and how it is read

QUIET: Options = (
    ("--quiet", "warnings and errors only", FLAG),
    ("--list-outputs", "print the files written as a JSON list", FLAG),
)
FORCE: Options = (("--force", "overwrite what is there", FLAG),)
MAPS: Options = (
    ("--indices", f"which maps (default: all); on request {', '.join(ON_REQUEST)}",
     {"default": "all", "metavar": "A,B,C|all"}),
    ("--labels", "image of whole numbers: regions of the summary.tsv, in the mask", FILE),
    ("--units", "unit of length in the maps (default: mm)", _among("mm", "um")),
)  # fmt: skip
FILL: Options = (("--fill", "value where there is no fit (default: nan)", _among("nan", "0")),)
TABLE: Options = (
    ("--bval", "b-values in s/mm2 (default: beside the series, or inherited)", FILE),
    ("--bvec", "b-vectors, in rows or columns (default: beside the series)", FILE),
    ("--grad", "MRtrix's table x y z b, scanner axes, instead of the two (default: a .b beside the "
     "series)", FILE),
    ("--json", "sidecar with the pulse timing (default: beside the series)", FILE),
    ("--big-delta", "separation of the gradient pulses in SECONDS", TIME),
    ("--small-delta", "duration of a gradient pulse in SECONDS", TIME),
    ("--tau", "diffusion time in SECONDS, instead of the two", TIME),
    ("--b0-threshold", "b up to it counts as b = 0, s/mm2 (default: 50)", _of(float, "B")),
    ("--frame", "axes of --bvec: FSL's (image, the default), voxel axes (QSIPrep, DIPY) or scanner "
     "axes", _among("image", "voxel", "scanner", default=None)),
    ("--bvec-scaling", "lengths that differ: an error (default), no meaning, or amplitudes, "
     "b |v|^2", _among("refuse", "normalise", "amplitude", default=None)),
    ("--volumes", "b<=3000, 0:96,100 (from 0) or a text file of numbers", {"metavar": "V"}),
)  # fmt: skip
SAVED: Options = (
    ("dir", "folder of a saved fit, or the fit's JSON", FOLDER),
    ("prefix", "which fit, where the folder has several", {"nargs": "?", "metavar": "PREFIX"}),
)
OUT: Options = (("--out", "(default: the fit's own folder)", FOLDER),)
FIT: Options = (
    ("dwi", "4-D NIfTI series", _of(_path, "DWI")),
    ("--mask", "3-D NIfTI, fitted where not 0, or above 0.5 if it has more than two values "
     "(default: where there is signal at b = 0)", FILE),
    ("--out", "folder for the fit", FOLDER | {"required": True}),
    ("--radial-order", "even, 0 to 10 (default: 6)", _of(int, "N", default=6)),
    ("--basis", "one scale for each axis of the tensor (default) or one for all directions",
     _among("anisotropic", "isotropic")),
    ("--laplacian", "weight of the Laplacian penalty, 1/mm; gcv or a list: the best of each voxel "
     "(default: 0.2)", _of(_weights, "none|gcv|W|W,W,...", default=0.2)),
    ("--positivity", "propagator >= 0 on a grid (grid) or everywhere (global) (default: none)",
     _among("none", "grid", "global")),
    ("--solver", "for --positivity (default: auto)", _among("auto", "osqp")),
    ("--zeros", "what samples of exactly 0 beside positive ones are (default: missing)",
     _of(_zeros, "missing|data", dest="zero_is_missing", default=True)),
    ("--bval-threshold", "largest b of the scale tensor, s/mm2 (default: auto, 2100 or what the "
     "table needs)", _of(_number, "auto|B|none", default="auto")),
    ("--eigenvalue-threshold", "smallest eigenvalue of the scale tensor, mm2/s (default: a tenth "
     "of the voxel's mean)", _of(float, "D")),
    ("--laplacian-of", "what the Laplacian smooths: the deviation from the tensor's Gaussian "
     "(default) or the signal", _among("deviation", "signal")),
    ("--s0", "E(0) by the fit with the mean b0 as one more sample (default), free, or the mean b0",
     _among("fit", "free", "b0", dest="S0")),
    ("--scale", "of the basis: narrower where positivity contradicts the data (default) or the "
     "tensor's", _among("data", "tensor")),
    ("--noise", "raw (rician) or denoised magnitudes, whose noise floor is modelled (default: "
     "none)", _among("none", "rician", "denoised")),
    ("--sigma", "of the noise: a number or a 3-D NIfTI (default: by the fit)", _of(_sigma, "S|F")),
    ("--coils", "coils whose sum of squares the image is (default: 1)", _of(int, "L", default=1)),
    ("--preset", "paper: the published method, signal Laplacian, E(0) free (given with "
     "--positivity), b <= 2100", {"choices": ("paper",)}),
    ("--static-diffusivity", "one scale for all voxels, mm2/s, for --basis isotropic (default: "
     "from the tensor)", _of(float, "D")),
    ("--weights", "weights >= 0: one per volume in a text file, or an image like the series; 0 is "
     "missing", FILE),
    ("--grad-dev", "gradient non-linearity, nine volumes as HCP's grad_dev", FILE),
    ("--bootstrap", "error bars by N replicates of the wild bootstrap: maps desc-sd and desc-ci95 "
     "(low, high) of each index but those on request; after the fit, with its coefficients in "
     "memory", _of(int, "N")),
    ("--posterior", "the same by the Gaussian posterior of the coefficients; not for --positivity",
     FLAG),
    ("--seed", "of --bootstrap (default: 0)", _of(int, "S")),
    ("--reestimate", "--bootstrap estimates scales and Laplacian weight again (default: held at "
     "one weight and b up to 4000)", FLAG),
    ("--threads", "(default: Numba's number); with dask, workers of a local cluster",
     _of(int, "N")),
    ("--resume", "go on with an interrupted fit of the same input and options", FLAG),
    ("--engine", "(default: threads)", _among("threads", "dask")),
    ("--scheduler", "of a running cluster for --engine dask (default: one on this machine)",
     {"metavar": "ADDRESS"}),
)  # fmt: skip
ODF: Options = (
    ("--s", "radial moment, > -3 (default: 2)", {"type": float, "default": 2.0}),
    ("--sh-order", "even (default: 6)", _of(int, "L", default=6)),
    ("--sh-basis", "tournier07 (MRtrix, default) or descoteaux07",
     {"default": "tournier07", "metavar": "NAME"}),
    ("--pam5", "peaks and harmonics for DIPY as well, by DIPY", FLAG),
)  # fmt: skip
PREDICT: Options = (
    ("--noisy", "expected magnitudes of a fit with --noise", FLAG),
    ("--out", "the series, .nii or .nii.gz", FILE | {"required": True}),
)
REPORT: Options = (
    SAVED[0],
    ("prefix", "which fit, where the folder has several; or a second fit to compare with the first",
     {"nargs": "?", "metavar": "PREFIX|DIR"}),
    ("--out", "(default: report.html beside the fit, after its PREFIX where it has neighbours; "
     "comparison.html beside the second)", FILE),
    ("--dwi", "the fitted series (default: where it was, if it is still there)", FILE),
    ("--convention", "radiological (patient's left on the right, default) or neurological",
     _among("radiological", "neurological")),
)  # fmt: skip
CITE: Options = (
    ("dir", "folder of a saved fit", FOLDER | {"nargs": "?"}),
    SAVED[1],
    ("--mode", "instead of DIR", {"choices": ("MAP", "MAPL", "CMAP", "CMAPL", "MAP+", "MAPL+")}),
)
DEMO: Options = (
    ("--out", "(default: ./mapmri-demo; an earlier demo there is rewritten)",
     FOLDER | {"default": Path("mapmri-demo")}),
)  # fmt: skip
FINAL = FORCE + QUIET
COMMANDS: tuple[tuple[Any, str, Options], ...] = (
    (fitting.fit, "fit a series; coefficients and index maps into --out",
     TABLE + MAPS + FILL + FINAL + FIT),
    (commands.indices, "index maps of a saved fit", SAVED + MAPS + FILL + FINAL + OUT),
    (commands.odf, "ODF of a saved fit in spherical harmonics", SAVED + FILL + FINAL + ODF + OUT),
    (commands.predict, "signal of a saved fit, for its own or another table",
     SAVED + TABLE + FILL + FINAL + PREDICT),
    (commands.report, "one self-contained HTML page on a saved fit, or on two fits of one series",
     FINAL + REPORT),
    (commands.cite, "methods paragraph and BibTeX of a fit or a mode; of all without", CITE),
    (commands.demo, "fit the two bundled samples, print and write their maps", QUIET + DEMO),
    (commands.warmup, "compile every kernel into the cache, once per machine", QUIET),
    (commands.info, "versions, threads, cache: what to paste into a bug report", ()),
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    from .. import __version__

    text = "MAP-MRI from NIfTI series to index maps."
    whole = argparse.ArgumentParser(prog="mapmri-nb", description=text, allow_abbrev=False)
    whole.add_argument("--version", action="version", version=f"mapmri-nb {__version__}")
    subparsers = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for run, text, options in COMMANDS:
        new = subparsers.add_parser(run.__name__, help=text, description=text, allow_abbrev=False)
        new.set_defaults(run=run, begun=None)
        for name, words, how in options:
            new.add_argument(name, help=words, **how)
    return whole


def _spoken(text: str) -> str:
    """A message of the library in the words of the command line, one line, 300 characters."""
    found = {option for action in _options() for option in action.option_strings}
    for option in sorted(found, key=len, reverse=True):
        name = option.removeprefix("--").replace("-", "_")
        alone = "" if "_" in name else r"(?= must\b| is missing|: | = |, or\b|\[\d+\] = )"
        alone = r"(?= must\b)" if name == "s" else alone
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
    names = ("fit", "odf", "predict", "report")
    return [action for name in names for action in subparsers.choices[name]._actions]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

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
        series = args.dwi if args.run is fitting.fit else None
        with packed.coming(series) as args.begun, fitting.compiling():
            files = args.run(args)
        if getattr(args, "list_outputs", False):
            print(json.dumps([str(path.absolute()) for path in files or []], indent=0))
    except KeyboardInterrupt:
        log.error("interrupted")
        return INTERRUPTED
    except (ValueError, OSError, ImportError, MemoryError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f"{error.strerror}: {error.filename}"
        log.error("error: %s", text or type(error).__name__)
        return 1
    finally:
        log.removeHandler(handler)
        log.setLevel(previous)
    return 0


def run() -> None:
    """Entry point of ``mapmri-nb``: the process ends at once, since to take down what Numba has
    loaded takes .15 s.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
