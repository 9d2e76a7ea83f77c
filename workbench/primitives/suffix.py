"""Run a model from some block on, with everything below taken from a run already made.

A patch in block L leaves the blocks below as they were, so they need not be computed again; and a path through frozen
attention needs no attention at all. Both are had without knowing any architecture: for one call a block is replaced by
"return the stream I give you", an attention module by "return the output I give you", and the model's own code does
the rest: norms before and after, parallel or sequential blocks, the final norm and the unembedding.

`Run` is what was recorded, `run_from` the partial forward, `resumes_exactly` the check, on the model at hand, that the
two give what a whole forward gives. Nothing here knows what is patched or why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.swap import as_output, hidden_in, hidden_out, output_width, swapped, with_hidden
from workbench.primitives.sweep.exactness import exactness
from workbench.primitives.sweep.fork import last_block
from workbench.primitives.sweep.prompts import Prompts

if TYPE_CHECKING:
    from workbench.models import Model

Swap = Mapping[nn.Module, Callable[..., Any]]
Part = Literal["stream", "attn", "mlp"]


@dataclass
class Run:
    """One forward pass over all examples, and what it showed.

    Attributes:
        tokens, mask: what was run; mask None when nothing is padded.
        stream: what enters block L, by L; entry `n_layers` is what leaves the last block.
        attn, mlp: what the attention and MLP modules return, before any norm that follows them.
        kept: further activations, by the names they were asked for.
        logits: at the last column.

    Memory: `(stream, attn, mlp) x n_layers x n x pos x d_model`, on the model's device and in its dtype.
    """

    tokens: Int[Tensor, "n pos"]
    mask: Int[Tensor, "n pos"] | None
    stream: dict[int, Float[Tensor, "n pos d_model"]]
    attn: dict[int, Float[Tensor, "n pos d_model"]]
    mlp: dict[int, Float[Tensor, "n pos d_model"]]
    kept: dict[str, Tensor]
    logits: Float[Tensor, "n vocab"]
    widths: dict[nn.Module, int | None] = field(default_factory=dict)  # form of what a module returns


def record(
    model: Model,
    tokens: Int[Tensor, "n pos"],
    *,
    attention_mask: Int[Tensor, "n pos"] | None = None,
    names: Sequence[str] = (),
    parts: Sequence[Part] = ("stream",),
    batch_rows: int = 64,
) -> Run:
    """Run everything once. `names` are hook names to keep, `parts` which fields of the run are filled."""
    made: list[Run] = []
    for start in range(0, len(tokens), batch_rows):
        mask = None if attention_mask is None else attention_mask[start : start + batch_rows]
        part = Run(tokens[start : start + batch_rows], mask, {}, {}, {}, {}, torch.empty(0))
        handles = _watch(model, part, parts)
        try:
            with hooked(model, [(name, _keep(part.kept, name)) for name in names], copy=False):
                part.logits = forward(model, part.tokens, attention_mask=mask, logits_to_keep=1).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()
        made.append(part)
    return made[0] if len(made) == 1 else _joined(made, tokens, attention_mask)


class Stop(Exception):
    """Raised by a hook or a replacement to end a partial run: all that was wanted has been seen."""


def run_from(
    model: Model,
    run: Run,
    start: int,
    rows: Int[Tensor, " batch"],
    *,
    stream: Float[Tensor, "batch pos d_model"] | None = None,
    hooks: Sequence[Hook] = (),
    swaps: Swap | None = None,
    last_only: bool = False,
) -> Float[Tensor, "batch vocab"] | None:
    """Logits at the last column of examples `rows` of `run`, computed from block `start` on; None after a `Stop`.

    A last block without hooks or replacements is computed at the last column only, where that is exact (`exactness`).

    Args:
        start: first block that is computed; `n_layers` for none.
        stream: what enters that block, instead of what `run` says.
        hooks: as for `hooked`, on blocks from `start` on; they return new tensors.
        swaps: replacements of modules in those blocks.
        last_only: compute the last column alone, which is all there is to it when no block mixes positions; the
            replaced modules return that column.
    """
    blocks = list(model.bridge.blocks)
    tokens = run.tokens[rows.to(run.tokens.device)]
    mask = None if run.mask is None else run.mask[rows.to(run.mask.device)]
    replaced: dict[nn.Module, Callable[..., Any]] = dict(swaps or {})
    last_only = last_only or start == len(blocks)
    if start or last_only:
        given = run.stream[start][rows.to(run.stream[start].device)] if stream is None else stream
        if last_only:
            given, tokens, mask = given[:, -1:], tokens[:, -1:], None
        for block in blocks[:start]:
            replaced[block] = frozen(run, block, lambda: given)
        if start == 0:
            replaced[blocks[0]] = _reading(blocks[0].forward, given)
    if start < len(blocks) and not last_only and _untouched(blocks, hooks, replaced) and _shortens(model):
        at_end = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        prompts = Prompts(rows, tokens, mask, at_end)
        replaced[blocks[-1]] = last_block(blocks[-1], len(blocks) - 1, prompts, run.widths[blocks[-1]])
    try:
        with swapped(replaced), hooked(model, hooks, copy=False, must_fire=False):
            return forward(model, tokens, attention_mask=mask, logits_to_keep=1).logits[:, -1]
    except Stop:
        return None


def _reading(call: Callable[..., Any], given: Tensor) -> Callable[..., Any]:
    """A block that reads `given`, whatever it is called with."""

    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = with_hidden(args, kwargs, given.to(hidden_in(args, kwargs).device))
        return call(*args, **kwargs)

    return run


def _untouched(blocks: Sequence[Any], hooks: Sequence[Hook], swaps: Swap) -> bool:
    """Whether nothing is hooked or replaced in the last block."""
    inside = set(blocks[-1].modules())
    return not any(name.startswith(f"blocks.{len(blocks) - 1}.") for name, _ in hooks) and not inside & set(swaps)


def _shortens(model: Model) -> bool:
    way = exactness(model).way
    return way is not None and way.tail


def frozen(run: Run, module: nn.Module, output: Callable[[], Float[Tensor, "batch pos d_model"]]) -> Callable[..., Any]:
    """A replacement for `module` that returns `output()` whatever it is called with."""
    width = run.widths[module]
    return lambda *_args, **_kwargs: as_output(output(), width)


def writes(
    model: Model, layer: int, dz: Float[Tensor, "*batch head d_head"], heads: Sequence[int] | None = None
) -> Float[Tensor, "*batch d_model"]:
    """dz W_O: what a change dz of these heads (default: all) adds to the output of the attention module."""
    projection = model.bridge.blocks[layer].attn.o.original_component
    weight = getattr(projection, "weight", None)
    chosen = range(model.n_heads) if heads is None else heads
    columns = torch.tensor([head * model.d_head + i for head in chosen for i in range(model.d_head)])
    flat = dz.flatten(-2)
    if type(projection) is nn.Linear and weight is not None:
        return flat @ weight[:, columns.to(weight.device)].T
    if type(projection).__name__ == "Conv1D" and weight is not None:
        return flat @ weight[columns.to(weight.device)]
    whole = dz.new_zeros((*dz.shape[:-2], model.n_heads * model.d_head))
    whole[..., columns.to(dz.device)] = flat
    return projection(whole) - projection(torch.zeros_like(whole))


_resumes: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def resumes_exactly(model: Model) -> bool:
    """Whether `run_from` gives what a whole forward gives: measured once per model on a few random tokens.

    Compared at the first block that can be resumed at, in the middle and at the last: logits of the untouched run,
    with the last head's output doubled, and the unembedding alone.
    """
    if model not in _resumes:
        try:
            with torch.no_grad():
                _resumes[model] = _measure(model)
        except (KeyError, TypeError, AttributeError, RuntimeError, IndexError, WorkbenchError):
            _resumes[model] = False  # a block that is called or answers in another way
    return _resumes[model]


def some_tokens(model: Model, seed: int = 11, *, batch: int = 2, length: int = 7) -> Int[Tensor, "batch pos"]:
    """Random tokens to measure a model with."""
    from workbench.models.probe_subject import ordinary_tokens

    ordinary = ordinary_tokens(model)[0]
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(ordinary), (batch, min(length, model.n_ctx)), generator=generator)
    return ordinary[picked.to(ordinary.device)]


def agree(got: Tensor, want: Tensor, *, tolerance: float | None = None) -> bool:
    """Equal to the rounding of the dtype, in units of the largest entry."""
    if tolerance is None:
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(want.dtype, 5e-2)
    scale = want.double().abs().max().clamp(min=1e-6)
    return bool(((got.double() - want.double()).abs().max() / scale) <= tolerance)


def tolerance_beside(dtype: torch.dtype) -> float | None:
    """Of `agree`, where float32 arithmetic meets what a model computed in `dtype`; None: float32 rounding."""
    return None if dtype in (torch.float32, torch.float64) else 5e-2


def _measure(model: Model) -> bool:
    tokens = some_tokens(model)
    run = record(model, tokens)
    rows = torch.arange(len(tokens))
    last = model.n_layers - 1

    def double(z: Tensor, _: Any) -> Tensor:
        return torch.cat([z[:, :, :-1], 2 * z[:, :, -1:]], dim=2)

    for start in sorted({min(1, last), model.n_layers // 2, last}):
        if not agree(_logits(run_from(model, run, start, rows)), run.logits):
            return False
        name = f"blocks.{start}.attn.hook_z"
        if name in model.bridge.hook_dict:
            with hooked(model, [(name, double)], copy=False):
                want = forward(model, tokens, logits_to_keep=1).logits[:, -1]
            if not agree(_logits(run_from(model, run, start, rows, hooks=[(name, double)])), want):
                return False
    return agree(_logits(run_from(model, run, model.n_layers, rows)), run.logits)


def _watch(model: Model, run: Run, parts: Sequence[Part]) -> list[Any]:
    """Module hooks that fill `run`; remove them."""

    def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
        run.stream[0] = hidden_in(args, kwargs).detach().clone()

    def leave(where: dict[int, Tensor], at: int) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            where[at] = hidden_out(output).detach().clone()
            run.widths[module] = output_width(output)

        return hook

    blocks = list(model.bridge.blocks)
    handles: list[Any] = []
    if "stream" in parts:
        handles.append(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
    for layer, block in enumerate(blocks):
        if "stream" in parts:
            handles.append(block.register_forward_hook(leave(run.stream, layer + 1)))
        for name, where in (("attn", run.attn), ("mlp", run.mlp)):
            module = getattr(block, name, None)
            if name in parts and isinstance(module, nn.Module):
                handles.append(module.register_forward_hook(leave(where, layer)))
    return handles


def _keep(store: dict[str, Tensor], name: str) -> Callable[[Tensor, Any], None]:
    return lambda value, _: store.__setitem__(name, value.detach().clone())


def _logits(found: Tensor | None) -> Tensor:
    if found is None:
        raise RuntimeError("the run was stopped")
    return found


def _joined(parts: list[Run], tokens: Tensor, mask: Tensor | None) -> Run:
    def cat(name: str) -> dict[Any, Tensor]:
        return {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

    logits = torch.cat([part.logits for part in parts])
    return Run(tokens, mask, cat("stream"), cat("attn"), cat("mlp"), cat("kept"), logits, parts[0].widths)


__all__ = [
    "Part",
    "Run",
    "Stop",
    "agree",
    "frozen",
    "record",
    "resumes_exactly",
    "run_from",
    "some_tokens",
    "tolerance_beside",
    "writes",
]
