"""How text from outside is shown, and JSON that is safe to print."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from speedkit.cli.text import clean, json_text, one_line, seconds

anything = st.text(st.characters())
UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@given(anything)
def test_clean_text_can_be_shown_and_encoded(text):
    shown = clean(text)
    shown.encode("utf-8")
    assert not UNSHOWN.search(shown)
    assert clean(shown) == shown


@given(anything, st.integers(2, 80))
def test_one_line_is_one_line_and_short(text, limit):
    shown = one_line(text, limit)
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    assert "\t" not in shown


def test_one_line_cuts_visibly():
    assert one_line("\n  a title\nmore") == "a title"
    assert one_line("abcdef", 4) == "abc…"


@given(st.dictionaries(anything, anything))
def test_json_says_the_same_and_can_be_shown(value):
    text = json_text(value)
    text.encode("utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)
    assert json.loads(text) == value


def test_seconds():
    assert seconds(None) is None
    assert seconds(1234.5) == "1.23 s"
