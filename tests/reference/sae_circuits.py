"""O'Neill & Bui 2024 once more, slowly: autograd, Python sets, and AUC by comparing every two heads.

Nothing of `workbench.analyses.sae_circuits` is imported; only the random start of an autoencoder is handed in.
"""

from __future__ import annotations

from itertools import permutations

import torch


def train(x, encoder, bias, decoder, centre, *, l1, lr, epochs):
    """One autoencoder on `[row, d_model]`, by autograd and torch's Adam."""
    encoder, bias, decoder, centre = (p.clone().requires_grad_(True) for p in (encoder, bias, decoder, centre))
    adam = torch.optim.Adam([encoder, bias, decoder, centre], lr=lr)
    for _ in range(epochs):
        with torch.no_grad():
            for rows in (encoder, decoder):
                rows /= rows.norm(dim=-1, keepdim=True)
        f = torch.relu((x - centre) @ encoder.T + bias)
        loss = ((f @ decoder.T + centre - x) ** 2).mean() + l1 * f.abs().sum(dim=-1).mean()
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            for rows in (encoder, decoder):
                along = (rows.grad * rows).sum(dim=-1, keepdim=True)
                rows.grad -= along * rows
        adam.step()
    with torch.no_grad():
        encoder /= encoder.norm(dim=-1, keepdim=True)
        decoder /= decoder.norm(dim=-1, keepdim=True)
    return encoder.detach(), bias.detach(), decoder.detach(), centre.detach()


def codes(x, encoder, bias, centre):
    """`[example][head]` codes of `[example, head, d_model]`."""
    return torch.relu((x - centre) @ encoder.T + bias).argmax(dim=-1).tolist()


def node(codes, n_positive, *, normalise=False):
    scores = []
    for h in range(len(codes[0])):
        used = {row[h] for row in codes[:n_positive]}
        against = {row[h] for row in codes[n_positive:]}
        scores.append(len(used - against) / (len(used | against) if normalise else 1))
    return scores


def edge(codes, n_positive, *, normalise=False):
    """`[head][head]` numbers of code pairs."""
    n_heads = len(codes[0])
    scores = [[0.0] * n_heads for _ in range(n_heads)]
    for i, j in permutations(range(n_heads), 2):
        together = {(row[i], row[j]) for row in codes[:n_positive]}
        against = {(row[i], row[j]) for row in codes[n_positive:]}
        scores[i][j] = len(together - against) / (len(together) + len(against) if normalise else 1)
    return scores


def edge_count(scores, top=0.5):
    """How often each head is in the list, ties in the order of the matrix."""
    n_heads = len(scores)
    ordered = sorted((-scores[i][j], i, j) for i in range(n_heads) for j in range(n_heads))
    listed = [head for _, i, j in ordered for head in (i, j)][: int(top * n_heads**2)]
    return [listed.count(h) for h in range(n_heads)]


def auc(score, true):
    """Share of (true, other) pairs that are in the right order, ties half."""
    won = [(a > b) + 0.5 * (a == b) for a, t in zip(score, true) if t for b, u in zip(score, true) if not u]  # noqa: B905
    return sum(won) / len(won)
