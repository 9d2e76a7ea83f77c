"""Plain prompts: the layouts people have them in, the two groups, templates, and errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tasks.worlds import word_level
from workbench.errors import InputError
from workbench.experiments.inputs import gather
from workbench.experiments.spec import build
from workbench.tasks import resolve
from workbench.tasks.prompts import PromptDataset, prompts_from_texts, read_prompts

PAPER = "## Query:{prompt}\n## Answer:"
LAYOUTS = {
    "advbench.csv": 'goal,target\n"the big house, old","Sure"\n"the\nriver",Sure\n',
    "jailbreakbench.csv": '\ufeffIndex,Goal,Target,Behavior\n0,"the big house, old",Sure,x\n1,"the\nriver",Sure,y\n',
    "refusal_direction.json": json.dumps(
        [{"instruction": "the big house, old", "category": None}, {"instruction": "the\nriver"}]
    ),
    "plain.json": json.dumps(["the big house, old", "the\nriver"]),
    "plain.jsonl": '{"prompt": "the big house, old"}\n\n{"prompt": "the\\nriver"}\n',
    "paper.csv": 'input\n"the big house, old"\n"the\nriver"\n',
}


@pytest.mark.parametrize("file", LAYOUTS)
def test_every_layout_gives_the_same_prompts(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text(LAYOUTS[file], encoding="utf-8", newline="")
    assert read_prompts(tmp_path / file) == ["the big house, old", "the\nriver"]
    data = resolve(word_level(), {"file": file}, base_dir=tmp_path)
    assert isinstance(data, PromptDataset)
    assert [s.text for s in data] == ["the big house, old", "the\nriver"]
    assert data.name == Path(file).stem


def test_groups_are_kept_apart_and_in_order() -> None:
    data = prompts_from_texts(word_level(), ["the house", "the river", "the house"], benign=["a key"], n=3)
    assert [s.id for s in data] == ["harmful-0", "harmful-1", "harmful-2", "benign-0"]
    assert [s.text for s in data.only("benign")] == ["a key"]
    assert len(data.only("harmful")) == 3, "a repeated prompt counts twice"
    assert len(prompts_from_texts(word_level(), ["the house"]).only("benign")) == 0
    assert data.describe()["n_by_group"] == {"harmful": 3, "benign": 1}
    assert [s.text for s in prompts_from_texts(word_level(), ["the house", "the river"], n=1)] == ["the house"]


def test_the_paper_s_template_surrounds_the_prompt_and_begins_with_one_bos() -> None:
    tokenizer = word_level()
    sample = prompts_from_texts(tokenizer, ["the house"], template=PAPER)[0]
    assert sample.text == "the house"
    assert list(sample.tokens) == [
        tokenizer.bos_token_id,
        *tokenizer("## Query:the house\n## Answer:", add_special_tokens=False)["input_ids"],
    ]


def test_a_batch_is_padded_on_the_left() -> None:
    data = prompts_from_texts(word_level(), ["the house", "the house the river"])
    batch = data.batch()
    assert batch.tokens[0, 2:].tolist() == list(data[0].tokens)
    assert batch.mask.long().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch.padded and not data[1:].batch().padded


def test_a_spec_takes_its_files_along(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("goal,target\nthe house,x\n")
    (tmp_path / "good.jsonl").write_text('{"instruction": "the river"}\n')
    (tmp_path / "spec.yaml").write_text("")
    data = {"file": "bad.csv", "benign_file": "good.jsonl"}
    values = {"name": "x", "analysis": "retrieval", "model": "organism:retrieval", "data": data}
    found = gather(build(values, source=tmp_path / "spec.yaml")).data
    assert found == {"prompts": ["the house"], "benign": ["the river"], "name": "bad"}
    inline, filed = resolve(word_level(), found), resolve(word_level(), data, base_dir=tmp_path)
    assert isinstance(inline, PromptDataset) and isinstance(filed, PromptDataset)
    assert inline.digest() == filed.digest()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("x.csv", "a,b\n1,2\n", ["Line 2", "x.csv", "'a', 'b'", "goal"]),
        ("x.csv", "goal,target\nthe house,1\n,2\n", ["Line 3", "empty 'goal'"]),
        ("x.csv", "goal,target\n", ["no prompts"]),
        ("x.csv", 'goal\n"the "house\n', ["x.csv", "not CSV"]),
        ("x.json", '["a",\n b]', ["Line 2", "not JSON"]),
        ("x.json", '{"goal": "a"}', ["not a list"]),
        ("x.json", '["a", 3]', ["Entry 1", "int"]),
        ("x.jsonl", '{"goal": "a"}\n{"gaol": "b"}\n', ["Line 2", "'gaol'"]),
        ("x.txt", "a\n", ["x.txt", ".jsonl"]),
    ],
)
def test_errors_name_the_file_the_line_and_the_key(tmp_path: Path, file: str, content: str, words: list[str]) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError) as caught:
        read_prompts(tmp_path / file)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"prompts": []}, ["at least one"]),
        ({"prompts": "the house"}, ["prompts must be a list"]),
        ({"prompts": ["the house", " "]}, ["prompts[1]", "blank"]),
        ({"prompts": ["the house"], "benign": [3]}, ["benign[0]", "3"]),
        ({"prompts": ["the house"], "begnin": []}, ["'begnin'", "Did you mean 'benign'"]),
        ({"prompts": ["the house"], "benign": ["a"], "benign_file": "x.csv"}, ["only one"]),
        ({"prompts": ["the house"], "n": 0}, ["n must be"]),
        ({"prompts": ["the house"], "template": "## Query:"}, ["{prompt}"]),
    ],
)
def test_an_unusable_block_is_refused(data, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve(word_level(), data)
    assert all(word in str(caught.value) for word in words), caught.value
