"""*Persona Non Grata*: the same personas by system prompt and by steering, and what each does.

The design of arXiv 2604.11120 with the controls, matches and statistics that its questions need;
method, not replication: layers, coefficients, judge and prompts of that paper are not public.

    extract    directions of personas and of refusal, replicate by replicate     DIR/directions
    calibrate  doses, the block, steering matched to prompting                   DIR/calibration
    generate   every arm on the same prompts                                     DIR/grids
    judge      the answers read again, by judges that may change                 DIR/judgements
    analyse    gates, tables, the four hypotheses                                DIR/tables
    report     a page that shows them, and where each of its numbers is from     DIR/report.html

Each stage reads what the ones before it have written, so it can be run by itself; what is there is
kept.
"""

from persona_jax.studies.persona_non_grata.analysis import Findings, analyse
from persona_jax.studies.persona_non_grata.calibrating import (
  Calibrated,
  calibrate,
  find_block,
  residual_norms,
)
from persona_jax.studies.persona_non_grata.confirm import is_confirm_open, open_confirm
from persona_jax.studies.persona_non_grata.dry import describe, stages, unmeasured
from persona_jax.studies.persona_non_grata.extraction import Extracted, extract
from persona_jax.studies.persona_non_grata.generation import generate, labeller, parts_of
from persona_jax.studies.persona_non_grata.judging import Judged, Judges, judge
from persona_jax.studies.persona_non_grata.material import Material, load_material, start
from persona_jax.studies.persona_non_grata.other_models import prompt_arms
from persona_jax.studies.persona_non_grata.progress import STAGES, require
from persona_jax.studies.persona_non_grata.refusal import Refusal, find_refusal
from persona_jax.studies.persona_non_grata.reporting import Report, report
from persona_jax.studies.persona_non_grata.settings import Settings
from persona_jax.studies.persona_non_grata.summary import screen, write_summary
from persona_jax.studies.persona_non_grata.utility import ask_items
from persona_jax.studies.persona_non_grata.validating import read_annotated, read_labelled

__all__ = [
  "STAGES", "Calibrated", "Extracted", "Findings", "Judged", "Judges", "Material", "Refusal",
  "Report", "Settings", "analyse", "ask_items", "calibrate", "describe", "extract", "find_block",
  "find_refusal", "generate", "is_confirm_open", "judge", "labeller", "load_material",
  "open_confirm", "parts_of", "prompt_arms", "read_annotated", "read_labelled", "report", "require",
  "residual_norms", "screen", "stages", "start", "unmeasured", "write_summary",
]  # fmt: skip
