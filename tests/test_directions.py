"""Direction sets, spherical harmonics, ODF in spherical harmonics, peaks, GFA."""

import math

import numpy as np
import oracle
import pytest
from phantom import random_rotation, unit
from shell import refused

from mapmri_nb import directions
from mapmri_nb.kernels import ordering
from mapmri_nb.testing import truths


def field(coef, mu, R, s=2.0):
    return directions.OdfField(coef, mu, R, oracle.order_of(coef[0]), s)


def draw(order, n, seed, ratio=2.4):
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(n, ordering.n_coef(order))) / (2 + np.arange(ordering.n_coef(order)))
    coef[:, 0] = 1.0
    mu = 3e-3 * np.stack([np.full(n, ratio), np.full(n, 1.1), np.ones(n)], 1)
    return coef, mu, np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]


def crossing(angle, order, isotropic=False, tau=0.03, seed=0):
    """Two Gaussians (1.7, .3, .3) crossing, projected on the basis, in a random frame; fibres."""
    _, tensors = truths.crossing(angle / 2)
    fibres = np.array([truths.rotation(2, s * angle / 2)[:, 0] for s in (1, -1)])
    mu = np.sqrt(2 * tau * np.diag(sum(tensors) / 2))
    mu = np.full(3, oracle.isotropic_scale(mu)) if isotropic else mu
    coef = 0.0
    for D in tensors:  # a_n = 8 pi^(3/2) prod(mu) int Psi_n P dr, where both are wide
        precision = np.linalg.inv(2 * tau * D)
        root = np.linalg.inv(np.linalg.cholesky(precision + np.diag(mu**-2.0))).T * math.sqrt(2)
        t, w = oracle.nodes(order // 2 + 2, np.ones(3))
        r = t @ root.T
        P = np.exp(-0.5 * np.einsum("ki,ij,kj->k", r, precision, r))
        P *= math.sqrt(np.linalg.det(precision / (2 * math.pi))) * abs(np.linalg.det(root)) / 2
        coef = coef + 8 * math.pi**1.5 * np.prod(mu) * oracle.psi_matrix(order, mu, r).T @ (w * P)
    R = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return coef[None], mu[None], R[None], fibres @ R.T


@pytest.mark.nojit
@pytest.mark.parametrize("n", [100, 362, 724])
def test_sphere(n):
    vertices, faces = directions.sphere(n)
    assert vertices.shape == (n, 3)
    assert np.array_equal(vertices[n // 2 :], -vertices[: n // 2])
    assert np.abs(np.linalg.norm(vertices, axis=1) - 1).max() < 1e-14
    assert len(faces) == 2 * n - 4  # Euler: a closed triangulated surface
    assert np.all(np.linalg.det(vertices[faces]) > 0)
    nearest = np.sort(np.arccos(np.clip(vertices @ vertices.T, -1, 1)), axis=1)[:, 1]
    assert nearest.min() > 0.8 * math.sqrt(4 * math.pi / n)  # even: no two points crowd
    assert directions.sphere(n) is directions.sphere(n)
    with pytest.raises(ValueError, match="read-only"):
        vertices[0] = 0


def test_a_field_normalises_directions_and_wrong_values_are_named():
    coef, mu, R = draw(4, 2, 0)
    odf = field(coef, mu, R)
    vertices = directions.sphere(100).vertices
    whole = odf(vertices)
    assert np.array_equal(whole[:, :50], whole[:, 50:])
    assert whole == pytest.approx(odf(vertices[::-1])[:, ::-1], rel=1e-12)
    assert odf(3 * vertices[:7]) == pytest.approx(whole[:, :7], rel=1e-12)
    for bad in ([1, 0, 0], [[1, 0]], [[1, 0, 0], [0, 0, 0]], [[np.nan, 0, 1]]):
        refused("directions must", odf, bad)
    for bad in (-3.0, np.nan, np.inf, 101):
        refused(f"s must be a number above -3.*{bad}", field, coef, mu, R, bad)
    for name, value in (("n_peaks", 0), ("relative", 2), ("relative", -1), ("separation", 91)):
        refused(f"{name} must .* got {value}", directions.peaks, odf, **{name: value})
    for order in (3, -2, 34):
        refused(f"sh_order.*got {order}", directions.sh_matrix, vertices, order)
    refused("100, 362, 724.*got 642", directions.sphere, 642)
    refused(r"points .* shape \(K, 3\): got \(2, 2\)", directions.sh_matrix, np.eye(2), 4)
    refused("sh_basis.*got 'mrtrix'", directions.sh_matrix, vertices, 4, "mrtrix")
    refused("got 7", directions.convert_sh, np.zeros(7), "tournier07", "descoteaux07")


def test_gfa():
    assert directions.gfa(np.ones((2, 100))) == pytest.approx(0, abs=1e-12)
    spike = np.zeros(724)
    spike[3] = 2.0
    assert directions.gfa(spike) == pytest.approx(1.0)
    assert directions.gfa(np.zeros(10)) == 0
    refused(r"at least 2 directions .* shape \(1,\)", directions.gfa, [1.0])
    f = np.random.default_rng(0).uniform(size=50)
    want = math.sqrt(50 * ((f - f.mean()) ** 2).sum() / (49 * (f**2).sum()))  # [Tuch 2004]
    assert directions.gfa(f[None]) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("basis", directions.SH_BASES)
def test_harmonics_equal_those_of_dipy(basis):
    shm = pytest.importorskip("dipy.reconst.shm")
    points = np.concatenate([directions.sphere(100).vertices, np.eye(3), -np.eye(3)])
    theta, phi = np.arccos(points[:, 2]), np.arctan2(points[:, 1], points[:, 0])
    maker = shm.real_sh_tournier if basis.startswith("tournier") else shm.real_sh_descoteaux
    with pytest.warns(PendingDeprecationWarning) if basis.endswith("legacy") else np.errstate():
        want, m, l = maker(10, theta, phi, legacy=basis.endswith("legacy"))
    assert directions.sh_matrix(points, 10, basis) == pytest.approx(want, abs=2e-13)
    assert np.array_equal(l * (l + 1) // 2 + m, np.arange(66))


@pytest.mark.parametrize("basis", directions.SH_BASES)
def test_conversion_and_rotation_of_coefficients(basis):
    """The values along directions are those of the other basis, or those that were turned."""
    rng, points = np.random.default_rng(1), directions.sphere(100).vertices
    coef = rng.normal(size=(3, 45))
    values = coef @ directions.sh_matrix(points, 8, basis).T
    for target in directions.SH_BASES:
        other = directions.convert_sh(coef, basis, target)
        assert other @ directions.sh_matrix(points, 8, target).T == pytest.approx(values, abs=1e-12)
    for determinant in (1, -1):
        Q = determinant * random_rotation(rng)
        turned = coef @ directions.sh_rotation(Q, 8, basis).T
        found = turned @ directions.sh_matrix(points @ Q.T, 8, basis).T
        assert found == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("order", [6, 10])
@pytest.mark.parametrize("ratio", [1.1, 6.0])
def test_anisotropic_odf_sh_meets_its_tolerance(order, ratio):
    coef, mu, R = draw(order, 2, order, ratio)
    odf = field(coef, mu, R, 2.0)
    got = directions.odf_sh(odf, 8)
    points, weights = directions.quadrature(150)
    want = odf(points) @ (directions.sh_matrix(points, 8) * weights[:, None])
    peak = np.abs(odf(directions.sphere().vertices)).max(1)
    assert (np.abs(got - want).max(1) / peak).max() < 1e-8


EXACT = pytest.param(90, 6, 1e-4, marks=pytest.mark.nojit)


@pytest.mark.parametrize(
    ("angle", "order", "tolerance"), [EXACT, (90, 8, 1e-4), (60, 8, 4.0), (60, 10, 2.0)]
)
@pytest.mark.parametrize("isotropic", [False, True])
def test_peaks_of_crossings(angle, order, tolerance, isotropic):
    """The symmetric crossing at 90 degrees is exact; below, lobes pull each other. From any set."""
    coef, mu, R, fibres = crossing(angle, order, isotropic)
    found, heights = directions.peaks(field(coef, mu, R))
    coarse = directions.peaks(field(coef, mu, R), n=362)
    assert coarse[1] == pytest.approx(heights, rel=1e-9, nan_ok=True)
    same = np.abs(coarse[0][0, :2] @ found[0, :2].T).max(1)  # lobes of one height in any order
    assert same == pytest.approx(1, abs=1e-9)
    assert np.isfinite(heights[0]).sum() == 2
    assert heights[0, 0] >= heights[0, 1]
    cosines = np.abs(found[0, :2] @ fibres.T)
    assert np.linalg.norm(found[0, :2], axis=1) == pytest.approx(1)
    assert np.degrees(np.arccos(np.minimum(cosines.max(1), 1))).max() < tolerance
    assert set(cosines.argmax(1)) == {0, 1}


def test_peaks_are_stationary_points_of_the_harmonics():
    coef, mu, R = draw(6, 30, 5)
    odf = field(coef, mu, R)
    found, heights = directions.peaks(odf)
    rows, which = np.nonzero(np.isfinite(heights))
    assert len(rows) >= 30
    assert np.isfinite(heights[:, 0]).all()
    d, harmonics = found[rows, which], directions.odf_sh(odf, 6)[rows]

    def at(d, keep=slice(None)):
        return np.einsum("mk,mk->m", directions.sh_matrix(d, 6), harmonics[keep])

    assert at(d) == pytest.approx(heights[rows, which])
    for axis in np.eye(3):
        use = np.abs(d @ axis) < 0.99
        side, h = unit(np.cross(d, axis)[use]), 1e-4
        up, down = (at(unit(d[use] + sign * h * side), use) for sign in (1, -1))
        assert np.abs((up - down) / (2 * h)).max() < 1e-4 * heights[rows, which].max()
        assert (up + down - 2 * heights[rows, which][use]).max() < 0
    values = directions.odf_sh(odf, 6) @ directions.sh_matrix(directions.sphere().vertices, 6).T
    assert np.all(heights[:, 0] >= values.max(1) * (1 - 1e-12))


def test_thresholds_of_peaks():
    odf = field(*draw(6, 40, 8, ratio=1.2))
    near = {"n_peaks": 20, "separation": 1.0}
    high, half = (directions.peaks(odf, relative=r, **near)[1] for r in (0.0, 0.5))
    grid = directions.sh_matrix(directions.sphere().vertices, directions.DEGREE)
    floor = np.maximum((directions.odf_sh(odf, directions.DEGREE) @ grid.T).min(1), 0)[:, None]
    share = (high - floor) / (high[:, :1] - floor)
    assert np.array_equal(np.isfinite(half).sum(1), (share >= 0.5).sum(1))
    apart, heights = directions.peaks(odf, relative=0.0, separation=60.0)
    assert np.isfinite(high).sum() > max(np.isfinite(x).sum() for x in (half, heights))
    assert np.all(np.diff(np.nan_to_num(heights), axis=1) <= 0)
    cosines = np.abs(np.einsum("vik,vjk->vij", apart, apart))
    cosines[:, np.arange(5), np.arange(5)] = 0
    assert np.nanmax(cosines) <= 0.5
    few, highest = directions.peaks(odf, n_peaks=1)
    assert few.shape == (40, 1, 3)
    assert highest == pytest.approx(heights[:, :1], rel=1e-12)


@pytest.mark.parametrize("s", [0.0, 2.0])
@pytest.mark.parametrize("basis", directions.SH_BASES)
def test_isotropic_odf_sh_is_the_odf(s, basis):
    """Of degree up to the radial order and no more [Fick 2016, Eq. C8]."""
    rng, points = np.random.default_rng(3), directions.sphere(100).vertices
    aniso = rng.normal(size=(4, 50)) @ ordering.iso_to_aniso(6).T
    odf = field(aniso, np.full((4, 3), 5e-3), np.stack([np.eye(3)] * 4), s)
    got, want = directions.odf_sh(odf, 6, basis), odf(points)
    values = got @ directions.sh_matrix(points, 6, basis).T
    assert np.abs(values - want).max() <= 1e-12 * np.abs(want).max()
    more = directions.odf_sh(odf, 10, basis)
    assert np.abs(more[:, :28] - got).max() <= 1e-12 * np.abs(got).max()
    assert np.abs(more[:, 28:]).max() <= 1e-12 * np.abs(got).max()


def test_no_peak_where_no_direction_is_preferred_or_nothing_was_fitted():
    coef, mu, R = draw(4, 3, 0)
    coef[0, 1:], mu[0] = 0.0, 5e-3
    coef[1] = np.nan
    odf = field(coef, mu, R)
    found, heights = directions.peaks(odf)
    harmonics = directions.odf_sh(odf, 4)
    assert np.isnan(found[:2]).all()
    assert np.isnan(heights[:2]).all()
    assert np.isfinite(heights[2, 0])
    assert np.isnan(harmonics).all(1).tolist() == [False, True, False]
    assert np.isfinite(harmonics[[0, 2]]).all()
