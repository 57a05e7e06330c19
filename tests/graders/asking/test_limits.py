"""ConcurrencyLimit and Circuit."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from llama_index_refine.graders.asking.limits import Circuit, ConcurrencyLimit


class Counter:
    """Counts who is inside."""

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self.limit = limit
        self.inside = self.most = self.done = 0
        self.lock = threading.Lock()

    async def visit(self, pauses: int = 3) -> None:
        async with self.limit:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            for _ in range(pauses):
                await asyncio.sleep(0)
            with self.lock:
                self.inside -= 1
                self.done += 1


def test_the_limit_holds_across_event_loops_and_threads():
    counter = Counter(ConcurrencyLimit(3))

    async def many() -> None:
        await asyncio.gather(*(counter.visit() for _ in range(200)))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counter.done == 800
    assert counter.most <= 3


async def test_first_come_first_served():
    limit, order = ConcurrencyLimit(1), []

    async def visit(number: int) -> None:
        async with limit:
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(visit(number) for number in range(20)))
    assert order == list(range(20))


@pytest.mark.parametrize("seed", range(20))
async def test_places_of_the_cancelled_go_to_the_others(seed):
    counter = Counter(ConcurrencyLimit(2))
    tasks = [asyncio.create_task(counter.visit(pauses=5)) for _ in range(30)]
    for _ in range(seed):
        await asyncio.sleep(0)
    for task in tasks[seed % 3 :: 3]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    counter.inside = counter.most = 0
    await asyncio.wait_for(asyncio.gather(*(counter.visit() for _ in range(10))), 10)
    assert counter.most == 2


def test_the_circuit_opens_after_failures_in_a_row_and_closes_after_a_success():
    circuit = Circuit(threshold=2, cooldown=60)
    circuit.failed()
    circuit.succeeded()
    circuit.failed()
    assert circuit.allows()
    circuit.failed()
    assert not circuit.allows()
    circuit.succeeded()
    assert circuit.allows()


def test_one_trial_each_cooldown():
    circuit = Circuit(threshold=1, cooldown=0.05)
    circuit.failed()
    assert not circuit.allows()
    time.sleep(0.06)
    assert [circuit.allows(), circuit.allows()] == [True, False]
