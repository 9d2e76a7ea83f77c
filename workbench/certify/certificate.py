"""Every analysis against every organism whose answer is known, and the certificate that says how it went.

Shipped organisms first, then, on request, freshly made planted ones (new seeds), so that nobody can tune an analysis to
the ones that are shipped. A certificate is an ordinary artifact: one table, one row per meeting of analysis and truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from workbench import analyses, organisms
from workbench.certify import truths
from workbench.certify.examine import Verdict, examine
from workbench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.base import Analysis, Finding
    from workbench.store import Artifact, Store

KIND = "certificate/1"
_FRESH_SEEDS = 1000  # the shipped planted organisms are seed 0; fresh ones count from here
Meeting = tuple["truths.Truth", "Analysis", "Finding"]


@dataclass(frozen=True)
class Certificate:
    """All verdicts of one run of `certify`.

    Attributes:
        verdicts: one per meeting of analysis and truth.
        seed, fresh: as given.
        seconds: wall time.
    """

    verdicts: tuple[Verdict, ...]
    seed: int
    fresh: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Something was examined and nothing missed."""
        return self.count("pass") > 0 and self.count("miss") == 0

    def count(self, verdict: str) -> int:
        return sum(v.verdict == verdict for v in self.verdicts)

    def to_frame(self) -> pd.DataFrame:
        """One row per verdict."""
        import pandas as pd

        return pd.DataFrame([v.row() for v in self.verdicts])

    def summary(self) -> dict[str, Any]:
        misses = [
            f"{v.analysis} on {v.organism} ({v.instance}): {v.claim}" for v in self.verdicts if v.verdict == "miss"
        ]
        counts = {name: self.count(name.replace("_", " ")) for name in ("pass", "miss", "not_applicable")}
        return {"passed": self.passed, **counts, "misses": misses}


def certify(
    *,
    only: Sequence[str] = (),
    on: Sequence[str] = (),
    fresh: int = 0,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Certificate:
    """Hold the analyses to the organisms.

    Args:
        only: names of analyses; default all that claim to find something.
        on: names of organisms; default all with a known answer.
        fresh: planted instances to make and examine beside every shipped planted organism.
        seed: of data and analyses; fresh instances are made from `1000 * (seed + 1)` on.
        say: told about every verdict as it comes.

    Raises:
        InputError: an unknown name, or nothing to examine among those named.
    """
    started = time.perf_counter()
    chosen = _analyses(only)
    wanted = [_known(name.removeprefix("organism:"), organisms.names(), "organism") for name in on]
    verdicts = []
    for name in wanted or organisms.names():
        for verdict in _on_organism(name, chosen, fresh, seed):
            verdicts.append(verdict)
            say(f"{verdict.organism} ({verdict.instance}): {verdict.analysis} {verdict.claim}: {verdict.verdict}")
    if not verdicts:
        asked = ", ".join([*only, *on]) or "anything"
        raise InputError(
            f"No analysis claims to find what an organism has, asked for {asked}; leave names out for all."
        )
    return Certificate(tuple(verdicts), seed, fresh, time.perf_counter() - started)


def keep(certificate: Certificate, store: Store, *, name: str = "certificate") -> Artifact:
    """Write a certificate into the store as the next version of `name`."""
    from workbench.experiments import identity

    config = {"certify": {"seed": certificate.seed, "fresh": certificate.fresh}}
    producer = identity.producer(device="cpu", model={}, data={}, source=None)
    timing = {"total": certificate.seconds}
    with store.stage(
        name, config=config, producer=producer, kind=KIND, timing=timing, summary=certificate.summary()
    ) as out:
        out.table("verdicts", certificate.to_frame())
        out.json("summary", certificate.summary())
    return out.artifact


def _analyses(only: Sequence[str]) -> list[Analysis]:
    names = [_known(name, analyses.names(), "analysis") for name in only] or analyses.names()
    return [analysis for analysis in map(analyses.get, names) if analysis.finds]


def _known(name: str, names: Sequence[str], what: str) -> str:
    if name not in names:
        raise InputError(f"There is no {what} {name!r}.{did_you_mean(name, names)} Available: {', '.join(names)}.")
    return name


def _on_organism(name: str, chosen: Sequence[Analysis], fresh: int, seed: int) -> Iterator[Verdict]:
    from workbench.organisms import planted

    card = organisms.card(name)
    if not _meetings(card, chosen):
        return
    yield from _on_model(f"organism:{name}", name, "shipped", card, chosen, seed)
    if fresh and name not in planted.names():
        return
    for i in range(fresh):
        made = _FRESH_SEEDS * (seed + 1) + i
        with TemporaryDirectory(prefix="workbench-organism-") as folder:
            where = planted.build(name, Path(folder) / name, seed=made)
            own = organisms.read_card(where)
            yield from _on_model(str(where), name, f"seed {made}", own, chosen, seed)


def _meetings(card: dict[str, Any], chosen: Sequence[Analysis]) -> list[Meeting]:
    return [
        (truth, analysis, finding)
        for truth in truths.read(card)
        for analysis in chosen
        for finding in analysis.finds
        if finding.claim == truth.claim and (not finding.how or truth.how in finding.how)
    ]


def _on_model(
    path: str, organism: str, instance: str, card: dict[str, Any], chosen: Sequence[Analysis], seed: int
) -> Iterator[Verdict]:
    from workbench.models import load_model

    model = load_model(path)
    for truth, analysis, finding in _meetings(card, chosen):
        yield examine(model, organism, instance, truth, analysis, finding, seed=seed)
