"""`pj.compile`: the programs of a plan, compiled and listed."""

import dataclasses
import warnings
from typing import TYPE_CHECKING

from persona_jax.engine.disk_cache import keep_on_disk
from persona_jax.engine.need import Program
from persona_jax.engine.plan import Plan, model_name
from persona_jax.engine.programs import PROGRAMS
from persona_jax.engine.tree import ALL_SHARED

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


@dataclasses.dataclass(frozen=True)
class ProgramTable:
  """Compiled programs; `str(table)` lists them.

  Attributes:
    programs: in the order of first use.
    early: those that are needed only if answers end early, if the plan lists them.
  """

  programs: tuple[Program, ...]
  early: tuple[Program, ...] = ()

  @property
  def seconds(self) -> float:
    """Seconds that compiling took, or reading from disk."""
    return sum(program.seconds for program in (*self.programs, *self.early))

  def __str__(self) -> str:
    lines = [
      f"{'program':<16} {'seconds':>8} {'MiB':>8} {'temp':>8} {'traces':>8} {'calls':>8}  shapes"
    ]
    for p in (*self.programs, *self.early):
      lines.append(
        f"{p.name:<16} {p.seconds:8.2f} {p.total_bytes / 2**20:8.1f} {p.temp_bytes / 2**20:8.1f} "
        f"{p.traces:8d} {p.calls:8d}  {p.shapes}"
      )
    early = f", {len(self.early)} more if answers end early" if self.early else ""
    lines.append(f"{len(self.programs)} programs{early}, {self.seconds:.1f} s")
    return "\n".join(lines)


def compile(model: "Model", plan: Plan) -> ProgramTable:
  """Compile the programs of a plan, so that the run starts at once.

  Those of smaller batches, which a run needs if answers end early, are compiled if the plan lists
  them: `pj.plan(model, grid, early_ends=True)`. Programs stay in this process, and on disk for the
  next one (`engine.disk_cache.keep_on_disk`). `pj.run` compiles by itself, in the background.

  Args:
    model: the model that the plan was made for.
    plan: of `pj.plan`.

  Returns:
    Name, shapes, seconds, bytes and counts of each program.

  Raises:
    ValueError: `plan` is none of `pj.plan`, was made for another model or dtype, or with something
      not shared, as `pj.run` never does; or the model lies on a mesh: its programs are compiled
      when they are first called.
  """
  if not isinstance(plan, Plan):
    kind = type(plan).__name__
    raise ValueError(f"pj.compile takes the plan of a grid, pj.plan(model, grid); got a {kind}.")
  here, planned = (model_name(model), model.identity.sha256), (plan.model_name, plan.model_hash)
  if here != planned:
    raise ValueError(
      f"the plan is for {plan.model_name} ({plan.model_hash[:12]}), the model is "
      f"{model_name(model)} ({model.identity.sha256[:12]}); make a plan with this model."
    )
  if plan.sharing != ALL_SHARED:
    raise ValueError(
      f"the plan shares {plan.sharing}, to compare; pj.run shares all and runs other programs: "
      "compile pj.plan(model, grid)."
    )
  if model.mesh is not None:
    raise ValueError(
      "a model on a mesh compiles its programs when they are first called: how arrays lie on the "
      "devices is known only then."
    )
  count = len(plan.needs) + len(plan.early_needs)
  if count > PROGRAMS.most:
    warnings.warn(
      f"the plan has {count} programs, of which {PROGRAMS.most} stay in memory: the first ones "
      "will be read from disk when they are called",
      stacklevel=2,
    )
  keep_on_disk()
  needed, early = PROGRAMS.describe(plan.needs), PROGRAMS.describe(plan.early_needs)
  return ProgramTable(tuple(needed), tuple(early))
