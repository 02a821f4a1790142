"""*Persona Non Grata*: the same personas by system prompt and by steering, and what each does.

The design of arXiv 2604.11120 with the controls, matches and statistics that its questions need;
method, not replication: layers, coefficients, judge and prompts of that paper are not public.

    extract    directions of personas and of refusal, replicate by replicate     DIR/directions
    calibrate  doses, the block, steering matched to prompting                   DIR/calibration
    generate   every arm on the same prompts                                     DIR/grids
    analyse    gates, tables, the four hypotheses                                DIR/tables

Each stage reads what the ones before it have written, so it can be run by itself; what is there is
kept.
"""
