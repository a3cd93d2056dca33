"""A filter is read as it says, or refused with the place and what was expected there; nothing else ever happens."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from online.filters.expression import (
    DEPTH_MAX,
    LITERALS_MAX,
    And,
    Available,
    Compare,
    Contains,
    In,
    Missing,
    Not,
    Or,
    Tags,
    leaves,
    parse,
)
from online.filters.tokens import LENGTH_MAX, FilterError
from tests.online.filters.strategies import filters

WORDS = (
    *("and", "or", "not", "in", "any", "all", "none", "contains", "missing", "true", "false", "available", "tags"),
    *("(", ")", ",", "==", "=", "!=", "<", "<=", ">", ">=", "price", "`a b`", '"a"', "'b'", "20", "-1.5e3"),
    *('"', "`", "\\", "-", ".", "1e999", "20x", "é", "\x00", "\ud800", "²", ";", "!"),
)


def error(text):
    with pytest.raises(FilterError) as raised:
        parse(text)
    return raised.value


def refusal(text):
    """None: it is read. Any other exception fails the test."""
    try:
        parse(text)
    except FilterError as wrong:
        return wrong
    return None


def test_each_part_of_the_language_is_read():
    text = (
        'price <= 20 and brand in ("a", \'b\') and tags any ("tea", "coffee") and not tags all ("x", "y") '
        'and available and title contains "kettle" and (organic or missing(`odd name`) or size not in (1, true))'
    )
    assert parse(text).root == And((
        Compare("price", "<=", 20.0),
        In("brand", ("a", "b")),
        Tags("any", ("tea", "coffee")),
        Not(Tags("all", ("x", "y"))),
        Available(),
        Contains("title", "kettle"),
        Or((Compare("organic", "==", True), Missing("odd name"), Not(In("size", (1.0, True))))),
    ))  # fmt: skip


def test_and_binds_closer_than_or_and_not_closer_than_and():
    assert parse("a or b and c") == parse("a or b and c")
    assert parse("a or b and c").root == parse("a or (b and c)").root
    assert parse("not a and b").root == parse("(not a) and b").root
    assert parse("not a or b").root != parse("not (a or b)").root


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("", 1, "an attribute, 'tags', 'available', 'missing', 'not' or '('"),
        ("   ", 1, "an attribute, 'tags', 'available', 'missing', 'not' or '('"),
        ("price <=", 9, "a number, a text, 'true' or 'false'"),
        ("price <= and", 10, "a number, a text, 'true' or 'false'"),
        ("price < true", 9, "a number or a text"),
        ("price ! 3", 7, "a name, a value, an operator or a parenthesis"),
        ("price 3", 7, "a comparison (== != < <= > >= in contains), 'and', 'or' or the end"),
        ("price < 3 4", 11, "'and', 'or' or the end"),
        ("a AND b", 3, "a comparison (== != < <= > >= in contains), 'and', 'or' or the end"),
        ("(a or b", 8, "'and', 'or' or ')'"),
        ("a)", 2, "'and', 'or' or the end"),
        ("a and", 6, "an attribute, 'tags', 'available', 'missing', 'not' or '('"),
        ("brand in 'a'", 10, "'('"),
        ("brand in ()", 11, "a number, a text, 'true' or 'false'"),
        ("brand in ('a' 'b')", 15, "',' or ')'"),
        ("brand in ('a',)", 15, "a number, a text, 'true' or 'false'"),
        ("brand not 'a'", 11, "'in'"),
        ("brand = 'a", 9, "a closing '"),
        ("`odd", 1, "a closing `"),
        ("price < 1e999", 9, "a smaller number"),
        ("price < 20x", 9, "a number"),
        ("title contains kettle", 16, "a text in quotes"),
        ("tags ('a')", 6, "'any', 'all' or 'none'"),
        ("tags any (3)", 11, "a text in quotes"),
        ("tags = 'a'", 6, "'any', 'all' or 'none'"),
        ("`tags` = 'a'", 1, "an attribute"),
        ("missing price", 9, "'('"),
        ("missing(available)", 9, "an attribute"),
        ("missing(`tags`)", 9, "an attribute"),
        ("available = true", 11, "'and', 'or' or the end"),
    ],
)
def test_an_error_names_the_place_and_what_was_expected(text, position, expected):
    wrong = error(text)
    assert (wrong.position, wrong.expected) == (position, expected)
    assert str(wrong).startswith(f"at character {position}: ")


def test_an_error_shows_what_was_found():
    assert str(error("price <= )")) == "at character 10: expected a number, a text, 'true' or 'false', found ')'"
    assert "found the end" in str(error("price <="))
    assert len(str(error("price " + "x" * 3_000))) < 200


def test_length_depth_and_number_of_values_are_limited():
    parse("a" + " " * (LENGTH_MAX - 1))
    assert "characters; at most" in str(error("a" + " " * LENGTH_MAX))
    within = DEPTH_MAX - 1
    parse("(" * within + "a" + ")" * within)
    parse("not " * within + "a")
    for text in ("(" * DEPTH_MAX + "a" + ")" * DEPTH_MAX, "not " * DEPTH_MAX + "a", "(" * (LENGTH_MAX - 1)):
        assert "within one another" in str(error(text))
    parse(f"a in ({', '.join(['1'] * LITERALS_MAX)})")
    assert f"more than {LITERALS_MAX} values" in str(error(f"a in ({', '.join(['1'] * (LITERALS_MAX + 1))})"))
    assert f"more than {LITERALS_MAX} values" in str(error(" or ".join(["a=1"] * (LITERALS_MAX + 1))))
    parse(" or ".join(["a"] * 700))  # side by side is not within one another


@given(filters)
def test_every_filter_of_the_grammar_is_read(text):
    assert parse(text).root == parse(f" ( {text}\n) ").root
    assert list(leaves(parse(text).root))


@settings(max_examples=500)
@given(st.text(max_size=80) | st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
@example("(" * LENGTH_MAX)
@example("not " * 900)
@example("9" * LENGTH_MAX)
@example('"\\')
def test_no_text_does_anything_but_be_read_or_be_refused(text):
    wrong = refusal(text)
    if wrong is not None:
        assert 0 < len(str(wrong)) < 300
        assert wrong.position is None or 1 <= wrong.position <= len(text) + 1


@given(filters, st.integers(0, 200), st.sampled_from(WORDS))
def test_a_filter_with_a_word_put_in_anywhere_is_read_or_refused(text, at, word):
    wrong = refusal(text[:at] + word + text[at:])
    assert wrong is None or wrong.position


KINDS = {"price": {"number"}, "brand": {"text"}, "organic": {"boolean"}, "mixed": {"number", "text"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prise < 3", "at character 1: no item has an attribute 'prise'; did you mean 'price'?"),
        ("price < 3 and zzz", "at character 15: no item has an attribute 'zzz'"),
        ("missing(brant)", "at character 9: no item has an attribute 'brant'; did you mean 'brand'?"),
        ("`Tags`", "at character 1: no item has an attribute 'Tags'; did you mean 'tags'?"),
        ("brand < 3", "at character 1: 'brand' has text in every item, not numbers"),
        ("price", "at character 1: 'price' has numbers in every item, not true or false"),
        ("organic contains 'x'", "at character 1: 'organic' has true or false in every item, not text"),
        ("price in ('a', true)", "at character 1: 'price' has numbers in every item, not text and true or false"),
        ("title < 3", "at character 1: 'title' has text in every item, not numbers"),
    ],
)
def test_an_attribute_that_no_item_has_like_that_is_named(text, said):
    with pytest.raises(FilterError) as raised:
        parse(text).check(KINDS)
    assert str(raised.value) == said


def test_a_filter_over_what_items_have_is_accepted():
    text = "price < 3 and brand in ('a', 3) and organic and mixed = 'x' and title = '' and missing(tags)"
    parse(text + " and missing(title)").check(KINDS)
    parse("title = 'a' or tags any ('never seen') or available").check({})
