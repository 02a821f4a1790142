"""Studies of other models over the same personas and prompts, for the hypotheses that compare."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from persona_jax.stats.outcomes import Outcomes
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.settings import Settings


def prompt_arms(
  settings: Settings, material: Material, directories: Sequence[Path], judged_by: str = ""
) -> tuple[dict[str, Outcomes], dict[str, str]]:
  """Return the prompt arms of other models' studies.

  Args:
    settings, material: of this study.
    directories: of the others, analysed.
    judged_by: `Judges.key` of this study.

  Returns:
    {directory: its prompt arm}, and {directory: why} of those that fail their gates, on which
    nothing may rest.

  Raises:
    FileNotFoundError: a directory holds no analysed study.
    ValueError: one is over other prompts or personas, measures another outcome, or lacks a persona.
  """
  arms: dict[str, Outcomes] = {}
  left_out: dict[str, str] = {}
  for directory in directories:
    blocked = _blocked(settings, material, directory, judged_by)
    if blocked:
      left_out[str(directory)] = f"fails its gates ({blocked})"
    else:
      arms[str(directory)] = _arm(material, directory)
  return arms, left_out


def _blocked(settings: Settings, material: Material, directory: Path, judged_by: str) -> str:
  """Return why nothing may rest on a study, or "", once it is known to be of this one's kind."""
  if not (directory / "tables" / "verdicts.json").exists():
    raise FileNotFoundError(f"{directory} holds no analysed study; run its stages first.")
  there = json.loads((directory / "config.json").read_text())
  hashes = material.hashes()
  differing = [name for name in ("personas", "test") if there["inputs"].get(name) != hashes[name]]
  for name in ("outcome", "labels", "samples", "temperature", "max_new_tokens"):
    if there["settings"].get(name) != getattr(settings, name):
      differing.append(name)
  verdicts = json.loads((directory / "tables" / "verdicts.json").read_text())
  if settings.outcome == "label" and verdicts.get("judged_by", "") != judged_by:
    differing.append("judges")
  if differing:
    raise ValueError(f"{directory} differs in {differing}; its ranking cannot be compared.")
  return str(verdicts["blocked"])


def _arm(material: Material, directory: Path) -> Outcomes:
  personas = [p.name for p in material.personas]
  table = pd.read_parquet(directory / "tables" / "outcomes.parquet")
  lacking = sorted(set(personas) - set(table["persona"]))
  if lacking:
    raise ValueError(f"{directory} has no outcomes of {lacking} (not elicited there).")
  return Outcomes.of(table, "y", arms=["SP"], personas=personas)
