"""One progress bar for long work: on a terminal or in a notebook, silent everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DELAY = 1.0  # seconds before a bar appears: an analysis may do a hundred short things


@contextmanager
def bar(total: int, label: str) -> Iterator[Any]:
    """A tqdm bar on stderr; call `.update(n)` on it. Hidden when nobody is looking (pipes, CI, `--json`)."""
    from tqdm import tqdm  # plain text in notebooks too: the other kind warns where ipywidgets is missing

    in_notebook = "ipykernel" in sys.modules
    hidden = not (in_notebook or sys.stderr.isatty())
    with tqdm(total=total, desc=label, disable=hidden, leave=False, dynamic_ncols=True, delay=_DELAY) as shown:
        yield shown
