"""Speed and memory of retrieval scoring against step-by-step decoding with `output_attentions`.

Random weights in GPT-2's shape (12 layers, 12 heads, d_model 768), random haystack tokens: the cost does not depend on
what the tokens say. One run prints, for the same samples and the same number of decoding steps,

    ours            prefix-shared chunked prefill, batched cached decoding, rows reduced as they pass
    step by step    the whole sequence again at every step, `output_attentions=True` (the obviously right reference)
    cached steps    one prefill per sample, then cached steps with `output_attentions=True` (as the paper's code)

and checks that all three give the same scores. The samples are one haystack with the needle at as many depths; times
are per sample, and step by step, which is slow, runs on `--slow-samples` of them. Peak memory above the loaded
model is sampled every few milliseconds, in a fresh process per context length.

    python bench/retrieval.py [--length 1024] [--samples 10] [--steps 16] [--threads 2] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the reference twin lives with the tests

NEEDLE, QUESTION = 8, 16


def build(n_ctx: int, n_layers: int):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=n_layers, n_positions=n_ctx, attn_implementation="eager", bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def samples(length: int, count: int, *, vocabulary: int = 50000):
    """One haystack, `count` depths, a needle and a question: the shape of a depth sweep."""
    import numpy as np

    from workbench.tasks.samples import NeedleSample

    rng = np.random.default_rng(0)
    haystack, needle, question = (rng.integers(1, vocabulary, n).tolist() for n in (length, NEEDLE, QUESTION))
    made = []
    for i in range(count):
        at = 1 + int((length - NEEDLE - QUESTION - 1) * i / max(count - 1, 1))
        rest = length - at - NEEDLE - QUESTION
        tokens = haystack[:at] + needle + haystack[at : at + rest] + question
        made.append(NeedleSample(f"s{i}", tuple(tokens), (at, at + NEEDLE), "needle", (length - QUESTION, length), "n"))
    return made


def ours(model, data, steps: int):
    from workbench.analyses.retrieval.params import RetrievalParams
    from workbench.analyses.retrieval.score import Copies, wu
    from workbench.analyses.retrieval.trace import traces

    params = RetrievalParams(max_new_tokens=steps, controls=0)
    scores = {}
    for i, found in traces(model, data, params, [None] * len(data)):
        scores[i] = wu(Copies.find(found.top_keys, found.generated, data[i].tokens), data[i].tokens, data[i].needle)
    return [scores[i] for i in range(len(data))]


def reference(hf, data, steps: int, *, cached: bool):
    from tests.reference.retrieval import step_by_step, wu_scores

    stops = {hf.config.eos_token_id}
    scores = []
    for s in data:
        emitted, rows = step_by_step(hf, s.tokens, max_new_tokens=steps, stops=stops, cached=cached)
        scores.append(wu_scores(s.tokens, s.needle, emitted, rows))
    return scores


def timed(run, *args, **kwargs):
    start = time.perf_counter()
    return run(*args, **kwargs), time.perf_counter() - start


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_of(run, *args) -> tuple[float, float]:
    """Seconds of `run(*args)` and the most MiB it added to the process, sampled from another thread."""
    before, peak, done = resident_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            peak[0] = max(peak[0], resident_mib() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, seconds = timed(run, *args)
    done.set()
    watcher.join()
    return seconds, peak[0]


def memory_child(length: int, steps: int, threads: int) -> None:
    import torch

    import workbench as wb

    torch.set_num_threads(threads)
    model = wb.load_model(build(length + steps, 12), probe=False)
    data = samples(length, 1)
    ours(model, samples(64, 1), 2)  # allocator and library start-up are not the algorithm's memory
    seconds, extra = peak_of(ours, model, data, steps)
    print(json.dumps({"length": length, "extra": extra, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--slow-samples", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small model, short contexts: checks that the script runs")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        memory_child(args.memory_of, args.steps, args.threads)
        return

    import copy

    import numpy as np
    import torch

    import workbench as wb

    torch.set_num_threads(args.threads)
    if args.quick:
        args.length, args.samples, args.steps = 128, 4, 3
    hf = build(args.length + args.steps, 2 if args.quick else 12)
    model = wb.load_model(copy.deepcopy(hf), probe=False)
    data = samples(args.length, args.samples)
    fast, fast_s = timed(ours, model, data, args.steps)
    cached, cached_s = timed(reference, hf, data, args.steps, cached=True)
    few = data[:: max(len(data) // args.slow_samples, 1)][: args.slow_samples]
    slow, slow_s = timed(reference, hf, few, args.steps, cached=False)
    same = [fast[data.index(s)] for s in few]
    agree = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in [(same, slow), (fast, cached)])
    shape = f"{model.n_layers} layers, {model.n_heads} heads, d_model {model.d_model}"
    print(f"{shape}; {args.samples} samples of {args.length} tokens, {args.steps} steps, {args.threads} thread(s)")
    fast_s, cached_s, slow_s = fast_s / len(data), cached_s / len(data), slow_s / len(few)
    print(f"  ours          {fast_s:8.2f} s per sample")
    print(f"  step by step  {slow_s:8.2f} s per sample   ratio {slow_s / fast_s:6.1f}   ({len(few)} samples)")
    print(f"  cached steps  {cached_s:8.2f} s per sample   ratio {cached_s / fast_s:6.1f}")
    print(f"  largest score difference {agree:.1e}")
    if args.quick:
        return
    print("peak memory above the loaded model, one sample (a fresh process each):")
    for length in (1024, 2048, 4096, 8192):
        command = [sys.executable, __file__, "--memory-of", str(length), "--steps", "4", "--threads", str(args.threads)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        extra = row["extra"]
        kib = extra / length * 1024
        print(f"  {length:5d} tokens  {extra:8.0f} MiB   {kib:6.0f} KiB per token   {row['seconds']:6.1f} s")


if __name__ == "__main__":
    main()
