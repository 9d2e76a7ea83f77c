"""Listing a store must not cost the start-up of torch, nor even of numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = "torch pandas transformers transformer_lens sklearn scipy plotly numpy pyarrow safetensors pydantic"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_listing_and_checking_a_store_imports_nothing_heavy(tmp_path):
    code = f"""
import sys, time
start = time.process_time()
from workbench.store import Store
spent = time.process_time() - start
store = Store({str(tmp_path)!r})
with store.stage("a", config={{"x": 1}}) as out:
    out.json("summary", {{"x": 1}})
store.ls(), store.names(), store.log("a"), store["a"].json("summary"), store.fsck(), store.gc()
print(sorted(set({HEAVY!r}.split()) & set(sys.modules)), spent)
"""
    results = [run(code).rsplit(" ", 1) for _ in range(2)]
    assert results[0][0] == "[]"
    assert min(float(spent) for _, spent in results) < 0.1
