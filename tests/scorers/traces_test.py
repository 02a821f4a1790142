"""Thought and answer by token ids, and cues in them; the vocabularies are written here."""

import itertools

import numpy as np
import pandas as pd
import pytest
import tokenizers

from persona_jax.checkpoints.tokenizer import Tokenizer
from persona_jax.scorers import Scorer
from persona_jax.scorers.thoughts import Splitter
from persona_jax.scorers.traces import CueLists, TraceCues, load_cues, tenths, validate_cues

WORDS = ("<think>", "</think>", "<eos>", "a", "b", "c", "d")
OPEN, CLOSE, EOS, A, B, C, D = range(7)


def words(special: bool = False) -> Tokenizer:
  """Makes a vocabulary in which both tags are tokens."""
  model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="a")
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tags = WORDS[:3] if special else WORDS[2:3]
  backend.add_special_tokens([tokenizers.AddedToken(w, special=True) for w in tags])
  return Tokenizer(backend, eos_ids=(EOS,))


def characters() -> Tokenizer:
  """Makes a vocabulary of single bytes, in which a tag is several tokens."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  return Tokenizer(backend)


def split(ids, reason="stop", opens=False, special=False):
  splitter = Splitter(words(special), (OPEN, CLOSE), frozenset([EOS]), opens)
  return splitter.split(ids, reason)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("opens", [False, True])
def test_the_first_closing_tag_ends_the_thought(special, opens) -> None:
  ids = [A, B, CLOSE, C, CLOSE, D, EOS] if opens else [OPEN, A, B, CLOSE, C, CLOSE, D, EOS]
  got = split(ids, opens=opens, special=special)
  assert (got.status, got.trace, got.num_think, got.num_answer) == ("ended", "a b", 2, 3)
  assert got.num_ends == 2 and got.answer == ("c d" if special else "c </think> d")
  assert got.prefill == ("a b </think>" if opens else "<think> a b </think>")
  assert list(got.ids) == ids[: ids.index(CLOSE) + 1] == words().encode(got.prefill)


def test_an_opening_that_is_repeated_is_no_part_of_the_thought() -> None:
  got = split([OPEN, A, CLOSE, B], opens=True)
  assert (got.trace, got.num_think, got.answer) == ("a", 1, "b")


def test_thoughts_without_an_end() -> None:
  cut = split([A, B, C], "length", opens=True)
  assert (cut.status, cut.trace, cut.num_think, cut.answer) == ("truncated", "a b c", 3, "")
  assert cut.prefill == "a b c\n</think>"
  ended = split([A, B, EOS], "stop", opens=True)
  assert (ended.status, ended.num_think, ended.prefill) == ("unended", 2, "a b\n</think>")
  # Later on "<think>" is a word like any other, as for the engine.
  none = split([A, OPEN, B, CLOSE, C, EOS])
  assert (none.status, none.trace, none.num_answer, none.prefill) == ("none", "", 5, "")
  empty = split([CLOSE, A], opens=True)
  assert (empty.status, empty.trace, empty.num_think, empty.answer) == ("ended", "", 0, "a")
  with pytest.raises(ValueError, match="'length' or 'stop'"):
    split([A], "eos")


@pytest.mark.parametrize("opens", [False, True])
def test_tags_that_are_no_tokens_are_found_in_the_text(opens) -> None:
  tokenizer = characters()
  splitter = Splitter(tokenizer, (-1, -1), frozenset(), opens)
  text = ("" if opens else "<think>") + "so it is</think>\n\nYes</think>"
  got = splitter.split(tokenizer.encode(text), "stop")
  assert (got.status, got.trace, got.answer) == ("ended", "so it is", "Yes</think>")
  assert (got.num_think, got.num_answer, got.num_ends) == (8, len("\n\nYes</think>"), 2)
  assert got.prefill == text[: text.index("\n\n")]
  assert tokenizer.encode(got.prefill) == list(got.ids)
  cut = splitter.split(tokenizer.encode(text[: text.index("</")]), "length")
  assert (cut.status, cut.trace, cut.num_think) == ("truncated", "so it is", 8)


def scorer(**options) -> TraceCues:
  splitter = Splitter(words(), (OPEN, CLOSE), frozenset([EOS]), True)
  return TraceCues(splitter, CueLists(3, (("bee", ("b",)), ("sea", (r"\bc\b",)))), **options)


def rows(*pairs) -> pd.DataFrame:
  return pd.DataFrame(pairs, columns=["token_ids", "finish_reason"], index=range(5, 5 + len(pairs)))


def test_measures_of_cues() -> None:
  table = rows(([A, B, A, B, A, CLOSE, C, EOS], "stop"), (None, None))
  assert isinstance(scorer(), Scorer)
  got = scorer().score(table)
  assert tuple(got.columns) == scorer().columns and list(got.index) == [5, 6]
  first = got.loc[5]
  assert (first["n_think_tokens"], first["n_answer_tokens"], first["cue_version"]) == (5, 1, 3)
  assert first["bee_per_100"] == 40 and first["sea_per_100"] == 0
  # "a b a b a": characters 2 and 6 of 9.
  assert first["bee_at"] == pytest.approx([2 / 9, 6 / 9]) and first["bee_first"] == 2 / 9
  assert first["bee_last_third"] and not first["sea_last_third"] and np.isnan(first["sea_first"])
  missing = got.loc[6]
  assert missing["trace_reason"] == "no generated tokens" and pd.isna(missing["n_think_tokens"])
  assert pd.isna(missing["bee_last_third"]) and np.isnan(missing["bee_per_100"])


def test_positions_are_missing_where_the_end_is_not_known() -> None:
  table = rows(([A, B, A, A], "length"), ([CLOSE, A], "stop"))
  got = scorer().score(table).loc[5]
  assert got["bee_per_100"] == 25 and np.isnan(got["bee_first"]) and got["bee_at"] is None
  assert pd.isna(got["bee_last_third"]) and "budget ended inside" in got["trace_reason"]
  closed = scorer(ends_at_budget=True).score(table).loc[5]
  assert closed["bee_first"] == 2 / 7 and closed["trace_reason"] == ""
  assert scorer().score(table).loc[6, "trace_reason"] == "the thought is empty"
  assert np.isnan(scorer().score(table).loc[6, "bee_per_100"])


def test_tenths() -> None:
  assert tenths([0, 0.05, 0.1, 0.999, 1.0]).tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
  assert tenths([]).tolist() == [0] * 10


def test_cues_are_kept_from_kappa_six_tenths_on() -> None:
  lists = CueLists(1, (("bee", ("b",)), ("sea", ("c",)), ("dee", ("d",))))
  judged = pd.DataFrame(
    [("b", "bee", True)] * 4 + [("a", "bee", False)] * 4 + [("b", "bee", False)]
    + [("c", "sea", True), ("c", "sea", False), ("a", "sea", True), ("a", "sea", False)]
    + [("a", "bee", None)],
    columns=["text", "cue", "label"],
  )  # fmt: skip
  table = validate_cues(lists, judged).set_index("cue")
  bee, sea, dee = (table.loc[cue] for cue in ("bee", "sea", "dee"))
  assert (bee["n"], bee["precision"], bee["recall"], bee["kept"]) == (9, 0.8, 1, True)
  # 8/9 observed; by chance (5·4 + 4·5)/81.
  assert bee["kappa"] == pytest.approx((8 / 9 - 40 / 81) / (1 - 40 / 81))
  assert (sea["kappa"], sea["kept"]) == (0, False) and "0.00 < 0.6" in sea["reason"]
  assert dee["n"] == 0 and not dee["kept"] and dee["reason"]
  assert scorer().validate(judged.query("cue != 'dee'"))["cue_version"] == 3
  with pytest.raises(ValueError, match="no cues"):
    validate_cues(lists, judged.assign(cue="x"))


# Of each of our lists, sentences that it finds and near ones that it does not.
OWN = {
  "policy_recall": (
    ("This goes against our guidelines.", "As an AI assistant, I should decline."),
    ("The policy of the central bank matters here.", "They follow a recipe."),
  ),
  "harm_recognition": (
    ("That could seriously hurt someone.", "It is illegal."),
    ("Legal questions like this are common.", "It hardly matters."),
  ),
  "self_correction": (
    ("It is four. Wait, that is five.", "Hmm, no."),
    ("They wait for the bus.", "No one knows why."),
  ),
  "commitment_to_comply": (
    ("I\u2019ll write a short list.", "Here's how to do it."),
    ("I can't write that.", "I will not explain it."),
  ),
}


@pytest.mark.parametrize("cue", list(OWN))
def test_our_own_lists(cue) -> None:
  lists = load_cues()
  assert lists.names == tuple(OWN) and lists.version >= 1
  found, not_found = OWN[cue]
  assert [bool(lists.starts(text)[cue]) for text in found] == [True] * len(found)
  assert [bool(lists.starts(text)[cue]) for text in not_found] == [False] * len(not_found)


def test_files_of_cues_say_what_fits(tmp_path) -> None:
  file = tmp_path / "cues.toml"
  for text, said in itertools.zip_longest(
    ("version = 1", "version = 1\n[cues]\nx = 'y'", "version = 1\n[cues]\nx = ['(']", "[cues]"),
    ("'version' and a table", "lists of patterns", "no regular expression", "'version'"),
  ):
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
      load_cues(file)
