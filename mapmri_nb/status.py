"""The one enumeration of what happened in a voxel."""

import enum

from .kernels import batch


class Status(enum.IntFlag):
    """
    What happened in a voxel (`MEANING` says it in words); any of NO_FIT means that every map is NaN
    there.
    """

    OK = 0
    FLOOR = batch.FLOOR
    DROPPED = batch.DROPPED
    RTOP_NOT_POSITIVE = batch.RTOP_NOT_POSITIVE
    WEIGHT_AT_BOUND = batch.WEIGHT_AT_BOUND
    BY_OSQP = batch.BY_OSQP
    SHIFTED = batch.SHIFTED
    OUTSIDE = 128  # of the mask: in volumes only
    NO_SIGNAL = batch.NO_SIGNAL
    TOO_FEW = batch.TOO_FEW
    NOT_DEFINITE = batch.NOT_DEFINITE
    NO_ORIGIN = batch.NO_ORIGIN
    NOT_CONVERGED = batch.NOT_CONVERGED
    NO_FIT = batch.NO_FIT


MEANING = {
    Status.FLOOR: "an eigenvalue of the scale tensor was raised to the floor",
    Status.DROPPED: "samples were missing, had weight 0, or were not positive (left out of the tensor's logarithm)",
    Status.RTOP_NOT_POSITIVE: "RTOP is not positive",
    Status.WEIGHT_AT_BOUND: "GCV chose an end of its range",
    Status.BY_OSQP: "answered by OSQP after the compiled solver",
    Status.SHIFTED: "certified positive after a shift within rounding",
    Status.OUTSIDE: "outside the mask",
    Status.NO_SIGNAL: "no fit: no usable signal",
    Status.TOO_FEW: "no fit: too few valid samples",
    Status.NOT_DEFINITE: "no fit: normal equations not positive definite",
    Status.NO_ORIGIN: "no fit: E(0) not positive before normalisation",
    Status.NOT_CONVERGED: "no fit: the solver did not converge",
}
