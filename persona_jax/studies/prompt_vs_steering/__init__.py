"""The same personas by system prompt and by activation steering, on one model; stage by stage.

    prepare    directions of traits and personas, residual norms       DIR/directions, DIR/dose.npz
    generate   every arm on harmful, matched harmless, trait prompts   DIR/grid
               higher doses on the trait prompts                       DIR/breakdown
    describe   self-report items under every arm and dose              DIR/self_report

Each stage keeps what it has done, so a study that was stopped goes on. Arms, all at one block and
token window: baseline; prompt (the persona's system message); steer (its direction at `coef` median
residual norms); random (a random direction of the same norm). A persona's contrast is the opposite
pole, so the directions of the two poles of a trait are each other's negatives.
"""

from persona_jax.studies.prompt_vs_steering.conditions import Arm, arms, breakdown_arms, curve_arms
from persona_jax.studies.prompt_vs_steering.findings import analyse, base_model, screen_table
from persona_jax.studies.prompt_vs_steering.preparation import Prepared, prepare
from persona_jax.studies.prompt_vs_steering.settings import Settings, prompts, start
from persona_jax.studies.prompt_vs_steering.stages import describe, generate

__all__ = [
  "Arm", "Prepared", "Settings", "analyse", "arms", "base_model", "breakdown_arms", "curve_arms",
  "describe", "generate", "prepare", "prompts", "screen_table", "start",
]  # fmt: skip
