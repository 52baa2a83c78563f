"""Damaged files through the command line, random bytes through the fit: errors in one line, a status for every voxel."""

import gc
import gzip
import os
import struct
import tracemalloc

import numpy as np
import phantom
import pytest
from test_cli import cut

import mapmri_nb as mapmri
from mapmri_nb.cli import main

DWI = "sub-cord_dwi.nii.gz"
SIDECARS = ("sub-cord_dwi.bval", "sub-cord_dwi.bvec", "sub-cord_dwi.json")
FIELDS = [  # struct format, offset and values of NIfTI-1 fields that cannot be right
    ("<h", 40, -3), ("<h", 40, 9), ("<h", 40, 3), ("<h", 42, -1), ("<h", 42, 0), ("<h", 48, 32000), ("<h", 70, 999),
    ("<4h", 42, *[32767] * 4), ("<2h", 70, 128, 24), ("<2h", 70, 32, 64), ("<f", 108, 1e9), ("<f", 108, np.nan),
    ("<f", 108, -512.0), ("<4s", 344, b"what"), ("<12f", 280, *[0.0] * 12),
    *(("<f", 280 + 4 * k, value) for k in (0, 3, 6) for value in (np.nan, np.inf)),
]  # fmt: skip
WORDS = (b"nan", b"inf", b"-1e9", b"b=0", b"1e400", b"0x10")


def patched(old, layout, offset, *values):
    content = bytearray(gzip.decompress(old))
    struct.pack_into(layout, content, offset, *values)
    return gzip.compress(bytes(content))


def shortened(old, rng):
    return old[: rng.integers(0, int(0.9 * len(old)))]


def reworded(old, rng):
    words = old.split(b" ")
    words[rng.integers(3, len(words) - 3)] = WORDS[rng.integers(len(WORDS))]
    return b" ".join(words)


DAMAGE = {  # kind -> (which files in turn, how often, their new content)
    "series cut short": ([DWI], 10, lambda old, rng, k: shortened(old, rng)),
    "series with a flipped bit": ([DWI], 8, lambda old, rng, k: old[: 50 + k] + bytes([old[50 + k] ^ 1 << k]) + old[51 + k :]),
    "random bytes": ([DWI], 4, lambda old, rng, k: rng.bytes(3000)),
    "random bytes after gzip's magic": ([DWI], 4, lambda old, rng, k: b"\x1f\x8b\x08\0" + rng.bytes(3000)),
    "random bytes, compressed": ([DWI], 4, lambda old, rng, k: gzip.compress(rng.bytes(3000))),
    "text": ([DWI, *SIDECARS], 4, lambda old, rng, k: b"Dear all,\n[1, 2]\n"),
    "wrong header field": ([DWI], len(FIELDS), lambda old, rng, k: patched(old, *FIELDS[k])),
    "random bytes as sidecar": (SIDECARS, 9, lambda old, rng, k: rng.bytes(200)),
    "sidecar cut short": (SIDECARS, 9, lambda old, rng, k: shortened(old, rng)),
    "sidecar with a wrong word": (SIDECARS[:2], 6, lambda old, rng, k: reworded(old, rng)),
}


def fails_in_one_line(capsys, out, *words):
    code = main([*map(str, words), "--out", str(out), "--quiet"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 1, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("mapmri-nb: error: "), lines
    assert not out.exists()


@pytest.mark.nojit
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_input(kind, tmp_path, capsys, rng):
    dwi = cut("catcord", tmp_path)
    files, count, damaged = DAMAGE[kind]
    for k in range(count):
        path = dwi.with_name(files[k % len(files)])
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng, k))
        fails_in_one_line(capsys, tmp_path / "o", "fit", dwi)
        path.write_bytes(whole)


def test_number_of_damaged_inputs():
    assert sum(count for _, count, _ in DAMAGE.values()) == 79


@pytest.mark.nojit
def test_damaged_saved_fit(tmp_path, capsys, rng):
    gtab = phantom.table(*phantom.small_scheme())
    mapmri.MapmriModel(gtab, 2).fit(np.exp(-np.outer([0.5e-3, 1e-3], gtab.bvals))).save(tmp_path)
    parts = [*tmp_path.glob("*mapmri_dwimap.json"), *tmp_path.glob("*dwimap.nii.gz")]
    assert len(parts) >= 8
    for path in parts:
        whole = path.read_bytes()
        for content in (shortened(whole, rng), rng.bytes(1000), b"[1, 2]\n"):
            path.write_bytes(content)
            fails_in_one_line(capsys, tmp_path / "o", "indices", tmp_path)
        path.write_bytes(whole)


MODES = [
    *({"laplacian": weight} for weight in (None, 0.2, "gcv", [0.01, 0.1, 0.5])),
    *({"laplacian": weight, "basis": "isotropic"} for weight in (0.2, "gcv")),
    *({"laplacian": weight, "positivity": kind} for weight in (None, 0.2) for kind in ("grid", "global")),
    {"laplacian": 0.2, "positivity": "global", "basis": "isotropic"},
]
ODD = (np.nan, np.inf, -np.inf, 5e-324, 1e-310, 1e308, -1e308, 0.0, -0.0)
MAPS = ("rtop", "rtap", "rtpp", "msd", "lapnorm", "qiv", "ng", "ng_par", "ng_perp", "pa", "pa_dti", "rmse", "r2")
RESIDUALS = ("rmse", "r2")  # NaN or infinite also where the sum of squared samples leaves float64, though the fit does not


def fuzzed(clean, rng):
    """Rows between the clean ones: bytes as float64, float32, float16, int16; clean voxels with odd samples."""
    n, rows = clean.shape[1], []
    for kind in range(5):
        for k in range(36):
            if kind < 4:
                row = np.frombuffer(rng.bytes(8 * n), [np.float64, np.float32, np.float16, np.int16][kind])[:n]
            else:
                row = np.where(rng.random(n) < rng.random(), rng.choice(ODD, n), clean[k % len(clean)])
            rows.append(row.astype(np.float64))
    where = np.linspace(0, len(rows), len(clean)).astype(int)
    good = where + np.arange(len(clean))
    return np.insert(np.array(rows), where, clean, axis=0), good


@pytest.mark.jit_only
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_random_samples(mode, rng):
    """No exception; NaN or finite as the status says; clean voxels among them as without them, bit for bit."""
    scheme = phantom.small_scheme()
    clean = phantom.signals(20, *scheme, seed=4)
    with np.errstate(invalid="ignore"):  # of the casts
        data, good = fuzzed(clean, rng)
    assert data.shape[0] == 200
    model = mapmri.MapmriModel(phantom.table(*scheme), 4, **mode)
    fit, alone = model.fit(data), model.fit(clean)
    for name, rows in alone.rows().items():
        assert np.array_equal(rows, fit.rows()[name][good], equal_nan=True), name
    none = (fit.status & mapmri.Status.NO_FIT) != 0
    assert ((fit.status & ~sum(mapmri.Status)) == 0).all()
    assert not none[good].any()
    assert 0 < none.sum() < 180, "a mixture of both"
    with np.errstate(over="ignore"):
        beyond = ~np.isfinite((np.where(np.isfinite(data), data, 0.0) ** 2).sum(1))
    for name in ("coef", "mu", "R", "S0"):
        assert np.isfinite(getattr(fit, name)[~none]).all(), name
    for name in ("coef", "S0"):
        assert np.isnan(getattr(fit, name)[none]).all(), name
    for name in MAPS:
        if not (fit.isotropic and name in ("ng_par", "ng_perp")):
            values = getattr(fit, name)()
            assert np.isnan(values[none]).all(), name
            assert np.isfinite(values[~none & ~beyond] if name in RESIDUALS else values[~none]).all(), name


@pytest.mark.jit_only
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_memory_does_not_grow():
    """After a warm-up 50 fits with their maps leave nothing: neither in Python's and NumPy's books nor in the process."""
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
