"""Personas as data, the questions that elicit them, and chat prompts."""

from persona_jax.personas.chat import Chat, Raw, encode_prompt
from persona_jax.personas.persona import (
  TRAITS,
  Lexicon,
  Persona,
  Pole,
  Question,
  load_personas,
  load_poles,
  load_questions,
)

__all__ = [
  "TRAITS",
  "Chat",
  "Lexicon",
  "Persona",
  "Pole",
  "Question",
  "Raw",
  "encode_prompt",
  "load_personas",
  "load_poles",
  "load_questions",
]
