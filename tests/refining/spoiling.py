"""How arguments are spoilt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def put(value: Any, *place: int) -> Callable[[Any], Any]:
    """Return what puts a value into an array."""

    def change(array: Any) -> Any:
        array[place] = value
        return array

    return change
