"""Vectors that are trained to be added at one block, with optax, under orbax checkpoints.

* "preference": BiPO (Cao et al. 2024, arXiv 2406.00045). Added with sign s = ±1, drawn anew each
  step, the vector makes the preferred answer likelier than the other by s, relative to the unedited
  model: -log σ(s β [Δ log p(preferred) - Δ log p(other)]).
* "likelihood": the answers become likely: mean -log p(answer) a token (Subramani et al. 2022).

A step runs the blocks above the vector alone (`directions.trunk`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from persona_jax.data.hashing import content_hash
from persona_jax.directions.direction import Direction
from persona_jax.directions.trunk import Batch, Trunk, answer_logprobs, batch_of
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.operations import add
from persona_jax.edits.table import Site
from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt

Loss = Literal["preference", "likelihood"]


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
  trunk = Trunk(model, rows, block, size, used)
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


def _batch_of(model: Model, examples: Sequence[Example], loss: Loss) -> Batch:
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
  if empty := [b for b, row in enumerate(rows) if len(row.ids) <= row.prompt_length]:
    numbers = sorted({b // (len(rows) // len(examples)) for b in empty})
    raise ValueError(f"examples {numbers[:5]} have an answer of no token.")
  return batch_of(rows)


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


@functools.partial(jax.jit, static_argnames=("training", "block"))
def _step(
  model: Model,
  site: Site,
  state: _State,
  h_BTD: jax.Array,
  batch: Batch,
  reference_B: jax.Array | None,
  sign: jax.Array,
  *,
  training: Training,
  block: int,
) -> tuple[_State, jax.Array]:
  rows = batch.ids_BT.shape[0]

  def loss_of(vector_D: jax.Array) -> jax.Array:
    edit = _with_vector(site, sign * vector_D, rows)
    logprob_B = answer_logprobs(model, h_BTD, batch, edit, block)
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
