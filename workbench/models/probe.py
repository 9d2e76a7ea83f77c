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

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.models.attention_kind import attention_kind
from workbench.models.capabilities import Capabilities
from workbench.models.probe_subject import SEED, Hook, Subject, keep, ordinary_tokens, plain_forward, project

if TYPE_CHECKING:
    from workbench.models.model import Model


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
    subject = Subject(
        bridge=bridge,
        tokens=ordinary_tokens(model),
        n_heads=model.n_heads,
        tested=tuple(sorted({layers[0], layers[-1]})),
        precise=model.dtype in (torch.float32, torch.float64),
    )
    plain_forward(subject, layers)
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
    return Capabilities(**flags, fork_exact=bool(point), attention_kind=kind, notes=tuple(notes), fork_point=point)


# ---- the claims, one function each; every one appends the reason when it returns False


def _head_axis(subject: Subject, notes: list[str]) -> bool:
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


def _head_ablation(subject: Subject, notes: list[str]) -> bool:
    n = subject.n_heads
    rows = torch.arange(n)  # on the CPU: layers may be on different devices

    def zero(z: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        z = z.clone()
        z[rows, :, rows] = 0  # row h of the batch loses head h
        return z

    def raw_zero(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
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
                f"head_ablation_ok: zeroing a head in hook_z of layer {layer} is not zeroing it at the output "
                f"projection ({len(wrong)} of {n} heads, logits differ by up to {error:.2g})."
            )
            return False
    return True


def _pattern_edit(subject: Subject, notes: list[str]) -> bool:
    generator = torch.Generator().manual_seed(SEED)
    set_to: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}

    def replace(name: str) -> Hook:
        def random_rows(pattern: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
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
        hooks += [replace(name), *(keep(after, name) for name in names)]
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
                f"pattern_edit_is_causal: an edit of hook_pattern in layer {layer} {what}; edit hook_z instead."
            )
            return False
    return True


def _pattern_rows(subject: Subject, layers: list[int], notes: list[str]) -> bool:
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


def _heads_sum(subject: Subject, notes: list[str]) -> bool:
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
        want = projected + project(subject, layer, z.reshape(x.shape) - x)
        if not subject.agree(out.reshape(want.shape), want):
            notes.append(
                f"heads_sum_to_attn_out: hook_attn_out of layer {layer} is not the heads' sum z W_O + b_O; a norm or a "
                "multiplier follows attention."
            )
            return False
    return True


def _fork_point(subject: Subject, notes: list[str]) -> str:
    """Where W_O dz may be added instead of editing z: "resid_mid" (sequential), "resid_post" (parallel) or ""."""
    generator = torch.Generator().manual_seed(SEED)
    points = {_at(subject, layer, generator) for layer in subject.tested}
    for point in ("resid_mid", "resid_post"):
        if all(point in found for found in points):
            return point
    notes.append(
        "fork_exact: adding W_O dz to the residual stream after attention is not the edit of z; a norm or a multiplier "
        "stands between them, so sweeps use hooks."
    )
    return ""


def _at(subject: Subject, layer: int, generator: torch.Generator) -> frozenset[str]:
    """Points at which adding W_O dz reproduces what z + dz does in `layer`: the block's output, and the logits."""
    z = subject.seen[subject.name(layer, "attn.hook_z")]
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    dz = (noise * 2 * z.float().std().clamp(min=1e-2)).to(z.dtype)
    delta = project(subject, layer, dz.reshape(subject.raw[layer][0].shape)).reshape(z.shape[0], z.shape[1], -1)

    def run(hooks: list[Hook]) -> tuple[Tensor, Tensor]:
        block: dict[str, Tensor] = {}
        logits = subject.forward([*hooks, keep(block, subject.name(layer, "hook_out"))])
        return block.popitem()[1], logits

    def move(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return value + dz

    def add(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return value + delta.to(value.dtype)

    plain = run([])
    want = run([(subject.name(layer, "attn.hook_z"), move)])
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
