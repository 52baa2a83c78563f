"""The one table of papers, and a methods paragraph that names those that a fit rests on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__

MODES = {  # whether there is a Laplacian, and the positivity
    (False, None): "MAP", (True, None): "MAPL", (False, "grid"): "CMAP", (True, "grid"): "CMAPL",
    (False, "global"): "MAP+", (True, "global"): "MAPL+",
}  # fmt: skip


class Paper(NamedTuple):
    """One reference: how a text names it, and its BibTeX entry."""

    short: str
    entry: str

    @classmethod
    def of(cls, entry: str) -> Paper:
        """From an entry of `references.bib`."""
        fields = dict(re.findall(r"(\w+) = \{(.*)\}", entry))
        names = [author.split(",")[0] for author in fields["author"].split(" and ")]
        who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return cls(f"{who} {fields['year']}", entry)


ENTRIES = Path(__file__).with_name("references.bib").read_text(encoding="utf-8").strip()
REFERENCES = {re.split("[{,]", text)[1]: Paper.of(text) for text in ENTRIES.split("\n\n")}


SIGNAL_AT_ORIGIN = {
    "fit": "The signal at q = 0 was fitted, the mean of the b0 volumes being one more sample.",
    "free": "The signal at q = 0 was fitted.",
    "b0": "The signal at q = 0 was the mean of the b0 volumes.",
}


def mode(options: Mapping[str, Any]) -> str:
    """The name that papers have for a fit with these options."""
    weighted = options["laplacian"] not in (None, 0, 0.0)
    return MODES[weighted, options["positivity"]]


def defaults(name: str) -> dict[str, Any]:
    """Options of `MapmriModel` for a mode by its name, as they are by default."""
    weighted, positivity = {name: key for key, name in MODES.items()}[name]
    options = {"radial_order": 6, "basis": "anisotropic", "scale": "data"}
    options |= {"laplacian_of": "deviation", "S0": "fit", "noise": None, "coils": 1}
    return options | {"laplacian": 0.2 if weighted else None, "positivity": positivity}


def methods(options: Mapping[str, Any]) -> tuple[str, str]:
    """What a methods section says of a fit with such options, and BibTeX of its papers."""
    keys: list[str] = []

    def cite(key: str) -> str:
        keys.append(key)
        return REFERENCES[key].short

    text: list[str] = []
    add, order = text.append, f"{options['basis']} basis, radial order {options['radial_order']}"
    program = f"mapmri_nb {__version__} (mode {mode(options)}; {order})"
    add(f"The mean apparent propagator ({cite('ozarslan2013')}) was fitted with {program}.")
    if "bval_threshold" in options:
        threshold, which = options["bval_threshold"], "all volumes"
        which = which if threshold is None else f"volumes with b up to {threshold:g} s/mm²"
        add(f"The scale tensor was estimated from {which}.")
    if static := options.get("static_diffusivity"):
        add(f"The scale of the basis was that of a diffusivity of {static:g} mm²/s in every voxel.")
    weight = options["laplacian"]
    if weight not in (None, 0, 0.0):
        how = f"a weight of {weight:g}" if isinstance(weight, int | float) else ""
        if not how:
            among = "" if weight == "gcv" else f" among {', '.join(f'{w:g}' for w in weight)}"
            how = f"a weight chosen{among} by generalised cross-validation in each voxel "
            how += f"({cite('craven1978')})"
        deviation = options.get("laplacian_of") == "deviation"
        of = "the signal" + "'s deviation from the scale tensor's Gaussian" * deviation
        norm = f"The squared norm of the Laplacian of {of}"
        add(f"{norm} was penalised ({cite('fick2016')}) with {how}.")
    if options["positivity"] == "global":
        squares = f"a sum of squares, hence nonnegative everywhere ({cite('delahaije2020')})"
        add(f"The propagator was constrained to be {squares}.")
    elif options["positivity"] == "grid":
        add("The propagator was constrained to be nonnegative on a grid of displacements.")
    free = options.get("S0") != "b0" and not static
    if options["positivity"] and options.get("scale") == "data" and free:
        reduced = "reduced by up to 40 % where the constraint contradicted the data"
        add(f"The basis' scale was that of the tensor, {reduced}.")
    add(SIGNAL_AT_ORIGIN[options.get("S0", "free")])
    floor = f"noncentral chi ({n} coils)" if (n := options.get("coils", 1)) > 1 else "Rician"
    if options.get("noise") == "rician":
        add(f"The {floor} law of the magnitudes was modelled by expectation and maximisation.")
    elif options.get("noise") == "denoised":
        add(f"The {floor} expectation of the magnitudes was inverted ({cite('koay2006')}).")
    if options["positivity"] and options.get("solver") == "osqp":
        add(f"The quadratic programs were solved by OSQP ({cite('stellato2020')}).")
    rest = f"other indices follow {cite('ozarslan2013')}"
    add(f"The q-space inverse variance is that of {cite('hosseinbor2013')}; {rest}.")
    return " ".join(text), bibtex(keys)


def bibtex(keys: Any = REFERENCES) -> str:
    """BibTeX entries of papers by their keys, each once."""
    return "\n\n".join(REFERENCES[key].entry for key in dict.fromkeys(keys))
