"""Values as clients send them: taken where their meaning is plain, left as they are where it is not."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.runner.schemas import fitted, number, shown, unknown, wanted

WHOLE = {"type": "integer", "minimum": 1, "maximum": 20}
NUMBER = {"type": "number"}
FLAG = {"type": "boolean"}
WORD = {"enum": ["low", "out_of_memory"], "type": "string"}
TEXT = {"type": "string", "maxLength": 60}
TEXTS = {"anyOf": [{"type": "array", "items": {"type": "string"}, "maxItems": 10}, {"type": "null"}]}
OBJECT = {"anyOf": [{"type": "object", "additionalProperties": True}, {"type": "null"}]}
FLAG_OR_TEXTS = {"anyOf": [FLAG, {"type": "array", "items": {"type": "string"}}]}


@pytest.mark.parametrize(
    ("sent", "schema", "taken"),
    [
        ("5", WHOLE, 5),
        (" 5 ", WHOLE, 5),
        ("5.0", WHOLE, 5),
        (5.0, WHOLE, 5),
        ("-3", NUMBER, -3),
        ("0.5", NUMBER, 0.5),
        (".5", NUMBER, 0.5),
        ("1e-3", NUMBER, 0.001),
        ("true", FLAG, True),
        ("False", FLAG, False),
        ("YES", FLAG, True),
        ("off", FLAG, False),
        ("0", FLAG, False),
        (1, FLAG, True),
        ("LOW", WORD, "low"),
        ("Out of memory", WORD, "out_of_memory"),
        ("out-of-memory ", WORD, "out_of_memory"),
        ('["a", "b"]', TEXTS, ["a", "b"]),
        ("gqa", TEXTS, ["gqa"]),
        ('{"a": 1}', OBJECT, {"a": 1}),
        ("true", FLAG_OR_TEXTS, True),
        ("warmup", FLAG_OR_TEXTS, ["warmup"]),
        ('["warmup"]', FLAG_OR_TEXTS, ["warmup"]),
    ],
)
def test_what_is_plain_is_taken_in_the_type_of_the_schema(sent: Any, schema: dict[str, Any], taken: Any) -> None:
    found = fitted(sent, schema)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("sent", "schema"),
    [
        ("1.5", WHOLE),
        (1.5, WHOLE),
        ("abc", NUMBER),
        ("1,5", NUMBER),
        ("1,000", NUMBER),
        ("1_000", WHOLE),
        ("nan", NUMBER),
        ("1e999", NUMBER),
        ("0x10", WHOLE),
        ("٣", WHOLE),
        ("maybe", FLAG),
        (2, FLAG),
        (True, WHOLE),
        ("lowest", WORD),
        ("{", OBJECT),
        ("[1]", OBJECT),
        ('{"a": 1}', TEXTS),
        (5, TEXTS),
        ("[" * 100_000, TEXTS),
        (5, TEXT),
    ],
)
def test_what_is_not_plain_stays_as_it_was_sent(sent: Any, schema: dict[str, Any]) -> None:
    assert fitted(sent, schema) is sent


@given(st.text())
def test_text_stays_text_where_text_is_wanted(text: str) -> None:
    assert fitted(text, TEXT) is text
    assert fitted(text, {"anyOf": [{"type": "string"}, {"type": "null"}]}) is text


@given(st.one_of(st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_number_sent_as_text_is_the_same_number(value: float) -> None:
    assert number(json.dumps(value)) == value


@given(st.text(alphabet="0123456789.eE+- nanif_,", max_size=60))
def test_any_text_is_a_finite_number_or_none(text: str) -> None:
    found = number(text)
    assert found is None or (math.isfinite(found) and math.isclose(found, float(text)))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (WHOLE, "a whole number from 1 to 20"),
        ({"type": "number", "exclusiveMinimum": 0}, "a number above 0"),
        ({"type": "integer", "minimum": 0}, "a whole number of at least 0"),
        (WORD, "one of low, out_of_memory"),
        (TEXT, "text of at most 60 characters"),
        (TEXTS, "a list of texts of at most 10 items"),
        (FLAG_OR_TEXTS, "true or false or a list of texts"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "string"}]}, "a number or text"),
    ],
)
def test_a_schema_is_said_in_plain_words(schema: dict[str, Any], words: str) -> None:
    assert wanted(schema) == words


def test_a_value_is_shown_short() -> None:
    assert shown("x" * 500) == f'"{"x" * 60}"… (500 characters)'
    assert shown(10**400) == "a number with over 60 digits"
    assert [shown(each) for each in (None, True, [1], {}, 1.5)] == [
        "null",
        "true",
        "a list of 1 item",
        "an object",
        "1.5",
    ]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert (
        unknown("serch", ["search", "trace"], "tool")
        == 'no tool "serch"; did you mean search? Choose from search, trace'
    )
    assert unknown("zzz", ["search"], "tool") == 'no tool "zzz"; there is search'
