"""
Gradient tables: b, directions and pulse timing, from arrays, FSL, MRtrix and BIDS files, checked
once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import readers

Array = NDArray[np.float64]
File = readers.File

LENGTH_TOLERANCE = 0.01  # a direction further than this from length 1 is a mistake, not rounding
UNIT_ROUNDING = (
    1e-14  # rows this close to length 1 stay as they are, so that a saved table reloads bit for bit
)
TAU_SPREAD = 0.05  # one fit needs one diffusion time: largest (max - min) / mean of tau
SHELL_GAP = 0.02  # relative gap in |q| that separates two shells


class GradientTable:
    """
    The acquisition of one diffusion series.

    Parameters
    ----------
    bvals : (n,) b-values in s/mm2.
    bvecs : (n, 3) or (3, n) directions; normalised here. A volume at b <= `b0_threshold` may have a
        zero row.
    big_delta, small_delta : pulse separation and duration in seconds, scalars or (n,). Never
        guessed.
    tau : diffusion time in seconds, scalar or (n,), instead of the two deltas.
    b0_threshold : volumes at or below this b (s/mm2) count as b = 0.
    frame : "image" for FSL's convention (voxel axes, x negated where the affine's determinant is
        positive), "scanner" for RAS millimetre axes (MRtrix).

    Attributes
    ----------
    bvals, taus, qvals : (n,) in s/mm2, s, 1/mm, with q = sqrt(b / tau) / (2 pi) by each volume's
        own tau.
    bvecs, qvecs : (n, 3), unit directions and q-vectors in 1/mm.
    b0s_mask : (n,) bool.

    Notes
    -----
    tau = Delta - delta / 3. A table may mix diffusion times, so that ``table[select]`` can take
    them apart; asking such a table for its one `tau` (as a fit does) is an error. Every error is a
    ValueError that names argument and value.

    Examples
    --------
    >>> table = GradientTable([0, 1000], [[0, 0, 0], [1, 0, 0]], big_delta=0.0431, small_delta=0.0106)
    >>> print(len(table), round(table.qvals[1], 3))
    2 25.302
    """

    def __init__(
        self, bvals: ArrayLike, bvecs: ArrayLike, big_delta: ArrayLike | None = None, small_delta: ArrayLike | None = None,
        tau: ArrayLike | None = None, b0_threshold: float = 50, frame: str = "image",
    ) -> None:  # fmt: skip
        _is_scanner(frame)  # or an error
        self.frame, self.b0_threshold = frame, float(_floats("b0_threshold", b0_threshold))
        if self.b0_threshold < 0:
            raise ValueError(f"b0_threshold must be a number >= 0, not {b0_threshold!r}")
        self.bvals = np.atleast_1d(_floats("bvals", bvals)).copy()
        if self.bvals.ndim != 1 or len(self.bvals) == 0:
            raise ValueError(
                f"bvals must be a list of b-values, not an array of shape {self.bvals.shape}"
            )
        _refuse("bvals", self.bvals, self.bvals < 0, "is negative")
        self.b0s_mask = self.bvals <= self.b0_threshold
        self.bvecs = _unit_rows(_floats("bvecs", bvecs), self.bvals, self.b0s_mask)
        self._timing = _timing(len(self), big_delta=big_delta, small_delta=small_delta, tau=tau)
        self.big_delta, self.small_delta, given_tau = self._timing.values()
        taus = (
            given_tau if given_tau is not None else self.big_delta - np.divide(self.small_delta, 3)
        )
        self.taus = np.array(np.broadcast_to(taus, len(self)), np.float64)
        self.qvals = np.sqrt(self.bvals / self.taus) / (2 * np.pi)
        self.qvecs = self.qvals[:, None] * self.bvecs

    @property
    def tau(self) -> float:
        """
        The table's one diffusion time in seconds: the mean; a spread above 5 % is a ValueError.
        """
        low, high = float(self.taus.min()), float(self.taus.max())
        mean = low if low == high else float(self.taus.mean())
        if high - low > TAU_SPREAD * mean:
            text = f"big_delta and small_delta give tau from {low:.4g} to {high:.4g} s, one fit needs one (within"
            raise ValueError(f"{text} {TAU_SPREAD:.0%}): take the table apart with table[select]")
        return mean

    def __len__(self) -> int:
        return len(self.bvals)

    def __getitem__(self, select: Any) -> GradientTable:
        """
        Subset of the volumes by index, slice, list of indices or boolean mask, as a table of its
        own.
        """
        rows = np.atleast_1d(np.arange(len(self))[select])
        big, small, tau = (
            value[rows] if np.ndim(value) else value for value in self._timing.values()
        )
        return GradientTable(
            self.bvals[rows], self.bvecs[rows], big, small, tau, self.b0_threshold, self.frame
        )

    def __repr__(self) -> str:
        shells = ", ".join(f"{count} x {b:.0f}" for b, count in self.shells())
        return f"GradientTable({len(self)} volumes: {self.b0s_mask.sum()} b0, {shells}; tau {self.taus.mean():.5g} s)"

    def shells(self) -> list[tuple[float, int]]:
        """
        Clusters of |q| above the b0 threshold, ascending: (mean b in s/mm2, number of volumes) of
        each.
        """
        order = np.argsort(self.qvals, kind="stable")
        order = order[~self.b0s_mask[order]]
        q = self.qvals[order]
        parts = np.split(self.bvals[order], np.flatnonzero(np.diff(q) > SHELL_GAP * q[:-1]) + 1)
        return [(float(part.mean()), len(part)) for part in parts if len(part)]

    @classmethod
    def from_fsl(
        cls, bval: File, bvec: File, *, json: File | None = None, **timing: Any
    ) -> GradientTable:
        """
        Table from FSL's text (bvec in rows or columns) and a sidecar, which `timing`'s deltas or
        tau override.
        """
        return cls(*readers.fsl(bval, bvec), **readers.deltas(json, timing))

    @classmethod
    def from_mrtrix(cls, path: File, *, json: File | None = None, **timing: Any) -> GradientTable:
        """Table from MRtrix's .b text, rows x y z b with directions in scanner axes."""
        return cls(*readers.mrtrix(path), **{"frame": "scanner", **readers.deltas(json, timing)})

    @classmethod
    def from_bids(
        cls,
        path: File,
        *,
        bval: File | None = None,
        bvec: File | None = None,
        json: File | None = None,
        **timing: Any,
    ) -> GradientTable:
        """
        Table from the .bval, .bvec and .json beside a DWI (or beside any of its sidecars), unless
        named.
        """
        beside = readers.beside(path)
        json = json or (beside["json"] if beside["json"].is_file() else None)
        return cls.from_fsl(bval or beside["bval"], bvec or beside["bvec"], json=json, **timing)

    @classmethod
    def of(cls, table: Any, tau: ArrayLike | None = None) -> GradientTable:
        """
        `table` itself, or one made from anything with bvals, bvecs, big_delta and small_delta (a
        DIPY table).
        """
        if isinstance(table, GradientTable):
            return table
        if not (hasattr(table, "bvals") and hasattr(table, "bvecs")):
            raise ValueError(
                f"gtab must be a GradientTable or have bvals and bvecs, not a {type(table).__name__}"
            )
        big, small = (
            getattr(table, name, None) if tau is None else None
            for name in ("big_delta", "small_delta")
        )
        return cls(table.bvals, table.bvecs, big, small, tau, getattr(table, "b0_threshold", 50))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON; `from_dict` gives the same table bit for bit."""
        entries = {"bvals": self.bvals, "bvecs": self.bvecs, **self._timing}
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in entries.items()
        }
        return plain | {"b0_threshold": self.b0_threshold, "frame": self.frame}

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> GradientTable:
        """Table from `to_dict`'s entries."""
        return cls(**entries)


def to_scanner(vectors: ArrayLike, affine: ArrayLike, frame: str = "image") -> Array:
    """
    Vectors (..., 3) of a table's frame in scanner (RAS) axes; `affine` (4, 4) maps voxels to
    scanner space.
    """
    axes = np.eye(3) if _is_scanner(frame) else _image_axes(affine)
    return np.asarray(np.asarray(vectors, np.float64) @ axes.T)


def to_image(vectors: ArrayLike, affine: ArrayLike, frame: str = "scanner") -> Array:
    """Vectors (..., 3) of a table's frame in FSL's image frame: the inverse of `to_scanner`."""
    axes = _image_axes(affine) if _is_scanner(frame) else np.eye(3)
    return np.asarray(np.asarray(vectors, np.float64) @ axes)


def from_voxel(vectors: ArrayLike, affine: ArrayLike, frame: str = "image") -> Array:
    """Vectors (..., 3) along voxel axes in a table's frame."""
    image = np.asarray(vectors, np.float64) * _flip(affine)
    return to_scanner(image, affine) if _is_scanner(frame) else image


def _image_axes(affine: ArrayLike) -> Array:
    """
    Columns: the axes of FSL's image frame in scanner space; for a sheared affine those of the
    nearest rotation.
    """
    flip, linear = _flip(affine), np.asarray(affine, np.float64)[:3, :3]
    left, _, right = np.linalg.svd(linear / np.linalg.norm(linear, axis=0))
    return np.asarray((left @ right) * flip)


def _flip(affine: ArrayLike) -> Array:
    """FSL's convention: signs (3,) of the image frame's axes along the voxel axes."""
    linear = _floats("affine", affine)[:3, :3]
    if np.linalg.det(linear) == 0:
        raise ValueError(f"affine is singular: {linear.tolist()}")
    return np.array([-1.0 if np.linalg.det(linear) > 0 else 1.0, 1.0, 1.0])


def _is_scanner(frame: str) -> bool:
    if frame not in ("image", "scanner"):
        raise ValueError(f"frame must be 'image' or 'scanner', not {frame!r}")
    return frame == "scanner"


def _floats(name: str, values: ArrayLike) -> Array:
    """Finite float64 array or an error that names the argument."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from None
    _refuse(name, array, ~np.isfinite(array), "is not finite")
    return array


def _refuse(name: str, array: Array, bad: NDArray[np.bool_], what: str) -> None:
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        place = f"[{', '.join(map(str, where))}]" if where else ""
        raise ValueError(f"{name}{place} = {array[where]:.6g} {what}")


def _unit_rows(bvecs: Array, bvals: Array, b0s_mask: NDArray[np.bool_]) -> Array:
    n = len(bvals)
    if bvecs.shape not in ((n, 3), (3, n)):
        raise ValueError(
            f"bvecs of shape {bvecs.shape} do not go with {n} bvals: expected ({n}, 3) or (3, {n})"
        )
    rows = np.array(bvecs if bvecs.shape == (n, 3) else bvecs.T, order="C")
    with np.errstate(over="ignore"):  # its length is inf, and refused
        length = np.linalg.norm(rows, axis=1)
    for i in np.flatnonzero(~b0s_mask & (np.abs(length - 1) > LENGTH_TOLERANCE)):
        raise ValueError(
            f"bvecs[{i}] = {rows[i].tolist()} at b = {bvals[i]:g} has length {length[i]:.4g}, not 1"
        )
    off = (np.abs(length - 1) > UNIT_ROUNDING) & (length > 0)
    rows[off] /= length[off, None]
    return rows


def _timing(n: int, **given: Any) -> dict[str, Any]:
    """Checked big_delta, small_delta, tau, in this order: None, a float, or (n,)."""
    for name, value in given.items():
        if value is not None:
            array = _floats(name, value)
            if array.shape not in ((), (n,)):
                raise ValueError(f"{name} of shape {array.shape} does not go with {n} bvals")
            _refuse(name, array, array <= 0, "is not positive")
            _refuse(name, array, array > 1, "is above 1 s: milliseconds? Times are in seconds")
            given[name] = array.copy() if array.ndim else float(array)
    missing = [name for name in ("big_delta", "small_delta") if given[name] is None]
    if given["tau"] is not None:
        if len(missing) < 2:
            raise ValueError(
                f"tau = {given['tau']} came with big_delta or small_delta: give one or the other"
            )
        return given
    if missing:
        raise ValueError(
            f"{missing[0]} is missing: without both deltas (in seconds), or tau, indices have no units"
        )
    big, small = np.broadcast_arrays(given["big_delta"], given["small_delta"])
    _refuse("small_delta", small, small > big, f"is longer than big_delta = {big.min():.6g}")
    return given
