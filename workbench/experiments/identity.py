"""What makes two runs the same run: the key under which a result is looked up before it is computed again.

The key is a hash over the analysis, its full parameters, the data (inlined), the model's fingerprint and how it is
loaded, the device kind, the seed, the sources that compute, and the versions of the libraries below them. The
artifact's name and the paths by which model and data were reached are not part of it. Nothing here imports torch unless
the machine may have an accelerator and somebody must be asked.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.experiments.spec import Spec
from workbench.models.source import read_json

# Folders and files of the package whose sources decide the numbers; the store, plots and command line do not.
COMPUTING = ("models", "organisms", "tasks", "primitives", "analyses", "tables", "stats")
NUMERIC_PACKAGES = ("torch", "transformers", "transformer-lens")
RECORDED_PACKAGES = (*NUMERIC_PACKAGES, "numpy", "scipy", "pandas", "pyarrow", "safetensors", "tokenizers", "workbench")


# Fields of a model's configuration that say where it came from, not what it computes.
_ORIGIN = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")


def run_key(spec: Spec, *, data: Mapping[str, Any], fingerprint: str, configuration: str, device: str) -> str:
    """`sha256:<64 hex>` of everything that decides the result.

    Args:
        spec: the validated spec.
        data: its data with every file replaced by content or digest.
        fingerprint: of the model's weights and tokenizer.
        configuration: `configuration_digest` of the model, which the fingerprint leaves out.
        device: where it runs, `cpu`, `cuda` or `mps`.
    """
    config = spec.config()
    identity = {
        "analysis": config["analysis"],
        "params": config["params"],
        "data": dict(data),
        "seed": config["seed"],
        "model": {
            "fingerprint": fingerprint,
            "configuration": configuration,
            "dtype": config["model"]["dtype"],
            "attn": config["model"]["attn"],
            **({"quantize": config["model"]["quantize"]} if config["model"]["quantize"] else {}),
        },
        "device": device.split(":")[0],
        "code": code_version(),
        "packages": package_versions(NUMERIC_PACKAGES),
    }
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def configuration_digest(directory: Path) -> str:
    """`sha256:<64 hex>` of the configuration files beside a model's weights: rotary base, windows, end tokens."""
    digest = hashlib.sha256()
    for name in ("config.json", "generation_config.json"):
        file = directory / name
        if file.is_file():
            record = read_json(file, what="model configuration")
            kept = {key: value for key, value in record.items() if key not in _ORIGIN}
            digest.update(f"{name}\0{json.dumps(kept, sort_keys=True)}\0".encode())
    return "sha256:" + digest.hexdigest()


@functools.cache
def code_version() -> str:
    """`sha256:<64 hex>` over the sources in `COMPUTING`, by path and content."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for part in COMPUTING:
        folder = root / part
        for source in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
            digest.update(f"{source.relative_to(root).as_posix()}\0{source.stat().st_size}\0".encode())
            digest.update(source.read_bytes())
    return "sha256:" + digest.hexdigest()


def package_versions(packages: tuple[str, ...] = RECORDED_PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name, without importing anything; absent packages are left out."""
    found = {package: _version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}


@functools.cache
def _version(package: str) -> str | None:
    """5 ms each, and asked of every run of a grid."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def device_kind(requested: str) -> str:
    """The kind of device `load_model` will choose: `cpu`, `cuda` or `mps`.

    `auto` is the GPU where there is one; torch is asked only where the machine may have one it can use.
    """
    if requested != "auto":
        return requested.split(":")[0]
    if sys.platform == "darwin" or _torch_is_cpu_only() or (sys.platform == "linux" and not _accelerator_nodes()):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _torch_is_cpu_only() -> bool:
    return package_versions(("torch",)).get("torch", "").endswith("+cpu")


def _accelerator_nodes() -> bool:
    devices = Path("/dev")
    return any(devices.glob("nvidia*")) or (devices / "kfd").exists() or (devices / "dxg").exists()


def producer(*, device: str, model: Mapping[str, Any], data: Mapping[str, Any], source: Path | None) -> dict[str, Any]:
    """Who made an artifact, of what: command, code, versions, machine kind, the model and the data as measured."""
    return {
        "argv": command(),
        "code": code_version(),
        "device": device,
        "data": dict(data),
        "model": dict(model),
        "packages": package_versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "spec_file": str(source) if source is not None else None,
        **_git(),
    }


def command() -> list[str]:
    """The command, without the folder it was started from."""
    program, *rest = sys.argv or [""]
    name = Path(program).name
    return ["workbench" if name == "__main__.py" else name, *rest] if name else []


def _git() -> dict[str, Any]:
    """Commit of the package's own checkout and whether its sources differ from it; empty when it is not in one."""
    package = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a copy in site-packages inside some repository is not it
        return {"git": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return {}
