"""What every training script is asked on the command line, and what its card records of a training."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging


def asked(name: str, out: Path) -> argparse.Namespace:
    """The command line of the script that trains the organism `name`: out, seed, smoke, measure_only.

    One thread from here on: the same bits every time, and room for others.
    """
    parser = argparse.ArgumentParser(description=f"Train the organism `{name}`.")
    parser.add_argument("--out", type=Path, default=out, help="folder to write (default: the one in the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps only; the model will know nothing")
    parser.add_argument("--measure-only", action="store_true", help="keep the weights in --out, renew the card")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    return args


class Training:
    """A training that begins now."""

    def __init__(self, script: str, args: argparse.Namespace) -> None:
        self.script, self.args = script, args
        self.wall, self.cpu = time.time(), time.process_time()

    def record(self, **facts: Any) -> dict[str, Any]:
        """The `training` block of a card, of a training that ends now."""
        return {
            "command": f"python experiments/organisms/{self.script}" + (" --smoke" if self.args.smoke else ""),
            "seed": self.args.seed,
            "smoke": self.args.smoke,
            "seconds": round(time.time() - self.wall),
            "cpu_seconds": round(time.process_time() - self.cpu),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **facts,
        }
