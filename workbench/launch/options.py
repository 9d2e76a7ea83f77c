"""Where and how runs are launched: the `launch:` block of a spec file and the options of `workbench run`, one model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import InputError, did_you_mean

Launcher = Literal["local", "submitit", "ray"]
LAUNCHERS = ("local", "submitit", "ray")
# Options that run shell commands, or hand work to a machine: no file may choose them, only who types the command.
TYPED = ("setup", "teardown", "srun_args", "additional_parameters", "python", "address")


class LaunchOptions(BaseModel):
    """Attributes:
    launcher: `local` worker processes; `submitit` for SLURM (and, without one, its own local executor); `ray`.
    workers: how many tasks at once; null: as many as this machine has processors, on a cluster all.
    threads: CPU threads of each worker; null: `OMP_NUM_THREADS`, else the processors shared out among local workers,
        one on a cluster. Results are equal bit for bit for equal threads.
    shards: how many workers share every single run, for analyses that sweep over heads.
    options: passed on to the engine: for submitit the parameters of its executor (`slurm_partition`, `timeout_min`,
        `mem_gb`, ..., and `cluster`), for Ray `address`, `num_gpus`, `memory`, `resources`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    launcher: Launcher = "local"
    workers: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    threads: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None
    shards: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    options: dict[str, Any] = Field(default_factory=dict)

    def on(self, tasks: int) -> LaunchOptions:
        """With workers and threads filled in for so many tasks."""
        cpus = processors()
        workers = self.workers or (cpus if self.launcher == "local" else None)
        workers = min(workers, max(1, tasks)) if workers else None
        given = os.environ.get("OMP_NUM_THREADS", "")
        chosen = int(given) if given.isdigit() and int(given) else 1
        if not given and self.launcher == "local":
            chosen = max(1, cpus // (workers or 1))
        return self.model_copy(update={"workers": workers, "threads": self.threads or chosen})


def merged(blocks: Iterable[tuple[str, Any]], given: Mapping[str, Any]) -> LaunchOptions | None:
    """The options of all spec files (as `(file, block)`) under those given on the command line; None without any.

    Raises:
        InputError: an unusable value, or files that disagree.
    """
    found: dict[str, Any] = {}
    of: dict[str, str] = {}
    any_block = False
    for origin, block in blocks:
        any_block = True
        block = {"launcher": block} if isinstance(block, str) else block
        if not isinstance(block, Mapping):
            raise InputError(f"{origin}: launch is a mapping such as {{launcher: local, workers: 2}}, not {block!r}.")
        _harmless(validated(block, f"{origin}: launch.").options, origin)
        for key, value in block.items():
            if key in found and found[key] != value and key not in given:
                raise InputError(
                    f"{origin}: launch.{key} is {value!r}, but {of[key]} says {found[key]!r}; launch them one by one, "
                    f"or say which on the command line."
                )
            found[key], of[key] = value, origin
    if not any_block and not given:
        return None
    options = {**found.get("options", {}), **given.get("options", {})}
    if given.get("launcher", found.get("launcher")) != found.get("launcher"):
        options = dict(given.get("options", {}))  # another engine's options mean nothing here
    return validated({**found, **given, "options": options}, "--")


def _harmless(options: Mapping[str, Any], origin: str) -> None:
    """Refuse engine options of a file that could run something: `TYPED`, and text that begins a line of a script."""
    for key, value in options.items():
        if key.removeprefix("slurm_").removeprefix("local_") in TYPED:
            why = "can run commands or send work to other machines, so a file may not set it"
        elif not all(text.isprintable() for text in _texts([key, value])):
            why = f"is {value!r}, which has line breaks or control characters"
        else:
            continue
        raise InputError(f"{origin}: launch.options.{key!s:.40} {why}; type it as --launch-option {key!s:.40}=...")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def validated(values: Mapping[str, Any], at: str) -> LaunchOptions:
    """Raises:
    InputError: naming the first key that is unknown or unusable.
    """
    try:
        return LaunchOptions.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(key, LaunchOptions.model_fields)
            known = f" Known keys: {', '.join(LaunchOptions.model_fields)}."
            raise InputError(f"{at}{key}: unknown key.{hint or known}") from None
        value = first["input"]
        if key == "launcher":
            hint = " SLURM is reached through submitit." if value == "slurm" else did_you_mean(str(value), LAUNCHERS)
            raise InputError(f"{at}launcher: {value!r} is none of {', '.join(LAUNCHERS)}.{hint}") from None
        raise InputError(f"{at}{key}: {value!r} does not fit: {first['msg'][0].lower()}{first['msg'][1:]}.") from None


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
