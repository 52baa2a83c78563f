"""
Pictures of a fit: maps side by side, ODF glyphs, one voxel's signal and propagator, an overview.

Figures are made without pyplot, so that no state is left behind and no display is needed. Slices
are shown as they lie in the array, first axis to the right, second upwards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import matplotlib as mpl
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
except ImportError:
    raise ImportError("pictures need matplotlib: pip install 'mapmri_nb[plot]'") from None

from ..fit import MapmriFit
from ..gradients import GradientTable, from_voxel
from ..indices import INDICES, unit_factor
from .directions import gfa, sphere

Array = NDArray[np.float64]
matplotlib = mpl  # for the report: the words about a missing package stand here once

ALIASES = {
    "norm_of_laplacian_signal": "lapnorm",
    "ng_parallel": "ng_par",
    "ng_perpendicular": "ng_perp",
}  # DIPY's names
OTHERS = {
    "rmse": "units of the data",
    "r2": "1",
    "negative_mass": "1",
}  # maps that are no index, and their units
ROBUST = (2.0, 98.0)  # percentiles that make a map's range
OUTSIDE, NO_FIT = (
    "0.88",
    "crimson",
)  # colours of what is outside the mask, and of voxels inside it without a value
GLYPHS = ((60, 724), (400, 362), (10**9, 100))  # up to so many voxels, glyphs of so many vertices
OVERVIEW = ("rtop^(1/3)", "rtap^(1/2)", "rtpp", "msd", "qiv", "ng", "pa", "lapnorm")
LIGHT = np.array([-0.4, 0.5, 0.77])  # from the upper left, in front
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


class Map(NamedTuple):
    """A volume with its name, and its unit ("1": none)."""

    values: Array
    label: str
    unit: str


class View(NamedTuple):
    """
    A slice: the axis it is normal to, its index on it, the axes to the right and upwards, the
    affine if known.
    """

    axis: int
    at: int
    right: int
    up: int
    affine: Any

    def cut(self, volume: NDArray[Any]) -> Any:
        """The slice of a volume as rows from the bottom up."""
        return np.take(_three(volume), self.at, self.axis).T

    @property
    def size(self) -> Array:
        """Width and height of a voxel."""
        affine = np.eye(3) if self.affine is None else np.asarray(self.affine, float)[:3, :3]
        return np.asarray(np.linalg.norm(affine, axis=0)[[self.right, self.up]])


def power(base: str, exponent: int) -> str:
    """A power as text, "mm⁻³"."""
    return base if exponent == 1 else base + str(exponent).translate(SUPERSCRIPTS)


def map_of(fit: Any, name: str, units: str = "mm") -> Map:
    """
    A map by its name (ours or DIPY's), "rmse", "r2", "negative_mass", or the root of one:
    "rtop^(1/3)".
    """
    root = re.fullmatch(r"(.*)\^\(1/([1-9])\)", name)
    base, n = (root[1], int(root[2])) if root else (name, 1)
    base = base if hasattr(fit, base) else ALIASES.get(base, base)
    index = INDICES.get(ALIASES.get(base, base))
    if (index is None and base not in OTHERS) or (index.power if index else 0) % n:
        raise ValueError(
            f"maps: {name!r} is none of {', '.join([*INDICES, *ALIASES, *OTHERS])}, nor a whole root of one"
        )
    values = fit.negative()[1] if base == "negative_mass" else getattr(fit, base)()
    length = index.power // n if index else 0
    unit = power("µm" if units == "um" else "mm", length) if length else OTHERS.get(base, "1")
    values = np.sign(values) * np.abs(values) ** (1 / n) * unit_factor(length, units)
    short = (index.name if index else base).upper().replace("_", " ")
    return Map(values, short if n == 1 else f"{short}^(1/{n})", unit)


def view_of(
    mask: NDArray[np.bool_], axis: int | None = None, index: int | None = None, affine: Any = None
) -> View:
    """
    The slice `index` along `axis`; by default normal to an axis of length 1, or the last, where the
    mask is largest.

    `affine` (4, 4) gives the proportions of voxels, and turns the table's directions into voxel
    axes (without it they are taken for voxel axes as they are).
    """
    mask = _three(mask)
    if axis is None:
        axis = mask.shape.index(1) if mask.shape.count(1) == 1 else 2
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, not {axis!r}")
    right, up = (a for a in range(3) if a != axis)
    counts = (
        mask.sum((right, up)) - np.linspace(-0.5, 0.5, mask.shape[axis]) ** 2
    )  # of equals, the middle one
    at = counts.argmax() if index is None else index
    if at not in range(mask.shape[axis]):
        raise ValueError(
            f"index must lie in 0 .. {mask.shape[axis] - 1} along axis {axis}, not {index!r}"
        )
    return View(axis, int(at), right, up, affine)


def compare_maps(
    fits: Sequence[Any], maps: Sequence[str], fit_labels: Sequence[str] | None = None,
    map_labels: Sequence[str] | None = None, map_kwargs: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
    filename: Any = None, units: str = "mm", **view_kwargs: Any,
) -> Figure:  # fmt: skip
    """
    Maps of one or several fits in one figure; each map has one range, robust and shared by the
    fits, and a colour bar.

    Parameters
    ----------
    fits : fits over volumes of one shape. maps : names, see `map_of`. units : of length, "mm" or
        "um".
    map_kwargs : arguments of imshow (vmin, vmax, cmap, ...), one dict for all maps or one each.
    view_kwargs : axis, index, affine: the slice, see `view_of`.
    """
    fits, maps = list(fits), [maps] if isinstance(maps, str) else list(maps)
    fit_labels = [f"fit {i + 1}" for i in range(len(fits))] if fit_labels is None else fit_labels
    kwargs = (
        list(map_kwargs) if isinstance(map_kwargs, Sequence) else [map_kwargs or {}] * len(maps)
    )
    if not fits or not maps:
        raise ValueError(f"fits, maps: at least one of each, not {len(fits)} and {len(maps)}")
    if len(fit_labels) != len(fits):
        raise ValueError(f"fit_labels: {len(fit_labels)} given for {len(fits)} fits")
    if len(map_labels or maps) != len(maps) or len(kwargs) != len(maps):
        raise ValueError(
            f"map_labels, map_kwargs: as many as maps ({len(maps)}), not {len(map_labels or maps)}, {len(kwargs)}"
        )
    columns = [[map_of(fit, name, units) for fit in fits] for name in maps]
    masks = [
        np.asarray(getattr(fit, "mask", True)) | np.zeros(columns[0][0].values.shape, bool)
        for fit in fits
    ]
    view = view_of(np.logical_or.reduce(masks), **view_kwargs)
    turned = len(fits) > len(maps)  # more columns than rows
    shape = (len(maps), len(fits)) if turned else (len(fits), len(maps))
    height, width = np.shape(view.cut(masks[0])) * view.size[::-1]
    cell = 2.9 * np.clip(height / width, 0.4, 2.0) + 0.3
    figure = new_figure(
        0.6 + 3.0 * shape[1] + 0.8 * turned * shape[0], 0.5 + shape[0] * cell + 0.6 * (not turned)
    )
    axes = figure.subplots(*shape, squeeze=False)
    axes = axes.T if turned else axes
    for j, column in enumerate(columns):
        label = map_labels[j] if map_labels else column[0].label
        cuts = np.concatenate([view.cut(m.values).ravel() for m in column])
        for i, m in enumerate(column):
            picture = show_map(axes[i, j], m, masks[i], view, cuts, kwargs[j])
            if i == 0:
                (axes[i, j].set_ylabel if turned else axes[i, j].set_title)(label)
            if j == 0:
                (axes[i, j].set_title if turned else axes[i, j].set_ylabel)(fit_labels[i])
        colour_bar(
            figure, picture, list(axes[:, j]), column[0], cuts, "right" if turned else "bottom"
        )
    figure.supxlabel(caption(view), fontsize=8, color="0.4")
    return _saved(figure, filename)


def odf_slice(
    fit: MapmriFit, s: float = 2, colormap: str = "plasma", scale: float = 0.5, filename: Any = None,
    size: tuple[int, int] = (600, 600), **view_kwargs: Any,
) -> Figure:  # fmt: skip
    """
    ODF glyphs of a slice over its generalised fractional anisotropy; each glyph is scaled to its
    own maximum.

    Parameters
    ----------
    s : radial moment of the ODF. colormap : colours of ODF / maximum. scale : largest radius, in
        voxels.
    size : pixels. view_kwargs : axis, index, affine: the slice, see `view_of`.
    """
    figure = new_figure(size[0] / 100, size[1] / 100)
    _glyphs(figure, figure.subplots(), fit, view_of(fit.mask, **view_kwargs), s, colormap, scale)
    return _saved(figure, filename)


def signal(fit: MapmriFit, voxel: Sequence[int], data: Any, filename: Any = None) -> Figure:
    """
    Samples of one voxel against b, coloured by their angle to e1, the fit along and across e1, and
    the residuals.

    `data` is the series (..., n) or the voxel's own n samples.
    """
    one, table = _voxel(fit, voxel), fit.gtab
    y = np.asarray(data[tuple(voxel)] if np.ndim(data) > 1 else data, float)
    if y.shape != (len(table),):
        raise ValueError(f"data: the table has {len(table)} volumes, the voxel {y.shape}")
    figure = new_figure(7.5, 5.5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    angle = np.degrees(np.arccos(np.clip(np.abs(table.bvecs @ one.R[0, :, 0]), 0, 1)))
    b0, style = table.b0s_mask, {"s": 12, "cmap": "viridis", "vmin": 0, "vmax": 90}
    b = np.linspace(0, 1.05 * table.bvals.max(), 200)
    for k, colour, name in (
        (0, "#440154", "along e1"),
        (1, "#5ec962", "along e2"),
        (2, "#b5a300", "along e3"),
    ):
        line = GradientTable(b, np.tile(one.R[0, :, k], (200, 1)), tau=table.tau)
        top.plot(b, one.predict(line)[0], color=colour, label=f"fit {name}", lw=1.5, zorder=1)
    for axes, values in ((bottom, y - one.predict()[0]), (top, y)):
        points = axes.scatter(
            table.bvals[~b0], values[~b0], c=angle[~b0], **style, label="measured"
        )
        axes.scatter(table.bvals[b0], values[b0], s=14, color="0.4", label="measured, b0")
    bottom.axhline(0, color="0.4", lw=0.8)
    rmse = float(one.rmse()[0])
    band = bottom.axhspan(-rmse, rmse, color="0.9", zorder=0, label=f"± RMSE {rmse:.3g}")
    if (y[np.isfinite(y)] > 0).all():
        top.set_yscale("log")
        top.yaxis.set(
            major_locator=mpl.ticker.LogLocator(subs=(1, 2, 5)),
            minor_formatter=mpl.ticker.NullFormatter(),
        )
        top.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    top.set(title=f"voxel {tuple(map(int, voxel))}", ylabel="signal (units of the data)")
    bottom.set(xlabel="b (s/mm²)", ylabel="measured − fit")
    top.legend(fontsize=8)
    bottom.legend(handles=[band], fontsize=8, loc="upper right")
    figure.colorbar(points, ax=[top, bottom], label="angle to e1 (degrees)", pad=0.02)
    return _saved(figure, filename)


def propagator(fit: MapmriFit, voxel: Sequence[int], filename: Any = None) -> Figure:
    """
    Contours of P(r) / P(0) of one voxel in the planes of e1, e2 and of e2, e3; hatched where P is
    negative.
    """
    one, figure = _voxel(fit, voxel), new_figure(9.5, 4.4)
    panels, levels = figure.subplots(1, 2), 10.0 ** np.arange(-4, 0.01, 0.5)
    origin, least = float(one.pdf(np.zeros((1, 3)))[0, 0]), np.inf
    for panel, (a, b) in zip(panels, ((0, 1), (1, 2)), strict=True):
        x = 4.5 * float(one.mu_tensor[0, a]) * np.linspace(-1, 1, 161)
        r = x[None, :, None] * one.R[0, :, a] + x[:, None, None] * one.R[0, :, b]
        p = one.pdf(r.reshape(-1, 3))[0].reshape(len(x), len(x)) / origin
        norm = mpl.colors.LogNorm(levels[0], 1)
        filled = panel.contourf(
            1e3 * x, 1e3 * x, np.clip(p, 1e-12, 1), levels, norm=norm, cmap="viridis"
        )
        panel.contour(1e3 * x, 1e3 * x, p, levels, colors="k", linewidths=0.4)
        least = min(least, float(p.min()))
        if (p < -levels[0]).any():
            panel.contourf(
                1e3 * x, 1e3 * x, p, [-np.inf, -levels[0]], colors="none", hatches=["////"]
            )
            panel.contour(
                1e3 * x, 1e3 * x, p, [-levels[0]], colors=NO_FIT, linestyles="-", linewidths=1
            )
        panel.set(xlabel=f"along e{a + 1} (µm)", ylabel=f"along e{b + 1} (µm)", aspect="equal")
    figure.colorbar(filled, ax=list(panels), label="P / P(0)", ticks=levels[::2])
    text = f"voxel {tuple(map(int, voxel))}: P(0) = {1e-9 * origin:.3g} µm⁻³; least P / P(0) shown {least:.2g}"
    figure.suptitle(text, fontsize=11)
    return _saved(figure, filename)


def overview(
    fit: MapmriFit, filename: Any = None, *, affine: ArrayLike | None = None, title: str = ""
) -> Figure:
    """One picture of a fit: eight maps of a slice in micrometres, and its ODF glyphs."""
    view = view_of(fit.mask, affine=affine)
    height, width = np.shape(view.cut(fit.mask)) * view.size[::-1]
    inches = np.clip(width / height, 0.4, 2.0) * np.array([2.1, 5.6])  # of a map, of the glyphs
    small, large = np.maximum(inches, [1.4, 3.8])  # as wide as their titles
    figure = new_figure(4 * small + large + 1.0, 7)
    rows = np.array(OVERVIEW).reshape(2, 4).tolist()
    panels = figure.subplot_mosaic(
        [[*row, "odf"] for row in rows], width_ratios=(*[small] * 4, large)
    )
    for name in OVERVIEW:
        m = map_of(fit, name, "um")
        cut = view.cut(m.values)
        colour_bar(
            figure,
            show_map(panels[name], m, fit.mask, view, cut, {}),
            [panels[name]],
            m,
            cut,
            "bottom",
        )
        panels[name].set_title(m.label)
    _glyphs(figure, panels["odf"], fit, view, 2, "plasma", 0.5)
    figure.suptitle(title)
    return _saved(figure, filename)


# ---- what the pictures share
# -----------------------------------------------------------------------------------------


def _three(volume: NDArray[Any]) -> NDArray[Any]:
    if not 1 <= volume.ndim <= 3:
        raise ValueError(
            f"a picture needs a volume of up to 3 dimensions, not of shape {volume.shape}"
        )
    return volume.reshape(volume.shape + (1,) * (3 - volume.ndim))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches."""
    return Figure(
        figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(compress=True, h_pad=0.14)
    )


def _saved(figure: Figure, filename: Any) -> Figure:
    if filename is not None:
        figure.savefig(filename)
    return figure


def caption(view: View) -> str:
    """What a slice shows, in words."""
    return f"slice {'xyz'[view.axis]} = {view.at}: {'xyz'[view.right]} to the right, {'xyz'[view.up]} upwards"


def show_map(
    axes: Any, m: Map, mask: NDArray[np.bool_], view: View, pooled: Array, kwargs: dict[str, Any]
) -> Any:
    """
    One map; the range of `pooled` (other fits' values too) unless `kwargs` say otherwise; missing
    values in red.
    """
    cut, inside, finite = view.cut(m.values), view.cut(mask), pooled[np.isfinite(pooled)]
    low, high = np.percentile(finite, ROBUST) if finite.size else (0.0, 1.0)
    options: dict[str, Any] = {
        "vmin": low,
        "vmax": high if high > low else low + (abs(low) or 1.0),
        "cmap": "viridis",
    } | kwargs
    style = {"origin": "lower", "interpolation": "nearest", "aspect": view.size[1] / view.size[0]}
    picture = axes.imshow(np.ma.masked_invalid(cut), **style, **options)
    missing = inside & ~np.isfinite(cut)
    if missing.any():
        axes.imshow(
            np.ma.masked_where(~missing, missing), **style, cmap=mpl.colors.ListedColormap([NO_FIT])
        )
    axes.set(facecolor=OUTSIDE, xticks=[], yticks=[])
    return picture


class Ticks(mpl.ticker.MaxNLocator):
    """Round numbers, as many as leave room between their labels once the axis has its length."""

    def __call__(self) -> Any:
        axis: Any = self.axis
        low, high = axis.get_view_interval()
        self.set_params(nbins=5, steps=[1, 2, 5, 10])
        ticks = np.asarray(super().__call__())
        ticks, room = (
            ticks[(ticks >= low) & (ticks <= high)],
            72 / axis.axes.figure.dpi / 5 * max(axis.axes.bbox.size),
        )
        for step in range(1, len(ticks)):
            texts = axis.get_major_formatter().format_ticks(ticks[::step])
            if (
                sum(len(text) + 1 for text in texts) <= room
            ):  # in digits, each 5 points wide at a size of 8
                return ticks[::step]
        return ticks[len(ticks) // 2 :][:1]


def colour_bar(
    figure: Any,
    picture: Any,
    axes: list[Any],
    m: Map,
    pooled: Array,
    place: str,
    shrink: float = 0.9,
) -> Any:
    """
    With the unit, a power of a thousand taken into it, and arrows where values lie beyond the
    range; the ticks' format.
    """
    low, high = picture.get_clim()
    top = max(abs(low), abs(high))
    k = 0 if 0.01 <= top < 1e4 or top == 0 else 3 * int(np.floor(np.log10(top) / 3))
    words = [power("10", k)] * (k != 0) + [m.unit] * (m.unit != "1")
    extend = ("neither", "min", "max", "both")[(pooled < low).any() + 2 * (pooled > high).any()]
    style = {"location": place, "extend": extend, "shrink": shrink, "aspect": 18, "ticks": Ticks()}
    text = mpl.ticker.FuncFormatter(lambda value, _: f"{value / 10.0**k:.4g}")
    figure.colorbar(
        picture, ax=axes, label=" ".join(words) or "no unit", format=text, **style
    ).ax.tick_params(labelsize=8)
    return text


def _part(fit: MapmriFit, keep: NDArray[np.bool_]) -> MapmriFit:
    """The fit of the rows `keep` (V,) as a line of voxels."""
    rows = {name: values[keep] for name, values in fit.rows().items()}
    return MapmriFit(rows, np.ones(int(keep.sum()), bool), fit.options, fit.gtab)


def _voxel(fit: MapmriFit, voxel: Sequence[int]) -> MapmriFit:
    """The fit of one voxel of the mask, with a fit."""
    at, shape = tuple(voxel), fit.mask.shape
    if (
        len(at) != len(shape)
        or not all(0 <= i < n for i, n in zip(at, shape, strict=True))
        or np.isnan(fit.rtop()[at])
    ):
        raise ValueError(f"voxel {at} has no fit, or does not lie in the volume {shape}")
    return _part(fit, np.flatnonzero(fit.mask.ravel()) == np.ravel_multi_index(at, shape))


def _glyphs(
    figure: Any, axes: Any, fit: MapmriFit, view: View, s: float, colormap: str, scale: float
) -> None:
    """
    Shaded surfaces r(v) = scale ODF(v) / max ODF, the faces turned to the viewer, farthest first.
    """
    mask = _three(fit.mask)
    slab = mask & (np.arange(mask.shape[view.axis]) == view.at).reshape(
        np.roll([-1, 1, 1], view.axis)
    )
    part = _part(fit, slab[mask])
    ball = sphere(next(n for limit, n in GLYPHS if len(part.coef) <= limit))
    affine = view.affine
    odf = np.maximum(
        part.odf(
            ball.vertices if affine is None else from_voxel(ball.vertices, affine, fit.gtab.frame),
            s,
        ),
        0.0,
    )
    background = np.full(mask.shape, np.nan)
    background[slab] = gfa(odf)
    m, cut = Map(background, "GFA", "1"), view.cut(background)
    colour_bar(
        figure, show_map(axes, m, mask, view, cut, {"cmap": "gray"}), [axes], m, cut, "bottom", 0.4
    )
    axes.set(title=f"ODF, s = {s:g}, over GFA\neach scaled to its maximum", xlabel=caption(view))
    peak = odf.max(1, keepdims=True)
    good = np.flatnonzero(peak[:, 0] > 0)
    radius = odf[good] / peak[good]
    toward = -1.0 if view.axis == 1 else 1.0  # right, up, toward the viewer: a right-handed frame
    surface = (
        radius[..., None] * ball.vertices[:, [view.right, view.up, view.axis]] * [1.0, 1.0, toward]
    )
    corners = surface[:, ball.faces]  # (V, faces, 3 corners, 3)
    normal = np.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    voxel, face = np.nonzero(normal[..., 2] > 0)
    order = np.argsort(corners[voxel, face, :, 2].sum(1), kind="stable")
    voxel, face = voxel[order], face[order]
    n = normal[voxel, face]
    shade = 0.45 + 0.55 * np.clip(n @ LIGHT / np.linalg.norm(n, axis=1), 0, 1)
    colours = mpl.colormaps[colormap](radius[voxel[:, None], ball.faces[face]].mean(1))
    colours[:, :3] *= shade[:, None]
    places = np.argwhere(slab)[good][:, [view.right, view.up]]
    polygons = (
        places[voxel][:, None]
        + scale * (view.size.min() / view.size) * corners[voxel, face][..., :2]
    )
    axes.add_collection(
        PolyCollection(polygons, facecolors=colours, edgecolors=colours, linewidths=0.15)
    )
