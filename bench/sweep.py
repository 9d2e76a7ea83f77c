"""Speed of an all-head sweep against one forward per head, beside what the FLOP count says is there to be gained.

Random weights; the cost does not depend on them. For a 12-layer, 12-head, d_model 768 GPT-2 and a 16-layer GQA
Llama, 16 prompts of 32 tokens, every head zeroed (ours, a) or patched from a second run (ours, b):

    ours    `workbench.primitives.sweep.sweep`: residual fork, batched
    (a)     one hooked TransformerBridge forward per head, all logits, under no_grad
    (b)     `transformer_lens.patching`: one forward per head through `generic_activation_patch` (head output, all
            positions), under no_grad

Costs add up over heads, so each is timed on some and extrapolated: (a) and (b) on `--cells` of them spread over the
layers, ours on `--per-layer` heads of every layer, the base run (a sweep of one head of the last layer) timed apart
and counted once. `--full` times all heads everywhere. The exactness check, once per loaded model, is timed apart.
Contestants take turns for `--repeats` rounds, and processor seconds stand beside wall seconds, because other jobs may
share the machine. Every contestant's numbers are compared with ours. Then ours alone over sequence length and depth,
against the FLOP model. Each thread count runs in a fresh process.

    python bench/sweep.py [--threads 1 2] [--cells 8] [--per-layer 2] [--repeats 1] [--full] [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

N_PROMPTS, N_POS = 16, 32
ANSWER, WRONG = 1000, 2000


def gpt2(n_layers: int = 12, d_model: int = 768, n_heads: int = 12, n_ctx: int = 1024):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=n_layers, n_embd=d_model, n_head=n_heads, n_positions=n_ctx, bos_token_id=0, eos_token_id=0
    )
    return loaded(GPT2LMHeadModel, config, f"gpt2 {n_layers} layers, {n_heads} heads, d {d_model}")


def llama(n_layers: int = 16, d_model: int = 768, n_heads: int = 12, n_kv: int = 4):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=d_model,
        intermediate_size=2048,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv,
        max_position_embeddings=2048,
    )
    return loaded(LlamaForCausalLM, config, f"llama {n_layers} layers, {n_heads} heads / {n_kv} kv, d {d_model}")


def loaded(model_class, config, name: str):
    import torch

    from workbench.models import load_model

    torch.manual_seed(0)
    config._attn_implementation = "eager"
    hf = model_class(config).eval()
    hf.config.architectures = [model_class.__name__]
    return load_model(hf, tokenizer=None, name=name, device="cpu")


def compare(model, args) -> None:
    import torch

    from workbench.primitives.sweep import Edit, Readout, Shape, all_heads, estimate, exactness, sweep

    n_pos = N_POS
    generator = torch.Generator().manual_seed(1)
    vocab = int(model.bridge.cfg.d_vocab)
    clean, corrupted = (torch.randint(1, vocab, (args.prompts, n_pos), generator=generator) for _ in range(2))
    answer, wrong = torch.full((args.prompts,), ANSWER), torch.full((args.prompts,), WRONG)
    everything = all_heads(model)
    units = [unit for unit in everything if args.full or unit[0][1] < args.per_layer]
    cells = spread(units, len(units) if args.full else args.cells)
    readout = Readout("logit_diff", answer, wrong)

    started = time.perf_counter()
    way = exactness(model)
    checked = time.perf_counter() - started

    def ours(kind: str, some=units):
        other = clean if kind == "patch" else None
        return sweep(model, corrupted, units=some, edit=Edit(kind), metric=readout, other=other)

    def hooked_forwards() -> list:
        found = []
        with torch.no_grad():
            for ((layer, head),) in cells:

                def zero(z, hook, head=head):  # noqa: ARG001
                    z[:, :, head] = 0
                    return z

                logits = model.bridge.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)])
                found.append(logits[:, -1, ANSWER] - logits[:, -1, WRONG])
        return found

    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.n_layers)]
    with torch.no_grad():
        cache = model.bridge.run_with_cache(clean, names_filter=names)[1]

    def patched_forwards() -> list:
        return tl_patching(model, corrupted, cache, cells)

    contestants = {
        "ours (zero)": lambda: ours("zero"),
        "ours (patch)": lambda: ours("patch"),
        "base (zero)": lambda: ours("zero", everything[-1:]),
        "base (patch)": lambda: ours("patch", everything[-1:]),
        "(a) hooked forwards": hooked_forwards,
        "(b) tl.patching": patched_forwards,
    }
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    busy: dict[str, list[float]] = {name: [] for name in contestants}  # processor seconds: others' load does not count
    results = {}
    sweep(model, corrupted[:2], units=units[:2], edit="zero", metric=readout)  # warm up
    for _ in range(args.repeats):
        for name, run in contestants.items():
            started, began = time.perf_counter(), time.process_time()
            results[name] = run()
            wall[name].append(time.perf_counter() - started)
            busy[name].append(time.process_time() - began)

    zero, patch = results["ours (zero)"], results["ours (patch)"]
    theirs_on, ours_on = len(everything) / len(cells), len(everything) / len(units)
    a_flops = args.prompts * Shape.of(model).full(n_pos, logits_at=n_pos) * len(cells)
    title = f"{model.name}, {args.prompts} prompts x {n_pos} tokens, {len(everything)} heads"
    print(f"\n{title}, {torch.get_num_threads()} thread(s), median of {args.repeats} rounds")
    print(f"  fork: {way.way}, checked in {checked:.2f} s; {zero.notes or 'no notes'}")
    print(f"  planned: {estimate(model, corrupted, units=everything, edit='zero')}")
    print(f"  timed on: ours {len(units)}, (a) and (b) {len(cells)} of {len(everything)} heads; extrapolated to all")
    print(f"  {'':26}{'theory':>7} |{'wall s':>8}{'ours s':>8}{'gain':>7}{'share':>7} |", end="")
    print(f"{'cpu s':>8}{'ours s':>8}{'gain':>7}{'share':>7} |{'max diff':>9}")
    picked = [units.index(cell) for cell in cells]
    for theirs, ours_name, result in (
        ("(a) hooked forwards", "ours (zero)", zero),
        ("(b) tl.patching", "ours (patch)", patch),
    ):
        kind = ours_name.removeprefix("ours ").strip("()")
        theory = estimate(model, corrupted, units=everything, edit=kind, timed=False).speedup
        line = f"  {theirs + ' / ' + ours_name.removeprefix('ours '):26}{theory:6.2f}x |"
        for seconds in (wall, busy):
            other = statistics.median(seconds[theirs]) * theirs_on
            once = statistics.median(seconds[ours_name.replace("ours", "base")])
            mine = once + max(statistics.median(seconds[ours_name]) - once, 0) * ours_on
            line += f"{other:8.2f}{mine:8.2f}{other / mine:6.2f}x{other / mine / theory:7.0%} |"
        expected = torch.stack(results[theirs]).double().numpy()
        print(line + f"{abs(expected - result.values[picked]).max():9.1e}")
    took = statistics.median(busy["ours (zero)"])
    speeds = zero.cost.flops / took / 1e9, a_flops / statistics.median(busy["(a) hooked forwards"]) / 1e9
    print(
        f"  ours {args.prompts * len(units) / statistics.median(wall['ours (zero)']):.0f} edited prompts/s (wall), "
        f"{speeds[0]:.1f} GFLOP per cpu second against {speeds[1]:.1f} of (a)"
    )
    for name in ("ours (zero)", "(a) hooked forwards"):
        print(f"  rounds of {name}: {', '.join(f'{t:.2f}' for t in wall[name])} s wall, as timed", flush=True)


def tl_patching(model, corrupted, cache, cells) -> list:
    """The all-position head-output patch of `transformer_lens.patching`, for some heads."""
    import pandas as pd
    import torch
    from transformer_lens import patching

    found = []

    def metric(logits):
        values = logits[:, -1, ANSWER] - logits[:, -1, WRONG]
        found.append(values)
        return values.mean()

    frame = pd.DataFrame([{"layer": layer, "head": head} for ((layer, head),) in cells])
    with torch.no_grad():
        patching.generic_activation_patch(
            model=model.bridge,
            corrupted_tokens=corrupted,
            clean_cache=cache,
            patching_metric=metric,
            patch_setter=patching.layer_head_vector_patch_setter,
            activation_name="z",
            index_df=frame,
        )
    return found[-len(cells) :]


def scaling(args) -> None:
    """Ours alone: does the time grow as the FLOPs do?"""
    import torch

    from workbench.primitives.sweep import Edit, Readout, all_heads, sweep

    print(
        f"\nscaling of ours, zero, d 256, 4 heads, {torch.get_num_threads()} thread(s): seconds against the FLOP model"
    )
    print(f"  {'layers':>6}{'tokens':>8}{'heads':>7}{'cpu s':>9}{'GFLOPs':>9}{'GFLOP/s':>9}{'theory':>8}")
    lengths = (32, 64, 128) if args.quick else (32, 64, 128, 256, 512, 1024)
    depths = (4, 8) if args.quick else (4, 8, 16, 32)
    rows = [(8, n_pos) for n_pos in lengths] + [(n_layers, 32) for n_layers in depths]
    for n_layers, n_pos in rows:
        model = gpt2(n_layers, 256, 4)
        n = max(1, 256 // n_pos) if n_pos > 32 else 8
        tokens = torch.randint(1, 50000, (n, n_pos), generator=torch.Generator().manual_seed(2))
        readout = Readout("logit_diff", torch.full((n,), ANSWER), torch.full((n,), WRONG))
        units = all_heads(model)
        best, result = float("inf"), None
        for _ in range(2):
            began = time.process_time()
            result = sweep(model, tokens, units=units, edit=Edit("zero"), metric=readout)
            best = min(best, time.process_time() - began)
            if best > 1:
                break
        assert result is not None
        per_prompt = result.cost.flops / 1e9
        print(
            f"  {n_layers:6}{n_pos:8}{len(units):7}{best:9.3f}{per_prompt:9.2f}{per_prompt / best:9.1f}"
            f"{result.cost.speedup:7.2f}x",
            flush=True,
        )


def spread(units: list, count: int) -> list:
    """`count` units at equal steps."""
    count = max(1, min(count, len(units)))
    return [units[i * len(units) // count] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", type=int, default=8, help="heads that (a) and (b) are timed on")
    parser.add_argument("--per-layer", type=int, default=2, help="heads of each layer that ours is timed on")
    parser.add_argument("--full", action="store_true", help="time every head")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=N_PROMPTS)
    parser.add_argument("--quick", action="store_true", help="smaller models, one round")
    parser.add_argument("--part", choices=["compare", "scaling", "all"], default="all")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is None:
        for threads in args.threads:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--worker", str(threads)], env=environment, check=True
            )
        return
    import torch

    torch.set_num_threads(args.worker)
    if args.part != "scaling":
        for model in (gpt2(4), llama(4)) if args.quick else (gpt2(), llama()):
            compare(model, args)
    if args.part != "compare" and args.worker == min(args.threads):
        scaling(args)


if __name__ == "__main__":
    main()
