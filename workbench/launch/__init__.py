"""Launching: one spec or a grid becomes jobs that worker processes, SLURM or Ray run into one store.

Read in this order: `grammar` and `grid` (what to run), `options` (where), `jobs` (what is on disk about a job), `work`
(what a worker does), `engines/` (who starts workers), `drive` (submit, watch, retry). Nothing here knows an analysis.
"""

from workbench.launch.drive import drive
from workbench.launch.grid import Asked, read
from workbench.launch.jobs import Job, Jobs
from workbench.launch.options import LAUNCHERS, LaunchOptions

__all__ = ["LAUNCHERS", "Asked", "Job", "Jobs", "LaunchOptions", "drive", "read"]
