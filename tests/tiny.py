"""Tiny random models of many architectures, with a word-level tokenizer, for tests.

`tiny(arch)` is a loaded `Model`; `tiny_hf(arch)` is the raw eager Hugging Face model with the same weights, for
reference implementations. Weights are scaled so that attention is peaked and the argmax differs between heads and
positions: with the usual 0.02 every head attends uniformly and no test would see a difference.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from workbench.models.load import load_model
from workbench.models.model import Model

if "WORKBENCH_CACHE" not in os.environ:  # a test must measure, not read what an earlier version measured
    os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-cache-")
    atexit.register(shutil.rmtree, os.environ["WORKBENCH_CACHE"], ignore_errors=True)

BOS, EOS, PAD, UNK = range(4)
SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")
_TEXT = (
    ". , ? ! : the a in of is and to what where who when city key number color secret house garden river mountain "
    "red blue green black white one two three four five six seven eight nine ten Alice Bob Carol David Emma Paris "
    "London Rome Berlin Tokyo cat dog bird fish tree book ran saw lost hid"
)
WORDS = _TEXT.split()
VOCAB = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
assert len(VOCAB) == 64

_COMMON = {"vocab_size": 64, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
_LLAMA = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_ROWS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gpt2": (GPT2Config, {**_COMMON, "n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 256}),
    "gptj": (
        GPTJConfig,
        {**_COMMON, "n_layer": 3, "n_head": 4, "n_embd": 32, "rotary_dim": 4, "n_positions": 256},
    ),
    "opt": (
        OPTConfig,
        {
            **_COMMON,
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 32,
        },
    ),
    "neox": (
        GPTNeoXConfig,
        {
            **_COMMON,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
    ),
    "bloom": (BloomConfig, {**_COMMON, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "llama": (LlamaConfig, _LLAMA),
    "mistral": (MistralConfig, {**_LLAMA, "sliding_window": 8}),
    "qwen2": (Qwen2Config, _LLAMA),
    "qwen3": (Qwen3Config, {**_LLAMA, "head_dim": 8}),
    "olmo2": (Olmo2Config, _LLAMA),
    "gemma2": (Gemma2Config, {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}),
    "gptoss": (
        GptOssConfig,
        {
            **_LLAMA,
            "num_hidden_layers": 2,
            "intermediate_size": 32,
            "head_dim": 8,
            "sliding_window": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "deepseek_v3": (
        DeepseekV3Config,
        {
            **_LLAMA,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
}
ARCHITECTURES = tuple(_ROWS)


def tiny_tokenizer(*, adds_bos: bool = False, bos: bool = True) -> PreTrainedTokenizerFast:
    """Word-level tokenizer, 64 entries; punctuation is split off, unknown words become <unk>.

    `adds_bos`: the tokenizer puts BOS in front by itself. `bos=False`: it has no BOS token at all.
    """
    backend = Tokenizer(WordLevel(VOCAB, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    if adds_bos:
        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    names = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if bos:
        names["bos_token"] = "<bos>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def tiny_hf(arch: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """Random eager Hugging Face model, eval mode; equal arguments give bitwise equal weights.

    `overrides` are fields of that architecture's configuration class.
    """
    config_class, fields = _ROWS[arch]
    config = config_class(**{**fields, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for name, weight in sorted(hf.named_parameters()):
                spread = 0.5 if "emb" in name or "wte" in name or "wpe" in name else 0.3
                if weight.dim() > 1:
                    weight.normal_(0.0, spread)
                else:  # norms stay near their identity, biases and sinks near zero, but none exactly there
                    weight.add_(torch.randn_like(weight), alpha=0.1)
    hf.config.architectures = [type(hf).__name__]
    return hf.to(dtype).eval().requires_grad_(False)


def tiny(
    arch: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, probe: bool = True, **overrides: Any
) -> Model:
    """`Model` around `tiny_hf(arch, seed=seed, dtype=dtype, **overrides)` on the CPU."""
    hf = tiny_hf(arch, seed=seed, dtype=dtype, **overrides)
    return load_model(hf, tokenizer=tiny_tokenizer(), name=f"tiny-{arch}", device="cpu", probe=probe)
