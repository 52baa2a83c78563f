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
    """A = A^-1 in place by a sweep over the pivots; `column`: scratch, `pivot`: as in `pivots`."""
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
    for e in range(o, o + s * (s + 1) // 2):
        a[e] = -a[e]
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
def add_schur(t: Tables, Q: Array, W: Array, U: Array, V: Array, S: Array) -> None:
    """S_tu += (z_t'Q z_u) (z_t'W z_u) of both blocks; U, V (4 s,) take Q z and W z of four points t
    at a time.
    """
    q, w = rows(Q, 0), rows(W, 0)
    x, y = rows(U, 0), rows(V, 0)
    out, n = rows(S, 0), t.B.size
    for block in range(2):
        o, s = t.starts[block], t.sizes[block]
        Z = t.Z[block]
        for first in range(0, n, 4):
            for A, product in ((q, x), (w, y)):
                for i in range(s):
                    a = b = every(0.0)
                    c = d = every(0.0)
                    e = o + i * (i + 1) // 2
                    for j in range(s):
                        f = A[e]
                        a += Z[first, j] * f
                        b += Z[first + 1, j] * f
                        c += Z[first + 2, j] * f
                        d += Z[first + 3, j] * f
                        e += 1 if j < i else j + 1
                    product[i], product[s + i] = a, b
                    product[2 * s + i], product[3 * s + i] = c, d
            for k in range(min(4, n - first)):
                last = first + k
                r = last * (last + 1) // 2
                for u in range(0, last + 1, 2):
                    u1 = min(u + 1, last)
                    a = b = every(0.0)
                    c = d = every(0.0)
                    for i in range(s):
                        f, g = x[k * s + i], y[k * s + i]
                        a += Z[u, i] * f
                        b += Z[u, i] * g
                        c += Z[u1, i] * f
                        d += Z[u1, i] * g
                    out[r + u] += a * b
                    if u1 > u:
                        out[r + u1] += c * d


@kernel(fastmath=CONTRACT)
def symmetric_product(t: Tables, A: Array, B: Array, C: Array, full: Array, out: Array) -> None:
    """out = sym(A B C) of both blocks; full (4, m m): A, B, C and A B as whole matrices.

    Tiles of 2 x 2 entries; the last ones of an odd s have a row or a column twice.
    """
    a, b = rows(A, 0), rows(B, 0)
    c, y = rows(C, 0), rows(out, 0)
    first, second = rows(full[0], 0), rows(full[1], 0)
    third, product = rows(full[2], 0), rows(full[3], 0)
    for block in range(2):
        o, s = t.starts[block], t.sizes[block]
        for source, whole in ((a, first), (b, second), (c, third)):
            e = o
            for i in range(s):
                for j in range(i + 1):
                    x = source[e]
                    whole[i * s + j], whole[j * s + i] = x, x
                    e += 1
        for i in range(0, s, 2):
            p, q = i * s, min(i + 1, s - 1) * s
            for j in range(0, s, 2):
                j1 = min(j + 1, s - 1)
                u, v = j * s, j1 * s
                w = x = every(0.0)
                f = g = every(0.0)
                for k in range(s):
                    w += first[p + k] * second[u + k]
                    x += first[p + k] * second[v + k]
                    f += first[q + k] * second[u + k]
                    g += first[q + k] * second[v + k]
                product[p + j], product[p + j1] = w, x
                product[q + j], product[q + j1] = f, g
        for i in range(0, s, 2):
            i1 = min(i + 1, s - 1)
            p, q = i * s, i1 * s
            r, h = o + i * (i + 1) // 2, o + i1 * (i1 + 1) // 2
            for j in range(0, i + 1, 2):
                j1 = min(j + 1, i1)
                u, v = j * s, j1 * s
                w = x = every(0.0)
                f = g = every(0.0)
                for left, right in ((product, third), (third, product)):
                    for k in range(s):
                        w += left[p + k] * right[u + k]
                        x += left[p + k] * right[v + k]
                        f += left[q + k] * right[u + k]
                        g += left[q + k] * right[v + k]
                y[r + j], y[h + j] = 0.5 * w, 0.5 * f
                y[h + j1] = 0.5 * g
                if j1 < i:
                    y[r + j1] = 0.5 * x


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
