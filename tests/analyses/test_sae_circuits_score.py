"""The method's arithmetic against a slow twin, on activations that need no model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import auc as area_under
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.reference import sae_circuits as slow
from workbench.analyses.sae_circuits import codes as c
from workbench.analyses.sae_circuits import evaluate, references
from workbench.analyses.sae_circuits.params import SaeCircuitsParams
from workbench.analyses.sae_circuits.sae import start, train
from workbench.analyses.sae_circuits.scores import Labelled, divergence, edge, node
from workbench.analyses.sae_circuits.trained import Codes, train_and_code
from workbench.errors import InputError

N, HEADS, D = 24, 5, 12  # half of the examples are positive
POSITIVE = np.arange(N) < N // 2
ON, OFF = (side.astype(float) for side in (POSITIVE, ~POSITIVE))


@pytest.fixture(scope="module")
def x():
    return torch.randn(N, HEADS, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def random_codes(seed=0, n_codes=6):
    return np.random.default_rng(seed).integers(0, n_codes, size=(N, HEADS))


def test_training_equals_autograd_and_gives_the_same_codes(x):
    rows = x[:10].flatten(0, 1)
    options = {"l1": 0.02, "lr": 1e-2, "epochs": 60}
    mine = train(
        torch.stack([rows, rows]), [torch.Generator().manual_seed(s) for s in (1, 2)], n_features=16, **options
    )
    for i, seed in enumerate((1, 2)):
        parts = start(16, D, torch.Generator().manual_seed(seed), torch.float64)
        encoder, bias, decoder, centre = slow.train(rows, *parts, **options)
        assert (encoder - parts[0]).abs().max() > 0.05, "it has learned something"
        for a, b in (
            (mine.encoder[i], encoder),
            (mine.bias[i], bias),
            (mine.decoder[i], decoder),
            (mine.centre[i], centre),
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        found = mine.only(i).codes(x.flatten(0, 1)[None])[0].reshape(N, HEADS).tolist()
        assert found == slow.codes(x, encoder, bias, centre)


def test_training_lowers_the_loss_and_rows_keep_norm_one(x):
    found = train(x.flatten(0, 1)[None], [torch.Generator().manual_seed(0)], n_features=24, epochs=200, lr=1e-2)
    assert found.loss[-1, 0, 0] < 0.7 * found.loss[0, 0, 0]
    for rows in (found.encoder, found.decoder):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1], dtype=rows.dtype))


def test_a_row_without_an_active_feature_has_code_0():
    found = train(torch.zeros(1, 3, 4), [torch.Generator().manual_seed(0)], n_features=5, epochs=1)
    found.bias.fill_(-1)
    assert found.codes(torch.zeros(1, 3, 4)).tolist() == [[0, 0, 0]]


def test_per_head_trains_each_head_alone(x):
    params = SaeCircuitsParams(sae="per_head", n_features=8, epochs=5, seeds=2, train_examples=N)
    both = train_and_code(x, params, 0)
    alone = train_and_code(x[:, :1], params, 0)
    np.testing.assert_array_equal(both.codes[:, :, :1], alone.codes)
    assert both.trained_on.all()


def test_seeds_trained_together_are_the_seeds_trained_alone(x):
    many = train_and_code(x, SaeCircuitsParams(n_features=8, epochs=30, seeds=3), 0)
    one = train_and_code(x, SaeCircuitsParams(n_features=8, epochs=30, seeds=1), 0)
    np.testing.assert_array_equal(many.codes[0], one.codes[0])
    assert not (many.codes[0] == many.codes[1]).all()
    assert (many.trained_on.sum(axis=1) == 10).all()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_node_and_edge_scores_equal_sets_of_codes(seed, normalise):
    found = random_codes(seed)
    coded = c.Coded.of(found)
    n = N // 2
    np.testing.assert_array_equal(
        c.node(coded, ON[None], OFF[None], normalise=normalise)[0], slow.node(found.tolist(), n, normalise=normalise)
    )
    unique = c.pairs_unique(coded, ON, OFF, normalise=normalise)
    np.testing.assert_array_equal(unique, slow.edge(found.tolist(), n, normalise=normalise))
    np.testing.assert_array_equal(c.edge(unique, ties="first"), slow.edge_count(unique.tolist()))


def test_ties_at_the_cut_share_the_places():
    unique = np.zeros((4, 4))
    unique[0, 1] = unique[1, 0] = 2  # the two certain pairs of four places; the others share what is left
    assert c.edge(unique, top=0.5).sum() == pytest.approx(8)
    assert c.edge(unique)[0] == c.edge(unique)[1] > c.edge(unique)[2] == pytest.approx(c.edge(unique)[3])
    assert c.edge(np.zeros((4, 4))).tolist() == [2, 2, 2, 2]


def test_shares_of_the_examples_add_up_to_the_score():
    coded = c.Coded.of(random_codes())
    for normalise in (False, True):
        shares = c.node_shares(coded, ON, OFF, normalise=normalise).sum(axis=0)
        np.testing.assert_allclose(shares, c.node(coded, ON[None], OFF[None], normalise=normalise)[0])
    np.testing.assert_allclose(
        c.divergence_shares(coded, ON, OFF).sum(axis=0), c.divergence(coded, ON[None], OFF[None])[0]
    )


def test_divergence_is_0_for_equal_and_1_for_disjoint_distributions():
    same, apart = np.arange(N) % 2, POSITIVE.astype(int)
    found = c.divergence(c.Coded.of(np.stack([same, apart], axis=1)), ON[None], OFF[None])[0]
    np.testing.assert_allclose(found, [0, 1], atol=1e-12)


def labelled(found, **params):
    nothing = np.zeros((len(found), N), dtype=bool)
    codes = Codes(found, nothing, np.zeros((len(found), 1, 2)), np.zeros(len(found)))
    return Labelled(codes, POSITIVE, SaeCircuitsParams(**params), 0)


def where_the_assumption_holds():
    """Heads 0 and 1 use codes on positives that they never use on negatives; the others use one or two throughout."""
    rng = np.random.default_rng(0)
    found = rng.integers(0, 2, size=(N, HEADS))
    found[POSITIVE, 0] = 10 + np.arange(N // 2) % 4
    found[POSITIVE, 1] = 20 + np.arange(N // 2) % 3
    return found


def test_heads_are_found_where_the_assumption_holds():
    data, true = labelled(where_the_assumption_holds()[None]), np.array([1, 1, 0, 0, 0])
    for scored in (
        node(data, held_out=False, normalise=False),
        edge(data, held_out=False, nulls=True),
        divergence(data, held_out=False),
    ):
        assert evaluate.auc(scored.score, true) == 1
        np.testing.assert_allclose(np.nanmean(scored.shares, axis=0), scored.score, atol=1e-12)
    for scored in (node(data, held_out=False, normalise=False), divergence(data, held_out=False)):
        assert (scored.null_p[:2] < 0.01).all() and (scored.null_p[2:] > 0.05).all()


def test_the_count_prefers_a_noisy_head_to_a_clear_one_and_the_divergence_does_not():
    clear = POSITIVE.astype(int)  # one code on each side: all there is to know
    noisy = np.random.default_rng(1).permutation(N)  # a code of its own on every example, whatever its label
    data = labelled(np.stack([clear, noisy], axis=1)[None])
    counted, diverged = node(data, held_out=False, normalise=False), divergence(data, held_out=False)
    assert counted.score[1] > counted.score[0], "what the published score does wrong"
    assert counted.null_p[1] > 0.5, "its null says so"
    assert diverged.score[0] > 0.9 and abs(diverged.score[1]) < 1e-9


def test_held_out_counts_no_example_that_was_trained_on():
    found, trained = random_codes()[None], np.zeros((1, N), dtype=bool)
    trained[0, ::3] = True
    data = Labelled(Codes(found, trained, np.zeros((1, 1, 2)), np.zeros(1)), POSITIVE, SaeCircuitsParams(), 0)
    left = ~trained[0]
    expected = slow.node(found[0][left].tolist(), int((left & POSITIVE).sum()))
    np.testing.assert_array_equal(node(data, held_out=True, normalise=False).score, expected)
    trained[0, POSITIVE] = True
    with pytest.raises(InputError, match="lower train_examples"):
        node(data, held_out=True, normalise=False)


@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_ties_half_and_agrees_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    score, true = rng.integers(0, 4, 30).astype(float), rng.random(30) < 0.4
    assert (
        evaluate.auc(score, true) == pytest.approx(slow.auc(score, true)) == pytest.approx(roc_auc_score(true, score))
    )
    judged = evaluate.judged(score, true, n_perm=9)
    assert judged["average_precision"] == pytest.approx(average_precision_score(true, score))
    points = evaluate.curve(score, true)
    area = area_under(np.r_[0, points["fpr"]], np.r_[0, points["tpr"]])
    assert area == pytest.approx(judged["auc"])


def test_the_papers_f1_is_not_f1():
    score, true = np.array([4.0, 3, 2, 1, 0, 0, 0, 0]), np.array([1, 0, 1, 0, 0, 0, 0, 0], dtype=bool)
    found = evaluate.judged(score, true, n_perm=9)
    assert found["f1"] == pytest.approx(0.8)  # three picked, two of them right
    assert found["paper_f1"] == pytest.approx(2 * (5 / 6) / (1 + 5 / 6))
    assert found["f1_threshold"] == 2


def test_published_head_sets_have_the_sizes_of_their_papers():
    sizes = {name: len(references.published(name).heads) for name in references.names()}
    assert sizes["ioi-gpt2-small"] == sizes["ioi-gpt2-small-wang"] == 26
    assert sizes["docstring-attn-only-4l"] == 6 and sizes["greater-than-gpt2-small"] == 9
    heads = references.published("ioi-gpt2-small").heads
    layers = np.array([[layer for _ in range(12)] for layer in range(12)])
    true = np.array([[(layer, head) in heads for head in range(12)] for layer in range(12)])
    assert evaluate.auc(layers, true) == pytest.approx(0.688, abs=5e-4), "the trivial baseline that is known"


def test_a_reference_can_be_a_file_which_becomes_part_of_the_parameters(tmp_path):
    file = tmp_path / "heads.json"
    for text in ('{"0-1": 0.5, "2-3": 0.1}', "[[0, 1], [2, 3]]", '{"heads": ["0-1", "2-3"]}'):
        file.write_text(text)
        params = SaeCircuitsParams(reference=str(file))
        assert params.reference == ((0, 1), (2, 3))
        assert SaeCircuitsParams.model_validate(params.model_dump(mode="json")) == params
    with pytest.raises(InputError, match="ioi-gpt2-small"):
        references.published("ioi-gpt2-smal")
