"""How long and with how much memory a checkpoint of more than 2 GB loads: `make bench-load`.

Writes random weights of the sizes of Llama 3.2 1B (bfloat16, two safetensors files and an index)
into a temporary directory. Each load runs in a process of its own under a limit of resident memory:
a watcher kills it above

    what Python and JAX held before + arrays + 1.25 x the largest slice + 300 MB

where the slice is the largest part of a tensor that one device holds; the process reports its own
peak (VmHWM). Cold loads begin with the files dropped
from the page cache. The floor is a plain read of the same bytes, cold and warm, in the same run.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from persona_jax.models import families
from persona_jax.models.params import stored_shape

CONFIG = {
  "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
  "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
  "tie_word_embeddings": True, "rope_theta": 500000.0, "max_position_embeddings": 131072,
  "rms_norm_eps": 1e-5,
}  # fmt: skip
ALLOWANCE = 300e6
SLICES = 1.25

CHILD = """
import json, sys, time
import jax
import persona_jax as pj
source, dtype, parts = sys.argv[1], sys.argv[2], int(sys.argv[3])
mesh = pj.make_mesh(model=parts) if parts > 1 else None
status = lambda key: int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1])
before = status("VmRSS") * 1024
print(before, flush=True)
begun = time.perf_counter()
model = pj.load(source, dtype=dtype, mesh=mesh)
jax.block_until_ready(model.params)
seconds = time.perf_counter() - begun
arrays = sum(s.data.nbytes for x in jax.tree.leaves(model.params) for s in x.addressable_shards)
print(json.dumps(dict(seconds=seconds, peak=status("VmHWM") * 1024 - before, arrays=arrays)))
"""


def write_checkpoint(directory: Path) -> int:
  """Write the checkpoint; return its bytes."""
  family = families.family("llama")
  arch = family.parse(CONFIG)
  params = family.abstract_params(arch)
  rng = np.random.default_rng(0)
  noise = (rng.standard_normal(1 << 24, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
  shards: list[dict[str, np.ndarray]] = [{}, {}]
  size = 0
  for name, weight in family.weight_map(arch).items():
    leaf = params
    for key in weight.path:
      leaf = leaf[key]
    shape = stored_shape(weight, leaf.shape)
    shards[size > 1.2e9][name] = np.resize(noise, shape)
    size += 2 * math.prod(shape)
  names = [f"model-{i + 1:05d}-of-00002.safetensors" for i in range(2)]
  for file, tensors in zip(names, shards, strict=True):
    save_file(tensors, directory / file)
    with (directory / file).open("rb") as stream:
      os.fsync(stream.fileno())
  index = {name: file for file, tensors in zip(names, shards, strict=True) for name in tensors}
  (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  (directory / "config.json").write_text(json.dumps(CONFIG))
  words = tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
  tokenizers.Tokenizer(words).save(str(directory / "tokenizer.json"))
  return size


def forget(directory: Path) -> None:
  """Drop the files from the page cache."""
  for path in directory.iterdir():
    with path.open("rb") as stream:
      os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain_read(directory: Path) -> float:
  """Return the seconds that reading every byte takes."""
  begun, buffer = time.perf_counter(), bytearray(32 << 20)
  for path in sorted(directory.glob("*.safetensors")):
    with path.open("rb", buffering=0) as stream:
      while stream.readinto(buffer):
        pass
  return time.perf_counter() - begun


def load(directory: Path, cache: Path, dtype: str, parts: int, limit: float) -> dict[str, float]:
  """Load in a process of its own; kill it when it has grown by more than `limit` bytes."""
  flags = f"--xla_force_host_platform_device_count={parts}"
  environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "XDG_CACHE_HOME": str(cache)}
  command = [sys.executable, "-c", CHILD, str(directory), dtype, str(parts)]
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=os.environ | environment
  )
  page = os.sysconf("SC_PAGE_SIZE")
  assert process.stdout is not None
  limit += int(process.stdout.readline())
  while process.poll() is None:
    try:
      resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page
    except (FileNotFoundError, IndexError, ProcessLookupError):
      break
    if resident > limit:
      process.kill()
      raise SystemExit(f"FAILED: {resident / 1e6:.0f} MB resident, {limit / 1e6:.0f} allowed")
    time.sleep(0.005)
  output = process.communicate()[0]
  if process.returncode:
    raise SystemExit(f"FAILED: the load ended with {process.returncode}")
  return json.loads(output)


def main() -> None:
  argparse.ArgumentParser(description=__doc__).parse_args()
  with tempfile.TemporaryDirectory() as folder:
    directory = Path(folder) / "model"
    directory.mkdir()
    size = write_checkpoint(directory)
    head = f"{size / 1e9:.2f} GB bfloat16 in two files; {os.cpu_count()} CPU cores, measured"
    print(f"{head}\n")
    floor = {}
    for heat in ("cold", "warm"):
      if heat == "cold":
        forget(directory)
      floor[heat] = plain_read(directory)
      print(f"plain read, {heat}: {floor[heat]:.2f} s ({size / floor[heat] / 1e9:.1f} GB/s)")
    print(
      "\ndtype     devices  cache  seconds  / plain read  arrays MB  peak beyond MB  allowed MB"
    )
    embedding = CONFIG["vocab_size"] * CONFIG["hidden_size"]  # the largest tensor
    for dtype, parts in (("bfloat16", 1), ("bfloat16", 8), ("float32", 1)):
      width = 2 if dtype == "bfloat16" else 4
      allowed = SLICES * embedding * width / parts + ALLOWANCE
      cache = Path(folder) / f"cache-{dtype}-{parts}"  # without hashes: cold loads make them
      for heat in ("cold", "warm"):
        if parts > 1 and heat == "cold":
          cache = Path(folder) / "cache-bfloat16-1"
          continue
        if heat == "cold":
          forget(directory)
        # Replicated on every device: the norms, and keys and values where 8 heads do not divide.
        got = load(directory, cache, dtype, parts, size * width / 2 * 1.02 + allowed)
        beyond = got["peak"] - got["arrays"]
        print(
          f"{dtype:9s} {parts:7d}  {heat:5s} {got['seconds']:8.2f} "
          f"{got['seconds'] / floor[heat]:13.1f} {got['arrays'] / 1e6:10.0f} {beyond / 1e6:15.0f} "
          f"{allowed / 1e6:11.0f}",
          flush=True,
        )
        if beyond > allowed:
          raise SystemExit("FAILED: more than allowed")


if __name__ == "__main__":
  main()
