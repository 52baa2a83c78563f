"""
Error bars of every index: the wild bootstrap through every mode, and the Gaussian posterior of the
coefficients.

Both work voxel by voxel, so that memory does not grow with the number of replicates, and in one
representation for both bases: Hermite coefficients in the tensor's frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..fit import RADIAL, MapmriFit, fit_rows
from ..indices import INDICES, select
from ..kernels import blocks, hermite, laplacian, ordering, propagator, scalars
from ..kernels._jit import n_threads, one_thread, spread
from ..kernels.lanes import empty, padded
from ..kernels.linalg import block_product, pad4
from ..kernels.tensor import isotropic_scale
from ..model import MapmriModel, sample_slabs
from ..status import Status

Array = NDArray[np.float64]

QUANTILES = (0.025, 0.16, 0.84, 0.975)
NORMAL = (-1.959963984540054, -0.994457883209753, 0.994457883209753, 1.959963984540054)
LEVERAGE_POWER = {0: 0.0, 2: 0.5, 3: 1.0}  # HC0, HC2, HC3
CHUNK = 16  # bytes of signs at once: 128 replicates, which the cache holds
SIGNS: Array = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) > 0, -1.0, 1.0
)  # (256, 8), by byte
LINEAR = ("rtop", "rtap", "rtpp", "msd", "qiv")  # QIV by its reciprocal
EPSILON = 0.4  # of the scaled sine of PA
RIDGE = 1e-9  # of the mean diagonal of the normal matrix, where plain positivity leaves it singular


class Uncertainty(NamedTuple):
    """
    Spread of each index, as volumes of the mask's shape, NaN where there is no fit.

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


class Forms(NamedTuple):
    """
    What indices are made of at one mu: functionals of the Hermite coefficients, all in one matrix.
    """

    rows: Array  # (r, n_coef)
    part: dict[
        str, slice
    ]  # name -> rows: one functional, L, or those of which the share of the squares is cos^2
    whole: dict[
        str, slice
    ]  # name -> rows that the share is of; absent: of the coefficients themselves
    B: Array  # (n_coef,) E(0) = B'c
    pa_dti: float


class Voxel(NamedTuple):
    """One voxel's linear problem in Hermite coefficients at held mu and R."""

    row: int  # in the mask
    y: Array  # (n,) samples, missing ones 0
    w: Array  # (n,) weights, missing ones 0
    M: Array  # (n, n_coef) design
    right: Array  # (n_coef, n) samples to right-hand sides: M'W, and what depends on the mean b0
    A: Array  # (n_coef, n) samples to coefficients
    H: Array  # (n_coef, n_coef) M'WM + weight L, and the sample at q = 0
    at_origin: Array  # (n,) samples to the mean b0
    coef: Array  # (n_coef,) E(0) = 1
    fitted: Array  # (n,) S0 M coef
    leverage: Array  # (n,) diagonal of M A
    forms: Forms


def bootstrap(
    model: MapmriModel, data: Any, mask: ArrayLike | None = None, *, n: int = 500, seed: int = 0, hold: bool = True,
    hc: int = 2, indices: str | list[str] | None = None, threads: int | None = None, **fit_options: Any,
) -> Uncertainty:  # fmt: skip
    """
    Wild bootstrap with leverage-corrected residuals: y* = yhat + v e / (1 - h)^g, v = +-1 [Whitcher
    2008; Gu 2019].

    Parameters
    ----------
    model, data, mask : as for `MapmriModel.fit`; fit_options (scale, weights, grad_dev) too.
    n : replicates. seed : of the signs; a voxel's replicates depend on the seed and its row alone.
    hold : keep mu, R and the Laplacian weight of the fit; False estimates again what the fit had
        estimated.
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

    linear = hold and model.positivity is None and model.noise is None

    def replicates(fit: MapmriFit, voxel: Voxel, residual: Array, signs: Array) -> Array:
        """
        Coefficients of some replicates where they are linear in the samples, else their indices.
        """
        if linear:
            return (voxel.A @ voxel.fitted)[:, None] + _product(voxel.A * residual, signs)
        y = voxel.fitted[:, None] + residual[:, None] * signs
        if hold:
            return _constrained(model, fit, voxel, y, names)
        return _refitted(model, fit, voxel, y, names, fit_options.get("scale") is not None, None)

    def drawn_from_law(fit: MapmriFit, voxel: Voxel) -> Array:
        rng = np.random.default_rng([int(seed), voxel.row])
        parts = rng.standard_normal((2 * model.options["coils"], len(voxel.y), int(n)))
        parts *= (
            fit.rows()["sigma"][voxel.row] / np.sqrt(np.where(voxel.w > 0, voxel.w, 1.0))[:, None]
        )
        parts[0] += np.maximum(voxel.fitted, 0.0)[:, None]
        weight = fit.laplacian_weight[voxel.row : voxel.row + 1].copy() if hold else None
        given = hold or fit_options.get("scale") is not None
        y = np.sqrt((parts**2).sum(0))
        values = _refitted(model, fit, voxel, y, names, given, weight)
        return _summary(values, index_values(names, voxel.forms, voxel.coef[:, None]))

    def resample(fit: MapmriFit, voxel: Voxel) -> Array:
        if model.noise is not None:
            return drawn_from_law(fit, voxel)
        room = np.maximum(1.0 - voxel.leverage, 1e-6) ** LEVERAGE_POWER[hc]
        residual = np.where(voxel.w > 0, (voxel.y - voxel.fitted) / room, 0.0)
        rng, drawn = np.random.default_rng([int(seed), voxel.row]), (-(-int(n) // 8), len(residual))
        bits = np.frombuffer(rng.bytes(drawn[0] * drawn[1]), np.uint8).reshape(drawn)
        cuts = (np.ascontiguousarray(bits[k : k + CHUNK].T) for k in range(0, len(bits), CHUNK))
        parts = [
            replicates(fit, voxel, residual, SIGNS.take(cut, axis=0).reshape(len(residual), -1))
            for cut in cuts
        ]
        own = voxel.coef[:, None]
        if linear:
            values = index_values(names, voxel.forms, np.hstack([own, *parts]))
        else:
            values = np.hstack([index_values(names, voxel.forms, own), *parts])
        return _summary(values[:, 1 : int(n) + 1], values[:, :1])

    return _voxelwise(model, data, mask, names, resample, threads, fit_options)


def posterior(
    model: MapmriModel, data: Any, mask: ArrayLike | None = None, *, indices: str | list[str] | None = None,
    threads: int | None = None, **fit_options: Any,
) -> Uncertainty:  # fmt: skip
    """
    Gaussian posterior of the coefficients at held mu, R and weight, in closed form [Sjolund 2018].

    a ~ N(a_hat, s^2 (M'WM + weight L)^-1), s^2 = RSS / (n - tr S); an index f of the normalised
    coefficients has the variance f'(a) Cov f'(a)', by its exact gradient. Not for positivity: a
    truncated Gaussian is no Gaussian. It contains the prior, the Laplacian: at a fixed weight it is 2.5
    to 3 times wider than the estimator's own scatter. With noise="rician" s is the fit's sigma, and
    each sample counts by its observed information on the signal.
    """
    if model.positivity is not None:
        raise ValueError(f"posterior: not for positivity={model.positivity!r}; use the bootstrap")
    names = select(indices, model.basis, INDICES)

    def propagate(fit: MapmriFit, voxel: Voxel) -> Array:
        rss = float(np.sum(voxel.w * (voxel.y - voxel.fitted) ** 2))
        free = max((voxel.w > 0).sum() - voxel.leverage.sum(), 1.0)
        square, H = rss / free, voxel.H
        if model.noise == "rician":
            square = float(fit.rows()["sigma"][voxel.row]) ** 2
            known = voxel.w * (_information(voxel, square, model.options["coils"]) - 1.0)
            H = H + (voxel.M.T * known) @ voxel.M
        covariance = square / fit.S0[voxel.row] ** 2 * np.linalg.inv(H)
        out = np.empty((len(names), 2 + len(QUANTILES)))
        for i, name in enumerate(names):
            value, gradient = index_gradient(name, voxel.forms, voxel.coef)
            sd = math.sqrt(max(0.0, float(gradient @ covariance @ gradient)))
            out[i] = [value, sd, *(value + z * sd for z in NORMAL)]
        return out

    return _voxelwise(model, data, mask, names, propagate, threads, fit_options)


def _information(voxel: Voxel, square: float, coils: int) -> Array:
    """Observed information of each sample on its signal, over 1 / sigma^2, 0 to 1."""
    from scipy.special import ive

    y = np.maximum(voxel.y, 0.0) * np.sqrt(voxel.w)
    x = np.minimum(y * np.maximum(voxel.fitted, 0.0) * np.sqrt(voxel.w) / square, 1e6)
    x = np.maximum(x, 1e-3)
    r = ive(coils, x) / ive(coils - 1, x)
    slope = 1.0 - r * r - (2.0 * coils - 1.0) * r / x
    return np.asarray(np.clip(1.0 - y * y / square * slope, 0.0, 1.0))


def _voxelwise(
    model: MapmriModel, data: Any, mask: ArrayLike | None, names: list[str],
    spread_of: Callable[[MapmriFit, Voxel], Array], threads: int | None, fit_options: dict[str, Any],
) -> Uncertainty:  # fmt: skip
    """
    Fit, then one (names, 2 + quantiles) table a voxel, on threads; samples are read again slab by
    slab.
    """
    own: dict[str, Any] = {name: fit_options.get(name) for name in ("scale", "sigma")}
    companions = {name: value for name, value in fit_options.items() if name not in own}
    taken = checks.take(model.gtab, data, mask, **companions)
    fit = model.fit(taken, **own, threads=threads)
    coef = fit.hermite_coef()
    tables = np.full((len(coef), len(names), 2 + len(QUANTILES)), np.nan)

    def some(rows: NDArray[np.int64], y: Array, w: Array, start: int, stop: int) -> None:
        for k in range(start, stop):
            if not fit.status[rows[k]] & Status.NO_FIT:
                voxel = _linear_problem(
                    model, fit, int(rows[k]), coef[rows[k]], y[k], w[k if len(w) > 1 else 0]
                )
                tables[rows[k]] = spread_of(fit, voxel)

    workers = n_threads(threads)
    with one_thread():  # the replicates of one voxel are not worth threads of their own
        for rows, y, w in sample_slabs(taken):
            spread(partial(some, rows, y, w), len(rows), 1, workers)
    mean, sd = ({name: fit.volume(tables[:, i, k]) for i, name in enumerate(names)} for k in (0, 1))
    return Uncertainty(
        fit, mean, sd, {name: fit.volume(tables[:, i, 2:]) for i, name in enumerate(names)}
    )


def _linear_problem(
    model: MapmriModel, fit: MapmriFit, v: int, coef: Array, y: Array, w: Array
) -> Voxel:
    index = ordering.index_table(fit.order)
    M, L = np.empty((len(y), len(index))), np.empty((len(index), len(index)))
    hermite.signal_rows(
        np.ascontiguousarray(model.gtab.qvecs @ _frame(fit, v)), fit.mu[v].copy(), index, M
    )
    laplacian.matrix(fit.mu[v].copy(), index, L)
    w = np.where(np.isfinite(y) & ((y != 0) | (not model.zero_is_missing)), w, 0.0)
    gtab, rules, b0 = model.gtab, model.plan.rules, np.where(model.at_origin, w, 0.0)
    B, decay = (
        ordering.origin_values(index),
        gtab.bvals
        * ((gtab.bvecs @ _frame(fit, v)) ** 2 @ (fit.mu_tensor[v] ** 2 / (2.0 * gtab.tau))),
    )
    at_origin = np.where(b0 > 0, b0 * np.exp(np.where(b0 > 0, decay, 0.0)), 0.0)
    at_origin /= b0.sum() if b0.any() else 1.0  # as `tensor.signal_at_origin`
    H = (M.T * w) @ M + fit.laplacian_weight[v] * L + rules.row * b0.sum() * np.outer(B, B)
    column = rules.row * b0.sum() * B
    if rules.deviation:  # from the tensor's Gaussian
        f = _factor(fit, v) ** 2
        e = (2.0 * f / (1.0 + f)) ** 1.5 * B * ((1.0 - f) / (1.0 + f)) ** (index.sum(1) // 2)
        column = column + fit.laplacian_weight[v] * (L @ e)
    right = M.T * w + np.outer(column, at_origin)
    ridge = 0.0 if model.positivity is None else RIDGE * np.trace(H) / len(H)
    inverse = np.linalg.inv(H + ridge * np.eye(len(H)))
    A = inverse @ right
    if rules.fixed:
        to_B = inverse @ B / (B @ inverse @ B)
        A += np.outer(to_B, at_origin - B @ A)
    made_of = forms(fit.order, fit.mu[v], fit.mu_tensor[v], fit.isotropic, L)
    return Voxel(
        v,
        np.where(w > 0, y, 0.0),
        w,
        M,
        right,
        A,
        H,
        at_origin,
        coef,
        fit.S0[v] * (M @ coef),
        (M.T * A).sum(0),
        made_of,
    )


def _factor(fit: MapmriFit, v: int) -> float:
    """The basis' scale over the tensor's."""
    of_tensor = fit.mu_tensor[v, 0]
    if fit.isotropic and not fit.options["static_diffusivity"]:
        of_tensor = isotropic_scale(fit.mu_tensor[v].copy())
    elif fit.isotropic:
        return 1.0
    factor = float(fit.mu[v, 0] / of_tensor)
    return 1.0 if abs(factor - 1.0) < 1e-12 else factor


def _frame(fit: MapmriFit, v: int) -> Array:
    """The matrix that takes rows q to the frame R, at (I + F) q where the fit has a field."""
    return np.asarray(fit.R[v] if fit.field is None else fit.R[v] + fit.field[v].T @ fit.R[v])


def _constrained(
    model: MapmriModel, fit: MapmriFit, voxel: Voxel, y: Array, names: list[str]
) -> Array:
    """
    Values (names, n) of replicates y (samples, n) at held scales: one H for all of them where the
    solver takes that.
    """
    v, values, S0 = voxel.row, np.empty((len(names), y.shape[1])), voxel.at_origin @ y
    g = _product(voxel.right, y) / S0
    coef, failed = model.engine.solver.many(voxel.H, np.ascontiguousarray(g.T))
    failed |= ~(S0 > 0)
    values[:, ~failed] = index_values(names, voxel.forms, coef[~failed].T)
    if failed.any():
        weight = fit.laplacian_weight[v : v + 1].copy()
        values[:, failed] = _refitted(model, fit, voxel, y[:, failed], names, True, weight)
    return values


def _refitted(
    model: MapmriModel,
    fit: MapmriFit,
    voxel: Voxel,
    y: Array,
    names: list[str],
    hold: bool,
    weight: Array | None,
) -> Array:
    """
    Values (names, n) of replicates y (samples, n) fitted by the model itself, mu and R held or not,
    weight (1,) if held.
    """
    none, row = (np.zeros((0, 3)), np.zeros((0, 3, 3))), slice(voxel.row, voxel.row + 1)
    scale = (fit.mu_tensor[row].copy(), fit.R[row].copy()) if hold else none
    field = none[1] if fit.field is None else fit.field[row].copy()
    sigma = np.zeros(0)
    if model.noise is not None and hold:
        sigma = np.ascontiguousarray(fit.rows()["sigma"][row])
    data = blocks.Data(
        np.ascontiguousarray(y.T), np.ascontiguousarray(voxel.w[None]), *scale, field, sigma,
        np.array([_factor(fit, voxel.row)]) if hold else np.zeros(0),
    )  # fmt: skip
    out = model.engine.fit(data, 1, weight)
    again = MapmriFit(fit_rows(out), np.ones(y.shape[1], bool), fit.options, fit.gtab)
    return np.stack([again.index(name) for name in names])


def _summary(values: Array, own: Array) -> Array:
    """
    Mean, sd and interval (names, 6) of values (names, n) over the replicates that have them all;
    own (names, 1).

    The quantiles are taken about the replicates' mean and laid about the fit's own value: a
    regularised fit of a fit shrinks once more, and plain percentiles would cover the mean of the
    estimator in anything from 20 to 100 %.
    """
    kept = values[:, np.isfinite(values).all(0)]
    if kept.shape[1] < 2:
        return np.full((len(values), 2 + len(QUANTILES)), np.nan)
    mean = kept.mean(1, keepdims=True)
    return np.hstack(
        [
            mean,
            kept.std(1, ddof=1, keepdims=True),
            own - mean + np.quantile(kept, QUANTILES, axis=1).T,
        ]
    )


def _product(A: Array, X: Array) -> Array:
    """A @ X by the library's kernel: BLAS would start threads of its own in every one of ours."""
    P, out = pad4(A), np.empty((len(A), X.shape[1]))
    for first in range(0, X.shape[1], blocks.VOXELS):
        part = X[:, first : first + blocks.VOXELS]
        block, product = empty(len(X), padded(part.shape[1])), empty(len(P), padded(part.shape[1]))
        block[:, : part.shape[1]] = part
        block_product(P, block, product)
        out[:, first : first + part.shape[1]] = product[: len(A), : part.shape[1]]
    return out


# ---- indices and their exact gradients
# -------------------------------------------------------------------------------


@lru_cache
def _constants(order: int) -> tuple[Array, Array, dict[str, Array]]:
    """
    B_n, unit vectors (k, n_coef) of the coefficients with B_n, and the sums that NG_par and NG_perp
    square.
    """
    t, n, sums = scalars.tables(order), ordering.n_coef(order), {}
    even, B = t.even.astype(np.int64), np.zeros(n)
    B[even] = t.origin
    for which in ("par", "perp"):  # (groups, n_coef), the Gaussian's first
        ptr, src, weight = (getattr(t, f"{which}_{part}") for part in ("ptr", "src", "weight"))
        out = sums[f"ng_{which}"] = np.zeros((len(ptr) - 1, n))
        out[np.repeat(np.arange(len(out)), np.diff(ptr.astype(np.int64))), src.astype(np.int64)] = (
            weight
        )
    return B, np.eye(n)[even], sums


def _radial_matrix(order: int, mu: Array, target: Array, K: int) -> Array:
    """
    Rows g_k / sqrt(b_k) of `propagator.radial_cosine_rows` as functionals of the coefficients, (K +
    1, n_coef).
    """
    n, B = (
        ordering.index_table(order),
        np.sqrt(np.cumprod([1.0, *((2 * m + 1) / (2 * m + 2) for m in range(K))])),
    )
    axes, b = [], np.cumprod([1.0, *((k + 1.5) / (k + 1.0) for k in range(K))])
    for axis in range(3):
        overlap = np.empty((order + 1) * (2 * K + 1))
        propagator.overlaps(float(mu[axis]), float(target[axis]), order, 2 * K + 1, overlap)
        axes.append(B[:, None] * overlap.reshape(order + 1, -1)[n[:, axis], ::2].T)
    for axis in (1, 2):  # sums over m1 + m2 + m3 = k are convolutions
        axes[0] = np.array([(axes[0][: k + 1] * axes[axis][k::-1]).sum(0) for k in range(K + 1)])
    return np.asarray(axes[0] / np.sqrt(b)[:, None])


def _section(order: int, name: str, sums: Array, factor: float) -> Array:
    """The tensor's Gaussian along a section, normalised, as a functional (1, n_coef); see `scalars.beside`."""
    axes, f = ([0] if name == "ng_par" else [1, 2]), factor**2
    n = ordering.index_table(order)[(sums != 0).argmax(1)][:, axes]
    on = np.zeros((len(n), 3), np.int64)
    on[:, axes] = n
    e = ordering.origin_values(on) * ((1 - f) / (1 + f)) ** (n.sum(1) // 2)
    norm = (2 * f / (1 + f)) ** (len(axes) / 2) / factor ** (len(axes) / 2)
    return np.asarray(norm * e @ sums)[None]


def forms(order: int, mu: Array, mu_tensor: Array, isotropic: bool, L: Array) -> Forms:
    """
    What the indices of one voxel are made of; mu, mu_tensor (3,) mm, `isotropic`: the fit's basis,
    L its Laplacian.
    """
    B, unit, sums = _constants(order)
    u0, nine = isotropic_scale(np.array(mu_tensor)), np.empty((len(unit), 9))
    scalars.index_rows(unit, np.tile(mu, (len(unit), 1)), scalars.tables(order), nine, 0, len(unit))
    nine[:, INDICES["qiv"].column] = 1.0 / nine[:, INDICES["qiv"].column]
    functionals = nine.T @ unit  # a linear one is known by its values on unit vectors
    parts = {name: functionals[INDICES[name].column, None] for name in LINEAR}
    parts |= {"lapnorm": L, "pa": _radial_matrix(order, mu, np.full(3, u0), RADIAL)}
    beside = isotropic or abs(mu[0] / mu_tensor[0] - 1.0) > 1e-12  # another Gaussian than e_0
    parts["ng"] = _radial_matrix(order, mu, mu_tensor, 0) if beside else unit[:1]
    parts |= {} if isotropic else sums
    if beside and not isotropic:
        parts |= {
            f"{name} of": _section(order, name, sums[name], mu[0] / mu_tensor[0]) for name in sums
        }
    ends = np.cumsum([0, *map(len, parts.values())]).tolist()
    where = {name: slice(a, b) for name, a, b in zip(parts, ends[:-1], ends[1:], strict=True)}
    whole = {name: where[name] for name in sums if name in where}
    first = {
        name: where.get(f"{name} of", slice(rows.start, rows.start + 1))
        for name, rows in whole.items()
    }
    cosine = propagator.gaussian_cosine(np.asarray(mu_tensor), np.array(u0))
    return Forms(
        np.vstack([*parts.values()]),
        where | first,
        whole,
        B,
        float(propagator.propagator_anisotropy(cosine)),
    )


def index_values(names: list[str], made_of: Forms, raw: Array) -> Array:
    """
    Indices (names, n) of unnormalised Hermite coefficients (n_coef, n); NaN where E(0) is not
    positive.
    """
    origin = made_of.B @ raw
    coef = raw / np.where(origin > 0, origin, np.nan)
    values, out = _product(made_of.rows, coef), np.empty((len(names), raw.shape[1]))
    size = (coef * coef).sum(0)
    for i, name in enumerate(names):
        if name == "pa_dti":
            out[i] = made_of.pa_dti
            continue
        part = values[made_of.part[name]]
        if name in LINEAR:
            out[i] = 1.0 / part[0] if name == "qiv" else part[0]
        elif name == "lapnorm":
            out[i] = (coef * part).sum(0)
        else:
            cosine = (part * part).sum(0) / (
                (values[made_of.whole[name]] ** 2).sum(0) if name in made_of.whole else size
            )
            out[i] = (
                propagator.propagator_anisotropy(cosine)
                if name == "pa"
                else np.sqrt(np.maximum(1.0 - cosine, 0.0))
            )
    return out


def index_gradient(name: str, made_of: Forms, coef: Array) -> tuple[float, Array]:
    """
    One index of one voxel and its gradient (n_coef,) by the unnormalised coefficients, at E(0) =
    B'coef = 1.
    """
    value = float(index_values([name], made_of, coef[:, None])[0, 0])
    if name == "pa_dti":
        return value, np.zeros_like(coef)
    part, B = made_of.rows[made_of.part[name]], made_of.B
    if name in LINEAR:
        return value, -(value**2) * (part[0] - B / value) if name == "qiv" else part[0] - value * B
    if name == "lapnorm":
        return value, 2.0 * (part @ coef - value * B)
    inside, whole = part @ coef, coef
    back = whole
    if name in made_of.whole:
        whole = made_of.rows[made_of.whole[name]] @ coef
        back = made_of.rows[made_of.whole[name]].T @ whole
    size = float(whole @ whole)
    cosine = float(inside @ inside) / size
    slope = (
        2.0 * (part.T @ inside - cosine * back) / size
    )  # of cos^2, which is homogeneous: B plays no part
    if name != "pa":
        return value, -slope / (2.0 * value) if value > 0 else np.full_like(coef, np.nan)
    sine2 = max(1.0 - cosine, 1e-300)
    s = math.pow(sine2, EPSILON / 2)
    base = 1.0 - 3.0 * s + 3.0 * s * s
    by_s = (3.0 * s * s * base - s**3 * (6.0 * s - 3.0)) / base**2
    return value, by_s * (-EPSILON / 2) * s / sine2 * slope
