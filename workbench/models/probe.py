"""The contract probe: what a bridge does, compared with raw PyTorch hooks and with the definition of attention.

TransformerLens wraps about 140 architectures, and where a hook does not mean what its name says the usual symptom is a
plausible wrong number. So the claims the workbench relies on are measured once per checkpoint, on a few random tokens:

1. one plain forward: pattern rows, and the heads' sum against `hook_attn_out`, in every tested layer;
2. per tested layer, every head zeroed (one per batch row) through `hook_z` and through a raw pre-hook of the output
   projection; the logits must agree;
3. one forward with random attention set through `hook_pattern`: z must become that pattern times v;
4. per tested layer, z moved by random dz, and W_O dz added to the residual stream instead; the logits must agree.

Tested layers are the first and the last with attention. Nothing is left behind: no hook, no weight, no random state.
The result is cached by fingerprint, configuration and versions. It never knows which analysis will ask.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models.attention_kind import attention_kind
from workbench.models.capabilities import FLAGS, MEANING, Capabilities

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from workbench.models.model import Model

Hook = tuple[str, Callable[[Tensor, Any], Tensor | None]]
_POSITIONS = 10
_SEED = 20


@dataclass
class _Subject:
    """The bridge under test and what its plain forward showed."""

    bridge: TransformerBridge
    tokens: Int[Tensor, "1 pos"]
    n_heads: int
    tested: tuple[int, ...]  # layers
    precise: bool  # float32 or better
    seen: dict[str, Tensor] = field(default_factory=dict)  # hook name -> activation
    raw: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer -> input, output of the projection
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def name(self, layer: int, hook: str) -> str:
        return f"blocks.{layer}.{hook}"

    def has(self, layer: int, hook: str) -> bool:
        return self.name(layer, hook) in self.bridge.hook_dict

    def projection(self, layer: int) -> torch.nn.Module:
        """The output projection itself, beneath the bridge."""
        return self.bridge.blocks[layer].attn.o.original_component

    def forward(self, hooks: Sequence[Hook] = (), *, rows: int = 1) -> Float[Tensor, "rows pos vocab"]:
        tokens = self.tokens.expand(rows, -1).contiguous()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TransformerLens warns where an edit is discarded; here it is measured
            with self.bridge.hooks(fwd_hooks=list(hooks)):
                return self.bridge(tokens, return_type="logits")

    def agree(self, got: Tensor, want: Tensor, *, without: Tensor | None = None) -> bool:
        """Equal to rounding; and, given the value `without` the edit, far closer than the edit is large.

        Half precision is judged by the trimmed mean: a few residual dimensions of large models are so big that their
        rounding alone exceeds what a head does to all the others.
        """
        size = _largest if self.precise else _trimmed_mean
        scale = max(size(want), 1e-6)
        error = size(got.float() - want.float())
        if without is None:
            return error <= (1e-4 if self.precise else 3e-2) * scale
        effect = size(want.float() - without.float())
        if self.precise:
            return error <= 1e-4 * scale and error <= max(1e-2 * effect, 1e-6 * scale)
        return error <= max(0.1 * effect, 0.5 * torch.finfo(want.dtype).eps * scale)


def _largest(x: Tensor) -> float:
    return x.float().abs().max().item()


def _trimmed_mean(x: Tensor) -> float:
    """Mean magnitude without the largest 1%."""
    magnitude = x.float().abs().flatten().sort().values
    return magnitude[: max(1, int(0.99 * len(magnitude)))].mean().item()


def probe(model: Model) -> Capabilities:
    """Measure the capabilities of `model`; the model is unchanged afterwards."""
    kind = attention_kind(model.bridge)
    layers = [
        layer
        for layer in range(model.n_layers)
        if f"blocks.{layer}.attn.hook_z" in model.bridge.hook_dict
        and hasattr(getattr(model.bridge.blocks[layer].attn, "o", None), "original_component")
    ]
    if not layers:
        return Capabilities.none("none", "all: the bridge offers no attention heads (hook_z) in any block.")
    try:
        with torch.no_grad():
            return _measure(model, layers, kind)
    except Exception as error:  # anything may go wrong in 140 architectures, and then nothing may be assumed
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
        return Capabilities.none(kind, f"all: the probe could not run this model on plain tokens ({reason}).")


def _measure(model: Model, layers: list[int], kind: str) -> Capabilities:
    bridge = model.bridge
    subject = _Subject(
        bridge=bridge,
        tokens=_tokens(model),
        n_heads=model.n_heads,
        tested=tuple(sorted({layers[0], layers[-1]})),
        precise=model.dtype in (torch.float32, torch.float64),
    )
    _plain_forward(subject, layers)
    notes: list[str] = []
    flags = {
        "head_axis_ok": _head_axis(subject, notes),
        "head_ablation_ok": _head_ablation(subject, notes),
        "pattern_edit_is_causal": _pattern_edit(subject, notes),
        "pattern_rows_sum_to_one": _pattern_rows(subject, layers, notes),
        "heads_sum_to_attn_out": _heads_sum(subject, notes),
    }
    point = _fork_point(subject, notes) if flags["head_axis_ok"] and flags["head_ablation_ok"] else ""
    if not (flags["head_axis_ok"] and flags["head_ablation_ok"]):
        notes.append("fork_exact: not measured, because edits of hook_z do not act on single heads here.")
    if len(layers) < model.n_layers:
        notes.append(f"note: {model.n_layers - len(layers)} of {model.n_layers} blocks have no attention heads.")
    assert set(flags) | {"fork_exact"} == set(FLAGS) == set(MEANING)
    return Capabilities(**flags, fork_exact=bool(point), attention_kind=kind, notes=tuple(notes), fork_point=point)


def _tokens(model: Model) -> Int[Tensor, "1 pos"]:
    """Random ordinary tokens: no special ones, which may stand for an image."""
    n_vocab = int(model.bridge.cfg.d_vocab)
    special = {int(i) for i in getattr(model.tokenizer, "all_special_ids", None) or ()}
    config = getattr(model.bridge.original_model, "config", None)
    for attribute in ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "pad_token_id"):
        value = getattr(config, attribute, None)
        special |= {int(value)} if isinstance(value, int) else set()
    ordinary = torch.tensor([i for i in range(n_vocab) if i not in special] or list(range(n_vocab)))
    generator = torch.Generator().manual_seed(_SEED)
    n = max(2, min(_POSITIONS, model.n_ctx))
    return ordinary[torch.randint(len(ordinary), (1, n), generator=generator)].to(model.device)


def _keep(store: dict[str, Tensor], name: str) -> Hook:
    """A hook that copies what it sees into `store`."""

    def keep(value: Tensor, hook: Any) -> None:  # noqa: ARG001
        store[name] = value.detach().clone()

    return name, keep


def _plain_forward(subject: _Subject, layers: list[int]) -> None:
    """Fill `seen`, `raw` and `logits`."""
    wanted = [subject.name(layer, "attn.hook_pattern") for layer in layers]
    for layer in subject.tested:
        wanted += [subject.name(layer, hook) for hook in ("attn.hook_z", "attn.hook_v", "hook_attn_out")]

    def keep_raw(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
            subject.raw[layer] = args[0].detach().clone(), out.detach().clone()

        return hook

    handles = [subject.projection(layer).register_forward_hook(keep_raw(layer)) for layer in subject.tested]
    try:
        subject.logits = subject.forward(
            [_keep(subject.seen, name) for name in wanted if name in subject.bridge.hook_dict]
        )
    finally:
        for handle in handles:
            handle.remove()


# ---- the claims, one function each; every one appends the reason when it returns False


def _head_axis(subject: _Subject, notes: list[str]) -> bool:
    for layer in subject.tested:
        z = subject.seen.get(subject.name(layer, "attn.hook_z"))
        x = subject.raw[layer][0] if layer in subject.raw else None
        if z is None or x is None:
            notes.append(f"head_axis_ok: hook_z or the output projection of layer {layer} is never called.")
            return False
        n, d_in = subject.n_heads, x.shape[-1]
        if z.dim() != 4 or z.shape[2] != n or z.shape[2] * z.shape[3] != d_in:
            notes.append(
                f"head_axis_ok: hook_z of layer {layer} is {list(z.shape)}, but {n} heads with a projection of width "
                f"{d_in} need [batch, pos, {n}, {d_in // n}]."
            )
            return False
        if not subject.agree(z.flatten(2).reshape(x.shape), x):
            notes.append(f"head_axis_ok: hook_z of layer {layer} is not what enters the output projection.")
            return False
    return True


def _head_ablation(subject: _Subject, notes: list[str]) -> bool:
    n = subject.n_heads
    rows = torch.arange(n, device=subject.tokens.device)

    def zero(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[rows, :, rows] = 0  # row h of the batch loses head h
        return z

    def raw_zero(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        heads = x.view(n, -1, n, x.shape[-1] // n)
        heads[rows, :, rows] = 0
        return (x, *args[1:])

    for layer in subject.tested:
        if layer not in subject.raw or subject.raw[layer][0].shape[-1] % n:
            notes.append(f"head_ablation_ok: the output projection of layer {layer} does not divide into {n} heads.")
            return False
        handle = subject.projection(layer).register_forward_pre_hook(raw_zero)
        try:
            want = subject.forward(rows=n)
        finally:
            handle.remove()
        got = subject.forward([(subject.name(layer, "attn.hook_z"), zero)], rows=n)
        wrong = [h for h in range(n) if not subject.agree(got[h], want[h], without=subject.logits[0])]
        if wrong:
            error = (got - want).abs().max().item()
            notes.append(
                f"head_ablation_ok: zeroing a head in hook_z of layer {layer} is not zeroing it at the output projection "
                f"({len(wrong)} of {n} heads, logits differ by up to {error:.2g})."
            )
            return False
    return True


def _pattern_edit(subject: _Subject, notes: list[str]) -> bool:
    generator = torch.Generator().manual_seed(_SEED)
    set_to: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}

    def replace(name: str) -> Hook:
        def random_rows(pattern: Tensor, hook: Any) -> Tensor:
            rows = torch.rand(pattern.shape, generator=generator).tril().to(pattern.device)
            set_to[name] = (rows / rows.sum(-1, keepdim=True)).to(pattern.dtype)
            return set_to[name]

        return name, random_rows

    hooks: list[Hook] = []
    for layer in subject.tested:
        name = subject.name(layer, "attn.hook_pattern")
        if name not in subject.seen:
            notes.append(f"pattern_edit_is_causal: hook_pattern of layer {layer} never fires.")
            return False
        names = [subject.name(layer, hook) for hook in ("attn.hook_z", "attn.hook_v") if subject.has(layer, hook)]
        hooks += [replace(name), *(_keep(after, name) for name in names)]
    subject.forward(hooks)
    for layer in subject.tested:
        before, z = (record[subject.name(layer, "attn.hook_z")] for record in (subject.seen, after))
        pattern = set_to[subject.name(layer, "attn.hook_pattern")]
        v = after.get(subject.name(layer, "attn.hook_v"))
        if v is not None and v.dim() == 4 and v.shape[-1] == z.shape[-1] and z.shape[2] % v.shape[2] == 0:
            v = v.repeat_interleave(z.shape[2] // v.shape[2], dim=2)  # kv groups -> query heads
            want = torch.einsum("bhqk,bkhd->bqhd", pattern.to(v.dtype), v)
            causal = subject.agree(z, want, without=before)
        else:  # no v of that shape to compare with (MLA): at least something must change
            causal = not torch.equal(z, before)
        if not causal:
            what = "is discarded" if torch.equal(z, before) else "does not make z the pattern times v"
            notes.append(
                f"pattern_edit_is_causal: an edit of hook_pattern in layer {layer} {what}; heads can be edited at hook_z."
            )
            return False
    return True


def _pattern_rows(subject: _Subject, layers: list[int], notes: list[str]) -> bool:
    for layer in layers:
        pattern = subject.seen.get(subject.name(layer, "attn.hook_pattern"))
        if pattern is None:
            notes.append(f"pattern_rows_sum_to_one: hook_pattern of layer {layer} never fires.")
            return False
        total = pattern.float().sum(-1)
        if not subject.agree(total, torch.ones_like(total)):
            notes.append(
                f"pattern_rows_sum_to_one: rows of hook_pattern in layer {layer} sum to {total.mean().item():.2f} on "
                "average; the rest of the attention is outside the pattern (sinks)."
            )
            return False
    return True


def _heads_sum(subject: _Subject, notes: list[str]) -> bool:
    for layer in subject.tested:
        out = subject.seen.get(subject.name(layer, "hook_attn_out"))
        z = subject.seen.get(subject.name(layer, "attn.hook_z"))
        if out is None or z is None or layer not in subject.raw:
            notes.append(f"heads_sum_to_attn_out: hook_attn_out of layer {layer} never fires.")
            return False
        x, projected = subject.raw[layer]
        if z.numel() != x.numel():
            notes.append(f"heads_sum_to_attn_out: hook_z of layer {layer} does not fit the output projection.")
            return False
        want = projected + _project(subject, layer, z.reshape(x.shape) - x)
        if not subject.agree(out.reshape(want.shape), want):
            notes.append(
                f"heads_sum_to_attn_out: hook_attn_out of layer {layer} is not the heads' sum z W_O + b_O; a norm or a "
                "multiplier follows attention."
            )
            return False
    return True


def _project(subject: _Subject, layer: int, dz: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_model"]:
    """W_O dz, without the bias and for any kind of projection (Linear, Conv1D, quantised)."""
    projection = subject.projection(layer)
    return projection(dz) - projection(torch.zeros_like(dz))


def _fork_point(subject: _Subject, notes: list[str]) -> str:
    """Where W_O dz may be added instead of editing z: "resid_mid" (sequential), "resid_post" (parallel) or ""."""
    generator = torch.Generator().manual_seed(_SEED)
    points = {_at(subject, layer, generator) for layer in subject.tested}
    for point in ("resid_mid", "resid_post"):
        if all(point in found for found in points):
            return point
    notes.append(
        "fork_exact: adding W_O dz to the residual stream after attention is not the edit of z; a norm or a multiplier "
        "stands between them, so sweeps use hooks."
    )
    return ""


def _at(subject: _Subject, layer: int, generator: torch.Generator) -> frozenset[str]:
    """Points at which adding W_O dz reproduces what z + dz does in `layer`: the block's output, and the logits."""
    z = subject.seen[subject.name(layer, "attn.hook_z")]
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    dz = (noise * 2 * z.float().std().clamp(min=1e-2)).to(z.dtype)
    delta = _project(subject, layer, dz.reshape(subject.raw[layer][0].shape)).reshape(z.shape[0], z.shape[1], -1)

    def run(hooks: list[Hook]) -> tuple[Tensor, Tensor]:
        block: dict[str, Tensor] = {}
        logits = subject.forward([*hooks, _keep(block, subject.name(layer, "hook_out"))])
        return block.popitem()[1], logits

    def add(value: Tensor, hook: Any) -> Tensor:
        return value + delta.to(value.dtype)

    plain = run([])
    want = run([(subject.name(layer, "attn.hook_z"), lambda value, hook: value + dz)])
    after_block: list[Hook] = [(subject.name(layer, "hook_out"), add)]
    # hook_resid_mid edits what the MLP reads, not what skips it; so a change of the stream is both
    ways = {"resid_post": after_block}
    if subject.has(layer, "hook_resid_mid"):
        ways["resid_mid"] = [(subject.name(layer, "hook_resid_mid"), add), *after_block]
    compared = slice(None) if subject.precise else slice(1)  # rounding grows from block to block
    return frozenset(
        point
        for point, hooks in ways.items()
        if all(
            subject.agree(g, w, without=p)
            for g, w, p in zip(run(hooks)[compared], want[compared], plain[compared], strict=True)
        )
    )
