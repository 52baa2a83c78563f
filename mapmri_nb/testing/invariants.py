"""What must hold for every MAP-MRI program. Each property takes a `Program` and a `Case`, and
raises AssertionError with the deviation that it measured.

The number is that of the list in the documentation. Where two fits must agree, the bound is
`Case.tolerance`, a rule from the design's condition number; where an index must agree with an
integral of the program's own functions, it is a number of roundings of the sum of absolute terms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import pi
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from .programs import Lacks, Program
from .properties import (
    QUADRATURE,
    Array,
    NotAnExample,
    fitted,
    gap,
    index,
    prop,
    same_indices,
    sizes,
    within,
)
from .strategies import Case, random_rotation, unit

# ---------------------------------------------------------------- 1 to 4: the same measurement


@prop("1")
def rotation_of_directions(program: Program, case: Case) -> None:
    """Directions g and Q g with the same signals give the same indices. Tolerance: the case's."""
    turned = case.table._replace(g=case.table.g @ random_rotation(case.rng(6)).T)
    same_indices(program, case, fitted(program, case), fitted(program, case, turned))


@prop("2")
def scale_of_signal(program: Program, case: Case) -> None:
    """Signals c y, c from 1e-4 to 1e4, give the indices of y. Tolerance: the case's."""
    c = 10 ** case.rng(6).uniform(-4, 4)
    two = fitted(program, case, signals=c * case.signals)
    same_indices(program, case, fitted(program, case), two)


@prop("3")
def signs_of_directions(program: Program, case: Case) -> None:
    """E(-q) = E(q): g and -g give the same indices. Tolerance: the case's."""
    sign = case.rng(6).choice([-1.0, 1.0], (len(case.table.b), 1))
    two = fitted(program, case, case.table._replace(g=case.table.g * sign))
    same_indices(program, case, fitted(program, case), two)


@prop("3")
def order_of_samples(program: Program, case: Case) -> None:
    """Samples in another order give the same indices. Tolerance: the case's."""
    p, t = case.rng(6).permutation(len(case.table.b)), case.table
    two = fitted(program, case, t._replace(b=t.b[p], g=t.g[p]), case.signals[:, p])
    same_indices(program, case, fitted(program, case), two)


@prop("3", laplacian=st.sampled_from([0.05, None, 0.2]))  # the score of GCV knows the count
def doubled_samples(program: Program, case: Case) -> None:
    """All samples twice, at twice the weight, give the same indices. All b make the tensor, and
    with positivity the tensor the scale: a program may choose by the number of volumes. Tolerance:
    the case's.
    """
    options: dict[str, Any] = {"bval_threshold": None}
    if case.positivity is not None:
        options["scale"] = "tensor"
    t = case.table
    twice = t._replace(b=np.r_[t.b, t.b], g=np.vstack([t.g, t.g]))
    weight = 2 * case.laplacian if isinstance(case.laplacian, float) else case.laplacian
    y = np.hstack([case.signals] * 2)
    two = fitted(program, case, twice, y, laplacian=weight, **options)
    same_indices(program, case, fitted(program, case, **options), two)


@prop("3", volumes=st.integers(100, 300))
def missing_sample(program: Program, case: Case) -> None:
    """A sample that is NaN is as one that was not measured, all b making the tensor. Tolerance: the
    case's.
    """
    t, y = case.table, case.signals.copy()
    gone = int(case.rng(6).choice(np.flatnonzero(t.b > t.b0_threshold)))
    rest = np.arange(len(t.b)) != gone
    y[:, gone] = np.nan
    two = fitted(
        program, case, t._replace(b=t.b[rest], g=t.g[rest]), y[:, rest], bval_threshold=None
    )
    same_indices(program, case, fitted(program, case, signals=y, bval_threshold=None), two)


@prop("3")
def voxel_alone(program: Program, case: Case) -> None:
    """A voxel's indices do not depend on its neighbours. Tolerance: the case's."""
    whole = program.indices(fitted(program, case))
    alone = program.indices(fitted(program, case, signals=case.signals[:1]))
    same_indices(program, case, alone, {name: rows[:1] for name, rows in whole.items()})


@prop("4")
def units_of_q(program: Program, case: Case) -> None:
    """b alpha^2, thresholds along, and alpha times the weight: lengths are divided by alpha. The
    tensor's b and floor are given. Tolerance: the case's.
    """
    alpha, t = case.rng(6).uniform(0.8, 1.25), case.table
    scaled = t._replace(b=alpha**2 * t.b, b0_threshold=alpha**2 * t.b0_threshold)
    weight: Any = case.laplacian
    if weight not in (None, "gcv"):
        weight = (alpha * np.array(weight)).tolist()
    one = fitted(program, case, bval_threshold=None, eigenvalue_threshold=1e-6)
    two = fitted(program, case, scaled, laplacian=weight, bval_threshold=None,
                 eigenvalue_threshold=1e-6 / alpha**2)  # fmt: skip
    same_indices(program, case, one, two, alpha)


# ---------------------------------------------------------------- 5: indices of the fit's functions


class Rule(NamedTuple):
    """Gauss-Hermite nodes (k, 3) in the frame R at scales mu, and weights for polynomial x Gaussian."""

    points: Array
    weights: Array


def rule(count: int, scale: Array, axes: tuple[int, ...] = (0, 1, 2)) -> Rule:
    """Nodes x = scale t, and weights w exp(t^2) scale, along some axes; 0 along the others."""
    t, w = np.polynomial.hermite.hermgauss(count)
    w = w * np.exp(t**2)
    grids = np.meshgrid(*[t if k in axes else np.zeros(1) for k in range(3)], indexing="ij")
    weights = np.ones_like(grids[0])
    for k in axes:
        weights = weights * (w * scale[k]).reshape([-1 if i == k else 1 for i in range(3)])
    return Rule(np.stack(grids, -1).reshape(-1, 3) * scale, weights.ravel())


@lru_cache(maxsize=64)
def integrals(
    program: Program, case: Case
) -> list[tuple[dict[str, Array], dict[str, float], dict[str, float]]]:
    """Of each voxel: indices of the program, the same by quadrature of its own E and P in its frame
    [Ozarslan 2013, Eq. 36-58; Fick 2016, Eq. 10], and the sums of absolute terms.
    """
    fit, out = fitted(program, case), []
    n = case.fitted_order + 4
    indices = program.indices(fit)
    mu, R = program.scales(fit)
    for v in np.flatnonzero(np.isfinite(mu).all(1)):

        def P(r: Rule, v: Any = v) -> Array:
            return program.pdf(fit, r.points @ R[v].T)[v]

        want, size = {}, {}

        def put(name: str, terms: Array) -> None:
            want[name], size[name] = terms.sum(), np.abs(terms).sum()  # noqa: B023 - called within its own turn

        # by P: along a line, in a plane, in space; products of two have half the width
        line, plane, space = (rule(n, np.sqrt(2) * mu[v], a) for a in ((0,), (1, 2), (0, 1, 2)))
        put("rtap", line.weights * P(line))
        put("rtpp", plane.weights * P(plane))
        r2 = (space.points**2).sum(1)
        p = P(space)
        put("mass", space.weights * p)
        put("msd", space.weights * r2 * p)
        q = rule(n, 1 / (np.sqrt(2) * pi * mu[v]))
        E = program.predict(fit, q.points @ R[v].T)[v]
        put("rtop", q.weights * E)
        put("qiv", q.weights * (q.points**2).sum(1) * E)
        q = rule(n, 1 / (2 * pi * mu[v]))
        put("energy", q.weights * program.predict(fit, q.points @ R[v].T)[v] ** 2)
        for name, axes in (("ng", (0, 1, 2)), ("ng_par", (0,)), ("ng_perp", (1, 2))):
            nodes = rule(n, mu[v], axes)
            p = P(nodes)
            g = np.exp(-((nodes.points / mu[v]) ** 2).sum(1) / 2)
            w = nodes.weights
            want[name] = 1 - (w @ (p * g)) ** 2 / ((w @ p**2) * (w @ g**2))  # NG^2
            size[name] = (w @ np.abs(p * g)) ** 2 / ((w @ p**2) * (w @ g**2))
            if name == "ng":
                put("parseval", w * p**2)
                put("lapnorm", 16 * pi**4 * w * (nodes.points**2).sum(1) ** 2 * p**2)
        out.append(({k: rows[v] for k, rows in indices.items()}, want, size))
    if not out:
        raise NotAnExample
    return out


def is_an_integral(name: str) -> Callable[[Program, Case], None]:
    def check(program: Program, case: Case) -> None:
        for got, want, size in integrals(program, case):
            if name not in got:
                raise Lacks(name)
            value = 1 / got[name] if name == "qiv" else got[name]
            value = value**2 if name.startswith("ng") else value
            within(name, value - want[name], QUADRATURE * size[name])

    check.__name__ = name
    return check


EQUATIONS = {
    "rtop": "RTOP = int E dq [Ozarslan 2013, Eq. 36]",
    "rtap": "RTAP = int P(x e1) dx [Ozarslan 2013, Eq. 40]",
    "rtpp": "RTPP = int P(y e2 + z e3) dy dz [Ozarslan 2013, Eq. 42]",
    "msd": "MSD = int r^2 P dr [Fick 2016, Eq. D1]",
    "qiv": "1 / QIV = int q^2 E dq [Hosseinbor 2013, Eq. 22]",
    "lapnorm": "norm = int (laplacian E)^2 dq = 16 pi^4 int r^4 P^2 dr [Fick 2016, Eq. 10]",
    "ng": "NG = sine of the angle between P and the basis' Gaussian [Ozarslan 2013, Eq. 58]",
    "ng_par": "NG_par = the same on the line along e1",
    "ng_perp": "NG_perp = the same in the plane normal to e1",
}
for _name, _equation in EQUATIONS.items():
    _check = is_an_integral(_name)
    _check.__doc__ = f"{_equation}. Tolerance: 1e-10 of the sum of absolute terms."
    prop("5", order=st.sampled_from([2, 4, 6, 8, 0]),
         **({"basis": "anisotropic"} if _name.startswith("ng") else {}))(_check)  # fmt: skip


@prop("5", order=st.sampled_from([2, 4, 6, 8, 0]))
def unit_mass(program: Program, case: Case) -> None:
    """Int P dr = E(0) = 1. Tolerance: 1e-10 of the sum of absolute terms."""
    E0 = program.predict(fitted(program, case), np.zeros((1, 3)))
    within("E(0)", E0[np.isfinite(E0)] - 1, QUADRATURE)
    for _, want, size in integrals(program, case):
        within("int P", want["mass"] - 1, QUADRATURE * size["mass"])


@prop("5", order=st.sampled_from([2, 4, 6, 8, 0]))
def parseval(program: Program, case: Case) -> None:
    """Int E^2 dq = int P^2 dr. Tolerance: 1e-10 of either."""
    for _, want, size in integrals(program, case):
        within("int E^2", want["energy"] - want["parseval"], QUADRATURE * size["energy"])


# ---------------------------------------------------------------- 6: directions


@prop("6")
def antipodes(program: Program, case: Case) -> None:
    """E(-q) = E(q), P(-r) = P(r). Tolerance: 1e-13 of the largest."""
    fit, v = fitted(program, case), unit(case.rng(6).normal(size=(10, 3)))
    for what, values, length in (("E", program.predict, 20.0), ("P", program.pdf, 8e-3)):
        here, there = values(fit, length * v), values(fit, -length * v)
        within(what, gap(here, there), 1e-13 * np.nanmax(np.abs(here), initial=0.0))


@prop("6", order=st.sampled_from([2, 4, 6, 0]))
def odf_integrals(program: Program, case: Case) -> None:
    """Over the sphere ODF_0 integrates to 1 and ODF_2 to MSD; 2 ODF_-2(e1) = RTAP [Ozarslan 2013,
    Eq. 32-40]. Tolerance: 1e-10 of the sum of absolute terms.
    """
    fit = fitted(program, case)
    z, w = (x[50:] for x in np.polynomial.legendre.leggauss(100))  # v and -v have one ODF
    phi = 2 * pi * np.arange(200) / 200
    s = np.sqrt(1 - z**2)[:, None]
    points = np.stack([s * np.cos(phi), s * np.sin(phi), z[:, None] + 0 * phi], -1).reshape(-1, 3)
    weights = np.repeat(w * 4 * pi / 200, 200)
    for moment, want in ((0, np.ones(case.voxels)), (2, index(program, fit, "msd"))):
        odf = program.odf(fit, points, moment)
        known = np.isfinite(odf).all(1)
        within(
            f"ODF_{moment}",
            (odf @ weights - want)[known],
            QUADRATURE * (np.abs(odf) @ weights)[known],
        )
    R, rtap = program.scales(fit)[1], index(program, fit, "rtap")
    for v in np.flatnonzero(np.isfinite(rtap)):
        size = max(abs(rtap[v]), sizes(case.mu)["rtap"][v])
        within("2 ODF_-2(e1)", 2 * program.odf(fit, R[v, :, :1].T, -2)[v, 0] - rtap[v], 1e-9 * size)
