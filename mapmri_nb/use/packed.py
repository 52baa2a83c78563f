"""gzip: by isal, which is several times faster, where it is installed."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# bytes: less is unpacked before another Python has started
LARGE = 4_000_000
# of packing: zlib 6 takes longer over noisy floats and gains nothing
LEVELS = {"gzip": 4, "isal.igzip": 2}

Result = Callable[[], "IO[bytes] | None"]


def packer() -> Any:
    """The module that packs and unpacks."""
    try:
        from isal import igzip
    except ImportError:
        return gzip
    return igzip


@contextmanager
def coming(path: Path | None) -> Iterator[Result | None]:
    """Begin to unpack a large .nii.gz; None for another file. The result is a nameless file, or
    None where that failed. A process of its own does it: a thread would wait for the lock that
    imports hold.
    """
    packed = path and path.name.endswith(".nii.gz") and path.is_file()
    if path is None or not packed or path.stat().st_size < LARGE:
        yield None
        return
    command = [sys.executable, "-m", packer().__name__, "-d"]
    with tempfile.TemporaryFile() as target, path.open("rb") as source:
        process = subprocess.Popen(command, stdin=source, stdout=target, stderr=subprocess.DEVNULL)

        def result() -> IO[bytes] | None:
            if process.wait() == 0:
                return target
            target.close()  # its space is free again
            return None

        try:
            yield result
        finally:
            process.kill()  # nothing where it has ended
            process.wait()


def unpack(path: Path, target: IO[bytes]) -> None:
    """The content of a .gz into a file."""
    with packer().open(path) as source:
        shutil.copyfileobj(source, target, 1 << 20)
    target.flush()
