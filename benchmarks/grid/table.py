"""The report as Markdown."""

from collections.abc import Iterator
from typing import Any

GRIDS = ("grid_all_tokens", "grid_20_generated")


def _percent(value: float | None) -> str:
  return "" if value is None else f"{100 * value:.1f} %"


def _grid(name: str, section: dict[str, Any]) -> Iterator[str]:
  yield f"\n{name}: {section['rows']} rows, {section['tokens']} new tokens\n"
  yield "| arm | tok/s, median | each repetition | rows as ours in float32 | first 8 tokens |"
  yield "|---|---|---|---|---|"
  order = sorted(section["tok_s"], key=section["tok_s"].get, reverse=True)
  for key in order:
    each = ", ".join(f"{section['tokens'] / s:.1f}" for s in section["seconds"][key])
    same = section.get("agreement_with_ours_f32", {}).get(key, {})
    whole, first = same.get("rows_identical"), same.get("rows_identical_first_8")
    rate = section["tok_s"][key]
    yield f"| {key} | {rate:.1f} | {each} | {_percent(whole)} | {_percent(first)} |"
  for key, why in section["failed"].items():
    yield f"| {key} | FAILED: {why.strip().splitlines()[-1]} | | | |"
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
    f"Measured {report['date']} on {device['processor']}, {device['cores']} cores, "
    f"{', '.join(device['flags'])}; {report['repetitions']} repetitions, interleaved.",
    "",
  ]
  for when in ("ceiling", "ceiling_after"):
    if when in report:
      most = report[when]
      lines.append(
        f"{when}: {most['f32_gflops']:.0f} GFLOP/s float32, {most['bf16_gflops']:.0f} bfloat16, "
        f"copies {most['copy_gbs']:.1f} GB/s."
      )
  for name, why in report.get("skipped", {}).items():
    lines.append(f"SKIPPED {name}: {why}")
  for name in GRIDS:
    if name in report:
      lines += _grid(name, report[name])
  return "\n".join(lines)
