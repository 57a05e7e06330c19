"""Grades that were given before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

from llama_index.core.schema import BaseNode, QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.asking.loop import holds_a_loop, in_thread, is_ours
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.combining import CombiningGrader, ask
from llama_index_refine.ids import key_of
from llama_index_refine.images.identity import identity_of
from llama_index_refine.locks import Lock

logger = logging.getLogger(__name__)


class _Entry(NamedTuple):
    grade: float
    spread: float | None


# What one query has asked for, where others want the same at that time.
_Asked = Future[dict[str, _Entry]]


class CachedGrader(CombiningGrader):
    """Asks its teacher only what it was not asked before: the same query, the same content and metadata.

    Content is text and images, by their bytes wherever they are kept, or by their URL; a query's image is part of it.

    What decides a teacher's grades (class, model, prompt, instruction, see `BaseGrader.fingerprint`) is part of the
    key, so if you change any of it, the teacher is asked again. Queries that want the same grade at the same time share
    one call. A missing grade is not remembered. If the store fails, the teacher is asked.

    :param teacher: who grades what is not known.
    :param store: any LlamaIndex key-value store: in memory, on disk, Redis and others; None for one in memory.
    :param collection: the store's collection to use.
    """

    def __init__(self, teacher: BaseGrader, store: BaseKVStore | None = None, collection: str = "grades") -> None:
        super().__init__({"": teacher})
        self._store = store if store is not None else SimpleKVStore()
        self._collection = collection
        self._asked: dict[str, _Asked] = {}
        self._lock = Lock()

    def fingerprint(self) -> str:
        """See `BaseGrader.fingerprint`. A cache changes no grade."""
        return self._teachers[""].fingerprint()

    def memory_fingerprint(self) -> str:
        """See `BaseGrader.memory_fingerprint`. A cache changes no grade."""
        return self._teachers[""].memory_fingerprint()

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        teacher = self.fingerprint()
        # Files of images are read for this.
        keys = await in_thread(lambda: [key_of(teacher, *identity_of(query, node)) for node in nodes])
        by_key = dict(zip(keys, nodes, strict=True))
        own: _Asked = Future()
        with self._lock:
            others = {} if holds_a_loop() else {key: self._asked[key] for key in by_key if key in self._asked}
            mine = [key for key in by_key if key not in others]
            self._asked.update(dict.fromkeys(mine, own))
        known: dict[str, _Entry] = {}
        asked: dict[str, _Entry] = {}
        try:
            known = await self._load(mine)
            asked = await self._ask(query, {key: by_key[key] for key in mine if key not in known})
        finally:
            # What was graded is saved by now, so that whoever comes next finds it.
            with self._lock:
                for key in [key for key in mine if self._asked.get(key) is own]:
                    del self._asked[key]
            own.set_result(known | asked)
        known |= await _answers(others)
        current_account().charge(cached=sum(key in known for key in keys))
        failed_elsewhere = {key: by_key[key] for key in others if key not in known}
        known |= asked | await self._ask(query, failed_elsewhere)
        entries = [known.get(key) for key in keys]
        return Grades([entry and entry.grade for entry in entries], [entry and entry.spread for entry in entries])

    async def _ask(self, query: QueryBundle, nodes: dict[str, BaseNode]) -> dict[str, _Entry]:
        grades = await ask(self._teachers[""], query, list(nodes.values()))
        entries = {
            key: _Entry(grade, spread)
            for key, grade, spread in zip(nodes, grades, grades.spread, strict=True)
            if grade is not None
        }
        await self._save(entries)
        return entries

    async def _load(self, keys: Sequence[str]) -> dict[str, _Entry]:
        values = await self._each("get", [(key, self._collection) for key in keys])
        return {key: entry for key, value in zip(keys, values, strict=False) if (entry := _entry(value)) is not None}

    async def _save(self, entries: dict[str, _Entry]) -> None:
        await self._each("put", [(key, entry._asdict(), self._collection) for key, entry in entries.items()])

    async def _each(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """Call one of the store's methods several times: its coroutines for coroutines, where it has them.

        :return: the results; none where the store fails.
        """
        blocking, awaiting = getattr(self._store, method), getattr(self._store, f"a{method}")
        try:
            if not is_ours():
                with suppress(NotImplementedError):
                    return await asyncio.gather(*(awaiting(*arguments) for arguments in calls))
            return await in_thread(lambda: [blocking(*arguments) for arguments in calls])
        except Exception as error:
            done = "read" if method == "get" else "written"
            logger.warning("The cache could not be %s (%s); grading without it", done, type(error).__name__)
            return []


async def _answers(asked: dict[str, _Asked]) -> dict[str, _Entry]:
    """Wait for what other queries asked, at most until this query's deadline."""
    waiting = [asyncio.wrap_future(future) for future in set(asked.values())]
    if waiting:
        await asyncio.wait(waiting, timeout=current_account().seconds_left())
    answers = {key: future.result() for key, future in asked.items() if future.done()}
    return {key: entries[key] for key, entries in answers.items() if key in entries}


def _entry(value: object) -> _Entry | None:
    """Read a stored value; whatever is not a grade is a miss."""
    kept = value if isinstance(value, dict) else {}
    grade, spread = kept.get("grade"), kept.get("spread")
    if not isinstance(grade, (int, float)) or not 0 <= grade <= 1:
        return None
    return _Entry(float(grade), float(spread) if isinstance(spread, (int, float)) else None)
