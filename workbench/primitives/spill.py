"""Activations that outgrow a budget go to disk, and come back as tensors that are mapped, not read.

What is kept in memory stays under `budget` bytes; each further tensor is written to a safetensors file of its own and
replaced by one that the system pages in when it is looked at. Writing waits for the disk, so give a folder on a fast
one. The files belong to whoever named the folder; with none named they are gone when the tensors are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.errors import InputError


class Spill:
    """Keeps tensors: in memory up to a budget, the others in files.

    Attributes:
        held: bytes kept in memory so far.
        files: written so far.
    """

    def __init__(self, budget: int, folder: str | Path | None = None):
        """Nothing kept yet.

        Raises:
            InputError: a budget below zero, or a folder that cannot be written to.
        """
        if budget < 0:
            raise InputError(f"A budget of {budget} bytes is below zero; 0 sends everything to disk.")
        self.budget, self.held, self.files = budget, 0, []
        self._own = tempfile.TemporaryDirectory(prefix="workbench-spill-") if folder is None else None
        self.folder = Path(self._own.name if self._own is not None else str(folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"Activations cannot be spilled to {str(self.folder)!r} ({error}); name a folder "
                "that can be written to."
            ) from None

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor itself, or its copy on disk, on the CPU; one that does not fit leaves nothing in memory.

        Raises:
            InputError: the disk is full, or the folder is gone.
        """
        size = tensor.numel() * tensor.element_size()
        if self.held + size <= self.budget:
            self.held += size
            return tensor
        file = self.folder / f"{len(self.files):06d}.safetensors"
        try:
            save_file({"activation": tensor.detach().cpu().contiguous()}, file)
        except Exception as error:  # safetensors raises its own kind for a full disk
            raise InputError(
                f"Activations of {size:,} bytes cannot be written to {str(file)!r} ({error}); free some space, or name "
                "another folder."
            ) from None
        self.files.append(file)
        with safe_open(file, framework="pt") as opened:
            mapped: Any = opened.get_tensor("activation")
        mapped._spill = self  # a temporary folder lives as long as what is in it
        return mapped
