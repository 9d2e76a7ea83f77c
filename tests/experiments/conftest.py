"""A fake analysis and a fake model, registered for one test; the fingerprint is of a real (tiny) directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.experiments import fake


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A directory that can be fingerprinted."""
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    save_file({"w": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "fake"}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    return folder


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.World]:
    """The fake analysis is registered and the fake model is what `load_model` gives."""
    import workbench.models
    import workbench.tasks
    from workbench.analyses import base

    def load_model(path: str, *, name: str, **_options: object) -> fake.FakeModel:
        return fake.FakeModel(name, workbench.models.fingerprint_directory(path))

    monkeypatch.setitem(base._MODULES, "fake", "tests.experiments.fake")
    monkeypatch.setattr(workbench.models, "load_model", load_model)
    monkeypatch.setattr(workbench.tasks, "resolve", lambda model, data, **_: fake.FakeData(dict(data)))
    monkeypatch.setattr(fake, "WORLD", fake.World())
    yield fake.WORLD


@pytest.fixture
def spec_file(tmp_path: Path, model_dir: Path, world: fake.World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid spec whose model path is relative to it; the user allows what is in `tmp_path`."""
    monkeypatch.setenv("WORKBENCH_PATHS", str(tmp_path))
    path = tmp_path / "specs" / "one.yaml"
    path.parent.mkdir()
    path.write_text(
        "analysis: fake\n"
        "model: ../models/tiny\n"
        "data: {samples: [{prompt: a red kite and a red, needle: red kite}]}\n"
        "params: {max_new_tokens: 8}\n"
    )
    return path
