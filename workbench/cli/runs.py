"""`workbench run` and `workbench rerun`: compute what a spec says, and check that a stored result comes out again."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import launch
from workbench.cli.options import AllowOption, DebugOption, JsonOption, RefArgument, StoreOption
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
    sweeps: launch.SweepOption = None,
    launcher: launch.LauncherOption = None,
    workers: launch.WorkersOption = None,
    threads: launch.ThreadsOption = None,
    shards: launch.ShardsOption = None,
    options: launch.EngineOption = None,
    retry: launch.RetryOption = False,
    allow: AllowOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> int:
    """Run experiments; one that is already stored is found, not computed again. With --sweep, --launcher, --workers or
    --shards (or `sweep:`, `launch:` in the spec) they run in worker processes; exit 1 when one fails."""
    from workbench.experiments import execute
    from workbench.launch import read
    from workbench.store import Store

    given = launch.given(launcher=launcher, workers=workers, threads=threads, shards=shards, options=options)
    # All are validated before the first is run: an error in the last must not cost the hours of the first.
    asked = read(specs, overrides=assignments or (), sweeps=sweeps or (), launch=given, allow=allow or ())
    place = Store(store)
    if asked.launch is not None:
        return launch.run(asked, place, retry=retry, force=force, device=device, as_json=as_json)
    launch.no_retry(retry)
    done: list[dict[str, Any]] = []
    for spec in asked.specs:
        with _stdout_to_stderr():
            outcome = execute(spec, store=place, force=force, device=device, say=note)
        entry = launch.entry(outcome.artifact, cached=outcome.cached, seconds=outcome.seconds)
        done.append(entry)
        if not as_json:
            launch.show(entry, spec.name)
    if as_json:
        emit_json(done)
    return 0


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
    allow: AllowOption = None,
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
            ref,
            store=store,
            model=model,
            device=device,
            tolerance=Tolerance(rtol=rtol, atol=atol),
            save=save,
            allow=allow or (),
            say=note,
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


def _stdout_to_stderr() -> contextlib.redirect_stdout[Any]:
    """Libraries print while they load; stdout is for the answer alone."""
    return contextlib.redirect_stdout(sys.stderr)
