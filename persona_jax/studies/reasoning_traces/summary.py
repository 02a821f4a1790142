"""What the study found as text: what a reader must know first, then the tables."""

from pathlib import Path

import pandas as pd

from persona_jax.studies.reasoning_traces.analysis import Findings

_TITLES = {
  "endings": "How thoughts ended",
  "validation": "Cues against judged spans (kept from kappa .6 on)",
  "labels": "Answers behind own thoughts",
  "swap": "Trace swap: the thought of one method, the answer of another",
  "windows": "What steering acts on: thought, answer, both, neither",
  "cues": "Cues by method: matches in 100 tokens, first position, presence in the last third",
  "association": "Refusal and cues at equal length (log-odds; association only)",
  "matched": "Differences between methods in pairs of like length",
}


def interval(value: float, low: float, high: float) -> str:
  """Return a value with its interval; "n/m" for one that is not measurable."""
  if pd.isna(value):
    return "n/m"
  return f"{value:.2f}" if pd.isna(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def screen(found: Findings) -> str:
  """Return the first screen: title, notes, how thoughts ended, and effects of swaps."""
  lines = [found.title, "", *(f"- {note}" for note in found.notes), ""]
  shown = ["method", "n", "ended", "truncated", "unended", "none", "think_tokens_median"]
  lines += [found.tables["endings"][shown].to_string(index=False), ""]
  effects = _shown(found.tables["swap"])
  lines.append(effects.to_string(index=False) if len(effects) else "No swap was asked for.")
  return "\n".join(lines)


def _shown(swap: pd.DataFrame) -> pd.DataFrame:
  """Return effects on the bypass rate, over all personas where there are several."""
  effects = swap[(swap["what"] != "cell") & (swap["outcome"] == "bypass")]
  if (effects["persona"] == "all").any():
    effects = effects[effects["persona"] == "all"]
  return pd.DataFrame(
    {
      "swap": [f"{a} -> {b}" for a, b in zip(effects["first"], effects["second"], strict=True)],
      "persona": effects["persona"],
      "effect on bypasses": effects["what"],
      "value": _intervals(effects),
      "n": effects["n"],
      "missing": effects["missing"],
    }
  )


def _intervals(table: pd.DataFrame) -> list[str]:
  columns = zip(table["value"], table["low"], table["high"], strict=True)
  return [interval(*numbers) for numbers in columns]


def write_summary(found: Findings, figures: dict[str, Path], path: Path) -> Path:
  """Write notes, tables and links to figures as Markdown."""
  parts = [f"# {found.title}", "", *(f"- {note}" for note in found.notes)]
  for name, figure in figures.items():
    parts += ["", f"![{name}]({figure.relative_to(path.parent).as_posix()})"]
  for name, title in _TITLES.items():
    if name not in found.tables:
      continue
    table = found.tables[name]
    parts += ["", f"## {title}", ""]
    if table.empty:
      parts.append("None.")
      continue
    numbers = table.select_dtypes("floating").columns
    short = table.assign(**{c: table[c].round(3) + 0.0 for c in numbers})  # no -0.0
    parts.append(f"```\n{short.to_string(index=False)}\n```")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(parts) + "\n", encoding="utf-8")
  return path
