"""Whatever happens on the way: a reader meets only what is whole, nothing is lost, and the user reads one sentence."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.store.far import Died, contents, dying, fill, meddling, place, pull_all, push_all
from tests.store.faults import failing
from workbench.cli import main
from workbench.errors import CorruptArtifact, StoreError
from workbench.store import Store

# ---- dying on the way


@pytest.mark.parametrize("torn", [False, True], ids=["clean", "torn"])
def test_dying_at_any_call_of_a_push_leaves_only_whole_artifacts_and_the_next_push_finishes(tmp_path, torn):
    mine, other = fill(tmp_path / "mine", numbers=(1, 2), tag="paper"), fill(tmp_path / "before", numbers=(9,))
    counted = place("memory", tmp_path)
    push_all(other, counted)
    calls = len(_calls_of(lambda: push_all(mine, counted)))
    assert calls > 25
    for k in range(1, calls + 1):
        url = place("memory", tmp_path)
        push_all(other, url)
        with pytest.raises(Died), dying(k, torn=torn):
            push_all(mine, url)
        there = Store(url)
        seen = contents(there)["a/b"]  # reads and checks every payload
        before = other["a/b"].digest
        assert before in seen <= {before} | contents(mine)["a/b"], k
        assert there["a/b@v1"].digest == before
        numbered = {art.ref: art.digest for art in there.log("a/b")}
        sent = push_all(mine, url)
        after = Store(url)
        assert contents(after)["a/b"] == {before} | contents(mine)["a/b"], k
        assert {one.became for one in sent} == {art.ref for art in after.log("a/b") if art.digest != before}
        assert after["a/b@paper"].digest == mine["a/b@paper"].digest
        assert all(after[ref].digest == digest for ref, digest in numbered.items()), k
        if not torn:  # a half-written claim leaves a gap
            assert [art.version for art in after.log("a/b")] == [3, 2, 1], k


def test_dying_at_any_call_of_a_pull_leaves_the_local_store_sound(tmp_path):
    mine, url = fill(tmp_path / "mine", numbers=(1, 2), tag="paper"), place("memory", tmp_path)
    push_all(mine, url)
    calls = len(_calls_of(lambda: pull_all(Store(tmp_path / "count", durable=False), url)))
    assert calls > 5
    for k in range(1, calls + 1):
        yours = Store(tmp_path / f"yours{k}", durable=False)
        with pytest.raises(Died), dying(k, torn=True):
            pull_all(yours, url)
        assert yours.fsck() == []
        pull_all(yours, url)
        assert contents(yours) == contents(mine) and yours.fsck() == [] and yours.tags("a/b") == {"paper": 2}
        assert [art.version for art in yours.log("a/b")] == [2, 1]


@pytest.mark.filterwarnings("ignore:Left out of the log")
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_disk_at_any_call_is_one_sentence_and_the_next_push_finishes(tmp_path, error):
    mine = fill(tmp_path / "mine", numbers=(1,), tag="paper")
    k, failed = 0, True
    while failed and k < 500:
        k += 1
        far = tmp_path / str(k)
        far.mkdir()
        url = place("file", far)
        with failing(k, error=error, only=("link", "replace", "mkdir", "open", "unlink")) as calls:
            try:
                push_all(mine, url)
            except StoreError as caught:
                assert str(caught).count("\n") == 0
            failed = calls.count >= k
        there = Store(url)
        assert set().union(*contents(there).values()) <= contents(mine)["a/b"]
        push_all(mine, url)
        assert contents(Store(url)) == contents(mine) and Store(url).tags("a/b") == {"paper": 1}
        assert Store(url)["a/b@v1"].digest == mine["a/b"].digest
    assert k > 8


def test_an_interrupted_push_goes_on_from_the_files_that_arrived(tmp_path):
    mine, url = fill(tmp_path / "mine", numbers=(1,)), place("memory", tmp_path)
    calls = _calls_of(lambda: push_all(mine, place("memory", tmp_path)))
    assert calls.count("put_file") == 2
    second = [number for number, name in enumerate(calls, start=1) if name == "put_file"][1]
    with pytest.raises(Died), dying(second, torn=False):
        push_all(mine, url)
    assert Store(url).names() == []
    with dying(0, torn=False) as made:
        (sent,) = push_all(mine, url)
    assert made.count("put_file") == 1 and (sent.is_new, sent.files) == (True, 1)
    assert contents(Store(url)) == contents(mine)


def _calls_of(act: Callable[[], Any]) -> list[str]:
    with dying(0, torn=False) as made:
        act()
    return made


# ---- two at once


@pytest.mark.parametrize("atomic", [True, False], ids=["put-if-absent", "last-writer-wins"])
def test_a_whole_push_between_any_two_calls_of_another_loses_nothing(tmp_path, atomic):
    """Also where a place ignores the condition and lets the last writer win: a number may move, no artifact goes."""
    mine, yours = fill(tmp_path / "mine", numbers=(1,)), fill(tmp_path / "yours", numbers=(2,))
    both = {mine["a/b"].digest, yours["a/b"].digest}
    calls = len(_calls_of(lambda: push_all(mine, place("memory", tmp_path))))
    for k in range(1, calls + 1):
        url, made, got = place("memory", tmp_path), 0, []

        def meddle(name: str, args: Any, kwargs: Any, real: Any, k: int = k, url: str = url, got: list = got) -> Any:
            nonlocal made
            made += 1
            if made == k:
                got += push_all(yours, url)
            if not atomic and name == "pipe_file":
                kwargs = {}
            return real(*args, **kwargs)

        with meddling(meddle):
            (sent,) = push_all(mine, url)
        there = Store(url)
        assert contents(there)["a/b"] == both, k
        if atomic:
            assert there[sent.became].digest == mine["a/b"].digest
            assert there[got[0].became].digest == yours["a/b"].digest
            assert sorted(art.version for art in there.log("a/b")) == [1, 2]
        push_all(mine, url)
        push_all(yours, url)
        assert contents(Store(url))["a/b"] == both
        assert len({art.digest for art in Store(url).log("a/b")}) == len(Store(url).log("a/b")) == 2


@pytest.mark.parametrize(("kind", "pushers"), [("file", 6), ("s3", 3)])
def test_many_pushers_of_one_name_at_once_lose_nothing(tmp_path, kind, pushers, request):
    if kind == "s3":
        request.getfixturevalue("s3")
    url = place(kind, tmp_path)
    stores = [fill(tmp_path / str(i), numbers=(2 * i, 2 * i + 1), tag=f"t{i}") for i in range(pushers)]
    sent: list[list[Any]] = [[] for _ in stores]
    gate = threading.Barrier(pushers)

    def work(i: int) -> None:
        gate.wait()
        sent[i] = push_all(stores[i], url)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(pushers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = Store(url)
    assert sorted(art.version for art in there.log("a/b")) == list(range(1, 2 * pushers + 1))
    assert contents(there)["a/b"] == set().union(*(contents(store)["a/b"] for store in stores))
    for store, done in zip(stores, sent, strict=True):
        for one in done:
            assert there[one.became].digest == store[one.ref].digest
    assert len(there.tags("a/b")) == pushers


def test_two_pushing_the_same_content_at_once_share_it(tmp_path):
    url = place("file", tmp_path)
    mine = fill(tmp_path / "mine", numbers=(1, 2))
    threads = [threading.Thread(target=push_all, args=(mine, url)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(art.version for art in Store(url).log("a/b")) == [1, 2]
    assert contents(Store(url)) == contents(mine)


# ---- damage


def _only(far: Path, pattern: str) -> Path:
    (found,) = far.glob(pattern)
    return found


@pytest.mark.parametrize("how", ["flipped", "short", "gone"])
def test_a_damaged_payload_there_is_refused_and_mended_by_its_owner(tmp_path, how):
    url, far = place("file", tmp_path), tmp_path / "far"
    mine = fill(tmp_path / "mine", numbers=(1,))
    push_all(mine, url)
    path = _only(far, "a/b/@*/big.bin")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(data if how == "flipped" else data[:-7])
    yours = Store(tmp_path / "yours", durable=False)
    with pytest.raises(CorruptArtifact, match=r"big\.bin is .*push a/b@v1 again") as caught:
        pull_all(yours, url)
    assert "\n" not in str(caught.value)
    assert yours.names() == [] and yours.fsck() == []
    with pytest.raises(CorruptArtifact, match=r"big\.bin"):
        Store(url)["a/b"].bytes("big.bin")
    assert Store(url)["a/b"].table("heads").num_rows == 2
    if how == "flipped":
        path.unlink()
    (mended,) = push_all(mine, url)
    assert (mended.is_new, mended.files) == (False, 1)
    assert contents(Store(url)) == contents(mine)


def test_a_damaged_manifest_there_is_named_and_pushed_anew(tmp_path):
    url, far = place("file", tmp_path), tmp_path / "far"
    mine = fill(tmp_path / "mine", numbers=(1, 2))
    push_all(mine, url)
    path = far / "a/b" / f"@{(far / 'a/b/v1').read_text().strip()}" / "MANIFEST.json"
    path.write_text(path.read_text().replace('"number": 1', '"number": 7', 1))
    there = Store(url)
    with pytest.raises(CorruptArtifact, match="missing or damaged"):
        there.get("a/b@v1")
    with pytest.warns(UserWarning, match="damaged"):
        assert [art.version for art in there.log("a/b")] == [2]
    assert there["a/b"].version == 2
    push_all(mine, url)
    assert contents(Store(url)) == contents(mine) and [art.version for art in Store(url).log("a/b")] == [2, 1]


def test_a_manifest_that_claims_another_name_or_leaves_its_folder_is_not_taken(tmp_path):
    import hashlib

    from workbench.store import manifest

    url, far = place("file", tmp_path), tmp_path / "far"
    push_all(fill(tmp_path / "mine", numbers=(1,)), url)
    page = manifest.parse(_only(far, "a/b/@*/MANIFEST.json").read_bytes(), "x")
    bad = [{**page, "name": "c/d"}, {**page, "files": {"../../x": {"sha256": "0" * 64, "size": 1}}}]
    for other in bad:
        data = manifest.dump(other)
        folder = far / "a/b" / f"@{hashlib.sha256(data).hexdigest()}"
        folder.mkdir()
        (folder / "MANIFEST.json").write_bytes(data)
    there = Store(url)
    assert there.names() == ["a/b"] and len(contents(there)["a/b"]) == 1


def test_what_does_not_belong_there_is_passed_over(tmp_path):
    url, far = place("file", tmp_path), tmp_path / "far"
    mine = fill(tmp_path / "mine", numbers=(1,))
    push_all(mine, url)
    for path, text in (("a/b/v2", ""), ("a/b/v7", "junk"), ("a/b/tags/x", "v1"), ("notes.txt", "hi"), ("a/.x/v1", "")):
        (far / path).parent.mkdir(exist_ok=True, parents=True)
        (far / path).write_text(text)
    there = Store(url)
    assert [art.version for art in there.log("a/b")] == [1] and there.tags("a/b") == {} and there.names() == ["a/b"]
    fill(tmp_path / "mine", numbers=(5,))
    assert push_all(mine, url)[-1].became == "a/b@v8"


def test_a_payload_damaged_here_is_not_pushed(tmp_path):
    mine, url = fill(tmp_path / "mine", numbers=(1,)), place("file", tmp_path)
    path = mine["a/b"].path("big.bin")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptArtifact, match="was not pushed"):
        push_all(mine, url)
    assert Store(url).names() == []


# ---- the network


def _sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_missing_credentials_endpoint_and_bucket_are_sentences(tmp_path, s3, monkeypatch, capsys):
    import s3fs

    here = str(fill(tmp_path / "mine").root)

    def said(address: str = "s3://lab/x") -> str:
        s3fs.S3FileSystem.clear_instance_cache()
        return _sentence(capsys, "push", "--all", address, "--store", here)

    assert "does not exist" in said("s3://nowhere/x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no credentials" in said() and "AWS_ACCESS_KEY_ID" in said()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    assert "no connection" in said() and "AWS_ENDPOINT_URL" in said()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_protocol_without_its_package_is_a_sentence(tmp_path, capsys, monkeypatch):
    import fsspec.core

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    here = str(fill(tmp_path / "mine").root)
    assert "pip install 'workbench[remote]'" in _sentence(capsys, "push", "--all", "s3://a/b", "--store", here)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Access Denied"), "access was refused"),
        (TimeoutError("slow"), "no connection"),
        (RuntimeError("odd\nthing"), "odd thing"),
    ],
)
def test_an_error_at_any_call_is_one_sentence(tmp_path, error, words):
    mine = fill(tmp_path / "mine", numbers=(1,))
    calls = len(_calls_of(lambda: push_all(mine, place("memory", tmp_path))))
    for k in range(1, calls + 1):
        url, made = place("memory", tmp_path), 0

        def meddle(name: str, args: Any, kwargs: Any, real: Any, k: int = k) -> Any:
            nonlocal made
            made += 1
            if made == k:
                raise error
            return real(*args, **kwargs)

        with meddling(meddle), pytest.raises(StoreError, match=words) as caught:
            push_all(mine, url)
        assert "\n" not in str(caught.value) and url in str(caught.value)


@pytest.mark.parametrize("down", [False, True], ids=["for a moment", "and the network is down"])
def test_an_answer_that_was_lost_does_not_take_a_second_number(tmp_path, down):
    """The claim was made and the answer did not arrive: this push or the next finds its own claim."""
    mine, url, broken = fill(tmp_path / "mine", numbers=(1,)), place("memory", tmp_path), []

    def meddle(name: str, args: Any, kwargs: Any, real: Any) -> Any:
        if broken and down:
            raise ConnectionResetError("gone")
        done = real(*args, **kwargs)
        if name == "pipe_file" and args[0].endswith("/v1") and not broken:
            broken.append(1)
            raise ConnectionResetError("gone")
        return done

    with meddling(meddle):
        if down:
            with pytest.raises(StoreError, match="no connection"):
                push_all(mine, url)
        else:
            push_all(mine, url)
    (sent,) = push_all(mine, url)
    assert sent.became == "a/b@v1" and [art.version for art in Store(url).log("a/b")] == [1]


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_half_written_store_page_is_written_again(tmp_path, cut):
    import fsspec

    mine, url = fill(tmp_path / "mine"), place("memory", tmp_path)
    push_all(mine, url)
    fs, root = fsspec.core.url_to_fs(url)
    whole = fs.cat_file(f"{root}/STORE.json")
    fs.pipe_file(f"{root}/STORE.json", whole[:cut])
    assert contents(Store(url)) == contents(mine)
    push_all(mine, url)
    assert fs.cat_file(f"{root}/STORE.json") == whole
    fs.pipe_file(f"{root}/STORE.json", b'{"format": "remote-2"}')
    with pytest.raises(StoreError, match="remote-2"):
        push_all(mine, url)


def test_the_very_first_push_may_die_at_any_call(tmp_path):
    mine = fill(tmp_path / "mine", numbers=(1,), tag="paper")
    counted = place("memory", tmp_path)
    calls = len(_calls_of(lambda: push_all(mine, counted)))
    for k in range(1, calls + 1):
        url = place("memory", tmp_path)
        with pytest.raises(Died), dying(k, torn=True):
            push_all(mine, url)
        push_all(mine, url)
        assert contents(Store(url)) == contents(mine), k
