"""`Model`: parameters, architecture, tokenizer and chat format in one pytree.

The engine's calls are its methods.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import jax
import numpy as np
from jax.sharding import Mesh

from persona_jax import sharding
from persona_jax.checkpoints.checkpoint import Identity
from persona_jax.checkpoints.orbax_dir import save_orbax
from persona_jax.checkpoints.tokenizer import Tokenizer
from persona_jax.edits.compile import RowEdits
from persona_jax.engine import collect as collecting
from persona_jax.engine import generate as generating
from persona_jax.engine import stream as streaming
from persona_jax.engine.capture import Capture
from persona_jax.engine.checks import as_int
from persona_jax.engine.generate import Generation
from persona_jax.engine.moments import Moments
from persona_jax.engine.need import device_of
from persona_jax.engine.programs import DIRECT, Runner
from persona_jax.engine.sampling import Sampling
from persona_jax.engine.score import score_rows
from persona_jax.engine.settings import Settings
from persona_jax.engine.stops import special_in
from persona_jax.engine.taps import Fused, Kernels, choose
from persona_jax.models.arch import Arch
from persona_jax.models.fused_attention import FusedAttention, choose_attention
from persona_jax.personas.chat import Chat, EncodedPrompt, Prompt, encode_prompt

Progress = Callable[[int], None]  # called with the number of rows just finished


@functools.partial(jax.jit, static_argnames=("arch", "resid_dtype"))
def _embed(
  params: Mapping[str, Any], tokens_BT: jax.Array, *, arch: Arch, resid_dtype: str
) -> jax.Array:
  return arch.family.embed(arch, params, tokens_BT, resid_dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
  """A loaded model; made by `pj.load`.

  A pytree whose leaves are the parameters; everything else is static, so a `Model` passes through
  `jax.jit`.

  Attributes:
    params: {"embed_VD", "blocks": [{…}, …], "final_norm_D", …}; see the family's module.
    arch: sizes and constants.
    tokenizer: text to ids and back.
    chat: how chats are rendered, with the `system_default` that was chosen.
    identity: name, source, sha256 and quantisation of the checkpoint.
    dtype: name of the dtype of weights and products, e.g. "float32".
    resid_dtype: name of the dtype of the residual stream.
    mesh: the devices that the parameters lie on and rows are split over, or None for one device.
    config: content of config.json, as JSON.
    kernels: what `generate`, `score` and `capture` run edits of projections with, see `pj.load`.
  """

  params: Any
  arch: Arch = dataclasses.field(metadata={"static": True})
  tokenizer: Tokenizer = dataclasses.field(metadata={"static": True})
  chat: Chat = dataclasses.field(metadata={"static": True})
  identity: Identity = dataclasses.field(metadata={"static": True})
  dtype: str = dataclasses.field(metadata={"static": True})
  resid_dtype: str = dataclasses.field(metadata={"static": True})
  mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})
  config: str = dataclasses.field(default="{}", metadata={"static": True})
  kernels: Kernels = dataclasses.field(default="auto", metadata={"static": True})

  def __repr__(self) -> str:
    return (
      f"Model({self.identity.name!r}, {self.arch.family.name}, {self.arch.num_blocks} blocks of "
      f"width {self.arch.width}, {self.dtype}, residual {self.resid_dtype})"
    )

  @property
  def device(self) -> jax.Device:
    """The device that the parameters lie on, of a mesh the first; under a trace JAX's default."""
    leaf = jax.tree.leaves(self.params)[0]
    own = device_of(leaf) if self.mesh is None else None
    return own or sharding.first_device(self.mesh)

  @property
  def fused(self) -> Fused | None:
    """The kernel that `kernels` means on its device; None is plain XLA."""
    return choose(self.kernels, self.mesh, self.device)

  @property
  def attention(self) -> FusedAttention | None:
    """The kernel for attention of long prompts on its device; None is plain XLA."""
    return None if self.kernels == "xla" else choose_attention(self.mesh, self.device)

  @property
  def think_ids(self) -> tuple[int, int]:
    """Ids of the tokens "<think>" and "</think>", -1 where the vocabulary has no such token.

    They switch the role of generated tokens, which token windows may ask for.
    """
    tags = (self.tokenizer.backend.token_to_id(tag) for tag in ("<think>", "</think>"))
    opening, closing = (-1 if tag is None else tag for tag in tags)
    return opening, closing

  def save(self, path: str | Path, *, name: str | None = None) -> None:
    """Write the model as an Orbax directory, which `pj.load` puts on any mesh.

    Weights are stored in `dtype`. The copy keeps the identity of what was loaded if that dtype
    holds the stored weights exactly; otherwise its sha256 is another, so that directions of one are
    not taken for directions of the other. A model whose parameters were changed by hand needs a
    `name`: it is another model.

    Args:
      path: of a directory that is not there yet.
      name: of a model with other parameters than the one that was loaded; its identity then follows
        from them.

    Raises:
      FileExistsError: `path` exists.
    """
    identity = self.identity.stored_as(self.dtype)
    config = json.loads(self.config)
    fields = dataclasses.asdict(identity)
    save_orbax(Path(path), self.params, config, self.tokenizer, fields, self.dtype, name)

  def encode(self, prompt: Prompt) -> EncodedPrompt:
    """Render and tokenise a prompt (string, chat or `pj.Raw`); see `chat.encode_prompt`."""
    return encode_prompt(self.tokenizer, self.chat, prompt)

  @property
  def top(self) -> dict[str, Any]:
    """The parameters outside the blocks: embedding, final norm, head."""
    return {name: leaf for name, leaf in self.params.items() if name != "blocks"}

  def runner(self, run: Runner) -> Runner:
    """Return what calls the device: `run`, or on a mesh jit, which knows how arrays are split.

    Programs are for the device that the parameters lie on.
    """
    if self.mesh is not None:
      return run if run.is_dry else DIRECT
    return run.on(device_of(jax.tree.leaves(self.params)[0]))

  def embed(self, tokens_BT: jax.Array | np.ndarray, *, run: Runner = DIRECT) -> jax.Array:
    """Look token ids up, int32 [B, T]; what enters block 0, [B, T, D] in `resid_dtype`."""
    h_BTD = run("embed", _embed, self.top, tokens_BT, arch=self.arch, resid_dtype=self.resid_dtype)
    return h_BTD if run.is_dry else sharding.constrain(h_BTD, "BTD", self.mesh)

  def generate(
    self,
    prompts: Sequence[Prompt],
    *,
    edits: Sequence[RowEdits] | None = None,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | Sequence[int] = 0,
    stop: Sequence[int | str] = (),
    logprobs: bool = False,
    trace: bool = False,
    progress: Progress | None = None,
  ) -> list[Generation]:
    """Generate an answer for each prompt.

    Args:
      prompts: strings (one user turn), chats (lists of {"role", "content"}) or `pj.Raw` texts. A
        final assistant message is a started answer, which is continued.
      edits: None, or for each prompt None, an edit or a list of edits (`pj.add` …).
      max_new_tokens: budget of each row.
      temperature: 0 is greedy.
      top_k, top_p, min_p: filters, see `engine.sampling.Sampling`.
      seed: one int, or one a row. A row's noise comes from its seed and its prompt alone:
        neighbours change nothing, and the same prompt with the same seed gives the same sample.
      stop: ids or texts that end a row, beside the model's own end tokens. A text does so wherever
        it comes in the answer, also inside tokens, and the answer's text ends before it. A special
        token is no part of the text and is given by itself.
      logprobs: whether to return each token's log-probability.
      trace: whether to return where and how far edits moved each row's activations
        (`Generation.trace`).
      progress: called with the number of rows finished, tile by tile.

    Returns:
      One `Generation` a prompt, in order. Where some are not `valid`, a warning says how many and
      what the first lacks.

    Raises:
      ValueError: prompts, edits or settings do not fit; the message says which and what does.
      MemoryError: a row by itself does not fit into the device's memory; the message names it and
        what it needs. A tile of several rows is run in halves, with a warning.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    settings = Settings(max_new_tokens, sampling, *self.stops(stop), logprobs, trace)
    return generating.generate(self, prompts, settings, edits=edits, seed=seed, progress=progress)

  @overload
  def score(
    self,
    prompts: Sequence[Prompt],
    continuations: Sequence[str | Sequence[int]],
    *,
    edits: Sequence[RowEdits] | None = None,
    per_token: Literal[False] = False,
    progress: Progress | None = None,
  ) -> np.ndarray: ...

  @overload
  def score(
    self,
    prompts: Sequence[Prompt],
    continuations: Sequence[str | Sequence[int]],
    *,
    edits: Sequence[RowEdits] | None = None,
    per_token: Literal[True],
    progress: Progress | None = None,
  ) -> list[np.ndarray]: ...

  def score(
    self,
    prompts: Sequence[Prompt],
    continuations: Sequence[str | Sequence[int]],
    *,
    edits: Sequence[RowEdits] | None = None,
    per_token: bool = False,
    progress: Progress | None = None,
  ) -> np.ndarray | list[np.ndarray]:
    """Compute log-probabilities of continuations, each after its prompt.

    The continuation is tokenised by itself and follows the prompt's tokens. Token windows count
    from the end of the prompt, so "answer" edits act on its last token and on the continuation (but
    for its last token, which predicts nothing). `engine.score.score_rows` also says what the edits
    of each row delivered.

    Args:
      prompts: as in `generate`.
      continuations: texts or token ids, one a prompt.
      edits: as in `generate`.
      per_token: return a list of float64 arrays, one value a token, instead of sums.
      progress: called with the number of continuations scored.

    Returns:
      float64 [N], natural-log probability of each continuation; or the list.

    Raises:
      ValueError: lengths differ, a continuation is empty or holds ids outside the vocabulary, the
        prompts or edits do not fit, or a row did not get the edit that it asked for (`score_rows`
        says which and gives their numbers too).
      MemoryError: a row by itself does not fit into the device's memory; the message names it and
        what it needs. A tile of several rows is run in halves, with a warning.
    """
    scored = score_rows(self, prompts, continuations, edits=edits, progress=progress)
    for n, problem in enumerate(scored.problems):
      if problem:
        raise ValueError(f"prompt {n}: {problem}.")
    if per_token:
      return scored.logprobs
    return np.asarray([x.sum() for x in scored.logprobs], np.float64)

  def capture(
    self,
    prompts: Sequence[Prompt],
    capture: Capture,
    *,
    edits: Sequence[RowEdits] | None = None,
    progress: Progress | None = None,
  ) -> dict[tuple[str, int], np.ndarray]:
    """Read activations, or projections, of prompts and their given answers.

    Args:
      prompts: as in `generate`; a final assistant message is read as part of the row.
      capture: what to read.
      edits: as in `generate`.
      progress: called with the number of rows done.

    Returns:
      {(site, block): float32 array}: [N, D] or [N, R] when reduced; [N, T, ·] with T the longest
      row and NaN after a row's end otherwise.

    Raises:
      ValueError: the capture, prompts or edits do not fit, or a row did not get the edit that it
        asked for.
      MemoryError: a row by itself does not fit into the device's memory; the message names it and
        what it needs. A tile of several rows is run in halves, with a warning.
    """
    return collecting.capture(self, prompts, capture, edits=edits, progress=progress)

  def moments(
    self,
    prompts: Iterable[Prompt],
    capture: Capture,
    *,
    groups: Iterable[Hashable] | None = None,
    covariance: bool = False,
    edits: Iterable[RowEdits] | None = None,
    progress: Progress | None = None,
  ) -> Moments:
    """Take means, variances and covariances of activations, or of projections, of many prompts.

    The moments are kept on the device and no activation leaves it: memory does not grow with the
    number of prompts. Prompts that begin with the same tokens compute them once a tile.

    Args:
      prompts: as in `generate`, any iterable; tokenised as they are needed. A final assistant
        message is read as part of the row.
      capture: what to read. With reduce="last" and "mean" a prompt is one observation; with "all"
        every token in the capture's window is one. With a bank, moments are of projections.
      groups: one label a prompt (string, int, …), whose moments are kept apart; default one label,
        None, for all.
      covariance: whether to take the covariance of every pair of dimensions too: G D² floats a
        place on the device, and about 2 G D² operations an observation.
      edits: None, or for each prompt None, an edit or a list of edits. An iterator may go on
        (`itertools.repeat(edit)`); a list must be as long as the prompts are many.
      progress: called with the number of prompts done, tile by tile.

    Returns:
      `Moments`, in float64; two of shards of one stream `merge`.

    Raises:
      ValueError: there is no prompt, the capture's window holds no token of one, the capture,
        prompts, groups or edits do not fit, a row did not get the edit that it asked for, or an
        activation is NaN or infinite.
      MemoryError: a row by itself does not fit into the device's memory; the message names it and
        what it needs. A tile of several rows is run in halves, with a warning.
    """
    return streaming.moments(
      self,
      prompts,
      capture,
      groups=groups,
      covariance=covariance,
      edits=edits,
      progress=progress,
    )

  def stops(self, stop: Sequence[int | str] = ()) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return what ends a row, beside its budget: the model's end tokens and `stop`.

    Returns:
      Ids, and texts; a text that is one token is in both, so that the device knows it.

    Raises:
      ValueError: no list, an empty text, a text with a special token in it, what is neither id nor
        text, or an id outside the vocabulary.
    """
    ids, texts = list(self.tokenizer.eos_ids), []
    if isinstance(stop, str) or not isinstance(stop, Iterable):
      raise ValueError(f"stop={stop!r}: give a list of ids or texts.")
    for item in stop:
      if isinstance(item, str):
        if not item:
          raise ValueError("stop holds an empty text, which would end every row at once.")
        special = special_in(self.tokenizer, item)
        token = self.tokenizer.backend.token_to_id(special or item)
        if special not in (None, item):
          raise ValueError(
            f"stop text {item!r} holds the special token {special!r}, which is no part of an "
            f"answer's text, so it would never be found; give {special!r} by itself, as a text or "
            f"as its id {token}, or the text without it."
          )
        texts.append(item)
        if token is None or (
          special is None and self.tokenizer.decode([token], skip_special=False) != item
        ):
          continue
        item = token
      try:
        token = as_int("id", item)
      except ValueError:
        raise ValueError(f"stop holds {item!r}: give token ids (integers) or texts.") from None
      if not 0 <= token < self.arch.vocab_size:
        raise ValueError(f"stop id {token} lies outside the vocabulary of {self.arch.vocab_size}.")
      ids.append(token)
    return tuple(dict.fromkeys(ids)), tuple(dict.fromkeys(texts))
