"""What a sweep does to each unit: one of six edits of z, and what it needs to know before it can.

`Edit` is a value. `replacement` gives z' for all heads of a layer with the arithmetic of `algebra`, so that a sweep and
`interventions.applied` cannot mean different things; `interventions` says the same for one unit, to install as hooks.
`uniform` is the exception: its z' depends on the attention, so the base run measures it. It never runs a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError, did_you_mean
from workbench.primitives import algebra
from workbench.primitives.algebra import Intervention, Kind
from workbench.primitives.sweep.units import Unit

KINDS = ("zero", "scale", "mean", "resample", "patch", "uniform")


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to z of a unit's heads, at every position.

    Attributes:
        kind: `zero`; `scale` (z' = alpha z); `mean` (over all real positions of the sweep's own prompts, unless
            `values` gives means by layer); `resample` (z of another example of the same length, drawn without fixed
            points from `seed`); `patch` (z of the same example in the run over `other`); `uniform` (attend equally to
            every visible key).
        alpha: factor of `scale`.
        values: means by layer, `[n_heads, d_head]` or `[pos, n_heads, d_head]`, as `mean_z` returns them.
    """

    kind: str
    alpha: float | None = None
    values: Mapping[int, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"There is no edit {self.kind!r}.{did_you_mean(str(self.kind), KINDS)} Choose one of "
                f"{', '.join(KINDS)}."
            )
        if (self.alpha is not None) != (self.kind == "scale"):
            raise InputError("`scale` needs alpha, and only `scale` takes one.")
        if self.values is not None and self.kind != "mean":
            raise InputError(f"`values` are for the edit `mean`, not for `{self.kind}`.")

    @property
    def needs_other(self) -> bool:
        """Whether z of a second run is put in."""
        return self.kind in ("patch", "resample")

    def key(self) -> list[Any]:
        """JSON-able; equal for edits that do the same."""
        values = None
        if self.values is not None:
            digest = hashlib.sha256()
            for layer in sorted(self.values):
                digest.update(f"{layer}:{tuple(self.values[layer].shape)}".encode())
                digest.update(self.values[layer].double().cpu().numpy().tobytes())
            values = digest.hexdigest()
        return [self.kind, self.alpha, values]


def replacement(
    edit: Edit,
    layer: int,
    z: Float[Tensor, "batch pos head d_head"],
    *,
    other: Float[Tensor, "batch pos head d_head"] | None,
    padding: Int[Tensor, " batch"] | None,
    means: Mapping[int, Tensor] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """z' of every head in `layer` (not for `uniform`)."""
    every = tuple((layer, head) for head in range(z.shape[2]))
    columns = torch.arange(z.shape[1])
    places = columns[None] if padding is None else (columns[None] - padding[:, None].cpu()).clamp(min=0)
    intervention = _intervention(edit, every, other={layer: other} if other is not None else None, means=means)
    return algebra.new_z(intervention, layer, z, columns=columns, places=places, wanted=None)


def interventions(
    edit: Edit, unit: Unit, *, other: Mapping[int, Tensor] | None, means: Mapping[int, Tensor] | None
) -> list[Intervention]:
    """The edit of one unit, for `interventions.applied`; `other` holds the run's rows in the order of the batch."""
    return [_intervention(edit, unit, other=other, means=means)]


def shuffled(padding: Int[Tensor, " n"], seed: int) -> list[int]:
    """For `resample`: which example each example gets. Equal padding only, and never itself.

    Raises:
        InputError: an example has no other of its length.
    """
    rng = np.random.default_rng([seed, 0x5EED])
    source = np.arange(len(padding))
    for n_padding in np.unique(padding.cpu().numpy()):
        members = np.flatnonzero(padding.cpu().numpy() == n_padding)
        if len(members) == 1:
            raise InputError(
                f"`resample` needs a second example as long as example {int(members[0])}; add one, or use `mean`."
            )
        cycle = rng.permutation(members)  # each gets the next one in a random cycle
        source[cycle] = np.roll(cycle, 1)
    return source.tolist()


def _intervention(
    edit: Edit, heads: Unit, *, other: Mapping[int, Tensor] | None, means: Mapping[int, Tensor] | None
) -> Intervention:
    if edit.kind == Kind.ZERO.value:
        return algebra.zero(heads)
    if edit.kind == Kind.UNIFORM.value:
        return algebra.uniform(heads)
    if edit.kind == Kind.SCALE.value:
        assert edit.alpha is not None
        return algebra.scale(heads, edit.alpha)
    if edit.kind == Kind.MEAN.value:
        assert means is not None
        return algebra.mean(heads, means)
    assert other is not None
    return algebra.patch(heads, other)
