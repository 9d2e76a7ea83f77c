"""Headers of weight files: what safetensors writes is read, and a header that lies is refused in one sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from workbench.errors import InputError
from workbench.models.weights_header import read_header

TENSORS = {"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float16), "c": np.zeros((0, 2), np.int64)}


def written(path: Path, header: Any, body: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4),
    dtype=st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]),
)
def test_what_safetensors_writes_is_read(tmp_path_factory, shapes, dtype):
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    tensors = {f"t{i}": np.zeros(shape, dtype) for i, shape in enumerate(shapes)}
    file.write_bytes(save(tensors))
    start, header = read_header(file)
    assert {name: entry["shape"] for name, entry in header.items()} == {n: list(t.shape) for n, t in tensors.items()}
    assert start + sum(t.nbytes for t in tensors.values()) == file.stat().st_size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": {"dtype": "F31"}}, "dtype F31"),
        ({"a": {"dtype": None}}, "dtype None"),
        ({"a": {"shape": [3, -4]}}, "shape or offsets"),
        ({"a": {"shape": "34"}}, "shape or offsets"),
        ({"a": {"shape": [3, True]}}, "shape or offsets"),
        ({"a": {"shape": [3, 5]}}, "does not fill bytes"),
        ({"a": {"data_offsets": [0]}}, "has 1 offsets"),
        ({"a": {"data_offsets": ["../../x", 48]}}, "shape or offsets"),
        ({"b": {"data_offsets": [0, 10]}}, "where the one before it ends"),
        ({"b": {"data_offsets": [50, 60]}}, "where the one before it ends"),
    ],
)
def test_an_entry_that_lies_is_refused(tmp_path: Path, change: dict[str, Any], words: str):
    # in the order of their bytes, whatever order safetensors would choose
    header, at = {}, 0
    for name, dtype in (("a", "F32"), ("b", "F16"), ("c", "I64")):
        n = TENSORS[name].nbytes
        header[name] = {"dtype": dtype, "shape": list(TENSORS[name].shape), "data_offsets": [at, at + n]}
        at += n
    body = b"\0" * at
    read_header(written(tmp_path / "good.safetensors", header, body))
    for name, entry in change.items():
        header[name] |= entry
    with pytest.raises(InputError, match=words) as caught:
        read_header(written(tmp_path / "bad.safetensors", header, body))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", [[], "text", {"a": []}, {"a": None}])
def test_a_header_that_is_no_mapping_of_mappings_is_refused(tmp_path: Path, header: Any):
    with pytest.raises(InputError, match="not a complete safetensors file"):
        read_header(written(tmp_path / "bad.safetensors", header, b""))


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path):
    file = tmp_path / "short.safetensors"
    for data in (b"", b"\x01", struct.pack("<Q", 2**63) + b"{}", save(TENSORS)[:-1], save(TENSORS) + b"\0"):
        file.write_bytes(data)
        with pytest.raises(InputError, match="not a complete safetensors file"):
            read_header(file)
