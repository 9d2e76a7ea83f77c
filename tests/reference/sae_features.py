"""Head-feature linkage and feature circuits on a raw Hugging Face Llama, one prompt and one head at a time.

The slow twin of `workbench.analyses.sae_features`: plain module hooks, no padding, no batches, a standard autoencoder
`{W_enc, b_enc, W_dec, b_dec}` after block `layer`.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch


@contextmanager
def hooks(*pairs):
    """`(module, kind, function)`: `pre` edits a module's input, `post` its output."""
    made = []
    for module, kind, function in pairs:
        if kind == "pre":
            made.append(module.register_forward_pre_hook(lambda _, args, f=function: (f(args[0]), *args[1:])))
        else:
            made.append(
                module.register_forward_hook(
                    lambda _, __, out, f=function: (f(out[0]), *out[1:]) if isinstance(out, tuple) else f(out)
                )
            )
    try:
        yield
    finally:
        for handle in made:
            handle.remove()


def encode(x, sae):
    return torch.relu((x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"])


def stream(hf, ids, layer, *more):
    """The stream after a block, `[pos, d_model]`."""
    seen = []

    def keep(out):
        seen.append(out.detach()[0])
        return out

    with torch.no_grad(), hooks(*more, (hf.model.layers[layer], "post", keep)):
        hf(ids[None])
    return seen[0]


def head_output(hf, ids, layer, head):
    """What one head adds to the stream, `[pos, d_model]`: the output projection of z with all other heads at 0."""
    d_head = hf.config.hidden_size // hf.config.num_attention_heads
    projection, seen = hf.model.layers[layer].self_attn.o_proj, []

    def keep(z):
        alone = torch.zeros_like(z)
        alone[..., head * d_head : (head + 1) * d_head] = z[..., head * d_head : (head + 1) * d_head]
        seen.append((alone @ projection.weight.T)[0])
        return z

    with torch.no_grad(), hooks((projection, "pre", keep)):
        hf(ids[None])
    return seen[0]


def without_head(hf, layer, head):
    """A hook that sets one head's z to 0."""
    d_head = hf.config.hidden_size // hf.config.num_attention_heads

    def cut(z):
        z = z.clone()
        z[..., head * d_head : (head + 1) * d_head] = 0
        return z

    return hf.model.layers[layer].self_attn.o_proj, "pre", cut


def inputs_of(hf, ids, at, what, *more):
    """Queries, keys or values of a layer, `[pos, index, d_head]`."""
    d_head = hf.config.hidden_size // hf.config.num_attention_heads
    seen = []

    def keep(out):
        seen.append(out[0].reshape(out.shape[1], -1, d_head))
        return out

    with torch.no_grad(), hooks(*more, (getattr(hf.model.layers[at].self_attn, f"{what}_proj"), "post", keep)):
        hf(ids[None])
    return seen[0]


def logit_diff(hf, ids, layer, x, answer, wrong):
    """Of the last token, with `x` as the stream after a block."""
    with hooks((hf.model.layers[layer], "post", lambda out: x[None].to(out.dtype))):
        logits = hf(ids[None]).logits[0, -1]
    return logits[answer] - logits[wrong]


def feature_effects(hf, clean, corrupted, layer, sae, answer, wrong, steps):
    """Integrated-gradients effect of every feature, and of the error."""
    x, other = stream(hf, clean, layer), stream(hf, corrupted, layer)
    change = encode(x, sae) - encode(other, sae)
    error = (x - other) - change @ sae["W_dec"]
    features, rest = torch.zeros(change.shape[1]), torch.zeros(())
    for step in range(steps):
        at = (other + (step + 0.5) / steps * (x - other)).requires_grad_(True)
        (grad,) = torch.autograd.grad(logit_diff(hf, clean, layer, at, answer, wrong), at)
        for position in range(len(x)):
            rest += grad[position] @ error[position] / steps
            for f in range(change.shape[1]):
                features[f] += change[position, f] * (grad[position] @ sae["W_dec"][f]) / steps
    return features, rest
