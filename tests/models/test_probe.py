"""The probe says of every architecture what measurement by hand says, and leaves no trace."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from transformer_lens import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import MambaConfig, MambaForCausalLM

from tests.tiny import tiny, tiny_hf
from workbench.errors import CapabilityError, InputError
from workbench.models import Capabilities, load_model
from workbench.models.capabilities import FLAGS, MEANING
from workbench.models.probe import probe
from workbench.models.probe_cache import cache_file, cached_probe

# axis, ablation, pattern edit, rows, heads sum, fork; specs/transformer_lens.md A4
EXPECTED = {
    "gpt2": ("YYYYYY", "mha", "resid_mid"),
    "llama": ("YYYYYY", "gqa", "resid_mid"),
    "neox": ("YYYYYY", "mha", "resid_post"),
    "qwen2": ("YYYYYY", "gqa", "resid_mid"),
    "qwen3": ("YYYYYY", "gqa", "resid_mid"),
    "mistral": ("YYYYYY", "gqa+sliding", "resid_mid"),
    "bloom": ("YYYYYY", "mha+alibi", "resid_mid"),
    "gemma2": ("YYYYnn", "gqa+sliding+softcap", ""),
    "olmo2": ("YYYYnn", "gqa", ""),
    "opt": ("YYnYYY", "mha", "resid_mid"),
    "gptj": ("YYnYYY", "mha", "resid_post"),
    "gptoss": ("YYYnYY", "gqa+sinks+sliding", "resid_mid"),
    "deepseek_v3": ("nnYYYn", "mla", ""),
}


def flags(capabilities: Capabilities) -> str:
    return "".join("Y" if getattr(capabilities, flag) else "n" for flag in FLAGS)


@pytest.mark.parametrize("arch", EXPECTED)
def test_measures_what_the_architecture_does(arch: str):
    model = tiny(arch, probe=False)
    before = {name: tensor.clone() for name, tensor in model.bridge.state_dict().items()}
    model.bridge(torch.arange(4, 8)[None])  # TransformerLens wires hooks of its own at the first forward
    hooks = _hooks(model)
    torch.manual_seed(7)
    random_state = torch.get_rng_state()
    start = time.process_time()
    found = probe(model)
    assert time.process_time() - start < 2
    assert (flags(found), found.attention_kind, found.fork_point) == EXPECTED[arch]
    for flag in found.missing:
        assert any(note.startswith(f"{flag}: ") for note in found.notes), f"no reason given for {flag}"
    assert torch.equal(torch.get_rng_state(), random_state)
    after = model.bridge.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert _hooks(model) == hooks


def _hooks(model) -> tuple[dict[str, int], int]:
    """Hooks on the bridge's points (TransformerLens keeps some of its own on OPT) and on PyTorch modules."""
    points = {name: len(point.fwd_hooks) + len(point.bwd_hooks) for name, point in model.bridge.hook_dict.items()}
    return points, sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.bridge.original_model.modules())


@pytest.mark.parametrize("arch", ["gpt2", "mistral", "neox", "gemma2", "gptoss", "deepseek_v3"])
def test_half_precision_is_judged_alike(arch: str):
    found = probe(tiny(arch, probe=False, dtype=torch.bfloat16))
    assert flags(found) == EXPECTED[arch][0]


@pytest.mark.parametrize(("arch", "sequential"), [("llama", True), ("gptj", False)])
def test_fork_point_holds_for_the_model_without_any_bridge(arch: str, sequential: bool):
    """Adding -W_O z of head 1 to the residual stream at the fork point is ablating head 1 (raw PyTorch hooks)."""
    hf = tiny_hf(arch)
    block = hf.model.layers[1] if sequential else hf.transformer.h[1]
    projection = block.self_attn.o_proj if sequential else block.attn.out_proj
    tokens = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    kept: dict[str, torch.Tensor] = {}

    def ablate(module, args):
        kept["z"] = args[0].clone()
        x = args[0].clone()
        x[..., 8:16] = 0
        return (x,)

    handle = projection.register_forward_pre_hook(ablate)
    want = hf(tokens).logits
    handle.remove()
    dz = torch.zeros_like(kept["z"])
    dz[..., 8:16] = -kept["z"][..., 8:16]
    delta = dz @ projection.weight.T
    handles = [block.register_forward_hook(lambda module, args, out: _plus(out, delta))]
    if sequential:
        handles.append(block.post_attention_layernorm.register_forward_pre_hook(lambda m, args: (args[0] + delta,)))
    got = hf(tokens).logits
    for handle in handles:
        handle.remove()
    assert (got - want).abs().max() < 1e-4
    assert (hf(tokens).logits - want).abs().max() > 0.1


def _plus(out, delta):
    return (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta


def test_a_head_that_writes_nothing_does_not_confuse_the_probe():
    hf = tiny_hf("gpt2")
    with torch.no_grad():
        hf.transformer.h[0].attn.c_attn.weight[:, 64:] = 0  # v of every head of layer 0
        hf.transformer.h[0].attn.c_attn.bias[64:] = 0
        hf.transformer.h[2].attn.c_proj.weight.zero_()  # and layer 2 writes nothing
    assert flags(load_model(hf, name="silent").capabilities) == "YYYYYY"


def test_native_bridge_is_measured_too():
    shape = {"d_model": 32, "d_head": 8, "n_heads": 4, "n_layers": 2, "n_ctx": 16, "d_vocab": 50, "d_mlp": 64}
    cfg = TransformerBridgeConfig(**shape, act_fn="relu", normalization_type="LN", seed=0, device="cpu")
    model = load_model(TransformerBridge.boot_native(cfg), name="native")
    assert model.hf is None and model.tokenizer is None
    assert flags(model.capabilities) == "YYYYYY"


def test_a_model_without_attention_has_no_capabilities_and_says_so():
    hf = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=8))
    model = load_model(hf, name="mamba")
    assert flags(model.capabilities) == "nnnnnn" and model.capabilities.attention_kind == "none"
    with pytest.raises(CapabilityError, match="no attention heads"):
        model.require("head_ablation_ok")


def test_a_model_that_cannot_run_is_not_assumed_to_work_and_not_remembered(monkeypatch: pytest.MonkeyPatch):
    model = tiny("gpt2", probe=False, seed=11)

    def broken(*args, **kwargs):
        raise RuntimeError("kernel on fire")

    monkeypatch.setattr(type(model.bridge), "forward", broken)
    found = cached_probe(model)
    assert flags(found) == "nnnnnn" and "kernel on fire" in found.notes[0]
    assert not cache_file(model).exists()


def test_refusal_is_one_sentence_with_the_reason():
    model = tiny("gptj")
    model.require("head_axis_ok", "head_ablation_ok")
    with pytest.raises(CapabilityError, match=r"'tiny-gptj' lacks pattern_edit_is_causal .*discarded"):
        model.require("head_axis_ok", "pattern_edit_is_causal")
    with pytest.raises(InputError, match="Did you mean 'fork_exact'"):
        model.require("fork_exacd")


def test_cache_is_keyed_by_configuration_and_survives_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    llama, mistral = tiny("llama"), tiny("mistral")
    assert llama.fingerprint == mistral.fingerprint  # the same tensors; only the configuration differs
    assert cache_file(llama) != cache_file(mistral)
    file = cache_file(llama)
    assert Capabilities.from_dict(json.loads(file.read_text())) == llama.capabilities
    file.write_text(file.read_text().replace('"head_axis_ok": true', '"head_axis_ok": false'))
    assert not tiny("llama").capabilities.head_axis_ok  # read, not measured again
    for damage in ("{", "[]", '{"head_axis_ok": 1}', ""):
        file.write_text(damage)
        assert tiny("llama").capabilities == llama.capabilities
    monkeypatch.setenv("WORKBENCH_CACHE", "/proc/no/such/place")
    assert tiny("llama").capabilities == llama.capabilities


def test_record_round_trips():
    found = Capabilities.none("mla", "all: because")
    assert Capabilities.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert set(MEANING) == set(FLAGS)
    with pytest.raises(ValueError, match="flags"):
        Capabilities.from_dict({**found.to_dict(), "fork_exact": "yes"})


def test_unprobed_model_claims_nothing():
    model = tiny("llama", probe=False)
    with pytest.raises(CapabilityError, match="probe=False"):
        model.require("head_axis_ok")
