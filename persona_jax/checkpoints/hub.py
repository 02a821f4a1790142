"""Models on the Hugging Face hub: `owner/name`, `owner/name@revision`, `owner/name/file.gguf`.

`python -m persona_jax.fetch` downloads them into the hub's own cache, which other tools share;
loading reads that cache and never the network. `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and
`HF_HUB_OFFLINE` mean what they mean to `huggingface_hub`. No code of a repository is run, and its
pickled weights are not downloaded.
"""

import dataclasses
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
  HfHubHTTPError,
  HFValidationError,
  LocalEntryNotFoundError,
  OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from persona_jax.checkpoints.safetensors_dir import PICKLED

# What `SafetensorsDir` and `Tokenizer` read.
_FILES = (
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
  "model.safetensors",
  "model.safetensors.index.json",
  "model-*-of-*.safetensors",
)
_PATTERN = re.compile(
  r"(?P<repo>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+\.gguf))?(@(?P<revision>[\w./-]+))?"
)


class _NoWeightsError(FileNotFoundError):
  """A repository without weights that can be read."""


@dataclasses.dataclass(frozen=True)
class HubId:
  """A model on the hub.

  Attributes:
    repo: "owner/name".
    file: a .gguf file in it, or None for its safetensors and tokenizer files.
    revision: branch, tag or commit; None for the main branch.
  """

  repo: str
  file: str | None = None
  revision: str | None = None

  @classmethod
  def parse(cls, text: str) -> "HubId | None":
    """Read "owner/name", with "/file.gguf" and "@revision" behind if need be; None if it is not."""
    found = _PATTERN.fullmatch(text)
    # "models/x.gguf" is a path that does not exist, not a repository called x.gguf.
    if found is None or found["repo"].endswith(".gguf"):
      return None
    try:
      validate_repo_id(found["repo"])
    except HFValidationError:
      return None
    return cls(found["repo"], found["file"], found["revision"])

  def __str__(self) -> str:
    file = f"/{self.file}" if self.file else ""
    return f"{self.repo}{file}" + (f"@{self.revision}" if self.revision else "")

  def cached(self, *, weights: bool = True) -> Path:
    """Return the directory or the .gguf file in the hub's cache.

    Args:
      weights: whether a directory must hold weights.

    Raises:
      FileNotFoundError: it was not fetched; the message has the command that does.
    """
    try:
      return self._find(local_only=True, weights=weights)
    except _NoWeightsError:
      raise
    except (LocalEntryNotFoundError, FileNotFoundError) as error:
      raise FileNotFoundError(
        f"{self} is not in the hub's cache ({huggingface_hub.constants.HF_HUB_CACHE}); get it "
        f"with: python -m persona_jax.fetch {self}{'' if weights else ' --no_weights'}"
      ) from error

  def download(self, *, weights: bool = True) -> Path:
    """Download what `cached` returns; what is there already is left alone.

    Args:
      weights: whether to download weights with configuration and tokenizer.

    Raises:
      RuntimeError: the hub cannot be reached, lacks it, or does not give it to this user.
    """
    try:
      return self._find(local_only=False, weights=weights)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
      raise RuntimeError(f"the hub did not give {self}: {error}") from error

  def licence(self) -> str:
    """Return the licence that the repository's card names; asks the hub.

    Raises:
      RuntimeError: the hub cannot be reached.
    """
    try:
      card = huggingface_hub.HfApi().model_info(self.repo, revision=self.revision).card_data
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
      raise RuntimeError(f"the hub did not say what {self} is: {error}") from error
    names = [] if card is None else [card.get(key) for key in ("license", "license_name")]
    return ", ".join(str(name) for name in names if name) or "not named in the model card"

  def _explain_absence(self, path: Path, local_only: bool) -> None:
    """Raise an error that says what a repository without safetensors has instead, if anything."""
    if local_only:
      names = sorted(file.name for file in path.iterdir())
    else:
      found = huggingface_hub.HfApi().model_info(self.repo, revision=self.revision).siblings or []
      names = sorted(file.rfilename for file in found)
    gguf = [name for name in names if name.endswith(".gguf")]
    pickled = [name for name in names if name.endswith(PICKLED)]
    if gguf:
      raise _NoWeightsError(
        f"{self} has no safetensors but GGUF files; name one: "
        + ", ".join(f"{self.repo}/{name}" for name in gguf[:8])
      )
    if pickled:
      raise _NoWeightsError(
        f"{self} has only pickled weights ({', '.join(pickled[:8])}), which are never read."
      )

  def _find(self, local_only: bool, weights: bool) -> Path:
    if self.file is None:
      path = Path(
        huggingface_hub.snapshot_download(
          self.repo,
          revision=self.revision,
          allow_patterns=[f for f in _FILES if weights or not f.endswith(".safetensors")],
          local_files_only=local_only,
        )
      )
      if weights and not any(path.glob("*.safetensors")):
        self._explain_absence(path, local_only)
      if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} has no config.json")
      return path
    return Path(
      huggingface_hub.hf_hub_download(
        self.repo, self.file, revision=self.revision, local_files_only=local_only
      )
    )


def pinned(hub_id: HubId, path: Path) -> str:
  """Return "hub:owner/name@commit" for a path of the hub's cache: …/snapshots/<commit>/…."""
  folder = f"models--{hub_id.repo.replace('/', '--')}"
  at = max(n for n, part in enumerate(path.parts) if part == folder)
  commit = path.parts[at + 2]  # models--owner--name/snapshots/<commit>
  return f"hub:{dataclasses.replace(hub_id, revision=commit)}"
