"""Texts judged by kind of negatives; POPE's own questions with a user's image folder."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import workbench as wb
from workbench import tasks
from workbench.analyses import evaluation
from workbench.errors import InputError
from workbench.tasks import drawings

POPE = Path(__file__).parents[3] / "shared" / "data" / "pope"


@cache
def model() -> Any:
    return wb.load_model("organism:captions")


def row(group: str, answer: str, truth: str) -> dict[str, Any]:
    return {"group": group, "answer": answer, "truth": truth, "shown": -1}


def test_figures_are_kept_apart_by_negatives_and_pooled_at_the_end() -> None:
    rows = pd.DataFrame(
        [row("random", "yes", "yes"), row("random", "no", "no"), row("popular", "yes", "no"), row("popular", "", "yes")]
    )
    table = evaluation.by_negatives(rows, n_boot=10).set_index("negatives")
    assert list(table.index) == ["random", "popular", "all"]
    assert table["accuracy"].tolist() == [1.0, 0.0, 0.5]
    assert table["n"].tolist() == [2, 2, 4]
    assert table.loc["all", ["precision", "recall", "f1", "yes_ratio", "unanswered"]].tolist() == [
        0.5,
        0.5,
        0.5,
        0.5,
        0.25,
    ]
    assert table.loc["random", "accuracy_low"] < 1.0 == table.loc["random", "accuracy_high"]


def test_a_row_is_a_caption_or_an_answer() -> None:
    questions: Any = tasks.resolve(model(), {"task": "objects", "n": 2})
    told = evaluation.judged(questions[0], "yes .", drawings.OBJECTS)
    assert (told["answer"], told["truth"], told["shown"]) == ("yes", "yes", -1)
    scenes: Any = tasks.resolve(model(), {"task": "captions", "n": 1})
    scene = scenes[0]
    said = evaluation.judged(scene, f"I see : {scene.objects[0]} , nothing more .", drawings.OBJECTS)
    assert (said["hits"], said["false"], said["shown"], said["truth"]) == (1, 0, len(scene.objects), "")


def test_the_organism_answers_as_its_card_says() -> None:
    data: Any = tasks.resolve(model(), {"task": "objects", "n": 60})
    table = wb.pope_scores(model(), data, batch_size=30, n_boot=50).set_index("negatives")
    assert list(table.index) == ["random", "popular", "adversarial", "all"]
    assert table.loc["all", "n"] == 60 and table.loc["all", "accuracy"] > 0.9
    assert abs(table.loc["all", "yes_ratio"] - 0.5) < 0.1 and table.loc["all", "unanswered"] == 0
    assert (table["f1_low"] <= table["f1"]).all() and (table["f1"] <= table["f1_high"]).all()


def test_reinforced_answers_are_told_apart_too() -> None:
    data: Any = tasks.resolve(model(), {"task": "objects", "n": 6})
    result = wb.vhd(model(), data, max_new_tokens=3, controls=0, bootstrap=5, vhr={"random_draws": 1})
    table = evaluation.by_negatives(result.tables["captions"], ["condition", "alpha"], data=data, n_boot=5)
    assert {"plain", "vhr", "random"} <= set(table["condition"])
    part = table[table["condition"] == "vhr"].set_index("negatives")
    assert list(part.index) == ["random", "popular", "adversarial", "all"] and part["n"].tolist() == [2, 2, 2, 6]
    whole = result.tables["evaluation"].set_index("condition")
    assert part.loc["all", "accuracy"] == whole.loc["vhr", "answers_accuracy"]
    with pytest.raises(InputError, match="pass data="):
        evaluation.by_negatives(result.tables["captions"])


def test_nothing_asked_is_refused() -> None:
    with pytest.raises(InputError, match="asks nothing"):
        wb.pope_scores(model(), tasks.resolve(model(), {"task": "captions", "n": 1}))  # type: ignore[arg-type]


@pytest.mark.skipif(not POPE.exists(), reason="needs ../shared/data/pope")
def test_popes_questions_are_read_with_the_users_images(tmp_path: Path) -> None:
    n = 12
    file = POPE / "coco_pope_adversarial.json"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:n]]
    for seed, name in enumerate(sorted({line["image"] for line in lines})):
        drawings.draw(drawings.scenes(1, seed=seed)[0], size=64).save(tmp_path / name)
    data: Any = tasks.resolve(model(), {"file": str(file), "images": str(tmp_path), "n": n})
    table = wb.pope_scores(model(), data, max_new_tokens=3, n_boot=20)
    assert table["negatives"].tolist() == ["adversarial"] and table["n"].tolist() == [n]
    texts = evaluation.said(model(), data, range(n), max_new_tokens=3, batch_size=5)
    right = sum(text.split()[:1] == [line["label"]] for text, line in zip(texts, lines, strict=True))
    assert table["accuracy"][0] == pytest.approx(right / n)
    said = Counter(text.split()[0] for text in texts)
    assert table["yes_ratio"][0] == pytest.approx(said["yes"] / n)

    result = wb.var(
        model(),
        data,
        bootstrap=10,
        dimensions=[43, 58],
        tau=1.5,
        first_layer=0,
        redistribution={"max_new_tokens": 3, "random_draws": 1},
    )
    answers = result.tables["answers"].set_index("condition")
    assert answers.loc["plain", "accuracy"] == table["accuracy"][0]
    assert set(answers["negatives"]) == {"adversarial"}
