"""Attribution equals derivatives through the raw Hugging Face modules; its spot check equals patching them."""

from __future__ import annotations

import gc
import random
from functools import cache

import numpy as np
import pytest
import torch

from tests.primitives.cases import left_padded, model, n_hooks, prompts, raw, weights
from tests.reference.attribution import Twin
from tests.tiny import tiny
from workbench.errors import CapabilityError, InputError
from workbench.primitives.attribution import (
    Graph,
    Node,
    Receiver,
    edge_scores,
    exact_edges,
    exact_nodes,
    integration_path,
    node_scores,
    wiring,
)
from workbench.primitives.sweep.readout import Readout

ARCHES = ["gpt2", "llama", "qwen3", "neox", "gemma2", "olmo2"]
PRE_NORM = ["gpt2", "llama", "qwen3", "neox", "gptj", "opt"]
PATHS = {"base": (1.0,), "ig": integration_path(3)}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}  # the Hugging Face RMS norms work in float32 throughout
METRIC = Readout("logit_diff", torch.tensor([5, 6, 7]), torch.tensor([8, 9, 10]))


def two_runs(n=3, length=10):
    """Prompts that differ at two positions."""
    clean = prompts(n, length)
    corrupted = clean.clone()
    corrupted[:, 2], corrupted[:, 6] = torch.arange(20, 20 + n), torch.arange(40, 40 + n)
    return clean, corrupted


@cache
def scored(arch, path, dtype=torch.float32):
    return edge_scores(model(arch, dtype), *two_runs(), METRIC, path=PATHS[path])


def twin(arch, example, dtype=torch.float32):
    clean, corrupted = two_runs()
    answer, wrong = int(METRIC.answer[example]), int(METRIC.wrong[example])
    runs = clean[example].tolist(), corrupted[example].tolist()
    return Twin(arch, raw(arch, dtype), *runs, lambda logits: logits[answer] - logits[wrong])


def some_edges(graph, n):
    exists = np.argwhere(graph.exists())
    picked = random.Random(0).sample(range(len(exists)), n)
    return [(int(s), int(r)) for s, r in exists[picked]]


def relative(got, want):
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    return np.abs(got - want).max() / np.abs(want).max()


# ------------------------------------------------------------------------------------------ equal to the slow twin


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("arch", ARCHES)
def test_node_scores_are_derivatives_through_the_raw_model(arch, path, dtype):
    found, slow = scored(arch, path, dtype).nodes, twin(arch, 1, dtype)
    want = [slow.node("head", layer, head, PATHS[path]) for layer in range(3) for head in range(4)]
    want += [*(slow.node("mlp", layer, path=PATHS[path]) for layer in range(3)), slow.node("input", path=PATHS[path])]
    got = torch.cat([found.heads[1].flatten(), found.mlps[1], found.inputs[1:2]])
    assert relative(got, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("arch", ARCHES)
def test_edge_scores_are_derivatives_through_the_raw_model(arch, path, dtype):
    found, slow = scored(arch, path, dtype), twin(arch, 1, dtype)
    senders, receivers = found.graph.senders, found.graph.receivers
    picked = some_edges(found.graph, 30)
    want = [slow.edge(tuple(senders[s]), tuple(receivers[r]), PATHS[path]) for s, r in picked]
    assert relative([found.scores[1, s, r] for s, r in picked], want) < TOLERANCE[dtype]


@pytest.mark.parametrize("arch", ARCHES)
def test_exact_values_are_those_of_the_raw_model(arch):
    graph, slow = scored(arch, "base").graph, twin(arch, 2)
    got = exact_nodes(model(arch), *two_runs(), graph.senders, METRIC)[:, 2]
    assert relative(got, [slow.node_exact(*node) for node in graph.senders]) < 1e-5
    edges = [(graph.senders[s], graph.receivers[r]) for s, r in some_edges(graph, 40)]
    got = exact_edges(model(arch), *two_runs(), edges, METRIC)[:, 2]
    assert relative(got, [slow.edge_exact(tuple(s), tuple(r)) for s, r in edges]) < 1e-5


@pytest.mark.parametrize("name", ["log_prob", "prob", "loss"])
def test_every_metric_with_a_gradient_can_be_attributed(name):
    clean, corrupted = two_runs()
    metric = Readout(name, METRIC.answer)
    sign = -1 if name == "loss" else 1

    def by_hand(logits):
        log_prob = logits.log_softmax(-1)[5]
        return log_prob.exp() if name == "prob" else sign * log_prob

    slow = Twin("llama", raw("llama"), clean[0].tolist(), corrupted[0].tolist(), by_hand)
    got = node_scores(model("llama"), clean, corrupted, metric).heads[0]
    assert relative(got, [[slow.node("head", layer, head) for head in range(4)] for layer in range(3)]) < 1e-5


# -------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("arch", PRE_NORM)
def test_without_a_norm_after_attention_the_edges_out_of_a_node_sum_to_its_score(arch):
    found = edge_scores(model(arch, torch.float64), *two_runs(), METRIC, path=PATHS["ig"])
    out = found.scores.nansum(-1)
    heads = [found.graph.sender_of_head(layer, head) for layer in range(3) for head in range(4)]
    assert relative(out[:, heads], found.nodes.heads.flatten(1)) < 1e-6
    assert relative(out[:, 0], found.nodes.inputs) < 1e-6


@pytest.mark.parametrize("arch", ["gpt2", "neox", "gemma2", "olmo2"])
def test_integrated_gradients_of_the_input_add_up_to_the_difference_of_the_metric(arch):
    errors = []
    for steps in (5, 20, 80):
        found = node_scores(model(arch, torch.float64), *two_runs(), METRIC, path=integration_path(steps))
        errors.append(float((found.inputs - (found.other - found.base)).abs().max()))
    assert errors[2] < 1e-2 * float((found.other - found.base).abs().max())
    assert errors[2] < errors[0] / 20, "the midpoint rule converges quadratically"


def test_exchanging_the_whole_input_is_running_the_other_prompt():
    clean, corrupted = two_runs()
    found = node_scores(model("gemma2"), clean, corrupted, METRIC)
    exact = exact_nodes(model("gemma2"), clean, corrupted, [Node("input")], METRIC)[0]
    torch.testing.assert_close(exact, found.other - found.base, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize("path", PATHS)
def test_equal_runs_have_no_effect_at_all(arch, path):
    clean, _ = two_runs()
    found = edge_scores(model(arch), clean, clean, METRIC, path=PATHS[path], controls=[clean])
    assert not found.scores.nan_to_num().any()
    assert not any(x.any() for x in (found.nodes.heads, found.nodes.mlps, found.nodes.inputs, found.nodes.null))


def test_midpoint_integration_is_antisymmetric_in_the_two_runs():
    clean, corrupted = two_runs()
    there = node_scores(model("llama", torch.float64), clean, corrupted, METRIC, path=integration_path(4))
    back = node_scores(model("llama", torch.float64), corrupted, clean, METRIC, path=integration_path(4))
    torch.testing.assert_close(there.heads, -back.heads)


def test_scores_at_single_positions_add_up():
    clean, corrupted = two_runs()
    m, whole = model("llama"), scored("llama", "base")
    parts = []
    for position in range(clean.shape[1]):
        where = torch.zeros_like(clean, dtype=torch.bool)
        where[:, position] = True
        parts.append(edge_scores(m, clean, corrupted, METRIC, where=where))
    torch.testing.assert_close(sum(p.nodes.heads for p in parts), whole.nodes.heads, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        sum(p.scores.nan_to_num() for p in parts), whole.scores.nan_to_num(), atol=1e-5, rtol=1e-4
    )


def test_exact_values_at_chosen_positions_exchange_nothing_elsewhere():
    clean, corrupted = two_runs()
    nothing = torch.zeros_like(clean, dtype=torch.bool)
    graph = scored("llama", "base").graph
    edges = [(Node("input"), Receiver("q", 1, 2)), (Node("head", 0, 1), Receiver("mlp", 2))]
    assert not exact_nodes(model("llama"), clean, corrupted, graph.senders, METRIC, where=nothing).any()
    assert not exact_edges(model("llama"), clean, corrupted, edges, METRIC, where=nothing).any()


def test_a_control_is_the_score_with_another_run():
    clean, corrupted = two_runs()
    for path in PATHS.values():
        null = node_scores(model("llama"), clean, corrupted, METRIC, path=path, controls=[clean.roll(1, 0)]).null[0]
        want = node_scores(model("llama"), clean, clean.roll(1, 0), METRIC, path=path).heads
        torch.testing.assert_close(null, want)


# ----------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("arch", ["gpt2", "llama", "mistral", "gemma2"])
def test_a_padded_batch_equals_its_rows_alone(arch):
    clean, corrupted = two_runs(length=14)
    padding = [4, 0, 3]
    left, mask, alone = left_padded(clean, padding)
    right, _, alone_corrupted = left_padded(corrupted, padding)
    together = edge_scores(model(arch), left, right, METRIC, attention_mask=mask, path=PATHS["ig"])
    edges = [(Node("head", 0, 1), Receiver("k", 2, 1)), (Node("mlp", 0), Receiver("q", 1, 3))]
    exact = exact_edges(model(arch), left, right, edges, METRIC, attention_mask=mask)
    for i, (a, b) in enumerate(zip(alone, alone_corrupted, strict=True)):
        single = edge_scores(model(arch), a, b, METRIC, rows=torch.tensor([i]), path=PATHS["ig"])
        scale = float(single.scores.nan_to_num().abs().max())
        assert float((together.scores[i] - single.scores[0]).nan_to_num().abs().max()) < 1e-4 * scale
        assert float((together.nodes.heads[i] - single.nodes.heads[0]).abs().max()) < 1e-4 * scale
        torch.testing.assert_close(
            exact[:, i],
            exact_edges(model(arch), a, b, edges, METRIC, rows=torch.tensor([i]))[:, 0],
            atol=1e-4,
            rtol=1e-4,
        )


def test_the_order_of_examples_does_not_matter():
    clean, corrupted = two_runs()
    order = torch.tensor([2, 0, 1])
    found = edge_scores(model("llama"), clean[order], corrupted[order], METRIC, rows=order)
    whole = scored("llama", "base")
    torch.testing.assert_close(found.scores.nan_to_num(), whole.scores[order].nan_to_num(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.nodes.heads, whole.nodes.heads[order], atol=1e-6, rtol=1e-5)


def test_nothing_is_left_behind():
    m = model("gemma2")
    before, hooks = weights(m), n_hooks(m)
    clean, corrupted = two_runs()
    gc.collect()
    graphs = sum(isinstance(x, torch.Tensor) and x.grad_fn is not None for x in gc.get_objects())
    found = edge_scores(m, clean, corrupted, METRIC, path=PATHS["ig"], controls=[clean])
    exact_edges(m, clean, corrupted, [(Node("input"), Receiver("logits", 3))], METRIC)
    gc.collect()
    assert sum(isinstance(x, torch.Tensor) and x.grad_fn is not None for x in gc.get_objects()) == graphs
    assert found.scores.grad_fn is None and not found.scores.requires_grad
    assert n_hooks(m) == hooks
    assert all(torch.equal(p, before[name]) for name, p in m.bridge.original_model.named_parameters())
    assert not any(p.requires_grad or p.grad is not None for p in m.bridge.parameters())


def test_a_run_whose_logits_are_not_finite_has_no_score():
    clean, corrupted = two_runs()

    def broken(logits, rows):
        return torch.where(rows == 1, torch.nan, logits[:, 5] - logits[:, 8])

    found = edge_scores(model("llama"), clean, corrupted, broken)
    assert found.nodes.heads[1].isnan().all() and found.scores[1].isnan().all()
    assert found.nodes.heads[[0, 2]].isfinite().all()


# ------------------------------------------------------------------------------------------------- graph and refusals


def test_an_edge_goes_from_what_is_written_to_what_is_read_later():
    graph = Graph(n_layers=2, n_heads=4, n_kv_heads=2, mlp_sees_attn=(True, False))
    senders, receivers, exists = graph.senders, graph.receivers, graph.exists()
    assert (len(senders), len(receivers)) == (1 + 2 * 5, 2 * (4 + 2 + 2 + 1) + 1)

    def edge(sender, receiver):
        return bool(exists[senders.index(sender), receivers.index(receiver)])

    assert exists[0].all() and exists[:, -1].all()
    assert edge(Node("head", 0, 3), Receiver("mlp", 0)) and not edge(Node("mlp", 0), Receiver("mlp", 0))
    assert not edge(Node("head", 1, 3), Receiver("mlp", 1)), "a parallel MLP does not see its layer's attention"
    assert edge(Node("mlp", 0), Receiver("k", 1, 1)) and not edge(Node("head", 1, 0), Receiver("q", 1, 1))
    assert senders[graph.sender_of_head(1, 2)] == Node("head", 1, 2)


@pytest.mark.parametrize(
    "arch, sees", [("gpt2", True), ("llama", True), ("neox", False), ("gptj", False), ("olmo2", True)]
)
def test_the_wiring_is_measured(arch, sees):
    assert wiring(model(arch)).graph.mlp_sees_attn == (sees,) * 3


def test_what_a_norm_after_attention_means_for_edges_is_said():
    assert not wiring(model("llama")).notes
    assert "norm follows attention" in wiring(model("gemma2")).notes[0]
    assert "norm over all heads" in wiring(model("olmo2")).notes[1]


def test_models_without_this_wiring_have_nodes_but_no_edges():
    clean, corrupted = two_runs()
    with pytest.raises(CapabilityError, match="level: node"):
        edge_scores(model("bloom"), clean, corrupted, METRIC)
    found = node_scores(model("bloom"), clean, corrupted, METRIC)
    assert found.heads.isfinite().all() and found.mlps.isnan().all()
    with pytest.raises(CapabilityError, match="head_ablation_ok"):
        node_scores(tiny("deepseek_v3"), clean, corrupted, METRIC)


@pytest.mark.parametrize("name, why", [("kl", "minimum"), ("rank", "whole number")])
def test_metrics_without_a_gradient_are_refused(name, why):
    with pytest.raises(InputError, match=why):
        node_scores(model("llama"), *two_runs(), Readout(name, METRIC.answer))


def test_unusable_runs_are_refused():
    clean, corrupted = two_runs()
    with pytest.raises(InputError, match="one shape"):
        node_scores(model("llama"), clean, corrupted[:, 1:], METRIC)
    with pytest.raises(InputError, match="padded on the right"):
        mask = torch.ones_like(clean)
        mask[1, -1] = 0
        edge_scores(model("llama"), clean, corrupted, METRIC, attention_mask=mask)
    with pytest.raises(InputError, match="`where` has shape"):
        node_scores(model("llama"), clean, corrupted, METRIC, where=torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="at least one step"):
        integration_path(0)


def test_the_rules_of_integration():
    assert integration_path(2) == (0.25, 0.75)
    assert integration_path(4, rule="left") == (0.0, 0.25, 0.5, 0.75)
    assert integration_path(4, rule="right") == (0.25, 0.5, 0.75, 1.0)
    assert integration_path(4, rule="left", from_other=False) == (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2"])
def test_half_precision_models_are_scored_in_float32(arch):
    found, full = scored(arch, "base", torch.bfloat16), scored(arch, "base")
    assert found.scores.dtype == torch.float32
    a, b = found.nodes.heads.flatten().numpy(), full.nodes.heads.flatten().numpy()
    assert np.corrcoef(a, b)[0, 1] > 0.9
