"""Looks for the smallest case that breaks a property."""

from __future__ import annotations

import random
import time
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample

from .programs import Lacks, Program
from .properties import PROPERTIES, NotAnExample
from .strategies import Case, cases


class Result(NamedTuple):
    """What a search found: "holds", "fails" or "lacks"; what was measured or is lacking; code that
    shows it; how many cases were run.
    """

    property: str
    word: str
    what: str = ""
    code: str = ""
    cases: int = 0


def search(
    program: Program, name: str, *, examples: int = 20, seed: int = 0, seconds: float = 60.0,
    of: str | None = None, **fixed: Any,
) -> Result:  # fmt: skip
    """Run a property on cases drawn by a seed, and shrink the first that fails.

    A program's exception is a failure with its text. After `seconds` no more cases are run. `of`
    names the program in the code: one of PROGRAMS or "module:Adapter". `fixed` are fields of the
    cases that the property itself does not fix: positivity="grid".
    """
    known: dict[Case, str] = {}
    lacking: set[str] = set()
    end, exercised = time.monotonic() + seconds, 0

    def fails(case: Case) -> bool:
        nonlocal exercised
        if case not in known:
            if time.monotonic() > end:
                return False
            known[case] = ""
            try:
                PROPERTIES[name].check(program, case)
                exercised += 1
            except Lacks as error:
                lacking.add(str(error))
            except NotAnExample:
                pass
            except AssertionError as error:
                known[case] = str(error)
            except Exception as error:  # the program's own
                known[case] = f"{type(error).__name__}: {error}"
        return bool(known[case])

    options = settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    drawn = cases(**(fixed | PROPERTIES[name].fixed))
    try:
        case = find(drawn, fails, settings=options, random=random.Random(seed))
    except NoSuchExample:
        if exercised or not lacking:
            what = "" if exercised else "no case says anything about it"
            return Result(name, "holds", what, cases=exercised)
        return Result(name, "lacks", ", ".join(sorted(lacking)))
    code = f'check(program("{of or program.name}"), "{name}", {case!r})'
    return Result(name, "fails", " ".join(known[case].split()), code, len(known))
