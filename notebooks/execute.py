"""Fill the artifact store with what the notebooks read, then run every notebook top to bottom; any error fails.

    python notebooks/execute.py                       all of them, on ./artifacts
    python notebooks/execute.py 02 --keep out/notebooks    those whose name starts so; keep what they showed

Each notebook says in `SPECS`, in its first code cell, which artifacts it reads and which file of `experiments/` makes
each. A run that is in the store already is found there, so that a second call computes nothing. Two at a time, in
processes of one thread each.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
AT_ONCE = 2
SECONDS = 600  # for one cell, on a machine busy with other things; a quiet one needs a few


def notebooks(starts: Sequence[str] = ()) -> list[Path]:
    """All notebooks in order, or those whose names start with one of `starts`."""
    found = sorted(HERE.glob("*.ipynb"))
    return [path for path in found if not starts or path.name.startswith(tuple(starts))]


def needs(path: Path) -> dict[str, str]:
    """Artifact name -> spec file, as the notebook's first code cell says."""
    import nbformat

    code = next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "SPECS":
            return ast.literal_eval(statement.value)
    raise SystemExit(f"{path.name}: the first code cell does not set SPECS, the artifacts it reads and their specs.")


def fill(store: Path, specs: Iterable[str], overrides: Mapping[str, list[str]] | None = None) -> None:
    """Run the spec files of `experiments/` into the store, in this process; a run that is there already is a hit."""
    import workbench as wb

    for spec in specs:
        started = time.perf_counter()
        artifact = wb.run(ROOT / "experiments" / spec, store=store, overrides=(overrides or {}).get(spec, ()))
        print(f"  {spec:<34} {artifact.ref:<38} {time.perf_counter() - started:6.1f} s", flush=True)


def execute(path: Path, folder: Path = HERE) -> Any:
    """The notebook with its outputs, run in `folder`, beside which it finds `artifacts` and `experiments`.

    Raises:
        nbclient.exceptions.CellExecutionError: the first cell that failed, with its traceback.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place)
    client.extra_arguments = ["--log-level=ERROR"]  # it listens on 127.0.0.1 and warns, each time, that this is TCP
    client.execute()
    return notebook


def _timed(path: Path, keep: Path | None) -> str | None:
    """Run one and say how it went; the error, or None."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    started, error = time.perf_counter(), None
    try:
        done = execute(path)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            nbformat.write(done, keep / path.name)
    except (CellExecutionError, RuntimeError, TimeoutError) as failure:
        error = f"{path.name}: {failure}"
    print(f"  {path.name:<34} {'FAILED' if error else 'ran':<38} {time.perf_counter() - started:6.1f} s", flush=True)
    return error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill the store and run the notebooks.")
    parser.add_argument("names", nargs="*", help="beginnings of file names, such as 02; all of them by default")
    parser.add_argument("--keep", type=Path, help="a folder for the notebooks with what they showed")
    given = parser.parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # of the processes below, before they import torch
        os.environ.setdefault(name, "1")
    paths = notebooks(given.names)
    if not paths:
        parser.error(f"no notebook's name starts with {' or '.join(given.names)}")
    specs = sorted({spec for path in paths for spec in needs(path).values()})
    print(f"{len(specs)} specs into {ROOT / 'artifacts'}", flush=True)
    with ProcessPoolExecutor(AT_ONCE, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(fill, ROOT / "artifacts", [spec]) for spec in specs]:
            done.result()
    print(f"{len(paths)} notebooks", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        errors = [error for error in pool.map(lambda path: _timed(path, given.keep), paths) if error]
    for error in errors:
        print(f"\n{error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
