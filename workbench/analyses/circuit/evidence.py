"""What the heads of a circuit attend to and what they copy, measured on the clean prompts: evidence for their roles.

    attention   mean over prompts of the attention from a kind of query to a class of keys:
                    anywhere    previous (one position back), itself, first (of the prompt)
                    repeated    earlier (the same token before), after (the token that followed it then)
                    end         each span that the task names (IO, S1, S2, ...), and answer, wrong: those tokens
    copying     were the head to attend, at the end, to nothing but the answer's (or the wrong answer's) token in the
                prompt: the logit it would add to that token minus the mean over the task's other answers
                (`copy_logit`), and the share of cases in which it adds the most to that token (`copy_share`; chance is
                one over the number of different answers). Exact: v of that position through W_O, added to the final
                stream.

Repeated tokens count where a span of the task covers them; without spans, everywhere. Reads only; it names nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench import stats
from workbench.analyses.circuit.graph import Head

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.primitives.suffix import Run
    from workbench.tasks.pairs import PairDataset

ANYWHERE, REPEATED, END = "anywhere", "repeated", "end"
_AT_ONCE = 2**26  # numbers of attention patterns held at once


@dataclass(frozen=True)
class Evidence:
    """Per example, NaN where a prompt has no such query or key.

    Attributes:
        attention: (query, key) -> `[example, head]`.
        copy_share, copy_logit: `[example, head]`.
        n_answers: how many different answers the prompts have.
    """

    heads: tuple[Head, ...]
    attention: dict[tuple[str, str], np.ndarray]
    copy_share: np.ndarray
    copy_logit: np.ndarray
    n_answers: int

    def of(self, head: Head) -> dict[str, float]:
        """Means of one head, by `query>key`, and copying."""
        at = self.heads.index(head)
        found = {f"{query}>{key}": _mean(values[:, at]) for (query, key), values in self.attention.items()}
        return {**found, "copy_share": _mean(self.copy_share[:, at]), "copy_logit": _mean(self.copy_logit[:, at])}

    def to_frame(self) -> pd.DataFrame:
        """One row per head and measurement."""
        import pandas as pd

        measured = {**self.attention, ("copy", "share"): self.copy_share, ("copy", "logit"): self.copy_logit}
        rows = []
        for at, (layer, head) in enumerate(self.heads):
            for (query, key), values in measured.items():
                column = values[:, at]
                n = int((~np.isnan(column)).sum())
                if n:
                    numbers = {"value": _mean(column), "stderr": float(stats.stderr(column)), "n": n}
                    rows.append({"layer": layer, "head": head, "query": query, "key": key, **numbers})
        return pd.DataFrame(rows, columns=["layer", "head", "query", "key", "value", "stderr", "n"])


def measure(model: Model, data: PairDataset, run: Run, heads: Sequence[Head], *, batch_rows: int) -> Evidence:
    """Look at `heads` on the clean prompts, whose run (with streams) is `run`."""
    heads = tuple(heads)
    classes = key_classes(data)
    attention = _attention(model, run, heads, classes, batch_rows)
    copies = _copying(model, data, run, heads, batch_rows)
    answers = {token for pair in data for token in (pair.answer, pair.wrong)}
    return Evidence(heads, attention, *copies, len(answers))


def key_classes(data: PairDataset) -> dict[tuple[str, str], list[list[tuple[int, list[int]]]]]:
    """(query, key) -> per prompt, queries with their keys of that class; positions count from its first token."""
    made: dict[tuple[str, str], list[list[tuple[int, list[int]]]]] = {}
    for at, pair in enumerate(data):
        tokens, last = pair.clean, pair.length - 1
        spans = {name: span for name, span in pair.spans.items() if name != "end"}
        counted = {i for a, b in spans.values() for i in range(a, b)} or set(range(pair.length))
        found: dict[tuple[str, str], list[tuple[int, list[int]]]] = {
            (ANYWHERE, "previous"): [(i, [i - 1]) for i in range(2, pair.length)],
            (ANYWHERE, "itself"): [(i, [i]) for i in range(1, pair.length)],
            (ANYWHERE, "first"): [(i, [0]) for i in range(1, pair.length)],
            (END, "answer"): [(last, [i for i, token in enumerate(tokens) if token == pair.answer])],
            (END, "wrong"): [(last, [i for i, token in enumerate(tokens) if token == pair.wrong])],
        }
        before = {i: [j for j in range(i) if tokens[j] == tokens[i]] for i in counted}
        repeated = {i: js for i, js in before.items() if js}
        found[REPEATED, "earlier"] = list(repeated.items())
        found[REPEATED, "after"] = [(i, [j + 1 for j in js if j + 1 < i]) for i, js in repeated.items()]
        for name, (a, b) in spans.items():
            found[END, name] = [(last, list(range(a, b)))]
        for key, queries in found.items():
            made.setdefault(key, [[] for _ in data])[at] = [(query, keys) for query, keys in queries if keys]
    return {key: rows for key, rows in made.items() if any(rows)}


def _attention(
    model: Model, run: Run, heads: tuple[Head, ...], classes: dict[tuple[str, str], Any], batch_rows: int
) -> dict[tuple[str, str], np.ndarray]:
    """Capture the patterns of the layers that have a head here, some prompts at a time."""
    from workbench.primitives.capture import capture, names
    from workbench.primitives.forward import n_padding

    n, n_pos = run.tokens.shape
    layers = sorted({layer for layer, _ in heads})
    found = {key: np.full((n, len(heads)), np.nan) for key in classes}
    if not layers:
        return found
    hooks = dict(zip(layers, names(model, "pattern", layers=layers), strict=True))
    padding = torch.zeros(n, dtype=torch.long) if run.mask is None else n_padding(run.mask).cpu()
    size = max(1, min(batch_rows, _AT_ONCE // (len(layers) * model.n_heads * n_pos * n_pos)))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        mask = None if run.mask is None else run.mask[rows]
        seen = capture(model, run.tokens[rows], list(hooks.values()), attention_mask=mask)
        rows_of = [seen[hooks[layer]][:, head].float().to(run.tokens.device) for layer, head in heads]
        stacked = torch.stack(rows_of, dim=1).cpu().numpy()
        for key, queries in classes.items():
            for row in range(start, rows.stop):
                shift, pattern = int(padding[row]), stacked[row - start]  # [head, query, key]
                values = [pattern[:, q + shift][:, [k + shift for k in ks]].sum(axis=1) for q, ks in queries[row]]
                if values:
                    found[key][row] = np.mean(values, axis=0)
    return found


def _copying(
    model: Model, data: PairDataset, run: Run, heads: tuple[Head, ...], batch_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """`[example, head]` copy_share and copy_logit; undefined where no answer stands in the prompt."""
    from workbench.primitives.capture import capture
    from workbench.primitives.suffix import run_from, writes

    n, n_pos = run.tokens.shape
    share, logit = np.full((n, len(heads)), np.nan), np.full((n, len(heads)), np.nan)
    cases = [
        (row, n_pos - pair.length + i, token)
        for row, pair in enumerate(data)
        for token in (pair.answer, pair.wrong)
        for i, known in enumerate(pair.clean)
        if known == token
    ]
    answers = sorted({token for pair in data for token in (pair.answer, pair.wrong)})
    if not cases or not heads or len(answers) < 2:
        return share, logit
    layers = sorted({layer for layer, _ in heads})
    values = {layer: f"blocks.{layer}.attn.hook_v" for layer in layers}
    seen: dict[str, list[Tensor]] = {name: [] for name in values.values()}
    for start in range(0, n, batch_rows):
        rows = slice(start, start + batch_rows)
        mask = None if run.mask is None else run.mask[rows]
        for name, value in capture(model, run.tokens[rows], list(values.values()), attention_mask=mask).items():
            seen[name].append(value)
    at = torch.tensor([row for row, _, _ in cases])
    columns = torch.tensor([column for _, column, _ in cases])
    own = torch.tensor([answers.index(token) for _, _, token in cases])
    here = run.logits[at.to(run.logits.device)][:, answers].float()
    with torch.no_grad():
        for h, (layer, head) in enumerate(heads):
            v = torch.cat(seen[values[layer]])[at, columns, model.kv_group(head)]  # [case, d_head]
            added = writes(model, layer, v[:, None], [head])  # [case, d_model]
            last = run.stream[model.n_layers]
            final = last[at.to(last.device)][:, -1:] + added[:, None].to(last.device)
            logits = run_from(model, run, model.n_layers, at, stream=final)
            assert logits is not None
            change = (logits[:, answers].float() - here).cpu()
            mine = change.gather(1, own[:, None])[:, 0]
            others = (change.sum(1) - mine) / (len(answers) - 1)
            top = (change.argmax(1) == own).double().numpy()
            for row in range(n):
                which = np.flatnonzero(at.numpy() == row)
                if len(which):
                    share[row, h] = top[which].mean()
                    logit[row, h] = float((mine - others)[which].mean())
    return share, logit


def _mean(values: np.ndarray) -> float:
    return float(stats.mean(values))
