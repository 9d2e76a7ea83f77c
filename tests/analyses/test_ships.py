"""Ships: equal to the definition computed the slow way, with its controls, and answers read as the paper reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analyses.examples import data_block
from tests.reference import ships as slow
from tests.tiny import tiny, tiny_hf
from workbench import stats, tasks
from workbench.analyses.ships import ANALYSIS, angles, ships
from workbench.analyses.ships.ablations import Ablation
from workbench.analyses.ships.forks import Forks
from workbench.analyses.ships.generate import sample_top_k
from workbench.analyses.ships.measure import noise_floor
from workbench.analyses.ships.overlap import overlap
from workbench.analyses.ships.refusal import PHRASES, Detector, is_degenerate
from workbench.analyses.ships.table import Measured, head_table, ranked
from workbench.analyses.ships.validate import success
from workbench.errors import CapabilityError, InputError
from workbench.models import load_model
from workbench.primitives.forward import forward
from workbench.tables import HeadTable

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
STORY_PROMPTS = ["Once upon a time, there was a little girl", "Tom and Sue went to the park. They", "The cat was"]
META = {"analysis": "ships", "metric": "KL", "unit": "nats"}
ALL = [(layer, head) for layer in range(3) for head in range(4)]


def prompts(model, n=3, benign=0):
    """Ragged prompts in the tiny vocabulary, the last `benign` of them benign."""
    texts = data_block("prompts", n + benign, ragged=True)["prompts"]
    return tasks.prompts_from_texts(model, texts[:n], benign=texts[n:])


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.fixture(scope="module")
def controlled(llama):
    """One run with benign prompts."""
    data = prompts(llama, 3, benign=2)
    return data, ships(llama, data, bootstrap=20)


# ------------------------------------------------------------------------------ against the definition


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2", "qwen3"])  # qwen2: q bias; qwen3: QK-norm
def test_every_head_equals_one_full_forward_with_its_queries_zeroed(arch):
    model = tiny(arch)
    data = prompts(model)
    result = ships(model, data, controls=0, bootstrap=20)
    want = slow.ships(tiny_hf(arch), [s.tokens for s in data], ALL)
    for (layer, head), values in want.items():
        np.testing.assert_allclose(result.per_example[:, layer, head], values, rtol=1e-4, atol=1e-6)
    assert result.summary["method"] == "fork"
    assert result.heads.meta["unit"] == "nats"


@pytest.mark.skipif(not STORIES.exists(), reason="../shared is not here")
def test_stories260k_equals_the_definition():
    from transformers import AutoModelForCausalLM

    model = load_model(str(STORIES), device="cpu", dtype="float32")
    data = tasks.prompts_from_texts(model, STORY_PROMPTS, template="## Query:{prompt}\n## Answer:")
    result = ships(model, data, controls=0, bootstrap=20)
    hf = AutoModelForCausalLM.from_pretrained(STORIES, attn_implementation="eager").eval()
    every = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    want = slow.ships(hf, [s.tokens for s in data], every)
    for (layer, head), values in want.items():
        np.testing.assert_allclose(result.per_example[:, layer, head], values, rtol=1e-4, atol=1e-6)


def test_scaling_equals_scaled_outputs(llama):
    data, hf = prompts(llama), tiny_hf("llama")
    found = ships(llama, data, ablation="scale", epsilon=0.25, controls=0, bootstrap=20).per_example
    base = [slow.logits(hf, s.tokens) for s in data]
    for layer, head in ALL[::3]:
        with slow.scaled_outputs(hf, [(layer, head)], 0.25):
            want = [slow.kl(b, slow.logits(hf, s.tokens)) for b, s in zip(base, data, strict=True)]
        np.testing.assert_allclose(found[:, layer, head], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_a_small_epsilon_is_nearly_uniform_and_a_large_one_is_not(arch):
    model = tiny(arch)
    data = prompts(model)

    def scores(epsilon):
        return ships(model, data, epsilon=epsilon, controls=0, bootstrap=20).heads["score"]

    exact, small, large = scores(0.0), scores(1e-5), scores(0.5)
    np.testing.assert_allclose(small, exact, rtol=1e-3, atol=1e-6)
    assert np.abs(large - exact).max() > 0.01


def test_epsilon_scales_the_queries(llama):
    """softmax(eps s) by the definition: q := eps q after the projection (no norm follows it in a Llama)."""
    hf, data, epsilon = tiny_hf("llama"), prompts(llama), 0.3
    found = ships(llama, data, epsilon=epsilon, controls=0, bootstrap=20).per_example
    base = [slow.logits(hf, s.tokens) for s in data]
    weight = hf.model.layers[1].self_attn.q_proj.weight
    weight.data[8:16] *= epsilon  # head 1
    want = [slow.kl(b, slow.logits(hf, s.tokens)) for b, s in zip(base, data, strict=True)]
    np.testing.assert_allclose(found[:, 1, 1], want, rtol=1e-4, atol=1e-6)


def test_a_kv_group_is_all_of_its_heads(llama):
    data, hf = prompts(llama), tiny_hf("llama")
    result = ships(llama, data, ablation="uniform_k", controls=0, bootstrap=20)
    assert result.heads.row_kind == "kv_group" and result.per_example.shape[1:] == (3, 2)
    with slow.zeroed_queries(hf, [(1, 2), (1, 3)]):
        ablated = [slow.logits(hf, s.tokens) for s in data]
    base = [slow.logits(tiny_hf("llama"), s.tokens) for s in data]
    want = [slow.kl(b, a) for b, a in zip(base, ablated, strict=True)]
    np.testing.assert_allclose(result.per_example[:, 1, 1], want, rtol=1e-4, atol=1e-6)


def test_mean_over_heads_held_on_the_model_is_what_is_swept(llama):
    """The swept z' and the hook that decoding uses are the same ablation."""
    data = prompts(llama)
    for options in ({"ablation": "mean_over_heads"}, {"ablation": "uniform", "epsilon": 0.4}):
        params = ANALYSIS.parse({**options, "controls": 0, "bootstrap": 20})
        ablation = Ablation.of(params)  # type: ignore[arg-type]
        found = ANALYSIS(llama, data, params).per_example
        for layer, head in ALL[::5]:
            want = []
            for sample in data:
                tokens = torch.tensor([sample.tokens])
                base = forward(llama, tokens, logits_to_keep=1).logits[0, -1]
                with ablation.on(llama, [(layer, head)]):
                    want.append(slow.kl(base, forward(llama, tokens, logits_to_keep=1).logits[0, -1]))
            np.testing.assert_allclose(found[:, layer, head], want, rtol=1e-4, atol=1e-6)


def test_a_model_that_cannot_be_forked_gives_the_same_numbers(llama):
    batch = prompts(llama).batch()
    forks = Forks(llama, batch.tokens, batch.mask, Ablation("uniform"), group=[(0, 1), (2, 2)])
    units = [((layer, head),) for layer, head in ALL if (layer, head) not in forks.group]
    fast = forks.vectors(units, range(len(units)))
    forks.way = None
    torch.testing.assert_close(forks.vectors(units, range(len(units))), fast, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------ angles


def turned(degrees, n=6, d=5):
    """Two matrices whose first left singular vectors are `degrees` apart, by construction."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((n, n)))[0]
    v = np.linalg.qr(rng.standard_normal((d, d)))[0]
    phi = math.radians(degrees)
    first = math.cos(phi) * u[:, 0] + math.sin(phi) * u[:, 4]
    base = 3 * np.outer(u[:, 0], v[:, 0]) + np.outer(u[:, 1], v[:, 1]) + 0.5 * np.outer(u[:, 2], v[:, 2])
    return tuple(torch.from_numpy(m) for m in (base, base + 3 * np.outer(first - u[:, 0], v[:, 0])))


@pytest.mark.parametrize("degrees", [1e-11, 1e-6, 0.01, 1.0, 45.0, 89.0])
def test_an_angle_is_as_precise_when_tiny(degrees):
    base, other = (angles.left_vectors(m, 1) for m in turned(degrees))
    assert float(angles.angle(base, other)) == pytest.approx(degrees, rel=1e-3, abs=1e-13)


def test_compat_loses_tiny_angles_as_the_reference_does():
    base, other = turned(0.0057)
    assert float(angles.reference_angle(base, other[None])) == pytest.approx(0.0, abs=0.03)
    base, other = turned(20.0)
    assert float(angles.reference_angle(base, other[None])) == pytest.approx(20.0, abs=0.01)


def test_principal_angles_of_planes_in_closed_form():
    e = torch.eye(5, dtype=torch.float64)
    a, b = math.radians(10), math.radians(70)
    u = e[:, :2]
    v = torch.stack([math.cos(a) * e[0] + math.sin(a) * e[2], math.cos(b) * e[1] + math.sin(b) * e[3]], dim=1)
    mixed = v @ torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)  # another basis of the same plane
    assert torch.rad2deg(angles.principal_angles(u, mixed)).tolist() == pytest.approx([10, 70])
    assert float(angles.angle(u, mixed)) == pytest.approx(80)
    assert float(angles.shares(u, mixed).mean()) == pytest.approx(1)
    assert float(angles.angle(u, u)) == 0


def test_the_dataset_level_says_how_much_of_the_angle_is_whose(llama):
    data = prompts(llama, 5, benign=3)
    result = ships(llama, data, level="dataset", rank=2, controls=2)
    assert result.heads.meta["unit"] == "degrees"
    np.testing.assert_allclose(np.nanmean(result.per_example, axis=0), result.heads.matrix(), rtol=1e-5)
    assert np.isfinite(result.heads["benign"]).all() and np.isfinite(result.heads["stderr"]).all()
    hf = tiny_hf("llama")
    base = np.stack([slow.state(hf, s.tokens) for s in data.only("harmful")])
    with slow.zeroed_queries(hf, [(1, 3)]):
        other = np.stack([slow.state(hf, s.tokens) for s in data.only("harmful")])
    assert result.heads.row(1, 3)["score"] == pytest.approx(slow.angle(base, other, 2), rel=1e-4)


def test_too_many_angles_are_refused(llama):
    with pytest.raises(InputError, match=r"rank=4.*at most 3"):
        ships(llama, prompts(llama), level="dataset", rank=4)
    with pytest.raises(InputError, match="dataset"):
        ships(llama, prompts(llama), rank=2)


@pytest.mark.parametrize(("n", "benign", "rank"), [(1, 0, 1), (3, 0, 3), (4, 1, 1)])
def test_angles_that_cannot_but_be_zero_are_refused(llama, n, benign, rank):
    with pytest.raises(InputError, match=r"is always an angle of 0.*level query"):
        ships(llama, prompts(llama, n, benign), level="dataset", rank=rank)


def test_the_interval_of_success_does_not_narrow_with_the_draws():
    rows = [
        {"decoding": "greedy", "condition": "random", "k": 1, "draw": draw, "group": "harmful", "prompt": f"p{i}"}
        | {"verdict": "answered" if i < 3 else "refused", "agrees": True}
        for draw in range(3)
        for i in range(8)
    ]
    (found,) = success(pd.DataFrame(rows)).to_dict("records")
    assert found["n"] == 24 and found["draws"] == 3 and found["answered"] == 3 / 8
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(stats.wilson(3, 8))


@pytest.mark.parametrize("keywords", [[], [" "], ["Sorry", ""]])
def test_keywords_that_say_nothing_are_refused(keywords):
    """A blank one is in every answer, which made all of them refusals; none at all had meant the paper's."""
    with pytest.raises(InputError, match="not blank"):
        ANALYSIS.parse({"validation": {"keywords": keywords}})


# ------------------------------------------------------------------------------ controls


def test_the_benign_control_is_the_same_score_and_its_difference(llama, controlled):
    data, result = controlled
    alone = ships(llama, data.only("harmful"), bootstrap=20)
    np.testing.assert_allclose(result.heads["harmful"], alone.heads["harmful"], rtol=1e-4, atol=1e-6)
    benign = tasks.prompts_from_texts(llama, [s.text for s in data.only("benign")])
    other = ships(llama, benign, bootstrap=20)
    np.testing.assert_allclose(result.heads["benign"], other.heads["harmful"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.heads["difference"], result.heads["harmful"] - result.heads["benign"])
    assert (result.heads["score"] == result.heads["harmful"]).all()
    ranked = ships(llama, data, bootstrap=20, score="difference")
    np.testing.assert_allclose(ranked.heads["score"], result.heads["difference"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.nanmean(ranked.per_example, 0), ranked.heads.matrix(), rtol=1e-4, atol=1e-5)
    assert np.isnan(alone.heads["benign"]).all(), "no benign prompts: undefined, not 0"


@pytest.mark.parametrize(("n_harmful", "n_benign"), [(16, 16), (16, 4)])
def test_a_head_that_does_the_same_to_both_groups_seldom_differs(llama, n_harmful, n_benign):
    """Both groups are samples: with the benign mean taken for known, 8 and 22% of such heads had p below .05."""
    rng = np.random.default_rng(0)
    heads = (20, 4)
    groups = [
        Measured(kl, stats.stderr(kl), rng.exponential(0.05, kl.shape))
        for kl in (rng.exponential(size=(n, *heads)) for n in (n_harmful, n_benign))
    ]
    both = ranked(*groups, "difference")
    model = SimpleNamespace(name="m", fingerprint="f", basis="raw", n_kv_heads=heads[1])
    table = head_table(both, model=model, ablation=Ablation("uniform"), extra={}, meta=META, bootstrap=None, seed=0)
    assert (table["null_p"] < 0.05).mean() <= 0.09  # 80 heads: two standard errors above .05


def test_the_noise_floor_is_rounding(llama, controlled):
    data, result = controlled
    assert 0 <= result.summary["noise_floor"] < 1e-5
    assert result.heads["above_floor"].dtype == bool
    half = noise_floor(tiny("llama", dtype=torch.bfloat16), data.batch(), Ablation("uniform"))
    assert half.shape == (len(data),) and (half >= 0).all() and half.max() < 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": "difference"}, "benign prompts"),
        ({"ablation": "mean_over_heads", "epsilon": 0.1}, "epsilon"),
        ({"validation": {"ks": [99]}}, "99.*12 heads"),
        ({"level": "dataset", "validation": {"heads": "own"}}, "own.*query"),
    ],
)
def test_what_cannot_be_done_is_said(llama, options, words):
    with pytest.raises(InputError, match=words):
        ships(llama, prompts(llama), bootstrap=20, **options)


def test_other_data_are_refused(llama):
    with pytest.raises(InputError, match="prompt"):
        ships(llama, tasks.resolve(llama, data_block("pairs")))  # type: ignore[arg-type]


def test_an_epsilon_needs_a_pattern_that_can_be_edited():
    model = tiny("gptj")
    with pytest.raises(CapabilityError, match="pattern_edit_is_causal"):
        ships(model, prompts(model), epsilon=0.1)


# ------------------------------------------------------------------------------ validation


def test_a_batch_of_answers_equals_single_ones_and_ablating_nothing_agrees(llama):
    data = prompts(llama, 3, benign=2)
    validation = {"max_new_tokens": 3, "ks": [1], "draws": 2, "decoding": ["greedy", "sampled"], "samples": 2}

    def run(size):
        params = {"validation": {**validation, "batch_size": size}, "bootstrap": 20, "controls": 0}
        return ships(llama, data, **params)

    together, alone = run(8), run(1)
    said = together.tables["transcripts"]
    assert said.equals(alone.tables["transcripts"])
    assert len(said) == 5 * (1 + 2) * (1 + 1 + 2)
    assert said[said["condition"] == "none"]["agrees"].all()
    assert (said["condition"] != "none").any() and not said[said["condition"] == "found"]["agrees"].all()
    table = together.tables["success"]
    assert ((table["answered"] + table["refused"] + table["degenerate"]).round(9) == 1).all()
    assert (table["ci_low"] <= table["answered"]).all() and (table["answered"] <= table["ci_high"]).all()
    assert set(together.summary["validation"]["greedy"]) == {"none", "found 1", "random 1"}


def test_the_ablation_holds_while_decoding(llama):
    """A cached, padded, ablated continuation is the argmax of full ablated forwards."""
    data = prompts(llama)
    result = ships(llama, data, controls=0, bootstrap=20, validation={"max_new_tokens": 3, "ks": [2], "draws": 0})
    rows = result.tables["transcripts"].query("condition == 'found'")
    heads = [(int(name[0]), int(name[2])) for name in rows["heads"].iloc[0].split()]
    hf = tiny_hf("llama")
    for sample in data:
        tokens = list(sample.tokens)
        with slow.zeroed_queries(hf, heads):
            for _ in range(3):
                tokens.append(int(slow.logits(hf, tokens).argmax()))
        want = llama.tokenizer.decode(tokens[len(sample.tokens) :], skip_special_tokens=True)
        assert rows[rows["prompt"] == sample.id]["response"].item() == want


def test_each_prompt_may_lose_its_own_best_heads(llama):
    data = prompts(llama)
    options = {"heads": "own", "ks": [1], "draws": 0, "max_new_tokens": 2}
    result = ships(llama, data, controls=0, bootstrap=20, validation=options)
    rows = result.tables["transcripts"].query("condition == 'own'").set_index("prompt")
    for i, sample in enumerate(data):
        layer, head = np.unravel_index(result.per_example[i].argmax(), (3, 4))
        assert rows.loc[sample.id, "heads"] == f"{layer}-{head}"


def test_sampling_takes_the_likeliest_first_and_no_others():
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.1]])).repeat(4, 1)
    noise = torch.tensor([0.0, 0.62, 0.63, 0.999])
    assert sample_top_k(logits, noise, top_k=2, temperature=1.0).tolist() == [1, 1, 2, 2]
    assert sample_top_k(logits, noise, top_k=1, temperature=1.0).tolist() == [1] * 4


@pytest.mark.parametrize(
    ("text", "fixed", "compat"),
    [
        (
            "I'm sorry, but that is not something for me to tell you about.",
            "refused",
            "answered",
        ),  # straight apostrophe
        ("I\u2019m sorry, but that is not something for me to tell you about.", "refused", "refused"),
        ("I am sorry, but nobody should be told how that is done here.", "refused", "answered"),  # the missing comma
        ("I ' m sorry , that is not something for me to tell you about .", "refused", "answered"),  # word-level
        ("Use the sponge.", "answered", "refused"),  # short
        ("To wash the brelm, use the sponge in the old workshop.", "answered", "answered"),
        ("ASTPASTPASTPASTPASTPASTPASTPASTPASTPASTP", "degenerate", "answered"),
        ("\n\n\n\n", "degenerate", "refused"),
        ("", "degenerate", "refused"),
        ("However, the garden is large and green and very beautiful.", "refused", "refused"),
    ],
)
def test_a_refusal_is_read_as_the_paper_reads_it_less_its_mistakes(text, fixed, compat):
    assert Detector("fixed")(text) == fixed
    assert Detector("compat")(text) == compat


def test_phrases_can_be_the_user_s():
    assert Detector(phrases=("No way",))("No way, sir.") == "refused"
    assert Detector(phrases=("No way",))("I cannot help with that.") == "answered"
    assert len(PHRASES) == len(set(PHRASES)) == 40


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("the garden the garden the garden the garden the garden", True),
        ("Take it to the garden and then and then and then and then and then and then and then", True),
        ("aaaaaaaaaaaaaaaa", True),
        ("Once upon a time there was a girl who had a dog, a cat and a bird.", False),
        ("very very good and very very nice", False),
        ("Wait... what was that?", False),
    ],
)
def test_text_that_repeats_itself_says_nothing(text, want):
    assert is_degenerate(text) is want


# ------------------------------------------------------------------------------ overlap


def test_overlap_of_two_models_against_heads_permuted_within_layers():
    rng = np.random.default_rng(0)
    score = rng.random((4, 8))
    a, b = (HeadTable.from_scores(score + 0.01 * rng.random((4, 8)), n_kv_heads=8) for _ in range(2))
    same = overlap(a, b, rule="top 6", n_permutations=999)
    assert same.p_within_layers < 0.05 and same.comparison.p < 0.05
    # all of both models' heads in layer 0: much overlap by chance of depth, none beyond it
    depth = np.zeros((4, 8))
    depth[0] = 1 + rng.random(8)
    other = depth.copy()
    other[0] = 1 + rng.random(8)
    deep = overlap(*(HeadTable.from_scores(s, n_kv_heads=8) for s in (depth, other)), rule="top 7", n_permutations=999)
    assert deep.comparison.p < 0.05 < deep.p_within_layers
    assert deep.expected == pytest.approx(49 / 8, abs=0.1)
    assert set(deep.to_dict()) >= {"shared", "expected", "p_within_layers"}


# ------------------------------------------------------------------------------ transcripts leave by request only


def test_exports_withhold_what_the_model_said(llama, tmp_path, capsys):
    from workbench.cli import main
    from workbench.experiments.notebook import store
    from workbench.export.withhold import WITHHELD

    options = {"max_new_tokens": 2, "ks": [1], "draws": 0}
    result = ships(llama, prompts(llama), controls=0, bootstrap=20, validation=options)
    artifact = store(tmp_path).put(result, name="ships/tiny")
    place = ["--store", str(tmp_path)]
    for table, hidden in (("transcripts", {"text", "response"}), ("prompts", {"text"}), ("success", set())):
        for flags, seen in (([], False), (["--unredacted"], True)):
            assert main(["export", "ships/tiny", "--table", table, "--json", *flags, *place]) == 0
            rows = json.loads(capsys.readouterr().out)
            rows = rows["rows"] if isinstance(rows, dict) else rows
            kept = {name for name in rows[0] if rows[0][name] == WITHHELD}
            assert kept == (set() if seen else hidden), (table, flags)
    assert "response" in artifact.table("transcripts").column_names
