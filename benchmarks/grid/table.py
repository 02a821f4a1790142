"""The report as Markdown: `python -m benchmarks.grid.table benchmarks/out/cpu.json`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.grid import machine

GRIDS = ("grid_all_tokens", "grid_20_generated")
LEGEND = """\
*conditions*: one call a condition; *rows*: all rows in one batch, a vector a row; *reuse*: prompts
prefilled once, by code written round the tool; the others are the tool as it is. *Rows as ours*:
the 64 greedy tokens are those of ours in float32; *first 8 tokens*: the first 8 are. *Rows that no
other condition has*: whose tokens are not those of another condition of the same prompt. A ratio is
the peer's median seconds over ours; *each* is by repetition. bfloat16 by its own float32: *tokens
that differ* are compared place by place, so all behind a first difference count; *parts at* is the
median step of the first difference. llama.cpp in float32 has its keys and values in float32 too.
"""


def _percent(value: float | None) -> str:
  return "" if value is None else f"{100 * value:.1f} %"


def _grid(name: str, section: dict[str, Any]) -> Iterator[str]:
  yield f"\n{name}: {section['rows']} rows, {section['tokens']} new tokens\n"
  yield (
    "| arm | tok/s, median | each repetition | rows as ours in float32 | first 8 tokens "
    "| rows that no other condition has |"
  )
  yield "|---|---|---|---|---|---|"
  order = sorted(section["tok_s"], key=section["tok_s"].get, reverse=True)
  for key in order:
    each = ", ".join(f"{section['tokens'] / s:.1f}" for s in section["seconds"][key])
    same = section.get("agreement_with_ours_f32", {}).get(key, {})
    whole, first = same.get("rows_identical"), same.get("rows_identical_first_8")
    rate = section["tok_s"][key]
    apart = _percent(section["conditions_told_apart"].get(key))
    yield f"| {key} | {rate:.1f} | {each} | {_percent(whole)} | {_percent(first)} | {apart} |"
  for key in section["left_out"]:
    yield f"| {key} | left out: this processor has no bfloat16 products | | | | |"
  for key, why in section["failed"].items():
    yield f"| {key} | FAILED: {why.strip().splitlines()[-1]} | | | | |"
  yield "\n| ratio | peer | median | each repetition |\n|---|---|---|---|"
  for key, ratio in section["ratios"].items():
    each = ", ".join(f"{value:.2f}" for value in ratio["each"])
    yield f"| {key} | {ratio['peer']} | {ratio['median']:.2f} | {each} |"
  yield "\n| bfloat16 by its own float32 | rows that differ | tokens that differ | parts at |"
  yield "|---|---|---|---|"
  for key, same in section["bf16_tokens"].items():
    rows, tokens = 1 - same["rows_identical"], 1 - same["tokens_identical"]
    parts = same["first_divergence_median"]
    yield f"| {key} | {_percent(rows)} | {_percent(tokens)} | {'' if parts is None else parts} |"
  distances = section.get("logprobs", {}).get("distances", {})
  if distances:
    yield "\n| log-probabilities, nats a token | mean | largest |\n|---|---|---|"
  for key, value in distances.items():
    yield f"| {key} | {value['mean_abs_nats']:.2e} | {value['max_abs_nats']:.2e} |"


def markdown(report: dict[str, Any]) -> str:
  """Return the tables of a report; sections that it lacks are left out."""
  device = report["device"]
  lines = [
    f"Measured on {device['processor']}, {device['cores']} cores, {', '.join(device['flags'])}.",
    "",
    "| section | when | commit | repetitions | only | load before |",
    "|---|---|---|---|---|---|",
  ]
  for name, ran in report["ran"].items():
    lines.append(
      f"| {name} | {ran['date']} | {ran['commit']} | {ran['repetitions']} | "
      f"{', '.join(ran['only'])} | {ran['load_average'][0]:.1f} |"
    )
  lines.append("")
  for when in ("ceiling", "ceiling_after"):
    if when in report:
      most = report[when]
      lines.append(
        f"{when}: {most['f32_gflops']:.0f} GFLOP/s float32, {most['bf16_gflops']:.0f} bfloat16, "
        f"copies {most['copy_gbs']:.1f} GB/s."
      )
  for name, ran in report["ran"].items():
    lines += [f"SKIPPED in {name}: {tool}: {why}" for tool, why in ran["skipped"].items()]
    lines += [f"FAILED in {name}: {part}: {why}" for part, why in ran["failed"].items()]
  if any(name in report for name in GRIDS):
    lines += ["", *LEGEND.splitlines()]
  for name in GRIDS:
    if name in report:
      lines += _grid(name, report[name])
  if "engine" in report:
    lines += _engine(report)
  if "first_token" in report:
    first = report["first_token"]
    lines += ["", "| the demo's first tokens | cold | warm |", "|---|---|---|"]
    for name, key in (("of all (answers that set the dose)", ""), ("of the study's grid", "grid_")):
      lines.append(f"| {name} | {first[f'{key}cold_s']} s | {first[f'{key}warm_s']} s |")
  return "\n".join(lines)


def _engine(report: dict[str, Any]) -> list[str]:
  """Return the table of what the engine reaches by itself; parts that failed are left out."""
  parts, rows = report["engine"], {}
  if "shares" in parts:
    share = report["share"]
    decode = next(key for key in share if key.startswith("decode") and key.endswith("_f32"))
    number = decode.removeprefix("decode").removesuffix("_f32")
    most, half = (
      [rate for rates in part["ceiling_gflops"].values() for rate in rates]
      for part in (parts["shares"], parts["shares"]["bf16"])
    )
    rows |= {
      f"prefill of {parts['shares']['prompts']} tokens, share of XLA's own float32 product of "
      f"{machine.SIZE} x {machine.SIZE}": (
        f"{share['prefill_f32']:.0%} (beside it {min(most):.0f} to {max(most):.0f} GFLOP/s)"
      ),
      f"decoding of {number} rows, share of it": f"{share[decode]:.0%}",
      "the same, share of the copies' bandwidth": f"{share['decode_f32_of_copy']:.0%}",
      "prefill and decoding in bfloat16, share of its product": (
        f"{share['prefill_bf16']:.0%}, {share[decode.replace('f32', 'bf16')]:.0%} "
        f"(beside it {min(half):.0f} to {max(half):.0f} GFLOP/s)"
      ),
      f"a step of decoding, {number} rows": f"{parts['shares']['decode_step_ms']:.0f} ms",
    }
  if "tax" in parts:
    low, high = parts["tax"]["quartiles"]
    rows["an edit of one block adds to a step (quartiles of pairs)"] = (
      f"{report['tax_one_block']:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})"
    )
  if "configs" in parts:
    low, high = parts["configs"]["quartiles"]
    rows["256 configurations, speed over that of one (quartiles of pairs)"] = (
      f"{report['configs_256_over_1']:.1%} ({low:.1%} to {high:.1%})"
    )
  if "wasted" in parts:
    answers = parts["wasted"]["answer_tokens"]
    name = (
      f"row-steps wasted, real ends of answers (mean {answers['mean']:.0f} of {answers['budget']} "
      f"tokens, {answers['ended']} of {answers['rows']} ended)"
    )
    rows[name] = f"{report['wasted_row_steps']:.1%}"
    rows["the same if no row were left out"] = f"{parts['wasted']['without_leaving_out']:.1%}"
    for budget, planned in parts["wasted"].get("with_budgets", {}).items():
      rows[f"the same answers, of {budget} tokens at most ({planned['ended']} ended)"] = (
        f"{planned['wasted']:.1%}; if no row were left out {planned['without_leaving_out']:.1%}"
      )
  for name, counts in parts.get("passes", {}).get("passes", {}).items():
    over = report["passes_over_minimum"][name]
    rows[f"prefill of {counts['conditions']} conditions, {name}: token-block passes"] = (
      f"{counts['fewer']:.2f}x fewer than unshared, {over:.3f} of the least, "
      f"{over / (1 - counts['padding']):.3f} with padding"
    )
  for name, found in parts.get("flips", {}).get("flips", {}).items():
    rows[f"tokens that flip (first differences by token of the same text), {name}"] = (
      f"{found['first_flip_rate']:.2%} ({found['rows_that_differ']:.0%} of rows differ)"
    )
  lines = ["", "| the engine | |", "|---|---|"]
  return lines + [f"| {name} | {value} |" for name, value in rows.items()]


if __name__ == "__main__":
  print(markdown(json.loads(Path(sys.argv[1]).read_text())))
