"""`Model`: a TransformerBridge with what the rest of the workbench needs to know about it.

Name, tokenizer, fingerprint, measured capabilities and the few dimensions that analyses use, under one vocabulary for
every architecture. It is a record: loading lives in `load`, measuring in `probe`. It never knows what will be computed
with the model.
"""

from __future__ import annotations

import hashlib
import html
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import CapabilityError, InputError, did_you_mean
from workbench.models.capabilities import FLAGS, MEANING, Capabilities
from workbench.models.placement import devices, input_device

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformer_lens.model_bridge import TransformerBridge


# fields of a configuration that say where it came from, not what it computes
_NOT_THE_MODEL = frozenset({"_name_or_path", "model_name", "transformers_version", "device", "dtype", "torch_dtype"})


@dataclass(eq=False, repr=False)
class Model:
    """A model ready to be studied: eval mode, eager attention, no parameter requires a gradient.

    Attributes:
        name: as the user named it.
        bridge: the TransformerBridge; hooks go through it.
        tokenizer: the model's own, as loaded (the bridge holds a copy that TransformerLens adjusted), or None.
        processor: image processor + tokenizer of a vision-language model, or None.
        fingerprint: "sha256:<64 hex>" of weights and tokenizer, taken before the bridge changed any name.
        capabilities: what was measured at load.
        basis: "raw" (the checkpoint's own weights) or "folded" (TransformerLens compatibility mode).
        organism: name when loaded as `organism:NAME`.
        revision: commit of a hub model, when known.
    """

    name: str
    bridge: TransformerBridge
    tokenizer: Any | None
    processor: Any | None
    fingerprint: str
    capabilities: Capabilities
    basis: str = "raw"
    organism: str | None = None
    revision: str | None = None

    @property
    def n_layers(self) -> int:
        return int(self.bridge.cfg.n_layers)

    @property
    def n_heads(self) -> int:
        """Query heads per layer."""
        return int(self.bridge.cfg.n_heads)

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads per layer; equals `n_heads` without grouped-query attention."""
        n_kv = int(getattr(self.bridge.cfg, "n_key_value_heads", None) or self.n_heads)
        return n_kv if 0 < n_kv <= self.n_heads and self.n_heads % n_kv == 0 else self.n_heads

    @property
    def d_head(self) -> int:
        """Width of one head of z; where `head_axis_ok` is False it is only what the configuration claims."""
        return int(self.bridge.cfg.d_head)

    @property
    def d_model(self) -> int:
        return int(self.bridge.cfg.d_model)

    @property
    def n_ctx(self) -> int:
        return int(self.bridge.cfg.n_ctx)

    @property
    def n_vocab(self) -> int:
        """Tokens that the model has an embedding for; the tokenizer may know fewer, and should not know more."""
        return int(self.bridge.cfg.d_vocab)

    @property
    def n_parameters(self) -> int:
        """Weights of the model, embeddings included, tied ones once."""
        # a bridge adds views of joint matrices (q, k and v of GPT-2's one), which are no further weights
        whole: dict[int, int] = {}
        for parameter in self.bridge.parameters():
            storage = parameter.untyped_storage().data_ptr()
            whole[storage] = max(whole.get(storage, 0), parameter.numel())
        return sum(whole.values())

    @property
    def device(self) -> torch.device:
        """Where tokens go in and logits come out; the layers of a split model may be elsewhere."""
        return input_device(self.bridge)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.bridge.parameters() if p.is_floating_point())

    @property
    def hf(self) -> nn.Module | None:
        """The Hugging Face model inside the bridge, None for a native bridge."""
        from transformers import PreTrainedModel

        inner = self.bridge.original_model
        return inner if isinstance(inner, PreTrainedModel) else None

    @property
    def config_digest(self) -> str:
        """Hash of the configuration's own fields: what the fingerprint leaves out (window, rotary base, activation)."""
        config: Any = getattr(self.bridge.original_model, "config", None)
        record = config.to_dict() if hasattr(config, "to_dict") else self.bridge.cfg.to_dict()
        kept = {key: value for key, value in record.items() if key not in _NOT_THE_MODEL}
        text = json.dumps(kept, sort_keys=True, default=str)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def kv_group(self, head: int) -> int:
        """Key/value head that query head `head` reads."""
        if not 0 <= head < self.n_heads:
            raise InputError(f"Head {head} does not exist in {self.name!r}; heads are 0 to {self.n_heads - 1}.")
        return head // (self.n_heads // self.n_kv_heads)

    def require(self, *names: str) -> None:
        """Raise CapabilityError unless every named capability was measured to hold."""
        for name in names:
            if name not in FLAGS:
                raise InputError(f"{name!r} is not a capability.{did_you_mean(name, FLAGS)} Known: {', '.join(FLAGS)}.")
        lacking = [name for name in names if not getattr(self.capabilities, name)]
        if not lacking:
            return
        why = [note for note in self.capabilities.notes if note.split(":")[0] in (*lacking, "all")]
        reason = " ".join(why) or f"it was measured not to hold that {MEANING[lacking[0]]}."
        raise CapabilityError(
            f"Model {self.name!r} lacks {', '.join(lacking)} ({reason.rstrip('.')}); use an analysis that does not "
            "need it, or another model (`workbench probe MODEL` lists what a model has)."
        )

    def describe(self) -> dict[str, Any]:
        """JSON-able record of what the model is, as results carry it."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "config": self.config_digest,
            "basis": self.basis,
            "organism": self.organism,
            "revision": self.revision,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": " + ".join(devices(self.bridge)),
            "architecture": str(getattr(self.bridge.cfg, "architecture", None)),
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "d_head": self.d_head,
            "d_model": self.d_model,
            "capabilities": self.capabilities.to_dict(),
        }

    def __repr__(self) -> str:
        kv = f"/{self.n_kv_heads}kv" if self.n_kv_heads != self.n_heads else ""
        lacking = f", lacks {'+'.join(self.capabilities.missing)}" if self.capabilities.missing else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Model({self.name!r}, {self.n_layers} layers x {self.n_heads}{kv} heads x {self.d_head}, "
            f"{self.capabilities.attention_kind}, {dtype} on {' + '.join(devices(self.bridge))}, {self.basis}, "
            f"{self.fingerprint[:19]}{lacking})"
        )

    def _repr_html_(self) -> str:
        rows = [(key, value) for key, value in self.describe().items() if key not in ("name", "capabilities")]
        rows.append(("attention", self.capabilities.attention_kind))
        rows += [(flag, "yes" if getattr(self.capabilities, flag) else "no") for flag in FLAGS]
        rows += [("note", note) for note in self.capabilities.notes]
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(str(key))}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for key, value in rows
            if value is not None
        )
        return f"<table><caption>{html.escape(self.name)}</caption>{cells}</table>"
