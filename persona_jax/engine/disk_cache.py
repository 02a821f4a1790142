"""Where compiled programs are kept from one process to the next."""

from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from persona_jax.data.wheels import cache_dir

_JAX_SECONDS = 1.0  # what JAX leaves `jax_persistent_cache_min_compile_time_secs` at


def keep_on_disk() -> Path | None:
  """Let JAX keep compiled programs on disk, so that the next process reads them.

  Where the user has set a directory (`jax_compilation_cache_dir`, the variable
  JAX_COMPILATION_CACHE_DIR) it is that one, otherwise a folder of the cache that models and prompts
  are in. JAX leaves out programs that compile in under a second, which most do here: they are kept
  too, unless the user has changed `jax_persistent_cache_min_compile_time_secs`. Does nothing where
  JAX's cache is switched off.

  Returns:
    The directory, or None where the cache is off.
  """
  config: Any = jax.config
  if not config.jax_enable_compilation_cache:
    return None
  if config.jax_persistent_cache_min_compile_time_secs == _JAX_SECONDS:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    # JAX decides at the first program of a process whether there is a cache.
    compilation_cache.reset_cache()
  return Path(config.jax_compilation_cache_dir)
