"""The Laplacian matrix, of one voxel and by the tables of a block, against the oracle."""

import numpy as np
import oracle
import pytest

from mapmri_nb.kernels import lanes, laplacian
from mapmri_nb.kernels.ordering import class_permutation, index_table


def from_tables(order, mu):
    """Dense L in DIPY's order of the voxels mu (3, V): (V, n, n)."""
    t, place = laplacian.tables(order), class_permutation(order).astype(int)
    f = np.full((6, lanes.WIDTH), np.nan)
    laplacian.factors(np.pad(mu, ((0, 0), (0, lanes.WIDTH - mu.shape[1])), "edge"), f)
    out = np.zeros((mu.shape[1], len(place), len(place)))
    row, column = place[t.row.astype(int)], place[t.column.astype(int)]
    for r, c, k, value in zip(row, column, t.factor.astype(int), t.coefficient, strict=True):
        out[:, r, c] += value * f[k, : len(out)]
        if r != c:
            out[:, c, r] += value * f[k, : len(out)]
    return out


@pytest.mark.nojit
@pytest.mark.parametrize("order", [0, 2, 6, 10])
def test_tables_and_one_voxel_agree_with_the_oracle(order, rng):
    mu = rng.uniform(3e-3, 12e-3, (3, 3))
    for l, dense in enumerate(from_tables(order, mu)):
        truth = oracle.laplacian_matrix(order, mu[:, l])
        assert np.abs(dense - truth).max() < 1e-14 * np.abs(truth).max()
        one = np.full_like(truth, np.nan)
        laplacian.matrix(mu[:, l].copy(), index_table(order), one)
        assert np.abs(one - truth).max() < 1e-14 * np.abs(truth).max()
