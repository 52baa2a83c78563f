"""One set of bits: an empty kernel cache and a warm one, another process, one thread and two."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import phantom
import pytest
from shell import fresh

import mapmri_nb as mapmri
from mapmri_nb import uncertainty

MODES = {k: v for k, v in phantom.MODES.items() if k.split()[-1] not in ("0.05", "array")}
DIRECTIONS = phantom.unit(np.random.default_rng(3).normal(size=(40, 3)))


def everything(threads):
    """Bits of every mode, basis and result, by name."""
    b, g = phantom.small_scheme()
    table, y = phantom.table(b, g), phantom.signals(200, b, g, seed=13)
    y[3], y[4, 5] = 0.0, np.nan
    y[5, 9] = -1.0  # no signal, missing, left out of the logarithm
    field = np.random.default_rng(5).normal(scale=0.02, size=(200, 3, 3))
    scale = np.array([0.009, 0.005, 0.004]), phantom.random_rotation(np.random.default_rng(7))
    high, plain = phantom.table(3 * b, g), mapmri.MapmriModel(table, 6)
    found = {}

    def keep(name, model, more=(), **given):
        fit = model.fit(y, threads=threads, **given)
        found.update({f"{name}: {key}": row for key, row in fit.rows().items()})
        for index in ("rtop", "msd", "lapnorm", *more):
            found[f"{name}: {index}"] = fit.index(index)
        return fit

    for basis in phantom.BASES:
        more = phantom.INDEX_NAMES if basis == "anisotropic" else ("rtap", "ng")
        for name, options in MODES.items():
            model = mapmri.MapmriModel(table, 4, basis=basis, **options)
            fit = keep(f"{name}, {basis}", model, more)
            found[f"{name}, {basis}: odf"] = fit.odf(DIRECTIONS)
            found[f"{name}, {basis}: pdf"] = fit.pdf(0.01 * DIRECTIONS)
    model = mapmri.MapmriModel(high, 8, laplacian=0.2, bval_threshold=3500)
    keep("moments in the own frame", model, ("pa",))
    keep("field", plain, ("pa",), grad_dev=field)
    keep("given scale", plain, scale=scale)
    for name in ("MAPL 0.2", "CMAPL 0.2"):
        model = mapmri.MapmriModel(table, 4, **phantom.MODES[name])
        spread = uncertainty.bootstrap(model, y[:20], n=50, threads=threads).sd
        found.update({f"{name}: bootstrap {key}": sd for key, sd in spread.items()})
    spread = uncertainty.posterior(mapmri.MapmriModel(table, 4), y[:20], threads=threads).sd
    return found | {f"posterior {key}": sd for key, sd in spread.items()}


@pytest.mark.timeout(1200)  # compiles everything
@pytest.mark.jit_only
def test_cold_warm_and_threads(tmp_path):
    # a leg of the tests that starts with an empty cache has it filled here, once
    own = Path(os.environ.get("NUMBA_CACHE_DIR") or tmp_path / "cache")
    folder = tmp_path / "cache" if any(own.rglob("*.nbi")) else own
    runs = []
    for name, threads in (("cold", 1), ("warm", 1), ("two threads", 2)):
        file = tmp_path / f"{name}.npz"
        fresh(__file__, file, json.dumps(threads), NUMBA_CACHE_DIR=folder)
        runs.append(dict(np.load(file)))
    for other in runs[1:]:
        assert other.keys() == runs[0].keys()
        same = {k: np.array_equal(rows, runs[0][k], equal_nan=True) for k, rows in other.items()}
        assert not [key for key in same if not same[key]]


if __name__ == "__main__":
    np.savez(sys.argv[1], **everything(json.loads(sys.argv[2])))
