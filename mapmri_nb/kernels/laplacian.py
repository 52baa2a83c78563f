"""The Laplacian matrix L of the anisotropic basis: c'Lc = integral of (laplacian E)^2 dq, in mm.

    L_ab = 2 pi^(5/2) / (mu1 mu2 mu3) [sum_k mu_k^4 X4_k + 2 sum_(k<l) mu_k^2 mu_l^2 X2_k X2_l]

with X2, X4 the integrals of t^2 h_n h_m and t^4 h_n h_m along an axis; the orders along the axes
not named are equal [Fick 2016, Eq. 10]. L of V voxels is a sparse map of six numbers of mu (3, V).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ._jit import CONTRACT, kernel, plain, stage
from ._types import Array, IntArray, Unsigned
from .lanes import WIDTH, every, rows
from .ordering import block_index_table, frozen


class LaplacianTables(NamedTuple):
    """Lower triangle of L in block order: term t adds coefficient[t] * f[factor[t]] to entry
    (row[t], column[t]).

    Entry e has the terms pointer[e] to pointer[e+1] and place target[e] in the packed lower
    triangle.
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
    return (
        0.25 * math.sqrt((k + 1.0) * (k + 2.0) * (k + 3.0) * (k + 4.0)) if abs(n - m) == 4 else 0.0
    )


@kernel()
def matrix(mu: Array, index: IntArray, out: Array) -> None:
    """L of one voxel at mu (3,) mm, functions index (n, 3), into `out` (n, n), mm."""
    unit = 2.0 * math.pi**2.5 / (mu[0] * mu[1] * mu[2])
    for a in range(index.shape[0]):
        for b in range(a + 1):
            total = 0.0
            for k in range(3):
                i, j = (k + 1) % 3, (k + 2) % 3
                if index[a, i] == index[b, i] and index[a, j] == index[b, j]:
                    total += mu[k] ** 4 * fourth_moment(index[a, k], index[b, k])
                if index[a, k] == index[b, k]:
                    pair = second_moment(index[a, i], index[b, i]) * second_moment(
                        index[a, j], index[b, j]
                    )
                    total += 2.0 * mu[i] ** 2 * mu[j] ** 2 * pair
            out[a, b] = unit * total
            out[b, a] = out[a, b]


@kernel(fastmath=CONTRACT)
def factors(mu: Array, f: Array) -> None:
    """Scales mu (3, V) mm to f (6, V): mu_k^4, mu1^2 mu2^2, .. over mu1 mu2 mu3."""
    for l in range(0, mu.shape[1], WIDTH):
        m, out = rows(mu, l), rows(f, l)
        a, b = m[0], m[1]
        c = m[2]
        out[0], out[1] = a * a * a / (b * c), b * b * b / (a * c)
        out[2] = c * c * c / (a * b)
        out[3], out[4] = a * b / c, a * c / b
        out[5] = b * c / a


@lru_cache
def tables(order: int) -> LaplacianTables:
    """Sparse map from `factors` to L at an even order: 70, 224, 527 entries at orders 4, 6, 8."""
    index, sizes = block_index_table(order), range(order + 1)
    x2, x4 = (
        np.array([[f(n, m) for m in sizes] for n in sizes])
        for f in (plain(second_moment), plain(fourth_moment))
    )
    row, column = np.tril_indices(len(index))
    # (3, lower entries)
    x0, x2, x4 = (x[index[row], index[column]].T for x in (np.eye(order + 1), x2, x4))
    terms = [x4[k] * x0[k - 1] * x0[k - 2] for k in range(3)]
    terms += [2.0 * x2[i] * x2[j] * x0[k] for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0))]
    values = 2.0 * math.pi**2.5 * np.stack(terms, axis=1)
    entry, factor = np.nonzero(values)
    target, first = np.unique(entry, return_index=True)
    pointer = np.append(first, len(entry))
    r, c, k, t, p = (
        frozen(x.astype(np.uint64)) for x in (row[entry], column[entry], factor, target, pointer)
    )
    return LaplacianTables(r, c, k, frozen(values[entry, factor]), t, p)


@kernel(fastmath=CONTRACT)
def add(t: LaplacianTables, f: Array, weight: Array, G: Array) -> None:
    """G += weight L: packed triangles of V voxels, f (6, V) from `factors`, weight (1, V)."""
    for l in range(0, f.shape[1], WIDTH):
        a, w = rows(f, l), rows(weight, l)[0]
        g = rows(G, l)
        for e in range(t.target.size):
            total = every(0.0)
            for k in range(t.pointer[e], t.pointer[e + 1]):
                total += t.coefficient[k] * a[t.factor[k]]
            g[t.target[e]] += w * total


@stage(CONTRACT)
def add_product(
    t: LaplacianTables, f: Array, weight: Array, S0: Array, e: Array, rhs: Array
) -> None:
    """rhs (n, V) += weight S0 L e, as `add_first_column` does for e = e_0; e (n, V)."""
    for l in range(0, f.shape[1], WIDTH):
        a, scale = rows(f, l), rows(weight, l)[0] * rows(S0, l)[0]
        x, b = rows(e, l), rows(rhs, l)
        for k in range(t.target.size):
            total, i = every(0.0), t.row[t.pointer[k]]
            j = t.column[t.pointer[k]]
            for p in range(t.pointer[k], t.pointer[k + 1]):
                total += t.coefficient[p] * a[t.factor[p]]
            b[i] += scale * total * x[j]
            if i != j:
                b[j] += scale * total * x[i]


@stage(CONTRACT)
def add_first_column(t: LaplacianTables, f: Array, weight: Array, S0: Array, rhs: Array) -> None:
    """rhs (n, V) += weight S0 L e_0: the deviation from the Gaussian S0 e_0 adds it to M'y."""
    for l in range(0, f.shape[1], WIDTH):
        a, scale = rows(f, l), rows(weight, l)[0] * rows(S0, l)[0]
        b = rows(rhs, l)
        for e in range(t.target.size):
            if t.column[t.pointer[e]] == 0:
                total = every(0.0)
                for k in range(t.pointer[e], t.pointer[e + 1]):
                    total += t.coefficient[k] * a[t.factor[k]]
                b[t.row[t.pointer[e]]] += scale * total
