"""Texts said of images, judged sample by sample and summed up: captions by CHAIR, answers as POPE does.

`judged` turns a text into a row; `summed` and `by_negatives` turn rows into tables with intervals, by whatever columns
tell the rows apart (a condition, a method); `compared` holds the conditions of an experiment against the unchanged
model and against their nulls. `pope_scores` does it all for a model as it stands, on questions in the POPE layout with
a user's images just as on drawn ones. How a text came about is none of its business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses import hallucination
from workbench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.images import ImageDataset, ImageSample

PLAIN = "plain"  # the condition in which nothing is changed
_COUNTS = ["hits", "false", "shown", "words"]
_FIRST_LOOK = ("agreement", "chair_i", "chair_s", "chair_i_change", "recall", "f1", "words")
_FIRST_LOOK += ("answers_accuracy", "answers_yes_ratio")


def must_be_judged(data: ImageDataset, option: str) -> None:
    """Refuse data without objects and answers, for which what `option` does could not be told.

    Raises:
        InputError: no sample has objects or an answer.
    """
    if not any(sample.objects is not None or sample.answer is not None for sample in data):
        raise InputError(
            f"{option} is evaluated against what the images show, but no sample has objects or an answer; add them, "
            f"or leave {option} out."
        )


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
            counts = described[_COUNTS].itertuples(index=False)
            captions = [hallucination.Counts(*map(int, counted)) for counted in counts]
            row |= hallucination.chair(captions, of=described["example"].tolist(), n_boot=n_boot, seed=seed)
        if len(asked):
            row |= {f"answers_{key}": value for key, value in _pope(asked, n_boot, seed).items()}
        out.append(row)
    return pd.DataFrame(out)


def ordered(rows: pd.DataFrame, by: Sequence[str], conditions: Sequence[str]) -> pd.DataFrame:
    """Rows sorted by condition, in the order of `conditions`, then by the rest of `by`; `agrees` is added to them.

    A text agrees when it is what the unchanged model says of the same example.
    """
    plain = rows[rows["condition"] == PLAIN].set_index("example")["said"]
    place = {name: at for at, name in enumerate(conditions)}
    return rows.assign(agrees=rows["said"] == rows["example"].map(plain)).sort_values(
        list(by), key=lambda c: c.map(place) if c.name == "condition" else c, kind="stable", ignore_index=True
    )


def compared(
    rows: pd.DataFrame, by: Sequence[str], *, nulls: Mapping[str, str], n_boot: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """`summed`, with how each condition differs from the unchanged model and from its null.

    Columns beside those of `summed`: draws; agreement (share of texts that are the unchanged model's); lowest and
    highest (of single draws: CHAIR-I, or accuracy); for captions `chair_i_change`, `f1_change` (against the unchanged
    model) and `chair_i_vs_null`, `f1_vs_null`, CHAIR-I relatively and F1 absolutely, with `_low` and `_high` of the
    paired bootstrap over examples.

    Args:
        rows: as `ordered` makes them, with the columns `by` (the first of them `condition`) and `draw`.
        nulls: the condition that each is held against, the other values of `by` equal.
    """
    import pandas as pd

    table = summed(rows, by, n_boot=n_boot, seed=seed)
    single = summed(rows, [*by, "draw"], n_boot=1)
    figure = "chair_i" if "chair_i" in table else "answers_accuracy"
    facts: list[dict[str, Any]] = []
    counts = _by_example(rows, by)
    plain = next((values for keys, values in counts.items() if keys[0] == PLAIN), None)
    groups: Any = rows.groupby(list(by), sort=False)
    by_draw: Any = dict(list(single.groupby(list(by), sort=False))) if figure in single else {}
    for keys, part in groups:
        fact: dict[str, Any] = {"draws": part["draw"].nunique(), "agreement": float(part["agrees"].mean())}
        if figure in single:
            fact |= {"lowest": float(by_draw[keys][figure].min()), "highest": float(by_draw[keys][figure].max())}
        null = counts.get((nulls.get(keys[0]), *keys[1:]))
        for suffix, other in (("change", plain), ("vs_null", null)):
            if keys in counts and other is not None and counts[keys].shape == other.shape:
                found = hallucination.paired(counts[keys], other, n_boot=n_boot, seed=seed)
                for name, values in zip(("chair_i", "f1"), found, strict=True):
                    fact |= {f"{name}_{suffix}{'' if k == 'value' else '_' + k}": v for k, v in values.items()}
        facts.append(fact)
    return pd.concat([table[list(by)], pd.DataFrame(facts), table.drop(columns=list(by))], axis=1)


def headline(table: pd.DataFrame, name: Callable[[dict[str, Any]], str] = lambda row: row["condition"]) -> dict:
    """Of each row of `compared`, by `name`, the figures one looks at first."""
    return {
        name(row): {key: _rounded(row[key]) for key in _FIRST_LOOK if key in row} for row in table.to_dict("records")
    }


def by_negatives(rows: pd.DataFrame, by: Sequence[str] = (), *, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """POPE's figures for every kind of negatives (the samples' groups), and for `all` where there are several.

    Columns: `by`, negatives, n, accuracy, yes_ratio, precision, recall, f1, each with `_low` and `_high`, unanswered.

    Args:
        rows: one per answer with its group and truth, such as the table `captions` of `var` or of `vhd` with `vhr`.

    Example:
        >>> by_negatives(result.tables["captions"], ["condition", "alpha"])  # doctest: +SKIP
    """
    import pandas as pd

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
    of = asked["example"].tolist() if "example" in asked else None
    return hallucination.pope(answers, asked["truth"].tolist(), of=of, n_boot=n_boot, seed=seed)


def _by_example(rows: pd.DataFrame, by: Sequence[str]) -> dict[tuple, np.ndarray]:
    """Counts of captions `[example, 4]` summed over draws, examples in one order, by the values of `by`."""
    described: Any = rows[rows["shown"] >= 0]
    return {
        keys: part.groupby("example", sort=True)[_COUNTS].sum().to_numpy(dtype=float)
        for keys, part in described.groupby(list(by), sort=False)
    }


def _rounded(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
