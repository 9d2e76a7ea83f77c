"""Every analysis on a model of a size, with time and memory: what goes through, and what it takes.

    python bench/large.py --size 7b --folder /tmp/large --device cuda -o table.md     # or --device cpu

1. A checkpoint with RANDOM weights in a known shape is made, once, in `--folder` (`large_checkpoint`; 7b: 13.5 GiB).
2. Its memory is estimated from its headers, then it is loaded and probed.
3. Every registered analysis runs on a few short prompts, one after the other in this process: seconds, and the most
   memory it held above the loaded model. `SMALLER` says where less than every head is asked for.
4. What came back is looked at: numbers finite, how many heads have a score, and which statuses the others have.

5. Activations go to disk under a quarter of the memory they need (`--spill TOKENS`), and one long prompt is scored
   (`--long TOKENS`, on the first `--long-layers` layers).

It measures machinery and finds nothing. Memory is what the process allocated (`held`), without weights that are mapped
from their file. Analyses of images are left out: this model reads text. With `-o` the table is written after every row.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples live with the tests

from held import Held, held
from large_checkpoint import SHAPES, checkpoint

# What is asked for beyond the contract suite's quick parameters, so that a CPU can do it: kv groups instead of heads,
# no random controls, one stage of a search, autoencoders of 512 features. A GPU runs the same.
SMALLER: dict[str, dict[str, Any]] = {
    "ablation": {"unit": "kv_group", "controls": 0},
    "activation_patching": {"component": "v", "controls": 0, "by_position": []},
    "attribution": {"level": "edge", "steps": 2, "spot_check": 2},
    "circuit": {
        "method": "attribution",
        "steps": 2,
        "roles": True,
        "faithfulness": {"draws": 1, "sizes": [0.1, 1], "minimality": False},
    },
    "overlap": {"method": "attribution", "draws": 1},
    "path_patching": {"mlps": "freeze", "edges": False},
    "retrieval": {
        "max_new_tokens": 2,
        "causal": {"ks": [1], "draws": 1, "samples": 1, "kinds": ["zero"], "scopes": ["decode"]},
    },
    "sae_circuits": {
        "seeds": 1,
        "methods": ["mean_difference", "norm", "layer_index", "attribution_patching"],
    },
    "sae_features": {"train": {"steps": 20, "batch": 8, "k": 4, "d_sae": 512}, "circuit": None, "ablate": None},
    "sae_train": {"train": {"steps": 20, "batch": 8, "k": 4, "d_sae": 512}, "ablate": None},
    "sahara": {"size": 1, "controls": 0, "ablation": "uniform_k", "validation": None},
    "ships": {"controls": 0, "ablation": "uniform_k", "validation": None},
}
EXAMPLES = {"contrast": 4}  # of each class: as many as there are folds to hold out, twice


@dataclass
class Table:
    """Markdown that grows by a row at a time."""

    head: list[str]
    file: Path | None
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        self.lines.append("| " + " | ".join(cells) + " |")
        print(self.lines[-1], flush=True)
        self.write()

    def measured(self, what: str, on: str, took: Held | None, said: str) -> None:
        numbers = (f"{took.seconds:.1f}", f"{took.cpu_seconds:.1f}", gib(took.peak)) if took else ("-", "-", "-")
        self.add(what, on, *numbers, said)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)
        self.write()

    def write(self) -> None:
        if self.file is not None:
            rule = "|" + "---|" * len(self.head)
            body = ["| " + " | ".join(self.head) + " |", rule, *self.lines]
            self.file.write_text("\n\n".join(["\n".join(self.notes), "\n".join(body)]) + "\n", encoding="utf-8")


def gib(n: float) -> str:
    return f"{n / 2**30:.2f}"


def settings(name: str) -> dict[str, Any]:
    """Parameters of an analysis: the contract suite's quick ones, and less where `SMALLER` says so."""
    from tests.analyses.examples import QUICK

    return {**QUICK[name], **SMALLER.get(name, {})}


def data_of(model: Any, kind: str, prompts: int, tokens: int) -> Any:
    from tests.analyses.examples import data_block
    from workbench import tasks

    words = [word for word in model.tokenizer.get_vocab() if word.isalnum() and word not in ("cat", "dog")]
    return tasks.resolve(model, data_block(kind, EXAMPLES.get(kind, prompts), length=tokens, words=sorted(words)))


def verdict(result: Any) -> str:
    """How many heads have a score, the statuses of the others, and what is wrong with the numbers."""
    import numpy as np

    heads = result.heads
    scored, status = np.isfinite(heads["score"]), heads["status"]
    said = [f"{int(scored.sum())} of {len(scored)} scored"]
    said += [f"{int((status == word).sum())} {word}" for word in sorted(set(status[~scored]))]
    wrong = [name for name, values in result.arrays.items() if values.dtype.kind == "f" and np.isinf(values).any()]
    if bool((scored != (status == "ok")).any()):
        wrong.append("status")
    return ", ".join(said) + ("" if not wrong else f"; NOT SANE: {', '.join(wrong)}")


def measure(model: Any, name: str, prompts: int, tokens: int, device: str) -> tuple[str, Held | None, str]:
    """What one analysis ran on, what it took, and what came back."""
    from workbench import analyses

    analysis = analyses.get(name)
    if analysis.data_kind == "images":
        return "-", None, "not run: it needs images"
    data = data_of(model, analysis.data_kind, prompts, tokens)
    params = analysis.parse(settings(name))
    kept: list[str] = []
    with held(device) as took:
        try:
            kept.append(verdict(analysis(model, data, params, seed=0)))
        except Exception as error:  # one that fails is a line of the table, and the others still run
            kept.append(f"FAILED: {type(error).__name__}: {error}".replace("\n", " ")[:300])
    return f"{len(data)} {analysis.data_kind}", took, kept[0]


def spilled(model: Any, tokens: int, device: str) -> tuple[str, Held, str]:
    """z and attention patterns of every layer, a quarter of them in memory."""
    import torch

    from workbench.primitives import capture
    from workbench.primitives.spill import Spill

    wanted = [*capture.names(model, "z"), *capture.names(model, "pattern")]
    ids = torch.randint(4, model.bridge.cfg.d_vocab, (1, tokens), generator=torch.Generator().manual_seed(0))
    width = model.n_layers * tokens * model.n_heads * (model.d_head + tokens)
    whole = width * torch.empty(0, dtype=model.dtype).element_size()
    with held(device) as took:
        spill = Spill(whole // 4)
        kept = capture.capture(model, ids, wanted, spill=spill)
    sizes = sum(file.stat().st_size for file in spill.files)
    whole = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    said = f"{gib(whole)} GiB captured: {gib(spill.held)} in memory, {gib(sizes)} in {len(spill.files)} files"
    return f"{tokens} tokens", took, said


def long_prompt(path: Path, args: argparse.Namespace) -> tuple[str, Held, str]:
    """Retrieval scores of one prompt, on the first layers of the checkpoint."""
    import torch
    from retrieval import ours, samples
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import workbench as wb

    hf = AutoModelForCausalLM.from_pretrained(
        path, num_hidden_layers=args.long_layers, dtype=getattr(torch, args.dtype), attn_implementation="eager"
    ).to(args.device)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = wb.load_model(hf, tokenizer=tokenizer, name="long", probe=False)
    top = SHAPES[args.size].vocabulary
    ours(model, samples(64, 1, vocabulary=top), 2)  # what is made once per process is not this prompt's
    with held(args.device) as took:
        (scores,) = ours(model, samples(args.long, 1, vocabulary=top), 4)
    return f"{args.long} tokens", took, f"{scores.size} heads of {model.n_layers} layers scored, 4 steps decoded"


def load(path: Path, args: argparse.Namespace, table: Table) -> Any:
    """The model, probed; the table's opening says what it is, where it ran and what loading took."""
    import workbench as wb
    from workbench.models.probe_cache import cache_file, cached_probe

    importlib.import_module("transformer_lens.model_bridge")  # libraries are not the model's time
    expected = wb.models.estimate_memory(path, dtype=args.dtype, quantize=args.quantize).weights
    with held(args.device) as loading:
        model = wb.load_model(path, dtype=args.dtype, device=args.device, quantize=args.quantize, probe=False)
    weights = stored_bytes(model)
    known = cache_file(model).exists()
    with held(args.device) as probing:
        model.capabilities = cached_probe(model)
    shape, kind = SHAPES[args.size], " in ".join(filter(None, [args.quantize, args.dtype]))
    table.note(
        f"`bench/large.py --size {args.size}`: random weights in the shape of {shape.like}, {shape.layers} layers x "
        f"{shape.heads} heads ({shape.kv_heads} kv), d_model {shape.d_model}, {shape.n_weights:,} weights, {kind}; "
        f"{args.prompts} prompts of {args.tokens} words; {where(args.device)}; {datetime.now(timezone.utc):%Y-%m-%d}."
    )
    mapped = weights - loading.left if args.device == "cpu" else 0
    table.note(
        f"Weights: {gib(expected)} GiB estimated, {gib(weights)} GiB measured"
        + (f", {gib(mapped)} GiB of them mapped from their file" if mapped > 2**20 else "")
        + f". Loading with the fingerprint: {loading.text}. Probe: {'in the cache' if known else probing.text}; "
        f"lacking: {', '.join(model.capabilities.missing) or 'nothing'}."
    )
    return model


def stored_bytes(model: Any) -> int:
    """Of parameters and buffers, shared ones once, with the scales that quantised weights keep beside them."""
    import torch

    hf = model.bridge.original_model
    found = {}
    for tensor in [*hf.parameters(), *hf.buffers()]:
        state = getattr(tensor, "quant_state", None)
        beside = [x for x in vars(state).values() if isinstance(x, torch.Tensor)] if state is not None else []
        beside += [x for x in (getattr(tensor, "SCB", None),) if isinstance(x, torch.Tensor)]
        for part in [tensor, *beside]:
            storage = part.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def where(device: str) -> str:
    import torch

    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    from workbench import analyses

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint; not inside the repository")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--quantize", choices=["8bit", "4bit"])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8, help="words of a prompt; BOS comes on top")
    parser.add_argument("--only", nargs="*", default=analyses.names(), metavar="ANALYSIS")
    parser.add_argument("--spill", type=int, default=512, metavar="TOKENS", help="0 leaves it out")
    parser.add_argument("--long", type=int, default=0, metavar="TOKENS", help="0, the default, leaves it out")
    parser.add_argument("--long-layers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    table = Table(["what", "on", "seconds", "CPU seconds", "GiB above the model", "came back"], args.output)
    path = checkpoint(args.folder, args.size)
    model = load(path, args, table)
    for name in args.only:
        table.measured(f"`{name}`", *measure(model, name, args.prompts, args.tokens, args.device))
    if args.spill:
        table.measured("activations to disk", *spilled(model, args.spill, args.device))
    if args.long:
        del model
        table.measured("retrieval scores", *long_prompt(path, args))


if __name__ == "__main__":
    main()
