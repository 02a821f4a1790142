"""Prompt suites, item sets and labelled answers, from pinned wheels that are never executed."""

from persona_jax.data.abilities import KnowledgeItem, load_capabilities, load_mmlu
from persona_jax.data.items import SelfReportItem, load_ipip120
from persona_jax.data.labelled import load_labelled
from persona_jax.data.prompt_item import PromptItem
from persona_jax.data.prompts import data_hash, load_prompts
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
  "KnowledgeItem",
  "PromptItem",
  "SelfReportItem",
  "WheelSource",
  "cache_dir",
  "data_hash",
  "extract_member",
  "load_capabilities",
  "load_ipip120",
  "load_labelled",
  "load_mmlu",
  "load_prompts",
  "read_member",
  "wheel_path",
]
