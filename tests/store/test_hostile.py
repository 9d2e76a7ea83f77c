"""A store that somebody else filled, here or at a URL, cannot make us read or write outside the folder it is in."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.store.far import contents, fill, place, pull_all, push_all
from workbench.errors import CorruptArtifact, InputError, NotFound, StoreError
from workbench.store import Store, manifest
from workbench.store.remote_files import Remote

PAYLOADS = [
    *(
        "../x",
        "../../../../../../tmp/x",
        "/etc/x",
        "a/b",
        "a\\b",
        "..\\x",
        "C:x",
        "C:\\x",
        "x\0y",
        "x\n",
        "x/",
        "",
        ".",
    ),
    *("..", ".hidden", "MANIFEST.json", "manifest.JSON", "x" * 101, "é", "~", "~/x", "-x", "x y", "\u202etxt.exe"),
]
NAMES = [
    *(
        "..",
        "../../x",
        "a/../b",
        "/abs",
        "a\\b",
        "C:/x",
        "C:x",
        "v1",
        "a/v2",
        "tags",
        "a/tags",
        ".store",
        "a/STORE.json",
    ),
    *("store.JSON", "readme.MD", ".launch/x", "a//b", "a/", "x" * 101, "x\0y", "~/x", "a@b"),
]
TAGS = ["..", "latest", "LATEST", "v3", "V3", ".x", "a\\b", "-x", "x y", "x" * 101, "@"]


@pytest.fixture
def page(tmp_path: Path) -> dict[str, Any]:
    """A sound manifest of a/b@v1, as there is one in the store `mine`."""
    mine = fill(tmp_path / "mine", numbers=(1,))
    return dict(mine.get("a/b").manifest)


def _plant(remote: Remote, page: dict[str, Any], name: str, payload: bytes = b"x") -> str:
    """Put a version that adds up under that name, number 7, whatever its manifest says."""
    page = {**page, "name": name}
    page["digest"] = manifest.identity(page)
    data = manifest.dump(page)
    key = hashlib.sha256(data).hexdigest()
    files = {f"@{key}/MANIFEST.json": data, "v7": f"{key}\n".encode()}
    files |= {f"@{key}/{file}": payload for file in page["files"] if "\0" not in file}
    for file, content in files.items():
        remote.fs.pipe_file(f"{remote.root}/{name}/{file}", content)
    return key


def _with_file(page: dict[str, Any], file: str, payload: bytes = b"x") -> dict[str, Any]:
    entry = {"sha256": hashlib.sha256(payload).hexdigest(), "size": len(payload)}
    return {**page, "files": {**page["files"], file: entry}}


def _all_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("file", PAYLOADS)
def test_a_remote_manifest_cannot_name_files_elsewhere(file: str, page: dict[str, Any], tmp_path: Path) -> None:
    url = place("memory", tmp_path)
    push_all(Store(tmp_path / "mine"), url)
    _plant(Remote(url), _with_file(page, file), "c/d")
    here = Store(tmp_path / "deep" / "down" / "here", durable=False)
    before = _all_files(tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        pull_all(here, url)
    with pytest.raises((CorruptArtifact, NotFound)):
        here.pull(["c/d"], url)
    assert here.names() == ["a/b"] and here.fsck() == []
    new = {path for path in _all_files(tmp_path) - before if not path.startswith("deep")}
    assert not new and not Path("/tmp/x").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_remote_version_cannot_take_a_name_that_leads_elsewhere(
    name: str, page: dict[str, Any], tmp_path: Path
) -> None:
    url = place("memory", tmp_path)
    push_all(Store(tmp_path / "mine"), url)
    _plant(Remote(url), page, name)
    here = Store(tmp_path / "deep" / "down" / "here", durable=False)
    before = _all_files(tmp_path)
    pull_all(here, url)
    assert Store(url).names() == here.names() == ["a/b"] and here.fsck() == []
    assert {path for path in _all_files(tmp_path) - before if not path.startswith("deep")} == set()
    with pytest.raises((InputError, StoreError)):
        here.pull([name], url)


@pytest.mark.parametrize("tag", TAGS)
def test_a_remote_tag_that_is_none_is_passed_over(tag: str, tmp_path: Path) -> None:
    url = place("memory", tmp_path)
    push_all(fill(tmp_path / "mine", numbers=(1,), tag="paper"), url)
    remote = Remote(url)
    remote.fs.pipe_file(f"{remote.root}/a/b/tags/{tag}", remote.fs.cat_file(f"{remote.root}/a/b/v1"))
    here = Store(tmp_path / "here", durable=False)
    pull_all(here, url)
    assert Store(url).tags("a/b") == here.tags("a/b") == {"paper": 1}
    assert sorted(path.name for path in (here.root / "a" / "b" / "tags").iterdir()) == ["paper"]


def test_a_link_where_a_payload_should_be_is_not_brought_along(page: dict[str, Any], tmp_path: Path) -> None:
    url, far = place("file", tmp_path), tmp_path / "far"
    push_all(Store(tmp_path / "mine"), url)
    secret = tmp_path / "secret"
    secret.write_bytes(b"the key is under the mat")
    (payload,) = far.glob("a/b/@*/big.bin")
    payload.unlink()
    payload.symlink_to(secret)
    here = Store(tmp_path / "here", durable=False)
    with pytest.raises(CorruptArtifact, match="is not what was pushed"):
        pull_all(here, url)
    assert here.names() == [] and not any(
        b"under the mat" in file.read_bytes() for file in here.root.rglob("*") if file.is_file()
    )


def test_two_names_of_one_file_where_case_does_not_count(page: dict[str, Any], tmp_path: Path) -> None:
    twice = manifest.dump(_with_file(page, "BIG.bin"))
    with pytest.raises(CorruptArtifact, match="case"):
        manifest.parse(twice, "x")


@pytest.mark.parametrize("linked", ["a", "a/b", "a/b/v1", "a/b/tags", "a/b/v1/big.bin", "a/b/v1/MANIFEST.json"])
def test_links_in_a_store_from_elsewhere_are_not_followed(linked: str, tmp_path: Path) -> None:
    store = fill(tmp_path / "mine", numbers=(1,), tag="paper")
    (tmp_path / "outside").mkdir()
    moved = tmp_path / "outside" / "moved"
    shutil.move(store.root / linked, moved)
    (store.root / linked).symlink_to(moved)
    fresh = Store(store.root, durable=False)
    if linked == "a/b/tags":
        assert fresh.tags("a/b") == {}
        with pytest.raises(NotFound):
            fresh.get("a/b@paper")
        with pytest.raises(StoreError):
            fresh.tag("a/b@v1", "other")
    else:
        with pytest.raises((NotFound, CorruptArtifact)):
            fresh.get("a/b@v1").bytes("big.bin")
    before = _all_files(tmp_path / "outside")
    if linked in ("a", "a/b"):
        with pytest.raises(StoreError, match="in the way"):
            fill(store.root, numbers=(2,))
    assert _all_files(tmp_path / "outside") == before


@pytest.mark.parametrize(
    "broken",
    [
        {"summary": []}, {"timing": "x"}, {"origin": "x"}, {"origin": {"url": 1}}, {"removed": {"why": "x"}},
        {"removed": "yes"}, {"removed": {"why": 1, "at": 2}}, {"config": {"n": "1e999"}}, {"config": {"n": "NaN"}},
        {"config": {"n": "deep"}},
    ],
)  # fmt: skip
def test_a_page_that_lies_is_refused_whole(broken: dict[str, Any], page: dict[str, Any]) -> None:
    number = broken.get("config", {}).get("n")
    data = manifest.dump({**page, **broken})
    if number:
        data = data.replace(f'"{number}"'.encode(), b"[" * 100_000 if number == "deep" else number.encode())
        head = data[: data.rindex(b' "seal"')]
        data = head + f' "seal": "sha256:{hashlib.sha256(head).hexdigest()}"\n}}\n'.encode()
    with pytest.raises(CorruptArtifact):
        manifest.parse(data, "x")


@pytest.mark.parametrize("said", [b"{", b"\xff", b"[" * 100_000])
def test_metadata_that_are_none(said: bytes, tmp_path: Path) -> None:
    import pyarrow as pa

    store = Store(tmp_path / "mine", durable=False)
    with store.stage("a/b", config={}) as out:
        out.table("heads", pa.table({"layer": [0]}).replace_schema_metadata({b"workbench": said}))
        out.bytes("deep.json", b"[" * 100_000)
    art = store.get("a/b")
    assert art.table("heads").num_rows == 1
    with pytest.raises(InputError, match="not JSON"):
        art.metadata("heads")
    with pytest.raises(InputError, match="does not hold"):
        art.json("deep")


def test_what_is_written_with_o_does_not_go_into_an_artifact(tmp_path: Path) -> None:
    from workbench.export import files

    store = fill(tmp_path / "mine", numbers=(1,))
    for name in ("heads.parquet", "report.html", "MANIFEST.json"):
        with pytest.raises(InputError, match="never change"):
            files.write(store.get("a/b").folder / name, b"x")
    assert store.fsck() == [] and contents(store)
    (tmp_path / "link.html").symlink_to(store.get("a/b").folder / "heads.parquet")
    files.write(tmp_path / "link.html", b"x")  # the link goes, what it led to stays
    assert store.fsck() == []
