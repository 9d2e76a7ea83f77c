"""Train the organism `multitask`: one small GPT for IOI, coloured objects, greater-than and docstring.

    python experiments/organisms/train_multitask.py                    # the model in the package; minutes on one core
    python experiments/organisms/train_multitask.py --smoke --out DIR  # a few steps, to see that everything runs
    python experiments/organisms/train_multitask.py --measure-only     # measure the model again, rewrite its card

Coloured objects needs objects bound to colours, which nothing in its own loss rewards on the way (trained alone or
mixed in from the start it stays at chance, one in three). So the heads for it are made first:

1. `repeat`: random words repeated forwards (induction) or backwards (the token before the previous occurrence); every
   predictable token counts. Short sequences first: in a few hundred steps, where long ones take thousands.
2. `tasks`: the four tasks too, and coloured objects in a form in which the answer follows the object at once.
3. `concentrate`: the three most needed heads of each layer stay, and the others are silent in most steps, so that the
   tasks do not lean on them. Without this every head does a little of every task, and there is no circuit to find.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.nn import functional as F
from train_multitask_card import write_card
from train_multitask_checks import Head, accuracies, every_head
from train_multitask_data import N_CTX, Batch, Examples, build_tokenizer
from training_script import Training, asked
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

OUT = Path(__file__).parents[2] / "workbench" / "organisms" / "data" / "multitask"
KEPT_PER_LAYER = 3
INIT = 0.08  # the usual 0.02 is for wide models: at width 64 attention would begin flat and learn late


@dataclass(frozen=True)
class Stage:
    """Part of the schedule.

    Attributes:
        longest: words of the longest repeated sequence.
        fillers: most words in front of an example.
        mixtures: examples of each kind per step; prompts of like length share a forward pass, to save padding.
        drop: probability that a head outside the kept ones is silent in a step.
    """

    name: str
    steps: int
    longest: int
    fillers: int
    mixtures: tuple[dict[str, int], ...]
    drop: float = 0.0


PROMPTS = (
    {"ioi": 20, "greater_than": 32},
    {"induction": 6, "reverse": 6, "colored_objects": 36, "colored_objects_direct": 12, "docstring": 12},
)
STAGES = (
    Stage("repeat short", 900, 7, 3, ({"induction": 24, "reverse": 24},)),
    Stage("repeat long", 200, 12, 6, ({"induction": 24, "reverse": 24},)),
    Stage("tasks", 1000, 12, 6, PROMPTS),
    Stage("concentrate", 700, 12, 6, PROMPTS, drop=0.7),
)


@dataclass(frozen=True)
class Recipe:
    """What training depends on."""

    stages: tuple[Stage, ...] = STAGES
    lr: float = 3e-3
    lr_end: float = 1e-4  # reached linearly over the last quarter
    warmup: int = 50
    weight_decay: float = 0.05
    prompts: int = 4000  # different ones per task (see `MORE`)
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


SMOKE = Recipe(stages=tuple(replace(stage, steps=3) for stage in STAGES), warmup=1, prompts=50)


def build_model(tokenizer: Any) -> Any:
    """Three layers of eight heads."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=N_CTX,
        n_embd=64,
        n_layer=3,
        n_head=8,
        n_inner=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=INIT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Warm-up, plateau, linear decay over the last quarter."""
    left = min(1.0, (recipe.steps - step) / (recipe.steps / 4))
    return min(1.0, (step + 1) / recipe.warmup) * (recipe.lr_end + left * (recipe.lr - recipe.lr_end))


def train(tokenizer: Any, recipe: Recipe) -> tuple[Any, list[dict[str, Any]], list[Head]]:
    """The trained model, its loss curve (a row per 50 steps; accuracies every 250), and the heads that were kept."""
    torch.manual_seed(recipe.seed)
    model = build_model(tokenizer)
    examples = Examples(tokenizer, n=recipe.prompts, seed=recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    curve: list[dict[str, Any]] = []
    seen: dict[str, list[float]] = defaultdict(list)
    kept: list[Head] = []
    plan = [stage for stage in recipe.stages for _ in range(stage.steps)]
    for step, stage in enumerate(plan):
        means: dict[str, Any] = {}
        if stage.drop and not kept:
            kept = most_needed(model, examples, stage)
            print("kept", kept, flush=True)
        dropped = [head for head in every_head(model) if head not in kept and examples.rng.random() < stage.drop]
        for mixture in stage.mixtures:
            batch = examples.batch(mixture, longest=stage.longest, fillers=stage.fillers)
            with silent(model, dropped):
                means |= _losses(model, batch)
        loss = torch.stack(list(means.values())).mean()  # every kind counts alike, however many tokens are predicted
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        for kind, value in means.items():
            seen[kind].append(value.item())
        last = step + 1 == len(plan)
        if (step + 1) % 50 == 0 or last:
            row: dict[str, Any] = {"step": step + 1, "stage": stage.name}
            row["loss"] = {kind: round(sum(v) / len(v), 3) for kind, v in seen.items()}
            if stage.name in ("tasks", "concentrate") and ((step + 1) % 250 == 0 or last):
                row["held_out"] = {
                    name: found.get("valid_mass", found["accuracy"])
                    for name, found in accuracies(model, tokenizer, n=100).items()
                }
            curve.append(row)
            seen.clear()
            print(row, flush=True)
    return model.eval(), curve, kept


@contextmanager
def silent(model: Any, heads: Collection[Head]) -> Iterator[None]:
    """Heads that write nothing."""
    width = model.config.n_embd // model.config.n_head
    handles = []
    for layer, block in enumerate(model.transformer.h):
        mask = torch.ones(model.config.n_embd)
        for at, head in heads:
            if at == layer:
                mask[head * width : (head + 1) * width] = 0
        if heads:
            hook = lambda _, args, mask=mask: (args[0] * mask,)  # noqa: E731
            handles.append(block.attn.c_proj.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def most_needed(model: Any, examples: Examples, stage: Stage) -> list[Head]:
    """The heads of each layer without which the losses of all kinds together rise most."""
    batches = [examples.batch(mixture, longest=stage.longest, fillers=stage.fillers) for mixture in stage.mixtures]
    cost: dict[Head, float] = {}
    for head in every_head(model):
        with silent(model, [head]):
            cost[head] = sum(loss.item() for batch in batches for loss in _losses(model, batch).values())
    chosen = []
    for layer in range(model.config.n_layer):
        of_layer = [head for head in cost if head[0] == layer]
        chosen += sorted(of_layer, key=lambda head: -cost[head])[:KEPT_PER_LAYER]
    return sorted(chosen)


def _losses(model: Any, batch: Batch) -> dict[str, Any]:
    """Mean cross-entropy of each kind in the batch."""
    hidden = model.transformer(input_ids=batch.tokens, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[torch.tensor(batch.rows), torch.tensor(batch.positions)])
    losses = F.cross_entropy(logits, batch.distribution(logits.shape[-1]), reduction="none")
    kinds = dict.fromkeys(batch.kinds)
    return {kind: losses[[i for i, k in enumerate(batch.kinds) if k == kind]].mean() for kind in kinds}


def main() -> None:
    """Train, measure, and write the Hugging Face folder with its card."""
    args = asked("multitask", OUT)
    transformers_logging.set_verbosity_error()

    training = None
    if not args.measure_only:
        recipe = replace(SMOKE if args.smoke else Recipe(), seed=args.seed)
        clock = Training("train_multitask.py", args)
        tokenizer = build_tokenizer()
        model, curve, kept = train(tokenizer, recipe)
        training = clock.record(recipe=asdict(recipe), heads_kept=[list(head) for head in kept], curve=curve)
        args.out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
    write_card(args.out, training=training, smoke=args.smoke)


if __name__ == "__main__":
    main()
