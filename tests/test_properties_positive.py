"""
Invariants 10, 11 and 13 of reference section 10, positivity and error bars, on the examples of
test_properties.py.
"""

from math import sqrt

import numpy as np
import oracle
import phantom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom import MODES
from test_constrained import objective, solved_frame
from test_properties import VOXELS, bases, draws, few, modes, seeds
from test_sos import SIZES, random_squares
from test_uncertainty import closed_form

import mapmri_nb as mapmri
from mapmri_nb import sos, uncertainty

pytestmark = pytest.mark.jit_only
POSITIVE = [mode for mode in MODES if MODES[mode]["positivity"]]


@bases
@modes
@few
@given(draw=draws)
def test_10_certified_is_positive_and_bochner(basis, mode, draw):
    """
    P >= 0 on samples, |E| <= E(0), and the matrix E(q_i - q_j) positive semidefinite; MAP+ is
    always certified.
    """
    one, rng = draw.fit(basis, mode, *draw.case()), np.random.default_rng(draw.seed)
    proof, c = one.certificate(), one.hermite_coef()
    if MODES[mode]["positivity"] == "global":
        assert proof.certified.all()
    u = rng.standard_normal((2000, 3)) * (0.5 * sqrt(2 * one.order + 1))
    q = rng.standard_normal((40, 3))
    for v in np.flatnonzero(proof.certified):
        P = oracle.psi_matrix(one.order, one.mu[v], u * one.mu[v]) @ c[v]
        assert P.min() >= -1e-12 * P.max()
        pairs = (q[:, None] - q[None]).reshape(-1, 3) / (2 * np.pi * one.mu[v])
        E = oracle.phi_matrix(one.order, one.mu[v], pairs) @ c[v]
        assert np.abs(E).max() <= 1 + 1e-10
        assert np.linalg.eigvalsh(E.reshape(40, 40))[0] >= -1e-10


@bases
@pytest.mark.parametrize("mode", POSITIVE)
@few
@given(draw=draws)
def test_10_a_constraint_costs(basis, mode, draw):
    """At least the minimum with E(0) = 1 alone, dense, and no more where that one is certified."""
    b, g, y = draw.case()
    one = draw.fit(basis, mode, b, g, y, laplacian_of="signal", S0="b0")
    B = oracle.aniso_origin(one.order)
    for v in range(VOXELS):
        c, R = solved_frame(one, v)
        M, L = (
            oracle.phi_matrix(one.order, one.mu[v], one.gtab.qvecs @ R),
            oracle.laplacian_matrix(one.order, one.mu[v]),
        )
        stacked = np.vstack([M, np.sqrt(one.laplacian_weight[v]) * np.linalg.cholesky(L).T])
        free = oracle.constrained_lstsq(stacked, np.r_[y[v] / one.S0[v], np.zeros(len(L))], B)
        best, ours = (objective(one, v, y[v], a, R) for a in (free, c))
        assert ours >= best * (1 - 1e-9)
        if sos.certify(free, one.order).certified[0]:
            assert ours <= best * (1 + 1e-5)  # what the interior point promises


@given(seed=seeds, order=st.sampled_from(sorted(SIZES)))
def test_11_squares_are_certified_and_less_than_nothing_is_not(seed, order):
    rng = np.random.default_rng(seed)
    c = random_squares(order, rng)
    answer = sos.certify(c, order)
    assert answer.certified[0]
    assert answer.margin[0] >= -1e-7
    x = np.r_[np.zeros((1, 3)), rng.normal(size=(2000, 3))]
    p = (oracle.hermite3d(order, x) @ c) * np.exp(0.5 * np.sum(x * x, 1))
    c[0] -= p.min() * (1 + 1e-6) + 1e-3
    if c @ oracle.aniso_origin(order) > 0:  # else it is no propagator
        answer = sos.certify(c, order)
        assert not answer.certified[0]
        assert answer.margin[0] < 0


def spreadable(draw):
    """
    An order of which every scheme determines the coefficients, and not 0, where E(0) = 1 leaves
    nothing free.
    """
    return min(max(draw.order, 2), 4)


@bases
@modes
@settings(max_examples=3)
@given(draw=draws)
def test_13_seeds(basis, mode, draw):
    """The same seed, the same bits; another one, others."""
    b, g, y = draw.case()
    model = mapmri.MapmriModel(phantom.table(b, g), spreadable(draw), basis=basis, **MODES[mode])
    one, two, other = (
        uncertainty.bootstrap(model, y, n=8, seed=s).sd
        for s in (draw.seed, draw.seed, draw.seed + 1)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert (one["rtop"] != other["rtop"]).all()


@bases
@pytest.mark.parametrize("weight", [None, 0.05])
@few
@given(draw=draws)
def test_13_replicates(basis, weight, draw):
    """Without residuals no spread; with them that of the closed form, within 5 / sqrt(2 B)."""
    b, g, y = draw.case()
    small = draw._replace(order=spreadable(draw))
    one, B = small.fit(basis, "MAP", b, g, y, preset="paper"), 200
    model = mapmri.MapmriModel(one.gtab, one.order, basis=basis, laplacian=weight, preset="paper")
    if weight is None:
        exact = uncertainty.bootstrap(
            model, one.predict(), n=20, seed=draw.seed, scale=(one.mu, one.R)
        )
        for name, sd in exact.sd.items():
            assert (
                sd <= 1e-8 * np.maximum(np.abs(exact.mean[name]), name.startswith("ng"))
            ).all(), name
    found = uncertainty.bootstrap(
        model, y, n=B, seed=draw.seed, indices=["rtop", "rtap", "rtpp", "msd"]
    )
    for v in range(VOXELS):
        for name, (_, sd) in closed_form(found.fit, y[v], weight or 0.0, v=v).items():
            assert found.sd[name][v] == pytest.approx(sd, rel=5 / sqrt(2 * B)), name
