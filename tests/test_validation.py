"""The cheap cases of validation/ with their tolerances: golden vectors, closed forms, integrals."""

import importlib
import sys
from pathlib import Path

import pytest

before = list(sys.path)
sys.path.append(str(Path(__file__).parents[1] / "validation"))
FULL, QUICK = ("golden", "gaussians"), ("integrals", "restricted")
CASES = [(c, name) for name in FULL + QUICK for c in importlib.import_module(name).cases()]
CASES = [(c, name) for c, name in CASES if c.name != "projection constants"]  # five seconds
sys.path[:] = before  # which the scripts put the checkout into


@pytest.mark.parametrize(("case", "group"), CASES, ids=[f"{g}: {c.name}" for c, g in CASES])
def test_case(case, group):
    found = case.run(group in QUICK)
    measured = found[0] if isinstance(found, tuple) else found
    assert case.passes(measured), f"{measured} against {case.tolerance}"
