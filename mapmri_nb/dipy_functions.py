"""The module-level functions of DIPY's MAP-MRI under their names, thin over the kernels; import
them from `mapmri_nb.dipy`.

Scales mu are in mm, q in 1/mm, r in mm; a table of functions has one row a function, a matrix one
row a point. The equations are those of the kernels called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .kernels import hermite, laplacian, ordering, tensor
from .use import directions

__all__ = [
    "b_mat", "b_mat_isotropic", "binomialfloat", "create_rspace", "delta", "gcv_cost_function",
    "generalized_crossvalidation", "generalized_crossvalidation_array", "isotropic_scale_factor",
    "map_laplace_s", "map_laplace_t", "map_laplace_u", "mapmri_STU_reg_matrices",
    "mapmri_index_matrix", "mapmri_isotropic_K_mu_dependent", "mapmri_isotropic_K_mu_independent",
    "mapmri_isotropic_M_mu_dependent", "mapmri_isotropic_M_mu_independent",
    "mapmri_isotropic_index_matrix", "mapmri_isotropic_laplacian_reg_matrix",
    "mapmri_isotropic_laplacian_reg_matrix_from_index_matrix", "mapmri_isotropic_odf_matrix",
    "mapmri_isotropic_odf_sh_matrix", "mapmri_isotropic_phi_matrix", "mapmri_isotropic_psi_matrix",
    "mapmri_isotropic_radial_pdf_basis", "mapmri_isotropic_radial_signal_basis",
    "mapmri_laplacian_reg_matrix", "mapmri_odf_matrix", "mapmri_phi_1d", "mapmri_phi_matrix",
    "mapmri_psi_1d", "mapmri_psi_matrix",
]  # fmt: skip

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
IntArray = NDArray[np.int64]

BASIS = "descoteaux07_legacy"  # of DIPY's harmonics
FEWEST_STEPS = 61  # of the search for the GCV weight, evenly in its logarithm
BOUNDS = (1e-5, 10.0)  # DIPY's own
# Integrals of phi_n'' phi_m'', phi_n phi_m'' and phi_n phi_m at mu = 1, up to (-1)^n [Fick 2016,
# Eq. 11-13]
LAPLACIAN_PARTS: dict[str, tuple[Callable[[int, int], float], float]] = {
    "S_mat": (laplacian.fourth_moment, 8 * math.pi**3.5),
    "T_mat": (laplacian.second_moment, -2 * math.pi**1.5),
    "U_mat": (lambda n, m: float(n == m), 0.5 / math.sqrt(math.pi)),
}


def laplacian_part(name: str, order: int) -> Array:
    """S_mat, T_mat or U_mat of all orders up to `order`, (order + 1, order + 1)."""
    part, factor = LAPLACIAN_PARTS[name]
    sizes = range(order + 1)
    return np.array([[(-1) ** n * factor * part(n, m) for m in sizes] for n in sizes])


def _entry(name: str, doc: str) -> Callable[[int, int], float]:
    def entry(n: int, m: int) -> float:
        return float(laplacian_part(name, max(n, m))[n, m])

    entry.__doc__ = doc
    return entry


map_laplace_s = _entry("S_mat", "Integral of phi_n'' phi_m'' at mu = 1 [Fick 2016, Eq. 11].")
map_laplace_t = _entry("T_mat", "Integral of phi_n phi_m'' at mu = 1 [Fick 2016, Eq. 12].")
map_laplace_u = _entry("U_mat", "Integral of phi_n phi_m at mu = 1 [Fick 2016, Eq. 13].")


def delta(n: int, m: int) -> int:
    """1 where n = m, else 0."""
    return int(n == m)


def binomialfloat(n: float, k: float) -> float:
    """Binomial coefficient of real numbers, by the Gamma function."""
    return math.gamma(n + 1) / (math.gamma(k + 1) * math.gamma(n - k + 1))


def isotropic_scale_factor(mu_squared: ArrayLike) -> float:
    """The one scale u0 (mm) of the isotropic basis from the tensor's squared scales (3,)."""
    out = np.empty(1)
    tensor.isotropic_scales(np.sqrt(np.asarray(mu_squared, np.float64)).reshape(1, 3), out)
    return float(out[0])


def mapmri_index_matrix(radial_order: int) -> IntArray:
    """Orders n1 n2 n3 of the anisotropic functions, (n, 3)."""
    return ordering.index_table(radial_order).copy()


def mapmri_isotropic_index_matrix(radial_order: int) -> IntArray:
    """Numbers j l m of the isotropic functions, (n, 3)."""
    return ordering.iso_index_table(radial_order).copy()


def b_mat(index_matrix: ArrayLike) -> Array:
    """Values at q = 0 of anisotropic functions [Ozarslan 2013, Eq. 37], (n,)."""
    return ordering.origin_values(_table(index_matrix)).copy()


def b_mat_isotropic(index_matrix: ArrayLike) -> Array:
    """Values at q = 0 of isotropic functions, (n,)."""
    index = _table(index_matrix)
    order = _isotropic_order(index)
    values = ordering.iso_origin_values(order)
    places = {tuple(row): k for k, row in enumerate(ordering.iso_index_table(order).tolist())}
    return values[[places[tuple(row)] for row in index.tolist()]]


def mapmri_phi_1d(n: int, q: ArrayLike, mu: float) -> Complex:
    """One-dimensional signal function phi_n(q) = i^-n pi^1/4 h_n(2 pi mu q), complex."""
    return np.asarray((-1j) ** n * math.pi**0.25 * _hermite(n, 2 * math.pi * mu, q))


def mapmri_psi_1d(n: int, x: ArrayLike, mu: float) -> Array:
    """One-dimensional propagator function psi_n(x) = pi^1/4 h_n(x / mu) / (sqrt(2 pi) mu)."""
    factor = math.pi**0.25 / (math.sqrt(2 * math.pi) * mu)
    return np.asarray(factor * _hermite(n, 1 / mu, x))


def mapmri_phi_matrix(radial_order: int, mu: ArrayLike, q_gradients: ArrayLike) -> Array:
    """Signal basis (K, n) at q (K, 3) in the tensor's frame; see `hermite.signal_rows`."""
    return _matrix(hermite.signal_rows, radial_order, mu, q_gradients)


def mapmri_psi_matrix(radial_order: int, mu: ArrayLike, rgrad: ArrayLike) -> Array:
    """Propagator basis (K, n) at r (K, 3) in the tensor's frame; see `hermite.propagator_rows`."""
    return _matrix(hermite.propagator_rows, radial_order, mu, rgrad)


def mapmri_odf_matrix(radial_order: int, mu: ArrayLike, s: float, vertices: ArrayLike) -> Array:
    """ODFs (K, n) of the single functions, radial moment s, at directions (K, 3)."""
    return _odf(radial_order, mu, s)(vertices).T


def mapmri_isotropic_phi_matrix(radial_order: int, mu: float, q: ArrayLike) -> Array:
    """Isotropic signal basis (K, n) at q (K, 3)."""
    return mapmri_phi_matrix(radial_order, _three(mu), q) @ ordering.iso_to_aniso(radial_order)


def mapmri_isotropic_psi_matrix(radial_order: int, mu: float, rgrad: ArrayLike) -> Array:
    """Isotropic propagator basis (K, n) at r (K, 3)."""
    return mapmri_psi_matrix(radial_order, _three(mu), rgrad) @ ordering.iso_to_aniso(radial_order)


def mapmri_isotropic_radial_signal_basis(j: int, l_value: int, mu: float, qval: ArrayLike) -> Array:
    """Radial part of an isotropic signal function at |q| [Fick 2016, Eq. C3]."""
    x = 2 * (math.pi * mu * np.asarray(qval, np.float64)) ** 2
    const = (-1) ** (l_value // 2) * math.sqrt(4 * math.pi)
    return np.asarray(const * x ** (l_value / 2) * _laguerre(j, l_value, x))


def mapmri_isotropic_radial_pdf_basis(j: int, l_value: int, mu: float, r: ArrayLike) -> Array:
    """Radial part of an isotropic propagator function at |r| [Fick 2016, Eq. C5]."""
    x = (np.asarray(r, np.float64) / mu) ** 2 / 2
    const = (-1) ** (j - 1) / (math.sqrt(2) * math.pi * mu**3)
    return np.asarray(const * x ** (l_value / 2) * _laguerre(j, l_value, x))


def mapmri_isotropic_M_mu_independent(radial_order: int, q: ArrayLike) -> Array:
    """What of the isotropic signal basis (K, n) does not depend on mu."""

    def radial(j: int, l: int, length: Array) -> Array:
        const = (-1) ** (l // 2) * math.sqrt(4 * math.pi)
        return np.asarray(const * (2 * math.pi**2 * length**2) ** (l / 2))

    return _angular(radial_order, q, radial)


def mapmri_isotropic_M_mu_dependent(radial_order: int, mu: float, qval: ArrayLike) -> Array:
    """What of it depends on mu, at |q| (K,)."""
    x = 2 * (math.pi * mu * np.asarray(qval, np.float64)) ** 2
    return _radial(radial_order, lambda j, l: mu**l * _laguerre(j, l, x))


def mapmri_isotropic_K_mu_independent(radial_order: int, rgrad: ArrayLike) -> Array:
    """What of the isotropic propagator basis (K, n) does not depend on mu."""

    def radial(j: int, l: int, length: Array) -> Array:
        const = (-1) ** (j - 1) / (math.sqrt(2) * math.pi)
        return np.asarray(const * (length**2 / 2) ** (l / 2))

    return _angular(radial_order, rgrad, radial)


def mapmri_isotropic_K_mu_dependent(radial_order: int, mu: float, rgrad: ArrayLike) -> Array:
    """What of it depends on mu, at r (K, 3)."""
    x = (np.linalg.norm(np.asarray(rgrad, np.float64), axis=1) / mu) ** 2 / 2
    return _radial(radial_order, lambda j, l: mu ** -(l + 3.0) * _laguerre(j, l, x))


def mapmri_isotropic_odf_matrix(
    radial_order: int, mu: float, s: float, vertices: ArrayLike
) -> Array:
    """ODFs (K, n) of the single isotropic functions at directions (K, 3)."""
    aniso = mapmri_odf_matrix(radial_order, _three(mu), s, vertices)
    return aniso @ ordering.iso_to_aniso(radial_order)


def mapmri_isotropic_odf_sh_matrix(radial_order: int, mu: float, s: float) -> Array:
    """ODFs (n_sh, n) of the single isotropic functions in legacy descoteaux07 harmonics."""
    sh = directions.odf_sh(_odf(radial_order, _three(mu), s), radial_order, BASIS)
    return np.asarray(sh.T @ ordering.iso_to_aniso(radial_order))


def mapmri_STU_reg_matrices(radial_order: int) -> tuple[Array, Array, Array]:
    """S_mat, T_mat, U_mat, (order + 1, order + 1) each."""
    S, T, U = (laplacian_part(name, radial_order) for name in LAPLACIAN_PARTS)
    return S, T, U


def mapmri_laplacian_reg_matrix(
    ind_mat: ArrayLike, mu: ArrayLike, S_mat: Any = None, T_mat: Any = None, U_mat: Any = None
) -> Array:
    """Laplacian matrix (n, n) of anisotropic functions in mm; constants are the kernel's own."""
    index = _table(ind_mat)
    out = np.empty((len(index), len(index)))
    laplacian.matrix(np.array(mu, np.float64), index, out)
    return out


def mapmri_isotropic_laplacian_reg_matrix(radial_order: int, mu: float) -> Array:
    """The same of the isotropic basis."""
    T = ordering.iso_to_aniso(radial_order)
    index = ordering.index_table(radial_order)
    return np.asarray(T.T @ mapmri_laplacian_reg_matrix(index, _three(mu)) @ T)


def mapmri_isotropic_laplacian_reg_matrix_from_index_matrix(ind_mat: ArrayLike, mu: float) -> Array:
    """The same, the order taken from the table of functions."""
    return mapmri_isotropic_laplacian_reg_matrix(_isotropic_order(_table(ind_mat)), mu)


def create_rspace(gridsize: int, radius_max: float) -> Array:
    """Points (K, 3) with z >= 0 of a cubic grid, `gridsize` across the ball of `radius_max`, mm."""
    half = int(gridsize) // 2
    side = np.arange(-half, half + 1)
    points = np.stack(np.meshgrid(side, side, side[half:], indexing="ij"), -1).reshape(-1, 3)
    inside = points[(points**2).sum(1) <= half**2]
    return np.asarray(inside / half * radius_max)


def gcv_cost_function(weight: float, args: tuple[Any, ...]) -> float:
    """GCV of a weight, args = (data, M, M'M, K, L): |y - Sy| / (K - tr S)."""
    data, M, MMt, K, LR = args
    S = M @ np.linalg.solve(MMt + np.ravel(weight)[0] * LR, M.T)
    return float(np.linalg.norm(data - S @ data) / (K - np.trace(S)))


def generalized_crossvalidation_array(
    data: Array, M: Array, LR: Array, weights_array: ArrayLike | None = None
) -> float:
    """The weight of an array (default .05 to 1) with the least GCV: of all, not the first dip."""
    weights = np.linspace(0.05, 1, 20) if weights_array is None else np.ravel(weights_array)
    args = (data, M, M.T @ M, len(M), LR)
    return float(weights[np.argmin([gcv_cost_function(weight, args) for weight in weights])])


def generalized_crossvalidation(
    data: Array, M: Array, LR: Array, gcv_startpoint: float = 5e-2
) -> float:
    """The weight with the least GCV between 1e-5 and 10; the start does not matter."""
    from scipy.optimize import minimize_scalar

    args = (data, M, M.T @ M, len(M), LR)
    steps = np.linspace(math.log(BOUNDS[0]), math.log(BOUNDS[1]), FEWEST_STEPS)
    least = int(np.argmin([gcv_cost_function(math.exp(x), args) for x in steps]))
    around = steps[max(least - 1, 0)], steps[min(least + 1, len(steps) - 1)]
    found = minimize_scalar(
        lambda x: gcv_cost_function(math.exp(x), args), bounds=around, method="bounded"
    )
    return math.exp(found.x)


def _table(index_matrix: ArrayLike) -> IntArray:
    return np.atleast_2d(np.array(index_matrix, np.int64))


def _isotropic_order(index: IntArray) -> int:
    return int((2 * index[:, 0] + index[:, 1] - 2).max())


def _three(mu: float) -> Array:
    return np.full(3, float(mu))


def _matrix(rows: Any, order: int, mu: ArrayLike, points: ArrayLike) -> Array:
    index = ordering.index_table(order)
    at = np.array(np.atleast_2d(points), np.float64, order="C")
    out = np.empty((len(at), len(index)))
    rows(at, np.array(mu, np.float64), index, out)
    return out


def _hermite(n: int, scale: float, x: ArrayLike) -> Array:
    """h_n(scale x)."""
    points = np.asarray(x, np.float64)
    out, h = np.empty(points.size), np.empty(n + 1)
    for k, t in enumerate(points.ravel()):
        hermite.hermite_functions(scale * float(t), h)
        out[k] = h[n]
    return out.reshape(points.shape)


def _laguerre(j: int, l: int, x: Array) -> Array:
    """exp(-x) L_(j-1)^(l+1/2)(2x)."""
    from scipy.special import eval_genlaguerre

    return np.asarray(np.exp(-x) * eval_genlaguerre(j - 1, l + 0.5, 2 * x))


def _radial(order: int, function: Callable[[int, int], Array]) -> Array:
    index = ordering.iso_index_table(order)
    return np.stack([function(int(j), int(l)) for j, l, _ in index], axis=-1)


def _angular(order: int, points: ArrayLike, radial: Callable[[int, int, Array], Array]) -> Array:
    """Radial part times harmonic of each isotropic function at points (K, 3)."""
    at = np.array(np.atleast_2d(points), np.float64)
    length = np.linalg.norm(at, axis=1)
    unit = np.where(length[:, None] > 0, at / np.where(length, length, 1)[:, None], [0.0, 0, 1])
    Y = directions.sh_matrix(unit, order, BASIS)
    index = ordering.iso_index_table(order)
    columns = [(l * (l + 1)) // 2 + m for _, l, m in index]
    return _radial(order, lambda j, l: radial(j, l, length)) * Y[:, columns]


def _odf(order: int, mu: ArrayLike, s: float) -> directions.OdfField:
    """The ODF of each function of the anisotropic basis as a voxel of its own."""
    n = ordering.n_coef(order)
    scales = np.tile(np.asarray(mu, np.float64), (n, 1))
    return directions.OdfField(np.eye(n), scales, np.tile(np.eye(3), (n, 1, 1)), order, s)
