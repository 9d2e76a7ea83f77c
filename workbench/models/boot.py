"""The two libraries underneath: read a directory with transformers, put it into a TransformerBridge.

Everything that depends on how Hugging Face and TransformerLens do things is here, each step with the one-sentence
error a user can act on. The Hugging Face model is read here rather than by TransformerLens, so that weights missing
from a checkpoint are an error and not random numbers. It never decides what to load, or where to.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.models.source import weight_files
from workbench.models.weights_header import read_header

if TYPE_CHECKING:
    from torch import nn
    from transformer_lens.model_bridge import TransformerBridge

DTYPES = ("float32", "float16", "bfloat16", "float64")
_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

# A bridge replaces submodules of the Hugging Face model in place; a second one would leave the first one's hooks dead.
_BRIDGED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def stored_dtype(directory: Path, config: dict[str, Any]) -> str:
    """The checkpoint's floating dtype: what its configuration says, else what most of its bytes are."""
    text = config.get("text_config") or {}
    stated = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    if stated in DTYPES:
        return stated
    sizes: dict[str, int] = {}
    for file in weight_files(directory):
        for spec in read_header(file)[1].values():
            begin, end = spec["data_offsets"]
            sizes[spec["dtype"]] = sizes.get(spec["dtype"], 0) + end - begin
    return _STORED.get(max(sizes, key=lambda dtype: sizes[dtype], default=""), "float32")


def read_tokenizer(directory: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # the loader below raises whatever its file parser does
        raise InputError(
            f"The tokenizer in {directory} cannot be read ({_first_line(error)}); copy its files again, or pass "
            "tokenizer=... to load_model."
        ) from error


def read_processor(directory: Path, trust_remote_code: bool) -> Any | None:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(str(directory), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # a missing image library, a missing file: text-only use is still possible
        warnings.warn(
            f"No processor for {directory} ({_first_line(error)}); pass processor=... to load_model to use images.",
            stacklevel=2,
        )
        return None


def read_weights(
    directory: Path,
    dtype: str,
    trust_remote_code: bool,
    *,
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> tuple[nn.Module, str]:
    """Hugging Face model with eager attention, and the architecture TransformerLens knows it by.

    It is on the CPU, or where `device_map` puts it while weights are read (and quantised).
    """
    import torch
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
    from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(
            f"{directory / 'config.json'} is not a configuration transformers can read ({_first_line(error)}); check "
            "its model_type, or upgrade transformers."
        ) from error
    architecture = architecture_of(config, str(directory))
    torch_dtype = getattr(torch, dtype)
    kwargs = {"config": config, "dtype": torch_dtype, "attn_implementation": "eager"}
    if device_map is not None:
        kwargs["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    if quantize is not None:
        kwargs["quantization_config"] = _quantization(quantize, torch_dtype)
    try:
        tl_config = build_bridge_config_from_hf(copy.deepcopy(config), architecture, str(directory), torch_dtype)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(tl_config)
        adapter.prepare_loading(str(directory), kwargs)
        model_class: Any = get_hf_model_class_for_architecture(architecture)
        with _quiet(directory):
            hf, info = model_class.from_pretrained(
                str(directory),
                **kwargs,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except Exception as error:
        raise InputError(
            f"The weights in {directory} cannot be loaded as {architecture} ({_first_line(error)}); check that "
            "config.json and model.safetensors belong together, and copy them again if not."
        ) from error
    lacking = sorted(str(key) for key in (*info["missing_keys"], *info.get("mismatched_keys", ())))
    if lacking:
        raise InputError(
            f"The weights in {directory} lack {len(lacking)} tensors that {architecture} needs, first {lacking[0]!r}; "
            "they would be random: copy the model directory again, or fix architectures in its config.json."
        )
    return hf, architecture


def _quantization(quantize: str, compute: Any) -> Any:
    """Weights in 8 bits (LLM.int8) or 4 (NF4), computed with at `compute`."""
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError:
        raise InputError(
            f"quantize={quantize!r} needs bitsandbytes, which is not installed; pip install 'workbench[quantized]'."
        ) from None
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


@contextmanager
def _quiet(directory: Path) -> Iterator[None]:
    """No progress bar for weights that load in a moment."""
    from transformers.utils import logging

    hide = logging.is_progress_bar_enabled() and sum(file.stat().st_size for file in weight_files(directory)) < 10**9
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def architecture_of(config: Any, name: str) -> str:
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

    try:
        return determine_architecture_from_hf_config(config)
    except ValueError:
        raise InputError(
            f"TransformerLens has no adapter for {name!r} (architectures={getattr(config, 'architectures', None)}, "
            f"model_type={getattr(config, 'model_type', None)!r}); use a model of a supported architecture."
        ) from None


def adopt(hf: nn.Module) -> None:
    """Remember that this module is inside a bridge."""
    _BRIDGED.add(hf)


def refuse_second_bridge(hf: nn.Module, name: str) -> None:
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    if hf in _BRIDGED or any(isinstance(module, GeneralizedComponent) for module in hf.modules()):
        raise InputError(
            f"The model object {name!r} is already inside a bridge, and a second one would silence the first one's "
            "hooks; use the Model made from it, or load the weights again."
        )


def build_bridge(hf: nn.Module, architecture: str, tokenizer: Any | None, name: str) -> TransformerBridge:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.utilities.attn_implementation import force_eager_attention

    force_eager_attention(hf)
    _fuse_activations(hf)
    adopt(hf)  # also when building fails half-way: its submodules may be replaced already
    try:
        bridge = build_bridge_from_module(
            hf, architecture, hf_config=hf.config, tokenizer=_for_bridge(tokenizer, name), model_name=name
        )
    except Exception as error:
        if "packed integer" in str(error):
            raise InputError(
                f"{name!r} keeps queries, keys and values in one matrix, which cannot be split once it is quantised; "
                "load it without quantize, in dtype='bfloat16'."
            ) from None
        raise InputError(
            f"TransformerLens cannot wrap {name!r} as {architecture} ({_first_line(error)}); use a model of a "
            "supported architecture."
        ) from error
    _round_after_rotation(bridge, hf)
    return bridge


def _round_after_rotation(bridge: TransformerBridge, hf: nn.Module) -> None:
    """Queries and keys back in the model's dtype: OLMo-2 rotates in float32, and TransformerLens leaves them there.

    transformers rounds them itself; unrounded, they do not go with values in half precision.
    """
    import torch

    dtype = next((p.dtype for p in hf.parameters() if p.is_floating_point()), torch.float32)
    if dtype not in (torch.float16, torch.bfloat16):
        return
    for block in bridge.blocks:
        for name in ("hook_rot_q", "hook_rot_k"):
            point = getattr(getattr(block, "attn", None), name, None)
            if point is not None:
                point.register_forward_hook(lambda _point, _args, rotated: rotated.to(dtype))


def _fuse_activations(hf: nn.Module) -> None:
    """GPT-2's GELU in one kernel instead of seven: equal to rounding, and a seventh of a forward cheaper."""
    from transformers.activations import ACT2FN, NewGELUActivation

    for module in hf.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"])


def _for_bridge(tokenizer: Any | None, name: str) -> Any | None:
    """A copy TransformerLens may adjust (it invents BOS and padding tokens) and has no reason to load again by name."""
    if tokenizer is None:
        return None
    own = copy.deepcopy(tokenizer)
    own.init_kwargs.setdefault("name_or_path", name)
    own.init_kwargs["add_bos_token"] = True
    return own


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
