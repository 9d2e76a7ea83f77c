"""Direct logit attribution and attention rows by hand, on raw Hugging Face modules: slow, and sharing no code.

One prompt at a time. Norms are written out as formulas (LayerNorm, RMSNorm), their scale taken from the whole input.
"""

from __future__ import annotations

import torch


def frozen_layer_norm(module, whole, part):
    """What `part`, a summand of `whole`, adds to LayerNorm(whole); without the bias."""
    spread = ((whole - whole.mean()) ** 2).mean() + module.eps
    return (part - part.mean()) / spread.sqrt() * module.weight


def frozen_rms_norm(module, whole, part):
    """The same for an RMSNorm."""
    return part / ((whole**2).mean() + module.variance_epsilon).sqrt() * module.weight


def direct_effects(hf, arch, ids, answer, wrong):
    """`[layer, head]`: what each head adds to logit(answer) - logit(wrong) at the last token."""
    body = hf.transformer if arch == "gpt2" else hf.model
    blocks = body.h if arch == "gpt2" else body.layers
    projections = [block.attn.c_proj if arch == "gpt2" else block.self_attn.o_proj for block in blocks]
    z, final, handles = [], [], []
    for projection in projections:
        handles.append(projection.register_forward_pre_hook(lambda _, args: z.append(args[0][0, -1])))
    norm = body.ln_f if arch == "gpt2" else body.norm
    handles.append(norm.register_forward_pre_hook(lambda _, args: final.append(args[0][0, -1])))
    with torch.no_grad():
        hf(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    unembedding = hf.get_output_embeddings().weight
    n_heads = hf.config.num_attention_heads
    effects = torch.zeros(len(blocks), n_heads)
    for layer, (projection, value) in enumerate(zip(projections, z, strict=True)):
        weight = projection.weight if arch == "gpt2" else projection.weight.T  # [head * d_head, d_model]
        width = len(value) // n_heads
        whole = value @ weight
        for head in range(n_heads):
            columns = slice(head * width, (head + 1) * width)
            part = value[columns] @ weight[columns]
            if arch == "olmo2":  # a norm follows attention
                part = frozen_rms_norm(blocks[layer].post_attention_layernorm, whole, part)
            freeze = frozen_layer_norm if arch == "gpt2" else frozen_rms_norm
            out = freeze(norm, final[0], part)
            effects[layer, head] = out @ (unembedding[answer] - unembedding[wrong])
    return effects


def with_attention_row(hf, ids, heads, weights):
    """Logits at the last token of a GPT-2 whose `heads` attend as `weights` `[key]` (or a dict by head) at the end."""
    n_heads = hf.config.n_head
    width = hf.config.n_embd // n_heads
    handles = []
    for layer in {layer for layer, _ in heads}:
        values = []

        def keep(_, __, out, values=values):
            values.append(out[0, :, 2 * hf.config.n_embd :])  # v, heads side by side

        def put(_, args, values=values, layer=layer):
            z = args[0].clone()
            for head in (h for at, h in heads if at == layer):
                columns = slice(head * width, (head + 1) * width)
                row = weights[layer, head] if isinstance(weights, dict) else weights
                z[0, -1, columns] = row @ values[-1][:, columns]
            return (z,)

        attn = hf.transformer.h[layer].attn
        handles += [attn.c_attn.register_forward_hook(keep), attn.c_proj.register_forward_pre_hook(put)]
    with torch.no_grad():
        logits = hf(input_ids=torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits
