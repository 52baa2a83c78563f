"""Where other programs are wrong, each claim made again.

DIPY is run. Of the others, which need MATLAB, ITK or Gurobi, single formulas are evaluated as their
sources have them (repositories and files in SOURCES), written down anew: that says what the formula
gives, not what the program prints.
"""

import inspect
import warnings
from contextlib import contextmanager
from math import factorial

import numpy as np
import oracle
import truth
from against_dipy import crossing_fit, dipy_table, gcv_scaling, other_table, turned
from common import TAU, Case, Table, mapmri
from golden import golden_a, golden_c
from integrals import Quadrature, sphere_rule
from scipy.special import factorial2, gamma

SOURCES = {
    "TORTOISE V4": "QMICodeBase/TORTOISEV4, src/tools/ComputeMAPMRI_{RTOP,NG,PA}",
    "dMRI-Lab": "atriveg/dmrimatlab, mexcode/mapl/mapl2index_.cpp",
    "diffusion_toolbox": "xuagu37/diffusion_toolbox, cpp/MAPMRI.cpp",
    "MAP-MRI (MATLAB)": "maryshari/MAP-MRI, mapmri_NG_par.m, mapmri_NG_per.m",
}
INTEGRAL, CLOSED, DEFINITION = "integral of the propagator", "closed form", "definition"


def pa_cos2(a, mu, k_max=5):
    """cos^2 theta of P and its projection on the radial functions at u0; 1-D overlaps by
    quadrature.
    """
    order, u0 = oracle.order_of(a), oracle.isotropic_scale(mu)
    n, high = oracle.aniso_table(order), 2 * k_max
    overlap = []
    for m in mu:
        scale = np.full(3, np.sqrt(2 / (1 / m**2 + 1 / u0**2)))
        x, w = oracle.nodes((order + high) // 2 + 2, scale, (0,))
        f = np.array([oracle.hermite1d(k, x[:, 0] / m) for k in range(order + 1)]) / np.sqrt(m)
        g = np.array([oracle.hermite1d(k, x[:, 0] / u0) for k in range(high + 1)]) / np.sqrt(u0)
        overlap.append((f * w) @ g.T / np.sqrt(np.pi))
    total = 0.0
    for k in range(k_max + 1):
        g_k = 0.0
        for i1 in range(0, 2 * k + 1, 2):
            for i2 in range(0, 2 * k + 1 - i1, 2):
                i3 = 2 * k - i1 - i2
                b = oracle.origin1d(i1) * oracle.origin1d(i2) * oracle.origin1d(i3)
                g_k += b * np.sum(
                    a * overlap[0][n[:, 0], i1] * overlap[1][n[:, 1], i2] * overlap[2][n[:, 2], i3]
                )
        total += g_k**2 / (gamma(k + 1.5) / (gamma(k + 1) * gamma(1.5)))
    return total / np.sum(np.square(a))


def off(theirs, true, tolerance=1e-3):
    """A pair of numbers, and whether they differ by more than a share of the true one."""
    return theirs, true, bool(not abs(theirs - true) <= tolerance * abs(true))


@contextmanager
def silent():
    """Without the warnings of a program that is made to go wrong."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def raises(call):
    """Name of the exception of a call, or "nothing"."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


# ---------------------------------------------------------------- DIPY, run


def gaussian(b, g, d=(1.7, 0.3, 0.3)):
    return truth.mixture_signal([1.0], [truth.axis_tensor(d)], b, g)


def scheme():
    b, g = truth.scheme([60] * 3, [1000, 2000, 3000])
    return b, g, dipy_table(mapmri.GradientTable(b, g, tau=TAU))


def model(order=6, **options):
    """DIPY's model of the simulated table."""
    from dipy.reconst.mapmri import MapmriModel

    return MapmriModel(scheme()[2], radial_order=order, **options)


def plain(order=6):
    return model(order, laplacian_regularization=False)


def of_coefficients(fit):
    """DIPY's fit with the coefficients of ours."""
    from dipy.reconst.mapmri import MapmriFit

    return MapmriFit(plain(fit.order), fit.coef[0], fit.mu[0], fit.R[0], 0.0)


def index(name, ours):
    def claim():
        fit = crossing_fit("X60")
        return off(float(getattr(of_coefficients(fit), name)()), float(Quadrature(fit).all()[ours]))

    return claim


def perpendicular():
    rows = turned(True)[1][0].rows
    theirs, ours = (max(row[k] for row in rows) - min(row[k] for row in rows) for k in (2, 1))
    return theirs, ours, theirs > 1e-3 and ours < 1e-12


def inequality():
    found = truth.mixture_truth(*truth.MIXTURES["X60"], TAU)
    return (
        "NG >= NG_par",
        f"{found['ng']:.4f} < {found['ng_par']:.4f}",
        bool(found["ng"] < found["ng_par"]),
    )


def array_of_weights():
    from dipy.reconst.mapmri import generalized_crossvalidation_array as choose

    b, g, y, tau, mu, _ = golden_c()
    m, lap = oracle.phi_matrix(6, mu, oracle.qvectors(b, g, tau)), oracle.laplacian_matrix(6, mu)
    weights = np.array([0.05, 0.5])
    best = weights[np.argmin(oracle.gcv(m, lap, y, weights)[0])]
    alone = raises(lambda: choose(y, m, lap, weights_array=weights[:1]))
    theirs = float(choose(y, m, lap, weights_array=weights))
    return (
        f"{theirs:g}; of one weight: {alone}",
        f"{best:g}",
        theirs != best and alone == "IndexError",
    )


def unit_of_intensity():
    ours, theirs = gcv_scaling(True)[1][0].rows[0][1:]
    return theirs, 0.0, theirs > 1e-4 > ours


def handlers():
    from dipy.reconst import mapmri as module

    count = inspect.getsource(module).count("except np.linalg.linalg.LinAlgError")
    there = hasattr(np.linalg, "linalg")
    return (
        f"{count} handlers name np.linalg.linalg",
        "there" if there else "not in this NumPy",
        count > 0 and not there,
    )


def order_twelve():
    """Global constraints at an order for which DIPY has no matrices."""
    from dipy.reconst.mapmri import MapmriModel, create_rspace

    b, g = truth.scheme([90] * 9, np.linspace(500, 12000, 9))
    table = dipy_table(mapmri.GradientTable(b, g, tau=TAU))
    y = truth.mixture_signal(*truth.MIXTURES["WM3"], b, g) + 0.02 * np.random.default_rng(
        4
    ).standard_normal(len(b))
    options = {
        "positivity_constraint": True,
        "global_constraints": True,
        "cvxpy_solver": "CLARABEL",
    }
    fit = MapmriModel(table, radial_order=12, **options).fit(y)
    P = fit.pdf(create_rspace(15, np.sqrt(5) * fit.mu.max()))
    return float(P.min() / P.max()), ">= 0", bool(not P.min() >= -1e-6 * P.max())


def ignored_weight():
    b, g, _ = scheme()
    y = truth.mixture_signal(*truth.MIXTURES["WM3"], b, g)
    options = {
        "positivity_constraint": True,
        "global_constraints": True,
        "cvxpy_solver": "CLARABEL",
    }
    one, two = (
        model(6, laplacian_weighting=w, **options).fit(y).mapmri_coeff for w in (0.2, 100.0)
    )
    change = float(np.abs(one - two).max())
    return change, "> 0", change == 0


def units_of_length():
    """The grid's constraint in micrometres and milliseconds: smallest P over its peak, and in
    millimetres and seconds.
    """
    from dipy.core.gradients import gradient_table
    from dipy.reconst.mapmri import MapmriModel, create_rspace

    b, g, _ = scheme()
    y = truth.mixture_signal(*truth.MIXTURES["WM3"], b, g) + 0.03 * np.random.default_rng(
        3
    ).standard_normal(len(b))
    found = []
    for length, time in ((1.0, 1.0), (1e3, 1e3)):
        table = gradient_table(
            b * time / length**2,
            bvecs=g,
            big_delta=TAU * time,
            small_delta=0.0,
            b0_threshold=50 / 1e3,
        )
        options = {
            "positivity_constraint": True,
            "laplacian_regularization": False,
            "cvxpy_solver": "CLARABEL",
        }
        fit = MapmriModel(
            table, radial_order=6, eigenvalue_threshold=1e-4 * length**2 / time, **options
        ).fit(y)
        P = (
            oracle.psi_matrix(6, fit.mu, create_rspace(15, np.sqrt(5) * fit.mu.max()))
            @ fit.mapmri_coeff
        )  # its own grid
        found.append(float(P.min() / P.max()))
    return found[1], found[0], found[1] < 10 * found[0] - 1e-3


def order_eighteen():
    b, g, _ = scheme()
    theirs = raises(lambda: model(18).fit(gaussian(b, g)))
    return theirs, "a fit, or a refusal in words", theirs == "TypeError"


def singular():
    b, g, _ = scheme()
    fit = plain(8).fit(gaussian(b, g))
    ratio = float(
        fit.rtop() / truth.mixture_truth([1.0], [truth.axis_tensor((1.7, 0.3, 0.3))], TAU)["rtop"]
    )
    return (
        f"{ratio:.3g}, errorcode {fit.errorcode}",
        "1",
        bool(abs(ratio - 1) > 0.1 and fit.errorcode == 0),
    )


def odd_weights():
    b, g, _ = scheme()
    minus = raises(lambda: model(4, laplacian_weighting=-1).fit(gaussian(b, g)))
    several = raises(lambda: model(4, laplacian_weighting=[0.1, 0.2]).fit(gaussian(b, g)))
    return (
        f"-1: {minus}; a list: {several}",
        "-1: refused; a list: tried",
        (minus, several) == ("nothing", "AttributeError"),
    )


def floor():
    b, g, _ = scheme()
    mu = plain(2).fit(gaussian(b, g, (0.05, 0.04, 0.03))).mu
    return off(float(1e3 * np.min(mu)), float(1e3 * np.sqrt(2 * 1e-4 * TAU)))


def empty_voxel():
    fit = plain(4).fit(np.zeros(len(scheme()[0])))
    state = f"{'NaN' if np.isnan(fit.mapmri_coeff).any() else 'numbers'}, errorcode {fit.errorcode}"
    return state, "an error code", state == "NaN, errorcode 0"


def missing_sample():
    b, g, _ = scheme()
    y = gaussian(b, g)
    y[20] = np.nan
    theirs = raises(lambda: plain(4).fit(np.stack([gaussian(b, g), y])))
    return f"{theirs}, no voxel fitted", "one sample less", theirs != "nothing"


def prediction():
    ours, theirs = other_table(True)[1][0].rows[0][1:]
    return theirs, 0.0, theirs > 1e-2 and ours < 1e-9


def threshold():
    table = scheme()[0]
    cut = model(4, bval_threshold=2000)
    theirs, b0s = int(cut.cutoff.sum()), int(cut.tenmodel.gtab.b0s_mask.sum())
    return (
        f"{theirs} volumes",
        f"{int((table <= 2000).sum())} with b <= 2000",
        theirs < (table <= 2000).sum() and b0s > 0,
    )


def default_weight():
    b, g, _ = scheme()
    fit = model(6).fit(gaussian(b, g))
    return off(
        float(
            fit.rtop()
            / truth.mixture_truth([1.0], [truth.axis_tensor((1.7, 0.3, 0.3))], TAU)["rtop"]
        ),
        1.0,
    )


def lucky_weight():
    """DIPY's own test of a cylinder's radius, at other weights than the one it has."""
    from dipy.data import get_gtab_taiwan_dsi
    from dipy.reconst.mapmri import MapmriModel
    from dipy.sims.voxel import cylinders_and_ball_soderman

    table, tau = get_gtab_taiwan_dsi(), 1 / (4 * np.pi**2)
    E = cylinders_and_ball_soderman(
        table, tau, radii=[5e-3], snr=None, angles=[(0, 90)], fractions=[100]
    )[0]
    radii = [
        float(
            1e3
            * np.sqrt(
                1
                / (np.pi * MapmriModel(table, radial_order=6, laplacian_weighting=w).fit(E).rtap())
            )
        )
        for w in (1e-3, 0.01, 0.05)
    ]
    return (
        " / ".join(f"{r:.2f}" for r in radii),
        "5",
        bool(abs(radii[1] - 5) < 0.01 and abs(radii[0] - 5) > 0.1),
    )


def regulariser():
    """The minimum of |Xh - y|^2 + |Lh|^2 that the docstring names."""
    from dipy.core.optimize import PositiveDefiniteLeastSquares

    rng = np.random.default_rng(0)
    X, y, L = rng.standard_normal((9, 3)), rng.standard_normal(9), np.diag([1.0, 2.0, 3.0])
    theirs = PositiveDefiniteLeastSquares(3, L=L).solve(X, y)
    want = np.linalg.solve(X.T @ X + L.T @ L, X.T @ y)
    return off(float(np.linalg.norm(theirs)), float(np.linalg.norm(want)))


def no_pa():
    from dipy.reconst.mapmri import MapmriFit

    there = [name for name in dir(MapmriFit) if name in ("pa", "propagator_anisotropy")]
    return "no propagator anisotropy", "in the first paper", not there


def norm_of_qtdmri():
    from dipy.reconst.qtdmri import qtdmri_mapmri_isotropic_normalization as normalise

    u = 6e-3
    return off(float(normalise(1, 0, u) ** 2 / (8 * np.pi**1.5 * u**3)), 1.0)


def odf():
    from dipy.core.sphere import Sphere

    points, w = sphere_rule(40, 80)
    return off(float(of_coefficients(crossing_fit("X60")).odf(Sphere(xyz=points)) @ w), 1.0)


def message():
    from dipy.reconst.mapmri import MapmriModel

    b, g, table = scheme()
    fit = MapmriModel(table, radial_order=2, anisotropic_scaling=False).fit(gaussian(b, g))
    try:
        fit.ng()
    except ValueError as error:
        return f"ng(): {error}", "NG", "Parallel" in str(error)
    return "nothing", "NG", False


DIPY = [
    ("D1", "QIV of X60, mm5", INTEGRAL, index("qiv", "qiv")),
    ("D2", "NG_parallel of X60", INTEGRAL, index("ng_parallel", "ng_par")),
    ("D3", "NG_perpendicular: spread over frames turned about e1", "invariance", perpendicular),
    ("D4", "tutorial: NG is at least its components; X60", CLOSED, inequality),
    ("D5", "best weight of [0.05, 0.5] by GCV", "V by its definition", array_of_weights),
    ("D6", "GCV weight: relative change with the unit of intensity", "invariance", unit_of_intensity),
    ("D7", "fallbacks after LinAlgError", "attribute of NumPy", handlers),
    ("D8", "global_constraints at order 12: smallest P / peak", "P itself", order_twelve),
    ("D9", "global_constraints: change of coefficients, weight 0.2 to 100", DEFINITION, ignored_weight),
    ("D10", "CMAP in um and ms: smallest P / peak (truth: in mm and s)", "change of units", units_of_length),
    ("D11", "radial_order = 18", "a call", order_eighteen),
    ("D12", "order 8 on three shells, a Gaussian without noise: RTOP / true", CLOSED, singular),
    ("D13", "laplacian_weighting = -1 or a list", "a call", odd_weights),
    ("D14", "all eigenvalues below the floor: smallest mu, um", DEFINITION, floor),
    ("D15", "a voxel of zeros", "a call", empty_voxel),
    ("D15", "one NaN sample in one of two voxels", "a call", missing_sample),
    ("D16", "signal at twice the diffusion time: largest error", CLOSED, prediction),
    ("D17", "bval_threshold = 2000 with a shell at 2000", DEFINITION, threshold),
    ("D18", "default weight 0.2 (ours too): RTOP / true of a Gaussian", CLOSED, default_weight),
    ("D19", "its own test's radius at weights 0.001 / 0.01 (the test's) / 0.05, um", "simulated radius", lucky_weight),
    ("D20", "PA", "the paper", no_pa),
    ("D21", "PositiveDefiniteLeastSquares(L=...): norm of the answer", "normal equations", regulariser),
    ("D22", "qtdmri, isotropic: squared norm of a normalised function", INTEGRAL, norm_of_qtdmri),
    ("D23", "default ODF (s = 2): integral over the sphere", "quadrature", odf),
    ("D24", "ng() of the isotropic basis is refused as", "its text", message),
]  # fmt: skip


# ---------------------------------------------------------------- others, formulas as their sources
# have them


def golden():
    """mu, coefficients, and n1, n2, n3 of golden vector (a)."""
    mu, a, _, want = golden_a()
    return mu, a, *oracle.aniso_table(6).T, want


def tortoise_rtap():
    mu, a, _, n2, n3, want = golden()
    theirs = (
        a
        @ ((-1.0) ** ((n2 + n3) // 2) * oracle.aniso_origin(6))
        / (np.sqrt(2 * np.pi) * mu[1] * mu[2])
    )
    return off(float(theirs), want["rtap"])


def tortoise_ng_perp():
    _, a, n1, n2, n3, want = golden()
    w = (-1.0) ** (n1 // 2) * np.sqrt([factorial(n) / factorial2(n) for n in n1.tolist()])
    w = np.where((n1 % 2 == 0) & (n2 % 2 == 0), w, 0.0)
    sums = {}
    for k, l, v in zip(n2, n3, a * w, strict=True):
        sums[k, l] = sums.get((k, l), 0.0) + v
    total = sum(v**2 for v in sums.values())
    return off(float(np.sqrt(1 - sums[0, 0] ** 2 / total)), want["ng_perp"])


def radial_shares(mu, a, order, K=5):
    """g_k^2 of the coefficients on the radial functions k = 0..K, and u0."""
    shares = [pa_cos2(a, mu, k) for k in range(K + 1)]
    return np.diff(shares, prepend=0.0) * np.array(
        [gamma(k + 1.5) / (factorial(k) * gamma(1.5)) for k in range(K + 1)]
    )


def tortoise_pa():
    mu = np.sqrt(2 * TAU * 1e-3 * np.array([1.7, 0.3, 0.3]))
    theirs = [gamma(2 * k + 1.5) / (factorial(2 * k) * gamma(1.5)) for k in range(6)]
    cos2 = float(np.sum(radial_shares(mu, np.ones(1), 0) / theirs))
    want = truth.mixture_truth(*truth.MIXTURES["(1.7,.3,.3)"], TAU)["sin"]
    return off(float(np.sin(np.sqrt(1 - cos2))), float(want))


def lab_rtpp():
    mu, a, n1, *_, want = golden()
    return off(
        float(a @ ((-1.0) ** (n1 // 2) * oracle.aniso_origin(6)) / (2 * np.pi * mu[0])),
        want["rtpp"],
    )


def lab_position():
    """RTOP whose loops over even indices step through a list of all indices."""
    mu, a, *_, want = golden()
    n = [
        (N, i, j) for N in range(0, 7, 2) for i in range(N + 1) for j in range(N - i + 1)
    ]  # its order
    ours = {tuple(row): k for k, row in enumerate(oracle.aniso_table(6).tolist())}
    own = np.array([ours[i, j, N - i - j] for N, i, j in n])
    listed = zip(a[own], oracle.aniso_origin(6)[own], strict=True)
    even = [N for N, i, j in n if i % 2 == 0 and j % 2 == 0]
    total = sum((-1) ** (N // 2) * c * B for N, (c, B) in zip(even, listed, strict=False))
    return off(float(total / (np.sqrt(8 * np.pi**3) * np.prod(mu))), want["rtop"])


def lab_msd():
    """The product of Gamma(1/2 - n/2) by lgamma, which drops its sign (-1)^(N/2)."""
    mu, a, n1, n2, n3, want = golden()
    n = np.stack([n1, n2, n3], 1)
    theirs = a @ ((-1.0) ** (n.sum(1) // 2) * oracle.aniso_origin(6) * ((1 + 2 * n) @ mu**2))
    return off(float(theirs), want["msd"])


def toolbox_pa():
    """cos^2 with the root of mu1 mu2 mu3 / u0^3 where that itself belongs; one Gaussian on its own
    counterpart at order 0.
    """
    mu = np.sqrt(2 * TAU * 1e-3 * np.array([1.7, 0.3, 0.3]))
    u0 = oracle.isotropic_scale(mu)
    cos2 = pa_cos2(np.ones(1), mu, 0)
    return off(float(np.sqrt(1 - cos2 / np.sqrt(np.prod(mu) / u0**3))), float(np.sqrt(1 - cos2)))


def ungrouped_ng_par():
    """NG_par of squares that were not summed over n2, n3 first."""
    _, a, n1, n2, n3, want = golden()
    even = (n2 % 2 == 0) & (n3 % 2 == 0)
    w = [
        oracle.origin1d(int(p)) * oracle.origin1d(int(q)) if e else 0.0
        for p, q, e in zip(n2, n3, even, strict=True)
    ]
    squares = (a * w) ** 2
    return off(float(np.sqrt(1 - squares[n1 == 0].sum() / squares.sum())), want["ng_par"])


OTHERS = [
    ("TORTOISE V4", "RTAP: 1 / sqrt(2 pi) for 1 / (2 pi), 1/mm2", tortoise_rtap),
    ("TORTOISE V4", "NG_perp: weights sqrt(n! / n!!), even pairs only", tortoise_ng_perp),
    ("TORTOISE V4", "PA: Gamma(2k + 3/2) / (2k)!, sin(sqrt(1 - cos2)); sin of (1.7,.3,.3)", tortoise_pa),
    ("dMRI-Lab", "RTPP: 1 / (2 pi mu) for 1 / (sqrt(2 pi) mu), 1/mm", lab_rtpp),
    ("dMRI-Lab", "RTOP: a list of all indices read in steps of even ones, 1/mm3", lab_position),
    ("dMRI-Lab", "MSD: lgamma drops the sign of Gamma, mm2", lab_msd),
    ("diffusion_toolbox", "PA: sqrt(mu1 mu2 mu3 / u0^3) on cos2; sin of (1.7,.3,.3), order 0", toolbox_pa),
    ("MAP-MRI (MATLAB)", "NG_par: squares before the sum", ungrouped_ng_par),
]  # fmt: skip


def shown(value):
    return f"{value:.4g}" if isinstance(value, float) else value


def run_dipy(quick):
    """Claims about DIPY that its run does not bear out."""
    from importlib.metadata import version

    rows, failed = [], 0
    for name, what, decided, claim in [
        row for row in DIPY if not (quick and row[0] == "D8")
    ]:  # 20 s
        with silent():
            theirs, true, wrong = claim()
        failed += not wrong
        rows.append([name, what, shown(theirs), shown(true), decided, "yes" if wrong else "NO"])
    columns = ["", "what", "DIPY", "truth", "decided by", "as claimed"]
    return float(failed), [
        Table(f"Where DIPY {version('dipy')} is wrong", columns, rows, "Every row is run.")
    ]


def run_others(quick):
    """Claims about other programs' formulas that evaluating them does not bear out."""
    rows, failed = [], 0
    for peer, what, claim in OTHERS:
        theirs, true, wrong = claim()
        failed += not wrong
        rows.append([peer, what, shown(theirs), shown(true), "yes" if wrong else "NO"])
    note = (
        "Formulas as the sources have them, on golden vector (a) unless said otherwise; the programs were not run. "
        + "; ".join(f"{name}: {where}" for name, where in SOURCES.items())
        + ". dMRI-Lab's QIV sums reciprocals as DIPY's does; NG_perp of diffusion_toolbox leaves out odd pairs, NG_per of "
        "MAP-MRI (MATLAB) squares before the sum; the same reading holds for both."
    )
    columns = ["program", "what", "theirs", "truth", "as claimed"]
    return float(failed), [Table("Where other programs' formulas are wrong", columns, rows, note)]


def cases():
    """Both tables."""
    return [
        Case("where DIPY is wrong", "each by its own truth; claims that do not hold", 0, run_dipy),
        Case(
            "where other programs are wrong",
            "golden vector (a), closed forms; claims that do not hold",
            0,
            run_others,
        ),
    ]
