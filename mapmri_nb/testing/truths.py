"""Closed forms, in plain NumPy and SciPy: mixtures of Gaussians, restricted diffusion, golden
vectors. Nothing here calls the library's kernels. Units: mm, s, 1/mm.
"""

from __future__ import annotations

from itertools import product
from math import pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

# ---------------------------------------------------------------- golden vectors: radial order 6


def golden_a() -> tuple[Array, Array]:
    """Anisotropic: mu (3,), coefficients (50,) before division by their sum a'B, in the frame R =
    I; the indices are GOLDEN_A.
    """
    i = np.arange(50)
    return np.array([8e-3, 5e-3, 4e-3]), np.cos(i) / (1 + i)


def golden_b() -> tuple[Array, Array]:
    """Isotropic: mu (3,), coefficients (50,), as of `golden_a`; the indices are GOLDEN_B."""
    i = np.arange(50)
    a = np.cos(i) / (3 * (1 + i))
    a[0] = 1.0
    return np.full(3, 6e-3), a


GOLDEN_Q = np.array([[30.0, -20.0, 10.0]])
GOLDEN_R = np.array([[2e-3, 3e-3, 4e-3]])
GOLDEN_V = np.ones((1, 3)) / sqrt(3)
GOLDEN_A = {
    "sum": 1.082352578660, "rtop": 326432.436054, "rtap": 10480.3330715, "rtpp": 38.7994511795,
    "msd": 1.31596925011e-4, "qiv": 1.25209676209e-9, "ng": 0.444613601462,
    "ng_par": 0.362770496055, "ng_perp": 0.277172427877, "lapnorm": 3.92573605962,
    "e2": 149272.831127, "pa_dti": 0.863923269805, "pa": 0.987093912327, "u0": 5.41124834449e-3,
    "cos_dti": 0.94051535878, "E": 0.0102010844917, "P": 174126.2331, "odf0": 0.0513568844363,
    "odf2": 5.28230337636e-6,
    "cos": {0: 0.805034085507, 3: 0.807887119472, 5: 0.807931055888, 10: 0.807931731219,
            20: 0.807931737448},
}  # fmt: skip
GOLDEN_B = {
    "sum": 1.057406742819, "rtop": 253383.210424, "rtap": 4995.88673236, "rtpp": 62.6518404155,
    "msd": 1.14892663669e-4, "qiv": 2.23935494435e-9, "lapnorm": 1.32365881722,
    "E": 0.311102531111, "P": 187417.599797, "odf0": 0.0533343038278, "odf2": -1.71933881342e-6,
    "cos": 0.965278541684,
}  # fmt: skip

# ---------------------------------------------------------------- propagator anisotropy


def pa_rescale(cos2: float, eps: float = 0.4) -> float:
    """PA from cos^2 of the angle between P and its isotropic counterpart."""
    t = sqrt(max(0.0, 1 - cos2))
    return t ** (3 * eps) / (1 - 3 * t**eps + 3 * t ** (2 * eps))


def isotropic_scale(mu: Any) -> float:
    """u0: positive root of the cubic, closed form."""
    x, y, z = np.square(mu)
    a, b = (x + y + z) / 3, -(x * y + x * z + y * z) / 3
    p, s = b - a**2 / 3, 2 * a**3 / 27 - a * b / 3 - x * y * z
    angle = np.arccos(np.clip(3 * s / (2 * p) * sqrt(-3 / p), -1, 1))
    return sqrt(2 * sqrt(-p / 3) * np.cos(angle / 3) - a / 3)


# ---------------------------------------------------------------- mixtures of Gaussians


def rotation(axis: int, degrees: float) -> Array:
    """Rotation matrix about a coordinate axis (0, 1, 2)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.roll([[1, 0, 0], [0, c, -s], [0, s, c]], (axis, axis), (0, 1))


def axis_tensor(values: Any, turn: Array | None = None) -> Array:
    """Tensor (3, 3) in mm2/s: eigenvalues in 1e-3 mm2/s along x, y, z, turned by a rotation."""
    turn = np.eye(3) if turn is None else turn
    return turn @ np.diag(np.broadcast_to(values, 3) * 1e-3) @ turn.T


def crossing(
    half_angle: float, values: Any = (1.7, 0.3, 0.3), fraction: float = 0.5
) -> tuple[list[float], list[Array]]:
    """Fractions and tensors of two bundles at +-half_angle degrees around x in the xy plane."""
    turns = [rotation(2, s * half_angle) for s in (1, -1)]
    return [fraction, 1 - fraction], [axis_tensor(values, turn) for turn in turns]


def mixture_signal(fractions: Any, tensors: Any, bvals: Any, bvecs: Any) -> Array:
    """E of sum f N(0, 2 tau D) at a gradient table, (n,)."""
    terms = (
        f * np.exp(-bvals * np.einsum("ki,ij,kj->k", bvecs, d, bvecs))
        for f, d in zip(fractions, tensors, strict=True)
    )
    return sum(terms)


def mixture_frame(fractions: Any, tensors: Any, tau: float) -> tuple[Array, Array]:
    """Mu (3,) and R (3, 3) of the mean tensor."""
    values, vectors = np.linalg.eigh(np.tensordot(fractions, tensors, 1))
    return np.sqrt(2 * tau * values[::-1]), vectors[:, ::-1]


def mixture_truth(
    fractions: Any, tensors: Any, tau: float, mu: Any = None, frame: Any = None
) -> dict[str, float]:
    """Every index of a mixture; reference Gaussian and axis e1 from (mu, frame), by default the
    mean tensor's.
    """
    f, d = np.asarray(fractions, float), np.asarray(tensors, float)
    if mu is None:
        mu, frame = mixture_frame(f, d, tau)
    e, cov = frame[:, 0], 2 * tau * d
    det, inv = np.linalg.det(d), np.linalg.inv(d)
    at_zero = f * (4 * pi * tau) ** -1.5 * det**-0.5
    p2 = lap = 0.0
    for (fi, si), (fj, sj) in product(zip(f, cov, strict=True), repeat=2):
        c = np.linalg.inv(np.linalg.inv(si) + np.linalg.inv(sj))
        overlap = fi * fj * (2 * pi) ** -1.5 * np.linalg.det(si + sj) ** -0.5
        p2 += overlap
        lap += 16 * pi**4 * overlap * (np.trace(c) ** 2 + 2 * np.trace(c @ c))
    weight, s0 = f * np.linalg.det(cov) ** -0.5, np.diag(1 / np.square(mu))
    s = frame.T @ np.linalg.inv(cov) @ frame

    def sine(axes: list[int]) -> float:
        part, part0 = s[:, axes][:, :, axes], s0[axes][:, axes]
        cross = weight @ np.linalg.det(part + part0) ** -0.5
        own = weight @ np.linalg.det(part[:, None] + part[None]) ** -0.5 @ weight
        return sqrt(max(0.0, 1 - cross**2 / (own * np.linalg.det(2 * part0) ** -0.5)))

    cos2, u0 = min(1.0, spherical_mean_norm2(f, cov) / p2), isotropic_scale(mu)
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
        "pa": pa_rescale(cos2),
        "pa_dti": pa_rescale(8 * u0**3 * np.prod(mu) / np.prod(np.square(mu) + u0**2)),
    }


def spherical_mean_norm2(fractions: Any, covariances: Array) -> float:
    """4 pi int r^2 Pbar(r)^2 dr; Pbar by angular quadrature over an octant, long axis on z: turning
    changes nothing.
    """
    (z, wz), (r, wr) = (special.roots_legendre(count) for count in (300, 400))
    z, wz = (z + 1) / 2, wz / 2
    phi = (np.arange(24) + 0.5) * pi / 48
    top = 9 * sqrt(np.max(np.linalg.eigvalsh(covariances)))
    r, wr = (r + 1) * top / 2, wr * top / 2
    mean = np.zeros_like(r)
    for f, cov in zip(fractions, covariances, strict=True):
        c, b, a = 1 / np.linalg.eigvalsh(cov)  # inverse variances: a belongs to the long axis
        across = b * np.cos(phi) ** 2 + c * np.sin(phi) ** 2
        x2 = (1 - z[:, None] ** 2) * across + a * z[:, None] ** 2
        profile = np.exp(-(r[:, None, None] ** 2) * x2 / 2).mean(2) @ wz
        mean += f * (2 * pi) ** -1.5 * sqrt(a * b * c) * profile
    return 4 * pi * np.sum(wr * r**2 * mean**2)


# ---------------------------------------------------------------- restricted diffusion


def restricted_signal(geometry: str, x: Any) -> Array:
    """Long-time narrow-pulse signal of 'planes' (x = 2 pi q L), 'cylinder', 'sphere' (2 pi q R)."""
    x = np.where(np.abs(x) < 1e-4, 1e-4, x)
    if geometry == "planes":
        return 2 * (1 - np.cos(x)) / x**2
    wave = 2 * special.j1(x) if geometry == "cylinder" else 3 * special.spherical_jn(1, x)
    return (wave / x) ** 2


def restricted_truth(geometry: str, size: float) -> tuple[float, float]:
    """MSD (of the restricted axes), zero-displacement index at long time; size R, of planes L."""
    return {
        "planes": (size**2 / 6, 1 / size),
        "cylinder": (size**2, 1 / (pi * size**2)),
        "sphere": (1.2 * size**2, 3 / (4 * pi * size**3)),
    }[geometry]


def restricted_propagator(geometry: str, size: float, r: Any) -> Array:
    """Long-time propagator over the restricted axes at distance r."""
    r = np.asarray(r, float)
    if geometry == "planes":
        return np.maximum(size - np.abs(r), 0) / size**2
    t = np.minimum(r / (2 * size), 1.0)
    if geometry == "cylinder":
        return 2 * (np.arccos(t) - t * np.sqrt(1 - t**2)) / (pi * size) ** 2
    return 3 / (4 * pi * size**3) * (1 - 1.5 * t + 0.5 * t**3)
