"""The options of `MapmriModel`, checked once; errors name the option and its value."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks, scales
from .gradients import GradientTable
from .kernels._jit import n_threads
from .kernels.noise import MOST_COILS
from .kernels.ordering import MAX_ORDER

CHOICES: dict[str, tuple[str | bool | None, ...]] = {
    "basis": ("anisotropic", "isotropic"),
    "positivity": (None, "grid", "global"),
    "solver": ("auto", "osqp"),
    "laplacian_of": ("signal", "deviation"),
    "S0": ("fit", "free", "b0"),
    "scale": ("data", "tensor"),
    "noise": (None, "rician", "denoised"),
    "preset": (None, "paper"),
    "zero_is_missing": (True, False),
}
# option: by default, and by the published method (S0: "b0" with positivity)
PAPER: dict[str, tuple[Any, Any]] = {
    "bval_threshold": ("auto", 2100),
    "eigenvalue_threshold": (None, 1e-4),
    "laplacian_of": ("deviation", "signal"),
    "S0": ("fit", "free"),
    "scale": ("data", "tensor"),
    "noise": (None, None),
}


def checked(given: dict[str, Any], gtab: GradientTable) -> dict[str, Any]:
    """The options of a model for a table, as it keeps them: no preset, the threshold a number."""
    if given["preset"] == "paper":
        given = given | _paper(given)
    for name, allowed in CHOICES.items():
        if given[name] not in allowed:
            words = ", ".join(repr(word) for word in allowed if word is not None)
            raise ValueError(f"{name} must be one of {words}, not {given[name]!r}")
    order, coils = given["radial_order"], given["coils"]
    weight = given["laplacian"]
    if not (is_whole(order) and order % 2 == 0 and 0 <= order <= MAX_ORDER):
        raise ValueError(f"radial_order must be an even number, 0 to {MAX_ORDER}, not {order!r}")
    if not (is_whole(coils) and 1 <= coils <= MOST_COILS):
        raise ValueError(f"coils must be a whole number from 1 to {MOST_COILS}, not {coils!r}")
    if coils != 1 and given["noise"] is None:
        raise ValueError(f"coils = {coils} is for noise='rician' or 'denoised' alone")
    static, threshold = given["static_diffusivity"], given["bval_threshold"]
    _diffusivity("eigenvalue_threshold", given["eigenvalue_threshold"])
    _diffusivity("static_diffusivity", static)
    if static is not None and given["basis"] != "isotropic":
        raise ValueError(f"static_diffusivity = {static} is for basis='isotropic' alone")
    if isinstance(threshold, str) and threshold != "auto":
        raise ValueError(f"bval_threshold must be one of 'auto', not {threshold!r}")
    if threshold == "auto":
        threshold = scales.scale_threshold(gtab)
    elif threshold is not None:
        _positive("bval_threshold", threshold, "in s/mm2, 'auto' or None")
    weights = laplacian_weights(weight)
    if isinstance(weight, str):
        weight = "gcv"
    elif weight is not None:
        weight = weights.tolist() if np.ndim(weight) else float(weights[0])
    kept = {"radial_order": int(order), "laplacian": weight, "bval_threshold": threshold}
    kept |= {"coils": int(coils), "zero_is_missing": bool(given["zero_is_missing"])}
    return {name: kept.get(name, value) for name, value in given.items() if name != "preset"}


def _paper(given: dict[str, Any]) -> dict[str, Any]:
    """The options of the published method; an error where the caller asked for others."""
    paper = {name: value for name, (_, value) in PAPER.items()}
    paper["S0"] = "free" if given["positivity"] is None else "b0"
    for name, value in paper.items():
        if given[name] not in (PAPER[name][0], value):
            text = f"preset='paper' sets {name} = {value!r}; leave out {name} = {given[name]!r}"
            raise ValueError(text)
    return paper


def laplacian_weights(laplacian: Any) -> NDArray[np.float64]:
    """Laplacian weights for the kernels: none of them asks for GCV."""
    text = "laplacian must be None, a weight, 'gcv' or a sequence of weights"
    if laplacian is None:
        return np.zeros(1)
    if isinstance(laplacian, str) and laplacian.lower() == "gcv":
        return np.zeros(0)
    try:
        weights = np.atleast_1d(np.array(laplacian, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"{text}, not {laplacian!r}") from None
    if isinstance(laplacian, bool | str) or weights.ndim != 1 or weights.size == 0:
        raise ValueError(f"{text}, not {laplacian!r}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"laplacian must be finite and >= 0, in 1/mm, not {laplacian!r}")
    largest = float(weights.max())
    hint = f"Was it in 1/m? Then it is {largest / 1000:g} 1/mm: give that"
    checks.in_sense("laplacian", largest, 0.0, checks.MOST_WEIGHT, "1/mm", hint)
    return weights


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of any type but bool."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and float(value).is_integer()


def thread_count(threads: Any) -> int:
    """Threads to use where a caller asks for a number, or None."""
    if threads is not None and not (is_whole(threads) and threads >= 1):
        raise ValueError(f"threads must be a positive whole number, not {threads!r}")
    return n_threads(threads)


def _positive(name: str, value: Any, unit: str) -> None:
    if not (isinstance(value, numbers.Real) and math.isfinite(value) and float(value) > 0):
        raise ValueError(f"{name} must be a positive number, {unit}, not {value!r}")


def _diffusivity(name: str, value: Any) -> None:
    if value is None:
        return
    _positive(name, value, "in mm2/s")
    low, high = checks.DIFFUSIVITIES
    factor, unit = (1e-3, "um2/ms") if value > high else (1e6, "m2/s")
    hint = f"Was it in {unit}? Then it is {value * factor:g} mm2/s: give that"
    checks.in_sense(name, value, low, high, "mm2/s", hint)
