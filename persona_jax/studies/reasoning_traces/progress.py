"""Which stages of a study have been run, so that one can be run by itself."""

from collections.abc import Sequence
from pathlib import Path

STAGES = ("think", "answer", "analyse")
_DONE = {"think": "thoughts.parquet", "answer": "answers.parquet"}


def require(asked: Sequence[str], directory: Path) -> None:
  """Check that every stage before the last one asked for is asked for too, or has been run.

  Raises:
    ValueError: no stage, an unknown one, or one before the last that was not run to its end.
  """
  unknown = [stage for stage in asked if stage not in STAGES]
  if unknown or not asked:
    raise ValueError(f"stages {unknown or 'are none'}: use some of {list(STAGES)}.")
  last = max(STAGES.index(stage) for stage in asked)
  lacking = [s for s in STAGES[:last] if s not in asked and not (directory / _DONE[s]).exists()]
  if lacking:
    raise ValueError(
      f"{directory}: the stages {lacking} have not been run to their end; name them too (--stages)."
    )
