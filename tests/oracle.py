"""Slow, obvious twins of the library in plain NumPy and SciPy: nothing here imports what it checks.

Units: mm, s, 1/mm. Coefficients are in DIPY's order. `mu` (3,) are the scales along the axes of the
frame R (columns); functions that take no R work in that frame. The tests compare it with the
kernels, and those with printed digits and with integrals of their own functions (test_validation.py,
test_testing.py).
"""

from math import factorial, gamma, lgamma, pi, sqrt

import numpy as np
from scipy import special

from mapmri_nb.testing.algebra import gcv as gcv
from mapmri_nb.testing.programs import order_of as order_of
from mapmri_nb.testing.properties import nodes
from mapmri_nb.testing.truths import isotropic_scale

# ---- orders, bases


def aniso_table(order):
    """Indices (n1, n2, n3), (n, 3)."""
    even = range(0, order + 1, 2)
    return np.array(
        [(n - i - j, j, i) for n in even for i in range(n + 1) for j in range(n - i + 1)]
    )


def iso_table(order):
    """Indices (j, l, m), (n, 3)."""
    out = []
    for n in range(0, order + 1, 2):
        for j in range(1, n // 2 + 2):
            el = n + 2 - 2 * j
            out += [(j, el, m) for m in range(-el, el + 1)]
    return np.array(out)


def origin1d(n):
    """phi_n(0): sqrt(n!)/n!! for even n, else 0."""
    double = special.factorial2(n, exact=True) if n else 1
    return 0.0 if n % 2 else sqrt(factorial(n)) / float(double)


def aniso_origin(order):
    """B_n."""
    return np.array([np.prod([origin1d(int(k)) for k in row]) for row in aniso_table(order)])


def iso_origin(order):
    """B_jlm."""
    value = [gamma(j + 0.5) / gamma(j) / gamma(1.5) * (el == 0) for j, el, _ in iso_table(order)]
    return np.array(value)


def hermite1d(n, t):
    """H_n(t) exp(-t^2/2) / sqrt(2^n n!)."""
    norm = np.exp(0.5 * (n * np.log(2) + lgamma(n + 1)))
    return special.eval_hermite(n, t) * np.exp(-np.square(t) / 2) / norm


def hermite3d(order, t):
    """Products of three hermite1d at t (k, 3): (k, n)."""
    h = np.array([hermite1d(k, t) for k in range(order + 1)])
    return np.prod([h[k, :, i] for i, k in enumerate(aniso_table(order).T)], axis=0).T


def phi_matrix(order, mu, q):
    """Signal of the anisotropic functions at q (k, 3), in the frame: (k, n)."""
    sign = (-1.0) ** (aniso_table(order).sum(1) // 2)
    return sign * hermite3d(order, 2 * pi * np.asarray(mu) * np.atleast_2d(q))


def psi_matrix(order, mu, r):
    """Propagator of the anisotropic functions at r (k, 3), in the frame: (k, n)."""
    return hermite3d(order, np.atleast_2d(r) / np.asarray(mu)) / ((2 * pi) ** 1.5 * np.prod(mu))


def real_sh(el, m, theta, phi):
    """Legacy descoteaux07 harmonic of DIPY."""
    k = sqrt((2 * el + 1) * factorial(el - abs(m)) / (4 * pi * factorial(el + abs(m))))
    trig = 1.0 if m == 0 else sqrt(2) * (np.cos(-m * phi) if m < 0 else np.sin(m * phi))
    return k * special.lpmv(abs(m), el, np.cos(theta)) * trig


def iso_psi_matrix(order, u, r):
    """Propagator of the isotropic functions at r (k, 3): (k, n)."""
    norm = np.linalg.norm(r, axis=1)
    theta = np.arccos(np.clip(r[:, 2] / np.where(norm > 0, norm, 1), -1, 1))
    phi, x = np.arctan2(r[:, 1], r[:, 0]), norm**2 / (2 * u**2)
    out = []
    for j, el, m in iso_table(order):
        laguerre = (-1.0) ** (j - 1) * special.eval_genlaguerre(j - 1, el + 0.5, 2 * x)
        out.append(np.exp(-x) * x ** (el / 2) * laguerre * real_sh(el, m, theta, phi))
    return np.transpose(out) / (sqrt(2) * pi * u**3)


def iso_to_aniso(order):
    """T (n, n) with a_aniso = T a_iso at equal scale: overlaps at scale 1 by quadrature."""
    r, w = nodes(order + 1, np.ones(3))
    overlap = psi_matrix(order, np.ones(3), r).T @ (w[:, None] * iso_psi_matrix(order, 1.0, r))
    return 8 * pi**1.5 * overlap


# ---- Laplacian matrices


def laplacian_matrix(order, mu):
    """L (n, n) in mm with int (laplacian E)^2 dq = a'La, by its integral 16 pi^4 int r^4 P P' dr."""
    r, w = nodes(order + 4, np.asarray(mu))
    psi = psi_matrix(order, mu, r) * (r**2).sum(1)[:, None]
    return 16 * pi**4 * (psi.T * w) @ psi


# ---- indices


def odf_matrix(order, mu, v, s=2):
    """ODF_s of the anisotropic functions along unit vectors v (k, 3) in the frame: (k, n), the
    integral of P r^(2 + s) by Gauss-Laguerre nodes x = r^2 / (2 rho^2), exact.
    """
    rho = 1 / np.linalg.norm(v / mu, axis=1)[:, None]
    x, w = special.roots_genlaguerre(order // 2 + 1, (s + 1) / 2)
    r = (rho * np.sqrt(2 * x))[..., None] * v[:, None]
    P = psi_matrix(order, mu, r.reshape(-1, 3)).reshape(len(v), len(x), -1)
    return 2 ** ((s + 1) / 2) * rho ** (s + 3) * np.einsum("k,vkn->vn", w * np.exp(x), P)


# ---- fits


def qvectors(bvals, bvecs, tau):
    """q-vectors (k, 3) in 1/mm."""
    return np.sqrt(np.asarray(bvals) / tau)[:, None] / (2 * pi) * np.asarray(bvecs)


def fit_tensor(y, bvals, bvecs, tau, bval_threshold=2100, floor=1e-4):
    """Two-pass weighted tensor fit: mu (3,), R (3, 3), floored eigenvalues (3,), descending."""
    use = np.isfinite(y) & (y > 0) & (bvals <= bval_threshold)
    b, g = bvals[use, None], bvecs[use]
    log = np.log(y[use])
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    columns = [-b * (g[:, [i]] * g[:, [j]]) * (1 if i == j else 2) for i, j in pairs]
    x = np.hstack([np.ones_like(b), *columns])
    w = np.exp(
        x @ np.linalg.lstsq(x, log, rcond=None)[0]
    )  # the predicted signal: its square counts
    _, xx, yy, zz, xy, xz, yz = np.linalg.lstsq(x * w[:, None], log * w, rcond=None)[0]
    values, vectors = np.linalg.eigh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    values = np.maximum(values[::-1], floor)
    return np.sqrt(2 * values * tau), vectors[:, ::-1], values


def scale_S0(y, bvals, bvecs, tensor, b0_threshold=50):
    """Mean over the b0 volumes of y exp(b u'Du)."""
    b0 = (bvals <= b0_threshold) & np.isfinite(y)
    decay = bvals[b0] * np.einsum("ki,ij,kj->k", bvecs[b0], tensor, bvecs[b0])
    return np.mean(y[b0] * np.exp(decay))


def fit(y, bvals, bvecs, tau, order, weight=0.0, basis="anisotropic", scale=None, static=None):
    """Linear MAP(L) of one voxel, dense: fitted freely, then normalised; of given scale (mu, R) or
    static diffusivity.

    Returns a dict: coef (n,), hermite (n,) in the tensor frame, mu, mu_tensor (3,), R, S0, rmse, r2.
    """
    if scale is None:
        mu_t, rotation, values = fit_tensor(y, bvals, bvecs, tau)
    else:
        (mu_t, rotation), values = scale, np.square(scale[0]) / (2 * tau)
    S0 = scale_S0(y, bvals, bvecs, rotation @ np.diag(values) @ rotation.T)
    q, ok = qvectors(bvals, bvecs, tau), np.isfinite(y)
    mu, frame = np.asarray(mu_t, float), rotation
    T = np.eye(len(aniso_table(order)))
    if basis == "isotropic":  # along the b-vectors
        u = isotropic_scale(mu_t) if static is None else sqrt(2 * static * tau)
        mu, frame, T = np.full(3, u), np.eye(3), iso_to_aniso(order)
    m, lap = phi_matrix(order, mu, q @ frame) @ T, T.T @ laplacian_matrix(order, mu) @ T
    stacked = np.vstack([m[ok], sqrt(weight) * np.linalg.cholesky(lap).T])
    a = np.linalg.lstsq(stacked, np.r_[y[ok] / S0, np.zeros(len(lap))], rcond=None)[0]
    at_origin = aniso_origin(order) @ T @ a
    a, S0 = a / at_origin, S0 * at_origin
    r, _ = nodes(order + 3, np.sqrt(2) * mu)  # the propagator in the tensor frame: fitted there
    P = psi_matrix(order, mu, r @ rotation.T @ frame) @ T @ a
    herm = np.linalg.lstsq(psi_matrix(order, mu, r), P, rcond=None)[0]
    rest = y[ok] - S0 * m[ok] @ a
    r2 = 1 - np.sum(rest**2) / np.sum((y[ok] - y[ok].mean()) ** 2)
    out = {"coef": a, "hermite": herm, "mu": mu, "mu_tensor": np.asarray(mu_t), "R": rotation}
    return out | {"S0": S0, "rmse": np.sqrt(np.mean(rest**2)), "r2": r2}
