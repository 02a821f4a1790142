"""Texts that end an answer."""

import dataclasses

import numpy as np
import pytest
import tokenizers

import persona_jax as pj
from persona_jax.engine.stops import stop_length, stop_place

N = 30


def test_a_text_ends_the_row_where_it_is_whole(tiny):
  (free,) = tiny.model.generate(["w10 w11 w12"], max_new_tokens=N, logprobs=True)
  words = free.text.split()
  # Two and a half words: the text begins and ends inside tokens.
  text = " ".join(words[20:22]) + " " + words[22][:1]
  first = free.text.index(text)
  (g,) = tiny.model.generate(["w10 w11 w12"], max_new_tokens=N, stop=[text], logprobs=True)
  count = stop_length(tiny.model.tokenizer, free.token_ids, [text])
  assert g.text == free.text[:first] and g.finish_reason == "stop"
  assert g.token_ids == free.token_ids[:count] and len(g.logprobs) == count
  whole = tiny.model.tokenizer.decode(list(g.token_ids))
  assert text in whole and text not in tiny.model.tokenizer.decode(list(g.token_ids[:-1]))


def test_what_came_after_the_text_is_not_counted(tiny):
  edit = pj.add(tiny.direction(), 1.0, unit="raw", blocks=1, tokens="generated")
  (free,) = tiny.model.generate(["w10"], edits=[edit], max_new_tokens=N, trace=True)
  text = " ".join(free.text.split()[3:5])
  (g,) = tiny.model.generate(["w10"], edits=[edit], max_new_tokens=N, stop=[text], trace=True)
  n = len(g.token_ids)
  assert n < 10 and g.tokens_edited == n - 1
  np.testing.assert_allclose(g.trace.change_IT, free.trace.change_IT[:, : len(g.trace.offsets_T)])


def test_other_rows_go_on_and_the_first_of_several_texts_counts(tiny):
  prompts = ["w10 w11 w12", "w5", "w20 w21"]
  free = tiny.model.generate(prompts, max_new_tokens=N)
  late, early = (" ".join(free[0].text.split()[a : a + 3]) for a in (25, 8))
  assert not any(text in g.text for g in free[1:] for text in (late, early))
  got = tiny.model.generate(prompts, max_new_tokens=N, stop=[late, early])
  assert got[0].text == free[0].text[: free[0].text.index(early)]
  assert [g.token_ids for g in got[1:]] == [g.token_ids for g in free[1:]]


def test_a_special_token_ends_a_row_by_itself_and_not_within_a_text(tiny):
  backend = tokenizers.Tokenizer.from_str(tiny.model.tokenizer.backend.to_str())
  backend.add_special_tokens(["w7"])
  tokenizer = dataclasses.replace(tiny.model.tokenizer, backend=backend)
  model = dataclasses.replace(tiny.model, tokenizer=tokenizer)
  ends = tokenizer.eos_ids
  assert model.stops(["w7", "w5"]) == ((*ends, 7, 5), ("w7", "w5"))
  with pytest.raises(ValueError, match="'w7 w5' holds the special token 'w7'.* its id 7,"):
    model.stops(["w7 w5"])
  assert tiny.model.stops(["w7 w5"]) == (ends, ("w7 w5",))  # there it is a word like any other


def test_places():
  assert stop_place("one two", ["two", "ne"]) == 1 and stop_place("one", ["x"]) is None
