"""Draws docs/edits.png: the projection after each edit of docs/edits.md, by the one before it.

The code blocks of the page are run as they stand, on a tiny random model; what is drawn is what
`apply_site` makes of random activations.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import persona_jax as pj  # noqa: E402
from persona_jax.edits.apply import TokenInfo, apply_site  # noqa: E402
from tests.reference.checkpoint_writer import write_checkpoint  # noqa: E402
from tests.reference.random_llama import random_llama, vocabulary  # noqa: E402

PAGE = ROOT / "docs" / "edits.md"
TEMPLATE = (
  "{% for m in messages %}{% if m['role'] == 'user' %}w2 {% else %}w3 {% endif %}"
  "{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w3{% endif %}"
)
# Panels: title and the call that its block makes, in the order of the page.
PANELS = {
  "add": "pj.add(d, 0.3", "ablate": "pj.ablate(d, blocks=\"all\", tokens",
  "ablate a subspace": "pj.ablate_subspace", "set": "blocks=1)\n", "to a target": "where(below=0.5",
  "scale": "pj.scale(d, 0.25", "mirror": "pj.scale(d, -1.0", "clamp": "pj.clamp", "cap": "pj.cap",
  "floor": "pj.floor", "add, keep length": "pj.renorm_add", "rotate by 60°": "pj.rotate(d, d2, 60",
  "rotate to 45°": "to=45", "adaptive": "adaptive", "low-rank map": "pj.low_rank",
  "LoReFT": "pj.loreft", "LM-Steer": "pj.lm_steer", "feature added": "pj.sae_add",
  "feature clamped": "pj.sae_clamp", "custom": "custom_edit(soft",
  "half way": "custom_edit(halfway",
}  # fmt: skip


def blocks() -> list[str]:
  """Returns the code blocks of the page."""
  return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def setting(folder: Path) -> dict[str, Any]:
  """Returns the names that the page uses, on a tiny random model."""
  config, tensors = random_llama()
  write_checkpoint(folder / "model", config, tensors, vocabulary(config), TEMPLATE)
  model = pj.load(folder / "model")
  rng = np.random.default_rng(3)
  width, num_blocks = model.arch.width, model.arch.num_blocks
  positives = ["w5 w6 w7", "w9 w5", "w6 w5 w11", "w7 w7"]
  negatives = ["w15 w16 w17", "w19 w15", "w16 w15 w21", "w17 w17"]
  space: dict[str, Any] = {"pj": pj, "jnp": jnp, "model": model, "prompts": positives[:2]}
  for name in ("d", "d2", "d3"):
    space[name] = pj.Direction(rng.normal(size=(1, num_blocks, width)), name)
  v_D = space["d"].unit_LD[1]
  arrays = {
    "W_enc": rng.normal(size=(width, 4)) / 4 + v_D[:, None],
    "W_dec": rng.normal(size=(4, width)) / 4 + v_D,
    "b_enc": np.zeros(4), "b_dec": np.zeros(width), "threshold": np.full(4, 0.4),
  }  # fmt: skip
  np.savez(folder / "sae.npz", **arrays)
  q_DR = np.linalg.qr(np.stack([v_D, *rng.normal(size=(1, width))]).T)[0]
  space |= {
    "scale": pj.dose(model, positives, answer_tokens=8, skip=1),
    "positives": positives, "negatives": negatives, "sae_path": folder / "sae.npz",
    "A_DR": rng.normal(size=(width, 2)) / 8 + v_D[:, None], "B_RD": np.stack([v_D, -0.5 * v_D]),
    "bias_R": np.asarray([0.3, 0.1]), "rotation_RD": q_DR.T,
    "weight_RD": rng.normal(size=(2, width)) / 8,
  }  # fmt: skip
  return space


def run_blocks(space: dict[str, Any]) -> Iterator[tuple[str, pj.Edit]]:
  """Runs every block of the page; yields it and the edit that it makes."""
  for block in blocks():
    exec(block, space)
    yield block, space["edit"]


def after(space: dict[str, Any], edit: pj.Edit, h_TD: np.ndarray) -> np.ndarray:
  """Returns activations [T, D] after an edit at block 1, on the last prompt token."""
  table = pj.compile_edits(space["model"], [edit])
  t = len(h_TD)
  tokens = TokenInfo(jnp.full((1, t), -1), jnp.full((1, t), 1), jnp.ones((1, t), bool))
  return np.asarray(apply_site(table.sites["resid_post", 1], jnp.asarray(h_TD[None]), tokens)[0][0])


def main() -> None:
  """Draws the figure."""
  columns, rows = 7, -(-len(PANELS) // 7)
  figure = Figure((13, 2.2 * rows), layout="constrained")
  axes = figure.subplots(rows, columns, sharex=True, sharey=True).ravel()
  with tempfile.TemporaryDirectory() as folder:
    space = setting(Path(folder))
    p_D = space["d"].unit_LD[1].astype(np.float64)
    h_TD = np.random.default_rng(0).normal(size=(400, p_D.size))
    h_TD += np.outer(np.linspace(-3, 3, 400) - h_TD @ p_D, p_D)
    h_TD = h_TD.astype(np.float32)
    drawn = dict(run_blocks(space))
    for axis, (title, call) in zip(axes, PANELS.items(), strict=False):
      block = next(b for b in drawn if call in b and ("set_to" in b or title != "set"))
      out_TD = after(space, drawn[block], h_TD)
      axis.axline((0, 0), slope=1, color="0.75", linewidth=1)
      axis.scatter(h_TD @ p_D, out_TD @ p_D, s=3, color="#0072b2", linewidths=0)
      axis.set_title(title, fontsize=9)
      axis.tick_params(labelsize=8)
  for axis in axes[len(PANELS) :]:
    axis.set_axis_off()
  figure.supxlabel("projection before", fontsize=9)
  figure.supylabel("projection after", fontsize=9)
  figure.savefig(PAGE.with_suffix(".png"), dpi=100, metadata={"Software": None})


if __name__ == "__main__":
  main()
