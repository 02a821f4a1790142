"""Serves a GGUF file by llama.cpp's own server, until its standard input is closed.

    python tests/parity/llama_server.py FILE

Prints the address of the OpenAI-compatible API. A process of its own, so that it can be killed.
"""

import sys

import xllamacpp


def main() -> None:
  params = xllamacpp.CommonParams()
  params.model.path = sys.argv[1]
  params.hostnames = ["127.0.0.1"]
  params.port = 0  # any that is free
  params.n_parallel, params.n_ctx = 2, 4096
  params.n_gpu_layers = 0
  params.cpuparams.n_threads = 2
  params.verbosity = 0
  server = xllamacpp.Server(params)
  print(server.listening_address, flush=True)
  sys.stdin.read()


if __name__ == "__main__":
  main()
