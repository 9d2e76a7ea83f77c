"""Parameters of `sae_circuits`, validated, and the names of its variants and of the methods beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from workbench.analyses.base import PromptParams
from workbench.errors import InputError

Variant = Literal["node", "edge", "divergence", "paired"]
Method = Literal[
    "mean_difference",
    "norm",
    "layer_index",
    "probe",
    "activation_patching",
    "attribution_patching",
    "eap_ig",
    "hisp",
    "subnetwork_probing",
]
ALL_METHODS: tuple[Method, ...] = Method.__args__  # type: ignore[attr-defined]
METHODS: tuple[Method, ...] = tuple(name for name in ALL_METHODS if name != "subnetwork_probing")
CAUSAL = ("activation_patching", "attribution_patching", "eap_ig", "hisp", "subnetwork_probing")


class SaeCircuitsParams(PromptParams):
    """Defaults are the published ones for IOI and greater-than; docstring has `l1: 0.05`.

    Attributes:
        variant: what the head table scores. `node` and `edge` are published; `divergence` (of the distributions of
            codes) and `paired` (size of the change from clean to corrupted prompt, no codes) are ours.
        positions: of a head's output: `mean` over the prompt, or the `last`.
        sae: one for all heads (`shared`, published) or one `per_head`.
        n_features, l1, lr, epochs: of the autoencoder and its training.
        train_examples: drawn at random from positives and negatives.
        seeds: autoencoders trained, each on its own draw; scores are their mean. The paper has 10 trials.
        held_out: count no example that the autoencoder was trained on. Published counts all.
        normalise: divide counts by what they are out of.
        across_layer: softmax over layers for each head index, instead of over all heads.
        threshold: heads whose softmax is at least this are `selected`.
        top_pairs: share of all n_heads^2 entries that the edge score lists.
        edge_ties: pairs that tie at that cut share the places left, or the first in the matrix take them.
        permutations: shuffles of the labels, the null of every head.
        edge_permutations: the same for the edge score, which costs more.
        bootstrap: resamples of the examples.
        reference: heads to hold the ranking to: null, `organism` (its card), a published set (`references.names()`), a
            list of [layer, head], or a .json file of such, which becomes the list.
        methods: what stands beside in the table `methods`; the causal ones need pairs. `subnetwork_probing`, which
            trains, is not among the defaults.
        ig_steps: of `eap_ig`.
        probing_steps: of `subnetwork_probing`, each a forward and backward pass over 16 pairs.
        folds: of the cross-validation of `probe`.
    """

    variant: Variant = "node"
    positions: Literal["mean", "last"] = "mean"
    sae: Literal["shared", "per_head"] = "shared"
    n_features: int = Field(default=200, ge=2)
    l1: float = Field(default=0.02, ge=0)
    lr: float = Field(default=1e-3, gt=0)
    epochs: int = Field(default=500, ge=1)
    train_examples: int = Field(default=10, ge=1)
    seeds: int = Field(default=3, ge=1)
    held_out: bool = False
    normalise: bool = False
    across_layer: bool = False
    threshold: float | None = None
    top_pairs: float = Field(default=0.5, gt=0, le=1)
    edge_ties: Literal["shared", "first"] = "shared"
    permutations: int = Field(default=200, ge=1)
    edge_permutations: int = Field(default=19, ge=1)
    bootstrap: int = Field(default=100, ge=2)
    reference: str | tuple[tuple[int, int], ...] | None = None
    methods: tuple[Method, ...] = METHODS
    ig_steps: int = Field(default=10, ge=1)
    probing_steps: int = Field(default=200, ge=1)
    folds: int = Field(default=5, ge=2)

    @field_validator("reference", mode="before")
    @classmethod
    def _self_contained(cls, value: Any) -> Any:
        """A file becomes its heads, so that an artifact can be rerun from itself alone."""
        from workbench.analyses.sae_circuits import references

        try:
            if isinstance(value, str) and value.endswith(".json"):
                return tuple(references.read_heads(value))
            if value is None or isinstance(value, str):
                return value
            return tuple(references.heads_of(value))
        except InputError as error:
            raise PydanticCustomError("reference", "{why}", {"why": str(error).rstrip(".")}) from None
