"""
Streamed fits: the bytes of a whole fit, whatever interrupts them, and nothing that could be
mistaken for a result.
"""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from mapmri_nb.cli import main

import mapmri_nb as mapmri
from mapmri_nb import data, io, stream
from mapmri_nb.indices import select
from mapmri_nb.use import folder

MODEL = "x_model-mapmri_dwimap.json"
HIDDEN = ".x_model-mapmri_dwimap.partial"
SLAB = 7


@pytest.fixture
def dwi(tmp_path, monkeypatch):
    """
    A cut of a bundled sample as a scaled integer series, with sidecars and a mask of 36 voxels.
    """
    monkeypatch.setattr(stream, "SLAB", SLAB)
    monkeypatch.setattr(stream, "SYNC", 0.0)
    return make_series(tmp_path)


def make_series(folder, ending=".nii.gz"):
    source = data.sample_dwi("catcord")
    values = np.asarray(nib.load(source).dataobj)[24:29, 20:26]
    values = np.stack([values[..., 0, :], values[::-1, ..., 0, :]], 2)
    image = nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1]))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, 1)
    nib.save(image, folder / f"x_dwi{ending}")
    for suffix in (".bval", ".bvec", ".json"):
        shutil.copy(str(source).replace(".nii.gz", suffix), folder / f"x_dwi{suffix}")
    mask = np.zeros(values.shape[:3], np.uint8)
    mask[np.unravel_index(np.random.default_rng(3).permutation(mask.size)[:36], mask.shape)] = 1
    nib.save(nib.Nifti1Image(mask, image.affine), folder / "x_mask.nii.gz")
    return folder / f"x_dwi{ending}"


def words(dwi, out, *more):
    mask = dwi.with_name("x_mask.nii.gz")
    return [
        str(w)
        for w in ("fit", dwi, "--mask", mask, "--out", out, "--radial-order", 2, "--quiet", *more)
    ]


def content(folder):
    """Every file of a folder; of the fit's JSON what is not its run section."""
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    if MODEL in files:
        files[MODEL] = json.loads(files[MODEL])
        files[MODEL].pop("Run")
    return files


@pytest.mark.parametrize(
    "basis", [pytest.param("anisotropic", marks=pytest.mark.nojit), "isotropic"]
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slabs_give_the_bytes_of_a_whole_fit(tmp_path, monkeypatch, basis, ending):
    monkeypatch.setattr(stream, "SLAB", SLAB)
    dwi = make_series(tmp_path, ending)
    options = ["--basis", basis, "--indices", "rtop,ng,pa", "--units", "um", "--fill", 0]
    assert main(words(dwi, tmp_path / "slabs", *options)) == 0
    image = io.load_dwi(dwi)
    mask = io.load_mask(tmp_path / "x_mask.nii.gz", image.data.shape[:3])
    fit = mapmri.MapmriModel(mapmri.GradientTable.from_bids(dwi), radial_order=2, basis=basis).fit(
        image.data, mask
    )
    whole = {"affine": image.affine, "prefix": "x"}
    sources = [dwi, tmp_path / "x_mask.nii.gz"]
    io.save_fit(fit, tmp_path / "whole", sources=sources, **whole)
    io.write_maps(
        tmp_path / "whole",
        maps={n: fit.index(n) for n in ("rtop", "ng", "pa")},
        units="um",
        fill=0.0,
        model=folder.model_section(fit.options),
        **whole,
    )
    found = content(tmp_path / "slabs")
    assert found.pop("x_model-mapmri_summary.tsv").startswith(b"index\tunit\tregion")
    assert found == content(tmp_path / "whole")
    run = json.loads((tmp_path / "slabs" / MODEL).read_text())["Run"]
    assert run["Seconds"].keys() == {"Reading", "Fitting", "Writing"}
    assert min(run["Seconds"].values()) > 0
    assert run["Slabs"] == run["FittedNow"] == 6  # 36 voxels, the last slab has one


def test_the_command_says_how_long_it_will_take(dwi, tmp_path, monkeypatch, capsys):
    """After a few slabs of many; of few it says nothing."""
    for slab, said in ((3, 1), (SLAB, 0)):
        monkeypatch.setattr(stream, "SLAB", slab)
        told = [word for word in words(dwi, tmp_path / f"out{slab}") if word != "--quiet"]
        assert main(told) == 0
        assert len(re.findall(r"36 voxels: about \d+ s to go", capsys.readouterr().err)) == said


def test_one_slab_at_a_time_is_in_memory(dwi, tmp_path):
    sizes = []

    def engine(model, names, slabs):
        for slab, samples in slabs:
            sizes.append(samples["data"].shape)
            yield slab, stream.values(model, names, samples), 0.0

    image = io.load_dwi(dwi)
    mask = np.ones(image.data.shape[:3], bool)
    model = mapmri.MapmriModel(mapmri.GradientTable.from_bids(dwi), radial_order=2)
    job = stream.Job(model, dwi, image, mask, tmp_path / "out", "x", select("msd", "anisotropic"))
    status = stream.fit_series(job, engine, run={})
    assert sizes == [(SLAB, 168)] * 8 + [(4, 168)]
    assert len(status) == 60


# Interruptions: a process that counts what it does to the disk and dies at a given count

COUNTED = """
import os, signal, sys
from mapmri_nb import cli, stream
from mapmri_nb.use import folder
stream.SLAB, stream.SYNC, last, count = {slab}, 0.0, int(sys.argv[1]), 0
def counted(call):
    def wrapper(*args, **kwargs):
        global count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper
os.pwrite, os.fsync, os.replace = map(counted, (os.pwrite, os.fsync, os.replace))
folder.write_json = counted(folder.write_json)
code = cli.main(sys.argv[2:])
print(count)
sys.exit(code)
"""


def killed_at(last, arguments):
    code = COUNTED.format(slab=SLAB)
    run = subprocess.run(
        [sys.executable, "-c", code, str(last), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(series, files of its fit, steps that its fit takes)."""
    base = tmp_path_factory.mktemp("kill")
    dwi = make_series(base)
    killed_at(
        0, words(dwi, base / "warm")
    )  # a cold kernel cache is written by os.replace too, and would count
    code, steps = killed_at(0, words(dwi, base / "out"))
    assert code == 0
    return dwi, content(base / "out"), int(steps)


@pytest.mark.jit_only
@pytest.mark.parametrize("phase", ["slabs", "images", "moving"])
def test_resume_after_kill_9(uninterrupted, tmp_path, monkeypatch, phase):
    dwi, expected, steps = uninterrupted
    moves = len(expected)
    phases = {
        "slabs": (3 * steps // 10, 7 * steps // 10),
        "images": (steps - moves - 20, steps - moves),
    }
    first, final = phases.get(phase, (steps - moves + 1, steps))
    last = np.random.default_rng().integers(first, final, endpoint=True)
    out = tmp_path / "out"
    assert killed_at(last, words(dwi, out))[0] == -signal.SIGKILL, (last, steps)
    assert not (out / MODEL).exists()
    with pytest.raises(FileNotFoundError, match="no saved fit"):
        mapmri.load_fit(out)
    monkeypatch.setattr(stream, "SLAB", SLAB)
    assert main(words(dwi, out)) == 1, "an interrupted fit is neither mixed nor thrown away unasked"
    assert main(words(dwi, out, "--resume")) == 0, (last, steps)
    assert content(out) == expected
    assert [p.name for p in out.glob(".*")] == [".bidsignore"]
    fitted = json.loads((out / MODEL).read_text())["Run"]["FittedNow"]
    assert 0 < fitted < 6 if phase == "slabs" else fitted == 0


def interrupt(monkeypatch, at, action):
    """Do `action` when the slab number `at` is about to be kept."""
    put, slabs = stream.Store.put, []

    def counted(self, slab, *rest):
        slabs.append(slab)
        if len(slabs) == at + 1:
            action()
        put(self, slab, *rest)

    monkeypatch.setattr(stream.Store, "put", counted)
    return slabs


def test_ctrl_c_keeps_finished_slabs(dwi, tmp_path, monkeypatch, capsys):
    assert main(words(dwi, tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert main(words(dwi, tmp_path / "out")) == 130
    found = re.search(r"(\d) of 6 slabs are kept", capsys.readouterr().err)
    kept = int(found[1])  # a slab is written while the next one is fitted
    assert 2 <= kept <= 4
    assert [p.name for p in (tmp_path / "out").iterdir()] == [HIDDEN]
    slabs = interrupt(monkeypatch, 99, None)
    assert main(words(dwi, tmp_path / "out", "--resume")) == 0
    assert slabs == list(range(kept, 6))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_full_disk_keeps_finished_slabs(dwi, tmp_path, monkeypatch, capsys):
    assert main(words(dwi, tmp_path / "whole")) == 0
    pwrite, calls = os.pwrite, []

    def full(file, content, offset):
        calls.append(offset)
        if len(calls) == 100:
            return pwrite(file, content[:5], offset)  # what still fits
        if len(calls) > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert main(words(dwi, tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert "No space left" in err
    assert "slabs are kept" in err
    with monkeypatch.context() as patch:  # nor does the writing of the results lose them

        def no_space(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(io, "write_nii", no_space)
        assert main(words(dwi, tmp_path / "out", "--resume")) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == [HIDDEN]
    assert main(words(dwi, tmp_path / "out", "--resume")) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_disk_full_from_the_start_leaves_nothing(dwi, tmp_path, monkeypatch, capsys):
    before = sorted(tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # a file that may not grow
    try:
        assert main(words(dwi, tmp_path / "a" / "b")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(
        io,
        "load_dwi",
        lambda path, header=False: io.Image(np.asarray(nib.load(path).dataobj), np.eye(4)),
    )
    monkeypatch.setattr(io, "load_mask", lambda *args: np.ones((5, 6, 2), bool))
    assert main(words(dwi, tmp_path / "a" / "b")) == 1
    assert "MB needed to fit" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def interrupted(dwi, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert main(words(dwi, tmp_path / "out")) == 130
    return tmp_path / "out"


def test_what_changed_is_refused(dwi, interrupted, tmp_path, capsys):
    def refused(what, *more):
        before = {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()}
        assert main(words(dwi, interrupted, "--resume", *more)) == 1
        assert f"changed since the fit was interrupted: {what}; " in capsys.readouterr().err
        assert {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()} == before

    refused("model", "--laplacian", 0.3)
    refused("model, indices", "--basis", "isotropic")
    refused("indices", "--indices", "rtop")
    refused("indices", "--units", "um")
    refused("gradient table", "--big-delta", 0.031, "--small-delta", 0.003)
    values = np.asarray(nib.load(tmp_path / "x_mask.nii.gz").dataobj)
    good = (tmp_path / "x_mask.nii.gz").read_bytes()
    nib.save(nib.Nifti1Image(1 - values, np.diag([1.0, 2, 3, 1])), tmp_path / "x_mask.nii.gz")
    refused("mask")
    (tmp_path / "x_mask.nii.gz").write_bytes(good)
    found = dwi.stat()
    os.utime(dwi, ns=(found.st_atime_ns, found.st_mtime_ns + 1000))
    refused("series")
    os.utime(dwi, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert main(words(dwi, interrupted, "--resume")) == 0


def test_starting_anew(dwi, interrupted, tmp_path, capsys):
    assert main(words(dwi, interrupted, "--laplacian", 0.3)) == 1
    assert "an interrupted fit is there" in capsys.readouterr().err
    assert main(words(dwi, interrupted, "--laplacian", 0.3, "--force")) == 0
    assert main(words(dwi, tmp_path / "whole", "--laplacian", 0.3)) == 0
    assert content(interrupted) == content(tmp_path / "whole")
    assert not (interrupted / HIDDEN).exists()


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_torn_line_of_the_journal_counts_for_nothing(dwi, interrupted, tmp_path, lines):
    journal = interrupted / HIDDEN / "journal"
    whole = journal.read_bytes().splitlines(keepends=True)  # the key and two slabs at least
    journal.write_bytes(b"".join(whole[:lines]) + whole[lines][:-1])
    assert main(words(dwi, interrupted, "--resume")) == 0
    assert json.loads((interrupted / MODEL).read_text())["Run"]["FittedNow"] == 6 - max(
        0, lines - 1
    )
    assert main(words(dwi, tmp_path / "whole")) == 0
    assert content(interrupted) == content(tmp_path / "whole")


def test_resume_of_what_is_done_and_of_what_never_began(dwi, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(dwi, out, "--resume")) == 0
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    assert main(words(dwi, out, "--resume")) == 0
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before
    assert main(words(dwi, out, "--resume", "--laplacian", 0.3)) == 1
    assert "results are there already" in capsys.readouterr().err
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before


def test_two_at_once_are_refused(dwi, tmp_path, monkeypatch, capsys):
    codes = []
    interrupt(monkeypatch, 2, lambda: codes.append(main(words(dwi, tmp_path / "out", "--resume"))))
    assert main(words(dwi, tmp_path / "out")) == 0
    assert codes == [1]
    assert "another process is fitting" in capsys.readouterr().err


def test_scheduler_without_dask(dwi, tmp_path, capsys):
    assert main(words(dwi, tmp_path / "out", "--scheduler", "tcp://localhost:1")) == 1
    assert "--engine dask" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
