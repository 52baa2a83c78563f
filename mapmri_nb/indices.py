"""The one table of scalar maps: names in code, files and pictures, and powers of length."""

from typing import NamedTuple


class Index(NamedTuple):
    """One scalar map: accessor of the fit, BIDS label, power of length (mm inside), caption."""

    name: str
    label: str
    power: int
    long_name: str
    column: int = -1  # in the kernel `scalars.index_rows`; -1: computed by its own accessor
    rest: str = ""  # of the unit
    size: int = 1  # numbers a voxel

    def unit(self, units: str = "mm") -> str:
        """Unit of the map, "1" for a number."""
        length = {0: "", 1: units}.get(self.power, f"{units}^{self.power}")
        return length + self.rest or "1"


INDICES: dict[str, Index] = {
    i.name: i
    for i in (
        Index("rtop", "rtop", -3, "return-to-origin probability", 0),
        Index("rtap", "rtap", -2, "return-to-axis probability", 1),
        Index("rtpp", "rtpp", -1, "return-to-plane probability", 2),
        Index("msd", "msd", 2, "mean squared displacement", 3),
        Index("qiv", "qiv", 5, "q-space inverse variance", 4),
        Index("ng", "ng", 0, "non-Gaussianity", 5),
        Index("ng_par", "ngpar", 0, "parallel non-Gaussianity", 6),
        Index("ng_perp", "ngperp", 0, "perpendicular non-Gaussianity", 7),
        Index("lapnorm", "lapnorm", 1, "norm of the Laplacian of the signal", 8),
        Index("pa", "pa", 0, "propagator anisotropy"),
        Index("pa_dti", "padti", 0, "propagator anisotropy of the tensor"),
    )
}
ON_REQUEST: dict[str, Index] = {  # not among "all"; D is the scale tensor
    i.name: i
    for i in (
        Index("rtop_root", "rtoproot", -1, "cube root of the return-to-origin probability"),
        Index("rtap_root", "rtaproot", -1, "square root of the return-to-axis probability"),
        Index("theta_po", "thetapo", 0, "angle from P to its isotropic part", rest="rad"),
        Index("fa", "fa", 0, "fractional anisotropy of the scale tensor"),
        Index("md", "md", 2, "mean diffusivity of the scale tensor", rest="/s"),
        Index("ad", "ad", 2, "axial diffusivity of the scale tensor", rest="/s"),
        Index("rd", "rd", 2, "radial diffusivity of the scale tensor", rest="/s"),
        Index("gfa", "gfa", 0, "generalised fractional anisotropy of the ODF, s = 2"),
        Index("v1", "v1", 0, "first axis of the scale tensor, scanner axes", size=3),
        Index("color_fa", "colorfa", 0, "FA coloured by direction, scanner axes", size=3),
    )
}
TABLE = INDICES | ON_REQUEST
ANISOTROPIC_ONLY = ("ng_par", "ng_perp")


def unit_factor(power: int, units: str) -> float:
    """Factor from millimetres to `units` ("mm" or "um") for a quantity of length^power."""
    if units not in ("mm", "um"):
        raise ValueError(f"units must be 'mm' or 'um', not {units!r}")
    return 1.0 if units == "mm" else 1000.0**power


def select(names: str | list[str] | None, basis: str, table: dict[str, Index] = TABLE) -> list[str]:
    """Names of the indices to compute, each once: None or "all" for those of `INDICES` that the
    basis has, else a list or "a,b,c" out of `table`.
    """
    available = [n for n in table if basis == "anisotropic" or n not in ANISOTROPIC_ONLY]
    if names is None or names == "all":
        return [name for name in available if name in INDICES]
    wanted = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    spellings = {i.label: i.name for i in table.values()}  # RTOP, NG_par and ngpar will do
    wanted = [spellings.get(n.lower().replace("_", ""), n) for n in wanted]
    for name in wanted:
        if name not in table:
            raise ValueError(f"indices: {name!r} is not one of {', '.join(table)}")
        if name not in available:
            raise ValueError(f"indices: {name!r} has no meaning for the {basis} basis")
    return list(dict.fromkeys(wanted))
