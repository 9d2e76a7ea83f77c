"""A registered analysis that needs no model: scores drawn from the seed, so that runs compare in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field

from workbench.analyses.base import Analysis, Params, Result
from workbench.tables import HeadTable


class Inner(Params):
    draws: int = Field(default=3, ge=1)


class FakeParams(Params):
    variant: Literal["plain", "fancy"] = "plain"
    max_new_tokens: int = Field(default=50, ge=1)
    gate: float = 0.5
    inner: Inner | None = Inner()


@dataclass
class World:
    """What a test may change between two runs."""

    jitter: float = 0.0
    shuffle: bool = False
    calls: list[Any] = field(default_factory=list)
    interrupt: bool = False


WORLD = World()


@dataclass
class FakeModel:
    name: str
    fingerprint: str
    n_layers: int = 3
    n_heads: int = 4
    n_kv_heads: int = 2
    n_parameters: int = 10**9

    def require(self, *names: str) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "fingerprint": self.fingerprint, "device": "cpu", "dtype": "float32"}


@dataclass
class FakeData:
    recipe: dict[str, Any]

    def __len__(self) -> int:
        return 5


def run(model: Any, data: Any, params: FakeParams, seed: int) -> Result:
    import pandas as pd

    WORLD.calls.append((model.name, params, seed))
    if WORLD.interrupt:
        raise KeyboardInterrupt
    rng = np.random.default_rng(seed)
    values = rng.random((5, model.n_layers, model.n_heads)) + WORLD.jitter * np.arange(model.n_heads)
    if WORLD.shuffle:
        values = values[:, ::-1]
    heads = HeadTable.from_examples(
        values,
        n_kv_heads=model.n_kv_heads,
        n_boot=50,
        analysis="fake",
        metric="chance",
        model=model.name,
        fingerprint=model.fingerprint,
    )
    return Result(
        analysis="fake",
        heads=heads,
        params=params,
        model=model.describe(),
        data={"kind": "needle", "n": 5, "recipe": data.recipe},
        tables={"samples": pd.DataFrame({"id": ["a", "b"], "recall": [100.0, float(50 + WORLD.jitter)]})},
        arrays={"per_example": values.astype(np.float32)},
        summary={"n_samples": 5, "best": float(heads["score"].max())},
        timing={"scoring": 0.1},
        seed=seed,
    )


ANALYSIS = Analysis("fake", "nobody 2026", FakeParams, "needle", (), run)
