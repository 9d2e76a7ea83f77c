"""Whatever the disk does, at whatever moment: committed artifacts are whole, and the user reads one sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store import workers
from tests.store.faults import failing
from workbench.errors import StoreError
from workbench.store import Store, disk
from workbench.store.local import Tree

ROOT = Path(__file__).parents[2]


def test_dying_at_any_file_system_call_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.store.workers", "die", str(tmp_path), "a/b", "0", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    steps = dict(line.split() for line in done.stdout.splitlines())
    assert steps.keys() == {label for label, _, _ in workers.SCENARIOS}
    assert int(steps["first-commit"]) > 40 and int(steps["second-commit"]) > 30


@pytest.mark.parametrize(
    ("error", "sticky"),
    [(errno.EIO, False), (errno.ENOSPC, False), (errno.EROFS, True)],
    ids=["EIO-once", "ENOSPC-once", "EROFS-from-then-on"],
)
@pytest.mark.parametrize(("label", "before", "action"), workers.SCENARIOS, ids=[s[0] for s in workers.SCENARIOS])
def test_an_error_at_any_call_is_one_sentence_and_leaves_the_store_sound(
    tmp_path, label, before, action, error, sticky
):
    k, failed = 0, True
    while failed and k < 500:
        k += 1
        root = tmp_path / str(k)
        before(Store(root, durable=False))
        held = [art.ref for art in Store(root).log("a/b")] if before is not workers.nothing else []
        with failing(k, error=error, sticky=sticky) as calls:
            try:
                action(Store(root))
            except StoreError as caught:
                assert str(caught).count("\n") == 0 and str(root) in str(caught), caught
            failed = calls.count >= k
        after = Store(root, durable=False)
        kept = [art.ref for art in after.log("a/b")] if "a/b" in after.names() else []
        assert kept[-len(held) :] == held if held else len(kept) <= 1
        workers.check_survivor(after)
    assert k > 5


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.ENOSPC, "No room to write"),
        (errno.EDQUOT, "No room to write"),
        (errno.EROFS, "No permission to write"),
        (errno.EACCES, "No permission to write"),
        (errno.EIO, "check the disk"),
    ],
)
def test_errors_of_the_disk_name_the_store_and_the_remedy(tmp_path, error, words):
    store = Store(tmp_path, durable=False)
    workers.commit(store, "a/b", 1)
    with (
        pytest.raises(StoreError, match=words) as caught,
        failing(1, error=error, sticky=True, only=("mkdir", "write")),
    ):
        workers.commit(store, "a/b", 2)
    assert "nothing was committed" in str(caught.value) and str(tmp_path) in str(caught.value)
    assert [art.version for art in store.log("a/b")] == [1] and not store.fsck()


@pytest.mark.parametrize("payload", ["table", "tensors"])
def test_a_full_disk_under_a_foreign_writer_is_the_same_sentence(tmp_path, payload):
    """Parquet and safetensors are written by C++ and Rust: make the operating system itself refuse."""
    script = f"""
import resource, signal, numpy as np
from workbench.errors import StoreError
from workbench.store import Store
store = Store({str(tmp_path)!r})
with store.stage("a") as out:
    out.json("x", 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with store.stage("a") as out:
        data = {{"x": np.random.default_rng(0).random(100_000)}}
        out.{payload}("big", data)
except StoreError as error:
    print(error)
print([art.version for art in store.log("a")], store.fsck(), list((store.root / ".store" / "staging").iterdir()))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("No room to write"), done.stdout + done.stderr
    assert done.stdout.splitlines()[1] == "[1] [] []"


def test_a_rename_that_succeeds_and_then_reports_failure_is_a_commit(tmp_path, monkeypatch):
    real = Path.rename

    def rename(source, target):
        real(source, target)
        raise OSError(errno.EEXIST if replay else errno.EIO, "replayed", str(target))

    store = Store(tmp_path, durable=False)
    workers.commit(store, "a/b", 1)
    for replay in (True, False):
        monkeypatch.setattr(Path, "rename", rename)
        workers.commit(store, "a/b", 2 + replay)
        monkeypatch.undo()
    assert [art.version for art in store.log("a/b")] == [3, 2, 1]
    assert not store.fsck() and not list((tmp_path / ".store" / "staging").iterdir())


def test_a_number_that_is_taken_and_not_listed_yet_is_passed_over(tmp_path, monkeypatch):
    """As sshfs has it: a folder's listing is 20 seconds old, and a rename onto a taken name is "not permitted"."""
    store = Store(tmp_path, durable=False)
    workers.commit(store, "a/b", 1)
    workers.commit(store, "a/b", 2)
    monkeypatch.setattr(Tree, "versions", lambda self, name: [1])
    rename = Path.rename

    def refused(self, target):
        if target.exists():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    assert workers.commit(store, "a/b", 3).startswith("3 ")
    monkeypatch.undo()
    third, second, _ = store.log("a/b")
    assert third.manifest["previous"] == second.digest
    workers.check_survivor(store)


def test_what_was_replaced_while_it_was_opened_is_opened_again(tmp_path, monkeypatch):
    (tmp_path / "page").write_text("new")
    opened, stale = os.open, [errno.ESTALE, errno.ESTALE]

    def first_stale(*args, **kwargs):
        if stale:
            raise OSError(stale.pop(), "Stale file handle")
        return opened(*args, **kwargs)

    monkeypatch.setattr(os, "open", first_stale)
    assert disk.read(tmp_path / "page") == b"new"
    stale += [errno.ESTALE] * 3
    with pytest.raises(OSError, match="Stale"):
        disk.read(tmp_path / "page")


@pytest.mark.parametrize("error", [errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOTSUP])
def test_without_hard_links_everything_but_the_sharing_works(tmp_path, error):
    with failing(1, error=error, sticky=True, only=("link",)):
        store = Store(tmp_path, durable=False)
        workers.commit(store, "a/b", 1)
        workers.commit(store, "a/b", 2)
        store.tag("a/b@v1", "paper")
        with pytest.raises(StoreError, match="already points to v1"):
            store.tag("a/b", "paper")
        store.tag("a/b", "paper", force=True)
        assert store["a/b@paper"].version == 2
    assert not store.fsck()
    assert (tmp_path / "a/b/v1/shared.bin").stat().st_nlink == 1
    assert '"hardlink": false' in (tmp_path / "STORE.json").read_text()


def test_a_file_system_where_folders_overwrite_each_other_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda source, target: None)
    with pytest.raises(StoreError, match="overwrite each other"):
        workers.commit(Store(tmp_path / "store"), "a/b", 1)
    monkeypatch.undo()
    assert Store(tmp_path / "store").names() == []


def test_everything_is_on_disk_before_the_version_appears(tmp_path):
    store = Store(tmp_path)
    workers.commit(store, "a/b", 1)
    with failing() as calls:
        workers.commit(store, "a/b", 2)
    commit = next(i for i, call in enumerate(calls.trace) if call[0] == "rename" and "staging" in call[1])
    staged = calls.trace[commit][1]
    flushed: dict[str, int] = {}
    opened = ""
    for i, (call, path) in enumerate(calls.trace):
        if call == "open":
            opened = path
        elif call == "fsync":
            flushed[opened] = i
    for name in ("summary.json", "own.bin", "shared.bin", "MANIFEST.json"):
        path = f"{staged}/{name}"
        changed = max(i for i, c in enumerate(calls.trace) if c[1] == path and c[0] in ("open", "link", "replace"))
        assert changed < flushed[path] < flushed[staged] < commit, name
    assert flushed[str(tmp_path / "a/b")] > commit
