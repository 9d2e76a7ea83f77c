"""Write the planted organisms that the package ships: their weights are code, so this takes seconds, not training.

python experiments/organisms/make_planted.py                              # all of them, into the package
python experiments/organisms/make_planted.py planted-induction --seed 7 --out DIR    # a fresh instance elsewhere
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from workbench.organisms import planted
from workbench.organisms.planted.folder import write, write_card

DATA = Path(planted.__file__).parents[1] / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=planted.names(), help="default: all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DATA, help="folder that gets one folder per organism")
    given = parser.parse_args()
    for name in given.names:
        folder = given.out / name
        made = planted.make(name, seed=given.seed)
        if "weights" in made.card and given.out == DATA:  # another organism's folder has them
            folder.mkdir(exist_ok=True)
            write_card(made.card, folder)
        else:
            write(made, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}  {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
