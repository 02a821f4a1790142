"""Settings of a study from the fields of a config."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def settings_of(cls: type[T], fields: Mapping[str, Any]) -> T:
  """Make a dataclass of settings of exactly its fields.

  Raises:
    ValueError: a field is unknown or missing, or as the class says.
  """
  names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
  unknown, missing = sorted(set(fields) - names), sorted(names - set(fields))
  if unknown or missing:
    raise ValueError(
      f"the study has no settings {unknown}, and lacks {missing}; it has {sorted(names)}."
    )
  return cls(**fields)
