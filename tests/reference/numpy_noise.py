"""Sampling noise in numpy, for whole rows, as the docstring of `engine.noise` has it."""

import numpy as np


def numpy_threefry(key, counter) -> np.ndarray:
  """Threefry-2x32-20 of Salmon et al. 2011 on uint64 with masks; counter [2, N] to words [2, N]."""
  mask = np.uint64(0xFFFFFFFF)
  keys = [np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[0] ^ key[1] ^ 0x1BD11BDA)]
  x0, x1 = ((np.asarray(c, np.uint64) + k) & mask for c, k in zip(counter, keys, strict=False))
  rotations = (13, 15, 26, 6, 17, 29, 16, 24)
  for i in range(20):
    r = rotations[i % 8]
    x0 = (x0 + x1) & mask
    x1 = ((x1 << np.uint64(r) | x1 >> np.uint64(32 - r)) & mask) ^ x0
    if i % 4 == 3:
      j = i // 4 + 1
      x0 = (x0 + keys[j % 3]) & mask
      x1 = (x1 + keys[(j + 1) % 3] + np.uint64(j)) & mask
  return np.stack(np.broadcast_arrays(x0, x1))


def numpy_exponentials(seed, step, vocab) -> np.ndarray:
  """E of every token of a row, float64 [V], in float64."""
  key = (seed >> 32, seed & 0xFFFFFFFF)
  x = lambda w: -np.log1p(-np.minimum((w.astype(np.float64) + 0.5) / 2**32, 1 - 2.0**-24))
  chunks, places = np.arange(-(-vocab // 64)), np.arange(64)
  w0, w1 = numpy_threefry(key, (step, 2**31 + 2 * chunks))
  w2, w3 = numpy_threefry(key, (step, 2**31 + 2 * chunks + 1))
  rest, _ = numpy_threefry(key, (step, chunks[:, None] * 64 + places))
  first, second = x(w0) / 64, x(w0) / 64 + x(w2) / 63
  place1 = (w1 >> np.uint64(26)).astype(int)
  place2 = (place1 + 1 + (63 * (w3 >> np.uint64(6)).astype(int) >> 26)) % 64
  e_CN = second[:, None] + x(rest)
  e_CN[chunks, place1] = first
  e_CN[chunks, place2] = second
  return e_CN.ravel()[:vocab]
