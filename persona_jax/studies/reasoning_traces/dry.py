"""What the study will take, before anything runs: rows, tokens, memory, by stage."""

from collections.abc import Sequence

from persona_jax.data.prompts import PromptItem
from persona_jax.engine.model import Model
from persona_jax.engine.plan import plan
from persona_jax.personas.thinking import CLOSING
from persona_jax.studies.reasoning_traces.arms import make_arms, stand_in, thinkers
from persona_jax.studies.reasoning_traces.generation import (
  answer_grid,
  chat_of,
  splitter,
  think_grid,
  wanted,
)
from persona_jax.studies.reasoning_traces.settings import Settings


def describe(
  model: Model, settings: Settings, items: Sequence[PromptItem], on: str | None = None
) -> str:
  """Return rows of every stage, and plans of the thoughts and of the arm with the most answers.

  Thoughts are not there yet: texts of the whole budget stand in for them, so tokens and memory are
  upper bounds. Random directions stand in for those of personas.

  Args:
    model: the model, which needs no weights.
    settings: of the study.
    items: prompts.
    on: name of an accelerator that the study is planned for (`engine.accelerators`): adds times.
  """
  arms = make_arms(settings, stand_in(model, settings))
  by_arm = {arm.name: arm for arm in arms}
  asked = wanted(settings, arms)
  each = len(items) * settings.samples
  total = sum(map(len, asked.values()))
  lines = [
    f"think: {len(thinkers(arms))} thinkers x {each} = {len(thinkers(arms)) * each} thoughts of up "
    f"to {settings.think_tokens} tokens",
    "",
    str(plan(model, think_grid(settings, items, arms), on=on)),
    "",
    f"answer: {len(arms)} arms, {total} pairs of thinker and arm x {each} = {total * each} answers "
    f"of up to {settings.answer_tokens} tokens, at most",
  ]
  if splitter(model).opens_thought:
    lines.append("prompts leave a thought open")
  if -1 in model.think_ids:
    lines.append("the tags of thoughts are no tokens of this vocabulary; they are found in texts")
  largest = max(asked, key=lambda name: len(asked[name]))
  thought = _thought(model, items[0].text, settings.think_tokens)
  chats = {
    f"{item.prompt_id}|{s}|{name}": chat_of(item.text, thought)
    for name in asked[largest]
    for item in items
    for s in range(settings.samples)
  }
  lines += ["", f"of these {largest!r}, with thoughts of the whole budget:", ""]
  lines.append(str(plan(model, answer_grid(settings, by_arm[largest], chats), on=on)))
  return "\n".join(lines)


def _thought(model: Model, text: str, tokens: int) -> str:
  """Return a thought of about as many tokens: a text over and over."""
  ids = model.tokenizer.encode(text)
  over = (ids * (tokens // len(ids) + 1))[:tokens]
  return f"{model.tokenizer.decode(over)}\n{CLOSING}"
