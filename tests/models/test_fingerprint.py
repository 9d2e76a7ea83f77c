"""Same weights and tokenizer, same fingerprint, whatever the path and however they are stored."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_hf, tiny_tokenizer
from workbench.errors import InputError
from workbench.models import fingerprint_directory, load_model
from workbench.models.fingerprint import fingerprint_model


def test_copy_and_shards_have_the_fingerprint_of_the_original(saved, tmp_path: Path):
    directory = saved()
    want = fingerprint_directory(directory)
    assert want.startswith("sha256:") and len(want) == 7 + 64
    assert fingerprint_directory(shutil.copytree(directory, tmp_path / "copy")) == want
    shards = saved(name="shards", shard="20KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    assert fingerprint_directory(shards) == want


def test_metadata_of_the_file_and_order_of_tensors_do_not_matter(saved):
    directory = saved()
    want = fingerprint_directory(directory)
    tensors = load_file(directory / "model.safetensors")
    save_file(dict(reversed(tensors.items())), directory / "model.safetensors", metadata={"note": "rewritten"})
    assert fingerprint_directory(directory) == want


def test_one_changed_weight_name_shape_or_dtype_changes_it(saved):
    directory = saved("gpt2")
    want = fingerprint_directory(directory)
    original = load_file(directory / "model.safetensors")
    name = "transformer.h.1.attn.c_proj.weight"
    bit = original[name].clone()
    bit[0, 0] = torch.nextafter(bit[0, 0], torch.tensor(9.0))
    changes = [
        {**original, name: bit},
        {**original, name: original[name].reshape(-1)},
        {**original, name: original[name].view(torch.int32)},
        {**{k: v for k, v in original.items() if k != name}, name + "x": original[name]},
    ]
    found = set()
    for tensors in changes:
        save_file(tensors, directory / "model.safetensors")
        found.add(fingerprint_directory(directory))
    assert len(found) == 4 and want not in found


def test_a_changed_tokenizer_changes_it(saved):
    directory = saved()
    want = fingerprint_directory(directory)
    file = directory / "tokenizer.json"
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text)))  # other whitespace, same content
    assert fingerprint_directory(directory) == want
    file.write_text(text.replace('"Alice"', '"Alicia"'))
    assert fingerprint_directory(directory) != want
    file.write_text(text)
    config = directory / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<bos>", "<eos>"))
    assert fingerprint_directory(directory) != want


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "opt", "gemma2", "gptoss", "deepseek_v3"])
def test_model_in_memory_agrees_with_its_saved_directory(saved, arch: str):
    """Also for tied embeddings (GPT-2, OPT, Gemma), which are stored once and are two names in memory."""
    assert fingerprint_model(tiny_hf(arch), tiny_tokenizer()) == fingerprint_directory(saved(arch))


def test_loading_keeps_the_fingerprint_and_the_file(saved):
    directory = saved()
    weights = (directory / "model.safetensors").read_bytes()
    model = load_model(directory)
    assert model.fingerprint == fingerprint_directory(directory)
    assert model.fingerprint == load_model(tiny_hf("llama"), tokenizer=tiny_tokenizer()).fingerprint
    assert (directory / "model.safetensors").read_bytes() == weights


def test_the_loaded_tokenizer_object_counts_as_the_directorys_own(saved):
    directory = saved()
    loaded = load_model(directory)
    assert load_model(directory, tokenizer=loaded.tokenizer).fingerprint == loaded.fingerprint
    other = tiny_tokenizer(bos=False)
    assert load_model(directory, tokenizer=other).fingerprint != loaded.fingerprint


def test_needs_no_torch(saved):
    code = (
        "import sys; from workbench.models import fingerprint_directory; print(fingerprint_directory(sys.argv[1]));"
        "assert not {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    directory = saved()
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint_directory(directory)


def test_bridge_of_the_same_weights_has_a_stable_fingerprint_of_its_own():
    first = load_model(tiny_hf("gpt2"), name="a")
    again = load_model(first.bridge, name="b")
    other = load_model(load_model(tiny_hf("gpt2"), name="c").bridge, name="d")
    assert again.fingerprint == other.fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", ["empty", "header", "body", "longer"])
def test_damaged_weights_are_named(saved, damage: str):
    directory = saved()
    file = directory / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes({"empty": b"", "header": data[:60], "body": data[:-5], "longer": data + b"x"}[damage])
    with pytest.raises(InputError, match=r"model\.safetensors is not a complete safetensors file"):
        fingerprint_directory(directory)
