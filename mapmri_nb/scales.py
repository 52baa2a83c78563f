"""Up to which b the scale tensor is fitted, and whether its scales can be trusted."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .gradients import GradientTable
from .kernels import tensor
from .status import Status

log = logging.getLogger(__name__)
Array = NDArray[np.float64]

LOW_B = 2100.0  # s/mm2, shells called 2000 jitter
ATTENUATION = 1.5  # b D of the tensor that a threshold is judged by
THIN_SPREAD = 2.0  # of `tensor_spread`: the tensor's elements scatter by 10 % at an SNR of 20
MOST_FLOOR = 0.1  # of the voxels at the floor, without a warning
LITTLE_DECAY = 0.5  # b D below which a tensor is hardly determined
WATER = 2e-5, 4e-3  # mm2/s: mean diffusivities of tissue, fixed ones too; free water has 3e-3


def tensor_spread(gtab: GradientTable, threshold: float | None) -> float:
    """Largest standard error of a combination of the scale tensor's elements over its diffusivity,
    for noise of S0: by the volumes up to a threshold, for an isotropic tensor that leaves exp(-1.5)
    of the signal there (at 2100 s/mm^2: 0.7e-3 mm^2/s). inf where they do not determine a tensor.
    """
    b = gtab.bvals
    use = np.ones(len(b), bool) if threshold is None else b <= threshold
    D = ATTENUATION / max(float(b.max()) if threshold is None else threshold, LOW_B)
    X = np.column_stack([D * tensor.design_matrix(b[use], gtab.bvecs[use]), np.ones(use.sum())])
    X *= np.exp(-D * b[use])[:, None]
    if np.linalg.matrix_rank(X, tol=1e-6) < 7:
        return math.inf
    # in a basis orthonormal for the sum of squares of all nine elements: no frame then matters
    w = np.where(tensor.ROWS == tensor.COLS, 1.0, 2.0**0.5)
    return float(np.sqrt(np.linalg.eigvalsh(w[:, None] * np.linalg.inv(X.T @ X)[:6, :6] * w)[-1]))


def scale_threshold(gtab: GradientTable) -> float:
    """The b-value up to which volumes make the scale tensor: 2100 s/mm^2, or the first shell beyond
    at which `tensor_spread` is small (or the last, if it nowhere is). A function of the table
    alone.
    """
    shells = sorted(b for b, _ in gtab.shells() if b > LOW_B)
    for threshold in [LOW_B, *(1.05 * b for b in shells)]:
        if tensor_spread(gtab, threshold) <= THIN_SPREAD:
            return float(round(threshold))
    return float(round(1.05 * shells[-1])) if shells else LOW_B


def judge(
    status: NDArray[np.int64], mu_tensor: Array, model: Any, noise: Array | None = None
) -> None:
    """Warn where a model's scale tensors, or sigma, are doubtful: status (V,), mu_tensor (V, 3) in
    mm, noise (V,) is sigma / S0.
    """
    options, gtab = model.options, model.gtab
    done = np.flatnonzero(status & int(Status.NO_FIT) == 0)
    if len(done) == 0:
        return
    if noise is not None and np.median(noise[done]) > 1:
        log.warning("sigma is above S0 in most voxels: is it in the units of the data?")
    floor = float((status[done] & int(Status.FLOOR) != 0).mean())
    if floor > MOST_FLOOR:
        log.warning(
            "%.0f %% of the voxels have an eigenvalue at the floor: eigenvalue_threshold (%s) "
            "is too high for them, or b up to bval_threshold = %s determines too little",
            100 * floor, options["eigenvalue_threshold"] or "a tenth of the mean",
            options["bval_threshold"],
        )  # fmt: skip
    used = options["bval_threshold"] or math.inf
    rest, below = gtab.bvals > used, gtab.bvals <= used
    some = mu_tensor[done[:: 1 + len(done) // 1000]]
    md = float(np.median((some**2).mean(1))) / (2.0 * gtab.tau)
    if not WATER[0] < md < WATER[1]:
        text = "the median mean diffusivity is %.2g mm2/s, and free water has 3e-3: is b in s/mm2?"
        log.warning(text, md)
    if rest.any() and md * gtab.bvals[below].max() < LITTLE_DECAY:
        log.warning(
            "the median mean diffusivity is %.2g mm2/s, as in fixed tissue: b <= %s hardly "
            "attenuates it and %d volumes have more; pass bval_threshold=%.0f",
            md, used, rest.sum(), 1.05 * min(ATTENUATION / md, gtab.bvals.max()),
        )  # fmt: skip
