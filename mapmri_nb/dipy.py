"""Drop-in for DIPY's MAP-MRI: ``from mapmri_nb.dipy import MapmriModel`` in place of ``from
dipy.reconst.mapmri``.

Arguments, defaults, attributes, units and return values are those of DIPY 1.12, on its gradient
tables and spheres; DIPY itself is not needed. Numbers agree where DIPY's are right; the README
lists where they differ and why.
"""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from . import fit as core_fit
from . import model as core_model
from .dipy_functions import *  # noqa: F403 - the names that code imports from DIPY's module
from .dipy_functions import LAPLACIAN_PARTS, laplacian_part
from .engine import Solver
from .gradients import GradientTable
from .kernels import blocks, constrained, laplacian, ordering, propagator, qp, status
from .kernels.hermite import propagator_rows
from .positivity import GridSolver, half_ball, octant_rows
from .status import Status
from .use import directions

Array = NDArray[np.float64]

TAU_WITHOUT_DELTAS = 1 / (4 * math.pi**2)  # s: q is then sqrt(b)
SLACK = 0.1  # 1/mm^3: DIPY asks for P >= -0.1 at the points of its ball


class MapmriModel:
    """MAP-MRI with the interface of ``dipy.reconst.mapmri.MapmriModel``.

    Parameters
    ----------
    gtab : gradient table of DIPY or of this package, with at least one b0.
    radial_order : even, 0 to 10.
    laplacian_regularization, laplacian_weighting : whether, and the weight in 1/mm, "GCV", or
        weights to choose from.
    positivity_constraint, global_constraints : P >= 0 at points, or everywhere (both bases, with
        the Laplacian too).
    pos_grid, pos_radius : points across the ball of the first, and its radius in mm or "adaptive";
        "infinity" is `global_constraints`.
    anisotropic_scaling : the anisotropic basis, or else the isotropic one.
    eigenvalue_threshold : mm^2/s, floor of the tensor's eigenvalues.
    bval_threshold : s/mm^2, volumes strictly below it make the scale tensor.
    dti_scale_estimation, static_diffusivity : for the isotropic basis: the scale from the tensor,
        or from this, mm^2/s.
    cvxpy_solver : ignored, with a warning.
    dipy_compat : return DIPY's own (wrong) QIV, NG_par and NG_perp.
    """

    gtab: Any
    radial_order: int
    anisotropic_scaling: bool
    bval_threshold: float
    dipy_compat: bool

    def __init__(
        self, gtab: Any, radial_order: int = 6, laplacian_regularization: bool = True,
        laplacian_weighting: float | str | ArrayLike | None = 0.2,
        positivity_constraint: bool = False, global_constraints: bool = False, pos_grid: int = 15,
        pos_radius: float | str = "adaptive", anisotropic_scaling: bool = True,
        eigenvalue_threshold: float = 1e-04, bval_threshold: float | None = np.inf,
        dti_scale_estimation: bool = True, static_diffusivity: float = 0.7e-3,
        cvxpy_solver: str | None = None, dipy_compat: bool = False,
    ) -> None:  # fmt: skip
        global_constraints = bool(global_constraints) or pos_radius == "infinity"
        bval_threshold = np.inf if bval_threshold is None else bval_threshold
        for name, value in locals().copy().items():
            if name != "self":
                setattr(self, name, value)  # DIPY's attributes are its arguments
        if cvxpy_solver is not None:
            _warn(f"cvxpy_solver = {cvxpy_solver!r} is ignored: mapmri_nb has solvers of its own")
        if global_constraints and not positivity_constraint:
            _warn("global_constraints does nothing without positivity_constraint=True")
        taus = _taus(gtab)
        self.deltas_given = taus is not None
        if taus is None:
            text = "tau = 1/(4 pi^2) s is assumed, so indices have no true units"
            _warn(f"gtab has no big_delta and small_delta: {text}")
            taus = np.full(len(gtab.bvals), TAU_WITHOUT_DELTAS)
        weights = np.linspace(0.05, 1, 20) if laplacian_weighting is None else laplacian_weighting
        positivity = ("global" if global_constraints else "grid") if positivity_constraint else None
        below = None if bval_threshold == np.inf else float(np.nextafter(bval_threshold, 0.0))
        static = None if anisotropic_scaling or dti_scale_estimation else static_diffusivity
        self._core = _Core(
            _table(gtab, taus), radial_order, (pos_grid, pos_radius),
            basis="anisotropic" if anisotropic_scaling else "isotropic",
            laplacian=weights if laplacian_regularization else None, positivity=positivity,
            bval_threshold=below, eigenvalue_threshold=eigenvalue_threshold, laplacian_of="signal",
            scale="tensor", S0="b0" if positivity_constraint else "free", static_diffusivity=static,
        )  # fmt: skip
        self.tau, self.cutoff = self._core.gtab.tau, self._core.gtab.bvals < bval_threshold
        if anisotropic_scaling:
            self.ind_mat = ordering.index_table(radial_order)
            self.Bm = ordering.origin_values(self.ind_mat)
        else:
            self.ind_mat = ordering.iso_index_table(radial_order)
            self.Bm = ordering.iso_origin_values(radial_order)

    def __getattr__(self, name: str) -> Array:
        """DIPY's Laplacian at unit scales: laplacian_matrix, S_mat, T_mat and U_mat."""
        order = self.__dict__.get("radial_order", -1)
        if name == "laplacian_matrix":
            L = np.empty((ordering.n_coef(order), ordering.n_coef(order)))
            laplacian.matrix(np.ones(3), ordering.index_table(order), L)
            T = np.eye(len(L)) if self.anisotropic_scaling else ordering.iso_to_aniso(order)
            return np.asarray(T.T @ L @ T)
        if name not in LAPLACIAN_PARTS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return laplacian_part(name, order)

    def fit(self, data: Any, mask: ArrayLike | None = None, **kwargs: Any) -> MapmriFit:
        """Fit every voxel of data (..., n), of a mask (...) if given.

        ``verbose`` shows a bar and ``n_jobs`` sets the threads; DIPY's other options of parallel
        fits change nothing.
        """
        threads = max(int(kwargs.get("n_jobs") or 0), 0) or None  # -1: all
        shape = tuple(checks.given("data", data).data.shape[:-1])
        mask = None if len(shape) == 0 else mask
        none = mask is not None and np.shape(mask) == shape and not np.any(np.asarray(mask))
        # a mask keeps axes of length 1, and one with nothing inside is a part of a larger one here
        inside = np.ones(shape, bool) if mask is None or none else mask
        taken = checks.take(self._core.gtab, data, inside)
        if none:
            taken = taken._replace(inside=np.zeros(shape, bool))
        progress = bool(kwargs.get("verbose"))
        return MapmriFit(self, self._core.fit(taken, threads=threads, progress=progress))


def _map(attribute: str, doc: str) -> property:
    """A fit's rows as a property: a volume, zeros outside the mask."""
    return property(lambda self: self._rows(getattr(self._fit, attribute)), doc=doc)


def _index(name: str, doc: str) -> Callable[[Any], Any]:
    """A method that returns the map of an index."""
    method = lambda self: self._rows(self._fit.index_rows(name))  # noqa: E731
    method.__doc__ = doc
    return method


class MapmriFit:
    """A fit with the interface of DIPY's MapmriFit (one voxel, shape ()) and MultiVoxelFit (volumes
    of its `shape`).

    Outside the mask maps are 0. ``fit[index]`` is the fit of a part; of one voxel outside the mask
    it is None. A voxel that could not be fitted is NaN, with an `errorcode` of 1, or 2 where the
    positive fit did not converge.
    """

    def __init__(self, model: MapmriModel, fit: core_fit.MapmriFit) -> None:
        self.model, self.gtab = model, model.gtab
        self.radial_order = model.radial_order
        self._fit, self.mask = fit, fit.mask
        self.shape = fit.mask.shape

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        return self._fit.volume(np.arange(len(self._fit.coef)), fill=-1)

    def __getitem__(self, index: Any) -> MapmriFit | None:
        part = np.asarray(self._numbers[index])
        if part.ndim == 0 and part < 0:
            return None
        inside = part >= 0
        rows = {name: value[part[inside]] for name, value in self._fit.rows().items()}
        whole = self._fit
        part_of = core_fit.MapmriFit(rows, inside, whole.options, whole.gtab, whole.affine)
        return MapmriFit(self.model, part_of)

    @property
    def fit_array(self) -> NDArray[Any]:
        """The fits of the single voxels, an array of objects; None outside the mask."""
        array = np.empty(self.shape, dtype=object)
        for index in np.ndindex(self.shape):
            array[index] = self[index]
        return array

    def _rows(self, rows: NDArray[Any]) -> Any:
        """A volume of rows over the mask, zeros outside; of a single voxel its own row."""
        return self._fit.volume(rows, fill=0)[()]

    mapmri_coeff = _mapmri_coef = _map("coef", "Coefficients (..., n) in DIPY's order.")
    mapmri_mu = mu = _map("mu", "Scales (..., 3) of the basis, mm.")
    mapmri_R = R = _map("R", "Frames (..., 3, 3), columns e1 e2 e3.")
    lopt = _map("laplacian_weight", "Laplacian weight (...), 1/mm.")

    @property
    def errorcode(self) -> Any:
        """0: fitted; 1: no usable data, no unique solution; 2: a positive fit did not converge."""
        no_fit = self._fit.status & int(Status.NO_FIT) != 0
        return self._rows(no_fit + 1 * (self._fit.status & int(Status.NOT_CONVERGED) != 0))

    def odf(self, sphere: Any, s: float = 2) -> Any:
        """ODF (..., K) at the vertices of a sphere, moment s, mm^s [Ozarslan 2013, Eq. 32]."""
        return self._rows(self._fit.odf_field(s)(getattr(sphere, "vertices", sphere)))

    def odf_sh(self, s: float = 2) -> Any:
        """Isotropic basis: the ODF's harmonics, legacy descoteaux07 [Fick 2016, Eq. C8]."""
        if self.model.anisotropic_scaling:
            text = "mapmri_nb.MapmriFit.odf_sh serves both bases"
            raise ValueError(f"odf_sh needs anisotropic_scaling=False; {text}")
        field = self._fit.odf_field(s)
        return self._rows(directions.odf_sh(field, self.radial_order, "descoteaux07_legacy"))

    rtop = _index("rtop", "Return-to-origin probability (...), 1/mm^3.")
    rtap = _index("rtap", "Return-to-axis probability (...), 1/mm^2.")
    rtpp = _index("rtpp", "Return-to-plane probability (...), 1/mm.")
    msd = _index("msd", "Mean squared displacement (...), mm^2.")
    norm_of_laplacian_signal = _index("lapnorm", "Norm of the Laplacian of the signal (...), mm.")

    def qiv(self) -> Any:
        """Q-space inverse variance, mm^5: the reciprocal of a sum (DIPY: a sum of reciprocals)."""
        if not self.model.dipy_compat:
            return self._rows(self._fit.index_rows("qiv"))
        sel = self.model.Bm > 0
        n, B = self.model.ind_mat[sel], self.model.Bm[sel]
        mu, coef = self._fit.mu, self._fit.coef[:, sel]
        if self.model.anisotropic_scaling:
            terms = (-1.0) ** (n.sum(1) // 2) * B * ((1 + 2 * n) @ (mu**-2.0).T).T
            terms = terms / (4 * math.pi**2 * math.sqrt(8 * math.pi**3) * mu.prod(1))[:, None]
        else:
            j, unit = n[:, 0], 8 * math.sqrt(2) * math.pi**3.5 * mu[:, :1] ** 5
            terms = (-1.0) ** (j - 1) * (4 * j - 1) * B / unit
        return self._rows((coef / terms).sum(1))

    def ng(self) -> Any:
        """Non-Gaussianity, 0 to 1."""
        self._check_non_gaussianity()
        return self._rows(self._fit.index_rows("ng"))

    def ng_parallel(self) -> Any:
        """Non-Gaussianity along e1: coefficients summed, then squared (DIPY: the other way)."""
        n1, n2, n3 = self.model.ind_mat.T
        return self._section("ng_par", n2, n3, n1 == 0)

    def ng_perpendicular(self) -> Any:
        """Non-Gaussianity normal to e1, odd pairs included (DIPY leaves them out)."""
        n1, n2, n3 = self.model.ind_mat.T
        return self._section("ng_perp", np.where(n2 % 2 + n3 % 2 == 0, n1, 1), 0 * n1, n2 + n3 == 0)

    def _section(
        self, name: str, first: NDArray[Any], second: NDArray[Any], gaussian: NDArray[np.bool_]
    ) -> Any:
        """The index, or DIPY's: weights by the two orders integrated over, 0 where one is odd."""
        self._check_non_gaussianity()
        if not self.model.dipy_compat:
            return self._rows(self._fit.index_rows(name))
        at_origin = np.array(
            [0.0 if n % 2 else ordering.axis_origin_value(n) for n in range(self.radial_order + 1)]
        )
        square = (self._fit.coef * at_origin[first] * at_origin[second]) ** 2
        return self._rows(np.sqrt(square[:, ~gaussian].sum(1) / square.sum(1)))

    def _check_non_gaussianity(self) -> None:
        if self.model.bval_threshold > 2000.0:
            text = "for the non-Gaussianity to be physically meaningful"
            _warn(f"model bval_threshold must be lower than 2000 {text}")
        if not self.model.anisotropic_scaling:
            text = "mapmri_nb.MapmriFit.ng serves both bases"
            raise ValueError(f"non-Gaussianity needs anisotropic_scaling=True; {text}")

    def fitted_signal(self, gtab: Any = None) -> Any:
        """E (..., n) at the model's gradient table or another one."""
        return self.predict(self.model.gtab if gtab is None else gtab, S0=1.0)

    def predict(self, qvals_or_gtab: Any, S0: ArrayLike | None = None) -> Any:
        """Signal S0 E (..., K).

        Parameters
        ----------
        qvals_or_gtab : q-vectors (K, 3) in 1/mm, or a gradient table, whose own deltas (if it has
            any) are used.
        S0 : number, or array of the fit's `shape` (with or without a last axis K); default 100 of
            one voxel, 1 of many.
        """
        table, q = qvals_or_gtab, qvals_or_gtab
        if not isinstance(table, np.ndarray):
            own = _taus(table) if self.model.deltas_given else None
            length = np.sqrt(table.bvals / (self.model.tau if own is None else own))
            q = length[:, None] / (2 * np.pi) * table.bvecs
        tables = propagator.point_tables(self.radial_order, propagator.SIGNAL)
        coef, q = self._fit.hermite_coef(), np.ascontiguousarray(q, dtype=np.float64)
        signal = propagator.values_at(coef, self._fit.mu, self._fit.R, q, tables)
        scale = np.asarray((1.0 if self.shape else 100.0) if S0 is None else S0, dtype=np.float64)
        if scale.shape[: self.mask.ndim] == self.shape:
            scale = scale[self.mask].reshape(len(signal), -1)
        return self._rows(signal * scale)

    def pdf(self, r_points: Array) -> Any:
        """Propagator (..., K), 1/mm^3, at displacements (K, 3) in mm."""
        return self._rows(self._fit.pdf(r_points)[self.mask])


class _Core(core_model.MapmriModel):
    """The engine on DIPY's ball; what measurements do not determine is fitted, with a warning."""

    def __init__(
        self, gtab: Any, radial_order: int, ball: tuple[int, float | str], **options: Any
    ) -> None:
        self.ball = ball
        super().__init__(gtab, radial_order, **options)

    def _check_identifiable(self) -> None:
        try:
            super()._check_identifiable()
        except ValueError as error:
            _warn(str(error))

    def _solver(self) -> Solver:
        return _Ball(self.order, *self.ball) if self.positivity == "grid" else super()._solver()


class _Ball(GridSolver):
    """The grid QP on DIPY's ball, P >= -SLACK: with B'c = 1 that is (K + SLACK B) c >= 0. The ball
    is one in mm, so that K is made anew for every voxel.
    """

    MAX_ITER = 1000

    def __init__(self, order: int, pos_grid: int, pos_radius: float | str) -> None:
        super().__init__(order, "osqp", fixed=True)
        if pos_grid % 1 or pos_grid < 2:
            raise ValueError(f"pos_grid must be an integer of at least 2, not {pos_grid!r}")
        adaptive, number = pos_radius == "adaptive", isinstance(pos_radius, numbers.Real)
        if not (adaptive or (number and float(pos_radius) > 0)):
            text = "pos_radius must be 'adaptive' or a positive length in mm"
            raise ValueError(f"{text}, not {pos_radius!r}")
        self.radius = 0.0 if adaptive else float(pos_radius)
        self.points = half_ball(1.0, 1.0 / (int(pos_grid) // 2), False)

    def answer(self, plan: blocks.Plan, block: blocks.Block, count: int) -> None:
        index, K = ordering.index_table(self.order), np.empty((len(self.points), len(self.B)))
        for l in range(count):
            if constrained.skipped(block, l):
                continue
            r = self.points * (self.radius or 5**0.5 * block.mu_tensor[:, l].max())
            propagator_rows(r, np.ascontiguousarray(block.mu[:, l]), index, K)
            K += SLACK * self.B
            K /= np.linalg.norm(K, axis=1)[:, None]
            grid = octant_rows(self.order, K[np.all(r >= 0, axis=1)])
            constrained.on_grid(qp.GridProblem(self.B, 1, grid, self.max_iter), block, l, l + 1)
            if block.status[l] & status.NOT_CONVERGED:
                block.status[l] &= ~status.NOT_CONVERGED
                self.by_osqp(plan, block, l, K)


def _warn(message: str) -> None:
    """A UserWarning that points at the line which called into this package."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("mapmri_nb."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=depth)


def _taus(gtab: Any) -> Array | None:
    """Diffusion times (n,) in s of any table, None where it has no deltas."""
    if isinstance(gtab, GradientTable):
        return gtab.taus
    big, small = getattr(gtab, "big_delta", None), getattr(gtab, "small_delta", None)
    if big is None or small is None:
        return None
    return np.broadcast_to(np.asarray(big - np.divide(small, 3.0), np.float64), len(gtab.bvals))


def _table(gtab: Any, taus: Array) -> GradientTable:
    """A table of this package; one with tau above 1 s is taken as DIPY takes it."""
    if isinstance(gtab, GradientTable):
        return gtab
    unit = max(float(taus.max()), 1.0)
    table = GradientTable.of(gtab, tau=taus / unit)
    if unit > 1.0:
        text = "are big_delta and small_delta in milliseconds? They are taken as seconds"
        _warn(f"tau = {unit:.4g} s: {text}")
        table.taus, table.qvals = table.taus * unit, table.qvals / unit**0.5
        table.qvecs = table.qvecs / unit**0.5
        table._timing["tau"] = table.taus
    return table
