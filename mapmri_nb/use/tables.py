"""The gradient table that a command line means: files named or found, and the frame they are in."""

import argparse
import inspect
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger("mapmri_nb")


def table_of(
    args: argparse.Namespace,
    beside: Path,
    affine: Any,
    frame: str | None = None,
    count: int | None = None,
    idle: Any = False,
) -> tuple[Any, Any]:
    """Gradient table from the files named, or from those that go with a series of `count` volumes,
    and the numbers of its volumes: those of --volumes, less `idle` ones (n,) that have no
    direction.

    Times on the command line go before those of a sidecar. FSL's b-vectors are along the axes of
    `frame` where nothing tells; MRtrix's .b, named or beside the series, does.
    """
    import numpy as np

    from .. import readers
    from ..gradients import GradientTable

    if args.grad and args.frame in ("image", "voxel"):
        raise ValueError(f"--frame {args.frame} goes with --bvec: --grad is along scanner axes")
    if args.grad and (args.bval or args.bvec):
        raise ValueError("--grad is a table of its own: it goes with neither --bval nor --bvec")
    found = readers.beside(beside)
    path = args.grad or readers.mrtrix_beside(beside)
    alone = args.grad and args.frame  # without a look at what lies beside
    if path and (alone or not (args.frame or args.bvec or found["bvec"].is_file())):
        entries: dict[str, Any] = readers.mrtrix(path)
    else:
        entries = dict(readers.fsl(args.bval or found["bval"], args.bvec or found["bvec"]))
        told = args.frame or (not path and readers.along_voxels(args.bvec or beside) and "voxel")
        entries["frame"] = told or frame or "image"
        if path:
            scanner: dict[str, Any] = readers.mrtrix(path)
            entries["frame"] = _agreed(entries, scanner, affine, path, args.frame)
            entries = scanner if args.grad else entries
        elif not (told or frame) and np.linalg.det(affine[:3, :3]) > 0:
            text = "(x negated, as the affine's determinant is positive); --frame voxel reads them"
            text = f"b-vectors are read in FSL's convention {text} along the voxel axes"
            log.info("%s (QSIPrep, DIPY, DSI Studio)", text)
    bvals = entries["bvals"]
    if count not in (None, len(bvals)):
        raise ValueError(f"{beside} has {count} volumes, its gradient table {len(bvals)}")
    entries |= readers.deltas(args.json or found["json"], arguments(args, GradientTable))
    keep = np.arange(len(bvals))
    if args.volumes is not None:
        keep = readers.volumes(args.volumes, bvals)
        log.info("--volumes %s: %d of %d", args.volumes, len(keep), len(bvals))
    keep = keep[~(readers.undirected(bvals, entries["bvecs"]) & idle)[keep]]
    return GradientTable(**readers.chosen(entries, keep)), keep


def _agreed(entries: Any, scanner: Any, affine: Any, path: Path, told: str | None) -> str:
    """The frame in which FSL's table agrees with MRtrix's of the same series."""
    from ..gradients import SAME_DIRECTION, same_directions

    angles = same_directions(entries, scanner, affine)
    text = "they are not of the same series"
    if max(angles.values()) <= 90:
        text = "{:.3g} degrees read in the {} frame"
        text = "up to " + ", ".join(text.format(angle, name) for name, angle in angles.items())
    agree = [name for name, angle in angles.items() if angle <= SAME_DIRECTION]
    if told:
        if told not in agree:
            log.warning("b-vectors read by --frame %s contradict %s: %s", told, path.name, text)
        return told
    if not agree:
        alone = "(--grad FILE --frame scanner) or the b-vectors alone (--frame image: FSL; voxel:"
        text = f"b-vectors contradict {path.name}: {text}. Take it alone {alone} QSIPrep, DIPY)"
        raise ValueError(text)
    log.info("b-vectors agree with %s read in the %s frame", path.name, " or ".join(agree))
    return agree[0]


def arguments(args: argparse.Namespace, constructor: Any) -> dict[str, Any]:
    """What the command line says of a constructor's arguments; ``none`` is None."""
    names = [name for name in inspect.signature(constructor).parameters if hasattr(args, name)]
    return {name: None if (v := getattr(args, name)) == "none" else v for name in names}
