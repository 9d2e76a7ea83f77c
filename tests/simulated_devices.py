"""Make-believe devices: tensors that say they live on device k, compute on the CPU, and never meet those of another.

A machine without GPUs can thus be shown that every step of a model split over several devices carries its tensors to
where they are needed. What is simulated are CUDA's rules of placement, nothing else:

    one operation, one device     tensors of different devices raise, as CUDA's kernels do; a 0-dim CPU tensor may join
                                  (but is no part of a `cat`), indices may be on the CPU, `copy_` and `to` go anywhere
    no way round `.cpu()`         `numpy()` raises; a CPU generator makes no numbers on a device
    all else                      is the CPU's own arithmetic, autograd, views and in-place writes included

Devices are `torch.device("lazy:k")`: a type torch knows, no backend of this machine uses, and whose backward pass runs
in the calling thread. After `torch._subclasses.FakeTensor`, which lies about devices in the same way but holds no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
_aten = torch.ops.aten
_TO_ANYWHERE = {_aten.copy_.default, _aten._to_copy.default, _aten.set_.source_Tensor}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_ALL_ALIKE = {_aten.cat.default, _aten.stack.default}


def device(k: int) -> torch.device:
    """The k-th make-believe device."""
    return torch.device("lazy", k)


class DeviceTensor(Tensor):
    """A CPU tensor that says it lives on a make-believe device."""

    _real: Tensor
    _where: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: Tensor, where: torch.device) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=CPU,
            dispatch_device=True,
            requires_grad=False,
        )
        made._real, made._where = real, where
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self._real!r}, device={self._where})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    # what torch answers from a tensor's memory without an operation

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert a tensor on {self._where} to numpy; use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        return self._real.tolist()

    def data_ptr(self) -> int:
        return self._real.data_ptr()

    def untyped_storage(self) -> Any:
        return self._real.untyped_storage()


@contextmanager
def simulated_devices() -> Iterator[None]:
    """Inside the block tensors can be made on, and moved to, make-believe devices."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `module.to` makes parameters of the new type
    try:
        with _Operations(), _Literals():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Python numbers that torch would hand to the backend itself, which is not there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor) and kwargs and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": CPU}).to(kwargs["device"])
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(_as_tensor(i) if isinstance(i, list) else i for i in index), *args[2:])
        return func(*args, **(kwargs or {}))


def _as_tensor(index: list[Any]) -> Tensor:
    return torch.tensor(index, dtype=None if index else torch.long)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return _place(args[0])
    given: list[Tensor] = []
    asked: list[torch.device] = []
    real_args, real_kwargs = _real(args, given, asked), {k: _real(v, given, asked) for k, v in kwargs.items()}
    where = _common(func, args, given)
    if asked:
        where, generator = asked[0], kwargs.get("generator")
        if where != CPU and generator is not None:
            raise RuntimeError(f"Expected a '{where.type}' generator for {func}, but found a {generator.device} one.")
    return _placed(func(*real_args, **real_kwargs), where, {id(_content(t)): t for t in given})


def _real(value: Any, given: list[Tensor], asked: list[torch.device]) -> Any:
    """An argument as the CPU gets it; the tensors and devices found on the way are noted."""
    if isinstance(value, Tensor):
        given.append(value)
        return _content(value)
    if isinstance(value, torch.device):
        asked.append(value)
        return CPU
    if isinstance(value, list | tuple):
        return type(value)([_real(one, given, asked) for one in value])
    return value


def _placed(out: Any, where: torch.device, known: dict[int, Tensor]) -> Any:
    """What the CPU returned, on the device where it belongs."""
    if isinstance(out, Tensor):
        before = known.get(id(out))
        if before is not None and _place(before) == where:  # an in-place write returns its own tensor
            return before
        out = out if before is None else out.clone()  # a move: the two share no memory
        return out if where == CPU else DeviceTensor(out, where)
    if isinstance(out, list | tuple):
        return type(out)([_placed(one, where, known) for one in out])
    return out


def _common(func: Any, args: Any, given: list[Tensor]) -> torch.device:
    """The device on which all tensors of an operation are, or the error that CUDA raises."""
    if func in _TO_ANYWHERE:
        return _place(args[0])
    free = {id(i) for i in args[1] if i is not None and _place(i) == CPU} if func in _INDEXED else ()
    found = {_place(t) for t in given if id(t) not in free and (func in _ALL_ALIKE or t.dim() or _place(t) != CPU)}
    if len(found) > 1:
        places = ", ".join(sorted(str(place) for place in found))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {places} in {func}.")
    return found.pop() if found else CPU


def _place(tensor: Tensor) -> torch.device:
    return tensor._where if isinstance(tensor, DeviceTensor) else CPU


def _content(tensor: Tensor) -> Tensor:
    return tensor._real if isinstance(tensor, DeviceTensor) else tensor
