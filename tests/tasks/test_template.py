"""Templates surround prompts in every form of data, and spans still point at the needle."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_tokenizer
from workbench import tasks
from workbench.errors import InputError
from workbench.models import encode
from workbench.tasks.template import frame

CHAT = "{% for m in messages %}key : {{ m['content'] }} . {% endfor %}{% if add_generation_prompt %}house :{% endif %}"
SAMPLE = {"prompt": "the red cat ran to Paris . where", "needle": "Paris"}


def tokenizer(chat=None):
    made = tiny_tokenizer()
    made.chat_template = chat
    return made


def test_no_template_adds_nothing():
    assert frame(tokenizer(), None) == ("", "")


@pytest.mark.parametrize("template", ["key : {prompt} . house :", "chat"])
def test_samples_are_framed_and_the_span_follows(template):
    tok = tokenizer(CHAT)
    (sample,) = tasks.from_samples(tok, [SAMPLE], template=template)
    assert list(sample.tokens) == encode(tok, f"key : {SAMPLE['prompt']} . house :").ids
    assert tok.decode(list(sample.needle_tokens)) == "Paris"


def test_pairs_are_framed():
    tok = tokenizer()
    rows = [{"clean": "the cat ran", "corrupted": "the dog ran", "answer": " in", "wrong": " to"}]
    (pair,) = tasks.resolve(tok, {"pairs": rows}, template="what ? {prompt}")
    assert list(pair.clean) == encode(tok, "what ? the cat ran").ids


def test_the_needle_task_keeps_its_length_with_a_template():
    from transformers import AutoTokenizer

    from workbench.organisms import path

    tok = AutoTokenizer.from_pretrained(path("retrieval"))
    plain = tasks.needle(tok, 4, lengths=96)
    framed = tasks.needle(tok, 4, lengths=96, template="The road was long. {prompt} the")
    assert {len(s.tokens) for s in framed} == {96}
    assert framed.digest() != plain.digest()
    for sample in framed:
        assert tok.decode(list(sample.needle_tokens)) == sample.needle_text
        assert sample.tokens[-1] == encode(tok, "the").ids[-1]
        assert list(sample.tokens[:5]) == encode(tok, "The road was long").ids


@pytest.mark.parametrize("template", ["no slot", "{prompt} {prompt}", ""])
def test_a_template_without_exactly_one_slot_is_refused(template):
    with pytest.raises(InputError, match="template must be"):
        frame(tokenizer(), template)


def test_chat_needs_a_chat_template():
    with pytest.raises(InputError, match="no chat template"):
        tasks.from_samples(tokenizer(), [SAMPLE], template="chat")
