"""Where in a model an autoencoder belongs, whether it fits there, and the activations it reads.

An autoencoder reads vectors `[row, d_in]`. At most hook points the model holds `[batch, pos, d_in]`; at `hook_z` it
holds `[batch, pos, head, d_head]`, and the heads are read side by side. An autoencoder trained on rewritten weights
(layer norms folded in, writing weights centred) is refused on a model that has them as they were, and the other way
round: its features would be those of another vector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives.attribution.wiring import Wiring, find, identity
from workbench.primitives.capture import capture
from workbench.primitives.hooks import Hook, hook_points
from workbench.primitives.suffix import some_tokens

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.saes.sae import Sae

KINDS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")
_NAME = re.compile(r"blocks\.(\d+)\.(?:hook_(resid_pre|resid_post|attn_out|mlp_out)|attn\.hook_(z))")


@dataclass(frozen=True)
class Place:
    """A hook point that autoencoders may sit at.

    Attributes:
        name: of the hook point.
        kind: `resid_pre`, `resid_post`, `attn_out`, `mlp_out` or `z`.
        layer: of the block.
        shape: of one activation: `(d_model,)`, or `(n_heads, d_head)` at z.
        home: where autoencoders compute: with the tokens, wherever the layer is.
    """

    name: str
    kind: str
    layer: int
    shape: tuple[int, ...]
    home: torch.device

    @property
    def width(self) -> int:
        """d_in of an autoencoder here."""
        return int(torch.Size(self.shape).numel())

    @property
    def stop_at_layer(self) -> int:
        """First layer that need not run for the activation to be known."""
        return self.layer + 1

    def flat(self, value: Tensor) -> Float[Tensor, "batch pos d_in"]:
        """An activation as autoencoders read it, float32 or better, at home."""
        return value.flatten(2).to(self.home, torch.promote_types(value.dtype, torch.float32))

    def edit(self, change: Callable[[Float[Tensor, "batch pos d_in"]], Tensor]) -> Hook:
        """A hook that puts `change(activation)` in the place of the activation."""

        def put(value: Tensor, _: Any) -> Tensor:
            return change(self.flat(value)).to(value.device, value.dtype).reshape(value.shape)

        return self.name, put


def find_place(model: Model, hook_name: str) -> Place:
    """The hook point of that name, if an autoencoder can be applied there.

    Raises:
        InputError: no such hook point, or one whose edits do not stand for the activation.
    """
    matched = _NAME.fullmatch(hook_name)
    if matched is None:
        known = ", ".join(f"blocks.L.{'attn.' if kind == 'z' else ''}hook_{kind}" for kind in KINDS)
        raise InputError(f"Autoencoders cannot be applied at {hook_name!r}; they can at {known}.")
    hook_points(model, [hook_name])
    layer, kind = int(matched[1]), matched[2] or matched[3]
    if kind in ("attn_out", "mlp_out"):
        found = find(model)
        block = found.blocks[layer] if isinstance(found, Wiring) else None
        if block is None or (block.write_attn if kind == "attn_out" else block.write_mlp) is not identity:
            raise InputError(
                f"What {model.name!r} adds to the stream is not its {hook_name!r} but a norm of it, so that an "
                "autoencoder of the one is none of the other; choose one at resid_post."
            )
    with torch.no_grad():
        seen = capture(model, some_tokens(model, batch=1), [hook_name], stop_at_layer=layer + 1)
    return Place(hook_name, kind, layer, tuple(seen[hook_name].shape[2:]), model.device)


def fit(model: Model, sae: Sae, *, any_basis: bool = False) -> Place:
    """Where the autoencoder belongs in this model.

    Args:
        any_basis: do not compare what weights it was trained on; for who knows that they make no difference there.

    Raises:
        InputError: no such hook point, another width, another basis.
    """
    place = find_place(model, sae.config.hook_name)
    if place.width != sae.d_in:
        raise InputError(
            f"The autoencoder reads vectors of width {sae.d_in}, but {place.name!r} of {model.name!r} has "
            f"{' x '.join(map(str, place.shape))}; it was trained on {sae.config.metadata.get('model_name')!r}."
        )
    stated = sae.config.trained_on
    if stated is not None and stated != model.basis and not any_basis:
        remedy = (
            "enable TransformerLens' compatibility mode on the bridge before loading it"
            if stated == "folded"
            else "load the model as it is"
        )
        raise InputError(
            f"The autoencoder was trained on a model with {stated} weights (model_from_pretrained_kwargs), but "
            f"{model.name!r} has {model.basis} ones; {remedy}, or pass any_basis if they agree at {place.name!r}."
        )
    return place


def batches(n: int, size: int) -> Iterator[slice]:
    """Rows 0 to n - 1 in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def activations(
    model: Model, place: Place, tokens: Int[Tensor, "n pos"], mask: Int[Tensor, "n pos"] | None, *, rows: int = 16
) -> Float[Tensor, "n pos d_in"]:
    """The vectors that an autoencoder reads there, padding included.

    Memory: all of them, float32; the model runs on `rows` prompts at a time, up to the layer of the hook point.
    """
    found = []
    for part in batches(len(tokens), rows):
        kept = None if mask is None else mask[part]
        with torch.no_grad():
            seen = capture(model, tokens[part], [place.name], attention_mask=kept, stop_at_layer=place.stop_at_layer)
        found.append(place.flat(seen[place.name]))
    return torch.cat(found)
