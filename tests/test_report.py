"""The report: everything in one file, numbers that are the fit's, pictures that are pictures."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest
from mapmri_nb.cli import main

import mapmri_nb as mapmri
from mapmri_nb.indices import INDICES
from mapmri_nb.status import MEANING, Status

matplotlib = pytest.importorskip("matplotlib")

from mapmri_nb import io, report  # noqa: E402


class Page(html.parser.HTMLParser):
    """Text, images and table rows of a page; complains of tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.text, self.images, self.rows, self.stack, self.links = "", [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.links += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag not in ("meta", "br"):
            self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.stack):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a fit with an odd name, one voxel without signal, a known time."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(90, 3))
    g /= np.linalg.norm(g, axis=1)[:, None]
    b = np.repeat([0.0, 1000.0, 2000.0], 30)
    gtab = mapmri.GradientTable(b, g, big_delta=0.04, small_delta=0.01)
    series = np.exp(-b * (0.3e-3 + 1.4e-3 * g[:, 0] ** 2)) * np.linspace(80, 120, 24).reshape(
        4, 3, 2, 1
    )
    series += rng.normal(size=series.shape)
    series[1, 1, 1] = 0
    fit = mapmri.MapmriModel(gtab, radial_order=4, laplacian="gcv").fit(series)
    folder = tmp_path_factory.mktemp("fit")
    run = {
        "Seconds": {"Reading": 0.25, "Fitting": 1.5, "Writing": 2.0},
        "Threads": 2,
        "Slabs": 3,
        "FittedNow": 1,
    }
    io.save_fit(
        fit, folder, affine=np.eye(4), prefix="sub-<1>&", sources=["sub-<1>&_dwi.nii.gz"], run=run
    )
    return folder, fit


@pytest.fixture(scope="module")
def page(saved):
    path = report.write_report(saved[0])
    assert path == saved[0] / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_it_stands_alone(saved, page):
    """No script and nothing from elsewhere: pictures are in the page."""
    text = (saved[0] / "report.html").read_text(encoding="utf-8")
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"<script|https?://|@import|url\(", text)


def test_pictures_are_pictures(page):
    assert len(page.images) == len(INDICES) + 1 + 4 + 1
    for image in page.images:
        raw = base64.b64decode(image["src"].split(",")[1])
        pixels = matplotlib.image.imread(__import__("io").BytesIO(raw))
        assert pixels.shape[0] > 300
        assert pixels[..., :3].std() > 0.05, image["alt"]
    named = " ".join(image["alt"] for image in page.images)
    for words in (
        "RTOP^(1/3) (µm⁻¹)",
        "RTAP^(1/2) (µm⁻¹)",
        "MSD (µm²)",
        "RMSE",
        "NEGATIVE MASS",
        "status",
        "ODF",
        "Laplacian weight",
    ):
        assert words in named


def test_what_was_fitted_is_said(page):
    facts = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert facts["Model"] == "MAPL, anisotropic basis, radial order 4 (22 coefficients)"
    assert facts["Data"] == "sub-<1>&_dwi.nii.gz"
    assert "laplacian gcv" in facts["Options"]
    assert facts["Volume"] == "4 x 3 x 2, 24 voxels in the mask"
    assert facts["Measurements"] == "90 volumes: 30 b0, 30 at b = 1000, 30 at b = 2000 s/mm²"
    assert facts["Pulse timing"] == "Δ = 40 ms, δ = 10 ms, τ = 36.67 ms"
    assert mapmri.__version__ in facts["Software"]
    assert facts["Seconds"] == "reading 0.25, fitting 1.5, writing 2"
    assert facts["Fitting a voxel"].startswith("62500 µs")
    assert facts["Threads"] == "2"
    assert facts["Resumed"] == "1 of 3 slabs were fitted by the last run"


def test_numbers_are_those_of_the_fit(saved, page):
    rows = {row[0]: row for row in page.rows if len(row) == 6}
    _, fit = saved
    for label, values in (
        ("RTOP^(1/3)", np.cbrt(fit.rtop()) * 1e-3),
        ("MSD", fit.msd() * 1e6),
        ("NG PAR", fit.ng_par()),
    ):
        numbers = [float(x) for x in rows[label][1:4]]
        np.testing.assert_allclose(numbers, np.nanpercentile(values, (5, 50, 95)), rtol=1e-3)
    assert rows["RTPP"][4] == "µm⁻¹"
    assert rows["NG"][4] == ""
    assert rows["MSD"][5] == "mean squared displacement"


def test_status_has_a_legend(saved, page):
    _, fit = saved
    rows = {row[0].strip(): row for row in page.rows if len(row) == 4}
    for kind, count in zip(*np.unique(fit.status, return_counts=True), strict=True):
        assert rows[str(kind)][1] == str(count)
    (lost,) = [row for row in rows.values() if "no fit" in row[3]]
    assert lost[1] == "1"
    assert "no usable signal" in lost[3]


@pytest.mark.nojit
def test_every_flag_has_a_meaning():
    assert set(MEANING) == {flag for flag in Status if flag.value.bit_count() == 1}


def test_command(saved, tmp_path, capsys, monkeypatch):
    folder, _ = saved
    monkeypatch.setattr(report, "page", lambda saved: f"{saved.prefix} page")
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html"), "--quiet"]) == 0
    assert (tmp_path / "r.html").read_text() == "sub-<1>& page"
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 1
    assert "force" in capsys.readouterr().err
    assert (
        main(["report", str(folder), "--out", str(tmp_path / "r.html"), "--force", "--quiet"]) == 0
    )
    assert not [p for p in tmp_path.iterdir() if p.name != "r.html"]


def test_isotropic_and_fits_without_a_run_section(saved, tmp_path):
    """Indices without a meaning are left out; a JSON of another maker may lack the times."""
    _, fit = saved
    data = fit.predict()
    io.save_fit(
        mapmri.MapmriModel(fit.gtab, 4, basis="isotropic").fit(data), tmp_path, affine=np.eye(4)
    )
    (model,) = tmp_path.glob("*model-mapmri_dwimap.json")
    entries = json.loads(model.read_text())
    del entries["Run"], entries["Sources"]
    model.write_text(json.dumps(entries))
    page = Page(report.write_report(tmp_path).read_text(encoding="utf-8"))
    labels = [row[0] for row in page.rows]
    assert "NG" in labels
    assert "NG PAR" not in labels
    assert "not recorded" in page.text
