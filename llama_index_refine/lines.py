"""Text files as people have them: UTF-8 with or without a mark, UTF-16, Windows' line ends, spreadsheets' cells."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# What a spreadsheet takes for a formula, and what has been kept from being one.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def defused(cell: Any) -> Any:
    """Keep a spreadsheet from running a cell of a table as a formula. Only texts change."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def as_meant(cell: Any) -> Any:
    """Read what `defused` wrote."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell) else cell


def read_lines(path: Path, name: str = "") -> Iterator[tuple[int, str]]:
    """Read a text file line by line. A line ends with a newline, and with nothing else that Unicode breaks lines at.

    :param path: the file, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
    :param name: the option that names the file, for errors; empty for none.
    :return: each line's number, from 1, and the line without its end.
    :raises ValueError: the file is in another encoding; the message says file, line and option.
    """
    where = f"{name} {path}".strip()
    with path.open("rb") as file:
        begins = file.read(4)
    wide = next((encoding for mark, encoding in _MARKS.items() if begins.startswith(mark)), None)
    number = 0
    try:
        # In bytes, so that the line that cannot be read is known.
        lines: IO[Any] = path.open("rb") if wide is None else path.open(encoding=wide, newline="\n")
        with lines:
            for number, line in enumerate(lines, 1):
                text = line.decode() if isinstance(line, bytes) else line
                if "\0" in text:
                    raise ValueError(f"{where}, line {number} holds NUL characters: save the file as UTF-8")
                # Files that were put together keep the marks that each began with.
                yield number, text.removesuffix("\n").removesuffix("\r").removeprefix("\ufeff")
    except UnicodeError as error:
        # What is decoded by the file fails before its line has a number.
        broken = number if wide is None else number + 1
        raise ValueError(f"{where} is not in UTF-8 at line {broken}: save the file as UTF-8") from error
