"""The retrieval analysis from end to end: decode, score, gate, summarise, mask.

The arithmetic and the plumbing of each step live beside this file; here they are put in order.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses import kept_patterns
from workbench.analyses.base import Result
from workbench.analyses.retrieval import properties, score
from workbench.analyses.retrieval.causal import conditions, curve, mask_experiment
from workbench.analyses.retrieval.params import CausalParams, RetrievalParams
from workbench.analyses.retrieval.trace import Trace, attention_layers, traces
from workbench.errors import CapabilityError, InputError
from workbench.progress import bar
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.samples import NeedleDataset, NeedleSample

_METRICS = {
    "wu": ("retrieval score", "share of needle tokens copied"),
    "wu_compat": ("retrieval score (reference code)", "copying steps per needle token"),
    "attention_mass": ("attention mass on the needle", "share of attention"),
    "qr": ("QRscore", "share of attention"),
}


def measure(model: Model, data: NeedleDataset, params: RetrievalParams, seed: int) -> Result:
    """Score every head on every sample of `data`.

    Result: `heads` with the extra column `activation_frequency`; arrays `per_example` `[n_accepted, n_layers, n_heads]`
    and `all_examples` (rejected samples too, in the order of `tables["samples"]`); tables `samples`, `by_condition`,
    `recall_grid`, with the causal experiment `causal` (per sample) and `causal_curve`, and with `keep_patterns` the
    best heads' `attention` while they answer the first accepted samples.

    Raises:
        InputError: the dataset is empty or not made of needle samples.
        CapabilityError: the model exposes no attention pattern.
    """
    if getattr(data, "kind", None) != "needle" or not len(data):
        raise InputError("retrieval needs a dataset of at least one needle sample; see workbench.tasks.needle.")
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    samples = list(data)
    scores, null, rows, said = _score_all(model, samples, params, rng)
    scored = time.perf_counter()
    frame = _samples_table(samples, rows)
    accepted = frame["accepted"].to_numpy()
    heads = _head_table(model, scores[accepted], null, params, seed)
    tables = {
        "samples": frame,
        "by_condition": properties.by_condition(frame.loc[accepted], scores[accepted]),
        "recall_grid": properties.recall_grid(frame),
    }
    summary: dict[str, Any] = {
        "n_samples": len(samples),
        "n_accepted": int(accepted.sum()),
        "needle_recall": float(frame["recall"].mean()),
        **properties.shares(heads.matrix(), params.threshold),
        "n_always_active": int((heads.matrix("activation_frequency") == 1).sum()),
    }
    if params.causal is not None:
        kept = [sample for sample, keep in zip(samples, accepted, strict=True) if keep]
        summary["causal"] = _causal(model, kept, heads, params, params.causal, rng, tables)
    if params.keep_patterns is not None:
        best = kept_patterns.best(heads, params.keep_patterns)
        answered = ((s.id, s.tokens, said[i]) for i, s in enumerate(samples) if accepted[i])
        tables["attention"] = kept_patterns.of_texts(model, answered, best, params.keep_patterns)
    return Result(
        analysis="retrieval",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables=tables,
        arrays={"per_example": scores[accepted].astype(np.float32), "all_examples": scores.astype(np.float32)},
        summary=summary,
        timing={"scoring": scored - started, "causal": time.perf_counter() - scored},
        seed=seed,
    )


def _score_all(
    model: Model, samples: Sequence[NeedleSample], params: RetrievalParams, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None, list[dict[str, Any]], list[list[int]]]:
    """Scores `[n, layer, head]`, the mean score on control spans `[draws, layer, head]`, one row and the generated
    tokens of each sample."""
    shape = (model.n_layers, model.n_heads)
    unread = [layer for layer in range(model.n_layers) if layer not in attention_layers(model)]
    controls = [score.control_spans(s.length, s.needle, params.controls, rng) for s in samples]
    scores = np.full((len(samples), *shape), np.nan)
    null = np.zeros((params.controls, *shape))
    null[:, unread] = np.nan  # undefined like the score, not 0
    rows: list[dict[str, Any]] = [{} for _ in samples]
    said: list[list[int]] = [[] for _ in samples]
    n_null = 0
    with bar(len(samples), "needle samples") as shown:
        for i, found in traces(model, samples, params, controls):
            scores[i], on_controls = _score_one(model, samples[i], found, params, controls[i])
            scores[i][unread] = np.nan
            rows[i], said[i] = _row(model, samples[i], found, params), found.generated
            asked = not np.isnan(scores[i]).all()  # without a question `qr` has no score, and so no null
            if rows[i]["accepted"] and asked and on_controls is not None:
                null += on_controls
                n_null += 1
            shown.update()
    return scores, (null / n_null if n_null and params.controls else None), rows, said


def _score_one(
    model: Model, sample: NeedleSample, found: Trace, params: RetrievalParams, controls: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """One sample's scores `[layer, head]` and the same on its control spans `[draws, layer, head]`."""
    if found.mass is not None:
        on_controls = None if controls is None else np.moveaxis(found.mass[..., 1:], -1, 0)
        return found.mass[..., 0], on_controls
    assert found.top_keys is not None
    copies = score.Copies.find(found.top_keys, found.generated, sample.tokens)
    if params.variant == "wu":
        spans = [] if controls is None else [tuple(span) for span in controls]
        on_controls = [score.wu(copies, sample.tokens, span) for span in spans]
        return score.wu(copies, sample.tokens, sample.needle), np.stack(on_controls) if spans else None
    needle = _needle_ids(model, sample)
    spans = [] if controls is None else [(int(a), int(a) + len(needle)) for a, _ in controls]
    on_controls = [score.wu_compat(copies, span) for span in spans]
    span = score.find_span_by_token_set(needle, sample.tokens)
    return score.wu_compat(copies, span), np.stack(on_controls) if spans else None


def _needle_ids(model: Model, sample: NeedleSample) -> list[int]:
    """The needle's text tokenised on its own, as the reference code searches for it."""
    if model.tokenizer is None:
        return list(sample.needle_tokens)
    return list(model.tokenizer(sample.needle_text, add_special_tokens=False)["input_ids"])


def respond(model: Model, generated: Sequence[int]) -> str:
    """The generated tokens as text; their ids where the model has no tokenizer."""
    if model.tokenizer is None:
        return " ".join(map(str, generated))
    return model.tokenizer.decode(list(generated), skip_special_tokens=True)


def _row(model: Model, sample: NeedleSample, found: Trace, params: RetrievalParams) -> dict[str, Any]:
    response = respond(model, found.generated)
    recall = score.needle_recall(sample.needle_text, response)
    return {
        "recall": recall,
        "accepted": params.recall_gate == 0 or recall > params.recall_gate,
        "n_generated": len(found.generated),
        "response": response,
    }


def _samples_table(samples: Sequence[NeedleSample], rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    facts = [
        {
            "id": s.id,
            "needle_id": s.needle_id,
            "needle": s.needle_text,
            "length": s.nominal_length or s.length,
            "n_tokens": s.length,
            "depth": np.nan if s.depth is None else s.depth,
            "needle_start": s.needle[0],
            "needle_end": s.needle[1],
            **row,
            "notes": "; ".join(s.notes),
        }
        for s, row in zip(samples, rows, strict=True)
    ]
    return pd.DataFrame(facts)


def _head_table(
    model: Model, accepted: np.ndarray, null: np.ndarray | None, params: RetrievalParams, seed: int
) -> HeadTable:
    metric, unit = _METRICS[params.variant]
    status = np.full((model.n_layers, model.n_heads), "ok", dtype=object)
    if not len(accepted):
        status[:] = f"no sample passed the recall gate of {params.recall_gate:g}%"
    else:
        undefined = np.isnan(accepted).all(axis=0)
        status[undefined] = "no sample has a question behind its needle" if undefined.all() else "no attention pattern"
    return HeadTable.from_examples(
        accepted,
        n_kv_heads=model.n_kv_heads,
        null_draws=null,
        n_boot=params.bootstrap,
        seed=seed,
        status=status,
        extra={"activation_frequency": properties.activation_frequency(accepted)},
        analysis="retrieval",
        metric=metric,
        unit=unit,
        model=model.name,
        fingerprint=model.fingerprint,
        basis=model.basis,
        higher_is_more=True,
    )


def _causal(
    model: Model,
    samples: list[NeedleSample],
    heads: HeadTable,
    params: RetrievalParams,
    causal: CausalParams,
    rng: np.random.Generator,
    tables: dict[str, pd.DataFrame],
) -> dict[str, Any]:
    """Run the masking experiment, add its tables, and return its headline; says why where it cannot run."""
    if not samples:
        return {"status": "not run: no sample passed the recall gate"}
    if not heads.ok.any():
        return {"status": f"not run: {heads['status'][0]}"}
    if len(samples) > causal.samples:
        chosen = np.sort(rng.choice(len(samples), causal.samples, replace=False))
        samples = [samples[int(i)] for i in chosen]
    n_retrieval = len(heads.select(f"score >= {params.threshold}"))
    ranked = heads.top(len(heads)).keys()
    planned = conditions(ranked, n_retrieval, model.n_heads, causal, rng)
    try:
        recalls = mask_experiment(model, samples, planned, params, causal, lambda generated: respond(model, generated))
    except CapabilityError as error:
        return {"status": f"not run: {error}"}
    tables["causal"], tables["causal_curve"] = recalls, curve(recalls)
    return {"status": "ok", "n_samples": len(samples), **_headline(tables["causal_curve"], n_retrieval)}


def _headline(table: pd.DataFrame, n_retrieval: int) -> dict[str, Any]:
    """Recall unmasked, and with as many heads masked as there are retrieval heads (or the most tried)."""
    rows = table.to_dict("records")
    unmasked = next(row["recall"] for row in rows if row["group"] == "none")
    ks = sorted({row["k"] for row in rows if row["group"] != "none"})
    k = n_retrieval if n_retrieval in ks else ks[-1]
    at_k = [row for row in rows if row["k"] == k]
    recall = {f"{row['group']}_{row['kind']}_{row['scope']}": float(row["recall"]) for row in at_k}
    return {"k": int(k), "recall_unmasked": float(unmasked), "recall": recall}
