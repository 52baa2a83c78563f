"""Damaged files give an error in one line, random bytes a status for every voxel."""

import gc
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import damage
import numpy as np
import phantom
import pytest

import mapmri_nb as mapmri

pytestmark = pytest.mark.filterwarnings("error")  # NumPy's would be lines on the terminal

SOME = [  # validation/fuzz.py runs all of them
    mode
    for mode in damage.MODES
    if "0.2" in mode or not ("isotropic" in mode.split() or "0.05" in mode)
]


def fails_in_one_line(capsys, out, *words):
    assert damage.outcome(lambda: capsys.readouterr().err, out, *words) == ("refused", "")


@pytest.mark.nojit
@pytest.mark.parametrize("kind", damage.DAMAGE)
def test_damaged_input(kind, tmp_path, capsys, rng):
    dwi = damage.cut("catcord", tmp_path)
    files, count, damaged = damage.DAMAGE[kind]
    for k in range(count):
        path = dwi.with_name(files[k % len(files)])
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng, k))
        fails_in_one_line(capsys, tmp_path / "o", "fit", dwi)
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", damage.ANY)
def test_changed_input(kind, tmp_path, capsys, rng):
    """Refused in one line, or a fit with a status for every voxel."""
    dwi = damage.cut("catcord", tmp_path, dead=True)
    files, count, changed = damage.ANY[kind]
    words = ("fit", dwi, "--mask", dwi.with_name(damage.MASK), "--radial-order", 2)
    met = []
    for k in range(count):
        path, out = dwi.with_name(files[k % len(files)]), tmp_path / f"o{k}"
        whole = path.read_bytes()
        path.write_bytes(changed(whole, rng, k))
        found = damage.outcome(lambda: capsys.readouterr().err, out, *words, "--indices", "rtop")
        met.append(found)
        if found[0] == "done":
            assert damage.unaccounted(out) == 0
        path.write_bytes(whole)
    assert {what for what, _ in met} <= {"refused", "done"}, met


@pytest.mark.nojit
def test_damaged_saved_fit(tmp_path, capsys, rng):
    gtab = phantom.table(*phantom.small_scheme())
    fit = mapmri.MapmriModel(gtab, 2).fit(np.exp(-np.outer([0.5e-3, 1e-3], gtab.bvals)))
    fit.save(tmp_path, affine=np.eye(4))
    parts = [*tmp_path.glob("*mapmri_dwimap.json"), *tmp_path.glob("*dwimap.nii.gz")]
    assert len(parts) >= 8
    for path in parts:
        whole = path.read_bytes()
        for content in (damage.shortened(whole, rng), rng.bytes(1000), b"[1, 2]\n"):
            path.write_bytes(content)
            fails_in_one_line(capsys, tmp_path / "o", "indices", tmp_path)
        path.write_bytes(whole)


@pytest.mark.jit_only
@pytest.mark.parametrize("mode", SOME)
def test_random_samples(mode):
    """NaN or finite as the status says; clean voxels among them as without them, bit for bit."""
    found = damage.random_samples(mode)
    wrong, none = damage.wrong_voxels(*found)
    assert len(wrong) == 200
    assert not wrong.any(), np.flatnonzero(wrong)
    assert 0 < none.sum() < 180, "a mixture of both"


@pytest.mark.jit_only
@pytest.mark.parametrize("mode", SOME[::4])
def test_eight_threads_on_one_model(mode):
    """Each asks for threads as well, and gets the bits of one thread alone."""
    scheme = phantom.small_scheme()
    data = phantom.signals(60, *scheme, seed=4, noise=0.1)
    model = mapmri.MapmriModel(phantom.table(*scheme), 4, **damage.MODES[mode])
    turns = [np.roll(data, k, axis=0) for k in range(8)]
    alone = [model.fit(y, threads=1) for y in turns]
    pa = [one.pa() for one in alone]

    def fit(k):
        one = model.fit(turns[k % 8], threads=(1, 2, None, 3)[k % 4])
        return phantom.same(one, alone[k % 8]) and np.array_equal(one.pa(), pa[k % 8])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fit, range(32)))


@pytest.mark.jit_only
@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc"
)
def test_memory_does_not_grow():
    """After a warm-up 50 fits leave nothing, in Python's and NumPy's books and in the process."""
    scheme = phantom.small_scheme()
    data = np.tile(phantom.signals(20, *scheme, seed=4), (50, 1))
    model = mapmri.MapmriModel(phantom.table(*scheme), 4)

    def held(fits):
        for _ in range(fits):
            fit = model.fit(data)
            fit.rtop(), fit.pa()
        size = sum(rows.nbytes for rows in fit.rows().values())
        del fit
        gc.collect()
        with open("/proc/self/statm") as file:
            return tracemalloc.get_traced_memory()[0], int(file.read().split()[1]), size

    tracemalloc.start()
    try:
        (traced, resident, size), (traced_after, resident_after, _) = held(10), held(50)
    finally:
        tracemalloc.stop()
    assert traced_after - traced < size, "50 fits left as much as one holds"
    assert resident_after < 1.05 * resident
