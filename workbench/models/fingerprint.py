"""What makes two copies of a model the same model: a hash of its weights and its tokenizer.

    fingerprint = sha256( for each stored tensor, by name: header(name, dtype, shape, n_bytes), bytes ; tokenizer )

Names, dtypes and bytes are those of the safetensors files, read without torch by mapping them into memory, so one file
and its sharded copy agree, and a copy at another path does. For a Hugging Face model in memory the same is computed
from its state dict without the names that are tied to another (which `save_pretrained` does not store either): equal to
the directory's when the checkpoint was written by `save_pretrained` and loaded at its own dtype. For a bridge that
already exists only the bridge's own names can be had (a different name space, hence a different fingerprint). Taken
before a bridge is built: building one renames the tensors. It never knows what the model is for.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.models.source import TOKENIZER_FILES, read_json, weight_files
from workbench.models.weights_header import read_header

if TYPE_CHECKING:
    import torch
    from torch import nn

_DTYPES = {  # torch -> safetensors
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
# What decides which ids a text becomes. Not the post-processor (BOS is ours to place), padding or truncation.
_TOKENIZER_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "model")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token")

Entry = tuple[str, str, tuple[int, ...], Any]  # name, safetensors dtype, shape, buffer


def fingerprint_directory(path: str | Path, *, tokenizer: Any | None = None) -> str:
    """Fingerprint of a model directory, "sha256:<64 hex>"; reads every weight once and imports no torch.

    `tokenizer`: an object used instead of the directory's own.
    """
    directory = Path(path)
    content = _tokenizer_of_directory(directory) if tokenizer is None else _tokenizer_of_object(tokenizer)
    with _stored(weight_files(directory)) as entries:
        return _digest(entries, content)


def fingerprint_model(hf: nn.Module, tokenizer: Any | None) -> str:
    """Fingerprint of a model in memory, not yet inside a bridge."""
    return _digest(_in_memory(hf), _tokenizer_of_object(tokenizer))


def fingerprint_bridge(bridge: nn.Module, tokenizer: Any | None) -> str:
    """Fingerprint of an existing bridge from its own state dict; comparable only with other bridges."""
    return _digest(_in_memory(bridge), _tokenizer_of_object(tokenizer))


def _digest(entries: Iterable[Entry], tokenizer: bytes) -> str:
    digest = hashlib.sha256()
    for name, dtype, shape, data in entries:
        view = memoryview(data)
        header = json.dumps([name, dtype, list(shape), view.nbytes])
        digest.update(header.encode() + b"\n")
        digest.update(view)
        view.release()
    digest.update(b"tokenizer\n" + tokenizer)
    return f"sha256:{digest.hexdigest()}"


# ---- weights


@contextmanager
def _stored(files: list[Path]) -> Iterator[list[Entry]]:
    """Entries of safetensors files, as views of the mapped files, valid inside the context."""
    entries: list[Entry] = []
    maps: list[mmap.mmap] = []
    try:
        for file in files:
            with file.open("rb") as handle:
                start, header = read_header(file)
                mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            maps.append(mapped)
            whole = memoryview(mapped)
            for name, spec in header.items():
                begin, end = spec["data_offsets"]
                entries.append((name, spec["dtype"], tuple(spec["shape"]), whole[start + begin : start + end]))
            whole.release()
        yield sorted(entries, key=lambda entry: entry[0])
    finally:
        for *_, view in entries:
            view.release()
        for mapped in maps:
            mapped.close()


def _in_memory(module: nn.Module) -> Iterator[Entry]:
    """Entries of a state dict, under the names `save_pretrained` would store; tensors leave their device one by one."""
    state = _as_stored(module, _untied(module))
    for name in sorted(state):
        tensor = state[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield name, _DTYPES.get(dtype, dtype), tuple(tensor.shape), _bytes(tensor)


def _untied(module: nn.Module) -> dict[str, torch.Tensor]:
    """State dict without names tied to another."""
    state = module.state_dict()
    tied = set(getattr(module, "all_tied_weights_keys", None) or ())
    kept: dict[str, torch.Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name in sorted(state, key=lambda name: (name in tied, name)):  # a tied name only if nothing else holds it
        tensor = state[name]
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if tensor.numel() == 0 or key not in seen:
            seen.add(key)
            kept[name] = tensor
    return kept


def _as_stored(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo the renaming and merging transformers does on loading (GPT-NeoX's embed_out, experts in one tensor)."""
    if not hasattr(module, "save_pretrained"):
        return state
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # a version that stores what it holds
        return state
    return dict(revert_weight_conversion(cast("Any", module), state))


def _bytes(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


# ---- tokenizer


def _canonical(record: Any) -> bytes:
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _tokenizer_of_directory(directory: Path) -> bytes:
    config_file = directory / "tokenizer_config.json"
    config = read_json(config_file, what="tokenizer configuration") if config_file.exists() else {}
    special_file = directory / "special_tokens_map.json"
    if special_file.exists():
        config = {**read_json(special_file, what="special token map"), **config}
    named = [_text(config.get(name)) for name in _NAMED_TOKENS]
    template_file = directory / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.exists() else config.get("chat_template")
    backend = directory / "tokenizer.json"
    if backend.exists():
        record = read_json(backend, what="tokenizer")
        return _canonical([{part: record.get(part) for part in _TOKENIZER_PARTS}, named, template])
    files = [directory / name for name in TOKENIZER_FILES if (directory / name).exists()]
    if not files and not config:
        return b""
    return _canonical([[[f.name, hashlib.sha256(f.read_bytes()).hexdigest()] for f in files], named, template])


def _tokenizer_of_object(tokenizer: Any | None) -> bytes:
    if tokenizer is None:
        return b""
    named = [_text(getattr(tokenizer, name, None)) for name in _NAMED_TOKENS]
    template = getattr(tokenizer, "chat_template", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _canonical([sorted(tokenizer.get_vocab().items()), named, template])
    record = json.loads(backend.to_str())
    return _canonical([{part: record.get(part) for part in _TOKENIZER_PARTS}, named, template])


def _text(token: Any) -> str | None:
    """A special token's text, whether stored as a string or as {"content": ...}."""
    if isinstance(token, dict):
        token = token.get("content")
    return None if token is None else str(token)
