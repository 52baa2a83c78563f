"""The table of properties, and what their checks share."""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .programs import Lacks, Program
from .strategies import Case, Table

Array = NDArray[np.float64]
LENGTH = {"rtop": -3, "rtap": -2, "rtpp": -1, "msd": 2, "qiv": 5, "lapnorm": 1}  # powers
LINEAR = ("rtop", "rtap", "rtpp", "msd", "qiv")
PAPER: dict[str, Any] = {"laplacian_of": "signal", "S0": "free"}  # the published functional
QUADRATURE = 1e-10  # of the sum of absolute terms: some 1e6 roundings


class NotAnExample(Exception):
    """The case says nothing about this property."""


class Property(NamedTuple):
    """A property by its name, and what a case of it fixes."""

    number: str
    name: str
    check: Callable[[Program, Case], None]
    fixed: dict[str, Any]


PROPERTIES: dict[str, Property] = {}


def prop(number: str, **fixed: Any) -> Callable[[Any], Any]:
    """Enter a function into PROPERTIES."""

    def enter(check: Callable[[Program, Case], None]) -> Callable[[Program, Case], None]:
        name = check.__name__
        PROPERTIES[name] = Property(number, name, check, fixed)
        return check

    return enter


def check(program: Program, name: str, case: Case) -> None:
    """One property of one case; AssertionError where it does not hold."""
    PROPERTIES[name].check(program, case)


def within(what: str, off: Array | float, bound: Array | float) -> None:
    """Raise unless |off| <= bound everywhere; NaN fails."""
    off, bound = np.broadcast_arrays(np.abs(np.asarray(off, float)), np.asarray(bound, float))
    if not (off <= bound).all():
        worst = np.unravel_index(
            np.argmax(np.where(off <= bound, -1, np.nan_to_num(off, nan=np.inf))), off.shape
        )
        raise AssertionError(f"{what}: off by {off[worst]:.3g}, allowed {bound[worst]:.3g}")


def gap(a: Array, b: Array) -> Array:
    """A - b; 0 where both are NaN, a voxel that both refused."""
    return np.where(np.isnan(a) & np.isnan(b), 0.0, np.asarray(a) - np.asarray(b))


def fitted(program: Program, case: Case, table: Table | None = None, signals: Any = None,
           **options: Any) -> Any:  # fmt: skip
    """A fit of the case, with another table, other signals or more options."""
    return program.fit(
        case.table if table is None else table,
        case.signals if signals is None else signals,
        **(case.options | options),
    )


def index(program: Program, fit: Any, name: str) -> Array:
    """An index; 1/QIV for QIV, which may pass through zero."""
    values = program.indices(fit)
    if name not in values:
        raise Lacks(name)
    return 1 / values[name] if name == "qiv" else values[name]


def sizes(mu: Array) -> dict[str, Array]:
    """Sizes of the indices, those of a Gaussian at scales (V, 3); 1/QIV for QIV."""
    det = np.prod(mu, axis=1)
    origin_value = 1 / (np.sqrt(8 * pi**3) * det)
    return {
        "rtop": origin_value,
        "rtap": mu[:, 0] / (2 * pi * det),
        "rtpp": 1 / (np.sqrt(2 * pi) * mu[:, 0]),
        "msd": (mu**2).sum(1),
        "qiv": (mu**-2.0).sum(1) * origin_value / (4 * pi**2),
    }


def same_indices(
    program: Program, case: Case, one: Any, two: Any, alpha: float = 1.0, names: Any = None
) -> None:
    """Indices of two fits (or two sets of them, of all voxels or of the first ones) agree, lengths
    of the second multiplied by alpha.
    """
    reference = sizes(case.mu)
    first, second = (x if isinstance(x, dict) else program.indices(x) for x in (one, two))
    for name in [n for n in first if names is None or n in names]:
        a, b = first[name], second[name] * alpha ** LENGTH.get(name, 0)
        a, b = (1 / a, 1 / b) if name == "qiv" else (a, b)
        if name.startswith(("ng", "pa")):  # roots of 1 - cos^2: their squares keep the digits
            a, b = a**2, b**2
        size = np.maximum(np.abs(a), reference.get(name, np.full(1, 0.01))[: len(a)])
        within(name, gap(a / size, b / size), case.tolerance)
