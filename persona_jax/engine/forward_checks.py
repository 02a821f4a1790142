"""What `pj.forward` checks of its arrays.

Under a transformation of JAX (`jit`, `grad`, `vmap`) only shapes and dtypes are known; values are
checked where they are concrete. Otherwise XLA would clamp or wrap them and answer all the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.table import ROLES


def concrete(x: Any) -> np.ndarray | None:
  """Return the values of an array, None if some are traced."""
  return None if any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(x)) else np.asarray(x)


def _placed(x: np.ndarray | jax.Array) -> jax.Array:
  """Return an array of JAX's; numpy's is sent as it is, for which no program is compiled.

  It is copied: a CPU would read the caller's own memory, who may write the next batch there.
  """
  return jax.device_put(x.copy()) if isinstance(x, np.ndarray) else jnp.asarray(x)


def checked_tokens(tokens_BT: Any, vocab_size: int) -> jax.Array:
  """Return token ids [B, T] as an array of JAX.

  Raises:
    ValueError: another rank or dtype, no row or no token, or ids outside the vocabulary.
  """
  given = concrete(tokens_BT)  # before an id of 64 bits is cut to 32
  array = jnp.asarray(tokens_BT) if given is None else given
  if array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.integer):
    raise ValueError(f"tokens_BT must be integers [B, T], got {array.dtype} {array.shape}.")
  if not array.size:
    raise ValueError(f"tokens_BT has shape {array.shape}; give at least one row of one token.")
  if given is not None:
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= vocab_size:
      raise ValueError(
        f"tokens_BT holds ids from {low} to {high}; the vocabulary is [0, {vocab_size})."
      )
  return _placed(array)


def checked_lengths(
  lengths_B: Any, prompt_lengths_B: Any, shape_BT: tuple[int, int], max_positions: int
) -> tuple[jax.Array, jax.Array]:
  """Return the lengths of rows and of their prompts, T and the rows' own where they are None.

  Raises:
    ValueError: another shape or dtype, a row of no token or of more than T or than the model's
      positions, or a prompt that is longer than its row.
  """
  b, t = shape_BT
  lengths_B = np.full(b, t, np.int32) if lengths_B is None else lengths_B
  row_B = concrete(lengths_B)
  checked_B = _integers("lengths_B", lengths_B, b)
  if row_B is not None:
    if row_B.min() < 1 or row_B.max() > t:
      raise ValueError(
        f"lengths_B holds {row_B.min()} to {row_B.max()}; rows of tokens_BT have 1 to {t} tokens."
      )
    if row_B.max() > max_positions:
      raise ValueError(
        f"a row of {row_B.max()} tokens exceeds the model's {max_positions} positions; shorten it."
      )
  if prompt_lengths_B is None:
    return checked_B, checked_B
  ends_B, prompt_B = _integers("prompt_lengths_B", prompt_lengths_B, b), concrete(prompt_lengths_B)
  if prompt_B is not None:
    most_B = np.full(b, t) if row_B is None else row_B
    wrong = np.flatnonzero((prompt_B < 0) | (prompt_B > most_B)).tolist()
    if wrong:
      raise ValueError(
        f"prompt_lengths_B is {prompt_B[wrong[0]]} for row {wrong[0]} of {most_B[wrong[0]]} "
        "tokens; a prompt has 0 tokens up to all of its row."
      )
  return checked_B, ends_B


def _integers(name: str, value_B: Any, b: int) -> jax.Array:
  given = concrete(value_B)
  array = jnp.asarray(value_B) if given is None else given
  if array.shape != (b,):
    raise ValueError(f"{name} has shape {array.shape}; tokens_BT has {b} rows.")
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise ValueError(f"{name} holds {array.dtype}; lengths are integers.")
  return _placed(array)


def checked_roles(roles_BT: Any, shape_BT: tuple[int, int]) -> jax.Array:
  """Return the roles of tokens, int32 [B, T].

  Raises:
    ValueError: another shape or dtype, or a number that is no role.
  """
  given = concrete(roles_BT)
  array = jnp.asarray(roles_BT) if given is None else given
  if array.shape != shape_BT:
    raise ValueError(f"roles_BT has shape {array.shape}, tokens_BT {shape_BT}.")
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise ValueError(f"roles_BT holds {array.dtype}; roles are integers, {ROLES}.")
  if given is not None:
    unknown = np.setdiff1d(given, list(ROLES.values())).tolist()
    if unknown:
      raise ValueError(f"roles_BT holds {unknown[:8]}; roles are {ROLES}.")
  return _placed(array.astype(np.int32))
