"""One self-contained HTML page on a saved fit: a verdict, maps to walk through, single voxels,
residuals, statuses, a methods paragraph. Nothing comes from elsewhere; its script and style are
`report.js` and `report.css`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..fit import MapmriFit
from ..gradients import to_scanner
from ..indices import ANISOTROPIC_ONLY, INDICES
from ..status import MEANING, Status
from . import io, pages, payload, references
from .folder import SavedFit, read_fit
from .views import CONVENTIONS, Map, Orientation, html, map_of, three

Array = NDArray[np.float64]
log = logging.getLogger(__name__)

SHORT = {"rtop": "rtop^(1/3)", "rtap": "rtap^(1/2)"}  # shown as lengths, like RTPP
QUALITY = ("rmse", "r2", "negative_mass")
TEXTS = {
    "rmse": "root mean squared residual, b = 0 included",
    "r2": "coefficient of determination, b = 0 included",
    "negative_mass": "integral of -P where P is below zero; physics allows none",
}
# Thresholds of the verdict; the page states them.
FITTED, MASS = 0.99, 0.05
SHARE, ODD = 0.05, 0.02
FEW = 0.005
LIKE = 25  # volumes of nearest b that a volume is compared with
VOLUME_Z, VOLUME_MORE = 5.0, 1.25  # robust z among them, and times their median
LAYER = 2.0  # a volume's worst slice, times the median of worst slices
FLOOR_GUESSED = "1.25 RMSE (the mean of a Rician magnitude without signal, if RMSE is the noise)"
FLOOR_MODELLED = (
    "the mean magnitude without signal, at the fit's sigma; lines are expected magnitudes"
)
FLOOR = 3.0  # signal over RMSE: below it a magnitude is mostly noise


class Finding(NamedTuple):
    """A line of the verdict."""

    fine: bool
    what: str
    measured: str
    threshold: str
    advice: str


def write_report(
    folder: io.File, out: io.File | None = None, force: bool = False, *, dwi: io.File | None = None,
    convention: str = CONVENTIONS[0],
) -> Path:  # fmt: skip
    """The page on the fit in `folder`, by default `report.html` in it; the path written.

    Parameters
    ----------
    dwi : the series that was fitted, for samples and residuals per volume; by default where the
        fit's JSON says, if it is there. convention : "radiological" or "neurological".

    Raises
    ------
    FileExistsError
        The page is there already and `force` is not given. Errors of a folder that is no fit: see
        `folder.read_fit`; ValueError: a `dwi` of another shape than the fit.
    """
    base = Path(folder) if Path(folder).is_dir() else Path(folder).parent

    def make(target: Path) -> str:
        saved = read_fit(folder)
        links = links_of(base, saved.prefix, target.parent)
        return page(saved, _series(saved, dwi), convention, links)

    return pages.write(base / "report.html", out, convention, force, make)


def _series(saved: SavedFit, dwi: io.File | None) -> Any:
    """Samples of the series, None where it is not found."""
    known = saved.entries.get("Run", {}).get("Series")
    if dwi is None and (known is None or not Path(known).is_file()):
        log.info("no samples in the report: the series was not found; name it (dwi=...)")
        return None
    path = Path(known if dwi is None else dwi)
    data = io.load_dwi(path).data
    if (chosen := saved.entries.get("Run", {}).get("Volumes")) and data.shape[-1] > max(chosen):
        data = np.asarray(data)[..., chosen]
    shape = (*three(saved.fit.mask).shape, len(saved.fit.gtab))
    if data.shape != shape:
        if dwi is None:
            return None
        raise ValueError(f"dwi: {path} has shape {data.shape}, the fit {shape}")
    return data


def links_of(base: Path, prefix: str, start: Path) -> list[tuple[str, str]]:
    """Files of the fit: name and address relative to the page."""
    found = sorted(p for p in base.glob(f"{prefix}*") if p.is_file() and p.suffix != ".html")
    return [(p.name, Path(os.path.relpath(p, start)).as_posix()) for p in found]


def page(
    saved: SavedFit,
    data: Any = None,
    convention: str = CONVENTIONS[0],
    links: list[tuple[str, str]] | None = None,
) -> str:
    """The HTML of a saved fit; `data` (..., n) is its series."""
    fit = saved.fit
    maps, texts = maps_of(fit)
    weights = fit.laplacian_weight[np.isfinite(fit.laplacian_weight)]
    if len(np.unique(weights)) > 1:
        maps["weight"] = Map(fit.volume(fit.laplacian_weight), "Laplacian weight", "mm⁻¹")
        texts["weight"] = "chosen in each voxel"
    orientation = Orientation.of(saved.affine, fit.mask.shape)
    grid = payload.Grid(fit.mask, orientation, len(maps) + 4)
    odd = payload.outliers(fit, maps["negative_mass"].values[fit.mask], MASS)
    content, volumes = _content(fit, grid, maps, odd, data, convention)
    for entry, name in zip(content["maps"], maps, strict=True):
        entry["text"] = texts[name]
    findings = _findings(fit, maps, odd, volumes)
    title = f"MAP-MRI fit {saved.prefix}".strip()
    paragraph, bibtex = references.methods(fit.options)
    fill = {
        "TITLE": escape(title),
        "FLOOR": FLOOR_MODELLED if fit.sigma is not None else FLOOR_GUESSED,
        "VERDICT": _verdict(fit, findings),
        "INDICES": _summary(maps, texts),
        "VOLUMES": _volumes(fit, volumes),
        "STATUS": _status(fit),
        "METHODS": f"<p id='methods-text'>{escape(paragraph)}</p>"
        f"<pre id='bibtex' tabindex='0'>{escape(bibtex)}</pre>",
        "FACTS": pages.pairs(facts(fit, saved)),
        "TIMING": pages.pairs(_timing(fit, saved)),
        "FILES": pages.links(links or []),
    }
    return pages.filled("report.html", content, fill)


def maps_of(fit: MapmriFit) -> tuple[dict[str, Map], dict[str, str]]:
    """Maps of the indices and of the fit's quality by their names, and what they mean."""
    names = [n for n in INDICES if not (fit.isotropic and n in ANISOTROPIC_ONLY)]
    maps = {name: map_of(fit, SHORT.get(name, name), "um") for name in names}
    maps |= {name: map_of(fit, name) for name in QUALITY}
    return maps, {name: INDICES[name].long_name for name in names} | TEXTS


def _content(
    fit: MapmriFit, grid: payload.Grid, maps: dict[str, Map], odd: NDArray[np.bool_], data: Any,
    convention: str,
) -> tuple[dict[str, Any], Array | None]:  # fmt: skip
    """What the script reads, and the residuals of each volume (2, n) where there is a series."""
    content: dict[str, Any] = {"convention": convention} | grid.entries()
    content["maps"] = [grid.quantised(m, m.values[fit.mask]) for m in maps.values()]
    axes = fit.R[:, :, 0]
    if grid.orientation.stored_affine is not None:
        axes = to_scanner(axes, grid.orientation.stored_affine, fit.gtab.frame)
    strength = np.nan_to_num(maps["pa"].values[fit.mask])[:, None]
    colour = np.nan_to_num(np.abs(axes)) * np.clip(strength, 0, 1)
    content["colour"] = payload.pack(np.round(255 * colour[grid.rows]).astype("u1"))
    kinds, which = np.unique(fit.status, return_inverse=True)
    packed = payload.pack(which.reshape(-1)[grid.rows].astype("u1"))
    content["status"] = [{"label": "status", "data": packed}]
    content["kinds"] = kinds_of(kinds)
    table = fit.gtab
    content["table"] = {"b": np.round(table.bvals, 2).tolist(), "b0": table.b0s_mask.tolist()}
    content["table"]["g"] = payload.pack(np.nan_to_num(table.bvecs).astype("<f4"))
    used = len(json.dumps(content))
    curve, plane = 6 * payload.CURVE, 2 * payload.PLANE * (payload.PLANE // 2 + 1)
    ball, measured = payload.SPHERE // 2, 0 if data is None else 2 * len(table)
    each = (curve + plane + ball + 32 + measured) * 4 / 3
    rows = payload.choose(grid, fit, odd, int((payload.LIMIT - used) / each))
    samples = volumes = None
    if data is not None:
        layer = np.argwhere(three(fit.mask))[:, grid.orientation.order[2]]
        volumes, samples = payload.each_volume(fit, data, layer, rows)
    content["voxels"] = payload.each_voxel(fit, rows, grid.orientation, samples)
    place = np.full(len(fit.coef), -1)
    place[grid.rows] = np.arange(len(grid.rows))
    content["voxels"] |= {
        "at": payload.pack(place[rows].astype("<i4")),  # -1: between the voxels of a coarser grid
        "odd": payload.pack(odd[rows].astype("u1")),
    }
    return content, volumes


# ---- the verdict


def _findings(
    fit: MapmriFit, maps: dict[str, Map], odd: NDArray[np.bool_], volumes: Array | None
) -> list[Finding]:
    """What was looked at, as measured, with its threshold."""
    status, V = fit.status, max(len(fit.status), 1)

    def share(flag: Status) -> float:
        return float(((status & flag) != 0).sum()) / V

    def flagged(flag: Status, what: str, most: float, advice: str) -> Finding:
        found = share(flag)
        return Finding(found <= most, what, f"{found:.2%} of voxels", f"at most {most:.1%}", advice)

    mass = maps["negative_mass"].values[fit.mask]
    heavy = float((mass > MASS).sum()) / V
    fitted = 1 - share(Status.NO_FIT)
    shells = fit.gtab.shells()
    fitted_text, heavy_text = f"{fitted:.2%} of voxels", f"{heavy:.2%} of voxels"
    out = [
        Finding(fitted >= FITTED, "Voxels with a fit", fitted_text, f"at least {FITTED:.0%}",
                "see the statuses below; a mask that reaches outside the head is the usual cause"),
        Finding(len(shells) > 1, "Shells", f"{len(shells)} beside b0", "at least 2",
                "one shell cannot tell the radial shape of the propagator: indices extrapolate"),
        flagged(Status.RTOP_NOT_POSITIVE, "RTOP not positive", FEW,
                "use positivity, or a lower radial order"),
        Finding(heavy <= SHARE, f"Negative mass above {MASS:g}", heavy_text, f"at most {SHARE:.0%}",
                "their RTOP and NG are doubtful: use positivity, or a larger Laplacian weight"),
        flagged(Status.FLOOR, "Scale tensor raised to the floor", SHARE,
                "look at the mask and at the series at low b"),
        flagged(Status.DROPPED, "Voxels with missing samples", SHARE,
                "they rest on fewer samples: look at the edge of the mask"),
    ]  # fmt: skip
    weight = fit.options["laplacian"]
    if not (weight is None or isinstance(weight, int | float)):
        what, advice = "Weight at an end of its range", "widen the range of weights"
        out.append(flagged(Status.WEIGHT_AT_BOUND, what, SHARE, advice))
    strange = float(odd.sum()) / V
    advice = "open them below: motion, vessels and the edge of the mask are the usual causes"
    what, measured = "Outlier voxels (RMSE, negative mass, RTOP)", f"{strange:.2%} of voxels"
    out.append(Finding(strange <= ODD, what, measured, f"at most {ODD:.0%}", advice))
    if shells and fit.sigma is None:  # a modelled floor may lie above the signal
        ratio = _signal_to_residual(fit, shells[-1][0])
        what = f"Signal at b = {shells[-1][0]:.0f} over RMSE (median)"
        advice = "magnitudes there lie at the noise floor: model the noise, or leave the shell out"
        measured, least = f"{ratio:.2g} times", f"at least {FLOOR:g}"
        out.append(Finding(ratio >= FLOOR, what, measured, least, advice))
    if volumes is not None:
        bad = np.flatnonzero(_outlier_volumes(fit, volumes))
        named = f"{len(bad)}: " + ", ".join(map(str, bad[:12])) + " ..." * (len(bad) > 12)
        limit = f"z ≤ {VOLUME_Z:g} among volumes of like b"
        advice = "look at these volumes of the series; leave them out by weight 0"
        named = named if len(bad) else "none"
        out.append(Finding(not len(bad), "Outlier volumes", named, limit, advice))
    return out


def _signal_to_residual(fit: MapmriFit, b: float) -> float:
    """Median over voxels of the mean fitted signal of the outermost shell, over RMSE."""
    good = np.flatnonzero((fit.status & Status.NO_FIT) == 0)
    if not len(good):
        return float("nan")
    some = payload.part(fit, good[:: -(-len(good) // 2000)])
    outer = fit.gtab[np.flatnonzero(fit.gtab.bvals >= 0.95 * b)]
    mean = some.predict(outer).mean(1)
    return float(np.median(mean / np.maximum(some.rows()["rmse"], 1e-12 * np.abs(some.S0))))


def _outlier_volumes(fit: MapmriFit, volumes: Array) -> NDArray[np.bool_]:
    """Volumes whose residuals, or those of their worst slice, stand out among those of like b."""
    b, out = fit.gtab.bvals, np.zeros(len(fit.gtab), bool)
    for k in np.flatnonzero(~fit.gtab.b0s_mask):
        near = np.argsort(np.abs(b - b[k]) + 1e9 * fit.gtab.b0s_mask, kind="stable")[:LIKE]
        for values, more in zip(volumes, (VOLUME_MORE, LAYER), strict=True):
            alike = values[near][np.isfinite(values[near])]
            if not len(alike):  # no slice has voxels enough
                continue
            middle = np.median(alike)
            spread = 1.4826 * np.median(np.abs(alike - middle))
            out[k] |= values[k] > max(middle + VOLUME_Z * spread, more * middle)
    return out


def _verdict(fit: MapmriFit, findings: list[Finding]) -> str:
    doubtful = [f for f in findings if not f.fine]
    count = int(((fit.status & Status.NO_FIT) == 0).sum())
    text = f"{count:,} of {len(fit.status):,} voxels in the mask were fitted. "
    if doubtful:
        named = "; ".join(f.what for f in doubtful)
        text += f"{len(doubtful)} of {len(findings)} checks ask for a look: {named}."
    else:
        text += "Nothing stands out."
    rows = []
    for f in sorted(findings, key=lambda f: f.fine):
        kind, words = ("fine", "✓ fine") if f.fine else ("look", "! look")
        rest = map(escape, (f.measured, f.threshold, "" if f.fine else f.advice))
        rows.append((escape(f.what), f"<span class='{kind}'>{words}</span>", *rest))
    mood = "look" if doubtful else "fine"
    table = pages.table(("check", "verdict", "measured", "threshold", "what to do"), rows)
    return f"<p class='verdict {mood}'>{escape(text)}</p>{table}"


# ---- tables


def _summary(maps: dict[str, Map], texts: dict[str, str]) -> str:
    rows = []
    for name, m in maps.items():
        finite = m.values[np.isfinite(m.values)]
        numbers = np.percentile(finite, (5, 50, 95)) if finite.size else [np.nan] * 3
        unit = "" if m.unit == "1" else m.unit
        cells = (*(f"{x:.4g}" for x in numbers), unit, pages.histogram(finite), escape(texts[name]))
        rows.append((html(m.label), *cells))
    heads = ("map", "5 %", "median", "95 %", "unit", "0.5 to 99.5 %", "meaning")
    return pages.table(heads, rows)


def _volumes(fit: MapmriFit, volumes: Array | None) -> str:
    """A bar for each volume, a dot for its worst slice; outliers in red, with their numbers."""
    if volumes is None:
        return "<p>The series was not at hand: name it by <code>--dwi</code>.</p>"
    bad, n = _outlier_volumes(fit, volumes), len(fit.gtab)
    top, width = float(np.nanmax(volumes, initial=1.0)) * 1.05, 1000.0
    height = 150.0
    step, parts = width / n, []
    for k, pair in enumerate(volumes.T):
        mean, worst = np.nan_to_num(pair)
        text = f"volume {k}, b = {fit.gtab.bvals[k]:.0f}: {mean:.2f}, worst slice {worst:.2f}"
        h, x = height * mean / top, k * step
        dot = height - height * worst / top
        shade = "bad" if bad[k] else "b0" if fit.gtab.b0s_mask[k] else "bar"
        bar = f"M{x:.1f} {height:g}v-{h:.1f}h{0.8 * step:.2f}v{h:.1f}z"
        dash = f"M{x:.1f} {dot:.1f}h{0.8 * step:.2f}" if worst > 1.001 * mean else ""
        paths = f"<path d='{bar}'/><path class='worst' d='{dash}'/>"
        parts.append(f"<g class='{shade}'><title>{text}</title>{paths}</g>")
    line = f"<path class='base' d='M0 {height - height / top:.1f}h{width:g}'/>"
    label = f"Residual of each of {n} volumes; {int(bad.sum())} stand out"
    box = f"viewBox='0 0 {width:g} {height:g}' preserveAspectRatio='none'"
    bars = "".join(parts) + line
    picture = f"<svg class='volumes' {box} role='img' aria-label='{label}'>{bars}</svg>"
    if not bad.any():
        return picture + "<p>No volume stands out.</p>"
    named = np.flatnonzero(bad)[:50]
    rows = [
        (f"{k}", f"{fit.gtab.bvals[k]:.0f}", *map("{:.2f}".format, volumes[:, k])) for k in named
    ]
    heads = ("volume that stands out", "b (s/mm²)", "residual", "worst slice")
    return picture + pages.table(heads, rows)


def kinds_of(kinds: Iterable[int]) -> list[Any]:
    """Statuses as the script reads them: value, words, whether there is no fit."""
    return [[int(kind), meaning(kind), bool(kind & Status.NO_FIT)] for kind in kinds]


def meaning(kind: Any) -> str:
    """A status in words."""
    texts = [text for flag, text in MEANING.items() if kind & flag]
    return "; ".join(texts) or "fitted, nothing to note"


def _status(fit: MapmriFit) -> str:
    kinds, counts = np.unique(fit.status, return_counts=True)
    rows = []
    for k, (kind, count) in enumerate(zip(kinds, counts, strict=True)):
        swatch = f"<span class='swatch' data-kind='{k}'></span> {kind}"
        rows.append((swatch, str(count), f"{count / len(fit.status):.1%}", escape(meaning(kind))))
    return pages.table(("status", "voxels", "share", "meaning"), rows)


def facts(fit: MapmriFit, saved: SavedFit) -> dict[str, str]:
    """Model, data and software of a fit in words."""
    options, gtab = fit.options, fit.gtab
    entries = saved.entries
    shells = gtab.shells()
    weighted = ", ".join(f"{n} at b = {b:.0f}" for b, n in shells) + " s/mm²"
    if len(shells) > 8:
        ends = f"b = {shells[0][0]:.0f} to {shells[-1][0]:.0f} s/mm²"
        weighted = f"{len(shells)} clusters of |q|, {ends}"
    times = {"Δ": gtab.big_delta, "δ": gtab.small_delta, "τ": gtab.taus}
    ranges = {k: (1e3 * np.min(v), 1e3 * np.max(v)) for k, v in times.items() if v is not None}
    timing = ", ".join(
        f"{k} = {a:.4g}" + (f" to {b:.4g}" if b > a else "") + " ms" for k, (a, b) in ranges.items()
    )
    rest = {k: v for k, v in options.items() if k not in ("radial_order", "basis")}
    software, run = entries["Software"], entries.get("Run", {})
    versions = ", ".join(f"{name} {version}" for name, version in run.get("Versions", {}).items())
    rows = {
        "Model": f"{references.mode(options)}, {options['basis']} basis, "
        f"radial order {fit.order} ({fit.coef.shape[1]} coefficients)",
        "Options": ", ".join(f"{k} {v}" for k, v in rest.items() if v is not None),
        "Data": ", ".join(entries.get("Sources", [])) or "not recorded",
        "Volume": f"{' x '.join(map(str, fit.mask.shape))}, {len(fit.coef)} voxels in the mask",
        "Measurements": f"{len(gtab)} volumes: {int(gtab.b0s_mask.sum())} b0, "
        + (weighted if shells else "b0 only"),
        "Pulse timing": timing,
        "Frame of b-vectors": gtab.frame,
        "Software": f"{software['Name']} {software['Version']} ({versions})",
    }
    return rows | ({"Command": run["Command"]} if run.get("Command") else {})


def _timing(fit: MapmriFit, saved: SavedFit) -> dict[str, str]:
    run: dict[str, Any] = saved.entries.get("Run", {})
    known = ("Date", "Engine", "Threads")
    rows = {name: str(run[name]) for name in known if run.get(name) is not None}
    if seconds := run.get("Seconds", {}):
        rows["Seconds"] = ", ".join(f"{name.lower()} {seconds[name]:.3g}" for name in seconds)
        compiling = run.get("Compiling")
        if compiling is not None:
            rows["Seconds"] += f"; compiling {compiling:.3g} of them"
        net = seconds.get("Fitting", 0.0) - (compiling or 0.0)
        how = "compilation included" if compiling is None else "without compilation"
        each = 1e6 * net / max(len(fit.coef), 1)
        rows["Fitting a voxel"] = f"{each:.0f} µs (all threads together, {how})"
    if run.get("Slabs", 0) > run.get("FittedNow", 0):
        rows["Resumed"] = f"{run['FittedNow']} of {run['Slabs']} slabs were fitted by the last run"
    return rows
