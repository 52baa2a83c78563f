"""Fits on a cluster of two worker processes: the bits of one machine; a worker that dies."""

import multiprocessing
import os
import signal

import nibabel as nib
import numpy as np
import phantom
import pytest
from mapmri_nb.cli import main
from numpy.testing import assert_array_equal

import mapmri_nb as mapmri
from mapmri_nb import data, stream

pytest.importorskip("distributed")
import dask
import dask.array as da
from distributed import Client, LocalCluster
from shell import content, fails, make_series, refused, words

from mapmri_nb import distributed
from mapmri_nb.status import Status

pytestmark = pytest.mark.jit_only


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as local:
        yield local


@pytest.fixture(scope="module")
def sample():
    dwi = data.sample_dwi("catcord")
    values = np.asarray(nib.load(dwi).dataobj)[22:30, 18:24]
    mask = np.random.default_rng(5).random(values.shape[:3]) < 0.7
    mask[:3, :3] = False  # a whole chunk
    return mapmri.GradientTable.from_bids(dwi), values, mask


@pytest.mark.parametrize(
    "options", [{}, {"basis": "isotropic"}, {"laplacian": [0.05, 0.5], "positivity": "grid"}]
)
def test_dask_arrays_give_the_bits_of_one_machine(cluster, sample, options):
    gtab, values, mask = sample
    model, names = mapmri.MapmriModel(gtab, radial_order=4, **options), ["rtop", "pa"]
    chunked = da.from_array(values, chunks=(3, 3, 1, 50))
    volumes = distributed.fit(model, chunked, da.from_array(mask, chunks=(5, 2, 1)), names)
    assert all(isinstance(volume, da.Array) for volume in volumes.values())
    assert volumes["R"].shape == (*mask.shape, 3, 3)
    expected = model.fit(values, mask)
    wanted = {name: expected.index(name) for name in names}  # compiled before the workers need it
    with Client(cluster):
        found = distributed.collect(model, volumes, mask)
        maps = {name: volumes[name].compute() for name in (*names, "status")}
    assert phantom.same(found, expected)
    for name in names:
        assert np.array_equal(maps[name], wanted[name], equal_nan=True)
    assert (maps["status"][~mask] == Status.OUTSIDE).all()


def test_without_a_mask_and_without_a_cluster(sample):
    gtab, values, mask = sample
    model = mapmri.MapmriModel(gtab, radial_order=2)
    volumes = distributed.fit(model, da.from_array(values[:3, :2], chunks=2))
    expected = model.fit(values[:3, :2])
    assert_array_equal(distributed.collect(model, volumes).coef, expected.coef)
    for found in (volumes, distributed.fit(model, values[:3, :2])):
        assert_array_equal(found["msd"], expected.msd())
    text = "data: its last axis must have the table's 168 volumes"
    refused(text, distributed.fit, model, da.from_array(values[..., :9]))
    refused("mask: its shape", distributed.fit, model, da.from_array(values), mask[:2])


def test_command_line_on_a_cluster_with_a_killed_worker(cluster, tmp_path, monkeypatch):
    """One of two workers dies while it has slabs to do; the bytes are those of threads."""
    monkeypatch.setattr(stream, "SLAB", 4)
    dwi = make_series(tmp_path)
    assert main(words(dwi, tmp_path / "threads")) == 0
    with Client(cluster) as client:
        workers = client.run(os.getpid)
    put, kept = stream.Store.put, []

    def kill_one(self, slab, *rest):
        kept.append(slab)
        if len(kept) == 2:
            os.kill(next(iter(workers.values())), signal.SIGKILL)
        put(self, slab, *rest)

    monkeypatch.setattr(stream.Store, "put", kill_one)
    engine = ["--engine", "dask", "--scheduler", cluster.scheduler_address]
    assert main(words(dwi, tmp_path / "dask", *engine)) == 0
    assert sorted(kept) == list(range(9))
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        assert set(client.run(os.getpid).values()) != set(workers.values()), "no worker died"
    assert content(tmp_path / "dask") == content(tmp_path / "threads")


def test_a_cluster_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SLAB", 20)
    dwi = make_series(tmp_path)
    before = {process.pid for process in multiprocessing.active_children()}
    assert main(words(dwi, tmp_path / "threads")) == 0
    assert main(words(dwi, tmp_path / "dask", "--engine", "dask", "--threads", 2)) == 0
    assert content(tmp_path / "dask") == content(tmp_path / "threads")
    assert {process.pid for process in multiprocessing.active_children()} == before


def test_no_scheduler_there(tmp_path, capsys):
    dwi, address = make_series(tmp_path), "tcp://127.0.0.1:9"
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        more = ["--engine", "dask", "--scheduler", address]
        fails(capsys, words(dwi, tmp_path / "out", *more), address)
    assert not (tmp_path / "out").exists()
