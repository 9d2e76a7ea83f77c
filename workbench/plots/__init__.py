"""Figures as return values: heatmaps of heads, ranked bars, curves, needle grids, overlaps, graphs, attention.

Every function takes a table and gives a plotly figure (`tokens`: HTML); nothing is shown, saved or set as a default,
and plotly is imported only when a figure is made. `write` is the one place that makes a file, `notebook_theme` the one
that changes how a notebook shows figures. It must never know a model or an analysis.
"""

from workbench.plots.agreement import faithfulness, roc, scatter
from workbench.plots.attention import attention
from workbench.plots.files import write
from workbench.plots.heatmap import heads
from workbench.plots.image_attention import image_attention, overlay
from workbench.plots.network import graph
from workbench.plots.notebook import notebook_theme, obey_environment
from workbench.plots.places import grid, positions
from workbench.plots.series import bars, curves, intervals
from workbench.plots.sets import matrix, upset
from workbench.plots.tokens import tokens

__all__ = [
    "attention",
    "bars",
    "curves",
    "faithfulness",
    "graph",
    "grid",
    "heads",
    "image_attention",
    "intervals",
    "matrix",
    "notebook_theme",
    "overlay",
    "positions",
    "roc",
    "scatter",
    "tokens",
    "upset",
    "write",
]

obey_environment()
