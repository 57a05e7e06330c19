"""Pace, against servers that are simulated: no time passes."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.graders.asking import pace as module
from llama_index_refine.graders.asking.pace import Pace

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
        while waiting and len(out) < done.pace.places.size:
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
        elif kind == "refused":
            done.pace.refused(begun)
            done.refused, waiting = done.refused + 1, waiting + 1
        elif done.pace.is_crowded(begun):
            waiting += 1
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


@pytest.mark.parametrize("seconds", [0.05, 0.5, 2.0, 10.0, 20.0])
def test_a_server_that_serves_many_is_asked_as_much_as_it_may_be(monkeypatch, seconds):
    done = run(monkeypatch, Server(lambda: seconds, 1000), 1000)
    assert done.most == 16
    assert done.seconds <= 1.25 * 1000 * seconds / 16
    assert run(monkeypatch, Server(lambda: 0.3, 1000), 20).seconds <= 0.61  # as many rounds as 16 at a time take


def test_answers_of_very_different_length_are_no_queue(monkeypatch):
    chance = random.Random(0)
    done = run(monkeypatch, Server(lambda: min(25.0, chance.lognormvariate(0.0, 1.0)), 1000), 2000)
    assert done.lost == 0
    assert done.pace.places.size == 16


def test_a_server_that_refuses_what_it_has_no_place_for(monkeypatch):
    done = run(monkeypatch, Server(lambda: 5.0, 1, refuses=True), 30)
    assert done.pace.places.size == 1
    assert done.refused <= 10
    assert done.seconds <= 1.1 * 30 * 5.0


@pytest.mark.parametrize("most", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_errors_now_and_then_are_no_reason_to_slow_down(monkeypatch, most, share):
    monkeypatch.setattr(module.time, "monotonic", lambda: 1.0)
    sizes = []
    for seed in range(10):
        pace, chance = Pace(most, ALLOWED), random.Random(seed)
        for _ in range(2000):
            (pace.refused if chance.random() < share else pace.answered)(1.0)
            sizes.append(pace.places.size)
    assert sum(sizes) >= 0.8 * most * len(sizes)


@pytest.mark.parametrize("most", [2, 4, 16])
def test_who_was_slowed_down_by_errors_becomes_fast_again_among_fewer(monkeypatch, most):
    monkeypatch.setattr(module.time, "monotonic", lambda: 1.0)
    pace, chance = Pace(most, ALLOWED), random.Random(0)
    for _ in range(100):
        pace.refused(1.0)
    assert pace.places.size == 1
    for _ in range(400):
        (pace.refused if chance.random() < 0.2 else pace.answered)(1.0)
    assert pace.places.size == most


def test_a_question_alone_is_never_crowded_out():
    pace = Pace(1, ALLOWED)
    pace.answered(1.0)
    assert not pace.is_crowded(0.0) or pace.places.size == 1
    assert not Pace(16, ALLOWED).is_crowded(module.time.monotonic())


def test_one_text_that_takes_for_ever_slows_nobody_down(monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    pace = Pace(16, ALLOWED)
    for _ in range(200):
        now += 0.2
        pace.answered(now - 0.2)
    assert pace.places.size == 16
    assert not pace.is_crowded(now - ALLOWED)
    assert pace.places.size == 16


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
    assert 1 <= done.pace.places.size <= most
