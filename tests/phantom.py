"""
Simulated voxels and gradient tables for the tests of the fit. Plain NumPy on top of the oracle's
schemes.
"""

import numpy as np
import truth

import mapmri_nb as mapmri
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


def random_rotation(rng, count=None):
    """Rotations (count, 3, 3), or one (3, 3), of determinant +1."""
    q = np.linalg.qr(rng.normal(size=(count or 1, 3, 3)))[0]
    q[:, :, 2] *= np.sign(np.linalg.det(q))[:, None]
    return q if count else q[0]


def signals(count, bvals, bvecs, seed=0, noise=0.02):
    """
    Crossings of two bundles with some free water in random frames, S0 100 to 1000, noise in parts
    of S0: (count, n).
    """
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


def small_scheme():
    """Three shells of 32 and 4 b0, the first of them not in front."""
    b, g = truth.scheme([32] * 3, [1000, 2000, 3000], 4)
    moved = np.roll(np.arange(len(b)), 2)
    return b[moved], g[moved]


def odd_schemes():
    """Names to (b, g): schemes that trip up code written for neat shells."""
    rng = np.random.default_rng(5)
    b3, g3 = truth.scheme([60] * 3, [1000, 2000, 3000])
    grid = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3), -1).reshape(-1, 3).astype(float)
    grid = grid[(grid**2).sum(1) <= 16]
    radius = np.sqrt((grid**2).sum(1))
    dsi = 6000 * radius**2 / 16, grid / np.where(radius > 0, radius, 1)[:, None]
    upper = grid[:, 2] >= 0
    shells = truth.scheme([20] * 15, np.linspace(400, 6000, 15))
    mixed = rng.permutation(len(b3))
    jitter = np.maximum(b3 + rng.uniform(-60, 60, len(b3)) * (b3 > 0), 0)
    near = np.where(b3 > 0, b3, 15.0)
    directions = np.where(b3[:, None] > 0, g3, unit(rng.normal(size=g3.shape)))
    half, twice = truth.scheme([30] * 3, [1000, 2000, 3000]), []
    for part in half:
        twice.append(np.concatenate([part, part]))
    return {
        "3 shells": (b3, g3),
        "dsi": dsi,
        "dsi, upper half": (dsi[0][upper], dsi[1][upper]),
        "2 shells": truth.scheme([60, 60], [1200, 3000]),
        "15 shells": shells,
        "jitter": (jitter, g3),
        "doubled": tuple(twice),
        "b0 anywhere": (b3[mixed], g3[mixed]),
        "b0 at 15": (near, directions),
    }


def same(a, b):
    """True if two fits are equal bit for bit, NaN equal to NaN."""
    one, two = a.rows(), b.rows()
    return one.keys() == two.keys() and all(
        np.array_equal(one[k], two[k], equal_nan=True) for k in one
    )
