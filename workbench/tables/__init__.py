"""`HeadTable`, the one schema of per-head results, with its selection rules and comparisons.

Every analysis ends in one of these and every table, figure and report starts from one. What lives here is the schema,
its validation, ranking, selection and comparison; files are written by `workbench.export` and drawn by
`workbench.plots`, both imported only when asked for. It must never know a model, a store or a paper, nor import
anything heavier than numpy.
"""

from workbench.tables.compare import Comparison
from workbench.tables.schema import COLUMNS, META_DEFAULTS
from workbench.tables.table import HeadTable

__all__ = ["COLUMNS", "META_DEFAULTS", "Comparison", "HeadTable"]
