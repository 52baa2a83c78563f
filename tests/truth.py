"""Gradient schemes and tables of printed values, beside `mapmri_nb.testing.truths`; mm, s, 1/mm."""

from decimal import Decimal
from math import sqrt

import numpy as np

from mapmri_nb.testing import truths
from mapmri_nb.testing.strategies import even_directions, unit
from mapmri_nb.testing.truths import axis_tensor, crossing


def __getattr__(name):  # truth.mixture_truth and the others are those of every program
    return getattr(truths, name)


def assert_digits(value, printed):
    """Agreement to half a unit of the last printed digit (0.1 % slack for the rounding itself)."""
    half = 0.5 * 10.0 ** Decimal(str(printed)).as_tuple().exponent
    assert abs(value - float(printed)) <= 1.001 * half, f"{value!r} is not {printed}"


# ---- gradient schemes


def scheme(counts, bvals, n_b0=6):
    """Shells of counts[s] directions at bvals[s] behind n_b0 at b = 0: b, directions."""
    b = np.r_[np.zeros(n_b0), np.repeat(np.asarray(bvals, float), counts)]
    g = [even_directions(count, s) for s, count in enumerate(counts)]
    return b, np.concatenate([np.zeros((n_b0, 3)), *g])


def scheme_hcp(seed=0):
    """HCP-like: 18 b0 at b = 5 among 3 x 90 directions, jittered and interleaved."""
    rng = np.random.default_rng(seed)
    b, g = scheme([90] * 3, [1000, 2000, 3000], 0)
    mixed = rng.permutation(len(b))
    b, g = np.round((b + rng.uniform(-20, 20, len(b))) / 5)[mixed] * 5, g[mixed]
    where = np.arange(0, len(b), 15)
    u = unit(rng.standard_normal((len(where), 3)))
    return np.insert(b, where, 5.0), np.insert(g, where, u, axis=0)


MOTZKIN = {  # reference 9.6: nonnegative, no certificate by sums of squares; E(0) = 1 at any mu
    (0, 0, 0): 0.25, (2, 0, 0): 0.75 / sqrt(32), (0, 2, 0): 0.75 / sqrt(32), (4, 0, 0): 3 / 8 / sqrt(6),
    (0, 4, 0): 3 / 8 / sqrt(6), (2, 2, 0): 0.375, (4, 2, 0): 0.75 / sqrt(12), (2, 4, 0): 0.75 / sqrt(12),
}  # fmt: skip

# ---- mixtures of Gaussians, reference 9.1


MIXTURES = {
    "(1.7,.3,.3)": ([1.0], [axis_tensor((1.7, 0.3, 0.3))]),
    "(1.7,.5,.2)": ([1.0], [axis_tensor((1.7, 0.5, 0.2))]),
    "(.9,.8,.75)": ([1.0], [axis_tensor((0.9, 0.8, 0.75))]),
    "CSF 3.0": ([1.0], [axis_tensor(3.0)]),
    "X60": crossing(30.0),
    "X90": ([0.6, 0.4], [axis_tensor((1.7, 0.3, 0.3)), axis_tensor((0.3, 1.7, 0.3))]),
    "BiIso": ([0.7, 0.3], [axis_tensor(0.6), axis_tensor(3.0)]),
    "WM3": ([0.55, 0.35, 0.1], [axis_tensor(d) for d in ((2.2, 0.1, 0.1), (1.5, 0.6, 0.6), 3.0)]),
}
MIXTURE_COLUMNS = ("rtop", "rtap", "rtpp", "msd", "qiv", "lapnorm", "ng", "ng_par", "ng_perp", "sin",
                   "pa", "pa_dti")  # fmt: skip
MIXTURE_TABLE = {
    "(1.7,.3,.3)": "349267.04 8841.9413 39.501172 1.38e-4 9.3480673e-10 1.9797977 0 0 0 .45709553 .95263283 .95496928",
    "(1.7,.5,.2)": "331343.81 8388.2020 39.501172 1.44e-4 9.4208771e-10 1.9915833 0 0 0 .48441142 .96334892 .96543884",
    "(.9,.8,.75)": "185911.58 3424.4691 54.289168 1.47e-4 3.4486999e-9 .92451956 0 0 0 .04618429 .06580296 .06581776",
    "CSF 3.0": "26291.868 884.19413 29.735402 5.4e-4 9.0092689e-8 1.7602413 0 0 0 0 0 0",
    "X60": "349267.04 6006.9162 44.326920 1.38e-4 9.3480673e-10 1.2431211 "
    ".18347783 .18898270 .18898270 .31979533 .83829516 .88530988",
    "X90": "349267.04 6790.9081 61.313342 1.38e-4 9.3480673e-10 1.2054100 "
    ".21895536 .08494524 .11498190 .28832530 .78878411 .86180209",
    "BiIso": "213653.97 3359.9377 55.463887 2.376e-4 2.2848078e-9 .72089861 .37883820 .24518379 .32931507 0 0 0",
    "WM3": "574285.97 16224.962 36.789721 1.899e-4 2.2293847e-10 3.0225208 "
    ".55795024 .01435743 .54700233 .60815075 .98944993 .87972165",
}
