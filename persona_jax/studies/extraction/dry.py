"""What an extraction will run, before anything runs."""

from collections.abc import Sequence

from persona_jax.engine.memory import params_bytes
from persona_jax.engine.model import Model
from persona_jax.studies.extraction.contrasts import Contrast
from persona_jax.studies.extraction.settings import Settings


def describe(model: Model, settings: Settings, contrasts: Sequence[Contrast]) -> str:
  """Return what every stage reads and writes, a line each.

  Args:
    model: the model, which needs no weights.
    settings: of the extraction.
    contrasts: of `load_contrasts`.

  Raises:
    ValueError: the model's template does not take the prompts.
  """
  whole = [c for c in contrasts if not c.parts]
  asked = {part: _rows(whole, part) for part in ("train", "held_out")}
  chats = [
    chat
    for contrast in whole
    for chat in contrast.pairs(contrast.train[:1], settings.persona_in).positive
  ]
  longest = max(len(model.encode(chat).ids) for chat in chats)
  gib = params_bytes(model.params) / 2**30
  lines = [
    f"{model.identity.name} in {model.dtype}: {model.arch.num_blocks} blocks, {gib:.1f} GiB",
    f"{len(settings.methods)} methods x {len(contrasts)} concepts: "
    f"{', '.join(c.name for c in contrasts)}",
    f"prompts of up to about {longest} tokens, persona texts in the {settings.persona_in} message",
  ]
  if settings.source == "answers" or settings.trained:
    parts = ("train", "held_out") if settings.source == "answers" else ("train",)
    count = sum(asked[part] for part in parts)
    lines.append(f"answers: {count} of up to {settings.answer_tokens} tokens")
  if settings.read:
    lines.append(f"extract: {asked['train']} rows read at {settings.site} of every block")
  if settings.trained:
    lines.append(
      f"train: {len(settings.trained) * len(whole)} vectors, {settings.train_steps} steps of "
      f"{settings.train_batch} pairs each"
    )
  lines.append(f"evidence: {asked['held_out']} rows that no direction is made of")
  if settings.coefficients:
    conditions = len(contrasts) * (2 * len(settings.coefficients) + 1)
    lines.append(
      f"coefficients: {conditions} conditions x {settings.coefficient_prompts} answers of up to "
      f"{settings.coefficient_tokens} tokens"
    )
  if settings.refusal_pairs:
    lines.append(
      f"refusal: {settings.refusal_pairs} + {settings.refusal_held_out} pairs, candidates at every "
      "template token and block"
    )
  return "\n".join(lines)


def _rows(contrasts: Sequence[Contrast], part: str) -> int:
  """Return the prompts of both sides, under every wording."""
  return sum(2 * len(c.positive) * len(getattr(c, part)) for c in contrasts)
