"""Properties 7 to 14: algebra of the indices, known answers, the path of the weights, positivity,
the Laplacian matrix, error bars. As in `properties`.
"""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ..kernels import ordering
from . import properties, truths
from .programs import Lacks, Program
from .properties import QUADRATURE, NotAnExample, fitted, gap, index, prop, sizes, within
from .strategies import EPS, TAU, Array, Case, design, origin, unit

ANY_ORDER = st.sampled_from([2, 4, 6, 8, 10, 0])
SMALL_ORDER = st.sampled_from([2, 4, 6])
PAPER: dict[str, Any] = {"laplacian_of": "signal", "S0": "free"}  # the published functional


@prop("7", order=ANY_ORDER)
def linearity(program: Program, case: Case) -> None:
    """RTOP, RTAP, RTPP, MSD, 1/QIV, E, P and ODF of f a + (1 - f) b are f times those of a plus (1
    - f) times those of b. Tolerance: 1e3 eps of the largest for each of the n functions; isotropic:
    times the condition of the map between the bases; of the ODF, a sum over powers of v: times the
    condition of the map from Hermite polynomials to these.
    """
    a, (mu, R) = case.coefficients(2), case.frame()
    rng = case.rng(6)
    f, v = rng.uniform(0, 1), unit(rng.normal(size=(5, 3)))
    fit = program.made(case.basis, np.vstack([a, f * a[0] + (1 - f) * a[1]]), mu, R)
    values = {name: index(program, fit, name)[:, None] for name in sizes(mu[None])}
    values |= {"E": program.predict(fit, 25 * v), "P": program.pdf(fit, 6e-3 * v)}
    values["ODF"] = program.odf(fit, v, 2)
    bound = 1e3 * EPS * a.shape[1]
    if case.basis == "isotropic":
        bound *= np.linalg.cond(ordering.iso_to_aniso(case.order))
    for name, x in values.items():
        powers = ordering.hermite_to_monomial(case.order) if name == "ODF" else np.eye(1)
        size = np.linalg.cond(powers) * np.abs(x).max(axis=0)
        within(name, f * x[0] + (1 - f) * x[1] - x[2], bound * size)


@prop("8", order=ANY_ORDER)
def ranges(program: Program, case: Case) -> None:
    """NG, NG_par, NG_perp, PA, PA_DTI lie in [0, 1]; times 2 all lengths changes none [1e-10]."""
    a, (mu, R) = case.coefficients(2), case.frame()
    fits = [program.made(case.basis, a, k * mu, R) for k in (1, 2)]
    one, two = (properties.indices(program, fit) for fit in fits)
    names = [name for name in one if name.startswith(("ng", "pa"))]
    if not names:
        raise Lacks("ng, pa")
    for name, x in program.indices(fits[0]).items():
        if name in names:
            within(name, np.maximum(np.maximum(-x, x - 1), 0), 0.0)
            within(f"{name} of twice the lengths", one[name] - two[name], QUADRATURE)


@prop("8", tissue="gaussian", noise="none", snr=1e9, laplacian=None, volumes=st.integers(60, 300),
      basis="anisotropic")  # fmt: skip
def one_gaussian(program: Program, case: Case) -> None:
    """One Gaussian without noise is exact at every order without a Laplacian: closed forms, NG = 0.
    Tolerance: the case's; of NG^2 = 1 - cos^2 its square and 1e3 eps.
    """
    values = program.indices(fitted(program, case))
    for v, (f, d, *_) in enumerate(case.mixtures):
        want = truths.mixture_truth(f, d, TAU)
        for name in [n for n in values if n != "pa"]:  # its K is the program's
            if name.startswith("ng"):
                within(name, values[name][v] ** 2, case.tolerance**2 + 1e3 * EPS)
            else:
                size = 1.0 if name == "pa_dti" else abs(want[name])
                within(name, values[name][v] - want[name], case.tolerance * size)


@prop("8", order=0, basis="anisotropic")
def ball_is_isotropic(program: Program, case: Case) -> None:
    """Equal eigenvalues: PA_DTI^2 = PA^2 = 0 [1e-12]."""
    fit = program.made("anisotropic", np.ones((1, 1)), np.full(3, case.frame()[0][0]), np.eye(3))
    for name in ("pa_dti", "pa"):
        within(name, index(program, fit, name), 1e-12)


def golden(basis: str, vector: tuple[Array, Array], want: dict[str, Any]) -> None:
    """Enter the property of a printed vector: indices, E, P and ODFs."""

    def check(program: Program, case: Case) -> None:
        mu, a = vector
        fit = program.made(basis, (a / (a @ origin(6, basis)))[None], mu, np.eye(3))
        got = {**program.indices(fit), "E": program.predict(fit, truths.GOLDEN_Q)[:, 0]}
        got["P"] = program.pdf(fit, truths.GOLDEN_R)[:, 0]
        got |= {f"odf{s}": program.odf(fit, truths.GOLDEN_V, s)[:, 0] for s in (0, 2)}
        for name in got.keys() & want.keys():
            within(name, got[name] / want[name] - 1, 1e-10)

    check.__name__ = f"golden_{basis}"
    check.__doc__ = "A printed vector of order 6, twelve digits. Tolerance: 1e-10."
    prop("8", seed=0, order=6, basis=basis)(check)


golden("anisotropic", truths.golden_a(), truths.GOLDEN_A)
golden("isotropic", truths.golden_b(), truths.GOLDEN_B)


# ---------------------------------------------------------------- 9: weights


@prop("9", laplacian=0.05, order=SMALL_ORDER)
def path_of_weights(program: Program, case: Case) -> None:
    """At a larger weight the residual is no smaller and the Laplacian's norm no larger. The scale
    depends on no weight. Tolerance: the case's.
    """
    size = (case.signals**2).mean(1)
    least, most = np.zeros(case.voxels), np.full(case.voxels, np.inf)
    for weight in np.logspace(-2, 1.9, 5):
        fit = fitted(program, case, laplacian=float(weight), **PAPER)
        S0 = program.S0(fit)
        residual = ((case.signals - S0[:, None] * program.predict(fit, case.table.q)) ** 2).mean(1)
        norm = S0**2 * index(program, fit, "lapnorm")
        within("residual", np.maximum(0, least - residual), case.tolerance * size)
        within("norm", np.maximum(0, norm - most), case.tolerance * most)
        least, most = residual, norm


def gcv(M: Array, L: Array, y: Array, weights: Any) -> tuple[Array, Array]:
    """V = n |y - S y|^2 / (n - tr S)^2 [Fick 2016, Eq. 15] and tr S at weights (k,), each (k,)."""
    _, s, v = np.linalg.svd(np.linalg.solve(np.linalg.cholesky(L), M.T), full_matrices=False)
    t, w = v @ y, np.reshape(weights, (-1, 1))
    rest = np.sum((y - v.T @ t) ** 2) + ((t * w / (s**2 + w)) ** 2).sum(1)
    trace = (s**2 / (s**2 + w)).sum(1)
    return len(y) * rest / (len(y) - trace) ** 2, trace


@prop("9", laplacian="gcv", basis="anisotropic", volumes=st.integers(60, 300))
def gcv_is_lowest(program: Program, case: Case) -> None:
    """The chosen weight's score, that of `gcv`, is none higher than that of 200 weights from 2e-5
    to 5 / mm. Tolerance: 1e-6.
    """
    fit = fitted(program, case, **PAPER)
    weights, (mu, R) = program.weight(fit), program.scales(fit)
    for v, y in enumerate(case.signals):
        M, L = design(case.table.q, case.fitted_order, mu[v], R[v])
        score, _ = gcv(M, L, y, np.append(np.geomspace(2e-5, 5, 200), weights[v]))
        within("score", np.maximum(0, score[-1] / score[:-1].min() - 1), 1e-6)


# ---------------------------------------------------------------- 10, 11: positivity


@prop("10", positivity="global", order=SMALL_ORDER, basis="anisotropic", voxels=1,
      laplacian=st.sampled_from([None, 0.05]), volumes=st.integers(60, 200))  # fmt: skip
def positive_everywhere(program: Program, case: Case) -> None:
    """With positivity="global": P >= 0, |E| <= E(0), and the matrix E(q_i - q_j) is positive
    semidefinite (Bochner). Tolerance: 1e-7 of the largest, what an interior point leaves; 1e-10
    where the program certifies its coefficients.
    """
    fit, rng = fitted(program, case), case.rng(6)
    mu = case.mu[0]
    try:
        proved = bool(program.certified(program.coefficients(fit), case.fitted_order).all())
    except Lacks:
        proved = False
    bound = 1e-10 if proved else 1e-7
    P = program.pdf(fit, 2 * rng.normal(size=(2000, 3)) * mu)
    if not np.isfinite(P).all():
        raise NotAnExample
    within("negative P / largest P", np.maximum(0, -P.min() / P.max()), bound)
    q = rng.normal(size=(30, 3)) / (2 * pi * mu)
    E = program.predict(fit, (q[:, None] - q[None]).reshape(-1, 3))
    within("|E| - 1", np.maximum(0, np.abs(E) - 1), bound)
    within("eigenvalue", max(0.0, -np.linalg.eigvalsh(E.reshape(30, 30))[0]), 30 * bound)


def squares(order: int, rng: np.random.Generator) -> Array:
    """Anisotropic coefficients (1, n) of a random sum of squares times a Gaussian, E(0) = 1."""
    where, half = ordering.positions(ordering.monomials(order)), order // 2
    powers = np.array([p for p in np.ndindex(*[half + 1] * 3) if sum(p) <= half])
    polynomial = np.zeros(len(where))
    for odd in (0, 1):  # apart, so that the sum is even
        block = powers[powers.sum(1) % 2 == odd]
        factors = rng.normal(size=(len(block),) * 2)
        for (i, j), q in np.ndenumerate(factors @ factors.T):
            polynomial[where[tuple((block[i] + block[j]).tolist())]] += q
    c = np.linalg.solve(ordering.hermite_to_monomial(order), polynomial)
    return (c / (c @ origin(order, "anisotropic")))[None]


@prop("11", order=SMALL_ORDER, basis="anisotropic")
def certificates(program: Program, case: Case) -> None:
    """A sum of squares is certified [Dela Haije 2020]; with more than its least value subtracted it
    is not.
    """
    c, order = squares(case.order, case.rng(6)), case.order
    if not program.certified(c, order).all():
        raise AssertionError("a sum of squares has no certificate")
    mu = np.full(3, 5e-3)
    x = np.r_[np.zeros((1, 3)), case.rng(7).normal(size=(500, 3))] * mu
    gaussian = np.exp(-0.5 * ((x / mu) ** 2).sum(1)) / ((2 * pi) ** 1.5 * np.prod(mu))
    least = (program.pdf(program.made("anisotropic", c, mu, np.eye(3)), x)[0] / gaussian).min()
    c[0, 0] -= least * (1 + 1e-6) + 1e-3
    if c[0] @ origin(order, "anisotropic") > 0 and program.certified(c, order).any():
        raise AssertionError("a propagator with negative values has a certificate")


# ---------------------------------------------------------------- 12 to 14: the rest


@prop("12", order=st.sampled_from([2, 4, 6, 8, 0]))
def laplacian_matrix(program: Program, case: Case) -> None:
    """L is symmetric and positive definite, L(alpha mu) = alpha L(mu), and a'La is the norm that
    the program reports [Fick 2016, Eq. 10-13]. Tolerance: 1e-11 of the largest.
    """
    (mu, R), a = case.frame(), case.coefficients(2)
    alpha = case.rng(6).uniform(0.1, 10)
    L, scaled = (program.laplacian(case.basis, case.order, k * mu) for k in (1.0, alpha))
    within("L - L'", L - L.T, 1e-11 * L.max())
    within("negative eigenvalue", max(0.0, -np.linalg.eigvalsh(L)[0]), 0.0)
    within("L(alpha mu)", scaled - alpha * L, 1e-11 * alpha * L.max())
    norm = index(program, program.made(case.basis, a, mu, R), "lapnorm")
    terms = np.einsum("vi,ij,vj->v", np.abs(a), np.abs(L), np.abs(a))
    within("a'La", np.einsum("vi,ij,vj->v", a, L, a) - norm, 1e-11 * terms)


@prop("13", order=st.sampled_from([2, 4]), volumes=st.integers(60, 200), laplacian=None,
      basis="anisotropic")  # fmt: skip
def bootstrap(program: Program, case: Case) -> None:
    """The same seed gives the same bits, another seed others; without residuals there is no spread
    [Whitcher 2008]. Tolerance of the last: ten times the case's.
    """
    exact = case.replace(tissue="gaussian", noise="none", snr=1e9)
    runs = [(1, case), (1, case), (2, case), (1, exact)]
    one, two, other, none = (
        program.spread(c.table, c.signals, seed, **case.options) for seed, c in runs
    )
    for name, sd in one.items():
        within(f"sd of {name}", gap(sd, two[name]), 0.0)
    if not any((one[name] != other[name]).any() for name in one):
        raise AssertionError("another seed gives the same")
    for name, size in sizes(case.mu).items():
        if name == "qiv":  # its spread is of QIV, not 1/QIV
            continue
        within(f"sd of {name}", np.nan_to_num(none[name]) / size, 10 * case.tolerance)


@prop("14", basis="isotropic")
def rotation_of_isotropic_basis(program: Program, case: Case) -> None:
    """At a given scale no tensor is involved: RTOP, MSD, 1/QIV, norm of the Laplacian, PA, and the
    energy of each (j, l), are the same for directions Q g. Tolerance: the case's.
    """
    scale = {"static_diffusivity": 0.7e-3}
    fits = [fitted(program, case, **given, **scale) for given in ({}, properties.turned(case))]
    names = ("rtop", "msd", "qiv", "lapnorm", "pa")
    properties.same_indices(program, case, fits, names=names)
    try:
        a, b = (program.coefficients(fit) for fit in fits)
    except Lacks:
        return
    table = ordering.iso_index_table(case.fitted_order)[:, :2]
    for group in np.unique(table, axis=0):
        of = (table == group).all(1)
        energy = gap((a[:, of] ** 2).sum(1), (b[:, of] ** 2).sum(1))
        within(f"energy of {group}", energy, case.tolerance * np.nanmax(a**2, initial=0.0))
