"""Error bars of every index: the wild bootstrap through every mode, and the Gaussian posterior of
the coefficients.

Both take the normal equations of a fit, at its scales and weights, from the stages of the block
kernels, and every index from the accessors of a fit, in one representation for both bases: Hermite
coefficients in the tensor's frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..engine import Work
from ..fit import ATTRIBUTES, MapmriFit, fit_rows
from ..indices import INDICES, select
from ..kernels import blocks, hermite, laplacian, ordering, propagator
from ..kernels._jit import n_threads, one_thread, spread
from ..kernels._memory import Memory, lay_out
from ..kernels.lanes import GRAIN, WIDTH, empty
from ..kernels.linalg import block_cholesky, block_invert, block_product, signed_sums
from ..kernels.status import STRAINED
from ..kernels.tensor import isotropic_scales
from ..model import MapmriModel, sample_slabs
from ..status import Status

Array = NDArray[np.float64]

QUANTILES = (0.025, 0.16, 0.84, 0.975)
NORMAL = np.array([-1.959963984540054, -0.994457883209753, 0.994457883209753, 1.959963984540054])
LEVERAGE_POWER = {0: 0.0, 2: 0.5, 3: 1.0}  # HC0, HC2, HC3
STEP = 1e-5  # of central differences, in units of the norm of the coefficients
HIGH_B = 4000.0  # s/mm2
RIDGE = 1e-9  # of the mean diagonal of the normal matrix, where plain positivity leaves it singular


class Uncertainty(NamedTuple):
    """Spread of each index, as volumes of the mask's shape, NaN where there is no fit.

    Attributes
    ----------
    fit : the fit itself.
    mean, sd : name -> volume, over the replicates; the posterior's mean is the fit's own index.
    intervals : name -> ``(*mask.shape, 4)`` quantiles 0.025, 0.16, 0.84, 0.975: the 95 % and 68 %
        intervals, about the fit's own value. They speak of the estimator's scatter about its own
        mean; the bias of a regularised fit is not in it.
    """

    fit: MapmriFit
    mean: dict[str, Array]
    sd: dict[str, Array]
    intervals: dict[str, Array]


def held_by_default(model: MapmriModel) -> bool:
    """Whether replicates keep the scales and the weight: not where each voxel chooses its weight,
    nor above HIGH_B, where held bars of NG are too narrow (`validation/uncertainty_case.py`).
    """
    return model.laplacian_weights.size == 1 and bool(model.gtab.bvals.max() <= HIGH_B)


class Equations(NamedTuple):
    """The linear problems of V voxels in Hermite coefficients at held mu and R."""

    rows: NDArray[np.int64]  # (V,) in the mask
    y: Array  # (V, n) samples, missing ones 0
    w: Array  # (V, n) weights, missing ones 0
    H: Array  # (V, n_coef, n_coef) M'WM + weight L, and the sample at q = 0
    T: Array  # (V, n_coef, n_coef) H^-1 = T'T
    weighted: Array  # (V, n_coef, n_coef) weight L
    pull: Array  # (V, n_coef) weight L e, e the tensor's Gaussian in the basis
    fitted: Array  # (V, n) S0 M coef


class Voxel(NamedTuple):
    """One voxel's linear problem."""

    row: int  # in the mask
    y: Array  # (n,) samples, missing ones 0
    w: Array  # (n,) weights, missing ones 0
    right: Array  # (n_coef, n) samples to right-hand sides: M'W, and what depends on the mean b0
    A: Array  # (n_coef, n) samples to coefficients
    H: Array  # (n_coef, n_coef)
    at_origin: Array  # (n,) samples to the mean b0
    fitted: Array  # (n,)
    leverage: Array  # (n,) diagonal of M A


def bootstrap(
    model: MapmriModel, data: Any, mask: ArrayLike | None = None, *, n: int = 500, seed: int = 0,
    hold: bool | None = None, hc: int = 2, indices: str | list[str] | None = None,
    threads: int | None = None, **fit_options: Any,
) -> Uncertainty:  # fmt: skip
    """Wild bootstrap with leverage-corrected residuals: y* = yhat + v e / (1 - h)^g, v = +-1
    [Whitcher 2008; Gu 2019].

    Parameters
    ----------
    model, data, mask : as for `MapmriModel.fit`; fit_options (scale, weights, grad_dev) too.
    n : replicates. seed : of the signs; a voxel's replicates depend on the seed and its row alone.
    hold : keep mu, R and the Laplacian weight of the fit; False estimates again what the fit had
        estimated; None as `held_by_default` says.
    hc : 0, 2 or 3, g = 0, 1/2 or 1. HC2 is calibrated (sd 0.996 of the truth; HC0 0.77, HC3 1.33).
    indices : names, as in `INDICES`; default all of the basis.

    Notes
    -----
    h is the leverage of the linear fit with the voxel's weight, also for the constrained modes.
    Replicates without a fit are left out; fewer than two give NaN. A fit with noise="rician" draws
    its replicates from the fitted law of magnitudes instead, and corrects each of them.
    """
    if model.noise == "denoised":
        raise ValueError("bootstrap: not for noise='denoised', whose residuals are no noise")
    if not isinstance(n, int | np.integer) or n < 2:
        raise ValueError(f"n must be a whole number of at least 2 replicates, not {n!r}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, not {seed!r}")
    if hc not in LEVERAGE_POWER:
        raise ValueError(f"hc must be 0, 2 or 3, not {hc!r}")
    names = select(indices, model.basis, INDICES)

    hold = held_by_default(model) if hold is None else hold
    linear = hold and model.positivity is None and model.noise is None
    given = hold or fit_options.get("scale") is not None

    def drawn_from_law(fit: MapmriFit, voxel: Voxel) -> Array:
        rng = np.random.default_rng([int(seed), voxel.row])
        parts = rng.standard_normal((2 * model.options["coils"], len(voxel.y), int(n)))
        parts *= (
            fit.rows()["sigma"][voxel.row] / np.sqrt(np.where(voxel.w > 0, voxel.w, 1.0))[:, None]
        )
        parts[0] += np.maximum(voxel.fitted, 0.0)[:, None]
        return _refitted(model, fit, voxel, np.sqrt((parts**2).sum(0)).T, names, given, hold)

    def resampled(fit: MapmriFit, voxel: Voxel) -> Array:
        room = np.maximum(1.0 - voxel.leverage, 1e-6) ** LEVERAGE_POWER[hc]
        residual = np.where(voxel.w > 0, (voxel.y - voxel.fitted) / room, 0.0)
        rng = np.random.default_rng([int(seed), voxel.row])
        size = (int(n), -(-len(residual) // 16) * 2)
        bits = np.frombuffer(rng.bytes(size[0] * size[1]), np.uint8).reshape(size)
        if linear:
            return _values(fit, voxel.row, _signed(voxel.A, voxel.fitted, residual, bits), names)

        def replicates(some: Any) -> Array:
            signs = np.unpackbits(bits[some], axis=1, bitorder="little")[:, : len(residual)]
            return np.asarray(voxel.fitted + residual * (2.0 * signs - 1.0))

        if not hold:
            return _refitted(model, fit, voxel, replicates(slice(None)), names, given, hold)
        sums = _signed(np.vstack([voxel.right, voxel.at_origin]), voxel.fitted, residual, bits)
        coef, failed = model.engine.solver.many(voxel.H, sums[:, :-1] / sums[:, -1:])
        failed |= ~(sums[:, -1] > 0)
        values = _values(fit, voxel.row, coef, names)
        if failed.any():
            values[:, failed] = _refitted(model, fit, voxel, replicates(failed), names, True, True)
        return values

    def resample(fit: MapmriFit, equations: Equations, _: Any) -> Iterator[Array]:
        own = _values(fit, equations.rows, fit.hermite_coef()[equations.rows], names)
        for k, voxel in enumerate(_voxels(model, fit, equations)):
            call = resampled if model.noise is None else drawn_from_law
            yield _summary(call(fit, voxel), own[:, k : k + 1])

    return _voxelwise(model, data, mask, names, resample, threads, fit_options)


def posterior(
    model: MapmriModel, data: Any, mask: ArrayLike | None = None, *,
    indices: str | list[str] | None = None, threads: int | None = None, **fit_options: Any,
) -> Uncertainty:  # fmt: skip
    """Gaussian posterior of the coefficients at held mu, R and weight, in closed form [Sjolund
    2018].

    a ~ N(a_hat, s^2 (M'WM + weight L)^-1), s^2 = RSS / (n - tr S); an index f of the normalised
    coefficients has the variance f'(a) Cov f'(a)', by its exact gradient. Not for positivity: a
    truncated Gaussian is no Gaussian. It contains the prior, the Laplacian: at a fixed weight it is
    2.5 to 3 times wider than the estimator's own scatter. With noise="rician" s is the fit's sigma,
    and each sample counts by its observed information on the signal.
    """
    if model.positivity is not None:
        raise ValueError(f"posterior: not for positivity={model.positivity!r}; use the bootstrap")
    names = select(indices, model.basis, INDICES)

    rules, B = model.plan.rules, ordering.hermite_origin(model.order)

    def propagate(fit: MapmriFit, e: Equations, solve: Callable[..., Equations]) -> Array:
        inverse, coef = e.T.swapaxes(1, 2) @ e.T, fit.hermite_coef()[e.rows]
        b = inverse @ B
        spent = len(B) - np.einsum("vij,vij->v", inverse, e.weighted)  # tr S
        if rules.fixed:
            spent += np.einsum("vi,vij,vj->v", b, e.weighted, b) / (b @ B)
        elif rules.deviation:
            spent += np.einsum("vi,vi->v", b, e.pull)
        square = (e.w * (e.y - e.fitted) ** 2).sum(1) / np.maximum((e.w > 0).sum(1) - spent, 1.0)
        T = e.T
        if model.noise == "rician":
            square = fit.rows()["sigma"][e.rows] ** 2
            T = solve(e.rows, e.y, e.w * _information(e, square, model)).T
        length = np.linalg.norm(T, axis=2)
        size = STEP * np.linalg.norm(coef, axis=1)[:, None]
        along = T * (size / length)[:, :, None]  # at E(0) = 1: what a step adds to it is taken off
        along -= (along @ B)[:, :, None] * coef[:, None]
        near = np.concatenate([coef[:, None], coef[:, None] + along, coef[:, None] - along], 1)
        voxels = np.repeat(e.rows, 2 * len(B) + 1)
        values = _values(fit, voxels, near.reshape(-1, len(B)), names)
        values = values.reshape(len(names), len(e.rows), -1)
        mean, up, down = np.split(values, (1, len(B) + 1), 2)
        slopes = (up - down) * (length / (2.0 * size))
        mean, sd = mean[..., 0], np.sqrt((slopes**2).sum(2) * square) / fit.S0[e.rows]
        out = np.stack([mean, sd, *(mean + z * sd for z in NORMAL)], -1)
        return np.asarray(out.swapaxes(0, 1))

    return _voxelwise(model, data, mask, names, propagate, threads, fit_options)


def _information(e: Equations, square: Array, model: MapmriModel) -> Array:
    """Observed information (V, n) of each sample on its signal, over 1 / sigma^2, 0 to 1."""
    from scipy.special import ive

    coils, square = model.options["coils"], square[:, None]
    y = np.maximum(e.y, 0.0) * np.sqrt(e.w)
    x = np.minimum(y * np.maximum(e.fitted, 0.0) * np.sqrt(e.w) / square, 1e6)
    x = np.maximum(x, 1e-3)
    r = ive(coils, x) / ive(coils - 1, x)
    slope = 1.0 - r * r - (2.0 * coils - 1.0) * r / x
    return np.asarray(np.clip(1.0 - y * y / square * slope, 0.0, 1.0))


def _voxelwise(
    model: MapmriModel, data: Any, mask: ArrayLike | None, names: list[str],
    tables_of: Callable[..., Any], threads: int | None, fit_options: dict[str, Any],
) -> Uncertainty:  # fmt: skip
    """Fit, then one (names, 2 + quantiles) table a voxel, on threads, slab by slab."""
    own: dict[str, Any] = {name: fit_options.get(name) for name in ("scale", "sigma")}
    companions = {name: value for name, value in fit_options.items() if name not in own}
    taken = checks.take(model.gtab, data, mask, **companions)
    fit = model.fit(taken, **own, threads=threads)
    fit.hermite_coef()
    tables = np.full((len(fit.status), len(names), 2 + len(QUANTILES)), np.nan)

    def some(rows: NDArray[np.int64], y: Array, w: Array, start: int, stop: int) -> None:
        solve = partial(_equations, model, fit, plan, Work(model.engine, GRAIN))
        for first in range(start, stop, GRAIN):
            cut = slice(first, min(first + GRAIN, stop))
            weights = w[cut] if len(w) > 1 else np.repeat(w, cut.stop - first, 0)
            tables[rows[cut]] = list(tables_of(fit, solve(rows[cut], y[cut], weights), solve))

    plan, workers = _held(model), n_threads(threads)
    with one_thread():  # the replicates of one voxel are not worth threads of their own
        for rows, y, w in sample_slabs(taken):
            good = fit.status[rows] & Status.NO_FIT == 0
            call = partial(some, rows[good], y[good], w[good] if len(w) > 1 else w)
            spread(call, int(good.sum()), GRAIN, workers)
    mean, sd = ({name: fit.volume(tables[:, i, k]) for i, name in enumerate(names)} for k in (0, 1))
    return Uncertainty(
        fit, mean, sd, {name: fit.volume(tables[:, i, 2:]) for i, name in enumerate(names)}
    )


def _held(model: MapmriModel) -> Memory:
    """The plan of an anisotropic fit without a Laplacian and without noise."""
    rules, none = model.plan.rules._replace(noise=0), np.zeros(1)
    plan = model.plan._replace(rules=rules, laplacian_weights=none)
    return lay_out(plan._replace(isotropic=False, static_scale=0.0))


@lru_cache
def _packing(order: int) -> tuple[NDArray[Any], ...]:
    """Rows and columns of a packed lower triangle in block order; where the elements of a symmetric
    matrix in DIPY's order stand in it; where those of rows in block order, columns in DIPY's; and
    which of the latter are not above the diagonal.
    """
    place = np.argsort(ordering.class_permutation(order))
    i, j = np.tril_indices(len(place))
    packed = np.zeros((len(place), len(place)), np.int64)
    packed[i, j] = packed[j, i] = np.arange(len(i))
    return i, j, packed[place][:, place], packed[:, place], np.tri(len(place))[:, place]


def _equations(
    model: MapmriModel, fit: MapmriFit, plan: Memory, work: Work, rows: NDArray[np.int64], y: Array,
    w: Array,
) -> Equations:  # fmt: skip
    """The problems of some voxels: stages of a fit by the plan `_held`, the Laplacian added."""
    w = np.where(np.isfinite(y) & ((y != 0) | (not model.zero_is_missing)), w, 0.0)
    y = np.where(w > 0, y, 0.0)
    V, field = len(rows), np.zeros((0, 3, 3))
    if fit.field is not None:
        field = fit.field[rows]
    factor = _factors(model, fit, rows)
    data = blocks.Data(
        y, w, fit.mu[rows] / factor[:, None], fit.R[rows], field, np.zeros(0), factor
    )
    t, block = plan.value.moments, work.block
    memory = plan, lay_out(data), lay_out(blocks.new_rows(1, model.n_coef))
    job = work.take(model.engine, *memory, STRAINED).job
    with np.errstate(all="ignore"):
        blocks.run_stages(job.stages.before, job.places, 0, V)
    n = len(t.index)
    i, j, both, lower, triangle = _packing(fit.order)
    odd = t.index[:, :, None] % 2 == 1
    sign = np.where(odd, block.sign[None, :, :V], 1.0).prod(1)  # of columns of R that were turned

    def whole(A: Array, signs: Array, where: NDArray[np.int64]) -> Array:
        flat = np.ascontiguousarray((A[: len(i), :V] * signs).T)
        return flat.take(where.ravel(), axis=1).reshape(V, n, n)

    weighted, G = np.zeros_like(block.G), block.G
    block.laplacian_weight[0, :V] = fit.laplacian_weight[rows]
    laplacian.add(plan.value.lap, block.factors, block.laplacian_weight, weighted)
    G += weighted
    H, weighted = (whole(A, sign[i] * sign[j], both) for A in (G, weighted))
    e = np.eye(1, n)  # the tensor's Gaussian
    if model.plan.rules.rescale:
        e = block.scale.gaussian[np.argsort(t.permutation), :V].T
    if model.positivity is not None:
        diagonal = np.flatnonzero(i == j)
        G[diagonal] += RIDGE * G[diagonal].mean(0)
    block_cholesky(G, n, block.pivot)
    block_invert(G, n)
    T = whole(G, sign[j], lower) * triangle
    tables, frames = propagator.point_tables(fit.order, propagator.SIGNAL), fit.R[rows]
    if fit.field is not None:
        frames = frames + np.swapaxes(fit.field[rows], 1, 2) @ frames
    coef = fit.hermite_coef()[rows]
    E = propagator.values_at(coef, fit.mu[rows], frames, model.gtab.qvecs, tables)
    pull = np.einsum("vij,vj->vi", weighted, np.broadcast_to(e, (V, n)))
    return Equations(rows, y, w, H, T, weighted, pull, fit.S0[rows, None] * E)


def _factors(model: MapmriModel, fit: MapmriFit, rows: Any) -> Array:
    """The basis' scales over the tensor's, of some rows."""
    if not model.plan.rules.rescale:
        return np.ones(len(fit.mu[rows]))
    of_tensor = np.ascontiguousarray(fit.mu_tensor[rows])
    out = of_tensor[:, 0].copy()
    if fit.isotropic:
        isotropic_scales(of_tensor, out)
    out = fit.mu[rows, 0] / out
    return np.asarray(np.where(np.abs(out - 1.0) < 1e-12, 1.0, out))


def _voxels(model: MapmriModel, fit: MapmriFit, e: Equations) -> Iterator[Voxel]:
    """Each voxel's maps from its samples."""
    gtab, rules = model.gtab, model.plan.rules
    index = ordering.index_table(fit.order)
    B, M = ordering.hermite_origin(fit.order), np.empty((len(gtab), len(index)))
    for k, v in enumerate(e.rows):
        frame = fit.R[v] if fit.field is None else fit.R[v] + fit.field[v].T @ fit.R[v]
        hermite.signal_rows(np.ascontiguousarray(gtab.qvecs @ frame), fit.mu[v].copy(), index, M)
        b0 = np.where(model.at_origin, e.w[k], 0.0)
        decay = gtab.bvals * ((gtab.bvecs @ frame) ** 2 @ (fit.mu_tensor[v] ** 2 / (2 * gtab.tau)))
        at_origin = b0 * np.exp(np.where(b0 > 0, decay, 0.0))
        at_origin /= b0.sum() if b0.any() else 1.0  # as `tensor.signal_at_origin`
        column = rules.row * b0.sum() * B + (e.pull[k] if rules.deviation else 0.0)
        T, design = e.T[k], M.T
        root = _product(T, design)
        back = root * e.w[k] + np.outer(T @ column, at_origin)
        A, leverage = _product(T.T, back), (root * back).sum(0)
        if rules.fixed:
            to_B, left = T.T @ (T @ B), at_origin - B @ A
            A += np.outer(to_B / (B @ to_B), left)
            leverage += (to_B @ design) / (B @ to_B) * left
        right = design * e.w[k] + np.outer(column, at_origin) if model.positivity else A
        yield Voxel(int(v), e.y[k], e.w[k], right, A, e.H[k], at_origin, e.fitted[k], leverage)


def _signed(A: Array, fitted: Array, residual: Array, bits: NDArray[np.uint8]) -> Array:
    """A (fitted + residual with the signs of each replicate), one row a replicate."""
    n = -(-len(A) // WIDTH) * WIDTH
    rows, out = empty(len(residual), n), empty(len(bits), n)
    rows[:, : len(A)] = (A * residual).T
    signed_sums(rows, bits, empty(64, n), out)
    return out[:, : len(A)] + A @ fitted


def _refitted(
    model: MapmriModel, fit: MapmriFit, voxel: Voxel, y: Array, names: list[str], given: bool,
    hold: bool,
) -> Array:  # fmt: skip
    """Values (names, V) of replicates y (V, n) fitted by the model itself; mu and R held where
    `given`, the Laplacian weight and sigma too where `hold`.
    """
    none, row = (np.zeros((0, 3)), np.zeros((0, 3, 3))), slice(voxel.row, voxel.row + 1)
    scale = (fit.mu_tensor[row].copy(), fit.R[row].copy()) if given else none
    field = none[1] if fit.field is None else fit.field[row].copy()
    sigma = np.zeros(0)
    if model.noise is not None and hold:
        sigma = np.ascontiguousarray(fit.rows()["sigma"][row])
    data = blocks.Data(
        np.ascontiguousarray(y), np.ascontiguousarray(voxel.w[None]), *scale, field, sigma,
        _factors(model, fit, row) if hold else np.zeros(0),
    )  # fmt: skip
    out = model.engine.fit(data, 1, fit.laplacian_weight[row].copy() if hold else None)
    again = MapmriFit(fit_rows(out), np.ones(len(y), bool), fit.options, fit.gtab)
    return np.stack([again.index(name) for name in names])


def _values(fit: MapmriFit, voxels: Any, coef: Array, names: list[str]) -> Array:
    """Indices (names, V) of unnormalised Hermite coefficients (V, n) at the scales of some voxels
    of a fit; NaN where E(0) is not positive.
    """
    origin = np.einsum("vi,i->v", coef, ordering.hermite_origin(fit.order))
    coef = coef / np.where(origin > 0, origin, np.nan)[:, None]
    voxels = np.broadcast_to(voxels, len(coef))
    rows = {name: fit.rows()[name][voxels] for name in ATTRIBUTES if name != "coef"}
    rows |= {"coef": coef, "hermite": coef}
    again = MapmriFit(rows, np.ones(len(coef), bool), fit.options, fit.gtab)
    return np.stack([again.index_rows(name) for name in names])


def _summary(values: Array, own: Array) -> Array:
    """Mean, sd and interval (names, 6) of values (names, n) over the replicates that have them all;
    own (names, 1).

    The quantiles are taken about the replicates' mean and laid about the fit's own value: a
    regularised fit of a fit shrinks once more, and plain percentiles would cover the mean of the
    estimator in anything from 20 to 100 %.
    """
    kept = values[:, np.isfinite(values).all(0)]
    if kept.shape[1] < 2:
        return np.full((len(values), 2 + len(QUANTILES)), np.nan)
    mean = kept.mean(1, keepdims=True)
    ordered, place = np.sort(kept, axis=1), np.array(QUANTILES) * (kept.shape[1] - 1)
    low, part = place.astype(int), place % 1  # np.quantile takes eight times as long
    quantiles = (1 - part) * ordered[:, low] + part * ordered[:, low + 1]
    return np.hstack([mean, kept.std(1, ddof=1, keepdims=True), own - mean + quantiles])


def _product(A: Array, X: Array) -> Array:
    """A @ X by the library's kernel: BLAS would start threads of its own in every one of ours."""
    n = -(-X.shape[1] // WIDTH) * WIDTH
    P, block = empty(len(A) + -len(A) % 4, len(X)), empty(len(X), n)
    out = empty(len(A) + 3, n)
    P[: len(A)], block[:, : X.shape[1]] = A, X
    block_product(P, block, out)
    return out[: len(A), : X.shape[1]]
