"""Payloads: same content, same bytes; what goes in comes out; damage is seen on reading."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.errors import InputError
from workbench.store import payloads

COLUMNS = {
    "layer": np.arange(4, dtype=np.int64),
    "head": np.array([0, 1, 0, 1], dtype=np.int64),
    "score": np.array([0.5, np.nan, -np.inf, 1e-300]),
    "small": np.array([0.5, 1, 2, 3], dtype=np.float32),
    "ok": np.array([True, False, True, True]),
    "status": np.array(["ok", "ok", "undefined", "ok"]),
}


def stored(tmp_path, data, **options) -> bytes:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
    payloads.write_table(path, data, **options)
    return path.read_bytes()


def test_dict_frame_and_table_of_the_same_columns_are_the_same_bytes(tmp_path):
    table = pa.table({name: pa.array(column) for name, column in COLUMNS.items()})
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    frame = pd.DataFrame(COLUMNS)
    first = stored(tmp_path, COLUMNS, metadata={"b": 1, "a": 2})
    for same in (table, pieces, frame):
        assert stored(tmp_path, same, metadata={"a": 2, "b": 1}) == first


def test_a_table_comes_back_with_order_types_nan_and_metadata(tmp_path):
    data = stored(tmp_path, COLUMNS, metadata={"unit": "nats", "bad": math.nan})
    table = payloads.read_table(data)
    assert table.column_names == list(COLUMNS)
    for name, column in COLUMNS.items():
        got = table[name].to_numpy()
        np.testing.assert_array_equal(got, column)
        assert name == "status" or got.dtype == column.dtype
    assert table["score"].null_count == 0
    assert payloads.metadata_of(table) == {"unit": "nats", "bad": None}
    assert json.loads(table.schema.metadata[b"workbench"])["unit"] == "nats"
    assert payloads.read_table(data, columns=["score", "layer"]).column_names == ["score", "layer"]
    with pytest.raises(InputError, match="no column 'scor'"):
        payloads.read_table(data, columns=["scor"])


def test_pandas_alone_reads_a_table(tmp_path):
    payloads.write_table(tmp_path / "x.parquet", COLUMNS)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "x.parquet"), pd.DataFrame(COLUMNS).astype({"status": object}), check_dtype=False
    )


def test_an_index_is_kept_as_columns(tmp_path):
    frame = pd.DataFrame({"x": [1, 2]}, index=pd.Index(["a", "b"], name="who"))
    assert payloads.read_table(stored(tmp_path, frame)).column_names == ["who", "x"]


def test_pages_carry_checksums(tmp_path):
    path = tmp_path / "x.parquet"
    payloads.write_table(path, {"x": np.random.default_rng(0).random(5000)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(payloads.Unreadable):
        payloads.read_table(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"x": np.zeros((2, 2))}, "shape"),
        ({"x": [1], "y": [1, 2]}, "equally long"),
        ({"x": [1, "a"]}, "'x' cannot be stored"),
        ({"x": "abc"}, "sequence"),
        ({"x": 3}, "sequence"),
        ([1, 2], "not list"),
        ({(1, 2): [1]}, "Column name"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "twice"),
        (pd.DataFrame({"x": [1, "a"]}), "'x' cannot be stored"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path, data, words):
    with pytest.raises(InputError, match=words):
        stored(tmp_path, data)


DTYPES = [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
DTYPES += [np.float16, np.float32, np.float64]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tensors_come_back_bit_for_bit(tmp_path_factory, data):
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    arrays = {
        f"t{i}": data.draw(hnp.arrays(data.draw(st.sampled_from(DTYPES)), shapes))
        for i in range(data.draw(st.integers(0, 4)))
    }
    folder = tmp_path_factory.mktemp("t")
    payloads.write_tensors(folder / "x.safetensors", arrays)
    payloads.write_tensors(folder / "y.safetensors", dict(reversed(arrays.items())))
    raw = (folder / "x.safetensors").read_bytes()
    assert raw == (folder / "y.safetensors").read_bytes()
    for source in (raw, folder / "x.safetensors"):
        back = payloads.read_tensors(source)
        assert list(back) == sorted(arrays)
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype and back[name].shape == array.shape
            assert back[name].tobytes() == array.tobytes()


def test_views_and_torch_tensors_are_stored_as_they_look(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    given_arrays = {
        "t": array.transpose(2, 0, 1),
        "s": array[:, ::2],
        "big": array.astype(">f4"),
        "torch": torch.tensor(array).permute(2, 1, 0),
    }
    payloads.write_tensors(tmp_path / "x", given_arrays)
    for source in ((tmp_path / "x"), (tmp_path / "x").read_bytes()):
        back = payloads.read_tensors(source, keys=["t", "torch"])
        assert list(back) == ["t", "torch"]
        for name in back:
            np.testing.assert_array_equal(back[name], np.asarray(given_arrays[name]))
        with pytest.raises(InputError, match="no tensor 'u'"):
            payloads.read_tensors(source, keys=["u"])
    np.testing.assert_array_equal(payloads.read_tensors(tmp_path / "x")["big"], array)


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([1j]), np.array([None]), torch.zeros(1, dtype=torch.bfloat16)]
)
def test_tensors_that_cannot_be_are_refused_by_name(tmp_path, value):
    with pytest.raises(InputError, match="'x'"):
        payloads.write_tensors(tmp_path / "x", {"x": value})


def test_json_is_sorted_strict_and_readable():
    data = payloads.json_bytes({"b": math.nan, "a": "ä"}, where="x")
    assert data == '{\n "a": "ä",\n "b": null\n}\n'.encode()
    assert payloads.read_json(data) == {"a": "ä", "b": None}
    with pytest.raises(payloads.Unreadable):
        payloads.read_json(b"{")
