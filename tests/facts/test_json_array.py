from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from betaedit.errors import FactError
from betaedit.facts.json_array import array_items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def in_blocks(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def error_of(text: str, size: int) -> FactError:
    with pytest.raises(FactError) as caught:
        list(array_items(iter(in_blocks(text, size))))
    assert "one array [...] of records" in caught.value.hint
    return caught.value


@settings(max_examples=50)
@given(st.lists(VALUES, max_size=5), st.integers(1, 40), st.sampled_from([None, 0, 2]))
def test_an_array_is_read_as_json_reads_it_however_it_is_cut(values: list[object], size: int, indent: int | None):
    text = json.dumps(values, indent=indent)
    assert list(array_items(iter(in_blocks(text, size)))) == values


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("text", ["[10.0]", "[1e5, -2.5E-3]", "[-0.0,1E+2 ]", "[1.5e10]"])
def test_a_number_is_read_whole_wherever_it_is_cut(text: str, size: int):
    assert list(array_items(iter(in_blocks(text, size)))) == json.loads(text)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1.x]",
        "[1.]",
        "[1e]",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[1 2]",
        '[\n{"a": 1},\n{"a" 2}\n]',
        "[1]\n]",
        "[tru]",
        '["a\nb"]',
        '[1,\n"a',
    ],
)
def test_broken_json_is_told_as_json_tells_it(text: str, size: int):
    with pytest.raises(json.JSONDecodeError) as told:
        json.loads(text)
    error = error_of(text, size)
    assert error.line == told.value.lineno
    assert error.message == f"this is not JSON: {told.value.msg} at column {told.value.colno}."


@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_array_is_told(size: int):
    assert error_of('{"a": 1}', size).message == "this is an object, not an array."
    assert error_of('{"a": 1}\n{"a": 2}', size).line == 2


def test_elements_before_a_break_are_given():
    items = array_items(iter(['[1, {"a"', ': 2}, {"b"']))
    assert [next(items), next(items)] == [1, {"a": 2}]
    with pytest.raises(FactError):
        next(items)


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize(
    "twice", ['{"a": 1, "a": 1}', '{"b": [{"a": {}, "c": 2, "a": null}]}', '{"a": 1, "b": 2, "a": 3}']
)
def test_an_element_in_which_a_key_comes_twice_is_an_error_and_the_next_is_read(twice: str, size: int):
    first, error, last = array_items(iter(in_blocks(f'[{{"a": 1}}, {twice}, {{"a": {{"a": 2}}}}]', size)))
    assert (first, last) == ({"a": 1}, {"a": {"a": 2}})
    assert "the key 'a' occurs twice" in str(error)


def test_one_object_in_which_a_key_comes_twice_is_refused():
    with pytest.raises(FactError, match="the key 'a' occurs twice"):
        list(array_items(iter(['{"a": 1, "a": 2}'])))
