"""Kernels on arrays, for your own jitted code too (numpy, numba, math only). See `blocks` first."""
