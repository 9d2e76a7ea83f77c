"""Train the organism `siit-ioi`: a small GPT-2 whose named heads run the algorithm of `siit_algorithm.py`.

    python experiments/organisms/train_siit.py                    # the model in the package; minutes on one core
    python experiments/organisms/train_siit.py --smoke --out DIR  # a few steps, to see that everything runs
    python experiments/organisms/train_siit.py --measure-only     # measure the model again, rewrite its card

Strict interchange intervention training (SIIT; Gupta et al. 2024, arXiv 2407.14494). Every step draws base prompts and
a source prompt of the same shape for each, and minimises the sum of three cross-entropies at the last position:

1. behaviour: the base prompts as they are, against the algorithm's answer;
2. interchange: one node of the algorithm (another for each row) takes its value from the source; in the model the
   output of the head that stands for the node is swapped, at all positions; the target is what the algorithm answers
   then (semantics in `siit_algorithm.py`);
3. strict, weight 0.4: one head or MLP outside the circuit, or a random set of them, is swapped for its output on the
   source, for zero, or for the mean of the batch; the target is the answer to the base prompt.

The swapped outputs carry no gradient. Stage `learn` is that. It leaves the components outside the circuit helping a
little, in ways that cancel: no answer depends on one of them, but logits do, and some interchanges need them. So in
stage `tighten`

- behaviour and interchange are asked of the circuit alone, everything outside it writing zero;
- what is outside begins with output weights shrunk to a share, which stay as they are;
- half of the interchanges act only where the node belongs, at the third name (`duplicate token`) or the last position;
- some of the strict rows swap a head of the circuit at all other positions, or `duplicate token` with `S-inhibition`
  held at its own value, so that the mover hears of the one only through the other;
- the logits of the names in strict rows are drawn (squared difference) to those of the circuit alone.

Stage `settle` shrinks a second time and goes on, with more sources that rule out a name of the base.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from siit_algorithm import NODES, behaviour, interchanged
from siit_card import measure, write_card
from siit_prompts import Bank, Prompts, World, make_bank
from siit_swaps import Chosen, Head, Outputs, end_logits, record, swapped
from torch import Tensor
from training_script import Training, asked
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.tasks.circuits import vocabulary, word_tokenizer

OUT = Path(__file__).parents[2] / "workbench" / "organisms" / "data" / "siit-ioi"

STANDS_FOR: dict[str, Head] = {"duplicate token": (0, 1), "S-inhibition": (1, 2), "name mover": (2, 3)}


N_CTX = 48


def build_model(tokenizer: Any) -> Any:
    """Three layers of four heads, about 110,000 weights."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=N_CTX,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_inner=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.08,  # with the usual .02 at this width attention stays flat for hundreds of steps
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def loss_of(logits: Tensor, target: Tensor, names: Tensor) -> Tensor:
    """Cross-entropy `[n]` with the algorithm's distribution over names `[n, n_names]`."""
    return -(logits.log_softmax(-1)[:, names] * target).sum(-1)


class Step:
    """Draws the swaps of a training step."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model = model
        self.random = torch.Generator().manual_seed(seed)
        layers, heads = model.config.n_layer, model.config.n_head
        self.nodes = torch.tensor([layer * heads + head for layer, head in STANDS_FOR.values()])
        outside = torch.ones(layers * heads + layers, dtype=torch.bool)  # all heads, then all MLPs
        outside[self.nodes] = False
        self.outside = outside.nonzero().flatten()

    def interchange(self, n: int) -> tuple[Tensor, Tensor]:
        """A node per row `[n]`, and the component that stands for it as a mask `[n, component]`."""
        node = torch.randint(len(NODES), (n,), generator=self.random)
        return node, self._mask(n, self.nodes[node][:, None], torch.ones(n, 1, dtype=torch.bool))

    def strict(self, n: int) -> Tensor:
        """Components outside the circuit, `[n, component]`: one in half of the rows, a random share in the others."""
        k = len(self.outside)
        one = torch.nn.functional.one_hot(torch.randint(k, (n,), generator=self.random), k).bool()
        share = torch.rand(n, 1, generator=self.random)
        some = torch.rand(n, k, generator=self.random) <= share
        alone = torch.rand(n, 1, generator=self.random) < 0.5
        return self._mask(n, self.outside.expand(n, k), torch.where(alone, one, some))

    def instead(self, source: Outputs) -> Outputs:
        """The source's outputs, in a quarter of the rows zeros and in a quarter the mean over rows, per position."""
        u = torch.rand(len(source.mlps[0]), generator=self.random)
        own, mean = (u < 0.5).float(), ((u >= 0.5) & (u < 0.75)).float()

        def blend(x: Tensor) -> Tensor:
            rows = (-1, *(1,) * (x.dim() - 1))
            return own.view(rows) * x + mean.view(rows) * x.mean(0, keepdim=True)

        return source.each(blend)

    def _mask(self, n: int, index: Tensor, on: Tensor) -> Tensor:
        layers, heads = self.model.config.n_layer, self.model.config.n_head
        return torch.zeros(n, layers * heads + layers, dtype=torch.bool).scatter(1, index, on)

    def losses(self, base: Prompts, source: Prompts, names: Tensor, *, tighten: bool) -> dict[str, Tensor]:
        """Behaviour, interchange and strict loss, and squared change of logits, in one pass of three times the rows."""
        n, n_names = len(base), len(names)
        outputs = record(self.model, source.tokens)
        node, swap = self.interchange(n)
        strict, instead = self.strict(n), self.instead(outputs)
        masks = [x[:, None].expand(-1, base.tokens.shape[1], -1) for x in (torch.zeros_like(swap), swap, strict)]
        written = [outputs, outputs, instead]
        if tighten:
            masks, written = self._tightened(base, node, outputs, masks, instead)
        stacked = Outputs(
            [torch.cat(z) for z in zip(*(part.heads for part in written), strict=True)],
            [torch.cat(m) for m in zip(*(part.mlps for part in written), strict=True)],
        )
        with swapped(self.model, stacked, self._chosen(torch.cat(masks))):
            logits = end_logits(self.model, base.tokens.repeat(3, 1), base.last.repeat(3))
        own = behaviour(base.mentions, n_names)
        other = interchanged(base.mentions, source.mentions, node, n_names)
        parts = loss_of(logits, torch.cat([own, other, own]), names).split(n)
        found = {name: part.mean() for name, part in zip(("behaviour", "interchange", "strict"), parts, strict=True)}
        change = (logits[2 * n :] - logits[:n].detach())[:, names]
        return {**found, "change": (change - change.mean(1, keepdim=True)).square().mean()}

    def _chosen(self, masks: Tensor) -> Chosen:
        """Masks `[n, pos, component]` as heads and MLPs."""
        layers, heads = self.model.config.n_layer, self.model.config.n_head
        return Chosen(masks[..., : layers * heads].unflatten(-1, (layers, heads)), masks[..., layers * heads :])

    def _tightened(
        self, base: Prompts, node: Tensor, outputs: Outputs, masks: list[Tensor], instead: Outputs
    ) -> tuple[list[Tensor], list[Outputs]]:
        """Masks `[n, pos, component]` of the three parts and what is written instead, after stage `learn`."""
        n, n_layers = len(base), len(outputs.heads)
        plain, swap, strict = masks
        at = torch.where(node == 0, base.third, base.last)
        place = torch.nn.functional.one_hot(at, base.tokens.shape[1]).bool()[..., None]  # (n, pos, 1)
        outside = torch.zeros(plain.shape[-1], dtype=torch.bool).index_fill(0, self.outside, True)
        anywhere, u = torch.rand(2, n, 1, 1, generator=self.random)
        elsewhere, bypass = u < 0.2, (u >= 0.2) & (u < 0.4)
        both = torch.zeros_like(outside).index_fill(0, self.nodes[:2], True)
        strict = torch.where(elsewhere, swap & ~place, torch.where(bypass, both, strict))

        circuit = ~outside[:-n_layers].view(n_layers, -1, 1)  # (layer, head, 1)
        alone = Outputs([z * c for z, c in zip(outputs.heads, circuit, strict=True)], outputs.zero().mlps)
        within = (elsewhere | bypass)[..., None]
        heads = [torch.where(within, z, i) for z, i in zip(outputs.heads, instead.heads, strict=True)]
        layer, head = STANDS_FOR["S-inhibition"]
        own = record(self.model, base.tokens).heads[layer][:, :, head]
        heads[layer][:, :, head] = torch.where(bypass, own, heads[layer][:, :, head])
        masks = [plain | outside, (swap & (place | (anywhere < 0.5))) | outside, strict]
        return masks, [alone, alone, Outputs(heads, instead.mlps)]


def outputs_outside(model: Any) -> list[tuple[Any, slice]]:
    """The output weights of every head outside the circuit and every MLP, as parameters and their rows."""
    d_head, found = model.config.n_embd // model.config.n_head, []
    for layer, block in enumerate(model.transformer.h):
        heads = [h for h in range(model.config.n_head) if (layer, h) not in STANDS_FOR.values()]
        found += [(block.attn.c_proj.weight, slice(h * d_head, (h + 1) * d_head)) for h in heads]
        found.append((block.mlp.c_proj.weight, slice(None)))
    return found


@dataclass(frozen=True)
class Stage:
    """Part of the schedule."""

    name: str
    steps: int
    lr: float  # reached after WARM_UP steps, linear to a twentieth of it in the last 30%
    strict: float  # weight of the strict loss
    change: float  # weight of the squared change of logits
    related: float  # share of sources with names of the base
    outside: float | None  # output weights outside the circuit shrink to this share at the start, and stay so


STAGES = (
    Stage("learn", 800, 2e-3, 0.4, 0.0, 0.4, None),
    Stage("tighten", 700, 1.5e-3, 1.0, 1.0, 0.4, 0.03),
    Stage("settle", 900, 1.5e-3, 1.0, 0.5, 0.8, 0.4),
)
SMOKE = tuple(replace(stage, steps=2) for stage in STAGES)
BATCH, WARM_UP, DECAY = 128, 50, 0.3


def rate_at(step: int, stage: Stage) -> float:
    """Learning rate of a step."""
    left = (stage.steps - step) / (stage.steps * DECAY)
    return stage.lr * min(1.0, (step + 1) / WARM_UP, max(0.05, left))


def train(model: Any, bank: Bank, stage: Stage, seed: int) -> list[dict[str, Any]]:
    """Run a stage, which has its own optimizer and random numbers; returns points of the loss curve."""
    world, draw = World(bank, seed), Step(model, seed + 1)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    outside = outputs_outside(model) if stage.outside is not None else []
    with torch.no_grad():
        for weight, rows in outside:
            weight[rows] *= stage.outside
    curve, began, every = [], time.time(), max(1, stage.steps // 20)
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, stage)
        base = world.base(BATCH, no_duplicate=0.1)
        parts = draw.losses(
            base, world.source(base, related=stage.related), bank.names, tighten=stage.outside is not None
        )
        loss = parts["behaviour"] + parts["interchange"]
        loss = loss + stage.strict * parts["strict"] + stage.change * parts["change"]
        optimizer.zero_grad()
        loss.backward()
        for weight, rows in outside:
            weight.grad[rows] = 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0:
            numbers = {name: round(part.item(), 4) for name, part in parts.items()}
            curve.append({"stage": stage.name, "step": step + 1, **numbers})
            print(f"{time.time() - began:5.0f}s {curve[-1]}", flush=True)
    return curve


def main() -> None:
    """Train, measure, and write the Hugging Face folder with its card."""
    args = asked("siit-ioi", OUT)
    if args.measure_only:
        write_card(args.out, measure(args.out, STANDS_FOR, smoke=args.smoke), STANDS_FOR, training=None)
        return
    torch.manual_seed(args.seed)
    tokenizer = word_tokenizer(vocabulary("ioi"), n_ctx=N_CTX)
    model = build_model(tokenizer)
    stages = SMOKE if args.smoke else STAGES
    bank = make_bank(tokenizer, 40 if args.smoke else 2000, args.seed)
    clock = Training("train_siit.py", args)
    curve = [point for i, stage in enumerate(stages) for point in train(model, bank, stage, args.seed + 100 * i)]
    training = clock.record(
        recipe="SIIT: behaviour + interchange + strict cross-entropy, see the opening of the script",
        steps=sum(stage.steps for stage in stages),
        batch=BATCH,
        stages=[asdict(stage) for stage in stages],
        loss_curve=curve,
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    write_card(args.out, measure(args.out, STANDS_FOR, smoke=args.smoke), STANDS_FOR, training=training)


if __name__ == "__main__":
    main()
