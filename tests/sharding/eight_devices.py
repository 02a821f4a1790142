"""Every family on eight forced host devices against one; sharding_test.py runs it by itself.

Prints one JSON line a family and mesh: relative errors of logits and residuals, whether greedy
tokens are the same, and into how many parts parameters and rows were split. Then one line a mesh
for the edit kernel, whose rows are split over the devices ("kernel" as argument), or one for the
attention kernel, whose rows and heads are ("attention"), or for a vector that is trained with rows
split over four devices ("training").
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import persona_jax as pj  # noqa: E402
from persona_jax.directions import train  # noqa: E402
from persona_jax.directions.train import Example, Training, train_direction  # noqa: E402
from persona_jax.engine import generate, memory, plan, segments  # noqa: E402
from persona_jax.engine.need import tree_bytes  # noqa: E402
from persona_jax.models import attention, families, layers  # noqa: E402
from persona_jax.models.fused_attention import FusedAttention  # noqa: E402
from persona_jax.models.params import stored_shape  # noqa: E402
from tests.fixtures import TEMPLATE  # noqa: E402
from tests.parity.checks import relative_error  # noqa: E402
from tests.reference.checkpoint_writer import write_checkpoint  # noqa: E402
from tests.reference.random_families import CONFIGS, random_tensors  # noqa: E402
from tests.reference.random_llama import random_llama, vocabulary  # noqa: E402

# Heads, feed-forward width and vocabulary divide by 8; the two key heads only by 2.
SIZES = {
  "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 56, "vocab_size": 104,
  "hidden_size": 48, "num_hidden_layers": 2,
}  # fmt: skip
TITLES = (
  "llama, llama3 scaling, tied", "gemma2, both caps", "gemma3, untied, capped logits, biases",
  "qwen2, biases of q, k, v", "qwen3, QK-norm, tied",
)  # fmt: skip
MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))


def leaf_shape(params: object, path: tuple[str | int, ...]) -> tuple[int, ...]:
  for key in path:
    params = params[key]  # type: ignore[index]
  return params.shape  # type: ignore[attr-defined]


def write(title: str, directory: Path) -> None:
  config = CONFIGS[title] | SIZES
  if "layer_types" in config:
    config |= {"layer_types": ["sliding_attention", "full_attention"]}
  family = families.family(config["model_type"])
  arch = family.parse(config)
  params = family.abstract_params(arch)
  shapes = {
    name: stored_shape(weight, leaf_shape(params, weight.path))
    for name, weight in family.weight_map(arch).items()
  }
  write_checkpoint(directory, config, random_tensors(config, shapes), vocabulary(config))


def moved(many: pj.Model, data: int, model: int) -> pj.Model:
  """Saves a model and restores it on another mesh."""
  with tempfile.TemporaryDirectory() as folder:
    many.save(Path(folder) / "saved")
    return pj.load(Path(folder) / "saved", mesh=pj.make_mesh(data, model))


def check_moved(other: pj.Model, one: pj.Model) -> None:
  """Raises unless a restored model has the bits of the one it was, split over its own mesh."""
  assert other.identity == one.identity and other.tokenizer == one.tokenizer
  for ours, theirs in zip(jax.tree.leaves(other.params), jax.tree.leaves(one.params), strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
  query = other.params["blocks"][0]["q_DNH"]
  assert len({str(shard.index) for shard in query.addressable_shards}) == 2


def kernel_errors() -> list[dict[str, object]]:
  """Runs the TPU kernel, simulated, under shard_map against plain XLA on one device."""
  records = []
  with tempfile.TemporaryDirectory() as folder:
    write(TITLES[0], Path(folder))
    one = pj.load(folder)
    vectors = np.random.default_rng(1).normal(size=(1, one.arch.num_blocks, one.arch.width))
    direction = pj.Direction(vectors.astype(np.float32), "d", "resid_post")
    for data, model, rows in ((4, 2, 8), (4, 2, 6)):
      prompts = [pj.Raw(" ".join(f"w{5 + n + i}" for i in range(1 + n))) for n in range(rows)]
      edits = [
        None if n == 2 else pj.cap(direction, 0.1 * n, unit="unit", blocks="all", tokens="all")
        for n in range(rows)
      ]
      texts = ["w9 w10 w11"] * rows
      many = pj.load(folder, mesh=pj.make_mesh(data, model), kernels="mosaic_tpu")
      expected, got = (m.score(prompts, texts, edits=edits) for m in (one, many))
      plain = one.score(prompts, texts)
      records.append({
        "kernel": many.kernels, "data": data, "rows": rows,
        "error": float(np.abs(got - expected).max()), "effect": float(np.abs(plain - got).max()),
      })  # fmt: skip
  return records


def attention_error() -> float:
  """Runs the TPU's attention, simulated, on 4 x 2 devices; the greatest error against plain XLA."""
  rng, rows, tokens = np.random.default_rng(2), 4, 200
  q, k, v = (jnp.asarray(rng.normal(size=(rows, tokens, n, 64)), jnp.float32) for n in (4, 2, 2))
  kv = layers.KV.of(k, v, jnp.float32)
  position_BT = jnp.broadcast_to(jnp.arange(tokens), (rows, tokens))
  part = attention.Shared(layers.KV(*(x[:1, ..., :64] for x in (kv.k_BKHS, kv.v_BKSH[:, :, :64]))),
    jnp.arange(64)[None], None, jnp.arange(rows)[None], jnp.arange(rows))  # fmt: skip
  outs = []
  for mesh in (None, pj.make_mesh(4, 2)):
    fused = None if mesh is None else FusedAttention("splash_tpu", mesh, interpret=True)
    slots = attention.Slots(
      position_BT=position_BT, slot_position_BS=position_BT, rope=layers.Rotation(q, q),
      mask_BTS=None, shared=(part,), fused=fused,
    )  # fmt: skip
    outs.append(jax.jit(attention.attend, static_argnames="dtype")(q, kv, slots, dtype=jnp.float32))
  return float(jnp.abs(outs[1] - jax.device_put(outs[0], outs[1].sharding)).max())


def training_record() -> dict[str, object]:
  """Trains a vector on one device and on four: how far apart, and a step's work on each device."""
  examples = [Example(f"w{5 + n} w9", f"w{40 + n} w{20 + n}", f"w{60 + n} w7") for n in range(8)]
  training = Training(steps=4, batch=4, learning_rate=0.05)
  vectors, flops, real = [], [], train._step

  def counted(*args, **options):
    flops.append(real.lower(*args, **options).compile().cost_analysis()["flops"])
    return real(*args, **options)

  with tempfile.TemporaryDirectory() as folder:
    write_checkpoint(Path(folder), *random_llama(), vocabulary(random_llama()[0]), TEMPLATE)
    for mesh in (None, pj.make_mesh(4, 1)):
      model = pj.load(folder, dtype="float32", mesh=mesh)
      train._step = counted
      vectors.append(train_direction(model, examples, 1, training).vectors_SLD)
      train._step = real
  return {
    "error": relative_error(vectors[1], vectors[0]), "size": float(np.linalg.norm(vectors[0])),
    "share": flops[-1] / flops[0],
  }  # fmt: skip


def memory_records() -> list[dict[str, object]]:
  """Compares the bytes that a plan counts on one device with those that lie there."""
  records: list[dict[str, object]] = []
  with tempfile.TemporaryDirectory() as folder:
    write(TITLES[0], Path(folder))
    stem = " ".join(f"w{i}" for i in range(20, 40))
    texts = [pj.Raw(f"{stem} w{5 + i} w7 w8") for i in range(8)]
    for data, model in ((2, 2), (1, 2), (1, 8), (8, 1)):
      many = pj.load(folder, mesh=pj.make_mesh(data, model))
      grid = pj.Grid(texts, [pj.Condition("none")], max_new_tokens=8)
      _, rows = plan.grid_rows(many, grid)
      settings = plan.grid_settings(many, grid)
      planned = plan.plan_tile(many, rows, range(8), settings)
      (decode,) = (need for need in planned.needs if need.name == "decode")
      shared, state = decode.args[1], decode.args[5]
      seen: list[int] = []
      real = segments._Batch.keep_what_is_needed

      def noted(batch, seen=seen, real=real):
        leaves = jax.tree.leaves((batch._shared, batch._state.caches))
        seen.append(sum(x.addressable_shards[0].data.nbytes for x in leaves))
        return real(batch)

      segments._Batch.keep_what_is_needed = noted
      generate.run_tile(many, rows, settings)
      segments._Batch.keep_what_is_needed = real
      records.append({
        "data": data, "model": model, "whole": tree_bytes((shared, state.caches)), "seen": seen[0],
        "counted": memory.device_bytes((shared, state.caches), many.mesh),
        "params": memory.params_bytes(many.params), "all_params": tree_bytes(many.params),
        "params_counted": memory.device_bytes(decode.args[0], many.mesh),
        "peak": planned.peak_bytes,
      })  # fmt: skip
  return records


def main() -> None:
  if sys.argv[1:] == ["memory"]:
    for record in memory_records():
      print(json.dumps(record), flush=True)
    return
  if sys.argv[1:] == ["attention"]:
    print(json.dumps({"error": attention_error()}))
    return
  if sys.argv[1:] == ["training"]:
    print(json.dumps(training_record()))
    return
  if sys.argv[1:] == ["kernel"]:
    for record in kernel_errors():
      print(json.dumps(record), flush=True)
    return
  tokens_BT = jnp.asarray(np.random.default_rng(0).integers(2, 104, (8, 12)))
  prompts = [pj.Raw(" ".join(f"w{i}" for i in row)) for row in np.asarray(tokens_BT)[:, :6]]
  for title in TITLES:
    with tempfile.TemporaryDirectory() as folder:
      write(title, Path(folder))
      one = pj.load(folder)
      expected, reads = pj.forward(one, tokens_BT, None, pj.Capture())
      answers = [g.token_ids for g in one.generate(prompts, max_new_tokens=4)]
      for data, model in MESHES:
        many = pj.load(folder, mesh=pj.make_mesh(data, model))
        logits, ours = pj.forward(many, tokens_BT, None, pj.Capture())
        errors = [relative_error(np.asarray(ours[k]), np.asarray(reads[k])) for k in reads]
        got = answers  # decoding is checked where both axes are split
        if (data, model) == (2, 4):
          got = [g.token_ids for g in many.generate(prompts, max_new_tokens=4)]
          if title == TITLES[0]:
            many = moved(many, data, model)
            check_moved(moved(many, 4, 2), one)
        block = many.params["blocks"][0]
        parts = {
          name: len({str(s.index) for s in block[name].addressable_shards})
          for name in ("q_DNH", "k_DKH", "gate_DF", "down_FD", "o_NHD", "attn_norm_D")
        }
        parts["embed_VD"] = len({str(s.index) for s in many.params["embed_VD"].addressable_shards})
        record = {
          "title": title, "data": data, "model": model, "parts": parts,
          "logits": relative_error(np.asarray(logits), np.asarray(expected)),
          "residuals": max(errors), "same_tokens": got == answers,
          "rows_split": len({str(s.index[0]) for s in ours["resid_post", 1].addressable_shards}),
        }  # fmt: skip
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
  sys.exit(main())
