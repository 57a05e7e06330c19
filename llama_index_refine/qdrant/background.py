"""The sample that stands for all the documents that are not graded, and is the same in every run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from qdrant_client import models

from llama_index_refine.qdrant.points import PointId, Points, Vectors, sparse_of
from llama_index_refine.qdrant.requests import Requests, named
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.qdrant.views.sparse import SAMPLE, Words
from llama_index_refine.scheduling import gather

if TYPE_CHECKING:
    from llama_index_refine.qdrant.gateway import Gateway

# Two slices of the collection hold at least so many points for each that is wanted, on average.
SPARE = 1.5
# Qdrant takes some ten thousand ids in a condition without noticing.
MOST_IDS = 5000
# Versions of UUIDs that are random numbers or hashes, whose order says nothing about the documents.
UNIFORM_UUIDS = (3, 4, 5)
# How many matrices the background has: they are large, and more of them hardly change what is found.
FEW = 15

# Takes queries, and returns their points, or None where Qdrant refuses them.
Ask = Callable[..., Awaitable["list[Points] | None"]]


@dataclass(frozen=True)
class Background:
    """A uniform sample of the documents that a filter admits.

    :param vectors: their vectors.
    :param ids: their points.
    :param population: how many documents the filter admits.
    :param words: a larger sample of sparse vectors, None where none are searched.
    """

    vectors: Vectors
    ids: list[Any]
    population: int
    words: Words | None = None

    def unchanged(self, found: Points, query: Query, space: Space) -> bool:
        """Say whether Qdrant's scores are those of these documents as they were.

        :param found: what a search among these points found.
        :param query: what for.
        :param space: what was searched.
        :return: False where a document is gone, its vector is another, or the distance is.
        """
        place = {point: at for at, point in enumerate(self.ids)}
        if {point.id for point in found} != place.keys():
            return False
        scores = [float(getattr(point, "score", 0.0)) for point in found]
        return query.agrees(self.vectors.at([place[point.id] for point in found]), scores, space)


async def drawn(gateway: Gateway, space: Space, size: int, population: int) -> tuple[Points, Words | None]:
    """Draw a sample, and where sparse vectors are searched a larger one of these.

    Matrices are fetched of those points only that are chosen, and they are few.

    :param gateway: asks Qdrant.
    :param space: what is searched.
    :param size: how many points.
    :param population: about how many points the filter admits.
    :return: the points with their vectors, and the larger sample.
    """
    state, requests, written = gateway.state, gateway.state.requests, gateway.everyone()
    some, there = state.limits.condition_max_size, state.points
    if space.multivector:
        size = min(size, FEW, some or FEW)
    if bare := space.multivector and state.may_narrow:
        written = replace(written, brings=False)
    draws = [draw(gateway.sample, written, size, population, there, some)]
    if space.sparse is not None:
        # Qdrant counts terms in all documents, whatever the filter.
        everyone = replace(requests, options=replace(requests.options, filter=None), brings=[space.sparse])
        draws.append(draw(gateway.sample, everyone, SAMPLE, there, there, some))
    points, *wider = [outcome.get() for outcome in await gather("background", draws)]
    if bare and points:
        found = await gateway.sample(requests.listed(len(points), named([point.id for point in points])))
        points = found[0] if found else []
    return points, Words(sparse_of(wider[0], space), there) if wider else None


async def draw(
    ask: Ask, requests: Requests, size: int, population: int, points: int, most_ids: int | None = None
) -> Points:
    """Draw a sample that is the same whenever the collection is, as far as Qdrant can tell one.

    By Qdrant's slices of the id space, which are those of a hash (from 1.19). Without them, of ids that are random
    anyway the first; of numbers, some from their range; else Qdrant's random sample, which differs each time.

    :param ask: asks Qdrant.
    :param requests: writes the queries.
    :param size: how many points.
    :param population: about how many points the filter admits.
    :param points: about how many there are without it.
    :param most_ids: how many ids one condition may hold, None for no limit.
    :return: the points, with vectors.
    """
    total = 1
    while population >= SPARE * size * total:
        total *= 2
    while total >= 4:
        found = await _sliced(ask, requests, size, total)
        if found is None:
            break
        if len(found) >= size:
            return _chosen(found, size)
        # Fewer are admitted than Qdrant thought.
        total //= 4
    return await _without_slices(ask, requests, size, population, points, min(most_ids or MOST_IDS, MOST_IDS))


async def _sliced(ask: Ask, requests: Requests, size: int, total: int) -> Points | None:
    """Return the points of two slices, None where the server does not know slices."""
    if not hasattr(models, "SliceCondition"):
        return None
    halves = [models.SliceCondition(slice=models.Slice(total=total, index=at)) for at in range(2)]
    found = await ask(*(requests.listed(2 * size, half) for half in halves))
    # Over gRPC a server that does not know a condition takes it for none.
    if found is None or {point.id for point in found[0]} & {point.id for point in found[1]}:
        return None
    return [*found[0], *found[1]]


async def _without_slices(
    ask: Ask, requests: Requests, size: int, population: int, points: int, most_ids: int
) -> Points:
    numbers = models.HasIdCondition(has_id=_numbers(size, population, points, most_ids))
    wanted = [requests.listed(3 * size), requests.listed(3 * size, numbers), requests.sample(size)]
    found = await ask(*wanted)
    if found is None:
        # Limits for filters, perhaps.
        found = await ask(wanted[0], wanted[2])
    if found is None:
        return []
    first, random = found[0], found[-1]
    drawn = found[1] if len(found) == len(wanted) else []
    uuids = [UUID(str(point.id)) for point in first if not isinstance(point.id, int)]
    uniform = len(uuids) == len(first) and all(uuid.version in UNIFORM_UUIDS for uuid in uuids)
    if len(first) < 3 * size or uniform:
        return _chosen(first, size)
    return _chosen(drawn, size) if len(drawn) >= size else random


def _numbers(size: int, population: int, points: int, most: int) -> list[PointId]:
    """Draw as many numbers from the range of the ids, if they are numbered through, as should meet enough points."""
    wanted = int(SPARE * size * max(points, 1) / max(population, 1)) + 1
    there = range(max(points, 1) + 1)
    return sorted(Random(0).sample(there, min(wanted, most, len(there))))


def _chosen(points: Points, size: int) -> Points:
    """Choose by a hash, so that neither the order of ids counts nor chance."""
    return sorted(points, key=lambda point: blake2b(str(point.id).encode()).digest())[:size]
