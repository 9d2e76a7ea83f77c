"""Images with prompts, as token ids with the image's span tracked: what vision-language analyses read.

A sample's tokens are the whole prompt as the model gets it, the image placeholder already widened to as many tokens as
the image has, so that "the image" is a half-open span like a needle. Pixels are made when a batch is: a thousand
photographs are kept as paths. The file knows tokenizers, processors and how many positions a model has, and nothing of
what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import InputError
from workbench.tasks import checks
from workbench.tasks.dataset import Dataset
from workbench.tasks.pictures import open_picture, pixel_digest
from workbench.tasks.prompting import Placeholder, placeholder, tokenised

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int
    from PIL.Image import Image
    from torch import Tensor

IMAGE_KEYS = ("image", "prompt", "id", "objects", "answer", "about", "group", "reference", "regions")
Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of width and height


@dataclass(frozen=True)
class ImageSample:
    """One image with one prompt.

    Attributes:
        id: unique within its dataset.
        source: the picture (RGB), or the path it is read from each time it is needed.
        prompt: the text as tokenised, image placeholder included once.
        tokens: the whole prompt, BOS included where the tokenizer has one, image tokens widened.
        image_span: half-open span `[a, b)` in `tokens` of the image.
        pixels: digest of the picture's pixels.
        objects: what the image shows, None when unknown (an empty tuple says: nothing).
        reference: a caption that is true of the image, None when there is none.
        answer: "yes" or "no" for a question, else None.
        about: the object a question asks for, else None.
        group: how the sample was chosen, for example "random", "popular" or "adversarial" negatives.
        regions: where objects are in the picture, by name; None when unknown.
        notes: what a reader should know, in words.
    """

    id: str
    source: Image | Path
    prompt: str
    tokens: tuple[int, ...]
    image_span: tuple[int, int]
    pixels: str
    objects: tuple[str, ...] | None = None
    reference: str | None = None
    answer: str | None = None
    about: str | None = None
    group: str = ""
    regions: Mapping[str, Box] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        a, b = self.image_span
        if not 0 <= a < b <= len(self.tokens):
            raise ValueError(f"image span {self.image_span} does not fit a prompt of {len(self.tokens)} tokens")

    @property
    def image(self) -> Image:
        """The picture, RGB; read from its file when it came from one."""
        return open_picture(self.source, where=f"Sample {self.id!r}")

    @property
    def length(self) -> int:
        """Number of tokens in the prompt, image included."""
        return len(self.tokens)

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """The prompt with the image's tokens taken out."""
        return self.tokens[: self.image_span[0]] + self.tokens[self.image_span[1] :]


@dataclass(frozen=True)
class ImageBatch:
    """Samples as tensors, padded on the left.

    Attributes:
        tokens: token ids.
        mask: which of them are real.
        image_mask: which of them stand for the image.
        pixel_values: what the processor made of the images, `[n, channel, height, width]`
            (LLaVA-NeXT: `[n, tile, ...]`).
        extra: what else the model's forward takes beside them (`image_sizes`, `token_type_ids`, ...).
    """

    tokens: Int[Tensor, "n pos"]
    mask: Bool[Tensor, "n pos"]
    image_mask: Bool[Tensor, "n pos"]
    pixel_values: Float[Tensor, "n ..."]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def padded(self) -> bool:
        """Whether any position is padding."""
        return not bool(self.mask.all())

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for the Hugging Face model's forward."""
        mask = self.mask.long()
        return {"input_ids": self.tokens, "attention_mask": mask, "pixel_values": self.pixel_values, **self.extra}


@dataclass(frozen=True)
class ImageDataset(Dataset[ImageSample]):
    """An immutable sequence of image samples and the recipe that makes it again (`meta`, JSON-able).

    `vocabulary` names every object a caption may mention, () when it is not known.
    """

    kind: ClassVar[str] = "images"

    vocabulary: tuple[str, ...] = ()

    def only(self, group: str) -> ImageDataset:
        """The samples of one group."""
        chosen = tuple(sample for sample in self.samples if sample.group == group)
        if not chosen:
            groups = ", ".join(sorted({repr(sample.group) for sample in self.samples}))
            raise InputError(f"The dataset {self.name!r} has no group {group!r}; it has {groups}.")
        return self.with_samples(chosen, only=group)

    def batch(self, model: Any, indices: Sequence[int] | None = None) -> ImageBatch:
        """These samples (default: all), in this order, as tensors on the CPU; shorter ones padded on the left.

        Args:
            model: a `Model` with a processor, or a processor; the one the dataset was made with.
        """
        import torch

        chosen = self.samples if indices is None else [self.samples[i] for i in indices]
        if not chosen:
            raise InputError("A batch needs at least one image; add some to the dataset or name their indices.")
        slot = placeholder(model)
        longest = max(sample.length for sample in chosen)
        rows = [(slot.pad,) * (longest - s.length) + s.tokens for s in chosen]
        tokens = torch.tensor(rows)
        mask = torch.tensor([[i >= longest - s.length for i in range(longest)] for s in chosen])
        image_mask = (tokens == slot.token_id) & mask
        inputs = dict(slot.processor.image_processor(images=[s.image for s in chosen], return_tensors="pt"))
        pixel_values = inputs.pop("pixel_values")
        inputs.pop("num_crops", None)  # Gemma 3: how many tiles, already in the tokens
        if slot.token_types:
            inputs["token_type_ids"] = image_mask.long()
        return ImageBatch(tokens, mask, image_mask, pixel_values, inputs)

    def digested(self) -> Any:
        rows = [[getattr(s, name) for name in _DIGESTED] for s in self.samples]
        for row, sample in zip(rows, self.samples, strict=True):
            row += [] if sample.regions is None else [sorted(sample.regions.items())]
        return [rows, self.vocabulary]

    def counts(self) -> dict[str, Any]:
        return {
            "n_images": len({sample.pixels for sample in self.samples}),
            "groups": sorted({sample.group for sample in self.samples}),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per sample, without tokens and pixels."""
        import pandas as pd

        rows = [
            {
                "id": s.id,
                "image": str(s.source) if isinstance(s.source, Path) else s.pixels[:19],
                "prompt": s.prompt,
                "length": s.length,
                "image_start": s.image_span[0],
                "image_stop": s.image_span[1],
                "objects": None if s.objects is None else ", ".join(s.objects),
                "answer": s.answer,
                "about": s.about,
                "group": s.group,
                "notes": "; ".join(s.notes),
            }
            for s in self.samples
        ]
        return pd.DataFrame(rows)


_DIGESTED = (
    "id",
    "prompt",
    "tokens",
    "image_span",
    "pixels",
    "objects",
    "reference",
    "answer",
    "about",
    "group",
)


def images_from_samples(
    model: Any,
    samples: Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    base_dir: str | Path | None = None,
    name: str = "images",
    vocabulary: Sequence[str] = (),
    origins: Sequence[str] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> ImageDataset:
    """Read and tokenise explicit samples `{image, prompt[, id, objects, answer, about, group, reference, regions]}`.

    Args:
        model: a `Model` with a processor, or a processor.
        samples: `image` is what `open_picture` takes; a prompt without the image placeholder gets it in front.
        template: what surrounds each prompt: "chat", or text with `{prompt}` in it.
        base_dir: folder that relative image paths are looked for in.
        vocabulary: every object a caption may mention.
        origins: what to call each sample in a message (lines of a file, say); default "Sample 0", "Sample 1", ...
        meta: the recipe; default: the samples themselves, a picture that came from no file by its digest.

    Raises:
        InputError: the model takes no images, or a sample is unusable; the message names it by index and id.
    """
    if isinstance(samples, str | Mapping) or not isinstance(samples, Sequence) or not samples:
        raise InputError("samples must be a list with at least one {image, prompt}.")
    if origins is None:
        origins = [f"Sample {index}" for index in range(len(samples))]
    slot = placeholder(model)
    made = tuple(
        _sample(row, i, origin, slot, template, base_dir)
        for i, (row, origin) in enumerate(zip(samples, origins, strict=True))
    )
    checks.distinct_ids([sample.id for sample in made], origins)
    if meta is None:
        meta = {"samples": [_recorded(row, sample) for row, sample in zip(samples, made, strict=True)]}
        if template is not None:
            meta = {**meta, "template": template}
    return ImageDataset(name, made, dict(meta), tuple(vocabulary))


def _sample(
    row: Any, index: int, origin: str, slot: Placeholder, template: str | None, base_dir: str | Path | None
) -> ImageSample:
    named = row.get("id") if isinstance(row, Mapping) else None
    where = origin if named is None else f"{origin} ({named!r})"
    prompt = checks.required_text(row, "prompt", where=where)
    checks.known_keys(row, IMAGE_KEYS, where=where)
    if row.get("image") is None:
        raise InputError(f"{where} has no 'image'; give a path, a Pillow image or a uint8 array.")
    picture = open_picture(row["image"], base_dir=base_dir, where=where)
    text, tokens, span = tokenised(slot, prompt, picture, template=template, where=where)
    answer = row.get("answer")
    if answer is not None and answer not in ("yes", "no"):
        raise InputError(f"{where}: the answer must be 'yes' or 'no', not {answer!r} (quote it in YAML).")
    objects = row.get("objects")
    if isinstance(objects, str) or not all(isinstance(name, str) for name in objects or ()):
        raise InputError(f"{where}: objects must be a list of names, not {objects!r}.")
    return ImageSample(
        id=str(index) if named is None else str(named),
        source=_kept(row["image"], picture, base_dir),
        prompt=text,
        tokens=tokens,
        image_span=span,
        pixels=pixel_digest(picture),
        objects=None if objects is None else tuple(objects),
        reference=row.get("reference"),
        answer=answer,
        about=row.get("about"),
        group=str(row.get("group", "")),
        regions=_regions(row.get("regions"), where),
        notes=() if slot.text in prompt else ("the image placeholder was put in front of the prompt",),
    )


def _regions(given: Any, where: str) -> dict[str, Box] | None:
    """Boxes by name, or an InputError that names the one that is none."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: regions must be boxes [left, top, right, bottom] by name, not {given!r}.")
    boxes: dict[str, Box] = {}
    for name, box in given.items():
        edges: list[Any] = list(box) if isinstance(box, list | tuple) else []
        numbers = len(edges) == 4 and all(isinstance(e, int | float) and not isinstance(e, bool) for e in edges)
        if not numbers or not (0 <= edges[0] < edges[2] <= 1 and 0 <= edges[1] < edges[3] <= 1):
            raise InputError(
                f"{where}: the region of {name!r} must be [left, top, right, bottom] as fractions of the picture, "
                f"0 to 1, not {box!r}."
            )
        left, top, right, bottom = (float(edge) for edge in edges)
        boxes[str(name)] = (left, top, right, bottom)
    return boxes


def _kept(given: Any, picture: Image, base_dir: str | Path | None) -> Image | Path:
    """A file stays on disk, anything else is held as the picture it became."""
    import os

    from workbench.tasks.pictures import locate

    return locate(given, base_dir) if isinstance(given, str | os.PathLike) else picture


def _recorded(row: Mapping[str, Any], sample: ImageSample) -> dict[str, Any]:
    source = str(row["image"]) if isinstance(sample.source, Path) else sample.pixels
    return {**row, "image": source}
