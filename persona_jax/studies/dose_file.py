"""A `Dose` on disk: a study measures it once."""

import json
import os
from pathlib import Path

import numpy as np

from persona_jax.directions.dose import Dose


def write_dose(measured: Dose, path: Path) -> None:
  """Write a dose beside its place and move it there."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(f".{os.getpid()}.partial")
  with partial.open("wb") as file:
    np.savez(
      file,
      resid_L=measured.resid_L,
      sample_LND=measured.sample_LND,
      num_tokens=measured.num_tokens,
      provenance=json.dumps(measured.provenance),
      site=measured.site,
    )
  partial.replace(path)


def read_dose(path: Path) -> Dose:
  """Read a dose that `write_dose` wrote."""
  with np.load(path) as file:
    return Dose(
      file["resid_L"],
      file["sample_LND"],
      int(file["num_tokens"]),
      json.loads(str(file["provenance"])),
      str(file["site"]) if "site" in file else "resid_post",
    )
