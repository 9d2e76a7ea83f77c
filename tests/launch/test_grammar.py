"""`--sweep`: one string or several, ranges, brackets and quotes; what cannot be read is refused in a sentence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import InputError
from workbench.launch import grammar


def test_the_forms_of_the_issue() -> None:
    both = {"model": ["organism:a", "organism:b"], "seed": [0, 1, 2, 3, 4]}
    assert grammar.parse(["model=organism:a,organism:b", "seed=0..4"]) == both
    assert grammar.parse(["model=organism:a,organism:b,seed=0..4"]) == both


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("seed=3", {"seed": [3]}),
        ("seed=0..8..4", {"seed": [0, 4, 8]}),
        ("seed=0..2,7", {"seed": [0, 1, 2, 7]}),
        ("params.positions=[0, 1],null", {"params.positions": [[0, 1], None]}),
        ("params.gate=0.5,1e-3,params.fancy=true,false", {"params.gate": [0.5, 0.001], "params.fancy": [True, False]}),
        ("model={path: gpt2, dtype: float32},gpt2", {"model": [{"path": "gpt2", "dtype": "float32"}, "gpt2"]}),
        ('params.template="a,b={prompt}",null', {"params.template": ["a,b={prompt}", None]}),
        ("params.template='seed=1, or so'", {"params.template": ["seed=1, or so"]}),
        ("data.word=it's,o'clock", {"data.word": ["it's", "o'clock"]}),
        (" seed = 0..1 , params.edit = zero , mean ", {"seed": [0, 1], "params.edit": ["zero", "mean"]}),
        ("params.layer=-2..-1", {"params.layer": [-2, -1]}),
    ],
)
def test_values(text: str, axes: dict) -> None:
    assert grammar.parse([text]) == axes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0..4", "write it as key=value"),
        ("sede=0..4", "Did you mean 'seed'"),
        ("params.template=a,b=c", "'b' is no key of a spec. A value that holds '=' is put in quotes"),
        ("seed=0,1,model=gpt2,seed=2", "the axis 'seed' occurs twice"),
        ("seed=1,1", "1 occurs twice"),
        ("seed=0..2,1", "1 occurs twice"),
        ("seed=4..0", "the range '4..0' is empty"),
        ("seed=0..4..0", "is empty"),
        ("seed=0..9999999999", "more than 100000"),
        ("params.gate=0.1..0.5", "ranges are whole numbers"),
        ("seed=", "a value is empty"),
        ("seed=1,,2", "a value is empty"),
        ("params.positions=[0,1", "']' is missing"),
        ("params.positions=0]", "closes nothing"),
        ("params.template='a", '"\'" is missing'),
        ("name=a,b", "named by their values"),
        ("seed.x=1", "no key of a spec"),
        ("model=a=b", "holds '='"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        grammar.parse([text])
    assert says in str(error.value) and text in str(error.value)


TEXT = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=12)
WORD = st.from_regex(r"[a-z][a-z0-9:/_-]{0,12}", fullmatch=True)
VALUE = st.one_of(WORD, TEXT, st.integers(-9, 9), st.booleans(), st.none(), st.lists(st.integers(0, 3)))
KEY = st.sampled_from(["seed", "model", "data.n", "params.edit", "params.a.b", "data.word"])


@given(st.dictionaries(KEY, st.lists(VALUE, min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_is_written_as_json_is_read_back(axes: dict) -> None:
    """Any values, written as JSON: in one string, in several, and as a block of a spec."""
    axes = {key: list({(type(v), json.dumps(v)): v for v in values}.values()) for key, values in axes.items()}
    texts = [
        f"{key}={','.join(json.dumps(value, ensure_ascii=False) for value in values)}" for key, values in axes.items()
    ]
    assert grammar.parse(texts) == axes
    assert grammar.parse([",".join(texts)]) == axes
    if not any(isinstance(value, str) and ".." in value for values in axes.values() for value in values):
        assert grammar.read(axes, "x.yaml") == axes


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        axes = grammar.parse([text])
    except InputError as error:
        assert "\n" not in str(error).replace(text, "")
    else:
        assert axes and all(values for values in axes.values())


def test_blocks_of_spec_files() -> None:
    assert grammar.read({"seed": "0..2", "params.edit": ["zero", "mean"], "data.n": 8}, "x.yaml") == {
        "seed": [0, 1, 2],
        "params.edit": ["zero", "mean"],
        "data.n": [8],
    }
    for block, says in (
        ([1], "is a mapping"),
        ({}, "is a mapping"),
        ({"sede": [1]}, "seed"),
        ({"seed": []}, "no values"),
    ):
        with pytest.raises(InputError, match=says):
            grammar.read(block, "x.yaml")


def test_a_grid_has_a_size() -> None:
    assert grammar.size({"seed": [0, 1, 2], "model": ["a", "b"]}) == 6
    with pytest.raises(InputError, match="1000000 runs"):
        grammar.size({"seed": list(range(1000)), "data.n": list(range(1000))})
