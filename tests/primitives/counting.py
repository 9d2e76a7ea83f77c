"""A readout that says how much was computed: for tests that stop a run and go on with it."""

from __future__ import annotations

import time

import torch

from workbench.primitives.sweep.readout import Readout


class Counting(Readout):
    """A readout that counts how often it is asked, and can be told to take its time."""

    calls = 0
    pause = 0.0

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        time.sleep(self.pause)
        return super().__call__(*args, **kwargs)


def counting(n: int) -> Counting:
    """Of `n` prompts, having counted nothing yet."""
    Counting.calls = 0
    return Counting("logit_diff", torch.arange(5, 5 + n), torch.arange(15, 15 + n))
