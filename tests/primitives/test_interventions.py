"""Interventions do what their definitions say, measured against raw PyTorch hooks that know nothing of the workbench.

And they do it the same way in one pass, in chunks, in cached decoding, in padded batches and in any batch order.
"""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.primitives.cases import (
    largest,
    left_padded,
    model,
    n_hooks,
    output_projection,
    prompts,
    raw,
    raw_logits,
    raw_z,
    uniform_z,
    weights,
)
from workbench.errors import CapabilityError, InputError
from workbench.models.capabilities import Capabilities
from workbench.primitives.algebra import visible
from workbench.primitives.capture import capture, names
from workbench.primitives.forward import forward
from workbench.primitives.interventions import (
    Intervention,
    Scope,
    applied,
    mean,
    mean_z,
    patch,
    reinforce,
    resample,
    scale,
    uniform,
    zero,
)

TOKENS = prompts()
LENGTH = TOKENS.shape[1]
PREFILL = 12


def run_of(arch, tokens=None, **options):
    return capture(model(arch), prompts(seed=1) if tokens is None else tokens, names(model(arch), "z"), **options)


def logits_with(arch, interventions, tokens=TOKENS, mask=None):
    m = model(arch)
    with applied(m, interventions, attention_mask=mask):
        return forward(m, tokens, attention_mask=mask).logits


def every_kind(arch, **where):
    """One intervention of each kind on a head of the middle layer and one of the first."""
    heads, run = [(1, 2), (0, 1)], run_of(arch)
    return {
        "zero": zero(heads, **where),
        "scale": scale(heads, 0.3, **where),
        "reinforce": reinforce(heads, 3.0, **where),
        "mean": mean(heads, mean_z(run), **where),
        "patch": patch(heads, run, **where),
        "resample": resample(heads, run, [1, 0], **where),
        "uniform": uniform(heads, **where),
    }


KINDS = ("zero", "scale", "reinforce", "mean", "patch", "resample", "uniform")


# --- nothing changes where nothing should ---------------------------------------------------------------------------


@contextmanager
def untouched(arch):
    """The model has the same weights, hooks and logits after the block as before it."""
    m = model(arch)
    clean, hooks, parameters = forward(m, TOKENS).logits, n_hooks(m), weights(m)
    yield clean
    assert n_hooks(m) == hooks
    assert all(torch.equal(parameters[name], p) for name, p in weights(m).items())
    assert torch.equal(forward(m, TOKENS).logits, clean)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gptj", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_identity_changes_no_bit(arch, dtype):
    m = model(arch, dtype)
    clean = forward(m, TOKENS).logits
    own = capture(m, TOKENS, names(m, "z"))
    every = [(layer, head) for layer in range(3) for head in range(4)]
    for identity in (
        [scale(every, 1.0)],
        [patch(every, own)],
        [resample(every, own, range(2))],
        [scale(every, 2.0), reinforce(every, 0.5)],
        [zero(every), patch(every, own)],
        [zero(every, scope=Scope.DECODE), uniform(every, scope=Scope.DECODE)],
        [zero(every, positions=[LENGTH]), uniform(every, positions=[LENGTH])],
        [],
    ):
        with applied(m, identity):
            assert torch.equal(forward(m, TOKENS).logits, clean)


@given(
    heads=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1),
    positions=st.none() | st.lists(st.integers(0, LENGTH - 1), max_size=4),
    scope=st.sampled_from(Scope),
)
@settings(max_examples=15, deadline=None)
def test_identities_hold_for_any_heads_positions_and_scope(heads, positions, scope):
    m, where = model("gpt2"), {"positions": positions, "scope": scope}
    clean = forward(m, TOKENS).logits
    with applied(m, [scale(heads, 1, **where), patch(heads, run_of("gpt2", TOKENS), **where)]):
        assert torch.equal(forward(m, TOKENS).logits, clean)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gptj"])
def test_the_model_is_the_same_afterwards_whatever_happened(arch):
    with untouched(arch) as clean:
        for intervention in every_kind(arch).values():
            assert largest(logits_with(arch, [intervention]), clean) > 1e-3
        with pytest.raises(ZeroDivisionError), applied(model(arch), list(every_kind(arch).values())):
            forward(model(arch), TOKENS)
            raise ZeroDivisionError
        with applied(model(arch), [zero([(0, 0)]), uniform([(1, 1)])]):
            pass  # no forward pass: nothing to complain about


# --- each kind is its definition ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch", ["gpt2", "llama", "neox", "qwen3", "olmo2", "gemma2", "gptj", "opt", "bloom", "gptoss"]
)
def test_zeroing_a_head_is_zeroing_the_input_of_the_output_projection(arch):
    def by_hand(z, seen):
        z[:, :, 2] = 0
        return z

    with raw_z(raw(arch), 1, by_hand):
        reference = raw_logits(arch, TOKENS)
    assert largest(logits_with(arch, [zero([(1, 2)])]), reference) < 1e-4
    assert largest(reference, raw_logits(arch, TOKENS)) > 1e-2


@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt", "olmo2"])
def test_zeroing_all_heads_of_a_layer_leaves_only_the_bias_of_the_output_projection(arch):
    def bias_alone(module, args, output):
        bias = getattr(module, "bias", None)
        return torch.zeros_like(output) if bias is None else bias.expand_as(output)

    handle = output_projection(raw(arch), 1).register_forward_hook(bias_alone)
    try:
        reference = raw_logits(arch, TOKENS)
    finally:
        handle.remove()
    assert largest(logits_with(arch, [zero([(1, head) for head in range(4)])]), reference) < 1e-4


@pytest.mark.parametrize(
    "arch", ["gpt2", "llama", "mistral", "gemma2", "neox", "qwen3", "olmo2", "gptj", "opt", "bloom", "gptoss"]
)
@pytest.mark.parametrize("layer", [0, 1])  # gemma2 and gpt-oss slide in layer 0 only
@pytest.mark.parametrize("padded", [False, True])
def test_uniform_is_the_mean_of_the_visible_values(arch, layer, padded):
    tokens, mask = TOKENS, None
    real = torch.ones_like(TOKENS, dtype=torch.bool)
    if padded:
        tokens, mask, _ = left_padded(TOKENS, [0, 5])
        real = mask.bool()
    heads = [0, 2]
    with raw_z(raw(arch), layer, uniform_z(arch, layer, heads, mask)):
        reference = raw_logits(arch, tokens, mask)
    edited = logits_with(arch, [uniform([(layer, head) for head in heads])], tokens, mask)
    assert largest(edited[real], reference[real]) < 1e-4
    assert largest(edited[real], raw_logits(arch, tokens, mask)[real]) > 1e-2


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gptj"])
def test_uniform_touches_single_query_heads_and_single_rows(arch):
    m = model(arch)
    clean = capture(m, TOKENS, ["blocks.1.attn.hook_pattern"])["blocks.1.attn.hook_pattern"]
    with applied(m, [uniform([(1, 1)], positions=[4, 9])]):
        pattern = capture(m, TOKENS, ["blocks.1.attn.hook_pattern"])["blocks.1.attn.hook_pattern"]
    for position in range(LENGTH):
        for head in range(4):
            if head == 1 and position in (4, 9):
                even = torch.zeros(LENGTH)
                even[: position + 1] = 1 / (position + 1)
                assert torch.allclose(pattern[:, head, position], even.expand(2, -1), atol=1e-6)
            else:
                assert torch.equal(pattern[:, head, position], clean[:, head, position])


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_keys_are_known_by_their_score_however_the_mask_was_added(model_dtype):
    lowest = torch.finfo(model_dtype).min
    for dtype in {model_dtype, torch.float32}:  # some attentions compute scores in float32
        scores = torch.tensor([-300.0, lowest, 0.0, lowest / 256**0.5, 40.0, -torch.inf]).to(dtype)
        assert visible(scores, model_dtype).tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize("arch", ["llama", "gptj"])
def test_scale_and_reinforce_multiply_the_head(arch):
    def by_hand(z, seen):
        z[:, 3:5, 1] *= 2.5
        return z

    with raw_z(raw(arch), 2, by_hand):
        reference = raw_logits(arch, TOKENS)
    for make in (scale, reinforce):
        assert largest(logits_with(arch, [make([(2, 1)], 2.5, positions=[3, 4])]), reference) < 1e-4


@pytest.mark.parametrize("arch", ["llama", "olmo2"])
def test_patch_and_resample_bring_in_the_other_run(arch):
    other, run = prompts(seed=1), run_of(arch)
    z = run["blocks.1.attn.hook_z"]
    for intervention, source in (
        (patch([(1, 3)], run, positions=[7, 8]), z),
        (patch([(1, 3)], {1: z[:1]}, positions=[7, 8]), z[:1]),
        (patch([(1, 3)], {1: z[:, 7:9]}, positions=[7, 8], source_positions=[7, 8]), z),
        (resample([(1, 3)], run, [1, 1], positions=[7, 8]), z[[1, 1]]),
    ):

        def by_hand(y, seen, source=source):
            y[:, 7:9, 3] = source[:, 7:9, 3]
            return y

        with raw_z(raw(arch), 1, by_hand):
            reference = raw_logits(arch, TOKENS)
        assert largest(logits_with(arch, [intervention]), reference) < 1e-4
    # putting every head of a run in, and the residual stream before it, is that run
    everything = patch([(layer, head) for layer in range(3) for head in range(4)], run)
    assert largest(logits_with(arch, [everything], other), forward(model(arch), other).logits) == 0


def test_mean_is_over_real_tokens_and_is_put_in_by_head_or_by_position():
    run = run_of("llama")
    z = run["blocks.1.attn.hook_z"]
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, 15:] = 0
    assert torch.allclose(mean_z(run)[1], z.mean((0, 1)), atol=1e-6)
    kept = torch.cat([z[0], z[1, :15]]).mean(0)
    assert torch.allclose(mean_z(run, attention_mask=mask)[1], kept, atol=1e-6)
    by_position = mean_z(run, attention_mask=mask, per_position=True)[1]
    assert torch.allclose(by_position[:15], z[:, :15].mean(0), atol=1e-6)
    assert torch.allclose(by_position[15:], z[0, 15:], atol=1e-6)
    with pytest.raises(InputError, match="left-padded"):
        mean_z(run, attention_mask=mask.flip(1), per_position=True)
    for values, by_hand in ((mean_z(run), z.mean((0, 1))[3]), (mean_z(run, per_position=True), z.mean(0)[:, 3])):

        def put(y, seen, by_hand=by_hand):
            y[:, :, 3] = by_hand
            return y

        with raw_z(raw("llama"), 1, put):
            reference = raw_logits("llama", TOKENS)
        assert largest(logits_with("llama", [mean([(1, 3)], values)]), reference) < 1e-4


def test_in_bfloat16_a_mean_is_taken_in_float32_and_rounded_once():
    m = model("llama", torch.bfloat16)
    run = capture(m, prompts(8, 64), names(m, "z"))
    average = mean_z(run)[1]
    assert average.dtype == torch.float32
    assert torch.allclose(average, run["blocks.1.attn.hook_z"].double().mean((0, 1)).float(), atol=1e-6)
    with applied(m, [mean([(1, 2)], {1: average})]):
        z = capture(m, TOKENS, ["blocks.1.attn.hook_z"])["blocks.1.attn.hook_z"]
    assert torch.equal(z[:, :, 2], average[2].bfloat16().expand(2, LENGTH, -1))
    with applied(m, [uniform([(1, 2)])]):
        v = capture(m, TOKENS, ["blocks.1.attn.hook_v", "blocks.1.attn.hook_z"])
    even = v["blocks.1.attn.hook_v"][:, :, 1].float().cumsum(1) / torch.arange(1, LENGTH + 1)[:, None]
    assert torch.allclose(v["blocks.1.attn.hook_z"][:, :, 2].float(), even, rtol=0.02, atol=0.02)


# --- composition ----------------------------------------------------------------------------------------------------


def test_interventions_act_in_the_order_given_and_uniform_first():
    values = mean_z(run_of("gpt2"))
    head = [(1, 2)]
    doubled = {layer: 2 * value for layer, value in values.items()}
    after = logits_with("gpt2", [mean(head, values), scale(head, 2.0)])
    before = logits_with("gpt2", [scale(head, 2.0), mean(head, values)])
    assert largest(after, logits_with("gpt2", [mean(head, doubled)])) < 1e-5
    assert largest(before, logits_with("gpt2", [mean(head, values)])) == 0
    for order in ([uniform(head), scale(head, 0.5)], [scale(head, 0.5), uniform(head)]):

        def by_hand(z, seen):
            z = uniform_z("gpt2", 1, [2])(z, seen)
            z[:, :, 2] *= 0.5
            return z

        with raw_z(raw("gpt2"), 1, by_hand):
            assert largest(logits_with("gpt2", order), raw_logits("gpt2", TOKENS)) < 1e-4


def test_nested_blocks_add_up():
    m = model("llama")
    with applied(m, [zero([(0, 1)])]), applied(m, [zero([(2, 3)])]):
        nested = forward(m, TOKENS).logits
    assert torch.equal(nested, logits_with("llama", [zero([(0, 1), (2, 3)])]))


# --- the same in every way of running -------------------------------------------------------------------------------


def cached(arch, interventions, tokens=TOKENS, mask=None):
    """Teacher-forced: prefill in two chunks, then one token at a time. Logits of every position."""
    m, cache, pieces = model(arch), None, []
    steps = [(0, 7), (7, PREFILL), *((i, i + 1) for i in range(PREFILL, LENGTH))]
    with applied(m, interventions, attention_mask=None if mask is None else mask[:, :PREFILL]) as phase:
        for start, end in steps:
            phase.name, phase.offset = ("prefill" if end <= PREFILL else "decode"), start
            part = None if mask is None else mask[:, :end]
            out = forward(m, tokens[:, start:end], attention_mask=part, cache=cache, use_cache=True)
            cache = out.cache
            pieces.append(out.logits)
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "gptj"])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_decoding_equals_one_full_pass(arch, kind):
    assert largest(cached(arch, [every_kind(arch)[kind]]), logits_with(arch, [every_kind(arch)[kind]])) < 1e-4


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("kind", ["zero", "reinforce", "patch", "uniform"])
def test_scopes_and_positions_mean_the_same_rows(arch, kind):
    for where, rows in (
        ({"scope": "prefill"}, range(PREFILL)),
        ({"scope": "decode"}, range(PREFILL, LENGTH)),
        ({"positions": [5, 14]}, [5, 14]),
        ({"positions": [5, 14], "scope": "decode"}, [14]),
    ):
        reference = logits_with(arch, [every_kind(arch, positions=list(rows))[kind]])
        assert largest(cached(arch, [every_kind(arch, **where)[kind]]), reference) < 1e-4


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "opt"])
@pytest.mark.parametrize("kind", ["zero", "reinforce", "mean", "uniform"])
@pytest.mark.parametrize("positions", [None, [0, 3, 11, 13]])
def test_a_padded_batch_equals_its_rows_alone(arch, kind, positions):
    tokens, mask, alone = left_padded(prompts(3, LENGTH), [0, 4, 6])
    intervention = every_kind(arch, positions=positions)[kind]
    together = [logits_with(arch, [intervention], tokens, mask)]
    if positions is None or arch != "opt":
        together.append(cached(arch, [intervention], tokens, mask))
    for row, single in enumerate(alone):
        reference = logits_with(arch, [intervention], single)[0]
        for logits in together:
            assert largest(logits[row, -len(single[0]) :], reference) < 1e-4


@pytest.mark.parametrize("arch", ["gpt2", "gptj", "gemma2"])
def test_the_order_of_the_batch_does_not_matter(arch):
    tokens, mask, _ = left_padded(prompts(3, LENGTH), [0, 4, 6])
    run = run_of(arch, tokens, attention_mask=mask)
    order = [2, 0, 1]
    shuffled = {name: z[order] for name, z in run.items()}
    for make in (
        lambda run: zero([(1, 1)]),
        lambda run: uniform([(1, 1)], positions=[2, 3]),
        lambda run: mean([(1, 1)], mean_z(run)),
        lambda run: patch([(1, 1)], run, positions=[9]),
    ):
        straight = logits_with(arch, [make(run)], tokens, mask)[order]
        assert largest(logits_with(arch, [make(shuffled)], tokens[order], mask[order]), straight) < 1e-5


# --- what does not fit is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: zero([(3, 0)]), r"\(3, 0\).*0 to 2.*0 to 3"),
        (lambda: zero([(0, 4)]), r"\(0, 4\)"),
        (lambda: uniform([(-1, 0)]), r"\(-1, 0\)"),
        (lambda: zero([]), "at least one head"),
        (lambda: zero([5]), r"\(layer, head\), not 5"),
        (lambda: zero([(0, 1.5)]), "1.5"),
        (lambda: zero([(0, 1)], scope="generation"), "'generation'.*prefill, decode, all"),
        (lambda: zero([(0, 1)], positions=[-1]), "-1"),
        (lambda: zero([(0, 1)], positions=["a"]), "integers"),
        (lambda: scale([(0, 1)], float("nan")), "nan"),
        (lambda: Intervention("double", ((0, 1),)), "'double'.*zero"),
        (lambda: mean([(2, 1)], {0: torch.zeros(4, 8)}), "layer 2"),
        (lambda: mean([(0, 1)], {0: torch.zeros(4, 7)}), r"d_head 8.*\[4, 7\]"),
        (lambda: mean([(0, 1)], {0: torch.zeros(5, 4, 8)}), "position 5.*5 positions"),
        (lambda: patch([(0, 1)], {0: torch.zeros(20, 4, 8)}), r"\[batch, pos.*\[20, 4, 8\]"),
        (lambda: patch([(0, 1)], {"blocks.0.hook_resid_pre": torch.zeros(2, 20, 4, 8)}), "hook_resid_pre"),
        (lambda: patch([(0, 1)], {0: torch.zeros(3, 20, 4, 8)}), "3 examples.*batch of 2"),
        (lambda: patch([(0, 1)], {0: torch.zeros(2, 9, 4, 8)}), "position 9.*9 positions"),
        (lambda: patch([(0, 1)], {0: torch.zeros(2, 9, 4, 8)}, source_positions=[1]), "names 1 positions.*has 9"),
        (lambda: patch([(0, 1)], {0: torch.zeros(2, 1, 4, 8)}, source_positions=[6], positions=[7]), "position 7"),
        (lambda: resample([(0, 1)], {0: torch.zeros(2, 20, 4, 8)}, [0, 2]), "example 2.*2 examples"),
        (lambda: resample([(0, 1)], {0: torch.zeros(2, 20, 4, 8)}, [0, 1, 1]), "3 examples.*batch of 2"),
    ],
)
def test_heads_and_values_that_do_not_fit_are_named(make, says):
    before = n_hooks(model("gpt2"))
    with pytest.raises(InputError, match=says):
        logits_with("gpt2", [make()])
    assert n_hooks(model("gpt2")) == before


def test_a_mask_of_another_batch_is_refused():
    with (
        pytest.raises(InputError, match=r"3 rows.*batch of 2"),
        applied(model("gpt2"), [zero([(0, 0)], positions=[1])], attention_mask=torch.ones(3, 20, dtype=torch.long)),
    ):
        forward(model("gpt2"), TOKENS)


def test_a_run_shorter_than_the_prompt_serves_the_positions_it_has():
    short = {1: run_of("gpt2")["blocks.1.attn.hook_z"][:, :9]}
    full = {1: run_of("gpt2")["blocks.1.attn.hook_z"]}
    reference = logits_with("gpt2", [patch([(1, 2)], full, positions=[2, 8])])
    assert torch.equal(logits_with("gpt2", [patch([(1, 2)], short, positions=[2, 8])]), reference)


def test_z_edits_need_heads_that_can_be_ablated():
    m = model("deepseek_v3")
    for intervention in (zero([(0, 1)]), scale([(0, 1)], 2.0), reinforce([(0, 1)])):
        with pytest.raises(CapabilityError, match=r"deepseek_v3.*head_ablation_ok"), applied(m, [intervention]):
            pytest.fail("the block must not run")
    with applied(m, [uniform([(1, 1)])]):  # acts on the pattern, which is sound there
        pattern = capture(m, TOKENS, ["blocks.1.attn.hook_pattern"])["blocks.1.attn.hook_pattern"]
    assert torch.allclose(pattern[:, 1, 9, :10], torch.tensor(0.1))


@pytest.mark.parametrize("arch", ["bloom", "gptoss"])
def test_a_zero_query_is_refused_where_it_would_not_attend_uniformly(arch, monkeypatch):
    """ALiBi bends it and a sink takes a share; the check on the resulting pattern must see both."""
    m = model(arch)
    flags = {**m.capabilities.to_dict(), "pattern_edit_is_causal": False}
    monkeypatch.setattr(m, "capabilities", Capabilities.from_dict(flags))
    with untouched(arch):
        with pytest.raises(CapabilityError, match=f"layer 1 of 'tiny-{arch}'"):
            logits_with(arch, [uniform([(1, 2)])])
        logits_with(arch, [uniform([(1, 2)], positions=[LENGTH])])  # no row is changed, none is checked


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "neox", "mistral"])
def test_both_ways_to_uniform_attention_agree_where_both_are_exact(arch, monkeypatch):
    m = model(arch)
    by_pattern = logits_with(arch, [uniform([(1, 2), (0, 0)], positions=[4, 15])])
    flags = {**m.capabilities.to_dict(), "pattern_edit_is_causal": False}
    monkeypatch.setattr(m, "capabilities", Capabilities.from_dict(flags))
    assert largest(logits_with(arch, [uniform([(1, 2), (0, 0)], positions=[4, 15])]), by_pattern) < 1e-4


@pytest.mark.parametrize("arch", ["olmo2", "qwen3"])
def test_a_zero_query_is_refused_before_a_query_norm_which_mixes_heads(arch, monkeypatch):
    m = model(arch)
    flags = {**m.capabilities.to_dict(), "pattern_edit_is_causal": False}
    monkeypatch.setattr(m, "capabilities", Capabilities.from_dict(flags))
    with pytest.raises(CapabilityError, match="q_norm"):
        logits_with(arch, [uniform([(1, 2)])])


def test_a_dead_hook_point_is_an_error_even_if_the_probe_missed_it(monkeypatch):
    m = model("gptj")
    monkeypatch.setitem(m.bridge.blocks[1].attn.o._modules, "hook_in", torch.nn.Identity())
    with pytest.raises(CapabilityError, match=r"never fires 'blocks\.1\.attn\.hook_z'"):
        logits_with("gptj", [zero([(1, 0)])])


def test_an_intervention_describes_itself_in_json():
    record = zero([(1, 2), (1, 2), (0, 3)], scope="decode", positions=(4,)).describe()
    assert json.loads(json.dumps(record)) == {
        "kind": "zero", "heads": [[1, 2], [0, 3]], "scope": "decode", "positions": [4], "alpha": None, "source": False,
    }  # fmt: skip
