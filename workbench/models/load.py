"""`load_model`: from what the user named to a `Model` that is measured and safe to hook.

Decides what is loaded, in which order and where to: names are checked before files, files before libraries are
imported, and the fingerprint is taken before a bridge renames anything. Weights come from safetensors only, nothing is
installed, a local source never touches the network. It never knows what the model is for.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, did_you_mean
from workbench.models.boot import (
    DTYPES,
    adopt,
    architecture_of,
    build_bridge,
    read_processor,
    read_tokenizer,
    read_weights,
    refuse_second_bridge,
    stored_dtype,
)
from workbench.models.capabilities import Capabilities
from workbench.models.estimate import checked_quantize, require_room, weight_bytes
from workbench.models.fingerprint import fingerprint_bridge, fingerprint_directory, fingerprint_model
from workbench.models.model import Model
from workbench.models.offline import forbid_installs, no_network
from workbench.models.placement import DeviceMap, bring_inputs_home, is_split, one_device, place, require_whole
from workbench.models.source import TOKENIZER_FILES, Source, read_json, resolve, weight_files

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformer_lens.model_bridge import TransformerBridge


def load_model(
    source: str | os.PathLike[str] | TransformerBridge | nn.Module,
    *,
    device: str | torch.device = "auto",
    device_map: DeviceMap | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    attn: str | None = None,
    quantize: str | None = None,
    tokenizer: Any | None = None,
    processor: Any | None = None,
    trust_remote_code: bool = False,
    probe: bool = True,
    name: str | None = None,
) -> Model:
    """Load a model and measure what it can be asked to do.

    Args:
        source: hub name, local directory, `organism:NAME`, a TransformerBridge, or a Hugging Face model object (which
            is changed in place: it belongs to the bridge afterwards; keep a deepcopy for reference computations).
        device: "auto" is the GPU when there is one, else the CPU; an object in memory stays where it is.
        device_map: spread a directory's weights over the GPUs while they are read: "balanced" (or "auto"),
            "sequential", or `{module: GPU}` as accelerate has it; one GPU takes everything. A model object that
            accelerate spread already is taken as it is.
        dtype: "auto" is the checkpoint's own on a GPU and float32 on the CPU; an object in memory keeps its own.
        revision: branch, tag or commit of a hub model.
        attn: None or "eager": attention patterns exist only with eager attention.
        quantize: "8bit" (LLM.int8) or "4bit" (NF4), by bitsandbytes while a directory is read. A quantised projection
            is not a matrix (it rounds its input as well), so residual forks are measured to be inexact and sweeps run
            full forwards.
        tokenizer: for a model object; or instead of the directory's own.
        processor: for a vision-language model; loaded from the directory when not given.
        trust_remote_code: run modelling code that comes with the checkpoint.
        probe: False skips the measurement; every capability is then False.
        name: what the model is called in tables; default as named, or the class of an object.

    Raises:
        InputError: nothing there, nothing TransformerLens can wrap, weights beyond the free memory, or a device_map
            that leaves the GPUs.
    """
    if attn not in (None, "eager"):
        raise InputError(f"attn={attn!r} gives no attention patterns to study; use attn='eager' or leave it out.")
    dtype_name = _dtype_name(dtype)
    checked_quantize(quantize)
    if isinstance(source, str | os.PathLike):
        found = resolve(source, revision=revision, remote_code=trust_remote_code)
        with no_network():
            return _from_directory(
                found,
                name,
                device,
                dtype_name,
                tokenizer,
                processor,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
                probe=probe,
                quantize=quantize,
            )
    if device_map is not None:
        raise InputError(
            f"device_map={device_map!r} spreads weights while they are read, and this model is in memory already; give "
            "its directory, or spread it with accelerate first."
        )
    if quantize is not None:
        raise InputError(
            f"quantize={quantize!r} happens while weights are read, and this model is in memory already; give its "
            "directory."
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
    device_map: DeviceMap | None,
    trust_remote_code: bool,
    probe: bool,
    quantize: str | None,
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
    placed = place(device, device_map)
    where = placed.devices[0]
    forbid_installs()
    if dtype is None:
        dtype = "float32" if where.type == "cpu" else stored_dtype(directory, config_record)
    if tokenizer is None:
        tokenizer = read_tokenizer(directory, trust_remote_code)
    _, needed = weight_bytes(directory, dtype=dtype, quantize=quantize)
    require_room(needed, placed.room(), name=source.name, dtype=dtype, where=placed.text)
    at_once = {"": str(where)} if quantize else None  # a quantised model is made where it stays
    hf, architecture = read_weights(
        directory, dtype, trust_remote_code, quantize=quantize, device_map=placed.device_map or at_once
    )
    if placed.device_map is not None:
        require_whole(hf, source.name)
    elif quantize is None:
        hf.to(where)
    bridge = build_bridge(hf, architecture, tokenizer, source.name)
    if processor is None and getattr(bridge.cfg, "is_multimodal", False):
        processor = read_processor(directory, trust_remote_code)
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
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    if not isinstance(source, TransformerBridge | PreTrainedModel):
        raise InputError(
            f"Cannot load a {type(source).__name__}; give a hub name, a directory, 'organism:NAME', a "
            "TransformerBridge or a Hugging Face model."
        )
    own = str(next(p.dtype for p in source.parameters() if p.is_floating_point())).removeprefix("torch.")
    if dtype is not None and dtype != own:
        raise InputError(
            f"dtype={dtype!r} would change the weights of a model already in memory (it is {own}); cast it before "
            "loading, or leave dtype out."
        )
    if getattr(source, "quantization_method", None) is not None:
        raise InputError(
            f"The {type(source).__name__} in memory is quantised, and reading its weights for a fingerprint can change "
            "them (bitsandbytes, on the CPU); give its directory and quantize='8bit' or '4bit'."
        )
    forbid_installs()
    where = None if str(device) == "auto" else one_device(device)
    inner: Any = source.original_model if isinstance(source, TransformerBridge) else source
    require_whole(inner, name or type(inner).__name__)
    if where is not None and is_split(inner):
        raise InputError(
            f"device={str(device)!r} would move a model that accelerate spread over several devices; leave it out."
        )
    if isinstance(source, TransformerBridge):
        bridge = source
        called = name or str(getattr(bridge.cfg, "model_name", None) or "bridge")
        tokenizer = bridge.tokenizer if tokenizer is None else tokenizer
        processor = getattr(bridge, "processor", None) if processor is None else processor
        fingerprint = fingerprint_bridge(bridge, tokenizer)
        adopt(bridge.original_model)
        if where is not None and where != next(bridge.parameters()).device:
            with redirect_stdout(io.StringIO()):  # it prints "Moving model to device"
                bridge.to(where)
    else:
        called = str(name or getattr(source, "name_or_path", "") or type(source).__name__)
        refuse_second_bridge(source, called)
        fingerprint = fingerprint_model(source, tokenizer)
        if not getattr(source.config, "architectures", None):
            source.config.architectures = [type(source).__name__]
        if where is not None:
            torch.nn.Module.to(source, where)
        bridge = build_bridge(source, architecture_of(source.config, called), tokenizer, called)
    folded = bool(getattr(bridge, "compatibility_mode", False))
    return _finish(
        Model(called, bridge, tokenizer, processor, fingerprint, _NOT_PROBED, basis="folded" if folded else "raw"),
        probe=probe,
    )


# ---- both


_NOT_PROBED = Capabilities.none("unknown", "all: the model was loaded with probe=False, so nothing was measured.")


def _finish(model: Model, *, probe: bool) -> Model:
    """Inference mode, inputs where they are needed, then the measurement."""
    if is_split(model.bridge.original_model) and getattr(model.bridge.cfg, "is_stateful", False):
        raise InputError(
            f"{model.name!r} is a state-space model, whose state TransformerLens keeps on one device; load it on one."
        )
    model.bridge.eval()
    model.bridge.requires_grad_(False)
    bring_inputs_home(model.bridge)
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
