"""GGUF files: translation to Hugging Face's names, dequantisation, and what is refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from persona_jax.checkpoints.checkpoint import Checkpoint, open_checkpoint
from persona_jax.checkpoints.gguf import GGUFFile
from persona_jax.checkpoints.registry import registry_file
from tests.reference import tiny_gguf
from tests.reference.tiny_gguf import tiny_tensors, write_gguf

Kind = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def smollm2_file() -> Checkpoint:
  return open_checkpoint("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def smollm2_blocks() -> dict[str, np.ndarray]:
  """The stored bytes of a few tensors, [rows, bytes], by GGUF name."""
  wanted = (
    "token_embd.weight",
    "blk.7.attn_q.weight",
    "blk.7.attn_k.weight",
    "blk.7.attn_v.weight",
  )
  reader = gguf.GGUFReader(registry_file("smollm2-135m-instruct"))
  return {t.name: np.array(t.data) for t in reader.tensors if t.name in wanted}


def _q4_1(rows: np.ndarray) -> np.ndarray:
  """32 weights a block: float16 scale and minimum, 16 bytes; low nibbles are the first half."""
  blocks = rows.reshape(-1, 20)
  scale, minimum = (blocks[:, i : i + 2].copy().view("<f2").astype(np.float32) for i in (0, 2))
  nibbles = np.hstack([blocks[:, 4:] & 15, blocks[:, 4:] >> 4]).astype(np.float32)
  return (scale * nibbles + minimum).reshape(len(rows), -1)


def _q8_0(rows: np.ndarray) -> np.ndarray:
  """32 weights a block: float16 scale, 32 signed bytes."""
  blocks = rows.reshape(-1, 34)
  scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
  return (scale * blocks[:, 2:].view(np.int8)).reshape(len(rows), -1)


def _half_split(weights: np.ndarray, heads: int) -> np.ndarray:
  """Row 2i + j of a head in llama.cpp is row i + jH/2 of it in Hugging Face."""
  head_dim = weights.shape[0] // heads
  out = np.zeros_like(weights)
  for head in range(heads):
    for i in range(head_dim // 2):
      for j in range(2):
        out[head * head_dim + i + j * head_dim // 2] = weights[head * head_dim + 2 * i + j]
  return out


def test_smollm2_config_has_hugging_face_keys(smollm2_file: Checkpoint) -> None:
  assert smollm2_file.config == {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
  }


def test_smollm2_has_272_tensors_and_134_515_008_weights(smollm2_file: Checkpoint) -> None:
  assert len(smollm2_file.names) == 272
  assert sum(int(np.prod(shape)) for shape in smollm2_file.shapes.values()) == 134_515_008
  assert smollm2_file.shapes["model.layers.29.self_attn.k_proj.weight"] == (192, 576)


def test_q8_0_embedding_equals_an_independent_dequantiser(
  smollm2_file: Checkpoint, smollm2_blocks: dict[str, np.ndarray]
) -> None:
  rows = slice(20_000, 22_000)
  ours = smollm2_file.read("model.embed_tokens.weight")
  assert ours.dtype == np.float32
  np.testing.assert_array_equal(ours[rows], _q8_0(smollm2_blocks["token_embd.weight"][rows]))


def test_q4_1_values_equal_an_independent_dequantiser(
  smollm2_file: Checkpoint, smollm2_blocks: dict[str, np.ndarray]
) -> None:
  ours = smollm2_file.read("model.layers.7.self_attn.v_proj.weight")
  np.testing.assert_array_equal(ours, _q4_1(smollm2_blocks["blk.7.attn_v.weight"]))


@pytest.mark.parametrize(("name", "heads"), [("q", 9), ("k", 3)])
def test_query_and_key_rows_are_put_back_into_half_split_order(
  smollm2_file: Checkpoint, smollm2_blocks: dict[str, np.ndarray], name: str, heads: int
) -> None:
  ours = smollm2_file.read(f"model.layers.7.self_attn.{name}_proj.weight")
  stored = _q4_1(smollm2_blocks[f"blk.7.attn_{name}.weight"])
  np.testing.assert_array_equal(ours, _half_split(stored, heads))


def test_opening_twice_gives_one_identity(smollm2_file: Checkpoint) -> None:
  path = registry_file("smollm2-135m-instruct")
  by_path = open_checkpoint(path)
  assert by_path.identity.sha256 == smollm2_file.identity.sha256
  assert by_path.identity.quantisation == "Q4_1+Q8_0+F32"
  assert open_checkpoint("smollm2-135m-instruct").identity == smollm2_file.identity


def test_float32_tensors_come_back_as_written(tmp_path: Path) -> None:
  file = GGUFFile(write_gguf(tmp_path / "m.gguf"))
  written = tiny_tensors()
  np.testing.assert_array_equal(
    file.read("model.layers.1.mlp.down_proj.weight"), written["blk.1.ffn_down.weight"]
  )
  np.testing.assert_array_equal(file.read("model.norm.weight"), written["output_norm.weight"])
  np.testing.assert_array_equal(
    file.read("model.layers.0.self_attn.k_proj.weight"),
    _half_split(written["blk.0.attn_k.weight"], tiny_gguf.KV_HEADS),
  )


def test_an_output_tensor_means_an_untied_head(tmp_path: Path) -> None:
  head = np.ones((tiny_gguf.VOCAB, tiny_gguf.WIDTH), np.float32)
  file = GGUFFile(write_gguf(tmp_path / "m.gguf", tensors={"output.weight": head}))
  assert file.config["tie_word_embeddings"] is False
  np.testing.assert_array_equal(file.read("lm_head.weight"), head)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_each_plain_type_reads_to_within_its_rounding(tmp_path: Path, kind: str) -> None:
  bits = {"F16": 10, "BF16": 7, "Q4_0": 3, "Q4_1": 4, "Q5_0": 4, "Q5_1": 5, "Q8_0": 7}[kind]
  name = "blk.0.ffn_up.weight"
  file = GGUFFile(write_gguf(tmp_path / "m.gguf", types={name: Kind[kind]}))
  written = tiny_tensors()[name]
  error = np.abs(file.read("model.layers.0.mlp.up_proj.weight") - written).max()
  assert 0 < error <= np.abs(written).max() * 2.0**-bits


@pytest.mark.parametrize(("kind", "block_bytes"), [("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210)])
def test_each_k_type_reads_a_block_of_zeros_as_zeros(
  tmp_path: Path, kind: str, block_bytes: int
) -> None:
  width, name = 256, "blk.0.ffn_down.weight"
  path = write_gguf(
    tmp_path / "m.gguf",
    fields={"llama.feed_forward_length": width},
    tensors={
      name: np.zeros((tiny_gguf.WIDTH, block_bytes), np.uint8),
      **{
        f"blk.{block}.ffn_{part}.weight": np.ones(
          (tiny_gguf.WIDTH, width) if part == "down" else (width, tiny_gguf.WIDTH), np.float32
        )
        for block, part in ((0, "gate"), (0, "up"), (1, "gate"), (1, "up"), (1, "down"))
      },
    },
    types={name: Kind[kind]},
  )
  np.testing.assert_array_equal(
    GGUFFile(path).read("model.layers.0.mlp.down_proj.weight"), np.zeros((tiny_gguf.WIDTH, width))
  )


def test_missing_file_is_named(tmp_path: Path) -> None:
  with pytest.raises(FileNotFoundError, match=r"absent\.gguf"):
    GGUFFile(tmp_path / "absent.gguf")


@pytest.mark.parametrize("kept", [0, 3, 20, 400, 5_000, 0.5, -1])
def test_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, kept: float) -> None:
  path = write_gguf(tmp_path / "m.gguf")
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
  with pytest.raises(ValueError, match=r"m\.gguf: not a readable GGUF file, maybe truncated"):
    GGUFFile(path)


def test_wrong_magic_is_refused(tmp_path: Path) -> None:
  path = write_gguf(tmp_path / "m.gguf")
  path.write_bytes(b"GGML" + path.read_bytes()[4:])
  with pytest.raises(ValueError, match="not a readable GGUF file.*magic"):
    GGUFFile(path)


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
  path = write_gguf(tmp_path / "m.gguf", architecture="mamba")
  with pytest.raises(ValueError, match="general.architecture is 'mamba'"):
    GGUFFile(path)


def test_tensor_type_that_the_package_knows_and_we_do_not_is_named(tmp_path: Path) -> None:
  name = "blk.0.ffn_up.weight"
  path = write_gguf(
    tmp_path / "m.gguf",
    tensors={name: np.zeros((tiny_gguf.FFW, 36), np.uint8)},
    types={name: Kind.IQ4_NL},
  )
  with pytest.raises(ValueError, match=r"blk\.0\.ffn_up\.weight has the type IQ4_NL"):
    GGUFFile(path)


def test_tensor_type_number_that_nobody_knows_is_named(tmp_path: Path) -> None:
  path = write_gguf(tmp_path / "m.gguf")
  content = bytearray(path.read_bytes())
  # name, uint32 dimensions, one uint64 each, then the uint32 type
  start = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
  content[start : start + 4] = (99).to_bytes(4, "little")
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"'output_norm\.weight' has the unknown type number 99"):
    GGUFFile(path)


def test_every_unknown_tensor_is_named_at_once(tmp_path: Path) -> None:
  extra = {f"blk.0.{name}.weight": np.ones(8, np.float32) for name in ("ssm_a", "attn_q_norm")}
  path = write_gguf(tmp_path / "m.gguf", tensors=extra)
  with pytest.raises(ValueError, match=r"ssm_a\.weight is no tensor.*attn_q_norm\.weight is no"):
    GGUFFile(path)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_1", "Q8_0"])
@pytest.mark.parametrize(
  "index",
  [
    (slice(3, 40),),
    (slice(None), slice(5, 70)),
    (slice(17, 18), slice(32, 64)),
    (slice(9, 9), slice(None)),
    (slice(None), slice(8, 8)),
  ],
)
def test_a_part_of_a_tensor_equals_that_part_of_the_whole(
  tmp_path: Path, kind: str, index: tuple[slice, ...]
) -> None:
  down, keys = "model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.weight"
  types = {f"blk.0.{name}.weight": Kind[kind] for name in ("ffn_down", "attn_k")}
  file = GGUFFile(write_gguf(tmp_path / "m.gguf", types=types))
  for name in (down, keys):  # the rows of keys are put into another order
    np.testing.assert_array_equal(file.read(name, index), file.read(name)[index])


def test_a_part_of_a_vector_equals_that_part_of_the_whole(tmp_path: Path) -> None:
  file = GGUFFile(write_gguf(tmp_path / "m.gguf"))
  part = file.read("model.norm.weight", (slice(3, 9),))
  np.testing.assert_array_equal(part, tiny_tensors()["output_norm.weight"][3:9])


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
  wrong = {"blk.0.ffn_up.weight": None, "output_norm.weight": np.ones(32, np.float32)}
  path = write_gguf(tmp_path / "m.gguf", tensors=wrong)
  with pytest.raises(ValueError, match=r"0\.mlp\.up_proj\.weight is missing.*norm.*shape \(32,\)"):
    GGUFFile(path)


def test_a_block_beyond_the_count_is_refused(tmp_path: Path) -> None:
  path = write_gguf(tmp_path / "m.gguf", fields={"llama.block_count": 1})
  with pytest.raises(ValueError, match="layers.1.*beyond the blocks"):
    GGUFFile(path)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"llama.expert_count": 8}, "llama.expert_count"),
    ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window"),
    ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
    ({"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
    ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count is"),
    ({"llama.context_length": None}, "lacks the fields .*llama.context_length"),
    ({"split.count": 2}, "split.count is 2"),
    ({"general.type": "adapter"}, "general.type is 'adapter'"),
    ({"general.quantization_version": 1}, "general.quantization_version is 1"),
  ],
)
def test_a_field_that_would_change_the_model_is_refused_by_name(
  tmp_path: Path, fields: dict[str, object], message: str
) -> None:
  path = write_gguf(tmp_path / "m.gguf", fields=fields)
  with pytest.raises(ValueError, match=message):
    GGUFFile(path)


def test_reading_an_unknown_tensor_lists_what_there_is(tmp_path: Path) -> None:
  with pytest.raises(ValueError, match="no tensor 'lm_head.weight'; it has .*model.norm.weight"):
    GGUFFile(write_gguf(tmp_path / "m.gguf")).read("lm_head.weight")
