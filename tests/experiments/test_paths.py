"""A spec reads nothing outside its folder, the current directory and what the user allowed, however it spells it."""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.experiments.fake import World
from tests.launch.conftest import Inline, inline  # noqa: F401 - a fixture
from workbench.cli import main
from workbench.errors import InputError
from workbench.experiments import load_spec, rerun, run, spec_of
from workbench.experiments.inputs import gather
from workbench.experiments.paths import PathRefused, Reach
from workbench.experiments.spec import build
from workbench.launch import drive, read
from workbench.store import Store

SECRET = "the key is under the mat"
ANALYSES = Path(__file__).parents[2] / "workbench" / "analyses"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """spec/ and work/ may be read, outside/ may not; links lead from one to the other."""
    top = tmp_path_factory.mktemp("house").resolve()
    for folder in ("spec", "spec/sub", "work", "allowed", "outside", "outside/deep", "specious"):  # as `spec` begins
        (top / folder).mkdir()
        (top / folder / "a.txt").write_text(SECRET if folder.startswith(("outside", "specious")) else "fine")
    (top / "spec" / "out").symlink_to(top / "outside")
    (top / "spec" / "out.txt").symlink_to("../outside/a.txt")
    (top / "spec" / "twice").symlink_to("out")
    (top / "spec" / "in").symlink_to("sub")
    (top / "spec" / "loop").symlink_to("loop")
    (top / "spec" / "work").symlink_to(top / "work")
    (top / "work" / "up").symlink_to("..")
    return top


@pytest.fixture
def inside(house: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reach]:
    """The reach of house/spec/one.yaml, read from house/work, with house/allowed allowed."""
    monkeypatch.chdir(house / "work")
    monkeypatch.setenv("HOME", str(house / "outside"))
    monkeypatch.delenv("WORKBENCH_PATHS", raising=False)
    yield Reach.of(house / "spec" / "one.yaml", allow=[house / "allowed"])


STEPS = [
    *("..", ".", "", "~", "~root", "~nobody-here", "a.txt", "sub", "deep", "out", "out.txt", "twice", "in", "loop"),
    *("work", "up", "spec", "specious", "allowed", "outside", "SPEC", "a.txt/", "x\0y", "\\..\\", "C:", "x" * 300),
]
TEXTS = st.lists(st.sampled_from(STEPS) | st.text(string.printable, max_size=4), max_size=7).map("/".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, rooted=st.sampled_from(["", "/", "{top}/", "{top}/spec/", "/proc/self/root/{top}/", "//"]))
def test_no_path_leads_outside(text: str, rooted: str, inside: Reach, house: Path) -> None:
    name = rooted.format(top=house) + text
    for find in (inside.find_model, lambda name: str(inside.find(name, "data.file"))):
        try:
            found = find(name)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        if find == inside.find_model and found == name and not Path(found).is_dir():  # so it may be on the hub
            assert re.fullmatch(r"[^/.~][^/]*(/[^/]*)?|", name), name
            continue
        real = os.path.realpath(found)
        allowed = [str(house / folder) for folder in ("spec", "work", "allowed")]
        assert any(os.path.commonpath([real, root]) == root for root in allowed), (name, real)


@pytest.mark.parametrize(
    "name", ["a.txt", "sub/a.txt", "in/a.txt", "sub/../a.txt", "out/../spec/a.txt", "{top}/work/a.txt", "work/a.txt"]
)
def test_what_lies_inside_is_found(name: str, inside: Reach, house: Path) -> None:
    assert inside.find(name.format(top=house), "data.file").read_text() == "fine"


@pytest.mark.parametrize(
    "name",
    [
        *("../outside/a.txt", "{top}/outside/a.txt", "out/a.txt", "out.txt", "twice/deep/a.txt", "~/a.txt"),
        *("../specious/a.txt", "in/../out/a.txt", "work/up/outside/a.txt", "/proc/self/cwd/../outside/a.txt"),
    ],
)
def test_what_lies_outside_is_refused_in_one_sentence(name: str, inside: Reach, house: Path) -> None:
    with pytest.raises(PathRefused) as caught:
        inside.find(name.format(top=house), "data.file")
    said = str(caught.value)
    assert "data.file" in said and str(house / "spec" / "one.yaml") in said and "--allow" in said
    assert repr(os.path.realpath(house / "spec" / Path(name.format(top=house)).expanduser())) in said
    remedy = re.search(r"--allow '([^']+)'", said)
    assert remedy is not None
    inside.allowing([remedy[1]]).find(name.format(top=house), "data.file")  # the remedy is one


def test_the_environment_allows_too(inside: Reach, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PATHS", os.pathsep.join(["", "/nowhere", "~/deep"]))
    assert inside.find("out/deep/a.txt", "data.file").exists()
    with pytest.raises(PathRefused):
        inside.find("out/a.txt", "data.file")


@pytest.mark.parametrize("folder", ["absent", "a.txt", "", "x\0y"])
def test_what_is_allowed_must_be_a_folder(folder: str, inside: Reach) -> None:
    if folder:
        with pytest.raises(InputError, match="no folder"):
            inside.allowing([folder])


def test_what_the_user_typed_is_taken_as_given(inside: Reach) -> None:
    typed = inside.typing(["data.file", "model"])
    assert typed.find("out/a.txt", "data.file").read_text() == SECRET
    assert typed.find_model("out").endswith("outside")
    for key in ("data.files", "data.samples.0.image", "data"):
        with pytest.raises(PathRefused):
            typed.find("out/a.txt", key)


# -- through specs ----------------------------------------------------------------------------------------------------

BASE = {"analysis": "retrieval", "model": "organism:retrieval"}
IMAGE = {"prompt": "What is this?"}
# The data block that reads the path P, and the name below P's folder that it reads.
BLOCKS: dict[str, Any] = {
    "file": {"file": "P/rows.jsonl"},
    "prompts": {"file": "P/prompts.csv"},
    "benign_file": {"prompts": ["a"], "benign_file": "P/prompts.csv"},
    "corrupted_file": {"file": "mine.json", "corrupted_file": "P/pairs.json"},
    "needles": {"task": "needle", "needles": "P/rows.jsonl"},
    "haystack": {"task": "needle", "haystack": "P/rows.jsonl"},
    "files": {"task": "ioi", "files": "P"},
    "images": {"samples": [{**IMAGE, "image": "a.png"}], "images": "P"},
    "images beside": {"file": "P/images.jsonl"},
    "image": {"samples": [{**IMAGE, "image": "P/a.png"}]},
    "image of a folder": {"samples": [{**IMAGE, "image": "../P/a.png"}], "images": "pictures"},
    "image in a file": {"file": "pictures.jsonl"},
    "in a set of tasks": {"tasks": {"one": {"file": "P/rows.jsonl"}}},
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """spec/ with a file of its own, outside/ with what a hostile spec would like to read."""
    outside, spec = tmp_path / "outside", tmp_path / "spec"
    outside.mkdir()
    (spec / "pictures").mkdir(parents=True)
    row = json.dumps({"prompt": f"{SECRET} {SECRET}", "needle": SECRET})
    (outside / "rows.jsonl").write_text(row)
    (outside / "prompts.csv").write_text(f"prompt\n{SECRET}\n")
    (outside / "images.jsonl").write_text(json.dumps({**IMAGE, "image": "a.png"}))
    (outside / "a.png").write_bytes(b"")
    pairs = json.dumps([[SECRET, "a"]])
    for name in ("pairs", "templates", "names", "places", "objects"):
        (outside / f"{name}.json").write_text(pairs)
    (spec / "mine.json").write_text(pairs)
    (spec / "pictures.jsonl").write_text(json.dumps({**IMAGE, "image": "../outside/a.png"}))
    (spec / "link").symlink_to("../outside")
    monkeypatch.chdir(spec)
    monkeypatch.delenv("WORKBENCH_PATHS", raising=False)
    return tmp_path


def _filled(tree: Any, place: str) -> Any:
    if isinstance(tree, dict):
        return {key: _filled(value, place) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_filled(value, place) for value in tree]
    return re.sub(r"\bP\b", place, tree)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("place", ["../outside", "{lab}/outside", "link"])
def test_every_key_of_data_that_names_a_file_is_held(block: str, place: str, lab: Path) -> None:
    data = _filled(BLOCKS[block], place.format(lab=lab))
    source = lab / "spec" / "one.yaml"
    if block == "image of a folder" and not place.startswith(("..", "link")):
        data["samples"][0]["image"] = f"{lab}/outside/a.png"
    with pytest.raises(PathRefused, match=r"data\.") as caught:
        gather(build({**BASE, "data": data}, source=source))
    assert SECRET not in str(caught.value)
    allowed = gather(build({**BASE, "data": data}, reach=Reach.of(source, allow=[lab / "outside"])))
    assert allowed.data
    if block != "image in a file":  # what a file says was not typed by who typed the file's name
        assert gather(build({**BASE, "data": data})).data == allowed.data  # in Python there is nobody else


def test_links_in_a_folder_that_is_named_are_held(lab: Path) -> None:
    words = lab / "spec" / "words"
    words.mkdir()
    for name in ("templates", "names", "places", "objects"):
        (words / f"{name}.json").symlink_to(lab / "outside" / f"{name}.json")
    source = lab / "spec" / "one.yaml"
    with pytest.raises(PathRefused, match=r"data\.files.*templates\.json|data\.files"):
        gather(build({**BASE, "data": {"task": "ioi", "files": "words"}}, source=source))
    with pytest.raises(PathRefused, match=r"model\.path"):
        build({**BASE, "data": {"task": "needle"}}, source=source).reach.find_model("words")


def test_an_autoencoder_is_not_even_looked_at(lab: Path) -> None:
    folder = lab / "outside"
    for name in ("cfg.json", "sae_weights.safetensors"):
        (folder / name).write_text(SECRET)
    values = {**BASE, "analysis": "sae_features", "data": {"task": "ioi"}, "params": {"sae": "../outside"}}
    source = lab / "spec" / "one.yaml"
    with pytest.raises(PathRefused, match=r"params\.sae: '\.\./outside' leads to"):
        build(values, source=source)
    digest = build(values, reach=Reach.of(source, allow=[folder])).params["sae_digest"]
    assert build({**values, "params": {}}, source=source, overrides=["params.sae=../outside"]).params["sae"]
    (lab / "spec" / "sae").mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        (lab / "spec" / "sae" / name).symlink_to(folder / name)
    with pytest.raises(PathRefused, match=r"cfg\.json|sae_weights"):
        build({**values, "params": {"sae": "sae"}}, source=source)
    assert build({**values, "params": {"sae": "sae"}}).params["sae_digest"] == digest


def test_no_analysis_reads_a_file_by_a_parameter_that_is_not_marked() -> None:
    reads = re.compile(r"read_text|read_bytes|\bopen\(|load_sae\(|folder_digest\(|expanduser|json_lines|text_file")
    found = {path.relative_to(ANALYSES).as_posix() for path in ANALYSES.rglob("*.py") if reads.search(path.read_text())}
    assert found == {
        "sae_features/params.py",  # `sae`, marked
        "sae_features/obtain.py",  # the same
        "sae_circuits/references.py",  # `read_heads`, for notebooks; `reference` takes names and heads
        "ships/dataset.py",  # its own sources, for a checkpoint's key
    }


def test_a_sweep_in_the_file_was_not_typed_and_one_on_the_command_line_was(lab: Path) -> None:
    source = lab / "spec" / "one.yaml"
    text = "analysis: retrieval\nmodel: organism:retrieval\ndata: {file: rows.jsonl}\n"
    source.write_text(text + "sweep: {data.file: [../outside/rows.jsonl]}\n")
    for overrides in ([], ["data.file=link/rows.jsonl"]):
        for spec in read([source], overrides=overrides).specs:
            with pytest.raises(PathRefused):
                gather(spec)
    (spec,) = read([source], sweeps=["data.file=../outside/rows.jsonl"]).specs
    assert gather(spec).data["samples"][0]["needle"] == SECRET
    source.write_text(text + "sweep: {model: [../outside]}\n")
    (spec,) = read([source]).specs
    with pytest.raises(PathRefused):
        spec.reach.find_model(spec.model.path)


# -- from the file to the artifact ------------------------------------------------------------------------------------


def test_run_and_rerun_on_the_command_line(
    spec_file: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORKBENCH_PATHS")
    store, models = ("--store", str(tmp_path / "store")), str(tmp_path / "models")
    assert main(["run", str(spec_file), *store]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"--allow '{models}'" in said
    assert main(["run", str(spec_file), *store, "--allow", models]) == 0
    assert main(["run", str(spec_file), *store, "--set", f"model.path={models}/tiny", "--set", "seed=1"]) == 0
    assert main(["rerun", "fake/one@v1", *store]) == 2
    assert "model.path" in capsys.readouterr().err
    assert main(["rerun", "fake/one@v1", *store, "--allow", models]) == 0
    assert main(["rerun", "fake/one@v1", *store, "--model", f"{models}/tiny"]) == 0
    assert main(["run", str(spec_file), *store, "--allow", "absent"]) == 2


def test_in_python(spec_file: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_PATHS")
    store, models = Store(tmp_path / "store", durable=False), tmp_path / "models"
    with pytest.raises(PathRefused):
        run(spec_file, store=store, progress=False)
    made = run(spec_file, store=store, allow=[models], progress=False)
    assert run(load_spec(spec_file), store=store, allow=[models], progress=False) == made
    assert run(load_spec(spec_file, allow=[models]), store=store, overrides={"seed": 0}, progress=False) == made
    config = {**load_spec(spec_file).config(), "model": str(models / "tiny")}
    assert run(config, store=store, progress=False) == made
    with pytest.raises(PathRefused):
        rerun(made, store=store)
    assert rerun(made, store=store, allow=[models]).level.word == "bitwise"


def test_a_hostile_artifact_reads_nothing_when_it_is_rerun(
    spec_file: Path, world: World, lab: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store", durable=False)
    config = load_spec(spec_file).config()
    for number, data in enumerate(({"file": "../../../../outside/rows.jsonl"}, {"file": f"{lab}/outside/rows.jsonl"})):
        with store.stage(f"hostile/{number}", config={**config, "data": data}) as out:
            out.json("summary", {})
        with pytest.raises(PathRefused, match="outside"):
            gather(spec_of(out.artifact))


def test_a_launched_job_runs_in_its_worker(
    spec_file: Path,
    world: World,
    inline: Inline,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORKBENCH_PATHS")
    store = Store(tmp_path / "store", durable=False)
    with pytest.raises(PathRefused):
        drive(read([spec_file], sweeps=["seed=0..1"]), store)
    assert inline.submitted == []
    board = drive(read([spec_file], sweeps=["seed=0..1"], allow=[tmp_path / "models"]), store)
    assert [run.state for run in board.runs] == ["done", "done"]
