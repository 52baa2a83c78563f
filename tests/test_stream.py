"""Streamed fits: the bytes of a whole fit, whatever interrupts them."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from mapmri_nb.cli import main
from shell import MODEL, content, fails, load, make_series, save, sidecar, words

import mapmri_nb as mapmri
from mapmri_nb import io, stream
from mapmri_nb.use import folder

HIDDEN = ".x_model-mapmri_dwimap.partial"
SLAB = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(series, files of a fit of it)."""
    base = tmp_path_factory.mktemp("whole")
    dwi = make_series(base)
    assert main(words(dwi, base / "out")) == 0
    return dwi, content(base / "out")


@pytest.fixture
def dwi(whole, monkeypatch):
    """The series, fitted in slabs."""
    monkeypatch.setattr(stream, "SLAB", SLAB)
    monkeypatch.setattr(stream, "SYNC", 0.0)
    return whole[0]


@pytest.mark.parametrize(
    "basis", [pytest.param("anisotropic", marks=pytest.mark.nojit), "isotropic"]
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slabs_give_the_bytes_of_a_whole_fit(tmp_path, monkeypatch, basis, ending):
    monkeypatch.setattr(stream, "SLAB", SLAB)
    dwi, slabs = make_series(tmp_path, ending), tmp_path / "slabs"
    options = ["--basis", basis, "--indices", "rtop,ng,pa", "--units", "um", "--fill", 0]
    assert main(words(dwi, slabs, *options)) == 0
    image = io.load_dwi(dwi)
    mask = io.load_mask(tmp_path / "x_mask.nii.gz", image.data.shape[:3])
    model = mapmri.MapmriModel(mapmri.GradientTable.from_bids(dwi), 2, basis=basis)
    fit = model.fit(image.data, mask)
    common = {"affine": image.affine, "prefix": "x"}
    whole = tmp_path / "whole"
    io.save_fit(fit, whole, sources=[dwi, tmp_path / "x_mask.nii.gz"], **common)
    maps, section = {n: fit.index(n) for n in ("rtop", "ng", "pa")}, folder.model_section
    more = {"units": "um", "fill": 0.0, "model": section(fit.options)}
    io.write_maps(whole, maps=maps, **more, **common)
    found = content(slabs)
    assert found.pop("x_model-mapmri_summary.tsv").startswith(b"index\tunit\tregion")
    assert found == content(whole)
    run = sidecar(slabs)["Run"]
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
    command = [sys.executable, "-c", COUNTED.format(slab=SLAB), str(last), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout


@pytest.fixture(scope="module")
def steps(whole, tmp_path_factory):
    """How many steps the fit of the series takes."""
    base = tmp_path_factory.mktemp("kill")
    killed_at(0, words(whole[0], base / "warm"))  # the writing of a kernel cache would count
    code, steps = killed_at(0, words(whole[0], base / "out"))
    assert code == 0
    return int(steps)


@pytest.mark.jit_only
@pytest.mark.parametrize("phase", ["slabs", "images", "moving"])
def test_resume_after_kill_9(dwi, whole, steps, tmp_path, phase):
    before, out = steps - len(whole[1]), tmp_path / "out"  # of the moves
    first, final = {
        "slabs": (3 * steps // 10, 7 * steps // 10),
        "images": (before - 20, before),
        "moving": (before + 1, steps),
    }[phase]
    last = np.random.default_rng().integers(first, final, endpoint=True)
    assert killed_at(last, words(dwi, out))[0] == -signal.SIGKILL, (last, steps)
    assert not (out / MODEL).exists()
    with pytest.raises(FileNotFoundError, match="no saved fit"):
        mapmri.load_fit(out)
    assert main(words(dwi, out)) == 1, "an interrupted fit is neither mixed nor thrown away unasked"
    assert main(words(dwi, out, "--resume")) == 0, (last, steps)
    assert content(out) == whole[1]
    assert [p.name for p in out.glob(".*")] == [".bidsignore"]
    fitted = sidecar(out)["Run"]["FittedNow"]
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


@pytest.fixture
def interrupted(dwi, tmp_path, monkeypatch, capsys):
    """The folder of a fit that Ctrl-C ended at its third slab."""
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert main(words(dwi, tmp_path / "out")) == 130
    return tmp_path / "out"


def test_ctrl_c_keeps_finished_slabs(dwi, whole, interrupted, monkeypatch, capsys):
    err = capsys.readouterr().err
    assert "interrupted" in err
    assert "Traceback" not in err
    kept = int(re.search(r"(\d) of 6 slabs are kept", err)[1])  # one is written beside the next
    assert 2 <= kept <= 4
    assert [p.name for p in interrupted.iterdir()] == [HIDDEN]
    slabs = interrupt(monkeypatch, 99, None)
    assert main(words(dwi, interrupted, "--resume")) == 0
    assert slabs == list(range(kept, 6))
    assert content(interrupted) == whole[1]


def test_a_full_disk_keeps_finished_slabs(dwi, whole, tmp_path, monkeypatch, capsys):
    calls, out = [], tmp_path / "out"
    no_space = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    pwrite = os.pwrite

    def full(file, content, offset):
        calls.append(offset)
        if len(calls) > 100:
            no_space()
        return pwrite(file, content[:5] if len(calls) == 100 else content, offset)

    more = []  # nor does the writing of the results lose what is kept
    for place, name, call in ((os, "pwrite", full), (io, "write_nii", no_space)):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, call)
            assert main(words(dwi, out, *more)) == 1
        err = capsys.readouterr().err
        assert "No space left" in err
        assert "slabs are kept" in err
        more = ["--resume"]
    assert [p.name for p in out.iterdir()] == [HIDDEN]
    assert main(words(dwi, out, "--resume")) == 0
    assert content(out) == whole[1]


def test_a_disk_full_from_the_start_leaves_nothing(dwi, tmp_path, monkeypatch, capsys):
    before = sorted(tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # a file that may not grow
    try:
        fails(capsys, words(dwi, tmp_path / "a" / "b"), "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    image = io.Image(load(dwi), np.eye(4))
    monkeypatch.setattr(io, "load_dwi", lambda path, header=False, begun=None: image)
    monkeypatch.setattr(io, "load_mask", lambda *args: np.ones((5, 6, 2), bool))
    fails(capsys, words(dwi, tmp_path / "a" / "b"), "MB needed to fit")
    assert sorted(tmp_path.rglob("*")) == before


def files(folder):
    """Bytes and times of all files below a folder."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_what_changed_is_refused(dwi, interrupted, capsys):
    def refused(what, *more):
        before = [kept for kept, _ in files(interrupted).values()]
        text = f"changed since the fit was interrupted: {what}; "
        fails(capsys, words(dwi, interrupted, "--resume", *more), text)
        assert [kept for kept, _ in files(interrupted).values()] == before

    refused("model", "--laplacian", 0.3)
    refused("model, indices", "--basis", "isotropic")
    refused("indices", "--indices", "rtop")
    refused("indices", "--units", "um")
    refused("gradient table", "--big-delta", 0.031, "--small-delta", 0.003)
    mask = dwi.with_name("x_mask.nii.gz")
    good = mask.read_bytes()
    save(mask, 1 - load(mask), np.diag([1.0, 2, 3, 1]))
    refused("mask")
    mask.write_bytes(good)
    found = dwi.stat()
    os.utime(dwi, ns=(found.st_atime_ns, found.st_mtime_ns + 1000))
    refused("series")
    os.utime(dwi, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert main(words(dwi, interrupted, "--resume")) == 0


def test_starting_anew(dwi, interrupted, tmp_path, capsys):
    fails(capsys, words(dwi, interrupted, "--laplacian", 0.3), "an interrupted fit is there")
    (image,) = (interrupted / HIDDEN).glob("coef*.nii")
    os.link(image, tmp_path / "result.nii")  # as a fit that was killed while it wrote results
    old = image.read_bytes()
    assert main(words(dwi, interrupted, "--laplacian", 0.3, "--force")) == 0
    assert (tmp_path / "result.nii").read_bytes() == old
    assert main(words(dwi, tmp_path / "whole", "--laplacian", 0.3)) == 0
    assert content(interrupted) == content(tmp_path / "whole")
    assert not (interrupted / HIDDEN).exists()


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_torn_line_of_the_journal_counts_for_nothing(dwi, whole, interrupted, lines):
    journal = interrupted / HIDDEN / "journal"
    full = journal.read_bytes().splitlines(keepends=True)  # the key and two slabs at least
    journal.write_bytes(b"".join(full[:lines]) + full[lines][:-1])
    assert main(words(dwi, interrupted, "--resume")) == 0
    assert sidecar(interrupted)["Run"]["FittedNow"] == 6 - max(0, lines - 1)
    assert content(interrupted) == whole[1]


def test_resume_of_what_is_done_and_of_what_never_began(dwi, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(dwi, out, "--resume")) == 0
    before = files(out)
    assert main(words(dwi, out, "--resume")) == 0
    more = ["--resume", "--laplacian", 0.3]
    fails(capsys, words(dwi, out, *more), "results are there already", "--force")
    assert files(out) == before


def test_two_at_once_are_refused(dwi, tmp_path, monkeypatch, capsys):
    codes = []
    interrupt(monkeypatch, 2, lambda: codes.append(main(words(dwi, tmp_path / "out", "--resume"))))
    assert main(words(dwi, tmp_path / "out")) == 0
    assert codes == [1]
    assert "another process is fitting" in capsys.readouterr().err
