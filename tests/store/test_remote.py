"""Push, pull and reading a store at a URL: what arrives is what was sent, and nothing there is ever overwritten."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import fsspec
import pytest

from tests.store.far import contents, fill, place, pull_all, push_all
from workbench.cli import main
from workbench.errors import InputError, NotFound, StoreError
from workbench.store import Store


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return place(request.param, tmp_path)


@pytest.fixture(params=["memory", "file", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
    return place(request.param, tmp_path)


def test_what_is_pushed_is_read_and_pulled_equal(tmp_path, anywhere):
    url = anywhere
    mine = fill(tmp_path / "mine", numbers=(1, 2, 3), tag="paper")
    sent = push_all(mine, url)
    assert [one.became for one in sent] == ["a/b@v1", "a/b@v2", "a/b@v3"]
    assert all(one.is_new and one.files == 2 for one in sent) and sent[2].tags == ("paper",)
    there = Store(url)
    assert there.names() == ["a/b"] and there.tags("a/b") == {"paper": 3}
    assert contents(there) == contents(mine)
    assert there["a/b@paper"].table("heads")["score"].to_pylist() == [3.0, 0.5]
    assert there["a/b@v2"].digest == mine["a/b@v2"].digest and there["a/b@v2"].config == {"number": 2}
    assert there[mine["a/b@v1"].digest[:20]].version == 1
    yours = fill(tmp_path / "yours", numbers=(7,))
    got = pull_all(yours, url)
    assert [one.became for one in got] == ["a/b@v2", "a/b@v3", "a/b@v4"]
    assert yours.tags("a/b") == {"paper": 4} and yours.fsck() == []
    assert contents(yours)["a/b"] == contents(mine)["a/b"] | {yours["a/b@v1"].digest}
    origin = yours["a/b@v3"].origin
    assert origin is not None
    assert origin["url"] == url and origin["ref"] == "a/b@v2" and origin["created"] == mine["a/b@v2"].created
    assert yours["a/b@v1"].origin is None


def test_doing_it_again_copies_nothing(tmp_path, anywhere):
    url = anywhere
    mine = fill(tmp_path / "mine", tag="paper")
    push_all(mine, url)
    assert [(one.is_new, one.files, one.became) for one in push_all(mine, url)] == [
        (False, 0, "a/b@v1"),
        (False, 0, "a/b@v2"),
    ]
    yours = Store(tmp_path / "yours", durable=False)
    pull_all(yours, url)
    assert [(one.is_new, one.files) for one in pull_all(yours, url)] == [(False, 0)] * 2
    assert [(one.is_new, one.became) for one in push_all(yours, url)] == [(False, "a/b@v1"), (False, "a/b@v2")]
    assert len(Store(url).log("a/b")) == 2


def test_files_there_are_plain_and_their_folder_is_the_hash_of_the_manifest(tmp_path):
    url = place("file", tmp_path)
    mine = fill(tmp_path / "mine", numbers=(1,), tag="paper")
    push_all(mine, url)
    root = tmp_path / "far"
    (folder,) = (root / "a/b").glob("@*")
    page = (folder / "MANIFEST.json").read_bytes()
    assert folder.name == "@" + hashlib.sha256(page).hexdigest()
    assert page == (mine["a/b"].folder / "MANIFEST.json").read_bytes()
    assert (root / "a/b/v1").read_text() == (root / "a/b/tags/paper").read_text() == folder.name[1:] + "\n"
    assert (folder / "big.bin").read_bytes() == mine["a/b"].bytes("big.bin")
    assert json.loads((root / "STORE.json").read_text()) == {"format": "remote-1", "hash": "sha256"}
    assert not [path for path in root.rglob("*") if path.name.endswith(".part")]


def test_names_inside_one_another_do_not_mix(tmp_path, url):
    mine = fill(tmp_path / "mine", "a", (1,))
    fill(tmp_path / "mine", "a/b", (2, 3))
    fill(tmp_path / "mine", "a/bc", (4,))
    push_all(mine, url)
    assert contents(Store(url)) == contents(mine)
    assert [art.ref for art in Store(url).ls("a/b")] == ["a/b@v2", "a/bc@v1"]


def test_only_what_is_named_is_copied(tmp_path, url):
    mine = fill(tmp_path / "mine", numbers=(1, 2, 3))
    mine.push(["a/b@v2"], url)
    assert [art.config["number"] for art in Store(url).log("a/b")] == [2]
    with pytest.raises(NotFound, match="no version v9"):
        mine.push(["a/b@v1", "a/b@v9"], url)
    assert len(Store(url).log("a/b")) == 1
    yours = Store(tmp_path / "yours", durable=False)
    with pytest.raises(NotFound, match="no version v2"):
        yours.pull(["a/b@v2"], url)
    yours.pull(["a/b"], url)
    assert contents(yours) == contents(Store(url))


def test_a_tag_that_points_elsewhere_moves_only_when_told(tmp_path, anywhere):
    url = anywhere
    mine, yours = fill(tmp_path / "mine", tag="paper"), fill(tmp_path / "yours", numbers=(5,), tag="paper")
    push_all(mine, url)
    (kept,) = push_all(yours, url)
    assert kept.kept == ("paper",) and kept.became == "a/b@v3" and Store(url).tags("a/b") == {"paper": 2}
    (moved,) = push_all(yours, url, move_tags=True)
    assert moved.tags == ("paper",) and Store(url).tags("a/b") == {"paper": 3}
    assert [one.kept for one in pull_all(mine, url)] == [(), (), ("paper",)]
    assert mine.tags("a/b") == {"paper": 2}
    pull_all(mine, url, move_tags=True)
    assert mine.tags("a/b") == {"paper": 3}


def test_the_first_making_is_remembered_from_store_to_store(tmp_path):
    mine, far = fill(tmp_path / "mine", numbers=(1,)), [place("memory", tmp_path) for _ in range(2)]
    push_all(mine, far[0])
    yours = Store(tmp_path / "yours", durable=False)
    pull_all(yours, far[0])
    push_all(yours, far[1])
    theirs = Store(tmp_path / "theirs", durable=False)
    pull_all(theirs, far[1])
    origin = theirs["a/b"].origin
    assert origin is not None and origin["url"] == far[1] and origin["created"] == mine["a/b"].created
    assert theirs["a/b"].created > mine["a/b"].created and theirs["a/b"].digest == mine["a/b"].digest
    assert [one.is_new for one in push_all(theirs, far[0])] == [False]


def test_what_was_removed_here_is_not_brought_back_unasked(tmp_path, url):
    mine = fill(tmp_path / "mine")
    push_all(mine, url)
    mine.remove("a/b@v1", "wrong data")
    assert [one.ref for one in pull_all(mine, url)] == ["a/b@v2"]
    assert [one.became for one in mine.pull(["a/b@v1"], url)] == ["a/b@v3"]
    assert push_all(mine, url)[-1].is_new is False


def test_a_store_at_a_url_is_only_read(tmp_path, url):
    mine = fill(tmp_path / "mine")
    push_all(mine, url)
    there = Store(url)
    acts = [
        lambda: there.stage("a/b").__enter__(),
        lambda: there.tag("a/b", "x"),
        lambda: there.untag("a/b", "x"),
        lambda: there.remove("a/b", "why"),
        there.fsck,
        there.gc,
        lambda: there.find(run_key="key1"),
        lambda: there.root,
        lambda: there.push(None, url),
        lambda: there.pull(None, url),
    ]
    for act in acts:
        with pytest.raises(StoreError, match="can only be read") as caught:
            act()
        assert url in str(caught.value)


def test_files_too_large_for_one_piece_are_checked_in_pieces(tmp_path, anywhere, monkeypatch):
    from workbench.store import artifact, remote_files

    monkeypatch.setattr(remote_files, "CHUNK", 30_000)
    monkeypatch.setattr(artifact, "ALWAYS_HASH_BELOW", 1000)
    mine = fill(tmp_path / "mine", numbers=(1,))
    push_all(mine, anywhere)
    assert contents(Store(anywhere)) == contents(mine)


def test_an_empty_place_reads_as_an_empty_store(anywhere):
    url = anywhere
    there = Store(url)
    assert there.names() == [] and there.ls() == []
    with pytest.raises(NotFound, match="The store is empty"):
        there.get("a/b")


def test_a_local_store_is_no_place_to_push_to(tmp_path):
    mine = fill(tmp_path / "mine")
    for act in (lambda: push_all(mine, f"file://{mine.root}"), lambda: Store(f"file://{mine.root}").names()):
        with pytest.raises(StoreError, match="is a local store"):
            act()
    push_all(mine, place("file", tmp_path))
    with pytest.raises(StoreError, match="remote-1"):
        Store(tmp_path / "far")
    for path in tmp_path.joinpath("far").glob("STORE.json"):
        path.write_text('{"format": "remote-2"}')
    with pytest.raises(StoreError, match="remote-2"):
        push_all(mine, place("file", tmp_path))


def test_addresses_that_are_none_are_refused(tmp_path):
    mine = fill(tmp_path / "mine")
    with pytest.raises(InputError, match="no address"):
        push_all(mine, "://x")
    with pytest.raises(StoreError, match="Protocol not known"):
        push_all(mine, "nope://x/y")


def test_a_password_in_an_address_is_not_kept(tmp_path):
    from workbench.store.remote_files import public

    assert public("sftp://me:secret@host/x/") == "sftp://host/x"
    assert public("s3://lab/a@b") == "s3://lab/a@b" or "secret" not in public("s3://lab/a@b")


def test_the_command_line_pushes_pulls_and_reads(tmp_path, anywhere, capsys, monkeypatch):
    url = anywhere
    fill(tmp_path / "mine", tag="paper")
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "mine"))

    def said(*arguments: str, code: int = 0) -> str:
        assert main(arguments) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    assert "a/b@v2 -> a/b@v1  2 files" in said("push", "a/b@paper", url)
    assert "a/b@v2 -> a/b@v1  was there; tags paper" in said("push", "--all", url)
    assert len(json.loads(said("push", "--all", url, "--json"))) == 2
    for arguments, words in (
        (["ls"], "a/b"),
        (["show", "a/b@paper"], url),
        (["log", "a/b"], "paper"),
        (["diff", "a/b@v1", "a/b@v2"], "different content"),
    ):
        assert words in said(*arguments, "--store", url)
    assert said("export", "a/b@paper", "--store", url) == said("export", "a/b@v2")
    monkeypatch.setenv("WORKBENCH_STORE", url)
    assert json.loads(said("ls", "--json"))[0]["versions"] == 2
    here = str(tmp_path / "yours")
    assert said("pull", "a/b@paper", url, "--store", here).startswith("a/b@v1 -> a/b@v1  2 files")
    assert f"{url} a/b@v1" in said("show", "a/b", "--store", here)
    assert "can only be read" in said("pull", "a/b", url, code=2)
    assert "can only be read" in said("tag", "a/b", "x", code=2)
    for arguments, words in (
        (["push", "a/b"], "The last argument is the address"),
        (["push", url], "Say what to copy"),
        (["push", "--all", "a/b", url], "--all takes everything"),
        (["pull", "a/x", url], "no artifact 'a/x'"),
    ):
        assert words in said(*arguments, "--store", here, code=2)


def test_the_notebook_opens_a_url(tmp_path, url):
    import workbench as wb

    push_all(fill(tmp_path / "mine"), url)
    assert wb.heads("a/b@v1", store=url).matrix().tolist() == [[1.0], [0.5]]
    assert wb.store(url).names() == ["a/b"]


def test_fsspec_is_not_needed_for_a_local_store():
    import subprocess
    import sys

    code = "import sys, workbench.store, workbench.cli; print([m for m in ('fsspec', 's3fs') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert fsspec.__version__
