"""Studies as functions: `prompt_vs_steering` (stages), `summary` (tables), `findings` (words)."""
