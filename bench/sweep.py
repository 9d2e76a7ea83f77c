"""Speed of an all-head sweep against one forward per head, beside what the FLOP count says is there to be gained.

Random weights; the cost does not depend on them. For a 12-layer, 12-head, d_model 768 GPT-2 and a 16-layer GQA
Llama, 16 prompts of 32 tokens, every head zeroed (ours, a) or patched from a second run (ours, b):

    ours    `workbench.primitives.sweep.sweep`: residual fork, batched
    (a)     one hooked TransformerBridge forward per head, all logits, under no_grad
    (b)     `transformer_lens.patching`: one forward per head through `generic_activation_patch` (head output, all
            positions), under no_grad

    theory  FLOPs of one forward per head over FLOPs of the sweep, all heads
    share   FLOPs per second of ours over those of the other; gain = theory x share

FLOPs add up over heads, so each round times some of them: (a) and (b) `--cells` heads, ours two heads in every third
layer and the base run, shifted by one from round to round. Contestants take turns within a round; medians and, in
brackets, the best rounds on both sides are printed. Seconds are wall seconds: processor seconds stand beside them,
because other jobs may share the machine. Numbers are compared where contestants share a head. The exactness check,
once per loaded model, is timed apart. Each thread count runs in a fresh process.

`--part scaling`: ours alone over sequence length and depth, against the FLOP model. With CUDA (or `--device cpu --tiny`
to try the code) `--part gpu`, which is on by default there: models up to 7B in bfloat16, edited prompts per second, and
the share of the machine's matrix throughput, measured on one large product.

    python bench/sweep.py [--threads 1 2] [--rounds 3] [--cells 3] [--part compare|scaling|gpu] [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"

N_PROMPTS, N_POS = 16, 32
ANSWER, WRONG = 1000, 2000
GPU_SIZES = [  # name, layers, d_model, heads, kv heads, d_mlp
    ("0.1B", 12, 768, 12, 12, 3072),
    ("1B", 16, 2048, 32, 8, 8192),
    ("7B", 32, 4096, 32, 32, 11008),
]


def gpt2(n_layers: int = 12, d_model: int = 768, n_heads: int = 12, n_ctx: int = 1024):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=n_layers, n_embd=d_model, n_head=n_heads, n_positions=n_ctx, bos_token_id=0, eos_token_id=0
    )
    return loaded(GPT2LMHeadModel, config, f"gpt2 {n_layers} layers, {n_heads} heads, d {d_model}")


def llama(n_layers: int = 16, d_model: int = 768, n_heads: int = 12, n_kv: int = 4, *, d_mlp: int = 2048, **where):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv,
        max_position_embeddings=2048,
    )
    name = f"llama {n_layers} layers, {n_heads} heads / {n_kv} kv, d {d_model}"
    return loaded(LlamaForCausalLM, config, name, **where)


def loaded(model_class, config, name: str, *, device: str = "cpu", dtype=None):
    import torch

    from workbench.models import load_model

    torch.manual_seed(0)
    config._attn_implementation = "eager"
    config.architectures = [model_class.__name__]
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or torch.float32)
        try:
            hf = model_class(config).eval()
        finally:
            torch.set_default_dtype(before)
    hf.config.architectures = [model_class.__name__]
    return load_model(hf, tokenizer=None, name=name, device=device, dtype=dtype or torch.float32)


def compare(model, args) -> None:
    import torch

    from workbench.primitives.sweep import Edit, Readout, Shape, all_heads, estimate, exactness, sweep

    generator = torch.Generator().manual_seed(1)
    vocab = int(model.bridge.cfg.d_vocab)
    clean, corrupted = (torch.randint(1, vocab, (args.prompts, N_POS), generator=generator) for _ in range(2))
    readout = Readout("logit_diff", torch.full((args.prompts,), ANSWER), torch.full((args.prompts,), WRONG))
    everything = all_heads(model)
    started = time.perf_counter()
    way = exactness(model)
    checked = time.perf_counter() - started

    def ours(kind: str, units: list):
        other = clean if kind == "patch" else None
        return sweep(model, corrupted, units=units, edit=Edit(kind), metric=readout, other=other)

    def hooked_forwards(cells: list) -> list:
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
    forward_flops = args.prompts * Shape.of(model).full(N_POS, logits_at=N_POS)
    rivals = {
        "(a) hooked forwards": ("zero", hooked_forwards),
        "(b) tl.patching": ("patch", lambda cells: tl_patching(model, corrupted, cache, cells)),
    }
    ours("zero", everything[:2])  # warm up
    hooked_forwards(everything[:1])
    speeds: dict[str, list[tuple[float, float]]] = {}  # FLOPs per wall second and per processor second
    worst = dict.fromkeys(rivals, 0.0)
    for number in range(args.rounds):
        units = [unit for unit in everything if unit[0][0] % 3 == number % 3 and unit[0][1] < 2]
        cells = spread(units, args.cells)
        for name, (kind, run) in rivals.items():
            began = time.perf_counter(), time.process_time()
            theirs = torch.stack(run(cells)).double().numpy()
            note(speeds, name, forward_flops * len(cells), began)
            began = time.perf_counter(), time.process_time()
            result = ours(kind, units)
            note(speeds, f"ours ({kind})", result.cost.flops, began)
            picked = [units.index(cell) for cell in cells]
            worst[name] = max(worst[name], abs(theirs - result.values[picked]).max())

    title = f"{model.name}, {args.prompts} prompts x {N_POS} tokens, {len(everything)} heads"
    print(f"\n{title}, {torch.get_num_threads()} thread(s), median (best) of {args.rounds} rounds")
    print(f"  fork: {way.way}, checked in {checked:.2f} s")
    print(f"  planned: {estimate(model, corrupted, units=everything, edit='zero', timed=False)}")
    head = f"{'GFLOP/s':>9}{'ours':>7}{'share':>7}{'gain':>7}{'(best)':>9}"
    print(f"  {'':30}{'theory':>7} | wall {head} | cpu {head} |{'max diff':>9}")
    for name, (kind, _) in rivals.items():
        theory = estimate(model, corrupted, units=everything, edit=kind, timed=False).speedup
        line = f"  {name + ' / ' + kind:30}{theory:6.2f}x |"
        for clock in (0, 1):
            rival, mine = ([s[clock] for s in speeds[key]] for key in (name, f"ours ({kind})"))
            share, best = statistics.median(mine) / statistics.median(rival), max(mine) / max(rival)
            line += f"{'':5}{statistics.median(rival):9.1f}{statistics.median(mine):7.1f}{share:7.0%}"
            line += f"{share * theory:6.2f}x{f'({best * theory:.2f}x)':>9} |"
        print(line + f"{worst[name]:9.1e}")
    for name, rounds in speeds.items():
        print(f"    {name}: {', '.join(f'{wall:.1f}' for wall, _ in rounds)} GFLOP per wall second", flush=True)


def note(speeds: dict, name: str, flops: float, began: tuple[float, float]) -> None:
    """Speed of what began then and has just ended."""
    wall, busy = time.perf_counter() - began[0], time.process_time() - began[1]
    speeds.setdefault(name, []).append((flops / wall / 1e9, flops / busy / 1e9))


def gpu(args) -> None:
    """Models up to 7B in bfloat16: prompts per second, and the share of what one large matrix product reaches."""
    import torch

    device, wait = args.device, torch.cuda.synchronize if args.device == "cuda" else lambda: None
    side = 128 if args.tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def timed(work) -> float:
        work()  # warm up
        wait()
        seconds = []
        for _ in range(args.rounds):
            started = time.perf_counter()
            work()
            wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def products() -> None:
        for _ in range(10):
            a @ b

    peak = 10 * 2 * side**3 / timed(products) / 1e12
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"\n{where}, bfloat16, {args.prompts} prompts x {N_POS} tokens, median of {args.rounds} rounds")
    print(f"  a product of {side} x {side} matrices: {peak:.1f} TFLOP/s")
    sizes = [("tiny", 2, 64, 4, 2, 128)] if args.tiny else GPU_SIZES
    for size in sizes:
        print(f"  {gpu_model(*size, args, timed, peak)}", flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()


def gpu_model(name: str, n_layers: int, d_model: int, n_heads: int, n_kv: int, d_mlp: int, args, timed, peak) -> str:
    """The line about one model: ours on eight heads of every layer against (a) on four heads."""
    import torch

    from workbench.primitives.sweep import Readout, Shape, all_heads, sweep

    model = llama(n_layers, d_model, n_heads, n_kv, d_mlp=d_mlp, device=args.device, dtype=torch.bfloat16)
    tokens = torch.randint(1, 30000, (args.prompts, N_POS), device=args.device)
    readout = Readout("logit_diff", torch.full((args.prompts,), ANSWER), torch.full((args.prompts,), WRONG))
    units = [unit for unit in all_heads(model) if unit[0][1] < 8]
    found: list = []
    mine = timed(lambda: found.append(sweep(model, tokens, units=units, edit="zero", metric=readout)))

    def zero(z, hook):  # noqa: ARG001
        z[:, :, 0] = 0
        return z

    def forwards() -> None:
        with torch.no_grad():
            for layer in range(4):
                hook = (f"blocks.{layer % n_layers}.attn.hook_z", zero)
                model.bridge.run_with_hooks(tokens, fwd_hooks=[hook])

    theirs = timed(forwards) / 4
    cost, edited = found[-1].cost, len(units) * args.prompts
    speed, full = cost.flops / mine / 1e12, args.prompts * Shape.of(model).full(N_POS, logits_at=N_POS)
    return (
        f"{name}, {model.n_parameters / 1e9:.2f}B parameters, {len(units)} heads by {cost.method}, {cost.rows} rows: "
        f"ours {edited / mine:.0f} edited prompts/s, {speed:.1f} TFLOP/s, {speed / peak:.0%} of peak; "
        f"(a) {args.prompts / theirs:.0f} prompts/s, {full / theirs / 1e12 / peak:.0%} of peak; "
        f"gain {theirs * len(units) / mine:.2f}x, theory {cost.speedup:.2f}x"
    )


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
    parser.add_argument("--cells", type=int, default=3, help="heads that (a) and (b) are timed on in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=N_PROMPTS)
    parser.add_argument("--quick", action="store_true", help="smaller models")
    parser.add_argument("--part", choices=["compare", "scaling", "gpu"], nargs="+")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="of the part gpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model in the part gpu")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    import torch

    parts = args.part or (["compare", "gpu"] if torch.cuda.is_available() else ["compare"])
    if args.worker is not None:
        torch.set_num_threads(args.worker)
        for model in (gpt2(4), llama(4)) if args.quick else (gpt2(), llama()):
            compare(model, args)
        return
    for threads in args.threads if "compare" in parts else ():
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--worker", str(threads)], env=environment, check=True)
    if "scaling" in parts:
        torch.set_num_threads(min(args.threads))
        scaling(args)
    if "gpu" in parts:
        gpu(args)


if __name__ == "__main__":
    main()
