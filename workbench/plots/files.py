"""Writing a figure: one self-contained HTML file, or a picture when a browser is there to draw it.

The HTML carries plotly.js inside, so it opens offline and stays readable for years; the same figure gives the same
bytes. This module must never know what a figure shows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import InputError
from workbench.export import files
from workbench.plots import theme as themes

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Buttons by name: plotly.js would add one that sends the figure to its makers' server.
CONFIG = {
    "displaylogo": False,
    "modeBarButtons": [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
}
_IMAGES = (".png", ".svg", ".pdf")


def write(fig: go.Figure, path: str | Path, *, scale: float = 2.0, theme: str = "light") -> None:
    """Write a figure as .html, .png, .svg or .pdf, by the ending of `path`.

    Args:
        scale: pixel density of a .png.
        theme: "light" or "dark".

    Raises:
        InputError: another ending or theme, a path that cannot be written, or a picture without kaleido and a browser.
    """
    fig = themes.themed(fig, theme)
    ending = Path(path).suffix.lower()
    if ending in (".html", ".htm"):
        files.write(path, html(fig).encode("utf-8"))
    elif ending in _IMAGES:
        files.write(path, _image(fig, ending[1:], scale))
    else:
        raise InputError(f"A figure cannot be written as {str(path)!r}; end the name in .html, .png, .svg or .pdf.")


def html(fig: go.Figure, *, full_page: bool = True, plotly_js: bool = True) -> str:
    """A figure as HTML with nothing fetched. For a page of several figures pass `full_page=False`, and `plotly_js`
    only with the first."""
    # Plotly would draw a random id for the element; one taken from the content keeps exports identical.
    name = "figure-" + hashlib.sha256((fig.to_json() or "").encode("utf-8")).hexdigest()[:16]
    return fig.to_html(
        include_plotlyjs=plotly_js,
        include_mathjax=False,
        full_html=full_page,
        div_id=name,
        config={**CONFIG, "responsive": True},
    )


def _image(fig: go.Figure, kind: str, scale: float) -> bytes:
    try:
        return fig.to_image(format=kind, scale=scale)
    except Exception as error:  # kaleido and the browser fail in many ways; all have this remedy
        why = " ".join(str(error).split())[:120].rstrip(".")
        raise InputError(
            f"A .{kind} needs kaleido and a Chromium browser ({type(error).__name__}: {why}); run "
            "pip install 'workbench[images]' and install Chromium, or write .html instead."
        ) from error
