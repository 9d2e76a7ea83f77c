"""Slow twin of the retrieval analysis: raw Hugging Face model, `output_attentions`, one sample, plain loops.

Written from the formula alone; it shares no code with the package. `cached=False` re-runs the whole sequence at every
step; `cached=True` decodes with a KV cache as the paper's reference code does.
"""

from __future__ import annotations

import torch


def step_by_step(hf, prompt, *, max_new_tokens, stops=frozenset(), cached=False):
    """Greedy decoding; returns the emitted ids and, per step, `[layer][head]` lists of attention rows."""
    ids, emitted, rows = list(prompt), [], []
    past = None
    with torch.no_grad():
        if cached:
            past = hf(torch.tensor([ids[:-1]]), use_cache=True).past_key_values
        for _ in range(max_new_tokens):
            inputs = torch.tensor([ids[-1:] if cached else ids])
            out = hf(inputs, past_key_values=past, use_cache=cached, output_attentions=True)
            past = out.past_key_values if cached else None
            rows.append([[a[0, h, -1] for h in range(a.shape[1])] for a in out.attentions])
            token = int(out.logits[0, -1].argmax())
            emitted.append(token)
            ids.append(token)
            if token in stops:
                break
    return emitted, rows


def wu_scores(prompt, span, emitted, rows):
    """Paper, eq. 1: per head, |{tokens copied} ∩ k| / |k| with k the set of needle tokens."""
    needle = set(prompt[span[0] : span[1]])
    table = []
    for layer in range(len(rows[0])):
        line = []
        for head in range(len(rows[0][0])):
            copied = set()
            for token, attentions in zip(emitted, rows, strict=True):
                j = int(attentions[layer][head].argmax())
                if span[0] <= j < span[1] and prompt[j] == token:
                    copied.add(token)
            line.append(len(copied & needle) / len(needle))
        table.append(line)
    return table


def compat_scores(prompt, span, emitted, rows):
    """The reference code's count: one 1/(b-a) for every copying step, repeats included."""
    table = [[0.0] * len(rows[0][0]) for _ in rows[0]]
    for token, attentions in zip(emitted, rows, strict=True):
        for layer, heads in enumerate(attentions):
            for head, row in enumerate(heads):
                j = int(row.argmax())
                if span[0] <= j < span[1] and prompt[j] == token:
                    table[layer][head] += 1 / (span[1] - span[0])
    return table


def mass_scores(span, rows):
    """Mean over steps of the attention on the needle."""
    return [
        [
            sum(float(step[layer][head][span[0] : span[1]].sum()) for step in rows) / len(rows)
            for head in range(len(rows[0][0]))
        ]
        for layer in range(len(rows[0]))
    ]


def question_mass(hf, prompt, span, question):
    """QRHead eq. 1 from one full forward with every attention pattern materialised."""
    with torch.no_grad():
        attentions = hf(torch.tensor([list(prompt)]), output_attentions=True).attentions
    return [
        [float(a[0, h, question[0] : question[1], span[0] : span[1]].sum(-1).mean()) for h in range(a.shape[1])]
        for a in attentions
    ]
