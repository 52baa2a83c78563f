"""The one enumeration of what happened in a voxel."""

import enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernels import status


class Status(enum.IntFlag):
    """What happened in a voxel (`MEANING`: in words); NO_FIT: every map is NaN there."""

    OK = 0
    FLOOR = status.FLOOR
    DROPPED = status.DROPPED
    RTOP_NOT_POSITIVE = status.RTOP_NOT_POSITIVE
    WEIGHT_AT_BOUND = status.WEIGHT_AT_BOUND
    BY_OSQP = status.BY_OSQP
    SHIFTED = status.SHIFTED
    OUT_OF_RANGE = status.OUT_OF_RANGE
    OUTSIDE = 128  # of the mask: in volumes only
    NO_SIGNAL = status.NO_SIGNAL
    TOO_FEW = status.TOO_FEW
    NOT_DEFINITE = status.NOT_DEFINITE
    NO_ORIGIN = status.NO_ORIGIN
    NOT_CONVERGED = status.NOT_CONVERGED
    UNSETTLED = status.UNSETTLED
    NO_FIT = status.NO_FIT


MEANING = {
    Status.FLOOR: "an eigenvalue of the scale tensor was raised to the floor",
    Status.DROPPED: "samples were missing, had weight 0, or were not positive (left out of the "
    "tensor's logarithm)",
    Status.RTOP_NOT_POSITIVE: "RTOP is not positive",
    Status.WEIGHT_AT_BOUND: "GCV chose an end of its range",
    Status.BY_OSQP: "answered by OSQP after the compiled solver",
    Status.SHIFTED: "certified positive after a shift within rounding",
    Status.OUT_OF_RANGE: "an index is outside its range: MSD, RTAP, RTPP or QIV not positive, or "
    "|E| above 1 beyond noise",
    Status.OUTSIDE: "outside the mask",
    Status.UNSETTLED: "the correction of the noise floor did not settle",
    Status.NO_SIGNAL: "no fit: no positive signal at b = 0",
    Status.TOO_FEW: "no fit: too few valid samples",
    Status.NOT_DEFINITE: "no fit: normal equations not positive definite",
    Status.NO_ORIGIN: "no fit: E(0) not positive before normalisation",
    Status.NOT_CONVERGED: "no fit: the solver did not converge",
}

IN_WORDS = {
    Status.FLOOR: "had an eigenvalue raised to the floor",
    Status.DROPPED: "had samples left out",
    Status.RTOP_NOT_POSITIVE: "have an RTOP that is not positive",
    Status.WEIGHT_AT_BOUND: "have a Laplacian weight at an end of GCV's range",
    Status.BY_OSQP: "were answered by OSQP",
    Status.SHIFTED: "were certified after a shift within rounding",
    Status.OUT_OF_RANGE: "have an index outside its range",
    Status.UNSETTLED: "have a noise floor whose correction did not settle",
}


def in_words(status: NDArray[np.int64]) -> str:
    """What happened in the voxels (V,) of a fit, as text: "3 voxels had samples left out; ..."."""

    def voxels(some: Any) -> str:
        count = int(np.count_nonzero(some))
        return "1 voxel" if count == 1 else f"{count} voxels"

    failed = (status & Status.NO_FIT) != 0
    notes = [
        f"{voxels(some)} {words}"
        for flag, words in IN_WORDS.items()
        if (some := ((status & flag) != 0) & ~failed).any()
    ]
    reasons = ", ".join(
        f"{count} {MEANING[flag].removeprefix('no fit: ')}"
        for flag in MEANING
        if flag & Status.NO_FIT and (count := np.count_nonzero(status & flag))
    )
    end = "all were fitted"
    if failed.any():
        some = "none" if failed.all() else voxels(~failed)
        end = f"{some} fitted, {voxels(failed)} not: {reasons}"
    return "; ".join([*notes, end])
