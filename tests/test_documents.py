"""README and pages: every code block runs as printed, in its order; every equation names a function with its letters."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mapmri_nb.data import sample, sample_dwi

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\|.*\| `(\w+)\.(\w+)` \| (.*) \|$", re.MULTILINE)
INSTALLS = "-m venv"  # the blocks that install: .ci/run uses their very lines


@pytest.fixture
def series(tmp_path, monkeypatch):
    """A folder with the files that the pages speak of: the small cord sample as sub-01."""
    dwi = sample_dwi("catcord")
    for file in sample("catcord").rglob(dwi.name.replace("_dwi.nii.gz", "_*")):
        shutil.copy(file, tmp_path / ("sub-01_" + file.name.rpartition("_")[2]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.jit_only
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_blocks_run(page, series):
    names, path = (
        {"__name__": "page"},
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    for kind, code in BLOCK.findall(page.read_text(encoding="utf8")):
        if INSTALLS in code:
            assert (
                code.strip()
                in (ROOT / ".ci" / "run").read_text() + (ROOT / "README.md").read_text()
            )
        elif kind == "bash":
            done = subprocess.run(
                ["bash", "-ec", code],
                env=os.environ | {"PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        else:
            exec(compile(code, str(page), "exec"), names)


def test_equations_name_their_functions():
    rows = ROW.findall((ROOT / "docs" / "method.md").read_text(encoding="utf8"))
    assert len(rows) >= 20
    for room, name, letters in rows:
        function = getattr(importlib.import_module(f"mapmri_nb.kernels.{room}"), name)
        source = inspect.getsource(getattr(function, "py_func", inspect.unwrap(function)))
        for letter in re.findall(r"`(\w+)`", letters):
            assert re.search(rf"\b{letter}\b", source.split(":", 1)[1]), (
                f"{room}.{name} has no {letter}"
            )
