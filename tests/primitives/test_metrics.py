"""Metrics obey their laws, per example, and never make a number out of a NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from workbench.errors import InputError
from workbench.primitives.metrics import kl, log_prob, logit_diff, loss, prob, rank

finite = st.floats(-50, 50, width=32)


@st.composite
def rows(draw, n=1):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 9)))
    drawn = [torch.from_numpy(draw(npst.arrays("float32", shape, elements=finite))) for _ in range(n)]
    return drawn[0] if n == 1 else drawn


@given(rows(), finite)
@settings(max_examples=50, deadline=None)
def test_a_constant_added_to_all_logits_changes_nothing(logits, c):
    moved = logits + c
    assert torch.allclose(logit_diff(logits, 0, 1), logit_diff(moved, 0, 1), atol=1e-4)
    assert torch.allclose(log_prob(logits, 1), log_prob(moved, 1), atol=1e-4)
    assert torch.allclose(
        kl(logits, moved, dtype=torch.float64), torch.zeros(len(logits), dtype=torch.float64), atol=1e-3
    )


@given(rows(n=2))
@settings(max_examples=50, deadline=None)
def test_kl_is_not_negative_and_zero_only_between_equals(pair):
    base, other = pair
    assert (kl(base, other) > -1e-4).all()
    assert torch.equal(kl(base, base), torch.zeros(len(base)))


@given(rows())
@settings(max_examples=50, deadline=None)
def test_ranks_and_probabilities_agree(logits):
    batch, vocab = logits.shape
    ranks = torch.stack([rank(logits, token) for token in range(vocab)], 1)
    probs = torch.stack([prob(logits, token) for token in range(vocab)], 1)
    assert torch.allclose(probs.sum(1), torch.ones(batch), atol=1e-5)
    assert (ranks >= 0).all()
    assert (ranks <= vocab - 1).all()
    for row in range(batch):
        order = sorted(range(vocab), key=lambda t: -logits[row, t].item())
        top = logits[row].max()
        n_top = int((logits[row] == top).sum())
        assert ranks[row, order[0]] == n_top - 1, "ties count against the token"
        assert torch.equal(logit_diff(logits, 0, 1), -logit_diff(logits, 1, 0))


def test_values_by_hand():
    logits = torch.tensor([[math.log(1), math.log(2), math.log(5)], [0.0, 0.0, 0.0]])
    assert torch.allclose(prob(logits, 2), torch.tensor([5 / 8, 1 / 3]))
    assert torch.allclose(
        logit_diff(logits, torch.tensor([2, 0]), torch.tensor([0, 1])), torch.tensor([math.log(5), 0])
    )
    assert rank(logits, torch.tensor([2, 0])).tolist() == [0.0, 2.0]
    expected = 1 / 8 * math.log(3 / 8) + 2 / 8 * math.log(6 / 8) + 5 / 8 * math.log(15 / 8)
    assert kl(logits[:1], logits[1:]).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_gives_nan_and_leaves_its_neighbours_alone(bad):
    logits = torch.randn(3, 6)
    broken = logits.clone()
    broken[1, 5] = bad
    for metric in (
        lambda x: logit_diff(x, 0, 1),
        lambda x: kl(logits, x),
        lambda x: kl(x, logits),
        lambda x: prob(x, 0),
        lambda x: log_prob(x, 0),
        lambda x: rank(x, 0),
    ):
        values, clean = metric(broken), metric(logits)
        assert values.isnan().tolist() == [False, True, False]
        assert torch.equal(values[[0, 2]], clean[[0, 2]])


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(4, 1000).bfloat16() * 3
    reference = torch.log_softmax(logits.double(), -1)
    assert log_prob(logits, 3).dtype == torch.float32
    assert torch.allclose(log_prob(logits, 3).double(), reference[:, 3], atol=1e-5)
    assert kl(logits, logits.flip(0), dtype=torch.float64).dtype == torch.float64


def test_loss_is_the_mean_over_predicted_tokens_and_ignores_padding():
    logits, tokens = torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    mask = torch.tensor([[1] * 7, [0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    losses = loss(logits, tokens, attention_mask=mask)
    for row, real in enumerate((slice(0, 7), slice(3, 7), slice(0, 4))):
        alone = torch.nn.functional.cross_entropy(logits[row, real][:-1], tokens[row, real][1:])
        assert losses[row].item() == pytest.approx(alone.item(), abs=1e-5)
    assert loss(logits[:, :1], tokens[:, :1]).isnan().all(), "one token predicts nothing"
    logits[0, 2, 0] = math.nan
    assert loss(logits, tokens).isnan().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: log_prob(x, 6), "0 to 5.*6"),
        (lambda x: log_prob(x, -1), "-1"),
        (lambda x: log_prob(x, torch.tensor([1, 2])), r"\(3\).*\[2\]"),
        (lambda x: log_prob(x, 0.5), "float"),
        (lambda x: log_prob(x[0], 0), r"\[6\]"),
        (lambda x: kl(x, x[:1]), r"\[3, 6\].*\[1, 6\]"),
        (lambda x: loss(x, torch.zeros(3, 6, dtype=torch.long)), r"\[3, 6\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(call, says):
    with pytest.raises(InputError, match=says):
        call(torch.randn(3, 6))
