"""The page that says what an artifact is can be read by anyone and altered by no one unseen."""

from __future__ import annotations

import enum
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import CorruptArtifact, InputError, StoreError
from workbench.store import manifest


def page(**changes):
    draft = manifest.draft("a/b", config={"k": [1, 2.5, None], "text": "Größe"}, producer={"code": "c1", "argv": ["x"]})
    draft |= {"version": 1, "previous": None, "created": manifest.now(), "commit": "0" * 32}
    draft["files"] = {"x.json": {"sha256": "0" * 64, "size": 3}}
    draft |= changes
    return draft | {"digest": manifest.identity(draft)}


def test_a_page_comes_back_as_it_was_written():
    written = page()
    read = manifest.parse(manifest.dump(written), "x")
    assert read.pop("seal").startswith("sha256:") and read == written
    assert manifest.dump(read) == manifest.dump(written)


def test_every_flipped_bit_of_a_page_is_seen():
    data = manifest.dump(page())
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(StoreError):
                manifest.parse(bytes(flipped), "x/MANIFEST.json")
    for length in range(len(data)):
        with pytest.raises(CorruptArtifact):
            manifest.parse(data[:length], "x/MANIFEST.json")


def test_a_stranger_can_check_the_seal_without_us():
    lines = manifest.dump(page()).splitlines(keepends=True)
    assert json.loads(lines[-2].strip().decode().removeprefix('"seal": ')) == (
        "sha256:" + hashlib.sha256(b"".join(lines[:-2])).hexdigest()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"previous": "sha256:1"},
        {"created": "later"},
        {"timing": {"s": 1}},
        {"name": "c"},
        {"producer": {"code": "c1", "argv": ["y"], "host": "h"}},
        {"summary": {"a": 1}},
        {"run_key": "k"},
    ],
)
def test_the_digest_does_not_depend_on_when_where_or_under_which_number(changes):
    assert page(**changes)["digest"] == page()["digest"]


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"k": 1}},
        {"producer": {"code": "c2"}},
        {"kind": "other/1"},
        {"files": {}},
        {"inputs": [{"ref": "c@v1", "digest": "sha256:" + "1" * 64}]},
    ],
)
def test_the_digest_depends_on_what_was_made_from_what(changes):
    assert page(**changes)["digest"] != page()["digest"]


def test_hostile_pages_cannot_name_files_outside_their_folder():
    for name in ("../../etc/passwd", "/etc/passwd", "MANIFEST.json", "a/b"):
        with pytest.raises(CorruptArtifact, match="not inside its folder"):
            manifest.parse(manifest.dump(page(files={name: {"sha256": "0" * 64, "size": 1}})), "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [1]},
        {"files": {"x": 1}},
        {"files": {"x": {"sha256": "zz", "size": 1}}},
        {"config": None},
        {"files": {"x": {"sha256": "0" * 64, "size": -1}}},
        {"version": "1"},
    ],
)
def test_pages_of_the_wrong_shape_are_damaged(changes):
    data = manifest.dump({**page(), **changes})
    with pytest.raises(CorruptArtifact, match="fsck"):
        manifest.parse(data, "x/MANIFEST.json")


def test_a_newer_format_is_not_called_damage():
    with pytest.raises(StoreError, match=r"format 2.*install a newer one") as caught:
        manifest.parse(manifest.dump(page(format=2)), "x")
    assert not isinstance(caught.value, CorruptArtifact)


class Colour(str, enum.Enum):
    RED = "red"


def test_plain_takes_what_runs_produce():
    value = {
        "f": np.float32(0.5),
        "i": np.int64(3),
        "b": np.bool_(True),
        "a": np.eye(2),
        "e": Colour.RED,
        "p": Path("x/y"),
        "t": (1, 2),
        "n": float("nan"),
        "inf": [float("inf"), -np.inf],
        7: None,
    }
    assert manifest.plain(value) == {
        "f": 0.5,
        "i": 3,
        "b": True,
        "a": [[1.0, 0.0], [0.0, 1.0]],
        "e": "red",
        "p": "x/y",
        "t": [1, 2],
        "n": None,
        "inf": ["Infinity", "-Infinity"],
        "7": None,
    }
    assert type(manifest.plain(Colour.RED)) is str


def test_plain_names_what_it_cannot_hold():
    with pytest.raises(InputError, match=r"value\.a\[1\] is a set"):
        manifest.plain({"a": [0, {1}]})
    with pytest.raises(InputError, match="twice"):
        manifest.plain({"1": 0, 1: 0})
    with pytest.raises(InputError, match="key None"):
        manifest.plain({None: 0})
    with pytest.raises(InputError, match=r"config\.k is NaN"):
        manifest.draft("a", config={"k": float("nan")})
    with pytest.raises(InputError, match="config must be a mapping"):
        manifest.draft("a", config=[1])
    with pytest.raises(InputError, match="digest 'x'"):
        manifest.draft("a", inputs=[{"ref": "b", "digest": "x"}])


def test_a_lone_surrogate_survives():
    written = page(config={"argv": "\udcff"})
    assert manifest.parse(manifest.dump(written), "x")["config"] == {"argv": "\udcff"}


def test_differences_name_the_leaf():
    a, b = {"p": {"k": 1, "same": 2}, "x": 1}, {"p": {"k": 2, "same": 2}, "y": 1}
    assert manifest.differences(a, b) == {"p.k": [1, 2], "x": [1, None], "y": [None, 1]}
