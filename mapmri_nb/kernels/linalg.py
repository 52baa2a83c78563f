"""Linear algebra of blocks of voxels, arrays [row][V]: exp and log, products, Cholesky, sparse
maps.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import CONTRACT, kernel, stage
from .lanes import WIDTH, every, fraction, octave, pick, power_of_two, rows, sqrt

Array = NDArray[np.float64]


@kernel(fastmath=CONTRACT)
def exp(x: float) -> float:
    """exp to 2e-16 of lanes or a float, without branches; clamps |x| at 700."""
    x = pick(x, 700.0, 700.0, pick(-700.0, x, -700.0, x))
    shifted = (
        x * 1.4426950408889634 + 6755399441055744.0
    )  # 1.5 * 2^52: the integer part lands in the low bits
    k = shifted - 6755399441055744.0
    r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10
    p = r * (1.0 / 479001600.0) + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * power_of_two(shifted)


@kernel(fastmath=CONTRACT)
def log(x: float) -> float:
    """Natural log to 2e-16 of lanes or a float, positive and normal, without branches."""
    m = fraction(x)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = z * (1.0 / 21.0) + 1.0 / 19.0
    p = p * z + 1.0 / 17.0
    p = p * z + 1.0 / 15.0
    p = p * z + 1.0 / 13.0
    p = p * z + 1.0 / 11.0
    p = p * z + 1.0 / 9.0
    p = p * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    return octave(x) * 0.6931471805599453 + 2.0 * (s + s * z * p)


@kernel(fastmath=CONTRACT)
def block_product(P: Array, X: Array, out: Array) -> None:
    """out = P @ X with V lanes, four rows at a time: some 90 % of the core's rate.

    P has a multiple of four rows (`pad4`), `out` at least as many, X at least P.shape[1].
    """
    for r in range(0, P.shape[0], 4):
        for l in range(0, X.shape[1], WIDTH):
            x, y = rows(X, l), rows(out, l)
            a = b = every(0.0)
            c = d = every(0.0)
            for k in range(P.shape[1]):
                u = x[k]
                a += P[r, k] * u
                b += P[r + 1, k] * u
                c += P[r + 2, k] * u
                d += P[r + 3, k] * u
            y[r], y[r + 1] = a, b
            y[r + 2], y[r + 3] = c, d


def pad4(a: Array) -> Array:
    """With rows of zeros up to a multiple of four, for `block_product`."""
    return np.ascontiguousarray(np.pad(a, [(0, -len(a) % 4), (0, 0)]))


@kernel(fastmath=CONTRACT)
def block_cholesky(A: Array, n: int, pivot: Array) -> None:
    """Cholesky of V packed matrices, rows A[i(i+1)/2+j]; the diagonal becomes 1/L_ii.

    An extra row n below the matrix holds a right-hand side, whose forward solution is then free;
    one spare entry follows. `pivot` (1, V) receives the smallest pivot relative to its own diagonal
    entry; not above n eps means not positive definite, and the factor must not be used.
    """
    for l in range(0, A.shape[1], WIDTH):
        a, smallest = rows(A, l), every(1.0)
        for i in range(0, n + 1, 2):  # tiles of 2 x 2 entries: half the loads
            p, q = i * (i + 1) // 2, (i + 1) * (i + 2) // 2
            if i == n:  # the right-hand side is alone
                q = p
            for j in range(0, i, 2):
                r, s = j * (j + 1) // 2, (j + 1) * (j + 2) // 2
                w, x = a[p + j], a[p + j + 1]
                y, z = a[q + j], a[q + j + 1]
                for k in range(j):
                    w -= a[p + k] * a[r + k]
                    x -= a[p + k] * a[s + k]
                    y -= a[q + k] * a[r + k]
                    z -= a[q + k] * a[s + k]
                w *= a[r + j]
                y *= a[r + j]
                a[p + j], a[p + j + 1] = w, (x - w * a[s + j]) * a[s + j + 1]
                a[q + j], a[q + j + 1] = y, (z - y * a[s + j]) * a[s + j + 1]
            if i < n:
                x, y = a[p + i], a[q + i]
                z = a[q + i + 1]
                first, second = x, z
                for k in range(i):
                    x -= a[p + k] * a[p + k]
                    y -= a[p + k] * a[q + k]
                    z -= a[q + k] * a[q + k]
                smallest = pick(x / first, smallest, smallest, x / first)
                x = 1.0 / sqrt(x)
                y *= x
                a[p + i], a[q + i] = x, y
                if i + 1 < n:
                    z -= y * y
                    smallest = pick(z / second, smallest, smallest, z / second)
                    a[q + i + 1] = 1.0 / sqrt(z)
        rows(pivot, l)[0] = smallest


@kernel(fastmath=CONTRACT)
def block_forward(A: Array, n: int, b: Array) -> None:
    """Solve L x = b (n, V) into row n of a `block_cholesky` factor."""
    for l in range(0, A.shape[1], WIDTH):
        a, right = rows(A, l), rows(b, l)
        first = n * (n + 1) // 2
        for i in range(n):
            r, total = i * (i + 1) // 2, right[i]
            for j in range(i):
                total -= a[r + j] * a[first + j]
            a[first + i] = total * a[r + i]


@kernel(fastmath=CONTRACT)
def block_backsolve(A: Array, n: int, out: Array) -> None:
    """Solve L' x = (row n of a `block_cholesky` factor) into the first n rows of out (.., V)."""
    for l in range(0, A.shape[1], WIDTH):
        a, x = rows(A, l), rows(out, l)
        for i in range(n):
            x[i] = a[n * (n + 1) // 2 + i]
        for i in range(n - 1, -1, -1):
            r = i * (i + 1) // 2
            xi = x[i] * a[r + i]
            x[i] = xi
            for j in range(i):
                x[j] -= a[r + j] * xi


@kernel(fastmath=CONTRACT)
def block_invert(A: Array, n: int) -> None:
    """The inverse of a `block_cholesky` factor, packed likewise, in its place."""
    for l in range(0, A.shape[1], WIDTH):
        a = rows(A, l)
        for i in range(n):
            r = i * (i + 1) // 2
            diagonal = a[r + i]
            for j in range(i):
                x = every(0.0)
                for k in range(j, i):
                    x -= a[r + k] * a[k * (k + 1) // 2 + j]
                a[r + j] = x * diagonal


@kernel(fastmath=CONTRACT)
def signed_sums(A: Array, bits: NDArray[np.uint8], table: Array, out: Array) -> None:
    """Sums of all rows of A (m, V) with signs, into out (B, V): bit j of bits[r, g] (B, m / 16
    rounded up, times 2) is 1 where row 8 g + j counts positive in sum r. V is a multiple of WIDTH.

    The 16 sums of four rows are made once for all r, in table (64, V) [the method of the Four
    Russians]: a quarter of the operations of a product with a matrix of signs.
    """
    for l in range(0, A.shape[1], WIDTH):
        a, t = rows(A, l), rows(table, l)
        sums = rows(out, l)
        for r in range(bits.shape[0]):
            sums[r] = every(0.0)
        for g in range(0, bits.shape[1], 2):
            for h in range(4):
                t[16 * h] = every(0.0)
                for j in range(4):
                    row, k = every(0.0), 8 * g + 4 * h + j
                    if k < A.shape[0]:
                        row = a[k]
                    for b in range(16 * h, 16 * h + (1 << j)):
                        t[b + (1 << j)] = t[b] + row
                        t[b] -= row
            for r in range(bits.shape[0]):
                x, y = int(bits[r, g]), int(bits[r, g + 1])
                sums[r] += (t[x & 15] + t[16 + (x >> 4)]) + (t[32 + (y & 15)] + t[48 + (y >> 4)])


@kernel(fastmath=CONTRACT)
def block_set(out: Array, value: float) -> None:
    """Fill rows with a value (a whole-row assignment would compile string formatting, two seconds
    of it).
    """
    for l in range(0, out.shape[1], WIDTH):
        a = rows(out, l)
        for r in range(out.shape[0]):
            a[r] = every(value)


@kernel(fastmath=CONTRACT)
def block_copy(source: Array, out: Array, count: int) -> None:
    """Copy the first `count` rows."""
    for l in range(0, out.shape[1], WIDTH):
        a, b = rows(source, l), rows(out, l)
        for r in range(count):
            b[r] = a[r]


@stage()
def block_gather(values: Array, first: int, stop: int, out: Array) -> None:
    """Voxels from `first` on, rows of values (V, k), into the lanes of out (k, ..); the last before
    `stop` fills them up.
    """
    for l in range(out.shape[1]):
        v = min(first + l, stop - 1)
        for i in range(values.shape[1]):
            out[i, l] = values[v, i]


class SparseMap(NamedTuple):
    """Sparse linear map between rows, out[r] = sum coef x[src], terms ptr[r] to ptr[r+1]; indices
    are unsigned.
    """

    ptr: NDArray[np.uint64]
    src: NDArray[np.uint64]
    coef: Array


def sparse_map(
    dst: NDArray[np.int64], src: NDArray[np.int64], coef: Array, n_rows: int
) -> SparseMap:
    """Build a SparseMap from triplets; every row 0 .. n_rows-1 is written, empty ones with zero.

    Tables are uint64: signed indices would cost a wrap-around test at every access.
    """
    dst, src = dst[coef != 0.0], src[coef != 0.0]
    coef = coef[coef != 0.0]
    order = np.argsort(dst, kind="stable")
    ptr = np.append(0, np.cumsum(np.bincount(dst, minlength=n_rows)))
    return SparseMap(
        ptr.astype(np.uint64),
        src[order].astype(np.uint64),
        np.ascontiguousarray(coef[order], np.float64),
    )


@kernel(fastmath=CONTRACT)
def block_map(m: SparseMap, x: Array, out: Array) -> None:
    """Apply a SparseMap to V lanes."""
    for l in range(0, x.shape[1], WIDTH):
        a, b = rows(x, l), rows(out, l)
        for r in range(m.ptr.size - 1):
            total = every(0.0)
            for t in range(m.ptr[r], m.ptr[r + 1]):
                total += m.coef[t] * a[m.src[t]]
            b[r] = total
