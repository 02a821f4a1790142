"""A judge behind any OpenAI-compatible endpoint: asked side by side, cached on disk, counted.

A reply that was given is on disk before the next one is awaited, so that a judge which is stopped
goes on with what is missing. What fails after all retries is missing, with a reason, and is asked
again the next time: nothing that failed is cached.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import math
import os
import re
import tempfile
import threading
import urllib.parse
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.scorers.judges.base import Item, Judge, Reply, too_little
from persona_jax.scorers.judges.rubric import LETTERS, Rubric

if TYPE_CHECKING:
  import openai

_TOP = 20  # most likely next tokens that endpoints give
_KEPT = {"text", "top", "tokens_in", "tokens_out"}
_LETTER = re.compile(r"[\s\"'(\[*]*([A-H])[\s\"'.):\]*]*")


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Where a judge is, and how it is asked.

  Attributes:
    base_url: of the API, such as "https://api.openai.com/v1" or "http://localhost:8000/v1".
    model: its name there.
    name: what stands for the address in the key that replies are kept by; "" for host and path.
      Neither scheme nor port is part of it: a local server is the same judge on another port. So on
      one host `model` must tell its judges apart (many local servers take any name: give the
      checkpoint's), and a judge that moves to another host keeps its replies under a name alone.
    key_variable: environment variable that holds the key; "" for none. The key is written nowhere.
    logprobs: whether to weigh the letters by the probabilities that the endpoint gives of the next
      token; else, and where it gives none, the letter that it replies counts alone.
    temperature, max_tokens: of the reply.
    concurrency: requests at one time.
    retries: of a request, where the limit of requests is reached, or the connection, the server or
      the time fails; with growing pauses.
    timeout: of a request, in seconds.
    least_mass: with `logprobs`, the probability that the letters need together.
    price_in, price_out: of a million tokens, in any currency; both, or None for unknown.

  Raises:
    ValueError: a number is out of bounds, or one price is given without the other.
  """

  base_url: str
  model: str
  name: str = ""
  key_variable: str = "OPENAI_API_KEY"
  logprobs: bool = True
  temperature: float = 0.0
  max_tokens: int = 4
  concurrency: int = 8
  retries: int = 4
  timeout: float = 60.0
  least_mass: float = 0.5
  price_in: float | None = None
  price_out: float | None = None

  def __post_init__(self) -> None:
    least = {"max_tokens": 1, "concurrency": 1, "retries": 0, "temperature": 0, "timeout": 1e-3}
    for name, number in least.items():
      if getattr(self, name) < number:
        raise ValueError(f"{name}={getattr(self, name)}: at least {number} is needed")
    if not 0 <= self.least_mass <= 1:
      raise ValueError(f"least_mass={self.least_mass}: a share from 0 to 1 fits")
    prices = (self.price_in, self.price_out)
    if (self.price_in is None) != (self.price_out is None) or any(p and p < 0 for p in prices):
      raise ValueError(
        f"price_in={self.price_in}, price_out={self.price_out}: both, of at least 0, or neither fit"
      )

  @property
  def asked(self) -> dict[str, Any]:
    """What a reply depends on, apart from what is asked."""
    url = urllib.parse.urlsplit(self.base_url)
    return {
      "server": self.name or f"{url.hostname or ''}{url.path.rstrip('/')}",
      "model": self.model,
      "logprobs": self.logprobs,
      "temperature": self.temperature,
      "max_tokens": self.max_tokens,
    }


@dataclasses.dataclass
class Usage:
  """What an endpoint judge has taken so far.

  Attributes:
    requests: that were sent and answered.
    cached: replies that were on disk.
    failures: by reason.
    tokens_in, tokens_out: of the answered requests, as the endpoint counts.
    cost: of them, by the prices; None without prices.
  """

  requests: int = 0
  cached: int = 0
  failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  tokens_in: int = 0
  tokens_out: int = 0
  cost: float | None = None


class EndpointJudge(Judge):
  """Ask a rubric of a model behind an endpoint.

  Attributes:
    rubric: that it is asked.
    endpoint: where, and how.
    cache: directory of replies, by hash of all that they depend on.
    places: what stands in the rubric's further places, for all rows.
    usage: counts, over all calls of this object.

  Raises:
    ImportError: the package openai is not installed.
    ValueError: the environment does not hold the key.
  """

  def __init__(
    self,
    rubric: Rubric,
    endpoint: Endpoint,
    cache: str | Path,
    *,
    places: Mapping[str, str] | None = None,
    progress: bool = False,
  ):
    """Check that the endpoint can be asked; nothing is sent."""
    _openai()
    if endpoint.key_variable and not os.environ.get(endpoint.key_variable):
      raise ValueError(
        f"the environment variable {endpoint.key_variable} is not set; it holds the key of "
        f"{endpoint.base_url} (key_variable='' for an endpoint without one)"
      )
    self.rubric, self.endpoint, self.cache = rubric, endpoint, Path(cache)
    self.places = dict(places or {})
    self.usage = Usage(cost=None if endpoint.price_in is None else 0.0)
    self._progress = progress

  @property
  def describe(self) -> dict[str, Any]:
    """Who judges."""
    return {
      "judge": self.endpoint.model,
      "base_url": self.endpoint.base_url,
      **self.endpoint.asked,
      "rubric": self.rubric.name,
      "rubric_version": self.rubric.version,
      "rubric_sha256": self.rubric.sha256,
      "places": dict(self.places),
      "least_mass": self.endpoint.least_mass,
    }

  def replies(self, items: Sequence[Item]) -> list[tuple[Reply, Reply]]:
    """Return the letters' probabilities in both orders; what is on disk is not asked again."""
    asked = [item.ask(self.rubric, order) for item in items for order in self.rubric.orders()]
    found = _run(self._ask_all(asked))
    return list(zip(found[::2], found[1::2], strict=True))

  async def _ask_all(self, asked: Sequence[str]) -> list[Reply]:
    openai = _openai()
    key = os.environ.get(self.endpoint.key_variable, "") if self.endpoint.key_variable else ""
    limit = asyncio.Semaphore(self.endpoint.concurrency)
    bar = tqdm.tqdm(total=len(asked), unit="request", desc=self.name, disable=not self._progress)
    async with openai.AsyncOpenAI(
      base_url=self.endpoint.base_url,
      api_key=key or "none",
      timeout=self.endpoint.timeout,
      max_retries=self.endpoint.retries,
    ) as client:

      async def one(text: str) -> Reply:
        async with limit:
          reply = await self._ask(client, text)
        bar.update()
        return reply

      with bar:
        return list(await asyncio.gather(*map(one, asked)))

  async def _ask(self, client: openai.AsyncOpenAI, text: str) -> Reply:
    openai = _openai()
    path = self.path_of(text)
    kept = _read(path)
    if kept is None:
      more: dict[str, Any] = {}
      if self.endpoint.logprobs:
        more = {"logprobs": True, "top_logprobs": _TOP}
      try:
        answer = await client.chat.completions.create(
          model=self.endpoint.model,
          messages=[{"role": "user", "content": text}],
          temperature=self.endpoint.temperature,
          max_tokens=self.endpoint.max_tokens,
          **more,
        )
        kept = _kept(answer.model_dump())
      except openai.APIStatusError as error:
        return self._failed(f"endpoint: status {error.status_code}")
      except openai.APITimeoutError:
        return self._failed("endpoint: no reply in time")
      except openai.APIConnectionError:
        return self._failed("endpoint: no connection")
      except (openai.OpenAIError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return self._failed("endpoint: not a reply of the API's form")
      self._count(kept)
      _write(path, kept)
    else:
      self.usage.cached += 1
    reply = self._reply(kept)
    if reply.p_of_letter is None:
      self.usage.failures[reply.reason] += 1
    return reply

  def path_of(self, text: str) -> Path:
    """Return where the reply to a text is kept: by server, model, options, rubric and text."""
    key = content_hash([self.endpoint.asked, self.rubric.name, self.rubric.version, text])
    return self.cache / key[:2] / f"{key}.json"

  def _failed(self, reason: str) -> Reply:
    self.usage.failures[reason] += 1
    return Reply(None, reason)

  def _count(self, kept: Mapping[str, Any]) -> None:
    used = self.usage
    used.requests += 1
    used.tokens_in += kept["tokens_in"]
    used.tokens_out += kept["tokens_out"]
    price_in, price_out = self.endpoint.price_in, self.endpoint.price_out
    if price_in is not None and price_out is not None:
      used.cost = (used.tokens_in * price_in + used.tokens_out * price_out) / 1e6

  def _reply(self, kept: Mapping[str, Any]) -> Reply:
    """Read a reply: by probabilities where there are some, else by the letter it consists of."""
    letters = LETTERS[: len(self.rubric.options)]
    if self.endpoint.logprobs and kept["top"]:
      p_of_letter = dict.fromkeys(letters, 0.0)
      for token, logprob in kept["top"]:
        if token.strip() in p_of_letter:
          p_of_letter[token.strip()] += math.exp(logprob)
      mass = math.fsum(p_of_letter.values())
      if mass >= self.endpoint.least_mass and mass > 0:
        return Reply(p_of_letter)
      return Reply(None, too_little(mass, self.endpoint.least_mass))
    found = _LETTER.fullmatch(kept["text"])
    if found is None or found[1] not in letters:
      return Reply(None, f"the reply is none of the letters {letters}")
    return Reply({found[1]: 1.0})


def _kept(answer: Mapping[str, Any]) -> dict[str, Any]:
  """Return what is kept of a reply: its text, the likeliest first tokens, and what it took."""
  choice, used = answer["choices"][0], answer.get("usage") or {}
  content = (choice.get("logprobs") or {}).get("content") or []
  top = content[0].get("top_logprobs") or [content[0]] if content else []
  text = choice["message"]["content"]
  if not isinstance(text, str):
    raise ValueError("a reply without text")
  return {
    "text": text,
    "top": [[str(t["token"]), float(t["logprob"])] for t in top],
    "tokens_in": int(used.get("prompt_tokens") or 0),
    "tokens_out": int(used.get("completion_tokens") or 0),
  }


def _read(path: Path) -> dict[str, Any] | None:
  try:
    kept = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):  # a file that is not whole is asked for again
    return None
  return kept if isinstance(kept, dict) and set(kept) == _KEPT else None


def _write(path: Path, kept: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name)
  with os.fdopen(handle, "w", encoding="utf-8") as file:
    json.dump(kept, file)
  os.replace(part, path)


def _openai() -> Any:
  try:
    import openai
  except ImportError as error:
    raise ImportError(
      "judges behind an endpoint need the package openai: pip install 'persona_jax[judges]'"
    ) from error
  return openai


def _run(work: Coroutine[Any, Any, list[Reply]]) -> list[Reply]:
  """Run to the end, in a thread of its own where a loop is running already (in notebooks)."""
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    return asyncio.run(work)
  found: list[Reply] = []
  errors: list[BaseException] = []

  def target() -> None:
    try:
      found.extend(asyncio.run(work))
    except BaseException as error:  # handed on to the caller's thread
      errors.append(error)

  thread = threading.Thread(target=target)
  thread.start()
  thread.join()
  if errors:
    raise errors[0]
  return found
