"""The shortest ways in a notebook: `wb.store()` to keep results, `wb.open(REF)` and `wb.heads(REF)` to read one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workbench.experiments import record
from workbench.store import Artifact, Store, views

if TYPE_CHECKING:
    from workbench.analyses import Result
    from workbench.tables import HeadTable


class ResultStore(Store):
    """A store that also takes results as analyses return them."""

    def put(self, result: Result, name: str, *, force: bool = False) -> Artifact:
        """Keep `result` as the next version of `name`, with the spec that makes it again."""
        return record.put(result, name, store=self, force=force)


def store(path: str | Path | None = None) -> ResultStore:
    """The artifact store at `path`; default `$WORKBENCH_STORE`, else `./artifacts`."""
    return ResultStore(path)


def open(ref: str, *, store: Store | str | Path | None = None) -> Artifact:
    """The artifact that `ref` names: `name`, `name@v3`, `name@tag` or a digest prefix."""
    place = store if isinstance(store, Store) else Store(store)
    return place[ref]


def heads(ref: str, *, store: Store | str | Path | None = None) -> HeadTable:
    """The head table of the artifact that `ref` names."""
    from workbench.tables import HeadTable

    return HeadTable.from_arrow(open(ref, store=store).table("heads"))


def _shown(artifact: Artifact) -> str:
    """The head table as a notebook shows it, below what the artifact says of itself."""
    from workbench.tables import HeadTable

    return HeadTable.from_arrow(artifact.table("heads"))._repr_html_()


views.PAYLOADS["heads.parquet"] = _shown
