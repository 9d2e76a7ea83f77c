"""Model directories on disk, as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import tiny_hf, tiny_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """`saved(arch, shard="50GB")` -> directory with weights, configuration and tokenizer."""

    def save(arch: str = "llama", *, name: str = "model", shard: str = "50GB") -> Path:
        directory = tmp_path / name
        tiny_hf(arch).save_pretrained(directory, max_shard_size=shard)
        tiny_tokenizer().save_pretrained(directory)
        return directory

    return save
