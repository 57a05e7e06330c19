"""What is expensive and kept on disk: embeddings, grades and generated texts."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle
from numpy.typing import NDArray

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.ids import key_of
from llama_index_refine.images.identity import identity_of

_CHUNK = 1024


def default_cache_dir() -> Path:
    """`LLAMA_INDEX_REFINE_CACHE`, or `llama-index-refine` in the user's cache folder."""
    if path := os.environ.get("LLAMA_INDEX_REFINE_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-index-refine"


def cached_vectors(
    folder: Path,
    identity: str,
    texts: Sequence[str],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    advance: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float32]:
    """Embed texts a chunk at a time, keeping each chunk, so that a stopped run goes on where it was.

    :param folder: where to keep them.
    :param identity: names the model and all that changes its vectors.
    :param texts: n texts.
    :param embed: texts to an (n, d) array.
    :param advance: called with the number of texts done after each chunk.
    :return: (n, d) float32.
    """
    digest = hashlib.sha256(json.dumps([identity, _CHUNK, list(texts)]).encode()).hexdigest()[:32]
    chunks = []
    for start in range(0, len(texts), _CHUNK):
        path = folder / "embeddings" / digest / f"{start:08d}.npy"
        part = texts[start : start + _CHUNK]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".tmp.npy")
            np.save(unfinished, np.asarray(embed(part), dtype=np.float32), allow_pickle=False)
            unfinished.replace(path)
        chunks.append(np.load(path, allow_pickle=False))
        advance(len(part))
    return np.concatenate(chunks)


class Answers:
    """Grades and texts by key, in one SQLite file that several runs may share."""

    def __init__(self, path: Path) -> None:
        """:param path: the file; it and its folder are made where missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The answers that are there, by key."""
        found: dict[str, Any] = {}
        with self._open() as database:
            for key in keys:
                if row := database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone():
                    found[key] = json.loads(row[0])
        return found

    def put(self, answers: dict[str, Any]) -> None:
        """Keep answers that JSON can hold, at once."""
        with self._open() as database:
            rows = [(key, json.dumps(answer)) for key, answer in answers.items()]
            database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def _open(self) -> _Connection:
        return _Connection(self._path)


class _Connection:
    """A connection of one thread for one use: committed when all went well, closed in any case."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, timeout=30)

    def __enter__(self) -> sqlite3.Connection:
        return self._database

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._database.commit()
        self._database.close()


class ReplayingGrader(BaseGrader):
    """A teacher that is asked once for each pair of query and document, and whose bill is replayed.

    Where a grade comes from disk, the query's account is charged with what it cost when it was asked for, so that a
    run that goes on after a stop reports the same calls, tokens and seconds. Grades that failed are asked for again.
    """

    def __init__(self, teacher: BaseGrader, answers: Answers) -> None:
        """:param teacher: who grades what is new; :param answers: where the grades are kept."""
        super().__init__()
        self.teacher = teacher
        self.answers = answers
        self.seconds = 0.0

    def fingerprint(self) -> str:
        """The teacher's: what is kept changes no grade."""
        return self.teacher.fingerprint()

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """Grade the nodes, asking the teacher for those that are new."""
        keys, known = self._look_up(query, nodes)
        missing = {key: node for key, node in zip(keys, nodes, strict=True) if key not in known}
        if missing:
            with _Bill() as bill:
                grades = self.teacher.grade(query, list(missing.values()))
            self._keep(list(missing), grades, bill, known)
        return self._replay(keys, known)

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """Grade the nodes, asking the teacher for those that are new."""
        keys, known = self._look_up(query, nodes)
        missing = {key: node for key, node in zip(keys, nodes, strict=True) if key not in known}
        if missing:
            with _Bill() as bill:
                grades = await self.teacher.agrade(query, list(missing.values()))
            self._keep(list(missing), grades, bill, known)
        return self._replay(keys, known)

    def _look_up(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> tuple[list[str], dict[str, Any]]:
        teacher = self.fingerprint()
        keys = [key_of("grade", teacher, *_content(query, node)) for node in nodes]
        return keys, self.answers.get(keys)

    def _keep(self, keys: Sequence[str], grades: Sequence[float | None], bill: _Bill, known: dict[str, Any]) -> None:
        spread = grades.spread if isinstance(grades, Grades) else [None] * len(keys)
        share = [part / len(keys) for part in bill.parts]
        fresh = {
            key: {"grade": grade, "spread": wide, "bill": share}
            for key, grade, wide in zip(keys, grades, spread, strict=True)
            if grade is not None
        }
        self.answers.put(fresh)
        known.update({key: {**entry, "fresh": True} for key, entry in fresh.items()})

    def _replay(self, keys: Sequence[str], known: dict[str, Any]) -> Grades:
        old = [known[key]["bill"] for key in keys if key in known and "fresh" not in known[key]]
        calls, prompt, completion, seconds = (sum(parts) for parts in zip(*old, strict=True)) if old else (0,) * 4
        current_account().charge(round(prompt), round(completion), len(old), round(calls))
        self.seconds += seconds
        entries = [known.get(key, {"grade": None, "spread": None}) for key in keys]
        return Grades([entry["grade"] for entry in entries], [entry["spread"] for entry in entries])


def _content(query: QueryBundle, node: BaseNode) -> list[str]:
    """What decides a grade here; the metadata of a text does not, as data sets have none that a teacher reads."""
    query_str, _, *images = identity_of(query, node)
    return [query_str, node.get_content(MetadataMode.NONE), *images]


class _Bill:
    """What one call of a teacher adds to the account of its query."""

    def __enter__(self) -> _Bill:
        self._account = current_account()
        self._active = self._account.active()
        self._active.__enter__()
        self._before = self._totals()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *failure: Any) -> None:
        seconds = time.perf_counter() - self._started
        after = self._totals()
        self._active.__exit__(*failure)
        self.parts = [*(b - a for a, b in zip(self._before, after, strict=True)), seconds]

    def _totals(self) -> tuple[int, int, int]:
        return self._account.calls, self._account.prompt_tokens, self._account.completion_tokens
