"""The causal experiment of Wu et al. (section 3): mask the top retrieval heads and see whether the needle is lost.

For each k the k highest-scoring heads are masked, and, as the control the reference code meant to have, seeded random
heads from the same layers that exclude them. `decode` scope masks from the last prompt token on, so that one prefill
serves every condition; `all` scope masks the prompt too and prefills again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses.retrieval.params import CausalParams
from workbench.analyses.retrieval.score import needle_recall
from workbench.analyses.retrieval.trace import stop_rule
from workbench.errors import InputError
from workbench.primitives.decode import Prefilled, decode, prefill
from workbench.primitives.interventions import Intervention, Scope, uniform, zero
from workbench.progress import bar
from workbench.stats import layer_matched_random

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.retrieval.params import RetrievalParams
    from workbench.models import Model
    from workbench.tasks.samples import NeedleSample

Head = tuple[int, int]
_LADDER = (1, 2, 5, 10, 20, 30, 50, 100)


@dataclass(frozen=True)
class Condition:
    """One way of masking: which heads, how, and from where on. `group` is `none`, `top` or `random`."""

    group: str
    k: int
    draw: int
    kind: str
    scope: str
    heads: tuple[Head, ...]

    def interventions(self) -> list[Intervention]:
        if not self.heads:
            return []
        mask = {"uniform": uniform, "zero": zero}[self.kind]
        return [mask(self.heads, scope=Scope(self.scope))]


def ladder(n_retrieval: int, n_total: int) -> tuple[int, ...]:
    """The default numbers of heads to mask."""
    ks = {k for k in _LADDER if k <= n_total // 4} | ({n_retrieval} if 0 < n_retrieval <= n_total // 2 else set())
    return tuple(sorted(ks)) or (1,)


def conditions(
    ranked: Sequence[Head], n_retrieval: int, n_heads: int, params: CausalParams, rng: np.random.Generator
) -> list[Condition]:
    """Every condition to run, the unmasked baseline first.

    `ranked` are all scored heads, best first; the first `n_retrieval` of them are at or above the threshold. Random
    heads avoid all retrieval heads where the layers allow it, otherwise at least the masked ones.

    Raises:
        InputError: a k is not between 1 and the number of heads.
    """
    found = [Condition("none", 0, 0, "none", "all", ())]
    for k in params.ks or ladder(n_retrieval, len(ranked)):
        if not 1 <= k <= len(ranked):
            raise InputError(
                f"causal.ks contains {k}, but the model has {len(ranked)} scored heads; use 1 to that number."
            )
        top = tuple(ranked[:k])
        random = [_matched(top, ranked[:n_retrieval], n_heads, rng) for _ in range(params.draws)]
        groups = [("top", 0, top), *(("random", draw, heads) for draw, heads in enumerate(random))]
        for kind in params.kinds:
            for scope in params.scopes:
                found += [Condition(group, k, draw, kind, scope, heads) for group, draw, heads in groups if heads]
    return found


def _matched(
    top: tuple[Head, ...], retrieval: Sequence[Head], n_heads: int, rng: np.random.Generator
) -> tuple[Head, ...]:
    for exclude in (set(retrieval) | set(top), set(top)):
        try:
            return tuple(layer_matched_random(top, n_heads, rng, exclude=exclude))
        except InputError:  # some layer has too few other heads
            continue
    return ()


def mask_experiment(
    model: Model,
    samples: Sequence[NeedleSample],
    planned: Sequence[Condition],
    params: RetrievalParams,
    causal: CausalParams,
    respond: Callable[[list[int]], str],
) -> pd.DataFrame:
    """Needle recall of every sample under every condition, one row each.

    Columns: group, k, draw, kind, scope, sample, recall (percent), response, heads.
    """
    import pandas as pd

    rows: list[dict[str, object]] = []
    prompts = [s.tokens for s in samples]
    steps = min(params.max_new_tokens, causal.max_new_tokens or 2 * max(len(s.needle_tokens) for s in samples))
    stop = stop_rule(model, params.variant)
    options: dict[str, Any] = {"batch_size": params.batch_size, "new_tokens": steps}

    def run(batch: Prefilled, condition: Condition) -> None:
        texts = decode(model, batch, max_new_tokens=steps, stop=stop, interventions=condition.interventions())
        for i, generated in zip(batch.index, texts, strict=True):
            response = respond(generated)
            rows.append(
                {
                    "group": condition.group,
                    "k": condition.k,
                    "draw": condition.draw,
                    "kind": condition.kind,
                    "scope": condition.scope,
                    "sample": samples[i].id,
                    "recall": needle_recall(samples[i].needle_text, response),
                    "response": response,
                    "heads": " ".join(f"{layer}-{head}" for layer, head in condition.heads),
                }
            )

    from_decode = [c for c in planned if c.scope == "decode" or not c.heads]
    from_start = [c for c in planned if c not in from_decode]
    with bar(len(planned) * len(samples), "masking heads") as shown:
        for batch in prefill(model, prompts, **options):
            for condition in from_decode:
                run(batch, condition)
                shown.update(len(batch.index))
        for condition in from_start:
            for batch in prefill(model, prompts, interventions=condition.interventions(), **options):
                run(batch, condition)
                shown.update(len(batch.index))
    order = ["kind", "scope", "k", "group", "draw", "sample"]
    return pd.DataFrame(rows).sort_values(order, kind="stable", ignore_index=True)


def curve(recalls: pd.DataFrame) -> pd.DataFrame:
    """Mean recall per condition and group, random draws pooled, with the standard error over samples.

    Columns: kind, scope, k, group, recall, stderr, n (samples), draws.
    """
    keys = ["kind", "scope", "k", "group"]
    per_sample = recalls.groupby([*keys, "sample"], as_index=False)
    grouped = per_sample.agg(recall=("recall", "mean"), draws=("draw", "nunique")).groupby(keys)
    table = grouped.agg(
        recall=("recall", "mean"), stderr=("recall", "sem"), n=("recall", "size"), draws=("draws", "max")
    )
    return table.reset_index()
