"""Vectors that are trained to be added at one block, with optax, under orbax checkpoints.

* "preference": BiPO (Cao et al. 2024, arXiv 2406.00045). Added with sign s = ±1, drawn anew each
  step, the vector makes the preferred answer likelier than the other by s, relative to the unedited
  model: -log σ(s β [Δ log p(preferred) - Δ log p(other)]).
* "likelihood": the answers become likely: mean -log p(answer) a token (Subramani et al. 2022).

What the blocks up to the vector's compute does not depend on it. It is computed once for each
example and kept, so a step runs the blocks above alone, and the head at the answers' tokens.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from persona_jax import sharding
from persona_jax.data.hashing import content_hash
from persona_jax.directions.direction import Direction
from persona_jax.edits.apply import apply_site
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.operations import add
from persona_jax.edits.table import Site
from persona_jax.engine.forward import head, run_blocks, token_info
from persona_jax.engine.model import Model
from persona_jax.engine.rows import length_bucket, round_up
from persona_jax.personas.chat import Prompt

Loss = Literal["preference", "likelihood"]

# Of activations that are kept on the host; beyond, each step computes its own.
_TRUNK_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Training:
  """How a vector is trained; the defaults are BiPO's.

  Attributes:
    loss: "preference" or "likelihood".
    steps: batches.
    batch: examples of a batch.
    learning_rate: of AdamW, at its peak, with a linear rise over the first tenth and a cosine down.
    weight_decay: of AdamW.
    beta: of the preference loss.
    tokens: where the vector is added.
    seed: of the order of examples and the signs.
    every: steps between checkpoints.

  Raises:
    ValueError: an unknown loss, or a number that is not positive.
  """

  loss: Loss = "preference"
  steps: int = 200
  batch: int = 4
  learning_rate: float = 5e-4
  weight_decay: float = 0.05
  beta: float = 0.1
  tokens: str = "all"
  seed: int = 0
  every: int = 50

  def __post_init__(self) -> None:
    if self.loss not in ("preference", "likelihood"):
      raise ValueError(f"loss={self.loss!r}: use 'preference' or 'likelihood'.")
    for name in ("steps", "batch", "learning_rate", "beta", "every"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name}={getattr(self, name)!r} must be above 0.")

  def optimizer(self) -> optax.GradientTransformation:
    """Return AdamW with the schedule."""
    rise = max(1, self.steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, rise, self.steps)
    return optax.adamw(schedule, weight_decay=self.weight_decay)


class Example(NamedTuple):
  """What a vector is trained on.

  Attributes:
    prompt: a string, or a chat that ends with a user message.
    preferred: the answer to make likely.
    other: the answer that it is preferred to; None with "likelihood".
  """

  prompt: Prompt
  preferred: str
  other: str | None = None


class _Batch(NamedTuple):
  """Rows of prompts with answers, as arrays.

  Attributes:
    ids_BT, roles_BT, length_B, prompt_B: the rows, as `pj.forward` takes them.
    at_BA: positions by which the answers' tokens are chosen.
    next_BA: those tokens.
    counted_BA: which of them there are.
  """

  ids_BT: Any
  roles_BT: Any
  length_B: Any
  prompt_B: Any
  at_BA: Any
  next_BA: Any
  counted_BA: Any


class _State(NamedTuple):
  """What training carries from step to step."""

  vector_D: jax.Array
  optimizer: Any
  step: jax.Array


def train_direction(
  model: Model,
  examples: Sequence[Example],
  block: int,
  training: Training | None = None,
  *,
  concept: str = "trained",
  checkpoints: str | Path | None = None,
  progress: Callable[[int, float], None] | None = None,
) -> Direction:
  """Train the vector that is added to the output of a block.

  Args:
    model: the model; its weights stay as they are.
    examples: what to train on.
    block: where the vector is added.
    training: how.
    concept: name of the direction.
    checkpoints: folder for orbax checkpoints; a run that was interrupted goes on from the last.
    progress: called with the step and its loss.

  Returns:
    A `Direction` with a vector at that block and zeros at all others, as long as it was trained:
    add it with unit="raw" and coefficient 1 (or -1).

  Raises:
    ValueError: no examples, one without the answer that the loss needs or an empty answer, an
      unknown block, or checkpoints of other examples or settings.
  """
  training = training or Training()
  examples = [Example(*example) for example in examples]
  arch = model.arch
  if not 0 <= block < arch.num_blocks:
    raise ValueError(f"block {block}: the model has blocks 0 to {arch.num_blocks - 1}.")
  rows = _batch_of(model, examples, training.loss)
  about = {
    "model_hash": model.identity.sha256,
    "dtype": model.dtype,
    "resid_dtype": model.resid_dtype,
    "tokens_hash": content_hash([x.tolist() for x in rows]),
    "block": block,
    "training": dataclasses.asdict(training),
    "data_hash": content_hash([list(example) for example in examples]),
  }
  optimizer = training.optimizer()
  vector_D = jnp.zeros(arch.width, jnp.float32)
  state = _State(vector_D, optimizer.init(vector_D), jnp.int32(0))
  manager, state = _restored(checkpoints, state, about, training.every)
  per_example = 2 if training.loss == "preference" else 1
  order = [
    ((chosen[:, None] * per_example + np.arange(per_example)).reshape(-1), sign)
    for chosen, sign in _order(len(examples), training)
  ]
  size = training.batch * per_example
  site = _site(model, block, training, size)
  used = np.unique([index for index, _ in order[int(state.step) :]]).astype(int)
  trunk = _Trunk(model, rows, block, size, used)
  reference_B = trunk.logprobs() if training.loss == "preference" else None
  losses: list[float] = []
  try:
    for step in range(int(state.step), training.steps):
      index, sign = order[step]
      h_BTD, batch = trunk.of(index)
      reference = None if reference_B is None else reference_B[index]
      state, loss = _step(
        model, site, state, h_BTD, batch, reference, np.float32(sign),
        training=training, block=block,
      )  # fmt: skip
      losses.append(float(loss))
      if not np.isfinite(losses[-1]):
        raise ValueError(f"the loss of step {step} is {losses[-1]}; try a smaller learning_rate.")
      if manager is not None and ((step + 1) % training.every == 0 or step + 1 == training.steps):
        manager.save(step + 1, args=ocp.args.StandardSave(state._asdict()))
      if progress is not None:
        progress(step + 1, losses[-1])
  finally:  # what was handed over is written, also if the training is interrupted
    if manager is not None:
      manager.wait_until_finished()
      manager.close()
  v_SLD = np.zeros((1, arch.num_blocks, arch.width), np.float32)
  v_SLD[0, block] = np.asarray(state.vector_D)
  provenance = {
    "model": model.identity.name,
    "method": f"trained:{training.loss}",
    "site": "resid_post",
    "tokens": training.tokens,
    "num_pairs": len(examples),
    "blocks": [block],
    "last_loss": losses[-1] if losses else None,
  }
  return Direction(v_SLD, concept, "resid_post", {**about, **provenance})


def _order(count: int, training: Training) -> list[tuple[np.ndarray, float]]:
  """Return the examples of each step, and the sign of the vector in it."""
  rng = np.random.default_rng(training.seed)
  size = min(training.batch, count)
  left: list[int] = []
  out = []
  for _ in range(training.steps):
    if len(left) < size:
      left += rng.permutation(count).tolist()
    chosen, left = np.asarray(left[:size]), left[size:]
    sign = float(rng.choice([-1.0, 1.0])) if training.loss == "preference" else 1.0
    out.append((chosen, sign))
  return out


def _batch_of(model: Model, examples: Sequence[Example], loss: Loss) -> _Batch:
  """Return all rows: of each example the preferred answer and, for preferences, the other."""
  if not examples:
    raise ValueError("there are no examples to train on.")
  rows = []
  for n, example in enumerate(examples):
    given = (example.preferred, example.other)[: 2 if loss == "preference" else 1]
    answers = [answer for answer in given if answer]
    if len(answers) < len(given):
      raise ValueError(f"example {n} lacks an answer; {loss!r} needs {len(given)} of each.")
    asked = (
      [{"role": "user", "content": example.prompt}]
      if isinstance(example.prompt, str)
      else list(example.prompt)  # type: ignore[arg-type]
    )
    for answer in answers:
      rows.append(model.encode([*asked, {"role": "assistant", "content": answer}]))
  # Of few lengths, so that the vectors of a study share their programs.
  size = round_up(length_bucket(max(len(row.ids) for row in rows)), 16)
  ids_BT, roles_BT = np.zeros((2, len(rows), size), np.int32)
  length_B = np.asarray([len(row.ids) for row in rows], np.int32)
  prompt_B = np.asarray([row.prompt_length for row in rows], np.int32)
  if (empty := np.flatnonzero(length_B <= prompt_B)).size:
    numbers = np.unique(empty // (len(rows) // len(examples)))
    raise ValueError(f"examples {numbers[:5].tolist()} have an answer of no token.")
  at_BA = prompt_B[:, None] - 1 + np.arange(round_up(int((length_B - prompt_B).max()), 8))
  counted_BA = at_BA < length_B[:, None] - 1
  at_BA = np.minimum(at_BA, length_B[:, None] - 2).astype(np.int32)
  for b, row in enumerate(rows):
    ids_BT[b, : len(row.ids)], roles_BT[b, : len(row.ids)] = row.ids, row.roles
  next_BA = np.take_along_axis(ids_BT, at_BA + 1, axis=1)
  return _Batch(ids_BT, roles_BT, length_B, prompt_B, at_BA, next_BA, counted_BA)


def _site(model: Model, block: int, training: Training, rows: int) -> Site:
  """Return the edit of a vector, to be replaced, in every row of a batch."""
  shape = (1, model.arch.num_blocks, model.arch.width)
  edit = add(
    Direction(np.ones(shape), "to train"), 1.0, unit="raw", blocks=block, tokens=training.tokens
  )
  return compile_edits(model, [[edit]] * rows).sites["resid_post", block]


def _with_vector(site: Site, vector_D: jax.Array, rows: int) -> Site:
  """Return the edit with another vector, for the first rows of it."""
  cut = jax.tree.map(lambda x: x[:rows], site)
  assert cut.add is not None
  u_BWD = jnp.broadcast_to(vector_D, cut.add.u_BWD.shape)
  new: Site = cut._replace(add=cut.add._replace(u_BWD=u_BWD))
  return new


@functools.partial(jax.jit, static_argnames=("block",))
def _trunk(model: Model, batch: _Batch, *, block: int) -> jax.Array:
  """Return what a block gives without the vector, [B, T, D] in `resid_dtype`."""
  return _blocks(model, batch, model.embed(batch.ids_BT), range(block + 1))


def _blocks(model: Model, batch: _Batch, h_BTD: jax.Array, blocks: range) -> jax.Array:
  t = batch.ids_BT.shape[1]
  position_BT = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), batch.ids_BT.shape)
  tokens = token_info(batch.length_B, batch.prompt_B, batch.roles_BT, t)
  h_BTD = sharding.constrain(h_BTD, "BTD", model.mesh)  # kept arrays are whole
  return run_blocks(model.arch, model.params, h_BTD, position_BT, tokens, blocks=blocks).h_BTD


def _answer_logprobs(
  model: Model, h_BTD: jax.Array, batch: _Batch, site: Site | None, block: int
) -> jax.Array:
  """Return the log-probability of each row's answer, float32 [B], of what a block gave."""
  if site is not None:
    t = batch.ids_BT.shape[1]
    tokens = token_info(batch.length_B, batch.prompt_B, batch.roles_BT, t)
    h_BTD, _ = apply_site(site, h_BTD, tokens)
  h_BTD = _blocks(model, batch, h_BTD, range(block + 1, model.arch.num_blocks))
  h_BAD = jnp.take_along_axis(h_BTD, batch.at_BA[..., None], axis=1)
  logprob_BAV = jax.nn.log_softmax(head(model.params, h_BAD, arch=model.arch))
  next_BA = jnp.take_along_axis(logprob_BAV, batch.next_BA[..., None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(batch.counted_BA, next_BA, 0.0), axis=1)


_plain_logprobs = jax.jit(
  functools.partial(_answer_logprobs, site=None), static_argnames=("block",)
)


class _Trunk:
  """What the blocks up to the vector's give for the rows that are used, kept if there is room."""

  def __init__(self, model: Model, rows: _Batch, block: int, size: int, used: np.ndarray):
    self._model, self._rows, self._block, self._size, self._used = model, rows, block, size, used
    self._place = np.zeros(len(rows.ids_BT), int)
    self._place[used] = np.arange(len(used))
    self._kept: np.ndarray | None = None
    shape = (len(used), rows.ids_BT.shape[1], model.arch.width)
    dtype = np.dtype(model.resid_dtype)
    if math.prod(shape) * dtype.itemsize <= _TRUNK_BYTES:
      kept = np.empty(shape, dtype)
      for index in self._pieces():
        kept[self._place[index]], _ = self.of(index)
      self._kept = kept

  def _pieces(self) -> Iterator[np.ndarray]:
    """Give the rows that are used, as many at a time as a step has."""
    for first in range(0, len(self._used), self._size):
      # Of one shape: the last row fills the last piece.
      yield self._used[np.minimum(np.arange(first, first + self._size), len(self._used) - 1)]

  def of(self, index: np.ndarray) -> tuple[np.ndarray | jax.Array, _Batch]:
    """Return what is given for some rows, and the rows."""
    batch = _Batch(*(x[index] for x in self._rows))
    if self._kept is not None:
      return self._kept[self._place[index]], batch
    return _trunk(self._model, batch, block=self._block), batch

  def logprobs(self) -> np.ndarray:
    """Return the answers' log-probabilities under the unedited model, [B]; 0 of unused rows."""
    out_B = np.zeros(len(self._rows.ids_BT), np.float32)
    for index in self._pieces():
      h_BTD, batch = self.of(index)
      out_B[index] = _plain_logprobs(self._model, h_BTD, batch, block=self._block)
    return out_B


@functools.partial(jax.jit, static_argnames=("training", "block"))
def _step(
  model: Model,
  site: Site,
  state: _State,
  h_BTD: jax.Array,
  batch: _Batch,
  reference_B: jax.Array | None,
  sign: jax.Array,
  *,
  training: Training,
  block: int,
) -> tuple[_State, jax.Array]:
  rows = batch.ids_BT.shape[0]

  def loss_of(vector_D: jax.Array) -> jax.Array:
    edit = _with_vector(site, sign * vector_D, rows)
    logprob_B = _answer_logprobs(model, h_BTD, batch, edit, block)
    if reference_B is None:
      return -jnp.sum(logprob_B) / jnp.sum(batch.counted_BA)
    gain_B2 = (logprob_B - reference_B).reshape(-1, 2)
    return -jnp.mean(jax.nn.log_sigmoid(sign * training.beta * (gain_B2[:, 0] - gain_B2[:, 1])))

  loss, gradient_D = jax.value_and_grad(loss_of)(state.vector_D)
  updates, optimizer = training.optimizer().update(gradient_D, state.optimizer, state.vector_D)
  vector_D = optax.apply_updates(state.vector_D, updates)
  return _State(vector_D, optimizer, state.step + 1), loss


def _restored(
  folder: str | Path | None, state: _State, about: Mapping[str, Any], every: int
) -> tuple[ocp.CheckpointManager | None, _State]:
  """Open the checkpoints and return the last state in them, or the one that is given.

  Raises:
    ValueError: they are of other examples, settings, another model or block.
  """
  if folder is None:
    return None, state
  options = ocp.CheckpointManagerOptions(max_to_keep=2)
  manager = ocp.CheckpointManager(
    Path(folder).absolute(), options=options, metadata={"about": content_hash(dict(about))}
  )
  known = (manager.metadata().custom_metadata or {}).get("about")
  if known not in (None, content_hash(dict(about))):
    raise ValueError(f"{folder} has checkpoints of another training; give another folder.")
  step = manager.latest_step()
  if step is None:
    return manager, state
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state._asdict())
  found = manager.restore(step, args=ocp.args.StandardRestore(abstract))
  return manager, _State(**found)
