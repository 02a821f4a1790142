"""The engine: `rows` and tiles, `prefill` of shared prefixes, `decode`, and what users call through `model`:
`generate`, `score`, `collect` (captures). `forward` is the pure pass below them all."""
