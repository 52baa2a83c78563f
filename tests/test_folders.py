"""Folders of earlier versions, tests/folders/<version>.zip, load and give the same numbers."""

import zipfile
from pathlib import Path

import numpy as np
import phantom
import pytest
from numpy.testing import assert_allclose

import mapmri_nb as mapmri

FOLDERS = sorted((Path(__file__).parent / "folders").glob("*.zip"))
INDICES = ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm", "pa", "ng")


@pytest.mark.parametrize("archive", FOLDERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["mapl", "cmapl_isotropic", "mapplus"])
def test_an_earlier_folder_loads(archive, name, tmp_path):
    """Three modes of six voxels, one outside the mask and one without signal."""
    zipfile.ZipFile(archive).extractall(tmp_path)
    fit, expected = mapmri.load_fit(tmp_path / name), np.load(tmp_path / "expected.npz")
    assert fit.mask.sum() == 5
    assert np.isfinite(fit.rtop()).sum() == 4
    for index in INDICES:
        assert_allclose(fit.index(index), expected[f"{name} {index}"], rtol=1e-12, atol=1e-12)
    assert_allclose(fit.odf(np.eye(3)), expected[f"{name} odf"], rtol=1e-12, atol=1e-16)
    table = phantom.table(*phantom.small_scheme())
    assert_allclose(fit.predict(table)[..., :9], expected[f"{name} predict"], rtol=1e-12, atol=1e-9)
