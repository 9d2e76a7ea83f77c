"""How a model's attention is built, in one word: "mha", "gqa", "mqa", "mla", with what else bends it.

Read from the configuration and the parameter names, for people and for messages; what may be relied on is measured by
`probe`. It never runs the model.
"""

from __future__ import annotations

from typing import Any


def attention_kind(bridge: Any) -> str:
    """For example "mha", "gqa+sliding+softcap", "mla", "gqa+sinks+sliding", "mha+alibi"."""
    config = _text_config(getattr(bridge.original_model, "config", None)) or bridge.cfg
    suffixes = [
        name
        for name, present in (
            ("sinks", _has_sinks(bridge)),
            ("sliding", _is_sliding(config)),
            ("softcap", bool(getattr(config, "attn_logit_softcapping", None))),
            ("alibi", _has_alibi(config)),
        )
        if present
    ]
    return "+".join([_base(bridge, config), *suffixes])


def _base(bridge: Any, config: Any) -> str:
    if getattr(config, "kv_lora_rank", None):
        return "mla"
    n_heads = int(bridge.cfg.n_heads)
    n_kv = int(getattr(bridge.cfg, "n_key_value_heads", None) or n_heads)
    if n_kv == n_heads:
        return "mha"
    return "mqa" if n_kv == 1 else "gqa"


def _text_config(config: Any) -> Any:
    """The language part of a vision-language configuration."""
    return getattr(config, "text_config", None) or config


def _has_sinks(bridge: Any) -> bool:
    return any(name.rsplit(".", 1)[-1] in ("sinks", "sink") for name, _ in bridge.original_model.named_parameters())


def _is_sliding(config: Any) -> bool:
    kinds = [
        str(kind) for kind in (getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ())
    ]
    if kinds:
        return any("sliding" in kind or kind == "local" for kind in kinds)
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True) is not False


def _has_alibi(config: Any) -> bool:
    in_mpt = getattr(getattr(config, "attn_config", None), "alibi", False)
    return bool(getattr(config, "alibi", False) or in_mpt) or getattr(config, "model_type", "") == "bloom"
