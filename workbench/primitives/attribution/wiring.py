"""How each block reads and writes the residual stream, found by measurement instead of by architecture name.

    q, k, v = read_attn(x) W_Q, W_K, W_V      x the stream that enters the block
    stream after attention = x + write_attn(a)     a = sum_h z_h W_O^h + b_O
    MLP input = read_mlp(x) or read_mlp(x + write_attn(a))
    block output = x + write_attn(a) + write_mlp(m)

Each of the four maps is the identity or one of the block's own norms: pre-norm, post-norm (Gemma-2, OLMo-2) and
parallel blocks (NeoX, GPT-J) are all of this form. On a few random tokens every combination is tried in every layer,
and the one that reproduces the model's own activations is taken; a model where none does has no edges here. It never
knows what the edges will be used for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import CapabilityError
from workbench.primitives.attribution.graph import Graph
from workbench.primitives.capture import capture
from workbench.primitives.suffix import agree, some_tokens, tolerance_beside
from workbench.primitives.sweep.units import attention_layers

if TYPE_CHECKING:
    from workbench.models import Model

Map = Callable[[Tensor], Tensor]
Key = TypeVar("Key")
_HOOKS = {
    "x": "hook_in",
    "attn_in": "attn.hook_in",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "a": "attn.hook_out",
    "mlp_in": "mlp.hook_in",
    "m": "mlp.hook_out",
    "out": "hook_out",
}


def hook_name(layer: int, what: str) -> str:
    """Name of an activation of a block: x, attn_in, q, k, v, z, a, mlp_in, m, out."""
    return f"blocks.{layer}.{_HOOKS[what]}"


def identity(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, eq=False)
class Block:
    """One block's maps and weights.

    Attributes:
        attn: the attention module, where the weights are read.
        read_attn, read_mlp: from the stream to what attention and MLP are given.
        write_attn, write_mlp: from their outputs to what is added to the stream.
        mlp_sees_attn: whether the MLP reads the stream after attention; False in a parallel block.
    """

    attn: Any

    read_attn: Map
    read_mlp: Map
    write_attn: Map
    write_mlp: Map
    mlp_sees_attn: bool

    def w_in(self, what: str) -> Float[Tensor, "index d_model d_head"]:
        """W_Q by head, W_K or W_V by kv group, in float32 or better."""
        return wide(getattr(self.attn, f"W_{what.upper()}").detach())

    @property
    def w_o(self) -> Float[Tensor, "head d_head d_model"]:
        """In float32 or better."""
        return wide(self.attn.W_O.detach())

    def mlp_stream(self, x: Tensor, a: Tensor) -> Tensor:
        """The stream that the MLP reads."""
        return x + self.write_attn(a) if self.mlp_sees_attn else x


@dataclass(frozen=True, eq=False)
class Wiring:
    """Every block of a model.

    Attributes:
        notes: what a reader of edge scores should know about this model.
    """

    blocks: tuple[Block, ...]
    graph: Graph
    notes: tuple[str, ...] = ()


_known: WeakKeyDictionary[Any, Wiring | str] = WeakKeyDictionary()


def wiring(model: Model) -> Wiring:
    """The model's wiring, measured once per loaded model.

    Raises:
        CapabilityError: the model is not wired in the form above; says where it differs.
    """
    found = find(model)
    if isinstance(found, str):
        raise CapabilityError(
            f"Edges of {model.name!r} cannot be scored, because {found}; score its nodes instead (level: node)."
        )
    return found


def find(model: Model) -> Wiring | str:
    """The wiring, or in words why there is none."""
    if model not in _known:
        try:
            with torch.no_grad():
                _known[model] = _measure(model)
        except Exception as error:  # whatever goes wrong in an unknown architecture means that nothing may be assumed
            text = str(error).splitlines()[0][:160] if str(error) else ""
            _known[model] = f"measuring its wiring failed ({type(error).__name__}: {text.rstrip('.')})"
    return _known[model]


def _measure(model: Model) -> Wiring | str:
    layers = range(model.n_layers)
    if len(attention_layers(model)) < model.n_layers:
        return "some of its blocks have no attention heads"
    if not model.capabilities.head_ablation_ok:
        return "its head outputs cannot be edited one by one"
    missing = [n for at in layers for w in _HOOKS if (n := hook_name(at, w)) not in model.bridge.hook_dict]
    if missing:
        return f"it has no {missing[0]}"
    seen = capture(model, some_tokens(model), [hook_name(layer, what) for layer in layers for what in _HOOKS])
    blocks: list[Block] = []
    for layer in layers:
        acts = {what: seen[hook_name(layer, what)] for what in _HOOKS}
        if layer and not agree(acts["x"], seen[hook_name(layer - 1, "out")].to(acts["x"].device)):
            return f"block {layer} does not read what block {layer - 1} wrote"
        block = _block(model, layer, acts)
        if isinstance(block, str):
            return block
        blocks.append(block)
    graph = Graph(model.n_layers, model.n_heads, model.n_kv_heads, tuple(b.mlp_sees_attn for b in blocks))
    return Wiring(tuple(blocks), graph, tuple(_notes(model, blocks)))


def _block(model: Model, layer: int, acts: dict[str, Tensor]) -> Block | str:
    maps = _candidates(model.bridge.blocks[layer])
    x, a, m = acts["x"], acts["a"], acts["m"]
    read_attn = _closest({f: f(x) for f in maps}, acts["attn_in"])
    if read_attn is None:
        return f"what attention reads in block {layer} is not a norm of the stream"
    writes = _closest({(f, g): x + f(a) + g(m) for f in maps for g in maps}, acts["out"])
    if writes is None:
        return f"block {layer} does not add its attention and MLP outputs (or norms of them) to the stream"
    streams = {True: x + writes[0](a), False: x}
    reads = _closest({(f, late): f(streams[late]) for late in streams for f in maps}, acts["mlp_in"])
    if reads is None:
        return f"what the MLP reads in block {layer} is not a norm of the stream"
    block = Block(model.bridge.blocks[layer].attn, read_attn, reads[0], *writes, reads[1])
    for what in ("q", "k", "v"):
        if not _explains(acts["attn_in"], block.w_in(what), acts[what]):
            return f"hook_{what} of block {layer} is not its input times W_{what.upper()}"
    summed = torch.einsum("bphd,hdm->bpm", wide(acts["z"]), block.w_o)
    if not agree(_spread(summed), _spread(wide(a)), tolerance=tolerance_beside(a.dtype)):
        return f"attention in block {layer} is not the heads' sum z W_O + b_O"
    return block


def _closest(made: dict[Key, Tensor], want: Tensor) -> Key | None:
    """The key of what comes closest to `want`, the first of equals; None when that is not close enough.

    Closest on average: a few huge entries of the stream must not hide what is added to the others.
    """
    errors = {key: float((wide(value) - wide(want)).abs().mean()) for key, value in made.items()}
    best = min(errors, key=lambda key: errors[key])
    return best if agree(made[best], want) else None


def _candidates(block: Any) -> list[Map]:
    """The identity and the block's own norms."""
    norms = [m for name, m in block.named_children() if isinstance(m, nn.Module) and "Norm" in type(m).__name__]
    return [identity, *norms]


def _explains(read: Tensor, weight: Float[Tensor, "index d_model d_head"], got: Tensor) -> bool:
    """Whether `got` is `read` times `weight`, up to a bias."""
    if got.ndim != 4 or got.shape[2] != weight.shape[0] or got.shape[3] != weight.shape[2]:
        return False
    made = torch.einsum("bpm,imd->bpid", wide(read), weight)
    return agree(_spread(made), _spread(wide(got)), tolerance=tolerance_beside(got.dtype))


def _spread(values: Tensor) -> Tensor:
    """What differs between positions, so that a bias cancels."""
    return values - values[:1, :1]


def wide(values: Tensor) -> Tensor:
    """In float32 or better."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _notes(model: Model, blocks: list[Block]) -> list[str]:
    notes = []
    if any(block.write_attn is not identity for block in blocks):
        notes.append(
            "a norm follows attention: a head's contribution is what its change alone, with all other heads of the "
            "layer as in the base run, adds to the stream after that norm"
        )
    norm = getattr(getattr(model.bridge.blocks[0].attn, "q_norm", None), "weight", None)
    if isinstance(norm, Tensor) and norm.numel() > model.d_head:
        notes.append("a norm over all heads follows q and k: an edge into one head's q or k also rescales the others'")
    return notes
