"""What a loaded model can be asked to do without giving a wrong number.

The record that `probe` fills, that analyses declare their needs against and that every result carries. It is plain
data: it knows nothing of torch, of hooks or of which analysis needs what.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

FLAGS = (
    "head_axis_ok",
    "head_ablation_ok",
    "pattern_edit_is_causal",
    "pattern_rows_sum_to_one",
    "heads_sum_to_attn_out",
    "fork_exact",
)

MEANING = {
    "head_axis_ok": "hook_z is [batch, pos, n_heads, d] and its last two axes are the input of the output projection",
    "head_ablation_ok": "zeroing one head in hook_z equals zeroing its columns at the input of the output projection",
    "pattern_edit_is_causal": "a changed hook_pattern changes the output exactly as attention defines it",
    "pattern_rows_sum_to_one": "every row of hook_pattern sums to one",
    "heads_sum_to_attn_out": "the sum over heads of z W_O (+ b_O) is hook_attn_out",
    "fork_exact": "adding W_O (z' - z) to the residual stream where attention is added equals editing the head",
}


@dataclass(frozen=True)
class Capabilities:
    """Flags measured at load; a False flag has a sentence in `notes` that says why.

    Attributes:
        head_axis_ok: `hook_z` is `[batch, pos, n_heads, d]` with `n_heads * d` the width of the output projection.
        head_ablation_ok: zeroing head h in `hook_z` equals zeroing its columns with a raw PyTorch hook.
        pattern_edit_is_causal: an edited `hook_pattern` reaches the output (some architectures discard it).
        pattern_rows_sum_to_one: False with attention sinks, whose mass is outside the pattern.
        heads_sum_to_attn_out: False where a norm follows attention (`hook_attn_out` is after it).
        fork_exact: block output of a forward in which head h of layer l is edited by dz equals the block computed from
            `resid_mid + W_O dz` (sequential blocks) or `resid_post + W_O dz` (parallel blocks). False where a norm or
            a multiplier stands between attention and the residual stream: a fork then needs that architecture's
            formula, and the engine must fall back to hooks.
        attention_kind: "mha", "gqa", "mqa", "mla" or "none", with suffixes "+sinks", "+sliding", "+softcap", "+alibi".
        notes: sentences, one or more for every False flag, each beginning "flag: " ("all: " for all of them).
        fork_point: where W_O dz goes when `fork_exact`: "resid_mid" (before the MLP reads the stream: sequential
            blocks), "resid_post" (after the block: parallel blocks), "" when not `fork_exact`.
    """

    head_axis_ok: bool
    head_ablation_ok: bool
    pattern_edit_is_causal: bool
    pattern_rows_sum_to_one: bool
    heads_sum_to_attn_out: bool
    fork_exact: bool
    attention_kind: str
    notes: tuple[str, ...] = ()
    fork_point: str = ""

    @classmethod
    def none(cls, attention_kind: str, *notes: str) -> Capabilities:
        """Nothing may be assumed; `notes` say why."""
        return cls(False, False, False, False, False, False, attention_kind, tuple(notes))

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the flags that are False."""
        return tuple(name for name in FLAGS if not getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        record: dict[str, Any] = {name: getattr(self, name) for name in FLAGS}
        return {
            **record,
            "attention_kind": self.attention_kind,
            "fork_point": self.fork_point,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Capabilities:
        """Read what `to_dict` wrote; ValueError for anything else."""
        wanted = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or set(record) != wanted:
            raise ValueError(f"not a capability record: expected the keys {sorted(wanted)}")
        flags = {name: record[name] for name in FLAGS}
        if not all(isinstance(value, bool) for value in flags.values()):
            raise ValueError("not a capability record: flags must be true or false")
        notes = tuple(str(note) for note in record["notes"])
        kind, point = str(record["attention_kind"]), str(record["fork_point"])
        return cls(**flags, attention_kind=kind, notes=notes, fork_point=point)
