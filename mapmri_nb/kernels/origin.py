"""What a fit knows of S0 = E(0) before it starts: the mean of the b0 volumes, S0_b.

Three rules: it is one more sample, at exactly q = 0 and with the weight of all b0 volumes together;
it is ignored; or E(0) equals it. It is also the scale of the Gaussian S0_b e_0 that the Laplacian
of the deviation leaves alone.
"""

from typing import Any, NamedTuple

from . import laplacian
from ._jit import CONTRACT, kernel, stage
from ._types import Array
from .lanes import WIDTH, every, rows


class Rules(NamedTuple):
    """The rules of a model for S0, the Laplacian and the noise."""

    row: float  # weight of the sample at q = 0, in units of the b0 volumes' own; 0: none
    fixed: bool  # E(0) = S0_b
    deviation: bool  # the Laplacian is that of the deviation from the Gaussian S0_b e
    noise: int  # 0: none, `noise.RICIAN` or `noise.DENOISED`
    coils: int
    curves: Array  # `noise.curves`, or (2, 0) without noise
    rescale: bool  # the basis is made narrower where its scale contradicts positivity, `rescale`


@stage(CONTRACT)
def sample_at_origin(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """One more sample, S0_b at q = 0: G += k B B', rhs += k S0_b B, k its weight (block.row)."""
    origin, b0 = plan.moments.origin, plan.tensor.b0
    for l in range(0, block.w.shape[1], WIDTH):
        w, G = rows(block.w, l), rows(block.G, l)
        rhs, weight = rows(block.rhs, l), every(0.0)
        for k in range(b0.size):
            weight += w[b0[k]]
        weight *= plan.rules.row
        rows(block.row, l)[0] = weight
        right = weight * rows(block.S0, l)[0]
        for i in range(origin.size):
            if origin[i] != 0.0:
                rhs[i] += right * origin[i]
                for j in range(i + 1):
                    if origin[j] != 0.0:
                        G[i * (i + 1) // 2 + j] += weight * (origin[i] * origin[j])


@kernel(fastmath=CONTRACT)
def deviation(block: Any, rescale: bool, sign: float) -> None:
    """From M'y to M'(y - S0_b M e), and back with the other sign. y'Wy is right after the way forth
    alone. e is e_0, or with `rescale` block.scale.gaussian.
    """
    n = block.rhs.shape[0]
    if rescale:
        for l in range(0, block.w.shape[1], WIDTH):
            G, rhs = rows(block.G, l), rows(block.rhs, l)
            S0, yy = rows(block.S0, l)[0], rows(block.yy, l)
            e = rows(block.scale.gaussian, l)
            for i in range(n):
                total = every(0.0)
                for j in range(n):
                    total += G[i * (i + 1) // 2 + j if i > j else j * (j + 1) // 2 + i] * e[j]
                yy[0] += S0 * e[i] * (S0 * total - 2.0 * rhs[i])
                rhs[i] -= sign * S0 * total
        return
    for l in range(0, block.w.shape[1], WIDTH):
        G, rhs = rows(block.G, l), rows(block.rhs, l)
        S0, yy = rows(block.S0, l)[0], rows(block.yy, l)
        yy[0] += S0 * (S0 * G[0] - 2.0 * rhs[0])
        for i in range(n):
            rhs[i] -= sign * S0 * G[i * (i + 1) // 2]


@stage()
def attract(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """rhs += weight S0_b L e_0, for the Laplacian of the deviation."""
    f, weight = block.factors, block.laplacian_weight
    laplacian.add_first_column(plan.lap, f, weight, block.S0, block.rhs)


@stage()
def attract_gaussian(plan: Any, data: Any, block: Any, out: Any, i0: int, stop: int) -> None:
    """The same with the e of `deviation` where the basis' scale is not the tensor's."""
    f, weight = block.factors, block.laplacian_weight
    laplacian.add_product(plan.lap, f, weight, block.S0, block.scale.gaussian, block.rhs)


@kernel(fastmath=CONTRACT)
def fix(origin: Array, L: Array, S0: Array, z: Array) -> None:
    """The forward solution in row n of a Cholesky factor L moves so that the back substitution
    gives B'c = S0: f + z (S0 - z'f) / z'z with L z = B; z (n, V) is scratch.
    """
    n = origin.size
    for l in range(0, L.shape[1], WIDTH):
        a, v = rows(L, l), rows(z, l)
        dot, square = every(0.0), every(0.0)
        for i in range(n):
            r, s = i * (i + 1) // 2, every(origin[i])
            for j in range(i):
                s -= a[r + j] * v[j]
            v[i] = s * a[r + i]
            square += v[i] * v[i]
            dot += v[i] * a[n * (n + 1) // 2 + i]
        step = (rows(S0, l)[0] - dot) / square
        for i in range(n):
            a[n * (n + 1) // 2 + i] += step * v[i]
