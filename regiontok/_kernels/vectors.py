"""Dot products and sums of rows of float32 matrices, with SIMD."""

import numpy as np

from regiontok._kernels import compiled


@compiled(reassociate=True)
def dot_product(x, i, y, j):
    total = np.float32(0)
    for d in range(x.shape[1]):
        total += x[i, d] * y[j, d]
    return total


@compiled(reassociate=True)
def dot_two(x, i, y, j, z, k):
    """Return ``x[i]·y[j]`` and ``x[i]·z[k]``, loading ``x[i]`` once, because loads limit dot products."""
    first, second = np.float32(0), np.float32(0)
    for d in range(x.shape[1]):
        value = x[i, d]
        first += value * y[j, d]
        second += value * z[k, d]
    return first, second


@compiled(reassociate=True)
def square_and_dot_two(x, i, j, k):
    square, first, second = np.float32(0), np.float32(0), np.float32(0)
    for d in range(x.shape[1]):
        value = x[i, d]
        square += value * value
        first += value * x[j, d]
        second += value * x[k, d]
    return square, first, second


@compiled(reassociate=True)
def add_two(x, i, factor_i, j, factor_j, out, k):
    """Write ``factor_i x[i] + factor_j x[j]`` to ``out[k]``; return its square."""
    square = np.float32(0)
    for d in range(x.shape[1]):
        value = factor_i * x[i, d] + factor_j * x[j, d]
        out[k, d] = value
        square += value * value
    return square


@compiled(reassociate=True)
def add_row(out, i, x, j, factor):
    """Add ``factor x[j]`` to ``out[i]``; return the square of the sum."""
    square = np.float32(0)
    for d in range(x.shape[1]):
        value = out[i, d] + factor * x[j, d]
        out[i, d] = value
        square += value * value
    return square
