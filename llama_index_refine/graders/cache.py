"""Grades that were given before."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

from llama_index.core.schema import BaseNode, QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.asking.loop import holds_a_loop, in_thread, is_ours
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.combining import CombiningGrader, ask, spread_of
from llama_index_refine.images.identity import identity_of
from llama_index_refine.locks import Lock

logger = logging.getLogger(__name__)


class _Entry(NamedTuple):
    grade: float
    spread: float | None


class CachedGrader(CombiningGrader):
    """Asks its teacher only what it has not been asked before: same query, same content and metadata, same teacher.

    Content is text and images, by their bytes wherever they are kept, or by their URL; a query's image is part of it.

    What decides a teacher's grades (class, model, prompt, instruction, see `BaseGrader.fingerprint`) is part of the
    key, so changing any of it misses. Queries that want the same grade at the same time share one call. A missing grade
    is not remembered. A store that fails is as good as an empty one.

    :param teacher: who grades what is not known.
    :param store: any LlamaIndex key-value store: in memory, on disk, Redis and others; None for one in memory.
    :param collection: the store's collection to use.
    """

    def __init__(self, teacher: BaseGrader, store: BaseKVStore | None = None, collection: str = "grades") -> None:
        super().__init__({"": teacher})
        self._store = store if store is not None else SimpleKVStore()
        self._collection = collection
        self._asked: dict[str, Future[_Entry | None]] = {}
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
        keys = await in_thread(_keys, teacher, query, nodes)
        by_key = dict(zip(keys, nodes, strict=True))
        with self._claimed(list(by_key)) as (mine, others):
            known = await self._load(list(mine))
            asked = await self._ask(query, {key: by_key[key] for key in mine if key not in known})
            for key, entry in (known | asked).items():
                mine[key].set_result(entry)
        known |= await _answers(others)
        current_account().charge(cached=sum(key in known for key in keys))
        failed_elsewhere = {key: by_key[key] for key in others if key not in known}
        known |= asked | await self._ask(query, failed_elsewhere)
        entries = [known.get(key) for key in keys]
        return Grades([entry and entry.grade for entry in entries], [entry and entry.spread for entry in entries])

    @contextmanager
    def _claimed(
        self, keys: Sequence[str]
    ) -> Iterator[tuple[dict[str, Future[_Entry | None]], dict[str, Future[_Entry | None]]]]:
        """Split keys into those to look up and ask for here and those that another query has taken on at this moment.

        Who takes a key on saves its grade before giving it up, so that the next one finds it.
        """
        with self._lock:
            others = {} if holds_a_loop() else {key: self._asked[key] for key in keys if key in self._asked}
            mine: dict[str, Future[_Entry | None]] = {key: Future() for key in keys if key not in others}
            owned = {key: future for key, future in mine.items() if key not in self._asked}
            self._asked |= owned
        try:
            yield mine, others
        finally:
            with self._lock:
                for key in owned:
                    del self._asked[key]
            for future in mine.values():
                if not future.done():
                    future.set_result(None)

    async def _ask(self, query: QueryBundle, nodes: dict[str, BaseNode]) -> dict[str, _Entry]:
        grades = await ask(self._teachers[""], query, list(nodes.values()))
        entries = {
            key: _Entry(grade, spread_of(grades, place))
            for place, (key, grade) in enumerate(zip(nodes, grades, strict=True))
            if grade is not None
        }
        await self._save(entries)
        return entries

    async def _load(self, keys: Sequence[str]) -> dict[str, _Entry]:
        try:
            values = await self._each("get", [(key, self._collection) for key in keys])
        except Exception as error:
            logger.warning("The cache could not be read (%s); grading without it", type(error).__name__)
            return {}
        found = zip(keys, map(_entry, values), strict=True)
        return {key: entry for key, entry in found if entry is not None}

    async def _save(self, entries: dict[str, _Entry]) -> None:
        try:
            await self._each("put", [(key, entry._asdict(), self._collection) for key, entry in entries.items()])
        except Exception as error:
            logger.warning("The cache could not be written (%s)", type(error).__name__)

    async def _each(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """Call one of the store's methods several times: its coroutines for coroutines, where it has them."""
        blocking, awaiting = getattr(self._store, method), getattr(self._store, f"a{method}")
        if not is_ours():
            try:
                return await asyncio.gather(*(awaiting(*arguments) for arguments in calls))
            except NotImplementedError:
                pass
        return await in_thread(lambda: [blocking(*arguments) for arguments in calls])


async def _answers(futures: dict[str, Future[_Entry | None]]) -> dict[str, _Entry]:
    """Wait for what other queries asked, at most until this query's deadline."""
    if not futures:
        return {}
    waiting = {key: asyncio.wrap_future(future) for key, future in futures.items()}
    await asyncio.wait(waiting.values(), timeout=current_account().seconds_left())
    return {key: entry for key, future in waiting.items() if future.done() and (entry := future.result()) is not None}


def _keys(teacher: str, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[str]:
    parts = ([teacher, *identity_of(query, node)] for node in nodes)
    return [hashlib.sha256(json.dumps(part).encode()).hexdigest() for part in parts]


def _entry(value: dict[str, object] | None) -> _Entry | None:
    """Read a stored value; whatever is not a grade is a miss."""
    grade, spread = (value or {}).get("grade"), (value or {}).get("spread")
    if not isinstance(grade, (int, float)) or not 0 <= grade <= 1:
        return None
    return _Entry(float(grade), float(spread) if isinstance(spread, (int, float)) else None)
