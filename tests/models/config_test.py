"""config.json of every family: what is read, ignored and refused, and what published files give."""

import dataclasses
import math
import re

import jax
import pytest

from persona_jax.models.arch import Arch, BlockKind
from persona_jax.models.config import IGNORABLE
from persona_jax.models.families import family
from persona_jax.models.rope import Rope
from tests.reference.random_families import CONFIGS

BASES = {
  "llama": CONFIGS["llama, no scaling, one key head"],
  "qwen2": CONFIGS["qwen2, sliding window in the last block"],
  "qwen3": CONFIGS["qwen3, YaRN, sliding window"],
  "gemma2": CONFIGS["gemma2, both caps"],
  "gemma3_text": CONFIGS["gemma3, five to one"],
}
LLAMA, QWEN, GEMMA = ("llama",), ("qwen2", "qwen3"), ("gemma2", "gemma3_text")
EVERY = LLAMA + QWEN + GEMMA


def parse(config):
  return family(config["model_type"]).parse(config)


def refusal(config) -> str:
  with pytest.raises(ValueError) as error:
    parse(config)
  return str(error.value)


def without(config, *names):
  return {name: value for name, value in config.items() if name not in names}


LINEAR = {"rope_type": "linear", "factor": 3.0}
FULL, SLIDING = "full_attention", "sliding_attention"
# Field → another value than the base's, and what in `Arch` must differ then, and nothing else.
CHANGES = {
  "num_hidden_layers": (5, "pattern"),
  "intermediate_size": (56, "ffw_width"),
  "vocab_size": (103, "vocab_size"),
  "num_attention_heads": (8, "num_heads"),
  "num_key_value_heads": (4, "num_kv_heads"),
  "head_dim": (12, "head_dim"),
  "hidden_size": (48, "width"),
  "rms_norm_eps": (1e-4, "norm_eps"),
  "max_position_embeddings": (8192, "max_positions"),
  "rope_theta": (5000.0, "kinds"),
}
ONE_ROPE = {"rope_scaling": (LINEAR, "kinds"), "rope_parameters": (LINEAR, "kinds")}
PER_FAMILY = {
  "llama": CHANGES | ONE_ROPE | {
    "tie_word_embeddings": (True, "tied_head"), "attention_bias": (True, "qkv_bias o_bias"),
    "mlp_bias": (True, "ffw_bias"),
  },
  "qwen2": CHANGES | ONE_ROPE | {
    "num_attention_heads": (20, "num_heads head_dim"), "hidden_size": (48, "width head_dim"),
    "num_key_value_heads": (2, "num_kv_heads"), "tie_word_embeddings": (True, "tied_head"),
    "use_sliding_window": (False, "kinds pattern"), "sliding_window": (9, "kinds"),
    "max_window_layers": (1, "pattern"), "layer_types": ([FULL, SLIDING, FULL], "pattern"),
  },
  "gemma2": CHANGES | {
    "hidden_size": (48, "width embed_scale"), "tie_word_embeddings": (False, "tied_head"),
    "attention_bias": (True, "qkv_bias o_bias"), "query_pre_attn_scalar": (9, "attn_scale"),
    "attn_logit_softcapping": (7.0, "attn_softcap"), "sliding_window": (9, "kinds"),
    "final_logit_softcapping": (None, "final_softcap"), "rope_parameters": (LINEAR, "kinds"),
    "layer_types": ([SLIDING, SLIDING, FULL], "pattern"),
  },
}  # fmt: skip
PER_FAMILY["qwen3"] = PER_FAMILY["qwen2"] | {
  "num_attention_heads": (8, "num_heads"), "hidden_size": (48, "width"),
  "num_key_value_heads": (4, "num_kv_heads"), "tie_word_embeddings": (False, "tied_head"),
  "attention_bias": (True, "qkv_bias o_bias"), "max_window_layers": (2, "pattern"),
}  # fmt: skip
PER_FAMILY["gemma3_text"] = without(PER_FAMILY["gemma2"], "attn_logit_softcapping") | {
  "num_hidden_layers": (8, "pattern"),
  "final_logit_softcapping": (7.0, "final_softcap"),
  "rope_scaling": (LINEAR, "kinds"),
  "rope_parameters": ({FULL: LINEAR}, "kinds"),
  "rope_local_base_freq": (5000.0, "kinds"),
  "sliding_window_pattern": (3, "pattern"),
  "_sliding_window_pattern": (2, "pattern"),
  "layer_types": ([SLIDING] * 5 + [FULL] * 2, "pattern"),
}
# Fields that may have few values; a value that no port of the family implements.
FIXED = {
  "llama": {"hidden_act": "gelu", "rope_interleaved": True},
  "qwen2": {"hidden_act": "gelu", "use_mrope": True},
  "qwen3": {"hidden_act": "relu", "use_mrope": True},
  "gemma2": {
    "hidden_act": "gelu", "hidden_activation": "silu", "use_bidirectional_attention": True,
    "rope_scaling": LINEAR,
  },
  "gemma3_text": {
    "hidden_act": "gelu", "hidden_activation": "gelu", "use_bidirectional_attention": True,
    "attn_logit_softcapping": 50.0,
  },
}  # fmt: skip


def test_a_checkpoint_with_code_of_its_own_says_that_none_is_run():
  config = next(iter(CONFIGS.values())) | {"auto_map": {"AutoModel": "modeling_x.Model"}}
  with pytest.raises(ValueError, match=r"auto_map=.*modeling_x.*never run; pj.load\(family="):
    family(config["model_type"]).parse(config)


@pytest.mark.parametrize("name", EVERY)
def test_an_unknown_field_is_refused_with_its_value(name):
  message = refusal(BASES[name] | {"num_local_experts": 17})
  assert re.search(rf"of a {name} model .*'num_local_experts': 17", message)
  # The fields that it names as known are those that the tests below cover.
  known = re.findall(r"'(\w+)'", message.split("Known:")[1])
  assert set(known) == {"model_type", *PER_FAMILY[name], *FIXED[name]}


@pytest.mark.parametrize(
  "name,field", [(name, field) for name in EVERY for field in PER_FAMILY[name]]
)
def test_a_field_that_is_handled_changes_what_it_stands_for(name, field):
  value, changed = PER_FAMILY[name][field]
  before, after = parse(BASES[name]), parse(BASES[name] | {field: value})
  names = [f.name for f in dataclasses.fields(before)]
  assert {n for n in names if getattr(before, n) != getattr(after, n)} == set(changed.split())


@pytest.mark.parametrize("name,field", [(name, field) for name in EVERY for field in FIXED[name]])
def test_a_value_that_is_not_implemented_is_refused_by_name(name, field):
  value = FIXED[name][field]
  assert f"config field {field}={value!r} of a " in refusal(BASES[name] | {field: value})


@pytest.mark.parametrize("name", EVERY)
def test_fields_of_training_and_serving_change_nothing(name):
  config = without(BASES[name], *IGNORABLE)
  assert parse(config) == parse(config | dict.fromkeys(IGNORABLE, "anything"))


@pytest.mark.parametrize("name", EVERY)
def test_fields_that_are_needed_are_named_when_they_are_missing_or_null(name):
  for field in ("hidden_size", "intermediate_size", "num_hidden_layers"):
    assert f"a {name} model lacks the fields ['{field}']" in refusal(without(BASES[name], field))
    assert f"lacks the fields ['{field}']" in refusal(BASES[name] | {field: None})
  if name not in GEMMA:
    rest = without(BASES[name], "num_attention_heads", "vocab_size")
    assert "lacks the fields ['num_attention_heads', 'vocab_size']" in refusal(rest)


@pytest.mark.parametrize(
  "names,changes,message",
  [
    (EVERY, {"num_key_value_heads": 3}, "num_attention_heads=4 is no multiple of .*heads=3"),
    (EVERY, {"head_dim": 9}, "head_dim=9 is odd"),
    (EVERY, {"num_hidden_layers": 0}, "num_hidden_layers=0; positive numbers"),
    (QWEN + GEMMA, {"sliding_window": 0}, "sliding_window=0: blocks slide, so a positive integer"),
    (QWEN + GEMMA, {"sliding_window": 6.5}, r"sliding_window=6\.5: blocks slide"),
    (QWEN + GEMMA, {"layer_types": [FULL, SLIDING]}, r"layer_types=\['full.*each of the [37] bl"),
    (QWEN + GEMMA, {"layer_types": ["linear_attention"] * 3}, "layer_types=.*one of .*'full_atten"),
    (LLAMA, {"layer_types": [FULL] * 3}, "'layer_types': .*'full_attention'"),
    (LLAMA, {"sliding_window": 4096}, "'sliding_window': 4096"),
    (EVERY, {"rope_theta": 0}, "rope_theta=0; positive numbers"),
    (("gemma3_text",), {"rope_local_base_freq": -1.0}, r"rope_local_base_freq=-1\.0; positive"),
    (("gemma3_text",), {"rope_parameters": LINEAR}, r"gemma3 model has \['factor', 'rope_type'\]"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(names, changes, message):
  for name in names:
    assert re.search(message, refusal(BASES[name] | changes)), name


@pytest.mark.parametrize(
  "scaling,message",
  [
    ({"type": "dynamic", "factor": 2.0}, "rope_scaling type 'dynamic' is not supported"),
    ({"rope_type": "longrope", "short_factor": [1.0]}, "rope_scaling type 'longrope' is not"),
    ({"rope_type": "mrope", "mrope_section": [16]}, "rope_scaling type 'mrope' is not supported"),
    ({"type": "linear"}, r"missing fields \['factor'\]"),
    (LINEAR | {"beta_fast": 32.0}, r"of type 'linear': unknown fields \['beta_fast'\]"),
    ({"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}, r"'yarn': unknown fields \['mscale'\]"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, r"\['partial_rotary_factor'\]"),
    ({"rope_type": "llama3", "factor": 8.0}, r"missing fields \['high_freq.*'low_freq_factor'\]"),
    (
      {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
      "high_freq_factor must exceed low_freq_factor",
    ),
    (LINEAR | {"factor": 0.0}, r"rope_scaling \{'factor': 0\.0\}: numbers must be positive"),
    (LINEAR | {"factor": float("inf")}, r"\{'factor': inf\}: numbers must be positive"),
  ],
)
def test_a_rope_scaling_that_is_not_implemented_is_refused_by_name(scaling, message):
  for name in ("llama", "qwen2", "qwen3", "gemma3_text"):
    assert re.search(message, refusal(BASES[name] | {"rope_scaling": scaling})), name
  for name in ("llama", "qwen2", "qwen3", "gemma2"):
    assert re.search(message, refusal(BASES[name] | {"rope_parameters": scaling})), name
  nested = {SLIDING: {"rope_type": "default"}, FULL: scaling}
  assert re.search(message, refusal(BASES["gemma3_text"] | {"rope_parameters": nested}))


# What reference classes fail with later, or would read as something the file does not say.
SENSELESS = [
  # Read as full attention, as layer_types is only looked at where a window is in use; transformers
  # fails with both.
  (QWEN, {"use_sliding_window": False, "layer_types": ["linear_attention"] * 3}, "layer_types"),
  (QWEN, {"use_sliding_window": False, "layer_types": [SLIDING] * 3}, "layer_types|sliding_window"),
  (GEMMA, {"sliding_window": None}, "sliding_window"),  # read as 4096; transformers fails
  # Read as they stand, though some with a head_dim that is absent end in a ZeroDivisionError.
  (EVERY, {"num_attention_heads": 0}, "num_attention_heads|num_heads"),
  (EVERY, {"head_dim": -2}, "head_dim"),
  (GEMMA, {"final_logit_softcapping": 0.0}, "final_logit_softcapping"),
  (GEMMA, {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),  # ZeroDivisionError
  # A TypeError of float() or of a comparison, or None as the longest sequence.
  (LLAMA + QWEN, {"rope_theta": None}, "rope_theta"),
  (LLAMA + QWEN, {"rms_norm_eps": None}, "rms_norm_eps"),
  (LLAMA + QWEN, {"max_position_embeddings": None}, "max_position_embeddings"),
  # Refused by a message that is the whole Arch, with the addresses of functions.
  (EVERY, {"num_key_value_heads": -2}, "num_key_value_heads=-2(?!.*function)"),
]


@pytest.mark.parametrize("names,changes,message", SENSELESS)
def test_senseless_values_are_refused_by_name(names, changes, message):
  for name in names:
    assert re.search(message, refusal(BASES[name] | changes)), name


@pytest.mark.parametrize("name", QWEN)
def test_a_sliding_window_in_use_is_4096_unless_the_file_says_otherwise(name):
  arch = parse(without(BASES[name], "sliding_window"))  # read as no window at all
  assert arch.kind(2).window == 4096


@pytest.mark.parametrize("name", QWEN)
def test_a_sliding_window_that_is_null_or_not_in_use_slides_nowhere(name):
  for changes in ({"sliding_window": None}, {"use_sliding_window": False}):
    arch = parse(BASES[name] | changes)
    assert [kind.window for kind in arch.kinds] == [None]


def test_defaults_are_those_of_the_configuration_classes():
  def bare(name, *more):
    kept = ("model_type", "num_hidden_layers", "intermediate_size", *more)
    return parse({field: BASES[name][field] for field in kept} | {"hidden_size": 48})

  for name, longest in (("llama", 2048), ("qwen2", 32768), ("qwen3", 32768)):
    arch = bare(name, "vocab_size", "num_attention_heads")
    assert (arch.num_kv_heads, arch.head_dim) == (4, 128 if name == "qwen3" else 12)
    assert (arch.norm_eps, arch.tied_head, arch.max_positions) == (1e-6, False, longest)
    assert arch.kinds == (BlockKind(Rope(10_000.0)),)
    biases = name == "qwen2", False, False
    assert (arch.qkv_bias, arch.o_bias, arch.ffw_bias) == biases
  for name, vocab, longest, caps, theta in (
    ("gemma2", 256_000, 8192, (50.0, 30.0), 10_000.0),
    ("gemma3_text", 262_208, 131_072, (None, None), 1_000_000.0),
  ):
    arch = bare(name)
    assert (arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.vocab_size) == (8, 4, 256, vocab)
    assert (arch.norm_eps, arch.tied_head, arch.max_positions) == (1e-6, True, longest)
    assert (arch.attn_softcap, arch.final_softcap, arch.attn_scale) == (*caps, 1 / 16)
    assert arch.kinds == (BlockKind(Rope(10_000.0), 4096), BlockKind(Rope(theta)))


# Facts of published config.json files.
LLAMA_31_ROPE = {
  "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_31_8B = {
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
  "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": LLAMA_31_ROPE, "rope_theta": 500000.0, "tie_word_embeddings": False,
  "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": True,
  "vocab_size": 128256,
}  # fmt: skip
QWEN_25_7B = {
  "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584,
  "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 32768,
  "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
  "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False,
  "vocab_size": 152064,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
QWQ_32B = QWEN_25_7B | {
  "hidden_size": 5120, "intermediate_size": 27648, "max_position_embeddings": 40960,
  "max_window_layers": 64, "num_attention_heads": 40, "num_hidden_layers": 64,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "sliding_window": 32768,
}  # fmt: skip
QWEN3_8B = {
  "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
  "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36,
  "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
  "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
  "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GEMMA_2_9B = {
  "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attention_bias": False,
  "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
  "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0,
  "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 8192, "num_attention_heads": 16, "num_hidden_layers": 42,
  "num_key_value_heads": 8, "pad_token_id": 0, "query_pre_attn_scalar": 256,
  "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
  "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0", "use_cache": True,
  "vocab_size": 256000,
}  # fmt: skip
GEMMA_3_1B = without(GEMMA_2_9B, "hidden_act") | {
  "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
  "attn_logit_softcapping": None, "final_logit_softcapping": None, "eos_token_id": [1, 106],
  "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768,
  "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
  "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
  "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
}  # fmt: skip
GEMMA_3_27B = {
  "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
  "boi_token_index": 255999, "eoi_token_index": 256000, "eos_token_id": [1, 106],
  "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
  "text_config": {
    "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504,
    "model_type": "gemma3_text", "num_attention_heads": 32, "num_hidden_layers": 62,
    "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
  },
  "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
  "vision_config": {
    "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
    "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
    "patch_size": 14, "vision_use_head": False,
  },
}  # fmt: skip


def arch(name, sizes, longest, kinds, pattern=None, **parts):
  blocks, d, n, k, h, f, v = sizes
  parts = {"norm_eps": 1e-6, "tied_head": False} | parts
  return Arch(
    family(name), d, n, k, h, f, v, max_positions=longest, kinds=kinds,
    pattern=pattern or (0,) * blocks, **parts,
  )  # fmt: skip


def llama(sizes, factor=8.0, tied=False):
  rope = Rope(500_000.0, "llama3", factor, 8192, 1.0, 4.0)
  return arch("llama", sizes, 131_072, (BlockKind(rope),), norm_eps=1e-5, tied_head=tied)


def qwen2(sizes, longest, norm_eps=1e-6, **scaling):
  kinds = (BlockKind(Rope(1e6, **scaling)),)
  return arch("qwen2", sizes, longest, kinds, qkv_bias=True, norm_eps=norm_eps)


def gemma(name, sizes, longest, window, full_rope, pattern, **parts):
  kinds = (BlockKind(Rope(10_000.0), window), BlockKind(full_rope))
  return arch(
    name, sizes, longest, kinds, pattern, tied_head=True, activation="gelu_tanh", norm_offset=1.0,
    post_norms=True, embed_scale=math.sqrt(sizes[1]), **parts,
  )  # fmt: skip


# Of each its config, its Arch with the sizes (blocks, D, N, K, H, F, V), and how many numbers the
# weights of the text model are.
PUBLISHED = {
  "Llama-3.1-8B-Instruct": (
    LLAMA_31_8B, llama((32, 4096, 32, 8, 128, 14336, 128_256)), 8_030_261_248,
  ),
  "DeepSeek-R1-Distill-Llama-8B": (
    LLAMA_31_8B | {"eos_token_id": 128001, "transformers_version": "4.43.0.dev0"},
    llama((32, 4096, 32, 8, 128, 14336, 128_256)), 8_030_261_248,
  ),
  "Llama-3.2-1B": (
    LLAMA_31_8B | {
      "eos_token_id": 128001, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192,
      "num_hidden_layers": 16, "rope_scaling": LLAMA_31_ROPE | {"factor": 32.0},
      "tie_word_embeddings": True,
    },
    llama((16, 2048, 32, 8, 64, 8192, 128_256), 32.0, tied=True), 1_235_814_400,
  ),
  "Llama-3.3-70B-Instruct": (
    LLAMA_31_8B | {
      "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
      "num_hidden_layers": 80,
    },
    llama((80, 8192, 64, 8, 128, 28672, 128_256)), 70_553_706_496,
  ),
  "Qwen2.5-7B-Instruct": (
    QWEN_25_7B, qwen2((28, 3584, 28, 4, 128, 18944, 152_064), 32768), 7_615_616_512,
  ),
  "Qwen2.5-7B-Instruct, YaRN": (
    QWEN_25_7B | {"rope_scaling": YARN},
    qwen2((28, 3584, 28, 4, 128, 18944, 152_064), 131_072, kind="yarn", factor=4.0,
          original_positions=32768, beta_fast=32.0, beta_slow=1.0,
          attention_factor=0.1 * math.log(4) + 1),
    7_615_616_512,
  ),
  "QwQ-32B": (
    QWQ_32B, qwen2((64, 5120, 40, 8, 128, 27648, 152_064), 40960, norm_eps=1e-5), 32_763_876_352,
  ),
  "DeepSeek-R1-Distill-Qwen-32B": (
    QWQ_32B | {"max_position_embeddings": 131072, "sliding_window": 131072},
    qwen2((64, 5120, 40, 8, 128, 27648, 152_064), 131_072, norm_eps=1e-5), 32_763_876_352,
  ),
  "Qwen3-8B": (
    QWEN3_8B,
    arch("qwen3", (36, 4096, 32, 8, 128, 12288, 151_936), 40960, (BlockKind(Rope(1e6)),),
         qk_norm=True),
    8_190_735_360,
  ),
  "gemma-2-9b-it": (
    GEMMA_2_9B,
    gemma("gemma2", (42, 3584, 16, 8, 256, 14336, 256_000), 8192, 4096, Rope(10_000.0),
          (0, 1) * 21, attn_scale=1 / 16, attn_softcap=50.0, final_softcap=30.0),
    9_241_705_984,
  ),
  "gemma-3-1b-it": (
    GEMMA_3_1B,
    gemma("gemma3_text", (26, 1152, 4, 1, 256, 6912, 262_144), 32768, 512, Rope(1e6),
          (0, 0, 0, 0, 0, 1) * 4 + (0, 0), attn_scale=1 / 16, qk_norm=True),
    999_885_952,
  ),
  "gemma-3-27b-it": (
    GEMMA_3_27B,
    gemma("gemma3", (62, 5376, 32, 16, 128, 21504, 262_208), 131_072, 1024,
          Rope(1e6, "linear", 8.0), (0, 0, 0, 0, 0, 1) * 10 + (0, 0),
          attn_scale=168**-0.5, qk_norm=True),
    27_009_346_304,
  ),
}  # fmt: skip


def num_weights(arch) -> int:
  """Counts two blocks, as all blocks of these models are of one size."""
  one, two = (
    sum(math.prod(x.shape) for x in jax.tree.leaves(arch.family.abstract_params(few)))
    for few in (dataclasses.replace(arch, pattern=(0,) * n) for n in (1, 2))
  )
  return one + (arch.num_blocks - 1) * (two - one)


@pytest.mark.parametrize("title", PUBLISHED)
def test_published_files_give_the_architecture_and_the_number_of_weights(title):
  config, expected, weights = PUBLISHED[title]
  assert parse(config) == expected
  assert num_weights(parse(config)) == weights


# The same models as transformers 5 writes them: one dict for the rope, a type for each block.
REWRITTEN = {
  "Llama-3.1-8B-Instruct": {
    "rope_parameters": LLAMA_31_ROPE | {"rope_theta": 500000.0}, "head_dim": 128,
    "pad_token_id": None, "dtype": "bfloat16",
  },
  "Qwen2.5-7B-Instruct, YaRN": {
    "rope_parameters": YARN | {"rope_theta": 1000000.0, "rope_type": "yarn"},
    "layer_types": [FULL] * 28, "sliding_window": None,
  },
  "Qwen3-8B": {
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "layer_types": [FULL] * 36,
  },
  "gemma-2-9b-it": {
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "layer_types": [SLIDING, FULL] * 21, "use_bidirectional_attention": None,
    "tie_word_embeddings": True,
  },
  "gemma-3-1b-it": {
    "rope_parameters": {
      SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
      FULL: {"rope_theta": 1000000.0, "rope_type": "default"},
    },
    "layer_types": ([SLIDING] * 5 + [FULL]) * 4 + [SLIDING] * 2, "_sliding_window_pattern": 6,
    "use_bidirectional_attention": False, "tie_word_embeddings": True,
  },
}  # fmt: skip


@pytest.mark.parametrize("title", REWRITTEN)
def test_files_of_newer_versions_give_the_same_architecture(title):
  config = PUBLISHED[title][0]
  old = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
  assert parse(without(config, *old) | REWRITTEN[title]) == parse(config)


def test_the_text_part_of_a_newer_multimodal_file_gives_the_same_architecture():
  text = without(GEMMA_3_27B["text_config"], "rope_scaling") | {
    "rope_parameters": {
      SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
      FULL: {"rope_theta": 1000000.0, "rope_type": "linear", "factor": 8.0},
    },
    "layer_types": ([SLIDING] * 5 + [FULL]) * 10 + [SLIDING] * 2,
    "vocab_size": 262208,
  }
  config = GEMMA_3_27B | {"text_config": text, "tie_word_embeddings": True, "dtype": "bfloat16"}
  assert parse(config) == parse(GEMMA_3_27B)
  assert "'audio_config': {}" in refusal(GEMMA_3_27B | {"audio_config": {}})
  assert "'router': 1" in refusal(GEMMA_3_27B | {"text_config": text | {"router": 1}})


@pytest.mark.parametrize(
  "config", [QWEN_25_7B | {"use_mrope": False}, LLAMA_31_8B | {"rope_interleaved": False}]
)
def test_a_fixed_field_with_the_value_that_is_implemented_changes_nothing(config):
  assert parse(config) == parse(without(config, "use_mrope", "rope_interleaved"))


@pytest.mark.parametrize(
  "more", [{"sliding_window_size": 4096}, {"_attn_implementation": "eager"}], ids=str
)
def test_all_fields_of_published_gemma_2_files_are_known(more):
  # The files of 9B and 27B have the first, of 27B also the second. transformers reads neither:
  # `sliding_window` is the window, and how attention is computed is the caller's business.
  assert parse(GEMMA_2_9B | more) == parse(GEMMA_2_9B)
