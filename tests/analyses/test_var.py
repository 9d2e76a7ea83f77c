"""Visual attention sinks: the arithmetic, the search for planted sinks, and redistribution against the raw modules."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.reference import var as slow
from tests.tiny import tiny
from tests.tiny_vision import ARCHITECTURES, pictures, tiny_vision, tiny_vision_hf, tiny_vision_processor
from workbench import tasks
from workbench.analyses.var import ANALYSIS, score, var
from workbench.analyses.var.params import RedistributionParams, VarParams
from workbench.analyses.var.redistribution import Redistribution, redistributing
from workbench.analyses.vhd.branches import Views
from workbench.analyses.vhd.generate import write
from workbench.errors import InputError
from workbench.models.load import load_model
from workbench.primitives.hooks import hooked
from workbench.tasks.images import images_from_samples

PROMPTS = ("the cat is in", "red fish and bird saw", "one two")
DIMENSIONS, TAU = (5, 11), 1.2  # of a random model: some tokens above, some below


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
    return images_from_samples(model_of(arch), rows, vocabulary=("cat", "dog", "bird"))


def alone(arch: str, index: int) -> dict[str, Any]:
    """What the raw model takes for one sample."""
    inputs = data_of(arch).batch(model_of(arch), [index]).inputs()
    return {key: value for key, value in inputs.items() if key != "attention_mask"}


# ---- arithmetic


def test_phi_is_the_papers() -> None:
    x = torch.zeros(4096)
    x[2533] = 100.0
    assert score.phi(x, (2533, 1415)).item() == pytest.approx(64.0, rel=1e-6)  # sqrt(4096), as far as it goes
    assert score.phi(x, (1415,)).item() == 0.0
    ordinary = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    assert score.magnitude(ordinary).max() < 20 < score.magnitude(ordinary + x * 10)[2533]
    assert score.phi(ordinary, ()).item() == 0.0


def test_a_dimension_counts_when_it_is_massive_for_most_examples_in_one_layer() -> None:
    anchor = torch.ones(3, 2, 8)
    anchor[:, 1, 4] = 30.0
    anchor[0, 0, 2] = 90.0  # one example of three
    assert score.sink_dimensions(anchor, 20.0) == (4,)
    assert score.sink_dimensions(anchor[:, :0], 20.0) == ()


def test_redistribution_keeps_the_sum_and_the_proportions() -> None:
    row = torch.tensor([0.30, 0.10, 0.20, 0.05, 0.15, 0.20])
    image = torch.tensor([[False, True, True, True, False, False]])
    sinks = torch.tensor([[True, False, True, False, False, False]])
    new = score.redistributed(row[None, None, None], image, sinks, 0.6)[0, 0, 0]
    np.testing.assert_allclose(new, [0.12, 0.30, 0.08, 0.15, 0.15, 0.20], rtol=1e-6)
    rule = {"move": 0.6, "least": None, "min_mass": 0.0}
    np.testing.assert_allclose(new, slow.redistributed_row(row.tolist(), [1, 2, 3], [0, 2], **rule), rtol=1e-6)
    nowhere = score.redistributed(row[None, None, None], image, image | sinks, 0.6)[0, 0, 0]
    torch.testing.assert_close(nowhere, row)  # no other image token to give it to


def test_paper_and_code_mean_opposite_things_by_p_and_rho() -> None:
    assert score.moved(0.6, "paper") == 0.6 and score.moved(0.6, "released") == pytest.approx(0.4)
    assert score.least_share(0.8, "paper") == 0.8 and score.least_share(0.8, "released") == pytest.approx(0.2)
    image, sink = torch.tensor([0.5, 0.5, 0.1]), torch.tensor([0.2, 0.01, 0.0])
    options = {"min_mass": 0.2, "rho": 0.8}
    assert score.image_centric(image, sink, convention="paper", **options).tolist() == [False, True, False]
    assert score.image_centric(image, sink, convention="released", **options).tolist() == [True, True, False]
    how = RedistributionParams()
    assert list(Redistribution((), VarParams(), how).layers(5)) == [2, 3]
    assert list(Redistribution((), VarParams(convention="released"), how).layers(5)) == [2, 3, 4]


# ---- against the raw modules


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sinks_and_masses_are_those_of_the_raw_modules(arch: str) -> None:
    model, data = model_of(arch), data_of(arch)
    result = var(model, data, dimensions=DIMENSIONS, tau=TAU, first_layer=1, bootstrap=5)
    assert result.arrays["sinks"].any() and not result.arrays["sinks"][:, 0].any()
    for index, sample in enumerate(data):
        rows, streams = slow.last_rows(raw_of(arch), alone(arch, index))
        a, b = sample.image_span
        for layer, stream in enumerate(streams):
            phi = slow.phi(stream, DIMENSIONS)
            np.testing.assert_allclose(result.arrays["phi"][index, layer, : b - a], phi[a:b], rtol=1e-4)
            sinks = {i for i, value in enumerate(phi) if value > TAU and layer >= 1}
            free = [i for i in range(a, b) if i not in sinks]
            expected = rows[layer][:, free].sum(dim=-1)
            np.testing.assert_allclose(result.per_example[index, layer], expected, atol=1e-5)
            mass = result.arrays["image_mass"][index, layer]
            np.testing.assert_allclose(mass, rows[layer][:, a:b].sum(dim=-1), atol=1e-5)
            null = len(free) / sample.length
            np.testing.assert_allclose(result.arrays["null_per_example"][index, layer], null, rtol=1e-5)


def test_attention_rounded_to_zero_is_visible_all_the_same() -> None:
    """The null is a share of what can be seen: counted by weights above 0 it was up to 1.6 here."""
    processor, hf = tiny_vision_processor("llava"), tiny_vision_hf("llava")
    with torch.no_grad():
        for layer in hf.model.language_model.layers:
            layer.self_attn.q_proj.weight *= 30
    model = load_model(hf, tokenizer=processor.tokenizer, processor=processor, name="peaked", device="cpu")
    data = data_of("llava")
    result = var(model, data, bootstrap=5)
    for index, sample in enumerate(data):
        a, b = sample.image_span
        np.testing.assert_allclose(result.arrays["null_per_example"][index], (b - a) / sample.length, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"convention": "paper", "rho": 0.5, "p": 0.6},
        {"convention": "released", "rho": 0.3, "p": 0.4, "from_sinks": "visual"},
    ],
    ids=["paper", "released"],
)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_redistributed_generation_is_that_of_the_raw_modules(arch: str, options: dict[str, Any]) -> None:
    """Cached and padded in a batch, against the whole sequence at every step, alone."""
    model, data = model_of(arch), data_of(arch)
    own = {key: options[key] for key in ("convention", "rho")}
    params = VarParams(dimensions=DIMENSIONS, tau=TAU, first_layer=0, min_mass=0.1, **own)
    how = RedistributionParams(**{key: value for key, value in options.items() if key not in own})
    change = Redistribution(DIMENSIONS, params, how)
    branch = Views(model, data, "removed").image([0, 1, 2])
    plain = write(model, branch, max_new_tokens=3, ends=frozenset(), keep_logits=True).logits
    with redistributing(model, branch, change):
        out = write(model, branch, max_new_tokens=3, ends=frozenset(), keep_logits=True)
    assert out.logits is not None and plain is not None
    assert (out.logits[:, 0] - plain[:, 0]).abs().max() > 1e-3, "it changes something"
    for index in range(3):
        tokens, logits, _ = slow.generate(
            raw_of(arch),
            alone(arch, index),
            dimensions=DIMENSIONS,
            tau=TAU,
            layers=list(change.layers(model.n_layers)),
            steps=3,
            move=score.moved(how.p, params.convention),
            least=score.least_share(params.rho, params.convention),
            min_mass=params.min_mass,
            visual_only=how.from_sinks == "visual",
        )
        assert out.tokens[index] == tokens
        torch.testing.assert_close(out.logits[index], logits, rtol=1e-4, atol=1e-5)


# ---- what the analysis makes of it


def massive(data: Any, layer: int, dimension: int, tokens: list[int], size: float = 1000.0) -> Any:
    """A hook that makes one dimension massive at BOS and at some image tokens, wherever padding puts them."""

    def plant(x: torch.Tensor, _: Any) -> torch.Tensor:
        if x.shape[1] == 1:
            return x
        x = x.clone()
        lengths = [sample.length for sample in data][: len(x)]
        for row, length in enumerate(lengths):
            start = x.shape[1] - length
            x[row, start, dimension] = size
            for token in tokens:
                x[row, start + data[row].image_span[0] + token, dimension] = -size
        return x

    return [(f"blocks.{layer}.hook_in", plant)]


def test_planted_sinks_are_found() -> None:
    model, data = model_of("llava"), data_of("llava")
    with hooked(model, massive(data, 2, 7, [1, 3])):
        found = var(model, data, tau=5.0, bootstrap=5)  # sqrt(32) = 5.66 is as large as it gets here
    assert found.summary["sinks"] == "found"
    assert found.summary["sink_details"]["dimensions"] == [7]
    assert (
        found.summary["sink_details"]["visual_per_image"] == 2 and found.summary["sink_details"]["text_per_prompt"] == 1
    )
    assert found.arrays["sinks"][:, 2].tolist() == [[False, True, False, True]] * 3
    assert not found.arrays["sinks"][:, :2].any()
    table = found.tables["dimensions"]
    assert table.loc[0, ["dimension", "layer", "sink"]].tolist() == [7, 2, True]
    heads = found.heads
    at = heads["layer"] == 2
    np.testing.assert_allclose(heads["score"][at], (heads["image_mass"] - heads["visual_sink_mass"])[at], atol=1e-6)
    assert (heads["visual_sink_mass"][at] > 0).all() and (heads["visual_sink_mass"][~at] == 0).all()


def test_without_sinks_it_says_so_and_moves_nothing() -> None:
    model, data = model_of("llava"), data_of("llava")
    result = var(model, data, redistribution={}, bootstrap=5)
    status = result.summary["sinks"]
    assert status.startswith("none") and "at width 32 none can exceed 5.7" in status
    assert result.summary["redistribution"]["status"].startswith("not run: there is nothing to move")
    assert "captions" not in result.tables and not result.arrays["sinks"].any()
    np.testing.assert_array_equal(result.heads["score"], result.heads["image_mass"])
    empty = var(model, data, first_layer=9, bootstrap=5).summary["sinks"]
    assert "first_layer is 9" in empty


def test_redistribution_is_judged_against_random_heads_and_all() -> None:
    model, data = model_of("llava"), data_of("llava")
    params: dict[str, Any] = {"dimensions": DIMENSIONS, "tau": TAU, "first_layer": 0, "bootstrap": 5, "min_mass": 0.05}
    how = {"max_new_tokens": 3, "random_draws": 2, "p": 1.0}
    result = var(model, data, redistribution=how, **params)
    table = result.tables["evaluation"].set_index("condition")
    assert list(table.index) == ["plain", "redistributed", "random", "all heads"]
    assert table.loc["plain", "agreement"] == 1.0 and table.loc["random", "draws"] == 2
    assert len(result.tables["captions"]) == 3 * (1 + 1 + 2 + 1)
    assert result.summary["redistribution"]["status"] == "run"
    alone = var(model, data[:1], redistribution=how, **params).tables["captions"]
    both = result.tables["captions"]
    assert both[both["example"] == data[0].id]["said"].tolist() == alone["said"].tolist()
    nothing = var(model, data, redistribution={**how, "p": 0.0}, **params).tables["evaluation"]
    assert (nothing["agreement"] == 1.0).all(), "moving nothing changes nothing"


def test_answers_are_scored_by_kind_of_negatives() -> None:
    model = model_of("llava")
    rows = [
        {"image": picture, "prompt": "the cat is in", "answer": answer, "about": "cat", "group": group}
        for picture, answer, group in zip(
            pictures(4), ("yes", "no") * 2, ("random", "random", "popular", "popular"), strict=True
        )
    ]
    data = images_from_samples(model, rows)
    result = var(
        model,
        data,
        dimensions=DIMENSIONS,
        tau=TAU,
        first_layer=0,
        bootstrap=5,
        redistribution={"max_new_tokens": 2, "random_draws": 1, "all_heads": False},
    )
    answers = result.tables["answers"]
    assert set(answers["condition"]) == {"plain", "redistributed", "random"}
    assert list(answers["negatives"][:3]) == ["random", "popular", "all"]
    assert "answers_accuracy" in result.tables["evaluation"]


def test_what_another_image_changes_is_told_per_head() -> None:
    model, data = model_of("llava"), data_of("llava")
    table = var(model, data, bootstrap=5).tables["sensitivity"]
    assert len(table) == model.n_layers * model.n_heads and (table["z_change"] > 0).all()
    assert ((table["attention_change"] > 0) & (table["attention_change"] <= 1)).all()
    single = var(model, data[:1], bootstrap=5).tables["sensitivity"]
    assert single["z_change"].isna().all() and (single["n"] == 0).all()


def test_what_cannot_be_done_is_refused_in_a_sentence() -> None:
    model, data = model_of("llava"), data_of("llava")
    with pytest.raises(InputError, match="reads text only"):
        var(tiny("llama"), data)
    with pytest.raises(InputError, match="at least one image"):
        var(model, [])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names 99"):
        var(model, data, dimensions=[99])
    with pytest.raises(InputError, match="beyond the shortest prompt"):
        var(model, data, anchor=50)
    with pytest.raises(InputError, match="'rho'"):
        ANALYSIS.parse({"rho": 2})
    unknown = images_from_samples(model, [{"image": pictures(1)[0], "prompt": "the cat"}])
    with pytest.raises(InputError, match="no sample has objects or an answer"):
        var(model, unknown, redistribution={})


def test_the_captions_organism_has_no_sinks() -> None:
    import workbench as wb

    model = wb.load_model("organism:captions")
    result = var(model, tasks.resolve(model, {"task": "captions", "n": 4}), bootstrap=20)  # type: ignore[arg-type]
    assert result.summary["sinks"].startswith("none")
    assert result.heads["image_mass"].max() > 0.9
