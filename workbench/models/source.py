"""From what the user named to a directory on this machine: organism, local path or hub model.

Everything here works on names and files and fails with one sentence before torch or TransformerLens is imported, so
that a typing error costs milliseconds. It never opens a weight.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import InputError, did_you_mean

ORGANISM = "organism:"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.tiktoken",
)
_HUB_SECONDS = 5.0  # for the first answer; a hub that is there answers in well under one


@dataclass(frozen=True)
class Source:
    """A readable model directory and how it was named."""

    name: str
    path: Path
    organism: str | None = None
    revision: str | None = None


def resolve(source: str | os.PathLike[str], *, revision: str | None = None, remote_code: bool = False) -> Source:
    """Directory for `organism:NAME`, a local path or a hub name; InputError when there is none."""
    name = os.fspath(source)
    if not name.strip():
        raise InputError("The model's name is empty; give a directory, a hub name or 'organism:NAME'.")
    if name.startswith(ORGANISM):
        return _organism(name)
    path = Path(name).expanduser()
    if path.exists():
        if not path.is_dir():
            raise InputError(f"{name!r} is a file; pass the model directory that holds its config.json and weights.")
        return Source(name, path)
    if _looks_like_a_path(name, path):
        raise InputError(f"No model directory {name!r}.{_siblings(path)} Give an existing directory or a hub name.")
    if not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is neither an existing directory nor a hub name such as 'org/model', nor 'organism:NAME' "
            "(`workbench models` lists organisms)."
        )
    return _hub(name, revision, remote_code)


def _looks_like_a_path(name: str, path: Path) -> bool:
    """Not a hub name: `models/mine` is one as well, unless a directory `models` is here."""
    if name[0] in ".~" or path.is_absolute() or name.endswith(("/", os.sep)):
        return True
    return len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir())


def _organism(name: str) -> Source:
    from workbench import organisms

    wanted = name.removeprefix(ORGANISM)
    known = list(organisms.names())
    if wanted not in known:
        raise InputError(
            f"No organism {wanted!r}.{did_you_mean(wanted, known)} Known: {', '.join(known) or 'none'} "
            "(`workbench models` describes them)."
        )
    return Source(name, Path(organisms.path(wanted)), organism=wanted)


def _siblings(path: Path, *, models_only: bool = False) -> str:
    """Did-you-mean among what is beside a path that does not exist."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        beside = [entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:  # not readable: no suggestion
        return ""
    if models_only:
        beside = [entry for entry in beside if (entry / "config.json").exists()]
    return did_you_mean(path.name, [entry.name for entry in beside])


def _hub(name: str, revision: str | None, remote_code: bool) -> Source:
    """Snapshot of a hub model: the hub's answer when it can be had quickly, else a complete copy in the local cache."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision!r}" if revision else ""
    why = "offline mode is on (HF_HUB_OFFLINE=1)"
    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
            if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
                raise InputError(
                    f"The hub model {name!r}{at} has no safetensors weights, and pickled ones can run code when "
                    "opened; convert it once with model.save_pretrained(dir) and load that directory."
                )
            patterns = [*_HUB_FILES, "*.py"] if remote_code else _HUB_FILES
            folder = snapshot_download(
                name, revision=info.sha, allow_patterns=patterns, ignore_patterns=["consolidated*", "*/*"]
            )
            return Source(name, Path(folder), revision=info.sha)
        except GatedRepoError:
            raise InputError(
                f"The hub model {name!r} is gated; accept its terms on its page and log in with `hf auth login`."
            ) from None
        except RevisionNotFoundError:
            raise InputError(
                f"The hub model {name!r} has no revision {revision!r}; give a branch, tag or commit."
            ) from None
        except (RepositoryNotFoundError, HFValidationError):
            raise InputError(
                f"No model {name!r}: not a directory here, and the hub has none of that name that you may read."
                f"{_siblings(Path(name), models_only=True)} Check the spelling, or give a local directory."
            ) from None
        except (OSError, HfHubHTTPError) as error:
            why = f"the hub cannot be reached ({type(error).__name__})"
        except InputError:
            raise
        except Exception as error:  # a connection error of whichever HTTP library the hub client uses
            if not type(error).__module__.startswith(("http", "requests", "urllib3")):  # httpx, httpx2, httpcore
                raise
            why = f"the hub cannot be reached ({type(error).__name__})"
    cached = _cached(name, revision)
    if cached is not None:
        return Source(name, cached, revision=cached.name)
    raise InputError(
        f"No model {name!r}{at}: there is no such directory and no complete copy in the hub cache, and {why}."
        f"{_siblings(Path(name), models_only=True)} Give a local directory or 'organism:NAME', or try again with a "
        "network."
    )


def _cached(name: str, revision: str | None) -> Path | None:
    """Cached snapshot with configuration and weights, or None."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        return folder if (folder / "config.json").exists() and weight_files(folder) else None
    except (OSError, ValueError):  # not cached; InputError (a ValueError): cached without all its weights
        return None


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """JSON object in `path`; InputError naming the file otherwise."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable {what} ({error}); copy the model directory again.") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} is not a readable {what} (not a JSON object); copy the model directory again.")
    return record


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold the weights: the single file, else the shards its index names.

    Weights are read only from safetensors: a pickle (`.bin`) can run code when it is opened.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        weight_map = read_json(index, what="index of weight shards").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} names no weight files (no 'weight_map'); copy the model directory again.")
        shards = [directory / shard for shard in sorted(set(weight_map.values()))]
        absent = [shard.name for shard in shards if not shard.exists()]
        if absent:
            raise InputError(
                f"{directory} lacks {len(absent)} of its {len(shards)} weight shards, first {absent[0]!r}; copy the "
                "model directory again."
            )
        return shards
    pickles = [*directory.glob("pytorch_model*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
    if pickles:
        raise InputError(
            f"{directory} has only pickled weights ({sorted(p.name for p in pickles)[0]}), which can run code when "
            "opened; convert them once with model.save_pretrained(dir), which writes model.safetensors, and load that."
        )
    raise InputError(f"{directory} has no model.safetensors (nor an index of shards); it is not a complete model.")
