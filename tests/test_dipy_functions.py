"""The drop-in's module-level functions against DIPY's, one by one."""

import inspect
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose

from mapmri_nb import dipy as ours
from mapmri_nb import directions

theirs = pytest.importorskip("dipy.reconst.mapmri")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*legacy.*:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:dipy"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ORDER, U0 = 6, 5e-3
MU = np.array([7e-3, 4e-3, 3.5e-3])
RNG = np.random.default_rng(5)
Q, R = RNG.normal(0, 30, (40, 3)), RNG.normal(0, 8e-3, (40, 3))
DIRECTIONS = directions.sphere(100).vertices
INDEX, ISO = theirs.mapmri_index_matrix(ORDER), theirs.mapmri_isotropic_index_matrix(ORDER)
LENGTHS = np.linalg.norm(Q, axis=1)
STU = theirs.mapmri_STU_reg_matrices(ORDER)
CALLS = [
    ("isotropic_scale_factor", MU**2),
    ("isotropic_scale_factor", np.array([5e-5, 1e-7, 1e-8])),
    ("mapmri_index_matrix", ORDER),
    ("b_mat", INDEX),
    ("b_mat", INDEX[4:9]),
    ("b_mat_isotropic", ISO),
    ("mapmri_phi_1d", 3, Q[:, 0], MU[0]),
    ("mapmri_phi_1d", 4, Q[:, 0], MU[0]),
    ("mapmri_psi_1d", 5, R[:, 0], MU[0]),
    ("mapmri_phi_matrix", ORDER, MU, Q),
    ("mapmri_psi_matrix", ORDER, MU, R),
    ("mapmri_odf_matrix", ORDER, MU, 2, DIRECTIONS),
    ("mapmri_odf_matrix", 4, MU, 0, DIRECTIONS),
    ("mapmri_isotropic_phi_matrix", ORDER, U0, Q),
    ("mapmri_isotropic_radial_signal_basis", 2, 4, U0, LENGTHS),
    ("mapmri_isotropic_M_mu_independent", ORDER, Q),
    ("mapmri_isotropic_M_mu_dependent", ORDER, U0, LENGTHS),
    ("mapmri_isotropic_psi_matrix", ORDER, U0, R),
    ("mapmri_isotropic_radial_pdf_basis", 2, 2, U0, np.linalg.norm(R, axis=1)),
    ("mapmri_isotropic_K_mu_independent", ORDER, R),
    ("mapmri_isotropic_K_mu_dependent", ORDER, U0, R),
    ("binomialfloat", 5.5, 2),
    ("mapmri_isotropic_odf_matrix", ORDER, U0, 2, DIRECTIONS),
    ("mapmri_isotropic_odf_sh_matrix", ORDER, U0, 2),
    ("mapmri_isotropic_laplacian_reg_matrix", ORDER, U0),
    ("mapmri_isotropic_laplacian_reg_matrix_from_index_matrix", ISO, U0),
    ("mapmri_isotropic_index_matrix", ORDER),
    ("create_rspace", 10, 0.02),
    ("create_rspace", 15, 0.02),
    ("delta", 3, 3),
    ("delta", 3, 4),
    ("map_laplace_u", 2, 2),
    ("map_laplace_t", 2, 4),
    ("map_laplace_s", 1, 5),
    ("map_laplace_s", 3, 3),
    ("mapmri_STU_reg_matrices", ORDER),
    ("mapmri_laplacian_reg_matrix", INDEX, MU, *STU),
]


@pytest.mark.parametrize(("name", "arguments"), [(n, a) for n, *a in CALLS])
def test_same_values(name, arguments):
    expected, found = getattr(theirs, name)(*arguments), getattr(ours, name)(*arguments)
    assert np.shape(found) == np.shape(expected)
    scale = float(np.abs(expected).max()) or 1.0
    single = name == "create_rspace"  # DIPY's points are of single precision
    assert_allclose(found, expected, rtol=1e-7 if single else 1e-8, atol=1e-10 * scale)


def test_every_public_function_is_there_and_takes_the_same_arguments():
    own = {n: f for n, f in vars(theirs).items() if getattr(f, "__module__", "") == theirs.__name__}
    names = [n for n, f in own.items() if inspect.isfunction(f) and not n.startswith("_")]
    assert len(names) > 30
    for name in names:
        taken = inspect.signature(getattr(ours, name)).parameters
        assert list(inspect.signature(own[name]).parameters) == list(taken), name


@pytest.mark.parametrize("seed", range(4))
def test_generalised_cross_validation(seed):
    """At least as good as DIPY's, by DIPY's own measure; the measures agree."""
    M = theirs.mapmri_phi_matrix(ORDER, MU, Q)
    L = theirs.mapmri_laplacian_reg_matrix(INDEX, MU, *STU)
    rng = np.random.default_rng(seed)
    data = np.exp(-0.5 * (2 * np.pi * Q * MU) ** 2 @ np.ones(3)) + 0.05 * rng.normal(size=len(Q))
    args, weights = (data, M, M.T @ M, len(M), L), np.linspace(0.05, 1, 20)
    cost = partial(ours.gcv_cost_function, args=args)
    for weight in (0.01, 0.2, 2.0):
        assert_allclose(cost(weight), theirs.gcv_cost_function(weight, args), rtol=1e-6)
    for name, more in (
        ("generalized_crossvalidation", {}),
        ("generalized_crossvalidation_array", {}),
        ("generalized_crossvalidation_array", {"weights_array": weights[::2]}),
    ):
        found = getattr(ours, name)(data, M, L, **more)
        expected = float(np.ravel(getattr(theirs, name)(data, M, L, **more))[0])
        assert np.ndim(found) == 0
        assert cost(found) <= cost(expected) * (1 + 1e-9)
    best = weights[np.argmin([cost(w) for w in weights])]
    assert ours.generalized_crossvalidation_array(data, M, L) == best
