"""A dose comes back from its file as it was."""

from pathlib import Path

import numpy as np

from persona_jax.directions.dose import Dose
from persona_jax.studies.dose_file import read_dose, write_dose

MEASURED = Dose(
  np.array([1.5, 2.5], np.float32),
  np.arange(12, dtype=np.float32).reshape(2, 2, 3),
  7,
  {"model_hash": "ab", "window": "[4:]"},
  "mlp_out",
)


def test_a_dose_comes_back_and_no_partial_file_stays(tmp_path: Path) -> None:
  path = tmp_path / "new" / "dose.npz"
  write_dose(MEASURED, path)
  assert [p.name for p in path.parent.iterdir()] == ["dose.npz"]
  found = read_dose(path)
  np.testing.assert_array_equal(found.resid_L, MEASURED.resid_L)
  np.testing.assert_array_equal(found.sample_LND, MEASURED.sample_LND)
  assert (found.num_tokens, found.site) == (7, "mlp_out")
  assert found.provenance == MEASURED.provenance
  assert found.sigma(1, np.array([1.0, 0, 0])) == MEASURED.sigma(1, np.array([1.0, 0, 0])) == 1.5


def test_a_file_that_names_no_site_is_of_the_residual_stream(tmp_path: Path) -> None:
  path = tmp_path / "dose.npz"
  write_dose(MEASURED, path)
  with np.load(path) as file:
    older = {name: file[name] for name in file.files if name != "site"}
  np.savez(path, **older)
  assert read_dose(path).site == "resid_post"
