"""Known sparse features are recovered, dead features come back, and an interrupted run ends with the same bits."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny
from workbench.errors import InputError
from workbench.saes import TrainOptions, find_place, load_sae, save_sae, train, training
from workbench.saes.corpus import as_rows, continued
from workbench.saes.pages import ModelPages, generator
from workbench.saes.place import activations

HOOK = "blocks.1.hook_resid_post"


class Known:
    """Sums of a few of 32 known unit directions in 20 dimensions, and a constant."""

    def __init__(self, n_features: int = 32, width: int = 20, page_size: int = 4096, fail_at: int | None = None):
        g = generator(5)
        self.directions = torch.nn.functional.normalize(torch.randn(n_features, width, generator=g), dim=-1)
        self.offset = torch.randn(width, generator=g)
        self.width, self.page_size, self.fail_at = width, page_size, fail_at
        self.key = ["known", n_features, width, page_size]
        self.asked: list[int] = []

    def page(self, number: int) -> torch.Tensor:
        if number == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(number)
        g = generator(7, number)
        on = torch.rand(self.page_size, len(self.directions), generator=g) < 0.06
        size = 1 + torch.rand(self.page_size, len(self.directions), generator=g)
        return 3 * (on * size) @ self.directions + self.offset


def recovery(sae, directions) -> float:
    rows = torch.nn.functional.normalize(sae.decoder, dim=-1)
    return float((directions @ rows.T).max(dim=-1).values.mean())


QUICK = {"batch": 256, "lr": 3e-3, "warmup": 50, "dead_after": 100}


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "topk", "k": 3, "steps": 1000},
        {"architecture": "standard", "l1": 1.5, "steps": 1000},
    ],
    ids=["topk", "standard"],
)
def test_known_features_are_recovered(options):
    known = Known()
    made = train(known, TrainOptions(d_sae=48, **QUICK, **options), hook_name=HOOK, seed=1)
    found = recovery(made.sae, known.directions)
    assert found >= 0.9, found
    random = torch.nn.functional.normalize(torch.randn(48, known.width, generator=generator(9)), dim=-1)
    assert float((known.directions @ random.T).max(dim=-1).values.mean()) < 0.7, "the bar is not met by chance"
    torch.testing.assert_close(made.sae.weights["W_dec"].norm(dim=-1), torch.ones(48))
    x = known.page(1000)
    error = (x - made.sae.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.35, "in the activation's own units"
    if options["architecture"] == "topk":
        assert made.sae.config.k == 3 and int((made.sae.encode(x) > 0).sum(-1).max()) <= 3


@pytest.mark.parametrize("dead", ["aux", "resample"])
def test_dead_features_come_back(dead, monkeypatch):
    """Half of the features start too weak to be among the k largest, or (resample) too far below 0 to be active."""
    start = training._start

    def crippled(pages, options, seed):
        state = start(pages, options, seed)
        if dead == "aux":
            state.weights["W_enc"][:, ::2] *= 0.02
        else:
            state.weights["b_enc"][::2] = -100
        return state

    monkeypatch.setattr(training, "_start", crippled)
    never = {}
    for remedy in ("none", dead):
        architecture = "topk" if dead == "aux" else "standard"
        options = TrainOptions(
            architecture=architecture, d_sae=48, k=3, steps=250, dead=remedy, **{**QUICK, "dead_after": 30}
        )
        made = train(Known(), options, hook_name=HOOK)
        never[remedy] = int((~(made.sae.encode(Known().page(999)) > 0).any(0))[::2].sum())
    assert never["none"] >= 20 and never[dead] <= 8, never


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, architecture):
    options = TrainOptions(
        architecture=architecture, d_sae=48, k=3, steps=120, checkpoint_every=7, **{**QUICK, "dead_after": 10}
    )
    whole = train(Known(page_size=1100), options, hook_name=HOOK, seed=2)
    with pytest.raises(KeyboardInterrupt):
        train(Known(page_size=1100, fail_at=12), options, hook_name=HOOK, seed=2, checkpoint=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    again = Known(page_size=1100)
    resumed = train(again, options, hook_name=HOOK, seed=2, checkpoint=tmp_path)
    assert resumed.resumed_at == 42 and min(again.asked) == 10, "four batches to a page"
    for name, weight in whole.sae.weights.items():
        assert torch.equal(resumed.sae.weights[name], weight), name
    assert resumed.history == whole.history
    assert not list(tmp_path.iterdir()), "nothing is left when it is done"


def test_a_state_of_other_options_or_a_damaged_one_is_not_taken_up(tmp_path):
    options = TrainOptions(d_sae=24, k=2, steps=40, checkpoint_every=5, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        train(Known(page_size=1024, fail_at=8), options, hook_name=HOOK, checkpoint=tmp_path)
    other = train(Known(page_size=1024), options, hook_name=HOOK, seed=1, checkpoint=tmp_path)
    assert other.resumed_at == 0
    (left,) = tmp_path.iterdir()
    data = left.read_bytes()
    for damaged in (data[:100], data[:-1] + bytes([data[-1] ^ 1])):
        left.write_bytes(damaged)
        assert train(Known(page_size=1024), options, hook_name=HOOK, checkpoint=tmp_path).resumed_at == 0


def test_pages_of_a_model_hold_its_tokens_once_each_and_are_the_same_again():
    model = tiny("llama")
    tokens, mask = as_rows([tuple(range(5, 5 + n)) for n in (6, 9, 12, 7)])
    place = find_place(model, HOOK)
    assert mask is not None
    every = activations(model, place, tokens, mask)[mask]
    pages = ModelPages(model, place, tokens, mask, buffer=1000, seed=3)
    one, two = pages.page(0), pages.page(1)
    assert one.shape == (34, 32) and not torch.equal(one, two)
    torch.testing.assert_close(one.sort(dim=0).values, every.sort(dim=0).values)
    assert torch.equal(ModelPages(model, place, tokens, mask, buffer=1000, seed=3).page(1), two)
    small = ModelPages(model, place, tokens, mask, buffer=17, seed=3, rows=1)  # two prompts to a page
    both = torch.cat([small.page(0), small.page(1)])  # one epoch
    torch.testing.assert_close(both.sort(dim=0).values, every.sort(dim=0).values)
    assert torch.equal(ModelPages(model, place, tokens, mask, buffer=17, seed=3, rows=1).page(1), small.page(1)), (
        "a page needs no page before it"
    )


def test_a_model_is_trained_on_and_the_folder_read_back(tmp_path):
    model = tiny("gpt2")
    texts = continued(model, [(0, 5), (0, 9, 11)], samples=6, length=20, seed=1)
    assert [len(text) for text in texts] == [20] * 12 and texts[0][:2] == (0, 5) and texts[6][:3] == (0, 9, 11)
    assert texts == continued(model, [(0, 5), (0, 9, 11)], samples=6, length=20, seed=1, rows=4)
    tokens, mask = as_rows(texts)
    place = find_place(model, "blocks.1.attn.hook_z")
    pages = ModelPages(model, place, tokens, mask, buffer=240, seed=0)
    made = train(pages, TrainOptions(k=4, steps=60, batch=64), hook_name=place.name, basis=model.basis)
    sae = load_sae(save_sae(made.sae, tmp_path / "sae"))
    assert (sae.d_in, sae.d_sae, sae.config.flatten_heads, sae.config.trained_on) == (32, 128, True, "raw")
    x = activations(model, place, tokens, mask)
    assert torch.equal(sae.encode(x), made.sae.encode(x))
    with pytest.raises(InputError, match="larger buffer or a smaller batch"):
        train(pages, TrainOptions(batch=10_000), hook_name=place.name)
    with pytest.raises(InputError, match="choose a length between"):
        continued(model, [(0, 5)], samples=1, length=300)
