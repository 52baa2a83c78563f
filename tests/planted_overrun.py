"""Proof that the checked leg checks: exit code 1 where a planted overrun goes unnoticed."""

import sys

import numpy as np

from mapmri_nb.kernels._jit import kernel


@kernel()
def overrun(a, n):
    total = 0.0
    for i in range(n):
        total += a[i]
    return total


if __name__ == "__main__":
    assert overrun(np.ones(4), 4) == 4.0
    try:
        overrun(np.ones(4), 5)
    except IndexError:
        sys.exit(0)
    sys.exit("a planted overrun went unnoticed: bounds are not checked in this leg")
