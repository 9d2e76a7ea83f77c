"""All trials, by name."""

from __future__ import annotations

from tests.torture import fuzz_guided, inputs, leftovers, remotes, runs, stores
from tests.torture.tally import Trial

TRIALS: dict[str, Trial] = {
    "writers": stores.writers,
    "disk": stores.disk,
    "read-only": stores.read_only,
    "clock": stores.clock,
    "two-versions": stores.two_versions,
    "machine": stores.machine,
    "pushes": remotes.pushes,
    "runs": runs.killed,
    "parts": leftovers.parts,
    "jobs": leftovers.jobs,
    "specs": inputs.specs,
    "tables": inputs.tables,
    "headers": inputs.headers,
    "tokenizers": inputs.tokenizers,
    "manifests": inputs.manifests,
}

GUIDED: dict[str, Trial] = {f"guided-{name}": fuzz_guided.guided(name) for name in fuzz_guided.NAMES}
