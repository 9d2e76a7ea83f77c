"""A local load never touches the network, nothing is ever installed, and an unreachable hub fails in seconds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from tests.tiny import BOS, EOS, PAD, tiny_tokenizer
from workbench.errors import InputError
from workbench.models import load_model
from workbench.models.offline import no_network


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses anything tried to resolve or to connect to."""
    tried: list[str] = []

    def refuse(*args, **kwargs):
        tried.append(str(args))
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Command lines anything tried to start."""
    tried: list[str] = []

    def refuse(self, args, *rest, **kwargs):
        tried.append(str(args))
        raise OSError("no processes in this test")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    return tried


def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_local_directory_needs_no_network(saved, no_sockets, monkeypatch: pytest.MonkeyPatch):
    online(monkeypatch)
    load_model(saved())
    assert no_sockets == []
    assert constants.HF_HUB_OFFLINE is False and "HF_HUB_OFFLINE" not in os.environ  # a hub load would still work


def test_the_users_own_setting_comes_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch):
    online(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(RuntimeError), no_network():
        assert constants.HF_HUB_OFFLINE is True and os.environ["HF_HUB_OFFLINE"] == "1"
        raise RuntimeError
    assert constants.HF_HUB_OFFLINE is False and os.environ["HF_HUB_OFFLINE"] == "0"


def test_unreachable_hub_is_one_sentence_within_seconds(no_sockets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    online(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(InputError, match=r"No model 'no-such-org/no-model'.*cannot be reached.*local directory"):
        load_model("no-such-org/no-model")
    assert time.monotonic() - start < 5
    assert no_sockets


def test_offline_mode_does_not_even_try(no_sockets, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE=1"):
        load_model("gpt2", revision="main")
    assert no_sockets == []


class FakeHub:
    """What `HfApi` answers about one repository."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self):
        return self

    def model_info(self, name, *, revision, timeout):
        assert timeout <= 10
        if isinstance(self.answer, Exception):
            raise self.answer
        files = [SimpleNamespace(rfilename=file) for file in self.answer]
        return SimpleNamespace(sha="c0ffee", siblings=files)


def test_hub_model_records_the_commit_it_was(saved, no_sockets, monkeypatch: pytest.MonkeyPatch):
    online(monkeypatch)
    directory = saved()
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub(["config.json", "model.safetensors"]))
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = load_model("org/model", revision="main")
    assert (model.name, model.revision) == ("org/model", "c0ffee") and no_sockets == []
    assert asked["revision"] == "c0ffee" and not any(p.endswith((".bin", ".py")) for p in asked["allow_patterns"])


def test_hub_errors_are_one_sentence_each(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import errors

    online(monkeypatch)
    response = not_found()
    for answer, message in (
        (errors.RepositoryNotFoundError("x", response=response), "the hub has none of that name"),
        (errors.GatedRepoError("x", response=response), "is gated"),
        (errors.RevisionNotFoundError("x", response=response), "no revision 'v9'"),
        (["config.json", "pytorch_model.bin"], "no safetensors weights"),
    ):
        monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub(answer))
        with pytest.raises(InputError, match=message):
            load_model("org/model", revision="v9")


def not_found():
    """A response object of whichever HTTP library huggingface_hub uses."""
    import importlib

    module = type(huggingface_hub.utils.get_session()).__module__.split(".")[0]
    http = importlib.import_module(module)
    return http.Response(404, request=http.Request("GET", "https://hub.invalid"))


def test_unreachable_hub_falls_back_to_a_complete_cached_copy(
    saved, no_sockets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    online(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, commit = tmp_path / "hub" / "models--org--model", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(saved(), repository / "snapshots" / commit)
    model = load_model("org/model")
    assert (model.name, model.revision) == ("org/model", commit) and no_sockets
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no complete copy in the hub cache"):
        load_model("org/model")


def tiny_llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    config = LlavaConfig(
        text_config=LlamaConfig(**shape, num_key_value_heads=2, vocab_size=64, **special),
        vision_config=CLIPVisionConfig(**shape, image_size=16, patch_size=8, projection_dim=32),
        image_token_index=63,
        image_seq_length=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    hf.config.architectures = [type(hf).__name__]
    return hf


def test_vision_language_model_loads_and_nothing_is_installed(tmp_path: Path, no_sockets, no_processes):
    """Its processor cannot be read here, which is where TransformerLens would run pip in the live interpreter."""
    tiny_llava().save_pretrained(tmp_path / "llava")
    tiny_tokenizer().save_pretrained(tmp_path / "llava")
    with pytest.warns(UserWarning, match=r"No processor .* pass processor="):
        model = load_model(tmp_path / "llava")
    assert model.processor is None and no_processes == [] and no_sockets == []
    assert model.capabilities.missing == () and model.n_kv_heads == 2

    from transformer_lens.model_bridge.sources.transformers import helpers

    assert helpers._ensure_torchvision() is False and no_processes == []
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[BOS, 63, 63, 63, 63, 9, 54]])
    with torch.no_grad():
        assert torch.allclose(
            model.bridge(ids, pixel_values=pixels), tiny_llava()(ids, pixel_values=pixels).logits, atol=1e-5
        )


def test_a_processor_is_taken_as_given():
    marker = object()
    model = load_model(tiny_llava(), tokenizer=tiny_tokenizer(), processor=marker, name="llava")
    assert model.processor is marker and model.bridge.processor is marker
