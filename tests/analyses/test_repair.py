"""Repair: the intervention equals raw hooks, and mends planted damage where random heads do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.analyses.examples import dataset
from tests.reference.direct import with_attention_row
from tests.tiny import tiny, tiny_hf
from workbench import organisms
from workbench.analyses.repair import ANALYSIS
from workbench.errors import InputError
from workbench.organisms.planted import Planted, ioi
from workbench.organisms.planted.folder import write
from workbench.tasks import TaskSet

ROLE = "content gatherer"


def gatherer(card):
    (truth,) = [t for t in card["truths"] if t["claim"] == "circuit"]
    return tuple(truth["roles"][ROLE][0])


@pytest.fixture(scope="module")
def shipped():
    model = wb.load_model("organism:planted-colored")
    return model, wb.tasks.circuits.colored_objects(model, 24), gatherer(organisms.card("planted-colored"))


def test_setting_a_row_equals_raw_hooks():
    model, hf = tiny("gpt2"), tiny_hf("gpt2")
    data = dataset(model, "pairs", ragged=True)
    heads = [(0, 1), (1, 3), (1, 0)]
    result = wb.repair(model, data, heads=heads, attend={"first": 0.25, "previous": 0.75}, draws=1)
    expected = []
    for pair in data:
        weights = torch.zeros(pair.length)
        weights[0], weights[-2] = 0.25, 0.75
        logits = with_attention_row(hf, pair.clean, heads, weights)
        expected.append(float(logits[pair.answer] - logits[pair.wrong]))
    np.testing.assert_allclose(result.tables["examples"]["repaired_logit_diff"], expected, atol=1e-5)


def test_a_row_like_that_of_another_task_equals_raw_hooks():
    model, hf = tiny("gpt2"), tiny_hf("gpt2")
    data, heads = dataset(model, "pairs", ragged=True), [(0, 1), (1, 3), (1, 0)]
    other = wb.tasks.pairs_from_samples(
        model, [{"clean": "the cat sat on", "corrupted": "the dog sat on", "answer": " the", "wrong": " cat"}] * 2
    )
    result = wb.repair(
        model,
        TaskSet({"here": data, "there": replace(other, samples=other.samples[:1])}),
        heads=heads,
        like={"task": "there", "classes": {"first": "previous", "itself": "first"}},
        draws=1,
    )

    def patterns(pair):
        with torch.no_grad():
            return hf(input_ids=torch.tensor([pair.clean]), output_attentions=True).attentions

    there, expected = patterns(other[0]), []
    for pair in data:
        own, weights = patterns(pair), {}
        for layer, head in heads:
            row = own[layer][0, head, -1].clone()
            to_first, to_itself = there[layer][0, head, -1, 0], there[layer][0, head, -1, -1]
            kept = [i for i in range(pair.length) if i not in (0, pair.length - 2)]
            row[kept] *= (1 - to_first - to_itself) / row[kept].sum()
            row[-2], row[0] = to_first, to_itself
            weights[layer, head] = row
        logits = with_attention_row(hf, pair.clean, heads, weights)
        expected.append(float(logits[pair.answer] - logits[pair.wrong]))
    np.testing.assert_allclose(result.tables["examples"]["repaired_logit_diff"], expected, atol=1e-5)
    table = result.tables["copied"].set_index(["layer", "head", "class"])["attention"]
    assert table[1, 3, "previous"] == pytest.approx(float(there[1][0, 3, -1, 0]), abs=1e-6)


def test_a_shared_head_is_mended_by_what_it_does_on_the_other_task(shipped):
    model, data, _ = shipped
    mover = (4, 3)  # attends to the answer's name on IOI, to the answer's colour on coloured objects
    both = TaskSet({"colored": data, "ioi": wb.tasks.circuits.ioi(model, 24)})
    params = {"heads": [mover], "fault": {"heads": [mover]}, "candidates": ["C1", "C2", "C3"], "draws": 5}
    result = wb.repair(model, both, like={"task": "ioi", "classes": {"IO": "answer color"}}, **params)
    summary = result.summary
    assert summary["faulted"]["accuracy"] < 0.6 < 0.9 < summary["repaired"]["accuracy"]
    assert summary["random"]["accuracy_max"] < 0.6
    assert result.tables["copied"]["attention"].to_list() == pytest.approx([1], abs=0.01)
    wrong = wb.repair(model, both, like={"task": "ioi", "classes": {"IO": "wrong color"}}, **params).summary
    assert wrong["repaired"]["accuracy"] < 0.1


def repaired(model, data, head, **params):
    return wb.repair(
        model,
        data,
        heads=[head],
        attend={"query": 1.0},
        fault={"heads": [head], **params},
        candidates=["C1", "C2", "C3"],
        draws=5,
    )


def test_a_planted_fault_is_repaired_and_random_heads_do_not_repair_it(shipped):
    model, data, head = shipped
    summary = repaired(model, data, head).summary
    assert summary["intact"]["accuracy"] == 1
    assert summary["faulted"]["accuracy"] < 0.6 and summary["faulted"]["accuracy_among"] < 0.6
    assert summary["repaired"]["accuracy"] > 0.9 and summary["repaired"]["accuracy_low"] > 0.8
    assert summary["random"]["accuracy_max"] < 0.2
    assert summary["broken_examples"] == 0


def test_downstream_heads_change_and_upstream_heads_do_not(shipped):
    model, data, head = shipped
    result = repaired(model, data, head)
    heads = result.heads
    assert heads.row(*head)["status"] == "set by the repair"
    assert heads.top(1).keys() == ((4, 3),)  # the shared mover
    mover = heads.row(4, 3)
    assert mover["answer_before"] < 0.1 and mover["answer_after"] > 0.9 and mover["null_p"] < 0.01
    above = heads["score"][heads["layer"] < head[0]]
    assert (above == 0).all()
    table = result.tables["attention"].set_index(["layer", "head", "class"])
    assert table.loc[(4, 3, "answer"), "change"] == pytest.approx(mover["answer_after"] - mover["answer_before"])


def test_a_fresh_instance_is_repaired_too(tmp_path):
    hf, tokenizer, slots, _ = ioi.assemble(seed=2001)
    model = wb.load_model(str(write(Planted(hf, tokenizer, organisms.card("planted-ioi")), tmp_path / "p")))
    data = wb.tasks.circuits.colored_objects(model, 24)
    summary = repaired(model, data, slots[ROLE], kind="uniform").summary
    assert summary["faulted"]["accuracy"] < 0.6 < 0.9 < summary["repaired"]["accuracy"]


def test_a_wrong_row_is_a_fault_and_ablation_can_be_part_of_a_repair(shipped):
    model, data, head = shipped
    wrong = repaired(model, data, head, kind="attend", attend={"wrong object": 1.0}).summary
    assert wrong["faulted"]["accuracy"] < 0.6 and wrong["repaired"]["accuracy"] > 0.9
    off = wb.repair(model, data, ablate=[head], draws=2).summary
    assert off["intact"]["accuracy"] == 1 and off["repaired"]["accuracy"] < 0.6


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "heads` with `attend`"),
        ({"heads": [[0, 0]]}, "go together"),
        ({"heads": [[0, 0]], "like": {"task": "ioi", "classes": {"IO": "C1"}}}, "the data are two"),
        (
            {"heads": [[0, 0]], "attend": {"query": 1.0}, "like": {"task": "ioi", "classes": {"IO": "C1"}}},
            "choose one",
        ),
        ({"heads": [[0, 0]], "attend": {"query": 0.7}}, "sum to 1"),
        ({"heads": [[0, 0]], "attend": {"quary": 1.0}}, "Did you mean 'query'"),
        ({"heads": [[9, 0]], "attend": {"query": 1.0}}, r"\(9, 0\)"),
        ({"heads": [[0, 0]], "attend": {"query": 1.0}, "position": "O2", "draws": 1}, "no token of the class 'query'"),
        ({"heads": [[0, 0]], "attend": {"query": 1.0}, "fault": {"heads": [[0, 1]], "kind": "attend"}}, "attend"),
        ({"ablate": [[0, 0]], "candidates": ["C9"]}, "no span 'C9'"),
    ],
)
def test_what_is_unusable_is_named(shipped, params, words):
    model, data, _ = shipped
    with pytest.raises(InputError, match=words):
        ANALYSIS(model, data, ANALYSIS.parse(params))


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"task": "ioy", "classes": {"IO": "C1"}}, "Did you mean 'ioi'"),
        ({"task": "ioi", "classes": {"I0": "C1"}}, "Did you mean 'IO'"),
        ({"task": "ioi", "classes": {"IO": "C9"}}, "Did you mean 'C"),
        ({"task": "ioi", "classes": {"IO": "C1", "answer": "C2"}}, "would count twice"),
        ({"task": "ioi", "classes": {"IO": "answer", "S1": "answer color"}}, "have a token in common"),
    ],
)
def test_a_row_that_cannot_be_copied_is_refused(shipped, like, words):
    model, data, head = shipped
    both = TaskSet({"colored": data, "ioi": wb.tasks.circuits.ioi(model, 8)})
    with pytest.raises(InputError, match=words):
        wb.repair(model, both, heads=[head], like=like, draws=1)
