"""Numba's decorator, named here alone: options, the disk cache, calls by address, threads."""

import _thread
import hashlib
import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite.binding.object_file import ObjectFileRef
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache, NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.core.runtime import rtsys
from numba.core.typing import signature as typing_signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin

F = TypeVar("F", bound=Callable[..., object])

# The one set of flags: a product and a sum may become one instruction. No flag lets the compiler
# reorder a sum. A kernel has a copy in every caller's object, and each is optimised with it:
# with "reassoc" the copies add in different orders and the bits differ. Scalar code with several
# products in a sum has no flag at all: with "contract" the copies fused different products.
CONTRACT = frozenset({"contract"})
STALE_AFTER_DAYS = 30
BOUNDS = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")  # what a job may use
_PID = os.getpid()
_LOCK = threading.Lock()


def _source_digest() -> str:
    """Digest of all kernel sources: Numba's own key looks at one file alone."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    # checked and unchecked objects must never be taken for one another
    if numba.config.BOUNDSCHECK:
        digest.update(b"boundscheck")
    return digest.hexdigest()[:12]


def _cache_base() -> Path:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"])
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "mapmri_nb"


def _open_cache() -> Path | None:
    """Make this version's cache folder, drop those unused for a month; None if read-only."""
    if os.environ.get("MAPMRI_NB_CACHE", "1") == "0" or numba.config.DISABLE_JIT:
        return None
    base = _cache_base()
    folder = base / f"mapmri_nb-{_source_digest()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = folder / "used"
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > 86400:
            stamp.touch()
            for old in base.glob("mapmri_nb-????????????"):
                used = old / "used"
                if used.exists() and time.time() - used.stat().st_mtime > STALE_AFTER_DAYS * 86400:
                    shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


CACHE_DIR = _open_cache()


class _Cache(FunctionCache):  # type: ignore[misc]  # Numba has no types
    """A kernel's cache on disk. Numba's own first loads what its compiler knows, SciPy's linear
    algebra included, which takes half a second and which compiled code does not need.
    """

    load_overload = FunctionCache._load_overload


class _Library(JITCodeLibrary):  # type: ignore[misc]  # Numba has no types
    """Code of a `_Part`: neither optimised nor compiled for the machine until it is asked for."""

    codegen = SimpleNamespace(set_env=lambda *_: None)  # there is no machine code to set it in

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0  # Python does not call a part

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def machine_code(self) -> Any:
        """An object file of this code with its callees' code, optimised together."""
        part, self._final_module = self._final_module, self._final_module.clone()
        self._optimize_final_module()
        whole, self._final_module = self._final_module, part
        return self._codegen._tm.emit_object(whole)


def _pipeline(typing: Any, target: Any, _: Any, *rest: Any) -> Any:
    return Compiler(typing, target, _Library(target.codegen(), "part"), *rest)


class _Part(CPUDispatcher):  # type: ignore[misc]  # Numba has no types
    """A kernel that other kernels contain, or a stage, which they call by its address."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        options = options | {"no_cpython_wrapper": True}
        super().__init__(function, targetoptions=options, pipeline_class=_pipeline)

    def __reduce__(self) -> str:
        return self.__name__  # a pickle holds the name, not the code


class _Kernel(CPUDispatcher):  # type: ignore[misc]  # Numba has no types
    """A kernel for Python, cached on disk. Other kernels take it as a part of theirs: a callee that
    was optimised for itself would be optimised again in each caller, half of a first fit's time.
    """

    __reduce__ = _Part.__reduce__

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(function, targetoptions=options)
        if CACHE_DIR is not None:
            del self._cache  # opened at its first use: Numba writes a test file for each it opens

    @cached_property
    def _cache(self) -> Any:
        previous, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(CACHE_DIR)
        try:
            return _Cache(self.py_func)
        except RuntimeError:  # no writable locator: compile in memory, as with the switch off
            return NullCache()
        finally:
            numba.config.CACHE_DIR = previous

    @cached_property
    def part(self) -> _Part:
        return _Part(self.py_func, self.targetoptions)

    def compile(self, kinds: Any) -> Any:
        if self.targetoptions["_nrt"]:
            rtsys.initialize(self.targetctx)  # the references that compiled code counts
        return super().compile(kinds)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        return self.part.get_call_template(args, kws)

    def get_overload(self, kinds: Any) -> Any:
        return self.part.get_overload(kinds)


def kernel(
    fastmath: frozenset[str] = frozenset(), wrapper: bool = True, allocates: bool = False
) -> Callable[[F], F]:
    """Compile a function with the house's options: lazily, without the GIL, with NumPy's division,
    cached on disk.

    `fastmath` names LLVM flags: ``CONTRACT``, for products and sums of lanes, or none by default.
    No option comes from the environment, since the cache key ignores options. `wrapper=False` is
    for functions that Python never calls but by their address. `allocates` is for functions that
    make an array, or call one that does. Only they count references.
    """

    def decorate(function: F) -> F:
        if numba.config.DISABLE_JIT:
            return function
        options = {
            "nopython": True,
            "boundscheck": None,  # as the environment says
            "fastmath": set(fastmath) if fastmath else False,
            "error_model": "numpy",
            "nogil": True,
            "no_cfunc_wrapper": True,
            "_nrt": allocates,
        }
        # a dispatcher is called like the function
        return (_Kernel if wrapper else _Part)(function, options)  # type: ignore[return-value]

    return decorate


def addresses(functions: Sequence[Any], *kinds: Any) -> Any:
    """Addresses (k,) of kernels compiled for some types, for `call`; uncompiled: the kernels."""
    if numba.config.DISABLE_JIT:
        return list(functions)
    with global_compiler_lock:  # threads may ask for the same one
        return np.array([_address(function, kinds) for function in functions], np.uint64)


@cache
def _address(function: Any, kinds: tuple[Any, ...]) -> int:
    """The address of a stage, from its machine code on disk or compiled: what Numba would keep of
    it besides takes three times as long to load.
    """
    codegen, name = function.targetctx.codegen(), function.py_func.__qualname__
    words = function.py_func.__module__, name, kinds, codegen.magic_tuple()
    digest = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
    path = CACHE_DIR / f"{name}-{digest}.o" if CACHE_DIR else None
    stored = b""
    if path:
        with suppress(OSError):  # there is none
            stored = path.read_bytes()
    # damaged machine code would end the process
    if not stored or hashlib.sha256(stored[32:]).digest() != stored[:32]:
        function.compile(kinds)
        compiled = function.overloads[kinds]
        symbol = compiled.fndesc.llvm_func_name
        stored = symbol.encode() + b"\0" + compiled.library.machine_code()
        stored = hashlib.sha256(stored).digest() + stored
        if path:
            with suppress(OSError):  # as without a cache
                part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
                part.write_bytes(stored)
                os.replace(part, path)
    symbol, code = stored[32:].split(b"\0", 1)
    if function.targetoptions["_nrt"]:
        rtsys.initialize(function.targetctx)
    engine = codegen._engine._ee
    engine.add_object_file(ObjectFileRef.from_data(code))
    engine.finalize_object()
    return int(engine.get_function_address(symbol.decode()))


def call(function: Any, arguments: Any) -> None:
    """Call a kernel by its address, where a call by name would make it part of the caller.
    Arguments are numbers, or addresses of tuples in memory, as the kernel was compiled for. In
    Python: call a function.
    """
    function(*arguments)


def take(counter: Any, step: int) -> int:
    """The number in counter (1,), which `step` is added to; no two threads take the same one."""
    with _LOCK:
        first = int(counter[0])
        counter[0] += step
    return first


@infer_global(call)
class _Call(AbstractTemplate):  # type: ignore[misc]  # Numba has no types
    def generic(self, args: Any, kws: Any) -> Any:
        return typing_signature(types.none, *args)


@lower_builtin(call, types.uint64, types.BaseTuple)
def _lower_call(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    kinds, convention = signature.args[1].types, context.call_conv
    kind = convention.get_function_type(types.none, kinds)
    nothing = cgutils.get_null_value(convention.get_return_type(types.none).pointee)
    result = cgutils.alloca_once_value(builder, nothing)
    error = cgutils.alloca_once(builder, kind.args[1].pointee)
    given = cgutils.unpack_tuple(builder, values[1], len(kinds))
    place = builder.inttoptr(values[0], kind.as_pointer())
    answer = builder.call(place, [result, error, *given])
    status = convention._get_return_status(builder, answer, builder.load(error))
    with cgutils.if_unlikely(builder, status.is_error):
        convention.return_status_propagate(builder, status)
    return context.get_dummy_value()


@infer_global(take)
class _Take(AbstractTemplate):  # type: ignore[misc]  # Numba has no types
    def generic(self, args: Any, kws: Any) -> Any:
        return typing_signature(types.int64, args[0], types.int64)


@lower_builtin(take, types.Array, types.int64)
def _lower_take(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    place = context.make_array(signature.args[0])(context, builder, values[0]).data
    return builder.atomic_rmw("add", place, values[1], "monotonic")


def stage(fastmath: frozenset[str] = frozenset(), allocates: bool = False) -> Callable[[F], F]:
    """A stage of the pass or a step of one, which Python never calls."""
    return kernel(fastmath, wrapper=False, allocates=allocates)


def plain(function: F) -> F:
    """A kernel's Python body, for a table of a few numbers: calling it compiles nothing."""
    body: F = getattr(function, "py_func", function)
    return body


def n_threads(requested: int | None) -> int:
    """Threads to use: by default Numba's current number, bounded by the variables of `BOUNDS`, but
    1 in a pool's thread, a worker or a forked child.
    """
    if numba.config.DISABLE_JIT:
        return 1
    if requested is not None:
        return int(requested)
    count = int(numba.get_num_threads())
    inside = threading.current_thread() is not threading.main_thread() or os.getpid() != _PID
    process = sys.modules.get("multiprocessing.process")  # a worker has it
    if count == 1 or inside or (process and process.parent_process() is not None):
        return 1
    words = [os.environ.get(name, "").split(",")[0].strip() for name in BOUNDS]
    return min([count, *(int(w) for w in words if w.isdigit() and int(w))])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let everything that asks `n_threads` in this thread use one."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def spread(call: Callable[[int, int], object], count: int, grain: int, threads: int) -> None:
    """Run call(start, stop) over 0 .. count, cut at multiples of `grain`, on some threads.

    Pieces are long at first and one grain at the end, so that no thread waits long. Kernels release
    the GIL, so plain Python threads scale as Numba's own do, and unlike those they are safe under a
    caller's thread pool (workqueue aborts the process) and in a forked child (OpenMP kills it).
    """
    if threads <= 1 or count <= grain:
        call(0, count)
        return
    cuts = [0]
    while cuts[-1] < count:
        share = (count - cuts[-1]) // (2 * threads * grain)
        cuts.append(min(cuts[-1] + max(share, 1) * grain, count))
    pieces_left = iter(list(itertools.pairwise(cuts)))
    errors: list[BaseException] = []

    def work(done: Any) -> None:
        try:
            for piece in pieces_left:  # whoever is free takes the next one
                call(*piece)
        except BaseException as error:
            errors.append(error)
            list(pieces_left)  # the others stop, too
        finally:
            done.release()

    ends = [_thread.allocate_lock() for _ in range(min(threads, len(cuts) - 1))]
    for done in ends:
        done.acquire()
    for done in ends[1:]:  # `threading.Thread` would wait until each has begun
        _thread.start_new_thread(work, (done,))
    work(ends[0])
    for done in ends:
        done.acquire()
    if errors:
        raise errors[0]
