"""The arithmetic of retrieval heads (Wu et al. 2024, arXiv 2404.15574, section 2): numpy arrays in, scores out.

Symbols follow the paper. At each decoding step t the model emits token w_t; head h attends most to key position
j_t (the argmax of the row that predicts w_t, over prompt and generated keys). The needle k is the half-open token
span `[a, b)` of the prompt x. Head h copies w_t when j_t lies in the needle and x[j_t] = w_t.

    wu          |g_h ∩ k| / |k|   with g_h the *set* of tokens h copied and k the set of needle tokens (paper, eq. 1)
    wu_compat   copies summed over steps / (b - a), as the reference code counts; repetition can take it above 1
    attention_mass   mean over steps of the attention that the row puts on the needle
    qr               mean over question tokens of their attention on the needle (QRHead, eq. 1), no generation needed

No model, no hooks, no data loading here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Span = tuple[int, int]


@dataclass(frozen=True)
class Copies:
    """Every (step, layer, head) whose most attended prompt token is the token emitted: the few that can score.

    `key` is the attended position, `token` the emitted token, `head` the flat index layer * n_heads + head.
    """

    head: Int[np.ndarray, " copies"]
    key: Int[np.ndarray, " copies"]
    token: Int[np.ndarray, " copies"]
    shape: tuple[int, int]

    @classmethod
    def find(
        cls,
        top_keys: Int[np.ndarray, "step layer head"],
        generated: Sequence[int],
        prompt: Sequence[int],
    ) -> Copies:
        """Steps at which a head's top key is a prompt position holding the token that was generated."""
        x, w = np.asarray(prompt), np.asarray(generated, dtype=np.int64)
        inside = (top_keys >= 0) & (top_keys < len(x))  # -1 marks a layer without attention; the rest is generated
        same = inside & (x[np.where(inside, top_keys, 0)] == w[:, None, None])
        step, layer, head = np.nonzero(same)
        n_layers, n_heads = top_keys.shape[1:]
        return cls(layer * n_heads + head, top_keys[step, layer, head], w[step], (n_layers, n_heads))

    def within(self, span: Span) -> Copies:
        """The copies whose attended position lies in `span`."""
        keep = (self.key >= span[0]) & (self.key < span[1])
        return Copies(self.head[keep], self.key[keep], self.token[keep], self.shape)


def wu(copies: Copies, prompt: Sequence[int], span: Span) -> Float[np.ndarray, "layer head"]:
    """Share of the needle's distinct tokens that each head copied from the needle at least once (paper, eq. 1)."""
    hits = copies.within(span)
    pairs = np.unique(np.stack([hits.head, hits.token]), axis=1)  # g_h as a set: each (head, token) once
    counts = np.bincount(pairs[0], minlength=copies.shape[0] * copies.shape[1])
    return counts.reshape(copies.shape) / len(set(prompt[span[0] : span[1]]))


def wu_compat(copies: Copies, span: Span) -> Float[np.ndarray, "layer head"]:
    """Number of copying steps over the needle's length, as the reference code accumulates it; may exceed 1."""
    hits = copies.within(span)
    counts = np.bincount(hits.head, minlength=copies.shape[0] * copies.shape[1])
    return counts.reshape(copies.shape) / max(span[1] - span[0], 1)


def find_span_by_token_set(needle: Sequence[int], prompt: Sequence[int]) -> Span:
    """The reference code's span finder: the first window sharing more than 90% of the needle's distinct tokens.

    It accepts windows that start early when the needle has more than ten distinct tokens, and gives the empty span
    (-1, -1) when none qualifies. Kept to reproduce published numbers; never used by `wu`.
    """
    wanted, n = set(needle), len(needle)
    for start in range(len(prompt)):
        if len(wanted.intersection(prompt[start : start + n])) / len(wanted) > 0.9:
            return start, start + n
    return -1, -1


def control_spans(n_tokens: int, span: Span, draws: int, rng: np.random.Generator) -> Int[np.ndarray, "draws 2"] | None:
    """Seeded spans of the needle's length elsewhere in the prompt, BOS excluded; None when nothing else fits."""
    width = span[1] - span[0]
    starts = np.array([s for s in range(1, n_tokens - width + 1) if s + width <= span[0] or s >= span[1]])
    if not len(starts) or not draws:
        return None
    chosen = rng.choice(starts, size=draws)
    return np.stack([chosen, chosen + width], axis=1)


def needle_recall(needle: str, response: str) -> float:
    """Percent of the needle's words found in the response, counted with multiplicity (ROUGE-1 recall, unstemmed)."""
    wanted = Counter(_words(needle))
    found = Counter(_words(response))
    if not wanted:  # a needle without a word character, such as punctuation: all or nothing
        return 100.0 if needle.strip() in response else 0.0
    return 100.0 * sum((wanted & found).values()) / sum(wanted.values())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
