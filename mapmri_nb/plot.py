"""
Pictures of a fit: maps side by side, ODF glyphs, one voxel's signal and propagator, an overview.

Figures are made without pyplot, so that no state is left behind and no display is needed; `show=True` alone asks pyplot
for a window. Slices are shown as they lie in the array, first axis to the right, second upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import matplotlib
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
except ImportError:  # pragma: no cover
    raise ImportError("pictures need matplotlib: pip install 'mapmri_nb[plot]'") from None

from .directions import gfa, sphere
from .fit import MapmriFit
from .gradients import GradientTable, to_image, to_scanner
from .indices import INDICES, unit_factor

Array = NDArray[np.float64]

ALIASES = {"norm_of_laplacian_signal": "lapnorm", "ng_parallel": "ng_par", "ng_perpendicular": "ng_perp"}  # DIPY's names
OTHERS = {"rmse": "units of the data", "r2": "1", "negative_mass": "1"}  # maps that are no index, and their units
ROBUST = (2.0, 98.0)  # percentiles that make a map's range
OUTSIDE, NO_FIT = "0.88", "crimson"  # colours of what is outside the mask, and of voxels inside it without a value
GLYPHS = ((60, 724), (400, 362), (10**9, 100))  # up to so many voxels, glyphs of so many vertices
LIGHT = np.array([-0.4, 0.5, 0.77])  # from the upper left, in front
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


class Map(NamedTuple):
    """A volume with its name, and its unit ("1": none)."""

    values: Array
    label: str
    unit: str


class View(NamedTuple):
    """A slice: the axis it is normal to, its index on it, the axes shown to the right and upwards, their voxel sizes."""

    axis: int
    index: int
    right: int
    up: int
    size: tuple[float, float]

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """The slice of a volume as rows from the bottom up."""
        return np.take(_three(volume), self.index, self.axis).T


def power(base: str, exponent: int) -> str:
    """A power as text, "mm⁻³"."""
    return base if exponent == 1 else base + str(exponent).translate(SUPERSCRIPTS)


def map_of(fit: Any, name: str, units: str = "mm") -> Map:
    """A map by its name (ours or DIPY's), "rmse", "r2", "negative_mass", or the root of one: "rtop^(1/3)"."""
    base, _, root = name.partition("^(1/")
    n, base = int(root.rstrip(")") or 1), base if hasattr(fit, base) else ALIASES.get(base, base)
    index = INDICES.get(ALIASES.get(base, base))
    if index is None and base not in OTHERS or (index.power if index else 0) % n:
        raise ValueError(f"maps: {name!r} is not one of {', '.join([*INDICES, *ALIASES, *OTHERS])}, nor a whole root of one")
    values = fit.negative()[1] if base == "negative_mass" else getattr(fit, base)()
    length = index.power // n if index else 0
    unit = power("µm" if units == "um" else "mm", length) if length else OTHERS.get(base, "1")
    values = np.sign(values) * np.abs(values) ** (1 / n) * unit_factor(length, units)
    short = (index.name if index else base).upper().replace("_", " ")
    return Map(values, short if n == 1 else f"{short}^(1/{n})", unit)


def view_of(
    mask: NDArray[np.bool_], axis: int | None = None, index: int | None = None, affine: ArrayLike | None = None
) -> View:
    """The slice asked for; by default normal to an axis of length 1, or the last, where the mask is largest."""
    mask = _three(mask)
    if axis is None:
        axis = mask.shape.index(1) if mask.shape.count(1) == 1 else 2
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, not {axis!r}")
    right, up = (a for a in range(3) if a != axis)
    if index is None:
        index = int(mask.sum((right, up)).argmax())
    if not 0 <= index < mask.shape[axis]:
        raise ValueError(f"index must lie in 0 .. {mask.shape[axis] - 1} along axis {axis}, not {index!r}")
    size = np.ones(3) if affine is None else np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    return View(axis, index, right, up, (float(size[right]), float(size[up])))


def compare_maps(
    fits: Sequence[Any],
    maps: Sequence[str],
    fit_labels: Sequence[str] | None = None,
    map_labels: Sequence[str] | None = None,
    map_kwargs: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
    filename: Any = None,
    *,
    axis: int | None = None,
    index: int | None = None,
    affine: ArrayLike | None = None,
    units: str = "mm",
    transpose: bool | None = None,
    show: bool = False,
) -> Figure:
    """
    Maps of one or several fits in one figure; each map has one range, robust and shared by the fits, and a colour bar.

    Parameters
    ----------
    fits : fits over volumes of one shape. maps : names, see `map_of`.
    map_kwargs : arguments of imshow (vmin, vmax, cmap, ...), one dict for all maps or one each.
    axis, index : the slice, see `view_of`. affine : gives the proportions of the voxels.
    transpose : True: a row per map; default: more columns than rows.
    """
    fits, maps = list(fits), [maps] if isinstance(maps, str) else list(maps)
    fit_labels = [f"fit {i + 1}" for i in range(len(fits))] if fit_labels is None else fit_labels
    kwargs = [map_kwargs or {}] * len(maps) if map_kwargs is None or isinstance(map_kwargs, dict) else list(map_kwargs)
    for what, given, wanted in (
        ("fit_labels", fit_labels, fits),
        ("map_labels", map_labels or maps, maps),
        ("map_kwargs", kwargs, maps),
    ):
        if len(given) != len(wanted):
            raise ValueError(f"{what}: {len(given)} given for {len(wanted)}")
    columns = [[map_of(fit, name, units) for fit in fits] for name in maps]
    masks = [np.asarray(getattr(fit, "mask", True)) | np.zeros(columns[0][0].values.shape, bool) for fit in fits]
    view = view_of(np.logical_or.reduce(masks), axis, index, affine)
    turned = len(fits) > len(maps) if transpose is None else transpose
    shape = (len(maps), len(fits)) if turned else (len(fits), len(maps))
    height, width = (n * s for n, s in zip(np.shape(view.cut(masks[0])), view.size[::-1], strict=True))
    cell = (2.9, 2.9 * np.clip(height / width, 0.4, 2.0))
    figure = _figure((0.6 + shape[1] * (cell[0] + 0.8 * turned), 0.5 + shape[0] * (cell[1] + 0.3)), show)
    axes = figure.subplots(*shape, squeeze=False)
    axes = axes.T if turned else axes
    for j, column in enumerate(columns):
        label = map_labels[j] if map_labels else column[0].label
        cuts = np.concatenate([view.cut(m.values).ravel() for m in column])
        for i, m in enumerate(column):
            picture = _show_map(axes[i, j], m, masks[i], view, cuts, kwargs[j])
            if i == 0:
                (axes[i, j].set_ylabel if turned else axes[i, j].set_title)(label)
            if j == 0:
                (axes[i, j].set_title if turned else axes[i, j].set_ylabel)(fit_labels[i])
        _colour_bar(figure, picture, list(axes[:, j]), column[0], cuts, "right" if turned else "bottom")
    figure.supxlabel(_caption(view), fontsize=8, color="0.4")
    return _finish(figure, filename, show)


def odf_slice(
    fit: MapmriFit,
    s: float = 2,
    colormap: str = "plasma",
    scale: float = 0.5,
    filename: Any = None,
    size: tuple[int, int] = (600, 600),
    show: bool = False,
    *,
    axis: int | None = None,
    index: int | None = None,
    affine: ArrayLike | None = None,
) -> Figure:
    """
    ODF glyphs of a slice over its generalised fractional anisotropy; each glyph is scaled to its own maximum.

    Parameters
    ----------
    s : radial moment of the ODF. colormap : colours of ODF / maximum. scale : largest radius, in voxels.
    size : pixels. axis, index : the slice, see `view_of`.
    affine : turns the table's directions into voxel axes; without it they are taken for voxel axes as they are.
    """
    figure = _figure((size[0] / 100, size[1] / 100), show)
    _glyphs(figure, figure.subplots(), fit, view_of(fit.mask, axis, index, affine), s, colormap, scale, affine)
    return _finish(figure, filename, show)


def signal(fit: MapmriFit, voxel: Sequence[int], data: ArrayLike, filename: Any = None, show: bool = False) -> Figure:
    """
    Samples of one voxel against b, coloured by their angle to e1, the fit along and across e1, and the residuals.

    `data` is the series (..., n) or the voxel's own n samples.
    """
    one, table = _voxel(fit, voxel), fit.gtab
    y = np.asarray(data[tuple(voxel)] if np.ndim(data) > 1 else data, float)  # type: ignore[index]
    if y.shape != (len(table),):
        raise ValueError(f"data: the table has {len(table)} volumes, the voxel {y.shape}")
    figure = _figure((7.5, 5.5), show)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    angle = np.degrees(np.arccos(np.clip(np.abs(table.bvecs @ one.R[0, :, 0]), 0, 1)))
    b0, style = table.b0s_mask, {"s": 12, "cmap": "viridis", "vmin": 0, "vmax": 90}
    b = np.linspace(0, 1.05 * table.bvals.max(), 200)
    for k, colour, name in ((0, "#440154", "along e1"), (1, "#5ec962", "along e2"), (2, "#b5a300", "along e3")):
        line = GradientTable(b, np.tile(one.R[0, :, k], (200, 1)), tau=table.tau)
        top.plot(b, one.predict(line)[0], color=colour, label=f"fit {name}", lw=1.5, zorder=1)
    points = top.scatter(table.bvals[~b0], y[~b0], c=angle[~b0], **style, label="measured")
    top.scatter(table.bvals[b0], y[b0], s=14, color="0.4", label="measured, b0")
    residual = y - one.predict()[0]
    bottom.scatter(table.bvals[~b0], residual[~b0], c=angle[~b0], **style)
    bottom.scatter(table.bvals[b0], residual[b0], s=14, color="0.4")
    bottom.axhline(0, color="0.4", lw=0.8)
    rmse = float(one.rmse()[0])
    bottom.axhspan(-rmse, rmse, color="0.9", zorder=0, label=f"± RMSE {rmse:.3g}")
    if (y[np.isfinite(y)] > 0).all():
        top.set_yscale("log")
        for which in (top.yaxis.set_major_formatter, top.yaxis.set_minor_formatter):
            which(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    top.set(title=f"voxel {tuple(map(int, voxel))}", ylabel="signal (units of the data)")
    bottom.set(xlabel="b (s/mm²)", ylabel="measured − fit")
    top.legend(fontsize=8)
    bottom.legend(fontsize=8, loc="upper right")
    figure.colorbar(points, ax=[top, bottom], label="angle to e1 (degrees)", pad=0.02)
    return _finish(figure, filename, show)


def propagator(fit: MapmriFit, voxel: Sequence[int], filename: Any = None, show: bool = False) -> Figure:
    """Contours of P(r) / P(0) of one voxel in the planes of e1, e2 and of e2, e3; hatched in red where P is negative."""
    one = _voxel(fit, voxel)
    figure = _figure((9.5, 4.4), show)
    panels = figure.subplots(1, 2)
    levels = 10.0 ** np.arange(-4, 0.01, 0.5)
    origin, least = float(one.pdf(np.zeros((1, 3)))[0, 0]), np.inf
    for panel, (a, b) in zip(panels, ((0, 1), (1, 2)), strict=True):
        x = 4.5 * float(one.mu_tensor[0, a]) * np.linspace(-1, 1, 161)
        r = x[None, :, None] * one.R[0, :, a] + x[:, None, None] * one.R[0, :, b]
        p = one.pdf(r.reshape(-1, 3))[0].reshape(len(x), len(x)) / origin
        norm = matplotlib.colors.LogNorm(levels[0], 1)
        filled = panel.contourf(1e3 * x, 1e3 * x, np.clip(p, 1e-12, 1), levels, norm=norm, cmap="viridis")
        panel.contour(1e3 * x, 1e3 * x, p, levels, colors="k", linewidths=0.4)
        least = min(least, float(p.min()))
        if (p < -levels[0]).any():
            panel.contourf(1e3 * x, 1e3 * x, p, [-np.inf, -levels[0]], colors="none", hatches=["////"])
            panel.contour(1e3 * x, 1e3 * x, p, [-levels[0]], colors=NO_FIT, linestyles="-", linewidths=1)
        panel.set(xlabel=f"along e{a + 1} (µm)", ylabel=f"along e{b + 1} (µm)", aspect="equal")
    figure.colorbar(filled, ax=list(panels), label="P / P(0)", ticks=levels[::2])
    figure.suptitle(
        f"voxel {tuple(map(int, voxel))}: P(0) = {1e-9 * origin:.3g} µm⁻³; least P / P(0) shown {least:.2g}", fontsize=11
    )
    return _finish(figure, filename, show)


def overview(fit: MapmriFit, filename: Any = None, *, affine: ArrayLike | None = None, title: str = "") -> Figure:
    """One picture of a fit: eight maps of a slice in micrometres, and its ODF glyphs."""
    view, figure = view_of(fit.mask, affine=affine), _figure((15.5, 7), False)
    rows = np.array(OVERVIEW).reshape(2, 4).tolist()
    panels = figure.subplot_mosaic([[*row, "odf"] for row in rows], width_ratios=(1, 1, 1, 1, 3))
    for name in OVERVIEW:
        m = map_of(fit, name, "um")
        cut = view.cut(m.values)
        _colour_bar(figure, _show_map(panels[name], m, fit.mask, view, cut, {}), [panels[name]], m, cut, "bottom")
        panels[name].set_title(m.label)
    _glyphs(figure, panels["odf"], fit, view, 2, "plasma", 0.5, affine)
    figure.suptitle(title)
    figure.get_layout_engine().set(h_pad=0.14)  # type: ignore[union-attr]
    return _finish(figure, filename, False)


OVERVIEW = ("rtop^(1/3)", "rtap^(1/2)", "rtpp", "msd", "qiv", "ng", "pa", "lapnorm")


# ---- what the pictures share -----------------------------------------------------------------------------------------


def _three(volume: NDArray[Any]) -> NDArray[Any]:
    if not 1 <= volume.ndim <= 3:
        raise ValueError(f"a picture needs a volume of up to 3 dimensions, not of shape {volume.shape}")
    return volume.reshape(volume.shape + (1,) * (3 - volume.ndim))


def _figure(inches: tuple[float, float], show: bool) -> Figure:
    if show:
        from matplotlib import pyplot

        return pyplot.figure(figsize=inches, dpi=100, layout="constrained")
    return Figure(figsize=inches, dpi=100, layout="constrained")


def _finish(figure: Figure, filename: Any, show: bool) -> Figure:
    if filename is not None:
        figure.savefig(filename)
    if show:
        from matplotlib import pyplot

        pyplot.show()
        pyplot.close(figure)
    return figure


def _caption(view: View) -> str:
    return f"slice {'xyz'[view.axis]} = {view.index}: {'xyz'[view.right]} to the right, {'xyz'[view.up]} upwards"


def _show_map(axes: Any, m: Map, mask: NDArray[np.bool_], view: View, pooled: Array, kwargs: dict[str, Any]) -> Any:
    """One map; the range of `pooled` (other fits' values too) unless `kwargs` say otherwise; missing values in red."""
    cut, inside, finite = view.cut(m.values), view.cut(mask), pooled[np.isfinite(pooled)]
    low, high = np.percentile(finite, ROBUST) if finite.size else (0.0, 1.0)
    options: dict[str, Any] = {"vmin": low, "vmax": high if high > low else low + (abs(low) or 1.0), "cmap": "viridis"} | kwargs
    style = {"origin": "lower", "interpolation": "nearest", "aspect": view.size[1] / view.size[0]}
    picture = axes.imshow(np.ma.masked_invalid(cut), **style, **options)
    missing = inside & ~np.isfinite(cut)
    if missing.any():
        axes.imshow(np.ma.masked_where(~missing, missing), **style, cmap=ListedColormap([NO_FIT]), label="no value")
    axes.set(facecolor=OUTSIDE, xticks=[], yticks=[])
    return picture


def _colour_bar(figure: Any, picture: Any, axes: list[Any], m: Map, pooled: Array, place: str, shrink: float = 0.9) -> None:
    """With the unit, a power of a thousand taken into it, and arrows where values lie beyond the range."""
    low, high = picture.get_clim()
    top = max(abs(low), abs(high))
    k = 0 if 0.01 <= top < 1e4 or top == 0 else 3 * int(np.floor(np.log10(top) / 3))
    words = [power("10", k)] * (k != 0) + [m.unit] * (m.unit != "1")
    below, above = (pooled < low).any(), (pooled > high).any()
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[int(below), int(above)]
    bar = figure.colorbar(
        picture, ax=axes, location=place, extend=extend, label=" ".join(words) or "no unit", shrink=shrink, aspect=18
    )
    bar.ax.tick_params(labelsize=8)
    bar.locator = matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 5, 10])
    bar.formatter = matplotlib.ticker.FuncFormatter(lambda value, _: f"{value / 10.0**k:.4g}")
    bar.update_ticks()


def _part(fit: MapmriFit, keep: NDArray[np.bool_]) -> MapmriFit:
    """The fit of the rows `keep` (V,) as a line of voxels."""
    rows = {name: values[keep] for name, values in fit.rows().items()}
    return MapmriFit.from_rows(rows, np.ones(int(keep.sum()), bool), fit.options, fit.gtab)


def _voxel(fit: MapmriFit, voxel: Sequence[int]) -> MapmriFit:
    chosen = np.zeros(fit.mask.shape, bool)
    try:
        chosen[tuple(voxel)] = True
    except IndexError:
        raise ValueError(f"voxel {tuple(voxel)} lies outside the volume {fit.mask.shape}") from None
    if chosen.sum() != 1 or not fit.mask[chosen].all() or not np.isfinite(fit.coef[chosen[fit.mask]]).all():
        raise ValueError(f"voxel {tuple(voxel)} has no fit, or is not one voxel of the volume {fit.mask.shape}")
    return _part(fit, chosen[fit.mask])


def _voxel_axes(vectors: Array, fit: MapmriFit, affine: ArrayLike | None) -> Array:
    """Directions given along voxel axes, in the frame of the fit's table."""
    if affine is None:
        return vectors
    flip = -1.0 if np.linalg.det(np.asarray(affine, float)[:3, :3]) > 0 else 1.0  # FSL's convention
    image = vectors * np.array([flip, 1.0, 1.0])
    return to_scanner(image, affine) if fit.gtab.frame == "scanner" else image


def _glyphs(figure: Any, axes: Any, fit: MapmriFit, view: View, s: float, colormap: str, scale: float, affine: Any) -> None:
    """Shaded surfaces r(v) = scale ODF(v) / max ODF, the faces turned to the viewer, farthest first."""
    slab = np.zeros(_three(fit.mask).shape, bool)
    np.moveaxis(slab, view.axis, 0)[view.index] = True
    part = _part(fit, (slab.reshape(fit.mask.shape))[fit.mask])
    ball = sphere(next(n for limit, n in GLYPHS if len(part.coef) <= limit))
    odf = np.maximum(part.odf(_voxel_axes(ball.vertices, fit, affine), s), 0.0)
    background = np.full(fit.mask.shape, np.nan)
    background[slab.reshape(fit.mask.shape) & fit.mask] = gfa(odf)
    m = Map(background, "GFA", "1")
    cut = view.cut(background)
    picture = _show_map(axes, m, fit.mask, view, cut, {"cmap": "gray"})
    _colour_bar(figure, picture, [axes], m, cut, "bottom", 0.4)
    axes.set(title=f"ODF, s = {s:g}, each scaled to its maximum, over GFA", xlabel=_caption(view))
    peak = odf.max(1, keepdims=True)
    good = np.flatnonzero(np.isfinite(peak[:, 0]) & (peak[:, 0] > 0))
    radius = odf[good] / peak[good]
    toward = -1.0 if view.axis == 1 else 1.0  # right, up, toward the viewer: a right-handed frame
    surface = radius[..., None] * ball.vertices[:, [view.right, view.up, view.axis]] * [1.0, 1.0, toward]
    corners = surface[:, ball.faces]  # (V, faces, 3 corners, 3)
    normal = np.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    front = normal[..., 2] > 0
    depth = np.where(front, corners[..., 2].mean(-1), -np.inf)
    voxel, face = np.nonzero(front)
    order = np.argsort(depth[voxel, face], kind="stable")
    voxel, face = voxel[order], face[order]
    n = normal[voxel, face]
    shade = 0.45 + 0.55 * np.clip(n @ LIGHT / np.linalg.norm(n, axis=1), 0, 1)
    colours = matplotlib.colormaps[colormap](radius[voxel][np.arange(len(face))[:, None], ball.faces[face]].mean(1))
    colours[:, :3] *= shade[:, None]
    places = np.argwhere((slab & _three(fit.mask)).reshape(slab.shape))[:, [view.right, view.up]][good]
    proportion = min(view.size) / np.array(view.size)
    polygons = places[voxel][:, None] + scale * proportion * corners[voxel, face][..., :2]
    axes.add_collection(PolyCollection(polygons, facecolors=colours, edgecolors=colours, linewidths=0.15))
