"""Series as programs leave them, through the command line: frames of b-vectors, companions, counts."""

import json
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import phantom
import pytest
import truth
from numpy.testing import assert_allclose

import mapmri_nb as mapmri
from mapmri_nb.gradients import turned
from mapmri_nb.use.cli import main

SHAPE = (3, 2, 2)
B, G = truth.scheme([12, 20, 30], [1000, 2000, 3000], 3)
FIBRE = np.array([1.0, 1, 0.5]) / 1.5  # in scanner axes
TURN = phantom.random_rotation(np.random.default_rng(8)) * [2, 2, 2.5]
AFFINES = {
    "LPS+": np.diag([-2.0, -2, 2, 1]),
    "LAS": np.diag([-2.0, 2, 2, 1]),
    "oblique, positive": np.block([[TURN, np.zeros((3, 1))], [np.zeros(3), 1]]),
    "oblique, negative": np.block([[TURN * [-1, 1, 1], np.zeros((3, 1))], [np.zeros(3), 1]]),
}
ORDER = ("--radial-order", "4", "--laplacian", "0.05")
NAME = "sub-01_dwi"
NEAR = 12  # degrees: as near as a regularised ODF of order 4 comes; the mirrored one is 83 away


def acquire(folder, affine, frame, *, b_file=False, made_by=None, name=NAME):
    """A series of one fibre whose bvec runs along a frame; the path of its image."""
    folder.mkdir(parents=True)
    D = 2e-4 * np.eye(3) + 1.5e-3 * np.outer(FIBRE, FIBRE)
    y = 100 * np.exp(-B * np.einsum("ni,ij,nj->n", G, D, G))
    nib.save(
        nib.Nifti1Image(np.tile(y.astype(np.float32), (*SHAPE, 1)), affine),
        folder / f"{name}.nii.gz",
    )
    np.savetxt(folder / f"{name}.bvec", turned(G, affine, "scanner", frame).T, fmt="%.6f")
    np.savetxt(folder / f"{name}.bval", B[None], fmt="%g")
    (folder / f"{name}.json").write_text('{"LargeDelta": 0.0431, "SmallDelta": 0.0106}')
    if b_file:
        np.savetxt(folder / f"{name}.b", np.c_[G, B], fmt="%.6f")
    if made_by:
        entries = {"Name": "x", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": made_by}]}
        (folder / "dataset_description.json").write_text(json.dumps(entries))
    return folder / f"{name}.nii.gz"


def run(capsys, *words, code=0):
    """What a command says, on one line each."""
    assert main([str(word) for word in words]) == code
    return capsys.readouterr().err


def peak(capsys, folder, *words):
    """Scanner axes of the one peak that `fit` and `odf` find, and what `fit` said."""
    said = run(capsys, "fit", *words, *ORDER, "--out", folder)
    run(capsys, "odf", folder, "--quiet")
    (path,) = folder.glob("*param-peaks*.nii.gz")
    found = nib.load(path).get_fdata()[1, 1, 1, :3]
    return found / np.linalg.norm(found), said


def apart(one, two):
    return np.degrees(np.arccos(min(1.0, abs(one @ two))))


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("b_file", [False, True])
def test_qsiprep_against_its_twin_of_fsl(tmp_path, capsys, affine, b_file):
    """Both determinants, with and without .b: peaks within 0.1 degree of the image-frame twin's."""
    affine = AFFINES[affine]
    twin, _ = peak(capsys, tmp_path / "one", acquire(tmp_path / "fsl", affine, "image"))
    assert apart(twin, FIBRE) < NEAR
    folder = tmp_path / "qsiprep" / "sub-01" / "dwi"
    dwi = acquire(folder, affine, "voxel", b_file=b_file)
    description = {"GeneratedBy": [{"Name": "QSIPrep", "Version": "1.0"}]}
    (tmp_path / "qsiprep" / "dataset_description.json").write_text(json.dumps(description))
    found, said = peak(capsys, tmp_path / "two", dwi)
    assert apart(found, twin) < 0.1
    if b_file:
        assert f"b-vectors agree with {NAME}.b read in the " in said
        assert "voxel" in said
    else:
        assert "made by QSIPrep, so its b-vectors run along the voxel axes" in said
    image = nib.load(dwi)  # and in Python
    fit = mapmri.MapmriModel(mapmri.GradientTable.from_bids(dwi), 4, laplacian=0.05).fit(image)
    assert apart(fit.peaks(frame="scanner")[0][1, 1, 1, 0], twin) < 0.1


@pytest.mark.parametrize("frame", ["image", "voxel", "scanner"])
@pytest.mark.parametrize("affine", AFFINES)
def test_a_b_file_decides(tmp_path, capsys, affine, frame):
    affine = AFFINES[affine]
    dwi = acquire(tmp_path / "in", affine, frame, b_file=True)
    found, said = peak(capsys, tmp_path / "out", dwi)
    named = re.search(r"agree with sub-01_dwi\.b read in the ([a-z ]+) frame", said)[1]
    assert frame in named.split(" or ")
    alone = [dwi.with_suffix("").with_suffix("." + end) for end in ("bval", "bvec")]
    for file in alone:
        file.rename(tmp_path / file.name)
    for k, words in enumerate(((dwi,), (dwi, "--grad", dwi.with_name(f"{NAME}.b")))):
        again, _ = peak(capsys, tmp_path / f"again{k}", *words)
        assert apart(found, again) < 0.1
    assert apart(found, FIBRE) < NEAR


def test_a_contradiction_stops_the_fit(tmp_path, capsys):
    dwi = acquire(tmp_path / "in", AFFINES["LPS+"], "voxel", b_file=True)
    vectors = np.loadtxt(dwi.with_name(f"{NAME}.bvec"))
    np.savetxt(dwi.with_name(f"{NAME}.bvec"), vectors[[0, 2, 1]])  # y and z exchanged
    said = run(capsys, "fit", dwi, *ORDER, "--out", tmp_path / "o", code=1)
    for part in ("contradict sub-01_dwi.b", "in the image frame", "in the voxel frame", "--frame"):
        assert part in said
    assert not (tmp_path / "o").exists()
    run(capsys, "fit", dwi, *ORDER, "--out", tmp_path / "a", "--frame", "voxel")  # both ways out
    b_file = dwi.with_name(f"{NAME}.b")
    words = ("--grad", b_file, "--frame", "scanner")
    found, _ = peak(capsys, tmp_path / "b", dwi, *words)
    assert apart(found, FIBRE) < NEAR
    np.savetxt(b_file, np.c_[G, B][:-1])  # of another series
    said = run(capsys, "fit", dwi, *ORDER, "--out", tmp_path / "o", code=1)
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
        told, said = peak(capsys, tmp_path / name / "told", dwi, "--frame", "voxel")
        assert apart(told, FIBRE) < NEAR
        assert "convention" not in said
    other = acquire(tmp_path / "fmriprep", AFFINES["LPS+"], "image", made_by="fMRIPrep")
    found, said = peak(capsys, tmp_path / "o", other)
    assert apart(found, FIBRE) < NEAR
    mixed = acquire(tmp_path / "both", AFFINES["LPS+"], "voxel", b_file=True)
    _, said = peak(capsys, tmp_path / "p", mixed, "--frame", "image")
    assert "b-vectors read by --frame image contradict sub-01_dwi.b" in said
    said = run(
        capsys,
        "fit",
        mixed,
        "--grad",
        mixed.with_name(f"{NAME}.b"),
        "--frame",
        "voxel",
        "--out",
        "x",
        code=1,
    )
    assert "--frame voxel goes with --bvec" in said


def test_predict_at_tables_of_other_frames(tmp_path, capsys):
    """A fit in one frame, the table in another; without --frame a bvec is along the axes of the fit's own."""
    affine, fit = AFFINES["oblique, positive"], tmp_path / "fit"
    files = {f: acquire(tmp_path / f, affine, f, b_file=True) for f in ("image", "voxel")}
    run(capsys, "fit", files["voxel"], *ORDER, "--out", fit, "--frame", "voxel")
    tables = {
        f: [w for e in ("bval", "bvec") for w in (f"--{e}", tmp_path / f / f"{NAME}.{e}")]
        for f in files
    }
    calls = {
        "own": tables["voxel"],
        "image": [*tables["image"], "--frame", "image"],
        "scanner": ["--grad", tmp_path / "voxel" / f"{NAME}.b"],
    }
    timing = ("--big-delta", 0.0431, "--small-delta", 0.0106)
    for name, words in calls.items():
        run(capsys, "predict", fit, *words, *timing, "--out", tmp_path / f"{name}.nii")
    own, *others = (nib.load(tmp_path / f"{name}.nii").get_fdata() for name in calls)
    for found in others:
        assert_allclose(found, own, rtol=1e-3)


def series(dwi, change):
    image = nib.load(dwi)
    values = image.get_fdata()
    nib.save(nib.Nifti1Image(change(values).astype(np.float32), image.affine), dwi)


def test_a_run_that_fitted_nothing_ends_with_1(tmp_path, capsys):
    dwi = acquire(tmp_path / "in", AFFINES["LAS"], "image")
    series(dwi, lambda y: np.where(np.arange(len(B)) < 60, np.nan, y))
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINES["LAS"]), tmp_path / "m.nii")
    said = run(
        capsys, "fit", dwi, "--mask", tmp_path / "m.nii", *ORDER, "--out", tmp_path / "o", code=1
    )
    assert "12 voxels in" in said
    assert "none fitted, 12 voxels not: " in said
    assert (mapmri.load_fit(tmp_path / "o").status & mapmri.Status.NO_FIT).all()


def test_zeros_and_counts(tmp_path, capsys):
    """Zeros among positive samples are NaN's equals; --zeros data takes them as they are."""
    dwi = acquire(tmp_path / "in", AFFINES["LAS"], "image")

    def some(y, value):
        y[:2, ..., [10, 30, 50]] = value
        return y

    found = {}
    for name, value, words in (
        ("zero", 0, ()),
        ("nan", np.nan, ()),
        ("data", 0, ("--zeros", "data")),
    ):
        series(dwi, lambda y, value=value: some(y, value))
        said = run(capsys, "fit", dwi, *ORDER, *words, "--out", tmp_path / name)
        assert "8 voxels had samples left out; all were fitted; results in" in said
        rtop = tmp_path / name / "sub-01_model-mapmri_param-rtop_dwimap.nii.gz"
        found[name] = nib.load(rtop).get_fdata()
    assert np.array_equal(found["zero"], found["nan"])
    assert np.abs(found["data"][0] / found["nan"][0] - 1).max() > 0.05
    side = json.loads((tmp_path / "data" / "sub-01_model-mapmri_dwimap.json").read_text())
    assert side["Model"]["Parameters"]["zero_is_missing"] is False


def test_the_sidecar_holds_every_effective_option(tmp_path, capsys):
    import inspect

    dwi = acquire(tmp_path / "in", AFFINES["LAS"], "image")
    run(capsys, "fit", dwi, "--radial-order", 4, "--out", tmp_path / "o")
    side = json.loads((tmp_path / "o" / "sub-01_model-mapmri_dwimap.json").read_text())
    wanted = set(inspect.signature(mapmri.MapmriModel).parameters) - {
        "gtab",
        "preset",
    }  # a preset is what it sets
    assert wanted <= set(side["Model"]["Parameters"])
    assert {"frame", "b0_threshold"} <= set(side["GradientTable"])
    options = side["Run"]["Options"]
    assert {
        "units": "mm",
        "fill": "nan",
        "indices": "all",
        "frame": None,
    }.items() <= options.items()
    assert side["Run"]["Threads"] >= 1


def no_b0(folder):
    np.savetxt(folder / f"{NAME}.bval", B[None] + 100)
    np.savetxt(folder / f"{NAME}.bvec", np.where(B[:, None] > 0, G, [1, 0, 0]).T)


BAD = {
    "ms/um2": (
        lambda d: np.savetxt(d / f"{NAME}.bval", B[None] / 1000),
        (),
        "In ms/um2 that is 3000 s/mm2",
    ),
    "s/m2": (lambda d: np.savetxt(d / f"{NAME}.bval", B[None] * 1e6), (), "In s/m2?"),
    "mixed": (
        lambda d: (d / f"{NAME}.json").write_text('{"LargeDelta": 43.1, "SmallDelta": 0.0106}'),
        (),
        "Then it is 0.0106 s",
    ),
    "us": (
        lambda d: (d / f"{NAME}.json").write_text('{"LargeDelta": 43100, "SmallDelta": 10600}'),
        (),
        "In us? Then it is 0.0431 s",
    ),
    "threshold": (lambda d: None, ("--eigenvalue-threshold", 0.1), "Was it in um2/ms?"),
    "weight": (lambda d: None, ("--laplacian", 300), "Was it in 1/m?"),
    "not determined": (
        lambda d: None,
        ("--radial-order", 10, "--laplacian", "none"),
        "--laplacian 0.2",
    ),
    "tensor": (lambda d: None, ("--bval-threshold", 100), "--bval-threshold none"),
    "no b0": (no_b0, (), "--b0-threshold"),
    "zero direction": (lambda d: np.savetxt(d / f"{NAME}.bvec", G.T * (B < 3000)), (), "trace"),
}


@pytest.mark.parametrize("bad", BAD)
def test_messages_speak_the_words_of_the_command_line(tmp_path, capsys, bad):
    """Options, never arguments of Python."""
    change, words, part = BAD[bad]
    dwi = acquire(tmp_path / "in", AFFINES["LAS"], "image")
    change(tmp_path / "in")
    said = run(capsys, "fit", dwi, *words, "--out", tmp_path / "o", code=1)
    (error,) = (line for line in said.splitlines() if "error:" in line)
    assert part in error
    assert not re.search(
        r"(?<![-\w/.])[a-z]+_[a-z_]+(?!\w*[./])|\w+=\w|gtab|bvals|bvecs|None", error
    ), error


def test_messages_of_the_library_name_no_option(tmp_path):
    """Nothing raised or logged outside of the command line's own files says --anything."""
    code = (
        "import ast, pathlib, sys\n"
        "for path in pathlib.Path(sys.argv[1]).rglob('*.py'):\n"
        "    if path.name in ('cli.py', 'commands.py', 'tables.py'): continue\n"
        "    for node in ast.walk(ast.parse(path.read_text())):\n"
        "        if isinstance(node, ast.Constant) and isinstance(node.value, str):\n"
        "            if ' --' in node.value and not node.value.startswith('\\n'): print(path, node.value)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(mapmri.__path__[0])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == ""
