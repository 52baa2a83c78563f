"""Several voxels as one number: a vector type for kernels that treat voxels alike, in arrays
[row][V] with the voxels last.

``a = rows(A, l)`` is columns l to l + WIDTH - 1 of A (rows, V): ``a[i]`` reads row i of these
voxels, ``a[i] = x`` writes it. In between there is arithmetic as with floats, which LLVM keeps in
vector registers: no loop over voxels that it must prove free of aliases before it may vectorise it,
which is four times faster in Cholesky and compiles in a fourth of the time. Without the compiler
the same code runs on NumPy arrays. What a lane holds never depends on WIDTH.
"""

import itertools
import math
import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, config
from numba.core.typing import signature as typing_signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin, models, register_model
from numpy.typing import NDArray

Array = NDArray[np.float64]
GRAIN = 16  # V is a multiple of it, and it of WIDTH


def _width() -> int:
    """Numbers in two registers of the processor compiled for: enough sums at once to hide what a
    multiply-add takes.
    """
    features = (
        config.CPU_FEATURES if config.CPU_FEATURES is not None else codegen.get_host_cpu_features()
    )
    return 16 if "+avx512f" in features else 8 if "+avx," in features else 4


WIDTH = _width()
_DOUBLE, _LONG = ir.DoubleType(), ir.IntType(64)
_VECTOR, _LONGS = ir.VectorType(_DOUBLE, WIDTH), ir.VectorType(_LONG, WIDTH)


def padded(voxels: int) -> int:
    """Lanes V for that many voxels: an odd multiple of GRAIN, since rows 2^k bytes apart would
    share cache sets.
    """
    grains = -(-voxels // GRAIN)
    return (grains + 1 - grains % 2) * GRAIN


def empty(*shape: int) -> Array:
    """Zeros that start on a cache line: a vector that straddles two lines costs twice as much to
    load.
    """
    size, line = math.prod(shape), 64
    raw = np.zeros(size + line // 8)
    start = -raw.ctypes.data % line // 8
    return raw[start : start + size].reshape(shape)


def columns(values: Array) -> Array:
    """Voxels first, (V, n), to voxels last, (n, V), zeros in the lanes that are left over."""
    out = empty(values.shape[1], padded(len(values)))
    out[:, : len(values)] = values.T
    return out


# ---- what kernels call: these bodies run without the compiler


class _Value(np.ndarray):
    """Numbers that behave as one: x += y makes a new value, and whoever else has the old one keeps
    it.
    """

    __iadd__, __isub__ = np.ndarray.__add__, np.ndarray.__sub__
    __imul__, __itruediv__ = np.ndarray.__mul__, np.ndarray.__truediv__


class _Rows:
    """Some columns of an array."""

    def __init__(self, block: Array) -> None:
        self.block = block

    def __getitem__(self, row: int) -> Array:
        return self.block[row].view(_Value).copy()

    def __setitem__(self, row: int, value: Array) -> None:
        self.block[row] = value

    def __len__(self) -> int:
        return len(self.block)


def rows(A: Array, l: int) -> Any:
    """Rows of voxels l to l + WIDTH - 1 of A (rows, V); IndexError where there are not so many."""
    if l + WIDTH > A.shape[1]:
        raise IndexError("index is out of bounds")
    return _Rows(A[:, l : l + WIDTH])


def every(x: float) -> Any:
    """The same number in every lane."""
    return np.full(WIDTH, x).view(_Value)


def sqrt(x: Any) -> Any:
    """Square root of every lane, or of a float."""
    return np.sqrt(x)


def copysign(x: Any, y: Any) -> Any:
    """The size of x with the sign of y, lane by lane."""
    return np.copysign(x, y)


def pick(a: Any, b: Any, x: Any, y: Any) -> Any:
    """Lane by lane, or of floats, x where a > b, else y (as well where one of them is NaN)."""
    return np.where(a > b, x, y).view(_Value)


def total(x: Any) -> Any:
    """Sum of all lanes, halves added until one number is left. Its rounding depends on WIDTH."""
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return float(x[0])


def power_of_two(shifted: Any) -> Any:
    """2^k of lanes or a float, given k + 1.5 * 2^52, whose low bits hold k."""
    return np.exp2(shifted - 6755399441055744.0)


def octave(x: Any) -> Any:
    """The exponent e of x = m 2^e, m in [sqrt(1/2), sqrt(2)), as lanes or a float."""
    m, e = np.frexp(x)
    return np.float64(e) - (m < np.sqrt(0.5))


def fraction(x: Any) -> Any:
    """The m of `octave`."""
    return np.ldexp(x, -np.int64(octave(x)))


# ---- what they become in compiled code


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


_LANES = _LanesType()


class _RowsType(types.Array):
    """Vectors in a row, aligned as doubles are; indices count from 0 up (see `_row_pointer`)."""

    def __init__(self) -> None:
        super().__init__(_LANES, 1, "A", aligned=False)


_ROWS = _RowsType()
register_model(_RowsType)(models.ArrayModel)


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _define(
    function: Any, code: Any, aliases: tuple[Any, ...] = (), count: int = 2, floats: bool = False
) -> None:
    """Let `function` of `count` arguments, lanes or numbers, compile to code(builder, vectors).

    aliases : in-place operators, typed alike (Numba lowers them as the plain one). floats : a call
        of floats alone, too.
    """

    def generic(self: Any, args: Any, kws: Any) -> Any:  # Numba's name for it
        if (
            kws
            or len(args) != count
            or not all(a == _LANES or isinstance(a, types.Number) for a in args)
        ):
            return None
        if _LANES in args:
            return typing_signature(_LANES, *(a if a == _LANES else types.float64 for a in args))
        return typing_signature(types.float64, *[types.float64] * count) if floats else None

    for key in (function, *aliases):
        infer_global(key)(type("Template", (AbstractTemplate,), {"key": key, "generic": generic}))

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.return_type == _LANES:
            args = [
                x if kind == _LANES else _spread(builder, x)
                for x, kind in zip(args, signature.args, strict=True)
            ]
        return code(builder, *args)

    for kinds in itertools.product((_LANES, types.float64), repeat=count):
        if floats or _LANES in kinds:
            lower_builtin(function, *kinds)(lower)


def _call(name: str) -> Any:
    """Code that calls an intrinsic of LLVM."""

    def code(builder: Any, *vectors: Any) -> Any:
        kind, of = vectors[0].type, f"v{WIDTH}f64" if vectors[0].type == _VECTOR else "f64"
        function = ir.FunctionType(kind, [kind] * len(vectors))
        return builder.call(
            cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.{of}"), vectors
        )

    return code


def _bits(builder: Any, x: Any) -> tuple[Any, Any]:
    """The bits of doubles, and how to make constants of their kind."""
    kind = _LONGS if x.type == _VECTOR else _LONG
    return builder.bitcast(x, kind), lambda value: ir.Constant(
        kind, [value] * WIDTH if kind == _LONGS else value
    )


def _power_of_two(builder: Any, x: Any) -> Any:
    bits, constant = _bits(builder, x)
    return builder.bitcast(builder.shl(builder.add(bits, constant(1023)), constant(52)), x.type)


def _octave_bits(builder: Any, x: Any) -> tuple[Any, Any, Any]:
    """Bits of x, those of 2^e times 2.0, and the maker of constants."""
    bits, constant = _bits(builder, x)
    moved = builder.add(
        builder.sub(bits, constant(0x3FE6A09E667F3BCD)), constant(0x4000000000000000)
    )  # - sqrt(1/2)
    return bits, builder.and_(moved, constant(-4503599627370496)), constant


def _octave(builder: Any, x: Any) -> Any:
    _, power, constant = _octave_bits(builder, x)
    # 2^52 + e as a float by its bits: AVX2 has no instruction that converts these integers
    shifted = builder.or_(builder.lshr(power, constant(52)), constant(0x4330000000000000))
    large = ir.Constant(_DOUBLE, 4503599627370496.0 + 1024.0)
    return builder.fsub(
        builder.bitcast(shifted, x.type), large if x.type == _DOUBLE else _spread(builder, large)
    )


def _fraction(builder: Any, x: Any) -> Any:
    bits, power, constant = _octave_bits(builder, x)
    return builder.bitcast(
        builder.add(builder.sub(bits, power), constant(0x4000000000000000)), x.type
    )


def _spread(builder: Any, x: Any) -> Any:
    """A vector of one number."""
    nothing, places = ir.Constant(_VECTOR, ir.Undefined), ir.VectorType(ir.IntType(32), WIDTH)
    one = builder.insert_element(nothing, x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(places, [0] * WIDTH))


def _pick(builder: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), x, y)


_define(operator.add, lambda builder, x, y: builder.fadd(x, y), (operator.iadd,))
_define(operator.sub, lambda builder, x, y: builder.fsub(x, y), (operator.isub,))
_define(operator.mul, lambda builder, x, y: builder.fmul(x, y), (operator.imul,))
_define(operator.truediv, lambda builder, x, y: builder.fdiv(x, y), (operator.itruediv,))
_define(operator.neg, lambda builder, x: builder.fneg(x), count=1)
_define(sqrt, _call("sqrt"), count=1, floats=True)
_define(copysign, _call("copysign"))
_define(pick, _pick, count=4, floats=True)
_define(power_of_two, _power_of_two, count=1, floats=True)
_define(octave, _octave, count=1, floats=True)
_define(fraction, _fraction, count=1, floats=True)


@infer_global(every)
class _Every(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        return (
            typing_signature(_LANES, types.float64)
            if len(args) == 1 and isinstance(args[0], types.Number)
            else None
        )


@lower_builtin(every, types.float64)
def _lower_every(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return _spread(builder, args[0])


@infer_global(total)
class _Total(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        return typing_signature(types.float64, _LANES) if args == (_LANES,) else None


@lower_builtin(total, _LANES)
def _lower_total(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    x, half = args[0], WIDTH // 2
    place = ir.IntType(32)
    while half:
        lower, upper = (
            ir.Constant(ir.VectorType(place, half), [*range(k, k + half)]) for k in (0, half)
        )
        nothing = ir.Constant(x.type, ir.Undefined)
        x = builder.fadd(
            builder.shuffle_vector(x, nothing, lower), builder.shuffle_vector(x, nothing, upper)
        )
        half //= 2
    return builder.extract_element(x, ir.Constant(place, 0))


@infer_global(rows)
class _RowsOf(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        A = args[0]
        fits = (
            len(args) == 2
            and isinstance(A, types.Array)
            and (A.ndim, A.dtype, A.layout) == (2, types.float64, "C")
        )
        return typing_signature(_ROWS, A, types.intp) if fits else None


@lower_builtin(rows, types.Array, types.intp)
def _lower_rows(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """A one-dimensional view whose elements are vectors; it owns nothing, so it must not outlive
    its array.
    """
    builder.function.attributes.add(
        "noinline"
    )  # a loop over a block gains nothing, and each copy is optimised anew
    source, l = context.make_array(signature.args[0])(context, builder, args[0]), args[1]
    (count, lanes), (stride, step) = (
        cgutils.unpack_tuple(builder, x, 2) for x in (source.shape, source.strides)
    )
    last = builder.add(l, ir.Constant(l.type, WIDTH - 1))
    cgutils.do_boundscheck(
        context, builder, last, lanes, axis=1
    )  # always: once for many rows, and a V of 5 would crash
    start = cgutils.pointer_add(builder, source.data, builder.mul(l, step))
    out = context.make_array(_ROWS)(context, builder)
    from numba.np.arrayobj import populate_array  # a tenth of the import, for those who compile

    populate_array(
        out, data=builder.bitcast(start, _VECTOR.as_pointer()), shape=[count], strides=[stride],
        itemsize=ir.Constant(_LONG, 8 * WIDTH), meminfo=None,
    )  # fmt: skip
    return out._getvalue()


def _row_pointer(context: Any, builder: Any, rows: Any, index: Any) -> Any:
    """Where a row starts. Numba would ask whether an index is negative: half the speed."""
    array = context.make_array(_ROWS)(context, builder, rows)
    (count,), (stride,) = (
        cgutils.unpack_tuple(builder, x, 1) for x in (array.shape, array.strides)
    )
    if context.enable_boundscheck:
        cgutils.do_boundscheck(context, builder, index, count, axis=0)
    start = builder.bitcast(array.data, ir.IntType(8).as_pointer())
    return builder.bitcast(builder.gep(start, [builder.mul(index, stride)]), _VECTOR.as_pointer())


@lower_builtin(operator.getitem, _RowsType, types.intp)
def _lower_read(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.load(_row_pointer(context, builder, *args), align=8)


@lower_builtin(operator.setitem, _RowsType, types.intp, _LanesType)
def _lower_write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    builder.store(args[2], _row_pointer(context, builder, *args[:2]), align=8)
    return context.get_dummy_value()
