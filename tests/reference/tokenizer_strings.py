"""Strings that tell tokenizers apart: the same list in every run and on every Python.

Non-ASCII characters that are hard to see or to edit are written as escapes.
"""

import itertools

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>")

_WHITE = (
  " ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003",
  "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff",
  "\u180e", "\u2060",
)  # fmt: skip

_ENGLISH = (
  "Hello", " Hello", "hello world", "Hello, world!",
  "The quick brown fox jumps over the lazy dog.", "I'm", "you're", "we've", "they'll", "he'd",
  "isn't", "it's", "I'M", "IT'S", "YOU'RE", "O'Reilly's", "'tis", "rock 'n' roll",
  "'s't're've'm'll'd", "' s", "''s", "she's've'd", "\u2019s", "don\u2019t", "'\u017f",
  "antidisestablishmentarianism", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  "zzzzzzz zzzzz zz z", "CamelCaseIdentifier", "SHOUTING AT THE TOP", "mIxEd CaSe", "end.",
  "wait...", "what?!?!", "e.g., i.e., etc.", "(parenthesised [nested {text}])",
  "\"quoted\" 'text'", "\u201cquoted\u201d \u2018text\u2019", "a-b--c---d", "em\u2014dash", "user",
  "assistant", "system", "user\n", "\nuser", "How do you like to spend a Saturday evening?",
)  # fmt: skip

_NUMBERS = (
  "0", "7", "42", "123", "1234", "1234567890", "3.14159", "-1", "+1", "1e-5", "1,000,000",
  "$19.99", "50%", "2024-05-17", "12:34:56", "a1b2c3", "x86_64", "0xDEADBEEF", "1st 2nd 3rd", " 1",
  "  1", "1 ", "1  2", "a  1", "007", "v1.2.3-rc4", "\u0661\u0662\u0663", "\u0967\u0968\u0969",
  "\u00b2\u00b3\u00b9", "\u00bd\u00bc\u00be", "\u2160\u2161\u2162\u2163", "\u2460\u2461",
  "\u4e00\u4e8c\u4e09", "\uff11\uff12\uff13", "\U0001d7d8\U0001d7d9", "\U00010107",
  "x\u00b2+y\u00b2", "9" * 50, "3" * 7 + "\n" + "4" * 8, "\u3007", "\u0bf0", "\U0001f100",
)  # fmt: skip

_SCRIPTS = (
  "\u00e9", "e\u0301", "\u00e9e\u0301", "caf\u00e9", "cafe\u0301", "na\u00efve",
  "\u00c5ngstr\u00f6m", "A\u030angstro\u0308m", "\u212bngstr\u00f6m", "stra\u00dfe", "STRASSE",
  "\u0130stanbul", "\u0131", "\ufb01ne", "\u017fet", "\u1e9e", "\u01c5", "o\u0302\u0323",
  "o\u0323\u0302",
  "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e\u0349\u035a"
  "\u032f\u031e\u0320\u034dA\u036b\u0357\u0334\u0362\u0335\u031c\u0330\u0354L",
  "\u0301", " \u0301", "a \u0301", "\u4f60\u597d", "\u4f60\u597d\uff0c\u4e16\u754c\uff01",
  "\u6771\u4eac\u90fd", "\u3053\u3093\u306b\u3061\u306f", "\u30ab\u30bf\u30ab\u30ca",
  "\uff76\uff9e", "\uff36\uff29\uff30", "\uc548\ub155\ud558\uc138\uc694", "\u1112\u1161\u11ab",
  "\u3072\u3089 \u304c\u306a", "\U00020000\U0002a6d6",
  "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
  "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
  "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
  "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "abc \u05d0\u05d1\u05d2 123 \u05d3",
  "\u202eright to left\u202c", "\u200fmark\u200e", "\u2067isolate\u2069",
  "\u0627\u0644\u0633\u0639\u0631 \u0663\u066b\u0661\u0664",
  "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
  "\u0399\u03bf\u03cd\u03bd\u03b9\u03bf\u03c2",
  "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0",
  "\u0540\u0561\u0575\u0565\u0580\u0565\u0576",
  "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
  "\u0b95\u0bcd\u0bb7\u0bc1", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
  "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
  "\u1780\u1798\u17d2\u1796\u17bb\u1787\u17b6", "\u1019\u103c\u1014\u103a\u1019\u102c",
  "\u0f56\u0f7c\u0f51", "\u1830\u1822\u1833", "\u13e3\u13b3\u13a9", "\U00010330\U00010331",
  "\U0001d504\U0001d51f\U0001d520", "\u16a0\u16c7\u16bb",
)  # fmt: skip

_SYMBOLS = (
  "\U0001f600", "\U0001f600\U0001f601\U0001f602", "hi\U0001f44b", " \U0001f44b ",
  "\U0001f44b\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
  "\U0001f9d1\U0001f3ff\u200d\U0001f4bb", "\U0001f3f3\ufe0f\u200d\U0001f308", "\u2764\ufe0f",
  "\u2764\ufe0e", "\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea", "\U0001f1eb", "1\ufe0f\u20e3",
  "#\ufe0f\u20e3", "\u00a9\u00ae\u2122",
  "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\u2600\ufe0f\u2614",
  "\u200d", "\ufe0f", "\u2211\u222b\u221e\u2202", "\u2192\u21d2\u27f9", "\u2588\u2591\u2592",
  "\u250c\u2500\u2510", "\u20ac\u00a3\u00a5\u20bf", "~`!@#$%^&*()_+-={}|[]\\:\";'<>?,./",
  "!!!!!!!!!!!!!!!!", "-----------------", "=" * 80, "#" * 33, "\\\\\\n", "\ue000\uf8ff",
  "\U000f0000", "\U0010fffd", "\ufdd0\uffff", "\ufffd", "\x00", "\x01\x02\x03", "\x7f\x80\x9f",
  "a\x04b", "!\x04!", "\x16\x1d", "(\x13)", ".\x06.\x14.", "\x1b[31mred\x1b[0m", "\u0600\u06dd",
  "\u00ad", "soft\u00adhyphen", "\U00040000", "\U00080000x",
)  # fmt: skip

_CODE = (
  "def f(x):\n    return x + 1\n", "for (int i = 0; i < 10; ++i) {\n\tsum += a[i];\n}",
  "if x:\n  pass\nelse:\n        y = 2\n", "SELECT * FROM t WHERE a='b' AND c>=1.5;",
  "<div class=\"a\">&nbsp;</div>", "{\"key\": [1, 2, {\"k\": null}]}", "a=b;c==d;e!==f",
  "lambda x: x**2 // 3", "#include <stdio.h>\n#define X 1\n",
  "https://example.org/a/b?c=d&e=%20f#g", "user@example.org", "C:\\Program Files\\x",
  "/usr/local/bin/python3.11", "fn main() -> Result<(), E> {}", "x = '\\u00e9\\n'",
  "\t\t\tindented", "    four\n        eight\n", "// comment\r\n/* block */\r\n",
  "`code` **bold** _it_ [l](u)", "- a\n- b\n\n1. c\n", "| a | b |\n|---|---|\n", "$\\frac{a}{b}$",
  "```py\nprint(1)\n```", "snake_case_name __dunder__ _", "a.b.c->d::e", "x<<=2>>1&&y||z",
  "\"\"\"doc\"\"\"", "f\"{x!r:>{w}}\"",
)  # fmt: skip

_TEMPLATED = (
  "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "<|im_end|><|im_end|>",
  " <|im_end|> ", "a<|im_end|>b", "<|im_end|", "|im_end|>", "<|IM_END|>", "<|im_end|>\n",
  "\n<|im_end|>", "<|im_start|>1", "1<|endoftext|>2", "<repo_name>a/b<file_sep>c.py\n",
  "<reponame>", "<gh_stars>12", "<jupyter_code>x = 1<jupyter_output>",
  "<|im_start|>system\nYou are <b>.<|im_end|>\n", "<think>\nhm\n</think>\n", "<s>[INST] x [/INST]",
  "<|begin_of_text|>", "<start_of_turn>user\n", "\u0120", "\u0120hello", "\u010a", "\u00c4\u0142",
  "<|im_start|><|im_start|>", "don't<|im_end|>'s",
)  # fmt: skip


def _shuffled(pieces: tuple[str, ...], count: int, length: int, seed: int) -> list[str]:
  """Returns `count` strings of `length` pieces, drawn by a linear congruential generator."""
  state, strings = seed, []
  for _ in range(count):
    drawn = []
    for _ in range(length):
      state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
      drawn.append(pieces[(state >> 33) % len(pieces)])
    strings.append("".join(drawn))
  return strings


def _all_strings() -> list[str]:
  strings = [""]
  strings += _ENGLISH + _NUMBERS + _SCRIPTS + _SYMBOLS + _CODE + _TEMPLATED + _SPECIAL
  strings += _WHITE
  strings += [f"a{white}b" for white in _WHITE]
  strings += [f"{white}{white} x{white}" for white in _WHITE]
  strings += [f"a{n * ' '}b{n * ' '}" for n in (2, 3, 4, 7, 8, 16, 33, 100)]
  strings += [f"a{n * chr(10)}b{n * chr(10)}" for n in (2, 3, 5, 17)]
  strings += [f"{a}{b}{a}" for a, b in itertools.permutations((" ", "\t", "\n", "\r"), 2)]
  everything = _ENGLISH + _NUMBERS + _SCRIPTS + _SYMBOLS + _CODE + _TEMPLATED + _WHITE
  strings += _shuffled(everything, 40, 12, seed=1)
  strings += _shuffled(_WHITE + ("a", "1", "!", "'s", "\u00e9"), 40, 16, seed=2)
  strings += _shuffled(tuple(chr(c) for c in range(128)), 20, 64, seed=3)
  strings += _shuffled(tuple(chr(c) for c in range(0xA0, 0x3000)), 20, 32, seed=4)
  strings += [" ".join(_shuffled(_ENGLISH, 1500, 1, seed=5)), "ab" * 12_000, "\u4f60\u597d" * 3_000]
  strings += ["\n".join(_shuffled(everything, 400, 8, seed=6))]
  return list(dict.fromkeys(strings))


STRINGS: tuple[str, ...] = tuple(_all_strings())
