"""Several pair tasks for one model, by name: what an analysis that compares tasks reads.

    data: {tasks: {ioi: {task: ioi, n: 16}, colored: {task: colored_objects, n: 16}}}

Every block is any that gives pairs. Names become column names, so they are words of letters, digits and underscores.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, overload

from workbench.errors import InputError
from workbench.tasks.pairs import PairDataset

if TYPE_CHECKING:
    import pandas as pd

_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class TaskSet(Mapping[str, PairDataset]):
    """An immutable mapping from a task's name to its pairs; `len` counts tasks, a slice cuts every task.

    Raises:
        InputError: no task, an unusable name, or data that are not pairs.
    """

    kind: ClassVar[str] = "task_set"

    tasks: Mapping[str, PairDataset]
    name: str = "tasks"
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InputError("A set of tasks needs at least one; give tasks: {NAME: {task: ioi, n: 16}, ...}.")
        for name, data in self.tasks.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise InputError(
                    f"The task name {name!r} cannot name a column; use letters, digits and underscores, a letter first."
                )
            if getattr(data, "kind", None) != "pairs":
                kind = getattr(data, "kind", type(data).__name__)
                raise InputError(f"Task {name!r} gives {kind}, but a set of tasks is made of pairs.")

    @overload
    def __getitem__(self, key: str) -> PairDataset: ...
    @overload
    def __getitem__(self, key: slice) -> TaskSet: ...
    def __getitem__(self, key: str | slice) -> PairDataset | TaskSet:
        if isinstance(key, slice):
            kept = {"slice": [key.start, key.stop, key.step]}
            return TaskSet({name: data[key] for name, data in self.tasks.items()}, self.name, {**self.meta, **kept})
        return self.tasks[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def digest(self) -> str:
        """`sha256:<64 hex>` over every task's name and digest."""
        text = json.dumps({name: data.digest() for name, data in self.tasks.items()}, sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Recipe, sizes and digest as one JSON-able dict; it goes into the manifest of a run."""
        each = {name: data.describe() for name, data in self.tasks.items()}
        return {
            "kind": self.kind,
            "name": self.name,
            "n": {name: len(data) for name, data in self.tasks.items()},
            "digest": self.digest(),
            "lengths": sorted({length for about in each.values() for length in about["lengths"]}),
            "recipe": {**self.meta, "tasks": {name: data.meta for name, data in self.tasks.items()}},
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per pair, with the task it belongs to first."""
        import pandas as pd

        frames = [data.to_frame().assign(task=name) for name, data in self.tasks.items()]
        frame = pd.concat(frames, ignore_index=True)
        return frame.reindex(columns=["task", *(column for column in frame.columns if column != "task")])


def build(blocks: Any, resolve: Callable[[Mapping[str, Any]], Any], *, name: str = "tasks") -> TaskSet:
    """The set that `tasks:` describes; `resolve` makes one block's dataset.

    Raises:
        InputError: no mapping of blocks, or a block that is unusable; the message names the task.
    """
    if not isinstance(blocks, Mapping) or not blocks:
        raise InputError("tasks must be a mapping from a name to a data block, like {ioi: {task: ioi, n: 16}}.")
    made: dict[str, Any] = {}
    for key, block in blocks.items():
        try:
            made[key] = resolve(block)
        except InputError as error:
            raise InputError(f"Task {key!r}: {error}") from None
    return TaskSet(made, name)
