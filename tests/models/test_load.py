"""Every way of naming a model, and every way of getting it wrong, in one sentence."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import ARCHITECTURES, BOS, tiny, tiny_hf, tiny_tokenizer
from workbench.errors import InputError
from workbench.models import encode, fingerprint_directory, load_model

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"


# ---- what comes out


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_computes_what_the_raw_model_computes(arch: str):
    model, raw = tiny(arch), tiny_hf(arch)
    tokens = torch.randint(4, 64, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.bridge(tokens), raw(tokens).logits, atol=1e-4, rtol=1e-4)
    assert not model.bridge.training and not any(p.requires_grad for p in model.bridge.parameters())
    assert model.hf is model.bridge.original_model
    assert model.n_layers == raw.config.num_hidden_layers and model.n_heads == 4 and model.d_model == 32
    assert model.device.type == "cpu" and model.dtype == torch.float32 and model.basis == "raw"


def test_gelu_is_one_kernel_and_the_same_function():
    from transformers.activations import NewGELUActivation

    model, raw = load_model(tiny_hf("gpt2").double(), name="double", probe=False), tiny_hf("gpt2").double()
    kinds = [{type(module) for module in hf.modules()} for hf in (model.hf, raw)]
    assert NewGELUActivation not in kinds[0] and NewGELUActivation in kinds[1]
    tokens = torch.randint(4, 64, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.bridge(tokens), raw(tokens).logits, atol=1e-12, rtol=1e-12)


def test_heads_share_kv_groups_in_order():
    model = tiny("llama")
    assert (model.n_kv_heads, [model.kv_group(h) for h in range(4)]) == (2, [0, 0, 1, 1])
    assert [tiny("gpt2").kv_group(h) for h in range(4)] == [0, 1, 2, 3]
    with pytest.raises(InputError, match="heads are 0 to 3"):
        model.kv_group(4)


def test_directory_loads_with_its_own_tokenizer_and_dtype(saved):
    directory = saved("gpt2")
    model = load_model(str(directory))
    assert model.name == str(directory) and model.organism is None
    assert encode(model, "Alice ran").ids[0] == BOS
    assert load_model(directory, dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(directory, dtype=torch.float64, name="mine").name == "mine"


def test_half_precision_checkpoint_is_float32_on_the_cpu(tmp_path: Path):
    tiny_hf("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half").dtype == torch.float32


def test_stored_dtype_is_the_configurations_else_that_of_most_bytes(saved):
    from workbench.models.boot import stored_dtype

    directory = saved()
    assert stored_dtype(directory, {"dtype": "bfloat16"}) == "bfloat16"
    assert stored_dtype(directory, {"text_config": {"torch_dtype": "float16"}}) == "float16"
    assert stored_dtype(directory, {}) == "float32"


def test_sharded_directory_loads(saved):
    model = load_model(saved(shard="20KB"))
    tokens = torch.arange(4, 20)[None]
    assert torch.allclose(model.bridge(tokens), tiny_hf("llama")(tokens).logits, atol=1e-5)


def test_organism_is_loaded_by_name(saved, monkeypatch: pytest.MonkeyPatch):
    from workbench import organisms

    directory = saved()
    monkeypatch.setattr(organisms, "names", lambda: ["retrieval", "refusal"], raising=False)
    monkeypatch.setattr(organisms, "path", lambda name: directory, raising=False)
    model = load_model("organism:retrieval")
    assert (model.name, model.organism) == ("organism:retrieval", "retrieval")
    with pytest.raises(InputError, match="Did you mean 'retrieval'"):
        load_model("organism:retreival")


def test_folded_bridge_says_so():
    model = tiny("gpt2")
    assert load_model(model.bridge).basis == "raw"
    model.bridge.enable_compatibility_mode()
    folded = load_model(model.bridge, name="folded")
    assert folded.basis == "folded" and folded.fingerprint != model.fingerprint


def test_shows_itself_escaped():
    model = tiny("llama")
    assert "3 layers x 4/2kv heads x 8" in repr(model) and "gqa" in repr(model)
    model.name = "<script>alert(1)</script>"
    assert "<script>" not in model._repr_html_() and "&lt;script&gt;" in model._repr_html_()
    json.dumps(model.describe())


@pytest.mark.skipif(not STORIES.exists(), reason="needs shared/models/stories260K")
def test_stories_260k():
    from transformers import AutoModelForCausalLM

    load_model(tiny_hf("gpt2"))  # the import of TransformerLens is not what is timed
    start = time.monotonic()
    model = load_model(STORIES)
    assert time.monotonic() - start < 10
    assert model.capabilities.missing == () and model.capabilities.attention_kind == "gqa"
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_head) == (5, 8, 4, 8)
    assert model.fingerprint == fingerprint_directory(STORIES) == load_model(STORIES).fingerprint
    text = "Once upon a time, there was a"
    encoded = encode(model, text)
    assert encoded.ids.count(1) == 1 and encoded.ids[0] == 1
    assert "".join(text[a:b] for a, b in encoded.offsets) == text
    raw = AutoModelForCausalLM.from_pretrained(STORIES, attn_implementation="eager").eval()
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    ids = torch.tensor([encoded.ids])
    assert model.hf is not None
    assert torch.equal(model.hf.generate(ids, **options), raw.generate(ids, **options))


# ---- what is refused


def test_paths_that_do_not_exist_suggest_their_neighbour(saved, tmp_path: Path):
    saved(name="stories")
    with pytest.raises(InputError, match="Did you mean 'stories'"):
        load_model(tmp_path / "storys")
    with pytest.raises(InputError, match=r"No model directory '\./no-such-dir'"):
        load_model("./no-such-dir")
    with pytest.raises(InputError, match=r"is a file.*directory"):
        load_model(tmp_path / "stories" / "config.json")
    with pytest.raises(InputError, match="empty"):
        load_model(" ")
    with pytest.raises(InputError, match="neither an existing directory nor a hub name"):
        load_model("my model")


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no model.safetensors"),
        ("tokenizer.json", r"has no tokenizer\.json.*tokenizer="),
    ],
)
def test_missing_files_are_named(saved, remove: str, message: str):
    directory = saved()
    (directory / remove).unlink()
    with pytest.raises(InputError, match=message):
        load_model(directory)


def test_a_tokenizer_may_be_given_instead(saved):
    directory = saved()
    (directory / "tokenizer.json").unlink()
    assert encode(load_model(directory, tokenizer=tiny_tokenizer()), "Alice").ids == [BOS, 44]


def test_damaged_files_are_named(saved):
    directory = saved()
    weights = directory / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors is not a complete safetensors file"):
        load_model(directory)
    weights.write_bytes(good)
    for file, message in (("config.json", "not a readable model configuration"), ("tokenizer.json", "tokenizer")):
        text = (directory / file).read_text()
        (directory / file).write_text(text[: len(text) // 2])
        with pytest.raises(InputError, match=message):
            load_model(directory)
        (directory / file).write_text(text)
    load_model(directory)


def test_absent_shards_are_named(saved):
    directory = saved(shard="20KB")
    sorted(directory.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(InputError, match=r"lacks 1 of its \d+ weight shards, first 'model-00001"):
        load_model(directory)


def test_pickled_weights_are_refused_unopened(saved):
    directory = saved()
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(InputError, match=r"pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        load_model(directory)


def test_missing_tensors_are_an_error_not_random_numbers(saved):
    directory = saved()
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors .*layers\.1\.self_attn\.q_proj\.weight.*would be random"):
        load_model(directory)


def test_configuration_that_does_not_fit_is_an_input_error(saved):
    directory = saved()
    config = json.loads((directory / "config.json").read_text())
    for change in ({"hidden_size": 64}, {"model_type": "nonesuch", "architectures": None}):
        (directory / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match="config"):
            load_model(directory)


def test_unsupported_architecture_is_an_input_error():
    from transformers import PersimmonConfig, PersimmonForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    hf = PersimmonForCausalLM(PersimmonConfig(vocab_size=64, **shape))
    with pytest.raises(InputError, match=r"no adapter for .*PersimmonForCausalLM"):
        load_model(hf, name="persimmon")


def test_one_bridge_per_model_object():
    hf = tiny_hf("gpt2")
    model = load_model(hf, name="once")
    for again in (hf, model.hf):
        with pytest.raises(InputError, match="already inside a bridge"):
            load_model(again, name="twice")
    assert load_model(model.bridge, name="same bridge").bridge is model.bridge


def test_options_are_validated_before_anything_is_read():
    with pytest.raises(InputError, match="Did you mean 'float32'"):
        load_model("./nowhere", dtype="flaot32")
    with pytest.raises(InputError, match="attn='flash'"):
        load_model("./nowhere", attn="flash")
    with pytest.raises(InputError, match="Unknown device 'gpu9'"):
        load_model(tiny_hf("gpt2"), device="gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="not on this machine"):
            load_model(tiny_hf("gpt2"), device="cuda:3")
    with pytest.raises(InputError, match="would change the weights"):
        load_model(tiny_hf("gpt2"), dtype="bfloat16")
    with pytest.raises(InputError, match="Cannot load a int"):
        load_model(3)  # type: ignore[arg-type]


def test_import_is_light():
    import subprocess

    heavy = "{'torch', 'transformers', 'transformer_lens', 'pandas', 'huggingface_hub', 'tokenizers'}"
    code = (
        "import sys, workbench.models as m; from workbench.models import encode, Capabilities, Model; dir(m);"
        f"bad = {heavy} & set(sys.modules); assert not bad, bad;"
        "import workbench.models.load; bad = {'torch', 'transformer_lens'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import workbench.models

    with pytest.raises(AttributeError, match="nonesuch"):
        workbench.models.nonesuch  # noqa: B018


def test_copied_directory_keeps_everything_but_the_name(saved, tmp_path: Path):
    directory = saved()
    first, second = load_model(directory), load_model(shutil.copytree(directory, tmp_path / "copy"))
    assert (first.fingerprint, first.config_digest) == (second.fingerprint, second.config_digest)
    assert first.name != second.name


def test_whatever_transformer_lens_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    import transformer_lens.model_bridge.sources._bridge_builder as builder

    def refuse(*_, **__):
        raise NotImplementedError("not this one")

    monkeypatch.setattr(builder, "build_bridge_from_module", refuse)
    with pytest.raises(InputError, match=r"cannot wrap .*NotImplementedError: not this one"):
        load_model(tiny_hf("llama"), name="mine")
