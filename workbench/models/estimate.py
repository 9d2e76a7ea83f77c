"""How much memory a model will take, from its configuration and the headers of its weight files: nothing is loaded.

    weights      what is stored, at the dtype it will have; 8-bit and 4-bit kinds shrink the blocks' projections only.
                 Where TransformerLens splits a joint query-key-value matrix into copies (GPT-NeoX), they come on top
    cache        keys and values: 2 x layers x kv heads x d_head per token and prompt
    pattern      attention weights of one layer, which eager attention holds whole: batch x heads x T x T, float32, and
                 as much again for the scores they come from. Retrieval scoring cuts queries into pieces instead.
    logits       float32, at every position unless only the last is asked for

Working memory beyond these (activations of one block, an analysis's own tables) is small beside them for models of a
billion weights and is not counted.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.errors import InputError, did_you_mean
from workbench.models.source import read_json, resolve, weight_files
from workbench.models.weights_header import read_header

Quantize = Literal["8bit", "4bit"]
QUANTIZE: tuple[Quantize, ...] = ("8bit", "4bit")
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# int8 with a float32 scale per row; 4-bit codes with a float32 scale per 64 weights
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
_NOT_QUANTIZED = ("embed", "wte", "wpe", "lm_head", "norm", "ln_", "vision")
_SCORE_COPIES = 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for; `total` is all of them at once.

    Attributes:
        n_parameters: weights as stored, tied ones once.
        dtype, quantize, batch, tokens: what was asked about.
    """

    n_parameters: int
    weights: int
    cache: int
    pattern: int
    logits: int
    dtype: str
    quantize: str | None
    batch: int
    tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.pattern + self.logits

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "total": self.total}


def estimate_memory(
    source: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    quantize: str | None = None,
    batch: int = 1,
    tokens: int = 1024,
    revision: str | None = None,
) -> MemoryEstimate:
    """What a model and a batch of prompts will take, before anything is loaded.

    Args:
        source: hub name, directory or `organism:NAME`.
        dtype: of the weights and activations.
        quantize: None, "8bit" or "4bit", as `load_model` takes it.
        batch, tokens: prompts run together, and their length.

    Raises:
        InputError: no such model, no weights in safetensors, or an option that is none of these.
    """
    if dtype not in _BYTES:
        raise InputError(f"Unknown dtype {dtype!r}.{did_you_mean(dtype, _BYTES)} Use one of: {', '.join(_BYTES)}.")
    checked_quantize(quantize)
    for name, value in (("batch", batch), ("tokens", tokens)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number from 1, not {value!r}.")
    directory = resolve(source, revision=revision).path
    config = read_json(directory / "config.json", what="model configuration")
    config = {**config, **(config.get("text_config") or {})}
    n_layers, n_heads = (
        _dimension(config, *names) for names in (("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"))
    )
    width = _dimension(config, "hidden_size", "n_embd", "d_model")
    n_kv = int(config.get("num_key_value_heads") or n_heads)
    d_head = int(config.get("head_dim") or width // n_heads)
    item = _BYTES[dtype]
    n_parameters, weights = weight_bytes(directory, dtype=dtype, quantize=quantize)
    return MemoryEstimate(
        n_parameters=n_parameters,
        weights=weights,
        cache=2 * n_layers * n_kv * d_head * item * tokens * batch,
        pattern=_SCORE_COPIES * n_heads * tokens * tokens * 4 * batch,
        logits=_dimension(config, "vocab_size") * tokens * 4 * batch,
        dtype=dtype,
        quantize=quantize,
        batch=batch,
        tokens=tokens,
    )


def weight_bytes(directory: Path, *, dtype: str, quantize: str | None = None) -> tuple[int, int]:
    """Number of stored weights, and the bytes they take once loaded."""
    count, total = 0, 0.0
    for file in weight_files(directory):
        for name, stored in read_header(file)[1].items():
            n = math.prod(stored["shape"])
            count += n
            shrinks = quantize is not None and len(stored["shape"]) == 2 and not any(p in name for p in _NOT_QUANTIZED)
            total += n * (_QUANTIZED_BYTES[quantize] if shrinks and quantize else _BYTES[dtype])
    return count, int(total)


def checked_quantize(quantize: str | None) -> None:
    if quantize is not None and quantize not in QUANTIZE:
        raise InputError(f"quantize={quantize!r} is no kind of quantisation; use '8bit', '4bit' or leave it out.")


def require_room(weights: int, available: int, *, name: str, dtype: str, where: str) -> None:
    """Refuse what cannot fit, before the machine starts to swap or the process is killed.

    Raises:
        InputError: the weights alone take more than is available.
    """
    if weights <= available:
        return
    smaller = (
        "quantize='8bit' or '4bit', or a smaller model" if dtype in ("bfloat16", "float16") else "dtype='bfloat16'"
    )
    raise InputError(
        f"The weights of {name!r} take {weights / 2**30:.1f} GiB in {dtype}, and {where} has {available / 2**30:.1f} "
        f"GiB available; use {smaller}."
    )


def _dimension(config: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return config[name]
    raise InputError(f"config.json names no {names[0]}, so the memory cannot be estimated; load the model to see.")
