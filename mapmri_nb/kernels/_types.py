"""Names of the array types that kernels share."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
Unsigned = NDArray[np.uint64]  # indices: Numba tests a signed index for a count from the end
