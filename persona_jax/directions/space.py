"""Persona space: principal components of role vectors, the Assistant axis, capping thresholds.

Lu et al. 2026, "The Assistant Axis": a role's vector is the mean activation over its answers; the
axis is the mean of the default assistant's minus that of the roles. Along it models drift, and a
floor under the projection (their "capping") keeps them from it.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.directions.direction import Direction, in_common
from persona_jax.directions.formats.assistant_axis import Capping
from persona_jax.directions.tokens import capture_at, described
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import floor
from persona_jax.edits.window import Window
from persona_jax.engine.model import Model
from persona_jax.engine.rows import plain_prompt
from persona_jax.personas.chat import Prompt


def mean_vectors(
  model: Model,
  prompts: Sequence[Prompt],
  labels: Sequence[Hashable],
  *,
  site: str = "resid_post",
  tokens: str | Window = "answer_mean",
) -> dict[Hashable, Direction]:
  """Return the mean activation of the prompts of each label, at every block.

  The sums stay on the device (`Model.moments`); within an answer the mean comes first.

  Args:
    model: the model.
    prompts: chats that end with an assistant message, or prompts.
    labels: of each, such as the name of its role.
    site: where to read.
    tokens: "answer_mean", "last", or another of `tokens.window_of`.

  Returns:
    {label: a Direction [1, L, D] that is no difference, but a mean}.

  Raises:
    ValueError: as `Model.moments`.
  """
  found = model.moments(prompts, capture_at(site, tokens), groups=labels)
  by_label: dict[Hashable, list[Prompt]] = {}
  for prompt, label in zip(prompts, labels, strict=True):
    by_label.setdefault(label, []).append(prompt)
  out = {}
  for g, label in enumerate(found.labels):
    mean_LD = np.stack([found.mean[site, block][g] for block in range(model.arch.num_blocks)])
    out[label] = Direction(
      mean_LD[None],
      str(label),
      site,
      {
        "model": model.identity.name,
        "model_hash": model.identity.sha256,
        "method": "mean",
        "tokens": described(tokens),
        "count": int(found.count_G[g]),
        "data_hash": content_hash([plain_prompt(p) for p in by_label[label]]),
      },
    )
  return out


def assistant_axis(
  default: Direction | Sequence[Direction], roles: Sequence[Direction]
) -> Direction:
  """Return the Assistant axis: mean of the default assistant's vectors minus mean of the roles'.

  Args:
    default: mean activations [S, L, D] of answers without a role.
    roles: mean activations of roles.

  Raises:
    ValueError: no role, or shapes or sites that differ.
  """
  defaults = [default] if isinstance(default, Direction) else list(default)
  roles = list(roles)
  if not defaults or not roles:
    raise ValueError(f"{len(defaults)} default vectors and {len(roles)} roles; give one at least.")
  _check_alike([*defaults, *roles])
  mine, theirs = (
    np.stack([d.mean_LD for d in ds]).mean(axis=0, dtype=np.float64) for ds in (defaults, roles)
  )
  return Direction(
    np.asarray(mine - theirs)[None],
    "assistant axis",
    roles[0].site,
    {
      "method": "assistant_axis",
      **in_common([*defaults, *roles]),
      "default": [d.hash for d in defaults],
      "roles": {d.concept: d.hash for d in roles},
    },
  )


def _check_alike(ds: Sequence[Direction]) -> None:
  shapes, sites = {d.vectors_SLD.shape[1:] for d in ds}, {d.site for d in ds}
  if len(shapes) > 1 or len(sites) > 1:
    raise ValueError(f"vectors must agree in blocks, width and site; got {shapes} at {sites}.")


@dataclasses.dataclass(frozen=True, eq=False)
class PersonaSpace:
  """Principal components of R role vectors at one block; K components, largest first.

  All arrays are float64.

  Attributes:
    block: the block.
    names: of the R roles.
    mean_D: [D], mean of the role vectors.
    component_KD: [K, D], unit vectors; each points to where most of its loadings lie further out.
    loading_RK: [R, K], projections of the roles, less the mean, on the components.
    explained_K: [K], share of the variance that each explains, 0 to 1.
    null_K: [K], 95th percentile of that share where every dimension is shuffled over the roles.
  """

  block: int
  names: tuple[str, ...]
  mean_D: np.ndarray
  component_KD: np.ndarray
  loading_RK: np.ndarray
  explained_K: np.ndarray
  null_K: np.ndarray

  @property
  def num_real(self) -> int:
    """How many components, from the first on, explain more than shuffled roles would."""
    above = self.explained_K > self.null_K
    return int(np.argmin(above)) if not above.all() else len(above)

  def project(self, h_ND: np.ndarray) -> np.ndarray:
    """Return the place of activations in the space, [N, K]."""
    placed: np.ndarray = (np.asarray(h_ND, np.float64) - self.mean_D) @ self.component_KD.T
    return placed

  def cosine(self, direction: Direction) -> np.ndarray:
    """Return the cosine of a direction with each component, [K]."""
    found: np.ndarray = self.component_KD @ direction.unit_LD[self.block].astype(np.float64)
    return found


def persona_space(
  roles: Sequence[Direction], block: int, *, draws: int = 200, seed: int = 0
) -> PersonaSpace:
  """Find the principal components of role vectors, and which are more than chance.

  The null is parallel analysis (Horn 1965): each dimension is shuffled over the roles by itself, so
  that it keeps its spread and loses what it has to do with the others.

  Args:
    roles: vectors of roles, at least 3.
    block: where.
    draws: shuffles.
    seed: of the shuffles.

  Raises:
    ValueError: fewer than 3 roles, shapes that differ, or an unknown block.
  """
  roles = list(roles)
  if len(roles) < 3 or draws < 1:
    raise ValueError(f"{len(roles)} roles and {draws} draws; give 3 roles and 1 draw at least.")
  _check_alike(roles)
  num_blocks = roles[0].vectors_SLD.shape[1]
  if not 0 <= block < num_blocks:
    raise ValueError(f"block {block}: the vectors have blocks 0 to {num_blocks - 1}.")
  x_RD = np.stack([d.mean_LD[block] for d in roles]).astype(np.float64)
  mean_D = x_RD.mean(axis=0)
  u_RK, s_K, v_KD = np.linalg.svd(x_RD - mean_D, full_matrices=False)
  kept = len(roles) - 1  # the last is of what the mean took away
  loading_RK, component_KD = (u_RK * s_K)[:, :kept], v_KD[:kept]
  sign_K = np.where((loading_RK**3).sum(axis=0) < 0, -1.0, 1.0)
  rng = np.random.default_rng(seed)
  null = [_shares(rng.permuted(x_RD - mean_D, axis=0))[:kept] for _ in range(draws)]
  return PersonaSpace(
    block,
    tuple(d.concept for d in roles),
    mean_D,
    component_KD * sign_K[:, None],
    loading_RK * sign_K,
    _shares(x_RD - mean_D)[:kept],
    np.quantile(null, 0.95, axis=0),
  )


def _shares(z_RD: np.ndarray) -> np.ndarray:
  """Return the share of the variance along each component of centred rows."""
  s_K = np.linalg.svd(z_RD, compute_uv=False)
  shares: np.ndarray = s_K**2 / max(float((s_K**2).sum()), np.finfo(float).tiny)
  return shares


@dataclasses.dataclass(frozen=True, eq=False)
class Floors:
  """Least projections on an axis, by block.

  Attributes:
    axis: the direction.
    floor: {block: least projection on its unit vector, in the units of h}.
    percentile: of the measured projections that it is.
  """

  axis: Direction
  floor: Mapping[int, float]
  percentile: float

  def edits(self, *, tokens: str | Window = "all") -> list[Edit]:
    """Return the edits that keep projections at or above the floors."""
    return [
      floor(self.axis, low, unit="unit", blocks=block, tokens=tokens)
      for block, low in self.floor.items()
    ]

  def capping(self, name: str) -> Capping:
    """Return the same as assistant-axis writes it: caps of projections on the opposite vector."""
    vectors = {
      f"{self.axis.concept}/{block}": (block, -self.axis.unit_LD[block]) for block in self.floor
    }
    caps = [(key, -low) for key, low in zip(vectors, self.floor.values(), strict=True)]
    return Capping(vectors, {name: caps})


def floors(
  model: Model,
  chats: Sequence[Prompt],
  axis: Direction,
  blocks: Sequence[int],
  *,
  percentile: float = 25.0,
  tokens: str | Window = "answer_mean",
) -> Floors:
  """Measure where to keep projections: a percentile of what some chats have.

  Which chats these are decides what the floor means. assistant-axis names its thresholds by the
  percentile ("p0.25") of what answers of all its roles have, where a quarter is about the mean of
  the default assistant's; a quarter of the default assistant's own answers would be a higher floor.

  Args:
    model: the model.
    chats: chats that end with an answer.
    axis: along which.
    blocks: where.
    percentile: 0 to 100.
    tokens: "answer_mean" for means over answers, or another of `tokens.window_of`.

  Raises:
    ValueError: no block, an unknown one, a percentile outside [0, 100], or a chat with no answer.
  """
  if not blocks or not 0 <= percentile <= 100:
    raise ValueError(
      f"blocks {list(blocks)} at percentile {percentile}: give blocks, and 0 to 100."
    )
  reads = model.capture(chats, capture_at(axis.site, tokens, blocks=list(blocks), bank=axis))
  low = {}
  for block in blocks:
    z_N = reads[axis.site, block][:, 0]
    if np.isnan(z_N).any():
      raise ValueError(f"chats {np.flatnonzero(np.isnan(z_N))[:5].tolist()} have no answer.")
    low[int(block)] = float(np.percentile(z_N, percentile))
  return Floors(axis, low, percentile)
