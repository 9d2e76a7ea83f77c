"""Parameters of circuit discovery: the keys that `params:` of a spec file may carry. Free of torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from workbench.analyses.base import Params, PromptParams

Method = Literal["path_patching", "activation_patching", "attribution", "greedy"]
MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SHARES = {"significant": 0.1, "share": 0.1, "top": 0.01}


class FaithfulnessParams(Params):
    """How the circuit is run alone.

    Attributes:
        sizes: sizes of the curve, as shares of all nodes, ascending; the default are MIB's (there: of edges).
        draws: random circuits with as many nodes in every layer; 0 for none.
        minimality: also leave out each node of the circuit in turn.
        greedy: also take nodes from the whole model, one by one, always the one whose absence leaves the rest closest
            to it: how small a circuit can be, whatever finds it. Costs as many runs as there are pairs of nodes.
    """

    sizes: tuple[float, ...] = MIB_SIZES
    draws: int = Field(default=10, ge=0)
    minimality: bool = True
    greedy: bool = False

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) < 2 or list(value) != sorted(set(value)) or not 0 < value[0] < value[-1] <= 1:
            raise ValueError("sizes are at least two ascending shares, above 0 and at most 1")
        return value


class CircuitParams(PromptParams):
    """Attributes:
    method: `path_patching` (stage by stage, Merullo et al. 2024), `activation_patching` (exact, nodes only),
        `attribution` (EAP-IG edges, pruned to a size) or `greedy` (nodes removed one by one while the rest does the
        task; nodes only).
    corruptions: names of the task's corruptions; null for all that it has, an empty list for the ablation alone.
        Explicit pairs have their own only.
    ablation: beside the corruptions, the sender's `mean` over the prompts or `zero`; null for neither. It has no
        gradient, so `attribution` leaves it out.
    metric: read at the last token, of `answer` (and `wrong`).
    rule: what joins the circuit: `share` (|effect| at least `share` of the gap between the two runs), `significant`
        (that, and q below `alpha` over prompts), or `top` (the strongest fraction `top` of all nodes in every stage, as
        published; with |effect| at least `share`).
    share: null takes 0.1, with `top` 0.01.
    receivers: of one stage of path patching, `together` (as published; then each, for the edges) or only `alone`.
    mlps: on the way from sender to receiver, `recompute` (they are part of the path) or `freeze`.
    mlp_nodes: MLPs are nodes like heads, in the search and when the circuit is run; path patching needs mlps: freeze.
    max_stages: stages of path patching at most.
    direction: of activation patching; the other methods put corrupted activations into the clean run.
    steps: points of EAP-IG's path.
    n_edges: edges kept by `attribution`, a number or a share of all edges.
    faithful: 1 - |1 - faithfulness| that `greedy` leaves the circuit with at least.
    roles: name the roles of the heads from what they attend to and copy.
    faithfulness: null to leave it out.
    min_gap: a corruption counts when the metric changes by more than this on average.
    """

    method: Method = "path_patching"
    corruptions: tuple[str, ...] | None = None
    ablation: Literal["mean", "zero"] | None = "mean"
    metric: Literal["logit_diff", "prob", "log_prob"] = "logit_diff"
    rule: Literal["significant", "share", "top"] = "significant"
    share: float | None = Field(default=None, ge=0, validate_default=True)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    top: float = Field(default=0.02, gt=0, le=1)
    receivers: Literal["together", "alone"] = "together"
    mlps: Literal["recompute", "freeze"] = "recompute"
    mlp_nodes: bool = False
    max_stages: int = Field(default=50, ge=1)
    direction: Literal["noising", "denoising"] = "noising"
    steps: int = Field(default=5, ge=1)
    n_edges: int | float = Field(default=0.05, gt=0)
    faithful: float = Field(default=0.9, gt=0, lt=1)
    roles: bool = True
    faithfulness: FaithfulnessParams | None = FaithfulnessParams()
    min_gap: float = Field(default=0.05, ge=0)
    bootstrap: int = Field(default=1000, ge=1)
    batch_rows: int | None = Field(default=None, ge=1)

    @field_validator("share")
    @classmethod
    def _fill_in(cls, value: float | None, info: Any) -> float | None:
        """The number actually used is what a stored spec holds."""
        return _SHARES.get(info.data.get("rule", "")) if value is None else value

    @field_validator("n_edges")
    @classmethod
    def _a_share_or_a_number(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("n_edges is a whole number, or a share of all edges up to 1")
        return value

    @model_validator(mode="after")
    def _nodes_are_told_from_paths(self) -> CircuitParams:
        if self.method == "path_patching" and self.mlp_nodes and self.mlps == "recompute":
            raise ValueError("with mlp_nodes, MLPs are no part of the paths between nodes; set mlps: freeze")
        if self.corruptions == () and (self.ablation is None or self.method == "attribution"):
            raise ValueError("without corruptions there must be an ablation to look at, and a method that takes it")
        if self.direction == "denoising" and self.method != "activation_patching":
            raise ValueError(f"{self.method} has no denoising; it is for activation_patching")
        return self

    @property
    def least(self) -> float:
        return self.share or 0.0
