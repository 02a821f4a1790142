"""Personas as data, the questions that elicit them, and chat prompts.

`persona` reads personas from files of the form in `schema`, with their `poles`; `wording` checks
their texts, and `baselines` has system messages that are no persona. `chat` writes prompts by the
model's own template, and `placement` says what that does with a system message.
"""

from persona_jax.personas.baselines import load_placebo_texts, shuffled_words
from persona_jax.personas.chat import Chat, Raw, encode_prompt
from persona_jax.personas.persona import (
  Persona,
  Question,
  Recipe,
  composite_poles,
  load_personas,
  load_poles,
  load_questions,
)
from persona_jax.personas.placement import (
  describe_system_default,
  system_default_text,
  system_placement,
)
from persona_jax.personas.poles import TRAITS, Lexicon, Pole
from persona_jax.personas.wording import TextProblem, check_texts

__all__ = [
  "TRAITS",
  "Chat",
  "Lexicon",
  "Persona",
  "Pole",
  "Question",
  "Raw",
  "Recipe",
  "TextProblem",
  "check_texts",
  "composite_poles",
  "describe_system_default",
  "encode_prompt",
  "load_personas",
  "load_placebo_texts",
  "load_poles",
  "load_questions",
  "shuffled_words",
  "system_default_text",
  "system_placement",
]
