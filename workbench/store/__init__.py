"""Versioned artifacts: results as ordinary files that are never half-written, never overwritten and can be checked.

    store = Store()                                               # $WORKBENCH_STORE or ./artifacts
    with store.stage("retrieval/demo", config={"k": 5}) as out:   # commits at the end of the block
        out.table("heads", {"layer": layers, "score": scores})
    store.tag(out.artifact, "paper")
    store["retrieval/demo@paper"].table("heads")

``docs/store-format.md`` describes the tree for people who have only pandas and safetensors.
"""

from __future__ import annotations

from workbench.store.artifact import Artifact, Stage
from workbench.store.care import Freed, Problem
from workbench.store.store import Ancestor, Stale, Store

__all__ = ["Ancestor", "Artifact", "Freed", "Problem", "Stage", "Stale", "Store"]
