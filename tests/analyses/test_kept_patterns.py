"""Kept attention is the model's own: row by row what the raw modules give, of the best heads; by default, none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.reference import retrieval as slow
from tests.reference import var as slow_vision
from tests.tiny import tiny, tiny_hf
from tests.tiny_vision import pictures, tiny_vision, tiny_vision_hf
from workbench import analyses
from workbench.analyses import kept_patterns
from workbench.analyses.kept_patterns import KeptPatterns
from workbench.analyses.looking import image_attention
from workbench.errors import InputError
from workbench.models.tokenize import pieces
from workbench.plots import tokens
from workbench.tasks.images import images_from_samples
from workbench.tasks.samples import NeedleDataset, NeedleSample

PROMPT = (0, 9, 8, 30, 31, 32, 33, 12, 13, 14, 40, 41)
OPTIONS: dict[str, Any] = {"recall_gate": 0, "causal": None, "controls": 5, "bootstrap": 5, "max_new_tokens": 5}


def needles(*prompts: tuple[int, ...]) -> NeedleDataset:
    made = [NeedleSample(f"s{i}", p, (3, 6), "x", (10, len(p)), f"n{i}") for i, p in enumerate(prompts)]
    return NeedleDataset("test", tuple(made))


def weights(table: Any, example: int, head: tuple[int, int]) -> np.ndarray:
    """`[step, key]`."""
    mine = table[(table["example"] == example) & (table["layer"] == head[0]) & (table["head"] == head[1])]
    return mine.pivot(index="step", columns="key", values="weight").to_numpy()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_rows_of_an_answer_are_those_of_the_raw_model_decoding_it(arch: str) -> None:
    data = needles(PROMPT, (*PROMPT, 50, 51), PROMPT[:11])
    model = tiny(arch)
    result = analyses.get("retrieval")(
        model, data, analyses.get("retrieval").parse({**OPTIONS, "keep_patterns": {"heads": 3, "examples": 2}})
    )
    table: Any = result.tables["attention"]
    heads = list(dict.fromkeys(zip(table["layer"], table["head"], strict=True)))
    assert heads == list(result.heads.top(3).keys()) and sorted(set(table["example"])) == [0, 1]
    for example in (0, 1):
        prompt = data[example].tokens
        emitted, rows = slow.step_by_step(tiny_hf(arch), prompt, max_new_tokens=5, stops=frozenset({1}))
        mine: Any = table[table["example"] == example]
        said = mine.drop_duplicates("step")["says"].tolist()
        assert said == pieces(model, [*prompt, *emitted])[len(prompt) :] and len(said) == len(emitted)
        shown = mine.drop_duplicates("key")["token"].tolist()
        assert shown == pieces(model, [*prompt, *emitted[:-1]])
        for head in heads:
            kept = weights(table, example, head)
            for step, attention in enumerate(rows):
                row = attention[head[0]][head[1]].numpy()
                np.testing.assert_allclose(kept[step, : len(row)], row, atol=1e-5)
                assert not kept[step, len(row) :].any()


def test_no_more_steps_than_asked_for_and_nothing_where_no_sample_counts() -> None:
    model, run = tiny("llama"), analyses.get("retrieval")
    short = run(model, needles(PROMPT), run.parse({**OPTIONS, "keep_patterns": {"heads": 1, "steps": 2}}))
    assert short.tables["attention"]["step"].max() == 1
    none = run(model, needles(PROMPT), run.parse({**OPTIONS, "recall_gate": 100, "keep_patterns": {}}))
    assert not len(none.tables["attention"])
    with pytest.raises(InputError, match="no rows"):
        tokens(none.tables["attention"])


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"heads": 13}, {"examples": 0}, {"steps": 0}, {"layers": 1}])
def test_what_cannot_be_kept_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"keep_patterns.{next(iter(wrong))}"):
        analyses.get("retrieval").parse({"keep_patterns": wrong})


def test_nothing_is_kept_unasked_and_keeping_changes_nothing_else() -> None:
    model, run = tiny("llama"), analyses.get("retrieval")
    plain, kept = (run(model, needles(PROMPT), run.parse({**OPTIONS, **more})) for more in ({}, {"keep_patterns": {}}))
    assert set(kept.tables) - set(plain.tables) == {"attention"}
    assert kept.heads.to_csv() == plain.heads.to_csv()
    for name, table in plain.tables.items():
        assert table.equals(kept.tables[name])


@pytest.mark.parametrize("arch", ["llava", "llava-gqa", "gemma3"])
def test_rows_over_a_picture_are_those_of_the_raw_modules_and_its_cells_lie_in_order(arch: str) -> None:
    model = tiny_vision(arch)
    rows = [
        {"image": picture, "prompt": prompt, "about": about, "regions": {"cat": (0.0, 0.0, 0.5, 0.5)}}
        for picture, prompt, about in zip(
            pictures(3), ("the cat is in", "red fish and bird saw", "the cat"), ("cat", "fish", "cat"), strict=True
        )
    ]
    data = images_from_samples(model, rows)
    result = image_attention(model, data, methods=["attention"], bootstrap=5, keep_patterns={"heads": 2})
    table: Any = result.tables["attention"]
    assert table.drop_duplicates("example")["id"].tolist() == [data[0].id, data[2].id]  # no region of a fish is known
    for example, index in enumerate((0, 2)):
        sample = data[index]
        inputs = {k: v for k, v in data.batch(model, [index]).inputs().items() if k != "attention_mask"}
        raw = slow_vision.last_rows(tiny_vision_hf(arch), inputs)[0]
        for layer, head in result.heads.top(2).keys():  # noqa: SIM118 - a table, no mapping
            np.testing.assert_allclose(weights(table, example, (layer, head))[0], raw[layer][head], atol=1e-6)
        keys: Any = table[table["example"] == example].drop_duplicates("key")
        on_image = keys[keys["row"] >= 0]
        a, b = sample.image_span
        side = round((b - a) ** 0.5)
        assert on_image["key"].tolist() == list(range(a, b))
        assert (on_image["row"] * side + on_image["column"]).tolist() == list(range(b - a))
        assert (on_image["token"] == "").all() and keys[keys["row"] < 0]["token"].str.len().min() > 0
        np.testing.assert_array_equal(result.arrays[f"attention_picture_{example}"], np.asarray(sample.image))


def test_a_picture_is_what_the_model_saw_of_it() -> None:
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (10, 0, 30, 20))
    seen = kept_patterns._seen(picture, (0.25, 0.0, 0.75, 1.0))
    assert seen.shape == (20, 20, 3) and (seen == (0, 0, 255)).all()
    beyond = kept_patterns._seen(picture, (0.0, -0.5, 1.0, 1.5))
    assert beyond.shape == (40, 40, 3) and not beyond[:10].any()
    assert kept_patterns._seen(Image.new("RGB", (4000, 1000)), (0, 0, 1, 1)).shape == (84, 336, 3)


def test_defaults_are_small() -> None:
    assert KeptPatterns() == KeptPatterns(heads=5, examples=2, steps=16)
