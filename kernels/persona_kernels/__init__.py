"""Kernels of persona_jax: pure array functions that depend on jax alone and know nothing of models.

`edit_norm` holds the algebra of activation edits at one site.
"""
