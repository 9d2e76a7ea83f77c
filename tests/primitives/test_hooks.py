"""A hook that does not do what it says is an error, never a silent no-op."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.primitives.cases import largest, model, n_hooks, prompts, weights
from workbench.errors import CapabilityError, InputError
from workbench.primitives.forward import forward
from workbench.primitives.hooks import hook_points, hooked

Z, CANONICAL = "blocks.1.attn.hook_z", "blocks.1.attn.o.hook_in"
TOKENS = prompts()


def nothing(activation, hook):
    return None


@pytest.fixture
def m():
    return model("gpt2")


@pytest.fixture(autouse=True)
def no_hook_is_left(m):
    before = n_hooks(m)
    yield
    assert n_hooks(m) == before


def test_alias_and_canonical_name_are_one_hook_point_and_firings_are_counted(m):
    assert hook_points(m, [Z])[Z] is hook_points(m, [CANONICAL])[CANONICAL]
    with hooked(m, [(Z, nothing), (CANONICAL, nothing)]) as log:
        forward(m, TOKENS)
        forward(m, TOKENS)
    assert log.fired == {Z: 2, CANONICAL: 2}


def test_an_unknown_name_is_refused_with_a_suggestion(m):
    with (
        pytest.raises(InputError, match=r"'blocks\.1\.attn\.hook_zz'.*Did you mean 'blocks"),
        hooked(m, [(Z, nothing), ("blocks.1.attn.hook_zz", nothing)]),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("blocks.0.attn.hook_result", "set_use_attn_result"),
        ("blocks.0.hook_q_input", "set_use_split_qkv_input"),
        ("blocks.0.hook_attn_in", "set_use_attn_in"),
        ("blocks.0.hook_mlp_in", "set_use_hook_mlp_in"),
    ],
)
def test_a_hook_that_is_switched_off_is_refused_with_the_switch(m, name, switch):
    with pytest.raises(InputError, match=rf"{name}.*{switch}\(True\)"), hooked(m, [(name, nothing)]):
        pytest.fail("the block must not run")


def test_a_hook_that_is_switched_on_fires(m):
    m.bridge.set_use_attn_result(True)
    try:
        with hooked(m, [("blocks.0.attn.hook_result", nothing)]) as log:
            forward(m, TOKENS)
    finally:
        m.bridge.set_use_attn_result(False)
    assert log.fired["blocks.0.attn.hook_result"] == 1


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda z: z[:, :1], r"shape \[2, 1, 4, 8\].*shape \[2, 20, 4, 8\]"),  # would broadcast
        (lambda z: z.double(), r"float64.*float32"),
        (lambda z: z.to("meta"), r"device meta.*device cpu"),
        (lambda z: (z,), "tuple"),
    ],
)
@pytest.mark.parametrize("copy", [True, False])
def test_a_result_that_does_not_fit_is_refused(m, result, says, copy):
    with pytest.raises(InputError, match=f"{Z}.*{says}"), hooked(m, [(Z, lambda z, hook: result(z))], copy=copy):
        forward(m, TOKENS)


def test_writing_in_place_takes_effect_and_never_reaches_what_was_kept_before(m):
    kept = []

    def write(z, hook):
        z[:, :, 2] = 0

    clean = forward(m, TOKENS).logits
    with hooked(m, [(Z, lambda z, hook: kept.append(z)), (Z, write), (Z, lambda z, hook: kept.append(z))]):
        written = forward(m, TOKENS).logits
    with hooked(m, [(Z, lambda z, hook: torch.where(torch.arange(4)[:, None] == 2, 0.0, z))]):
        returned = forward(m, TOKENS).logits
    assert float(kept[0][:, :, 2].abs().max()) > 0.1, "what was kept before the write is as it was"
    assert float(kept[1][:, :, 2].abs().max()) == 0, "a later hook sees the edit"
    assert torch.equal(written, returned)
    assert largest(written, clean) > 0.1


def test_writing_in_place_into_the_live_activation_is_refused(m):
    with pytest.raises(InputError, match=f"{Z}.*in place"), hooked(m, [(Z, lambda z, hook: z.zero_())], copy=False):
        forward(m, TOKENS)


@pytest.mark.parametrize("copy", [True, False])
def test_under_inference_mode_writes_are_private_too(m, copy):
    kept = []

    def write(z, hook):
        assert z.is_inference()
        z.zero_()

    keep = lambda z, hook: kept.append(z)  # noqa: E731
    with torch.inference_mode(), hooked(m, [(Z, keep), (Z, write), (Z, keep)], copy=copy):
        m.bridge(TOKENS)
    assert float(kept[0].abs().max()) > 0.1
    assert float(kept[1].abs().max()) == 0


def test_a_hook_that_never_fires_is_an_error(m):
    with pytest.raises(InputError, match=f"{Z}.*never fired"), hooked(m, [(Z, nothing)]):
        pass
    gptj = model("gptj")  # rotary, but its attention reports no rotated queries
    with pytest.raises(InputError, match="hook_rot_q"), hooked(gptj, [("blocks.0.attn.hook_rot_q", nothing)]):
        forward(gptj, TOKENS)
    with hooked(m, [(Z, nothing)], must_fire=False) as log:
        pass
    assert log.fired == {Z: 0}


def test_an_exception_keeps_its_own_face_and_leaves_no_hook(m):
    def fail(z, hook):
        raise KeyError("mine")

    before = n_hooks(m)
    with pytest.raises(KeyError, match="mine"), hooked(m, [(Z, fail), ("blocks.2.attn.hook_z", nothing)]):
        forward(m, TOKENS)
    with pytest.raises(ZeroDivisionError), hooked(m, [(Z, nothing)]), hooked(m, [(Z, nothing)]):
        raise ZeroDivisionError
    assert n_hooks(m) == before


def test_outer_hooks_run_before_inner_hooks(m):
    seen = []
    with hooked(m, [(Z, lambda z, hook: z * 0)]), hooked(m, [(Z, lambda z, hook: seen.append(float(z.abs().max())))]):
        forward(m, TOKENS)
    assert seen == [0.0]


@pytest.mark.parametrize("arch", ["gptj", "opt"])
def test_an_edit_that_the_architecture_discards_is_refused_even_when_warnings_are_ignored(arch):
    m = model(arch)
    forward(m, TOKENS)  # TransformerLens leaves hooks of its own at a model's first forward
    before = n_hooks(m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            pytest.raises(CapabilityError, match=rf"tiny-{arch}.*discards.*hook_pattern"),
            hooked(m, [("blocks.1.attn.hook_pattern", lambda p, hook: p * 0.5)]),
        ):
            forward(m, TOKENS)
    assert n_hooks(m) == before


def test_other_warnings_pass(m):
    def warn(z, hook):
        warnings.warn("mine", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="mine"), hooked(m, [(Z, warn)]):
        forward(m, TOKENS)


def test_hooks_leave_the_weights_alone(m):
    before = weights(m)
    with hooked(m, [(Z, lambda z, hook: z.zero_())]):
        forward(m, TOKENS)
    assert all(torch.equal(before[name], p) for name, p in weights(m).items())


def test_gradients_flow_through_a_hook_that_returns_its_input(m):
    kept = []

    def start_graph(x, hook):
        return x.detach().requires_grad_(True)

    def keep(z, hook):
        kept.append(z)
        return z

    with hooked(m, [("hook_embed", start_graph), (Z, keep)], copy=False):
        logits = forward(m, TOKENS, grad=True).logits
    (gradient,) = torch.autograd.grad(logits[:, -1].sum(), kept)
    assert gradient.shape == kept[0].shape
    assert float(gradient.abs().max()) > 0
