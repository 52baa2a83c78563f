"""Sizes, orders and the map between the bases, against comprehensions and quadrature."""

from itertools import pairwise

import numpy as np
import oracle
import pytest
from numpy.testing import assert_allclose

from mapmri_nb.kernels import ordering

pytestmark = pytest.mark.nojit  # nothing here is compiled
ORDERS = range(0, ordering.MAX_ORDER + 1, 2)


@pytest.mark.parametrize("order", ORDERS)
def test_tables(order):
    table, where = oracle.aniso_table(order), ordering.positions(ordering.index_table(order))
    assert np.array_equal(ordering.index_table(order), table)
    assert np.array_equal(ordering.iso_index_table(order), oracle.iso_table(order))
    assert np.array_equal(ordering.monomials(order), table)
    assert ordering.n_coef(order) == len(table)
    assert [where[tuple(row)] for row in table.tolist()] == list(range(len(table)))


@pytest.mark.parametrize("order", ORDERS)
def test_parity_classes(order):
    """The block order lists each class once, in DIPY's order inside it."""
    place, bounds = ordering.class_permutation(order), ordering.class_bounds(order)
    table = oracle.aniso_table(order)[place]
    assert sorted(place) == list(range(ordering.n_coef(order)))
    assert np.array_equal(ordering.block_index_table(order), table)
    assert (len(bounds), bounds[0], bounds[-1]) == (5, 0, len(place))
    seen = []
    for start, stop in pairwise(bounds):
        seen += {tuple(row) for row in (table[start:stop] % 2).tolist()}
        assert np.all(np.diff(place[start:stop]) > 0)
    assert len(seen) == len(set(seen)) == (4 if order else 1)  # three odd indices are impossible


@pytest.mark.parametrize("order", ORDERS)
def test_map_between_the_bases(order):
    t, back = ordering.iso_to_aniso(order), ordering.aniso_to_iso(order)
    assert_allclose(t, oracle.iso_to_aniso(order), atol=1e-11)  # the quadrature's error at order 10
    assert_allclose(back @ t, np.eye(len(t)), atol=1e-12)
    assert_allclose(t @ back, np.eye(len(t)), atol=1e-12)
    n, jlm = oracle.aniso_table(order).sum(1), oracle.iso_table(order)
    other = n[:, None] != jlm[:, 1] + 2 * jlm[:, 0] - 2
    assert np.abs(t[other]).max(initial=0.0) < 1e-13  # degree by degree
    norms, B = ordering.iso_norms(order), ordering.origin_values(ordering.index_table(order))
    assert_allclose(t.T @ t, np.diag(norms), atol=1e-12 * norms.max())
    assert_allclose(B, oracle.aniso_origin(order), rtol=1e-14)
    assert_allclose(ordering.iso_origin_values(order), t.T @ B, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_hermite_to_monomial(order, rng):
    x = rng.normal(size=(20, 3))
    powers = np.prod(x[:, None] ** ordering.monomials(order), axis=2)
    want = oracle.hermite3d(order, x) / np.exp(-(x**2).sum(1) / 2)[:, None]
    assert_allclose(powers @ ordering.hermite_to_monomial(order), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "function",
    ["index_table", "iso_index_table", "class_permutation", "iso_to_aniso", "aniso_to_iso"],
)
def test_shared_tables_cannot_be_changed(function):
    with pytest.raises(ValueError, match="read-only"):
        getattr(ordering, function)(4)[0] = 0
