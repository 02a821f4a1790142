"""Single files of data sets on the Hugging Face hub: `hub:ORG/NAME/FILE`, `…@revision`.

`python -m persona_jax.fetch` downloads them into the hub's own cache; reading never uses the
network. `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean to
`huggingface_hub`. Only plain tables are read, and no code of a repository is run.
"""

import dataclasses
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
  HfHubHTTPError,
  LocalEntryNotFoundError,
  OfflineModeIsEnabled,
)

from persona_jax.data.row_files import FORMATS

_PREFIX = "hub:"
_PATTERN = re.compile(
  r"hub:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[\w./ -]+)(@(?P<revision>[\w./-]+))?"
)


@dataclasses.dataclass(frozen=True)
class HubFile:
  """A file of a data set on the hub.

  Attributes:
    repo: "owner/name" of the data set.
    file: path in it, ending in .jsonl, .csv or .parquet.
    revision: branch, tag or commit; None for the main branch.
  """

  repo: str
  file: str
  revision: str | None = None

  @staticmethod
  def is_named_by(text: str) -> bool:
    """Tell whether a name is meant as a file of the hub."""
    return text.startswith(_PREFIX)

  @classmethod
  def parse(cls, text: str) -> "HubFile":
    """Read "hub:ORG/NAME/FILE" or "hub:ORG/NAME/FILE@REVISION".

    Raises:
      ValueError: it is not of this form, or names no table that can be read.
    """
    found = _PATTERN.fullmatch(text)
    if found is None or not found["file"].endswith(FORMATS):
      raise ValueError(
        f"{text!r}: a file of a data set is hub:ORG/NAME/FILE, FILE ending in {', '.join(FORMATS)},"
        " with @REVISION behind if wanted."
      )
    return cls(found["repo"], found["file"], found["revision"])

  def __str__(self) -> str:
    return f"{_PREFIX}{self.repo}/{self.file}" + (f"@{self.revision}" if self.revision else "")

  def cached(self) -> Path:
    """Return the file in the hub's cache.

    Raises:
      FileNotFoundError: it was not fetched; the message has the command that does.
    """
    try:
      return self._find(local_only=True)
    except (LocalEntryNotFoundError, FileNotFoundError) as error:
      raise FileNotFoundError(
        f"{self} is not in the hub's cache ({huggingface_hub.constants.HF_HUB_CACHE}); get it "
        f"with: python -m persona_jax.fetch '{self}'"
      ) from error

  def download(self) -> Path:
    """Download the file, unless it is there already, and return its path.

    Raises:
      RuntimeError: the hub cannot be reached, lacks it, or does not give it to this user.
    """
    try:
      return self._find(local_only=False)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
      raise RuntimeError(f"the hub did not give {self}: {error}") from error

  def licence(self) -> str:
    """Return the licence that the data set's card names; asks the hub.

    Raises:
      RuntimeError: the hub cannot be reached.
    """
    try:
      card = huggingface_hub.HfApi().dataset_info(self.repo, revision=self.revision).card_data
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
      raise RuntimeError(f"the hub did not say what {self} is: {error}") from error
    names = [] if card is None else [card.get(key) for key in ("license", "license_name")]
    return ", ".join(str(name) for name in names if name) or "not named in the data set's card"

  def source(self, path: Path) -> str:
    """Return "hub:ORG/NAME/FILE@COMMIT" of a path in the hub's cache."""
    folder = f"datasets--{self.repo.replace('/', '--')}"
    at = max(n for n, part in enumerate(path.parts) if part == folder)
    commit = path.parts[at + 2]  # datasets--owner--name/snapshots/<commit>
    return str(dataclasses.replace(self, revision=commit))

  def _find(self, local_only: bool) -> Path:
    return Path(
      huggingface_hub.hf_hub_download(
        self.repo,
        self.file,
        repo_type="dataset",
        revision=self.revision,
        local_files_only=local_only,
      )
    )
