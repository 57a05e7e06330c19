"""Pace, against servers that are simulated, and Circuit."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.graders.asking import pace as module
from llama_index_refine.graders.asking.pace import Circuit, Pace

ALLOWED = 30.0


@dataclass
class Server:
    """Answers so many questions at a time, first come first served, also those that nobody waits for any more."""

    seconds: Callable[[], float]
    places: int
    refuses: bool = False
    free: list[float] = field(default_factory=list)

    def ask(self, now: float) -> float | None:
        """:return: when a question that is asked now will be answered; None where it is refused."""
        self.free = self.free or [0.0] * self.places
        if self.refuses and self.free[0] > now:
            return None
        done = max(now, self.free[0]) + self.seconds()
        heapq.heapreplace(self.free, done)
        return done


@dataclass
class Run:
    pace: Pace
    seconds: float = 0.0
    lost: int = 0
    refused: int = 0
    requests: int = 0
    most: int = 0


def run(monkeypatch, server: Server, questions: int, most: int = 16) -> Run:
    """Ask all questions as `Calls` does, those that time out in a crowd again. A question lost timed out otherwise."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    done = Run(Pace(most, ALLOWED))
    waiting, out, order = questions, [], 0
    while waiting or out:
        while waiting and len(out) < done.pace.size:
            waiting, order, done.requests = waiting - 1, order + 1, done.requests + 1
            answer = server.ask(now)
            if answer is None:
                heapq.heappush(out, (now + 0.01, order, now, "refused"))
            else:
                kind = "answered" if answer < now + ALLOWED else "late"
                heapq.heappush(out, (min(answer, now + ALLOWED), order, now, kind))
        done.most = max(done.most, len(out))
        now, _, begun, kind = heapq.heappop(out)
        if kind == "answered":
            done.pace.answered(begun)
        elif done.pace.slower(begun):
            done.refused, waiting = done.refused + (kind == "refused"), waiting + 1
        elif kind == "refused":
            done.refused, waiting = done.refused + 1, waiting + 1
        else:
            done.lost += 1
    done.seconds = now
    return done


@pytest.mark.parametrize("seconds", [0.5, 2.0, 5.0, 8.0, 10.0])
def test_a_server_with_one_place_answers_everything(monkeypatch, seconds):
    done = run(monkeypatch, Server(lambda: seconds, 1), 200)
    assert done.lost == 0
    assert done.requests <= 210
    assert done.seconds <= 1.1 * 200 * seconds


@pytest.mark.parametrize("seconds", [0.05, 0.5, 2.0, 10.0])
def test_a_server_that_serves_many_is_asked_as_much_as_it_may_be(monkeypatch, seconds):
    done = run(monkeypatch, Server(lambda: seconds, 1000), 1000)
    assert done.most == 16
    assert done.seconds <= 1.25 * 1000 * seconds / 16
    assert run(monkeypatch, Server(lambda: 0.3, 1000), 20).seconds <= 1.2


def test_answers_that_take_long_are_no_reason_to_ask_more_or_less(monkeypatch):
    done = run(monkeypatch, Server(lambda: 20.0, 1000), 100)
    assert (done.lost, done.pace.size) == (0, 4)


def test_a_server_that_refuses_what_it_has_no_place_for(monkeypatch):
    done = run(monkeypatch, Server(lambda: 5.0, 1, refuses=True), 30)
    assert done.pace.size <= 2
    assert done.most == 4


def test_what_was_out_together_counts_once(monkeypatch):
    now = 1.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    pace = Pace(16, ALLOWED)
    for _ in range(4):
        pace.answered(0.5)
    assert pace.size == 8
    now = 2.0
    assert all(pace.slower(1.5) for _ in range(8))
    assert pace.size == 4
    now = 3.0
    assert pace.slower(2.5)
    assert pace.size == 2


def test_a_question_alone_is_never_crowded_out():
    assert not Pace(1, ALLOWED).slower(module.time.monotonic())


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0.01, 7.0),
    places=st.integers(1, 40),
    most=st.integers(1, 40),
    questions=st.integers(1, 120),
)
def test_whatever_the_server_nothing_is_lost_and_the_limit_holds(seconds, places, most, questions):
    with pytest.MonkeyPatch.context() as monkeypatch:
        done = run(monkeypatch, Server(lambda: seconds, places), questions, most)
    assert done.lost == 0
    assert done.most <= most
    assert 1 <= done.pace.size <= most


class Counter:
    """Counts who is inside."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.inside = self.most = 0
        self.order: list[int] = []

    async def visit(self, number: int = 0, pauses: int = 3) -> None:
        async with self.pace:
            self.order.append(number)
            self.inside += 1
            self.most = max(self.most, self.inside)
            for _ in range(pauses):
                await asyncio.sleep(0)
            self.inside -= 1


async def test_first_come_first_served():
    counter = Counter(Pace(1, ALLOWED))
    await asyncio.gather(*(counter.visit(number) for number in range(20)))
    assert counter.order == list(range(20))


@pytest.mark.parametrize("seed", range(20))
async def test_places_of_the_cancelled_go_to_the_others(seed):
    counter = Counter(Pace(2, ALLOWED))
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
