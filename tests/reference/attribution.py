"""Slow twin of attribution: raw Hugging Face modules, one forward pass per node, edge, example and point of the path.

The activation in question is moved by `s` times its change, with `s` a scalar: the derivative of the metric by s at 0
is the first-order score, by autograd through the whole model, and the metric at s = 1 is the exact value.
Shares no code with TransformerLens or the workbench: no gradient of an activation is read, no Jacobian is written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Names(NamedTuple):
    """Where an architecture keeps its parts, by attribute path; "" where it has none."""

    blocks: str
    final: str
    attn: str
    o: str
    norm_attn: str
    norm_mlp: str
    post_attn: str = ""
    post_mlp: str = ""
    joint: str = ""  # q, k and v in one projection


_LLAMA = Names("model.layers", "model.norm", "self_attn", "o_proj", "input_layernorm", "post_attention_layernorm")
NAMES = {
    "gpt2": Names("transformer.h", "transformer.ln_f", "attn", "c_proj", "ln_1", "ln_2", joint="c_attn"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": _LLAMA,
    "neox": Names(
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        "attention",
        "dense",
        "input_layernorm",
        "post_attention_layernorm",
        joint="query_key_value",
    ),
    "gemma2": _LLAMA._replace(
        norm_mlp="pre_feedforward_layernorm",
        post_attn="post_attention_layernorm",
        post_mlp="post_feedforward_layernorm",
    ),
    "olmo2": _LLAMA._replace(
        norm_attn="", norm_mlp="", post_attn="post_attention_layernorm", post_mlp="post_feedforward_layernorm"
    ),
}


class Twin:
    """One raw model and one pair of prompts (one example, no padding)."""

    def __init__(self, arch: str, hf: Any, base: list[int], other: list[int], metric: Callable[[Tensor], Tensor]):
        self.hf, self.metric = hf, metric
        self.names = NAMES[arch]
        self.blocks = self._get(hf, self.names.blocks)
        self.n_layers, self.n_heads = len(self.blocks), hf.config.num_attention_heads
        self.n_groups = getattr(hf.config, "num_key_value_heads", None) or self.n_heads
        embed = hf.get_input_embeddings()
        self.start = {"base": embed(torch.tensor([base])), "other": embed(torch.tensor([other]))}
        self.seen = {name: self._record(start) for name, start in self.start.items()}

    # ---- the two runs

    def value(self, start: Tensor) -> Tensor:
        return self.metric(self.hf(inputs_embeds=start).logits[0, -1])

    def _record(self, start: Tensor) -> dict[str, Tensor]:
        """z, attention output and MLP output of every layer, and the stream that enters block 0."""
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                attn = getattr(block, self.names.attn)
                o = getattr(attn, self.names.o)
                stack.enter_context(_pre(o, lambda x, at=layer: seen.update({f"z{at}": x})))
                stack.enter_context(_post(o, lambda y, at=layer: seen.update({f"a{at}": y})))
                stack.enter_context(_post(block.mlp, lambda y, at=layer: seen.update({f"m{at}": y})))
                stack.enter_context(_pre(block, lambda x, at=layer: seen.update({f"x{at}": x})))
            seen["value"] = self.value(start)
        return seen

    # ---- scores: the mean over the path of d metric / d s at s = 0; exact: metric at s = 1 minus metric at s = 0

    def node(self, kind: str, layer: int = -1, head: int = -1, path: tuple[float, ...] = (1.0,)) -> float:
        return self._slope(lambda s: self._move_node(kind, layer, head, s), path)

    def node_exact(self, kind: str, layer: int = -1, head: int = -1) -> float:
        return self._jump(self._move_node(kind, layer, head, torch.tensor(1.0)))

    def edge(self, sender: tuple, receiver: tuple, path: tuple[float, ...] = (1.0,)) -> float:
        change = self.sent(*sender)
        return self._slope(lambda s: self._move_receiver(*receiver, s * change), path)

    def edge_exact(self, sender: tuple, receiver: tuple) -> float:
        return self._jump(self._move_receiver(*receiver, self.sent(*sender)))

    def _slope(self, move: Callable[[Tensor], Any], path: tuple[float, ...]) -> float:
        total = 0.0
        for fraction in path:
            s = torch.zeros((), requires_grad=True, dtype=self.start["base"].dtype)
            start = fraction * self.start["base"] + (1 - fraction) * self.start["other"]
            with move(s):
                value = self.value(start)
            total += float(torch.autograd.grad(value, s)[0])
        return total / len(path)

    def _jump(self, moved: Any) -> float:
        with torch.no_grad(), moved:
            return float(self.value(self.start["base"]) - self.seen["base"]["value"])

    # ---- what is moved

    def sent(self, kind: str, layer: int = -1, head: int = -1) -> Tensor:
        """What a sender adds to the stream in the other run and not in the base run."""
        here, there = self.seen["base"], self.seen["other"]
        if kind == "input":
            return there["x0"] - here["x0"]
        block = self.blocks[layer]
        if kind == "mlp":
            post = self._norm(block, self.names.post_mlp)
            return post(there[f"m{layer}"]) - post(here[f"m{layer}"])
        width = here[f"z{layer}"].shape[-1] // self.n_heads
        only = torch.zeros_like(here[f"z{layer}"])
        rows = slice(head * width, (head + 1) * width)
        only[..., rows] = (there[f"z{layer}"] - here[f"z{layer}"])[..., rows]
        o = getattr(getattr(block, self.names.attn), self.names.o)
        change = only @ (o.weight if type(o).__name__ == "Conv1D" else o.weight.T)
        post = self._norm(block, self.names.post_attn)
        return post(here[f"a{layer}"] + change) - post(here[f"a{layer}"])

    def _move_node(self, kind: str, layer: int, head: int, s: Tensor) -> Any:
        here, there = self.seen["base"], self.seen["other"]
        if kind == "input":
            return _pre(self.blocks[0], lambda x: x + s * (there["x0"] - here["x0"]))
        block = self.blocks[layer]
        if kind == "mlp":
            post = self._norm(block, self.names.post_mlp)
            change = post(there[f"m{layer}"]) - post(here[f"m{layer}"])
            target = self._norm(block, self.names.post_mlp) if self.names.post_mlp else block.mlp
            return _post(target, lambda y: y + s * change)
        width = here[f"z{layer}"].shape[-1] // self.n_heads
        mask = torch.zeros(here[f"z{layer}"].shape[-1])
        mask[head * width : (head + 1) * width] = 1
        change = mask * (there[f"z{layer}"] - here[f"z{layer}"])
        return _pre(getattr(getattr(block, self.names.attn), self.names.o), lambda x: x + s * change)

    @contextmanager
    def _move_receiver(self, kind: str, layer: int, index: int, change: Tensor):
        if kind == "logits":
            with _pre(self._get(self.hf, self.names.final), lambda x: x + change):
                yield
            return
        block = self.blocks[layer]
        if kind == "mlp":  # the norm in front of the MLP, or the MLP itself, has no other reader
            with _pre(self._get(block, self.names.norm_mlp or "mlp"), lambda x: x + change):
                yield
            return
        stream: dict[str, Tensor] = {}
        norm = self._norm(block, self.names.norm_attn)
        projection, rows = self._projection(block, kind, index)

        def replace(output: Tensor) -> Tensor:
            moved = norm(stream["x"] + change)
            weight = projection.weight if type(projection).__name__ == "Conv1D" else projection.weight.T
            fresh = moved @ weight + (0 if projection.bias is None else projection.bias)
            return torch.cat([output[..., : rows.start], fresh[..., rows], output[..., rows.stop :]], dim=-1)

        with _pre(block, lambda x: stream.update(x=x)), _post(projection, replace):
            yield

    def _projection(self, block: nn.Module, kind: str, index: int) -> tuple[Any, slice]:
        """The linear layer that makes q, k or v, and the entries of its output that are this head or group."""
        attn = getattr(block, self.names.attn)
        if not self.names.joint:
            projection = getattr(attn, f"{kind}_proj")
            width = projection.out_features // (self.n_heads if kind == "q" else self.n_groups)
            return projection, slice(index * width, (index + 1) * width)
        projection = getattr(attn, self.names.joint)
        width, which = self.hf.config.hidden_size // self.n_heads, "qkv".index(kind)
        if self.names.joint == "c_attn":  # all q, then all k, then all v
            first = which * self.hf.config.hidden_size + index * width
        else:  # head by head q, k, v
            first = (3 * index + which) * width
        return projection, slice(first, first + width)

    def _norm(self, block: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
        return getattr(block, name) if name else lambda x: x

    def _get(self, module: Any, path: str) -> Any:
        for name in path.split("."):
            module = getattr(module, name)
        return module


@contextmanager
def _pre(module: nn.Module, edit: Callable[[Tensor], Tensor | None]):
    """Show the module's first input to `edit`, and use what it returns, if anything."""

    def hook(_: Any, args: tuple, kwargs: dict) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        new = edit(x)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _post(module: nn.Module, edit: Callable[[Tensor], Tensor | None]):
    handle = module.register_forward_hook(lambda _m, _a, y: edit(y))
    try:
        yield
    finally:
        handle.remove()
