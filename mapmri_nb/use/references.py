"""The one table of papers, and a methods paragraph that names those that a fit rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import __version__

MODES = {(False, None): "MAP", (True, None): "MAPL", (False, "grid"): "CMAP", (True, "grid"): "CMAPL",
         (False, "global"): "MAP+", (True, "global"): "MAPL+"}  # fmt: skip


class Paper(NamedTuple):
    """One reference: how a text names it, and the fields of its BibTeX entry."""

    short: str
    author: str
    title: str
    journal: str
    volume: str
    pages: str
    year: int
    doi: str

    def bibtex(self, key: str) -> str:
        """The entry to paste into a .bib file."""
        fields = {
            name: getattr(self, name)
            for name in ("author", "title", "journal", "volume", "pages", "year", "doi")
        }
        fields["title"] = f"{{{fields['title']}}}"  # capitals as they are
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@article{{{key},\n{body}\n}}"


REFERENCES = {
    "ozarslan2013": Paper(
        "Özarslan et al. 2013",
        "Özarslan, Evren and Koay, Cheng Guan and Shepherd, Timothy M. and Komlosh, Michal E. and "
        "İrfanoğlu, M. Okan and Pierpaoli, Carlo and Basser, Peter J.",
        "Mean apparent propagator (MAP) MRI: a novel diffusion imaging method for mapping tissue "
        "microstructure",
        "NeuroImage", "78", "16--32", 2013, "10.1016/j.neuroimage.2013.04.016",
    ),
    "fick2016": Paper(
        "Fick et al. 2016",
        "Fick, Rutger H. J. and Wassermann, Demian and Caruyer, Emmanuel and Deriche, Rachid",
        "MAPL: Tissue microstructure estimation using Laplacian-regularized MAP-MRI and its "
        "application to HCP data",
        "NeuroImage", "134", "365--385", 2016, "10.1016/j.neuroimage.2016.03.046",
    ),
    "delahaije2020": Paper(
        "Dela Haije et al. 2020",
        "Dela Haije, Tom and Özarslan, Evren and Feragen, Aasa",
        "Enforcing necessary non-negativity constraints for common diffusion MRI models using sum "
        "of squares programming",
        "NeuroImage", "209", "116405", 2020, "10.1016/j.neuroimage.2019.116405",
    ),
    "craven1978": Paper(
        "Craven and Wahba 1978",
        "Craven, Peter and Wahba, Grace",
        "Smoothing noisy data with spline functions",
        "Numerische Mathematik", "31", "377--403", 1978, "10.1007/BF01404567",
    ),
    "hosseinbor2013": Paper(
        "Hosseinbor et al. 2013",
        "Hosseinbor, A. Pasha and Chung, Moo K. and Wu, Yu-Chien and Alexander, Andrew L.",
        "Bessel Fourier Orientation Reconstruction (BFOR): An analytical diffusion propagator "
        "reconstruction for hybrid diffusion imaging and computation of q-space indices",
        "NeuroImage", "64", "650--670", 2013, "10.1016/j.neuroimage.2012.08.072",
    ),
    "stellato2020": Paper(
        "Stellato et al. 2020",
        "Stellato, Bartolomeo and Banjac, Goran and Goulart, Paul and Bemporad, Alberto and Boyd, "
        "Stephen",
        "OSQP: an operator splitting solver for quadratic programs",
        "Mathematical Programming Computation", "12", "637--672", 2020, "10.1007/s12532-020-00179-2",
    ),
    "koay2006": Paper(
        "Koay and Basser 2006",
        "Koay, Cheng Guan and Basser, Peter J.",
        "Analytically exact correction scheme for signal extraction from noisy magnitude MR signals",
        "Journal of Magnetic Resonance", "179", "317--322", 2006, "10.1016/j.jmr.2006.01.016",
    ),
}  # fmt: skip


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
    options = {"radial_order": 6, "basis": "anisotropic", "bval_threshold": None}
    options |= {"laplacian_of": "deviation", "S0": "fit", "noise": None, "coils": 1}
    options["scale"] = "data"
    return options | {"laplacian": 0.2 if weighted else None, "positivity": positivity}


def methods(options: Mapping[str, Any]) -> tuple[str, str]:
    """
    What a methods section says of a fit with the options of a model, and the BibTeX of the papers
    it names.
    """
    keys: list[str] = []

    def cite(key: str) -> str:
        keys.append(key)
        return REFERENCES[key].short

    basis = f"{options['basis']} basis"
    text = [
        f"The mean apparent propagator ({cite('ozarslan2013')}) was fitted with mapmri_nb "
        f"{__version__} (mode {mode(options)}; {basis}, radial order {options['radial_order']})."
    ]
    if (threshold := options.get("bval_threshold")) is not None:
        text.append(
            f"The scale tensor was estimated from volumes with b up to {threshold:g} s/mm²."
        )
    weight = options["laplacian"]
    if weight not in (None, 0, 0.0):
        how = f"a weight of {weight:g}" if isinstance(weight, int | float) else ""
        if not how:
            among = "" if weight == "gcv" else f" among {', '.join(f'{w:g}' for w in weight)}"
            how = f"a weight chosen{among} by generalised cross-validation in each voxel ({cite('craven1978')})"
        deviation = options.get("laplacian_of") == "deviation"
        of = (
            "the signal's deviation from the scale tensor's Gaussian" if deviation else "the signal"
        )
        text.append(
            f"The squared norm of the Laplacian of {of} was penalised ({cite('fick2016')}) with "
            f"{how}."
        )
    if options["positivity"] == "global":
        text.append(
            "The propagator was constrained to be a sum of squares, hence nonnegative everywhere "
            f"({cite('delahaije2020')})."
        )
    elif options["positivity"] == "grid":
        text.append("The propagator was constrained to be nonnegative on a grid of displacements.")
    free = options.get("S0") != "b0" and not options.get("static_diffusivity")
    if options["positivity"] and options.get("scale") == "data" and free:
        text.append(
            "The basis' scale was that of the tensor, reduced by up to 40 % where the constraint "
            "contradicted the data."
        )
    text.append(SIGNAL_AT_ORIGIN[options.get("S0", "free")])
    floor = f"{'noncentral chi' if options.get('coils', 1) > 1 else 'Rician'}"
    if options.get("noise") == "rician":
        text.append(
            f"The {floor} law of the magnitudes was modelled by expectation and maximisation."
        )
    elif options.get("noise") == "denoised":
        text.append(f"The {floor} expectation of the magnitudes was inverted ({cite('koay2006')}).")
    if options["positivity"] and options.get("solver") == "osqp":
        text.append(f"The quadratic programs were solved by OSQP ({cite('stellato2020')}).")
    text.append(
        f"The q-space inverse variance is that of {cite('hosseinbor2013')}; other indices follow "
        f"{cite('ozarslan2013')}."
    )
    return " ".join(text), bibtex(keys)


def bibtex(keys: Any = REFERENCES) -> str:
    """BibTeX entries of papers by their keys, each once."""
    return "\n\n".join(REFERENCES[key].bibtex(key) for key in dict.fromkeys(keys))
