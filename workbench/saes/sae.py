"""The arithmetic of sparse autoencoders: from an activation to features and back.

With x the input (normalised where the configuration says so), x' = x - b_dec where b_dec is applied to the input:

    standard    f = relu(x' W_enc + b_enc)
    topk        the k largest of x' W_enc + b_enc, relu of them, 0 elsewhere
    jumprelu    p = x' W_enc + b_enc;  f = relu(p) where p > threshold, 0 elsewhere
    gated       f = relu(x' (W_enc e^r_mag) + b_mag) where x' W_enc + b_gate > 0, 0 elsewhere
    output      f W_dec + b_dec, then the normalisation undone

Pure functions of tensors, in float32 or better; hooks and files are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import InputError
from workbench.saes.config import SaeConfig

_EPS = 1e-5  # of layer_norm, as in SAELens


def wanted_shapes(config: SaeConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by the name it has in the file."""
    d_in, d_sae = config.d_in, config.d_sae
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    vectors = {
        "standard": ("b_enc",),
        "topk": ("b_enc",),
        "jumprelu": ("b_enc", "threshold"),
        "gated": ("b_gate", "b_mag", "r_mag"),
    }
    return shapes | dict.fromkeys(vectors[config.architecture], (d_sae,))


@dataclass(frozen=True, eq=False)
class Sae:
    """A sparse autoencoder.

    Attributes:
        weights: by the names of the file format, float32 or better.
        digest: of the file it was read from, or "" for one that was made in memory.
        source: the folder it was read from.
    """

    config: SaeConfig
    weights: Mapping[str, Tensor] = field(repr=False)
    digest: str = ""
    source: Path | None = None

    def __post_init__(self) -> None:
        wanted = wanted_shapes(self.config)
        odd = sorted(wanted.keys() ^ self.weights.keys())
        if odd:
            what = "lacks" if odd[0] in wanted else "has an unexpected"
            raise InputError(f"A {self.config.architecture} autoencoder has {', '.join(wanted)}; this {what} {odd[0]}.")
        for name, shape in wanted.items():
            got = tuple(self.weights[name].shape)
            if got != shape:
                raise InputError(f"{name} has shape {list(got)}, but d_in and d_sae call for {list(shape)}.")
        if not all(bool(w.isfinite().all()) for w in self.weights.values()):
            raise InputError("The autoencoder's weights hold values that are not finite; its file is damaged.")

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.config.d_sae

    @property
    def encoder(self) -> Float[Tensor, "feature d_in"]:
        """The direction that each feature reads: `pre` is its product with the (normalised) input, and a constant."""
        w = self.weights
        if self.config.architecture == "gated":
            return (w["W_enc"] * w["r_mag"].exp()).T
        return (w["W_enc"] * w["W_dec"].norm(dim=-1)).T if self.config.rescale_by_decoder_norm else w["W_enc"].T

    @property
    def decoder(self) -> Float[Tensor, "feature d_in"]:
        """What a feature of activation 1 writes."""
        rows = self.weights["W_dec"]
        return rows / rows.norm(dim=-1, keepdim=True) if self.config.rescale_by_decoder_norm else rows

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """What is put through the nonlinearity (of a gated one, the magnitudes before their relu)."""
        w = self.weights
        inner = self._inner(x)
        if self.config.architecture == "gated":
            return inner @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]
        pre = inner @ w["W_enc"] + w["b_enc"]
        return pre * w["W_dec"].norm(dim=-1) if self.config.rescale_by_decoder_norm else pre

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Feature activations."""
        pre, w = self.pre(x), self.weights
        if self.config.architecture == "topk":
            assert self.config.k is not None
            return top_k(pre, self.config.k)
        if self.config.architecture == "jumprelu":
            return torch.where(pre > w["threshold"], pre.relu(), 0.0)
        if self.config.architecture == "gated":
            return torch.where(self._inner(x) @ w["W_enc"] + w["b_gate"] > 0, pre.relu(), 0.0)
        return pre.relu()

    def decode(
        self, features: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """What features write.

        Args:
            x: the input they came from; needed only where inputs are normalised one by one.
        """
        out = features.to(self.weights["W_dec"].dtype) @ self.decoder + self.weights["b_dec"]
        if self.config.normalize_activations == "none":
            return out
        if x is None:
            raise InputError(
                f"An autoencoder with normalize_activations {self.config.normalize_activations!r} decodes with the "
                "input beside the features; pass decode(features, x)."
            )
        shift, factor = self._frame(self._wide(x))
        if self.config.normalize_activations == "layer_norm":
            factor = factor - _EPS  # SAELens divides by std + eps and multiplies by std
        return out * factor + shift

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The input as the features have it."""
        return self.decode(self.encode(x), x)

    def to(self, device: torch.device | str) -> Sae:
        """The same on another device."""
        return Sae(self.config, {k: w.to(device) for k, w in self.weights.items()}, self.digest, self.source)

    def _wide(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_in:
            raise InputError(f"The autoencoder reads vectors of width {self.d_in}, not {x.shape[-1]}.")
        return x.to(self.weights["W_enc"].dtype)

    def _inner(self, x: Tensor) -> Tensor:
        x = self._wide(x)
        if self.config.normalize_activations != "none":
            shift, factor = self._frame(x)
            x = (x - shift) / factor
        return x - self.weights["b_dec"] if self.config.apply_b_dec_to_input else x

    def _frame(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and factor that each input is normalised with."""
        if self.config.normalize_activations == "layer_norm":
            return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True) + _EPS
        return torch.zeros_like(x[..., :1]), x.norm(dim=-1, keepdim=True) / self.d_in**0.5


def top_k(pre: Float[Tensor, "*batch feature"], k: int) -> Float[Tensor, "*batch feature"]:
    """The k largest, those of them below 0 as 0; everything else 0."""
    values, index = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())
