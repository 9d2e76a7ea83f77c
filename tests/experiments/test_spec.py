"""A spec is validated once, and everything wrong with it is one sentence that names the key and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from workbench.errors import InputError
from workbench.experiments.spec import Spec, build, load_spec, load_specs

GOOD = {"analysis": "fake", "model": "organism:x", "data": {"task": "needle", "n": 4}}


def refusal(values: dict, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        build(values, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shorthand_and_the_defaults_are_filled_in(world: object) -> None:
    spec = build({**GOOD, "params": {"max_new_tokens": 8}})
    assert spec.name == "fake/x"
    assert spec.model.path == "organism:x" and spec.model.dtype == "auto"
    assert spec.params == {"variant": "plain", "max_new_tokens": 8, "gate": 0.5, "inner": {"draws": 3}}
    assert spec.seed == 0


def test_a_spec_survives_yaml_and_back(world: object) -> None:
    spec = build({**GOOD, "seed": 3})
    assert build(yaml.safe_load(yaml.safe_dump(spec.config()))) == spec


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"modle": "x"}, ["'modle'", "Did you mean 'model'"]),
        ({"analysis": "fak"}, ["analysis", "'fak'", "Did you mean 'fake'"]),
        ({"params": {"max_new_token": 1}}, ["'params.max_new_token'", "Did you mean 'max_new_tokens'"]),
        ({"params": {"inner": {"drows": 1}}}, ["'params.inner.drows'", "Did you mean 'draws'"]),
        ({"params": {"max_new_tokens": 0}}, ["params.max_new_tokens = 0", "greater than or equal to 1"]),
        ({"params": {"variant": "fency"}}, ["params.variant = 'fency'", "Did you mean 'fancy'"]),
        ({"params": [1]}, ["params"]),
        ({"model": {"path": "x", "dtyp": "float32"}}, ["'model.dtyp'", "Did you mean 'dtype'"]),
        ({"model": {"path": "x", "dtype": "float23"}}, ["model.dtype = 'float23'", "Did you mean 'float32'"]),
        ({"model": {"path": "x", "device": "gpu"}}, ["model.device", "'gpu'"]),
        ({"model": {"path": ""}}, ["model.path"]),
        ({"model": {}}, ["model.path"]),
        ({"data": {}}, ["data", "nothing"]),
        ({"data": {"tsak": "needle"}}, ["data", "'tsak'", "Did you mean 'task'"]),
        ({"data": {"task": "needel"}}, ["data.task", "'needel'", "Did you mean 'needle'"]),
        ({"data": {"task": "needle", "samples": []}}, ["data", "'task' and 'samples'"]),
        ({"data": {"task": "needle", "positives": [], "negatives": []}}, ["data", "'task' and 'positives'"]),
        ({"data": {"samples": []}}, ["data.samples"]),
        ({"seed": "soon"}, ["seed = 'soon'"]),
        ({"seed": -1}, ["seed = -1"]),
        ({"seed": True}, ["seed = True"]),
        ({"name": "../x"}, ["name", "'../x'"]),
        ({"name": "a@v1"}, ["name", "'a@v1'"]),
    ],
)
def test_what_is_wrong_is_named(world: object, change: dict, parts: list[str]) -> None:
    message = refusal({**GOOD, **change})
    for part in parts:
        assert part in message, message


def test_negatives_may_be_an_option_of_a_task(world: object) -> None:
    data = {"task": "objects", "negatives": "adversarial"}
    assert build({**GOOD, "data": data}).data == data


@pytest.mark.parametrize("key", ["analysis", "model", "data"])
def test_a_missing_key_is_named(world: object, key: str) -> None:
    values = {k: v for k, v in GOOD.items() if k != key}
    assert f"lacks the key '{key}'" in refusal({**values, "name": "x"})


def test_overrides_are_typed_and_reach_into_nested_keys(world: object) -> None:
    spec = build(
        GOOD,
        overrides=["params.max_new_tokens=8", "params.inner.draws=2", "model.dtype=float32", "seed=4", "data.n=9"],
    )
    assert spec.params["max_new_tokens"] == 8 and spec.params["inner"] == {"draws": 2}
    assert spec.model.dtype == "float32" and spec.model.path == "organism:x"
    assert spec.seed == 4 and spec.data["n"] == 9
    assert build(GOOD, overrides=["params.inner=null"]).params["inner"] is None
    assert build(GOOD, overrides=["model=organism:y"]).model.path == "organism:y"
    assert build(GOOD, overrides=["params.gate=1e-3"]).params["gate"] == 1e-3


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("params.max_new_token=8", "Did you mean 'max_new_tokens'"),
        ("modle.path=x", "Did you mean 'model'"),
        ("analysis.x=1", "analysis is 'fake', so it has no 'x'"),
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("params..x=3", "key=value"),
        ("params.max_new_tokens=[", "not valid YAML"),
        ("params.max_new_tokens=many", "params.max_new_tokens"),
        ("data.task.x=1", "data.task"),
    ],
)
def test_a_bad_override_is_blamed_on_itself(world: object, assignment: str, part: str) -> None:
    message = refusal(GOOD, overrides=[assignment])
    assert message.startswith("--set ") and part in message, message


def test_overrides_reach_into_lists(world: object) -> None:
    values = {**GOOD, "data": {"samples": [{"prompt": "a b", "needle": "a"}]}}
    assert build(values, overrides=["data.samples.0.needle=b"]).data["samples"][0]["needle"] == "b"
    assert "a list of 1" in refusal(values, overrides=["data.samples.3.needle=b"])
    assert values["data"]["samples"][0]["needle"] == "a"  # the caller's own is untouched


def test_the_name_defaults_to_analysis_and_file(spec_file: Path) -> None:
    assert load_spec(spec_file).name == "fake/one"


def test_one_file_may_hold_several_experiments(spec_file: Path) -> None:
    text = spec_file.read_text()
    spec_file.write_text(f"{text}---\n{text}---\nname: third\n{text}")
    assert [spec.name for spec in load_specs(spec_file)] == ["fake/one-1", "fake/one-2", "third"]
    with pytest.raises(InputError, match="3 specs"):
        load_spec(spec_file)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: x\nanalysis: [", "line 2"),
        ("a: 1\n\tb: 2", "line 2"),
        ("analysis: fake\nanalysis: fake", "'analysis' occurs twice"),
        ("1: 2", "the key 1 is not text"),
        ("- a\n- b", "a spec is a mapping"),
        ("just text", "a spec is a mapping"),
        ("", "no experiment"),
        ("# nothing", "no experiment"),
        ("seed: 2026-11-21", "is a date"),
        ("x: !!python/object/apply:os.system [ls]", "line 1"),
        ("a: &a [*a]", "recursive"),
    ],
)
def test_unusable_files_are_one_sentence_with_the_place(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_specs(path)
    message = str(caught.value)
    assert str(path) in message and part in message and "\n" not in message, message


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="aliases"):
        load_specs(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such spec file"):
        load_specs(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_specs(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_specs(binary)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 5_000_001)
    with pytest.raises(InputError, match="more than a spec file may have"):
        load_specs(large)


def test_model_paths_are_relative_to_the_spec_file_first(spec_file: Path, model_dir: Path) -> None:
    spec = load_spec(spec_file)
    assert spec.reach.find_model(spec.model.path) == str(model_dir)
    assert spec.reach.find_model("organism:retrieval") == "organism:retrieval"
    assert spec.reach.find_model("openai/gpt2") == "openai/gpt2"
    with pytest.raises(InputError, match="does not exist"):
        spec.reach.find_model("../models/tyni")


def test_specs_are_frozen(world: object) -> None:
    spec = build(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 3  # type: ignore[misc]
    assert isinstance(spec, Spec)
