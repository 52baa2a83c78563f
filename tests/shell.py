"""The command line in tests: words to run, errors to meet, maps, series, processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mapmri_nb
from mapmri_nb import data
from mapmri_nb.use.cli import main

MODEL = "x_model-mapmri_dwimap.json"


def command(*words):
    """Exit code; a text holds words between spaces, a path is one."""
    split = ([str(w)] if isinstance(w, Path) else str(w).split() for w in words)
    return main([part for parts in split for part in parts])


def fails(capsys, words, *expected, code=1):
    """The command ends with this code, one line that names the cause (returned), and no traceback."""
    capsys.readouterr()
    assert command(*words) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1, err
    for word in expected:
        assert str(word).lower() in lines[0].lower(), lines[0]
    return lines[0]


def refused(words, call, *given, error=ValueError, **named):
    """The call raises an error whose text has these words (a regular expression); the error."""
    with pytest.raises(error, match=words) as caught:
        call(*given, **named)
    return caught.value


def load(path):
    """Values of an image."""
    return np.asarray(nib.load(path).dataobj)


def save(path, values, affine=None):
    """Write an image; its path."""
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def read(folder, label):
    """Values of the one map of a label."""
    (path,) = folder.glob(f"*param-{label}_dwimap.nii.gz")
    return load(path)


def sidecar(folder, label=""):
    """Entries of the JSON of a label's map; of the fit without one."""
    (path,) = folder.glob(f"*model-mapmri{label and f'_param-{label}'}_dwimap.json")
    return json.loads(path.read_text())


def make_series(folder, ending=".nii.gz"):
    """A cut of a sample as scaled integers, with sidecars and a mask of 36 voxels; its path."""
    source = data.sample_dwi("catcord")
    values = load(source)[24:29, 20:26]
    values = np.stack([values[..., 0, :], values[::-1, ..., 0, :]], 2)
    image = nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1]))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, 1)
    nib.save(image, folder / f"x_dwi{ending}")
    for suffix in (".bval", ".bvec", ".json"):
        shutil.copy(str(source).replace(".nii.gz", suffix), folder / f"x_dwi{suffix}")
    mask = np.zeros(values.shape[:3], np.uint8)
    mask[np.unravel_index(np.random.default_rng(3).permutation(mask.size)[:36], mask.shape)] = 1
    save(folder / "x_mask.nii.gz", mask, image.affine)
    return folder / f"x_dwi{ending}"


def words(dwi, out, *more):
    """Arguments of a fit of `make_series`."""
    mask = dwi.with_name("x_mask.nii.gz")
    given = ("fit", dwi, "--mask", mask, "--out", out, "--radial-order", 2, "--quiet", *more)
    return list(map(str, given))


def content(folder):
    """Every file of a folder; of the fit's JSON what is not its run section."""
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    if MODEL in files:
        files[MODEL] = json.loads(files[MODEL])
        files[MODEL].pop("Run")
    return files


def fresh(*words, cwd=None, timeout=None, **environment):
    """Output of Python in a process of its own that finds this package and the tests' helpers, with
    no settings of Numba and of this package but those given; None takes a variable away.
    """
    places = [str(Path(mapmri_nb.__file__).parents[1]), str(Path(__file__).parent)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "MAPMRI_"))}
    env |= {"PYTHONPATH": os.pathsep.join(places)} | environment
    env = {k: str(v) for k, v in env.items() if v is not None}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=env, timeout=timeout, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
