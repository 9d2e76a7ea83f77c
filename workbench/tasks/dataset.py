"""What every dataset of samples can do: be read and sliced like a tuple, say what it is, and be told apart by a digest.

A kind of dataset adds its own columns (`to_frame`), counts (`counts`) and batches. The file knows nothing of samples
but that each has a length in tokens.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, overload

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self

MOST_LENGTHS = 20  # named one by one in a description; of more, the shortest and the longest


class _Sample(Protocol):
    @property
    def length(self) -> int: ...


S = TypeVar("S", bound=_Sample)


@dataclass(frozen=True)
class Dataset(Sequence[S], Generic[S]):
    """An immutable sequence of samples and the recipe that makes it again (`meta`, JSON-able)."""

    kind: ClassVar[str]

    name: str
    samples: tuple[S, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> S: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> S | Self:
        if isinstance(index, slice):
            return self.with_samples(self.samples[index], slice=[index.start, index.stop, index.step])
        return self.samples[index]

    def __iter__(self) -> Iterator[S]:
        return iter(self.samples)

    def with_samples(self, samples: tuple[S, ...], **meta: Any) -> Self:
        """The same dataset with other samples, and with what was done in its recipe."""
        return replace(self, samples=samples, meta={**self.meta, **meta})

    def digest(self) -> str:
        """`sha256:<64 hex>` over every sample: two datasets with one digest are the same experiment."""
        text = json.dumps(self.digested(), sort_keys=True, ensure_ascii=False)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def digested(self) -> Any:
        """What the digest is taken over, JSON-able."""
        return [asdict(sample) for sample in self.samples]  # type: ignore[call-overload]

    def describe(self) -> dict[str, Any]:
        """Recipe, size and digest as one JSON-able dict; it goes into the manifest of a run."""
        lengths = sorted({sample.length for sample in self.samples})
        return {
            "kind": self.kind,
            "name": self.name,
            "n": len(self.samples),
            **self.counts(),
            "digest": self.digest(),
            "lengths": lengths if len(lengths) <= MOST_LENGTHS else [lengths[0], lengths[-1]],
            "recipe": self.meta,
        }

    def counts(self) -> dict[str, Any]:
        """What `describe` says beside the number of samples."""
        return {}

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """One row per sample, without the tokens."""
