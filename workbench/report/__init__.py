"""A report: results of the store as one HTML file that opens from disk, without a network, for years.

    report(refs) -> facts (what an artifact says of itself), figures (what its tables allow), comparison (of results of
    one model), grids (as data for the page), page (the file)

It reads artifacts only: no model, no analysis, nothing recomputed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.report.make import report

__all__ = ["report"]


def __getattr__(name: str) -> Any:
    if name == "report":
        from workbench.report.make import report

        return report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
