"""The runner of steps, blocking and not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from llama_index_refine.retrieval.running import arun, run
from llama_index_refine.steps import Step


@dataclass(eq=False)
class Halving:
    """Halves even numbers; odd ones fail by themselves, a 0 fails all."""

    asked: list[list[int]] = field(default_factory=list)

    def run(self, items):
        self.asked.append(list(items))
        if 0 in items:
            raise RuntimeError("all of them")
        return [item // 2 if item % 2 == 0 else ValueError(f"{item} is odd") for item in items]

    async def arun(self, items):
        return self.run(items)


def descent(number, operation, log=None):
    while number > 1:
        number = yield Step("halve", operation, number)
        if log is not None:
            log.append(number)
    return "one"


def forgiving(number, operation):
    try:
        yield Step("halve", operation, number)
    except (ValueError, RuntimeError) as error:
        return str(error)


@pytest.fixture(params=["run", "arun"])
def perform(request):
    async def performed(sequences):
        return run(sequences) if request.param == "run" else await arun(sequences)

    return performed


async def test_sequences_share_calls_and_end_by_themselves(perform):
    operation = Halving()
    outcomes = await perform([descent(8, operation), descent(2, operation), descent(1, operation)])
    assert [outcome.result for outcome in outcomes] == ["one"] * 3
    assert operation.asked == [[8, 2], [4], [2]]
    assert set(outcomes[0].seconds) == {"halve"}
    assert outcomes[2].seconds == {}


async def test_an_items_exception_is_thrown_into_its_own_sequence(perform):
    operation = Halving()
    bad, good, caught = await perform([descent(3, operation), descent(4, operation), forgiving(5, operation)])
    assert isinstance(bad.result, ValueError)
    assert good.result == "one"
    assert caught.result == "5 is odd"


async def test_an_operation_that_fails_as_a_whole_fails_all_who_wait_for_it(perform):
    operation, other = Halving(), Halving()
    caught, good = await perform([forgiving(0, operation), descent(4, other)])
    assert caught.result == "all of them"
    assert good.result == "one"


async def test_different_stages_are_not_mixed(perform):
    operation = Halving()

    def other():
        return (yield Step("other", operation, 6))

    outcomes = await perform([descent(2, operation), other()])
    assert [outcome.result for outcome in outcomes] == ["one", 3]
    assert sorted(operation.asked) == [[2], [6]]


async def test_a_sequence_that_breaks_is_its_own_outcome(perform):
    def broken():
        yield Step("halve", Halving(), 2)
        raise KeyError("mine")

    (outcome,) = await perform([broken()])
    assert isinstance(outcome.result, KeyError)
    assert await perform([]) == []
