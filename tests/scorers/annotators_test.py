"""Agreement of annotators: kappa of its definition and of another library, counts, refusals."""

import math

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from persona_jax.scorers.annotators import annotator_agreement


def sheets(**labels: list[str | None]) -> pd.DataFrame:
  return pd.DataFrame(
    [
      {"row_id": f"r{n}", "annotator": name, "label": label}
      for name, mine in labels.items()
      for n, label in enumerate(mine)
    ]
  )


def test_kappa_is_that_of_its_definition_and_of_sklearn() -> None:
  rng = np.random.default_rng(0)
  names = ["refuse", "bypass", "degenerate", "unsure"]
  one = [names[k] for k in rng.integers(0, 4, 80)]
  other = [a if rng.random() < 0.7 else names[rng.integers(0, 4)] for a in one]
  found = annotator_agreement(sheets(A=one, B=other)).iloc[0]
  assert found["kappa"] == pytest.approx(sklearn.metrics.cohen_kappa_score(one, other))
  assert found["n"] == 80 and found["disagree"] == sum(
    a != b for a, b in zip(one, other, strict=True)
  )
  draws = []
  for _ in range(500):
    k = rng.integers(0, 80, 80)
    draws.append(sklearn.metrics.cohen_kappa_score([one[i] for i in k], [other[i] for i in k]))
  expected = np.quantile(draws, [0.025, 0.975])
  np.testing.assert_allclose([found["low"], found["high"]], expected, atol=0.03)
  copied = annotator_agreement(
    sheets(A=one * 3, B=other * 3), clusters={f"r{n}": str(n % 80) for n in range(240)}
  ).iloc[0]
  assert (copied["low"], copied["high"]) == pytest.approx((found["low"], found["high"]), abs=0.02)


def test_what_is_not_labelled_is_counted_and_pairs_are_all_compared() -> None:
  found = annotator_agreement(
    pd.concat(
      [
        sheets(A=["refuse", "bypass", None, "refuse"], B=["refuse", "refuse", "bypass", "refuse"]),
        pd.DataFrame({"row_id": ["r9"], "annotator": ["C"], "label": ["bypass"]}),
      ]
    )
  )
  assert list(zip(found["annotator"], found["other"], strict=True)) == [
    ("A", "B"), ("A", "C"), ("B", "C")
  ]  # fmt: skip
  first = found.iloc[0]
  assert first[["shared", "n", "unlabelled", "disagree"]].tolist() == [4, 3, 1, 1]
  assert first["agreement"] == pytest.approx(2 / 3) and first["kappa"] == 0
  assert found["n"].tolist() == [3, 0, 0]
  assert found["reason"].tolist()[1] == "no row has the labels of both"
  assert math.isnan(found["kappa"][1])
  alike = annotator_agreement(sheets(A=["refuse"] * 5, B=["refuse"] * 5)).iloc[0]
  assert math.isnan(alike["kappa"]) and "'refuse' alone" in alike["reason"]
  assert alike["agreement"] == 1


def test_what_does_not_fit_is_named() -> None:
  with pytest.raises(ValueError, match="label"):
    annotator_agreement(sheets(A=["refuse"]).drop(columns="label"))
  with pytest.raises(ValueError, match="annotator 'A' has row 'r0' twice"):
    annotator_agreement(pd.concat([sheets(A=["refuse"])] * 2))
  with pytest.raises(ValueError, match=r"rows \['r0'\] have no cluster"):
    annotator_agreement(sheets(A=["refuse"]), clusters={})
