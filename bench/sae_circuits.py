"""Wall time of discrete-SAE circuit identification next to activation patching and EAP-IG, on 144 heads of width 768.

Random weights; the cost does not depend on them. One autoencoder, shared by all heads, 10 training examples, 500
epochs, as published; activations of `--pairs` pairs of prompts, codes, node and edge scores. Patching and EAP-IG are
timed on `--patched` of the pairs and extrapolated, because their cost is proportional to them. The method has a fixed
cost, the training, and a small one per pair: the line "equal at" is the number of pairs from which on it is the faster
one. Processor seconds stand beside wall seconds, because other jobs may share the machine.

    python bench/sae_circuits.py [--threads 2] [--pairs 64] [--patched 2] [--ig-steps 10]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait for a busy core do not count as working

N_POS = 16


def build() -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from workbench.models import load_model

    torch.manual_seed(0)
    config = GPT2Config(n_layer=12, n_embd=768, n_head=12, bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"
    config.initializer_range = 0.1  # with 0.02 attention is even and all outputs alike
    hf = GPT2LMHeadModel(config).eval()
    hf.config.architectures = ["GPT2LMHeadModel"]
    return load_model(hf, tokenizer=None, name="gpt2 12x12, d 768", device="cpu")


def prompts(n: int) -> Any:
    """Pairs that differ in one token of sixteen."""
    import numpy as np

    from workbench.tasks import PairDataset, PairSample

    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        clean, change = rng.integers(1, 30000, N_POS), rng.integers(1, 30000, 3)
        corrupted = clean.copy()
        corrupted[9] = change[0]
        made.append(
            PairSample(str(i), tuple(clean.tolist()), tuple(corrupted.tolist()), int(change[1]), int(change[2]))
        )
    return PairDataset("random", tuple(made), {})


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - processor, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--patched", type=int, default=2)
    parser.add_argument("--ig-steps", type=int, default=10)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    from workbench.analyses.sae_circuits import methods, scores
    from workbench.analyses.sae_circuits.activations import outputs
    from workbench.analyses.sae_circuits.params import SaeCircuitsParams
    from workbench.analyses.sae_circuits.trained import train_and_code
    from workbench.primitives.sweep import exactness
    from workbench.tasks import contrast_from_pairs

    model, pairs = build(), prompts(args.pairs)
    data, params = contrast_from_pairs(pairs), SaeCircuitsParams(seeds=1, ig_steps=args.ig_steps)
    positive = np.array([sample.group == "positive" for sample in data])
    print(f"{model.name}, {args.pairs} pairs of {N_POS} tokens, {args.threads} threads; seconds: wall (processor)")
    outputs(model, data[:4], positions="mean")  # whatever is built once per process

    fixed, per_pair = np.zeros(2), np.zeros(2)
    read = timed(lambda: outputs(model, contrast_from_pairs(pairs), positions="mean"))
    coded = timed(lambda: train_and_code(read[2].x, params, 0))
    labelled = scores.Labelled(coded[2], positive, params, 0)
    counted = timed(
        lambda: (
            scores.node(labelled, held_out=False, normalise=False),
            scores.edge(labelled, held_out=False, nulls=False),
        )
    )
    for name, (wall, processor, _) in (("activations", read), ("autoencoder, codes", coded), ("scores, null", counted)):
        print(f"  {name:24s} {wall:8.1f} ({processor:.1f})")
        share = np.array([wall, processor])
        fixed, per_pair = (fixed, per_pair + share / args.pairs) if name == "activations" else (fixed + share, per_pair)
    total = fixed + per_pair * args.pairs
    print(f"  {'sae_circuits, all':24s} {total[0]:8.1f} ({total[1]:.1f})")
    some = pairs[: args.patched]
    exactness(model)  # measured once per process
    for name in ("activation_patching", "eap_ig"):
        cost = np.array(timed(lambda name=name: methods.patching(name, model, some, params, 0))[:2]) / args.patched
        whole = cost * args.pairs
        print(
            f"  {name:24s} {whole[0]:8.1f} ({whole[1]:.1f})  from {args.patched} pairs; "
            f"{whole[0] / total[0]:.1f} ({whole[1] / total[1]:.1f}) times sae_circuits"
        )
        gain = cost - per_pair
        if (gain <= 0).any():
            print("    no more per pair than reading the activations, so the method is never faster")
        else:
            print(f"    equal at {fixed[0] / gain[0]:.0f} ({fixed[1] / gain[1]:.0f}) pairs; below, this is faster")


if __name__ == "__main__":
    main()
