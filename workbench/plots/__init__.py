"""Figures as return values: heatmaps of heads, ranked bars, needle grids, ablation curves.

Every function takes a table and gives a plotly figure; nothing is shown, saved or set as a default on the way, and
plotly is imported only when a figure is made. `write` is the one place that makes a file. It must never know a model or
an analysis.
"""

from workbench.plots.files import write
from workbench.plots.heatmap import grid, heads
from workbench.plots.series import bars, curves

__all__ = ["bars", "curves", "grid", "heads", "write"]
