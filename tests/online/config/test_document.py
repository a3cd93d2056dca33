"""The page of settings is the code's, and is written in plain English."""

import re
from pathlib import Path

import pytest

from online.config.document import page
from online.config.settings import PREFIX, Settings, fixed_values, settable

DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_is_up_to_date():
    assert DOCUMENT.read_text() == page(), "run: python -m online.config.document > docs/settings.md"


def test_the_page_has_each_setting_once_and_no_fixed_value():
    named = re.findall(rf"^\| `{PREFIX}([A-Z0-9_]+)`", page(), re.MULTILINE)
    assert sorted(named) == sorted(name.upper() for name in settable())
    assert not {name.lower() for name in named} & fixed_values().keys()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_description_is_a_sentence_in_plain_english(name):
    what = Settings.model_fields[name].description
    assert re.fullmatch(r"[A-Z].*[.]", what), what
    assert not re.search(r"\b(some|any|no|every)(body|one)\b|\bpe(rson|ople)\b|\bwhoever\b", what), what


@pytest.mark.parametrize(
    ("name", "default", "unit"),
    [
        ("LIST_TTL_S", "`432000`", "seconds"),
        ("MESSAGE_BYTES_MAX", "`65536`", "bytes"),
        ("USERS_HELD", "`100000`", "users"),
        ("ABUSE_CLICKS_PER_MINUTE", "`20`", "clicks per minute"),
        ("CREATE_TOPICS", "`true`", ""),
        ("REDIS_URL", "", ""),
        ("DATA_DIR", "", ""),
    ],
)
def test_a_row_has_the_default_as_a_variable_has_it_and_its_unit(name, default, unit):
    assert f"| `{PREFIX}{name}` | {default} | {unit} | " in page()
