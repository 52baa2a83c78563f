"""Hypothesis profiles, and the leg without the compiler: tests marked `nojit` alone."""

import os
import signal

import numpy as np
import phantom
import pytest
from hypothesis import HealthCheck, settings

quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=20, suppress_health_check=quiet
)
settings.register_profile("long", deadline=None, max_examples=500, suppress_health_check=quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(config, items):
    """Deselect, not skip: a skipped test would look like a missing dependency."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0"):
        return
    keep = [
        i for i in items if i.get_closest_marker("nojit") and not i.get_closest_marker("jit_only")
    ]
    config.hook.pytest_deselected(items=[i for i in items if i not in keep])
    items[:] = keep


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def scheme():
    """b (n,) and directions (n, 3) of three small shells."""
    return phantom.small_scheme()


@pytest.fixture(scope="module")
def gtab(scheme):
    """The table of `scheme`."""
    return phantom.table(*scheme)


@pytest.fixture(scope="module")
def data(scheme):
    """24 noisy crossings (24, n) on `scheme`."""
    return phantom.signals(24, *scheme, seed=7)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C as on a terminal: a run in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
