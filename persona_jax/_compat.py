"""Every line of persona_jax that depends on the JAX or Flax version (pairs in BUILD.md).

The calls that this package makes are the same in jax 0.10.2, 0.11.2 and 0.12.0.1; what differs is
one option of the compiler and what it keeps in memory. An unsupported version fails on import with
a sentence, not later with a trace.
"""

import types

import jax

SUPPORTED_JAX = ((0, 10, 2), (0, 13, 0))


_LOW, _HIGH = SUPPORTED_JAX

if not _LOW <= jax.__version_info__[:3] < _HIGH:
  raise ImportError(
    f"persona_jax supports jax >= {'.'.join(map(str, _LOW))}, < {'.'.join(map(str, _HIGH))}; "
    f"jax {jax.__version__} is installed."
  )

# For blocks of prompts on a CPU: without XLA's newer emitter of fusions they compile in 1.9 instead
# of 3.4 s and run in 416 instead of 466 ms (6 programs of SmolLM2, 2 cores, jax 0.10.2, measured).
# Programs of decoding compile three times as long without it. XLA dropped the option after 0.10.
CPU_BLOCK_OPTIONS = types.MappingProxyType(
  {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
)

# Whether a CPU's decoding programs hold a float32 copy of a bfloat16 head: compiled for 32 rows of
# SmolLM2, JAX 0.10.2 reports 108 MiB for it, 0.11.2 none.
CPU_WIDENS_HEAD = jax.__version_info__ < (0, 11)
