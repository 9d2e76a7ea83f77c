"""Names cannot leave the store, and a reference means one thing."""

from __future__ import annotations

import pytest

from workbench.errors import InputError
from workbench.store import refs


@pytest.mark.parametrize("name", ["retrieval/stories260K", "a", "a/b/c", "Qwen2.5-0.5B+x", "facade", "v1x", "a_b/_c"])
def test_names_people_want_are_allowed(name):
    assert refs.check_name(name) == name and refs.parse(name) == refs.Ref(name, name)


@pytest.mark.parametrize(
    "name",
    ["", "/abs", "a/../b", "..", ".", "a//b", "a/", ".hidden", "a/.b", "v1", "a/v12", "V3", "tags", "a/tags/b", "a@b",
     "a b", "a\\b", "C:/x", "a\nb", "ü", "-x", "README.md", "store.json", "a/MANIFEST.json", "x" * 251, "a\0", "a:b"],
)  # fmt: skip
def test_names_that_could_harm_are_refused_by_name(name):
    with pytest.raises(InputError) as caught:
        refs.check_name(name)
    assert repr(name)[1:20] in str(caught.value) or not name


def test_a_name_must_be_text():
    with pytest.raises(InputError, match="not 3"):
        refs.check_name(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b@v3", {"name": "a/b", "version": 3}),
        ("a@latest", {"name": "a"}),
        ("a@paper", {"name": "a", "tag": "paper"}),
        ("a@sha256:91C0", {"name": "a", "digest": "91c0"}),
        ("sha256:91c0aa", {"digest": "91c0aa"}),
    ],
)
def test_references(text, expected):
    assert refs.parse(text) == refs.Ref(text, **expected)


@pytest.mark.parametrize(
    "text", ["", "@v1", "a@", "a@v0", "a@v01", "a@b@c", "sha256:91c0", "sha256:xyzxyz", "a@../x", "a@sha256:"]
)
def test_bad_references_are_refused(text):
    with pytest.raises(InputError):
        refs.parse(text)


@pytest.mark.parametrize("tag", ["latest", "Latest", "v1", "a/b", "", ".x", "a b", "sha256:aa"])
def test_bad_tags_are_refused(tag):
    with pytest.raises(InputError):
        refs.check_tag(tag)


@pytest.mark.parametrize("name", ["../x", "a/b", "MANIFEST.json", "manifest.json", "", ".x", "a\\b", "/etc/passwd"])
def test_payload_names_stay_in_their_folder(name):
    assert not refs.is_payload(name)
    with pytest.raises(InputError):
        refs.check_payload(name)
