"""The header of a safetensors file, checked entry by entry before anyone trusts an offset in it.

    8 bytes: length of the header, little-endian | header, JSON: name -> {dtype, shape, data_offsets} | tensor bytes

Every tensor's offsets must span exactly the bytes its shape and dtype need, and the tensors must fill the file from
first byte to last without overlap: the format's own rules, which leave a liar nothing to hide. No torch is imported.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from workbench.errors import InputError

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def read_header(file: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Offset of the first tensor byte, and each tensor's `dtype`, `shape` and `data_offsets`.

    Raises:
        InputError: the file is truncated, no safetensors file, or its header does not describe what follows it.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(handle.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        notes = header.pop("__metadata__", None) or {}
        if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
            raise ValueError("its __metadata__ holds more than texts")
        spans = sorted(_span(name, entry) for name, entry in header.items())
        end = 0
        for begin, stop, name in spans:
            if begin != end:
                raise ValueError(
                    f"tensor {name!r} begins at byte {begin:,}, not at {end:,}, where the one before it ends"
                )
            end = stop
        if 8 + length + end != size:
            raise ValueError(f"{size:,} bytes where its header promises {8 + length + end:,}")
    except (OSError, ValueError, struct.error, RecursionError) as error:
        raise InputError(f"{file} is not a complete safetensors file ({error}); copy or download it again.") from None
    return 8 + length, header


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    """First and last byte of a tensor, and its name; ValueError if its entry contradicts itself."""
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {name!r} is described by a {type(entry).__name__}")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"tensor {name!r} has the dtype {dtype!s:.40}")
    shape, offsets = (_numbers(name, entry.get(key)) for key in ("shape", "data_offsets"))
    if len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has {len(offsets)} offsets")
    begin, stop = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or stop - begin != bits // 8:
        raise ValueError(f"tensor {name!r} of shape {shape} in {dtype} does not fill bytes {begin:,} to {stop:,}")
    return begin, stop, name


def _numbers(name: str, values: Any) -> list[int]:
    """The values, if they are a list of whole numbers from 0."""
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"tensor {name!r} has the shape or offsets {values!s:.40}")
    return values
