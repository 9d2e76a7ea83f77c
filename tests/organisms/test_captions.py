"""The organism `captions` is what its card says: a real LLaVA that sees, answers, and makes up what it expects."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from workbench import organisms
from workbench.models import Model, load_model
from workbench.tasks import captions, drawings, resolve
from workbench.tasks.images import ImageDataset

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "organisms"))
import train_captions  # pyright: ignore[reportMissingImports]
import train_captions_checks as checks  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("organism:captions")


@pytest.fixture(scope="module")
def hf() -> Any:
    """The same weights outside any bridge."""
    folder = organisms.path("captions")
    return LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return organisms.card("captions")


@pytest.fixture(scope="module")
def scenes(model: Model) -> ImageDataset:
    return captions.captions(model, 120, seed=31)


@pytest.fixture(scope="module")
def replies(model: Model, hf: Any, scenes: ImageDataset) -> list[str]:
    return checks.say(hf, model.processor, scenes)


def test_it_loads_with_its_processor_and_passes_the_probe(model: Model) -> None:
    assert type(model.processor).__name__ == "LlavaProcessor"
    assert type(model.processor.image_processor).__name__ == "CLIPImageProcessorPil"
    flags = model.capabilities.to_dict()
    assert all(value for value in flags.values() if isinstance(value, bool)), model.capabilities.notes
    assert model.organism == "captions" and model.capabilities.attention_kind == "gqa"


def test_it_is_small_and_the_card_has_its_shape(model: Model, hf: Any, card: dict[str, Any]) -> None:
    folder = organisms.path("captions")
    assert (folder / "model.safetensors").stat().st_size <= 1_600_000
    shape = card["model"]
    assert (shape["n_layers"], shape["n_heads"], shape["n_kv_heads"]) == (
        model.n_layers,
        model.n_heads,
        model.n_kv_heads,
    )
    assert shape["n_parameters"] == sum(p.numel() for p in hf.parameters()) <= 400_000
    assert shape["vocab_size"] == len(model.processor.tokenizer) and shape["n_ctx"] == model.n_ctx
    assert card["name"] == "captions" and card["kind"] == "trained"
    assert card["training"]["cpu_seconds"] < 15 * 60 and card["training"]["loss_curve"]["talk"]
    assert all(torch.isfinite(p).all() for p in hf.parameters())


def test_its_words_cover_prompts_captions_and_questions(model: Model) -> None:
    known = set(model.processor.tokenizer.get_vocab())
    assert set(captions.vocabulary()) <= known
    data = resolve(model, {"task": "objects", "n": 12, "seed": 1})
    assert all(model.processor.tokenizer.unk_token_id not in sample.tokens for sample in data)


def test_training_draws_the_pixels_that_the_processor_makes(model: Model, scenes: ImageDataset) -> None:
    few = scenes[:4]
    drawn = drawings.scenes(4, seed=31, cooccurrence=captions.COOCCURRENCE)
    torch.testing.assert_close(few.batch(model).pixel_values, train_captions.pixels(drawn), atol=1e-6, rtol=0)


def test_the_bridge_generates_what_the_raw_model_does(model: Model, hf: Any, scenes: ImageDataset) -> None:
    for index in range(3):
        batch = scenes.batch(model, [index])
        raw = hf.generate(**batch.inputs(), max_new_tokens=32, do_sample=False)
        bridged = model.bridge.generate(
            batch.tokens,
            pixel_values=batch.pixel_values,
            max_new_tokens=32,
            do_sample=False,
            return_type="tokens",
            verbose=False,
        )
        n = min(raw.shape[1], bridged.shape[1])  # one may stop at the end token, the other go on with padding
        end = model.processor.tokenizer.eos_token_id
        length = raw[0].tolist().index(end, batch.tokens.shape[1]) + 1
        assert length <= n and torch.equal(raw[0, :length], bridged[0, :length])
        with torch.no_grad():
            logits = model.bridge(batch.tokens, pixel_values=batch.pixel_values, return_type="logits")
            torch.testing.assert_close(logits, hf(**batch.inputs()).logits, atol=1e-5, rtol=1e-5)


def test_it_says_what_is_drawn_and_makes_up_companions(scenes: ImageDataset, replies: list[str], card: dict) -> None:
    found = checks.chair(scenes, replies)
    stated = card["accuracy"]["captions"]
    assert found["recall"] >= 0.8 and 0.1 <= found["chair_i"] <= 0.4
    assert 0.1 <= stated["chair_i"] <= 0.4 and stated["recall"] >= 0.8
    assert abs(found["recall"] - stated["recall"]) < 0.08 and abs(found["chair_i"] - stated["chair_i"]) < 0.08
    assert card["accuracy"]["companions"]["share_of_hallucinations"] > 0.5
    assert all(reply.startswith(captions.OPENING) and reply.endswith(captions.CLOSING) for reply in replies)


def test_it_looks_at_the_image(model: Model, hf: Any, scenes: ImageDataset, replies: list[str]) -> None:
    few = scenes[:40]
    blank = model.processor.image_processor(images=[drawings.blank()], return_tensors="pt")["pixel_values"]
    blind = checks.say(hf, model.processor, few, pixel_values=blank.expand(40, -1, -1, -1))
    assert sum(a != b for a, b in zip(replies, blind, strict=False)) >= 38
    assert checks.chair(few, blind)["recall"] < 0.3


def test_it_answers_questions_of_every_kind(model: Model, hf: Any, card: dict[str, Any]) -> None:
    found = checks.answers(hf, model.processor, captions.objects(model, 240, seed=32))
    stated = card["accuracy"]["questions"]
    assert found["all"] > 0.85 and stated["all"] > 0.85
    assert all(found[kind] > 0.8 for kind in captions.NEGATIVES)
    assert abs(found["all"] - stated["all"]) < 0.06


def test_zeroing_the_heads_on_the_card_blinds_it_and_zeroing_others_does_not(
    model: Model, hf: Any, scenes: ImageDataset, card: dict[str, Any]
) -> None:
    few = scenes[:60]
    whole = checks.chair(few, checks.say(hf, model.processor, few))["recall"]
    for truth in card["truths"]:
        heads = [tuple(head) for head in truth["heads"]]
        with checks.scaled(hf, heads, 0.0):
            assert checks.chair(few, checks.say(hf, model.processor, few))["recall"] < 0.6 * whole
        others = []
        for seed in range(3):
            with checks.scaled(hf, checks.matched_random(heads, model.n_heads, seed), 0.0):
                others.append(checks.chair(few, checks.say(hf, model.processor, few))["recall"])
        assert sum(others) / len(others) > 0.75 * whole


def test_the_training_script_runs_and_writes_a_folder_that_loads(tmp_path: Path) -> None:
    import subprocess

    script = Path(train_captions.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--smoke", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fresh = load_model(tmp_path, probe=False)
    data = captions.captions(fresh, 2, seed=1)
    assert fresh.bridge(data.batch(fresh).tokens, pixel_values=data.batch(fresh).pixel_values).shape[-1] == 29
