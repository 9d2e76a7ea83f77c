"""Published files: what they say is what we read, and what is wrong with them is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from workbench import published
from workbench.errors import InputError

SHARED = Path(os.environ.get("WORKBENCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DUO = SHARED / "data" / "duo_attention"
needs_duo = pytest.mark.skipif(not DUO.exists(), reason="published DuoAttention gates are not here")


@pytest.fixture
def wu_file(tmp_path) -> Path:
    """Six samples of a model of 2 layers x 3 heads; the last sample scores 0 everywhere."""
    scores = {
        "0-0": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "0-1": [1.0, 0.9, 1.2, 0.8, 0.6, 0.0],
        "0-2": [0.0, 0.1, 0.0, 0.0, 0.0, 0.0],
        "1-0": [0.2, 0.0, 0.2, 0.0, 0.2, 0.0],
        "1-1": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "1-2": [0.5, 0.5, 0.5, 0.5, 0.5, 0.0],
    }
    path = tmp_path / "tiny-7b.json"
    path.write_text(json.dumps(scores))
    return path


def test_the_reference_s_scores_become_means_with_intervals_and_activation_frequency(wu_file):
    heads = published.read_wu_json(wu_file, n_kv_heads=3)
    assert heads.shape == (2, 3)
    assert heads.meta["model"] == "tiny-7b"
    best = heads.row(0, 1)
    assert best["score"] == pytest.approx(4.5 / 6)  # scores above 1 are the reference's own
    assert best["n"] == 6 and best["rank"] == 1
    assert best["activation_frequency"] == pytest.approx(5 / 6)
    assert best["ci_low"] < best["score"] < best["ci_high"]
    assert heads.select("score >= 0.1") == ((0, 1), (1, 2), (1, 0))


def test_samples_whose_needle_was_not_found_can_be_left_out(wu_file):
    heads = published.read_wu_json(wu_file, drop_all_zero=True)
    assert heads.row(0, 1)["n"] == 5
    assert heads.select("activation_frequency == 1") == ((0, 1), (1, 2))


def test_heads_the_file_does_not_name_are_undefined(wu_file):
    heads = published.read_wu_json(wu_file, n_layers=3, n_heads=4, n_kv_heads=2)
    assert heads.row(2, 0)["status"] == "no_examples"
    assert int(heads.ok.sum()) == 6
    with pytest.raises(InputError, match="up to 1-2, which a model of 2 layers x 2 heads does not have"):
        published.read_wu_json(wu_file, n_heads=2)


def test_lists_of_different_lengths_keep_their_own_counts(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"0-0": [1.0, 0.0], "0-1": [0.5], "0-2": []}')
    heads = published.read_wu_json(path)
    assert heads["n"].tolist() == [2, 1, 0]
    assert heads["status"].tolist() == ["ok", "ok", "no_examples"]


def test_what_we_write_in_the_reference_s_format_reads_back_equal(tmp_path):
    values = np.random.default_rng(0).random((5, 3, 4))
    published.to_wu_json(values, tmp_path / "x.json")
    assert (published.read_wu_per_example(tmp_path / "x.json") == values).all()
    values[2] = np.nan  # a sample that did not count
    text = published.to_wu_json(values)
    assert len(json.loads(text)["2-3"]) == 4
    with pytest.raises(InputError, match=r"\[n_examples, n_layers, n_heads\]"):
        published.to_wu_json(np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"0-0": [1.0}', "no JSON: .* line 1, column 13"),
        ("[1, 2]", "holds no scores"),
        ("{}", "holds no scores"),
        ('{"0-0": [1.0], "0-0": [2.0]}', "names key '0-0' twice"),
        ('{"L0H1": [1.0]}', "key 'L0H1'"),
        ('{"00-1": [1.0]}', "key '00-1'"),
        ('{"0-99999999": [1.0]}', "key '0-99999999'"),
        ('{"0-0": 1.0}', "holds 1.0 under key '0-0'"),
        ('{"0-0": [1.0, "x"]}', "'x' as entry 1 of key '0-0'"),
        ('{"0-0": [true]}', "True as entry 0"),
        ('{"0-0": [NaN]}', "nan as entry 0"),
    ],
)
def test_a_malformed_score_file_is_named_with_the_place(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        published.read_wu_json(path)
    assert "bad.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1\t2\n3\n", "1 values in line 2, but 2 above it"),
        ("1\t2\n3\tx\n", "'x' in line 2, column 2"),
        ("1\tnan\n", "'nan' in line 1, column 2"),
    ],
)
def test_a_malformed_gate_file_is_named_with_the_place(tmp_path, text, message):
    path = tmp_path / "full_attention_heads.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        published.read_duo_tsv(path)
    assert "full_attention_heads.tsv" in str(caught.value)


def test_missing_files_and_bad_settings_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none.json' cannot be read"):
        published.read_wu_json(tmp_path / "none.json")
    (tmp_path / "full_attention_heads.tsv").write_text("0.5\t1\n")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json' is no JSON"):
        published.read_duo_tsv(tmp_path)
    (tmp_path / "config.json").unlink()
    assert published.read_duo_tsv(tmp_path, model="mine").meta["model"] == "mine"


def test_gates_are_rows_of_kv_groups_and_write_back(tmp_path):
    text = published.to_duo_tsv([[0.25, -1e-5], [1.0, 0.5]], tmp_path / "full_attention_heads.tsv")
    gates = published.read_duo_tsv(tmp_path)
    assert gates.row_kind == "kv_group"
    assert gates["head"].tolist() == [-1] * 4
    assert gates.meta["model"] == tmp_path.name
    assert gates.matrix()[0, 1] == -1e-5  # as published, not clamped
    assert published.to_duo_tsv(gates) == text
    with pytest.raises(InputError, match="one gate per kv group"):
        published.to_duo_tsv(gates.from_scores([[1.0]], n_kv_heads=1))
    with pytest.raises(InputError, match="layer 0, kv group 1 is nan"):
        published.to_duo_tsv([[1.0, np.nan]])


@needs_duo
@pytest.mark.parametrize(
    ("model", "mean", "share_above_half"),
    [
        ("Llama-2-7B-32K-Instruct", 0.419, 0.43),
        ("Llama-3-8B-Instruct-Gradient-1048k", 0.769, None),
        ("Meta-Llama-3.1-8B-Instruct", 0.852, None),
        ("Mistral-7B-Instruct-v0.2", 0.923, 0.95),
    ],
)
def test_the_published_gates_have_the_known_means(model, mean, share_above_half):
    gates = published.read_duo_tsv(DUO / model)
    assert gates["score"].mean() == pytest.approx(mean, abs=0.0005)
    if share_above_half is not None:
        assert len(gates.select("score > 0.5")) / len(gates) == pytest.approx(share_above_half, abs=0.005)
    assert gates.meta["model"] == model
    assert gates.meta["training"]["reg_weight"] == 0.05
    original = (DUO / model / "full_attention_heads.tsv").read_text()
    assert published.to_duo_tsv(gates) == original


@needs_duo
def test_gates_of_two_mistrals_agree():
    found = published.read_duo_tsv(DUO / "Mistral-7B-Instruct-v0.2").compare(
        published.read_duo_tsv(DUO / "Mistral-7B-Instruct-v0.3"), rule="score > 0.5"
    )
    assert found.spearman > 0.5
    assert found.p < 1e-3
