"""Texts that a result holds but an export should not spread: transcripts of what a model says when it stops refusing.

An analysis marks columns of a table as sensitive (`frame.attrs["sensitive"]`), the store keeps the mark in the table's
metadata, and whoever exports the table withholds those columns unless asked for them. It never judges a text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

WITHHELD = "[withheld]"
_KEY = b"workbench"


def marks(frame: Any) -> dict[str, Any] | None:
    """Metadata for the store that name a frame's sensitive columns; None when it has none."""
    columns = [name for name in getattr(frame, "attrs", {}).get("sensitive", ()) if name in frame.columns]
    return {"sensitive": columns} if columns else None


def withhold(table: pa.Table) -> pa.Table:
    """The table with the content of its sensitive columns replaced."""
    import pyarrow as pa

    found = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    for name in found.get("sensitive", ()):
        if name in table.column_names:
            content = pa.array([WITHHELD] * table.num_rows, pa.string())
            table = table.set_column(table.column_names.index(name), name, content)
    return table
