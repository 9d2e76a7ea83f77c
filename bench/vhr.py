"""What reinforcement costs while a caption is written, per generated token, next to plain generation.

A random LLaVA of the shape given (576 image tokens as in LLaVA-1.5; the cost does not depend on weights), one image,
greedy, KV cache on. Contestants take turns for `--rounds` rounds, because other jobs may share the machine; processor
seconds stand beside wall seconds. What a token costs after the first is the difference between `--tokens` tokens and
one, by their number; the change against plain is the median over rounds, each against its own plain run, with the
smallest and the largest.

    plain      nothing changed
    vhr        heads found at the first token (one more prefill, of the text alone) and kept
    refreshed  heads found again at every token: the run without image goes along
    hugging face   `generate` of the raw model, for orientation

    python bench/vhr.py [--threads 1] [--layers 12] [--width 768] [--image-tokens 576] [--tokens 128] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"


def build(n_layers: int, width: int, image_tokens: int):
    """A random model with the layers of a LLaVA-1.5 in a smaller size, and its raw twin."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from workbench.models import load_model

    side = round(image_tokens**0.5)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=14 * side,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=int(width * 8 / 3),
        num_hidden_layers=n_layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=2048,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=31999, vision_feature_layer=-1)
    torch.manual_seed(0)
    pair = [LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval() for _ in range(2)]
    pair[1].load_state_dict(pair[0].state_dict())
    return load_model(pair[0], tokenizer=None, name=f"llava {n_layers} layers, d {width}", device="cpu"), pair[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--image-tokens", type=int, default=576)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    from workbench.analyses.vhd.branches import Branch
    from workbench.analyses.vhd.generate import Reinforcement, write
    from workbench.analyses.vhd.score import reinforced_layers
    from workbench.tasks.prompting import Placeholder

    model, raw = build(args.layers, args.width, args.image_tokens)
    slot = Placeholder(None, "<image>", 31999, 0, 1, 2048, False)
    prompt = list(range(100, 130))
    side = round(args.image_tokens**0.5)
    pixels = {"pixel_values": torch.randn(1, 3, 14 * side, 14 * side)}
    image = Branch(((1, *[31999] * args.image_tokens, *prompt),), pixels, slot)
    text = Branch(((1, *prompt),), None, slot)
    layers = reinforced_layers(None, args.layers)

    def ours(steps: int, change: Reinforcement | None) -> None:
        write(model, image, max_new_tokens=steps, ends=frozenset(), change=change, text=text)

    def theirs(steps: int) -> None:
        with torch.no_grad():
            raw.generate(
                input_ids=torch.tensor(image.rows),
                **pixels,
                max_new_tokens=steps,
                min_new_tokens=steps,
                do_sample=False,
            )

    contestants: dict[str, Callable[[int], None]] = {
        "plain": lambda steps: ours(steps, None),
        "vhr": lambda steps: ours(steps, Reinforcement(2.0, layers)),
        "refreshed": lambda steps: ours(steps, Reinforcement(2.0, layers, refresh=True)),
        "hugging face": theirs,
    }
    took: dict[tuple[str, int], list[np.ndarray]] = {}  # wall and processor seconds of each round
    for _ in range(args.rounds):
        for steps in (1, args.tokens):
            for name, work in contestants.items():
                wall, cpu = time.perf_counter(), time.process_time()
                work(steps)
                seconds = np.array([time.perf_counter() - wall, time.process_time() - cpu])
                took.setdefault((name, steps), []).append(seconds)
    first = {name: np.array(took[name, 1]) * 1e3 for name in contestants}  # [round, 2], milliseconds
    each = {name: (np.array(took[name, args.tokens]) * 1e3 - first[name]) / (args.tokens - 1) for name in contestants}
    print(
        f"{model.name}, {args.image_tokens} image tokens, {len(prompt)} words, {args.tokens} new tokens, "
        f"{args.rounds} rounds, {args.threads} thread(s), float32, CPU; heads of layers "
        f"{', '.join(map(str, layers))}"
    )
    print("  milliseconds, wall (processor)   first token      each token after it   against plain, processor")
    for name in contestants:
        (wall, cpu), (later, later_cpu) = np.median(first[name], axis=0), np.median(each[name], axis=0)
        change = each[name][:, 1] / each["plain"][:, 1] - 1
        print(
            f"  {name:16s} {wall:19.0f} ({cpu:.0f}) {later:16.2f} ({later_cpu:.2f})"
            f"      {np.median(change):+.1%} ({change.min():+.1%} to {change.max():+.1%})"
        )


if __name__ == "__main__":
    main()
