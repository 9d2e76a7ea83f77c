"""Yes/no object questions in the POPE layout, and any rows of images, with the user's own image folder.

    data: {file: coco_pope_random.json, images: ~/coco/val2014}
    data: {samples: [{image: cat.png, prompt: What is this?}], images: pictures}

A row is `{question_id, image, text, label}` as POPE publishes it, or has the keys of an explicit sample (`image`,
`prompt`, ...). Images are looked for in the folder `images`, else beside the file. This module reads and renames; what
an image or a prompt must be is decided in `images`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.tasks import checks
from workbench.tasks.images import ImageDataset, images_from_samples

ROW_OPTIONS = ("images", "n", "template", "name")  # keys of a data block beside `file` or `samples`
KINDS = ("random", "popular", "adversarial")
_POPE_KEYS = ("question_id", "image", "text", "label")
_ABOUT = re.compile(r"^is there (?:an? )?(.+?)(?: in the (?:image|picture|photo))? ?\?", re.IGNORECASE)


def is_images(data: Mapping[str, Any], *, base_dir: str | Path | None = None) -> bool:
    """Whether a data block is about images: it names their folder, or its first row has an image."""
    if "images" in data:
        return True
    rows = data.get("samples")
    path = Path(str(data.get("file", "")))
    if "file" in data and path.suffix.lower() in (".json", ".jsonl"):
        try:
            rows = list(checks.json_lines(data["file"], base_dir=base_dir, what="samples file").values())
        except InputError:  # another layout, or no such file: its own reader says so
            return False
    first = rows[0] if isinstance(rows, list | tuple) and rows else None
    return isinstance(first, Mapping) and "image" in first


def images_from_file(
    model: Any, file: str | Path, *, base_dir: str | Path | None = None, name: str | None = None, **options: Any
) -> ImageDataset:
    """The questions or prompts of a JSONL file (one JSON object per line), each with its image.

    Args:
        model: a `Model` with a processor, or a processor.
        base_dir: folder that `file` and `images` are relative to.
        options: `images`, `n` and `template` of `images_from_rows`.

    Raises:
        InputError: the file, the folder, a line or an image is unusable; the message names it.
    """
    found, _ = checks.text_file(file, base_dir=base_dir, what="question file")
    rows = checks.json_lines(found, what="question file")
    if options.get("images") is None:
        options["images"] = found.parent.absolute()
    return images_from_rows(
        model, list(rows.values()), base_dir=base_dir, name=name or found.stem, origins=list(rows), **options
    )


def images_from_rows(
    model: Any,
    rows: Sequence[Any],
    *,
    images: str | Path | None = None,
    n: int | None = None,
    template: str | None = None,
    base_dir: str | Path | None = None,
    name: str = "images",
    origins: Sequence[str] | None = None,
) -> ImageDataset:
    """Rows in either layout, each with its image.

    Args:
        images: folder that the rows' image names are in; default `base_dir`.
        n: only the first `n` rows.
        template: what surrounds each prompt: "chat", or text with `{prompt}` in it.
        name: of the dataset; one with "random", "popular" or "adversarial" in it makes that the rows' group.
    """
    if not isinstance(rows, list | tuple) or not rows:
        raise InputError("samples must be a list with at least one {image, prompt}.")
    if n is not None:
        rows = rows[: checks.whole_number(n, what="n")]
    named = [f"Sample {index}" for index in range(len(rows))] if origins is None else list(origins)[: len(rows)]
    group = next((kind for kind in KINDS if kind in name.lower()), "")
    samples = [as_sample(row, where=where, group=group) for where, row in zip(named, rows, strict=True)]
    folder = base_dir if images is None else _folder(images, base_dir)
    return images_from_samples(model, samples, template=template, base_dir=folder, name=name, origins=named)


def as_sample(row: Any, *, where: str, group: str = "") -> Any:
    """A row in the keys of an explicit sample; one that has a `prompt` is left as it is."""
    if not isinstance(row, Mapping) or "prompt" in row or "text" not in row:
        return row
    checks.known_keys(row, _POPE_KEYS, where=where)
    label = str(row.get("label", "")).strip().lower()
    if label not in ("yes", "no"):
        raise InputError(f"{where}: the label must be 'yes' or 'no', not {row.get('label')!r}.")
    sample = {"image": row.get("image"), "prompt": row["text"], "answer": label, "group": group}
    if "question_id" in row:
        sample["id"] = row["question_id"]
    asked = _ABOUT.match(str(row["text"]).strip())
    if asked:
        sample["about"] = asked.group(1)
    return sample


def _folder(images: str | Path, base_dir: str | Path | None) -> Path:
    if not isinstance(images, str | Path):
        raise InputError(f"images must be the folder the images are in, not {images!r}.")
    folder = Path(images).expanduser()
    if base_dir is not None and not folder.is_absolute():
        folder = Path(base_dir) / folder
    if folder.is_file():
        raise InputError(f"images names the file {str(folder)!r}; give the folder the images are in.")
    if not folder.is_dir():
        raise InputError(f"The image folder {str(folder)!r} does not exist; give the folder the images are in.")
    return folder
