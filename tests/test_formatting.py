"""jobs/formatting.py. The inverse of `format_value` is tested with the parsers."""

import pytest

from jobs.formatting import format_duration, format_value, pluralize


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (601, "10 min"), (7500, "2 h 05 min")],
)
def test_duration_has_at_most_two_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 GPUs"), (0.25, "0.25 GPUs"), (1.0, "1 GPU"), (2, "2 GPUs")]
)
def test_plural_agrees_with_number(number, text):
    assert pluralize(number, "GPU") == text


@pytest.mark.parametrize(("value", "text"), [(None, "none"), (10, "10"), ("adam", "adam")])
def test_single_value_is_formatted_as_typed(value, text):
    assert format_value(value) == text
