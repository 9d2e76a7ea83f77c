"""What guided fuzzing feeds, and what must hold of whatever is not refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture.inputs import _sound
from tests.torture.mutate import some_value

ROOT = Path(__file__).parents[2]

Shape = Callable[[random.Random, bytes], bytes | None]


@dataclass
class Target:
    """Attributes:
    read: reads one input; returns what is wrong about the result, None if nothing.
    seeds: well-formed inputs to start from.
    words: pieces of the language, for libFuzzer to put in.
    shape: changes an input as a tree of values; None where it is none.
    """

    read: Callable[[bytes], str | None]
    seeds: list[bytes]
    words: list[str] = field(default_factory=list)
    shape: Shape | None = None


def _as_json(rng: random.Random, data: bytes) -> bytes | None:
    try:
        return json.dumps(some_value(rng, json.loads(data))).encode()
    except (ValueError, RecursionError):
        return None


def _after_first(shape: Shape) -> Shape:
    """`shape` of what comes after the first byte, which says what the input is for."""

    def changed(rng: random.Random, data: bytes) -> bytes | None:
        rest = shape(rng, data[1:])
        return None if rest is None else data[:1] + rest

    return changed


def _as_yaml(rng: random.Random, data: bytes) -> bytes | None:
    import yaml

    try:
        return yaml.safe_dump(some_value(rng, yaml.safe_load(data))).encode()
    except Exception:
        return None


def specs(folder: Path) -> Target:
    """Spec files, with `sweep:` and `launch:`, down to the data they gather, in a folder with something to gather."""
    from workbench.experiments.inputs import gather
    from workbench.experiments.paths import Reach
    from workbench.launch import read

    house = folder / "house"
    house.mkdir()
    (house / "rows.jsonl").write_text('{"prompt": "a b a", "needle": "a"}\n')
    (house / "prompts.csv").write_text("prompt\nhello\n")
    (folder / "secret.jsonl").write_text('{"prompt": "s3cret s3cret", "needle": "s3cret"}\n')
    os.chdir(house)
    path = house / "spec.yaml"
    more = (
        b"analysis: retrieval\nmodel: organism:retrieval\ndata: {file: rows.jsonl}\nsweep: {seed: 0..2}\nlaunch: local",
        b"analysis: ships\nmodel: {path: m, dtype: float32}\ndata: {file: prompts.csv, benign_file: prompts.csv, n: 1}",
        b"analysis: overlap\nmodel: a/b\ndata: {tasks: {ioi: {task: ioi, n: 4}, x: {file: ../secret.jsonl}}}",
        b"analysis: vhd\nmodel: a\ndata: {samples: [{image: a.png, prompt: what}], images: ../house}\n",
        b"analysis: retrieval\nmodel: a\ndata: {task: needle, needles: rows.jsonl, haystack: prompts.csv}\n",
    )

    def one(data: bytes) -> str | None:
        path.write_bytes(data)
        for spec in read([path]).specs[:3]:
            json.dumps(spec.config())
            reach: Reach = spec.reach
            reach.find_model(spec.model.path)
            if "s3cret" in json.dumps(gather(spec).data):
                return "read a file outside its folder"
        return None

    files = sorted((ROOT / "experiments").glob("*.yaml"))
    words = ["analysis:", "model:", "data:", "params:", "sweep:", "launch:", "seed:", "file:", "task:", "tasks:"]
    words += ["../", "!!python/object", "&a ", "*a", "<<:", "---\\x0a", "0..9", "benign_file", "images", "haystack"]
    return Target(one, [*(file.read_bytes() for file in files), *more], words, _as_yaml)


def manifests(folder: Path) -> Target:
    """Manifests, each once as it is and once with a seal that fits: a page that lies but was not damaged."""
    from tests.store import workers
    from workbench.cli import main
    from workbench.errors import WorkbenchError
    from workbench.experiments.inputs import gather
    from workbench.experiments.record import spec_of
    from workbench.store import Store, manifest

    store = Store(folder / "store", durable=False)
    workers.commit(store, "a/b", 1)
    page = next(store.root.rglob("MANIFEST.json"))
    good, wanted = page.read_bytes(), bytes(store.get("a/b").bytes("own.bin"))
    for place in (page, page.parent):
        place.chmod(0o755)
    plain = json.loads(good)
    run = {**plain, "config": {"name": "a/b", "analysis": "retrieval", "model": {"path": "m"}, "data": {"task": "x"}}}
    made = {"model": {"path": "/m", "fingerprint": "f"}, "packages": {"torch": "2"}, "code": "c", "argv": ["a"]}
    gone = {
        **plain,
        "removed": {"why": "w", "at": "2026"},
        "origin": dict.fromkeys(("url", "ref", "manifest", "created"), "x"),
    }
    commands = [["show", "a/b@v1"], ["log", "a/b"], ["ls"], ["diff", "a/b@v1", "a/b@v1"]]
    commands += [["show", "a/b@v1", "--json"]]

    def sealed(data: bytes) -> bytes | None:
        try:
            tree = json.loads(data)
            return manifest.dump(tree) if isinstance(tree, dict) else None
        except (ValueError, RecursionError):
            return None

    def one(data: bytes) -> str | None:
        refused: list[WorkbenchError] = []
        texts = [text for text in (data, sealed(data)) if text is not None]
        for text in texts:
            page.write_bytes(text)
            fresh = Store(store.root)
            try:
                artifact = fresh.get("a/b@v1")
                if bytes(artifact.bytes("own.bin", verify=True)) != wanted and plain["files"] == artifact.files():
                    return "other bytes than were written"
                artifact._repr_html_()
            except WorkbenchError as error:
                refused.append(error)
            else:
                with contextlib.suppress(WorkbenchError):
                    gather(spec_of(artifact))
            for step in (fresh.fsck, lambda s=fresh: s.stale("a/b"), lambda s=fresh: s.find("a/b", run_key="k")):
                with contextlib.suppress(WorkbenchError):
                    step()
            for command in commands[len(data) % len(commands) :][:1]:
                out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # which refuses what no terminal can show
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as said:
                    code = main([*command, "--store", str(store.root)])
                lines = [line for line in said.getvalue().splitlines() if not line.startswith("warning: ")]
                if code and len(lines) != 1:
                    return f"{command[0]} says {said.getvalue()[:200]!r}"
        if len(refused) == len(texts):
            raise refused[0]
        return None

    seeds = [good, *(json.dumps(tree).encode() for tree in (plain, run, {**run, "producer": made}, gone))]
    words = [f'\\"{key}\\"' for key in (*plain, "removed", "origin", "why", "at", "ref", "digest", "sha256", "size")]
    return Target(one, seeds, [*words, "null", "1e999", "NaN", "../", "\\\\ud800"], _as_json)


def headers(folder: Path) -> Target:
    """Safetensors files: a header taken for good describes the file as the format's own reader has it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

    from workbench.errors import InputError
    from workbench.models.weights_header import read_header
    from workbench.store import payloads

    file = folder / "x.safetensors"
    good = save({"a.weight": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float16)}, metadata={"format": "pt"})
    (length,) = struct.unpack("<Q", good[:8])

    def one(data: bytes) -> str | None:
        wrong: str | None = None
        refused: list[InputError] = []
        # once as they are, once as a header whose length is right, over as many bytes as it says
        for text in (data, struct.pack("<Q", len(data)) + data + good[8 + length :]):
            file.write_bytes(text)
            with contextlib.suppress(payloads.Unreadable):
                payloads.read_tensors(text)
            try:
                start, header = read_header(file)
            except InputError as error:
                refused.append(error)
                continue
            try:
                known = {"F32", "F16", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"}
                if all(entry["dtype"] in known for entry in header.values()):
                    theirs = load(text)
                    if {name: list(array.shape) for name, array in theirs.items()} != {
                        name: entry["shape"] for name, entry in header.items()
                    }:
                        wrong = "other tensors than safetensors reads"
            except SafetensorError:
                wrong = f"a header that safetensors refuses, from byte {start}"
        if len(refused) == 2:
            raise refused[0]
        return wrong

    words = [f'\\"{word}\\"' for word in ("dtype", "shape", "data_offsets", "F32", "BF16", "F4", "__metadata__")]
    return Target(one, [good, good[8 : 8 + length]], [*words, "[0,48]", "18446744073709551615", "1e3"], _as_json)


def autoencoders(folder: Path) -> Target:
    """`cfg.json` of an autoencoder beside weights that fit one."""
    from tests.saes.test_format import config, weights
    from tests.saes.test_format import folder as written
    from workbench.saes.files import load_sae

    kinds = ("standard", "topk", "jumprelu", "gated")
    places = [written(folder / kind, config(kind), weights(kind)) for kind in kinds]
    good = [bytes([at]) + (place / "cfg.json").read_bytes() for at, place in enumerate(places)]

    def one(data: bytes) -> str | None:
        place = places[data[0] % len(places) if data else 0]
        (place / "cfg.json").write_bytes(data[1:])
        sae = load_sae(place)
        return None if (sae.d_in, sae.d_sae) == (2, 3) else f"an autoencoder of {sae.d_in} x {sae.d_sae}"

    words = [f'\\"{word}\\"' for word in ("architecture", "topk", "jumprelu", "d_in", "k", "metadata", "hook_name")]
    return Target(one, good, words, _after_first(_as_json))


def tables(folder: Path) -> Target:
    """Head tables from CSV, JSON and Parquet, and the field's score files; what is taken is sound and reads back."""
    from workbench import export, published
    from workbench.export import read
    from workbench.tables import HeadTable

    whole = HeadTable.from_examples(np.random.default_rng(0).random((6, 2, 2)), n_kv_heads=1, n_boot=10)
    exact, shown = ("csv", "json", "parquet"), ("md", "latex", "html")
    good = []
    for kind in (*exact, *shown):
        export.write(whole, folder / "table.x", kind, digits=None)
        good.append(bytes([len(good)]) + (folder / "table.x").read_bytes())
    good += [bytes([6]) + json.dumps({"0-1": [0.5, 0.25], "1-0": [0.1]}).encode(), bytes([7]) + b"0.1\t0.9\n1.0\t0\n"]
    readers: list[Callable[[Path], Any]] = [
        *(lambda file, kind=kind: read.heads(file, kind) for kind in exact),
        *(lambda file, kind=kind: read.table(file, kind) for kind in shown),
        published.read_wu_json,
        published.read_duo_tsv,
    ]

    def one(data: bytes) -> str | None:
        kind = data[0] % len(readers) if data else 0
        file = folder / "changed.x"
        file.write_bytes(data[1:])
        table = readers[kind](file)
        if isinstance(table, tuple):  # what it shows, of any table
            return None if len({len(column) for column in table[0].values()}) <= 1 else "columns of unequal length"
        wrong = _sound(table)
        if wrong is None:
            table.to_parquet(folder / "again.parquet")
            again = HeadTable.from_parquet(folder / "again.parquet")
            same = again.keys() == table.keys() and np.array_equal(
                np.asarray(again["score"]), np.asarray(table["score"]), equal_nan=True
            )
            wrong = None if same else "another table after writing and reading"
        return wrong

    words = ["layer", "head", "score", "nan", "inf", "1e999", "-1", "kv_group", "status", "\\x22\\x22", "\\x0d\\x0a"]
    return Target(one, good, words, _after_first(_as_json))


def sweeps(folder: Path) -> Target:
    """`--sweep` and `--set` texts: axes of plain values, and the specs they make."""
    from workbench.experiments.spec import build
    from workbench.experiments.yaml_input import parse_assignment
    from workbench.launch import grammar, grid

    base = {"analysis": "ablation", "model": "organism:planted-ioi", "data": {"task": "ioi", "n": 4}}

    def one(data: bytes) -> str | None:
        text = data.decode("utf-8", "surrogateescape")
        with contextlib.suppress(ValueError):  # InputError is one
            key, value = parse_assignment(text)
            build(base, overrides=[text])
            if key == "seed" and build(base, overrides=[text]).seed != value:
                return f"seed {value!r} became another"
        axes = grammar.parse([text])
        if any(not values for values in axes.values()):
            return "an axis without values"
        json.dumps(axes)
        grammar.size(axes)
        labels = grid._labels(axes)
        if any(len(set(labels[key])) != len(axes[key]) for key in axes if len(axes[key]) < 200):
            return f"two values of one name: {labels}"
        return None

    seeds = [b"seed=0..4", b"model=organism:a,organism:b,seed=0..8..2", b"params.edit=zero,mean", b"data.n=8"]
    seeds += [b'model={path: gpt2, dtype: float32},"a,b=c"', b"params.alpha=[1, 2],[3]", b"data.samples.0.image=x"]
    return Target(one, seeds, ["seed=", "model=", "params.", "data.", "..", "null", "true", "1e-4", "{a: b}", "!!set"])


def references(folder: Path) -> Target:
    """References, names, tags and payload names: nothing that is taken leaves the store's folder."""
    from tests.store import workers
    from workbench.errors import StoreError
    from workbench.store import Store, refs

    store = Store(folder / "store", durable=False)
    workers.commit(store, "a/b", 1)
    store.tag("a/b", "paper")
    digest = store.get("a/b").digest
    root = os.path.realpath(store.root)

    def one(data: bytes) -> str | None:
        text = data.decode("utf-8", "surrogateescape")
        for is_one, place in ((refs.is_name, root), (refs.is_payload, f"{root}/a/v1"), (refs.is_tag, f"{root}/a/tags")):
            if is_one(text):
                real = os.path.realpath(f"{place}/{text}")
                if not real.startswith(place + "/") or "\n" in text or Path(real).name.startswith("."):
                    return f"{is_one.__name__} takes {text!r}"
        with contextlib.suppress(StoreError):
            found = store.get(text)
            if (found.name, found.version) != ("a/b", 1):
                return f"{text!r} is {found.ref}"
        return None

    seeds = [b"a/b", b"a/b@v1", b"a/b@paper", b"a/b@latest", digest.encode(), digest[7:19].encode()]
    seeds += [f"a/b@{digest[:14]}".encode(), b"../x", b"a/v1", b"tags", b"MANIFEST.json"]
    return Target(one, seeds, ["@", "/", "..", "v1", "sha256:", "tags", "a/b", "\\x00", "\\\\", "C:", "\\x0a"])


def paths(folder: Path) -> Target:
    """Paths a spec names, in a house with links to what must not be read."""
    from workbench.experiments.paths import Reach

    top = Path(os.path.realpath(folder)) / "house"
    for part in ("spec/sub", "work", "outside/deep", "specious"):
        (top / part).mkdir(parents=True)
    for part in ("spec", "spec/sub", "work", "outside", "outside/deep", "specious"):
        (top / part / "a").write_text(part)
    for name, target in {"o": top / "outside", "l": "../outside/a", "t": "o", "i": "sub", "w": top / "work"}.items():
        (top / "spec" / name).symlink_to(target)
    (top / "work" / "u").symlink_to("..")
    os.chdir(top / "work")
    os.environ["HOME"] = str(top / "outside")
    reach = Reach.of(top / "spec" / "one.yaml")

    def one(data: bytes) -> str | None:
        text = data.decode("utf-8", "surrogateescape").replace("TOP", str(top))
        found = []
        with contextlib.suppress(ValueError):
            found.append(str(reach.find(text, "data.file")))
        with contextlib.suppress(ValueError):
            found += [model] if Path(model := reach.find_model(text)).is_dir() else []
        real = [os.path.realpath(path) for path in found]
        inside = all(any(f"{path}/".startswith(f"{top / root}/") for root in ("spec", "work")) for path in real)
        return None if inside else f"leads to {real}"

    seeds = [b"a", b"sub/a", b"i/../o/a", b"../outside/a", b"TOP/outside", b"w/u/outside", b"~/a", b"t/deep/a", b"l"]
    return Target(one, seeds, ["..", "/", "../", "TOP/", "o", "t", "u", "w", "~", "/proc/self/cwd", "/proc/self/root"])


def jobs(folder: Path) -> Target:
    """What is beside the store about launched jobs: changed files count as absent, with a seal that fits or without."""
    from workbench.launch import jobs as on_disk
    from workbench.store import Store

    store = Store(folder / "store", durable=False)
    for number in (1, 2):
        with store.stage("a/b", config={"number": number}, run_key=f"key{number}") as out:
            out.json("summary", {})
    kept = on_disk.Jobs(store)
    job = kept.put("key1", {"config": {"name": "a/b"}, "shards": 1, "launcher": "local"}, {})
    job.tasks[0].prepare()
    job.tasks[0].start()
    job.tasks[0].end("done", ref="a/b@v1", cached=False, seconds=1.0)
    files = [job.folder / "job.json", job.tasks[0].folder / "started.json", job.tasks[0].folder / "ended.json"]
    good = [file.read_bytes() for file in files]

    def one(data: bytes) -> str | None:
        which = data[0] % 3 if data else 0
        files[which].write_bytes(data[1:])
        try:
            for found in kept:
                _ = found.state(store), found.failure(), [task.last_line() for task in found.tasks]
                artifact = found.artifact(store)
                if artifact is not None and artifact.run_key != found.run_key:
                    return f"{found.run_key} is said to have made {artifact.ref}"
        finally:
            files[which].write_bytes(good[which])
        return None

    return Target(
        one,
        [bytes([at]) + data for at, data in enumerate(good)],
        ["state", "done", "ref", "seal"],
        _after_first(_as_json),
    )


TARGETS: dict[str, Callable[[Path], Target]] = {
    "specs": specs,
    "manifests": manifests,
    "headers": headers,
    "autoencoders": autoencoders,
    "tables": tables,
    "sweeps": sweeps,
    "references": references,
    "paths": paths,
    "jobs": jobs,
}
