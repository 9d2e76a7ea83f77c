"""What a person does with a store: commit, find again by any reference, see where things came from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench.errors import CorruptArtifact, InputError, NotFound, StoreError
from workbench.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", durable=False)


def put(store, name="a/b", value=1, **options):
    with store.stage(name, config={"value": value}, **options) as out:
        out.json("summary", {"value": value})
    return out.artifact


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# -- opening -----------------------------------------------------------------------------------------------------------


def test_reading_an_absent_store_finds_nothing_and_creates_nothing(store):
    assert store.names() == store.ls() == store.fsck() == [] and store.find(run_key="k") is None
    assert store.gc().staging == 0 and "a" not in store and store.tags("a") == {}
    with pytest.raises(NotFound, match="store is empty"):
        store["a"]
    assert not store.root.exists()


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORKBENCH_STORE", raising=False)
    assert Store().root == tmp_path / "artifacts"
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "else"))
    assert Store().root == tmp_path / "else" and Store("here").root == tmp_path / "here"


def test_the_first_commit_creates_the_store_and_keeps_a_readme(store):
    store.root.mkdir()
    (store.root / "README.md").write_text("mine")
    put(store)
    assert (store.root / "README.md").read_text() == "mine"
    assert json.loads((store.root / "STORE.json").read_text())["format"] == 1


def test_unknown_and_damaged_stores_are_refused(store, tmp_path):
    put(store)
    (store.root / "STORE.json").write_text('{"format": 2}')
    with pytest.raises(StoreError, match="format 2"):
        Store(store.root)
    (store.root / "STORE.json").write_text("{")
    with pytest.raises(CorruptArtifact, match=r"STORE\.json is damaged: delete it"):
        Store(store.root)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file")
    racer = Store(tmp_path / "later")
    (tmp_path / "later").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        put(racer)


# -- committing --------------------------------------------------------------------------------------------------------


def test_payloads_are_plain_files_and_come_back(store):
    with store.stage("a/b", kind="x/1", summary={"top": 1.0}, timing={"run": 2}) as out:
        out.table("heads", {"layer": np.arange(3), "score": np.array([1, np.nan, 3])}, metadata={"unit": "nats"})
        out.tensors("arrays", {"x": np.ones((2, 3), np.float32)})
        out.json("summary", {"top": float("nan")})
        out.text("map.html", "<p>ü")
        out.bytes("raw.bin", b"\0\1")
        out.path("figure.svg").write_text("<svg/>")
        with pytest.raises(StoreError, match="does not exist before"):
            _ = out.artifact
    art = out.artifact
    assert (art.name, art.version, str(art), out.is_new, art.kind) == ("a/b", 1, "a/b@v1", True, "x/1")
    assert art.table("heads").column_names == ["layer", "score"] and art.metadata("heads.parquet") == {"unit": "nats"}
    assert art.tensors("arrays", keys=["x"])["x"].sum() == 6 and art.json("summary") == {"top": None}
    assert art.text("map.html") == "<p>ü" and art.bytes("raw.bin") == b"\0\1"
    assert art.path("figure.svg").read_text() == "<svg/>" and art.path() == art.folder
    assert set(art.files()) == {p.name for p in art.folder.iterdir()} - {"MANIFEST.json"}
    assert all(path.stat().st_mode & 0o222 == 0 for path in art.folder.iterdir())
    assert store["a/b"] == art and store["a/b"].summary == {"top": 1.0} and art.created.endswith("Z")
    with pytest.raises(NotFound, match=r"no file 'heds\.parquet'\. Did you mean 'heads\.parquet'"):
        art.table("heds")
    with pytest.raises(StoreError, match="is committed"):
        out.json("late", 1)


def test_reading_a_file_as_what_it_is_not_says_so(store):
    with store.stage("a/b") as out:
        out.bytes("x.json", b"{\xff")
        out.tensors("t", {"x": np.zeros(3)})
    for read, name in ((out.artifact.json, "x"), (out.artifact.text, "x.json")):
        with pytest.raises(InputError, match=r"x\.json of a/b@v1 does not hold"):
            read(name)
    array = out.artifact.tensors("t")["x"]
    array += 1
    assert out.artifact.tensors("t")["x"].sum() == 0, "arrays are the reader's own"


def test_equal_content_is_not_stored_twice_unless_forced(store):
    first = put(store)
    with store.stage("a/b", config={"value": 1}, producer={"argv": ["else"]}, timing={"s": 3}) as out:
        out.json("summary", {"value": 1})
    assert out.artifact == first and not out.is_new
    forced = put(store, force=True)
    assert forced.version == 2 and forced.digest == first.digest
    assert put(store, value=2).version == 3
    assert put(store, value=1).version == 4, "the latest is another content: going back is a change"
    assert [art.version for art in store.log("a/b")] == [4, 3, 2, 1]
    assert store["a/b@v2"].manifest["previous"] == first.digest


def test_a_new_run_key_makes_a_new_version_so_that_it_can_be_found(store):
    first, second = put(store, run_key="torch-1"), put(store, run_key="torch-2")
    assert second.version == 2 and second.digest == first.digest
    assert store.find(run_key="torch-2") == second and store.find(run_key="torch-1") == first
    assert put(store, run_key="torch-2") == second


def test_an_exception_in_the_block_leaves_no_trace(store):
    put(store)
    before = tree(store.root)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), store.stage("a/b") as out:
            out.json("x", 1)
            raise error
    with pytest.raises(InputError, match="must be a mapping"):
        put(store, producer=[1])
    assert tree(store.root) == before


def test_staging_refuses_what_it_could_not_keep(store):
    with store.stage("a/b") as out:
        out.json("x", 1)
        for bad in ("../x", "a/b", "MANIFEST.json", ".x", ""):
            with pytest.raises(InputError, match="Payload name"):
                out.bytes(bad, b"")
        with pytest.raises(InputError, match=r"already has a file 'X\.json'"):
            out.json("X", 2)
        with pytest.raises(InputError, match="'y'"):
            out.tensors("arrays", {"y": "text"})
        out.tensors("arrays", {"y": np.zeros(1)})
    assert set(out.artifact.files()) == {"x.json", "arrays.safetensors"}
    with pytest.raises(StoreError, match=r"'f\.svg' was promised"), store.stage("a/b") as out:
        out.path("f.svg")
    with pytest.raises(StoreError, match=r"'stray' lies in the staging"), store.stage("a/b") as out:
        (out.path("f.svg").parent / "stray").write_text("")
        out._folder.joinpath("f.svg").write_text("")
    with pytest.raises(StoreError, match="not a plain file"), store.stage("a/b") as out:
        out.path("link").symlink_to("/etc/passwd")
    assert [art.version for art in store.log("a/b")] == [1] and not store.fsck()


def test_names_may_be_prefixes_of_one_another(store):
    outer, inner = put(store, "retrieval"), put(store, "retrieval/x", 2)
    store.tag(outer, "paper")
    store.tag(inner, "paper")
    assert store.names() == ["retrieval", "retrieval/x"]
    assert store["retrieval@paper"] == outer and store["retrieval/x@paper"] == inner
    assert store.ls("retrieval/") == [inner] and not store.fsck()


def test_a_file_or_link_in_the_way_is_named(store, tmp_path):
    put(store)
    (store.root / "file").write_text("")
    (store.root / "link").symlink_to(tmp_path)
    for name in ("file/x", "link/x"):
        with pytest.raises(StoreError, match="is in the way"):
            put(store, name)
    assert not (tmp_path / "x").exists() and store.names() == ["a/b"]


def test_large_equal_payloads_are_one_file_on_disk(store):
    arts = []
    for name in ("a", "b"):
        with store.stage(name, config={"name": name}) as out:
            out.bytes("big.bin", b"x" * 70_000)
            out.bytes("small.bin", b"x")
        arts.append(out.artifact)
    first, second = arts
    assert first.path("big.bin").samefile(second.path("big.bin"))
    assert not first.path("small.bin").samefile(second.path("small.bin"))


def test_a_damaged_object_does_not_spread(store):
    for name in ("a", "b"):
        with store.stage(name, config={"name": name}) as out:
            out.bytes("big.bin", b"x" * 70_000)
        if name == "a":
            path = out.artifact.path("big.bin")
            path.chmod(0o644)
            path.write_bytes(b"y" * 70_000)
    assert store["b"].bytes("big.bin") == b"x" * 70_000
    assert {problem.ref for problem in store.fsck()} == {"a@v1", ""}


# -- references --------------------------------------------------------------------------------------------------------


def test_every_kind_of_reference(store):
    first, second = put(store, value=1), put(store, value=2)
    store.tag(first, "paper")
    digits = first.digest.removeprefix("sha256:")
    for ref in (
        "a/b@v1",
        "a/b@paper",
        first.digest,
        digits[:6],
        f"sha256:{digits[:8]}",
        f"a/b@sha256:{digits[:4]}",
        first,
    ):
        assert store[ref] == first, ref
    for ref in ("a/b", "a/b@latest", "a/b@v2", f"a/b@{second.digest[7:17]}"):
        assert store[ref] == second, ref
    assert "a/b@v1" in store and "a/b@v9" not in store and "../x" not in store


def test_the_same_content_under_two_names_is_not_ambiguous(store):
    put(store, "a")
    newer = put(store, "b")
    assert store[newer.digest] == newer


def test_a_hexadecimal_word_that_is_a_name_is_a_name(store):
    art = put(store, "facade")
    assert store["facade"] == art


def test_ambiguous_prefixes_list_what_they_match(store, monkeypatch):
    from workbench.store import refs

    monkeypatch.setattr(refs, "MIN_HEX", 1)
    arts = [put(store, "a", value) for value in range(17)]
    digits = [art.digest[7:8] for art in arts]
    twice = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(StoreError, match=r"is ambiguous: it matches a@v\d+ .*, a@v\d+ "):
        store[f"sha256:{twice}"]


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("retreival/demo", "Did you mean 'retrieval/demo'"),
        ("retrieval/demo@v9", "it has v1 to v2"),
        ("retrieval/demo@papr", "Did you mean 'paper'"),
        ("retrieval/demo@zzz", "It has paper"),
        ("sha256:000000000000", "No artifact matches"),
        ("retrieval", "no artifact 'retrieval'"),
    ],
)
def test_what_is_not_there_is_said_with_a_suggestion(store, ref, words):
    put(store, "retrieval/demo", 1)
    put(store, "retrieval/demo", 2)
    store.tag("retrieval/demo", "paper")
    with pytest.raises(NotFound, match=words):
        store[ref]


def test_tags_move_only_by_force(store):
    put(store, value=1)
    put(store, value=2)
    store.tag("a/b@v1", "paper")
    store.tag("a/b@v1", "paper")
    with pytest.raises(StoreError, match="already points to v1"):
        store.tag("a/b@v2", "paper")
    store.tag("a/b@v2", "paper", force=True)
    assert store.tags("a/b") == {"paper": 2}
    store.untag("a/b", "paper")
    with pytest.raises(NotFound, match="no tag 'paper'"):
        store.untag("a/b", "paper")


# -- history -----------------------------------------------------------------------------------------------------------


def test_find_is_a_cache_that_skips_what_is_not_whole(store):
    old, new = put(store, "a", 1, run_key="k"), put(store, "b", 2, run_key="k")
    assert store.find(run_key="k") == new and store.find("a", run_key="k") == old
    assert store.find(run_key="other") is None and store.find("none", run_key="k") is None
    new.path("summary.json").unlink()
    assert store.find(run_key="k") == old
    (old.folder / "MANIFEST.json").unlink()
    assert store.find(run_key="k") is None


def test_lineage_and_staleness(store):
    acts = put(store, "acts", 1)
    scores = put(store, "scores", 2, inputs=[acts])
    outside = {"ref": "elsewhere@v7", "digest": "sha256:" + "7" * 64}
    plot = put(store, "plot", 3, inputs=["scores@v1", "acts", outside])
    assert [(a.ref, a.depth, a.state) for a in store.lineage(plot)] == [
        ("scores@v1", 1, "ok"),
        ("acts@v1", 1, "ok"),
        ("elsewhere@v7", 1, "absent"),
    ]
    assert [(a.ref, a.child) for a in store.lineage("scores")] == [("acts@v1", "scores@v1")]
    assert store.stale(scores) == [] and [item.ref for item in store.stale(plot)] == ["elsewhere@v7"]
    put(store, "acts", 1, force=True)
    assert store.stale(scores) == [], "the same content again changes nothing"
    put(store, "acts", 5)
    assert [(item.ref, item.newest) for item in store.stale(scores)] == [("acts@v1", "acts@v3")]
    for art in store.log("acts"):
        store.remove(art, why="test")
    assert [(item.ref, item.newest) for item in store.stale(scores)] == [("acts@v1", None)]
    assert [a.state for a in store.lineage(scores)] == ["removed"]


def test_an_input_is_found_by_its_digest_wherever_it_lies(store):
    acts = put(store, "acts", 1)
    child = put(store, "child", 2, inputs=[{"ref": "other-lab/acts@v9", "digest": acts.digest}])
    assert [(a.ref, a.state) for a in store.lineage(child)] == [("acts@v1", "ok")] and not store.fsck()


def test_diff_names_what_changed(store):
    put(store, value=1)
    with store.stage("a/b", config={"value": 2, "new": True}) as out:
        out.json("summary", {"value": 1})
        out.json("extra", 1)
    diff = store.diff("a/b@v1", "a/b@v2")
    assert diff["config"] == {"value": [1, 2], "new": [None, True]} and not diff["same"]
    assert diff["files"] == {"extra.json": "added", "summary.json": "same"} and diff["kind"] == {}


def test_one_damaged_manifest_does_not_hide_the_rest(store):
    bad, good = put(store, "bad"), put(store, "good")
    path = bad.folder / "MANIFEST.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"value": 1', b'"value": 2'))
    with pytest.warns(UserWarning, match="bad/v1/MANIFEST.json"):
        assert store.ls() == [good]
    assert store.names() == ["bad", "good"]
    with pytest.raises(CorruptArtifact, match="workbench fsck"):
        store["bad"]
    assert put(store, "bad", 3).version == 2, "a damaged version keeps its number"


def test_a_moved_folder_is_not_taken_for_what_its_place_says(store):
    put(store, "a")
    (store.root / "a").rename(store.root / "b")
    with pytest.raises(CorruptArtifact, match="belongs to a@v1"):
        store["b"]
    assert [problem.kind for problem in store.fsck()] == ["misplaced"]


def test_hundreds_of_artifacts_are_listed_at_once(store):
    import time

    for i in range(150):
        put(store, f"many/n{i}", i)
    start = time.process_time()
    assert len(store.ls()) == len(store.names()) == 150
    assert time.process_time() - start < 1
