"""Artifacts of repsteer: a folder of manifest.json, tensors.safetensors and checksums.json.

One artifact is one vector, "direction" [D], at one site of one layer, with layer i our block i. A
`Direction` is written as a folder with one artifact for each of its blocks, `block-<i>`, each of
which repsteer loads; both layouts are read. Checksums and the fingerprint are checked.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import blocks_of, direction_of, file_name, mean_of, sha256

NAME = "repsteer"
_MANIFEST, _TENSORS, _CHECKSUMS = "manifest.json", "tensors.safetensors", "checksums.json"
# Sites that have the same name there; repsteer has none for what enters attention and MLP.
_SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def is_artifact(path: Path) -> bool:
  """Return whether a folder has the files of an artifact."""
  return all((path / name).is_file() for name in (_MANIFEST, _TENSORS))


def read(path: Path, *, num_blocks: int | None = None) -> list[Direction]:
  """Read an artifact, or a folder of artifacts: those of one concept and site make one direction.

  Raises:
    ValueError: a checksum or fingerprint is wrong, or an artifact is no direction of a block.
  """
  folders = [path] if is_artifact(path) else sorted(f.parent for f in path.rglob(_MANIFEST))
  if not folders:
    raise ValueError(f"{path} holds no artifact of repsteer.")
  found: dict[tuple[str, str], dict[int, np.ndarray]] = {}
  manifests: dict[tuple[str, str], dict[str, Any]] = {}
  for folder in folders:
    manifest, v_D = _read_artifact(folder)
    site = manifest["site"]
    component, layer = site.get("component"), site.get("layer")
    if site.get("stream") != "language" or component not in _SITES or not isinstance(layer, int):
      raise ValueError(f"{folder}: site {site} is none that we have; known are {_SITES}.")
    if site.get("unit") is not None or site.get("io", "output") != "output":
      raise ValueError(f"{folder}: site {site} is a part of one; whole outputs are read.")
    concept = (manifest.get("provenance") or {}).get("concept")
    key = concept or (folder.name if folder == path else folder.parent.name), component
    if layer in found.setdefault(key, {}):
      raise ValueError(f"{folder}: there is another artifact of {key} at layer {layer}.")
    found[key][layer] = v_D
    manifests[key] = manifest
  directions = []
  for (concept, component), rows in found.items():
    manifest = manifests[concept, component]
    known = dict((manifest.get("provenance") or {}).get("persona_jax", {}))
    all_blocks = known.pop("num_blocks", None)
    if None not in (all_blocks, num_blocks) and all_blocks != num_blocks:
      raise ValueError(f"{path}: of a model of {all_blocks} blocks; this one has {num_blocks}.")
    known |= {"method": manifest.get("method") or None, "seed": manifest.get("seed")}
    known["model"] = (manifest.get("model") or {}).get("id") or None
    directions.append(
      direction_of(
        rows,
        path=path,
        file_format=NAME,
        concept=concept,
        num_blocks=all_blocks if num_blocks is None else num_blocks,
        site=component,
        provenance=known,
      )
    )
  return directions


def _read_artifact(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
  try:
    manifest = json.loads((folder / _MANIFEST).read_text())
    checksums = json.loads((folder / _CHECKSUMS).read_text())["files"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{folder} is no artifact of repsteer: {error!r}.") from error
  for name in (_MANIFEST, _TENSORS):
    stated = str(checksums.get(name)).removeprefix("sha256:")
    if sha256(folder / name) != stated:
      raise ValueError(f"{folder / name} does not have the checksum that {_CHECKSUMS} states.")
  if str(manifest.get("schema_version", "")).split(".")[0] != "1":
    raise ValueError(f"{folder}: schema {manifest.get('schema_version')!r}; 1.x is read.")
  kind = manifest.get("artifact_type")
  if kind != "direction" or not isinstance(manifest.get("site"), dict):
    raise ValueError(
      f"{folder}: a {kind!r}; of repsteer's artifacts directions at a site are read."
    )
  try:
    with safetensors.safe_open(folder / _TENSORS, framework="numpy") as file:
      tensors = {name: file.get_tensor(name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise ValueError(f"{folder / _TENSORS} is damaged: {error}.") from error
  if set(tensors) != {"direction"}:
    raise ValueError(f"{folder}: tensors {sorted(tensors)}; a direction has one, 'direction'.")
  stated = manifest.get("artifact_fingerprint")
  if stated and stated != _fingerprint(manifest, tensors["direction"]):
    raise ValueError(f"{folder}: the fingerprint of its manifest is not that of its content.")
  return manifest, tensors["direction"]


def _fingerprint(manifest: dict[str, Any], v_D: np.ndarray) -> str:
  """Return repsteer's fingerprint of an artifact's content."""
  content = {k: v for k, v in manifest.items() if k not in ("tensor_keys", "artifact_fingerprint")}
  digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
  for part in (b"direction", f"torch.{v_D.dtype}".encode(), str(v_D.shape).encode()):
    digest.update(part)
  digest.update(np.ascontiguousarray(v_D).tobytes())
  return f"sha256:{digest.hexdigest()}"


def write(directions: Sequence[Direction], path: Path) -> list[Path]:
  """Write folders of artifacts, one artifact for each block with a vector; means over replicates.

  Raises:
    ValueError: a site that repsteer has not, or two directions of one name.
  """
  names = [file_name(d.concept) for d in directions]
  if len(set(names)) < len(names):
    raise ValueError(f"directions need different names; got {names}.")
  folders = []
  for direction, name in zip(directions, names, strict=True):
    if direction.site not in _SITES:
      raise ValueError(
        f"repsteer has no site {direction.site!r} (direction {direction.concept!r}); it has "
        f"{_SITES}."
      )
    v_LD = mean_of(
      direction, path, "an artifact of repsteer", direction.site, keeps_provenance=True
    )
    for block in blocks_of(direction):
      folder = path / f"block-{block}" if len(names) == 1 else path / name / f"block-{block}"
      _write_artifact(direction, folder, block, v_LD[block])
      folders.append(folder)
  return folders


def _write_artifact(direction: Direction, folder: Path, block: int, v_D: np.ndarray) -> None:
  known = dict(direction.provenance)
  site = {"stream": "language", "component": direction.site, "layer": block}
  manifest: dict[str, Any] = {
    "schema_version": "1.0",
    "artifact_type": "direction",
    "method": str(known.get("method") or ""),
    "model": {
      "id": str(known.get("model") or ""),
      "revision": None,
      "architecture": known.get("model_type"),
      "hidden_size": len(v_D),
    },
    "tokenizer": {},
    "processor": {},
    "modality": {},
    "site": site | {"unit": None, "io": "output", "tensor_path": []},
    "normalization": None,
    "dtype": "float32",
    "dataset_fingerprint": known.get("data_hash"),
    "seed": known.get("seed"),
    "config": {},
    "library": {"name": "persona_jax"},
    "provenance": {
      "concept": direction.concept,
      "persona_jax": known | {"num_blocks": direction.vectors_SLD.shape[1]},
    },
  }
  v_D = np.ascontiguousarray(v_D, np.float32)
  manifest |= {
    "tensor_keys": ["direction"],
    "artifact_fingerprint": _fingerprint(manifest, v_D),
  }
  folder.mkdir(parents=True, exist_ok=True)
  files = {
    _TENSORS: safetensors.numpy.save({"direction": v_D}),
    _MANIFEST: (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode(),
  }
  sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
  content = {"algorithm": "sha256", "files": sums}
  files[_CHECKSUMS] = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
  for name, data in files.items():
    partial = folder / f".{name}.{os.getpid()}.partial"
    partial.write_bytes(data)
    partial.replace(folder / name)
