"""Tiny random vision-language models with their processors, as `tiny` has for text: LLaVA (MHA or GQA) and Gemma 3.

`tiny_vision(arch)` is a loaded `Model`; `tiny_vision_hf(arch)` the raw eager Hugging Face model with the same weights.
The tokenizer knows the words of `tests.tiny` and the processor's image marks.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests.tiny import SPECIAL, WORDS
from workbench.models.load import load_model
from workbench.models.model import Model

SIDE, PATCH = 16, 8  # four image tokens
ARCHITECTURES = ("llava", "llava-gqa", "gemma3")
_MARKS = {"boi_token": "<start>", "image_token": "<soft>", "eoi_token": "<end>"}


def tiny_vision_processor(arch: str) -> Any:
    """Image processor (16 x 16 pixels, 4 image tokens) and word-level tokenizer of one family."""
    marks = list(_MARKS.values()) if arch == "gemma3" else ["<image>"]
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *marks])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=_MARKS if arch == "gemma3" else {"image_token": "<image>"},
    )
    if arch == "gemma3":
        from transformers import Gemma3Processor
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        return Gemma3Processor(
            Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer, image_seq_length=4
        )
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def tiny_vision_hf(arch: str, *, seed: int = 0, n_layers: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    """Random eager model, eval mode; equal arguments give bitwise equal weights."""
    tokenizer = tiny_vision_processor(arch).tokenizer
    config, cls = (_gemma3 if arch == "gemma3" else _llava)(arch, tokenizer, n_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = cls._from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for name, weight in sorted(hf.named_parameters()):
                spread = 0.5 if "embed" in name else 0.3
                if weight.dim() > 1:
                    weight.normal_(0.0, spread)
                else:
                    weight.add_(torch.randn_like(weight), alpha=0.1)
    hf.config.architectures = [cls.__name__]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(hf.generation_config, name, getattr(tokenizer, name))
    return hf.to(dtype).eval().requires_grad_(False)


def tiny_vision(
    arch: str, *, seed: int = 0, probe: bool = True, n_layers: int = 3, dtype: torch.dtype = torch.float32
) -> Model:
    """`Model` around `tiny_vision_hf` on the CPU, with its processor."""
    processor = tiny_vision_processor(arch)
    hf = tiny_vision_hf(arch, seed=seed, n_layers=n_layers, dtype=dtype)
    return load_model(
        hf, tokenizer=processor.tokenizer, processor=processor, name=f"tiny-{arch}", device="cpu", probe=probe
    )


def pictures(n: int, *, seed: int = 0) -> list[Image.Image]:
    """`n` different noisy pictures."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(n)]


def picture_files(n: int) -> list[str]:
    """Paths of `n` such pictures, for specs; the files last as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="workbench-pictures-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = [folder / f"{i}.png" for i in range(n)]
    for path, picture in zip(paths, pictures(n), strict=True):
        picture.save(path)
    return [str(path) for path in paths]


def _text(tokenizer: Any, n_kv_heads: int, n_layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": n_kv_heads,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _llava(arch: str, tokenizer: Any, n_layers: int) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=16,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_text(tokenizer, 2 if arch == "llava-gqa" else 4, n_layers)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    return config, LlavaForConditionalGeneration


def _gemma3(arch: str, tokenizer: Any, n_layers: int) -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = {**_text(tokenizer, 2, n_layers), "query_pre_attn_scalar": 8, "sliding_window": 64}
    config = Gemma3Config(
        vision_config=vision.to_dict(),
        text_config=Gemma3TextConfig(**text).to_dict(),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<soft>"),
    )
    return config, Gemma3ForConditionalGeneration
