"""Fonts, line colours and the plotly template, as values that are passed explicitly and never set as defaults.

Colour scales come from `workbench.export.colours`, so that a table in a report and its figure agree. Lines use the
Okabe-Ito colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from workbench.export.colours import rgb

if TYPE_CHECKING:
    import plotly.graph_objects as go

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK = "#1b1f24"
GRID = "#e4e7eb"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


def colorscale(stops: tuple[str, ...]) -> list[list[float | str]]:
    """The stops as plotly writes a colour scale."""
    return [[at / (len(stops) - 1), stop] for at, stop in enumerate(stops)]


def template() -> go.layout.Template:
    """The house style as a plotly template; pass it to a figure's layout."""
    import plotly.graph_objects as go

    axis = {"gridcolor": GRID, "linecolor": "#8a929b", "ticks": "outside", "tickcolor": "#8a929b", "zeroline": False}
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": INK},
            "paper_bgcolor": "#ffffff",
            "plot_bgcolor": "#ffffff",
            "colorway": list(LINES),
            "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
            "title": {"x": 0.0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": 16}},
            "margin": {"l": 64, "r": 24, "t": 56, "b": 56},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
        }
    )


def faded(colour_hex: str, alpha: float) -> str:
    """`#rrggbb` with opacity, as plotly takes it for bands."""
    red, green, blue = rgb(colour_hex)
    return f"rgba({red},{green},{blue},{alpha:g})"


def name_of(meta: Mapping[str, Any]) -> str:
    """What a head table is, for a title; escaped, because plotly reads tags in titles."""
    words = (meta["metric"] if meta["analysis"] == "unknown" else meta["analysis"], meta["model"])
    return escape(" · ".join(word for word in words if word))
