"""Speed of a whole path-patching discovery against naive path patching, which runs the model three times per question.

Random weights, a 12-layer, 12-head, d_model 768 GPT-2; prompts of random tokens. Both search the same circuit: the rule
lets in the strongest fraction of heads in every stage, for as many stages as given, under one corruption.

    ours    `analyses.circuit.discover.path_patching`, single receivers of every stage (q, k, v of each head) included
    naive   for every sender and question: corrupted run, run with all heads frozen but the sender, run with the
            receivers replaced (the clean run once for all); hooks on the bridge, all prompts in one batch, logits at
            the last column only, no gradients

Naive is timed on a share of its questions (`--cells`, spread over the layers and questions; stated in the output) and
extrapolated by the number of questions that ours answered. Where both answer, numbers are compared. Processor seconds
stand beside wall seconds, because other jobs may share the machine; the ratio is of processor seconds.

    python bench/circuit.py [--prompts 2] [--length 12] [--stages 2] [--top 0.02] [--cells 8]
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["HF_HUB_OFFLINE"] = "1"


def gpt2():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from workbench.models import load_model

    torch.manual_seed(0)
    config = GPT2Config(n_layer=12, n_embd=768, n_head=12, n_positions=256, bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"
    hf = GPT2LMHeadModel(config).eval()
    hf.config.architectures = ["GPT2LMHeadModel"]
    return load_model(hf, tokenizer=None, name="gpt2 12 layers, 12 heads, d 768")


def pairs(n: int, length: int):
    import torch

    from workbench.tasks import PairDataset, PairSample

    g = torch.Generator().manual_seed(1)

    def row() -> tuple[int, ...]:
        return tuple(torch.randint(1, 50000, (length,), generator=g).tolist())

    return PairDataset("random", tuple(PairSample(str(i), row(), row(), 1000 + i, 2000 + i) for i in range(n)))


def naive(model, view, sender: tuple[int, int], receivers: list[str], base: dict):
    """Metric of every prompt, by three whole passes; the clean run is made once, into `base`."""
    import torch

    from workbench.primitives.forward import forward
    from workbench.primitives.hooks import hooked
    from workbench.primitives.receivers import by_layer, parse_receivers

    clean, corrupted = view.runs.base.tokens, view.runs.other.tokens
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.n_layers)]
    layer, head = sender
    heard: dict[tuple[int, str], torch.Tensor] = {}
    listeners = by_layer(parse_receivers("logits" if receivers == ["logits"] else receivers))

    def run(tokens, hooks):
        with torch.no_grad(), hooked(model, hooks, copy=False):
            return forward(model, tokens, logits_to_keep=1).logits[:, -1]

    def kept_by(store, name):
        return name, lambda value, _: store.__setitem__(name, value.clone())

    other: dict[str, torch.Tensor] = {}
    if not base:
        run(clean, [kept_by(base, name) for name in names])
    run(corrupted, [kept_by(other, names[layer])])

    def freeze(at, name):
        def edit(_value, _):
            z = base[name].clone()
            if at == layer:
                z[:, :, head] = other[name][:, :, head]
            return z

        return name, edit

    def hear(key):
        return f"blocks.{key[0]}.attn.hook_{key[1]}", lambda value, _: heard.__setitem__(key, value.clone())

    logits = run(clean, [*(hear(key) for key in listeners), *(freeze(at, name) for at, name in enumerate(names))])
    if listeners:

        def play(key):
            def edit(value, _):
                value = value.clone()
                value[:, :, listeners[key]] = heard[key][:, :, listeners[key]]
                return value

            return f"blocks.{key[0]}.attn.hook_{key[1]}", edit

        logits = run(clean, [play(key) for key in listeners])
    return view.readout(logits, torch.arange(len(clean))).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 2), ("length", 12), ("stages", 2), ("top", 0.02), ("cells", 8)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()

    import numpy as np

    from workbench import analyses
    from workbench.analyses.circuit import discover, views

    model = gpt2()
    rule = {"rule": "top", "top": args.top, "share": 0.0, "max_stages": args.stages, "ablation": None, "min_gap": 0.0}
    params = analyses.get("circuit").parse(rule)
    seen = views.make(model, pairs(args.prompts, args.length), params)
    view = seen.all[0]
    view.runs.patch({"m": view.readout}, receivers="1.0.q", senders=["0.0"])  # exactness is measured once per model

    wall, cpu = time.perf_counter(), time.process_time()
    found = discover.path_patching(model, seen, params)
    ours = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    questions = []  # everything that ours answered: (sender, question)
    for name, share in found.share.items():
        questions += [(s, name) for s in np.flatnonzero(~np.isnan(share[0]).all(axis=1))]
    single = [(s, name) for s, name in questions if name not in found.joint]
    picked = [single[i] for i in np.linspace(0, len(single) - 1, min(args.cells, len(single))).astype(int)]
    base: dict = {}
    wall, cpu, worst = time.perf_counter(), time.process_time(), 0.0
    for s, name in picked:
        layer, head = map(int, found.senders[s].split("."))
        value = view.share(naive(model, view, (layer, head), [name], base) - view.base)
        worst = max(worst, float(np.abs(value - found.share[name][0, s]).max()))
    times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(f"{model.name}: {args.prompts} pairs of {args.length} tokens, {args.stages} stages, top {args.top:.0%}")
    print(f"ours     {len(questions)} questions ({len(found.share)} receiver sets), {len(found.graph().heads())} heads")
    print(f"         {ours['wall']:.1f} s wall, {ours['cpu']:.1f} s processor")
    for key, seconds in times.items():
        whole = seconds / len(picked) * len(questions)
        share = f"{len(picked)} of {len(questions)} questions timed, {len(picked) / len(questions):.1%}"
        print(f"naive    {whole:.1f} s {key}, extrapolated ({share}): {whole / ours[key]:.1f} times ours")
    print(f"largest difference in effect where both answered: {worst:.1e} of the gap ({view.gap:.2g} logits)")


if __name__ == "__main__":
    main()
