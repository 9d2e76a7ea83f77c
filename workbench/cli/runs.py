"""`workbench run` and `workbench rerun`: compute what a spec says, and check that a stored result comes out again."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, RefArgument, StoreOption
from workbench.cli.output import emit, emit_facts, emit_json, emit_table, note


def register(app: typer.Typer) -> None:
    app.command("run", short_help="Run experiments, or find them done.")(run)
    app.command("rerun", short_help="Recompute a result and compare.")(rerun)


def run(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Spec files (YAML).", show_default=False)],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change a key, e.g. params.max_new_tokens=8.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute even if this very run is stored.")] = False,
    device: Annotated[str | None, typer.Option(help="Instead of the spec's model.device.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Run experiments; one that is already stored is found, not computed again."""
    from workbench.experiments import execute, load_specs
    from workbench.store import Store

    # All are validated before the first is run: an error in the last must not cost the hours of the first.
    loaded = [spec for path in specs for spec in load_specs(path, overrides=assignments or ())]
    place = Store(store)
    done: list[dict[str, Any]] = []
    for spec in loaded:
        with _stdout_to_stderr():
            outcome = execute(spec, store=place, force=force, device=device, say=note)
        entry = _entry(outcome)
        done.append(entry)
        if as_json:
            continue
        how = "cached" if outcome.cached else f"{outcome.seconds:.1f} s"
        emit(f"{entry['ref']}  {entry['digest'][:19]}  {how}")
        if outcome.artifact.name != spec.name:
            emit(f"  this very run is stored under that name; --force makes {spec.name} as well")
        emit_facts(_figures(entry["summary"]), indent="  ")
    if as_json:
        emit_json(done)


def rerun(
    ref: RefArgument,
    require: Annotated[
        str, typer.Option(help="Least agreement for exit code 0: bitwise, allclose or rank.")
    ] = "allclose",
    rtol: Annotated[float, typer.Option(help="Relative tolerance of allclose.")] = 1e-4,
    atol: Annotated[float, typer.Option(help="Absolute tolerance of allclose.")] = 1e-6,
    model: Annotated[str | None, typer.Option(help="Where the model is now, if it moved.")] = None,
    device: Annotated[str | None, typer.Option(help="Instead of the recorded device.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the recomputation as the next version.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> int:
    """Recompute REF from itself alone and compare; exit 1 unless it agrees as far as required."""
    from workbench.experiments.agreement import Tolerance
    from workbench.experiments.rerun import required_level
    from workbench.experiments.rerun import rerun as recompute

    required = required_level(require)
    with _stdout_to_stderr():
        found = recompute(
            ref, store=store, model=model, device=device, tolerance=Tolerance(rtol=rtol, atol=atol), save=save, say=note
        )
    confirmed = found.confirms(required)
    if as_json:
        emit_json({**found.to_dict(), "required": require, "confirmed": confirmed})
    else:
        _show_rerun(found.to_dict(), require, confirmed)
    return 0 if confirmed else 1


def _show_rerun(found: dict[str, Any], require: str, confirmed: bool) -> None:
    if found["model_changed"]:
        then, now = found["fingerprints"]
        what = "weights or tokenizer" if then != now else "configuration (config.json, generation_config.json)"
        emit(f"{found['ref']}: the model changed in its {what}, so nothing was compared")
        emit_facts({"fingerprint then": then, "fingerprint now": now}, indent="  ")
        return
    rows = [(p["payload"], p["level"], p["max_abs"], p["note"]) for p in found["payloads"]]
    emit_table(("payload", "verdict", "max abs diff", "note"), rows)
    if found["code_changed"]:
        emit("the code that computes has changed since then")
    for package, (then, now) in found["packages_changed"].items():
        emit(f"{package} was {then or 'absent'}, is {now or 'absent'}")
    if found["saved"]:
        emit(f"saved as {found['saved']}")
    emit(f"{found['ref']}: {found['verdict']} ({'meets' if confirmed else 'misses'} the required {require})")


def _entry(outcome: Any) -> dict[str, Any]:
    artifact = outcome.artifact
    return {
        "ref": artifact.ref,
        "name": artifact.name,
        "version": artifact.version,
        "digest": artifact.digest,
        "path": str(artifact.folder),
        "cached": outcome.cached,
        "seconds": round(outcome.seconds, 3),
        "summary": artifact.summary,
    }


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    """The figures of a summary that fit a line."""
    return {key: value for key, value in summary.items() if isinstance(value, (int, float, str, bool))}


def _stdout_to_stderr() -> contextlib.redirect_stdout[Any]:
    """Libraries print while they load; stdout is for the answer alone."""
    return contextlib.redirect_stdout(sys.stderr)
