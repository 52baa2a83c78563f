"""The vector type: NumPy's values at every width; too few lanes are an error."""

from typing import Any, NamedTuple

import numba
import numpy as np
import phantom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from shell import fresh

import mapmri_nb
from mapmri_nb.kernels import lanes
from mapmri_nb.kernels._jit import CONTRACT, addresses, call, kernel, stage
from mapmri_nb.kernels._memory import lay_out, places
from mapmri_nb.kernels.lanes import (
    WIDTH,
    copysign,
    every,
    fraction,
    octave,
    pick,
    power_of_two,
    rows,
    sqrt,
)
from mapmri_nb.kernels.linalg import block_product, exp, log, pad4

MAGIC = 6755399441055744.0  # 1.5 * 2^52
FIT = """
import sys
import numpy as np
from mapmri_nb.kernels import lanes
from test_lanes import fitted
np.save(sys.argv[1], fitted())
print(lanes.WIDTH)
"""


def fitted():
    """Coefficients and two maps (20, n) of MAPL with GCV."""
    b, g = phantom.small_scheme()
    y = phantom.signals(20, b, g, seed=1)
    fit = mapmri_nb.MapmriModel(phantom.table(b, g), 4, laplacian="gcv").fit(y, threads=1)
    return np.column_stack([fit.coef, fit.rtop(), fit.rmse()])


@kernel(fastmath=CONTRACT)
def arithmetic(A, out):
    for l in range(0, A.shape[1], WIDTH):
        a, b = rows(A, l), rows(out, l)
        x, y = a[0], a[1]
        kept = x
        x += 2.0
        x *= y
        b[0] = kept  # x += made a new value
        b[1] = -(x - y) / 3
        b[2] = pick(kept, 0.0, sqrt(pick(kept, 0.0, kept, 0.0)), y)
        b[3] = copysign(every(2.5), kept)
        b[4] = exp(y)
        b[5] = log(pick(y, 0.0, y, -y))
        b[6] = octave(y * y)
        b[7] = fraction(y * y)
        b[8] = power_of_two(MAGIC + 3.0 + 0.0 * y)


@pytest.mark.nojit
def test_arithmetic(rng):
    A, out = rng.normal(size=(2, 3 * lanes.GRAIN)), np.zeros((9, 3 * lanes.GRAIN))
    A[0, 5], A[0, 6] = np.nan, 0.0  # 0 is not above 0
    arithmetic(A, out)
    x, y = A
    e = np.floor(np.log2(y * y) + 0.5)  # y^2 in [sqrt(1/2), sqrt(2)) 2^e
    want = [x, -((x + 2) * y - y) / 3, np.where(x > 0, np.sqrt(np.abs(x)), y), np.copysign(2.5, x), np.exp(y),
            np.log(np.abs(y)), e, y * y / 2.0**e, np.full_like(y, 8.0)]  # fmt: skip
    assert_allclose(out, want, rtol=5e-16, atol=5e-16)


@pytest.mark.nojit
@pytest.mark.parametrize("function", [exp, log])
def test_exp_and_log_of_floats(function):
    for x in [1e-300, 1e-5, 0.5, 0.7071, 1.0, 1.4143, 3.0, 600.0]:
        want = getattr(np, function.__name__)(x)
        assert abs(function(x) - want) <= 2.3e-16 * max(abs(want), 1e-300)


@pytest.mark.nojit
def test_too_few_lanes_are_an_error():
    """Not a crash, nor silence: kernels are public."""
    with pytest.raises(IndexError, match="out of bounds"):
        arithmetic(np.ones((2, WIDTH + 1)), np.zeros((9, WIDTH + 1)))
    with pytest.raises(IndexError, match="out of bounds"):
        arithmetic(np.ones((2, WIDTH)), np.zeros((9, WIDTH - 1)))


@pytest.mark.jit_only
def test_lanes_side_by_side_only():
    """Lanes that are not side by side in memory: a vector would read its neighbours."""
    with pytest.raises(numba.TypingError, match="rows"):
        arithmetic(np.ones((WIDTH, 2)).T, np.zeros((9, WIDTH)))


@pytest.mark.nojit
def test_arrays_start_on_a_cache_line():
    for shape in [(3, 16), (7, 80), (2, 3, 16)]:
        a = lanes.empty(*shape)
        assert a.shape == shape
        assert a.ctypes.data % 64 == 0
        assert not a.any()
    assert [lanes.padded(k) for k in (0, 1, 16, 17, 48, 49)] == [16, 16, 16, 48, 48, 80]


def test_product_is_a_product(rng):
    """Any number of rows and terms, lanes in every place."""
    for m, k, n in [(1, 1, 16), (9, 7, 48), (252, 60, 80)]:
        A, X = rng.normal(size=(m, k)), rng.normal(size=(k, n))
        out = np.full((len(pad4(A)), n), np.nan)
        block_product(pad4(A), X, out)
        assert_allclose(out[:m], A @ X, atol=1e-13)


@pytest.mark.jit_only
def test_the_width_does_not_matter(tmp_path):
    """Compiled for a processor of four lanes: the same numbers to rounding."""
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    file = tmp_path / "fits.npy"
    assert int(fresh("-c", FIT, file, NUMBA_CACHE_DIR=tmp_path, **generic)) == 4
    assert_allclose(np.load(file), fitted(), rtol=1e-8, atol=1e-10)


class Inner(NamedTuple):
    array: Any
    number: Any


class Outer(NamedTuple):
    flag: Any
    pair: Any
    inner: Any
    x: Any
    last: Any


@stage()
def reads(t, out):
    """Something of every field of an `Outer` into out.array."""
    y, a = out.array, t.inner.array
    (first, turned) = t.pair
    y[0], y[1] = t.x, 10.0 if t.flag else 20.0
    y[2] = t.inner.number
    y[3], y[4] = first[2], turned[3, 1, 1]
    y[5], y[6] = a[1, 2, 0], a.size
    y[7] = a.itemsize
    y[8], y[9] = t.last[2], t.last.size
    y[10] = a.sum()


@kernel()
def told(function, arguments):
    """Calls a stage by its address."""
    call(function[0], (arguments[0], arguments[1]))


@pytest.mark.parametrize("flag", [True, False])
def test_fields_of_a_tuple_in_memory(flag):
    """Numbers, a flag, arrays of any strides, a tuple, and a named tuple inside."""
    a, last = np.arange(24.0).reshape(2, 3, 4), np.arange(5.0)[::-2]
    t = Outer(flag, (np.arange(7, 10), a.T), Inner(a[:, ::-1, 1:], -3), 0.5, last)
    got = Inner(np.zeros(11), 0)
    memories = [lay_out(t), lay_out(got)]
    told(addresses([reads], *(m.kind for m in memories)), places(memories))
    want = [0.5, 10 if flag else 20, -3, 9, a[1, 1, 3], a[1, 0, 1], 18, 8, last[2], 3]
    want.append(a[:, :, 1:].sum())
    assert_array_equal(got.array, want)
