"""A norm with its scale held fixed: the linear map that tells how much each summand of its input adds to its output.

    N(a) = s(a) w * (a - c(a)) + b        s(a) > 0 the scale, c(a) the mean of a (LayerNorm) or 0 (RMSNorm)

With s kept at the value it has for the whole sum, N is affine, and a sum of contributions goes through term by term.
The form and w, b are measured on the module itself, so that no architecture need be known; what is not of this form is
refused. `pull` is the transpose: from a direction behind the norm to the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import CapabilityError
from workbench.primitives.suffix import agree, tolerance_beside

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGE = 1024.0  # of the probe, so that the norm's epsilon does not show; a power of two, exact in every dtype


@dataclass(frozen=True)
class LinearNorm:
    """What was measured of a norm, in float32 or better.

    Attributes:
        weight, bias: w (up to a factor that s takes up) and b.
        centres: whether the mean is taken off.
        tolerance: of the norm's own rounding, relative; None for that of float32.
    """

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centres: bool
    tolerance: float | None = None

    def scale(self, a: Float[Tensor, "n d_model"], out: Float[Tensor, "n d_model"]) -> Float[Tensor, "n 1"]:
        """s of every row, from what the norm made of it.

        Raises:
            CapabilityError: `out` is not of the form above.
        """
        linear, moved = self.weight * self.centred(a), out - self.bias
        size = (linear * linear).sum(-1, keepdim=True)
        found = torch.where(size > 0, (linear * moved).sum(-1, keepdim=True) / size.clamp(min=1e-30), 0.0)
        if not agree(found * linear, moved, tolerance=self.tolerance):
            raise CapabilityError("A norm of this model is neither a LayerNorm nor an RMSNorm, so it cannot be split.")
        return found

    def centred(self, a: Tensor) -> Tensor:
        return a - a.mean(-1, keepdim=True) if self.centres else a

    def pull(self, direction: Float[Tensor, "n d_model"], scale: Float[Tensor, "n 1"]) -> Float[Tensor, "n d_model"]:
        """The direction before the norm whose product with a summand is what that summand adds along `direction`."""
        return self.centred(scale * self.weight * direction)


def measure(norm: Callable[[Tensor], Tensor] | nn.Module, width: int, like: Tensor) -> LinearNorm:
    """What `norm` does; `like` gives dtype and device.

    Raises:
        CapabilityError: an odd width, for which the probe is not balanced.
    """
    if width % 2:
        raise CapabilityError(f"A norm of odd width {width} cannot be measured with a balanced probe.")
    sign = torch.ones(width, device=like.device)
    sign[1::2] = -1
    probe = (_LARGE * sign).to(like.dtype)[None, None]

    def out(value: Tensor) -> Tensor:
        made = norm(value)[0, 0].to(like.device)
        return made.to(torch.promote_types(made.dtype, torch.float32))

    with torch.no_grad():
        up, down, shifted = out(probe), out(-probe), out(probe + _LARGE / 2)
    tolerance = tolerance_beside(like.dtype)
    return LinearNorm((up - down) / 2 * sign, (up + down) / 2, agree(shifted, up, tolerance=tolerance), tolerance)
