"""What must hold for every MAP-MRI program. Each property takes a `Program` and a `Case`, and
raises AssertionError with the deviation that it measured; its docstring has equation, source and
tolerance, and its number is that of the list in the documentation.

Where two fits must agree, the tolerance is `Case.tolerance`, a rule from the design's condition
number; where an index must agree with an integral of the program's own functions, it is a number of
roundings of the sum of absolute terms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from math import pi, sqrt
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from .programs import Lacks, Program
from .strategies import Array, Case, random_rotation, unit

LENGTH = {"rtop": -3, "rtap": -2, "rtpp": -1, "msd": 2, "qiv": -5, "lapnorm": 1}  # of `indices`
QUADRATURE = 1e-10  # of the sum of absolute terms: some 1e6 roundings
Check = Callable[[Program, Case], None]


class NotAnExample(Exception):
    """The case says nothing about this property."""


class Property(NamedTuple):
    """A property, and what its cases fix."""

    number: str
    check: Check
    fixed: dict[str, Any]


PROPERTIES: dict[str, Property] = {}


def check(program: Program, name: str, case: Case) -> None:
    """One property of one case; AssertionError where it does not hold."""
    PROPERTIES[name].check(program, case)


def prop(number: str, **fixed: Any) -> Callable[[Check], Check]:
    """Enter a function into PROPERTIES."""

    def enter(one: Check) -> Check:
        PROPERTIES[one.__name__] = Property(number, one, fixed)
        return one

    return enter


def within(what: str, off: Array | float, bound: Array | float) -> None:
    """Raise unless |off| <= bound everywhere; NaN fails."""
    off, bound = np.broadcast_arrays(np.abs(np.asarray(off, float)), np.asarray(bound, float))
    if not (off <= bound).all():
        excess = np.where(off <= bound, -1, np.nan_to_num(off, nan=np.inf))
        worst = np.unravel_index(np.argmax(excess), off.shape)
        raise AssertionError(f"{what}: off by {off[worst]:.3g}, allowed {bound[worst]:.3g}")


def gap(a: Array, b: Array) -> Array:
    """A - b; 0 where both are NaN, a voxel that both refused."""
    return np.where(np.isnan(a) & np.isnan(b), 0.0, np.asarray(a) - np.asarray(b))


def fitted(program: Program, case: Case, **given: Any) -> Any:
    """A fit of the case, with another table, other signals or more options."""
    return program.fit(**({"table": case.table, "signals": case.signals} | case.options | given))


def indices(program: Program, fit: Any) -> dict[str, Array]:
    """The indices in a form that keeps their digits: 1/QIV, since QIV may pass through infinity,
    and squares of NG and PA, which are roots of 1 - cos^2.
    """
    square, given = ("ng", "ng_par", "ng_perp", "pa", "pa_dti"), program.indices(fit)
    return {n: 1 / x if n == "qiv" else x**2 if n in square else x for n, x in given.items()}


def index(program: Program, fit: Any, name: str) -> Array:
    """One of `indices`."""
    values = indices(program, fit)
    if name not in values:
        raise Lacks(name)
    return values[name]


def sizes(mu: Array) -> dict[str, Array]:
    """Sizes of the indices, those of a Gaussian at scales (V, 3); 1/QIV for QIV."""
    at_origin = 1 / (sqrt(8 * pi**3) * np.prod(mu, axis=1))
    return {
        "rtop": at_origin,
        "rtap": 1 / (2 * pi * mu[:, 1] * mu[:, 2]),
        "rtpp": 1 / (sqrt(2 * pi) * mu[:, 0]),
        "msd": (mu**2).sum(1),
        "qiv": (mu**-2.0).sum(1) * at_origin / (4 * pi**2),
    }


def same_indices(
    program: Program, case: Case, fits: list[Any], alpha: float = 1.0, names: Any = ()
) -> None:
    """`indices` of two fits agree, all or those of `names`; the second fit may have fewer voxels,
    and its lengths are multiplied by alpha.
    """
    reference, (one, two) = sizes(case.mu), (indices(program, fit) for fit in fits)
    for name in [name for name in two if not names or name in names]:
        b = two[name] * alpha ** LENGTH.get(name, 0)
        a = one[name][: len(b)]
        size = np.maximum(np.abs(a), reference.get(name, np.full(1, 0.01))[: len(a)])
        within(name, gap(a / size, b / size), case.tolerance)


# ---------------------------------------------------------------- 1 to 4: the same measurement


Told = tuple[dict[str, Any], dict[str, Any]]


def retold(number: str, **fixed: Any) -> Callable[[Callable[[Case], Told]], Check]:
    """Enter a function from a case to what two fits are given, whose indices must agree; lengths of
    the second are multiplied by its "alpha".
    """

    def enter(tell: Callable[[Case], Told]) -> Check:
        def one(program: Program, case: Case) -> None:
            kind = (case.laplacian, case.tissue, case.noise)
            if case.positivity and kind == ("gcv", "gaussian", "none"):
                raise NotAnExample  # any weight is lowest to rounding, and a solver leaves 1e-7
            first, second = tell(case)
            alpha = second.pop("alpha", 1.0)
            fits = [fitted(program, case, **given) for given in (first, second)]
            same_indices(program, case, fits, alpha)

        return prop(number, **fixed)(update_wrapper(one, tell))

    return enter


def taken(case: Case, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Some samples of the case."""
    t = case.table
    return {"table": t._replace(b=t.b[rows], g=t.g[rows]), "signals": case.signals[:, rows]}


def turned(case: Case) -> dict[str, Any]:
    """The directions turned by a random rotation."""
    return {"table": case.table._replace(g=case.table.g @ random_rotation(case.rng(6)).T)}


@retold("1")
def rotation_of_directions(case: Case) -> Told:
    """Directions g and Q g with the same signals give the same indices. Tolerance: the case's."""
    return {}, turned(case)


@retold("2")
def scale_of_signal(case: Case) -> Told:
    """Signals c y, c from 1e-4 to 1e4, give the indices of y. Tolerance: the case's."""
    return {}, {"signals": 10 ** case.rng(6).uniform(-4, 4) * case.signals}


@retold("3")
def signs_of_directions(case: Case) -> Told:
    """E(-q) = E(q): g and -g give the same indices. Tolerance: the case's."""
    sign = case.rng(6).choice([-1.0, 1.0], (len(case.table.b), 1))
    return {}, {"table": case.table._replace(g=case.table.g * sign)}


@retold("3")
def order_of_samples(case: Case) -> Told:
    """Samples in another order give the same indices. Tolerance: the case's."""
    return {}, taken(case, case.rng(6).permutation(len(case.table.b)))


@retold("3", laplacian=st.sampled_from([0.05, None, 0.2]))  # the score of GCV knows the count
def doubled_samples(case: Case) -> Told:
    """All samples twice, at twice the weight, give the same indices. All b make the tensor, and
    with positivity the tensor the scale: a program may choose by the number of volumes. Tolerance:
    the case's.
    """
    one: dict[str, Any] = {"bval_threshold": None}
    if case.positivity is not None:
        one["scale"] = "tensor"
    weight = case.laplacian if case.laplacian is None else 2 * np.array(case.laplacian)
    twice = taken(case, np.tile(np.arange(len(case.table.b)), 2))
    return one, one | twice | {"laplacian": weight if weight is None else float(weight)}


@retold("3", volumes=st.integers(100, 300))
def missing_sample(case: Case) -> Told:
    """A sample that is NaN is as one that was not measured, all b making the tensor. Tolerance: the
    case's.
    """
    t, y = case.table, case.signals.copy()
    gone = int(case.rng(6).choice(np.flatnonzero(t.b > t.b0_threshold)))
    y[:, gone] = np.nan
    all_b: dict[str, Any] = {"bval_threshold": None}
    return all_b | {"signals": y}, all_b | taken(case, np.delete(np.arange(len(t.b)), gone))


@retold("3")
def voxel_alone(case: Case) -> Told:
    """A voxel's indices do not depend on its neighbours. Tolerance: the case's."""
    return {}, {"signals": case.signals[:1]}


@retold("4")
def units_of_q(case: Case) -> Told:
    """b alpha^2, thresholds along, and alpha times the weight: lengths are divided by alpha. The
    tensor's b and floor are given. Tolerance: the case's.
    """
    alpha, t = case.rng(6).uniform(0.8, 1.25), case.table
    weight: Any = case.laplacian
    if weight not in (None, "gcv"):
        weight = (alpha * np.array(weight)).tolist()
    one: dict[str, Any] = {"bval_threshold": None, "eigenvalue_threshold": 1e-6}
    table = t._replace(b=alpha**2 * t.b, b0_threshold=alpha**2 * t.b0_threshold)
    floor = {"eigenvalue_threshold": 1e-6 / alpha**2}
    return one, one | floor | {"table": table, "laplacian": weight, "alpha": alpha}


# ---------------------------------------------------------------- 5: indices of the fit's functions


class Integral(NamedTuple):
    """`factor` times the integral of |x|^power F^square along some axes of the voxel's frame, F
    being the program's P ("pdf") or E ("predict").
    """

    equation: str
    of: str = "pdf"
    axes: tuple[int, ...] = (0, 1, 2)
    power: int = 0
    square: int = 1
    factor: float = 1.0


BENDING: dict[str, Any] = {"power": 4, "square": 2, "factor": 16 * pi**4}
INTEGRALS = {
    "rtop": Integral("RTOP = int E dq [Ozarslan 2013, Eq. 36]", "predict"),
    "rtap": Integral("RTAP = int P(x e1) dx [Ozarslan 2013, Eq. 40]", axes=(0,)),
    "rtpp": Integral("RTPP = int P(y e2 + z e3) dy dz [Ozarslan 2013, Eq. 42]", axes=(1, 2)),
    "msd": Integral("MSD = int r^2 P dr [Fick 2016, Eq. D1]", power=2),
    "qiv": Integral("1 / QIV = int q^2 E dq [Hosseinbor 2013, Eq. 22]", "predict", power=2),
    "lapnorm": Integral(
        "norm = int (laplacian E)^2 dq = 16 pi^4 int r^4 P^2 dr [Fick 2016, Eq. 10]", **BENDING
    ),
    "ng": Integral("NG = sine of the angle between P and the basis' Gaussian [ibid., Eq. 58]"),
    "ng_par": Integral("NG_par = the same on the line along e1", axes=(0,)),
    "ng_perp": Integral("NG_perp = the same in the plane normal to e1", axes=(1, 2)),
    "unit_mass": Integral("int P dr = 1"),
    "unit_signal": Integral("E(0) = 1", "predict", axes=()),
}


def nodes(count: int, scale: Array, axes: tuple[int, ...] = (0, 1, 2)) -> tuple[Array, Array]:
    """Gauss-Hermite nodes x = scale t (k, 3) and weights w exp(t^2) scale along some axes, 0 along
    the others: exact for a polynomial of degree 2 count - 1 times exp(-(x / scale)^2).
    """
    t, w = np.polynomial.hermite.hermgauss(count)
    line, one = (t, w * np.exp(t**2)), (np.zeros(1), np.ones(1))
    along = [line if k in axes else one for k in range(3)]
    points = np.stack(np.meshgrid(*[a[0] for a in along], indexing="ij"), -1).reshape(-1, 3)
    weights = np.einsum("i,j,k->ijk", *[a[1] for a in along]).ravel()
    return points * scale, weights * np.prod(scale[list(axes)])


def integral(
    program: Program, fit: Any, order: int, v: int, one: Integral, angle: bool = False
) -> tuple[float, float]:
    """An integral in voxel v by quadrature, and the same of absolute terms; or, as `angle`, sin^2
    of the angle from F to the Gaussian of the scales.
    """
    mu, R = (x[v] for x in program.scales(fit))
    width = (1.0 if angle else sqrt(2 / one.square)) * (
        mu if one.of == "pdf" else 1 / (2 * pi * mu)
    )
    x, w = nodes(order + 4, width, one.axes)
    F = getattr(program, one.of)(fit, x @ R.T)[v]
    if angle:
        g = np.exp(-((x / mu) ** 2).sum(1) / 2)
        norm = (w @ F**2) * (w @ g**2)
        return 1 - (w @ (F * g)) ** 2 / norm, (w @ np.abs(F * g)) ** 2 / norm
    terms = one.factor * w * (x**2).sum(1) ** (one.power // 2) * F**one.square
    return terms.sum(), np.abs(terms).sum()


def voxels(program: Program, fit: Any) -> list[int]:
    """Voxels that were fitted."""
    found = np.flatnonzero(np.isfinite(program.scales(fit)[0]).all(1)).tolist()
    if not found:
        raise NotAnExample
    return found


def is_an_integral(name: str, one: Integral) -> None:
    """Enter the property that an index, or 1, is an integral."""
    angle = name.startswith("ng")

    def check(program: Program, case: Case) -> None:
        # NG is against the tensor's Gaussian
        tensor = {"scale": "tensor"} if angle and case.positivity else {}
        fit = fitted(program, case, **tensor)
        unit = name.startswith("unit")
        got = np.ones(case.voxels) if unit else index(program, fit, name)
        for v in voxels(program, fit):
            want, size = integral(program, fit, case.fitted_order, v, one, angle)
            within(name, got[v] - want, QUADRATURE * size)

    check.__name__ = name
    check.__doc__ = f"{one.equation}. Tolerance: 1e-10 of the sum of absolute terms."
    fixed: dict[str, Any] = {"basis": "anisotropic"} if angle else {}
    prop("5", order=st.sampled_from([2, 4, 6, 8, 0]), **fixed)(check)


for _name, _one in INTEGRALS.items():
    is_an_integral(_name, _one)


@prop("5", order=st.sampled_from([2, 4, 6, 8, 0]))
def parseval(program: Program, case: Case) -> None:
    """Int E^2 dq = int P^2 dr. Tolerance: 1e-10 of either."""
    fit, both = fitted(program, case), [Integral("", of, square=2) for of in ("predict", "pdf")]
    for v in voxels(program, fit):
        E2, P2 = (integral(program, fit, case.fitted_order, v, one)[0] for one in both)
        within("int E^2", E2 - P2, QUADRATURE * E2)


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
    Eq. 32-40]. Tolerance: 1e-10 of the sum of absolute terms; 1e-9 of RTAP.
    """
    fit, phi = fitted(program, case), 2 * pi * np.arange(200) / 200
    z, w = (x[50:] for x in np.polynomial.legendre.leggauss(100))  # v and -v have one ODF
    z, phi = np.repeat(z, 200), np.tile(phi, 50)
    points = np.stack([np.sqrt(1 - z**2) * x for x in (np.cos(phi), np.sin(phi))] + [z], 1)
    weights = np.repeat(w * 4 * pi / 200, 200)
    for moment, want in ((0, np.ones(case.voxels)), (2, index(program, fit, "msd"))):
        odf = program.odf(fit, points, moment)
        some, size = np.isfinite(odf).all(1), np.abs(odf) @ weights
        within(f"ODF_{moment}", (odf @ weights - want)[some], QUADRATURE * size[some])
    R, rtap = program.scales(fit)[1], index(program, fit, "rtap")
    for v in np.flatnonzero(np.isfinite(rtap)):
        size = max(abs(rtap[v]), sizes(case.mu)["rtap"][v])
        within("2 ODF_-2(e1)", 2 * program.odf(fit, R[v, :, :1].T, -2)[v, 0] - rtap[v], 1e-9 * size)
