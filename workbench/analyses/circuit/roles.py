"""Names for what the heads of a circuit do, from evidence that is kept beside the name.

    mover             speaks to the logits for the answer, and copies: attends at the end to an answer that stands in
                      the prompt, and raises the token it attends to
    negative mover    speaks to the logits against the answer, attends the same way, and lowers what it attends to
    inhibition        tells movers (through q) where to look, having attended at the end to the wrong answer
    content gatherer  tells movers (through q) where to look, having attended at the end to something else
    previous token    attends one position back
    duplicate token   at a repeated token, attends to where it stood before
    induction         at a repeated token, attends to what followed it then
    other             none of these

Thresholds are on attention (`ATTENDS`, a share) and the sign of copying. Where no answer stands in any prompt
(pronouns), there is nothing to copy, and speaking to the logits alone makes a mover; the basis says so. Edges count
from `SPEAKS` on, a share of the gap; a circuit without edges has no movers. Arithmetic; runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workbench.analyses.circuit.evidence import ANYWHERE, END, REPEATED, Evidence
from workbench.analyses.circuit.graph import LOGITS, CircuitGraph

ATTENDS = 0.3  # share of attention from which a head is said to attend to a class
SPEAKS = 0.05  # share of the gap from which a head is said to speak to the logits, or to the movers together
ROLES = (
    "mover",
    "negative mover",
    "inhibition",
    "content gatherer",
    "previous token",
    "duplicate token",
    "induction",
    "other",
)
_WHERE = {
    "previous token": f"{ANYWHERE}>previous",
    "duplicate token": f"{REPEATED}>earlier",
    "induction": f"{REPEATED}>after",
}


@dataclass(frozen=True)
class Role:
    """A role and the numbers it rests on, in words."""

    name: str
    basis: str


def name_roles(graph: CircuitGraph, evidence: Evidence) -> dict[str, Role]:
    """The role of every head of the circuit, by node name."""
    found: dict[str, Role] = {}
    heads = {f"{layer}.{head}": evidence.of((layer, head)) for layer, head in graph.heads()}
    for name, seen in heads.items():
        direct = next((edge.effect for edge in graph.out_of(name) if edge.receiver == LOGITS), 0.0)
        if abs(direct) >= SPEAKS and (role := _mover(direct, seen)):
            found[name] = role
    movers = set(found)
    for name, seen in heads.items():
        if name not in found:
            found[name] = _steers(graph, name, movers, seen) or _looks(seen)
    return found


def _mover(direct: float, seen: Mapping[str, float]) -> Role | None:
    """A role for what speaks to the logits, where attention and copying agree with it."""
    at_answers = [seen.get(f"{END}>{key}", np.nan) for key in ("answer", "wrong")]
    name, spoken = ("mover" if direct > 0 else "negative mover"), f"effect on the logits {direct:.2f}"
    if np.isnan(at_answers).all():
        return Role(name, f"{spoken}; no answer stands in the prompts, so copying is unknown")
    attends, copies = float(np.nansum(at_answers)), seen["copy_logit"]
    if attends < ATTENDS or np.isnan(copies) or (copies > 0) != (direct > 0):
        return None
    return Role(name, f"{spoken}, attention to answers at the end {attends:.2f}, copy logit {copies:.2f}")


def _steers(graph: CircuitGraph, name: str, movers: set[str], seen: Mapping[str, float]) -> Role | None:
    """Inhibition and content gathering: into q of a mover, from the end."""
    told = [
        edge.effect
        for edge in graph.out_of(name)
        if edge.input == "q" and any(reader in movers for reader in graph.readers(edge.receiver))
    ]
    if sum(map(abs, told)) < SPEAKS:
        return None
    wrong, answer = (np.nan_to_num(seen.get(f"{END}>{key}", 0.0)) for key in ("wrong", "answer"))
    others = {
        key: value
        for key, value in seen.items()
        if key.startswith(f"{END}>") and key not in (f"{END}>wrong", f"{END}>answer") and not np.isnan(value)
    }
    strongest = max(told, key=abs)
    spoken = f"effect on q of movers {strongest:.2f}"
    if wrong >= ATTENDS and wrong > answer:
        return Role("inhibition", f"{spoken}, attention to the wrong answer at the end {wrong:.2f}")
    key = max(others, key=lambda key: others[key], default=None)
    if key is not None and others[key] >= ATTENDS and answer < ATTENDS:
        return Role("content gatherer", f"{spoken}, attention to {key.split('>')[1]} at the end {others[key]:.2f}")
    return None


def _looks(seen: Mapping[str, float]) -> Role:
    """The role of the class a head attends to most."""
    sizes = {role: float(seen[where]) for role, where in _WHERE.items() if not np.isnan(seen.get(where, np.nan))}
    if not sizes:
        return Role("other", "attention to none of the classes is defined in these prompts")
    best = max(sizes, key=lambda role: sizes[role])
    basis = ", ".join(f"{_WHERE[role].replace('>', ' to ')} {size:.2f}" for role, size in sizes.items())
    return Role(best if sizes[best] >= ATTENDS else "other", f"attention from {basis}")
