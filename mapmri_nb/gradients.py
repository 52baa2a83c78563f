"""Gradient tables: b, directions, pulse timing, from arrays and files, checked once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import readers

Array = NDArray[np.float64]
File = readers.File
Sidecars = File | Iterable[File] | None

TAU_SPREAD = 0.05  # one fit needs one diffusion time: largest (max - min) / mean of tau
SHELL_GAP = 0.02  # relative gap in |q| that separates two shells
MOST_B = 1e6  # s/mm2: no scanner comes near it
ROUNDED_B = -1.0  # s/mm2: between it and 0 a b-value is a rounded 0
SHORTEST_PART = 1 / 200  # of big_delta: no gradient pulse is shorter
SAME_DIRECTION = 1.0  # degrees between two readings of one table, both rounded text
FRAMES = ("image", "voxel", "scanner")


class GradientTable:
    """The acquisition of one diffusion series.

    Parameters
    ----------
    bvals : (n,) b-values in s/mm2. Those between -1 and 0 are a rounded 0.
    bvecs : (n, 3) or (3, n) directions; normalised here. A volume at b <= `b0_threshold` needs
        none.
    big_delta, small_delta : pulse separation and duration in seconds, scalars or (n,). Never
        guessed.
    tau : diffusion time in seconds, scalar or (n,), instead of the two deltas.
    b0_threshold : volumes at or below this b (s/mm2) count as b = 0.
    frame : axes of `bvecs`: "image" for FSL's convention (voxel axes, x negated where the affine's
        determinant is positive), "voxel" for voxel axes as they are (DIPY, QSIPrep, DSI Studio),
        "scanner" for RAS millimetre axes (MRtrix).
    bvec_scaling : what lengths mean that are neither all equal nor go with sqrt(b): "refuse" (an
        error), "normalise" (nothing) or "amplitude" (the true b is b times v'v).

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
    >>> table = GradientTable([0, 1000], [[0, 0, 0], [1, 0, 0]], 0.0431, 0.0106)
    >>> print(len(table), round(table.qvals[1], 3))
    2 25.302
    """

    def __init__(
        self, bvals: ArrayLike, bvecs: ArrayLike, big_delta: ArrayLike | None = None,
        small_delta: ArrayLike | None = None, tau: ArrayLike | None = None,
        b0_threshold: float = 50, frame: str = "image", bvec_scaling: str = "refuse",
    ) -> None:  # fmt: skip
        self.frame, self.b0_threshold = _frame(frame), float(_floats("b0_threshold", b0_threshold))
        if self.b0_threshold < 0:
            raise ValueError(f"b0_threshold must be a number >= 0, not {b0_threshold!r}")
        self.bvals = np.atleast_1d(_floats("bvals", bvals)).copy()
        if self.bvals.ndim != 1 or len(self.bvals) == 0:
            text = f"not an array of shape {self.bvals.shape}"
            raise ValueError(f"bvals must be a list of b-values, {text}")
        self.bvals[(self.bvals > ROUNDED_B) & (self.bvals < 0)] = 0
        _refuse("bvals", self.bvals, self.bvals < 0, "is negative")
        text = "s/mm2 is out of any sense. In s/m2? Then divide bvals by 1e6"
        _refuse("bvals", self.bvals, self.bvals > MOST_B, text)
        b0 = self.b0_threshold
        self.bvals, self.bvecs = readers.directions(self.bvals, bvecs, b0, bvec_scaling)
        self.b0s_mask = self.bvals <= self.b0_threshold
        self._timing = _timing(self.b0s_mask, big_delta=big_delta, small_delta=small_delta, tau=tau)
        self.big_delta, self.small_delta, given_tau = self._timing.values()
        taus = given_tau
        if taus is None:
            taus = self.big_delta - np.divide(self.small_delta, 3)
        self.taus = np.array(np.broadcast_to(taus, len(self)), np.float64)
        self.qvals = np.sqrt(self.bvals / self.taus) / (2 * np.pi)
        self.qvecs = self.qvals[:, None] * self.bvecs

    @property
    def tau(self) -> float:
        """The one diffusion time in seconds, the mean; a spread above 5 % is a ValueError."""
        low, high = float(self.taus.min()), float(self.taus.max())
        mean = low if low == high else float(self.taus.mean())
        if high - low > TAU_SPREAD * mean:
            text = f"big_delta and small_delta give tau from {low:.4g} to {high:.4g} s"
            text = f"{text}, one fit needs one (within {TAU_SPREAD:.0%})"
            raise ValueError(f"{text}: take the table apart with table[select]")
        return mean

    def __len__(self) -> int:
        return len(self.bvals)

    def __getitem__(self, select: Any) -> GradientTable:
        """The table of some volumes: an index, a slice, a list of indices or a boolean mask."""
        rows = np.atleast_1d(np.arange(len(self))[select])
        more = {name: v[rows] if np.ndim(v) else v for name, v in self._timing.items()}
        more |= {"b0_threshold": self.b0_threshold, "frame": self.frame}
        return GradientTable(self.bvals[rows], self.bvecs[rows], **more)

    def __eq__(self, other: object) -> bool:
        """True for a table with the same volumes, times, threshold and frame, bit for bit."""
        if not isinstance(other, GradientTable):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.bvals.tobytes(), self.bvecs.tobytes(), self.frame))

    def __repr__(self) -> str:
        shells = ", ".join(f"{count} x {b:.0f}" for b, count in self.shells())
        volumes = f"{len(self)} volumes: {self.b0s_mask.sum()} b0, {shells}"
        return f"GradientTable({volumes}; tau {self.taus.mean():.5g} s)"

    def shells(self) -> list[tuple[float, int]]:
        """q-vectors by length above the b0 threshold, ascending: (mean b in s/mm2, volumes)."""
        order = np.argsort(self.qvals, kind="stable")
        order = order[~self.b0s_mask[order]]
        q = self.qvals[order]
        parts = np.split(self.bvals[order], np.flatnonzero(np.diff(q) > SHELL_GAP * q[:-1]) + 1)
        return [(float(part.mean()), len(part)) for part in parts if len(part)]

    @classmethod
    def from_fsl(
        cls, bval: File, bvec: File, *, json: Sidecars = None, volumes: Any = None, **more: Any
    ) -> GradientTable:
        """Table from FSL's text (bvec in rows or columns) and sidecars; `more` arguments of the
        constructor go before what they say. `volumes` (see `readers.volumes`) chooses some.
        """
        return cls._read(readers.fsl(bval, bvec), json, volumes, more)

    @classmethod
    def from_mrtrix(
        cls, path: File, *, json: Sidecars = None, volumes: Any = None, **more: Any
    ) -> GradientTable:
        """Table from MRtrix's .b text, rows x y z b with directions in scanner axes."""
        return cls._read(readers.mrtrix(path), json, volumes, more)

    @classmethod
    def from_bids(
        cls, path: File, *, bval: File | None = None, bvec: File | None = None,
        json: File | None = None, volumes: Any = None, **more: Any,
    ) -> GradientTable:  # fmt: skip
        """Table from the files of a DWI (or of any of its sidecars), unless named: those beside it,
        inherited ones, or `bvals` and `bvecs`; see `readers.beside`.

        Unless `frame`, `bval` or `bvec` is given, an MRtrix .b beside it goes before them; without
        one, `frame` is "voxel" below a data set's description that names QSIPrep.
        """
        if more.get("frame") is None:
            table = readers.mrtrix_beside(path)
            if table and bval is None and bvec is None:
                json = json or readers.beside(path)["json"]
                return cls.from_mrtrix(table, json=json, volumes=volumes, **more)
            if readers.along_voxels(bvec or path):
                more["frame"] = "voxel"
        found = readers.beside(path)
        entries = readers.fsl(bval or found["bval"], bvec or found["bvec"])
        return cls._read(entries, json or found["json"], volumes, more)

    @classmethod
    def _read(cls, entries: dict[str, Any], json: Any, volumes: Any, more: Any) -> GradientTable:
        entries |= readers.deltas(json, more)
        if volumes is not None:
            entries = readers.chosen(entries, readers.volumes(volumes, entries["bvals"]))
        return cls(**entries)

    @classmethod
    def of(cls, table: Any, tau: ArrayLike | None = None) -> GradientTable:
        """`table` itself, or one made from anything with bvals, bvecs, big_delta and small_delta. A
        DIPY table's b-vectors run along the voxel axes; so are those without a `frame` read.
        """
        if isinstance(table, GradientTable):
            return table
        if not (hasattr(table, "bvals") and hasattr(table, "bvecs")):
            text = "gtab must be a GradientTable or have bvals and bvecs"
            raise ValueError(f"{text}, not a {type(table).__name__}")
        B = np.zeros((0, 3, 3)) if getattr(table, "btens", None) is None else table.btens
        for i in np.flatnonzero(np.linalg.norm(B, axis=(1, 2)) < 0.99 * np.trace(B, 0, 1, 2)):
            text = f"gtab: the b-tensor of volume {i} is not linear (gradients along one line)"
            raise ValueError(f"{text}, and MAP-MRI has no other signals: leave such volumes out")
        names = ("big_delta", "small_delta")
        big, small = (getattr(table, n, None) if tau is None else None for n in names)
        threshold, frame = getattr(table, "b0_threshold", 50), getattr(table, "frame", "voxel")
        return cls(table.bvals, table.bvecs, big, small, tau, threshold, frame)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON; `from_dict` gives the same table bit for bit."""
        entries = {"bvals": self.bvals, "bvecs": self.bvecs, **self._timing}
        arrays = {k: v.tolist() for k, v in entries.items() if isinstance(v, np.ndarray)}
        plain = entries | arrays
        return plain | {"b0_threshold": self.b0_threshold, "frame": self.frame}

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> GradientTable:
        """Table from `to_dict`'s entries."""
        return cls(**entries)


def axes(affine: ArrayLike | None, source: str, target: str) -> Array:
    """Matrix (3, 3) whose columns are the axes of the frame `source` in the frame `target`.

    `affine` (4, 4) maps voxels to scanner space; for a sheared one the axes are those of the
    nearest rotation. A ValueError where the frames differ and it is None or singular.
    """
    if _frame(source) == _frame(target):
        return np.eye(3)
    if affine is None:
        text = f"affine is missing: between the frames {source!r} and {target!r} it is needed"
        raise ValueError(f"{text}. Fit a nibabel image or set fit.affine")
    linear = _floats("affine", affine)[:3, :3]
    if np.linalg.det(linear) == 0:
        raise ValueError(f"affine is singular: {linear.tolist()}")
    flip = np.diag([-1.0 if np.linalg.det(linear) > 0 else 1.0, 1.0, 1.0])  # FSL's convention
    if "scanner" not in (source, target):
        return flip
    left, _, right = np.linalg.svd(linear / np.linalg.norm(linear, axis=0))
    voxel = left @ right if "voxel" in (source, target) else left @ right @ flip
    return np.asarray(voxel if target == "scanner" else voxel.T)


def turned(vectors: ArrayLike, affine: ArrayLike | None, source: str, target: str) -> Array:
    """Vectors (..., 3) of one frame in another; errors as of `axes`."""
    return np.asarray(np.asarray(vectors, np.float64) @ axes(affine, source, target).T)


def to_scanner(vectors: ArrayLike, affine: ArrayLike | None, frame: str = "image") -> Array:
    """Vectors (..., 3) of a table's frame in scanner (RAS) axes."""
    return turned(vectors, affine, frame, "scanner")


def from_voxel(vectors: ArrayLike, affine: ArrayLike | None, frame: str = "image") -> Array:
    """Vectors (..., 3) along voxel axes in a table's frame."""
    return turned(vectors, affine, "voxel", frame)


def same_directions(
    table: dict[str, Any], scanner: dict[str, Any], affine: ArrayLike
) -> dict[str, float]:
    """Largest angle, in degrees, between bvals and bvecs as they are in a file and those of the
    same series along scanner axes, by the frame in which the first are read.

    inf where another number of volumes or other b-values show that the series is not the same.
    """
    b, other = table["bvals"], scanner["bvals"]
    lengths = [np.linalg.norm(entries["bvecs"], axis=1) for entries in (table, scanner)]
    readings = b, b * np.nan_to_num(lengths[0]) ** 2
    if len(b) != len(other) or not any(np.allclose(x, other, 0.1, 50) for x in readings):
        return dict.fromkeys(FRAMES, np.inf)
    use = (b > 50) & (other > 50)
    use &= (np.nan_to_num(lengths[0]) > 0) & (np.nan_to_num(lengths[1]) > 0)
    angles = {}
    for frame in FRAMES:
        vectors = turned(table["bvecs"][use], affine, frame, "scanner")
        cosine = np.abs((vectors * scanner["bvecs"][use]).sum(1))
        cosine /= lengths[0][use] * lengths[1][use]
        angles[frame] = float(np.degrees(np.arccos(cosine.clip(0, 1))).max(initial=0))
    return angles


def _frame(frame: str) -> str:
    if frame not in FRAMES:
        raise ValueError(f"frame must be 'image', 'voxel' or 'scanner', not {frame!r}")
    return frame


def _floats(name: str, values: ArrayLike) -> Array:
    """Finite float64 array or an error that names the argument."""
    if np.iscomplexobj(values):
        raise TypeError(f"{name} must be real numbers, not {np.asarray(values).dtype}")
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


def _timing(b0s_mask: NDArray[np.bool_], **given: Any) -> dict[str, Any]:
    """Checked big_delta, small_delta, tau, in this order: None, a float, or (n,)."""
    for name, value in given.items():
        if value is not None:
            array = readers.times(name, value, b0s_mask)
            if array.shape not in ((), b0s_mask.shape):
                n = len(b0s_mask)
                raise ValueError(f"{name} of shape {array.shape} does not go with {n} bvals")
            _refuse(name, array, array <= 0, "is not positive")
            _refuse(name, array, array > 1, "is above 1 s: milliseconds? Times are in seconds")
            given[name] = array.copy() if array.ndim else float(array)
    missing = [name for name in ("big_delta", "small_delta") if given[name] is None]
    if given["tau"] is not None:
        tau = np.asarray(given["tau"])
        _refuse("tau", tau, tau < readers.SHORTEST_PULSE, "s is below 0.1 ms: times are in seconds")
        if len(missing) < 2:
            raise ValueError(f"tau = {tau} came with big_delta or small_delta: give either one")
        return given
    if missing:
        text = f"{missing[0]} is missing: without both deltas (in seconds), or tau,"
        raise ValueError(f"{text} indices have no units")
    big, small = np.broadcast_arrays(given["big_delta"], given["small_delta"])
    _refuse("small_delta", small, small > big, f"is longer than big_delta = {big.min():.6g}")
    text = f"s is no pulse beside big_delta = {big.min():.6g} s. In ms where the other is in s?"
    text = f"{text} Then it is {1000 * small.min():.6g} s: give both in seconds"
    shortest = np.maximum(readers.SHORTEST_PULSE, SHORTEST_PART * big)
    _refuse("small_delta", small, small < shortest, text)
    return given
