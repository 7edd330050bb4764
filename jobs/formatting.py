"""Numbers, durations and settings as text."""

import json
from typing import Any


def pluralize(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Formats a duration in one unit or two: `45 min`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"


def format_value(value: Any) -> str:
    """Formats a setting as it is typed on the command line: the inverse of cli.py's parsers."""
    if isinstance(value, tuple) and value and isinstance(value[0], int):
        ranges: list[list[int]] = []
        for number in value:
            if ranges and number == ranges[-1][-1] + 1:
                ranges[-1][1:] = [number]
            else:
                ranges.append([number])
        return ",".join("-".join(map(str, bounds)) for bounds in ranges)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def format_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Describes in which settings a run (old) and a command (new) differ; empty if in none."""
    new = json.loads(json.dumps(new))  # lists instead of tuples, as in the run's file
    return ", ".join(
        f"{name}: {_format_setting(old, name)} there, {_format_setting(new, name)} here"
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    )


def _format_setting(settings: dict[str, Any], name: str) -> str:
    if name not in settings:
        return "unknown"
    value = settings[name]
    return format_value(tuple(value) if isinstance(value, list) else value)
