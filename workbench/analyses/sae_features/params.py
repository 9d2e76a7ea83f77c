"""Parameters of the analyses of sparse autoencoders, free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from workbench.analyses.base import Params, PromptParams
from workbench.errors import InputError
from workbench.saes.options import TrainOptions


class LinkParams(Params):
    """What head-feature linkage looks at.

    Attributes:
        features: numbers of the features; null for the `n_features` with the largest mean activation on the data.
        ablate: what replaces a head's output when its effect on features is measured exactly; null leaves that out. It
            costs a forward pass, up to the hook point, per head that lies before it.
        read: also which heads read the features; costs a forward pass per feature.
        directions: random directions per feature, for the nulls.
        top: rows of the feature tables per feature, each way.
        bootstrap: resamples for the intervals.
    """

    features: tuple[int, ...] | None = Field(default=None, min_length=1)
    n_features: int = Field(default=16, ge=1)
    ablate: Literal["zero", "mean"] | None = "mean"
    read: bool = True
    directions: int = Field(default=8, ge=2)
    top: int = Field(default=5, ge=1)
    bootstrap: int = Field(default=1000, ge=1)


class CircuitParams(Params):
    """Attributes:
    steps: gradients along the way from corrupted to clean.
    removed: what features outside the circuit are set to: their values in the corrupted run, or their mean over the
        clean prompts.
    sizes: numbers of features at which faithfulness is measured; null for 0, 1, 2, 4, ... up to all that differ.
    random: random sets of features per size, for the null.
    spot_check: features that are also taken out of the clean run and put into the other one alone, exactly; half of
        them the strongest and half random.
    min_gap: logits by which the mean of both runs must differ, since shares of a gap near nothing are noise.
    """

    steps: int = Field(default=10, ge=1)
    removed: Literal["corrupted", "mean"] = "corrupted"
    sizes: tuple[int, ...] | None = None
    random: int = Field(default=3, ge=1)
    spot_check: int = Field(default=10, ge=0)
    min_gap: float = Field(default=0.05, ge=0)


class SaeParams(PromptParams):
    """Which autoencoder, and how good it must be.

    Attributes:
        sae: its folder (`cfg.json`, `sae_weights.safetensors`); a version folder of an `sae_train` artifact is one.
            null trains one as `train` says.
        sae_digest: of the folder's files; filled in, so that a stored spec means this very autoencoder.
        hook: where one that is trained belongs; null for the stream after the middle block.
        train: how it is trained.
        any_basis: do not compare the weights it was trained on with the model's.
        min_explained_variance, min_loss_recovered: below, the analysis is refused ...
        allow_poor: ... unless this is set.
        batch_rows: prompts per forward pass.
    """

    sae: str | None = Field(default=None, json_schema_extra={"path": True})
    sae_digest: str | None = Field(default=None, validate_default=True)
    hook: str | None = None
    train: TrainOptions = TrainOptions()
    any_basis: bool = False
    min_explained_variance: float = 0.6
    min_loss_recovered: float = 0.6
    allow_poor: bool = False
    batch_rows: int = Field(default=16, ge=1)

    @field_validator("sae")
    @classmethod
    def _is_there(cls, value: str | None) -> str | None:
        if value is not None:
            _digest(value)
        return value

    @field_validator("sae_digest")
    @classmethod
    def _this_very_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        """What was found is what a stored spec holds, so that another autoencoder in its place is noticed."""
        folder = info.data.get("sae")
        if folder is None:
            if value is not None:
                raise ValueError("sae names no autoencoder that it could be of; give both or neither")
            return None
        found = _digest(folder)
        if value not in (None, found):
            raise ValueError(
                f"the autoencoder in {folder!r} is another ({found[:19]}...); point sae to the one that is meant, or "
                "leave sae_digest out"
            )
        return found


def _digest(folder: str) -> str:
    from workbench.saes.files import folder_digest

    try:
        return folder_digest(folder)
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from None


class SaeFeaturesParams(SaeParams, LinkParams):
    """Those of `SaeParams` and `LinkParams`, and:

    Attributes:
        circuit: the feature circuit; null leaves it out.
    """

    circuit: CircuitParams | None = CircuitParams()
