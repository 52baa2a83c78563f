"""Normal equations, fitted signals and rotations by moments, against dense rows of the basis."""

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose, assert_array_equal
from phantom import TAU

from mapmri_nb.kernels import frames, lanes, moments, ordering, rotation, tensor
from mapmri_nb.kernels.linalg import block_map

ODD = (0, 90, 180, -90, 1e-8, 89.9999999)
ODD_FRAMES = [truth.rotation(axis, degrees) for axis in range(3) for degrees in ODD]


def filled(x):
    """Voxels first to lanes last, the first voxel repeated in lanes without one."""
    rest = np.repeat(x[:1], lanes.padded(len(x)) - len(x), 0)
    return np.ascontiguousarray(np.concatenate([x, rest]).T)


def turn(angles):
    """The rotation about z, x, z that the tangents of half of the angles in rows 0, 2 and 4 make."""
    degrees = 2 * np.degrees(np.arctan(angles[::2, 0]))
    z1, x, z2 = (truth.rotation(k, a) for k, a in zip((2, 0, 2), degrees, strict=True))
    return z1 @ x @ z2


class Block:
    """Random voxels at random scales and frames, ready for the kernels."""

    def __init__(
        self, order, count, seed=0, isotropic=False, frames=None, b_factor=1.0, own_frame=None
    ):
        rng = np.random.default_rng(seed)
        self.b, self.g = phantom.small_scheme()
        self.b *= b_factor
        self.order, self.isotropic = order, isotropic
        self.mu = 1e-3 * rng.uniform(3, 10, (count, 3))
        if isotropic:
            self.mu[:, 1:] = self.mu[:, :1]
        self.R = phantom.random_rotation(rng, count) if frames is None else np.array(frames)
        self.y = rng.uniform(0.1, 1, (count, len(self.b)))
        self.w = np.ones_like(self.y)
        q = oracle.qvectors(self.b, self.g, TAU)
        self.t, self.s = moments.order_tables(order), moments.scheme(q, TAU, order)
        if own_frame is not None:  # force or forbid the way that does not turn moments
            self.s = self.s._replace(reach=self.s.reach * (1e99 if own_frame else 0.0))
        self.work = moments.workspace(self.t, self.s, order, lanes.padded(count))
        self.D = np.empty((count, 6))
        for l in range(count):
            # flips columns in pairs: R is what is used
            rotation.frame_angles(self.R[l], self.work.angles, l)
            tensor.tensor_elements(self.R[l], self.mu[l] ** 2 / (2 * TAU), self.D.T, l)
        self.work.angles[:] = filled(self.work.angles[:, :count].T)
        self.place = ordering.class_permutation(order)
        self.rows = [
            oracle.phi_matrix(order, self.mu[l], q if isotropic else q @ self.R[l])[:, self.place]
            for l in range(count)
        ]

    def normal_equations(self, plain=True):
        n, V = len(self.place), lanes.padded(len(self.y))
        G, rhs = np.full((n * (n + 1) // 2, V), np.nan), np.full((n, V), np.nan)
        s, work = self.s, self.work
        mu, degree = filled(self.mu), 2 * self.order
        work.own[:] = np.nan
        moments.fixed_moments(s, filled(self.y), filled(self.w), plain, filled(self.D), work)
        if not self.isotropic:
            rotation.rotate(self.t.shears, work.angles, work.high)
            rotation.rotate(self.t.shears_low, work.angles, work.low)
            moments.expected_rounding(s, work.gg, mu, degree, work.high, work.strain)
        moments.hermite_moments(self.t, s, degree, mu, work)
        if not self.isotropic:
            for l in range(0, V, lanes.WIDTH):
                moments.own_frame(self.t, s, degree, False, mu, l, work)
        block_map(self.t.gram, work.hermite, G)
        block_map(self.t.right, work.low, rhs)
        return G, rhs

    def check(self, plain=True):
        """Within ten times the rounding that the kernel expects of turned moments."""
        G, rhs = self.normal_equations(plain)
        i, j = np.tril_indices(len(self.place))
        for l, m in enumerate(self.rows):
            want = m.T @ (self.w[l][:, None] * m)
            turned = 0 <= self.work.strain[0, l] < moments.LARGEST_ROUNDING and not self.isotropic
            tolerance = 2e-11 + (10 * self.work.strain[0, l] if turned else 0)
            assert np.abs(G[:, l] - want[i, j]).max() <= tolerance * np.abs(want).max()
            right = m.T @ (self.w[l] * self.y[l])
            assert np.abs(rhs[:, l] - right).max() <= 1e-9 * np.abs(right).max()
        return G, rhs


@pytest.mark.parametrize("order", [0, 2, pytest.param(4, marks=pytest.mark.nojit), 6, 8, 10])
def test_normal_equations_against_dense_rows(order, rng):
    """Of plain samples, and of weighted ones."""
    block = Block(order, 6, seed=order)
    block.check()
    block.w[:] = rng.uniform(0, 2, block.w.shape)
    block.w[1, ::3] = 0
    block.check(plain=False)


def test_normal_equations_in_special_frames():
    """The fixed one; quarter and half turns, where an angle of the three shears is undefined or at
    its largest.
    """
    Block(6, 3, isotropic=True).check()
    Block(6, len(ODD_FRAMES), frames=ODD_FRAMES).check()


@pytest.mark.parametrize("order", [pytest.param(2, marks=pytest.mark.nojit), 6, 8])
def test_moments_in_the_own_frame(order):
    """No rotation, no cancellation: the other way to the moments, alone or beside turned lanes."""
    mixed = Block(order, 6, b_factor=3.0)
    ways = [Block(order, 6, b_factor=3.0, own_frame=own) for own in (False, True)]
    got = mixed.check()
    strain = mixed.work.strain[0, :6]
    assert strain.min() < moments.LARGEST_ROUNDING
    assert order != 2 or strain.max() < 1e-12
    assert order != 8 or strain.max() > moments.LARGEST_ROUNDING
    ways = [ways[0].normal_equations(), ways[1].check()]
    for l in range(6):
        chosen = ways[int(strain[l] > moments.LARGEST_ROUNDING)]
        assert all(np.array_equal(a[:, l], b[:, l]) for a, b in zip(got, chosen, strict=True))


def test_turned_moments_lose_what_was_expected():
    """The estimate that decides is an upper bound (times ten), and one that is nearly reached."""
    i, j = np.tril_indices(ordering.n_coef(8))
    for factor in (1.0, 2.0, 3.0):
        block = Block(8, 12, b_factor=factor, own_frame=False)
        G, _ = block.normal_equations()
        expected = Block(8, 12, b_factor=factor)
        expected.normal_equations()
        ratio = []
        for l, m in enumerate(block.rows):
            want = m.T @ m
            lost = np.abs(G[:, l] - want[i, j]).max() / np.abs(want).max()
            ratio.append(lost / (expected.work.strain[0, l] + 1e-13))
        assert 0.03 < max(ratio) < 10


@pytest.mark.nojit
def test_frame_angles_only_flip_columns(rng):
    for frame in [*ODD_FRAMES, *phantom.random_rotation(rng, 200)]:
        used, angles = np.array(frame), np.zeros((6, 1))
        rotation.frame_angles(used, angles, 0)
        sign = np.sum(used * frame, axis=0)
        assert_allclose(np.abs(sign), 1, atol=1e-14)
        assert_array_equal(used, frame * np.sign(sign))
        assert np.prod(sign) > 0
        assert np.abs(angles[::2]).max() <= 1 + 1e-15  # tan(half angle): the shears stay stable
        assert_allclose(np.sin(2 * np.arctan(angles[::2, 0])), angles[1::2, 0], atol=1e-15)
        assert_allclose(turn(angles), used, atol=3e-15)


@pytest.mark.parametrize("order", [pytest.param(2, marks=pytest.mark.nojit), 6, 10])
def test_rotation_of_coefficients(order, rng):
    """At equal scales P stays when coefficients and frame turn, with any signs of the columns."""
    turns = np.array([*ODD_FRAMES, *phantom.random_rotation(rng, 6)])
    turns[::2, :, 1] *= -1  # determinant -1
    fixed = rng.normal(size=(len(turns), ordering.n_coef(order)))
    t, index = moments.order_tables(order), ordering.index_table(order)
    root, turned = ordering.factorial_roots(order), fixed.copy()
    frames.turn(turned, np.swapaxes(turns, 1, 2).copy(), t, index, root)
    mu, r = np.full(3, 6e-3), 8e-3 * rng.normal(size=(40, 3))
    here = oracle.psi_matrix(order, mu, r)
    for l, frame in enumerate(turns):
        want, got = here @ fixed[l], oracle.psi_matrix(order, mu, r @ frame) @ turned[l]
        assert np.abs(got - want).max() <= 1e-12 * np.abs(want).max()
    assert_allclose((turned**2).sum(1), (fixed**2).sum(1), rtol=1e-12)  # a rotation keeps int P^2
    frames.turn(turned, turns, t, index, root)
    assert_allclose(turned, fixed, atol=1e-12 * np.abs(fixed).max())


@pytest.mark.nojit
def test_a_linear_map_is_three_shears_and_scales_after_a_turn(rng):
    """A = T Q, T lower triangular: with A of either determinant."""
    for A in rng.normal(size=(20, 3, 3)):
        angles, skew = np.zeros((6, 1)), np.zeros((3, 1))
        stretch = np.zeros((3, 1))
        rotation.linear_angles(A, angles, skew, stretch, 0)
        T = np.eye(3)
        T[[2, 2, 1], [1, 0, 0]] = skew[:, 0]
        assert_allclose(stretch * T @ turn(angles).T, A, atol=1e-12)
