"""A store of results that a report must get right: agreeing ones, a hopeless one, nasty texts, withheld ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.report.browser import Tab, browser
from workbench.export import withhold
from workbench.plots.tokens import COLUMNS
from workbench.store import Artifact, Store
from workbench.tables import HeadTable

EVIL = "</script><script>window.evil=1</script><img src=x onerror='window.evil=1'>"
SECRET = "the answer that must not travel"


def heads(score: Any, **options: Any) -> HeadTable:
    facts = {"analysis": "test", "metric": "effect", "unit": "logits", "model": "tiny", "fingerprint": "sha256:aa"}
    return HeadTable.from_scores(score, **{"n_kv_heads": None, **facts, **options})


def attention() -> pd.DataFrame:
    """Two tokens of the worst kind and a picture of four patches, seen by two heads."""
    places, tokens = [(-1, -1), (0, 0), (0, 1), (1, 0), (1, 1), (-1, -1)], [EVIL, "", "", "", "", " #ffffff"]
    weights = {(3, 7): [0.1, 0.0, 0.5, 0.1, 0.1, 0.2], (0, 2): [0.9, 0.0, 0.0, 0.0, 0.0, 0.1]}
    rows = [
        (0, EVIL, *head, 0, "", key, tokens[key], *places[key], weight)
        for head, row in weights.items()
        for key, weight in enumerate(row)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def keep(store: Store, name: str, table: HeadTable | None, tables: Any = None, **options: Any) -> Artifact:
    """An artifact as `experiments.record` writes them."""
    config = {
        "analysis": "test",
        "model": {"path": "tiny"},
        "data": {"task": "toy", "n": 4},
        "params": {"k": 2},
        "seed": 7,
        **options.pop("config", {}),
    }
    made_by = {
        "packages": {"numpy": "2.0"},
        "git": "abc123",
        "dirty": False,
        "platform": "Linux x86_64",
        "model": {"name": "tiny", "fingerprint": "sha256:aa", "n_layers": 4, "n_heads": 8},
        **options.pop("producer", {}),
    }
    arrays = options.pop("arrays", None)
    with store.stage(name, config=config, producer=made_by, **options) as out:
        if arrays:
            out.tensors("arrays", arrays)
        if table is not None:
            out.table("heads", table.to_arrow())
        for key, frame in (tables or {}).items():
            out.table(key, frame, metadata=withhold.marks(frame))
    return out.artifact


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"), durable=False)
    rng = np.random.default_rng(0)
    score = np.linspace(-1, 1, 32).reshape(4, 8)
    facts = {"stderr": 0.1, "ci_low": score - 0.2, "ci_high": score + 0.2, "n": 20, "null_mean": 0.0}
    said = pd.DataFrame({"id": range(45), "value": np.arange(45) % 7 / 10, "response": [SECRET] * 45})
    said.attrs["sensitive"] = ["response"]
    curve = {"k": [0, 1, 0, 1], "group": ["top", "top", "random", "random"], "recall": [1.0, 0.2, 1.0, 0.9]}
    keep(
        store,
        "good",
        heads(score, null_p=np.where(score > 0.5, 0.0001, 0.8), **facts),
        {"said": said, "causal_curve": pd.DataFrame({**curve, "stderr": [0.0, 0.05, 0.0, 0.05]})},
        summary={"n": 20, "test": {"p": 0.3}, "sets": {"random_p": 1 / 11}, "causal": {"status": "not run: too short"}},
        timing={"total": 1.5},
    )
    keep(store, "turned", heads(-score, higher_is_more=False, null_p=0.01))
    keep(store, "noisy", heads(score + rng.normal(0, 0.5, score.shape), null_p=rng.uniform(0.3, 1, score.shape)))
    undefined = np.where(np.arange(32).reshape(4, 8) % 2 == 0, np.nan, score)
    nasty = pd.DataFrame({"token": [EVIL, "#ffffff", "a & b"], EVIL: [1.0, 2.0, None]})
    keep(
        store,
        "nasty",
        heads(
            undefined,
            model=EVIL,
            unit=EVIL,
            metric=EVIL,
            fingerprint="sha256:bb",
            status=np.where(np.isnan(undefined), EVIL, "ok"),
        ),
        {"tokens": nasty},
        config={"data": {"prompt": EVIL}, "params": {"template": EVIL}},
        producer={"dirty": True, "argv": ["workbench", EVIL]},
        summary={"status": f"no better than {EVIL}", "notes": [EVIL]},
    )
    keep(store, "bare", None, {"verdicts": pd.DataFrame({"verdict": ["pass", "miss"]})}, summary={"misses": ["x on y"]})
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    arrays = {"attention_picture_0": picture, "per_example": np.zeros((1, 4, 8), dtype=np.float32)}
    keep(store, "seen", heads(score), {"attention": attention()}, arrays=arrays)
    return store


@pytest.fixture(scope="session")
def page(place: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of everything in the store."""
    from workbench.report.make import report

    return report(
        *("good", "turned", "noisy", "nasty", "bare", "seen"),
        path=tmp_path_factory.mktemp("page") / "r.html",
        store=place,
    )


@pytest.fixture(scope="session")
def tab() -> Iterator[Tab]:
    with browser() as one:
        yield one
