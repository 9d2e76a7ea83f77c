"""What can be exchanged between two runs, and where: sites, the cells they make, and what a model must allow for it.

A site is one activation of one layer (or head, or kv group), at all positions or at chosen ones; a cell is a set of
sites that are exchanged together. It never runs a model, except to measure whether a component can be exchanged alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from workbench.errors import CapabilityError, InputError, did_you_mean
from workbench.primitives import separable
from workbench.primitives.sweep.units import attention_layers

if TYPE_CHECKING:
    from workbench.models import Model


class Component(str, Enum):
    """What a site exchanges."""

    Z = "z"
    Q = "q"
    K = "k"
    V = "v"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    RESID_PRE = "resid_pre"
    RESID_POST = "resid_post"


_HOOKS = {
    Component.Z: "attn.hook_z",
    Component.Q: "attn.hook_q",
    Component.K: "attn.hook_k",
    Component.V: "attn.hook_v",
    Component.ATTN_OUT: "hook_attn_out",
    Component.MLP_OUT: "hook_mlp_out",
    Component.RESID_PRE: "hook_in",
    Component.RESID_POST: "hook_out",
}
_PER_HEAD = (Component.Z, Component.Q)
_PER_GROUP = (Component.K, Component.V)


@dataclass(frozen=True)
class Site:
    """One place where activations are exchanged.

    Attributes:
        component: which activation.
        layer: of the block.
        index: head of z and q, kv group of k and v; None for the others.
        positions: where, None for everywhere. 0, 1, ... count from each row's first real token, -1, -2, ... from the
            last one.
    """

    component: Component
    layer: int
    index: int | None = None
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.component, Component):
            object.__setattr__(self, "component", _component(self.component))

    @property
    def hook(self) -> str:
        """Name of the hook point."""
        return f"blocks.{self.layer}.{_HOOKS[self.component]}"


Cell: TypeAlias = tuple[Site, ...]


def sites(
    model: Model,
    component: Component | str,
    *,
    layers: Iterable[int] | None = None,
    positions: Sequence[int] | None = None,
) -> list[Site]:
    """Every site of one component: by layer, and by head or kv group where there are such."""
    kind = _component(component)
    with_attention = set(attention_layers(model))
    chosen = range(model.n_layers) if layers is None else layers
    width = model.n_heads if kind in _PER_HEAD else model.n_kv_heads if kind in _PER_GROUP else None
    where = None if positions is None else tuple(positions)
    needs_attention = width is not None or kind is Component.ATTN_OUT
    return [
        Site(kind, layer, index, where)
        for layer in chosen
        if layer in with_attention or not needs_attention
        for index in ([None] if width is None else range(width))
    ]


def checked_cells(model: Model, cells: Iterable[Site | Sequence[Site]]) -> tuple[Cell, ...]:
    """Cells whose sites exist, once it is known that the model lets them be exchanged.

    Raises:
        InputError: a site that the model does not have, or no cell at all.
        CapabilityError: the model does not let this component be exchanged alone.
    """
    made = tuple(_checked(model, (cell,) if isinstance(cell, Site) else tuple(cell)) for cell in cells)
    if not made:
        raise InputError("Patching needs at least one cell; sites(model, 'z') gives every head.")
    for component in {site.component for cell in made for site in cell}:
        _require(model, component)
    return made


def _component(value: Any) -> Component:
    try:
        return Component(value)
    except ValueError:
        known = [c.value for c in Component]
        hint = did_you_mean(str(value), known)
        raise InputError(f"{value!r} is not a component to patch.{hint} Choose one of {', '.join(known)}.") from None


def _checked(model: Model, cell: Cell) -> Cell:
    if not cell:
        raise InputError("A cell needs at least one site; leave it out to change nothing.")
    for site in cell:
        if not 0 <= site.layer < model.n_layers:
            raise InputError(f"There is no layer {site.layer} in {model.name!r}; layers are 0 to {model.n_layers - 1}.")
        width = {**dict.fromkeys(_PER_HEAD, model.n_heads), **dict.fromkeys(_PER_GROUP, model.n_kv_heads)}
        n = width.get(site.component)
        if n is None and site.index is not None:
            raise InputError(f"{site.component.value} belongs to the whole layer; leave out index {site.index}.")
        if n is not None and (site.index is None or not 0 <= site.index < n):
            what = "kv group" if site.component in _PER_GROUP else "head"
            raise InputError(
                f"{site.component.value} needs a {what} from 0 to {n - 1} of {model.name!r}, not {site.index}."
            )
        if site.hook not in model.bridge.hook_dict:
            raise CapabilityError(f"Model {model.name!r} has no {site.component.value} in layer {site.layer}.")
    return cell


def _require(model: Model, component: Component) -> None:
    if component is Component.Z:
        model.require("head_ablation_ok")
    elif component in (Component.Q, Component.K, Component.V):
        separable.require_heads(model)
    elif component in (Component.ATTN_OUT, Component.MLP_OUT):
        separable.require_outputs(model)
