"""Are planted circuits found exactly? Fresh instances of planted-ioi, which does two tasks, without noise and with it.

For every seed and noise: discovery (`analysis: circuit`, its defaults) on both tasks, held to what was written into the
weights: precision and recall of the heads, and of the edges with their q, k or v; then the Jaccard index that
`analysis: overlap` reports for the two tasks, held to the true one. Seeds are not those of the tests, nor the shipped
one's. One line per model as it comes, then the means; exit status 1 when anything is below what `--least` allows.

    python bench/planted_circuits.py [--seeds 20] [--first 5000] [--noise 0,0.05] [--pairs 16]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"
TASKS = {"ioi": "ioi", "colored": "colored_objects"}
SEARCH = {"faithfulness": None, "roles": False, "bootstrap": 20}
OVERLAP = {"controls": 0, "bootstrap": 20, "permutations": 9, "keep": None}


def truth(slots: dict[str, tuple[int, int]], task: str) -> tuple[set, set]:
    """Heads (layer, head) and edges (sender, receiver) that were written."""
    from workbench.organisms.planted.ioi_evidence import EDGES, circuit

    def receiver(role: str, part: str) -> str:
        return role if role == "logits" else "{}.{}.{}".format(*slots[role], part)

    edges = {("{}.{}".format(*slots[sender]), receiver(role, part)) for sender, role, part in EDGES[task]}
    return {slots[role] for role in circuit(task)}, edges


def one(seed: int, noise: float, n: int) -> tuple[dict[str, float], list[str]]:
    """Agreement of one instance by column, and in words what was missed or too much."""
    from workbench import analyses, stats, tasks
    from workbench.analyses.circuit import graph_of
    from workbench.models import load_model
    from workbench.organisms.planted import ioi

    hf, tokenizer, slots, _ = ioi.assemble(seed=seed, noise=noise)
    with TemporaryDirectory(prefix="workbench-planted-") as folder:
        hf.save_pretrained(Path(folder))
        tokenizer.save_pretrained(Path(folder))
        model = load_model(folder)
    row: dict[str, float] = {}
    wrong: list[str] = []
    search, overlap = analyses.get("circuit"), analyses.get("overlap")
    known: dict[str, set] = {}
    for name, task in TASKS.items():
        data = tasks.resolve(model, {"task": task, "n": n})
        graph = graph_of(search(model, data, search.parse(SEARCH), seed=0))
        heads, edges = truth(slots, task)
        known[name] = heads
        sets: list[tuple[str, set, set]] = [("heads", set(graph.heads()), heads), ("edges", set(graph.keys()), edges)]
        for what, found, true in sets:
            row[f"{name} {what} precision"] = stats.containment(found, true)
            row[f"{name} {what} recall"] = stats.containment(true, found)
            wrong += [f"{name}: {item} is not planted" for item in sorted(found - true)]
            wrong += [f"{name}: {item} was not found" for item in sorted(true - found)]
    both = tasks.resolve(model, {"tasks": {name: {"task": task, "n": n} for name, task in TASKS.items()}})
    reported = overlap(model, both, overlap.parse(OVERLAP), seed=0).summary["pairs"][0]["jaccard"]
    row["jaccard error"] = abs(reported - stats.jaccard(*known.values()))
    return row, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("seeds", 20), ("first", 5000), ("pairs", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--noise", default="0,0.05", help="lengths of a noise head's output; planted heads' are about 1"
    )
    parser.add_argument("--least", default="1,0.95", help="precision and recall allowed, by noise")
    args = parser.parse_args()

    import numpy as np

    failed = False
    for noise, least in zip(map(float, args.noise.split(",")), map(float, args.least.split(",")), strict=True):
        rows: list[dict[str, float]] = []
        started = time.process_time()
        for seed in range(args.first, args.first + args.seeds):
            row, wrong = one(seed, noise, args.pairs)
            rows.append(row)
            print(f"noise {noise} seed {seed}: {'; '.join(wrong) or 'exact'}", flush=True)
        seconds = (time.process_time() - started) / len(rows)
        exact = sum(all(v == ("error" not in k) for k, v in row.items()) for row in rows)
        print(f"noise {noise}: {exact} of {len(rows)} exact; {seconds:.1f} s of processor time each")
        for key in rows[0]:
            values = np.array([row[key] for row in rows])
            print(f"  {key:<28} mean {values.mean():.4f}  worst {values.max() if 'error' in key else values.min():.4f}")
            failed |= bool(values.max() > 0) if "error" in key else bool(values.mean() < least)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
