"""
Known answers (mixtures, restricted diffusion): every printed digit of the reference, closed forms
by quadrature.
"""

from math import pi, sqrt

import numpy as np
import oracle
import pytest
import truth
from scipy import integrate, special
from truth import assert_digits

pytestmark = pytest.mark.nojit  # nothing here is compiled
TAU = 0.03


# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize("name", truth.MIXTURES)
def test_mixture_table(name):
    got = truth.mixture_truth(*truth.MIXTURES[name], TAU)
    for column, text in zip(truth.MIXTURE_COLUMNS, truth.MIXTURE_TABLE[name].split(), strict=True):
        if text == "0":
            assert got[column] <= 2e-7
        else:
            assert_digits(got[column], text)


def test_spherical_mean_closed_form():
    """Prolate: exp(-r^2/2s_par^2) Dawson(a)/a; oblate: exp(-r^2/2s_perp^2) sqrt(pi)/2 erf(a)/a."""
    for par, perp in ((1.7e-3, 0.3e-3), (0.3e-3, 1.7e-3)):
        p, t = 2 * TAU * par, 2 * TAU * perp

        def mean(r, p=p, t=t):
            a = r * sqrt(abs(1 / t - 1 / p) / 2)
            prolate = special.dawsn(a) * np.exp(-(r**2) / 2 / p)
            oblate = sqrt(pi) / 2 * special.erf(a) * np.exp(-(r**2) / 2 / t)
            return (2 * pi) ** -1.5 / (sqrt(p) * t) * (prolate if p > t else oblate) / a

        want = (
            4
            * pi
            * integrate.quad(
                lambda r, mean=mean: r**2 * mean(r) ** 2, 1e-12, 0.1, epsabs=0, limit=500
            )[0]
        )
        assert truth.spherical_mean_norm2([1.0], np.array([np.diag([p, t, t])])) == pytest.approx(
            want, rel=1e-9
        )


def project(fractions, tensors, tau, order, nodes=60):
    """
    L2 projection of a mixture on MAP(order) at the mean tensor's scales: coefficients and scales.
    """
    mu, frame = truth.mixture_frame(fractions, tensors, tau)
    grid, w = special.roots_hermite(nodes)
    x, w = grid * 1.2, w * np.exp(grid**2) * 1.2
    points = np.stack(np.meshgrid(x, x, x, indexing="ij"), -1) * mu
    p = 0.0
    for f, d in zip(fractions, tensors, strict=True):
        s = np.linalg.inv(2 * tau * frame.T @ d @ frame)
        norm = f * (2 * pi) ** -1.5 * sqrt(np.linalg.det(s))
        p = p + norm * np.exp(-np.einsum("...i,ij,...j->...", points, s, points) / 2)
    h = np.array([w * oracle.hermite1d(k, x) for k in range(order + 1)])
    dense = np.einsum("ai,bj,ck,ijk->abc", h, h, h, p, optimize=True)
    return dense[tuple(oracle.aniso_table(order).T)] * np.prod(mu) * 8 * pi**1.5 / (
        2 * pi
    ) ** 1.5, mu


@pytest.mark.parametrize(
    ("order", "errors"),
    [(6, "-1.7e-2 -4.9e-3 -4.9e-3 -6.9e-2 6.7e-2"), (10, "-3.2e-3 4.8e-4 4.8e-4 -1.8e-2 1.6e-2"),
     (16, "-2.9e-4 5e-6 5e-6 2.3e-3 2.0e-3")],
)  # fmt: skip
def test_projection_converges_to_the_mixture(order, errors):
    a, mu = project(*truth.MIXTURES["X60"], TAU, order)
    got, want = oracle.aniso_indices(a, mu), truth.mixture_truth(*truth.MIXTURES["X60"], TAU)
    for key, text in zip(("rtop", "rtap", "rtpp", "msd", "qiv"), errors.split(), strict=True):
        assert_digits(got[key] / want[key] - 1, text)
    for key in ("ng", "ng_par", "ng_perp", "lapnorm", "e2"):
        assert got[key] == pytest.approx(want[key], rel={6: 0.2, 10: 0.03, 16: 2e-3}[order])


LS_RATIOS = [
    ("3x90", 6, "X60", ".94724 .97392 .99890 .99129 1.21091"),
    ("3x90", 6, "X90", ".92018 .92163 .94891 .98479 1.34903"),
    ("3x90", 6, "BiIso", ".93805 .98063 1.00486 .82935 1.23351"),
    ("3x90", 6, "WM3", ".61557 .61253 .99649 .94962 3.93512"),
    ("MGH", 8, "X60", ".98433 .98619 .99738 1.03047 1.09627"),
    ("MGH", 8, "WM3", ".81443 .81317 1.02797 .87820 2.03733"),
]


@pytest.mark.parametrize(("scheme", "order", "name", "ratios"), LS_RATIOS)
def test_least_squares_ratios(scheme, order, name, ratios):
    b, g = truth.scheme_3x90() if scheme == "3x90" else truth.scheme_mgh()
    mixture = truth.MIXTURES[name]
    mu, turn = truth.mixture_frame(*mixture, TAU)
    m = oracle.phi_matrix(order, mu, oracle.qvectors(b, g, TAU) @ turn)
    a = oracle.constrained_lstsq(
        m, truth.mixture_signal(*mixture, b, g), oracle.aniso_origin(order)
    )
    got, want = oracle.aniso_indices(a, mu), truth.mixture_truth(*mixture, TAU)
    for key, text in zip(("rtop", "rtap", "rtpp", "msd", "qiv"), ratios.split(), strict=True):
        assert_digits(got[key] / want[key], text)
    assert abs(got["ng"] - want["ng"]) < (0.15 if name == "WM3" else 0.02) or name in (
        "X90",
        "BiIso",
    )


# ---------------------------------------------------------------- restricted diffusion

GEOMETRIES = ["planes", "cylinder", "sphere"]


@pytest.mark.parametrize(
    ("geometry", "n_max", "k_max", "tolerance"),
    [("planes", 0, 20000, 1e-12), ("cylinder", 59, 60, 6e-7), ("sphere", 39, 40, 2e-6)],
)
def test_finite_time_sums(geometry, n_max, k_max, tolerance):
    x = np.array([0.3, 1.0, 2.5, 4.1])
    np.testing.assert_allclose(
        truth.restricted_sum(geometry, x, 0.0, n_max, k_max), 1, atol=tolerance
    )
    long = truth.restricted_sum(geometry, x, 20.0, min(n_max, 5), 5)
    np.testing.assert_allclose(long, truth.restricted_signal(geometry, x), rtol=1e-14)
    middle = truth.restricted_sum(
        geometry, x, 0.1, min(n_max, 12), 12
    )  # and it lies between free and long-time
    assert np.all(middle > truth.restricted_signal(geometry, x))
    assert np.all(middle < 1)


def test_slowest_rates_and_first_zeros():
    assert_digits(special.jnp_zeros(1, 1)[0] ** 2, "3.3900")
    assert_digits(truth.spherical_zeros(1, 1)[0] ** 2, "4.3330")
    assert_digits(pi**2, "9.8696")
    for geometry, zero in (("planes", 1.0), ("cylinder", 0.60983), ("sphere", 0.71515)):
        assert truth.restricted_signal(geometry, 2 * pi * zero) < 1e-9
        assert np.all(
            truth.restricted_signal(geometry, 2 * pi * np.linspace(0.01, 0.99 * zero, 50)) > 0
        )


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_restricted_closed_forms(geometry):
    size = 5e-3
    d = GEOMETRIES.index(geometry) + 1
    top = size if d == 1 else 2 * size
    area = (2.0, 2 * pi, 4 * pi)[d - 1]
    msd, at_zero = truth.restricted_truth(geometry, size)

    def moment(k, q=None):
        plane_wave = {1: np.cos, 2: special.j0, 3: lambda x: special.spherical_jn(0, x)}[d]

        def f(r):
            wave = 1.0 if q is None else plane_wave(2 * pi * q * r)
            return area * truth.restricted_propagator(geometry, size, r) * r ** (d - 1 + k) * wave

        return integrate.quad(f, 0, top, epsrel=1e-11, epsabs=0, limit=200)[0]

    assert moment(0) == pytest.approx(1, rel=1e-10)
    assert moment(2) == pytest.approx(msd, rel=1e-10)
    assert truth.restricted_propagator(geometry, size, 0.0) == pytest.approx(at_zero, rel=1e-14)
    for q in (20.0, 70.0):
        assert moment(0, q) == pytest.approx(
            truth.restricted_signal(geometry, 2 * pi * q * size), rel=1e-8
        )


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_order_buys(geometry):
    for order, value in zip(truth.PROJECTED_ORDERS, truth.PROJECTED[geometry], strict=True):
        assert_digits(truth.projected_ratio(geometry, order), f"{value:.4f}")
    if geometry == "planes":  # the radial functions are the even Hermite functions
        u = 1 / sqrt(6)
        t, w = special.roots_legendre(400)
        r, w = (t + 1) / 2, w
        total = sum((w @ (truth.restricted_propagator("planes", 1.0, r) * oracle.hermite1d(n, r / u)))
                    * oracle.hermite1d(n, 0.0) for n in range(0, 9, 2)) / (sqrt(pi) * u)  # fmt: skip
        assert total == pytest.approx(truth.projected_ratio("planes", 8), rel=1e-12)
