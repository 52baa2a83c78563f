"""One set of bits: an empty kernel cache and a warm one, another process, one thread and two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import phantom
import pytest

import mapmri_nb as mapmri
from mapmri_nb import uncertainty

MODES = {
    name: options
    for name, options in phantom.MODES.items()
    if name.split()[-1] not in ("0.05", "array")
}
DIRECTIONS = phantom.unit(np.random.default_rng(3).normal(size=(40, 3)))


def everything(threads):
    """Bits of every mode, basis and result, by name."""
    b, g = phantom.small_scheme()
    y = phantom.signals(200, b, g, seed=13)
    y[3], y[4, 5], y[5, 9] = (
        0.0,
        np.nan,
        -1.0,
    )  # no signal, a missing sample, a sample that is left out of the logarithm
    field = np.random.default_rng(5).normal(scale=0.02, size=(200, 3, 3))
    found = {}

    def keep(name, fit, more=()):
        found.update({f"{name}: {key}": row for key, row in fit.rows().items()})
        found.update(
            {f"{name}: {index}": fit.index(index) for index in ("rtop", "msd", "lapnorm", *more)}
        )

    for basis in phantom.BASES:
        for name, options in MODES.items():
            fit = mapmri.MapmriModel(phantom.table(b, g), 4, basis=basis, **options).fit(
                y, threads=threads
            )
            keep(
                f"{name}, {basis}",
                fit,
                phantom.INDEX_NAMES if basis == "anisotropic" else ("rtap", "ng"),
            )
            found[f"{name}, {basis}: odf"] = fit.odf(DIRECTIONS)
            found[f"{name}, {basis}: pdf"] = fit.pdf(0.01 * DIRECTIONS)
    high = mapmri.MapmriModel(phantom.table(3 * b, g), 8, laplacian=0.2, bval_threshold=3500)
    keep("moments in the own frame", high.fit(y, threads=threads), ("pa",))
    keep(
        "field",
        mapmri.MapmriModel(phantom.table(b, g), 6).fit(y, grad_dev=field, threads=threads),
        ("pa",),
    )
    scale = np.array([0.009, 0.005, 0.004]), phantom.random_rotation(np.random.default_rng(7))
    keep(
        "given scale",
        mapmri.MapmriModel(phantom.table(b, g), 6).fit(y, scale=scale, threads=threads),
    )
    for name in ("MAPL 0.2", "CMAPL 0.2"):
        model = mapmri.MapmriModel(phantom.table(b, g), 4, **phantom.MODES[name])
        spread = uncertainty.bootstrap(model, y[:20], n=50, threads=threads).sd
        found.update({f"{name}: bootstrap {key}": sd for key, sd in spread.items()})
    posterior = uncertainty.posterior(
        mapmri.MapmriModel(phantom.table(b, g), 4), y[:20], threads=threads
    ).sd
    found.update({f"posterior {key}": sd for key, sd in posterior.items()})
    return found


@pytest.mark.timeout(1200)  # compiles everything
@pytest.mark.jit_only
def test_cold_warm_and_threads(tmp_path):
    # a leg of the tests that starts with an empty cache has it filled here, once
    own = Path(os.environ.get("NUMBA_CACHE_DIR") or tmp_path / "cache")
    folder = tmp_path / "cache" if any(own.rglob("*.nbi")) else own
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    env["NUMBA_CACHE_DIR"] = str(folder)
    env["PYTHONPATH"] = os.pathsep.join(
        [str(Path(mapmri.__file__).parents[1]), str(Path(__file__).parent)]
    )
    runs = []
    for name, threads in (("cold", 1), ("warm", 1), ("two threads", 2)):
        file = tmp_path / f"{name}.npz"
        command = [sys.executable, __file__, str(file), json.dumps(threads)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(dict(np.load(file)))
    for other in runs[1:]:
        assert other.keys() == runs[0].keys()
        differing = [
            key for key in other if not np.array_equal(other[key], runs[0][key], equal_nan=True)
        ]
        assert not differing


if __name__ == "__main__":
    np.savez(sys.argv[1], **everything(json.loads(sys.argv[2])))
