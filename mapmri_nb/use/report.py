"""One self-contained HTML page on a saved fit: no script, no network, every picture inside."""

from __future__ import annotations

import base64
import errno
import io as streams
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fit import MapmriFit
from ..indices import ANISOTROPIC_ONLY, INDICES
from ..status import MEANING, Status
from . import io, plot
from .folder import SavedFit, read_fit

MODES = {(False, None): "MAP", (True, None): "MAPL", (False, "grid"): "CMAP", (True, "grid"): "CMAPL",
         (False, "global"): "MAP+", (True, "global"): "MAPL+"}  # fmt: skip
SHORT = {"rtop": "rtop^(1/3)", "rtap": "rtap^(1/2)"}  # shown as lengths, like RTPP
STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse } td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top }
th { font-weight: 600 } td.n { text-align: right; font-variant-numeric: tabular-nums } .note { color: #666; font-size: .9rem }
.cards, .beside { display: flex; gap: 1rem; margin-top: 1rem } .cards { flex-wrap: wrap } img { max-width: 100% }
.cards img, .beside img { width: 18rem } .beside img { flex: none; align-self: start }
.swatch { display: inline-block; width: 1em; height: 1em; border: 1px solid #888; vertical-align: -.1em }
"""


def write_report(folder: io.File, out: io.File | None = None, force: bool = False) -> Path:
    """
    The page on the fit in `folder`, by default `report.html` in it; the path written.

    Raises
    ------
    FileExistsError
        The page is there already and `force` is not given. Errors of a folder that is no fit: see
        `folder.read_fit`.
    """
    base = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    target = base / "report.html" if out is None else Path(out)
    saved = read_fit(folder)
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "not overwritten without force", str(target))
    with io.staged(target.parent, force) as stage:
        (stage / target.name).write_text(page(saved), encoding="utf-8")
    return target


def page(saved: SavedFit) -> str:
    """The HTML of a saved fit."""
    fit = saved.fit
    view = plot.view_of(fit.mask, affine=saved.affine)
    names = [SHORT.get(n, n) for n in INDICES if not (fit.isotropic and n in ANISOTROPIC_ONLY)]
    maps = [plot.map_of(fit, name, "um") for name in names]
    quality = [plot.map_of(fit, name) for name in ("rmse", "r2", "negative_mass")]
    if len(np.unique(fit.laplacian_weight[np.isfinite(fit.laplacian_weight)])) > 1:
        quality.append(plot.Map(fit.volume(fit.laplacian_weight), "Laplacian weight", "mm⁻¹"))
    title = f"MAP-MRI fit {saved.prefix}".strip()
    glyphs = plot.odf_slice(fit, size=(1100, 1000), affine=saved.affine)
    texts = [INDICES[name.partition("^")[0]].long_name for name in names]
    parts = [
        f"<h1>{escape(title)}</h1><p class='note'>Maps: {plot.caption(view)}. Histograms and tables: the whole mask.</p>",
        "<h2>What was fitted, and how</h2>" + _table(_facts(fit, saved)),
        "<h2>Timing</h2>" + _table(_timing(fit, saved)),
        "<h2>Indices</h2>" + _summary(maps, texts) + _cards(maps, fit, view),
        "<h2>Status</h2>" + _status(fit, view),
        "<h2>Residuals and negative mass</h2><p class='note'>RMSE and R² over all valid samples, b = 0 included. Negative "
        "mass: the integral of -P where the propagator P is below zero; physics allows none.</p>"
        + _cards(quality, fit, view),
        "<h2>Orientation distribution functions</h2>" + _image(glyphs, "ODF glyphs of the slice"),
    ]
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    return (
        f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _facts(fit: MapmriFit, saved: SavedFit) -> dict[str, str]:
    options, gtab, entries = fit.options, fit.gtab, saved.entries
    weighted = options["laplacian"] not in (None, 0, 0.0)
    shells = gtab.shells()
    many = f"{len(shells)} clusters of |q|, b = {shells[0][0]:.0f} to {shells[-1][0]:.0f} s/mm²"
    few = ", ".join(f"{n} at b = {b:.0f}" for b, n in shells) + " s/mm²"
    times = {"Δ": gtab.big_delta, "δ": gtab.small_delta, "τ": gtab.taus}
    ranges = {k: (1e3 * np.min(v), 1e3 * np.max(v)) for k, v in times.items() if v is not None}
    timing = ", ".join(
        f"{k} = {a:.4g}" + (f" to {b:.4g}" if b > a else "") + " ms" for k, (a, b) in ranges.items()
    )
    plain = {
        k: v for k, v in options.items() if v is not None and k not in ("radial_order", "basis")
    }
    software, run = entries["Software"], entries.get("Run", {})
    versions = ", ".join(f"{name} {version}" for name, version in run.get("Versions", {}).items())
    return {
        "Model": f"{MODES[weighted, options['positivity']]}, {options['basis']} basis, radial order {options['radial_order']}"
        f" ({fit.coef.shape[1]} coefficients)",
        "Options": ", ".join(f"{k} {v}" for k, v in plain.items()),
        "Data": ", ".join(entries.get("Sources", [])) or "not recorded",
        "Volume": f"{' x '.join(map(str, fit.mask.shape))}, {len(fit.coef)} voxels in the mask",
        "Measurements": f"{len(gtab)} volumes: {int(gtab.b0s_mask.sum())} b0, "
        + (few if len(shells) < 9 else many),
        "Pulse timing": timing,
        "Frame of b-vectors": gtab.frame,
        "Software": f"{software['Name']} {software['Version']} ({versions})",
    }


def _timing(fit: MapmriFit, saved: SavedFit) -> dict[str, str]:
    run: dict[str, Any] = saved.entries.get("Run", {})
    rows = {
        name: str(run[name]) for name in ("Date", "Engine", "Threads") if run.get(name) is not None
    }
    if seconds := run.get("Seconds", {}):
        rows["Seconds"] = ", ".join(f"{name.lower()} {seconds[name]:.3g}" for name in seconds)
        each = 1e6 * seconds.get("Fitting", 0.0) / max(len(fit.coef), 1)
        rows["Fitting a voxel"] = f"{each:.0f} µs (all threads together, compilation included)"
    if run.get("Slabs", 0) > run.get("FittedNow", 0):
        rows["Resumed"] = f"{run['FittedNow']} of {run['Slabs']} slabs were fitted by the last run"
    return rows


def _table(rows: dict[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


def _summary(maps: list[plot.Map], texts: list[str]) -> str:
    rows = [
        "<tr><th>Index</th><th>5 %</th><th>median</th><th>95 %</th><th>unit</th><th>meaning</th></tr>"
    ]
    for m, text in zip(maps, texts, strict=True):
        finite = m.values[np.isfinite(m.values)]
        numbers = np.percentile(finite, (5, 50, 95)) if finite.size else [np.nan] * 3
        cells = "".join(f"<td class='n'>{x:.4g}</td>" for x in numbers)
        unit = "" if m.unit == "1" else m.unit
        rows.append(
            f"<tr><th>{escape(m.label)}</th>{cells}<td>{unit}</td><td>{escape(text)}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _cards(maps: list[plot.Map], fit: MapmriFit, view: plot.View) -> str:
    """A picture per map: the slice with its colour bar, the histogram below."""
    images = []
    for m in maps:
        figure, cut = plot.new_figure(3.6, 5.0), view.cut(m.values)
        top, bottom = figure.subplots(2, 1, height_ratios=(3.2, 1))
        text = plot.colour_bar(
            figure, plot.show_map(top, m, fit.mask, view, cut, {}), [top], m, cut, "bottom"
        )
        values = m.values[np.isfinite(m.values)]
        low, high = np.percentile(values, (0.5, 99.5)) if values.size else (0, 1)
        bottom.hist(values, bins=60, range=(low, high) if high > low else None, color="#3b6fb5")
        bottom.xaxis.set(
            major_locator=plot.Ticks(), major_formatter=text
        )  # in the unit of the colour bar
        bottom.tick_params(labelsize=8)
        bottom.set(yticks=[], xlabel="whole mask, 0.5 to 99.5 %")
        bottom.spines[["top", "right", "left"]].set_visible(False)
        top.set_title(m.label)
        images.append(_image(figure, f"{m.label} ({m.unit}): map and histogram"))
    return f"<div class='cards'>{''.join(images)}</div>"


def _status(fit: MapmriFit, view: plot.View) -> str:
    """Map of the combinations of flags that occur, and their legend."""
    kinds, which, counts = np.unique(fit.status, return_inverse=True, return_counts=True)
    colours = plot.matplotlib.colormaps["tab20"](np.arange(len(kinds)) % 20)
    colours[kinds == 0] = plot.matplotlib.colors.to_rgba("#cfe8cf")
    colours[(kinds & Status.NO_FIT) != 0] = plot.matplotlib.colors.to_rgba(plot.NO_FIT)
    figure = plot.new_figure(4.2, 4.2)
    options = {
        "cmap": plot.matplotlib.colors.ListedColormap(colours),
        "vmin": -0.5,
        "vmax": len(kinds) - 0.5,
    }
    volume: NDArray[np.float64] = fit.volume(which.reshape(-1).astype(float))
    axes = figure.subplots()
    plot.show_map(axes, plot.Map(volume, "status", "1"), fit.mask, view, view.cut(volume), options)
    axes.set_title("status")
    rows = []
    for kind, colour, count in zip(kinds, colours, counts, strict=True):
        texts = [text for flag, text in MEANING.items() if kind & flag] or [
            "fitted, nothing to note"
        ]
        swatch = f"<span class='swatch' style='background:{plot.matplotlib.colors.to_hex(colour)}'></span>"
        share = f"<td class='n'>{count}</td><td class='n'>{count / len(fit.status):.1%}</td>"
        rows.append(f"<tr><td>{swatch} {kind}</td>{share}<td>{escape('; '.join(texts))}</td></tr>")
    head = "<tr><th>status</th><th>voxels</th><th></th><th>meaning</th></tr>"
    return f"<div class='beside'>{_image(figure, 'status map')}<table>{head}{''.join(rows)}</table></div>"


def _image(figure: Any, text: str) -> str:
    stream = streams.BytesIO()
    figure.savefig(stream, format="png")
    data = base64.b64encode(stream.getvalue()).decode()
    return f"<img alt='{escape(text, quote=True)}' src='data:image/png;base64,{data}'>"
