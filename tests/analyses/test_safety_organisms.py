"""Ships and Sahara on models whose safety heads are known: the heads, the generic head, and what ablating them does."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import organisms, tasks
from workbench.analyses.sahara import sahara
from workbench.analyses.ships import ships
from workbench.analyses.ships.ablations import Ablation
from workbench.analyses.ships.dataset import Divergence, Method, Subspace
from workbench.models import load_model
from workbench.tasks import PromptDataset

PRESENT = [name for name in ("planted-refusal", "refusal") if name in organisms.names()]
ANSWERS = {"max_new_tokens": 24, "draws": 2, "prompts": 16}


@pytest.fixture(scope="module", params=PRESENT)
def known(request):
    """(model, data, the heads of the card)."""
    model = load_model(f"organism:{request.param}", device="cpu")
    truth = next(t for t in organisms.card(request.param)["truths"] if t["claim"] == "refusal")
    return model, prompts_of(model, truth), {tuple(head) for head in truth["heads"]}


def prompts_of(model, truth) -> PromptDataset:
    data = tasks.resolve(model, truth["data"])
    assert isinstance(data, PromptDataset)
    return data


def auroc(table, heads) -> float:
    inside = np.array([key in heads for key in table])
    pairs = table["score"][inside][:, None] - table["score"][~inside][None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_ships_ranks_the_known_heads_first_and_without_them_the_model_answers(known):
    model, data, heads = known
    validation = {**ANSWERS, "ks": [len(heads)]}
    result = ships(model, data, score="difference", controls=0, bootstrap=20, validation=validation)
    assert auroc(result.heads, heads) == 1.0
    found = result.summary["validation"]["greedy"]
    k = len(heads)
    assert found["none"]["attack_success"] < 0.05
    assert found[f"found {k}"]["attack_success"] > 0.6
    assert found[f"random {k}"]["attack_success"] - found["none"]["attack_success"] < 0.1
    assert found["none"]["benign_answered"] - found[f"found {k}"]["benign_answered"] < 0.1
    assert found[f"found {k}"]["benign_agreement"] > 0.9


def test_sahara_by_divergence_finds_the_known_group(known):
    model, data, heads = known
    result = sahara(model, data, size=len(heads), measure="kl", score="difference", controls=0, validation=ANSWERS)
    assert {tuple(head) for head in result.summary["group"]} == heads
    assert auroc(result.heads, heads) == 1.0
    found = result.summary["validation"]["greedy"]
    assert found[f"found {len(heads)}"]["attack_success"] > 0.6
    assert found[f"found {len(heads)}"]["benign_answered"] > 0.9


def test_sahara_by_angle_ranks_the_known_heads_first_one_by_one(known):
    model, data, heads = known
    assert auroc(sahara(model, data, size=1, score="difference", controls=0).heads, heads) >= 0.95


@pytest.mark.skipif("refusal" not in PRESENT, reason="the trained organism is not here")
def test_an_angle_is_blind_to_what_all_prompts_share():
    """Each head answers for half of the refusals: both together turn less than either alone, and move more."""
    model = load_model("organism:refusal", device="cpu")
    truth = next(t for t in organisms.card("refusal")["truths"] if t["claim"] == "refusal")
    a, b = (tuple(head) for head in truth["heads"])
    harmful = prompts_of(model, truth).only("harmful")
    method = Method(Ablation("uniform"))
    angle, divergence = Subspace(model, harmful, method), Divergence(model, harmful, method)

    def alone_and_together(space) -> tuple[list[float], float]:
        return space.turned([(a,), (b,)]).score.tolist(), float(space.turned([(b,)], group=[a]).score[0])

    alone, together = alone_and_together(angle)
    assert together < 0.8 * min(alone)
    alone, together = alone_and_together(divergence)
    assert together > max(alone)


@pytest.mark.skipif("planted-refusal" not in PRESENT, reason="the planted organism is not here")
def test_the_generic_head_is_first_without_the_benign_control_and_behind_the_safety_heads_with_it():
    model = load_model("organism:planted-refusal", device="cpu")
    truth = next(t for t in organisms.card("planted-refusal")["truths"] if t["claim"] == "refusal")
    data = prompts_of(model, truth)
    generic = tuple(truth["roles"]["generic"][0])
    ranks = [
        ships(model, data, score=s, controls=0, bootstrap=20).heads.row(*generic)["rank"]
        for s in ("harmful", "difference")
    ]
    assert ranks[0] == 1 and ranks[1] > len(truth["heads"])
    at_dataset = ships(model, data, score="difference", level="dataset", controls=0)
    assert at_dataset.heads.row(*generic)["rank"] > 5
