"""Writes chat_renderings.json: what transformers' `apply_chat_template` makes of the test chats.

  python -m tests.reference.make_chat_reference

Needs `transformers` and `tokenizers`. null stands for a template that raised an exception.
"""

import json
from pathlib import Path

from tests.reference.chat_templates import CHATS, TEMPLATES

GOLDEN = Path(__file__).with_name("chat_renderings.json")


def render_all() -> dict[str, dict[str, str | None]]:
  """Returns template name → chat name → rendered text with a generation prompt, or None."""
  import jinja2
  import tokenizers
  import transformers

  rendered: dict[str, dict[str, str | None]] = {}
  for name, (template, bos, eos) in TEMPLATES.items():
    tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x")),
      bos_token=bos,
      eos_token=eos,
    )
    rendered[name] = {}
    for title, chat in CHATS.items():
      try:
        text = tokenizer.apply_chat_template(
          chat, chat_template=template, tokenize=False, add_generation_prompt=True
        )
      except jinja2.TemplateError:
        text = None
      rendered[name][title] = text
  return rendered


if __name__ == "__main__":
  GOLDEN.write_text(json.dumps(render_all(), indent=1) + "\n", encoding="utf-8")
