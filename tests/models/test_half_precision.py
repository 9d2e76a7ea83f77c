"""In bfloat16 every architecture runs through the bridge as it does in transformers."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import ARCHITECTURES, tiny, tiny_hf
from workbench.primitives.forward import forward


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bfloat16_logits_are_those_of_transformers(arch):
    tokens = torch.tensor([[0, 5, 6, 7, 8, 9, 10, 11]])
    got = forward(tiny(arch, dtype=torch.bfloat16, probe=False), tokens).logits
    with torch.no_grad():
        want = tiny_hf(arch, dtype=torch.bfloat16)(input_ids=tokens).logits
    assert got.dtype == torch.bfloat16
    assert float((got - want).float().abs().mean()) < 3e-2 * float(want.float().abs().mean())
