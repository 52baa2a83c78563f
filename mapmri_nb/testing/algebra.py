"""Properties 7 to 14: algebra of the indices, known answers, the path of the weights, positivity,
the Laplacian matrix, error bars. As in `invariants`.
"""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ..kernels import ordering
from . import truths
from .programs import Lacks, Program
from .properties import (
    LINEAR,
    PAPER,
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
)  # fmt: skip
from .strategies import EPS, TAU, Case, design, origin, random_rotation, unit

ANY_ORDER = st.sampled_from([2, 4, 6, 8, 10, 0])


@prop("7", order=ANY_ORDER)
def linearity(program: Program, case: Case) -> None:
    """RTOP, RTAP, RTPP, MSD, 1/QIV, E, P and ODF of f a + (1 - f) b are f times those of a plus (1
    - f) times those of b. Tolerance: 1e3 eps of the largest for each of the n functions; isotropic:
    times the condition of the map between the bases.
    """
    a, (mu, R), rng = case.coefficients(2), case.frame(), case.rng(6)
    f = rng.uniform(0, 1)
    fit = program.made(case.basis, np.vstack([a, f * a[0] + (1 - f) * a[1]]), mu, R)
    v = unit(rng.normal(size=(5, 3)))
    values = {name: index(program, fit, name)[:, None] for name in LINEAR}
    values |= {"E": program.predict(fit, 25 * v), "P": program.pdf(fit, 6e-3 * v)}
    values["ODF"] = program.odf(fit, v, 2)
    map_condition = np.linalg.cond(ordering.iso_to_aniso(case.order))
    bound = 1e3 * EPS * a.shape[1] * (map_condition if case.basis == "isotropic" else 1.0)
    off = {}
    for name, x in values.items():
        off[name] = np.max(np.abs(f * x[0] + (1 - f) * x[1] - x[2]) / np.abs(x).max(axis=0))
    within(", ".join(n for n in off if not off[n] <= bound), np.array(list(off.values())), bound)


@prop("8", order=ANY_ORDER)
def ranges(program: Program, case: Case) -> None:
    """NG, NG_par, NG_perp, PA, PA_DTI lie in [0, 1]; times 2 all lengths changes none [1e-10]."""
    a, (mu, R) = case.coefficients(2), case.frame()
    one, two = (program.indices(program.made(case.basis, a, k * mu, R)) for k in (1, 2))
    names = [name for name in one if name.startswith(("ng", "pa"))]
    if not names:
        raise Lacks("ng, pa")
    for name in names:
        within(name, np.maximum(np.maximum(-one[name], one[name] - 1), 0), 0.0)
        within(f"{name} of twice the lengths", one[name] ** 2 - two[name] ** 2, QUADRATURE)


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
    """Equal eigenvalues: PA_DTI = 0 and PA = 0 [1e-6, a root of 1 - cos^2]."""
    fit = program.made("anisotropic", np.ones((1, 1)), np.full(3, case.frame()[0][0]), np.eye(3))
    for name in ("pa_dti", "pa"):
        within(name, index(program, fit, name), 1e-6)


def golden(basis: str, vector: Any, want: dict[str, Any]) -> None:
    """A property of a printed vector: indices, E, P and ODFs."""

    def check(program: Program, case: Case) -> None:
        mu, a = vector
        fit = program.made(basis, (a / (a @ origin(6, basis)))[None], mu, np.eye(3))
        got = {**program.indices(fit), "E": program.predict(fit, truths.GOLDEN_Q)[:, 0]}
        got["P"] = program.pdf(fit, truths.GOLDEN_R)[:, 0]
        for s in (0, 2):
            got[f"odf{s}"] = program.odf(fit, truths.GOLDEN_V, s)[:, 0]
        off = {name: abs(got[name][0] / want[name] - 1) for name in got if name in want}
        values = np.array(list(off.values()))
        within(", ".join(n for n in off if not off[n] <= 1e-10), values, 1e-10)

    check.__name__ = f"golden_{basis}"
    check.__doc__ = "A printed vector of order 6, twelve digits. Tolerance: 1e-10."
    prop("8", seed=0, order=6, basis=basis)(check)


golden("anisotropic", truths.golden_a(), truths.GOLDEN_A)
golden("isotropic", truths.golden_b(), truths.GOLDEN_B)


@prop("9", laplacian=0.05, order=st.sampled_from([2, 4, 6]))
def path_of_weights(program: Program, case: Case) -> None:
    """At a larger weight the residual is no smaller and the Laplacian's norm no larger. The scale
    depends on no weight. Tolerance: the case's.
    """
    size, before = (case.signals**2).mean(1), None
    for weight in np.logspace(-2, 1.9, 5):
        fit = fitted(program, case, laplacian=float(weight), **PAPER)
        S0 = program.S0(fit)
        residual = ((case.signals - S0[:, None] * program.predict(fit, case.table.q)) ** 2).mean(1)
        norm = S0**2 * index(program, fit, "lapnorm")
        if before is not None:
            within("residual", np.maximum(0, before[0] - residual), case.tolerance * size)
            within("norm", np.maximum(0, norm - before[1]), case.tolerance * before[1])
        before = residual, norm


@prop("9", laplacian="gcv", basis="anisotropic", volumes=st.integers(60, 300))
def gcv_is_lowest(program: Program, case: Case) -> None:
    """The chosen weight's score n |y - S y|^2 / (n - tr S)^2 [Fick 2016, Eq. 15] is none higher
    than that of 200 weights from 2e-5 to 5 / mm. Tolerance: 1e-6.
    """
    fit = fitted(program, case, **PAPER)
    weights, (mu, R) = program.weight(fit), program.scales(fit)
    for v, y in enumerate(case.signals):
        M, L = design(case.table.q, case.fitted_order, mu[v], R[v])
        whitened = np.linalg.solve(np.linalg.cholesky(L), M.T)
        d, vectors = np.linalg.eigh(whitened @ whitened.T)
        d, z2 = np.maximum(d, 0), (vectors.T @ whitened @ y) ** 2
        grid = np.append(np.logspace(np.log10(2e-5), np.log10(5), 200), weights[v])[:, None]
        rest = y @ y - 2 * (z2 / (d + grid)).sum(1) + (d * z2 / (d + grid) ** 2).sum(1)
        score = rest / (len(y) - (d / (d + grid)).sum(1)) ** 2
        within("score", np.maximum(0, score[-1] / score[:-1].min() - 1), 1e-6)


@prop("10", positivity="global", order=st.sampled_from([2, 4, 6]), basis="anisotropic", voxels=1,
      laplacian=st.sampled_from([None, 0.05]), volumes=st.integers(60, 200))  # fmt: skip
def positive_everywhere(program: Program, case: Case) -> None:
    """With positivity="global": P >= 0, |E| <= E(0), and the matrix E(q_i - q_j) is positive
    semidefinite (Bochner). Tolerance: 1e-7 of the largest, what an interior point leaves; 1e-10
    where the program certifies its coefficients.
    """
    fit, rng, mu = fitted(program, case), case.rng(6), case.mu[0]
    try:
        proved = bool(program.certified(program.coefficients(fit), case.fitted_order).all())
    except Lacks:
        proved = False
    bound = 1e-10 if proved else 1e-7
    P = program.pdf(fit, 2 * rng.normal(size=(2000, 3)) * mu)
    if not np.isfinite(P).all():
        raise NotAnExample
    within("negative P / largest P", np.maximum(0, -P.min() / P.max()), bound)
    q = rng.normal(size=(30, 3))
    pairs = (q[:, None] - q[None]).reshape(-1, 3) / (2 * pi * mu)
    E = program.predict(fit, pairs)
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


@prop("11", order=st.sampled_from([2, 4, 6]), basis="anisotropic")
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


@prop("12", order=st.sampled_from([2, 4, 6, 8, 0]))
def laplacian_matrix(program: Program, case: Case) -> None:
    """L is symmetric and positive definite, L(alpha mu) = alpha L(mu), and a'La is the norm that
    the program reports [Fick 2016, Eq. 10-13]. Tolerance: 1e-11 of the largest.
    """
    (mu, R), a, alpha = case.frame(), case.coefficients(2), case.rng(6).uniform(0.1, 10)
    L = program.laplacian(case.basis, case.order, mu)
    within("L - L'", L - L.T, 1e-11 * L.max())
    least = np.linalg.eigvalsh(L)[0]
    within("negative eigenvalue", max(0.0, -least), 0.0)
    scaled = program.laplacian(case.basis, case.order, alpha * mu)
    within("L(alpha mu)", scaled - alpha * L, 1e-11 * alpha * L.max())
    norm = index(program, program.made(case.basis, a, mu, R), "lapnorm")
    terms = np.einsum("vi,ij,vj->v", np.abs(a), np.abs(L), np.abs(a))
    within("a'La", np.einsum("vi,ij,vj->v", a, L, a) - norm, 1e-11 * terms)


@prop("13", order=st.sampled_from([2, 4]), volumes=st.integers(60, 200), laplacian=None,
      basis="anisotropic")  # fmt: skip
def bootstrap(program: Program, case: Case) -> None:
    """The same seed gives the same bits, another seed others; without residuals there is no spread
    [Whitcher 2008]. Tolerance of the last: the case's.
    """

    def run(seed: int, y: Array) -> dict[str, Array]:
        return program.spread(case.table, y, seed, **case.options)

    one, two, other = (run(s, case.signals) for s in (1, 1, 2))
    for name, sd in one.items():
        within(f"sd of {name}", gap(sd, two[name]), 0.0)
    if not any((one[name] != other[name]).any() for name in one):
        raise AssertionError("another seed gives the same")
    gaussian = case.replace(tissue="gaussian", noise="none", snr=1e9)
    reference = sizes(case.mu)
    exact = run(1, gaussian.signals)
    for name in LINEAR[:4]:
        within(f"sd of {name}", np.nan_to_num(exact[name]) / reference[name], 10 * case.tolerance)


@prop("14", basis="isotropic")
def rotation_of_isotropic_basis(program: Program, case: Case) -> None:
    """At a given scale no tensor is involved: RTOP, MSD, 1/QIV, norm of the Laplacian, PA, and the
    energy of each (j, l), are the same for directions Q g. Tolerance: the case's.
    """
    turned = case.table._replace(g=case.table.g @ random_rotation(case.rng(6)).T)
    one = fitted(program, case, static_diffusivity=0.7e-3)
    two = fitted(program, case, turned, static_diffusivity=0.7e-3)
    same_indices(program, case, one, two, names=("rtop", "msd", "qiv", "lapnorm", "pa"))
    try:
        a, b = (program.coefficients(fit) for fit in (one, two))
    except Lacks:
        return
    table = ordering.iso_index_table(case.fitted_order)[:, :2]
    for group in {tuple(row) for row in table.tolist()}:
        of = (table == group).all(1)
        energy = gap((a[:, of] ** 2).sum(1), (b[:, of] ** 2).sum(1))
        within(f"energy of {group}", energy, case.tolerance * np.nanmax(a**2, initial=0.0))
