"""Geometry of directions and refusal: what aligns with it, and what acts on it.

`metrics` are inner products; `cosines` tables of cosines with null bands, intervals (by `gram`) and
a check of block numbers; `gradients` and `coupling` are what an addition does to refusal, by
differentiation backwards and forwards and in finite doses; `decoy` tells where a cosine explains
nothing; `census` measures many directions at one dose; `mediation` holds refusal back.
"""
