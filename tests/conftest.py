"""Shared fixtures. One thread per test process: the two cores belong to pytest-xdist."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

if "WORKBENCH_CACHE" not in os.environ:  # a test must measure, not read what an earlier version measured
    os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-cache-")
    atexit.register(shutil.rmtree, os.environ["WORKBENCH_CACHE"], ignore_errors=True)
