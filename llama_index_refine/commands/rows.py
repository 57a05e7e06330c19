"""Rows in a file, JSONL or CSV by its name, that is written bit by bit and can be gone on with."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Rows:
    """Appends rows to a file and remembers beside it how far it has come, so that no row is there twice or by half.

    :param path: the file, named .jsonl or .csv.
    :param columns: what a row has.
    :param settings: what the rows were made with, as JSON knows it.
    :raises ValueError: another name, or a file that was begun with other settings, or that is not from this command.
    """

    def __init__(self, path: Path, columns: Sequence[str], settings: Mapping[str, Any]) -> None:
        if path.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"--out {path} must be named .jsonl or .csv")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"--out {path} is in a folder that is not there")
        self.path, self.columns = path, list(columns)
        self.beside = path.with_name(path.name + ".progress.json")
        self.state: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "bytes": 0, "done": []}
        if self.beside.exists():
            kept = json.loads(self.beside.read_text(encoding="utf-8"))
            if kept.get("settings") != self.state["settings"]:
                raise ValueError(
                    f"--out {path} was begun with other options: give those again to go on, or remove it and "
                    f"{self.beside.name} to start anew"
                )
            self.state = kept
        elif path.exists():
            raise ValueError(f"--out {path} is there and not from this command: remove it, or name another file")
        self._cut()

    @property
    def done(self) -> list[Any]:
        """What has been finished, as it was noted."""
        return list(self.state["done"])

    def add(self, rows: Iterable[Mapping[str, Any]], note: Any) -> None:
        """Write rows, and note that they are there.

        :param rows: the rows.
        :param note: what they finish.
        """
        with self.path.open("a", encoding="utf-8", newline="") as file:
            if self.path.suffix == ".csv":
                csv.DictWriter(file, self.columns, extrasaction="ignore").writerows(rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            self.state["bytes"] = file.tell()
        self.state["done"].append(note)
        self._remember()

    def _cut(self) -> None:
        """Drop what was written without being finished."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.truncate(self.state["bytes"])
        if not self.state["bytes"] and self.path.suffix == ".csv":
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns).writeheader()
                file.flush()
                self.state["bytes"] = file.tell()
        self._remember()

    def _remember(self) -> None:
        fresh = self.beside.with_suffix(".tmp")
        fresh.write_text(json.dumps(self.state, ensure_ascii=False), encoding="utf-8")
        fresh.replace(self.beside)
