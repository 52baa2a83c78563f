"""The named tuples of a fit: what is constant (Plan), what comes in (Data), scratch (Block), what
goes out (Out).

V is the number of voxels of a block, a `lanes.padded` number; arrays of a Block have their voxels
last. Lengths are in mm, diffusivities in mm2/s, samples in the data's units.
"""

from typing import NamedTuple

import numpy as np

from . import gcv, lanes, laplacian, moments, noise, origin, rescale, tensor
from ._types import Array, IntArray
from .linalg import SparseMap

# rows of Block.scalars and columns of Out.scalars, in this order; yy and valid are scratch
SCALARS = (
    "S0", "laplacian_weight", "yy", "valid", "rmse", "r2", "kkt", "iterations", "margin", "sigma",
)  # fmt: skip


class LinearMap(NamedTuple):
    """Coefficients A y + a S0_b, in block order, where all voxels share scale, frame and samples;
    of size 0 for other fits.
    """

    A: Array = np.zeros((0, 0))  # (n 4, samples), 4: with rows of zeros, see `pad4`
    a: Array = np.zeros(0)  # (n,)
    basis: Array = np.zeros((0, 0))  # (samples 4, n): M, for the fitted signals


class Plan(NamedTuple):
    """Everything constant for a model and a gradient table."""

    order: int
    isotropic: bool
    tau: float  # s
    floor: float  # mm2/s, smallest eigenvalue
    share: float  # of the mean diffusivity, smallest eigenvalue where that is more
    static_scale: float  # mm, u0 given by static_diffusivity; 0: from the tensor
    needed: int  # fewest valid samples
    tensor: tensor.TensorTables
    moments: moments.OrderTables
    scheme: moments.Scheme
    lap: laplacian.LaplacianTables
    gcv: gcv.GcvTables
    public: SparseMap  # block order to the basis' public coefficients
    rules: origin.Rules
    laplacian_weights: Array  # (0,) GCV, (1,) fixed, more: the best of them
    zero_is_missing: bool
    linear: LinearMap = LinearMap()


class Data(NamedTuple):
    """Rows of voxels, float64 and C-contiguous; given scales and field have length 0 when absent,
    and any array may have length 1 for all voxels.
    """

    y: Array  # (voxels, samples)
    weight: Array  # (voxels, samples) sample weights
    mu: Array  # (voxels, 3) given scales, mm
    R: Array  # (voxels, 3, 3) given frames
    field: Array  # (voxels, 3, 3) gradient non-linearity, q' = (I + field) q
    sigma: Array = np.zeros(0)  # (voxels,) of the noise
    factor: Array = np.zeros(0)  # (voxels,) of the basis' scales over those given


class Out(NamedTuple):
    """Rows of results, written in place."""

    coef: Array  # (voxels, n)
    mu: Array  # (voxels, 3) scales of the basis, mm
    mu_tensor: Array  # (voxels, 3) mm
    R: Array  # (voxels, 3, 3)
    scalars: Array  # (voxels, 10): SCALARS
    status: IntArray  # (voxels,)


class Block(NamedTuple):
    """State and scratch of one block of V voxels, for one thread; make it with `new_block`."""

    y: Array  # (samples, V)
    w: Array  # (samples, V), 0: missing
    ordinary: IntArray  # (1,), 1 where all weights are 1 and all samples positive
    tensor: tensor.TensorWork
    moments: moments.MomentWork
    gcv: gcv.Work
    values: Array  # (3, V) eigenvalues of the scale tensor, mm2/s; scratch of `write`
    R: Array  # (V, 3, 3)
    D: Array  # (6, V) tensor of the basis' Gaussian, mm2/s
    D_scale: Array  # (6, V) scale tensor, mm2/s
    mu: Array  # (3, V) mm
    mu_tensor: Array  # (3, V) mm
    stretched: Array  # (3, V) mm, mu times the scales of the field; mu without a field
    sign: Array  # (3, V) of the columns of R against those given
    G: Array  # ((n + 1)(n + 2)/2, V) packed M'M + weight L, and a right-hand side's row
    rhs: Array  # (n, V) M'y
    x: Array  # (n, V) coefficients in block order
    public: Array  # (n, V) coefficients of the basis
    # (1, V) smallest pivot; number of samples in `choose_weight`; largest |E| after `residuals`
    pivot: Array
    factors: Array  # (6, V) `laplacian.factors`
    bound: IntArray  # (V,)
    status: IntArray  # (V,)
    row: Array  # (1, V) weight of the sample at q = 0
    noise: noise.Work
    scale: rescale.Work
    few: Array  # (9,) scratch of one voxel
    scalars: Array  # (10, V): the rows below, which are views of it
    S0: Array  # S0_b up to the solver, the fitted E(0) after it, in the data's units
    laplacian_weight: Array
    yy: Array  # y'Wy
    valid: Array  # number of valid samples
    rmse: Array
    r2: Array
    kkt: Array
    iterations: Array
    margin: Array  # of the certificate of positivity
    sigma: Array  # of the noise; NaN where it is not modelled


def new_block(plan: Plan, V: int) -> Block:
    """A block of V voxels for `plan`; V is a `lanes.padded` number."""
    n, samples = plan.moments.origin.size, len(plan.scheme.points)

    def empty(*sizes: int) -> list[Array]:
        return [lanes.empty(size, V) for size in sizes]

    chosen = plan.laplacian_weights.size != 1
    scalars = lanes.empty(len(SCALARS), V)
    return Block(
        *empty(samples, samples),
        np.zeros(1, np.int64),
        tensor.workspace(plan.tensor.pinv.shape[1], V),
        moments.workspace(plan.moments, plan.scheme, plan.order, V),
        gcv.workspace(n if chosen else 0, V if chosen else 0),
        *empty(3),
        np.zeros((V, 3, 3)),
        *empty(6, 6, 3, 3, 3, 3, (n + 1) * (n + 2) // 2, n, n, n, 1, 6),
        np.zeros(V, np.int64),
        np.zeros(V, np.int64),
        *empty(1),
        noise.workspace(samples, n, V, plan.rules),
        rescale.workspace(n, V, plan.rules.rescale),
        np.zeros(9),
        scalars,
        *(scalars[k : k + 1] for k in range(len(SCALARS))),
    )


def new_rows(count: int, n: int) -> Out:
    """Rows of results for `count` voxels with n coefficients, which hold anything until fitted."""
    return Out(
        np.empty((count, n)), np.zeros((count, 3)), np.zeros((count, 3)), np.zeros((count, 3, 3)),
        np.zeros((count, len(SCALARS))), np.zeros(count, np.int64),
    )  # fmt: skip


def cut(rows: Out, first: int, stop: int) -> Out:
    """Views of rows first to stop - 1."""
    return Out(*[array[first:stop] for array in rows])
