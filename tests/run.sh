#!/usr/bin/env bash
# All legs of the tests with the Python of $PYTHON (default: python): lint, types, pages, without the compiler, with bounds
# checks, compiled. Or, after the word `small`, one leg for an environment of other versions: lanes, every mode, solvers,
# files, command line. Every leg has its own kernel cache: a warm one would silently load objects of another leg.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export HYPOTHESIS_PROFILE=ci MPLBACKEND=Agg
failed=()

leg() { # leg NAME COMMAND...: run one leg in its own cache folder, remember a failure, go on
    local name=$1
    shift
    echo "== $name"
    NUMBA_CACHE_DIR="$scratch/$name" "$@" || failed+=("$name")
}

# the installed package is tested, not the folder we stand in (python -P, which 3.10 does not have)
pytest() { "$python" -c 'import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())' -q -p no:cacheprovider "$@"; }
interpreted() { NUMBA_DISABLE_JIT=1 pytest -m nojit; }
checked() (
    export NUMBA_BOUNDSCHECK=1
    "$python" tests/planted_overrun.py && pytest -m "not jit_only"
)

if [[ ${1:-} == small ]]; then
    leg small pytest tests/test_{lanes,positivity,io,cli}.py tests/test_fuzz.py::test_random_samples -k "not width"
    exit $((${#failed[@]}))
fi
leg lint "$python" -m ruff check --no-cache .
leg format "$python" -m ruff format --no-cache --check .
leg types "$python" -m mypy --cache-dir "$scratch/mypy"
leg docs "$python" -m sphinx -W -q docs "$scratch/pages"
leg nojit interpreted
leg boundscheck checked
((${#failed[@]})) && echo "failed so far: ${failed[*]}"
leg jit pytest --durations=15
((${#failed[@]} == 0))
