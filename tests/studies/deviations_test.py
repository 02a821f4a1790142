"""What the protocol fixes, and which settings depart from it."""

import dataclasses

import pytest

from configs import persona_non_grata
from persona_jax.studies.persona_non_grata.deviations import FREE, PROTOCOL, deviations
from persona_jax.studies.persona_non_grata.settings import Settings


@pytest.fixture(scope="module")
def settings() -> Settings:
  fields = persona_non_grata.get_config().to_dict()
  names = {field.name for field in dataclasses.fields(Settings)}
  return Settings.of({name: value for name, value in fields.items() if name in names})


def test_every_setting_is_of_the_protocol_or_free() -> None:
  fields = {field.name for field in dataclasses.fields(Settings)}
  assert set(PROTOCOL) | set(FREE) == fields
  assert not set(PROTOCOL) & set(FREE)


@pytest.mark.parametrize(
  ("field", "here", "written"),
  [
    ("replicates", 1, "1"),
    ("refusal_positions", 2, "2"),
    ("refusal_words", ("No",), "No"),
    ("read_block", 3, "3"),
    ("kappa", 0.2, "0.2"),
    ("spec_prompts", 0, "0"),
    ("generate", ("test", "confirm"), "test, confirm"),
  ],
)
def test_a_setting_that_departs_is_listed(
  settings: Settings, field: str, here: object, written: str
) -> None:
  assert field not in set(deviations(settings)["field"])
  changed = dataclasses.replace(settings, **{field: here, "outcome": "label"})
  table = deviations(changed).set_index("field")
  assert table.loc[field, "here"] == written


def test_all_replicates_or_more_than_three_keep_to_the_protocol(settings: Settings) -> None:
  for count in (0, 3, 5):
    assert "replicates" not in set(
      deviations(dataclasses.replace(settings, replicates=count))["field"]
    )
