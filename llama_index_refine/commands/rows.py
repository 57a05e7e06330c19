"""Rows in a file, JSONL or CSV by its name, that is written bit by bit and can be gone on with."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index_refine.lines import defused

# Where some readers of JSON lines end a line, though JSON lets it stand.
_BREAKS = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "\x85\u2028\u2029"})


class Rows:
    """Appends rows to a file, and keeps beside it what run they are of and what is finished.

    The file beside, named as the rows' with .run behind it, has JSON lines: the run, and then an entry for each part of
    the rows, with the length and the digest that the rows have after it. An entry is written before its rows. So
    whatever was cut off in the middle is known for it and dropped, and whatever somebody else wrote is left alone.

    :param path: the file, named .jsonl or .csv.
    :param columns: what a row has.
    :param run: all that decides the rows, as JSON knows it, by what the user calls it.
    :raises ValueError: another name, rows of another run, or a file that is not from this command or was changed since.
    """

    def __init__(self, path: Path, columns: Sequence[str], run: Mapping[str, Any]) -> None:
        if path.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"--out {path} must be named .jsonl or .csv")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"--out {path} is in a folder that does not exist")
        self.path, self.columns, self.run = path, list(columns), dict(run)
        self.beside = path.with_name(path.name + ".run")
        self._entries: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()
        # Rows that are gone are written anew.
        if path.exists():
            self._resume()

    @property
    def done(self) -> list[Any]:
        """What has been finished, as it was noted."""
        return [entry["done"] for entry in self._entries]

    def add(self, rows: Sequence[Mapping[str, Any]], note: Any) -> None:
        """Write rows, and note that they are there.

        :param rows: the rows.
        :param note: what they finish.
        :raises ValueError: somebody else has written into the file since.
        """
        if not self._entries:
            self.beside.write_bytes(_line(self.run))
            self.path.write_bytes(b"")
        elif not self.path.exists() or self.path.stat().st_size != self._size:
            raise ValueError(f"--out {self.path} was changed while rows were written: {self.start_anew()}")
        content = self._written(rows)
        self._digest.update(content)
        entry = {"done": note, "bytes": self._size + len(content), "sha256": self._digest.hexdigest()}
        for path, part in ((self.beside, _line(entry)), (self.path, content)):
            with path.open("ab") as file:
                file.write(part)
        self._entries.append(entry)

    @property
    def _size(self) -> int:
        return self._entries[-1]["bytes"] if self._entries else 0

    def _written(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        if self.path.suffix == ".jsonl":
            lines = [json.dumps(row, ensure_ascii=False).translate(_BREAKS) + "\n" for row in rows]
            return "".join(lines).encode(errors="backslashreplace")
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, self.columns, extrasaction="ignore")
        if not self._entries:
            table.writeheader()
        table.writerows({name: defused(cell) for name, cell in row.items()} for row in rows)
        return text.getvalue().encode(errors="backslashreplace")

    def _resume(self) -> None:
        """Read what is finished, and drop what was begun after it."""
        begun = self._read()
        if begun is None:
            raise ValueError(
                f"--out {self.path} exists, and this command did not write it: remove it, or name another file"
            )
        run, *self._entries = begun
        if different := differences(run, json.loads(json.dumps(self.run))):
            raise ValueError(
                f"--out {self.path} was started with other options: {different}. Give those again to go on, or "
                f"{self.start_anew()}"
            )
        size, whole = self.path.stat().st_size, len(self._entries)
        if self._size > size:
            self._entries.pop()
        with self.path.open("rb") as file:
            left = self._size
            while part := file.read(min(left, 1 << 20)):
                self._digest.update(part)
                left -= len(part)
            rest = file.read() if whole == len(self._entries) else b""
        # A line that does not end has been cut off; whole ones are somebody's.
        if left or b"\n" in rest or (self._entries and self._digest.hexdigest() != self._entries[-1]["sha256"]):
            raise ValueError(f"--out {self.path} was changed since it was written: {self.start_anew()}")
        os.truncate(self.path, self._size)
        os.truncate(self.beside, sum(len(_line(part)) for part in [run, *self._entries]))

    def _read(self) -> list[dict[str, Any]] | None:
        """Return the run and the entries of the file beside, without one that was cut off; None where there is none."""
        lines = self.beside.read_bytes().split(b"\n")[:-1] if self.beside.is_file() else []
        try:
            return [json.loads(line) for line in lines] or None
        except ValueError as error:
            raise ValueError(f"{self.beside} cannot be read: {self.start_anew()}") from error

    def start_anew(self) -> str:
        """Say what to remove."""
        return f"remove {self.path} and {self.beside} to start again"


def differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in what two runs differ.

    :param begun: what decided the rows that are there.
    :param now: what would decide those to come.
    :return: the names that differ, with both values; empty where none does.
    """
    names = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
    return ", ".join(f"{name} was {_shown(begun.get(name))} and is {_shown(now.get(name))}" for name in names)


def digest_of(text: str | bytes) -> str:
    """Return what stands for a text that is long or may be secret."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode(errors="replace")).hexdigest()[:16]


def _shown(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}..."


def _line(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"
