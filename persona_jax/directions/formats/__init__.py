"""Files of directions: ours and those of other tools.

`exchange` finds a file's format, reads it and writes it; a module a format does the work:
`native`, `control_vector` (GGUF), `persona_vectors`, `assistant_axis`, `refusal_direction`,
`repsteer`, `hidden_directions`. `torch_file` reads `.pt` without running it.

Layer numbers of other tools, by ours (block i puts out row i):

  GGUF, repeng, assistant-axis, hidden-directions, repsteer   k is block k
  persona_vectors                                             row r is block r - 1
  refusal_direction                                           layer l, an input, is block l - 1
"""
