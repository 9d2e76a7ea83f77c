"""Random-weight checkpoints in the shapes of known Llama-like models, written to a folder once, shard by shard.

What a model costs does not depend on what its weights say, so these stand in for checkpoints that cannot be had
offline. They measure machinery, not findings. Weights are scaled by their fan-in, queries and keys a little more, so
that activations keep their size through the layers and attention differs from head to head. The tokenizer is
word-level: the tests' few words, then `w64`, `w65`, ... up to the vocabulary's size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SHARD = 2**31  # bytes


@dataclass(frozen=True)
class Shape:
    """A Llama-like model; `like` names whose shape it is."""

    like: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_mlp: int
    vocabulary: int = 32000
    positions: int = 2**17

    @property
    def n_weights(self) -> int:
        return sum(math.prod(size) for _, size in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every stored weight."""
        d, kv = self.d_model, self.d_model // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, d)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            for name, rows in (("q_proj", d), ("k_proj", kv), ("v_proj", kv), ("o_proj", d)):
                yield f"{at}.self_attn.{name}.weight", (rows, d)
            for name in ("gate_proj", "up_proj"):
                yield f"{at}.mlp.{name}.weight", (self.d_mlp, d)
            yield f"{at}.mlp.down_proj.weight", (d, self.d_mlp)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{at}.{name}.weight", (d,)
        yield "model.norm.weight", (d,)
        yield "lm_head.weight", (self.vocabulary, d)


SHAPES = {
    "tiny": Shape("a test", 3, 4, 2, 32, 64, vocabulary=80),
    "1b": Shape("TinyLlama-1.1B", 22, 32, 4, 2048, 5632),
    "7b": Shape("Mistral-7B", 32, 32, 8, 4096, 14336),
}


def checkpoint(folder: Path, size: str, *, seed: int = 0) -> Path:
    """The folder of a bfloat16 checkpoint of that size; made unless it is there.

    `config.json` is written last, so a folder that has one is whole.
    """
    shape, target = SHAPES[size], folder / f"random-{size}"
    if (target / "config.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    _tokenizer(shape).save_pretrained(target)
    _weights(shape, target, seed)
    _config(shape).save_pretrained(target)
    return target


def _config(shape: Shape):
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        dtype="bfloat16",
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def _tokenizer(shape: Shape):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    from tests.tiny import VOCAB

    words = {**VOCAB, **{f"w{i}": i for i in range(len(VOCAB), shape.vocabulary)}}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def _weights(shape: Shape, target: Path, seed: int) -> None:
    """Shards of at most 2 GiB beyond their last tensor, and the index that names them."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    placed: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    total = 0

    def write() -> None:
        file = f"model-{len(set(placed.values())) + 1:05d}.safetensors"
        save_file(held, target / file, metadata={"format": "pt"})
        placed.update(dict.fromkeys(held, file))
        held.clear()

    for name, size in shape.tensors():
        held[name] = _random(name, size, shape, generator)
        total += 2 * held[name].numel()
        if sum(2 * tensor.numel() for tensor in held.values()) >= _SHARD:
            write()
    if held:
        write()
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def _random(name: str, size: tuple[int, ...], shape: Shape, generator: torch.Generator) -> torch.Tensor:
    import torch

    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    spread = 1.0 if "embed" in name else 1 / math.sqrt(size[1])
    if "q_proj" in name or "k_proj" in name:
        spread *= 1.5
    if "o_proj" in name or "down_proj" in name:
        spread /= math.sqrt(2 * shape.layers) / 2
    if "lm_head" in name:
        spread *= 3
    return torch.empty(size).normal_(0.0, spread, generator=generator).to(torch.bfloat16)
