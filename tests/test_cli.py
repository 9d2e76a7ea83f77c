"""The command line: exit codes, one-sentence errors, JSON that parses, and commands that start at once."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import model_dir, spec_file, world  # noqa: F401 - fixtures
from tests.experiments.fake import World
from workbench.cli import main
from workbench.store import Store

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
GATES = SHARED / "data" / "duo_attention" / "Mistral-7B-Instruct-v0.2" / "full_attention_heads.tsv"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that commands use by default, in a current directory of its own."""
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes started below, where the package is not installed
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "store"


@pytest.fixture
def done(place: Path, spec_file: Path, capsys: pytest.CaptureFixture[str]) -> Path:  # noqa: F811
    """The store with `fake/one` at v1 and, with another seed, v2."""
    assert main(["run", str(spec_file)]) == 0
    assert main(["run", str(spec_file), "--set", "seed=1"]) == 0
    capsys.readouterr()
    return place


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    if code in (0, 1):
        assert captured.err == ""
    return captured.out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(output(capsys, *arguments, "--json", code=code))


# ---- running


def test_run_says_what_came_out(place: Path, spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    text = output(capsys, "run", str(spec_file))
    assert text.startswith("fake/one@v1  sha256:") and "best" in text and "cached" not in text
    assert "cached" in output(capsys, "run", str(spec_file))
    (entry,) = as_json(capsys, "run", str(spec_file))
    assert entry["cached"] and entry["ref"] == "fake/one@v1" and entry["summary"]["n_samples"] == 5
    assert "fake/one@v2" in output(capsys, "run", str(spec_file), "--force")
    assert "stored under that name" in output(capsys, "run", str(spec_file), "--set", "name=other")


def test_all_specs_are_validated_before_the_first_is_run(
    place: Path,
    spec_file: Path,  # noqa: F811
    world: World,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = spec_file.with_name("bad.yaml")
    bad.write_text("analysis: nope\n")
    output(capsys, "run", str(spec_file), str(bad), code=2)
    assert world.calls == []


def test_interruption_is_a_sentence_and_130(
    place: Path,
    spec_file: Path,  # noqa: F811
    world: World,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    world.interrupt = True
    assert main(["run", str(spec_file)]) == 130
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: interrupted") and captured.err.count("\n") == 1
    assert Store(place).names() == [] and Store(place).fsck() == []


def test_rerun_exits_by_what_is_required(done: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert "bitwise (meets the required allclose)" in output(capsys, "rerun", "fake/one@v1")
    world.jitter = 1e-9
    assert "allclose (misses the required bitwise)" in output(
        capsys, "rerun", "fake/one@v1", "--require", "bitwise", code=1
    )
    found = as_json(capsys, "rerun", "fake/one@v1")
    assert found["verdict"] == "allclose" and found["confirmed"]
    assert found["payloads"][0]["payload"] == "heads.parquet"
    world.shuffle = True
    assert not as_json(capsys, "rerun", "fake/one@v1", "--require", "rank", code=1)["confirmed"]


def test_rerun_says_that_the_model_changed(
    done: Path,
    model_dir: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    (model_dir / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
    assert "the model changed" in output(capsys, "rerun", "fake/one", code=1)


# ---- reading


def test_ls_show_and_log(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, "tag", "fake/one@v1", "paper")
    lines = output(capsys, "ls").splitlines()
    assert lines[0].split() == ["NAME", "LATEST", "ANALYSIS", "MODEL", "CREATED", "VERSIONS", "TAGS", "STALE"]
    assert lines[1].split()[:4] == ["fake/one", "v2", "fake", "tiny"]
    (entry,) = as_json(capsys, "ls")
    assert entry["versions"] == 2 and entry["tags"] == [] and entry["stale"] is False
    text = output(capsys, "show", "fake/one@paper", "--top", "3")
    for part in ("fake/one@v1", "paper", "max_new_tokens", "best 3 heads", "workbench rerun fake/one@v1", "sha256:"):
        assert part in text
    shown = as_json(capsys, "show", "fake/one@paper")
    assert shown["tags"] == ["paper"] and len(shown["top"]) == 10 and shown["config"]["seed"] == 0
    log = output(capsys, "log", "fake/one").splitlines()
    assert [line.split()[0] for line in log] == ["VERSION", "v2", "v1"]
    assert as_json(capsys, "log", "fake/one")[1]["tags"] == ["paper"]


def test_ls_of_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no artifacts" in output(capsys, "ls")
    assert as_json(capsys, "ls") == []
    assert not place.exists()


def test_diff(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "diff", "fake/one@v1", "fake/one@v2")
    assert "different content" in text and "seed" in text and "changed most" in text
    assert as_json(capsys, "diff", "fake/one@v1", "fake/one@v2")["spec"] == {"seed": [0, 1]}
    assert "the same content" in output(capsys, "diff", "fake/one@v1", "fake/one@v1")


@pytest.mark.parametrize(
    ("kind", "start"), [("csv", "layer,head"), ("md", "|"), ("json", "{"), ("latex", "\\begin"), ("html", "<!")]
)
def test_export_to_stdout(done: Path, capsys: pytest.CaptureFixture[str], kind: str, start: str) -> None:
    text = output(capsys, "export", "fake/one", "--format", kind, "--top", "3")
    assert start.lower() in text.lower()


def test_export_to_files_with_provenance(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from workbench.tables import HeadTable

    for name in ("heads.csv", "heads.parquet"):
        assert output(capsys, "export", "fake/one@v1", "-o", name).strip() == name
        provenance = json.loads(Path(f"{name}.provenance.json").read_text())
        assert provenance["ref"] == "fake/one@v1" and provenance["config"]["analysis"] == "fake"
    assert HeadTable.from_csv("heads.csv") == HeadTable.from_parquet("heads.parquet")
    assert "recall" in output(capsys, "export", "fake/one", "--table", "samples")
    assert as_json(capsys, "export", "fake/one")["rows"]
    assert as_json(capsys, "export", "fake/one", "-o", "x.md")["path"] == "x.md"


def test_compare(done: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = output(capsys, "compare", "fake/one@v1", "fake/one@v2", "--rule", "top 5")
    assert "jaccard" in text.lower() and "'top 5'" in text
    published = tmp_path / "wu.json"
    published.write_text(json.dumps({f"{i}-{j}": [0.1 * i + j] for i in range(3) for j in range(4)}))
    found = as_json(capsys, "compare", "fake/one@v1", "fake/one@v2", f"wu:{published}", "--rule", "score >= 0.5")
    assert len(found) == 3 and {0 <= pair["p"] <= 1 for pair in found} == {True}
    refs = ["fake/one@v1", "fake/one@v2", f"wu:{published}"]
    square = as_json(capsys, "compare", *refs, "--rule", "score >= 0.5", "--matrix")
    assert square["pairs"] == found and square["refs"] == refs
    assert [row[i] for i, row in enumerate(square["matrix"]["jaccard"])] == [1, 1, 1]
    assert square["matrix"]["jaccard"][2][0] == square["matrix"]["jaccard"][0][2] == found[1]["jaccard"]
    assert {"p_layer_matched", "weighted_jaccard", "rbo", "coefficient"} <= found[0].keys()
    gates = tmp_path / "gates.tsv"
    gates.write_text("0.1\t0.9\n0.2\t0.3\n0.5\t0.4\n")  # per kv group: the model has two
    (pair,) = as_json(capsys, "compare", "fake/one@v1", f"duo:{gates}", "--rule", "top 2")
    assert pair["rows_are"] == "kv_groups" and pair["n"] == 6


@pytest.mark.skipif(not GATES.exists(), reason="published gates are not beside the repository")
def test_compare_published_gates(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = GATES.parent.with_name("Mistral-7B-Instruct-v0.3") / GATES.name
    (pair,) = as_json(capsys, "compare", f"duo:{GATES}", f"duo:{other}", "--rule", "top 25%")
    assert pair["n"] == 256 and pair["p"] < 1e-6


def test_plot(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "plot", "fake/one").strip() == "fake-one-v2.html"
    assert "plotly" in Path("fake-one-v2.html").read_text()[:5_000_000].lower()
    assert as_json(capsys, "plot", "fake/one@v1", "-o", "bars.html", "--kind", "bars")["ref"] == "fake/one@v1"


# ---- care


def test_fsck_gc_and_rm(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no problem" in output(capsys, "fsck")
    assert "removed 0" in output(capsys, "gc")
    assert set(as_json(capsys, "gc")) == {"staging", "objects", "bytes"}
    output(capsys, "rm", "fake/one@v2", "--why", "a trial")
    assert "removed: a trial" in output(capsys, "log", "fake/one")
    assert "fake/one  v1" in output(capsys, "ls")
    flip(done / "fake" / "one" / "v1" / "heads.parquet")
    assert "heads.parquet" in output(capsys, "fsck", code=1)
    assert as_json(capsys, "fsck", code=1)[0]["ref"] == "fake/one@v1"
    assert "quarantine" in output(capsys, "fsck", "--repair", code=1)


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


# ---- errors


BAD_SPECS = {
    "wrong key": ("analysis: fake\nmodle: x\ndata: {task: needle}", "Did you mean 'model'"),
    "wrong parameter": ("analysis: fake\nmodel: x\ndata: {task: needle}\nparams: {gaet: 1}", "Did you mean 'gate'"),
    "unknown analysis": ("analysis: fakd\nmodel: x\ndata: {task: needle}", "Did you mean 'fake'"),
    "unknown organism": ("analysis: fake\nmodel: organism:retreival\ndata: {task: needle}", "'retreival'"),
    "absent model": ("analysis: fake\nmodel: ./nowhere\ndata: {task: needle}", "'./nowhere'"),
    "absent data": ("analysis: fake\nmodel: organism:x\ndata: {file: nowhere.jsonl}", "'nowhere.jsonl'"),
    "malformed": ("analysis: [fake", "line 1 is not valid YAML"),
    "not a spec": ("- 1", "a spec is a mapping"),
    "empty": ("", "no experiment"),
}


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a command that fails on its input: exit code 2, one line on stderr, nothing on stdout."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_bad_spec_is_one_sentence(
    case: str,
    place: Path,
    world: World,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, part = BAD_SPECS[case]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = sentence(capsys, "run", str(path))
    assert part in message, message
    assert sentence(capsys, "run", str(path), "--json") == message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run", "absent.yaml"], "absent.yaml: there is no such spec file"),
        (["run", "SPEC", "--set", "params.gaet=1"], "Did you mean 'gate'"),
        (["run", "SPEC", "--set", "seed"], "key=value"),
        (["run", "SPEC", "--set", "analysis=fakr"], "--set analysis=fakr"),
        (["run", "SPEC", "--device", "gpu"], "'gpu'"),
        (["show", "fake/oen"], "Did you mean 'fake/one'"),
        (["show", "fake/one@v9"], "v9"),
        (["show", "fake/one@papre"], "'papre'"),
        (["show", "../x"], "'../x'"),
        (["log", "fake/oen"], "Did you mean 'fake/one'"),
        (["diff", "fake/one", "nothing"], "'nothing'"),
        (["rerun", "fake/one", "--require", "bitwsie"], "Did you mean 'bitwise'"),
        (["export", "fake/one", "--format", "cvs"], "Did you mean 'csv'"),
        (["export", "fake/one", "--table", "sampels"], "Did you mean 'samples'"),
        (["export", "fake/one", "-o", "x.doc"], "x.doc"),
        (["export", "fake/one", "--json", "--format", "csv"], "two outputs"),
        (["export", "fake/one", "--top", "0"], "0"),
        (["compare", "fake/one"], "two results"),
        (["compare", "fake/one", "fake/one"], "twice"),
        (["compare", "fake/one", "wu:absent.json"], "absent.json"),
        (["compare", "fake/one", "other:x"], "wu:FILE.json"),
        (["compare", "fake/one@v1", "fake/one@v2", "--rule", "best 3"], "'best 3'"),
        (["plot", "fake/one", "-o", "x.doc"], "x.doc"),
        (["plot", "fake/one", "--column", "scroe"], "scroe"),
        (["plot", "fake/one", "--kind", "pie"], "'pie'"),
        (["tag", "fake/one", "v7"], "'v7'"),
        (["rm", "fake/one@v1", "--why", ""], "reason"),
        (["lss"], "Did you mean 'ls'"),
        (["ls", "--jsn"], "Did you mean '--json'"),
        (["show"], "Missing argument 'REF'"),
        (["ls", "a", "b"], "unexpected extra argument"),
        (["rm", "fake/one"], "--why"),
    ],
)
def test_bad_input_is_one_sentence_and_2(
    done: Path,
    spec_file: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    part: str,
) -> None:
    message = sentence(capsys, *(str(spec_file) if word == "SPEC" else word for word in arguments))
    assert part in message, message


def test_a_corrupt_artifact_is_refused_not_shown(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(done / "fake" / "one" / "v2" / "heads.parquet")
    assert "fsck" in sentence(capsys, "export", "fake/one")
    assert "fsck" in sentence(capsys, "rerun", "fake/one")
    flip(done / "fake" / "one" / "v1" / "MANIFEST.json")
    assert "fsck" in sentence(capsys, "show", "fake/one@v1")


def test_probing_nothing_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "./nowhere" in sentence(capsys, "probe", "./nowhere")


def test_a_store_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file" in sentence(capsys, "ls", "--store", str(tmp_path / "file"))


def test_debug_shows_the_traceback(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nothing", "--debug"]) == 2
    captured = capsys.readouterr()
    assert "Traceback" in captured.err and captured.err.splitlines()[-1].startswith("error: ")


def test_every_command_has_the_common_options() -> None:
    import typer.main

    from workbench.cli import app

    group: Any = typer.main.get_command(app)
    assert len(group.commands) == 20
    for name, command in group.commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--store", "--debug"} <= options, name
        assert command.help, name


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Commands:" in output(capsys)
    assert "rerun" in output(capsys, "--help")
    assert "--set" in output(capsys, "run", "--help")
    assert output(capsys, "--version").startswith("workbench ")


# ---- as a process


def workbench(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ls"], ["show", "fake/one"], ["export", "fake/one", "--format", "csv"]]
)
def test_reading_starts_at_once(done: Path, arguments: list[str]) -> None:
    """Under a second on an idle machine; processor seconds, so that a busy one says the same, and room for it."""
    seconds = []
    for _ in range(2):
        before = _processor_seconds()
        finished = workbench(*arguments)
        seconds.append(_processor_seconds() - before)
        assert finished.returncode == 0, finished.stderr
    assert min(seconds) < 1.5


def _processor_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.parametrize("arguments", [["ls"], ["show", "fake/one"], ["export", "fake/one"]])
def test_reading_loads_nothing_heavy(done: Path, arguments: list[str]) -> None:
    program = (
        "import sys; from workbench.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'pandas', 'transformers', 'transformer_lens', 'scipy', 'plotly'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_closed_pipe_is_quiet(done: Path) -> None:
    command = f"{sys.executable} -m workbench export fake/one --format csv | true"
    finished = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert finished.stderr == ""


def test_no_colour_in_pipes(done: Path) -> None:
    assert "\033" not in workbench("ls", env={**os.environ, "FORCE_COLOR": "1"}).stdout
