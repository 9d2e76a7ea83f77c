"""`planted-sinks`: one coordinate is massive at BOS and at two patches; three heads are image-centric, two stare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import workbench as wb
from workbench import organisms, tasks
from workbench.organisms import planted
from workbench.organisms.planted import sinks
from workbench.tasks import flags

NAME = "planted-sinks"


def raw_streams(model: Any, processor: Any, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Stream before each layer `[layer, row, pos, d]`, attention of the last query `[layer, row, head, pos]`."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**data.batch(processor).inputs(), output_hidden_states=True, output_attentions=True)
    streams = torch.stack(out.hidden_states[: sinks.N_LAYERS])
    return streams, torch.stack([layer[:, :, -1] for layer in out.attentions])


def test_the_shipped_folder_is_what_the_generator_makes() -> None:
    fresh, card = planted.make(NAME), organisms.card(NAME)
    stored = LlavaForConditionalGeneration.from_pretrained(organisms.path(NAME)).state_dict()
    made = fresh.model.state_dict()
    assert set(stored) == set(made)
    for name, values in stored.items():
        torch.testing.assert_close(values, made[name], rtol=1e-5, atol=1e-5)
    assert {**card, "accuracy": None} == {**fresh.card, "accuracy": None}
    assert (organisms.path(NAME) / "model.safetensors").stat().st_size < 2_400_000


@pytest.mark.parametrize("seed", range(5))
def test_one_coordinate_is_massive_and_draws_attention_where_the_card_says(seed: int) -> None:
    """Read off the raw model: no analysis."""
    model, processor, slots, options = sinks.weights(seed=seed)
    data = flags.flags(processor, 6, seed=seed)
    streams, attention = raw_streams(model, processor, data)
    start, stop = data[0].image_span
    expected = {0, *(start + patch for patch in options["patches"])}
    size = streams.abs() / streams.square().mean(dim=-1, keepdim=True).sqrt()
    massive = {(int(pos), int(d)) for _, _, pos, d in (size > 20).nonzero()}
    assert massive == {(pos, sinks.DIMENSION) for pos in expected}
    assert size.amax(dim=(0, 1, 2)).topk(2).values[1] < 15.5, "the constant is large everywhere, massive nowhere"

    on_image = attention[..., start:stop].sum(dim=-1)
    on_sinks = attention[..., [start + patch for patch in options["patches"]]].sum(dim=-1)
    for role, (layer, head) in slots.items():
        image, sink = on_image[layer, :, head], on_sinks[layer, :, head]
        if role in sinks.IMAGE:
            assert (image > 0.99).all() and (sink > 0.28).all() and (sink < 0.36).all()
        elif role.startswith("staring"):
            assert (image > 0.9).all() and (sink > 0.9).all()
        else:
            assert (image < 0.01).all()


@pytest.mark.parametrize("seed", range(5))
def test_pale_flags_are_named_right_when_the_sinks_draw_less(seed: int) -> None:
    accuracy = planted.make(NAME, seed=seed).card["accuracy"]
    right = {key: value["names_the_colour_shown"] for key, value in accuracy.items() if key != "metric"}
    assert right["intact"] == right["without_the_staring_heads"] == 1.0
    assert right["without_the_image_heads"] == right["pale"] == 0.0
    assert right["pale_with_image_heads_that_sinks_do_not_draw"] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_analysis_finds_exactly_what_was_planted(seed: int, tmp_path: Any) -> None:
    made = planted.make(NAME, seed=seed)
    model = wb.load_model(planted.build(NAME, tmp_path / "fresh", seed=seed), device="cpu")
    result = wb.var(model, tasks.resolve(model, {"task": "flags", "n": 8}), bootstrap=20)  # type: ignore[arg-type]
    card, details = made.card["sinks"], result.summary["sink_details"]
    assert result.summary["sinks"] == "found" and details["dimensions"] == card["dimensions"]
    assert details["visual_per_image"] == len(card["image_tokens"]) and details["text_per_prompt"] == 1
    found = result.arrays["sinks"]
    assert not found[:, :2].any() and details["layers"] == [2, 3, 4]
    for layer in (2, 3, 4):
        assert [set(row.nonzero()[0]) for row in found[:, layer]] == [set(card["image_tokens"])] * 8
    image = {tuple(head) for head in made.card["truths"][0]["heads"]}
    assert set(result.heads.top(3)) == image
    centric = {head: result.heads.row(*head)["centric_share"] for head in result.heads.top(20)}
    assert all(centric[head] == 1.0 for head in image) and result.summary["n_significant"] == 3
    assert max(share for head, share in centric.items() if head not in image) < 0.2
    for layer, head in made.card["truths"][0]["roles"]["staring"]:
        row = result.heads.row(layer, head)
        assert row["image_mass"] > 0.9 and row["sink_share"] > 0.9 and centric[layer, head] == 0.0


def test_redistribution_names_pale_flags_right_and_random_heads_do_so_less() -> None:
    model = wb.load_model(f"organism:{NAME}", device="cpu")
    pale: Any = tasks.resolve(model, {"task": "flags", "n": 12, "contrast": sinks.PALE})
    how = {"max_new_tokens": 3, "random_draws": 2}
    table = wb.var(model, pale, bootstrap=50, redistribution=how).tables["evaluation"].set_index("condition")
    assert table.loc["plain", "chair_i"] == 1.0 and table.loc["redistributed", "chair_i"] == 0.0
    assert table.loc["redistributed", "f1"] == 1.0
    assert 0.3 < table.loc["random", "chair_i"] < 1.0 and table.loc["redistributed", "chair_i_vs_null_high"] < -0.5
    less = wb.var(model, pale, bootstrap=20, redistribution={**how, "p": 0.2}).tables["evaluation"]
    assert less.set_index("condition").loc["redistributed", "chair_i"] == 1.0, "a fifth is too little"
