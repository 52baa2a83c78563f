"""Series as programs leave them, through the command line: frames of b-vectors, companions, counts."""

import ast
import inspect
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import truth
from numpy.testing import assert_allclose
from phantom import FIBRE, OBLIQUE, apart, one_fibre
from shell import command, load, read, save

import mapmri_nb as mapmri
from mapmri_nb.gradients import turned

SHAPE = (3, 2, 2)
B, G = truth.scheme([12, 20, 30], [1000, 2000, 3000], 3)
AFFINES = {
    "LPS+": np.diag([-2.0, -2, 2, 1]),
    "LAS": np.diag([-2.0, 2, 2, 1]),
    "oblique, positive": OBLIQUE,
    "oblique, negative": OBLIQUE @ np.diag([-1.0, 1, 1, 1]),
}
ORDER = "--radial-order 4 --laplacian 0.05"
NAME = "sub-01_dwi"
NEAR = 12  # degrees: as near as a regularised ODF of order 4 comes; the mirrored one is 83 away


def acquire(folder, affine, frame, *, b_file=False, made_by=None):
    """A series of one fibre (in scanner axes) whose bvec runs along a frame; the path of its image."""
    folder.mkdir(parents=True)
    dwi = folder / f"{NAME}.nii.gz"
    save(dwi, np.tile(one_fibre(B, G).astype(np.float32), (*SHAPE, 1)), affine)
    np.savetxt(folder / f"{NAME}.bvec", turned(G, affine, "scanner", frame).T, fmt="%.6f")
    np.savetxt(folder / f"{NAME}.bval", B[None], fmt="%g")
    (folder / f"{NAME}.json").write_text('{"LargeDelta": 0.0431, "SmallDelta": 0.0106}')
    if b_file:
        np.savetxt(folder / f"{NAME}.b", np.c_[G, B], fmt="%.6f")
    if made_by:
        entries = {"Name": "x", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": made_by}]}
        (folder.parents[1] / "dataset_description.json").write_text(json.dumps(entries))
    return dwi


def run(capsys, *words, code=0):
    """What a command says, on one line each."""
    assert command(*words) == code
    return capsys.readouterr().err


def peak(capsys, folder, *words):
    """Scanner axes of the one peak that `fit` and `odf` find, and what `fit` said."""
    said = run(capsys, "fit", *words, ORDER, "--out", folder)
    run(capsys, "odf", folder, "--quiet")
    found = read(folder, "peaks")[1, 1, 1, :3]
    return found / np.linalg.norm(found), said


@pytest.mark.parametrize("affine", AFFINES)
def test_qsiprep_against_its_twin_of_fsl(tmp_path, capsys, affine):
    """Both determinants: peaks within 0.1 degree of the image-frame twin's."""
    affine = AFFINES[affine]
    twin, _ = peak(capsys, tmp_path / "one", acquire(tmp_path / "fsl", affine, "image"))
    assert apart(twin, FIBRE) < NEAR
    dwi = acquire(tmp_path / "qsiprep/sub-01/dwi", affine, "voxel", made_by="QSIPrep")
    found, said = peak(capsys, tmp_path / "two", dwi)
    assert apart(found, twin) < 0.1
    assert "made by QSIPrep, so its b-vectors run along the voxel axes" in said
    image = nib.load(dwi)  # and in Python
    fit = mapmri.MapmriModel(mapmri.GradientTable.from_bids(dwi), 4, laplacian=0.05).fit(image)
    assert apart(fit.peaks(frame="scanner")[0][1, 1, 1, 0], twin) < 0.1


@pytest.mark.parametrize("frame", ["image", "voxel", "scanner"])
@pytest.mark.parametrize("affine", AFFINES)
def test_a_b_file_decides(tmp_path, capsys, affine, frame):
    dwi = acquire(tmp_path / "in", AFFINES[affine], frame, b_file=True)
    found, said = peak(capsys, tmp_path / "out", dwi)
    named = re.search(r"agree with sub-01_dwi\.b read in the ([a-z ]+) frame", said)[1]
    assert frame in named.split(" or ")
    for end in ("bval", "bvec"):
        dwi.with_name(f"{NAME}.{end}").rename(tmp_path / end)
    for k, more in enumerate(((), ("--grad", dwi.with_name(f"{NAME}.b")))):
        again, _ = peak(capsys, tmp_path / f"again{k}", dwi, *more)
        assert apart(found, again) < 0.1
    assert apart(found, FIBRE) < NEAR


def test_a_contradiction_stops_the_fit(tmp_path, capsys):
    dwi = acquire(tmp_path / "in", AFFINES["LPS+"], "voxel", b_file=True)
    bvec, b_file = dwi.with_name(f"{NAME}.bvec"), dwi.with_name(f"{NAME}.b")
    np.savetxt(bvec, np.loadtxt(bvec)[[0, 2, 1]])  # y and z exchanged
    said = run(capsys, "fit", dwi, "--out", tmp_path / "o", code=1)
    for part in ("contradict sub-01_dwi.b", "in the image frame", "in the voxel frame", "--frame"):
        assert part in said
    assert not (tmp_path / "o").exists()
    run(capsys, "fit", dwi, ORDER, "--frame voxel --out", tmp_path / "a")  # both ways out
    found, _ = peak(capsys, tmp_path / "b", dwi, "--frame scanner --grad", b_file)
    assert apart(found, FIBRE) < NEAR
    np.savetxt(b_file, np.c_[G, B][:-1])  # of another series
    said = run(capsys, "fit", dwi, "--out", tmp_path / "o", code=1)
    assert "they are not of the same series" in said


def test_what_was_assumed_is_said_where_it_matters(tmp_path, capsys):
    """Only where the determinant is positive do the conventions differ."""
    for name, affine in AFFINES.items():
        dwi = acquire(tmp_path / name / "in", affine, "voxel")
        found, said = peak(capsys, tmp_path / name / "out", dwi)
        positive = np.linalg.det(affine) > 0
        assert ("b-vectors are read in FSL's convention" in said) == positive
        assert ("--frame voxel" in said) == positive
        assert (apart(found, FIBRE) < NEAR) != positive
        told, said = peak(capsys, tmp_path / name / "told", dwi, "--frame voxel")
        assert apart(told, FIBRE) < NEAR
        assert "convention" not in said
    other = acquire(tmp_path / "prep/sub-01/dwi", AFFINES["LPS+"], "image", made_by="fMRIPrep")
    assert apart(peak(capsys, tmp_path / "o", other)[0], FIBRE) < NEAR
    mixed = acquire(tmp_path / "both", AFFINES["LPS+"], "voxel", b_file=True)
    _, said = peak(capsys, tmp_path / "p", mixed, "--frame image")
    assert "b-vectors read by --frame image contradict sub-01_dwi.b" in said
    words = ("fit", mixed, "--grad", mixed.with_name(f"{NAME}.b"), "--frame voxel --out x")
    assert "--frame voxel goes with --bvec" in run(capsys, *words, code=1)


def test_predict_at_tables_of_other_frames(tmp_path, capsys):
    """Without --frame a bvec is along the axes of the fit's own."""
    affine, fit = AFFINES["oblique, positive"], tmp_path / "fit"
    files = {f: acquire(tmp_path / f, affine, f, b_file=True) for f in ("image", "voxel")}
    run(capsys, "fit", files["voxel"], ORDER, "--frame voxel --out", fit)
    own, image = (
        [w for e in ("bval", "bvec") for w in (f"--{e}", tmp_path / f / f"{NAME}.{e}")]
        for f in ("voxel", "image")
    )
    found, timing = [], "--big-delta 0.0431 --small-delta 0.0106 --out"
    grad = ["--grad", tmp_path / "voxel" / f"{NAME}.b"]
    for k, words in enumerate((own, [*image, "--frame image"], grad)):
        run(capsys, "predict", fit, *words, timing, tmp_path / f"{k}.nii")
        found.append(load(tmp_path / f"{k}.nii"))
    assert_allclose(found[1], found[0], rtol=1e-3)
    assert_allclose(found[2], found[0], rtol=1e-3)


def test_a_run_that_fitted_nothing_ends_with_1(tmp_path, capsys):
    affine, out = AFFINES["LAS"], tmp_path / "o"
    dwi = acquire(tmp_path / "in", affine, "image")
    save(dwi, np.where(np.arange(len(B)) < 60, np.nan, load(dwi)).astype(np.float32), affine)
    mask = save(tmp_path / "m.nii", np.ones(SHAPE, np.uint8), affine)
    said = run(capsys, "fit", dwi, "--mask", mask, ORDER, "--out", out, code=1)
    assert "12 voxels in" in said
    assert "none fitted, 12 voxels not: " in said
    assert (mapmri.load_fit(out).status & mapmri.Status.NO_FIT).all()


def test_zeros_and_counts(tmp_path, capsys):
    """Zeros among positive samples are NaN's equals; --zeros data takes them as they are."""
    affine, found = AFFINES["LAS"], []
    dwi = acquire(tmp_path / "in", affine, "image")
    for name, value, words in (("zero", 0, ""), ("nan", np.nan, ""), ("data", 0, "--zeros data")):
        y = load(dwi).copy()
        y[:2, ..., [10, 30, 50]] = value
        save(dwi, y, affine)
        said = run(capsys, "fit", dwi, ORDER, words, "--out", tmp_path / name)
        assert "8 voxels had samples left out; all were fitted; results in" in said
        found.append(read(tmp_path / name, "rtop"))
    assert np.array_equal(found[0], found[1])
    assert np.abs(found[2][0] / found[1][0] - 1).max() > 0.05
    side = json.loads((tmp_path / "data" / "sub-01_model-mapmri_dwimap.json").read_text())
    assert side["Model"]["Parameters"]["zero_is_missing"] is False


def test_the_sidecar_holds_every_effective_option(tmp_path, capsys):
    dwi = acquire(tmp_path / "in", AFFINES["LAS"], "image")
    run(capsys, "fit", dwi, "--radial-order 4 --out", tmp_path / "o")
    side = json.loads((tmp_path / "o" / "sub-01_model-mapmri_dwimap.json").read_text())
    wanted = set(inspect.signature(mapmri.MapmriModel).parameters)
    wanted -= {"gtab", "preset"}  # a preset is what it sets
    assert wanted <= set(side["Model"]["Parameters"])
    assert {"frame", "b0_threshold"} <= set(side["GradientTable"])
    options = side["Run"]["Options"]
    said = [options[key] for key in ("units", "fill", "indices", "frame")]
    assert said == ["mm", "nan", "all", None]
    assert side["Run"]["Threads"] >= 1


BAD = {
    "ms/um2": ({"bval": B / 1000}, "", "In ms/um2 that is 3000 s/mm2"),
    "s/m2": ({"bval": B * 1e6}, "", "In s/m2?"),
    "mixed": ({"json": '{"LargeDelta": 43.1, "SmallDelta": 0.0106}'}, "", "Then it is 0.0106 s"),
    "us": ({"json": '{"LargeDelta": 43100, "SmallDelta": 10600}'}, "", "In us? Then it is 0.0431"),
    "threshold": ({}, "--eigenvalue-threshold 0.1", "Was it in um2/ms?"),
    "weight": ({}, "--laplacian 300", "Was it in 1/m?"),
    "not determined": ({}, "--radial-order 10 --laplacian none", "--laplacian 0.2"),
    "tensor": ({}, "--bval-threshold 100", "--bval-threshold none"),
    "no b0": (
        {"bval": B + 100, "bvec": np.where(B[:, None] > 0, G, [1, 0, 0])},
        "",
        "--b0-thresho",
    ),
    "zero direction": ({"bvec": G * (B < 3000)[:, None]}, "", "trace"),
}


@pytest.mark.parametrize("bad", BAD)
def test_messages_speak_the_words_of_the_command_line(tmp_path, capsys, bad):
    """Options, never arguments of Python."""
    change, words, part = BAD[bad]
    dwi = acquire(tmp_path / "in", AFFINES["LAS"], "image")
    for ending, content in change.items():
        path = tmp_path / "in" / f"{NAME}.{ending}"
        if ending == "json":
            path.write_text(content)
        else:
            np.savetxt(path, np.atleast_2d(content.T))
    said = run(capsys, "fit", dwi, words, "--out", tmp_path / "o", code=1)
    (error,) = (line for line in said.splitlines() if "error:" in line)
    assert part in error
    python = r"(?<![-\w/.])[a-z]+_[a-z_]+(?!\w*[./])|\w+=\w|gtab|bvals|bvecs|None"
    assert not re.search(python, error), error


def test_messages_of_the_library_name_no_option():
    """Nothing raised or logged outside of the command line's own files says --anything."""
    for path in Path(mapmri.__file__).parent.rglob("*.py"):
        if path.name in ("cli.py", "commands.py", "fitting.py", "tables.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r" --\w", node.value), (path, node.value)
