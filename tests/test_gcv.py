"""GCV: the minimiser and arrays of weights against dense algebra."""

import numpy as np
import oracle
import pytest
import truth
from numpy.testing import assert_allclose, assert_array_equal

import mapmri_nb as mapmri
from mapmri_nb import data, io
from mapmri_nb.kernels import gcv, lanes
from mapmri_nb.kernels.ordering import class_permutation, n_coef

NONE = np.empty(0)
LOW, HIGH = np.log(5e-8), np.log(5e-2)


def signals(order, mu, bvals, bvecs, tau, rng, noise=0.03):
    """Designs (k, n) in block order, Laplacians, noisy signals of two compartments; mu (3, V)."""
    keep, q = class_permutation(order), oracle.qvectors(bvals, bvecs, tau)
    out = []
    for l in range(mu.shape[1]):
        m = oracle.phi_matrix(order, mu[:, l], q)[:, keep]
        lap = oracle.laplacian_matrix(order, mu[:, l])[np.ix_(keep, keep)]
        narrow, wide = mu[:, l] * rng.uniform(0.5, 1.0, 3), mu[:, l] * rng.uniform(1.0, 1.6, 3)
        f = rng.uniform(0.2, 0.8)
        y = sum(g * np.exp(-2 * np.pi**2 * (q**2 @ s**2)) for g, s in ((f, narrow), (1 - f, wide)))
        out.append((m, lap, y + noise * rng.normal(size=len(y))))
    return out


def pack(voxels, mu):
    """The block arrays of `choose`."""
    lower = np.tril_indices(voxels[0][0].shape[1])
    g = np.array([(m.T @ m)[lower] for m, _, _ in voxels]).T.copy()
    rhs = np.array([m.T @ y for m, _, y in voxels]).T.copy()
    yy = np.array([y @ y for _, _, y in voxels])
    return g, rhs, np.ascontiguousarray(mu), yy, np.array([float(len(y)) for _, _, y in voxels])


def choose(order, block, weights=NONE, work=None):
    """Weights and bounds; the last voxel fills the lanes up, as in a fit."""
    count = block[1].shape[1]
    V = lanes.padded(count)
    problem = gcv.Problem(
        *(np.pad(np.atleast_2d(x), ((0, 0), (0, V - count)), "edge") for x in block)
    )
    weight, bound = np.full((1, V), -1.0), np.full(V, -1)
    work = work or gcv.workspace(n_coef(order), V)
    gcv.choose(problem, gcv.tables(order), np.asarray(weights, float), work, weight, bound)
    return weight[0, :count], bound[:count]


def lanes_of(block, pick):
    return tuple(np.ascontiguousarray(x[..., pick]) for x in block)


@pytest.fixture(scope="module")
def brain():
    """Order 6: 240 voxels of many shapes, three shells of 40."""
    rng = np.random.default_rng(5)
    b, g = truth.scheme([40, 40, 40], [1000, 2000, 3000])
    mu = np.sort(np.sqrt(2 * 0.03 * rng.uniform(0.2e-3, 2.2e-3, (3, 240))), 0)[::-1]
    voxels = signals(6, mu, b, g, 0.03, rng)
    return voxels, mu, pack(voxels, mu)


@pytest.mark.nojit
def test_the_better_of_two_minima():
    """Two groups of singular values make two minima now and then, either of them the lower."""
    rng, n = np.random.default_rng(11), 7
    mu, keep = np.full((3, 100), 5e-3), class_permutation(2)
    lap = oracle.laplacian_matrix(2, mu[:, 0])[np.ix_(keep, keep)]
    factor, logs = np.linalg.cholesky(lap), np.linspace(LOW, HIGH, 4001)
    better, voxels = [], []
    for _ in range(100):
        d = 10.0 ** np.array([*rng.uniform(-6, -5, 3), *rng.uniform(-2, -1, 4)]) / 5e-3
        q, r = np.linalg.qr(rng.normal(size=(12, n)))[0], np.linalg.qr(rng.normal(size=(n, n)))[0]
        m = q @ np.diag(np.sqrt(d)) @ r.T @ factor.T
        y = q @ (10.0 ** rng.uniform(-2, 0, n)) + 0.3 * rng.normal(size=12)
        voxels.append((m, lap, y))
    block, work = pack(voxels, mu), gcv.workspace(n, lanes.padded(100))
    weight, _ = choose(2, block, work=work)
    for voxel, found in zip(voxels, weight, strict=True):
        *v, chosen = oracle.gcv(*voxel, [*(np.exp(logs) / 5e-3), found])[0]
        v = np.array(v)
        minima = np.flatnonzero((v[1:-1] < v[:-2]) & (v[1:-1] < v[2:])) + 1
        assert chosen <= v.min() * (1 + 1e-9)
        better.append(v[minima].argmin() if len(minima) == 2 else -1)
    assert min(better.count(k) for k in (0, 1)) >= 5
    pair = [better.index(1), better.index(-1)]  # the second minimum of one voxel alone
    assert np.array_equal(choose(2, lanes_of(block, pair))[0], weight[pair])
    yy, samples = (np.pad(x, (0, lanes.padded(100) - 100), "edge")[None] for x in block[3:])
    count = [
        np.isfinite(work.lane[6]).sum() for k in range(3) if gcv._minimise(k, yy, samples, work)
    ]
    assert len(count) == 2
    assert count[0] == lanes.padded(100)
    assert 10 <= count[1] < 100  # a lane with one minimum has no second one


@pytest.mark.parametrize("order", [*(pytest.param(k, marks=pytest.mark.nojit) for k in (0, 2)), 8])
def test_the_lowest_of_many_weights(order, rng):
    """Small orders, and order 8 on two shells, where M'M has a rank below n. Structureless data want
    the largest weight.
    """
    b, g = truth.scheme([64 if order == 8 else 12] * 2, [1000, 3000])
    mu = np.array([[8e-3, 7e-3, 6e-3], [5e-3, 5e-3, 6e-3], [4e-3, 3e-3, 6e-3]])
    mu = np.tile(mu, 4)
    voxels = signals(order, mu, b, g, 0.03, rng)
    assert order < 8 or np.linalg.matrix_rank(voxels[0][0]) < 95
    voxels[3:] = [(m, lap, 0.2 * rng.normal(size=len(y))) for m, lap, y in voxels[3:]]
    weight, bound = choose(order, pack(voxels, mu))
    assert (bound == 1).sum() >= 2
    for l, voxel in enumerate(voxels):
        tried = np.geomspace(5e-8, 5e-2, 4001) / np.prod(mu[:, l]) ** (1 / 3)
        *v, found = oracle.gcv(*voxel, [*tried, weight[l]])[0]
        assert found <= min(v) * (1 + 1e-9)
        assert bound[l] == (np.argmin(v) in (0, 4000))
        if bound[l]:
            assert weight[l] == pytest.approx(tried[np.argmin(v)], rel=1e-9)


def test_array_of_weights(brain):
    voxels, _, block = brain
    voxels, block = voxels[:24], lanes_of(block, slice(0, 24))
    rng = np.random.default_rng(2)
    for size in (1, 2, 3, 7, 40):
        weights = rng.permutation(np.geomspace(1e-3, 3.0, size))
        weight, bound = choose(6, block, weights)
        for l, voxel in enumerate(voxels):
            assert weight[l] == weights[oracle.gcv(*voxel, weights)[0].argmin()]
            assert bound[l] == (size > 1 and weight[l] in (weights.min(), weights.max()))
    rising, falling = choose(6, block, [3.0, 4.0, 5.0]), choose(6, block, [1e-6, 1e-5, 1e-4])
    assert (rising[0] == 3.0).mean() > 0.9
    assert (falling[0] == 1e-4).mean() > 0.9
    assert rising[1].mean() > 0.9
    assert_array_equal(choose(6, block, [0.1, 0.1])[0], 0.1)


@pytest.mark.nojit
def test_no_deviation_rougher_than_the_gaussian(brain):
    """`bound_below`: weights raised to n sigma^2 / (S0^2 L_00), written out in NumPy."""
    voxels, mu = brain[0][:48], brain[1][:, :48]
    block = pack(voxels, mu)
    work = gcv.workspace(50, 48)
    weight, bound = choose(6, block, work=work)
    S0 = np.geomspace(0.01, 1.0, 48)[None]
    least = np.empty(48)
    for l, (m, lap, y) in enumerate(voxels):
        H = np.linalg.solve(m.T @ m + weight[l] * lap, m.T)
        square = np.sum((y - m @ H @ y) ** 2) / (len(y) - np.trace(m @ H))
        least[l] = 50 * square / (S0[0, l] ** 2 * lap[0, 0])
    raised, flags = weight[None].copy(), bound.copy()
    gcv.bound_below(block[3][None], block[4][None], S0, work, raised, flags)
    assert_allclose(raised[0], np.maximum(weight, least), rtol=1e-8)
    assert 5 < np.sum(least > weight) < 43
    assert_array_equal(flags, bound | (least > weight))


def test_gcv_does_not_open_between_the_shells():
    """Cat cord at order 8: three shells determine less. The signal's Laplacian keeps its range."""
    path = data.sample_dwi("catcord")
    series, table = io.load_dwi(path).data, mapmri.GradientTable.from_bids(path)
    y = np.asarray(series, float).reshape(-1, len(table))
    y, odd = y[(y > 0).all(1)][::4], {}
    for laplacian_of in ("signal", "deviation"):
        fit = mapmri.MapmriModel(table, 8, laplacian="gcv", laplacian_of=laplacian_of).fit(y)
        flagged = fit.status & mapmri.Status.WEIGHT_AT_BOUND != 0
        weight = fit.laplacian_weight * np.prod(fit.mu, 1) ** (1 / 3)
        odd[laplacian_of] = weight[flagged], np.sum(fit.status & mapmri.Status.OUT_OF_RANGE != 0)
    assert np.allclose(odd["signal"][0].min(), 5e-8)
    assert odd["deviation"][0].min() > 1e-6
    assert odd["deviation"][1] < odd["signal"][1]
