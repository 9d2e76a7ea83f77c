"""Where a model lives: the device or GPUs it goes to, the room they have, and the one rule of a model that is split.

The rule: **every activation of block L is on the device of block L.** accelerate moves what enters a module of the
Hugging Face model, but a bridge's block shows its input to hooks before that; so on a split model each block, the final
norm and the unembedding first bring their inputs home. Tokens go in, and logits come out, at the input embedding. It
never knows what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from workbench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformer_lens.model_bridge import TransformerBridge

DeviceMap = str | Mapping[str, Any]
DEVICE_MAPS = ("auto", "balanced", "sequential")
_ELSEWHERE = ("cpu", "disk", "meta")  # where accelerate keeps what it fetches for each call
_FORMS = "auto, balanced, sequential or {module: GPU}"

_settled: WeakSet[nn.Module] = WeakSet()  # parts that bring their inputs home already


@dataclass(frozen=True)
class Placement:
    """Where weights are to go.

    Attributes:
        devices: one, or the GPUs of a split.
        device_map: what transformers is told; None where everything goes to the one device.
    """

    devices: tuple[torch.device, ...]
    device_map: DeviceMap | None = None

    @property
    def text(self) -> str:
        """For messages."""
        return str(self.devices[0]) if len(self.devices) == 1 else f"a group of {len(self.devices)} GPUs"

    def room(self) -> int:
        """Bytes left on all its devices."""
        return sum(free_bytes(device) for device in self.devices)


def place(device: Any, device_map: DeviceMap | None) -> Placement:
    """Where `load_model` puts a model.

    One GPU and a strategy by name is that GPU: a spec that says `balanced` means the GPUs there are.

    Raises:
        InputError: a device or map this machine cannot follow, or both of them.
    """
    import torch

    if device_map is None:
        return Placement((one_device(device),))
    checked_map(device_map, str(device))
    n_gpus = torch.cuda.device_count()
    if n_gpus == 0:
        raise InputError(
            f"device_map={_shown(device_map)} spreads a model over GPUs, and this machine has none; leave it out."
        )
    if isinstance(device_map, str):
        gpus = tuple(torch.device("cuda", k) for k in range(n_gpus))
        return Placement(gpus, device_map if n_gpus > 1 else None)
    found = {name: one_device(f"cuda:{to}" if isinstance(to, int) else to) for name, to in device_map.items()}
    return Placement(tuple(sorted(set(found.values()), key=str)), {name: str(to) for name, to in found.items()})


def checked_map(device_map: Any, device: str = "auto") -> None:
    """Refuse what is no map over GPUs; needs no machine to say so.

    Raises:
        InputError: saying what is wrong with it.
    """
    if device != "auto":
        raise InputError(
            f"device={device!r} and device_map={_shown(device_map)} both say where the model goes; leave out one."
        )
    if isinstance(device_map, str):
        if device_map not in DEVICE_MAPS:
            raise InputError(
                f"{device_map!r} is no way to spread a model over GPUs.{did_you_mean(device_map, DEVICE_MAPS)} Give "
                f"{_FORMS}."
            )
        return
    if not isinstance(device_map, Mapping) or not device_map:
        raise InputError(f"device_map={device_map!r} spreads nothing; give {_FORMS}.")
    for name, to in device_map.items():
        if str(to).split(":")[0] in _ELSEWHERE:
            raise InputError(
                f"device_map puts {name!r} on {str(to)!r}, but hooks and weights must be on GPUs while they are read; "
                "name GPUs only, or take device='cpu' for all of it."
            )
        if isinstance(to, bool) or not (isinstance(to, int) or str(to).split(":")[0] == "cuda"):
            raise InputError(f"device_map puts {name!r} on {to!r}, which is no GPU; give its number or cuda:N.")


def one_device(device: Any) -> torch.device:
    """A device of this machine; "auto" is the GPU when there is one, else the CPU.

    Raises:
        InputError: there is none of that name.
    """
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


def free_bytes(device: torch.device) -> int:
    """Bytes a device has left."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


# ---- a model that is spread


def is_split(hf: nn.Module) -> bool:
    """Whether accelerate spread this model over several devices."""
    return len(set((getattr(hf, "hf_device_map", None) or {}).values())) > 1


def require_whole(hf: nn.Module, name: str) -> None:
    """Refuse a spread model parts of which are not where they compute.

    Raises:
        InputError: modules that are offloaded, or apart from the weights they share.
    """
    from transformer_lens.utilities.multi_gpu import find_misplaced_modules

    found = getattr(hf, "hf_device_map", None) or {}
    away = [module for module, to in found.items() if str(to).split(":")[0] in _ELSEWHERE]
    if away and (is_split(hf) or str(found[away[0]]) != "cpu"):
        raise InputError(
            f"{name!r} does not fit: accelerate left {away[0]!r} on {str(found[away[0]])!r}, where hooks cannot reach "
            "it; use more or larger GPUs, dtype='bfloat16', quantize='8bit' or '4bit', or a smaller model."
        )
    torn = find_misplaced_modules(hf)
    if torn:
        module, to, actual = torn[0]
        raise InputError(
            f"device_map puts {module!r} on {to}, but its weights, shared with another module, are on {actual}; put "
            "modules that share weights (input and output embedding) on one device."
        )


def devices(bridge: TransformerBridge) -> list[str]:
    """Names of the devices that hold weights, the one where tokens go in first."""
    first = input_device(bridge)
    others = {p.device for p in bridge.parameters()} - {first} if is_split(bridge.original_model) else set()
    return [str(first), *sorted(map(str, others))]


def input_device(bridge: TransformerBridge) -> torch.device:
    """Where tokens go in and logits come out."""
    inner: Any = bridge.original_model
    return next((inner.get_input_embeddings() if is_split(inner) else bridge).parameters()).device


def bring_inputs_home(bridge: TransformerBridge) -> None:
    """On a split model, move what enters a block, the final norm or the unembedding to where that part lives."""
    from torch import nn

    if not is_split(bridge.original_model):
        return
    ends = [part for name in ("ln_final", "unembed") if isinstance(part := getattr(bridge, name, None), nn.Module)]
    for part in [*bridge.blocks, *ends]:
        first = next(part.parameters(), None)
        if first is not None and part not in _settled:
            part.register_forward_pre_hook(_home(first.device, bridge.original_model), with_kwargs=True)
            _settled.add(part)


def _home(device: torch.device, hf: nn.Module) -> Callable[..., Any]:
    from accelerate.utils import send_to_device

    caches: Any = getattr(hf, "_skip_keys_device_placement", None)  # have a device per layer

    def move(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return send_to_device(args, device), send_to_device(kwargs, device, skip_keys=caches)

    return move


def _shown(device_map: Any) -> str:
    return repr(device_map) if isinstance(device_map, str) else "{...}"
