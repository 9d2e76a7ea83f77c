"""VHD and VHR against plain hooks on the raw Hugging Face modules, and what the analysis makes of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import vhd as slow
from tests.tiny import tiny
from tests.tiny_vision import ARCHITECTURES, pictures, tiny_vision, tiny_vision_hf, tiny_vision_processor
from workbench import analyses, tasks
from workbench.analyses.vhd import score, vhd
from workbench.analyses.vhd.branches import Views
from workbench.analyses.vhd.generate import Factors, Reinforcement, end_tokens, write
from workbench.errors import CapabilityError, InputError
from workbench.models import load_model
from workbench.primitives.forward import forward
from workbench.tasks.images import images_from_samples

PROMPTS = ("the cat is in", "red fish and bird saw", "one two", "the key is in the house")


@cache
def model_of(arch: str) -> Any:
    return tiny_vision(arch)


@cache
def raw_of(arch: str) -> Any:
    return tiny_vision_hf(arch)


@cache
def data_of(arch: str) -> Any:
    rows = [
        {"image": picture, "prompt": prompt, "objects": ["cat", "dog"]}
        for picture, prompt in zip(pictures(len(PROMPTS)), PROMPTS, strict=True)
    ]
    return images_from_samples(model_of(arch), rows, vocabulary=("cat", "dog", "bird", "red fish"))


def alone(arch: str, index: int) -> dict[str, Any]:
    """What the raw model takes for one sample."""
    return {k: v for k, v in data_of(arch).batch(model_of(arch), [index]).inputs().items() if k != "attention_mask"}


def mean_pixels(arch: str) -> torch.Tensor:
    return data_of(arch).batch(model_of(arch)).pixel_values.mean(dim=0, keepdim=True)


# ---- VHD


@pytest.mark.parametrize("without", ["removed", "masked", "mean_image"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_vhd_is_that_of_hooks_on_the_raw_modules(arch: str, without: str) -> None:
    model, raw, data = model_of(arch), raw_of(arch), data_of(arch)
    result = wb.vhd(model, data, without=without, max_new_tokens=3, controls=0, bootstrap=5)
    tokens = result.tables["tokens"]
    for index, sample in enumerate(data):
        said = tokens[tokens["example"] == sample.id]["token"].tolist()
        for step in range(len(said)):
            expected = slow.vhd_of(raw, alone(arch, index), without, "paper", said[:step], mean_pixels(arch))
            if step == 0:
                np.testing.assert_allclose(result.per_example[index], expected, atol=1e-5)
            top = expected.topk(1, dim=-1).values.sum()
            assert result.arrays["t_vhd"][index, step] == pytest.approx(float(top), abs=1e-5)
    assert result.heads.matrix().max() > 0.5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_released_variant_is_that_of_hooks_on_the_raw_modules(arch: str) -> None:
    model, raw, data = model_of(arch), raw_of(arch), data_of(arch)
    found = wb.vhd(model, data, variant="released", max_new_tokens=1, controls=0, bootstrap=5)
    for index in range(len(data)):
        expected = slow.vhd_of(raw, alone(arch, index), "removed", "released", [])
        np.testing.assert_allclose(found.per_example[index], expected, rtol=1e-5, atol=1e-5)
        for layer in range(model.n_layers):
            heads = slow.above_median(expected[layer].tolist(), "released")
            assert found.arrays["chosen"][index, layer].nonzero()[0].tolist() == heads


def test_the_outlier_rule_needs_both_and_variants_differ() -> None:
    vhd, ta = torch.tensor([1.0, 1.0, 1.0, 9.0]), torch.tensor([1.0, 1.0, 1.0, 8.0])
    assert score.outliers(vhd, ta, "paper").tolist() == [False, False, False, True]
    assert not score.outliers(vhd, ta.flip(0), "paper").any()  # large without the image too, but another head
    assert score.outliers(vhd, ta, "released").tolist() == [False, False, False, True]
    assert not score.outliers(vhd / 10, ta, "released").any()  # its deviation is below 1
    assert score.outliers(vhd / 10, ta, "paper").any()
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert score.chosen(values, "paper").tolist() == [False, False, True, True]
    assert score.chosen(values, "released").tolist() == [False, False, True, True]
    odd = torch.tensor([0.0, 2.0, 2.0, 4.0])
    assert score.chosen(odd, "paper").tolist() == score.chosen(odd, "released").tolist() == [False, False, False, True]
    between = torch.tensor([0.0, 0.0, 3.0, 1.0])  # medians 1/2 and 0
    assert score.chosen(between, "paper").tolist() == score.chosen(between, "released").tolist()


def test_layers_are_the_papers_rule_in_proportion() -> None:
    assert score.reinforced_layers(None, 32) == (1, *range(18, 32))
    assert score.reinforced_layers(None, 4) == (1, 2, 3)
    assert score.reinforced_layers((2, 0, 2), 4) == (0, 2)


# ---- VHR


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_reinforced_captions_are_those_of_hooks_on_the_raw_modules(arch: str, refresh: bool) -> None:
    """Ours with the cache, in a padded batch; theirs alone, every step from scratch, or with Hugging Face's cache."""
    model, data = model_of(arch), data_of(arch)
    everything = list(range(len(data)))
    views = Views(model, data, "removed")
    variant = "released" if arch == "llava-gqa" else "paper"
    change = Reinforcement(2.0, (1, 2), variant=variant, refresh=refresh)
    ours = write(
        model,
        views.image(everything),
        max_new_tokens=5,
        ends=frozenset(),
        change=change,
        text=views.text(everything),
        keep_logits=True,
    )
    plain = write(model, views.image(everything), max_new_tokens=5, ends=frozenset(), keep_logits=True)
    for index in everything:
        how = slow.How(2.0, (1, 2), variant, refresh, steps=5)
        for twin in (slow.reinforced, slow.reinforced_with_cache):
            tokens, logits, heads = twin(raw_of(arch), alone(arch, index), how)
            assert ours.tokens[index] == tokens
            torch.testing.assert_close(ours.logits[index], logits, rtol=1e-5, atol=1e-5)
            assert {layer: found[index].nonzero()[:, 0].tolist() for layer, found in change.found.items()} == heads
        assert (plain.logits[index, 0] - logits[0]).abs().max() > 1e-2
    if refresh:
        fixed = Reinforcement(2.0, (1, 2), variant=variant)
        other = write(
            model,
            views.image(everything),
            max_new_tokens=5,
            ends=frozenset(),
            change=fixed,
            text=views.text(everything),
            keep_logits=True,
        )
        torch.testing.assert_close(other.logits[:, 0], ours.logits[:, 0])
        assert (other.logits - ours.logits).abs().max() > 1e-3


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("arch", ["llava", "llava-gqa"])
def test_what_is_left_of_a_difference_is_rounding(arch: str, refresh: bool) -> None:
    """In double precision nothing is. (Gemma 3 computes its norms in single precision, whatever its weights are.)"""
    double = torch.float64
    model, raw = tiny_vision(arch, dtype=double), tiny_vision_hf(arch, dtype=double)
    data = data_of(arch)
    views = Views(model, data, "removed")
    for index in range(len(data)):
        change = Reinforcement(2.0, (1, 2), refresh=refresh)
        image, text = views.image([index]), views.text([index])
        ours = write(model, image, max_new_tokens=4, ends=frozenset(), change=change, text=text, keep_logits=True)
        inputs = {k: v.to(double) if v.is_floating_point() else v for k, v in alone(arch, index).items()}
        how = slow.How(2.0, (1, 2), "paper", refresh, steps=4)
        for twin in (slow.reinforced, slow.reinforced_with_cache):
            tokens, logits, _ = twin(raw, inputs, how)
            assert ours.tokens[0] == tokens and ours.logits is not None
            torch.testing.assert_close(ours.logits[0], logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_cache_changes_nothing(arch: str) -> None:
    """The same heads scaled by the same factors, cached and in one pass over everything."""
    model, data = model_of(arch), data_of(arch)
    views = Views(model, data, "removed")
    factors = torch.ones(len(data), model.n_layers, model.n_heads)
    factors[:, 1, 2], factors[1, 2, 0] = 0.0, 3.0
    change = Factors(factors)
    assert change.layers() == (1, 2)
    branch = views.image(range(len(data)))
    out = write(model, branch, max_new_tokens=4, ends=frozenset(), change=change, keep_logits=True)
    padded = branch.padded([row[:-1] for row in out.tokens])
    hooks = [(f"blocks.{layer}.attn.hook_z", lambda z, _, layer=layer: change(layer, z)) for layer in change.layers()]
    from workbench.primitives.hooks import hooked

    with torch.no_grad(), hooked(model, hooks, copy=False):
        logits = forward(model, padded.tokens, **padded.options(), logits_to_keep=4).logits
    torch.testing.assert_close(out.logits, logits, rtol=1e-5, atol=1e-5)


def test_an_end_token_ends_a_row_alone() -> None:
    model, data = model_of("llava"), data_of("llava")
    branch = Views(model, data, "removed").image([0, 1])
    free = write(model, branch, max_new_tokens=4, ends=frozenset())
    end = free.tokens[0][1]
    out = write(model, branch, max_new_tokens=4, ends=frozenset({end}))
    assert out.forced[0] == free.tokens[0][:2] and out.tokens[0] == free.tokens[0][:1]
    if end not in free.tokens[1]:
        assert out.tokens[1] == free.tokens[1]


def test_a_longer_neighbour_does_not_end_a_caption_early(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = model_of("llava"), data_of("llava")
    lengths = [sample.length for sample in data]
    limit = max(lengths) + 2
    monkeypatch.setattr(type(model), "n_ctx", limit)
    views = Views(model, data, "removed")
    out = write(model, views.image(range(len(data))), max_new_tokens=6, ends=frozenset())
    assert [len(tokens) for tokens in out.forced] == [min(6, limit - n + 1) for n in lengths]
    for index, tokens in enumerate(out.forced):
        assert write(model, views.image([index]), max_new_tokens=6, ends=frozenset()).forced == [tokens]


def test_an_image_mark_ends_a_caption() -> None:
    """It was read as a picture without pixels, and the run refused for what the data were not guilty of."""
    processor, hf = tiny_vision_processor("llava"), tiny_vision_hf("llava")
    model, data = model_of("llava"), data_of("llava")
    free = write(model, Views(model, data, "removed").image([0, 1]), max_new_tokens=3, ends=frozenset())
    said, mark = free.tokens[0][0], hf.config.image_token_id
    with torch.no_grad():
        hf.lm_head.weight[mark] = 2 * hf.lm_head.weight[said]
    talker = load_model(hf, tokenizer=processor.tokenizer, processor=processor, name="m", device="cpu")
    assert mark in end_tokens(talker)
    branch = Views(talker, data, "removed").image([0, 1])
    out = write(talker, branch, max_new_tokens=3, ends=frozenset({mark}))
    assert out.forced[0] == [mark] and out.forced[1] == free.forced[1]
    assert vhd(talker, data, max_new_tokens=3, controls=0, bootstrap=5).heads.ok.all()


# ---- the analysis


@pytest.fixture(scope="module")
def planted() -> Any:
    return wb.load_model("organism:planted-vision")


def test_pale_flags_are_named_right_with_the_image_heads_reinforced(planted: Any) -> None:
    data = tasks.resolve(planted, {"task": "flags", "n": 16, "contrast": 0.35})
    params = {"alpha": (2.0,), "random_draws": 2, "ablate": (3,)}
    result = wb.vhd(planted, data, max_new_tokens=4, batch_size=16, bootstrap=50, vhr=params)
    table = result.tables["evaluation"].set_index("condition")
    assert table.loc["plain", "chair_i"] == 1.0 and table.loc["plain", "recall"] == 0.0
    assert table.loc["vhr", "chair_i"] == 0.0 and table.loc["vhr", "f1"] == 1.0
    assert table.loc["vhr", "chair_i_change"] == -1.0
    assert table.loc["others", "chair_i"] == 1.0
    assert table.loc["random", "chair_i"] > 0.5
    assert result.summary["vhr"]["layers"] == [1, 2, 3]
    captions = result.tables["captions"]
    assert set(captions["draw"][captions["condition"] == "random"]) == {0, 1}


def test_zeroing_the_heads_found_makes_it_say_what_is_usual(planted: Any) -> None:
    data = tasks.resolve(planted, {"task": "flags", "n": 16})
    result = wb.vhd(planted, data, max_new_tokens=4, batch_size=16, bootstrap=50, vhr={"ablate": (3,)})
    table = result.tables["evaluation"].set_index("condition")
    assert table.loc["plain", "chair_i"] == 0.0 and table.loc["zeroed", "chair_i"] == 1.0
    assert table.loc["zeroed random", "chair_i"] == 0.0
    said = result.tables["captions"].query("condition == 'zeroed'")["said"].str.rstrip(".").tolist()
    assert said == [sample.about for sample in data]


def test_a_head_that_the_text_moves_is_told_from_one_that_the_image_moves(planted: Any) -> None:
    from workbench import organisms

    truths = {truth["claim"]: truth for truth in organisms.card("planted-vision")["truths"]}
    data = tasks.resolve(planted, {"task": "flags", "n": 16})
    heads = wb.vhd(planted, data, max_new_tokens=1, bootstrap=50).heads
    image = [tuple(head) for head in truths["image"]["heads"]]
    assert set(heads.top(3)) == set(image)
    for head in image:
        row = heads.row(*head)
        assert row["score"] > 0.9 and row["null_mean"] < 0.01 and row["q"] < 0.05 and row["other_image"] > 0.1
    prior = heads.row(*truths["prior"]["heads"][0])
    assert prior["score"] < 0.05 and prior["null_mean"] > 0.3 and prior["null_p"] > 0.9


def test_what_docs_vision_says_of_the_captions_organism_holds_on_other_scenes() -> None:
    """Layer 0 is specific at alpha 2; silencing the four heads that tell an image from the mean one makes it worse."""
    model = wb.load_model("organism:captions", device="cpu")
    data: Any = tasks.resolve(model, {"task": "captions", "n": 60, "seed": 5})
    common: dict[str, Any] = {"batch_size": 60, "controls": 0, "bootstrap": 200}
    louder = wb.vhd(model, data, vhr={"layers": [0], "random_draws": 0}, **common)
    table = louder.tables["evaluation"].set_index("condition")
    assert table.loc["vhr", "chair_i_change"] < -0.2 and table.loc["vhr", "f1_change_high"] > 0
    assert table.loc["others", "chair_i_change"] > -0.1
    silent = wb.vhd(model, data, without="mean_image", vhr={"random_draws": 0, "ablate": [4]}, **common)
    table = silent.tables["evaluation"].set_index("condition")
    assert table.loc["zeroed", "chair_i_change_low"] > 0.1
    assert silent.summary["tokens"]["auroc"] > 0.8


def test_answers_are_judged_as_pope_does() -> None:
    model = model_of("llava")
    rows = [
        {"image": p, "prompt": "the cat is in", "answer": answer, "about": "cat"}
        for p, answer in zip(pictures(4), ("yes", "no") * 2, strict=True)
    ]
    data = images_from_samples(model, rows)
    result = wb.vhd(model, data, max_new_tokens=2, controls=1, bootstrap=5, vhr={"random_draws": 1})
    table = result.tables["evaluation"]
    assert {"answers_accuracy", "answers_f1", "answers_yes_ratio", "answers_unanswered"} <= set(table)
    assert "chair_i" not in table


def test_what_cannot_be_done_is_refused_in_a_sentence() -> None:
    model, data = model_of("llava"), data_of("llava")
    one = data[:1]
    with pytest.raises(InputError, match="two or more different images"):
        wb.vhd(model, one, without="mean_image")
    with pytest.raises(InputError, match="reads text only"):
        wb.vhd(tiny("llama"), data)
    with pytest.raises(InputError, match="dataset of at least one image"):
        wb.vhd(model, [])
    with pytest.raises(InputError, match="names layer 7"):
        wb.vhd(model, data, max_new_tokens=2, vhr={"layers": [7]})
    with pytest.raises(InputError, match="names 12 heads"):
        wb.vhd(model, data, max_new_tokens=2, vhr={"ablate": [12]})
    with pytest.raises(InputError, match="alpha"):
        analyses.get("vhd").parse({"vhr": {"alpha": []}})
    unknown = images_from_samples(model, [{"image": pictures(1)[0], "prompt": "the cat"}])
    with pytest.raises(InputError, match="no sample has objects or an answer"):
        wb.vhd(model, unknown, max_new_tokens=2, vhr={})
    silent = tiny_vision("llava", probe=False)
    with pytest.raises(CapabilityError, match="head_axis_ok"):
        wb.vhd(silent, data)
