"""Property-based validation of any MAP-MRI program: ``python -m mapmri_nb.testing dipy``.

`check(program, name, case)` runs one property; `search` looks for the smallest case that breaks it.
Needs Hypothesis: ``pip install "mapmri_nb[testing]"``.
"""

from . import algebra as algebra
from .programs import Lacks, Program, program
from .properties import PROPERTIES, check
from .search import Result, search
from .strategies import Case, Table, cases

__all__ = ["PROPERTIES", "Case", "Lacks", "Program", "Result", "Table", "cases", "check", "program"]
__all__ += ["search"]
