"""Trials of what is read: specs, tables, weight headers, tokenizers, manifests. Malformed is refused in a sentence."""

from __future__ import annotations

import json
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture.mutate import some_bytes, some_json, some_value
from tests.torture.tally import Tally
from workbench.errors import WorkbenchError

ROOT = Path(__file__).parents[2]


def _tried(
    tally: Tally, what: str, read: Callable[[], Any], *, check: Callable[[Any], str | None] | None = None
) -> None:
    """Read one input: a value that passes `check`, or one sentence. Anything else is bad."""
    tally.inputs += 1
    try:
        value = read()
    except WorkbenchError as caught:
        tally.refused += 1
        if "\n" in str(caught) or not str(caught):
            tally.bad.append(f"{what}: not one sentence: {str(caught)[:200]!r}")
        return
    except BaseException as caught:  # a library in Rust panics with one of its own
        if isinstance(caught, KeyboardInterrupt):
            raise
        tally.bad.append(f"{what}: {type(caught).__name__}: {str(caught)[:200]}")
        return
    tally.harmless += 1
    wrong = check(value) if check is not None else None
    if wrong:
        tally.bad.append(f"{what}: {wrong}")


def specs(folder: Path, seconds: float, seed: int) -> Tally:
    """Every example spec, with values, keys and bytes changed: a validated spec, or one sentence."""
    import yaml

    from workbench.experiments.spec import load_spec

    rng, tally = random.Random(seed), Tally()
    files = sorted((ROOT / "experiments").glob("*.yaml"))
    trees = [tree for file in files for tree in yaml.safe_load_all(file.read_text())]
    path, stop = folder / "spec.yaml", time.monotonic() + seconds
    while time.monotonic() < stop:
        tree = rng.choice(trees)
        if rng.random() < 0.5:
            path.write_bytes(some_bytes(rng, yaml.safe_dump(tree).encode()))
        else:
            changed = some_value(rng, tree)
            path.write_text(yaml.safe_dump(changed), encoding="utf-8")
        _tried(tally, f"spec {path.read_bytes()[:300]!r}", lambda: load_spec(path))
    return tally


def _sound(table: Any) -> str | None:
    """What no table may be, whatever file it came from."""
    keys = table.keys()
    if len(set(keys)) != len(keys):
        return "a head stands twice"
    if any(layer < 0 or head < 0 for layer, head in keys):
        return "a negative layer or head"
    if not np.issubdtype(np.asarray(table["score"]).dtype, np.floating):
        return f"scores of dtype {np.asarray(table['score']).dtype}"
    return None


def tables(folder: Path, seconds: float, seed: int) -> Tally:
    """Head tables as Parquet and CSV, and the field's score files, with bytes and cells changed."""
    from workbench import published
    from workbench.tables import HeadTable

    rng, tally = random.Random(seed), Tally()
    scores = np.random.default_rng(seed).random((6, 3, 4))
    whole = HeadTable.from_examples(scores, n_kv_heads=2, n_boot=10)
    whole.to_parquet(folder / "whole.parquet")
    whole.to_csv(folder / "whole.csv")
    wu = {f"{layer}-{head}": [round(float(x), 3)] * 3 for (layer, head), x in zip(whole, whole["score"], strict=True)}
    sources: list[tuple[str, Callable[[], bytes], Callable[[Path], Any]]] = [
        ("parquet", lambda: some_bytes(rng, (folder / "whole.parquet").read_bytes()), HeadTable.from_parquet),
        ("csv", lambda: some_bytes(rng, (folder / "whole.csv").read_bytes()), HeadTable.from_csv),
        ("json", lambda: some_json(rng, wu), lambda file: published.read_wu_json(file)),
        (
            "tsv",
            lambda: some_bytes(rng, b"0.1\t0.9\n1.0\t0.25\n0.5\t0.5\n"),
            lambda file: published.read_duo_tsv(file),
        ),
    ]
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        for kind, make, read in sources:
            file = folder / f"changed.{kind}"
            file.write_bytes(make())
            _tried(tally, f"{kind} {file.read_bytes()[:200]!r}", lambda read=read, file=file: read(file), check=_sound)
    return tally


def headers(folder: Path, seconds: float, seed: int) -> Tally:
    """Safetensors files whose header lies: read by the fingerprint and by the autoencoder reader."""
    from safetensors.numpy import save

    from workbench.models.fingerprint import fingerprint_directory

    rng, tally = random.Random(seed), Tally()
    model = folder / "model"
    model.mkdir()
    good = save({"a.weight": np.ones((3, 4), np.float32), "b.weight": np.zeros(5, np.float16)})
    (model / "tokenizer.json").write_text((_tokenizer()).decode())
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(good)
    expected = fingerprint_directory(model)
    (length,) = struct.unpack("<Q", good[:8])
    header, body = json.loads(good[8 : 8 + length]), good[8 + length :]
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        if rng.random() < 0.5:
            text = json.dumps(some_value(rng, header)).encode()
            data = struct.pack("<Q", len(text) if rng.random() < 0.9 else rng.getrandbits(64)) + text + body
        else:
            data = some_bytes(rng, good[: 8 + length]) + body
        (model / "model.safetensors").write_bytes(data)

        def same(found: str, data: bytes = data) -> str | None:
            return (
                "other bytes, the same fingerprint"
                if found == expected and data != good and _differs(data, good)
                else None
            )

        _tried(tally, f"header {data[8:200]!r}", lambda: fingerprint_directory(model), check=same)
    return tally


def _differs(data: bytes, good: bytes) -> bool:
    """Whether two safetensors files hold other tensors, not just another spelling of the header."""
    found = []
    for file in (data, good):
        (length,) = struct.unpack("<Q", file[:8])
        header = json.loads(file[8 : 8 + length])
        header.pop("__metadata__", None)
        found.append((header, file[8 + length :]))
    return found[0] != found[1]


def _tokenizer() -> bytes:
    from workbench import organisms

    return (organisms.path("multitask") / "tokenizer.json").read_bytes()


def tokenizers(folder: Path, seconds: float, seed: int) -> Tally:
    """tokenizer.json with values and bytes changed: a tokenizer that encodes, or one sentence."""
    from workbench import organisms
    from workbench.models.boot import read_tokenizer

    rng, tally = random.Random(seed), Tally()
    model = folder / "model"
    shutil.copytree(organisms.path("multitask"), model)
    good = _tokenizer()
    tree = json.loads(good)
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        data = some_json(rng, tree) if rng.random() < 0.7 else some_bytes(rng, good)
        (model / "tokenizer.json").write_bytes(data)
        _tried(tally, f"tokenizer {data[:120]!r}", lambda: read_tokenizer(model, False))
    return tally


def manifests(folder: Path, seconds: float, seed: int) -> Tally:
    """Manifests and payloads of a store with bytes changed: reading is refused or gives what was written."""
    from tests.store import workers
    from workbench.store import Store

    rng, tally = random.Random(seed), Tally()
    store = Store(folder / "store", durable=False)
    workers.commit(store, "a/b", 1)
    page = store.root / "a" / "b" / "v1" / "MANIFEST.json"
    if not page.exists():
        page = next(store.root.rglob("MANIFEST.json"))
    good, wanted = page.read_bytes(), bytes(store.get("a/b").bytes("own.bin"))
    tree = json.loads(good)
    page.chmod(0o644)
    page.parent.chmod(0o755)
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        data = some_json(rng, tree) if rng.random() < 0.6 else some_bytes(rng, good)
        page.write_bytes(data)
        _tried(
            tally,
            f"manifest {data[:200]!r}",
            lambda: bytes(Store(store.root).get("a/b@v1").bytes("own.bin", verify=True)),
            check=lambda found: None if found == wanted else "other bytes than were written",
        )
        _tried(tally, "fsck", lambda: store.fsck(), check=lambda found, data=data: _named(found, data, good))
    return tally


def _named(problems: list[Any], data: bytes, good: bytes) -> str | None:
    """Damage must be named, unless the page says the same as before in other words."""
    try:
        same = json.loads(data) == json.loads(good)
    except ValueError:
        same = False
    return None if problems or same else f"fsck finds nothing wrong with {data[:300]!r}"
