"""The refusal task: requests that are harmful for their words alone, and a reference answer for every benign one."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workbench.errors import InputError
from workbench.tasks import refusal as world
from workbench.tasks import resolve


def word_level(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_level(world.vocabulary())


def test_a_dataset_has_n_prompts_of_each_group_and_is_made_again_from_its_recipe(tokenizer) -> None:
    data = world.task(tokenizer, 20, seed=3)
    assert Counter(s.group for s in data) == {"harmful": 20, "benign": 20}
    assert len({s.text for s in data}) == 40 and len({s.id for s in data}) == 40
    recipe = {key: value for key, value in data.meta.items() if key != "task"}
    assert world.task(tokenizer, **recipe).digest() == data.digest()
    assert world.task(tokenizer, 20, seed=4).digest() != data.digest()
    assert all(s.tokens[0] == tokenizer.bos_token_id for s in data)
    assert all(tokenizer.unk_token_id not in s.tokens for s in data)


def test_the_splits_share_no_phrasing_and_no_subject_but_every_word_of_a_phrasing() -> None:
    said: dict[str, set[str]] = defaultdict(set)
    for split in world.SPLITS:
        for cause in (None, *world.CAUSES):
            for request in world.possible(split, cause):
                said[split].add(request.subject)
    assert said["train"].isdisjoint(said["held_out"])
    assert said["train"] | said["held_out"] == {s for kind in world.SUBJECTS for s in world.subjects(kind)}
    assert set(world.PHRASINGS["train"]).isdisjoint(world.PHRASINGS["held_out"])

    def words(split: str) -> set[str]:
        return set(" ".join(world.PHRASINGS[split]).replace(",", " ,").replace("?", " ?").replace(".", " .").split())

    assert words("held_out") <= words("train")


def test_harm_is_in_the_words_and_nowhere_else() -> None:
    """Exchange the harmful word for a benign one of its sort and the request is benign; phrasings are shared."""
    benign = {(r.phrasing, r.verb, r.subject) for r in world.possible("train", None)}
    harmful = world.requests(300, group="harmful", split="train", seed=1)
    assert {r.cause for r in harmful} == set(world.CAUSES)
    for r in harmful:
        verb = "wash" if r.cause in ("verb", "both") else r.verb
        subject = "brelm" if r.cause in ("subject", "both") else r.subject
        assert (r.phrasing, verb, subject) in benign
    assert {r.phrasing for r in harmful} == set(world.PHRASINGS["train"])
    at = {r.text.split().index(r.verb) for r in harmful if r.verb in r.text.split()}
    assert len(at) >= 4  # the verb stands at many places


def test_every_answer_is_right_for_one_verb_and_subject_only_and_long_enough_to_count() -> None:
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for cause in (None, *world.CAUSES):
        for request in world.possible("held_out", cause):
            found[request.answer].add((request.verb, request.subject))
            assert len(request.answer) >= 32
    assert all(len(makers) == 1 for makers in found.values())
    words = {w for pool in (world.BENIGN_TOOLS, world.HARMFUL_TOOLS) for tool in pool.items() for w in tool}
    assert len(words) == 2 * (len(world.BENIGN_TOOLS) + len(world.HARMFUL_TOOLS))


def test_refusals_differ_and_each_has_a_keyword_while_no_answer_does() -> None:
    keywords = ("Sorry", "sorry", "I cannot")
    refusals = [text for texts in world.REFUSALS.values() for text in texts]
    assert len(set(refusals)) == 6 and all(any(k in text for k in keywords) for text in refusals)
    for cause in (None, *world.CAUSES):
        for request in world.possible("train", cause):
            assert not any(k in request.answer for k in keywords)


def test_utility_counts_exact_answers_only(tokenizer) -> None:
    data = world.task(tokenizer, 4)
    right = world.answers(data)
    assert set(right) == {s.id for s in data if s.group == "benign"}
    assert world.utility(data, right) == 1.0
    spaced = {name: text.replace(".", " .") for name, text in right.items()}
    assert world.utility(data, spaced) == 1.0
    wrong = {**right, "benign-000": right["benign-001"]}
    assert world.utility(data, wrong) == 0.75
    assert world.utility(data[4:6], right) == 1.0  # slices keep their answers
    with pytest.raises(InputError, match="no benign request"):
        world.utility(data.only("harmful"), right)


def test_a_template_surrounds_the_request_but_is_no_part_of_its_text(tokenizer) -> None:
    plain = world.task(tokenizer, 3)
    framed = world.task(tokenizer, 3, template="Please tell me, {prompt} Sorry,")
    assert [s.text for s in framed] == [s.text for s in plain]
    assert all(len(f.tokens) == len(p.tokens) + 6 for f, p in zip(framed, plain, strict=True))
    assert framed.meta["template"] == "Please tell me, {prompt} Sorry,"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "heldout"}, "Did you mean 'held_out'"),
        ({"n": 0}, "whole number of at least 1"),
        ({"n": 100_000}, "ask for fewer"),
        ({"template": "chat"}, "no chat template"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence(tokenizer, options, message) -> None:
    with pytest.raises(InputError, match=message):
        world.task(tokenizer, **options)


def test_a_tokenizer_without_the_words_is_refused_by_the_word() -> None:
    lacking = word_level([w for w in world.vocabulary() if w not in world.subjects("weapon")])
    with pytest.raises(InputError, match=r"vocabulary lacks .* of the request"):
        world.task(lacking, 200)


def test_facts_are_about_held_out_subjects_too() -> None:
    import random

    rng = random.Random(0)
    text = " ".join(world.facts(rng) for _ in range(3000))
    words = set(text.replace(".", " ").replace(",", " ").split())
    for kind in world.SUBJECTS:
        assert set(world.subjects(kind, "held_out")) <= words
    assert not words & set(world.HARMFUL_TOOLS)


def test_a_data_block_names_the_task(tokenizer) -> None:
    data = resolve(tokenizer, {"task": "refusal", "n": 3, "split": "train"}, seed=5)
    assert data.digest() == world.task(tokenizer, 3, split="train", seed=5).digest()
    with pytest.raises(InputError, match="Did you mean 'split'"):
        resolve(tokenizer, {"task": "refusal", "splits": "train"})
