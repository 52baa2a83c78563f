"""Pictures by their content: values, extents, labels, units, missing voxels."""

import re
from itertools import pairwise

import nibabel as nib
import numpy as np
import phantom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from shell import refused

import mapmri_nb as mapmri
from mapmri_nb import gradients
from mapmri_nb.testing.truths import rotation

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.collections import PathCollection  # noqa: E402

from mapmri_nb import plot  # noqa: E402
from mapmri_nb.use import glyphs, views  # noqa: E402

SHAPE = (4, 3, 2)


def tensor_signal(gtab, e1):
    """Signals of tensors (1.7, .3, .3)e-3 along e1 (..., 3)."""
    along = np.einsum("...i,ki->...k", e1, gtab.bvecs)
    return 100 * np.exp(-gtab.bvals * (0.3e-3 + 1.4e-3 * along**2))


@pytest.fixture(scope="module")
def data(gtab):
    """Fibres in the x-y plane, at 45 degrees; one voxel is empty, one outside the mask."""
    e1 = np.tile(np.array([1.0, 1.0, 0.0]) / np.sqrt(2), (*SHAPE, 1))
    series = tensor_signal(gtab, e1) * np.linspace(1, 2, 24).reshape(SHAPE)[..., None]
    series += np.random.default_rng(1).normal(size=series.shape)
    series[1, 2, 1] = 0
    return series


@pytest.fixture(scope="module")
def fit(gtab, data):
    mask = np.ones(SHAPE, bool)
    mask[3, 0, 1] = False
    mask[0, :2, 0] = False
    return mapmri.MapmriModel(gtab, radial_order=4).fit(data, mask)


def panels(figure):
    """Axes that show a map, and those that are colour bars."""
    shown = [a for a in figure.axes if a.images]
    return shown, [a for a in figure.axes if a not in shown]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_values_under_the_pixels_and_where_they_lie(fit, axis):
    figure = plot.compare_maps([fit], ["rtpp"], axis=axis, index=1)
    (axes,), _ = panels(figure)
    shown = axes.images[0].get_array()
    assert_array_equal(shown.filled(np.nan), np.take(fit.rtpp(), 1, axis).T)
    height, width = shown.shape
    assert tuple(axes.images[0].get_extent()) == (-0.5, width - 0.5, -0.5, height - 0.5)
    assert axes.images[0].origin == "lower"
    assert f"slice {'xyz'[axis]} = 1" in figure.get_supxlabel()


def test_missing_voxels_are_seen(fit):
    """No fit: crimson; outside the mask: the panel's grey. As drawn, not as asked for."""
    figure = plot.compare_maps([fit], ["msd"], index=1)
    (axes,), _ = panels(figure)
    pixels = pixels_of(figure)

    def at(i, j):
        x, y = axes.transData.transform((i, j))
        return pixels[len(pixels) - 1 - int(y), int(x)] / 255

    no_fit, outside = (matplotlib.colors.to_rgb(c) for c in (plot.NO_FIT, plot.OUTSIDE))
    assert at(1, 2) == pytest.approx(no_fit, abs=0.01)
    assert at(3, 0) == pytest.approx(outside, abs=0.01)
    assert at(2, 1) != pytest.approx(no_fit, abs=0.05)


def test_layout_and_labels_as_the_tutorial_has_them(fit):
    maps = ["msd", "qiv", "rtop", "rtap", "rtpp"]
    labels = {"fit_labels": ["A", "B"], "map_labels": [m.upper() for m in maps]}
    figure = plot.compare_maps([fit, fit], maps=maps, **labels)
    shown, bars = panels(figure)
    assert [a.get_title() for a in shown[:5]] == ["MSD", "QIV", "RTOP", "RTAP", "RTPP"]
    assert [shown[0].get_ylabel(), shown[5].get_ylabel()] == ["A", "B"]
    FigureCanvasAgg(figure).draw()
    assert [b.get_xlabel() for b in bars] == ["10⁻⁶ mm²", "10⁻¹² mm⁵", "10³ mm⁻³", "mm⁻²", "mm⁻¹"]
    texts = [(t.get_position()[0], t.get_text()) for t in bars[2].get_xticklabels() if t.get_text()]
    assert len(texts) >= 2
    for place, text in texts:  # ticks go with the unit
        assert float(text) * 1e3 == pytest.approx(place)
    given = {"map_kwargs": {"vmin": 0, "vmax": 3}, "fit_labels": list("abcd")}
    shown, bars = panels(plot.compare_maps([fit] * 4, ["norm_of_laplacian_signal"], **given))
    assert [a.get_title() for a in shown] == list("abcd")
    assert [bar.get_ylabel() for bar in bars] == ["mm"]
    assert shown[2].images[0].get_clim() == (0, 3)
    image = shown[0].images[0].get_array().filled(np.nan)
    assert_array_equal(image, fit.lapnorm()[..., 1].T)


@pytest.mark.parametrize("tall", [1.0, 2.0, 4.0])
def test_tick_labels_of_narrow_bars_do_not_touch(fit, tall):
    figure = plot.overview(fit, affine=np.diag([1.0, tall, 1.0, 1.0]))
    FigureCanvasAgg(figure).draw()
    for bar in panels(figure)[1]:
        low, high = bar.get_xlim()
        labels = zip(bar.get_xticks(), bar.get_xticklabels(), strict=True)
        boxes = [label.get_window_extent() for place, label in labels if low <= place <= high]
        assert len(boxes) >= (1 if tall == 4 else 2)
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


@pytest.mark.parametrize(
    ("name", "label", "units", "unit", "value"),
    [
        ("ng_parallel", r"NG$_\parallel$", "mm", "1", lambda f: f.ng_par()),
        ("ng_perpendicular", r"NG$_\perp$", "mm", "1", lambda f: f.ng_perp()),
        ("msd", "MSD", "um", "µm²", lambda f: f.msd() * 1e6),
        ("rtop^(1/3)", "RTOP$^{1/3}$", "um", "µm⁻¹", lambda f: np.cbrt(f.rtop()) * 1e-3),
        ("rtap^(1/2)", "RTAP$^{1/2}$", "mm", "mm⁻¹", lambda f: np.sqrt(f.rtap())),
        ("rmse", "RMSE", "um", "units of the data", lambda f: f.rmse()),
        ("negative_mass", None, "um", "1", lambda f: f.negative()[1]),
        ("md", "MD", "um", "µm²/s", lambda f: f.index("md") * 1e6),
        ("rtop_root", None, "um", "µm⁻¹", lambda f: np.cbrt(f.rtop()) * 1e-3),
        ("theta_po", None, "um", "rad", lambda f: f.theta_po()),
        ("pa_dti", r"PA$_{DTI}$", "um", "1", lambda f: f.pa_dti()),
        ("lapnorm", r"$\|\Delta E\|^2$", "mm", "mm", lambda f: f.lapnorm()),
    ],
)
def test_maps_by_name(fit, name, label, units, unit, value):
    found = plot.map_of(fit, name, units)
    assert found.unit == unit
    assert label in (None, found.label)
    assert_allclose(found.values, value(fit), rtol=1e-12)


def test_default_slice_and_wrong_calls(fit, data):
    assert plot.view_of(fit.mask)[1:3] == (2, 1), "the larger mask"
    assert plot.view_of(np.ones((5, 1, 7), bool))[1:3] == (1, 0)
    assert plot.view_of(np.ones((5, 6, 7), bool))[1:3] == (2, 3), "of equals the middle one"
    assert plot.view_of(np.ones(5, bool)).cut(np.arange(5)).shape == (1, 5)
    refused(r"axis must be 0, 1 or 2, or one of .*, not 3", plot.view_of, fit.mask, axis=3)
    refused(r"index must lie in 0 .. 1 along axis 2, not 2", plot.view_of, fit.mask, index=2)
    for shape in ((2, 2, 2, 2), ()):
        refused("3 dimensions", plot.view_of, np.ones(shape, bool), affine=np.eye(4))
    maps = plot.compare_maps
    assert len(maps(fit, "rtop").axes) == 2  # one fit and one map need no list
    refused("'rtxp'", maps, [fit], ["rtxp"])
    for name in ("rtop^(1/2)", "rtop^(1/0)", "rtop^(1/x)", "rtop^2", "volume", "v1"):
        refused(re.escape(repr(name)), plot.map_of, fit, name)
    refused("at least one of each, not 0 and 1", maps, [], ["rtop"])
    refused("index must lie in 0 .. 1 along axis 2, not 0.5", plot.odf_slice, fit, index=0.5)
    refused("fit_labels: 1 given for 2", maps, [fit, fit], ["rtop"], ["one"])
    refused("map_kwargs", maps, [fit], ["rtop"], map_kwargs=[{}, {}])
    for voxel in ((0, 0, 0), (9, 0, 0), (1, 2, 1), (1,)):
        refused("voxel", plot.propagator, fit, voxel)
    refused("100 volumes", plot.signal, fit, (1, 1, 1), data[..., :50])


def glyph_axes(figure):
    """By the voxel on the screen: the glyph's long axis (2,), and its largest radius in voxels."""
    (image,) = [im for a in figure.axes for im in a.images if np.ndim(im.get_array()) == 3]
    pixels = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    i, j = np.nonzero(pixels[..., 3])
    x = left + (right - left) * (j + 0.5) / pixels.shape[1]
    y = bottom + (top - bottom) * (i + 0.5) / pixels.shape[0]
    points, out = np.stack([x, y], 1), {}
    centres = np.round(points)
    for centre in np.unique(centres, axis=0):
        away = points[(centres == centre).all(1)] - centre
        long = np.linalg.svd(away, full_matrices=False)[2][0]
        out[tuple(centre)] = long, np.linalg.norm(away, axis=1).max()
    return out


def test_glyphs_lie_in_their_voxels_along_the_fibres(fit):
    figure = plot.odf_slice(fit, index=0, size=(300, 250), scale=0.45)
    assert tuple(figure.get_size_inches() * figure.dpi) == (300, 250)
    assert all(word in figure.axes[0].get_title() for word in ("GFA", "s = 2"))
    background = figure.axes[0].images[0].get_array()
    assert 0.3 < background.min() < background.max() <= 1
    glyphs = glyph_axes(figure)
    assert set(glyphs) == {tuple(float(x) for x in v) for v in np.argwhere(fit.mask[..., 0])}
    for axis, radius in glyphs.values():
        assert abs(axis @ [1, 1]) / np.sqrt(2) > 0.95
        assert 0.35 < radius <= 0.45 + 1e-9
    assert set(glyph_axes(plot.odf_slice(fit, index=1))) == {
        tuple(float(x) for x in v) for v in np.argwhere(fit.mask[..., 1]) if tuple(v) != (1, 2)
    }, "no glyph where there is no fit"


def test_the_painter_draws_the_surface():
    """A sphere and an oblique ellipsoid against their outlines; colours show the front."""
    n, pixels = 19, 64
    v = glyphs.nodes(n)
    A = np.diag([1.0, 0.35, 0.35])
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    Q = np.linalg.inv(turn @ A @ A @ turn.T)
    radius = np.stack([np.full(len(v), 0.8), np.einsum("ki,ij,kj->k", v, Q, v) ** -0.5])
    tiles = glyphs.paint(radius, n, pixels, lambda d, r: np.abs(d))
    line = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    assert ((tiles[0, ..., 3] > 0) == (np.hypot(x, y) < 0.8)).mean() > 0.99
    shadow = np.linalg.inv(np.linalg.inv(Q)[:2, :2])  # outline of the ellipsoid's projection
    inside = np.einsum("...i,ij,...j->...", np.stack([x, y], -1), shadow, np.stack([x, y], -1)) < 1
    assert ((tiles[1, ..., 3] > 0) == inside).mean() > 0.985
    middle = tiles[0, pixels // 2, pixels // 2].astype(int)
    assert middle[2] > 5 * max(middle[0], middle[1]), "the front of a sphere looks at the viewer"
    laid = glyphs.lay(tiles, np.array([[0.5, 0.5], [1.5, 0.5]]), 2, 1)
    assert_array_equal(laid[:, :pixels], tiles[0])


def test_regions_of_glyphs(fit):
    """Corners in canonical voxels, a mask, or the fit's own mask; and what is wrong is named."""
    part = glyph_axes(plot.odf_slice(fit, index=0, region=(1, 3, 0, 2)))
    assert set(part) == {(1, 0), (2, 0), (1, 1), (2, 1)}
    chosen = np.zeros(SHAPE, bool)
    chosen[2, 1, 0] = True
    figure = plot.odf_slice(fit, index=0, region=chosen)
    assert set(glyph_axes(figure)) == {(2, 1)}
    assert figure.axes[0].get_xlim() == (1.5, 2.5)
    more = {"region": (0, 1, 1, 3), "affine": np.eye(4), "background": "rtpp"}
    mirrored = plot.odf_slice(fit, index=0, **more)
    assert {x for x, _ in glyph_axes(mirrored)} == {3}, "x runs to the left"
    assert "RTPP" in mirrored.axes[0].get_title()
    masks = np.ones((2, 2), bool), np.zeros(SHAPE, bool)
    for region in ((0, 9, 0, 2), (2, 1, 0, 2), (0, 1, 0), *masks):
        refused("region", plot.odf_slice, fit, index=0, region=region)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("frame", ["image", "voxel", "scanner"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_glyphs_follow_the_affine(gtab, sign, frame, axis):
    """A fibre along the voxel direction (1, 1, 0) is drawn so in any affine, frame and view."""
    affine = np.eye(4)
    affine[:3, :3] = phantom.random_rotation(np.random.default_rng(2)) * [2 * sign, 2, 2]
    along = affine[:3, :3] @ [1, 1, 0] / np.linalg.norm([2, 2])
    e1 = gradients.turned(along, affine, "scanner", frame)
    table = mapmri.GradientTable(gtab.bvals, gtab.bvecs, tau=gtab.tau, frame=frame)
    one = mapmri.MapmriModel(table, radial_order=4).fit(tensor_signal(table, e1)[None, None, None])
    ((long, _),) = glyph_axes(plot.odf_slice(one, axis=axis, affine=affine)).values()
    view = plot.view_of(one.mask, axis=axis, affine=affine)
    stored = np.zeros((3, 3))
    for c, (a, flip) in enumerate(zip(view.orientation.order, view.orientation.flip, strict=True)):
        stored[c, a] = -1 if flip else 1
    expected = (view.screen @ stored @ [1, 1, 0])[:2]
    assert np.linalg.norm(expected) > 0.9, "the fibre is seen"
    assert abs(long @ expected) / np.linalg.norm(expected) > 0.98


def points_of(axes):
    """Heights of the points of a panel, sorted."""
    parts = [c.get_offsets()[:, 1] for c in axes.collections if isinstance(c, PathCollection)]
    return np.sort(np.concatenate(parts))


def test_signal_shows_the_samples_and_the_fit(fit, data):
    figure = plot.signal(fit, (2, 1, 1), data)
    top, bottom = figure.axes[:2]
    assert_allclose(points_of(top), np.sort(data[2, 1, 1]))
    rest = np.sort((data - fit.predict())[2, 1, 1])
    assert_allclose(points_of(bottom), rest, rtol=1e-9)
    lines = {line.get_label(): line for line in top.lines}
    b, y = lines["fit along e1"].get_data()
    assert_allclose(y[0], fit.volume(fit.S0, np.nan)[2, 1, 1])
    near = y[np.abs(b - 1000).argmin()] / y[0]
    assert near == pytest.approx(np.exp(-1.7), abs=0.03)
    assert bottom.get_xlabel() == "b (s/mm²)"
    assert plot.signal(fit, (2, 1, 1), data[2, 1, 1]).axes[0].get_title() == "voxel (2, 1, 1)"


def test_propagator_is_longest_along_e1(fit):
    figure = plot.propagator(fit, (2, 1, 1))
    left, right = figure.axes[:2]
    assert left.get_xlabel() == "along e1 (µm)"
    assert right.get_ylabel() == "along e3 (µm)"
    level = left.collections[1].get_paths()[-3].vertices  # P / P(0) = 0.1, nearly a Gaussian's
    width, height = np.ptp(level, axis=0)
    assert width / height == pytest.approx(np.sqrt(1.7 / 0.3), rel=0.15)


def test_overview(fit, tmp_path):
    figure = plot.overview(fit, tmp_path / "o.png", title="two words")
    shown, bars = panels(figure)
    assert (tmp_path / "o.png").stat().st_size > 20000
    titles = [a.get_title() for a in shown]
    roots = {"RTOP$^{1/3}$", "RTAP$^{1/2}$", r"$\|\Delta E\|^2$"}
    assert roots | {"RTPP", "MSD", "QIV", "NG", "PA"} <= set(titles)
    assert len(bars) == len(shown) == 9
    msd = shown[titles.index("MSD")].images[0].get_array()
    assert_allclose(msd, fit.msd()[..., 1].T * 1e6)


@pytest.mark.filterwarnings("ignore")
def test_fits_of_dipy_can_stand_beside(gtab, data, fit):
    """The tutorial's call, with a fit of DIPY's own in the row."""
    of_dipy = pytest.importorskip("dipy.reconst.mapmri").MapmriModel
    from dipy.core.gradients import gradient_table

    table = gradient_table(gtab.bvals, bvecs=gtab.bvecs, big_delta=0.04, small_delta=0.03)
    theirs = of_dipy(table, radial_order=4).fit(data, mask=fit.mask)
    fit = mapmri.MapmriModel(gtab, 4, preset="paper").fit(data, fit.mask)
    figure = plot.compare_maps([theirs, fit], ["norm_of_laplacian_signal", "ng_parallel"], index=0)
    want = theirs.norm_of_laplacian_signal()[..., 0].T
    first, _, second, _ = (a.images[0].get_array().filled(0) for a in panels(figure)[0])
    assert_array_equal(first, want)
    assert_allclose(want, np.nan_to_num(second), rtol=0.05)


def reoriented(volume, affine, codes):
    """A volume (RAS) and its affine stored along other axes: ``LPS``, ``PIR`` ..."""
    turned = nib.orientations.axcodes2ornt(codes)
    change = nib.orientations.inv_ornt_aff(turned, volume.shape[:3])
    return nib.orientations.apply_orientation(volume, turned), affine @ change


@pytest.fixture(scope="module")
def stored(gtab):
    """One phantom without a symmetry, fitted from four storage orders, its affine oblique."""
    rng, shape = np.random.default_rng(5), (6, 7, 5)
    e1, affine = phantom.unit(rng.normal(size=(*shape, 3))), np.eye(4)
    affine[:3, :3] = rotation(2, np.degrees(0.2)) * [2.0, 2.0, 3.0]
    affine[:3, 3] = -7, 5, 11
    table = mapmri.GradientTable(gtab.bvals, gtab.bvecs, tau=gtab.tau, frame="scanner")
    series = tensor_signal(table, e1) * rng.uniform(1, 2, (*shape, 1))
    mask = rng.uniform(size=shape) > 0.2
    mask[:, :, 3] = True
    mask[0, 0, 3] = False
    model, out = mapmri.MapmriModel(table, radial_order=4), {}
    for codes in ("RAS", "LAS", "LPS", "PIR"):
        data, A = reoriented(series, affine, codes)
        out[codes] = model.fit(data, reoriented(mask, affine, codes)[0]), A
    return out


def pixels_of(figure):
    """Colours (height, width, 3) as drawn, from the top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


PICTURES = {
    "maps": lambda fit, **view: plot.compare_maps([fit], ["rtop^(1/3)", "ng_par"], **view),
    "odf": lambda fit, **view: plot.odf_slice(fit, size=(400, 450), **view),
}


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("maps", {"axis": "coronal", "index": 4}),
        ("odf", {}),
        ("odf", {"axis": 0, "convention": "neurological"}),
    ],
)
def test_storage_order_does_not_show(stored, kind, where):
    """RAS, LAS, LPS, PIR: the same pixels, but for rounding."""
    pictures = [pixels_of(PICTURES[kind](fit, affine=A, **where)) for fit, A in stored.values()]
    assert pictures[0].std() > 20
    for other in pictures[1:]:
        assert other.shape == pictures[0].shape
        assert (np.abs(other - pictures[0]).max(-1) > 2).mean() < 1e-3


def test_letters_and_conventions(stored):
    """Radiological: the patient's left is on the right; values lie on the side of their letter."""
    for fit, A in stored.values():
        place = np.moveaxis(np.indices(fit.mask.shape), 0, -1) @ A[:3, :3].T
        for convention, letters in (("radiological", "RLPA"), ("neurological", "LRPA")):
            view = plot.view_of(fit.mask, affine=A, convention=convention)
            assert view.letters == letters
            sign = 1 if view.letters[1] == "R" else -1
            assert np.all(np.diff(view.cut(place[..., 0]), axis=1) * sign > 0)
            assert np.all(np.diff(view.cut(place[..., 1]), axis=0) > 0)
        side = plot.view_of(fit.mask, "sagittal", affine=A)
        assert side.letters == "PAIS"
        assert side.size == pytest.approx([2, 3])
        side = plot.compare_maps([fit], ["msd"], axis="sagittal", affine=A)
        assert side.axes[0].get_aspect() == pytest.approx(1.5)
        for more in ({"affine": A}, {}):
            figure = plot.compare_maps([fit], ["msd"], **more)
            fit.affine = A  # which is taken where none is given
            assert "".join(t.get_text() for t in figure.axes[0].texts) == "RLPA"
            assert "axial slice, z = " in figure.get_supxlabel()
            assert "radiological" in figure.get_supxlabel()
        del fit.affine
    refused(r"convention must be one of .*, not 'left'", plot.view_of, fit.mask, convention="left")
    refused("affine", plot.view_of, fit.mask, affine=np.zeros((4, 4)))


def test_paper_and_formats(fit, tmp_path):
    more = {"figsize": (3, 4), "dpi": 200, "filename": tmp_path / "a.png"}
    assert tuple(plot.compare_maps([fit], ["rtop"], **more).get_size_inches()) == (3, 4)
    assert matplotlib.image.imread(tmp_path / "a.png").shape[:2] == (800, 600)
    plot.odf_slice(fit, index=0, figsize=(3, 3), filename=tmp_path / "a.pdf")
    plot.propagator(fit, (2, 1, 1), tmp_path / "a.svg", figsize=(6, 3))
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert "e1 (µm)" in (tmp_path / "a.svg").read_text(encoding="utf-8"), "text stays text"


def test_one_range_for_all_fits_that_long_tails_do_not_stretch(gtab, data, fit):
    """A fifth of the voxels a hundred times larger: the range is that of the others."""
    fits = [fit, mapmri.MapmriModel(gtab, radial_order=4, laplacian=2.0).fit(data)]
    shown, bars = panels(plot.compare_maps(fits, ["rtop", "ng"], ["one", "two"], index=0))
    assert (len(shown), len(bars)) == (4, 2)
    for column, name in enumerate(("rtop", "ng")):
        pooled = np.concatenate([getattr(f, name)()[..., 0].ravel() for f in fits])
        for axes in shown[column::2]:
            assert axes.images[0].get_clim() == pytest.approx(views.limits(pooled))
    rng = np.random.default_rng(0)
    tissue, fluid = rng.normal(1, 0.2, 4000), rng.normal(100, 20, 1000)
    low, high = views.limits(np.concatenate([tissue, fluid, [np.nan]]))
    assert 0.2 < low < 0.8
    assert 1.4 < high < 3
    assert views.limits(tissue) == pytest.approx(np.percentile(tissue, views.ROBUST), abs=0.05)
    assert views.limits(np.full(9, 2.0)) == (2.0, 4.0)
