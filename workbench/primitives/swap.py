"""Take a module's place for a while: the model's own code runs, and meets another function where the module was.

This is how a fork skips blocks and hands cached attention to the rest of a block without knowing any architecture.
Only the instance is touched, and always given back. It never knows what the replacement computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Call = Callable[..., Any]


@contextmanager
def swapped(replacements: Mapping[nn.Module, Call]) -> Iterator[None]:
    """Inside the block, calling one of the modules calls its replacement (module hooks still run)."""
    before = {module: module.__dict__.get("forward") for module in replacements}
    try:
        for module, replacement in replacements.items():
            module.__dict__["forward"] = replacement  # not setattr: a bridge forwards that to the module it wraps
        yield
    finally:
        for module, old in before.items():
            if old is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = old


def dense_unembedding(hf: nn.Module) -> dict[nn.Module, Call]:
    """For `swapped`: an unembedding that is given contiguous rows.

    One position of each row is a strided view, for which torch multiplies row by row and reads the whole matrix each
    time: with a vocabulary of 50,000 that takes longer than several blocks.
    """
    unembed = hf.get_output_embeddings()  # type: ignore[operator]
    if unembed is None:
        return {}
    call = unembed.forward
    return {unembed: lambda x, *args, **kwargs: call(x.contiguous(), *args, **kwargs)}


def hidden_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states a block or an attention module was called with."""
    return args[0] if args and isinstance(args[0], Tensor) else kwargs["hidden_states"]


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with other hidden states."""
    if args and isinstance(args[0], Tensor):
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def hidden_out(output: Any) -> Tensor:
    """The hidden states a block or an attention module returned."""
    return output[0] if isinstance(output, tuple) else output


def as_output(hidden: Tensor, width: int | None) -> Any:
    """Hidden states in the form the module returns: alone (None), or first in a tuple of `width`."""
    return hidden if width is None else (hidden, *([None] * (width - 1)))


def output_width(output: Any) -> int | None:
    """The form that `as_output` needs to make another one like this."""
    return len(output) if isinstance(output, tuple) else None
