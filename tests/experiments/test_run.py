"""A run is looked up before it is computed, is self-contained once stored, and leaves nothing when interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.fake import World
from workbench.errors import InputError, StoreError
from workbench.experiments import execute, identity, load_spec, rerun, run
from workbench.experiments.record import spec_of
from workbench.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", durable=False)


def test_a_run_becomes_an_artifact_that_says_how_it_was_made(
    spec_file: Path, model_dir: Path, world: World, store: Store
) -> None:
    artifact = run(spec_file, store=store, progress=False)
    assert artifact.ref == "fake/one@v1"
    assert set(artifact.files()) == {"heads.parquet", "arrays.safetensors", "samples.parquet", "summary.json"}
    assert artifact.tensors("arrays")["per_example"].shape == (5, 3, 4)
    assert artifact.json("summary") == artifact.summary
    config, producer = artifact.config, artifact.manifest["producer"]
    assert set(config) == {"name", "analysis", "model", "data", "params", "seed"}
    assert config["params"]["max_new_tokens"] == 8 and config["params"]["gate"] == 0.5
    assert config["model"]["path"] == "../models/tiny"
    assert producer["model"]["path"] == str(model_dir)
    assert producer["model"]["fingerprint"].startswith("sha256:")
    assert producer["code"] == identity.code_version()
    assert producer["packages"]["torch"]
    assert producer["spec_file"] == str(spec_file)
    assert artifact.manifest["timing"]["total"] > 0
    assert store.fsck() == []


def test_the_same_run_is_found_not_computed(spec_file: Path, world: World, store: Store) -> None:
    first = run(spec_file, store=store, progress=False)
    second = execute(load_spec(spec_file), store=store)
    assert second.cached and second.artifact == first
    assert len(world.calls) == 1


def test_force_computes_and_makes_a_new_version(spec_file: Path, world: World, store: Store) -> None:
    run(spec_file, store=store, progress=False)
    again = run(spec_file, store=store, force=True, progress=False)
    assert again.version == 2 and len(world.calls) == 2


@pytest.mark.parametrize("override", ["seed=1", "params.max_new_tokens=9", "params.inner=null", "model.dtype=bfloat16"])
def test_whatever_changes_the_result_changes_the_key(
    spec_file: Path, world: World, store: Store, override: str
) -> None:
    run(spec_file, store=store, progress=False)
    assert not execute(load_spec(spec_file, overrides=[override]), store=store).cached


def test_neither_the_name_nor_a_default_written_out_nor_the_path_changes_the_key(
    spec_file: Path, model_dir: Path, world: World, store: Store, tmp_path: Path
) -> None:
    first = run(spec_file, store=store, progress=False)
    copy = tmp_path / "elsewhere"
    shutil.copytree(model_dir, copy)
    spec = load_spec(spec_file, overrides=["name=other", "params.gate=0.5", f"model.path={copy}", "model.device=cpu"])
    outcome = execute(spec, store=store)
    assert outcome.cached and outcome.artifact == first


def test_other_weights_are_another_run(spec_file: Path, model_dir: Path, world: World, store: Store) -> None:
    from safetensors.numpy import save_file

    run(spec_file, store=store, progress=False)
    save_file({"w": np.ones(6, dtype=np.float32)}, model_dir / "model.safetensors")
    assert not execute(load_spec(spec_file), store=store).cached


def test_another_configuration_is_another_run(spec_file: Path, model_dir: Path, world: World, store: Store) -> None:
    """The fingerprint is of weights and tokenizer; a rotary base or a window is in neither."""
    run(spec_file, store=store, progress=False)
    config = {"model_type": "fake", "transformers_version": "9.9", "_name_or_path": "x"}
    (model_dir / "config.json").write_text(json.dumps(config))
    assert execute(load_spec(spec_file), store=store).cached  # says only where it came from
    (model_dir / "config.json").write_text(json.dumps({**config, "rope_theta": 500000.0}))
    assert not execute(load_spec(spec_file), store=store).cached
    assert rerun("fake/one@v1", store=store).model_changed


def test_changed_code_is_another_run(
    spec_file: Path, world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(spec_file, store=store, progress=False)
    monkeypatch.setattr(identity, "code_version", lambda: "sha256:" + "0" * 64)
    assert not execute(load_spec(spec_file), store=store).cached


def test_an_interrupted_run_leaves_the_store_as_it_was(spec_file: Path, world: World, store: Store) -> None:
    world.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        run(spec_file, store=store, progress=False)
    assert store.names() == [] and store.fsck() == []


def test_an_interrupted_commit_leaves_nothing(
    spec_file: Path, world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.store.artifact import Stage

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(spec_file, store=store, progress=False)
    assert store.names() == [] and store.fsck() == []
    assert list((store.root / ".store" / "staging").iterdir()) == []


def test_sample_files_are_inlined(spec_file: Path, world: World, store: Store) -> None:
    rows = [{"prompt": "a b", "needle": "a"}, {"prompt": "c d", "needle": "c"}]
    (spec_file.parent / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    artifact = run(spec_file, store=store, overrides={"data": {"file": "mine.jsonl"}}, progress=False)
    assert artifact.config["data"] == {"samples": rows, "name": "mine"}
    (spec_file.parent / "mine.jsonl").write_text(json.dumps(rows[0]))  # other content, same name: another run
    assert run(spec_file, store=store, overrides={"data": {"file": "mine.jsonl"}}, progress=False).version == 2


def test_a_haystack_is_stored_beside_the_result(spec_file: Path, world: World, store: Store) -> None:
    (spec_file.parent / "book.txt").write_text("Once. Upon. A time.")
    overrides = {"data": {"task": "needle", "haystack": "book.txt"}}
    artifact = run(spec_file, store=store, overrides=overrides, progress=False)
    assert artifact.config["data"]["haystack"] == "haystack.txt"
    assert artifact.text("haystack.txt") == "Once. Upon. A time."
    (spec_file.parent / "book.txt").unlink()
    from workbench.experiments.inputs import gather

    assert gather(spec_of(artifact)).files == {"haystack.txt": "Once. Upon. A time."}


def test_files_are_found_in_the_current_directory_too(
    spec_file: Path, world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.jsonl").write_text(json.dumps({"prompt": "a b", "needle": "a"}))
    monkeypatch.chdir(tmp_path)
    run(spec_file, store=store, overrides={"data": {"file": "here.jsonl"}}, progress=False)
    with pytest.raises(InputError, match=r"data.file.*absent.jsonl"):
        run(spec_file, store=store, overrides={"data": {"file": "absent.jsonl"}}, progress=False)


def test_a_dict_is_a_spec_too(model_dir: Path, world: World, store: Store) -> None:
    spec = {"analysis": "fake", "model": str(model_dir), "data": {"task": "needle"}}
    assert run(spec, store=store, progress=False).ref == "fake/tiny@v1"
    with pytest.raises(InputError, match="not int"):
        run(3, store=store)  # type: ignore[arg-type]


def test_a_result_of_a_notebook_can_be_kept(model_dir: Path, world: World, tmp_path: Path) -> None:
    import workbench as wb
    from tests.experiments.fake import ANALYSIS, FakeData, FakeModel, FakeParams

    model = FakeModel(str(model_dir), wb.models.fingerprint_directory(model_dir))
    result = ANALYSIS.run(model, FakeData({"task": "needle", "n": 5, "x_digest": "sha256:0"}), FakeParams(), 0)
    artifact = wb.store(tmp_path / "mine").put(result, name="fake/demo")
    assert artifact.config["data"] == {"task": "needle", "n": 5}
    assert wb.open("fake/demo", store=tmp_path / "mine") == artifact
    assert wb.rerun("fake/demo", store=tmp_path / "mine", allow=[model_dir]).level.word == "bitwise"


def test_a_store_that_cannot_be_written_is_a_sentence(spec_file: Path, world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        run(spec_file, store=tmp_path / "file", progress=False)


def test_the_device_kind_is_that_of_the_loader() -> None:
    import torch

    assert identity.device_kind("cuda:1") == "cuda" and identity.device_kind("cpu") == "cpu"
    assert identity.device_kind("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
