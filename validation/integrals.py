"""Every index is an integral: random coefficients, quadrature over the library's own `predict` and
`pdf`.
"""

import numpy as np
import oracle
from common import TAU, Case, Table, made_fit, random_frame, relative, table_at
from scipy import special

from mapmri_nb.testing.truths import pa_rescale


def integrate(f, mu, space, axes=(0, 1, 2), power=1, n=24):
    """Integral of f(points (k, 3)), of E (space "q") or P ("r") to the first or second power, over
    space or over what `axes` of the frame span.
    """
    scale = np.asarray(mu) if space == "r" else 1 / (2 * np.pi * np.asarray(mu))
    t, w = oracle.nodes(n, np.sqrt(2 / power) * scale, axes)
    return w @ f(t)


def sphere_rule(n_z=30, n_phi=60):
    """Directions (k, 3) and weights (sum 4 pi): Gauss-Legendre times the trapezoidal rule."""
    z, w = special.roots_legendre(n_z)
    phi, s = 2 * np.pi * np.arange(n_phi) / n_phi, np.sqrt(1 - z**2)[:, None]
    v = np.stack([s * np.cos(phi), s * np.sin(phi), np.repeat(z[:, None], n_phi, 1)], -1)
    return v.reshape(-1, 3), np.repeat(w * 2 * np.pi / n_phi, n_phi)


def circle_rule(axis, n=120):
    """Directions (n, 3) of the unit circle perpendicular to `axis` and weights (sum 2 pi)."""
    q = np.linalg.svd(np.asarray(axis, float)[None])[2][1:]
    phi = 2 * np.pi * np.arange(n) / n
    return np.cos(phi)[:, None] * q[0] + np.sin(phi)[:, None] * q[1], np.full(n, 2 * np.pi / n)


AXES = {"3-D": (0, 1, 2), "plane": (1, 2), "line": (0,)}


def draw(rng, order, basis):
    """A fit of random coefficients with E(0) = 1, a random frame, scales of 4 to 10 um."""
    origin = oracle.aniso_origin(order) if basis == "anisotropic" else oracle.iso_origin(order)
    table = oracle.aniso_table(order) if basis == "anisotropic" else oracle.iso_table(order)
    degree = table.sum(1) if basis == "anisotropic" else table[:, 1] + 2 * table[:, 0] - 2
    coef = 0.6 * rng.standard_normal(len(origin)) / (1 + degree)
    coef[0] = 1.0
    mu_tensor = np.sort(rng.uniform(4e-3, 10e-3, 3))[::-1]
    mu = mu_tensor if basis == "anisotropic" else np.full(3, oracle.isotropic_scale(mu_tensor))
    return made_fit(coef / (coef @ origin), mu, random_frame(rng), basis, mu_tensor)


class Quadrature:
    """Integrals over the fit's own signal and propagator, in its frame R; exact to rounding for
    every order.
    """

    def __init__(self, fit):
        self.fit, self.mu, self.tensor, self.R = fit, fit.mu[0], fit.mu_tensor[0], fit.R[0]

    def signal(self, q):
        """E at q (k, 3) in the frame of the b-vectors."""
        return self.fit.predict(table_at(q, TAU), S0=1)[0]

    def propagator(self, r):
        """P at r (k, 3) in the frame of the b-vectors."""
        return self.fit.pdf(r)[0]

    def over(self, f, space, part="3-D", power=1, scale=None):
        """Integral over space, the plane of e2 and e3, or the line of e1; f takes points in the
        frame of the b-vectors.
        """
        mu = self.mu if scale is None else scale
        return integrate(lambda x: f(x @ self.R.T), mu, space, AXES[part], power)

    def gaussian(self, r, part):
        """The tensor's Gaussian over the axes of a section, of any norm."""
        axes = list(AXES[part])
        return np.exp(-0.5 * np.sum(((r @ self.R)[:, axes] / self.tensor[axes]) ** 2, 1))

    def sine(self, part):
        """Sine of the L2 angle between a section of P and the tensor's Gaussian there."""
        between = np.sqrt(
            2 / (1 / self.mu**2 + 1 / self.tensor**2)
        )  # the scale of the product's Gaussian
        cross = self.over(
            lambda r: self.propagator(r) * self.gaussian(r, part), "r", part, 2, between
        )
        own = self.over(lambda r: self.propagator(r) ** 2, "r", part, 2)
        other = self.over(lambda r: self.gaussian(r, part) ** 2, "r", part, 2, self.tensor)
        return np.sqrt(max(0.0, 1 - cross**2 / (own * other)))

    def radial_cos2(self, functions):
        """cos^2 of the angle between P and its projection on the first radial functions at u0,
        functions >= 1.
        """
        u0 = oracle.isotropic_scale(self.tensor)
        between = np.sqrt(2 / (1 / self.mu**2 + 1 / u0**2))
        total = 0.0
        for k in range(functions):

            def radial(r, k=k):
                x = np.sum(r**2, 1) / u0**2
                return special.eval_genlaguerre(k, 0.5, x) * np.exp(-x / 2)

            cross = self.over(
                lambda r, f=radial: self.propagator(r) * f(r), "r", power=2, scale=between
            )
            norm = self.over(lambda r, f=radial: f(r) ** 2, "r", power=2, scale=np.full(3, u0))
            total += cross**2 / norm
        return total / self.over(lambda r: self.propagator(r) ** 2, "r", power=2)

    def cos2_tensor(self):
        """The same angle of the tensor's Gaussian and one radial function."""
        u0 = oracle.isotropic_scale(self.tensor)
        u = np.full(3, u0)

        def g(scale):
            return lambda x: np.exp(-0.5 * np.sum((x / scale) ** 2, 1))

        between = np.sqrt(2 / (1 / u**2 + 1 / self.tensor**2))
        a, b = g(self.tensor), g(u)
        cross = integrate(lambda x: a(x) * b(x), between, "r", power=2)
        own = [
            integrate(lambda x, f=f: f(x) ** 2, s, "r", power=2)
            for f, s in ((a, self.tensor), (b, u))
        ]
        return cross**2 / np.prod(own)

    def all(self):
        """Every index by its integral; where there are two integrals, two entries."""
        square = lambda x: np.sum(x**2, 1)  # noqa: E731
        e, p = self.signal, self.propagator
        out = {
            "rtop": self.over(e, "q"),
            "rtop, P(0)": p(np.zeros((1, 3)))[0],
            "rtap": self.over(e, "q", "plane"),
            "rtap, line of P": self.over(p, "r", "line"),
            "rtpp": self.over(e, "q", "line"),
            "rtpp, plane of P": self.over(p, "r", "plane"),
            "msd": self.over(lambda r: square(r) * p(r), "r"),
            "qiv": 1 / self.over(lambda q: square(q) * e(q), "q"),
            "lapnorm": 16
            * np.pi**4
            * self.over(lambda r: square(r) ** 2 * p(r) ** 2, "r", power=2),
            "ng": self.sine("3-D"),
            "pa": pa_rescale(self.radial_cos2(6)),
            "pa_dti": pa_rescale(self.cos2_tensor()),
        }
        if not self.fit.isotropic:
            out |= {"ng_par": self.sine("line"), "ng_perp": self.sine("plane")}
        return out


def indices(basis, orders=(2, 4, 6, 8, 10), draws=3):
    """Largest relative error of every index over random draws."""

    def run(quick):
        rng, worst = np.random.default_rng(1), {}
        for order in orders[:2] if quick else orders:
            for _ in range(1 if quick else draws):
                fit = draw(rng, order, basis)
                for name, value in Quadrature(fit).all().items():
                    ours = getattr(fit, name.split(",")[0])()[0]
                    worst.setdefault(name, {}).setdefault(order, []).append(relative(ours, value))
        used = list(next(iter(worst.values())))
        rows = [[name, *(max(by_order[n]) for n in used)] for name, by_order in worst.items()]
        table = Table(
            f"Indices against 3-D integration, {basis} basis: largest relative error",
            ["index", *map("order {}".format, used)],
            rows,
        )
        return max(max(row[1:]) for row in rows), [table]

    return run


def parseval(quick):
    """Integrals of E^2 and P^2, and of P, which must be 1."""
    rng, worst = np.random.default_rng(2), 0.0
    for basis in ("anisotropic", "isotropic"):
        for order in (4, 8):
            quad = Quadrature(draw(rng, order, basis))
            e2 = quad.over(lambda q, f=quad.signal: f(q) ** 2, "q", power=2)
            p2 = quad.over(lambda r, f=quad.propagator: f(r) ** 2, "r", power=2)
            worst = max(worst, relative(e2, p2), relative(quad.over(quad.propagator, "r"), 1.0))
    return worst


def transform(quick):
    """P at points as the Fourier integral of E, relative to P(0)."""
    rng, worst = np.random.default_rng(3), 0.0
    for basis in ("anisotropic", "isotropic"):
        quad = Quadrature(draw(rng, 6, basis))
        for r in rng.standard_normal((3, 3)) * 5e-3:

            def wave(q, quad=quad, r=r):
                q = q @ quad.R.T
                return quad.signal(q) * np.cos(2 * np.pi * q @ r)

            value = integrate(wave, quad.mu, "q", n=40)  # not a polynomial: more nodes
            worst = max(
                worst,
                abs(value - quad.propagator(r[None])[0]) / quad.propagator(np.zeros((1, 3)))[0],
            )
    return worst


def odfs(quick):
    """ODF_s as radial integrals of pdf; its sums over the sphere and the circle as indices."""
    rng, rows = np.random.default_rng(4), []
    sphere, weight = sphere_rule(40, 80)
    for basis in ("anisotropic", "isotropic"):
        worst = dict.fromkeys(["radial integral, s = 0", "radial integral, s = 2", "sum of ODF_0 = 1", "sum of ODF_2 = MSD",
                               "2 ODF_-2(e1) = RTAP", "circle of ODF_-1 = RTPP"], 0.0)  # fmt: skip
        for order in (2,) if quick else (2, 4, 6, 8):
            fit = draw(rng, order, basis)
            e1 = fit.R[0][:, :1].T
            v = rng.standard_normal((6, 3))
            v /= np.linalg.norm(v, axis=1, keepdims=True)
            mean = np.exp(np.log(fit.mu[0]).mean())
            t, w = special.roots_legendre(200)
            r, w = (t + 1) * 8 * mean, w * 8 * mean  # to 16 mean scales, twenty of the smallest
            p = fit.pdf((r[:, None, None] * v).reshape(-1, 3))[0].reshape(len(r), -1)
            found = {}
            for s in (0, 2):
                ours = fit.odf(v, s)[0]
                found[f"radial integral, s = {s}"] = np.max(
                    np.abs(ours - (w * r ** (2 + s)) @ p)
                ) / np.max(np.abs(ours))
            found["sum of ODF_0 = 1"] = relative(weight @ fit.odf(sphere, 0)[0], 1.0)
            found["sum of ODF_2 = MSD"] = relative(weight @ fit.odf(sphere, 2)[0], fit.msd()[0])
            found["2 ODF_-2(e1) = RTAP"] = relative(2 * fit.odf(e1, -2)[0, 0], fit.rtap()[0])
            circle, arc = circle_rule(e1[0])
            found["circle of ODF_-1 = RTPP"] = relative(arc @ fit.odf(circle, -1)[0], fit.rtpp()[0])
            worst = {k: max(worst[k], found[k]) for k in worst}
        rows.append([basis, *worst.values()])
    table = Table(
        "ODFs against integrals: largest relative error", ["basis", *worst], rows, digits=2
    )
    return max(max(row[1:]) for row in rows), [table]


def cases():
    """All integrals."""
    own = "quadrature over the library's own predict and pdf, relative"
    return [
        Case("indices, anisotropic", own, 1e-10, indices("anisotropic")),
        Case("indices, isotropic", own, 1e-10, indices("isotropic")),
        Case("Parseval, normalisation", own, 1e-10, parseval),
        Case("P is the Fourier transform of E", own, 1e-10, transform),
        Case("ODFs", own, 1e-10, odfs),
    ]
