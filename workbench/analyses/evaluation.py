"""Texts said of images, judged sample by sample and summed up: captions by CHAIR, answers as POPE does.

`judged` turns a text into a row; `summed` and `by_negatives` turn rows into tables with intervals, by whatever columns
tell the rows apart (a condition, a method). `pope_scores` does it all for a model as it stands, on questions in the
POPE layout with a user's images just as on drawn ones. What is measured inside a model is none of its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.analyses import hallucination
from workbench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.images import ImageDataset, ImageSample


def can_be_judged(data: ImageDataset) -> bool:
    """Whether some sample has objects or an answer."""
    return any(sample.objects is not None or sample.answer is not None for sample in data)


def judged(sample: ImageSample, text: str, vocabulary: Sequence[str]) -> dict[str, Any]:
    """One row: what was said, and counts of objects (-1: not a caption) or the answer ("": not a question)."""
    row: dict[str, Any] = {"example": sample.id, "group": sample.group, "said": text}
    row |= {"hits": -1, "false": -1, "shown": -1, "words": len(text.split()), "answer": "", "truth": ""}
    if sample.answer is not None:
        row |= {"answer": hallucination.answer(text) or "", "truth": sample.answer}
    elif sample.objects is not None:
        counts = hallucination.count(text, sample.objects, vocabulary)
        row |= {"hits": counts.hits, "false": counts.false, "shown": counts.shown}
    return row


def summed(rows: pd.DataFrame, by: Sequence[str], *, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row per value of `by`: CHAIR and F1 of captions, POPE's figures of answers (prefix `answers_`)."""
    import pandas as pd

    out = []
    groups: Any = rows.groupby(list(by), sort=False)
    for keys, part in groups:
        row: dict[str, Any] = dict(zip(by, keys, strict=True))
        described, asked = part[part["shown"] >= 0], part[part["truth"] != ""]
        if len(described):
            counts = described[["hits", "false", "shown", "words"]].itertuples(index=False)
            captions = [hallucination.Counts(*map(int, counted)) for counted in counts]
            row |= hallucination.chair(captions, n_boot=n_boot, seed=seed)
        if len(asked):
            row |= {f"answers_{key}": value for key, value in _pope(asked, n_boot, seed).items()}
        out.append(row)
    return pd.DataFrame(out)


def by_negatives(
    rows: pd.DataFrame,
    by: Sequence[str] = (),
    *,
    data: ImageDataset | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """POPE's figures for every kind of negatives (the samples' groups), and for `all` where there are several.

    Columns: `by`, negatives, n, accuracy, yes_ratio, precision, recall, f1, each with `_low` and `_high`, unanswered.

    Args:
        rows: one per answer with its truth, such as the table `captions` of `var` or of `vhd` with `vhr`.
        data: the questions, for rows that do not name their group.

    Example:
        >>> by_negatives(result.tables["captions"], ["condition", "alpha"], data=data)  # doctest: +SKIP
    """
    import pandas as pd

    if "group" not in rows:
        if data is None:
            raise InputError("These rows do not say which negatives they belong to; pass data=, the questions asked.")
        rows = rows.assign(group=rows["example"].map({sample.id: sample.group for sample in data}))
    out = []
    asked: Any = rows[rows["truth"] != ""]
    parts: Any = asked.groupby(list(by), sort=False) if by else [((), asked)]
    for keys, part in parts:
        groups = list(dict.fromkeys(part["group"]))
        kinds = [(group or "unnamed", part[part["group"] == group]) for group in groups]
        if len(groups) > 1:
            kinds.append(("all", part))
        for name, answers in kinds:
            out.append({**dict(zip(by, keys, strict=True)), "negatives": name, **_pope(answers, n_boot, seed)})
    return pd.DataFrame(out)


def pope_scores(
    model: Model,
    data: ImageDataset,
    *,
    max_new_tokens: int = 8,
    batch_size: int = 8,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask the model every question and score its answers by kind of negatives; see `by_negatives` for the columns.

    Args:
        data: questions with answers, such as `tasks.resolve(model, {"file": "coco_pope_random.json", "images":
            "val2014"})` or `task: objects`.

    Example:
        >>> wb.pope_scores(model, data)[["negatives", "accuracy", "f1", "yes_ratio"]]  # doctest: +SKIP

    Raises:
        InputError: no sample has an answer, or the model reads text only.
    """
    import pandas as pd

    asked = [index for index, sample in enumerate(data) if sample.answer is not None]
    if not asked:
        raise InputError(f"The dataset {data.name!r} asks nothing: no sample has an answer 'yes' or 'no'.")
    texts = said(model, data, asked, max_new_tokens=max_new_tokens, batch_size=batch_size)
    rows = [judged(data[index], text, data.vocabulary) for index, text in zip(asked, texts, strict=True)]
    return by_negatives(pd.DataFrame(rows), n_boot=n_boot, seed=seed)


def said(model: Model, data: ImageDataset, chosen: Sequence[int], *, max_new_tokens: int, batch_size: int) -> list[str]:
    """What the model writes, greedily, after the prompts of these samples."""
    from workbench.analyses.vhd.branches import Views
    from workbench.analyses.vhd.generate import as_text, end_tokens, write

    views, ends = Views(model, data, "removed"), end_tokens(model)
    texts: list[str] = []
    for start in range(0, len(chosen), batch_size):
        branch = views.image(list(chosen[start : start + batch_size]))
        out = write(model, branch, max_new_tokens=max_new_tokens, ends=ends)
        texts += [as_text(model, tokens) for tokens in out.tokens]
    return texts


def _pope(asked: Any, n_boot: int, seed: int) -> dict[str, float]:
    answers = [answer or None for answer in asked["answer"]]
    return hallucination.pope(answers, asked["truth"].tolist(), n_boot=n_boot, seed=seed)
