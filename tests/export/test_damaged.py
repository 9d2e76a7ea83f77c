"""Damaged files are refused in one sentence, whatever their library makes of them (found by `make torture`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.tables import HeadTable


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    table = HeadTable.from_examples(np.random.default_rng(0).random((4, 2, 2)), n_kv_heads=2, n_boot=5)
    table.to_parquet(tmp_path / "heads.parquet")
    return tmp_path / "heads.parquet"


@pytest.mark.parametrize("name", [b"score", b"stderr", b"kv_group"])
def test_parquet_whose_column_names_are_no_utf8(whole: Path, name: bytes):
    data = whole.read_bytes()
    assert name in data
    whole.write_bytes(data.replace(name, name[:-1] + b"\xff"))
    with pytest.raises(InputError) as caught:
        HeadTable.from_parquet(whole)
    assert "\n" not in str(caught.value) and str(whole) in str(caught.value)


def test_csv_with_a_line_break_in_a_column_named_twice(tmp_path: Path):
    (tmp_path / "t.csv").write_text('layer,head,score,"a\nb","a\nb"\n0,0,1,2,3\n')
    with pytest.raises(InputError, match="twice") as caught:
        HeadTable.from_csv(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)
