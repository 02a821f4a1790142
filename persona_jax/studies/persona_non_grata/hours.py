"""Hours of the study on an accelerator, stage by stage, before anything runs."""

import numpy as np

from persona_jax.engine.accelerators import Accelerator, Clock, duration
from persona_jax.engine.model import Model
from persona_jax.studies.persona_non_grata.contrasts import contrasts_of
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.settings import Settings

# Passes over the calibration prompts that one cell takes on a scale: bisection to 5 %.
_SOLVE = 8
# Readings of an answer behind its generation: rated for its trait in both orders of the options,
# read with and without the text that it was given under.
_READINGS = 4


class Hours:
  """Adds up what parts of the study take; answers are taken to be as long as they may be.

  Generated parts are planned (`Plan.seconds`). The rest is counted without sharing, at the mean
  length of a persona's prompt, so that it is too much rather than too little, compilation aside.
  """

  def __init__(self, model: Model, settings: Settings, material: Material, on: Accelerator):
    """Measure prompts, and count the stages before the grid."""
    self._on, self._rows = on, on.rows
    self._clock = Clock(model.params, model.arch, on)
    texts = [f"{material.personas[0].text()} {item.text}" for item in material.test[:32]]
    self._tokens = float(np.mean([len(model.encode(text).ids) for text in texts]))
    self._seconds: dict[str, float] = {}
    self._extract(settings, material)
    self._calibrate(settings, material)

  def add(self, name: str, seconds: float) -> None:
    """Add seconds to a part."""
    self._seconds[name] = self._seconds.get(name, 0.0) + seconds

  def first_tokens(self, name: str, rows: int) -> None:
    """Add exact first tokens of rows to a part."""
    self.add(name, self._clock.prefill(rows * self._tokens) + self._clock.host(rows))

  def answers(self, name: str, rows: int, tokens: int) -> None:
    """Add answers of rows, generated in full batches."""
    decode = self._clock.decode(self._rows, tokens, own=self._tokens + tokens / 2)
    self.first_tokens(name, rows)
    self.add(name, rows / self._rows * decode)

  def readings(self, name: str, rows: int, tokens: int) -> None:
    """Add a pass over answers of rows."""
    self.first_tokens(name, rows)
    self.add(name, self._clock.prefill(rows * tokens))

  def lines(self) -> list[str]:
    """Return a line a part, and their sum."""
    total = sum(self._seconds.values())
    return [
      f"estimated on one {self._on.name}, compilation aside: {duration(total)}",
      *(f"  {name}: {duration(seconds)}" for name, seconds in self._seconds.items()),
    ]

  def _extract(self, settings: Settings, material: Material) -> None:
    pairs = len(contrasts_of(settings, material)) * material.replicates * settings.questions_each
    if settings.source == "answers":
      rows = 2 * pairs * settings.answer_samples
      self.answers("extract", rows, settings.answer_tokens)
      read = self._tokens + settings.answer_tokens
      self.add("extract", self._clock.prefill(_READINGS * rows * read))
    else:
      self.first_tokens("extract", 2 * pairs)

  def _calibrate(self, settings: Settings, material: Material) -> None:
    cells = len(material.personas) * material.replicates
    passes = cells * (len(settings.kappas) + 1 + _SOLVE * len(settings.matches))
    read = self._tokens + settings.calibration_tokens
    self.add("calibrate", self._clock.prefill(passes * settings.calibration_prompts * read))
