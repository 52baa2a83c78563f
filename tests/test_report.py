"""The report: one file, the fit's numbers, a verdict that finds what was planted, a script."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import phantom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from shell import command, fails, refused, save

import mapmri_nb as mapmri
from mapmri_nb import report
from mapmri_nb.status import MEANING, Status
from mapmri_nb.use import compare, payload, references, views
from mapmri_nb.use.folder import read_fit, save_fit

AFFINE = np.array([[0, -2.0, 0, 9], [-2.0, 0, 0, 7], [0, 0, 3.0, -5], [0, 0, 0, 1]])  # PLS
BAD_VOLUME, BAD_SLICE = 50, 70


def plain(text):
    """Text without its tags."""
    return html.unescape(re.sub("<[^>]*>", "", text))


class Page:
    """Text, links, data and table rows of a page; complains of tags that do not close."""

    def __init__(self, text):
        self.data = json.loads(re.search('<script[^>]* id="data">(.*?)</script>', text, re.S)[1])
        text = re.sub("<(script|style).*?</\\1>", "", text, flags=re.S)
        self.text, rows = plain(text), re.findall("<tr.*?</tr>", text, re.S)
        cells = [re.findall("<t[dh][ >].*?</t[dh]>", row, re.S) for row in rows]
        self.rows = [list(map(plain, row)) for row in cells]
        found = re.findall(r"""\s(id|src|href|srcset|action)=(["']?)(.*?)\2[\s>]""", text)
        self.ids = [value for name, _, value in found if name == "id"]
        self.links = [html.unescape(value) for name, _, value in found if name != "id"]
        stack = []
        for close, tag in re.findall("<(/?)([a-z]+)", text):
            if close:
                assert stack.pop() == tag
            elif tag not in ("meta", "br", "path", "circle", "input", "link"):
                stack.append(tag)
        assert stack == []


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An odd name, a voxel without signal, one of noise, a bright volume, a bad slice."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("fit")
    g, b = phantom.unit(rng.normal(size=(90, 3))), np.repeat([0.0, 1000.0, 2000.0], 30)
    gtab = mapmri.GradientTable(b, g, big_delta=0.04, small_delta=0.01)
    shape = (7, 6, 5)
    series = np.exp(-b * (0.3e-3 + 1.4e-3 * g[:, 0] ** 2)) * rng.uniform(80, 120, (*shape, 1))
    series += rng.normal(size=series.shape)
    series[..., BAD_VOLUME] += 2
    series[:, :, 2, BAD_SLICE] += 4
    series[4, 4, 1] += rng.normal(size=90) * 6
    series[1, 1, 1] = 0
    mask = np.ones(shape, bool)
    mask[0], mask[3, 2, 2] = False, False
    fit = mapmri.MapmriModel(gtab, radial_order=4, laplacian="gcv").fit(series, mask)
    path = save(folder / "the_dwi.nii.gz", series, AFFINE)
    run = {"Seconds": {"Reading": 0.25, "Fitting": 1.5, "Writing": 2.0}, "Compiling": 0.5}
    run |= {"Threads": 2, "Slabs": 3, "FittedNow": 1, "Series": str(path)}
    run["Command"] = "mapmri-nb fit 'a b_dwi.nii' --out <x>"
    sources = ["sub-<1>&_dwi.nii.gz"]
    save_fit(fit, folder, prefix="sub-<1>&", sources=sources, run=run, affine=AFFINE)
    return folder, fit


@pytest.fixture(scope="module")
def page(saved):
    path = report.write_report(saved[0])
    assert path == saved[0] / "report.html"
    return page_of(path)


def test_it_stands_alone(saved, page):
    """Nothing from elsewhere: links lead to sections and to the fit's own files."""
    text = (saved[0] / "report.html").read_text(encoding="utf-8")
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (saved[0] / link).is_file()
    assert any(link.endswith("_dwimap.json") for link in page.links)
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(|fetch\(|XMLHttp""", text)
    assert len(page.ids) == len(set(page.ids))
    assert len(text) < 15_000_000
    assert "matplotlib" not in Path(report.__file__).read_text(encoding="utf-8")


def test_what_was_fitted_is_said(page):
    facts = {row[0]: row[1] for row in page.rows if len(row) == 2}
    expected = {
        "Model": "MAPL, anisotropic basis, radial order 4 (22 coefficients)",
        "Volume": "7 x 6 x 5, 179 voxels in the mask",
        "Measurements": "90 volumes: 30 b0, 30 at b = 1000, 30 at b = 2000 s/mm²",
        "Pulse timing": "Δ = 40 ms, δ = 10 ms, τ = 36.67 ms",
        "Command": "mapmri-nb fit 'a b_dwi.nii' --out <x>",
        "Seconds": "reading 0.25, fitting 1.5, writing 2; compiling 0.5 of them",
        "Threads": "2",
        "Resumed": "1 of 3 slabs were fitted by the last run",
    }
    assert {name: facts[name] for name in expected} == expected
    assert "sub-<1>&_dwi.nii.gz" in facts["Data"]
    assert "laplacian gcv" in facts["Options"]
    assert mapmri.__version__ in facts["Software"]
    assert re.fullmatch("5587 µs.*without compilation.", facts["Fitting a voxel"])


def test_the_verdict_finds_what_was_planted(page):
    checks = {row[0]: row for row in page.rows if len(row) == 5 and row[1][2:] in ("fine", "look")}
    assert checks["Outlier volumes"][1:3] == ["! look", f"2: {BAD_VOLUME}, {BAD_SLICE}"]
    assert checks["Voxels with a fit"][1:4] == ["✓ fine", "99.44% of voxels", "at least 99%"]
    assert checks["Shells"][2] == "2 beside b0"
    assert all(row[3] for row in checks.values()), "thresholds are stated"
    assert all(row[4] for row in checks.values() if row[1] == "! look")
    assert "178 of 179 voxels in the mask were fitted." in page.text
    volumes = {row[0]: row for row in page.rows if len(row) == 4}
    assert float(volumes[str(BAD_SLICE)][3]) > 1.5 * float(volumes[str(BAD_SLICE)][2])


def test_numbers_are_those_of_the_fit(saved, page):
    rows = {row[0]: row for row in page.rows if len(row) == 7}
    _, fit = saved
    maps = {"RTOP1/3": np.cbrt(fit.rtop()) * 1e-3, "MSD": fit.msd() * 1e6}
    for label, values in (maps | {"NG∥": fit.ng_par(), "RMSE": fit.rmse()}).items():
        numbers = [float(x) for x in rows[label][1:4]]
        assert_allclose(numbers, np.nanpercentile(values, (5, 50, 95)), rtol=1e-3)
    assert rows["RTPP"][4] == "µm⁻¹"
    assert rows["NG"][4] == ""
    assert rows["MSD"][6] == "mean squared displacement"
    assert "Laplacian weight" in rows
    text = (saved[0] / "report.html").read_text(encoding="utf-8")
    for label in ("RTOP<sup>1/3<", "NG<sub>∥<", "NG<sub>⊥<", "PA<sub>DTI<", "‖ΔE‖<sup>2<", "MSD<"):
        assert f">{label}" in text, label


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def turned(fit, values):
    """A volume along canonical axes."""
    return views.Orientation.of(AFFINE, fit.mask.shape).turn(values)


def values_of(entry):
    """A packed map's values over the mask, in the order of the canonical volume."""
    codes = unpacked(entry["data"], "<u2" if entry["bits"] == 16 else "u1").astype(float)
    t, share = (codes - 1) / (2.0 ** entry["bits"] - 2), entry["even"]
    even = entry["low"] + t / share * (entry["middle"] - entry["low"])
    grown = np.expm1((t - share) / (1 - share) * entry["tail"])
    tail = entry["middle"] + np.ptp(entry["range"]) * grown
    return np.where(codes == 0, np.nan, np.where(t <= share, even, tail))


def test_packed_maps_are_the_fits(saved, page):
    _, fit = saved
    inside, entry = turned(fit, fit.mask), page.data["maps"][0]
    assert page.data["shape"] == [6, 6, 5], "cropped to the mask"
    want = turned(fit, np.cbrt(fit.rtop()) * 1e-3)[inside]
    assert_allclose(values_of(entry), want, atol=1e-4 * np.ptp(entry["range"]))
    kinds = page.data["kinds"]
    found = unpacked(page.data["status"][0]["data"], "u1")
    status = turned(fit, fit.volume(fit.status, 0))[inside]
    assert_array_equal([kinds[k][0] for k in found], status)


def test_packed_voxels_are_the_fits(saved, page):
    """Samples, curves, planes and ODFs of single voxels against the fit's own answers."""
    folder, fit = saved
    series = nib.load(folder / "the_dwi.nii.gz").get_fdata()
    v, n = page.data["voxels"], len(fit.gtab)
    points, plane, ball = v["points"]
    numbers = turned(fit, fit.volume(np.arange(len(fit.coef)), -1))
    rows = numbers[numbers >= 0][unpacked(v["at"], "<i4")]
    assert sorted(rows) == sorted(np.flatnonzero((fit.status & Status.NO_FIT) == 0))
    top = unpacked(v["top"], "<f4")
    samples = unpacked(v["samples"], "<u2").reshape(-1, n) / 65534 * top[:, None]
    assert_allclose(samples, np.clip(series[fit.mask][rows], 0, None), atol=0.01)
    curve = unpacked(v["curve"], "<u2").reshape(-1, 3, points) / 65534 * top[:, None, None]
    planes = unpacked(v["planes"], "u1").reshape(-1, 2, plane // 2 + 1, plane)
    odfs = unpacked(v["odf"], "u1").reshape(-1, ball // 2)
    directions = unpacked(v["sphere"], "<f4").reshape(-1, 3).astype(float)
    stored = views.Orientation.of(AFFINE, fit.mask.shape).stored(directions)
    image = mapmri.gradients.from_voxel(stored, AFFINE, "image")
    b = np.linspace(0, v["most_b"], points)
    for k, row in enumerate(rows[:5]):
        one, R = payload.part(fit, [row]), fit.R[row]
        line = mapmri.GradientTable(b, np.tile(R[:, 1], (points, 1)), tau=fit.gtab.tau)
        assert_allclose(curve[k, 1], np.clip(one.predict(line)[0], 0, None), atol=0.01)
        r = np.linspace(-1, 1, plane) * unpacked(v["reach"], "<f4")[k] * 1e-3
        at = np.outer(r, R[:, 1]) + r[plane // 2 + 3] * R[:, 2]
        want, code = one.pdf(at)[0] / one.pdf(np.zeros((1, 3)))[0], planes[k, 1, 3].astype(float)
        shown = code > 1
        assert shown.sum() > 3
        assert_allclose(np.log10(want[shown]), 4 * ((code[shown] - 2) / 253 - 1), atol=0.01)
        want = np.maximum(one.odf(image)[0], 0)
        assert_allclose(odfs[k] / 255, want / want.max(), atol=0.003)


def test_the_page_keeps_within_its_size(saved, monkeypatch):
    """Fewer voxels can be opened where there is no room, outliers first; then maps are coarser."""
    folder, fit = saved
    monkeypatch.setattr(payload, "LIMIT", 110_000)
    small = Page(report.page(read_fit(folder)))
    assert 5 < len(unpacked(small.data["voxels"]["at"], "<i4")) < 100
    assert small.data["voxels"]["samples"] is None
    monkeypatch.setattr(payload, "MAPS_FINE", 1)
    monkeypatch.setattr(payload, "MAPS_MOST", 1000)
    coarse = Page(report.page(read_fit(folder)))
    step, entry = coarse.data["step"], coarse.data["maps"][0]
    assert step > 1
    assert entry["bits"] == 8
    part = (slice(None, None, step),) * 3
    want = turned(fit, np.cbrt(fit.rtop()) * 1e-3)[part][turned(fit, fit.mask)[part]]
    assert_allclose(values_of(entry), want, atol=0.02 * np.ptp(entry["range"]))


def test_status_has_a_legend(saved, page):
    _, fit = saved
    assert set(MEANING) == {flag for flag in Status if flag.value & (flag.value - 1) == 0}
    rows = {row[0].strip(): row for row in page.rows if len(row) == 4 and "%" in row[2]}
    for kind, count in zip(*np.unique(fit.status, return_counts=True), strict=True):
        assert rows[str(kind)][1] == str(count)
    (lost,) = [row for row in rows.values() if "no fit" in row[3]]
    assert lost[1] == "1"
    assert "no positive signal at b = 0" in lost[3]


def test_command(saved, tmp_path, capsys, monkeypatch):
    folder, page = saved[0], Mock(side_effect=lambda saved, *_: f"{saved.prefix} page")
    monkeypatch.setattr(report, "page", page)
    words = ["report", folder, "--out", tmp_path / "r.html"]
    assert command(*words, "--quiet") == 0
    assert (tmp_path / "r.html").read_text() == "sub-<1>& page"
    fails(capsys, words, "--force")
    words += ["--force --quiet --convention neurological --dwi"]
    assert command(*words, folder / "the_dwi.nii.gz") == 0
    dwi, convention = page.call_args[0][1:3]
    assert (dwi.shape, convention) == ((7, 6, 5, 90), "neurological")
    short = save(tmp_path / "short.nii", np.ones((7, 6, 5, 3)), AFFINE)
    fails(capsys, [*words, short], "short.nii has shape (7, 6, 5, 3)")
    assert {p.name for p in tmp_path.iterdir()} == {"r.html", "short.nii"}
    refused("convention", report.write_report, folder, force=True, convention="left")
    refused("convention", compare.write_comparison, folder, folder, force=True, convention="left")


def test_isotropic_and_fits_without_a_run_section(saved, tmp_path):
    """Indices without a meaning are left out; a JSON of another maker may lack the times."""
    _, fit = saved
    model = mapmri.MapmriModel(fit.gtab, 4, basis="isotropic")
    save_fit(model.fit(fit.predict(), fit.mask), tmp_path, affine=np.eye(4))
    (path,) = tmp_path.glob("*model-mapmri_dwimap.json")
    entries = json.loads(path.read_text())
    del entries["Run"], entries["Sources"]
    path.write_text(json.dumps(entries))
    page = page_of(report.write_report(tmp_path))
    assert {"NG", "NG∥"} & {row[0] for row in page.rows} == {"NG"}
    assert "not recorded" in page.text
    assert "--dwi" in page.text


@pytest.mark.parametrize("kind", ["no fit at all", "one voxel", "noise-free", "row"])
@pytest.mark.filterwarnings("error")
def test_odd_fits_have_a_page(saved, tmp_path, kind):
    """Nothing fitted, a single voxel, maps of one value, a fit of fewer than three axes."""
    gtab = saved[1].gtab
    signal = np.exp(-gtab.bvals * (0.3e-3 + 1.4e-3 * gtab.bvecs[:, 0] ** 2))
    noise = 0.01 * np.random.default_rng(0).normal(size=(5, 90))
    data = {
        "no fit at all": np.zeros((3, 3, 2, 90)),
        "one voxel": (signal + noise[0])[None, None, None],
        "noise-free": np.ones((3, 3, 2, 1)) * signal,
        "row": signal + noise,
    }[kind]
    fit = mapmri.MapmriModel(gtab, radial_order=4).fit(data)
    save_fit(fit, tmp_path, affine=np.eye(4))
    path = save(tmp_path / "x.nii", data.reshape(*data.shape[:-1], *[1] * (4 - data.ndim), 90))
    page = page_of(report.write_report(tmp_path, dwi=path))
    fitted = int(((fit.status & Status.NO_FIT) == 0).sum())
    assert f"{fitted} of {len(fit.status)} voxels in the mask were fitted" in page.text
    assert len(unpacked(page.data["voxels"]["at"], "<i4")) == fitted


@pytest.fixture(scope="module")
def pair(saved, tmp_path_factory):
    """The folder of another fit of the series, of order 2 and without one voxel; the page on both."""
    folder, fit = saved
    series, mask = nib.load(folder / "the_dwi.nii.gz").get_fdata(), fit.mask.copy()
    mask[2, 2, 2] = False
    other = mapmri.MapmriModel(fit.gtab, radial_order=2, laplacian=None).fit(series, mask)
    b = tmp_path_factory.mktemp("other")
    save_fit(other, b, prefix="sub-<1>&", sources=["sub-<1>&_dwi.nii.gz"], affine=AFFINE)
    assert command("report", folder, b, "--quiet") == 0
    return b, other, page_of(b / "comparison.html")


def test_two_fits_are_compared(saved, pair, capsys):
    (folder, fit), (b, other, page) = saved, pair
    settings = {row[0]: row[1:] for row in page.rows if len(row) == 3}
    assert settings["radial order"] == ["4", "2"]
    assert settings["mode"] == ["MAPL", "MAP"]
    assert "basis" not in settings
    assert "Of 179 voxels in either mask A fitted 178 voxels (99.44%), B 177" in page.text
    assert "only A 1, only B 0" in page.text
    rows = {row[0]: row for row in page.rows if len(row) == 10}
    x, y = fit.msd() * 1e6, other.msd() * 1e6
    got = [float(text.removesuffix("%")) for text in (*rows["MSD"][1:3], *rows["MSD"][4:8])]
    both = np.isfinite(x) & np.isfinite(y)
    d = (y - x)[both]
    want = [np.median(x[both]), np.median(y[both]), *np.percentile(d, (50, 5, 95))]
    assert_allclose(got[:5], want, rtol=1e-3)
    assert got[5] == pytest.approx(100 * np.median(d / x[both]), abs=0.01)
    first, second, between = [m for m in page.data["maps"] if m["label"].startswith("MSD")]
    assert first["range"] == second["range"]
    for entry, values in ((first, x), (second, y), (between, y - x)):
        off = np.abs(values_of(entry) - turned(fit, values)[turned(fit, fit.mask)])
        assert np.nanmax(off) < 1e-3 * np.ptp(entry["range"])
    statuses = [unpacked(s["data"], "u1") for s in page.data["status"]]
    words = [[page.data["kinds"][k][1] for k in found] for found in statuses]
    assert [w.count("outside the mask") for w in words] == [0, 1]
    assert "sub-<1>&_model-mapmri_dwimap.json" in page.links
    fails(capsys, ["report", folder, b], "--force")


def test_fits_that_cannot_be_compared(saved, tmp_path, capsys):
    """Another grid, place, series or table: one line that names both."""
    folder, fit = saved
    few, data = fit.gtab[:60], fit.predict()[..., :60]
    source = "sub-<1>&_dwi.nii.gz"
    same = mapmri.MapmriModel(few, 2).fit(data)  # volumes left out
    table = mapmri.GradientTable(few.bvals, -few.bvecs[:, ::-1], tau=few.tau)
    for k, (text, other, affine, name) in enumerate(
        (
            ("shape", mapmri.MapmriModel(few, 2).fit(data[1:]), AFFINE, source),
            ("affines differ by 1", same, AFFINE + np.eye(4), source),
            (f"series: {source} and x.nii", same, AFFINE, "x.nii"),
            ("of the one, b = 0,", mapmri.MapmriModel(table, 2).fit(data), AFFINE, source),
        )
    ):
        save_fit(other, tmp_path / str(k), prefix="x", sources=[name], affine=affine)
        fails(capsys, ["report", folder, tmp_path / str(k)], text)
    save_fit(same, tmp_path / "same", prefix="x", affine=AFFINE)
    words = ["report", folder, tmp_path / "same"]
    assert command(*words, "--quiet --out", tmp_path / "c.html") == 0
    fails(capsys, [*words, "--dwi", tmp_path / "c.html"], "--dwi goes with one fit")


NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PROGRAM = """
window.addEventListener("load", () => {
  const out = {}, $ = (id) => document.getElementById(id);
  try {STEPS} catch (error) { out.error = String(error.stack); }
  const pre = document.createElement("pre");
  pre.id = "result"; pre.textContent = JSON.stringify(out);
  document.body.append(pre);
});
"""
ONE = """
  const planes = [...document.querySelectorAll(".plane")];
  const edges = () => planes.map((p) => [...p.querySelectorAll(".edge")].map((e) => e.textContent).join(""));
  const click = (canvas, x, y) => {
    const b = canvas.getBoundingClientRect();
    const clientX = b.left + (x + .5) / canvas.width * b.width, clientY = b.top + (y + .5) / canvas.height * b.height;
    canvas.dispatchEvent(new MouseEvent("click", { clientX, clientY, bubbles: true }));
  };
  const ink = (id) => {
    const c = $(id), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    let n = 0;
    for (let i = 3; i < d.length; i += 4) n += d[i] > 0;
    return n;
  };
  out.edges = edges();
  const axial = planes[0].querySelector("canvas");
  out.size = [axial.width, axial.height];
  click(axial, 1, 4);
  out.readout = $("readout").textContent;
  out.voxel = $("voxel-name").textContent;
  out.ink = ["signal", "propagator", "odf"].map(ink);
  axial.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  out.moved = $("readout").textContent;
  const slider = planes[0].querySelector("input");
  slider.value = 0; slider.dispatchEvent(new Event("input"));
  out.slid = $("readout").textContent;
  const before = axial.toDataURL();
  $("choice").value = 3; $("choice").dispatchEvent(new Event("change"));
  out.linked = axial.toDataURL() !== before && document.querySelectorAll("#sheet canvas").length;
  $("convention").value = "neurological"; $("convention").dispatchEvent(new Event("change"));
  out.neurological = edges();
  $("next").click();
  out.outlier = $("voxel-name").textContent;
  out.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const named = (e) => (e.labels && e.labels.length) || e.getAttribute("aria-label") || e.textContent.trim();
  out.unlabelled = [...document.querySelectorAll("input, select, button")].filter((e) => !named(e)).length;
"""
TWO = """
  const canvas = (k) => document.querySelectorAll("#sheet canvas")[k];
  const slider = document.querySelector(".plane input"), before = [0, 1, 2].map((k) => canvas(k).toDataURL());
  out.first = $("readout").textContent;
  slider.value = 0; slider.dispatchEvent(new Event("input"));
  out.linked = [0, 1, 2].map((k) => canvas(k).toDataURL() !== before[k]);
  const ink = (c) => [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data.slice(0, 3)];
  out.colours = [1, 2].map((k) => ink(canvas(k)));
  $("choice").value = 9; $("choice").dispatchEvent(new Event("change"));
  out.second = $("readout").textContent;
  document.querySelector(".plane canvas").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  out.maps = document.querySelectorAll("#sheet canvas").length;
"""


def driven(path, steps, folder, size="1280,900"):
    """What steps that drive a page in Chromium wrote into its `result`."""
    page, script = folder / "driven.html", PROGRAM.replace("STEPS", steps)
    text = path.read_text(encoding="utf-8")
    text = text.replace("<script type=", f"<script>{script}</script><script type=", 1)
    page.write_text(text, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
               page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    out = json.loads(html.unescape(found[1]))
    assert "error" not in out, out.get("error")
    return out


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the comparison's script is not run")
def test_the_script_works_on_two_fits(pair, tmp_path):
    """One slider moves A, B and the difference; the readout has the three values of one index."""
    b, _, page = pair
    out = driven(b / "comparison.html", TWO, tmp_path)
    assert out["linked"] == [True, True, True]
    names = ("RTOP1/3, A", "RTOP1/3, B ", "RTOP1/3, B − A", "status, A", "status, B")
    assert all(name in out["first"] for name in names)
    assert "MSD" not in out["first"]
    assert all(f"MSD, {word}" in out["second"] for word in ("A", "B", "B − A"))
    assert out["colours"][0] != out["colours"][1]
    assert out["maps"] == len(page.data["maps"]) + 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the report's script is not run")
@pytest.mark.parametrize("size", ["1280,900", "500,844"])
def test_the_script_works(saved, page, tmp_path, size):
    """Letters, values under the cross, keys, sliders, linked maps, a voxel on click, outliers."""
    folder, fit = saved
    out = driven(folder / "report.html", ONE, tmp_path, size)
    expected = {"edges": ["RLPA", "RLIS", "PAIS"], "neurological": ["LRPA", "LRIS", "PAIS"]}
    expected |= {"size": [6, 6], "linked": len(page.data["maps"]) + 2, "unlabelled": 0}
    assert {name: out[name] for name in expected} == expected

    def at(text):
        return tuple(map(int, re.search(r"oxel \((\d+), (\d+), (\d+)\)", text).groups()))

    place = at(out["readout"])
    shown = [float(x) for x in re.search(r"x (\S+), y (\S+), z (\S+) mm", out["readout"]).groups()]
    assert_allclose(shown, (AFFINE @ [*place, 1])[:3], atol=0.06)
    # Column 1 from the left, row 4 from the top of the radiological picture.
    view = views.view_of(fit.mask, "axial", index=int(place[2]), affine=AFFINE)
    numbers = view.cut(np.arange(fit.mask.size).reshape(fit.mask.shape))
    used = view.cut(np.broadcast_to(fit.mask.any(2)[..., None], fit.mask.shape))
    rows = numbers[used.any(1)][:, used.any(0)][::-1]
    assert np.unravel_index(rows[4, 1], fit.mask.shape) == place
    msd = float(re.search(r"MSD (\S+) µm²", out["readout"])[1])
    assert msd == pytest.approx(fit.msd()[place] * 1e6, rel=1e-3)
    assert at(out["voxel"]) == place
    assert min(out["ink"]) > 5000
    step = np.array(at(out["moved"])) - place
    assert (AFFINE[:3, :3] @ step).tolist() == [-2, 0, 0], "to the right lies the patient's left"
    assert at(out["slid"])[2] == 0
    assert at(out["outlier"]) == (4, 4, 1)
    assert "an outlier" in out["outlier"]
    assert out["overflow"] <= 0


@pytest.mark.nojit
def test_methods_name_what_was_done_and_no_more():
    cites = {}
    for mode in references.MODES.values():
        text, bibtex = references.methods(references.defaults(mode))
        assert f"mode {mode};" in text
        cites[mode] = set(re.findall(r"@article\{(\w+),", bibtex))
        assert all(references.REFERENCES[key].short in text for key in cites[mode])
    assert cites["MAP+"] - cites["MAP"] == {"delahaije2020"}
    assert cites["MAPL"] - cites["MAP"] == {"fick2016"}
    mapl = references.defaults("MAPL")
    text, bibtex = references.methods(mapl | {"laplacian": "gcv"})
    assert "generalised cross-validation" in text
    assert "craven1978" in bibtex
    assert "among 0.1, 1" in references.methods(mapl | {"laplacian": [0.1, 1.0]})[0]
    static = {"static_diffusivity": 7e-4, "bval_threshold": None}
    text, _ = references.methods(mapl | static)
    assert "tensor was estimated from all volumes. The scale of the basis was that of a" in text
    entries = references.bibtex()
    assert entries.count("@article") == len(references.REFERENCES)
    assert entries.count("{") == entries.count("}")


def test_cite(saved, capsys):
    for words, *expected in (
        ([saved[0]], "mode MAPL;", "@article{craven1978"),
        (["--mode MAP+"], "sum of squares"),
        ([], references.bibtex()),
    ):
        assert command("cite", *words) == 0
        out = capsys.readouterr().out
        assert all(text in out for text in expected)
    fails(capsys, ["cite", saved[0], "--mode MAP"], "--mode MAP goes without DIR")
