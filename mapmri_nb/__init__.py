"""MAP-MRI in Numba: fits, indices, ODFs and positivity of the mean apparent propagator."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["INDICES", "GradientTable", "MapmriFit", "MapmriModel", "Status", "load_fit"]

# Homes of the names of `__all__`, and modules below `use`. Every module loads on first use: the
# command reads its arguments, and begins to unpack a series, before Numba loads.
_HOMES = {"INDICES": "indices", "GradientTable": "gradients", "MapmriFit": "fit"}
_HOMES |= {"MapmriModel": "model", "Status": "status", "load_fit": "use.folder"}
_ROOMS = {"dipy": "dipy"}
for _name in ["cli", "directions", "distributed", "io", "plot", "report", "stream", "uncertainty"]:
    _ROOMS[_name] = f"use.{_name}"

if TYPE_CHECKING:  # an unknown name is then an error of the type checker
    from . import dipy as dipy
    from .fit import MapmriFit
    from .gradients import GradientTable
    from .indices import INDICES
    from .model import MapmriModel
    from .status import Status
    from .use import cli as cli
    from .use import directions as directions
    from .use import distributed as distributed
    from .use import io as io
    from .use import plot as plot
    from .use import report as report
    from .use import stream as stream
    from .use import uncertainty as uncertainty
    from .use.folder import load_fit
else:

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        if importlib.util.find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])


class _Rooms(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets ``import mapmri_nb.io`` find the one module ``mapmri_nb.use.io``."""

    def find_spec(
        self, name: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, room = name.rpartition(".")
        found = package == __name__ and _ROOMS.get(room, room) != room
        return importlib.machinery.ModuleSpec(name, self) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        self.module = importlib.import_module(f"{__name__}.{_ROOMS[spec.name.rpartition('.')[2]]}")
        self.own = self.module.__spec__
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own  # the import system has put the other name there


sys.meta_path.append(_Rooms())
