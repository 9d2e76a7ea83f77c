"""Greedy decoding: prefix sharing, chunks and batches change nothing but the time."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny, tiny_hf, tiny_tokenizer
from workbench.errors import CapabilityError, InputError
from workbench.models import load_model
from workbench.primitives import decode as decoding
from workbench.primitives.decode import decode, fork, prefill
from workbench.primitives.hooks import hooked
from workbench.primitives.interventions import Scope, uniform, zero


def prompts_with_shared_prefixes(seed=0):
    g = torch.Generator().manual_seed(seed)
    trunk = torch.randint(4, 64, (40,), generator=g).tolist()
    tails = torch.randint(4, 64, (6, 12), generator=g).tolist()
    made = [[0, *trunk[:at], *tail] for at, tail in zip((0, 10, 10, 25, 40, 40), tails, strict=True)]
    return [*made, made[2][:30]]


def run(model, prompts, *, steps=6, stop=lambda token: False, interventions=(), **options):
    out = {}
    for batch in prefill(model, prompts, interventions=interventions, **options):
        texts = decode(model, batch, max_new_tokens=steps, stop=stop, interventions=interventions)
        out.update(zip(batch.index, texts, strict=True))
    return [out[i] for i in range(len(prompts))]


def slow(hf, prompt, steps):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(hf(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("arch", ["gpt2", "llama", "mistral", "gemma2", "neox", "gptoss", "opt"])
def test_equals_plain_greedy_decoding(arch):
    model, hf = tiny(arch), tiny_hf(arch)
    prompts = prompts_with_shared_prefixes()
    expected = [slow(hf, prompt, 6) for prompt in prompts]
    assert run(model, prompts) == expected
    assert run(model, prompts, budget=4096, batch_size=2) == expected  # chunks of very few tokens


def test_every_shared_prefix_is_computed_once(monkeypatch):
    model = tiny("llama")
    prompts = prompts_with_shared_prefixes()
    seen = []
    real = decoding.forward

    def counting(model, tokens, **options):
        seen.append(tokens.shape[1])
        return real(model, tokens, **options)

    monkeypatch.setattr(decoding, "forward", counting)
    for _ in prefill(model, prompts):
        pass
    nodes = {tuple(prompt[:n]) for prompt in prompts for n in range(1, len(prompt))}  # the trie, last tokens left out
    assert sum(seen) == len(nodes)


def test_forking_leaves_the_original_as_it_was():
    model = tiny("gpt2")
    (batch,) = prefill(model, [[0, 5, 6, 7, 8]])
    before = batch.cache.layers[0].keys.clone()
    first = decode(model, batch, max_new_tokens=4, stop=lambda token: False)
    assert decode(model, batch, max_new_tokens=4, stop=lambda token: False) == first
    assert torch.equal(batch.cache.layers[0].keys, before)
    assert fork(batch.cache, length=2).get_seq_length() == 2
    assert batch.cache.get_seq_length() == 4


def test_stopping_keeps_the_stop_token_and_leaves_other_rows_running():
    model = tiny("gpt2")
    prompts = [p for p in prompts_with_shared_prefixes() if len(p) == 53]
    free = run(model, prompts, steps=8)
    stop_at = free[0][2]
    stopped = run(model, prompts, steps=8, stop=lambda token: token == stop_at)
    for ended, whole in zip(stopped, free, strict=True):
        cut = whole.index(stop_at) + 1 if stop_at in whole else len(whole)
        assert ended == whole[:cut]


@pytest.mark.parametrize("scope", ["decode", "all", "prefill"])
@pytest.mark.parametrize("kind", [zero, uniform])
def test_interventions_in_cached_decoding_equal_full_forwards(scope, kind):
    """`decode` scope begins with the last prompt token, whose row predicts the first new one."""
    from workbench.primitives.forward import forward
    from workbench.primitives.interventions import applied

    model = tiny("llama")
    prompt = prompts_with_shared_prefixes()[3]
    heads = [(1, 0), (2, 3)]
    fast = run(model, [prompt], steps=5, interventions=[kind(heads, scope=Scope(scope))], budget=8192)[0]
    ids = list(prompt)
    for _ in range(5):
        last = len(prompt) - 1
        positions = {"decode": tuple(range(last, len(ids))), "prefill": tuple(range(last)), "all": None}[scope]
        with applied(model, [kind(heads, positions=positions)]):
            logits = forward(model, torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    assert fast == ids[len(prompt) :]


def test_hooks_see_single_rows_over_all_keys_so_far():
    model = tiny("llama")
    (batch,) = prefill(model, [[0, 5, 6, 7, 8]])
    shapes = []
    hooks = [("blocks.0.attn.hook_pattern", lambda pattern, hook: shapes.append(tuple(pattern.shape)))]
    decode(model, batch, max_new_tokens=3, stop=lambda token: False, hooks=hooks)
    assert shapes == [(1, 4, 1, 5), (1, 4, 1, 6), (1, 4, 1, 7)]


def test_no_pattern_of_the_whole_prompt_exists_during_chunked_prefill():
    model = tiny("llama")
    sizes = []
    hooks = [("blocks.0.attn.hook_pattern", lambda pattern, hook: sizes.append(pattern.numel()))]
    budget = 64 * 2**10
    with hooked(model, hooks, copy=False):
        for _ in prefill(model, [list(range(4, 64)) * 4], budget=budget):
            pass
    assert max(sizes) * 4 * 4 <= budget


def test_decoding_ends_when_learned_positions_are_used_up():
    model = tiny("gpt2")
    (generated,) = run(model, [[0] + [5] * 253], steps=20)
    assert len(generated) == 3  # rows 253, 254, 255 of 256


def test_a_longer_neighbour_does_not_end_an_answer_early():
    g = torch.Generator().manual_seed(0)
    for arch in ("gpt2", "llama"):
        model = tiny(arch, probe=False)
        prompts = [torch.randint(4, 64, (n,), generator=g).tolist() for n in (238, 252)]
        alone = [run(model, [prompt], steps=20)[0] for prompt in prompts]
        assert [len(answer) for answer in alone] == [19, 5]
        assert run(model, prompts, steps=20, new_tokens=20) == alone
        with pytest.raises(InputError, match="new_tokens=20"):
            run(model, prompts, steps=20)


@pytest.mark.parametrize(("part", "value"), [("norm", float("nan")), ("unembedding", float("inf"))])
def test_a_broken_checkpoint_says_nothing(part, value):
    """Every head of it scored 0 as a retrieval head, status ok."""
    hf = tiny_hf("llama")
    with torch.no_grad():
        (hf.model.norm.weight if part == "norm" else hf.lm_head.weight[5])[3] = value
    model = load_model(hf, tokenizer=tiny_tokenizer(), name="broken", device="cpu", probe=False)
    with pytest.raises(CapabilityError, match=r"logits of 'broken' are not finite.*float32"):
        run(model, [[0, 5, 6, 7]])


def test_unusable_prompts_are_refused():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="Prompt 0 has 1 token"):
        next(prefill(model, [[5]]))
    with pytest.raises(InputError, match="Prompt 0 has 300 tokens but"):
        next(prefill(model, [[5] * 300]))
