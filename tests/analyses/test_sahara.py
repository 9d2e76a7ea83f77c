"""Sahara: the same group as brute force finds, whatever is batched, forked or interrupted."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analyses.examples import data_block
from tests.reference import ships as slow
from tests.tiny import tiny, tiny_hf
from workbench import tasks
from workbench.analyses.sahara import ANALYSIS, sahara
from workbench.analyses.sahara import measure as whole
from workbench.analyses.sahara.search import greedy
from workbench.analyses.ships.ablations import Ablation
from workbench.analyses.ships.forks import Forks
from workbench.errors import InputError

ALL = [(layer, head) for layer in range(3) for head in range(4)]


def prompts(model, n=5, benign=0, ragged=True):
    texts = data_block("prompts", n + benign, ragged=ragged)["prompts"]
    return tasks.prompts_from_texts(model, texts[:n], benign=texts[n:])


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.mark.parametrize(("arch", "rank"), [("llama", 1), ("gpt2", 1), ("qwen3", 2)])
def test_the_group_and_every_step_equal_brute_force(arch, rank):
    model = tiny(arch)
    data = prompts(model)
    result = sahara(model, data, size=3, rank=rank, controls=0)
    group, tables = slow.sahara(tiny_hf(arch), [s.tokens for s in data], ALL, 3, rank)
    assert [tuple(head) for head in result.summary["group"]] == group
    steps = result.tables["steps"]
    for number, want in enumerate(tables, start=1):
        part = steps.query(f"step == {number}")
        assert len(part) == len(ALL) - number + 1
        found = dict(zip(zip(part["layer"], part["head"], strict=True), part["score"], strict=True))
        for head, angle in want.items():
            assert found[head] == pytest.approx(angle, rel=1e-3, abs=1e-4), (number, head)
        assert part.query("chosen")[["layer", "head"]].to_numpy().tolist() == [list(group[number - 1])]
    for number, head in enumerate(group, start=1):
        assert result.heads.row(*head)["order"] == number
    assert np.isnan(result.heads["order"]).sum() == len(ALL) - 3
    assert result.tables["group"]["score"].tolist() == pytest.approx(result.summary["scores"])


def test_the_table_holds_each_head_alone(llama):
    data = prompts(llama)
    result = sahara(llama, data, size=2)
    first = result.tables["steps"].query("step == 1")
    assert result.heads["score"].tolist() == pytest.approx(first["score"].tolist())
    assert result.heads.meta["unit"] == "degrees"
    assert np.isfinite(result.heads["stderr"]).all() and np.isfinite(result.heads["null_mean"]).all()


@pytest.mark.parametrize("options", [{"ablation": "scale"}, {"ablation": "mean_over_heads"}, {"epsilon": 0.3}])
def test_a_group_underneath_is_what_holding_all_heads_at_once_gives(llama, options):
    """Restarting from caches with the group ablated equals ablating group and candidate in one full forward."""
    batch = prompts(llama).batch()
    ablation = Ablation(options.get("ablation", "uniform"), options.get("epsilon", 0.0))
    group = [(0, 2), (1, 1), (2, 0)]
    units = [((layer, head),) for layer, head in ((0, 0), (1, 1 + 2), (2, 2))]
    found = Forks(llama, batch.tokens, batch.mask, ablation, group=group).vectors(units, range(len(units)))
    for (unit,), states in zip(units, found, strict=True):
        want = Forks(llama, batch.tokens, batch.mask, ablation, group=[*group, unit]).base()
        np.testing.assert_allclose(states.numpy(), want.numpy(), rtol=1e-4, atol=1e-5)


def test_a_padded_batch_turns_as_single_prompts_do(llama):
    data = prompts(llama)
    batch = data.batch()
    together = Forks(llama, batch.tokens, batch.mask, Ablation("uniform"), group=[(0, 1)])
    units = [((1, 0),), ((2, 3),)]
    found = together.vectors(units, [0, 1]).numpy()
    for i in range(len(data)):
        one = data[i : i + 1].batch()
        alone = Forks(llama, one.tokens, one.mask, Ablation("uniform"), group=[(0, 1)])
        np.testing.assert_allclose(found[:, i], alone.vectors(units, [0, 1])[:, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_little_memory_gives_the_same_group(llama, monkeypatch):
    data = prompts(llama, benign=2)
    want = sahara(llama, data, size=2, controls=0)
    monkeypatch.setattr("workbench.analyses.ships.forks.BAND_BYTES", 1)  # a layer at a time
    found = sahara(llama, data, size=2, controls=0, memory_mb=0.05)
    assert found.summary["group"] == want.summary["group"]
    np.testing.assert_allclose(found.tables["steps"]["score"], want.tables["steps"]["score"], rtol=1e-4)


def test_the_benign_control_can_rank(llama):
    data = prompts(llama, 4, benign=4)
    result = sahara(llama, data, size=2, score="difference", controls=0)
    steps = result.tables["steps"]
    np.testing.assert_allclose(steps["score"], steps["harmful"] - steps["benign"])
    for number, head in enumerate(result.summary["group"], start=1):
        part = steps.query(f"step == {number}")
        best = part.sort_values("score").iloc[-1]
        assert [int(best["layer"]), int(best["head"])] == head
    with pytest.raises(InputError, match="benign prompts"):
        sahara(llama, data.only("harmful"), score="difference")


def test_an_interrupted_search_goes_on_and_ends_the_same(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.analyses.ships.forks.BAND_BYTES", 1)
    data, params = prompts(llama), ANALYSIS.parse({"size": 2, "controls": 1})
    want = whole.measure(llama, data, params, 0, root=tmp_path / "a")  # type: ignore[arg-type]
    assert not any((tmp_path / "a").iterdir()), "nothing is left behind by a search that ended"
    work, calls = Forks.vectors, []

    def count(self, *args, **options):
        calls.append(1)
        return work(self, *args, **options)

    def stumble(self, *args, **options):
        if len(calls) == 7:  # bands 1 to 3 of step 1, twice for the null, and one of step 2
            raise KeyboardInterrupt
        return count(self, *args, **options)

    monkeypatch.setattr(Forks, "vectors", stumble)
    with pytest.raises(KeyboardInterrupt):
        whole.measure(llama, data, params, 0, root=tmp_path / "b")  # type: ignore[arg-type]
    calls.clear()
    monkeypatch.setattr(Forks, "vectors", count)
    found = whole.measure(llama, data, params, 0, root=tmp_path / "b")  # type: ignore[arg-type]
    assert len(calls) == 2, "only what was not finished is computed again"
    assert found.heads == want.heads
    for name, table in want.tables.items():
        assert found.tables[name].equals(table), name
    for name, values in want.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values)


def test_ties_are_reported_and_go_to_the_earlier_head():
    rows = [(0, 0), (0, 1), (1, 0)]
    score = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 2.0}

    def measure(candidates, group):
        return np.array([score[row] for row in candidates]), len(group)

    first, second = greedy(rows, 2, measure)
    assert first.chosen == (0, 1) and first.ties == ((1, 0),) and first.margin == 0
    assert second.chosen == (1, 0) and second.ties == () and second.group == ((0, 1),)
    assert (first.evidence, second.evidence) == (0, 1)


def test_what_cannot_be_searched_is_said(llama):
    with pytest.raises(InputError, match="size=13"):
        sahara(llama, prompts(llama), size=13)
    with pytest.raises(InputError, match="step 1"):
        greedy([(0, 0)], 1, lambda candidates, group: (np.array([np.nan]), None))


def test_the_group_is_validated_head_by_head(llama):
    options = {"max_new_tokens": 2, "draws": 1}
    result = sahara(llama, prompts(llama, 3, benign=2), size=2, controls=0, validation=options)
    rows = result.tables["transcripts"]
    group = [f"{layer}-{head}" for layer, head in result.summary["group"]]
    assert rows.query("condition == 'found' and k == 1")["heads"].unique().tolist() == group[:1]
    assert rows.query("condition == 'found' and k == 2")["heads"].unique().tolist() == [" ".join(group)]
