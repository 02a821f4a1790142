"""Attention of long prompts, in chunks or by a kernel, equals attention at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import persona_jax as pj
from persona_jax.models import attention, layers
from persona_jax.models.attention import Shared, Slots, shared_mask
from persona_jax.models.fused_attention import FusedAttention, choose_attention
from persona_jax.models.layers import KV, Rotation

B, K, G, H = 3, 2, 2, 64
LENGTHS = [200, 129, 3]
attend = jax.jit(attention.attend, static_argnames=("dtype", "cap"))
SIMULATED = FusedAttention("splash_tpu", interpret=True)


def case(tokens: int, parts: tuple[str, ...] = (), seed: int = 0):
  """Returns queries, keys and values, and `Slots` without masks; rows of different lengths."""
  rng = np.random.default_rng(seed)

  def kv(rows: int, slots: int) -> KV:
    k, v = (jnp.asarray(rng.normal(size=(rows, slots, K, H)), jnp.float32) for _ in range(2))
    return KV.of(k, v, jnp.float32)

  def part(name: str) -> Shared:
    if name == "in order":  # one copy a row
      position_PS = jnp.broadcast_to(jnp.arange(7), (B, 7))
      return Shared(kv(B, 7), position_PS, None, None, None)
    # Rows 0 and 2 read the first group, none the second's slots 5 on; row 1 reads nothing.
    position_PS = jnp.asarray([[7, 8, 9, -1, -1], [7, -1, -1, -1, -1]])
    member_PC, place_B = jnp.asarray([[2, 0], [0, 0]]), jnp.asarray([1, 4, 0])
    return Shared(kv(2, 5), position_PS, None, member_PC, place_B)

  start = 10 if parts else 0
  position_BT = jnp.broadcast_to(start + jnp.arange(tokens), (B, tokens))
  valid_BT = np.arange(tokens) < np.minimum(tokens, LENGTHS)[:, None]
  none = jnp.zeros((B, tokens, H // 2))
  slots = Slots(
    position_BT=position_BT,
    slot_position_BS=jnp.where(valid_BT, position_BT, -1),
    rope=Rotation(none, none),
    mask_BTS=None,
    shared=tuple(part(name) for name in parts),
  )
  q_BTNH = jnp.asarray(2 * rng.normal(size=(B, tokens, K * G, H)), jnp.float32)
  return q_BTNH, kv(B, tokens), slots, valid_BT


def replace(slots: Slots, **changes) -> Slots:
  return Slots(**{**vars(slots), **changes})


def with_masks(slots: Slots) -> Slots:
  """Returns what asks for a single pass."""
  position_BT, window = slots.position_BT, slots.window
  return replace(
    slots,
    mask_BTS=layers.visible(position_BT, slots.slot_position_BS, window),
    shared=tuple(
      part._replace(mask_PCTS=shared_mask(position_BT, part.position_PS, part.member_PC, window))
      for part in slots.shared
    ),
  )


CASES = [
  (200, (), None, None),
  (129, ("groups",), None, 2.0),
  (200, ("in order", "groups"), None, None),
  (384, (), 70, None),
  (208, ("in order", "groups"), 9, 2.0),
  (64 * 9 + 5, ("groups",), 200, None),  # runs of several chunks, and a rest
]
IDS = [f"{t} tokens, parts {p}, window {w}, cap {c}" for t, p, w, c in CASES]


@pytest.mark.parametrize(("tokens", "parts", "window", "cap"), CASES, ids=IDS)
def test_chunks_give_what_a_single_pass_gives(tokens, parts, window, cap):
  q, kv, slots, valid_BT = case(tokens, parts)
  slots = replace(slots, window=window)
  whole = attend(q, kv, with_masks(slots), dtype=jnp.float32, cap=cap)
  out = attend(q, kv, slots, dtype=jnp.float32, cap=cap)
  assert np.isfinite(np.asarray(out)).all()
  np.testing.assert_allclose(out[valid_BT], whole[valid_BT], rtol=2e-6, atol=4e-6)


def test_slots_of_a_cache_may_stand_in_any_order():
  q, kv, slots, valid_BT = case(150)
  order = np.random.default_rng(1).permutation(150)
  kv = KV(kv.k_BKHS[..., order], kv.v_BKSH[:, :, order])
  slots = replace(slots, kv=kv, slot_position_BS=slots.slot_position_BS[:, order], window=100)
  whole = attend(q, kv, with_masks(slots), dtype=jnp.float32)
  out = attend(q, kv, slots, dtype=jnp.float32)
  np.testing.assert_allclose(out[valid_BT], whole[valid_BT], rtol=2e-6, atol=4e-6)


def test_no_array_of_a_program_holds_all_scores():
  q, kv, slots, _ = case(1024, ("groups",))
  compiled = attend.lower(q, kv, slots, dtype=jnp.float32).compile()
  temp = compiled.memory_analysis().temp_size_in_bytes
  assert temp < 0.5 * (B * K * G * 1024 * 1024 * 4)


def test_chunks_have_derivatives_and_a_batch_axis():
  q, kv, slots, valid_BT = case(64 * 9, ("groups",))

  def total(q, kv, slots):
    out = attend(q, kv, slots, dtype=jnp.float32)
    return jnp.sum(jnp.where(valid_BT[..., None, None], jnp.sin(out), 0.0))

  slopes = jax.grad(total, argnums=(0, 1))
  got, expected = slopes(q, kv, slots), slopes(q, kv, with_masks(slots))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=5e-6)
  both = jax.vmap(lambda q: attend(q, kv, slots, dtype=jnp.float32))(jnp.stack([q, -q]))
  np.testing.assert_allclose(both[1], attend(-q, kv, slots, dtype=jnp.float32), atol=2e-6)


def test_forward_of_a_long_prompt_has_derivatives(tiny):
  tokens = jnp.asarray(np.random.default_rng(2).integers(0, 90, (2, 140)))
  logits, _ = pj.forward(tiny.model, tokens, logits="last")
  alone, _ = pj.forward(tiny.model, tokens[1:], logits="last")
  np.testing.assert_allclose(logits[1:], alone, atol=2e-5)

  def loss(params, tokens):
    model = pj.Model(**{**vars(tiny.model), "params": params})
    return jnp.sum(pj.forward(model, tokens, logits="last")[0])

  slopes = jax.vmap(jax.grad(loss), in_axes=(None, 0))(tiny.model.params, tokens[:, None])
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
  ("tokens", "parts", "window", "cap"), [CASES[0], CASES[3], CASES[4]], ids=[IDS[0], IDS[3], IDS[4]]
)
def test_the_tpu_kernel_gives_what_chunks_give(tokens, parts, window, cap):
  q, kv, slots, valid_BT = case(tokens, parts)
  slots = replace(slots, window=window)
  expected = attend(q, kv, slots, dtype=jnp.float32, cap=cap)
  out = attend(q, kv, replace(slots, fused=SIMULATED), dtype=jnp.float32, cap=cap)
  assert np.isfinite(np.asarray(out)).all()
  np.testing.assert_allclose(out[valid_BT], expected[valid_BT], atol=2e-6)


def gpu_program(monkeypatch, dtype="bfloat16", parts=(), cap=None, window=None) -> str:
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
  q, kv, slots, _ = case(256, parts)
  slots = replace(slots, fused=FusedAttention("cudnn"), window=window)
  kv = jax.tree.map(lambda x: x.astype(dtype), kv)
  traced = attend.trace(q, kv, slots, dtype=jnp.dtype(dtype), cap=cap)
  return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_a_gpu_runs_cudnn_where_it_can(monkeypatch):
  text = gpu_program(monkeypatch)
  assert "__cudnn$fmhaSoftmax" in text
  assert "dot_general" not in text
  windowed = gpu_program(monkeypatch, window=100)
  assert "__cudnn$fmhaSoftmax" in windowed and windowed != text
  for options in (dict(dtype="float32"), dict(cap=50.0), dict(parts=("groups",))):
    assert "cudnn" not in gpu_program(monkeypatch, **options), options


def test_a_cpu_is_left_to_xla():
  assert choose_attention(None, jax.devices()[0]) is None
