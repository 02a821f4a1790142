"""Directions that pinned wheels ship, by name."""

from pathlib import Path

from persona_jax.data.wheels import extract_folder

# Name: (wheel, folder in it).
SHIPPED = {"hidden-directions": ("hidden-directions", "hidden_directions/demo_data/qwen2.5-7b")}


def shipped(name: str) -> Path:
  """Return the folder of directions that are shipped under a name.

  "hidden-directions": 40 of Qwen2.5-7B-Instruct (refusal, personas, preferences).

  Raises:
    ValueError: unknown name.
    FileNotFoundError: the wheel was not fetched; the message gives the command that does it.
  """
  if name not in SHIPPED:
    raise ValueError(f"no directions are shipped as {name!r}; there are {list(SHIPPED)}.")
  return extract_folder(*SHIPPED[name])


def path_of(name: str | Path) -> Path:
  """Return a path, or the folder of what is shipped under the name if no such path exists."""
  path = Path(name)
  return path if path.exists() or str(name) not in SHIPPED else shipped(str(name))
