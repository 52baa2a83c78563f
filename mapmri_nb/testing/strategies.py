"""Cases: a gradient table, tissue, noise and a fit's options from a handful of plain values.

A `Case` builds everything from its fields, so that a counterexample shrinks field by field and its
repr is code that makes it again.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from math import pi, sqrt
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ..kernels import hermite, laplacian, ordering
from . import truths

Array = NDArray[np.float64]
TAU = 0.03  # s
EPS = float(np.finfo(float).eps)
TYPICAL = (1.7, 0.3, 0.3)  # eigenvalues in 1e-3 mm2/s of white matter
# Two fits that must agree differ by rounding alone. Normal equations A c = r, A = M'M + weight L,
# whose entries are known to u have a solution known to cond(A) u, and an index has its condition
# |grad I| |a| / |I| besides. Sums over 15 to 600 samples give u = 20 eps, and MSD, 1/QIV, NG^2 have
# conditions up to 50 at orders 4 to 10 (others 10): FACTOR is their product.
FACTOR = 1e3
LEAST = 1e-8  # what every program in double precision should keep
WORST_CONDITION = 1e6  # of a case: its tolerance is then below FACTOR eps 1e6


class Table(NamedTuple):
    """b (n,) in s/mm2, unit vectors g (n, 3), the largest b of a b0 volume, diffusion time in s."""

    b: Array
    g: Array
    b0_threshold: float = 50.0
    tau: float = TAU

    @classmethod
    def of(cls, q: Array, tau: float = TAU, b0_threshold: float = 50.0) -> Table:
        """The table of q-vectors (n, 3) in 1/mm."""
        length = np.linalg.norm(q, axis=1)
        g = q / np.where(length > 0, length, 1.0)[:, None]
        return cls((2 * pi * length) ** 2 * tau, g, b0_threshold, tau)

    @property
    def q(self) -> Array:
        """q-vectors (n, 3) in 1/mm."""
        return np.sqrt(self.b / self.tau)[:, None] / (2 * pi) * self.g


def unit(v: Array) -> Array:
    """Rows of length 1."""
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def random_rotation(rng: np.random.Generator, count: int | None = None) -> Array:
    """A rotation (3, 3) of determinant +1, or (count, 3, 3)."""
    q = np.linalg.qr(rng.normal(size=(3, 3) if count is None else (count, 3, 3)))[0]
    q[..., 2] *= np.linalg.det(q)[..., None]
    return q


def even_directions(count: int, turn: float = 0.0) -> Array:
    """Directions (count, 3) on a spiral from pole to pole."""
    k = np.arange(count) + 0.5
    z, angle = 1 - 2 * k / count, pi * (1 + sqrt(5)) * k + turn
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """One example; defaults are the simplest values, and `repr` names the others alone.

    `volumes` is what is asked for: grids and doubled directions have the nearest number they can.
    `order` likewise: `fitted_order` is the largest up to it that the measurements determine.
    """

    seed: int = 0
    order: int = 2
    scheme: str = "shells"
    shells: int = 3
    volumes: int = 100
    b0s: int = 4
    b_max: float = 3000.0
    tissue: str = "gaussian"
    noise: str = "gaussian"
    snr: float = 50.0
    voxels: int = 2
    laplacian: float | str | tuple[float, ...] | None = 0.05
    basis: str = "anisotropic"
    positivity: str | None = None

    def __repr__(self) -> str:
        own = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return f"Case({', '.join(f'{name}={getattr(self, name)!r}' for name in own)})"

    def replace(self, **fields: Any) -> Case:
        """The case with other fields."""
        return dataclasses.replace(self, **fields)

    def rng(self, stream: int = 0) -> np.random.Generator:
        """Random numbers of the case; streams are independent."""
        return np.random.default_rng([self.seed, stream])

    @cached_property
    def table(self) -> Table:
        """The gradient table."""
        rng = self.rng(1)
        b, g = self._grid() if self.scheme == "grid" else self._shells()
        if self.scheme == "jitter":
            b = b + rng.uniform(-40, 40, len(b))
        b, g = np.r_[np.zeros(self.b0s), b], np.r_[np.zeros((self.b0s, 3)), g]
        if self.scheme == "b0 anywhere":
            mixed = rng.permutation(len(b))
            b, g = b[mixed], g[mixed]
        if self.scheme == "b0 at 15":
            b[: self.b0s], g[: self.b0s] = 15.0, unit(rng.normal(size=(self.b0s, 3)))
        return Table(b, g)

    def _grid(self) -> tuple[Array, Array]:
        """Points of a cubic lattice inside a sphere, the largest that has not more than asked."""
        for radius in (5, 4, 3, 2):
            g = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1.0)] * 3), -1).reshape(-1, 3)
            r = np.linalg.norm(g, axis=1)
            inside = (r > 0) & (r <= radius)
            if inside.sum() <= self.volumes:
                break
        g, r = g[inside], r[inside]
        return min(self.b_max, 1e3 * radius**2) * (r / radius) ** 2, g / r[:, None]

    def _shells(self) -> tuple[Array, Array]:
        """Even directions on shells, each direction twice where they are doubled."""
        half = 2 if self.scheme == "doubled" else 1
        n = max(self.volumes - self.b0s, 14) // half
        shells = max(1, min(self.shells, n // 8))
        values = np.linspace(min(1000.0, self.b_max), self.b_max, shells)
        counts = np.full(shells, n // shells) + (np.arange(shells) < n % shells)
        g = np.concatenate([even_directions(k, s) for s, k in enumerate(counts)])
        return np.tile(np.repeat(values, counts), half), np.tile(g, (half, 1))

    @cached_property
    def mixtures(self) -> list[tuple[Array, Array, float, Array]]:
        """Of each voxel: fractions (k,), tensors (k, 3, 3), radius in mm (0: Gaussian) and axis of
        the cylinder that the first one stands for.
        """
        rng, out = self.rng(2), []
        for _ in range(self.voxels):
            turn, f = random_rotation(rng), rng.uniform(0.3, 0.7)
            values = rng.uniform([1.4, 0.6, 0.2], [2.0, 0.8, 0.4])
            first, radius = truths.axis_tensor(values, turn), 0.0
            other = rng.permutation(values), turn @ truths.rotation(2, rng.uniform(20, 80))
            second = truths.axis_tensor(*other)
            if self.tissue == "restricted":  # a cylinder's slow directions: R^2 / (4 tau)
                radius = rng.uniform(2e-3, 6e-3)
                across = 1e3 * radius**2 / (4 * TAU)
                first = truths.axis_tensor([values[0], across, across], turn)
            fractions, tensors = {
                "gaussian": ([1.0], [first]),
                "crossing": ([f, 1 - f], [first, second]),
                "restricted": ([1 - f, f], [first, second]),
                "water": ([0.8, 0.2], [truths.axis_tensor(3.0), first]),
                "immobile": ([0.9, 0.1], [first, np.zeros((3, 3))]),
            }[self.tissue]
            out.append((np.array(fractions), np.array(tensors), radius, turn[:, 0]))
        return out

    @cached_property
    def clean(self) -> Array:
        """E (voxels, n), without noise."""
        (b, g, *_), out = self.table, []
        for f, tensors, radius, e1 in self.mixtures:
            parts = np.exp(-b * np.einsum("ki,pij,kj->pk", g, tensors, g))
            if radius:
                along, length = (g @ e1) ** 2, np.linalg.norm(self.table.q, axis=1)
                x = 2 * pi * radius * length * np.sqrt(np.maximum(0, 1 - along))
                free = np.exp(-b * along * (e1 @ tensors[0] @ e1))
                parts[0] = free * truths.restricted_signal("cylinder", x)
            out.append(f @ parts)
        return np.array(out)

    @cached_property
    def signals(self) -> Array:
        """Measured signals (voxels, n), positive, S0 from 100 to 1000."""
        rng, E = self.rng(3), self.clean
        S0, sigma = rng.uniform(100, 1000, (self.voxels, 1)), 1 / self.snr
        noise = sigma * rng.normal(size=(8, *E.shape))
        if self.noise in ("gaussian", "spikes"):
            E = E + noise[0]
        elif self.noise == "rician":
            E = np.hypot(E + noise[0], noise[1])
        elif self.noise == "chi":  # four coils
            E = np.sqrt(((E / 2 + noise[:4]) ** 2 + noise[4:] ** 2).sum(0))
        if self.noise == "spikes":
            where = rng.random(E.shape) < 0.02
            E = np.where(where & (self.table.b > self.table.b0_threshold), 3 * E, E)
        return S0 * np.maximum(E, 1e-9 if self.noise == "none" else 1e-3)

    @cached_property
    def mu(self) -> Array:
        """Scales (voxels, 3) in mm of the mean tensors, descending."""
        return np.array([truths.mixture_frame(f, d, TAU)[0] for f, d, *_ in self.mixtures])

    def condition(self, order: int, typical: bool = False) -> float:
        """Condition number of M'M + weight L, the largest of the mean tensors, or at TYPICAL."""
        weight = self.laplacian if isinstance(self.laplacian, float) else 0.0
        if len(self.table.b) < ordering.n_coef(order):
            return np.inf
        tensors: list[Any] = [(f, d) for f, d, *_ in self.mixtures]
        if typical:
            tensors = [([1.0], [truths.axis_tensor(TYPICAL)])]
        frames = [truths.mixture_frame(f, d, TAU) for f, d in tensors]
        designs = [design(self.table.q, order, *frame) for frame in frames]
        return max(float(np.linalg.cond(M.T @ M + weight * L)) for M, L in designs)

    @cached_property
    def fitted_order(self) -> int:
        """The largest order up to `order` whose condition is below WORST_CONDITION; without a
        weight at TYPICAL as well, by which a program may refuse an order.
        """
        both = (False,) if isinstance(self.laplacian, float) else (False, True)
        for order in range(self.order, 0, -2):
            if all(self.condition(order, typical) < WORST_CONDITION for typical in both):
                return order
        return 0

    @cached_property
    def tolerance(self) -> float:
        """FACTOR eps cond(M'M + weight L), at least LEAST."""
        return max(LEAST, FACTOR * EPS * self.condition(self.fitted_order))

    @property
    def options(self) -> dict[str, Any]:
        """Options of the fit."""
        same = ("basis", "laplacian", "positivity")
        return {"order": self.fitted_order} | {name: getattr(self, name) for name in same}

    def coefficients(self, count: int) -> Array:
        """Random coefficients (count, n) of the case's order and basis with E(0) = 1."""
        a = 0.2 * self.rng(4).standard_normal((count, ordering.n_coef(self.order)))
        a[:, 0] = 1
        return a / (a @ origin(self.order, self.basis))[:, None]

    def frame(self) -> tuple[Array, Array]:
        """Random scales mu (3,) in mm, equal for the isotropic basis, and a frame R (3, 3)."""
        rng = self.rng(5)
        mu = np.sort(1e-3 * rng.uniform(2, 12, 3))[::-1]
        return (np.full(3, mu[1]) if self.basis == "isotropic" else mu), random_rotation(rng)


def design(q: Array, order: int, mu: Array, R: Array) -> tuple[Array, Array]:
    """Functions M (k, n) at q (k, 3), and the Laplacian matrix L (n, n), by mapmri_nb's kernels."""
    index, mu = ordering.index_table(order), np.ascontiguousarray(mu)
    M, L = np.empty((len(q), len(index))), np.empty((len(index),) * 2)
    hermite.signal_rows(np.ascontiguousarray(q @ R), mu, index, M)
    laplacian.matrix(mu, index, L)
    return M, L


def origin(order: int, basis: str) -> Array:
    """Values B (n,) of the functions at q = 0."""
    if basis == "isotropic":
        return ordering.iso_origin_values(order)
    return ordering.origin_values(ordering.index_table(order))


# The first choice is the default of Case, so that a case shrinks towards `Case()`.
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**32 - 1),
    "order": st.sampled_from([2, 4, 6, 8, 10, 0]),
    "scheme": st.sampled_from(["shells", "grid", "jitter", "b0 anywhere", "b0 at 15", "doubled"]),
    "shells": st.sampled_from([3, 1, 2, 4, 5, 6]),
    "volumes": st.just(100) | st.integers(15, 300) | st.integers(300, 600),
    "b0s": st.sampled_from([4, *range(1, 11)]),
    "b_max": st.sampled_from([3000.0, 2000.0, 6000.0, 10000.0]),
    "tissue": st.sampled_from(["gaussian", "crossing", "restricted", "water", "immobile"]),
    "noise": st.sampled_from(["gaussian", "none", "rician", "chi", "spikes"]),
    "snr": st.sampled_from([50.0, 20.0, 200.0]),
    "laplacian": st.sampled_from([0.05, None, 0.2, "gcv", (0.01, 0.05, 0.2)]),
    "basis": st.sampled_from(["anisotropic", "isotropic"]),
}


def cases(**fixed: Any) -> st.SearchStrategy[Case]:
    """Cases with some fields fixed to a value, or drawn from another strategy."""
    given = {k: v if isinstance(v, st.SearchStrategy) else st.just(v) for k, v in fixed.items()}
    return st.builds(Case, **(CHOICES | given))
