"""Sizes, index tables and positions of both bases, and the exact map between them: the only place
that knows an order.

Public coefficients (n,) follow DIPY's order: anisotropic n1 n2 n3 by N = n1 + n2 + n3 = 0, 2, ..,
isotropic j l m by N = l + 2j - 2. Inside the block kernels functions are grouped by parity class
(`block_index_table`), which makes the Laplacian matrix block diagonal. At mu = (u0, u0, u0) both
bases span one space: a_aniso = T a_iso, T block diagonal in N, the same for every u0.
"""

from functools import lru_cache
from math import comb, factorial, gamma, pi, sqrt

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Array = NDArray[np.float64]
MAX_ORDER = 10


def n_coef(order: int) -> int:
    """Coefficients of either basis at an even order [Ozarslan 2013, Eq. 29]: 1, 7, 22, 50 .."""
    return (order + 2) * (order + 4) * (2 * order + 3) // 24


def frozen(array: NDArray) -> NDArray:
    """The same array, read-only: tables are cached and shared."""
    array.setflags(write=False)
    return array


@lru_cache
def index_table(order: int) -> IntArray:
    """Indices of the anisotropic basis, (n_coef, 3), in DIPY's order.

    ``[(N-i-j, j, i) for N in range(0, order+1, 2) for i in range(N+1) for j in range(N+1-i)]``
    """
    rows = [
        (n - i - j, j, i)
        for n in range(0, order + 1, 2)
        for i in range(n + 1)
        for j in range(n + 1 - i)
    ]
    return frozen(np.array(rows, np.int64))


@lru_cache
def iso_index_table(order: int) -> IntArray:
    """Indices (j, l, m) of the isotropic basis, (n_coef, 3), in DIPY's order.

    ``[(j, l, m) for N in range(0, order+1, 2) for j in range(1, N//2+2) for l in (N+2-2*j,) for m
    in range(-l, l+1)]``
    """
    rows = []
    for n in range(0, order + 1, 2):
        for j in range(1, n // 2 + 2):
            degree = n + 2 - 2 * j
            rows += [(j, degree, m) for m in range(-degree, degree + 1)]
    return frozen(np.array(rows, np.int64))


@lru_cache
def monomials(degree: int) -> IntArray:
    """Exponents (n, 3) of the monomials of even degree up to `degree`: `index_table`."""
    return index_table(degree)


def positions(table: IntArray) -> dict[tuple[int, int, int], int]:
    """Position of each row of an index table."""
    return {(int(a), int(b), int(c)): i for i, (a, b, c) in enumerate(table)}


@lru_cache
def class_permutation(order: int) -> IntArray:
    """Positions in `index_table` grouped by the parities of (n1, n2, n3), in order."""
    table = index_table(order)
    return frozen(np.argsort((table % 2) @ np.array([4, 2, 1]), kind="stable"))


@lru_cache
def block_index_table(order: int) -> IntArray:
    """Indices in the block kernels' own order: `index_table` grouped by parity class."""
    return frozen(np.ascontiguousarray(index_table(order)[class_permutation(order)]))


@lru_cache
def class_bounds(order: int) -> IntArray:
    """Bounds (5,) of the parity classes: rows bounds[k] to bounds[k+1] of `block_index_table`."""
    key = (block_index_table(order) % 2) @ np.array([4, 2, 1])
    return frozen(np.searchsorted(key, [0, 3, 5, 6, 7]).astype(np.int64))  # 000, 011, 101, 110


def origin_values(table: IntArray) -> Array:
    """B_n: E(0) of functions of an index table [Ozarslan 2013, Eq. 27]; 0 where one is odd."""
    return np.array([np.prod([axis_origin_value(int(k)) for k in row]) for row in table])


def axis_origin_value(n: int) -> float:
    """Value at 0 of the one-dimensional function phi_n: sqrt(n!)/n!! for even n, else 0."""
    return 0.0 if n % 2 else sqrt(factorial(n)) / float(np.prod(np.arange(n, 0, -2), initial=1.0))


def hermite_coefficients(n: int) -> Array:
    """Monomial coefficients of H_n(x) / sqrt(2^n n!), ascending, (n+1,)."""
    unit = np.zeros(n + 1)
    unit[n] = 1.0
    out: Array = np.polynomial.hermite.herm2poly(unit) / sqrt(2.0**n * factorial(n))
    return np.pad(out, (0, n + 1 - len(out)))


@lru_cache
def hermite_to_monomial(order: int) -> Array:
    """Matrix (n_coef, n_coef) from Hermite to monomial coefficients of p(x) = sum a_n prod
    H_ni(x_i)/sqrt(2^N n1!n2!n3!).

    Rows follow `monomials(order)`, columns `index_table(order)`.
    """
    table, where = index_table(order), positions(monomials(order))
    out = np.zeros((len(table), len(table)))
    one = [hermite_coefficients(k) for k in range(order + 1)]
    for col, (n1, n2, n3) in enumerate(table):
        for a in range(n1 % 2, n1 + 1, 2):
            for b in range(n2 % 2, n2 + 1, 2):
                for c in range(n3 % 2, n3 + 1, 2):
                    out[where[a, b, c], col] += one[n1][a] * one[n2][b] * one[n3][c]
    return frozen(out)


@lru_cache
def hermite_origin(order: int) -> Array:
    """`origin_values` of `index_table`."""
    return frozen(origin_values(index_table(order)))


def iso_origin_values(order: int) -> Array:
    """E(0) of the isotropic basis: Gamma(j+1/2)/(Gamma(j) Gamma(3/2)) for l = 0, else 0."""
    return np.array(
        [
            gamma(j + 0.5) / (gamma(j) * gamma(1.5)) if el == 0 else 0.0
            for j, el, _ in iso_index_table(order)
        ]
    )


def iso_norms(order: int) -> Array:
    """Diagonal of T'T: squared norms of the isotropic functions over the anisotropic ones'."""
    return np.array(
        [
            2 / sqrt(pi) * gamma(j + el + 0.5) / (2.0**el * gamma(j))
            for j, el, _ in iso_index_table(order)
        ]
    )


def solid_harmonic(el: int, m: int) -> dict[tuple[int, int, int], float]:
    """Monomial coefficients of |x|^l Y_lm(x) with DIPY's legacy descoteaux07 harmonics.

    m < 0: sqrt(2) K P_l^|m| cos(|m| phi); m > 0: sqrt(2) K P_l^m sin(m phi); P with the
    Condon-Shortley phase.
    """
    mm = abs(m)
    norm = sqrt((2 * el + 1) * factorial(el - mm) / (4 * pi * factorial(el + mm))) * (
        sqrt(2) if m else 1.0
    )
    # d^mm/dz^mm P_l(z) as a polynomial in z, made homogeneous with r^2 = x^2 + y^2 + z^2
    legendre = np.polynomial.legendre.leg2poly([0] * el + [1])
    derivative = np.polynomial.polynomial.polyder(legendre, mm) if mm else legendre
    # (x + i y)^mm = sum C(mm, k) x^(mm-k) (i y)^k: real part even k, imaginary part odd k
    planar = {
        (mm - k, k): comb(mm, k) * (-1.0) ** (k // 2)
        for k in range(mm + 1)
        if (k % 2 == 1) == (m > 0)
    }
    out: dict[tuple[int, int, int], float] = {}
    for power, coefficient in enumerate(derivative):
        if coefficient == 0.0:
            continue
        half = (el - mm - power) // 2  # (r^2)^half restores the degree
        for a in range(half + 1):
            for b in range(half + 1 - a):
                c = half - a - b
                radial = factorial(half) / (factorial(a) * factorial(b) * factorial(c))
                for (px, py), value in planar.items():
                    key = (px + 2 * a, py + 2 * b, power + 2 * c)
                    out[key] = (
                        out.get(key, 0.0) + (-1.0) ** mm * norm * coefficient * radial * value
                    )
    return out


@lru_cache
def iso_to_aniso(order: int) -> Array:
    """Exact map T (n_coef, n_coef): anisotropic = T @ isotropic coefficients, at equal scales in
    one frame.

    Both families are exp(-x^2/2) times polynomials, and T mixes functions of one degree alone, so
    that it is the ratio of their leading monomials (x in units of mu).
    """
    table, where = iso_index_table(order), positions(monomials(order))
    out = np.zeros((len(table), len(table)))
    for col, (j, el, m) in enumerate(table):
        # Psi_jlm ~ (-1)^(j-1) rho^(l/2) L_{j-1}^{l+1/2}(2 rho) Y_lm, rho = x^2/2; leading term
        # |x|^(l+2(j-1)) Y_lm
        k = int(j) - 1
        factor = 2.0 ** (1 - el / 2) * sqrt(pi) / factorial(k)
        for a in range(k + 1):
            for b in range(k + 1 - a):
                c = k - a - b
                radial = factorial(k) / (factorial(a) * factorial(b) * factorial(c))
                for (px, py, pz), value in solid_harmonic(int(el), int(m)).items():
                    out[where[px + 2 * a, py + 2 * b, pz + 2 * c], col] += factor * radial * value
    # of H_n / sqrt(2^n n!)
    leading = 2.0 ** (index_table(order).sum(1) / 2) / factorial_roots(order)
    return frozen(out / leading[:, None])


@lru_cache
def aniso_to_iso(order: int) -> Array:
    """Inverse of `iso_to_aniso`, (T'T)^-1 T'."""
    return frozen(np.ascontiguousarray(iso_to_aniso(order).T / iso_norms(order)[:, None]))


@lru_cache
def factorial_roots(order: int) -> Array:
    """sqrt(n1! n2! n3!) of every function, (n_coef,), in DIPY's order."""
    f = np.array([sqrt(factorial(k)) for k in range(order + 1)])
    return frozen(f[index_table(order)].prod(1))
