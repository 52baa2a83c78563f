"""``python -m mapmri_nb.testing``: the table of properties of a program."""

from __future__ import annotations

import argparse
import json
import logging
import sys

from .programs import PROGRAMS, program
from .properties import PROPERTIES
from .search import search


def main(arguments: list[str] | None = None) -> int:
    """Print one line a property; 1 if one fails."""
    parser = argparse.ArgumentParser(
        prog="python -m mapmri_nb.testing",
        description="What holds for a MAP-MRI program; where it does not, the smallest example.",
        epilog="An example runs after: from mapmri_nb.testing import Case, check, program",
    )
    known = f"{', '.join(PROGRAMS)} or module:Adapter (default: mapmri_nb)"
    add = parser.add_argument
    add("program", nargs="?", default="mapmri_nb", metavar="PROGRAM", help=known)
    add("--examples", type=int, default=20, help="cases of each property")
    add("--seed", type=int, default=0, help="of the cases")
    add("--seconds", type=float, default=60.0, help="at most, for each property")
    add("--only", help="names of properties, with commas between")
    add("--json", action="store_true", help="a JSON list instead of lines")
    given = parser.parse_args(arguments)
    numbered = sorted(PROPERTIES, key=lambda name: int(PROPERTIES[name].number))
    names = numbered if given.only is None else given.only.split(",")
    if unknown := [name for name in names if name not in PROPERTIES]:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(PROPERTIES)}")
    if given.examples < 1:
        parser.error(f"--examples: {given.examples} is not a positive number")
    try:
        one = program(given.program)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"PROGRAM: {error}")
    log, results = logging.getLogger("mapmri_nb"), []
    before = log.level
    log.setLevel(logging.ERROR)  # its remarks on odd tables
    way = {"examples": given.examples, "seed": given.seed, "seconds": given.seconds}
    try:
        for name in names:
            found = search(one, name, of=given.program, **way, **one.cases)
            results.append(found)
            if not given.json:
                label = f"{PROPERTIES[name].number:>2} {name:28} {found.word}"
                text = ": ".join(part for part in (found.code, found.what) if part)
                print(f"{label}  {text[:400]}".rstrip(), flush=True)
    finally:
        log.setLevel(before)
    if given.json:
        print(json.dumps([found._asdict() for found in results], indent=1))
    return int(any(found.word == "fails" for found in results))


if __name__ == "__main__":
    sys.exit(main())
