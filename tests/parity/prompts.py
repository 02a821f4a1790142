"""The sixteen chats on which our model and transformers are compared, and what is scored after.

Short and long, with and without a system message, one and several turns, code, scripts other than
Latin, digits, white space, and answers that are already started. Harmless all.
"""

from collections.abc import Mapping

from persona_jax.data.hashing import content_hash

Message = Mapping[str, str]

_STORY = (
  "The lighthouse keeper had counted ships for thirty years, and in all that time he had never "
  "been wrong by more than one. On the evening the fog came in from the north he lit the lamp "
  "early, wound the clock, and sat down with his book. At nine he heard a horn where no horn "
  "should be, close to the rocks on the landward side. He took his lantern and went down the two "
  "hundred and twelve steps to the shore, where the water was flat as slate. There was no ship. "
  "There was a boy of about ten in a rowing boat, blowing into a seashell, who asked whether this "
  "was the island with the library."
)

_CODE = """\
```python
def mean(values: list[float]) -> float:
  total = 0.0
  for i in range(1, len(values)):
    total += values[i]
  return total / len(values)
```
"""


def _chat(*turns: str) -> list[Message]:
  """Reads "s: …", "u: …" and "a: …" as messages."""
  names = {"s": "system", "u": "user", "a": "assistant"}
  return [{"role": names[turn[0]], "content": turn[3:]} for turn in turns]


PROMPTS: dict[str, list[Message]] = {
  "greeting": _chat("u: Hi"),
  "one character": _chat("u: ?"),
  "fact": _chat("u: What is the capital of France?"),
  "open question": _chat("u: How do you like to spend a rainy Saturday afternoon?"),
  "system": _chat(
    "s: You are careful and well organised. You plan ahead and keep every promise.",
    "u: My desk is a mess. Where should I start?",
  ),
  "empty system": _chat("s: ", "u: Name three rivers in Africa."),
  "turns": _chat(
    "u: Let's play a word game. I say a colour and you name a fruit.",
    "a: That sounds fun! Go ahead.",
    "u: Yellow.",
    "a: Banana!",
    "u: Purple.",
  ),
  "system and turns": _chat(
    "s: Answer in one short sentence.",
    "u: Why is the sky blue?",
    "a: Air scatters blue light more than red.",
    "u: And at sunset?",
  ),
  "code": _chat(f"u: This function gives the wrong mean. Why?\n\n{_CODE}"),
  "json": _chat('u: Add a key "year" to {"title": "Emma", "pages": 474, "tags": ["novel", null]}'),
  "numbers": _chat("u: 17 * 23 = 391, 1024 / 8 = 128, and 3.14159 * 2 = ?"),
  "white space": _chat("u:  \tfirst\n\n\n  second   third \r\n- a\n    - b\n"),
  "scripts": _chat(
    "u: Traduis « où est la gare ? » en 日本語, русский, العربية, हिन्दी ou ελληνικά. "
    "🚉👩🏽‍🚀 Merci — naïvely!"
  ),
  "story": _chat(f"u: {_STORY}\n\nTell me in two sentences what happened."),
  "started answer": _chat("u: Write a short poem about the sea.", "a: The grey waves roll\nand"),
  "started code": _chat(
    "s: You write Python.",
    "u: A function that reverses the words of a sentence, please.",
    "a: ```python\ndef reverse_words(sentence: str) -> str:\n ",
  ),
}

# Every continuation is scored after every prompt. It follows the prompt's tokens as it stands.
CONTINUATIONS: tuple[str, ...] = (
  "Yes",
  "I would rather talk about something else, if you don't mind.",
  "1, 2, 3\n\n* été 東京 🙂",
)

# What the steered check runs, and how hard: coefficient of a vector as long as a typical residual.
STEERED: dict[str, float] = {
  "open question": 0.5,
  "system and turns": -0.5,
  "started answer": 1.0,
  "code": -0.25,
}


def prompts_hash() -> str:
  """Returns a sha256 of the prompts, in order."""
  return content_hash(list(PROMPTS.items()))
