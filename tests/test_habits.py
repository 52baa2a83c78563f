"""What people do at a prompt: print, complete, compare, cut, misspell, pass the wrong type."""

import subprocess
import sys
import warnings

import numpy as np
import phantom
import pytest
from numpy.testing import assert_array_equal
from shell import refused

import mapmri_nb as mapmri

GTAB = phantom.table(*phantom.small_scheme())
MODEL = mapmri.MapmriModel(GTAB, 4)


@pytest.fixture(scope="module")
def fit():
    rng = np.random.default_rng(2)
    data = 100 * np.exp(-np.outer(rng.uniform(0.5e-3, 2e-3, 12), GTAB.bvals)).reshape(2, 3, 2, -1)
    data[0, 0, 0] = 0
    mask = np.ones((2, 3, 2), bool)
    mask[1, 1, 1] = False
    return MODEL.fit(data, mask)


def test_representations(fit):
    assert "10 of 11 voxels fitted, in 2 x 3 x 2" in repr(fit)
    assert "radial_order=4" in repr(fit)
    for word in ("GradientTable(", "radial_order=4", "laplacian=0.2"):
        assert word in repr(MODEL)
    assert max(map(len, map(repr, (fit, MODEL, GTAB)))) < 400


@pytest.mark.nojit
def test_no_name_completes_that_raises():
    """In a fresh process: what other tests imported would hide it."""
    code = (
        "import mapmri_nb as m\n"
        "for name in dir(m): getattr(m, name)\n"
        "for room in ('io', 'dipy', 'directions', 'uncertainty'):\n"
        "    for name in dir(getattr(m, room)): getattr(getattr(m, room), name)\n"
        "assert 'load_fit' in dir(m) and 'uncertainty' in dir(m)\n"
        "m.io.load_fit, m.io.save_fit\n"
        "from mapmri_nb.io import load_fit, save_fit\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_attribute_of_a_fit_raises(fit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for thing in (fit, MODEL, GTAB):
            for name in dir(thing):
                getattr(thing, name)


def test_a_misspelt_name_is_an_error_for_the_type_checker(tmp_path):
    api = pytest.importorskip("mypy.api")
    path = tmp_path / "user.py"
    calls = ("m.MapmriModle(1)", "m.io.lod_fit(2)", "m.load_fit('x').rtop()")
    path.write_text("\n".join(("import mapmri_nb as m", *calls, "")))
    cache = ["--cache-dir", str(tmp_path / "cache")]
    text, _, code = api.run([str(path), *cache, "--no-error-summary"])
    assert code == 1
    assert [line.split(":")[1] for line in text.splitlines() if "error" in line] == ["2", "3"], text


def test_part_of_a_fit(fit):
    keep = np.zeros(fit.mask.shape, bool)
    keep[1] = True
    part = fit[keep]
    assert part.mask.sum() == 5
    assert_array_equal(part.rtop()[1], fit.rtop()[1])
    assert np.isnan(part.rtop()[0]).all()
    assert_array_equal(part.predict()[1], fit.predict()[1])
    for wrong in (keep[0], keep.astype(int), 3):
        refused(r"mask must be a bool volume of shape \(2, 3, 2\), not", fit.__getitem__, wrong)
