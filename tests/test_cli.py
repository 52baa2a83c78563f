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
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from damage import cut
from mapmri_nb.cli import main
from mapmri_nb.directions import tracking_factor
from numpy.testing import assert_allclose, assert_array_equal
from shell import command, fails, load, read, refused, save, sidecar

import mapmri_nb as mapmri
from mapmri_nb import data
from mapmri_nb.kernels import _jit
from mapmri_nb.use import fitting


@pytest.fixture
def brain(tmp_path):
    return cut("small101d", tmp_path / "in")


def fit(dwi, out, *words):
    """Exit code of a fit; later words go before the earlier ones."""
    return command("fit", dwi, "--out", out, "--radial-order 2 --quiet", *words)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Folder of a saved fit of the cord's cut."""
    base = tmp_path_factory.mktemp("cord")
    assert fit(cut("catcord", base), base / "fit", "--radial-order 4") == 0
    return base / "fit"


def test_files_named_and_timing_on_the_command_line_go_first(brain, tmp_path):
    ends = ("bval", "bvec", "json")
    files = [brain.with_name(f"sub-small101d_dwi.{end}").rename(tmp_path / end) for end in ends]
    named = " ".join(f"--{file.name} {file}" for file in files)
    for times in ({}, {"big_delta": 0.2}, {"big_delta": 0.2, "small_delta": 0.01}):
        deltas = (f"--{name.replace('_', '-')} {value}" for name, value in times.items())
        assert fit(brain, tmp_path / "o", named, *deltas, "--force --indices msd") == 0
        expected = mapmri.GradientTable.from_fsl(*files[:2], json=files[2], **times)
        assert mapmri.load_fit(tmp_path / "o").gtab == expected


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--laplacian none --s0 free", {"laplacian": None, "S0": "free"}),
        ("--laplacian gcv --bval-threshold none", {"laplacian": "gcv", "bval_threshold": None}),
        ("--laplacian 0.05,0.5 --scale tensor", {"laplacian": [0.05, 0.5], "scale": "tensor"}),
        ("--laplacian 0.05 --preset paper", {"laplacian": 0.05, "preset": "paper"}),
        ("--positivity grid --solver osqp", {"positivity": "grid", "solver": "osqp"}),
        ("--noise rician --coils 2 --eigenvalue-threshold 2e-4 --zeros data",
         {"noise": "rician", "coils": 2, "eigenvalue_threshold": 2e-4, "zero_is_missing": False}),
        ("--basis isotropic --static-diffusivity 7e-4 --laplacian-of signal",
         {"basis": "isotropic", "static_diffusivity": 7e-4, "laplacian_of": "signal"}),
    ],
)  # fmt: skip
def test_switches_are_arguments_of_the_library(brain, tmp_path, words, options):
    """The options, the table and the coefficients are those of the same calls in Python."""
    assert fit(brain, tmp_path / "o", words, "--b0-threshold 20 --tau 0.03 --radial-order 4") == 0
    one = mapmri.load_fit(tmp_path / "o")
    assert one.gtab == mapmri.GradientTable.from_bids(brain, tau=0.03, b0_threshold=20)
    again = mapmri.MapmriModel(one.gtab, 4, **options).fit(load(brain), one.mask)
    assert one.options == again.options
    assert_array_equal(one.coef, again.coef)


def test_sigma(brain, tmp_path):
    """As a number, as an image and by the fit: the library's numbers, and a map of sigma."""
    volume = np.full((3, 2, 2), 25.0, np.float32)
    volume[0] = 30.0
    path = save(tmp_path / "sigma.nii", volume, nib.load(brain).affine)
    model = mapmri.MapmriModel(mapmri.GradientTable.from_bids(brain), 2, noise="rician")
    for sigma, words in ((25.0, ["--sigma 25"]), (volume, ["--sigma", path]), (None, [])):
        assert fit(brain, tmp_path / "o", "--noise rician --force", *words) == 0
        one = mapmri.load_fit(tmp_path / "o")
        again = model.fit(load(brain), one.mask, sigma=sigma)
        assert_array_equal(one.coef, again.coef)
        assert_array_equal(one.sigma, again.sigma)
        assert_allclose(read(tmp_path / "o", "sigma")[one.mask], again.sigma, rtol=1e-6)


WARNINGS = [
    (None, "--bval-threshold 1300", "thin, its elements scatter by"),
    (None, "--eigenvalue-threshold 7e-4", "% of the voxels have an eigenvalue at the floor"),
    (None, "--noise rician --sigma 1e6", "sigma is above S0 in most voxels"),
    (lambda y, b: 1000 * np.exp(-5e-5 * b) + 0 * y, "--bval-threshold 2100", "as in fixed tissue"),
    # b is too small by a factor
    (lambda y, b: 1000 * np.exp(-6e-3 * b) + 0 * y, "", "free water has 3e-3: is b in s/mm2?"),
    (lambda y, b: np.where(np.arange(len(b)) % 50 == 7, -5.0, y), "",
     "1.96 % of the samples are negative"),
    # it grows with b where the scale tensor does not look
    (lambda y, b: 1000 * np.exp(-1e-3 * b) + 700 * (b > 2300) + 0 * y, "",
     "12 voxels have an index outside its range"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "flags", "words"), [(None, "", ""), *WARNINGS])
def test_warnings(brain, tmp_path, capsys, change, flags, words):
    """Each is said where its cause is, once, and nowhere else."""
    image, b = nib.load(brain), mapmri.GradientTable.from_bids(brain).bvals
    if change:
        values = change(np.asarray(image.dataobj, np.float32), b).astype(np.float32)
        save(brain, values, image.affine)
    assert command("fit", brain, "--out", tmp_path / "o", "--radial-order 2", flags) == 0
    err = capsys.readouterr().err
    for _, _, other in WARNINGS:
        assert err.count(other) == (other == words), err


def test_predict(brain, fitted, tmp_path, capsys):
    """The library's; with noise above the clean signal; on another table."""
    folder, out = tmp_path / "o", tmp_path / "p.nii.gz"
    assert fit(brain, folder, "--noise rician --sigma 60") == 0
    one, found = mapmri.load_fit(folder), []
    for noisy in (False, True):
        flags = "--quiet --force" + " --noisy" * noisy
        assert command("predict", folder, "--out", out, flags) == 0
        found.append(load(out))
        assert_allclose(found[-1], one.predict(noisy=noisy), rtol=1e-5)
    assert (found[1] > found[0]).all()
    words = ["predict", fitted, "--out", tmp_path / "q.nii", "--noisy"]
    fails(capsys, words, "--noisy: the fit needs --noise rician")
    (tmp_path / "t.bval").write_text("0 1000 2000")
    (tmp_path / "t.bvec").write_text("0 1 0\n0 0 1\n0 0 0")
    words = ["predict", fitted, "--bval", tmp_path / "t.bval", "--bvec", tmp_path / "t.bvec"]
    fails(capsys, [*words, "--out", tmp_path / "q.nii"], "--big-delta is missing")
    assert not (tmp_path / "q.nii").exists()
    times = "--quiet --force --big-delta 0.03 --small-delta 0.003"
    assert command(*words, "--out", out, times) == 0
    assert load(out).shape[-1] == 3
    assert_allclose(load(out)[..., 0], read(fitted, "s0"), rtol=1e-5)


def test_without_a_mask_empty_voxels_are_filled_and_one_is_recommended(brain, tmp_path, capsys):
    values, out = np.array(load(brain)), tmp_path / "o"
    values[0, 0, 0] = 0
    save(brain, values, nib.load(brain).affine)
    assert command("fit", brain, "--out", out, "--radial-order 2 --fill 0") == 0
    err = capsys.readouterr().err
    assert "--mask" in err
    assert "11 of 12" in err
    assert command("odf", out, "--fill 0 --quiet") == 0
    assert command("predict", out, "--fill 0 --quiet --out", tmp_path / "p.nii") == 0
    assert_array_equal(read(out, "rtop") > 0, values[..., 0] > 0)
    for filled in (read(out, "odf"), read(out, "peaks"), load(tmp_path / "p.nii")):
        assert (filled[0, 0, 0] == 0).all()
        assert np.isfinite(filled).all()


def test_maps_on_request_and_summary(tmp_path, capsys):
    """Axes in scanner frame, the same from both commands; a line for every index and region."""
    dwi, out = cut("catcord", tmp_path), tmp_path / "o"
    like, labels = nib.load(dwi), np.zeros((4, 2, 1), np.int16)
    labels.flat[:4] = 7
    path = save(tmp_path / "l.nii.gz", labels, like.affine)
    assert fit(dwi, out, "--radial-order 6 --indices rtop,fa,v1,color_fa --labels", path) == 0
    first = {name: read(out, name) for name in ("rtop", "fa", "v1", "colorfa")}
    table = next(out.glob("*_summary.tsv"))
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == ["index", "unit", "region", "voxels", "median", "p5", "p95"]
    assert [(line[0], line[2]) for line in lines[1:]] == [
        (name, region) for name in ("rtop", "fa") for region in ("mask", "7")
    ]
    for line, where in zip(lines[1:], [labels >= 0, labels == 7] * 2, strict=True):
        values = first[line[0]][where]
        want = [np.isfinite(values).sum(), *np.nanpercentile(values, [50, 5, 95])]
        assert_allclose(np.array(line[3:], float), want, rtol=1e-5)
    assert_allclose(first["colorfa"], np.abs(first["v1"]) * first["fa"][..., None], atol=1e-6)
    more = ["indices", out, "--force --indices md,v1,fa --units um --quiet --labels", path]
    assert command(*more) == 0
    assert np.array_equal(read(out, "v1"), first["v1"], equal_nan=True)
    assert_allclose(read(out, "md"), mapmri.load_fit(out).index("md") * 1e6, rtol=1e-6)
    fails(capsys, ["indices", out, "--indices rtop --units um"], "mm^-3", "um^-3", "--force")
    lines = [line.split("\t")[:3] for line in table.read_text().splitlines()[1:]]
    assert lines[:2] == [["rtop", "mm^-3", "mask"], ["rtop", "mm^-3", "7"]]
    assert ["md", "um^2/s", "7"] in lines
    assert len(lines) == 6
    for bad in (labels + np.float32(0.5), 0 * labels, labels[..., None].repeat(2, -1)):
        save(path, bad, like.affine)
        assert command(*more) == 1


def test_peaks_for_dipy(tmp_path):
    """DIPY reads them: along the third voxel axis, as the cord runs, on the nearest vertex."""
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


def test_odf(fitted, tmp_path):
    """The fit's harmonics and peaks along scanner axes, in a size for trackers."""
    assert command("odf", fitted, "--out", tmp_path, "--s 1 --sh-order 4 --quiet") == 0
    said, of_peaks = (sidecar(tmp_path, label) for label in ("odf", "peaks"))
    one = mapmri.load_fit(fitted)
    scale = tracking_factor(one.gtab, 1.0)
    assert said["ScaleFactor"] == pytest.approx(scale)
    assert said["OrientationEncoding"]["SphericalHarmonicBasis"] == "MRtrix3"
    assert said["OrientationEncoding"]["Reference"] == "xyz"
    assert of_peaks["OrientationEncoding"]["Reference"] == "xyz"
    sh = scale * one.odf_sh(1.0, 4, frame="scanner")
    assert_allclose(read(tmp_path, "odf"), sh, rtol=1e-5, atol=1e-6 * sh.max())
    peaks, heights = one.peaks(s=1.0, sh_order=4, frame="scanner")
    want = scale * peaks * heights[..., None]
    assert_allclose(read(tmp_path, "peaks"), want.reshape(4, 2, 1, 15), rtol=1e-5, atol=1e-30)


def test_demo(tmp_path, capsys):
    assert command("demo", "--out", tmp_path / "d", "--quiet") == 0
    out = capsys.readouterr().out
    for words in ("RTOP", "NG", "ASSUMED", "Duval", "upstream terms not verified"):
        assert words in out
    for name in data.SAMPLES:
        status, rtop = (read(tmp_path / "d" / name, label) for label in ("status", "rtop"))
        assert np.isfinite(rtop).sum() > 500
        assert np.isfinite(rtop[status == 0]).all()
    assert command("demo", "--out", tmp_path / "d", "--quiet") == 0, "its own folder is rewritten"


@pytest.mark.jit_only
def test_compilation_is_announced_when_it_happens_and_once(caplog, monkeypatch):
    monkeypatch.setattr(_jit, "CACHE_DIR", None)  # or a second run has nothing to compile
    kernel = _jit.kernel()(lambda x: x + 1)
    with caplog.at_level(logging.INFO), fitting.compiling():
        assert kernel(1) == 2
        assert kernel(1.5) == 2.5
    assert sum("compiling" in line for line in caplog.messages) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO), fitting.compiling():
        assert kernel(2) == 3
    assert not caplog.messages


def test_what_goes_to_the_terminal(brain, tmp_path, capsys):
    """Nothing of a quiet fit; the version; what a bug report needs; exit codes of the process."""
    assert fit(brain, tmp_path / "o") == 0
    assert capsys.readouterr() == ("", "")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mapmri-nb {mapmri.__version__}\n"
    assert command("info") == 0
    out = capsys.readouterr().out
    for word in (mapmri.__version__, np.__version__, "numba", "osqp", "threads", "cache", "CPU"):
        assert word in out
    env = os.environ | {"PYTHONPATH": str(Path(mapmri.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "mapmri_nb", "fit"], capture_output=True, env=env)
    assert (done.returncode, b"required: DWI, --out" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "required: COMMAND"),
        ("paint", "invalid choice: 'paint'"),
        ("fit x --out y --basis round", "argument --basis: invalid choice: 'round'"),
        ("fit x --out y --laplacian some", "argument --laplacian: 'some' is neither none, gcv"),
        ("fit x --out y --laplacian .1,,2", "argument --laplacian: '.1,,2' is neither none, gcv"),
        ("fit x --out y --bval-threshold low", "'low' is neither a number, none nor auto"),
        ("fit x --out y --threads two", "argument --threads: invalid int value: 'two'"),
        ("fit x --out=", "argument --out: the path is empty"),
        ("fit x --out y --grad-d 1", "unrecognized arguments: --grad-d 1"),  # no abbreviations
    ],
)
def test_arguments_that_do_not_parse(words, expected, capsys):
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("usage")
    assert expected in err.splitlines()[-1]


SWITCHES = {"zero_is_missing": "zeros", "bvals": "bval", "bvecs": "bvec", "gtab": "bval"}


@pytest.mark.parametrize("constructor", [mapmri.MapmriModel, mapmri.GradientTable])
def test_every_argument_has_a_switch(constructor, capsys):
    assert main(["fit", "--help"]) == 0
    options = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    for name in inspect.signature(constructor).parameters:
        switch = "--" + SWITCHES.get(name, name).lower().replace("_", "-")
        assert switch in options, f"{constructor.__name__}({name}=...) has no {switch}"


@pytest.mark.parametrize("choice", ["b<=2500", "0:80,90", "file"])
def test_volumes(brain, tmp_path, choice):
    """What a table and a series cut in Python give, weights cut with them."""
    gtab, values = mapmri.GradientTable.from_bids(brain), load(brain)
    keep = {"b<=2500": gtab.bvals <= 2500, "0:80,90": [*range(80), 90]}.get(choice, [*range(95)])
    weights, text = np.random.default_rng(1).uniform(0.5, 1, 102), choice
    if choice == "file":
        text = tmp_path / "keep.txt"
        text.write_text(" ".join(map(str, keep)))
    one = mapmri.MapmriModel(gtab[keep], 4).fit(values[..., keep], weights=weights[keep])
    for path in weight_files(tmp_path, weights, brain):
        words = ["--volumes", text, "--weights", path, "--radial-order 4 --force"]
        assert fit(brain, tmp_path / "o", *words) == 0
        saved = mapmri.load_fit(tmp_path / "o")
        assert saved.gtab == gtab[keep]
        assert_array_equal(saved.coef, one.coef)


def weight_files(folder, weights, dwi):
    """Paths of weights of volumes as a text, and of the same in every voxel as an image."""
    np.savetxt(folder / "w.txt", weights, fmt="%.17g")
    image = nib.load(dwi)
    every = np.array(np.broadcast_to(weights, image.shape))
    return folder / "w.txt", save(folder / "w.nii", every, image.affine)


def test_trace_volume_with_weight_0_or_left_out(brain, tmp_path, capsys):
    stem, series = str(brain).removesuffix(".nii.gz"), load(brain)
    gtab = mapmri.GradientTable.from_bids(brain)
    expected = mapmri.MapmriModel(gtab, 2).fit(series)
    series = np.concatenate([series, series.mean(-1, keepdims=True)], axis=-1)
    save(brain, series.astype(load(brain).dtype), nib.load(brain).affine)
    np.savetxt(stem + ".bval", np.r_[gtab.bvals, 2000.0][None], fmt="%.17g")
    np.savetxt(stem + ".bvec", np.c_[gtab.bvecs.T, np.zeros(3)], fmt="%.17g")
    words = ["fit", brain, "--out", tmp_path / "o", "--radial-order 2 --quiet"]
    causes = ("b-vectors[102]", "b = 2000", "trace or ADC volume", "--volumes", "weight 0")
    assert fails(capsys, words, *causes).count("weight 0") == 1
    text, image = weight_files(tmp_path, np.r_[np.ones(102), 0], brain)
    for more in (["--volumes 0:102"], ["--weights", text], ["--weights", image]):
        assert command(*words, *more, "--force") == 0
        assert_array_equal(mapmri.load_fit(tmp_path / "o").coef, expected.coef)


def test_two_runs_in_one_folder(brain, tmp_path, capsys):
    """Every second-stage command by PREFIX and by the fit's JSON, through to two reports."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    first, second = prefixes = [f"sub-small101d_run-{k}" for k in (1, 2)]
    for prefix in prefixes:
        for path in brain.parent.glob("sub-small101d_dwi*"):
            shutil.copy(path, tmp_path / path.name.replace("sub-small101d", prefix))
        assert fit(tmp_path / f"{prefix}_dwi.nii.gz", out) == 0
    fails(capsys, ["indices", out], "several fits", "prefix", f"'{second}'")
    fails(capsys, ["odf", out, "run-3"], "no saved fit", "'run-3'", f"'{second}'")
    assert command("indices", out, f"{second}_dwi --quiet") == 0
    names = ([out, first], [out / f"{second}_model-mapmri_dwimap.json"])
    for name, prefix in zip(names, prefixes, strict=True):
        (out / f"{prefix}_model-mapmri_param-pa_dwimap.nii.gz").unlink()
        for words, said in (
            (["indices", *name, "--indices rtop"], "0 maps"),  # what is there is kept
            (["indices", *name, "--indices pa"], "1 maps"),
            (["odf", *name, "--sh-order 4"], f"{prefix}_model-mapmri_param-odf_dwimap.nii.gz"),
            (["predict", *name, "--out", tmp_path / f"{prefix}.nii"], "102 volumes in"),
            (["report", *name], f"{prefix}_report.html"),
        ):
            assert command(*words) == 0
            assert said in capsys.readouterr().err
        for label in ("pa", "odf", "peaks"):
            assert (out / f"{prefix}_model-mapmri_param-{label}_dwimap.nii.gz").is_file()


def test_list_of_outputs(brain, tmp_path, capsys):
    out, predicted = tmp_path / "out", tmp_path / "p.nii"
    for words in (
        ["fit", brain, "--out", out, "--radial-order 2 --indices rtop"],
        ["indices", out, "--indices MSD,ngpar,NG_perp,PA_DTI"],
        ["odf", out, "--sh-order 2"],
        ["predict", out, "--out", predicted, "--volumes 0:3"],
    ):
        capsys.readouterr()
        assert command(*words, "--list-outputs --quiet") == 0
        files = [Path(name) for name in json.loads(capsys.readouterr().out)]
        assert files
        assert all(file.is_file() and file.is_absolute() for file in files)
    assert nib.load(predicted).shape[-1] == 3
    for label in ("msd", "ngpar", "ngperp", "padti"):
        read(out, label)


def test_names_sources_and_sidecars(brain, tmp_path):
    """Of a fit in a folder beside its data set, and of one below a folder of derivatives."""
    root, out = tmp_path / "set", tmp_path / "out"
    folder = root / "sub-1" / "dwi"
    folder.mkdir(parents=True)
    (root / "dataset_description.json").write_text("{}")
    for path in brain.parent.glob("sub-small101d_dwi*"):
        name = path.name.replace("sub-small101d_dwi", "sub-1_desc-preproc_space-T1w_dwi")
        shutil.copy(path, folder / name)
    dwi = folder / "sub-1_desc-preproc_space-T1w_dwi.nii.gz"
    assert fit(dwi, out, "--posterior --indices rtop") == 0
    stem = "sub-1_space-T1w_model-mapmri"
    model = sidecar(out)["Model"]
    assert model["Parameters"]["radial_order"] == 2
    assert sidecar(out)["Sources"] == ["bids:raw:sub-1/dwi/" + dwi.name]
    for label in ("rtop", "rtop_desc-sd", "mapcoeffs", "s0", "status"):
        assert sidecar(out, label)["Model"] == model
        assert sidecar(out, label)["Units"]
    whole = json.loads((out / "dataset_description.json").read_text())
    assert whole["DatasetLinks"] == {"raw": root.as_uri()}
    assert "dwimap" in (out / ".bidsignore").read_text()
    names = {p.name for p in out.iterdir()} - {"dataset_description.json", ".bidsignore"}
    assert all(name.startswith(stem) and name.count("desc-") <= 1 for name in names)
    deep = tmp_path / "derivatives" / "sub-1" / "dwi"
    assert fit(dwi, deep) == 0
    assert not (deep / "dataset_description.json").exists(), "it belongs to the data set's root"
    assert (tmp_path / "derivatives" / "dataset_description.json").is_file()


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


@pytest.mark.parametrize("suffix", [".nii.gz", ".bval", ".bvec", ".json"])
def test_missing_file_is_named(brain, tmp_path, capsys, suffix):
    missing = brain.with_name("sub-small101d_dwi" + suffix)
    missing.unlink()
    words = [missing.name] if suffix != ".json" else ["--big-delta is missing", "--tau"]
    fails(capsys, ["fit", brain, "--out", tmp_path / "o"], *words)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--big-delta 48.8 --small-delta 30", ["--big-delta", "milliseconds"]),
        ("--big-delta 0.01 --small-delta 0.03", ["--small-delta"]),
        ("--big-delta 0.01", ["--small-delta = 0.03 is longer than --big-delta"]),
        ("--tau 0.04 --big-delta 0.05", ["--tau = 0.04 came with --big-delta"]),
        ("--tau 40", ["--tau = 40 is above 1 s: milliseconds?"]),
        ("--b0-threshold -1", ["--b0-threshold must be a number >= 0, not -1"]),
        ("--volumes 200", ["--volumes: 200", "one of 102"]),
        ("--volumes b>=300", ["at least one b0 volume", "--b0-threshold"]),
        ("--grad x.b --bval y", ["--grad", "neither --bval nor --bvec"]),
        ("--static-diffusivity 1e-3", ["--static-diffusivity = 0.001", "--basis isotropic"]),
        ("--eigenvalue-threshold 0", ["--eigenvalue-threshold must be"]),
        ("--laplacian none --radial-order 10", ["--laplacian 0.2 or --positivity global"]),
        ("--radial-order 5", ["--radial-order must", "5"]),
        ("--laplacian -1", ["--laplacian must be", "-1"]),
        ("--indices rtop,kurtosis", ["kurtosis"]),
        ("--basis isotropic --indices ng_par", ["ng_par"]),
        ("--threads 0", ["--threads must be a positive whole number, not 0"]),
        ("--bootstrap 1", ["--bootstrap", "2 replicates, not 1"]),
        ("--bootstrap 9 --posterior", ["--posterior goes with neither", "--bootstrap"]),
        ("--posterior --positivity grid", ["--posterior goes with neither"]),
        ("--bootstrap 2 --indices fa", ["--indices: error bars are of rtop"]),
        ("--bval-threshold -5", ["'auto' or none, not -5"]),
        ("--volumes 0:5", ["the gradient table: its 5 volumes do not determine a tensor"]),
        ("--weights zero.txt", ["--weights: they are 0 at every b0 volume"]),
        ("--bootstrap 9 --seed -1", ["--seed", "-1"]),
        ("--seed 1", ["--seed goes with --bootstrap"]),
        ("--reestimate", ["--reestimate goes with --bootstrap"]),
        ("--scheduler tcp://x", ["--scheduler tcp://x goes with --engine dask"]),
        ("--sigma 3", ["--sigma goes with --noise"]),
        ("--coils 4", ["--coils goes with --noise"]),
        ("--noise denoised", ["--noise denoised needs --sigma"]),
        ("--preset paper --noise rician", ["--preset paper", "--noise"]),
        ("--weights nowhere.txt", ["nowhere.txt"]),
        ("--weights w.txt", ["w", "(3,)", "(102,)"]),
        ("--weights word.txt", ["w", "'one'"]),
        ("--weights minus.txt", ["w", "-1"]),
        ("--mask /", ["/", "a folder"]),
        *((f"--out {out}", ["w.txt"]) for out in ("w.txt", "w.txt/o", "~/w.txt")),
        ("--mask nowhere.nii", ["nowhere.nii"]),
        ("--json nowhere.json", ["nowhere.json"]),
        ("odf --out o --s -3", ["s must be a number above -3"]),
        ("odf --out o --s inf", ["up to 100: got inf"]),
        ("odf --out o --sh-order 3", ["--sh-order must be an even number from 0 to 32: got 3"]),
        ("odf --out o --sh-order 200", ["got 200"]),
        ("odf --out o --sh-basis round", ["got 'round'"]),
        ("predict --out p.txt", ["--out: p.txt is neither"]),
        ("predict --out p.nii --bval b", ["--bval and --bvec go together"]),
        ("predict --out p.nii --big-delta 0.03", ["--big-delta goes with --bval"]),
        ("predict --out p.nii --json j", ["--json goes with --bval"]),
        ("predict --out p.nii --bval b --bvec v", ["b"]),
        ("report --out .", ["--out: . must be the name of a page that ends in .html"]),
    ],
)
def test_wrong_values_are_named(brain, fitted, tmp_path, capsys, monkeypatch, flags, words):
    """Of a fit, or of a second command; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    texts = {"w": "1 2 3", "word": "one", "minus": "-1 " * 102, "zero": "0 " * 102}
    for name, content in texts.items():
        (tmp_path / f"{name}.txt").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    name, _, more = flags.partition(" ")
    call = ["fit", brain, "--out", tmp_path / "o", flags]
    fails(capsys, call if name.startswith("--") else [name, fitted, more], *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", [0, -5, np.nan])
def test_no_signal_anywhere(brain, tmp_path, capsys, value):
    save(brain, np.full((3, 2, 2, 102), value, np.float32))
    words = ["fit", brain, "--out", tmp_path / "o"]
    fails(capsys, words, brain.name, "no voxel has a positive signal")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["indices", "odf", "report"])
def test_folder_that_is_no_fit(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        fails(capsys, [name, tmp_path / folder], folder)
    dwi = data.sample_dwi("catcord")
    fails(capsys, [name, dwi], "sub-cord_dwi.nii.gz", "not the JSON of a saved fit")


def test_bugs_are_not_hidden_and_logging_is_left_as_it_was(brain, tmp_path, monkeypatch):
    log = logging.getLogger("mapmri_nb")
    before = (list(log.handlers), log.level)
    monkeypatch.setattr(mapmri.MapmriModel, "fit", Mock(side_effect=IndexError("a bug of ours")))
    refused("ours", fit, brain, tmp_path / "o", error=IndexError)
    assert command("indices", "nowhere") == 1
    assert command("info") == 0
    assert (list(log.handlers), log.level) == before


@pytest.mark.nojit
def test_samples_are_whole():
    for name, voxels, volumes in (("small101d", 600, 102), ("catcord", 1901, 168)):
        folder, dwi = data.sample(name), data.sample_dwi(name)
        assert {"LICENSE.txt", "README.md"} < {path.name for path in folder.iterdir()}
        assert load(dwi).shape[-1] == len(mapmri.GradientTable.from_bids(dwi)) == volumes
        assert np.count_nonzero(load(next(folder.glob("*_mask.nii.gz")))) == voxels
    refused("nobody", data.sample, "nobody")
