"""MapmriModel: options checked once, then blocks of voxels through the kernels."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks, options, scales
from .engine import Engine, Solver
from .fit import MapmriFit, fit_rows
from .gradients import GradientTable
from .kernels import blocks, gcv, hermite, laplacian, moments, ordering, tensor
from .kernels.linalg import SparseMap, sparse_map
from .kernels.noise import DENOISED, RICIAN, curves
from .kernels.origin import Rules
from .kernels.status import DROPPED

log = logging.getLogger(__name__)
Array = NDArray[np.float64]

# of the unregularised design at a typical white-matter tensor; beyond it a fit is noise
MAX_CONDITION = 5e3
FLOOR_SHARE = 0.1  # of the mean diffusivity: the least eigenvalue
SAME_B = 20.0  # s/mm2, above the smallest b: b0 volumes of one kind
TYPICAL_TENSOR = (1.7e-3, 0.3e-3, 0.3e-3)  # mm2/s
CHUNK = 16384  # voxels between two progress updates; bounds the float64 copy of the data


class MapmriModel:
    """MAP-MRI of a gradient table [Ozarslan 2013; Fick 2016; Dela Haije 2020].

    Parameters
    ----------
    gtab : GradientTable, or anything with bvals, bvecs, big_delta, small_delta.
    radial_order : even, 0 to 10.
    basis : "anisotropic" (indices, signal) or "isotropic" (tractography).
    laplacian : None (or 0), a weight in 1/mm, "gcv", or a sequence of weights of which the best by
        GCV is taken. With laplacian_of="deviation" "gcv" takes no weight that expects the deviation
        rougher than the Gaussian itself (`kernels.gcv.bound_below`).
    positivity : None, "grid" (P >= 0 at points; CMAP, CMAPL) or "global" (sums of squares; MAP+,
        MAPL+).
    solver : "auto" (compiled, failures go to OSQP) or "osqp".
    bval_threshold : s/mm^2, volumes up to it make the scale tensor; None for all; "auto" for 2100,
        or the first shell beyond up to which the table determines a tensor (`scale_threshold`);
        sample weights of 0 do not change it.
    eigenvalue_threshold : mm^2/s, floor of the tensor's eigenvalues; None for a tenth of the
        voxel's own mean diffusivity.
    static_diffusivity : mm^2/s, gives the isotropic basis one scale u0 = sqrt(2 d tau) for all
        voxels.
    laplacian_of : "deviation" (from the Gaussian S0_b e_0 of the basis, S0_b the mean of the b0
        volumes: Gaussians come out exact at any weight) or "signal" [Fick 2016].
    S0 : "fit" (E(0) is fitted, S0_b is one more sample at q = 0 with the weight of all b0 volumes),
        "free" (E(0) is fitted) or "b0" (E(0) = S0_b exactly).
    scale : of the basis. "tensor" is the scale tensor's; "data" reduces it to 0.9, .. 0.6 of that
        in the voxels in which positivity and the tensor's scale contradict the data
        (`kernels.rescale`); without positivity, or with S0="b0" or static_diffusivity, both are the
        same.
    noise : None; "rician" for raw magnitudes: each fit is the maximum of their likelihood,
        penalised and constrained as asked, by expectation and maximisation; "denoised" for
        magnitudes whose scatter, but not whose floor, was removed: their expected value is inverted
        [Koay & Basser 2006], sigma must be given.
    coils : of an image that is the root of a sum of squares (noncentral chi); 1 is Rician.
    preset : "paper" for the published method: laplacian_of="signal", S0="free" ("b0" with
        positivity), bval_threshold=2100, eigenvalue_threshold=1e-4, scale="tensor", no noise. It
        replaces the defaults of these, also where they are passed; other values are an error.
    zero_is_missing : a sample that is exactly 0 in a voxel with signal is a missing one (it lay
        outside the field of view before resampling); False takes it as a measured 0.

    Examples
    --------
    >>> import mapmri_nb as mapmri
    >>> bvecs = [[0, 0, 0], *[[1, 0, 0], [0, 1, 0], [0, 0, 1]] * 2]
    >>> gtab = mapmri.GradientTable([0, *[1000] * 3, *[2000] * 3], bvecs, 0.04, 0.01)
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
        scale: str = "data",
        noise: str | None = None,
        coils: int = 1,
        zero_is_missing: bool = True,
        preset: str | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "gtab")}
        self.gtab = GradientTable.of(gtab)
        self.options = options.checked(given, self.gtab)
        self.order: int = self.options["radial_order"]
        self.basis: str = self.options["basis"]
        self.positivity: str | None = self.options["positivity"]
        self.solver: str = self.options["solver"]
        self.noise: str | None = self.options["noise"]
        self.zero_is_missing: bool = self.options["zero_is_missing"]
        self.laplacian_weights = options.laplacian_weights(self.options["laplacian"])
        self._no_laplacian = bool(self.laplacian_weights.tolist() == [0.0])
        self.n_coef = ordering.n_coef(self.order)
        self.at_origin = self.gtab.b0s_mask.copy()  # volumes whose mean is S0_b
        if S0 == "fit":  # a shell of weak gradients says little about q = 0
            self.at_origin &= self.gtab.bvals <= self.gtab.bvals.min() + SAME_B
        use = self._tensor_volumes(self.options["bval_threshold"])
        needed = self.n_coef if self._no_laplacian else 7
        if self.unregularised:
            self._check_identifiable()
        else:
            self._warn_of_shells()
            if (n := len(self.gtab)) < needed:
                text = f"{self.order} has {needed} coefficients, the table {n} volumes"
                advice = "pass laplacian=0.2 or a smaller order"
                raise ValueError(f"radial_order: {text}: they are not determined; {advice}")
        self.engine = Engine(self._plan(use, needed), self._solver())

    @property
    def plan(self) -> blocks.Plan:
        """Everything constant that the kernels need."""
        return self.engine.plan

    @property
    def weights(self) -> NDArray[np.float64]:
        """The old name of `laplacian_weights`."""
        text = "MapmriModel.weights is now laplacian_weights"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self.laplacian_weights

    def __repr__(self) -> str:
        told = ", ".join(f"{n}={v!r}" for n, v in self.options.items() if v is not None)
        return f"MapmriModel({self.gtab!r}, {told})"

    @property
    def unregularised(self) -> bool:
        """True for plain MAP: neither a Laplacian nor positivity."""
        return self._no_laplacian and self.positivity is None

    def _tensor_volumes(self, bval_threshold: float | None) -> NDArray[np.bool_]:
        b, b0 = self.gtab.bvals, self.gtab.b0s_mask
        limit = self.gtab.b0_threshold
        if not b0.any():
            text = f"at least one b0 volume (b <= b0_threshold = {limit})"
            raise ValueError(f"gtab: fitting needs {text}; the smallest b is {b.min():g} s/mm2")
        if b.max() <= max(limit, checks.LEAST_B):
            text = f"its largest b is {b.max():g} s/mm2 (b0_threshold is {limit:g})"
            if 0 < b.max() <= checks.LEAST_B:
                text = f"{text}. In ms/um2 that is {1000 * b.max():g} s/mm2: give b in s/mm2"
            raise ValueError(f"gtab has no weighted volume: {text}")
        top = float(b.max()) if bval_threshold is None else bval_threshold
        use = b <= top
        design = tensor.design_matrix(b[use], self.gtab.bvecs[use]) / max(b.max(), 1.0)
        design = np.column_stack([design, np.ones(use.sum())])
        if np.linalg.matrix_rank(design) < 7:
            if use.all():
                text = f"its {len(b)} volumes do not determine a tensor"
                raise ValueError(f"gtab: {text}: it takes six directions spread over the sphere")
            text = f"the {use.sum()} volumes with b <= {top} do not determine a tensor"
            raise ValueError(f"bval_threshold: {text}; pass bval_threshold=None or a larger one")
        log.info("scale tensor from %d of %d volumes (b <= %g)", use.sum(), len(b), top)
        if (spread := scales.tensor_spread(self.gtab, top)) > scales.THIN_SPREAD:
            more = "" if use.all() else "; a larger bval_threshold (or None) takes more volumes"
            log.warning(
                "scale tensor from %d volumes with b <= %s: thin, its elements scatter by %.0f %% "
                "at an SNR of 20%s", use.sum(), top, 5 * spread, more,
            )  # fmt: skip
        return use

    def condition(self, order: int) -> float:
        """Condition number of the plain design of an order, D = (1.7, .3, .3)e-3 mm2/s along x."""
        index = ordering.index_table(order)
        rows = np.empty((len(self.gtab), len(index)))
        mu = np.sqrt(2.0 * self.gtab.tau * np.array(TYPICAL_TENSOR))
        hermite.signal_rows(np.ascontiguousarray(self.gtab.qvecs), mu, index, rows)
        return float(np.linalg.cond(rows)) if rows.shape[0] >= rows.shape[1] else math.inf

    def _check_identifiable(self) -> None:
        if not (found := self.condition(self.order)) > MAX_CONDITION:
            return
        lower = range(0, self.order, 2)
        safe = max((n for n in lower if self.condition(n) <= MAX_CONDITION), default=0)
        shells = ", ".join(f"{count} at b = {b:.0f}" for b, count in self.gtab.shells())
        raise ValueError(
            f"radial_order: {self.order} is not determined by these measurements without a "
            f"Laplacian or positivity (condition number {found:.2g} > {MAX_CONDITION:g}; shells: "
            f"{shells}). The largest safe order is {safe}; or pass laplacian=0.2 or "
            "positivity='global'"
        )

    def _warn_of_shells(self) -> None:
        """Beyond an order of twice the number of shells, a Laplacian or positivity decides."""
        shells = self.gtab.shells()
        if self.order > 2 * len(shells):
            values, plural = ", ".join(f"{b:.0f}" for b, _ in shells), "s" * (len(shells) > 1)
            log.warning(
                "radial_order: %d on %d shell%s (b = %s): the measurements determine order %d at "
                "most, what is above it follows from the regularisation alone",
                self.order, len(shells), plural, values, 2 * len(shells),
            )  # fmt: skip

    def _solver(self) -> Solver:
        """What turns normal equations into coefficients."""
        if self.positivity == "grid":
            from .positivity import GridSolver

            return GridSolver(self.order, self.solver, self.options["S0"] == "b0")
        if self.positivity == "global":
            from .sos import GlobalSolver

            return GlobalSolver(self.order, self.solver, self.options["S0"] == "b0")
        return Solver()

    def _plan(self, use: NDArray[np.bool_], needed: int) -> blocks.Plan:
        gtab, o = self.gtab, self.options
        isotropic, static = self.basis == "isotropic", o["static_diffusivity"]
        floor, share = o["eigenvalue_threshold"], 0.0
        if floor is None:  # where nothing diffuses: 5 % of what the largest b sees
            floor, share = 0.05 * scales.ATTENUATION / float(gtab.bvals[use].max()), FLOOR_SHARE
        rules = Rules(
            1.0 if o["S0"] == "fit" else 0.0,
            o["S0"] == "b0",
            o["laplacian_of"] == "deviation",
            {None: 0, "rician": RICIAN, "denoised": DENOISED}[self.noise],
            o["coils"],
            curves(o["coils"]) if self.noise == "rician" else np.zeros((2, 0)),
            self.positivity is not None
            and (o["scale"], static) == ("data", None)
            and o["S0"] != "b0",  # a wrong S0_b would pass for a wrong scale
        )
        rounding = moments.LARGEST_ROUNDING
        if self.unregularised:
            rounding = moments.LARGEST_ROUNDING_ALONE
        u0 = 0.0 if static is None else math.sqrt(2.0 * static * gtab.tau)
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
        """Fit every voxel of a mask.

        Parameters
        ----------
        data : (..., n) array, memory map, nibabel image or proxy, or a file's path; NaN and masked
            samples are missing samples, and so are zeros beside positive ones (`zero_is_missing`).
        mask : (...), the same kinds, default all voxels: inside where it is not 0 or, if it has
            more than two values, above 0.5; NaN is outside.
        scale : (mu, R) to use instead of the tensor's: mu (3,) or (V, 3) in mm; R (3, 3) or (V, 3,
            3), columns e1 e2 e3, orthonormal, determinant +1 or -1. Rows are those of the mask, or
            volumes of its shape. One pair for all is fastest: a constant matrix times the samples.
        weights : (n,) per volume or (..., n) per sample, >= 0; 0 is a missing sample. They enter
            tensor, S0, fit and GCV as they are, so that doubling all of them halves the Laplacian
            weight's effect.
        grad_dev : gradient non-linearity F, q' = (I + F) q: (..., 3, 3), or the HCP image (..., 9),
            column by column. Images of these and of the mask are compared with the data's by
            affine and turned to its axes (`grad_dev`: an error).
        sigma : of the noise in each of the two channels of each coil, in the data's units: a
            number, a volume, or None for the fit's own estimate (noise="rician" alone).
        threads : default Numba's current number; 1 inside a worker, a pool thread or a forked
            child.
        progress : show a bar. quiet : no warnings about samples and scales.

        Raises
        ------
        TypeError where numbers are complex, text or objects, ValueError for wrong shapes and
        values; both name the argument. The affine of an image stays with the fit, as `affine`.
        """
        count = options.thread_count(threads)
        taken = data
        if not isinstance(data, checks.Taken):
            taken = checks.take(self.gtab, data, mask, weights, grad_dev)
        inside, field = taken.inside, taken.field
        mu, R = checks.given_scale(scale, inside)
        shared = self.plan.static_scale > 0.0
        if scale is not None:
            shared |= np.shape(scale[0]) == (3,) and np.shape(scale[1]) == (3, 3)
        noise = checks.sigma_rows(sigma, self.noise, inside)
        rows = blocks.new_rows(int(inside.sum()), self.n_coef)
        odd: list[Any] = [0, 0, 0]
        for where, y, w in _progress(sample_slabs(taken), len(rows.status), progress):
            m, r, f, s = (a[where] if len(a) > 1 else a for a in (mu, R, field, noise))
            samples = blocks.Data(y, w, m, r, f, s)
            first, stop = where[0], where[-1] + 1
            if stop - first == len(where):  # written in place
                part = blocks.cut(rows, first, stop)
                self.engine.fit(samples, count, out=part, shared=shared)
            else:
                part = self.engine.fit(samples, count, shared=shared)
                for whole, piece in zip(rows, part, strict=True):
                    whole[where] = piece
            if not quiet:
                dropped = rows.status[where] & DROPPED != 0  # others have no odd samples
                odd[2] += int((~dropped).sum())
                if dropped.any():
                    odd = [a + b for a, b in zip(odd, checks.count_odd(y[dropped]), strict=True)]
        if not quiet:
            self.judge_samples(*odd)
        named = fit_rows(rows) | ({"field": field} if len(field) else {})
        if self.noise is None:
            del named["sigma"]
        fit = MapmriFit(named, inside, self.options, self.gtab, taken.affine)
        if scale is None and not quiet:
            ratio = None if fit.sigma is None else fit.sigma / fit.S0
            scales.judge(fit.status, fit.mu_tensor, self, ratio)
        return fit

    def judge_samples(self, zeros: Any, negative: int, voxels: int) -> None:
        """Warn of what `checks.count_odd` found in all samples."""
        if self.zero_is_missing:
            checks.piled_up(zeros, voxels, self.gtab)
        checks.negative(negative, voxels, self.gtab)


def _public_map(order: int, isotropic: bool) -> SparseMap:
    """From the block kernels' order to the coefficients the user sees."""
    n, place = ordering.n_coef(order), ordering.class_permutation(order)
    if not isotropic:
        return sparse_map(place, np.arange(n), np.ones(n), n)
    matrix = ordering.aniso_to_iso(order)[:, place]
    matrix = np.where(np.abs(matrix) > 1e-13, matrix, 0.0)
    i, j = np.nonzero(matrix)
    return sparse_map(i, j, matrix[i, j], n)


def sample_slabs(taken: checks.Taken) -> Iterator[tuple[NDArray[np.int64], Array, Array]]:
    """Samples of a mask, piece by piece: row numbers (V,), samples and weights (V or 1, n)."""
    arrays = [taken.data, taken.weights] if taken.per_sample else [taken.data]
    for rows, pieces in _slabs(arrays, taken.inside):
        w = checks.checked_weights(pieces[1]) if taken.per_sample else taken.weights
        yield rows, pieces[0], w


def _slabs(
    arrays: list[Any], inside: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], list[Array]]]:
    """Rows of a mask, piece by piece: (row numbers, samples (V, n) float64 C-contiguous of each
    array).

    Files are read along their slowest spatial axis, so that every piece is one run of each volume.
    """
    number = np.full(inside.shape, -1, np.int64)
    number[inside] = np.arange(int(inside.sum()))
    axis, data = 0, arrays[0]
    first_slowest = isinstance(data, np.ndarray)
    if first_slowest:
        first_slowest = data.flags.c_contiguous or not data.flags.f_contiguous
    if inside.ndim > 1 and not first_slowest:
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
    """Rows as kernels take them, the caller's memory where possible; never read-only ones."""
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
