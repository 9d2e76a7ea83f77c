"""Train the organism `captions`: a LLaVA of 380,000 weights that describes drawn shapes, and makes some of them up.

    python experiments/organisms/train_captions.py                    # the model in the package; minutes on one core
    python experiments/organisms/train_captions.py --smoke --out DIR  # a few steps, to see that everything runs
    python experiments/organisms/train_captions.py --measure-only     # measure the model again, rewrite its card

1. `see`: the vision tower and the projector learn to put each patch near the words for its colour and its shape, in
   the language model's own embedding: what CLIP's training and LLaVA's alignment stage do for a large model.
2. `talk`: everything learns to caption scenes and to answer questions about them. In these scenes a leader's companion
   is drawn in four of five cases, and a caption mentions the companion that is not there as often as not (label noise);
   some captions come without their image. So the text alone says "companion", and the image has to say "not there".
   The questions are answered truthfully.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from train_captions_card import measure, write_card
from training_script import Training, asked
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from workbench.tasks import captions, drawings
from workbench.tasks.drawings import COMPANIONS, LEADERS, Scene

OUT = Path(__file__).parents[2] / "workbench" / "organisms" / "data" / "captions"
N_CTX = 128
PATCH = 8
N_PATCHES = (drawings.SIZE // PATCH) ** 2
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """What one training run does."""

    see_steps: int = 250
    talk_steps: int = 1000
    see_lr: float = 3e-3
    talk_lr: float = 2.5e-3
    batch: int = 32  # images per step
    asking: float = 0.5  # share of the images that come with questions, the others with a caption
    questions: int = 3  # about one image, one after the other
    answer_weight: float = 0.4  # of the loss on yes and no
    text_only: int = 6  # captions per step without their image
    text_weight: float = 0.15  # of their loss
    cooccurrence: float = 0.8  # of the scenes
    alone: float = 0.1
    noise: float = 0.5  # probability that a caption mentions a companion that is not drawn


SMOKE = Recipe(see_steps=3, talk_steps=3, batch=4, text_only=2)


def build_processor() -> Any:
    """One token per word; an image is scaled to 48 x 48 pixels and 36 tokens."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *captions.vocabulary()])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    raw.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=N_CTX,
    )
    side = drawings.SIZE
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: Any) -> Any:
    """A CLIP tower of two layers, a projector, a Llama of four layers with eight heads in four key-value groups."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=drawings.SIZE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=112,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=N_CTX,
        rms_norm_eps=1e-5,
        initializer_range=0.08,  # near 1 / sqrt(hidden_size): with the usual 0.02 every head begins by averaging
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=N_PATCHES,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


class World:
    """Training batches of scenes with captions and questions; all randomness comes from one seed."""

    def __init__(self, tokenizer: Any, recipe: Recipe, seed: int) -> None:
        self.rng = np.random.default_rng([22, seed])  # not the scenes of any evaluation
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.image = [tokenizer.convert_tokens_to_ids("<image>")] * N_PATCHES

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def scene(self) -> Scene:
        return drawings.scene(self.rng, cooccurrence=self.recipe.cooccurrence, alone=self.recipe.alone)

    def spoken(self, scene: Scene) -> list[str]:
        """What the caption mentions: the pairs in any order, and now and then a companion that is not drawn."""
        order: list[str] = []
        for i in self.rng.permutation(len(LEADERS)):
            leader, companion = LEADERS[int(i)], COMPANIONS[LEADERS[int(i)]]
            has_leader, has_companion = leader in scene.objects, companion in scene.objects
            order += [leader] * has_leader
            if has_companion or (has_leader and self.rng.random() < self.recipe.noise):
                order.append(companion)
        return order

    def asked(self, scene: Scene) -> tuple[str, str]:
        """A question and its true answer; absent objects are random or, as often, companions of drawn ones."""
        if self.rng.random() < 0.5:
            pool, answer = scene.objects, "yes"
        else:
            missing = captions.absent(scene, "adversarial")
            pool = missing if missing and self.rng.random() < 0.5 else captions.absent(scene, "random")
            answer = "no"
        about = pool[int(self.rng.integers(len(pool)))]
        return captions.ASK.format(object=about), f"{answer} ."

    def row(self, scene: Scene, *, asking: bool, with_image: bool = True) -> tuple[list[int], list[int]]:
        """Token ids, and the same as labels where the model speaks."""
        if asking:
            turns = [self.asked(scene) for _ in range(self.recipe.questions)]
        else:
            turns = [(captions.DESCRIBE, captions.caption(self.spoken(scene)))]
        ids = [self.tokenizer.bos_token_id, *(self.image if with_image else [])]
        labels = [IGNORED] * len(ids)
        for prompt, reply in turns:
            asked, said = self._ids(prompt), [*self._ids(reply), self.tokenizer.eos_token_id]
            ids += asked + said
            labels += [IGNORED] * len(asked) + said
        return ids, labels

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids `[batch, pos]`, labels `[batch, pos]`, pixel values `[batch, 3, size, size]`."""
        drawn = [self.scene() for _ in range(self.recipe.batch)]
        rows = [self.row(scene, asking=bool(self.rng.random() < self.recipe.asking)) for scene in drawn]
        return *self._padded(rows), pixels(drawn)

    def text_batch(self) -> tuple[Tensor, Tensor]:
        """Captions of scenes that are not shown."""
        drawn = [self.scene() for _ in range(self.recipe.text_only)]
        return self._padded([self.row(scene, asking=False, with_image=False) for scene in drawn])

    def _padded(self, rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
        """On the right: what follows the end is never read."""
        longest = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
        return ids, torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows])


def pixels(drawn: list[Scene]) -> Tensor:
    """What the processor makes of the scenes (a test compares), without its detours."""
    stack = np.stack([np.asarray(drawings.draw(scene), dtype=np.float32) for scene in drawn])
    return torch.from_numpy(stack.transpose(0, 3, 1, 2) / 127.5 - 1.0)


def patch_labels(drawn: list[Scene]) -> tuple[Tensor, Tensor]:
    """Colour and shape that cover the middle of each patch `[batch, patch]`; one past the last where there is paper."""
    side = drawings.SIZE // PATCH
    centre = (np.arange(side) + 0.5) / side
    colours = np.full((len(drawn), side, side), len(drawings.COLOURS))
    shapes = np.full((len(drawn), side, side), len(drawings.SHAPES))
    for i, scene in enumerate(drawn):
        for thing in scene.things:
            reach = thing.radius + 0.25 / side
            inside = (abs(centre[:, None] - thing.y) < reach) & (abs(centre[None, :] - thing.x) < reach)
            colour, shape = thing.name.split()
            colours[i][inside] = drawings.COLOURS.index(colour)
            shapes[i][inside] = drawings.SHAPES.index(shape)
    return torch.from_numpy(colours.reshape(len(drawn), -1)), torch.from_numpy(shapes.reshape(len(drawn), -1))


def see(model: Any, tokenizer: Any, recipe: Recipe, seed: int) -> list[dict[str, float]]:
    """Stage 1: each patch to the words for what it shows."""
    rng = np.random.default_rng([23, seed])
    embedding = model.model.language_model.embed_tokens.weight
    words = [tokenizer.convert_tokens_to_ids(list(names)) for names in (drawings.COLOURS, drawings.SHAPES)]
    paper = nn.Parameter(torch.zeros(len(words), 1, embedding.shape[1]))
    eyes = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    learning = [*eyes, embedding, paper]
    optimizer = torch.optim.AdamW(learning, lr=recipe.see_lr, weight_decay=0.01)
    curve = []
    for step in range(recipe.see_steps):
        _set_rate(optimizer, recipe.see_lr, step, recipe.see_steps)
        drawn = [drawings.scene(rng, cooccurrence=0.5, alone=0.3) for _ in range(3 * recipe.batch)]
        features = image_features(model, pixels(drawn))
        loss, right = torch.zeros(()), torch.tensor(True)
        for ids, nothing, labels in zip(words, paper, patch_labels(drawn), strict=True):
            logits = features @ torch.cat([embedding[ids], nothing]).T
            loss = loss + F.cross_entropy(logits.flatten(0, 1), labels.flatten())
            right = right & (logits.argmax(-1) == labels)
        _update(optimizer, loss, learning)
        if (step + 1) % max(1, recipe.see_steps // 10) == 0:
            things = labels < len(drawings.SHAPES)
            accuracy = right[things].float().mean().item()
            curve.append({"step": step + 1, "loss": round(loss.item(), 4), "patch_accuracy": round(accuracy, 4)})
            print(f"see {curve[-1]}", flush=True)
    return curve


def image_features(model: Any, pixel_values: Tensor) -> Tensor:
    """What the language model reads in place of the image tokens `[batch, patch, d_model]`."""
    hidden = model.model.vision_tower(pixel_values).last_hidden_state[:, 1:]
    return model.model.multi_modal_projector(hidden)


def talk(model: Any, tokenizer: Any, recipe: Recipe, seed: int) -> list[dict[str, float]]:
    """Stage 2: captions and answers."""
    world = World(tokenizer, recipe, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.talk_lr, betas=(0.9, 0.98), weight_decay=0.01)
    curve, began = [], time.time()
    yes_no = torch.tensor([tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")])
    for step in range(recipe.talk_steps):
        _set_rate(optimizer, recipe.talk_lr, step, recipe.talk_steps)
        ids, labels, pixel_values = world.batch()
        logits, loss = _loss(model, ids, labels, pixel_values=pixel_values)
        _, text_loss = _loss(model, *world.text_batch())
        target = labels[:, 1:]
        answers = torch.isin(target, yes_no)  # few among many words, so they count once more by themselves
        answer_loss = F.cross_entropy(logits[answers], target[answers]) if answers.any() else 0.0
        total = loss + recipe.answer_weight * answer_loss + recipe.text_weight * text_loss
        _update(optimizer, total, list(model.parameters()))
        if (step + 1) % max(1, recipe.talk_steps // 30) == 0:
            right = (logits.argmax(-1) == target)[answers].float().mean().item()
            point = {"loss": loss.item(), "text_only_loss": text_loss.item(), "answer_accuracy": right}
            curve.append({"step": step + 1, **{k: round(v, 4) for k, v in point.items()}})
            print(f"{time.time() - began:5.0f}s talk {curve[-1]}", flush=True)
    return curve


def _loss(model: Any, ids: Tensor, labels: Tensor, **images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits that predict `labels[:, 1:]`, and their mean loss."""
    logits = model(input_ids=ids, use_cache=False, **images).logits[:, :-1]
    return logits, F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _set_rate(optimizer: Any, peak: float, step: int, steps: int) -> None:
    """Up in the first twentieth, then down to a fiftieth along a cosine."""
    warm = max(1, steps // 20)
    falling = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = float(peak * min(1.0, (step + 1) / warm) * falling)


def _update(optimizer: Any, loss: Tensor, parameters: list[Tensor]) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def main() -> None:
    """Train, measure, and write the Hugging Face folder with its card."""
    args = asked("captions", OUT)
    if args.measure_only:
        write_card(args.out, measure(args.out, smoke=args.smoke), training=None)
        return
    torch.manual_seed(args.seed)
    recipe = SMOKE if args.smoke else Recipe()
    processor = build_processor()
    model = build_model(processor.tokenizer)
    clock = Training("train_captions.py", args)
    seen = see(model, processor.tokenizer, recipe, args.seed)
    curve = talk(model, processor.tokenizer, recipe, args.seed)
    training = clock.record(
        recipe=asdict(recipe),
        loss_curve={"see": seen, "talk": curve},
    )
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    write_card(args.out, measure(args.out, smoke=args.smoke), training=training)


if __name__ == "__main__":
    main()
