#!/usr/bin/env bash
# All legs of the tests with the Python of $PYTHON (default: python): the compiled leg, and beside it, on a second core,
# lint, types, pages, without the compiler, and with bounds checks. Or, after the word `small`, one leg for an environment of
# other versions: lanes, every mode, solvers, files, command line. Every leg has its own kernel cache: a warm one would
# silently load objects of another leg. Ends with the compiled leg's output.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
[[ $python == */* ]] && python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # some legs run elsewhere
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export HYPOTHESIS_PROFILE=ci MPLBACKEND=Agg

leg() { # leg NAME COMMAND...: run one leg in its own cache folder, remember a failure, go on
    local name=$1
    shift
    echo "== $name"
    NUMBA_CACHE_DIR="$scratch/$name" "$@" || echo "$name" >>"$scratch/failed"
}

# the installed package is tested, not the folder we stand in (python -P, which 3.10 does not have)
pytest() { "$python" -c 'import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())' -q -p no:cacheprovider "$@"; }
interpreted() { NUMBA_DISABLE_JIT=1 pytest -m nojit; }
checked() ( # every kernel, in every mode
    export NUMBA_BOUNDSCHECK=1
    "$python" tests/planted_overrun.py && pytest -m "not jit_only" -k "not width" \
        tests/test_{tensor,moments,gcv,positivity,sos,constrained,blocks,frames,noise,scalars,propagator,fuzz}.py
)

if [[ ${1:-} == small ]]; then
    leg small pytest tests/test_{lanes,positivity,io,cli}.py tests/test_fuzz.py::test_random_samples -k "not width"
else
    leg jit pytest --durations=15 >"$scratch/jit.log" 2>&1 &
    leg lint "$python" -m ruff check --no-cache .
    leg format "$python" -m ruff format --no-cache --check .
    leg types "$python" -m mypy --cache-dir "$scratch/mypy"
    leg docs "$python" -m sphinx -W -q docs "$scratch/pages"
    leg nojit interpreted
    leg boundscheck checked
    wait
    echo "== fresh seed ${seed:=$RANDOM}: python -m mapmri_nb.testing --seed $seed --examples 8 --seconds 3"
    (cd "$scratch" && NUMBA_CACHE_DIR="$scratch/jit" "$python" -m mapmri_nb.testing --seed "$seed" --examples 8 --seconds 3) ||
        echo "== a counterexample by seed $seed: mend it and name the case in the tests (it is news, and does not fail this run)"
    [[ -e $scratch/failed ]] && echo "failed: $(tr '\n' ' ' <"$scratch/failed")"
    cat "$scratch/jit.log"
fi
[[ ! -e $scratch/failed ]]
