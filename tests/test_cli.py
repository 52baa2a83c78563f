"""The command line as users meet it: small cuts of the bundled samples, and careless users."""

import inspect
import json
import logging
import os
import re
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
from numpy.testing import assert_allclose, assert_array_equal

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
    """Exit code; a text holds words between spaces, a path is one."""
    return main(
        [part for w in words for part in (str(w).split() if not isinstance(w, Path) else [str(w)])]
    )


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
        assert_array_equal(np.asarray(written.dataobj), getattr(fit, name)().astype(np.float32))
        assert_array_equal(written.affine, image.affine)
    assert_array_equal(mapmri.load_fit(out).coef, fit.coef)


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
        "--radial-order 2 --quiet --indices msd,rtop",
    ]
    assert command(*common, "--json", sidecar, "--out", tmp_path / "1") == 0
    assert (
        command(*common, "--big-delta", 0.0488, "--small-delta", 0.03, "--out", tmp_path / "2") == 0
    )
    assert (
        command(
            *common, "--json", sidecar, "--big-delta 0.2 --small-delta 0.03 --out", tmp_path / "3"
        )
        == 0
    )
    one, two, three = ((tmp_path / n / "a_model-mapmri_param-rtop_dwimap.nii.gz") for n in "123")
    assert one.is_file()
    first, second, third = (np.asarray(nib.load(p).dataobj) for p in (one, two, three))
    assert_array_equal(first, second)
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
        assert_array_equal(fit.coef, again.coef)
        assert_array_equal(fit.sigma, again.sigma)
        if sigma is not None:
            assert_allclose(
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
        "--radial-order 4 --laplacian",
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


def test_predict_gives_the_series_back(fitted, tmp_path):
    folder, dwi = fitted
    assert command("predict", folder, "--out", tmp_path / "p.nii.gz", "--quiet") == 0
    predicted, measured = (np.asarray(nib.load(p).dataobj) for p in (tmp_path / "p.nii.gz", dwi))
    assert predicted.shape == measured.shape
    assert np.corrcoef(predicted.ravel(), measured.ravel())[0, 1] > 0.98
    assert_allclose(predicted, mapmri.load_fit(folder).predict(), rtol=1e-5)


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
    assert_allclose(predicted[..., 0], read(folder, "s0"), rtol=1e-5)


def test_maps_on_request_and_summary(tmp_path):
    """Axes in scanner frame, the same from both commands; a line for every index and region."""
    dwi, out = cut("catcord", tmp_path), tmp_path / "o"
    like = nib.load(dwi)
    labels = np.zeros(like.shape[:3], np.int16)
    labels.flat[:4] = 7
    nib.save(nib.Nifti1Image(labels, like.affine), tmp_path / "l.nii.gz")
    words = ["--quiet", "--labels", tmp_path / "l.nii.gz"]
    assert command("fit", dwi, "--out", out, "--indices", "rtop,fa,v1,color_fa", *words) == 0
    first = {name: read(out, name) for name in ("rtop", "fa", "v1", "colorfa")}
    table = next(out.glob("*_summary.tsv"))
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == ["index", "unit", "region", "voxels", "median", "p5", "p95"]
    assert [line[::2][:2] for line in lines[1:]] == [
        [name, region] for name in ("rtop", "fa") for region in ("mask", "7")
    ]
    inside = labels == 7
    for line, where in zip(lines[1:], [labels >= 0, inside] * 2, strict=True):
        values = first[line[0]][where]
        want = [np.isfinite(values).sum(), *np.nanpercentile(values, [50, 5, 95])]
        assert_allclose(np.array(line[3:], float), want, rtol=1e-5)
    assert np.allclose(
        first["colorfa"], np.abs(first["v1"]) * first["fa"][..., None], atol=1e-6, equal_nan=True
    )
    more = ["--indices", "md,v1,fa", "--units", "um"]
    assert command("indices", out, "--force", *more, *words) == 0
    assert np.array_equal(read(out, "v1"), first["v1"], equal_nan=True)
    lines = [line.split("\t")[:3] for line in table.read_text().splitlines()[1:]]
    assert lines[:2] == [["rtop", "mm^-3", "mask"], ["rtop", "mm^-3", "7"]]
    assert ["md", "um^2/s", "7"] in lines
    assert len(lines) == 6
    nib.save(nib.Nifti1Image(labels + np.float32(0.5), like.affine), tmp_path / "l.nii.gz")
    assert command("indices", out, "--force", *more, *words) == 1


def test_peaks_for_dipy(tmp_path):
    """DIPY reads them: along the third voxel axis, as the cord runs, on the nearest vertex as well."""
    peaks = pytest.importorskip("dipy.io.peaks")
    pytest.importorskip("h5py")
    assert command("fit", cut("catcord", tmp_path), "--out", tmp_path / "o", "--quiet") == 0
    assert command("odf", tmp_path / "o", "--pam5", "--quiet") == 0
    pam = peaks.load_pam(str(next((tmp_path / "o").glob("*.pam5"))))
    first = pam.peak_dirs[..., 0, :].reshape(-1, 3)
    assert np.median(np.abs(first[:, 2])) > 0.98
    assert pam.shm_coeff.shape[-1] == 28
    near = pam.sphere.vertices[pam.peak_indices[..., 0].ravel()]
    assert np.abs((near * first).sum(1)).min() > np.cos(np.radians(8))


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
    assert sidecar["ScaleFactor"] == pytest.approx(
        np.abs(coef).max() / np.abs(mapmri.io.load_map(path).data).max()
    )
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
            "argument --bval-threshold: 'low' is neither a number, none nor auto",
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


# -- a switch for every argument
SWITCHES = {
    "zero_is_missing": "zeros",
    "bvals": "bval",
    "bvecs": "bvec",
    "gtab": "bval",
}  # named otherwise on the command line


@pytest.mark.parametrize("constructor", [mapmri.MapmriModel, mapmri.GradientTable])
def test_every_argument_has_a_switch(constructor, capsys):
    assert main(["fit", "--help"]) == 0
    options = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    for name in inspect.signature(constructor).parameters:
        switch = "--" + SWITCHES.get(name, name).lower().replace("_", "-")
        assert switch in options, f"{constructor.__name__}({name}=...) has no {switch}"


def test_switches_reach_the_model(brain, tmp_path):
    words = ["fit", brain, "--out", tmp_path / "o", "--radial-order", 2, "--quiet"]
    more = {"--basis": "isotropic", "--static-diffusivity": 7e-4, "--eigenvalue-threshold": 2e-4}
    more |= {"--bval-threshold": "none", "--solver": "osqp", "--b0-threshold": 20, "--tau": 0.03}
    assert command(*words, *(w for pair in more.items() for w in pair)) == 0
    fit = mapmri.load_fit(tmp_path / "o")
    assert (fit.gtab.tau, fit.gtab.b0_threshold, fit.gtab.big_delta) == (0.03, 20, None)
    found = [fit.options[n] for n in ("static_diffusivity", "eigenvalue_threshold", "solver")]
    assert found == [7e-4, 2e-4, "osqp"]
    assert fit.options["bval_threshold"] is None
    assert_allclose(fit.mu, np.sqrt(2 * 7e-4 * 0.03))


def test_abbreviations_are_no_options(capsys):
    for word in ("--grad-d", "--radial", "--big", "--quie"):
        assert main(["fit", "x", "--out", "y", word, "1"]) == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_spellings_of_indices(fitted, tmp_path):
    out = tmp_path / "o"
    words = ["--indices", "RTOP,ngpar,ng_par,NG_perp,PA_DTI", "--quiet"]
    assert command("indices", fitted[0], "--out", out, *words) == 0
    labels = {path.name.split("param-")[1].split("_")[0] for path in out.glob("*dwimap.nii.gz")}
    assert labels == {"rtop", "ngpar", "ngperp", "padti"}


@pytest.mark.parametrize("choice", ["b<=2500", "0:80,90", "file"])
def test_volumes(brain, tmp_path, choice):
    """What a table and a series cut in Python give, weights cut with them."""
    gtab, image = mapmri.GradientTable.from_bids(brain), nib.load(brain)
    values, rng = np.asarray(image.dataobj), np.random.default_rng(1)
    keep = {"b<=2500": gtab.bvals <= 2500, "0:80,90": [*range(80), 90]}.get(choice, [*range(0, 95)])
    weights, text = rng.uniform(0.5, 1, 102), choice
    np.savetxt(tmp_path / "w.txt", weights, fmt="%.17g")
    if choice == "file":
        text = tmp_path / "keep.txt"
        text.write_text(" ".join(map(str, keep)))
    fit = mapmri.MapmriModel(gtab[keep], 4).fit(values[..., keep], weights=weights[keep])
    words = ["--volumes", text, "--weights", tmp_path / "w.txt", "--radial-order", 4, "--quiet"]
    assert command("fit", brain, "--out", tmp_path / "o", *words) == 0
    saved = mapmri.load_fit(tmp_path / "o")
    assert saved.gtab == gtab[keep]
    assert_array_equal(saved.coef, fit.coef)
    image4 = np.broadcast_to(weights, values.shape).astype(np.float64)
    nib.save(nib.Nifti1Image(image4, image.affine), tmp_path / "w.nii")
    words[3] = tmp_path / "w.nii"
    assert command("fit", brain, "--out", tmp_path / "o4", *words) == 0
    assert_array_equal(mapmri.load_fit(tmp_path / "o4").coef, fit.coef)


@pytest.mark.parametrize("how", ["text", "image", "left out"])
def test_trace_volume_with_weight_0_or_left_out(brain, tmp_path, capsys, how):
    stem, image = str(brain).removesuffix(".nii.gz"), nib.load(brain)
    expected = mapmri.MapmriModel(mapmri.GradientTable.from_bids(brain), 4).fit(
        np.asarray(image.dataobj)
    )
    series = np.asarray(image.dataobj)
    series = np.concatenate([series, series.mean(-1, keepdims=True)], axis=-1)
    nib.save(nib.Nifti1Image(series.astype(image.get_data_dtype()), image.affine), brain)
    bvals, bvecs = np.loadtxt(stem + ".bval"), np.loadtxt(stem + ".bvec")
    np.savetxt(stem + ".bval", np.r_[bvals.ravel(), 2000.0][None], fmt="%.17g")
    bvecs = bvecs if bvecs.shape[0] == 3 else bvecs.T
    np.savetxt(stem + ".bvec", np.c_[bvecs, np.zeros(3)], fmt="%.17g")
    words = ["fit", brain, "--out", tmp_path / "o", "--radial-order", 4, "--quiet"]
    fails(
        capsys, words, "b-vectors[102]", "b = 2000", "trace or ADC volume", "--volumes", "weight 0"
    )
    weights = np.r_[np.ones(102), 0]
    if how == "text":
        np.savetxt(tmp_path / "w.txt", weights)
        words += ["--weights", tmp_path / "w.txt"]
    elif how == "image":
        values = np.broadcast_to(weights, series.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(values, image.affine), tmp_path / "w.nii")
        words += ["--weights", tmp_path / "w.nii"]
    else:
        words += ["--volumes", "0:102"]
    assert command(*words) == 0
    assert_array_equal(mapmri.load_fit(tmp_path / "o").coef, expected.coef)


# -- folders of fits
def test_two_runs_in_one_folder(brain, tmp_path, capsys):
    """Every second-stage command by PREFIX and by the fit's JSON, through to two reports."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    for run in ("run-1", "run-2"):
        for path in brain.parent.glob("sub-small101d_dwi*"):
            shutil.copy(path, tmp_path / path.name.replace("_dwi", f"_{run}_dwi"))
        dwi = tmp_path / f"sub-small101d_{run}_dwi.nii.gz"
        assert command("fit", dwi, "--out", out, "--radial-order", 2, "--quiet") == 0
    fails(capsys, ["indices", out], "several fits", "prefix", "'sub-small101d_run-2'")
    fails(capsys, ["odf", out, "run-3"], "no saved fit", "'run-3'", "'sub-small101d_run-2'")
    assert command("indices", out, "sub-small101d_run-2_dwi", "--quiet") == 0
    prefixes = ["sub-small101d_run-1", "sub-small101d_run-2"]
    names = ([out, prefixes[0]], [out / f"{prefixes[1]}_model-mapmri_dwimap.json"])
    for name, prefix in zip(names, prefixes, strict=True):
        assert command("indices", *name) == 0
        assert "0 maps" in capsys.readouterr().err, "what is there is kept"
        (out / f"{prefix}_model-mapmri_param-pa_dwimap.nii.gz").unlink()
        assert command("indices", *name, "--indices", "pa") == 0
        assert command("odf", *name, "--sh-order", 4) == 0
        assert f"{prefix}_model-mapmri_param-odf_dwimap.nii.gz" in capsys.readouterr().err
        assert command("predict", *name, "--out", tmp_path / f"{prefix}.nii") == 0
        assert "102 volumes in" in capsys.readouterr().err
        assert command("report", *name) == 0
        for label in ("pa", "odf", "peaks"):
            assert (out / f"{prefix}_model-mapmri_param-{label}_dwimap.nii.gz").is_file()
    assert {path.stem for path in out.glob("*.html")} == {f"{p}_report" for p in prefixes}


def test_indices_of_a_fit_as_the_readme_prints_it(fitted, tmp_path, capsys):
    folder = tmp_path / "fit"
    shutil.copytree(fitted[0], folder)
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*param-rtop*")}
    assert command("indices", folder) == 0
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*param-rtop*")} == before
    fails(capsys, ["indices", folder, "--units", "um"], "mm^-3", "um^-3", "--force")
    assert command("indices", folder, "--units", "um", "--force") == 0
    assert_allclose(read(folder, "rtop"), read(fitted[0], "rtop") * 1e-9, rtol=1e-6)


def test_fill_of_odf_and_predict(brain, tmp_path):
    mask = np.ones((3, 2, 2), np.uint8)
    mask[0, 0, 0] = 0
    nib.save(nib.Nifti1Image(mask, nib.load(brain).affine), tmp_path / "m.nii")
    out = tmp_path / "o"
    words = ["--mask", tmp_path / "m.nii", "--out", out, "--radial-order", 2, "--quiet"]
    assert command("fit", brain, *words) == 0
    assert command("odf", out, "--fill", "0", "--quiet") == 0
    predicted = tmp_path / "p.nii"
    assert command("predict", out, "--fill", "0", "--out", predicted, "--quiet") == 0
    for values in (read(out, "odf"), read(out, "peaks"), np.asarray(nib.load(predicted).dataobj)):
        assert (values[0, 0, 0] == 0).all()
        assert np.isfinite(values).all()


def test_list_of_outputs(fitted, tmp_path, capsys):
    out = tmp_path / "out"
    dwi = ["fit", fitted[1], "--out", out, "--radial-order", 2, "--indices", "rtop"]
    for words in (
        dwi,
        ["indices", out, "--indices", "msd"],
        ["odf", out, "--sh-order", 2],
        ["predict", out, "--out", tmp_path / "p.nii", "--volumes", "0:3"],
    ):
        capsys.readouterr()
        assert command(*words, "--list-outputs", "--quiet") == 0
        files = [Path(name) for name in json.loads(capsys.readouterr().out)]
        assert files
        assert all(file.is_file() and file.is_absolute() for file in files)
    assert nib.load(tmp_path / "p.nii").shape[-1] == 3


def test_names_sources_and_sidecars(brain, tmp_path):
    root = tmp_path / "set"
    folder = root / "sub-1" / "dwi"
    folder.mkdir(parents=True)
    (root / "dataset_description.json").write_text("{}")
    for path in brain.parent.glob("sub-small101d_dwi*"):
        name = path.name.replace("sub-small101d_dwi", "sub-1_desc-preproc_space-T1w_dwi")
        shutil.copy(path, folder / name)
    dwi = folder / "sub-1_desc-preproc_space-T1w_dwi.nii.gz"
    out = tmp_path / "out"
    words = ["--radial-order", 2, "--posterior", "--indices", "rtop", "--quiet"]
    assert command("fit", dwi, "--out", out, *words) == 0
    names = {p.name for p in out.iterdir()} - {"dataset_description.json", ".bidsignore"}
    stem = "sub-1_space-T1w_model-mapmri"
    assert all(name.startswith(stem) and name.count("desc-") <= 1 for name in names)
    assert f"{stem}_param-rtop_desc-sd_dwimap.nii.gz" in names
    entries = json.loads((out / f"{stem}_dwimap.json").read_text())
    assert entries["Sources"] == ["bids:raw:sub-1/dwi/" + dwi.name]
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetLinks"] == {"raw": root.as_uri()}
    for label in ("rtop", "rtop_desc-sd", "mapcoeffs", "s0", "status"):
        sidecar = json.loads((out / f"{stem}_param-{label}_dwimap.json").read_text())
        assert sidecar["Model"] == entries["Model"]
        assert sidecar["Model"]["Parameters"]["radial_order"] == 2
        assert sidecar["Units"]
    assert "dwimap" in (out / ".bidsignore").read_text()
    deep = tmp_path / "derivatives" / "sub-1" / "dwi"
    assert command("fit", dwi, "--out", deep, "--radial-order", 2, "--quiet") == 0
    assert not (deep / "dataset_description.json").exists(), "it belongs to the data set's root"
    described = {path.name for path in (tmp_path / "derivatives").iterdir() if path.is_file()}
    assert described == {"dataset_description.json", ".bidsignore"}
    text = (out / f"{stem}_dwimap.json").read_text()
    assert len(text) < 25000
    assert sum('"bvecs"' in line and line.count("[") == 103 for line in text.splitlines()) == 1


def test_report_into_a_folder(fitted, tmp_path, capsys):
    fails(capsys, ["report", fitted[0], "--out", tmp_path], "--out", "is a folder", "report.html")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"])
@pytest.mark.parametrize("value", ["1", "1,4", "", "0", "many"])
def test_what_a_job_may_use_bounds_the_default(monkeypatch, name, value):
    for variable in _jit.BOUNDS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(_jit.numba.config, "DISABLE_JIT", False)
    monkeypatch.setattr(_jit.numba, "get_num_threads", lambda: 3)
    monkeypatch.setenv(name, value)
    assert _jit.n_threads(None) == (1 if value.startswith("1") else 3)
    assert _jit.n_threads(2) == 2, "what the caller asks for goes first"


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
        (["--big-delta", 48.8, "--small-delta", 30], ["--big-delta", "milliseconds"]),
        (["--big-delta", 0.01, "--small-delta", 0.03], ["--small-delta"]),
        (["--big-delta", 0.01], ["--small-delta = 0.03 is longer than --big-delta"]),
        (["--tau", 0.04, "--big-delta", 0.05], ["--tau = 0.04 came with --big-delta"]),
        (["--tau", 40], ["--tau = 40 is above 1 s: milliseconds?"]),
        (["--b0-threshold", -1], ["--b0-threshold must be a number >= 0, not -1"]),
        (["--volumes", "200"], ["--volumes: 200", "one of 102"]),
        (["--volumes", "b>=300"], ["at least one b0 volume", "--b0-threshold"]),
        (["--grad", "x.b", "--bval", "y"], ["--grad", "neither --bval nor --bvec"]),
        (["--static-diffusivity", 1e-3], ["--static-diffusivity = 0.001", "--basis isotropic"]),
        (["--eigenvalue-threshold", 0], ["--eigenvalue-threshold must be"]),
        (
            ["--laplacian", "none", "--radial-order", 10],
            ["pass --laplacian 0.2 or --positivity global"],
        ),
        (["--radial-order", 5], ["--radial-order must", "5"]),
        (["--radial-order", 12], ["--radial-order must", "12"]),
        (["--laplacian", "-1"], ["laplacian", "-1"]),
        (["--indices", "rtop,kurtosis"], ["kurtosis"]),
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
        (["--preset", "paper", "--noise", "rician"], ["--preset paper", "--noise"]),
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
    fails(capsys, ["fit", brain, "--out", tmp_path / "o"], "--big-delta is missing", "--tau")


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
        (["--sh-order", "3"], "--sh-order must be an even number from 0 to 32: got 3"),
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
        capsys,
        ["predict", fitted[0], "--out", tmp_path / "p.nii", *table],
        "--big-delta is missing",
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
