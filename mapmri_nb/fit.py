"""MapmriFit: rows of coefficients over a mask, and everything that follows from them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .gradients import GradientTable, axes, turned
from .indices import ANISOTROPIC_ONLY, INDICES, ON_REQUEST, TABLE
from .kernels import blocks, frames, moments, noise, ordering, propagator, scalars, tensor
from .kernels._jit import n_threads, spread
from .kernels.linalg import sparse_map
from .status import Status as Status

if TYPE_CHECKING:
    from pathlib import Path

    from . import sos
    from .use import directions

Array = NDArray[np.float64]
log = logging.getLogger(__name__)


def fit_rows(out: blocks.Out) -> dict[str, NDArray[Any]]:
    """The rows of a fit by their names, from the kernels' output."""
    rows: dict[str, NDArray[Any]] = {"coef": out.coef, "mu": out.mu}
    rows |= {"mu_tensor": out.mu_tensor, "R": out.R}
    scalars = zip(blocks.SCALARS, np.ascontiguousarray(out.scalars.T), strict=True)
    rows |= {name: row for name, row in scalars if name not in ("yy", "valid")}
    return rows | {"status": out.status}


RADIAL = 5  # K of PA: its counterpart is made of K + 1 radial functions
PIECE = 512  # voxels, at least, that a thread takes at once: Python is between them
ATTRIBUTES = ("coef", "mu", "mu_tensor", "R", "S0", "laplacian_weight", "status")


def _accessor(name: str, doc: str) -> Callable[[MapmriFit], Array]:
    """A method of the fit that returns the map of an index."""

    def accessor(self: MapmriFit) -> Array:
        return self.index(name)

    accessor.__name__, accessor.__qualname__ = name, f"MapmriFit.{name}"
    accessor.__doc__ = doc
    return accessor


def finished(name: str, values: Array, affine: Array | None, frame: str) -> Array:
    """Index rows (..., 3) in scanner axes where there is an affine; no signs in colours."""
    if TABLE[name].size == 3 and affine is not None:
        values = turned(values, affine, frame, "scanner")
    return np.abs(values) if name == "color_fa" else values


@lru_cache
def _turning(order: int) -> frames.Turning:
    """Isotropic coefficients to Hermite coefficients, and tables to turn these."""
    matrix = ordering.iso_to_aniso(order)
    i, j = np.nonzero(matrix)
    return frames.Turning(
        sparse_map(i, j, matrix[i, j], len(matrix)),
        moments.order_tables(order),
        ordering.index_table(order),
        ordering.factorial_roots(order),
    )


def _sine(cosine_squared: Array) -> Array:
    return np.asarray(np.sqrt(np.maximum(0.0, 1.0 - cosine_squared)))


def _in_room(fill: Any, given: Any, room: Callable[[], Any], out: Array) -> None:
    """fill(*given, room(), out, start, stop) over all rows of `out`, each call in room of its
    own.
    """
    spread(
        lambda start, stop: fill(*given, room(), out, start, stop),
        len(out), PIECE, n_threads(None),
    )  # fmt: skip


class MapmriFit:
    """A fit of V voxels: plain rows over the mask, in C order of the mask.

    Attributes
    ----------
    coef : (V, n) in DIPY's order: anisotropic, in the frame R at scales mu; isotropic, in the
        b-vectors' frame.
    mu : (V, 3) mm, scales of the basis ((u0, u0, u0) when isotropic). mu_tensor : (V, 3) mm, the
        tensor's.
    R : (V, 3, 3), columns e1 e2 e3. field : (V, 3, 3) gradient non-linearity or None.
    S0 : (V,). laplacian_weight : (V,) 1/mm. status : (V,) of `Status`.
    sigma : (V,) of the noise, in the data's units; None where the model has no noise.
    mask : bool volume. gtab : the gradient table. options : what the model was told.
    affine : (4, 4), voxels to scanner space, where the data or the mask came with one, else None;
        it may be set.

    Methods return volumes of the mask's shape, NaN outside it and where the status says there is no
    fit.
    """

    coef: Array
    mu: Array
    mu_tensor: Array
    R: Array
    S0: Array
    laplacian_weight: Array
    status: NDArray[np.int64]

    def __init__(
        self,
        rows: dict[str, NDArray[Any]],
        mask: NDArray[np.bool_],
        options: dict[str, Any],
        gtab: GradientTable,
        affine: Array | None = None,
    ) -> None:
        self._rows, self.mask = rows, mask
        self.options, self.gtab = options, gtab
        self.affine = affine
        for name in ATTRIBUTES:
            setattr(self, name, rows[name])
        self.order = int(options["radial_order"])
        self.isotropic = options["basis"] == "isotropic"
        self.field: Array | None = rows.get("field")
        self.sigma: Array | None = rows.get("sigma")
        self._nine: Array | None = None
        self._hermite: Array | None = rows.get("hermite")

    def __repr__(self) -> str:
        fitted = int(((self.status & int(Status.NO_FIT)) == 0).sum())
        told = ("basis", "radial_order", "laplacian", "positivity")
        options = ", ".join(f"{name}={self.options.get(name)!r}" for name in told)
        shape = " x ".join(map(str, self.mask.shape)) or "one voxel"
        return f"MapmriFit({fitted} of {len(self.status)} voxels fitted, in {shape}; {options})"

    def __getitem__(self, mask: ArrayLike) -> MapmriFit:
        """The fit of the voxels of a mask, a bool volume of this fit's shape."""
        keep = np.asarray(mask)
        if keep.dtype != bool or keep.shape != self.mask.shape:
            text = f"mask must be a bool volume of shape {self.mask.shape}"
            raise ValueError(f"{text}, not {keep.dtype} of {keep.shape}")
        rows = {name: row[keep[self.mask]] for name, row in self._rows.items()}
        return MapmriFit(rows, self.mask & keep, self.options, self.gtab, self.affine)

    def rows(self) -> dict[str, NDArray[Any]]:
        """The stored rows over the mask."""
        return self._rows

    def volume(self, rows: NDArray[Any], fill: float = np.nan) -> NDArray[Any]:
        """Rows (V, ...) over the mask as a volume ``(*mask.shape, ...)``, `fill` outside."""
        out = np.full(self.mask.shape + rows.shape[1:], fill, dtype=rows.dtype)
        out[self.mask] = rows
        return out

    def hermite_coef(self) -> Array:
        """Hermite coefficients (V, n) in the tensor's frame R at scales `mu`, for both bases."""
        if not self.isotropic:
            return self.coef
        if self._hermite is None:  # costs a rotation a voxel
            coef, back = (np.ascontiguousarray(a) for a in (self.coef, self.R.swapaxes(1, 2)))
            self._hermite = np.empty(coef.shape)
            call = partial(frames.hermite_rows, _turning(self.order), coef, back, self._hermite)
            spread(call, len(coef), PIECE, n_threads(None))
        return self._hermite

    def index_rows(self, name: str) -> Array:
        """An index by its name in `TABLE` as rows (V,) or (V, 3), axes of the b-vectors; KeyError
        for another name, ValueError where it has no meaning.
        """
        if name not in TABLE:
            raise KeyError(f"name: {name!r} is none of {', '.join(TABLE)}")
        if name in ON_REQUEST:
            return self._on_request(name)
        if self.isotropic and name in ANISOTROPIC_ONLY:
            text = f"{name} has no meaning for the isotropic basis"
            raise ValueError(f"{text}: fit with basis='anisotropic'")
        # to the tensor's Gaussian, which is not the basis' own first function
        if name == "ng" and self.isotropic:
            return _sine(self._radial_cosine(self.mu_tensor, 0))
        if name in ("pa", "pa_dti"):
            cosine = self._po_cosine(RADIAL) if name == "pa" else self._dti_cosine()
            return propagator.propagator_anisotropy(cosine)
        if self._nine is None:
            self._nine = np.empty((len(self.coef), 9))
            coef, mu = np.ascontiguousarray(self.hermite_coef()), np.ascontiguousarray(self.mu)
            given = coef, mu, scalars.tables(self.order)
            _in_room(scalars.index_rows, given, partial(scalars.room, self.order), self._nine)
            factor = mu[:, 0] / self.mu_tensor[:, 0]
            factor[np.abs(factor - 1.0) < 1e-12] = 1.0
            if not self.isotropic and (factor != 1.0).any():
                index = ordering.index_table(self.order)
                tables = scalars.tables(self.order)
                call = partial(scalars.beside, coef, factor, tables, index, self._nine)
                spread(call, len(coef), PIECE, n_threads(None))
        rows: Array = self._nine[:, INDICES[name].column]
        return rows

    def _on_request(self, name: str) -> Array:
        """Rows of an index of `ON_REQUEST`; those with three numbers are axes of the b-vectors."""
        if name in ("rtop_root", "rtap_root"):
            values = self.index_rows(name[:4])
            root = np.abs(values) ** (1 / 3 if name == "rtop_root" else 1 / 2)
            return np.asarray(np.copysign(root, values))
        if name == "theta_po":
            return np.asarray(np.arcsin(_sine(self._po_cosine(RADIAL))))
        if name == "gfa":
            from .use import directions

            return directions.gfa(self.odf_field()(directions.sphere(362).vertices[:181]))
        D = self.mu_tensor**2 / (2 * self.gtab.tau)
        mean = D.mean(1)
        parts: dict[str, Array] = {"md": mean, "ad": D[:, 0].copy(), "rd": D[:, 1:].mean(1)}
        if name in parts:
            return parts[name]
        spread = ((D - mean[:, None]) ** 2).sum(1)
        fa: Array = np.sqrt(1.5 * spread / (D**2).sum(1))
        if name == "fa":
            return fa
        length = fa if name == "color_fa" else np.where(fa >= 0, 1, fa)
        return np.asarray(self.R[:, :, 0] * length[:, None])

    def index(self, name: str) -> Array:
        """The map of an index by its name in `TABLE`; errors as of `index_rows`.

        Axes are those of the scanner where the fit has an affine, else the b-vectors'.
        """
        return self.volume(finished(name, self.index_rows(name), self.affine, self.gtab.frame))

    rtop_root = _accessor("rtop_root", "RTOP^(1/3), 1/mm; where RTOP < 0, less than 0, too.")
    rtap_root = _accessor("rtap_root", "RTAP^(1/2), 1/mm; where RTAP < 0, less than 0, too.")
    fa = _accessor("fa", "Fractional anisotropy of the scale tensor.")
    md = _accessor("md", "Mean diffusivity of the scale tensor, mm^2/s.")
    ad = _accessor("ad", "Largest eigenvalue of the scale tensor, mm^2/s.")
    rd = _accessor("rd", "Mean of the other two eigenvalues of the scale tensor, mm^2/s.")
    gfa = _accessor("gfa", "Generalised fractional anisotropy of the ODF, s = 2.")
    v1 = _accessor("v1", "First axis of the scale tensor (..., 3); axes as of `index`.")
    color_fa = _accessor("color_fa", "FA times abs(v1), (..., 3): red, green, blue for x, y, z.")

    rtop = _accessor("rtop", "Return-to-origin probability, 1/mm^3 [Ozarslan 2013, Eq. 36].")
    rtap = _accessor("rtap", "Return-to-axis probability along e1, 1/mm^2 [Ozarslan 2013, Eq. 40].")
    rtpp = _accessor("rtpp", "Return-to-plane probability across e1, 1/mm [Ozarslan 2013, Eq. 42].")
    msd = _accessor("msd", "Mean squared displacement, mm^2 [Fick 2016, Eq. D1].")
    qiv = _accessor("qiv", "Q-space inverse variance, mm^5 [Hosseinbor 2013, Eq. 22].")
    lapnorm = _accessor("lapnorm", "Norm of the Laplacian of the signal, mm [Fick 2016, Eq. 10].")
    ng_par = _accessor("ng_par", "Non-Gaussianity along e1, 0 to 1; anisotropic basis only.")
    ng_perp = _accessor("ng_perp", "Non-Gaussianity normal to e1, 0 to 1; anisotropic basis only.")
    pa_dti = _accessor("pa_dti", "Propagator anisotropy of the scale tensor alone, 0 to 1.")

    def rmse(self) -> Array:
        """Root mean squared residual in the data's units, over the valid samples, b0 included."""
        return self.volume(self._rows["rmse"])

    def r2(self) -> Array:
        """Coefficient of determination over the valid samples, b0 included."""
        return self.volume(self._rows["r2"])

    def ng(self) -> Array:
        """Non-Gaussianity, 0 to 1: the sine of the L2 angle between P and the tensor's Gaussian
        [Ozarslan 2013, Eq. 58].

        Meaningful only where the scale tensor was fitted on b <~ 2000 s/mm^2. For the isotropic
        basis the angle is to the tensor's Gaussian too, by overlaps, not to the basis' own first
        function.
        """
        return self.index("ng")

    def _radial_cosine(self, target: Array, K: int) -> Array:
        """cos^2 (V,) of the angle from P to K + 1 radial functions at scales `target` (V, 3)."""
        out = np.empty(len(self.coef))
        coef, mu, target = (np.ascontiguousarray(a) for a in (self.hermite_coef(), self.mu, target))
        even = propagator.even_table(self.order)
        room = partial(propagator.radial_room, coef.shape[1], even, K)
        _in_room(propagator.radial_cosine_rows, (coef, mu, target, even), room, out)
        return out

    @cached_property
    def _isotropic_scale(self) -> Array:
        """The single scale u0 (V,) of each tensor."""
        out = np.empty(len(self.mu_tensor))
        tensor.isotropic_scales(np.ascontiguousarray(self.mu_tensor), out)
        return out

    def _po_cosine(self, K: int) -> Array:
        """cos^2 (V,) of the angle between P and its isotropic counterpart."""
        if not (isinstance(K, int | np.integer) and K >= 0):
            raise ValueError(f"K must be a whole number from 0, not {K!r}")
        return self._radial_cosine(np.repeat(self._isotropic_scale[:, None], 3, 1), int(K))

    def _dti_cosine(self) -> Array:
        """The same of the tensor's Gaussian."""
        return propagator.gaussian_cosine(self.mu_tensor, self._isotropic_scale)

    def theta_po(self, K: int = RADIAL) -> Array:
        """Angle (radians) from P to its L2 projection on K + 1 radial functions."""
        return self.volume(np.arcsin(_sine(self._po_cosine(K))))

    def theta_dti(self) -> Array:
        """The same of the tensor's Gaussian; theta_po - theta_dti is the excess over the tensor."""
        return self.volume(np.arcsin(_sine(self._dti_cosine())))

    def pa(self, K: int = RADIAL) -> Array:
        """Propagator anisotropy, 0 to 1 [Ozarslan 2013, Eq. 51-56], by K + 1 radial functions."""
        return self.volume(propagator.propagator_anisotropy(self._po_cosine(K)))

    def negative(self) -> tuple[Array, Array]:
        """Least P over its largest, and negative mass int max(-P, 0) dr, on a dense grid."""
        coef, out = np.ascontiguousarray(self.hermite_coef()), np.empty((len(self.coef), 2))
        call = partial(propagator.negative_rows, coef, propagator.dense_grid(self.order), out)
        spread(call, len(out), PIECE, n_threads(None))
        return self.volume(out[:, 0]), self.volume(out[:, 1])

    def certificate(self) -> sos.Certificate:
        """Proofs that propagators are nonnegative everywhere, as rows over the mask; see
        `sos.certify`.

        A fit with positivity="global" carries its own; any other is projected on the cone of sums
        of squares.
        """
        from . import sos

        return sos.certify(self.hermite_coef(), self.order, self._rows["margin"])

    def odf_field(self, s: float = 2) -> directions.OdfField:
        """The ODF as a function of direction, for `directions.peaks`, `gfa` and `odf_sh`."""
        from .use import directions

        return directions.OdfField(self.hermite_coef(), self.mu, self.R, self.order, s)

    def odf(self, vectors: ArrayLike, s: float = 2, frame: str | None = None) -> Array:
        """Orientation distribution function int_0^inf P(rv) r^(2+s) dr, mm^s [Ozarslan 2013, Eq.
        32-35].

        Parameters
        ----------
        vectors : (K, 3) directions, or an object with `vertices`.
        s : any real number above -3; 0 is probability per solid angle, 2 sharpens.
        frame : of the vectors: "image", "voxel" or "scanner"; default that of the b-vectors.
            Another one needs the fit's `affine`.
        """
        vectors = getattr(vectors, "vertices", vectors)
        if frame is not None:
            vectors = turned(vectors, self.affine, frame, self.gtab.frame)
        return self.volume(self.odf_field(s)(vectors))

    def odf_sh(
        self,
        s: float = 2,
        sh_order: int = 8,
        sh_basis: str = "tournier07",
        frame: str | None = None,
    ) -> Array:
        """The ODF in harmonics ``(*mask.shape, n_sh)``; see `odf` and `directions.odf_sh`."""
        from .use import directions

        rows = directions.odf_sh(self.odf_field(s), sh_order, sh_basis)
        if frame is not None:
            turn = axes(self.affine, self.gtab.frame, frame)
            rows = rows @ directions.sh_rotation(turn, sh_order, sh_basis).T
        return self.volume(rows)

    def peaks(self, s: float = 2, frame: str | None = None, **kwargs: Any) -> tuple[Array, Array]:
        """Peaks of the ODF cut at degree 6: directions ``(*mask.shape, n, 3)``, in a frame as of
        `odf`, and values; see `directions.peaks`.
        """
        from .use import directions

        vectors, values = directions.peaks(self.odf_field(s), **kwargs)
        if frame is not None:
            vectors = turned(vectors, self.affine, self.gtab.frame, frame)
        return self.volume(vectors), self.volume(values)

    def pdf(self, points: ArrayLike, frame: str | None = None) -> Array:
        """The propagator P(r) in 1/mm^3 at displacements (K, 3) in mm, in a frame as of `odf`."""
        from .use.directions import check_points

        r = check_points("points", points)
        tables = propagator.point_tables(self.order, propagator.PROPAGATOR)
        checks.displacements(r)
        if frame is not None:
            r = turned(r, self.affine, frame, self.gtab.frame)
        return self.volume(propagator.values_at(self.hermite_coef(), self.mu, self.R, r, tables))

    def predict(self, gtab: Any = None, S0: ArrayLike | None = None, noisy: bool = False) -> Array:
        """Signals S0 E at a gradient table, ``(*mask.shape, n)``.

        Parameters
        ----------
        gtab : the table (its own deltas are used); default: the fitted one. One in another frame is
            turned by the fit's `affine`. A fit with `grad_dev` applies it to either.
        S0 : volume, row or number to use instead of the fitted S0; 1 gives E.
        noisy : the expected magnitudes of these signals at the fit's sigma, which measured
            magnitudes compare with; only for fits with `noise`.
        """
        table = self.gtab if gtab is None else GradientTable.of(gtab)
        if 0 < (top := table.bvals.max()) < checks.LEAST_B and top not in self.gtab.bvals:
            text = "gtab: its largest b is %g s/mm2. In ms/um2? Then it is %g s/mm2"
            log.warning(text, top, 1000 * top)
        qvecs = np.ascontiguousarray(turned(table.qvecs, self.affine, table.frame, self.gtab.frame))
        tables = propagator.point_tables(self.order, propagator.SIGNAL)
        R = self.R
        if self.field is not None:  # E at (I + F) q in the frame R: q in the frame (I + F)'R
            R = R + np.swapaxes(self.field, 1, 2) @ R
        out = propagator.values_at(self.hermite_coef(), self.mu, R, qvecs, tables)
        scale = self.S0 if S0 is None else np.asarray(S0, float)
        if scale.ndim and scale.shape == self.mask.shape:
            scale = scale[self.mask]
        if scale.shape not in ((), self.S0.shape):
            text = f"S0 must be a number, a volume {self.mask.shape} or a row {self.S0.shape}"
            raise ValueError(f"{text}, not {scale.shape}")
        out = np.ascontiguousarray(out * scale[..., None])
        if noisy:
            if "sigma" not in self._rows:
                raise ValueError("noisy: the fit needs noise='rician' or noise='denoised'")
            sigma, coils = np.ascontiguousarray(self._rows["sigma"]), int(self.options["coils"])
            call = partial(noise.expected_rows, out, sigma, coils, out)
            spread(call, len(out), PIECE, n_threads(None))
        return self.volume(out)

    def save(self, folder: str | Path, **kwargs: Any) -> None:
        """Write the fit as a folder that `load_fit` reads; `affine=` (4, 4) is required where the
        data came without. See `use.folder.save_fit`.
        """
        from .use.folder import save_fit

        save_fit(self, folder, **kwargs)
