"""Files of `mapmri-nb odf` read by MRtrix: its values, its peaks, its own frame."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import phantom
import pytest
from numpy.testing import assert_allclose
from shell import command, load, save

import mapmri_nb as mapmri
from mapmri_nb import gradients, io

pytestmark = pytest.mark.skipif(shutil.which("sh2amp") is None, reason="MRtrix is not installed")


def mrtrix(*words):
    subprocess.run([*map(str, words), "-quiet", "-force"], check=True, capture_output=True)


@pytest.fixture(scope="module", params=[1, -1], ids=["det>0", "det<0"])
def files(request, tmp_path_factory):
    """An oblique series of single fibres, its fit and ODF files, for both determinants."""
    folder, rng = tmp_path_factory.mktemp("mrtrix"), np.random.default_rng(4)
    affine = np.eye(4)
    affine[:3, :3] = phantom.random_rotation(rng) * [request.param * 2.0, 2.0, 2.5]
    g, fibres = rng.normal(size=(90, 3)), rng.normal(size=(3, 4, 2, 3))
    g, fibres = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (g, fibres))
    b = np.repeat([0.0, 1000.0, 2000.0], 30)
    series = 1000 * np.exp(-b * (0.3e-3 + 1.4e-3 * (fibres @ g.T) ** 2))
    dwi = save(folder / "a_dwi.nii.gz", series.astype(np.float32), affine)
    np.savetxt(folder / "a_dwi.bval", b[None])
    np.savetxt(folder / "a_dwi.bvec", g.T)
    words = "--radial-order 4 --laplacian none --big-delta 0.04 --small-delta 0.01 --quiet"
    assert command("fit", dwi, "--out", folder / "fit", words) == 0
    assert command("odf", folder / "fit", "--sh-order 14 --quiet") == 0
    (odf,) = folder.glob("fit/*param-odf_dwimap.nii.gz")
    (peaks,) = folder.glob("fit/*param-peaks_dwimap.nii.gz")
    save(folder / "unscaled.nii", io.load_map(odf).data, affine)
    return folder, affine, odf, peaks


def angles(a, b):
    """Angles in degrees between axes (..., 3), signs and lengths aside."""
    cosine = np.abs((a * b).sum(-1)) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.degrees(np.arccos(np.minimum(cosine, 1)))


def test_values_are_those_of_the_fit(files):
    """MRtrix's sum of its harmonics is the ODF along the same scanner directions."""
    folder, affine, _, _ = files
    directions = phantom.unit(np.random.default_rng(5).normal(size=(40, 3)))
    np.savetxt(folder / "directions.txt", directions)
    mrtrix("sh2amp", folder / "unscaled.nii", folder / "directions.txt", folder / "amp.nii")
    turned = gradients.turned(directions, affine, "scanner", "image")
    want = mapmri.load_fit(folder / "fit").odf(turned)
    off = np.abs(load(folder / "amp.nii") - want).max()
    assert off < 0.02 * want.max(), "degree 14 against the exact ODF"


def test_peaks_are_those_mrtrix_finds(files):
    folder, _, odf, peaks = files
    mrtrix("sh2peaks", odf, folder / "peaks.nii", "-num", 1)
    ours, theirs = (load(p)[..., :3] for p in (peaks, folder / "peaks.nii"))
    assert angles(ours, theirs).max() < 0.5
    assert_allclose(*(np.linalg.norm(a, axis=-1) for a in (ours, theirs)), rtol=1e-3)


def test_defaults_of_trackers_find_streamlines(files):
    """Values are of the size that thresholds expect; without the factor nothing is found."""
    folder, affine, odf, _ = files
    seed, found = save(folder / "seed.nii", np.ones((3, 4, 2), np.float32), affine), []
    for image in (odf, folder / "unscaled.nii"):
        words = ["-seed_image", seed, "-select", 20, "-seeds", 2000, "-minlength", 1]
        mrtrix("tckgen", image, folder / "t.tck", *words)
        found.append(len(nib.streamlines.load(folder / "t.tck").streamlines))
    assert found == [20, 0]


def test_frame_is_the_one_mrtrix_gives_its_own_tensor(files):
    """By MRtrix alone: FSL's b-vectors, a tensor, its first eigenvector in scanner axes."""
    folder, _, _, peaks = files
    series = [folder / f"a_dwi.{ending}" for ending in ("nii.gz", "bvec", "bval")]
    mrtrix("dwi2tensor", series[0], folder / "dt.nii", "-fslgrad", series[1], series[2])
    mrtrix("tensor2metric", folder / "dt.nii", "-vector", folder / "v1.nii")
    ours, theirs = (load(p)[..., :3] for p in (peaks, folder / "v1.nii"))
    assert angles(ours, theirs).max() < 0.5
