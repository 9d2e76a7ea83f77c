"""Captured activations are the ones asked for, own their memory, and attention rows need no full pattern."""

from __future__ import annotations

import pytest
import torch

from tests.primitives.cases import largest, left_padded, model, n_hooks, prompts
from workbench.errors import CapabilityError, InputError
from workbench.primitives.capture import capture, names, q_k_rows
from workbench.primitives.forward import forward
from workbench.primitives.hooks import hooked
from workbench.primitives.interventions import applied, uniform, zero

TOKENS = prompts()
SHAPES = {"z": (2, 20, 4, 8), "v": (2, 20, 2, 8), "pattern": (2, 4, 20, 20), "resid_pre": (2, 20, 32)}


def nbytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def test_names_cover_the_layers_and_unknown_ones_are_refused():
    m = model("llama")
    assert names(m, "z") == [f"blocks.{i}.attn.hook_z" for i in range(3)]
    assert names(m, "resid_pre", layers=[2]) == ["blocks.2.hook_resid_pre"]
    with pytest.raises(InputError, match=r"'patern'.*Did you mean 'pattern'"):
        names(m, "patern")
    with pytest.raises(InputError, match="Layer 3"):
        names(m, "z", layers=[3])


@pytest.mark.parametrize("what", SHAPES)
def test_captured_is_what_the_model_computes_keyed_as_asked(what):
    m = model("llama")
    kept = capture(m, TOKENS, names(m, what))
    _, cache = m.bridge.run_with_cache(TOKENS, names_filter=names(m, what))
    assert list(kept) == names(m, what)
    for name, tensor in kept.items():
        assert tuple(tensor.shape) == SHAPES[what]
        assert largest(tensor, cache[name]) < 1e-6
        assert not tensor.requires_grad


@pytest.mark.parametrize(
    ("positions", "columns"),
    [(slice(-3, None), [17, 18, 19]), ([5, 2, -1], [5, 2, 19]), (torch.tensor([0]), [0]), (-1, [19]), (7, [7])],
)
def test_positions_are_cut_inside_the_hook_and_nothing_larger_is_kept(positions, columns):
    m = model("llama")
    for what, axis in (("z", 1), ("resid_pre", 1), ("pattern", 2), ("rot_q", 1)):
        (name,) = names(m, what, layers=[1])
        whole = capture(m, TOKENS, [name])[name]
        part = capture(m, TOKENS, [name], positions=positions)[name]
        assert torch.equal(part, whole.index_select(axis, torch.tensor(columns)))
        assert nbytes(part) == part.numel() * part.element_size()


def test_points_that_declare_their_position_axis_are_cut_there():
    m = model("qwen3")  # the query norm works on [batch, head, pos, d_head]
    name = "blocks.0.attn.hook_q_normed"
    whole = capture(m, TOKENS, [name])[name]
    assert torch.equal(capture(m, TOKENS, [name], positions=[3])[name], whole[:, :, 3:4])


def test_what_was_captured_survives_later_writes():
    m = model("gpt2")
    name = "blocks.1.hook_resid_pre"
    kept = capture(m, TOKENS, [name])[name]
    copy = kept.clone()
    with hooked(m, [(name, lambda x, hook: x.zero_())]):
        forward(m, TOKENS)
    assert torch.equal(kept, copy)


def test_logits_are_complete_when_they_are_what_is_captured():
    m = model("gpt2")
    kept = capture(m, TOKENS, ["unembed.hook_out"])["unembed.hook_out"]
    assert torch.equal(kept, forward(m, TOKENS).logits)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_stop_at_layer_stops_and_leaves_the_model_as_it_was(arch):
    m = model(arch)
    clean, before, ran = forward(m, TOKENS).logits, n_hooks(m), []
    with hooked(m, [(n, lambda x, hook: ran.append(hook.layer())) for n in names(m, "resid_pre")], must_fire=False):
        kept = capture(m, TOKENS, names(m, "z", layers=[0]), stop_at_layer=1)
    assert ran == [0, 1], "layer 1 is entered, where the pass ends"
    assert torch.equal(kept["blocks.0.attn.hook_z"], capture(m, TOKENS, names(m, "z"))["blocks.0.attn.hook_z"])
    assert n_hooks(m) == before
    assert torch.equal(forward(m, TOKENS).logits, clean)
    with pytest.raises(InputError, match=r"blocks\.1.*never fired"):
        capture(m, TOKENS, names(m, "z"), stop_at_layer=1)
    with pytest.raises(InputError, match="stop_at_layer must be 0 to 3"):
        capture(m, TOKENS, names(m, "z"), stop_at_layer=4)
    assert n_hooks(m) == before


def test_a_padded_batch_gives_the_activations_of_its_rows():
    m = model("gemma2")
    tokens, mask, alone = left_padded(TOKENS, [0, 6])
    kept = capture(m, tokens, names(m, "z"), attention_mask=mask)
    for row, single in enumerate(alone):
        for name, z in capture(m, single, names(m, "z")).items():
            assert largest(kept[name][row, -len(single[0]) :], z[0]) < 1e-4


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "mistral", "gptoss", "gptj", "deepseek_v3"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chunk", [4, 256])
def test_rows_equal_the_rows_of_the_full_pattern(arch, padded, chunk):
    m, mask, tokens = model(arch), None, TOKENS
    if padded:
        tokens, mask, _ = left_padded(TOKENS, [0, 6])
    wanted = [17, 3, 9, 10, 11, 12, 13, 17]
    full = capture(m, tokens, names(m, "pattern"), attention_mask=mask)
    rows = q_k_rows(m, tokens, wanted, attention_mask=mask, chunk=chunk)
    for layer, name in enumerate(full):
        assert rows[layer].shape == (2, 4, 8, 20)
        for i, position in enumerate(wanted):
            real = slice(None) if mask is None else mask[:, position].bool()  # rows of padding mean nothing
            assert largest(rows[layer][real, :, i], full[name][real, :, position]) < 1e-5


@pytest.mark.parametrize("arch", ["gpt2", "gemma2", "mistral"])
def test_score_rows_equal_the_scores_and_hide_what_is_masked(arch):
    m = model(arch)
    full = capture(m, TOKENS, ["blocks.1.attn.hook_attn_scores"])["blocks.1.attn.hook_attn_scores"]
    pattern = capture(m, TOKENS, ["blocks.1.attn.hook_pattern"])["blocks.1.attn.hook_pattern"]
    rows = q_k_rows(m, TOKENS, [15, 2], layers=[1], kind="scores")[1]
    for i, position in enumerate([15, 2]):
        shown = ~rows[:, :, i].isinf()
        assert torch.equal(shown, pattern[:, :, position] > 0)
        assert largest(rows[:, :, i][shown], full[:, :, position][shown]) < 1e-4


def test_no_pattern_larger_than_a_chunk_ever_exists_and_no_layer_too_many():
    m, seen = model("llama"), []
    look = [(name, lambda p, hook: seen.append((hook.layer(), p.shape[2]))) for name in names(m, "pattern")]
    before = n_hooks(m)
    with hooked(m, look, must_fire=False, copy=False):
        rows = q_k_rows(m, TOKENS, [18], layers=[1], chunk=5)
    assert {layer for layer, _ in seen} == {0, 1}
    assert max(n_rows for _, n_rows in seen) == 5
    assert [n_rows for layer, n_rows in seen if layer == 1] == [5, 5, 5, 3, 1]
    assert list(rows) == [1]
    assert n_hooks(m) == before


def test_rows_are_those_of_the_intervened_model_inside_applied():
    m = model("gpt2")
    ablation = [zero([(0, 1)], positions=[4, 12]), uniform([(1, 2)], positions=[15])]
    with applied(m, ablation):
        full = capture(m, TOKENS, names(m, "pattern"))
    with applied(m, ablation) as phase:
        rows = q_k_rows(m, TOKENS, [13, 15], chunk=4, phase=phase)
    for layer, name in enumerate(full):
        assert largest(rows[layer], full[name][:, :, [13, 15]]) < 1e-5
    assert torch.allclose(rows[1][:, 2, 1, :16], torch.tensor(1 / 16))


def test_what_cannot_be_answered_is_refused():
    m = model("gptj")
    with pytest.raises(CapabilityError, match="pattern_edit_is_causal"):
        q_k_rows(m, TOKENS, [3], kind="scores")
    for bad, says in (([20], "20"), ([-21], "-21"), ([], "non-empty"), ([1.5], "integers")):
        with pytest.raises(InputError, match=says):
            q_k_rows(m, TOKENS, bad)
    with pytest.raises(InputError, match="'logits'"):
        q_k_rows(m, TOKENS, [3], kind="logits")
    with pytest.raises(InputError, match="at least one token"):
        q_k_rows(m, TOKENS, [3], chunk=0)
