"""`load_model`: from what the user named to a `Model` that is measured and safe to hook.

Weights come from safetensors only, nothing is installed, a local source never touches the network, and what cannot be
loaded is one sentence with the remedy. The Hugging Face model is loaded here and handed to TransformerLens, so that
weights missing from a checkpoint are an error rather than random numbers. It never knows what the model is for.
"""

from __future__ import annotations

import copy
import io
import os
import warnings
import weakref
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, did_you_mean
from workbench.models.capabilities import Capabilities
from workbench.models.fingerprint import fingerprint_bridge, fingerprint_directory, fingerprint_model, read_header
from workbench.models.model import Model
from workbench.models.offline import forbid_installs, no_network
from workbench.models.source import TOKENIZER_FILES, Source, read_json, resolve, weight_files

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformer_lens.model_bridge import TransformerBridge

DTYPES = ("float32", "float16", "bfloat16", "float64")
_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

# A bridge replaces submodules of the Hugging Face model in place; a second one would leave the first one's hooks dead.
_BRIDGED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def load_model(
    source: str | os.PathLike[str] | TransformerBridge | nn.Module,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    attn: str | None = None,
    tokenizer: Any | None = None,
    processor: Any | None = None,
    trust_remote_code: bool = False,
    probe: bool = True,
    name: str | None = None,
) -> Model:
    """Load a model and measure what it can be asked to do.

    Args:
        source: hub name, local directory, `organism:NAME`, a TransformerBridge, or a Hugging Face model object (which is
            changed in place: it belongs to the bridge afterwards; keep a deepcopy for reference computations).
        device: "auto" is the GPU when there is one, else the CPU; an object in memory stays where it is.
        dtype: "auto" is the checkpoint's own on a GPU and float32 on the CPU; an object in memory keeps its own.
        revision: branch, tag or commit of a hub model.
        attn: None or "eager": attention patterns exist only with eager attention.
        tokenizer: for a model object; or instead of the directory's own.
        processor: for a vision-language model; loaded from the directory when not given.
        trust_remote_code: run modelling code that comes with the checkpoint.
        probe: False skips the measurement; every capability is then False.
        name: what the model is called in tables; default as named, or the class of an object.
    """
    if attn not in (None, "eager"):
        raise InputError(f"attn={attn!r} gives no attention patterns to study; use attn='eager' or leave it out.")
    dtype_name = _dtype_name(dtype)
    if isinstance(source, str | os.PathLike):
        found = resolve(source, revision=revision, remote_code=trust_remote_code)
        with no_network():
            return _from_directory(
                found, name, device, dtype_name, tokenizer, processor, trust_remote_code=trust_remote_code, probe=probe
            )
    return _from_object(source, name, device, dtype_name, tokenizer, processor, probe=probe)


# ---- a directory


def _from_directory(
    source: Source,
    name: str | None,
    device: str | torch.device,
    dtype: str | None,
    tokenizer: Any | None,
    processor: Any | None,
    *,
    trust_remote_code: bool,
    probe: bool,
) -> Model:
    directory = source.path
    if not (directory / "config.json").exists():
        raise InputError(f"{directory} has no config.json; give the directory that holds a model's config and weights.")
    config_record = read_json(directory / "config.json", what="model configuration")
    weight_files(directory)
    if tokenizer is None and not any((directory / file).exists() for file in TOKENIZER_FILES):
        raise InputError(
            f"{directory} has no tokenizer.json (nor another tokenizer file); copy the tokenizer's files beside the "
            "weights, or pass tokenizer=... to load_model."
        )
    fingerprint = fingerprint_directory(directory, tokenizer=tokenizer)
    where = _device(device)
    forbid_installs()
    if dtype is None:
        dtype = "float32" if where.type == "cpu" else _stored_dtype(directory, config_record)
    if tokenizer is None:
        tokenizer = _tokenizer(directory, trust_remote_code)
    hf, architecture = _weights(directory, dtype, trust_remote_code)
    hf.to(where)
    bridge = _bridge(hf, architecture, tokenizer, source.name)
    if processor is None and getattr(bridge.cfg, "is_multimodal", False):
        processor = _processor(directory, trust_remote_code)
    return _finish(
        Model(
            name=name or source.name,
            bridge=bridge,
            tokenizer=tokenizer,
            processor=processor,
            fingerprint=fingerprint,
            capabilities=_NOT_PROBED,
            organism=source.organism,
            revision=source.revision,
        ),
        probe=probe,
    )


def _stored_dtype(directory: Path, config: dict[str, Any]) -> str:
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


def _tokenizer(directory: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # the loader below raises whatever its file parser does
        raise InputError(
            f"The tokenizer in {directory} cannot be read ({_first_line(error)}); copy its files again, or pass "
            "tokenizer=... to load_model."
        ) from error


def _processor(directory: Path, trust_remote_code: bool) -> Any | None:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(str(directory), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # a missing image library, a missing file: text-only use is still possible
        warnings.warn(
            f"No processor for {directory} ({_first_line(error)}); pass processor=... to load_model to use images.",
            stacklevel=2,
        )
        return None


def _weights(directory: Path, dtype: str, trust_remote_code: bool) -> tuple[nn.Module, str]:
    """Hugging Face model on the CPU with eager attention, and the architecture TransformerLens knows it by."""
    import torch
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
    from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(
            f"{directory / 'config.json'} is not a configuration transformers can read ({_first_line(error)}); check its "
            "model_type, or upgrade transformers."
        ) from error
    architecture = _architecture(config, str(directory))
    torch_dtype = getattr(torch, dtype)
    kwargs = {"config": config, "dtype": torch_dtype, "attn_implementation": "eager"}
    try:
        tl_config = build_bridge_config_from_hf(copy.deepcopy(config), architecture, str(directory), torch_dtype)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(tl_config)
        adapter.prepare_loading(str(directory), kwargs)
        hf, info = get_hf_model_class_for_architecture(architecture).from_pretrained(
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


def _architecture(config: Any, name: str) -> str:
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

    try:
        return determine_architecture_from_hf_config(config)
    except ValueError:
        raise InputError(
            f"TransformerLens has no adapter for {name!r} (architectures={getattr(config, 'architectures', None)}, "
            f"model_type={getattr(config, 'model_type', None)!r}); use a model of a supported architecture."
        ) from None


# ---- an object in memory


def _from_object(
    source: Any,
    name: str | None,
    device: str | torch.device,
    dtype: str | None,
    tokenizer: Any | None,
    processor: Any | None,
    *,
    probe: bool,
) -> Model:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    if not isinstance(source, TransformerBridge | PreTrainedModel):
        raise InputError(
            f"Cannot load a {type(source).__name__}; give a hub name, a directory, 'organism:NAME', a TransformerBridge "
            "or a Hugging Face model."
        )
    own = str(next(p.dtype for p in source.parameters() if p.is_floating_point())).removeprefix("torch.")
    if dtype is not None and dtype != own:
        raise InputError(
            f"dtype={dtype!r} would change the weights of a model already in memory (it is {own}); cast it before "
            "loading, or leave dtype out."
        )
    forbid_installs()
    where = None if str(device) == "auto" else _device(device)
    if isinstance(source, TransformerBridge):
        bridge = source
        if where is not None and where != next(bridge.parameters()).device:
            with redirect_stdout(io.StringIO()):  # it prints "Moving model to device"
                bridge.to(where)
        tokenizer = bridge.tokenizer if tokenizer is None else tokenizer
        fingerprint = fingerprint_bridge(bridge, tokenizer)
        _BRIDGED.add(bridge.original_model)
        name = name or str(getattr(bridge.cfg, "model_name", None) or "bridge")
        processor = processor if processor is not None else getattr(bridge, "processor", None)
    else:
        name = name or getattr(source, "name_or_path", "") or type(source).__name__
        _refuse_second_bridge(source, name)
        fingerprint = fingerprint_model(source, tokenizer)
        if not getattr(source.config, "architectures", None):
            source.config.architectures = [type(source).__name__]
        if where is not None:
            source.to(where)
        bridge = _bridge(source, _architecture(source.config, name), tokenizer, name)
    folded = bool(getattr(bridge, "compatibility_mode", False))
    return _finish(
        Model(name, bridge, tokenizer, processor, fingerprint, _NOT_PROBED, basis="folded" if folded else "raw"),
        probe=probe,
    )


def _refuse_second_bridge(hf: nn.Module, name: str) -> None:
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    if hf in _BRIDGED or any(isinstance(module, GeneralizedComponent) for module in hf.modules()):
        raise InputError(
            f"The model object {name!r} is already inside a bridge, and a second one would silence the first one's "
            "hooks; use the Model made from it, or load the weights again."
        )


# ---- both


def _bridge(hf: nn.Module, architecture: str, tokenizer: Any | None, name: str) -> TransformerBridge:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.utilities.attn_implementation import force_eager_attention

    force_eager_attention(hf)
    _BRIDGED.add(hf)  # also when building fails half-way: its submodules may be replaced already
    try:
        bridge = build_bridge_from_module(
            hf, architecture, hf_config=hf.config, tokenizer=_for_bridge(tokenizer, name), model_name=name
        )
    except Exception as error:
        raise InputError(
            f"TransformerLens cannot wrap {name!r} as {architecture} ({_first_line(error)}); use a model of a supported "
            "architecture."
        ) from error
    return bridge


def _for_bridge(tokenizer: Any | None, name: str) -> Any | None:
    """A copy TransformerLens may adjust (it invents BOS and padding tokens) and has no reason to load again by name."""
    if tokenizer is None:
        return None
    own = copy.deepcopy(tokenizer)
    own.init_kwargs.setdefault("name_or_path", name)
    own.init_kwargs["add_bos_token"] = True
    return own


_NOT_PROBED = Capabilities.none("unknown", "all: the model was loaded with probe=False, so nothing was measured.")


def _finish(model: Model, *, probe: bool) -> Model:
    """Inference mode, then the measurement."""
    model.bridge.eval()
    model.bridge.requires_grad_(False)
    if model.processor is not None:
        model.bridge.processor = model.processor
    if probe:
        from workbench.models.probe_cache import cached_probe

        model.capabilities = cached_probe(model)
    return model


def _dtype_name(dtype: Any) -> str | None:
    """ "float32" for "float32" or torch.float32; None for "auto"."""
    text = str(dtype).removeprefix("torch.")
    if text == "auto":
        return None
    if text not in DTYPES:
        raise InputError(f"Unknown dtype {text!r}.{did_you_mean(text, DTYPES)} Use one of: auto, {', '.join(DTYPES)}.")
    return text


def _device(device: Any) -> torch.device:
    import torch

    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"Unknown device {device!r}; use auto, cpu, cuda, cuda:N or mps.") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"Device {device!r} is not on this machine ({torch.cuda.device_count()} GPUs); use device='cpu'."
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("Device 'mps' is not on this machine; use device='cpu'.")
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
