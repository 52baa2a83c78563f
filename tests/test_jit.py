"""The compiler's policy, in processes of their own: cache, read-only installs, threads, forks."""

import os
import shutil
import time
from pathlib import Path

import pytest
from shell import fresh

import mapmri_nb
from mapmri_nb.kernels import _jit

PACKAGE = Path(mapmri_nb.__file__).parent
PATIENCE = 240  # seconds after which a process counts as hanging (a cold compile takes some ten)

FIT = """
import numpy as np
import phantom
import mapmri_nb as mapmri
from mapmri_nb.kernels import _jit
b, g = phantom.small_scheme()
data, gtab = phantom.signals(200, b, g), phantom.table(b, g)
model = mapmri.MapmriModel(gtab, radial_order=4, laplacian=0.2)

def maps(threads=None):
    fit = model.fit(data, threads=threads)
    return np.stack([fit.rtop(), fit.ng()])
"""

SAME = "assert np.isfinite(serial).all() and all(np.array_equal(serial, m) for m in got); print('done')"


def run(code, cwd, *options, **environment):
    """Output of code in a fresh process with two threads."""
    given = {"NUMBA_NUM_THREADS": 2} | environment
    return fresh(*options, "-c", code, cwd=cwd, timeout=PATIENCE, **given)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A cache folder filled by one process: this leg's own where it has one."""
    folder = os.environ.get("NUMBA_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))
    run(FIT + "maps(1)", tmp_path_factory.mktemp("fill"), NUMBA_CACHE_DIR=folder)
    return folder


@pytest.mark.jit_only
def test_second_process_compiles_nothing(warm, tmp_path):
    count = """
import importlib, pkgutil
import mapmri_nb.kernels
maps(1)
hits = misses = 0
for m in pkgutil.iter_modules(mapmri_nb.kernels.__path__):
    for f in vars(importlib.import_module('mapmri_nb.kernels.' + m.name)).values():
        if not isinstance(f, type) and hasattr(f, 'stats'):
            hits += sum(f.stats.cache_hits.values())
            misses += sum(f.stats.cache_misses.values())
print(hits, misses)
"""
    hits, misses = map(int, run(FIT + count, tmp_path, NUMBA_CACHE_DIR=warm).split())
    assert hits > 0
    assert misses == 0


@pytest.mark.jit_only
def test_a_model_fits_the_same_in_another_process(warm, tmp_path):
    """A worker gets a pickled model, and machine code from disk."""
    write = "import pickle; open('model', 'wb').write(pickle.dumps(model))"
    read = "import pickle; model = pickle.loads(open('model', 'rb').read())"
    show = "print(maps(1).tobytes().hex())"
    found = [
        run(f"{FIT}\n{line}\n{show}", tmp_path, NUMBA_CACHE_DIR=warm) for line in (write, read)
    ]
    assert found[0] == found[1]


@pytest.mark.jit_only
def test_damaged_machine_code_is_compiled_anew(warm, tmp_path):
    shutil.copytree(warm, tmp_path / "cache")
    stored = {p: p.read_bytes() for p in (tmp_path / "cache").rglob("solve_linear-*.o")}
    for path, whole in stored.items():  # of several kinds
        path.write_bytes(whole[: len(whole) // 2])
    code = FIT + "print(maps(1).tobytes().hex())"
    found = [run(code, tmp_path, NUMBA_CACHE_DIR=folder) for folder in (tmp_path / "cache", warm)]
    assert found[0] == found[1]
    assert any(len(p.read_bytes()) > len(whole) // 2 + 1 for p, whole in stored.items())


@pytest.mark.jit_only
def test_nothing_is_left_to_compile_after_warmup(tmp_path):
    """In an empty cache: another test's kernels would hide what warmup leaves out."""
    cache = str(tmp_path / "cache")
    code = "from mapmri_nb.cli import main; assert main(['warmup']) == 0"
    run(code, tmp_path, NUMBA_CACHE_DIR=cache)
    code = """
import sys
from mapmri_nb.cli import main
from mapmri_nb.data import sample_dwi
sys.stderr = sys.stdout
for mode in ('none', 'grid'):
    words = ['fit', str(sample_dwi('small101d')), '--out', mode, '--radial-order', '2', '--positivity', mode]
    assert main(words) == 0
"""
    out = run(code, tmp_path, NUMBA_CACHE_DIR=cache)
    assert "voxels" in out
    assert "compiling" not in out


PARALLEL = {
    # Numba's own workqueue layer aborts the process here; ours must not depend on the layer
    "threads": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:
    jobs = [pool.submit(maps, n) for n in (2, None, 2, None)]
    got += [maps(2), *(j.result() for j in jobs)]
""",
    "fork": """
import os, signal, time
child = os.fork()
if child == 0:
    signal.alarm(100)  # a hang ends as a signal, which the parent sees
    os._exit(0 if np.array_equal(maps(2), serial) else 1)
assert os.waitpid(child, 0)[1] == 0, 'the forked child hung, died, or differs'
""",
    "processes": """
import multiprocessing
with multiprocessing.get_context('fork').Pool(2) as pool:
    got += pool.map_async(maps, [None, 2]).get(100)
""",
}


@pytest.mark.jit_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize(
    ("kind", "layer"),
    [("threads", "workqueue"), ("threads", None), ("fork", None), ("processes", None)],
)
def test_callers_run_in_parallel_after_a_parallel_fit(warm, tmp_path, kind, layer):
    code = f"{FIT}\nserial = maps(1)\ngot = [maps(2)]\n{PARALLEL[kind]}\n{SAME}"
    environment = {"NUMBA_CACHE_DIR": warm, "NUMBA_THREADING_LAYER": layer}
    assert "done" in run(code, tmp_path, "-W", "ignore::DeprecationWarning", **environment)


@pytest.mark.jit_only
def test_read_only_install_without_home(tmp_path):
    copy, wall = tmp_path / "site" / "mapmri_nb", tmp_path / "file"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "data"))
    for folder in (copy, copy / "kernels"):
        (folder / "__pycache__").write_text("a file: not even root can make a folder here")
    wall.write_text("")
    for path in [*copy.rglob("*"), copy]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = f"{FIT}assert _jit.CACHE_DIR is None\nmapmri.MapmriModel(gtab, 4, laplacian=0)\n"
    home = {"HOME": wall / "home", "XDG_CACHE_HOME": None}  # a model's own check runs kernels
    places = os.pathsep.join(map(str, (copy.parent, Path(__file__).parent)))
    out = run(f"{code}print(mapmri.__file__)", tmp_path, PYTHONPATH=places, **home)
    assert out.split() == [str(copy / "__init__.py")]
    copy.chmod(0o755)
    (copy / "kernels").chmod(0o755)


@pytest.mark.parametrize(("switch", "cached"), [("0", False), ("1", True)])
def test_cache_switch(tmp_path, switch, cached):
    code = "import numpy as np; from mapmri_nb.kernels import hermite as h; h.hermite_functions(0.3, np.empty(5))"
    run(code, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"), MAPMRI_NB_CACHE=switch)
    assert bool(list(tmp_path.rglob("*.nbi"))) is cached


def test_digest_follows_every_kernel_source(tmp_path, monkeypatch):
    for path in (PACKAGE / "kernels").glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(_jit, "__file__", str(tmp_path / "_jit.py"))
    digests = {_jit._source_digest()}
    for name in ("hermite.py", "linalg.py"):
        with open(tmp_path / name, "a", encoding="utf8") as file:
            file.write("# one more line\n")
        digests.add(_jit._source_digest())
    assert len(digests) == 3


@pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT", "0") == "1", reason="nothing is cached without the compiler"
)
def test_stale_caches_go_and_young_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("MAPMRI_NB_CACHE", raising=False)
    day, now = 86400, time.time()
    month = now - (_jit.STALE_AFTER_DAYS + 1) * day
    for name, used in (("aaaaaaaaaaaa", month), ("bbbbbbbbbbbb", now - day)):
        folder = tmp_path / f"mapmri_nb-{name}"
        folder.mkdir()
        (folder / "used").touch()
        os.utime(folder / "used", (used, used))
    (tmp_path / "someone_elses").mkdir()
    assert _jit._open_cache() is not None
    kept = {"mapmri_nb-bbbbbbbbbbbb", "someone_elses", f"mapmri_nb-{_jit._source_digest()}"}
    assert {p.name for p in tmp_path.iterdir()} == kept
