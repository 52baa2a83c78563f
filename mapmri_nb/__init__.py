"""MAP-MRI in Numba: mean apparent propagator fits, indices, ODFs and positivity for diffusion MRI."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["INDICES", "GradientTable", "MapmriFit", "MapmriModel", "Status", "load_fit"]

from .fit import MapmriFit, Status
from .gradients import GradientTable
from .indices import INDICES
from .model import MapmriModel

_ROOMS = ("dipy", "directions", "distributed", "io", "plot", "report", "uncertainty")  # loaded when first named

if TYPE_CHECKING:
    from .io import load_fit


def __getattr__(name: str) -> Any:
    if name == "load_fit":  # nibabel loads where it is used
        from .io import load_fit

        return load_fit
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
