"""Every line of persona_jax that depends on the JAX or Flax version (pairs in BUILD.md).

Nothing differs today between jax 0.10.2, 0.11.2 and 0.12.0.1 for the calls that this package makes,
so this module holds the one guard that keeps it so: an unsupported version fails on import with a
sentence, not later with a trace.
"""

import jax

SUPPORTED_JAX = ((0, 10, 2), (0, 13, 0))


_LOW, _HIGH = SUPPORTED_JAX

if not _LOW <= jax.__version_info__[:3] < _HIGH:
  raise ImportError(
    f"persona_jax supports jax >= {'.'.join(map(str, _LOW))}, < {'.'.join(map(str, _HIGH))}; "
    f"jax {jax.__version__} is installed."
  )
