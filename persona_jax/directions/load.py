"""`pj.load_direction`: one direction of a file in any format, checked against a model."""

from pathlib import Path

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.exchange import read_directions
from persona_jax.engine.model import Model


def load_direction(
  path: str | Path,
  *,
  model: Model | None = None,
  allow_other_model: bool = False,
  format: str | None = None,
) -> Direction:
  """Read a direction of ours (`Direction.save`) or of another tool.

  Args:
    path: the file: safetensors, a GGUF control vector, or a `.pt` file of persona_vectors,
      assistant-axis, refusal_direction or hidden-directions, or a folder of repsteer. Block numbers
      become ours.
    model: if given, the direction must have its width and number of blocks, and must not have been
      made on other weights, as far as the file says. Without it nothing is compared here;
      `pj.compile_edits`, and with it every call that takes edits, refuses a direction of another
      width or number of blocks in any case.
    allow_other_model: accept a direction that was made on other weights, as for a transfer between
      a base model and its fine-tune.
    format: a key of `persona_jax.directions.formats.exchange.FORMATS`, where the file does not show
      which it is.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no direction file, holds several (`read_directions` reads those), is damaged,
      or does not fit the model.

  Warns:
    FormatWarning: of what is left out or is not what it seems.
  """
  path = Path(path)
  if not path.exists():
    raise FileNotFoundError(f"no direction file at {path}.")
  num_blocks = None if model is None else model.arch.num_blocks
  directions = read_directions(path, format, num_blocks=num_blocks)
  if len(directions) > 1:
    names = [d.concept for d in directions]
    raise ValueError(
      f"{path} holds {len(names)} directions, {names[:8]}; read_directions reads them all."
    )
  (direction,) = directions
  if model is not None:
    _check(path, direction, model, allow_other_model)
  return direction


def _check(path: Path, direction: Direction, model: Model, allow_other_model: bool) -> None:
  """Raise ValueError if a direction does not fit a model or is of other weights."""
  expected = (model.arch.num_blocks, model.arch.site_width(direction.site))
  if direction.vectors_SLD.shape[1:] != expected:
    raise ValueError(
      f"{path}: direction {direction.concept!r} is {direction.vectors_SLD.shape[1:]} "
      f"[blocks, width]; the model is {expected}."
    )
  made_on = direction.provenance.get("model_hash")
  if made_on not in (None, model.identity.sha256) and not allow_other_model:
    raise ValueError(
      f"{path}: direction {direction.concept!r} was made on "
      f"{direction.provenance.get('model')!r} (sha256 {str(made_on)[:12]}…), this model is "
      f"{model.identity.name!r} ({model.identity.sha256[:12]}…); pass allow_other_model=True if "
      "that is meant."
    )
