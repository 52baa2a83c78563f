"""MapmriFit: rows of coefficients over a mask, and everything that follows from them."""

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .gradients import GradientTable
from .indices import INDICES
from .kernels import batch, frames, moments, ordering, propagator, scalars, tensor
from .kernels._jit import n_threads, spread
from .kernels.lanes import columns
from .kernels.linalg import block_map, sparse_map

if TYPE_CHECKING:
    from pathlib import Path

    from . import directions, sos

Array = NDArray[np.float64]


class Status(enum.IntFlag):
    """What happened in a voxel; any of NO_FIT means that every map is NaN there."""

    OK = 0
    FLOOR = batch.FLOOR  # an eigenvalue of the scale tensor was raised to the floor
    DROPPED = batch.DROPPED  # samples were missing, had weight 0, or were <= 0 (left out of the logarithm)
    RTOP_NOT_POSITIVE = batch.RTOP_NOT_POSITIVE
    WEIGHT_AT_BOUND = batch.WEIGHT_AT_BOUND  # GCV chose an end of its range
    BY_OSQP = batch.BY_OSQP  # answered by OSQP, the compiled solver's fallback
    SHIFTED = batch.SHIFTED  # certified after a shift within rounding
    OUTSIDE = 128  # outside the mask (volumes only)
    NO_SIGNAL = batch.NO_SIGNAL
    TOO_FEW = batch.TOO_FEW  # valid samples
    NOT_DEFINITE = batch.NOT_DEFINITE  # normal matrix not positive definite at this voxel
    NO_ORIGIN = batch.NO_ORIGIN  # E(0) <= 0 before normalisation
    NOT_CONVERGED = batch.NOT_CONVERGED
    NO_FIT = batch.NO_FIT


def fit_rows(out: batch.Out) -> dict[str, NDArray[Any]]:
    """The rows of a fit by their names, from the kernels' output."""
    rows: dict[str, NDArray[Any]] = {"coef": out.coef, "mu": out.mu, "mu_tensor": out.mu_tensor, "R": out.R}
    for name, column in LANE_COLUMNS.items():
        rows[name] = np.ascontiguousarray(out.lane[:, column])
    return rows | {"status": out.status}


LANE_COLUMNS = {
    "S0": batch.S0,
    "laplacian_weight": batch.WEIGHT,
    "rmse": batch.RMSE,
    "r2": batch.R2,
    "kkt": batch.KKT,
    "iterations": batch.ITERATIONS,
    "margin": batch.MARGIN,
}
ATTRIBUTES = ("coef", "mu", "mu_tensor", "R", "S0", "laplacian_weight", "status")


class MapmriFit:
    """
    A fit of V voxels: plain rows over the mask, in C order of the mask.

    Attributes
    ----------
    coef : (V, n) in DIPY's order: anisotropic, in the frame R at scales mu; isotropic, in the b-vectors' frame.
    mu : (V, 3) mm, scales of the basis ((u0, u0, u0) when isotropic). mu_tensor : (V, 3) mm, the tensor's.
    R : (V, 3, 3), columns e1 e2 e3. field : (V, 3, 3) gradient non-linearity or None.
    S0 : (V,). laplacian_weight : (V,) 1/mm. status : (V,) of `Status`.
    mask : bool volume. gtab : the gradient table. options : what the model was told.

    Methods return volumes of the mask's shape, NaN outside it and where the status says there is no fit.
    """

    coef: Array
    mu: Array
    mu_tensor: Array
    R: Array
    S0: Array
    laplacian_weight: Array
    status: NDArray[np.int64]

    def __init__(
        self, rows: dict[str, NDArray[Any]], mask: NDArray[np.bool_], options: dict[str, Any], gtab: GradientTable
    ) -> None:
        self._rows, self.mask, self.options, self.gtab = rows, mask, options, gtab
        for name in ATTRIBUTES:
            setattr(self, name, rows[name])
        self.order = int(options["radial_order"])
        self.isotropic = options["basis"] == "isotropic"
        self.field: Array | None = rows.get("field")
        self._nine: Array | None = None
        self._hermite: Array | None = None

    @classmethod
    def from_rows(
        cls, rows: dict[str, NDArray[Any]], mask: NDArray[np.bool_], options: dict[str, Any], gtab: GradientTable
    ) -> MapmriFit:
        """A fit from its stored rows."""
        return cls(rows, mask, options, gtab)

    def rows(self) -> dict[str, NDArray[Any]]:
        """The stored rows over the mask."""
        return self._rows

    def volume(self, rows: NDArray[Any], fill: float = np.nan) -> NDArray[Any]:
        """Rows (V, ...) over the mask as a volume (*mask.shape, ...), `fill` outside."""
        out = np.full(self.mask.shape + rows.shape[1:], fill, dtype=rows.dtype)
        out[self.mask] = rows
        return out

    def hermite_coef(self) -> Array:
        """Hermite coefficients (V, n) in the tensor's frame R at scales `mu`, for both bases."""
        if not self.isotropic:
            return self.coef
        if self._hermite is None:  # costs a rotation a voxel
            matrix = ordering.iso_to_aniso(self.order)
            i, j = np.nonzero(matrix)
            coef = columns(self.coef)
            out = np.empty_like(coef)  # BLAS would give a row other bits beside other rows
            block_map(sparse_map(i, j, matrix[i, j], len(matrix)), coef, out)
            self._hermite = self._turn(out[:, : len(self.coef)].T, inverse=False)
        return self._hermite

    def set_hermite(self, coef: Array) -> None:
        """Use these Hermite coefficients instead of deriving them (replicates of an isotropic fit have no others)."""
        self._hermite = coef

    def _turn(self, coef: Array, inverse: bool) -> Array:
        """Rotate Hermite coefficients at equal scales between the b-vectors' frame and the tensor's."""
        out = np.array(coef, order="C")
        index, root = ordering.index_table(self.order), ordering.factorial_roots(self.order)
        frames.turn(out, self.R, moments.order_tables(self.order), index, root, inverse)
        return out

    def index_rows(self, name: str) -> Array:
        """One of the nine closed-form indices as rows (V,)."""
        if self._nine is None:
            self._nine = np.empty((len(self.coef), 9))
            coef, mu = np.ascontiguousarray(self.hermite_coef()), np.ascontiguousarray(self.mu)
            call = partial(batch.indices, coef, mu, scalars.tables(self.order), self._nine)
            spread(call, len(coef), batch.LANES, n_threads(None))
        rows: Array = self._nine[:, INDICES[name].column]
        return rows

    def _index(self, name: str) -> Array:
        return self.volume(self.index_rows(name))

    def rtop(self) -> Array:
        """Return-to-origin probability, 1/mm^3 [Ozarslan 2013, Eq. 36]."""
        return self._index("rtop")

    def rtap(self) -> Array:
        """Return-to-axis probability along e1 of the tensor, 1/mm^2 [Ozarslan 2013, Eq. 40]."""
        return self._index("rtap")

    def rtpp(self) -> Array:
        """Return-to-plane probability normal to e1, 1/mm [Ozarslan 2013, Eq. 42]."""
        return self._index("rtpp")

    def msd(self) -> Array:
        """Mean squared displacement, mm^2 [Fick 2016, Eq. D1]."""
        return self._index("msd")

    def qiv(self) -> Array:
        """Q-space inverse variance, mm^5 [Hosseinbor 2013, Eq. 22]: the reciprocal of the sum."""
        return self._index("qiv")

    def lapnorm(self) -> Array:
        """Norm of the Laplacian of the signal, mm [Fick 2016, Eq. 10]."""
        return self._index("lapnorm")

    def rmse(self) -> Array:
        """Root mean squared residual in the data's units, over the valid samples, b0 included."""
        return self.volume(self._rows["rmse"])

    def r2(self) -> Array:
        """Coefficient of determination over the valid samples, b0 included."""
        return self.volume(self._rows["r2"])

    def ng(self) -> Array:
        """
        Non-Gaussianity, 0 to 1: the sine of the L2 angle between P and the tensor's Gaussian [Ozarslan 2013, Eq. 58].

        Meaningful only where the scale tensor was fitted on b <~ 2000 s/mm^2. For the isotropic basis the angle is to the
        tensor's Gaussian too, by overlaps, not to the basis' own first function.
        """
        if not self.isotropic:
            return self._index("ng")
        return self.volume(np.sqrt(np.maximum(0.0, 1.0 - self._radial_cosine(self.mu_tensor, 0))))

    def ng_par(self) -> Array:
        """Non-Gaussianity of the section along e1; anisotropic basis only."""
        self._need_anisotropic("ng_par")
        return self._index("ng_par")

    def ng_perp(self) -> Array:
        """Non-Gaussianity of the section normal to e1; anisotropic basis only."""
        self._need_anisotropic("ng_perp")
        return self._index("ng_perp")

    def _need_anisotropic(self, name: str) -> None:
        if self.isotropic:
            raise ValueError(f"{name} has no meaning for the isotropic basis: fit with basis='anisotropic'")

    def _radial_cosine(self, target: Array, K: int) -> Array:
        """cos^2 (V,) of the angle between P and the first K + 1 radial functions at the scales `target` (V, 3)."""
        out = np.empty(len(self.coef))
        coef, mu, target = (np.ascontiguousarray(a) for a in (self.hermite_coef(), self.mu, target))
        call = partial(propagator.radial_cosine_rows, coef, mu, target, propagator.even_table(self.order), K, out)
        spread(call, len(out), batch.LANES, n_threads(None))
        return out

    def _isotropic_scale(self) -> Array:
        """The single scale u0 (V,) of each tensor."""
        out = np.empty(len(self.mu_tensor))
        tensor.isotropic_scales(np.ascontiguousarray(self.mu_tensor), out)
        return out

    def theta_po(self, K: int = 5) -> Array:
        """Angle, in radians, between P and its isotropic counterpart, the L2 projection on K + 1 radial functions."""
        u0 = self._isotropic_scale()
        cosine = self._radial_cosine(np.repeat(u0[:, None], 3, 1), K)
        return self.volume(np.arcsin(np.sqrt(np.maximum(0.0, 1.0 - cosine))))

    def theta_dti(self) -> Array:
        """The same angle of the tensor's Gaussian, in radians; theta_po - theta_dti is the excess over the tensor."""
        cosine = propagator.gaussian_cosine(self.mu_tensor, self._isotropic_scale())
        return self.volume(np.arcsin(np.sqrt(np.maximum(0.0, 1.0 - cosine))))

    def pa(self, K: int = 5) -> Array:
        """Propagator anisotropy, 0 to 1 [Ozarslan 2013, Eq. 51-56]; K + 1 radial functions make the counterpart."""
        return propagator.propagator_anisotropy(np.cos(self.theta_po(K)) ** 2)

    def pa_dti(self) -> Array:
        """Propagator anisotropy of the scale tensor alone."""
        return propagator.propagator_anisotropy(np.cos(self.theta_dti()) ** 2)

    def negative(self) -> tuple[Array, Array]:
        """Smallest value of P over its largest, and negative mass int max(-P, 0) dr, on a dense grid."""
        tiles, weights = propagator.dense_grid(self.order)
        out = np.empty((len(self.coef), 2))
        call = partial(propagator.negative_rows, np.ascontiguousarray(self.hermite_coef()), tiles, weights, out)
        spread(call, len(out), batch.LANES, n_threads(None))
        return self.volume(out[:, 0]), self.volume(out[:, 1])

    def certificate(self) -> sos.Certificate:
        """
        Proofs that propagators are nonnegative everywhere, as rows over the mask; see `sos.certify`.

        A fit with positivity="global" carries its own; any other is projected on the cone of sums of squares.
        """
        from . import sos

        return sos.certify(self.hermite_coef(), self.order, self._rows["margin"])

    def odf_field(self, s: float = 2) -> directions.OdfField:
        """The ODF as a function of direction, for `directions.peaks`, `gfa` and `odf_sh`."""
        from . import directions

        return directions.OdfField(self.hermite_coef(), self.mu, self.R, self.order, s)

    def odf(self, vectors: ArrayLike, s: float = 2) -> Array:
        """
        Orientation distribution function int_0^inf P(rv) r^(2+s) dr, mm^s [Ozarslan 2013, Eq. 32-35].

        Parameters
        ----------
        vectors : (K, 3) directions in the frame of the b-vectors, or an object with `vertices`.
        s : any real number above -3; 0 is probability per solid angle, 2 sharpens.
        """
        return self.volume(self.odf_field(s)(getattr(vectors, "vertices", vectors)))

    def odf_sh(self, s: float = 2, sh_order: int = 8, sh_basis: str = "tournier07") -> Array:
        """The ODF in spherical harmonics (*mask.shape, n_sh), in the frame of the b-vectors; see `directions.odf_sh`."""
        from . import directions

        return self.volume(directions.odf_sh(self.odf_field(s), sh_order, sh_basis))

    def peaks(self, s: float = 2, **kwargs: Any) -> tuple[Array, Array]:
        """Peaks of the ODF: directions (*mask.shape, n, 3) and values; see `directions.peaks`."""
        from . import directions

        vectors, values = directions.peaks(self.odf_field(s), **kwargs)
        return self.volume(vectors), self.volume(values)

    def pdf(self, points: ArrayLike) -> Array:
        """The propagator P(r) in 1/mm^3 at displacements (K, 3) in mm, in the frame of the b-vectors."""
        r = np.asarray(points, dtype=float)
        if r.ndim != 2 or r.shape[1] != 3:
            raise ValueError(f"points must have shape (K, 3), not {r.shape}")
        tables = propagator.point_tables(self.order, propagator.PROPAGATOR)
        return self.volume(propagator.values_at(self.hermite_coef(), self.mu, self.R, r, tables))

    def index(self, name: str) -> Array:
        """The map of an index by its name in `INDICES`."""
        return getattr(self, INDICES[name].name)()  # type: ignore[no-any-return]  # an accessor found by name

    def predict(self, gtab: Any = None, S0: ArrayLike | None = None) -> Array:
        """
        Signals S0 E at a gradient table, (*mask.shape, n).

        Parameters
        ----------
        gtab : the table (its own deltas are used); default: the fitted one. A fit with `grad_dev` applies it to either.
        S0 : volume, row or number to use instead of the fitted S0; 1 gives E.
        """
        table = self.gtab if gtab is None else GradientTable.of(gtab)
        tables = propagator.point_tables(self.order, propagator.SIGNAL)
        R = self.R
        if self.field is not None:  # E at (I + F) q in the frame R: q in the frame (I + F)'R
            R = R + np.swapaxes(self.field, 1, 2) @ R
        out = propagator.values_at(self.hermite_coef(), self.mu, R, table.qvecs, tables)
        scale = self.S0 if S0 is None else np.asarray(S0, float)
        if scale.ndim and scale.shape == self.mask.shape:
            scale = scale[self.mask]
        return self.volume(out * (scale[:, None] if scale.ndim else scale))

    def save(self, folder: str | Path, **kwargs: Any) -> None:
        """Write the fit as a folder that `load_fit` reads; see `mapmri_nb.io.save_fit`."""
        from . import io

        io.save_fit(self, folder, **kwargs)
