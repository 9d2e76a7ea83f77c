"""Retrieval scores equal a step-by-step decode with `output_attentions`; the result carries what the paper reports."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference import retrieval as twin
from tests.tiny import tiny, tiny_hf
from workbench.analyses import get
from workbench.analyses.retrieval import RetrievalParams
from workbench.analyses.retrieval.trace import end_tokens
from workbench.errors import InputError
from workbench.tasks.samples import NeedleDataset, NeedleSample

RETRIEVAL = get("retrieval")
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
ARCHES = ["gpt2", "llama", "mistral", "gemma2", "gptoss", "opt"]


@functools.cache
def random_samples(arch, n=8, length=40, steps=10):
    """Random prompts with the needle where some head attends to the very token that the model emits."""
    hf = tiny_hf(arch)
    g = torch.Generator().manual_seed(0)
    made = []
    for attempt in range(400):
        tokens = [0, *torch.randint(4, 64, (length + 5 * (attempt % 2) - 1,), generator=g).tolist()]
        emitted, rows = twin.step_by_step(hf, tokens, max_new_tokens=steps, stops={1})
        copied = [
            int(row.argmax())
            for token, layers in zip(emitted, rows, strict=True)
            for row in (row for heads in layers for row in heads)
            if int(row.argmax()) < len(tokens) and tokens[int(row.argmax())] == token
        ]
        inside = [j for j in copied if 1 <= j < len(tokens) - 3]
        if inside:
            start = min(max(1, inside[0] - 3), len(tokens) - 11)
            needle, question = (start, start + 8), (len(tokens) - 3, len(tokens))
            made.append(NeedleSample(f"s{len(made)}", tuple(tokens), needle, "x", question, f"n{len(made)}"))
        if len(made) == n:
            return tuple(made)
    raise AssertionError(f"{arch} copies too rarely for a test")


def run(model, samples, **params):
    options = {"recall_gate": 0, "max_new_tokens": 10, "causal": None, "controls": 19, "bootstrap": 50, **params}
    return RETRIEVAL(model, NeedleDataset("test", tuple(samples)), RetrievalParams(**options))


def per_sample(samples, hf, formula, stops=frozenset({1}), steps=10):
    rows = []
    for s in samples:
        emitted, attention = twin.step_by_step(hf, s.tokens, max_new_tokens=steps, stops=stops)
        rows.append(formula(s, emitted, attention))
    return np.array(rows)


@pytest.mark.parametrize("arch", ARCHES)
def test_wu_equals_the_step_by_step_reference(arch):
    hf, model = tiny_hf(arch), tiny(arch)
    samples = random_samples(arch)
    expected = per_sample(samples, hf, lambda s, e, a: twin.wu_scores(list(s.tokens), s.needle, e, a))
    result = run(model, samples)
    assert expected.max() > 0
    np.testing.assert_allclose(result.arrays["all_examples"], expected, atol=1e-6)
    np.testing.assert_allclose(result.heads.matrix(), expected.mean(0), atol=1e-6)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_compat_counts_as_the_reference_code(arch):
    hf, model = tiny_hf(arch), tiny(arch)
    samples = random_samples(arch)
    words = [model.tokenizer.decode(list(s.needle_tokens)) for s in samples]  # found again by the token-set search
    samples = [replace(s, needle_text=w) for s, w in zip(samples, words, strict=True)]
    expected = per_sample(samples, hf, lambda s, e, a: twin.compat_scores(list(s.tokens), s.needle, e, a), frozenset())
    result = run(model, samples, variant="wu_compat")
    assert expected.max() > 0
    np.testing.assert_allclose(result.arrays["all_examples"], expected, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHES)
def test_attention_mass_and_qr_equal_full_patterns(arch):
    hf, model = tiny_hf(arch), tiny(arch)
    samples = random_samples(arch)
    mass = per_sample(samples, hf, lambda s, e, a: twin.mass_scores(s.needle, a))
    np.testing.assert_allclose(run(model, samples, variant="attention_mass").arrays["all_examples"], mass, atol=1e-6)
    qr = np.array([twin.question_mass(hf, s.tokens, s.needle, s.question) for s in samples])
    np.testing.assert_allclose(run(model, samples, variant="qr").arrays["all_examples"], qr, atol=1e-6)


@pytest.mark.skipif(not STORIES.exists(), reason="the pretrained model is not beside this checkout")
def test_wu_equals_the_reference_on_a_pretrained_model():
    from transformers import AutoModelForCausalLM

    import workbench as wb

    model = wb.load_model(str(STORIES))
    hf = AutoModelForCausalLM.from_pretrained(STORIES, attn_implementation="eager", dtype=torch.float32).eval()
    prompts = [
        ("Lily had a red kite. One day she went to the park. She loved her red", "kite"),
        ("Tom had a big blue ball. He liked to play with his big blue", "ball"),
        ("Once there was a girl named Mia. Mia was happy. The girl's name was", "Mia"),
    ]
    data = wb.tasks.from_samples(model, [{"prompt": p, "needle": n} for p, n in prompts])
    expected = per_sample(
        data, hf, lambda s, e, a: twin.wu_scores(list(s.tokens), s.needle, e, a), end_tokens(model), steps=8
    )
    assert expected.max() > 0
    result = run(model, data, max_new_tokens=8)
    np.testing.assert_allclose(result.arrays["all_examples"], expected, atol=1e-6)


def test_batch_size_and_order_of_samples_do_not_matter():
    model = tiny("llama")
    samples = random_samples("llama")
    whole = run(model, samples, batch_size=8).arrays["all_examples"]
    np.testing.assert_allclose(run(model, samples, batch_size=1).arrays["all_examples"], whole, atol=1e-6)
    np.testing.assert_allclose(run(model, samples[::-1]).arrays["all_examples"][::-1], whole, atol=1e-6)


def test_the_gate_drops_samples_and_says_so_when_none_is_left():
    model = tiny("llama")
    samples = random_samples("llama")[:3]
    result = run(model, samples, recall_gate=50)  # the needle text "x" is never emitted
    assert result.summary["n_accepted"] == 0
    assert np.isnan(result.heads["score"]).all()
    assert set(result.heads["status"]) == {"no sample passed the recall gate of 50%"}
    assert result.per_example.shape == (0, 3, 4)
    assert not result.tables["samples"]["accepted"].any()


def test_every_score_has_its_uncertainty_and_its_null():
    heads = run(tiny("llama"), random_samples("llama")).heads
    for column in ("stderr", "ci_low", "ci_high", "null_mean", "null_p", "activation_frequency"):
        assert np.isfinite(heads[column]).all(), column
    assert (heads["n"] == 8).all()
    assert (heads["ci_low"] <= heads["score"]).all()
    assert (heads["null_p"] >= 1 / 20).all()
    assert heads.meta["metric"] == "retrieval score"


def test_the_masking_experiment_runs_every_condition_on_every_sample():
    causal = {"ks": [1, 2], "draws": 2, "samples": 4}
    result = run(tiny("llama"), random_samples("llama"), causal=causal, max_new_tokens=3)
    table = result.tables["causal"]
    assert len(table) == 4 * (1 + 2 * 3 * 2 * 2)  # samples x (base + ks x (top + 2 draws) x kinds x scopes)
    assert set(table["group"]) == {"none", "top", "random"}
    curve = result.tables["causal_curve"]
    assert set(curve["n"]) == {4}
    assert result.summary["causal"]["status"] == "ok"


def test_masking_equals_the_same_masks_by_hand():
    """The decode-scoped zero mask of the experiment is what the primitives do when asked directly."""
    from workbench.primitives.decode import decode, prefill
    from workbench.primitives.interventions import Scope, zero

    model = tiny("llama")
    samples = random_samples("llama")[:2]
    causal = {"ks": [2], "draws": 1, "kinds": ["zero"], "scopes": ["decode"]}
    result = run(model, samples, causal=causal, max_new_tokens=4)
    rows = result.tables["causal"].query("group == 'top'").set_index("sample")
    heads = [tuple(map(int, pair.split("-"))) for pair in rows["heads"].iloc[0].split()]
    for s in samples:
        (batch,) = prefill(model, [s.tokens])
        (tokens,) = decode(
            model, batch, max_new_tokens=4, stop=lambda t: t == 1, interventions=[zero(heads, scope=Scope.DECODE)]
        )
        assert rows.loc[s.id, "response"] == model.tokenizer.decode(tokens, skip_special_tokens=True)


def test_an_empty_dataset_is_refused():
    with pytest.raises(InputError, match="at least one needle sample"):
        run(tiny("gpt2"), [])


def test_a_sample_without_a_question_does_not_take_the_null_of_the_others():
    """One such sample made `null_mean` and `null_p` of every head NaN."""
    samples = random_samples("llama")[:3]
    silent = replace(samples[0], id="silent", question=(samples[0].length,) * 2)
    alone, mixed = (run(tiny("llama"), some, variant="qr").heads for some in (samples[1:], [*samples[1:], silent]))
    np.testing.assert_allclose(mixed["score"], alone["score"], atol=1e-6)
    assert np.isfinite(mixed["null_mean"]).all() and np.isfinite(mixed["null_p"]).all()
    none = run(tiny("llama"), [silent], variant="qr", causal={"ks": [1]})
    assert set(none.heads["status"]) == {"no sample has a question behind its needle"}
    assert none.summary["causal"]["status"] == "not run: no sample has a question behind its needle"
