"""Keeping a model load inside this machine: no network for local sources, no package installed behind our back.

Two things libraries below us do by themselves are switched off here. huggingface_hub asks the network about names even
when every file is on disk (tens of seconds of retries without a network), and TransformerLens runs `pip install
torchvision` in the live interpreter when a processor fails to load, which has replaced torch. It never knows which
model is being loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SWITCH = "HF_HUB_OFFLINE"


@contextmanager
def no_network() -> Iterator[None]:
    """Within, Hugging Face libraries use files on disk only; afterwards their setting is what it was.

    The environment variable is for child processes and for modules not imported yet; huggingface_hub reads it once, at
    import, so its constant is set too.
    """
    from huggingface_hub import constants

    environment, constant = os.environ.get(_SWITCH), constants.HF_HUB_OFFLINE
    os.environ[_SWITCH], constants.HF_HUB_OFFLINE = "1", True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = constant
        if environment is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = environment


def forbid_installs() -> None:
    """Replace TransformerLens's `pip install torchvision` by "not available"; call before any bridge is built."""
    from transformer_lens.model_bridge.sources.transformers import helpers

    helpers._ensure_torchvision = _torchvision_is_not_installed_for_you


def _torchvision_is_not_installed_for_you() -> bool:
    return False
