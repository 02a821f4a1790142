"""The engine: `rows` and tiles, `prefill` of shared prefixes, `decode`.

What users call through `model`: `generate`, `score`, `collect` (captures), `stream` (moments of
captures). `forward` is the pure pass below them all.
"""
