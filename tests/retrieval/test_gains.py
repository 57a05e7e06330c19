"""Whether more grades would still change the list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.refining.relevance import Ranking, fit_relevance
from llama_index_refine.retrieval.ranking import WORTH, expected_gains


def dcg(relevance, limit: int) -> float:
    return sum(value / np.log2(2 + rank) for rank, value in enumerate(relevance[:limit]))


@st.composite
def lists(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    graded, others = draw(st.integers(2, 12)), draw(st.integers(1, 25))
    fitted = rng.normal(size=graded) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    grades = rng.random(graded) if draw(st.booleans()) else (rng.random(graded) < rng.random()).astype(float)
    return {
        "placed": fitted + rng.normal(size=graded) / 2,
        "grades": grades,
        "others": np.sort(rng.normal(size=others))[::-1],
        "chances": np.sort(rng.random(others))[::-1],
        "steps": (draw(st.sampled_from([0.0, 0.3, 1.1, 4.0])), draw(st.sampled_from([0.0, 0.3, 1.1]))),
        "limit": draw(st.integers(1, 30)),
    }


@given(lists())
def test_the_gain_is_that_of_moving_each_document_by_its_grade(case):
    placed, grades, others, chances = (case[name] for name in ("placed", "grades", "others", "chances"))
    limit = case["limit"]
    known = list(zip([*placed, *others], [*grades, *chances], strict=True))

    def moved(at: int, by: float, value: float) -> float:
        """What the list gains, where the candidate's relevance is known."""
        place = others[at]
        rest = [*known[: len(placed) + at], *known[len(placed) + at + 1 :]]
        values = [
            dcg([relevance for _, relevance in sorted([*rest, (where, value)], key=lambda entry: -entry[0])], limit)
            for where in (place, place + by)
        ]
        return values[1] - values[0]

    def shown(at: int, chance: float, if_relevant: float, if_not: float) -> float:
        return chance * moved(at, if_relevant, 1.0) + (1 - chance) * moved(at, if_not, 0.0)

    up, down = case["steps"]
    expected = [shown(at, chance, up, -down) for at, chance in enumerate(chances)]
    best = dcg(sorted([*grades, *chances], reverse=True), limit)
    assert expected_gains(**case) == pytest.approx(np.array(expected) / best if best else 0.0, rel=1e-9, abs=1e-12)


@given(lists())
def test_nothing_is_gained_by_grades_that_move_nothing(case):
    assert not expected_gains(**{**case, "steps": (0.0, 0.0)}).any()
    assert (expected_gains(**case) >= 0).all()


def gains_of(fitted, grades, others, step: float, limit: int):
    """With chances from these grades, in a collection of a thousand others far below."""
    sample = np.random.default_rng(0).normal(-12, 1, 30)
    relevance = fit_relevance(Ranking.of(np.sort(np.r_[fitted, others])[::-1], sample, 1000), fitted, grades)
    return expected_gains(fitted, grades, others, relevance.probability(others), (step, step), limit)


def test_a_list_whose_head_is_graded_is_settled_and_one_whose_head_is_not_is_open():
    fitted, grades = np.array([3.0, 2.5, 2.0, -1.0, -1.2, -1.4]), np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    far, near = np.linspace(-6, -8, 10), np.linspace(3.5, 1, 10)
    settled, unsettled = (gains_of(fitted, grades, others, 1.0, 3) for others in (far, near))
    assert settled.max() < WORTH < 2 * WORTH < unsettled.max()
    assert settled.sum() < 0.01 < 10 * WORTH < unsettled.sum()


def test_what_is_surely_relevant_is_worth_less_than_what_is_in_doubt():
    fitted, grades = np.r_[np.linspace(4, 2, 6), np.linspace(-2, -4, 6)], np.r_[np.ones(6), np.zeros(6)]
    sure, *doubtful = gains_of(fitted, grades, np.array([4.5, 0.2, 0.1, 0.0, -0.1]), 1.1, 10)
    assert sure < WORTH < max(doubtful)
