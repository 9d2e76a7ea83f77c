"""Hooks that cannot fail silently: every name exists, every hook fires, every edit keeps its shape and takes effect.

TransformerLens accepts hooks on points that never fire, results of a wrong but broadcastable shape, in-place writes
that change what an earlier hook captured, and edits that an architecture discards. `hooked` turns each of these into an
error that names the hook. It never knows what the hooks are for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import CapabilityError, InputError, did_you_mean

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint

    from workbench.models import Model

Hook = tuple[str, Callable[[Tensor, Any], "Tensor | None"]]

_DISCARDED = "The edit is discarded"


@dataclass
class HookLog:
    """What happened inside one `hooked` block. `fired[name]` counts, by the name as it was asked for."""

    fired: dict[str, int] = field(default_factory=dict)


@contextmanager
def hooked(model: Model, hooks: Sequence[Hook], *, must_fire: bool = True, copy: bool = True) -> Iterator[HookLog]:
    """Install `hooks` for the forward passes inside the block; remove them at its end, whatever happens.

    Each hook is `(name, fn)` with `fn(activation, hook_point) -> activation | None`. Hooks on the same point run in the
    order given; an outer block's hooks run before an inner block's.

    In-place writes: with `copy=True` (default) `fn` gets a private copy. What it returns replaces the activation; when
    it returns None, what it wrote into the copy does. So `z[:, :, 3] = 0` works, and a tensor that an earlier hook
    kept is never changed. With `copy=False` (no memory cost: for hooks that read, or return a new tensor) `fn` gets the
    live activation, and writing into it is an InputError.

    Args:
        must_fire: raise when a hook did not fire in a block that ended without an exception.

    Raises:
        InputError: unknown or gated name, a result of another shape, dtype or device, a forbidden in-place write, a
            hook that never fired.
        CapabilityError: the architecture discards the edit.
    """
    points = hook_points(model, [name for name, _ in hooks])
    log = HookLog({name: 0 for name, _ in hooks})
    guards = [(points[name].name, _Guard(name, fn, log, copy)) for name, fn in hooks]
    with _discarded_edits_raise(model), model.bridge.hooks(fwd_hooks=guards):
        yield log
    silent = [name for name, count in log.fired.items() if count == 0]
    if must_fire and silent:
        raise InputError(
            f"The hook {silent[0]!r} never fired in {model.name!r}, so it read and changed nothing; run a forward pass "
            f"inside the block, or choose a hook point that this architecture uses."
        )


def hook_points(model: Model, names: Sequence[str]) -> dict[str, HookPoint]:
    """The hook point of every name (legacy aliases as well as canonical names), by the name as asked.

    Raises:
        InputError: the model has no such hook, or it only fires after a switch is set.
    """
    available = model.bridge.hook_dict
    points: dict[str, HookPoint] = {}
    for name in names:
        if name not in available:
            raise InputError(f"Model {model.name!r} has no hook {name!r}.{did_you_mean(name, available)}")
        point = available[name]
        switch = _gate(model, str(point.name))
        if switch is not None:
            raise InputError(
                f"The hook {name!r} does not fire while {switch} is off; call model.bridge.set_{switch}(True) first."
            )
        points[name] = point
    return points


_GATES = {
    "attn.hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_attn_in": "use_attn_in",
}


def _gate(model: Model, canonical: str) -> str | None:
    """Name of the configuration switch that keeps this hook point from firing, if one does."""
    for ending, switch in _GATES.items():
        if canonical.endswith(ending) and not getattr(model.bridge.cfg, switch, False):
            return switch
    return None


class _Guard:
    """One hook function, wrapped in its checks."""

    def __init__(self, name: str, fn: Callable[[Tensor, Any], Tensor | None], log: HookLog, copy: bool):
        self.name, self.fn, self.log, self.copy = name, fn, log, copy

    def __call__(self, activation: Tensor, hook: Any) -> Tensor | None:
        self.log.fired[self.name] += 1
        # inference tensors count no versions, so whether one was written cannot be told: they are always copied
        private = self.copy or activation.is_inference()
        given = activation.clone() if private else activation
        version = None if given.is_inference() else given._version
        result = self.fn(given, hook)
        wrote = version is None or given._version != version
        if wrote and not private:
            raise InputError(
                f"The function on hook {self.name!r} wrote in place into an activation it does not own; "
                f"return a new tensor, or install it with copy=True."
            )
        if result is None:
            return given if wrote else None
        self._check(result, activation)
        return result

    def _check(self, result: Any, activation: Tensor) -> None:
        if not isinstance(result, Tensor):
            kind = type(result).__name__
            raise InputError(f"The function on hook {self.name!r} returned {kind}; return a tensor or None.")
        for what in ("shape", "dtype", "device"):
            want, got = getattr(activation, what), getattr(result, what)
            if want != got:
                want, got = (list(want), list(got)) if isinstance(want, torch.Size) else (want, got)
                raise InputError(
                    f"The function on hook {self.name!r} returned a tensor of {what} {got}, but the activation has "
                    f"{what} {want}; return one of the same {what}."
                )

    def __repr__(self) -> str:
        return f"_Guard({self.name!r})"


@contextmanager
def _discarded_edits_raise(model: Model) -> Iterator[None]:
    """TransformerLens only warns when an architecture has already used what a hook edits; that is a wrong result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{_DISCARDED}.*")
        try:
            yield
        except UserWarning as warning:
            if _DISCARDED not in str(warning):
                raise
            where = re.search(r"hook on (\S+) returned", str(warning))
            raise CapabilityError(
                f"Model {model.name!r} discards edits at {where.group(1) if where else 'this hook'}: its attention has "
                f"already used the original values; edit hook_z, or hook_q before the scores, instead."
            ) from None
