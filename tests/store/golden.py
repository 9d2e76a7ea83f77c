"""Wrote ``tests/data/store_format_1``, once: ``python -m tests.store.golden FOLDER``.

That store is never written again: it stands for every store of format 1 that people keep. A new format gets a script
and a folder of its own, and both folders must read for ever.
"""

from __future__ import annotations

import sys

import numpy as np

from workbench.store import Store


def write(folder: str) -> None:
    store = Store(folder)
    with store.stage("acts/demo", config={"model": "organism:retrieval", "seed": 0}, kind="activations/1") as out:
        out.tensors("z", {"z": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.array([0.5], np.float16)})
    for version in (1, 2, 3):
        with store.stage(
            "scores/demo",
            config={"analysis": "retrieval", "params": {"k": version, "name": "Größe"}},
            inputs=["acts/demo"],
            producer={"code": "abc123", "argv": ["workbench", "run", "x.yaml"], "python": "3.11.7"},
            run_key=f"key-{version}",
            timing={"run": 0.25},
            summary={"top": [0, version], "undefined": float("nan")},
        ) as out:
            scores = {
                "layer": np.array([0, 0, 1]),
                "head": np.array([0, 1, 0]),
                "score": np.array([0.5, np.nan, version]),
            }
            out.table("heads", {**scores, "status": np.array(["ok", "undefined", "ok"])}, metadata={"unit": "nats"})
            out.json("summary", {"top": [0, version], "undefined": float("nan"), "ratio": float("inf")})
            out.text("map.html", "<p>heads</p>\n")
    store.tag("scores/demo@v1", "paper")
    store.remove("scores/demo@v3", why="kept to show what a removed version looks like")


if __name__ == "__main__":
    write(sys.argv[1])
