"""Simulated voxels and gradient tables, modes, and what makes two fits the same."""

import numpy as np
import oracle
import truth

import mapmri_nb as mapmri
from mapmri_nb.kernels import blocks
from mapmri_nb.testing.strategies import random_rotation as random_rotation
from mapmri_nb.testing.strategies import unit as unit

TAU = 0.03
BASES = ("anisotropic", "isotropic")
WEIGHTS = {"0.05": 0.05, "0.2": 0.2, "GCV": "gcv", "array": [0.01, 0.05, 0.2]}
MODES = {}  # every mode's options by its name
for positivity, plain, regularised in (
    (None, "MAP", "MAPL"),
    ("grid", "CMAP", "CMAPL"),
    ("global", "MAP+", "MAPL+"),
):
    MODES[plain] = {"laplacian": None, "positivity": positivity}
    MODES |= {
        f"{regularised} {name}": {"laplacian": w, "positivity": positivity}
        for name, w in WEIGHTS.items()
    }
INDEX_NAMES = ("rtop", "rtap", "rtpp", "msd", "qiv", "ng", "ng_par", "ng_perp", "lapnorm")


def table(bvals, bvecs, tau=TAU, **options):
    """Gradient table at one diffusion time."""
    return mapmri.GradientTable(bvals, bvecs, tau=tau, **options)


def signals(count, bvals, bvecs, seed=0, noise=0.02):
    """Noisy crossings of two bundles and some free water, S0 100 to 1000: (count, n)."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, len(bvals)))
    for v in range(count):
        turn = random_rotation(rng)
        values = [np.sort(rng.uniform(0.2, 2.0, 3))[::-1] for _ in range(2)]
        tensors = [
            truth.axis_tensor(d, turn @ truth.rotation(2, k * 60)) for k, d in enumerate(values)
        ]
        fractions = rng.dirichlet([5.0, 3.0, 0.5])
        clean = truth.mixture_signal(fractions, [*tensors, truth.axis_tensor(3.0)], bvals, bvecs)
        out[v] = rng.uniform(100, 1000) * np.maximum(
            clean + noise * rng.normal(size=len(bvals)), 1e-3
        )
    return out


FIBRE = np.array([1.0, 1, 0.5]) / 1.5
OBLIQUE = np.eye(4)  # an affine of determinant above 0
OBLIQUE[:3, :3] = random_rotation(np.random.default_rng(8)) * [2, 2, 2.5]


def one_fibre(bvals, bvecs):
    """Clean signal (n,) of one fibre along FIBRE, S0 100."""
    D = 2e-4 * np.eye(3) + 1.5e-3 * np.outer(FIBRE, FIBRE)
    return 100 * truth.mixture_signal([1.0], [D], bvals, bvecs)


def apart(one, two):
    """Degrees between two axes."""
    return np.degrees(np.arccos(min(1.0, abs(one @ two))))


def hard(bvals, clean):
    """Signals (n,) that break solvers, by name, some of them made of a clean one."""
    rng, n = np.random.default_rng(1), len(bvals)
    at, b0 = np.arange(n), np.asarray(bvals) < 50
    air = {f"noise {k}": np.abs(rng.normal(size=n) + 1j * rng.normal(size=n)) for k in range(4)}
    return air | {
        "clean": clean,
        "noise about zero": rng.normal(size=n) + np.where(b0, 3.0, 0.0),
        "constant": np.full(n, 100.0),
        "one spike": np.where(at == n // 2, 1e4, clean),
        "spikes": np.where(at % 7 == 3, 1e4, clean),
        "huge spike": np.where(at == n // 2, 1e12, clean),
        "growing": np.exp(np.asarray(bvals) / 1000),
        "growing far": 100 * np.exp(np.linspace(0, 30, n)),
        "alternating": np.where(at % 2, 1.0, -1.0),
        "negative": -clean,
        "zeros": np.zeros(n),
        "one sample": np.where(at == n // 2, clean, np.nan),
        "one signal": np.where(at == n // 2, 1.0, 0.0),
        "b0 alone": np.where(b0, 100.0, 0.0),
        "no b0": np.where(b0, 1e-9, 100.0),
        "gone at once": 100 * np.exp(-0.05 * np.asarray(bvals)),
        "tiny": 1e-150 * clean,
        "tinier": 1e-250 * clean,
        "huge": 1e150 * clean,
        "denormal": np.full(n, 5e-324),
        "extremes": np.where(rng.random(n) < 0.5, 1e300, 1e-300),
        "missing": np.where(at % 3 == 0, np.nan, clean),
        "infinite": np.where(at == 9, np.inf, clean),
        "all infinite": np.full(n, np.inf),
        "all missing": np.full(n, np.nan),
        "six decades": np.exp(5 * rng.normal(size=n)),
    }


def small_scheme():
    """Three shells of 32 and 4 b0, the first of them not in front."""
    b, g = truth.scheme([32] * 3, [1000, 2000, 3000], 4)
    moved = np.roll(np.arange(len(b)), 2)
    return b[moved], g[moved]


def problem(y, b, g, order, weight, isotropic=False):
    """H, M'd, B and d'd of |M c - d|^2 + weight c'Lc, B'c = 1, of one voxel, dense: d = y / S0 in
    the frame and at the scale of its tensor.
    """
    mu, R, values = oracle.fit_tensor(y, b, g, TAU)
    d = y / oracle.scale_S0(y, b, g, R @ np.diag(values) @ R.T)
    mu = np.full(3, oracle.isotropic_scale(mu)) if isotropic else mu
    M = oracle.phi_matrix(order, mu, oracle.qvectors(b, g, TAU) @ R)
    H = M.T @ M + weight * oracle.laplacian_matrix(order, mu)
    return H, M.T @ d, oracle.aniso_origin(order), float(d @ d)


def rows_of(y, **more):
    """The kernels' data: samples (V, n) of one weight, no scales and no field."""
    none = np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3, 3))
    return blocks.Data(y, np.ones((1, y.shape[1])), *none, **more)


def same(a, b):
    """True if two fits are equal bit for bit, NaN equal to NaN."""
    one, two = a.rows(), b.rows()
    return one.keys() == two.keys() and all(
        np.array_equal(one[k], two[k], equal_nan=True) for k in one
    )
