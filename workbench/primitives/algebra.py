"""What can be done to attention heads: seven interventions, where they act, and their arithmetic on z.

An `Intervention` is a value: which heads, which positions, in which phase, and what replaces the head's output
z `[batch, pos, head, d_head]` (the input of the output projection, before heads are summed). `new_z` is its
arithmetic, a pure function of tensors. Installing it on a model is `interventions.applied`; this file never knows a
model, a hook or a cache.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, SupportsIndex, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import InputError

Heads = Iterable[tuple[SupportsIndex, SupportsIndex]]
Run = Mapping[Any, Tensor]  # by layer, or by hook name as `capture` returns it


class Scope(str, Enum):
    """When an intervention acts: while the prompt is read, while tokens are generated, or always."""

    PREFILL = "prefill"
    DECODE = "decode"
    ALL = "all"


class Kind(str, Enum):
    """What an intervention does; the functions of the same names below say how."""

    ZERO = "zero"
    SCALE = "scale"
    MEAN = "mean"
    RESAMPLE = "resample"
    PATCH = "patch"
    UNIFORM = "uniform"
    REINFORCE = "reinforce"


@dataclass(frozen=True, eq=False)
class Intervention:
    """One change to some heads. Make it with `zero`, `scale`, `mean`, `resample`, `patch`, `uniform`, `reinforce`.

    Attributes:
        heads: (layer, head) pairs, 0-based, each once.
        scope: the phase in which it acts.
        positions: token positions at which it acts, None for all. See `interventions.applied` for how they count.
        alpha: factor of `scale` and `reinforce`.
        source: replacement values by layer, with all heads of the layer: `[n_heads, d_head]` or
            `[pos, n_heads, d_head]` for `mean`, `[batch, pos, n_heads, d_head]` for `patch` and `resample`.
        source_positions: column of the token matrix that each `pos` of a patched run is; None: 0, 1, 2, ...
        permutation: for `resample`, the example of the run that each example of the batch gets.
    """

    kind: Kind
    heads: tuple[tuple[int, int], ...]
    scope: Scope = Scope.ALL
    positions: tuple[int, ...] | None = None
    alpha: float | None = None
    source: Mapping[int, Tensor] | None = None
    source_positions: tuple[int, ...] | None = None
    permutation: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        # object.__setattr__ is how a frozen dataclass normalises its own fields
        object.__setattr__(self, "kind", _member(Kind, self.kind))
        object.__setattr__(self, "scope", _member(Scope, self.scope))
        object.__setattr__(self, "heads", _head_pairs(self.heads))
        for name in ("positions", "source_positions", "permutation"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _counts(name, getattr(self, name)))
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise InputError(f"alpha must be a finite number, not {self.alpha}.")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that contain one of the heads, ascending."""
        return tuple(sorted({layer for layer, _ in self.heads}))

    def in_layer(self, layer: int) -> list[int]:
        """The heads of one layer."""
        return [head for at, head in self.heads if at == layer]

    def describe(self) -> dict[str, Any]:
        """JSON-able record; says whether there are source tensors, not what they hold."""
        return {
            "kind": self.kind.value,
            "heads": [list(pair) for pair in self.heads],
            "scope": self.scope.value,
            "positions": None if self.positions is None else list(self.positions),
            "alpha": self.alpha,
            "source": self.source is not None,
        }


def zero(heads: Heads, *, scope: Scope = Scope.ALL, positions: Sequence[int] | None = None) -> Intervention:
    """z := 0."""
    return _make(Kind.ZERO, heads, scope, positions)


def scale(
    heads: Heads, alpha: float, *, scope: Scope = Scope.ALL, positions: Sequence[int] | None = None
) -> Intervention:
    """z := alpha z. The "scaling contribution" of Zhou et al. 2024 is a small alpha."""
    return _make(Kind.SCALE, heads, scope, positions, alpha=float(alpha))


def reinforce(
    heads: Heads, alpha: float = 2.0, *, scope: Scope = Scope.ALL, positions: Sequence[int] | None = None
) -> Intervention:
    """z := alpha z, as vision-aware head reinforcement does (He et al. 2024, eq. 7; alpha = 2 there)."""
    return _make(Kind.REINFORCE, heads, scope, positions, alpha=float(alpha))


def mean(
    heads: Heads, values: Run | Tensor, *, scope: Scope = Scope.ALL, positions: Sequence[int] | None = None
) -> Intervention:
    """z := a mean over a dataset (`mean_z` computes it), one value per head or one per position and head."""
    return _make(Kind.MEAN, heads, scope, positions, source=values)


def resample(
    heads: Heads,
    run: Run | Tensor,
    permutation: Sequence[int],
    *,
    scope: Scope = Scope.ALL,
    positions: Sequence[int] | None = None,
    source_positions: Sequence[int] | None = None,
) -> Intervention:
    """z of example i := z of example `permutation[i]` of `run`, at the same column."""
    options = {"source_positions": source_positions, "permutation": tuple(permutation)}
    return _make(Kind.RESAMPLE, heads, scope, positions, source=run, **options)


def patch(
    heads: Heads,
    run: Run | Tensor,
    *,
    scope: Scope = Scope.ALL,
    positions: Sequence[int] | None = None,
    source_positions: Sequence[int] | None = None,
) -> Intervention:
    """z := z of another run, at the same column. `run` is what `capture` returns; batch 1 serves every example."""
    return _make(Kind.PATCH, heads, scope, positions, source=run, source_positions=source_positions)


def uniform(heads: Heads, *, scope: Scope = Scope.ALL, positions: Sequence[int] | None = None) -> Intervention:
    """Undifferentiated attention: z := mean of the values visible to each query row (Zhou et al. 2024, sec. 3.1).

    Visible means not masked: causal, not padding, inside the sliding window. Attention sinks get no share. A head is
    a query head; its key/value group is left alone.
    """
    return _make(Kind.UNIFORM, heads, scope, positions)


def mean_z(
    run: Run, *, attention_mask: Int[Tensor, "batch pos"] | None = None, per_position: bool = False
) -> dict[int, Float[Tensor, "*pos head d_head"]]:
    """Mean of captured z over examples (and positions, unless `per_position`), in float32, padding left out.

    A position that is padding in every example has mean NaN. `per_position` needs examples that start at the same
    column: left padding would average different positions.
    """
    means = {}
    for layer, z in by_layer(run).items():
        weight = torch.ones(z.shape[:2], device=z.device) if attention_mask is None else attention_mask.to(z.device)
        if per_position and attention_mask is not None and not bool(attention_mask[:, 0].all()):
            raise InputError("A mean per position needs unpadded or right-padded examples; these are left-padded.")
        axes = 0 if per_position else (0, 1)
        total = torch.where(weight[..., None, None] > 0, z.float(), 0.0).sum(dim=axes)
        means[layer] = total / weight.float().sum(dim=axes)[..., None, None]
    return means


def new_z(
    intervention: Intervention,
    layer: int,
    z: Float[Tensor, "batch pos k d_head"],
    *,
    columns: Int[Tensor, " pos"],
    places: Int[Tensor, "rows pos"],
    wanted: Tensor | None,
) -> Float[Tensor, "batch pos k d_head"]:
    """Replacement for `z`, the outputs of the intervention's `k` heads in `layer`, at every row.

    Args:
        columns: column of the token matrix of each row (CPU), the address in a run that is patched in.
        places: token position of each row (CPU), batch or 1 rows, the address in a mean per position.
        wanted: rows that will be used, for checking that the source has them; None for all.
    """
    kind, alpha = intervention.kind, intervention.alpha
    if kind is Kind.ZERO:
        return torch.zeros_like(z)
    if kind in (Kind.SCALE, Kind.REINFORCE):
        return z * cast(float, alpha)
    source = cast(Mapping[int, Tensor], intervention.source)[layer].to(z.device)
    heads = torch.tensor(intervention.in_layer(layer), device=z.device)
    if kind is Kind.MEAN:
        return _mean_rows(source, heads, places, wanted).to(z.dtype).expand_as(z)
    return _run_rows(intervention, source, heads, columns, wanted, batch=z.shape[0]).to(z.dtype).expand_as(z)


def visible(scores: Float[Tensor, "*rows key"], model_dtype: torch.dtype) -> Bool[Tensor, "*rows key"]:
    """Which keys each row of attention scores can see: those whose score is not a mask's.

    Masks are the lowest number of the scores' or the model's dtype, or -inf. The margin of 32 allows for a division by
    sqrt(d_head) after masking (CodeGen).
    """
    return scores > max(torch.finfo(scores.dtype).min, torch.finfo(model_dtype).min) / 32


def _mean_rows(source: Tensor, heads: Tensor, places: Tensor, wanted: Tensor | None) -> Tensor:
    """`[k, d_head]`, or `[rows, pos, k, d_head]` when the mean is per position."""
    if source.ndim == 2:
        return source[heads]
    _need_rows(places < source.shape[0], wanted, places, f"the mean has {source.shape[0]} positions")
    return source[places.clamp(0, source.shape[0] - 1).to(source.device)][:, :, heads]


def _run_rows(
    intervention: Intervention, source: Tensor, heads: Tensor, columns: Tensor, wanted: Tensor | None, *, batch: int
) -> Tensor:
    """`[batch or 1, pos, k, d_head]`: the run's rows at `columns`."""
    order = intervention.permutation
    if order is not None:
        if max(order, default=0) >= source.shape[0]:
            raise InputError(f"The permutation names example {max(order)} of a run of {source.shape[0]} examples.")
        source = source[list(order)]
    if source.shape[0] not in (1, batch):
        raise InputError(
            f"A run of {source.shape[0]} examples cannot be put into a batch of {batch}; give one example, or as many."
        )
    if intervention.source_positions is None:
        rows = torch.where(columns < source.shape[1], columns, -1)
    else:
        where = {column: row for row, column in enumerate(intervention.source_positions)}
        rows = torch.tensor([where.get(column, -1) for column in columns.tolist()])
    _need_rows(rows >= 0, wanted, columns, f"the run has {source.shape[1]} positions")
    return source[:, rows.clamp(min=0).to(source.device)][:, :, heads]


def _need_rows(present: Tensor, wanted: Tensor | None, positions: Tensor, has: str) -> None:
    """InputError unless every wanted row is present."""
    missing = ~present if wanted is None else ~present & wanted
    if bool(missing.any()):
        at = int(positions.expand_as(missing)[missing][0])
        raise InputError(f"There is no value to put at position {at}: {has}; restrict `positions` or `scope`.")


def by_layer(values: Run | Tensor) -> dict[int, Tensor]:
    """Tensors by layer, from a mapping by layer or hook name, or from one tensor stacked over layers."""
    if isinstance(values, Tensor):
        return dict(enumerate(values))
    layers: dict[int, Tensor] = {}
    for key, value in values.items():
        match = re.fullmatch(r"blocks\.(\d+)\.attn\.(hook_z|o\.hook_in)", str(key))
        if isinstance(key, str) and match is None:
            raise InputError(f"{key!r} is not a head output: give hook_z of the layers you intervene on.")
        layers[int(match.group(1)) if match else operator.index(cast(int, key))] = value
    return layers


def _make(
    kind: Kind, heads: Heads, scope: Scope, positions: Sequence[int] | None, *, source: Any = None, **options: Any
) -> Intervention:
    source = None if source is None else by_layer(source)
    made = Intervention(kind, cast(Any, tuple(heads)), scope, cast(Any, positions), source=source, **options)
    missing = [] if source is None else [layer for layer in made.layers if layer not in source]
    if missing:
        raise InputError(f"`{kind.value}` was given no values for layer {missing[0]}; capture hook_z there as well.")
    return made


def _member(kind: type[Enum], value: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(member.value for member in kind)
        raise InputError(f"{value!r} is not a {kind.__name__.lower()}; choose one of {choices}.") from None


def _head_pairs(heads: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    pairs: dict[tuple[int, int], None] = {}
    for pair in heads:
        try:
            layer, head = (operator.index(i) for i in pair)
        except (TypeError, ValueError):
            raise InputError(f"A head is a pair of integers (layer, head), not {pair!r}.") from None
        pairs[layer, head] = None
    if not pairs:
        raise InputError("An intervention needs at least one head; leave it out to change nothing.")
    return tuple(pairs)


def _counts(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    try:
        counts = tuple(operator.index(value) for value in values)
    except TypeError:
        raise InputError(f"`{name}` must be integers, not {values!r}.") from None
    if any(count < 0 for count in counts):
        raise InputError(f"`{name}` counts from 0 at the first token, so {min(counts)} names nothing.")
    return counts
