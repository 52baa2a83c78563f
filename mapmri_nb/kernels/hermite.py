"""One-dimensional Hermite functions by a stable recurrence; the anisotropic basis at points.

With N = n1 + n2 + n3, q in 1/mm, r and mu in mm [Ozarslan 2013, Eq. 22, 23]:

    h_0 = pi^(-1/4) exp(-t^2/2),   h_(n+1) = sqrt(2/(n+1)) t h_n - sqrt(n/(n+1)) h_(n-1)
    Phi_n(q) = (-1)^(N/2) pi^(3/4) prod h_ni(2 pi mu_i q_i)
    Psi_n(r) = pi^(3/4) / ((2 pi)^(3/2) mu1 mu2 mu3) prod h_ni(r_i / mu_i)
"""

import math

import numpy as np

from ._jit import kernel
from ._types import Array, IntArray


@kernel()
def hermite_functions(t: float, out: Array) -> None:
    """Orthonormal Hermite functions h_0(t) .. h_N(t) into `out` (N+1,).

    h_{n+1} = sqrt(2/(n+1)) t h_n - sqrt(n/(n+1)) h_{n-1}, h_0 = pi^(-1/4) exp(-t^2/2); 1e-15 up to
    n = 30.
    """
    out[0] = math.pi**-0.25 * math.exp(-0.5 * t * t)
    if out.size > 1:
        out[1] = math.sqrt(2.0) * t * out[0]
    for n in range(1, out.size - 1):
        out[n + 1] = math.sqrt(2.0 / (n + 1)) * t * out[n] - math.sqrt(n / (n + 1.0)) * out[n - 1]


@kernel(allocates=True)
def _rows(
    points: Array, scale: Array, factor: float, alternate: bool, index: IntArray, out: Array
) -> None:
    """Products of Hermite functions of scale * points; sign (-1)^(N/2) where `alternate`."""
    degree = 0
    for a in range(index.shape[0]):
        degree = max(degree, max(index[a, 0], max(index[a, 1], index[a, 2])))
    h, up = np.empty((3, degree + 1)), np.empty(degree)
    down = np.empty(degree)
    for n in range(degree):
        up[n], down[n] = math.sqrt(2.0 / (n + 1.0)), math.sqrt(n / (n + 1.0))
    for k in range(points.shape[0]):
        for axis in range(3):  # as `hermite_functions`, whose roots cost most of its time
            t = scale[axis] * points[k, axis]
            h[axis, 0] = math.pi**-0.25 * math.exp(-0.5 * t * t)
            for n in range(degree):
                h[axis, n + 1] = up[n] * t * h[axis, n] - down[n] * h[axis, max(n - 1, 0)]
        for a in range(index.shape[0]):
            value = factor * h[0, index[a, 0]] * h[1, index[a, 1]] * h[2, index[a, 2]]
            if alternate and (index[a, 0] + index[a, 1] + index[a, 2]) % 4 == 2:
                value = -value
            out[k, a] = value


@kernel(allocates=True)
def signal_rows(q: Array, mu: Array, index: IntArray, out: Array) -> None:
    """Rows of the signal basis Phi_n(q) [Ozarslan 2013, Eq. 22].

    Parameters
    ----------
    q : (K, 3) in the voxel's frame, 1/mm. mu : (3,) mm. index : (n, 3). out : (K, n), written.

    Notes
    -----
    Phi_n(q) = (-1)^(N/2) pi^(3/4) prod h_ni(2 pi mu_i q_i), real for even N.
    """
    _rows(q, 2.0 * math.pi * mu, math.pi**0.75, True, index, out)


@kernel(allocates=True)
def propagator_rows(r: Array, mu: Array, index: IntArray, out: Array) -> None:
    """Rows of the propagator basis Psi_n(r), 1/mm^3 [Ozarslan 2013, Eq. 23].

    Parameters
    ----------
    r : (K, 3) in the voxel's frame, mm. mu : (3,) mm. index : (n, 3). out : (K, n), written.

    Notes
    -----
    Psi_n(r) = pi^(3/4) prod h_ni(r_i/mu_i) / ((2 pi)^(3/2) mu1 mu2 mu3).
    """
    factor = math.pi**0.75 / ((2.0 * math.pi) ** 1.5 * mu[0] * mu[1] * mu[2])
    _rows(r, 1.0 / mu, factor, False, index, out)
