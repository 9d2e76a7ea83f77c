"""Path patching equals three whole passes with raw hooks, for every kind of receiver, and does what it claims."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.primitives.cases import left_padded, model, n_hooks, prompts, raw
from tests.reference import paths as slow
from tests.tiny import tiny, tiny_hf
from workbench.errors import CapabilityError, InputError
from workbench.primitives import freezing
from workbench.primitives.patching import patch_cells, sites
from workbench.primitives.paths import MLP, PathRuns, all_senders, parse_receivers, path_patch, sender_name
from workbench.primitives.receivers import Receiver
from workbench.primitives.sweep.readout import Readout

N = 3
ARCHES = ["gpt2", "llama", "neox", "qwen3", "gemma2"]
SETS = [
    ("logits", "logits"),
    (["2.3.q"], [("q", 2, 3)]),
    (["2.1.k"], [("k", 2, 1)]),
    (["2.0.v"], [("v", 2, 0)]),
    (["1.0.q", "2.3.q", "2.1.v", "2.0.k"], [("q", 1, 0), ("q", 2, 3), ("v", 2, 1), ("k", 2, 0)]),
    (["1.mlp", "2.1.q"], [("mlp", 1, None), ("q", 2, 1)]),
    (["2.mlp"], [("mlp", 2, None)]),
]


@functools.cache
def readouts(n=N):
    g = torch.Generator().manual_seed(5)
    answer, wrong = torch.randint(4, 30, (n,), generator=g), torch.randint(30, 60, (n,), generator=g)
    return {name: Readout(name, answer, wrong) for name in ("logit_diff", "kl", "log_prob")}


def runs(n=N, length=9):
    return prompts(n, length, 0), prompts(n, length, 100)


def logit_diff(logits):
    r, rows = readouts()["logit_diff"], torch.arange(N)
    return (logits[rows, r.answer] - logits[rows, r.wrong]).double().numpy()


def senders_below(receivers, parallel):
    if receivers == "logits":
        return [(0, 1), (1, 2), (2, 0)]
    top = max(layer + (part == "mlp" and not parallel) for part, layer, _ in receivers)
    return [(layer, (layer + 1) % 4) for layer in range(min(top, 3))]


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize("arch", ARCHES)
def test_every_receiver_equals_three_passes_of_raw_hooks(arch, mlps):
    base, other = runs()
    moved = 0.0
    for names, receivers in SETS:
        senders = senders_below(receivers, arch == "neox")
        done = path_patch(model(arch), base, other, receivers=names, readouts=readouts(), senders=senders, mlps=mlps)
        assert done.reaches.all()
        for row, sender in zip(done.values["logit_diff"], senders, strict=True):
            logits = slow.path_patch(raw(arch), base, other, sender, receivers, mlps)
            tolerance = 1e-5 * max(1, float(logits.abs().max()))
            assert np.abs(row - logit_diff(logits)).max() < tolerance, (names, sender)
        moved = max(moved, float(np.abs(done.effect("logit_diff")).max()))
    assert moved > 0.05


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "gemma2"])
def test_mlps_send_as_heads_do(arch, mlps):
    (base, mask, _), (other, _, _) = (left_padded(tokens, [0, 3, 2]) for tokens in runs())
    first, last = torch.zeros_like(mask).bool(), torch.zeros_like(mask).bool()
    first[torch.arange(N), (mask == 0).sum(1) + 2], last[:, -1] = True, True
    spots = {"sender_positions": [2, -1], "receiver_positions": [-1]}
    both = PathRuns.of(model(arch), base, other, attention_mask=mask)
    moved = 0.0
    for names, receivers in SETS:
        top = 3 if receivers == "logits" else max(layer for _, layer, _ in receivers)
        for options, where in [({}, (None, None)), (spots, (first | last, last))]:
            senders = [(layer, MLP) for layer in range(top)]
            done = both.patch(readouts(), receivers=names, senders=senders, mlps=mlps, **options)
            assert done.reaches.all()
            for row, (layer, _) in zip(done.values["logit_diff"], senders, strict=True):
                logits = slow.path_patch(raw(arch), base, other, (layer, None), receivers, mlps, mask, *where)
                tolerance = 1e-5 * max(1, float(logits.abs().max()))
                assert np.abs(row - logit_diff(logits)).max() < tolerance, (names, layer, options)
            moved = max(moved, float(np.abs(done.effect("logit_diff")).max()))
    assert moved > 0.05


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
def test_questions_share_the_two_runs_and_batches_hold_heads_and_mlps(mlps):
    m, (base, other) = model("llama"), runs()
    both = PathRuns.of(m, base, other)
    everyone = all_senders(m)
    assert [sender_name(unit[0]) for unit in everyone[:6]] == ["0.0", "0.1", "0.2", "0.3", "0.mlp", "1.0"]
    are_heads = [unit[0][1] != MLP for unit in everyone]
    for names, _ in SETS:
        question = {"receivers": names, "mlps": mlps}
        together = both.patch(readouts(), senders=everyone, **question)
        heads = path_patch(m, base, other, readouts=readouts(), **question)
        alone = path_patch(m, base, other, readouts=readouts(), senders=["0.mlp", "1.mlp"], **question)
        found = [everyone.index(unit) for unit in alone.senders]
        np.testing.assert_allclose(together.values["kl"][are_heads], heads.values["kl"], atol=1e-6)
        np.testing.assert_allclose(together.values["kl"][found], alone.values["kl"], atol=1e-6)
    question = {"receivers": "logits", "senders": everyone, "mlps": mlps}
    null = both.against_itself().patch(readouts(), donors=[1, 2, 0], **question)
    want = path_patch(m, base, base[[1, 2, 0]], readouts=readouts(), **question)
    np.testing.assert_allclose(null.values["logit_diff"], want.values["logit_diff"], atol=1e-5)


def test_an_mlp_has_a_path_to_what_reads_after_it():
    base, other = runs()
    for arch in ("llama", "neox"):
        both = PathRuns.of(model(arch), base, other)
        for names, want in [(["1.0.q"], 1), (["1.mlp"], 1), ("logits", 3)]:
            done = both.patch(readouts(), receivers=names, senders=["0.mlp", "1.mlp", "2.mlp"])
            assert done.reaches.sum() == want
    for wrong, words in [(["3.mlp"], "no layer 3"), (["0.4"], "no head"), (["mlp"], "not a sender"), ([], "at least")]:
        with pytest.raises(InputError, match=words):
            path_patch(model("llama"), base, other, receivers="logits", readouts=readouts(), senders=wrong)
    with pytest.raises(CapabilityError, match="cannot be frozen"):  # its MLP is no module of its own
        path_patch(model("opt"), base, other, receivers="logits", readouts=readouts(), senders=["0.mlp"])


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_in_float64_the_difference_is_rounding(arch, mlps):
    class Exact:  # the metrics of the workbench are float32
        needs_base = False

        def __call__(self, logits, rows, _):
            return logits[torch.arange(len(rows)), readouts()["logit_diff"].answer[rows]]

    base, other = runs()
    hf = raw(arch, torch.float64)
    for names, receivers in SETS:
        senders = senders_below(receivers, False)
        m = model(arch, torch.float64)
        done = path_patch(m, base, other, receivers=names, readouts={"exact": Exact()}, senders=senders, mlps=mlps)
        for row, sender in zip(done.values["exact"], senders, strict=True):
            want = Exact()(slow.path_patch(hf, base, other, sender, receivers, mlps), torch.arange(N), None)
            assert np.abs(row - want.numpy()).max() < 1e-10, (names, sender)


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2"])
def test_padded_batches_and_positions_equal_raw_hooks(arch, mlps):
    (base, mask, _), (other, _, _) = (left_padded(tokens, [0, 3, 2]) for tokens in runs())
    first, last = torch.zeros_like(mask).bool(), torch.zeros_like(mask).bool()
    first[torch.arange(N), (mask == 0).sum(1) + 2], last[:, -1] = True, True
    for names, receivers in [SETS[0], SETS[4], SETS[5]]:
        done = path_patch(
            model(arch),
            base,
            other,
            receivers=names,
            readouts=readouts(),
            senders=[(0, 1), (1, 3)],
            mlps=mlps,
            attention_mask=mask,
            sender_positions=[2, -1],
            receiver_positions=[-1],
        )
        for row, sender in zip(done.values["logit_diff"], [(0, 1), (1, 3)], strict=True):
            logits = slow.path_patch(raw(arch), base, other, sender, receivers, mlps, mask, first | last, last)
            assert np.abs(row - logit_diff(logits)).max() < 1e-5 * max(1, float(logits.abs().max())), (names, sender)


def test_a_sender_above_every_receiver_has_no_path():
    base, other = runs()
    done = path_patch(model("llama"), base, other, receivers=["1.0.q"], readouts=readouts())
    assert done.reaches.tolist() == [True] * 4 + [False] * 8
    assert np.isnan(done.values["logit_diff"][4:]).all()
    assert np.isfinite(done.values["logit_diff"][:4]).all()
    sequential = path_patch(model("llama"), base, other, receivers=["1.mlp"], readouts=readouts())
    parallel = path_patch(model("neox"), base, other, receivers=["1.mlp"], readouts=readouts())
    assert (sequential.reaches.sum(), parallel.reaches.sum()) == (8, 4)


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
def test_receivers_below_and_above_a_sender_go_together(mlps):
    base, other = runs()
    m, hf = tiny("llama", num_hidden_layers=4), tiny_hf("llama", num_hidden_layers=4)
    receivers = [("q", 1, 0), ("v", 3, 1), ("mlp", 0, None)]
    senders = [(0, 3), (1, 1), (2, 2)]
    options = {"readouts": readouts(), "mlps": mlps}
    done = path_patch(m, base, other, receivers=["1.0.q", "3.1.v", "0.mlp"], senders=senders, **options)
    for row, sender in zip(done.values["logit_diff"], senders, strict=True):
        logits = slow.path_patch(hf, base, other, sender, receivers, mlps)
        assert np.abs(row - logit_diff(logits)).max() < 1e-5 * max(1, float(logits.abs().max())), sender


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
def test_a_run_sent_into_itself_changes_nothing(mlps):
    base, _ = runs()
    for names, _ in SETS:
        done = path_patch(model("gpt2"), base, base, receivers=names, readouts=readouts(), mlps=mlps)
        moved = done.effect("logit_diff")[done.reaches]
        np.testing.assert_allclose(moved, 0, atol=2e-5)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox"])
def test_into_the_logits_a_head_of_the_last_layer_has_its_whole_effect(arch):
    m, (base, other) = model(arch), runs()
    last = m.n_layers - 1
    whole = patch_cells(m, base, other, sites(m, "z", layers=[last], positions=[-1]), readouts())
    direct = path_patch(
        m, base, other, receivers="logits", readouts=readouts(), senders=[(last, h) for h in range(m.n_heads)]
    )
    np.testing.assert_allclose(direct.values["logit_diff"], whole.values["logit_diff"], atol=1e-5)


def test_frozen_heads_add_up_before_the_final_norm_and_sets_send_together():
    m, (base, other) = model("llama"), runs()
    everyone = [(layer, head) for layer in range(3) for head in range(4)]
    together = path_patch(m, base, other, receivers="logits", readouts=readouts(), senders=[everyone], mlps="freeze")
    raw_z = {("z", at): slow.swap(slow.read(raw("llama"), other, [("z", at)])["z", at]) for at in range(3)}
    outs = [("mlp_out", at) for at in range(3)]
    raw_mlp = {key: slow.swap(value) for key, value in slow.read(raw("llama"), base, outs).items()}
    want = logit_diff(slow.run(raw("llama"), base, None, {**raw_z, **raw_mlp}))
    np.testing.assert_allclose(together.values["logit_diff"][0], want, atol=1e-5)


def test_batch_size_order_and_padding_do_not_matter():
    m = model("llama")
    (base, mask, alone), (other, _, others) = (left_padded(tokens, [0, 3, 2]) for tokens in runs())
    order = [2, 0, 1]
    r = readouts()
    options = {"receivers": ["1.0.q", "2.1.v"], "mlps": "recompute"}
    together = path_patch(m, base, other, readouts=r, attention_mask=mask, **options)
    mixed = {n: Readout(n, x.answer[order], x.wrong[order]) for n, x in r.items()}
    shuffled = path_patch(
        m, base[order], other[order], readouts=mixed, attention_mask=mask[order], batch_rows=2, **options
    )
    for name, values in together.values.items():
        np.testing.assert_allclose(shuffled.values[name], values[:, order], atol=1e-5, err_msg=name)
        for i in range(N):
            one = {n: Readout(n, x.answer[i : i + 1], x.wrong[i : i + 1]) for n, x in r.items()}
            single = path_patch(m, alone[i], others[i], readouts=one, **options)
            np.testing.assert_allclose(single.values[name][:, 0], values[:, i], atol=1e-5, err_msg=name)


def test_donors_send_the_z_of_another_example():
    m, (base, other) = model("llama"), runs()
    given = path_patch(m, base, other, receivers="logits", readouts=readouts(), donors=[1, 2, 0])
    moved = path_patch(m, base, other[[1, 2, 0]], receivers="logits", readouts=readouts())
    np.testing.assert_allclose(given.values["kl"], moved.values["kl"], atol=1e-6)


def test_nothing_is_left_on_the_model():
    m, (base, other) = model("gpt2"), runs()
    before = n_hooks(m)
    for mlps in ("recompute", "freeze"):
        path_patch(m, base, other, receivers=["2.0.q", "1.mlp"], readouts=readouts(), mlps=mlps)
    assert n_hooks(m) == before
    assert not any("forward" in x.__dict__ for x in m.bridge.original_model.modules())


def test_architectures_whose_paths_cannot_be_told_apart_are_refused():
    base, other = runs()
    with pytest.raises(CapabilityError, match="head by head"):
        path_patch(model("olmo2"), base, other, receivers=["1.0.q"], readouts=readouts())
    path_patch(model("olmo2"), base, other, receivers="logits", readouts=readouts())  # needs no q
    with pytest.raises(CapabilityError, match="head_ablation_ok"):
        path_patch(model("deepseek_v3"), base, other, receivers="logits", readouts=readouts())
    with pytest.raises(CapabilityError, match="never calls its mlp in layer 1"):
        path_patch(model("opt"), base, other, receivers=["1.mlp"], readouts=readouts())


def test_an_architecture_whose_attention_returns_the_stream_is_measured_and_refused():
    m, (base, other) = model("bloom"), runs()  # its attention and MLP modules add the stream themselves
    assert not freezing.measure_freezing(m, "recompute")
    with pytest.raises(CapabilityError, match="cannot be frozen exactly"):
        path_patch(m, base, other, receivers="logits", readouts=readouts())


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "at least one receiver"),
        (["9.6"], "not a receiver"),
        ("logit", "not a receiver"),
        (["logits", "1.0.q"], "run them apart"),
        (["3.0.q"], "layer 3"),
        (["1.4.q"], "0 to 3"),
        (["1.2.k"], "0 to 1; k belongs to kv groups"),
    ],
)
def test_a_receiver_that_does_not_exist_is_named(names, words):
    base, other = runs()
    with pytest.raises(InputError, match=words):
        path_patch(model("llama"), base, other, receivers=names, readouts=readouts())


def test_receivers_have_names():
    found = parse_receivers(["9.6.q", "9.2.k", "9.mlp", "9.6.q"])
    assert found == (Receiver("q", 9, 6), Receiver("k", 9, 2), Receiver("mlp", 9))
    assert [str(r) for r in found] == ["9.6.q", "9.2.k", "9.mlp"]
    assert str(parse_receivers("logits")[0]) == "logits"
    with pytest.raises(InputError, match="mlps"):
        base, other = runs()
        path_patch(model("gpt2"), base, other, receivers="logits", readouts=readouts(), mlps="frozen")
