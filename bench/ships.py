"""Speed of Ships and Sahara against the reference's loop: one prompt, one head, one full forward.

Random weights; the cost does not depend on them. 32 prompts of 32 tokens on a 12-layer, 12-head, d_model 768 model:

    ours    `analyses.ships`: the residual fork, heads x prompts batched; Sahara the same with a group underneath
    loop    plain transformers, batch 1: the head's queries zeroed by a forward hook, a forward with all logits, KL

Costs add up over heads, so both are timed on some and extrapolated: the loop on `--cells` heads spread over the layers
and `--loop-prompts` of the prompts, ours on `--per-layer` heads of every layer with all prompts, less a base run that
is counted once. Their KLs are compared where both have them. Contestants take turns for `--repeats` rounds, the best
counts, and processor seconds stand beside wall seconds, because other jobs may share the machine. Then every step of
Sahara, its floating-point operations per second beside those of step 1: equal when it costs what the FLOP model says.

    python bench/ships.py [--threads 2] [--model llama] [--cells 4] [--loop-prompts 8] [--per-layer 1] [--repeats 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

N_PROMPTS, N_POS = 32, 32


def build(kind: str):
    """A random model with its raw Hugging Face twin."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    from workbench.models import load_model

    torch.manual_seed(0)
    config: Any
    cls: Any
    if kind == "gpt2":
        config, cls = GPT2Config(n_layer=12, n_embd=768, n_head=12, bos_token_id=0, eos_token_id=0), GPT2LMHeadModel
    else:
        cls = LlamaForCausalLM
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=12,
        )
    config._attn_implementation = "eager"
    config.initializer_range = 0.1  # with the usual 0.02 attention is even anyhow, and a KL is all rounding
    hf, raw = cls(config).eval(), cls(config).eval()
    raw.load_state_dict(hf.state_dict())
    hf.config.architectures = [cls.__name__]
    return load_model(hf, tokenizer=None, name=f"{kind} 12 layers, d 768", device="cpu"), raw


def timed(work: Callable) -> tuple[float, float, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def query_level(model, raw, tokens, args) -> None:
    import numpy as np

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the reference twin lives with the tests
    from tests.reference import ships as slow
    from workbench.primitives.sweep import Edit, Readout, all_heads, estimate, exactness, sweep

    exactness(model)
    everything = all_heads(model)
    units = [unit for unit in everything if unit[0][1] < args.per_layer]
    step = max(1, len(units) // args.cells)
    cells = [unit[0] for unit in units[step // 2 :: step]][: args.cells]
    prompts = tokens[: args.loop_prompts].tolist()

    def ours(some):
        return sweep(model, tokens, units=some, edit=Edit("uniform"), metric=Readout("kl"))

    jobs = {
        "ours": lambda: ours(units),
        "base": lambda: ours(everything[-1:]),
        "loop": lambda: slow.ships(raw, prompts, cells),
    }
    best: dict[str, tuple[float, float]] = {}
    results: dict[str, object] = {}
    for _ in range(args.repeats):
        for name, work in jobs.items():
            wall, cpu, results[name] = timed(work)
            best[name] = min(best.get(name, (wall, cpu)), (wall, cpu))
    values = results["ours"].values  # type: ignore[attr-defined]
    index = {unit[0]: number for number, unit in enumerate(units)}
    worst = max(
        float(np.max(np.abs(values[index[head], : args.loop_prompts] - np.array(kl)) / np.array(kl)))
        for head, kl in results["loop"].items()  # type: ignore[attr-defined]
    )
    share = len(units) / len(everything)
    loop_forwards = len(prompts) * (len(cells) + 1)
    all_forwards = len(tokens) * (len(everything) + 1)
    planned = estimate(model, tokens, units=everything, edit="uniform", timed=False)
    print(
        f"  ours timed on {len(units)} of {len(everything)} heads, "
        f"the loop on {loop_forwards} of {all_forwards} forwards"
    )
    for i, clock in enumerate(("wall", "processor")):
        mine = best["base"][i] + (best["ours"][i] - best["base"][i]) / share
        theirs = best["loop"][i] * all_forwards / loop_forwards
        print(f"  {clock:9s} seconds, all heads: ours {mine:8.1f}   loop {theirs:8.1f}   {theirs / mine:.2f}x")
    print(f"  FLOPs: {planned.speedup:.2f}x fewer; largest relative difference of a KL {worst:.1e}")


def dataset_level(model, tokens, args) -> None:
    """Sahara's steps, S = 3, on the same share of heads."""
    from workbench.analyses.ships.ablations import Ablation
    from workbench.analyses.ships.forks import Forks
    from workbench.primitives.sweep import all_heads

    units = [unit for unit in all_heads(model) if unit[0][1] < args.per_layer]
    group: list[tuple[int, int]] = []
    first = None
    for step in range(1, 4):
        forks = Forks(model, tokens, None, Ablation("uniform"), group=group)
        left = [unit for unit in units if unit[0] not in group]
        numbers = range(len(left))
        tries = [
            timed(lambda forks=forks, left=left, numbers=numbers: forks.vectors(left, numbers))
            for _ in range(args.repeats)
        ]
        wall, cpu = (min(found[i] for found in tries) for i in (0, 1))  # type: ignore[type-var]
        flops = forks.flops(left)
        rate = flops / cpu / 1e9
        first = first or rate
        full = len(left) * len(tokens) * forks.shape.full(tokens.shape[1], logits_at=tokens.shape[1])
        print(
            f"  step {step}: {len(left)} candidates, {wall:.1f} s wall, {cpu:.1f} s processor, {flops:.3g} FLOPs "
            f"({full / flops:.2f}x fewer than full forwards), {rate:.1f} GFLOP/s, {rate / first:.2f} of step 1"
        )
        group.append((4 * (step - 1) + 2, 0))  # heads in low, middle and high layers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", choices=("gpt2", "llama"), default="gpt2")
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--loop-prompts", type=int, default=8)
    parser.add_argument("--per-layer", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    model, raw = build(args.model)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 30000, (N_PROMPTS, N_POS), generator=generator)
    print(f"{model.name}, {N_PROMPTS} prompts of {N_POS} tokens, {args.threads} thread(s), float32, CPU")
    query_level(model, raw, tokens, args)
    print("Sahara, S = 3")
    dataset_level(model, tokens, args)


if __name__ == "__main__":
    main()
