"""MapmriModel: options checked once, then blocks of voxels through the kernels."""

from __future__ import annotations

import logging
import math
import numbers
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks, scales
from .engine import Engine, Solver
from .fit import MapmriFit, fit_rows
from .gradients import GradientTable
from .kernels import blocks, gcv, hermite, laplacian, moments, ordering, tensor
from .kernels.linalg import SparseMap, sparse_map
from .kernels.noise import DENOISED, MOST_COILS, RICIAN, mean_table
from .kernels.origin import Rules
from .kernels.status import DROPPED

log = logging.getLogger(__name__)
Array = NDArray[np.float64]

MAX_CONDITION = (
    5e3  # of the unregularised design at a typical white-matter tensor; beyond it a fit is noise
)
FLOOR_SHARE = 0.1  # of the mean diffusivity: the least eigenvalue
SAME_B = 20.0  # s/mm2, above the smallest b: b0 volumes of one kind
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
        the first shell beyond up to which the table determines a tensor (`scale_threshold`); sample
        weights of 0 do not change it.
    eigenvalue_threshold : mm^2/s, floor of the tensor's eigenvalues; None for a tenth of the voxel's
        own mean diffusivity.
    static_diffusivity : mm^2/s, gives the isotropic basis one scale u0 = sqrt(2 d tau) for all
        voxels.
    laplacian_of : "deviation" (from the Gaussian S0_b e_0 of the basis, S0_b the mean of the b0
        volumes: Gaussians come out exact at any weight) or "signal" [Fick 2016].
    S0 : "fit" (E(0) is fitted, S0_b is one more sample at q = 0 with the weight of all b0 volumes),
        "free" (E(0) is fitted) or "b0" (E(0) = S0_b exactly).
    scale : of the basis. "tensor" is the scale tensor's; "data" reduces it to 0.9, .. 0.6 of that in
        the voxels in which positivity and the tensor's scale contradict the data
        (`kernels.rescale`); without positivity, or with S0="b0" or static_diffusivity, both are the
        same.
    noise : None; "rician" for raw magnitudes: each fit is the maximum of their likelihood, penalised
        and constrained as asked, by expectation and maximisation; "denoised" for magnitudes whose
        scatter, but not whose floor, was removed: their expected value is inverted [Koay & Basser
        2006], sigma must be given.
    coils : of an image that is the root of a sum of squares (noncentral chi); 1 is Rician.
    preset : "paper" for the published method: laplacian_of="signal", S0="free" ("b0" with
        positivity), bval_threshold=2100, eigenvalue_threshold=1e-4, no noise.
    zero_is_missing : a sample that is exactly 0 in a voxel with signal is a missing one (it lay
        outside the field of view before resampling); False takes it as a measured 0.

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
        zero_is_missing: bool = True,
        laplacian_of: str = "deviation",
        S0: str = "fit",
        scale: str = "data",
        noise: str | None = None,
        coils: int = 1,
        preset: str | None = None,
    ) -> None:
        if preset is not None:
            _choice("preset", preset, ("paper",))
            given = {
                "bval_threshold": bval_threshold, "eigenvalue_threshold": eigenvalue_threshold,
                "laplacian_of": laplacian_of, "S0": S0, "scale": scale, "noise": noise,
            }  # fmt: skip
            bval_threshold, eigenvalue_threshold, laplacian_of, S0, scale, noise = _paper(
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
        _choice("scale", scale, ("data", "tensor"))
        if not (_is_whole(coils) and 1 <= coils <= MOST_COILS):
            raise ValueError(f"coils must be a whole number from 1 to {MOST_COILS}, not {coils!r}")
        if coils != 1 and noise is None:
            raise ValueError(f"coils = {coils} is for noise='rician' or 'denoised' alone")
        if eigenvalue_threshold is not None:
            _diffusivity("eigenvalue_threshold", eigenvalue_threshold)
        if static_diffusivity is not None:
            _diffusivity("static_diffusivity", static_diffusivity)
            if self.basis != "isotropic":
                raise ValueError(
                    f"static_diffusivity = {static_diffusivity} is for basis='isotropic' alone"
                )
        if isinstance(bval_threshold, str):
            _choice("bval_threshold", bval_threshold, ("auto",))
        elif bval_threshold is not None:
            _positive("bval_threshold", bval_threshold, "in s/mm2, 'auto' or None")
        threshold: float | None = scales.scale_threshold(self.gtab)
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
            "scale": scale,
            "noise": self.noise,
            "coils": int(coils),
            "zero_is_missing": bool(zero_is_missing),
        }
        self.at_origin = self.gtab.b0s_mask.copy()  # volumes whose mean is S0_b
        if S0 == "fit":  # a shell of weak gradients says little about q = 0
            self.at_origin &= self.gtab.bvals <= self.gtab.bvals.min() + SAME_B
        self.zero_is_missing, self.n_coef = bool(zero_is_missing), ordering.n_coef(self.order)
        use = self._tensor_volumes(threshold)
        without = self.laplacian_weights.size == 1 and self.laplacian_weights[0] == 0.0
        needed = self.n_coef if without else 7
        if not self.unregularised:
            self._warn_of_shells()
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
    def weights(self) -> NDArray[np.float64]:
        """The old name of `laplacian_weights`."""
        warnings.warn(
            "MapmriModel.weights is now laplacian_weights", DeprecationWarning, stacklevel=2
        )
        return self.laplacian_weights

    def __repr__(self) -> str:
        options = ", ".join(f"{n}={v!r}" for n, v in self.options.items() if v is not None)
        return f"MapmriModel({self.gtab!r}, {options})"

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
        if b.max() <= max(self.gtab.b0_threshold, checks.LEAST_B):
            raise ValueError(
                f"gtab has no weighted volume: its largest b is {b.max():g} s/mm2 (b0_threshold is "
                f"{self.gtab.b0_threshold:g}). In ms/um2 that is {1000 * b.max():g} s/mm2: give b in s/mm2"
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
        if (spread := scales.tensor_spread(self.gtab, bval_threshold)) > scales.THIN_SPREAD:
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

    def _warn_of_shells(self) -> None:
        """Beyond an order of twice the number of shells, a Laplacian or positivity decides."""
        shells = self.gtab.shells()
        if self.order > 2 * len(shells):
            log.warning(
                "radial_order: %d on %d shell%s (b = %s): the measurements determine order %d at most, what is above "
                "it follows from the regularisation alone",
                self.order,
                len(shells),
                "s" * (len(shells) > 1),
                ", ".join(f"{b:.0f}" for b, _ in shells),
                2 * len(shells),
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
        if floor is None:  # where nothing diffuses: 5 % of what the largest b sees
            floor, share = 0.05 * scales.ATTENUATION / float(gtab.bvals[use].max()), FLOOR_SHARE
        rules = Rules(
            1.0 if o["S0"] == "fit" else 0.0,
            o["S0"] == "b0",
            o["laplacian_of"] == "deviation",
            {None: 0, "rician": RICIAN, "denoised": DENOISED}[self.noise],
            o["coils"],
            mean_table(o["coils"]) if self.noise == "rician" else np.zeros((2, 0)),
            self.positivity is not None
            and (o["scale"], static_diffusivity) == ("data", None)
            and o["S0"] != "b0",  # a wrong S0_b would pass for a wrong scale
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
            tensor.tables(gtab.bvals, gtab.bvecs, use, self.at_origin),
            moments.order_tables(self.order),
            moments.scheme(gtab.qvecs, float(gtab.tau), self.order, rounding),
            laplacian.tables(self.order),
            gcv.tables(self.order),
            _public_map(self.order, isotropic),
            rules,
            self.laplacian_weights,
            self.zero_is_missing,
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
        quiet: bool = False,
    ) -> MapmriFit:
        """
        Fit every voxel of a mask.

        Parameters
        ----------
        data : (..., n) array, memory map, nibabel image or proxy, or a file's path; NaN and masked
            samples are missing samples, and so are zeros beside positive ones (`zero_is_missing`).
        mask : (...), the same kinds, default all voxels: inside where it is not 0 or, if it has
            more than two values, above 0.5; NaN is outside.
        scale : (mu, R) to use instead of the tensor's: mu (3,) or (V, 3) in mm; R (3, 3) or (V, 3,
            3), columns e1 e2 e3, orthonormal, determinant +1 or -1. Rows are those of the mask, or
            volumes of its shape.
        weights : (n,) per volume or (..., n) per sample, >= 0; 0 is a missing sample. They enter
            tensor, S0, fit and GCV as they are, so that doubling all of them halves the Laplacian
            weight's effect.
        grad_dev : gradient non-linearity F, q' = (I + F) q: (..., 3, 3), or the HCP image (..., 9),
            column by column. Images of these and of the mask are compared with the data's by
            affine and turned to its axes (`grad_dev`: an error).
        sigma : of the noise in each of the two channels of each coil, in the data's units: a number, a
            volume, or None for the fit's own estimate (noise="rician" alone).
        threads : default Numba's current number; 1 inside a worker, a pool thread or a forked
            child.
        progress : show a bar. quiet : no warnings about samples and scales.

        Raises
        ------
        TypeError where numbers are complex, text or objects, ValueError for wrong shapes and
        values; both name the argument. The affine of an image stays with the fit, as `affine`.
        """
        if threads is not None and not (_is_whole(threads) and threads >= 1):
            raise ValueError(f"threads must be a positive integer or None, not {threads!r}")
        taken = data
        if not isinstance(data, checks.Taken):
            taken = checks.take(self.gtab, data, mask, weights, grad_dev)
        inside, field = taken.inside, taken.field
        mu, R = checks.given_scale(scale, inside)
        noise = checks.sigma_rows(sigma, self.noise, inside)
        rows = blocks.new_rows(int(inside.sum()), self.n_coef)
        odd: list[Any] = [0, 0, 0]
        for where, y, w in _progress(sample_slabs(taken), len(rows.status), progress):
            m, r, f, s = (a[where] if len(a) > 1 else a for a in (mu, R, field, noise))
            samples = blocks.Data(y, w, m, r, f, s)
            if np.all(np.diff(where) == 1):  # written in place
                first, stop = where[0], where[-1] + 1
                self.engine.fit(samples, threads, out=blocks.cut(rows, first, stop))
            else:
                part = self.engine.fit(samples, threads)
                for whole, piece in zip(rows, part, strict=True):
                    whole[where] = piece
            if not quiet:
                some = rows.status[where] & DROPPED != 0  # no other voxel has an odd sample
                zeros, negative, voxels = checks.count_odd(y[some])
                found = zeros, negative, voxels + int((~some).sum())
                odd = [a + b for a, b in zip(odd, found, strict=True)]
        if not quiet:
            self.judge_samples(*odd)
        named = fit_rows(rows) | ({"field": field} if len(field) else {})
        if self.noise is None:
            del named["sigma"]
        fit = MapmriFit(named, inside, self.options, self.gtab, taken.affine)
        if scale is None and not quiet:
            scales.judge(fit.status, fit.mu_tensor, self)
        return fit

    def judge_samples(self, zeros: Any, negative: int, voxels: int) -> None:
        """Warn of what `checks.count_odd` found in all samples."""
        if self.zero_is_missing:
            checks.piled_up(zeros, voxels, self.gtab)
        checks.negative(negative, voxels, self.gtab)


def _paper(given: dict[str, Any], positivity: Any) -> tuple[Any, ...]:
    """The options of the published method; an error where the caller asked for others."""
    default = {"bval_threshold": "auto", "eigenvalue_threshold": None, "laplacian_of": "deviation",
               "S0": "fit", "scale": "data", "noise": None}  # fmt: skip
    paper = {"bval_threshold": 2100, "eigenvalue_threshold": 1e-4, "laplacian_of": "signal",
             "S0": "free" if positivity is None else "b0", "scale": "tensor", "noise": None}  # fmt: skip
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


def _diffusivity(name: str, value: Any) -> None:
    _positive(name, value, "in mm2/s")
    low, high = checks.DIFFUSIVITIES
    factor, unit = (1e-3, "um2/ms") if value > high else (1e6, "m2/s")
    hint = f"Was it in {unit}? Then it is {value * factor:g} mm2/s: give that"
    checks.in_sense(name, value, low, high, "mm2/s", hint)


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
    largest = float(weights.max())
    hint = f"Was it in 1/m? Then it is {largest / 1000:g} 1/mm: give that"
    checks.in_sense("laplacian", largest, 0.0, checks.MOST_WEIGHT, "1/mm", hint)
    return weights


def sample_slabs(taken: checks.Taken) -> Iterator[tuple[NDArray[np.int64], Array, Array]]:
    """
    Samples of a mask, piece by piece: row numbers (V,), samples (V, n) and weights (V or 1, n).
    """
    arrays = [taken.data, taken.weights] if taken.per_sample else [taken.data]
    for rows, pieces in _slabs(arrays, taken.inside):
        w = checks.checked_weights(pieces[1]) if taken.per_sample else taken.weights
        yield rows, pieces[0], w


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
    pieces: Iterator[tuple[NDArray[np.int64], Array, Array]], total: int, show: bool
) -> Iterator[tuple[NDArray[np.int64], Array, Array]]:
    with progress_bar(total, show) as advance:
        for piece in pieces:
            yield piece
            advance(len(piece[0]))


@contextmanager
def progress_bar(total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """What is told how many voxels more are done; tqdm loads only where its bar is shown."""
    if not show:
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="voxel") as bar:
        yield bar.update
