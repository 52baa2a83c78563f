"""What every picture shares: a map by its name, its typeset label and range, and a slice of a
volume turned into the closest canonical axes. Knows no drawing library.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..gradients import from_voxel
from ..indices import TABLE, unit_factor

Array = NDArray[np.float64]

# DIPY's names
ALIASES = {"norm_of_laplacian_signal": "lapnorm"}
ALIASES |= {"ng_parallel": "ng_par", "ng_perpendicular": "ng_perp"}
# maps that are no index, and their units
OTHERS = {"rmse": "units of the data", "r2": "1", "negative_mass": "1"}
LABELS = {  # as mathtext; other names in capitals
    "ng_par": r"NG$_\parallel$",
    "ng_perp": r"NG$_\perp$",
    "pa_dti": r"PA$_{DTI}$",
    "lapnorm": r"$\|\Delta E\|^2$",
    "r2": r"R$^2$",
    "rtop_root": r"RTOP$^{1/3}$",
    "rtap_root": r"RTAP$^{1/2}$",
    "theta_po": r"$\theta_{PO}$",
    "negative_mass": "negative mass",
}
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
ROBUST = (2.0, 98.0)  # percentiles that a range keeps within, and
FENCE = 2.5  # so many interquartile ranges beyond the quartiles: CSF does not stretch it
CONVENTIONS = ("radiological", "neurological")
PLANES = ("sagittal", "coronal", "axial")  # normal to canonical x, y, z
LETTERS = ("LR", "PA", "IS")  # low and high end of each canonical axis


class Map(NamedTuple):
    """A volume with its label (mathtext), and its unit ("1": none)."""

    values: Array
    label: str
    unit: str


def power(base: str, exponent: int) -> str:
    """A power as text, "mm⁻³"."""
    return base if exponent == 1 else base + str(exponent).translate(SUPERSCRIPTS)


def html(label: str) -> str:
    """A label of `LABELS` as HTML."""
    words = {r"\parallel": "∥", r"\perp": "⊥", r"\theta": "θ", r"\Delta ": "Δ", r"\|": "‖"}
    for tex, text in words.items():
        label = label.replace(tex, text)
    label = re.sub(r"\^\{?([^{}$]+)\}?", r"<sup>\1</sup>", label.replace("$", ""))
    return re.sub(r"_\{?([^{}<]+)\}?", r"<sub>\1</sub>", label)


def map_of(fit: Any, name: str, units: str = "mm") -> Map:
    """A map by its name, or DIPY's, "rmse", "r2", "negative_mass", or a root: "rtop^(1/3)"."""
    root = re.fullmatch(r"(.*)\^\(1/([1-9])\)", name)
    base, n = (root[1], int(root[2])) if root else (name, 1)
    base = base if hasattr(fit, base) else ALIASES.get(base, base)
    index = TABLE.get(ALIASES.get(base, base))
    known = base in OTHERS if index is None else index.size == 1 and index.power % n == 0
    if not known:
        names = [*(name for name, i in TABLE.items() if i.size == 1), *ALIASES, *OTHERS]
        raise ValueError(f"maps: {name!r} is none of {', '.join(names)}, nor a whole root of one")
    if base == "negative_mass":
        values = fit.negative()[1]
    else:
        values = getattr(fit, base)() if hasattr(fit, base) else fit.index(base)
    length = index.power // n if index else 0
    unit = power("µm" if units == "um" else "mm", length) if length else ""
    unit = unit + index.rest if index else OTHERS[base]
    values = np.sign(values) * np.abs(values) ** (1 / n) * unit_factor(length, units)
    short = index.name if index else base
    label = LABELS.get(short, short.upper().replace("_", " "))
    return Map(values, label if n == 1 else f"{label}$^{{1/{n}}}$", unit or "1")


def limits(values: NDArray[Any]) -> tuple[float, float]:
    """A map's range: the percentiles `ROBUST`, but no further than `FENCE` interquartile ranges
    beyond the quartiles, again and again until no value falls out.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, ROBUST)
    core = np.sort(finite)
    while True:
        first, third = np.percentile(core, (25, 75))
        reach = FENCE * (third - first) or np.inf
        kept = core[slice(*np.searchsorted(core, (first - reach, third + reach)))]
        if len(kept) == len(core):
            break
        core = kept
    low, high = max(low, core[0]), min(high, core[-1])
    return float(low), float(high if high > low else low + (abs(low) or 1.0))


def three(volume: NDArray[Any]) -> NDArray[Any]:
    """A volume of up to three dimensions as one of three."""
    if not 1 <= volume.ndim <= 3:
        raise ValueError(f"a picture needs a volume of 1 to 3 dimensions: {volume.shape}")
    return volume.reshape(volume.shape + (1,) * (3 - volume.ndim))


class Orientation(NamedTuple):
    """The flips and exchanges of axes that bring a stored volume into the closest canonical (RAS)
    axes.

    `order` holds the stored axis behind each canonical one, `flip` whether it runs the other way;
    `affine` (4, 4) maps canonical voxels to mm, `stored_affine` stored ones; None where the stored
    axes mean nothing.
    """

    order: tuple[int, ...]
    flip: tuple[bool, ...]
    affine: Array | None
    stored_affine: Array | None

    @classmethod
    def of(cls, affine: ArrayLike | None, shape: tuple[int, ...]) -> Orientation:
        """That of an affine (4, 4) and a stored shape; without an affine everything stays."""
        if affine is None:
            return cls((0, 1, 2), (False,) * 3, None, None)
        A = np.asarray(affine, float)
        if A.shape != (4, 4) or not abs(np.linalg.det(A[:3, :3])) > 0:
            raise ValueError(f"affine must be an invertible (4, 4) matrix, not {A.tolist()}")
        cosine = A[:3, :3] / np.linalg.norm(A[:3, :3], axis=0)
        order = max(permutations(range(3)), key=lambda p: sum(abs(cosine[range(3), p])))
        flip = tuple(bool(cosine[c, a] < 0) for c, a in enumerate(order))
        steps = A[:3, order] * np.where(flip, -1, 1)
        size = (*shape, 1, 1)[:3]
        first = [(size[a] - 1) * f for a, f in sorted(zip(order, flip, strict=True))]
        turned = np.eye(4)
        turned[:3, :3], turned[:3, 3] = steps, A[:3, :3] @ first + A[:3, 3]
        return cls(order, flip, turned, A)

    def turn(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A stored volume in canonical axes."""
        axes = tuple(int(a) for a in np.flatnonzero(self.flip))
        return np.flip(three(volume).transpose(self.order), axes)

    def stored(self, vectors: Array) -> Array:
        """Vectors (..., 3) along canonical voxel axes as vectors along stored ones."""
        out = np.empty_like(vectors)
        out[..., list(self.order)] = vectors * np.where(self.flip, -1.0, 1.0)
        return out

    def in_frame(self, canonical: Array, frame: str) -> Array:
        """Directions (n, 3) along canonical voxel axes in the frame of a gradient table."""
        stored = self.stored(np.ascontiguousarray(canonical))
        known = self.stored_affine is not None
        return from_voxel(stored, self.stored_affine, frame) if known else stored

    @property
    def size(self) -> Array:
        """Edges of a voxel along the canonical axes, in mm (1 without an affine)."""
        return np.ones(3) if self.affine is None else np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axes(self) -> Array:
        """Rotation closest to the canonical voxel axes: a direction along them to scanner axes."""
        if self.affine is None:
            return np.eye(3)
        u, _, v = np.linalg.svd(self.affine[:3, :3] / self.size)
        return np.asarray(u @ v)


class View(NamedTuple):
    """A slice as it is shown: the canonical axis it is normal to, its canonical index, and whether
    patient's left is on the right.
    """

    orientation: Orientation
    axis: int
    at: int
    centre: float | None  # its coordinate in mm
    convention: str

    @property
    def right(self) -> int:
        """The canonical axis that lies across the picture."""
        return 1 if self.axis == 0 else 0

    @property
    def up(self) -> int:
        """The canonical axis that points up."""
        return 1 if self.axis == 2 else 2

    @property
    def mirrored(self) -> bool:
        """Whether the canonical axis across runs to the left."""
        known = self.orientation.affine is not None
        return known and self.right == 0 and self.convention == "radiological"

    def cut(self, volume: NDArray[Any]) -> Any:
        """The slice of a stored volume as rows from the bottom up."""
        rows = np.take(self.orientation.turn(volume), self.at, self.axis).T
        return rows[:, ::-1] if self.mirrored else rows

    @property
    def size(self) -> Array:
        """Width and height of a voxel."""
        return np.asarray(self.orientation.size[[self.right, self.up]])

    @property
    def screen(self) -> Array:
        """Canonical voxel axes behind the screen's (right, up, toward the viewer) as rows."""
        side = -1.0 if self.mirrored else 1.0
        rows = np.eye(3)[[self.right, self.up, self.axis]]
        return rows * [[side], [1.0], [side * (-1.0 if self.axis == 1 else 1.0)]]

    @property
    def letters(self) -> str:
        """What lies at the left, right, bottom and top edge, "" where the axes mean nothing."""
        if self.orientation.affine is None:
            return ""
        across = LETTERS[self.right]
        return (across[::-1] if self.mirrored else across) + LETTERS[self.up]

    @property
    def caption(self) -> str:
        """What the slice shows, in words."""
        if self.centre is None:
            right, up = "xyz"[self.right], "xyz"[self.up]
            return f"slice {'xyz'[self.axis]} = {self.at}: {right} to the right, {up} upwards"
        where = f"{'xyz'[self.axis]} = {self.centre + 0.0:.1f} mm"
        return f"{PLANES[self.axis]} slice, {where}, {self.convention}"


def view_of(
    mask: NDArray[np.bool_], axis: int | str | None = None, index: int | None = None,
    affine: Any = None, convention: str = "radiological",
) -> View:  # fmt: skip
    """A slice in canonical axes; by default normal to an axis of length 1, or axial, where the mask
    is largest.

    Parameters
    ----------
    mask : the stored mask. axis : "sagittal", "coronal", "axial", or 0, 1, 2 for the same.
    index : of the slice, counted along the canonical axis (to the right, the front, the top).
    affine : (4, 4), voxels to scanner space in mm; without it axes stay as they are stored, and no
        letter tells left from right.
    convention : "radiological" (the patient's left is on the right) or "neurological".
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, not {convention!r}")
    orientation = Orientation.of(affine, three(mask).shape)
    turned = orientation.turn(mask)
    if axis is None:
        axis = turned.shape.index(1) if turned.shape.count(1) == 1 else 2
    axis = PLANES.index(axis) if axis in PLANES else axis
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, or one of {', '.join(PLANES)}, not {axis!r}")
    axis = int(axis)
    n, others = turned.shape[axis], tuple(a for a in range(3) if a != axis)
    counts = turned.sum(others) - np.linspace(-0.5, 0.5, n) ** 2  # of equals, the middle one
    at = counts.argmax() if index is None else index
    if at not in range(n):
        raise ValueError(f"index must lie in 0 .. {n - 1} along axis {axis}, not {index!r}")
    centre = None
    if orientation.affine is not None:
        middle = (np.array(turned.shape) - 1) / 2
        middle[axis] = at
        centre = round(float(orientation.affine[axis] @ [*middle, 1.0]), 1)
    return View(orientation, axis, int(at), centre, convention)
