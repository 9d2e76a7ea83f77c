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
    assert (result.tables["captions"]["group"] != "").all()
    table = result.tables["answers"]
    assert list(dict.fromkeys(table["condition"])) == ["plain", "vhr", "others", "random"]
    part = table[table["condition"] == "vhr"].set_index("negatives")
    assert list(part.index) == ["random", "popular", "adversarial", "all"] and part["n"].tolist() == [2, 2, 2, 6]
    whole = result.tables["evaluation"].set_index("condition")
    assert part.loc["all", "accuracy"] == whole.loc["vhr", "answers_accuracy"]


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


def test_every_vision_analysis_is_judged_on_a_gemma_3_too() -> None:
    from tests.tiny_vision import pictures, tiny_vision
    from workbench.tasks.images import images_from_samples

    gemma = tiny_vision("gemma3")
    common = {"objects": ["cat"], "regions": {"cat": (0.0, 0.0, 0.5, 0.5)}, "about": "cat"}
    prompts = ("the cat is in", "red fish and bird saw", "one two")
    told = [{"image": p, "prompt": q, **common} for p, q in zip(pictures(3), prompts, strict=True)]
    asked = [{**row, "answer": "yes", "group": "random"} for row in told]
    for rows, figure in ((told, "chair_s"), (asked, "answers_accuracy")):
        data = images_from_samples(gemma, rows, vocabulary=("cat", "dog"))
        vhd = wb.vhd(gemma, data, max_new_tokens=3, controls=1, bootstrap=5, vhr={"alpha": [2], "ablate": [2]})
        sinks = {"dimensions": [5, 11], "tau": 1.2, "first_layer": 0, "min_mass": 0.05}
        var = wb.var(gemma, data, bootstrap=5, redistribution={"max_new_tokens": 3}, **sinks)
        for table, conditions in (
            (vhd.tables["evaluation"], ["plain", "vhr", "others", "random", "zeroed", "zeroed random"]),
            (var.tables["evaluation"], ["plain", "redistributed", "random", "all heads"]),
        ):
            assert table["condition"].tolist() == conditions and table[figure].notna().all()
            assert table["agreement"][0] == 1.0
        looked = wb.image_attention(gemma, data, bootstrap=5, crop_base=4)
        assert set(looked.tables["maps"]["method"]) == {"attention", "relative", "gradient", "pure_gradient"}
        assert looked.tables["crops"]["area"].between(0.05, 0.5).all() and looked.tables["crops"]["holds"].notna().all()
    assert wb.pope_scores(gemma, data, max_new_tokens=2, n_boot=5)["n"].tolist() == [3]


def test_conditions_are_held_against_the_unchanged_model_and_their_null() -> None:
    """Four scenes of two objects: the condition makes up nothing, its null (two draws) as much as before, or half."""

    def told(condition: str, example: int, false: int, draw: int = 0, hits: int = 2) -> dict[str, Any]:
        said = f"{hits} {false}"
        counts = {"hits": hits, "false": false, "shown": 2, "words": 5, "truth": "", "answer": "", "group": ""}
        return {"condition": condition, "alpha": 2.0, "draw": draw, "example": f"e{example}", "said": said, **counts}

    rows = [told("random", e, e % 2, draw) for e in range(4) for draw in (1, 0)]
    rows += [told("louder", e, 0, hits=1 + e % 2) for e in range(4)]
    rows += [told("plain", e, 1) for e in range(4)]
    rows = pd.DataFrame(rows).assign(alpha=lambda t: t["alpha"].where(t["condition"] != "plain", 1.0))
    by = ["condition", "alpha"]
    sorted_rows = evaluation.ordered(rows, [*by, "draw"], ("plain", "louder", "random"))
    table = evaluation.compared(sorted_rows, by, nulls={"louder": "random"}, n_boot=200).set_index("condition")
    assert list(table.index) == ["plain", "louder", "random"]
    assert table["draws"].tolist() == [1, 1, 2] and table["agreement"].tolist() == [1.0, 0.0, 0.5]
    assert table["chair_i"].tolist() == pytest.approx([4 / 12, 0, 4 / 20])
    assert table["chair_i_change"].tolist() == pytest.approx([0.0, -1.0, -0.4])
    assert table.loc["louder", "chair_i_vs_null"] == -1.0 and pd.isna(table.loc["random", "chair_i_vs_null"])
    f1 = {"plain": 16 / 20, "louder": 12 / 14, "random": 32 / 36}
    assert table.loc["louder", "f1_change"] == pytest.approx(f1["louder"] - f1["plain"])
    assert table.loc["louder", "f1_vs_null"] == pytest.approx(f1["louder"] - f1["random"])
    assert table.loc["random", "chair_i_change_low"] < -0.4 < table.loc["random", "chair_i_change_high"]
    assert table.loc["plain", ["chair_i_change_low", "chair_i_change_high"]].tolist() == [0.0, 0.0]
    assert evaluation.headline(table.reset_index())["louder"]["chair_i_change"] == -1.0
