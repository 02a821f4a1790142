"""Scorers of refusal against people's labels: two minutes on two CPU cores.

python experiments/validate_judges.py --config=configs/validate_judges.py --workdir=runs/judges

After the colon stands the reader, which probes and weighs answers; any model.
"""

import ml_collections


def get_config(reader: str = "smollm2-135m-instruct") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.reader = reader
  config.dtype = "float32"
  # The labelled refusals of PyRIT's scorer evaluations (105 and 64 answers); files of one's own,
  # such as XSTest's, may stand beside them (question, text, label).
  config.sets = ("pyrit/refusal", "pyrit/refusal_extra")
  config.folds = 5
  config.draws = 4000
  config.seed = 0
  return config
