"""Pairs have as many tokens on both sides, answers are read in context, and a bad pair is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import BOS, VOCAB, tiny_tokenizer
from workbench import tasks
from workbench.errors import InputError
from workbench.experiments.inputs import gather
from workbench.experiments.spec import build
from workbench.tasks.pairs import PairSample, pairs_from_samples

CITY = {"clean": "Alice saw Paris in", "corrupted": "Alice saw Rome in", "answer": " red", "wrong": " blue"}
LONG = {
    "clean": "the cat saw one dog and",
    "corrupted": "the cat saw two dog and",
    "answer": " Bob",
    "wrong": " Carol",
}
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"


def test_a_pair_holds_both_prompts_with_bos_and_the_first_token_of_each_answer():
    (pair,) = pairs_from_samples(tiny_tokenizer(), [{**CITY, "answer": " red cat"}])
    words = ["Alice", "saw", "Paris", "in"]
    assert pair.clean == (BOS, *(VOCAB[w] for w in words))
    assert pair.corrupted == (BOS, *(VOCAB[w.replace("Paris", "Rome")] for w in words))
    assert (pair.answer, pair.wrong) == (VOCAB["red"], VOCAB["blue"])
    assert pair.changed == (3,)
    assert pair.id == "0"


def test_a_batch_is_padded_on_the_left_and_masks_the_padding():
    data = pairs_from_samples(tiny_tokenizer(), [CITY, LONG])
    batch = data.batch()
    assert batch.padded
    assert batch.clean.shape == batch.corrupted.shape == batch.mask.shape == (2, 7)
    for i, pair in enumerate(data):
        assert tuple(batch.clean[i][batch.mask[i]].tolist()) == pair.clean
        assert tuple(batch.corrupted[i][batch.mask[i]].tolist()) == pair.corrupted
        assert bool(batch.mask[i, -1])
    assert torch.equal(data.batch([1]).clean[0], batch.clean[1])
    assert not data.batch([1]).padded
    assert data.batch([1, 0]).answer.tolist() == batch.answer.flip(0).tolist()


def test_a_dataset_describes_itself_and_its_digest_follows_its_content():
    data = pairs_from_samples(tiny_tokenizer(), [CITY, LONG])
    again = pairs_from_samples(tiny_tokenizer(), [CITY, LONG])
    described = data.describe()
    assert (described["kind"], described["n"], described["lengths"]) == ("pairs", 2, [5, 7])
    json.dumps(described)
    assert data.digest() == again.digest() != data[:1].digest()
    assert data.digest() != data.swapped().digest()
    assert data.swapped().swapped().digest() == data.digest()
    frame = data.to_frame()
    assert frame["length"].tolist() == [5, 7]
    assert frame["first_changed"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({**CITY, "corrupted": "Alice saw Rome"}, ["Pair 1", "5 tokens", "4", "position by position"]),
        ({**CITY, "wrong": " red cat"}, ["Pair 1", "' red cat'", "same token"]),
        ({**CITY, "answer": "   "}, ["Pair 1", "empty 'answer'"]),
        ({**CITY, "wrong": 3}, ["Pair 1", "'wrong'"]),
        ({"clean": "Alice", "answer": "red", "wrong": "blue"}, ["Pair 1", "'corrupted'"]),
        ({**CITY, "awnser": "x"}, ["Pair 1", "'awnser'", "Did you mean 'answer'"]),
        ({**CITY, "answer": "s", "id": "paris"}, ["Pair 1 ('paris')", "'s'", "end of the prompt"]),
        ("Alice", ["Pair 1", "mapping"]),
    ],
)
def test_a_pair_that_cannot_be_used_is_named(row, parts):
    with pytest.raises(InputError) as caught:
        pairs_from_samples(tiny_tokenizer(), [LONG, row])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_an_answer_that_adds_no_token_is_refused():
    class Forgetful:
        bos_token_id, is_fast = None, True

        def __call__(self, text, **_):
            return {"input_ids": [5, 6], "offset_mapping": [(0, 1), (1, 2)]}

    with pytest.raises(InputError, match="adds no token"):
        pairs_from_samples(Forgetful(), [CITY])


def test_ids_must_differ_and_the_list_must_not_be_empty():
    with pytest.raises(InputError, match="share the id 'a'"):
        pairs_from_samples(tiny_tokenizer(), [{**CITY, "id": "a"}, {**LONG, "id": "a"}])
    for nothing in ([], CITY, "text"):
        with pytest.raises(InputError, match="at least one"):
            pairs_from_samples(tiny_tokenizer(), nothing)
    with pytest.raises(ValueError, match="no pair"):
        PairSample("a", (1, 2), (1,), 0, 1)


def test_identical_prompts_are_allowed_and_noted():
    (pair,) = pairs_from_samples(tiny_tokenizer(), [{**CITY, "corrupted": CITY["clean"]}])
    assert pair.changed == ()
    assert "no effect" in pair.notes[0]


def test_a_data_block_and_a_file_of_pairs_become_the_same_dataset(tmp_path):
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, [CITY, LONG])))
    inline = tasks.resolve(tiny_tokenizer(), {"pairs": [CITY, LONG]})
    read = tasks.resolve(tiny_tokenizer(), {"file": "p.jsonl"}, base_dir=tmp_path)
    assert inline.digest() == read.digest()
    assert (inline.name, read.name) == ("pairs", "p")
    with pytest.raises(InputError, match="Line 2 of"):
        (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, [CITY, {**LONG, "wrong": ""}])))
        tasks.resolve(tiny_tokenizer(), {"file": "bad.jsonl"}, base_dir=tmp_path)
    with pytest.raises(InputError, match="needle_match"):
        tasks.resolve(tiny_tokenizer(), {"pairs": [CITY], "needle_match": "first"})


def test_a_spec_accepts_pairs_and_a_file_of_them_is_inlined_as_pairs(tmp_path):
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, [CITY, LONG])))
    common = {"name": "x", "analysis": "retrieval", "model": "organism:x"}
    assert build({**common, "data": {"pairs": [CITY]}}).data["pairs"] == [CITY]
    spec = build({**common, "data": {"file": "p.jsonl"}}, source=tmp_path / "spec.yaml")
    assert gather(spec).data == {"pairs": [CITY, LONG], "name": "p"}


@pytest.mark.skipif(not STORIES.exists(), reason="the pretrained model is not beside this checkout")
def test_a_sentencepiece_answer_is_the_token_it_adds_in_context():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    start = "Once upon a time, there was a little {} named Lily. One day,"
    row = {"clean": start.format("girl"), "corrupted": start.format("boy"), "answer": " She", "wrong": " He"}
    with pytest.raises(InputError) as caught:
        pairs_from_samples(tokenizer, [{**row, "corrupted": start.format("grandmother")}])
    assert "position by position" in str(caught.value)
    (pair,) = pairs_from_samples(tokenizer, [row])
    joint = tokenizer(row["clean"] + " She", add_special_tokens=False)["input_ids"]
    assert joint[len(pair.clean) - 1] == pair.answer


def test_optional_fields_leave_the_digest_of_pairs_without_them_alone():
    plain = pairs_from_samples(tiny_tokenizer(), [CITY])
    assert plain.digest() == "sha256:abb8495f144c9fdb80549a61db7c7a50d088e2bf583a20ce5916acb62de4b529"
    (pair,) = plain
    more = PairSample(pair.id, pair.clean, pair.corrupted, pair.answer, pair.wrong, answers=(1, 2), wrongs=(3,))
    assert (more.swapped().answers, more.swapped().wrongs) == ((3,), (1, 2))
    assert hash(more) != hash(more.swapped())


@pytest.mark.parametrize("key", ["answer", "wrong"])
def test_an_answer_outside_the_vocabulary_is_refused(key):
    row = {"clean": "Alice saw", "corrupted": "Bob saw", "answer": " cat", "wrong": " dog", key: " zyzzyva"}
    with pytest.raises(InputError, match=rf"Pair 0: the model's vocabulary lacks the {key} ' zyzzyva'"):
        pairs_from_samples(tiny_tokenizer(), [row])
