"""Images, sidecars and saved fits: what is written is what is read, and what is broken is named."""

import gzip
import json
import os
from types import SimpleNamespace
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from shell import content, load, refused, sidecar

from mapmri_nb import io
from mapmri_nb.fit import MapmriFit
from mapmri_nb.gradients import GradientTable
from mapmri_nb.indices import INDICES
from mapmri_nb.use import folder as fits
from mapmri_nb.use import packed

TURN = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
AFFINE = np.block(
    [[TURN @ np.diag([-2, 2, 2.5]), np.array([[30], [-20], [7]])], [np.zeros(3), 1]]
).astype(np.float32)
RNG = np.random.default_rng(11)
SHAPE = (4, 3, 5)


def image(path, data, affine=AFFINE, slope=None):
    made = nib.Nifti1Image(data, affine, nib.Nifti1Header(endianness="><"[data.dtype.isnative]))
    made.set_data_dtype(data.dtype)
    if slope is not None:
        made.header.set_slope_inter(*slope)
    nib.save(made, path)
    return path


@pytest.fixture
def fit():
    mask = RNG.random(SHAPE) < 0.6
    mask[0, 0, 0], mask[1, 1, 1] = True, False
    v = int(mask.sum())
    shapes = {"coef": (v, 7), "mu": (v, 3), "mu_tensor": (v, 3), "R": (v, 3, 3)}
    shapes |= dict.fromkeys(("S0", "laplacian_weight", "rmse", "r2"), (v,))
    rows = {name: RNG.normal(size=shape) for name, shape in shapes.items()}
    rows |= {name: RNG.integers(0, 8, v) for name in ("iterations", "status")}
    rows["coef"][3] = np.nan
    gtab = GradientTable([0, 1000], [[0, 0, 0], [0.6, 0, 0.8]], 0.0431, 0.0106)
    options = {"radial_order": 2, "basis": "anisotropic", "positivity": None}
    options["laplacian"] = (0.1, np.float64(0.2))
    return MapmriFit(rows, mask, options, gtab, np.eye(4))


@pytest.mark.nojit
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("dtype", "slope"),
    [
        *((dtype, None) for dtype in (np.int16, np.uint8, np.float32, ">i2")),
        (np.int16, (1, 0)),
        (np.int16, (0.5, 3)),
    ],
)
def test_series_are_mapped_and_read_in_runs(tmp_path, monkeypatch, ending, dtype, slope):
    """What nibabel reads: whole, in slices, and chosen volumes in blocks of any size."""
    data, path = RNG.integers(0, 200, (*SHAPE, 6)).astype(dtype), tmp_path / f"dwi{ending}"
    read, affine = io.load_dwi(image(path, data, slope=slope))[:2]
    stored = nib.load(path).get_fdata()
    assert np.array_equal(affine, AFFINE.astype(float))
    if slope != (0.5, 3):
        assert isinstance(read, np.memmap)
        assert read.dtype == np.dtype(dtype)
    for part in (np.s_[:, :, 2:4], np.s_[:]):
        assert_array_equal(read[part], stored[part])
    for few in (8_000_000, 100):
        monkeypatch.setattr(io, "READ", few)
        for series in (read, io.Chosen(read, np.array([5, 0, 3])), np.asarray(read), read[::-1]):
            flat = np.asarray(series).reshape(-1, series.shape[-1], order="F")[7:31].T
            blocks = [block.copy() for block in io.runs(series, 7, 31)]
            assert {block.dtype for block in blocks} == {flat.dtype}
            assert np.array_equal(np.concatenate(blocks), flat)


def test_a_series_that_became_shorter_is_an_error(tmp_path, monkeypatch):
    read = io.load_dwi(image(tmp_path / "dwi.nii", np.ones((*SHAPE, 6), np.int16))).data
    os.truncate(tmp_path / "dwi.nii", 500)
    reads = iter([os.preadv] * 3)  # who asks again and again is stopped
    monkeypatch.setattr(os, "preadv", lambda *given: next(reads)(*given))
    refused("shorter", next, io.runs(read, 0, 10), error=OSError)


@pytest.mark.parametrize("large", [0, 4_000_000])
def test_unpacking_leaves_no_file_and_space_is_asked_for(tmp_path, monkeypatch, fit, large):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(io.tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(packed, "LARGE", large)
    path = image(tmp_path / "dwi.nii.gz", np.ones((*SHAPE, 2), np.float32))
    with packed.coming(path) as begun:
        assert (begun is None) == (large > 0)
        assert begun is None or begun() is not None
        read = io.load_dwi(path, begun=begun)
    assert list(scratch.iterdir()) == []
    assert read.data.sum() == 120
    monkeypatch.setattr(io.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    words = "MB needed to unpack .*TMPDIR.*scratch"
    refused(words, io.load_dwi, tmp_path / "dwi.nii.gz", error=OSError)
    words = "cannot write results: .* MB needed to save, 0 MB free"
    refused(words, io.save_fit, fit, tmp_path / "fit", error=OSError)
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize("large", [0, 4_000_000])
def test_damaged_files_are_named(tmp_path, monkeypatch, large):
    monkeypatch.setattr(packed, "LARGE", large)
    data, unread = np.ones((*SHAPE, 2), np.float32), "not a readable NIfTI"
    good = image(tmp_path / "good.nii", RNG.integers(0, 9999, data.shape).astype(np.int16))
    good = good.read_bytes()
    small = gzip.compress(good, mtime=0)
    made = nib.Nifti1Image(data, AFFINE)
    made.header.set_qform(None)
    made.header["srow_x"][1], made.header["sform_code"] = np.nan, 1
    nib.save(nib.MGHImage(data[..., 0], AFFINE), tmp_path / "other.mgz")
    for name, raw, message in (
        ("text.nii", b"this is a letter, not an image\n" * 40, unread),
        ("notes.txt", b"hello", r"must be \.nii"),
        ("short.nii", good[:-30], "truncated, holds .* promises"),
        ("header.nii", good[:200], unread),
        ("short.nii.gz", small[: len(small) // 2], f"damaged or truncated|{unread}"),
        ("cut.nii.gz", gzip.compress(good[:-30]), "truncated, holds"),
        ("sum.nii.gz", gzip.compress(good + RNG.bytes(2**21))[:-8] + bytes(8), "damaged or trunc"),
        ("affine.nii", made.header.binaryblock + bytes(4) + data.tobytes(), "affine is not finite"),
        ("other.nii.gz", (tmp_path / "other.mgz").read_bytes(), f"{unread}|not a NIfTI"),
    ):
        (tmp_path / name).write_bytes(raw)
        with packed.coming(tmp_path / name) as begun:
            refused(f"{name}.*({message})", io.load_dwi, tmp_path / name, begun=begun)
    for values, message in (
        (data.astype(np.complex64), r"new.nii.*complex64, not a NIfTI image of real"),
        (data[..., 0], r"4 axes, not shape \(4, 3, 5\)"),
    ):
        refused(message, io.load_dwi, image(tmp_path / "new.nii", values))
    gone = tmp_path / "none.nii"
    refused(r"no such file.*none\.nii", io.load_dwi, gone, error=FileNotFoundError)
    refused("a folder, not an image", io.load_dwi, tmp_path, error=IsADirectoryError)


PARAM = "_model-mapmri_param-ngpar_dwimap.nii.gz"


@pytest.mark.nojit
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/sub-01_ses-2_desc-x_dwi.nii.gz", "sub-01_ses-2" + PARAM),
        ("sub-1_desc-x_run-2_space-T_o-1_acq-a_dwi.nii", "sub-1_acq-a_run-2_o-1_space-T" + PARAM),
        ("dwi.nii", PARAM[1:]),
        ("scan7.nii.gz", "scan7" + PARAM),
        (None, PARAM[1:]),
    ],
)
def test_names(source, name):
    prefix, model = io.prefix_of(source), name.replace("param-ngpar_", "").replace("nii.gz", "json")
    assert io.map_name(prefix, "ngpar") == name
    assert io.map_name(prefix, "", ".json") == model


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(4,), (4, 3), SHAPE, (*SHAPE, 2), (40000, 1, 1)])
def test_written_images_are_what_nibabel_reads(tmp_path, ending, shape):
    data, paths = RNG.normal(size=shape), [tmp_path / (name + ending) for name in ("one", "two")]
    for path in paths:
        io.write_nii(path, [data], shape, np.float64, AFFINE)
    read = nib.load(paths[0])
    assert np.array_equal(read.get_fdata().reshape(shape), data)
    assert np.array_equal(read.affine, AFFINE)
    assert_allclose(read.header.get_qform(), AFFINE, atol=1e-5)
    assert read.header.get_xyzt_units()[0] == "mm"
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if ending == ".nii.gz":
        assert paths[0].read_bytes()[3:8] == bytes(5)  # no name, no time


def test_index_maps_and_their_units(tmp_path):
    values = RNG.random(SHAPE) * 1e5
    values[0, 0, 0] = np.nan
    values[1, 0, 0] = 1e300  # a runaway voxel: inf in float32, no warning
    maps = {"rtop": values, "msd": values, "ng_par": values, "odf_sh": RNG.random((*SHAPE, 6))}
    sidecars = {"odf_sh": {"Description": "ODF", "OrientationEncoding": {"Type": "sh"}}}
    out = tmp_path / "a" / "b"
    paths = io.write_maps(out, "sub-1", maps, AFFINE, sidecars=sidecars)
    names = [io.map_name("sub-1", x) for x in ("rtop", "msd", "ngpar", "odfsh")]
    assert [p.name for p in paths] == names
    assert nib.load(paths[0]).get_data_dtype() == np.float32
    with np.errstate(over="ignore"):
        assert_array_equal(load(paths[0]), values.astype(np.float32))
    assert np.array_equal(load(paths[3]), maps["odf_sh"].astype(np.float32))

    described = {"Description": INDICES["rtop"].long_name, "Units": "mm^-3", "FillValue": "NaN"}
    assert sidecar(out, "rtop") == described
    assert sidecar(out, "ngpar")["Units"] == "1"
    assert sidecar(out, "odfsh")["OrientationEncoding"] == {"Type": "sh"}
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    two = {"rtop": values, "msd": values}
    paths = io.write_maps(tmp_path / "um", "", two, AFFINE, units="um", fill=0)
    rtop, msd = map(load, paths)
    assert_allclose(rtop[2:], values[2:] * 1e-9, rtol=1e-6)
    assert_allclose(msd[2:], values[2:] * 1e6, rtol=1e-6)
    assert rtop[0, 0, 0] == 0
    said = sidecar(tmp_path / "um", "msd")
    assert (said["Units"], said["FillValue"]) == ("um^2", 0)
    bad = tmp_path / "bad"
    refused("units must be", io.write_maps, bad, "", two, AFFINE, units="nm")
    words = r"affine must have shape \(4, 4\), not \(3, 3\)"
    refused(words, io.write_maps, bad, "", two, np.eye(3))
    refused("affine is not finite or is", io.write_maps, bad, "", two, np.zeros((4, 4)))
    assert not bad.exists()


def test_nothing_is_overwritten_without_force(tmp_path):
    ones, twos = {"rtop": np.ones(SHAPE)}, {"ng": np.ones(SHAPE), "rtop": np.full(SHAPE, 2.0)}
    fits.check_output(tmp_path, "")
    (path,) = io.write_maps(tmp_path, "", ones, AFFINE)
    before = content(tmp_path)
    fits.check_output(tmp_path, "sub-2")
    refused("are there already", fits.check_output, tmp_path, "", error=FileExistsError)
    words, given = "not overwritten without force.*param-rtop", (tmp_path, "", twos, AFFINE)
    refused(words, io.write_maps, *given, error=FileExistsError)
    assert content(tmp_path) == before  # nor is the other map there
    fits.check_output(tmp_path, "", force=True)
    io.write_maps(tmp_path, "", twos, AFFINE, force=True)
    assert nib.load(tmp_path / io.map_name("", "rtop")).get_fdata().max() == 2
    (tmp_path / "dataset_description.json").write_text("{}")
    io.write_maps(tmp_path, "", twos, AFFINE, force=True)
    assert (tmp_path / "dataset_description.json").read_text() == "{}"
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "failure", [RuntimeError("boom"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
@pytest.mark.parametrize("folder", ["old", "new/deep"])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, failure, folder):
    (tmp_path / "old").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(fits, "write_description", Mock(side_effect=failure))
    words = f"cannot write results: No space left.*{folder}" if type(failure) is OSError else None
    given = tmp_path / folder, "", {"rtop": np.ones(SHAPE)}, AFFINE
    refused(words, io.write_maps, *given, error=type(failure))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_saved_fit_comes_back_bit_for_bit(tmp_path, fit):
    """Whole, and a slab of it."""
    more = {"affine": AFFINE, "sources": ["sub-1_dwi.nii.gz"], "run": {"Threads": 2}}
    io.save_fit(fit, tmp_path, prefix="sub-1", **more)
    slab, rows = np.zeros(SHAPE, bool), fit.rows()
    slab[:, :, 2:4] = True
    for within, keep in ((None, fit.mask), (slab, slab & fit.mask)):
        saved = io.read_fit(tmp_path, within=within)
        assert saved.fit.rows().keys() == rows.keys()
        for key, found in saved.fit.rows().items():
            kind = rows[key].dtype.kind
            assert found.dtype == (np.int64 if kind == "i" else np.float64), key
            assert np.array_equal(found, rows[key][keep[fit.mask]], equal_nan=kind == "f"), key
        assert np.array_equal(saved.fit.mask, keep)
    assert len(io.load_fit(tmp_path, within=np.zeros(SHAPE, bool)).coef) == 0
    words = r"within: its shape \(3, 5\) differs from the fit's \(4, 3, 5\)"
    refused(words, io.load_fit, tmp_path, within=slab[0])
    assert saved.fit.gtab.to_dict() == fit.gtab.to_dict()
    assert saved.fit.options == {**fit.options, "laplacian": [0.1, 0.2]}
    assert saved.prefix == "sub-1"
    assert np.array_equal(saved.affine, AFFINE)
    assert saved.entries["Run"]["Threads"] == 2
    assert saved.entries["Sources"] == ["sub-1_dwi.nii.gz"]
    for label in ("mapcoeffs", "mu", "mutensor", "frame", "s0", "weight", "status", "rmse", "r2"):
        assert len(list(tmp_path.glob(f"sub-1_model-mapmri_param-{label}_dwimap.nii*"))) == 1
        assert (tmp_path / io.map_name("sub-1", label, ".json")).is_file()
    assert sidecar(tmp_path, "status")["Levels"]["128"] == "outside the mask"
    coefs = nib.load(tmp_path / io.map_name("sub-1", "mapcoeffs", ".nii"))
    assert coefs.get_data_dtype() == np.float64
    volume = np.full((*SHAPE, 7), np.nan)
    volume[fit.mask] = rows["coef"]
    assert np.array_equal(coefs.get_fdata(), volume, equal_nan=True)


def test_one_folder_many_fits(tmp_path, fit):
    """Each is named by its prefix; a new one replaces all of its old one, and nothing else."""
    refused("no saved fit", io.read_fit, tmp_path, error=FileNotFoundError)
    for prefix in ("", "sub-1", "sub-2"):
        io.save_fit(fit, tmp_path, prefix=prefix)
        io.write_maps(tmp_path, prefix, {"ng_par": np.ones(SHAPE)}, AFFINE)
    refused("several fits, name one by its prefix: .*sub-1", io.read_fit, tmp_path)
    assert [io.read_fit(tmp_path, prefix).prefix for prefix in ("sub-1", "")] == ["sub-1", ""]
    refused("without force", io.save_fit, fit, tmp_path, error=FileExistsError)
    io.save_fit(fit, tmp_path, force=True)
    maps = [tmp_path / io.map_name(prefix, "ngpar") for prefix in ("", "sub-1")]
    assert [path.exists() for path in maps] == [False, True]


def test_foreign_and_damaged_fits_are_refused(tmp_path, fit):
    io.save_fit(fit, tmp_path)
    path, mu = tmp_path / io.map_name("", "", ".json"), tmp_path / io.map_name("", "mu", ".nii")
    good = json.loads(path.read_text())
    order = {"Indices": "n1 n2 n3", "Table": good["CoefficientOrder"]["Table"][::-1]}
    for changes, words in (
        ({"FormatVersion": 2}, r"dwimap\.json: format version 2 is unknown"),
        ({"Shape": [4, 3, 6]}, r"has shape .* not \(4, 3, 6\)"),
        ({"CoefficientOrder": order}, "coefficients are in an unknown order"),
    ):
        path.write_text(json.dumps(good | changes))
        refused(words, io.read_fit, tmp_path)
    path.write_text(json.dumps(good))
    io.read_fit(tmp_path)
    mu.write_bytes(b"half")
    refused(r"param-mu_dwimap\.nii: not a readable", io.read_fit, tmp_path)
    mu.unlink()
    refused("param-mu", io.read_fit, tmp_path, error=FileNotFoundError)
    for raw in (b"{}", b"[1]", b"{", b'{"FormatVersion": 1}', b"\x1f\x8b" * 5000):
        path.write_bytes(raw)
        error = refused("not the JSON of a saved fit", io.read_fit, tmp_path)
        assert len(str(error)) < 1000, "of bytes that are no text, not all"
