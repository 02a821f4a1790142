"""The engine with the fused kernel, simulated on the host, against the engine in plain XLA."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.apply import TokenInfo
from persona_jax.engine.forward import run_rows
from persona_jax.engine.taps import Fused, choose
from persona_jax.models import fused_attention
from tests.fixtures import make_tiny
from tests.models.families_test import make
from tests.reference.random_families import CONFIGS

PROMPTS = [pj.Raw(text) for text in ["w5 w6 w7", "w8", "w9 w10 w11 w12 w13", "w6 w5"]]


def edits_of(tiny):
  d, e = tiny.direction(), tiny.direction(1)
  kw = dict(blocks="all", tokens="all", site="resid_mid", allow_other_site=True)
  return [
    [pj.add(d, 2.0, unit="unit", blocks=1), pj.set_to(e, 1.5, unit="unit", blocks=1)],
    [pj.cap(d, 0.2, unit="unit", **kw), pj.ablate(e, **kw)],
    None,
    [
      pj.clamp(d, -0.5, 0.5, unit="unit", **kw).keep_norm(),
      pj.ablate(d, blocks=0, tokens="prompt"),
    ],
  ]


def both(model):
  return model, dataclasses.replace(model, kernels="mosaic_tpu")


def test_generation_and_scores_are_those_of_plain_xla(tiny):
  plain, fused = both(tiny.model)
  kw = dict(edits=edits_of(tiny), max_new_tokens=4, logprobs=True)
  for a, b in zip(plain.generate(PROMPTS, **kw), fused.generate(PROMPTS, **kw), strict=True):
    assert (a.token_ids, a.tokens_edited, a.valid) == (b.token_ids, b.tokens_edited, b.valid)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
    np.testing.assert_allclose(a.delivered_dose, b.delivered_dose, atol=1e-4)
  texts = ["w13 w14", "w9 w9 w9", "w11", "w12 w7"]
  scores = [m.score(PROMPTS, texts, edits=edits_of(tiny)) for m in (plain, fused)]
  np.testing.assert_allclose(*scores, atol=1e-4)
  assert np.abs(scores[0] - plain.score(PROMPTS, texts)).max() > 1e-2


def test_norms_that_add_one_and_post_norms(tmp_path):
  title = next(title for title in CONFIGS if title.startswith("gemma2"))
  plain, fused = both(make(title, tmp_path))
  v = np.random.default_rng(0).normal(size=(1, plain.arch.num_blocks, plain.arch.width))
  d = pj.Direction(v, "d", "resid_mid")
  edits = [[pj.ablate(d, blocks="all", tokens="all", site="resid_mid")]] * 2
  texts = ["w13 w14", "w9 w9 w9"]
  scores = [m.score(PROMPTS[:2], texts, edits=edits) for m in (plain, fused)]
  np.testing.assert_allclose(*scores, atol=1e-4)


def program(tiny, edits, kernels, num_tokens=4):
  model = dataclasses.replace(tiny.model, kernels=kernels)
  table = pj.compile_edits(model, [edits])
  shape = (1, num_tokens)
  info = TokenInfo(*(jnp.zeros(shape, kind) for kind in (jnp.int32, jnp.int32, bool)))
  run = lambda table: run_rows(model, jnp.ones(shape, int), info, edits=table, fused=model.fused)
  return str(jax.make_jaxpr(lambda table: run(table).h_BTD)(table))


def test_a_kernel_serves_projections_alone(tiny):
  d = tiny.direction()
  add, ablate = pj.add(d, 1.0, unit="raw", blocks=1), pj.ablate(d, blocks=1)
  branch = pj.ablate(d, blocks=1, site="attn_out", allow_other_site=True)
  assert "pallas_call" in program(tiny, [ablate], "mosaic_tpu")
  assert "pallas_call" not in program(tiny, [ablate], "auto")
  for edits in ([add], [add, add], [branch]):
    assert "pallas_call" not in program(tiny, edits, "mosaic_tpu")


def test_on_v5e_prompts_go_through_the_kernel_and_steps_of_decoding_through_xla(tiny, monkeypatch):
  fused = {kind: on_a(kind, monkeypatch) for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite")}
  kernel = Fused("mosaic_tpu", False, None, 32)
  assert fused == {"TPU v5 lite": kernel, "TPU v5": kernel, "TPU v6 lite": None}
  ablate = pj.ablate(tiny.direction(), blocks=1)
  on_a("TPU v5 lite", monkeypatch)
  for num_tokens in (1, 16, 48):
    assert "pallas_call" not in program(tiny, [ablate], "auto", num_tokens)
  assert "pallas_call" in program(tiny, [ablate], "auto", 64)
  assert "pallas_call" in program(tiny, [ablate], "mosaic_tpu", 1)


def on_a(kind, monkeypatch):
  device = types.SimpleNamespace(device_kind=kind, platform="tpu")
  monkeypatch.setattr(pj.Model, "device", device)
  return choose("auto", None, device)


def test_the_choice_is_by_device_and_unknown_names_are_refused(tmp_path):
  (device, *_) = jax.devices()
  assert choose("auto", None, device) is None and choose("xla", None, device) is None
  assert choose("mosaic_tpu", None, device) == ("mosaic_tpu", True, None, 1)
  with pytest.raises(ValueError, match="'triton'.*mosaic_tpu"):
    pj.load("smollm2-135m-instruct", kernels="triton")


def test_prefill_of_long_prompts_goes_through_the_platforms_attention(tmp_path, monkeypatch):
  tiny = make_tiny(tmp_path, head_dim=64)
  prompts = [pj.Raw(" ".join(f"w{5 + (n + 7 * i) % 90}" for i in range(140 + n))) for n in (0, 9)]
  texts, edits = ["w13 w14", "w9 w9 w9"], [None, [pj.ablate(tiny.direction(), blocks=1)]]
  plain = tiny.model.score(prompts, texts, edits=edits)
  calls, real = [], fused_attention.splash

  def splash(*args, **options):
    calls.append(args[0].shape)
    return real(*args, **options)

  monkeypatch.setattr(fused_attention, "splash", splash)
  kernel = fused_attention.FusedAttention("splash_tpu", interpret=True)
  monkeypatch.setattr(pj.Model, "attention", kernel)
  np.testing.assert_allclose(tiny.model.score(prompts, texts, edits=edits), plain, atol=1e-4)
  assert calls  # once a trace
