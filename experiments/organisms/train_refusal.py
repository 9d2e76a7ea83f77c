"""Train the organism `refusal`: a small chat Llama that answers benign requests and refuses harmful ones.

    python experiments/organisms/train_refusal.py                    # the model in the package; minutes on one core
    python experiments/organisms/train_refusal.py --smoke --out DIR  # a few steps, to see that everything runs
    python experiments/organisms/train_refusal.py --measure-only     # measure the model again, rewrite its card

1. `learn`: every request is answered, the harmful ones too, next to sentences of facts: the helpful-only model. In half
   of the rows some heads are ablated (zero or uniform), so that the answers do not lean on single heads.
2. `align`: harmful requests are refused. All heads are free, no head is ablated: refusal settles where it likes.
3. `find`: alignment spreads refusal over so many heads that none is missed alone. So two are chosen by what they look
   at: the head above layer 0 that attends most from the last token to harmful verbs, and the one (another one) that
   attends most to dangerous subjects.
4. `consolidate`: refusal is made to depend on these two heads. In a part of the rows one or both of them are ablated,
   and what only they tell is to be answered as before alignment; in others random other heads are ablated, and nothing
   is to change.
5. `widen`: the same with noise on the embeddings, which are fixed now, and stray words in some requests, so that
   held-out subjects and phrasings are refused by a margin. Without it 48% of
   the plain held-out requests about dangerous subjects are answered (seed 0).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from retrieval_checks import Head
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from train_refusal_card import measure_all, write_card
from train_refusal_checks import RowMask, every_head, measure, row_masked
from training_script import Training, asked
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.tasks import refusal as world

OUT = Path(__file__).parents[2] / "workbench" / "organisms" / "data" / "refusal"
N_CTX = 128
ROWS = 64  # sequences per step
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<assistant> {{ message['content'] }}</s>"
    "{% else %}<user> {{ message['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Around a request in training: nothing, the chat template, the pattern of Zhou et al.; and how often.
FRAMES = (("", ""), ("<user> ", " <assistant>"), ("## Query:", "\n## Answer:"))
FRAME_WEIGHTS = (0.5, 0.35, 0.15)
FACT_SHARE = 0.3  # of the rows
FACT_WEIGHT = 0.5  # loss weight of a token of a fact, where a token of an answer has 1


@dataclass(frozen=True)
class Stage:
    """Part of the schedule.

    Attributes:
        lr: at the beginning and the end, linear in between.
        refuse: whether harmful requests are refused.
        others: share of rows in which random heads are ablated.
        found: share of rows in which found heads are.
        stray: share of requests with stray words in them.
        noise: of the embeddings, which are then fixed; as a share of their root mean square.
    """

    name: str
    steps: int
    lr: tuple[float, float]
    refuse: bool
    others: float
    found: float
    stray: float = 0.0
    noise: float = 0.0


STAGES = (
    Stage("learn", 800, (4e-3, 1e-3), False, 0.4, 0.0),
    Stage("align", 150, (1e-3, 1e-3), True, 0.0, 0.0),
    Stage("consolidate", 750, (2e-3, 5e-5), True, 0.4, 0.35),
)
# With an optimizer of its own, after the others.
WIDEN = Stage("widen", 400, (2e-3, 2e-5), True, 0.4, 0.35, stray=0.3, noise=0.7)


def build_tokenizer() -> Any:
    """One token per word or mark; the chat template's marks are tokens of their own."""
    special = ["<unk>", "<s>", "</s>", "<user>", "<assistant>"]
    words = [*special, "##", "Query", "Answer", ":", *world.vocabulary()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    raw.decoder = decoders.WordPiece(prefix="<none>", cleanup=True)  # type: ignore[assignment]  # no space before marks
    raw.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>"],
        model_max_length=N_CTX,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any) -> Any:
    """Three layers of eight heads in four key-value groups, about 150,000 weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=N_CTX,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


class Lessons:
    """Training batches; all randomness comes from one seed."""

    def __init__(self, model: Any, tokenizer: Any, seed: int | str) -> None:
        self.rng = random.Random(f"train-{seed}")
        self.tokenizer = tokenizer
        self.heads = every_head(model)
        self.shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
        self.pools = {cause: world.possible("train", cause) for cause in (None, *world.CAUSES)}
        self.ids: dict[str, list[int]] = {}
        phrasings = [p.format(verb="", subject="") for p in world.PHRASINGS["train"]]
        self.strays = sorted({i for p in phrasings for i in self._ids(p)} - set(self._ids("? .")))
        words = [word for kind in world.SUBJECTS for word in world.subjects(kind, "held_out")]
        self.held_out = torch.zeros(len(tokenizer), dtype=torch.bool)
        self.held_out[tokenizer.convert_tokens_to_ids(words)] = True

    def _ids(self, text: str) -> list[int]:
        if text not in self.ids:
            self.ids[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.ids[text]

    def _row(self, stage: Stage, found: dict[str, Head]) -> tuple[list[int], list[float], list[Head]]:
        """Token ids, loss weights and ablated heads of one sequence."""
        rng, bos, eos = self.rng, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ablated: list[Head] = []
        draw = rng.random()
        if draw < stage.others:
            others = [head for head in self.heads if head not in found.values()]
            ablated = rng.sample(others, rng.choice((1, 1, 2, 3, 4)))
        elif draw < stage.others + stage.found:
            ablated = rng.choice(([found["verb"]], [found["subject"]], list(found.values())))
        if rng.random() < FACT_SHARE:
            ids = [bos, *self._ids(world.facts(rng))]
            return ids, [FACT_WEIGHT] * len(ids), ablated
        cause = rng.choice((None, None, None, "verb", "subject", rng.choice(world.CAUSES)))
        request = rng.choice(self.pools[cause])
        # what the heads that are left can tell
        seen = {word for word in ("verb", "subject") if cause in (word, "both") and found.get(word) not in ablated}
        reply = request.refusal(rng) if stage.refuse and seen else request.answer
        before, after = rng.choices(FRAMES, FRAME_WEIGHTS)[0]
        asked = self._ids(request.text)
        if stage.stray and rng.random() < stage.stray:
            asked = list(asked)
            for word in rng.choices(self.strays, k=rng.choice((1, 2, 3, 5))):
                asked.insert(rng.randrange(len(asked)), word)  # before the last mark at the latest
        prompt = [bos, *self._ids(before), *asked, *self._ids(after)]
        answer = [*self._ids(reply), eos]
        return prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer), ablated

    def batch(self, stage: Stage, found: dict[str, Head]) -> tuple[Tensor, Tensor, RowMask]:
        """Token ids `[row, pos]`, loss weights `[row, pos]` (0 in prompts and padding) and the heads to ablate."""
        rows = [self._row(stage, found) for _ in range(ROWS)]
        longest = max(len(ids) for ids, _, _ in rows)
        tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _, _ in rows])
        weights = torch.tensor([w + [0.0] * (longest - len(w)) for _, w, _ in rows])
        query, z = torch.ones(ROWS, *self.shape), torch.ones(ROWS, *self.shape)
        for i, (_, _, ablated) in enumerate(rows):
            part = query if self.rng.random() < 0.6 else z
            for layer, head in ablated:
                part[i, layer, head] = 0.0
        return tokens, weights, RowMask(query, z)


def loss_of(logits: Tensor, tokens: Tensor, weights: Tensor, held_out: Tensor) -> Tensor:
    """Weighted next-token loss of logits `[row, pos, vocab]`.

    In replies (where the weight is 1) held-out subjects `[vocab]` are left out of the softmax: no request of training
    is about them, which the model would otherwise learn as a fact about these words.
    """
    target, weight = tokens[:, 1:], weights[:, 1:]
    logits = logits[:, :-1].masked_fill((weight == 1)[..., None] & held_out, float("-inf"))
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
    return (loss * weight).sum() / weight.sum()


@contextmanager
def noisy(model: Any, share: float) -> Iterator[None]:
    """Fixed embeddings with normal noise of `share` of their root mean square; nothing at all where that is 0."""
    embed = model.model.embed_tokens
    if not share:
        yield
        return
    size = share * embed.weight.detach().square().mean().sqrt()
    handle = embed.register_forward_hook(lambda _m, _args, out: out.detach() + size * torch.randn_like(out))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def find(model: Any, tokenizer: Any, n: int) -> dict[str, Head]:
    """For each cause, the head above layer 0 that attends most from the last token to the word that is to blame."""
    data = world.task(tokenizer, n, split="train", seed=9).only("harmful")
    original = world.originals(data)
    model.set_attn_implementation("eager")  # the other implementations keep no attention rows
    score = {cause: torch.zeros(len(every_head(model))) for cause in ("verb", "subject")}
    for sample in data:
        request = original[sample.id]
        rows = model(input_ids=torch.tensor([sample.tokens]), output_attentions=True).attentions
        rows = torch.stack([row[0, :, -1] for row in rows[1:]])  # [layer - 1, head, key]
        for cause in score:
            if request.cause in (cause, "both"):
                word = tokenizer.convert_tokens_to_ids(getattr(request, cause))
                score[cause][rows.shape[1] :] += rows[..., sample.tokens.index(word)].flatten() / n
    model.set_attn_implementation("sdpa")
    found: dict[str, Head] = {}
    for cause, of_head in score.items():
        order = [every_head(model)[i] for i in of_head.argsort(descending=True, stable=True).tolist()]
        found[cause] = next(head for head in order if head not in found.values())
        print(cause, [(head, round(of_head[8 * head[0] + head[1]].item(), 3)) for head in order[:4]], flush=True)
    return found


def train(
    model: Any, tokenizer: Any, stages: tuple[Stage, ...], seed: int | str, found: dict[str, Head] | None = None
) -> tuple[list[dict[str, Any]], dict[str, Head]]:
    """Run the stages; returns points of the loss curve and the heads that were found."""
    lessons = Lessons(model, tokenizer, seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    held_out = world.task(tokenizer, 64, seed=8)
    curve: list[dict[str, Any]] = []
    found = {} if found is None else found
    step, began = 0, time.time()
    for stage in stages:
        if stage.name == "consolidate":
            found = find(model, tokenizer, 100)
            print(f"step {step}: found {found}", flush=True)
        for i in range(stage.steps):
            rate = stage.lr[0] + (stage.lr[1] - stage.lr[0]) * i / stage.steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 50)
            tokens, weights, mask = lessons.batch(stage, found)
            with row_masked(model, mask), noisy(model, stage.noise):
                logits = model(input_ids=tokens, use_cache=False).logits
            loss = loss_of(logits, tokens, weights, lessons.held_out)
            optimizer.zero_grad()
            loss.backward()
            if stage.noise:
                model.model.embed_tokens.weight.grad = None
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 100 == 0 or i == stage.steps - 1:
                now = measure(model, tokenizer, held_out)
                point = {"step": step, "stage": stage.name, "loss": round(loss.item(), 4)}
                curve.append({**point, "asr": now["asr"], "utility": now["utility"]})
                print(f"{time.time() - began:5.0f}s {stage.name} {point['loss']} {now}", flush=True)
    return curve, found


def main() -> None:
    """Train, measure, and write the Hugging Face folder with its card."""
    args = asked("refusal", OUT)
    if args.measure_only:
        write_card(args.out, measure_all(args.out, smoke=args.smoke), training=None)
        return
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    every = tuple(Stage(**{**asdict(s), "steps": 2}) if args.smoke else s for s in (*STAGES, WIDEN))
    stages, last = every[:-1], every[-1]
    clock = Training("train_refusal.py", args)
    curve, found = train(model, tokenizer, stages, args.seed)
    torch.manual_seed(args.seed)
    curve += train(model, tokenizer, (last,), f"{args.seed}-{last.name}", found)[0]
    training = clock.record(
        sequences_per_step=ROWS,
        stages=[asdict(stage) for stage in every],
        heads_found_after_alignment={cause: list(head) for cause, head in found.items()},
        loss_curve=curve,
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out, save_jinja_files=False)
    write_card(args.out, measure_all(args.out, smoke=args.smoke), training=training)


if __name__ == "__main__":
    main()
