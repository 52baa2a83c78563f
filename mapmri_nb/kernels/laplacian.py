"""The Laplacian matrix L of the anisotropic basis: c'Lc = integral of (laplacian E)^2 dq, in mm."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import BLOCK_MATH, kernel
from .ordering import block_index_table, frozen

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
Unsigned = NDArray[np.uint64]


class LaplacianTables(NamedTuple):
    """
    Lower triangle of L as a sparse linear map of the six `factors`, functions in the block kernels' order.

    Term t adds coefficient[t] * f[factor[t]] to entry (row[t], column[t]). Terms are sorted by entry: entry e has the
    terms pointer[e] to pointer[e+1] and the place target[e] = row (row+1)/2 + column of the packed lower triangle.
    """

    row: Unsigned
    column: Unsigned
    factor: Unsigned
    coefficient: Array
    target: Unsigned
    pointer: Unsigned


@kernel()
def second_moment(n: int, m: int) -> float:
    """Integral of t^2 h_n h_m."""
    k = min(n, m)
    if n == m:
        return n + 0.5
    return 0.5 * math.sqrt((k + 1.0) * (k + 2.0)) if abs(n - m) == 2 else 0.0


@kernel()
def fourth_moment(n: int, m: int) -> float:
    """Integral of t^4 h_n h_m."""
    k = min(n, m)
    if n == m:
        return 0.25 * (6.0 * n * n + 6.0 * n + 3.0)
    if abs(n - m) == 2:
        return (k + 1.5) * math.sqrt((k + 1.0) * (k + 2.0))
    return 0.25 * math.sqrt((k + 1.0) * (k + 2.0) * (k + 3.0) * (k + 4.0)) if abs(n - m) == 4 else 0.0


@kernel()
def matrix(mu: Array, index: IntArray, out: Array) -> None:
    """
    Laplacian matrix of one voxel [Fick 2016, Eq. 10, in r space: 16 pi^4 times the integral of r^4 P^2].

    Parameters
    ----------
    mu : (3,) mm. index : (n, 3). out : (n, n), written, mm.

    Notes
    -----
    L_ab = 2 pi^(5/2) / (mu1 mu2 mu3) [sum_k mu_k^4 X4_k + 2 sum_(k<l) mu_k^2 mu_l^2 X2_k X2_l], where X4 and X2 are
    fourth and second moments of the Hermite functions and the indices of the axes not named must agree.
    """
    unit = 2.0 * math.pi**2.5 / (mu[0] * mu[1] * mu[2])
    for a in range(index.shape[0]):
        for b in range(a + 1):
            total = 0.0
            for k in range(3):
                i, j = (k + 1) % 3, (k + 2) % 3
                if index[a, i] == index[b, i] and index[a, j] == index[b, j]:
                    total += mu[k] ** 4 * fourth_moment(index[a, k], index[b, k])
                if index[a, k] == index[b, k]:
                    pair = second_moment(index[a, i], index[b, i]) * second_moment(index[a, j], index[b, j])
                    total += 2.0 * mu[i] ** 2 * mu[j] ** 2 * pair
            out[a, b] = unit * total
            out[b, a] = out[a, b]


@kernel(fastmath=BLOCK_MATH)
def factors(mu: Array, f: Array) -> None:
    """Scales of a block, mu (3, V) mm, to the factors f (6, V): mu_k^4, then mu1^2 mu2^2 .. mu2^2 mu3^2, over mu1 mu2 mu3."""
    for l in range(mu.shape[1]):
        a, b, c = mu[0, l], mu[1, l], mu[2, l]
        f[3, l] = a * b / c
        f[4, l] = a * c / b
        f[5, l] = b * c / a
        f[0, l] = a * a * a / (b * c)
        f[1, l] = b * b * b / (a * c)
        f[2, l] = c * c * c / (a * b)


@lru_cache
def tables(order: int) -> LaplacianTables:
    """Sparse map from `factors` to L at an even order: 70, 224, 527 terms at orders 4, 6, 8."""
    index, sizes = block_index_table(order), range(order + 1)
    x2 = np.array([[second_moment(n, m) for m in sizes] for n in sizes])
    x4 = np.array([[fourth_moment(n, m) for m in sizes] for n in sizes])
    row, column = np.tril_indices(len(index))
    same = [index[row, k] == index[column, k] for k in range(3)]
    second = [x2[index[row, k], index[column, k]] for k in range(3)]
    fourth = [x4[index[row, k], index[column, k]] for k in range(3)]
    terms = [fourth[k] * same[k - 1] * same[k - 2] for k in range(3)]
    terms += [2.0 * second[i] * second[j] * same[k] for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0))]
    values = 2.0 * math.pi**2.5 * np.stack(terms, axis=1)  # (lower entries in packed order, six factors)
    entry, factor = np.nonzero(values)
    target, first = np.unique(entry, return_index=True)
    integers = (row[entry], column[entry], factor, target, np.append(first, len(entry)))
    r, c, k, t, p = (frozen(x.astype(np.uint64)) for x in integers)
    return LaplacianTables(r, c, k, frozen(values[entry, factor]), t, p)


@kernel(fastmath=BLOCK_MATH)
def add(t: LaplacianTables, mu: Array, weight: Array, f: Array, G: Array) -> None:
    """G += weight L, packed lower triangles of V voxels in block order; f (6, V) is scratch, left as `factors`."""
    factors(mu, f)
    for e in range(t.target.size):
        target = G[t.target[e]]
        for k in range(t.pointer[e], t.pointer[e + 1]):
            a, c = f[t.factor[k]], t.coefficient[k]
            for l in range(weight.size):
                target[l] += c * a[l] * weight[l]
