"""What an experiment is: a small frozen model, read from YAML, a dict or keywords, validated once at the edge.

The same `Spec` is the file in `experiments/`, the keyword interface of a notebook, the target of `--set` on the command
line and the `config` of an artifact's manifest. Everything wrong with one is reported as a single sentence naming the
source, the dotted key, the value and the nearest right spelling. It never knows how an analysis computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from workbench import analyses, tasks
from workbench.errors import InputError, did_you_mean
from workbench.experiments.paths import Reach
from workbench.experiments.yaml_input import parse_assignment, read_documents
from workbench.models.placement import checked_map
from workbench.store import refs

DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_SAFE_NAME = re.compile(r"[^A-Za-z0-9._-]+")

# Explicit data wherever a task is; `file` stands for a file holding one of the others.
DATA_SOURCES: tuple[tuple[str, ...], ...] = (
    ("task",),
    ("file",),
    ("samples",),
    ("prompts",),
    ("pairs",),
    ("positives", "negatives"),
    ("tasks",),
)
_EXPLICIT_KEYS = tuple(key for group in DATA_SOURCES[1:-1] for key in group)

Override = str | tuple[str, Any]  # `"key=value"`, or the two


class _Refused(InputError):
    """A value refused by one of our own validators.

    `key` is below the field being validated; `named` says that the sentence names the key already.
    """

    def __init__(self, sentence: str, *, key: str = "", named: bool = False) -> None:
        super().__init__(sentence)
        self.key = key
        self.named = named


class ModelSpec(BaseModel):
    """Which model, and how it is loaded. `path` is an `organism:NAME`, a directory or a hub name."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    path: Annotated[str, Field(min_length=1)]
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    device_map: str | dict[str, int | str] | None = None
    revision: str | None = None
    attn: str | None = None
    quantize: Literal["8bit", "4bit"] | None = None

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise _Refused(f"{value!r} is not a device; give auto, cpu, cuda, cuda:N or mps")
        return value

    @field_validator("device_map")
    @classmethod
    def _over_gpus(cls, value: Any, info: Any) -> Any:
        if value is not None:
            try:
                checked_map(value, info.data.get("device", "auto"))
            except InputError as error:
                raise _Refused(str(error)) from error
        return value


class Spec(BaseModel):
    """One experiment: an analysis of a model on data, with every parameter explicit.

    `params` always holds the analysis' full parameter set, defaults filled in, so that a stored spec keeps meaning the
    same when a default changes. Build one from untrusted input with `build` or `load_specs`, which raise `InputError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    analysis: str
    model: ModelSpec
    data: dict[str, Any]
    params: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0

    _reach: Reach = PrivateAttr(default=Reach())

    @field_validator("name")
    @classmethod
    def _storable(cls, value: str) -> str:
        try:
            return refs.check_name(value)
        except InputError as error:
            raise _Refused(str(error)) from error

    @field_validator("analysis")
    @classmethod
    def _registered(cls, value: str) -> str:
        if value not in analyses.names():
            raise _Refused(
                f"there is no analysis {value!r} (available: {', '.join(analyses.names())})."
                + did_you_mean(value, analyses.names())
            )
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("data")
    @classmethod
    def _one_source(cls, value: dict[str, Any]) -> dict[str, Any]:
        _check_data(value)
        return value

    @field_validator("params")
    @classmethod
    def _complete(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        if "analysis" not in info.data:  # refused already; one error is enough
            return value
        params_type = analyses.get(info.data["analysis"]).params_type
        try:
            return params_type.model_validate(value).model_dump(mode="json")
        except ValidationError as error:
            sentence, key = _first_problem(error, params_type, at="params.")
            raise _Refused(sentence, key=key, named=True) from error

    @property
    def reach(self) -> Reach:
        """Where its paths are looked for and may lead."""
        return self._reach

    @property
    def source(self) -> Path | None:
        """The file it was read from, if any."""
        return self._reach.source

    def config(self) -> dict[str, Any]:
        """The JSON-able form that a manifest records: exactly the keys of a spec file."""
        return self.model_dump(mode="json")


def build(
    values: Mapping[str, Any],
    *,
    source: Path | None = None,
    overrides: Iterable[Override] = (),
    reach: Reach | None = None,
) -> Spec:
    """Validate `values` (the keys of a spec file) with `overrides` applied: `"params.max_new_tokens=8"`, as `--set` has
    it, or `("params.max_new_tokens", 8)`.

    Args:
        reach: where its paths may lead; default: where those of the spec file `source` may.

    Raises:
        InputError: one sentence naming where the value came from, its dotted key, the value and the remedy.
    """
    reach = Reach.of(source) if reach is None else reach
    origin = str(source or reach.source or "spec")
    tree = _plain(values)
    assigned: dict[str, str] = {}
    for override in overrides:
        key, value = parse_assignment(override) if isinstance(override, str) else override
        assigned[key] = override if isinstance(override, str) else f"{key}={_shown(value)}"
        _assign(tree, key, value, assigned[key])
    if not tree.get("name") and isinstance(tree.get("analysis"), str):
        tree["name"] = _default_name(tree, source)
    reach = reach.typing(assigned)
    if tree.get("analysis") in analyses.names() and isinstance(tree.get("params"), Mapping):
        reach.guard_params(analyses.get(tree["analysis"]).params_type, tree["params"])  # validating reads the files
    try:
        spec = Spec.model_validate(tree)
    except ValidationError as error:
        sentence, key = _first_problem(error, Spec)
        culprit = next((a for path, a in assigned.items() if key == path or key.startswith(path + ".")), None)
        where = f"--set {culprit}" if culprit else origin
        raise InputError(f"{where}: {sentence}") from error
    spec._reach = reach
    return spec


def load_specs(path: str | Path, *, overrides: Iterable[Override] = (), allow: Iterable[str | Path] = ()) -> list[Spec]:
    """Every experiment in the YAML file (one, or several separated by `---`), in order.

    Args:
        allow: folders that its paths may lead to, beside its own and the current one.
    """
    source = Path(path)
    documents = read_documents(source)
    reach = Reach.of(source, allow=allow)
    overrides = tuple(overrides)
    specs = []
    for index, document in enumerate(documents, start=1):
        if not isinstance(document, Mapping):
            raise InputError(
                f"{source}: a spec is a mapping with keys {', '.join(Spec.model_fields)}, not {_shown(document)}."
            )
        if beside := next((key for key in ("sweep", "launch") if key in document), None):
            raise InputError(f"{source}: {beside} is for the command line; run it with `workbench run {source}`.")
        spec = build(document, source=source, overrides=overrides, reach=reach)
        if len(documents) > 1 and not document.get("name"):
            numbered = {**document, "name": f"{spec.name}-{index}"}
            spec = build(numbered, source=source, overrides=overrides, reach=reach)
        specs.append(spec)
    return specs


def load_spec(path: str | Path, *, overrides: Iterable[Override] = (), allow: Iterable[str | Path] = ()) -> Spec:
    """The one experiment in the YAML file."""
    specs = load_specs(path, overrides=overrides, allow=allow)
    if len(specs) != 1:
        raise InputError(f"{path}: holds {len(specs)} specs where one is wanted; run it with `workbench run {path}`.")
    return specs[0]


def _default_name(tree: Mapping[str, Any], source: Path | None) -> str:
    if source is not None:
        stem = source.stem
    else:
        model = tree.get("model")
        path = model.get("path") if isinstance(model, Mapping) else model
        stem = re.split(r"[:/\\]", str(path).rstrip("/\\"))[-1]
    return f"{tree['analysis']}/{_SAFE_NAME.sub('-', stem).strip('-.') or 'run'}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that `--set` may write into, models inside dumped."""

    def copy(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json")
        if isinstance(value, Mapping):
            return {str(key): copy(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copy(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {str(key): copy(value) for key, value in values.items()}


def _assign(tree: dict[str, Any], key: str, value: Any, assignment: str) -> None:
    """Write `value` at the dotted `key`; below `model`, `data` and `params` missing levels are made on the way."""
    *way, last = key.split(".")
    if way[:1] == ["model"] and isinstance(tree.get("model"), str):
        tree["model"] = {"path": tree["model"]}
    node: Any = tree
    for depth, step in enumerate(way):
        if isinstance(node, dict):
            if node.get(step) is None:
                if way[0] not in ("model", "data", "params"):
                    raise InputError(
                        f"--set {assignment}: unknown key {way[0]!r}.{did_you_mean(way[0], Spec.model_fields)}"
                    )
                node[step] = {}
            node = node[step]
        else:
            node = _list_item(node, step, ".".join(way[:depth]), assignment)
    if isinstance(node, dict):
        node[last] = value
    else:
        _list_item(node, last, ".".join(way), assignment)
        node[int(last)] = value


def _list_item(node: Any, step: str, at: str, assignment: str) -> Any:
    if isinstance(node, list) and step.isdigit() and int(step) < len(node):
        return node[int(step)]
    held = f"a list of {len(node)}" if isinstance(node, list) else _shown(node)
    raise InputError(f"--set {assignment}: {at} is {held}, so it has no {step!r}.")


def _check_data(data: Mapping[str, Any]) -> None:
    keys = set(data) - ({"negatives"} if "task" in data else set())  # of a task they are an option: `task: objects`
    present = [group for group in DATA_SOURCES if keys.intersection(group)]
    options = "task, file, " + ", ".join("/".join(group) for group in DATA_SOURCES[2:])
    if not present:
        wrong = next((key for key in data if did_you_mean(key, ("task", *_EXPLICIT_KEYS))), None)
        hint = did_you_mean(wrong, ("task", *_EXPLICIT_KEYS)) if wrong else ""
        found = f"only {', '.join(map(repr, data))}" if data else "nothing"
        raise _Refused(f"holds {found}, but needs one of {options}.{hint}")
    if len(present) > 1:
        keys = " and ".join(repr(next(k for k in group if k in data)) for group in present)
        raise _Refused(f"names {keys}, but takes only one source of data")
    (group,) = present
    if group == ("task",):
        if not isinstance(data["task"], str):
            raise _Refused(f"is the name of a task, not {_shown(data['task'])}", key="task")
        if data["task"] not in tasks.names():
            known = tasks.names()
            hint = did_you_mean(data["task"], known)
            raise _Refused(f"there is no task {data['task']!r} (available: {', '.join(known)}).{hint}", key="task")
        return
    if group == ("tasks",):
        blocks = data["tasks"]
        if not isinstance(blocks, Mapping) or not blocks:
            raise _Refused(f"is a mapping from a name to a data block, not {_shown(blocks)}", key="tasks")
        for name, block in blocks.items():
            if not isinstance(block, Mapping) or "tasks" in block:
                sentence = f"is a data block such as {{task: ioi, n: 16}}, not {_shown(block)}"
                raise _Refused(sentence, key=f"tasks.{name}")
            _check_data(block)
        return
    for key in group:
        value = data.get(key)
        if group == ("file",):
            if not isinstance(value, str):
                raise _Refused(f"is a file name, not {_shown(value)}", key=key)
        elif not isinstance(value, list) or not value:
            raise _Refused(f"is a list with at least one entry, not {_shown(value)}", key=key)


def _first_problem(error: ValidationError, owner: type[BaseModel], *, at: str = "") -> tuple[str, str]:
    """The most telling problem of a failed validation: a sentence without its source, and the key below `at`."""
    problems = error.errors()
    # A misspelt key explains the missing one beside it, so it goes first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path = [str(step) for step in problem["loc"]]
    key = ".".join(path)
    refused = problem.get("ctx", {}).get("error")
    if isinstance(refused, _Refused):
        key = ".".join(part for part in (key, refused.key) if part)
        return _sentence(str(refused) if refused.named else f"{at}{key}: {refused}"), key
    if problem["type"] == "extra_forbidden":
        holder = _model_at(owner, path[:-1])
        choices = list(holder.model_fields) if holder is not None else []
        hint = did_you_mean(path[-1], choices) or (f" Known keys: {', '.join(choices)}." if choices else "")
        return f"unknown key {at + key!r}.{hint}", key
    if problem["type"] == "missing":
        return f"lacks the key {at + key!r}.", key
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
    value = problem["input"]
    hint = ""
    if problem["type"] in ("literal_error", "enum") and isinstance(value, str):
        hint = did_you_mean(value, re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", ""))))
    return _sentence(f"{at}{key} = {_shown(value)}: {message}") + hint, key


def _model_at(owner: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The model whose key is at `path` below `owner`, where it can be told from the annotations."""
    for step in path:
        field = owner.model_fields.get(step)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return None
        owner = inner
    return owner


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else text + "."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
