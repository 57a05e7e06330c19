"""AverageGrader, CascadeGrader, SelfConsistencyGrader and FeedbackGrader."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import BaseGrader, GraderError, Grades
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.combining import mean
from llama_index_refine.graders.ensembles import AverageGrader, CascadeGrader, SelfConsistencyGrader
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.graders.llm import LLMGrader
from tests.chat_server import Question, Reply, yes
from tests.graders.conftest import NODES, QUERY


class Table(BaseGrader):
    """Grades by node id; written as a user would, without a word to the base class."""

    def __init__(self, grades: Mapping[str, float | None]) -> None:
        self.grades = grades
        self.asked: list[list[str]] = []

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        self.asked.append([node.node_id for node in nodes])
        return [self.grades[node.node_id] for node in nodes]


class Broken(BaseGrader):
    """Raises, or returns nonsense."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


async def both(grader: BaseGrader) -> Grades:
    """Grade in both ways, which must agree."""
    grades = grader.grade(QUERY, NODES)
    asynchronous = await grader.agrade(QUERY, NODES)
    assert grades == asynchronous
    assert grades.spread == asynchronous.spread
    return grades


async def test_average():
    one, other = Table({"0": 1.0, "1": 0.0, "2": None}), Table({"0": 0.5, "1": None, "2": None})
    grades = await both(AverageGrader([one, other]))
    assert grades == [0.75, 0.0, None]
    assert grades.spread == [0.25, None, None]


async def test_average_with_weights():
    low, high = Table(dict.fromkeys("012", 0.0)), Table(dict.fromkeys("012", 1.0))
    assert await both(AverageGrader([low, high], [1, 3])) == [0.75] * 3


@pytest.mark.parametrize("answer", [ValueError("no"), [1.0], [float("nan"), 2.0, -1.0]])
async def test_a_broken_teacher_is_left_out(answer):
    account = Account()
    with account.active():
        assert await both(AverageGrader([Broken(answer), Table(dict.fromkeys("012", 0.25))])) == [0.25] * 3
    assert bool(account.failures) == (not isinstance(answer, list) or len(answer) == 1)


async def test_a_teacher_told_to_raise_raises():
    with pytest.raises(GraderError):
        await AverageGrader([Broken(GraderError("wrong key"))]).agrade(QUERY, NODES)


async def test_cascade_asks_the_next_only_about_the_unsure():
    cheap, dear = Table({"0": 0.9, "1": 0.5, "2": None}), Table({"1": 0.1, "2": None})
    grades = await CascadeGrader([cheap, dear]).agrade(QUERY, NODES)
    assert grades == [0.9, 0.1, None]
    assert dear.asked == [["1", "2"]]


async def test_cascade_keeps_the_first_opinion_where_the_next_has_none():
    assert await both(CascadeGrader([Table({"0": 0.5, "1": 0.5, "2": 0.5}), Table(dict.fromkeys("012"))])) == [0.5] * 3


async def test_cascade_does_not_ask_the_next_about_nothing():
    dear = Table({})
    await CascadeGrader([Table(dict.fromkeys("012", 1.0)), dear]).agrade(QUERY, NODES)
    assert dear.asked == []


def test_bad_arguments():
    teacher = Table({})
    with pytest.raises(ValueError, match="teachers"):
        AverageGrader([])
    with pytest.raises(ValueError, match="weights"):
        AverageGrader([teacher], [1, 2])
    with pytest.raises(ValueError, match="weights"):
        AverageGrader([teacher], [0])
    with pytest.raises(ValueError, match="unsure"):
        CascadeGrader([teacher], unsure=(0.9, 0.1))
    with pytest.raises(ValueError, match="n must"):
        SelfConsistencyGrader(teacher, n=1)
    with pytest.raises(ValueError, match="prompts must"):
        SelfConsistencyGrader(teacher, prompts=[])
    with pytest.raises(ValueError, match="one prompt"):
        SelfConsistencyGrader(teacher, prompts=[PromptTemplate("{query}")] * 2)
    with pytest.raises(ValueError, match="cached"):
        SelfConsistencyGrader(CachedGrader(teacher))
    with pytest.raises(ValueError, match="grade must"):
        FeedbackGrader().judge("q", "1", 1.5)


@given(st.lists(st.lists(st.none() | st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=5))
def test_a_mean_lies_between_its_grades(gradings):
    grades = mean([Grades(grading) for grading in gradings])
    for place in range(2):
        given_grades = [grading[place] for grading in gradings if grading[place] is not None]
        if not given_grades:
            assert grades[place] is None
            continue
        assert min(given_grades) - 1e-9 <= grades[place] <= max(given_grades) + 1e-9
        if len(given_grades) > 1:
            assert 0 <= grades.spread[place] <= (max(given_grades) - min(given_grades)) / 2 + 1e-9


async def test_prompts_are_reached_at_any_depth(llm):
    inner = LLMGrader(llm)
    grader = CachedGrader(AverageGrader([FeedbackGrader({}, inner), CascadeGrader([Table({}), LLMGrader(llm)])]))
    assert sorted(grader.get_prompts()) == ["teacher_1_grade_prompt", "teacher_2_teacher_2_grade_prompt"]
    before = grader.fingerprint()
    grader.update_prompts({"teacher_1_grade_prompt": PromptTemplate("New {query} {document}")})
    assert inner.get_prompts()["grade_prompt"].get_template() == "New {query} {document}"
    assert grader.fingerprint() != before


async def test_self_consistency_by_sampling(make_grader, chat_server):
    def reply(question: Question) -> Reply:
        asked[question.document] = asked.get(question.document, 0) + 1
        return yes(0.9 if asked[question.document] % 3 else 0.3)

    asked: dict[str, int] = {}
    chat_server.reply = reply
    grader = SelfConsistencyGrader(make_grader(llm_kwargs={"temperature": 0.8}), n=3)
    grades = await both(grader)
    assert grades == pytest.approx([0.7] * 3)
    assert grades.spread == pytest.approx([0.08**0.5] * 3)
    assert chat_server.questions[0].body["temperature"] == 0.8
    assert list(grader.get_prompts()) == ["grade_prompt"]


async def test_self_consistency_over_prompts(make_grader, chat_server):
    chat_server.reply = lambda question: yes(0.2 if question.prompt.startswith("B") else 0.8)
    teacher = make_grader()
    prompts = [PromptTemplate(f"{letter} {{query}} {{document}}") for letter in "AB"]
    grader = SelfConsistencyGrader(teacher, prompts=prompts)
    grades = await both(grader)
    assert grades == pytest.approx([0.5] * 3)
    assert grades.spread == pytest.approx([0.3] * 3)
    assert sorted(grader.get_prompts()) == ["wording_1_grade_prompt", "wording_2_grade_prompt"]
    assert "{query}" in teacher.get_prompts()["grade_prompt"].get_template()[1:]
    assert not teacher.get_prompts()["grade_prompt"].get_template().startswith(("A ", "B "))


async def test_feedback_comes_before_the_teacher():
    teacher = Table({"1": 0.3, "2": 0.4})
    grader = FeedbackGrader({"How do CATS  purr": {"0": 1.0, "unknown": 1.0}}, teacher)
    assert await grader.agrade(QUERY, NODES) == [1.0, 0.3, 0.4]
    assert teacher.asked == [["1", "2"]]
    grader.judge("how do cats purr", "1", 0.0)
    assert grader.grade(QUERY, NODES) == [1.0, 0.0, 0.4]


async def test_feedback_alone_grades_only_what_was_judged():
    assert await both(FeedbackGrader({QUERY.query_str: {"2": 0.5}})) == [None, None, 0.5]
    assert await both(FeedbackGrader({"another query": {"2": 0.5}})) == [None, None, None]


async def test_feedback_from_a_function():
    grader = FeedbackGrader(lambda query: {"0": 1.0, "1": 7.0} if query.query_str == QUERY.query_str else {})
    assert await both(grader) == [1.0, None, None]


async def test_a_slow_teacher_of_someone_elses_does_not_hold_up_the_deadline():
    release = asyncio.Event()

    class Slow(Table):
        async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
            await release.wait()
            return []

    account = Account(Budget(seconds=0.05))
    with account.active():
        assert await AverageGrader([Slow({}), Table(dict.fromkeys("012", 1.0))]).agrade(QUERY, NODES) == [1.0] * 3
    assert account.failures == ["Slow had not answered by the deadline"]


async def test_wordings_reach_a_teacher_behind_others_and_leave_the_users_alone(make_grader, chat_server):
    inner = make_grader()
    before = inner.get_prompts()["grade_prompt"].get_template()
    prompts = [PromptTemplate(f"{letter} {{query}} {{document}}") for letter in "AB"]
    for around in (FeedbackGrader({}, inner), SelfConsistencyGrader(inner, n=2), CachedGrader(inner)):
        chat_server.questions.clear()
        await SelfConsistencyGrader(FeedbackGrader({}, around), prompts=prompts).agrade(QUERY, NODES[:1])
        assert {question.prompt[:2] for question in chat_server.questions} == {"A ", "B "}
        assert inner.get_prompts()["grade_prompt"].get_template() == before


class Sharing(Table):
    """A teacher of someone else's that hands its prompts on."""

    def __init__(self, inner: BaseGrader) -> None:
        super().__init__({})
        self.inner = inner

    def _get_prompts(self) -> dict:
        return self.inner.get_prompts()

    def _update_prompts(self, prompts: dict) -> None:
        self.inner.update_prompts(prompts)


def test_a_teacher_whose_copies_share_a_prompt_is_refused_and_keeps_it(llm):
    inner = LLMGrader(llm)
    before = inner.get_prompts()
    with pytest.raises(ValueError, match="Sharing's share it"):
        SelfConsistencyGrader(Sharing(inner), prompts=[PromptTemplate("A {query} {document}")] * 2)
    assert inner.get_prompts() == before


def test_people_may_judge_while_a_query_is_graded():
    feedback = FeedbackGrader({QUERY.query_str: {str(number): 1.0 for number in range(500)}})
    stop = threading.Event()

    def judge() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            feedback.judge(QUERY, f"x{number % 2000}", 1.0)

    people = threading.Thread(target=judge, daemon=True)
    people.start()
    try:
        for _ in range(50):
            assert feedback.grade(QUERY, NODES) == [1.0] * 3
            assert "0" in feedback.judged(QUERY)
    finally:
        stop.set()
        people.join()


def test_a_query_is_the_same_however_its_accents_are_written():
    feedback = FeedbackGrader({"O\u00f9 est la  gare": {"0": 1.0}})
    feedback.judge("ou\u0300 est la gare", "1", 0.0)
    for query in ("o\u00f9 est la gare", "OU\u0300 EST LA GARE"):
        assert feedback.grade(QueryBundle(query), NODES) == [1.0, 0.0, None]
