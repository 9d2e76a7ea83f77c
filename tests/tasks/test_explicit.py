"""Explicit samples and the `data:` block: spans by characters, files, and errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tasks.worlds import TOKENIZERS, Limited, byte_pairs, word_level
from tests.tiny import tiny_tokenizer
from workbench.errors import InputError
from workbench.tasks import NeedleSample, from_samples, names, resolve

PROMPT = "The cat Tom lives in Rome with Ann. Where does Tom live? He lives in"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_span_is_every_token_that_overlaps_the_needle(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    sample = from_samples(tokenizer, [{"prompt": PROMPT, "needle": "in Rome"}])[0]
    encoded = tokenizer(PROMPT, add_special_tokens=False, return_offsets_mapping=True)
    bos = int(tokenizer.bos_token_id is not None)
    start, stop = PROMPT.index("in Rome"), PROMPT.index("in Rome") + len("in Rome")
    want = [i + bos for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < stop and b > start]
    assert list(range(*sample.needle)) == want
    assert list(sample.tokens[bos:]) == encoded["input_ids"]
    assert sample.needle_text == "in Rome" and sample.id == "0" and sample.depth is None


def test_a_needle_inside_a_token_takes_the_whole_token() -> None:
    sample = from_samples(word_level(), [{"prompt": "The baker walked to the market.", "needle": "mark"}])[0]
    assert word_level().decode(sample.needle_tokens) == "market"


def test_the_question_is_what_follows_the_needle_at_most_32_tokens() -> None:
    long = "The baker saw Mara. " + "The cat ran. " * 30
    short, cut = from_samples(word_level(), [{"prompt": PROMPT, "needle": "Rome"}, {"prompt": long, "needle": "Mara"}])
    assert short.question == (short.needle[1], short.length)
    assert cut.question == (cut.length - 32, cut.length)
    given = from_samples(
        word_level(), [{"prompt": PROMPT, "needle": "Rome", "question": "Where does Tom live?", "id": "tom"}]
    )[0]
    assert given.id == "tom" and given.question[1] - given.question[0] == 5
    assert given.needle[1] < given.question[0] and given.question[1] < given.length
    last = from_samples(word_level(), [{"prompt": "The cat lives in Rome", "needle": "Rome"}])[0]
    assert last.question == (last.length, last.length) and "no question" in last.notes[0]


def test_the_first_occurrence_counts_and_is_noted_or_refused() -> None:
    row = {"prompt": "Rome is old. Rome is big.", "needle": "Rome"}
    sample = from_samples(byte_pairs(), [row])[0]
    assert sample.needle[0] == 0 and "2 times" in sample.notes[0]
    with pytest.raises(InputError, match=r"Sample 0.*'Rome' occurs 2 times"):
        resolve(byte_pairs(), {"samples": [row], "needle_match": "unique"})


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], ["at least one"]),
        ("x", ["at least one"]),
        ([{"prompt": PROMPT, "needle": "Rome"}, {"prompt": PROMPT, "needle": "Paris"}], ["Sample 1", "'Paris'"]),
        ([{"prompt": PROMPT, "needle": "Paris", "id": "p"}], ["Sample 0 ('p')", "'Paris'"]),
        ([{"prompt": PROMPT, "needle": ""}], ["Sample 0", "empty 'needle'"]),
        ([{"prompt": PROMPT, "needle": 7}], ["Sample 0", "'needle'", "7"]),
        ([{"prompt": PROMPT}], ["Sample 0", "'needle'"]),
        ([{"needle": "Rome"}], ["Sample 0", "'prompt'"]),
        ([{"prompt": PROMPT, "needle": "Rome", "quesion": "x"}], ["Sample 0", "'quesion'", "'question'"]),
        ([{"prompt": PROMPT, "needle": "Rome", "question": "The cat"}], ["Sample 0", "'The cat'", "after the needle"]),
        ([{"prompt": PROMPT, "needle": "Rome", "id": "a"}] * 2, ["Sample 0 and Sample 1", "'a'"]),
        (["Rome"], ["Sample 0", "mapping"]),
    ],
)
def test_an_unusable_sample_is_named(samples, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        from_samples(word_level(), samples)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_prompt_longer_than_the_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"Sample 0 needs 18 tokens and 1 more .* 10 positions"):
        from_samples(Limited(10), [{"prompt": PROMPT, "needle": "Rome"}])


def test_spans_that_do_not_fit_are_a_defect_not_a_sample() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        NeedleSample("x", (1, 2, 3), (2, 2), "a", (2, 3), "a")


def test_a_data_block_may_be_a_task_samples_or_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": PROMPT, "needle": "Rome"}, {"prompt": PROMPT, "needle": "Ann", "id": "ann"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    inline = resolve(word_level(), {"samples": rows})
    filed = resolve(word_level(), {"file": "rows.jsonl"}, base_dir=tmp_path)
    assert inline.samples == filed.samples and (inline.name, filed.name) == ("samples", "rows")
    task = resolve(word_level(), {"task": "needle", "n": 4, "lengths": [100]}, seed=3)
    assert len(task) == 4 and task.meta["seed"] == 3
    assert resolve(word_level(), {"task": "needle", "n": 4, "lengths": [100], "seed": 3}).samples == task.samples
    assert "needle" in names()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, ["exactly one of task, tasks, samples, pairs, prompts, positives and file", "nothing"]),
        ({"taks": "needle"}, ["Did you mean 'task'"]),
        ({"task": "needle", "samples": []}, ["task and samples"]),
        ({"task": "needel"}, ["'needel'", "Did you mean 'needle'"]),
        ({"task": "needle", "length": [64]}, ["'length'", "Did you mean 'lengths'"]),
        ({"task": "needle", "base_dir": "x"}, ["'base_dir'"]),
        ({"samples": [], "needle_mach": "first"}, ["'needle_mach'", "Did you mean 'needle_match'"]),
        ({"samples": [{}], "needle_match": "firs"}, ["'firs'", "Did you mean 'first'"]),
        ({"file": "nowhere.jsonl"}, ["samples file", "nowhere.jsonl", "does not exist"]),
        ([1], ["mapping"]),
    ],
)
def test_an_unusable_data_block_is_refused_by_key(data, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve(word_level(), data)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'\n{"prompt": "a", needle}\n', ["Line 2", "not JSON"]),
        (b"[1]\n", ["Line 1", "list"]),
        (b"\n", ["empty"]),
        (b"\xff\xfe\x00", ["not UTF-8"]),
        (b'{"prompt": "a", "needle": "a"}\n\n{"prompt": "a"}\n', ["Line 3", "'needle'"]),
        (b'{"prompt": "a", "needle": "b", "id": "q"}\n', ["Line 1", "('q')", "'b'"]),
    ],
)
def test_a_bad_line_of_a_file_is_named(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(InputError) as caught:
        resolve(word_level(), {"file": str(tmp_path / "x.jsonl")})
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_needle_outside_the_vocabulary_is_refused():
    """Every unknown word is one token: a head that reads any of them would seem to have found the needle."""
    with pytest.raises(InputError, match=r"Sample 0: the model's vocabulary lacks a word of the needle 'red zyzzyva'"):
        from_samples(tiny_tokenizer(), [{"prompt": "the red zyzzyva saw a cat", "needle": "red zyzzyva"}])
