"""A prompt with a place for an image: which placeholder a processor uses, and the token ids it makes of the two.

LLaVA writes `<image>` where the image goes and repeats it once per patch; Gemma 3 writes `<start_of_image>` and puts
markers around. Here the model's own processor does that, and what comes out has the shape the workbench relies on: BOS
once, one image, one contiguous span. It knows nothing of datasets or of what is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.errors import InputError
from workbench.tasks.template import CHAT, frame

if TYPE_CHECKING:
    from PIL.Image import Image


class Placeholder(NamedTuple):
    """How a processor is told where the image goes."""

    processor: Any
    text: str  # what stands in the prompt
    token_id: int  # what the model sees once per image token
    pad: int
    bos: int | None
    n_ctx: int | None
    token_types: bool  # whether the model wants to be told which tokens are the image


def placeholder(model: Any) -> Placeholder:
    """The placeholder of a `Model` with a processor, or of a processor.

    Raises:
        InputError: it takes no images, or its processor could not be loaded.
    """
    from workbench.models import bos_id

    processor = getattr(model, "processor", None)
    if processor is None and getattr(model, "image_processor", None) is not None:
        processor = model
    tokenizer = getattr(processor, "tokenizer", None)
    if getattr(processor, "image_processor", None) is None or tokenizer is None:
        name = getattr(model, "name", None) or type(model).__name__
        sees = bool(getattr(getattr(getattr(model, "bridge", None), "cfg", None), "is_multimodal", False))
        remedy = (
            "pass processor=... to load_model" if sees else "use a vision-language one, such as 'organism:captions'"
        )
        reason = "was loaded without its processor" if sees else "reads text only"
        raise InputError(f"The model {name!r} {reason}, so it cannot be given images; {remedy}.")
    text = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
    token_id = _image_token_id(model, processor, text)
    if token_id is None or text is None:
        raise InputError(
            f"The processor {type(processor).__name__} does not say which token stands for an image (no image_token); "
            "use a LLaVA- or Gemma-3-like model."
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Placeholder(
        processor=processor,
        text=str(text),
        token_id=int(token_id),
        pad=int(pad or 0),
        bos=bos_id(tokenizer),
        n_ctx=getattr(model, "n_ctx", None),
        token_types="token_type_ids" in (getattr(processor, "model_input_names", None) or ()),
    )


def _image_token_id(model: Any, processor: Any, text: str | None) -> int | None:
    """What the model looks for: as its configuration says, else its tokenizer (Gemma 3), else its processor."""
    config = getattr(getattr(model, "hf", None), "config", None)
    for holder in (config, processor.tokenizer, processor):
        for attribute in ("image_token_id", "image_token_index"):
            if isinstance(getattr(holder, attribute, None), int):
                return getattr(holder, attribute)
    return None if text is None else processor.tokenizer.convert_tokens_to_ids(text)


def tokenised(
    slot: Placeholder, prompt: str, picture: Image, *, template: str | None, where: str
) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """The prompt's whole text, its token ids, and the span of the image in them."""
    text = _framed(slot, prompt, template, where)
    try:
        made = slot.processor(images=[picture], text=[text], add_special_tokens=False, return_tensors=None)
    except Exception as error:  # processors raise what they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(
            f"{where}: {type(slot.processor).__name__} cannot use this image of {picture.width} x {picture.height} "
            f"pixels with this prompt ({reason}); try another one."
        ) from error
    ids = [int(i) for i in made["input_ids"][0]]
    if slot.bos is not None and ids[:1] != [slot.bos]:
        ids = [slot.bos, *ids]
    at = [i for i, token in enumerate(ids) if token == slot.token_id]
    if not at or at[-1] - at[0] + 1 != len(at):
        raise InputError(
            f"{where}: the processor made {len(at)} image tokens, not all in one place; the image must be one span."
        )
    if slot.n_ctx and len(ids) > slot.n_ctx:
        raise InputError(
            f"{where} has {len(ids)} tokens, {len(at)} of them the image, but the model has {slot.n_ctx} positions; "
            "shorten the prompt."
        )
    return text, tuple(ids), (at[0], at[-1] + 1)


def _framed(slot: Placeholder, prompt: str, template: str | None, where: str) -> str:
    """Template and placeholder around the prompt; the placeholder is kept where the prompt or the template has it."""
    written = slot.processor.tokenizer.convert_ids_to_tokens(slot.token_id)
    count = prompt.count(slot.text)
    if count > 1:
        raise InputError(f"{where}: the prompt has {slot.text!r} {count} times; one image takes it once.")
    if written != slot.text and written in prompt:
        raise InputError(f"{where}: the prompt holds {written!r}, which the processor writes; use {slot.text!r}.")
    if template == CHAT and not count and getattr(slot.processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        turn = [{"role": "user", "content": content}]
        text = slot.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if text.count(slot.text) == 1:
            return text
    before, after = frame(slot.processor.tokenizer, template)
    n_in_frame = (before + after).count(slot.text)
    if n_in_frame + count > 1:
        raise InputError(f"{where}: prompt and template both hold {slot.text!r}; take it out of one of them.")
    if n_in_frame + count:
        return f"{before}{prompt}{after}"
    gap = "\n" if slot.text == written else ""  # markers of its own bring their own blank lines
    return f"{before}{slot.text}{gap}{prompt}{after}"
