"""What conditions do to a model, measured on fixed text: its own unedited answers.

Every condition is fed the same answers ("teacher-forced"), so that what is compared is the model's
state and not what it happened to write. Values are means over the tokens of an answer, one a
prompt: prompts are what is resampled.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.edits.window import Window
from persona_jax.engine.capture import Capture
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import token_kl
from persona_jax.engine.rows import Row
from persona_jax.personas.chat import Prompt, Raw, as_messages

_AT_ONCE = 8  # conditions whose whole activations are held at a time
ANSWER = Window(start=-1)  # the last prompt token, which predicts the first of the answer, too


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
  """Prompts with the answers of a model, as they are fed to it under every condition.

  Attributes:
    model: the model.
    chats: a prompt and its answer each; N of them.
    num_empty: prompts that were left out because they are answered with no text.
  """

  model: Model
  chats: tuple[list[dict[str, str]], ...]
  num_empty: int = 0

  @classmethod
  def of(
    cls,
    model: Model,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 48,
    baseline: Condition | None = None,
  ) -> "Answers":
    """Have prompts answered greedily by the model, without edits.

    A prompt without an answer has nothing to be compared on; it is left out and counted.

    Args:
      model: the model.
      prompts: strings or chats; those that end with an assistant message keep it as the answer.
      max_new_tokens: of an answer.
      baseline: what stands round the prompts; default nothing.

    Raises:
      ValueError: no prompt, or none that is answered with a token; or a baseline with edits.
    """
    if baseline is not None and baseline.edits:
      raise ValueError(f"condition {baseline.name!r} has edits; answers are the unedited model's.")
    chats = [_messages(prompt) for prompt in prompts]
    todo = [n for n, chat in enumerate(chats) if chat[-1]["role"] != "assistant"]
    asked = [chats[n] if baseline is None else baseline.apply(chats[n]) for n in todo]
    for n, found in zip(
      todo, model.generate(asked, max_new_tokens=max_new_tokens) if asked else [], strict=True
    ):
      chats[n] = [*chats[n], {"role": "assistant", "content": found.text}]
    said = tuple(chat for chat in chats if chat[-1]["content"].strip())
    if not said:
      raise ValueError(f"none of {len(chats)} prompts is answered with any text.")
    return cls(model, said, len(chats) - len(said))

  def __len__(self) -> int:
    return len(self.chats)

  def _rows(self, conditions: Sequence[Condition]) -> list[Row]:
    """Return the rows of all conditions, one condition after the other."""
    chats = [condition.apply(chat) for condition in conditions for chat in self.chats]
    edits = [condition.edits for condition in conditions for _ in self.chats]
    return encode_rows(self.model, chats, edits)

  def held(self, window: Window) -> np.ndarray:
    """Return the share of the tokens that are read (`ANSWER`) in a window, float64 [N]."""
    rows = self._rows([Condition("none")])
    return np.asarray([row.held(window)[row.held(ANSWER)].mean() for row in rows])

  def projections(
    self, conditions: Sequence[Condition], directions: Sequence[Direction], blocks: Sequence[int]
  ) -> np.ndarray:
    """Project answers on unit directions.

    Args:
      conditions: C conditions.
      directions: one for each condition, of one site; means over replicates are used.
      blocks: K block numbers.

    Returns:
      Mean over the answer's tokens, the last prompt token among them, float64 [C, N, K], in the
      units of the residual stream.
    """
    bank: dict[str, Direction] = {d.hash: d for d in directions}
    (site,) = {d.site for d in directions}
    number = {key: r for r, key in enumerate(bank)}
    chats = [condition.apply(chat) for condition in conditions for chat in self.chats]
    edits = [condition.edits for condition in conditions for _ in self.chats]
    capture = Capture(
      (site,), blocks=list(blocks), reduce="mean", bank=list(bank.values()), tokens=ANSWER
    )
    reads = self.model.capture(chats, capture, edits=edits)
    own_C = [number[d.hash] for d in directions]
    z_KCNR = np.stack([reads[site, b] for b in blocks]).reshape(
      len(blocks), len(conditions), len(self), len(bank)
    )
    z_KCN = np.take_along_axis(z_KCNR, np.asarray(own_C)[None, :, None, None], axis=3)[..., 0]
    return np.moveaxis(z_KCN, 0, -1).astype(np.float64)

  def shifts(self, conditions: Sequence[Condition], block: int) -> np.ndarray:
    """Return how far conditions move activations, mean ‖h - h₀‖ over the answer, float64 [C, N].

    Args:
      conditions: C conditions.
      block: whose output is compared with that without a condition, token by token.
    """
    self._check_tokens(self._rows([Condition("none")]), self._rows(conditions), conditions)
    base = self._activations([Condition("none")], block)[0]
    found = []
    for first in range(0, len(conditions), _AT_ONCE):
      for mine in self._activations(conditions[first : first + _AT_ONCE], block):
        found.append(
          [np.linalg.norm(h - h0, axis=-1).mean() for h, h0 in zip(mine, base, strict=True)]
        )
    return np.asarray(found, np.float64).reshape(len(conditions), len(self))

  def _activations(self, conditions: Sequence[Condition], block: int) -> list[list[np.ndarray]]:
    """Return float32 [T, D] of the answer's tokens, by condition and prompt."""
    chats = [condition.apply(chat) for condition in conditions for chat in self.chats]
    edits = [condition.edits for condition in conditions for _ in self.chats]
    reads = self.model.capture(chats, Capture(blocks=block, tokens=ANSWER), edits=edits)
    h_MTD = reads["resid_post", block]
    rows: list[list[np.ndarray]] = []
    for m, h_TD in enumerate(h_MTD):
      if m % len(self) == 0:
        rows.append([])
      rows[-1].append(h_TD[~np.isnan(h_TD[:, 0])])
    return rows

  def kl(self, conditions: Sequence[Condition]) -> np.ndarray:
    """Return KL(p₀ ‖ p) of next tokens along the answers, in nats a token, float64 [C, N].

    p₀ is the unedited model without a condition; over the whole vocabulary, in float32.

    Raises:
      ValueError: a condition changes how the answer is cut into tokens.
    """
    base = self._rows([Condition("none")])
    rows = self._rows(conditions)
    self._check_tokens(base, rows, conditions)
    lengths = [len(row.ids) - row.prompt_length for row in base]
    pairs, positions = [], []
    for m, row in enumerate(rows):
      pairs.append((base[m % len(self)], row))
      positions.append(range(-lengths[m % len(self)] - 1, -1))
    found = token_kl(self.model, pairs, positions)
    mean_M = np.asarray([x.mean() for x in found], np.float64)
    return mean_M.reshape(len(conditions), len(self))

  def _check_tokens(
    self, base: Sequence[Row], rows: Sequence[Row], conditions: Sequence[Condition]
  ) -> None:
    """Check that every condition leaves the answers cut into the same tokens.

    Raises:
      ValueError: one does not.
    """
    for m, row in enumerate(rows):
      own = base[m % len(self)]
      if row.ids[row.prompt_length :] != own.ids[own.prompt_length :]:
        raise ValueError(
          f"condition {conditions[m // len(self)].name!r} changes the tokens of answer "
          f"{m % len(self)}; token by token nothing can be compared."
        )


def _messages(prompt: Prompt) -> list[dict[str, str]]:
  if isinstance(prompt, Raw):
    raise ValueError("answers are to chats; give strings or chats, not pj.Raw.")
  return [dict(message) for message in as_messages(prompt)]
