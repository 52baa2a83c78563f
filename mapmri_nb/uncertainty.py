"""
Error bars of every index: the wild bootstrap through every mode, and the Gaussian posterior of the coefficients.

Both work voxel by voxel, so that memory does not grow with the number of replicates, and in one representation for both
bases: Hermite coefficients in the tensor's frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .fit import MapmriFit, Status, fit_rows
from .indices import INDICES, select
from .kernels import batch, hermite, laplacian, ordering, propagator, scalars
from .kernels._jit import n_threads, one_thread, spread
from .kernels.tensor import isotropic_scale
from .model import MapmriModel, sample_rows

Array = NDArray[np.float64]

QUANTILES = (0.025, 0.16, 0.84, 0.975)
NORMAL = (-1.959963984540054, -0.994457883209753, 0.994457883209753, 1.959963984540054)
LEVERAGE_POWER = {0: 0.0, 2: 0.5, 3: 1.0}  # HC0, HC2, HC3
EPSILON = 0.4  # of the scaled sine of PA
RIDGE = 1e-9  # of the mean diagonal of the normal matrix, where plain positivity leaves it singular


class Uncertainty(NamedTuple):
    """
    Spread of each index, as volumes of the mask's shape, NaN where there is no fit.

    Attributes
    ----------
    fit : the fit itself.
    mean, sd : name -> volume, over the replicates; the posterior's mean is the fit's own index.
    intervals : name -> (*mask.shape, 4) quantiles 0.025, 0.16, 0.84, 0.975: the 95 % and 68 % intervals.
    """

    fit: MapmriFit
    mean: dict[str, Array]
    sd: dict[str, Array]
    intervals: dict[str, Array]


class Voxel(NamedTuple):
    """One voxel's linear problem in Hermite coefficients at held mu and R."""

    y: Array  # (n,) samples, missing ones 0
    w: Array  # (n,) weights, missing ones 0
    M: Array  # (n, n_coef) design
    A: Array  # (n_coef, n) H^-1 M'W: samples to coefficients
    H: Array  # (n_coef, n_coef) M'WM + weight L
    S0: float
    coef: Array  # (n_coef,) E(0) = 1
    leverage: Array  # (n,) diagonal of M A


def bootstrap(
    model: MapmriModel,
    data: Any,
    mask: ArrayLike | None = None,
    *,
    n: int = 500,
    seed: int = 0,
    hold: bool = True,
    hc: int = 2,
    indices: str | list[str] | None = None,
    threads: int | None = None,
    **fit_options: Any,
) -> Uncertainty:
    """
    Wild bootstrap with leverage-corrected residuals: y* = yhat + v e / (1 - h)^g, v = +-1 [Whitcher 2008; Gu 2019].

    Parameters
    ----------
    model, data, mask : as for `MapmriModel.fit`; fit_options (scale, weights, grad_dev) too.
    n : replicates. seed : of the signs; a voxel's replicates depend on the seed and its row alone.
    hold : keep mu, R and the Laplacian weight of the fit; False estimates them again for every replicate.
    hc : 0, 2 or 3, g = 0, 1/2 or 1. HC2 is calibrated (sd 0.996 of the truth; HC0 0.77, HC3 1.33).
    indices : names, as in `INDICES`; default all of the basis.

    Notes
    -----
    h is the leverage of the linear fit with the voxel's weight, also for the constrained modes.
    """
    if int(n) != n or n < 2:
        raise ValueError(f"n must be a whole number of at least 2 replicates, not {n!r}")
    if hc not in LEVERAGE_POWER:
        raise ValueError(f"hc must be 0, 2 or 3, not {hc!r}")
    names = select(indices, model.basis)

    def replicate(fit: MapmriFit, v: int, voxel: Voxel) -> Array:
        rng = np.random.default_rng([seed, v])
        signs = rng.integers(0, 2, (len(voxel.y), int(n))) * 2.0 - 1.0
        fitted = voxel.S0 * (voxel.M @ voxel.coef)
        room = np.maximum(1.0 - voxel.leverage, 1e-6) ** LEVERAGE_POWER[hc]
        residual = np.where(voxel.w > 0, (voxel.y - fitted) / room, 0.0)
        if hold and model.positivity is None:
            raw = (voxel.A @ fitted)[:, None] + (voxel.A * residual) @ signs
            again = _held(fit, v, np.ascontiguousarray(raw.T))
        else:
            y = np.ascontiguousarray((fitted[:, None] + residual[:, None] * signs).T)
            again = _refitted(model, fit, v, y, voxel.w, hold)
        values = np.stack([again.index(name) for name in names])
        with np.errstate(invalid="ignore"):
            mean, sd = np.nanmean(values, axis=1), np.nanstd(values, axis=1, ddof=1)
        return np.column_stack([mean, sd, np.nanquantile(values, QUANTILES, axis=1).T])

    return _voxelwise(model, data, mask, names, replicate, threads, fit_options)


def posterior(
    model: MapmriModel,
    data: Any,
    mask: ArrayLike | None = None,
    *,
    indices: str | list[str] | None = None,
    threads: int | None = None,
    **fit_options: Any,
) -> Uncertainty:
    """
    Gaussian posterior of the coefficients at held mu, R and weight, in closed form [Sjolund 2018].

    a ~ N(a_hat, s^2 (M'WM + weight L)^-1), s^2 = RSS / (n - tr S); an index f of the normalised coefficients has the
    variance f'(a) Cov f'(a)', by its exact gradient. Not for positivity: a truncated Gaussian is no Gaussian.
    """
    if model.positivity is not None:
        raise ValueError(f"posterior: not for positivity={model.positivity!r}; use the bootstrap")
    names = select(indices, model.basis)

    def propagate(fit: MapmriFit, v: int, voxel: Voxel) -> Array:
        used = voxel.w > 0
        rss = float(np.sum(voxel.w * (voxel.y - voxel.S0 * (voxel.M @ voxel.coef)) ** 2))
        variance = rss / max(used.sum() - voxel.leverage[used].sum(), 1.0) / voxel.S0**2
        out = np.empty((len(names), 2 + len(QUANTILES)))
        inverse = np.linalg.inv(voxel.H)
        for i, name in enumerate(names):
            value, gradient = index_gradient(name, voxel.coef, fit.mu[v], fit.mu_tensor[v], fit.isotropic)
            sd = math.sqrt(max(0.0, variance * float(gradient @ inverse @ gradient)))
            out[i] = [value, sd, *(value + z * sd for z in NORMAL)]
        return out

    return _voxelwise(model, data, mask, names, propagate, threads, fit_options)


def _voxelwise(
    model: MapmriModel,
    data: Any,
    mask: ArrayLike | None,
    names: list[str],
    spread_of: Callable[[MapmriFit, int, Voxel], Array],
    threads: int | None,
    fit_options: dict[str, Any],
) -> Uncertainty:
    """Fit, then one (names, 2 + quantiles) table a voxel, on threads."""
    fit = model.fit(data, mask, threads=threads, **fit_options)
    y, w = sample_rows(data, fit.mask, fit_options.get("weights"))
    coef = fit.hermite_coef()
    tables = np.full((len(coef), len(names), 2 + len(QUANTILES)), np.nan)

    def some(start: int, stop: int) -> None:
        for v in range(start, stop):
            if not fit.status[v] & Status.NO_FIT:
                voxel = _linear_problem(model, fit, v, coef[v], y[v], w[v if len(w) > 1 else 0])
                tables[v] = spread_of(fit, v, voxel)

    workers = n_threads(threads)
    with one_thread():  # the replicates of one voxel are not worth threads of their own
        spread(some, len(coef), 1, workers)
    mean, sd = ({name: fit.volume(tables[:, i, k]) for i, name in enumerate(names)} for k in (0, 1))
    return Uncertainty(fit, mean, sd, {name: fit.volume(tables[:, i, 2:]) for i, name in enumerate(names)})


def _linear_problem(model: MapmriModel, fit: MapmriFit, v: int, coef: Array, y: Array, w: Array) -> Voxel:
    index = ordering.index_table(fit.order)
    frame = fit.R[v] if fit.field is None else fit.R[v] + fit.field[v].T @ fit.R[v]
    M, L = np.empty((len(y), len(index))), np.empty((len(index), len(index)))
    hermite.signal_rows(np.ascontiguousarray(model.gtab.qvecs @ frame), fit.mu[v].copy(), index, M)
    laplacian.matrix(fit.mu[v].copy(), index, L)
    w = np.where(np.isfinite(y), w, 0.0)
    H = (M.T * w) @ M + fit.laplacian_weight[v] * L
    if model.positivity is not None:
        H[np.diag_indices_from(H)] += RIDGE * np.trace(H) / len(H)
    A = np.linalg.solve(H, M.T * w)
    return Voxel(np.where(w > 0, y, 0.0), w, M, A, H, float(fit.S0[v]), coef, np.einsum("kn,nk->k", M, A))


def _held(fit: MapmriFit, v: int, raw: Array) -> MapmriFit:
    """Replicates of one voxel from unnormalised Hermite coefficients (n, n_coef) at its mu and R."""
    origin = raw @ ordering.origin_values(ordering.index_table(fit.order))
    coef = np.where(origin > 0, 1.0, np.nan)[:, None] * raw / origin[:, None]
    rows = {k: np.repeat(a[v : v + 1], len(raw), axis=0) for k, a in fit.rows().items()} | {"coef": coef}
    again = MapmriFit(rows, np.ones(len(raw), bool), fit.options, fit.gtab)
    again.set_hermite(coef)
    return again


def _refitted(model: MapmriModel, fit: MapmriFit, v: int, y: Array, w: Array, hold: bool) -> MapmriFit:
    """Fit replicates (n, samples) of one voxel by the model itself, its mu, R and weight held or not."""
    none, row = (np.zeros((0, 3)), np.zeros((0, 3, 3))), slice(v, v + 1)
    scale = (fit.mu_tensor[row].copy(), fit.R[row].copy()) if hold else none
    weight = fit.laplacian_weight[row].copy() if hold else None
    field = none[1] if fit.field is None else fit.field[row].copy()
    out = model.fit_rows(y, np.ascontiguousarray(w[None]), *scale, field, 1, weight)
    return MapmriFit(fit_rows(out), np.ones(len(y), bool), fit.options, fit.gtab)


# ---- exact gradients -------------------------------------------------------------------------------------------------


@lru_cache
def _section_matrix(order: int, which: str) -> Array:
    """Sums that NG_par or NG_perp square, (groups, n_coef), the Gaussian's first."""
    t = scalars.tables(order)
    ptr, src, weight = (getattr(t, f"{which}_{part}") for part in ("ptr", "src", "weight"))
    out = np.zeros((len(ptr) - 1, ordering.n_coef(order)))
    out[np.repeat(np.arange(len(ptr) - 1), np.diff(ptr.astype(np.int64))), src.astype(np.int64)] = weight
    return out


def _angle(matrix: Array, coef: Array, all_of: Array | None = None) -> tuple[float, Array]:
    """cos^2 = |matrix c|^2 / |all_of c|^2 (all_of: the identity) and its gradient by c."""
    part, whole = matrix @ coef, coef if all_of is None else all_of @ coef
    size = float(whole @ whole)
    cosine = float(part @ part) / size
    back = whole if all_of is None else all_of.T @ whole
    return cosine, 2.0 * (matrix.T @ part - cosine * back) / size


def _radial_matrix(order: int, mu: Array, target: Array, K: int) -> Array:
    """Rows g_k / sqrt(b_k) of `propagator.radial_cosine_rows` as functionals of the coefficients, (K + 1, n_coef)."""
    overlap = [np.empty((order + 1, 2 * K + 1)) for _ in range(3)]
    for axis in range(3):
        propagator._overlaps(float(mu[axis]), float(target[axis]), overlap[axis])
    B = [ordering.axis_origin_value(2 * m) for m in range(K + 1)]
    out, n, b = np.zeros((K + 1, ordering.n_coef(order))), ordering.index_table(order), 1.0
    for k in range(K + 1):
        for m1 in range(k + 1):
            for m2 in range(k - m1 + 1):
                m = (m1, m2, k - m1 - m2)
                term = np.prod([B[m[a]] * overlap[a][n[:, a], 2 * m[a]] for a in range(3)], axis=0)
                out[k] += term / math.sqrt(b)
        b *= (k + 1.5) / (k + 1.0)
    return out


def index_gradient(name: str, coef: Array, mu: Array, mu_tensor: Array, isotropic: bool) -> tuple[float, Array]:
    """
    One index of one voxel and its gradient by the unnormalised coefficients, at E(0) = 1.

    Parameters
    ----------
    name : of `INDICES`. coef : (n_coef,) Hermite, B'coef = 1. mu, mu_tensor : (3,) mm. isotropic : the fit's basis.
    """
    order = next(n for n in range(0, ordering.MAX_ORDER + 1, 2) if ordering.n_coef(n) == len(coef))
    t, B = scalars.tables(order), ordering.origin_values(ordering.index_table(order))
    mu = np.array(mu, dtype=np.float64)
    u0 = isotropic_scale(np.array(mu_tensor))
    if name == "pa_dti":
        cosine = float(propagator.gaussian_cosine(np.asarray(mu_tensor), np.array(u0)))
        return float(propagator.propagator_anisotropy(np.array(cosine))), np.zeros_like(coef)
    if name == "pa":
        cosine, slope = _angle(_radial_matrix(order, mu, np.full(3, u0), 5), coef)
        sine2 = max(1.0 - cosine, 1e-300)
        s = math.pow(sine2, EPSILON / 2)
        base = 1.0 - 3.0 * s + 3.0 * s * s
        by_s = (3.0 * s * s * base - s**3 * (6.0 * s - 3.0)) / base**2
        return s**3 / base, by_s * (-EPSILON / 2) * s / sine2 * slope
    if name in ("ng", "ng_par", "ng_perp"):
        if name == "ng":
            first = _radial_matrix(order, mu, mu_tensor, 0) if isotropic else np.eye(1, len(coef))
            cosine, slope = _angle(first, coef)
        else:
            sections = _section_matrix(order, "par" if name == "ng_par" else "perp")
            cosine, slope = _angle(sections[:1], coef, sections)
        value = math.sqrt(max(1.0 - cosine, 0.0))
        return value, -slope / (2.0 * value) if value > 0 else np.full_like(coef, np.nan)
    value = float(getattr(scalars, {"lapnorm": "laplacian_norm"}.get(name, name))(np.array(coef), mu, t))
    if name == "lapnorm":
        L = np.empty((len(coef), len(coef)))
        laplacian.matrix(mu, ordering.index_table(order), L)
        return value, 2.0 * (L @ coef - value * B)
    nine = np.empty((len(coef), 9))  # a linear functional is known by its values on unit vectors
    batch.indices(np.eye(len(coef)), np.tile(mu, (len(coef), 1)), t, nine, 0, len(coef))
    row = nine[:, INDICES[name].column]
    if name == "qiv":  # 1 / QIV is the linear one; unit vectors without a part in it give NaN
        return value, -(value**2) * (np.nan_to_num(1.0 / row) - B / value)
    return value, row - value * B
