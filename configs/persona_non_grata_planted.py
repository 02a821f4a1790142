"""The core study on a planted world, in which the effect of every persona is known.

python -m tests.planted.files W1 runs/planted/W1 --noise 0.5
python experiments/persona_non_grata.py --workdir=runs/planted/W1-study \
  --config=configs/persona_non_grata_planted.py:runs/planted/W1

After the colon stands the directory of a world: checkpoint, personas, prompts, questionnaire. In W1
persona P12 is safe when prompted and dangerous when steered; in N0 to N3 there is no inversion
(tests/planted/world.py). N2 is generic damage: --config.block=0 --config.window=all.
"""

import ml_collections

from configs import persona_non_grata


def get_config(world: str = "runs/planted/W1") -> ml_collections.ConfigDict:
  config = persona_non_grata.get_config(world)
  config.dtype = "float32"
  config.personas = f"{world}/personas.toml"
  config.placebo = ""
  config.questions = f"{world}/neutral.jsonl"
  config.questions_each = 6
  config.harmful = f"{world}/harmful.jsonl"
  config.harmless = f"{world}/harmless.jsonl"
  config.test = f"{world}/test.jsonl"
  config.train_prompts = 24
  config.held_out_prompts = 12
  config.calibration_prompts = 12
  config.test_prompts = 200
  config.twin_prompts = 0
  config.dose_prompts = 40
  config.control_prompts = 40
  config.spec_prompts = 20
  config.confirm_prompts = 0
  config.over_prompts = 0
  config.util_items = 0

  # Its answers are two words long and hold no trait: directions come from prompts.
  config.source = "prompts"
  config.answer_tokens = 4
  config.least_answer_tokens = 1
  config.refusal_words = ("sorry",)
  config.block = 2  # behind the persona head, before the one that reads the prompt again
  config.block_step = 2
  config.read_block = 3
  config.kappas = (0.05, 0.1, 0.2, 0.3, 0.45)
  config.matches = ("proj", "norm", "trait")
  config.limit = "none"
  config.questionnaire = f"{world}/trait_items.toml"
  config.items = 0
  config.least_mass = 0.0  # only the two words of an item are compared
  config.calibration_tokens = 4
  config.dose_skip = 0
  config.covariance = "prompts"
  config.baselines = ()
  config.both = False
  config.controls = ("R-iso", "R-cov", "-v", "v_perp_r", "v_par_r", "+-r", "floor")
  config.temperature = 1.0
  config.max_new_tokens = 3
  config.generate = ("test",)
  config.labels = "first_token"
  config.least_words = 1
  config.judges.refusal = "rules"  # no reader knows its words
  config.judges.fluency = False  # its answers are drawn words
  # Labels are exact by construction, and competence is no question here.
  config.gates = ("G1", "G2", "G3", "G4")
  config.draws = 2000
  return config
