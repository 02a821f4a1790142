"""Features of sparse autoencoders as edits: a file's encoder and decoder, add and clamp."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from persona_jax.edits.edit import Edit
from persona_jax.edits.learned import array_hash, make_edit
from persona_jax.edits.table import HEAD_SITE, SITES
from persona_jax.edits.target import is_index
from persona_jax.edits.window import Window

_NEEDED = ("W_enc", "W_dec", "b_enc", "b_dec")
# SAELens architectures of which a feature can be computed by itself.
_ARCHITECTURES = ("standard", "jumprelu")


@dataclasses.dataclass(frozen=True, eq=False)
class SparseAutoencoder:
  """A ReLU or JumpReLU autoencoder of one site.

  f = x where x > threshold, else 0, with x = h W_enc + b_enc; reconstruction f W_dec + b_dec.

  Attributes:
    encode_DF, decode_FD: float32.
    encode_bias_F: float32; what the decoder's bias takes off the input is in it.
    threshold_F: float32, 0 for a ReLU.
    name: where it came from.
    home: site and block that it was trained on, None if the file does not say.
  """

  encode_DF: np.ndarray
  decode_FD: np.ndarray
  encode_bias_F: np.ndarray
  threshold_F: np.ndarray
  name: str
  home: tuple[str, int] | None = None

  def __post_init__(self) -> None:
    if self.encode_DF.ndim != 2:
      raise ValueError(f"{self.name}: the encoder is {self.encode_DF.shape}, not [D, F].")
    width, num = self.encode_DF.shape
    shapes = (self.decode_FD.shape, self.encode_bias_F.shape, self.threshold_F.shape)
    if shapes != ((num, width), (num,), (num,)):
      raise ValueError(
        f"{self.name}: encoder {(width, num)}, decoder, encoder bias, threshold {shapes}; they "
        f"must be {((num, width), (num,), (num,))}."
      )
    arrays = (self.encode_DF, self.decode_FD, self.encode_bias_F, self.threshold_F)
    if not all(np.isfinite(array).all() for array in arrays):
      raise ValueError(f"{self.name} holds a NaN or an infinity.")

  @property
  def num_features(self) -> int:
    """F."""
    return self.encode_DF.shape[1]

  def activation(self, h: np.ndarray, feature: int) -> np.ndarray:
    """Return a feature's activation on activations [..., D], float64."""
    x = h.astype(np.float64) @ self.encode_DF[:, feature].astype(np.float64)
    x = x + self.encode_bias_F[feature]
    return np.where(x > self.threshold_F[feature], x, 0.0)


def load_sae(path: str | Path) -> SparseAutoencoder:
  """Read an autoencoder.

  Args:
    path: an `.npz` with W_enc [D, F], W_dec [F, D], b_enc, b_dec and, for JumpReLU, threshold
      (Gemma Scope); or a `.safetensors` with those names, beside its `cfg.json` if that says more
      (SAELens: architectures "standard" and "jumprelu", no activation normalisation).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: another kind of file, a tensor that is missing or unknown, shapes that do not fit, a
      setting that is not handled.
  """
  path = Path(path)
  if path.is_dir():
    path = path / "sae_weights.safetensors"
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file.")
  config: dict[str, Any] = {}
  if path.suffix == ".npz":
    with np.load(path, allow_pickle=False) as file:
      tensors = {name: file[name] for name in file.files}
  elif path.suffix == ".safetensors":
    tensors = safetensors.numpy.load_file(path)
    beside = path.with_name("cfg.json")
    if beside.is_file():
      config = json.loads(beside.read_text(encoding="utf-8"))
      if not isinstance(config, dict):
        raise ValueError(f"{beside}: a {type(config).__name__}, not an object of settings.")
    config.setdefault("apply_b_dec_to_input", "threshold" not in tensors)
  else:
    raise ValueError(f"{path}: autoencoders are read from .npz or .safetensors files.")
  missing = [name for name in _NEEDED if name not in tensors]
  unknown = sorted(set(tensors) - {*_NEEDED, "threshold"})
  if missing or unknown:
    raise ValueError(
      f"{path}: missing {missing}, unknown {unknown}; needed are {list(_NEEDED)}, and threshold "
      "for JumpReLU."
    )
  architecture = config.get("architecture", "jumprelu" if "threshold" in tensors else "standard")
  if architecture not in _ARCHITECTURES or (architecture == "jumprelu") != ("threshold" in tensors):
    raise ValueError(
      f"{path}: architecture {architecture!r} with tensors {sorted(tensors)}; handled are "
      f"{_ARCHITECTURES}, the second with a threshold."
    )
  activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
  if activation != "relu":
    raise ValueError(f"{path}: the activation {activation!r} is not handled, only 'relu'.")
  normalised = config.get("normalize_activations", "none")
  if normalised not in ("none", None):
    raise ValueError(f"{path}: normalize_activations={normalised!r} is not handled, only 'none'.")
  wide = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
  bias_F = wide["b_enc"]
  if wide["b_dec"].shape != wide["W_enc"].shape[:1] or not np.isfinite(wide["b_dec"]).all():
    raise ValueError(f"{path}: b_dec {wide['b_dec'].shape} must be one finite number a width.")
  if config.get("apply_b_dec_to_input", False):
    bias_F = bias_F - wide["b_dec"] @ wide["W_enc"]
  return SparseAutoencoder(
    wide["W_enc"].astype(np.float32),
    wide["W_dec"].astype(np.float32),
    bias_F.astype(np.float32),
    np.asarray(tensors.get("threshold", np.zeros(bias_F.shape)), np.float32),
    path.name,
    _home(config),
  )


def _home(config: dict[str, Any]) -> tuple[str, int] | None:
  """Return the site and block of a SAELens hook name, which is one of TransformerLens."""
  name = str(config.get("hook_name", config.get("hook_point", "")))
  match = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", name)
  return (match[2], int(match[1])) if match and match[2] in SITES else None


def _feature_edit(
  op: str,
  sae: SparseAutoencoder,
  feature: int,
  blocks: int,
  tokens: str | Window,
  site: str,
  numbers: dict[str, float],
  **amounts: Any,
) -> Edit:
  if not is_index(feature, sae.num_features):
    raise ValueError(f"feature={feature!r}: {sae.name} has features 0 to {sae.num_features - 1}.")
  if site == HEAD_SITE:
    raise ValueError(f"features act on whole activations, not at {HEAD_SITE!r}.")
  if not isinstance(blocks, (int, np.integer)):
    raise ValueError(f"blocks={blocks!r}: an autoencoder belongs to one block; name it.")
  if sae.home is not None and sae.home != (site, int(blocks)):
    raise ValueError(
      f"{sae.name} was trained at {sae.home[0]!r} of block {sae.home[1]}; the edit is to act at "
      f"{site!r} of block {blocks}."
    )
  encode_D, decode_D = sae.encode_DF[:, feature], sae.decode_FD[feature]
  if not decode_D.any():
    raise ValueError(f"feature {feature} of {sae.name} has a decoder vector of zeros.")
  scalars = {
    "bias": float(sae.encode_bias_F[feature]),
    "threshold": float(sae.threshold_F[feature]),
    "beta": 0.0, "shift": 0.0, "lo": -np.inf, "hi": np.inf,
  } | numbers  # fmt: skip
  return make_edit(
    op,
    "feature",
    site,
    blocks,
    tokens,
    {"encode": encode_D[None, None], "decode": decode_D[None, None]}
    | {name: np.full((1, 1), value) for name, value in scalars.items()},
    width=encode_D.size,
    source=f"{sae.name}:{feature}",
    source_hash=array_hash(encode_D, decode_D, np.asarray([scalars["bias"]])),
    feature=int(feature),
    **amounts,
  )


def sae_add(
  sae: SparseAutoencoder,
  feature: int,
  amount: float,
  *,
  blocks: int,
  tokens: str | Window = "answer",
  site: str = "resid_post",
) -> Edit:
  """Make the edit h + amount · decoder vector of a feature.

  Args:
    sae: the autoencoder, of `pj.load_sae`.
    feature: its index.
    amount: in units of the feature's activation.
    blocks: the block that the autoencoder belongs to.
    tokens, site: as `pj.add`.

  Raises:
    ValueError: an unknown feature, or an amount that is not finite.
  """
  if not np.isfinite(amount):
    raise ValueError(f"amount={amount!r}: give a finite number.")
  numbers = {"shift": float(amount)}
  return _feature_edit("sae_add", sae, feature, blocks, tokens, site, numbers, amount=float(amount))


def sae_clamp(
  sae: SparseAutoencoder,
  feature: int,
  lo: float,
  hi: float | None = None,
  *,
  blocks: int,
  tokens: str | Window = "answer",
  site: str = "resid_post",
) -> Edit:
  """Make the edit that moves h along a feature's decoder vector until its activation is in bounds.

  With f the activation that is read, h + (clip(f, lo, hi) - f) · decoder vector; what the
  autoencoder does not explain stays (Templeton et al. 2024).

  Args:
    sae, feature, blocks, tokens, site: as `sae_add`.
    lo: lower bound.
    hi: upper bound; default `lo`, which sets the activation.

  Raises:
    ValueError: crossed or infinite bounds, or an unknown feature.
  """
  hi = lo if hi is None else hi
  if not (np.isfinite(lo) and np.isfinite(hi) and lo <= hi):
    raise ValueError(f"clamp bounds lo={lo!r}, hi={hi!r}: give finite numbers, lo <= hi.")
  numbers = {"lo": float(lo), "hi": float(hi)}
  return _feature_edit(
    "sae_clamp", sae, feature, blocks, tokens, site, numbers, lo=float(lo), hi=float(hi)
  )
