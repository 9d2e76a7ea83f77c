"""The needle task: exact lengths, tracked spans, shared haystacks, balanced designs, errors by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tasks.worlds import TOKENIZERS, Limited, byte_pairs, stops_with_line_breaks, word_level
from workbench.errors import InputError
from workbench.tasks import needle
from workbench.tasks.needle import CARRIER

PARIS = {"needle": "The best cheese is sold in Lyon.", "question": "Where is the best cheese? In", "answer": "Lyon"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompts_have_the_length_asked_for_and_the_span_says_the_answer(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    data = needle(tokenizer, 20, lengths=(160, 240), depths=(0, 0.3, 0.6, 1))
    for s in data:
        assert s.length == len(s.tokens) == s.nominal_length
        # Every token that overlaps the answer: where a full stop can share a token with a letter, that comes along.
        assert tokenizer.decode(s.needle_tokens).strip(" .") == s.needle_text
        text = tokenizer.decode(s.tokens, skip_special_tokens=True)
        assert text.count(s.needle_text) == 1
        asked = tokenizer.decode(s.tokens[slice(*s.question)])
        assert asked.strip().startswith("Question") and asked.endswith(" is")
        assert tokenizer.bos_token_id is None or s.tokens.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompts_of_one_dataset_are_one_haystack_cut_where_the_needle_goes_in(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    data = needle(tokenizer, 20, lengths=(160, 300), depths=(0, 0.25, 0.5, 0.75, 1))
    whole: tuple[int, ...] = ()
    for s in data:
        hay = _without_needle(tokenizer, s)
        shared = min(len(hay), len(whole))
        assert hay[:shared] == whole[:shared]
        whole = max(hay, whole, key=len)


def _without_needle(tokenizer, sample) -> tuple[int, ...]:
    """Tokens of the haystack: those before the needle's sentence and those between it and the question."""
    bare = needle(tokenizer, 1, lengths=sample.length, depths=0, needles=[_row(sample)])[0]
    size = bare.question[0] - sample.question[0]
    assert size == 0  # same needle, same question
    start = bare.needle[0]  # at depth 0 the needle's sentence begins right after BOS
    lead = start - (tokenizer.bos_token_id is not None)
    tail = _sentence_length(tokenizer, sample) - lead
    a = sample.needle[0]
    return sample.tokens[: a - lead] + sample.tokens[a + tail : sample.question[0]]


def _row(sample) -> dict[str, str]:
    from workbench.tasks import prose

    rows = {n["answer"]: n for n in prose.needles(20, seed=0)}
    return rows[sample.needle_text]


def _sentence_length(tokenizer, sample) -> int:
    from workbench.tasks.needle import _tokenise

    return len(_tokenise(tokenizer, _row(sample)["needle"], followed=True).ids)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_needle_stands_between_sentences(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for s in needle(tokenizer, 10, lengths=240, depths=(0, 0.25, 0.5, 0.75)):
        text = tokenizer.decode(s.tokens, skip_special_tokens=True)
        before = text[: text.index("The " + _row(s)["needle"].split(" ", 1)[1].split(s.needle_text)[0])].strip()
        assert before == "" or before.endswith(".")
        assert s.depth is not None and (s.notes or abs((s.needle[0] - 6) / (s.question[0] - 12) - s.depth) < 0.15)


def test_depth_zero_is_right_after_bos_and_depth_one_right_before_the_question() -> None:
    tokenizer = word_level()
    first, last = needle(tokenizer, 2, lengths=120, depths=(0, 1))
    if first.depth == 1:
        first, last = last, first
    assert tokenizer.decode(first.tokens[1:]).startswith(_row(first)["needle"])
    assert tokenizer.decode(last.tokens[: last.question[0]]).endswith(_row(last)["needle"])


def test_same_seed_same_dataset_and_another_seed_another() -> None:
    tokenizer = word_level()
    one, two, other = (needle(tokenizer, 6, lengths=100, seed=s) for s in (1, 1, 2))
    assert one == two and one.digest() == two.digest() != other.digest()
    assert json.loads(json.dumps(one.describe()))["digest"] == one.digest()
    assert list(one.to_frame()["id"]) == [s.id for s in one] and len({s.id for s in one}) == 6
    assert one[2:4].samples == one.samples[2:4] and one[0] is one.samples[0]


@given(
    n=st.integers(1, 40),
    n_lengths=st.integers(1, 4),
    n_depths=st.integers(1, 6),
    n_needles=st.integers(1, 7),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_length_depth_cell_and_needle_is_used_equally_often_give_or_take_one(
    n, n_lengths, n_depths, n_needles, seed
) -> None:
    import random

    from workbench.tasks.needle import _design

    design = _design(n, n_lengths, n_depths, n_needles, random.Random(seed))
    factors = [
        ([d[0] for d in design], n_lengths),
        ([d[1] for d in design], n_depths),
        ([d[2] for d in design], n_needles),
        ([d[:2] for d in design], n_lengths * n_depths),
    ]
    for values, levels in factors:
        counts = Counter(values)
        assert max(counts.values()) - (min(counts.values()) if len(counts) == levels else 0) <= 1


def test_n_needles_are_reused_at_other_depths() -> None:
    data = needle(word_level(), 10, lengths=128, n_needles=2)
    assert Counter(s.needle_id for s in data) == {"needle0": 5, "needle1": 5}
    assert len({(s.needle_id, s.depth) for s in data}) == 10


def test_a_users_haystack_and_needles(tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text("Cows eat grass! Do goats eat it, too? They do. " * 3)
    (tmp_path / "needles.jsonl").write_text(json.dumps(PARIS) + "\n\n")
    data = needle(
        byte_pairs(), 6, lengths=150, depths=(0, 0.5, 1), needles="needles.jsonl", haystack="hay.txt", base_dir=tmp_path
    )
    for s in data:
        text = byte_pairs().decode(s.tokens)
        assert text.count("Lyon") == 1 and text.endswith("In") and text.count("Cows eat grass!") >= 3
        assert byte_pairs().decode(s.needle_tokens).strip() == "Lyon"
    assert data.meta["haystack"] == "hay.txt" and data.meta["haystack_digest"].startswith("sha256:")
    middle = next(byte_pairs().decode(s.tokens) for s in data if s.depth == 0.5)
    assert middle.split(" The best")[0][-1] in "!?."


def test_wu_needles_with_real_needle_are_accepted() -> None:
    row = {"needle": PARIS["needle"], "question": PARIS["question"], "real_needle": "Lyon"}
    assert needle(byte_pairs(), 1, lengths=100, depths=0, needles=[row])[0].needle_text == "Lyon"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"n": 0}, ["n must", "0"]),
        ({"n": True}, ["n must"]),
        ({"lengths": []}, ["lengths"]),
        ({"lengths": "128"}, ["lengths", "'128'"]),
        ({"lengths": [128.5]}, ["lengths", "128.5"]),
        ({"depths": [0.5, 2]}, ["depths", "2"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"n_needles": 0}, ["n_needles"]),
        ({"needles": [PARIS], "n_needles": 2}, ["n_needles is 2", "1 needles"]),
        ({"needles": []}, ["needles must"]),
        ({"needles": [{**PARIS, "answr": "x"}]}, ["Needle 0", "'answr'", "'answer'"]),
        ({"needles": [{"needle": "x", "question": "y"}]}, ["Needle 0", "answer"]),
        ({"needles": [{**PARIS, "answer": " "}]}, ["Needle 0", "empty 'answer'"]),
        ({"needles": ["Lyon"]}, ["Needle 0", "mapping"]),
        ({"needles": [PARIS, {**PARIS, "answer": "lyon"}]}, ["Needle 1", "'lyon'", "does not occur"]),
        ({"needles": [{**PARIS, "question": "Is it Lyon?"}]}, ["Needle 0", "'Lyon'", "elsewhere"]),
        ({"needles": "nowhere.jsonl"}, ["needles file", "nowhere.jsonl", "does not exist"]),
        ({"haystack": "nowhere.txt"}, ["haystack file", "nowhere.txt", "does not exist"]),
        ({"haystack": "."}, ["haystack file", "folder"]),
        ({"lengths": 20}, ["Sample 000/len20", "too few", "at least"]),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(options: dict, names: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        needle(byte_pairs(), **options)
    message = str(caught.value)
    assert all(name in message for name in names), message
    assert "\n" not in message


def test_an_answer_that_the_haystack_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text("Many people live in Lyon. " * 40)
    with pytest.raises(InputError, match=r"Sample 000/.*'Lyon' also occurs in the haystack"):
        needle(byte_pairs(), 1, lengths=200, needles=[PARIS], haystack=tmp_path / "hay.txt")


def test_a_haystack_without_sentences_cannot_meet_a_depth(tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text("grass " * 900)
    options = {"lengths": 400, "needles": [PARIS], "haystack": tmp_path / "hay.txt"}
    assert len(needle(byte_pairs(), 2, depths=(0, 1), **options)) == 2
    with pytest.raises(InputError, match="no end of a sentence"):
        needle(byte_pairs(), 1, depths=0.5, **options)


def test_a_full_stop_that_shares_its_token_with_a_line_break_still_ends_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text("The baker walked to the market.\n" * 60)
    tokenizer = stops_with_line_breaks()
    for s in needle(tokenizer, 5, lengths=128, haystack=tmp_path / "hay.txt"):
        assert abs((s.needle[0] - 6) / (s.question[0] - 12) - (s.depth or 0)) < 0.15
        if s.depth != 1:
            # right after BOS or a full stop, possibly with its line break
            sentence = s.needle[0] - 6
            assert sentence == 1 or "." in tokenizer.convert_ids_to_tokens([s.tokens[sentence - 1]])[0]


def test_an_empty_haystack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        needle(byte_pairs(), 1, haystack=tmp_path / "hay.txt")


def test_a_word_the_model_does_not_know_cannot_be_an_answer() -> None:
    with pytest.raises(InputError, match=r"Needle 0.*vocabulary.*'Lyon'"):
        needle(word_level(), 1, needles=[PARIS])


def test_the_models_positions_are_a_limit_that_names_both_numbers() -> None:
    assert len(needle(Limited(106), 4, lengths=100)) == 4
    with pytest.raises(InputError, match=r"100 tokens and \d more .* 101 positions; ask for lengths of at most 9\d"):
        needle(Limited(101), 4, lengths=(64, 100))


def test_the_carrier_is_part_of_the_world() -> None:
    assert word_level().unk_token_id not in word_level()(CARRIER)["input_ids"]
