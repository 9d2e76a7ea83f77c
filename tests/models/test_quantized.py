"""Weights in 8 and 4 bits: the numbers are the quantised model's own, and what cannot be exact says so."""

from __future__ import annotations

import pytest
import torch

from tests.analyses import examples
from tests.tiny import tiny_hf, tiny_tokenizer
from workbench.analyses import base
from workbench.errors import CapabilityError, InputError
from workbench.models import estimate_memory, load_model
from workbench.primitives.sweep import all_heads, sweep

pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra (quantized)")
KINDS = ("8bit", "4bit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """A Llama whose matrices are wide enough to be quantised."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("quantised")
    LlamaForCausalLM(config).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def raw_model(folder, kind: str):
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    options = (
        {"load_in_8bit": True}
        if kind == "8bit"
        else {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.float32,
        }
    )
    return LlamaForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(**options),
        device_map={"": "cpu"},
        attn_implementation="eager",
        dtype=torch.float32,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_bridge_computes_what_the_quantised_model_computes(folder, kind: str):
    model = load_model(folder, quantize=kind)
    tokens = torch.randint(4, 60, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = raw_model(folder, kind)(tokens).logits
        assert torch.equal(model.bridge(tokens), expected)
        exact = load_model(folder).bridge(tokens)
    assert float((expected - exact).abs().max()) > 1e-4  # it is quantised
    assert model.fingerprint == load_model(folder, probe=False).fingerprint  # of what is stored
    assert model.config_digest != load_model(folder, probe=False).config_digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_runs_full_forwards_because_a_fork_is_measured_inexact(folder, kind: str):
    model = load_model(folder, quantize=kind)
    assert "fork_exact" in model.capabilities.missing
    tokens = torch.randint(4, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    found = sweep(model, tokens, units=all_heads(model), edit="zero", metric=lambda logits, rows: logits[:, 5])
    assert found.method == "hooks" and "not exact" in found.notes[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["retrieval", "ships", "activation_patching", "path_patching", "attribution"])
def test_an_analysis_gives_numbers_or_one_sentence(folder, kind: str, name: str):
    analysis, model = base.get(name), load_model(folder, quantize=kind)
    params = analysis.params_type.model_validate(examples.QUICK.get(name, {}))
    data = examples.dataset(model, analysis.data_kind)
    if name in ("path_patching", "attribution"):
        with pytest.raises(CapabilityError) as caught:
            analysis.run(model, data, params, 0)
        assert "\n" not in str(caught.value)
    else:
        assert len(analysis.run(model, data, params, 0).heads) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_close_to_what_is_held(folder, kind: str):
    inner = load_model(folder, quantize=kind, probe=False).bridge.original_model
    held = sum(p.numel() * p.element_size() for p in inner.parameters())
    assert held <= estimate_memory(folder, quantize=kind).weights <= 1.15 * held


def test_a_quantised_model_in_memory_is_refused(folder):
    with pytest.raises(InputError, match="give its directory and quantize='8bit'"):
        load_model(raw_model(folder, "4bit"), tokenizer=None)


def test_quantising_a_model_in_memory_is_refused():
    with pytest.raises(InputError, match="in memory already"):
        load_model(tiny_hf("llama"), quantize="8bit")
    with pytest.raises(InputError, match="no kind of quantisation"):
        load_model(tiny_hf("llama"), quantize="3bit")


def test_joint_query_key_value_matrices_cannot_be_split_once_quantised(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer()
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=128, n_layer=1, n_head=4)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="in one matrix, which cannot be split"):
        load_model(tmp_path, quantize="8bit")
