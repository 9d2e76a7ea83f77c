"""Do two models (a base model and its fine-tune, say) have the same safety heads? Overlap with a permutation null.

Heads are not interchangeable between layers: both models may have theirs in early layers for reasons of depth alone. So
beside the exact test against random sets (`tables.compare`) one model's heads are permuted within each layer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.tables import HeadTable
    from workbench.tables.compare import Comparison


@dataclass(frozen=True)
class Overlap:
    """Overlap of two sets of heads.

    Attributes:
        comparison: correlations, both selections, what they share, and p against random sets of these sizes.
        expected: shared heads when one model's are permuted within their layers, on average.
        p_within_layers: probability of at least this overlap under those permutations, (1 + hits) / (1 + n).
    """

    comparison: Comparison
    expected: float
    p_within_layers: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and tables."""
        return {**self.comparison.to_dict(), **{k: v for k, v in asdict(self).items() if k != "comparison"}}


def overlap(
    a: HeadTable,
    b: HeadTable,
    *,
    rule: str = "top 10",
    n_permutations: int = 9999,
    seed: int = 0,
    allow_basis_mismatch: bool = False,
) -> Overlap:
    """Overlap of the heads that `rule` selects in both tables.

    Raises:
        InputError: tables of differently shaped models, or in different bases without `allow_basis_mismatch`.
    """
    if n_permutations < 1:
        raise InputError(f"n_permutations={n_permutations} draws no null; 9999 is usual.")
    found = a.compare(b, rule=rule, allow_basis_mismatch=allow_basis_mismatch)
    shared = len(found.shared)
    usable = set(_ok(a)) & set(_ok(b))
    rng = np.random.default_rng(seed)
    counts = np.zeros(n_permutations, dtype=np.int64)
    for layer in sorted({at for at, _ in found.heads_b}):
        candidates = sorted(head for at, head in usable if at == layer)
        in_a = np.array([(layer, head) in set(found.heads_a) for head in candidates])
        n_b = sum(at == layer for at, _ in found.heads_b)
        # heads of A among n_b random ones of the layer
        counts += rng.hypergeometric(int(in_a.sum()), int((~in_a).sum()), n_b, size=n_permutations)
    p = (1 + int((counts >= shared).sum())) / (1 + n_permutations)
    return Overlap(found, float(counts.mean()), p)


def _ok(table: HeadTable) -> list[tuple[int, int]]:
    return [key for key, ok in zip(table.keys(), table.ok, strict=True) if ok]
