"""Fonts, colours and the plotly template, as values that are passed explicitly and never set as defaults.

Colour scales come from `workbench.export.colours`, so that a table in a report and its figure agree. Lines use the
Okabe-Ito colours. Figures are made for a light page; `DARK` says what each of their colours is on a dark one, so that
one figure serves both (a report's button swaps colours by the same table).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import InputError
from workbench.export import colours
from workbench.export.colours import rgb

if TYPE_CHECKING:
    import plotly.graph_objects as go

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK = "#1b1f24"
MUTED = "#57606a"
AXIS = "#8a929b"
GRID = colours.LINE
PAPER = "#ffffff"
NODE = "#eef3f8"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

Theme = Literal["light", "dark"]

# On a dark page a scale starts near the page and grows lighter, so that "little" recedes there as it does on white.
_DARK_SEQUENTIAL = ("#17202b", "#1b2f47", "#1f4165", "#235584", "#2b6ca5", "#4187c3", "#68a5d8", "#9cc6e8", "#d9ecfa")
_DARK_DIVERGING = ("#a6d3f5", "#5ea9de", "#3380ba", "#245783", "#20262d", "#7d3a2a", "#b8503d", "#e67a63", "#ffc0ab")
_DARK_LINES = ("#3d9be0", "#f0802f", "#1fbf93", "#dd9cbd", "#f0b434", "#9ad4f5", "#ffffff")
DARK: dict[str, str] = {
    PAPER: "#14181d",
    INK: "#e6e9ed",
    MUTED: "#a5aeb8",
    AXIS: "#7d8791",
    GRID: "#2c333b",
    NODE: "#1f2a36",
    colours.UNDEFINED: "#3a3f45",
    colours.HATCH: "#a0a4a8",
    **dict(zip(LINES, _DARK_LINES, strict=True)),
    **dict(zip(colours.SEQUENTIAL, _DARK_SEQUENTIAL, strict=True)),
    **dict(zip(colours.DIVERGING, _DARK_DIVERGING, strict=True)),
}
_SCALES = ("colorscale", "colorway")
# Buttons that send a figure to its makers' server, by their names in plotly.js 3 and 4: a notebook would show one.
_UPLOADS = ("sendDataToCloud", "sendChartToCloud")
_FADED = re.compile(r"rgba\((\d+),(\d+),(\d+),([\d.e-]+)\)")


def colorscale(stops: tuple[str, ...]) -> list[list[float | str]]:
    """The stops as plotly writes a colour scale."""
    return [[at / (len(stops) - 1), stop] for at, stop in enumerate(stops)]


def template() -> go.layout.Template:
    """The house style as a plotly template; pass it to a figure's layout."""
    import plotly.graph_objects as go

    axis = {"gridcolor": GRID, "linecolor": AXIS, "ticks": "outside", "tickcolor": AXIS, "zeroline": False}
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": INK},
            "paper_bgcolor": PAPER,
            "plot_bgcolor": PAPER,
            "colorway": list(LINES),
            "hoverlabel": {
                "align": "left",
                "bgcolor": PAPER,
                "bordercolor": AXIS,
                "font": {"family": FONT, "size": 12, "color": INK},
            },
            "title": {"x": 0.0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": 16}},
            "margin": {"l": 64, "r": 24, "t": 56, "b": 56},
            "xaxis": axis,
            "yaxis": axis,
            "modebar": {"remove": list(_UPLOADS)},
            "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
        }
    )


def faded(colour_hex: str, alpha: float) -> str:
    """`#rrggbb` with opacity, as plotly takes it for bands."""
    red, green, blue = rgb(colour_hex)
    return f"rgba({red},{green},{blue},{alpha:g})"


def themed(fig: go.Figure, theme: str) -> go.Figure:
    """The figure in the colours of a theme, "light" (as it is) or "dark"; the given one is not changed.

    Raises:
        InputError: another theme.
    """
    import plotly.graph_objects as go

    if theme not in ("light", "dark"):
        raise InputError(f"There is no theme {theme!r}; use 'light' or 'dark'.")
    return fig if theme == "light" else go.Figure(darkened(fig.to_dict()))


def darkened(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure as plotly writes it, in the colours of a dark page; the given one is not changed."""
    return _dark(figure, False)


def is_ours(figure: Mapping[str, Any]) -> bool:
    """Whether a figure, as plotly writes it, is in the house style and on its light page."""
    layout = ((figure.get("layout") or {}).get("template") or {}).get("layout") or {}
    return layout.get("paper_bgcolor") == PAPER and (layout.get("font") or {}).get("family") == FONT


def _dark(value: Any, is_colour: bool) -> Any:
    """Only what stands under a key that holds colours is looked at: a token `#ffffff` stays one."""
    if isinstance(value, dict):
        return {key: _dark(item, key.endswith("color") or key in _SCALES) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if is_colour or any(isinstance(item, (dict, list, tuple)) for item in value):
            return [_dark(item, is_colour) for item in value]
        return value
    if is_colour and isinstance(value, str):
        faint = _FADED.fullmatch(value)
        if faint is None:
            return DARK.get(value, value)
        solid = "#" + "".join(f"{int(channel):02x}" for channel in faint.groups()[:3])
        return faded(DARK.get(solid, solid), float(faint[4]))
    return value


def wrapped(text: str, room: float) -> str:
    """Text from outside, escaped, in lines that fit so many pixels: a long unit would be cut off at the edge."""
    lines = textwrap.wrap(text, max(16, int(room / 7.5))) or [""]
    return "<br>".join(escape(line) for line in lines)


def name_of(meta: Mapping[str, Any]) -> str:
    """What a head table is, for a title; escaped, because plotly reads tags in titles."""
    words = (meta["metric"] if meta["analysis"] == "unknown" else meta["analysis"], meta["model"])
    return escape(" · ".join(word for word in words if word))
