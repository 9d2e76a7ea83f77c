"""Does the stored result come out again? Recompute an artifact from itself alone and compare, payload by payload.

    manifest -> spec (data inlined there) -> same model? -> compute -> scratch store -> agreement of the two artifacts

The recomputation goes through the same writer into a temporary store, so that files are compared with files. It is kept
only on request. It knows no formulas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.experiments import identity, record
from workbench.experiments.agreement import Agreement, Level, Tolerance, agree, overall
from workbench.experiments.run import Say, compute, keep, prepare
from workbench.store import Artifact, Store

REQUIRED = {"bitwise": Level.BITWISE, "allclose": Level.ALLCLOSE, "rank": Level.RANK}


@dataclass(frozen=True)
class Rerun:
    """What a recomputation showed.

    Attributes:
        artifact: the stored one.
        model_changed: the model's weights, tokenizer or configuration are not those of then; nothing was computed.
        fingerprints: of the model then and now.
        code_changed: the sources that compute differ from those of then.
        packages_changed: `{package: (then, now)}` where versions differ.
        payloads: the verdict on each payload.
        level: the verdict on the whole.
        saved: the new version, if it was kept.
    """

    artifact: Artifact
    model_changed: bool
    fingerprints: tuple[str, str]
    code_changed: bool
    packages_changed: dict[str, tuple[str | None, str | None]]
    payloads: tuple[Agreement, ...]
    level: Level
    saved: Artifact | None = None

    def confirms(self, required: Level) -> bool:
        return not self.model_changed and self.level >= required

    def to_dict(self) -> dict[str, Any]:
        return {
            "ref": self.artifact.ref,
            "verdict": "model changed" if self.model_changed else self.level.word,
            "model_changed": self.model_changed,
            "fingerprints": list(self.fingerprints),
            "code_changed": self.code_changed,
            "packages_changed": {name: list(pair) for name, pair in self.packages_changed.items()},
            "payloads": [payload.to_dict() for payload in self.payloads],
            "saved": self.saved.ref if self.saved else None,
        }


def required_level(word: str) -> Level:
    """`bitwise`, `allclose` or `rank` as a level."""
    if word not in REQUIRED:
        hint = did_you_mean(word, REQUIRED)
        raise InputError(f"{word!r} is no degree of agreement; choose {', '.join(REQUIRED)}.{hint}")
    return REQUIRED[word]


def rerun(
    ref: str | Artifact,
    *,
    store: Store | str | Path | None = None,
    model: str | None = None,
    device: str | None = None,
    tolerance: Tolerance | None = None,
    save: bool = False,
    allow: Iterable[str | Path] = (),
    say: Say | None = None,
) -> Rerun:
    """Recompute the artifact `ref` and compare.

    Args:
        model: where the model is now, if it moved; its fingerprint must be that of then.
        device: instead of the recorded one.
        tolerance: when numbers are close and ranks stable.
        save: also keep the recomputation, as the next version.
        allow: folders that the recorded paths (model, images) may lead to, beside the artifact's and the current one.
    """
    place = store if isinstance(store, Store) else Store(store)
    artifact = place[ref] if isinstance(ref, str) else ref
    made_by = artifact.manifest.get("producer") or {}
    spec = record.spec_of(artifact, allow=allow, typed=["model.path"] if model else ())
    model_then = artifact.part("producer", "model")
    where = model or _recorded_path(model_then, spec.model.path)
    ready = prepare(spec, device=device, model_path=where)
    then = str(model_then.get("fingerprint", ""))
    reconfigured = model_then.get("configuration", ready.configuration) != ready.configuration
    packages = _changed(artifact.part("producer", "packages"), identity.package_versions())
    facts: dict[str, Any] = {
        "artifact": artifact,
        "fingerprints": (then, ready.fingerprint),
        "code_changed": made_by.get("code") != identity.code_version(),
        "packages_changed": packages,
    }
    if then != ready.fingerprint or reconfigured:
        return Rerun(**facts, model_changed=True, payloads=(), level=Level.DIFFERENT)
    result = compute(ready, say=say)
    with TemporaryDirectory(prefix="workbench-rerun-") as scratch:
        again = keep(result, ready, Store(scratch), force=True)
        payloads = tuple(agree(artifact, again, tolerance))
    saved = keep(result, ready, place, force=True) if save else None
    return Rerun(**facts, model_changed=False, payloads=payloads, level=overall(payloads), saved=saved)


def _recorded_path(model: dict[str, Any], given: str) -> str:
    """Where the model was found then, if it is still there; otherwise as it was named."""
    resolved = str(model.get("path") or given)
    return resolved if resolved.startswith("organism:") or Path(resolved).is_dir() else given


def _changed(then: dict[str, str], now: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    names = sorted({*then, *now})
    return {name: (then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)}
