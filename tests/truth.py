"""
Known answers: golden vectors, gradient schemes, mixtures of Gaussians, restricted diffusion. Plain
NumPy and SciPy.

Units: mm, s, 1/mm. Index names are those of the oracle.
"""

from decimal import Decimal
from math import factorial, gamma, pi, sqrt

import numpy as np
import oracle
from scipy import optimize, special


def assert_digits(value, printed):
    """Agreement to half a unit of the last printed digit (0.1 % slack for the rounding itself)."""
    half = 0.5 * 10.0 ** Decimal(str(printed)).as_tuple().exponent
    assert abs(value - float(printed)) <= 1.001 * half, f"{value!r} is not {printed}"


# ---------------------------------------------------------------- gradient schemes


def scheme(counts, bvals, n_b0=6):
    """
    Shells with counts[s] directions at bvals[s] behind n_b0 volumes at b = 0: b (n,), unit vectors
    (n, 3).
    """
    b, g = [np.zeros(n_b0)], [np.zeros((n_b0, 3))]
    for s, (count, value) in enumerate(zip(counts, bvals, strict=True)):
        k = np.arange(count) + 0.5
        z, angle = 1 - 2 * k / count, pi * (1 + sqrt(5)) * k + s
        b.append(np.full(count, float(value)))
        g.append(
            np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)
        )
    return np.concatenate(b), np.concatenate(g)


def scheme_3x60():
    """Scheme of golden vector (c)."""
    return scheme([60] * 3, [1000, 2000, 3000])


def scheme_3x90():
    """Three shells of 90 up to 3000."""
    return scheme([90] * 3, [1000, 2000, 3000])


def scheme_mgh():
    """Four shells up to 10000."""
    return scheme([64, 64, 128, 256], [1000, 3000, 5000, 10000])


def scheme_hcp(seed=0):
    """
    HCP-like: 18 b0 at b = 5 among 3 x 90 directions, b jittered by up to 20, shells interleaved.
    """
    rng = np.random.default_rng(seed)
    b, g = scheme([90] * 3, [1000, 2000, 3000], 0)
    mixed = rng.permutation(len(b))
    b, g = np.round((b + rng.uniform(-20, 20, len(b))) / 5)[mixed] * 5, g[mixed]
    where = np.arange(0, len(b), 15)
    u = rng.standard_normal((len(where), 3))
    return np.insert(b, where, 5.0), np.insert(
        g, where, u / np.linalg.norm(u, axis=1, keepdims=True), axis=0
    )


# ---------------------------------------------------------------- golden vectors, reference 9.2


def golden_a():
    """
    Anisotropic N = 6: mu (3,), coefficients (50,), sum aB before normalisation, expected values.
    """
    i = np.arange(50)
    a = np.cos(i) / (1 + i)
    total = a @ oracle.aniso_origin(6)
    return np.array([8e-3, 5e-3, 4e-3]), a / total, total, GOLDEN_A


def golden_b():
    """
    Isotropic N = 6: scale u, coefficients (50,), sum aB before normalisation, expected values.
    """
    i = np.arange(50)
    a = np.cos(i) / (3 * (1 + i))
    a[0] = 1.0
    total = a @ oracle.iso_origin(6)
    return 6e-3, a / total, total, GOLDEN_B


def golden_c():
    """
    GCV case: b (186,), directions, y, tau, mu of the mean tensor; R = I, N = 6; expected values.
    """
    b, g = scheme_3x60()
    k = np.arange(len(b))
    y = mixture_signal(*crossing(0.5 * 180 / pi), b, g) + 0.03 * np.cos(7 * k + 0.3 * k**2)
    return b, g, y, 0.03, np.array([9.09355248769e-3, 6.10797046109e-3, 4.24264068712e-3]), GOLDEN_C


GOLDEN_Q = np.array([[30.0, -20.0, 10.0]])
GOLDEN_R = np.array([[2e-3, 3e-3, 4e-3]])
GOLDEN_V = np.ones((1, 3)) / sqrt(3)
GOLDEN_A = {
    "sum": 1.082352578660, "rtop": 326432.436054, "rtap": 10480.3330715, "rtpp": 38.7994511795, "msd": 1.31596925011e-4,
    "qiv": 1.25209676209e-9, "ng": 0.444613601462, "ng_par": 0.362770496055, "ng_perp": 0.277172427877,
    "lapnorm": 3.92573605962, "e2": 149272.831127, "pa_dti": 0.863923269805, "pa": 0.987093912327,
    "u0": 5.41124834449e-3, "cos_dti": 0.94051535878, "E": 0.0102010844917, "P": 174126.2331,
    "odf0": 0.0513568844363, "odf2": 5.28230337636e-6,
    "cos": {0: 0.805034085507, 3: 0.807887119472, 5: 0.807931055888, 10: 0.807931731219, 20: 0.807931737448},
}  # fmt: skip
GOLDEN_B = {
    "sum": 1.057406742819, "rtop": 253383.210424, "rtap": 4995.88673236, "rtpp": 62.6518404155, "msd": 1.14892663669e-4,
    "qiv": 2.23935494435e-9, "lapnorm": 1.32365881722, "E": 0.311102531111, "P": 187417.599797,
    "odf0": 0.0533343038278, "odf2": -1.71933881342e-6, "cos": 0.965278541684,
}  # fmt: skip
GOLDEN_C = {
    "weight": 0.0590154, "V": 5.56634899e-4, "trace": 33.5249, "ls_residual2": 0.0639342124892, "ls_sum": 1.00531990468,
    0.05: {"rtop": 375320.493, "rtap": 6829.41121, "rtpp": 44.2706448, "msd": 1.33486039e-4, "qiv": 7.30032471e-10,
           "ng": 0.186928659, "ng_par": 0.154192804, "ng_perp": 0.177920741, "lapnorm": 1.24517631, "cos": 0.942748659},
    0.2: {"rtop": 377432.456, "rtap": 6896.46198, "rtpp": 44.745974, "msd": 1.32680136e-4, "qiv": 7.50856394e-10,
          "ng": 0.178019899},
}  # fmt: skip

MOTZKIN = {  # reference 9.6: nonnegative, no certificate by sums of squares; E(0) = 1 at any mu
    (0, 0, 0): 0.25, (2, 0, 0): 0.75 / sqrt(32), (0, 2, 0): 0.75 / sqrt(32), (4, 0, 0): 3 / 8 / sqrt(6),
    (0, 4, 0): 3 / 8 / sqrt(6), (2, 2, 0): 0.375, (4, 2, 0): 0.75 / sqrt(12), (2, 4, 0): 0.75 / sqrt(12),
}  # fmt: skip

# ---------------------------------------------------------------- mixtures of Gaussians, reference
# 9.1


def rotation(axis, degrees):
    """Rotation matrix about a coordinate axis (0, 1, 2)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    out, (i, j) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
    out[i, i], out[j, j], out[i, j], out[j, i] = c, c, -s, s
    return out


def axis_tensor(values, turn=None):
    """
    Tensor (3, 3) in mm2/s from eigenvalues in 1e-3 mm2/s along x, y, z, turned by a rotation
    matrix.
    """
    turn = np.eye(3) if turn is None else turn
    return turn @ np.diag(np.broadcast_to(values, 3) * 1e-3) @ turn.T


def crossing(half_angle, values=(1.7, 0.3, 0.3), fraction=0.5):
    """Fractions and tensors of two bundles at +-half_angle degrees around x in the xy plane."""
    return [fraction, 1 - fraction], [
        axis_tensor(values, rotation(2, s * half_angle)) for s in (1, -1)
    ]


MIXTURES = {
    "(1.7,.3,.3)": ([1.0], [axis_tensor((1.7, 0.3, 0.3))]),
    "(1.7,.5,.2)": ([1.0], [axis_tensor((1.7, 0.5, 0.2))]),
    "(.9,.8,.75)": ([1.0], [axis_tensor((0.9, 0.8, 0.75))]),
    "CSF 3.0": ([1.0], [axis_tensor(3.0)]),
    "X60": crossing(30.0),
    "X90": ([0.6, 0.4], [axis_tensor((1.7, 0.3, 0.3)), axis_tensor((0.3, 1.7, 0.3))]),
    "BiIso": ([0.7, 0.3], [axis_tensor(0.6), axis_tensor(3.0)]),
    "WM3": (
        [0.55, 0.35, 0.1],
        [axis_tensor((2.2, 0.1, 0.1)), axis_tensor((1.5, 0.6, 0.6)), axis_tensor(3.0)],
    ),
}
MIXTURE_COLUMNS = [
    "rtop",
    "rtap",
    "rtpp",
    "msd",
    "qiv",
    "lapnorm",
    "ng",
    "ng_par",
    "ng_perp",
    "sin",
    "pa",
    "pa_dti",
]
MIXTURE_TABLE = {
    "(1.7,.3,.3)": "349267.04 8841.9413 39.501172 1.38e-4 9.3480673e-10 1.9797977 0 0 0 .45709553 .95263283 .95496928",
    "(1.7,.5,.2)": "331343.81 8388.2020 39.501172 1.44e-4 9.4208771e-10 1.9915833 0 0 0 .48441142 .96334892 .96543884",
    "(.9,.8,.75)": "185911.58 3424.4691 54.289168 1.47e-4 3.4486999e-9 .92451956 0 0 0 .04618429 .06580296 .06581776",
    "CSF 3.0": "26291.868 884.19413 29.735402 5.4e-4 9.0092689e-8 1.7602413 0 0 0 0 0 0",
    "X60": "349267.04 6006.9162 44.326920 1.38e-4 9.3480673e-10 1.2431211 "
    ".18347783 .18898270 .18898270 .31979533 .83829516 .88530988",
    "X90": "349267.04 6790.9081 61.313342 1.38e-4 9.3480673e-10 1.2054100 "
    ".21895536 .08494524 .11498190 .28832530 .78878411 .86180209",
    "BiIso": "213653.97 3359.9377 55.463887 2.376e-4 2.2848078e-9 .72089861 .37883820 .24518379 .32931507 0 0 0",
    "WM3": "574285.97 16224.962 36.789721 1.899e-4 2.2293847e-10 3.0225208 "
    ".55795024 .01435743 .54700233 .60815075 .98944993 .87972165",
}


def mixture_signal(fractions, tensors, bvals, bvecs):
    """E of sum f N(0, 2 tau D) at a gradient table, (n,)."""
    terms = (
        f * np.exp(-bvals * np.einsum("ki,ij,kj->k", bvecs, d, bvecs))
        for f, d in zip(fractions, tensors, strict=True)
    )
    return sum(terms)


def mixture_frame(fractions, tensors, tau):
    """Mu (3,) and R (3, 3) of the mean tensor."""
    values, vectors = np.linalg.eigh(np.tensordot(fractions, tensors, 1))
    return np.sqrt(2 * tau * values[::-1]), vectors[:, ::-1]


def mixture_truth(fractions, tensors, tau, mu=None, frame=None):
    """
    Every index of a mixture; reference Gaussian and axis e1 from (mu, frame), by default the mean
    tensor's.
    """
    f, d = np.asarray(fractions, float), np.asarray(tensors, float)
    if mu is None:
        mu, frame = mixture_frame(f, d, tau)
    e, det, inv = frame[:, 0], np.linalg.det(d), np.linalg.inv(d)
    at_zero = f * (4 * pi * tau) ** -1.5 * det**-0.5
    cov = 2 * tau * d
    p2 = lap = 0.0
    for fi, si in zip(f, cov, strict=True):
        for fj, sj in zip(f, cov, strict=True):
            c = np.linalg.inv(np.linalg.inv(si) + np.linalg.inv(sj))
            overlap = fi * fj * (2 * pi) ** -1.5 * np.linalg.det(si + sj) ** -0.5
            p2 += overlap
            lap += 16 * pi**4 * overlap * (np.trace(c) ** 2 + 2 * np.trace(c @ c))
    weight = f * np.linalg.det(cov) ** -0.5
    s = frame.T @ np.linalg.inv(cov) @ frame
    s0 = np.diag(1 / np.square(mu))

    def sine(axes):
        part, part0 = s[:, axes][:, :, axes], s0[axes][:, axes]
        cross = weight @ np.linalg.det(part + part0) ** -0.5
        own = weight @ np.linalg.det(part[:, None] + part[None]) ** -0.5 @ weight
        return sqrt(max(0.0, 1 - cross**2 / (own * np.linalg.det(2 * part0) ** -0.5)))

    cos2, u0 = min(1.0, spherical_mean_norm2(f, cov) / p2), oracle.isotropic_scale(mu)
    return {
        "rtop": at_zero.sum(),
        "rtap": np.sum(f / (4 * pi * tau) * (det * (e @ inv @ e)) ** -0.5),
        "rtpp": np.sum(f * (4 * pi * tau * (e @ d @ e)) ** -0.5),
        "msd": 2 * tau * np.sum(f * np.trace(d, axis1=1, axis2=2)),
        "qiv": 8 * pi**2 * tau / np.sum(at_zero * np.trace(inv, axis1=1, axis2=2)),
        "lapnorm": lap,
        "e2": p2,
        "ng": sine([0, 1, 2]),
        "ng_par": sine([0]),
        "ng_perp": sine([1, 2]),
        "sin": sqrt(1 - cos2),
        "pa": oracle.pa_rescale(cos2),
        "pa_dti": oracle.pa_rescale(8 * u0**3 * np.prod(mu) / np.prod(np.square(mu) + u0**2)),
    }


def spherical_mean_norm2(fractions, covariances):
    """
    4 pi int r^2 Pbar(r)^2 dr; Pbar by angular quadrature over an octant, long axis on z: turning
    changes nothing.
    """
    z, wz = special.roots_legendre(300)
    z, wz = (z + 1) / 2, wz / 2
    phi = (np.arange(24) + 0.5) * pi / 48
    top = 9 * sqrt(np.max(np.linalg.eigvalsh(covariances)))
    r, wr = special.roots_legendre(400)
    r, wr = (r + 1) * top / 2, wr * top / 2
    mean = np.zeros_like(r)
    for f, cov in zip(fractions, covariances, strict=True):
        c, b, a = 1 / np.linalg.eigvalsh(
            cov
        )  # inverse variances, ascending eigenvalues: a belongs to the long axis
        x2 = (1 - z[:, None] ** 2) * (b * np.cos(phi) ** 2 + c * np.sin(phi) ** 2) + a * z[
            :, None
        ] ** 2
        profile = np.exp(-(r[:, None, None] ** 2) * x2 / 2).mean(2) @ wz
        mean += f * (2 * pi) ** -1.5 * sqrt(a * b * c) * profile
    return 4 * pi * np.sum(wr * r**2 * mean**2)


# ---------------------------------------------------------------- restricted, reference 9.3; x = 2
# pi q R (planes: L)


def restricted_signal(geometry, x):
    """Long-time narrow-pulse signal of 'planes', 'cylinder', 'sphere'."""
    x = np.where(np.abs(x) < 1e-4, 1e-4, x)
    if geometry == "planes":
        return 2 * (1 - np.cos(x)) / x**2
    return (
        (2 * special.j1(x) / x) ** 2
        if geometry == "cylinder"
        else (3 * special.spherical_jn(1, x) / x) ** 2
    )


def restricted_truth(geometry, size):
    """
    MSD (of the restricted axes) and zero-displacement index at long time; size is R, of the planes
    L.
    """
    if geometry == "planes":
        return size**2 / 6, 1 / size
    return (
        (size**2, 1 / (pi * size**2))
        if geometry == "cylinder"
        else (1.2 * size**2, 3 / (4 * pi * size**3))
    )


def restricted_propagator(geometry, size, r):
    """Long-time propagator over the restricted axes at distance r."""
    r = np.asarray(r, float)
    if geometry == "planes":
        return np.maximum(size - np.abs(r), 0) / size**2
    t = np.minimum(r / (2 * size), 1.0)
    if geometry == "cylinder":
        return 2 * size**2 * (np.arccos(t) - t * np.sqrt(1 - t**2)) / (pi * size**2) ** 2
    return 3 / (4 * pi * size**3) * (1 - 1.5 * t + 0.5 * t**3)


def restricted_sum(geometry, x, dt, n_max=40, k_max=40):
    """Finite-time narrow-pulse signal; dt = D t / R^2 (planes: D t / L^2)."""
    x = np.asarray(x, float)
    out = restricted_signal(geometry, x)
    if geometry == "planes":
        for k in range(1, k_max + 1):
            rate = (k * pi) ** 2
            out = (
                out
                + 4 * x**2 * np.exp(-rate * dt) * (1 - (-1) ** k * np.cos(x)) / (x**2 - rate) ** 2
            )
        return out
    for n in range(n_max + 1):
        if geometry == "cylinder":
            zeros = special.jnp_zeros(n, k_max)
            factor = 4.0 if n == 0 else 8 * zeros**2 / (zeros**2 - n**2)
            slope = special.jvp(n, x)
        else:
            zeros = spherical_zeros(n, k_max)
            factor = 6 * (2 * n + 1) * zeros**2 / (zeros**2 - n * (n + 1))
            slope = special.spherical_jn(n, x, derivative=True)
        for beta, c in np.broadcast(zeros, factor):
            out = out + c * np.exp(-(beta**2) * dt) * (x * slope / (x**2 - beta**2)) ** 2
    return out


def spherical_zeros(n, count):
    """First positive zeros of the derivative of the spherical Bessel function j_n."""

    def slope(t):
        return special.spherical_jn(n, t, derivative=True)

    grid = np.arange(max(0.5, 0.9 * n), (count + n + 2) * pi, 0.1)
    value = slope(grid)
    turn = np.flatnonzero(value[:-1] * value[1:] < 0)[:count]
    return np.array([optimize.brentq(slope, grid[i], grid[i + 1], xtol=1e-14) for i in turn])


PROJECTED_ORDERS = (0, 2, 4, 6, 8, 10, 12, 20, 40, 80)
PROJECTED = {
    "planes": (0.9563, 0.9159, 0.9055, 0.9271, 0.9456, 0.9523, 0.9521, 0.9601, 0.9714, 0.9799),
    "cylinder": (0.9524, 0.8611, 0.8373, 0.8812, 0.9123, 0.9173, 0.9132, 0.9360, 0.9529, 0.9646),
    "sphere": (0.9714, 0.8191, 0.7805, 0.8495, 0.8896, 0.8880, 0.8800, 0.9162, 0.9333, 0.9537),
}


def projected_ratio(geometry, order):
    """
    Zero-displacement index of the L2 projection on MAP(order) over the truth, mu at the true
    per-axis variance.

    In d dimensions the radial functions are L_k^(d/2-1)(r^2/mu^2) exp(-r^2/2mu^2), k = 0..order/2.
    """
    d = {"planes": 1, "cylinder": 2, "sphere": 3}[geometry]
    msd, at_zero = restricted_truth(geometry, 1.0)
    mu, alpha = sqrt(msd / d), d / 2 - 1
    t, w = special.roots_legendre(400)
    end = 1.0 if d == 1 else 2.0
    r, w = (t + 1) * end / 2, w * end / 2
    value = 0.0
    for k in range(order // 2 + 1):
        radial = special.eval_genlaguerre(k, alpha, (r / mu) ** 2) * np.exp(-((r / mu) ** 2) / 2)
        norm2 = mu**d / 2 * gamma(k + d / 2) / factorial(k)
        overlap = np.sum(w * restricted_propagator(geometry, 1.0, r) * radial * r ** (d - 1))
        value += overlap / norm2 * special.eval_genlaguerre(k, alpha, 0.0)
    return value / at_zero
