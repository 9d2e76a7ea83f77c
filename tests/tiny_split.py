"""The tiny models spread over make-believe devices, the way accelerate spreads real ones over GPUs.

The embedding is alone on device 0, a vision tower on device 1, the blocks on devices 1 and 2, what follows them on
device 2; where input and output embedding are one matrix, both are on device 0. So every boundary that a split can have
is there: before the first block, between two blocks, before the unembedding.
"""

from __future__ import annotations

from typing import Any

from accelerate import dispatch_model
from torch import nn

from tests.simulated_devices import device
from tests.tiny import tiny_hf, tiny_tokenizer
from tests.tiny_vision import tiny_vision_hf, tiny_vision_processor
from workbench.models.load import load_model
from workbench.models.model import Model


def device_map(hf: Any) -> dict[str, Any]:
    """Module names to devices, as `device_map` takes them."""
    lists = [(n, m) for n, m in hf.named_modules() if isinstance(m, nn.ModuleList) and "vision" not in n]
    stem, blocks = lists[0]
    found: dict[str, int] = {}

    def fill(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            full, after = prefix + name, any(key.startswith(f"{stem}.") for key in found)
            if full == stem:
                found.update({f"{stem}.{i}": 1 if 2 * i < len(blocks) else 2 for i in range(len(blocks))})
            elif stem.startswith(f"{full}."):
                fill(child, f"{full}.")
            else:
                found[full] = 2 if after else int("vision" in name)

    fill(hf, "")
    if hf.config.get_text_config().tie_word_embeddings:
        found["lm_head"] = 0
    return {name: str(device(k)) for name, k in found.items()}


def spread(hf: Any) -> Any:
    """The same model, over three devices."""
    return dispatch_model(hf, device_map(hf), main_device=device(0), skip_keys=hf._skip_keys_device_placement)


def split_tiny(arch: str, **options: Any) -> Model:
    """`tests.tiny.tiny(arch, ...)`, spread."""
    probe = options.pop("probe", True)
    hf = spread(tiny_hf(arch, **options))
    return load_model(hf, tokenizer=tiny_tokenizer(), name=f"tiny-{arch}", probe=probe)


def split_tiny_vision(arch: str, **options: Any) -> Model:
    """`tests.tiny_vision.tiny_vision(arch, ...)`, spread."""
    processor, probe = tiny_vision_processor(arch), options.pop("probe", True)
    hf = spread(tiny_vision_hf(arch, **options))
    name = f"tiny-{arch}"
    return load_model(hf, tokenizer=processor.tokenizer, processor=processor, name=name, probe=probe)
