"""All trials, by name."""

from __future__ import annotations

from tests.torture import inputs, stores
from tests.torture.tally import Trial

TRIALS: dict[str, Trial] = {
    "writers": stores.writers,
    "disk": stores.disk,
    "read-only": stores.read_only,
    "clock": stores.clock,
    "two-versions": stores.two_versions,
    "specs": inputs.specs,
    "tables": inputs.tables,
    "headers": inputs.headers,
    "tokenizers": inputs.tokenizers,
    "manifests": inputs.manifests,
}
