"""Strength of a persona: how far a prompt or an edit moves a model, and edits as strong as prompts.

`answers` measures conditions on the unedited model's own answers (shift, projection, KL); `solve`
finds the coefficient at which a curve meets a target; `match` puts both together (`pj.match`);
`block` chooses the block at which a model is steered.
"""
