"""A store written by the first format reads for ever, with our code and without it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from tests.store import golden
from workbench.errors import NotFound
from workbench.store import Store

GOLDEN = Path(__file__).parents[1] / "data" / "store_format_1"


def snapshot(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_golden_store_reads_for_ever():
    before = snapshot(GOLDEN)
    store = Store(GOLDEN)
    assert store.fsck() == [] and store.names() == ["acts/demo", "scores/demo"]
    art = store["scores/demo@paper"]
    assert art.version == 1 and store["scores/demo"].version == 2
    assert store.find(run_key="key-2") == store["scores/demo"]
    table = art.table("heads")
    assert table.column_names == ["layer", "head", "score", "status"] and art.metadata("heads") == {"unit": "nats"}
    np.testing.assert_array_equal(table["score"].to_numpy(), [0.5, np.nan, 1])
    assert art.json("summary") == {"top": [0, 1], "undefined": None, "ratio": "Infinity"}
    assert art.text("map.html") == "<p>heads</p>\n" and art.config["params"] == {"k": 1, "name": "Größe"}
    assert [parent.ref for parent in store.lineage(art)] == ["acts/demo@v1"] and not store.stale(art)
    assert store["acts/demo"].tensors("z")["z"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [bool(item.removed) for item in store.log("scores/demo")] == [True, False, False]
    with pytest.raises(NotFound, match="kept to show"):
        store["scores/demo@v3"]
    assert snapshot(GOLDEN) == before, "reading writes nothing"


def test_the_golden_store_can_be_continued(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "store")
    store = Store(tmp_path / "store")
    with store.stage("scores/demo", inputs=["acts/demo"]) as out:
        out.json("summary", {})
    assert out.artifact.version == 4 and not store.fsck()


def test_pandas_safetensors_and_json_are_enough():
    version = (GOLDEN / "scores/demo/tags/paper").read_text().strip()
    folder = GOLDEN / "scores/demo" / version
    assert pd.read_parquet(folder / "heads.parquet")["score"].sum() == 1.5
    assert json.loads((folder / "MANIFEST.json").read_text())["config"]["params"]["k"] == 1
    assert load_file(GOLDEN / "acts/demo/v1/z.safetensors")["half"].dtype == np.float16


def test_the_same_content_has_the_same_digest_today(tmp_path):
    """Config, JSON and tensors do not depend on library versions; Parquet names its writer, so tables may."""
    golden.write(str(tmp_path))
    assert Store(tmp_path)["acts/demo"].digest == Store(GOLDEN)["acts/demo"].digest
    old, new = Store(GOLDEN)["scores/demo@v1"], Store(tmp_path)["scores/demo@v1"]
    assert {n: e for n, e in old.files().items() if n != "heads.parquet"} == {
        n: e for n, e in new.files().items() if n != "heads.parquet"
    }


def test_the_readme_in_the_repository_is_the_one_a_store_gets(tmp_path):
    golden.write(str(tmp_path))
    shipped = Path(__file__).parents[2] / "artifacts" / "README.md"
    assert shipped.read_text() == (tmp_path / "README.md").read_text()


def test_the_format_page_describes_the_digest_and_the_seal_as_they_are():
    """The recipe of docs/store-format.md, followed by hand."""
    data = (GOLDEN / "scores/demo/v1/MANIFEST.json").read_bytes()
    page = json.loads(data)
    lines = data.splitlines(keepends=True)
    assert page["seal"] == "sha256:" + hashlib.sha256(b"".join(lines[:-2])).hexdigest()
    what = {
        "code": page["producer"].get("code"),
        "config": page["config"],
        "files": {name: [entry["sha256"], entry["size"]] for name, entry in page["files"].items()},
        "inputs": [parent["digest"] for parent in page["inputs"]],
        "kind": page["kind"],
    }
    text = json.dumps(what, sort_keys=True, separators=(",", ":"))
    assert page["digest"] == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
