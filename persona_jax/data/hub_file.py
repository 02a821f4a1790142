"""Files of data sets on the Hugging Face hub, read from the hub's cache."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

_PATTERN = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[\w./-]+\.(jsonl|csv|parquet))")


@dataclasses.dataclass(frozen=True)
class HubFile:
  """One file of a data set.

  Attributes:
    repo: "owner/name".
    file: its path there.
  """

  repo: str
  file: str

  @classmethod
  def parse(cls, text: str) -> HubFile:
    """Read "hub:owner/name/file".

    Raises:
      ValueError: it is written otherwise, or the file is of no kind that is read.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
      raise ValueError(
        f"{text!r}: hub:OWNER/NAME/FILE fits, where the file ends in .jsonl, .csv or .parquet"
      )
    return cls(found["repo"], found["file"])

  def __str__(self) -> str:
    return f"hub:{self.repo}/{self.file}"

  def cached(self) -> Path:
    """Return the file in the hub's cache.

    Raises:
      FileNotFoundError: it was not fetched; the message has the command that does.
    """
    try:
      return self._find(local_only=True)
    except LocalEntryNotFoundError as error:
      raise FileNotFoundError(
        f"{self} is not in the hub's cache; get it with: python -m persona_jax.fetch {self}"
      ) from error

  def download(self) -> Path:
    """Download what `cached` returns.

    Raises:
      RuntimeError: the hub cannot be reached, lacks it, or does not give it to this user.
    """
    try:
      return self._find(local_only=False)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
      raise RuntimeError(f"the hub did not give {self}: {error}") from error

  def _find(self, local_only: bool) -> Path:
    return Path(
      huggingface_hub.hf_hub_download(
        self.repo, self.file, repo_type="dataset", local_files_only=local_only
      )
    )
