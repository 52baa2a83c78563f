#!/usr/bin/env bash
# All legs of the tests with the Python of $PYTHON (default: python): lint, types, without the compiler, with bounds
# checks, compiled. Every leg has its own kernel cache: a warm one would silently load objects of another leg.
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

# -P: the installed package is tested, not the folder we stand in
pytest() { "$python" -P -m pytest -q -p no:cacheprovider "$@"; }
interpreted() { NUMBA_DISABLE_JIT=1 pytest -m nojit; }
checked() (
    export NUMBA_BOUNDSCHECK=1
    "$python" -P tests/planted_overrun.py && pytest -m "not jit_only"
)

leg lint "$python" -m ruff check --no-cache .
leg format "$python" -m ruff format --no-cache --check .
leg types "$python" -m mypy --cache-dir "$scratch/mypy"
leg nojit interpreted
leg boundscheck checked
((${#failed[@]})) && echo "failed so far: ${failed[*]}"
leg jit pytest --durations=15
((${#failed[@]} == 0))
