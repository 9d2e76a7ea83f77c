"""What surrounds a prompt: nothing, the tokenizer's own chat template, or a pattern with `{prompt}` in it.

Prompts are plain text unless a template is asked for (`params.template`, or `template:` in a data block). The file
knows tokenizers, and nothing of what the prompts are for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from workbench.errors import InputError

CHAT = "chat"
_SLOT = "{prompt}"
_MARK = "\u2042prompt\u2042"  # stands for the prompt while the chat template is rendered


class Frame(NamedTuple):
    """Text before and after a prompt."""

    before: str = ""
    after: str = ""


def frame(model_or_tokenizer: Any, template: str | None) -> Frame:
    """The text that `template` puts around a prompt.

    Args:
        template: None for nothing, `"chat"` for one user turn of the tokenizer's chat template with the opening of the
            reply after it, or text that holds `{prompt}` once.

    Raises:
        InputError: the tokenizer has no chat template, or the text does not hold `{prompt}` exactly once.
    """
    if template is None:
        return Frame()
    if template == CHAT:
        tokenizer = getattr(model_or_tokenizer, "tokenizer", model_or_tokenizer)
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "template is 'chat', but the tokenizer has no chat template; leave it out, or write one with {prompt}."
            )
        turn = [{"role": "user", "content": _MARK}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        slot = _MARK
    else:
        text, slot = template, _SLOT
    if not isinstance(text, str) or text.count(slot) != 1:
        raise InputError(f"template must be 'chat' or text with {{prompt}} in it once, not {template!r}.")
    return Frame(*text.split(slot))


def framed_tokens(model: Any, text: Any, around: Frame, *, where: str) -> tuple[int, ...]:
    """Token ids of a prompt with what surrounds it.

    Raises:
        InputError: it is blank, no text, all of it is dropped by the tokenizer, or longer than the model's context.
    """
    from workbench.models import encode

    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} must be a text that is not blank, not {text!r}.")
    ids = tuple(encode(model, f"{around.before}{text}{around.after}").ids)
    n_ctx = getattr(model, "n_ctx", None)
    if not ids:
        raise InputError(f"{where}: the tokenizer drops every character of {text!r}; choose another prompt.")
    if n_ctx and len(ids) > n_ctx:
        raise InputError(f"{where} has {len(ids)} tokens, but the model has {n_ctx} positions; shorten the prompt.")
    return ids
