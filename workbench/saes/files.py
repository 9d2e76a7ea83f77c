"""Autoencoder folders: `cfg.json` beside `sae_weights.safetensors`, the layout of SAELens.

A folder is read whole or refused in a sentence that names the file; it is written so that SAELens 6 reads it. Every
weight is kept in float32 (float64 where the file has it), which loses nothing of a narrower one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from workbench.errors import InputError
from workbench.saes.config import parse_config
from workbench.saes.sae import Sae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def load_sae(folder: str | Path, *, device: str = "cpu") -> Sae:
    """Read an autoencoder.

    Raises:
        InputError: a file is missing or damaged, or what the autoencoder computes is not known here.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder).expanduser()
    content = {name: _bytes(folder / name) for name in (CONFIG, WEIGHTS)}
    where = str(folder / CONFIG)
    try:
        config = parse_config(json.loads(content[CONFIG]), where=where)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is not JSON ({error}); fetch the file anew.") from None
    try:
        weights = load(content[WEIGHTS])
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} is not a safetensors file ({error}); fetch the file anew.") from None
    factor = weights.pop("scaling_factor", None)  # written by some versions, and all ones unless it is used
    if factor is not None and not bool(torch.allclose(factor.float(), torch.ones_like(factor.float()))):
        raise InputError(f"{folder / WEIGHTS} scales its features (scaling_factor), which is not supported.")
    wide = {name: w.to(device, torch.promote_types(w.dtype, torch.float32)) for name, w in weights.items()}
    try:
        return Sae(config, wide, folder_digest(folder), folder)
    except InputError as error:
        raise InputError(f"{folder / WEIGHTS}: {error}") from None


def folder_digest(folder: str | Path) -> str:
    """`sha256:<64 hex>` over both files.

    Raises:
        InputError: a file is missing.
    """
    found = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        found.update(hashlib.sha256(_bytes(Path(folder).expanduser() / name)).digest())
    return f"sha256:{found.hexdigest()}"


def as_files(sae: Sae) -> dict[str, bytes]:
    """Both files, by name."""
    from safetensors.torch import save

    weights = {name: sae.weights[name].detach().cpu().contiguous() for name in sorted(sae.weights)}
    config = json.dumps(sae.config.to_dict(), indent=2, sort_keys=True, default=str) + "\n"
    return {CONFIG: config.encode(), WEIGHTS: save(weights)}


def save_sae(sae: Sae, folder: str | Path) -> Path:
    """Write an autoencoder; the configuration last, so that a folder with one is whole.

    Raises:
        InputError: there is an autoencoder already.
    """
    folder = Path(folder).expanduser()
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds an autoencoder already; choose another folder or remove it first.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in sorted(as_files(sae).items(), reverse=True):
        write_whole(folder / name, data)
    return folder


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    Path(handle.name).replace(path)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); an autoencoder is a folder with {CONFIG} and {WEIGHTS}."
        ) from None
