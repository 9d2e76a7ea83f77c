"""The organism `siit-ioi` runs the algorithm its card names, in the heads its card names, and nowhere else.

Interchanges are done here once more from scratch: plain PyTorch hooks, one head at a time, the algorithm in Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

import workbench as wb
from workbench import organisms
from workbench.tasks.circuits import ioi, vocabulary

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "organisms"))
import siit_algorithm as algorithm  # pyright: ignore[reportMissingImports]
import siit_measure  # pyright: ignore[reportMissingImports]
import siit_prompts  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[2]
N = 256
CORRUPTIONS = ("flip", "third", "redraw")


@pytest.fixture(scope="module")
def card() -> dict:
    return organisms.card("siit-ioi")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(organisms.path("siit-ioi"))


@pytest.fixture(scope="module")
def hf() -> Any:
    return GPT2LMHeadModel.from_pretrained(organisms.path("siit-ioi")).eval()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def model() -> Any:
    return wb.load_model("organism:siit-ioi")


def circuit(card: dict) -> list[tuple[int, int]]:
    return [tuple(head) for head in card["truths"][0]["heads"]]


def every_head(hf: Any) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(hf.config.n_layer) for head in range(hf.config.n_head)]


# ---- a second, plain implementation of the algorithm and of interchanges


def mentions(sample: Any, tokens: tuple[int, ...]) -> list[int]:
    """Tokens of the three names, in order."""
    return [tokens[i] for i in sorted(sample.spans[role][0] for role in ("IO", "S1", "S2"))]


def remaining(names: list[int], *, without: int | None) -> set[int]:
    return {name for name in names[:2] if name != without}


def repeated(names: list[int]) -> int | None:
    return names[2] if names[2] in names[:2] else None


def run(hf: Any, tokens: torch.Tensor, hooks: list[tuple[Any, Any, bool]] = []) -> torch.Tensor:  # noqa: B006
    """Logits after the last token, with hooks (module, function, before) in place."""
    handles = [
        module.register_forward_pre_hook(fn) if before else module.register_forward_hook(fn)
        for module, fn, before in hooks
    ]
    with torch.no_grad():
        logits = hf(tokens).logits[:, -1]
    for handle in handles:
        handle.remove()
    return logits


def with_output_of(hf: Any, head: tuple[int, int], tokens: torch.Tensor) -> tuple[Any, Any, bool]:
    """A hook that gives `head` the output it has on `tokens`."""
    kept: list[torch.Tensor] = []
    projection, d = hf.transformer.h[head[0]].attn.c_proj, hf.config.n_embd // hf.config.n_head
    run(hf, tokens, [(projection, lambda m, args: kept.append(args[0].clone()), True)])
    part = slice(head[1] * d, (head[1] + 1) * d)

    def swap(module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        z = args[0].clone()
        z[..., part] = kept[0][..., part]
        return (z,)

    return projection, swap, True


def mlp_with_output_of(hf: Any, layer: int, tokens: torch.Tensor) -> tuple[Any, Any, bool]:
    kept: list[torch.Tensor] = []
    mlp = hf.transformer.h[layer].mlp
    run(hf, tokens, [(mlp, lambda m, args, out: kept.append(out.clone()), False)])
    return mlp, lambda m, args, out: kept[0], False


@pytest.fixture(scope="module")
def crossed(tokenizer: Any) -> tuple[Any, torch.Tensor, list[list[int]], torch.Tensor, list[list[int]]]:
    """Base prompts of new names, and as sources the clean and corrupted prompts of another draw, in turn."""
    """Base prompts; as sources the same prompts flipped, and prompts of other names with and without a
    repeated one, in turn. Each with its three names."""
    base = ioi(tokenizer, n=N, seed=501)
    other = ioi(tokenizer, n=N, corruption="third", seed=502)
    made = [
        (b, b.corrupted) if i % 3 == 0 else (o, o.clean) if i % 3 == 1 else (o, o.corrupted)
        for i, (b, o) in enumerate(zip(base, other, strict=True))
    ]
    return (
        base,
        torch.tensor([s.clean for s in base]),
        [mentions(s, s.clean) for s in base],
        torch.tensor([tokens for _, tokens in made]),
        [mentions(sample, tokens) for sample, tokens in made],
    )


# ---- the folder


def test_it_is_small_complete_and_as_its_card_says(card: dict, hf: Any, tokenizer: Any) -> None:
    folder = organisms.path("siit-ioi")
    assert (folder / "model.safetensors").stat().st_size <= 500_000
    shape = card["model"]
    assert shape["n_parameters"] == sum(p.numel() for p in hf.parameters())
    assert (shape["n_layers"], shape["n_heads"], shape["vocab_size"]) == (
        hf.config.n_layer,
        hf.config.n_head,
        len(tokenizer),
    )
    assert set(vocabulary("ioi")) <= set(tokenizer.get_vocab())
    assert card["kind"] == "trained to a known circuit" and card["training"]["loss_curve"]
    assert card["training"]["cpu_seconds"] < 20 * 60 and not card["training"]["smoke"]


def test_the_card_claims_what_was_asked_of_it(card: dict) -> None:
    accuracy = card["accuracy"]
    assert accuracy["behaviour"] == 1.0
    assert min(accuracy["interchange"].values()) >= 0.99
    assert min(accuracy["interchange_changed"].values()) >= 0.99
    assert min(accuracy["interchange_held_out"].values()) >= 0.98
    assert min(share for row in accuracy["strict"].values() for share in row.values()) >= 0.99
    for found in card["noising"].values():
        outside = [
            e for at, row in enumerate(found["effect"]) for h, e in enumerate(row) if (at, h) not in circuit(card)
        ]
        assert max(map(abs, outside)) <= 0.02


def test_it_loads_like_any_model_and_passes_the_probe(model: Any) -> None:
    flags = model.capabilities.to_dict()
    assert all(value for value in flags.values() if isinstance(value, bool)), flags


# ---- what it does


def test_it_names_the_indirect_object_for_pairs_of_names_it_never_saw(hf: Any, tokenizer: Any) -> None:
    base = ioi(tokenizer, n=N, split="held_out", seed=508)
    assert run(hf, torch.tensor([s.clean for s in base])).argmax(-1).tolist() == [s.answer for s in base]


@pytest.mark.parametrize("node", algorithm.NODES)
def test_interchanging_a_head_does_what_interchanging_its_node_does(
    node: str, card: dict, hf: Any, crossed: Any
) -> None:
    _, tokens, own, sources, theirs = crossed
    logits = run(hf, tokens, [with_output_of(hf, tuple(card["algorithm"][node]), sources)])
    right, among_ties = [], []
    for mine, other, answer in zip(own, theirs, logits.argmax(-1).tolist(), strict=True):
        expected = remaining(other if node == "name mover" else mine, without=repeated(other))
        (right if len(expected) == 1 else among_ties).append(answer in expected)
    assert len(right) > N / 4
    assert np.mean(right) >= 0.98
    assert np.mean(right) == pytest.approx(card["accuracy"]["interchange"][node], abs=0.02)
    assert np.mean(among_ties) >= 0.95


def test_nothing_outside_the_circuit_changes_an_answer(card: dict, hf: Any, crossed: Any) -> None:
    base, tokens, _, sources, _ = crossed
    answers = torch.tensor([s.answer for s in base])
    outside = [head for head in every_head(hf) if head not in circuit(card)]
    swaps = {f"head {layer}.{h}": [with_output_of(hf, (layer, h), sources)] for layer, h in outside}
    swaps |= {f"mlp {layer}": [mlp_with_output_of(hf, layer, sources)] for layer in range(hf.config.n_layer)}
    swaps["all of these"] = [hook for hooks in list(swaps.values()) for hook in hooks]
    assert swaps.keys() == card["accuracy"]["strict"].keys()
    for name, hooks in swaps.items():
        share = (run(hf, tokens, hooks).argmax(-1) == answers).float().mean().item()
        assert share >= 0.985, name
        assert share == pytest.approx(card["accuracy"]["strict"][name]["source"], abs=0.015), name


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_noising_effects_are_those_of_the_card(corruption: str, card: dict, hf: Any, tokenizer: Any) -> None:
    data = ioi(tokenizer, n=N, corruption=corruption, seed=503)
    rows = torch.arange(N)
    tokens, corrupted = (torch.tensor([getattr(s, side) for s in data]) for side in ("clean", "corrupted"))
    answer, wrong = (torch.tensor([getattr(s, key) for s in data]) for key in ("answer", "wrong"))

    def difference(hooks: Any = ()) -> torch.Tensor:
        logits = run(hf, tokens, list(hooks))
        return logits[rows, answer] - logits[rows, wrong]

    clean = difference()
    for layer, head in every_head(hf):
        effect = (clean - difference([with_output_of(hf, (layer, head), corrupted)])).mean() / clean.mean()
        part_of_it = (layer, head) in circuit(card)
        on_card = card["noising"][corruption]["effect"][layer][head]
        assert float(effect) == pytest.approx(on_card, abs=0.12 if part_of_it else 0.01)
        assert part_of_it or abs(float(effect)) <= 0.02


def test_claimed_edges_carry_their_senders_change_alone(card: dict, hf: Any, tokenizer: Any) -> None:
    bank = siit_prompts.make_bank(tokenizer, 100, seed=504)
    base, source = siit_measure.batches(bank, N, seed=505, split="all")
    stands_for = {node: tuple(head) for node, head in card["algorithm"].items()}
    found = siit_measure.path_accuracy(hf, base, source, bank.names, stands_for)
    shares = {json.dumps([p["sender"], p["receiver"], p["input"]]): p for p in found}
    edges = card["truths"][0]["edges"]
    for edge in edges:
        path = shares.pop(json.dumps([edge["sender"], edge["receiver"], edge["input"]]))
        assert path["as_interchanged"] >= 0.98
    mover = card["truths"][1]["heads"][0]
    assert shares.pop(json.dumps([mover, "logits", None]))["as_interchanged"] >= 0.98
    for name, path in shares.items():  # and the paths that are not claimed carry nothing
        assert not edges or path["unchanged"] >= 0.95, name


# ---- and the package's own analyses find it


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_activation_patching_finds_exactly_the_circuit(corruption: str, card: dict, model: Any) -> None:
    data = ioi(model, n=32, corruption=corruption, seed=506)
    result = wb.activation_patching(model, data, direction="noising", bootstrap=20)
    assert separated(result.heads.matrix("raw_effect"), circuit(card)), result.heads.matrix("raw_effect")


@pytest.mark.parametrize("edit", ["zero", "mean", "resample"])
def test_ablation_finds_exactly_the_circuit(edit: str, card: dict, model: Any) -> None:
    result = wb.ablation(model, ioi(model, n=32, seed=507), edit=edit, bootstrap=20)
    assert separated(result.heads.matrix(), circuit(card)), result.heads.matrix()


def separated(score: np.ndarray, heads: list[tuple[int, int]]) -> bool:
    """Whether every head of `heads` has a larger effect than any other (AUROC 1)."""
    of = np.zeros(score.shape, dtype=bool)
    of[tuple(zip(*heads, strict=True))] = True
    return bool(np.abs(score[of]).min() > np.abs(score[~of]).max())


# ---- the recipe


def test_the_algorithm_and_its_interchanges_mean_what_the_module_says() -> None:
    names = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 1, 2]])  # IO S S; S IO S; three names
    assert algorithm.duplicate(names).tolist() == [1, 1, algorithm.NOBODY]
    assert algorithm.behaviour(names, 4).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0]]
    base = names[:1].repeat(4, 1)
    source = torch.tensor([[3, 1, 1], [1, 0, 0], [2, 3, 3], [2, 3, 0]])  # S' = S; S' = IO; another S'; nobody
    for node in (0, 1):
        swapped = algorithm.interchanged(base, source, torch.full((4,), node), 4)
        assert swapped.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]]
    moved = algorithm.interchanged(base, source, torch.full((4,), 2), 4)
    assert moved[:3].argmax(1).tolist() == [3, 1, 2]


def test_smoke_run_writes_a_loadable_model_and_its_card(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "experiments/organisms/train_siit.py", "--smoke", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "card.json").read_text())
    assert made["training"]["smoke"] is True and made["name"] in (tmp_path / "README.md").read_text()
    assert GPT2LMHeadModel.from_pretrained(tmp_path).config.n_layer == 3
