"""The arrows of DESIGN section 1 point one way, and starting up loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "workbench"

# What each part may import, inside functions too. `TYPE_CHECKING` blocks do not count.
LEFT = {"errors", "progress"}
MAY_IMPORT = {
    "errors": set(),
    "progress": set(),
    "stats": LEFT,
    "models": LEFT | {"organisms"},  # `organism:NAME` is a model name
    "organisms": LEFT | {"models", "tasks"},  # recipes train on tasks; the loader never imports recipes
    "tasks": LEFT | {"models"},
    "primitives": LEFT | {"models"},
    "saes": LEFT | {"models", "primitives", "tasks"},
    "analyses": LEFT | {"models", "organisms", "tasks", "primitives", "saes", "tables", "stats"},
    "store": {"errors"},
    "tables": {"errors", "stats", "export", "plots"},  # the last two lazily, by the methods that hand a table over
    "export": {"errors", "stats", "tables"},
    "plots": {"errors", "stats", "tables", "export"},
    "report": {"errors", "stats", "store", "tables", "export", "plots"},
    "published": {"errors", "stats", "tables", "export"},
    "experiments": LEFT | {"models", "tasks", "analyses", "store", "tables", "stats", "export"},
    "certify": LEFT
    | {"models", "organisms", "tasks", "primitives", "analyses", "experiments", "store", "tables", "stats"},
    "launch": {"errors", "primitives", "experiments", "store"},  # primitives: a worker joins a team of a sweep
    "cli": LEFT
    | {"models", "organisms", "tasks", "analyses", "experiments", "certify", "store", "tables", "export", "plots"}
    | {"published", "report", "launch"},
}
HEAVY = ("torch", "transformers", "transformer_lens", "pandas", "sklearn", "scipy", "plotly")


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> set[str]:
    """Parts of the package that a module imports at run time."""
    found: set[str] = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            steps = name.split(".")
            if steps[0] == "workbench" and len(steps) > 1:
                found.add(steps[1])
    return found


def sources() -> list[Path]:
    return [
        path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or path.stem not in ("__init__", "__main__")
    ]


def test_arrows_point_one_way() -> None:
    wrong = defaultdict(set)
    for path in sources():
        part = part_of(path)
        own = {part, "__version__"}
        for other in imported(ast.parse(path.read_text(encoding="utf-8")), path) - own:
            if other not in MAY_IMPORT.get(part, set()):
                wrong[str(path.relative_to(ROOT))].add(other)
    assert not wrong, dict(wrong)


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in sources()} <= set(MAY_IMPORT)


def test_relative_and_star_imports_are_not_used() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.names[0].name != "*", path


@pytest.mark.parametrize(
    "modules",
    [
        "workbench",
        "workbench.cli",
        "workbench.store, workbench.tables, workbench.published",
        "workbench.experiments, workbench.tasks, workbench.models, workbench.organisms, workbench.analyses",
    ],
)
def test_starting_up_loads_nothing_heavy(modules: str) -> None:
    program = f"import sys, {modules}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_itself_imports_nothing_of_itself() -> None:
    program = "import sys, workbench; print(*[name for name in sys.modules if name.startswith('workbench.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_exists() -> None:
    import workbench as wb

    for name in wb.__all__:
        assert getattr(wb, name) is not None, name
    assert set(wb.__all__) <= set(dir(wb))
    with pytest.raises(AttributeError, match="no attribute 'lod_model'"):
        wb.lod_model  # noqa: B018


def test_the_store_package_is_also_a_function(tmp_path: Path) -> None:
    program = (
        "import workbench.store; import workbench as wb; from workbench.store import Store\n"
        f"place = wb.store({str(tmp_path)!r}); assert isinstance(place, Store) and callable(place.put)\n"
        "assert wb.store is sys.modules['workbench.store']"
    )
    subprocess.run([sys.executable, "-c", f"import sys\n{program}"], check=True)
