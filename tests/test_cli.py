"""The command line as users meet it: small cuts of the bundled samples, and careless users."""

import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from damage import cut
from mapmri_nb.cli import _announced, main
from mapmri_nb.directions import sh_matrix

import mapmri_nb as mapmri
from mapmri_nb import data
from mapmri_nb.kernels import _jit


@pytest.fixture
def brain(tmp_path):
    return cut("small101d", tmp_path / "in")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """(folder of a saved fit of the cord's cut, path of its series)."""
    base = tmp_path_factory.mktemp("cord")
    dwi = cut("catcord", base)
    assert (
        main(["fit", str(dwi), "--out", str(base / "fit"), "--radial-order", "4", "--quiet"]) == 0
    )
    return base / "fit", dwi


def command(*words):
    return main([str(w) for w in words])


def read(folder, label):
    (path,) = folder.glob(f"*param-{label}_dwimap.nii.gz")
    return np.asarray(nib.load(path).dataobj)


def fails(capsys, words, *expected, code=1):
    """The command ends with this code, one line that names the cause, and no traceback."""
    capsys.readouterr()
    assert command(*words) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1, err
    for word in expected:
        assert str(word).lower() in lines[0].lower(), lines[0]


def test_fit_writes_what_the_library_computes(brain, tmp_path):
    out = tmp_path / "out"
    mask = brain.with_name("sub-small101d_mask.nii.gz")
    assert (
        command("fit", brain, "--mask", mask, "--out", out, "--radial-order", 4, "--laplacian", 0.3)
        == 0
    )
    gtab = mapmri.GradientTable.from_bids(brain)
    image = nib.load(brain)
    fit = mapmri.MapmriModel(gtab, radial_order=4, laplacian=0.3).fit(np.asarray(image.dataobj))
    for label, name in (
        ("rtop", "rtop"),
        ("ngpar", "ng_par"),
        ("msd", "msd"),
        ("lapnorm", "lapnorm"),
    ):
        (path,) = out.glob(f"sub-small101d_model-mapmri_param-{label}_dwimap.nii.gz")
        written = nib.load(path)
        np.testing.assert_array_equal(
            np.asarray(written.dataobj), getattr(fit, name)().astype(np.float32)
        )
        np.testing.assert_array_equal(written.affine, image.affine)
    np.testing.assert_array_equal(mapmri.load_fit(out).coef, fit.coef)


def test_files_named_and_timing_on_the_command_line_go_first(brain, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    named = [brain.rename(elsewhere / "a.nii.gz")]
    for old, new in ((".bval", "b"), (".bvec", "v"), (".json", "j")):
        named.append(brain.with_name("sub-small101d_dwi" + old).rename(elsewhere / new))
    dwi, bval, bvec, sidecar = named
    common = [
        "fit",
        dwi,
        "--bval",
        bval,
        "--bvec",
        bvec,
        "--radial-order",
        2,
        "--quiet",
        "--indices",
        "msd,rtop",
    ]
    assert command(*common, "--json", sidecar, "--out", tmp_path / "1") == 0
    assert (
        command(*common, "--big-delta", 0.0488, "--small-delta", 0.03, "--out", tmp_path / "2") == 0
    )
    assert (
        command(
            *common,
            "--json",
            sidecar,
            "--big-delta",
            0.2,
            "--small-delta",
            0.03,
            "--out",
            tmp_path / "3",
        )
        == 0
    )
    one, two, three = ((tmp_path / n / "a_model-mapmri_param-rtop_dwimap.nii.gz") for n in "123")
    assert one.is_file()
    first, second, third = (np.asarray(nib.load(p).dataobj) for p in (one, two, three))
    np.testing.assert_array_equal(first, second)
    assert (third < first).all()
    assert not list((tmp_path / "1").glob("*ngpar*"))


def test_noise_and_rules(brain, tmp_path):
    """Sigma as a number, as an image and by the fit: the library's numbers, and a map of sigma."""
    image = nib.load(brain)
    volume = np.full(image.shape[:3], 25.0, np.float32)
    volume[0] = 30.0
    nib.save(nib.Nifti1Image(volume, image.affine), tmp_path / "sigma.nii")
    words = ["--noise", "rician", "--radial-order", 2, "--s0", "free", "--laplacian-of", "signal"]
    words += ["--eigenvalue-threshold", 2e-4, "--bval-threshold", "none", "--quiet"]
    model = mapmri.MapmriModel(
        mapmri.GradientTable.from_bids(brain), 2, noise="rician", S0="free", laplacian_of="signal",
        eigenvalue_threshold=2e-4, bval_threshold=None,
    )  # fmt: skip
    for k, (given, sigma) in enumerate(
        ((["--sigma", 25], 25.0), (["--sigma", tmp_path / "sigma.nii"], volume), ([], None))
    ):
        out = tmp_path / str(k)
        assert command("fit", brain, "--out", out, *words, *given) == 0
        fit = mapmri.load_fit(out)
        again = model.fit(np.asarray(image.dataobj), fit.mask, sigma=sigma)
        np.testing.assert_array_equal(fit.coef, again.coef)
        np.testing.assert_array_equal(fit.sigma, again.sigma)
        if sigma is not None:
            np.testing.assert_allclose(
                read(out, "sigma")[fit.mask], np.broadcast_to(sigma, fit.mask.shape)[fit.mask]
            )
        assert fit.options["noise"] == "rician"


@pytest.mark.parametrize("laplacian", ["none", "gcv", "0.05", "0.05,0.5"])
def test_laplacian_spellings(brain, tmp_path, laplacian):
    words = [
        "fit",
        brain,
        "--out",
        tmp_path / "o",
        "--radial-order",
        4,
        "--laplacian",
        laplacian,
        "--quiet",
    ]
    assert command(*words) == 0
    weight = read(tmp_path / "o", "weight")
    allowed = {"none": [0.0], "0.05": [0.05], "0.05,0.5": [0.05, 0.5]}.get(laplacian)
    assert (weight > 0).all() if allowed is None else np.isin(weight, allowed).all()


def test_without_a_mask_empty_voxels_are_skipped_and_a_mask_recommended(brain, tmp_path, capsys):
    image = nib.load(brain)
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 0
    nib.save(nib.Nifti1Image(values, image.affine), brain)
    assert command("fit", brain, "--out", tmp_path / "o", "--radial-order", 2, "--fill", "0") == 0
    err = capsys.readouterr().err
    assert "--mask" in err
    assert f"{values[..., 0].size - 1} of {values[..., 0].size}" in err
    rtop = read(tmp_path / "o", "rtop")
    assert rtop[0, 0, 0] == 0
    assert (rtop > 0).sum() == rtop.size - 1


def test_indices_units_and_fill_of_a_saved_fit(fitted, tmp_path):
    folder, _ = fitted
    assert (
        command(
            "indices",
            folder,
            "--out",
            tmp_path / "um",
            "--units",
            "um",
            "--indices",
            "rtop,msd",
            "--quiet",
        )
        == 0
    )
    np.testing.assert_allclose(
        read(tmp_path / "um", "rtop"), read(folder, "rtop") * 1e-9, rtol=1e-6
    )
    np.testing.assert_allclose(read(tmp_path / "um", "msd"), read(folder, "msd") * 1e6, rtol=1e-6)
    (sidecar,) = (tmp_path / "um").glob("*param-rtop_dwimap.json")
    assert "um" in sidecar.read_text()
    assert not list((tmp_path / "um").glob("*param-ng_*"))


def test_predict_gives_the_series_back(fitted, tmp_path):
    folder, dwi = fitted
    assert command("predict", folder, "--out", tmp_path / "p.nii.gz", "--quiet") == 0
    predicted, measured = (np.asarray(nib.load(p).dataobj) for p in (tmp_path / "p.nii.gz", dwi))
    assert predicted.shape == measured.shape
    assert np.corrcoef(predicted.ravel(), measured.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(predicted, mapmri.load_fit(folder).predict(), rtol=1e-5)


def test_predict_on_another_table(fitted, tmp_path):
    folder, _ = fitted
    (tmp_path / "t.bval").write_text("0 1000 2000")
    (tmp_path / "t.bvec").write_text("0 1 0\n0 0 1\n0 0 0")
    timing = ["--big-delta", 0.03, "--small-delta", 0.003]
    words = [
        "predict",
        folder,
        "--out",
        tmp_path / "p.nii.gz",
        "--bval",
        tmp_path / "t.bval",
        "--quiet",
    ]
    assert command(*words, "--bvec", tmp_path / "t.bvec", *timing) == 0
    predicted = np.asarray(nib.load(tmp_path / "p.nii.gz").dataobj)
    assert predicted.shape[-1] == 3
    np.testing.assert_allclose(predicted[..., 0], read(folder, "s0"), rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_odf_is_in_scanner_axes(tmp_path, sign):
    """
    The cord runs along the third voxel axis: along the affine's third column, whatever the sign of
    its determinant.
    """
    dwi = cut("catcord", tmp_path)
    oblique = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = oblique * np.sign(np.linalg.det(oblique)) * [sign, 1, 1] * [0.156, 0.156, 1.49]
    nib.save(nib.Nifti1Image(np.asarray(nib.load(dwi).dataobj), affine), dwi)
    assert command("fit", dwi, "--out", tmp_path / "o", "--quiet") == 0
    assert command("odf", tmp_path / "o", "--sh-order", 6, "--quiet") == 0
    (path,) = (tmp_path / "o").glob("*param-peaks_dwimap.nii.gz")
    first = np.asarray(nib.load(path).dataobj)[..., :3].reshape(-1, 3)
    along = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    first = first[np.isfinite(first).all(1)]
    assert len(first) == 8
    assert np.median(np.abs(first @ along) / np.linalg.norm(first, axis=1)) > 0.98
    (path,) = (tmp_path / "o").glob("*param-odf_dwimap.nii.gz")
    coef = np.asarray(nib.load(path).dataobj).reshape(8, 28)
    directions = np.random.default_rng(0).normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    values = coef @ sh_matrix(np.vstack([directions, along]), 6).T
    assert (values[:, -1:] > np.percentile(values[:, :-1], 90, axis=1, keepdims=True)).all()
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["OrientationEncoding"]["SphericalHarmonicBasis"] == "MRtrix3"
    assert sidecar["OrientationEncoding"]["Reference"] == "xyz"


def test_demo(tmp_path, capsys):
    assert command("demo", "--out", tmp_path / "d", "--quiet") == 0
    out = capsys.readouterr().out
    for words in ("RTOP", "NG", "ASSUMED", "Duval", "upstream terms not verified"):
        assert words in out
    for name in data.SAMPLES:
        status, rtop = read(tmp_path / "d" / name, "status"), read(tmp_path / "d" / name, "rtop")
        assert np.isfinite(rtop).sum() > 500
        assert np.isfinite(rtop[status == 0]).all()
    assert command("demo", "--out", tmp_path / "d", "--quiet") == 0, "its own folder is rewritten"


def test_info_says_what_a_bug_report_needs(capsys):
    assert command("info") == 0
    out = capsys.readouterr().out
    for word in (mapmri.__version__, np.__version__, "numba", "osqp", "threads", "cache", "CPU"):
        assert word in out


@pytest.mark.jit_only
def test_compilation_is_announced_when_it_happens_and_once(caplog, monkeypatch):
    monkeypatch.setattr(
        _jit, "CACHE_DIR", None
    )  # or a second run with the same cache has nothing to compile
    kernel = _jit.kernel()(lambda x: x + 1)
    with caplog.at_level(logging.INFO), _announced():
        assert kernel(1) == 2
        assert kernel(1.5) == 2.5
    assert sum("compiling" in line for line in caplog.messages) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO), _announced():
        assert kernel(2) == 3
    assert not caplog.messages


def test_quiet_is_silent(brain, tmp_path, capsys):
    assert command("fit", brain, "--out", tmp_path / "o", "--radial-order", 2, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_entry_points():
    env = os.environ | {"PYTHONPATH": str(Path(mapmri.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "mapmri_nb", "--version"], capture_output=True, text=True, env=env,
                          check=True)  # fmt: skip
    assert done.stdout.split() == ["mapmri-nb", mapmri.__version__]
    assert (
        subprocess.run(
            [sys.executable, "-m", "mapmri_nb", "fit"], capture_output=True, env=env
        ).returncode
        == 2
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "required: COMMAND"),
        ("fit", "required: DWI, --out"),
        ("paint", "invalid choice: 'paint'"),
        ("fit x --out y --basis round", "argument --basis: invalid choice: 'round'"),
        ("fit x --out y --laplacian some", "argument --laplacian: 'some' is neither none, gcv"),
        ("fit x --out y --laplacian .1,,2", "argument --laplacian: '.1,,2' is neither none, gcv"),
        (
            "fit x --out y --bval-threshold low",
            "argument --bval-threshold: 'low' is neither a number nor none",
        ),
        ("fit x --out y --threads two", "argument --threads: invalid int value: 'two'"),
        ("fit x --out=", "argument --out: the path is empty"),
    ],
)
def test_arguments_that_do_not_parse(words, expected, capsys):
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("usage")
    assert expected in err.splitlines()[-1]
    assert main(["--help"]) == 0


# -- careless users
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".bval", ".bvec"])
def test_missing_file_is_named(brain, tmp_path, capsys, suffix):
    missing = brain.with_name("sub-small101d_dwi" + suffix)
    missing.unlink()
    fails(capsys, ["fit", brain, "--out", tmp_path / "o"], missing.name)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--big-delta", 48.8, "--small-delta", 30], ["big_delta", "milliseconds"]),
        (["--big-delta", 0.01, "--small-delta", 0.03], ["small_delta"]),
        (["--big-delta", 0.01], ["small_delta", "missing"]),
        (["--radial-order", 5], ["radial_order", "5"]),
        (["--radial-order", 12], ["radial_order", "12"]),
        (["--laplacian", "-1"], ["laplacian", "-1"]),
        (["--indices", "rtop,fa"], ["fa"]),
        (["--basis", "isotropic", "--indices", "ng_par"], ["ng_par"]),
        (["--threads", 0], ["threads", "0"]),
        (["--threads", -2], ["threads", "-2"]),
        (["--bootstrap", 1], ["--bootstrap", "2 replicates, not 1"]),
        (["--bootstrap", 9, "--posterior"], ["--posterior", "--bootstrap"]),
        (["--bootstrap", 9, "--seed", -1], ["--seed", "-1"]),
        (["--seed", 1], ["--seed goes with --bootstrap"]),
        (["--reestimate"], ["--reestimate goes with --bootstrap"]),
        (["--scheduler", "tcp://x"], ["--scheduler tcp://x goes with --engine dask"]),
        (["--sigma", 3], ["--sigma goes with --noise"]),
        (["--coils", 4], ["--coils goes with --noise"]),
        (["--noise", "denoised"], ["--noise denoised needs --sigma"]),
        (["--preset", "paper", "--noise", "rician"], ["preset='paper'", "noise"]),
        (["--weights", "nowhere.txt"], ["nowhere.txt"]),
        (["--mask", "/"], ["/", "a folder"]),
        (["--mask", "nowhere.nii"], ["nowhere.nii"]),
        (["--json", "nowhere.json"], ["nowhere.json"]),
    ],
)
def test_wrong_values_are_named(brain, tmp_path, capsys, flags, words):
    fails(capsys, ["fit", brain, "--out", tmp_path / "o", *flags], *words)
    assert not (tmp_path / "o").exists()


def test_no_timing_anywhere(brain, tmp_path, capsys):
    brain.with_name("sub-small101d_dwi.json").unlink()
    fails(capsys, ["fit", brain, "--out", tmp_path / "o"], "big_delta", "missing")


def test_counts_that_disagree(brain, tmp_path, capsys):
    image = nib.load(brain)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., :90], image.affine), brain)
    fails(capsys, ["fit", brain, "--out", tmp_path / "o"], "90", "102")


def test_three_dimensional_series(brain, tmp_path, capsys):
    nib.save(nib.Nifti1Image(np.ones((3, 2, 2), np.int16), np.eye(4)), brain)
    fails(capsys, ["fit", brain, "--out", tmp_path / "o"], brain.name)


@pytest.mark.parametrize("value", [0, -5, np.nan])
def test_no_signal_anywhere(brain, tmp_path, capsys, value):
    nib.save(nib.Nifti1Image(np.full((3, 2, 2, 102), value, np.float32), np.eye(4)), brain)
    fails(
        capsys,
        ["fit", brain, "--out", tmp_path / "o"],
        brain.name,
        "no voxel has a positive signal",
    )
    assert not (tmp_path / "o").exists()


def test_no_voxel_with_a_fit_is_said_even_quietly(brain, tmp_path, capsys):
    """A mask of voxels without signal: a status each, and a line."""
    nib.save(nib.Nifti1Image(np.zeros((3, 2, 2, 102), np.float32), np.eye(4)), brain)
    mask = brain.with_name("sub-small101d_mask.nii.gz")
    assert (
        command(
            "fit", brain, "--mask", mask, "--out", tmp_path / "o", "--radial-order", 2, "--quiet"
        )
        == 0
    )
    assert "12 voxels" in (err := capsys.readouterr().err)
    assert "12 NO_FIT" in err


@pytest.mark.parametrize(
    ("content", "words"), [("1 2 3", ["(3,)", "(102,)"]), ("one", ["'one'"]), ("-1 " * 102, ["-1"])]
)
def test_weights_in_a_text_file(brain, tmp_path, capsys, content, words):
    (tmp_path / "w.txt").write_text(content)
    fails(
        capsys,
        ["fit", brain, "--out", tmp_path / "o", "--weights", tmp_path / "w.txt"],
        "w",
        *words,
    )
    assert not (tmp_path / "o").exists()


def test_mask_of_another_shape(brain, tmp_path, capsys):
    nib.save(nib.Nifti1Image(np.ones((3, 2, 7), np.uint8), np.eye(4)), tmp_path / "m.nii")
    fails(
        capsys,
        ["fit", brain, "--mask", tmp_path / "m.nii", "--out", tmp_path / "o"],
        "mask",
        "(3, 2, 7)",
    )


def test_empty_mask(brain, tmp_path, capsys):
    nib.save(
        nib.Nifti1Image(np.zeros((3, 2, 2), np.uint8), nib.load(brain).affine), tmp_path / "m.nii"
    )
    fails(capsys, ["fit", brain, "--mask", tmp_path / "m.nii", "--out", tmp_path / "o"], "mask")


@pytest.mark.parametrize(
    "content", [b"not an image at all", b"", gzip.compress(b"still not an image"), None]
)
def test_files_that_are_no_images(brain, tmp_path, capsys, content):
    brain.write_bytes(brain.read_bytes()[:-200] if content is None else content)  # None: truncated
    fails(capsys, ["fit", brain, "--out", tmp_path / "o"], brain.name)
    assert not list((tmp_path / "o").glob("*")) if (tmp_path / "o").exists() else True


def test_existing_output_is_kept_without_force(brain, tmp_path, capsys):
    words = ["fit", brain, "--out", tmp_path / "o", "--radial-order", 2]
    assert command(*words) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    fails(capsys, [*words, "--laplacian", 1], "force")
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()} == before
    assert command(*words, "--laplacian", 1, "--force") == 0
    assert (
        tmp_path / "o" / "sub-small101d_model-mapmri_param-rtop_dwimap.nii.gz"
    ).read_bytes() not in before.values()


def test_output_that_cannot_be_made(brain, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    fails(capsys, ["fit", brain, "--out", tmp_path / "file" / "o", "--radial-order", 2], "file")
    fails(capsys, ["fit", brain, "--out", tmp_path / "file", "--radial-order", 2], "file")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_no_permission(brain, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o555)
    fails(
        capsys,
        ["fit", brain, "--out", tmp_path / "locked" / "o", "--radial-order", 2],
        "permission",
        "locked",
    )


@pytest.mark.parametrize("name", ["indices", "odf", "report"])
def test_folder_that_is_no_fit(tmp_path, capsys, name):
    fails(capsys, [name, tmp_path / "nowhere"], "nowhere")
    (tmp_path / "empty").mkdir()
    fails(capsys, [name, tmp_path / "empty"], "empty")
    fails(
        capsys,
        [name, data.sample_dwi("catcord")],
        "sub-cord_dwi.nii.gz",
        "not the JSON of a saved fit",
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--s", "-3"], "s must be a number above -3"),
        (["--s", "inf"], "up to 100: got inf"),
        (["--sh-order", "3"], "sh_order must be an even number from 0 to 32: got 3"),
        (["--sh-order", "200"], "got 200"),
        (["--sh-basis", "round"], "got 'round'"),
    ],
)
def test_odf_that_cannot_be(fitted, tmp_path, capsys, words, expected):
    fails(capsys, ["odf", fitted[0], "--out", tmp_path / "o", *words], expected)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "p.txt"], "--out: p.txt is neither"),
        (["--out", "p.nii", "--bval", "b"], "--bval and --bvec go together"),
        (["--out", "p.nii", "--big-delta", "0.03"], "--big-delta goes with --bval"),
        (["--out", "p.nii", "--json", "j"], "--json goes with --bval"),
        (["--out", "p.nii", "--bval", "b", "--bvec", "v"], "b"),
    ],
)
def test_predictions_that_cannot_be(fitted, tmp_path, capsys, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["predict", fitted[0], *words], expected)
    assert list(tmp_path.iterdir()) == []


def test_prediction_with_a_table_without_deltas(fitted, tmp_path, capsys):
    (tmp_path / "t.bval").write_text("0 1000")
    (tmp_path / "t.bvec").write_text("0 1\n0 0\n0 0")
    table = ["--bval", tmp_path / "t.bval", "--bvec", tmp_path / "t.bvec"]
    fails(
        capsys, ["predict", fitted[0], "--out", tmp_path / "p.nii", *table], "big_delta is missing"
    )
    assert not (tmp_path / "p.nii").exists()


def test_fit_of_an_unknown_version_is_refused(fitted, tmp_path, capsys):
    shutil.copytree(fitted[0], tmp_path / "fit")
    for path in (tmp_path / "fit").glob("*.json"):
        content = json.loads(path.read_text())
        for key in list(content):
            if "version" in key.lower():
                content[key] = 999
        path.write_text(json.dumps(content))
    fails(capsys, ["indices", tmp_path / "fit", "--out", tmp_path / "o"], "version")


def test_interrupt(brain, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(mapmri.MapmriModel, "fit", stop)
    assert command("fit", brain, "--out", tmp_path / "o") == 130
    err = capsys.readouterr().err
    assert "interrupted" in err
    assert "Traceback" not in err


def test_bugs_are_not_hidden(brain, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise IndexError("a bug of ours")

    monkeypatch.setattr(mapmri.MapmriModel, "fit", broken)
    with pytest.raises(IndexError):
        command("fit", brain, "--out", tmp_path / "o")


def test_logging_is_left_as_it_was(capsys):
    log = logging.getLogger("mapmri_nb")
    before = (list(log.handlers), log.level)
    command("info")
    command("indices", "nowhere")
    assert (list(log.handlers), log.level) == before


@pytest.mark.nojit
def test_samples_are_whole():
    for name, voxels, volumes in (("small101d", 600, 102), ("catcord", 1901, 168)):
        folder = data.sample(name)
        assert (folder / "LICENSE.txt").is_file()
        assert (folder / "README.md").is_file()
        assert nib.load(data.sample_dwi(name)).shape[-1] == volumes
        (mask,) = folder.glob("*_mask.nii.gz")
        assert np.count_nonzero(nib.load(mask).dataobj) == voxels
        assert len(mapmri.GradientTable.from_bids(data.sample_dwi(name))) == volumes
    with pytest.raises(ValueError, match="nobody"):
        data.sample("nobody")
