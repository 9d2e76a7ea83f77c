"""Several tasks as one dataset."""

from __future__ import annotations

import pytest

from tests.analyses.examples import data_block
from tests.tiny import tiny_tokenizer
from workbench import tasks
from workbench.errors import InputError
from workbench.experiments.inputs import gather
from workbench.experiments.spec import build
from workbench.tasks import TaskSet

TOKENIZER = tiny_tokenizer()


def both(n: int = 3) -> TaskSet:
    return tasks.resolve(TOKENIZER, data_block("task_set", n))


def test_a_task_set_maps_names_to_pairs():
    data = both()
    assert data.kind == "task_set" and list(data) == ["one", "two"] and len(data) == 2
    assert [len(data[name]) for name in data] == [3, 3]
    assert data.describe()["n"] == {"one": 3, "two": 3}
    assert list(data.to_frame()["task"]) == ["one"] * 3 + ["two"] * 3


def test_its_digest_follows_from_those_of_its_tasks():
    data = both()
    assert data.digest() == both().digest()
    assert data[:2].digest() != data.digest() == data[:3].digest()
    assert TaskSet({"a": data["one"], "b": data["two"]}).digest() != data.digest()


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"tasks": {}}, "tasks must be a mapping"),
        ({"tasks": {"a b": data_block("pairs")}}, "'a b' cannot name a column"),
        ({"tasks": {"a": {"task": "nope"}}}, "Task 'a': There is no task 'nope'"),
        ({"tasks": {"a": data_block("prompts")}}, "'a' gives prompts"),
        ({"tasks": {"a": data_block("pairs")}, "n": 3}, "'n'"),
    ],
)
def test_what_is_unusable_is_named(block, words):
    with pytest.raises(InputError, match=words):
        tasks.resolve(TOKENIZER, block)


def test_files_of_its_tasks_become_part_of_the_spec(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"clean": "the cat", "corrupted": "the dog", "answer": " ran", "wrong": " saw"}\n'
    )
    spec = build(
        {
            "name": "x/y",
            "analysis": "overlap",
            "model": {"path": "organism:planted-ioi"},
            "data": {"tasks": {"one": {"file": "pairs.jsonl"}, "two": {"task": "ioi", "n": 2}}},
        },
        source=tmp_path / "spec.yaml",
    )
    data = gather(spec).data
    assert data["tasks"]["one"]["pairs"][0]["answer"] == " ran"
    assert data["tasks"]["two"] == {"task": "ioi", "n": 2}


@pytest.mark.parametrize(
    "tasks_block", [{}, [1], {"a": 3}, {"a": {"tasks": {}}}, {"a": {"task": "nope"}}, {"a": {"n": 3}}]
)
def test_a_spec_with_unusable_tasks_is_refused(tasks_block):
    spec = {"name": "x/y", "analysis": "overlap", "model": {"path": "m"}, "data": {"tasks": tasks_block}}
    with pytest.raises(InputError):
        build(spec)
