"""How a head table leaves Python: pandas, pyarrow, files, figures, and the views at a prompt and in a notebook.

Every method hands over to `workbench.export` or `workbench.plots`, imported only then, so that tables stay light. It
must never decide what is in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.tables import schema

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import pyarrow as pa


class HandOver:
    """The outgoing methods of `HeadTable`."""

    columns: dict[str, np.ndarray]

    @property
    def df(self) -> pd.DataFrame:
        """A pandas frame in row order; `n` and `rank` as nullable integers."""
        import pandas as pd

        frame = pd.DataFrame({name: values.copy() for name, values in self.columns.items()})
        return frame.astype(dict.fromkeys(schema.OPTIONAL_INTEGER, "Int64"))

    def to_arrow(self) -> pa.Table:
        """A pyarrow table with the metadata as JSON under the schema key `workbench`."""
        from workbench.export import arrow

        return arrow.from_head_table(self)

    def to_csv(self, path: str | Path | None = None, *, provenance: Mapping[str, Any] | None = None) -> str | None:
        """Comma-separated text, floats exact; returned when `path` is None. Metadata go to the provenance file."""
        return self._text("csv", path, provenance)

    def to_json(self, path: str | Path | None = None, *, provenance: Mapping[str, Any] | None = None) -> str | None:
        """`{"meta": {...}, "columns": [...], "rows": [{...}]}`; undefined is null."""
        return self._text("json", path, provenance)

    def to_markdown(
        self,
        path: str | Path | None = None,
        *,
        top: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> str | None:
        """A pipe table with four significant digits; `top` keeps the k best heads, best first."""
        return self._text("md", path, provenance, top)

    def to_latex(
        self,
        path: str | Path | None = None,
        *,
        top: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> str | None:
        """A booktabs table with four significant digits; `top` keeps the k best heads, best first."""
        return self._text("latex", path, provenance, top)

    def to_html(
        self,
        path: str | Path | None = None,
        *,
        top: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> str | None:
        """A page that stands alone: metadata, heatmap, table; no script and nothing fetched."""
        return self._text("html", path, provenance, top)

    def to_parquet(self, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
        """A Parquet file that `from_parquet` reads back equal."""
        from workbench import export

        export.write(self, path, "parquet", provenance=provenance)

    def plot(self: Any, **options: Any) -> go.Figure:
        """Layer x head heatmap; options as in `workbench.plots.heads`."""
        from workbench import plots

        return plots.heads(self, **options)

    def _repr_html_(self) -> str:
        from workbench.export import html

        return html.preview(self)

    def __repr__(self) -> str:
        from workbench.export import text

        return text.preview(self)

    def _text(
        self, kind: str, path: str | Path | None, provenance: Mapping[str, Any] | None, top: int | None = None
    ) -> str | None:
        from workbench import export

        done = export.write(self, path, kind, top=top, provenance=provenance)
        return done if isinstance(done, str) else None
