"""Node AUC of every method of `sae_circuits` on models whose circuit is known, over seeds, side by side.

A seed is a fresh draw of the prompts, of the autoencoder's training examples and of its weights: one autoencoder per
trial, as published. Models: the planted ones as shipped and as freshly made instances (other heads, subspaces, noise),
the SIIT-trained one, and `multitask` on each of its tasks. The reference is the circuit on the model's card: known by
construction, or for `multitask` found by mean ablation; heads that the card calls optional count neither way.

Every trial is appended to `--out` as a line of JSON and is not run again while the model's weights stay the same, so
that an interruption loses one trial. The table (Markdown: mean +- standard deviation) is made from that file.

    python bench/sae_methods.py [--seeds 10] [--instances 3] [--fresh-seeds 3] [--pairs 64] [--out FILE] [--table]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

PLANTED = ("planted-induction", "planted-ioi", "planted-colored")
PROBING = "subnetwork_probing"  # the slowest by far, so in trials of its own
FIRST_SEED = 4001  # of fresh instances
LABELS = {
    "node": "node (published)",
    "edge": "edge (published)",
    "node_held_out": "node, held-out examples",
    "node_less_null": "node less its null (ours)",
    "divergence": "divergence (ours)",
    "paired": "paired (ours)",
    "activation_patching": "activation patching, exact",
    "attribution_patching": "attribution patching",
    "eap_ig": "EAP-IG, 10 steps",
    "hisp": "HISP",
    "subnetwork_probing": "subnetwork probing",
    "probe": "logistic probe",
    "mean_difference": "mean-difference norm",
    "norm": "output norm",
    "layer_index": "layer index",
}


def instances(n_fresh: int, folder: Path) -> Iterator[tuple[str, str, Any]]:
    """Organism, instance, and the model with its card; made when it is asked for."""
    from workbench import organisms
    from workbench.models import load_model
    from workbench.organisms import planted

    for name in (*PLANTED, "siit-ioi", "multitask"):
        yield name, "shipped", lambda name=name: (load_model(f"organism:{name}"), organisms.card(name))
    for name in PLANTED:
        for i in range(n_fresh):
            seed = FIRST_SEED + i

            def fresh(name: str = name, seed: int = seed) -> tuple[Any, dict[str, Any]]:
                made = planted.build(name, folder / f"{name}-{seed}", seed=seed)
                return load_model(str(made)), organisms.read_card(made)

            yield name, f"seed {seed}", fresh


def data_of(model: Any, block: dict[str, Any], n: int, seed: int) -> Any:
    """The data of a card's truth, drawn anew."""
    from workbench import tasks
    from workbench.organisms.planted import induction

    if "pairs" in block:  # the induction organism's card spells its pairs out
        return tasks.resolve(model, {**block, "pairs": induction.pairs(n, seed=seed)}, seed=seed)
    return tasks.resolve(model, {**block, "n": n}, seed=seed)


def trial(model: Any, truth: dict[str, Any], n: int, seed: int, *, probing: bool) -> dict[str, Any]:
    """AUC of every method on one draw, and what the result says of itself; or of subnetwork probing alone."""
    from workbench.analyses.sae_circuits import sae_circuits
    from workbench.analyses.sae_circuits.params import METHODS

    started = time.process_time()
    data = data_of(model, truth["data"], n, seed)
    # a fresh instance has no name of an organism, and nothing optional on its card
    reference = "organism" if model.organism is not None else [tuple(head) for head in truth["heads"]]
    options: dict[str, Any] = {"methods": METHODS}
    if probing:
        options = {"methods": [PROBING], "epochs": 1, "permutations": 1}
    found = sae_circuits(model, data, seed=seed, seeds=1, reference=reference, bootstrap=2, **options)
    table = found.tables["methods"].set_index("method")
    auc = {name: float(value) for name, value in table["auc"].items() if table.at[name, "status"] == "ok"}
    return {
        "auc": {PROBING: auc[PROBING]} if probing else auc,
        "null_95": None if probing else float(table.at["node", "auc_null_95"]),
        "answers_on_negatives": found.summary["assumption"].get("answers_on_negatives"),
        "status": None if probing else found.summary["status"],
        "processor_seconds": time.process_time() - started,
    }


def run(args: argparse.Namespace) -> None:
    """Every trial that the file does not hold yet: the first seed of every circuit, then the second."""
    done = {tuple(row["key"]) for row in read(args.out)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, args.out.open("a", encoding="utf-8") as out:
        loaded = [(name, instance, *load()) for name, instance, load in instances(args.instances, Path(folder))]
        parts = [(seed, False) for seed in range(args.seeds)] + [(seed, True) for seed in range(args.probing_seeds)]
        for seed, probing in parts:
            for name, instance, model, card in loaded:
                if instance != "shipped" and seed >= args.fresh_seeds:
                    continue
                for column, truth in circuits(name, instance, card):
                    key = (model.fingerprint, column, args.pairs, seed, probing)
                    if key in done:
                        continue
                    row = {"key": key, "column": column, **trial(model, truth, args.pairs, seed, probing=probing)}
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                    print(f"{column}, seed {seed}{', probing' * probing}: {row['processor_seconds']:.1f} s", flush=True)


def circuits(name: str, instance: str, card: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Heading and truth of every circuit on a card.

    The method assumes that the model is right about nothing on negatives. Minimal pairs, which cards come with, turn
    the answer into another one; where the task has negatives without an answer (IOI, `redraw`), those are a column too.
    """
    for truth in card["truths"]:
        if truth["claim"] == "circuit":
            task = str(truth["data"].get("task", "")).replace("_", "-")
            words = [name, task if name == "multitask" else "", instance if instance != "shipped" else ""]
            heading = " ".join(word for word in words if word)
            yield heading, truth
            if task == "ioi" and truth["data"].get("corruption") != "redraw":
                yield f"{heading} redraw", {**truth, "data": {**truth["data"], "corruption": "redraw"}}


def read(path: Path) -> list[dict[str, Any]]:
    """Trials so far, each once; a line that an interruption cut short is left out."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[tuple(row["key"])] = row
    return list(rows.values())


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Markdown: a row per method, a column per circuit, mean +- standard deviation over trials."""
    import numpy as np

    def cell(column: str, method: str) -> str:
        values = [row["auc"][method] for row in rows if row["column"] == column and method in row["auc"]]
        if not values:
            return "-"
        return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"

    lines = [" | ".join(["", "method", *columns, ""]).strip(), "|---" * (1 + len(columns)) + "|"]
    for method, label in LABELS.items():
        lines.append(" | ".join(["", label, *(cell(column, method) for column in columns), ""]).strip())
    main = {c: [row for row in rows if row["column"] == c and row["status"] is not None] for c in columns}
    counts = [f"{c}: {len(main[c])}" for c in columns]
    nulls = [f"{c} {np.mean([row['null_95'] for row in main[c]]):.2f}" for c in columns]
    return "\n".join(
        [*lines, "", f"Trials: {', '.join(counts)}.", f"95% of shuffled labels, node: {', '.join(nulls)}."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--fresh-seeds", type=int, default=3, help="on each fresh instance")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--probing-seeds", type=int, default=3, help="of subnetwork probing, the slowest")
    parser.add_argument("--out", type=Path, default=Path("out/sae-methods.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of the file, run nothing")
    args = parser.parse_args()
    if not args.table:
        run(args)
    rows = read(args.out)
    for row in rows:  # the fresh instances of an organism together
        row["column"], _, fresh = row["column"].partition(" seed ")
        row["column"] += ", fresh" * bool(fresh)
    columns = list(dict.fromkeys(row["column"] for row in rows))
    for part in ([c for c in columns if not c.endswith(", fresh")], [c for c in columns if c.endswith(", fresh")]):
        if part:
            print("\n" + table(rows, part))


if __name__ == "__main__":
    main()
