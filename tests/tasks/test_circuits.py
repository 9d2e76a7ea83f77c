"""Circuit tasks: pairs are aligned and change only what they say, answers follow from the words, splits are disjoint.

The rules of each task are written here a second time, on the words of a prompt, and must give the generator's answers.
"""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer
from workbench import tasks
from workbench.errors import InputError
from workbench.tasks import circuits
from workbench.tasks.circuits import words
from workbench.tasks.circuits.compose import is_held_out
from workbench.tasks.circuits.pools import comparable
from workbench.tasks.circuits.vocabulary import TASKS

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
CASES = [(name, corruption) for name in circuits.names() for corruption in circuits.corruptions(name)]
# what the corrupted prompt calls for: the wrong answer, or neither
TURNS = {"flip", "query", "context", "definition", "docstring", "fact", "options"}
# token roles whose words a corruption may change
CHANGES = {
    ("ioi", "flip"): {"S2"},
    ("ioi", "third"): {"S2"},
    ("ioi", "redraw"): {"IO", "S1", "S2"},
    ("colored_objects", "query"): {"query"},
    ("colored_objects", "context"): {"C1", "C2", "C3"},
    ("colored_objects", "redraw"): {"C1", "C2", "C3"},
    ("greater_than", "01"): {"YY"},
    ("greater_than", "later"): {"YY"},
    ("docstring", "definition"): {"C", "D"},
    ("docstring", "docstring"): {"B_doc"},
    ("docstring", "redraw"): {"A_doc", "B_doc"},
    ("letters", "fact"): {"color"},
    ("letters", "options"): {"answer color", "wrong color"},
}


@cache
def word_tokenizer(name: str) -> Any:
    return circuits.word_tokenizer(circuits.vocabulary(name, fillers=True))


@cache
def byte_pairs() -> Any:
    """Byte-level pairs in which a word carries the space before it, as in GPT-2; no BOS token."""
    raw: Any = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(pre_tokenizers_regex(), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    known = [word for name in circuits.names() for word in circuits.vocabulary(name)]
    raw.train_from_iterator([f" {word}" for word in known for _ in range(9)] + list(words.YEARS) * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def pre_tokenizers_regex() -> Any:
    from tokenizers import Regex

    return Regex(r" ?\d{2}")


def rule(name: str, prompt: list[str]) -> set[str]:
    """The right answers to a prompt given as words; empty when it has none."""
    if name == "ioi":
        names = [word for word in prompt if word in words.NAMES]
        single = {word for word in names if names.count(word) == 1}
        return single if len(single) == 1 else set()
    if name == "colored_objects":
        asked = prompt[prompt.index("?") - 1]
        return {prompt[prompt.index(asked) - 1]}
    if name == "greater_than":
        first = next(i for i, word in enumerate(prompt) if word in words.CENTURIES)
        return {year for year in words.YEARS if year > prompt[first + 1]}
    if name == "letters":
        stated = prompt[prompt.index("is") + 1]
        return {
            a for a, _, b in zip(prompt, prompt[1:], prompt[2:], strict=False) if a in words.LETTERS and b == stated
        }
    open_, close = prompt.index("self"), prompt.index("):")
    arguments = prompt[open_ + 2 : close : 2]
    described = [prompt[i + 1] for i, word in enumerate(prompt[:-1]) if word == "param"]
    at = arguments.index(described[-1]) if described[-1] in arguments else len(arguments)
    return set(arguments[at + 1 : at + 2])


def as_words(tokenizer: Any, tokens: Any) -> list[str]:
    return [word for word in tokenizer.convert_ids_to_tokens(list(tokens)) if word != "<s>"]


@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_the_answers_follow_from_the_words_of_both_prompts(name, corruption):
    tokenizer = word_tokenizer(name)
    for pair in circuits.task(name, tokenizer, 60, corruption=corruption):
        clean, corrupted = as_words(tokenizer, pair.clean), as_words(tokenizer, pair.corrupted)
        answer, wrong = as_words(tokenizer, (pair.answer, pair.wrong))
        assert "<unk>" not in (*clean, *corrupted, answer, wrong)
        assert len(clean) < 40
        assert answer in rule(name, clean)
        assert wrong not in rule(name, clean)
        after = rule(name, corrupted)
        if corruption in TURNS:
            assert wrong in after
            assert answer not in after
        elif corruption == "01":
            assert {answer, wrong} <= after
        else:
            assert wrong not in after
            assert answer not in after or name == "ioi"
        if pair.answers:
            assert {*as_words(tokenizer, pair.answers)} == rule(name, clean)
            assert not {*pair.answers} & {*pair.wrongs}


@pytest.mark.parametrize("tokenizer", ["words", "byte pairs"])
@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_pairs_are_aligned_and_differ_only_where_the_corruption_says(name, corruption, tokenizer):
    of = word_tokenizer(name) if tokenizer == "words" else byte_pairs()
    data = circuits.task(name, of, 40, corruption=corruption)
    for pair in data:
        allowed = {i for role in CHANGES[name, corruption] for i in range(*pair.spans[role])}
        assert set(pair.changed) <= allowed
        assert pair.changed
        assert pair.spans["end"] == (pair.length - 1, pair.length)
        for start, stop in pair.spans.values():
            assert 0 <= start < stop <= pair.length
    assert data.meta["redrawn"] == 0
    assert tokenizer != "words" or len({pair.length for pair in data}) == 1


def test_roles_point_at_their_words():
    for pair in circuits.ioi(byte_pairs(), 20):
        io, s1, s2 = ((pair.clean[slice(*pair.spans[role])]) for role in ("IO", "S1", "S2"))
        assert io[0] == pair.answer
        assert s1 == s2
        assert s1[0] == pair.wrong
    for pair in circuits.colored_objects(word_tokenizer("colored_objects"), 20):
        assert pair.clean[pair.spans["answer color"][0]] == pair.answer
        assert pair.clean[pair.spans["wrong color"][0]] == pair.wrong
        assert pair.clean[pair.spans["answer object"][0]] == pair.clean[pair.spans["query"][0]]
    for pair in circuits.docstring(word_tokenizer("docstring"), 20):
        assert pair.clean[pair.spans["answer"][0]] == pair.answer
        assert pair.clean[pair.spans["previous"][0]] == pair.clean[pair.spans["previous_doc"][0]]


@pytest.mark.parametrize("name", circuits.names())
def test_a_seed_fixes_the_data_and_every_corruption_has_the_same_clean_prompts(name):
    tokenizer = word_tokenizer(name)
    data = [circuits.task(name, tokenizer, 12, corruption=corruption) for corruption in circuits.corruptions(name)]
    assert circuits.task(name, tokenizer, 12).digest() == data[0].digest()
    assert circuits.task(name, tokenizer, 12, seed=1).digest() != data[0].digest()
    assert len({tuple(pair.clean for pair in one) for one in data}) == 1
    assert len({one.digest() for one in data}) == len(data)
    described = json.loads(json.dumps(data[0].describe()))
    assert (described["kind"], described["n"], described["recipe"]["task"]) == ("pairs", 12, name)
    assert data[0].swapped().swapped().digest() == data[0].digest()


@pytest.mark.parametrize("name", circuits.names())
def test_training_never_holds_a_combination_that_is_held_out(name):
    tokenizer = word_tokenizer(name)

    def combinations(split: str) -> list[tuple[str, ...]]:
        found = []
        for pair in circuits.task(name, tokenizer, 80, split=split):

            def word(role: str, pair: Any = pair) -> str:
                return as_words(tokenizer, [pair.clean[pair.spans[role][0]]])[0]

            if name == "ioi":
                found.append(tuple(sorted((word("IO"), word("S1")))))
            elif name == "colored_objects":
                found.append(tuple(sorted((word("O1"), word("O2"), word("O3")))))
            elif name == "letters":
                found.append((word("thing"), word("color")))
            elif name == "greater_than":
                found.append((word("event"), word("YY")))
            else:
                found.append((word("previous"), word("answer")))
        return found

    train, held_out = combinations("train"), combinations("held_out")
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, train))


def test_both_orders_and_all_phrasings_occur_and_a_prefix_moves_everything():
    tokenizer = word_tokenizer("ioi")
    data = circuits.ioi(tokenizer, 60)
    assert {pair.spans["IO"] < pair.spans["S1"] for pair in data} == {True, False}
    assert len({pair.clean[1] for pair in data}) == 4
    only = circuits.ioi(tokenizer, 20, phrasing=2)
    assert {as_words(tokenizer, pair.clean)[0] for pair in only} == {"Once"}
    moved = circuits.ioi(tokenizer, 20, prefix=3)
    assert {pair.length for pair in moved} == {data[0].length + 3}
    assert moved[0].spans["S2"][0] == data[0].spans["S2"][0] + 3


def test_a_template_surrounds_the_prompt_and_spans_follow():
    tokenizer = word_tokenizer("ioi")
    plain, framed = (circuits.ioi(tokenizer, 5, template=template) for template in (None, "Before the {prompt}"))
    for a, b in zip(plain, framed, strict=True):
        assert b.clean[3:] == a.clean[1:]
        assert b.spans["IO"] == tuple(i + 2 for i in a.spans["IO"])


def test_pools_share_no_word_within_a_task_and_every_phrasing_has_the_same_slots():
    for name, task in TASKS.items():
        pools = [set(pool) for pool, _ in task.pools.values()]
        if name != "greater_than":  # 17 is a century and a year
            assert not any(a & b for a, b in itertools.combinations(pools, 2))
        assert all(set(task.slots) == {part.split("}")[0] for part in p.split("{")[1:]} for p in task.phrasings)
        assert len(task.corruptions) >= 2


def test_a_word_level_model_that_knows_twelve_names_is_asked_about_those():
    known = [w for w in circuits.vocabulary("ioi") if w not in words.NAMES] + list(words.NAMES[:12])
    tokenizer = circuits.word_tokenizer(known)
    data = circuits.ioi(tokenizer, 50, corruption="redraw")
    assert data.meta["pools"]["names"] == 12
    used = {word for pair in data for word in as_words(tokenizer, (*pair.clean, *pair.corrupted))}
    assert used & {*words.NAMES} == {*words.NAMES[:12]}
    with pytest.raises(InputError, match=r"needs 5 names .* has 4 \(Anna, Peter, Mary, John\)"):
        circuits.ioi(circuits.word_tokenizer([w for w in known if w not in words.NAMES[4:]]))


def test_words_that_begin_with_the_same_token_are_not_both_used():
    raw: Any = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, " ": 3}, merges=[("a", "b")]))
    pool = comparable(PreTrainedTokenizerFast(tokenizer_object=raw), ["aa", "abb", "aab", "ba"], before="b")
    assert pool.words == ("aa", "abb", "ba")  # aab begins as aa does, and has three tokens
    assert len(set(pool.tokens)) == 3


@pytest.mark.parametrize("name", circuits.names())
def test_a_tokenizer_that_does_not_know_the_words_is_refused_in_a_sentence(name):
    with pytest.raises(InputError, match=name) as caught:
        circuits.task(name, tiny_tokenizer(), 4)
    assert "choose a model" in str(caught.value)
    known = [
        word for word in circuits.vocabulary(name) if word not in ("to", "What", "ended", "closed", "stopped", "param")
    ]
    with pytest.raises(InputError, match=r"does not know '(to|What|ended|closed|stopped|param)'"):
        circuits.task(name, circuits.word_tokenizer(known), 4)


def test_years_spelled_digit_by_digit_are_refused():
    with pytest.raises(InputError, match="pairs of digits"):
        whole = [word for word in circuits.vocabulary("greater_than") if word not in words.YEARS]
        circuits.greater_than(circuits.word_tokenizer(whole), 4)


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"task": "ioi", "corruption": "flop"}, ["'flop'", "Did you mean 'flip'", "third"]),
        ({"task": "ioi", "split": "test"}, ["'test'", "held_out"]),
        ({"task": "ioi", "phrasing": 9}, ["4 phrasings", "9"]),
        ({"task": "ioi", "n": 0}, ["n must be"]),
        ({"task": "ioi", "lengths": 3}, ["unknown key 'lengths'"]),
        ({"task": "iio"}, ["'iio'", "Did you mean 'ioi'"]),
    ],
)
def test_an_unusable_option_is_named(block, parts):
    with pytest.raises(InputError) as caught:
        tasks.resolve(word_tokenizer("ioi"), block)
    for part in parts:
        assert part in str(caught.value)


def test_a_data_block_is_the_same_as_the_function():
    block = {"task": "docstring", "n": 7, "corruption": "redraw"}
    tokenizer = word_tokenizer("docstring")
    assert (
        tasks.resolve(tokenizer, block, seed=3).digest()
        == circuits.docstring(tokenizer, 7, corruption="redraw", seed=3).digest()
    )
    assert {*circuits.names()} <= {*tasks.names()}


def test_a_prompt_longer_than_the_model_is_refused():
    class Small:
        tokenizer = word_tokenizer("docstring")
        n_ctx = 20

    with pytest.raises(InputError, match="33 tokens, but the model has 20 positions"):
        circuits.docstring(Small(), 4)


@pytest.mark.skipif(not STORIES.exists(), reason="needs ../shared")
def test_a_real_vocabulary_of_512_pieces_gets_the_tasks_it_can_express():
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    for data in (circuits.ioi(tokenizer, 20, corruption="third"), circuits.docstring(tokenizer, 20)):
        assert all(pair.answer != pair.wrong and pair.changed for pair in data)
    with pytest.raises(InputError, match="pairs of digits"):
        circuits.greater_than(tokenizer, 4)


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_the_prompts_of_circuit_reuse_load_as_pairs():
    folder = SHARED / "circuit_reuse"
    rows = circuits.colored_pairs(folder / "cobjs_data_42.json", folder / "cobjs_mindiff_data_42.json")
    assert len(rows) == 1000
    text = " ".join(row["clean"] + row["answer"] for row in rows[:20])
    tokenizer = circuits.word_tokenizer(re.findall(r"\w+|[^\w\s]+", text))
    data = tasks.pairs_from_samples(tokenizer, rows[:20])
    assert all(len(pair.changed) == 1 for pair in data)
    files = {"file": "cobjs_data_42.json", "corrupted_file": "cobjs_mindiff_data_42.json", "n": 20}
    assert tasks.resolve(tokenizer, files, base_dir=folder).digest() == data.digest()
    pieces = AutoTokenizer.from_pretrained(STORIES)  # things of one or of several tokens
    with pytest.raises(InputError, match="unusable: drop"):
        tasks.resolve(pieces, files, base_dir=folder)
    some = tasks.resolve(pieces, {**files, "unusable": "drop"}, base_dir=folder)
    assert 0 < some.meta["dropped"] == 20 - len(some) < 20
    assert tasks.resolve(pieces, some.meta).digest() == some.digest()
    with pytest.raises(InputError, match="has 1000 prompts, but n is 1001"):
        tasks.resolve(tokenizer, {**files, "n": 1001}, base_dir=folder)
    with pytest.raises(InputError, match="not JSON"):
        circuits.colored_pairs(Path(__file__), folder / "cobjs_data_42.json")


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_templates_and_names_of_mib_make_ioi_pairs():
    names = json.loads((SHARED / "mib_ioi" / "names.json").read_text())
    text = (SHARED / "mib_ioi" / "templates.json").read_text()
    others = [w for f in ("places", "objects") for w in json.loads((SHARED / "mib_ioi" / f"{f}.json").read_text())]
    tokenizer = circuits.word_tokenizer([*names, *others, *re.findall(r"\w+|[^\w\s]+", text)])
    data = circuits.ioi(tokenizer, 60, files=SHARED / "mib_ioi", corruption="third")
    block = {"task": "ioi", "n": 60, "files": "mib_ioi", "corruption": "third"}
    assert tasks.resolve(tokenizer, block, base_dir=SHARED).digest() == data.digest()
    assert tasks.resolve(tokenizer, data.meta).digest() == data.digest(), "a recipe holds the words themselves"
    assert data.meta["pools"]["names"] == len(set(names))
    assert len({pair.length for pair in data}) > 2
    for pair in data:
        assert pair.clean[pair.spans["IO"][0]] == pair.answer
        assert len(pair.changed) == 1


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"task": "letters", "files": {}}, "unknown key 'files'"),
        ({"task": "ioi", "files": "nowhere"}, "nowhere/templates.json' does not exist"),
        ({"task": "ioi", "files": {"names": ["A"]}}, "templates is a list of texts"),
        ({"task": "ioi", "files": {"name": ["A"]}}, "Did you mean 'names'"),
        (
            {"task": "ioi", "files": {key: ["x y"] for key in ("templates", "names", "places", "objects")}},
            "no template names three people",
        ),
        ({"pairs": [], "corrupted_file": "b.json"}, "`file` must name the clean prompts"),
        ({"file": "a.json", "corrupted_file": "b.json"}, "'a.json' does not exist"),
    ],
)
def test_unusable_published_files_are_refused_in_a_sentence(block, words):
    with pytest.raises(InputError, match=words):
        tasks.resolve(circuits.word_tokenizer(["A"]), block)
