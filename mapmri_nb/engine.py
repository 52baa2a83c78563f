"""The compiled pass over rows of voxels: its solver, its scratch, its threads, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernels import blocks, noise
from .kernels._jit import n_threads, spread
from .kernels.lanes import padded
from .kernels.status import NOT_CONVERGED, STRAINED

Array = NDArray[np.float64]
Pass = Callable[[blocks.Plan, blocks.Data, blocks.Out, int], None]


class Solver:
    """
    What turns the normal equations of a block into coefficients: the interface, and the solver of
    MAP and MAPL.

    Attributes
    ----------
    kernel : the stage (problem, plan, block, count) that `blocks.run` calls, or None where Python
        answers every voxel.
    finishes : True where `answer` solves the voxels that `kernel` left NOT_CONVERGED.
    """

    kernel: Any
    finishes = False

    def __init__(self) -> None:
        self.kernel = blocks.solve_linear

    def problem(self) -> Any:
        """What `kernel` needs besides the block: a tuple of constants and of scratch for one thread."""
        return ()

    def answer(self, plan: blocks.Plan, block: blocks.Block, count: int) -> None:
        """
        Solve the first `count` voxels of a block in Python: for solvers that have no kernel, or whose
        `finishes` is True. Others are never asked.
        """
        raise NotImplementedError(f"{type(self).__name__} has no answer in Python")

    def many(self, H: Array, g: Array) -> tuple[Array, NDArray[np.bool_]]:
        """
        Answers (V, n) for rows of g (V, n) that share one H (n, n), DIPY's order, and (V,) where
        there is none: by default nowhere.
        """
        return np.zeros_like(g), np.ones(len(g), bool)


class Engine:
    """
    Fits rows of voxels by `blocks.run`.

    Scratch and compiled stages are kept from one call to the next; copies of an engine (pickled,
    in another process) make their own.
    """

    def __init__(self, plan: blocks.Plan, solver: Solver) -> None:
        self.plan, self.solver = plan, solver
        self._own_frame = solver.kernel is None  # whether the stage is in the pass from the start
        self._stages: dict[Any, blocks.Stages] = {}
        self._spare: dict[int, list[tuple[blocks.Block, Any]]] = {}

    def __reduce__(self) -> Any:
        return Engine, (self.plan, self.solver)

    def scratch(self, voxels: int = blocks.VOXELS) -> tuple[blocks.Block, Any]:
        """A block of that many voxels (a multiple of 16) and the solver's problem, for one thread."""
        return blocks.new_block(self.plan, padded(voxels)), self.solver.problem()

    def stages(
        self, data: blocks.Data, plan: blocks.Plan | None = None, own_frame: bool = True
    ) -> blocks.Stages:
        """
        The compiled stages that fit `data`, for `blocks.run`.

        Examples
        --------
        Another package's compiled code fits rows start to stop of y (V, n), from any thread that has
        a block of its own::

            none = np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3, 3))
            data = blocks.Data(y, np.ones((1, n)), *none)
            out = blocks.new_rows(len(y), model.n_coef)
            stages, (block, problem) = model.engine.stages(data), model.engine.scratch()

            @numba.njit(nogil=True)
            def mine(stages, problem, plan, data, block, out, start, stop):
                blocks.run(stages, problem, plan, data, block, out, start, stop)

            mine(stages, problem, model.plan, data, block, out, 0, len(y))

        `model.engine.solver.kernel` must not be None (solver="osqp"). Voxels that OSQP would answer
        are left with the status NOT_CONVERGED.
        """
        plan = self.plan if plan is None else plan
        key = (len(data.mu) > 0, len(data.field) > 0, own_frame, plan.laplacian_weights.size != 1,
               plan.rules.noise)  # fmt: skip
        if key not in self._stages:
            block, problem = self.scratch(1)
            out = blocks.new_rows(1, plan.moments.origin.size)
            self._stages[key] = blocks.compiled(
                self.solver.kernel, own_frame, problem, plan, data, block, out
            )
        return self._stages[key]

    def fit(
        self,
        data: blocks.Data,
        threads: int | None = None,
        laplacian_weight: Array | None = None,
        out: blocks.Out | None = None,
    ) -> blocks.Out:
        """
        Results of all rows of `data`, in `out` if given.

        laplacian_weight : (1,) holds the weight of a model that would choose it.
        """
        plan, count = self.plan, n_threads(threads)
        if laplacian_weight is not None:
            plan = plan._replace(laplacian_weights=laplacian_weight)
        if out is None:
            out = blocks.new_rows(len(data.y), plan.moments.origin.size)
        if self.solver.kernel is None:
            self._in_python(plan, data, out, count)
            return out
        self._compiled(plan, data, out, count)
        strained = out.status & STRAINED != 0
        if strained.any():  # for the first time: from now on the pass has their stage
            self._own_frame = True
            _again(self._compiled, strained, plan, data, out, count)
        if self.solver.finishes and (left := out.status & NOT_CONVERGED != 0).any():
            _again(self._in_python, left, plan, data, out, count)
        return out

    def _compiled(
        self, plan: blocks.Plan, data: blocks.Data, out: blocks.Out, threads: int
    ) -> None:
        stages = self.stages(data, plan, self._own_frame)

        def span(block: blocks.Block, problem: Any, start: int, stop: int) -> None:
            with np.errstate(all="ignore"):  # without the compiler NumPy warns
                blocks.run(stages, problem, plan, data, block, out, start, stop)

        self._spread(span, len(data.y), threads)

    def _in_python(
        self, plan: blocks.Plan, data: blocks.Data, out: blocks.Out, threads: int
    ) -> None:
        stages = self.stages(data, plan, self._own_frame)

        def span(block: blocks.Block, problem: Any, start: int, stop: int) -> None:
            V = len(block.status)
            for i0 in range(start, stop, V):
                blocks.run_stages(stages.before, plan, data, block, out, i0, stop)
                self.solver.answer(plan, block, min(V, stop - i0))
                while len(stages.correct) and block.noise.step[0] < noise.STEPS:
                    blocks.run_stages(stages.correct, plan, data, block, out, i0, stop)
                    if block.noise.moving[0] == 0:
                        break
                    first = block.noise.step[0] <= noise.STEPS_OF_SCALES
                    again = stages.again if first else stages.later
                    blocks.run_stages(again, plan, data, block, out, i0, stop)
                    self.solver.answer(plan, block, min(V, stop - i0))
                blocks.run_stages(stages.after, plan, data, block, out, i0, stop)

        self._spread(span, len(data.y), threads)

    def _spread(
        self, span: Callable[[blocks.Block, Any, int, int], None], count: int, threads: int
    ) -> None:
        """Spans of rows in threads, each with scratch that no other thread has."""
        V = min(blocks.VOXELS, padded(count))
        spare = self._spare.setdefault(V, [])

        def call(start: int, stop: int) -> None:
            try:
                mine = spare.pop()
            except IndexError:
                mine = self.scratch(V)
            span(*mine, start, stop)
            spare.append(mine)

        spread(call, count, V, threads)


def _again(
    fit: Pass, some: NDArray[np.bool_], plan: blocks.Plan, data: blocks.Data, out: blocks.Out, threads: int
) -> None:  # fmt: skip
    """Fit some of the rows anew."""
    rows = np.flatnonzero(some)
    part = blocks.Data(*(a[rows] if len(a) > 1 else a for a in data))
    again = blocks.new_rows(len(rows), out.coef.shape[1])
    fit(plan, part, again, threads)
    for whole, piece in zip(out, again, strict=True):
        whole[rows] = piece
