"""Chat templates compiled in a sandbox.

A template is code that came with the weights, so it runs in Jinja's immutable sandbox, with the
extras that transformers gives it (`raise_exception`, `strftime_now`, `tojson`, loop controls,
generation marks) and nothing else.
"""

import datetime
import functools
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

# For base models, which continue texts and know neither turns nor a system message: what a chat
# model gets as system message stands at the head of an interview. Speech begins and ends with a
# line, so that an answer is tokenised as a text of its own.
PLAIN_TEMPLATE = (
  "{{ bos_token }}{% for message in messages %}"
  "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
  "{% elif message['role'] == 'user' %}Interviewer:\n{{ message['content'] }}\n\n"
  "{% else %}Person:\n{{ message['content'] }}\n\n{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}Person:\n{% endif %}"
)


_GIVEN = frozenset(
  {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)


class _Generation(jinja2.ext.Extension):
  """`{% generation %}…{% endgeneration %}`, transformers' mark for answers; renders the body."""

  tags = {"generation"}

  def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
  return datetime.datetime.now().strftime(pattern)


def _tojson(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  # Jinja's own filter escapes <, > and &, which are meant for the model here.
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, "jinja2.ext.loopcontrols"],
  )
  environment.filters["tojson"] = _tojson
  environment.globals["raise_exception"] = _raise_exception
  environment.globals["strftime_now"] = _strftime_now
  return environment


@functools.lru_cache(maxsize=64)
def compile_template(template: str) -> jinja2.Template:
  """Compile Jinja source in a fresh sandbox; the same source is compiled once.

  Raises:
    ValueError: a syntax error; the message has the line.
  """
  try:
    return _environment().from_string(template)
  except jinja2.TemplateSyntaxError as error:
    raise ValueError(
      f"the chat template is no valid Jinja: line {error.lineno}: {error}"
    ) from error


@functools.lru_cache(maxsize=64)
def option_names(template: str) -> frozenset[str]:
  """Return the variables that a template reads beside those that every chat template is given."""
  names = jinja2.meta.find_undeclared_variables(_environment().parse(template))
  return frozenset(names) - _GIVEN - frozenset(_environment().globals)
