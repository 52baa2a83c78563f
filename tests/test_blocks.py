"""An answer depends on its voxel alone, bit for bit: blocks, neighbours, threads, chunks."""

import threading

import numba
import numpy as np
import phantom
import pytest
from numpy.testing import assert_allclose

import mapmri_nb as mapmri
from mapmri_nb import model as model_module
from mapmri_nb.indices import select
from mapmri_nb.kernels import blocks, lanes, origin

MODES = {
    "mapl": {"laplacian": 0.2},
    "map": {"laplacian": None},
    "gcv": {"laplacian": "gcv"},
    "array": {"laplacian": [0.01, 0.1, 0.5]},
    "isotropic": {"laplacian": 0.2, "basis": "isotropic"},
    "isotropic gcv": {"laplacian": "gcv", "basis": "isotropic"},
    "static": {"laplacian": 0.2, "basis": "isotropic", "static_diffusivity": 0.7e-3},
    "rician": {"noise": "rician"},
    "isotropic rician": {"noise": "rician", "basis": "isotropic"},
    "global": {"positivity": "global"},
    "high b": {"laplacian": 0.2, "bval_threshold": 3500},
}


@pytest.fixture(scope="module")
def data(scheme):
    """101 voxels: two whole blocks and one short one."""
    return phantom.signals(101, *scheme, seed=11)


def made(scheme, mode, order=4):
    return mapmri.MapmriModel(phantom.table(*scheme), order, **MODES[mode])


def run(model, y, voxels, start=0, stop=None):
    """Rows of the output for blocks of `voxels`."""
    out = blocks.new_rows(len(y), model.n_coef)
    out.coef[:] = 0
    work = model.engine.work(phantom.rows_of(y), out, voxels)
    blocks.run(work.job, start, len(y) if stop is None else stop)
    return out


def assert_same(a, b, rows_a=slice(None), rows_b=slice(None)):
    for name, one, two in zip(blocks.Out._fields, a, b, strict=True):
        assert np.array_equal(one[rows_a], two[rows_b], equal_nan=True), name


SIZES = [(mode, 8, 3) if mode == "high b" else (mode, 4, 1) for mode in MODES]


@pytest.mark.parametrize(("mode", "order", "factor"), SIZES)
def test_block_size_does_not_matter(scheme, mode, order, factor):
    """Order 8 at b = 9000: some lanes take their moments in their own frame."""
    high = factor * scheme[0], scheme[1]
    data, model = phantom.signals(101, *high, seed=11), made(high, mode, order)
    whole = run(model, data, 48)
    assert np.isfinite(whole.coef).all()
    assert_same(whole, run(model, data, 16))
    for v in range(0, 101, 9):
        assert_same(whole, run(model, data[v : v + 1], 16), slice(v, v + 1))


@numba.njit(nogil=True)
def _mine(job, start, stop):
    blocks.run(job, start, stop)


@pytest.mark.parametrize("mode", ["gcv", "global"])
def test_compiled_code_of_others_calls_the_pass(scheme, data, mode):
    """As `Engine.work` documents: rows fitted in threads of the caller, with the bits of `fit`."""
    model, rows = made(scheme, mode), phantom.rows_of(data)
    out, threads = blocks.new_rows(len(data), model.n_coef), []
    works = [model.engine.work(rows, out, 48) for _ in range(2)]
    for work, span in zip(works, [(0, 48), (48, len(data))], strict=True):
        threads.append(threading.Thread(target=_mine, args=(work.job, *span)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    fit = model.fit(data)
    assert np.array_equal(out.coef, fit.coef)
    assert np.array_equal(out.scalars[:, 0], fit.S0)
    assert np.array_equal(out.status, fit.status)


@pytest.mark.jit_only
def test_arrays_of_any_layout(scheme, data):
    """The stages are called by address: those for other layouts are other stages."""
    model = made(scheme, "mapl")
    assert_same(*(run(model, y, 48) for y in (data, np.asfortranarray(data))))


@pytest.mark.parametrize("basis", ["anisotropic", "isotropic"])
def test_indices_of_many_are_those_of_each(scheme, data, basis):
    """More rows than lanes, and a last group that is not full."""
    model = mapmri.MapmriModel(phantom.table(*scheme), 4, basis=basis)
    many = model.fit(data)
    for v in (0, 15, 16, 40, 99, 100):
        one = model.fit(data[v : v + 1])
        for name in select("all", basis):
            assert many.index(name)[v] == one.index(name)[0], name


@pytest.mark.nojit
def test_last_block_writes_its_own_rows_only(scheme, data):
    """Rows 48 to 60 of 101: the block repeats voxel 100 at most, and writes nothing outside."""
    model = made(scheme, "mapl", 2)
    out, whole = run(model, data[:61], 48, 48, 61), run(model, data[:61], 48)
    assert_same(out, whole, slice(48, 61), slice(48, 61))
    assert not out.coef[:48].any()
    short = run(model, data[:3], 48)
    assert_same(short, whole, rows_b=slice(0, 3))


def test_chunks_do_not_matter(scheme, data, monkeypatch):
    """Pieces of the volume, with bad voxels among them and a mask."""
    model, rng = made(scheme, "mapl", 2), np.random.default_rng(1)
    volume = data[:100].reshape(5, 4, 5, -1).copy()
    volume[1, 2, 3], volume[0, 0, 0, :9] = np.nan, 0.0
    mask = rng.random((5, 4, 5)) < 0.7
    mask[1, 2, 3] = True
    mu, R = np.full((5, 4, 5, 3), [8e-3, 5e-3, 4e-3]), np.broadcast_to(np.eye(3), (5, 4, 5, 3, 3))
    weights, field = rng.uniform(0, 1, volume.shape), 0.05 * rng.normal(size=(5, 4, 5, 9))
    options = [{}, {"scale": (mu, R)}, {"weights": weights, "grad_dev": field}]
    whole = [model.fit(volume, mask, **more) for more in options]
    monkeypatch.setattr(model_module, "CHUNK", 7)
    for fit, more in zip(whole, options, strict=True):
        assert phantom.same(fit, model.fit(volume, mask, **more))
        assert phantom.same(fit, model.fit(np.asfortranarray(volume), mask, threads=2, **more))


@pytest.mark.nojit
@pytest.mark.parametrize(
    "options", [{"noise": "rician"}, {"positivity": "grid"}, {"laplacian": [0.1, 0.2]}], ids=str
)
def test_the_unit_of_the_signal_does_not_matter(scheme, data, options):
    """S0 and sigma follow it, coefficients and status stay; one voxel misses a sample."""
    y, model = data[:2].copy(), mapmri.MapmriModel(phantom.table(*scheme), 2, **options)
    y[0, 7] = np.nan
    want, *fits = (model.fit(factor * y) for factor in (1.0, 1e-6, 1e6))
    for factor, fit in zip((1e-6, 1e6), fits, strict=True):
        assert np.array_equal(fit.status, want.status)
        assert_allclose(fit.coef, want.coef, atol=1e-9 * np.abs(want.coef).max())
        assert_allclose(fit.S0, factor * want.S0, rtol=1e-9)
        assert_allclose(fit.rmse(), factor * want.rmse(), rtol=1e-9)
        if "noise" in options:
            assert_allclose(fit.sigma, factor * want.sigma, rtol=1e-9)


@pytest.mark.nojit
def test_a_fixed_origin_is_the_constrained_optimum(rng):
    """`origin.fix` against the bordered system [H B; B' 0] [c; m] = [g; S0]."""
    n, V = 5, lanes.GRAIN
    X = rng.normal(size=(8, 5))
    H, S0 = X.T @ X, rng.uniform(1, 2, (1, V))
    (g, B) = rng.normal(size=(2, n))
    factor = np.linalg.cholesky(H)
    stored = factor + np.diag(1 / np.diag(factor) - np.diag(factor))
    packed = np.r_[stored[np.tril_indices(n)], np.linalg.solve(factor, g)][:, None]
    packed = np.ascontiguousarray(np.repeat(packed, V, 1))
    origin.fix(B, packed, S0, np.empty((n, V)))
    found = np.linalg.solve(factor.T, packed[-n:])
    bordered = np.block([[H, B[:, None]], [B, np.zeros(1)]])
    for l in range(V):
        want = np.linalg.solve(bordered, np.r_[g, S0[0, l]])[:n]
        assert_allclose(found[:, l], want, atol=1e-10)
