"""An image of any size and mode becomes one span of tokens and honest pixels, or is refused in a sentence."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_tokenizer
from workbench.errors import InputError
from workbench.tasks import resolve
from workbench.tasks.images import ImageDataset, images_from_samples
from workbench.tasks.pictures import open_picture, pixel_digest
from workbench.tasks.pope import images_from_file

POPE = Path(__file__).parents[3] / "shared" / "data" / "pope"
SIDE, PATCH = 16, 8  # four image tokens


def llava_processor(**options: Any) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>", "USER", "ASSISTANT", ":", "what", "is", "this", "?", "yes"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, resample=Image.Resampling.NEAREST
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **options,
    )


def gemma_processor() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import Gemma3Processor, PreTrainedTokenizerFast
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    marks = {"boi_token": "<start>", "image_token": "<soft>", "eoi_token": "<end>"}
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *marks.values(), "what", "is", "this", "?"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=marks,
    )
    pictures = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Gemma3Processor(pictures, tokenizer, image_seq_length=4)


@pytest.fixture(scope="module")
def processor() -> Any:
    return llava_processor()


def red(width: int = 20, height: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 10, 30))


def make(processor: Any, image: Any = None, prompt: str = "what is this ?", **options: Any) -> ImageDataset:
    row = {"image": red() if image is None else image, "prompt": prompt}
    return images_from_samples(processor, [row], **options)


# ---- prompts


def test_the_image_is_one_span_of_tokens_and_bos_comes_once(processor: Any) -> None:
    sample = make(processor)[0]
    a, b = sample.image_span
    assert (a, b) == (1, 5) and sample.tokens[a:b] == (4, 4, 4, 4)
    assert sample.tokens[0] == 1 and sample.tokens.count(1) == 1
    assert sample.text_tokens == (1, 8, 9, 10, 11)
    assert sample.notes and sample.prompt == "<image>\nwhat is this ?"


def test_a_placeholder_in_the_prompt_stays_where_it_is(processor: Any) -> None:
    sample = make(processor, prompt="what is <image> this ?")[0]
    assert sample.tokens == (1, 8, 9, 4, 4, 4, 4, 10, 11) and not sample.notes


def test_a_template_goes_around_the_image_or_holds_it(processor: Any) -> None:
    around = make(processor, template="USER : {prompt} ASSISTANT :")[0]
    assert around.tokens == (1, 5, 7, 4, 4, 4, 4, 8, 9, 10, 11, 6, 7)
    assert make(processor, template="USER : <image> {prompt} ASSISTANT :")[0].tokens == around.tokens


def test_the_chat_template_of_the_processor_places_the_image() -> None:
    chat = (
        "{% for m in messages %}USER : {% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %} {{ c.text }}{% endif %}{% endfor %}{% endfor %} ASSISTANT :"
    )
    sample = make(llava_processor(chat_template=chat), template="chat")[0]
    assert sample.tokens == (1, 5, 7, 4, 4, 4, 4, 8, 9, 10, 11, 6, 7)


def test_gemma_3_writes_markers_around_its_image_tokens() -> None:
    processor = gemma_processor()
    rows = [{"image": red(), "prompt": "what is this ?"}, {"image": red(), "prompt": "this ? <start>"}]
    data = images_from_samples(processor, rows)
    assert data[0].tokens == (1, 4, 5, 5, 5, 5, 6, 7, 8, 9, 10) and data[0].image_span == (2, 6)
    assert data[1].tokens == (1, 9, 10, 4, 5, 5, 5, 5, 6)
    batch = data.batch(processor)
    assert batch.pixel_values.shape == (2, 3, SIDE, SIDE) and set(batch.extra) == {"token_type_ids"}
    assert torch.equal(batch.inputs()["token_type_ids"], batch.image_mask.long())
    with pytest.raises(InputError, match="'<soft>', which the processor writes; use '<start>'"):
        make(processor, prompt="this <soft> ?")


@pytest.mark.parametrize(
    ("prompt", "template", "message"),
    [
        ("<image> <image> this ?", None, "2 times"),
        ("what <image> ?", "<image> {prompt}", "both hold"),
        ("  ", None, "empty 'prompt'"),
    ],
)
def test_two_placeholders_or_no_prompt_are_refused(
    processor: Any, prompt: str, template: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(processor, prompt=prompt, template=template)


def test_a_text_only_model_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="reads text only, so it cannot be given images; use a vision-language one"):
        make(tiny_tokenizer())


# ---- pictures


def checker() -> np.ndarray:
    return (np.indices((12, 10)).sum(0) % 2 * 255).astype(np.uint8)


def in_mode(mode: str) -> Image.Image:
    grey = Image.fromarray(checker())
    if mode == "P":
        return grey.convert("RGB").quantize(8)
    if mode == "I;16":
        return Image.fromarray(checker().astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(checker().astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray((checker() / 255).astype(np.float32))
    return grey.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
def test_every_mode_gives_the_same_pixels(mode: str) -> None:
    picture = in_mode(mode)
    got = np.asarray(open_picture(picture)).astype(int)
    assert got.shape == (12, 10, 3)
    assert abs(got - checker()[:, :, None].astype(int)).max() <= 3


def test_transparent_parts_become_white() -> None:
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert np.asarray(open_picture(picture)).min() == 255
    palette = Image.new("P", (8, 8), 0)
    palette.info["transparency"] = 0
    assert np.asarray(open_picture(palette)).min() == 255


def test_a_rotated_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    red(20, 30).save(tmp_path / "photo.jpg", exif=exif)
    assert open_picture(tmp_path / "photo.jpg").size == (30, 20)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 1), (16, 16), (300, 7), (700, 500)])
def test_any_size_gives_the_models_own(processor: Any, size: tuple[int, int]) -> None:
    data = make(processor, red(*size))
    batch = data.batch(processor)
    assert batch.pixel_values.shape == (1, 3, SIDE, SIDE)
    colour = torch.tensor([200, 10, 30]) / 255
    mean = torch.tensor(processor.image_processor.image_mean)
    std = torch.tensor(processor.image_processor.image_std)
    expected = ((colour - mean) / std)[None, :, None, None].expand_as(batch.pixel_values)
    torch.testing.assert_close(batch.pixel_values, expected, atol=1e-4, rtol=0)


def png_that_claims(side: int) -> bytes:
    """A PNG of a few bytes whose header says that it has `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "does not exist"),
        (".", "is a folder"),
        ("x" * 300 + ".png", "is no file name"),
        ("pipe", "no ordinary file"),
        ("broken.png", "is broken"),
        ("empty.png", "not an image"),
        ("large.png", "has 12000 x 12000 pixels; scale it down"),
        ("bomb.png", "claims so many pixels"),
        ("text.png", "not an image"),
        (3.5, "is a float"),
        (np.zeros((4, 4)), "array of float64"),
        (Image.new("RGB", (2000, 2)), "crop it"),
        (Image.fromarray(np.full((4, 4), -1, dtype=np.int32)), "grey values from -1 to -1"),
        (None, "has no 'image'"),
    ],
)
def test_what_is_no_usable_image_is_refused_in_a_sentence(
    processor: Any, tmp_path: Path, image: Any, message: str
) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "broken.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(png_that_claims(12000))
    (tmp_path / "bomb.png").write_bytes(png_that_claims(30000))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=message) as caught:
        images_from_samples(processor, [{"id": "mine", "image": image, "prompt": "this ?"}], base_dir=tmp_path)
    assert "mine" in str(caught.value)


def test_arrays_are_taken_as_pictures(processor: Any) -> None:
    array = np.asarray(red())
    assert make(processor, array)[0].pixels == make(processor)[0].pixels


# ---- the dataset


def test_a_batch_is_padded_on_the_left_and_knows_where_the_images_are(processor: Any) -> None:
    rows = [{"image": red(), "prompt": "what is this ?"}, {"image": red(9, 9), "prompt": "this ?"}]
    batch = images_from_samples(processor, rows).batch(processor)
    assert batch.padded and batch.tokens.tolist()[1] == [0, 0, 1, 4, 4, 4, 4, 10, 11]
    assert batch.mask.tolist()[1] == [False, False, *[True] * 7]
    assert batch.image_mask.sum(1).tolist() == [4, 4]
    assert set(batch.inputs()) == {"input_ids", "attention_mask", "pixel_values"}


def test_files_stay_on_disk_and_give_the_same_digest_as_their_pixels(processor: Any, tmp_path: Path) -> None:
    red().save(tmp_path / "a.png")
    from_file = images_from_samples(processor, [{"image": "a.png", "prompt": "this ?"}], base_dir=tmp_path)
    in_memory = images_from_samples(processor, [{"image": red(), "prompt": "this ?"}])
    assert from_file[0].source == tmp_path / "a.png"
    assert from_file.digest() == in_memory.digest()
    assert from_file.meta["samples"][0]["image"] == "a.png"
    torch.testing.assert_close(from_file.batch(processor).pixel_values, in_memory.batch(processor).pixel_values)


def test_the_digest_covers_pixels_prompts_and_answers(processor: Any) -> None:
    other = red()
    other.putpixel((0, 0), (201, 10, 30))
    rows = [{"image": red(), "prompt": "this ?"}, {"image": other, "prompt": "this ?"}]
    rows += [{"image": red(), "prompt": "what ?"}, {"image": red(), "prompt": "this ?", "answer": "yes"}]
    assert len({images_from_samples(processor, [row]).digest() for row in rows}) == 4
    assert pixel_digest(red()) != pixel_digest(red(30, 20))


def test_description_slices_groups_and_table(processor: Any) -> None:
    rows = [
        {"image": red(), "prompt": "this ?", "group": "a", "objects": ["box"]},
        {"image": red(), "prompt": "what ?", "group": "b"},
    ]
    data = images_from_samples(processor, rows, vocabulary=["box"])
    about = data.describe()
    assert about["kind"] == "images" and about["n"] == 2 and about["n_images"] == 1
    json.dumps(about)
    assert len(data[:1]) == 1 and data[:1].vocabulary == ("box",)
    assert [s.objects for s in data] == [("box",), None]
    assert data.only("b")[0].prompt.endswith("what ?")
    with pytest.raises(InputError, match="no group 'c'"):
        data.only("c")
    assert list(data.to_frame()["group"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": red(), "prompt": "this ?", "answer": True}, "quote it in YAML"),
        ({"image": red(), "prompt": "this ?", "objects": "box"}, "list of names"),
        ({"image": red(), "prompt": "this ?", "promt": "x"}, "unknown key 'promt'"),
        ("this ?", "must be a mapping"),
    ],
)
def test_bad_rows_are_named(processor: Any, row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        images_from_samples(processor, [row])


def test_ids_must_differ(processor: Any) -> None:
    row = {"id": "x", "image": red(), "prompt": "this ?"}
    with pytest.raises(InputError, match="share the id 'x'"):
        images_from_samples(processor, [row, row])


# ---- POPE


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pope_layout_with_an_image_folder(processor: Any, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    red().save(folder / "one.png")
    rows = [
        {"question_id": 7, "image": "one.png", "text": "Is there a snowboard in the image?", "label": "yes"},
        {"question_id": 8, "image": "one.png", "text": "Is there an apple in the image?", "label": "no"},
    ]
    file = write_lines(tmp_path / "coco_pope_popular.json", rows)
    data = images_from_file(processor, file.name, images="pictures", base_dir=tmp_path)
    assert [(s.id, s.answer, s.about, s.group) for s in data] == [
        ("7", "yes", "snowboard", "popular"),
        ("8", "no", "apple", "popular"),
    ]
    assert data.name == "coco_pope_popular" and data[0].objects is None
    assert len(images_from_file(processor, file, images=folder, n=1)) == 1


def test_pope_problems_name_the_line(processor: Any, tmp_path: Path) -> None:
    row = {"question_id": 7, "image": "one.png", "text": "Is there a cat?", "label": "perhaps"}
    with pytest.raises(InputError, match=r"Line 1 of .*'yes' or 'no', not 'perhaps'"):
        images_from_file(processor, write_lines(tmp_path / "x.json", [row]))
    with pytest.raises(InputError, match=r"Line 1 of .*one.png' does not exist"):
        images_from_file(processor, write_lines(tmp_path / "x.json", [{**row, "label": "no"}]))
    with pytest.raises(InputError, match=r"images names the file .*x.json"):
        images_from_file(processor, tmp_path / "x.json", images="x.json", base_dir=tmp_path)
    with pytest.raises(InputError, match="must be the folder"):
        images_from_file(processor, tmp_path / "x.json", images=5)
    with pytest.raises(InputError, match=r"image folder .* does not exist"):
        images_from_file(processor, tmp_path / "x.json", images="none", base_dir=tmp_path)


@pytest.mark.skipif(not POPE.exists(), reason="../shared is absent")
@pytest.mark.parametrize("kind", ["random", "popular", "adversarial"])
def test_the_published_questions_load(processor: Any, tmp_path: Path, kind: str) -> None:
    file = POPE / f"coco_pope_{kind}.json"
    first = [json.loads(line) for line in file.read_text().splitlines()[:12]]
    for name in {row["image"] for row in first}:
        red().save(tmp_path / name)
    data = images_from_file(processor, file, images=tmp_path, n=12)
    assert [s.answer for s in data] == [row["label"] for row in first]
    assert all(s.about and s.group == kind for s in data)


# ---- data blocks


def test_data_blocks_with_images_become_image_datasets(processor: Any, tmp_path: Path) -> None:
    red().save(tmp_path / "one.png")
    row = {"image": "one.png", "prompt": "what is this ?"}
    inline = resolve(processor, {"samples": [row], "template": "USER : {prompt}"}, base_dir=tmp_path)
    file = write_lines(tmp_path / "random.jsonl", [{"image": "one.png", "text": "Is there a cat?", "label": "no"}])
    from_file = resolve(processor, {"file": file.name}, base_dir=tmp_path)
    assert isinstance(inline, ImageDataset) and isinstance(from_file, ImageDataset)
    assert inline[0].tokens[:3] == (1, 5, 7) and from_file[0].group == "random"
    assert len(resolve(processor, {"task": "captions", "n": 3})) == 3
    with pytest.raises(InputError, match=r"unknown key 'folder'.*images"):
        resolve(processor, {"samples": [row], "folder": "x"})


def test_a_spec_keeps_absolute_paths_to_its_images(processor: Any, tmp_path: Path) -> None:
    from workbench.experiments.inputs import gather
    from workbench.experiments.spec import build

    (tmp_path / "pictures").mkdir()
    red().save(tmp_path / "pictures" / "one.png")
    rows = [{"question_id": 1, "image": "one.png", "text": "Is there a cat?", "label": "no"}]
    write_lines(tmp_path / "pope_popular.json", rows)
    values = {"name": "x", "analysis": "retrieval", "model": "organism:retrieval"}

    spec = build({**values, "data": {"file": "pope_popular.json", "images": "pictures"}}, source=tmp_path / "spec.yaml")
    data = resolve(processor, gather(spec).data)
    assert isinstance(data, ImageDataset) and (data[0].id, data[0].group) == ("1", "popular")

    row = {"image": "pictures/one.png", "prompt": "this ?"}
    spec = build({**values, "data": {"samples": [row]}}, source=tmp_path / "spec.yaml")
    inlined = gather(spec).data
    assert Path(inlined["samples"][0]["image"]).is_absolute()
    assert resolve(processor, inlined)[0].pixels == pixel_digest(red())  # type: ignore[union-attr]
