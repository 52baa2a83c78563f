"""Pure Numba kernels on arrays: numpy, numba and math only, callable from your own jitted code."""
