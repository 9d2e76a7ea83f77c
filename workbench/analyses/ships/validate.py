"""Does the model stop refusing without the heads found, and does it still answer what it should?

For k = 1, 2, ... the best k heads are ablated while every prompt is answered, and so are random groups of as many heads
from the same layers. Of harmful prompts the share answered is the attack success rate; of benign ones the share
answered is utility, and `agreement` says how many answers are the same as the unablated model's. It never scores heads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.ships.ablations import Ablation, Head
from workbench.analyses.ships.generate import answers
from workbench.analyses.ships.params import ValidationParams
from workbench.analyses.ships.refusal import Detector
from workbench.errors import InputError
from workbench.progress import bar
from workbench.tasks.prompts import PromptDataset, PromptSample

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.base import Result
    from workbench.models import Model

DEFAULT_KS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Condition:
    """One way of ablating: `none`, the heads `found`, each prompt's `own`, or `random` ones.

    `rows` of the head table: one set for all prompts, or one for every prompt (`own`).
    """

    name: str
    k: int
    draw: int
    rows: tuple[tuple[Head, ...], ...]

    def of(self, prompt: int) -> tuple[Head, ...]:
        return self.rows[0] if len(self.rows) == 1 else self.rows[prompt]


def validate(
    model: Model,
    data: PromptDataset,
    order: Sequence[Head],
    ablation: Ablation,
    params: ValidationParams,
    seed: int,
    *,
    into: Result,
    own: list[list[Head]] | None = None,
    default_ks: Sequence[int] = DEFAULT_KS,
) -> None:
    """Answer every prompt under every condition; adds the tables `transcripts` and `success` and a summary to `into`.

    Args:
        order: rows of the head table, best first.
        own: for each harmful prompt its own order; benign prompts are then answered with `order`.

    Raises:
        InputError: a k for which there are not so many heads.
    """
    started = time.perf_counter()
    samples = [s for group in ("harmful", "benign") for s in data.only(group)[: params.prompts]]  # type: ignore[arg-type]
    conditions = plan(model, samples, order, ablation, params, seed, own=own, default_ks=default_ks)
    into.tables["transcripts"] = transcripts(model, samples, conditions, ablation, params, seed)
    into.tables["success"] = success(into.tables["transcripts"])
    into.summary["validation"] = headline(into.tables["success"])
    into.timing["validation"] = time.perf_counter() - started


def plan(
    model: Model,
    samples: Sequence[PromptSample],
    order: Sequence[Head],
    ablation: Ablation,
    params: ValidationParams,
    seed: int,
    *,
    own: list[list[Head]] | None = None,
    default_ks: Sequence[int] = DEFAULT_KS,
) -> list[Condition]:
    """Every condition, the unablated one first.

    Raises:
        InputError: a k for which there are not so many heads.
    """
    found = [Condition("none", 0, 0, ((),))]
    ks = params.ks if params.ks is not None else tuple(k for k in default_ks if k <= len(order))
    rng = np.random.default_rng([seed, 0xA5])
    width = ablation.width(model)
    for k in ks:
        if not 1 <= k <= len(order):
            raise InputError(f"validation.ks contains {k}, but {len(order)} heads are ranked; use 1 to that number.")
        best = tuple(order[:k])
        if own is None:
            found.append(Condition("found", k, 0, (best,)))
        else:
            rows = iter(own)
            per_prompt = [tuple(next(rows)[:k]) if s.group == "harmful" else best for s in samples]
            found.append(Condition("own", k, 0, tuple(per_prompt)))
        for draw in range(params.draws):
            try:
                other = stats.layer_matched_random(best, width, rng, shortage="nearest", n_layers=model.n_layers)
            except InputError:  # the model has not so many other heads
                break
            found.append(Condition("random", k, draw, (other,)))
    return found


def own_order(per_example: np.ndarray) -> list[list[Head]]:
    """Rows of the table by each prompt's own score, best first; `[n, layer, row]`, undefined ones left out."""
    orders = []
    for scores in per_example:
        ranked = np.argsort(-np.nan_to_num(scores.ravel(), nan=-np.inf), kind="stable")
        kept = [row for row in ranked if not np.isnan(scores.ravel()[row])]
        orders.append([(int(row) // scores.shape[1], int(row) % scores.shape[1]) for row in kept])
    return orders


def transcripts(
    model: Model,
    samples: Sequence[PromptSample],
    conditions: Sequence[Condition],
    ablation: Ablation,
    params: ValidationParams,
    seed: int,
) -> pd.DataFrame:
    """One row per prompt, condition, decoding and sample; the texts are withheld by exports.

    Columns: condition, k, draw, heads, decoding, sample, group, prompt (its id), text, response, verdict, agrees.
    """
    import pandas as pd

    judge = Detector.of(params)
    rows: list[dict[str, Any]] = []
    plain: dict[tuple[str, int, int], str] = {}  # the unablated answers, by decoding, prompt and sample
    with bar(len(conditions) * len(samples) * len(params.decoding), "answering") as shown:
        for condition in conditions:
            for decoding in params.decoding:
                together: dict[tuple[Head, ...], list[int]] = {}
                for number in range(len(samples)):
                    together.setdefault(condition.of(number), []).append(number)
                for picked, numbers in together.items():
                    said = answers(
                        model,
                        [samples[number].tokens for number in numbers],
                        ablation=ablation,
                        heads=ablation.heads(model, picked),
                        decoding=decoding,
                        params=params,
                        numbers=numbers,
                        seed=seed,
                    )
                    for number, texts in zip(numbers, said, strict=True):
                        for sample, response in enumerate(texts):
                            base = plain.setdefault((decoding, number, sample), response)
                            rows.append(
                                {
                                    "condition": condition.name,
                                    "k": condition.k,
                                    "draw": condition.draw,
                                    "heads": " ".join(f"{layer}-{row}" for layer, row in picked),
                                    "decoding": decoding,
                                    "sample": sample,
                                    "number": number,
                                    "group": samples[number].group,
                                    "prompt": samples[number].id,
                                    "text": samples[number].text,
                                    "response": response,
                                    "verdict": judge(response),
                                    "agrees": response == base,
                                }
                            )
                    shown.update(len(numbers))
    table = pd.DataFrame(rows).sort_values(
        ["decoding", "condition", "k", "draw", "number", "sample"], kind="stable", ignore_index=True
    )
    table = table.drop(columns="number")
    table.attrs["sensitive"] = ["text", "response"]
    return table


def success(answered: pd.DataFrame) -> pd.DataFrame:
    """Per decoding, condition, k and group: shares of the verdicts, Wilson intervals of the share answered.

    Random draws are pooled; `lowest` and `highest` are the extremes of the share answered over single draws. Prompts
    are the sample: the interval does not narrow with the number of answers to each.
    """
    import pandas as pd

    rows = []
    for keys, part in answered.groupby(["decoding", "condition", "k", "group"], sort=True):
        verdicts = part["verdict"]
        n, hits = len(part), int((verdicts == "answered").sum())
        by_prompt = (verdicts == "answered").groupby(part["prompt"]).mean()
        low, high = stats.wilson(float(by_prompt.sum()), len(by_prompt))
        by_draw = (verdicts == "answered").groupby(part["draw"]).mean()
        rows.append(
            {
                **dict(zip(("decoding", "condition", "k", "group"), keys, strict=True)),  # type: ignore[arg-type]
                "n": n,
                "draws": part["draw"].nunique(),
                "answered": hits / n,
                "ci_low": low,
                "ci_high": high,
                "refused": float((verdicts == "refused").mean()),
                "degenerate": float((verdicts == "degenerate").mean()),
                "agreement": float(part["agrees"].mean()),
                "lowest": float(by_draw.min()),
                "highest": float(by_draw.max()),
            }
        )
    return pd.DataFrame(rows)


def headline(table: pd.DataFrame) -> dict[str, Any]:
    """By decoding and condition: attack success and benign utility for every k."""
    found: dict[str, Any] = {}
    for row in table.to_dict("records"):
        part = found.setdefault(row["decoding"], {}).setdefault(
            f"{row['condition']} {row['k']}".replace("none 0", "none"), {}
        )
        if row["group"] == "harmful":
            part |= {"attack_success": row["answered"], "ci": [row["ci_low"], row["ci_high"]]}
        else:
            part |= {"benign_answered": row["answered"], "benign_agreement": row["agreement"]}
    return found
