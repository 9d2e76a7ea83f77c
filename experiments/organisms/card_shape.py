"""The `model` block of a card: the shape of a Llama, of a GPT-2, or of the language model of a LLaVA."""

from __future__ import annotations

from typing import Any


def shape(model: Any) -> dict[str, Any]:
    """Of a Hugging Face model in float32."""
    config = model.config.get_text_config()
    n_heads = config.num_attention_heads
    return {
        "architecture": type(model).__name__,
        "n_layers": config.num_hidden_layers,
        "n_heads": n_heads,
        "n_kv_heads": getattr(config, "num_key_value_heads", n_heads),
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        "d_model": config.hidden_size,
        "d_mlp": config.n_inner if config.model_type == "gpt2" else config.intermediate_size,
        "vocab_size": config.vocab_size,
        "n_ctx": config.max_position_embeddings,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "float32",
    }
