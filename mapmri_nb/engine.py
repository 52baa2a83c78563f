"""The compiled pass over rows of voxels: its solver, scratch, threads, and second passes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernels import blocks, hermite, laplacian, noise, ordering, rotation, stages, tensor
from .kernels._jit import n_threads, plain, spread
from .kernels._memory import Memory, lay_out, places
from .kernels.lanes import empty, padded
from .kernels.linalg import block_backsolve, block_cholesky, pad4
from .kernels.status import CONTRADICTED, NOT_CONVERGED, STRAINED

Array = NDArray[np.float64]
LEAST_PIVOT = 1e-10  # of G, for a linear map; below it voxels are fitted and judged one by one
RARE = STRAINED | CONTRADICTED  # stages that few voxels need
NOT_SHARED = np.zeros(0, np.int64)


class Solver:
    """What turns the normal equations of a block into coefficients: the interface, and the solver
    of MAP and MAPL.

    Attributes
    ----------
    kernel : the stage (problem, plan, block, count) that `blocks.run` calls, or None where Python
        answers every voxel.
    again : the same for another right-hand side of the block just solved; None: it is `kernel`.
    finishes : True where `answer` solves the voxels that `kernel` left NOT_CONVERGED.
    """

    kernel: Any
    again: Any = None
    finishes = False

    def __init__(self) -> None:
        self.kernel, self.again = stages.solve_linear, stages.solve_again

    def problem(self) -> Any:
        """What `kernel` needs besides the block: constants and scratch for one thread."""
        return ()

    def answer(self, plan: blocks.Plan, block: blocks.Block, count: int) -> None:
        """Solve the first `count` voxels of a block in Python: for solvers that have no kernel, or
        whose `finishes` is True. Others are never asked.
        """
        raise NotImplementedError(f"{type(self).__name__} has no answer in Python")

    def many(self, H: Array, g: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Answers (V, n) for rows of g (V, n) that share one H (n, n), DIPY's order, and failed
        (V,), True where a row has no answer; here every row.
        """
        return np.zeros_like(g), np.ones(len(g), bool)


class Work:
    """Scratch of one thread, and the job that fits rows with it.

    Attributes
    ----------
    job : what `blocks.run` takes. Keep this object as long as the job is used: a job holds
    addresses.
    block : scratch of the voxels of a block.
    """

    job: blocks.Job

    def __init__(self, engine: Engine, voxels: int = blocks.VOXELS) -> None:
        self.block = blocks.new_block(engine.plan, padded(voxels))
        self._scratch = lay_out(engine.solver.problem()), lay_out(self.block)

    def take(
        self, engine: Engine, plan: Memory, data: Memory, out: Memory, rare: int,
        shared: NDArray[np.int64] = NOT_SHARED,
    ) -> Work:  # fmt: skip
        """Make the job that fits `data` into `out`; `rare` as of `blocks.stages_of`, `shared` is
        `blocks.Job.next`.
        """
        problem, block = self._scratch
        self._memory = problem, plan, data, block, out
        stages, state = engine.stages(self._memory, rare), self.block.noise
        self.job = blocks.Job(
            stages, places(self._memory), state.step, state.moving, shared, len(self.block.status)
        )
        return self


def linear_map(plan: blocks.Plan, mu: Array, R: Array) -> blocks.LinearMap:
    """The map for scales mu (3,) mm and a frame R (3, 3), of size 0 where G is singular.

    A = G^-1 M' and a = G^-1 (k B + weight L e_0), with the letters of `blocks`. Where E(0) = S0_b
    is demanded, z (S0_b - B'c) is added to c, z = G^-1 B / B'G^-1 B.
    """
    B, index = plan.moments.origin, ordering.block_index_table(plan.order)
    rules = plan.rules
    q = plan.scheme.points * (plan.scheme.wave / (2.0 * np.pi))
    M, L = np.empty((len(q), B.size)), np.empty((B.size, B.size))
    hermite.signal_rows(np.einsum("ki,ij->kj", q, R), mu, index, M)
    laplacian.matrix(mu, index, L)
    L *= plan.laplacian_weights[0]
    k, n = rules.row * plan.tensor.b0.size, B.size
    samples = len(M)
    # lane l has the right-hand side of sample l alone; BLAS could differ from process to process
    lanes, first = padded(samples + 2), n * (n + 1) // 2
    G, x, pivot = (empty(rows, lanes) for rows in (first + n + 1, n, 1))
    whole = np.einsum("ki,kj", M, M) + k * np.outer(B, B) + L
    G[:first] = whole[np.tril_indices(n)][:, None]
    G[first:-1, :samples] = M.T
    G[first:-1, samples] = k * B + rules.deviation * L[0]
    G[first:-1, samples + 1] = B
    block_cholesky(G, n, pivot)
    block_backsolve(G, n, x)
    if not pivot.min() > LEAST_PIVOT:
        return blocks.LinearMap()
    A, a = x[:, :samples], x[:, samples]
    z = x[:, samples + 1]
    if rules.fixed:
        z = z / (B * z).sum()
        A, a = A - np.outer(z, np.einsum("i,il", B, A)), a + z * (1.0 - (B * a).sum())
    return blocks.LinearMap(pad4(A), a.copy(), pad4(M))


class Engine:
    """Fits rows of voxels by `blocks.run`.

    Scratch and compiled stages are kept from one call to the next; copies of an engine (pickled,
    in another process) make their own.
    """

    def __init__(self, plan: blocks.Plan, solver: Solver) -> None:
        self.plan, self.solver = plan, solver
        self._rare = 0  # stages that a voxel before needed
        self._stages: dict[Any, blocks.Stages] = {}
        self._spare: list[Work] = []
        self._laid: Memory | None = None
        self._map: tuple[bytes, blocks.Plan] | None = None  # the last one, and what it was made for

    def __reduce__(self) -> Any:
        return Engine, (self.plan, self.solver)

    def work(self, data: blocks.Data, out: blocks.Out, voxels: int = blocks.VOXELS) -> Work:
        """The job of fitting `data` into `out`, for one thread, in blocks of `lanes.padded` voxels.

        Examples
        --------
        Another package's compiled code fits rows start to stop of y (V, n), from any thread that
        has work of its own::

            none = np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3, 3))
            data = blocks.Data(y, np.ones((1, n)), *none)
            out = blocks.new_rows(len(y), model.n_coef)
            work = model.engine.work(data, out)

            @numba.njit(nogil=True)
            def mine(job, start, stop):
                blocks.run(job, start, stop)

            mine(work.job, 0, len(y))

        Where all voxels share one scale, `MapmriModel.fit` takes a shorter way (`blocks`), with the
        same results to 1e-10. `model.engine.solver.kernel` must not be None (solver="osqp"). Voxels
        that OSQP would answer are left with the status NOT_CONVERGED.
        """
        return Work(self, voxels).take(
            self, self._plan_in_memory(self.plan), lay_out(data), lay_out(out), RARE
        )

    def stages(self, memory: tuple[Memory, ...], rare: int) -> blocks.Stages:
        """The compiled stages for a problem, a plan, data, a block and output in memory."""
        _, plan, data, _, _ = memory
        chosen = plan.value.laplacian_weights.size != 1
        given, field = len(data.value.mu) > 0, len(data.value.field) > 0
        linear = plan.value.linear.basis.size > 0
        key = (
            given, field, rare, chosen, linear, plan.value.rules.noise,
            *(m.kind for m in memory),
        )  # fmt: skip
        if key not in self._stages:
            solvers = [] if self.solver.kernel is None else [self.solver.kernel]
            if plan.value.rules.noise == noise.RICIAN and self.solver.again is not None:
                solvers.append(self.solver.again)
            self._stages[key] = blocks.compiled(solvers, rare, memory)
        return self._stages[key]

    def _plan_in_memory(self, plan: blocks.Plan) -> Memory:
        laid = self._laid  # other threads may fit with this engine
        if laid is None or laid.value is not plan:
            laid = self._laid = lay_out(plan)
        return laid

    def fit(
        self,
        data: blocks.Data,
        threads: int | None = None,
        laplacian_weight: Array | None = None,
        out: blocks.Out | None = None,
        shared: bool = False,
    ) -> blocks.Out:
        """Results of all rows of `data`, in `out` if given.

        laplacian_weight : (1,), this weight for all voxels although the model would choose one.
        shared : all voxels of the series share the basis' scale and frame, those of the first row.
        """
        plan, count = self.plan, n_threads(threads)
        if laplacian_weight is not None:
            plan = plan._replace(laplacian_weights=laplacian_weight)
        if out is None:
            out = blocks.new_rows(len(data.y), plan.moments.origin.size)
        if self.solver.kernel is None:
            self._pass(plan, data, out, count, RARE, True)
            return out
        first = self._mapped(plan, data) if shared and len(data.y) else plan
        self._pass(first, data, out, count, self._rare)
        if first is not plan:  # samples are missing
            self._again(STRAINED, plan, data, out, count, self._rare)
        # most data need no `own_frame`: it is compiled for the first that do
        if self._again(STRAINED, plan, data, out, count, self._rare | STRAINED):
            self._rare |= STRAINED
        self._again(CONTRADICTED, plan, data, out, count, self._rare | CONTRADICTED)
        if self.solver.finishes:
            self._again(NOT_CONVERGED, plan, data, out, count, RARE)
        return out

    def _mapped(self, plan: blocks.Plan, data: blocks.Data) -> blocks.Plan:
        """The plan with coefficients as a constant map of the samples, for linear modes of fixed
        weight without sample weights and field; the plan as it is for others, and where G is
        singular.
        """
        if type(self.solver) is not Solver or plan.laplacian_weights.size != 1 or len(data.field):
            return plan
        if plan.rules.noise == noise.RICIAN or len(data.weight) > 1 or (data.weight != 1.0).any():
            return plan
        mu, R = np.full(3, plan.static_scale), np.eye(3)
        if plan.isotropic and not plan.static_scale:
            mu[:] = plain(tensor.isotropic_scale)(data.mu[0])
        elif not plan.isotropic:
            mu, R = data.mu[0].copy(), data.R[0] * [1.0, 1.0, np.sign(np.linalg.det(data.R[0]))]
            rotation.frame_angles(R, np.empty((6, 1)), 0)  # flips axes, as for voxels
        key = plan.laplacian_weights.tobytes() + mu.tobytes() + R.tobytes()
        last = self._map
        if last is None or last[0] != key:
            last = self._map = key, plan._replace(linear=linear_map(plan, mu, R))
        return last[1] if last[1].linear.basis.size else plan

    def _pass(
        self, plan: blocks.Plan, data: blocks.Data, out: blocks.Out, threads: int, rare: int,
        python: bool = False,
    ) -> None:  # fmt: skip
        """Fit all rows in threads, each with work that no other thread has. `python`: the solver
        answers in Python, and `blocks.run` is not compiled.
        """
        count, shared = len(data.y), np.zeros(1, np.int64)
        memory = self._plan_in_memory(plan), lay_out(data), lay_out(out)

        def call(start: int, stop: int) -> None:
            try:
                mine = self._spare.pop()
            except IndexError:
                mine = Work(self)
            job, run = mine.take(self, *memory, rare, shared).job, blocks.run
            if python:
                solve: Any = [lambda *problem: self.solver.answer(plan, mine.block, problem[-1])]
                job, run = job._replace(stages=job.stages._replace(solve=solve)), plain(run)
            with np.errstate(all="ignore"):  # without the compiler NumPy warns
                run(job, 0, count)
            self._spare.append(mine)

        threads = max(min(threads, -(-count // blocks.VOXELS)), 1)
        spread(call, threads, 1, threads)

    def _again(
        self, bit: int, plan: blocks.Plan, data: blocks.Data, out: blocks.Out, threads: int,
        rare: int,
    ) -> bool:  # fmt: skip
        """Fit the rows whose status has a bit anew, in Python where it is NOT_CONVERGED; if any."""
        rows = np.flatnonzero(out.status & bit)
        if len(rows):
            part = blocks.Data(*(a[rows] if len(a) > 1 else a for a in data))
            again = blocks.new_rows(len(rows), out.coef.shape[1])
            self._pass(plan, part, again, threads, rare, bit == NOT_CONVERGED)
            for whole, piece in zip(out, again, strict=True):
                whole[rows] = piece
        return len(rows) > 0
