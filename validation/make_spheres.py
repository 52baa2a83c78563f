"""Generate mapmri_nb/data/spheres.npz: antipodally symmetric direction sets by electrostatic
repulsion.

Each set of n directions is stored as its first half; the second half are the antipodes. Run from
the repository root.
"""

from pathlib import Path

import numpy as np
from scipy.optimize import minimize

SIZES = (100, 362, 724)


def energy(flat):
    """Coulomb energy of unit charges at the directions and their antipodes, and its gradient."""
    y = flat.reshape(-1, 3)
    length = np.linalg.norm(y, axis=1, keepdims=True)
    x = y / length
    total, force = 0.0, np.zeros_like(x)
    for sign in (1.0, -1.0):
        difference = x[:, None] - sign * x[None]
        square = (difference**2).sum(-1)
        if sign > 0:
            np.fill_diagonal(square, np.inf)
        total += 0.5 * (square**-0.5).sum()
        force -= (difference * square[..., None] ** -1.5).sum(1)
    return total, ((force - (force * x).sum(1, keepdims=True) * x) / length).ravel()


def half_set(n):
    """Half of an n-point set: a spiral over the upper hemisphere, relaxed, oriented towards +z."""
    k = np.arange(n // 2)
    z, angle = 1 - (k + 0.5) / (n // 2), np.pi * (1 + 5**0.5) * k
    start = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)
    result = minimize(
        energy,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 4000},
    )
    x = result.x.reshape(-1, 3)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x *= np.where(x[:, 2:] < 0, -1.0, 1.0)
    print(f"{n}: energy {energy(start.ravel())[0]:.3f} -> {result.fun:.3f} ({result.message})")
    return x[np.argsort(-x[:, 2])]


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "mapmri_nb" / "data" / "spheres.npz"
    np.savez_compressed(target, **{f"half{n}": half_set(n) for n in SIZES})
