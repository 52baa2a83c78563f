"""Linear algebra of blocks of voxels, arrays [row][V]: exp and log that vectorise, products, Cholesky, sparse maps."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import BLOCK_MATH, CONTRACT, kernel

Array = NDArray[np.float64]


@kernel(fastmath=CONTRACT)
def exp(x: float) -> float:
    """exp to 2e-16, branch-free so that the calling loop vectorises; clamps |x| at 700 (NaN gives a finite value)."""
    x = min(max(x, -700.0), 700.0)
    shifted = x * 1.4426950408889634 + 6755399441055744.0  # 1.5 * 2^52: the integer part lands in the low bits
    k = shifted - 6755399441055744.0
    r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10
    p = 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
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
    bits = np.float64(shifted).view(np.int64) + np.int64(1023)
    return p * np.int64(bits << np.int64(52)).view(np.float64)


@kernel(fastmath=CONTRACT)
def log(x: float) -> float:
    """Natural log to 2e-16 of a positive normal number, branch-free so that the calling loop vectorises."""
    bits = np.float64(x).view(np.int64)
    # subtract the bits of sqrt(1/2): the exponent field then counts octaves around [sqrt(1/2), sqrt(2))
    octave = (bits - np.int64(0x3FE6A09E667F3BCD) + np.int64(0x4000000000000000)) & np.int64(-4503599627370496)
    m = np.int64(bits - octave + np.int64(0x4000000000000000)).view(np.float64)
    # exponent as a float without an integer conversion (no AVX2 instruction for it): 2^52 + e
    e = np.int64((octave >> np.int64(52)) | np.int64(0x4330000000000000)).view(np.float64) - (4503599627370496.0 + 1024.0)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 1.0 / 21.0
    p = p * z + 1.0 / 19.0
    p = p * z + 1.0 / 17.0
    p = p * z + 1.0 / 15.0
    p = p * z + 1.0 / 13.0
    p = p * z + 1.0 / 11.0
    p = p * z + 1.0 / 9.0
    p = p * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    return e * 0.6931471805599453 + 2.0 * (s + s * z * p)


@kernel(fastmath=BLOCK_MATH)
def block_product(P: Array, X: Array, out: Array) -> None:
    """
    out = P @ X with V lanes, four rows by four terms at a time (the one tile that pays).

    P is padded with zeros to multiples of four on both axes; `out` has at least P.shape[0] rows, X P.shape[1].
    """
    lanes = X.shape[1]
    for r in range(0, P.shape[0] - 3, 4):
        o0, o1, o2, o3 = out[r], out[r + 1], out[r + 2], out[r + 3]
        for l in range(lanes):
            o0[l] = 0.0
            o1[l] = 0.0
            o2[l] = 0.0
            o3[l] = 0.0
        for k in range(0, P.shape[1] - 3, 4):
            x0, x1, x2, x3 = X[k], X[k + 1], X[k + 2], X[k + 3]
            a0, a1, a2, a3 = P[r, k], P[r, k + 1], P[r, k + 2], P[r, k + 3]
            b0, b1, b2, b3 = P[r + 1, k], P[r + 1, k + 1], P[r + 1, k + 2], P[r + 1, k + 3]
            c0, c1, c2, c3 = P[r + 2, k], P[r + 2, k + 1], P[r + 2, k + 2], P[r + 2, k + 3]
            d0, d1, d2, d3 = P[r + 3, k], P[r + 3, k + 1], P[r + 3, k + 2], P[r + 3, k + 3]
            for l in range(lanes):
                w, x, y, z = x0[l], x1[l], x2[l], x3[l]
                o0[l] += a0 * w + a1 * x + a2 * y + a3 * z
                o1[l] += b0 * w + b1 * x + b2 * y + b3 * z
                o2[l] += c0 * w + c1 * x + c2 * y + c3 * z
                o3[l] += d0 * w + d1 * x + d2 * y + d3 * z


@kernel(fastmath=BLOCK_MATH)
def block_cholesky(A: Array, n: int, pivot: Array) -> None:
    """
    Cholesky of V packed matrices, rows A[i(i+1)/2+j]; the diagonal becomes 1/L_ii.

    An extra row n below the matrix holds a right-hand side, whose forward solution is then free.
    `pivot` (2, V): row 0 receives the smallest pivot relative to its own diagonal entry; not above n eps means not
    positive definite, and the factor must not be used. Row 1 is scratch.
    """
    lanes = A.shape[1]
    smallest, diagonal = pivot[0], pivot[1]
    for l in range(lanes):
        smallest[l] = 1.0
    for i in range(n + 1):
        ri = i * (i + 1) // 2
        if i < n:
            s = A[ri + i]
            for l in range(lanes):
                diagonal[l] = s[l]
        for j in range(min(i + 1, n)):
            rj = j * (j + 1) // 2
            s = A[ri + j]
            for k in range(0, j - 3, 4):
                x0, x1, x2, x3 = A[ri + k], A[ri + k + 1], A[ri + k + 2], A[ri + k + 3]
                y0, y1, y2, y3 = A[rj + k], A[rj + k + 1], A[rj + k + 2], A[rj + k + 3]
                for l in range(lanes):
                    s[l] -= x0[l] * y0[l] + x1[l] * y1[l] + x2[l] * y2[l] + x3[l] * y3[l]
            for k in range(j // 4 * 4, j):
                x0, y0 = A[ri + k], A[rj + k]
                for l in range(lanes):
                    s[l] -= x0[l] * y0[l]
            if j < i:
                d = A[rj + j]
                for l in range(lanes):
                    s[l] *= d[l]
            else:
                for l in range(lanes):
                    smallest[l] = min(smallest[l], s[l] / diagonal[l])
                    s[l] = 1.0 / math.sqrt(s[l])


@kernel(fastmath=BLOCK_MATH)
def block_backsolve(A: Array, n: int, x: Array) -> None:
    """Solve L' x = (row n of a `block_cholesky` factor) into x (n, V)."""
    lanes = A.shape[1]
    last = n * (n + 1) // 2
    for i in range(n):
        source, target = A[last + i], x[i]
        for l in range(lanes):
            target[l] = source[l]
    for i in range(n - 1, -1, -1):
        ri = i * (i + 1) // 2
        xi, d = x[i], A[ri + i]
        for l in range(lanes):
            xi[l] *= d[l]
        for j in range(i):
            a, xj = A[ri + j], x[j]
            for l in range(lanes):
                xj[l] -= a[l] * xi[l]


@kernel(fastmath=BLOCK_MATH)
def block_set(out: Array, value: float) -> None:
    """Fill rows with a value (a whole-row assignment would compile string formatting, two seconds of it)."""
    for r in range(out.shape[0]):
        row = out[r]
        for l in range(row.size):
            row[l] = value


@kernel(fastmath=BLOCK_MATH)
def block_copy(source: Array, out: Array, rows: int) -> None:
    """Copy the first `rows` rows."""
    for r in range(rows):
        a, b = source[r], out[r]
        for l in range(a.size):
            b[l] = a[l]


class SparseMap(NamedTuple):
    """Sparse linear map between rows: out[dst] = sum coef x[src]; rows padded to whole pairs of terms, uint64 tables."""

    dst: NDArray[np.uint64]
    ptr: NDArray[np.uint64]
    src: NDArray[np.uint64]
    coef: Array


def sparse_map(rows: NDArray[np.int64], cols: NDArray[np.int64], coef: Array, n_rows: int) -> SparseMap:
    """
    Build a SparseMap from triplets; every row 0 .. n_rows-1 is written, empty ones with zero.

    Tables are uint64: signed indices would cost a wrap-around test at every access.
    """
    keep = coef != 0.0
    rows, cols, coef = rows[keep], cols[keep], coef[keep]
    count = np.bincount(rows, minlength=n_rows)
    short = np.concatenate([np.repeat(np.arange(n_rows), (count % 2) + 2 * (count == 0))])
    rows = np.concatenate([rows, short])
    cols = np.concatenate([cols, np.zeros(len(short), np.int64)])
    coef = np.concatenate([coef, np.zeros(len(short))])
    order = np.argsort(rows, kind="stable")
    ptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    unsigned = [np.ascontiguousarray(x, dtype=np.uint64) for x in (np.arange(n_rows), ptr, cols[order])]
    return SparseMap(*unsigned, np.ascontiguousarray(coef[order], dtype=np.float64))


@kernel(fastmath=BLOCK_MATH)
def block_map(m: SparseMap, x: Array, out: Array) -> None:
    """Apply a SparseMap to V lanes, two terms at a time."""
    lanes = x.shape[1]
    one, two = np.uint64(1), np.uint64(2)
    for o in range(m.dst.size):
        y = out[m.dst[o]]
        t = m.ptr[o]
        a, b, ca, cb = x[m.src[t]], x[m.src[t + one]], m.coef[t], m.coef[t + one]
        for l in range(lanes):
            y[l] = ca * a[l] + cb * b[l]
        for t in range(m.ptr[o] + two, m.ptr[o + 1], two):
            a, b, ca, cb = x[m.src[t]], x[m.src[t + one]], m.coef[t], m.coef[t + one]
            for l in range(lanes):
                y[l] += ca * a[l] + cb * b[l]
