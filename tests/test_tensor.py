"""The scale tensor: eigenproblem, isotropic scale, weighted fit, S0."""

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose
from phantom import TAU

from mapmri_nb.kernels import lanes, tensor

PACKED = ([0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 1, 2])


def matrices(rng):
    """Symmetric matrices: random, nearly degenerate, degenerate, singular, of any scale."""
    spectra = [rng.normal(size=3) for _ in range(40)]
    spectra += [(1.7, 0.3, 0.3), (1, 1, 1), (2, 2, 1), (1, 1 + 1e-12, 1 - 1e-9), (1, 0, 0)]
    spectra += [(0, 0, 0), (1e9, 1, 1e-9), (1, -1, -2)]
    for values in spectra:
        for turn in (np.eye(3), np.eye(3)[[2, 0, 1]], phantom.random_rotation(rng)):
            yield rng.choice([1.0, 1e-9, 1e9]) * turn @ np.diag(values) @ turn.T


@pytest.mark.nojit
def test_eigenproblem(rng):
    for matrix in matrices(rng):
        matrix = (matrix + matrix.T) / 2
        size = np.abs(matrix).max()
        values, frame = np.empty(3), np.empty((3, 3))
        tensor.eigen3(np.ascontiguousarray(matrix[PACKED]), values, frame)
        assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1], atol=4e-15 * size)
        assert_allclose(frame @ np.diag(values) @ frame.T, matrix, atol=4e-15 * size)
        assert_allclose(frame.T @ frame, np.eye(3), atol=4e-15)
        assert np.linalg.det(frame) == pytest.approx(1, abs=1e-14)
        assert tensor.determinant(frame) == pytest.approx(1, abs=1e-14)


@pytest.mark.nojit
def test_isotropic_scale(rng):
    for _ in range(300):
        mu = 5e-3 * 10 ** rng.uniform(-1, 1, 3)  # tensors of anisotropy up to 1e4
        if rng.random() < 0.2:
            mu[:] = mu[0]
        elif rng.random() < 0.3:
            mu[1] = mu[2]
        u = tensor.isotropic_scale(mu) ** 2
        square = mu**2
        overlap = (square - u) / (square + u)  # of the two Gaussians: stationary
        assert abs(overlap.sum()) <= 1e-11
        assert np.sqrt(u) == pytest.approx(oracle.isotropic_scale(mu), rel=1e-11)
    assert tensor.isotropic_scale(np.full(3, 6e-3)) == 6e-3
    truth.assert_digits(tensor.isotropic_scale(np.array([8e-3, 5e-3, 4e-3])), "5.41124834449e-3")


def fit_tensors(y, b, g, threshold=2100, b0_threshold=50):
    """Tensors (V, 6) in mm2/s, log S0 and tables by the kernels; NaN samples are missing."""
    t = tensor.tables(b, g, b <= threshold, b <= b0_threshold)
    block, weight = (lanes.empty(len(b), lanes.padded(len(y))) for _ in range(2))
    block[:, : len(y)], weight[:, : len(y)] = np.nan_to_num(y).T, np.isfinite(y).T
    block[:, len(y) :], weight[:, len(y) :] = block[:, :1], weight[:, :1]
    work = tensor.workspace(t.pinv.shape[1], block.shape[1])
    plain = bool(np.isfinite(y).all() and (y > 0).all())
    tensor.fit_tensor(t, block, weight, plain, work)
    return work.b[:6, : len(y)].T * tensor.UNIT, work.b[6, : len(y)], t, block, weight


@pytest.mark.nojit
@pytest.mark.parametrize("threshold", [2100, 1100, 1e9])
@pytest.mark.parametrize("whole", [True, False])
def test_fit_against_the_oracle(threshold, whole, rng):
    b, g = truth.scheme_hcp()
    y = phantom.signals(6, b, g, seed=2)
    for row in y[:0] if whole else y[::2]:  # missing, zero and negative samples
        row[rng.choice(len(b), 12, replace=False)] = np.repeat([np.nan, 0.0, -3.0], 4)
    got, logs, *_ = fit_tensors(y, b, g, threshold)
    for v in range(len(y)):
        _, frame, values = oracle.fit_tensor(y[v], b, g, TAU, threshold, floor=-np.inf)
        want = frame @ np.diag(values) @ frame.T
        assert_allclose(got[v], want[PACKED], atol=1e-11 * np.abs(want).max())
    assert np.isfinite(logs).all()


def test_signal_at_origin(rng):
    """b0 at b = 15 are brought to b = 0; missing ones do not count; none left is NaN."""
    b, g = phantom.small_scheme()
    g = np.where(b[:, None] > 0, g, np.roll(g, 7, axis=0))
    b = np.where(b > 0, b, 15.0)
    y = phantom.signals(5, b, g, seed=4)
    where = np.flatnonzero(b <= 50)
    y[1, where[:3]] = np.nan
    y[2, where] = np.nan
    got, _, t, block, weight = fit_tensors(y, b, g)
    D, S0 = lanes.empty(6, block.shape[1]), lanes.empty(1, block.shape[1])
    D[:, : len(y)] = got.T
    tensor.signal_at_origin(t, block, weight, D, S0)
    S0 = S0[0]
    for v in (0, 1, 3, 4):
        full = np.empty((3, 3))
        full[PACKED] = got[v]
        full[PACKED[::-1]] = got[v]
        assert S0[v] == pytest.approx(oracle.scale_S0(y[v], b, g, full), rel=1e-13)
    assert np.isnan(S0[2])
    assert S0[0] > np.nanmean(y[0, where])
