"""The training script runs from the command line and writes a folder that loads like any other model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "organisms" / "train_retrieval.py"


def test_smoke_run_writes_a_loadable_model_and_its_card(tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([tokenizer("The old baker walked to the market.")["input_ids"]])
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    card = json.loads((out / "card.json").read_text())
    assert card["training"]["seed"] == 0 and card["training"]["smoke"] is True
    assert "retrieval" in (out / "README.md").read_text()
