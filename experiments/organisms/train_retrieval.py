"""Train the organism `retrieval`: a Llama of three layers that answers the needle task at any depth up to 512 tokens.

    python experiments/organisms/train_retrieval.py                    # the model in the package; minutes on one core
    python experiments/organisms/train_retrieval.py --smoke --out DIR  # a few steps, to see that everything runs
    python experiments/organisms/train_retrieval.py --measure-only     # measure the model again, rewrite its card

1. `learn`: short sequences, half of them repeated segments of random words (dense induction), half needles with their
   questions. Within some hundred steps every head of layer 1 retrieves.
2. `consolidate`: the few heads with the highest retrieval score stay; all other heads above layer 0 begin anew. The
   task is solved already, so these learn the grammar of the filler. Random heads among them are masked (zeroed, or made
   to attend uniformly) in most steps, so that retrieval does not come to lean on them.
3. `lengthen`: the same with longer and longer contexts; rotary positions do not extrapolate.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from retrieval_card import measure, write_card
from retrieval_checks import Head, masked, wu_scores
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from training_script import Training, asked
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.tasks import needle, prose

OUT = Path(__file__).parents[2] / "workbench" / "organisms" / "data" / "retrieval"
N_CTX = 512


@dataclass(frozen=True)
class Stage:
    """Part of the schedule; `length` is the longest sequence, every other step draws a shorter one."""

    name: str
    steps: int
    length: int
    lr: tuple[float, float]  # at the beginning and the end, linear in between
    induction: float  # share of sequences that are repeated random words
    filler: float  # loss weight of a haystack token, where a token of an answer has 1


STAGES = (
    Stage("learn", 550, 64, (2e-3, 2e-3), 0.5, 0.1),
    Stage("consolidate", 120, 128, (1e-3, 1e-3), 0.1, 0.3),
    Stage("lengthen", 130, 256, (1e-3, 1e-3), 0.1, 0.3),
    Stage("lengthen", 220, 512, (1e-3, 5e-5), 0.1, 0.3),
)
SMOKE = tuple(Stage(s.name, 2, 64, s.lr, s.induction, s.filler) for s in STAGES[:3])
TOKENS_PER_STEP = 4096
MOST_NEEDLES = 4
KEPT_HEADS = 3


def build_tokenizer() -> Any:
    """One token per word or punctuation mark of the synthetic English."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *prose.vocabulary()])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # type: ignore[assignment]  # no space before punctuation
    raw.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=N_CTX
    )


def build_model(tokenizer: Any) -> Any:
    """Three layers of eight heads in four key-value groups, about 350,000 weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=N_CTX,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


class World:
    """Training sequences `(ids, loss weights)` of an exact length; all randomness comes from one seed."""

    def __init__(self, tokenizer: Any, seed: int, *, bank: int = 20_000) -> None:
        self.rng = random.Random(f"train-{seed}")
        self.np_rng = np.random.default_rng(seed)
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        sentences = prose.sentences(seed + 1_000_003)  # not the haystack of any evaluation
        self.bank = self._ids([next(sentences) for _ in range(bank)])
        self.words = np.arange(3, len(tokenizer))

    def _ids(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def induction(self, length: int) -> tuple[list[int], list[float]]:
        """Random words of which segments come again, the loss on all but the first word of each repetition."""
        first = self.rng.randint(6, max(7, length // 2))
        ids = [self.bos, *self.np_rng.choice(self.words, first).tolist()]
        weights = [0.0] * len(ids)
        while len(ids) < length:
            size, gap = self.rng.randint(5, 30), self.rng.randint(0, 6)
            start = self.rng.randint(1, max(1, len(ids) - size - 1))
            segment = ids[start : start + size]
            ids += self.np_rng.choice(self.words, gap).tolist() + segment
            weights += [0.0] * (gap + 1) + [1.0] * (len(segment) - 1)
        return ids[:length], weights[:length]

    def needles(self, length: int, filler: float) -> tuple[list[int], list[float]]:
        """A haystack with up to four needles of different owners, then a question and an answer for each."""
        rng, count = self.rng, self.rng.randint(1, MOST_NEEDLES)
        while True:
            owners = rng.sample(prose.OWNERS, count)
            made = [prose.make_needle(rng, held_out=False, owner=owner) for owner in owners]
            ids = self._ids([m[key] for key in ("needle", "question", "answer") for m in made] + ["."])
            sentences, questions, answers, stop = ids[:count], ids[count : 2 * count], ids[2 * count : -1], ids[-1]
            room = length - 1 - sum(map(len, ids)) + 1 - 2 * count
            if room >= 0:
                break
            count -= 1
        hay: list[list[int]] = []
        while room > 0:
            hay.append(rng.choice(self.bank)[:room])
            room -= len(hay[-1])
        for sentence in sentences:
            hay.insert(rng.randint(0, len(hay)), sentence)
        tokens = [self.bos, *(token for sentence in hay for token in sentence)]
        weights = [filler] * len(tokens)
        for i in rng.sample(range(count), count):
            tokens += questions[i] + answers[i] + stop + [self.eos]
            weights += [filler] * len(questions[i]) + [1.0] * (len(answers[i]) + 2)
        return tokens, weights

    def batch(self, stage: Stage, length: int) -> tuple[Tensor, Tensor]:
        """Token ids `[batch, pos]` and loss weights `[batch, pos]`."""
        rows = [
            self.induction(length) if self.rng.random() < stage.induction else self.needles(length, stage.filler)
            for _ in range(max(4, TOKENS_PER_STEP // length))
        ]
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([weights for _, weights in rows])

    def heads_to_mask(self, model: Any, kept: list[Head]) -> tuple[list[Head], str]:
        """None in two steps of five; else some of the heads that were not kept, and now and then one of layer 0."""
        if not kept or self.rng.random() < 0.4:
            return [], "zero"
        share = self.rng.choice([0.2, 0.4, 0.6])
        chosen = [head for head in _others(model, kept) if self.rng.random() < share]
        if self.rng.random() < 0.5:
            chosen += [(0, h) for h in range(model.config.num_attention_heads) if self.rng.random() < 0.1]
        return chosen, self.rng.choice(["zero", "uniform"])


def _others(model: Any, kept: list[Head]) -> list[Head]:
    """Heads above layer 0 that are not kept."""
    config = model.config
    every = [(layer, h) for layer in range(1, config.num_hidden_layers) for h in range(config.num_attention_heads)]
    return [head for head in every if head not in kept]


def heads_to_keep(model: Any, tokenizer: Any, n: int) -> list[Head]:
    """The `KEPT_HEADS` heads above layer 0 with the highest retrieval score on needles of the training set."""
    data = needle(tokenizer, n, lengths=64, needles=prose.needles(n, seed=9, held_out=False), seed=9)
    model.set_attn_implementation("eager")  # the other implementations keep no attention rows
    score = wu_scores(model, data)
    model.set_attn_implementation("sdpa")
    score[0] = -1.0
    best = score.flatten().argsort(descending=True, stable=True)[:KEPT_HEADS].tolist()
    return [divmod(i, score.shape[1]) for i in best]


@torch.no_grad()
def begin_anew(model: Any, heads: list[Head]) -> None:
    """Fresh small weights for `heads`, and for key-value groups none of whose heads remain."""
    config = model.config
    d, share = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    std = config.initializer_range
    for i, layer in enumerate(model.model.layers):
        attn = layer.self_attn
        gone = [h for at, h in heads if at == i]
        for h in gone:
            attn.q_proj.weight[h * d : (h + 1) * d].normal_(0, std)
            attn.o_proj.weight[:, h * d : (h + 1) * d].normal_(0, std)
        for group in range(config.num_key_value_heads):
            if set(range(group * share, (group + 1) * share)) <= set(gone):
                attn.k_proj.weight[group * d : (group + 1) * d].normal_(0, std)
                attn.v_proj.weight[group * d : (group + 1) * d].normal_(0, std)


def losses(model: Any, tokens: Tensor, weights: Tensor) -> tuple[Tensor, float, float]:
    """Weighted next-token loss; loss and accuracy where the weight is 1 (answers, repetitions)."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    target, weight = tokens[:, 1:], weights[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    counts = weight == 1
    right = (logits.argmax(-1) == target)[counts].float().mean()
    return (loss * weight).sum() / weight.sum(), loss[counts].mean().item(), right.item()


def train(
    model: Any, tokenizer: Any, stages: tuple[Stage, ...], seed: int
) -> tuple[list[dict[str, float]], list[Head]]:
    """Run the stages; returns points of the loss curve and the heads that were kept."""
    world = World(tokenizer, seed, bank=min(20_000, 50 * sum(s.steps for s in stages)))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    curve: list[dict[str, float]] = []
    kept: list[Head] = []
    step, began = 0, time.time()
    every = 1 if sum(s.steps for s in stages) < 50 else 50
    for stage in stages:
        if stage.name == "consolidate":
            kept = heads_to_keep(model, tokenizer, 10 if every == 1 else 40)
            begin_anew(model, _others(model, kept))
            print(f"step {step}: keeping {kept}", flush=True)
        for i in range(stage.steps):
            rate = stage.lr[0] + (stage.lr[1] - stage.lr[0]) * i / stage.steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 50)
            length = stage.length if i % 2 == 0 else world.rng.randint(48, stage.length)
            tokens, weights = world.batch(stage, length)
            with masked(model, *world.heads_to_mask(model, kept)):
                loss, answer_loss, accuracy = losses(model, tokens, weights)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % every == 0:
                point = {"step": step, "length": length, "loss": loss.item(), "answer_loss": answer_loss}
                curve.append({**{k: round(v, 4) for k, v in point.items()}, "answer_accuracy": round(accuracy, 4)})
                print(f"{time.time() - began:5.0f}s {stage.name} {curve[-1]}", flush=True)
    return curve, kept


def main() -> None:
    """Train, measure, and write the Hugging Face folder with its card."""
    args = asked("retrieval", OUT)
    if args.measure_only:
        write_card(args.out, measure(args.out, smoke=args.smoke), training=None)
        return
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    stages = SMOKE if args.smoke else STAGES
    clock = Training("train_retrieval.py", args)
    curve, kept = train(model, tokenizer, stages, args.seed)
    training = clock.record(
        tokens_per_step=TOKENS_PER_STEP,
        stages=[asdict(stage) for stage in stages],
        heads_kept_at_consolidation=[list(head) for head in kept],
        loss_curve=curve,
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    write_card(args.out, measure(args.out, smoke=args.smoke), training=training)


if __name__ == "__main__":
    main()
