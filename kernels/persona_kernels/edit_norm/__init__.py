"""Edits of an activation's projections, slot after slot.

`edit_slots` (api), its XLA path and its reference.
"""

from persona_kernels.edit_norm.api import edit_slots

__all__ = ["edit_slots"]
