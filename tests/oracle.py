"""
Slow, obvious twins of the library in plain NumPy and SciPy: nothing here imports what it checks.

Units: mm, s, 1/mm. Coefficients are in DIPY's order. `mu` (3,) are the scales along the axes of the
frame R (columns); functions that take no R work in that frame. Every formula is checked by
quadrature in test_oracle.py.
"""

from math import factorial, gamma, lgamma, pi, sqrt

import numpy as np
from scipy import optimize, special

from mapmri_nb.testing.truths import isotropic_scale

# ---------------------------------------------------------------- orders, bases


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


def order_of(coef):
    """Radial order of a coefficient vector."""
    return {(n + 2) * (n + 4) * (2 * n + 3) // 24: n for n in range(0, 42, 2)}[len(coef)]


def origin1d(n):
    """phi_n(0): sqrt(n!)/n!! for even n, else 0."""
    return (
        0.0 if n % 2 else sqrt(factorial(n)) / float(special.factorial2(n, exact=True) if n else 1)
    )


def aniso_origin(order):
    """B_n."""
    return np.array([np.prod([origin1d(int(k)) for k in row]) for row in aniso_table(order)])


def iso_origin(order):
    """B_jlm."""
    return np.array(
        [
            gamma(j + 0.5) / gamma(j) / gamma(1.5) if el == 0 else 0.0
            for j, el, _ in iso_table(order)
        ]
    )


def hermite1d(n, t):
    """H_n(t) exp(-t^2/2) / sqrt(2^n n!)."""
    return (
        special.eval_hermite(n, t)
        * np.exp(-np.square(t) / 2)
        / np.exp(0.5 * (n * np.log(2) + lgamma(n + 1)))
    )


def hermite3d(order, t):
    """Products of three hermite1d at t (k, 3): (k, n)."""
    return np.array(
        [np.prod([hermite1d(n[i], t[:, i]) for i in range(3)], 0) for n in aniso_table(order)]
    ).T


def phi_matrix(order, mu, q):
    """Signal of the anisotropic functions at q (k, 3), in the frame: (k, n)."""
    sign = (-1.0) ** (aniso_table(order).sum(1) // 2)
    return sign * hermite3d(order, 2 * pi * np.asarray(mu) * np.atleast_2d(q))


def psi_matrix(order, mu, r):
    """Propagator of the anisotropic functions at r (k, 3), in the frame: (k, n)."""
    return hermite3d(order, np.atleast_2d(r) / np.asarray(mu)) / ((2 * pi) ** 1.5 * np.prod(mu))


def angles(v):
    """Norm, polar and azimuthal angle of v (k, 3); angles 0 at the origin."""
    v = np.atleast_2d(v)
    r = np.linalg.norm(v, axis=1)
    return (
        r,
        np.arccos(np.clip(v[:, 2] / np.where(r > 0, r, 1), -1, 1)) * (r > 0),
        np.arctan2(v[:, 1], v[:, 0]),
    )


def real_sh(el, m, theta, phi):
    """Legacy descoteaux07 harmonic of DIPY."""
    k = sqrt((2 * el + 1) * factorial(el - abs(m)) / (4 * pi * factorial(el + abs(m))))
    trig = 1.0 if m == 0 else sqrt(2) * (np.cos(-m * phi) if m < 0 else np.sin(m * phi))
    return k * special.lpmv(abs(m), el, np.cos(theta)) * trig


def iso_shape(order, x, theta, phi):
    """x^(l/2) exp(-x) L_(j-1)^(l+1/2)(2x) Y_lm, (k, n)."""
    laguerre = [
        x ** (el / 2) * special.eval_genlaguerre(j - 1, el + 0.5, 2 * x)
        for j, el, _ in iso_table(order)
    ]
    harmonics = [real_sh(el, m, theta, phi) for _, el, m in iso_table(order)]
    return np.transpose(np.exp(-x) * np.array(laguerre) * np.array(harmonics))


def iso_phi_matrix(order, u, q):
    """Signal of the isotropic functions at q (k, 3): (k, n)."""
    norm, theta, phi = angles(q)
    return (
        sqrt(4 * pi)
        * (-1.0) ** (iso_table(order)[:, 1] // 2)
        * iso_shape(order, 2 * (pi * u * norm) ** 2, theta, phi)
    )


def iso_psi_matrix(order, u, r):
    """Propagator of the isotropic functions at r (k, 3): (k, n)."""
    norm, theta, phi = angles(r)
    sign = (-1.0) ** (iso_table(order)[:, 0] - 1)
    return sign / (sqrt(2) * pi * u**3) * iso_shape(order, norm**2 / (2 * u**2), theta, phi)


def iso_norms(order, u):
    """Integral of Phi_jlm^2, (n,)."""
    return np.array(
        [
            gamma(j + el + 0.5) / (2 ** (el + 2) * pi**2 * u**3 * gamma(j))
            for j, el, _ in iso_table(order)
        ]
    )


def iso_to_aniso(order):
    """T (n, n) with a_aniso = T a_iso at equal scale: overlaps at scale 1 by quadrature."""
    r, w = gauss_hermite(order + 1, np.ones(3))
    return (
        8
        * pi**1.5
        * psi_matrix(order, np.ones(3), r).T
        @ (w[:, None] * iso_psi_matrix(order, 1.0, r))
    )


# ---------------------------------------------------------------- quadrature


def gauss_hermite(n, scale):
    """
    Nodes (n^d, d) and weights, exact for a polynomial of degree 2n-1 per axis times exp(-sum
    x_i^2/scale_i^2).
    """
    scale = np.atleast_1d(np.asarray(scale, float))
    t, w = special.roots_hermite(n)
    w = w * np.exp(t**2)
    nodes = np.stack(np.meshgrid(*[t * s for s in scale], indexing="ij"), -1).reshape(
        -1, len(scale)
    )
    weights = np.prod(np.stack(np.meshgrid(*[w * s for s in scale], indexing="ij"), -1), -1)
    return nodes, weights.ravel()


def scales(mu, space, power=1):
    """`scale` of gauss_hermite for E (space 'q') or P (space 'r') to the first or second power."""
    s = np.sqrt(2.0) * np.asarray(mu) if space == "r" else 1 / (np.sqrt(2.0) * pi * np.asarray(mu))
    return s / sqrt(power)


def integrate(f, mu, space, axes=(0, 1, 2), power=1, n=24):
    """
    Integral of f(points (k, 3)) over space, or over the plane or line through 0 that `axes` of the
    frame span.
    """
    t, w = gauss_hermite(n, scales(mu, space, power)[list(axes)])
    return w @ f(t @ np.eye(3)[list(axes)])


def sphere_rule(n_z=30, n_phi=60):
    """Directions (k, 3) and weights (sum 4 pi): Gauss-Legendre times the trapezoidal rule."""
    z, w = special.roots_legendre(n_z)
    phi = 2 * pi * np.arange(n_phi) / n_phi
    s = np.sqrt(1 - z**2)[:, None]
    v = np.stack([s * np.cos(phi), s * np.sin(phi), np.repeat(z[:, None], n_phi, 1)], -1).reshape(
        -1, 3
    )
    return v, np.repeat(w * 2 * pi / n_phi, n_phi)


def circle_rule(axis, n=120):
    """Directions (n, 3) of the unit circle perpendicular to `axis` and weights (sum 2 pi)."""
    q = np.linalg.svd(np.asarray(axis, float)[None])[2][1:]
    phi = 2 * pi * np.arange(n) / n
    return np.cos(phi)[:, None] * q[0] + np.sin(phi)[:, None] * q[1], np.full(n, 2 * pi / n)


# ---------------------------------------------------------------- Laplacian matrices


def laplacian_matrix(order, mu):
    """L with int (laplacian E)^2 dq = a'La, (n, n) in mm."""
    n = aniso_table(order)
    k, gap = np.minimum(n[:, None], n[None]), np.abs(n[:, None] - n[None])  # (n, n, 3): per axis
    pair, far = np.sqrt((k + 1) * (k + 2)), np.sqrt((k + 1) * (k + 2) * (k + 3) * (k + 4))
    x2 = np.select([gap == 0, gap == 2], [k + 0.5, pair / 2])
    x4 = (
        np.select([gap == 0, gap == 2, gap == 4], [6 * k**2 + 6 * k + 3, (4 * k + 6) * pair, far])
        / 4
    )
    total = 0.0
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        total = total + mu[a] ** 4 * x4[..., a] * (gap[..., b] == 0) * (gap[..., c] == 0)
        total = total + 2 * mu[a] ** 2 * mu[b] ** 2 * x2[..., a] * x2[..., b] * (gap[..., c] == 0)
    return 2 * pi**2.5 / np.prod(mu) * total


def iso_laplacian_matrix(order, u):
    """Laplacian matrix of the isotropic basis, (n, n)."""

    def entry(p, q):
        if p[1:] != q[1:]:
            return 0.0
        j, el, step = min(p[0], q[0]), p[1], abs(p[0] - q[0])
        if step == 0:
            poly = 3 + 24 * j**2 + 4 * el * (el - 2) + 12 * j * (2 * el - 1)
            return 2.0**-el * pi**2 * u * poly * gamma(j + el + 0.5) / gamma(j)
        if step == 1:
            return (
                2.0 ** (2 - el)
                * pi**2
                * u
                * (4 * (j + 1) + 2 * el - 3)
                * gamma(j + el + 1.5)
                / gamma(j)
            )
        return 2.0 ** (2 - el) * pi**2 * u * gamma(j + el + 2.5) / gamma(j) if step == 2 else 0.0

    table = iso_table(order).tolist()
    return np.array([[entry(p, q) for q in table] for p in table])


# ---------------------------------------------------------------- indices


def radial_sum(j, el, s):
    """Sum over k < j in the isotropic ODF_s; s = -2 also gives RTPP."""
    t, x, total = (el + s + 3) / 2, j + el - 0.5, 0.0
    for k in range(j):
        choose = gamma(x + 1) / (gamma(x - j + k + 2) * factorial(j - k - 1))
        total += (-1) ** k * choose * gamma(t + k) * 2 ** (t + k) / factorial(k)
    return total


def pa_cos2(a, mu, k_max=5):
    """
    cos^2 theta of P and its projection on the radial functions at u0; 1-D overlaps by quadrature.
    """
    order, u0 = order_of(a), isotropic_scale(mu)
    n, high = aniso_table(order), 2 * k_max
    overlap = []
    for m in mu:
        x, w = gauss_hermite((order + high) // 2 + 2, sqrt(2 / (1 / m**2 + 1 / u0**2)))
        f = np.array([hermite1d(k, x[:, 0] / m) for k in range(order + 1)]) / sqrt(m)
        g = np.array([hermite1d(k, x[:, 0] / u0) for k in range(high + 1)]) / sqrt(u0)
        overlap.append((f * w) @ g.T / sqrt(pi))
    total = 0.0
    for k in range(k_max + 1):
        g_k = 0.0
        for i1 in range(0, 2 * k + 1, 2):
            for i2 in range(0, 2 * k + 1 - i1, 2):
                i3 = 2 * k - i1 - i2
                b = origin1d(i1) * origin1d(i2) * origin1d(i3)
                g_k += b * np.sum(
                    a * overlap[0][n[:, 0], i1] * overlap[1][n[:, 1], i2] * overlap[2][n[:, 2], i3]
                )
        total += g_k**2 / (gamma(k + 1.5) / (gamma(k + 1) * gamma(1.5)))
    return total / np.sum(np.square(a))


def odf_matrix(order, mu, v, s=2):
    """ODF_s of the anisotropic functions along unit vectors v (k, 3) in the frame: (k, n)."""
    t = np.atleast_2d(v) / np.asarray(mu, float)
    rho = 1 / np.linalg.norm(t, axis=1)
    t = t * rho[:, None]
    cols = []
    for n in aniso_table(order).tolist():
        h = [special.hermite(k).c[::-1] for k in n]  # ascending monomial coefficients of H_n
        total = 0.0
        for a, b, c in np.ndindex(
            n[0] + 1, n[1] + 1, n[2] + 1
        ):  # the term of r^k in prod H_ni(t_i r)
            k = a + b + c
            if (k - sum(n)) % 2 == 0:
                term = h[0][a] * h[1][b] * h[2][c] * t[:, 0] ** a * t[:, 1] ** b * t[:, 2] ** c
                total = total + term * 2 ** ((k + s + 1) / 2) * gamma((k + s + 3) / 2)
        norm = np.prod(mu) * sqrt(2.0 ** (sum(n) + 3) * pi**3 * np.prod([factorial(k) for k in n]))
        cols.append(rho ** (s + 3) * total / norm)
    return np.array(cols).T


def iso_odf_factors(order, u, s=2):
    """Factor of Y_lm(v) in ODF_s of each isotropic function, (n,)."""
    table = iso_table(order).tolist()
    return np.array(
        [
            u**s * (-1) ** (j - 1) * 2 ** (-(el + 3) / 2) / pi * radial_sum(j, el, s)
            for j, el, _ in table
        ]
    )


def iso_odf_matrix(order, u, v, s=2):
    """ODF_s of the isotropic functions along unit vectors v (k, 3): (k, n)."""
    _, theta, phi = angles(v)
    return np.array(
        [real_sh(el, m, theta, phi) for _, el, m in iso_table(order)]
    ).T * iso_odf_factors(order, u, s)


# ---------------------------------------------------------------- fits


def qvectors(bvals, bvecs, tau):
    """q-vectors (k, 3) in 1/mm."""
    return np.sqrt(np.asarray(bvals) / tau)[:, None] / (2 * pi) * np.asarray(bvecs)


def fit_tensor(y, bvals, bvecs, tau, bval_threshold=2100, floor=1e-4):
    """
    Two-pass weighted tensor fit: mu (3,), R (3, 3), floored eigenvalues (3,), lambda1 >= lambda2 >=
    lambda3.
    """
    use = (
        np.isfinite(y) & (y > 0) & (bvals <= (np.inf if bval_threshold is None else bval_threshold))
    )
    b, g, log = bvals[use, None], bvecs[use], np.log(y[use])
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    x = np.hstack(
        [np.ones_like(b)] + [-b * (g[:, [i]] * g[:, [j]]) * (1 if i == j else 2) for i, j in pairs]
    )
    first = np.linalg.lstsq(x, log, rcond=None)[0]
    w = np.exp(
        x @ first
    )  # weight = predicted signal squared, so rows are scaled by the predicted signal
    _, xx, yy, zz, xy, xz, yz = np.linalg.lstsq(x * w[:, None], log * w, rcond=None)[0]
    values, vectors = np.linalg.eigh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    values = np.maximum(values[::-1], floor)
    return np.sqrt(2 * values * tau), vectors[:, ::-1], values


def scale_S0(y, bvals, bvecs, tensor, b0_threshold=50):
    """Mean over the b0 volumes of y exp(b u'Du)."""
    b0 = (bvals <= b0_threshold) & np.isfinite(y)
    return np.mean(
        y[b0] * np.exp(bvals[b0] * np.einsum("ki,ij,kj->k", bvecs[b0], tensor, bvecs[b0]))
    )


def fit(
    y,
    bvals,
    bvecs,
    tau,
    order,
    weight=0.0,
    basis="anisotropic",
    scale=None,
    static=None,
    **tensor_options,
):
    """
    Linear MAP(L) of one voxel, dense: fitted freely, then normalised. `weight` is a number or
    'gcv'.

    Returns a dict: coef (n,), hermite (n,) in the tensor frame, mu, mu_tensor (3,), R, S0, tensor,
    weight, rmse, r2, and e0, the sum aB before it was divided out.
    """
    mu_t, rotation, values = (
        fit_tensor(y, bvals, bvecs, tau, **tensor_options) if scale is None else (*scale, None)
    )
    values = np.square(mu_t) / (2 * tau) if values is None else values
    tensor = rotation @ np.diag(values) @ rotation.T
    S0 = scale_S0(y, bvals, bvecs, tensor)
    q, ok = qvectors(bvals, bvecs, tau), np.isfinite(y)
    if basis == "anisotropic":
        mu, b = np.asarray(mu_t, float), aniso_origin(order)
        m, lap = phi_matrix(order, mu, q @ rotation), laplacian_matrix(order, mu)
    else:
        u = isotropic_scale(mu_t) if static is None else sqrt(2 * static * tau)
        mu, b = np.full(3, u), iso_origin(order)
        m, lap = iso_phi_matrix(order, u, q), iso_laplacian_matrix(order, u)
    if weight == "gcv":
        weight = gcv_weight(m[ok], lap, y[ok] / S0, mu)
    a = penalised_lstsq(m[ok], lap, y[ok] / S0, weight)
    e0 = a @ b
    a, S0 = a / e0, S0 * e0
    herm = a
    if basis != "anisotropic":  # the propagator in the tensor frame: fitted there, exactly
        r, _ = gauss_hermite(order + 3, np.sqrt(2) * mu)
        herm = np.linalg.lstsq(
            psi_matrix(order, mu, r), iso_psi_matrix(order, u, r @ rotation.T) @ a, rcond=None
        )[0]
    rest = y[ok] - S0 * m[ok] @ a
    out = {
        "coef": a,
        "hermite": herm,
        "mu": mu,
        "mu_tensor": np.asarray(mu_t),
        "R": rotation,
        "S0": S0,
        "e0": e0,
    }
    r2 = 1 - np.sum(rest**2) / np.sum((y[ok] - y[ok].mean()) ** 2)
    return out | {"tensor": tensor, "weight": weight, "rmse": np.sqrt(np.mean(rest**2)), "r2": r2}


def penalised_lstsq(m, lap, y, weight):
    """Argmin |y - m a|^2 + weight a'La by QR of the stacked system."""
    root = sqrt(weight) * np.linalg.cholesky(lap).T
    return np.linalg.lstsq(
        np.vstack([m, root]), np.concatenate([y, np.zeros(len(lap))]), rcond=None
    )[0]


def constrained_lstsq(m, y, b):
    """Argmin |y - m a|^2 subject to b'a = 1."""
    a0 = b / (b @ b)
    null = np.linalg.svd(b[None])[2][1:].T
    return a0 + null @ np.linalg.lstsq(m @ null, y - m @ a0, rcond=None)[0]


def gcv(m, lap, y, weight):
    """V(weight) and tr S by the definition."""
    smoother = m @ np.linalg.solve(m.T @ m + weight * lap, m.T)
    trace = np.trace(smoother)
    return len(y) * np.sum((y - smoother @ y) ** 2) / (len(y) - trace) ** 2, trace


def gcv_weight(m, lap, y, mu, grid=40):
    """
    Minimiser of V over 5e-8..5e-2 mm / (mean scale): grid on log weight, then every bracket of a
    local minimum.
    """
    logs = np.linspace(np.log(5e-8), np.log(5e-2), grid) - np.log(np.prod(mu)) / 3
    v = [gcv(m, lap, y, np.exp(t))[0] for t in logs]
    found = [(v[i], logs[i]) for i in (0, grid - 1)]
    for i in range(1, grid - 1):
        if v[i] <= min(v[i - 1], v[i + 1]):
            best = optimize.minimize_scalar(lambda t: gcv(m, lap, y, np.exp(t))[0], bounds=logs[[i - 1, i + 1]],
                                            method="bounded", options={"xatol": 1e-9})  # fmt: skip
            found.append((best.fun, best.x))
    return float(np.exp(min(found)[1]))
