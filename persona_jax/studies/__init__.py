"""Studies as functions: `prompt_vs_steering` (stages), `summary` (its tables), `findings` (its words)."""
