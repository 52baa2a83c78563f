"""README and pages: every code block runs as printed, in its order; every equation names a function with its letters."""

import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose

from mapmri_nb.data import sample, sample_dwi
from mapmri_nb.indices import TABLE

ROOT = Path(__file__).parents[1]
PIPELINES = ROOT / "docs" / "pipelines.md"
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {PIPELINES})]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\|.*\| `(\w+)\.(\w+)` \| (.*) \|$", re.MULTILINE)
NEEDS = {"Nipype": "nipype", "nilearn": "nilearn", "QSIRecon": "qsirecon"}
NEEDS |= {"MRtrix": "tckgen", "DIPY's trackers": "dipy"}
INSTALLS = "-m venv"  # the blocks that install: .ci/run runs their very lines


def files_of(name, folder, monkeypatch):
    """A folder with the files that the pages speak of: a sample as sub-01."""
    dwi = sample_dwi(name)
    for file in sample(name).rglob(dwi.name.replace("_dwi.nii.gz", "_*")):
        shutil.copy(file, folder / ("sub-01_" + file.name.rpartition("_")[2]))
    monkeypatch.chdir(folder)


def recipe_files(folder):
    """The files of the recipes: a sample under the names of HCP, UK Biobank and a cohort."""
    for source, target in (("dwi", "data"), ("mask", "nodif_brain_mask")):
        for ending in ("", "_ud"):
            shutil.copy(f"sub-01_{source}.nii.gz", f"{target}{ending}.nii.gz")
    for kind in ("bval", "bvec"):
        shutil.copy(f"sub-01_dwi.{kind}", f"{kind}s")
    mask = nib.load("sub-01_mask.nii.gz")
    field = np.zeros((*mask.shape, 9), np.float32)
    nib.save(nib.Nifti1Image(field, mask.affine), "grad_dev.nii.gz")
    nib.save(nib.Nifti1Image(field[..., 0] + 20, mask.affine), "sigma.nii.gz")
    (folder / "sub-02" / "dwi").mkdir(parents=True)
    for file in folder.glob("sub-01_*"):
        shutil.copy(file, folder / "sub-02" / "dwi" / file.name.replace("sub-01", "sub-02"))


def run_blocks(text, page):
    """Run the blocks of a text as printed, in their order; the names of its Python."""
    names = {"__name__": "page"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for kind, code in BLOCK.findall(text):
        if INSTALLS in code:
            assert code.startswith("python3 -m venv"), "what .ci/run takes from README and runs"
            assert code.count("\n") == 1
        elif kind == "bash":
            more = {"env": os.environ | {"PATH": path}, "capture_output": True, "text": True}
            done = subprocess.run(["bash", "-ec", code], check=False, **more)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        else:
            exec(compile(code, str(page), "exec"), names)
    return names


@pytest.mark.jit_only
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_blocks_run(page, tmp_path, monkeypatch):
    files_of("small101d" if page.stem == "recipes" else "catcord", tmp_path, monkeypatch)
    recipe_files(tmp_path)
    text = page.read_text(encoding="utf8")
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search("^ {4}\\S", plain, re.MULTILINE), "an indented block, which is not run"
    run_blocks(text, page)


@pytest.mark.jit_only
@pytest.mark.parametrize("section", NEEDS)
@pytest.mark.filterwarnings("ignore")  # other programs' own
def test_pipelines_run(section, tmp_path, monkeypatch):
    """Each section of the page on pipelines, where the other program is installed."""
    if importlib.util.find_spec(NEEDS[section]) is None and not shutil.which(NEEDS[section]):
        pytest.skip(f"{section} is not installed")
    files_of("small101d", tmp_path, monkeypatch)
    text = PIPELINES.read_text(encoding="utf8")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == list(NEEDS)
    found = run_blocks(text.split(f"## {section}\n")[1].split("\n## ")[0], PIPELINES)

    def load(pattern):
        (path,) = Path().glob(pattern)
        return np.asanyarray(nib.load(path).dataobj)

    mask = load("sub-01_mask.nii.gz") > 0
    if section == "Nipype":
        assert {"rtop", "msd", "ng"} <= set(found["result"].outputs.maps)
        assert all(Path(path).is_file() for path in found["result"].outputs.maps.values())
    elif section == "nilearn":
        assert_allclose(found["values"].ravel(), load("*/*-rtop_dwimap.nii.gz")[mask])
    elif section == "QSIRecon":
        ours = load("sub-01_qsirecon/*-rtop_dwimap.nii.gz")[mask]
        node = np.asanyarray(nib.load(found["result"].outputs.rtop).dataobj)[mask]
        step = np.ptp(node) / 65535  # the node saves with the series' header: scaled int16
        assert_allclose(ours, node, rtol=1e-6, atol=step)
    elif section == "MRtrix":
        assert len(nib.streamlines.load("sub-01.tck").streamlines) == 50
        assert (Path("sub-01_fixels") / "directions.mif").stat().st_size > 1000
    else:
        assert sum(len(track) > 10 for track in found["tracks"]) > 50


def test_ci_runs_the_commands_of_readme():
    assert "grep '^python3 -m venv' README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf8")
    found = re.findall(r"^python3 -m venv.*$", PAGES[0].read_text(encoding="utf8"), re.MULTILINE)
    assert ["demo" in found[0], "tests/run.sh" in found[1], len(found)] == [True, True, 2]


def test_equations_name_their_functions():
    rows = ROW.findall((ROOT / "docs" / "method.md").read_text(encoding="utf8"))
    assert len(rows) >= 20
    for room, name, letters in rows:
        function = getattr(importlib.import_module(f"mapmri_nb.kernels.{room}"), name)
        source = inspect.getsource(getattr(function, "py_func", inspect.unwrap(function)))
        for letter in re.findall(r"`(\w+)`", letters):
            found = re.search(rf"\b{letter}\b", source.split(":", 1)[1])
            assert found, f"{room}.{name} has no {letter}"


@pytest.mark.nojit
def test_every_index_has_a_line():
    page = (ROOT / "docs" / "indices.md").read_text(encoding="utf8")
    for name, index in TABLE.items():
        assert re.search(rf"^\| .*(\b{name.upper()}\b|`{name}`)", page, re.MULTILINE), name
        assert index.long_name


@pytest.mark.nojit
def test_results_of_older_code_are_found(tmp_path, monkeypatch):
    """A digest does not see comments, docstrings and layout, and sees everything else."""
    monkeypatch.syspath_prepend(ROOT / "validation")
    monkeypatch.setattr(sys, "path", list(sys.path))
    common, readme = importlib.import_module("common"), importlib.import_module("readme")
    texts = (
        '"""One."""\nimport json\n\n\ndef f(x):\n    """Two."""\n    return x + 1  # three\n',
        "import json\ndef f(x): return (x+1)\n",
        "import json\ndef f(x): return (x+2)\n",
    )
    codes = []
    for k, text in enumerate(texts):
        (tmp_path / f"{k}.py").write_text(text)
        words, code = common.parsed(tmp_path / f"{k}.py")
        assert "json" in words
        codes.append(code)
    assert codes[0] == codes[1] != codes[2]
    names = {path.name for path in common.sources("tracking")}
    assert {"tracking.py", "crossings.py", "directions.py", "model.py", "qp.py"} <= names
    assert not {"report.py", "plot.py", "readme.py"} & names
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    common.write_result("golden", [], {})
    assert not readme.stale("golden")
    monkeypatch.setattr(readme, "digest", lambda name: "other")
    assert readme.stale("golden")
