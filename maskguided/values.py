"""Numbers that users give, of whatever library they are."""

from __future__ import annotations

import operator
from typing import Any


def as_whole(value: object) -> int | None:
    """`value` as an int; None where it is no whole number."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def as_number(value: Any) -> float:
    """`value` as a float; NaN where it is no number."""
    try:
        return float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return float("nan")
