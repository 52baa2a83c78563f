"""gzip: by isal, which is several times faster, where it is installed."""

import gzip
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LARGE = 4_000_000  # bytes: less is unpacked before another Python has started
# of packing: zlib 6 takes longer over noisy floats and gains nothing
LEVELS = {"gzip": 4, "isal.igzip": 2}
Result = Callable[[], IO[bytes] | None]


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
    how: dict[str, Any] = {"stderr": subprocess.DEVNULL}
    with (
        path.open("rb") as source,
        tempfile.TemporaryFile() as target,
        subprocess.Popen(command, stdin=source, stdout=target, **how) as process,
    ):

        def result() -> IO[bytes] | None:
            if process.wait():
                target.close()  # its space is free again
            return None if target.closed else target

        try:
            yield result
        finally:
            process.kill()  # nothing where it has ended
