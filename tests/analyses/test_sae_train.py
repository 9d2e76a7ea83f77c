"""The artifact of a training run is an autoencoder's folder, which the next analysis reads."""

from __future__ import annotations

import pytest
import torch

from tests.analyses.examples import QUICK, data_block, dataset
from tests.tiny import tiny, tiny_hf, tiny_tokenizer
from workbench import analyses
from workbench.errors import InputError
from workbench.experiments import run
from workbench.saes import load_sae
from workbench.store import Store


def test_an_artifact_is_a_folder_that_can_be_read(tmp_path):
    tiny_hf("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = {"path": str(tmp_path / "model"), "dtype": "float32", "device": "cpu"}
    spec = {"name": "sae/tiny", "analysis": "sae_train", "model": model}
    spec |= {"data": data_block("prompts"), "params": QUICK["sae_train"]}
    store = Store(tmp_path / "store")
    made = run(spec, store=store, progress=False)
    assert {"cfg.json", "sae_weights.safetensors", "heads.parquet"} <= set(made.files())
    sae = load_sae(made.folder)
    assert (sae.config.hook_name, sae.config.architecture, sae.d_sae) == ("blocks.1.hook_resid_post", "topk", 128)
    assert made.json("cfg")["metadata"]["model_from_pretrained_kwargs"]["fold_ln"] is False

    params = {**QUICK["sae_features"], "sae": str(made.folder), "circuit": None}
    spec |= {"name": "sae/features", "analysis": "sae_features", "data": data_block("pairs"), "params": params}
    found = run(spec, store=store, progress=False)
    assert found.json("summary")["sae"]["trained_here"] is False
    assert found.manifest["config"]["params"]["sae_digest"] == sae.digest


def test_an_interrupted_training_is_taken_up(tmp_path, monkeypatch):
    """Between two runs of the same analysis, through the cache folder; the autoencoder has the same bits."""
    from workbench.saes import training

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    model, analysis = tiny("llama"), analyses.get("sae_train")
    options = {**QUICK["sae_train"], "train": {"steps": 60, "batch": 16, "k": 4, "checkpoint_every": 10}}
    data = dataset(model, "prompts", 3)
    whole = analysis(model, data, analysis.parse(options), seed=0)
    step, calls = training._step, []

    def fail(state, *args):
        calls.append(state.step)
        if len(calls) == 36:
            raise KeyboardInterrupt
        step(state, *args)

    monkeypatch.setattr(training, "_step", fail)
    with pytest.raises(KeyboardInterrupt):
        analysis(model, data, analysis.parse(options), seed=0)
    again = analysis(model, data, analysis.parse(options), seed=0)
    assert calls[36] == 30, "taken up at the last state on disk"
    assert again.files == whole.files
    assert not list((tmp_path / "saes").iterdir())


def test_texts_are_held_out_and_too_few_are_refused():
    model, analysis = tiny("gpt2"), analyses.get("sae_train")
    quick = {**QUICK["sae_train"], "text": None, "ablate": None, "read": False}
    got = analysis(model, dataset(model, "prompts", 5, ragged=True), analysis.parse(quick), seed=0)
    assert (got.summary["n_texts"], got.summary["n_held_out"]) == (3, 2)
    assert len(got.per_example) == 2
    assert torch.isfinite(torch.tensor(got.tables["training"]["loss"].to_numpy())).all()
    with pytest.raises(InputError, match="leave none to train on"):
        analysis(model, dataset(model, "prompts", 2), analysis.parse(quick), seed=0)
    with pytest.raises(InputError, match="at least one prompt"):
        analysis(model, dataset(model, "pairs", 2), analysis.parse(quick), seed=0)
