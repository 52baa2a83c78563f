"""Damaged files through the command line, random bytes through the fit: errors in one line, a status for every voxel."""

import gc
import gzip
import os
import shutil
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
HEADER = [  # offset and bytes of a NIfTI-1 field, wrong
    (40, struct.pack("<h", -3)), (40, struct.pack("<h", 9)), (40, struct.pack("<h", 3)),
    (42, struct.pack("<h", -1)), (42, struct.pack("<h", 0)), (48, struct.pack("<h", 32000)), (70, struct.pack("<h", 999)),
    (42, struct.pack("<4h", *[32767] * 4)), (70, struct.pack("<2h", 128, 24)), (70, struct.pack("<2h", 32, 64)),
    (108, struct.pack("<f", 1e9)), (108, struct.pack("<f", np.nan)), (108, struct.pack("<f", -512)), (344, b"what"),
]  # fmt: skip
AFFINE = [(280 + 4 * k, struct.pack("<f", value)) for k in (0, 3, 6) for value in (np.nan, np.inf)]
AFFINE.append((280, bytes(48)))


def patched(path, offset, new):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[offset : offset + len(new)] = new
    path.write_bytes(gzip.compress(bytes(content)))


def shortened(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(0, int(0.9 * len(content)))])


def flipped(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(40, len(content))] ^= int(rng.integers(1, 256))  # past the gzip header, which holds a date
    path.write_bytes(content)


def one_word(path, rng):
    words = path.read_text().split(" ")
    words[rng.integers(3, len(words) - 3)] = str(rng.choice(["nan", "inf", "-1e9", "b=0", "1e400", "0x10"]))
    path.write_text(" ".join(words))


DAMAGE = {  # kind -> (how often, what it does to the folder of a series)
    "series cut short": (10, lambda f, rng, k: shortened(f / DWI, rng)),
    "series with a flipped byte": (6, lambda f, rng, k: flipped(f / DWI, rng)),
    "random bytes": (4, lambda f, rng, k: (f / DWI).write_bytes(rng.bytes(3000))),
    "random bytes after gzip's magic": (4, lambda f, rng, k: (f / DWI).write_bytes(b"\x1f\x8b\x08\0" + rng.bytes(3000))),
    "random bytes, compressed": (4, lambda f, rng, k: (f / DWI).write_bytes(gzip.compress(rng.bytes(3000)))),
    "text": (2, lambda f, rng, k: (f / DWI).write_bytes([b"0 0 1\n", gzip.compress(b"hello\n" * 99)][k])),
    "wrong header field": (len(HEADER), lambda f, rng, k: patched(f / DWI, *HEADER[k])),
    "wrong affine": (len(AFFINE), lambda f, rng, k: patched(f / DWI, *AFFINE[k])),
    "random bytes as sidecar": (9, lambda f, rng, k: (f / SIDECARS[k % 3]).write_bytes(rng.bytes(200))),
    "text as sidecar": (3, lambda f, rng, k: (f / SIDECARS[k]).write_text("Dear all,\n[1, 2]\n")),
    "sidecar cut short": (9, lambda f, rng, k: shortened(f / SIDECARS[k % 3], rng)),
    "sidecar with a wrong word": (6, lambda f, rng, k: one_word(f / SIDECARS[k % 2], rng)),
}


def said(capsys, words):
    """The one line of an error; anything else fails."""
    code = main([str(w) for w in words])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 1, lines
    assert lines[-1].startswith("mapmri-nb: error: "), lines
    assert sum("error" in line for line in lines) == 1, lines
    assert all(line.startswith("mapmri-nb: ") for line in lines), "a traceback, or a warning of Python's"
    return lines[-1]


@pytest.mark.nojit
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_input_is_an_error_of_one_line(kind, tmp_path, capsys, rng):
    cut("catcord", tmp_path / "whole")
    count, damage = DAMAGE[kind]
    for k in range(count):
        shutil.copytree(tmp_path / "whole", tmp_path / f"{k}")
        damage(tmp_path / f"{k}", rng, k)
        line = said(capsys, ["fit", tmp_path / f"{k}" / DWI, "--out", tmp_path / "o", "--quiet"])
        assert len(line) < 700, line
        assert not (tmp_path / "o").exists()


def test_number_of_damaged_inputs():
    assert sum(count for count, _ in DAMAGE.values()) == 78


@pytest.mark.nojit
def test_damaged_saved_fits_are_errors_of_one_line(tmp_path, capsys, rng):
    gtab = phantom.table(*phantom.small_scheme())
    fit = mapmri.MapmriModel(gtab, 2).fit(np.exp(-np.outer([0.5e-3, 1e-3], gtab.bvals)))
    fit.save(tmp_path / "whole")
    files, seen = sorted(p.name for p in (tmp_path / "whole").glob("*dwimap*")), 0
    for k, name in enumerate(files * 2):
        shutil.copytree(tmp_path / "whole", tmp_path / f"{k}")
        path = tmp_path / f"{k}" / name
        shortened(path, rng) if k < len(files) else path.write_bytes(rng.bytes(1000))
        part = "param" not in name or any(f"param-{label}_" in name for label in ("mapcoeffs", "mu", "frame", "status", "s0"))
        if part and not (name.endswith(".json") and "param" in name):
            said(capsys, ["indices", tmp_path / f"{k}", "--out", tmp_path / "o", "--quiet"])
            seen += 1
    assert seen >= 12


# -- the fit -----------------------------------------------------------------------------------------------------------

MODES = {
    "MAP": {"laplacian": None},
    "MAPL": {"laplacian": 0.2},
    "MAPL gcv": {"laplacian": "gcv"},
    "MAPL best of": {"laplacian": [0.01, 0.1, 0.5]},
    "isotropic": {"laplacian": 0.2, "basis": "isotropic"},
    "isotropic gcv": {"laplacian": "gcv", "basis": "isotropic"},
    "CMAP": {"laplacian": None, "positivity": "grid"},
    "CMAPL": {"laplacian": 0.2, "positivity": "grid"},
    "MAP+": {"laplacian": None, "positivity": "global"},
    "MAPL+": {"laplacian": 0.2, "positivity": "global"},
    "isotropic MAPL+": {"laplacian": 0.2, "basis": "isotropic", "positivity": "global"},
}
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
@pytest.mark.parametrize("mode", MODES)
def test_random_samples(mode, rng):
    """No exception; NaN or finite as the status says; clean voxels among them as without them, bit for bit."""
    scheme = phantom.small_scheme()
    clean = phantom.signals(20, *scheme, seed=4)
    with np.errstate(invalid="ignore"):  # of the casts
        data, good = fuzzed(clean, rng)
    assert data.shape[0] == 200
    model = mapmri.MapmriModel(phantom.table(*scheme), 4, **MODES[mode])
    fit, alone = model.fit(data), model.fit(clean)
    for name, rows in alone.rows().items():
        assert np.array_equal(rows, fit.rows()[name][good], equal_nan=True), name
    none = (fit.status & mapmri.Status.NO_FIT) != 0
    known = sum(int(flag) for flag in mapmri.Status) | int(mapmri.Status.NO_FIT)
    assert ((fit.status & ~known) == 0).all()
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
