"""Pictures of a fit: maps side by side, ODF glyphs, one voxel's signal and propagator, an overview.

Figures are made without pyplot, so that no state is left behind and no display is needed. Slices
are shown in the closest canonical axes (see `views`), with letters at their edges; `filename` may
end in .png, .pdf, .svg or what else matplotlib writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke
except ImportError:
    raise ImportError("pictures need matplotlib: pip install 'mapmri_nb[plot]'") from None

from ..fit import MapmriFit
from ..gradients import GradientTable
from . import glyphs, payload
from .directions import gfa, sphere
from .views import Map, View, limits, power
from .views import map_of as map_of
from .views import view_of as view_of

Array = NDArray[np.float64]
Region = Sequence[int] | NDArray[np.bool_] | None

# Colours of what is outside the mask, and of voxels inside it without a value.
OUTSIDE, NO_FIT = "0.88", "crimson"
OVERVIEW = ("rtop^(1/3)", "rtap^(1/2)", "rtpp", "msd", "qiv", "ng", "pa", "lapnorm")
NODES = 19  # directions along an edge of the cube that an ODF is computed on: 5 degrees apart
WINDOW = 14  # voxels along an edge of the overview's glyphs, at most


def compare_maps(
    fits: Sequence[Any], maps: Sequence[str], fit_labels: Sequence[str] | None = None,
    map_labels: Sequence[str] | None = None,
    map_kwargs: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
    filename: Any = None, units: str = "mm", **view_kwargs: Any,
) -> Figure:  # fmt: skip
    """Maps of one or several fits in one figure; each map has one range, robust and shared by the
    fits, and a colour bar.

    Parameters
    ----------
    fits : fits over volumes of one shape. maps : names, see `views.map_of`. units : of length, "mm"
        or "um".
    map_kwargs : arguments of imshow (vmin, vmax, cmap, ...), one dict for all maps or one each.
    view_kwargs : axis, index, affine (default: the first fit's, if it knows one), convention: the
        slice, see `views.view_of`; figsize (inches) and dpi: the paper.
    """
    fits = [fits] if hasattr(fits, "mask") else list(fits)
    maps = [maps] if isinstance(maps, str) else list(maps)
    fit_labels = [f"fit {i + 1}" for i in range(len(fits))] if fit_labels is None else fit_labels
    alike = not isinstance(map_kwargs, Sequence)
    kwargs: Any = [map_kwargs or {}] * len(maps) if alike else map_kwargs
    if not fits or not maps:
        raise ValueError(f"fits, maps: at least one of each, not {len(fits)} and {len(maps)}")
    if len(fit_labels) != len(fits):
        raise ValueError(f"fit_labels: {len(fit_labels)} given for {len(fits)} fits")
    if len(map_labels or maps) != len(maps) or len(kwargs) != len(maps):
        found = f"{len(map_labels or maps)}, {len(kwargs)}"
        raise ValueError(f"map_labels, map_kwargs: as many as maps ({len(maps)}), not {found}")
    columns = [[map_of(fit, name, units) for fit in fits] for name in maps]
    shapes = [m.values.shape for column in columns for m in column]
    if len(set(shapes)) > 1:
        raise ValueError(f"fits: their volumes differ in shape: {sorted(set(shapes))}")
    masks = [np.asarray(getattr(fit, "mask", True)) | np.zeros(shapes[0], bool) for fit in fits]
    paper, view = _paper_and_view(fits[0], np.logical_or.reduce(masks), view_kwargs)
    turned = len(fits) > len(maps)  # more columns than rows
    shape = (len(maps), len(fits)) if turned else (len(fits), len(maps))
    height, width = np.shape(view.cut(masks[0])) * view.size[::-1]
    cell = 2.9 * np.clip(height / width, 0.4, 2.0) + 0.3
    across = 0.6 + 3.0 * shape[1] + 0.8 * turned * shape[0]
    figure = new_figure(across, 0.5 + shape[0] * cell + 0.6 * (not turned), **paper)
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
        place = "right" if turned else "bottom"
        colour_bar(figure, picture, list(axes[:, j]), column[0], cuts, place)
    figure.supxlabel(view.caption, fontsize=8, color="0.35")
    return _saved(figure, filename)


def odf_slice(
    fit: MapmriFit, s: float = 2, colormap: str | None = None, scale: float = 0.5,
    filename: Any = None, size: tuple[int, int] | None = None, region: Region = None,
    **view_kwargs: Any,
) -> Figure:  # fmt: skip
    """ODF glyphs of a slice over a map; each glyph is scaled to its own maximum.

    Parameters
    ----------
    s : radial moment of the ODF. colormap : colours of ODF / maximum; by default colours say the
        direction (red: left to right, green: back to front, blue: up; scanner axes).
    scale : largest radius, in voxels. size : pixels at 100 per inch, or figsize (inches); by
        default so that every voxel has a quarter of an inch, within 5 to 20 inches.
    region : (x0, x1, y0, y1), canonical voxels across and up, the ends left out; or a bool volume
        like the mask; default: the slice cropped to the mask.
    view_kwargs : axis, index, affine, convention: the slice, see `views.view_of`; background: name
        of the map below, by default "gfa", and units, "mm" or "um", of length in it; figsize, dpi.
    """
    background = view_kwargs.pop("background", "gfa"), view_kwargs.pop("units", "mm")
    paper, view = _paper_and_view(fit, fit.mask, view_kwargs)
    left, right, low, high, keep = _window(view, fit.mask, region)
    if size is not None:
        paper = {"figsize": (size[0] / 100, size[1] / 100)} | paper
    inches = np.array([right - left, high - low]) * view.size / view.size.min() * 0.25
    inches *= np.clip(1.0, 4.5 / inches.max(), 18 / inches.max())
    figure = new_figure(*(inches + np.array([0.7, 1.5])).clip(3.2), **paper)
    axes = figure.subplots()
    options = {"s": s, "colormap": colormap, "scale": scale}
    _glyphs(figure, axes, fit, view, keep, options, background)
    axes.set(xlim=(left - 0.5, right - 0.5), ylim=(low - 0.5, high - 0.5))
    return _saved(figure, filename)


def signal(
    fit: MapmriFit, voxel: Sequence[int], data: Any, filename: Any = None, **paper: Any
) -> Figure:
    """Samples of one voxel against b, coloured by their angle to e1, the fit along and across e1,
    and the residuals.

    `data` is the series (..., n) or the voxel's own n samples; `paper`: figsize (inches), dpi.
    """
    one, table = _voxel(fit, voxel), fit.gtab
    y = np.asarray(data[tuple(voxel)] if np.ndim(data) > 1 else data, float)
    if y.shape != (len(table),):
        raise ValueError(f"data: the table has {len(table)} volumes, the voxel {y.shape}")
    figure = new_figure(7.5, 5.5, **paper)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    angle = np.degrees(np.arccos(np.clip(np.abs(table.bvecs @ one.R[0, :, 0]), 0, 1)))
    b0, style = table.b0s_mask, {"s": 12, "cmap": "viridis", "vmin": 0, "vmax": 90}
    style["label"] = "measured"
    b = np.linspace(0, 1.05 * table.bvals.max(), 200)
    for k, colour in enumerate(("#440154", "#5ec962", "#b5a300")):
        line = GradientTable(b, np.tile(one.R[0, :, k], (200, 1)), tau=table.tau)
        style_k = {"color": colour, "label": f"fit along e{k + 1}", "lw": 1.5, "zorder": 1}
        top.plot(b, one.predict(line)[0], **style_k)
    for axes, values in ((bottom, y - one.predict()[0]), (top, y)):
        points = axes.scatter(table.bvals[~b0], values[~b0], c=angle[~b0], **style)
        axes.scatter(table.bvals[b0], values[b0], s=14, color="0.4", label="measured, b0")
    bottom.axhline(0, color="0.4", lw=0.8)
    rmse = float(one.rmse()[0])
    band = bottom.axhspan(-rmse, rmse, color="0.9", zorder=0, label=f"± RMSE {rmse:.3g}")
    if (y[np.isfinite(y)] > 0).all():
        top.set_yscale("log")
        top.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        top.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        top.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    top.set(title=f"voxel {tuple(map(int, voxel))}", ylabel="signal (units of the data)")
    bottom.set(xlabel="b (s/mm²)", ylabel="measured − fit")
    top.legend(fontsize=8)
    bottom.legend(handles=[band], fontsize=8, loc="upper right")
    figure.colorbar(points, ax=[top, bottom], label="angle to e1 (degrees)", pad=0.02)
    return _saved(figure, filename)


def propagator(fit: MapmriFit, voxel: Sequence[int], filename: Any = None, **paper: Any) -> Figure:
    """Contours of P(r) / P(0) of one voxel in the planes of e1, e2 and of e2, e3; hatched where P
    is negative. `paper`: figsize (inches), dpi.
    """
    one, figure = _voxel(fit, voxel), new_figure(9.5, 4.4, **paper)
    panels, levels = figure.subplots(1, 2), 10.0 ** np.arange(-4, 0.01, 0.5)
    origin, least = float(one.pdf(np.zeros((1, 3)))[0, 0]), np.inf
    for panel, (a, b) in zip(panels, ((0, 1), (1, 2)), strict=True):
        x = 4.5 * float(one.mu_tensor[0, a]) * np.linspace(-1, 1, 161)
        r = x[None, :, None] * one.R[0, :, a] + x[:, None, None] * one.R[0, :, b]
        p = one.pdf(r.reshape(-1, 3))[0].reshape(len(x), len(x)) / origin
        norm = mpl.colors.LogNorm(levels[0], 1)
        x *= 1e3  # µm
        filled = panel.contourf(x, x, np.clip(p, 1e-12, 1), levels, norm=norm, cmap="viridis")
        panel.contour(x, x, p, levels, colors="k", linewidths=0.4)
        least = min(least, float(p.min()))
        if (p < -levels[0]).any():
            panel.contourf(x, x, p, [-np.inf, -levels[0]], colors="none", hatches=["////"])
            panel.contour(x, x, p, [-levels[0]], colors=NO_FIT, linestyles="-", linewidths=1)
        panel.set(xlabel=f"along e{a + 1} (µm)", ylabel=f"along e{b + 1} (µm)", aspect="equal")
    figure.colorbar(filled, ax=list(panels), label="P / P(0)", ticks=levels[::2])
    text = f"voxel {tuple(map(int, voxel))}: P(0) = {1e-9 * origin:.3g} µm⁻³; "
    figure.suptitle(f"{text}least P / P(0) shown {least:.2g}", fontsize=11)
    return _saved(figure, filename)


def overview(
    fit: MapmriFit, filename: Any = None, *, affine: ArrayLike | None = None, title: str = "",
    **view_kwargs: Any,
) -> Figure:  # fmt: skip
    """One picture of a fit: eight maps of a slice in micrometres, and ODF glyphs of the part of it
    with most fibres, in the slice rather than across it, framed in the map of PA.

    `view_kwargs`: axis, index, convention, figsize, dpi, as of `compare_maps`.
    """
    paper, view = _paper_and_view(fit, fit.mask, {"affine": affine} | view_kwargs)
    height, width = np.shape(view.cut(fit.mask)) * view.size[::-1]
    inches = np.clip(width / height, 0.4, 2.0) * np.array([2.1, 5.6])  # of a map, of the glyphs
    small, large = np.maximum(inches, [1.4, 3.8])  # as wide as their titles
    figure = new_figure(4 * small + large + 1.0, 7, **paper)
    rows = np.array(OVERVIEW).reshape(2, 4).tolist()
    mosaic = [[*row, "odf"] for row in rows]
    panels = figure.subplot_mosaic(mosaic, width_ratios=(*[small] * 4, large))
    for name in OVERVIEW:
        m, axes = map_of(fit, name, "um"), panels[name]
        cut = view.cut(m.values)
        colour_bar(figure, show_map(axes, m, fit.mask, view, cut, {}), [axes], m, cut, "bottom")
        axes.set_title(m.label)
    toward = view.orientation.in_frame(view.screen[2:], fit.gtab.frame)[0]
    seen = 1.05 - (fit.R[:, :, 0] @ toward) ** 2  # of e1, in the slice
    wanted = view.cut(fit.pa() ** 2 * fit.volume(seen))  # squared: fluid does not count
    left, right, low, high, keep = _window(view, fit.mask, None, wanted)
    _glyphs(figure, panels["odf"], fit, view, keep, {}, ("gfa", "mm"))
    panels["odf"].set(xlim=(left - 0.5, right - 0.5), ylim=(low - 0.5, high - 0.5))
    if keep.sum() < view.cut(fit.mask).sum():
        frame = Rectangle((left - 0.5, low - 0.5), right - left, high - low)
        frame.set(fill=False, edgecolor="w", linewidth=1)
        panels["pa"].add_patch(frame)
    figure.suptitle(title)
    figure.supxlabel(view.caption, fontsize=8, color="0.35")
    return _saved(figure, filename)


# ---- what the pictures share


def _paper_and_view(
    fit: Any, mask: NDArray[np.bool_], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], View]:
    """`figsize` and `dpi` of what was asked for, and the slice that the rest describes."""
    paper = {name: kwargs[name] for name in ("figsize", "dpi") if kwargs.get(name) is not None}
    rest = {name: value for name, value in kwargs.items() if name not in ("figsize", "dpi")}
    if rest.get("affine") is None:
        rest["affine"] = getattr(fit, "affine", None)
    return paper, view_of(mask, **rest)


def new_figure(
    width: float, height: float, figsize: tuple[float, float] | None = None, dpi: float = 100
) -> Figure:
    """An empty figure, its size in inches: `figsize`, or what suits the picture."""
    layout = ConstrainedLayoutEngine(compress=True, h_pad=0.14)
    return Figure(figsize=figsize or (width, height), dpi=dpi, layout=layout)


def _saved(figure: Figure, filename: Any) -> Figure:
    if filename is not None:
        with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):  # text stays text
            figure.savefig(filename, dpi=figure.dpi)
    return figure


def show_map(
    axes: Any, m: Map, mask: NDArray[np.bool_], view: View, pooled: Array, kwargs: dict[str, Any]
) -> Any:
    """One map; the range of `pooled` (other fits' values too) unless `kwargs` say otherwise;
    missing values in red; letters at the edges.
    """
    cut, inside = view.cut(m.values), view.cut(mask)
    low, high = limits(pooled)
    options: dict[str, Any] = {"vmin": low, "vmax": high, "cmap": "viridis"} | kwargs
    style = {"origin": "lower", "interpolation": "nearest", "aspect": view.size[1] / view.size[0]}
    picture = axes.imshow(np.ma.masked_invalid(cut), **style, **options)
    missing = inside & ~np.isfinite(cut)
    if missing.any():
        red = mpl.colors.ListedColormap([NO_FIT])
        axes.imshow(np.ma.masked_where(~missing, missing), **style, cmap=red)
    axes.set(facecolor=OUTSIDE, xticks=[], yticks=[])
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
    for letter, (x, y) in zip(view.letters, places, strict=False):
        across = {0.02: "left", 0.98: "right"}.get(x, "center")
        along = {0.02: "bottom", 0.98: "top"}.get(y, "center")
        text = axes.text(x, y, letter, ha=across, va=along, transform=axes.transAxes, fontsize=8)
        text.set(fontweight="bold", color="w", clip_on=True, zorder=9)
        text.set_path_effects([withStroke(linewidth=2, foreground="k")])
    return picture


class Ticks(mpl.ticker.MaxNLocator):
    """Round numbers, as many as leave room between their labels once the axis has its length."""

    def __call__(self) -> Any:
        axis: Any = self.axis
        low, high = axis.get_view_interval()
        self.set_params(nbins=5, steps=[1, 2, 5, 10])
        ticks = np.asarray(super().__call__())
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        room = 72 / axis.axes.figure.dpi / 5 * max(axis.axes.bbox.size)
        for step in range(1, len(ticks)):
            texts = axis.get_major_formatter().format_ticks(ticks[::step])
            # in digits, each 5 points wide at a size of 8
            if sum(len(text) + 1 for text in texts) <= room:
                return ticks[::step]
        return ticks[len(ticks) // 2 :][:1]


def colour_bar(
    figure: Any, picture: Any, axes: list[Any], m: Map, pooled: Array, place: str,
    shrink: float = 0.9,
) -> Any:  # fmt: skip
    """With the unit, a power of a thousand in it, arrows for values beyond; the ticks' format."""
    low, high = picture.get_clim()
    top = max(abs(low), abs(high))
    k = 0 if 0.01 <= top < 1e4 or top == 0 else 3 * int(np.floor(np.log10(top) / 3))
    words = [power("10", k)] * (k != 0) + [m.unit] * (m.unit != "1")
    extend = ("neither", "min", "max", "both")[(pooled < low).any() + 2 * (pooled > high).any()]
    text = mpl.ticker.FuncFormatter(lambda value, _: f"{value / 10.0**k:.4g}")
    style = {"location": place, "extend": extend, "shrink": shrink, "ticks": Ticks()}
    style |= {"aspect": 18 if shrink > 0.6 else 26, "label": " ".join(words) or "no unit"}
    figure.colorbar(picture, ax=axes, format=text, **style).ax.tick_params(labelsize=8)
    return text


def _voxel(fit: MapmriFit, voxel: Sequence[int]) -> MapmriFit:
    """The fit of one voxel of the mask, with a fit."""
    at, shape = tuple(voxel), fit.mask.shape
    known = len(at) == len(shape) and all(0 <= i < n for i, n in zip(at, shape, strict=True))
    if not known or np.isnan(fit.rtop()[at]):
        raise ValueError(f"voxel {at} has no fit, or does not lie in the volume {shape}")
    return payload.part(fit, np.flatnonzero(fit.mask.ravel()) == np.ravel_multi_index(at, shape))


def _window(
    view: View, mask: NDArray[np.bool_], region: Region, wanted: Array | None = None
) -> tuple[int, int, int, int, NDArray[np.bool_]]:
    """Ends of a part of the slice on the screen (left, right, low, high), and the voxels in it that
    are drawn.

    `region` as of `odf_slice`; with `wanted` (rows, columns), where its sum over `WINDOW` voxels is
    largest.
    """
    keep = view.cut(mask)
    if region is not None and np.ndim(region) > 1:
        if (found := np.shape(region)) != mask.shape:
            raise ValueError(f"region: its shape {found} differs from the mask's {mask.shape}")
        keep, region = keep & view.cut(np.asarray(region, bool)), None
    if region is None:
        if not keep.any():
            raise ValueError(f"region: no voxel of the mask lies in it; {view.caption}")
        rows, columns = (np.flatnonzero(keep.any(axis)) for axis in (1, 0))
        left, right = columns[0], columns[-1] + 1
        low, high = rows[0], rows[-1] + 1
    else:
        n = keep.shape[::-1]
        ends = zip(region[::2], region[1::2], n, strict=False)
        if len(region) != 4 or not all(0 <= a < b <= m for a, b, m in ends):
            raise ValueError(f"region must be (x0, x1, y0, y1) within {n} voxels, not {region!r}")
        left, right, low, high = region
        if view.mirrored:
            left, right = n[0] - right, n[0] - left
    if wanted is not None:
        sums = np.nan_to_num(wanted)[low:high, left:right].cumsum(0).cumsum(1)
        sums = np.pad(sums, ((1, 0), (1, 0)))
        h, w = min(WINDOW, high - low), min(WINDOW, right - left)
        total = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
        up, across = np.unravel_index(total.argmax(), total.shape)
        left, low = left + int(across), low + int(up)
        right, high = left + w, low + h
    inside = np.zeros_like(keep)
    inside[low:high, left:right] = True
    return int(left), int(right), int(low), int(high), keep & inside


def _glyphs(
    figure: Any, axes: Any, fit: MapmriFit, view: View, keep: NDArray[np.bool_],
    options: dict[str, Any], background: tuple[str, str],
) -> None:  # fmt: skip
    """The ODFs of the voxels `keep` (rows, columns), over the map `background` (name, units)."""
    s, scale = options.get("s", 2.0), options.get("scale", 0.5)
    numbers = np.full(fit.mask.shape, -1)
    numbers[fit.mask] = np.arange(len(fit.coef))
    slab = view.cut(numbers)

    def values(part: MapmriFit, screen: Array) -> Array:
        """ODFs along directions on the screen."""
        vectors = view.orientation.in_frame(screen @ view.screen, part.gtab.frame)
        return np.maximum(part.odf(vectors, s), 0.0)

    if background[0] == "gfa":
        whole = np.isin(np.arange(len(fit.coef)), slab)
        m = Map(np.full(fit.mask.shape, np.nan), "GFA", "1")
        rows = np.full(len(fit.coef), np.nan)
        rows[whole] = gfa(values(payload.part(fit, whole), sphere(100).vertices))
        m.values[fit.mask] = rows
    else:
        m = map_of(fit, *background)
    cut = view.cut(m.values)
    dim = mpl.colors.LinearSegmentedColormap.from_list("dim", ["0", "0.6"])
    picture = show_map(axes, m, fit.mask, view, cut, {"cmap": dim})
    colour_bar(figure, picture, [axes], m, cut, "bottom", 0.5)
    axes.set_title(f"ODF, s = {s:g}, over {m.label}")
    places = np.argwhere(keep)[:, ::-1]
    radius = values(
        payload.part(fit, np.isin(np.arange(len(fit.coef)), slab[keep])), glyphs.nodes(NODES)
    )
    radius = radius[np.argsort(np.argsort(slab[keep]))]  # rows come as in the mask
    peak = radius.max(1, keepdims=True)
    good = np.flatnonzero(peak[:, 0] > 0)
    if not good.size:
        return
    shown, places = radius[good] / peak[good], places[good]
    width = 2 * scale * view.size.min() / view.size  # of a tile, in voxels
    extent = np.ptp(places, 0) + 1
    room = 1.5 * figure.dpi * min(figure.get_size_inches() / extent)
    pixels = int(np.clip(room * width.min(), 16, 128))
    turn = view.screen @ view.orientation.axes.T
    names = options.get("colormap")

    def colour(directions: Array, r: Array) -> Array:
        if names is None:
            return np.asarray(0.1 + 0.9 * np.abs(directions @ turn))
        return np.asarray(mpl.colormaps[names](np.clip(r, 0, 1))[:, :3])

    corner = places.min(0) - 0.5
    tiles = glyphs.paint(shown, NODES, pixels, colour)
    laid = glyphs.lay(tiles, (places - corner) / width, *(extent / width))
    ends = [corner[0], corner[0] + extent[0], corner[1], corner[1] + extent[1]]
    style = {"origin": "lower", "aspect": view.size[1] / view.size[0], "zorder": 3}
    axes.imshow(laid, extent=ends, **style)
