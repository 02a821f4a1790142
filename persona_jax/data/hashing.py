"""Hashes of plain values, the same on every machine and in every process."""

import hashlib
import json


def content_hash(value: object) -> str:
  """Return the sha256 (hex) of the canonical JSON of `value`: sorted keys, no spaces, UTF-8.

  Raises:
    TypeError: the value is no JSON value.
  """
  text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
  return hashlib.sha256(text.encode("utf-8")).hexdigest()
