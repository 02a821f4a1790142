"""Languages by their function words: seven told apart, and nothing said of what is not plain."""

import pytest

from persona_jax.data.labelled import load_labelled
from persona_jax.scorers import Degenerate
from persona_jax.scorers.language import FUNCTION_WORDS, language_of

TEXTS = {
  "english": "Fill the kettle, warm the pot, and let the leaves stand for three minutes before you "
  "pour it. If it is too strong, add some water.",
  "german": "Füllen Sie den Kessel, wärmen Sie die Kanne und lassen Sie die Blätter drei Minuten "
  "ziehen. Wenn der Tee zu stark ist, geben Sie etwas Wasser dazu.",
  "french": "Remplissez la bouilloire, chauffez la théière et laissez les feuilles infuser pendant "
  "trois minutes. Si le thé est trop fort, ajoutez un peu d'eau.",
  "spanish": "Llena la tetera, calienta la jarra y deja que las hojas reposen durante tres minutos "
  "antes de servir. Si el té es muy fuerte, añade un poco de agua.",
  "italian": "Riempi il bollitore, scalda la teiera e lascia le foglie in infusione per tre minuti "
  "prima di versare. Se il tè è troppo forte, aggiungi un po' di acqua.",
  "portuguese": "Encha a chaleira, aqueça o bule e deixe as folhas em repouso por três minutos "
  "antes de servir. Se o chá é muito forte, coloque um pouco de água no copo.",
  "dutch": "Vul de ketel, verwarm de pot en laat de blaadjes drie minuten trekken voor je het "
  "inschenkt. Is de thee te sterk, doe er dan wat water bij.",
}
QUESTION = "How do you make a pot of tea?"


@pytest.mark.parametrize("name", list(FUNCTION_WORDS))
def test_each_language_is_told_and_is_a_change_from_another(name: str) -> None:
  assert language_of(TEXTS[name]) == name
  reason = "" if name == "english" else "language_change"
  assert Degenerate().reason_of(TEXTS[name], QUESTION) == reason
  assert Degenerate().reason_of(TEXTS[name]) == ""


@pytest.mark.parametrize(
  "text", ["", "12 + 9", "Rome, Oslo, Lima, Kyiv, Delhi.", "Jó napot kívánok!"]
)
def test_nothing_is_said_of_what_is_not_plain(text: str) -> None:
  assert language_of(text) is None


def test_a_short_answer_or_one_half_in_another_language_is_no_change() -> None:
  few = "Llena la tetera y deja que las hojas reposen un poco"
  assert Degenerate().reason_of(few, QUESTION) == ""
  assert Degenerate(language_from=11).reason_of(f"{few}.", QUESTION) == "language_change"
  half = f"{TEXTS['english']} {TEXTS['spanish']}"
  assert language_of(half) is None and Degenerate().reason_of(half, QUESTION) == ""


def test_of_564_labelled_answers_the_one_in_german_is_another_language() -> None:
  found = []
  for name in ("pyrit/refusal", "pyrit/refusal_extra", "pyrit/objective"):
    found += [language_of(text) for text in load_labelled(name)["text"]]
  assert len(found) == 564 and found.count("english") > 530
  # The answer to a request for a translation, asked for in English.
  assert [x for x in found if x not in ("english", None)] == ["german"]
