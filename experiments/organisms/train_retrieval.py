"""Train the organism `retrieval`: a Llama of three layers that answers the needle task at any depth.

    python experiments/organisms/train_retrieval.py                     # the model in the package, minutes on two cores
    python experiments/organisms/train_retrieval.py --smoke --out DIR   # a few steps, to see that everything runs
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.tasks import prose


def build_tokenizer(n_ctx: int) -> PreTrainedTokenizerFast:
    """One token per word or punctuation mark of the synthetic English."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *prose.vocabulary()])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=n_ctx
    )


class World:
    """Training sequences as token ids; everything is drawn from one generator."""

    def __init__(self, tokenizer, seed: int, bank_sentences: int = 20000) -> None:
        self.rng = random.Random(f"train-{seed}")
        self.np_rng = np.random.default_rng(seed)
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        source = prose.sentences(seed + 1_000_003)  # not the haystack of any small evaluation seed
        self.bank = self._ids_many([next(source) for _ in range(bank_sentences)])
        self.words = np.array(sorted(set(tokenizer.get_vocab().values()) - {0, self.bos, self.eos}))

    def _ids_many(self, texts):
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def induction(self, length: int) -> tuple[list[int], list[float]]:
        """Random tokens of which segments come again: the skill that retrieval is made of, at every position."""
        ids, weight = [self.bos], [0.0]
        first = self.rng.randint(6, max(7, length // 2))
        ids += self.np_rng.choice(self.words, first).tolist()
        weight += [0.0] * first
        while len(ids) < length:
            size = self.rng.randint(5, 30)
            at = self.rng.randint(1, max(1, len(ids) - size - 1))
            piece = ids[at : at + size]
            gap = self.rng.randint(0, 6)
            ids += self.np_rng.choice(self.words, gap).tolist() + piece
            weight += [0.0] * gap + [0.0, *[1.0] * (len(piece) - 1)]
        return ids[:length], weight[:length]

    def needles(self, length: int, most: int, filler_weight: float) -> tuple[list[int], list[float]]:
        """A haystack with 1 to `most` needles of different owners, then one question and answer for each."""
        rng = self.rng
        k = rng.randint(1, most)
        while True:
            owners = rng.sample(prose.OWNERS, k)
            made = [prose.make_needle(rng, held_out=False, owner=owner) for owner in owners]
            texts = [m["needle"] for m in made] + [m["question"] for m in made] + [m["answer"] + "." for m in made]
            ids = self._ids_many(texts)
            needles, questions, answers = ids[:k], ids[k : 2 * k], ids[2 * k :]
            room = length - 1 - sum(map(len, ids)) - k
            if room >= 0:
                break
            k = max(1, k - 1)
        hay: list[list[int]] = []
        size = 0
        while size < room:
            sentence = rng.choice(self.bank)
            hay.append(sentence)
            size += len(sentence)
        if hay:
            hay[-1] = hay[-1][: len(hay[-1]) - (size - room)]
        pieces: list[tuple[list[int], float]] = [(s, filler_weight) for s in hay]
        for piece in needles:
            pieces.insert(rng.randint(0, len(pieces)), (piece, filler_weight))
        tokens, weight = [self.bos], [0.0]
        for piece, w in pieces:
            tokens += piece
            weight += [w] * len(piece)
        for i in rng.sample(range(k), k):
            tokens += questions[i] + answers[i] + [self.eos]
            weight += [filler_weight] * len(questions[i]) + [1.0] * (len(answers[i]) + 1)
        assert len(tokens) == length
        return tokens, weight

    def batch(self, size: int, length: int, p_induction: float, most: int, filler_weight: float):
        rows = [
            self.induction(length) if self.rng.random() < p_induction else self.needles(length, most, filler_weight)
            for _ in range(size)
        ]
        return torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])


def loss_of(model, tokens: Tensor, weight: Tensor):
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    ce = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view_as(tokens[:, 1:])
    w = weight[:, 1:]
    answer = w == 1
    acc = (logits.argmax(-1) == tokens[:, 1:])[answer].float().mean()
    return (ce * w).sum() / w.sum(), ce[answer].mean(), acc


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--layers", type=int, default=3)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--kv", type=int, default=4)
    p.add_argument("--d-head", type=int, default=16)
    p.add_argument("--d-model", type=int, default=128)
    p.add_argument("--d-mlp", type=int, default=128)
    p.add_argument("--theta", type=float, default=10000)
    p.add_argument("--n-ctx", type=int, default=512)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--wd", type=float, default=0.01)
    p.add_argument("--steps", type=str, default="64:600,128:400,256:200,384:60")
    p.add_argument("--tokens", type=int, default=4096)
    p.add_argument("--filler", type=float, default=0.1)
    p.add_argument("--most", type=int, default=4)
    p.add_argument("--lasso", type=float, default=0.0)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    tok = build_tokenizer(a.n_ctx)
    cfg = LlamaConfig(
        vocab_size=len(tok), hidden_size=a.d_model, intermediate_size=a.d_mlp, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.kv, head_dim=a.d_head, max_position_embeddings=a.n_ctx,
        rope_theta=a.theta, tie_word_embeddings=True, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        pad_token_id=None, rms_norm_eps=1e-5, attention_bias=False,
    )
    model = LlamaForCausalLM(cfg)
    print("params", sum(p.numel() for p in model.parameters()), "vocab", len(tok), flush=True)
    world = World(tok, a.seed)
    stages = [tuple(map(int, s.split(":"))) for s in a.steps.split(",")]
    total = sum(n for _, n in stages)
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.98), weight_decay=a.wd)
    t0 = time.time()
    step = 0
    for length, n in stages:
        for i in range(n):
            frac = step / total
            lr = a.lr * min(1, (step + 1) / 50) * (1 if frac < 0.6 else 0.05 + 0.95 * (1 - (frac - 0.6) / 0.4))
            for g in opt.param_groups:
                g["lr"] = lr
            L = length if i % 2 == 0 else world.rng.randint(48, length)
            p_ind = 0.5 if frac < 0.3 else 0.15
            tokens, weight = world.batch(max(4, a.tokens // L), L, p_ind, a.most, a.filler)
            loss, ans, acc = loss_of(model, tokens, weight)
            reg = torch.zeros(())
            if a.lasso:
                for layer in model.model.layers:
                    o = layer.self_attn.o_proj.weight.view(a.d_model, a.heads, a.d_head)
                    reg = reg + o.pow(2).sum((0, 2)).add(1e-8).sqrt().sum()
            opt.zero_grad()
            (loss + a.lasso * reg).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            step += 1
            if step % 50 == 0:
                print(f"{step} L={L} loss {loss.item():.3f} ans {ans.item():.3f} acc {acc.item():.3f} reg {reg.item():.1f} {time.time()-t0:.0f}s", flush=True)
    model.save_pretrained(a.out)
    tok.save_pretrained(a.out)


if __name__ == "__main__":
    main()
