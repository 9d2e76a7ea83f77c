"""A model over several devices: what is refused, where its parts live, and that it computes what one device computes.

No GPU is needed: the devices are make-believe (`tests/simulated_devices.py`), all else is the real thing, from
transformers reading a directory by device_map to accelerate's moves between modules.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.simulated_devices import device, simulated_devices
from tests.tiny import tiny, tiny_hf
from tests.tiny_split import device_map, split_tiny, split_tiny_vision, spread
from workbench.cli import main
from workbench.errors import InputError
from workbench.experiments.run import prepare
from workbench.experiments.spec import build
from workbench.models import estimate, load_model, placement
from workbench.primitives.forward import forward

TOKENS = torch.randint(4, 64, (2, 9), generator=torch.Generator().manual_seed(0))
SPEC = {
    "name": "split",
    "analysis": "ablation",
    "model": {"path": "organism:multitask", "device_map": "balanced"},
    "data": {"task": "ioi", "n": 2},
}


@pytest.fixture
def devices() -> Iterator[None]:
    with simulated_devices():
        yield


@pytest.fixture
def two_gpus(monkeypatch) -> None:
    """A machine with 3 GiB free on each of two GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**30, 8 * 2**30))


# ---- what is asked for


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "cuda", "device_map": "balanced"}, "both say where the model goes"),
        ({"device_map": "balansed"}, "Did you mean 'balanced'"),
        ({"device_map": {}}, "spreads nothing"),
        ({"device_map": 2}, "spreads nothing"),
        (
            {"device_map": {"transformer": 0, "lm_head": "cpu"}},
            "'lm_head' on 'cpu', but hooks and weights must be on GPUs",
        ),
        ({"device_map": {"": "disk"}}, "on 'disk'"),
        ({"device_map": {"": "mps"}}, "'mps', which is no GPU"),
        ({"device_map": {"": True}}, "which is no GPU"),
        ({"device_map": {"": 7}}, "'cuda:7' is not on this machine"),
    ],
)
def test_a_map_that_cannot_be_followed_is_refused(two_gpus, saved, asked, message):
    with pytest.raises(InputError, match=message):
        load_model(saved("gpt2"), **asked)


def test_without_gpus_there_is_nothing_to_spread_over(monkeypatch, saved):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="this machine has none; leave it out"):
        load_model(saved("gpt2"), device_map="auto")


def test_one_gpu_takes_everything(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert placement.place("auto", "balanced") == placement.Placement((torch.device("cuda:0"),))


def test_the_room_is_that_of_all_gpus_together(two_gpus):
    placed = placement.place("auto", "balanced")
    assert placed.device_map == "balanced" and placed.room() == 6 * 2**30
    estimate.require_room(5 * 2**30, placed.room(), name="it", dtype="bfloat16", where=placed.text)
    with pytest.raises(InputError, match=r"take 7\.0 GiB in bfloat16, and a group of 2 GPUs has 6\.0"):
        estimate.require_room(7 * 2**30, placed.room(), name="it", dtype="bfloat16", where=placed.text)
    one = placement.place("auto", {"a": 1, "b": "cuda:1"})
    assert one.devices == (torch.device("cuda:1"),) and one.room() == 3 * 2**30


def test_an_object_in_memory_is_not_spread():
    with pytest.raises(InputError, match="in memory already"):
        load_model(tiny_hf("gpt2"), device_map="balanced")


def test_a_spread_object_is_not_moved(devices):
    with pytest.raises(InputError, match="would move a model that accelerate spread"):
        load_model(spread(tiny_hf("llama")), device="cpu", name="it")


def test_a_map_that_tears_tied_weights_apart_is_refused(devices):
    hf = spread(tiny_hf("gpt2"))
    hf.hf_device_map["lm_head"] = str(device(1))
    with pytest.raises(InputError, match="'lm_head' on lazy:1, but its weights, shared with another module"):
        load_model(hf, name="it")


def test_what_accelerate_left_on_the_disk_is_refused(devices):
    hf = spread(tiny_hf("llama"))
    hf.hf_device_map["lm_head"] = "disk"
    with pytest.raises(InputError, match="does not fit: accelerate left 'lm_head' on 'disk'"):
        load_model(hf, name="it")


def test_a_state_space_model_is_refused(devices):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, tie_word_embeddings=False)
    with pytest.raises(InputError, match="'mamba' is a state-space model"):
        load_model(spread(MambaForCausalLM(config)), name="mamba", probe=False)


# ---- specs and the command line


def test_a_spec_takes_it_and_a_device_of_its_own_overrides_it():
    spec = build(SPEC)
    assigned = build({**SPEC, "model": "organism:multitask"}, overrides=["model.device_map=balanced"])
    assert assigned.config() == spec.config()
    ready = prepare(spec)
    assert ready.device == "cuda"
    on_one = build(SPEC, overrides=[("model.device_map", None), ("model.device", "cuda:1")])
    assert prepare(on_one).run_key == ready.run_key, "how many GPUs is no part of what a run is"
    elsewhere = prepare(spec, device="cpu")
    assert (elsewhere.spec.model.device_map, elsewhere.device) == (None, "cpu")
    assert elsewhere.run_key != ready.run_key


@pytest.mark.parametrize("assigned", ["model.device_map=balansed", "model.device_map={lm_head: cpu}"])
def test_a_spec_with_a_wrong_map_is_refused_by_its_key(assigned):
    with pytest.raises(InputError, match=r"model\.device_map"):
        build(SPEC, overrides=[assigned])


def test_the_probe_takes_it(capsys):
    assert main(["probe", "organism:multitask", "--device", "cpu", "--device-map", "auto"]) == 2
    assert "both say where the model goes" in capsys.readouterr().err


# ---- where the parts are


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_directory_is_read_onto_its_devices(devices, saved, monkeypatch, arch):
    directory, wanted = saved(arch), device_map(tiny_hf(arch))
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the simulation is of one thread
    on_one = load_model(directory, device="cpu")
    three = tuple(device(k) for k in range(3))
    monkeypatch.setattr("workbench.models.load.place", lambda *_: placement.Placement(three, wanted))
    model = load_model(directory, device_map=wanted, dtype="float32")
    assert model.device == device(0)
    assert model.describe()["device"] == "lazy:0 + lazy:1 + lazy:2" and "lazy:1" in repr(model)
    assert (model.fingerprint, model.n_parameters) == (on_one.fingerprint, on_one.n_parameters)
    assert model.capabilities == on_one.capabilities
    got, want = (forward(m, TOKENS).logits for m in (model, on_one))
    assert got.device == device(0)
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=0)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "gemma2", "llava-gqa"])
def test_every_activation_of_a_block_is_on_its_device(devices, arch):
    sees = arch.startswith("llava")
    model = (split_tiny_vision if sees else split_tiny)(arch, probe=False)
    seen: dict[str, torch.device] = {}
    gated = ("attn_in", "q_input", "k_input", "v_input", "mlp_in", "hook_result")
    names = [name for name in model.bridge.hook_dict if name.startswith("blocks.") and not name.endswith(gated)]
    hooks = [(name, lambda value, hook, name=name: seen.update({name: value.device})) for name in names]
    with model.bridge.hooks(fwd_hooks=hooks):
        forward(model, TOKENS)
    assert {name.split(".")[1] for name in seen} == {"0", "1", "2"} and len(seen) > 60
    assert [name for name, at in seen.items() if at != device(2 if name.startswith("blocks.2.") else 1)] == []


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_one_device_has_no_hooks_of_ours(arch):
    model = tiny(arch, probe=False)
    assert not any(block._forward_pre_hooks for block in model.bridge.blocks)


def test_a_bridge_that_is_loaded_again_brings_its_inputs_home_once(devices):
    model = split_tiny("llama", probe=False)
    again = load_model(model.bridge, probe=False)
    assert [len(block._forward_pre_hooks) for block in again.bridge.blocks] == [1, 1, 1]
