"""Running only a circuit, one set of nodes and one prompt at a time, with raw hooks on Hugging Face modules.

The slow twin of `primitives.circuit_run`: nothing shared with the workbench but the tests' own raw hooks, no padding,
one whole forward per set and prompt. Nodes are (layer, head), or (layer, None) for an MLP.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from tests.reference.paths import dims, read, run


def outputs(hf, tokens: Tensor) -> dict[tuple[str, int], Tensor]:
    """z and MLP outputs of every layer, of one prompt `[1, pos]`."""
    return read(hf, tokens, [(part, layer) for layer in range(dims(hf)[2]) for part in ("z", "mlp_out")])


def means(hf, prompts: list[Tensor]) -> list[dict[tuple[str, int], Tensor]]:
    """For every prompt: the mean over the prompts long enough, of what stands as far from the end."""
    all_outputs = [outputs(hf, tokens) for tokens in prompts]
    found = []
    for tokens in prompts:
        length = tokens.shape[1]
        filled = {}
        for key in all_outputs[0]:
            columns = []
            for back in range(length, 0, -1):
                there = [acts[key][0, -back] for acts in all_outputs if acts[key].shape[1] >= back]
                columns.append(torch.stack(there).mean(0))
            filled[key] = torch.stack(columns)[None]
        found.append(filled)
    return found


def run_circuit(
    hf,
    tokens: Tensor,
    keep: Collection[tuple[int, int | None]],
    fill: dict[tuple[str, int], Tensor] | None,
    *,
    mlps: bool,
) -> Tensor:
    """Logits `[1, vocab]` of a prompt with every node outside `keep` replaced by `fill` (None: by zero)."""
    n_heads, _, n_layers = dims(hf)

    def heads_of(layer):
        def edit(z):
            z = z.clone()
            for head in range(n_heads):
                if (layer, head) not in keep:
                    z[:, :, head] = 0.0 if fill is None else fill["z", layer][:, :, head]
            return z

        return edit

    def mlp_of(layer):
        return lambda out: out if (layer, None) in keep else out * 0.0 if fill is None else fill["mlp_out", layer]

    edits = {("z", layer): heads_of(layer) for layer in range(n_layers)}
    if mlps:
        edits |= {("mlp_out", layer): mlp_of(layer) for layer in range(n_layers)}
    return run(hf, tokens, edits=edits)
