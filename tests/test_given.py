"""What people hand over: arrays of any kind, images, masks, companions, units; nothing silently wrong."""

import logging

import nibabel as nib
import numpy as np
import phantom
import pytest
import truth
from numpy.testing import assert_allclose
from shell import refused

import mapmri_nb as mapmri
from mapmri_nb import checks, distributed, uncertainty
from mapmri_nb import dipy as drop_in
from mapmri_nb.kernels import blocks
from mapmri_nb.status import Status, in_words

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -100], [0, 0, 2.5, -70], [0, 0, 0, 1]])  # LAS
SHAPE = (2, 3, 4)
B, G = truth.scheme([12, 20, 30], [1000, 2000, 3000], 3)


@pytest.fixture(scope="module")
def gtab():
    return mapmri.GradientTable(B, G, big_delta=0.0431, small_delta=0.0106)


@pytest.fixture(scope="module")
def model(gtab):
    return mapmri.MapmriModel(gtab, 4)


@pytest.fixture(scope="module")
def data():
    return 100 * phantom.signals(24, B, G, seed=2).reshape(*SHAPE, -1)


def image(values, affine=AFFINE):
    return nib.Nifti1Image(values, affine)


def reoriented(values, axes, affine=AFFINE):
    """The same image in space with its axes stored along other directions."""
    start = nib.orientations.io_orientation(affine)
    return image(values, affine).as_reoriented(
        nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axes))
    )


# ---- arrays


class Frame:
    """As much of a table of pandas as is asked for."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return self.values


class Proxy:
    """An object with a shape and slices."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __getitem__(self, cut):
        return self.values[cut]


def test_anything_that_holds_real_numbers_is_the_same_series(model, data, tmp_path):
    """Images, files, memory maps, lists, tables, any layout and type: the values decide alone."""
    data = np.round(data / 100)
    want, whole = model.fit(data), data.astype(np.int16)
    nib.save(image(whole), tmp_path / "dwi.nii.gz")
    nib.save(image(whole[:, :, :, None]), tmp_path / "five.nii")
    np.save(tmp_path / "data.npy", whole)
    loaded = nib.load(tmp_path / "dwi.nii.gz")
    for series in (loaded, loaded.dataobj, tmp_path / "dwi.nii.gz", str(tmp_path / "five.nii")):
        fit = model.fit(series)
        assert phantom.same(fit, want)
        assert np.array_equal(fit.affine, AFFINE)
    mapped, readonly = np.load(tmp_path / "data.npy", mmap_mode="r"), data.copy()
    readonly.setflags(write=False)
    arrays = [whole, data.astype(np.float32), data.astype(">f8"), np.asfortranarray(data), mapped]
    for series in (*arrays, readonly, np.repeat(data, 2, 2)[:, :, ::2], data.tolist(), Proxy(data)):
        assert phantom.same(model.fit(series), want)
    flat, one = model.fit(Frame(data.reshape(24, -1))), model.fit(data[0, 1, 2])
    assert np.array_equal(flat.coef, want.coef)
    assert (flat.rtop().shape, flat.affine) == ((24,), None)
    assert np.array_equal(one.coef, want.coef[6:7])
    assert (one.rtop().shape, one.predict().shape) == ((), (len(B),))
    assert model.fit(np.empty((0, len(B)))).rtop().shape == (0,)
    assert np.array_equal(model.fit(data, image(np.ones(SHAPE, np.uint8))).affine, AFFINE)


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda y: (y * np.exp(1j)).astype(np.complex64), "complex64"),
        (lambda y: y.astype(str), "<U"),
        (lambda y: y.astype(object), "object"),
        (lambda y: y.astype("m8[s]"), "timedelta64"),
        (lambda y: y > 0, "bool"),
        (lambda y: None, "object"),
        (lambda y: y.astype([("r", float), ("i", float)]), r"\('r', '<f8'\)"),
        (lambda y: image(y * 1j), "complex128"),
        (lambda y: Frame(y.astype(object)), "object"),
    ],
)
def test_other_types_are_named(gtab, model, data, change, dtype):
    """In the library, the drop-in, on a cluster and for error bars."""
    bad = change(data)
    calls = [
        ("data", lambda: model.fit(bad)),
        ("data", lambda: drop_in.MapmriModel(gtab, 4).fit(bad)),
        ("data", lambda: uncertainty.posterior(model, bad)),
    ]
    if isinstance(bad, np.ndarray):
        da = pytest.importorskip("dask.array")
        chunked = da.from_array(bad, chunks=bad.shape)
        calls += [("data", lambda: distributed.fit(model, chunked))]
        if bad.dtype.kind != "b":
            calls += [("mask", lambda: model.fit(data, mask=bad[..., 0]))]
            calls += [("weights", lambda: model.fit(data, weights=bad))]
    for name, call in calls:
        refused(f"{name} must hold real numbers, not .*{dtype}", call, error=TypeError)


def test_masked_samples_are_missing(model, data):
    missing = np.random.default_rng(0).random(data.shape) < 0.1
    for values in (data, (100 * data).astype(np.int16)):
        want = model.fit(np.where(missing, np.nan, values))
        assert phantom.same(model.fit(np.ma.masked_array(values, missing)), want)
    mask = np.ma.masked_array(np.ones(SHAPE), missing[..., 0])
    assert np.array_equal(model.fit(data, mask).mask, ~missing[..., 0])


def test_axes_of_length_1_are_left_out_and_it_is_said(model, data, caplog):
    with caplog.at_level(logging.INFO, "mapmri_nb"):
        assert phantom.same(model.fit(data[:, :, :, None]), model.fit(data))
        assert f"(2, 3, 4, 1, {len(B)}) is read as (2, 3, 4, {len(B)})" in caplog.text
        assert model.fit(data[:, :, :, None, None]).mask.shape == SHAPE
    assert phantom.same(model.fit(data, np.ones((*SHAPE, 1))), model.fit(data))
    for shape in ((2, 3, 1), (1,), (2, 1)):  # slices and lists of voxels keep theirs
        some = data.reshape(-1, len(B))[: np.prod(shape)].reshape(*shape, -1)
        assert model.fit(some).mask.shape == shape
    kept = model.fit(data[:, :, :, None], np.ones((*SHAPE, 1), bool))  # the mask asks for it
    assert kept.mask.shape == (*SHAPE, 1)


# ---- masks


def test_masks_of_every_kind(model, data, caplog, tmp_path):
    want = np.random.default_rng(3).random(SHAPE) < 0.5
    for mask in (
        want.astype(np.uint8),
        255 * want.astype(np.int16),
        np.where(want, 1.0, np.nan),
        np.where(want, 0.3, 0),
        image(want.astype(np.uint8)),
        image(want[..., None].astype(np.float32)),
    ):
        assert np.array_equal(model.fit(data, mask).mask, want)
    assert "more than two" not in caplog.text
    soft = np.where(want, 0.6, 0.4) + np.random.default_rng(4).uniform(-0.09, 0.09, SHAPE)
    soft[0, 0, 0] = -0.02 if not want[0, 0, 0] else 1.04  # rings, as an interpolation leaves them
    assert np.array_equal(model.fit(data, soft).mask, want)
    assert "mask: values from" in caplog.text
    nib.save(image(soft), tmp_path / "soft.nii")  # the command line's way
    assert np.array_equal(mapmri.io.load_mask(tmp_path / "soft.nii", SHAPE, AFFINE), want)


# ---- companions


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "ASR"])
def test_companions_stored_otherwise_are_turned(model, data, caplog, axes):
    """A flip or a permutation of the axes of the same space: the same voxels are meant."""
    rng, series = np.random.default_rng(5), image(data)
    half = np.zeros(SHAPE, np.uint8)
    half[0], half[1, 0, 0] = 1, 1
    weights = rng.integers(0, 4, data.shape).astype(np.float32)
    with caplog.at_level(logging.INFO, "mapmri_nb"):
        fit = model.fit(series, reoriented(half, axes), weights=reoriented(weights, axes))
    assert phantom.same(fit, model.fit(series, half, weights=weights))
    said = "its axes are stored otherwise than the data's; turned to them"
    assert f"mask: {said}" in caplog.text
    assert f"weights: {said}" in caplog.text
    F = rng.normal(size=(*SHAPE, 9)) * 0.01
    assert phantom.same(model.fit(series, grad_dev=image(F)), model.fit(data, grad_dev=F))
    words = "grad_dev: its axes are stored in another order"
    refused(words, model.fit, series, grad_dev=reoriented(F, axes))
    sigma = np.arange(24.0).reshape(SHAPE) + 1  # by name, as the others
    got = checks.companion("sigma", reoriented(sigma, axes), data.shape, AFFINE)
    assert np.array_equal(np.asarray(got), sigma)


@pytest.mark.parametrize("name", ["mask", "weights", "grad_dev"])
def test_companions_of_another_space_are_refused(model, data, caplog, name):
    sizes = {"mask": (), "weights": (len(B),), "grad_dev": (9,)}
    values = np.full(SHAPE + sizes[name], 0.01 if name == "grad_dev" else 1.0)
    far, near = AFFINE.copy(), AFFINE.copy()
    tilted = np.eye(4)
    far[0, 3], near[0, 3] = far[0, 3] + 3, near[0, 3] + 0.3
    tilted[:3, :3] = truth.rotation(2, 10)
    affines = (far, tilted @ AFFINE, AFFINE @ np.diag([1, 1, 1.2, 1]), np.eye(4))
    for other in (*(image(values, affine) for affine in affines), image(values[:, :2])):
        refused(f"{name}: it lies elsewhere than the data", model.fit, image(data), **{name: other})
    assert "shifted" not in caplog.text
    model.fit(image(data), **{name: image(values, near)})
    assert f"{name} is shifted against the data by up to 0.15 voxels" in caplog.text


def test_a_field_needs_the_axes_of_its_components(data):
    las, positive = np.diag([-2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1])
    F, words = np.zeros((*SHAPE, 9)), r"grad_dev: its components are along .* FSL's"
    for frame in ("voxel", "scanner"):  # the scanner's run along these voxel axes, FSL's x does not
        model = mapmri.MapmriModel(mapmri.GradientTable(B, G, 0.0431, 0.0106, frame=frame), 4)
        refused(words, model.fit, image(data, positive), grad_dev=image(F, positive))
    table = mapmri.GradientTable(B, G, 0.0431, 0.0106, frame="voxel")  # det < 0: image and voxel
    mapmri.MapmriModel(table, 4).fit(image(data, las), grad_dev=image(F, las))


# ---- zeros


def test_zeros_outside_the_field_of_view_are_missing(gtab, model, data):
    """Three of the samples of every voxel: as missing ones 1 %, as measured ones far more."""
    zeros, holes = data.copy(), data.copy()
    zeros[..., [14, 34, 54]], holes[..., [14, 34, 54]] = 0, np.nan
    fit = model.fit(zeros)
    assert phantom.same(fit, model.fit(holes))
    assert np.array_equal(fit.status, np.full(24, Status.DROPPED))
    taken = mapmri.MapmriModel(gtab, 4, zero_is_missing=False).fit(zeros)
    error = [np.abs(f.rtop() / model.fit(data).rtop() - 1).max() for f in (fit, taken)]
    assert error[0] < 0.02
    assert error[1] > 0.05
    negative = np.where(zeros == 0, -1e-9, zeros)  # measured: as good as 0 as data
    assert_allclose(model.fit(negative).rtop(), taken.rtop(), rtol=1e-6)
    one, two = (drop_in.MapmriModel(gtab, 4).fit(y).rtop() for y in (zeros, holes))
    assert np.array_equal(one, two)
    one, two = (uncertainty.posterior(model, y).sd["rtop"] for y in (zeros, holes))
    assert np.array_equal(one, two)
    assert (model.fit(0 * data).status & Status.NO_SIGNAL).all()


def test_zeros_that_pile_up_are_warned_of(gtab, model, data, caplog):
    some = data.copy()
    some[..., 14] = 0  # of every shell alike: a volume out of the field of view
    some[..., 50] = 0
    model.fit(some)
    assert caplog.text == ""
    clipped = np.where((data < np.quantile(data[..., 40:], 0.2)) & (B > 2500), 0, data)
    model.fit(clipped)
    assert "samples of the top shell are exactly 0" in caplog.text
    caplog.clear()
    mapmri.MapmriModel(gtab, 4, zero_is_missing=False).fit(clipped)
    assert caplog.text == ""


# ---- units and sense


@pytest.mark.parametrize(
    ("scale", "options", "message"),
    [
        (1e-3, {}, r"no weighted volume: its largest b is 3 .*In ms/um2 that is 3000 s/mm2"),
        (1e-3, {"b0_threshold": 0}, r"no weighted volume: its largest b is 3 "),
        (0, {}, r"no weighted volume: its largest b is 0 s/mm2 \(b0_threshold is 50\)$"),
        (1, {"b0_threshold": 1e4}, r"largest b is 3000 s/mm2 \(b0_threshold is 10000\)$"),
        (1e6, {}, r"bvals\[\d+\] = 1e\+09 s/mm2 is out of any sense. In s/m2\? Then divide .* 1e6"),
    ],
)
def test_b_in_other_units(scale, options, message):
    with pytest.raises(ValueError, match=message):
        mapmri.MapmriModel(mapmri.GradientTable(scale * B, G, 0.0431, 0.0106, **options))


def test_points_out_of_any_sense(model, data, caplog):
    fit = model.fit(data)
    near, far = (mapmri.GradientTable(b, G, 0.0431, 0.0106) for b in (B + 5, B / 1000))
    for table, said in ((near[B == 0], 0), (far, 1)):  # a low b of the fit's own is meant
        mapmri.MapmriModel(near, 4).fit(data).predict(table)
        assert caplog.text.count("In ms/um2? Then it is") == said
    for unit, word in ((20, r"In um\? Then it is 0\.02 mm"), (2e-5, r"In m\? Then it is 0\.02 mm")):
        refused(word, fit.pdf, [[0, 0, 0], [unit, 0, 0]])
    assert np.isfinite(fit.pdf([[0, 0, 0]])).all()


def test_deltas_of_mixed_units():
    for small, reading in ((1.06e-5, "0.0106"), (2e-4, "0.2"), (9e-5, "0.09")):
        words = f"small_delta = .* beside big_delta = 0.0431 s.*is {reading} s"
        refused(words, mapmri.GradientTable, B, G, 0.0431, small)
    assert mapmri.GradientTable(B, G, 0.0431, 5e-4).tau > 0  # a short pulse of a strong gradient


def test_order_beyond_the_shells_is_warned_of(gtab, caplog):
    mapmri.MapmriModel(gtab, 6)
    assert caplog.text == ""
    for top, order, most in ((1500, 6, 2), (1500, 4, 2), (2500, 6, 4), (3500, 8, 6)):
        caplog.clear()
        mapmri.MapmriModel(gtab[top > B], order)
        assert f"radial_order: {order} on" in caplog.text
        assert f"determine order {most} at most" in caplog.text


def test_counts_in_words():
    status = np.array([0, Status.DROPPED, Status.DROPPED | Status.FLOOR])
    assert in_words(status) == (
        "1 voxel had an eigenvalue raised to the floor; 2 voxels had samples left out; all were fitted"
    )
    status = np.array([0, 0, Status.NO_SIGNAL, Status.DROPPED | Status.TOO_FEW, Status.TOO_FEW])
    assert in_words(status) == (
        "2 voxels fitted, 3 voxels not: 1 no positive signal at b = 0, 2 too few valid samples"
    )
    assert in_words(status[2:]).startswith("none fitted, 3 voxels not: ")


# ---- saving


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (7,), (2, 3), (2, 3, 4), (2, 2, 3, 2), (1, 2, 1, 2, 2), (1, 2, 1, 2, 1, 2, 3)],
)
@pytest.mark.parametrize("basis", ["anisotropic", "isotropic"])
def test_saved_fits_of_every_shape_come_back(gtab, data, tmp_path, shape, basis):
    count = int(np.prod(shape))
    mask = np.arange(count).reshape(shape) != 1
    series = data.reshape(24, -1)[:count].reshape(*shape, -1)
    fit = mapmri.MapmriModel(gtab, 4, basis=basis).fit(series, mask)
    refused("affine is missing", fit.save, tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
    fit.save(tmp_path / "fit", affine=AFFINE)
    back = mapmri.load_fit(tmp_path / "fit")
    assert back.mask.shape == shape
    assert np.array_equal(back.mask, mask)
    assert np.array_equal(back.rtop(), fit.rtop(), equal_nan=True)
    for name, rows in fit.rows().items():
        assert np.array_equal(back.rows()[name], rows, equal_nan=True), name
    assert np.array_equal(back.affine, AFFINE)
    back.save(tmp_path / "again")  # and it is remembered
    assert np.array_equal(mapmri.load_fit(tmp_path / "again").affine, AFFINE)


# ---- frames


@pytest.mark.parametrize(
    "flip", [np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1]), np.diag([-1.0, -1, 1, 1])]
)
def test_one_acquisition_in_three_frames(flip):
    """Peaks, ODF, harmonics, propagator and prediction are those of one and the same fibre."""
    affine, fits = phantom.OBLIQUE @ flip, {}
    y, tables = np.tile(phantom.one_fibre(B, G), (2, 1, 1, 1)), {}
    for frame in ("image", "voxel", "scanner"):
        g = mapmri.gradients.turned(G, affine, "scanner", frame)
        tables[frame] = mapmri.GradientTable(B, g, 0.0431, 0.0106, frame=frame)
        fits[frame] = mapmri.MapmriModel(tables[frame], 6, laplacian=0.05).fit(image(y, affine))
    vectors = phantom.unit(np.random.default_rng(1).normal(size=(20, 3)))
    want, r = fits["scanner"], 0.01 * vectors
    peak, sh = want.peaks()[0][0, 0, 0, 0], want.odf_sh()
    for frame, fit in fits.items():
        turned = mapmri.gradients.turned(vectors, affine, "scanner", frame)
        found = fit.peaks(frame="scanner")[0][0, 0, 0, 0]
        assert phantom.apart(found, peak) < 0.1
        assert_allclose(fit.odf(vectors, frame="scanner"), want.odf(vectors), rtol=1e-9)
        assert_allclose(fit.odf(turned), want.odf(vectors), rtol=1e-9)
        assert_allclose(fit.odf_sh(frame="scanner"), sh, atol=1e-9 * np.abs(sh).max())
        assert_allclose(fit.pdf(r, frame="scanner"), want.pdf(r), atol=1e-9 * want.rtop().max())
        for table in tables.values():  # one acquisition, told in another frame
            assert_allclose(fit.predict(table), want.predict(), rtol=1e-9)
    fit = fits["image"]
    fit.affine = None
    for call in (lambda: fit.predict(tables["scanner"]), lambda: fit.peaks(frame="voxel")):
        refused(r"affine is missing: between .* set fit\.affine", call)


def test_a_table_of_dipy_is_along_voxel_axes(data):
    gradients = pytest.importorskip("dipy.core.gradients")
    theirs = gradients.gradient_table(B, bvecs=G, big_delta=0.0431, small_delta=0.0106)
    voxel = mapmri.GradientTable(B, G, 0.0431, 0.0106, frame="voxel")
    assert mapmri.MapmriModel(theirs).gtab.frame == "voxel"
    affine = np.diag([2.0, 2, 2, 1])
    fits = [mapmri.MapmriModel(t, 4).fit(image(data, affine)) for t in (theirs, voxel)]
    assert phantom.same(*fits)
    one, two = (fit.peaks(frame="scanner")[0] for fit in fits)
    assert np.array_equal(one, two, equal_nan=True)
    assert drop_in.MapmriModel(theirs, 4)._core.gtab.frame == "voxel"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"basis": "isotropic"},
        {"S0": "free", "laplacian_of": "signal"},
        {"S0": "b0", "laplacian": None},
    ],
)
def test_a_scale_given_once_is_that_of_every_voxel(gtab, data, options):
    """One constant map of the samples, the same fit as with rows of scales, voxel by voxel."""
    y = data.reshape(24, -1).copy()
    y[3, 5], y[4, 6] = np.nan, -1.0
    y[5] = 0.0
    mu = np.array([0.007, 0.005, 0.004])
    R = phantom.random_rotation(np.random.default_rng(1)) * [1, 1, -1]
    model = mapmri.MapmriModel(gtab, 4, **options)
    once = model.fit(y, scale=(mu, R)).rows()
    rows = model.fit(y, scale=(np.tile(mu, (24, 1)), np.tile(R, (24, 1, 1)))).rows()
    for name, values in once.items():
        assert np.allclose(values, rows[name], rtol=1e-9, atol=1e-9, equal_nan=True), name
    ordinary = np.arange(24) != 3
    assert not np.array_equal(once["coef"][ordinary], rows["coef"][ordinary], equal_nan=True)
    assert np.array_equal(once["coef"][3], rows["coef"][3])  # a sample is missing: no map
    for v in (2, 3, 4):  # whoever else is in the block
        alone = model.fit(y[v], scale=(mu, R)).rows()
        assert all(np.array_equal(alone[n][0], once[n][v], equal_nan=True) for n in once)


def test_a_static_diffusivity_has_one_map(gtab, data):
    y = data.reshape(24, -1)
    model = mapmri.MapmriModel(gtab, 4, basis="isotropic", static_diffusivity=0.7e-3)
    fit, out = model.fit(y), blocks.new_rows(24, model.n_coef)
    work = model.engine.work(phantom.rows_of(y), out)
    blocks.run(work.job, 0, 24)  # without the map
    assert np.allclose(fit.coef, out.coef, atol=1e-11)
    assert not np.array_equal(fit.coef, out.coef)
    assert np.array_equal(fit.mu_tensor, out.mu_tensor)
