"""Studies as functions, one package each: `prompt_vs_steering`, `extraction`."""
