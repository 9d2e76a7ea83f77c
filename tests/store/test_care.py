"""Damage is found to the file, nothing is deleted by a repair, and garbage is only what nothing refers to."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from workbench.errors import CorruptArtifact, InputError, NotFound, StoreError
from workbench.store import Store


@pytest.fixture
def store(tmp_path):
    """Two versions that share a large payload, a dependent artifact and a tag."""
    store = Store(tmp_path / "store", durable=False)
    for number in (1, 2):
        with store.stage("a/b", config={"number": number}) as out:
            out.table("heads", {"score": np.random.default_rng(number).random(300)})
            out.tensors("arrays", {"x": np.zeros(20_000, np.float32)})
            out.json("summary", {"number": number})
    with store.stage("c", inputs=["a/b"]) as out:
        out.text("note.txt", "hello")
    store.tag("a/b@v1", "paper")
    return store


def damage(path, change):
    data = bytearray(path.read_bytes())
    path.chmod(0o644)
    inode = path.stat().st_ino
    path.write_bytes(change(data))
    assert path.stat().st_ino == inode


def flip(data):
    data[len(data) // 3] ^= 4
    return data


def everything(root):
    """Multiset of all file contents: what a repair must never shrink."""
    return sorted(path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def found(store, **options):
    return [(problem.kind, problem.path) for problem in store.fsck(**options)]


def test_a_sound_store_has_no_problems(store):
    assert store.fsck() == store.fsck(fast=True) == store.fsck(repair=True) == []


def test_every_flipped_byte_of_every_file_is_found_and_named(store):
    rng = random.Random(0)
    files = [p for p in store.root.rglob("*") if p.is_file() and p.name not in ("README.md", "STORE.json")]
    assert len(files) > 8
    for path in files:
        good = path.read_bytes()
        for position in {0, len(good) - 1, *(rng.randrange(len(good)) for _ in range(6))}:
            bad = bytearray(good)
            bad[position] ^= 1 << rng.randrange(8)
            path.chmod(0o644)
            path.write_bytes(bad)
            name = path.relative_to(store.root).as_posix()
            assert name in [problem.path for problem in store.fsck()], (name, position)
            path.write_bytes(good)
    assert not store.fsck()


@pytest.mark.parametrize("name", ["heads.parquet", "summary.json", "arrays.safetensors"])
@pytest.mark.parametrize("kind", ["changed", "size", "missing"])
def test_damage_is_named_seen_on_reading_and_set_aside(store, name, kind):
    art = store["a/b@v1"]
    path = art.path(name)
    where = f"a/b/v1/{name}"
    if name == "arrays.safetensors":  # break the sharing, so that a sound copy exists
        copy = path.read_bytes()
        path.unlink()
        path.write_bytes(copy)
    if kind == "missing":
        path.unlink()
    else:
        damage(path, flip if kind == "changed" else lambda data: data[:-1])
    before = everything(store.root)
    assert found(store) == [(kind, where)]
    assert found(store, fast=True) == ([] if kind == "changed" else [(kind, where)])
    with pytest.raises(CorruptArtifact, match=rf"{name}.*workbench fsck"):
        art.bytes(name)
    with pytest.raises(CorruptArtifact, match="workbench fsck"):
        {"h": art.table, "s": art.json, "a": art.tensors}[name[0]](name)
    (problem,) = store.fsck(repair=True)
    if name == "arrays.safetensors":
        assert "restored from" in problem.repaired and not store.fsck()
        assert art.tensors("arrays")["x"].shape == (20_000,)
    else:
        assert "no sound copy" in problem.repaired and "workbench rm a/b@v1" in problem.repaired
        assert found(store) == [("missing", where)]
    after = everything(store.root)
    assert all(after.count(data) >= before.count(data) for data in before), "a repair deleted something"


def test_large_payloads_are_checked_by_page_and_on_request(store, monkeypatch):
    monkeypatch.setattr("workbench.store.artifact.ALWAYS_HASH_BELOW", 0)
    art = store["a/b@v1"]
    damage(art.path("heads.parquet"), flip)
    damage(art.path("arrays.safetensors"), lambda data: data[:-1] + b"\1")
    with pytest.raises(CorruptArtifact, match=r"heads\.parquet"):
        art.table("heads")
    art.tensors("arrays")
    for read in (art.tensors, art.bytes):
        with pytest.raises(CorruptArtifact, match="is not what was committed"):
            read("arrays.safetensors", verify=True)
    damage(art.path("arrays.safetensors"), lambda data: data[:-1])
    with pytest.raises(CorruptArtifact, match="is not what was committed"):
        art.tensors("arrays")


def test_a_flip_in_shared_bytes_is_found_everywhere_it_counts(store):
    damage(store["a/b@v1"].path("arrays.safetensors"), flip)
    paths = [path for _, path in found(store)]
    assert paths[:2] == ["a/b/v1/arrays.safetensors", "a/b/v2/arrays.safetensors"] and "objects" in paths[2]
    store.fsck(repair=True)
    assert [kind for kind, _ in found(store)] == ["missing", "missing"]
    assert store["a/b@v2"].json("summary") == {"number": 2}


def test_extra_files_and_links_are_found_and_set_aside(store, tmp_path):
    folder = store["a/b@v1"].folder
    (folder / "extra.txt").write_text("x")
    (folder / "deep").mkdir()
    (folder / ".hidden").write_text("")
    target = tmp_path / "outside.txt"
    target.write_text("hello")
    note = store["c"].path("note.txt")
    note.unlink()
    note.symlink_to(target)
    with pytest.raises(CorruptArtifact, match="not a plain file"):
        store["c"].text("note.txt")
    assert found(store) == [
        ("extra", "a/b/v1/.hidden"),
        ("extra", "a/b/v1/deep"),
        ("extra", "a/b/v1/extra.txt"),
        ("link", "c/v1/note.txt"),
    ]
    store.fsck(repair=True)
    assert found(store) == [("missing", "c/v1/note.txt")] and target.read_text() == "hello"


@pytest.mark.parametrize("change", ["flip", "delete", "empty"])
def test_a_version_without_a_trustworthy_manifest_is_set_aside_whole(store, change):
    path = store["a/b@v2"].folder / "MANIFEST.json"
    if change == "delete":
        path.unlink()
    else:
        damage(path, flip if change == "flip" else lambda data: b"")
    before = everything(store.root)
    assert ("manifest", "a/b/v2/MANIFEST.json") in found(store)
    with pytest.raises(CorruptArtifact, match="fsck"):
        store["a/b"]
    store.fsck(repair=True)
    assert [kind for kind, _ in found(store)] == ["input"], "only the child of the lost version is left to report"
    assert store["a/b"].version == 1
    with pytest.raises(NotFound, match="set aside by fsck"):
        store["a/b@v2"]
    with store.stage("a/b", config={"number": 9}) as out:
        pass
    assert out.artifact.version == 3, "the number stays taken"
    after = everything(store.root)
    assert all(after.count(data) >= before.count(data) for data in before)


def test_dangling_tags_and_inputs_are_named(store):
    (store.root / "a/b/tags/paper").write_text("v9\n")
    (store.root / "a/b/tags/odd").write_text("what")
    (store.root / "c/v2").mkdir()
    digest = "sha256:" + "1" * 64
    with store.stage("d", inputs=[{"ref": "gone@v1", "digest": digest}]):
        pass
    assert found(store) == [
        ("tag", "a/b/tags/odd"),
        ("tag", "a/b/tags/paper"),
        ("manifest", "c/v2/MANIFEST.json"),
        ("input", "d/v1/MANIFEST.json"),
    ]
    with pytest.raises(CorruptArtifact, match="holds no version"):
        store["a/b@odd"]
    store.fsck(repair=True)
    assert [kind for kind, _ in found(store)] == ["input"] and store.tags("a/b") == {}


@pytest.mark.parametrize("change", ["delete", "flip"])
def test_a_lost_or_damaged_store_json_is_written_anew(store, change):
    path = store.root / "STORE.json"
    if change == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"hardlink", b"hardlynk"))
    before = everything(store.root)
    assert found(store) == [("store", "STORE.json")]
    assert store.fsck(repair=True)[0].repaired == "written anew"
    assert not store.fsck() and set(before) <= set(everything(store.root))


def test_problems_read_as_one_line(store):
    damage(store["c"].path("note.txt"), flip)
    assert str(store.fsck()[0]) == "c/v1/note.txt: bytes differ from what was committed (sha256)"


# -- removing and collecting -------------------------------------------------------------------------------------------


def test_remove_keeps_the_record_and_the_number(store):
    art = store["a/b@v2"]
    with pytest.raises(InputError, match="needs a reason"):
        store.remove(art, why=" ")
    with pytest.raises(StoreError, match="is tagged 'paper'"):
        store.remove("a/b@v1", why="x")
    gone = store.remove(art, why="wrong seed")
    assert gone.removed and gone.removed["why"] == "wrong seed" and gone.digest == art.digest
    assert [path.name for path in art.folder.iterdir()] == ["MANIFEST.json"]
    with pytest.raises(NotFound, match="wrong seed"):
        store["a/b@v2"]
    with pytest.raises(NotFound, match="wrong seed"):
        art = store.log("a/b")[0]
        assert art.config == {"number": 2} and art.files() == {}
        art.json("summary")
    assert store["a/b"].version == 1 and not store.fsck()
    assert store.remove("a/b@v2", why="again").removed == gone.removed
    with store.stage("a/b", config={"number": 2}) as out:
        pass
    assert out.artifact.version == 3
    store.untag("a/b", "paper")
    for ref in ("a/b@v1", "a/b@v3"):
        store.remove(ref, why="x")
    assert store.names() == ["c"]
    with pytest.raises(NotFound, match="were removed"):
        store["a/b"]


def test_remove_finishes_what_a_crash_left(store):
    art = store["a/b@v2"]
    data = art.bytes("summary.json")
    store.remove(art, why="x")
    (art.folder / "summary.json").write_bytes(data)
    assert found(store) == [("extra", "a/b/v2/summary.json")]
    store.remove(art, why="x")
    assert not store.fsck()


def test_gc_takes_objects_only_when_nothing_links_to_them(store):
    (obj,) = (store.root / ".store/objects").glob("*/*")
    assert store.gc(age=0).objects == 0
    store.remove("a/b@v2", why="x")
    assert store.gc(age=0).objects == 0 and obj.exists()
    store.untag("a/b", "paper")
    store.remove("a/b@v1", why="x")
    freed = store.gc(age=0)
    assert (freed.objects, obj.exists()) == (1, False) and freed.bytes > 80_000


def test_gc_takes_staging_only_when_old_and_abandoned(store):
    staging = store.root / ".store/staging"
    dead = staging / "otherhost-123-abc"
    dead.mkdir()
    (dead / "x").write_text("x")
    (staging / "otherhost-124-abc").write_text("a torn tag")
    assert store.gc().staging == 0
    with store.stage("d") as out:
        out.json("x", 1)
        assert store.gc(age=-10).staging == 2, "both strangers, and not the one at work"
        assert [path.name for path in staging.iterdir()] == [out._folder.name]
    assert store["d"].json("x") == 1


def test_gc_survives_entries_that_vanish(store, monkeypatch):
    from workbench.store import care

    real = care._listing
    monkeypatch.setattr(care, "_listing", lambda folder: [*real(folder), folder / "vanished"])
    assert store.gc(age=0).objects == 0
    assert not store.fsck()


def test_a_version_folder_deleted_by_hand_is_not_numbered_again(store):
    store.untag("a/b", "paper")
    shutil.rmtree(store["a/b@v1"].folder)
    with store.stage("a/b", config={"number": 3}) as out:
        pass
    assert out.artifact.version == 3 and not store.fsck()


def test_a_manifest_or_tag_that_is_a_link_is_not_followed(store, tmp_path):
    for path in (store["c"].folder / "MANIFEST.json", store.root / "a/b/tags/paper"):
        outside = tmp_path / path.name
        outside.write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to(outside)
    with pytest.raises(CorruptArtifact, match=r"MANIFEST\.json cannot be read"):
        store["c"]
    with pytest.raises(NotFound):
        store["a/b@paper"]
    assert found(store) == [("tag", "a/b/tags/paper"), ("manifest", "c/v1/MANIFEST.json")]
