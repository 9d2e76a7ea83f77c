"""`forward` is the Hugging Face model, whatever the padding, the pieces and the architecture."""

from __future__ import annotations

import pytest
import torch
from transformer_lens import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, Lfm2Config, OpenAIGPTConfig, Phi3Config

from tests.primitives.cases import largest, left_padded, model, n_hooks, prompts, raw_logits
from tests.tiny import ARCHITECTURES, tiny, tiny_tokenizer
from workbench.errors import CapabilityError, InputError
from workbench.models import load_model
from workbench.primitives.forward import forward, n_padding


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_the_plain_model(arch):
    tokens = prompts()
    assert largest(forward(model(arch), tokens).logits, raw_logits(arch, tokens)) < 1e-4


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_chunks_and_single_steps_equal_one_pass(arch):
    tokens, m = prompts(), model(arch)
    whole = forward(m, tokens).logits
    out = forward(m, tokens[:, :9], use_cache=True)
    pieces = [out.logits]
    for start, end in ((9, 17), (17, 18), (18, 19), (19, 20)):
        pieces.append(forward(m, tokens[:, start:end], cache=out.cache).logits)
    assert out.cache.get_seq_length() == 20
    assert largest(torch.cat(pieces, 1), whole) < 1e-4


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_left_padded_rows_equal_the_rows_alone_in_prefill_and_in_decoding(arch):
    tokens, mask, alone = left_padded(prompts(3), [0, 3, 7])
    m = model(arch)
    whole = forward(m, tokens, attention_mask=mask).logits
    out = forward(m, tokens[:, :12], attention_mask=mask[:, :12], use_cache=True)
    for end in range(13, 21):
        last = forward(m, tokens[:, end - 1 : end], attention_mask=mask[:, :end], cache=out.cache).logits
    for row, single in enumerate(alone):
        reference = forward(m, single).logits[0]
        assert largest(whole[row, -len(single[0]) :], reference) < 1e-4
        assert largest(last[row, -1], reference[-1]) < 1e-4


def test_right_padding_changes_nothing_before_it():
    tokens = prompts()
    mask = torch.ones_like(tokens)
    mask[1, 15:] = 0
    for arch in ("gpt2", "llama"):
        m = model(arch)
        masked = forward(m, tokens, attention_mask=mask.bool()).logits
        assert largest(masked[1, :15], forward(m, tokens[1:, :15]).logits[0]) < 1e-4


def test_logits_are_kept_where_asked():
    tokens, m = prompts(), model("llama")
    whole = forward(m, tokens).logits
    assert largest(forward(m, tokens, logits_to_keep=3).logits, whole[:, -3:]) < 1e-5
    assert largest(forward(m, tokens, logits_to_keep=torch.tensor([4, 0])).logits, whole[:, [4, 0]]) < 1e-5


def test_no_gradient_unless_asked():
    m, tokens = model("gpt2"), prompts()
    seen = []
    with m.bridge.hooks(fwd_hooks=[("hook_embed", lambda x, hook: seen.append(x.requires_grad_(True)) or x)]):
        assert not forward(m, tokens).logits.requires_grad
        assert forward(m, tokens, grad=True).logits.requires_grad


def test_padding_before_the_first_token_is_counted():
    mask = torch.tensor([[0, 0, 1, 0, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    assert n_padding(mask).tolist() == [2, 0, 4]


@pytest.mark.parametrize(
    ("tokens", "mask", "names"),
    [
        (torch.zeros(5, dtype=torch.long), None, r"\[5\]"),
        (torch.zeros(1, 0, dtype=torch.long), None, r"\[1, 0\]"),
        (torch.zeros(1, 5), None, "float32"),
        (torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 4, dtype=torch.long), r"\[2, 5\].*\[2, 4\]"),
        (torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5), "float32"),
        (torch.zeros(1, 257, dtype=torch.long), None, "257.*256"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tokens, mask, names):
    with pytest.raises(InputError, match=names):
        forward(model("gpt2"), tokens, attention_mask=mask)


def test_a_mask_must_cover_the_cache_too():
    m, tokens = model("llama"), prompts()
    cache = forward(m, tokens[:, :8], use_cache=True).cache
    with pytest.raises(InputError, match=r"\[2, 20\]"):
        forward(m, tokens[:, 8:], cache=cache, attention_mask=torch.ones(2, 12, dtype=torch.long))


def test_a_native_bridge_runs_without_a_cache_and_refuses_one():
    config = TransformerBridgeConfig(
        d_model=32, d_head=8, n_heads=4, n_layers=2, n_ctx=64, d_vocab=64, d_mlp=64, act_fn="relu",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    bridge = TransformerBridge.boot_native(config).eval()
    m = load_model(bridge)
    own_hooks = n_hooks(m)
    tokens, mask, alone = left_padded(prompts(2), [0, 4])
    assert torch.equal(forward(m, tokens, logits_to_keep=2).logits, bridge(tokens)[:, -2:])
    padded = forward(m, tokens, attention_mask=mask).logits
    for row, single in enumerate(alone):
        assert largest(padded[row, -len(single[0]) :], forward(m, single).logits[0]) < 1e-4
    with pytest.raises(CapabilityError, match="native"):
        forward(m, tokens, use_cache=True)
    assert n_hooks(m) == own_hooks


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_padded_rows_in_float64_are_right_or_refused(arch: str):
    """Llama's softmax is float32 whatever the model is, and the float64 mask overflows there."""
    double = tiny(arch, dtype=torch.float64)
    tokens = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    if arch == "llama":
        with pytest.raises(CapabilityError, match="float64 mask of padded rows"):
            forward(double, tokens, attention_mask=mask)
        return
    alone = forward(double, tokens[1:, 5:]).logits
    torch.testing.assert_close(
        forward(double, tokens, attention_mask=mask).logits[1:, 5:], alone, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (OpenAIGPTConfig(vocab_size=64, n_layer=1, n_head=4, n_embd=32, n_positions=64), "it takes none"),
        (
            Lfm2Config(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                layer_types=["conv", "full_attention"],
            ),
            "1 of its 2 layers carry a state",
        ),
    ],
    ids=["openai-gpt", "lfm2"],
)
def test_what_needs_more_than_keys_and_values_is_not_decoded_from_them(config, why):
    """The first would have read every generated token as a prompt of its own, the second is an error of its library."""
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    hf.config.architectures = [type(hf).__name__]
    model = load_model(hf.eval(), tokenizer=tiny_tokenizer(), name="m", device="cpu", probe=False)
    tokens = torch.tensor([[5, 6, 7]])
    assert forward(model, tokens).logits.isfinite().all()
    with pytest.raises(CapabilityError, match=f"cannot generate from cached keys and values, because {why}"):
        forward(model, tokens, use_cache=True)


def test_a_rotary_embedding_that_changes_with_length_is_not_mixed():
    """Pieces of a text of 40 tokens gave logits up to 6 off, a short row beside a long one up to 5: silently."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 16}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    sizes: dict = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 64, "pad_token_id": 2, "max_position_embeddings": 256}
    config = Phi3Config(rope_parameters=rope, original_max_position_embeddings=16, **sizes)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    hf.config.architectures = ["Phi3ForCausalLM"]
    m = load_model(hf.eval(), tokenizer=tiny_tokenizer(), name="m", device="cpu", probe=False)
    tokens = torch.randint(4, 64, (1, 40), generator=torch.Generator().manual_seed(0))
    short = forward(m, tokens[:, :10], use_cache=True)
    assert forward(m, tokens[:, 10:16], cache=short.cache).logits.isfinite().all()  # 16 tokens are still short
    with pytest.raises(CapabilityError, match=r"longrope.*more than 16 tokens.*a text of 40.*keep to 16"):
        forward(m, tokens[:, 16:], cache=short.cache)
    long = forward(m, tokens, use_cache=True)  # in one pass, and on from there
    assert forward(m, tokens[:, :1], cache=long.cache).logits.isfinite().all()
    padded, mask, _ = left_padded(tokens.expand(2, -1), [0, 30])
    with pytest.raises(CapabilityError, match="beside a shorter one"):
        forward(m, padded, attention_mask=mask)
