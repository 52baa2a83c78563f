"""Linear algebra on small symmetric matrices and vectors, WIDTH voxels in lanes: arrays
[row][WIDTH].

A symmetric matrix of s rows is packed from row o on, entry (i, j) at o + i (i + 1) / 2 + j. Letters
are those of `sdp`: Z (t, s) holds z_t, Q and W Gram matrices, S the Schur complement.
"""

from ._jit import CONTRACT, kernel
from ._types import Array
from .cones import Tables
from .lanes import every, pick, rows


@kernel(fastmath=CONTRACT)
def pivots(A: Array, o: int, s: int, pivot: Array) -> None:
    """Eliminate a symmetric matrix, packed from row o, from its last row on; A is overwritten.

    `pivot`: the smallest pivot; 0 or less, or NaN, where A is not positive definite (a NaN spoils
    every later one).
    """
    a, smallest = rows(A, 0), every(1.0)
    for k in range(s - 1, -1, -1):
        r, p = o + k * (k + 1) // 2, o
        d = a[r + k]
        smallest = pick(d, smallest, smallest, d)
        f = 1.0 / d
        for i in range(k):
            x = a[r + i] * f
            for j in range(i + 1):
                a[p + j] -= x * a[r + j]
            p += i + 1
    rows(pivot, 0)[0] = smallest


@kernel(fastmath=CONTRACT)
def invert(A: Array, o: int, s: int, column: Array, pivot: Array) -> None:
    """A = -A^-1 in place by a sweep over the pivots; `column`: scratch, `pivot`: as in `pivots`."""
    a, v = rows(A, 0), rows(column, 0)
    smallest = every(1.0)
    for k in range(s):
        r = o + k * (k + 1) // 2
        d = a[r + k]
        smallest = pick(d, smallest, smallest, d)
        for j in range(k):
            v[j], a[r + j] = a[r + j], every(0.0)
        for i in range(k + 1, s):
            e = o + i * (i + 1) // 2 + k
            v[i], a[e] = a[e], every(0.0)
        f = 1.0 / d
        # so the update also makes row and column k of the inverse
        v[k], a[r + k] = every(-1.0), every(0.0)
        for i in range(s):
            p, x = o + i * (i + 1) // 2, v[i] * f
            for j in range(i + 1):
                a[p + j] -= x * v[j]
    rows(pivot, 0)[0] = smallest


@kernel(fastmath=CONTRACT)
def substitute(L: Array, n: int, x: Array) -> None:
    """Solve L L' x = x in place with a factor of `block_cholesky`."""
    a, b = rows(L, 0), rows(x, 0)
    for i in range(n):
        r, total = i * (i + 1) // 2, b[i]
        for j in range(i):
            total -= a[r + j] * b[j]
        b[i] = total * a[r + i]
    for i in range(n - 1, -1, -1):
        r = i * (i + 1) // 2
        f = b[i] * a[r + i]
        b[i] = f
        for j in range(i):
            b[j] -= a[r + j] * f


@kernel(fastmath=CONTRACT)
def four_columns(Q: Array, o: int, s: int, Z: Array, t: int, out: Array) -> None:
    """out[k s + i] = (Q z_(t+k))_i of four points, Q packed from row o."""
    q, u = rows(Q, 0), rows(out, 0)
    for i in range(s):
        a = b = every(0.0)
        c = d = every(0.0)
        e = o + i * (i + 1) // 2
        for j in range(s):
            x = q[e]
            a += Z[t, j] * x
            b += Z[t + 1, j] * x
            c += Z[t + 2, j] * x
            d += Z[t + 3, j] * x
            e += 1 if j < i else j + 1
        u[i], u[s + i] = a, b
        u[2 * s + i], u[3 * s + i] = c, d


@kernel(fastmath=CONTRACT)
def add_entrywise(U: Array, V: Array, s: int, Z: Array, t: int, n: int, S: Array) -> None:
    """S_tu += (z_t'Q z_u) (z_t'W z_u) for four points t; U, V: their `four_columns` with Q, W."""
    x, y = rows(U, 0), rows(V, 0)
    out = rows(S, 0)
    for k in range(min(4, n - t)):
        last = t + k
        r = last * (last + 1) // 2
        for u in range(0, last + 1, 2):
            u1 = min(u + 1, last)
            a = b = every(0.0)
            c = d = every(0.0)
            for i in range(s):
                f, g = x[k * s + i], y[k * s + i]
                first, second = Z[u, i], Z[u1, i]
                a += first * f
                b += first * g
                c += second * f
                d += second * g
            out[r + u] += a * b
            if u1 > u:
                out[r + u1] += c * d


@kernel(fastmath=CONTRACT)
def _unpack(A: Array, o: int, s: int, out: Array) -> None:
    """A packed symmetric block as a whole matrix."""
    a, b = rows(A, 0), rows(out, 0)
    for i in range(s):
        for j in range(i + 1):
            x = a[o + i * (i + 1) // 2 + j]
            b[i * s + j] = x
            b[j * s + i] = x


@kernel(fastmath=CONTRACT)
def _product(X: Array, Y: Array, s: int, out: Array) -> None:
    """X Y' of whole matrices, in tiles of 2 x 2 (the last of an odd s is written twice)."""
    x, y = rows(X, 0), rows(Y, 0)
    z = rows(out, 0)
    for i in range(0, s, 2):
        p, q = i * s, min(i + 1, s - 1) * s
        for j in range(0, s, 2):
            u, v = j * s, min(j + 1, s - 1) * s
            a = b = every(0.0)
            c = d = every(0.0)
            for k in range(s):
                a += x[p + k] * y[u + k]
                b += x[p + k] * y[v + k]
                c += x[q + k] * y[u + k]
                d += x[q + k] * y[v + k]
            j1 = min(j + 1, s - 1)
            z[p + j], z[p + j1] = a, b
            z[q + j], z[q + j1] = c, d


@kernel(fastmath=CONTRACT)
def _symmetrise(X: Array, o: int, s: int, out: Array) -> None:
    """Packed (X + X') / 2."""
    x, y = rows(X, 0), rows(out, 0)
    for i in range(s):
        for j in range(i + 1):
            y[o + i * (i + 1) // 2 + j] = 0.5 * (x[i * s + j] + x[j * s + i])


@kernel()
def symmetric_product(t: Tables, A: Array, B: Array, C: Array, full: Array, out: Array) -> None:
    """out = sym(A B C) of both blocks."""
    first, second = full[0], full[1]
    third = full[2]
    for k in range(2):
        o, s = t.starts[k], t.sizes[k]
        _unpack(A, o, s, first)
        _unpack(B, o, s, second)
        _product(first, second, s, third)
        _unpack(C, o, s, first)
        _product(third, first, s, second)
        _symmetrise(second, o, s, out)


@kernel(fastmath=CONTRACT)
def combine(a: float, X: Array, b: float, Y: Array, count: int, out: Array) -> None:
    """out = a X + b Y, the first `count` rows."""
    x, y = rows(X, 0), rows(Y, 0)
    z = rows(out, 0)
    for i in range(count):
        z[i] = a * x[i] + b * y[i]


@kernel(fastmath=CONTRACT)
def move(X: Array, D: Array, step: Array, first: int, count: int, out: Array) -> None:
    """out = X + step D in some rows; X alone in lanes where the step (1,) is not positive."""
    x, d = rows(X, 0), rows(D, 0)
    y, f = rows(out, 0), rows(step, 0)[0]
    for i in range(first, first + count):
        y[i] = pick(f, 0.0, x[i] + f * d[i], x[i])


@kernel(fastmath=CONTRACT)
def inner(times: Array, Q: Array, M: Array, out: Array) -> None:
    """<Q, M> summed over the blocks into out (1,)."""
    q, m = rows(Q, 0), rows(M, 0)
    total = every(0.0)
    for e in range(times.size):
        total += times[e] * (q[e] * m[e])
    rows(out, 0)[0] = total


@kernel(fastmath=CONTRACT)
def fill(values: Array, factor: Array, out: Array) -> None:
    """The same vector in every lane, times a factor (1,) of each."""
    a, f = rows(out, 0), rows(factor, 0)[0]
    for i in range(values.size):
        a[i] = values[i] * f
