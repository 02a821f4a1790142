"""Where compiled programs are kept from one process to the next."""

from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from persona_jax.data.wheels import cache_dir


def keep_on_disk() -> Path | None:
  """Let JAX keep compiled programs on disk, so that the next process reads them.

  Does nothing where the user has set a directory of his own (`jax_compilation_cache_dir`, the
  variable JAX_COMPILATION_CACHE_DIR) or switched JAX's cache off. Otherwise it is a folder of the
  cache that models and prompts are in.

  Returns:
    The directory, or None where the cache is off.
  """
  config: Any = jax.config
  if not config.jax_enable_compilation_cache:
    return None
  if config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    # JAX leaves out programs that compile in under a second; here they are many. And it decides at
    # the first program of a process whether there is a cache.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
  return Path(config.jax_compilation_cache_dir)
