"""How many CPU threads a model deserves.

In a model of a few million weights the work of one operator is smaller than handing it to another thread, and on a
busy machine the waiting threads take the processor from the working one: measured, 270 s against 12 s for the same
run on two busy cores. A choice the user made (`OMP_NUM_THREADS`) is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.models.model import Model

SMALL = 5_000_000  # weights


@contextmanager
def suited_threads(model: Model) -> Iterator[None]:
    """One thread inside the block for a small model on the CPU; anything else keeps torch's setting."""
    import torch

    if model.n_parameters > SMALL or model.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
