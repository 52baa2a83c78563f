"""MapmriModel: options checked once, then blocks of voxels through the kernels."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .engine import Engine, Solver
from .fit import MapmriFit, fit_rows
from .gradients import GradientTable
from .kernels import blocks, gcv, hermite, laplacian, moments, ordering, tensor
from .kernels.linalg import SparseMap, sparse_map
from .kernels.noise import DENOISED, MOST_COILS, RICIAN, mean_table
from .kernels.origin import Rules
from .status import Status

log = logging.getLogger(__name__)
Array = NDArray[np.float64]

MAX_CONDITION = (
    5e3  # of the unregularised design at a typical white-matter tensor; beyond it a fit is noise
)
LOW_B = 2100.0  # s/mm2, shells called 2000 jitter
ATTENUATION = 1.5  # b D of the tensor that a threshold is judged by
THIN_SPREAD = 2.0  # of `tensor_spread`: the tensor's elements scatter by 10 % at an SNR of 20
FLOOR_SHARE = 0.1  # of the mean diffusivity: the least eigenvalue
MOST_FLOOR = 0.1  # of the voxels at the floor, without a warning
LITTLE_DECAY = 0.5  # b D below which a tensor is hardly determined
TYPICAL_TENSOR = (1.7e-3, 0.3e-3, 0.3e-3)  # mm2/s
CHUNK = 16384  # voxels between two progress updates; bounds the float64 copy of the data


class MapmriModel:
    """
    MAP-MRI of a gradient table [Ozarslan 2013; Fick 2016; Dela Haije 2020].

    Parameters
    ----------
    gtab : GradientTable, or anything with bvals, bvecs, big_delta, small_delta.
    radial_order : even, 0 to 10.
    basis : "anisotropic" (indices, signal) or "isotropic" (tractography).
    laplacian : None (or 0), a weight in 1/mm, "gcv", or a sequence of weights of which the best by
        GCV is taken.
    positivity : None, "grid" (P >= 0 at points; CMAP, CMAPL) or "global" (sums of squares; MAP+,
        MAPL+).
    solver : "auto" (compiled, failures go to OSQP) or "osqp".
    bval_threshold : s/mm^2, volumes up to it make the scale tensor; None for all; "auto" for 2100, or
        the first shell beyond up to which the table determines a tensor (`scale_threshold`).
    eigenvalue_threshold : mm^2/s, floor of the tensor's eigenvalues; None for a tenth of the voxel's
        own mean diffusivity.
    static_diffusivity : mm^2/s, gives the isotropic basis one scale u0 = sqrt(2 d tau) for all
        voxels.
    laplacian_of : "deviation" (from the Gaussian S0_b e_0 of the basis, S0_b the mean of the b0
        volumes: Gaussians come out exact at any weight) or "signal" [Fick 2016].
    S0 : "fit" (E(0) is fitted, S0_b is one more sample at q = 0 with the weight of all b0 volumes),
        "free" (E(0) is fitted) or "b0" (E(0) = S0_b exactly).
    noise : None; "rician" for raw magnitudes: each fit is the maximum of their likelihood, penalised
        and constrained as asked, by expectation and maximisation; "denoised" for magnitudes whose
        scatter, but not whose floor, was removed: their expected value is inverted [Koay & Basser
        2006], sigma must be given.
    coils : of an image that is the root of a sum of squares (noncentral chi); 1 is Rician.
    preset : "paper" for the published method: laplacian_of="signal", S0="free" ("b0" with
        positivity), bval_threshold=2100, eigenvalue_threshold=1e-4, no noise.

    Examples
    --------
    >>> import mapmri_nb as mapmri
    >>> gtab = mapmri.GradientTable([0, 1000, 1000, 1000, 2000, 2000, 2000],
    ...     [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], 0.04, 0.01)
    >>> mapmri.MapmriModel(gtab, radial_order=2).n_coef
    7
    """

    def __init__(
        self,
        gtab: Any,
        radial_order: int = 6,
        *,
        basis: str = "anisotropic",
        laplacian: float | str | Sequence[float] | None = 0.2,
        positivity: str | None = None,
        solver: str = "auto",
        bval_threshold: float | str | None = "auto",
        eigenvalue_threshold: float | None = None,
        static_diffusivity: float | None = None,
        laplacian_of: str = "deviation",
        S0: str = "fit",
        noise: str | None = None,
        coils: int = 1,
        preset: str | None = None,
    ) -> None:
        if preset is not None:
            _choice("preset", preset, ("paper",))
            given = {
                "bval_threshold": bval_threshold, "eigenvalue_threshold": eigenvalue_threshold,
                "laplacian_of": laplacian_of, "S0": S0, "noise": noise,
            }  # fmt: skip
            bval_threshold, eigenvalue_threshold, laplacian_of, S0, noise = _paper(
                given, positivity
            )
        self.gtab = GradientTable.of(gtab)
        self.order = _order(radial_order)
        self.basis = _choice("basis", basis, ("anisotropic", "isotropic"))
        self.positivity = (
            None if positivity is None else _choice("positivity", positivity, ("grid", "global"))
        )
        self.solver = _choice("solver", solver, ("auto", "osqp"))
        self.laplacian_weights = _laplacian_weights(laplacian)
        self.noise = None if noise is None else _choice("noise", noise, ("rician", "denoised"))
        _choice("laplacian_of", laplacian_of, ("signal", "deviation"))
        _choice("S0", S0, ("fit", "free", "b0"))
        if not (_is_whole(coils) and 1 <= coils <= MOST_COILS):
            raise ValueError(f"coils must be a whole number from 1 to {MOST_COILS}, not {coils!r}")
        if coils != 1 and noise is None:
            raise ValueError(f"coils = {coils} is for noise='rician' or 'denoised' alone")
        if eigenvalue_threshold is not None:
            _positive("eigenvalue_threshold", eigenvalue_threshold, "in mm2/s, or None")
        if static_diffusivity is not None:
            _positive("static_diffusivity", static_diffusivity, "in mm2/s")
            if self.basis != "isotropic":
                raise ValueError(
                    f"static_diffusivity = {static_diffusivity} is for basis='isotropic' alone"
                )
        if isinstance(bval_threshold, str):
            _choice("bval_threshold", bval_threshold, ("auto",))
        elif bval_threshold is not None:
            _positive("bval_threshold", bval_threshold, "in s/mm2, 'auto' or None")
        threshold: float | None = scale_threshold(self.gtab)
        if not isinstance(bval_threshold, str):
            threshold = bval_threshold
        self.options: dict[str, Any] = {
            "radial_order": self.order,
            "basis": self.basis,
            "laplacian": laplacian
            if laplacian is None or isinstance(laplacian, str)
            else _plain(laplacian),
            "positivity": self.positivity,
            "solver": self.solver,
            "bval_threshold": threshold,
            "eigenvalue_threshold": eigenvalue_threshold,
            "static_diffusivity": static_diffusivity,
            "laplacian_of": laplacian_of,
            "S0": S0,
            "noise": self.noise,
            "coils": int(coils),
        }
        self.n_coef = ordering.n_coef(self.order)
        use = self._tensor_volumes(threshold)
        without = self.laplacian_weights.size == 1 and self.laplacian_weights[0] == 0.0
        needed = self.n_coef if without else 7
        if self.unregularised:
            self._check_identifiable()
        elif len(self.gtab) < needed:
            raise ValueError(
                f"radial_order: {self.order} has {needed} coefficients, the table {len(self.gtab)} volumes: "
                "without a Laplacian they are not determined; pass laplacian=0.2 or a smaller order"
            )
        self.engine = Engine(self._plan(use, static_diffusivity, needed), self._solver())

    @property
    def plan(self) -> blocks.Plan:
        """Everything constant that the kernels need."""
        return self.engine.plan

    @property
    def unregularised(self) -> bool:
        """True for plain MAP: neither a Laplacian nor positivity."""
        return (
            self.laplacian_weights.size == 1
            and self.laplacian_weights[0] == 0.0
            and self.positivity is None
        )

    def _tensor_volumes(self, bval_threshold: float | None) -> NDArray[np.bool_]:
        b, b0 = self.gtab.bvals, self.gtab.b0s_mask
        if not b0.any():
            raise ValueError(
                f"gtab: fitting needs at least one b0 volume (b <= b0_threshold = {self.gtab.b0_threshold}); "
                f"the smallest b is {b.min():g} s/mm2"
            )
        use = np.ones(len(b), bool) if bval_threshold is None else b <= bval_threshold
        design = np.column_stack(
            [
                tensor.design_matrix(b[use], self.gtab.bvecs[use]) / max(b.max(), 1.0),
                np.ones(use.sum()),
            ]
        )
        if np.linalg.matrix_rank(design) < 7:
            raise ValueError(
                f"bval_threshold: the {use.sum()} volumes with b <= {bval_threshold} do not determine a tensor; "
                "pass bval_threshold=None or a larger one"
            )
        log.info("scale tensor from %d of %d volumes (b <= %s)", use.sum(), len(b), bval_threshold)
        if (spread := tensor_spread(self.gtab, bval_threshold)) > THIN_SPREAD:
            log.warning(
                "scale tensor from %d volumes with b <= %s: thin, its elements scatter by %.0f %% at an SNR of 20; "
                "a larger bval_threshold (or None) takes more volumes",
                use.sum(), bval_threshold, 5 * spread,
            )  # fmt: skip
        return use

    def condition(self, order: int) -> float:
        """
        Condition number of the unregularised design of an order, at D = (1.7, 0.3, 0.3)e-3 mm2/s
        along x.
        """
        index = ordering.index_table(order)
        rows = np.empty((len(self.gtab), len(index)))
        mu = np.sqrt(2.0 * self.gtab.tau * np.array(TYPICAL_TENSOR))
        hermite.signal_rows(np.ascontiguousarray(self.gtab.qvecs), mu, index, rows)
        return float(np.linalg.cond(rows)) if rows.shape[0] >= rows.shape[1] else math.inf

    def _check_identifiable(self) -> None:
        if not (found := self.condition(self.order)) > MAX_CONDITION:
            return
        safe = max(
            (n for n in range(0, self.order, 2) if self.condition(n) <= MAX_CONDITION), default=0
        )
        shells = ", ".join(f"{count} at b = {b:.0f}" for b, count in self.gtab.shells())
        raise ValueError(
            f"radial_order: {self.order} is not determined by these measurements without a Laplacian or positivity "
            f"(condition number {found:.2g} > {MAX_CONDITION:g}; shells: {shells}). The largest safe order is {safe}; "
            "or pass laplacian=0.2 or positivity='global'"
        )

    def _solver(self) -> Solver:
        """What turns normal equations into coefficients."""
        if self.positivity == "grid":
            from .positivity import GridSolver

            return GridSolver(self.order, self.solver, self.options["S0"] == "b0")
        if self.positivity == "global":
            from .sos import GlobalSolver

            return GlobalSolver(self.order, self.solver, self.options["S0"] == "b0")
        return Solver()

    def _plan(
        self, use: NDArray[np.bool_], static_diffusivity: float | None, needed: int
    ) -> blocks.Plan:
        gtab, isotropic, o = self.gtab, self.basis == "isotropic", self.options
        floor, share = o["eigenvalue_threshold"], 0.0
        if floor is None:  # where nothing diffuses: 2 % of what the largest b sees
            floor, share = 0.02 * ATTENUATION / float(gtab.bvals[use].max()), FLOOR_SHARE
        rules = Rules(
            1.0 if o["S0"] == "fit" else 0.0,
            o["S0"] == "b0",
            o["laplacian_of"] == "deviation",
            {None: 0, "rician": RICIAN, "denoised": DENOISED}[self.noise],
            o["coils"],
            mean_table(o["coils"]) if self.noise == "rician" else np.zeros((2, 0)),
        )
        rounding = (
            moments.LARGEST_ROUNDING_ALONE if self.unregularised else moments.LARGEST_ROUNDING
        )
        u0 = 0.0 if static_diffusivity is None else math.sqrt(2.0 * static_diffusivity * gtab.tau)
        return blocks.Plan(
            self.order,
            isotropic,
            float(gtab.tau),
            float(floor),
            share,
            u0,
            needed,
            tensor.tables(gtab.bvals, gtab.bvecs, use, gtab.b0s_mask),
            moments.order_tables(self.order),
            moments.scheme(gtab.qvecs, float(gtab.tau), self.order, rounding),
            laplacian.tables(self.order),
            gcv.tables(self.order),
            _public_map(self.order, isotropic),
            rules,
            self.laplacian_weights,
        )

    def fit(
        self,
        data: Any,
        mask: ArrayLike | None = None,
        *,
        scale: tuple[ArrayLike, ArrayLike] | None = None,
        weights: Any = None,
        grad_dev: Any = None,
        sigma: ArrayLike | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> MapmriFit:
        """
        Fit every voxel of a mask.

        Parameters
        ----------
        data : (..., n) array, memory map or nibabel proxy; NaN samples are missing samples.
        mask : bool (...), default all voxels.
        scale : (mu, R) to use instead of the tensor's: mu (3,) or (V, 3) in mm; R (3, 3) or (V, 3,
            3), columns e1 e2 e3, orthonormal, determinant +1 or -1. Rows are those of the mask, or
            volumes of its shape.
        weights : (n,) per volume or (..., n) per sample, >= 0; 0 is a missing sample. They enter
            tensor, S0, fit and GCV as they are, so that doubling all of them halves the Laplacian
            weight's effect.
        grad_dev : gradient non-linearity F, q' = (I + F) q: (..., 3, 3), or the HCP image (..., 9),
            column by column.
        sigma : of the noise in each of the two channels of each coil, in the data's units: a number, a
            volume, or None for the fit's own estimate (noise="rician" alone).
        threads : default Numba's current number; 1 inside a worker, a pool thread or a forked
            child.
        progress : show a bar.
        """
        if not hasattr(data, "shape"):
            data = np.asarray(data, dtype=np.float64)
        shape = tuple(data.shape)
        if len(shape) == 0 or shape[-1] != len(self.gtab):
            raise ValueError(
                f"data: its last axis must have the table's {len(self.gtab)} volumes, its shape is {shape}"
            )
        inside = np.ones(shape[:-1], bool) if mask is None else np.asarray(mask).astype(bool)
        if inside.shape != shape[:-1]:
            raise ValueError(f"mask: its shape {inside.shape} differs from the data's {shape[:-1]}")
        if threads is not None and not (_is_whole(threads) and threads >= 1):
            raise ValueError(f"threads must be a positive integer or None, not {threads!r}")
        mu, R = _given_scale(scale, inside)
        weight, per_sample = _sample_weights(weights, shape)
        field = _field(grad_dev, inside)
        noise = self._sigma(sigma, inside)
        rows = blocks.new_rows(int(inside.sum()), self.n_coef)
        arrays = [data, weights] if per_sample else [data]
        for where, pieces in _progress(_slabs(arrays, inside), len(rows.status), progress):
            m, r, f, s = (a[where] if len(a) > 1 else a for a in (mu, R, field, noise))
            w = _checked(pieces[1]) if per_sample else weight
            part = self.engine.fit(blocks.Data(pieces[0], w, m, r, f, s), threads)
            for whole, piece in zip(rows, part, strict=True):
                whole[where] = piece
        named = fit_rows(rows) | ({"field": field} if len(field) else {})
        if self.noise is None:
            del named["sigma"]
        fit = MapmriFit(named, inside, self.options, self.gtab)
        if scale is None:
            self._judge_scales(fit)
        return fit

    def _sigma(self, sigma: ArrayLike | None, inside: NDArray[np.bool_]) -> Array:
        """The caller's sigma as rows (V,), (1,) for all voxels, or (0,) where it is estimated."""
        if sigma is None:
            if self.noise == "denoised" and inside.any():
                raise ValueError("sigma: noise='denoised' needs it, residuals no longer hold it")
            return np.zeros(0)
        if self.noise is None:
            raise ValueError("sigma is for noise='rician' or 'denoised' alone")
        rows = np.array(sigma, dtype=np.float64)
        if rows.shape == inside.shape and rows.ndim:
            rows = rows[inside]
        elif rows.shape == (*inside.shape, 1):
            rows = rows[inside][:, 0]
        elif rows.shape not in ((), (1,)):
            raise ValueError(
                f"sigma must be a number or have shape {inside.shape}, not {rows.shape}"
            )
        rows = np.atleast_1d(rows)
        if not (np.isfinite(rows).all() and (rows > 0).all()):
            raise ValueError(
                f"sigma must be finite and positive inside the mask; found {rows.min()}"
            )
        return np.ascontiguousarray(rows)

    def _judge_scales(self, fit: MapmriFit) -> None:
        """Warn where the scale tensors of a fit cannot be trusted."""
        done = fit.status & int(Status.NO_FIT) == 0
        if not done.any():
            return
        floor = float((fit.status[done] & int(Status.FLOOR) != 0).mean())
        if floor > MOST_FLOOR:
            log.warning(
                "%.0f %% of the voxels have an eigenvalue at the floor: eigenvalue_threshold = %s is too high for "
                "them, or b up to bval_threshold = %s determines too little",
                100 * floor, self.options["eigenvalue_threshold"], self.options["bval_threshold"],
            )  # fmt: skip
        used = self.options["bval_threshold"] or math.inf
        rest, below = self.gtab.bvals > used, self.gtab.bvals <= used
        md = float(np.median((fit.mu_tensor[done] ** 2).mean(1))) / (2.0 * self.gtab.tau)
        if rest.any() and md * self.gtab.bvals[below].max() < LITTLE_DECAY:
            log.warning(
                "the median mean diffusivity is %.2g mm2/s, as in fixed tissue: b <= %s hardly attenuates it and "
                "%d volumes have more; pass bval_threshold=%.0f",
                md, used, rest.sum(), 1.05 * min(ATTENUATION / md, self.gtab.bvals.max()),
            )  # fmt: skip


def tensor_spread(gtab: GradientTable, threshold: float | None) -> float:
    """
    Largest standard error of a combination of the scale tensor's elements over its diffusivity, for
    noise of S0: by the volumes up to a threshold, for an isotropic tensor that leaves exp(-1.5) of
    the signal there (at 2100 s/mm^2: 0.7e-3 mm^2/s). inf where they do not determine a tensor.
    """
    b = gtab.bvals
    use = np.ones(len(b), bool) if threshold is None else b <= threshold
    D = ATTENUATION / max(float(b.max()) if threshold is None else threshold, LOW_B)
    X = np.column_stack([D * tensor.design_matrix(b[use], gtab.bvecs[use]), np.ones(use.sum())])
    X *= np.exp(-D * b[use])[:, None]
    if np.linalg.matrix_rank(X, tol=1e-6) < 7:
        return math.inf
    return float(np.sqrt(np.linalg.eigvalsh(np.linalg.inv(X.T @ X)[:6, :6])[-1]))


def scale_threshold(gtab: GradientTable) -> float:
    """
    The b-value up to which volumes make the scale tensor: 2100 s/mm^2, or the first shell beyond at
    which `tensor_spread` is small (or the last, if it nowhere is). A function of the table alone.
    """
    shells = sorted(b for b, _ in gtab.shells() if b > LOW_B)
    for threshold in [LOW_B, *(1.05 * b for b in shells)]:
        if tensor_spread(gtab, threshold) <= THIN_SPREAD:
            return float(round(threshold))
    return float(round(1.05 * shells[-1])) if shells else LOW_B


def _paper(given: dict[str, Any], positivity: Any) -> tuple[Any, ...]:
    """The options of the published method; an error where the caller asked for others."""
    default = {"bval_threshold": "auto", "eigenvalue_threshold": None, "laplacian_of": "deviation",
               "S0": "fit", "noise": None}  # fmt: skip
    paper = {"bval_threshold": 2100, "eigenvalue_threshold": 1e-4, "laplacian_of": "signal",
             "S0": "free" if positivity is None else "b0", "noise": None}  # fmt: skip
    for name, value in given.items():
        if value not in (default[name], paper[name]):
            raise ValueError(
                f"preset='paper' sets {name} = {paper[name]!r}; leave out {name} = {value!r}"
            )
    return tuple(paper.values())


def _public_map(order: int, isotropic: bool) -> SparseMap:
    """From the block kernels' order to the coefficients the user sees."""
    n, place = ordering.n_coef(order), ordering.class_permutation(order)
    if not isotropic:
        return sparse_map(place, np.arange(n), np.ones(n), n)
    matrix = ordering.aniso_to_iso(order)[:, place]
    matrix = np.where(np.abs(matrix) > 1e-13, matrix, 0.0)
    i, j = np.nonzero(matrix)
    return sparse_map(i, j, matrix[i, j], n)


def _order(order: Any) -> int:
    if not (_is_whole(order) and order % 2 == 0 and 0 <= order <= ordering.MAX_ORDER):
        raise ValueError(
            f"radial_order must be an even number from 0 to {ordering.MAX_ORDER}, not {order!r}"
        )
    return int(order)


def _is_whole(value: Any) -> bool:
    return (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and float(value).is_integer()
    )


def _positive(name: str, value: Any, unit: str) -> None:
    if not (isinstance(value, numbers.Real) and math.isfinite(value) and float(value) > 0):
        raise ValueError(f"{name} must be a positive number, {unit}, not {value!r}")


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return str(value)


def _plain(laplacian: Any) -> float | list[float]:
    array = np.asarray(laplacian, float)
    return float(array) if array.ndim == 0 else array.tolist()


def _laplacian_weights(laplacian: Any) -> Array:
    """Laplacian weights for the kernels: none of them asks for GCV."""
    if laplacian is None:
        return np.zeros(1)
    if isinstance(laplacian, str):
        if laplacian.lower() != "gcv":
            raise ValueError(
                f"laplacian must be None, a weight, 'gcv' or a sequence of weights, not {laplacian!r}"
            )
        return np.zeros(0)
    try:
        weights = np.atleast_1d(np.array(laplacian, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(
            f"laplacian must be None, a weight, 'gcv' or a sequence, not {laplacian!r}"
        ) from None
    if isinstance(laplacian, bool) or weights.ndim != 1 or weights.size == 0:
        raise ValueError(
            f"laplacian must be None, a weight, 'gcv' or a sequence of weights, not {laplacian!r}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"laplacian: weights must be finite and >= 0, in 1/mm, not {laplacian!r}")
    return weights


def _given_scale(scale: Any, inside: NDArray[np.bool_]) -> tuple[Array, Array]:
    """The caller's (mu, R) as rows, or arrays of length 0."""
    if scale is None:
        return np.zeros((0, 3)), np.zeros((0, 3, 3))
    if not (isinstance(scale, tuple | list) and len(scale) == 2):
        raise ValueError(f"scale must be a pair (mu, R), not {scale!r}")
    out = []
    count = int(inside.sum())
    for name, value, tail in (("mu", scale[0], (3,)), ("R", scale[1], (3, 3))):
        array = np.array(value, dtype=np.float64)
        if array.shape == tail:
            array = array[None]
        elif array.shape == inside.shape + tail and inside.ndim:
            array = array[inside]
        if array.shape not in ((1, *tail), (count, *tail)):
            raise ValueError(
                f"scale: {name} must have shape {tail} or {(count, *tail)}, not {np.shape(value)}"
            )
        out.append(np.ascontiguousarray(array))
    mu, R = out
    if not (np.isfinite(mu).all() and (mu > 0).all()):
        raise ValueError(
            f"scale: mu must be finite and positive, in mm; the smallest value is {mu.min()}"
        )
    if (mu > 1.0).any():
        raise ValueError(f"scale: mu = {mu.max()} is more than a millimetre; is it in micrometres?")
    off = np.abs(np.einsum("vij,vik->vjk", R, R) - np.eye(3)).max() if R.size else 0.0
    if not off < 1e-6:
        raise ValueError(
            f"scale: the columns of R must be orthonormal; R'R differs from 1 by {off:.2g}"
        )
    return mu, R


def sample_slabs(
    data: Any, inside: NDArray[np.bool_], weights: Any
) -> Iterator[tuple[NDArray[np.int64], Array, Array]]:
    """
    Samples of a mask, piece by piece: row numbers (V,), samples (V, n) and weights (V or 1, n).
    """
    weight, per_sample = _sample_weights(weights, np.shape(data))
    for rows, pieces in _slabs([data, weights] if per_sample else [data], inside):
        yield rows, pieces[0], _checked(pieces[1]) if per_sample else weight


def _checked(weights: Array) -> Array:
    """Weights, or an error; NaN weighs nothing."""
    weights = np.nan_to_num(weights, nan=0.0, posinf=np.inf)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(
            f"weights must be finite and >= 0; found {weights[~(weights >= 0) | np.isinf(weights)][0]}"
        )
    return weights


def _sample_weights(weights: Any, shape: tuple[int, ...]) -> tuple[Array, bool]:
    """Weights per volume as one row, and whether they are per sample instead."""
    if weights is None:
        return np.ones((1, shape[-1])), False
    if np.shape(weights) == shape and len(shape) > 1:
        return np.ones((1, shape[-1])), True
    if np.shape(weights) != shape[-1:]:
        raise ValueError(
            f"weights must have shape {shape[-1:]} or the data's {shape}, not {np.shape(weights)}"
        )
    return np.ascontiguousarray(_checked(np.array(weights, dtype=np.float64))[None]), False


def _field(grad_dev: Any, inside: NDArray[np.bool_]) -> Array:
    """Gradient non-linearity as rows (V, 3, 3); length 0 where there is none."""
    if grad_dev is None:
        return np.zeros((0, 3, 3))
    F = np.asarray(grad_dev, dtype=np.float64)
    if F.shape == (*inside.shape, 9):
        F = np.swapaxes(F.reshape(*inside.shape, 3, 3), -1, -2)
    if F.shape != (*inside.shape, 3, 3):
        raise ValueError(
            f"grad_dev must have shape {(*inside.shape, 9)} or {(*inside.shape, 3, 3)}, not {F.shape}"
        )
    rows = np.ascontiguousarray(F[inside])
    if not (np.isfinite(rows).all() and (np.abs(rows) < 0.5).all()):
        raise ValueError(
            f"grad_dev: entries must be finite and below 0.5 inside the mask; the largest is {np.abs(rows).max()}"
        )
    return rows


def _slabs(
    arrays: list[Any], inside: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], list[Array]]]:
    """
    Rows of a mask, piece by piece: (row numbers, samples (V, n) float64 C-contiguous of each
    array).

    Files are read along their slowest spatial axis, so that every piece is one run of each volume.
    """
    number = np.full(inside.shape, -1, np.int64)
    number[inside] = np.arange(int(inside.sum()))
    axis, data = 0, arrays[0]
    slowest_last = not isinstance(data, np.ndarray) or (
        data.flags.f_contiguous and not data.flags.c_contiguous
    )
    if inside.ndim > 1 and slowest_last:
        axis = inside.ndim - 1
    pieces = inside.shape[axis] if inside.ndim else 1
    step = max(1, CHUNK * pieces // max(inside.size, 1))
    for start in range(0, pieces, step):
        cut = (slice(None),) * axis + (slice(start, start + step),) if inside.ndim else ()
        where = number[cut]
        keep = where >= 0
        if not keep.any():
            continue
        rows, samples = where[keep], [np.asarray(a[(*cut, ...)]) for a in arrays]
        samples = [y.reshape(-1, y.shape[-1]) if keep.all() else y[keep] for y in samples]
        for k in range(0, len(rows), CHUNK):
            yield rows[k : k + CHUNK], [_samples(y[k : k + CHUNK]) for y in samples]


def _samples(y: NDArray[Any]) -> Array:
    """
    Rows as kernels take them, the caller's own memory where it will do; read-only arrays would be
    compiled for anew.
    """
    y = np.ascontiguousarray(y, dtype=np.float64)
    return y if y.flags.writeable else y.copy()


def _progress(
    pieces: Iterator[tuple[NDArray[np.int64], list[Array]]], total: int, show: bool
) -> Iterator[tuple[NDArray[np.int64], list[Array]]]:
    if not show:
        yield from pieces
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="voxel") as bar:
        for where, samples in pieces:
            yield where, samples
            bar.update(len(where))
