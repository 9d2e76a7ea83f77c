"""The main job end to end on the built-in models: run the experiments, export the tables, draw the plots, report.

`make demo` runs this. Everything is done through the command line a user would type; each command is printed first.
Results go to the artifact store (`artifacts/`, or $WORKBENCH_STORE) and the exports to `out/`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from workbench.cli import main as workbench

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out"
STORIES = ROOT.parent / "shared" / "models" / "stories260K"
SPECS = {
    "retrieval/organism": "retrieval.yaml",
    "ablation/organism": "ablation.yaml",
    "ships/refusal": "ships.yaml",
    "vhd/captions": "vhd.yaml",
    "circuit/planted-ioi": "circuit-planted.yaml",
    "sae_circuits/planted-ioi": "sae-circuits.yaml",
}


def do(*words: str | Path) -> None:
    command = [str(word) for word in words]
    print(f"\n$ workbench {shlex.join(command)}", flush=True)
    code = workbench(command)
    if code:
        sys.exit(code)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    specs = dict(SPECS)
    if STORIES.exists():
        specs["retrieval/stories260K"] = "retrieval-stories260k.yaml"
        specs["activation_patching/stories260K"] = "activation-patching.yaml"
    do("models")
    for name, spec in specs.items():
        stem = OUT / name.replace("/", "-")
        beside = ["--allow", STORIES.parent] if "stories260K" in name else []  # a spec may not name it by itself
        do("run", ROOT / "experiments" / spec, *beside)
        do("show", name)
        for kind, ending in [("csv", "csv"), ("latex", "tex"), ("md", "md")]:
            do("export", name, "--format", kind, "-o", f"{stem}.{ending}")
        do("plot", name, "-o", f"{stem}.html")
    do("compare", "retrieval/organism", "ablation/organism", "--rule", "top 4")
    do("plot", "circuit/planted-ioi", "--kind", "graph", "-o", OUT / "circuit-graph.html")
    do("certify", "--organism", "planted-ioi")
    do("ls")
    do("fsck")
    do("report", *specs, "-o", OUT / "report.html")
    print(f"\nTables and plots are in {OUT}; the artifacts, which nothing overwrites, are in the store listed above.")
    print(f"All of it on one page: open {OUT / 'report.html'} in a browser (it needs no network).")
    print("Next: `make lab`, and open 00_tour.ipynb.")


if __name__ == "__main__":
    main()
