"""What conditions do to a model, measured on fixed text: its own unedited answers.

Every condition is fed the same answers ("teacher-forced"), so that what is compared is the model's
state and not what it happened to write. Values are means over the tokens of an answer, one a
prompt: prompts are what is resampled.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.edits.table import Where
from persona_jax.edits.window import Window
from persona_jax.engine.capture import Capture
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import kl_of_activations, token_kl
from persona_jax.engine.rows import Row
from persona_jax.personas.chat import Prompt, Raw, as_messages

_BYTES = 1 << 30  # of whole activations that are held at a time
ANSWER = Window(start=-1)  # the last prompt token, which predicts the first of the answer, too


class Moved(NamedTuple):
  """What conditions do to answers, of one pass.

  Attributes:
    shift_CN: as `Answers.shifts` gives it.
    along_CNK: as `Answers.projections` gives it, less that of the unedited model.
    kl_CN: as `Answers.kl` gives it.
  """

  shift_CN: np.ndarray
  along_CNK: np.ndarray
  kl_CN: np.ndarray


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
    place = [("resid_post", block)]
    ((base,),) = self._activations([Condition("none")], place)
    found = [
      [_distance(h, h0) for h, h0 in zip(mine, base, strict=True)]
      for (mine,) in self._activations(conditions, place)
    ]
    return np.asarray(found, np.float64).reshape(len(conditions), len(self))

  def moved(
    self, conditions: Sequence[Condition], directions: Sequence[Direction], blocks: Sequence[int]
  ) -> Moved:
    """Measure shifts, projections and KL in one pass of the model.

    Args:
      conditions: C conditions.
      directions: one for each condition, of one site; means over replicates are used.
      blocks: K block numbers of projections; shifts are measured at the first.

    Raises:
      ValueError: a condition changes how an answer is cut into tokens.
    """
    self._check_tokens(self._rows([Condition("none")]), self._rows(conditions), conditions)
    last = self.model.arch.num_blocks - 1
    (site,) = {d.site for d in directions}
    places = [("resid_post", blocks[0]), ("resid_post", last), *((site, b) for b in blocks)]
    (base,) = self._activations([Condition("none")], places)
    shape = len(conditions), len(self)
    shift_CN, along_CNK = np.empty(shape), np.empty((*shape, len(blocks)))
    kl_CN = np.empty(shape)
    each = self._activations(conditions, places)
    for c, (direction, mine) in enumerate(zip(directions, each, strict=True)):
      shift_CN[c] = [_distance(h, h0) for h, h0 in zip(mine[0], base[0], strict=True)]
      for k, block in enumerate(blocks):
        unit_D = direction.unit_LD[block].astype(np.float64)
        along_CNK[c, :, k] = [
          (h @ unit_D).mean() - (h0 @ unit_D).mean()
          for h, h0 in zip(mine[2 + k], base[2 + k], strict=True)
        ]
      # Behind the last token nothing is said.
      p_TD, q_TD = (np.concatenate([h[:-1] for h in side[1]]) for side in (base, mine))
      ends = np.cumsum([len(h) - 1 for h in mine[1]])[:-1]
      kl_CN[c] = [x.mean() for x in np.split(kl_of_activations(self.model, p_TD, q_TD), ends)]
    return Moved(shift_CN, along_CNK, kl_CN)

  def _activations(
    self, conditions: Sequence[Condition], places: Sequence[Where]
  ) -> Iterator[list[list[np.ndarray]]]:
    """Give for each condition, by place and prompt, the answer's tokens, float32 [T, D]."""
    sites, blocks = (sorted(set(each)) for each in zip(*places, strict=True))
    longest = max(len(row.ids) for row in self._rows(conditions)) * len(sites) * len(blocks)
    at_once = max(1, _BYTES // (4 * len(self) * longest * self.model.arch.width))
    for first in range(0, len(conditions), at_once):
      part = conditions[first : first + at_once]
      chats = [condition.apply(chat) for condition in part for chat in self.chats]
      edits = [condition.edits for condition in part for _ in self.chats]
      reads = self.model.capture(chats, Capture(tuple(sites), blocks, tokens=ANSWER), edits=edits)
      for c in range(len(part)):
        mine = slice(c * len(self), (c + 1) * len(self))
        yield [[h_TD[~np.isnan(h_TD[:, 0])] for h_TD in reads[place][mine]] for place in places]

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


def _distance(h_TD: np.ndarray, h0_TD: np.ndarray) -> float:
  return float(np.linalg.norm(h_TD - h0_TD, axis=-1).mean())


def _messages(prompt: Prompt) -> list[dict[str, str]]:
  if isinstance(prompt, Raw):
    raise ValueError("answers are to chats; give strings or chats, not pj.Raw.")
  return [dict(message) for message in as_messages(prompt)]
