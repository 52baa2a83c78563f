"""What a program is asked for, and adapters: mapmri_nb, its drop-in for DIPY, DIPY, cs_dmri."""

from __future__ import annotations

import importlib
import warnings
from math import pi
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mapmri_nb
from mapmri_nb.kernels import ordering

from .strategies import Array, Case, Table, design


class Lacks(Exception):
    """The program has no such thing."""


ASKED = "fit indices predict pdf odf scales coefficients weight S0 made laplacian certified spread"


class Program:
    """What the invariants ask. Inherit and write what the program has; the rest raises `Lacks` and
    is reported so.

    Lengths are in mm, rows are voxels, directions are in the frame of the b-vectors, coefficients
    in DIPY's order. A `fit` is whatever the program likes.

    Methods
    -------
    fit(table, signals, *, order, basis, laplacian, positivity, **options)
        Fit signals (V, n). basis "anisotropic" or "isotropic"; laplacian None, a weight in 1/mm, a
        tuple of them to choose from, or "gcv"; positivity None, "grid" or "global". Some invariants
        also give bval_threshold (s/mm2 or None), eigenvalue_threshold, static_diffusivity (mm2/s)
        and laplacian_of="signal", S0="free", scale="tensor" (the published penalty, E(0) fitted,
        the basis' scale that of the tensor). Other options: Lacks.
    indices(fit)
        Maps (V,) by the names rtop rtap rtpp msd qiv lapnorm ng ng_par ng_perp pa pa_dti.
    predict(fit, q)
        E (V, k) at q-vectors (k, 3) in 1/mm, E(0) = 1.
    pdf(fit, r)
        P (V, k) in 1/mm3 at displacements (k, 3).
    odf(fit, v, s)
        The integral over r of P(r v) r^(2 + s) (V, k) along unit vectors (k, 3).
    scales(fit)
        Mu (V, 3) of the basis and frames R (V, 3, 3), columns e1 e2 e3.
    coefficients(fit), weight(fit), S0(fit)
        Coefficients (V, n); Laplacian weights (V,) that the fit used; S0 (V,), of the signal S0 E.
    made(basis, coef, mu, R)
        A fit with coefficients (V, n) at one mu (3,) and R (3, 3), as if it had been fitted.
    laplacian(basis, order, mu)
        Laplacian matrix (n, n) in mm.
    certified(coef, order)
        Whether sums of squares prove P >= 0, of anisotropic coefficients (V, n): (V,) bool.
    spread(table, signals, seed, **options)
        Standard deviations (V,) of the indices by a bootstrap.
    """

    name: str
    cases: dict[str, Any] = {}  # noqa: RUF012 - fields of the cases that it can have

    def __getattr__(self, name: str) -> Any:
        if name not in ASKED.split():
            raise AttributeError(name)

        def lacks(*_: Any, **__: Any) -> None:
            raise Lacks(name)

        return lacks


def gradient_table(table: Table) -> mapmri_nb.GradientTable:
    """The table as mapmri_nb has it."""
    return mapmri_nb.GradientTable(table.b, table.g, tau=table.tau, b0_threshold=table.b0_threshold)


class Ours(Program):
    """mapmri_nb."""

    name = "mapmri_nb"
    pdf, odf = (staticmethod(getattr(mapmri_nb.MapmriFit, name)) for name in ("pdf", "odf"))
    scales, coefficients = attrgetter("mu", "R"), attrgetter("coef")
    weight, S0 = attrgetter("laplacian_weight"), attrgetter("S0")

    def fit(self, table: Table, signals: Array, *, order: int, **options: Any) -> Any:
        return mapmri_nb.MapmriModel(gradient_table(table), order, **options).fit(signals)

    def indices(self, fit: Any) -> dict[str, Array]:
        skip = mapmri_nb.indices.ANISOTROPIC_ONLY if fit.isotropic else ()
        return {name: fit.index(name) for name in mapmri_nb.INDICES if name not in skip}

    def predict(self, fit: Any, q: Array) -> Array:
        return fit.predict(gradient_table(Table.of(q, fit.gtab.tau)), S0=1)

    def made(self, basis: str, coef: Array, mu: Array, R: Array) -> Any:
        n = len(coef)
        rows: dict[str, Any] = dict.fromkeys(("mu", "mu_tensor"), np.tile(mu, (n, 1)))
        rows |= {"coef": coef, "R": np.tile(R, (n, 1, 1)), "S0": np.ones(n)}
        rows |= {"laplacian_weight": np.full(n, np.nan), "status": np.zeros(n, np.int64)}
        options = {"radial_order": order_of(coef), "basis": basis}
        table = gradient_table(Table(np.zeros(1), np.zeros((1, 3))))
        return mapmri_nb.MapmriFit(rows, np.ones(n, bool), options, table)

    def laplacian(self, basis: str, order: int, mu: Array) -> Array:
        L = design(np.zeros((1, 3)), order, mu, np.eye(3))[1]
        T = ordering.iso_to_aniso(order) if basis == "isotropic" else np.eye(len(L))
        return T.T @ L @ T

    def certified(self, coef: Array, order: int) -> NDArray[np.bool_]:
        return mapmri_nb.sos.certify(coef, order).certified

    def spread(self, table: Table, signals: Array, seed: int, **options: Any) -> dict[str, Array]:
        model = mapmri_nb.MapmriModel(gradient_table(table), options.pop("order"), **options)
        return mapmri_nb.uncertainty.bootstrap(model, signals, n=8, seed=seed).sd


def each(name: str, **options: Any) -> Any:
    """A method that asks every voxel's fit for an attribute or a method's answer."""

    def ask(self: Program, fit: Any, *given: Any) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = (getattr(one, name) for one in fit)
            answers = [one(*given, **options) if callable(one) else one for one in found]
        return np.array(answers, dtype=float)

    return ask


class Dipy(Program):
    """dipy.reconst.mapmri, one voxel after the other."""

    name = "dipy"
    module = "dipy.reconst.mapmri"
    index_names = dict.fromkeys(("rtop", "rtap", "rtpp", "msd", "qiv", "ng"), "") | {
        "ng_par": "ng_parallel", "ng_perp": "ng_perpendicular",
        "lapnorm": "norm_of_laplacian_signal",
    }  # fmt: skip
    predict, pdf = each("predict", S0=1.0), each("pdf")
    coefficients, weight = each("mapmri_coeff"), each("lopt")

    def __init__(self) -> None:
        self.rooms = importlib.import_module(self.module)

    def gradients(self, table: Table) -> Any:
        from dipy.core.gradients import gradient_table as of_dipy

        times = {"big_delta": table.tau, "small_delta": 0.0, "b0_threshold": table.b0_threshold}
        return of_dipy(table.b, bvecs=table.g, btens="LTE", **times)

    def fit(
        self, table: Table, signals: Array, *, order: int, basis: str = "anisotropic",
        laplacian: Any = 0.2, positivity: str | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        weights = np.array(laplacian) if isinstance(laplacian, tuple) else laplacian or 0.2
        given: dict[str, Any] = {
            "anisotropic_scaling": basis == "anisotropic",
            "laplacian_regularization": laplacian is not None,
            "laplacian_weighting": "GCV" if laplacian == "gcv" else weights,
            "positivity_constraint": positivity is not None,
            "global_constraints": positivity == "global",
        }
        for name, value in options.items():
            if (name, value) in (("laplacian_of", "signal"), ("S0", "free"), ("scale", "tensor")):
                continue  # what it does
            if name == "bval_threshold":  # volumes strictly below it
                value = np.inf if value is None else np.nextafter(value, np.inf)
            elif name == "static_diffusivity":
                given["dti_scale_estimation"] = False
            elif name != "eigenvalue_threshold":
                raise Lacks(f"fit with {name}={value!r}")
            given[name] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = self.rooms.MapmriModel(self.gradients(table), radial_order=order, **given)
            return [model.fit(y) for y in signals]

    def indices(self, fit: Any) -> dict[str, Array]:
        skip = () if fit[0].model.anisotropic_scaling else ("ng", "ng_par", "ng_perp")
        names = self.index_names.items()
        return {k: each(name or k)(self, fit) for k, name in names if k not in skip}

    def odf(self, fit: Any, v: Array, s: float) -> Array:
        sphere = type("Sphere", (), {"vertices": v, "theta": np.arccos(np.clip(v[:, 2], -1, 1)),
                                     "phi": np.arctan2(v[:, 1], v[:, 0])})  # fmt: skip
        for one in fit:  # its matrices are kept by the sphere's identity
            getattr(one.model, "_cache", {}).clear()
        return each("odf", s=s)(self, fit, sphere)

    def scales(self, fit: Any) -> tuple[Array, Array]:
        return each("mapmri_mu")(self, fit), each("mapmri_R")(self, fit)

    def made(self, basis: str, coef: Array, mu: Array, R: Array) -> Any:
        table, scaling = self.gradients(Case().table), basis == "anisotropic"
        model = self.rooms.MapmriModel(
            table, radial_order=order_of(coef), anisotropic_scaling=scaling
        )
        return self._fits(model, basis, coef, mu, R)

    def _fits(self, model: Any, basis: str, coef: Array, mu: Array, R: Array) -> Any:
        return [self.rooms.MapmriFit(model, a, mu, R, 0.2) for a in coef]

    def laplacian(self, basis: str, order: int, mu: Array) -> Array:
        if basis == "isotropic":
            return self.rooms.mapmri_isotropic_laplacian_reg_matrix(order, mu[0])
        index = self.rooms.mapmri_index_matrix(order)
        parts = self.rooms.mapmri_STU_reg_matrices(order)
        return self.rooms.mapmri_laplacian_reg_matrix(index, mu, *parts)


class DropIn(Dipy):
    """mapmri_nb.dipy."""

    name = "dropin"
    module = "mapmri_nb.dipy"

    def gradients(self, table: Table) -> Any:
        return gradient_table(table)

    def _fits(self, model: Any, basis: str, coef: Array, mu: Array, R: Array) -> Any:
        whole, one = Ours().made(basis, coef, mu, R), np.ones((), bool)
        parts = [{k: rows[v : v + 1] for k, rows in whole.rows().items()} for v in range(len(coef))]
        fits = (mapmri_nb.MapmriFit(p, one, whole.options, whole.gtab) for p in parts)
        return [self.rooms.MapmriFit(model, fit) for fit in fits]


class CsDmri(Program):
    """cs_dmri's 3D-SHORE with its L2 penalty: an isotropic basis of one scale and its own order, in
    single precision. No Laplacian, so `laplacian` None alone; RTAP and RTPP are along its tensor.
    """

    name = "cs_dmri"
    cases = {"basis": "isotropic", "laplacian": None}  # noqa: RUF012 - read only

    def __init__(self) -> None:
        self.rooms = importlib.import_module("cs_dmri")

    def gradients(self, table: Table) -> Any:
        times = {"big_delta": table.tau, "small_delta": 0.0, "b0_threshold": table.b0_threshold}
        return self.rooms.GradientTable(table.b, table.g, **times)

    def fit(self, table: Table, signals: Array, *, order: int, **options: Any) -> Any:
        lacking = {k: v for k, v in options.items() if self.cases.get(k) != v}
        lacking |= {} if order else {"order": order}
        if lacking:
            raise Lacks("fit with " + ", ".join(f"{k}={v!r}" for k, v in lacking.items()))
        way = {"regularization": "l2", "bvec_frame": "image", "allow_single_shell": True}
        y, gtab = signals[:, None, None], self.gradients(table)
        mask = np.ones(y.shape[:3], bool)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = self.rooms.ShoreModel(gtab, radial_order=order, **way).fit(y, mask, n_threads=1)
        if fit.single_shell:
            raise Lacks("fit of a single shell")
        return fit, self.rooms.RestoreModel(gtab).fit(y, mask).principal_dir

    def indices(self, fit: Any) -> dict[str, Array]:
        maps = fit[0].microstructure(fit[1], units="mm", outlier_factor=None, n_threads=1)
        return {name: values.ravel().astype(float) for name, values in maps.items()}

    def predict(self, fit: Any, q: Array) -> Array:
        table = self.gradients(Table.of(np.vstack([np.zeros(3), q]), b0_threshold=0.0))
        E = fit[0].predict(table, clip=False, n_threads=1)[:, 0, 0].astype(float)
        return E[:, 1:] / E[:, :1]

    def scales(self, fit: Any) -> tuple[Array, Array]:
        count = len(fit[0].coefficients)
        u0 = 1 / (2 * pi * np.sqrt(fit[0].zeta))  # E ~ exp(-q^2 / (2 zeta))
        return np.full((count, 3), u0), np.tile(np.eye(3), (count, 1, 1))


def order_of(coef: Array) -> int:
    """Radial order of coefficients (..., n)."""
    return next(n for n in range(0, 42, 2) if ordering.n_coef(n) == coef.shape[-1])


PROGRAMS: dict[str, type[Program]] = {one.name: one for one in (Ours, DropIn, Dipy, CsDmri)}


def program(name: str) -> Program:
    """An adapter by its name in PROGRAMS, or as "module:Adapter"."""
    if name in PROGRAMS:
        return PROGRAMS[name]()
    module, _, adapter = name.partition(":")
    if not adapter:
        raise ValueError(f"program: {name!r} is none of {', '.join(PROGRAMS)}, nor module:Adapter")
    return getattr(importlib.import_module(module), adapter)()
