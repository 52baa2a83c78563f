"""Every property of `mapmri_nb.testing` at one small case, without the compiler too; exact zeros and NaN."""

import numpy as np
import pytest
from phantom import BASES, INDEX_NAMES

from mapmri_nb.kernels import ordering, scalars
from mapmri_nb.testing import PROPERTIES, Case, check
from mapmri_nb.testing.programs import Ours

pytestmark = pytest.mark.nojit


# twenty thousand directions there
SMALL = {name: one.fixed for name, one in PROPERTIES.items() if name != "odf_integrals"}
OF_BOTH = [
    (name, basis)
    for name, fixed in SMALL.items()
    for basis in BASES
    if fixed.get("basis", basis) == basis
]


@pytest.mark.parametrize(("name", "basis"), OF_BOTH)
def test_property_of_a_small_case(name, basis):
    fixed = {key: value for key, value in SMALL[name].items() if isinstance(value, str)}
    options = {"basis": basis, "order": 2 if name == "certificates" else 4} | fixed
    check(Ours(), name, Case(seed=1, voxels=1, volumes=60, **options))


def test_order_0():
    for name in ("lapnorm", "unit_mass", "linearity"):
        check(Ours(), name, Case(order=0, voxels=1))


def test_gaussian_has_no_non_gaussianity():
    """Zero exactly, not the 1e-8 of the difference form; NaN for NaN coefficients."""
    a = np.zeros((3, 50))
    a[::2, 0], a[1] = 1.0, np.nan
    a[2, 7] = 1e-12
    fit = Ours().made("anisotropic", a, np.array([9e-3, 5e-3, 4e-3]), np.eye(3))
    for name in ("ng", "ng_par", "ng_perp"):
        assert fit.index(name)[0] == 0.0
    for name in (*INDEX_NAMES, "pa"):
        assert np.isnan(fit.index(name)[1])
    assert fit.ng()[2] == pytest.approx(1e-12, rel=1e-12)
    wide = Ours().made("anisotropic", a[:1], np.full(3, 10.0), np.eye(3))
    assert wide.qiv() == pytest.approx((2 * np.pi) ** 3.5 * 1e5 / 3)  # 1/QIV below 1


def test_values_of_an_axis():
    want = [ordering.origin_values(np.array([[n, 0, 0]]))[0] for n in range(9)]
    np.testing.assert_allclose([scalars._axis_value(n) for n in range(9)], want, rtol=1e-14)
