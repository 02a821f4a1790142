"""Edits of projections, slot after slot, fused with residual add, norm and read-out.

`edit_slots` and `edit_norm` (api), `Slots` and `Out` (types); the definition (reference), plain XLA
(xla) and kernels for TPUs (mosaic_tpu) and GPUs (mosaic_gpu).
"""

from persona_kernels.edit_norm.api import Implementation, edit_norm, edit_slots
from persona_kernels.edit_norm.types import Out, Slots

__all__ = ["Implementation", "Out", "Slots", "edit_norm", "edit_slots"]
