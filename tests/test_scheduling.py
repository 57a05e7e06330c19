from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from llama_index_refine.scheduling import arun, gather, perform, run


class Doubling:
    """Doubles numbers, and keeps how many it was handed at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        self.sizes.append(len(items))
        return [item if isinstance(item, BaseException) else 2 * item for item in items]

    async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
        await asyncio.sleep(0)
        return self.run(items)


@pytest.fixture(params=["run", "arun"])
def runner(request):
    return run if request.param == "run" else lambda works: asyncio.run(arun(works))


async def doubled(operation: Doubling, item: Any, times: int = 1) -> Any:
    for _ in range(times):
        item = await perform("double", operation, item)
    return item


def test_what_waits_for_the_same_is_handed_over_together(runner):
    operation = Doubling()
    outcomes = runner([doubled(operation, number, times=1 + number % 2) for number in range(4)])
    assert [one.get() for one in outcomes] == [0, 4, 4, 12]
    assert operation.sizes == [4, 2]
    assert all(set(one.seconds) == {"double"} for one in outcomes)


def test_parts_travel_like_so_many_queries(runner):
    operation = Doubling()

    async def split(numbers: list[int]) -> int:
        outcomes = await gather("parts", [doubled(operation, number, 2) for number in numbers])
        return sum(one.get() for one in outcomes)

    outcomes = runner([split([1, 2]), split([3]), doubled(operation, 5, 2)])
    assert [one.get() for one in outcomes] == [12, 12, 20]
    assert operation.sizes == [4, 4]
    assert set(outcomes[0].seconds) == {"parts"}


def test_parts_may_have_parts_and_none(runner):
    operation = Doubling()

    async def nested() -> list[Any]:
        inner = gather("inner", [doubled(operation, 1)])
        return [one.result for one in await gather("outer", [inner, gather("none", [])])]

    (outcome,) = runner([nested()])
    (one,) = outcome.get()[0]
    assert one.get() == 2
    assert outcome.get()[1] == []


def test_each_failure_is_its_own(runner):
    operation = Doubling()
    outcomes = runner([doubled(operation, 1), doubled(operation, ValueError("no")), doubled(operation, 3)])
    assert outcomes[0].get() == 2
    assert outcomes[2].get() == 6
    with pytest.raises(ValueError, match="no"):
        outcomes[1].get()


def test_a_failure_can_be_caught(runner):
    async def careful() -> str:
        try:
            await perform("double", Doubling(), ValueError("no"))
        except ValueError as error:
            return f"caught {error}"
        return "nothing to catch"

    assert runner([careful()])[0].get() == "caught no"


def test_a_request_that_cancels_itself_cancels_nothing_else(runner):
    operation = Doubling()
    outcomes = runner([doubled(operation, asyncio.CancelledError()), doubled(operation, 2)])
    assert outcomes[1].get() == 4
    with pytest.raises(RuntimeError, match="cancelled"):
        outcomes[0].get()


def test_an_operation_that_fails_as_a_whole_fails_for_all_that_wait_for_it(runner):
    class Broken:
        def run(self, items: Sequence[Any]) -> Sequence[Any]:
            raise OSError("gone")

        async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
            return self.run(items)

    outcomes = runner([doubled(Broken(), 1), doubled(Doubling(), 1)])
    assert isinstance(outcomes[0].result, OSError)
    assert outcomes[1].get() == 2


def test_different_stages_are_not_mixed(runner):
    operation = Doubling()

    async def elsewhere() -> Any:
        return await perform("elsewhere", operation, 6)

    outcomes = runner([doubled(operation, 2), elsewhere()])
    assert [one.get() for one in outcomes] == [4, 12]
    assert operation.sizes == [1, 1]


def test_what_breaks_by_itself_is_its_own_outcome(runner):
    async def broken() -> None:
        await perform("double", Doubling(), 2)
        raise KeyError("mine")

    async def at_once() -> str:
        return "done"

    outcomes = runner([broken(), at_once()])
    assert isinstance(outcomes[0].result, KeyError)
    assert (outcomes[1].get(), outcomes[1].seconds) == ("done", {})
    assert runner([]) == []


def test_what_blocks_and_cancels_itself_has_failed_and_ends_nothing_else():
    class Cancelling(Doubling):
        def run(self, items: Sequence[Any]) -> Sequence[Any]:
            raise asyncio.CancelledError

    outcomes = run([doubled(Cancelling(), 1), doubled(Doubling(), 2)])
    assert str(outcomes[0].result) == "the request was cancelled"
    assert outcomes[1].get() == 4
