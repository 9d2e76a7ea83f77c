"""A rerun says how far the stored result comes out again; a diff says what differs and in which heads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.fake import World
from workbench.errors import InputError
from workbench.experiments import diff, identity, rerun, run
from workbench.experiments.agreement import Level, Tolerance, flatten
from workbench.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", durable=False)


@pytest.fixture
def stored(spec_file: Path, world: World, store: Store) -> str:
    return run(spec_file, store=store, progress=False).ref


def test_an_unchanged_run_is_bitwise(stored: str, store: Store) -> None:
    found = rerun(stored, store=store)
    assert found.level == Level.BITWISE and found.confirms(Level.BITWISE)
    assert {payload.level for payload in found.payloads} == {Level.BITWISE}
    assert len(store.log("fake/one")) == 1  # nothing was kept


def test_small_noise_is_allclose(stored: str, store: Store, world: World) -> None:
    world.jitter = 1e-9
    found = rerun(stored, store=store)
    assert found.level == Level.ALLCLOSE and not found.confirms(Level.BITWISE)
    assert all(payload.max_abs is not None and payload.max_abs < 1e-7 for payload in found.payloads)


def test_larger_noise_keeps_the_ranks(stored: str, store: Store, world: World) -> None:
    world.jitter = 1e-4
    found = rerun(stored, store=store, tolerance=Tolerance(top=5))
    assert found.level == Level.RANK
    heads = found.payloads[0]
    assert heads.payload == "heads.parquet" and "Spearman" in heads.note


def test_another_ranking_is_different(stored: str, store: Store, world: World) -> None:
    world.shuffle = True
    found = rerun(stored, store=store)
    assert found.level == Level.DIFFERENT and not found.confirms(Level.RANK)


def test_a_changed_model_is_said_and_not_computed(stored: str, store: Store, model_dir: Path, world: World) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.ones(6, dtype=np.float32)}, model_dir / "model.safetensors")
    found = rerun(stored, store=store)
    assert found.model_changed and not found.confirms(Level.RANK)
    assert found.fingerprints[0] != found.fingerprints[1]
    assert len(world.calls) == 1


def test_the_artifact_alone_is_enough(
    stored: str, store: Store, spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(spec_file.parent)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert rerun(stored, store=store).level == Level.BITWISE


def test_a_moved_model_can_be_named(stored: str, store: Store, model_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "tiny"
    moved.parent.mkdir()
    model_dir.rename(moved)
    with pytest.raises(InputError, match="does not exist"):
        rerun(stored, store=store)
    assert rerun(stored, store=store, model=str(moved)).level == Level.BITWISE


def test_a_rerun_can_be_kept(stored: str, store: Store, world: World) -> None:
    world.jitter = 0.01
    found = rerun(stored, store=store, save=True)
    assert found.saved is not None and found.saved.version == 2
    changes = diff("fake/one@v1", "fake/one@v2", store=store)
    assert changes.spec == {} and not changes.same_content
    assert changes.heads is not None and changes.heads.max_abs == pytest.approx(0.03)
    assert [head["head"] for head in changes.heads.changed[:3]] == [3, 3, 3]  # jitter grows with the head


def test_changed_code_and_packages_are_reported(stored: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "code_version", lambda: "sha256:" + "0" * 64)
    versions = identity.package_versions()
    monkeypatch.setattr(identity, "package_versions", lambda *_: {**versions, "torch": "99"})
    found = rerun(stored, store=store)
    assert found.code_changed and found.packages_changed["torch"][1] == "99"


def test_an_artifact_without_an_experiment_is_refused(store: Store) -> None:
    with store.stage("notes") as out:
        out.json("x", 1)
    with pytest.raises(InputError, match="holds no experiment"):
        rerun("notes", store=store)


def test_diff_names_what_was_asked_differently(spec_file: Path, stored: str, store: Store) -> None:
    run(spec_file, store=store, overrides=["seed=1", "params.inner.draws=2"], progress=False)
    found = diff("fake/one@v1", "fake/one@v2", store=store)
    assert found.spec == {"seed": [0, 1], "params.inner.draws": [3, 2]}
    assert found.provenance == {}
    assert "best" in found.summary
    assert found.heads is not None and found.heads.spearman < 0.99
    assert found.to_dict()["heads"]["top"] == 10


def test_diff_of_artifacts_without_heads_says_so(stored: str, store: Store) -> None:
    with store.stage("notes") as out:
        out.json("x", 1)
    found = diff(stored, "notes", store=store)
    assert found.heads is None and "no head table" in found.note


def test_flatten_keeps_every_leaf() -> None:
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": {}, "e": None}) == {"a.b.0": 1, "a.b.1.c": 2, "d": "{}", "e": None}
