"""Figures in the colours of a dark notebook: a switch, because what a notebook shows cannot see the page around it.

JupyterLab, VS Code and Colab take a figure as data and draw it where no style sheet reaches. So the figures stay light
values, and it is their showing that changes: of our figures only, and of none that is written or put into a report.
`$WORKBENCH_THEME` throws the switch when the first figure of a notebook is made.
"""

from __future__ import annotations

import os
import sys

from workbench.errors import InputError
from workbench.plots import theme as themes

VARIABLE = "WORKBENCH_THEME"
_NAME = "workbench-dark"
_before: list[str] = []  # plotly's own choice of renderers, while ours stands in for it


def notebook_theme(theme: str) -> None:
    """Show figures in this notebook in the colours of "dark" or "light" surroundings, from the next one on.

    Example:
        >>> wb.plots.notebook_theme("dark")  # doctest: +SKIP

    Raises:
        InputError: another theme, or there is no notebook that shows figures.
    """
    if theme not in ("light", "dark"):
        raise InputError(f"There is no theme {theme!r}; use 'light' or 'dark'.")
    import plotly.io as pio
    from plotly.io.base_renderers import MimetypeRenderer

    class Dark(MimetypeRenderer):
        """What the notebook's own renderers show of a figure, dark."""

        def __init__(self, names: list[str]) -> None:
            self.own = [pio.renderers[name] for name in names]

        def activate(self) -> None:
            for one in self.own:
                one.activate()

        def to_mimebundle(self, fig_dict: dict) -> dict:
            shown = themes.darkened(fig_dict) if themes.is_ours(fig_dict) else fig_dict
            return {kind: data for one in self.own for kind, data in one.to_mimebundle(shown).items()}

    own = _before[0] if pio.renderers.default == _NAME else str(pio.renderers.default or "")
    names = [name for name in own.split("+") if name and isinstance(pio.renderers[name], MimetypeRenderer)]
    if not names:
        raise InputError(
            "There is no notebook here that shows figures; write them with wb.plots.write(fig, path, theme='dark')."
        )
    if theme == "light":
        pio.renderers.default = own
        return
    _before[:] = [own]
    pio.renderers[_NAME] = Dark(names)
    pio.renderers.default = _NAME


def obey_environment() -> None:
    """Do what `$WORKBENCH_THEME` says, where a notebook's kernel runs this; elsewhere it has no meaning."""
    wanted = os.environ.get(VARIABLE)
    if not wanted or "ipykernel" not in sys.modules:
        return
    try:
        notebook_theme(wanted)
    except InputError as error:
        raise InputError(f"${VARIABLE}: {error}") from None
