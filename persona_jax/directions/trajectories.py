"""Projections along a conversation: per token, and per turn."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from persona_jax.directions.direction import Direction
from persona_jax.edits.compile import RowEdits
from persona_jax.edits.table import ROLES
from persona_jax.engine.capture import Capture
from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt

_ROLE_NAMES = {number: name for name, number in ROLES.items()}


def token_projections(
  model: Model,
  chats: Sequence[Prompt],
  directions: Sequence[Direction],
  block: int,
  *,
  edits: Sequence[RowEdits] | None = None,
) -> pd.DataFrame:
  """Project every token of conversations on unit directions at a block.

  Args:
    model: the model.
    chats: conversations; each is one pass, whatever its number of turns.
    directions: of one site.
    block: where.
    edits: of each chat, to see what steering does to it.

  Returns:
    A row a token: chat, turn (counted from 0 over messages of user and assistant), position, role,
    token (its text), and a column for each direction, in the units of the residual stream.

  Raises:
    ValueError: no direction, directions of several sites or two of one name, an unknown block.
  """
  names = [d.concept for d in directions]
  sites = {d.site for d in directions}
  if len(sites) != 1 or len(set(names)) < len(names):
    raise ValueError(f"directions need one site and different names; got {names} of {sites}.")
  (site,) = sites
  capture = Capture((site,), blocks=block, bank=list(directions))
  reads = model.capture(chats, capture, edits=edits)[site, block]
  frames = []
  for c, chat in enumerate(chats):
    row = model.encode(chat)
    roles = [_ROLE_NAMES[int(role)] for role in row.roles]
    frames.append(
      pd.DataFrame(
        {
          "chat": c,
          "turn": _turns(roles),
          "position": np.arange(len(row.ids)),
          "role": roles,
          "token": [model.tokenizer.decode([i]) for i in row.ids],
          **{name: reads[c, : len(row.ids), r] for r, name in enumerate(names)},
        }
      )
    )
  return pd.concat(frames, ignore_index=True)


def _turns(roles: Sequence[str]) -> np.ndarray:
  """Number the messages: tokens of the template count to the message before them, or the first."""
  turn, found = -1, []
  last = ""
  for role in roles:
    speaker = "assistant" if role == "think" else role
    if speaker in ("user", "assistant", "system") and speaker != last:
      turn += speaker != "system"
      last = speaker
    elif speaker == "template":
      last = last if last == "system" else f"{last}|"
    found.append(max(turn, 0))
  return np.asarray(found)


def turn_projections(tokens: pd.DataFrame) -> pd.DataFrame:
  """Average projections over the tokens of each turn, without those of the template.

  Args:
    tokens: what `token_projections` gives.

  Returns:
    A row a turn and role: chat, turn, role, tokens (their number), and the means.
  """
  fixed = ("chat", "turn", "position", "role", "token")
  names = [name for name in tokens.columns if name not in fixed]
  spoken = tokens[tokens["role"] != "template"]
  grouped = spoken.groupby(["chat", "turn", "role"], sort=False)
  means = grouped[names].mean()
  means.insert(0, "tokens", grouped.size())
  return means.reset_index()
