"""Reasoning traces: what models think under a persona, and whether their answers follow it.

    think      thoughts of every thinker: no persona, by prompt, by steering     DIR/think
    answer     answers behind own thoughts, and behind those of other methods    DIR/answer
    analyse    cues at equal length, the trace swap, the 2 × 2 of windows        DIR/tables

A swap gives an answer under one method behind the thought of another: it tells bad reasoning (the
thought changes the answer) from reasoning that is ignored (the method does, whatever was thought).
Each stage keeps what it has done.
"""

from persona_jax.studies.reasoning_traces.analysis import Findings, analyse
from persona_jax.studies.reasoning_traces.arms import Arm, make_arms, prepare
from persona_jax.studies.reasoning_traces.dry import describe
from persona_jax.studies.reasoning_traces.generation import answer, labeller, think
from persona_jax.studies.reasoning_traces.progress import STAGES, require
from persona_jax.studies.reasoning_traces.settings import Settings, load_items, start
from persona_jax.studies.reasoning_traces.spans import read_judged
from persona_jax.studies.reasoning_traces.summary import screen, write_summary

__all__ = [
  "STAGES", "Arm", "Findings", "Settings", "analyse", "answer", "describe", "labeller",
  "load_items", "make_arms", "prepare", "read_judged", "require", "screen", "start", "think",
  "write_summary",
]  # fmt: skip
