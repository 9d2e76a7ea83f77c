"""Two planted tasks on one set of weights: the truth on the cards, measured with nothing but hooks on GPT-2's modules.

An edge is tested by cutting it: what the sender added to the residual stream is taken out of what the receiver's q, k
or v reads, and out of nothing else. Every head is cut from every planted one, so that an edge too many is as much a
failure as one too few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel

from workbench import organisms
from workbench.errors import InputError
from workbench.models import load_model
from workbench.organisms.planted import ioi, ioi_colored
from workbench.organisms.planted.ioi_evidence import EDGES, circuit
from workbench.tasks import circuits

TASKS = {"ioi": "planted-ioi", "colored_objects": "planted-colored"}
Slot = tuple[int, int]

# Share of the logit difference lost when one head is noised, by design, without noise heads: the movers write 6, 7 and
# -3 of 10. Without inhibition they attend equally to IO, S and S again, which is -10/3: 4/3 are lost when the corrupted
# prompt names neither (third, redraw).
ALL = 1.0
TOO_MUCH = 4 / 3
MOVERS = {"shared mover": 0.6, "name mover": 0.7, "negative mover": -0.3}
DESIGNED: dict[tuple[str, str], dict[str, float]] = {
    ("ioi", "flip"): {"duplicate token": ALL, "S-inhibition": ALL, **MOVERS},
    ("ioi", "third"): {"induction": TOO_MUCH, "duplicate token": TOO_MUCH, "S-inhibition": TOO_MUCH, **MOVERS},
    ("ioi", "redraw"): {
        **dict.fromkeys(("previous token", "induction", "duplicate token", "S-inhibition"), TOO_MUCH),
        **MOVERS,
    },
    ("colored_objects", "query"): {"duplicate token": ALL, "content gatherer": ALL, "shared mover": ALL},
    ("colored_objects", "context"): dict.fromkeys(circuit("colored_objects"), ALL),
    ("colored_objects", "redraw"): dict.fromkeys(circuit("colored_objects"), ALL),
}


# ---- plain hooks


def heads_of(model: Any) -> list[Slot]:
    return [(layer, head) for layer in range(model.config.n_layer) for head in range(model.config.n_head)]


def part(model: Any, head: int) -> slice:
    d_head = model.config.n_embd // model.config.n_head
    return slice(head * d_head, (head + 1) * d_head)


def last_logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, -1]


def difference(model: Any, batch: Any) -> float:
    logits, rows = last_logits(model, batch.clean), torch.arange(len(batch.answer))
    return float((logits[rows, batch.answer] - logits[rows, batch.wrong]).mean())


def right(model: Any, batch: Any) -> float:
    return float((last_logits(model, batch.clean).argmax(-1) == batch.answer).float().mean())


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_z(model: Any, tokens: Tensor) -> dict[int, Tensor]:
    z: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        return model.transformer.h[layer].attn.c_proj.register_forward_pre_hook(lambda _, x: z.update({layer: x[0]}))

    with hooks(*map(keep, range(model.config.n_layer))):
        last_logits(model, tokens)
    return z


def written(model: Any, z: Mapping[int, Tensor], slot: Slot) -> Tensor:
    layer, head = slot
    return z[layer][..., part(model, head)] @ model.transformer.h[layer].attn.c_proj.weight[part(model, head)]


def with_z(model: Any, new: Mapping[Slot, Tensor | float]) -> Any:
    """The outputs of these heads replaced."""

    def replace(layer: int) -> Any:
        def hook(_: Any, x: tuple[Tensor]) -> tuple[Tensor]:
            z = x[0].clone()
            for (at, head), value in new.items():
                if at == layer:
                    z[..., part(model, head)] = value
            return (z,)

        return model.transformer.h[layer].attn.c_proj.register_forward_pre_hook(hook)

    return hooks(*(replace(layer) for layer in {layer for layer, _ in new}))


def without_edge(model: Any, taken: Tensor, receiver: Any, letter: str = "") -> Any:
    """What the receiver reads, less `taken`; the layer norm is that of the new input."""
    if receiver == "logits":
        return hooks(model.transformer.ln_f.register_forward_pre_hook(lambda _, x: (x[0] - taken,)))
    layer, head = receiver
    block, width = model.transformer.h[layer], model.config.n_embd
    inputs: list[Tensor] = []
    own = part(model, head)
    columns = slice("qkv".index(letter) * width + own.start, "qkv".index(letter) * width + own.stop)

    def hook(module: Any, _: Any, out: Tensor) -> Tensor:
        normed = torch.nn.functional.layer_norm(
            inputs.pop() - taken, (width,), block.ln_1.weight, block.ln_1.bias, block.ln_1.eps
        )
        out = out.clone()
        out[..., columns] = normed @ module.weight[:, columns] + module.bias[columns]
        return out

    return hooks(
        block.ln_1.register_forward_pre_hook(lambda _, x: inputs.append(x[0])),
        block.attn.c_attn.register_forward_hook(hook),
    )


# ---- the shipped pair


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    folder = organisms.path("planted-ioi")
    model: Any = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def cards() -> dict[str, dict[str, Any]]:
    return {task: organisms.card(name) for task, name in TASKS.items()}


def truth(card: Mapping[str, Any], claim: str = "circuit") -> dict[str, Any]:
    return next(truth for truth in card["truths"] if truth["claim"] == claim)


def test_the_shipped_weights_are_those_of_seed_0(shipped, cards) -> None:
    model, tokenizer = shipped
    fresh, fresh_tokenizer, slots, options = ioi.assemble(seed=0)
    assert fresh_tokenizer.get_vocab() == tokenizer.get_vocab()
    state = model.state_dict()
    for name, weight in fresh.state_dict().items():
        torch.testing.assert_close(state[name], weight, rtol=1e-4, atol=1e-4)
    for task, card in cards.items():
        assert card["task"]["options"] == options
        assert truth(card)["roles"] == {role: [list(slots[role])] for role in circuit(task)}
    assert (organisms.path("planted-ioi") / "model.safetensors").stat().st_size < 800_000


def test_a_fresh_card_says_what_the_shipped_one_says(cards) -> None:
    def claims(card: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{key: value for key, value in claim.items() if key != "evidence"} for claim in card["truths"]]

    fresh, shipped = ioi_colored.make(seed=0).card, cards["colored_objects"]
    assert claims(fresh) == claims(shipped) and fresh["overlap"] == shipped["overlap"]


def test_both_load_offline_with_every_capability_and_are_one_model() -> None:
    first, second = (load_model(f"organism:{name}", device="cpu") for name in TASKS.values())
    assert not first.capabilities.missing and not second.capabilities.missing
    assert first.fingerprint == second.fingerprint
    assert organisms.path("planted-colored") == organisms.path("planted-ioi")


def test_the_cards_give_the_true_overlap(cards) -> None:
    sets = {task: {tuple(head) for head in truth(card)["heads"]} for task, card in cards.items()}
    both, either = sets["ioi"] & sets["colored_objects"], sets["ioi"] | sets["colored_objects"]
    for card in cards.values():
        overlap = card["overlap"]
        assert {tuple(head) for head in overlap["shared"].values()} == both
        assert overlap["jaccard"] == len(both) / len(either) == 3 / 8
        assert overlap["of_ioi"] == 3 / 7 and overlap["of_colored_objects"] == 3 / 4


def test_the_cards_say_which_corruption_sees_which_head(cards) -> None:
    for task, card in cards.items():
        roles = {tuple(heads[0]): role for role, heads in truth(card)["roles"].items()}
        for corruption in circuits.corruptions(task):
            found = card["visibility"][corruption]
            assert {roles[tuple(head)] for head in found["sees"]} == set(DESIGNED[task, corruption])
            assert found["largest_other_head"] <= 0.02
    assert "query cannot see the previous token head" in cards["colored_objects"]["ground_truth"]


# ---- fresh instances


@pytest.mark.parametrize("seed", range(20))
def test_ablating_a_tasks_heads_destroys_it_and_ablating_all_others_does_not(seed: int) -> None:
    model, tokenizer, slots, _ = ioi.assemble(seed=seed)
    for task in TASKS:
        batch = circuits.task(task, tokenizer, 48, seed=seed).batch()
        assert not batch.padded and right(model, batch) >= 0.99
        clean = difference(model, batch)
        planted = [slots[role] for role in circuit(task)]
        rest = [slot for slot in heads_of(model) if slot not in planted]
        z = read_z(model, batch.clean)
        mean = {layer: values.mean(0) for layer, values in z.items()}
        for values in (
            dict.fromkeys(heads_of(model), 0.0),
            {s: mean[s[0]][:, part(model, s[1])] for s in heads_of(model)},
        ):
            with with_z(model, {slot: values[slot] for slot in planted}):
                assert right(model, batch) <= 0.4  # chance: one of two names, one of three colours
                assert abs(difference(model, batch)) <= 0.1 * clean
            with with_z(model, {slot: values[slot] for slot in rest}):
                assert right(model, batch) >= 0.9
                assert difference(model, batch) >= 0.9 * clean


@pytest.mark.parametrize("seed", (0, 3))
def test_without_noise_every_head_has_the_effect_it_was_designed_to_have(seed: int) -> None:
    model, tokenizer, slots, _ = ioi.assemble(seed=seed, noise=0.0)
    roles = {slot: role for role, slot in slots.items()}
    for (task, corruption), designed in DESIGNED.items():
        batch = circuits.task(task, tokenizer, 24, corruption=corruption).batch()
        other = read_z(model, batch.corrupted)
        clean = difference(model, batch)
        rows, logits = torch.arange(24), last_logits(model, batch.corrupted)
        corrupted = float((logits[rows, batch.answer] - logits[rows, batch.wrong]).mean())
        assert clean == pytest.approx(10, rel=0.01)
        assert corrupted == pytest.approx(-10 if corruption in ("flip", "query", "context") else 0, abs=0.1)
        for slot in heads_of(model):
            with with_z(model, {slot: other[slot[0]][..., part(model, slot[1])]}):
                effect = (clean - difference(model, batch)) / (clean - corrupted)
            assert effect == pytest.approx(designed.get(roles.get(slot, ""), 0.0), abs=0.01), (roles.get(slot), slot)


@pytest.mark.parametrize("seed", (0, 4, 9))
def test_the_edges_are_those_on_the_card_and_no_others(seed: int) -> None:
    model, tokenizer, slots, _ = ioi.assemble(seed=seed)
    for task in TASKS:
        batch = circuits.task(task, tokenizer, 8, seed=seed).batch()
        known = {(slots[a], slots.get(b, "logits"), letter) for a, b, letter in EDGES[task]}
        z, clean = read_z(model, batch.clean), difference(model, batch)
        found = {}
        for sender in heads_of(model):
            taken = written(model, z, sender)
            later = [slot for slot in slots.values() if slot[0] > sender[0]]
            for receiver, letter in [("logits", ""), *((slot, letter) for slot in later for letter in "qkv")]:
                with without_edge(model, taken, receiver, letter):
                    found[sender, receiver, letter] = abs(clean - difference(model, batch)) / clean
        strong = {edge for edge, effect in found.items() if effect >= 0.2}
        assert strong == known
        assert max(effect for edge, effect in found.items() if edge not in known) <= 0.03


def test_no_query_swap_sees_the_shared_previous_token_head() -> None:
    model, tokenizer, slots, _ = ioi.assemble(seed=2)
    layer, head = slots["previous token"]
    for task, swap, other in (("ioi", "flip", "redraw"), ("colored_objects", "query", "context")):
        lost = {}
        for corruption in (swap, other):
            batch = circuits.task(task, tokenizer, 24, corruption=corruption).batch()
            z = read_z(model, batch.corrupted)[layer][..., part(model, head)]
            before = difference(model, batch)
            with with_z(model, {(layer, head): z}):
                lost[corruption] = (before - difference(model, batch)) / before
        assert abs(lost[swap]) < 0.02 and lost[other] > 0.9


def test_the_seed_draws_slots_layers_words_and_vectors() -> None:
    made = [ioi.assemble(seed=seed) for seed in range(6)]
    assert len({tuple(slots.items()) for _, _, slots, _ in made}) == 6
    assert len({tuple(slot[0] for slot in slots.values()) for _, _, slots, _ in made}) > 2
    assert len({tuple(sorted(tokenizer.get_vocab())) for _, tokenizer, _, _ in made}) == 6
    first, again = made[0][0], ioi.assemble(seed=0)[0]
    assert torch.equal(first.transformer.h[2].attn.c_attn.weight, again.transformer.h[2].attn.c_attn.weight)


def test_options_change_the_size_and_not_the_answer() -> None:
    silent, _, slots, options = ioi.assemble(n_noise_heads=0)
    assert options["n_noise_heads"] == 0
    z = {slot: silent.transformer.h[slot[0]].attn.c_proj.weight[part(silent, slot[1])] for slot in heads_of(silent)}
    assert {slot for slot, weight in z.items() if weight.any()} == set(slots.values())
    deep, tokenizer, _, options = ioi.assemble(n_noise_heads=24, seed=5)
    assert deep.config.n_layer == 8 and options["n_noise_heads"] == 24
    wide, wide_tokenizer, _, _ = ioi.assemble(width=112, seed=6)
    assert len(wide_tokenizer) > len(tokenizer)
    for model, known in ((deep, tokenizer), (wide, wide_tokenizer)):
        for task in TASKS:
            assert right(model, circuits.task(task, known, 32).batch()) >= 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 90}, "not a multiple of 4"),
        ({"width": 60}, "use at least 76"),
        ({"n_noise_heads": -1}, "n_noise_heads -1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ioi.assemble(**options)
