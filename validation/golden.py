"""Golden vectors: coefficients and their indices, computed once by independent code, to every
printed digit.
"""

from decimal import Decimal
from math import pi

import numpy as np
import oracle
import truth
from common import Case, Table, made_fit, mapmri, table_at

from mapmri_nb.kernels import ordering
from mapmri_nb.testing import truths


def golden_a():
    """Order 6: mu (3,), coefficients (50,), sum aB before normalisation, expected values."""
    mu, a = truths.golden_a()
    total = a @ oracle.aniso_origin(6)
    return mu, a / total, total, truths.GOLDEN_A


def golden_b():
    """Order 6: scale u, coefficients (50,), sum aB before normalisation, expected values."""
    mu, a = truths.golden_b()
    total = a @ oracle.iso_origin(6)
    return mu[0], a / total, total, truths.GOLDEN_B


def golden_c():
    """GCV: b (186,), directions, y, tau, mu of the mean tensor, R = I, order 6; expected values."""
    b, g = truth.scheme([60] * 3, [1000, 2000, 3000])
    k = np.arange(len(b))
    y = truth.mixture_signal(*truth.crossing(0.5 * 180 / pi), b, g) + 0.03 * np.cos(
        7 * k + 0.3 * k**2
    )
    return b, g, y, 0.03, np.array([9.09355248769e-3, 6.10797046109e-3, 4.24264068712e-3]), GOLDEN_C


GOLDEN_C = {
    "weight": 0.0590154, "V": 5.56634899e-4, "trace": 33.5249, "ls_residual2": 0.0639342124892, "ls_sum": 1.00531990468,
    0.05: {"rtop": 375320.493, "rtap": 6829.41121, "rtpp": 44.2706448, "msd": 1.33486039e-4, "qiv": 7.30032471e-10,
           "ng": 0.186928659, "ng_par": 0.154192804, "ng_perp": 0.177920741, "lapnorm": 1.24517631, "cos": 0.942748659},
    0.2: {"rtop": 377432.456, "rtap": 6896.46198, "rtpp": 44.745974, "msd": 1.32680136e-4, "qiv": 7.50856394e-10,
          "ng": 0.178019899},
}  # fmt: skip


def units(value, printed):
    """Distance from the printed number in units of half its last digit."""
    half = 0.5 * 10.0 ** Decimal(str(printed)).as_tuple().exponent
    return abs(float(value) - float(printed)) / half


def compare(title, pairs):
    """Largest distance over (name, printed, ours) and the table."""
    rows = [
        [name, printed, float(ours), round(units(ours, printed), 3)]
        for name, printed, ours in pairs
    ]
    return max(r[3] for r in rows), [
        Table(
            title, ["quantity", "printed", "ours", "half units of the last digit"], rows, digits=12
        )
    ]


def values(fit, names):
    """Indices of a one-voxel fit by name."""
    return {name: getattr(fit, name)()[0] for name in names if hasattr(fit, name)}


def points(fit):
    """Signal, propagator and ODFs at the reference's points."""
    odf = {f"odf{s}": fit.odf(truth.GOLDEN_V, s)[0, 0] for s in (0, 2)}
    return {
        "E": fit.predict(table_at(truth.GOLDEN_Q), S0=1)[0, 0],
        "P": fit.pdf(truth.GOLDEN_R)[0, 0],
    } | odf


def anisotropic(quick):
    """Golden vector (a)."""
    mu, coef, _, want = golden_a()
    fit = made_fit(coef, mu)
    i = np.arange(50)
    got = (
        {"sum": np.cos(i) / (1 + i) @ ordering.origin_values(ordering.index_table(6))}
        | values(fit, want)
        | points(fit)
    )
    got |= {"u0": fit._isotropic_scale[0], "cos_dti": np.cos(fit.theta_dti()[0])}
    pairs = [(name, printed, got[name]) for name, printed in want.items() if name in got]
    pairs += [
        (f"cos(theta_PO), K = {k}", v, np.cos(fit.theta_po(k)[0])) for k, v in want["cos"].items()
    ]
    return compare("Golden vector (a): anisotropic, order 6", pairs)


def isotropic(quick):
    """Golden vector (b), by the isotropic coefficients and by the map T on anisotropic ones."""
    u, coef, total, want = golden_b()
    fit = made_fit(coef, np.full(3, u), basis="isotropic")
    raw = coef * total
    got = (
        {"sum": raw @ ordering.iso_origin_values(6)}
        | values(fit, want)
        | points(fit)
        | {"cos": np.cos(fit.theta_po(3)[0])}
    )
    pairs = [(name, printed, got[name]) for name, printed in want.items()]
    mapped = values(made_fit(ordering.iso_to_aniso(6) @ coef, np.full(3, u)), want)
    pairs += [(f"{name}, anisotropic formula after T", want[name], v) for name, v in mapped.items()]
    return compare("Golden vector (b): isotropic, order 6", pairs)


def noisy(weight):
    """Fit of golden vector (c) with a Laplacian weight."""
    b, g, y, tau, mu, _ = golden_c()
    return mapmri.MapmriModel(
        mapmri.GradientTable(b, g, tau=tau), 6, laplacian=weight, preset="paper"
    ).fit(y[None], scale=(mu, np.eye(3)))


def noisy_indices(quick):
    """Golden vector (c) at fixed weights."""
    want = GOLDEN_C
    free = noisy(None)
    pairs = [("residual^2, weight 0", want["ls_residual2"], free.rmse()[0] ** 2 * len(free.gtab))]
    pairs += [("sum aB, weight 0", want["ls_sum"], free.S0[0])]
    for weight in (0.05, 0.2):
        fit = noisy(weight)
        got = values(fit, want[weight]) | {"cos": np.cos(fit.theta_po(5)[0])}
        pairs += [
            (f"{name}, weight {weight}", printed, got[name])
            for name, printed in want[weight].items()
        ]
    return compare("Golden vector (c): noisy crossing, order 6", pairs)


def noisy_weight(quick):
    """Relative error of the GCV weight of golden vector (c), V and tr S at it."""
    b, g, y, tau, mu, want = golden_c()
    weight = noisy("gcv").laplacian_weight[0]
    lap, q = oracle.laplacian_matrix(6, mu), oracle.qvectors(b, g, tau)
    (v,), (trace,) = oracle.gcv(oracle.phi_matrix(6, mu, q), lap, y, weight)
    rows = [["weight", want["weight"], weight], ["V", want["V"], v], ["tr S", want["trace"], trace]]
    error = max(abs(ours / printed - 1) for _, printed, ours in rows)
    return error, [
        Table("Golden vector (c): GCV", ["quantity", "printed", "at our weight"], rows, digits=9)
    ]


def cases():
    """All golden vectors."""
    digits = "independent code, all printed digits (in half units of the last, 1 % for ties)"
    return [
        Case("golden (a), anisotropic", digits, 1.01, anisotropic),
        Case("golden (b), isotropic and the map T", digits, 1.01, isotropic),
        Case("golden (c), fixed weights", digits, 1.01, noisy_indices),
        Case(
            "golden (c), GCV weight, V, tr S",
            "independent code, relative (7 digits printed)",
            1e-6,
            noisy_weight,
        ),
    ]
