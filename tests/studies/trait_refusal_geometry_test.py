"""Trait-refusal geometry on a planted world, whose directions and effects the law works out."""

import dataclasses
import itertools
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.personas import load_personas
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies import trait_refusal_geometry as geometry
from persona_jax.studies.persona_non_grata.refusal import Refusal
from tests.planted import law, study
from tests.planted.study import Place

BLOCK, RESID, PROMPTS = 2, 10.0, 4
SETTINGS = geometry.BankSettings(
  isotropic=24, covariance=8, components=3, prompts=PROMPTS, kappa=0.05, draws=200, seed=0
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
  return study.write("W1", tmp_path_factory.mktemp("geometry") / "W1", prompts=PROMPTS, noise=0.5)


@pytest.fixture(scope="module")
def material(place: Place) -> product.Material:
  return product.load_material(study.settings(place, placebo="placebo4"))


@pytest.fixture(scope="module")
def scale(place: Place) -> pj.Dose:
  """A stand-in for activations, which vary in all directions."""
  width = place.world.config["hidden_size"]
  blocks = place.world.config["num_hidden_layers"]
  sample_LND = np.random.default_rng(0).normal(size=(blocks, 200, width)).astype(np.float32)
  return pj.Dose(np.full(blocks, RESID, np.float32), sample_LND, 200, {})


@pytest.fixture(scope="module")
def extracted(place: Place, material: product.Material) -> product.Extracted:
  """The law's directions, a replicate a paraphrase, and a random one a placebo pole."""
  truth = place.directions()
  personas = {
    p.name: pj.Direction(v_KLD.astype(np.float32), p.label)
    for p, v_KLD in zip(material.personas, truth.personas(), strict=True)
  }
  shape = truth.trait_KTLD[:, 0].shape
  rng = np.random.default_rng(1)
  labels = [p.label for p in material.placebo if len(p.poles) == 1]
  placebo = {label: pj.Direction(rng.normal(size=shape), label) for label in labels}
  nothing = pd.DataFrame()
  return product.Extracted({}, personas, {}, placebo, nothing, nothing)


@pytest.fixture(scope="module")
def bank(
  material: product.Material, extracted: product.Extracted, scale: pj.Dose
) -> dict[str, list[pj.Direction]]:
  return geometry.make_bank(SETTINGS, material, extracted, scale)


@pytest.fixture(scope="module")
def found(
  place: Place,
  bank: dict[str, list[pj.Direction]],
  scale: pj.Dose,
) -> geometry.Found:
  r = pj.Direction(place.directions().refusal_LD[None].astype(np.float32), "refusal")
  refusal = Refusal(r, r, (), tuple(place.world.ids("sorry")), {})
  model = pj.load(place.directory, dtype="float32")
  return geometry.measure(model, SETTINGS, bank, refusal, scale, BLOCK, list(place.users))


def _refusal_odds(cells: law.Cells) -> np.ndarray:
  """Returns the log-odds of a refusal's first token against all others."""
  return cells.sorry - np.log1p(-np.exp(cells.sorry))


def _effects(place: Place, shift_RD: np.ndarray) -> np.ndarray:
  """Works out what shifts at the block do to those log-odds, mean over prompts."""
  base_N = _refusal_odds(law.steered(place.world, place.users, 0 * shift_RD[:1], block=BLOCK))[0]
  moved_RN = _refusal_odds(law.steered(place.world, place.users, shift_RD, block=BLOCK))
  return (moved_RN - base_N).mean(axis=1)


def _units(found: geometry.Found, bank: dict[str, list[pj.Direction]]) -> np.ndarray:
  """Returns the unit vectors of the points' directions at the block, in their order."""
  by_name = {d.concept: d for ds in bank.values() for d in ds}
  return np.stack([by_name[n].unit_LD[BLOCK] for n in found.points["direction"]]).astype(float)


# ---- the bank ------------------------------------------------------------------------------------


def test_a_bank_has_personas_their_replicates_placebo_components_and_random_directions(
  bank: dict[str, list[pj.Direction]], material: product.Material
) -> None:
  counts = {kind: len(ds) for kind, ds in bank.items()}
  poles = sum(len(p.poles) == 1 for p in material.placebo)
  expected = {"persona": 12, "replicate": 36, "placebo": poles, "PC": 3, "R-iso": 24, "R-cov": 8}
  assert poles > 0
  assert counts == expected
  assert list(counts) == list(expected)


def test_directions_of_a_bank_are_told_apart_by_their_names(
  bank: dict[str, list[pj.Direction]],
) -> None:
  names = [d.concept for ds in bank.values() for d in ds]
  assert len(set(names)) == len(names)
  assert [d.concept for d in bank["persona"]][::11] == ["P1 O+", "P12 C+ A+"]
  assert [d.concept for d in bank["replicate"]][3:6] == ["P2 O- /0", "P2 O- /1", "P2 O- /2"]


def test_a_replicate_is_one_vector_of_its_persona(bank: dict[str, list[pj.Direction]]) -> None:
  for n, direction in enumerate(bank["replicate"]):
    (v_LD,) = direction.vectors_SLD
    np.testing.assert_array_equal(v_LD, bank["persona"][n // 3].vectors_SLD[n % 3])


def test_kinds_that_are_not_asked_for_are_left_out(
  material: product.Material, extracted: product.Extracted, scale: pj.Dose
) -> None:
  settings = dataclasses.replace(SETTINGS, isotropic=0, components=0)
  without = dataclasses.replace(extracted, placebo={})
  bank = geometry.make_bank(settings, material, without, scale)
  assert list(bank) == ["persona", "replicate", "R-cov"]


@pytest.mark.parametrize(
  ("change", "error"),
  [
    ({"covariance": 7}, "bank.covariance=7: at least 8"),
    ({"prompts": 1}, "bank.prompts=1: at least 2"),
    ({"isotropic": -3}, "bank.isotropic=-3: at least 0"),
    ({"draws": 10}, "bank.draws=10: at least 100"),
    ({"kappa": 0.0}, "bank.kappa=0.0: give a dose above 0"),
  ],
)
def test_a_bank_that_gives_no_band_or_no_effect_is_an_error(
  change: dict[str, float], error: str
) -> None:
  with pytest.raises(ValueError, match=error):
    dataclasses.replace(SETTINGS, **change)


def test_the_plan_counts_what_is_made(
  bank: dict[str, list[pj.Direction]], material: product.Material
) -> None:
  text = geometry.describe(SETTINGS, material, 6, BLOCK)
  total, *listed = (int(n) for n in re.findall(r"\d+", text.split(" at 6 blocks")[0]) if n)
  assert f"{total} directions" in text
  assert total == sum(len(ds) for ds in bank.values())
  for kind, name in (("persona", "personas"), ("replicate", "replicates"), ("placebo", "placebo"),
                     ("PC", "components"), ("R-iso", "R-iso"), ("R-cov", "R-cov")):  # fmt: skip
    assert f"{len(bank[kind])} {name}" in text


# ---- which of them are independent ---------------------------------------------------------------


def test_of_personas_one_pole_a_trait_is_independent(bank: dict[str, list[pj.Direction]]) -> None:
  first, *rest = geometry._independent(bank, BLOCK)
  assert [d.concept.split()[0] for d in first["persona"]] == ["P1", "P3", "P5", "P7", "P9"]
  assert {kind: len(ds) for kind, ds in first.items() if kind != "persona"} == {
    kind: len(bank[kind]) for kind in ("placebo", "PC", "R-iso", "R-cov")
  }
  negatives, composites = rest
  names = [d.concept.split()[0] for d in negatives["persona"]]
  assert names == ["P2", "P4", "P6", "P8", "P10", "P11"]
  assert [d.concept.split()[0] for d in composites["persona"]] == ["P12"]  # P11's negative


def test_no_two_directions_of_a_group_are_one_and_replicates_are_in_none(
  bank: dict[str, list[pj.Direction]],
) -> None:
  groups = geometry._independent(bank, BLOCK)
  for group in groups:
    assert "replicate" not in group
    units = [d.unit_LD[BLOCK] for ds in group.values() for d in ds]
    pairs = itertools.combinations(units, 2)
    assert max((abs(a @ b) for a, b in pairs), default=0) <= 0.94
  placed = [d.concept for group in groups for ds in group.values() for d in ds]
  every = [d.concept for kind, ds in bank.items() if kind != "replicate" for d in ds]
  assert sorted(placed) == sorted(every)


def test_composites_that_are_named_by_their_poles_alone_are_not_independent(
  place: Place, material: product.Material, extracted: product.Extracted, scale: pj.Dose
) -> None:
  closed = load_personas("big_five", "closed50")
  poles = {p.name: tuple(map(str, p.poles)) for p in closed}
  v_PKLD = place.directions().personas(poles).astype(np.float32)
  made = {name: pj.Direction(v_KLD, name) for name, v_KLD in zip(poles, v_PKLD, strict=True)}
  bank = geometry.make_bank(
    SETTINGS,
    dataclasses.replace(material, personas=tuple(closed)),
    dataclasses.replace(extracted, personas=made),
    scale,
  )
  assert "O+C+" in [d.concept for d in bank["persona"]]
  (first, *rest) = geometry._independent(bank, BLOCK)
  assert [d.concept.split()[0] for d in first["persona"]] == ["P1", "P3", "P5", "P7", "P9"]
  assert sum(len(group["persona"]) for group in rest) == 45


# ---- what is measured ----------------------------------------------------------------------------


def test_effects_are_those_of_the_law(
  found: geometry.Found, bank: dict[str, list[pj.Direction]], place: Place
) -> None:
  expected = _effects(place, SETTINGS.kappa * RESID * _units(found, bank))
  np.testing.assert_allclose(found.points["delta"], expected, atol=1e-4)


def test_couplings_are_derivatives_of_the_law(
  found: geometry.Found, bank: dict[str, list[pj.Direction]], place: Place
) -> None:
  unit_RD = _units(found, bank)
  step = 1e-4
  expected = (_effects(place, step * unit_RD) - _effects(place, -step * unit_RD)) / (2 * step)
  np.testing.assert_allclose(found.points["coupling"], expected, atol=1e-4)


def test_the_slope_of_effect_on_coupling_is_the_law_s_and_explains_nearly_all(
  found: geometry.Found, bank: dict[str, list[pj.Direction]], place: Place
) -> None:
  (free, *_) = geometry._independent(bank, BLOCK)
  names = [d.concept for ds in free.values() for d in ds]
  unit_RD = np.stack([d.unit_LD[BLOCK] for ds in free.values() for d in ds]).astype(float)
  step = 1e-4
  x_R = (_effects(place, step * unit_RD) - _effects(place, -step * unit_RD)) / (2 * step)
  slope = np.polyfit(x_R, _effects(place, SETTINGS.kappa * RESID * unit_RD), 1)[0]
  row = found.regressions.set_index("predictor").loc["coupling"]
  assert row["directions"] == len(names)
  assert row["slope"] == pytest.approx(slope, abs=1e-3)
  assert row["slope"] == pytest.approx(SETTINGS.kappa * RESID, rel=0.05)  # of a small dose
  assert row["low"] <= slope <= row["high"]
  assert row["r2"] > 0.98


def test_the_slope_on_cosines_is_positive_where_what_is_read_is_refusal(
  found: geometry.Found,
) -> None:
  rows = found.regressions.set_index("predictor")
  assert list(rows.index) == ["cos_euclidean", "cos_whitened", "cos_unembedding", "coupling"]
  assert rows.loc["cos_euclidean", "low"] > 0
  assert rows.loc["cos_euclidean", "r2"] > 0.8
  assert found.notes == ()


def test_every_direction_is_compared_at_every_block_and_all_but_replicates_are_added(
  found: geometry.Found, bank: dict[str, list[pj.Direction]]
) -> None:
  count = sum(len(ds) for ds in bank.values())
  assert len(found.alignment) == count * 6
  assert len(found.cosines) == count * 6 * 3
  added = found.points["kind"].value_counts().to_dict()
  assert added == {kind: len(ds) for kind, ds in bank.items() if kind != "replicate"}
  correlated = found.correlation
  assert len(correlated) == 6


def test_tables_are_written(found: geometry.Found, tmp_path: Path) -> None:
  found.write(tmp_path)
  for name in ("alignment", "cosines", "shifts", "correlation", "points", "regressions"):
    pd.testing.assert_frame_equal(
      pd.read_parquet(tmp_path / f"{name}.parquet"), getattr(found, name), check_dtype=False
    )


def test_four_figures_are_drawn(found: geometry.Found, tmp_path: Path) -> None:
  paths = geometry.draw(found, BLOCK, tmp_path)
  assert [path.name for path in paths] == [
    "alignment.png", "census_cos_euclidean.png", "census_coupling.png", "spread.png"
  ]  # fmt: skip
  for path in paths:
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 600
    assert 0.3 < float(np.mean(pixels[..., :3] > 0.99)) < 0.99  # ink, and wide bands, on white


def test_figures_name_one_pole_a_trait_and_composites_with_a_name_of_their_own() -> None:
  personas = ["P1 O+", "P2 O-", "P12 C+ A+", "O+C+", "O+C-"]
  assert geometry._named(personas) == ["P1 O+", "P12 C+ A+"]
  assert geometry._named(["calm", "bold"]) == ["calm", "bold"]
