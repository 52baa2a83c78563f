"""What a report carries for its script: maps, single voxels and residuals, quantised and packed as
base64, within a limit of size.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fit import MapmriFit
from ..gradients import GradientTable
from ..status import Status
from .directions import sphere
from .views import Map, Orientation, html, limits, three

Array = NDArray[np.float64]

LIMIT = 13_000_000  # characters of all that is packed
MAPS_FINE, MAPS_MOST = 4_000_000, 8_500_000  # of maps in 16 bits; of maps at all
MOST_VOXELS = 4000  # that can be opened
CURVE, PLANE = 40, 31  # points of a curve of the fit, of a plane's edge
SPHERE = 362  # of an ODF
REACH = 4.5  # edge of the propagator's planes, in scales of the tensor along e1
DECADES = 4.0  # of P / P(0) that are kept
OUTLIER = 3.0  # interquartile ranges of log RMSE above the third quartile
EVEN = 0.85  # of a map's codes that lie evenly in its range
CHUNK = 8  # volumes whose residuals are computed together


def pack(array: NDArray[Any]) -> str:
    """An array's bytes, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def part(fit: MapmriFit, keep: NDArray[Any]) -> MapmriFit:
    """The fit of some of its rows, as a line of voxels."""
    rows = {name: values[keep] for name, values in fit.rows().items()}
    return MapmriFit(rows, np.ones(len(rows["status"]), bool), fit.options, fit.gtab)


class Grid:
    """The voxels that a report shows: canonical, cropped to the mask, every `step`-th an axis."""

    def __init__(
        self, mask: NDArray[np.bool_], orientation: Orientation, maps: int, most: int | None = None
    ) -> None:
        numbers = np.full(mask.shape, -1)
        numbers[mask] = np.arange(mask.sum())
        turned, self.step = orientation.turn(numbers), 1
        while self.characters(turned, maps) > (most or MAPS_MOST):
            self.step += 1
        turned = turned[(slice(None, None, self.step),) * 3]
        found = np.argwhere(turned >= 0)
        self.first: NDArray[np.int64] = found.min(0) if len(found) else np.zeros(3, np.int64)
        last = found.max(0) + 1 if len(found) else self.first
        self.numbers = turned[tuple(slice(a, b) for a, b in zip(self.first, last, strict=True))]
        self.rows = self.numbers[self.numbers >= 0]
        self.fine = self.characters(self.numbers, maps) * 2 / self.step**3 <= MAPS_FINE
        self.orientation, self.shape = orientation, three(mask).shape

    def characters(self, numbers: NDArray[Any], maps: int) -> float:
        """Of `maps` maps of one byte a voxel."""
        return float((numbers >= 0).sum()) / self.step**3 * maps * 4 / 3

    def entries(self) -> dict[str, Any]:
        """What the script needs to find its way: shape, mask, millimetres, stored indices."""
        o, affine = self.orientation, None
        if o.affine is not None:
            affine = o.affine.copy()
            affine[:3, 3] = o.affine[:3] @ [*self.first * self.step, 1]
            affine[:3, :3] *= self.step
            affine = np.round(affine, 6).tolist()
        return {
            "shape": self.numbers.shape,
            "mask": pack(np.packbits(self.numbers.ravel() >= 0)),
            "size": (o.size * self.step).tolist(),
            "affine": affine,
            "stored": {"order": o.order, "flip": o.flip, "shape": self.shape},
            "first": self.first.tolist(),
            "step": self.step,
        }

    def quantised(
        self, m: Map, rows: Array, bounds: tuple[float, float] | None = None
    ) -> dict[str, Any]:
        """A map in 8 or 16 bits: 0 is no value; the rest runs evenly from `low` to `middle`, the
        upper end of its range (`bounds`), and with the logarithm from there to `high`.
        """
        bounds = bounds or limits(rows)
        shown, span = rows[self.rows], np.ptp(bounds)
        finite = rows[np.isfinite(rows)]
        least, high = (finite.min(), finite.max()) if finite.size else bounds
        low, middle = max(bounds[0] - (10 if self.fine else 0.5) * span, least), bounds[1]
        top = 65535 if self.fine else 255
        tail = max(np.log1p(max(high - middle, 0.0) / span), 1e-12)
        even = EVEN * (np.clip(shown, low, middle) - low) / (middle - low)
        beyond = (1 - EVEN) * np.log1p(np.clip(shown - middle, 0, None) / span) / tail
        steps = np.round((top - 1) * np.nan_to_num(even + beyond))
        code = np.where(np.isfinite(shown), 1 + steps, 0)
        return {
            "label": html(m.label),
            "unit": "" if m.unit == "1" else m.unit,
            "low": float(low),
            "middle": middle,
            "tail": float(tail),
            "even": EVEN,
            "below": bool(least < low),
            "range": bounds,
            "bits": 16 if self.fine else 8,
            "data": pack(code.astype("<u2" if self.fine else "u1")),
        }


def outliers(fit: MapmriFit, negative: Array, most_negative: float) -> NDArray[np.bool_]:
    """Rows that deserve a look: large residuals, negative mass, RTOP <= 0."""
    good = (fit.status & Status.NO_FIT) == 0
    size = np.log(np.where(good & (fit.rows()["rmse"] > 0), fit.rows()["rmse"], 1.0))
    out = good & ((negative > most_negative) | ((fit.status & Status.RTOP_NOT_POSITIVE) != 0))
    if good.any():
        first, third = np.percentile(size[good], (25, 75))
        out |= good & (size > third + OUTLIER * (third - first) + 1e-9)
    return np.asarray(out)


def choose(grid: Grid, fit: MapmriFit, odd: NDArray[np.bool_], room: int) -> NDArray[np.int64]:
    """Rows of the voxels that can be opened: all if there is room, else the outliers and a grid."""
    fitted = (fit.status & Status.NO_FIT) == 0
    numbers = np.where((grid.numbers >= 0) & fitted[grid.numbers], grid.numbers, -1)
    room = min(room, MOST_VOXELS)
    special = grid.rows[(odd & fitted)[grid.rows]]
    special = special[np.argsort(-fit.rows()["rmse"][special], kind="stable")][: room // 2]
    for stride in range(1, 1 + max(numbers.shape, default=1)):
        start = tuple(slice((min(stride, n) - 1) // 2, None, stride) for n in numbers.shape)
        even = numbers[start]
        rows = np.union1d(even[even >= 0], special)
        if len(rows) <= room:
            break
    return np.asarray(rows[:room], np.int64)


def each_voxel(
    fit: MapmriFit, rows: NDArray[np.int64], orientation: Orientation, samples: Any
) -> dict[str, Any]:
    """Of each row: samples, the fit along e1, e2, e3, P / P(0) in two planes, the ODF."""
    some = part(fit, rows)
    # In the tensor's frame, its largest scale brought to 10 µm: the same points for every voxel.
    reach = some.mu_tensor.max(1)
    frame = {"coef": some.hermite_coef(), "R": np.tile(np.eye(3), (len(rows), 1, 1))}
    kept = {name: values for name, values in some.rows().items() if name != "field"} | frame
    own = {**fit.options, "basis": "anisotropic"}
    straight = MapmriFit(kept, some.mask, own, fit.gtab)
    unit = MapmriFit(kept | {"mu": 0.01 * some.mu / reach[:, None]}, some.mask, own, fit.gtab)
    b = np.linspace(0, 1.02 * fit.gtab.bvals.max(), CURVE)
    lines = [GradientTable(b, np.tile(axis, (CURVE, 1)), tau=fit.gtab.tau) for axis in np.eye(3)]
    noisy = some.sigma is not None
    curves = [straight.predict(line, noisy=noisy) for line in lines]
    floor = 1.25 * some.rows()["rmse"]
    if noisy:
        floor = some.predict(fit.gtab[[0]], S0=0, noisy=True)[:, 0]
    curve = np.stack(curves, 1)
    top = np.nanmax(curve, (1, 2), initial=0.0)
    if samples is not None:
        top = np.fmax(top, np.nanmax(np.where(np.isfinite(samples), samples, 0), 1, initial=0))
    top = np.where(top > 0, top, 1.0)

    def sixteen(values: Array) -> str:
        scaled = np.round(np.clip(values / top.reshape(-1, *[1] * (values.ndim - 1)), 0, 1) * 65534)
        return pack(np.where(np.isfinite(scaled), scaled, 65535).astype("<u2"))

    line = 0.01 * REACH * np.linspace(-1, 1, PLANE)
    half = line[PLANE // 2 :]  # P(-r) = P(r)
    v, u = (a.ravel() for a in np.meshgrid(half, line, indexing="ij"))
    o, origin = np.zeros_like(u), unit.pdf(np.zeros((1, 3)))
    planes = []
    for points in (np.stack([u, v, o], 1), np.stack([o, u, v], 1)):
        p = unit.pdf(points) / origin
        code = np.round(2 + 253 * (1 + np.log10(np.clip(p, 10**-DECADES, 1)) / DECADES))
        planes.append(np.where(p < -(10**-DECADES), 0, np.where(p < 10**-DECADES, 1, code)))
    half_sphere = sphere(SPHERE).vertices[: SPHERE // 2]
    vectors = orientation.in_frame(half_sphere, fit.gtab.frame)
    odf = np.maximum(some.odf(np.concatenate([vectors, -vectors])), 0)[:, : SPHERE // 2]
    peak = np.maximum(odf.max(1, keepdims=True), 1e-300)
    return {
        "top": pack(top.astype("<f4")),
        "rmse": pack(some.rows()["rmse"].astype("<f4")),
        "floor": pack(floor.astype("<f4")),
        "e1": pack(some.R[:, :, 0].astype("<f4")),
        "reach": pack((1e3 * REACH * reach).astype("<f4")),
        "samples": None if samples is None else sixteen(samples),
        "curve": sixteen(curve),
        "planes": pack(np.stack(planes, 1).astype("u1")),
        "odf": pack(np.round(255 * odf / peak).astype("u1")),
        "points": [CURVE, PLANE, SPHERE],
        "most_b": float(b[-1]),
        "decades": DECADES,
        "sphere": pack(half_sphere.astype("<f4")),
        "faces": pack(sphere(SPHERE).faces.astype("<u2")),
    }


def each_volume(
    fit: MapmriFit, data: Any, layer: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[Any, Array]:
    """Residuals over the voxels' own RMSE: root mean square of each volume, and of its worst layer,
    (2, n); and the samples (len(rows), n) of some rows. `layer` (V,) numbers the slices.
    """
    line = part(fit, np.ones(len(fit.coef), bool))
    rmse, n = fit.rows()["rmse"], len(fit.gtab)
    good = ((fit.status & Status.NO_FIT) == 0) & (rmse > 0)
    out, samples = np.full((2, n), np.nan), np.empty((len(rows), n))
    for first in range(0, n, CHUNK):
        chunk = np.arange(first, min(first + CHUNK, n))
        fitted = line.predict(fit.gtab[chunk], noisy=fit.sigma is not None)
        for k, volume in enumerate(chunk):
            y = three(np.asarray(data[..., int(volume)]))[three(fit.mask)].astype(float)
            samples[:, volume] = y[rows]
            use = good & np.isfinite(y)
            if not use.any():
                continue
            square = ((y - fitted[:, k])[use] / rmse[use]) ** 2
            count = np.bincount(layer[use])
            sums = np.bincount(layer[use], square)[count >= 20] / count[count >= 20]
            out[:, volume] = np.sqrt([square.mean(), sums.max() if sums.size else np.nan])
    return out, samples
