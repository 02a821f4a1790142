"""persona_jax: the same persona by system prompt and by activation steering, at grid scale, in JAX.

    import persona_jax as pj
    model = pj.load("smollm2-135m-instruct")
    d = pj.extract(model, positives, negatives)
    edit = pj.add(d, 0.3, unit="resid", blocks=15, scale=pj.dose(model, prompts))
    model.generate(["Tell me about your weekend."], edits=[edit], max_new_tokens=40)
"""

from persona_jax import _compat

_compat.check_jax_version()

from persona_jax.directions.direction import Direction, compose, load_direction  # noqa: E402
from persona_jax.directions.dose import Dose, dose  # noqa: E402
from persona_jax.directions.extract import extract  # noqa: E402
from persona_jax.edits.compile import compile_edits  # noqa: E402
from persona_jax.edits.edit import (  # noqa: E402
  Edit,
  ablate,
  add,
  cap,
  clamp,
  floor,
  scale,
  set_to,
)
from persona_jax.edits.table import EditTable  # noqa: E402
from persona_jax.edits.window import Window  # noqa: E402
from persona_jax.engine.capture import Capture  # noqa: E402
from persona_jax.engine.collect import project  # noqa: E402
from persona_jax.engine.forward import forward  # noqa: E402
from persona_jax.engine.generate import Generation  # noqa: E402
from persona_jax.engine.grid import Condition, Grid  # noqa: E402
from persona_jax.engine.load import load  # noqa: E402
from persona_jax.engine.model import Model  # noqa: E402
from persona_jax.personas.chat import Raw  # noqa: E402
from persona_jax.runs.run import Run, run  # noqa: E402

__version__ = "0.1.0"
