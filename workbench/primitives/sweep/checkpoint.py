"""Finished parts of a sweep on disk, so that a killed one goes on where it was.

One directory per sweep, named by a digest of everything that decides its numbers; one safetensors file per chunk of
prompts and layer, written beside its place and moved there, so that a file is whole or absent. A file that is not, to
the bit, what was written under that name counts as absent. The directory goes away with the sweep's completion: whoever
asks again wants to compute again. Several processes may fill one directory together (`team`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.primitives.sweep import team

if TYPE_CHECKING:
    from workbench.models import Model

_FORMAT = 1
_SIZES = "sizes.json"
_SEAL = "sha256"


def digest(record: Any) -> str:
    """Of a JSON-able record, together with the code that makes the numbers: other code never resumes what this left."""
    return hashlib.sha256(json.dumps([_FORMAT, _code(), record], sort_keys=True).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """Of the sources of the primitives and of the models below them."""
    package = Path(__file__).resolve().parents[2]
    sources = [file for room in ("models", "primitives") for file in sorted((package / room).rglob("*.py"))]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in sources)).hexdigest()


def identity(model: Model, *tokens: Tensor | None) -> list[Any]:
    """What decides the numbers of a model on token rows (or masks, or None), JSON-able."""
    return [
        model.fingerprint,
        model.config_digest,
        model.basis,
        str(model.dtype),
        model.device.type,
        [None if t is None else [list(t.shape), _sha256(t)] for t in tokens],
        torch.__version__,
    ]


def _sha256(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().long().numpy().tobytes()).hexdigest()


def seal(tensors: Mapping[str, Tensor], name: str) -> bytes:
    """The tensors as a safetensors file that holds the sha256 of them and of the `name` it is to be read back under."""
    from safetensors.torch import save

    held = dict(tensors)
    return save(held, metadata={_SEAL: _seal_of(held, name)})


def unseal(data: bytes, name: str) -> dict[str, Tensor] | None:
    """The tensors of `seal`; None for bytes that are not what it made for that name."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        held = load(data)
        said = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][_SEAL]
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    return held if said == _seal_of(held, name) else None


def _seal_of(tensors: dict[str, Tensor], name: str) -> str:
    from safetensors.torch import save

    return hashlib.sha256(name.encode() + b"\0" + save(tensors)).hexdigest()


def default_root() -> Path:
    """Where analyses keep the parts of unfinished sweeps: `$WORKBENCH_CACHE/sweeps`, or below ~/.cache/workbench; in a
    team, its folder."""
    if (shared := team.current()) is not None:
        return shared.root
    root = os.environ.get("WORKBENCH_CACHE") or "~/.cache/workbench"
    return Path(root).expanduser() / "sweeps"


class Checkpoint:
    """The finished parts of one sweep; with `root=None`, none are kept."""

    def __init__(self, root: str | Path | None, key: Any):
        self.folder = None if root is None else Path(root) / digest(key)

    def parts(
        self, keys: Sequence[team.Key], make: Callable[[team.Key], dict[str, Tensor]]
    ) -> Iterator[tuple[team.Key, dict[str, Tensor]]]:
        """Every part `(chunk, layer)` of `keys` once: from disk, or by `make`, which is then kept on disk.

        In the order of `keys`; in a team in any order, with other members' parts as they come.
        """

        def made(key: team.Key) -> dict[str, Tensor]:
            part = make(key)
            self.save(*key, part)
            return part

        shared = None if self.folder is None else team.current()
        if shared is not None:
            yield from team.together(shared, keys, lambda key: self.load(*key), made)
            return
        for key in keys:
            part = self.load(*key)
            yield key, made(key) if part is None else part

    def load(self, chunk: int, layer: int) -> dict[str, Tensor] | None:
        """A finished part, None when it is not there (or not whole)."""
        if self.folder is None:
            return None
        file = self._file(chunk, layer)
        try:
            return unseal(file.read_bytes(), file.name)
        except OSError:
            return None

    def save(self, chunk: int, layer: int, values: Mapping[str, Tensor]) -> None:
        if self.folder is not None:
            file = self._file(chunk, layer)
            self._write(file, seal({k: v.contiguous().cpu() for k, v in values.items()}, file.name))

    @property
    def sizes(self) -> dict[str, int]:
        """Batch sizes that memory had room for, where they had to be reduced."""
        if self.folder is None:
            return {}
        try:
            return {str(k): int(v) for k, v in json.loads((self.folder / _SIZES).read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def save_sizes(self, **sizes: int) -> None:
        if self.folder is not None:
            self._write(self.folder / _SIZES, json.dumps({**self.sizes, **sizes}).encode())

    def remove(self) -> None:
        """Forget the sweep; in a team nothing is forgotten, because others may not have read it yet."""
        if self.folder is not None and team.current() is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, chunk: int, layer: int) -> Path:
        assert self.folder is not None
        return self.folder / f"chunk-{chunk:05d}-layer-{layer:03d}.safetensors"

    @staticmethod
    def _write(file: Path, data: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        Path(handle.name).replace(file)
