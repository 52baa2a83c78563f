"""Pictures of the bundled samples and a screenshot of a report, as a journal would have them.

    python validation/pictures.py

Writes demo_catcord.png, odf_small101d.png and report_catcord.png (needs Chromium; left out
without) into results/.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import RESULTS
from mapmri_nb.cli import main

from mapmri_nb import plot, report
from mapmri_nb.data import SAMPLES, sample_dwi
from mapmri_nb.use.folder import read_fit

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def screenshot(browser, page, target, width, height):
    """The page as a browser shows it."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--virtual-time-budget=20000", f"--window-size={width},{height}",
               f"--screenshot={target}", page.resolve().as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def run():
    with tempfile.TemporaryDirectory() as scratch:
        saved = {}
        for name in SAMPLES:
            dwi = sample_dwi(name)
            mask = str(dwi).replace("_dwi.", "_mask.")
            out = Path(scratch, name)
            if main(["fit", str(dwi), "--mask", mask, "--out", str(out), "--quiet"]):
                sys.exit(f"{name}: the fit failed")
            saved[name] = read_fit(out)
        cord, brain = saved["catcord"], saved["small101d"]
        plot.overview(
            cord.fit, RESULTS / "demo_catcord.png", affine=cord.affine,
            title="Cat spinal cord ex vivo, MAPL, order 6", dpi=120,
        )  # fmt: skip
        plot.odf_slice(
            brain.fit, affine=brain.affine, background="rtop^(1/3)", units="um", dpi=150,
            figsize=(6, 6.5), filename=RESULTS / "odf_small101d.png",
        )  # fmt: skip
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            print("no Chromium: report_catcord.png is left as it is")
            return
        page = report.write_report(Path(scratch, "catcord"))
        screenshot(browser, page, RESULTS / "report_catcord.png", 1200, 1900)


if __name__ == "__main__":
    run()
