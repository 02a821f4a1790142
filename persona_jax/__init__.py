"""persona_jax: the same persona by system prompt and by activation steering, at grid scale, in JAX.

import persona_jax as pj
model = pj.load("smollm2-135m-instruct")
d = pj.extract(model, positives, negatives)
edit = pj.add(d, 0.3, unit="resid", blocks=15, scale=pj.dose(model, prompts))
model.generate(["Tell me about your weekend."], edits=[edit], max_new_tokens=40)
"""

# _compat comes first: on import it refuses a JAX that this package does not support.
from persona_jax import _compat as _compat
from persona_jax.calibration.match import match
from persona_jax.directions.controls import controls
from persona_jax.directions.direction import Direction, compose
from persona_jax.directions.dose import Dose, dose
from persona_jax.directions.extract import extract
from persona_jax.directions.formats.exchange import read_directions, write_directions
from persona_jax.directions.load import load_direction
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.edit import Edit
from persona_jax.edits.gate import Probe
from persona_jax.edits.learned import custom_edit, lm_steer, loreft, low_rank
from persona_jax.edits.operations import (
  ablate,
  ablate_subspace,
  add,
  cap,
  clamp,
  floor,
  renorm_add,
  scale,
  set_to,
)
from persona_jax.edits.ramp import Ramp
from persona_jax.edits.rotation import rotate
from persona_jax.edits.sae import SparseAutoencoder, load_sae, sae_add, sae_clamp
from persona_jax.edits.table import EditTable
from persona_jax.edits.window import Window
from persona_jax.engine.capture import Capture
from persona_jax.engine.collect import project
from persona_jax.engine.compile_plan import ProgramTable, compile
from persona_jax.engine.disk_cache import keep_on_disk
from persona_jax.engine.forward import forward
from persona_jax.engine.gates import resolve_gates
from persona_jax.engine.generate import Generation
from persona_jax.engine.grid import Condition, Grid
from persona_jax.engine.load import load
from persona_jax.engine.model import Model
from persona_jax.engine.moments import Moments
from persona_jax.engine.next_tokens import next_logprobs
from persona_jax.engine.plan import Plan, plan
from persona_jax.engine.trace import EditTrace
from persona_jax.engine.tree import Sharing
from persona_jax.models.family import Family
from persona_jax.personas.chat import Raw
from persona_jax.personas.thinking import split_thinking
from persona_jax.runs.run import Run, run
from persona_jax.sharding import make_mesh

__version__ = "0.1.0"

__all__ = [
  "Capture",
  "Condition",
  "Direction",
  "Dose",
  "Edit",
  "EditTable",
  "Family",
  "EditTrace",
  "Generation",
  "Grid",
  "Model",
  "Moments",
  "Plan",
  "Probe",
  "ProgramTable",
  "Ramp",
  "Raw",
  "Run",
  "Sharing",
  "SparseAutoencoder",
  "Window",
  "__version__",
  "ablate",
  "ablate_subspace",
  "add",
  "cap",
  "clamp",
  "compile",
  "compile_edits",
  "compose",
  "controls",
  "custom_edit",
  "dose",
  "extract",
  "floor",
  "forward",
  "keep_on_disk",
  "lm_steer",
  "load",
  "load_direction",
  "load_sae",
  "loreft",
  "low_rank",
  "make_mesh",
  "match",
  "next_logprobs",
  "plan",
  "project",
  "read_directions",
  "renorm_add",
  "resolve_gates",
  "rotate",
  "run",
  "sae_add",
  "sae_clamp",
  "scale",
  "set_to",
  "split_thinking",
  "write_directions",
]
