"""What every registered analysis must do. A new one joins by being registered and by an entry in `examples.QUICK`."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from tests.analyses.examples import QUICK, data_block, dataset, save_tiny, tiny_model
from workbench import analyses
from workbench.errors import CapabilityError, InputError
from workbench.experiments import rerun, run
from workbench.experiments.agreement import Level
from workbench.models.capabilities import FLAGS
from workbench.store import Store
from workbench.tables import COLUMNS

NAMES = analyses.names()
ARCHES = ["gpt2", "llama"]


@pytest.fixture(scope="module", params=[(name, arch) for name in NAMES for arch in ARCHES], ids="-".join)
def case(request):
    """(analysis, model, data, params, result, seconds), one run shared by the tests that only look."""
    name, arch = request.param
    analysis = analyses.get(name)
    model = tiny_model(analysis.data_kind, arch)
    data, params = dataset(model, analysis.data_kind), analysis.parse(QUICK[name])
    analysis(model, data, params, seed=0)  # whatever is built once per process is not the analysis' time
    before = {key: value.clone() for key, value in model.bridge.state_dict().items()}
    hooks = count_hooks(model)
    started = time.perf_counter()
    result = analysis(model, data, params, seed=0)
    seconds = time.perf_counter() - started
    return analysis, model, data, params, result, seconds, before, hooks


def count_hooks(model):
    modules = list(model.bridge.original_model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_survive_yaml(name):
    analysis = analyses.get(name)
    for params in (analysis.params_type(), analysis.parse(QUICK[name])):
        text = yaml.safe_dump(params.model_dump(mode="json"))
        assert analysis.parse(yaml.safe_load(text)) == params


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_parameter_is_named(name):
    with pytest.raises(InputError, match="no_such_parameter"):
        analyses.get(name).parse({"no_such_parameter": 1})


def test_the_table_has_the_schema(case):
    analysis, model, _, _, result, *_ = case
    heads = result.heads
    assert tuple(heads.columns)[: len(COLUMNS)] == COLUMNS
    assert heads.shape == (model.n_layers, model.n_heads)
    assert (np.isnan(heads["score"]) == (heads["status"] != "ok")).all()
    meta = heads.meta
    assert (meta["analysis"], meta["fingerprint"], meta["basis"]) == (analysis.name, model.fingerprint, model.basis)
    assert meta["metric"]
    ok = heads.ok
    assert np.isfinite(heads["null_mean"][ok]).all(), "every score has its null"
    assert np.isfinite(heads["stderr"][ok]).all(), "every score has its uncertainty"


def test_per_example_values_are_kept_and_average_to_the_score(case):
    *_, result, _, _, _ = case
    per_example = result.per_example
    assert per_example.shape[1:] == result.heads.shape
    mean = np.nanmean(per_example.astype(np.float64), axis=0)
    np.testing.assert_allclose(mean, result.heads.matrix(), rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_result(case):
    analysis, model, data, params, result, *_ = case
    again = analysis(model, data, params, seed=0)
    assert again.heads.to_csv() == result.heads.to_csv()
    assert again.arrays.keys() == result.arrays.keys()
    for name, values in result.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], values)
    for name, table in result.tables.items():
        assert again.tables[name].equals(table), name


def test_nothing_is_left_behind(case):
    _, model, *_, before, hooks = case
    assert count_hooks(model) == hooks
    after = model.bridge.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(parameter.requires_grad for parameter in model.bridge.parameters())


def test_a_batch_of_different_lengths_equals_single_runs(case):
    analysis, model, _, params, result, *_ = case
    if result.heads.meta.get("level") == "dataset":
        pytest.skip("a score of a set of prompts has no value for one of them; its own tests compare batches")
    data = dataset(model, analysis.data_kind, ragged=True)
    together = analysis(model, data, params, seed=0).per_example
    alone = [analysis(model, data[i : i + 1], params, seed=0).per_example[0] for i in range(len(data))]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5)


def test_a_tiny_model_takes_seconds(case):
    *_, seconds, _, _ = case
    assert seconds < 5


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_capability_is_refused(name):
    analysis = analyses.get(name)
    model = tiny_model(analysis.data_kind, "gpt2")
    data, params = dataset(model, analysis.data_kind), analysis.parse(QUICK[name])
    model.capabilities = replace(model.capabilities, **dict.fromkeys(FLAGS, False))
    if analysis.requires:
        with pytest.raises(CapabilityError, match=analysis.requires[0]):
            analysis(model, data, params, seed=0)
    else:  # what only reads still runs; what intervenes says why it did not
        result = analysis(model, data, params, seed=0)
        assert any("not run" in str(part.get("status")) for part in result.summary.values() if isinstance(part, dict))


@pytest.mark.parametrize("name", NAMES)
def test_a_rerun_of_the_artifact_gives_the_same_digest(name, tmp_path):
    analysis = analyses.get(name)
    folder = tmp_path / "model"
    save_tiny(analysis.data_kind, folder)
    spec = {
        "name": f"contract/{name}",
        "analysis": name,
        "model": {"path": str(folder), "dtype": "float32", "device": "cpu"},
        "data": data_block(analysis.data_kind),
        "params": QUICK[name],
    }
    store = Store(tmp_path / "store")
    first = run(spec, store=store, progress=False)
    assert run(spec, store=store, progress=False).ref == first.ref, "the same run is found, not computed"
    again = run(spec, store=store, progress=False, force=True)
    assert again.version == 2
    assert again.digest == first.digest
    places = [tmp_path, tempfile.gettempdir()]  # of the model, of the pictures
    assert rerun(first.ref, store=store, allow=places).level == Level.BITWISE
