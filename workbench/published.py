"""Files that other groups publish about heads, read into head tables and written back.

Two formats: the per-sample retrieval scores of Wu et al. 2024 (arXiv 2404.15574; one JSON object
`{"layer-head": [score of each accepted sample, ...]}`) and the learned gates of DuoAttention (a tab-separated grid,
layers down and kv heads across, with its training `config.json` beside it). It must never know a model or a store.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.export import files
from workbench.tables import HeadTable

_KEY = re.compile(r"(0|[1-9]\d*)-(0|[1-9]\d*)")
_LARGEST = 4096  # layers or heads: beyond this a key is a mistake, not a model
_DUO_CONFIG = (
    "sink_size",
    "recent_size",
    "reg_weight",
    "num_steps",
    "lr",
    "context_length_max",
    "num_passkeys",
    "seed",
)


def read_wu_per_example(path: str | Path, *, n_layers: int | None = None, n_heads: int | None = None) -> np.ndarray:
    """Per-sample scores `[n_samples, n_layers, n_heads]`.

    Heads that the file does not name, and samples beyond a head's list, are NaN. Without `n_layers` and `n_heads` the
    shape is the largest layer and head named, plus one: right for the reference's files, which name every head.

    Raises:
        InputError: naming the file and the key at fault.
    """
    scores = _wu_lists(path)
    seen = (max(layer for layer, _ in scores) + 1, max(head for _, head in scores) + 1)
    shape = (n_layers or seen[0], n_heads or seen[1])
    if seen[0] > shape[0] or seen[1] > shape[1]:
        raise InputError(
            f"{str(path)!r} names heads up to {seen[0] - 1}-{seen[1] - 1}, which a model of {shape[0]} layers x "
            f"{shape[1]} heads does not have; check n_layers and n_heads."
        )
    n = max(len(values) for values in scores.values())
    out = np.full((n, *shape), np.nan)
    for (layer, head), values in scores.items():
        out[: len(values), layer, head] = values
    return out


def read_wu_json(
    path: str | Path,
    *,
    n_layers: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    model: str | None = None,
    drop_all_zero: bool = False,
    seed: int = 0,
) -> HeadTable:
    """The mean retrieval score of every head, with interval, n and `activation_frequency` (share of samples above 0).

    Args:
        n_layers, n_heads: of the model; inferred as in `read_wu_per_example` when None.
        n_kv_heads: fills the `kv_group` column; unknown (-1) when None.
        model: name for the metadata; the file's name when None.
        drop_all_zero: leave out samples in which every head scored 0. The reference code averages samples whose needle
            it failed to find; they are such samples.
    """
    values = read_wu_per_example(path, n_layers=n_layers, n_heads=n_heads)
    if drop_all_zero:
        values = values[(np.nan_to_num(values) != 0).any(axis=(1, 2))]
        if not len(values):
            raise InputError(f"Every sample in {str(path)!r} scores 0 for every head; pass drop_all_zero=False.")
    counted = (~np.isnan(values)).sum(axis=0)
    active = np.where(np.isnan(values), np.nan, values > 0)
    frequency = np.divide(np.nansum(active, axis=0), counted, out=np.full(counted.shape, np.nan), where=counted > 0)
    return HeadTable.from_examples(
        values,
        n_kv_heads=n_kv_heads,
        seed=seed,
        status=np.where(counted > 0, "ok", "no_examples"),
        extra={"activation_frequency": frequency},
        analysis="retrieval",
        metric="retrieval_score",
        model=Path(path).stem if model is None else model,
        meta={"source": "Wu et al. 2024, head_score file"},
    )


def to_wu_json(per_example: Any, path: str | Path | None = None) -> str:
    """Per-sample scores `[n_samples, n_layers, n_heads]` in the reference's format, as text; NaN entries are left out.

    Also written to `path` when one is given.
    """
    values = np.asarray(per_example, dtype=np.float64)
    if values.ndim != 3:
        raise InputError(f"Per-example scores have shape {values.shape}; give [n_examples, n_layers, n_heads].")
    if np.isinf(values).any():
        raise InputError("Per-example scores hold an infinity, which JSON cannot hold; mark undefined scores as NaN.")
    lists = {
        f"{layer}-{head}": values[~np.isnan(values[:, layer, head]), layer, head].tolist()
        for layer in range(values.shape[1])
        for head in range(values.shape[2])
    }
    text = json.dumps(lists)
    if path is not None:
        files.write(path, text.encode("utf-8"))
    return text


def read_duo_tsv(path: str | Path, *, model: str | None = None) -> HeadTable:
    """Learned gates alpha, one row per kv group; `path` is `full_attention_heads.tsv` or the folder that holds it.

    Values are as published: training clamps alpha to [0, 1] in the forward pass, but the files hold raw parameters that
    may end a little below 0. `config.json` beside the file, if there, gives the model's name and the training setup.

    Raises:
        InputError: naming the file and the line and column at fault.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "full_attention_heads.tsv"
    grid = _duo_grid(path)
    config = _duo_config(path.with_name("config.json"))
    named = str(config.get("model_name") or path.parent.name)
    return HeadTable.from_scores(
        grid,
        rows="kv_group",
        n_kv_heads=grid.shape[1],
        analysis="duo_attention",
        metric="alpha",
        unit="gate",
        model=named.rsplit("/", 1)[-1] if model is None else model,
        meta={"source": "DuoAttention, full_attention_heads.tsv"}
        | {"training": {key: config[key] for key in _DUO_CONFIG if key in config}},
    )


def to_duo_tsv(gates: HeadTable | Any, path: str | Path | None = None) -> str:
    """Gates `[n_layers, n_kv_heads]`, or a table of kv groups, in DuoAttention's format; also written to `path`."""
    if isinstance(gates, HeadTable):
        if gates.row_kind != "kv_group":
            raise InputError("DuoAttention files hold one gate per kv group; use table.by_kv_group() first.")
        gates = gates.matrix()
    grid = np.asarray(gates, dtype=np.float64)
    if grid.ndim != 2 or not grid.size:
        raise InputError(f"Gates have shape {grid.shape}; give [n_layers, n_kv_heads].")
    if not np.isfinite(grid).all():
        layer, group = np.argwhere(~np.isfinite(grid))[0]
        raise InputError(f"The gate of layer {layer}, kv group {group} is {grid[layer, group]}; every gate is needed.")
    text = "".join("\t".join(f"{value:.18e}" for value in row) + "\n" for row in grid)
    if path is not None:
        files.write(path, text.encode("utf-8"))
    return text


def _wu_lists(path: str | Path) -> dict[tuple[int, int], list[float]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"{str(path)!r} names key {key!r} twice; each head has one list.")
            found[key] = value
        return found

    try:
        whole = json.loads(files.read(path), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{str(path)!r} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is no UTF-8 text (byte {error.start}); give the JSON file itself.") from error
    if not isinstance(whole, dict) or not whole:
        raise InputError(f"{str(path)!r} holds no scores; a head-score file is an object of 'layer-head' lists.")
    return {_wu_key(path, key): _wu_scores(path, key, values) for key, values in whole.items()}


def _wu_key(path: str | Path, key: str) -> tuple[int, int]:
    match = _KEY.fullmatch(key)
    if not match or int(match[1]) >= _LARGEST or int(match[2]) >= _LARGEST:
        raise InputError(f"{str(path)!r} has the key {key!r}, which is no 'layer-head' such as '16-19'.")
    return int(match[1]), int(match[2])


def _wu_scores(path: str | Path, key: str, values: Any) -> list[float]:
    if not isinstance(values, list):
        raise InputError(f"{str(path)!r} holds {values!r:.40} under key {key!r}; a list of scores belongs there.")
    for at, value in enumerate(values):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not np.isfinite(value):
            raise InputError(f"{str(path)!r} holds {value!r:.40} as entry {at} of key {key!r}; scores are numbers.")
    return [float(value) for value in values]


def _duo_grid(path: Path) -> np.ndarray:
    try:
        lines = files.read(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is no UTF-8 text (byte {error.start}); give the .tsv file itself.") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = [_duo_cell(path, cell, number, column) for column, cell in enumerate(line.split("\t"), start=1)]
        if rows and len(row) != len(rows[0]):
            raise InputError(f"{str(path)!r} has {len(row)} values in line {number}, but {len(rows[0])} above it.")
        rows.append(row)
    if not rows:
        raise InputError(f"{str(path)!r} is empty; a gate file has one line per layer.")
    return np.array(rows)


def _duo_cell(path: Path, cell: str, line: int, column: int) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{str(path)!r} holds {cell!r:.40} in line {line}, column {column}; gates are numbers.")
    return value


def _duo_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(files.read(path))
    except ValueError as error:
        raise InputError(f"{str(path)!r} is no JSON ({error}); mend it or move it away.") from error
    return config if isinstance(config, dict) else {}
