"""Bits of a voxel's status, as kernels set them; `mapmri_nb.status` names and explains them."""

FLOOR = 1
DROPPED = 2
RTOP_NOT_POSITIVE = 4
WEIGHT_AT_BOUND = 8
BY_OSQP = 16
SHIFTED = 32
OUT_OF_RANGE = 64
NO_SIGNAL = 256
TOO_FEW = 512
NOT_DEFINITE = 1024
NO_ORIGIN = 2048
NOT_CONVERGED = 4096
UNSETTLED = 8192
NO_FIT = NO_SIGNAL | TOO_FEW | NOT_DEFINITE | NO_ORIGIN | NOT_CONVERGED
# Internal, never in a fit: a second pass must fit this voxel, with moments in its own frame (or
# with samples missing, where the others share a linear map), or with a narrower basis.
STRAINED = 1 << 20
CONTRADICTED = 1 << 21
