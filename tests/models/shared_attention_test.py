"""Attention to slots that rows share equals attention to a copy for each row, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from persona_jax.models import attention
from persona_jax.models.attention import Shared, Slots
from persona_jax.models.layers import KV, Rotation

B, T, K, G, H, OWN = 6, 2, 2, 3, 4, 5
# Groups of rows, by part: ragged; a row that reads none of a part; in order.
GROUPS = {
  "ragged": [[0, 2, 5], [1], [3, 4]],
  "row without": [[0, 1], [3, 4, 5]],
  "one row a group": [[4], [0]],
  "one group": [[5, 4, 3, 2, 1, 0]],
}
IN_ORDER = [[0, 1], [2, 3], [4, 5]]


def attend(q_BTNH, kv: KV, mask_BTS, shared=(), **options):
  none = jnp.zeros((B, 0), jnp.int32)
  slots = Slots(
    position_BT=none, slot_position_BS=none, rope=Rotation(none, none), mask_BTS=mask_BTS,
    shared=shared,
  )  # fmt: skip
  return attention.attend(q_BTNH, kv, slots, jnp.float32, **options)


def random_kv(rng, rows: int, slots: int) -> KV:
  return KV.of(
    *(jnp.asarray(rng.normal(size=(rows, slots, K, H)), jnp.float32) for _ in range(2)), jnp.float32
  )


def in_groups(rng, groups: list[list[int]], slots: int) -> tuple[Shared, np.ndarray]:
  """Returns the part, and the mask of each row, [B, T, S]; False for a row that is in no group."""
  width = max(map(len, groups))
  member_PC = np.zeros((len(groups), width), np.int32)
  mask_PCTS = rng.random((len(groups), width, T, slots)) < 0.7
  place_B = np.full(B, len(groups) * width, np.int32)
  mask_BTS = np.zeros((B, T, slots), bool)
  for p, rows in enumerate(groups):
    member_PC[p, : len(rows)] = rows
    for c, row in enumerate(rows):
      place_B[row] = p * width + c
      mask_BTS[row] = mask_PCTS[p, c]
  ordered = groups == IN_ORDER
  part = Shared(
    random_kv(rng, len(groups), slots),
    jnp.zeros((len(groups), slots), jnp.int32),
    jnp.asarray(mask_PCTS),
    None if ordered else jnp.asarray(member_PC),
    None if ordered else jnp.asarray(place_B),
  )
  return part, mask_BTS


def whole(q_BTNH, keys, values, masks, scale: float, cap: float | None) -> np.ndarray:
  """The definition, on one run of slots a row, all in float64."""
  k = np.concatenate(keys, axis=3).astype(np.float64)
  v = np.concatenate(values, axis=2).astype(np.float64)
  mask_BTS = np.concatenate(masks, axis=2)
  q = np.asarray(q_BTNH, np.float64).reshape(B, T, K, G, H) * scale
  score = np.einsum("btkgh,bkhs->bkgts", q, k)
  score = score if cap is None else cap * np.tanh(score / cap)
  score = np.where(mask_BTS[:, None, None], score, -np.inf)
  weight = np.exp(score - score.max(-1, keepdims=True))
  weight /= weight.sum(-1, keepdims=True)
  return np.einsum("bkgts,bksh->btkgh", weight, v).reshape(B, T, K * G, H)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(
  "parts", [["ragged"], ["row without", "one group"], ["in order"], ["one row a group", "in order"]]
)
def test_shared_slots_are_as_own_ones(parts, cap):
  rng = np.random.default_rng(7)
  q = jnp.asarray(3 * rng.normal(size=(B, T, K * G, H)), jnp.float32)
  own, own_mask = random_kv(rng, B, OWN), rng.random((B, T, OWN)) < 0.5
  own_mask[..., 0] = True
  shared, keys, values, masks = [], [own.k_BKHS], [own.v_BKSH], [own_mask]
  for name in parts:
    groups = GROUPS.get(name, IN_ORDER)
    part, mask_BTS = in_groups(rng, groups, slots=len(name))
    index = np.zeros(B, int)
    for p, rows in enumerate(groups):
      index[rows] = p
    shared.append(part)
    keys.append(np.asarray(part.kv.k_BKHS)[index])
    values.append(np.asarray(part.kv.v_BKSH)[index])
    masks.append(mask_BTS)
  out = attend(q, own, jnp.asarray(own_mask), tuple(shared), scale=0.5, cap=cap)
  expected = whole(q, keys, values, masks, 0.5, cap)
  np.testing.assert_allclose(out, expected, atol=2e-6)


def test_a_row_that_sees_nothing_gives_no_nan_and_one_part_alone_may_be_seen():
  rng = np.random.default_rng(8)
  q = jnp.asarray(rng.normal(size=(B, T, K * G, H)), jnp.float32)
  own, none = random_kv(rng, B, OWN), jnp.zeros((B, T, OWN), bool)
  part, mask_BTS = in_groups(rng, GROUPS["row without"], slots=3)
  out = np.asarray(attend(q, own, none, (part,)))
  assert np.isfinite(out).all()
  index = np.asarray([0, 0, 0, 1, 1, 1])
  seen = mask_BTS.any(-1)  # [B, T]; row 2 is in no group
  assert not seen[2].any() and seen.any()
  kv = [[np.asarray(x)[index]] for x in part.kv]
  with np.errstate(invalid="ignore"):
    expected = whole(q, *kv, [mask_BTS], H**-0.5, None)
  np.testing.assert_allclose(out[seen], expected[seen], atol=2e-6)


def test_scores_far_apart_between_parts_do_not_overflow():
  rng = np.random.default_rng(9)
  q = jnp.ones((B, T, K * G, H), jnp.float32)
  own, mask = random_kv(rng, B, OWN), jnp.ones((B, T, OWN), bool)
  part, _ = in_groups(rng, IN_ORDER, slots=4)
  loud = KV(jnp.full_like(part.kv.k_BKHS, 500.0), part.kv.v_BKSH)
  part = part._replace(kv=loud, mask_PCTS=jnp.ones_like(part.mask_PCTS))
  out = np.asarray(attend(q, own, mask, (part,)))
  mean = np.asarray(part.kv.v_BKSH).mean(axis=2)[np.asarray([0, 0, 1, 1, 2, 2])]
  expected = np.repeat(mean[:, None, :, None], T, axis=1).repeat(G, axis=3).reshape(out.shape)
  np.testing.assert_allclose(out, expected, atol=1e-6)
