"""Overlap: the planted answer comes out, and the ways in which it could be missed are shown."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench import organisms, tasks
from workbench.analyses.overlap import ANALYSIS
from workbench.errors import InputError
from workbench.organisms.planted import Planted, ioi
from workbench.organisms.planted.folder import write
from workbench.organisms.planted.ioi_evidence import Probe, circuit, logit_difference

N = 8
BLOCK = {"tasks": {"ioi": {"task": "ioi", "n": N}, "colored": {"task": "colored_objects", "n": N}}}
LEAN = {"controls": 0, "bootstrap": 20, "permutations": 9, "keep": None}


def truth(card):
    (found,) = [t for t in card["truths"] if t["claim"] == "circuit"]
    return {tuple(head) for head in found["heads"]}


@pytest.fixture(scope="module")
def model():
    return wb.load_model("organism:planted-ioi")


@pytest.fixture(scope="module")
def data(model):
    return tasks.resolve(model, BLOCK)


@pytest.fixture(scope="module")
def result(model, data):
    return wb.overlap(model, data)


def test_the_planted_overlap_is_reported_with_default_parameters(result):
    (pair,) = result.summary["pairs"]
    assert (pair["n_a"], pair["n_b"], pair["n_shared"]) == (7, 4, 3)
    assert pair["jaccard"] == 3 / 8
    assert (pair["a_in_b"], pair["b_in_a"]) == (3 / 7, 3 / 4)
    assert pair["jaccard_low"] <= 3 / 8 <= pair["jaccard_high"]
    assert organisms.card("planted-ioi")["overlap"]["jaccard"] == pair["jaccard"]
    for name, found in result.summary["circuits"].items():
        card = organisms.card("planted-ioi" if name == "ioi" else "planted-colored")
        assert set(map(tuple, found)) == truth(card)
    assert (result.tables["tasks"]["split_half_jaccard"] == 1).all()


@pytest.mark.parametrize("seed", [2001, 2002, 2003])
def test_the_overlap_of_fresh_instances_is_the_true_one(tmp_path, seed):
    *made, slots, _ = ioi.assemble(seed=seed)  # weights alone: a card takes longer to measure
    folder = write(Planted(*made, organisms.card("planted-ioi")), tmp_path / "p")
    fresh = wb.load_model(str(folder))
    found = wb.overlap(fresh, tasks.resolve(fresh, BLOCK), **LEAN)
    one, two = ({slots[role] for role in circuit(task)} for task in ("ioi", "colored_objects"))
    circuits = {name: set(map(tuple, heads)) for name, heads in found.summary["circuits"].items()}
    assert circuits == {"ioi": one, "colored": two}
    assert found.summary["pairs"][0]["jaccard"] == len(one & two) / len(one | two) == 3 / 8


def test_one_corruption_alone_misses_shared_heads(result):
    views = result.tables["by_view"].set_index(["view_a", "view_b"])
    assert views.loc[("redraw", "context"), "jaccard"] == 3 / 8 and views.loc[("redraw", "context"), "missed"] == 0
    assert views.loc[("flip", "query"), "missed"] == 1
    seen = result.tables["visibility"].set_index(["task", "view", "layer", "head"])
    for task, view in (("ioi", "flip"), ("colored", "query")):  # the head that reads the context
        assert not seen.loc[(task, view, 0, 0), "sees"] and abs(seen.loc[(task, view, 0, 0), "effect"]) < 0.01
        assert seen.loc[(task, view, 0, 0), "in_circuit"]
    assert result.summary["lowest_with_one_view_each"]["jaccard"] < 3 / 8


def test_effects_equal_raw_hooks(model, data, result):
    probe = Probe(model.hf)
    for name, view in (("ioi", "redraw"), ("colored", "query")):
        task = tasks.circuits.task(data[name].meta["task"], model, N, corruption=view)
        batch = task.batch()
        clean, other = (logit_difference(probe.logits(t), batch) for t in (batch.clean, batch.corrupted))
        z = probe.outputs(batch.corrupted)
        seen = result.tables["visibility"]
        seen = seen[(seen["task"] == name) & (seen["view"] == view)]
        for _, row in seen.iterrows():
            with probe.replaced([(row["layer"], row["head"])], lambda layer, z=z: z[layer]):
                effect = (logit_difference(probe.logits(batch.clean), batch) - clean) / (other - clean)
            assert row["effect"] == pytest.approx(effect, abs=1e-4)


def test_the_score_is_the_smallest_effect_over_tasks(result):
    heads = result.heads
    both = np.abs(np.stack([heads["effect_ioi"], heads["effect_colored"]]))
    np.testing.assert_allclose(heads["score"], both.min(axis=0), rtol=1e-9)
    assert set(heads.top(3)) == {(0, 0), (1, 1), (4, 3)} == set(heads.select("n_circuits == 2"))
    assert set(heads.select("p < 0.05 and score > 0.1")) == set(heads.top(3))


def test_a_circuit_does_its_own_task_and_not_the_other(result):
    kept = result.tables["cross_faithfulness"].set_index(["task", "circuit"])
    assert kept.loc[("ioi", "ioi"), "f"] > 0.9 and kept.loc[("colored", "colored"), "f"] > 0.9
    assert kept.loc[("ioi", "colored"), "f"] < 0.5 and kept.loc[("colored", "ioi"), "f"] < 0.5
    assert kept.loc[("ioi", "ioi"), "p"] < 0.05 < kept.loc[("colored", "ioi"), "p"]
    lost = result.tables["cross_ablation"].set_index(["task", "circuit"])
    assert (lost["loss"] > 0.9).all()  # either circuit holds what both tasks need
    assert (lost["random"].notna()).all()


@pytest.mark.parametrize(
    "params",
    [
        {"method": "ablation", "ablation": "zero"},
        {"method": "path_patching", "ablation": "zero", "corruptions": ["redraw", "context"]},
    ],
)
def test_other_methods_find_it_too(model, data, params):
    found = wb.overlap(model, data, **{**LEAN, **params})
    assert found.summary["pairs"][0]["jaccard"] == 3 / 8
    assert "cross_faithfulness" not in found.tables
    assert set(found.tables["views"]["view"]) <= {"zero", "redraw", "context"}


def test_circuits_that_come_with_edges_are_compared_edge_by_edge(model, data):
    options = {"method": "circuit", "corruptions": ["redraw"], "ablation": None, "options": {"rule": "share"}}
    found = wb.overlap(model, data[:4], **options, **LEAN)
    heads, edges = found.summary["pairs"]
    assert heads["jaccard"] == 3 / 8
    assert (edges["n_a"], edges["n_b"], edges["n_shared"]) == (9, 4, 1)  # only the mover's edge to the logits


def test_what_is_unusable_is_named(model, data):
    for params, words in (
        ({"corruptions": ["nope"]}, "none of the corruptions nope"),
        ({"options": {"direction": "noising"}}, "set by overlap"),
        ({"options": {"receivers": ["logits"]}}, "no parameter 'receivers'"),
        ({"method": "ablation", "ablation": None}, "needs ablation"),
    ):
        with pytest.raises(InputError, match=words):
            ANALYSIS(model, data, ANALYSIS.parse(params))
    with pytest.raises(InputError, match="two tasks or more"):
        wb.overlap(model, data["ioi"])
