"""API reference from the docstrings, as HTML: `make docs`, or `python docs/build.py [FOLDER]` (default out/api)."""

from __future__ import annotations

import pkgutil
import sys
from pathlib import Path


def modules() -> list[str]:
    """Every module of the package that is not private."""
    import workbench

    found = [info.name for info in pkgutil.walk_packages(workbench.__path__, "workbench.")]
    return ["workbench", *(name for name in found if not any(part.startswith("_") for part in name.split(".")))]


def main(folder: str = "out/api") -> None:
    import pdoc

    pdoc.render.configure(docformat="google", search=True)
    pdoc.pdoc(*modules(), output_directory=Path(folder))
    print(f"{len(modules())} modules in {folder}/index.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
