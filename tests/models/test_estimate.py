"""The memory estimate, against what a loaded model really holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_hf, tiny_tokenizer
from workbench.errors import InputError
from workbench.models import estimate_memory, load_model
from workbench.models.estimate import require_room


def held(model) -> int:
    storages = {s.data_ptr(): s.nbytes() for s in (p.untyped_storage() for p in model.bridge.parameters())}
    return sum(storages.values())


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_the_bytes_that_the_loaded_model_holds(arch: str, dtype: str, tmp_path: Path):
    tiny_hf(arch).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = estimate_memory(tmp_path, dtype=dtype)
    model = load_model(tmp_path, dtype=dtype, probe=False)
    assert found.weights == held(model)
    assert found.n_parameters == model.n_parameters


def test_copies_of_joint_matrices_come_on_top(tmp_path: Path):
    """TransformerLens keeps GPT-NeoX's joint matrix and a copy of each of its three parts."""
    tiny_hf("neox").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found, model = estimate_memory(tmp_path), load_model(tmp_path, probe=False)
    copies = 3 * model.n_layers * (model.d_model + 1) * model.d_model * 4
    assert held(model) == found.weights + copies


def test_the_cache_is_what_a_forward_fills(tmp_path: Path):
    import torch

    tiny_hf("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = estimate_memory(tmp_path, batch=2, tokens=9)
    tokens = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layers = tiny_hf("llama")(tokens, use_cache=True).past_key_values.layers
    assert found.cache == sum(x.numel() * x.element_size() for layer in layers for x in (layer.keys, layer.values))
    assert found.pattern == 2 * 2 * 4 * 9 * 9 * 4
    assert found.total == found.weights + found.cache + found.pattern + found.logits


def test_nothing_heavy_is_imported_to_estimate():
    import subprocess

    code = (
        "import sys; from workbench.models import estimate_memory; estimate_memory('organism:multitask');"
        "print([m for m in ('torch', 'transformers', 'transformer_lens') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "flot32"}, "Did you mean 'float32'"),
        ({"quantize": "2bit"}, "'8bit', '4bit'"),
        ({"batch": 0}, "batch must be a whole number"),
        ({"tokens": True}, "tokens must be a whole number"),
    ],
)
def test_unusable_options_are_one_sentence(options, words):
    with pytest.raises(InputError, match=words) as caught:
        estimate_memory("organism:multitask", **options)
    assert "\n" not in str(caught.value)


def test_a_configuration_without_dimensions_is_a_sentence(tmp_path: Path):
    tiny_hf("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="names no num_hidden_layers"):
        estimate_memory(tmp_path)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny_hf("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr("workbench.models.placement.free_bytes", lambda where: 1000)
    monkeypatch.setattr("workbench.models.load.read_weights", lambda *a, **k: pytest.fail("read"))
    with pytest.raises(InputError, match=r"in float32, and cpu has 0\.0 GiB available; use dtype='bfloat16'"):
        load_model(tmp_path)


def test_what_to_do_depends_on_what_was_tried():
    with pytest.raises(InputError, match="quantize='8bit'"):
        require_room(2**33, 2**30, name="m", dtype="bfloat16", where="cuda:0")
