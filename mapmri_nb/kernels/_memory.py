"""Named tuples of arrays in memory: a stage takes the address of one, and loads the fields it uses.

By value a plan or a block is some hundred arrays, so that each compiled function would have a
thousand arguments: most of the time of a first fit went there. `lay_out` writes such a tuple once,
in words of 8 bytes: a number is one word; an array is its address, its shape and its strides; a
tuple is its items. Compiled code that gets a `Placed` tuple loads a field by ``tuple.field``, like
that of any tuple; a field that is itself a named tuple stays in memory.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, datamodel
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, register_model

from ._types import Unsigned

INTEGER = types.int64  # the type of a number that is given to a stage


class Memory(NamedTuple):
    """A tuple in memory. Keep it as long as its address is used."""

    address: Any  # without the compiler, the tuple itself
    kind: Any  # its Numba type
    words: Unsigned
    value: Any  # the tuple, whose arrays the words point to


def lay_out(value: Any) -> Memory:
    """Words of a tuple of numbers, arrays and such tuples."""
    if numba.config.DISABLE_JIT:
        return Memory(value, None, np.zeros(0, np.uint64), value)
    words = np.array(_words(value), np.uint64)
    return Memory(words.ctypes.data, _placed(_form(value)), words, value)


def places(memories: Sequence[Memory]) -> Any:
    """Addresses (k,) of tuples in memory; without the compiler the tuples."""
    found = [memory.address for memory in memories]
    return found if numba.config.DISABLE_JIT else np.array(found, np.uint64)


def _words(value: Any) -> list[int]:
    """The words of a value, as unsigned numbers."""
    if isinstance(value, tuple):
        return [word for item in value for word in _words(item)]
    if isinstance(value, np.ndarray):
        place = value.__array_interface__["data"][0]
        return [place, *value.shape, *(stride % 2**64 for stride in value.strides)]
    if isinstance(value, float):
        return [int(np.float64(value).view(np.uint64))]
    return [int(value) % 2**64]


def _form(value: Any) -> Any:
    """What the compiler's type of a value depends on; read-only arrays have that of others."""
    if isinstance(value, tuple):
        return type(value), tuple([_form(item) for item in value])
    if isinstance(value, np.ndarray):
        return value.dtype.char, value.ndim, "C" if value.flags.c_contiguous else "A"
    return (type(value),)


@lru_cache
def _placed(form: Any) -> Any:
    """The type of a tuple of this form in memory: to make it takes ten times as long as to find."""
    return Placed(_kind(form))


def _kind(form: Any) -> Any:
    """The compiler's type of a value of this form."""
    if len(form) == 3:
        letter, ndim, layout = form
        return types.Array(numba.from_dtype(np.dtype(letter)), ndim, layout)
    if len(form) == 2:
        kinds = [_kind(item) for item in form[1]]
        return (
            types.NamedTuple(kinds, form[0]) if hasattr(form[0], "_fields") else types.Tuple(kinds)
        )
    return numba.typeof(form[0]())


class Placed(types.Type):  # type: ignore[misc]  # Numba has no types
    """The compiler's type of a tuple in memory."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        name = getattr(getattr(kind, "instance_class", None), "__name__", "tuple")
        super().__init__(f"{name} {hashlib.sha256(str(kind).encode()).hexdigest()[:16]}")

    def field(self, name: str) -> tuple[int, Any]:
        """Where a field begins, in words, and its type."""
        k = self.kind.fields.index(name)
        return sum(_size(kind) for kind in self.kind.types[:k]), self.kind.types[k]


def _size(kind: Any) -> int:
    """Words of a value of this type."""
    if isinstance(kind, types.BaseTuple):
        return sum(_size(item) for item in kind)
    return 1 + 2 * kind.ndim if isinstance(kind, types.Array) else 1


def _loaded(kind: Any) -> Any:
    """The type of a field of this type once it is loaded."""
    if isinstance(kind, types.BaseNamedTuple):
        return Placed(kind)
    return (
        types.Tuple([_loaded(item) for item in kind]) if isinstance(kind, types.BaseTuple) else kind
    )


def _load(context: Any, builder: Any, kind: Any, place: Any) -> Any:
    """Code that loads a field of this type from `place`, a pointer to words."""

    def word(k: int, form: Any) -> Any:
        pointer = builder.bitcast(cgutils.gep_inbounds(builder, place, k), form.as_pointer())
        value = builder.load(pointer)
        # nothing writes to the words while a stage runs: the compiler may load them once
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
        return value

    integer = ir.IntType(64)
    if isinstance(kind, types.BaseNamedTuple):
        return builder.bitcast(place, cgutils.voidptr_t)
    if isinstance(kind, types.BaseTuple):
        items, k = [], 0
        for item in kind:
            items.append(_load(context, builder, item, cgutils.gep_inbounds(builder, place, k)))
            k += _size(item)
        return context.make_tuple(builder, _loaded(kind), items)
    if not isinstance(kind, types.Array):
        form = ir.DoubleType() if isinstance(kind, types.Float) else integer
        value = word(0, form)
        boolean = isinstance(kind, types.Boolean)
        return builder.icmp_unsigned("!=", value, integer(0)) if boolean else value
    array = context.make_array(kind)(context, builder)
    shape = [word(1 + k, integer) for k in range(kind.ndim)]
    strides = [word(1 + kind.ndim + k, integer) for k in range(kind.ndim)]
    size = integer(1)
    for length in shape:
        size = builder.mul(size, length)
    array.data = word(0, context.get_data_type(kind.dtype).as_pointer())
    array.shape = cgutils.pack_array(builder, shape, integer)
    array.strides = cgutils.pack_array(builder, strides, integer)
    array.nitems, array.itemsize = (
        size,
        integer(context.get_abi_sizeof(context.get_data_type(kind.dtype))),
    )
    array.meminfo = array.parent = cgutils.get_null_value(cgutils.voidptr_t)
    return array._getvalue()


@register_model(Placed)
class _Model(datamodel.models.PrimitiveModel):  # type: ignore[misc]  # nor here
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, cgutils.voidptr_t)


@infer_getattr
class _Fields(AttributeTemplate):  # type: ignore[misc]  # nor here
    key = Placed

    def generic_resolve(self, placed: Any, name: str) -> Any:
        fields = getattr(placed.kind, "fields", ())
        return _loaded(placed.field(name)[1]) if name in fields else None


@lower_getattr_generic(Placed)
def _field(context: Any, builder: Any, placed: Any, value: Any, name: str) -> Any:
    first, kind = placed.field(name)
    words = builder.bitcast(value, ir.IntType(64).as_pointer())
    return _load(context, builder, kind, cgutils.gep_inbounds(builder, words, first))
