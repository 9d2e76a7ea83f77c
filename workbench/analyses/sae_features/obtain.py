"""The autoencoder an analysis is about: read from a folder, or trained on the spot, and how well it reconstructs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from workbench.analyses.sae_features.params import SaeParams
from workbench.primitives.sweep import default_root
from workbench.saes import Place, Report, Sae, Trained, TrainOptions, find_place, load_sae, report, train
from workbench.saes.pages import ModelPages
from workbench.saes.place import fit
from workbench.saes.quality import require_good

if TYPE_CHECKING:
    from workbench.models import Model

MIDDLE = "blocks.{}.hook_resid_post"


@dataclass
class Obtained:
    """Attributes:
    trained: how it was trained, when it was trained here.
    problems: what is wrong with its reconstruction, in words.
    """

    sae: Sae
    place: Place
    report: Report
    trained: Trained | None
    problems: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """What a reader should know before any feature."""
        config = self.sae.config
        return {
            "architecture": config.architecture,
            "hook": self.place.name,
            "d_in": config.d_in,
            "d_sae": config.d_sae,
            "trained_here": self.trained is not None,
            "model_stated": None if self.trained is not None else config.metadata.get("model_name"),
            "basis_stated": config.trained_on,
            **self.report.to_dict(),
            "status": "poor: it " + " and ".join(self.problems) if self.problems else "ok",
        }


def trained_on(
    model: Model,
    tokens: Int[Tensor, "n pos"],
    mask: Tensor | None,
    options: TrainOptions,
    *,
    hook: str | None,
    rows: int,
    seed: int,
) -> tuple[Trained, Place]:
    """Train on prompts; `hook` null is the stream after the middle block. An interrupted training is taken up."""
    place = find_place(model, hook or MIDDLE.format((model.n_layers - 1) // 2))
    pages = ModelPages(model, place, tokens, mask, buffer=options.buffer, seed=seed, rows=rows)
    metadata: dict[str, object] = {
        "model_name": model.name,
        "model_class_name": "HookedTransformer",
        "hook_head_index": None,
        "prepend_bos": True,
        "trained_by": "workbench",
        "model_fingerprint": model.fingerprint,
    }
    root = default_root().parent / "saes"
    made = train(pages, options, hook_name=place.name, metadata=metadata, basis=model.basis, seed=seed, checkpoint=root)
    return made, place


def obtain(
    model: Model, tokens: Int[Tensor, "n pos"], mask: Tensor | None, params: SaeParams, *, seed: int
) -> Obtained:
    """Read or train the autoencoder, and measure it on these prompts.

    Raises:
        InputError: it does not fit the model, or reconstructs badly and `allow_poor` is not set.
    """
    made: Trained | None = None
    if params.sae is None:
        made, place = trained_on(model, tokens, mask, params.train, hook=params.hook, rows=params.batch_rows, seed=seed)
        sae = made.sae
    else:
        sae = load_sae(params.sae, device=str(model.device))
        place = fit(model, sae, any_basis=params.any_basis)
    found = report(model, place, sae, tokens, mask, rows=params.batch_rows)
    return Obtained(sae.to(model.device), place, found, made, judged(found, params))


def judged(found: Report, params: SaeParams) -> tuple[str, ...]:
    """What is wrong with the reconstruction; raises where that is not allowed."""
    return require_good(
        found,
        min_explained_variance=params.min_explained_variance,
        min_loss_recovered=params.min_loss_recovered,
        allow_poor=params.allow_poor,
    )
