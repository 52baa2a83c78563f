"""Grid."""
from functools import lru_cache
from math import sqrt
import numpy as np
from numpy.typing import NDArray
from .kernels.ordering import index_table, frozen, class_permutation, class_bounds, block_index_table
from .kernels import qp
Array = NDArray[np.float64]

def grid_points(order, radius=None, spacing=None, bcc=True):
    radius = sqrt(2 * order + 1) + 1.4 if radius is None else radius
    spacing = 3.2/sqrt(2*order+1) if spacing is None else spacing
    k = int(radius / spacing)
    axis = np.arange(-k-1, k + 2) * spacing
    u = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    if bcc:
        u = np.vstack([u, u + spacing/2])
    x, y, z = u.T
    half = (z > 1e-9) | ((abs(z) < 1e-9) & ((y > 1e-9) | ((abs(y) < 1e-9) & (x >= -1e-9))))
    return u[half & (np.sum(u * u, 1) <= radius**2 * (1 + 1e-12))]

def constraint_rows(order, u, normalise=True):
    t = index_table(order)
    h = np.empty((3, order + 1, len(u)))
    h[:, 0] = 1
    h[:, 1] = sqrt(2) * u.T
    for n in range(1, order):
        h[:, n + 1] = sqrt(2 / (n + 1)) * u.T * h[:, n] - sqrt(n / (n + 1)) * h[:, n - 1]
    K = h[0, t[:, 0]] * h[1, t[:, 1]] * h[2, t[:, 2]]
    K = K.T
    return np.ascontiguousarray(K / np.linalg.norm(K, axis=1)[:, None]) if normalise else K

def octant_rows(order, u):
    o = np.ascontiguousarray(u[(u >= 0).all(1)].T)
    idx = block_index_table(order).copy()
    v = np.empty((len(idx), o.shape[1]))
    qp.fill_rows(o, np.ones(3), idx, np.empty((3*(order+1)+1, o.shape[1])), v)
    return qp.GridRows(v, class_permutation(order).copy(), class_bounds(order).copy())
