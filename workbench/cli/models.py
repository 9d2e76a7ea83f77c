"""`workbench models` and `workbench probe`: what there is to study, and what may be asked of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import bold, emit, emit_facts, emit_json, emit_table, heading


def register(app: typer.Typer) -> None:
    app.command("models", short_help="The built-in organisms and what each contains.")(models)
    app.command("probe", short_help="What may be asked of a model.")(probe)


def models(as_json: JsonOption = False, _store: StoreOption = None, _debug: DebugOption = False) -> None:
    """List the built-in organisms and what is known of each; `--json` gives their whole cards."""
    from workbench import organisms

    cards = {f"organism:{name}": organisms.card(name) for name in organisms.names()}
    if as_json:
        emit_json([{**card, "name": name} for name, card in cards.items()])
        return
    if not cards:
        emit("No organisms are installed.")
    for name, card in cards.items():
        emit(bold(name))
        facts = {
            "does": card["summary"],
            "kind": card["kind"],
            "size": "{architecture}, {n_layers} layers x {n_heads} heads, {n_ctx} positions".format(**card["model"]),
            "truth": card["ground_truth"],
            **{f"{claim} heads": heads for claim, heads in _heads(card).items()},
            "card": str(organisms.path(name) / "README.md"),
        }
        emit_facts(facts, indent="  ")


def _heads(card: dict[str, Any]) -> dict[str, str]:
    """The known heads by what they do; several tasks of one claim are told apart."""
    truths = card.get("truths", [])
    several = {truth["claim"] for truth in truths if sum(other["claim"] == truth["claim"] for other in truths) > 1}
    found = {}
    for truth in truths:
        task = truth["data"].get("task", "") if truth["claim"] in several else ""
        found[f"{task} {truth['claim']}".strip()] = ", ".join(f"({a}, {b})" for a, b in truth["heads"])
    return found


def probe(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="organism:NAME, a directory, or a hub name.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="Over several GPUs: balanced, auto or sequential.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    quantize: Annotated[str | None, typer.Option(help="8bit or 4bit.")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Load nothing; say how much memory it would take.")] = False,
    tokens: Annotated[int, typer.Option(help="With --memory: length of the prompts.")] = 1024,
    batch: Annotated[int, typer.Option(help="With --memory: prompts run together.")] = 1,
    as_json: JsonOption = False,
    _store: StoreOption = None,
    _debug: DebugOption = False,
) -> None:
    """Load MODEL and show what was measured: which interventions on it mean what they say."""
    if memory:
        _memory(model, dtype, quantize, batch, tokens, revision, as_json=as_json)
        return
    from workbench.models import load_model
    from workbench.models.capabilities import FLAGS, MEANING

    loaded = load_model(model, device=device, device_map=device_map, dtype=dtype, revision=revision, quantize=quantize)
    facts = loaded.describe()
    if as_json:
        emit_json(facts)
        return
    capabilities = loaded.capabilities
    emit_facts({key: value for key, value in facts.items() if key not in ("capabilities", "name")} | {"model": model})
    heading(f"attention: {capabilities.attention_kind}")
    rows = [(flag, getattr(capabilities, flag), MEANING[flag]) for flag in FLAGS]
    emit_table(("capability", "holds", "meaning"), rows)
    if capabilities.notes:
        heading("notes")
        for note in capabilities.notes:
            emit(f"- {note}")


def _memory(
    model: str, dtype: str, quantize: str | None, batch: int, tokens: int, revision: str | None, *, as_json: bool
) -> None:
    from workbench.models import estimate_memory

    chosen = "float32" if dtype == "auto" else dtype
    found = estimate_memory(model, dtype=chosen, quantize=quantize, batch=batch, tokens=tokens, revision=revision)
    if as_json:
        emit_json({"model": model, **found.describe()})
        return
    emit_facts(
        {"model": model, "weights": f"{found.n_parameters:,}", "dtype": found.dtype, "quantize": quantize or "no"}
    )
    heading(f"memory for {batch} prompts of {tokens} tokens")
    kinds = {
        "weights": "as loaded",
        "cache": "keys and values",
        "pattern": "one layer's attention, whole (retrieval scoring cuts it into pieces)",
        "logits": "float32, at every position",
        "total": "",
    }
    emit_table(
        ("what", "MiB", "meaning"),
        [(kind, f"{getattr(found, kind) / 2**20:,.1f}", text) for kind, text in kinds.items()],
    )
