"""Train a sparse autoencoder on a model's activations, and say which heads write its features.

1. Text: the prompts, or what the model itself writes after them (`text`), for a model without a corpus at hand. One
   part is held out.
2. Training on a stream of shuffled activations at one hook point (`saes.training`), resumed where it was interrupted.
3. Reconstruction on the held-out part: explained variance, L0, loss recovered, dead features.
4. The head table: what each head writes along the autoencoder's most active features, on the held-out part
   (`sae_features.write`), next to random directions.

The artifact holds `cfg.json` and `sae_weights.safetensors`: its folder is an autoencoder in the SAELens layout, which
`sae_features`, `workbench.saes.load_sae` and SAELens read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workbench.analyses.base import Analysis, Params, PromptParams, Result
from workbench.analyses.sae_features.params import LinkParams
from workbench.errors import InputError
from workbench.saes.options import TrainOptions

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.prompts import PromptDataset


class TextParams(Params):
    """Text that the model writes.

    Attributes:
        samples: texts per prompt.
        length: tokens of each, prompt included.
        temperature: of sampling; 1 is the model's own distribution.
    """

    samples: int = Field(default=64, ge=1)
    length: int = Field(default=128, ge=2)
    temperature: float = Field(default=1.0, gt=0)


class SaeTrainParams(PromptParams, LinkParams):
    """Those of `LinkParams` (the head table), and:

    Attributes:
        hook: hook point; null for the stream after the middle block.
        train: how it is trained.
        text: null trains on the prompts as they are.
        held_out: share of the texts that are not trained on (at least two), on which everything is measured.
        batch_rows: texts per forward pass.
    """

    hook: str | None = None
    train: TrainOptions = TrainOptions()
    text: TextParams | None = None
    held_out: float = Field(default=0.1, gt=0, lt=1)
    batch_rows: int = Field(default=16, ge=1)


def run(model: Model, data: PromptDataset, params: SaeTrainParams, seed: int) -> Result:
    """Train, measure, link.

    Result: `heads` scored by what they write along the features; files `cfg.json`, `sae_weights.safetensors`; tables
    `training` (a row per 50 steps), `features`, `writers`, `readers`; arrays `per_example`, `null_per_example` of the
    held-out texts; `sae` in the summary.

    Raises:
        InputError: the data are no prompts, too few of them to hold one out, or too few tokens for a batch.
        CapabilityError: head outputs cannot be told apart, or reach the stream through a norm.
    """
    import numpy as np
    import pandas as pd

    from workbench.analyses.sae_features.link import link
    from workbench.analyses.sae_features.measure import arrays_of, linkage
    from workbench.analyses.sae_features.obtain import trained_on
    from workbench.saes import report
    from workbench.saes.corpus import as_rows, continued
    from workbench.saes.files import as_files

    if getattr(data, "kind", None) != "prompts" or not len(data):
        raise InputError("sae_train needs at least one prompt; give `data: {prompts: [...]}` or a file of them.")
    started = time.perf_counter()
    texts = [sample.tokens for sample in data]
    if params.text is not None:
        texts = continued(model, texts, seed=seed, **params.text.model_dump())
    n_held = max(2, round(params.held_out * len(texts)))
    if n_held >= len(texts):
        raise InputError(f"{len(texts)} text(s) leave none to train on when {n_held} is held out; give more prompts.")
    order = np.random.default_rng(seed).permutation(len(texts))
    held, used = sorted(order[:n_held].tolist()), sorted(order[n_held:].tolist())
    tokens, mask = on_device(model, *as_rows([texts[i] for i in used]))
    apart, apart_mask = on_device(model, *as_rows([texts[i] for i in held]))
    text_done = time.perf_counter()
    made, place = trained_on(model, tokens, mask, params.train, hook=params.hook, rows=params.batch_rows, seed=seed)
    trained = time.perf_counter()
    sae = made.sae.to(model.device)
    found = report(model, place, sae, apart, apart_mask, rows=params.batch_rows)
    linked = link(
        model,
        place,
        sae,
        apart,
        apart_mask,
        params,
        analysis="sae_train",
        rows=params.batch_rows,
        seed=seed,
        meta={"trained": "here"},
    )
    ended = time.perf_counter()
    quality = found.to_dict()
    return Result(
        analysis="sae_train",
        heads=linked.heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables={"training": pd.DataFrame(made.history), **linked.tables},
        arrays=arrays_of(linked),
        summary={
            "sae": {"architecture": sae.config.architecture, "hook": place.name, "d_sae": sae.d_sae, **quality},
            "n_texts": len(used),
            "n_held_out": len(held),
            "n_training_tokens": int(tokens.numel() if mask is None else mask.sum()),
            "linkage": linkage(linked),
        },
        timing={"text": text_done - started, "training": trained - text_done, "linkage": ended - trained},
        files=as_files(sae),
        seed=seed,
    )


def on_device(model: Model, tokens: Any, mask: Any) -> tuple[Any, Any]:
    """Token rows and their mask where the model is."""
    return tokens.to(model.device), None if mask is None else mask.long().to(model.device)


def sae_train(model: Model, data: PromptDataset, *, seed: int = 0, **params: Any) -> Result:
    """Train a sparse autoencoder; the notebook form of `analysis: sae_train`.

    Args:
        data: prompts; see `wb.tasks.prompts_from_texts`.
        params: fields of `SaeTrainParams`.

    Example:
        >>> result = wb.sae_train(model, data, train={"k": 8}, text={"samples": 64})  # doctest: +SKIP
        >>> result.summary["sae"]["explained_variance"]  # doctest: +SKIP

    Raises:
        InputError: unusable data or an unknown parameter.
        CapabilityError: the model's head outputs cannot be told apart.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="sae_train",
    paper="Bricken et al. 2023; Gao et al. 2024, arXiv 2406.04093",
    params_type=SaeTrainParams,
    data_kind="prompts",
    requires=("head_axis_ok", "head_ablation_ok", "heads_sum_to_attn_out"),
    run=run,
)
