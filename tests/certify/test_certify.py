"""`workbench certify` passes an analysis that finds the known heads and fails one that does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench import analyses, organisms
from workbench.analyses.base import Result
from workbench.certify import certify, keep, truths
from workbench.cli import main
from workbench.errors import InputError
from workbench.store import Store
from workbench.tables import HeadTable


@pytest.fixture(scope="module")
def certificate() -> Any:
    return certify(only=["retrieval"], on=["retrieval"])


def broken(result: Result) -> Result:
    """The same scores under permuted head indices."""
    scores = result.heads.matrix()
    turned = np.roll(scores[::-1], 1, axis=1)
    return dataclasses.replace(result, heads=HeadTable.from_scores(turned, n_kv_heads=4, meta=result.heads.meta))


def test_retrieval_is_certified_on_its_organism(certificate: Any) -> None:
    (verdict,) = certificate.verdicts
    assert certificate.passed
    assert (verdict.verdict, verdict.auroc, verdict.precision, verdict.recall) == ("pass", 1.0, 1.0, 1.0)


def test_masking_the_found_heads_matters_and_masking_random_ones_does_not(certificate: Any) -> None:
    (verdict,) = certificate.verdicts
    assert verdict.success >= 0.95
    assert verdict.success_masked <= 0.1
    assert verdict.success_random >= 0.9


def test_permuted_head_indices_are_a_miss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    sound = analyses.get("retrieval")
    wrong = dataclasses.replace(sound, run=lambda *arguments: broken(sound.run(*arguments)))
    monkeypatch.setattr(analyses, "get", lambda _: wrong)
    options = ["--analysis", "retrieval", "--organism", "retrieval", "--store", str(tmp_path), "--json"]
    assert main(["certify", *options]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] is False
    assert printed["miss"] == 1
    assert printed["verdicts"][0]["auroc"] < 0.95


def test_an_overlap_must_be_the_one_that_was_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, kept = analyses.get("overlap"), []

    def once(*arguments: Any) -> Result:
        kept[:] = kept or [sound.run(*arguments)]
        return kept[0]

    monkeypatch.setattr(analyses, "get", lambda _: dataclasses.replace(sound, run=once))
    (verdict,) = certify(only=["overlap"]).verdicts
    assert (verdict.organism, verdict.verdict, verdict.auroc) == ("planted-ioi", "pass", 1.0)
    assert verdict.value == verdict.value_true == 3 / 8
    assert verdict.success == 1 and verdict.success_masked <= 0.6 and verdict.success_random >= 0.9
    finding = dataclasses.replace(sound.finds[0], value=lambda _: 3 / 7)
    monkeypatch.setattr(analyses, "get", lambda _: dataclasses.replace(sound, run=once, finds=(finding,)))
    (verdict,) = certify(only=["overlap"]).verdicts
    assert (verdict.verdict, verdict.auroc) == ("miss", 1.0)


def test_a_certificate_is_kept_as_an_artifact(certificate: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = keep(certificate, store)
    assert artifact.ref == "certificate@v1"
    assert artifact.table("verdicts").num_rows == 1
    assert artifact.json("summary")["passed"] is True
    assert store.fsck() == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"only": ["retreival"]}, "retrieval"),
        ({"on": ["retreival"]}, "retrieval"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=f"Did you mean '{sentence}'"):
        certify(**options)


def test_a_card_that_names_a_head_the_model_lacks_is_refused() -> None:
    card = {**organisms.card("retrieval")}
    card["truths"] = [{**card["truths"][0], "heads": [[9, 0]]}]
    with pytest.raises(InputError, match=r"head \(9, 0\)"):
        truths.read(card)


@pytest.mark.parametrize("name", organisms.names())
def test_every_card_states_its_truths_well(name: str) -> None:
    for truth in truths.read(organisms.card(name)):
        assert truth.heads
        assert not truth.heads & truth.optional
        assert truth.how
